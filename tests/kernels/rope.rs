//! Rotary embedding and the write of keys and values to their pages.

use doppler::gpu::{Buffer, Gpu};
use doppler::kernels::constants::KV_BLOCK_TOKENS;
use doppler::kernels::{AngleTable, KvType, Matrix, Pages, RopePairs, RopeShape, rope};

use crate::common::*;

pub(crate) const KV_TYPES: [KvType; 2] = [KvType::F16, KvType::F32];

/// Elements of a cache as words of a type.
pub(crate) fn kv_words(kv: KvType, values: &[f32]) -> Vec<u32> {
    match kv {
        KvType::F32 => values.iter().map(|v| v.to_bits()).collect(),
        KvType::F16 => {
            let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
            values.chunks(2).map(|p| half(p[0]) | half(p[1]) << 16).collect()
        }
    }
}

fn kv_read(gpu: &Gpu, kv: KvType, b: &Buffer, n: usize) -> Vec<f32> {
    match kv {
        KvType::F32 => download(gpu, b, n),
        KvType::F16 => download_words(gpu, b, n / 2)
            .into_iter()
            .flat_map(|w| [w as u16, (w >> 16) as u16].map(|h| half::f16::from_bits(h).to_f32()))
            .collect(),
    }
}

/// Steps of a context-extended model: the usual powers, the slow half divided by 8.
fn steps(n_rot: u32) -> Vec<f64> {
    let n = n_rot / 2;
    (0..n)
        .map(|i| {
            let step = 10_000f64.powf(-2.0 * f64::from(i) / f64::from(n_rot.max(1)));
            if i >= n / 2 { step / 8.0 } else { step }
        })
        .collect()
}

/// Dimension `d` of a head after rotation.
fn rotated(head: &[f32], shape: &RopeShape, steps: &[f64], magnitude: f64, pos: u32, d: usize) -> Want {
    let n_rot = shape.n_rot as usize;
    if d >= n_rot || shape.pairs == RopePairs::None {
        return f64::from(head[d]).into();
    }
    let (pair, first, second) = match shape.pairs {
        RopePairs::Adjacent => (d / 2, d & !1, d | 1),
        _ => (d % (n_rot / 2), d % (n_rot / 2), d % (n_rot / 2) + n_rot / 2),
    };
    let (sin, cos) = (f64::from(pos) * steps[pair]).sin_cos();
    let (a, b) = (f64::from(head[first]), f64::from(head[second]));
    let value = magnitude * if d == first { a * cos - b * sin } else { a * sin + b * cos };
    Want { value, magnitude: magnitude * (a.abs() + b.abs()) }
}

/// (slot, position) of each row; slot 1 is left out, so tables of three slots are read at their stride.
const ROWS: [(u32, u32); 8] = [(0, 0), (0, 1), (2, 255), (2, 256), (0, 511), (2, 70_000), (0, 31), (0, BEYOND)];
/// A position past the end of its table: q is rotated, nothing is written.
const BEYOND: u32 = 70_100;

