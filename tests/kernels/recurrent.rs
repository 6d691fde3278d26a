//! Short convolutions, scans of matrix states, their places, and gates.

use doppler::gpu::{Buffer, Gpu, Phase};
use doppler::kernels::sample::{Row, SeqState};
use doppler::kernels::{
    MAX_KEY_DIM, Matrix, Memory, NO_PLACE, Places, ScanInputs, ScanShape, Segments, ShortConv, gated_norm, short_conv,
    sigmoid_gate, state_scan, state_step,
};

use crate::common::*;

/// A batch of sequences in slots of their own (in reverse order, with free ones between), and where their states are.
struct Sequences {
    sequences: u32,
    steps: u32,
    places: Vec<Places>,
    rows: Buffer,
    table: Buffer,
}

const PLACES: u32 = 9;

impl Sequences {
    fn new(gpu: &Gpu, steps: u32, places: &[Places]) -> Self {
        let sequences = places.len() as u32;
        let slot = |s: u32| 2 * (sequences - 1 - s) + 1;
        let rows: Vec<Row> =
            (0..sequences * steps).map(|r| Row { slot: slot(r / steps), pos: 1000 + r % steps }).collect();
        let mut table = vec![Places { before: 77, after: 78 }; 2 * sequences as usize + 1];
        (0..sequences).for_each(|s| table[slot(s) as usize] = places[s as usize]);
        Self {
            sequences,
            steps,
            places: places.to_vec(),
            rows: upload_words(gpu, bytemuck::cast_slice(&rows)),
            table: upload_words(gpu, bytemuck::cast_slice(&table)),
        }
    }

    fn rows(&self) -> u32 {
        self.sequences * self.steps
    }

    fn memory<'a>(&'a self, states: &'a Buffer) -> Memory<'a> {
        let (rows, places) = ((&self.rows).into(), (&self.table).into());
        Memory { sequences: self.sequences, steps: self.steps, rows, places, states: states.into() }
    }
}

/// Sequences of one row beside each other (one renews its state where it stands, one begins, one has stopped), and one of many rows.
fn batches() -> Vec<(u32, Vec<Places>)> {
    let p = |before, after| Places { before, after };
    let four = vec![p(3, 5), p(NO_PLACE, 0), p(8, 8), p(6, NO_PLACE)];
    // Two sequences may begin with one state.
    let shared = vec![p(2, 4), p(2, 7)];
    let one = |before| vec![p(before, 1)];
    vec![(1, four), (3, shared), (1, one(6)), (2, one(NO_PLACE)), (40, one(4)), (5, vec![p(4, NO_PLACE)])]
}

