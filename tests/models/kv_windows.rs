//! Layers with a sliding window keep their window only, and are none the worse for it.

use std::path::PathBuf;
use std::sync::Arc;

use doppler::Result;
use doppler::format::{Gguf, GgufWriter};
use doppler::gpu::{Features, Gpu, Guard, GuardMode, Phase};
use doppler::kernels::constants::KV_BLOCK_TOKENS;
use doppler::model::{self, Engine, EngineOptions, KvType, Sequence, arch};
use doppler::sample::SamplingOptions;
use doppler::session::{Model, Session, SessionOptions};

use crate::common::{
    assert_same_greedy, asset, context, generate, greedy, load, logits, max_error, session, shallow, shared,
    wide_context,
};

const WINDOW: u32 = 40;
const N_CTX: u32 = 768;
const NEAR: f64 = 2e-3;

/// The model with a window in all its layers.
fn windowed(kv: KvType, chunk: u32, mode: GuardMode) -> Option<Model> {
    let file = Gguf::open(&shallow()).expect("open");
    let mut out = GgufWriter::new();
    for (key, value) in file.metadata() {
        out = out.key(key, value.clone());
    }
    out = out.key("llama.attention.sliding_window", WINDOW);
    for t in file.tensors() {
        out = out.tensor(&t.name, &t.dims, t.ggml_type, file.data(t).to_vec());
    }
    static NAMES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name =
        format!("windowed-{}-{}.gguf", std::process::id(), NAMES.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, out.to_bytes()).expect("write");
    let model = context(Features::ALL, Guard { mode, ..Guard::default() }).map(|c| load(&c, &path, kv, N_CTX, chunk));
    std::fs::remove_file(&path).expect("remove");
    model
}

fn story(model: &Model) -> Vec<u32> {
    model.tokenizer().encode("Once upon a time there was a fox who kept a lantern", false, false).expect("encode")
}

fn told(model: &Model, ids: &[u32], tokens_per_submit: u32) -> Session {
    let mut s = model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).expect("session");
    s.append_tokens(ids).expect("append");
    s
}

/// A long text over a small window, against the same text evaluated from scratch; the pages stay few.
#[test]
fn a_long_text_over_a_small_window() {
    for (kv, per_submit) in [(KvType::F32, 1), (KvType::F32, 16), (KvType::Q8, 7)] {
        let Some(model) = windowed(kv, 32, GuardMode::Strict) else { return };
        let near = if kv == KvType::F32 { NEAR } else { 0.3 };
        let prompt = story(&model);
        let mut s = told(&model, &prompt, per_submit);
        let text = generate(&mut s, &greedy(600));
        assert_eq!(text.len(), 600);
        let stats = model.stats().kv;
        let full = N_CTX.div_ceil(KV_BLOCK_TOKENS);
        // Window, slack and the largest evaluation.
        assert_eq!((stats.groups.len(), stats.groups[0].window), (1, WINDOW));
        assert!(stats.blocks <= 8 && stats.high_water <= stats.blocks && stats.blocks < full / 2, "{stats:?}");
        // From scratch, in other pieces: the whole text as a prompt.
        let mut fresh = session(&model);
        let vocab = model.info().n_vocab as usize;
        let whole: Vec<u32> = prompt.iter().chain(&text).copied().collect();
        let rows = logits(&mut fresh, &whole[..whole.len() - 1]);
        let mut ties = 0;
        for (i, &token) in text.iter().enumerate() {
            let row = &rows[(prompt.len() + i - 1) * vocab..][..vocab];
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let behind = f64::from(best - row[token as usize]);
            assert!(behind < near, "{kv:?}: token {i} is {behind} behind the best one");
            ties += u32::from(behind > 0.0);
        }
        assert!(ties <= 30, "{ties} of 600 tokens are not the best");
        assert!(model.stats().kv.high_water <= model.stats().kv.blocks);
        drop((s, fresh));
        assert_eq!(model.stats().kv.used, 0);
    }
}

