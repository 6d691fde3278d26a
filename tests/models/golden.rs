//! Tiny random models of each family, against transformers.

use std::ops::ControlFlow;

use doppler::gpu::{Features, Guard};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions};

use crate::common::{self, Reference, assert_greedy, context, load, logits, max_error, session, shared};

const ARCHITECTURES: [&str; 5] = ["llama2", "llama3", "mistral", "mixtral", "qwen2moe"];

fn check(context: &Context, arch: &str, kv: KvType, chunk: u32, bound: f32) {
    let Some(dir) = shared(&format!("golden/{arch}")) else { return };
    let reference = Reference::open(dir.join("reference.safetensors"));
    let model = load(context, &dir.join("model-f16.gguf"), kv, 512, chunk);
    let vocab = model.info().n_vocab as usize;
    let mut worst = 0f32;
    for i in 0..4 {
        let ids = reference.ids(&format!("prompt{i}.ids"));
        let mut s = session(&model);
        let all = logits(&mut s, &ids);
        let want = reference.floats(&format!("prompt{i}.logits"));
        for (row, &pos) in reference.ids(&format!("prompt{i}.positions")).iter().enumerate() {
            let got = &all[pos as usize * vocab..][..vocab];
            let error = max_error(got, &want[row * vocab..][..vocab]);
            worst = worst.max(error);
            assert!(
                error <= bound,
                "{arch} prompt {i} position {pos}, chunk {chunk}: logit error {error}, bound {bound}"
            );
        }
        let options = GenerateOptions {
            max_tokens: 32,
            sampling: SamplingOptions::greedy(),
            ignore_eos: true,
            ..Default::default()
        };
        let out = s.generate(&options, &mut |_| ControlFlow::Continue(())).expect("generate");
        let (want, margins) =
            (reference.ids(&format!("prompt{i}.greedy")), reference.floats(&format!("prompt{i}.greedy_margin")));
        assert_greedy(&format!("{arch} prompt {i}"), &out.tokens, &want, &margins, 2.0 * bound);
    }
    println!("{arch}, {} KV, chunks of {chunk}: largest logit error {worst:.2e} (bound {bound:.0e})", kv.name());
}

#[test]
fn f32_kv_whole_chunked_and_token_by_token() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for arch in ARCHITECTURES {
        for chunk in [512, 16, 1] {
            check(&context, arch, KvType::F32, chunk, 1e-3);
        }
    }
}

#[test]
fn f16_kv() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for arch in ARCHITECTURES {
        check(&context, arch, KvType::F16, 256, 0.1);
    }
}

#[test]
fn each_feature_off() {
    for (name, features) in common::feature_sets() {
        let Some(context) = context(features, Guard::default()) else { return };
        println!("features: {name}");
        for arch in ARCHITECTURES {
            check(&context, arch, KvType::F32, 64, 1e-3);
        }
    }
}

#[test]
fn tokenizers() {
    for arch in ARCHITECTURES {
        let Some(dir) = shared(&format!("golden/{arch}")) else { return };
        let Some(context) = context(Features::ALL, Guard::default()) else { return };
        let model = load(&context, &dir.join("model-f16.gguf"), KvType::F16, 64, 0);
        let text = std::fs::read_to_string(dir.join("tokenizer_tests.json")).expect("tokenizer_tests.json");
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).expect("json");
        assert!(!cases.is_empty());
        for case in &cases {
            let text = case["text"].as_str().expect("text");
            let want: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
            assert_eq!(model.tokenizer().encode(text, false, false).expect("encode"), want, "{arch}: {text:?}");
        }
        println!("{arch}: {} tokenizer cases", cases.len());
    }
}
