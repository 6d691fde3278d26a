//! The bits of verified rows: those of decode steps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::Gguf;
use crate::gpu::{AdapterChoice, FULL_WIDTH, Features, Gate, Gpu, GpuOptions, Phase, Place, ReadbackClass, Scope};
use crate::kernels::KvType;
use crate::model::verify_draft::{DraftRole, MAX_DRAFT, ROWS};
use crate::model::{Engine, EngineOptions, Sequence, arch, load};
use crate::sample::SamplingOptions;

const READ: Gate = Gate::new(Place::Logits, ReadbackClass::Logits, "rows");

fn logits(engine: &Engine, rows: u32, scope: &Scope) -> Vec<u32> {
    let bytes = u64::from(rows) * u64::from(engine.spec.n_vocab) * 4;
    let raw = engine.gpu.download(engine.scratch.logits.slice(0, bytes), READ, scope).unwrap();
    bytemuck::pod_collect_to_vec(&raw)
}

/// A sequence after a prompt, and what was drawn then.
fn begin(engine: &mut Engine, prompt: &[u32], options: &SamplingOptions, scope: &Scope) -> (Sequence, u32) {
    let mut sequence = engine.open(engine.options.n_ctx, scope).unwrap();
    engine.configure(&mut sequence, options, &[], scope).unwrap();
    for (i, piece) in prompt[..prompt.len() - 1].chunks(engine.options.chunk as usize).enumerate() {
        engine.prefill(&mut sequence, piece, i as u32 * engine.options.chunk, scope).unwrap();
    }
    let (pos, limit) = (prompt.len() as u32 - 1, engine.options.n_ctx - 1);
    let last = &prompt[prompt.len() - 1..];
    let first = engine.prefill_and_draw(&mut sequence, last, pos, limit, None, scope).unwrap();
    (sequence, first.token)
}

/// Verifies what decode steps drew, in every number of rows: all of it is accepted, and the logits of the last group of rows are those of the steps.
fn check(gpu: &Arc<Gpu>, file: &Path, prompt: usize, how: (KvType, bool, u32), sampling: &SamplingOptions) {
    let (kv_type, exact, chunk) = how;
    let what = format!("{}, prompt of {prompt}, {how:?}", file.display());
    let file = Gguf::open(file).unwrap();
    let spec = Arc::new(arch::read_spec(&file).unwrap());
    let options = EngineOptions { n_ctx: 512, chunk, kv_type, exact };
    let mut engine = load(gpu, &file, spec.clone(), options, &mut |_, _| Ok(())).unwrap();
    let scope = gpu.scope(Phase::Other);
    let prompt: Vec<u32> = (0..prompt as u32).map(|i| 3 + i * 37 % (spec.n_vocab - 3)).collect();
    let (mut plain, first) = begin(&mut engine, &prompt, sampling, &scope);
    let (start, mut drawn, mut rows) = (prompt.len() as u32, vec![first], Vec::new());
    for i in 0..MAX_DRAFT + 3 {
        let step = engine.decode(&mut [&mut plain], &[start + i], 1, 0, &scope).unwrap();
        drawn.push(step[0][0].unwrap().token);
        rows.push(logits(&engine, 1, &scope));
    }
    engine.close(plain);
    let (mut sequence, again) = begin(&mut engine, &prompt, sampling, &scope);
    assert_eq!(again, first, "{what}");
    assert!(engine.verify(&mut sequence, &drawn[..2], start, 511, &scope).is_err(), "not without being asked for");
    engine.expect_drafts(&mut sequence, DraftRole::Verifies).unwrap();
    for n in 2..=MAX_DRAFT as usize + 1 {
        // Wrong drafts first: they leave nothing behind.
        let mut wrong = drawn[..n].to_vec();
        wrong[1..].iter_mut().for_each(|t| *t = (*t + 1) % spec.n_vocab);
        let got = engine.verify(&mut sequence, &wrong, start, 511, &scope).unwrap();
        assert_eq!((got.len(), got[0].token), (1, drawn[1]), "{what}: {n} rows of wrong drafts");
        let got = engine.verify(&mut sequence, &drawn[..n], start, 511, &scope).unwrap();
        let got: Vec<u32> = got.iter().map(|d| d.token).collect();
        assert_eq!(got, drawn[1..=n], "{what}: {n} rows");
        let together = ROWS.min(chunk) as usize;
        let last = (n - 1) / together * together;
        let want = rows[last..n].concat();
        let got = logits(&engine, (n - last) as u32, &scope);
        let differ = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{what}: {differ} of {} logits of the rows {last}.. of {n} differ", want.len());
    }
    // Plain steps go on from what was verified.
    let end = start + MAX_DRAFT + 1;
    let next = engine.decode(&mut [&mut sequence], &[end], 2, 0, &scope).unwrap();
    let next: Vec<u32> = next.concat().iter().map(|d| d.unwrap().token).collect();
    assert_eq!(next, drawn[end as usize - start as usize + 1..], "{what}: plain steps behind");
    engine.close(sequence);
    println!("same bits: {what}");
}

