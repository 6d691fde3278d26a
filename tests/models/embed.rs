//! Embeddings: through the output matrix they are the references' logits; pooled they are what f64 makes of the rows.

use std::path::Path;

use doppler::Error;
use doppler::format::{Gguf, Value};
use doppler::gpu::{Features, Guard, Phase};
use doppler::model::KvType;
use doppler::model::arch::read_spec;
use doppler::session::{Context, EmbedOptions, Model, ModelOptions, Pooling};

use crate::common::*;

const PLAIN: EmbedOptions = EmbedOptions { pooling: Some(Pooling::None), normalize: false, parse_special: false };

fn rows(model: &Model, ids: &[u32]) -> Vec<f32> {
    model.embed_tokens(&[ids], &PLAIN).expect("embed").values
}

/// The weights of a file's output matrix, f16 in these files.
fn head(path: &Path) -> Vec<f64> {
    let file = Gguf::open(path).expect("open");
    let tensor = file.tensor("output.weight").or_else(|| file.tensor("token_embd.weight")).expect("a head");
    assert_eq!(tensor.ggml_type, 1, "f16");
    let data = file.data(tensor);
    let halves = data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]));
    halves.map(f64::from).collect()
}

/// The rows are those that the head reads: the file's output matrix in f64 makes the references' logits of them. Norms with and without bias, soft
/// caps, factors on logits, mixtures, recurrences.
#[test]
fn rows_become_the_reference_logits() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for family in ["llama3", "gemma2", "gpt2", "granite", "cohere2", "qwen3moe", "lfm2", "granitehybrid"] {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        let path = dir.join("model-f16.gguf");
        let spec = read_spec(&Gguf::open(&path).expect("open")).expect("spec");
        let (reference, head, n) =
            (Reference::open(dir.join("reference.safetensors")), head(&path), spec.n_embd as usize);
        for chunk in [256, 16] {
            let model = load(&context, &path, KvType::F32, 256, chunk);
            let mut worst = 0f64;
            for prompt in ["prompt1", "prompt2"] {
                let ids = reference.ids(&format!("{prompt}.ids"));
                let got = rows(&model, &ids);
                assert_eq!(got.len(), ids.len() * n);
                let want = reference.floats(&format!("{prompt}.logits"));
                for (row, want) in got.chunks_exact(n).zip(want.chunks_exact(spec.n_vocab as usize)) {
                    for (w, &want) in head.chunks_exact(n).zip(want) {
                        let dot: f64 = row.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum();
                        let (scaled, cap) = (dot * f64::from(spec.logit_scale), f64::from(spec.logit_softcap));
                        let logit = if cap > 0.0 { cap * (scaled / cap).tanh() } else { scaled };
                        worst = worst.max((logit - f64::from(want)).abs());
                    }
                }
            }
            println!("{family}, chunks of {chunk}: largest logit error {worst:.1e}");
            assert!(worst <= 1e-3, "{family}: {worst}");
        }
    }
}

/// What a text's rows become, in f64.
fn pooled(rows: &[f32], n: usize, pooling: Pooling, unit: bool) -> Vec<f64> {
    let count = rows.len() / n;
    let row = |i: usize| rows[i * n..][..n].iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let mut out = match pooling {
        Pooling::None => rows.iter().map(|&x| f64::from(x)).collect(),
        Pooling::Mean => {
            (0..n).map(|c| (0..count).map(|r| f64::from(rows[r * n + c])).sum::<f64>() / count as f64).collect()
        }
        Pooling::Cls => row(0),
        Pooling::Last => row(count - 1),
    };
    if unit {
        for row in out.chunks_exact_mut(n) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
    out
}

/// Texts of all lengths, together and alone, in chunks that hold several of them and in chunks that hold none whole.
#[test]
fn pooling_is_what_the_rows_say() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for family in ["llama3", "gemma2", "lfm2"] {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        let reference = Reference::open(dir.join("reference.safetensors"));
        let long = reference.ids("prompt3.ids");
        let lens = [3, 1, 40, 17, 233, 64, 65, 2, 1, 100];
        let texts: Vec<&[u32]> =
            lens.iter().enumerate().map(|(i, &n)| &long[if n < 100 { i * 7 } else { 0 }..][..n]).collect();
        for chunk in [256, 48] {
            let model = load(&context, &dir.join("model-f16.gguf"), KvType::F32, 256, chunk);
            let n = model.info().n_embd as usize;
            let alone: Vec<Vec<f32>> = texts.iter().map(|t| rows(&model, t)).collect();
            for pooling in Pooling::ALL {
                for normalize in [false, true].into_iter().filter(|n| !n || pooling == Pooling::Mean) {
                    let options = EmbedOptions { pooling: Some(pooling), normalize, parse_special: false };
                    let got = model.embed_tokens(&texts, &options).expect("embed");
                    let want: Vec<f64> = alone.iter().flat_map(|r| pooled(r, n, pooling, normalize)).collect();
                    assert_eq!(got.values.len(), want.len());
                    assert_eq!(got.tokens, lens.map(|n| n as u32));
                    let size = want.iter().fold(0f64, |m, x| m.max(x.abs()));
                    for (i, (g, w)) in got.values.iter().zip(&want).enumerate() {
                        let error = (f64::from(*g) - w).abs();
                        assert!(
                            error <= 2e-4 * size,
                            "{family}, {pooling:?}, unit {normalize}, chunks of {chunk}: number {i} of {}: {g}, wanted {w}",
                            want.len()
                        );
                    }
                }
            }
            assert_eq!(model.stats().kv.used, 0);
        }
    }
}

