//! The GPU runtime on a device: profiles, injected failures, pipelines kept on disk, compiling ahead, shared scratch, guards that change.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::*;
use doppler::Error;
use doppler::gpu::{
    ALWAYS, AdapterChoice, ArenaPlan, Buffer, Dispatch, FULL_WIDTH, FaultPoint, Features, Forms, Gpu, GpuOptions, Grid,
    Guard, Kernel, MemoryClass, Phase, ReadbackClass, Scope, Variant, Wanted,
};
use doppler::kernels::measure_width;
use doppler::session::Context;

/// `y[i] = x[i] * SCALE + add`.
static SCALE: Kernel = Kernel {
    name: "scale",
    source: "#import thread\noverride SCALE: u32 = 1u;\nstruct Params { n: u32, add: u32 }\n\
        @group(0) @binding(auto) var<storage, read> x: array<u32>;\n\
        @group(0) @binding(auto) var<storage, read_write> y: array<u32>;\n\
        @compute @workgroup_size(64)\nfn main(t: Thread) {\n    let i = group_index(t) * 64u + t.lid;\n\
        \u{20}   if (i < params.n) { y[i] = x[i] * SCALE + params.add; }\n}\n",
    flags: &[],
    constants: &["SCALE"],
    slots: &[],
    forms: Forms::ALL,
    params: &[("n", "u32"), ("add", "u32")],
};

fn scale<'a>(x: &'a Buffer, y: &'a Buffer, n: u32, factor: u32) -> Dispatch<'a> {
    let grid = Grid::Direct([n.div_ceil(64), 1, 1]);
    Dispatch::new(&SCALE, &[n, 1u32], grid).constant("SCALE", factor).bind("x", x).bind("y", y)
}

/// Three layers of two operations and one outside, in one submit.
fn layered(gpu: &Gpu, scope: &Scope) {
    let (x, y) = (upload_words(gpu, &[1; 256]), upload_words(gpu, &[0; 256]));
    let mut r = gpu.recorder("layered", scope);
    for layer in 0..3 {
        r.set_layer(Some(layer));
        r.record(scale(&x, &y, 256, 2).label("up")).unwrap();
        r.record(scale(&y, &x, 256, 3).label("down")).unwrap();
    }
    r.set_layer(None);
    r.record(scale(&x, &y, 256, 5).label("head")).unwrap();
    let (stats, detailed) = (r.stats(), gpu.guard().mode);
    assert_eq!((stats.dispatches, stats.copies, stats.leases), (7, 0, 0), "{detailed:?}");
    r.submit().unwrap();
}

#[test]
fn a_profile_times_every_dispatch_and_nothing_else_changes() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let scope = gpu.scope(Phase::Decode);
    layered(&gpu, &scope);
    let coalesced = gpu.counters().phase(Phase::Decode);
    assert_eq!((coalesced.dispatches, coalesced.passes, coalesced.gpu_ns), (7, 1, 0));
    assert!(matches!(gpu.stop_profile(), Err(Error::InvalidState(_))));
    if !gpu.features().timestamps {
        assert!(matches!(gpu.start_profile(), Err(Error::Unsupported(_))));
        return;
    }
    gpu.start_profile().unwrap();
    layered(&gpu, &scope);
    layered(&gpu, &scope);
    let profile = gpu.stop_profile().unwrap();
    let profiled = gpu.counters().phase(Phase::Decode).since(&coalesced);
    assert_eq!((profiled.dispatches, profiled.passes, profiled.submits), (14, 14, 2), "a pass a dispatch");
    assert_eq!((profile.dropped, profile.source()), (0, "timestamp"));
    // llvmpipe's clock may stand still or run backwards within a pass; every pass is somewhere.
    let rows: Vec<_> = profile.rows().collect();
    assert_eq!(rows.iter().map(|r| r.time.count).sum::<u64>() + profile.invalid, 14);
    let head = rows.iter().find(|r| r.label == "head").unwrap();
    assert_eq!((head.layer, head.phase), (None, Phase::Decode));
    assert!(rows.iter().filter(|r| r.label == "up").all(|r| r.layer.is_some_and(|l| l < 3)));
    let sum: u64 = rows.iter().map(|r| r.time.total_ns).sum();
    assert_eq!(sum, gpu.counters().phase(Phase::Decode).gpu_ns, "the counters get the same times");
    let trace: serde_json::Value = serde_json::from_str(&profile.trace()).unwrap();
    let named = |name: &str| trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["name"] == name).count();
    assert_eq!((named("head"), named("layer 1")), (2, 2));
    assert_eq!(named("layered"), 2, "the CPU's submit calls");
    layered(&gpu, &scope);
    assert_eq!(gpu.counters().phase(Phase::Decode).since(&coalesced).passes, 15, "one pass again");
}

