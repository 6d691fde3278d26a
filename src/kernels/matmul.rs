//! Products with weights: `y = x · Wᵀ`.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Forms, Gpu, Kernel, Variant, linear_grid, params};
use crate::kernels::constants::{THREADS, TILE, TILE_FROM, VEC_ROWS};
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::{Format, GPU_BLOCK, by_name};

pub(super) static MATMUL_VEC: Kernel = Kernel {
    name: "matmul_vec",
    source: include_str!("../../shaders/matmul_vec.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "TAIL"],
    constants: &["WG", "NR", "NT"],
    slots: &["weight"],
    forms: Forms { paths: &[("NT", &[1, 2, 4])], exists: tail_only_without_blocks },
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
    y.check("matmul: y")?;
    if x.cols != w.k() || y.cols != w.rows() || x.rows != y.rows {
        bail!(
            InvalidArgument,
            "matmul by {}: x {} x {}, W {} x {}, y {} x {}",
            w.name(),
            x.rows,
            x.cols,
            w.rows(),
            w.k(),
            y.rows,
            y.cols
        );
    }
    let tiled = match path {
        MatmulPath::Auto => x.rows >= TILE_FROM,
        MatmulPath::Vec => false,
        MatmulPath::Tile => true,
    };
    w.parts().iter().map(|part| one_part(x, part, y, accumulate, tiled)).collect()
}

fn one_part<'a>(
    x: Matrix<'a>,
    part: &'a WeightPart,
    y: Matrix<'a>,
    accumulate: bool,
    tiled: bool,
) -> Result<Dispatch<'a>> {
    let nt = match x.rows {
        1 => 1,
        2 => 2,
        _ => 4,
    };
    let (tile_t, tile_r) = if tiled { TILE } else { (nt, VEC_ROWS) };
    let row_groups = part.rows.div_ceil(tile_r);
    let groups = row_groups * x.rows.div_ceil(tile_t);
    let params = MatmulParams {
        groups,
        row_groups,
        n: part.rows,
        t_rows: x.rows,
        k4: x.cols / 4,
        k_blocks: Format::gpu_blocks(x.cols as usize) as u32,
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        y_stride: y.stride,
        y_offset: y.offset + part.row_start,
    };
    let kernel = if tiled { &MATMUL_TILE } else { &MATMUL_VEC };
    let mut d = Dispatch::new(kernel, &params, linear_grid(groups.into()))
        .flag("BIAS", part.bias.is_some())
        .flag("ACCUMULATE", accumulate)
        .flag("TAIL", !(x.cols as usize).is_multiple_of(GPU_BLOCK))
        .slot("weight", weight_fragment(part.format)?)
        .bind("x", x.data)
        .bind("y", y.data);
    if !tiled {
        d = d.constant("WG", THREADS).constant("NR", VEC_ROWS).constant("NT", nt);
    }
    if let Some(bias) = &part.bias {
        d = d.bind("bias", bias);
    }
    Ok(part.bind(d))
}