fn silu64(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn sigmoid64(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// One convolution in every flag; gaps between the columns, and everything that is not to be written stays.
fn check_conv(v: &Variant, channels: u32, kernel: u32, steps: u32, places: &[Places], flags: u32) {
    let gpu: &Gpu = &v.gpu;
    let s = Sequences::new(gpu, steps, places);
    let (with_bias, silu, gated) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let mut rng = Rng(u64::from(channels * 31 + kernel * 7 + steps + flags));
    let (rows, past) = (s.rows(), kernel - 1);
    let stride = 3 * channels + 5;
    let x = rng.floats((rows * stride) as usize);
    let w = rng.floats((channels * kernel) as usize);
    let bias = rng.floats(channels as usize);
    let old = rng.floats((PLACES * past * channels).max(1) as usize);
    let (xb, wb, bb, states) = (upload(gpu, &x), upload(gpu, &w), upload(gpu, &bias), upload(gpu, &old));
    let y_stride = channels + 3;
    let y = untouched(gpu, (rows * y_stride) as usize);
    let all = Matrix::new(&xb, rows, stride);
    // The second gate, x, the first gate.
    let (out_at, x_at, gate_at) = (1, channels + 2, 2 * channels + 4);
    let gates = gated.then(|| [all.columns(gate_at, channels), all.columns(out_at, channels)]);
    let conv = ShortConv { kernel, w: (&wb).into(), bias: with_bias.then(|| (&bb).into()), silu };
    let to = Matrix::new(&y, rows, y_stride).columns(0, channels);
    run(gpu, short_conv(conv, all.columns(x_at, channels), gates, s.memory(&states), to));

    let at = |r: u32, c: u32| f64::from(x[(r * stride + c) as usize]);
    let mut want: Vec<Want> = vec![f64::from(UNTOUCHED).into(); (rows * y_stride) as usize];
    let mut want_states: Vec<Want> = old.iter().map(|&v| f64::from(v).into()).collect();
    for (q, place) in s.places.iter().enumerate() {
        let first = q as u32 * steps;
        for c in 0..channels {
            let input = |i: u32| match i < past {
                true if place.before == NO_PLACE => 0.0,
                true => f64::from(old[((place.before * past + i) * channels + c) as usize]),
                false => {
                    let r = first + i - past;
                    at(r, x_at + c) * if gated { at(r, gate_at + c) } else { 1.0 }
                }
            };
            for t in 0..steps {
                let terms = (0..kernel).map(|j| f64::from(w[(c * kernel + j) as usize]) * input(t + j));
                let terms: Vec<f64> = terms.chain(with_bias.then(|| f64::from(bias[c as usize]))).collect();
                let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
                let value = if silu { silu64(sum) } else { sum };
                let gate = if gated { at(first + t, out_at + c) } else { 1.0 };
                want[((first + t) * y_stride + c) as usize] =
                    Want { value: value * gate, magnitude: size * gate.abs() };
            }
            if place.after != NO_PLACE {
                for j in 0..past {
                    want_states[((place.after * past + j) * channels + c) as usize] = input(steps + j).into();
                }
            }
        }
    }
    let what = format!("{channels} channels x {kernel}, {places:?} x {steps}, flags {flags} ({})", v.name);
    close(&what, &download(gpu, &y, want.len()), &want, 1e-7, 3e-6);
    close(&format!("{what}: states"), &download(gpu, &states, want_states.len()), &want_states, 1e-30, 1e-7);
}

#[test]
fn short_convolutions_of_every_width_and_batch() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        for flags in 0..8 {
            for (i, (steps, places)) in batches().into_iter().enumerate() {
                let (channels, kernel) = [(5, 3), (67, 4), (128, 3), (1, 1), (33, 4), (70, 9)][i];
                check_conv(v, channels, kernel, steps, &places, flags);
                if v.full {
                    check_conv(v, 12, 1 + flags, steps, &places, flags);
                }
            }
        }
    }
    let Some(v) = full() else { return };
    // More workgroups than a dimension of the grid has.
    check_conv(v, 2111, 2, 2000, &[Places { before: 4, after: 0 }], 2);
}

/// Numbers of a scan: what drives it, and old states.
struct Scan {
    shape: ScanShape,
    delta: bool,
    x: Vec<f32>,
    g: Vec<f32>,
    heads: Vec<f32>,
    old: Vec<f32>,
    x_stride: u32,
    g_stride: u32,
}

impl Scan {
    fn new(shape: ScanShape, delta: bool, rows: u32) -> Self {
        let ScanShape { n_head, n_key, key_dim, head_dim, .. } = shape;
        let mut rng = Rng(u64::from(n_head * 131 + key_dim * 17 + head_dim + rows));
        let (x_stride, g_stride) = (2 * n_key * key_dim + n_head * head_dim + 7, 2 * n_head + 5);
        let mut x = rng.floats((rows * x_stride) as usize);
        // Keys of length 1 and more would make the delta rule diverge; models bring them to 1.
        let length = (f64::from(key_dim) / 3.0).sqrt() as f32;
        for row in x.chunks_mut(x_stride as usize) {
            row[2..2 + 2 * (n_key * key_dim) as usize].iter_mut().for_each(|v| *v /= length);
        }
        let g = rng.floats((rows * g_stride) as usize).iter().map(|v| v * 6.0).collect();
        let heads = (0..n_head * 4).map(|i| if i % 4 == 0 { -1.0 - rng.unit() } else { rng.unit() }).collect();
        let old = rng.floats((PLACES * n_head * key_dim * head_dim) as usize);
        Self { shape, delta, x, g, heads, old, x_stride, g_stride }
    }

