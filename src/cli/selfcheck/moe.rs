//! Mixtures of experts: routing, grouping, products in every weight format, and the sum.

use doppler::Result;
use doppler::gpu::Buffer;
use doppler::kernels::constants::{COOP_TILE, TILE};
use doppler::kernels::{
    self, ExpertWeight, Grouping, HalfRoom, HalfRows, Matrix, MoeShape, Routing, RowSource, SharedExpert,
    WeightUploader,
};
use doppler::quant::{Format, GPU_BLOCK};

use super::bytes::Bytes;
use super::weights::{format_of, random_rows, widths};
use super::{Lab, Measured, Rng, Want, compare};

/// The buffers of a mixture; what they hold before does not matter, so it is no zero.
pub(super) struct Mixture {
    shape: MoeShape,
    ids: Buffer,
    pub(super) weights: Buffer,
    groups: Buffer,
    order: Buffer,
    tiles: Buffer,
    grids: Buffer,
    tile: u32,
    widths: [u32; 2],
}

impl Mixture {
    pub(super) fn new(lab: &Lab, shape: MoeShape, widths: [u32; 2], ids: &[u32]) -> Result<Self> {
        let dirty = |bytes: u64| lab.words(&vec![0xdead_beef; bytes as usize / 4]);
        Ok(Self {
            shape,
            ids: if ids.is_empty() { dirty(shape.entries_bytes())? } else { lab.words(ids)? },
            weights: dirty(shape.entries_bytes())?,
            groups: dirty(shape.groups_bytes())?,
            order: dirty(shape.entries_bytes())?,
            tiles: dirty(shape.tiles_bytes())?,
            grids: lab.gpu.indirect("selfcheck", MoeShape::GRIDS_BYTES, &lab.scope)?,
            tile: TILE.0,
            widths,
        })
    }

    pub(super) fn routing(&self) -> Routing<'_> {
        Routing { shape: self.shape, ids: (&self.ids).into(), weights: (&self.weights).into() }
    }

    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            groups: (&self.groups).into(),
            order: (&self.order).into(),
            tiles: (&self.tiles).into(),
            tile: self.tile,
            grids: &self.grids,
            widths: self.widths,
        }
    }
}

fn differences<T: PartialEq>(got: &[T], want: &[T]) -> usize {
    got.len().abs_diff(want.len()) + got.iter().zip(want).filter(|(g, w)| g != w).count()
}

/// `n_used` different experts of each row, of the first `among`.
pub(super) fn random_ids(rng: &mut Rng, s: MoeShape, among: u32) -> Vec<u32> {
    (0..s.rows).flat_map(|_| rng.permutation(among).into_iter().take(s.n_used as usize)).collect()
}

pub(super) fn route(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    let mut rng = Rng::new(31);
    for (n, k) in [(4u32, 2u32), (8, 2), (60, 4), (128, 8), (512, 16)] {
        for renormalize in [false, true] {
            let rows = 37;
            // On a grid of steps, so that many are equal; some are no numbers.
            let mut logits: Vec<f32> =
                rng.units((rows * n) as usize).iter().map(|x| (x * 12.0).round() * 0.25).collect();
            for v in logits.iter_mut().step_by(11) {
                *v = f32::NAN;
            }
            let s = MoeShape { rows, n_expert: n, n_used: k };
            let (x, m) = (lab.floats(&logits)?, Mixture::new(lab, s, [1, 1], &[])?);
            lab.run([kernels::moe_route(&lab.gpu, Matrix::new(&x, rows, n), m.routing(), renormalize, 1.5)?])?;
            let (mut ids, mut weights) = (Vec::new(), Vec::new());
            for row in logits.chunks_exact(n as usize) {
                let value = |&v: &f32| if v.is_nan() { f64::NEG_INFINITY } else { f64::from(v) };
                let mut order: Vec<u32> = (0..n).collect();
                order.sort_by(|&a, &b| value(&row[b as usize]).total_cmp(&value(&row[a as usize])));
                let mass: Vec<f64> = order.iter().map(|&i| value(&row[i as usize]).exp()).collect();
                let total: f64 = mass.iter().take(if renormalize { k } else { n } as usize).sum();
                ids.extend(order.iter().take(k as usize));
                weights.extend(mass.iter().take(k as usize).map(|m| Want::from(1.5 * m / total)));
            }
            let case = format!("{k} of {n}{}", if renormalize { ", renormalized" } else { "" });
            all.push(Measured::exact(format!("{case}: ids"), differences(&lab.read_words(&m.ids, ids.len())?, &ids)));
            all.push(compare(case, &lab.read(&m.weights, weights.len())?, &weights, 1e-7, 1e-5));
        }
    }
    Ok(all)
}

