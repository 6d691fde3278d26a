//! What loading leaves to be done later: nothing. And what a load that fails leaves behind: nothing.

use std::path::PathBuf;

use doppler::Error;
use doppler::gpu::{FaultPoint, Features, Guard, Phase};
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, ModelOptions, SessionOptions};

use crate::common::*;

/// Pipelines compiled for anything but loading.
fn compiled_since(context: &Context) -> u64 {
    let counters = context.stats().counters;
    Phase::ALL.iter().filter(|&&p| p != Phase::Load).map(|&p| counters.phase(p).pipelines).sum()
}

/// The model of the repository, and dense, mixed and recurrent ones if present: a few in a regular run.
fn files() -> Vec<PathBuf> {
    let few = ["gemma3", "qwen3moe", "gpt-oss", "lfm2", "qwen35"];
    let more = ["llama3", "qwen3", "mixtral", "granitehybrid", "phi3"];
    let families = few.into_iter().chain(more.into_iter().filter(|_| long_tests()));
    let golden = families.filter_map(|f| Some(shared(&format!("golden/{f}"))?.join("model-f16.gguf")));
    [asset()].into_iter().chain(golden.filter(|f| f.exists())).collect()
}

#[test]
fn no_pipeline_is_compiled_after_loading() {
    for file in files() {
        for exact in [false, true].into_iter().filter(|exact| !exact || file == asset() || long_tests()) {
            let Some(context) = wide_context() else { return };
            let name = format!("{}, exact {exact}", file.display());
            let options = ModelOptions { n_ctx: 640, prefill_chunk: 512, exact, ..Default::default() };
            let model = context.load_model(&file, &options, &mut |_, _| Ok(())).unwrap();
            let loaded = context.stats().counters.phase(Phase::Load).pipelines;
            assert!(loaded > 0 && compiled_since(&context) == 0, "{name}");
            let mut s = model.open_session(&SessionOptions { tokens_per_submit: 2, ..Default::default() }).unwrap();
            let vocab = model.info().n_vocab;
            let greedy = SamplingOptions::greedy();
            let penalised = SamplingOptions { temperature: 0.8, repeat_penalty: 1.2, ..SamplingOptions::default() };
            for rows in [1u32, 2, 3, 5, 16, 17, 64, 512] {
                // How a token is drawn does not depend on the length of the prompt before it.
                let drawn = [&greedy, &penalised].into_iter().take(if rows < 3 || long_tests() { 2 } else { 1 });
                for sampling in drawn {
                    s.reset();
                    s.append_tokens(&(0..rows).map(|i| (i * 7 + 3) % vocab).collect::<Vec<_>>()).unwrap();
                    let options = GenerateOptions {
                        max_tokens: 4,
                        sampling: sampling.clone(),
                        ignore_eos: true,
                        ..Default::default()
                    };
                    s.generate(&options, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
                    assert_eq!(compiled_since(&context), 0, "{name}: a prompt of {rows} tokens");
                }
            }
            let c = s.stats().counters;
            let (prefill, decode) = (c.phase(Phase::Prefill), c.phase(Phase::Decode));
            assert_eq!((decode.buffers, decode.bind_groups), (0, 0), "{name}");
            assert_eq!((prefill.buffers, prefill.pipelines), (0, 0), "{name}");
            assert_eq!(context.stats().counters.phase(Phase::Load).pipelines, loaded, "{name}");
        }
    }
}

/// Where the time of loading went is in the statistics.
#[test]
fn loading_says_where_its_time_went() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = context.load_model(&asset(), &ModelOptions::default(), &mut |_, _| Ok(())).unwrap();
    let s = model.stats();
    let parts = [s.load.open_ns, s.load.weights.fill_ns, s.load.weights.allocate_ns, s.load.weights.prewarm_ns];
    assert!(parts.iter().chain([&s.load.vocabulary_ns]).all(|&ns| ns > 0 && ns <= s.load_ns), "{s:?}");
    assert!(s.load.weights.upload.repack_ns > 0 && s.load.weights.upload.submit_ns > 0, "{s:?}");
    let uploaded = context.stats().counters.phase(Phase::Load).upload_bytes;
    assert!(uploaded >= s.file_bytes, "{uploaded} of {}", s.file_bytes);
    assert!(s.load_summary().contains("GB/s"));
}

/// Several threads repack the larger file; whatever fails, whenever, there is a typed error and nothing is left over.
#[test]
fn a_failure_at_any_step_of_loading_leaves_nothing_behind() {
    let large = shared("models/hearth").map(|d| d.join("hearth-5m-f16.gguf"));
    for file in [asset()].into_iter().chain(large) {
        let Some(context) = context(Features::ALL, Guard::default()) else { return };
        let gpu = context.gpu().clone();
        let mut failures = 0;
        for point in FaultPoint::ALL {
            // Buffers and copies are many and alike.
            let step = match point {
                FaultPoint::Buffer | FaultPoint::Record => 13,
                FaultPoint::Pipeline => 5,
                _ => 1,
            };
            let options = ModelOptions { n_ctx: 64, prewarm: point == FaultPoint::Pipeline, ..Default::default() };
            for nth in (1..).step_by(step) {
                context.purge_caches();
                gpu.inject_fault(point, nth);
                let outcome = context.load_model(&file, &options, &mut |_, _| Ok(()));
                gpu.inject_fault(point, 0);
                let what = format!("{}: {point:?} {nth}", file.display());
                match outcome {
                    Ok(_) => break,
                    Err(e) => assert!(matches!(&e, Error::Gpu(m) if m.contains("injected")), "{what}: {e}"),
                }
                failures += 1;
                assert!(gpu.pool().leaks().is_empty(), "{what}");
                gpu.pool().trim();
                let m = gpu.memory().snapshot();
                assert_eq!((m.live_buffers, m.total), (0, 0), "{what}");
            }
        }
        println!("{failures} failures were injected");
        assert!(failures > 15, "{failures} failures were injected");
        context.load_model(&file, &ModelOptions::default(), &mut |_, _| Ok(())).unwrap();
    }
}
