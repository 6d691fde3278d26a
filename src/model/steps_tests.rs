//! Steps that the device leaves out.

use std::path::PathBuf;
use std::sync::Arc;

use crate::format::Gguf;
use crate::gpu::{Features, Gate, Phase, Place, ReadbackClass, SWITCH_GRIDS, Scope};
use crate::kernels::KvType;
use crate::model::engine::{Drawn, Stop};
use crate::model::steps::LOOK_EVERY;
use crate::model::verify_draft::tests::device;
use crate::model::{Engine, EngineOptions, Sequence, arch, load};
use crate::sample::SamplingOptions;

const READ: Gate = Gate::new(Place::Pipeline, ReadbackClass::State, "step.grids");
const PROMPT: [u32; 4] = [1, 300, 411, 512];
const TOKENS: u32 = 19;

/// A sequence after a prompt that begins with `first`, which ends with one of `stop_ids`.
fn begin(engine: &mut Engine, first: u32, stop_ids: &[u32], scope: &Scope) -> Sequence {
    let mut sequence = engine.open(64, scope).unwrap();
    engine.configure(&mut sequence, &SamplingOptions::greedy(), stop_ids, scope).unwrap();
    let prompt: Vec<u32> = [first].into_iter().chain(PROMPT).collect();
    engine.prefill_and_draw(&mut sequence, &prompt, 0, 64, None, scope).unwrap();
    sequence
}

/// What one batch draws for each of the sequences.
fn batch(engine: &mut Engine, mut sequences: Vec<Sequence>, tokens: u32, scope: &Scope) -> Vec<Vec<Option<Drawn>>> {
    let positions = vec![PROMPT.len() as u32 + 1; sequences.len()];
    let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let steps = engine.decode(&mut all, &positions, tokens, 0, scope).unwrap();
    let n = sequences.len();
    sequences.into_iter().for_each(|s| engine.close(s));
    (0..n).map(|i| steps.iter().map(|s| s[i]).collect()).collect()
}

fn live(engine: &Engine, scope: &Scope) -> Vec<u32> {
    let raw = engine.gpu.download(engine.scratch.live_grids.whole(), READ, scope).unwrap();
    bytemuck::pod_collect_to_vec(&raw)
}

#[test]
fn steps_after_the_end_of_all_sequences_are_left_out() {
    for features in [Features::ALL, Features { immediates: false, subgroups: false, ..Features::ALL }] {
        let Some(gpu) = device(features) else { return };
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/hearth-5m-Q8_0.gguf");
        let file = Gguf::open(&file).unwrap();
        let spec = Arc::new(arch::read_spec(&file).unwrap());
        let options = EngineOptions { n_ctx: 64, chunk: 64, kv_type: KvType::F16, exact: false };
        let mut engine = load(&gpu, &file, spec, options, &mut |_, _| Ok(())).unwrap();
        let scope = gpu.scope(Phase::Other);
        // Without end tokens nothing is looked at.
        let sequences = [5, 6].map(|first| begin(&mut engine, first, &[], &scope)).into();
        let free = batch(&mut engine, sequences, TOKENS, &scope);
        assert!(free.iter().flatten().all(|d| d.is_some_and(|d| d.stop == Stop::Running)));
        assert_eq!(live(&engine, &scope), [0; SWITCH_GRIDS * 3]);
        let tokens: Vec<Vec<u32>> = free.iter().map(|s| s.iter().map(|d| d.unwrap().token).collect()).collect();
        // The first token from the sixth on that did not come before ends a sequence.
        let end = |s: &[u32]| (5..s.len()).find(|&i| !s[..i].contains(&s[i])).unwrap();
        let ends: Vec<usize> = tokens.iter().map(|s| end(s)).collect();
        let want = |i: usize, stop: Option<usize>| -> Vec<Option<Drawn>> {
            let at = |n| Drawn { token: tokens[i][n], stop: if stop == Some(n) { Stop::Token } else { Stop::Running } };
            (0..TOKENS as usize).map(|n| (n <= stop.unwrap_or(usize::MAX)).then(|| at(n))).collect()
        };
        let id = |i: usize| [tokens[i][ends[i]]];
        // One alone, and two of which one ends sooner.
        let alone = vec![begin(&mut engine, 5, &id(0), &scope)];
        assert_eq!(batch(&mut engine, alone, TOKENS, &scope), [want(0, Some(ends[0]))]);
        assert!(engine.grids.iter().flatten().all(|&n| n > 0) && !engine.grids.is_empty());
        let looked = (TOKENS - 1) / LOOK_EVERY * LOOK_EVERY;
        assert!(ends.iter().all(|&e| (e as u32) < looked), "{ends:?}: too late for the last look");
        assert_eq!(live(&engine, &scope), [0; SWITCH_GRIDS * 3], "the rest is left out");
        let both = vec![begin(&mut engine, 5, &id(0), &scope), begin(&mut engine, 6, &id(1), &scope)];
        let drawn = batch(&mut engine, both, TOKENS, &scope);
        assert_eq!(drawn, [want(0, Some(ends[0])), want(1, Some(ends[1]))], "each with its own end");
        assert_eq!(live(&engine, &scope), [0; SWITCH_GRIDS * 3]);
        // What goes on opens it again: a batch that ends with its last step, after the last look.
        let running = vec![begin(&mut engine, 5, &id(0), &scope)];
        let n = ends[0] as u32 + 1;
        let drawn = batch(&mut engine, running, n, &scope);
        assert_eq!(drawn, [want(0, Some(ends[0]))[..n as usize].to_vec()]);
        let grids = engine.grids.concat();
        assert_eq!(live(&engine, &scope)[..grids.len()], grids);
        // One that has no end tokens keeps all going.
        let mixed = vec![begin(&mut engine, 5, &id(0), &scope), begin(&mut engine, 6, &[], &scope)];
        assert_eq!(batch(&mut engine, mixed, TOKENS, &scope), [want(0, Some(ends[0])), want(1, None)]);
    }
}
