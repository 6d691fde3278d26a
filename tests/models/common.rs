//! Opening devices and reading references.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use doppler::format::{Gguf, GgufWriter, TensorInfo, Value};
use doppler::gpu::{AdapterChoice, CHAINS_VARIABLE, FULL_WIDTH, Features, GpuOptions, Guard};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, Model, ModelOptions, Session, SessionOptions};
use safetensors::SafeTensors;

/// `../shared`, or `None` with a note that the test was skipped.
pub fn shared(part: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(part);
    if !path.exists() {
        println!("skipped: ../shared/{part} is absent");
        return None;
    }
    Some(path)
}

/// The model in the repository.
pub fn asset() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/hearth-5m-Q8_0.gguf")
}

/// Three layers of that model: no sense, but many different words for half the work, for tests that ask what is done and not what is said.
pub fn shallow() -> PathBuf {
    const LAYERS: [&str; 3] = ["0", "1", "5"];
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
        let layers = Value::U32(LAYERS.len() as u32);
        rewrite_keys(&asset(), "shallow", &[("llama.block_count", layers)], |tensors| {
            tensors.retain_mut(|t| {
                let Some((layer, rest)) = t.0.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
                    return true;
                };
                let place = LAYERS.iter().position(|l| *l == layer);
                if let Some(i) = place {
                    t.0 = format!("blk.{i}.{rest}");
                }
                place.is_some()
            });
        })
    });
    PATH.clone()
}

/// Whether DOPPLER_LONG_TESTS=1 asks for tests at full length.
pub fn long_tests() -> bool {
    std::env::var("DOPPLER_LONG_TESTS").is_ok_and(|v| v == "1")
}

/// A context on any adapter; `None` (with a note) only where DOPPLER_NO_GPU=1 says that there is none.
pub fn context(features: Features, guard: Guard) -> Option<Context> {
    // Chains have the parts of split attention where the device is wide.
    context_of(features, guard, if std::env::var_os(CHAINS_VARIABLE).is_some() { FULL_WIDTH } else { 0 })
}

/// The same as if the device were large, for which work is divided most.
pub fn wide_context() -> Option<Context> {
    context_of(Features::ALL, Guard::default(), FULL_WIDTH)
}

fn context_of(features: Features, guard: Guard, width: u32) -> Option<Context> {
    let options = GpuOptions {
        adapter: AdapterChoice { allow_software: true, ..Default::default() },
        features,
        guard,
        width,
        ..Default::default()
    };
    match Context::open(&options) {
        Ok(c) => Some(c),
        Err(e) if std::env::var("DOPPLER_NO_GPU").is_ok_and(|v| v == "1") => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}; install a driver (Debian: mesa-vulkan-drivers) or set DOPPLER_NO_GPU=1"),
    }
}

/// The device with everything on, and with each ability switched off.
pub fn feature_sets() -> Vec<(&'static str, Features)> {
    let all = Features::ALL;
    vec![
        ("all", all),
        ("no subgroups", Features { subgroups: false, ..all }),
        ("no f16", Features { f16: false, ..all }),
        ("no immediates", Features { immediates: false, ..all }),
        ("no timestamps", Features { timestamps: false, ..all }),
    ]
}

pub fn load(context: &Context, path: &std::path::Path, kv_type: KvType, n_ctx: u32, chunk: u32) -> Model {
    let options = ModelOptions { n_ctx, prefill_chunk: chunk, kv_type, prewarm: false, exact: true, quantize: None };
    context.load_model(path, &options, &mut |_, _| Ok(())).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn session(model: &Model) -> Session {
    model.open_session(&SessionOptions::default()).expect("session")
}

/// Logits of all positions: `[ids, n_vocab]`.
pub fn logits(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    let mut out = Vec::new();
    session
        .eval(ids, &mut |rows| {
            out.extend_from_slice(rows);
            Ok(())
        })
        .expect("eval");
    out
}

/// A safetensors file of references.
pub struct Reference(Arc<Vec<u8>>);

impl Reference {
    pub fn open(path: PathBuf) -> Self {
        Self(Arc::new(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).expect("safetensors");
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(|w| i32::from_le_bytes(w) as u32).collect()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }
}

/// Largest difference.
pub fn max_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

/// Greedy tokens must agree up to the first step whose margin the numerical error could overturn. Returns how many were compared.
pub fn assert_greedy(what: &str, got: &[u32], want: &[u32], margins: &[f32], tolerance: f32) -> usize {
    assert_eq!(got.len(), want.len(), "{what}: number of tokens");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if margins[i] < tolerance {
            println!("{what}: compared {i} of {} greedy tokens (margin {} there)", want.len(), margins[i]);
            return i;
        }
        assert_eq!(g, w, "{what}: greedy token {i} (margin {})", margins[i]);
    }
    want.len()
}

/// Greedy generation to a fixed length.
pub fn greedy(max_tokens: u32) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() }
}

