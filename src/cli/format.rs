//! `doppler format`: a conversation to the text that a model expects.

use std::io::Write;
use std::path::PathBuf;

use doppler::session::chat_template_of;
use doppler::text::{ChatTemplate, builtin_template};
use serde_json::{Map, Value, json};

use super::input;
use super::outcome::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors, with a chat template
    #[arg(required_unless_present = "template", conflicts_with = "template")]
    model: Option<PathBuf>,
    /// File with a Jinja template, or the name of a built-in one (such as chatml), instead of a model
    #[arg(long, value_name = "FILE|NAME")]
    template: Option<PathBuf>,
    /// JSON file: an array of messages, or an object with `messages`, `tools` and values for the template's own switches
    #[arg(long, value_name = "FILE")]
    messages: PathBuf,
    /// JSON file with an array of tools
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Do not open the assistant's turn
    #[arg(long)]
    no_generation_prompt: bool,
    /// Text of the BOS token, for --template
    #[arg(long, value_name = "TEXT", requires = "template")]
    bos: Option<String>,
    /// Text of the EOS token, for --template
    #[arg(long, value_name = "TEXT", requires = "template")]
    eos: Option<String>,
    /// The time that templates are told, in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    now: Option<i64>,
    /// Print JSON: {"text": …}; otherwise exactly the text, with no newline added
    #[arg(long)]
    json: bool,
}

/// Messages, tools and what else a messages file says.
fn split(value: Value) -> Option<(Value, Option<Value>, Map<String, Value>)> {
    match value {
        Value::Array(_) => Some((value, None, Map::new())),
        Value::Object(mut all) => {
            let messages = all.shift_remove("messages").filter(Value::is_array)?;
            let tools = all.shift_remove("tools").filter(|t| !t.is_null());
            Some((messages, tools, all))
        }
        _ => None,
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let Some((messages, tools, mut extra)) = split(input::json(&args.messages)?) else {
        return Err(Failure::Message(format!(
            "{}: an array of messages is needed, or an object with one as \"messages\"",
            args.messages.display()
        )));
    };
    let tools = match &args.tools {
        Some(file) => Some(input::json(file)?),
        None => tools,
    };
    let opened = extra.shift_remove("add_generation_prompt").and_then(|v| v.as_bool()).unwrap_or(true);
    let template = match (&args.model, &args.template) {
        (Some(model), _) => chat_template_of(model)?,
        (_, Some(file)) => {
            let built_in = file.to_str().filter(|_| !file.exists()).and_then(builtin_template);
            let source = built_in.map_or_else(|| input::text(file), |t| Ok(t.to_string()))?;
            ChatTemplate::new(&source, args.bos.as_deref(), args.eos.as_deref())?
        }
        _ => return Err(Failure::Usage("a model or --template is needed".into())),
    };
    let opened = opened && !args.no_generation_prompt;
    let text = template.render_at(&messages, tools.as_ref(), opened, &extra, args.now)?;
    if args.json {
        return input::print_json(&json!({ "text": text }));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
