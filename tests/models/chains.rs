//! Chains of operations in one dispatch: what is drawn is what is drawn without them, and where a wait ends in vain it is computed again.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use doppler::gpu::{CHAINS_VARIABLE, FaultPoint, Features, Guard, Phase};
use doppler::quant::{Format, by_ggml_type};
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, Model, ModelOptions, SessionOptions};

use crate::common::*;

/// Tests that compare steps of one kind with steps of another, or count what they cost.
const AGAIN: &[&str] = &[
    "after_load::no_pipeline_is_compiled_after_loading",
    "batch::companions_change_nothing",
    "chains::a_wait_in_vain_is_done_again_without_chains",
    "chains::chains_are_fewer_dispatches_and_the_same_tokens",
    "chains::chains_of_other_models_are_the_same_tokens",
    "hearth::steady_decode_makes_nothing",
    "speculation::ends_are_those_of_plain_decoding",
    "together::each_says_what_it_says_alone",
];

/// A context whose device has chains.
fn with_chains(features: Features) -> Option<Context> {
    let context = context(features, Guard::default())?;
    if !context.gpu().features().chains {
        println!("skipped: no chains on this device");
        return None;
    }
    Some(context)
}

/// Tokens after the first: three submits of four, or two of six.
const TOLD: u32 = 12;

/// What a model says by chance, and the dispatches of a step.
fn told(model: &Model, tokens_per_submit: u32) -> (Vec<u32>, u64) {
    let sampling = SamplingOptions { temperature: 0.9, repeat_penalty: 1.1, seed: 5, ..SamplingOptions::default() };
    told_by(model, tokens_per_submit, GenerateOptions { sampling, ..Default::default() })
}

/// The same where the largest logit is taken, in steps that could be left out.
fn told_greedily(model: &Model) -> (Vec<u32>, u64) {
    let sampling = SamplingOptions::greedy();
    told_by(model, 6, GenerateOptions { sampling, end_tokens: vec![0], ..Default::default() })
}

fn told_by(model: &Model, tokens_per_submit: u32, options: GenerateOptions) -> (Vec<u32>, u64) {
    let mut s = model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).unwrap();
    s.append_tokens(&[1, 403, 407, 261, 378, 285, 286, 261, 376, 17, 300]).unwrap();
    let options = GenerateOptions { max_tokens: TOLD + 1, ignore_eos: true, ..options };
    let before = *s.stats().counters.phase(Phase::Decode);
    let tokens = s.generate(&options, &mut |_| ControlFlow::Continue(())).unwrap().tokens;
    let cost = s.stats().counters.phase(Phase::Decode).since(&before);
    (tokens, cost.dispatches / u64::from(TOLD))
}

fn load(context: &Context, path: &Path) -> Model {
    let options = ModelOptions { n_ctx: 96, prewarm: true, ..Default::default() };
    context.load_model(path, &options, &mut |_, _| Ok(())).unwrap()
}

/// What blocks of a format hold, as halves.
fn halves(of: &Format, blocks: &[u8]) -> Vec<u8> {
    let mut values = vec![0.0; blocks.len() / of.block_bytes * of.block_len];
    (of.dequantize)(blocks, &mut values);
    values.into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
}

/// With single elements; with experts, and with one beside them that every row uses.
fn other_models() -> Vec<(&'static str, PathBuf)> {
    let elements = rewrite(&shallow(), "halves", |tensors| {
        for (.., ty, data) in tensors {
            if let Some(format) = by_ggml_type(*ty).filter(|f| f.has_bytes()) {
                (*ty, *data) = (1, halves(format, data));
            }
        }
    });
    // A regular run takes one family whose chains have a router and one whose chains have none.
    let families = if long_tests() { &["mixtral", "qwen3moe", "qwen2moe"][..] } else { &["qwen3moe", "qwen2moe"] };
    let experts = families.iter().filter_map(|&family| {
        let path = shared(&format!("golden/{family}"))?.join("model-f16.gguf");
        let quants = rewrite(&path, &format!("chains-{family}"), |tensors| {
            let plain = |t: &&mut Tensor| t.2 == 1 && t.1[0].is_multiple_of(32) && !t.0.contains("ffn_gate_inp");
            for (.., ty, data) in tensors.iter_mut().filter(plain) {
                (*ty, *data) = (8, q8_0(data));
            }
        });
        Some((family, quants))
    });
    [("halves", elements)].into_iter().chain(experts).collect()
}

