//! The GPU runtime on a device: recorder, plans, pool, memory, guard, counters, timer, parameters, failures.

mod common;

use std::sync::{Arc, LazyLock};

use common::*;
use doppler::Error;
use doppler::gpu::{
    AdapterChoice, BindGroupCache, Buffer, Counters, Dispatch, Features, Forms, Gate, Gpu, GpuOptions, Grid, Guard,
    GuardMode, Kernel, MemoryClass, Phase, Place, ReadbackClass, Scope, StagedCopy, StagingRing, list_adapters,
};

const WORDS: usize = 32;

/// Copies its parameters, 128 bytes of u32 and f32 by turns, to `y`.
static ECHO: LazyLock<Kernel> = LazyLock::new(|| {
    let field = |i: usize| format!("p{i}: {}", if i.is_multiple_of(2) { "u32" } else { "f32" });
    let fields: Vec<_> = (0..WORDS).map(field).collect();
    let copies: String = (0..WORDS).map(|i| format!("    y[{i}] = bitcast<u32>(params.p{i});\n")).collect();
    let source = format!(
        "struct Params {{ {} }}\n@group(0) @binding(auto) var<storage, read_write> y: array<u32>;\n\
         @compute @workgroup_size(1)\nfn main() {{\n{copies}}}\n",
        fields.join(", ")
    );
    Kernel { source: source.leak(), ..kernel("echo", "") }
});

const fn kernel(name: &'static str, source: &'static str) -> Kernel {
    Kernel {
        name,
        source,
        flags: &[],
        constants: &[],
        slots: &[],
        forms: Forms::ALL,
        params: &[("n", "u32"), ("add", "u32")],
    }
}

/// `y[i] = x[i] * 3 + add`, `n` words; each pass over the data is seen in the result.
static STEP: Kernel = kernel(
    "step",
    "#import thread\nstruct Params { n: u32, add: u32 }\n\
     @group(0) @binding(auto) var<storage, read> x: array<u32>;\n\
     @group(0) @binding(auto) var<storage, read_write> y: array<u32>;\n\
     @compute @workgroup_size(64)\nfn main(t: Thread) {\n\
         let i = group_index(t) * 64u + t.lid;\n\
         if (i < params.n) { y[i] = x[i] * 3u + params.add; }\n}\n",
);

static BROKEN: Kernel = kernel(
    "broken",
    "struct Params { n: u32, add: u32 }\n@group(0) @binding(auto) var<storage, read_write> y: array<u32>;\n\
     @compute @workgroup_size(1)\nfn main() { y[0] = params.no_such_field; }\n",
);

fn step<'a>(x: &'a Buffer, y: &'a Buffer, n: u32, add: u32) -> Dispatch<'a> {
    Dispatch::new(&STEP, &[n, add], Grid::Direct([n.div_ceil(64), 1, 1])).bind("x", x).bind("y", y)
}

fn fresh(options: GpuOptions) -> Option<Arc<Gpu>> {
    open(options)
}

fn with_features(features: Features) -> Option<Arc<Gpu>> {
    fresh(GpuOptions { features, ..Default::default() })
}

#[test]
fn parameters_arrive_unchanged() {
    for v in variants() {
        let mut rng = Rng(4);
        let scope = v.scope();
        let y = upload_words(&v.gpu, &[0; WORDS]);
        for _ in 0..3 {
            let params: [u32; WORDS] = std::array::from_fn(|i| match i % 2 {
                0 => rng.word() as u32,
                _ => (rng.unit() * 1e20).to_bits(),
            });
            Dispatch::new(&ECHO, &params, Grid::Direct([1, 1, 1])).bind("y", &y).run(&v.gpu, &scope).unwrap();
            assert_eq!(download_words(&v.gpu, &y, WORDS), params, "{}", v.name);
        }
        // Several in one submission keep their own.
        let outs: Vec<Buffer> = (0..20).map(|_| upload_words(&v.gpu, &[0; WORDS])).collect();
        let mut recorder = v.gpu.recorder("echoes", &scope);
        for (i, out) in outs.iter().enumerate() {
            let d = Dispatch::new(&ECHO, &[i as u32; WORDS], Grid::Direct([1, 1, 1])).bind("y", out);
            recorder.record(d).unwrap();
        }
        recorder.submit().unwrap();
        for (i, out) in outs.iter().enumerate() {
            assert_eq!(download_words(&v.gpu, out, WORDS), [i as u32; WORDS], "{}", v.name);
        }
    }
}

