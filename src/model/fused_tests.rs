//! Fused layers in a whole model, on any adapter: what they draw, what they cost, and what happens when a wait is given up.

use std::path::Path;
use std::sync::Arc;

use crate::format::Gguf;
use crate::gpu::{AdapterChoice, Gpu, GpuOptions, Phase, Scope};
use crate::kernels::KvType;
use crate::model::fused::Fusion;
use crate::model::{Engine, EngineOptions, LayerFusion, Sequence, arch, load};
use crate::sample::SamplingOptions;

const PROMPT: u32 = 40;
/// Tokens in a batch.
const BATCH: u32 = 8;

fn device() -> Option<Arc<Gpu>> {
    let adapter = AdapterChoice { allow_software: true, ..Default::default() };
    match Gpu::open(&GpuOptions { adapter, ..Default::default() }) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var("DOPPLER_NO_GPU").is_ok_and(|v| v == "1") => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}; install a driver (Debian: mesa-vulkan-drivers) or set DOPPLER_NO_GPU=1"),
    }
}

fn open(gpu: &Arc<Gpu>, file: &Path, fusion: LayerFusion) -> Engine {
    let file = Gguf::open(file).unwrap();
    let spec = Arc::new(arch::read_spec(&file).unwrap());
    let options = EngineOptions { n_ctx: 128, chunk: 64, kv_type: KvType::F16, exact: false, fusion };
    load(gpu, &file, spec, options, &mut |_, _| Ok(())).unwrap()
}

/// A sequence after its prompt, and the first token.
fn begin(engine: &mut Engine, scope: &Scope) -> (Sequence, u32) {
    let mut sequence = engine.open(128, scope).unwrap();
    engine.prewarm(scope).unwrap();
    engine.configure(&mut sequence, &SamplingOptions::greedy(), &[], scope).unwrap();
    let vocab = engine.spec.n_vocab;
    let prompt: Vec<u32> = (0..PROMPT).map(|i| 3 + i * 37 % (vocab - 3)).collect();
    let first = engine.prefill_and_draw(&mut sequence, &prompt, 0, 127, None, scope).unwrap();
    (sequence, first.token)
}

/// Draws a batch of tokens after those that are there.
fn draw(engine: &mut Engine, sequence: &mut Sequence, tokens: &mut Vec<u32>, scope: &Scope) {
    let at = PROMPT + tokens.len() as u32 - 1;
    let steps = engine.decode(&mut [&mut *sequence], &[at], BATCH, BATCH, scope).unwrap();
    tokens.extend(steps.concat().iter().flatten().map(|d| d.token));
}

/// How far the logit of each drawn token is below the largest, by the exact logits of all positions.
fn regret(gpu: &Arc<Gpu>, file: &Path, drawn: &[u32], scope: &Scope) -> f32 {
    let mut engine = open(gpu, file, LayerFusion::Never);
    let vocab = engine.spec.n_vocab;
    let mut sequence = engine.open(128, scope).unwrap();
    let mut tokens: Vec<u32> = (0..PROMPT).map(|i| 3 + i * 37 % (vocab - 3)).collect();
    tokens.extend_from_slice(&drawn[..drawn.len() - 1]);
    let mut rows: Vec<f32> = Vec::new();
    for (i, piece) in tokens.chunks(64).enumerate() {
        let mut sink = |logits: &[f32]| {
            rows.extend_from_slice(logits);
            Ok(())
        };
        engine.prefill_logits(&mut sequence, piece, i as u32 * 64, scope, &mut sink).unwrap();
    }
    let last = rows.chunks(vocab as usize).skip(PROMPT as usize - 1);
    last.zip(drawn).map(|(row, &t)| row.iter().copied().fold(f32::MIN, f32::max) - row[t as usize]).fold(0.0, f32::max)
}

fn check(file: &Path) {
    let Some(gpu) = device() else { return };
    let scope = gpu.scope(Phase::Decode);
    let mut engine = open(&gpu, file, LayerFusion::Always);
    if !gpu.adapter().is_software() {
        println!("skipped: an experiment that is not understood on all devices");
        return;
    }
    if !gpu.features().exchange {
        println!("skipped: workgroups of this adapter exchange nothing");
        return;
    }
    let (mut sequence, first) = begin(&mut engine, &scope);
    assert!(engine.fuses_layers(), "{}", file.display());
    let mut drawn = vec![first];
    let before = *gpu.counters().snapshot().phase(Phase::Decode);
    draw(&mut engine, &mut sequence, &mut drawn, &scope);
    draw(&mut engine, &mut sequence, &mut drawn, &scope);
    let cost = gpu.counters().snapshot().phase(Phase::Decode).since(&before);
    // A software device that is busy may start a workgroup too late; then it goes on without.
    if engine.fuses_layers() {
        let layers = engine.spec.layers.len() as u64;
        assert!(
            cost.dispatches <= cost.submits * u64::from(BATCH) * (layers + 8),
            "{}: {} dispatches",
            file.display(),
            cost.dispatches
        );
    }
    // As if a wait had been given up: the steps of the next batch change nothing, and those after it are made otherwise.
    if let Fusion::On(fused) = &engine.fusion {
        gpu.upload(fused.failed(), bytemuck::bytes_of(&[1u32, 0, 0, 0]), &scope).unwrap();
        let there = drawn.len();
        draw(&mut engine, &mut sequence, &mut drawn, &scope);
        assert_eq!(drawn.len(), there, "{}: tokens of steps that failed", file.display());
    }
    assert!(!engine.fuses_layers());
    engine.prewarm(&scope).unwrap();
    draw(&mut engine, &mut sequence, &mut drawn, &scope);
    assert!(drawn.len() as u32 > 2 * BATCH, "{}: {} tokens", file.display(), drawn.len());
    engine.close(sequence);
    let regret = regret(&gpu, file, &drawn, &scope);
    println!("{}: {drawn:?} {regret}", file.display());
    assert!(regret < 0.25, "{}: a drawn token's logit is {regret} below the largest", file.display());
}

#[test]
fn fused_layers_draw_what_the_model_says_and_may_fail() {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/hearth-5m-Q8_0.gguf"));
}

#[test]
fn fused_layers_of_other_families() {
    for family in ["qwen2", "qwen3", "gemma"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../shared/golden/{family}/model-f16.gguf"));
        if !file.exists() {
            println!("skipped: ../shared/golden/{family} is absent");
            return;
        }
        check(&file);
    }
}
