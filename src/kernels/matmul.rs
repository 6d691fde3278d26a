//! Products with weights: `y = x · Wᵀ`.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Forms, Gpu, Kernel, Variant, linear_grid, params};
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::constants::{THREADS, TILE, TILE_FROM, VEC_ROWS, VEC_ROWS_BYTES};
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::{Format, GPU_BLOCK, by_name};

pub(super) static MATMUL_VEC: Kernel = Kernel {
    name: "matmul_vec",
    source: include_str!("../../shaders/matmul_vec.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "TAIL", "BYTES"],
    constants: &["WG", "NR", "NT"],
    slots: &["weight"],
    forms: Forms { paths: &[("NT", &[1, 2, 4])], exists: tail_or_bytes },
    params: MatmulParams::FIELDS,
};

pub(super) static MATMUL_TILE: Kernel = Kernel {
    name: "matmul_tile",
    source: include_str!("../../shaders/matmul_tile.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "TAIL"],
    constants: &[],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: tail_only_without_blocks },
    params: MatmulParams::FIELDS,
};

/// Rows of a format with blocks are whole blocks, so they have no tail.
pub(super) fn tail_only_without_blocks(v: &Variant) -> bool {
    let blocks = |name| by_name(name).is_some_and(|f| f.block_len.is_multiple_of(GPU_BLOCK));
    !(v.has("TAIL") && v.fragment("weight").is_some_and(blocks))
}

/// As [`tail_only_without_blocks`], and products with bytes are of whole blocks.
pub(super) fn tail_or_bytes(v: &Variant) -> bool {
    let bytes = |name| by_name(name).is_some_and(|f| f.has_bytes());
    tail_only_without_blocks(v) && (!v.has("BYTES") || v.fragment("weight").is_some_and(bytes))
}

params!(MatmulParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    t_rows: u32,
    k4: u32,
    k_blocks: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride: u32,
    y_offset: u32,
});

/// Which kernel makes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulPath {
    /// By the number of rows of `x`.
    Auto,
    /// Matrix-vector, up to four rows of `x` at a time.
    Vec,
    /// Tiles of 32 × 64.
    Tile,
}

/// `y[t, r] = Σ_k x[t, k] · W[r, k] (+ bias[r])`, added to `y` if `accumulate`; one dispatch for each part of `w`, which
/// writes its columns of `y`. The width of `x` is a multiple of 4.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn matmul<'a>(
    gpu: &Gpu,
    x: Matrix<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    matmul_with(gpu, MatmulPath::Auto, x, w, y, accumulate)
}

/// [`matmul`] by a given path (tests force each).
///
/// # Errors
/// As [`matmul`].
pub fn matmul_with<'a>(
    _gpu: &Gpu,
    path: MatmulPath,
    x: Matrix<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    x.check_vec4("matmul: x")?;
    check_shapes(w, [x.rows, x.cols], y)?;
    let tiled = match path {
        MatmulPath::Auto => x.rows >= TILE_FROM,
        MatmulPath::Vec => false,
        MatmulPath::Tile => true,
    };
    w.parts().iter().map(|part| one_part(x, part, y, accumulate, tiled)).collect()
}

/// [`matmul`] with `x` as bytes, matrix-vector for any number of rows: `y[t, r] = Σ over blocks of scales · Σ bytes · quants`. What differs from
/// [`matmul`] is the rounding of `x`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or `w` has rows without bytes ([`Weight::has_bytes`]).
pub fn matmul_bytes<'a>(x: ByteRows<'a>, w: &'a Weight, y: Matrix<'a>, accumulate: bool) -> Result<Vec<Dispatch<'a>>> {
    x.check("matmul: x", x.rows, x.cols)?;
    check_shapes(w, [x.rows, x.cols], y)?;
    if !w.has_bytes() {
        bail!(InvalidArgument, "matmul by {}: not all of its rows are quants", w.name());
    }
    let product = |part: &'a WeightPart| {
        let nt = columns_together(x.rows);
        let params = params_of(part, [nt, VEC_ROWS_BYTES], [x.rows, x.cols], None, y);
        let d = Dispatch::new(&MATMUL_VEC, &params, linear_grid(params.groups.into()))
            .flag("BYTES", true)
            .constant("WG", THREADS)
            .constant("NR", VEC_ROWS_BYTES)
            .constant("NT", nt);
        operands(d, part, y, accumulate, |d| d.bind("x", x.quants).bind("x_scales", x.scales))
    };
    w.parts().iter().map(product).collect()
}