/// Truncating within the slack keeps what is there; further back everything is evaluated again. Never a wrong answer.
#[test]
fn truncated_windows() {
    let Some(model) = windowed(KvType::F32, 64, GuardMode::Off) else { return };
    let prompt = story(&model);
    let mut s = told(&model, &prompt, 4);
    generate(&mut s, &greedy(300));
    let len = s.tokens().len() as u32;
    let all = s.tokens().to_vec();
    for (keep, again) in
        [(len - 1, false), (len - 20, false), (len - 60, false), (len - 150, true), (50, true), (1, true)]
    {
        let mut s = s.fork().expect("fork");
        assert_eq!(s.stats().cached_tokens, len - 1);
        s.truncate(keep).expect("truncate");
        assert_eq!(s.stats().cached_tokens, if again { 0 } else { keep }, "kept {keep} of {len}");
        let got = generate(&mut s, &greedy(8));
        let mut fresh = told(&model, &all[..keep as usize], 1);
        assert_same_greedy(&model, &all[..keep as usize], &got, &generate(&mut fresh, &greedy(8)), NEAR);
    }
    // All those forks shared the parent's pages, and gave them back.
    let stats = model.stats().kv;
    assert_eq!(stats.shared, 0, "{stats:?}");
    let want = generate(&mut s.fork().expect("fork"), &greedy(40));
    assert_eq!(generate(&mut s, &greedy(40)), want);
    // Over and over: the slide to a snapshot, and on from it in another session.
    let bytes = s.snapshot().expect("snapshot");
    let per_token = stats.block_bytes / u64::from(KV_BLOCK_TOKENS);
    assert!((bytes.len() as u64) < 200 * per_token, "a window's worth, not {} tokens", s.tokens().len());
    let want = generate(&mut s, &greedy(100));
    let mut other = session(&model);
    other.restore(&bytes).expect("restore");
    assert_eq!(generate(&mut other, &greedy(100)), want);
    drop((s, other));
    assert_eq!(model.stats().kv.used, 0);
}

/// An engine of the model with a window in every other layer.
fn mixed(gpu: &Arc<Gpu>, kv_type: KvType, chunk: u32, windows: &[u32]) -> Result<Engine> {
    let file = Gguf::open(&asset())?;
    let mut spec = arch::read_spec(&file)?;
    for (i, attention) in spec.attentions_mut().enumerate() {
        attention.window = windows[i % windows.len()];
    }
    model::load(gpu, &file, Arc::new(spec), EngineOptions { n_ctx: 512, chunk, kv_type, exact: true }, &mut |_, _| {
        Ok(())
    })
}

/// Prompt in chunks, then `n` greedy tokens, several a submit. After each submit `between` may do something else.
fn run(
    engine: &mut Engine,
    sequence: &mut Sequence,
    prompt: &[u32],
    n: usize,
    between: &mut dyn FnMut(&mut Engine),
) -> Vec<u32> {
    let scope = engine.gpu().scope(Phase::Other);
    let chunk = engine.options().chunk as usize;
    engine.configure(sequence, &SamplingOptions::greedy(), &[], &scope).expect("configure");
    let last = (prompt.len() - 1) / chunk * chunk;
    for at in (0..last).step_by(chunk) {
        engine.prefill(sequence, &prompt[at..at + chunk], at as u32, &scope).expect("prefill");
        between(engine);
    }
    let first = engine.prefill_and_draw(sequence, &prompt[last..], last as u32, 512, None, &scope).expect("draw");
    let mut out = vec![first.token];
    while out.len() < n {
        let pos = (prompt.len() + out.len() - 1) as u32;
        let steps = engine.decode(&mut [&mut *sequence], &[pos], 5, 5, &scope).expect("decode");
        out.extend(steps.iter().flatten().flatten().map(|d| d.token));
        between(engine);
    }
    out.truncate(n);
    out
}

