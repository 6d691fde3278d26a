//! Adapters: against PEFT itself, and against models whose weights were merged in f64.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doppler::error::Error;
use doppler::format::{Gguf, GgufWriter};
use doppler::gpu::{FaultPoint, Features, Guard, Phase};
use doppler::model::{self, EngineOptions, KvType, arch};
use doppler::quant::by_ggml_type;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, Lora, LoraCache, Model, ModelOptions, Session, SessionOptions};

use crate::common::*;
use crate::ending::{by_sixteen, ends_early};

/// Numbers that look random, of about this size.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2) + 1)
    }

    pub fn next(&mut self, size: f32) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    }
}

/// A change of one tensor: A `[rank, k]` and B `[rows, rank]`; of the embedding A is `[n_vocab, rank]`.
pub struct Change {
    pub tensor: String,
    rank: usize,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    sizes: [usize; 2],
}

const EMBEDDING: &str = "token_embd.weight";

impl Change {
    pub fn random(tensor: &str, rank: usize, [rows, k]: [usize; 2], noise: &mut Noise) -> Self {
        let sizes = if tensor == EMBEDDING { [rows, k] } else { [k, rows] };
        let mut values = |n: usize| (0..n * rank).map(|_| noise.next(0.2)).collect();
        Self { tensor: tensor.to_string(), rank, a: values(sizes[0]), b: values(sizes[1]), sizes }
    }

    /// The whole change, row by row of the tensor.
    fn product(&self, scale: f64, at: usize) -> f64 {
        let r = self.rank;
        let sum: f64 = match self.tensor == EMBEDDING {
            true => {
                let (row, column) = (at / self.sizes[1], at % self.sizes[1]);
                (0..r).map(|i| f64::from(self.a[row * r + i]) * f64::from(self.b[column * r + i])).sum()
            }
            false => {
                let (k, row, column) = (self.sizes[0], at / self.sizes[0], at % self.sizes[0]);
                (0..r).map(|i| f64::from(self.a[i * k + column]) * f64::from(self.b[row * r + i])).sum()
            }
        };
        sum * scale
    }
}

pub fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// An adapter file of these changes, before it is written.
pub fn writer(arch: &str, alpha: f32, changes: &[Change]) -> GgufWriter {
    let file = GgufWriter::new()
        .key("general.type", "adapter")
        .key("general.architecture", arch)
        .key("general.name", "a test")
        .key("adapter.type", "lora")
        .key("adapter.lora.alpha", alpha);
    changes.iter().fold(file, |file, c| {
        let (r, [a, b]) = (c.rank as u64, c.sizes.map(|n| n as u64));
        let a_dims = if c.tensor == EMBEDDING { [r, a] } else { [a, r] };
        file.tensor(&format!("{}.lora_a", c.tensor), &a_dims, 0, le(&c.a)).tensor(
            &format!("{}.lora_b", c.tensor),
            &[r, b],
            0,
            le(&c.b),
        )
    })
}

pub fn written(name: &str, file: &GgufWriter) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}.gguf", std::process::id()));
    std::fs::write(&path, file.to_bytes()).expect("write");
    path
}

/// Matrices of a model that an adapter can change.
fn adaptable(file: &Gguf) -> Vec<(String, [usize; 2])> {
    let no = ["_norm", "_exps", "ffn_gate_inp.", "conv1d", "conv.conv", "position_embd", EMBEDDING, "rope_"];
    let matrices = file.tensors().iter().filter(|t| t.dims.len() == 2 && t.name.ends_with(".weight"));
    let free = matrices.filter(|t| !no.iter().any(|part| t.name.contains(part)));
    free.map(|t| (t.name.clone(), [t.dims[1] as usize, t.dims[0] as usize])).collect()
}

/// The model with `changes`, each with a factor, in its weights, in f32.
fn merged(path: &Path, name: &str, changes: &[(&Change, f64)]) -> PathBuf {
    rewrite(path, name, |tensors| {
        for (tensor, dims, ty, data) in tensors.iter_mut() {
            let own: Vec<_> = changes.iter().filter(|(c, _)| c.tensor == *tensor).collect();
            if own.is_empty() {
                continue;
            }
            let mut values = vec![0.0f32; dims.iter().product::<u64>() as usize];
            (by_ggml_type(*ty).expect("a format").dequantize)(data, &mut values);
            for (i, x) in values.iter_mut().enumerate() {
                *x = (f64::from(*x) + own.iter().map(|(c, scale)| c.product(*scale, i)).sum::<f64>()) as f32;
            }
            (*ty, *data) = (0, le(&values));
        }
    })
}

