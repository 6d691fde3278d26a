//! Norms: done beforehand, or by the way in the product that reads them, from what the block before has left.

use crate::error::Result;
use crate::gpu::Recorder;
use crate::kernels::constants::TILE_FROM;
use crate::kernels::{
    HalfRoom, Input, Matrix, Next, Norm, NormKind, Parts, RowNorm, Weight, byte_rows, norm, norm_bytes, norm_half,
};
use crate::model::forward::Forward;
use crate::model::weights::NormWeights;
use crate::quant::GPU_BLOCK;

/// What a block has left to the norm after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing: the residual stream is whole, and that is all there is.
    Nothing,
    /// So many rows that have the norm's weights in them, bytes or numbers, and sums of squares: the norm is done by the way. Sums beside numbers are in an
    /// order that depends on how many rows there are, so who takes fewer of them makes the norm from the residual stream.
    Rows(u32),
    /// So many parts of its last product, that are still to be added to the residual stream.
    Parts(u32),
}

/// When a norm is done: before the product that reads it, or in whatever way is fastest for one product, from what the block before has left.
#[derive(Clone, Copy)]
pub(super) enum Norms {
    Now,
    Later(Left),
}

/// What comes after a block: the normalisation, and what the product takes that reads its result.
#[derive(Clone, Copy)]
pub(super) struct After<'a> {
    pub(super) norm: Option<&'a NormWeights>,
    pub(super) wants_bytes: bool,
    /// Rows as numbers that have the norm's weights in them: where bytes are not, or to a router beside them.
    pub(super) wants_numbers: bool,
    pub(super) wants_halves: bool,
}

impl<'a> After<'a> {
    pub(super) fn of(norm: Option<&'a NormWeights>, product: &Weight) -> Self {
        // Numbers are shortened: who stores weights in f32 wants them whole.
        let (wants_bytes, wants_numbers) = (product.has_bytes(), product.has_elements() && product.has_halves());
        Self { norm, wants_bytes, wants_numbers, wants_halves: product.has_halves() }
    }
}

impl<'a> Forward<'a> {
    pub(super) fn norm_of<'w>(&self, w: &'w NormWeights) -> Norm<'w> {
        let bias = w.bias.as_ref().map(|b| b.whole());
        Norm { kind: self.spec.norm, eps: self.spec.norm_eps, w: w.w.whole(), bias }
    }

    /// Whether products of so many rows take a norm by the way. Who looks at tensors is to find the normalised rows, and adapters read them.
    pub(super) fn norms_by_the_way(&self, rows: u32, w: &NormWeights) -> bool {
        rows < TILE_FROM
            && self.lens.is_none()
            && self.lora.is_none()
            && self.spec.norm == NormKind::Rms
            && w.bias.is_none()
    }

    /// The room for rows that norms and activations bring to f16 for one product. Who looks at tensors is to find the f32 ones.
    pub(super) fn halves(&self, rows: u32, wanted: bool) -> Option<HalfRoom<'a>> {
        let fits = wanted && rows >= TILE_FROM && self.lens.is_none() && self.lora.is_none();
        self.scratch.half_room().filter(|_| fits)
    }

    /// The same for a norm, if it is one that can be.
    pub(super) fn norm_halves<'w>(&self, rows: u32, what: After<'w>) -> Option<(HalfRoom<'a>, &'w NormWeights)> {
        let norm = what.norm.filter(|w| self.spec.norm == NormKind::Rms && w.bias.is_none())?;
        Some((self.halves(rows, what.wants_halves)?, norm))
    }

    /// What a block reads: the normalised residual stream, or without weights the stream itself; as bytes too if they are wanted.
    pub(super) fn norm<'m>(
        &self,
        r: &mut Recorder<'_>,
        x: Matrix<'m>,
        what: After<'m>,
        when: Norms,
    ) -> Result<Input<'m>>
    where
        'a: 'm,
    {
        if let (Norms::Later(left), Some((room, w))) = (when, self.norm_halves(x.rows, what)) {
            let parts = match (left, room.parts) {
                (Left::Parts(splits), Some(data)) => Some(Parts { data, splits }),
                _ => None,
            };
            let half = room.product_rows(x.rows, x.cols);
            r.record(norm_half(r.gpu(), x, w.w.whole(), self.spec.norm_eps, half, parts)?)?;
            return Ok(Input { x, bytes: None, norm: None, half: Some(half) });
        }
        let bytes = self.bytes(&self.scratch.normed_bytes, x.rows, self.spec.n_embd, what.wants_bytes);
        let normed = Matrix::new(&self.scratch.normed, x.rows, self.spec.n_embd);
        let rows = matches!(when, Norms::Later(Left::Rows(n)) if n == x.rows || !what.wants_numbers);
        if let (Some(w), Norms::Later(_)) = (what.norm, when)
            && self.norms_by_the_way(x.rows, w)
            && (rows || bytes.is_none())
        {
            let eps = self.spec.norm_eps;
            let scaled = rows && what.wants_numbers;
            let norm = RowNorm { w: w.w.whole(), eps, sums: rows.then(|| self.scratch.block_sums.whole()), scaled };
            return Ok(Input { x: if scaled { normed } else { x }, bytes, norm: Some(norm), half: None });
        }
        let (x, d) = match (what.norm, bytes) {
            (Some(w), Some(bytes)) => (normed, norm_bytes(self.norm_of(w), x, normed, bytes)?),
            (Some(w), None) => (normed, norm(self.norm_of(w), x, normed, false)?),
            (None, Some(bytes)) => (x, byte_rows(x, bytes)?),
            (None, None) => return Ok(x.into()),
        };
        r.record(d)?;
        Ok(Input { x, bytes, norm: None, half: None })
    }

    /// What a block can leave to the norm that comes after it, beside the rows of the residual stream.
    pub(super) fn next<'w>(&self, x: Matrix<'_>, after: After<'w>) -> Option<Next<'w>>
    where
        'a: 'w,
    {
        let norm = after.norm.filter(|norm| self.norms_by_the_way(x.rows, norm))?;
        let bytes = self.bytes(&self.scratch.normed_bytes, x.rows, self.spec.n_embd, after.wants_bytes);
        let numbers = (after.wants_numbers && !self.exact).then(|| self.scratch.normed.whole());
        let complete = bytes.is_some() == after.wants_bytes && (bytes.is_some() || numbers.is_some());
        // Squares are left for whole blocks.
        let complete = complete && x.cols.is_multiple_of(GPU_BLOCK as u32);
        complete.then(|| Next { w: norm.w.whole(), bytes, numbers, sums: self.scratch.block_sums.whole() })
    }
}