#[test]
fn a_plan_replays_what_was_recorded_and_creates_nothing() {
    for v in variants() {
        // Its own device, so that no other test adds to the counters.
        let Some(gpu) = with_features(v.gpu.features()) else { return };
        let scope = gpu.scope(Phase::Decode);
        let n = 1000u32;
        let a = upload_words(&gpu, &(0..n).collect::<Vec<_>>());
        let (b, c) = (upload_words(&gpu, &vec![0; 1000]), upload_words(&gpu, &vec![0; 1000]));
        let groups = BindGroupCache::default();
        let fill = |recorder: &mut doppler::gpu::Recorder<'_>| {
            recorder.record(step(&a, &b, n, 7)).unwrap();
            recorder.record(step(&b, &c, n, 9)).unwrap();
            recorder.copy(c.whole(), a.whole()).unwrap();
            recorder.record(step(&a, &b, n, 1)).unwrap();
        };
        let mut recorder = gpu.recorder("plan", &scope).with_groups(&groups);
        fill(&mut recorder);
        let plan = Arc::new(recorder.into_plan().unwrap());
        assert_eq!(plan.dispatches(), 3);
        assert_eq!(gpu.counters().phase(Phase::Decode).submits, 0, "freezing submits nothing");
        let mut expected: Vec<u32> = (0..n).collect();
        let three = |v: &mut Vec<u32>, add: u32| v.iter_mut().for_each(|x| *x = x.wrapping_mul(3).wrapping_add(add));
        for round in 0..3 {
            let before = gpu.counters().phase(Phase::Decode);
            let mut recorder = gpu.recorder("replay", &scope);
            // The last round replays twice in one submission.
            let times = if round == 2 { 2 } else { 1 };
            (0..times).for_each(|_| recorder.replay(&plan));
            recorder.submit().unwrap();
            let cost = gpu.counters().phase(Phase::Decode).since(&before);
            assert_eq!(
                (cost.submits, cost.dispatches, cost.passes),
                (1, 3 * times, 2 * times - (times - 1)),
                "{}",
                v.name
            );
            assert_eq!((cost.buffers, cost.bind_groups, cost.pipelines, cost.uploads), (0, 0, 0, 0), "{}", v.name);
            for _ in 0..times {
                three(&mut expected, 7);
                three(&mut expected, 9);
            }
            assert_eq!(download_words(&gpu, &a, 1000), expected, "{}", v.name);
        }
        // Recording the same gives the same, and takes its bind groups from the cache.
        let before = gpu.counters().phase(Phase::Decode);
        let mut recorder = gpu.recorder("again", &scope).with_groups(&groups);
        fill(&mut recorder);
        recorder.submit().unwrap();
        let cost = gpu.counters().phase(Phase::Decode).since(&before);
        let params_ring = u64::from(!gpu.features().immediates);
        assert_eq!((cost.bind_groups, cost.pipelines, cost.buffers), (params_ring, 0, params_ring), "{}", v.name);
        three(&mut expected, 7);
        three(&mut expected, 9);
        assert_eq!(download_words(&gpu, &a, 1000), expected, "{}", v.name);
        groups.clear();
    }
}

