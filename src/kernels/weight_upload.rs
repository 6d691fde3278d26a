//! Rows of weights to the device: read, repacked into planes, and copied, all at once.
//!
//! The thread that loads cuts rows into pieces and gives each with a mapped slot of a [`StagingRing`] to a few short-lived threads. They read the file
//! (page faults included), repack what fits in a core's cache, and write it to the slot. The loading thread hands slots over to the device, which copies
//! their planes to where they belong; it makes all calls of wgpu and of the progress function. Slots bound what this takes of host memory.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, bail};
use crate::gpu::{Gpu, Mutex, Scope, StagedCopy, StagingRing, StagingSlot};
use crate::kernels::weight::{ExpertWeight, RowShape, Weight, WeightPart};
use crate::quant::Format;

/// Bytes on the device of a piece: what a slot holds.
const PIECE_BYTES: u64 = 2 << 20;
/// The same at least, where a budget has little room.
const LEAST_PIECE_BYTES: u64 = 64 << 10;
/// Bytes repacked at a time: they stay in a core's cache until they are written to the slot.
const CACHE_BYTES: usize = 128 << 10;
/// Threads that repack, at most: memory is the limit beyond.
const MAX_THREADS: usize = 8;
/// So few pieces are not worth a thread.
const THREAD_PIECES: u64 = 2;

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

/// The bytes of some rows of a weight.
#[derive(Debug)]
pub struct RowBytes<'a> {
    /// Rows (of one expert).
    pub rows: u32,
    /// The bytes; for experts, those of one after another. There may be more before and behind.
    pub bytes: Cow<'a, [u8]>,
    /// Where the first row begins.
    pub from: usize,
}

/// A weight and the rows that it is to be filled with, in the order and formats that it was allocated for.
#[derive(Debug)]
pub struct WeightFill<'a> {
    name: String,
    k: usize,
    parts: Vec<WeightPart>,
    rows: Vec<RowBytes<'a>>,
}

impl<'a> WeightFill<'a> {
    /// Checks that the rows are all there.
    ///
    /// # Errors
    /// [`Error::BadFile`] if bytes and shape disagree.
    pub fn new(weight: &Weight, n_expert: u32, rows: Vec<RowBytes<'a>>) -> Result<Self> {
        let (name, k) = (weight.name(), weight.k() as usize);
        let mut first = 0;
        for r in &rows {
            let Some(part) = weight.parts().iter().rfind(|p| p.row_start <= first) else {
                bail!(Internal, "tensor {name}: row {first} has no part");
            };
            let n = r.rows as usize * n_expert as usize;
            let wanted = part.format.row_bytes(k) * n;
            if r.bytes.len().checked_sub(r.from).is_none_or(|have| have < wanted) {
                let (format, have) = (part.format.name, r.bytes.len());
                bail!(BadFile, "tensor {name}: {n} rows of {k} in {format} need {wanted} bytes, there are {have}");
            }
            first += r.rows;
        }
        if first != weight.rows() {
            bail!(Internal, "tensor {name}: {first} rows for a weight of {}", weight.rows());
        }
        Ok(Self { name: name.to_string(), k, parts: weight.parts().to_vec(), rows })
    }

    /// The file's bytes of up to `most` rows that stand together, from a row of an expert on, and how many rows they are.
    fn run(&self, format: &Format, expert: u64, mut row: u64, most: u64) -> Result<(&[u8], u64)> {
        for r in &self.rows {
            let all = u64::from(r.rows);
            if row < all {
                let (n, row_bytes) = (most.min(all - row), format.row_bytes(self.k));
                let from = r.from + (expert * all + row) as usize * row_bytes;
                if let Some(bytes) = r.bytes.get(from..from + n as usize * row_bytes) {
                    return Ok((bytes, n));
                }
            }
            row = row.saturating_sub(all);
        }
        bail!(Internal, "tensor {}: row {row} of expert {expert} is not there", self.name)
    }
}

/// Neighbouring rows of a part.
struct Piece<'a> {
    fill: Arc<WeightFill<'a>>,
    part: usize,
    first: u64,
    rows: u64,
}

