//! `doppler embed`: texts as rows of numbers.

use std::io::Write;
use std::path::PathBuf;

use doppler::session::{EmbedOptions, Pooling};
use serde_json::json;

use super::input;
use super::open::{self, DeviceArgs, EngineArgs};
use super::outcome::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors
    model: PathBuf,
    /// A text; as often as there are some
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    text: Vec<String>,
    /// File with a text on each line; - is stdin
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// How a text's rows become one; without it as the model's file says, the mean where it says nothing
    #[arg(long, value_enum)]
    pooling: Option<PoolingArg>,
    /// Leave rows as long as they are
    #[arg(long)]
    no_normalize: bool,
    /// Recognise control tokens in the texts
    #[arg(long)]
    special: bool,
    /// Print one JSON object; else each row on a line of its own
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PoolingArg {
    /// A row for each token
    None,
    Mean,
    /// The first token's row
    Cls,
    /// The last token's row
    Last,
}

impl From<PoolingArg> for Pooling {
    fn from(p: PoolingArg) -> Self {
        match p {
            PoolingArg::None => Self::None,
            PoolingArg::Mean => Self::Mean,
            PoolingArg::Cls => Self::Cls,
            PoolingArg::Last => Self::Last,
        }
    }
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let mut texts = args.text.clone();
    if let Some(file) = &args.lines {
        texts.extend(input::text(file)?.lines().map(str::to_string));
    }
    if texts.is_empty() {
        return Err(Failure::Usage("--text or --lines is needed".into()));
    }
    let context = device.open()?;
    let model = open::model(&context, &args.model, &args.engine.model_options())?;
    let options = EmbedOptions {
        pooling: args.pooling.map(Pooling::from),
        normalize: !args.no_normalize,
        parse_special: args.special,
    };
    let found = model.embed(&texts.iter().map(String::as_str).collect::<Vec<_>>(), &options)?;
    if args.json {
        return input::print_json(&json!({
            "pooling": found.pooling.name(), "normalized": options.normalize, "n_embd": found.n_embd,
            "tokens": found.tokens, "embeddings": found.rows().collect::<Vec<_>>(),
        }));
    }
    let mut out = std::io::stdout().lock();
    for row in found.rows() {
        let words: Vec<String> = row.iter().map(f32::to_string).collect();
        writeln!(out, "{}", words.join(" "))?;
    }
    Ok(())
}
