//! What mixtures of experts add to running a model, on the tiny ones of the references.

use std::ops::ControlFlow;
use std::path::Path;

use doppler::gpu::{Features, Guard, GuardMode, Phase};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, ModelOptions, SessionOptions};

use crate::common::{Reference, context, load, logits, max_error, q8_0, rewrite, session, shared};

const MODELS: [&str; 3] = ["golden/mixtral", "golden/qwen2moe", "golden/gpt-oss"];

const PROMPT: [u32; 7] = [1, 900, 17, 300, 45, 6, 77];

fn greedy(max_tokens: u32) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() }
}

/// The steady state of decode under a strict guard: one submit and one readback a token, nothing made. The experts of a token are the
/// device's own business.
#[test]
fn steady_decode_makes_nothing() {
    MODELS.into_iter().for_each(steady_decode_makes_nothing_in);
}

fn steady_decode_makes_nothing_in(model: &str) {
    let Some(dir) = shared(model) else { return };
    let guard = Guard { mode: GuardMode::Strict, ..Guard::default() };
    let Some(context) = context(Features::ALL, guard) else { return };
    let model = load(&context, &dir.join("model-f16.gguf"), KvType::F16, 512, 0);
    let mut s = session(&model);
    s.append_tokens(&PROMPT).expect("append");
    s.generate(&greedy(1), &mut |_| ControlFlow::Continue(())).expect("first token");
    let before = s.stats().counters;
    let out = s.generate(&greedy(64), &mut |_| ControlFlow::Continue(())).expect("generate");
    assert_eq!(out.tokens.len(), 64);
    let stats = s.stats();
    let cost = stats.counters.phase(Phase::Decode).since(before.phase(Phase::Decode));
    assert_eq!((cost.submits, cost.required_readbacks()), (63, 63));
    assert_eq!((cost.buffers, cost.bind_groups, cost.pipelines), (0, 0, 0));
    println!("{} dispatches a token", cost.dispatches / 63);
}

/// The same text with one token a submit and with many: nothing of a token's routing is left for the next.
#[test]
fn tokens_in_one_submit() {
    MODELS.into_iter().for_each(tokens_in_one_submit_in);
}

fn tokens_in_one_submit_in(model: &str) {
    let Some(dir) = shared(model) else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &dir.join("model-f16.gguf"), KvType::F32, 512, 0);
    let text = |tokens_per_submit: u32| {
        let options = SessionOptions { tokens_per_submit, ..Default::default() };
        let mut s = model.open_session(&options).expect("session");
        s.append_tokens(&PROMPT).expect("append");
        s.generate(&greedy(40), &mut |_| ControlFlow::Continue(())).expect("generate").tokens
    };
    let one = text(1);
    assert_eq!(one.len(), 40);
    for many in [3, 16] {
        assert_eq!(text(many), one, "{many} tokens a submit");
    }
}

/// After prewarming, prompts below and beyond the number of rows from which experts are grouped compile nothing.
#[test]
fn prewarmed_prompts_compile_nothing() {
    MODELS.into_iter().for_each(prewarmed_prompts_compile_nothing_in);
}

fn prewarmed_prompts_compile_nothing_in(model: &str) {
    let Some(dir) = shared(model) else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let options =
        ModelOptions { n_ctx: 512, prefill_chunk: 0, kv_type: KvType::F16, prewarm: true, exact: true, quantize: None };
    let model = context.load_model(&dir.join("model-f16.gguf"), &options, &mut |_, _| Ok(())).expect("load");
    for rows in [1, 2, 4, 5, 9, 10, 11, 100] {
        let mut s = session(&model);
        let prompt: Vec<u32> = (0..rows).map(|i| PROMPT[i % PROMPT.len()]).collect();
        s.append_tokens(&prompt).expect("append");
        s.generate(&greedy(2), &mut |_| ControlFlow::Continue(())).expect("generate");
        let counters = s.stats().counters;
        let made = [Phase::Prefill, Phase::Decode].map(|p| counters.phase(p).pipelines);
        assert_eq!(made, [0, 0], "a prompt of {rows} tokens");
    }
}

