//! `doppler tokenize`: text to token ids.

use std::io::Write;
use std::path::PathBuf;

use doppler::session::tokenizer_of;
use serde_json::json;

use super::input;
use super::outcome::Outcome;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file; a vocabulary without tensors will do
    model: PathBuf,
    /// The text
    #[arg(long, value_name = "TEXT", required_unless_present = "text_file", conflicts_with = "text_file")]
    text: Option<String>,
    /// File with the text; - is stdin
    #[arg(long, value_name = "FILE")]
    text_file: Option<PathBuf>,
    /// Take the text of control tokens as those tokens
    #[arg(long)]
    special: bool,
    /// Add BOS and EOS where the file says so
    #[arg(long)]
    add_special: bool,
    /// Print JSON: {"ids": […]}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let text = match (&args.text, &args.text_file) {
        (Some(text), _) => text.clone(),
        (_, Some(file)) => input::text(file)?,
        _ => input::stdin()?,
    };
    let ids = tokenizer_of(&args.model)?.encode(&text, args.add_special, args.special)?;
    if args.json {
        return input::print_json(&json!({ "ids": ids }));
    }
    let words: Vec<_> = ids.iter().map(u32::to_string).collect();
    writeln!(std::io::stdout(), "{}", words.join(" "))?;
    Ok(())
}