#[test]
fn profiles_need_timestamps_and_leave() {
    let features = Features { timestamps: false, ..Features::ALL };
    let Some(gpu) = open(GpuOptions { features, ..Default::default() }) else { return };
    assert!(matches!(gpu.start_profile(), Err(Error::Unsupported(m)) if m.contains("timestamp")));
    let Some(gpu) = open(GpuOptions { guard: Guard::PRODUCTION, ..Default::default() }) else { return };
    if gpu.features().timestamps {
        assert!(matches!(gpu.start_profile(), Err(Error::Guard(m)) if m.contains("profiler.times")));
        gpu.set_guard(Guard::BENCHMARK);
        gpu.start_profile().unwrap();
        layered(&gpu, &gpu.scope(Phase::Other));
        // Forbidden in the middle: the profile waits until it may be read.
        gpu.set_guard(Guard::PRODUCTION);
        assert!(matches!(gpu.stop_profile(), Err(Error::Guard(_))));
        gpu.set_guard(Guard::DEBUG);
        let p = gpu.stop_profile().unwrap();
        assert_eq!(p.rows().map(|r| r.time.count).sum::<u64>() + p.invalid, 7);
    }
}

/// More dispatches than the query sets hold, in one submit: the rest is counted, not guessed.
#[test]
fn dispatches_beyond_the_queries_are_counted_as_dropped() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    if !gpu.features().timestamps {
        return;
    }
    let scope = gpu.scope(Phase::Other);
    let (x, y) = (upload_words(&gpu, &[1; 64]), upload_words(&gpu, &[0; 64]));
    gpu.start_profile().unwrap();
    let n = 16 * 2048 + 100;
    let mut r = gpu.recorder("many", &scope);
    (0..n).for_each(|_| r.record(scale(&x, &y, 64, 2)).unwrap());
    r.submit().unwrap();
    let p = gpu.stop_profile().unwrap();
    assert_eq!((p.dropped, p.rows().map(|r| r.time.count).sum::<u64>() + p.invalid), (100, n - 100));
}

/// A transient buffer, two dispatches, a readback: what it computes.
fn errand(gpu: &Gpu, scope: &Scope, factor: u32) -> doppler::Result<Vec<u8>> {
    let x = gpu.storage("x", 256, MemoryClass::Other, scope)?;
    gpu.upload(x.whole(), bytemuck::bytes_of(&[7u32; 64]), scope)?;
    let lease = gpu.lease("errand", 1000, scope)?;
    let mut r = gpu.recorder("errand", scope);
    r.clear(lease.buffer().whole())?;
    r.record(scale(&x, lease.buffer(), 64, factor))?;
    r.copy(lease.buffer().slice(0, 256), x.whole())?;
    r.keep(lease);
    let s = r.submit()?;
    gpu.wait(&s)?;
    gpu.download(x.whole(), ReadbackClass::State, scope)
}

#[test]
fn an_injected_failure_at_any_step_leaves_nothing_behind() {
    for (name, features) in
        [("immediates", Features::ALL), ("uniforms", Features { immediates: false, ..Features::ALL })]
    {
        let Some(gpu) = open(GpuOptions { features, ..Default::default() }) else { return };
        let scope = gpu.scope(Phase::Other);
        let good = errand(&gpu, &scope, 3).unwrap();
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(&good), vec![22; 64]);
        gpu.pool().trim();
        let memory = gpu.memory().snapshot();
        let mut failures = 0;
        for point in FaultPoint::ALL {
            for nth in 1.. {
                // A factor of its own, so that there is a pipeline to compile.
                let factor = 10 + failures;
                gpu.inject_fault(point, nth);
                let before = gpu.counters().phase(Phase::Other);
                let outcome = errand(&gpu, &scope, factor);
                gpu.inject_fault(point, 0);
                let Err(e) = outcome else { break };
                failures += 1;
                let context = format!("{name}, {point:?} {nth}");
                assert!(matches!(&e, Error::Gpu(m) if m.contains("injected")), "{context}: {e}");
                assert!(gpu.pool().leaks().is_empty(), "{context}: {:?}", gpu.pool().leaks());
                let cost = gpu.counters().phase(Phase::Other).since(&before);
                assert!(cost.readbacks.iter().sum::<u64>() == 0, "{context}: no readback happened, none is counted");
                // Everything works at once, and gives the right result.
                let again = errand(&gpu, &scope, factor).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(&again), vec![7 * factor + 1; 64], "{context}");
                gpu.pool().trim();
                let now = gpu.memory().snapshot();
                assert_eq!((now.total, now.live_buffers), (memory.total, memory.live_buffers), "{context}");
            }
        }
        // 2 pooled buffers and one more; 1 pipeline; 3 commands and the download's copy; 2 submits; 2 waits; 1 map.
        assert_eq!(failures, 12, "{name}");
    }
}

