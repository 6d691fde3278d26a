//! Mixtures of experts, recorded: route, group where there are many rows, two products with the chosen experts, weighted sum.
//!
//! Nothing here depends on what the router chooses: the device keeps that to itself, so a decode plan replays as it is.

use crate::error::{Result, bail};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder, Scope};
use crate::kernels::constants::TILE;
use crate::kernels::constants::{GROUP_FROM, TILE_FROM};
use crate::kernels::{
    Activation, ByteRows, ExpertWeight, Grouping, HalfRoom, Input, Matrix, MoeShape, Routing, SharedExpert,
    coop_columns, coop_entries, half_rows, matmul, moe_combine, moe_coop_fits, moe_down, moe_few_fits, moe_glu,
    moe_group, moe_matmul, moe_matmul_bytes, moe_matmul_coop, moe_route, tile_columns,
};
use crate::model::forward::{Batch, Forward};
use crate::model::norms::{After, Left};
use crate::model::scratch::buffer;
use crate::model::spec::{ExpertsSpec, FeedForwardSpec, LayerSpec, ModelSpec};
use crate::model::weights::{ExpertsWeights, SharedWeights};

/// Buffers of mixtures, large enough for every layer.
#[derive(Debug)]
pub(crate) struct MoeScratch {
    /// Router logits `[rows, n_expert]`.
    logits: Buffer,
    /// Experts of each row, and their weights: `[rows, n_used]`.
    ids: Buffer,
    weights: Buffer,
    /// Rows of each expert, and tiles of products.
    groups: Buffer,
    order: Buffer,
    tiles: Buffer,
    grids: Buffer,
    /// Outputs of the experts `[rows, n_used, n_embd]`.
    down: Buffer,
    /// Of an expert that every row uses with a weight: its gate `[rows]`, its output `[rows, n_embd]`.
    shared: Option<(Buffer, Buffer)>,
}

impl MoeScratch {
    /// Plans the buffers for `rows` rows of a model with experts; `down` takes the outputs of the experts.
    pub(crate) fn new(gpu: &Gpu, spec: &ModelSpec, rows: u32, down: Buffer, scope: &Scope) -> Result<Self> {
        let shapes: Vec<MoeShape> = spec.experts().map(|e| shape(&e, rows)).collect();
        let largest = |bytes: fn(&MoeShape) -> u64| shapes.iter().map(bytes).max().unwrap_or(4);
        let bytes = |name: &str, size: u64| buffer(gpu, name, size, rows, scope);
        Ok(Self {
            logits: bytes("moe.logits", largest(|s| u64::from(s.rows) * u64::from(s.n_expert) * 4))?,
            ids: bytes("moe.ids", largest(MoeShape::entries_bytes))?,
            weights: bytes("moe.weights", largest(MoeShape::entries_bytes))?,
            groups: bytes("moe.groups", largest(MoeShape::groups_bytes))?,
            order: bytes("moe.order", largest(MoeShape::entries_bytes))?,
            tiles: bytes("moe.tiles", largest(MoeShape::tiles_bytes))?,
            grids: gpu.indirect("moe.grids", MoeShape::GRIDS_BYTES, scope)?,
            down,
            shared: match spec.experts().any(|e| e.shared_n_ff.is_some() && e.shared_gated) {
                true => Some((
                    bytes("moe.shared_gate", u64::from(rows) * 4)?,
                    bytes("moe.shared", u64::from(rows) * u64::from(spec.n_embd) * 4)?,
                )),
                false => None,
            },
        })
    }
}

fn shape(e: &ExpertsSpec, rows: u32) -> MoeShape {
    MoeShape { rows, n_expert: e.n_expert, n_used: e.n_used }
}

/// Rows from which on a layer's experts are grouped.
pub(crate) fn grouped_from(e: &ExpertsSpec) -> u32 {
    (GROUP_FROM * e.n_expert).div_ceil(e.n_used)
}

