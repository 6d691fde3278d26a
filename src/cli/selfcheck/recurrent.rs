//! Checks of short convolutions, scans of matrix states, and gates.

use doppler::Result;
use doppler::gpu::Buffer;
use doppler::kernels::constants::THREADS_LONG;
use doppler::kernels::sample::{Row, SeqState};
use doppler::kernels::{self, Matrix, Memory, NO_PLACE, Places, ScanInputs, ScanShape, Segments, ShortConv};

use super::{BLANK, Lab, Measured, Rng, Want, compare};

/// States there are.
const PLACES: usize = 3;

fn silu_of(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn sigmoid_of(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// One sequence of some rows that goes on from a state, or several of one row: one goes on, one begins, one has stopped.
struct Batch {
    steps: usize,
    places: Vec<Places>,
    rows: Buffer,
    table: Buffer,
}

impl Batch {
    fn new(lab: &Lab, steps: usize, places: &[Places]) -> Result<Self> {
        let row = |i: usize| Row { slot: (i / steps) as u32, pos: i as u32 };
        let rows: Vec<Row> = (0..steps * places.len()).map(row).collect();
        let (rows, table) = (lab.words(bytemuck::cast_slice(&rows))?, lab.words(bytemuck::cast_slice(places))?);
        Ok(Self { steps, places: places.to_vec(), rows, table })
    }

    fn both(lab: &Lab) -> Result<[Self; 2]> {
        let p = |before, after| Places { before, after };
        Ok([Self::new(lab, 11, &[p(2, 0)])?, Self::new(lab, 1, &[p(2, 2), p(NO_PLACE, 0), p(1, NO_PLACE)])?])
    }

    fn rows(&self) -> usize {
        self.steps * self.places.len()
    }

    fn memory<'a>(&'a self, states: &'a Buffer) -> Memory<'a> {
        let (sequences, steps) = (self.places.len() as u32, self.steps as u32);
        Memory { sequences, steps, rows: (&self.rows).into(), places: (&self.table).into(), states: states.into() }
    }
}

pub(super) fn short_conv(lab: &Lab) -> Result<Vec<Measured>> {
    let (channels, kernel) = (37usize, 4usize);
    let mut all = Vec::new();
    for form in lab.variants("short_conv") {
        let (with_bias, silu, gated) = (form.has("BIAS"), form.has("SILU"), form.has("GATED"));
        for batch in Batch::both(lab)? {
            let (rows, past) = (batch.rows(), kernel - 1);
            let mut rng = Rng::new(rows as u64);
            let (x, w, bias) = (rng.units(rows * 3 * channels), rng.units(channels * kernel), rng.units(channels));
            let old = rng.units(PLACES * past * channels);
            let (xb, wb, bb) = (lab.floats(&x)?, lab.floats(&w)?, lab.floats(&bias)?);
            let (sb, yb) = (lab.floats(&old)?, lab.blank(rows * channels)?);
            let m = Matrix::new(&xb, rows as u32, 3 * channels as u32);
            let part = |i: usize| m.columns((i * channels) as u32, channels as u32);
            let bias_of = with_bias.then(|| (&bb).into());
            let conv = ShortConv { kernel: kernel as u32, w: (&wb).into(), bias: bias_of, silu };
            let gates = gated.then(|| [part(0), part(1)]);
            let y = Matrix::new(&yb, rows as u32, channels as u32);
            lab.run([kernels::short_conv(conv, part(2), gates, batch.memory(&sb), y)?])?;
            let at = |r: usize, i: usize, c: usize| f64::from(x[(r * 3 + i) * channels + c]);
            let mut want = vec![Want(0.0, 0.0); rows * channels];
            let mut want_states: Vec<Want> = old.iter().map(|&v| f64::from(v).into()).collect();
            for (q, place) in batch.places.iter().enumerate() {
                let first = q * batch.steps;
                for c in 0..channels {
                    let input = |i: usize| match i < past {
                        true if place.before == NO_PLACE => 0.0,
                        true => f64::from(old[(place.before as usize * past + i) * channels + c]),
                        false => at(first + i - past, 2, c) * if gated { at(first + i - past, 0, c) } else { 1.0 },
                    };
                    for t in 0..batch.steps {
                        let products = (0..kernel).map(|j| f64::from(w[c * kernel + j]) * input(t + j));
                        let terms: Vec<f64> = products.chain(with_bias.then(|| f64::from(bias[c]))).collect();
                        let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
                        let gate = if gated { at(first + t, 1, c) } else { 1.0 };
                        let value = if silu { silu_of(sum) } else { sum };
                        want[(first + t) * channels + c] = Want(value * gate, size * gate.abs());
                    }
                    for j in (0..past).filter(|_| place.after != NO_PLACE) {
                        let at = (place.after as usize * past + j) * channels + c;
                        want_states[at] = input(batch.steps + j).into();
                    }
                }
            }
            let case = format!("{rows} x {channels}, {form}");
            all.push(compare(case.clone(), &lab.read(&yb, want.len())?, &want, 1e-7, 5e-6));
            all.push(compare(format!("{case}: states"), &lab.read(&sb, old.len())?, &want_states, 1e-30, 1e-6));
        }
    }
    Ok(all)
}

/// The numbers of a scan, and what they make in f64: results and states.
struct Scan {
    shape: ScanShape,
    delta: bool,
    x: Vec<f32>,
    g: Vec<f32>,
    heads: Vec<f32>,
    old: Vec<f32>,
}

impl Scan {
    fn new(shape: ScanShape, delta: bool, rows: usize) -> Self {
        let mut rng = Rng::new(u64::from(shape.key_dim));
        let [n_head, key_dim, head_dim] = [shape.n_head, shape.key_dim, shape.head_dim].map(|n| n as usize);
        let keys = (shape.n_key * shape.key_dim) as usize;
        let mut x = rng.units(rows * (2 * keys + n_head * head_dim));
        // Long keys would make the delta rule diverge.
        for row in x.chunks_mut(2 * keys + n_head * head_dim) {
            row[..2 * keys].iter_mut().for_each(|v| *v *= (3.0 / key_dim as f32).sqrt());
        }
        let g = rng.units(rows * 2 * n_head).iter().map(|v| v * 6.0).collect();
        let heads =
            rng.units(4 * n_head).iter().enumerate().map(|(i, v)| if i % 4 == 0 { v - 1.0 } else { *v }).collect();
        Self { shape, delta, x, g, heads, old: rng.units(PLACES * n_head * key_dim * head_dim) }
    }

    fn reference(&self, batch: &Batch) -> (Vec<Want>, Vec<Want>) {
        let [n_head, n_key, kd, hd] =
            [self.shape.n_head, self.shape.n_key, self.shape.key_dim, self.shape.head_dim].map(|n| n as usize);
        let (keys, width) = (n_key * kd, 2 * n_key * kd + n_head * hd);
        let mut y = vec![Want(0.0, 0.0); batch.rows() * n_head * hd];
        let mut states: Vec<Want> = self.old.iter().map(|&v| f64::from(v).into()).collect();
        for (i, place) in batch.places.iter().enumerate() {
            for h in 0..n_head {
                let key = if self.shape.tiled { h % n_key } else { h / (n_head / n_key) } * kd;
                let range = |p: u32| (p as usize * n_head + h) * kd * hd..(p as usize * n_head + h + 1) * kd * hd;
                let mut s: Vec<f64> = match place.before {
                    NO_PLACE => vec![0.0; kd * hd],
                    p => self.old[range(p)].iter().map(|&v| v.into()).collect(),
                };
                let [rate, add, skip] = [0, 1, 2].map(|j| f64::from(self.heads[4 * h + j]));
                let mut largest = 1.0f64;
                for t in 0..batch.steps {
                    let row = i * batch.steps + t;
                    let x = |c: usize| f64::from(self.x[row * width + c]);
                    let g = |c: usize| f64::from(self.g[row * 2 * n_head + c]);
                    let d = (g(h) + add).exp().ln_1p();
                    let decay = (rate * d).exp();
                    for c in 0..hd {
                        let v = x(2 * keys + h * hd + c);
                        let on_k: f64 = (0..kd).map(|r| s[r * hd + c] * x(keys + key + r)).sum();
                        let u = if self.delta { sigmoid_of(g(n_head + h)) * (v - decay * on_k) } else { d * v };
                        (0..kd).for_each(|r| s[r * hd + c] = decay * s[r * hd + c] + x(keys + key + r) * u);
                        largest = (0..kd).map(|r| s[r * hd + c].abs()).fold(largest, f64::max);
                        let terms = (0..kd).map(|r| s[r * hd + c] * x(key + r));
                        let value = terms.sum::<f64>() + if self.delta { 0.0 } else { skip * v };
                        y[(row * n_head + h) * hd + c] = Want(value, 2.0 * largest * (kd as f64).sqrt());
                    }
                }
                if place.after != NO_PLACE {
                    let new: Vec<Want> = s.iter().map(|&v| Want(v, largest)).collect();
                    states[range(place.after)].copy_from_slice(&new);
                }
            }
        }
        (y, states)
    }
}

pub(super) fn state_scan(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for form in lab.variants("state_scan") {
        // Few threads a column of the state, and many.
        for (key_dim, head_dim) in [(20, 33), (200, 9)] {
            let shape = ScanShape { n_head: 6, n_key: 2, key_dim, head_dim, tiled: form.has("TILED") };
            for batch in Batch::both(lab)? {
                let rows = batch.rows();
                let scan = Scan::new(shape, form.has("DELTA"), rows);
                let (xb, gb, hb) = (lab.floats(&scan.x)?, lab.floats(&scan.g)?, lab.floats(&scan.heads)?);
                let (sb, yb) = (lab.floats(&scan.old)?, lab.blank(rows * (6 * head_dim) as usize)?);
                let x = Matrix::new(&xb, rows as u32, 4 * key_dim + 6 * head_dim);
                let g = Matrix::new(&gb, rows as u32, 12);
                let inputs = ScanInputs {
                    q: x.columns(0, 2 * key_dim),
                    k: x.columns(2 * key_dim, 2 * key_dim),
                    v: x.columns(4 * key_dim, 6 * head_dim),
                    step: g.columns(0, 6),
                    beta: scan.delta.then(|| g.columns(6, 6)),
                    heads: (&hb).into(),
                };
                let y = Matrix::new(&yb, rows as u32, 6 * head_dim);
                lab.run([kernels::state_scan(shape, inputs, batch.memory(&sb), y)?])?;
                let (want, states) = scan.reference(&batch);
                let case = format!("{rows} rows, 6 x {key_dim} x {head_dim}, {form}");
                all.push(compare(case.clone(), &lab.read(&yb, want.len())?, &want, 1e-6, 1e-5));
                all.push(compare(format!("{case}: states"), &lab.read(&sb, states.len())?, &states, 1e-6, 1e-5));
            }
        }
    }
    Ok(all)
}

pub(super) fn state_step(lab: &Lab) -> Result<Vec<Measured>> {
    let n = 71u32;
    let rows: Vec<Row> = Rng::new(3).permutation(n).into_iter().map(|slot| Row { slot, pos: 5 }).collect();
    let states: Vec<SeqState> = (0..n).map(|i| SeqState { stop: i % 3, ..Default::default() }).collect();
    let after = |i: u32| if i % 5 == 4 { NO_PLACE } else { 200 + i };
    let places: Vec<Places> = (0..=n).map(|i| Places { before: i, after: after(i) }).collect();
    let (rb, sb) = (lab.words(bytemuck::cast_slice(&rows))?, lab.words(bytemuck::cast_slice(&states))?);
    let pb = lab.words(bytemuck::cast_slice(&places))?;
    lab.run([kernels::state_step(n, (&rb).into(), (&sb).into(), (&pb).into())?])?;
    let moved = |i: u32| match (i < n, after(i)) {
        (true, p) if p != NO_PLACE => [p, if i.is_multiple_of(3) { p } else { NO_PLACE }],
        (_, p) => [i, p],
    };
    let want: Vec<u32> = (0..=n).flat_map(moved).collect();
    let wrong = lab.read_words(&pb, want.len())?.iter().zip(&want).filter(|(a, b)| a != b).count();
    Ok(vec![Measured::exact(format!("{n} rows"), wrong)])
}

pub(super) fn gated_norm(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for form in lab.variants("gated_norm") {
        // The width chooses the workgroup.
        let (count, cols) = if form.constant("WG") == Some(THREADS_LONG) { (1usize, 2051usize) } else { (3, 35) };
        let (rows, width, gate_first) = (4usize, count * cols, form.has("GATE_FIRST"));
        let mut rng = Rng::new(cols as u64);
        let (x, w) = (rng.units(rows * width), rng.units(if gate_first { width } else { cols }));
        let z: Vec<f32> = rng.units(rows * width).iter().map(|v| v * 8.0).collect();
        let (xb, zb, wb) = (lab.floats(&x)?, lab.floats(&z)?, lab.floats(&w)?);
        let m = |buffer| Matrix::new(buffer, rows as u32, width as u32);
        let segments = Segments { count: count as u32, cols: cols as u32, w: (&wb).into() };
        lab.run([kernels::gated_norm(m(&xb), m(&zb), segments, 1e-5, gate_first)?])?;
        let mut want = Vec::new();
        let segments = w.chunks_exact(cols).cycle();
        for ((x, z), w) in x.chunks_exact(cols).zip(z.chunks_exact(cols)).zip(segments) {
            let gates: Vec<f64> = z.iter().map(|&z| silu_of(z.into())).collect();
            let pick = |gate: f64, at: bool| if at { gate } else { 1.0 };
            let inner: Vec<f64> = x.iter().zip(&gates).map(|(&x, &g)| f64::from(x) * pick(g, gate_first)).collect();
            let mean = inner.iter().map(|v| v * v).sum::<f64>() / cols as f64;
            let scaled = inner.iter().zip(w).map(|(v, &w)| v / (mean + 1e-5).sqrt() * f64::from(w));
            want.extend(scaled.zip(&gates).map(|(v, &g)| Want::from(v * pick(g, !gate_first))));
        }
        all.push(compare(
            format!("{rows} x {count} x {cols}, {form}"),
            &lab.read(&xb, want.len())?,
            &want,
            1e-30,
            1e-5,
        ));
    }
    Ok(all)
}

pub(super) fn sigmoid_gate(lab: &Lab) -> Result<Vec<Measured>> {
    [(1usize, 17usize), (7, 333)]
        .into_iter()
        .map(|(rows, cols)| {
            let mut rng = Rng::new(cols as u64);
            let x = rng.units(rows * cols);
            let g: Vec<f32> = rng.units(rows * cols).iter().map(|v| v * 20.0).collect();
            let (xb, gb) = (lab.floats(&x.iter().copied().chain([BLANK]).collect::<Vec<_>>())?, lab.floats(&g)?);
            let m = |buffer| Matrix::new(buffer, rows as u32, cols as u32);
            lab.run([kernels::sigmoid_gate(m(&xb), m(&gb))?])?;
            let gated = x.iter().zip(&g).map(|(&x, &g)| f64::from(x) * sigmoid_of(g.into()));
            // What lies beyond the last element stays.
            let want: Vec<Want> = gated.chain([f64::from(BLANK)]).map(Want::from).collect();
            Ok(compare(format!("{rows} x {cols}"), &lab.read(&xb, want.len())?, &want, 1e-30, 1e-5))
        })
        .collect()
}