#[test]
fn counters_have_exact_values() {
    for features in [Features::ALL, Features { immediates: false, ..Features::ALL }] {
        let Some(gpu) = with_features(features) else { return };
        let session = Arc::new(Counters::default());
        let scope = gpu.scope(Phase::Prefill).with_session(session.clone());
        let x = gpu.storage("x", 1000, MemoryClass::Other, &scope).unwrap();
        let y = gpu.storage("y", 1000, MemoryClass::Other, &scope).unwrap();
        gpu.upload(x.whole(), &[1; 1000], &scope).unwrap();
        gpu.upload(x.whole(), &[], &scope).unwrap();
        let mut recorder = gpu.recorder("sequence", &scope);
        recorder.record(step(&x, &y, 250, 1)).unwrap();
        recorder.record(step(&x, &y, 250, 2)).unwrap();
        recorder.clear(y.whole()).unwrap();
        recorder.record(step(&x, &y, 250, 3)).unwrap();
        // A grid without workgroups is no dispatch.
        recorder.record(step(&x, &y, 0, 3)).unwrap();
        recorder.submit().unwrap();
        for _ in 0..2 {
            gpu.download(y.slice(0, 400), ReadbackClass::State, &scope).unwrap();
        }
        // Without immediates: one ring of 64 KiB, its bind group, and one upload of three structures, 256 bytes each.
        let ring = u64::from(!gpu.features().immediates);
        let c = session.phase(Phase::Prefill);
        assert_eq!((c.submits, c.dispatches, c.passes), (3, 3, 2));
        // x, y, and one pooled buffer of 512 bytes for both readbacks.
        assert_eq!((c.buffers, c.buffer_bytes), (3 + ring, 2512 + ring * 65_536));
        assert_eq!((c.bind_groups, c.pipelines), (3 + ring, 1));
        assert_eq!((c.uploads, c.upload_bytes), (1 + ring, 1000 + ring * 768));
        assert_eq!((c.readbacks[ReadbackClass::State as usize], c.required_readback_bytes()), (2, 800));
        assert_eq!(c.required_readbacks(), c.readbacks.iter().sum::<u64>());
        assert_eq!(c, gpu.counters().phase(Phase::Prefill), "the session was charged what the context was");
        assert_eq!(c, session.snapshot().total(), "and in no other phase");
        assert_eq!(session.snapshot().submit_histogram.iter().sum::<u64>(), 3);
    }
}

#[test]
fn the_pool_lends_a_buffer_again_only_after_its_submission() {
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let n = 1 << 20;
    let (x, y) = (upload_words(&gpu, &vec![1; n]), upload_words(&gpu, &vec![0; n]));
    let lease = gpu.lease("test", n as u64 * 4, &scope).unwrap();
    let mut recorder = gpu.recorder("long", &scope);
    recorder.record(step(&x, lease.buffer(), n as u32, 0)).unwrap();
    for _ in 0..20 {
        recorder.record(step(lease.buffer(), &y, n as u32, 0)).unwrap();
    }
    recorder.keep(lease);
    // Recorded, not submitted: on loan.
    let other = gpu.lease("test", n as u64 * 4, &scope).unwrap();
    let stats = gpu.pool().stats();
    assert_eq!((stats.leased, stats.reuses, stats.misses), (2, 0, 2));
    let submission = recorder.submit().unwrap();
    assert_eq!(gpu.pool().stats().leased, 1, "submitting gives the kept one back");
    // Whether the device is done by now is its affair: reused only if it is.
    let third = gpu.lease("test", n as u64 * 4, &scope).unwrap();
    if gpu.pool().stats().reuses > 0 {
        assert!(gpu.completed() >= submission.serial(), "lent again before its submission was complete");
    }
    gpu.wait(&submission).unwrap();
    drop((other, third));
    let idle = gpu.pool().stats();
    assert_eq!(idle.leased, 0);
    let again = gpu.lease("test", n as u64 * 4 - 100, &scope).unwrap();
    let stats = gpu.pool().stats();
    assert_eq!((stats.reuses, stats.misses), (idle.reuses + 1, idle.misses), "reused once it is");
    drop(again);
    assert_eq!(gpu.pool().stats().leased, 0);
    let freed = gpu.pool().stats().idle_bytes;
    let before = gpu.memory().snapshot().total;
    assert_eq!(gpu.pool().trim(), freed);
    assert_eq!(gpu.memory().snapshot().total, before - freed);
    // A recorder dropped without submitting gives its leases back too.
    let mut recorder = gpu.recorder("dropped", &scope);
    recorder.keep(gpu.lease("test", 300, &scope).unwrap());
    drop(recorder);
    assert_eq!(gpu.pool().stats().leased, 0);
}