fn set(s: &mut Session, list: &[(&Lora, f32)]) {
    let list: Vec<_> = list.iter().map(|(l, scale)| ((*l).clone(), *scale)).collect();
    s.set_loras(&list, LoraCache::Forget).expect("adapters");
}

fn with(model: &Model, list: &[(&Lora, f32)]) -> Session {
    let mut s = session(model);
    set(&mut s, list);
    s
}

/// Logits of a prompt whose last tokens are evaluated one by one, and two together: rows of every kind of product.
fn all_ways(s: &mut Session, ids: &[u32]) -> Vec<f32> {
    let n = ids.len();
    let mut out = logits(s, &ids[..n - 4]);
    for piece in [&ids[n - 4..n - 3], &ids[n - 3..n - 1], &ids[n - 1..]] {
        out.extend(logits(s, piece));
    }
    out
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lora").join(name)
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    let error = max_error(got, want);
    println!("{what}: {error:.1e}");
    assert!(error <= tolerance, "{what}: {error}");
}

/// `tests/data/lora/make.py` has made adapters with PEFT, and its logits.
#[test]
fn as_peft_computes_them() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let golden = ["llama3", "qwen3", "gemma3"];
    let models = golden.iter().filter_map(|&name| Some((name, shared(&format!("golden/{name}/model-f16.gguf"))?)));
    for (name, path) in [("hearth", asset())].into_iter().chain(models) {
        let reference = Reference::open(fixture(name).join("reference.safetensors"));
        let ids = reference.ids("ids");
        let model = load(&context, &path, KvType::F32, 64, 32);
        let lora = model.load_lora(&fixture(name)).unwrap();
        for (what, list) in [("base", vec![]), ("adapted", vec![(&lora, 1.0)])] {
            let want = reference.floats(what);
            let got = all_ways(&mut with(&model, &list), &ids);
            close(&format!("{name} {what}"), &got[got.len() - want.len()..], &want, 1e-3);
        }
    }
}

#[test]
fn generations_that_end_early_go_on_with_adapters() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = hearth(&context);
    let (_, lora) = hearth_lora(&model, "attn", 3);
    ends_early("hearth with an adapter", &|| {
        let mut s = by_sixteen(&model);
        set(&mut s, &[(&lora, 1.0)]);
        s
    });
}

/// Every matrix that can be adapted is, and nothing else happens than to a model with other weights.
fn merged_families(families: &[&str]) {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for name in families {
        let Some(path) = shared(&format!("golden/{name}/model-f16.gguf")) else { continue };
        let file = Gguf::open(&path).unwrap();
        let mut noise = Noise::new(name.len() as u64);
        let tensors = adaptable(&file);
        let changes: Vec<Change> =
            tensors.iter().enumerate().map(|(i, (t, dims))| Change::random(t, 1 + i % 5, *dims, &mut noise)).collect();
        assert!(changes.len() > 10, "{name}: {} matrices", changes.len());
        let arch = file.require_str("general.architecture").unwrap();
        let adapter = written(&format!("lora-{name}"), &writer(arch, 2.5, &changes));
        let scale = 0.75;
        let all: Vec<_> = changes.iter().map(|c| (c, scale * 2.5 / c.rank as f64)).collect();
        let other = load(&context, &merged(&path, &format!("merged-{name}"), &all), KvType::F32, 64, 48);
        let model = load(&context, &path, KvType::F32, 64, 48);
        let lora = model.load_lora(&adapter).unwrap();
        assert_eq!((lora.info().tensors as usize, lora.info().rank, &*lora.info().name), (changes.len(), 5, "a test"));
        let ids: Vec<u32> = (0..44).map(|i| 10 + i * 37 % 900).collect();
        let (base, want) = (all_ways(&mut session(&model), &ids), all_ways(&mut session(&other), &ids));
        assert!(max_error(&base, &want) > 1.0, "{name}: the adapter changes little");
        close(name, &all_ways(&mut with(&model, &[(&lora, scale as f32)]), &ids), &want, 1e-3);
    }
}

