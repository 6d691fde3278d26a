//! Weights on the device: planar rows, split into parts that an adapter can bind.
//!
//! A [`Weight`] is a matrix of `rows` × `k`. Its rows may come from several tensors stacked (q, k and v, say) and in several formats; a part
//! is a run of rows of one format in one buffer. Operations make one dispatch a part, and parts write disjoint columns of
//! the result, so stacking and splitting look the same to them. An [`ExpertWeight`] is such a matrix for each expert of a mixture; its
//! parts hold the same run of rows of several neighbouring experts, whole experts wherever one fits a binding.

use std::ops::Range;

use crate::error::{Result, bail};
use crate::gpu::{Buffer, Dispatch, Gpu, MemoryClass, Scope};
use crate::kernels::constants::BINDING_ALIGN;
use crate::quant::Format;

/// Rows in a part are a multiple of this, so that biases of parts stay aligned.
const PART_ROWS: u64 = 64;

/// A run of rows of one format in one buffer; for experts, that run of each of them, one expert after another.
#[derive(Debug, Clone)]
pub struct WeightPart {
    /// The format.
    pub format: &'static Format,
    /// First row, counted in the whole weight (of one expert).
    pub row_start: u32,
    /// Rows (of one expert).
    pub rows: u32,
    /// First expert; 0 in a plain weight.
    pub expert_start: u32,
    /// Experts; 1 in a plain weight.
    pub experts: u32,
    /// f32 bias of these rows.
    pub bias: Option<Buffer>,
    pub(super) buffer: Buffer,
    /// Offset and size of each plane.
    pub(super) planes: Vec<(u64, u64)>,
}

impl WeightPart {
    /// Binds the planes to the variables of the format's fragment.
    pub(super) fn bind<'a>(&'a self, d: Dispatch<'a>) -> Dispatch<'a> {
        self.format
            .planes
            .iter()
            .zip(&self.planes)
            .fold(d, |d, (plane, &(offset, size))| d.bind(plane.name, self.buffer.slice(offset, size)))
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.buffer.size()
    }
}

/// See the module's text. Clones share its buffers.
#[derive(Debug, Clone)]
pub struct Weight {
    name: String,
    rows: u32,
    k: u32,
    parts: Vec<WeightPart>,
}

impl Weight {
    /// Name, for errors.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Rows: outputs of a product, entries of a table.
    pub fn rows(&self) -> u32 {
        self.rows
    }
    /// Width: inputs of a product.
    pub fn k(&self) -> u32 {
        self.k
    }
    /// The parts, in order of their rows.
    pub fn parts(&self) -> &[WeightPart] {
        &self.parts
    }
    /// True if products can take `x` as bytes: all rows are of formats with quants.
    pub fn has_bytes(&self) -> bool {
        self.parts.iter().all(|p| p.format.has_bytes())
    }
    /// True if all rows are of formats of single elements.
    pub fn has_elements(&self) -> bool {
        self.parts.iter().all(|p| !p.format.has_bytes())
    }
    /// True if products can round weights to f16: who stores them in f32 wants them so.
    pub fn has_halves(&self) -> bool {
        self.parts.iter().all(|p| p.format.name != "F32")
    }
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(WeightPart::bytes).sum()
    }
}

/// One matrix of `rows` × `k` for each expert. Made by [`crate::kernels::WeightUploader::upload_experts`], used by [`crate::kernels::moe_matmul`].
#[derive(Debug, Clone)]
pub struct ExpertWeight {
    stack: Weight,
    n_expert: u32,
}

impl ExpertWeight {
    /// Name, for errors.
    pub fn name(&self) -> &str {
        &self.stack.name
    }
    /// Experts.
    pub fn n_expert(&self) -> u32 {
        self.n_expert
    }
    /// Rows of one expert: outputs of its product.
    pub fn rows(&self) -> u32 {
        self.stack.rows
    }
    /// Width: inputs of a product.
    pub fn k(&self) -> u32 {
        self.stack.k
    }
    /// The parts, by rows and then by experts.
    pub fn parts(&self) -> &[WeightPart] {
        &self.stack.parts
    }
    /// Of a weight that was allocated for experts.
    pub fn of(stack: Weight, n_expert: u32) -> Self {
        Self { stack, n_expert }
    }
    /// As [`Weight::has_bytes`].
    pub fn has_bytes(&self) -> bool {
        self.stack.has_bytes()
    }
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.stack.bytes()
    }
}

/// Rows of one tensor that go into a weight: all but their bytes.
#[derive(Debug, Clone, Copy)]
pub struct RowShape<'a> {
    /// The format.
    pub format: &'static Format,
    /// Rows (of one expert).
    pub rows: u32,
    /// f32 bias, one number a row, of one expert after another.
    pub bias: Option<&'a [f32]>,
}

