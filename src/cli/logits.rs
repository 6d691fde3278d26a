//! `doppler logits`: the logits of every position of a prompt.

use std::path::PathBuf;

use doppler::session::SessionOptions;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use super::input;
use super::open::{self, DeviceArgs, EngineArgs, LoraArgs};
use super::outcome::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors
    model: PathBuf,
    /// JSON file with token ids, fed as they are
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// Safetensors file to write: tensor `logits`, f32, one row a position
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let ids = input::ids(&args.ids)?;
    let context = device.open()?;
    let model = open::model(&context, &args.model, &args.engine.model_options())?;
    let mut session = model.open_session(&SessionOptions::default())?;
    args.lora.give(&mut session)?;
    let vocab = model.spec().n_vocab as usize;
    let mut bytes = Vec::with_capacity(ids.len() * vocab * 4);
    session.eval(&ids, &mut |rows| {
        bytes.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
        Ok(())
    })?;
    let failed = |e: &dyn std::fmt::Display| Failure::Message(format!("{}: {e}", args.out.display()));
    let view = TensorView::new(Dtype::F32, vec![ids.len(), vocab], &bytes).map_err(|e| failed(&e))?;
    serialize_to_file([("logits", view)], None, &args.out).map_err(|e| failed(&e))
}
