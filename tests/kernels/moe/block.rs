//! The whole block, as a model records it: against f64, and the same bits however it is run and whatever its buffers held.

use std::sync::Arc;

use doppler::gpu::{Buffer, Dispatch, Gpu};
use doppler::kernels::{
    Activation, Matrix, SharedExpert, glu, matmul, moe_combine, moe_group, moe_matmul, moe_route, tile_columns,
};
use doppler::quant::{Format, by_name};

use super::routing::route;
use super::{Buffers, TestExperts, experts, shape};
use crate::common::*;
use crate::weights::{TestWeight, weight};

#[derive(Clone, Copy)]
struct Case {
    rows: u32,
    n_expert: u32,
    n_used: u32,
    n_embd: u32,
    n_ff: u32,
    renormalize: bool,
    scale: f32,
    tiles: bool,
    format: &'static Format,
}

/// A mixture's weights and input.
struct Block {
    case: Case,
    router: TestWeight,
    gate_up: TestExperts,
    down: TestExperts,
    input: Vec<f32>,
    stream: Vec<f32>,
}

/// Everything that one evaluation reads and writes.
struct Memory {
    buffers: Buffers,
    input: Buffer,
    x: Buffer,
    logits: Buffer,
    gate_up: Buffer,
    ff: Buffer,
    down: Buffer,
}

impl Block {
    fn new(v: &Variant, case: Case) -> Self {
        let gpu: &Gpu = &v.gpu;
        let mut rng = Rng(u64::from(case.rows) * 7 + u64::from(case.n_expert));
        let (e, f) = (case.n_embd as usize, case.n_ff);
        let n = case.rows as usize * e;
        Self {
            case,
            router: weight(gpu, &mut rng, e, &[(by_name("F32").unwrap(), case.n_expert)], false),
            gate_up: experts(gpu, &mut rng, case.n_expert, e, &[(case.format, f), (case.format, f)], false),
            down: experts(gpu, &mut rng, case.n_expert, f as usize, &[(case.format, case.n_embd)], false),
            input: rng.floats(n),
            stream: rng.floats(n),
        }
    }

    fn memory(&self, v: &Variant, dirt: u32) -> Memory {
        let (c, gpu) = (&self.case, &*v.gpu);
        let s = shape(c.rows, c.n_expert, c.n_used);
        let filled = |rows: u32, cols: u32| upload_words(gpu, &vec![dirt; (rows * cols) as usize]);
        let entries = c.rows * c.n_used;
        Memory {
            buffers: Buffers::new(v, s, [&self.gate_up, &self.down].map(|w| tile_columns(&w.weight)), dirt),
            input: upload(gpu, &self.input),
            x: upload(gpu, &self.stream),
            logits: filled(c.rows, c.n_expert),
            gate_up: filled(entries, 2 * c.n_ff),
            ff: filled(entries, c.n_ff),
            down: filled(entries, c.n_embd),
        }
    }

    fn dispatches<'a>(&'a self, gpu: &Gpu, m: &'a Memory) -> Vec<Dispatch<'a>> {
        let c = &self.case;
        let entries = c.rows * c.n_used;
        let (input, x) = (Matrix::new(&m.input, c.rows, c.n_embd), Matrix::new(&m.x, c.rows, c.n_embd));
        let logits = Matrix::new(&m.logits, c.rows, c.n_expert);
        let gate_up = Matrix::new(&m.gate_up, entries, 2 * c.n_ff);
        let (ff, down) = (Matrix::new(&m.ff, entries, c.n_ff), Matrix::new(&m.down, entries, c.n_embd));
        let (routing, grouping) = (m.buffers.routing(), c.tiles.then(|| m.buffers.grouping()));
        let mut all = matmul(gpu, input, &self.router.weight, logits, false).unwrap();
        all.push(moe_route(gpu, logits, routing, c.renormalize, c.scale).unwrap());
        if let Some(grouping) = grouping {
            all.extend(moe_group(routing, grouping).unwrap());
        }
        all.extend(moe_matmul(input, &self.gate_up.weight, gate_up, routing, grouping).unwrap());
        let (gate, up) = (gate_up.columns(0, c.n_ff), gate_up.columns(c.n_ff, c.n_ff));
        all.push(glu(Activation::Silu, gate, up, ff).unwrap());
        all.extend(moe_matmul(ff, &self.down.weight, down, routing, grouping).unwrap());
        all.push(moe_combine(routing, down, None, x).unwrap());
        all
    }

