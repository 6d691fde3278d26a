//! Tiny random models of each family, against transformers. `docs/models.md` has the outcomes; `BLESS=1` writes them.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;

use doppler::format::Gguf;
use doppler::gpu::Guard;
use doppler::model::KvType;
use doppler::model::arch::{ARCHITECTURES, read_spec};
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, ModelOptions};
use serde_json::Value;

use crate::common::{self, Reference, assert_greedy, context, load, logits, max_error, session, shared, wide_context};

/// Folders of `shared/golden`, in the order of the table.
pub const FAMILIES: [&str; 28] = [
    "llama2",
    "llama3",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-longrope",
    "smollm3",
    "granite",
    "olmo2",
    "olmo3",
    "cohere2",
    "glm4",
    "starcoder2",
    "gpt2",
    "gpt-oss",
    "gpt-oss-f16",
    "lfm2",
    "granitehybrid",
    "qwen3next",
    "qwen35",
    "qwen35moe",
];

/// The families of a test: all, or for trying something those that DOPPLER_GOLDEN names (separated by commas).
fn families() -> Vec<&'static str> {
    let only = std::env::var("DOPPLER_GOLDEN").ok();
    let wanted = |f: &&str| only.as_ref().is_none_or(|o| o.split(',').any(|o| o == *f));
    FAMILIES.into_iter().filter(wanted).collect()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What was compared.
#[derive(Default, Debug, Clone, Copy, PartialEq)]
struct Compared {
    positions: usize,
    greedy: usize,
}

/// Runs the four prompts of a family in chunks of `chunk`, and compares logits and, if that is wanted, greedy tokens. A mixture whose router's choice was
/// nearer than `near` somewhere in the prompt is not held to the bound there: rounding may choose another expert.
fn check(
    context: &Context,
    family: &str,
    kv: KvType,
    chunk: u32,
    (bound, near): (f32, f64),
    greedy: bool,
) -> Option<Compared> {
    let dir = shared(&format!("golden/{family}"))?;
    let reference = Reference::open(dir.join("reference.safetensors"));
    let meta = json(&dir.join("meta.json"));
    let (mut worst, mut compared) = (0f32, Compared::default());
    let mut model = None;
    // Token by token a regular run leaves the longest one out.
    let prompts = if chunk == 1 && !common::long_tests() { 3 } else { 4 };
    for i in 0..prompts {
        let prompt = &meta["prompts"][i];
        let n_ctx = prompt["n_ctx"].as_u64().expect("n_ctx") as u32;
        let model = match &model {
            Some((n, m)) if *n == n_ctx => m,
            _ => &model.insert((n_ctx, load(context, &dir.join("model-f16.gguf"), kv, n_ctx, chunk))).1,
        };
        let margin = |key: &str| prompt[key].as_f64().unwrap_or(f64::INFINITY);
        let vocab = model.info().n_vocab as usize;
        let ids = reference.ids(&format!("prompt{i}.ids"));
        let mut s = session(model);
        let all = logits(&mut s, &ids);
        let want = reference.floats(&format!("prompt{i}.logits"));
        if margin("min_router_margin_prefill") < near {
            println!("{family} prompt {i}, {} KV: not compared, two experts are nearer than {near}", kv.name());
            continue;
        }
        for (row, &pos) in reference.ids(&format!("prompt{i}.positions")).iter().enumerate() {
            let got = &all[pos as usize * vocab..][..vocab];
            let error = max_error(got, &want[row * vocab..][..vocab]);
            worst = worst.max(error);
            assert!(
                error <= bound,
                "{family} prompt {i} position {pos}, chunk {chunk}: logit error {error}, bound {bound}"
            );
            compared.positions += 1;
        }
        if !greedy {
            continue;
        }
        if margin("min_router_margin_greedy") < near {
            println!("{family} prompt {i}, {} KV: greedy tokens not compared, two experts are near", kv.name());
            continue;
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
        // In single precision all of them count, whatever the margin.
        let tolerance = if kv == KvType::F32 { 0.0 } else { 2.0 * worst };
        compared.greedy += assert_greedy(&format!("{family} prompt {i}"), &out.tokens, &want, &margins, tolerance);
    }
    println!("{family}, {} KV, chunks of {chunk}: largest logit error {worst:.2e} (bound {bound:.0e})", kv.name());
    Some(compared)
}

/// Bounds of the largest logit error with single and with half precision in the cache. The gated delta rule makes more of small differences: single
/// and double precision of its reference differ by 4e-4, half and single by 0.4.
fn bounds(family: &str) -> (f32, f32) {
    match family {
        "qwen3next" | "qwen35" | "qwen35moe" => (2e-3, 0.35),
        _ => (1e-3, 0.1),
    }
}
/// Router logits nearer than this may change places under half precision.
const NEAR: f64 = 0.02;

/// Cases of a family's tokenizer, all of which must agree.
fn tokenizer(context: &Context, family: &str) -> Option<usize> {
    let dir = shared(&format!("golden/{family}"))?;
    let model = load(context, &dir.join("model-f16.gguf"), KvType::F16, 64, 0);
    let cases = json(&dir.join("tokenizer_tests.json"));
    let cases = cases.as_array().expect("cases");
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let want: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        assert_eq!(model.tokenizer().encode(text, false, false).expect("encode"), want, "{family}: {text:?}");
    }
    Some(cases.len())
}