/// Full and windowed layers have tables of their own; neighbours that take the pages a window gave up disturb nobody.
#[test]
fn mixed_windows_beside_neighbours() {
    let Some(context) = wide_context() else { return };
    let gpu = context.gpu();
    let ids: Vec<u32> = (0..150u32).map(|i| 40 + i * 37 % 1900).collect();
    for windows in [&[0, 24][..], &[33, 0, 100], &[1, 64]] {
        let n = 100;
        let alone = |chunk| {
            let mut engine = mixed(gpu, KvType::F32, chunk, windows).expect("engine");
            let scope = gpu.scope(Phase::Other);
            let mut s = engine.open(512, &scope).expect("open");
            let out = run(&mut engine, &mut s, &ids, n, &mut |_| {});
            let stats = engine.kv_stats();
            assert_eq!(stats.groups.len(), windows.len());
            for g in &stats.groups {
                let most = if g.window == 0 { 16 } else { (g.window + 64 + 64u32.max(chunk)).div_ceil(32) + 1 };
                assert!(g.high_water <= most && g.blocks <= most.min(16), "{g:?}");
            }
            assert!(stats.bytes < stats.block_bytes * 16, "less memory than without windows");
            engine.close(s);
            assert_eq!(engine.kv_stats().used, 0);
            out
        };
        let want = alone(16);
        let mut engine = mixed(gpu, KvType::F32, 16, windows).expect("engine");
        let scope = gpu.scope(Phase::Other);
        let mut s = engine.open(512, &scope).expect("open");
        let mut other = engine.open(512, &scope).expect("open");
        let mut at = 0u32;
        let got = run(&mut engine, &mut s, &ids, n, &mut |engine| {
            // Another text, token by token and in leaps, around and around.
            if at + 9 > 500 {
                at = engine.truncate(&mut other, 0);
            }
            let piece: Vec<u32> = (0..9).map(|i| 50 + (at + i) * 101 % 1800).collect();
            engine.prefill(&mut other, &piece, at, &scope).expect("prefill");
            at += 9;
        });
        assert_eq!(got, want, "windows {windows:?}");
        engine.close(other);
        engine.close(s);
        let stats = engine.kv_stats();
        assert_eq!((stats.used, stats.shared), (0, 0));
    }
}

/// Logits of windowed layers whose pages were given up, against a run in one piece in which none could be.
#[test]
fn given_up_pages_do_not_change_logits() {
    let Some(context) = wide_context() else { return };
    let gpu = context.gpu();
    let ids: Vec<u32> = (0..400u32).map(|i| 30 + i * 53 % 1900).collect();
    let evaluate = |chunk: u32| {
        let mut engine = mixed(gpu, KvType::F32, chunk, &[0, 24, 50]).expect("engine");
        let scope = gpu.scope(Phase::Other);
        let mut s = engine.open(512, &scope).expect("open");
        let mut rows = Vec::new();
        for (i, piece) in ids.chunks(chunk as usize).enumerate() {
            let mut take = |r: &[f32]| {
                rows.extend_from_slice(r);
                Ok(())
            };
            engine.prefill_logits(&mut s, piece, i as u32 * chunk, &scope, &mut take).expect("logits");
        }
        let used = engine.kv_stats().used;
        engine.close(s);
        (rows, used)
    };
    let (whole, all) = evaluate(400);
    assert_eq!(all, 3 * 13);
    for chunk in [1, 30, 64] {
        let (rows, used) = evaluate(chunk);
        assert!(used < all, "{used} blocks");
        let error = max_error(&rows, &whole);
        assert!(error < 1e-3, "chunks of {chunk}: {error}");
    }
}

/// A sequence and what it was told.
struct Told {
    sequence: Sequence,
    tokens: Vec<u32>,
}

