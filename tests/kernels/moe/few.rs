//! Experts of few rows in two dispatches: what they make, also in grids of several dimensions, the same bits however they are run, and what they refuse.

use std::sync::Arc;

use doppler::gpu::{Buffer, Dispatch, Gpu};
use doppler::kernels::{
    Activation, Input, Matrix, Next, RowNorm, SharedExpert, byte_rows, moe_down, moe_few_fits, moe_glu,
};
use doppler::quant::by_name;

use super::{Buffers, TestExperts, experts, random_ids, shape};
use crate::bytes::{Bytes, rounded};
use crate::common::*;

/// Both products over the same rows, and everything that they read and write.
struct Few {
    gate_up: TestExperts,
    down: TestExperts,
    ids: Vec<u32>,
    weights: Vec<f32>,
    buffers: Buffers,
    x: Bytes,
    sums: Vec<f32>,
    gates: Vec<f32>,
    beside: Vec<f32>,
    stream: Vec<f32>,
    next_w: Vec<f32>,
    /// Sums of squares, norm weights, gates, the shared expert's rows.
    read: [Buffer; 4],
    inner: Bytes,
    y: Buffer,
    bytes: Bytes,
    block_sums: Buffer,
}

const EPS: f32 = 1e-2;

impl Few {
    fn new(v: &Variant, (rows, n_expert, n_used): (u32, u32, u32), [e, f]: [u32; 2], format: &str, dirt: u32) -> Self {
        let gpu: &Gpu = &v.gpu;
        let mut rng = Rng(u64::from(rows) + u64::from(e));
        let format = by_name(format).unwrap();
        let gate_up = experts(gpu, &mut rng, n_expert, e as usize, &[(format, f), (format, f)], false);
        let down = experts(gpu, &mut rng, n_expert, f as usize, &[(format, e)], false);
        assert!(moe_few_fits(Activation::Silu, &gate_up.weight, &down.weight));
        let s = shape(rows, n_expert, n_used);
        let ids = random_ids(&mut rng, s, n_expert);
        let n = (rows * e) as usize;
        let weights = rng.floats(ids.len());
        let mut buffers = Buffers::with_ids(v, s, [1, 1], &ids);
        buffers.weights = upload(gpu, &weights);
        let input = upload(gpu, &rng.floats(n));
        let x = Bytes::new(gpu, rows as usize, e as usize);
        run(gpu, byte_rows(Matrix::new(&input, rows, e), x.operand()));
        let sums: Vec<f32> = rng.floats(n / 32).iter().map(|s| 20.0 * s.abs()).collect();
        let (gates, beside) = (rng.floats(rows as usize), rng.floats(n));
        let (stream, next_w) = (rng.floats(n), rng.floats(e as usize));
        let filled = |n: usize| upload_words(gpu, &vec![dirt; n]);
        Self {
            read: [&sums, &next_w, &gates, &beside].map(|values| upload(gpu, values)),
            inner: Bytes::new(gpu, ids.len(), f as usize),
            y: upload(gpu, &stream),
            bytes: Bytes::new(gpu, rows as usize, e as usize),
            block_sums: filled(n / 32),
            gate_up,
            down,
            ids,
            weights,
            buffers,
            x,
            sums,
            gates,
            beside,
            stream,
            next_w,
        }
    }

    fn rows(&self) -> usize {
        self.buffers.shape.rows as usize
    }

    fn dispatches(&self, gpu: &Gpu) -> [Dispatch<'_>; 2] {
        let [sums, norm_w, gates, beside] = &self.read;
        let (rows, e) = (self.rows() as u32, self.gate_up.weight.k());
        let norm = Some(RowNorm { w: norm_w.into(), eps: EPS, sums: Some(sums.into()), scaled: false });
        let y = Matrix::new(&self.y, rows, e);
        let input = Input { x: y, bytes: Some(self.x.operand()), norm, half: None };
        let shared = SharedExpert { gate: gates.into(), y: Matrix::new(beside, rows, e) };
        let next = Next {
            w: norm_w.into(),
            bytes: Some(self.bytes.operand()),
            numbers: None,
            sums: (&self.block_sums).into(),
        };
        let (routing, inner) = (self.buffers.routing(), self.inner.operand());
        [
            moe_glu(gpu, Activation::Silu, input, &self.gate_up.weight, routing, inner).unwrap(),
            moe_down(gpu, inner, &self.down.weight, routing, Some(shared), y, Some(next)).unwrap(),
        ]
    }

