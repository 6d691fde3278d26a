//! Weights on the device: planar rows, split into parts that an adapter can bind.
//!
//! A [`Weight`] is a matrix of `rows` × `k`. Its rows may come from several tensors stacked (q, k and v, say) and in several formats; a part
//! is a run of rows of one format in one buffer. Operations make one dispatch a part, and parts write disjoint columns of
//! the result, so stacking and splitting look the same to them. An [`ExpertWeight`] is such a matrix for each expert of a mixture; its
//! parts hold the same run of rows of several neighbouring experts, whole experts wherever one fits a binding.

use crate::error::{Result, bail};
use crate::gpu::{Buffer, Dispatch, Gpu, MemoryClass, Scope};
use crate::kernels::constants::BINDING_ALIGN;
use crate::quant::Format;

/// Rows in a part are a multiple of this, so that biases of parts stay aligned.
const PART_ROWS: u64 = 64;
/// Host bytes repacked before they are handed to the device.
const CHUNK_BYTES: usize = 4 << 20;
/// Bytes in flight before the uploader waits for the device, which bounds the host memory of loading.
const IN_FLIGHT_BYTES: u64 = 24 << 20;

/// A run of rows of one format in one buffer; for experts, that run of each of them, one expert after another.
#[derive(Debug)]
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
    buffer: Buffer,
    /// Offset and size of each plane.
    planes: Vec<(u64, u64)>,
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

/// See the module's text.
#[derive(Debug)]
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
    /// True if products can round weights to f16: who stores them in f32 wants them so.
    pub fn has_halves(&self) -> bool {
        self.parts.iter().all(|p| p.format.name != "F32")
    }
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(WeightPart::bytes).sum()
    }
}

/// One matrix of `rows` × `k` for each expert. Made by [`WeightUploader::upload_experts`], used by [`crate::kernels::moe_matmul`].
#[derive(Debug)]
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
    /// As [`Weight::has_bytes`].
    pub fn has_bytes(&self) -> bool {
        self.stack.has_bytes()
    }
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.stack.bytes()
    }
}

/// Rows of one tensor in its file's format.
#[derive(Debug, Clone, Copy)]
pub struct RowSource<'a> {
    /// The format.
    pub format: &'static Format,
    /// Rows (of one expert).
    pub rows: u32,
    /// The rows' bytes; for experts, those of one after another.
    pub data: &'a [u8],
    /// f32 bias, one number a row, in the same order.
    pub bias: Option<&'a [f32]>,
}

