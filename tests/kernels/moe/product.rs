//! Products with experts, entry by entry and in tiles, in every weight format.

use doppler::gpu::{Dispatch, Gpu};
use doppler::kernels::{Matrix, moe_group, moe_matmul, tile_columns};
use doppler::quant::{FORMATS, Format, by_name};

use super::{Buffers, TestExperts, experts, random_ids, shape};
use crate::common::*;
use crate::weights::{common_width, widths};

struct Case<'a> {
    rows: u32,
    n_used: u32,
    ids: &'a [u32],
    /// One row of x for all entries of a row, or one for each entry.
    shared: bool,
    tiles: bool,
    gap: usize,
}

/// Runs the product; `y` and its stride come back.
fn product(v: &Variant, w: &TestExperts, case: &Case<'_>, x: &[f32]) -> (Vec<f32>, usize) {
    let gpu: &Gpu = &v.gpu;
    let (k, n) = (w.weight.k() as usize, w.weight.rows() as usize);
    let s = shape(case.rows, w.weight.n_expert(), case.n_used);
    let widths = [1, tile_columns(&w.weight)];
    let b = Buffers::with_ids(v, s, widths, case.ids);
    let (x_offset, x_stride) = (case.gap / 4 * 4, k + case.gap / 4 * 8);
    let (y_offset, y_stride) = (case.gap, n + case.gap + 1);
    let x_rows = x.len() / k;
    let mut spread = vec![f32::NAN; x_rows * x_stride];
    for (to, from) in spread.chunks_exact_mut(x_stride).zip(x.chunks_exact(k)) {
        to[x_offset..x_offset + k].copy_from_slice(from);
    }
    let entries = s.entries() as usize;
    let (xb, y) = (upload(gpu, &spread), untouched(gpu, entries * y_stride));
    let mx = Matrix::new(&xb, x_rows as u32, x_stride as u32).columns(x_offset as u32, k as u32);
    let my = Matrix::new(&y, entries as u32, y_stride as u32).columns(y_offset as u32, n as u32);
    if case.tiles {
        run(gpu, moe_group(b.routing(), b.grouping()).unwrap());
    }
    let grouping = case.tiles.then(|| b.grouping());
    run(gpu, moe_matmul(mx, &w.weight, my, b.routing(), grouping).unwrap());
    (download(gpu, &y, entries * y_stride), y_stride)
}

fn check(v: &Variant, w: &TestExperts, case: &Case<'_>) {
    let (k, n) = (w.weight.k() as usize, w.weight.rows() as usize);
    let x_rows = if case.shared { case.rows as usize } else { case.ids.len() };
    let x = Rng(x_rows as u64 + k as u64).floats(x_rows * k);
    let (got, y_stride) = product(v, w, case, &x);
    let mut want = vec![Want::from(f64::from(UNTOUCHED)); got.len()];
    for (e, &id) in case.ids.iter().enumerate() {
        let at = if case.shared { e / case.n_used as usize } else { e };
        for r in 0..n {
            let row = id as usize * n + r;
            let (mut value, mut magnitude) = (0.0, 0.0);
            for (a, b) in x[at * k..][..k].iter().zip(&w.values[row * k..]) {
                let p = f64::from(*a) * f64::from(*b);
                value += p;
                magnitude += p.abs();
            }
            if let Some(bias) = &w.bias {
                value += f64::from(bias[row]);
                magnitude += f64::from(bias[row].abs());
            }
            want[e * y_stride + case.gap + r] = Want { value, magnitude };
        }
    }
    let what = format!(
        "{} of {} experts of {n} x {k}, {} rows, shared {}, tiles {} ({})",
        case.n_used,
        w.weight.n_expert(),
        case.rows,
        case.shared,
        case.tiles,
        v.name
    );
    close(&what, &got, &want, 1e-6, 1e-5);
}

/// Both paths, with one row of x for a row's entries and with one for each.
fn both(v: &Variant, w: &TestExperts, rows: u32, n_used: u32, ids: &[u32], gap: usize) {
    for tiles in [false, true] {
        for shared in [true, false] {
            check(v, w, &Case { rows, n_used, ids, shared, tiles, gap });
        }
    }
}

fn every_shape(format: &'static Format) {
    for v in variants() {
        let all = widths(format);
        // Each width on the full device; elsewhere what reads weights and reduces differently, once.
        let ks = match (v.full, v.own_shaders) {
            (true, _) => all,
            (_, true) => vec![all[0]],
            _ => vec![common_width(format)],
        };
        for k in ks {
            let mut rng = Rng(k as u64 + 7);
            let n = if k == 64 || k == 36 { 131 } else { 13 };
            let plain = experts(&v.gpu, &mut rng, 5, k, &[(format, n)], false);
            let biased = experts(&v.gpu, &mut rng, 5, k, &[(format, n)], true);
            let rows: &[u32] = if v.full { &[1, 3, 70] } else { &[7] };
            for &rows in rows {
                let ids = random_ids(&mut rng, shape(rows, 5, 2), 5);
                if v.full {
                    both(v, &plain, rows, 2, &ids, 0);
                }
                both(v, &biased, rows, 2, &ids, 5);
            }
        }
    }
}

#[test]
fn every_format() {
    for format in FORMATS {
        every_shape(format);
    }
}

