//! A dispatch run alone, and recorded among others, gives the same bits. That holds for every kernel there is.

use std::collections::BTreeSet;
use std::sync::Arc;

use doppler::gpu::{Buffer, BufferSlice, Dispatch, Gpu, Phase};
use doppler::kernels::sample::{
    Chunks, MAX_STOP_IDS, SamplingBuffers, SeqState, StepBegin, StepEnd, StepSwitch, argmax, check_stop, greedy,
    penalize, pick, step_begin, step_switch,
};
use doppler::kernels::{
    Activation, AngleTable, AttentionParts, AttentionShape, ByteRows, Cast, HalfRows, KERNELS, KvType, MatmulPath,
    Matrix, Next, Pages, Parts, RopePairs, RopeShape, STATS_PARTIAL_BYTES, Scored, Segments, Stretch, activate_half,
    add_bias, attention_decode, attention_prefill, attention_split, byte_rows, cast, dequant, gather, gelu, glu,
    half_rows, half_weights, log_sum, matmul_bytes, matmul_glu, matmul_next, matmul_with, norm_half, pool_rows,
    qk_norm, residual, rmsnorm, rope, silu, softcap, softmax, sum_parts, tensor_stats, token_score, unit_rows,
    width_work,
};
use doppler::quant::by_name;
use doppler::sample::{SampleParams, SamplingOptions};

use crate::common::*;
use crate::weights::weight;

fn pages<'a>(rows: &'a Buffer, tables: &'a Buffer, k: &'a Buffer, v: &'a Buffer) -> Pages<'a> {
    Pages { rows: rows.into(), tables: tables.into(), table_stride: 2, kv_type: KvType::F32, k: k.into(), v: v.into() }
}

type Make<'a> = Box<dyn Fn(&'a Buffer) -> Vec<Dispatch<'a>> + 'a>;

/// A decode step's own kernels over three sequences, and the buffers that they write, the same ones each time.
struct Step {
    vocab: u32,
    slots: Buffer,
    sampling: Buffer,
    bias: Buffer,
    stop_ids: Buffer,
    states: Buffer,
    rows: Buffer,
    tokens: Buffer,
    history: Buffer,
    logits: Buffer,
    partial: Buffer,
    picked: Buffer,
    ring: Buffer,
    grids: Buffer,
    live: Buffer,
}

impl Step {
    fn new(gpu: &Gpu) -> Self {
        let vocab = 1003;
        let states = (0..3).map(|i| SeqState { token: 40 + i, pos: 3 + i, limit: 30, stop: 0, n_stop: 1, pad: [0; 3] });
        let history: Vec<u32> = (0..3 * 32).map(|i| i * 7 % vocab).collect();
        let options = (0..3).map(|seed| {
            SampleParams::from(&SamplingOptions {
                temperature: seed as f32 * 0.6,
                top_p: 0.9,
                repeat_penalty: 1.2,
                seed,
                ..Default::default()
            })
        });
        let words = |n: usize| upload_words(gpu, &vec![7; n]);
        Self {
            vocab,
            slots: upload_words(gpu, &[2, 0, 1]),
            sampling: upload_words(gpu, bytemuck::cast_slice(&options.collect::<Vec<_>>())),
            bias: words(3 * 512),
            stop_ids: words(3 * MAX_STOP_IDS as usize),
            states: upload_words(gpu, bytemuck::cast_slice(&states.collect::<Vec<_>>())),
            rows: words(6),
            tokens: words(3),
            history: upload_words(gpu, &history),
            logits: upload(gpu, &Rng(5).floats(3 * vocab as usize)),
            partial: words(2 * 3 * Chunks::of(vocab).chunks as usize),
            picked: words(3),
            ring: words(6),
            grids: upload_words(gpu, &(1..=64).collect::<Vec<_>>()),
            live: words(64),
        }
    }

