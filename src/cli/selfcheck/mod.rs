//! Checks of the kernels against references in f64, which need nothing but a device.
//!
//! The library's tests go deeper (`tests/kernels`); these run from an installed program, on the machine where it matters.

mod attention;
mod bytes;
mod chain;
mod coverage;
mod elementwise;
mod fresh;
mod fused;
mod halves;
mod input;
mod model;
mod moe;
mod moe_few;
mod recurrent;
mod results;
mod sampling;
mod stats;
mod weights;

use std::cell::RefCell;
use std::sync::Arc;

use doppler::Result;
use doppler::gpu::{Buffer, Dispatch, Gpu, MemoryClass, Phase, ReadbackClass, Scope, Variant};

pub(super) use attention::{Layout, row_words};
pub(super) use coverage::Coverage;
pub(super) use model::{model_check, tensor_check};
pub(super) use weights::random_rows;

/// A check: some cases of one kernel.
pub(super) struct Check {
    pub(super) name: &'static str,
    /// Part of the short round.
    pub(super) quick: bool,
    pub(super) run: fn(&Lab) -> Result<Vec<Measured>>,
}

const fn check(name: &'static str, quick: bool, run: fn(&Lab) -> Result<Vec<Measured>>) -> Check {
    Check { name, quick, run }
}

/// Every check.
pub(super) const CHECKS: &[Check] = &[
    check("gather", true, weights::gather),
    check("dequant", false, weights::dequant),
    check("matmul-vec", true, weights::matmul_vec),
    check("matmul-glu", true, fused::glu),
    check("matmul-next", true, fused::next),
    check("chain", true, chain::chain),
    check("matmul-tile", true, weights::matmul_tile),
    check("byte-rows", true, bytes::byte_rows),
    check("matmul-coop", true, weights::matmul_coop),
    check("halves", true, halves::halves),
    check("matmul-few", true, weights::matmul_few),
    check("rmsnorm", true, elementwise::rmsnorm),
    check("qk-norm", false, elementwise::qk_norm),
    check("softcap", false, elementwise::softcap),
    check("softmax", true, elementwise::softmax),
    check("silu", false, elementwise::silu),
    check("gelu", false, elementwise::gelu),
    check("glu", false, elementwise::glu),
    check("residual", false, elementwise::residual),
    check("add-bias", false, elementwise::add_bias),
    check("cast", false, elementwise::cast),
    check("rope", false, attention::rope),
    check("attention-decode", false, attention::decode),
    check("attention-prefill", false, attention::prefill),
    check("moe-route", false, moe::route),
    check("moe-group", false, moe::group),
    check("moe-vec", false, moe::vec),
    check("moe-tile", false, moe::tile),
    check("moe-glu", false, moe_few::glu),
    check("moe-down", false, moe_few::down),
    check("moe-combine", false, moe::combine),
    check("short-conv", false, recurrent::short_conv),
    check("state-scan", false, recurrent::state_scan),
    check("state-step", false, recurrent::state_step),
    check("gated-norm", false, recurrent::gated_norm),
    check("sigmoid-gate", false, recurrent::sigmoid_gate),
    check("sample-greedy", false, sampling::greedy),
    check("sample-draw", false, sampling::draw),
    check("check-stop", false, sampling::check_stop),
    check("step-greedy", false, sampling::step_greedy),
    check("step-begin", false, sampling::step_begin),
    check("step-switch", false, sampling::step_switch),
    check("token-scores", false, results::token_scores),
    check("pool-rows", false, results::pool),
    check("unit-rows", false, results::unit),
    check("device-width", false, elementwise::device_width),
    check("tensor-stats", true, stats::tensor_stats_check),
];

/// The largest error of a case and what was allowed there.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) case: String,
    pub(super) error: f64,
    pub(super) bound: f64,
}

impl Measured {
    /// Error by bound; above 1 is a failure.
    pub(super) fn ratio(&self) -> f64 {
        match self.error {
            e if e.is_nan() => f64::INFINITY,
            0.0 => 0.0,
            e => e / self.bound,
        }
    }

