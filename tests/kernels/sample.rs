//! The sampling kernels against the CPU reference.
//!
//! Regular runs take a part of the random cases; DOPPLER_LONG_TESTS=1 takes all.

use doppler::gpu::{Buffer, Dispatch, Gpu, linear_grid};
use doppler::kernels::sample::{
    Chunks, MAX_STOP_IDS, NO_TOKEN, Row, SamplingBuffers, SeqState, StepBegin, StepEnd, StepSwitch, argmax, check_stop,
    greedy, penalize, pick, step_begin, step_switch,
};
use doppler::sample::{MAX_LOGIT_BIAS, SampleParams, Sampled, SamplingOptions, penalties, sample_reference};

use crate::common::*;

const INF: f32 = f32::INFINITY;
/// A choice may differ from the reference's where a decision was this near to going the other way.
const NEAR: f64 = 1e-5;

/// The variants whose sampling shaders differ.
fn own_variants() -> impl Iterator<Item = &'static Variant> {
    variants().iter().filter(|v| ["all", "no subgroups", "no immediates"].contains(&v.name))
}

// ---- Running the kernels ------------------------------------------------------------------------------

fn pods<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Buffer {
    upload_words(gpu, bytemuck::cast_slice(values))
}

fn pairs(gpu: &Gpu, b: &Buffer, n: usize) -> Vec<[u32; 2]> {
    bytemuck::cast_vec(download_words(gpu, b, 2 * n))
}