/// Gate and up of each expert in one tensor, as newer converters write them, and in two formats: the same logits.
#[test]
fn fused_and_mixed_tensors() {
    let Some(dir) = shared("golden/mixtral") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let path = dir.join("model-f16.gguf");
    let of = |path: &Path| {
        let model = load(&context, path, KvType::F32, 512, 64);
        let prompt: Vec<u32> = (0..40).map(|i| PROMPT[i % PROMPT.len()] + i as u32).collect();
        let all = logits(&mut session(&model), &prompt);
        // Entry by entry as well as in tiles.
        [all, logits(&mut session(&model), &PROMPT)].concat()
    };
    let want = of(&path);
    let fused = rewrite(&path, "fused", |tensors| {
        for layer in 0..3 {
            let mut take = |part: &str| {
                let name = format!("blk.{layer}.{part}.weight");
                tensors.remove(tensors.iter().position(|t| t.0 == name).expect("tensor"))
            };
            let ((_, dims, ty, gate), (_, _, _, up)) = (take("ffn_gate_exps"), take("ffn_up_exps"));
            let one = gate.len() / dims[2] as usize;
            let data = gate.chunks(one).zip(up.chunks(one)).flat_map(|(g, u)| [g, u].concat()).collect();
            tensors.push((
                format!("blk.{layer}.ffn_gate_up_exps.weight"),
                vec![dims[0], 2 * dims[1], dims[2]],
                ty,
                data,
            ));
        }
    });
    let mixed = rewrite(&path, "mixed", |tensors| {
        for (_, _, ty, data) in tensors.iter_mut().filter(|t| t.0.contains("ffn_gate_exps")) {
            let wide = data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
            *data = wide.flat_map(f32::to_le_bytes).collect();
            *ty = 0;
        }
    });
    for other in [fused, mixed] {
        let got = of(&other);
        std::fs::remove_file(&other).expect("remove");
        let error = max_error(&got, &want);
        assert!(error <= 1e-5, "{}: {error}", other.display());
    }
}

#[test]
fn tensors_of_experts_are_checked() {
    let Some(dir) = shared("golden/mixtral") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let path = dir.join("model-f16.gguf");
    for part in ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        let name = format!("blk.1.{part}.weight");
        let missing = rewrite(&path, "missing", |tensors| tensors.retain(|t| t.0 != name));
        // The same bytes in another shape.
        let shape = rewrite(&path, "shape", |tensors| {
            let t = tensors.iter_mut().find(|t| t.0 == name).expect("tensor");
            let last = t.1.len() - 1;
            t.1[last] /= 2;
            t.1[0] *= 2;
        });
        for other in [missing, shape] {
            let result = context.load_model(&other, &ModelOptions::default(), &mut |_, _| Ok(()));
            std::fs::remove_file(&other).expect("remove");
            let text = result.expect_err("refused").to_string();
            assert!(text.contains(&name), "{text} does not name {name}");
        }
    }
}

/// Experts whose rows are bytes, in two dispatches, against the same weights in single precision: without a shared expert, with one that has a weight,
/// and with one that has none.
#[test]
fn experts_of_bytes_are_near_exact_ones() {
    for family in ["mixtral", "qwen2moe", "qwen3moe", "granitehybrid", "qwen35moe"] {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        let Some(context) = context(Features::ALL, Guard::default()) else { return };
        let path = rewrite(&dir.join("model-f16.gguf"), &format!("q8-{family}"), |tensors| {
            for (name, _, ty, data) in tensors.iter_mut() {
                if ["_exps", "_shexp", "attn_output"].iter().any(|part| name.contains(part)) && *ty == 1 {
                    (*ty, *data) = (8, q8_0(data));
                }
            }
        });
        let meta: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(dir.join("meta.json")).expect("meta")).expect("json");
        let reference = Reference::open(dir.join("reference.safetensors"));
        let open = |exact: bool| {
            let options =
                ModelOptions { n_ctx: 512, prefill_chunk: 4, kv_type: KvType::F32, exact, ..Default::default() };
            context.load_model(&path, &options, &mut |_, _| Ok(())).expect("load")
        };
        let models = [open(true), open(false)];
        let mut compared = 0;
        for i in 0..3 {
            // Bytes move the router's logits: nothing is said where two experts are near.
            let margin = meta["prompts"][i]["min_router_margin_prefill"].as_f64().unwrap_or(f64::INFINITY);
            let ids = reference.ids(&format!("prompt{i}.ids"));
            let [want, got] = models.each_ref().map(|m| logits(&mut session(m), &ids));
            let error = max_error(&want, &got);
            println!("{family} prompt {i}: margin {margin}, error {error}");
            compared += usize::from(margin > 0.09);
            assert!(margin <= 0.09 || error <= 0.4, "{family} prompt {i}: {error}");
        }
        let [exact, fast] = models.each_ref().map(|m| {
            let mut s = session(m);
            s.append_tokens(&PROMPT).expect("append");
            s.generate(&greedy(9), &mut |_| ControlFlow::Continue(())).expect("generate");
            s.stats().counters.phase(Phase::Decode).dispatches / 8
        });
        println!("{family}: {exact} dispatches a token, {fast} with bytes; {compared} prompts compared");
        assert!(
            fast < exact && compared > 0,
            "{family}: {fast} dispatches, {exact} of exact products, {compared} prompts"
        );
        std::fs::remove_file(&path).expect("remove");
    }
}