#[test]
fn the_memory_budget_refuses_and_the_account_stays() {
    let Some(gpu) = fresh(GpuOptions { memory_budget: 1 << 20, ..Default::default() }) else { return };
    let scope = gpu.scope(Phase::Load);
    let kept = gpu.storage("kept", 600 << 10, MemoryClass::Kv, &scope).unwrap();
    let before = gpu.memory().snapshot();
    assert_eq!(
        (before.total, before.current[MemoryClass::Kv as usize], before.live_buffers),
        (600 << 10, 600 << 10, 1)
    );
    let counted = gpu.counters().snapshot().total();
    let e = gpu.storage("too much", 600 << 10, MemoryClass::Weights, &scope).unwrap_err();
    assert!(matches!(&e, Error::OutOfMemory(m) if m.contains("too much") && m.contains("budget")), "{e}");
    assert_eq!(gpu.memory().snapshot(), before);
    assert_eq!(gpu.counters().snapshot().total(), counted);
    assert!(gpu.lease("test", 1 << 20, &scope).is_err());
    assert_eq!((gpu.memory().snapshot(), gpu.pool().stats().leased), (before, 0));
    let rest = gpu.storage("rest", 424 << 10, MemoryClass::Weights, &scope).unwrap();
    assert_eq!(gpu.memory().snapshot().total, 1 << 20, "exactly the budget is allowed");
    drop((kept, rest));
    let end = gpu.memory().snapshot();
    assert_eq!((end.total, end.live_buffers, end.peak), (0, 0, 1 << 20));
}

#[test]
fn a_buffer_beyond_the_adapter_is_an_error() {
    let Some(v) = full() else { return };
    let too_large = v.gpu.adapter().max_buffer_bytes + 4;
    let e = v.gpu.storage("huge", too_large, MemoryClass::Other, &v.scope()).unwrap_err();
    assert!(matches!(e, Error::OutOfMemory(_)), "{e}");
}

#[test]
fn uploads_out_of_range_are_errors() {
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let b = upload_words(&gpu, &[5; 16]);
    let before = gpu.counters().snapshot().total();
    for (slice, bytes) in [
        (b.whole(), vec![0; 68]),
        (b.slice(32, 16), vec![0; 32]),
        (b.slice(60, 8), vec![0; 8]),
        (b.slice(64, 4), vec![0; 4]),
        (b.slice(u64::MAX - 3, 8), vec![0; 8]),
        (b.slice(2, 8), vec![0; 8]),
        (b.whole(), vec![0; 3]),
    ] {
        let what = format!("{} bytes to {}+{}", bytes.len(), slice.offset, slice.size);
        assert!(gpu.upload(slice, &bytes, &scope).is_err(), "{what}");
        gpu.check().unwrap_or_else(|e| panic!("{what}: reached the device: {e}"));
    }
    assert_eq!(gpu.counters().snapshot().total().uploads, before.uploads, "refused before it is counted");
    assert_eq!(download_words(&gpu, &b, 16), [5; 16]);
}

/// Many more pieces than slots: each slot is written again only when the device has copied what was in it.
#[test]
fn a_ring_of_mapped_slots_carries_more_than_it_holds() {
    let Some(gpu) = fresh(GpuOptions::default()) else { return };
    let scope = gpu.scope(Phase::Load);
    let (pieces, words) = (60u32, 1024u32);
    let target = gpu.storage("target", u64::from(pieces * words) * 4, MemoryClass::Other, &scope).unwrap();
    let held = gpu.memory().snapshot().live_buffers;
    let mut ring = StagingRing::new(&gpu, &scope, u64::from(words) * 4, 3);
    for piece in 0..pieces {
        let mut slot = loop {
            match ring.take(u64::from(words) * 4).unwrap() {
                Some(slot) => break slot,
                None => ring.wait().unwrap(),
            }
        };
        let bytes: Vec<u8> = (0..words).flat_map(|i| (piece * words + i).to_le_bytes()).collect();
        // Written on another thread, in two halves that change places on their way.
        let slot = std::thread::scope(|s| {
            s.spawn(|| {
                slot.write(2048, &bytes[..2048]).unwrap();
                slot.write(0, &bytes[2048..]).unwrap();
                assert!(slot.write(4096, &[1]).is_err() && slot.write(u64::MAX, &[1]).is_err());
                slot
            })
            .join()
            .unwrap()
        });
        let at = u64::from(piece * words) * 4;
        let copy = |from, offset| StagedCopy { from, size: 2048, target: target.clone(), offset };
        ring.submit(vec![(slot, vec![copy(2048, at), copy(0, at + 2048)])]).unwrap();
        assert!(gpu.memory().snapshot().live_buffers <= held + 3, "three slots at most");
    }
    // A larger one takes the place of a slot.
    let large = loop {
        match ring.take(1 << 16).unwrap() {
            Some(slot) => break slot,
            None => ring.wait().unwrap(),
        }
    };
    drop((ring, large));
    assert_eq!(gpu.memory().snapshot().live_buffers, held);
    let want: Vec<u32> = (0..pieces * words).collect();
    assert_eq!(download_words(&gpu, &target, want.len()), want);
    let c = gpu.counters().snapshot();
    let load = c.phase(Phase::Load);
    assert_eq!((load.uploads, load.upload_bytes), (pieces.into(), u64::from(pieces * words) * 4));
}

