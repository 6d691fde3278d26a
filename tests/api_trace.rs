//! The counters against an independent count: wgpu's own trace of every call made of it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use doppler::gpu::{AdapterChoice, Features, GpuOptions};
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, ModelOptions, SessionOptions};

/// How often each call stands in a trace.
#[derive(Debug, PartialEq, Eq)]
struct Calls {
    submits: u64,
    dispatches: u64,
    passes: u64,
    buffers: u64,
    bind_groups: u64,
    pipelines: u64,
    uploads: u64,
}

fn calls_in(dir: &Path) -> Calls {
    let text = std::fs::read_to_string(dir.join("trace.ron")).expect("trace.ron");
    // Strings (shader sources, labels) could hold anything.
    let mut code = String::with_capacity(text.len());
    let mut in_string = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => _ = chars.next(),
            '"' => in_string = !in_string,
            _ if in_string => {}
            _ => code.push(c),
        }
    }
    let count = |name: &str| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let alone = |(i, _): &(usize, &str)| !code[..*i].ends_with(word) && !code[i + name.len()..].starts_with(word);
        code.match_indices(name).filter(alone).count() as u64
    };
    Calls {
        submits: count("Submit"),
        dispatches: count("DispatchWorkgroups") + count("DispatchWorkgroupsIndirect"),
        passes: count("RunComputePass"),
        buffers: count("CreateBuffer"),
        bind_groups: count("CreateBindGroup"),
        pipelines: count("CreateComputePipeline"),
        uploads: code.match_indices("WriteBuffer(").filter(|(at, _)| is_read_again(&code[*at..])).count() as u64,
    }
}

/// Whether the data of the write that `code` starts with goes anywhere. A buffer that is given back while it is mapped for writing stands in a
/// trace as written, though nothing was.
fn is_read_again(code: &str) -> bool {
    let write = code.split_once("queued: ").expect("a write says whether it was queued");
    let id = write.0.split_once("id: ").and_then(|(_, s)| s.split_once(',')).expect("a write names its buffer").0;
    write.1.starts_with("true") || write.1.contains(&format!("src: {id},"))
}

/// An empty directory for a trace; nothing if there is to be no device.
fn place(name: &str) -> Option<PathBuf> {
    if std::env::var("DOPPLER_NO_GPU").is_ok_and(|v| v == "1") {
        println!("skipped: DOPPLER_NO_GPU=1");
        return None;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("api-trace-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    Some(dir)
}

#[test]
fn the_bench_reports_what_wgpu_was_asked_to_do() {
    let Some(dir) = place("bench") else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_doppler"))
        .arg("--api-trace")
        .arg(&dir)
        .args(["bench", "inference", "assets/hearth-5m-Q8_0.gguf", "--runs", "2", "--warmup", "1"])
        .args(["--prompt-tokens", "3,40", "--gen", "6", "--tokens-per-submit", "4", "--json", "-"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let phases = report["models"][0]["context_counters"].as_object().unwrap();
    let sum = |key: &str| phases.values().map(|p| p[key].as_u64().unwrap_or_else(|| panic!("no {key}: {p}"))).sum();
    let reported = Calls {
        submits: sum("submits"),
        dispatches: sum("dispatches"),
        passes: sum("passes"),
        buffers: sum("buffers"),
        bind_groups: sum("bind_groups"),
        pipelines: sum("pipelines"),
        uploads: sum("uploads"),
    };
    assert!(reported.submits > 10 && reported.dispatches > 500, "{reported:?}");
    assert_eq!(calls_in(&dir), reported, "left what wgpu wrote down, right what the bench wrote");
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn counters_equal_what_wgpu_was_asked_to_do() {
    let all = Features::ALL;
    for (name, features, timing) in
        [("all", all, false), ("timed", all, true), ("no-immediates", Features { immediates: false, ..all }, false)]
    {
        let Some(dir) = place(name) else { return };
        let context = Context::open(&GpuOptions {
            adapter: AdapterChoice { allow_software: true, ..Default::default() },
            features,
            timing,
            api_trace: Some(dir.clone()),
            ..Default::default()
        })
        .unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/hearth-5m-Q8_0.gguf");
        let options = ModelOptions { n_ctx: 64, prefill_chunk: 8, ..Default::default() };
        let model = context.load_model(&path, &options, &mut |_, _| Ok(())).unwrap();
        // Two sessions, so that cache and slots grow; several tokens a submit; logits; a truncated session goes on.
        for tokens_per_submit in [1, 3] {
            let mut s = model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).unwrap();
            s.append_text("Once upon a time there was a mouse", false).unwrap();
            let sampling = SamplingOptions { repeat_penalty: 1.2, ..SamplingOptions::default() };
            let generate = GenerateOptions { max_tokens: 7, sampling, ignore_eos: true, ..Default::default() };
            s.generate(&generate, &mut |_| ControlFlow::Continue(())).unwrap();
            s.truncate(5).unwrap();
            s.eval(&[5, 6, 7], &mut |_| Ok(())).unwrap();
        }
        let total = context.stats().counters.total();
        let ours = Calls {
            submits: total.submits,
            dispatches: total.dispatches,
            passes: total.passes,
            buffers: total.buffers,
            bind_groups: total.bind_groups,
            pipelines: total.pipelines,
            uploads: total.uploads,
        };
        drop(model);
        drop(context);
        assert!(ours.submits > 10 && ours.dispatches > 500, "{ours:?}");
        assert_eq!(calls_in(&dir), ours, "{name}: left what wgpu wrote down, right what was counted");
        let _ = std::fs::remove_dir_all(&dir);
    }
}