const TABLE: [&str; 2] = ["<!-- written by the golden test -->\n", "<!-- end -->\n"];

fn docs() -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md");
    let text = std::fs::read_to_string(&path).expect("docs/models.md");
    (path, text)
}

/// Every family: whole, in chunks and token by token with single precision, and with the cache as it is by default. The table of outcomes is
/// what `docs/models.md` has.
#[test]
fn every_family_agrees_with_its_reference() {
    let Some(context) = wide_context() else { return };
    let mut table = String::from(
        "| model | architecture | logits, f32 cache: whole, by 16, one by one | greedy tokens | logits, f16 cache | tokenizer |\n|---|---|---|---|---|---|\n",
    );
    for family in families() {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        let file = Gguf::open(&dir.join("model-f16.gguf")).expect("open");
        let spec = read_spec(&file).unwrap_or_else(|e| panic!("{family}: {e}"));
        let (single, half_bound) = bounds(family);
        // What a prompt leaves behind is the same: a regular run generates after whole ones only, in single precision.
        let run = |chunk, greedy| {
            check(&context, family, KvType::F32, chunk, (single, 0.0), greedy || common::long_tests())
                .expect("reference")
        };
        let runs = [run(512, true), run(16, false), run(1, false)];
        assert_eq!(runs[0].positions, runs[1].positions, "{family}: whole and in chunks");
        assert!(runs[2].positions > 40, "{family}: token by token");
        let half =
            check(&context, family, KvType::F16, 256, (half_bound, NEAR), common::long_tests()).expect("reference");
        let texts = tokenizer(&context, family).expect("tokenizer");
        let Compared { positions, greedy } = runs[0];
        writeln!(
            table,
            "| {family} | `{}` | {positions} positions within {single} | {greedy} of 128 | {} positions within {half_bound} | {texts} texts |",
            spec.architecture, half.positions
        )
        .expect("write");
    }
    if families().len() < FAMILIES.len() {
        return;
    }
    let (path, text) = docs();
    let (before, rest) = text.split_once(TABLE[0]).expect("docs/models.md: begin of the table");
    let (written, after) = rest.split_once(TABLE[1]).expect("docs/models.md: end of the table");
    if std::env::var("BLESS").is_ok_and(|v| v == "1") {
        let new = format!("{before}{}{table}{}{after}", TABLE[0], TABLE[1]);
        std::fs::write(path, new).expect("docs/models.md");
        return;
    }
    assert_eq!(written, table, "docs/models.md says otherwise; BLESS=1 writes it");
}

/// Each architecture stands in the table, so none is there without a reference.
#[test]
fn every_architecture_is_documented() {
    let (_, text) = docs();
    for a in ARCHITECTURES {
        assert!(text.contains(&format!("| `{}` |", a.name)), "docs/models.md does not have {}", a.name);
    }
}

/// The other files of the references are refused with their architecture's name.
#[test]
fn what_does_not_run_says_so() {
    let Some(dir) = shared("golden") else { return };
    for entry in std::fs::read_dir(&dir).expect("folder") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_string_lossy().to_string();
        let model = path.join("model-f16.gguf");
        if FAMILIES.contains(&name.as_str()) || !model.exists() {
            continue;
        }
        let file = Gguf::open(&model).expect("open");
        let architecture = file.require_str("general.architecture").expect("architecture");
        let error = read_spec(&file).expect_err(&name).to_string();
        assert!(error.contains(architecture), "{name}: {error}");
    }
}

/// Learned positions end with their table.
#[test]
fn a_context_beyond_the_learned_positions_is_refused() {
    let Some(dir) = shared("golden/gpt2") else { return };
    let Some(context) = wide_context() else { return };
    let options = ModelOptions { n_ctx: 513, ..Default::default() };
    let error = context.load_model(&dir.join("model-f16.gguf"), &options, &mut |_, _| Ok(())).expect_err("refused");
    assert!(error.to_string().contains("513") && error.to_string().contains("512"), "{error}");
}

/// The families share the devices; long tests run each on all of them.
#[test]
fn each_feature_off() {
    for (i, (name, features)) in common::feature_sets().into_iter().skip(1).enumerate() {
        let Some(context) = context(features, Guard::default()) else { return };
        println!("features: {name}");
        for (j, family) in families().into_iter().enumerate() {
            if (i + j) % 6 == 0 || common::long_tests() {
                check(&context, family, KvType::F32, 64, (bounds(family).0, 0.0), true);
            }
        }
    }
}