    fn written(&self, gpu: &Gpu) -> Vec<f32> {
        let n = self.stream.len();
        [download(gpu, &self.y, n), download(gpu, &self.block_sums, n / 32)].concat()
    }

    /// Against f64: the inner values as bytes, and the stream from the bytes that are there.
    fn check(&self, gpu: &Gpu, what: &str) {
        let (e, f) = (self.gate_up.weight.k() as usize, self.down.weight.k() as usize);
        let used = self.buffers.shape.n_used as usize;
        let (x, inner) = (self.x.read(gpu), self.inner.read(gpu));
        let dot = |a: &[f64], w: &[f32]| {
            a.iter().zip(w).fold((0.0, 0.0), |(v, m), (&a, &w)| (v + a * f64::from(w), m + (a * f64::from(w)).abs()))
        };
        let mut want: Vec<Want> = self.stream.iter().map(|&v| f64::from(v).into()).collect();
        for (entry, &id) in self.ids.iter().enumerate() {
            let row = entry / used;
            let squares: f64 = self.sums[row * e / 32..][..e / 32].iter().map(|&s| f64::from(s)).sum();
            let scale = 1.0 / (squares / e as f64 + f64::from(EPS)).sqrt();
            let values = &self.gate_up.values[id as usize * 2 * f * e..][..2 * f * e];
            let got = &inner[entry * f..][..f];
            for (r, block) in got.chunks_exact(32).enumerate() {
                let exact: Vec<f64> = (r * 32..(r + 1) * 32)
                    .map(|c| {
                        let [gate, up] =
                            [c, f + c].map(|row| scale * dot(&x[entry / used * e..][..e], &values[row * e..][..e]).0);
                        gate / (1.0 + (-gate).exp()) * up
                    })
                    .collect();
                let top = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                for (g, w) in block.iter().zip(&exact) {
                    assert!(
                        (g - w).abs() <= top * 0.505 / 127.0 + 1e-5,
                        "{what}: entry {entry}: {g}, wanted {w} of {top}"
                    );
                }
            }
            let weight = f64::from(self.weights[entry]);
            for (c, want) in want[row * e..][..e].iter_mut().enumerate() {
                let (value, size) = dot(got, &self.down.values[(id as usize * e + c) * f..][..f]);
                want.value += weight * value;
                want.magnitude += weight.abs() * (size + 20.0);
            }
        }
        for (row, want) in want.chunks_exact_mut(e).enumerate() {
            let weight = 1.0 / (1.0 + (-f64::from(self.gates[row])).exp());
            want.iter_mut().zip(&self.beside[row * e..]).for_each(|(w, &v)| w.value += weight * f64::from(v));
        }
        let got = download(gpu, &self.y, want.len());
        close(what, &got, &want, 1e-5, 1e-5);
        let weighted: Vec<f32> = got.iter().zip(self.next_w.iter().cycle()).map(|(y, w)| y * w).collect();
        rounded(what, &self.bytes.read(gpu), &weighted);
        let squares: Vec<Want> =
            got.chunks_exact(32).map(|b| b.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().into()).collect();
        // They have 15 bits of mantissa.
        close(what, &download(gpu, &self.block_sums, squares.len()), &squares, 1e-6, 2.5e-5);
    }
}

