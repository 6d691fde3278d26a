//! Mixtures of experts: which experts a row uses, which rows an expert has, products with experts, and their weighted sum.
//!
//! An *entry* `e = row * n_used + place` is one use of an expert. Entries keep their numbers through all products, so results lie by
//! rows and are summed in a fixed order. Few entries read their experts' weights one by one; many are grouped by expert into
//! tiles, whose number only the device knows: the products are then dispatched indirectly. Every entry is computed; there is no capacity that
//! could overflow. No buffer needs a value before: every kernel writes all that later ones read.

use crate::error::{Result, bail};
use crate::gpu::{Buffer, BufferSlice, Dispatch, Forms, Gpu, Grid, Kernel, linear_grid, params};
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::constants::{
    GROUP_FROM, MAX_EXPERTS, MAX_EXPERTS_USED, THREADS, THREADS_LONG, TILE, VEC_ROWS, VEC_ROWS_BYTES,
};
use crate::kernels::matmul::{Team, tail_only_without_blocks, takes_rows};
use crate::kernels::weight::{ExpertWeight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::{Format, GPU_BLOCK};

pub(super) static MOE_ROUTE: Kernel = Kernel {
    name: "moe_route",
    source: include_str!("../../shaders/moe_route.wgsl"),
    flags: &["RENORMALIZE"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: RouteParams::FIELDS,
};

pub(super) static MOE_GROUP: Kernel = Kernel {
    name: "moe_group",
    source: include_str!("../../shaders/moe_group.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: GroupParams::FIELDS,
};

pub(super) static MOE_TILES: Kernel = Kernel {
    name: "moe_tiles",
    source: include_str!("../../shaders/moe_tiles.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: TilesParams::FIELDS,
};

pub(super) static MOE_VEC: Kernel = Kernel {
    name: "moe_vec",
    source: include_str!("../../shaders/moe_vec.wgsl"),
    flags: &["BIAS", "TAIL", "BYTES"],
    constants: &["WG", "NR"],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: takes_rows },
    params: VecParams::FIELDS,
};

pub(super) static MOE_TILE: Kernel = Kernel {
    name: "moe_tile",
    source: include_str!("../../shaders/moe_tile.wgsl"),
    flags: &["BIAS", "TAIL"],
    constants: &[],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: tail_only_without_blocks },
    params: TileParams::FIELDS,
};

pub(super) static MOE_COMBINE: Kernel = Kernel {
    name: "moe_combine",
    source: include_str!("../../shaders/moe_combine.wgsl"),
    flags: &["SHARED"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: CombineParams::FIELDS,
};

params!(RouteParams { rows: u32, n_expert: u32, n_used: u32, stride: u32, offset: u32, scale: f32 });
params!(GroupParams { entries: u32, n_expert: u32 });
params!(TilesParams { n_expert: u32, tile: u32, width0: u32, width1: u32 });
params!(VecParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    k4: u32,
    k_blocks: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride: u32,
    y_offset: u32,
    share: u32,
    expert_start: u32,
    experts: u32,
});
params!(TileParams {
    row_groups: u32,
    n: u32,
    k4: u32,
    k_blocks: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride: u32,
    y_offset: u32,
    share: u32,
    expert_start: u32,
    experts: u32,
});
params!(CombineParams {
    rows: u32,
    cols4: u32,
    n_used: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride4: u32,
    y_offset4: u32,
    shared_stride4: u32,
    shared_offset4: u32,
});

/// Rows, and how many experts there are and are used for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeShape {
    /// Rows (tokens).
    pub rows: u32,
    /// Experts, at most [`MAX_EXPERTS`].
    pub n_expert: u32,
    /// Different experts of a row, at most `n_expert` and [`MAX_EXPERTS_USED`].
    pub n_used: u32,
}

impl MoeShape {
    /// Bytes of [`Grouping::grids`].
    pub const GRIDS_BYTES: u64 = 2 * 3 * 4;

    /// Uses of an expert.
    pub fn entries(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.n_used)
    }

    /// Whether experts have so many rows, on average, that products in tiles pay.
    pub fn grouped(&self) -> bool {
        self.entries() >= u64::from(GROUP_FROM) * u64::from(self.n_expert)
    }

    /// Bytes of [`Grouping::groups`].
    pub fn groups_bytes(&self) -> u64 {
        u64::from(self.n_expert) * 8
    }

    /// Bytes of [`Routing::ids`], [`Routing::weights`] and [`Grouping::order`].
    pub fn entries_bytes(&self) -> u64 {
        self.entries() * 4
    }

    /// Bytes of [`Grouping::tiles`]: each expert with entries may have one tile that is not full.
    pub fn tiles_bytes(&self) -> u64 {
        let tiles = self.entries() / u64::from(TILE.0) + self.entries().min(self.n_expert.into());
        (tiles + 1) * 16
    }

    fn check(&self) -> Result<()> {
        let used = 1..=self.n_expert.min(MAX_EXPERTS_USED);
        if self.n_expert > MAX_EXPERTS || !used.contains(&self.n_used) || self.entries() > 1 << 31 {
            bail!(
                InvalidArgument,
                "mixture of experts: {} of {} experts for {} rows (at most {MAX_EXPERTS_USED} of {MAX_EXPERTS})",
                self.n_used,
                self.n_expert,
                self.rows
            );
        }
        Ok(())
    }
}