    /// The stream after the block, from logits of the device (so that a near tie cannot choose otherwise here).
    fn reference(&self, logits: &[f32]) -> Vec<Want> {
        let c = &self.case;
        let (e, f) = (c.n_embd as usize, c.n_ff as usize);
        let dot = |a: &[f64], w: &[f32]| {
            a.iter().zip(w).fold((0.0, 0.0), |(v, m), (&a, &w)| (v + a * f64::from(w), m + (a * f64::from(w)).abs()))
        };
        let mut want: Vec<Want> = self.stream.iter().map(|&v| f64::from(v).into()).collect();
        for (row, want) in want.chunks_exact_mut(e).enumerate() {
            let x: Vec<f64> = self.input[row * e..][..e].iter().map(|&v| v.into()).collect();
            let own = &logits[row * c.n_expert as usize..][..c.n_expert as usize];
            let (ids, weights) = route(own, c.n_used as usize, c.renormalize, c.scale);
            for (id, weight) in ids.into_iter().zip(weights) {
                let (gates, ups) = self.gate_up.values[id as usize * 2 * f * e..][..2 * f * e].split_at(f * e);
                // Each inner value, and the size of what its rounding errors are relative to.
                let inner: Vec<(f64, f64)> = gates
                    .chunks_exact(e)
                    .zip(ups.chunks_exact(e))
                    .map(|(g, u)| {
                        let ((gate, gate_size), (up, up_size)) = (dot(&x, g), dot(&x, u));
                        let act = gate / (1.0 + (-gate).exp());
                        (act * up, 1.1 * gate_size * up.abs() + up_size * act.abs())
                    })
                    .collect();
                for (c, want) in want.iter_mut().enumerate() {
                    let w = &self.down.values[(id as usize * e + c) * f..][..f];
                    for (&(v, size), &w) in inner.iter().zip(w) {
                        want.value += weight * v * f64::from(w);
                        want.magnitude += weight.abs() * size * f64::from(w).abs();
                    }
                }
            }
        }
        want
    }
}

fn check(v: &Variant, case: Case) {
    let gpu: &Arc<Gpu> = &v.gpu;
    let block = Block::new(v, case);
    let n = block.stream.len();
    let what = format!(
        "{} of {} experts {} x {} in {}, {} rows, tiles {} ({})",
        case.n_used, case.n_expert, case.n_embd, case.n_ff, case.format.name, case.rows, case.tiles, v.name
    );
    // One submit for all, in buffers of NaN.
    let m = block.memory(v, 0x7fc0_1234);
    let scope = v.scope();
    let record = || {
        let mut recorder = gpu.recorder("block", &scope);
        block.dispatches(gpu, &m).into_iter().for_each(|d| recorder.record(d).unwrap());
        recorder
    };
    record().submit().unwrap();
    let first = download(gpu, &m.x, n);
    let logits = download(gpu, &m.logits, (case.rows * case.n_expert) as usize);
    let mut wanted = Vec::new();
    for row in block.input.chunks_exact(case.n_embd as usize) {
        for w in block.router.values.chunks_exact(case.n_embd as usize) {
            let terms = row.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b));
            let (value, magnitude) = terms.fold((0.0, 0.0), |(v, m), t| (v + t, m + t.abs()));
            wanted.push(Want { value, magnitude });
        }
    }
    close(&format!("{what}: router"), &logits, &wanted, 1e-6, 1e-5);
    close(&what, &first, &block.reference(&logits), 1e-6, 1e-5);
    // Again in what the first left, recorded and as a plan.
    for plan in [false, true] {
        gpu.upload(m.x.whole(), bytemuck::cast_slice(&block.stream), &scope).unwrap();
        let mut recorder = record();
        if plan {
            let frozen = Arc::new(recorder.into_plan().unwrap());
            recorder = gpu.recorder("replay", &scope);
            recorder.replay(&frozen);
        }
        recorder.submit().unwrap();
        same_bits(&format!("{what}: again, plan {plan}"), &download(gpu, &m.x, n), &first);
    }
    // One submit each, in buffers with other contents.
    let other = block.memory(v, 7);
    run(gpu, block.dispatches(gpu, &other));
    same_bits(&format!("{what}: run one by one"), &download(gpu, &other.x, n), &first);
}

fn case(rows: u32, n_expert: u32, n_used: u32, tiles: bool) -> Case {
    let format = by_name("F32").unwrap();
    Case { rows, n_expert, n_used, n_embd: 36, n_ff: 68, renormalize: true, scale: 1.0, tiles, format }
}

#[test]
fn every_mixture() {
    let Some(v) = full() else { return };
    for tiles in [false, true] {
        for rows in [1, 2, 5, 33, 300] {
            for (n_expert, n_used) in [(4, 2), (8, 2), (60, 4), (3, 3), (1, 1)] {
                check(v, case(rows, n_expert, n_used, tiles));
            }
        }
        check(v, case(40, 128, 8, tiles));
        check(v, case(9, 512, 10, tiles));
        check(v, Case { renormalize: false, scale: 2.5, ..case(21, 60, 4, tiles) });
    }
}