/// One workgroup more than needed: it must notice, and do nothing.
fn with_surplus(mut d: Dispatch<'_>, groups: u32) -> Dispatch<'_> {
    d.grid = linear_grid(u64::from(groups) + 1);
    d
}

fn maxima(gpu: &Gpu, logits: &Buffer, rows: u32, vocab: u32, cut: Chunks) -> Buffer {
    let n = rows * cut.chunks;
    let partial = upload_words(gpu, &vec![7; 2 * (n as usize + 1)]);
    let d = argmax(rows, vocab, cut, logits.into(), (&partial).into()).unwrap();
    run(gpu, [with_surplus(d, n)]);
    assert_eq!(pairs(gpu, &partial, n as usize + 1)[n as usize], [7, 7], "argmax wrote past the end");
    partial
}

/// A row for each entry of `jobs` (options and position), on slots in reverse order; slot 0 is nobody's.
fn picks(gpu: &Gpu, vocab: u32, cut: Chunks, logits: &[f32], jobs: &[(SamplingOptions, u32)]) -> Vec<u32> {
    let n = jobs.len() as u32;
    let rows: Vec<Row> = jobs.iter().zip(0..).map(|((_, pos), r)| Row { slot: n - r, pos: *pos }).collect();
    let mut sampling = vec![SampleParams::from(&SamplingOptions::greedy())];
    sampling.extend(jobs.iter().rev().map(|(o, _)| SampleParams::from(o)));
    let (rows, sampling, logits) = (pods(gpu, &rows), pods(gpu, &sampling), upload(gpu, logits));
    let partial = maxima(gpu, &logits, n, vocab, cut);
    let picked = upload_words(gpu, &vec![0xdead_beef; jobs.len() + 1]);
    let unused = upload(gpu, &[0.0]);
    let b = SamplingBuffers {
        rows: (&rows).into(),
        sampling: (&sampling).into(),
        history: (&unused).into(),
        history_cap: 1,
        bias: (&unused).into(),
    };
    let d = pick(n, vocab, cut, (&logits).into(), b, (&partial).into(), (&picked).into()).unwrap();
    run(gpu, [with_surplus(d, n)]);
    let mut out = download_words(gpu, &picked, jobs.len() + 1);
    assert_eq!(out.pop(), Some(0xdead_beef), "pick wrote past the end");
    out
}

/// Logits after bias and penalties, a row for each history, on slots in reverse order.
fn penalized(
    gpu: &Gpu,
    (vocab, cap): (u32, u32),
    logits: &[f32],
    histories: &[Vec<u32>],
    options: &[SamplingOptions],
) -> Vec<f32> {
    let n = histories.len();
    let row = |(h, r): (&Vec<u32>, u32)| Row { slot: n as u32 - 1 - r, pos: h.len() as u32 - 1 };
    let rows: Vec<Row> = histories.iter().zip(0..).map(row).collect();
    let sampling: Vec<SampleParams> = options.iter().rev().map(SampleParams::from).collect();
    let mut history = vec![u32::MAX; n * cap as usize];
    let mut bias = vec![[0u32, 1e9f32.to_bits()]; n * MAX_LOGIT_BIAS];
    for (slot, (h, o)) in histories.iter().zip(options).rev().enumerate() {
        history[slot * cap as usize..][..h.len()].copy_from_slice(h);
        for (entry, (t, v)) in bias[slot * MAX_LOGIT_BIAS..].iter_mut().zip(&o.logit_bias) {
            *entry = [*t, v.to_bits()];
        }
    }
    let out = upload(gpu, logits);
    let (rows, sampling) = (pods(gpu, &rows), pods(gpu, &sampling));
    let (history, bias) = (upload_words(gpu, &history), pods(gpu, &bias));
    let b = SamplingBuffers {
        rows: (&rows).into(),
        sampling: (&sampling).into(),
        history: (&history).into(),
        history_cap: cap,
        bias: (&bias).into(),
    };
    run(gpu, [with_surplus(penalize(n as u32, vocab, (&out).into(), b).unwrap(), n as u32)]);
    download(gpu, &out, logits.len())
}

// ---- Inputs -------------------------------------------------------------------------------------------

/// Nearly a standard normal.
fn normal(rng: &mut Rng) -> f32 {
    (0..12).map(|_| rng.unit()).sum::<f32>() / 2.0
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Normal,
    Peaked,
    Ties,
    Equal,
    Clustered,
    Specials,
    Masked,
    Offset,
    Infinite,
}

const KINDS: [Kind; 9] = [
    Kind::Normal,
    Kind::Peaked,
    Kind::Ties,
    Kind::Equal,
    Kind::Clustered,
    Kind::Specials,
    Kind::Masked,
    Kind::Offset,
    Kind::Infinite,
];

fn logits_of(kind: Kind, vocab: u32, rng: &mut Rng) -> Vec<f32> {
    let mut v: Vec<f32> = (0..vocab).map(|_| 2.5 * normal(rng)).collect();
    match kind {
        Kind::Normal => {}
        Kind::Peaked => (0..8).for_each(|_| v[rng.below(vocab) as usize] = 12.0 + normal(rng)),
        Kind::Ties => v.iter_mut().for_each(|x| *x = x.round().clamp(-4.0, 3.0)),
        Kind::Equal => v.fill(0.0),
        // The best tokens are neighbours, all in one chunk.
        Kind::Clustered => {
            let at = rng.below(vocab) as usize;
            let end = (at + 100).min(vocab as usize);
            v[at..end].iter_mut().for_each(|x| *x += 14.0);
        }
        Kind::Specials => v.iter_mut().for_each(|x| match rng.below(8) {
            0 => *x = f32::NAN,
            1 => *x = -INF,
            2 => *x = -f32::MAX,
            3 => *x = 1e-40,
            4 => *x = -0.0,
            _ => {}
        }),
        Kind::Masked => {
            v.fill(-INF);
            for _ in 0..rng.below(4) {
                v[rng.below(vocab) as usize] = normal(rng);
            }
            if rng.below(2) == 0 {
                v[0] = f32::NAN;
            }
        }
        Kind::Offset => v.iter_mut().for_each(|x| *x += 250.0),
        Kind::Infinite => (0..2).for_each(|_| v[rng.below(vocab) as usize] = INF),
    }
    v
}

fn any<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u32) as usize]
}

