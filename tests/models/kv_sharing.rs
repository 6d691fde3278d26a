//! Sessions that share what was evaluated, and sessions that become bytes and come back.

use doppler::Error;
use doppler::gpu::{AdapterChoice, Features, GpuOptions, Guard, GuardMode, MemoryClass, Phase, ReadbackClass};
use doppler::kernels::constants::KV_BLOCK_TOKENS;
use doppler::model::KvType;
use doppler::session::{Context, Message, Model, ModelOptions, Session, SessionOptions};

use crate::common::{assert_same_greedy, context, generate, greedy, load, rewrite, session, shallow, shared};

/// Differences of logits that two ways of computing them may show: chunks against single tokens, with rounded keys and values.
fn near(kv: KvType) -> f64 {
    match kv {
        KvType::F32 => 1e-3,
        KvType::F16 => 0.02,
        KvType::Q8 => 0.3,
    }
}

fn model(kv: KvType, n_ctx: u32, mode: GuardMode) -> Option<Model> {
    let path = shallow();
    Some(load(&context(Features::ALL, Guard { mode, ..Guard::default() })?, &path, kv, n_ctx, 0))
}

/// The first tokens of a text that every copy of the repository has.
fn text(model: &Model, n: usize) -> Vec<u32> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE-APACHE");
    let text = std::fs::read_to_string(path).expect("the licence");
    let mut ids = model.tokenizer().encode(&text, false, true).expect("encode");
    ids.truncate(n);
    assert_eq!(ids.len(), n);
    ids
}

fn told(model: &Model, ids: &[u32]) -> Session {
    let mut s = session(model);
    s.append_tokens(ids).expect("append");
    s
}

/// What a session generates next is what a fresh one generates that was given the same tokens.
#[track_caller]
fn like_fresh(s: &mut Session, n: u32, near: f64) {
    let tokens = s.tokens().to_vec();
    let model = s.model().clone();
    let mut fresh = told(&model, &tokens);
    let (a, b) = (generate(s, &greedy(n)), generate(&mut fresh, &greedy(n)));
    assert_eq!(a.len(), n as usize);
    assert_same_greedy(&model, &tokens, &a, &b, near);
}

/// A thousand tokens are shared without a copy; the partly filled last block is copied once, when one of the two writes to it.
#[test]
fn a_fork_of_a_long_session_copies_no_full_block() {
    let Some(model) = model(KvType::F16, 1024, GuardMode::Strict) else { return };
    let ids = text(&model, 1000);
    let mut parent = told(&model, &ids);
    generate(&mut parent, &greedy(1));
    let before = model.stats().kv;
    assert_eq!((before.used, before.shared, before.copies), (1000u32.div_ceil(KV_BLOCK_TOKENS), 0, 0));
    let bytes = model.context().stats().counters;
    let mut child = parent.fork().expect("fork");
    let after = model.stats().kv;
    assert_eq!((after.used, after.shared, after.copies), (before.used, before.used, 0));
    assert_eq!(
        model.context().stats().counters.phase(Phase::Prefill),
        bytes.phase(Phase::Prefill),
        "nothing is evaluated"
    );
    // The pool grew by what the fork may need beside the 31 full blocks.
    assert_eq!(after.blocks, before.blocks + 1);
    assert_eq!((child.tokens(), child.stats().cached_tokens), (parent.tokens(), 1000));
    let (a, b) = (generate(&mut child, &greedy(8)), generate(&mut parent, &greedy(8)));
    assert_eq!(a, b);
    let kv = model.stats().kv;
    assert_eq!((kv.copies, kv.used, kv.shared), (1, before.used + 1, 31));
    drop(parent);
    let kv = model.stats().kv;
    assert_eq!((kv.used, kv.shared), (before.used, 0));
    like_fresh(&mut child, 4, near(KvType::F16));
    drop(child);
    assert_eq!((model.stats().kv.used, model.stats().kv.used_bytes), (0, 0));
}

/// Forks at and around the borders of blocks; both sides go their own ways and are like fresh sessions; for every storage.
#[test]
fn forks_are_independent() {
    for kv in KvType::ALL {
        let Some(model) = model(kv, 256, GuardMode::Off) else { return };
        let ids = text(&model, 100);
        // Once at every border, and at one of each kind with the other storages.
        let places: &[usize] = if kv == KvType::F16 { &[1, 31, 32, 33, 64, 95] } else { &[32, 45] };
        for &n in places {
            let mut parent = told(&model, &ids[..n]);
            generate(&mut parent, &greedy(1));
            parent.truncate(n as u32).expect("truncate");
            let mut child = parent.fork().expect("fork");
            // Another text in each.
            parent.append_tokens(&ids[70..75]).expect("append");
            child.append_tokens(&ids[20..28]).expect("append");
            like_fresh(&mut parent, 6, near(kv));
            like_fresh(&mut child, 6, near(kv));
            // A fork of the fork, cut back into what all three share.
            let mut third = child.fork().expect("fork");
            third.truncate(n as u32 / 2 + 1).expect("truncate");
            like_fresh(&mut third, 6, near(kv));
            drop(child);
            like_fresh(&mut parent, 3, near(kv));
            parent.reset();
            like_fresh(&mut third, 3, near(kv));
        }
        let stats = model.stats().kv;
        assert_eq!((stats.used, stats.shared), (0, 0), "{stats:?}");
    }
}

