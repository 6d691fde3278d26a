//! Experts of few rows in two dispatches: gate and up with the activation, and the last product with the weighted sum. Rows are bytes throughout.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Forms, Gpu, Kernel, Variant, linear_grid, params};
use crate::kernels::activate::Activation;
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::matmul::{Input, Team};
use crate::kernels::matmul_fused::Next;
use crate::kernels::moe::{Routing, SharedExpert};
use crate::kernels::weight::{ExpertWeight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::{GPU_BLOCK, by_name};

pub(super) static MOE_GLU: Kernel = Kernel {
    name: "moe_glu",
    source: include_str!("../../shaders/moe_glu.wgsl"),
    flags: &["GELU", "NORM"],
    constants: &["WG", "TEAM", "REDUCE", "K_BLOCKS"],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: of_bytes },
    params: GluParams::FIELDS,
};

pub(super) static MOE_DOWN: Kernel = Kernel {
    name: "moe_down",
    source: include_str!("../../shaders/moe_down.wgsl"),
    flags: &["SHARED", "NEXT"],
    constants: &["WG", "TEAM", "REDUCE", "K_BLOCKS", "N_USED"],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: of_bytes },
    params: DownParams::FIELDS,
};

params!(GluParams { groups: u32, row_groups: u32, n: u32, k4: u32, share: u32, eps: f32 });
params!(DownParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    y_stride: u32,
    y_offset: u32,
    shared_stride: u32,
    shared_offset: u32,
});

/// Rows that a workgroup makes: a block of bytes.
const BLOCK: u32 = GPU_BLOCK as u32;

fn of_bytes(v: &Variant) -> bool {
    v.fragment("weight").and_then(by_name).is_some_and(|f| f.has_bytes())
}

/// The weight's only part, if all of it are plain quants.
fn single(w: &ExpertWeight) -> Option<&WeightPart> {
    match w.parts() {
        [part] if part.bias.is_none() && w.has_bytes() => Some(part),
        _ => None,
    }
}

/// True if [`moe_glu`] and [`moe_down`] can make products with these experts: each weight in one part of quants without bias, whole blocks, and an
/// activation that they know.
pub fn moe_few_fits(which: Activation, gate_up: &ExpertWeight, down: &ExpertWeight) -> bool {
    let known = matches!(which, Activation::Silu | Activation::GeluTanh);
    let blocks = gate_up.rows().is_multiple_of(2 * BLOCK) && down.rows().is_multiple_of(BLOCK);
    known && blocks && single(gate_up).is_some() && single(down).is_some()
}

/// Workgroups of one row or entry each that make blocks.
fn grid(what: &str, rows: u64, row_groups: u32) -> Result<u32> {
    match u32::try_from(rows * u64::from(row_groups)) {
        Ok(groups) => Ok(groups),
        Err(_) => bail!(InvalidArgument, "{what}: {rows} rows of {row_groups} blocks"),
    }
}