impl Piece<'_> {
    fn part(&self) -> &WeightPart {
        &self.fill.parts[self.part]
    }

    /// Bytes of a row in each plane.
    fn plane_rows(&self) -> impl Iterator<Item = u64> + '_ {
        self.part().format.planes.iter().map(|p| p.row_bytes(self.fill.k) as u64)
    }

    /// Bytes of this piece in each plane.
    fn plane_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        self.plane_rows().map(|bytes| (bytes * self.rows).next_multiple_of(4))
    }
}

/// A piece that was written to its slot.
struct Packed {
    slot: StagingSlot,
    copies: Vec<StagedCopy>,
    file_bytes: u64,
    repack_ns: u64,
    write_ns: u64,
}

/// Reads and repacks the rows of a piece and writes them to a slot, plane after plane.
fn pack(piece: &Piece<'_>, mut slot: StagingSlot, scratch: &mut Vec<u8>) -> Result<Packed> {
    let (fill, part, format) = (&*piece.fill, piece.part(), piece.part().format);
    let row_bytes: Vec<u64> = piece.plane_rows().collect();
    let mut copies = Vec::with_capacity(row_bytes.len());
    let mut from = 0;
    for ((size, row), plane) in piece.plane_bytes().zip(&row_bytes).zip(&part.planes) {
        copies.push(StagedCopy { from, size, target: part.buffer.clone(), offset: plane.0 + row * piece.first });
        from += size;
    }
    // Without padding, rows are one long row.
    let padded = format.planes.iter().any(|p| !fill.k.is_multiple_of(p.weights));
    let step = (CACHE_BYTES as u64 / row_bytes.iter().sum::<u64>().max(1)).max(4) & !3;
    let (mut repack_ns, mut write_ns, mut done) = (0, 0, 0);
    while done < piece.rows {
        let started = Instant::now();
        let rows = step.min(piece.rows - done);
        let sizes = row_bytes.iter().map(|bytes| (bytes * rows).next_multiple_of(4) as usize);
        let size = sizes.clone().sum();
        if padded || scratch.len() < size {
            scratch.clear();
            scratch.resize(size, 0);
        }
        let mut planes = Vec::with_capacity(row_bytes.len());
        let mut rest = &mut scratch[..size];
        for (size, row) in sizes.zip(&row_bytes) {
            let (plane, behind) = rest.split_at_mut(size);
            plane[(row * rows) as usize..].fill(0);
            planes.push(plane);
            rest = behind;
        }
        let mut packed = 0;
        while packed < rows {
            let at = piece.first + done + packed;
            let (expert, row) = (at / u64::from(part.rows), at % u64::from(part.rows));
            let most = (rows - packed).min(u64::from(part.rows) - row);
            let most = if padded { 1 } else { most };
            let (expert, row) = (u64::from(part.expert_start) + expert, u64::from(part.row_start) + row);
            let (bytes, n) = fill.run(format, expert, row, most)?;
            let range = |row: &u64| (row * packed) as usize..(row * (packed + n)) as usize;
            let mut targets: Vec<&mut [u8]> =
                planes.iter_mut().zip(&row_bytes).map(|(plane, row)| &mut plane[range(row)]).collect();
            (format.repack)(bytes, &mut targets);
            packed += n;
        }
        let repacked = Instant::now();
        for ((plane, copy), row) in planes.iter().zip(&copies).zip(&row_bytes) {
            slot.write(copy.from + row * done, plane)?;
        }
        repack_ns += repacked.duration_since(started).as_nanos() as u64;
        write_ns += repacked.elapsed().as_nanos() as u64;
        done += rows;
    }
    let file_bytes = format.row_bytes(fill.k) as u64 * piece.rows;
    Ok(Packed { slot, copies, file_bytes, repack_ns, write_ns })
}

/// The pieces of weights, one after another; weights are asked for when their turn comes.
struct Pieces<'i, 'a> {
    fills: &'i mut dyn Iterator<Item = Result<WeightFill<'a>>>,
    piece_bytes: u64,
    fill: Option<Arc<WeightFill<'a>>>,
    part: usize,
    row: u64,
}

