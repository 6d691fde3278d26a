//! Products with weights, by both paths.

use doppler::gpu::Gpu;
use doppler::kernels::constants::TILE_FROM;
use doppler::kernels::{MatmulPath, Matrix, matmul, matmul_with};
use doppler::quant::{FORMATS, Format, by_name};

use crate::common::*;
use crate::weights::{TestWeight, common_width, weight, widths};

/// One product, its operands in larger matrices.
struct Case {
    t_rows: usize,
    k: usize,
    x_offset: usize,
    x_gap: usize,
    y_offset: usize,
    y_gap: usize,
    accumulate: bool,
}

impl Case {
    fn dense(t_rows: usize, k: usize) -> Self {
        Case { t_rows, k, x_offset: 0, x_gap: 0, y_offset: 0, y_gap: 0, accumulate: false }
    }
}

fn check(v: &Variant, path: MatmulPath, w: &TestWeight, case: &Case) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(case.t_rows as u64 * 31 + case.k as u64);
    let (k, n, t_rows) = (case.k, w.weight.rows() as usize, case.t_rows);
    let x_stride = case.x_offset + k + case.x_gap;
    let y_stride = case.y_offset + n + case.y_gap;
    let x = rng.floats(t_rows * x_stride);
    let old = if case.accumulate { rng.floats(t_rows * y_stride) } else { vec![UNTOUCHED; t_rows * y_stride] };
    let (xb, y) = (upload(gpu, &x), upload(gpu, &old));
    let mx = Matrix::new(&xb, t_rows as u32, x_stride as u32).columns(case.x_offset as u32, k as u32);
    let my = Matrix::new(&y, t_rows as u32, y_stride as u32).columns(case.y_offset as u32, n as u32);
    run(gpu, matmul_with(gpu, path, mx, &w.weight, my, case.accumulate).unwrap());
    let mut want: Vec<Want> = old.iter().map(|&v| f64::from(v).into()).collect();
    for t in 0..t_rows {
        for r in 0..n {
            let (mut value, mut magnitude) = (0.0, 0.0);
            for i in 0..k {
                let p = f64::from(x[t * x_stride + case.x_offset + i]) * f64::from(w.values[r * k + i]);
                value += p;
                magnitude += p.abs();
            }
            let at = t * y_stride + case.y_offset + r;
            for extra in [w.bias.as_ref().map(|b| b[r]), case.accumulate.then_some(old[at])].into_iter().flatten() {
                value += f64::from(extra);
                magnitude += f64::from(extra.abs());
            }
            want[at] = Want { value, magnitude };
        }
    }
    let formats: Vec<_> = w.weight.parts().iter().map(|p| p.format.name).collect();
    let what = format!("{formats:?} {path:?} x {t_rows} x {k}, n {n}, acc {} ({})", case.accumulate, v.name);
    close(&what, &download(gpu, &y, want.len()), &want, 1e-6, 1e-5);
}

const PATHS: [MatmulPath; 2] = [MatmulPath::Vec, MatmulPath::Tile];

/// Everything on: each width, and at a common one each number of rows, plain and with bias, gaps and accumulation. The other variants differ in
/// how they read weights and reduce, so they run fewer shapes: each pipeline takes a software adapter half a second to compile.
fn every_shape(format: &'static Format) {
    for v in variants() {
        let all = widths(format);
        let (ks, t_list): (Vec<usize>, &[usize]) = match (v.full, v.own_shaders) {
            (true, _) => (all, &[1, 2, 3, 4, 5, 33]),
            (_, true) => (vec![all[0], common_width(format)], &[1, 5]),
            _ => (vec![common_width(format)], &[3]),
        };
        for k in ks {
            let t_list = if v.full && k != common_width(format) { &[1, 5, 33] } else { t_list };
            let mut rng = Rng(k as u64 + 100);
            // Odd, and sometimes more than one tile of 64.
            let n = if k == 36 || k == 1024 { 131 } else { 13 };
            let plain = weight(&v.gpu, &mut rng, k, &[(format, n)], false);
            let biased = weight(&v.gpu, &mut rng, k, &[(format, n)], true);
            for &t_rows in t_list {
                for path in PATHS {
                    if v.full {
                        check(v, path, &plain, &Case::dense(t_rows, k));
                    }
                    let gaps = Case {
                        x_offset: 8,
                        x_gap: 4,
                        y_offset: 5,
                        y_gap: 2,
                        accumulate: true,
                        ..Case::dense(t_rows, k)
                    };
                    check(v, path, &biased, &gaps);
                }
            }
        }
    }
}

#[test]
fn f32_weights() {
    every_shape(by_name("F32").unwrap());
}