    /// Where q, k, v, and step and strength begin.
    fn columns(&self) -> ([u32; 3], [u32; 2]) {
        let keys = self.shape.n_key * self.shape.key_dim;
        ([2, 2 + keys, 3 + 2 * keys], [1, self.shape.n_head + 3])
    }

    /// Runs rows `first..` of the numbers; results and states go to the buffers.
    fn run(&self, gpu: &Gpu, s: &Sequences, first: u32, states: &Buffer, y: &Buffer) {
        let (xb, gb, hb) = (upload(gpu, &self.x), upload(gpu, &self.g), upload(gpu, &self.heads));
        let rows = s.rows();
        let ([q, k, v], [step, beta]) = self.columns();
        let all = Matrix { offset: first * self.x_stride, ..Matrix::new(&xb, rows, self.x_stride) };
        let drive = Matrix { offset: first * self.g_stride, ..Matrix::new(&gb, rows, self.g_stride) };
        let ScanShape { n_head, n_key, key_dim, head_dim, .. } = self.shape;
        let inputs = ScanInputs {
            q: all.columns(q, n_key * key_dim),
            k: all.columns(k, n_key * key_dim),
            v: all.columns(v, n_head * head_dim),
            step: drive.columns(step, n_head),
            beta: self.delta.then(|| drive.columns(beta, n_head)),
            heads: (&hb).into(),
        };
        let to = Matrix::new(y, rows, n_head * head_dim + 3).columns(0, n_head * head_dim);
        run(gpu, state_scan(self.shape, inputs, s.memory(states), to));
    }

    /// Results `[rows][n_head · head_dim + 3]` and states, in f64.
    fn reference(&self, s: &Sequences) -> (Vec<Want>, Vec<Want>) {
        let ScanShape { n_head, n_key, key_dim, head_dim, tiled } = self.shape;
        let (kd, hd) = (key_dim as usize, head_dim as usize);
        let y_stride = (n_head * head_dim + 3) as usize;
        let mut y: Vec<Want> = vec![f64::from(UNTOUCHED).into(); s.rows() as usize * y_stride];
        let mut states: Vec<Want> = self.old.iter().map(|&v| f64::from(v).into()).collect();
        let ([q_at, k_at, v_at], [step_at, beta_at]) = self.columns();
        for (i, place) in s.places.iter().enumerate() {
            for h in 0..n_head {
                let key = if tiled { h % n_key } else { h / (n_head / n_key) };
                let slice = |p: u32| ((p * n_head + h) as usize * kd * hd)..((p * n_head + h + 1) as usize * kd * hd);
                let mut state: Vec<f64> = match place.before {
                    NO_PLACE => vec![0.0; kd * hd],
                    p => self.old[slice(p)].iter().map(|&v| v.into()).collect(),
                };
                let head = &self.heads[h as usize * 4..][..4];
                let [rate, add, skip] = [0, 1, 2].map(|i| f64::from(head[i]));
                // The largest that stood in a column so far: rounding of it stays.
                let mut largest = vec![0f64; hd];
                for t in 0..s.steps {
                    let row = i as u32 * s.steps + t;
                    let x = |c: u32| f64::from(self.x[(row * self.x_stride + c) as usize]);
                    let g = |c: u32| f64::from(self.g[(row * self.g_stride + c) as usize]);
                    let d = (g(step_at + h) + add).exp().ln_1p();
                    let decay = (rate * d).exp();
                    for c in 0..hd {
                        let v = x(v_at + h * head_dim + c as u32);
                        let dot = |at: u32, state: &[f64]| -> (f64, f64) {
                            let term = |r: usize| state[r * hd + c] * x(at + key * key_dim + r as u32);
                            (0..kd).map(term).fold((0.0, 0.0), |s, t| (s.0 + t, s.1 + t.abs()))
                        };
                        let (on_k, size_k) = dot(k_at, &state);
                        let (u, size_u) = match self.delta {
                            true => {
                                let beta = sigmoid64(g(beta_at + h));
                                (beta * (v - decay * on_k), beta * (v.abs() + decay * size_k))
                            }
                            false => (d * v, d * v.abs()),
                        };
                        for r in 0..kd {
                            let s = &mut state[r * hd + c];
                            *s = decay * *s + x(k_at + key * key_dim + r as u32) * u;
                            largest[c] = largest[c].max(s.abs());
                        }
                        let (mut value, size) = dot(q_at, &state);
                        if !self.delta {
                            value += skip * v;
                        }
                        let q = (0..kd).map(|r| x(q_at + key * key_dim + r as u32).abs()).sum::<f64>();
                        let magnitude = size + v.abs() + size_u + largest[c] * q;
                        y[row as usize * y_stride + h as usize * hd + c] = Want { value, magnitude };
                    }
                }
                if place.after != NO_PLACE {
                    let new =
                        state.iter().enumerate().map(|(j, &value)| Want { value, magnitude: 1.0 + largest[j % hd] });
                    states[slice(place.after)].copy_from_slice(&new.collect::<Vec<_>>());
                }
            }
        }
        (y, states)
    }
}

