//! Several sequences decoded in one submit: a sequence's text does not depend on its companions.

use std::sync::Arc;

use doppler::format::Gguf;
use doppler::gpu::{Phase, Scope};
use doppler::model::{self, Engine, EngineOptions, KvType, Sequence, arch};
use doppler::sample::SamplingOptions;

use crate::common::{shallow, wide_context};

/// A sequence, its seed, and what was drawn for it.
struct Speaker {
    sequence: Sequence,
    prompt: Vec<u32>,
    cached: u32,
    drawn: Vec<u32>,
}

fn sampling(seed: u64) -> SamplingOptions {
    // Penalties for every second one: they change the batch's plan.
    let repeat_penalty = if seed.is_multiple_of(2) { 1.1 } else { 1.0 };
    SamplingOptions { temperature: 1.0, top_k: 0, top_p: 0.97, min_p: 0.0, seed, repeat_penalty, ..Default::default() }
}

/// Opens the sequence of a seed, with a prompt of its own, and draws its first token.
fn begin(engine: &mut Engine, seed: u64, scope: &Scope) -> Speaker {
    let mut sequence = engine.open(128, scope).unwrap();
    let prompt: Vec<u32> = (0..5 + seed * 7 % 40).map(|i| 300 + (i * 37 + seed * 101) as u32 % 1700).collect();
    engine.configure(&mut sequence, &sampling(seed), &[], scope).unwrap();
    let first = engine.prefill_and_draw(&mut sequence, &prompt, 0, 127, None, scope).unwrap();
    Speaker { sequence, cached: prompt.len() as u32, prompt, drawn: vec![first.token] }
}

fn decode(engine: &mut Engine, speakers: &mut [Speaker], tokens: u32, scope: &Scope) {
    let positions: Vec<u32> = speakers.iter().map(|s| s.cached).collect();
    let mut sequences: Vec<&mut Sequence> = speakers.iter_mut().map(|s| &mut s.sequence).collect();
    let steps = engine.decode(&mut sequences, &positions, tokens, tokens, scope).unwrap();
    for step in steps {
        for (s, drawn) in speakers.iter_mut().zip(step) {
            s.drawn.push(drawn.expect("nothing stops it").token);
            s.cached += 1;
        }
    }
}

/// What seed 5 says among companions; `late` of them join after its first batch, and all but it leave after the second.
fn said(engine: &mut Engine, companions: u32, late: u32, tokens: u32, scope: &Scope) -> (Vec<u32>, Vec<u32>) {
    let mut speakers = vec![begin(engine, 5, scope)];
    speakers.extend((0..u64::from(companions - late)).map(|i| begin(engine, 20 + i, scope)));
    // Not always the first row.
    speakers.rotate_left(1.min(companions as usize));
    let at = speakers.len() - 1;
    decode(engine, &mut speakers, tokens, scope);
    speakers.extend((0..u64::from(late)).map(|i| begin(engine, 60 + i, scope)));
    decode(engine, &mut speakers, tokens, scope);
    let one = speakers.remove(at);
    speakers.into_iter().for_each(|s| engine.close(s.sequence));
    let mut alone = [one];
    while alone[0].drawn.len() < 33 {
        decode(engine, &mut alone, tokens, scope);
    }
    let [one] = alone;
    engine.close(one.sequence);
    (one.prompt, one.drawn[..33].to_vec())
}

#[test]
fn companions_change_nothing() {
    let Some(context) = wide_context() else { return };
    let gpu = context.gpu();
    let file = Gguf::open(&shallow()).unwrap();
    let spec = Arc::new(arch::read_spec(&file).unwrap());
    for kv_type in [KvType::F32, KvType::Q8] {
        let options = EngineOptions { n_ctx: 128, chunk: 64, kv_type, exact: true };
        let mut engine = model::load(gpu, &file, spec.clone(), options, &mut |_, _| Ok(())).unwrap();
        let scope = gpu.scope(Phase::Other);
        let alone = said(&mut engine, 0, 0, 1, &scope);
        assert!(alone.1.iter().any(|&t| t != alone.1[0]), "{:?}", alone.1);
        // Batches of every form: one and more columns of the matrix-vector product, and tiles.
        for (companions, late, tokens) in
            [(1, 0, 1), (2, 1, 4), (3, 1, 3), (4, 0, 16), (5, 3, 1), (9, 2, 4), (15, 8, 5)]
        {
            let among = said(&mut engine, companions, late, tokens, &scope);
            assert_eq!(
                among, alone,
                "{companions} companions, {late} of them late, {tokens} tokens a submit, {kv_type:?}"
            );
        }
        let kv = engine.kv_stats();
        assert_eq!((kv.used, kv.shared), (0, 0), "{kv:?}");
    }
}