/// The experts of each row.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// Its shape.
    pub shape: MoeShape,
    /// Experts, `[rows, n_used]`, by falling logit.
    pub ids: BufferSlice<'a>,
    /// Their weights, likewise.
    pub weights: BufferSlice<'a>,
}

impl Routing<'_> {
    pub(super) fn check(&self) -> Result<()> {
        self.shape.check()?;
        let bytes = self.shape.entries_bytes();
        if self.ids.size < bytes || self.weights.size < bytes {
            bail!(InvalidArgument, "experts of rows: {} and {} bytes, not {bytes}", self.ids.size, self.weights.size);
        }
        Ok(())
    }
}

/// The rows of each expert. Sizes of the buffers: [`MoeShape`].
#[derive(Debug, Clone, Copy)]
pub struct Grouping<'a> {
    /// (First position in `order`, entries) of each expert.
    pub groups: BufferSlice<'a>,
    /// Entries, by expert and number.
    pub order: BufferSlice<'a>,
    /// Count, then (expert, first position, entries) of each tile.
    pub tiles: BufferSlice<'a>,
    /// Entries in a tile at most: those of `TILE` for [`moe_matmul`], [`crate::kernels::coop_entries`] for cooperative products.
    pub tile: u32,
    /// Grids of the products, made by [`crate::gpu::Gpu::indirect`].
    pub grids: &'a Buffer,
    /// Tiles of weight rows that the two grids have in x, from [`tile_columns`]. A product takes the first that is enough for it.
    pub widths: [u32; 2],
}

impl Grouping<'_> {
    /// The grid of a product with so many tiles of weight rows.
    pub(super) fn grid(&self, row_groups: u32) -> Result<Grid> {
        let Some(grid) = self.widths.iter().position(|&w| w >= row_groups) else {
            bail!(InvalidArgument, "moe_matmul: {row_groups} tiles of weight rows in grids of {:?}", self.widths);
        };
        Ok(Grid::Indirect(self.grids.clone(), grid as u64 * 12))
    }
}

/// Tiles of weight rows that a grouped product with `w` needs at most.
pub fn tile_columns(w: &ExpertWeight) -> u32 {
    w.parts().iter().map(|p| p.rows.div_ceil(TILE.1)).max().unwrap_or(1)
}