fn check_scan(v: &Variant, shape: ScanShape, delta: bool, steps: u32, places: &[Places]) {
    let gpu: &Gpu = &v.gpu;
    let s = Sequences::new(gpu, steps, places);
    let scan = Scan::new(shape, delta, s.rows());
    let (states, y) =
        (upload(gpu, &scan.old), untouched(gpu, (s.rows() * (shape.n_head * shape.head_dim + 3)) as usize));
    scan.run(gpu, &s, 0, &states, &y);
    let (want, want_states) = scan.reference(&s);
    let what = format!("{shape:?}, delta {delta}, {places:?} x {steps} ({})", v.name);
    close(&what, &download(gpu, &y, want.len()), &want, 1e-6, 1e-5);
    close(&format!("{what}: states"), &download(gpu, &states, want_states.len()), &want_states, 1e-6, 1e-5);
}

fn shape(n_head: u32, n_key: u32, key_dim: u32, head_dim: u32, tiled: bool) -> ScanShape {
    ScanShape { n_head, n_key, key_dim, head_dim, tiled }
}

#[test]
fn scans_of_every_shape_and_batch() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let shapes = [
            shape(4, 2, 16, 32, false),
            shape(6, 3, 20, 33, true),
            shape(1, 1, 1, 1, false),
            shape(4, 1, 130, 17, true),
            shape(3, 3, 128, 64, false),
            shape(4, 2, 300, 5, true),
        ];
        for (i, (steps, places)) in batches().into_iter().enumerate() {
            for delta in [false, true] {
                for (j, &shape) in shapes.iter().enumerate() {
                    // Everything meets everything on the full device.
                    if v.full || i == j {
                        check_scan(v, shape, delta, steps, &places);
                        check_scan(v, ScanShape { tiled: !shape.tiled, ..shape }, delta, steps, &places);
                    }
                }
            }
        }
    }
    let Some(v) = full() else { return };
    check_scan(v, shape(1, 1, MAX_KEY_DIM, 3, false), true, 4, &[Places { before: 1, after: 2 }]);
    // More workgroups than a dimension of the grid has.
    check_scan(v, shape(66_000, 1, 1, 1, false), true, 2, &[Places { before: NO_PLACE, after: 2 }]);
}

