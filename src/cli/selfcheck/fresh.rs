//! Decode attention that normalises, rotates and keeps what the product made.

use doppler::Result;
use doppler::gpu::Variant;
use doppler::kernels::constants::KV_BLOCK_TOKENS;
use doppler::kernels::{self, AngleTable, AttentionParts, AttentionShape, Fresh, KvType, Matrix, RopePairs, RopeShape};

use super::attention::{Layout, attend, pack, rotated, storage_error, unpack};
use super::{Lab, Measured, Rng, Want, compare};

const EPS: f32 = 1e-3;

/// Heads `[first head, …]` of a row, normalised and rotated.
fn prepared(head: &[f32], w: Option<&[f32]>, shape: &RopeShape, steps: &[f64], pos: u32) -> Vec<Want> {
    let Some(w) = w else { return rotated(head, shape, steps, pos) };
    let squares: f64 = head.iter().map(|&v| f64::from(v).powi(2)).sum();
    let scale = 1.0 / (squares / head.len() as f64 + f64::from(EPS)).sqrt();
    let head: Vec<f32> = head.iter().zip(w).map(|(&v, &w)| (f64::from(v) * scale * f64::from(w)) as f32).collect();
    rotated(&head, shape, steps, pos)
}

/// One variant: a row of each of several sequences, at different positions, whose newest entries of the cache are not there yet.
pub(super) fn fresh(lab: &Lab, v: &Variant, shape: AttentionShape, kv: KvType) -> Result<Vec<Measured>> {
    const POSITIONS: [u32; 4] = [0, 7, 64, 331];
    let AttentionShape { n_head, n_kv, head_dim, .. } = shape;
    let (hd, stride) = (head_dim as usize, 332u32.div_ceil(KV_BLOCK_TOKENS));
    let pairs = if v.has("NEOX") { RopePairs::Halves } else { RopePairs::Adjacent };
    // Part of a head is rotated; with the kernel's other choices, all of it.
    let n_rot = if v.has("SPLIT") { head_dim } else { head_dim / 2 };
    let turn = RopeShape { n_head, n_kv, head_dim, n_rot, pairs };
    let steps: Vec<f64> = (0..n_rot / 2).map(|i| 10_000f64.powf(-2.0 * f64::from(i) / f64::from(n_rot))).collect();
    let mut rng = Rng::new(u64::from(head_dim) + 9);
    let sequences = POSITIONS.len() as u32;
    let base = |slot: u32| slot * stride * KV_BLOCK_TOKENS;
    let pages = Layout::new(&mut rng, base(sequences), n_kv, head_dim);
    let width = (n_head + 2 * n_kv) * head_dim;
    let x = rng.units(POSITIONS.len() * width as usize);
    let weights = [rng.units(hd), rng.units(hd)].map(|w| w.iter().map(|w| 1.0 + 0.5 * w).collect::<Vec<f32>>());
    let norm = v.has("QK_NORM").then_some(&weights);
    let [mut k, mut v_values] = [rng.units(pages.elements()), rng.units(pages.elements())];
    // What must not be read before it is written.
    for (slot, &pos) in (0..).zip(&POSITIONS) {
        for head in 0..n_kv {
            let at = pages.at(base(slot) + pos, head);
            k[at..at + hd].fill(77.0);
            v_values[at..at + hd].fill(77.0);
        }
    }
    let (kw, vw) = (pack(kv, head_dim, &k), pack(kv, head_dim, &v_values));
    let (kb, vb) = (lab.words(&kw)?, lab.words(&vw)?);
    let rows: Vec<u32> = (0..sequences).zip(&POSITIONS).flat_map(|(slot, &pos)| [slot, pos]).collect();
    let (rb, table) = (lab.words(&rows)?, lab.words(pages.table())?);
    let (xb, yb) = (lab.floats(&x)?, lab.blank(POSITIONS.len() * (n_head * head_dim) as usize)?);
    let ab = lab.words(bytemuck::cast_slice(&AngleTable::new(&steps, 1.0, 512).values))?;
    let [qw, kw_norm] = [lab.floats(&weights[0])?, lab.floats(&weights[1])?];
    let sinks: Vec<f32> = (0..n_head).map(|h| [-90.0, 0.5, 4.0][h as usize % 3]).collect();
    let sb = lab.floats(&sinks)?;
    let sunk = |d| if v.has("SINKS") { shape.with_sinks(d, (&sb).into()) } else { Ok(d) };

    let mut binding = pages.bind(kv, [&rb, &table, &kb, &vb]);
    binding.table_stride = stride;
    let queries = kernels::Queries::Fresh(Fresh {
        qkv: Matrix::new(&xb, sequences, width),
        angles: (&ab).into(),
        n_rot,
        pairs,
        norm: norm.map(|_| ((&qw).into(), (&kw_norm).into(), EPS)),
    });
    if v.has("SPLIT") {
        let [sums, tops] = AttentionParts::sizes(&shape, sequences, 3).map(|bytes| bytes as usize / 4);
        let (sums, tops) = (lab.floats(&vec![f32::NAN; sums])?, lab.floats(&vec![f32::NAN; tops])?);
        let parts = AttentionParts { sums: (&sums).into(), tops: (&tops).into() };
        lab.run(kernels::attention_split(&lab.gpu, shape, sequences, 3, binding, queries, parts, (&yb).into(), None)?)?;
    } else {
        lab.run([sunk(kernels::attention_decode(&lab.gpu, shape, sequences, binding, queries, (&yb).into())?)?])?;
    }

    // The cache as it has to be: as it was, and the new entries.
    let [mut want_k, mut want_v] = [&kw, &vw].map(|w| {
        let values = unpack(kv, head_dim, w);
        values.into_iter().map(|v| Want::from(f64::from(v))).collect::<Vec<_>>()
    });
    for ((slot, &pos), row) in (0..).zip(&POSITIONS).zip(x.chunks_exact(width as usize)) {
        for head in 0..n_kv {
            let at = pages.at(base(slot) + pos, head);
            let of = |first: u32| &row[((first + head) * head_dim) as usize..][..hd];
            let key = prepared(of(n_head), norm.map(|w| w[1].as_slice()), &turn, &steps, pos);
            want_k[at..at + hd].copy_from_slice(&key);
            want_v[at..at + hd].iter_mut().zip(of(n_head + n_kv)).for_each(|(w, &v)| *w = f64::from(v).into());
        }
    }
    let rel = storage_error(kv, &mut want_k).max(storage_error(kv, &mut want_v));
    let case = |what: &str| format!("{what}, heads {n_head}/{n_kv} of {head_dim}, {v}");
    let got_k = unpack(kv, head_dim, &lab.read_words(&kb, kw.len())?);
    let got_v = unpack(kv, head_dim, &lab.read_words(&vb, vw.len())?);
    let mut all = vec![compare(case("k"), &got_k, &want_k, 1e-6, rel), compare(case("v"), &got_v, &want_v, 1e-6, rel)];

    // Attention over what the cache holds now: so the rounding of what was stored does not count.
    let mut want = Vec::new();
    for ((slot, &pos), row) in (0..).zip(&POSITIONS).zip(x.chunks_exact(width as usize)) {
        let q: Vec<f32> = row[..(n_head * head_dim) as usize]
            .chunks_exact(hd)
            .flat_map(|head| prepared(head, norm.map(|w| w[0].as_slice()), &turn, &steps, pos))
            .map(|w| w.0 as f32)
            .collect();
        let sinks = v.has("SINKS").then_some(sinks.as_slice());
        want.extend(attend(&shape, &pages, [&got_k, &got_v], &q, base(slot), pos, sinks));
    }
    all.push(compare(case("y"), &lab.read(&yb, want.len())?, &want, 1e-6, 2e-5));
    Ok(all)
}