fn check_shapes(w: &Weight, [rows, cols]: [u32; 2], y: Matrix<'_>) -> Result<()> {
    y.check("matmul: y")?;
    if cols != w.k() || y.cols != w.rows() || rows != y.rows {
        let (n, k) = (w.rows(), w.k());
        bail!(InvalidArgument, "matmul by {}: x {rows} x {cols}, W {n} x {k}, y {} x {}", w.name(), y.rows, y.cols);
    }
    Ok(())
}

/// Rows of `x` that a workgroup of the matrix-vector product takes.
fn columns_together(rows: u32) -> u32 {
    match rows {
        1 => 1,
        2 => 2,
        _ => 4,
    }
}

fn params_of(
    part: &WeightPart,
    [tile_t, tile_r]: [u32; 2],
    [rows, cols]: [u32; 2],
    x: Option<Matrix<'_>>,
    y: Matrix<'_>,
) -> MatmulParams {
    let row_groups = part.rows.div_ceil(tile_r);
    MatmulParams {
        groups: row_groups * rows.div_ceil(tile_t),
        row_groups,
        n: part.rows,
        t_rows: rows,
        k4: cols / 4,
        k_blocks: Format::gpu_blocks(cols as usize) as u32,
        x_stride4: x.map_or(0, |x| x.stride / 4),
        x_offset4: x.map_or(0, |x| x.offset / 4),
        y_stride: y.stride,
        y_offset: y.offset + part.row_start,
    }
}

/// What the products bind, in the order of the matrix-vector shader; `x` binds its own.
fn operands<'a>(
    d: Dispatch<'a>,
    part: &'a WeightPart,
    y: Matrix<'a>,
    accumulate: bool,
    x: impl Fn(Dispatch<'a>) -> Dispatch<'a>,
) -> Result<Dispatch<'a>> {
    let mut d = d
        .flag("BIAS", part.bias.is_some())
        .flag("ACCUMULATE", accumulate)
        .slot("weight", weight_fragment(part.format)?)
        .bind("y", y.data);
    if let Some(bias) = &part.bias {
        d = d.bind("bias", bias);
    }
    Ok(part.bind(x(d)))
}

fn one_part<'a>(
    x: Matrix<'a>,
    part: &'a WeightPart,
    y: Matrix<'a>,
    accumulate: bool,
    tiled: bool,
) -> Result<Dispatch<'a>> {
    let nt = columns_together(x.rows);
    let tile = if tiled { TILE.into() } else { [nt, VEC_ROWS] };
    let params = params_of(part, tile, [x.rows, x.cols], Some(x), y);
    let kernel = if tiled { &MATMUL_TILE } else { &MATMUL_VEC };
    let mut d = Dispatch::new(kernel, &params, linear_grid(params.groups.into()))
        .flag("TAIL", !(x.cols as usize).is_multiple_of(GPU_BLOCK));
    if !tiled {
        d = d.constant("WG", THREADS).constant("NR", VEC_ROWS).constant("NT", nt);
        return operands(d, part, y, accumulate, |d| d.bind("x", x.data));
    }
    let mut d = d
        .flag("BIAS", part.bias.is_some())
        .flag("ACCUMULATE", accumulate)
        .slot("weight", weight_fragment(part.format)?)
        .bind("x", x.data)
        .bind("y", y.data);
    if let Some(bias) = &part.bias {
        d = d.bind("bias", bias);
    }
    Ok(part.bind(d))
}