#[test]
fn every_variant_of_the_device() {
    for v in variants() {
        for tiles in [false, true] {
            check(v, case(35, 8, 2, tiles));
        }
    }
}

#[test]
fn every_format() {
    let Some(v) = full() else { return };
    for format in doppler::quant::FORMATS {
        let [n_embd, n_ff] = [96u32, 160].map(|k| k.next_multiple_of(format.block_len as u32));
        for tiles in [false, true] {
            check(v, Case { n_embd, n_ff, format, ..case(35, 8, 2, tiles) });
        }
    }
}

/// The sum alone, with and without an expert that every row uses; more workgroups than a grid dimension holds.
#[test]
fn combine_alone() {
    for v in variants() {
        for (rows, n_used, cols, gap) in [(3, 1, 4, 4), (7, 3, 260, 8)] {
            for shared in [false, true] {
                combine(v, (rows, n_used, cols, gap), shared);
            }
        }
    }
    if let Some(v) = full() {
        combine(v, (66_000, 1, 256, 0), false);
    }
}

fn combine(v: &Variant, (rows, n_used, cols, gap): (usize, usize, usize, usize), shared: bool) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(rows as u64);
    let entries = rows * n_used;
    let b = Buffers::new(v, shape(rows as u32, 8, n_used as u32), [1, 1], 0);
    let weights = rng.floats(entries);
    gpu.upload(b.weights.whole(), bytemuck::cast_slice(&weights), &v.scope()).unwrap();
    let stride = cols + gap;
    let (y, x) = (rng.floats(entries * stride), rng.floats(rows * stride));
    // Gates so far out that the exponential overflows, too.
    let mut gates: Vec<f32> = rng.floats(rows).iter().map(|g| g * 4.0).collect();
    (gates[0], gates[1]) = (-200.0, 200.0);
    let beside = if shared { rng.floats(rows * stride) } else { Vec::new() };
    let (yb, xb, gb, sb) = (upload(gpu, &y), upload(gpu, &x), upload(gpu, &gates), upload(gpu, &beside));
    let columns =
        |b, rows: usize, from: usize| Matrix::new(b, rows as u32, stride as u32).columns(from as u32, cols as u32);
    let other = shared.then(|| SharedExpert { gate: (&gb).into(), y: columns(&sb, rows, gap) });
    run(gpu, [moe_combine(b.routing(), columns(&yb, entries, gap), other, columns(&xb, rows, 0)).unwrap()]);
    let want: Vec<Want> = (0..rows * stride)
        .map(|i| {
            let (row, c) = (i / stride, i % stride);
            let mut want = Want::from(f64::from(x[i]));
            let mut add = |p: f64| {
                want.value += p;
                want.magnitude += p.abs();
            };
            for e in (row * n_used..(row + 1) * n_used).filter(|_| c < cols) {
                add(f64::from(weights[e]) * f64::from(y[e * stride + gap + c]));
            }
            if shared && c < cols {
                add(f64::from(beside[i + gap]) / (1.0 + (-f64::from(gates[row])).exp()));
            }
            want
        })
        .collect();
    let what = format!("combine {rows} x {cols}, {n_used} experts, shared {shared} ({})", v.name);
    close(&what, &download(gpu, &xb, want.len()), &want, 1e-9, 1e-6);
}

#[test]
fn combine_checks_shapes() {
    let Some(v) = full() else { return };
    let f = untouched(&v.gpu, 4096);
    let b = Buffers::new(v, shape(6, 8, 2), [1, 1], 0);
    let m = |rows, cols| Matrix::new(&f, rows, cols);
    let gates = |words: u64| f.slice(0, words * 4);
    let other = |rows, cols, words| Some(SharedExpert { gate: gates(words), y: m(rows, cols) });
    assert!(moe_combine(b.routing(), m(12, 8), other(6, 8, 6), m(6, 8)).is_ok());
    for (y, shared, x) in [
        (m(11, 8), None, m(6, 8)),
        (m(12, 8), None, m(5, 8)),
        (m(12, 12), None, m(6, 8)),
        (m(12, 6), None, m(6, 6)),
        (m(12, 8), other(5, 8, 6), m(6, 8)),
        (m(12, 8), other(6, 4, 6), m(6, 8)),
        (m(12, 8), other(6, 8, 5), m(6, 8)),
    ] {
        assert!(moe_combine(b.routing(), y, shared, x).is_err());
    }
}

#[test]
fn widths_of_grids_come_from_the_weights() {
    let Some(v) = full() else { return };
    let w = experts(&v.gpu, &mut Rng(1), 2, 32, &[(by_name("Q8_0").unwrap(), 65)], false);
    assert_eq!(tile_columns(&w.weight), 2);
}