pub(super) fn group(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    let mut rng = Rng::new(32);
    // Rows, experts, used, experts that get rows at all.
    for (rows, n, k, among) in
        [(1u32, 4u32, 2u32, 4u32), (300, 8, 2, 8), (65, 60, 4, 9), (500, 512, 8, 512), (333, 8, 1, 1)]
    {
        let s = MoeShape { rows, n_expert: n, n_used: k };
        let ids = random_ids(&mut rng, s, among);
        let m = Mixture::new(lab, s, [3, 7], &ids)?;
        lab.run(kernels::moe_group(m.routing(), m.grouping())?)?;
        let (mut groups, mut order, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
        for expert in 0..n {
            let first = order.len() as u32;
            order.extend((0..ids.len() as u32).filter(|&e| ids[e as usize] == expert));
            let count = order.len() as u32 - first;
            groups.extend([first, count]);
            for done in (0..count).step_by(TILE.0 as usize) {
                tiles.extend([expert, first + done, TILE.0.min(count - done), 0]);
            }
        }
        let n_tiles = tiles.len() as u32 / 4;
        tiles.splice(0..0, [n_tiles, n_tiles, 0, 0]);
        let grids = [3, n_tiles, 1, 7, n_tiles, 1];
        let mut wrong = 0;
        for (buffer, want) in
            [(&m.groups, &groups), (&m.order, &order), (&m.tiles, &tiles), (&m.grids, &grids.to_vec())]
        {
            wrong += differences(&lab.read_words(buffer, want.len())?, want);
        }
        all.push(Measured::exact(format!("{rows} rows, {k} of {n}"), wrong));
    }
    Ok(all)
}

/// A weight for each expert on the device, and its values and biases, expert by expert.
pub(super) fn expert_weight(
    lab: &Lab,
    format: &'static Format,
    (n_expert, rows, k): (usize, usize, usize),
    bias: Option<&[f32]>,
) -> Result<(ExpertWeight, Vec<f32>)> {
    let (bytes, values) = random_rows(format, &mut Rng::new((rows * k) as u64), n_expert * rows, k);
    let mut progress = |_| Ok(());
    let mut uploader = WeightUploader::new(&lab.gpu, &lab.scope, &mut progress);
    let source = RowSource { format, rows: rows as u32, data: &bytes, bias };
    let w = uploader.upload_experts(format.name, k as u32, n_expert as u32, &[source])?;
    uploader.finish()?;
    Ok((w, values))
}

/// Products of the kernel, with `tiles` of entries grouped.
fn product(lab: &Lab, kernel: &str, tiles: bool, rows: [u32; 2]) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants(kernel) {
        let format = format_of(&v)?;
        // The first width of a format without blocks ends in a part of a block.
        let k =
            |i: usize| if v.has("TAIL") { widths(format)[i] } else { widths(format)[i].next_multiple_of(GPU_BLOCK) };
        for (k, rows) in [(k(0), rows[0]), (k(1), rows[1])] {
            let (n_expert, n) = (5, 67);
            let mut rng = Rng::new((k as u64) * u64::from(rows));
            let bias = rng.units(n_expert * n);
            let biased = v.has("BIAS").then_some(bias.as_slice());
            let (w, values) = expert_weight(lab, format, (n_expert, n, k), biased)?;
            let s = MoeShape { rows, n_expert: n_expert as u32, n_used: 2 };
            let ids = random_ids(&mut rng, s, 4);
            let coop = kernel == "moe_coop";
            let columns = if coop { kernels::coop_columns(&w) } else { kernels::tile_columns(&w) };
            let mut m = Mixture::new(lab, s, [columns, 1], &ids)?;
            let mut x = rng.units(rows as usize * k);
            if coop {
                m.tile = if v.has("ROWS_64") { COOP_TILE.0 / 2 } else { COOP_TILE.0 };
                // Rows of different size that f16 holds with a factor.
                let size = |i: usize| [1.0, 1_048_576.0, 1.0 / 8_388_608.0][i / k % 3] / 256.0;
                x.iter_mut().enumerate().for_each(|(i, v)| *v = (*v * 256.0).round() * size(i));
            }
            let (xb, yb) = (lab.floats(&x)?, lab.blank(ids.len() * n)?);
            let (mx, my) = (Matrix::new(&xb, rows, k as u32), Matrix::new(&yb, ids.len() as u32, n as u32));
            let grouping = tiles.then(|| m.grouping());
            if let Some(grouping) = grouping {
                lab.run(kernels::moe_group(m.routing(), grouping)?)?;
            }
            let x = match v.has("BYTES") {
                true => {
                    let bytes = Bytes::of(lab, mx)?;
                    lab.run(kernels::moe_matmul_bytes(bytes.operand(), &w, my, m.routing())?)?;
                    bytes.read(lab)?
                }
                false if coop => {
                    let (room, scales) =
                        (HalfRows::data_bytes(rows.into(), k as u32), HalfRows::scales_bytes(rows.into()));
                    let (hb, sb) = (lab.blank(room as usize / 4)?, lab.blank(scales as usize / 4)?);
                    let half = HalfRoom { data: (&hb).into(), scales: (&sb).into(), weights: None, parts: None }
                        .rows(rows, k as u32);
                    lab.run([kernels::half_rows(&lab.gpu, mx, half)?])?;
                    let routing = m.routing();
                    lab.run(kernels::moe_matmul_coop(lab.gpu.features(), half, &w, my, routing, m.grouping())?)?;
                    x
                }
                false => {
                    lab.run(kernels::moe_matmul(mx, &w, my, m.routing(), grouping)?)?;
                    x
                }
            };
            let mut want = Vec::new();
            for (e, &id) in ids.iter().enumerate() {
                let x = x.chunks_exact(k).nth(e / 2).unwrap_or_default();
                let rows = values.chunks_exact(k).zip(&bias).skip(id as usize * n).take(n);
                want.extend(rows.map(|(w, &b)| {
                    let b = if v.has("BIAS") { b } else { 0.0 };
                    let products = x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b));
                    products.chain([f64::from(b)]).fold(Want(0.0, 0.0), |Want(v, size), t| Want(v + t, size + t.abs()))
                }));
            }
            let case = format!("{rows} x {k} by {n}, 2 of {n_expert}, {v}");
            let abs = if v.has("BYTES") { 1e-4 } else { 1e-6 };
            all.push(compare(case, &lab.read(&yb, want.len())?, &want, abs, if coop { 3e-4 } else { 5e-6 }));
        }
    }
    Ok(all)
}

