//! Products of few rows that take the next operation along: gate and up with their activation, and the last product of a block with what the
//! next block reads. A dispatch costs a device some microseconds before its first byte arrives, as much as reading some megabytes.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Kernel, Variant, linear_grid, params};
use crate::kernels::activate::Activation;
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::matmul::{Input, NT, ProductParams, StageRows, Team, may_be_stage, takes_rows};
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::GPU_BLOCK;

pub(super) static MATMUL_GLU: Kernel = Kernel {
    name: "matmul_glu",
    source: include_str!("../../shaders/matmul_glu.wgsl"),
    flags: &["GELU", "TAIL", "BYTES", "NORM", "SCALED", "OUT_BYTES", "STAGED"],
    constants: &["WG", "TEAM", "NT", "REDUCE", "K_BLOCKS", "SPREAD", "SPLIT"],
    slots: &["weight"],
    forms: Forms { paths: &[("NT", NT)], exists: glu_exists },
    params: ProductParams::FIELDS,
};

pub(super) static MATMUL_NEXT: Kernel = Kernel {
    name: "matmul_next",
    source: include_str!("../../shaders/matmul_next.wgsl"),
    flags: &["BIAS", "TAIL", "BYTES", "OUT_BYTES", "OUT_NUMBERS", "QUAD", "STAGED"],
    constants: &["WG", "TEAM", "NT", "REDUCE", "K_BLOCKS", "SPREAD", "SPLIT"],
    slots: &["weight"],
    forms: Forms { paths: &[("NT", NT)], exists: next_exists },
    params: NextParams::FIELDS,
};

params!(NextParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    t_rows: u32,
    k4: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride: u32,
    y_offset: u32,
    out_column: u32,
    out_blocks: u32,
});

/// Rows that a workgroup makes where its results are written as bytes: a block.
const BLOCK: u32 = GPU_BLOCK as u32;

/// The tail is tried with plain results only: bytes do not change how it is read.
fn glu_exists(v: &Variant) -> bool {
    takes_rows(v) && !(v.has("TAIL") && v.has("OUT_BYTES"))
}

/// Rows are left in some form. Both of them, and the tail, do not change how others are made.
fn next_exists(v: &Variant) -> bool {
    takes_rows(v) && (v.has("OUT_BYTES") || v.has("OUT_NUMBERS"))
}

/// True if [`matmul_glu`] can make this product: gate over up in one part, without bias, and an activation that it knows.
pub fn matmul_glu_fits(which: Activation, w: &Weight) -> bool {
    let known = matches!(which, Activation::Silu | Activation::GeluTanh);
    known && w.rows().is_multiple_of(2) && matches!(w.parts(), [part] if part.bias.is_none())
}

/// `y[t, r] = act(Σ_k x[t, k] · W[r, k]) · Σ_k x[t, k] · W[n + r, k]` for the `n` columns of `y`, half of the rows of `w`; with `out`, `y` is
/// written there as well.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or `w` or the activation is not fit ([`matmul_glu_fits`]).
pub fn matmul_glu<'a>(
    gpu: &Gpu,
    which: Activation,
    x: Input<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    out: Option<ByteRows<'a>>,
) -> Result<Dispatch<'a>> {
    let [rows, cols] = x.check("matmul_glu: x", w)?;
    y.check("matmul_glu: y")?;
    let (true, [part]) = (matmul_glu_fits(which, w), w.parts()) else {
        bail!(InvalidArgument, "matmul_glu by {}: {which:?} of {} parts", w.name(), w.parts().len());
    };
    let n = part.rows / 2;
    if cols != w.k() || rows != y.rows || n != y.cols || y.offset != 0 {
        let k = w.k();
        bail!(
            InvalidArgument,
            "matmul_glu by {}: x {rows} x {cols}, W 2 * {n} x {k}, y {} x {}",
            w.name(),
            y.rows,
            y.cols
        );
    }
    let values = 2 + u32::from(x.norm.is_some());
    // A stage sends whole blocks.
    let sent = n.is_multiple_of(BLOCK) && x.norm.is_some_and(|n| n.scaled);
    let team = match out {
        _ if may_be_stage(gpu, x, w, sent) => Team::of_stage(gpu, n, w.k(), rows, values, StageRows::Blocks),
        Some(_) => Team::of_block(gpu, n, w.k(), rows, values, false),
        None => Team::of(gpu, n, w.k(), rows, values),
    }
    .staged(gpu, x, w, true, StageRows::Block);
    let params = ProductParams::of(x, w, y, team.tile(), n, 0);
    let d = Dispatch::new(&MATMUL_GLU, &params, linear_grid(params.groups.into()))
        .flag("GELU", which == Activation::GeluTanh)
        .slot("weight", weight_fragment(part.format)?)
        .bind("y", y.data);
    let d = part.bind(x.bind(w, team.constants(d, w.k())));
    match out {
        Some(out) => {
            out.check("matmul_glu: bytes", rows, n)?;
            Ok(d.flag("OUT_BYTES", true).bind("byte_quants", out.quants).bind("byte_scales", out.scales))
        }
        None => Ok(d),
    }
}

