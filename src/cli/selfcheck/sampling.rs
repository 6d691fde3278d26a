//! The choice of tokens against the sampler's reference, and the bookkeeping of decode steps.

use doppler::Result;
use doppler::gpu::Buffer;
use doppler::kernels::sample::{
    self as kernel, BIAS_ENTRIES, Chunks, MAX_STOP_IDS, NO_TOKEN, Row, SamplingBuffers, SeqState, StepEnd,
};
use doppler::sample::{SampleParams, SamplingOptions, sample_reference};

use super::{Lab, Measured, Rng};

/// Slots whose state the buffers hold; rows use them in another order.
const SLOTS: usize = 3;
/// Positions of a slot's history.
const HISTORY: usize = 160;

/// A draw this near to going the other way may do so: the processor's and the device's `exp` differ in their last bits.
const NEAR: f64 = 1e-5;

/// Chooses a token for each of [`SLOTS`] rows of random logits, and says how far each choice is from the reference's.
fn case(lab: &Lab, vocab: usize, options: &SamplingOptions) -> Result<Measured> {
    let mut rng = Rng::new(vocab as u64 + options.seed);
    let logits: Vec<f32> = rng.units(SLOTS * vocab).iter().map(|v| v * 6.0).collect();
    let history: Vec<u32> = (0..SLOTS * HISTORY).map(|_| rng.below(vocab as u32)).collect();
    let rows: Vec<Row> = [(2, 20), (0, 0), (1, HISTORY as u32 - 1)].map(|(slot, pos)| Row { slot, pos }).to_vec();
    let params = vec![SampleParams::from(options); SLOTS];
    let mut bias = vec![[0u32; 2]; SLOTS * BIAS_ENTRIES as usize];
    for slot in bias.chunks_exact_mut(BIAS_ENTRIES as usize) {
        for (entry, &(token, value)) in slot.iter_mut().zip(&options.logit_bias) {
            *entry = [token, value.to_bits()];
        }
    }
    let lb = lab.floats(&logits)?;
    let (rb, sb) = (lab.words(bytemuck::cast_slice(&rows))?, lab.words(bytemuck::cast_slice(&params))?);
    let (hb, bb) = (lab.words(&history)?, lab.words(bytemuck::cast_slice(&bias))?);
    let (n, cut) = (SLOTS as u32, Chunks::of(vocab as u32));
    let partial = lab.words(&vec![0; SLOTS * cut.chunks as usize * 2])?;
    let picked = lab.words(&[NO_TOKEN; SLOTS])?;
    let buffers = SamplingBuffers {
        rows: (&rb).into(),
        sampling: (&sb).into(),
        history: (&hb).into(),
        history_cap: HISTORY as u32,
        bias: (&bb).into(),
    };
    lab.run([
        kernel::penalize(n, vocab as u32, (&lb).into(), buffers)?,
        kernel::argmax(n, vocab as u32, cut, (&lb).into(), (&partial).into())?,
        kernel::pick(n, vocab as u32, cut, (&lb).into(), buffers, (&partial).into(), (&picked).into())?,
    ])?;
    let mut error = 0.0f64;
    for ((row, logits), &token) in rows.iter().zip(logits.chunks_exact(vocab)).zip(&lab.read_words(&picked, SLOTS)?) {
        let known = &history[row.slot as usize * HISTORY..][..row.pos as usize + 1];
        let wanted = sample_reference(logits, known, row.pos + 1, options);
        if token != wanted.token {
            // The distance, in probability, that the reference was from this choice.
            let by_filter = if wanted.margin < NEAR { wanted.margin } else { 1.0 };
            error = error.max(wanted.distance(token).unwrap_or(by_filter));
        }
    }
    let case = format!("vocabulary of {vocab}, temperature {}, top-k {}", options.temperature, options.top_k);
    Ok(Measured { case, error, bound: if options.is_greedy() { 0.0 } else { NEAR } })
}

pub(super) fn greedy(lab: &Lab) -> Result<Vec<Measured>> {
    let plain = SamplingOptions::greedy();
    let punished = SamplingOptions {
        repeat_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: 0.2,
        logit_bias: vec![(3, f32::NEG_INFINITY), (5, 2.5)],
        ..SamplingOptions::greedy()
    };
    let mut all = Vec::new();
    for vocab in [333, 9001] {
        all.push(case(lab, vocab, &plain)?);
        all.push(case(lab, vocab, &punished)?);
    }
    Ok(all)
}