    pub(super) fn passes(&self) -> bool {
        self.ratio() <= 1.0
    }

    /// The count of what is wrong; none is allowed.
    fn exact(case: String, wrong: usize) -> Self {
        Self { case, error: wrong as f64, bound: 0.0 }
    }
}

/// A wanted value, and the size of the terms it was summed from.
#[derive(Clone, Copy)]
struct Want(f64, f64);

impl From<f64> for Want {
    fn from(v: f64) -> Self {
        Want(v, v.abs())
    }
}

/// Compares results with `abs + rel · size` allowed; the element nearest to its bound, or furthest beyond it, is told.
fn compare(case: String, got: &[f32], want: &[Want], abs: f64, rel: f64) -> Measured {
    let mut worst = Measured { case, error: 0.0, bound: abs };
    if got.len() != want.len() {
        worst.error = f64::INFINITY;
    }
    for (&g, &Want(value, size)) in got.iter().zip(want) {
        let here = Measured { case: String::new(), error: (f64::from(g) - value).abs(), bound: abs + rel * size };
        if here.ratio() > worst.ratio() {
            worst = Measured { case: worst.case, ..here };
        }
    }
    worst
}

/// The device, and what every check needs of it. It notes which variants were dispatched and their results read.
pub(super) struct Lab {
    gpu: Arc<Gpu>,
    scope: Scope,
    coverage: RefCell<Coverage>,
}

/// What results are filled with before a kernel runs.
const BLANK: f32 = -77.0;

impl Lab {
    pub(super) fn new(gpu: Arc<Gpu>, mut coverage: Coverage) -> Self {
        coverage.begin();
        let scope = gpu.scope(Phase::Other);
        Self { gpu, scope, coverage: RefCell::new(coverage) }
    }

    pub(super) fn into_coverage(self) -> Coverage {
        self.coverage.into_inner()
    }

    /// Runs a check and books what it compared.
    pub(super) fn check(&self, check: &Check) -> Result<Vec<Measured>> {
        let result = (check.run)(self);
        let pass = result.as_ref().is_ok_and(|cases| !cases.is_empty() && cases.iter().all(Measured::passes));
        self.coverage.borrow_mut().end(check.name, pass);
        result
    }

    /// True if kernels that the check runs have variants to be tried on this device.
    pub(super) fn wants(&self, check: &Check) -> bool {
        // No kernel declares what it is as a stage of a chain.
        let chains = check.name == "chain" && self.gpu.features().chains;
        chains || self.coverage.borrow().wants(check.name, self.gpu.features())
    }

    /// The forms of a kernel that are to be tried on this device: a check that turns each into a case need not know which there are.
    fn variants(&self, kernel: &str) -> Vec<Variant> {
        self.coverage.borrow().missing_forms(kernel, self.gpu.features())
    }

    /// A buffer with these words, rounded up to 16 bytes.
    fn words(&self, words: &[u32]) -> Result<Buffer> {
        let size = (words.len() as u64 * 4).next_multiple_of(16).max(16);
        let b = self.gpu.storage("selfcheck", size, MemoryClass::Other, &self.scope)?;
        self.gpu.upload(b.whole(), bytemuck::cast_slice(words), &self.scope)?;
        Ok(b)
    }

    fn floats(&self, values: &[f32]) -> Result<Buffer> {
        self.words(bytemuck::cast_slice(values))
    }

    fn blank(&self, n: usize) -> Result<Buffer> {
        self.floats(&vec![BLANK; n])
    }

    fn run<'a>(&self, dispatches: impl IntoIterator<Item = Dispatch<'a>>) -> Result<()> {
        for d in dispatches {
            self.coverage.borrow_mut().dispatched(&d, self.gpu.features())?;
            d.run(&self.gpu, &self.scope)?;
        }
        Ok(())
    }

    fn read_words(&self, b: &Buffer, n: usize) -> Result<Vec<u32>> {
        let bytes = self.gpu.download(b.slice(0, n as u64 * 4), ReadbackClass::State, &self.scope)?;
        self.coverage.borrow_mut().read(b);
        Ok(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
    }

    fn read(&self, b: &Buffer, n: usize) -> Result<Vec<f32>> {
        Ok(bytemuck::cast_vec(self.read_words(b, n)?))
    }
}