/// A sequence in pieces and row by row, each going on from the state before, gives the bits that it gives as a whole.
#[test]
fn pieces_of_a_sequence_are_the_whole() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        for delta in [false, true] {
            let shape = shape(4, 2, 36, 20, delta);
            let width = (shape.n_head * shape.head_dim + 3) as usize;
            let rows = 41u32;
            let scan = Scan::new(shape, delta, rows);
            let run = |pieces: &[u32]| {
                let states = upload(gpu, &scan.old);
                let (mut all, mut first, mut before) = (Vec::new(), 0, NO_PLACE);
                for (i, &n) in pieces.iter().enumerate() {
                    // To and fro between two places; single rows where they stand.
                    let after = if n == 1 && before != NO_PLACE { before } else { i as u32 % 2 };
                    let s = Sequences::new(gpu, n, &[Places { before, after }]);
                    let y = untouched(gpu, n as usize * width);
                    scan.run(gpu, &s, first, &states, &y);
                    all.extend(download(gpu, &y, n as usize * width));
                    (first, before) = (first + n, after);
                }
                let n = (shape.n_head * shape.key_dim * shape.head_dim) as usize;
                all.extend(&download(gpu, &states, 2 * n)[before as usize * n..][..n]);
                all
            };
            let whole = run(&[rows]);
            same_bits("in pieces", &run(&[7, 16, 18]), &whole);
            same_bits("row by row", &run(&vec![1; rows as usize]), &whole);
        }
    }
}

#[test]
fn scans_refuse_shapes_that_disagree() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let b = untouched(gpu, 4096);
    let other = untouched(gpu, 4096);
    let s = Sequences::new(gpu, 1, &[Places { before: 0, after: 1 }]);
    let m = |cols| Matrix::new(&b, 1, cols);
    let all = Matrix::new(&b, 1, 64);
    let (q, k, v) = (all.columns(0, 8), all.columns(8, 8), all.columns(16, 12));
    let fine = ScanInputs { q, k, v, step: m(3), beta: None, heads: (&b).into() };
    let good = shape(3, 1, 8, 4, false);
    let go = |shape, inputs, to| state_scan(shape, inputs, s.memory(&b), to).map(drop);
    go(good, fine, Matrix::new(&other, 1, 12)).expect("good");
    assert!(go(good, ScanInputs { k: m(8), ..fine }, m(12)).is_err(), "q and k of two matrices");
    assert!(go(shape(3, 2, 4, 4, false), fine, m(12)).is_err(), "heads that do not share evenly");
    assert!(go(shape(3, 1, 0, 4, false), fine, m(12)).is_err(), "no rows");
    assert!(go(good, fine, m(16)).is_err(), "a wide result");
    assert!(go(good, ScanInputs { step: m(2), ..fine }, m(12)).is_err(), "few steps");
    let two = Memory { sequences: 2, ..s.memory(&b) };
    assert!(state_scan(good, fine, two, m(12)).is_err(), "rows of two sequences");
    let conv = |kernel, cols| {
        let conv = ShortConv { kernel, w: (&b).into(), bias: None, silu: false };
        short_conv(conv, all.columns(0, cols), None, s.memory(&b), Matrix::new(&other, 1, 8)).map(drop)
    };
    conv(3, 8).expect("good");
    assert!(conv(0, 8).is_err() && conv(3, 9).is_err() && conv(1 << 20, 8).is_err());
}

/// Sequences that run read what they wrote, those that have stopped write no more, and those that had stopped before stay.
#[test]
fn steps_hand_states_on() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        for n in [1u32, 3, 130, 65_535 * 64 + 100] {
            // Many rows share few slots, whose entries they change alike.
            let slots = n.min(130);
            let rows: Vec<Row> = (0..n).map(|i| Row { slot: (i * 7 + 3) % slots, pos: 9 }).collect();
            let states: Vec<SeqState> = (0..slots).map(|i| SeqState { stop: i % 3, ..Default::default() }).collect();
            let places: Vec<Places> = (0..=slots)
                .map(|i| Places { before: 100 + i, after: if i % 5 == 4 { NO_PLACE } else { 200 + i } })
                .collect();
            if n > 1000 && !v.full {
                continue;
            }
            let rb = upload_words(gpu, bytemuck::cast_slice(&rows));
            let sb = upload_words(gpu, bytemuck::cast_slice(&states));
            let pb = upload_words(gpu, bytemuck::cast_slice(&places));
            run(gpu, state_step(n, (&rb).into(), (&sb).into(), (&pb).into()));
            let mut want = places.clone();
            for r in rows.iter().take(slots as usize) {
                let p = &mut want[r.slot as usize];
                if p.after != NO_PLACE {
                    p.before = p.after;
                    if states[r.slot as usize].stop != 0 {
                        p.after = NO_PLACE;
                    }
                }
            }
            let got = download_words(gpu, &pb, places.len() * 2);
            assert_eq!(got, bytemuck::cast_slice::<Places, u32>(&want), "{n} rows ({})", v.name);
        }
    }
}