#[test]
fn wrong_bindings_are_errors() {
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let (x, y) = (upload_words(&gpu, &[1; 256]), upload_words(&gpu, &[0; 256]));
    let bare = || Dispatch::new(&STEP, &[64u32, 5], Grid::Direct([1, 1, 1]));
    let cases: Vec<(&str, Dispatch<'_>)> = vec![
        ("wrong name", bare().bind("x", &x).bind("z", &y)),
        ("wrong order", bare().bind("y", &y).bind("x", &x)),
        ("one missing", bare().bind("x", &x)),
        ("one too many", bare().bind("x", &x).bind("y", &y).bind("w", &y)),
        ("past the end", bare().bind("x", &x).bind("y", y.slice(512, 1024))),
        ("an offset that overflows", bare().bind("x", &x).bind("y", y.slice(u64::MAX - 255, 512))),
        ("an empty range", bare().bind("x", &x).bind("y", y.slice(0, 0))),
        ("an unaligned range", bare().bind("x", &x).bind("y", y.slice(4, 256))),
        ("one buffer read and written", bare().bind("x", &x).bind("y", &x)),
        ("no parameters", Dispatch { params: Vec::new(), ..step(&x, &y, 64, 5) }),
        ("parameters beyond the largest structure", Dispatch { params: vec![0; 256], ..step(&x, &y, 64, 5) }),
        ("unknown flag", bare().bind("x", &x).bind("y", &y).flag("NO_SUCH", true)),
        ("unknown constant", bare().bind("x", &x).bind("y", &y).constant("NO_SUCH", 1)),
    ];
    for (what, d) in cases {
        let e = d.run(&gpu, &scope).expect_err(what);
        assert!(matches!(e, Error::Internal(_) | Error::Gpu(_)), "{what}: {e}");
    }
    // The device goes on, and nothing of the above reached it.
    assert_eq!(download_words(&gpu, &y, 64), [0; 64]);
    step(&x, &y, 64, 5).run(&gpu, &scope).unwrap();
    assert_eq!(download_words(&gpu, &y, 64), [8; 64]);
}

#[test]
fn copies_out_of_range_are_errors() {
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let (x, y) = (upload_words(&gpu, &[1; 16]), upload_words(&gpu, &[0; 16]));
    for (what, from, to) in [
        ("source", x.slice(32, 64), y.whole()),
        ("target", x.whole(), y.slice(32, 64)),
        ("odd", x.slice(0, 6), y.whole()),
    ] {
        let mut recorder = gpu.recorder("copy", &scope);
        let e = recorder.copy(from, to).expect_err(what);
        assert!(matches!(e, Error::Internal(_)), "{what}: {e}");
        recorder.submit().unwrap();
    }
    assert!(gpu.download(x.slice(60, 8), ReadbackClass::Debug, &scope).is_err());
    assert_eq!(download_words(&gpu, &y, 16), [0; 16]);
}