/// `act(gate) · up` of every entry's expert, into the entry's row of `out`. `x` has one row for each row of the routing, as bytes.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, `x` is no bytes, or `w` or the activation is not fit ([`moe_few_fits`]).
pub fn moe_glu<'a>(
    gpu: &Gpu,
    which: Activation,
    x: Input<'a>,
    w: &'a ExpertWeight,
    routing: Routing<'a>,
    out: ByteRows<'a>,
) -> Result<Dispatch<'a>> {
    routing.check()?;
    let s = routing.shape;
    let (Some(part), Some(bytes)) = (single(w), x.bytes) else {
        bail!(InvalidArgument, "moe_glu by {}: x is no bytes, or the weight no single part of quants", w.name());
    };
    bytes.check("moe_glu: x", s.rows, w.k())?;
    let n = w.rows() / 2;
    let entries = s.entries();
    out.check("moe_glu: bytes", entries as u32, n)?;
    let sums = x.norm.map(|norm| norm.sums);
    let no_sums = sums.is_some_and(|s| s.is_none_or(|b| b.size < u64::from(bytes.rows) * u64::from(w.k() / BLOCK) * 4));
    let known = matches!(which, Activation::Silu | Activation::GeluTanh);
    if !known || !w.rows().is_multiple_of(2 * BLOCK) || w.n_expert() != s.n_expert || no_sums {
        bail!(InvalidArgument, "moe_glu by {}: {which:?}, 2 * {n} rows of {} experts, {s:?}", w.name(), w.n_expert());
    }
    // The team depends on the model alone, not on how many rows come together.
    let team = Team::of_block(gpu, n * s.n_used, w.k(), 1, 2 + u32::from(sums.is_some()), gpu.features().chains);
    let row_groups = n / BLOCK;
    let params = GluParams {
        groups: grid("moe_glu", entries, row_groups)?,
        row_groups,
        n,
        k4: w.k() / 4,
        share: s.n_used,
        eps: x.norm.map_or(0.0, |n| n.eps),
    };
    let d = Dispatch::new(&MOE_GLU, &params, linear_grid(params.groups.into()))
        .flag("GELU", which == Activation::GeluTanh)
        .flag("NORM", sums.is_some())
        .slot("weight", weight_fragment(part.format)?)
        .bind("ids", routing.ids)
        .bind("x", bytes.quants)
        .bind("x_scales", bytes.scales);
    let d = match sums.flatten() {
        Some(sums) => d.bind("row_sums", sums),
        None => d,
    };
    Ok(part.bind(team.threads(d, w.k())).bind("byte_quants", out.quants).bind("byte_scales", out.scales))
}

/// `y[t, :] += Σ_j weight_tj · (x[entry tj] · W[expert tj]) (+ σ(gate_t) · shared_t)`, and from `y` what `next` says. `x` has one row for each entry.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or `w` is not fit ([`moe_few_fits`]).
pub fn moe_down<'a>(
    gpu: &Gpu,
    x: ByteRows<'a>,
    w: &'a ExpertWeight,
    routing: Routing<'a>,
    shared: Option<SharedExpert<'a>>,
    y: Matrix<'a>,
    next: Option<Next<'a>>,
) -> Result<Dispatch<'a>> {
    routing.check()?;
    y.check("moe_down: y")?;
    let (s, n) = (routing.shape, w.rows());
    let Some(part) = single(w) else {
        bail!(InvalidArgument, "moe_down by {}: no single part of quants", w.name());
    };
    x.check("moe_down: x", s.entries() as u32, w.k())?;
    let shared_fits = shared.is_none_or(|v| {
        v.y.check("moe_down: shared").is_ok()
            && [v.y.rows, v.y.cols] == [s.rows, n]
            && v.gate.size >= u64::from(s.rows) * 4
    });
    let room = next.is_none_or(|next| next.fits(s.rows, n) && next.bytes.is_some() && next.numbers.is_none());
    if !n.is_multiple_of(BLOCK)
        || w.n_expert() != s.n_expert
        || [y.rows, y.cols] != [s.rows, n]
        || !shared_fits
        || !room
    {
        bail!(
            InvalidArgument,
            "moe_down by {}: {n} rows of {} experts, y {} x {}, {s:?}",
            w.name(),
            w.n_expert(),
            y.rows,
            y.cols
        );
    }
    let team = Team::of_block(gpu, n, w.k() * s.n_used, 1, 1, gpu.features().chains);
    let row_groups = n / BLOCK;
    let params = DownParams {
        groups: grid("moe_down", s.rows.into(), row_groups)?,
        row_groups,
        n,
        y_stride: y.stride,
        y_offset: y.offset,
        shared_stride: shared.map_or(0, |s| s.y.stride),
        shared_offset: shared.map_or(0, |s| s.y.offset),
    };
    let mut d = Dispatch::new(&MOE_DOWN, &params, linear_grid(params.groups.into()))
        .flag("SHARED", shared.is_some())
        .flag("NEXT", next.is_some())
        .slot("weight", weight_fragment(part.format)?)
        .bind("ids", routing.ids)
        .bind("weights", routing.weights)
        .bind("y", y.data);
    if let Some(shared) = shared {
        d = d.bind("gate", shared.gate).bind("shared_y", shared.y.data);
    }
    d = part.bind(team.threads(d.constant("N_USED", s.n_used), w.k()).bind("x", x.quants).bind("x_scales", x.scales));
    Ok(match next {
        Some(next) => next.bind(d),
        None => d,
    })
}