/// Sequences that stop sharing need more blocks than they had together; decoding in between makes no buffer all the same.
#[test]
fn ending_to_share_never_breaks_decoding() {
    let Some(model) = model(KvType::F16, 128, GuardMode::Strict) else { return };
    let ids = text(&model, 110);
    let mut parent = told(&model, &ids[..96]);
    generate(&mut parent, &greedy(2));
    let mut child = parent.fork().expect("fork");
    let shared_blocks = model.stats().kv.blocks;
    assert!(shared_blocks < 2 * 4, "{shared_blocks}");
    let mut turn = 0;
    // While the child decodes, the parent is emptied and filled again with another text, to its end.
    child
        .generate(&greedy(28), &mut |_| {
            turn += 1;
            if turn == 5 {
                parent.reset();
            }
            if turn == 10 {
                parent.append_tokens(&ids[10..110]).expect("append");
                generate(&mut parent, &greedy(0));
                assert_eq!(parent.tokens().len(), 128);
            }
            std::ops::ControlFlow::Continue(())
        })
        .expect("generate");
    assert_eq!(turn, 28);
    assert_eq!(model.stats().kv.blocks, 8, "nothing is shared any more");
    child.truncate(60).expect("truncate");
    like_fresh(&mut child, 4, near(KvType::F16));
}

#[test]
fn a_fork_without_room_changes_nothing() {
    let path = shallow();
    let options = ModelOptions { n_ctx: 512, kv_type: KvType::F32, prewarm: false, exact: true, ..Default::default() };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let probe = context.load_model(&path, &options, &mut |_, _| Ok(())).expect("load");
    let mut parent = told(&probe, &text(&probe, 40));
    generate(&mut parent, &greedy(4));
    // A budget with room for one session's pool, but not for a second one beside it while it is copied.
    let memory_budget = probe.context().stats().memory.total + probe.stats().kv.bytes;
    let adapter = AdapterChoice { allow_software: true, ..Default::default() };
    let context = Context::open(&GpuOptions { adapter, memory_budget, ..Default::default() }).expect("context");
    let model = context.load_model(&path, &options, &mut |_, _| Ok(())).expect("load");
    let mut s = told(&model, &text(&model, 40));
    let want = generate(&mut s, &greedy(4));
    let before = (model.stats().kv, context.stats().memory.current[MemoryClass::Kv as usize]);
    for _ in 0..3 {
        assert!(matches!(s.fork(), Err(Error::OutOfMemory(_))));
        assert!(matches!(model.open_session(&SessionOptions::default()), Err(Error::OutOfMemory(_))));
    }
    assert_eq!(model.stats().kv, before.0);
    let tables = context.stats().memory.current[MemoryClass::Kv as usize] - before.1;
    assert!(tables <= 4096, "{tables} bytes more than the tables of a few slots");
    s.truncate(40).expect("truncate");
    assert_eq!(generate(&mut s, &greedy(4)), want);
    // A small one fits.
    drop(s);
    told(&model, &text(&model, 40)).fork().expect_err("still no room for two");
}

#[test]
fn conversations_are_forked_and_restored() {
    let Some(model) = model(KvType::F16, 512, GuardMode::Off) else { return };
    let say = |s: &mut Session, text: &str| {
        s.append_messages(&[Message::new("user", text)], true).expect("messages");
        generate(s, &greedy(12))
    };
    let mut a = session(&model);
    say(&mut a, "Tell me about a mill.");
    let bytes = a.snapshot().expect("snapshot");
    let mut b = a.fork().expect("fork");
    let mut c = session(&model);
    c.restore(&bytes).expect("restore");
    let want = say(&mut a, "And the miller?");
    let evaluated = b.stats().prefill_tokens;
    assert_eq!(say(&mut b, "And the miller?"), want);
    assert_eq!(say(&mut c, "And the miller?"), want);
    assert_eq!(a.tokens(), c.tokens());
    assert!(b.stats().prefill_tokens - evaluated < 40, "the fork evaluates only what is new");
}