#[test]
fn dense_models_are_as_with_merged_weights() {
    merged_families(&["llama3", "gemma3", "phi3", "gpt2", "cohere2", "olmo2", "granite"]);
}

/// Gates beside queries, rearranged rows of recurrences, a shared expert beside others.
#[test]
fn hybrids_and_mixtures_are_as_with_merged_weights() {
    merged_families(&["qwen35", "lfm2", "granitehybrid", "qwen2moe"]);
}

/// Changes of the shipped model: attention's, or those of the feed-forward blocks.
fn hearth_changes(part: &str, seed: u64) -> Vec<Change> {
    let file = Gguf::open(&asset()).unwrap();
    let mut noise = Noise::new(seed);
    let tensors = adaptable(&file).into_iter().filter(|(t, _)| t.contains(part) && !t.contains(".1."));
    tensors.map(|(t, dims)| Change::random(&t, 3, dims, &mut noise)).collect()
}

fn hearth_lora(model: &Model, part: &str, seed: u64) -> (Vec<Change>, Lora) {
    let changes = hearth_changes(part, seed);
    let path = written(&format!("hearth-{part}-{seed}"), &writer("llama", 0.0, &changes));
    let lora = model.load_lora(&path).unwrap();
    (changes, lora)
}

fn hearth(context: &Context) -> Model {
    load(context, &asset(), KvType::F32, 256, 16)
}

fn prompt(model: &Model) -> Vec<u32> {
    model.tokenizer().encode("Once upon a time there was a mouse who lived in a clock by the sea", true, true).unwrap()
}

#[test]
fn several_add_up_and_factors_count() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = hearth(&context);
    let ((a, attn), (f, ffn), (o, overlap)) =
        (hearth_lora(&model, "attn", 1), hearth_lora(&model, "ffn", 2), hearth_lora(&model, "", 3));
    let ids = prompt(&model);
    let base = all_ways(&mut session(&model), &ids);
    // A factor of 0 is no adapter at all: the very same commands.
    assert_eq!(all_ways(&mut with(&model, &[(&attn, 0.0), (&ffn, 0.0)]), &ids), base);
    let factors = [0.5f32, -1.0, 0.25];
    let changes = [a, f, o];
    let all: Vec<_> = changes.iter().zip(factors).flat_map(|(c, s)| c.iter().map(move |c| (c, f64::from(s)))).collect();
    let other = hearth_of(&context, &merged(&asset(), "merged-hearth", &all));
    let want = all_ways(&mut session(&other), &ids);
    let list = [(&attn, factors[0]), (&ffn, factors[1]), (&overlap, factors[2])];
    let got = all_ways(&mut with(&model, &list), &ids);
    assert!(max_error(&base, &want) > 1.0);
    close("three", &got, &want, 1e-3);
    // Two and a half times half of one, and the whole of it again.
    let twice = all_ways(&mut with(&model, &[(&attn, 0.5), (&attn, 0.5)]), &ids);
    close("halves", &twice, &all_ways(&mut with(&model, &[(&attn, 1.0)]), &ids), 1e-3);
}

fn hearth_of(context: &Context, path: &Path) -> Model {
    load(context, path, KvType::F32, 256, 16)
}

/// Models, and whether they have one table for embedding and head.
const TIED: [(&str, bool); 3] = [("llama3", false), ("gemma3", true), ("granite", true)];

