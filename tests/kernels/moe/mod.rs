//! Mixtures of experts: routing, grouping, products and the whole block.

mod block;
mod few;
mod grouping;
mod product;
mod routing;

use doppler::gpu::{Buffer, Gpu};
use doppler::kernels::constants::TILE;
use doppler::kernels::{ExpertWeight, Grouping, MoeShape, Routing, RowSource, WeightUploader};
use doppler::quant::Format;

use crate::common::*;

pub(crate) fn shape(rows: u32, n_expert: u32, n_used: u32) -> MoeShape {
    MoeShape { rows, n_expert, n_used }
}

/// The buffers of a mixture, filled with a pattern: nothing may depend on what they hold.
pub(crate) struct Buffers {
    pub(crate) shape: MoeShape,
    pub(crate) ids: Buffer,
    pub(crate) weights: Buffer,
    pub(crate) groups: Buffer,
    pub(crate) order: Buffer,
    pub(crate) tiles: Buffer,
    pub(crate) grids: Buffer,
    pub(crate) widths: [u32; 2],
}

impl Buffers {
    pub(crate) fn new(v: &Variant, shape: MoeShape, widths: [u32; 2], dirt: u32) -> Self {
        let gpu: &Gpu = &v.gpu;
        let filled = |bytes: u64| upload_words(gpu, &vec![dirt; bytes as usize / 4]);
        let grids = gpu.indirect("grids", MoeShape::GRIDS_BYTES, &v.scope()).unwrap();
        gpu.upload(grids.whole(), bytemuck::cast_slice(&[dirt; 6]), &v.scope()).unwrap();
        Self {
            shape,
            ids: filled(shape.entries_bytes()),
            weights: filled(shape.entries_bytes()),
            groups: filled(shape.groups_bytes()),
            order: filled(shape.entries_bytes()),
            tiles: filled(shape.tiles_bytes()),
            grids,
            widths,
        }
    }

    /// With these experts, as routing would have written them.
    pub(crate) fn with_ids(v: &Variant, shape: MoeShape, widths: [u32; 2], ids: &[u32]) -> Self {
        assert_eq!(ids.len() as u64, shape.entries());
        Self { ids: upload_words(&v.gpu, ids), ..Self::new(v, shape, widths, 0xdead_beef) }
    }

    pub(crate) fn routing(&self) -> Routing<'_> {
        Routing { shape: self.shape, ids: (&self.ids).into(), weights: (&self.weights).into() }
    }

    pub(crate) fn grouping(&self) -> Grouping<'_> {
        Grouping {
            groups: (&self.groups).into(),
            order: (&self.order).into(),
            tiles: (&self.tiles).into(),
            tile: TILE.0,
            grids: &self.grids,
            widths: self.widths,
        }
    }
}

/// What grouping should make of a list of experts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) groups: Vec<[u32; 2]>,
    pub(crate) order: Vec<u32>,
    pub(crate) tiles: Vec<[u32; 4]>,
    pub(crate) grids: [u32; 6],
}

impl Groups {
    pub(crate) fn of(ids: &[u32], n_expert: u32, widths: [u32; 2]) -> Self {
        let mut lists = vec![Vec::new(); n_expert as usize];
        for (e, &id) in ids.iter().enumerate() {
            lists[id as usize].push(e as u32);
        }
        let (mut groups, mut order, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
        for (expert, list) in lists.iter().enumerate() {
            let first = order.len() as u32;
            groups.push([first, list.len() as u32]);
            for (i, tile) in list.chunks(TILE.0 as usize).enumerate() {
                tiles.push([expert as u32, first + i as u32 * TILE.0, tile.len() as u32, 0]);
            }
            order.extend(list);
        }
        let n = tiles.len() as u32;
        let planes = n.div_ceil(65_535).max(1);
        let plane = n.div_ceil(planes);
        tiles.insert(0, [n, plane, 0, 0]);
        let grids = [widths[0], plane, planes, widths[1], plane, planes];
        Self { groups, order, tiles, grids }
    }

    pub(crate) fn read(v: &Variant, b: &Buffers) -> Self {
        let words = |buffer, n: u64| download_words(&v.gpu, buffer, n as usize);
        let grouped = |words: Vec<u32>| words.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]).collect::<Vec<_>>();
        let head = grouped(words(&b.tiles, 4))[0][0];
        let groups = words(&b.groups, u64::from(b.shape.n_expert) * 2);
        Self {
            groups: groups.chunks_exact(2).map(|w| [w[0], w[1]]).collect(),
            order: words(&b.order, b.shape.entries()),
            tiles: grouped(words(&b.tiles, (u64::from(head) + 1) * 4)),
            grids: words(&b.grids, 6).try_into().unwrap(),
        }
    }
}

/// `n_used` different experts of each row; `among` limits which.
pub(crate) fn random_ids(rng: &mut Rng, s: MoeShape, among: u32) -> Vec<u32> {
    (0..s.rows).flat_map(|_| rng.permutation(among)[..s.n_used as usize].to_vec()).collect()
}

/// A weight for each expert on the device, beside what it means: `values[expert][row][k]`.
pub(crate) struct TestExperts {
    pub(crate) weight: ExpertWeight,
    pub(crate) values: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Stacks random sources of these formats and rows (of one expert).
pub(crate) fn experts(
    gpu: &Gpu,
    rng: &mut Rng,
    n_expert: u32,
    k: usize,
    sources: &[(&'static Format, u32)],
    bias: bool,
) -> TestExperts {
    let scope = gpu.scope(doppler::gpu::Phase::Load);
    let n = n_expert as usize;
    let data: Vec<Vec<u8>> = sources.iter().map(|&(f, rows)| rng.rows(f, rows as usize * n, k)).collect();
    let biases: Vec<Vec<f32>> = sources.iter().map(|&(_, rows)| rng.floats(rows as usize * n)).collect();
    let list: Vec<RowSource<'_>> = sources
        .iter()
        .zip(data.iter().zip(&biases))
        .map(|(&(format, rows), (data, b))| RowSource { format, rows, data, bias: bias.then_some(b.as_slice()) })
        .collect();
    let mut seen = 0;
    let mut progress = |bytes| {
        seen += bytes;
        Ok(())
    };
    let mut uploader = WeightUploader::new(gpu, &scope, &mut progress);
    let weight = uploader.upload_experts("experts", k as u32, n_expert, &list).unwrap();
    uploader.finish().unwrap();
    assert_eq!(seen, data.iter().map(|d| d.len() as u64).sum::<u64>(), "progress counts every byte");
    // From source by source to expert by expert.
    let decoded: Vec<Vec<f32>> = sources.iter().zip(&data).map(|(&(f, _), d)| decode(f, d)).collect();
    let interleave = |lists: &[Vec<f32>]| -> Vec<f32> {
        (0..n)
            .flat_map(|e| lists.iter().flat_map(move |l| l[l.len() / n * e..l.len() / n * (e + 1)].to_vec()))
            .collect()
    };
    TestExperts { weight, values: interleave(&decoded), bias: bias.then(|| interleave(&biases)) }
}
