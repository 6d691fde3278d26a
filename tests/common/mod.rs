//! What the tests on a device share: opening it, deterministic data, moving data, comparing.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::sync::{Arc, LazyLock};

use doppler::gpu::{
    ADAPTER_VARIABLE, Buffer, Dispatch, FULL_WIDTH, Features, Gpu, GpuOptions, MemoryClass, Phase, ReadbackClass, Scope,
};
use doppler::quant::Format;

/// Set to 1 to let the tests that need a device pass without one.
const NO_GPU: &str = "DOPPLER_NO_GPU";

/// Whether DOPPLER_LONG_TESTS=1 asks for all random cases instead of a part of them.
pub fn long_tests() -> bool {
    std::env::var("DOPPLER_LONG_TESTS").is_ok_and(|v| v == "1")
}

/// Opens a device for tests: the adapter of DOPPLER_ADAPTER, or the best one, a software one included. `None` where the user said that
/// there is none; a missing adapter is a failure otherwise.
pub fn open(mut options: GpuOptions) -> Option<Arc<Gpu>> {
    if std::env::var(NO_GPU).is_ok_and(|v| v == "1") {
        println!("skipped: {NO_GPU}=1");
        return None;
    }
    options.adapter.allow_software = true;
    match Gpu::open(&options) {
        Ok(gpu) => Some(gpu),
        Err(e) => panic!(
            "{e}\nThese tests need a GPU driver. A software one will do: on Debian and Ubuntu `apt-get install \
             mesa-vulkan-drivers` (and XDG_RUNTIME_DIR set), on Windows WARP is built in. {ADAPTER_VARIABLE} names an \
             adapter; {NO_GPU}=1 skips these tests."
        ),
    }
}

/// A device with some abilities switched off.
pub struct Variant {
    pub name: &'static str,
    pub gpu: Arc<Gpu>,
    /// Everything on: long tests run here only.
    pub full: bool,
    /// Its shaders differ from those of the full variant.
    pub own_shaders: bool,
}

impl Variant {
    pub fn scope(&self) -> Scope {
        self.gpu.scope(Phase::Other)
    }
}

/// What can be switched off, one at a time.
pub fn feature_sets() -> Vec<(&'static str, Features)> {
    let all = Features::ALL;
    vec![
        ("all", all),
        ("no subgroups", Features { subgroups: false, ..all }),
        ("no f16", Features { f16: false, ..all }),
        ("no immediates", Features { immediates: false, ..all }),
        ("no timestamps", Features { timestamps: false, ..all }),
        ("no pipeline cache", Features { pipeline_cache: false, ..all }),
        ("no cooperative matrix", Features { cooperative_matrix: false, ..all }),
    ]
}

/// Every variant of the device, opened once. Empty where there is no device ([`open`]).
pub fn variants() -> &'static [Variant] {
    static LIST: LazyLock<Vec<Variant>> = LazyLock::new(|| {
        feature_sets()
            .into_iter()
            .filter_map(|(name, features)| {
                // As on a large device, for which work is divided most.
                let gpu = open(GpuOptions { features, width: FULL_WIDTH, ..Default::default() })?;
                let own_shaders = !(features.subgroups && features.f16 && features.immediates);
                Some(Variant { name, gpu, full: name == "all", own_shaders })
            })
            .collect()
    });
    &LIST
}

/// Only the variant with everything on.
pub fn full() -> Option<&'static Variant> {
    variants().first()
}

/// splitmix64 (Steele, Lea and Flood 2014): the same numbers on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In [-1, 1], on a grid of 2^-23.
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    pub fn below(&mut self, n: u32) -> u32 {
        (self.word() % u64::from(n)) as u32
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
    /// The numbers below `n` in random order.
    pub fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut v: Vec<u32> = (0..n).collect();
        for i in (1..v.len()).rev() {
            v.swap(i, self.below(i as u32 + 1) as usize);
        }
        v
    }
    /// `rows` rows of `k` weights in a format: random bits, and scales of both signs with which weights stay around 1. Halves below the
    /// smallest normal number are among them where files have such scales.
    pub fn rows(&mut self, format: &Format, rows: usize, k: usize) -> Vec<u8> {
        let n = format.row_bytes(k) * rows;
        // Where the halves of a block are, and their largest magnitudes.
        let halves: &[(usize, f32)] = match format.name {
            "F32" => return (0..n / 4).flat_map(|_| self.unit().to_le_bytes()).collect(),
            "F16" => return (0..n / 2).flat_map(|_| half::f16::from_f32(self.unit()).to_le_bytes()).collect(),
            "BF16" => return (0..n / 2).flat_map(|_| half::bf16::from_f32(self.unit()).to_le_bytes()).collect(),
            "Q8_0" | "Q4_0" | "Q5_0" => &[(0, 0.05)],
            "Q4_1" | "Q5_1" => &[(0, 0.05), (2, 0.5)],
            "Q2_K" => &[(80, 0.02), (82, 0.02)],
            "Q3_K" => &[(108, 1e-3)],
            "Q4_K" | "Q5_K" => &[(0, 5e-4), (2, 5e-3)],
            "Q6_K" => &[(208, 2e-4)],
            "IQ4_NL" => &[(0, 0.01)],
            "IQ4_XS" => &[(0, 2e-4)],
            "MXFP4" => &[],
            name => panic!("say how to make random rows of {name} in tests/common/mod.rs"),
        };
        let mut bytes: Vec<u8> = (0..n).map(|_| self.word() as u8).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes) {
            for &(at, largest) in halves {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(self.unit() * largest).to_le_bytes());
            }
            if format.name == "MXFP4" {
                block[0] = 117 + block[0] % 8;
            }
        }
        bytes
    }
}