/// Sequences that are opened, forked, extended, cut back, saved, restored and closed in random order share a cache with full and windowed
/// layers; at any time each of them sees what it was told, and nothing else.
#[test]
fn random_histories() {
    let Some(dir) = shared("golden/llama2") else { return };
    let Some(context) = wide_context() else { return };
    let gpu = context.gpu();
    let file = Gguf::open(&dir.join("model-f16.gguf")).expect("open");
    let n_ctx = 400u32;
    let build = |windows: &[u32], chunk| {
        let mut spec = arch::read_spec(&file).expect("spec");
        for (i, attention) in spec.attentions_mut().enumerate() {
            attention.window = windows[i % windows.len()];
        }
        let options = EngineOptions { n_ctx, chunk, kv_type: KvType::F32, exact: true };
        model::load(gpu, &file, Arc::new(spec), options, &mut |_, _| Ok(())).expect("load")
    };
    let scope = gpu.scope(Phase::Other);
    for (seed, windows) in [(1u64, &[0u32, 20][..]), (2, &[70, 0, 5]), (3, &[0])] {
        let mut engine = build(windows, 40);
        let mut reference = build(windows, n_ctx);
        let mut rng = seed;
        let mut below = |n: usize| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (rng >> 33) as usize % n
        };
        let mut all: Vec<Told> = Vec::new();
        let (mut forks, mut again, mut checked) = (0, 0, 0);
        for _ in 0..220 {
            let which = below(10);
            if all.is_empty() || (which == 0 && all.len() < 6) {
                all.push(Told { sequence: engine.open(n_ctx, &scope).expect("open"), tokens: Vec::new() });
                continue;
            }
            let i = below(all.len());
            match which {
                0 | 1 => engine.close(all.swap_remove(i).sequence),
                2 | 3 if all.len() < 6 => {
                    let mut n = all[i].tokens.len() - below(all[i].tokens.len().min(20) + 1);
                    if !engine.keeps(&all[i].sequence, n as u32) {
                        n = all[i].tokens.len();
                    }
                    let tokens = all[i].tokens[..n].to_vec();
                    let sequence = engine.fork(&all[i].sequence, &tokens, &scope).expect("fork");
                    all.push(Told { sequence, tokens });
                    forks += 1;
                }
                4 => {
                    let t = &mut all[i];
                    let n = below(t.tokens.len() + 1);
                    let kept = engine.truncate(&mut t.sequence, n as u32) as usize;
                    again += usize::from(kept < n);
                    assert!(kept == n || kept == 0);
                    t.tokens.truncate(kept);
                }
                5 => {
                    let n = all[i].tokens.len() as u32;
                    let extents = engine.kv_extents(&all[i].sequence, n);
                    let bytes = engine.save(&all[i].sequence, &extents, n, &scope).expect("save");
                    let j = below(all.len());
                    let tokens = all[i].tokens.clone();
                    engine.load(&mut all[j].sequence, &tokens, &extents, &bytes, &scope).expect("load");
                    all[j].tokens = tokens;
                }
                _ => {
                    let t = &mut all[i];
                    let n = (1 + below(40)).min(n_ctx as usize - t.tokens.len());
                    let piece: Vec<u32> = (0..n).map(|_| 3 + below(1000) as u32).collect();
                    if n > 0 {
                        let at = t.tokens.len() as u32;
                        engine.prefill(&mut t.sequence, &piece, at, &scope).expect("prefill");
                        t.tokens.extend(piece);
                    }
                }
            }
            let stats = engine.kv_stats();
            assert!(stats.used <= stats.blocks && stats.high_water <= stats.blocks, "{stats:?}");
            if !all.is_empty() && below(6) == 0 {
                // The last token once more, with its logits, against the whole text in another engine.
                let j = below(all.len());
                let t = &mut all[j];
                let n = t.tokens.len();
                if n == 0 || !engine.keeps(&t.sequence, n as u32 - 1) {
                    continue;
                }
                let (mut got, mut want) = (Vec::new(), Vec::new());
                let mut keep = |r: &[f32]| {
                    got = r.to_vec();
                    Ok(())
                };
                engine
                    .prefill_logits(&mut t.sequence, &t.tokens[n - 1..], n as u32 - 1, &scope, &mut keep)
                    .expect("logits");
                let mut fresh = reference.open(n_ctx, &scope).expect("open");
                let mut keep = |r: &[f32]| {
                    want = r[r.len() - got.len()..].to_vec();
                    Ok(())
                };
                reference.prefill_logits(&mut fresh, &t.tokens, 0, &scope, &mut keep).expect("logits");
                reference.close(fresh);
                let error = max_error(&got, &want);
                assert!(error < 1e-3, "windows {windows:?}, {n} tokens: {error}");
                checked += 1;
            }
        }
        assert!(forks > 8 && checked > 12 && (again > 0 || windows == [0]), "{forks} forks, {checked} checks, {again}");
        let copies = engine.kv_stats().copies;
        all.into_iter().for_each(|t| engine.close(t.sequence));
        let stats = engine.kv_stats();
        assert_eq!((stats.used, stats.shared), (0, 0));
        println!("windows {windows:?}: {forks} forks, {copies} blocks copied, {checked} checks");
        assert!(copies > 3);
    }
}
