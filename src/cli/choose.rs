//! `doppler choose`: how likely each of several texts is as the continuation of a prompt.

use std::io::Write;
use std::path::PathBuf;

use doppler::session::{Ranking, Session, SessionOptions};
use serde_json::json;

use super::input;
use super::open::{self, DeviceArgs, EngineArgs};
use super::outcome::Outcome;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors
    model: PathBuf,
    /// The prompt; without it and a file it is read from stdin
    #[arg(long, short, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// File with the prompt; - is stdin
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A text that may follow; as often as there are some. It is tokenized by itself: where words begin with a space, give the space
    #[arg(long = "option", short, value_name = "TEXT", required = true, allow_hyphen_values = true)]
    options: Vec<String>,
    /// What decides
    #[arg(long, value_enum, default_value_t = Rank::Sum)]
    rank: Rank,
    /// Recognise control tokens in the texts
    #[arg(long)]
    special: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Rank {
    /// The likelihood of the whole text
    Sum,
    /// The likelihood by token
    Mean,
    /// The likelihood of the first token
    First,
}

impl From<Rank> for Ranking {
    fn from(r: Rank) -> Self {
        match r {
            Rank::Sum => Self::Sum,
            Rank::Mean => Self::Mean,
            Rank::First => Self::First,
        }
    }
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let prompt = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (_, Some(file)) => input::text(file)?,
        _ => input::stdin()?,
    };
    let context = device.open()?;
    let model = open::model(&context, &args.model, &args.engine.model_options())?;
    let mut session: Session = model.open_session(&SessionOptions::default())?;
    session.append_text(&prompt, args.special)?;
    let texts: Vec<&str> = args.options.iter().map(String::as_str).collect();
    let choice = session.choose(&texts, args.special, args.rank.into())?;
    if args.json {
        let options: Vec<_> = choice
            .scores
            .iter()
            .zip(&texts)
            .map(|(s, text)| {
                json!({
                    "text": text, "log_likelihood": s.log_likelihood(), "mean": s.mean(), "first": s.first(),
                    "tokens": s.log_probs.len(), "log_probs": s.log_probs,
                })
            })
            .collect();
        return input::print_json(&json!({"best": choice.best, "options": options}));
    }
    let mut out = std::io::stdout().lock();
    for (i, (s, text)) in choice.scores.iter().zip(&texts).enumerate() {
        let mark = if i == choice.best { '*' } else { ' ' };
        let (sum, mean, n) = (s.log_likelihood(), s.mean(), s.log_probs.len());
        writeln!(out, "{mark} {sum:>10.4} {mean:>9.4} a token, {n:>3} tokens: {text:?}")?;
    }
    Ok(())
}
