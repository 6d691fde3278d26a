//! Products with weights by cooperative matrices: many rows, f16 operands, f32 sums.
//!
//! Activations are brought to f16 row by row, each with a power of two that keeps it in range ([`half_rows`]); weights are
//! decoded to f16 on their way to workgroup memory. So a product differs from the one in f32 by the rounding of its operands to
//! 11 bits, about 2^−12 of the sum of its terms' magnitudes at most. Weights in f32 keep the exact path: who stores them so wants them so.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Features, Forms, Gpu, Kernel, Variant, linear_grid, params};
use crate::kernels::constants::{COOP_TILE, DECODE_FROM, FEW_ROUND, FEW_TILE, FEW_TO, TILE_FROM};
use crate::kernels::matmul_decoded::{f16, matmul_decoded};
use crate::kernels::matmul_few::{FewSplits, few_rows, matmul_few};
use crate::kernels::to_halves::row_threads;
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Input, Matrix, matmul, weight_fragment};
use crate::quant::{Format, GPU_BLOCK};

pub(super) static HALF_ROWS: Kernel = Kernel {
    name: "half_rows",
    source: include_str!("../../shaders/half_rows.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: HalfParams::FIELDS,
};

pub(super) static MATMUL_COOP: Kernel = Kernel {
    name: "matmul_coop",
    source: include_str!("../../shaders/matmul_coop.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "ROWS_64"],
    constants: &[],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: not_f32 },
    params: CoopParams::FIELDS,
};

params!(HalfParams { rows: u32, cols4: u32, padded4: u32, x_tiles: u32, stride4: u32, offset4: u32 });
params!(CoopParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    t_rows: u32,
    k_blocks: u32,
    y_stride: u32,
    y_offset: u32,
    share: u32,
    expert_start: u32,
    experts: u32,
});

/// Formats whose weights lose at most their last bits in f16.
pub(super) fn not_f32(v: &Variant) -> bool {
    v.fragment("weight") != Some("F32")
}

/// Rows in f16, with what each was divided by. Made by [`half_rows`].
#[derive(Debug, Clone, Copy)]
pub struct HalfRows<'a> {
    /// `[rows, cols padded to whole blocks of 32]` of f16, or in tiles (`lib/half_rows.wgsl`).
    pub data: BufferSlice<'a>,
    /// One f32 a row.
    pub scales: BufferSlice<'a>,
    /// Rows.
    pub rows: u32,
    /// Columns in use.
    pub cols: u32,
    /// In tiles, as [`matmul_few`] takes them.
    pub tiled: bool,
}

impl<'a> HalfRows<'a> {
    /// Bytes of [`HalfRows::data`] for `rows` rows of `cols` columns, in tiles or not.
    pub fn data_bytes(rows: u64, cols: u32) -> u64 {
        rows.next_multiple_of(FEW_TILE.0.into()) * u64::from(cols.next_multiple_of(FEW_ROUND * GPU_BLOCK as u32)) * 2
    }

    /// Vectors of four that are written of a row.
    pub(super) fn padded4(&self) -> u32 {
        let blocks = Format::gpu_blocks(self.cols as usize) as u32;
        let whole = if self.tiled { blocks.next_multiple_of(FEW_ROUND) } else { blocks };
        whole * GPU_BLOCK as u32 / 4
    }

    /// Tiles of 16 rows: as many as [`matmul_few`] reads; 0 if they are not in tiles.
    pub fn tiles(&self) -> u32 {
        match (self.tiled, few_rows(self.rows)) {
            (false, _) => 0,
            (true, tile) => self.rows.div_ceil(tile) * tile / 16,
        }
    }

    /// Bytes of [`HalfRows::scales`].
    pub fn scales_bytes(rows: u64) -> u64 {
        rows * 4
    }