/// The embedding and the head, tied and not.
#[test]
fn embeddings_and_heads_have_adapters() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for (name, tied) in TIED {
        let Some(path) = shared(&format!("golden/{name}/model-f16.gguf")) else { return };
        let file = Gguf::open(&path).unwrap();
        let table = file.tensor(EMBEDDING).unwrap();
        let is_tied = file.tensor("output.weight").is_none();
        assert_eq!(is_tied, tied, "{name}");
        let dims = [table.dims[1] as usize, table.dims[0] as usize];
        let mut noise = Noise::new(5);
        let changes =
            [Change::random(EMBEDDING, 6, dims, &mut noise), Change::random("output.weight", 3, dims, &mut noise)];
        // A merged model has two tables.
        let untied = rewrite(&path, &format!("untied-{name}"), |tensors| {
            if is_tied {
                let (_, dims, ty, data) = tensors.iter().find(|t| t.0 == EMBEDDING).unwrap().clone();
                tensors.push(("output.weight".to_string(), dims, ty, data));
            }
        });
        let all: Vec<_> = changes.iter().map(|c| (c, 1.5)).collect();
        let other = load(&context, &merged(&untied, &format!("tables-{name}"), &all), KvType::F32, 64, 48);
        let model = load(&context, &path, KvType::F32, 64, 48);
        let arch = file.require_str("general.architecture").unwrap();
        let lora = model.load_lora(&written(&format!("tables-{name}"), &writer(arch, 0.0, &changes))).unwrap();
        let ids: Vec<u32> = (0..44).map(|i| 10 + i * 37 % 900).collect();
        let want = all_ways(&mut session(&other), &ids);
        assert!(max_error(&all_ways(&mut session(&model), &ids), &want) > 1.0);
        close(name, &all_ways(&mut with(&model, &[(&lora, 1.5)]), &ids), &want, 1e-3);
    }
}

/// What a session says with adapters is what a fresh one says that has had them from the beginning.
#[track_caller]
fn like_fresh(s: &mut Session, list: &[(&Lora, f32)], n: u32) -> Vec<u32> {
    let mut fresh = with(s.model(), list);
    fresh.append_tokens(s.tokens()).unwrap();
    let (a, b) = (generate(s, &greedy(n)), generate(&mut fresh, &greedy(n)));
    assert_eq!(a, b);
    a
}

#[test]
fn sessions_change_adapters_between_tokens() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = hearth(&context);
    let ((_, a), (_, b)) = (hearth_lora(&model, "attn", 1), hearth_lora(&model, "ffn", 2));
    let ids = prompt(&model);
    let mut s = session(&model);
    let mut other = session(&model);
    s.append_tokens(&ids).unwrap();
    other.append_tokens(&ids).unwrap();
    let lists: [&[(&Lora, f32)]; 6] =
        [&[], &[(&a, 1.0)], &[(&a, 1.0), (&b, -0.5)], &[], &[(&b, -0.5), (&a, 1.0)], &[(&a, 1.0)]];
    let mut said = Vec::new();
    for list in lists {
        set(&mut s, list);
        assert_eq!(s.loras().len(), list.len());
        said.push(like_fresh(&mut s, list, 3));
        // One with other adapters, in turns with it.
        like_fresh(&mut other, &[], 2);
        // The same list again changes nothing.
        let cached = s.stats().cached_tokens;
        set(&mut s, list);
        assert!(cached > 0 && s.stats().cached_tokens == cached);
    }
    assert!(said[0] != said[1] || said[1] != said[2], "{said:?}");
    // Kept keys and values are not computed again, and are not what the new adapters would have made.
    let cached = s.stats().cached_tokens;
    let mut kept = s.fork().unwrap();
    kept.set_loras(&[(b.clone(), 2.0)], LoraCache::Keep).unwrap();
    assert_eq!(kept.stats().cached_tokens, cached);
    let row = |s: &mut Session| logits(s, &[42]);
    let (mixed, fresh) = (row(&mut kept), {
        let mut fresh = with(&model, &[(&b, 2.0)]);
        fresh.append_tokens(s.tokens()).unwrap();
        row(&mut fresh)
    });
    assert!(max_error(&mixed, &fresh) > 1e-2);
    s.set_loras(&[], LoraCache::Forget).unwrap();
    assert_eq!(s.stats().cached_tokens, 0);
}