/// xorshift64* (Vigna 2016): the same numbers on every machine.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub(super) fn units(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    fn below(&mut self, n: u32) -> u32 {
        (((self.word() >> 32) * u64::from(n)) >> 32) as u32
    }

    fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut v: Vec<u32> = (0..n).collect();
        for i in (1..v.len()).rev() {
            v.swap(i, self.below(i as u32 + 1) as usize);
        }
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_finds_the_worst_element_and_nan() {
        let want: Vec<Want> = [1.0, 2.0, 3.0].map(Want::from).to_vec();
        let m = compare("x".into(), &[1.0, 2.002, 3.0], &want, 0.0, 1e-2);
        assert!(m.passes() && (m.error - 0.002).abs() < 1e-6 && (m.bound - 0.02).abs() < 1e-12);
        assert!(!compare("x".into(), &[1.0, 2.1, 3.0], &want, 0.0, 1e-2).passes());
        assert!(!compare("x".into(), &[f32::NAN, 2.0, 3.0], &want, 1.0, 1.0).passes());
        assert!(!compare("x".into(), &[1.0], &want, 1.0, 1.0).passes());
        assert!(Measured::exact("x".into(), 0).passes() && !Measured::exact("x".into(), 1).passes());
    }

    #[test]
    fn every_kernel_has_a_check() {
        // Kernels that are checked under another name.
        let covered = [
            ("activate", "silu"),
            ("attention_combine", "attention-decode"),
            ("attention_coop", "attention-prefill"),
            ("attention_decode", "attention-decode"),
            ("attention_prefill", "attention-prefill"),
            ("byte_rows", "byte-rows"),
            ("activate_half", "halves"),
            ("half_rows", "halves"),
            ("norm_half", "halves"),
            ("half_weights", "matmul-coop"),
            ("matmul_coop", "matmul-coop"),
            ("matmul_few", "matmul-few"),
            ("matmul_glu", "matmul-glu"),
            ("matmul_next", "matmul-next"),
            ("matmul_tile", "matmul-tile"),
            ("matmul_vec", "matmul-vec"),
            ("moe_combine", "moe-combine"),
            ("moe_down", "moe-down"),
            ("moe_glu", "moe-glu"),
            ("moe_group", "moe-group"),
            ("moe_route", "moe-route"),
            ("moe_coop", "moe-tile"),
            ("moe_tile", "moe-tile"),
            ("moe_tiles", "moe-group"),
            ("moe_vec", "moe-vec"),
            ("qk_norm", "qk-norm"),
            ("short_conv", "short-conv"),
            ("sum_parts", "matmul-few"),
            ("state_scan", "state-scan"),
            ("state_step", "state-step"),
            ("gated_norm", "gated-norm"),
            ("sigmoid_gate", "sigmoid-gate"),
            ("check_stop", "check-stop"),
            ("step_begin", "step-begin"),
            ("step_switch", "step-switch"),
            ("tensor_stats", "tensor-stats"),
            ("device_width", "device-width"),
            ("log_sum", "token-scores"),
            ("token_score", "token-scores"),
            ("pool_rows", "pool-rows"),
            ("unit_rows", "unit-rows"),
            ("sample_argmax", "sample-greedy"),
            ("sample_penalize", "sample-draw"),
            ("sample_greedy", "step-greedy"),
            ("sample_pick", "sample-draw"),
        ];
        for kernel in doppler::kernels::KERNELS {
            let name = covered.iter().find(|c| c.0 == kernel.name).map_or(kernel.name, |c| c.1);
            assert!(CHECKS.iter().any(|c| c.name == name), "kernel {} has no check", kernel.name);
        }
    }
}