fn options_of(rng: &mut Rng) -> SamplingOptions {
    SamplingOptions {
        temperature: any(rng, &[0.0, 1e-4, 0.2, 0.7, 1.0, 1.0, 1.7, 5.0, 100.0]),
        top_k: any(rng, &[0, 0, 1, 2, 3, 40, 129, 1000, 8192, 300_000]),
        top_p: any(rng, &[1.0, 1.0, 0.0, 0.1, 0.5, 0.75, 0.9, 0.95, 0.999, 0.001]),
        min_p: any(rng, &[0.0, 0.0, 0.0, 0.01, 0.05, 0.3, 1.0, 1e-6]),
        seed: rng.word(),
        ..SamplingOptions::greedy()
    }
}

// ---- The draw -----------------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Tally {
    picks: u32,
    drawn: u32,
    near: u32,
    near_differ: u32,
    worst: f64,
}

impl Tally {
    /// Checks one pick; counts those that a boundary excuses.
    fn judge(&mut self, token: u32, want: &Sampled, about: &dyn Fn() -> String) {
        self.picks += 1;
        self.drawn += u32::from(want.survivors.len() > 1);
        self.near += u32::from(want.margin < NEAR);
        if token == want.token {
            return;
        }
        assert!(want.margin < NEAR, "picked {token}, expected {} (margin {}): {}", want.token, want.margin, about());
        self.near_differ += 1;
        // A neighbour of the choice, unless a filter's cut fell differently.
        if let Some(d) = want.distance(token) {
            self.worst = self.worst.max(d);
        }
    }
}

/// Vocabularies, and how many draws of each kind of row, in all and in a regular run.
const DRAWS: [(u32, u32, u32); 14] = [
    (1, 16, 2),
    (4, 256, 16),
    (5, 256, 16),
    (63, 256, 16),
    (257, 256, 16),
    (1000, 200, 16),
    (1025, 128, 12),
    (4096, 64, 8),
    (8191, 64, 6),
    (32_000, 24, 3),
    (50_257, 24, 2),
    (131_075, 12, 1),
    (262_144, 12, 1),
    (524_288, 4, 0),
];

#[test]
fn picks_equal_the_reference() {
    for v in own_variants() {
        let mut rng = Rng(1);
        let mut all = Tally::default();
        for (vocab, many, few) in DRAWS {
            let n = match (long_tests(), v.full) {
                (true, true) => many,
                (false, true) | (true, false) => few,
                (false, false) => few / 4,
            };
            let tally = draws(v, &mut rng, vocab, n);
            if long_tests() {
                println!("{}, vocabulary {vocab}: {tally:?}", v.name);
            }
            // Decisions among equal logits are exactly at a boundary, and still the same; large flat rows are all boundaries.
            assert!(tally.near_differ * 100 <= tally.picks, "too many excuses: {tally:?}");
            assert!(tally.worst < NEAR, "{tally:?}");
            all.picks += tally.picks;
            all.drawn += tally.drawn;
            all.near += tally.near;
            all.near_differ += tally.near_differ;
            all.worst = all.worst.max(tally.worst);
        }
        println!("{}: {all:?}", v.name);
    }
}

fn draws(v: &Variant, rng: &mut Rng, vocab: u32, n: u32) -> Tally {
    let mut tally = Tally::default();
    for kind in KINDS {
        for cut in [Chunks::of(vocab), Chunks::with(vocab, 1 << 19), Chunks::with(vocab, 512)] {
            // One partial result a chunk: more than 256 chunks only where they are few in all.
            if n == 0 || cut.chunks > 257 {
                continue;
            }
            let jobs: Vec<_> = (0..n).map(|_| (options_of(rng), rng.below(100_000))).collect();
            let logits: Vec<f32> = (0..n).flat_map(|_| logits_of(kind, vocab, rng)).collect();
            let picked = picks(&v.gpu, vocab, cut, &logits, &jobs);
            for ((token, (options, pos)), row) in picked.into_iter().zip(&jobs).zip(logits.chunks(vocab as usize)) {
                let want = sample_reference(row, &[], pos + 1, options);
                tally.judge(token, &want, &|| {
                    format!("{}, vocabulary {vocab}, {cut:?}, {kind:?}, position {pos}, {options:?}", v.name)
                });
            }
        }
    }
    tally
}