#[test]
fn forks_and_snapshots_have_the_adapters() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = hearth(&context);
    let ((_, a), (_, b)) = (hearth_lora(&model, "attn", 1), hearth_lora(&model, "ffn", 2));
    let mut s = with(&model, &[(&a, 0.5)]);
    s.append_tokens(&prompt(&model)).unwrap();
    generate(&mut s, &greedy(2));
    let mut fork = s.fork().unwrap();
    assert_eq!(fork.loras().len(), 1);
    assert_eq!(like_fresh(&mut fork, &[(&a, 0.5)], 4), like_fresh(&mut s.fork().unwrap(), &[(&a, 0.5)], 4));
    // Two forks of one session with different adapters, over shared blocks.
    let mut changed = s.fork().unwrap();
    set(&mut changed, &[(&b, 1.0)]);
    like_fresh(&mut changed, &[(&b, 1.0)], 4);
    let bytes = s.snapshot().unwrap();
    assert_eq!(bytes.len() as u64, s.snapshot_bytes().unwrap());
    let mut back = with(&model, &[(&a, 0.5)]);
    back.restore(&bytes).unwrap();
    assert_eq!(back.stats().cached_tokens, s.stats().cached_tokens);
    assert_eq!(generate(&mut back, &greedy(4)), like_fresh(&mut s, &[(&a, 0.5)], 4));
    for list in [vec![], vec![(&a, 1.0)], vec![(&b, 0.5)], vec![(&a, 0.5), (&b, 0.5)]] {
        let refused = with(&model, &list).restore(&bytes).unwrap_err();
        assert!(matches!(&refused, Error::InvalidArgument(t) if t.contains("adapters")), "{refused}");
    }
    let plain = session(&model).snapshot().unwrap();
    let refused = with(&model, &[(&a, 1.0)]).restore(&plain).unwrap_err();
    assert!(refused.to_string().contains("adapters none"), "{refused}");
    with(&model, &[(&a, 0.0)]).restore(&plain).unwrap();
}

/// Strict budgets hold, whatever happens between tokens; and steady decoding makes nothing.
#[test]
fn decoding_with_adapters_makes_nothing() {
    for (name, features) in feature_sets() {
        let Some(context) = context(features, Guard::PRODUCTION) else { return };
        let options = ModelOptions { n_ctx: 128, prefill_chunk: 8, ..Default::default() };
        let model = context.load_model(&asset(), &options, &mut |_, _| Ok(())).unwrap();
        let ((_, a), (_, b)) = (hearth_lora(&model, "attn", 1), hearth_lora(&model, "ffn", 2));
        let open = |tokens_per_submit| {
            model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).unwrap()
        };
        let list = [(a.clone(), 0.5), (b.clone(), 1.0)];
        let mut s = open(1);
        s.set_loras(&list, LoraCache::Forget).unwrap();
        s.append_tokens(&prompt(&model)).unwrap();
        let want = generate(&mut s, &greedy(6));
        let decode = s.counters().phase(Phase::Decode);
        assert_eq!((decode.submits, decode.readbacks.iter().sum::<u64>()), (5, 5), "{name}");
        assert_eq!((decode.buffers, decode.bind_groups, decode.pipelines), (0, 0, 0), "{name}");
        let mut several = open(4);
        several.set_loras(&list, LoraCache::Forget).unwrap();
        several.append_tokens(&prompt(&model)).unwrap();
        assert_eq!(generate(&mut several, &greedy(6)), want, "{name}");
        // Caches are purged, the cache grows and others use other adapters between two tokens.
        let mut s = open(1);
        s.set_loras(&list, LoraCache::Forget).unwrap();
        s.append_tokens(&prompt(&model)).unwrap();
        let mut others = Vec::new();
        let out = s.generate(&greedy(6), &mut |_| {
            let mut other = open(1);
            other.set_loras(&[(a.clone(), 1.0)], LoraCache::Forget).unwrap();
            other.append_tokens(&[1, 500, 600]).unwrap();
            generate(&mut other, &greedy(2));
            others.push(other);
            context.purge_caches();
            ControlFlow::Continue(())
        });
        assert_eq!(out.unwrap().tokens, want, "{name}");
    }
}

/// Adapters are charged to the budget; dropped ones serve the sessions that have them, and then their memory is free.
#[test]
fn memory_of_adapters_is_counted_and_given_back() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = hearth(&context);
    let used = || context.stats().memory.total;
    let mut s = session(&model);
    s.append_tokens(&prompt(&model)).unwrap();
    generate(&mut s, &greedy(3));
    let before = used();
    let (_, a) = hearth_lora(&model, "", 1);
    let bytes = a.info().bytes;
    assert!(bytes > 100_000 && used() >= before + bytes, "{bytes}");
    s.reset();
    set(&mut s, &[(&a, 1.0)]);
    s.append_tokens(&prompt(&model)).unwrap();
    let want = generate(&mut s, &greedy(4));
    drop(a);
    s.reset();
    s.append_tokens(&prompt(&model)).unwrap();
    assert_eq!(generate(&mut s, &greedy(4)), want);
    assert!(used() >= before + bytes);
    s.set_loras(&[], LoraCache::Forget).unwrap();
    generate(&mut s, &greedy(2));
    assert!(used() <= before, "{} after {before}", used());
}

