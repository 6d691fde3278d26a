//! Rotary embedding and the write of keys and values to their pages.

use doppler::gpu::Gpu;
use doppler::kernels::constants::KV_BLOCK_TOKENS;
use doppler::kernels::{AngleTable, KvType, Matrix, Pages, RopePairs, RopeShape, rope};

use crate::common::*;

/// The types that can store heads of this size.
pub(crate) fn kv_types(head_dim: u32) -> impl Iterator<Item = KvType> {
    KvType::ALL.into_iter().filter(move |kv| kv.check(head_dim).is_ok())
}

/// Bytes and scale of 32 dimensions, as `KvType::Q8` rounds them; a block of NaN has a scale of NaN.
fn quantised(block: &[f32]) -> ([i8; 32], half::f16) {
    let largest = block.iter().fold(0f32, |m, x| if x.is_nan() { f32::NAN } else { m.max(x.abs()) });
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    (std::array::from_fn(|i| (block[i] * inverse).round() as i8), half::f16::from_f32(scale))
}

/// Rows of a cache, each a head at a position, as words of a type.
pub(crate) fn kv_words(kv: KvType, head_dim: u32, values: &[f32]) -> Vec<u32> {
    let pair = |a: half::f16, b: half::f16| u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
    match kv {
        KvType::F32 => values.iter().map(|v| v.to_bits()).collect(),
        KvType::F16 => values.chunks(2).map(|p| pair(half::f16::from_f32(p[0]), half::f16::from_f32(p[1]))).collect(),
        KvType::Q8 => {
            let mut words = Vec::new();
            for row in values.chunks_exact(head_dim as usize) {
                let blocks: Vec<_> = row.chunks_exact(32).map(quantised).collect();
                for (bytes, _) in &blocks {
                    words.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([0, 1, 2, 3].map(|i| b[i] as u8))));
                }
                for two in blocks.chunks(2) {
                    words.push(pair(two[0].1, two.get(1).map_or(half::f16::ZERO, |b| b.1)));
                }
            }
            words
        }
    }
}

/// Words of one row.
pub(crate) fn row_words(kv: KvType, head_dim: u32) -> usize {
    kv.row_bytes(head_dim) as usize / 4
}

/// The numbers that rows of a cache stand for.
pub(crate) fn kv_values(kv: KvType, head_dim: u32, words: &[u32]) -> Vec<f32> {
    let halves = |w: u32| [w as u16, (w >> 16) as u16].map(|h| half::f16::from_bits(h).to_f32());
    match kv {
        KvType::F32 => words.iter().map(|&w| f32::from_bits(w)).collect(),
        KvType::F16 => words.iter().flat_map(|&w| halves(w)).collect(),
        KvType::Q8 => words
            .chunks_exact(row_words(kv, head_dim))
            .flat_map(|row| {
                let (bytes, scales) = row.split_at(head_dim as usize / 4);
                let bytes = bytes.iter().flat_map(|w| w.to_le_bytes()).enumerate();
                bytes.map(|(d, b)| halves(scales[d / 64])[d / 32 % 2] * f32::from(b as i8)).collect::<Vec<_>>()
            })
            .collect(),
    }
}