fn check_gated_norm(v: &Variant, rows: u32, count: u32, cols: u32, gate_first: bool) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(u64::from(rows + count * 3 + cols));
    let width = count * cols;
    let (x_stride, z_stride) = (width + 3, width + 6);
    let x: Vec<f32> = (0..rows * x_stride).map(|i| rng.unit() * [1.0, 1e-2, 1e2][(i % 7 % 3) as usize]).collect();
    let z: Vec<f32> = (0..rows * z_stride).map(|_| rng.unit() * 8.0).collect();
    let w = rng.floats(if gate_first { width } else { cols } as usize);
    let (xb, zb, wb) = (upload(gpu, &x), upload(gpu, &z), upload(gpu, &w));
    let segments = Segments { count, cols, w: (&wb).into() };
    let (mx, mz) =
        (Matrix::new(&xb, rows, x_stride).columns(2, width), Matrix::new(&zb, rows, z_stride).columns(1, width));
    run(gpu, gated_norm(mx, mz, segments, 1e-5, gate_first));
    let mut want: Vec<Want> = x.iter().map(|&v| f64::from(v).into()).collect();
    for r in 0..rows {
        for s in 0..count {
            let x0 = (r * x_stride + 2 + s * cols) as usize;
            let z0 = (r * z_stride + 1 + s * cols) as usize;
            let gate = |i: usize| silu64(f64::from(z[z0 + i]));
            let value = |i: usize| f64::from(x[x0 + i]) * if gate_first { gate(i) } else { 1.0 };
            let n = cols as usize;
            let mean = (0..n).map(|i| value(i).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let behind = if gate_first { 1.0 } else { gate(i) };
                let w = w[if gate_first { (s * cols) as usize + i } else { i }];
                want[x0 + i] = (value(i) / (mean + 1e-5).sqrt() * f64::from(w) * behind).into();
            }
        }
    }
    let what = format!("{rows} rows of {count} x {cols}, gate first {gate_first} ({})", v.name);
    close(&what, &download(gpu, &xb, want.len()), &want, 1e-30, 8e-6);
}

#[test]
fn gated_norms_of_heads_and_of_rows() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        for gate_first in [false, true] {
            for (rows, count, cols) in [(1, 4, 32), (5, 3, 33), (2, 1, 1), (3, 1, 2051), (2, 2, 1024)] {
                check_gated_norm(v, rows, count, cols, gate_first);
            }
        }
    }
    let Some(v) = full() else { return };
    check_gated_norm(v, 65_535 / 2 + 77, 2, 3, false);
    let b = untouched(&v.gpu, 64);
    let m = Matrix::new(&b, 1, 32);
    let s = |count, cols| Segments { count, cols, w: (&b).into() };
    assert!(gated_norm(m, m, s(3, 8), 1e-5, false).is_err(), "columns are left over");
    assert!(gated_norm(m, m.columns(0, 16), s(4, 8), 1e-5, false).is_err(), "a narrow gate");
    assert!(gated_norm(m, m, s(0, 8), 1e-5, false).is_err(), "no segment");
}