fn temporary(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn compiled_pipelines_are_kept_and_bad_files_ignored() {
    let dir = temporary("pipelines").join("made").join("on demand");
    let open_here = || open(GpuOptions { cache_dir: Some(dir.clone()), ..Default::default() });
    let file = || std::fs::read_dir(&dir).ok().and_then(|mut d| d.next()).map(|e| e.unwrap().path());
    let work = |gpu: &Arc<Gpu>| errand(gpu, &gpu.scope(Phase::Other), 3).unwrap();
    let Some(gpu) = open_here() else { return };
    assert_eq!((gpu.pipelines().stats().blob_bytes, gpu.pipelines().stats().blob_rejected), (0, false));
    let wanted = work(&gpu);
    assert!(file().is_none(), "written when the device is closed");
    let has_blob = gpu.pipelines().driver_blob().is_some();
    drop(gpu);
    assert_eq!(file().is_some(), has_blob);
    if !has_blob {
        println!("skipped: this backend keeps no compiled pipelines");
        return;
    }
    let path = file().unwrap();
    let sound = std::fs::read(&path).unwrap();
    {
        let gpu = open_here().unwrap();
        let s = gpu.pipelines().stats();
        assert_eq!((s.blob_bytes, s.blob_rejected), (sound.len() as u64 - 40, false));
        assert_eq!(work(&gpu), wanted);
    }
    // Damaged in each part, cut short, empty, foreign.
    let mut foreign = sound.clone();
    foreign[16] ^= 1;
    let mut damaged = sound.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 0x80;
    for bad in [
        foreign,
        damaged,
        sound[..sound.len() / 2].to_vec(),
        Vec::new(),
        b"something else entirely, long enough to hold a header".to_vec(),
    ] {
        std::fs::write(&path, &bad).unwrap();
        let gpu = open_here().unwrap();
        let s = gpu.pipelines().stats();
        assert_eq!((s.blob_bytes, s.blob_rejected), (0, true), "{} bytes", bad.len());
        assert_eq!(work(&gpu), wanted);
        drop(gpu);
        let gpu = open_here().unwrap();
        assert!(!gpu.pipelines().stats().blob_rejected, "a bad file is replaced");
    }
    // A folder that cannot be made: said in the log, nothing fails.
    let nowhere = dir.join("a file");
    std::fs::write(&nowhere, "x").unwrap();
    let gpu = open(GpuOptions { cache_dir: Some(nowhere.join("below")), ..Default::default() }).unwrap();
    assert_eq!(work(&gpu), wanted);
    assert!(matches!(gpu.save_pipelines(), Err(Error::Io(m)) if m.contains("below")));
}

#[test]
fn the_width_of_a_device() {
    let dir = temporary("width");
    let Some(gpu) = open(GpuOptions { cache_dir: Some(dir.clone()), ..Default::default() }) else { return };
    // Whatever the clock says: a power of two, and all that was made for it is given back.
    let width = measure_width(&gpu).unwrap();
    assert!(width.is_power_of_two() && width <= FULL_WIDTH, "{width}");
    assert_eq!(gpu.memory().snapshot().total, 0);
    let adapter = AdapterChoice { allow_software: true, ..Default::default() };
    let opened = |options: GpuOptions| Context::open(&GpuOptions { adapter: adapter.clone(), ..options }).unwrap();
    let kept = |context: &Context| {
        let files = std::fs::read_dir(&dir).map(|d| d.map(|e| e.unwrap().path()).collect::<Vec<_>>());
        let file = files.unwrap_or_default().into_iter().find(|p| p.extension().is_some_and(|e| e == "width"));
        assert_eq!(file.is_some(), !context.adapter().is_software(), "software is not measured");
        file.map(|f| std::fs::read_to_string(f).unwrap().trim().parse::<u32>().unwrap())
    };
    let first = opened(GpuOptions { cache_dir: Some(dir.clone()), ..Default::default() });
    assert_eq!(kept(&first).unwrap_or(first.gpu().width()), first.gpu().width());
    let again = opened(GpuOptions { cache_dir: Some(dir.clone()), ..Default::default() });
    assert_eq!(again.gpu().width(), first.gpu().width());
    let given = opened(GpuOptions { width: 8, cache_dir: Some(dir.clone()), ..Default::default() });
    assert_eq!(given.gpu().width(), 8);
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn pipelines_compile_ahead_on_many_threads() {
    for v in variants() {
        let Some(gpu) = open(GpuOptions { features: v.gpu.features(), ..Default::default() }) else { return };
        let scope = gpu.scope(Phase::Load);
        let (x, y) = (upload_words(&gpu, &[1; 64]), upload_words(&gpu, &[0; 64]));
        let before = gpu.counters().phase(Phase::Load);
        let mut survey = gpu.survey(&scope);
        for factor in (0..12).chain(0..12) {
            survey.record(scale(&x, &y, 64, factor)).unwrap();
        }
        assert_eq!(survey.stats().dispatches, 0, "a survey keeps no commands");
        let wanted = survey.into_survey();
        assert_eq!((wanted.len(), gpu.counters().phase(Phase::Load).since(&before).pipelines), (24, 0));
        gpu.compile(&wanted, &scope).unwrap();
        assert_eq!(gpu.counters().phase(Phase::Load).since(&before).pipelines, 12);
        assert_eq!(gpu.pipelines().stats().misses, 12);
        let mut r = gpu.recorder("work", &scope);
        (0..12).for_each(|f| r.record(scale(&x, &y, 64, f)).unwrap());
        r.submit().unwrap();
        assert_eq!(download_words(&gpu, &y, 64), [12; 64], "{}", v.name);
        assert_eq!(gpu.pipelines().stats().misses, 12, "{}: nothing was compiled later", v.name);
        let bad = Variant { constants: vec![("NO_SUCH", 1)], ..Default::default() };
        assert!(gpu.compile(&[Wanted::Kernel(&SCALE, bad)], &scope).is_err());
    }
}

#[test]
fn an_arena_shares_buffers_and_the_account_shows_it() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let scope = gpu.scope(Phase::Other);
    let mut plan = ArenaPlan::default();
    let a = plan.add("a", 4096, 0b01);
    let b = plan.add("b", 1024, 0b10);
    let c = plan.add("c", 512, ALWAYS);
    let before = gpu.memory().snapshot().total;
    let arena = plan.build(&gpu, MemoryClass::Scratch, &scope).unwrap();
    assert_eq!((arena.requested_bytes(), gpu.memory().snapshot().total - before), (5632, 4608));
    assert_eq!((arena.buffer(a).label(), arena.buffer(b).label(), arena.buffer(c).label()), ("a+b", "a+b", "c"));
    let budget = GpuOptions { memory_budget: 4096, ..Default::default() };
    let small = open(budget).unwrap();
    assert!(matches!(plan.build(&small, MemoryClass::Scratch, &scope), Err(Error::OutOfMemory(_))));
    assert_eq!(small.memory().snapshot().total, 0, "what was made before the failure is gone");
}

#[test]
fn idle_buffers_give_way_when_the_budget_is_nearly_used_up() {
    let Some(gpu) = open(GpuOptions { memory_budget: 1 << 20, ..Default::default() }) else { return };
    let scope = gpu.scope(Phase::Other);
    drop(gpu.lease("first", 1 << 18, &scope).unwrap());
    assert_eq!(gpu.pool().stats().idle_bytes, 1 << 18);
    let small = gpu.storage("small", 1 << 16, MemoryClass::Other, &scope).unwrap();
    assert_eq!(gpu.pool().stats().idle, 1, "there is room enough");
    let large = gpu.storage("large", 7 << 17, MemoryClass::Other, &scope).unwrap();
    let s = gpu.pool().stats();
    assert_eq!((s.idle, s.trimmed), (0, 1), "the idle buffer was freed for it");
    assert!(matches!(gpu.lease("second", 1 << 18, &scope), Err(Error::OutOfMemory(m)) if m.contains("budget")));
    assert!(gpu.pool().leaks().is_empty());
    drop((small, large));
    let lease = gpu.lease("third", 1000, &scope).unwrap();
    let s = gpu.pool().stats();
    assert_eq!((s.leased, s.leased_bytes, s.requested_bytes, s.peak_leased_bytes), (1, 1024, 1000, 1 << 18));
    assert_eq!(gpu.pool().leaks()[0].label, "third");
    drop(lease);
    assert_eq!(gpu.pool().stats().requested_bytes, 0);
}