pub(super) fn draw(lab: &Lab) -> Result<Vec<Measured>> {
    let open = SamplingOptions { temperature: 1.0, ..SamplingOptions::greedy() };
    let mut all = Vec::new();
    for vocab in [333, 9001] {
        for seed in 1..=4 {
            let usual = SamplingOptions { seed, repeat_penalty: 1.1, ..SamplingOptions::default() };
            all.push(case(lab, vocab, &usual)?);
            all.push(case(lab, vocab, &SamplingOptions { seed, top_p: 0.9, ..open.clone() })?);
            all.push(case(lab, vocab, &SamplingOptions { seed, min_p: 0.1, temperature: 1.7, ..open.clone() })?);
            all.push(case(lab, vocab, &SamplingOptions { seed, ..open.clone() })?);
        }
    }
    Ok(all)
}

/// States of `n` slots: running, at the last position, stopped.
fn states(n: usize) -> Vec<SeqState> {
    (0..n as u32)
        .map(|i| SeqState {
            token: 100 + i,
            pos: 10 + i,
            limit: if i % 4 == 1 { 11 + i } else { 64 },
            stop: u32::from(i % 4 == 2),
            n_stop: 2,
            ..Default::default()
        })
        .collect()
}

fn differences(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len())
}

pub(super) fn check_stop(lab: &Lab) -> Result<Vec<Measured>> {
    [3, 301].into_iter().map(|n| step_end(lab, n, None)).collect()
}

pub(super) fn step_greedy(lab: &Lab) -> Result<Vec<Measured>> {
    [(3, 1), (2, 500), (301, 7)].into_iter().map(|(n, chunks)| step_end(lab, n, Some(chunks))).collect()
}

/// The end of a step of `n` rows: with tokens that were picked, or with the best of so many chunks.
fn step_end(lab: &Lab, n: usize, chunks: Option<u32>) -> Result<Measured> {
    let mut rng = Rng::new(n as u64);
    let rows: Vec<Row> = rng.permutation(n as u32).into_iter().map(|slot| Row { slot, pos: 10 + slot }).collect();
    let cut = Chunks { chunk: 256, chunks: chunks.unwrap_or(1) };
    // Many chunks share the largest key: the lowest id has it.
    let best: Vec<[u32; 2]> =
        (0..n as u32 * cut.chunks).map(|i| [100 + rng.below(9), i % cut.chunks * 256 + rng.below(256)]).collect();
    let winner = |row: &[[u32; 2]]| row.iter().max_by_key(|e| (e[0], !e[1])).map_or(NO_TOKEN, |e| e[1]);
    let want: Vec<u32> = best.chunks_exact(cut.chunks as usize).map(winner).collect();
    let mut stop_ids = vec![NO_TOKEN; n * MAX_STOP_IDS as usize];
    // Every third row draws its slot's second stop id.
    for (i, row) in rows.iter().enumerate().step_by(3) {
        stop_ids[row.slot as usize * MAX_STOP_IDS as usize + 1] = want[i];
    }
    let mut want_states = states(n);
    let mut want_ring = vec![0u32; 2 * (n + 1)];
    let picked = if chunks.is_some() { vec![NO_TOKEN; n] } else { want.clone() };
    let (pb, rb) = (lab.words(&picked)?, lab.words(bytemuck::cast_slice(&rows))?);
    let (sb, ib) = (lab.words(bytemuck::cast_slice(&want_states))?, lab.words(&stop_ids)?);
    let (ring, partial) = (lab.words(&want_ring)?, lab.words(best.as_flattened())?);
    let (states, stop_ids) = ((&sb).into(), (&ib).into());
    let end = StepEnd { rows: (&rb).into(), states, stop_ids, ring: (&ring).into(), out_offset: 1 };
    lab.run([match chunks {
        Some(_) => kernel::greedy(n as u32, cut, (&partial).into(), (&pb).into(), end)?,
        None => kernel::check_stop(n as u32, (&pb).into(), end)?,
    }])?;
    for (i, row) in rows.iter().enumerate() {
        let s = &mut want_states[row.slot as usize];
        let mut token = NO_TOKEN;
        if s.stop == 0 {
            token = want[i];
            (s.token, s.pos) = (token, s.pos + 1);
            s.stop = if i % 3 == 0 { 1 } else { 2 * u32::from(s.pos >= s.limit) };
        }
        want_ring[2 * (i + 1)..2 * (i + 2)].copy_from_slice(&[token, s.stop]);
    }
    let want_states: &[u32] = bytemuck::cast_slice(&want_states);
    let wrong = differences(&lab.read_words(&sb, want_states.len())?, want_states)
        + differences(&lab.read_words(&ring, want_ring.len())?, &want_ring)
        + differences(&lab.read_words(&pb, n)?, &want);
    Ok(Measured::exact(format!("{n} rows, {chunks:?} chunks"), wrong))
}