/// The `n_used` experts of each row by falling logit, of equal ones the lower id first, and their weights: `scale` times the softmax over
/// all experts or, if `renormalize`, over the chosen ones. NaN counts as −∞. `logits` is `[rows, n_expert]`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn moe_route<'a>(
    gpu: &Gpu,
    logits: Matrix<'a>,
    routing: Routing<'a>,
    renormalize: bool,
    scale: f32,
) -> Result<Dispatch<'a>> {
    routing.check()?;
    logits.check("moe_route: logits")?;
    let MoeShape { rows, n_expert, n_used } = routing.shape;
    if logits.rows != rows || logits.cols != n_expert {
        bail!(InvalidArgument, "moe_route: logits {} x {} for {rows} x {n_expert}", logits.rows, logits.cols);
    }
    let params = RouteParams { rows, n_expert, n_used, stride: logits.stride, offset: logits.offset, scale };
    // A thread counts places for each of its experts: more threads where there are more than a few. Stages of a chain find the same with all they have.
    let threads = match gpu.features().chains {
        true => Team::stage_threads(gpu),
        false if n_expert > THREADS => THREADS_LONG,
        false => THREADS,
    };
    Ok(Dispatch::new(&MOE_ROUTE, &params, linear_grid(rows.into()))
        .flag("RENORMALIZE", renormalize)
        .constant("WG", threads)
        .bind("logits", logits.data)
        .bind("ids", routing.ids)
        .bind("weights", routing.weights))
}

/// The rows of each expert, and the tiles and grids of grouped products: two dispatches, to run in this order.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small or a width is not within a grid.
pub fn moe_group<'a>(routing: Routing<'a>, grouping: Grouping<'a>) -> Result<[Dispatch<'a>; 2]> {
    routing.check()?;
    let s = routing.shape;
    let sizes = [
        ("groups", grouping.groups.size, s.groups_bytes()),
        ("order", grouping.order.size, s.entries_bytes()),
        ("tiles", grouping.tiles.size, s.tiles_bytes()),
        ("grids", grouping.grids.size(), MoeShape::GRIDS_BYTES),
    ];
    if let Some((name, is, needed)) = sizes.iter().find(|(_, is, needed)| is < needed) {
        bail!(InvalidArgument, "moe_group: {name} has {is} bytes, {needed} are needed");
    }
    let [width0, width1] = grouping.widths;
    if width0.max(width1) > 65_535 || grouping.tile < TILE.0 {
        let tile = grouping.tile;
        bail!(InvalidArgument, "moe_group: {width0} and {width1} tiles of weight rows of 65535, {tile} entries a tile");
    }
    let group = GroupParams { entries: s.entries() as u32, n_expert: s.n_expert };
    let tiles = TilesParams { n_expert: s.n_expert, tile: grouping.tile, width0, width1 };
    Ok([
        Dispatch::new(&MOE_GROUP, &group, linear_grid(s.n_expert.into()))
            .constant("WG", THREADS_LONG)
            .bind("ids", routing.ids)
            .bind("groups", grouping.groups)
            .bind("order", grouping.order),
        Dispatch::new(&MOE_TILES, &tiles, linear_grid(1))
            .constant("WG", THREADS_LONG)
            .bind("groups", grouping.groups)
            .bind("tiles", grouping.tiles)
            .bind("grids", grouping.grids),
    ])
}

/// `y[e, r] = Σ_k x[., k] · W[expert of e][r, k] (+ bias)` for every entry `e`; one dispatch for each part of `w`. `x` has one row for each
/// entry, or one for each row of the routing, which its entries share. With a `grouping` (after [`moe_group`]), in
/// tiles; else entry by entry.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or no grid of the grouping is wide enough.
pub fn moe_matmul<'a>(
    x: Matrix<'a>,
    w: &'a ExpertWeight,
    y: Matrix<'a>,
    routing: Routing<'a>,
    grouping: Option<Grouping<'a>>,
) -> Result<Vec<Dispatch<'a>>> {
    x.check_vec4("moe_matmul: x")?;
    let share = check_shapes([x.rows, x.cols], w, y, routing)?;
    let product = |part| match grouping {
        Some(g) => tile_part(x, part, y, share, g),
        None => vec_part(X::Floats(x), part, y, share, routing),
    };
    w.parts().iter().map(product).collect()
}