fn check(v: &Variant, shape: RopeShape, kv: KvType, magnitude: f64) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(u64::from(shape.head_dim + shape.n_rot));
    let RopeShape { n_head, n_kv, head_dim, .. } = shape;
    let hd = head_dim as usize;
    let bt = KV_BLOCK_TOKENS;
    // Physical blocks in random order; entries of blocks that no row uses name no block at all.
    let table_stride = 70_000 / bt + 3;
    let mut free = rng.permutation(9);
    let mut tables = vec![u32::MAX; 3 * table_stride as usize];
    for (slot, pos) in ROWS.into_iter().filter(|r| r.1 != BEYOND) {
        let entry = &mut tables[(slot * table_stride + pos / bt) as usize];
        if *entry == u32::MAX {
            *entry = free.pop().unwrap();
        }
    }
    let elements = 9 * (n_kv * bt * head_dim) as usize;
    let page = |slot: u32, pos: u32, head: u32| {
        let block = tables[(slot * table_stride + pos / bt) as usize];
        ((block * n_kv + head) * bt + pos % bt) as usize * hd
    };
    let (offset, gap) = (8u32, 4u32);
    let width = (n_head + 2 * n_kv) * head_dim;
    let stride = offset + width + gap;
    let x = rng.floats(ROWS.len() * stride as usize);
    let xb = upload(gpu, &x);
    let rows: Vec<u32> = ROWS.iter().flat_map(|&(s, p)| [s, p]).collect();
    let (rb, tb) = (upload_words(gpu, &rows), upload_words(gpu, &tables));
    let steps = steps(shape.n_rot);
    let table = AngleTable::new(&steps, magnitude, BEYOND + 1);
    let ab = upload_words(gpu, bytemuck::cast_slice(&table.values));
    let q_len = ROWS.len() * (n_head * head_dim) as usize;
    let q = untouched(gpu, q_len + 1);
    let fresh = kv_words(kv, &vec![UNTOUCHED; elements]);
    let (kb, vb) = (upload_words(gpu, &fresh), upload_words(gpu, &fresh));
    let qkv = Matrix::new(&xb, ROWS.len() as u32, stride).columns(offset, width);
    let d = rope(
        shape,
        qkv,
        Pages { rows: (&rb).into(), tables: (&tb).into(), table_stride, kv_type: kv, k: (&kb).into(), v: (&vb).into() },
        (&ab).into(),
        (&q).into(),
    );
    run(gpu, d);

    let mut want_q = vec![Want::from(f64::from(UNTOUCHED)); q_len + 1];
    let mut want_k = vec![Want::from(f64::from(UNTOUCHED)); elements];
    let mut want_v = want_k.clone();
    for (t, &(slot, pos)) in ROWS.iter().enumerate() {
        let row = &x[t * stride as usize + offset as usize..][..width as usize];
        let head = |h: u32| &row[(h * head_dim) as usize..][..hd];
        for d in 0..hd {
            for h in 0..n_head {
                want_q[(t * n_head as usize + h as usize) * hd + d] =
                    rotated(head(h), &shape, &steps, magnitude, pos, d);
            }
            for h in (0..n_kv).filter(|_| pos != BEYOND) {
                let at = page(slot, pos, h) + d;
                want_k[at] = rotated(head(n_head + h), &shape, &steps, magnitude, pos, d);
                want_v[at] = f64::from(head(n_head + n_kv + h)[d]).into();
            }
        }
    }
    let what = format!("{shape:?} {kv:?} ({})", v.name);
    close(&format!("q of {what}"), &download(gpu, &q, q_len + 1), &want_q, 1e-7, 1e-6);
    // A half is half an ulp off at most, 2^-11.
    let rel = if kv == KvType::F16 { 1.01 / 2048.0 } else { 1e-6 };
    close(&format!("k of {what}"), &kv_read(gpu, kv, &kb, elements), &want_k, 1e-7, rel);
    close(&format!("v of {what}"), &kv_read(gpu, kv, &vb, elements), &want_v, 1e-7, rel);
}

#[test]
fn rope_turns_pairs_and_writes_pages() {
    for v in variants() {
        for kv in KV_TYPES {
            for pairs in [RopePairs::Adjacent, RopePairs::Halves, RopePairs::None] {
                let shape = |n_head, n_kv, head_dim, n_rot| RopeShape { n_head, n_kv, head_dim, n_rot, pairs };
                check(v, shape(4, 2, 64, 64), kv, 1.0);
                check(v, shape(3, 1, 80, 32), kv, 1.0);
                check(v, shape(1, 1, 4, 4), kv, 1.0);
                if v.full {
                    check(v, shape(2, 2, 128, 96), kv, 1.19);
                    check(v, shape(8, 1, 256, 64), kv, 1.0);
                    check(v, shape(2, 1, 16, 0), kv, 1.0);
                }
            }
        }
    }
}

#[test]
fn angle_table_matches_f64_at_large_positions() {
    let steps = steps(64);
    let table = AngleTable::new(&steps, 1.0, 200_000);
    for pos in [0u32, 1, 255, 256, 70_000, 131_071, 199_999] {
        for (i, step) in steps.iter().enumerate() {
            let [lc, ls] = table.values[(pos as usize & 255) * 32 + i].map(f64::from);
            let [hc, hs] = table.values[(256 + (pos as usize >> 8)) * 32 + i].map(f64::from);
            let (sin, cos) = (f64::from(pos) * step).sin_cos();
            assert!((hc * lc - hs * ls - cos).abs() < 2e-7 && (hs * lc + hc * ls - sin).abs() < 2e-7, "{pos} {i}");
        }
    }
}

#[test]
fn rope_refuses_shapes_that_disagree() {
    let Some(v) = full() else { return };
    let b = untouched(&v.gpu, 4096);
    let s = |n_head, head_dim, n_rot| RopeShape { n_head, n_kv: 1, head_dim, n_rot, pairs: RopePairs::Halves };
    for (shape, cols, rows) in [
        (s(2, 16, 16), 60, 1),
        (s(2, 16, 20), 64, 1),
        (s(2, 16, 6), 64, 1),
        (s(2, 6, 4), 24, 1),
        (s(2, 16, 16), 64, 65),
    ] {
        let m = Matrix::new(&b, rows, cols);
        let all = || (&b).into();
        let pages = Pages { rows: all(), tables: all(), table_stride: 1, kv_type: KvType::F32, k: all(), v: all() };
        let d = rope(shape, m, pages, (&b).into(), (&b).into());
        assert!(d.is_err(), "{shape:?} on {cols}");
    }
}
