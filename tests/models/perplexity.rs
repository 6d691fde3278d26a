//! Perplexity of the model that ships with the project, against its makers' figures.
//!
//! A regular run takes the first windows only; DOPPLER_LONG_TESTS=1 takes all 32.

use std::time::Instant;

use doppler::gpu::{Features, Guard};
use doppler::model::KvType;
use doppler::session::{Context, Model, ModelOptions};

use crate::common::{Reference, context, load, long_tests, session, shared};

/// Tokens of a window; each is read in an empty context.
const WINDOW: usize = 512;
/// Windows that the figures of the model's README are over (column B).
const WINDOWS: usize = 32;
/// Column B for the f16 file.
const F16: f64 = 2.1366;
/// Windows of a quantised file in a regular run.
const FEW: usize = 2;

/// Of each window, −ln p of its tokens but the first.
fn losses(model: &Model, ids: &[u32]) -> Vec<f64> {
    let vocab = model.info().n_vocab as usize;
    let mut s = session(model);
    let mut out = Vec::new();
    for window in ids.chunks_exact(WINDOW) {
        s.reset();
        let mut next = window[1..].iter();
        s.eval(window, &mut |rows| {
            for (row, &id) in rows.chunks_exact(vocab).zip(&mut next) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
                out.push(sum.ln() - f64::from(row[id as usize] - max));
            }
            Ok(())
        })
        .expect("eval");
        assert!(next.next().is_none());
    }
    assert_eq!(out.len(), ids.len() / WINDOW * (WINDOW - 1));
    out
}

fn perplexity(losses: &[f64]) -> f64 {
    (losses.iter().sum::<f64>() / losses.len() as f64).exp()
}

struct Fixture {
    context: Context,
    dir: std::path::PathBuf,
}

impl Fixture {
    fn open() -> Option<Self> {
        let dir = shared("models/hearth")?;
        Some(Self { context: context(Features::ALL, Guard::default())?, dir })
    }

    fn model(&self, format: &str) -> Model {
        self.model_with(format, KvType::F16)
    }

    fn model_with(&self, format: &str, kv: KvType) -> Model {
        load(&self.context, &self.dir.join(format!("hearth-5m-{format}.gguf")), kv, WINDOW as u32, 0)
    }

    /// The validation text: special tokens parsed, as the model was trained.
    fn ids(&self, model: &Model) -> Vec<u32> {
        let text = std::fs::read_to_string(self.dir.join("val.txt")).expect("val.txt");
        let mut ids = model.tokenizer().encode(&text, false, true).expect("encode");
        ids.truncate(WINDOW * WINDOWS);
        ids
    }
}

/// Each token's loss against the float64 reference, which has eight windows; a regular run takes four.
#[test]
fn f16_file_against_float64() {
    let Some(f) = Fixture::open() else { return };
    let reference = Reference::open(f.dir.join("reference.safetensors"));
    let windows = if long_tests() { 8 } else { 4 };
    let ids = &reference.ids("val_ids_4096")[..windows * WINDOW];
    let exact: Vec<f64> = reference.floats("val_nll").iter().map(|&x| x.into()).collect();
    let all = perplexity(&exact);
    assert!((all / 2.106125846 - 1.0).abs() < 1e-6, "{all} over all eight windows, where the README says 2.106126");
    let want = &exact[..windows * (WINDOW - 1)];
    let model = f.model("f16");
    assert_eq!(&f.ids(&model)[..ids.len()], ids, "the tokens of val.txt");
    let started = Instant::now();
    let got = losses(&model, ids);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
    let (p, reference) = (perplexity(&got), perplexity(want));
    println!(
        "f16: perplexity {p:.6} over {windows} windows (reference {reference:.6}), worst loss {worst:.2e} off, {seconds:.1} s"
    );
    assert!((p / reference - 1.0).abs() < 0.005, "{p}");
    // Keys and values are rounded to f16.
    assert!(worst < 0.02, "{worst}");
}

/// Column B of the README, by file.
const COLUMN_B: [(&str, f64); 14] = [
    ("f16", F16),
    ("Q8_0", 2.1366),
    ("Q6_K", 2.1371),
    ("Q5_1", 2.1393),
    ("Q5_K_M", 2.1394),
    ("Q5_0", 2.1436),
    ("Q4_1", 2.1484),
    ("Q4_K_M", 2.1393),
    ("IQ4_NL", 2.1482),
    ("Q4_0", 2.1497),
    ("IQ4_XS", 2.1499),
    ("MXFP4", 2.1575),
    ("Q3_K_M", 2.1440),
    ("Q2_K", 2.2408),
];