/// [`moe_matmul`] with `x` as bytes, entry by entry.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or `w` has rows without bytes ([`ExpertWeight::has_bytes`]).
pub fn moe_matmul_bytes<'a>(
    x: ByteRows<'a>,
    w: &'a ExpertWeight,
    y: Matrix<'a>,
    routing: Routing<'a>,
) -> Result<Vec<Dispatch<'a>>> {
    x.check("moe_matmul: x", x.rows, x.cols)?;
    let share = check_shapes([x.rows, x.cols], w, y, routing)?;
    if !w.has_bytes() {
        bail!(InvalidArgument, "moe_matmul by {}: not all of its rows are quants", w.name());
    }
    w.parts().iter().map(|part| vec_part(X::Bytes(x), part, y, share, routing)).collect()
}

/// Fails unless the shapes of a product agree; how many entries share a row of `x`.
pub(super) fn check_shapes(
    [rows, cols]: [u32; 2],
    w: &ExpertWeight,
    y: Matrix<'_>,
    routing: Routing<'_>,
) -> Result<u32> {
    routing.check()?;
    y.check("moe_matmul: y")?;
    let s = routing.shape;
    let shared = rows == s.rows;
    let rows_fit = (shared || u64::from(rows) == s.entries()) && u64::from(y.rows) == s.entries();
    if !rows_fit || cols != w.k() || y.cols != w.rows() || w.n_expert() != s.n_expert {
        bail!(
            InvalidArgument,
            "moe_matmul by {}: x {rows} x {cols}, {} experts of {} x {}, y {} x {}, {} of {} experts for {} rows",
            w.name(),
            w.n_expert(),
            w.rows(),
            w.k(),
            y.rows,
            y.cols,
            s.n_used,
            s.n_expert,
            s.rows
        );
    }
    Ok(if shared { s.n_used } else { 1 })
}

/// The rows that a product reads.
#[derive(Clone, Copy)]
enum X<'a> {
    Floats(Matrix<'a>),
    Bytes(ByteRows<'a>),
}

/// What the tiled product binds after its own lists, in the shader's order.
fn operands<'a>(d: Dispatch<'a>, x: Matrix<'a>, part: &'a WeightPart, y: Matrix<'a>) -> Result<Dispatch<'a>> {
    let mut d = d
        .flag("BIAS", part.bias.is_some())
        .flag("TAIL", !(x.cols as usize).is_multiple_of(GPU_BLOCK))
        .slot("weight", weight_fragment(part.format)?)
        .bind("x", x.data)
        .bind("y", y.data);
    if let Some(bias) = &part.bias {
        d = d.bind("bias", bias);
    }
    Ok(part.bind(d))
}

fn vec_part<'a>(
    x: X<'a>,
    part: &'a WeightPart,
    y: Matrix<'a>,
    share: u32,
    routing: Routing<'a>,
) -> Result<Dispatch<'a>> {
    let (cols, stride, offset, rows) = match x {
        X::Floats(x) => (x.cols, x.stride, x.offset, VEC_ROWS),
        X::Bytes(x) => (x.cols, 0, 0, VEC_ROWS_BYTES),
    };
    let row_groups = part.rows.div_ceil(rows);
    let Ok(groups) = u32::try_from(routing.shape.entries() * u64::from(row_groups)) else {
        bail!(InvalidArgument, "moe_matmul: {} entries of {} rows", routing.shape.entries(), part.rows);
    };
    let params = VecParams {
        groups,
        row_groups,
        n: part.rows,
        k4: cols / 4,
        k_blocks: Format::gpu_blocks(cols as usize) as u32,
        x_stride4: stride / 4,
        x_offset4: offset / 4,
        y_stride: y.stride,
        y_offset: y.offset + part.row_start,
        share,
        expert_start: part.expert_start,
        experts: part.experts,
    };
    let mut d = Dispatch::new(&MOE_VEC, &params, linear_grid(groups.into()))
        .constant("WG", THREADS)
        .constant("NR", rows)
        .flag("BIAS", part.bias.is_some())
        .slot("weight", weight_fragment(part.format)?)
        .bind("ids", routing.ids)
        .bind("y", y.data);
    if let Some(bias) = &part.bias {
        d = d.bind("bias", bias);
    }
    d = match x {
        X::Floats(x) => d.flag("TAIL", !(cols as usize).is_multiple_of(GPU_BLOCK)).bind("x", x.data),
        X::Bytes(x) => d.flag("BYTES", true).bind("x", x.quants).bind("x_scales", x.scales),
    };
    Ok(part.bind(d))
}

