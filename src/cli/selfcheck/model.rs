//! A model against itself: however a prompt is cut, its logits and the text after it are the same.

use std::ops::ControlFlow;
use std::path::Path;

use doppler::Result;
use doppler::kernels::KvType;
use doppler::model::verify_weights;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, Model, ModelOptions, SessionOptions, open_model_file};

use super::{Measured, Rng, Want, compare};

/// Tokens of the prompt; not a multiple of any chunk.
const PROMPT: usize = 45;
const N_CTX: u32 = 128;

fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    let mut session = model.open_session(&SessionOptions::default())?;
    session.eval(ids, &mut |rows| {
        all.extend_from_slice(rows);
        Ok(())
    })?;
    Ok(all)
}

fn generated(model: &Model, ids: &[u32], tokens_per_submit: u32) -> Result<Vec<u32>> {
    let mut session = model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() })?;
    session.append_tokens(ids)?;
    let options = GenerateOptions {
        max_tokens: 32,
        sampling: SamplingOptions { seed: 7, ..Default::default() },
        ignore_eos: true,
        ..Default::default()
    };
    Ok(session.generate(&options, &mut |_| ControlFlow::Continue(()))?.tokens)
}

/// Every matrix of a file as the device decodes it. Scale times weight may be rounded once less than on the CPU, where a driver fuses it with
/// an addition: hence a bound, which no wrong bit stays under.
pub(in crate::cli) fn tensor_check(context: &Context, file: &Path) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    verify_weights(context.gpu(), &open_model_file(file, None)?, &mut |t| {
        let case = format!("{} {} {} x {}, {} differ", t.name, t.format, t.rows, t.cols, t.differing);
        all.push(Measured { case, error: t.max_error, bound: t.largest * 2e-7 });
        Ok(())
    })?;
    Ok(all)
}

/// Evaluates one prompt whole, in chunks and token by token, and draws with one and with several tokens a submit.
pub(in crate::cli) fn model_check(context: &Context, file: &Path) -> Result<Vec<Measured>> {
    let load = |chunk| {
        let kv_type = KvType::F32;
        let options = ModelOptions { n_ctx: N_CTX, prefill_chunk: chunk, kv_type, exact: true, ..Default::default() };
        context.load_model(file, &options, &mut |_, _| Ok(()))
    };
    let whole = load(PROMPT as u32)?;
    let vocab = whole.tokenizer().vocab_size() as u32;
    let mut rng = Rng::new(11);
    let ids: Vec<u32> = (0..PROMPT).map(|_| rng.below(vocab)).collect();
    let reference = logits(&whole, &ids)?;
    // Sums in another order: errors grow with the largest logit, not with each one.
    let size = reference.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let want: Vec<Want> = reference.iter().map(|&v| Want(v.into(), size.into())).collect();
    let mut all = Vec::new();
    let tokens = generated(&whole, &ids, 1)?;
    for batch in [2, 7] {
        let other = generated(&whole, &ids, batch)?;
        let wrong = tokens.iter().zip(&other).filter(|(a, b)| a != b).count() + tokens.len().abs_diff(other.len());
        all.push(Measured::exact(format!("{batch} tokens a submit"), wrong));
    }
    drop(whole);
    for chunk in [7, 1] {
        let got = logits(&load(chunk)?, &ids)?;
        all.push(compare(format!("{PROMPT} tokens in chunks of {chunk}"), &got, &want, 1e-5, 2e-4));
    }
    Ok(all)
}