/// The weights that bytes of a format stand for.
pub fn decode(format: &Format, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / format.block_bytes * format.block_len];
    (format.dequantize)(bytes, &mut out);
    out
}

/// A buffer with these words, its size rounded up to 16 bytes (so that any of it can be read as `vec4`).
pub fn upload_words(gpu: &Gpu, words: &[u32]) -> Buffer {
    let scope = gpu.scope(Phase::Other);
    let size = (words.len() as u64 * 4).next_multiple_of(16).max(16);
    let b = gpu.storage("test", size, MemoryClass::Other, &scope).unwrap();
    gpu.upload(b.whole(), bytemuck::cast_slice(words), &scope).unwrap();
    b
}

pub fn upload(gpu: &Gpu, values: &[f32]) -> Buffer {
    upload_words(gpu, bytemuck::cast_slice(values))
}

/// What results are filled with before a kernel runs: whatever keeps this value was not written.
pub const UNTOUCHED: f32 = -77.0;

/// A buffer of [`UNTOUCHED`] floats.
pub fn untouched(gpu: &Gpu, n: usize) -> Buffer {
    upload(gpu, &vec![UNTOUCHED; n])
}

/// The first `n` words of a buffer.
pub fn download_words(gpu: &Gpu, b: &Buffer, n: usize) -> Vec<u32> {
    let bytes = gpu.download(b.slice(0, n as u64 * 4), ReadbackClass::Debug, &gpu.scope(Phase::Other)).unwrap();
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

/// The first `n` floats of a buffer.
pub fn download(gpu: &Gpu, b: &Buffer, n: usize) -> Vec<f32> {
    bytemuck::cast_vec(download_words(gpu, b, n))
}

/// Runs dispatches one after another.
pub fn run<'a>(gpu: &Gpu, dispatches: impl IntoIterator<Item = Dispatch<'a>>) {
    let scope = gpu.scope(Phase::Other);
    for d in dispatches {
        let name = d.kernel.name;
        d.run(gpu, &scope).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// What a result should be, and the magnitude of the terms it was summed from.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub value: f64,
    pub magnitude: f64,
}

impl From<f64> for Want {
    fn from(value: f64) -> Self {
        Want { value, magnitude: value.abs() }
    }
}

/// Fails unless each result is within `abs + rel · magnitude` of what is wanted, and names the worst one.
#[track_caller]
pub fn close(what: &str, got: &[f32], want: &[Want], abs: f64, rel: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let mut worst = (0.0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w.value).abs();
        // NaN on either side counts as infinitely wrong; equal infinities cannot stand in `want`.
        let excess = if error.is_nan() { f64::INFINITY } else { error / (abs + rel * w.magnitude) };
        if excess > worst.0 {
            worst = (excess, i);
        }
    }
    let (excess, i) = worst;
    let bad = got.iter().zip(want).filter(|(g, w)| {
        let ok = (f64::from(**g) - w.value).abs() <= abs + rel * w.magnitude;
        !ok
    });
    if excess > 1.0 {
        panic!(
            "{what}: element {i} of {} is {}, wanted {} (magnitude {}): {excess:.3} times the tolerance; {} wrong",
            got.len(),
            got[i],
            want[i].value,
            want[i].magnitude,
            bad.count()
        );
    }
}

/// Fails unless both are the same bits, and names the first difference.
#[track_caller]
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: element {i} of {} is {} and {}", a.len(), a[i], b[i]);
    }
}
