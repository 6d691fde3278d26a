//! `doppler generate`: continues a prompt.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use doppler::session::{FinishReason, GenerateOptions, Generated, Piece, SegmentKind, Session};
use serde_json::json;

use super::open::{self, DeviceArgs, EngineArgs, LoraArgs, ProfileArgs, SubmitArgs};
use super::outcome::{Failure, Outcome};
use super::sampling::SamplingArgs;
use super::speculate::{self, SpeculationArgs};
use super::{input, report};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors
    model: PathBuf,
    /// The prompt; without any of the three it is read from stdin
    #[arg(long, short, value_name = "TEXT", group = "source")]
    prompt: Option<String>,
    /// File with the prompt; - is stdin
    #[arg(long, value_name = "FILE", group = "source")]
    prompt_file: Option<PathBuf>,
    /// JSON file with token ids, fed as they are: no BOS is added
    #[arg(long, value_name = "FILE", group = "source")]
    ids: Option<PathBuf>,
    /// Tokens to generate, at most; 0 = as many as the context holds
    #[arg(short, long = "tokens", value_name = "N", default_value_t = 128)]
    n: u32,
    /// Recognise control tokens in the prompt, and show them in the text
    #[arg(long)]
    special: bool,
    #[command(flatten)]
    submits: SubmitArgs,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Show times and counters on stderr
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    drafts: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Args {
    fn read_prompt(&self) -> Outcome<Prompt> {
        Ok(match (&self.prompt, &self.prompt_file, &self.ids) {
            (Some(text), _, _) => Prompt::Text(text.clone()),
            (_, Some(file), _) => Prompt::Text(input::text(file)?),
            (_, _, Some(file)) => Prompt::Ids(input::ids(file)?),
            _ => Prompt::Text(input::stdin()?),
        })
    }
}

/// Why a generation ended, for programs.
pub(super) fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndToken => "end_token",
        FinishReason::StopString => "stop_string",
        FinishReason::MaxTokens => "max_tokens",
        FinishReason::ContextFull => "context_full",
        FinishReason::Callback => "callback",
        FinishReason::Cancelled => "cancelled",
    }
}

/// Generates, and writes the text to stdout as it comes.
pub(super) fn stream(session: &mut Session, options: &GenerateOptions) -> Outcome<Generated> {
    let mut out = std::io::stdout().lock();
    let mut written = 0;
    let mut failed = None;
    let result = session.generate(options, &mut |event| {
        written += event.text.len();
        match out.write_all(event.text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(e) = failed {
        return Err(e.into());
    }
    let generated = result?;
    // Text that no token was left to deliver with.
    out.write_all(generated.text.as_bytes().get(written..).unwrap_or_default())?;
    out.flush()?;
    Ok(generated)
}

/// A stretch of the reply, with its kind.
fn segment(piece: &Piece) -> serde_json::Value {
    let kind = match piece.kind {
        SegmentKind::Content => "content",
        SegmentKind::Reasoning => "reasoning",
        SegmentKind::ToolCall => "tool_call",
        SegmentKind::Marker => "marker",
    };
    json!({"kind": kind, "text": piece.text})
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let prompt = args.read_prompt()?;
    let context = device.open()?;
    let model = open::model(&context, &args.model, &args.engine.model_options())?;
    let how = args.drafts.session_options(&context, &args.engine.model_options(), &args.submits)?;
    let mut session = model.open_session(&how)?;
    args.lora.give(&mut session)?;
    match &prompt {
        Prompt::Ids(ids) => session.append_tokens(ids)?,
        Prompt::Text(text) => {
            session.append_text(text, args.special)?;
        }
    }
    let prompt_tokens = session.tokens().len();
    if prompt_tokens == 0 {
        return Err(Failure::Usage("the prompt is empty".into()));
    }
    let options = args.sampling.generate_options(args.n, args.special);
    args.profile.start(&context)?;
    let generated = if args.json {
        session.generate(&options, &mut |_| ControlFlow::Continue(()))?
    } else {
        let generated = stream(&mut session, &options)?;
        if !generated.text.ends_with('\n') {
            writeln!(std::io::stdout())?;
        }
        generated
    };
    args.profile.finish(&context)?;
    let stats = session.stats();
    let totals = context.stats();
    if args.json {
        input::print_json(&json!({
            "ids": generated.tokens,
            "text": generated.text,
            "segments": generated.pieces.iter().map(segment).collect::<Vec<_>>(),
            "reason": reason_name(generated.reason),
            "stop_string": generated.stop_string,
            "prompt_tokens": prompt_tokens,
            "timings": report::timings_json(&stats, model.stats().load_ns),
            "load": report::load_json(&model.stats()),
            "speculation": speculate::stats_json(&stats.speculation),
            "counters": report::counters_json(&stats.counters, stats.gpu_timed),
            "context_counters": report::counters_json(&totals.counters, totals.gpu_timed),
            "memory": report::memory_json(&totals.memory),
            "kv": report::kv_json(&model.stats().kv, model.info().kv_type),
            "recurrent": report::recurrent_json(&model.stats().recurrent),
        }))?;
    }
    if args.verbose {
        eprintln!("ended by {}", reason_name(generated.reason));
        let held = model.stats();
        eprint!("{}{}{}", held.load_summary(), stats.summary(), totals.summary());
        eprint!("{}{}", held.kv.summary(model.info().kv_type), held.recurrent.summary());
    }
    Ok(())
}