/// A row's distribution after the filters, in plain f64: apart from the reference's integers.
fn expected(row: &[f32], o: &SamplingOptions) -> Vec<(usize, f64)> {
    let p = |i: usize, t: f32| (f64::from(row[i]) / f64::from(t)).exp();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    if o.top_k > 0 {
        order.truncate(o.top_k as usize);
    }
    let whole: f64 = order.iter().map(|&i| p(i, 1.0)).sum();
    let mut mass = 0.0;
    let reached = order.iter().position(|&i| {
        mass += p(i, 1.0) / whole;
        mass >= f64::from(o.top_p)
    });
    order.truncate(reached.map_or(order.len(), |c| c + 1));
    let best = p(order[0], 1.0);
    order.retain(|&i| p(i, 1.0) >= f64::from(o.min_p) * best);
    let z: f64 = order.iter().map(|&i| p(i, o.temperature)).sum();
    order.into_iter().map(|i| (i, p(i, o.temperature) / z)).collect()
}

/// 20,480 positions of one sequence: tokens occur as often as they should.
#[test]
fn draws_follow_the_probabilities() {
    let Some(v) = full() else { return };
    let n = 20_480;
    let open = SamplingOptions { seed: 42, ..SamplingOptions::greedy() };
    let cases = [
        (12, 256, SamplingOptions { temperature: 0.8, top_k: 10, top_p: 0.97, min_p: 0.01, ..open.clone() }),
        (12, 256, SamplingOptions { temperature: 1.3, ..open.clone() }),
        // Too large for the way that gathers the whole row.
        (1200, 2048, SamplingOptions { temperature: 1.0, top_k: 9, top_p: 0.98, ..open }),
    ];
    for (vocab, chunk, options) in cases.into_iter().take(if long_tests() { 3 } else { 1 }) {
        let mut rng = Rng(3);
        let row: Vec<f32> = (0..vocab).map(|_| normal(&mut rng)).collect();
        let mut counts = vec![0u32; vocab as usize];
        let mut same = 0;
        for first in (0..n).step_by(1024) {
            let jobs: Vec<_> = (first..first + 1024).map(|pos| (options.clone(), pos)).collect();
            let picked = picks(&v.gpu, vocab, Chunks::with(vocab, chunk), &row.repeat(1024), &jobs);
            for (token, (o, pos)) in picked.into_iter().zip(&jobs) {
                counts[token as usize] += 1;
                same += u32::from(sample_reference(&row, &[], pos + 1, o).token == token);
            }
        }
        let want = expected(&row, &options);
        assert_eq!(want.iter().map(|&(i, _)| counts[i]).sum::<u32>(), n, "a token that was filtered out was drawn");
        let n = f64::from(n);
        let chi: f64 = want.iter().map(|&(i, p)| (f64::from(counts[i]) - p * n).powi(2) / (p * n)).sum();
        let degrees = want.len() as f64 - 1.0;
        println!("vocabulary {vocab}: chi2 {chi:.2} with {degrees} degrees; equal to the reference {same} of {n}");
        // About the 99.9th percentile (Wilson and Hilferty).
        let limit = degrees * (1.0 - 2.0 / (9.0 * degrees) + 3.09 * (2.0 / (9.0 * degrees)).sqrt()).powi(3);
        assert!(chi < limit, "{chi} against {limit}");
    }
}

#[test]
fn the_lowest_id_has_the_maximum() {
    for v in own_variants() {
        let mut rng = Rng(5);
        let mut checked = 0;
        for vocab in [1, 4, 255, 256, 257, 1000, 4097, 65_537, 262_144] {
            if vocab > 5000 && !v.full && !long_tests() {
                continue;
            }
            for kind in KINDS {
                let rows = if vocab > 5000 && !long_tests() { 1 } else { 3 };
                let logits: Vec<f32> = (0..rows).flat_map(|_| logits_of(kind, vocab, &mut rng)).collect();
                let buffer = upload(&v.gpu, &logits);
                for cut in [Chunks::of(vocab), Chunks::with(vocab, 777), Chunks::with(vocab, 1 << 19)] {
                    let n = (rows * cut.chunks) as usize;
                    let got = pairs(&v.gpu, &maxima(&v.gpu, &buffer, rows, vocab, cut), n);
                    let parts =
                        logits.chunks(vocab as usize).flat_map(|row| row.chunks(cut.chunk as usize).zip(0u32..));
                    for (got, (part, c)) in got.into_iter().zip(parts) {
                        let want = sample_reference(part, &[], 0, &SamplingOptions::greedy()).token;
                        assert_eq!(got[1], want + c * cut.chunk, "{}, vocabulary {vocab}, {kind:?}, {cut:?}", v.name);
                        checked += 1;
                    }
                }
            }
        }
        println!("{}: {checked} chunks", v.name);
    }
}