/// Uploads weights through a bounded amount of host memory.
pub struct WeightUploader<'a> {
    gpu: &'a Gpu,
    scope: &'a Scope,
    in_flight: u64,
    /// Called with the file bytes handed over since the last call; an error ends the upload.
    progress: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl std::fmt::Debug for WeightUploader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightUploader").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl<'a> WeightUploader<'a> {
    /// An uploader that reports progress in bytes of the sources.
    pub fn new(gpu: &'a Gpu, scope: &'a Scope, progress: &'a mut dyn FnMut(u64) -> Result<()>) -> Self {
        Self { gpu, scope, in_flight: 0, progress }
    }

    /// Uploads a weight of width `k` whose rows are those of `sources`, stacked. Neighbouring sources of one format share parts.
    ///
    /// # Errors
    /// [`crate::Error::BadFile`] if a source's bytes and shape disagree, [`crate::Error::Unsupported`] for a width that kernels cannot read,
    /// [`crate::Error::OutOfMemory`], or what the progress function returned.
    pub fn upload(&mut self, name: &str, k: u32, sources: &[RowSource<'_>]) -> Result<Weight> {
        self.stack(name, k, 1, sources)
    }

    /// Uploads a weight for each of `n_expert` experts, whose rows are those of `sources` for this expert, stacked.
    ///
    /// # Errors
    /// As [`WeightUploader::upload`].
    pub fn upload_experts(
        &mut self,
        name: &str,
        k: u32,
        n_expert: u32,
        sources: &[RowSource<'_>],
    ) -> Result<ExpertWeight> {
        Ok(ExpertWeight { stack: self.stack(name, k, n_expert, sources)?, n_expert })
    }

    fn stack(&mut self, name: &str, k: u32, n_expert: u32, sources: &[RowSource<'_>]) -> Result<Weight> {
        if k == 0 || !k.is_multiple_of(4) {
            bail!(Unsupported, "tensor {name}: rows of {k} weights (a multiple of 4 is needed)");
        }
        for s in sources {
            let (format, block) = (s.format.name, s.format.block_len);
            if !(k as usize).is_multiple_of(block) {
                bail!(BadFile, "tensor {name}: rows of {k} weights in {format} (a multiple of {block} is needed)");
            }
            let rows = u64::from(s.rows) * u64::from(n_expert);
            let wanted = s.format.row_bytes(k as usize) as u64 * rows;
            if s.data.len() as u64 != wanted || rows == 0 {
                bail!(
                    BadFile,
                    "tensor {name}: {rows} rows of {k} in {format} need {wanted} bytes, there are {}",
                    s.data.len()
                );
            }
            if let Some(b) = s.bias.filter(|b| b.len() as u64 != rows) {
                bail!(BadFile, "tensor {name}: a bias of {} values for {rows} rows", b.len());
            }
        }
        let mut parts = Vec::new();
        let mut row_start = 0u32;
        for run in sources.chunk_by(|a, b| a.format == b.format && a.bias.is_some() == b.bias.is_some()) {
            let stacked = Stacked { run, row_bytes: run[0].format.row_bytes(k as usize) };
            self.run(name, k, n_expert, &stacked, row_start, &mut parts)?;
            row_start += run.iter().map(|s| s.rows).sum::<u32>();
        }
        Ok(Weight { name: name.to_string(), rows: row_start, k, parts })
    }

    /// One run of sources of one format: as few parts as bindings allow.
    fn run(
        &mut self,
        name: &str,
        k: u32,
        n_expert: u32,
        data: &Stacked<'_>,
        first_row: u32,
        parts: &mut Vec<WeightPart>,
    ) -> Result<()> {
        let format = data.run[0].format;
        let k = k as usize;
        let widest = format.planes.iter().map(|p| p.row_bytes(k) as u64).max().unwrap_or(1);
        let max_rows = (self.gpu.max_binding_bytes() / widest) / PART_ROWS * PART_ROWS;
        if max_rows == 0 {
            bail!(
                Unsupported,
                "tensor {name}: {PART_ROWS} rows of {k} exceed the {} bytes this adapter can bind",
                self.gpu.max_binding_bytes()
            );
        }
        let total: u64 = data.run.iter().map(|s| u64::from(s.rows)).sum();
        let mut row = 0u64;
        while row < total {
            let rows = (total - row).min(max_rows);
            let mut expert = 0u64;
            while expert < n_expert.into() {
                let experts = (u64::from(n_expert) - expert).min(max_rows / rows);
                let window = Window { row, rows, expert, experts };
                let mut planes = Vec::with_capacity(format.planes.len());
                let mut size = 0u64;
                for p in format.planes {
                    let bytes = (p.row_bytes(k) as u64 * rows * experts).next_multiple_of(4);
                    planes.push((size, bytes));
                    size = (size + bytes).next_multiple_of(BINDING_ALIGN);
                }
                let buffer = self.gpu.storage(name, size, MemoryClass::Weights, self.scope)?;
                self.fill(&buffer, &planes, format, k, window, data)?;
                let bias = match data.run[0].bias {
                    Some(_) => Some(self.vector(&format!("{name}.bias"), &data.bias(window))?),
                    None => None,
                };
                parts.push(WeightPart {
                    format,
                    row_start: first_row + row as u32,
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
        Ok(())
    }

    /// Repacks and uploads rows in chunks.
    fn fill(
        &mut self,
        buffer: &Buffer,
        planes: &[(u64, u64)],
        format: &Format,
        k: usize,
        window: Window,
        data: &Stacked<'_>,
    ) -> Result<()> {
        let row_bytes: Vec<usize> = format.planes.iter().map(|p| p.row_bytes(k)).collect();
        // Counts that are a multiple of 4 keep every plane's chunk a multiple of 4 bytes.
        let chunk_rows = (CHUNK_BYTES / row_bytes.iter().sum::<usize>().max(1)).max(4) & !3;
        let mut staged: Vec<Vec<u8>> = vec![Vec::new(); planes.len()];
        let mut done = 0u64;
        let count = window.rows * window.experts;
        while done < count {
            let n = (count - done).min(chunk_rows as u64) as usize;
            for (s, bytes) in staged.iter_mut().zip(&row_bytes) {
                s.clear();
                s.resize((bytes * n).next_multiple_of(4), 0);
            }
            for i in 0..n {
                let at = done + i as u64;
                let row = data.row(window.expert + at / window.rows, window.row + at % window.rows);
                let mut targets: Vec<&mut [u8]> =
                    staged.iter_mut().zip(&row_bytes).map(|(s, bytes)| &mut s[bytes * i..bytes * (i + 1)]).collect();
                (format.repack)(row, &mut targets);
            }
            for ((s, &bytes), &(offset, size)) in staged.iter().zip(&row_bytes).zip(planes) {
                let at = bytes as u64 * done;
                self.gpu.upload(buffer.slice(offset + at, size - at), s, self.scope)?;
                self.in_flight += s.len() as u64;
            }
            done += n as u64;
            self.throttle()?;
            (self.progress)(data.row_bytes as u64 * n as u64)?;
        }
        Ok(())
    }

    /// Uploads an f32 vector (a norm, a bias), padded to 16 bytes.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn vector(&mut self, name: &str, values: &[f32]) -> Result<Buffer> {
        let size = (values.len() as u64 * 4).next_multiple_of(16);
        let buffer = self.gpu.storage(name, size, MemoryClass::Weights, self.scope)?;
        self.gpu.upload(buffer.whole(), bytemuck::cast_slice(values), self.scope)?;
        self.in_flight += size;
        self.throttle()?;
        Ok(buffer)
    }

    fn throttle(&mut self) -> Result<()> {
        if self.in_flight >= IN_FLIGHT_BYTES {
            self.gpu.flush(self.scope)?;
            self.in_flight = 0;
        }
        Ok(())
    }

    /// Waits until everything is on the device.
    ///
    /// # Errors
    /// As [`Gpu::flush`].
    pub fn finish(self) -> Result<()> {
        self.gpu.flush(self.scope)
    }
}

/// The rows `row .. row + rows` of the experts `expert .. expert + experts`.
#[derive(Clone, Copy)]
struct Window {
    row: u64,
    rows: u64,
    expert: u64,
    experts: u64,
}

/// Several tensors as one run of rows, for each expert.
struct Stacked<'a> {
    run: &'a [RowSource<'a>],
    row_bytes: usize,
}

impl Stacked<'_> {
    /// The source that has a row of an expert, and the row's number in it.
    fn find(&self, expert: u64, mut row: u64) -> Option<(&RowSource<'_>, usize)> {
        for s in self.run {
            if row < u64::from(s.rows) {
                return Some((s, (expert * u64::from(s.rows) + row) as usize));
            }
            row -= u64::from(s.rows);
        }
        None
    }

    fn row(&self, expert: u64, row: u64) -> &[u8] {
        let Some((s, i)) = self.find(expert, row) else { return &[] };
        &s.data[i * self.row_bytes..(i + 1) * self.row_bytes]
    }

    fn bias(&self, w: Window) -> Vec<f32> {
        let rows = (w.expert..w.expert + w.experts).flat_map(|e| (w.row..w.row + w.rows).map(move |r| (e, r)));
        rows.filter_map(|(e, r)| self.find(e, r)).filter_map(|(s, i)| s.bias?.get(i).copied()).collect()
    }
}