impl<'a> Pieces<'_, 'a> {
    fn next(&mut self) -> Result<Option<Piece<'a>>> {
        loop {
            let Some(fill) = &self.fill else {
                let Some(next) = self.fills.next() else { return Ok(None) };
                (self.fill, self.part, self.row) = (Some(Arc::new(next?)), 0, 0);
                continue;
            };
            let Some(part) = fill.parts.get(self.part) else {
                self.fill = None;
                continue;
            };
            let rows = u64::from(part.rows) * u64::from(part.experts) - self.row;
            if rows == 0 {
                (self.part, self.row) = (self.part + 1, 0);
                continue;
            }
            // Counts that are a multiple of 4 keep every plane's share a multiple of 4 bytes.
            let row_bytes: u64 = part.format.planes.iter().map(|p| p.row_bytes(fill.k) as u64).sum();
            let rows = rows.min((self.piece_bytes / row_bytes.max(1)).max(4) & !3);
            let piece = Piece { fill: fill.clone(), part: self.part, first: self.row, rows };
            self.row += rows;
            return Ok(Some(piece));
        }
    }
}

/// Where the time of uploading went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadTimes {
    /// Threads that repacked; 0 = the caller's.
    pub threads: u32,
    /// Reading and repacking, of all threads together.
    pub repack_ns: u64,
    /// Writing to mapped memory, of all threads together.
    pub write_ns: u64,
    /// The caller's time in submits.
    pub submit_ns: u64,
    /// The caller's time of waiting for the device.
    pub wait_ns: u64,
}

type Job<'a> = (Piece<'a>, StagingSlot);

/// Uploads weights through a bounded amount of host memory.
pub struct WeightUploader<'a> {
    gpu: &'a Gpu,
    scope: &'a Scope,
    times: UploadTimes,
    /// Called with the file bytes handed over since the last call; an error ends the upload.
    progress: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl std::fmt::Debug for WeightUploader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightUploader").field("times", &self.times).finish_non_exhaustive()
    }
}

impl<'a> WeightUploader<'a> {
    /// An uploader that reports progress in bytes of the sources.
    pub fn new(gpu: &'a Gpu, scope: &'a Scope, progress: &'a mut dyn FnMut(u64) -> Result<()>) -> Self {
        Self { gpu, scope, times: UploadTimes::default(), progress }
    }