#[test]
fn f16_weights() {
    every_shape(by_name("F16").unwrap());
}

#[test]
fn bf16_weights() {
    every_shape(by_name("BF16").unwrap());
}

#[test]
fn q8_0_weights() {
    every_shape(by_name("Q8_0").unwrap());
}

#[test]
fn q4_0_weights() {
    every_shape(by_name("Q4_0").unwrap());
}

#[test]
fn q4_1_weights() {
    every_shape(by_name("Q4_1").unwrap());
}

#[test]
fn q5_0_weights() {
    every_shape(by_name("Q5_0").unwrap());
}

#[test]
fn q5_1_weights() {
    every_shape(by_name("Q5_1").unwrap());
}

#[test]
fn q2_k_weights() {
    every_shape(by_name("Q2_K").unwrap());
}

#[test]
fn q3_k_weights() {
    every_shape(by_name("Q3_K").unwrap());
}

#[test]
fn q4_k_weights() {
    every_shape(by_name("Q4_K").unwrap());
}

#[test]
fn q5_k_weights() {
    every_shape(by_name("Q5_K").unwrap());
}

#[test]
fn q6_k_weights() {
    every_shape(by_name("Q6_K").unwrap());
}

#[test]
fn iq4_nl_weights() {
    every_shape(by_name("IQ4_NL").unwrap());
}

#[test]
fn iq4_xs_weights() {
    every_shape(by_name("IQ4_XS").unwrap());
}

#[test]
fn mxfp4_weights() {
    every_shape(by_name("MXFP4").unwrap());
}

#[test]
fn every_format_has_its_test_above() {
    let names: Vec<_> = FORMATS.iter().map(|f| f.name).collect();
    let text = include_str!("matmul.rs");
    for name in names {
        let function = format!("fn {}_weights()", name.to_lowercase());
        assert!(text.contains(&function), "{name}: write {function}");
    }
}

#[test]
fn stacked_sources_of_two_formats() {
    for v in variants().iter().filter(|v| v.full) {
        let (q4, q8) = (by_name("Q4_0").unwrap(), by_name("Q8_0").unwrap());
        for bias in [false, true] {
            let w = weight(&v.gpu, &mut Rng(8), 96, &[(q4, 5), (q4, 66), (q8, 3)], bias);
            assert_eq!(w.weight.parts().len(), 2);
            for path in PATHS {
                for accumulate in [false, true] {
                    check(v, path, &w, &Case { y_gap: 3, accumulate, ..Case::dense(6, 96) });
                }
            }
        }
    }
}

/// More workgroups than one grid dimension holds.
#[test]
fn more_rows_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let n = 65_535 * 4 + 11;
    let w = weight(&v.gpu, &mut Rng(6), 4, &[(by_name("F16").unwrap(), n)], false);
    check(v, MatmulPath::Vec, &w, &Case { y_gap: 1, ..Case::dense(1, 4) });
    // Rows of x fill the grid of the tiled path: 65,535 tiles of 32 would be too many to check, so few columns and many rows.
    let w = weight(&v.gpu, &mut Rng(6), 4, &[(by_name("F32").unwrap(), 1)], false);
    check(v, MatmulPath::Tile, &w, &Case::dense(65_535 * 32 + 5, 4));
}

#[test]
fn auto_takes_both_paths_and_shapes_are_checked() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let w = weight(gpu, &mut Rng(1), 64, &[(by_name("Q8_0").unwrap(), 12)], false);
    let (x, y) = (untouched(gpu, 64 * 64), untouched(gpu, 64 * 64));
    let kernel = |t: u32| {
        let d = matmul(gpu, Matrix::new(&x, t, 64), &w.weight, Matrix::new(&y, t, 12), false).unwrap();
        d[0].kernel.name
    };
    assert_eq!(
        (kernel(1), kernel(TILE_FROM - 1), kernel(TILE_FROM), kernel(40)),
        ("matmul_vec", "matmul_vec", "matmul_tile", "matmul_tile")
    );
    for (mx, my) in [
        (Matrix::new(&x, 2, 60), Matrix::new(&y, 2, 12)),
        (Matrix::new(&x, 2, 64), Matrix::new(&y, 2, 11)),
        (Matrix::new(&x, 2, 64), Matrix::new(&y, 3, 12)),
        (Matrix::new(&x, 65, 64), Matrix::new(&y, 65, 12)),
        (Matrix { offset: 2, ..Matrix::new(&x, 2, 64) }, Matrix::new(&y, 2, 12)),
    ] {
        assert!(matmul(gpu, mx, &w.weight, my, false).is_err());
    }
}
