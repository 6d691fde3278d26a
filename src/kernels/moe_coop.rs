//! Products with experts by cooperative matrices: entries grouped by expert into tiles of [`coop_entries`], whose rows are in f16.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Features, Forms, Kernel};
use crate::kernels::constants::COOP_TILE;
use crate::kernels::matmul_coop::{CoopParams, HalfRows, not_f32};
use crate::kernels::moe::{Grouping, MoeShape, Routing, check_shapes};
use crate::kernels::weight::{ExpertWeight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::Format;

pub(super) static MOE_COOP: Kernel = Kernel {
    name: "moe_coop",
    source: include_str!("../../shaders/moe_coop.wgsl"),
    flags: &["BIAS", "ROWS_64"],
    constants: &[],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: not_f32 },
    params: CoopParams::FIELDS,
};

/// Entries in a tile: as many as experts have on average, so that few tiles are left half empty.
pub fn coop_entries(shape: &MoeShape) -> u32 {
    let whole = u64::from(COOP_TILE.0);
    if 2 * shape.entries() >= whole * u64::from(shape.n_expert) { COOP_TILE.0 } else { COOP_TILE.0 / 2 }
}

/// Tiles of weight rows that [`moe_matmul_coop`] needs for `w` at most.
pub fn coop_columns(w: &ExpertWeight) -> u32 {
    w.parts().iter().map(|p| p.rows.div_ceil(COOP_TILE.1)).max().unwrap_or(1)
}

/// True if [`moe_matmul_coop`] can make products with `w` on a device with these abilities.
pub fn moe_coop_fits(features: Features, w: &ExpertWeight) -> bool {
    features.cooperative_matrix && w.parts().iter().all(|p| p.format.name != "F32")
}

/// As [`crate::kernels::moe_matmul`], from rows in f16 and with tiles of [`coop_entries`].
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, no grid of the grouping is wide enough, its tiles are not those of this product, or
/// the device or the weight's format is not fit ([`moe_coop_fits`]).
pub fn moe_matmul_coop<'a>(
    features: Features,
    x: HalfRows<'a>,
    w: &'a ExpertWeight,
    y: Matrix<'a>,
    routing: Routing<'a>,
    grouping: Grouping<'a>,
) -> Result<Vec<Dispatch<'a>>> {
    x.check("moe_matmul_coop: x")?;
    let share = check_shapes([x.rows, x.cols], w, y, routing)?;
    if x.tiled || !moe_coop_fits(features, w) || ![COOP_TILE.0, COOP_TILE.0 / 2].contains(&grouping.tile) {
        bail!(InvalidArgument, "moe_matmul_coop by {}: {x:?}, tiles of {} entries, or no f16", w.name(), grouping.tile);
    }
    w.parts().iter().map(|part| one_part(x, part, y, share, grouping)).collect()
}

fn one_part<'a>(
    x: HalfRows<'a>,
    part: &'a WeightPart,
    y: Matrix<'a>,
    share: u32,
    grouping: Grouping<'a>,
) -> Result<Dispatch<'a>> {
    let row_groups = part.rows.div_ceil(COOP_TILE.1);
    let params = CoopParams {
        groups: 0,
        row_groups,
        n: part.rows,
        t_rows: x.rows,
        k_blocks: Format::gpu_blocks(x.cols as usize) as u32,
        y_stride: y.stride,
        y_offset: y.offset + part.row_start,
        share,
        expert_start: part.expert_start,
        experts: part.experts,
    };
    let mut d = Dispatch::new(&MOE_COOP, &params, grouping.grid(row_groups)?)
        .flag("BIAS", part.bias.is_some())
        .flag("ROWS_64", grouping.tile < COOP_TILE.0)
        .slot("weight", weight_fragment(part.format)?)
        .bind("order", grouping.order)
        .bind("tiles", grouping.tiles)
        .bind("x", x.data)
        .bind("scales", x.scales)
        .bind("y", y.data);
    if let Some(bias) = &part.bias {
        d = d.bind("bias", bias);
    }
    Ok(part.bind(d))
}