    fn dispatches(&self) -> Vec<Dispatch<'_>> {
        let (vocab, cut) = (self.vocab, Chunks::of(self.vocab));
        let (states, rows, history) = ((&self.states).into(), (&self.rows).into(), (&self.history).into());
        let (logits, partial, picked) = ((&self.logits).into(), (&self.partial).into(), (&self.picked).into());
        let (sampling, bias) = ((&self.sampling).into(), (&self.bias).into());
        let b = SamplingBuffers { rows, sampling, history, history_cap: 32, bias };
        let end = StepEnd { rows, states, stop_ids: (&self.stop_ids).into(), ring: (&self.ring).into(), out_offset: 0 };
        let begin = StepBegin {
            slots: (&self.slots).into(),
            states,
            rows,
            tokens: (&self.tokens).into(),
            history,
            history_cap: 32,
            chain_words: None,
        };
        let (slots, grids, live, ring) =
            ((&self.slots).into(), (&self.grids).into(), (&self.live).into(), (&self.ring).into());
        vec![
            step_begin(3, begin).unwrap(),
            penalize(3, vocab, logits, b).unwrap(),
            argmax(3, vocab, cut, logits, partial).unwrap(),
            pick(3, vocab, cut, logits, b, partial, picked).unwrap(),
            check_stop(3, picked, end).unwrap(),
            greedy(3, cut, partial, picked, end).unwrap(),
            step_switch(3, StepSwitch { slots, states, grids, live, ring }).unwrap(),
        ]
    }

    fn written(&self, gpu: &Gpu) -> Vec<Vec<u32>> {
        [
            &self.states,
            &self.rows,
            &self.tokens,
            &self.history,
            &self.logits,
            &self.partial,
            &self.picked,
            &self.ring,
            &self.live,
        ]
        .into_iter()
        .map(|b| download_words(gpu, b, b.size() as usize / 4))
        .collect()
    }
}

/// Two steps after each other: alone, recorded, and replayed.
fn steps(v: &Variant, seen: &mut BTreeSet<&'static str>) {
    let gpu: &Gpu = &v.gpu;
    let scope = gpu.scope(Phase::Other);
    let [alone, recorded, replayed] = std::array::from_fn(|_| Step::new(gpu));
    let before = alone.written(gpu);
    let mut recorder = gpu.recorder("two steps", &scope);
    let mut plan = gpu.recorder("step", &scope);
    replayed.dispatches().into_iter().for_each(|d| plan.record(d).unwrap());
    let plan = Arc::new(plan.into_plan().unwrap());
    for _ in 0..2 {
        for d in alone.dispatches() {
            seen.insert(d.kernel.name);
            run(gpu, [d]);
        }
        recorded.dispatches().into_iter().for_each(|d| recorder.record(d).unwrap());
        recorder.replay(&plan);
    }
    recorder.submit().unwrap();
    let want = alone.written(gpu);
    for (i, (a, b)) in before.iter().zip(&want).enumerate() {
        assert_ne!(a, b, "buffer {i} was not written ({})", v.name);
    }
    assert_eq!(recorded.written(gpu), want, "recorded ({})", v.name);
    assert_eq!(replayed.written(gpu), want, "replayed ({})", v.name);
}