#[test]
fn gates_of_heads() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        for (rows, cols) in [(1u32, 1u32), (5, 67), (3, 256), (2048, 2100)] {
            if rows > 1000 && !v.full {
                continue;
            }
            let mut rng = Rng(u64::from(cols));
            let (x_stride, g_stride) = (cols + 2, cols + 5);
            let x = rng.floats((rows * x_stride) as usize);
            let g: Vec<f32> = (0..rows * g_stride).map(|i| rng.unit() * if i % 5 == 0 { 90.0 } else { 6.0 }).collect();
            let (xb, gb) = (upload(gpu, &x), upload(gpu, &g));
            let mx = Matrix::new(&xb, rows, x_stride).columns(1, cols);
            run(gpu, sigmoid_gate(mx, Matrix::new(&gb, rows, g_stride).columns(3, cols)));
            let mut want: Vec<Want> = x.iter().map(|&v| f64::from(v).into()).collect();
            for r in 0..rows {
                for c in 0..cols {
                    let at = (r * x_stride + 1 + c) as usize;
                    let gate = sigmoid64(g[(r * g_stride + 3 + c) as usize].into());
                    want[at] = (f64::from(x[at]) * gate).into();
                }
            }
            close(&format!("{rows} x {cols} ({})", v.name), &download(gpu, &xb, want.len()), &want, 1e-37, 2e-5);
        }
    }
    let Some(v) = full() else { return };
    let b = untouched(&v.gpu, 64);
    assert!(sigmoid_gate(Matrix::new(&b, 2, 8), Matrix::new(&b, 2, 9)).is_err());
}

/// A layer's kernels over three steps of two sequences: recorded together, and each run alone.
#[test]
fn run_and_record_give_the_same_bits() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        let mut rng = Rng(8);
        let (keys, inner, heads) = (2 * 16u32, 4 * 20u32, 4u32);
        let channels = 2 * keys + inner;
        let width = channels + 2 * inner + 2 * heads;
        let x = upload(gpu, &rng.floats(2 * width as usize));
        let w = upload(gpu, &rng.floats(channels as usize * 4));
        let constants = upload(gpu, &(0..16).map(|i| if i % 4 == 0 { -0.5 } else { 0.25 }).collect::<Vec<f32>>());
        let states: Vec<SeqState> = vec![SeqState::default(); 8];
        let states = upload_words(gpu, bytemuck::cast_slice(&states));
        let go = |recorded: bool| {
            let s = Sequences::new(gpu, 1, &[Places { before: NO_PLACE, after: 3 }, Places { before: 1, after: 2 }]);
            let mut rng = Rng(9);
            let past = upload(gpu, &rng.floats((PLACES * 3 * channels) as usize));
            let memory = upload(gpu, &rng.floats((PLACES * heads * 16 * 20) as usize));
            let (mixed, y) = (untouched(gpu, 2 * channels as usize), untouched(gpu, 2 * inner as usize));
            let step = || {
                let all = Matrix::new(&x, 2, width);
                let to = Matrix::new(&mixed, 2, channels);
                let out = Matrix::new(&y, 2, inner);
                let conv = ShortConv { kernel: 4, w: (&w).into(), bias: None, silu: true };
                let inputs = ScanInputs {
                    q: to.columns(0, keys),
                    k: to.columns(keys, keys),
                    v: to.columns(2 * keys, inner),
                    step: all.columns(channels, heads),
                    beta: Some(all.columns(channels + heads, heads)),
                    heads: (&constants).into(),
                };
                let norm = Segments { count: heads, cols: 20, w: (&w).into() };
                [
                    short_conv(conv, all.columns(0, channels), None, s.memory(&past), to).unwrap(),
                    state_scan(shape(heads, 2, 16, 20, true), inputs, s.memory(&memory), out).unwrap(),
                    gated_norm(out, all.columns(channels + 2 * heads, inner), norm, 1e-5, false).unwrap(),
                    sigmoid_gate(out, all.columns(channels + 2 * heads + inner, inner)).unwrap(),
                    state_step(2, (&s.rows).into(), (&states).into(), (&s.table).into()).unwrap(),
                ]
            };
            if recorded {
                let scope = gpu.scope(Phase::Other);
                let mut recorder = gpu.recorder("three steps", &scope);
                (0..3).flat_map(|_| step()).for_each(|d| recorder.record(d).unwrap());
                recorder.submit().unwrap();
            } else {
                (0..3).for_each(|_| run(gpu, step()));
            }
            let n = |b: &Buffer| (b.size() / 4) as usize;
            [&y, &memory, &past, &s.table].map(|b| download_words(gpu, b, n(b)))
        };
        let (recorded, run) = (go(true), go(false));
        assert!(recorded[0].iter().all(|&w| w != UNTOUCHED.to_bits()));
        assert_eq!(recorded, run, "{}", v.name);
    }
}