/// All 32 windows against column B, or the first ones against the float64 losses of the same windows, in the proportion that
/// column B has to the f16 file's.
#[test]
fn quantised_files_against_column_b() {
    let Some(f) = Fixture::open() else { return };
    let (windows, base) = if long_tests() {
        (WINDOWS, F16)
    } else {
        let reference = Reference::open(f.dir.join("reference.safetensors"));
        let exact: Vec<f64> = reference.floats("val_nll")[..FEW * (WINDOW - 1)].iter().map(|&x| x.into()).collect();
        (FEW, perplexity(&exact))
    };
    // The README's figures have four digits; fewer windows than theirs are another text.
    let bound = if long_tests() { 1e-3 } else { 1e-2 };
    let mut wrong = Vec::new();
    // A regular run takes every other format but f16, which has a test of its own.
    let (first, step) = if long_tests() { (0, 1) } else { (1, 2) };
    for (format, column_b) in COLUMN_B.into_iter().skip(first).step_by(step) {
        let model = f.model(format);
        let ids = f.ids(&model);
        let started = Instant::now();
        let p = perplexity(&losses(&model, &ids[..windows * WINDOW]));
        let seconds = started.elapsed().as_secs_f64();
        let want = base * column_b / F16;
        let off = p / want - 1.0;
        println!(
            "{format}: perplexity {p:.4} over {windows} of {WINDOWS} windows (wanted {want:.4}, {:+.2} %), {seconds:.1} s",
            100.0 * off
        );
        if off.is_nan() || off.abs() >= bound {
            wrong.push(format);
        }
    }
    assert!(wrong.is_empty(), "off by more than {bound}: {wrong:?}");
}

/// Keys and values in 8 bits cost next to nothing: within 0.5 % of f16's perplexity, and not the same numbers.
#[test]
fn q8_keys_and_values_against_f16() {
    let Some(f) = Fixture::open() else { return };
    let windows = if long_tests() { WINDOWS } else { FEW };
    let [f16, q8] = [KvType::F16, KvType::Q8].map(|kv| {
        let model = f.model_with("f16", kv);
        let ids = f.ids(&model);
        (losses(&model, &ids[..windows * WINDOW]), model.stats().kv.block_bytes)
    });
    let (p16, p8) = (perplexity(&f16.0), perplexity(&q8.0));
    println!("perplexity over {windows} windows: {p16:.5} with f16 keys and values, {p8:.5} with q8");
    assert!((p8 / p16 - 1.0).abs() < 0.005, "{p8}, with f16 {p16}");
    assert!(f16.0 != q8.0, "8 bits give the very same losses");
    assert_eq!(q8.1 * 64, f16.1 * 34, "34 bytes for 32 numbers");
}

/// Products that round activations to bytes cost next to nothing either: within 0.5 % of the exact perplexity, and not the same
/// numbers. They are for few rows, so the text is read in chunks of four.
#[test]
fn activations_as_bytes_against_exact_ones() {
    let Some(f) = Fixture::open() else { return };
    let windows = if long_tests() { 8 } else { 1 };
    let mut wrong = Vec::new();
    // A regular run takes every fourth format, of those that the test before leaves out: the self-check has products of all.
    let formats = COLUMN_B.into_iter().filter(|(format, _)| *format != "f16");
    let (first, step) = if long_tests() { (0, 1) } else { (1, 4) };
    for (format, _) in formats.skip(first).step_by(step) {
        let [exact, bytes] = [true, false].map(|exact| {
            let chunk = if exact { 0 } else { 4 };
            let options = ModelOptions {
                n_ctx: WINDOW as u32,
                prefill_chunk: chunk,
                prewarm: false,
                exact,
                ..Default::default()
            };
            let path = f.dir.join(format!("hearth-5m-{format}.gguf"));
            let model = f.context.load_model(&path, &options, &mut |_, _| Ok(())).expect("load");
            let ids = f.ids(&model);
            losses(&model, &ids[..windows * WINDOW])
        });
        let (a, b) = (perplexity(&exact), perplexity(&bytes));
        let off = b / a - 1.0;
        println!("{format}: perplexity {a:.5} over {windows} windows, {b:.5} with bytes ({:+.3} %)", 100.0 * off);
        if off.is_nan() || off.abs() >= 0.005 || exact == bytes {
            wrong.push(format);
        }
    }
    assert!(wrong.is_empty(), "off by more than 0.5 %, or not at all: {wrong:?}");
}