    /// Uploads a weight of width `k` whose rows are those of `sources`, stacked. Neighbouring sources of one format share parts.
    ///
    /// # Errors
    /// [`Error::BadFile`] if a source's bytes and shape disagree, [`Error::Unsupported`] for a width that kernels cannot read,
    /// [`Error::OutOfMemory`], or what the progress function returned.
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
        Ok(ExpertWeight::of(self.stack(name, k, n_expert, sources)?, n_expert))
    }

    fn stack(&mut self, name: &str, k: u32, n_expert: u32, sources: &[RowSource<'_>]) -> Result<Weight> {
        let shapes: Vec<_> =
            sources.iter().map(|s| RowShape { format: s.format, rows: s.rows, bias: s.bias }).collect();
        let weight = Weight::allocate(self.gpu, self.scope, name, k, n_expert, &shapes)?;
        let bytes = |s: &RowSource<'_>| s.format.row_bytes(k as usize) * s.rows as usize * n_expert as usize;
        if let Some(s) = sources.iter().find(|s| s.data.len() != bytes(s)) {
            let (rows, format, wanted, have) = (s.rows, s.format.name, bytes(s), s.data.len());
            bail!(BadFile, "tensor {name}: {rows} rows of {k} in {format} need {wanted} bytes, there are {have}");
        }
        let rows = sources.iter().map(|s| RowBytes { rows: s.rows, bytes: Cow::Borrowed(s.data), from: 0 }).collect();
        let total = sources.iter().map(|s| s.data.len() as u64).sum();
        self.fill(total, &mut std::iter::once(WeightFill::new(&weight, n_expert, rows)))?;
        Ok(weight)
    }

    /// Fills weights of about `total` bytes in the file, one after another. Each is asked for when its turn comes, and dropped when all of its rows are
    /// repacked.
    ///
    /// # Errors
    /// What an item holds, [`Error::DeviceLost`], [`Error::Gpu`], or what the progress function returned.
    pub fn fill<'d>(&mut self, total: u64, fills: &mut dyn Iterator<Item = Result<WeightFill<'d>>>) -> Result<()> {
        let memory = self.gpu.memory().snapshot();
        let room = if memory.budget == 0 { u64::MAX } else { memory.budget.saturating_sub(memory.total) };
        let piece_bytes = PIECE_BYTES.min(room / 4).max(LEAST_PIECE_BYTES).min(total.next_power_of_two());
        let mut pieces = Pieces { fills, piece_bytes, fill: None, part: 0, row: 0 };
        let most = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
        let threads = most.min((total / PIECE_BYTES / THREAD_PIECES) as usize);
        if threads <= 1 {
            let mut ring = StagingRing::new(self.gpu, self.scope, piece_bytes, 2);
            let mut scratch = Vec::new();
            while let Some(piece) = pieces.next()? {
                let size = piece.plane_bytes().sum();
                let slot = loop {
                    match ring.take(size)? {
                        Some(slot) => break slot,
                        None => self.wait(&mut ring)?,
                    }
                };
                self.hand_over(&mut ring, vec![pack(&piece, slot, &mut scratch)?])?;
            }
            return Ok(());
        }
        self.times.threads = self.times.threads.max(threads as u32);
        // One being written and one waiting for each thread, and some with the device.
        let mut ring = StagingRing::new(self.gpu, self.scope, piece_bytes, 2 * threads + 2);
        let (jobs, waiting) = channel::<Job<'d>>();
        let (done, filled) = channel();
        let waiting = Mutex::new(waiting);
        std::thread::scope(|s| {
            for _ in 0..threads {
                let (waiting, done) = (&waiting, done.clone());
                s.spawn(move || work(waiting, &done));
            }
            drop(done);
            // The threads end when `jobs` is dropped.
            self.feed(&mut ring, &mut pieces, jobs, &filled)
        })
    }

    /// Hands pieces to threads and what they filled to the device.
    fn feed<'d>(
        &mut self,
        ring: &mut StagingRing<'_>,
        pieces: &mut Pieces<'_, 'd>,
        jobs: Sender<Job<'d>>,
        filled: &Receiver<Result<Packed>>,
    ) -> Result<()> {
        let ended = || Error::Internal("a thread that repacks weights ended".into());
        let mut next = pieces.next()?;
        let mut out = 0;
        loop {
            while let Some(piece) = next.take() {
                let Some(slot) = ring.take(piece.plane_bytes().sum())? else {
                    next = Some(piece);
                    break;
                };
                jobs.send((piece, slot)).map_err(|_| ended())?;
                out += 1;
                next = pieces.next()?;
            }
            if out == 0 {
                match next {
                    Some(_) => self.wait(ring)?,
                    None => return Ok(()),
                }
                continue;
            }
            // Not longer, so that slots that the device gives back are noticed.
            match filled.recv_timeout(Duration::from_millis(1)) {
                Ok(first) => {
                    let batch = std::iter::once(first).chain(filled.try_iter()).collect::<Result<Vec<_>>>()?;
                    out -= batch.len();
                    self.hand_over(ring, batch)?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            }
        }
    }

    fn wait(&mut self, ring: &mut StagingRing<'_>) -> Result<()> {
        let started = Instant::now();
        let outcome = ring.wait();
        self.times.wait_ns += started.elapsed().as_nanos() as u64;
        outcome
    }

    fn hand_over(&mut self, ring: &mut StagingRing<'_>, batch: Vec<Packed>) -> Result<()> {
        let started = Instant::now();
        let mut bytes = 0;
        let mut slots = Vec::with_capacity(batch.len());
        for p in batch {
            bytes += p.file_bytes;
            self.times.repack_ns += p.repack_ns;
            self.times.write_ns += p.write_ns;
            slots.push((p.slot, p.copies));
        }
        ring.submit(slots)?;
        self.times.submit_ns += started.elapsed().as_nanos() as u64;
        (self.progress)(bytes)
    }

    /// Waits until everything is on the device, and says where the time went.
    ///
    /// # Errors
    /// As [`Gpu::flush`].
    pub fn finish(mut self) -> Result<UploadTimes> {
        let started = Instant::now();
        self.gpu.flush(self.scope)?;
        self.times.wait_ns += started.elapsed().as_nanos() as u64;
        Ok(self.times)
    }
}

/// Packs pieces until no more come.
fn work(waiting: &Mutex<Receiver<Job<'_>>>, done: &Sender<Result<Packed>>) {
    let mut scratch = Vec::new();
    loop {
        let job = waiting.lock().recv();
        let Ok((piece, slot)) = job else { return };
        // Nobody listens any more after an error.
        if done.send(pack(&piece, slot, &mut scratch)).is_err() {
            return;
        }
    }
}