// ---- Penalties and bias -------------------------------------------------------------------------------

#[test]
fn penalties_equal_the_reference() {
    for v in own_variants() {
        let mut rng = Rng(7);
        let (mut rows, mut changed, mut inexact, mut worst) = (0, 0u32, 0u32, 0f32);
        for (vocab, cap) in [(8u32, 40u32), (300, 600), (5000, 2000), (32_003, 9000), (262_144, 9000)] {
            if vocab > 5000 && !v.full || vocab > 40_000 && !long_tests() {
                continue;
            }
            for kind in [Kind::Normal, Kind::Specials, Kind::Ties] {
                for few_tokens in [true, false] {
                    let n = 6;
                    let logits: Vec<f32> = (0..n).flat_map(|_| logits_of(kind, vocab, &mut rng)).collect();
                    // Repeated tokens, and some that are no tokens at all.
                    let below = if few_tokens { vocab.min(7) } else { vocab + 2 };
                    let histories: Vec<Vec<u32>> = (0..n)
                        .map(|i| {
                            let len = if i == 0 { cap } else { 1 + rng.below(cap) };
                            (0..len).map(|_| rng.below(below)).collect()
                        })
                        .collect();
                    let options: Vec<_> = (0..n).map(|_| penalty_options(&mut rng, vocab)).collect();
                    let got = penalized(&v.gpu, (vocab, cap), &logits, &histories, &options);
                    for (r, before) in logits.chunks(vocab as usize).enumerate() {
                        let mut want = before.to_vec();
                        penalties::apply(&mut want, &histories[r], &options[r]);
                        rows += 1;
                        for ((g, w), b) in got[r * vocab as usize..].iter().zip(&want).zip(before) {
                            changed += u32::from(w.to_bits() != b.to_bits());
                            if !w.is_finite() {
                                assert_eq!(g.to_bits(), w.to_bits(), "{b} became {g}, not {w}");
                                continue;
                            }
                            let off = (g - w).abs() / w.abs().max(b.abs()).max(10.0);
                            inexact += u32::from(off > 0.0);
                            worst = worst.max(off);
                            assert!(off < 1e-6, "{b} became {g}, not {w}: {:?}", options[r]);
                        }
                    }
                }
            }
        }
        println!("{}: {rows} rows, {changed} logits changed, {inexact} not bit-equal, worst {worst:e}", v.name);
    }
}

fn penalty_options(rng: &mut Rng, vocab: u32) -> SamplingOptions {
    let entries = rng.below(MAX_LOGIT_BIAS as u32 + 1);
    let mut bias: Vec<(u32, f32)> = (0..entries).map(|_| (rng.below(vocab), 5.0 * normal(rng))).collect();
    bias.sort_by_key(|b| b.0);
    bias.dedup_by_key(|b| b.0);
    if let Some(b) = bias.first_mut() {
        b.1 = -INF;
    }
    let options = SamplingOptions {
        repeat_penalty: any(rng, &[1.0, 1.1, 1.5, 0.7]),
        frequency_penalty: any(rng, &[0.0, 0.3, -0.2]),
        presence_penalty: any(rng, &[0.0, 0.5]),
        penalty_last_n: any(rng, &[0, 1, 5, 64, 512, 513, 3000, u32::MAX]),
        logit_bias: bias,
        ..Default::default()
    };
    options.validate(vocab).unwrap();
    options
}