/// Of several sequences in one batch all have the same adapters.
#[test]
fn batches_have_one_list_of_adapters() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let gpu = context.gpu();
    let file = Gguf::open(&asset()).unwrap();
    let spec = Arc::new(arch::read_spec(&file).unwrap());
    let options = EngineOptions { n_ctx: 128, chunk: 64, kv_type: KvType::F32, exact: true };
    let mut engine = model::load(gpu, &file, spec, options, &mut |_, _| Ok(())).unwrap();
    let scope = gpu.scope(Phase::Other);
    let changes = hearth_changes("ffn", 3);
    let lora = engine.load_lora(&written("batch", &writer("llama", 0.0, &changes))).unwrap();
    let prompt: Vec<u32> = (0..9).map(|i| 300 + i * 37).collect();
    let mut open = |scales: &[f32]| {
        let mut sequence = engine.open(128, &scope).unwrap();
        let list: Vec<_> = scales.iter().map(|&s| (lora.clone(), s)).collect();
        engine.set_loras(&mut sequence, &list, &scope).unwrap();
        engine.configure(&mut sequence, &SamplingOptions::greedy(), &[], &scope).unwrap();
        let first = engine.prefill_and_draw(&mut sequence, &prompt, 0, 127, None, &scope).unwrap();
        (sequence, first.token)
    };
    let [(mut a, first), (mut b, second), (mut plain, _)] = [open(&[2.0]), open(&[2.0]), open(&[])];
    assert_eq!(first, second);
    let alone = engine.decode(&mut [&mut a], &[9], 6, 0, &scope).unwrap();
    let error = engine.decode(&mut [&mut b, &mut plain], &[9, 9], 6, 0, &scope).unwrap_err();
    assert!(error.to_string().contains("different adapters"), "{error}");
    // It joins one that has drawn six tokens.
    let both = engine.decode(&mut [&mut b, &mut a], &[9, 15], 6, 0, &scope).unwrap();
    for (one, two) in alone.iter().zip(&both) {
        assert_eq!(one[0], two[0]);
    }
    [a, b, plain].into_iter().for_each(|s| engine.close(s));
}

#[test]
fn a_failure_at_any_step_leaves_everything_consistent() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let gpu = context.gpu().clone();
    let model = hearth(&context);
    let path = written("faults", &writer("llama", 0.0, &hearth_changes("attn", 1)));
    let mut s = session(&model);
    s.append_tokens(&prompt(&model)).unwrap();
    generate(&mut s, &greedy(2));
    let give = |s: &mut Session| model.load_lora(&path).and_then(|l| s.set_loras(&[(l, 1.0)], LoraCache::Keep));
    let take = |s: &mut Session| s.set_loras(&[], LoraCache::Keep).unwrap();
    give(&mut s).unwrap();
    take(&mut s);
    let (live, cached) = (gpu.memory().snapshot().live_buffers, s.stats().cached_tokens);
    let mut failures = 0;
    for point in [FaultPoint::Buffer, FaultPoint::Record, FaultPoint::Submit, FaultPoint::Wait] {
        // Thousands of dispatches are recorded, alike in every layer.
        for nth in (1..).step_by(if point == FaultPoint::Record { 211 } else { 1 }) {
            gpu.inject_fault(point, nth);
            let outcome = give(&mut s);
            gpu.inject_fault(point, 0);
            let Err(e) = outcome else { break };
            failures += 1;
            assert!(matches!(&e, Error::Gpu(m) if m.contains("injected")), "{point:?} {nth}: {e}");
            assert!(s.loras().is_empty() && s.stats().cached_tokens == cached, "{point:?} {nth}");
            gpu.pool().trim();
            assert!(gpu.memory().snapshot().live_buffers <= live, "{point:?} {nth}: no buffer is left over");
        }
        assert_eq!(s.loras().len(), 1, "{point:?}");
        take(&mut s);
    }
    // Two matrices of two products a layer, and two buffers; some recordings.
    assert!(failures >= 22 + 4, "{failures} failures were injected");
    assert_eq!(s.stats().cached_tokens, cached);
    like_fresh(&mut s, &[], 4);
}