#[test]
fn a_shader_that_does_not_compile_is_an_error_and_is_not_cached() {
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let (x, y) = (upload_words(&gpu, &[2; 64]), upload_words(&gpu, &[0; 64]));
    for _ in 0..2 {
        let d = Dispatch::new(&BROKEN, &[0u32, 0], Grid::Direct([1, 1, 1])).bind("y", &y);
        let e = d.run(&gpu, &scope).unwrap_err();
        assert!(matches!(&e, Error::Gpu(m) if m.contains("no_such_field")), "{e}");
        let stats = gpu.pipelines().stats();
        assert_eq!((stats.pipelines, stats.modules, stats.hits), (0, 0, 0), "nothing of it is kept");
    }
    assert_eq!(gpu.counters().phase(Phase::Other).submits, 0);
    step(&x, &y, 64, 1).run(&gpu, &scope).unwrap();
    assert_eq!(download_words(&gpu, &y, 64), [7; 64]);
}

#[test]
fn a_switched_plan_does_what_its_grids_say() {
    for v in variants() {
        let (gpu, scope) = (&v.gpu, v.gpu.scope(Phase::Other));
        let n = 1000u32;
        let (a, b) = (upload_words(gpu, &vec![5; 1000]), upload_words(gpu, &vec![0; 1000]));
        let mut recorder = gpu.recorder("plan", &scope);
        recorder.record(step(&a, &b, n, 1)).unwrap();
        recorder.record(step(&b, &a, n, 0)).unwrap();
        let plan = recorder.into_plan().unwrap();
        let live = gpu.indirect("live", 24, &scope).unwrap();
        let Some((switched, grids)) = plan.switched(gpu, &live) else {
            assert_eq!(gpu.adapter().backend, "dx12");
            return;
        };
        assert_eq!(grids.len(), 1, "both have the same");
        let switched = Arc::new(switched);
        assert_eq!(switched.dispatches(), 2);
        let replay = || {
            let mut recorder = gpu.recorder("replay", &scope);
            recorder.replay(&switched);
            recorder.submit().unwrap();
            download_words(gpu, &a, 1000)
        };
        assert_eq!(replay(), [5; 1000], "{}: no workgroups", v.name);
        gpu.upload(live.whole(), bytemuck::cast_slice(&grids), &scope).unwrap();
        assert_eq!(replay(), [48; 1000], "{}", v.name);
        gpu.upload(live.whole(), &[0; 12], &scope).unwrap();
        assert_eq!(replay(), [48; 1000], "{}: no workgroups any more", v.name);
        // A plan that does more than dispatch cannot be left out.
        let mut recorder = gpu.recorder("plan", &scope);
        recorder.record(step(&a, &b, n, 1)).unwrap();
        recorder.copy(a.whole(), b.whole()).unwrap();
        assert!(recorder.into_plan().unwrap().switched(gpu, &live).is_none());
        // Nor one with more grids than the buffer holds.
        let mut recorder = gpu.recorder("plan", &scope);
        for n in [100, 200, 300] {
            recorder.record(step(&a, &b, n, 1)).unwrap();
        }
        assert!(recorder.into_plan().unwrap().switched(gpu, &live).is_none());
    }
}

#[test]
fn the_cache_counts_and_purge_says_what_it_freed() {
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let (x, y) = (upload_words(&gpu, &[2; 64]), upload_words(&gpu, &[0; 64]));
    let mut recorder = gpu.recorder("plan", &scope);
    recorder.record(step(&x, &y, 64, 1)).unwrap();
    let plan = Arc::new(recorder.into_plan().unwrap());
    step(&x, &y, 64, 2).run(&gpu, &scope).unwrap();
    let stats = gpu.pipelines().stats();
    assert_eq!((stats.misses, stats.hits), (1, 1));
    assert_eq!((stats.pipelines, stats.modules, stats.group_layouts, stats.pipeline_layouts), (1, 1, 1, 1));
    assert!(stats.compile_ns > 0);
    assert_eq!(gpu.pipelines().purge(), stats);
    let empty = gpu.pipelines().stats();
    assert_eq!((empty.pipelines, empty.modules, empty.group_layouts, empty.pipeline_layouts), (0, 0, 0, 0));
    // Plans made before go on; new calls compile again.
    let mut recorder = gpu.recorder("replay", &scope);
    recorder.replay(&plan);
    recorder.submit().unwrap();
    assert_eq!(download_words(&gpu, &y, 64), [7; 64]);
    step(&x, &y, 64, 3).run(&gpu, &scope).unwrap();
    assert_eq!(gpu.pipelines().stats().misses, 2);
    assert_eq!(download_words(&gpu, &y, 64), [9; 64]);
}

