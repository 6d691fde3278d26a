//! `doppler perplexity`: how well a model predicts a text, in independent windows.

use std::io::Write;
use std::path::PathBuf;

use doppler::session::SessionOptions;
use serde_json::json;

use super::input;
use super::open::{self, DeviceArgs, EngineArgs, LoraArgs};
use super::outcome::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors
    model: PathBuf,
    /// File with the text; control tokens in it are recognised
    #[arg(long, value_name = "FILE", required_unless_present = "ids", conflicts_with = "ids")]
    text_file: Option<PathBuf>,
    /// JSON file with token ids
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Tokens of a window; each begins with an empty cache, and its first token is not predicted
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: u32,
    /// Windows, at most; 0 = all whole ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    windows: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

/// −ln of the probability that a row of logits gives a token, in f64.
fn nats(row: &[f32], token: u32) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |x: f32| f64::from(x) - f64::from(top);
    let sum: f64 = row.iter().map(|&x| above(x).exp()).sum();
    let chosen = row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() - above(chosen)
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    if args.window < 2 {
        return Err(Failure::Usage("--window: at least 2 tokens".into()));
    }
    let context = device.open()?;
    let mut options = args.engine.model_options();
    if args.engine.ctx == 0 {
        options.n_ctx = args.window;
    }
    let model = open::model(&context, &args.model, &options)?;
    let ids = match (&args.ids, &args.text_file) {
        (Some(file), _) => input::ids(file)?,
        (_, Some(file)) => model.tokenizer().encode(&input::text(file)?, false, true)?,
        _ => return Err(Failure::Usage("--ids or --text-file is needed".into())),
    };
    let limit = if args.windows == 0 { usize::MAX } else { args.windows };
    let windows: Vec<&[u32]> = ids.chunks_exact(args.window as usize).take(limit).collect();
    if windows.is_empty() {
        return Err(Failure::Message(format!("{} tokens make no window of {}", ids.len(), args.window)));
    }
    let vocab = model.spec().n_vocab as usize;
    let mut session = model.open_session(&SessionOptions::default())?;
    args.lora.give(&mut session)?;
    let mut means = Vec::with_capacity(windows.len());
    for window in windows {
        session.reset();
        let mut next = window.iter().skip(1);
        let mut sum = 0.0;
        session.eval(window, &mut |rows| {
            for (row, &token) in rows.chunks_exact(vocab).zip(&mut next) {
                sum += nats(row, token);
            }
            Ok(())
        })?;
        means.push(sum / f64::from(args.window - 1));
    }
    let mean = means.iter().sum::<f64>() / means.len() as f64;
    if args.json {
        return input::print_json(&json!({
            "window": args.window, "windows": means.len(), "mean_nats": mean, "perplexity": mean.exp(),
            "window_nats": means,
        }));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} windows of {}: {mean:.6} nats a token, perplexity {:.4}", means.len(), args.window, mean.exp())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::nats;

    #[test]
    fn nats_of_even_and_certain_rows() {
        assert!((nats(&[1.0; 8], 3) - 8f64.ln()).abs() < 1e-12);
        assert!(nats(&[90.0, 0.0], 0) < 1e-12);
        assert!(nats(&[0.0, 0.0], 5).is_infinite());
    }
}