/// Products with the chosen experts: with bytes where both sides have them and rows are not grouped, by cooperative matrices where there
/// is `room` for f16 rows.
fn moe_product<'a>(
    gpu: &Gpu,
    room: Option<HalfRoom<'a>>,
    x: Input<'a>,
    w: &'a ExpertWeight,
    y: Matrix<'a>,
    routing: Routing<'a>,
    grouping: Option<Grouping<'a>>,
) -> Result<Vec<Dispatch<'a>>> {
    match (x.bytes.filter(|_| grouping.is_none() && w.has_bytes()), grouping, room) {
        (Some(bytes), ..) => moe_matmul_bytes(bytes, w, y, routing),
        (None, Some(grouping), Some(room)) => {
            let half = room.rows(x.x.rows, x.x.cols);
            let mut all = vec![half_rows(gpu, x.x, half)?];
            all.extend(moe_matmul_coop(gpu.features(), half, w, y, routing, grouping)?);
            Ok(all)
        }
        _ => moe_matmul(x.x, w, y, routing, grouping),
    }
}

impl<'s> Forward<'s> {
    /// Where the experts of `rows` rows leave their inner values as bytes, if two dispatches make all of them.
    pub(super) fn few_experts(&self, spec: &FeedForwardSpec, w: &ExpertsWeights, rows: u32) -> Option<ByteRows<'s>> {
        let shape = shape(&spec.experts?, rows);
        let wanted = self.lens.is_none() && !shape.grouped() && moe_few_fits(spec.activation, &w.gate_up, &w.down);
        let inputs = self.bytes(&self.scratch.normed_bytes, rows, self.spec.n_embd, wanted);
        inputs.and_then(|_| self.scratch.inner_bytes.rows(rows * shape.n_used, spec.n_ff))
    }

    /// `x += Σ weight · expert(normed)` over each row's experts. What it left to what comes `after`.
    #[allow(clippy::too_many_arguments, reason = "a block's place, its weights and its neighbours")]
    pub(super) fn experts(
        &self,
        r: &mut Recorder<'_>,
        layer: usize,
        place: &LayerSpec,
        w: &ExpertsWeights,
        normed: Input<'_>,
        x: Matrix<'_>,
        batch: Batch,
        after: After<'_>,
    ) -> Result<Left> {
        let spec = &place.feed_forward;
        let (Some(s), Some(experts)) = (&self.scratch.moe, spec.experts) else {
            bail!(Internal, "a mixture of experts without its buffers")
        };
        let (shape, n_ff) = (shape(&experts, x.rows), spec.n_ff);
        let entries = x.rows * experts.n_used;
        let routing = Routing { shape, ids: s.ids.whole(), weights: s.weights.whole() };
        let logits = Matrix::new(&s.logits, x.rows, experts.n_expert);
        // Which experts are chosen is left to no rounding to bytes.
        let rows = Input { bytes: None, ..normed };
        Self::record_all(r, "moe.router", matmul(r.gpu(), rows, &w.router, logits, false)?)?;
        self.look(r, "moe.router", Some(layer), logits)?;
        r.record(moe_route(r.gpu(), logits, routing, experts.renormalize, experts.scale)?.label("moe.route"))?;
        self.look(r, "moe.weights", Some(layer), Matrix::new(&s.weights, x.rows, experts.n_used))?;
        if let Some(inner) = self.few_experts(spec, w, x.rows).filter(|_| normed.bytes.is_some()) {
            // Before the experts: it takes the same room.
            let shared = self.gated_shared(r, spec, w, normed, x)?;
            let next =
                self.next(x, after).filter(|next| !w.adds_shared() && next.bytes.is_some() && next.numbers.is_none());
            if next.is_some() && !r.holds() {
                self.begin_chain(r, place, batch, x.rows);
            }
            r.record(moe_glu(r.gpu(), spec.activation, normed, &w.gate_up, routing, inner)?.label("moe.gate_up"))?;
            r.record(moe_down(r.gpu(), inner, &w.down, routing, shared, x, next)?.label("moe.down"))?;
            if next.is_none() {
                self.end_chain(r, x.rows, layer as u32 + 1)?;
            }
            self.add_shared(r, spec, w, normed, x)?;
            return Ok(if next.is_some() { Left::Rows(x.rows) } else { Left::Nothing });
        }
        let features = r.gpu().features();
        let fits = [&w.gate_up, &w.down].into_iter().all(|w| moe_coop_fits(features, w));
        let room = self.scratch.half_room().filter(|_| fits);
        let columns = |w| if room.is_some() { coop_columns(w) } else { tile_columns(w) };
        let grouping = shape.grouped().then(|| Grouping {
            groups: s.groups.whole(),
            order: s.order.whole(),
            tiles: s.tiles.whole(),
            tile: if room.is_some() { coop_entries(&shape) } else { TILE.0 },
            grids: &s.grids,
            widths: [columns(&w.gate_up), columns(&w.down)],
        });
        if let Some(grouping) = grouping {
            Self::record_all(r, "moe.group", moe_group(routing, grouping)?.into())?;
        }
        let gate_up = Matrix::new(&self.scratch.gate_up, entries, 2 * n_ff);
        Self::record_all(
            r,
            "moe.gate_up",
            moe_product(r.gpu(), room, normed, &w.gate_up, gate_up, routing, grouping)?,
        )?;
        let inner = Matrix::new(&self.scratch.ff, entries, n_ff);
        let wanted = grouping.is_none() && w.down.has_bytes();
        let inner = self.activate(r, "moe.act", (spec.activation, true), gate_up, inner, (wanted, false))?;
        self.look(r, "ffn.inner", Some(layer), inner.x)?;
        let down = Matrix::new(&s.down, entries, x.cols);
        Self::record_all(r, "moe.down", moe_product(r.gpu(), room, inner, &w.down, down, routing, grouping)?)?;
        let shared = self.gated_shared(r, spec, w, normed, x)?;
        r.record(moe_combine(routing, down, shared, x)?.label("moe.combine"))?;
        self.add_shared(r, spec, w, normed, x)?;
        Ok(Left::Nothing)
    }

    /// The output of an expert that every row uses with a weight, and the weight, if there is one.
    fn gated_shared(
        &self,
        r: &mut Recorder<'_>,
        spec: &FeedForwardSpec,
        w: &ExpertsWeights,
        normed: Input<'_>,
        x: Matrix<'_>,
    ) -> Result<Option<SharedExpert<'s>>> {
        let Some((w, gate)) = w.shared.as_ref().and_then(|shared| Some((shared, shared.gate.as_ref()?))) else {
            return Ok(None);
        };
        let Some((gates, out)) = self.scratch.moe.as_ref().and_then(|s| s.shared.as_ref()) else {
            bail!(Internal, "a shared expert without its buffers")
        };
        self.product(r, "moe.shared_gate", normed, gate, Matrix::new(gates, x.rows, 1), false)?;
        let y = Matrix::new(out, x.rows, x.cols);
        self.shared_expert(r, spec.activation, w, normed, y, false)?;
        Ok(Some(SharedExpert { gate: gates.whole(), y }))
    }

    /// Adds an expert that every row uses: without a gate there is nothing to weigh.
    fn add_shared(
        &self,
        r: &mut Recorder<'_>,
        spec: &FeedForwardSpec,
        w: &ExpertsWeights,
        normed: Input<'_>,
        x: Matrix<'_>,
    ) -> Result<()> {
        match w.shared.as_ref().filter(|w| w.gate.is_none()) {
            Some(w) => self.shared_expert(r, spec.activation, w, normed, x, true),
            None => Ok(()),
        }
    }

    /// The expert that every row uses, into `y` or added to it. Gate and up take the place of those of the chosen experts, which are done.
    fn shared_expert(
        &self,
        r: &mut Recorder<'_>,
        activation: Activation,
        w: &SharedWeights,
        normed: Input<'_>,
        y: Matrix<'_>,
        accumulate: bool,
    ) -> Result<()> {
        let (rows, n_ff) = (normed.x.rows, w.down.k());
        let gate_up = Matrix::new(&self.scratch.gate_up, rows, 2 * n_ff);
        self.product(r, "moe.shared_gate_up", normed, &w.gate_up, gate_up, false)?;
        let inner = Matrix::new(&self.scratch.ff, rows, n_ff);
        let wanted = rows < TILE_FROM && w.down.has_bytes();
        let inner =
            self.activate(r, "moe.shared_act", (activation, true), gate_up, inner, (wanted, w.down.has_halves()))?;
        self.product(r, "moe.shared_down", inner, &w.down, y, accumulate)
    }
}
