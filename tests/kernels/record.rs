//! A dispatch run alone, and recorded among others, gives the same bits.

use doppler::gpu::{Buffer, Dispatch, Gpu, Phase};
use doppler::kernels::{
    Activation, AngleTable, AttentionShape, Cast, KvType, MatmulPath, Matrix, Pages, RopePairs, RopeShape, add_bias,
    attention_decode, attention_prefill, cast, dequant, gather, gelu, glu, matmul_with, residual, rmsnorm, rope, silu,
    softmax,
};
use doppler::quant::by_name;

use crate::common::*;
use crate::weights::weight;

fn pages<'a>(rows: &'a Buffer, tables: &'a Buffer, k: &'a Buffer, v: &'a Buffer) -> Pages<'a> {
    Pages { rows: rows.into(), tables: tables.into(), table_stride: 2, kv_type: KvType::F32, k: k.into(), v: v.into() }
}

type Make<'a> = Box<dyn Fn(&'a Buffer) -> Vec<Dispatch<'a>> + 'a>;

#[test]
fn run_and_record_give_the_same_bits() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        let mut rng = Rng(77);
        let (rows, cols) = (6u32, 128u32);
        let x = upload(gpu, &rng.floats((rows * cols) as usize));
        let b = upload(gpu, &rng.floats((rows * cols) as usize));
        let ids = upload_words(gpu, &[3, 0, 5, 1, 2, 4]);
        let w = weight(gpu, &mut rng, cols as usize, &[(by_name("Q4_0").unwrap(), 64)], true);
        let mx = Matrix::new(&x, rows, cols);
        let row_data = upload_words(gpu, &(0..rows).flat_map(|i| [0, 30 + i]).collect::<Vec<_>>());
        let tables = upload_words(gpu, &[1, 0]);
        let angles = upload_words(gpu, bytemuck::cast_slice(&AngleTable::new(&[0.5; 16], 1.0, 64).values));
        let (k, val) = (upload(gpu, &rng.floats(4096)), upload(gpu, &rng.floats(4096)));
        let (kw, vw) = (untouched(gpu, 4096), untouched(gpu, 4096));
        let heads = AttentionShape { n_head: 2, n_kv: 1, head_dim: 64, window: 0, scale: 0.125, softcap: 0.0 };
        let turn = RopeShape { n_head: 2, n_kv: 1, head_dim: 32, n_rot: 32, pairs: RopePairs::Halves };
        let y_of = |y, n| Matrix::new(y, rows, n);
        let n = rows * cols;
        // The largest result; every kernel writes to the start of a buffer of this size.
        let out = 64 * cols as usize;
        let outputs: Vec<[Buffer; 3]> = (0..15).map(|_| std::array::from_fn(|_| untouched(gpu, out))).collect();
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
            ("softmax", Box::new(|y| vec![softmax(mx, y_of(y, cols), 0.7).unwrap()])),
            ("gather", Box::new(|y| gather(&w.weight, (&ids).into(), y_of(y, cols), 2.0).unwrap())),
            ("dequant", Box::new(|y| dequant(&w.weight, y.into()).unwrap())),
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
                        attention_decode(heads, rows, pages(&row_data, &tables, &k, &val), (&x).into(), y.into())
                            .unwrap(),
                    ]
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
            run(gpu, make(&ys[2]));
            let [a, b, c] = ys.each_ref().map(|y| download(gpu, y, out));
            assert!(a.iter().any(|x| *x != UNTOUCHED), "{name} wrote nothing");
            same_bits(&format!("{name}, recorded twice ({})", v.name), &a, &b);
            same_bits(&format!("{name}, recorded and run ({})", v.name), &a, &c);
        }
    }
}