    /// Binds them for writing.
    pub(super) fn bind_out(self, d: Dispatch<'a>) -> Dispatch<'a> {
        d.bind("h", self.data).bind("scales", self.scales)
    }

    pub(super) fn check(&self, what: &str) -> Result<()> {
        let rows = if self.tiled { self.tiles() * 16 } else { self.rows };
        let (data, scales) = (u64::from(rows) * u64::from(self.padded4()) * 8, Self::scales_bytes(self.rows.into()));
        if self.data.size < data || self.scales.size < scales {
            bail!(
                InvalidArgument,
                "{what}: {} x {} halves in {} bytes, their scales in {}",
                self.rows,
                self.cols,
                self.data.size,
                self.scales.size
            );
        }
        Ok(())
    }
}

/// Brings rows to f16 for [`matmul_coop`]. The width of `x` is a multiple of 4.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn half_rows<'a>(gpu: &Gpu, x: Matrix<'a>, half: HalfRows<'a>) -> Result<Dispatch<'a>> {
    x.check_vec4("half_rows: x")?;
    half.check("half_rows")?;
    if (x.rows, x.cols) != (half.rows, half.cols) {
        bail!(InvalidArgument, "half_rows: x {} x {}, halves {} x {}", x.rows, x.cols, half.rows, half.cols);
    }
    let params = HalfParams {
        rows: x.rows,
        cols4: x.cols / 4,
        padded4: half.padded4(),
        x_tiles: half.tiles(),
        stride4: x.stride / 4,
        offset4: x.offset / 4,
    };
    let d = Dispatch::new(&HALF_ROWS, &params, linear_grid(x.rows.into()));
    Ok(half.bind_out(d.constant("WG", row_threads(gpu, x.cols)).bind("x", x.data)))
}

/// True if [`matmul_coop`] can make products with `w` on a device with these abilities.
pub fn matmul_coop_fits(features: Features, w: &Weight) -> bool {
    features.cooperative_matrix && w.has_halves()
}

/// Rows of activations in a tile of the cooperative product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoopTile {
    /// By the number of rows.
    Auto,
    /// 128.
    Whole,
    /// 64.
    Half,
}

impl CoopTile {
    /// Rows of a tile. Whole tiles read less and so run faster, even where they leave a part of a large device idle.
    fn rows(self, rows: u32) -> u32 {
        let whole = COOP_TILE.0;
        match self {
            Self::Auto if rows > whole / 2 => whole,
            Self::Auto | Self::Half => whole / 2,
            Self::Whole => whole,
        }
    }
}

/// As [`crate::kernels::matmul`], from rows in f16.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or the device or the weight's format is not fit ([`matmul_coop_fits`]).
pub fn matmul_coop<'a>(
    gpu: &Gpu,
    tile: CoopTile,
    x: HalfRows<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    check_product(gpu, x, w, y, false)?;
    w.parts().iter().map(|part| one_part(x, Operand::of(part), y, accumulate, tile)).collect()
}

/// `x` is to be in tiles, or not.
pub(super) fn check_product(gpu: &Gpu, x: HalfRows<'_>, w: &Weight, y: Matrix<'_>, tiled: bool) -> Result<()> {
    x.check("matmul_coop: x")?;
    y.check("matmul_coop: y")?;
    let fits = x.cols == w.k() && y.cols == w.rows() && x.rows == y.rows && x.tiled == tiled;
    if !fits || !matmul_coop_fits(gpu.features(), w) {
        bail!(
            InvalidArgument,
            "matmul_coop by {}: x {} x {}, W {} x {}, y {} x {}",
            w.name(),
            x.rows,
            x.cols,
            w.rows(),
            w.k(),
            y.rows,
            y.cols
        );
    }
    Ok(())
}

/// Rows of a weight as a product reads them.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) rows: u32,
    /// First row, counted in the whole weight.
    pub(super) row_start: u32,
    pub(super) bias: Option<BufferSlice<'a>>,
    /// A part, or rows in f16.
    pub(super) planes: std::result::Result<&'a WeightPart, BufferSlice<'a>>,
}

impl<'a> Operand<'a> {
    pub(super) fn of(part: &'a WeightPart) -> Self {
        let bias = part.bias.as_ref().map(|b| b.whole());
        Self { rows: part.rows, row_start: part.row_start, bias, planes: Ok(part) }
    }
}