fn tile_part<'a>(
    x: Matrix<'a>,
    part: &'a WeightPart,
    y: Matrix<'a>,
    share: u32,
    grouping: Grouping<'a>,
) -> Result<Dispatch<'a>> {
    let row_groups = part.rows.div_ceil(TILE.1);
    if grouping.tile != TILE.0 {
        bail!(InvalidArgument, "moe_matmul: tiles of {} entries, not {}", grouping.tile, TILE.0);
    }
    let params = TileParams {
        row_groups,
        n: part.rows,
        k4: x.cols / 4,
        k_blocks: Format::gpu_blocks(x.cols as usize) as u32,
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        y_stride: y.stride,
        y_offset: y.offset + part.row_start,
        share,
        expert_start: part.expert_start,
        experts: part.experts,
    };
    let d = Dispatch::new(&MOE_TILE, &params, grouping.grid(row_groups)?)
        .bind("order", grouping.order)
        .bind("tiles", grouping.tiles);
    operands(d, x, part, y)
}

/// The output of an expert that every row uses.
#[derive(Debug, Clone, Copy)]
pub struct SharedExpert<'a> {
    /// One number a row, whose sigmoid is the weight.
    pub gate: BufferSlice<'a>,
    /// `[rows, cols]`.
    pub y: Matrix<'a>,
}

/// `x[r, :] += Σ_j weights[r, j] · y[r · n_used + j, :] (+ σ(gate[r]) · shared[r, :])`, summed by rising `j`. All matrices are read as `vec4`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn moe_combine<'a>(
    routing: Routing<'a>,
    y: Matrix<'a>,
    shared: Option<SharedExpert<'a>>,
    x: Matrix<'a>,
) -> Result<Dispatch<'a>> {
    routing.check()?;
    x.check_vec4("moe_combine: x")?;
    y.check_vec4("moe_combine: y")?;
    let s = routing.shape;
    if let Some(shared) = &shared {
        shared.y.check_vec4("moe_combine: shared")?;
        if shared.y.rows != s.rows || shared.y.cols != x.cols || shared.gate.size < u64::from(s.rows) * 4 {
            let (rows, cols, gate) = (shared.y.rows, shared.y.cols, shared.gate.size);
            bail!(InvalidArgument, "moe_combine: shared {rows} x {cols} with {gate} bytes of gates to {} rows", s.rows);
        }
    }
    if x.rows != s.rows || u64::from(y.rows) != s.entries() || x.cols != y.cols {
        bail!(
            InvalidArgument,
            "moe_combine: y {} x {} to x {} x {}, {} experts a row",
            y.rows,
            y.cols,
            x.rows,
            x.cols,
            s.n_used
        );
    }
    let params = CombineParams {
        rows: s.rows,
        cols4: x.cols / 4,
        n_used: s.n_used,
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        y_stride4: y.stride / 4,
        y_offset4: y.offset / 4,
        shared_stride4: shared.map_or(0, |s| s.y.stride / 4),
        shared_offset4: shared.map_or(0, |s| s.y.offset / 4),
    };
    let threads = u64::from(s.rows) * u64::from(x.cols / 4);
    let d = Dispatch::new(&MOE_COMBINE, &params, linear_grid(threads.div_ceil(THREADS.into())))
        .flag("SHARED", shared.is_some())
        .constant("WG", THREADS)
        .bind("weights", routing.weights)
        .bind("y", y.data)
        .bind("x", x.data);
    Ok(match shared {
        Some(shared) => d.bind("gate", shared.gate).bind("shared_y", shared.y.data),
        None => d,
    })
}