/// Two kernels with one text share a pipeline: the name is no part of its key.
#[test]
fn pipelines_are_keyed_by_structure() {
    static SAME: Kernel = Kernel { name: "another name", source: STEP.source, ..kernel("", "") };
    let Some(gpu) = with_features(Features::ALL) else { return };
    let scope = gpu.scope(Phase::Other);
    let (x, y) = (upload_words(&gpu, &[2; 64]), upload_words(&gpu, &[0; 64]));
    step(&x, &y, 64, 1).run(&gpu, &scope).unwrap();
    Dispatch { kernel: &SAME, ..step(&x, &y, 64, 1) }.run(&gpu, &scope).unwrap();
    assert_eq!((gpu.pipelines().stats().pipelines, gpu.pipelines().stats().misses), (1, 1));
}

#[test]
fn the_strict_guard_refuses_debug_readbacks_before_any_work() {
    let guard = Guard { mode: GuardMode::Strict, ..Guard::default() };
    let Some(gpu) = fresh(GpuOptions { guard, ..Default::default() }) else { return };
    let scope = gpu.scope(Phase::Decode);
    let b = gpu.storage("layer.3", 64, MemoryClass::Other, &scope).unwrap();
    let before = gpu.counters().snapshot();
    for class in [ReadbackClass::Debug, ReadbackClass::Profile] {
        for place in Place::ALL {
            let gate = Gate { layer: Some(3), ..Gate::new(place, class, "tensor") };
            let e = gpu.download(b.whole(), gate, &scope).unwrap_err();
            let reason = format!("{}.tensor.3", place.name());
            assert!(matches!(&e, Error::Guard(m) if m.contains(&reason)), "{e}");
        }
    }
    let after = gpu.counters().snapshot();
    assert_eq!((after.phases, after.submit_histogram), (before.phases, before.submit_histogram), "no work was done");
    for p in after.places {
        assert_eq!((p.readbacks, p.bytes, p.refused), (0, 0, 2), "refusals are counted where they happened");
    }
    assert_eq!(gpu.pool().stats().leased, 0);
    for class in [ReadbackClass::Token, ReadbackClass::Logits, ReadbackClass::Embedding, ReadbackClass::State] {
        assert_eq!(gpu.download(b.whole(), class, &scope).unwrap(), [0; 64]);
    }
}

fn timed_work(gpu: &Gpu) -> (Arc<Counters>, Scope) {
    let session = Arc::new(Counters::default());
    let scope = gpu.scope(Phase::Decode).with_session(session.clone());
    let n = 1 << 18;
    let (x, y) = (upload_words(gpu, &vec![1; n]), upload_words(gpu, &vec![0; n]));
    for _ in 0..3 {
        let mut recorder = gpu.recorder("timed", &scope);
        (0..4).for_each(|i| recorder.record(step(&x, &y, n as u32, i)).unwrap());
        recorder.submit().unwrap();
    }
    (session, scope)
}

#[test]
fn gpu_times_come_from_timestamps_or_are_absent() {
    let Some(gpu) = fresh(GpuOptions { timing: true, ..Default::default() }) else { return };
    let (session, _) = timed_work(&gpu);
    assert_eq!(session.phase(Phase::Decode).gpu_ns, 0, "not read before it is asked for");
    gpu.collect_times().unwrap();
    let ns = session.phase(Phase::Decode).gpu_ns;
    assert_eq!(ns > 0, gpu.features().timestamps, "{ns} ns");
    assert_eq!(gpu.timed(), gpu.features().timestamps);
    // The readback of the times is the context's, not the session's.
    let read = u64::from(gpu.timed());
    assert_eq!(gpu.counters().phase(Phase::Other).readbacks[ReadbackClass::Profile as usize], read);
    assert_eq!(session.snapshot().total().readbacks, [0; 7]);
    gpu.collect_times().unwrap();
    assert_eq!(session.phase(Phase::Decode).gpu_ns, ns, "each pass is counted once");

    let off = Features { timestamps: false, ..Features::ALL };
    for options in [
        GpuOptions { timing: true, features: off, ..Default::default() },
        GpuOptions { timing: false, ..Default::default() },
    ] {
        let gpu = fresh(options).unwrap();
        let (session, _) = timed_work(&gpu);
        gpu.collect_times().unwrap();
        assert!(!gpu.timed());
        assert_eq!(session.phase(Phase::Decode).gpu_ns, 0);
        assert_eq!(gpu.counters().phase(Phase::Other).readbacks, [0; 7]);
    }
}