/// A conversation does not notice; nor does a strict guard, when one batch was made before and caches are purged.
#[test]
fn embedding_disturbs_nothing_and_keeps_strict_budgets() {
    for (name, features) in feature_sets() {
        let Some(context) = context(features, Guard::PRODUCTION) else { return };
        let options = ModelOptions { n_ctx: 128, prefill_chunk: 16, prewarm: false, ..Default::default() };
        let model = context.load_model(&shallow(), &options, &mut |_, _| Ok(())).expect("load");
        let open = || {
            let mut s = session(&model);
            s.append_text("Once upon a time", false).expect("append");
            s
        };
        let want = generate(&mut open(), &greedy(5));
        let mut s = open();
        let texts = [
            "a mouse",
            "a cat and a mouse",
            "The house was old, and nobody had lived there for as long as anybody could remember.",
        ];
        let mut vectors = Vec::new();
        let out = s.generate(&greedy(5), &mut |_| {
            vectors.push(model.embed(&texts, &EmbedOptions::default()).expect("embed").values);
            context.purge_caches();
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(out.expect("generate").tokens, want, "{name}");
        assert!(vectors.iter().all(|v| *v == vectors[0]), "{name}: the same bits each time");
        let before = context.stats().counters;
        model.embed(&texts, &EmbedOptions::default()).expect("embed");
        let p = context.stats().counters.phase(Phase::Prefill).since(before.phase(Phase::Prefill));
        // The first two fit in one batch; the last takes two.
        let bytes = 3 * u64::from(model.info().n_embd) * 4;
        assert_eq!((p.submits, p.required_readbacks(), p.required_readback_bytes()), (3, 2, bytes), "{name}");
        assert_eq!((p.buffers, p.bind_groups, p.pipelines), (0, 0, 0), "{name}");
    }
}

/// A small model with these keys beside its own.
fn with_key(name: &str, value: Value) -> std::path::PathBuf {
    rewrite_keys(&asset(), "embed", &[(name, value)], |_| ())
}

fn open(context: &Context, path: &Path) -> doppler::Result<Model> {
    context.load_model(path, &ModelOptions { n_ctx: 64, ..Default::default() }, &mut |_, _| Ok(()))
}

#[test]
fn the_file_says_how_to_pool() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    assert_eq!(open(&context, &asset()).expect("load").pooling(), Ok(Pooling::Mean));
    let options = EmbedOptions { pooling: None, ..EmbedOptions::default() };
    for (number, want) in [(0, Pooling::None), (1, Pooling::Mean), (2, Pooling::Cls), (3, Pooling::Last)] {
        let path = with_key("llama.pooling_type", Value::U32(number));
        let model = open(&context, &path).expect("load");
        assert_eq!(model.pooling(), Ok(want));
        assert_eq!(model.embed(&["a mouse"], &options).expect("embed").pooling, want);
    }
    for (number, word) in [(4, "rank"), (9, "9")] {
        let model = open(&context, &with_key("llama.pooling_type", Value::U32(number))).expect("load");
        let error = model.embed(&["a mouse"], &options).expect_err("refused");
        assert!(matches!(&error, Error::Unsupported(m) if m.contains("pooling_type") && m.contains(word)), "{error}");
        // Whoever knows better says so.
        model.embed(&["a mouse"], &EmbedOptions { pooling: Some(Pooling::Last), ..options }).expect("embed");
    }
    let error = open(&context, &with_key("llama.attention.causal", Value::Bool(false))).expect_err("refused");
    assert!(matches!(&error, Error::Unsupported(m) if m.contains("attention.causal")), "{error}");
}

#[test]
fn texts_that_cannot_be_embedded_are_named() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &asset(), KvType::F16, 64, 32);
    let refuse = |texts: &[&[u32]], word: &str| {
        let error = model.embed_tokens(texts, &EmbedOptions::default()).expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
        error
    };
    assert!(matches!(refuse(&[&[5], &[]], "text 1"), Error::InvalidArgument(_)));
    assert!(matches!(refuse(&[&[5], &[6; 65]], "text 1"), Error::ContextFull(_)));
    assert!(matches!(refuse(&[&[5], &[model.info().n_vocab]], "text 1: token"), Error::InvalidArgument(_)));
    assert_eq!(model.embed_tokens(&[], &EmbedOptions::default()).expect("nothing").values, [0f32; 0]);
    model.embed_tokens(&[&[6; 64]], &EmbedOptions::default()).expect("as long as the context");
}