// ---- Steps --------------------------------------------------------------------------------------------

#[test]
fn steps_carry_tokens_and_stops() {
    for v in own_variants() {
        steps(&v.gpu, false);
        steps(&v.gpu, true);
    }
}

/// `largest`: the tokens are those of the largest logits, else they were picked.
fn steps(gpu: &Gpu, largest: bool) {
    let cap = 8u32;
    let state = |token, pos, limit, stop, n_stop| SeqState { token, pos, limit, stop, n_stop, pad: [0; 3] };
    let states = [
        state(10, 2, 4, 0, 1),            // runs to its limit
        state(11, 0, 8, 0, MAX_STOP_IDS), // draws its last stop id
        state(12, 5, 8, 1, 0),            // had stopped before
        state(13, 1, 8, 0, 0),            // runs on
    ];
    let mut stop_ids = vec![NO_TOKEN - 1; states.len() * MAX_STOP_IDS as usize];
    stop_ids[0] = 99;
    stop_ids[2 * MAX_STOP_IDS as usize - 1] = 77;
    stop_ids[3 * MAX_STOP_IDS as usize] = 31; // beyond slot 3's count
    let states = pods(gpu, &states);
    let stop_ids = upload_words(gpu, &stop_ids);
    let slots = upload_words(gpu, &[3, 1, 0, 2]);
    let rows = upload_words(gpu, &[9; 10]);
    let tokens = upload_words(gpu, &[9; 5]);
    let history = upload_words(gpu, &[9; 32]);
    let ring = upload_words(gpu, &[9; 26]);
    for (i, drawn) in [[31, 20, 40, 50], [32, 77, 41, 51], [33, 22, 42, 52]].iter().enumerate() {
        // The best of 300 chunks: the larger key, then the lower id.
        let cut = Chunks { chunk: 256, chunks: 300 };
        let chunk = |token: u32, i: u32| match (i + token) % 300 {
            0 => [0xc000_0000, token],
            1 => [0xc000_0000, token + 1],
            _ => [0x8000_0000 + i, i],
        };
        let partial: Vec<[u32; 2]> = drawn.iter().flat_map(|&t| (0..cut.chunks).map(move |i| chunk(t, i))).collect();
        let (drawn, partial) = (upload_words(gpu, drawn), upload_words(gpu, partial.as_flattened()));
        let picked = untouched(gpu, 4);
        let (st, ro) = ((&states).into(), (&rows).into());
        let begin = StepBegin {
            slots: (&slots).into(),
            states: st,
            rows: ro,
            tokens: (&tokens).into(),
            history: (&history).into(),
            history_cap: cap,
            chain_words: None,
        };
        let begin = step_begin(4, begin).unwrap();
        let out = 4 * i as u32;
        let (stop_ids, ring) = ((&stop_ids).into(), (&ring).into());
        let end = StepEnd { rows: ro, states: st, stop_ids, ring, out_offset: out };
        let end = match largest {
            true => greedy(4, cut, (&partial).into(), (&picked).into(), end),
            false => check_stop(4, (&drawn).into(), end),
        };
        run(gpu, [begin, end.unwrap()]);
        if largest {
            assert_eq!(download_words(gpu, &picked, 4), download_words(gpu, &drawn, 4));
        }
    }
    let none = NO_TOKEN;
    let want: [[[u32; 2]; 4]; 3] = [
        [[31, 0], [20, 0], [40, 0], [none, 1]],
        [[32, 0], [77, 1], [41, 2], [none, 1]],
        [[33, 0], [none, 1], [none, 2], [none, 1]],
    ];
    let got = pairs(gpu, &ring, 13);
    assert_eq!(got[..12], *want.as_flattened());
    assert_eq!(got[12], [9, 9]);
    let states: Vec<SeqState> = bytemuck::cast_vec(download_words(gpu, &states, 32).as_chunks::<8>().0.to_vec());
    let of = |s: &SeqState| (s.token, s.pos, s.stop);
    assert_eq!(states.iter().map(of).collect::<Vec<_>>(), [(41, 4, 2), (77, 2, 1), (12, 5, 1), (33, 4, 0)]);
    assert_eq!(pairs(gpu, &rows, 5), [[3, 3], [1, 2], [0, 4], [2, 5], [9, 9]]);
    assert_eq!(download_words(gpu, &tokens, 5), [32, 77, 41, 12, 9]);
    let history = download_words(gpu, &history, 32);
    assert_eq!(history[..8], [9, 9, 10, 40, 9, 9, 9, 9]);
    assert_eq!(history[8..16], [11, 20, 9, 9, 9, 9, 9, 9]);
    assert_eq!(history[16..24], [9; 8]);
    assert_eq!(history[24..], [9, 13, 31, 32, 9, 9, 9, 9]);
}