#[test]
fn run_and_record_give_the_same_bits() {
    let mut seen = BTreeSet::new();
    for v in variants() {
        steps(v, &mut seen);
        let gpu: &Gpu = &v.gpu;
        let mut rng = Rng(77);
        let (rows, cols) = (6u32, 128u32);
        let x = upload(gpu, &rng.floats((rows * cols) as usize));
        let b = upload(gpu, &rng.floats((rows * cols) as usize));
        let ids = upload_words(gpu, &[3, 0, 5, 1, 2, 4]);
        let w = weight(gpu, &mut rng, cols as usize, &[(by_name("Q4_0").unwrap(), 64)], true);
        let row_scales = untouched(gpu, rows as usize);
        let unbiased = weight(gpu, &mut rng, cols as usize, &[(by_name("Q4_0").unwrap(), 64)], false);
        let mx = Matrix::new(&x, rows, cols);
        let n_bytes = (rows * cols) as usize / 4;
        let row_data = upload_words(gpu, &(0..rows).flat_map(|i| [0, 30 + i]).collect::<Vec<_>>());
        let tables = upload_words(gpu, &[1, 0]);
        let angles = upload_words(gpu, bytemuck::cast_slice(&AngleTable::new(&[0.5; 16], 1.0, 64).values));
        let (k, val) = (upload(gpu, &rng.floats(4096)), upload(gpu, &rng.floats(4096)));
        // The largest logit and the sum of each row, as log_sum leaves them.
        let row_sums = upload(gpu, &[9.0f32, 40.0].repeat(rows as usize));
        let stretches = [(0, 2), (2, 3), (5, 1)].map(|(first, rows)| Stretch { first, rows, add: 0, scale: 0.5 });
        let stretches = upload_words(gpu, bytemuck::cast_slice(&stretches));
        let whole = Chunks::with(cols, cols);
        let (kw, vw) = (untouched(gpu, 4096), untouched(gpu, 4096));
        let sums = untouched(gpu, STATS_PARTIAL_BYTES as usize / 4);
        let parts = [untouched(gpu, 4096), untouched(gpu, 64)];
        let parts = AttentionParts { sums: (&parts[0]).into(), tops: (&parts[1]).into() };
        let (byte_scales, byte_quants) = (untouched(gpu, n_bytes / 4), untouched(gpu, n_bytes));
        let scales = (&byte_scales).into();
        let heads = AttentionShape { n_head: 2, n_kv: 1, head_dim: 64, window: 0, scale: 0.125, softcap: 0.0 };
        let turn = RopeShape { n_head: 2, n_kv: 1, head_dim: 32, n_rot: 32, pairs: RopePairs::Halves };
        let y_of = |y, n| Matrix::new(y, rows, n);
        let n = rows * cols;
        // The largest result; every kernel writes to the start of a buffer of this size.
        let out = 64 * cols as usize;
        let outputs: Vec<[Buffer; 3]> = (0..33).map(|_| std::array::from_fn(|_| untouched(gpu, out))).collect();
        let kernels: Vec<(&str, Make<'_>)> = vec![
            ("silu", Box::new(|y| vec![silu(mx, y_of(y, cols)).unwrap()])),
            ("gelu", Box::new(|y| vec![gelu(mx, y_of(y, cols)).unwrap()])),
            (
                "glu",
                Box::new(|y| {
                    let (gate, up) = (mx.columns(0, 64), mx.columns(64, 64));
                    vec![glu(Activation::Silu, gate, up, y_of(y, 64)).unwrap()]
                }),
            ),
            ("residual", Box::new(|y| vec![residual(n, (&x).into(), (&b).into(), y.into(), 0.5).unwrap()])),
            ("add_bias", Box::new(|y| vec![add_bias(rows, cols, (&x).into(), (&b).into(), y.into()).unwrap()])),
            ("cast", Box::new(|y| vec![cast(Cast::F32ToF16, n, (&x).into(), y.into()).unwrap()])),
            ("rmsnorm", Box::new(|y| vec![rmsnorm(mx, (&b).into(), y_of(y, cols), 1e-5).unwrap()])),
            (
                "qk_norm",
                Box::new(|y| {
                    let heads = |count| Segments { count, cols: 32, w: (&b).into() };
                    vec![qk_norm(y_of(y, cols), heads(2), heads(1), 1e-5).unwrap()]
                }),
            ),
            ("device_width", Box::new(|y| vec![width_work(3, 2, y.into()).unwrap()])),
            ("softcap", Box::new(|y| vec![softcap(n, 30.0, y.into()).unwrap()])),
            ("softmax", Box::new(|y| vec![softmax(mx, y_of(y, cols), 0.7).unwrap()])),
            ("gather", Box::new(|y| gather(&w.weight, (&ids).into(), y_of(y, cols), 2.0).unwrap())),
            ("dequant", Box::new(|y| dequant(&w.weight, y.into()).unwrap())),
            ("half_weights", Box::new(|y| vec![half_weights(&w.weight.parts()[0], 0, 64, cols, y.into()).unwrap()])),
            ("vec", Box::new(|y| matmul_with(gpu, MatmulPath::Vec, mx, &w.weight, y_of(y, 64), false).unwrap())),
            ("tile", Box::new(|y| matmul_with(gpu, MatmulPath::Tile, mx, &w.weight, y_of(y, 64), false).unwrap())),
            (
                "rope",
                Box::new(|y| {
                    vec![rope(turn, mx, pages(&row_data, &tables, &kw, &vw), (&angles).into(), y.into()).unwrap()]
                }),
            ),
            (
                "attention_decode",
                Box::new(|y| {
                    vec![
                        attention_decode(
                            gpu,
                            heads,
                            rows,
                            pages(&row_data, &tables, &k, &val),
                            BufferSlice::from(&x),
                            y.into(),
                        )
                        .unwrap(),
                    ]
                }),
            ),
            (
                "attention_split",
                Box::new(|y| {
                    let pages = pages(&row_data, &tables, &k, &val);
                    attention_split(gpu, heads, rows, 2, pages, BufferSlice::from(&x), parts, y.into(), None)
                        .unwrap()
                        .into()
                }),
            ),
            (
                "byte_rows",
                Box::new(|y| vec![byte_rows(mx, ByteRows { quants: y.into(), scales, rows, cols }).unwrap()]),
            ),
            (
                "matmul_bytes",
                Box::new(|y| {
                    let bytes = ByteRows { quants: (&byte_quants).into(), scales, rows, cols };
                    let mut all = vec![byte_rows(mx, bytes).unwrap()];
                    all.extend(matmul_bytes(gpu, bytes, &w.weight, y_of(y, 64), false).unwrap());
                    all
                }),
            ),
            (
                "half_rows",
                Box::new(|y| {
                    let half = HalfRows { data: y.into(), scales: (&row_scales).into(), rows, cols, tiled: false };
                    vec![half_rows(gpu, mx, half).unwrap()]
                }),
            ),
            (
                "norm_half",
                Box::new(|y| {
                    let half = HalfRows { data: y.into(), scales: (&row_scales).into(), rows, cols, tiled: false };
                    vec![norm_half(gpu, mx, (&x).into(), 1e-5, half, None).unwrap()]
                }),
            ),
            (
                "activate_half",
                Box::new(|y| {
                    let half =
                        HalfRows { data: y.into(), scales: (&row_scales).into(), rows, cols: cols / 2, tiled: false };
                    vec![activate_half(gpu, Activation::Silu, true, mx, half).unwrap()]
                }),
            ),
            (
                "sum_parts",
                Box::new(|y| {
                    let parts = Parts { data: (&x).into(), splits: 2 };
                    vec![sum_parts(parts, y_of(y, cols / 2), false).unwrap()]
                }),
            ),
            (
                "matmul_glu",
                Box::new(|y| {
                    vec![matmul_glu(gpu, Activation::Silu, mx.into(), &unbiased.weight, y_of(y, 32), None).unwrap()]
                }),
            ),
            (
                "matmul_next",
                Box::new(|y| {
                    let bytes = ByteRows { quants: (&byte_quants).into(), scales, rows, cols: 64 };
                    let next = Next { w: (&x).into(), bytes: Some(bytes), numbers: None, sums: (&sums).into() };
                    matmul_next(gpu, mx.into(), &w.weight, y_of(y, 64), next).unwrap()
                }),
            ),
            (
                "attention_prefill",
                Box::new(|y| {
                    vec![
                        attention_prefill(gpu, heads, rows, pages(&row_data, &tables, &k, &val), (&x).into(), y.into())
                            .unwrap(),
                    ]
                }),
            ),
            (
                "tensor_stats",
                Box::new(|y| tensor_stats(mx, 0.5, (&sums).into(), y.into(), 0).unwrap().into_iter().collect()),
            ),
            ("log_sum", Box::new(|y| vec![log_sum(mx, whole, y.into()).unwrap()])),
            (
                "token_score",
                Box::new(|y| {
                    let (targets, scores) = ((&ids).into(), y.into());
                    let scored = Scored { targets, scores, first: 0, entries: rows, each_its_row: true };
                    vec![token_score(mx, whole, (&row_sums).into(), scored).unwrap()]
                }),
            ),
            ("pool_rows", Box::new(|y| vec![pool_rows((&stretches).into(), mx, Matrix::new(y, 3, cols)).unwrap()])),
            ("unit_rows", Box::new(|y| vec![unit_rows(y_of(y, cols)).unwrap()])),
        ];
        assert_eq!(kernels.len(), outputs.len());
        let scope = gpu.scope(Phase::Other);
        let mut recorder = gpu.recorder("all kernels, twice", &scope);
        for which in 0..2 {
            for ((_, make), ys) in kernels.iter().zip(&outputs) {
                make(&ys[which]).into_iter().for_each(|d| recorder.record(d).unwrap());
            }
        }
        recorder.submit().unwrap();
        for ((name, make), ys) in kernels.iter().zip(&outputs) {
            let dispatches = make(&ys[2]);
            seen.extend(dispatches.iter().map(|d| d.kernel.name));
            run(gpu, dispatches);
            let [a, b, c] = ys.each_ref().map(|y| download(gpu, y, out));
            assert!(a.iter().any(|x| *x != UNTOUCHED), "{name} wrote nothing");
            same_bits(&format!("{name}, recorded twice ({})", v.name), &a, &b);
            same_bits(&format!("{name}, recorded and run ({})", v.name), &a, &c);
        }
    }
    // Those of mixtures are run, recorded and replayed in moe/block.rs and moe/few.rs.
    seen.extend(["moe_route", "moe_group", "moe_tiles", "moe_vec", "moe_tile", "moe_combine", "moe_glu", "moe_down"]);
    // Those of recurrent layers in recurrent.rs.
    seen.extend(["short_conv", "state_scan", "gated_norm", "sigmoid_gate", "state_step"]);
    // Those by cooperative matrices exist on few devices; `doppler test correctness` runs them there.
    let everywhere = KERNELS.iter().filter(|k| !k.is_cooperative());
    assert_eq!(seen, everywhere.map(|k| k.name).collect(), "left: those tried");
}