#[test]
fn empty_experts_and_all_rows_to_one() {
    let Some(v) = full() else { return };
    let w = experts(&v.gpu, &mut Rng(2), 8, 64, &[(by_name("Q8_0").unwrap(), 70)], true);
    for rows in [1u32, 32, 33, 300] {
        for expert in [0, 5, 7] {
            both(v, &w, rows, 1, &vec![expert; rows as usize], 0);
        }
        let ids: Vec<u32> = random_ids(&mut Rng(9), shape(rows, 8, 3), 4).iter().map(|i| i + 2).collect();
        both(v, &w, rows, 3, &ids, 0);
    }
}

/// Gate and up in different formats: two parts beside each other for the same experts.
#[test]
fn stacked_sources_of_two_formats() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let (q4, q8) = (by_name("Q4_0").unwrap(), by_name("Q8_0").unwrap());
        let w = experts(&v.gpu, &mut Rng(8), 6, 96, &[(q4, 5), (q4, 66), (q8, 3)], true);
        let parts: Vec<_> = w.weight.parts().iter().map(|p| (p.row_start, p.rows, p.expert_start, p.experts)).collect();
        assert_eq!(parts, [(0, 71, 0, 6), (71, 3, 0, 6)]);
        let ids = random_ids(&mut Rng(1), shape(40, 6, 2), 6);
        both(v, &w, 40, 2, &ids, 3);
    }
}

/// Weights beyond the 128 MiB that small adapters can bind: parts of whole experts, and parts of rows where one expert is too large. Rows
/// of 4 weights take 128 bytes on the device, so the file is small.
#[test]
fn experts_beyond_128_mib() {
    let Some(v) = full() else { return };
    let f32_ = by_name("F32").unwrap();
    let limit = v.gpu.max_binding_bytes();
    for (n_expert, rows) in [(100u32, 10_501u32), (2, 1_050_101)] {
        let w = experts(&v.gpu, &mut Rng(4), n_expert, 4, &[(f32_, rows)], true);
        let parts = w.weight.parts();
        let one = u64::from(rows) * 128;
        assert_eq!(parts.len() > 1, one * u64::from(n_expert) > limit, "split where the adapter binds {limit}");
        assert_eq!(parts.iter().all(|p| p.rows == rows), one <= limit, "whole experts where one fits");
        let covered: u64 = parts.iter().map(|p| u64::from(p.rows) * u64::from(p.experts)).sum();
        assert_eq!(covered, u64::from(n_expert) * u64::from(rows));
        let last = n_expert - 1;
        let ids = [0, last, last, 0, n_expert / 2, 0];
        for tiles in [false, true] {
            check(v, &w, &Case { rows: 3, n_used: 2, ids: &ids, shared: true, tiles, gap: 0 });
        }
    }
}

/// More workgroups than one grid dimension holds, on both paths.
#[test]
fn more_workgroups_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let w = experts(&v.gpu, &mut Rng(4), 3, 4, &[(by_name("F32").unwrap(), 1)], false);
    let rows = 32 * 65_535 / 2 + 999;
    let ids = random_ids(&mut Rng(5), shape(rows, 3, 2), 3);
    for tiles in [false, true] {
        check(v, &w, &Case { rows, n_used: 2, ids: &ids, shared: true, tiles, gap: 0 });
    }
}

#[test]
fn shapes_are_checked() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let w = experts(gpu, &mut Rng(1), 4, 64, &[(by_name("F16").unwrap(), 130)], false);
    let b = Buffers::new(v, shape(6, 4, 2), [1, 3], 0);
    let (x, y) = (untouched(gpu, 64 * 64), untouched(gpu, 64 * 160));
    let name = |d: Vec<Dispatch<'_>>| d[0].kernel.name;
    for x_rows in [6, 12] {
        let (mx, my) = (Matrix::new(&x, x_rows, 64), Matrix::new(&y, 12, 130));
        assert_eq!(name(moe_matmul(mx, &w.weight, my, b.routing(), None).unwrap()), "moe_vec");
        assert_eq!(name(moe_matmul(mx, &w.weight, my, b.routing(), Some(b.grouping())).unwrap()), "moe_tile");
    }
    for (mx, my) in [
        (Matrix::new(&x, 5, 64), Matrix::new(&y, 12, 130)),
        (Matrix::new(&x, 6, 60), Matrix::new(&y, 12, 130)),
        (Matrix::new(&x, 6, 64), Matrix::new(&y, 6, 130)),
        (Matrix::new(&x, 6, 64), Matrix::new(&y, 12, 129)),
        (Matrix { offset: 2, ..Matrix::new(&x, 6, 64) }, Matrix::new(&y, 12, 130)),
    ] {
        assert!(moe_matmul(mx, &w.weight, my, b.routing(), None).is_err());
    }
    let narrow = Buffers::new(v, shape(6, 4, 2), [1, 2], 0);
    let (mx, my) = (Matrix::new(&x, 6, 64), Matrix::new(&y, 12, 130));
    assert!(
        moe_matmul(mx, &w.weight, my, narrow.routing(), Some(narrow.grouping())).is_err(),
        "no grid is wide enough"
    );
    let others = Buffers::new(v, shape(6, 5, 2), [1, 3], 0);
    assert!(moe_matmul(mx, &w.weight, my, others.routing(), None).is_err(), "other experts");
}