/// A device of the tests of this layer, taken to be large; `None`, with a note, where there is said to be none.
pub(crate) fn device(features: Features) -> Option<Arc<Gpu>> {
    let adapter = AdapterChoice { allow_software: true, ..Default::default() };
    match Gpu::open(&GpuOptions { adapter, features, width: FULL_WIDTH, ..Default::default() }) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var("DOPPLER_NO_GPU").is_ok_and(|v| v == "1") => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}; install a driver (Debian: mesa-vulkan-drivers) or set DOPPLER_NO_GPU=1"),
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn greedy() -> SamplingOptions {
    SamplingOptions::greedy()
}

fn random() -> SamplingOptions {
    let penalties = SamplingOptions { repeat_penalty: 1.3, frequency_penalty: 0.2, presence_penalty: 0.1, ..greedy() };
    SamplingOptions { temperature: 1.0, top_p: 0.95, seed: 7, ..penalties }
}

#[test]
fn verified_rows_have_the_bits_of_decode_steps() {
    let Some(gpu) = device(Features::ALL) else { return };
    let hearth = root().join("assets/hearth-5m-Q8_0.gguf");
    check(&gpu, &hearth, 75, (KvType::F16, false, 64), &greedy());
    check(&gpu, &hearth, 75, (KvType::Q8, false, 64), &random());
    // Groups of three rows.
    check(&gpu, &hearth, 20, (KvType::F32, true, 3), &random());
    let Some(gpu) = device(Features { subgroups: false, immediates: false, ..Features::ALL }) else { return };
    check(&gpu, &hearth, 75, (KvType::F16, false, 64), &random());
}

/// Windows, norms of heads, sinks, mixtures, blocks side by side, layer norms.
#[test]
fn verified_rows_have_the_bits_of_decode_steps_in_every_family() {
    let Some(gpu) = device(Features::ALL) else { return };
    // The families whose kernels differ most come first; a regular run takes those.
    let families = ["gemma3", "gpt-oss", "qwen3moe", "cohere2", "llama3", "gemma2", "qwen3", "phi3", "gpt2", "olmo2"];
    let long = std::env::var("DOPPLER_LONG_TESTS").is_ok_and(|v| v == "1");
    for family in families.into_iter().take(if long { 10 } else { 3 }) {
        let file = root().join(format!("../shared/golden/{family}/model-f16.gguf"));
        if !file.exists() {
            println!("skipped: ../shared/golden/{family} is absent");
            return;
        }
        check(&gpu, &file, if long { 150 } else { 70 }, (KvType::F16, false, 64), &random());
    }
}

#[test]
fn recurrent_layers_are_refused_by_name() {
    let file = root().join("../shared/golden/lfm2/model-f16.gguf");
    let Some(gpu) = device(Features::ALL) else { return };
    if !file.exists() {
        println!("skipped: ../shared/golden/lfm2 is absent");
        return;
    }
    let file = Gguf::open(&file).unwrap();
    let spec = Arc::new(arch::read_spec(&file).unwrap());
    let options = EngineOptions { n_ctx: 64, chunk: 64, kv_type: KvType::F16, exact: false };
    let mut engine = load(&gpu, &file, spec, options, &mut |_, _| Ok(())).unwrap();
    let scope = gpu.scope(Phase::Other);
    let mut sequence = engine.open(64, &scope).unwrap();
    for role in [DraftRole::Verifies, DraftRole::Drafts] {
        let error = engine.expect_drafts(&mut sequence, role).unwrap_err();
        assert!(matches!(&error, crate::Error::Unsupported(text) if text.contains("lfm2")), "{error}");
    }
}