#[test]
fn two_dispatches_make_the_experts_of_a_row() {
    for v in variants() {
        for (mixture, sizes, format) in [
            ((1, 8, 2), [256, 96], "Q8_0"),
            ((3, 6, 3), [96, 288], "Q4_0"),
            ((8, 40, 8), [512, 256], "Q4_K"),
            ((5, 4, 1), [32, 32], "Q5_1"),
        ] {
            let few = Few::new(v, mixture, sizes, format, 7);
            run(&v.gpu, few.dispatches(&v.gpu));
            few.check(&v.gpu, &format!("{mixture:?}, {sizes:?}, {format} ({})", v.name));
        }
    }
}

#[test]
fn more_blocks_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    // 66,006 workgroups of either product.
    let few = Few::new(v, (33_003, 3, 1), [64, 64], "Q8_0", 7);
    run(&v.gpu, few.dispatches(&v.gpu));
    few.check(&v.gpu, "many rows");
}

#[test]
fn recorded_and_replayed_they_give_the_same_bits() {
    for v in variants() {
        let (gpu, scope) = (&v.gpu, v.scope());
        let make = |dirt| Few::new(v, (4, 8, 2), [128, 64], "Q4_0", dirt);
        let [alone, recorded, replayed] = [make(7), make(0x7fc0_1234), make(0)];
        run(gpu, alone.dispatches(gpu));
        let mut recorder = gpu.recorder("recorded", &scope);
        recorded.dispatches(gpu).into_iter().for_each(|d| recorder.record(d).unwrap());
        recorder.submit().unwrap();
        let mut recorder = gpu.recorder("replayed", &scope);
        replayed.dispatches(gpu).into_iter().for_each(|d| recorder.record(d).unwrap());
        let plan = Arc::new(recorder.into_plan().unwrap());
        let mut recorder = gpu.recorder("replay", &scope);
        recorder.replay(&plan);
        recorder.submit().unwrap();
        let want = alone.written(gpu);
        same_bits(&format!("recorded ({})", v.name), &recorded.written(gpu), &want);
        same_bits(&format!("replayed ({})", v.name), &replayed.written(gpu), &want);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let few = Few::new(v, (2, 4, 2), [64, 64], "Q8_0", 7);
    let (glu, down, routing) = (&few.gate_up.weight, &few.down.weight, few.buffers.routing());
    let y = Matrix::new(&few.y, 2, 64);
    let input = Input { x: y, bytes: Some(few.x.operand()), norm: None, half: None };
    let inner = few.inner.operand();
    assert!(moe_glu(gpu, Activation::Silu, input, glu, routing, inner).is_ok());
    assert!(moe_glu(gpu, Activation::Silu, y.into(), glu, routing, inner).is_err(), "no bytes");
    assert!(moe_glu(gpu, Activation::Silu, input, down, routing, inner).is_err(), "half as many rows");
    let clamped = Activation::ClampedSwiglu { alpha: 1.7, limit: 7.0 };
    assert!(moe_glu(gpu, clamped, input, glu, routing, inner).is_err(), "activation");
    let sums = RowNorm { w: (&few.y).into(), eps: EPS, sums: None, scaled: false };
    assert!(
        moe_glu(gpu, Activation::Silu, Input { norm: Some(sums), ..input }, glu, routing, inner).is_err(),
        "no sums"
    );
    assert!(moe_down(gpu, inner, down, routing, None, y, None).is_ok());
    assert!(moe_down(gpu, few.x.operand(), down, routing, None, y, None).is_err(), "as many rows as entries");
    assert!(moe_down(gpu, inner, down, routing, None, Matrix::new(&few.y, 1, 64), None).is_err(), "a row of y");
    let other = experts(gpu, &mut Rng(3), 4, 64, &[(by_name("F16").unwrap(), 64)], false);
    assert!(moe_down(gpu, inner, &other.weight, routing, None, y, None).is_err(), "no bytes in the weight");
    assert!(!moe_few_fits(Activation::Silu, glu, &other.weight) && !moe_few_fits(clamped, glu, down));
    let odd = experts(gpu, &mut Rng(3), 4, 64, &[(by_name("Q8_0").unwrap(), 48)], false);
    assert!(!moe_few_fits(Activation::Silu, glu, &odd.weight) && !moe_few_fits(Activation::Silu, &odd.weight, down));
}