#[test]
fn steps_are_left_out_once_all_sequences_have_stopped() {
    let (grids, words) = ([7, 1, 1, 65_535, 2, 1], 6);
    let state = |stop| SeqState { stop, ..Default::default() };
    for v in own_variants() {
        let gpu = &v.gpu;
        let look = |slots: &[u32], stops: &[u32]| {
            let states: Vec<SeqState> = stops.iter().map(|&s| state(s)).collect();
            let (n, slots, states) = (slots.len() as u32, upload_words(gpu, slots), pods(gpu, &states));
            let (grids, live, ring) = (upload_words(gpu, &grids), untouched(gpu, words), upload_words(gpu, &[9; 66]));
            let buffers = StepSwitch {
                slots: (&slots).into(),
                states: (&states).into(),
                grids: (&grids).into(),
                live: (&live).into(),
                ring: (&ring).into(),
            };
            run(gpu, [step_switch(n, buffers).unwrap()]);
            (download_words(gpu, &live, words), pairs(gpu, &ring, 33))
        };
        // Slots that are not of the batch do not count.
        let (live, ring) = look(&[2, 0, 3], &[1, 0, 2, 1]);
        assert_eq!((live, &ring[..4]), (vec![0; 6], &[[NO_TOKEN, 2], [NO_TOKEN, 1], [NO_TOKEN, 1], [9, 9]][..]));
        let (live, ring) = look(&[2, 1, 3], &[1, 0, 2, 1]);
        assert_eq!((live, ring), (grids.to_vec(), vec![[9, 9]; 33]));
        let mut stops = [1; 32];
        let all: Vec<u32> = (0..32).collect();
        assert_eq!(look(&all, &stops).0, [0; 6]);
        stops[31] = 0;
        assert_eq!(look(&all, &stops), (grids.to_vec(), vec![[9, 9]; 33]));
    }
}

#[test]
fn shapes_that_disagree_are_refused() {
    let Some(v) = full() else { return };
    let b = untouched(&v.gpu, 64);
    let s = || (&b).into();
    let buffers = SamplingBuffers { rows: s(), sampling: s(), history: s(), history_cap: 1, bias: s() };
    assert!(penalize(1, 65, s(), buffers).is_err(), "logits too small");
    assert!(argmax(1, 0, Chunks { chunk: 256, chunks: 1 }, s(), s()).is_err(), "no vocabulary");
    assert!(argmax(1, 64, Chunks { chunk: 1, chunks: 33 }, s(), s()).is_err(), "partial results too small");
    assert!(pick(2, 33, Chunks::of(33), s(), buffers, s(), s()).is_err(), "logits too small");
    let end = StepEnd { rows: s(), states: s(), stop_ids: s(), ring: s(), out_offset: 31 };
    assert!(check_stop(2, s(), end).is_err(), "ring too small");
    assert!(greedy(2, Chunks::of(64), s(), s(), end).is_err(), "ring too small");
    let end = StepEnd { out_offset: 0, ..end };
    assert!(greedy(2, Chunks { chunk: 256, chunks: 33 }, s(), s(), end).is_err(), "partial results too small");
    let begin =
        StepBegin { slots: s(), states: s(), rows: s(), tokens: s(), history: s(), history_cap: 1, chain_words: None };
    assert!(step_begin(33, begin).is_err(), "rows too small");
}