/// Rows as they should be stored, against what is: half a step of the type off at most.
fn stored(what: &str, kv: KvType, head_dim: u32, words: &[u32], want: &[Want]) {
    let got = kv_values(kv, head_dim, words);
    if kv != KvType::Q8 {
        // A half is half an ulp off at most, 2^-11.
        let rel = if kv == KvType::F16 { 1.01 / 2048.0 } else { 1e-6 };
        close(what, &got, want, 1e-7, rel);
        return;
    }
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let rows = words.chunks_exact(row_words(kv, head_dim)).zip(want.chunks_exact(head_dim as usize));
    for (at, (row, want)) in rows.enumerate() {
        let (bytes, scales) = row.split_at(head_dim as usize / 4);
        for (b, want) in want.chunks_exact(32).enumerate() {
            let scale = half::f16::from_bits((scales[b / 2] >> (16 * (b % 2))) as u16).to_f64();
            let exact = want.iter().map(|w| w.value.abs()).fold(0.0, f64::max) / 127.0;
            assert!((scale - exact).abs() <= exact / 2040.0 + 6e-8, "{what}: row {at} block {b}: {scale}, not {exact}");
            for (i, w) in want.iter().enumerate() {
                let q = bytes[(b * 32 + i) / 4].to_le_bytes()[i % 4] as i8;
                let ideal = if exact > 0.0 { w.value / exact } else { 0.0 };
                let slack = 0.5 + 1e-4 + 2e-6 * if exact > 0.0 { w.magnitude / exact } else { 0.0 };
                assert!(
                    (f64::from(q) - ideal).abs() <= slack,
                    "{what}: row {at} dimension {}: {q}, not {ideal}",
                    b * 32 + i
                );
            }
        }
        if !head_dim.is_multiple_of(64) {
            assert_eq!(scales.last().unwrap() >> 16, 0, "{what}: row {at}: the scale that no block has");
        }
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
    let fresh = kv_words(kv, head_dim, &vec![UNTOUCHED; elements]);
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
    for (name, buffer, want) in [("k", &kb, &want_k), ("v", &vb, &want_v)] {
        stored(&format!("{name} of {what}"), kv, head_dim, &download_words(gpu, buffer, fresh.len()), want);
    }
}

#[test]
fn rope_turns_pairs_and_writes_pages() {
    for v in variants() {
        for pairs in [RopePairs::Adjacent, RopePairs::Halves, RopePairs::None] {
            let shape = |n_head, n_kv, head_dim, n_rot| RopeShape { n_head, n_kv, head_dim, n_rot, pairs };
            let usual = [
                (shape(4, 2, 64, 64), 1.0),
                (shape(3, 1, 80, 32), 1.0),
                (shape(1, 1, 4, 4), 1.0),
                (shape(2, 1, 36, 18), 1.0),
            ];
            // Heads of an odd number of blocks: the last one shares its word of scales with none.
            let odd = [(shape(3, 2, 96, 64), 1.0), (shape(2, 1, 32, 32), 1.0)];
            let more = [(shape(2, 2, 128, 96), 1.19), (shape(8, 1, 256, 64), 1.0), (shape(2, 1, 16, 0), 1.0)];
            let cases = usual.into_iter().chain(odd).chain(more.into_iter().filter(|_| v.full));
            for (shape, magnitude) in cases {
                kv_types(shape.head_dim).for_each(|kv| check(v, shape, kv, magnitude));
            }
        }
    }
}

/// A head whose largest number is 127 has a scale of 1: its bytes are its numbers rounded, halves away from zero.
#[test]
fn q8_rounds_halves_away_from_zero() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        let mut head = vec![0f32; 32];
        let given = [127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.499_999_97, -126.5, 126.499, -0.25, 100.5];
        head[..given.len()].copy_from_slice(&given);
        let want: Vec<i8> = given.iter().map(|x| x.round() as i8).collect();
        // One query head, one key, one value (all zeros: a scale of zero).
        let x = upload(gpu, &[head.clone(), head, vec![0.0; 32]].concat());
        let rows = upload_words(gpu, &[0, 3]);
        let (tables, angles, q) = (upload_words(gpu, &[0]), upload_words(gpu, &[0; 4]), untouched(gpu, 32));
        let fresh = kv_words(KvType::Q8, 32, &vec![UNTOUCHED; 32 * KV_BLOCK_TOKENS as usize]);
        let (k, val) = (upload_words(gpu, &fresh), upload_words(gpu, &fresh));
        let pages = Pages {
            rows: (&rows).into(),
            tables: (&tables).into(),
            table_stride: 1,
            kv_type: KvType::Q8,
            k: (&k).into(),
            v: (&val).into(),
        };
        let shape = RopeShape { n_head: 1, n_kv: 1, head_dim: 32, n_rot: 0, pairs: RopePairs::None };
        run(gpu, rope(shape, Matrix::new(&x, 1, 96), pages, (&angles).into(), (&q).into()));
        let mut wanted = fresh.clone();
        wanted[27..36].fill(0);
        assert_eq!(download_words(gpu, &val, fresh.len()), wanted, "zeros ({})", v.name);
        let got = download_words(gpu, &k, fresh.len());
        let bytes: Vec<i8> = got[27..35].iter().flat_map(|w| w.to_le_bytes()).map(|b| b as i8).collect();
        assert_eq!(bytes[..want.len()], want, "{}", v.name);
        assert_eq!(got[35], u32::from(half::f16::ONE.to_bits()), "{}", v.name);
        wanted[27..36].copy_from_slice(&got[27..36]);
        assert_eq!(got, wanted, "other rows ({})", v.name);
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
        (s(2, 16, 7), 64, 1),
        (s(2, 6, 4), 24, 1),
        (s(2, 16, 16), 64, 65),
    ] {
        let m = Matrix::new(&b, rows, cols);
        let all = || (&b).into();
        let pages = Pages { rows: all(), tables: all(), table_stride: 1, kv_type: KvType::F32, k: all(), v: all() };
        let d = rope(shape, m, pages, (&b).into(), (&b).into());
        assert!(d.is_err(), "{shape:?} on {cols}");
        let e = rope(
            s(2, 16, 16),
            Matrix::new(&b, 1, 64),
            Pages { kv_type: KvType::Q8, ..pages },
            (&b).into(),
            (&b).into(),
        );
        let e = e.unwrap_err().to_string();
        assert!(e.contains("q8") && e.contains("16"), "{e}");
    }
}