/// Generate, restore, generate: the same tokens, in the same session, another one, and another context.
#[test]
fn snapshots_bring_back_the_same_tokens() {
    for kv in KvType::ALL {
        let Some(model) = model(kv, 256, GuardMode::Off) else { return };
        let Some(elsewhere) = self::model(kv, 128, GuardMode::Strict) else { return };
        let ids = text(&model, 110);
        for n in [1usize, 32, 45, 96] {
            let mut s = told(&model, &ids[..n]);
            generate(&mut s, &greedy(5));
            let readbacks = s.stats().counters.phase(Phase::Other).readbacks[ReadbackClass::State as usize];
            let submits = s.stats().counters.phase(Phase::Other).submits;
            let bytes = s.snapshot().expect("snapshot");
            assert_eq!(bytes.len() as u64, s.snapshot_bytes().expect("size"));
            let cost = s.stats().counters;
            assert_eq!(cost.phase(Phase::Other).readbacks[ReadbackClass::State as usize], readbacks + 1);
            assert_eq!(cost.phase(Phase::Other).submits, submits + 1);
            assert_eq!(bytes, s.snapshot().expect("snapshot"), "the same session gives the same bytes");
            let mut fork = s.fork().expect("fork");
            let want = generate(&mut s, &greedy(10));
            s.restore(&bytes).expect("restore");
            assert_eq!(generate(&mut s, &greedy(10)), want, "{kv:?} {n}: restored");
            s.truncate(1).expect("truncate");
            s.restore(&bytes).expect("restore");
            assert_eq!(generate(&mut s, &greedy(10)), want, "{kv:?} {n}: rerun");
            // Restoring a fork takes nothing from its parent.
            fork.restore(&bytes).expect("restore");
            assert_eq!(generate(&mut fork, &greedy(10)), want, "{kv:?} {n}: in a fork");
            let mut other = told(&elsewhere, &ids[50..90]);
            generate(&mut other, &greedy(3));
            other.restore(&bytes).expect("restore");
            assert_eq!(generate(&mut other, &greedy(10)), want, "{kv:?} {n}: elsewhere");
            assert_eq!(other.tokens(), s.tokens());
            like_fresh(&mut other, 3, near(kv));
        }
        assert_eq!((model.stats().kv.used, elsewhere.stats().kv.used), (0, 0));
    }
}

/// What was not evaluated is kept as it is, an empty session too.
#[test]
fn snapshots_of_what_was_not_evaluated() {
    let Some(model) = model(KvType::F16, 128, GuardMode::Off) else { return };
    let empty = session(&model).snapshot().expect("snapshot");
    let mut s = told(&model, &text(&model, 20));
    let pending = s.snapshot().expect("snapshot");
    assert!(pending.len() < empty.len() + 20 * 4 + 1);
    let want = generate(&mut s, &greedy(4));
    s.restore(&empty).expect("restore");
    assert_eq!((s.tokens().len(), s.stats().cached_tokens, model.stats().kv.used), (0, 0, 0));
    s.restore(&pending).expect("restore");
    assert_eq!((s.tokens().len(), s.stats().cached_tokens), (20, 0));
    assert_eq!(generate(&mut s, &greedy(4)), want);
    let bytes = s.snapshot().expect("snapshot");
    let mut small = model.open_session(&SessionOptions { n_ctx: 16, ..Default::default() }).expect("session");
    assert!(matches!(small.restore(&bytes), Err(Error::ContextFull(_))));
    assert!(small.tokens().is_empty());
}

#[test]
fn bad_snapshots_are_refused_and_change_nothing() {
    let Some(model) = model(KvType::F16, 128, GuardMode::Off) else { return };
    let ids = text(&model, 60);
    let mut s = told(&model, &ids[..40]);
    generate(&mut s, &greedy(3));
    let bytes = s.snapshot().expect("snapshot");
    let (tokens, kv) = (s.tokens().to_vec(), model.stats().kv);
    let mut refuse = |bytes: &[u8], part: &str| {
        let e = s.restore(bytes).expect_err("refused");
        assert!(matches!(e, Error::InvalidArgument(_)) && e.to_string().contains(part), "{e}, not {part}");
        assert_eq!((s.tokens(), s.stats().cached_tokens), (tokens.as_slice(), 42));
        assert_eq!(model.stats().kv, kv);
    };
    refuse(&[], "begin");
    refuse(b"GGUF and some more bytes that are no snapshot", "begin");
    for n in [8, 12, 27, 28, 60, 300, bytes.len() / 2, bytes.len() - 1] {
        refuse(&bytes[..n], if n < 28 { "begin" } else { "are there" });
    }
    refuse(&[bytes.as_slice(), &[0]].concat(), "are there");
    for at in (28..bytes.len()).step_by(bytes.len() / 300) {
        let mut bent = bytes.clone();
        bent[at] ^= 0x10;
        refuse(&bent, "damaged");
    }
    let mut newer = bytes.clone();
    newer[8] += 1;
    refuse(&newer, "version");
    // Other models: the same shape with other weights, other storage.
    let other = rewrite(&shallow(), "other-weights", |tensors| {
        let (.., data) = tensors.iter_mut().find(|t| t.0 == "blk.1.ffn_down.weight").expect("there");
        data[0] ^= 1;
    });
    let other = load(model.context(), &other, KvType::F16, 128, 0);
    refuse(&told(&other, &ids[..5]).snapshot().expect("snapshot"), "weights");
    let other = load(model.context(), &shallow(), KvType::Q8, 128, 0);
    refuse(&told(&other, &ids[..5]).snapshot().expect("snapshot"), "kv type q8");
    if let Some(dir) = shared("golden/llama3") {
        let other = load(model.context(), &dir.join("model-f16.gguf"), KvType::F16, 128, 0);
        refuse(&told(&other, &[1, 2]).snapshot().expect("snapshot"), "another model");
    }
    like_fresh(&mut s, 5, near(KvType::F16));
}