impl Weight {
    /// Makes the buffers of a weight of width `k` for each of `n_expert` experts, whose rows are those of `shapes`, stacked; biases are uploaded, rows
    /// are not: they hold nothing until [`crate::kernels::WeightUploader::fill`]. `n_expert` is 1 for a plain weight. Neighbouring shapes of one format share parts.
    ///
    /// # Errors
    /// [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] for a width that the format does not have or that kernels cannot read,
    /// [`crate::Error::OutOfMemory`].
    pub fn allocate(
        gpu: &Gpu,
        scope: &Scope,
        name: &str,
        k: u32,
        n_expert: u32,
        shapes: &[RowShape<'_>],
    ) -> Result<Self> {
        if k == 0 || !k.is_multiple_of(4) {
            bail!(Unsupported, "tensor {name}: rows of {k} weights (a multiple of 4 is needed)");
        }
        for s in shapes {
            let (format, block) = (s.format.name, s.format.block_len);
            if !(k as usize).is_multiple_of(block) {
                bail!(BadFile, "tensor {name}: rows of {k} weights in {format} (a multiple of {block} is needed)");
            }
            let rows = u64::from(s.rows) * u64::from(n_expert);
            if rows == 0 {
                bail!(BadFile, "tensor {name}: it has no rows");
            }
            if let Some(b) = s.bias.filter(|b| b.len() as u64 != rows) {
                bail!(BadFile, "tensor {name}: a bias of {} values for {rows} rows", b.len());
            }
        }
        let mut weight = Self { name: name.to_string(), rows: 0, k, parts: Vec::new() };
        for run in shapes.chunk_by(|a, b| a.format == b.format && a.bias.is_some() == b.bias.is_some()) {
            weight.add_run(gpu, scope, n_expert, run)?;
        }
        Ok(weight)
    }

    /// One run of rows of one format: as few parts as bindings allow.
    fn add_run(&mut self, gpu: &Gpu, scope: &Scope, n_expert: u32, run: &[RowShape<'_>]) -> Result<()> {
        let (name, k, format) = (&self.name, self.k as usize, run[0].format);
        let widest = format.planes.iter().map(|p| p.row_bytes(k) as u64).max().unwrap_or(1);
        let max_rows = (gpu.max_binding_bytes() / widest) / PART_ROWS * PART_ROWS;
        if max_rows == 0 {
            bail!(
                Unsupported,
                "tensor {name}: {PART_ROWS} rows of {k} exceed the {} bytes this adapter can bind",
                gpu.max_binding_bytes()
            );
        }
        let total: u64 = run.iter().map(|s| u64::from(s.rows)).sum();
        let mut row = 0u64;
        while row < total {
            let rows = (total - row).min(max_rows);
            let mut expert = 0u64;
            while expert < n_expert.into() {
                let experts = (u64::from(n_expert) - expert).min(max_rows / rows);
                let mut planes = Vec::with_capacity(format.planes.len());
                let mut size = 0u64;
                for p in format.planes {
                    let bytes = (p.row_bytes(k) as u64 * rows * experts).next_multiple_of(4);
                    planes.push((size, bytes));
                    size = (size + bytes).next_multiple_of(BINDING_ALIGN);
                }
                let buffer = gpu.storage(name, size, MemoryClass::Weights, scope)?;
                let bias = match run[0].bias {
                    Some(_) => {
                        let values = bias_of(run, expert..expert + experts, row..row + rows);
                        Some(upload_vector(gpu, scope, &format!("{name}.bias"), &values)?)
                    }
                    None => None,
                };
                self.parts.push(WeightPart {
                    format,
                    row_start: self.rows + row as u32,
                    rows: rows as u32,
                    expert_start: expert as u32,
                    experts: experts as u32,
                    bias,
                    buffer,
                    planes,
                });
                expert += experts;
            }
            row += rows;
        }
        self.rows += total as u32;
        Ok(())
    }
}

/// The biases of some rows of some experts.
fn bias_of(run: &[RowShape<'_>], experts: Range<u64>, rows: Range<u64>) -> Vec<f32> {
    let mut values = Vec::new();
    for expert in experts {
        let mut first = 0u64;
        for s in run {
            let n = u64::from(s.rows);
            let (from, to) = (rows.start.clamp(first, first + n), rows.end.clamp(first, first + n));
            let at = |row: u64| (expert * n + row - first) as usize;
            values.extend(s.bias.and_then(|b| b.get(at(from)..at(to))).unwrap_or_default());
            first += n;
        }
    }
    values
}

/// An f32 vector (a norm, a bias) on the device, padded to 16 bytes.
///
/// # Errors
/// [`crate::Error::OutOfMemory`].
pub fn upload_vector(gpu: &Gpu, scope: &Scope, name: &str, values: &[f32]) -> Result<Buffer> {
    let size = (values.len() as u64 * 4).next_multiple_of(16);
    let buffer = gpu.storage(name, size, MemoryClass::Weights, scope)?;
    gpu.upload(buffer.whole(), bytemuck::cast_slice(values), scope)?;
    Ok(buffer)
}