pub(super) fn vec(lab: &Lab) -> Result<Vec<Measured>> {
    product(lab, "moe_vec", false, [1, 3])
}

pub(super) fn tile(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = product(lab, "moe_tile", true, [5, 110])?;
    if lab.gpu.features().cooperative_matrix {
        all.extend(product(lab, "moe_coop", true, [5, 300])?);
    }
    Ok(all)
}

pub(super) fn combine(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (rows, k, cols, shared) in [(1usize, 2usize, 4usize, false), (37, 8, 260, false), (37, 4, 260, true)] {
        let mut rng = Rng::new((rows * k) as u64);
        let s = MoeShape { rows: rows as u32, n_expert: 16, n_used: k as u32 };
        let (weights, y, x) = (rng.units(rows * k), rng.units(rows * k * cols), rng.units(rows * cols));
        let (gates, beside) = (rng.units(rows), rng.units(rows * cols));
        let m = Mixture { weights: lab.floats(&weights)?, ..Mixture::new(lab, s, [1, 1], &[])? };
        let (yb, xb, gb, sb) = (lab.floats(&y)?, lab.floats(&x)?, lab.floats(&gates)?, lab.floats(&beside)?);
        let (my, mx) = (Matrix::new(&yb, (rows * k) as u32, cols as u32), Matrix::new(&xb, rows as u32, cols as u32));
        let other = SharedExpert { gate: (&gb).into(), y: Matrix::new(&sb, rows as u32, cols as u32) };
        lab.run([kernels::moe_combine(m.routing(), my, shared.then_some(other), mx)?])?;
        let want: Vec<Want> = (0..rows * cols)
            .map(|i| {
                let (row, c) = (i / cols, i % cols);
                let chosen = (row * k..(row + 1) * k).map(|e| f64::from(weights[e]) * f64::from(y[e * cols + c]));
                let own = shared.then(|| f64::from(beside[i]) / (1.0 + (-f64::from(gates[row])).exp()));
                let terms = chosen.chain(own);
                terms.fold(f64::from(x[i]).into(), |Want(v, size), t| Want(v + t, size + t.abs()))
            })
            .collect();
        let case = format!("{rows} x {cols}, {k} experts{}", if shared { " and a shared one" } else { "" });
        all.push(compare(case, &lab.read(&xb, want.len())?, &want, 1e-7, 1e-6));
    }
    Ok(all)
}