pub fn generate(s: &mut Session, options: &GenerateOptions) -> Vec<u32> {
    s.generate(options, &mut |_| ControlFlow::Continue(())).expect("generate").tokens
}

/// The best logit less the second best.
pub fn gap(row: &[f32]) -> f64 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &x in row {
        (first, second) = if x > first { (x, first) } else { (first, second.max(x)) };
    }
    f64::from(first) - f64::from(second)
}

/// Greedy tokens after `prompt` computed in two ways: the same, but where the two best logits are nearer than `near`.
#[track_caller]
pub fn assert_same_greedy(model: &Model, prompt: &[u32], a: &[u32], b: &[u32], near: f64) {
    let Some(i) = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i)) else { return };
    let ids: Vec<u32> = prompt.iter().chain(&a[..i.min(a.len())]).copied().collect();
    let rows = logits(&mut session(model), &ids);
    let gap = gap(&rows[rows.len() - model.info().n_vocab as usize..]);
    assert!(gap < near, "greedy token {i} is {:?} and {:?}, the margin {gap}", a.get(i), b.get(i));
    println!("near tie at {i}: {gap}");
}

/// A tensor of a rewritten file: name, shape, type, bytes.
pub type Tensor = (String, Vec<u64>, u32, Vec<u8>);

/// Writes a file again with other tensors.
pub fn rewrite(path: &Path, name: &str, change: impl Fn(&mut Vec<Tensor>)) -> PathBuf {
    rewrite_keys(path, name, &[], change)
}

/// The same with these keys, in the place of its own or beside them.
pub fn rewrite_keys(path: &Path, name: &str, keys: &[(&str, Value)], change: impl Fn(&mut Vec<Tensor>)) -> PathBuf {
    let file = Gguf::open(path).expect("open");
    let tensor = |t: &TensorInfo| (t.name.clone(), t.dims.clone(), t.ggml_type, file.data(t).to_vec());
    let mut tensors: Vec<Tensor> = file.tensors().iter().map(tensor).collect();
    change(&mut tensors);
    let own = file.metadata().filter(|(k, _)| keys.iter().all(|(key, _)| key != k));
    let writer = own.fold(GgufWriter::new(), |w, (k, v)| w.key(k, v.clone()));
    let writer = keys.iter().fold(writer, |w, (k, v)| w.key(k, v.clone()));
    let writer = tensors.into_iter().fold(writer, |w, (name, dims, ty, data)| w.tensor(&name, &dims, ty, data));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}.gguf", std::process::id()));
    std::fs::write(&out, writer.to_bytes()).expect("write");
    out
}

/// A row of halves in blocks of 32 bytes with a scale.
pub fn q8_0(halves: &[u8]) -> Vec<u8> {
    let x: Vec<f32> = halves.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    let block = |x: &[f32]| {
        let scale = half::f16::from_f32(x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0);
        let quant = |v: &f32| (v / scale.to_f32().max(1e-9)).round().clamp(-127.0, 127.0) as i8 as u8;
        scale.to_le_bytes().into_iter().chain(x.iter().map(quant)).collect::<Vec<u8>>()
    };
    x.chunks(32).flat_map(block).collect()
}

/// `ln p` of a token under a row of logits, in f64.
pub fn log_prob(row: &[f32], token: u32) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    f64::from(row[token as usize]) - top - sum.ln()
}