/// The beginning of a decode step, on the device and as it should be.
pub(super) struct Begun {
    slots: Buffer,
    states: Buffer,
    rows: Buffer,
    tokens: Buffer,
    history: Buffer,
    words: Buffer,
    clears: bool,
    cap: usize,
    want: [Vec<u32>; 4],
}

impl Begun {
    /// A row for each of `tokens`.
    pub(super) fn new(lab: &Lab, tokens: &[u32], clears: bool) -> Result<Self> {
        let (n, cap) = (tokens.len(), 64usize);
        let slots = Rng::new(n as u64).permutation(n as u32);
        let mut states: Vec<SeqState> = states(n).into_iter().map(|s| SeqState { pos: s.pos % 64, ..s }).collect();
        let (mut rows, mut history) = (Vec::new(), vec![0u32; n * cap]);
        for (&slot, &token) in slots.iter().zip(tokens) {
            let s = &mut states[slot as usize];
            s.token = token;
            rows.extend([slot, s.pos]);
            if s.stop == 0 {
                history[slot as usize * cap + s.pos as usize] = token;
            }
        }
        // More words than rows; the first stays.
        let mut words = vec![if clears { 0 } else { 7 }; 1000];
        words[0] = 7;
        Ok(Self {
            slots: lab.words(&slots)?,
            states: lab.words(bytemuck::cast_slice(&states))?,
            rows: lab.words(&vec![0; 2 * n])?,
            tokens: lab.words(&vec![0; n])?,
            history: lab.words(&vec![0; n * cap])?,
            words: lab.words(&[7; 1000])?,
            clears,
            cap,
            want: [rows, tokens.to_vec(), history, words],
        })
    }

    pub(super) fn operand(&self) -> kernel::StepBegin<'_> {
        kernel::StepBegin {
            slots: (&self.slots).into(),
            states: (&self.states).into(),
            rows: (&self.rows).into(),
            tokens: (&self.tokens).into(),
            history: (&self.history).into(),
            history_cap: self.cap as u32,
            chain_words: self.clears.then(|| (&self.words).into()),
        }
    }

    pub(super) fn compare(&self, lab: &Lab, case: String) -> Result<Measured> {
        let mut wrong = 0;
        for (buffer, want) in [&self.rows, &self.tokens, &self.history, &self.words].into_iter().zip(&self.want) {
            wrong += differences(&lab.read_words(buffer, want.len())?, want);
        }
        Ok(Measured::exact(case, wrong))
    }
}

pub(super) fn step_begin(lab: &Lab) -> Result<Vec<Measured>> {
    [3usize, 301]
        .into_iter()
        .map(|n| {
            // Both forms.
            let begun = Begun::new(lab, &Rng::new(7).permutation(n as u32), n > 3)?;
            lab.run([kernel::step_begin(n as u32, begun.operand())?])?;
            begun.compare(lab, format!("{n} rows"))
        })
        .collect()
}

pub(super) fn step_switch(lab: &Lab) -> Result<Vec<Measured>> {
    let case = |n: usize, running: Option<usize>| {
        let slots = Rng::new(n as u64).permutation(n as u32);
        let mut states: Vec<SeqState> = states(n).into_iter().map(|s| SeqState { stop: 1 + s.pos % 2, ..s }).collect();
        if let Some(i) = running {
            states[i].stop = 0;
        }
        let grids: Vec<u32> = (1..=300).collect();
        let [sb, tb, gb] = [&slots[..], bytemuck::cast_slice(&states), &grids].map(|w| lab.words(w));
        let (sb, tb, gb) = (sb?, tb?, gb?);
        let (live, ring) = (lab.words(&vec![7; grids.len()])?, lab.words(&vec![7; 2 * n])?);
        let buffers = kernel::StepSwitch {
            slots: (&sb).into(),
            states: (&tb).into(),
            grids: (&gb).into(),
            live: (&live).into(),
            ring: (&ring).into(),
        };
        lab.run([kernel::step_switch(n as u32, buffers)?])?;
        let stopped = |&slot: &u32| [NO_TOKEN, states[slot as usize].stop];
        let (want_live, want_ring) = match running {
            Some(_) => (grids, vec![7; 2 * n]),
            None => (vec![0; grids.len()], slots.iter().flat_map(stopped).collect()),
        };
        let wrong = differences(&lab.read_words(&live, want_live.len())?, &want_live)
            + differences(&lab.read_words(&ring, want_ring.len())?, &want_ring);
        Ok(Measured::exact(format!("{n} rows, {running:?} runs"), wrong))
    };
    [(1, None), (1, Some(0)), (32, None), (32, Some(31)), (301, None), (301, Some(300))]
        .map(|(n, r)| case(n, r))
        .into_iter()
        .collect()
}