/// What the last product of a block leaves for the next one: the rows times a norm's weights as bytes, as numbers or as both, and squares.
#[derive(Debug, Clone, Copy)]
pub struct Next<'a> {
    /// The next normalisation's weights, one for each column.
    pub w: BufferSlice<'a>,
    /// The rows times these weights, as bytes.
    pub bytes: Option<ByteRows<'a>>,
    /// And as f32, dense, to 16 bits of mantissa.
    pub numbers: Option<BufferSlice<'a>>,
    /// `[rows, cols / 32]`: sums of squares of the rows; with numbers `[2, rows, cols / 32]`, which for each block add up to that.
    pub sums: BufferSlice<'a>,
}

impl<'a> Next<'a> {
    /// Binds it for writing, in the order of `lib/next_rows.wgsl`.
    pub(super) fn bind(self, d: Dispatch<'a>) -> Dispatch<'a> {
        let d = d.bind("next_w", self.w).bind("block_sums", self.sums);
        let d = match self.bytes {
            Some(bytes) => d.bind("byte_quants", bytes.quants).bind("byte_scales", bytes.scales),
            None => d,
        };
        match self.numbers {
            Some(data) => d.bind("number_rows", data),
            None => d,
        }
    }

    /// Whether there is room for what `rows` rows of `cols` columns leave.
    pub(super) fn fits(&self, rows: u32, cols: u32) -> bool {
        let numbers = u64::from(rows) * u64::from(cols);
        let some = self.bytes.is_some() || self.numbers.is_some();
        let room = self.bytes.is_none_or(|bytes| bytes.check("", rows, cols).is_ok())
            && self.numbers.is_none_or(|data| data.size >= numbers * 4);
        let halves = if self.numbers.is_some() { 2 } else { 1 };
        let sums = self.sums.size >= halves * numbers / u64::from(BLOCK) * 4;
        some && room && cols.is_multiple_of(BLOCK) && sums && self.w.size >= u64::from(cols) * 4
    }
}

/// True if [`matmul_next`] can make products with `w`: its parts begin and end at whole blocks.
pub fn matmul_next_fits(w: &Weight) -> bool {
    w.parts().iter().all(|p| p.row_start.is_multiple_of(BLOCK) && p.rows.is_multiple_of(BLOCK))
}

/// `y[t, r] += Σ_k x[t, k] · W[r, k] (+ bias[r])`, and from `y` what `next` says; one dispatch for each part of `w`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, `x` is still to be normalised or `w` is not fit ([`matmul_next_fits`]).
pub fn matmul_next<'a>(
    gpu: &Gpu,
    x: Input<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    next: Next<'a>,
) -> Result<Vec<Dispatch<'a>>> {
    let [rows, cols] = x.check("matmul_next: x", w)?;
    y.check("matmul_next: y")?;
    let (shapes, room) = (cols == w.k() && rows == y.rows && w.rows() == y.cols, next.fits(rows, y.cols));
    if !shapes || x.norm.is_some() || !room || !matmul_next_fits(w) {
        let (n, k) = (w.rows(), w.k());
        bail!(
            InvalidArgument,
            "matmul_next by {}: x {rows} x {cols}, W {n} x {k}, y {} x {}, {next:?}",
            w.name(),
            y.rows,
            y.cols
        );
    }
    // The team does not depend on how a weight is split.
    let stage = may_be_stage(gpu, x, w, true);
    let team = Team::of_block(gpu, w.rows(), w.k(), rows, 1, stage);
    let team = team.stacked(gpu, x, w, stage && next.bytes.is_none()).staged(gpu, x, w, false, StageRows::Block);
    let dispatch = |part: &'a WeightPart| {
        let p = ProductParams::of(x, w, y, team.tile(), part.rows, part.row_start);
        let params = NextParams {
            groups: p.groups,
            row_groups: p.row_groups,
            n: p.n,
            t_rows: p.t_rows,
            k4: p.k4,
            x_stride4: p.x_stride4,
            x_offset4: p.x_offset4,
            y_stride: p.y_stride,
            y_offset: p.y_offset,
            out_column: part.row_start,
            out_blocks: y.cols / BLOCK,
        };
        let mut d = Dispatch::new(&MATMUL_NEXT, &params, linear_grid(params.groups.into()))
            .flag("BIAS", part.bias.is_some())
            .slot("weight", weight_fragment(part.format)?)
            .flag("OUT_BYTES", next.bytes.is_some())
            .flag("OUT_NUMBERS", next.numbers.is_some())
            .bind("y", y.data);
        if let Some(bias) = &part.bias {
            d = d.bind("bias", bias);
        }
        Ok(next.bind(part.bind(x.bind(w, team.constants(d, w.k())))))
    };
    w.parts().iter().map(dispatch).collect()
}