/// More passes than the query set holds: the owner asks for rest between submissions.
#[test]
fn many_timed_passes_are_collected_on_the_way() {
    let Some(gpu) = fresh(GpuOptions { timing: true, ..Default::default() }) else { return };
    let scope = gpu.scope(Phase::Prefill);
    let (x, y) = (upload_words(&gpu, &[1; 64]), upload_words(&gpu, &[0; 64]));
    for i in 0..700 {
        step(&x, &y, 64, i).run(&gpu, &scope).unwrap();
        gpu.rest_profiler().unwrap();
    }
    let collected = gpu.counters().phase(Phase::Other).readbacks[ReadbackClass::Profile as usize];
    assert_eq!(collected > 0, gpu.timed());
    assert_eq!(gpu.counters().phase(Phase::Prefill).gpu_ns > 0, gpu.timed());
}

#[test]
fn adapters_are_chosen_by_index_and_by_name() {
    let Some(v) = full() else { return };
    let list = list_adapters();
    assert!(list.iter().any(|a| a == v.gpu.adapter()), "the open adapter is in the list");
    let open = |index, name: Option<&str>, allow_software| {
        let adapter = AdapterChoice { index, name: name.map(Into::into), allow_software, ..Default::default() };
        Gpu::open(&GpuOptions { adapter, ..Default::default() })
    };
    for (i, a) in list.iter().enumerate() {
        assert_eq!(open(Some(i as u32), None, true).unwrap().adapter(), a);
        let part = a.name[..a.name.len() / 2].to_uppercase();
        assert!(open(None, Some(&part), true).unwrap().adapter().name.to_uppercase().contains(&part));
        assert_eq!(open(Some(i as u32), None, false).is_err(), a.is_software(), "software only where allowed");
    }
    let e = open(Some(99), None, true).unwrap_err();
    assert!(matches!(&e, Error::NoAdapter(m) if m.contains(&list[0].name)), "{e}");
    let e = open(None, Some("no such adapter"), true).unwrap_err();
    assert!(matches!(&e, Error::NoAdapter(m) if m.contains("no such adapter")), "{e}");
}

#[test]
fn features_that_are_switched_off_stay_off() {
    for v in variants() {
        let f = v.gpu.features();
        let a = v.gpu.adapter();
        let expected = |what: &str, present: bool| present && v.name != what;
        assert_eq!(f.subgroups, expected("no subgroups", a.subgroups), "{}", v.name);
        assert_eq!(f.f16, expected("no f16", a.f16), "{}", v.name);
        assert_eq!(f.timestamps, expected("no timestamps", a.timestamps), "{}", v.name);
        assert_eq!(f.pipeline_cache, expected("no pipeline cache", a.pipeline_cache), "{}", v.name);
        let cooperative = expected("no cooperative matrix", a.cooperative_matrix) && f.subgroups && f.f16;
        assert_eq!(f.cooperative_matrix, cooperative, "{}", v.name);
        assert_eq!(v.gpu.pipelines().driver_blob().is_some(), f.pipeline_cache, "{}", v.name);
    }
}

/// Threads share a device: each thread's results and parameters are its own.
#[test]
fn threads_share_a_device() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        std::thread::scope(|s| {
            for id in 0..4u32 {
                s.spawn(move || {
                    let scope = v.scope();
                    let (x, y) = (upload_words(&v.gpu, &[id; 64]), upload_words(&v.gpu, &[0; 64]));
                    for add in 0..20 {
                        step(&x, &y, 64, add).run(&v.gpu, &scope).unwrap();
                        assert_eq!(download_words(&v.gpu, &y, 64), [id * 3 + add; 64], "{}", v.name);
                    }
                });
            }
        });
    }
}