/// A process of its own, since a driver reads its environment once: with one thread llvmpipe starts workgroups in order, one after another.
#[test]
fn on_a_device_that_starts_workgroups_in_order_nothing_is_different() {
    if std::env::var_os(CHAINS_VARIABLE).is_some() || context(Features::ALL, Guard::default()).is_none() {
        return;
    }
    let me = std::env::current_exe().unwrap();
    let run = Command::new(me)
        .args(AGAIN)
        .args(["--exact", "--test-threads", "2"])
        .env(CHAINS_VARIABLE, "1")
        .env("LP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains(&format!("{} passed", AGAIN.len())), "{said}");
}

#[test]
fn chains_are_fewer_dispatches_and_the_same_tokens() {
    for without in [None, Some("immediates"), Some("subgroups")] {
        let features = Features {
            immediates: without != Some("immediates"),
            subgroups: without != Some("subgroups"),
            ..Features::ALL
        };
        let Some(context) = with_chains(features) else { return };
        let model = load(&context, &asset());
        let (tokens, dispatches) = told(&model, 4);
        // Each layer is attention and a chain of products; before them a step begins, and after them a token is drawn.
        let layers = 6;
        assert!(dispatches < 2 * layers + 9, "{dispatches} dispatches a step");
        // The choice of the largest logit is part of the last chain.
        let (greedy, dispatches_greedy) = told_greedily(&model);
        assert_eq!(dispatches_greedy, 2 * layers + 2);
        // The same workgroups without chains: after a wait that ends in vain.
        context.gpu().inject_fault(FaultPoint::Chain, 1);
        let (again, plain) = told(&model, 4);
        assert_eq!(again, tokens, "without {without:?}");
        assert_eq!(told_greedily(&model).0, greedy, "without {without:?}");
        assert!(plain > dispatches + 3 * layers, "{plain} dispatches a step");
    }
}

#[test]
fn chains_of_other_models_are_the_same_tokens() {
    let Some(context) = with_chains(Features::ALL) else { return };
    for (name, path) in other_models() {
        let model = load(&context, &path);
        let (greedy, _) = told_greedily(&model);
        let (tokens, dispatches) = told(&model, 4);
        context.gpu().inject_fault(FaultPoint::Chain, 1);
        let (again, plain) = told(&model, 4);
        assert_eq!(told_greedily(&model).0, greedy, "{name}");
        println!("{name}: {dispatches} dispatches a step, {plain} without chains");
        assert_eq!(again, tokens, "{name}");
        // Without chains three products are left of a layer's, or six with experts; an expert beside them stands between.
        let saved = match name {
            "halves" => 3 * 3,
            "qwen2moe" => 3,
            _ => 3 * 5,
        };
        assert!(plain >= dispatches + saved, "{name}: {dispatches} dispatches a step, {plain} without chains");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_wait_in_vain_is_done_again_without_chains() {
    let Some(context) = with_chains(Features::ALL) else { return };
    let model = load(&context, &asset());
    let (want, _) = told(&model, 4);
    let (greedy, _) = told_greedily(&model);
    // In the midst of generating.
    context.gpu().inject_fault(FaultPoint::Chain, 3);
    let (got, _) = told(&model, 4);
    assert_eq!(got, want);
    // From then on there are none to fail.
    context.gpu().inject_fault(FaultPoint::Chain, 1);
    let (got, dispatches) = told(&model, 1);
    assert_eq!(got, want);
    assert!(dispatches > 5 * 6, "{dispatches} dispatches a step");
    context.gpu().inject_fault(FaultPoint::Chain, 0);
    // In a batch of steps that could be left out.
    let model = load(&context, &asset());
    context.gpu().inject_fault(FaultPoint::Chain, 2);
    assert_eq!(told_greedily(&model).0, greedy);
    context.gpu().inject_fault(FaultPoint::Chain, 0);
}