pub(super) fn one_part<'a>(
    x: HalfRows<'a>,
    w: Operand<'a>,
    y: Matrix<'a>,
    accumulate: bool,
    tile: CoopTile,
) -> Result<Dispatch<'a>> {
    let (whole, tile_r) = COOP_TILE;
    let row_groups = w.rows.div_ceil(tile_r);
    let tile_t = tile.rows(x.rows);
    let groups = row_groups * x.rows.div_ceil(tile_t);
    let format = match w.planes {
        Ok(part) => part.format,
        Err(_) => f16()?,
    };
    let params = CoopParams {
        groups,
        row_groups,
        n: w.rows,
        t_rows: x.rows,
        k_blocks: Format::gpu_blocks(x.cols as usize) as u32,
        y_stride: y.stride,
        y_offset: y.offset + w.row_start,
        share: 1,
        expert_start: 0,
        experts: 1,
    };
    let mut d = Dispatch::new(&MATMUL_COOP, &params, linear_grid(groups.into()))
        .flag("BIAS", w.bias.is_some())
        .flag("ACCUMULATE", accumulate)
        .flag("ROWS_64", tile_t < whole)
        .slot("weight", weight_fragment(format)?)
        .bind("x", x.data)
        .bind("scales", x.scales)
        .bind("y", y.data);
    if let Some(bias) = w.bias {
        d = d.bind("bias", bias);
    }
    Ok(match w.planes {
        Ok(part) => part.bind(d),
        Err(halves) => d.bind("w_values", halves),
    })
}

/// Room for one product's rows in f16, large enough for any product of a model.
#[derive(Debug, Clone, Copy)]
pub struct HalfRoom<'a> {
    /// [`HalfRows::data`].
    pub data: BufferSlice<'a>,
    /// [`HalfRows::scales`].
    pub scales: BufferSlice<'a>,
    /// Where [`matmul_decoded`] decodes weights, for products of [`DECODE_FROM`] rows or more.
    pub weights: Option<BufferSlice<'a>>,
    /// Where products of few rows leave parts, [`few_parts_bytes`](crate::kernels::few_parts_bytes) of room.
    pub parts: Option<BufferSlice<'a>>,
}

impl<'a> HalfRoom<'a> {
    /// The room as rows of this shape, not in tiles.
    pub fn rows(self, rows: u32, cols: u32) -> HalfRows<'a> {
        HalfRows { data: self.data, scales: self.scales, rows, cols, tiled: false }
    }

    /// The same as [`matmul_fast`] takes them: in tiles for [`matmul_few`].
    pub fn product_rows(self, rows: u32, cols: u32) -> HalfRows<'a> {
        HalfRows { tiled: self.parts.is_some() && rows <= FEW_TO, ..self.rows(rows, cols) }
    }

    /// The same for products whose weights are decoded as they are read.
    #[must_use]
    pub fn without_weights(self) -> Self {
        Self { weights: None, ..self }
    }
}

/// [`crate::kernels::matmul`], by cooperative matrices where there is room for f16 rows, and the device, the weight and the number of
/// rows are fit for them; always where the rows are in f16 already.
///
/// # Errors
/// As [`crate::kernels::matmul`].
pub fn matmul_fast<'a>(
    gpu: &Gpu,
    room: Option<HalfRoom<'a>>,
    x: impl Into<Input<'a>>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    let x = x.into();
    let rows = x.x.rows;
    match room {
        Some(room) if rows >= TILE_FROM && x.norm.is_none() && matmul_coop_fits(gpu.features(), w) => {
            let (half, mut all) = x.in_halves(gpu, room)?;
            all.extend(match (room.weights, room.parts) {
                (_, Some(parts)) if rows <= FEW_TO => matmul_few(gpu, FewSplits::Auto, half, w, y, accumulate, parts)?,
                (Some(weights), _) if rows >= DECODE_FROM => matmul_decoded(gpu, half, w, y, accumulate, weights)?,
                _ => matmul_coop(gpu, CoopTile::Auto, half, w, y, accumulate)?,
            });
            Ok(all)
        }
        _ => matmul(gpu, x, w, y, accumulate),
    }
}

impl<'a> Input<'a> {
    /// The rows in f16, and what brings them there.
    pub(super) fn in_halves(&self, gpu: &Gpu, room: HalfRoom<'a>) -> Result<(HalfRows<'a>, Vec<Dispatch<'a>>)> {
        if let Some(half) = self.half {
            return Ok((half, Vec::new()));
        }
        let half = room.product_rows(self.x.rows, self.x.cols);
        Ok((half, vec![half_rows(gpu, self.x, half)?]))
    }
}
