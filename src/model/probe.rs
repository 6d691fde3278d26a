//! Probes: looking at intermediate tensors while a model runs.
//!
//! A probe is recorded in the same encoder as the work it looks at, right after the operation, so it sees exactly what the next operation sees,
//! however many dispatches a submit holds. Statistics are reduced on the GPU over the whole tensor; only they and a few first values are read
//! back, in one readback of class `debug` after the submit. Every selected point's gate is passed before anything is recorded.
//! A sequence without a probe records nothing of this.

use std::cell::RefCell;

use crate::error::{Result, bail};
use crate::gpu::{
    Buffer, BufferSlice, Gate, Gpu, Lease, MemoryClass, Place, ReadbackClass, Recorder, Scope, Submission,
};
use crate::kernels::{Matrix, STATS_PARTIAL_BYTES, TensorStats, tensor_stats};

/// A place in the pipeline where a probe can look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePoint {
    /// Its name.
    pub name: &'static str,
    /// Which part of the library it belongs to: the gate it passes.
    pub place: Place,
    /// There is one in every layer.
    pub per_layer: bool,
}

const fn point(name: &'static str, place: Place, per_layer: bool) -> ProbePoint {
    ProbePoint { name, place, per_layer }
}

/// All points, in the order of the pipeline; a layer has those of its kind. `kv.table`, `sample.picked` and `stop.state`
/// hold words, not floats, and have no statistics.
pub const PROBE_POINTS: &[ProbePoint] = &[
    point("embed", Place::Pipeline, false),
    point("attn.norm", Place::Layer, true),
    point("attn.qkv", Place::Layer, true),
    point("attn.q", Place::Layer, true),
    point("kv.table", Place::KvCache, true),
    point("mix.in", Place::Layer, true),
    point("mix.conv", Place::Layer, true),
    point("mix.scan", Place::Layer, true),
    point("attn.heads", Place::Layer, true),
    point("attn.residual", Place::Layer, true),
    point("ffn.norm", Place::Layer, true),
    point("moe.router", Place::Layer, true),
    point("moe.weights", Place::Layer, true),
    point("ffn.inner", Place::Layer, true),
    point("ffn.residual", Place::Layer, true),
    point("output.norm", Place::Pipeline, false),
    point("logits", Place::Logits, false),
    point("sample.picked", Place::Sample, false),
    point("stop.state", Place::CheckStop, false),
];

/// What to look at.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeOptions {
    /// Names of [`PROBE_POINTS`]; none: all of them.
    pub points: Vec<String>,
    /// First and last layer; `None`: all.
    pub layers: Option<(u32, u32)>,
    /// First values of each tensor to read back beside its statistics.
    pub values: u32,
    /// Magnitude beyond which a finite element counts as bad: 65,500 finds what half precision could not hold.
    pub limit: f32,
    /// End the call with [`crate::Error::NotFinite`] at the first tensor with a bad element.
    pub require_finite: bool,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { points: Vec::new(), layers: None, values: 0, limit: f32::MAX, require_finite: false }
    }
}

/// What a probe saw.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReading {
    /// Where.
    pub point: ProbePoint,
    /// In which layer.
    pub layer: Option<u32>,
    /// Position of the first row in its sequence.
    pub position: u32,
    /// Rows (tokens) of the tensor.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Over all rows; `None` for a point that holds words.
    pub stats: Option<TensorStats>,
    /// The first values of the first row, as bits.
    pub words: Vec<u32>,
}

impl ProbeReading {
    /// The first values as floats.
    pub fn values(&self) -> Vec<f32> {
        self.words.iter().map(|&w| f32::from_bits(w)).collect()
    }
}

/// Readings kept until they are taken; more are an error of the caller, who does not take them.
const MAX_READINGS: usize = 1 << 17;

/// A probe at work on one submit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lens<'a> {
    pub(crate) probe: &'a Probe,
    /// Of the probed sequence.
    pub(crate) slot: u32,
    /// Of the first row.
    pub(crate) position: u32,
}

#[derive(Debug)]
struct Tap {
    point: ProbePoint,
    layer: Option<u32>,
    position: u32,
    rows: u32,
    cols: u32,
    has_stats: bool,
    words: u32,
}

/// The probe of one sequence.
#[derive(Debug)]
pub(crate) struct Probe {
    options: ProbeOptions,
    points: Vec<ProbePoint>,
    capacity: u32,
    partial: Buffer,
    stats: Buffer,
    words: Buffer,
    taps: RefCell<Vec<Tap>>,
    readings: Vec<ProbeReading>,
}

const ENTRY: u64 = size_of::<TensorStats>() as u64;

impl Probe {
    /// Plans a probe for a model of `n_layer` layers.
    pub(crate) fn new(gpu: &Gpu, options: ProbeOptions, n_layer: u32, scope: &Scope) -> Result<Self> {
        let find = |name: &String| match PROBE_POINTS.iter().find(|p| p.name == name) {
            Some(p) => Ok(*p),
            None => {
                let names: Vec<_> = PROBE_POINTS.iter().map(|p| p.name).collect();
                bail!(InvalidArgument, "no probe point \"{name}\"; there are {}", names.join(", "))
            }
        };
        let points = match options.points.is_empty() {
            true => PROBE_POINTS.to_vec(),
            false => options.points.iter().map(find).collect::<Result<_>>()?,
        };
        if let Some((first, last)) = options.layers.filter(|&(first, last)| first > last || last >= n_layer) {
            bail!(InvalidArgument, "probe of layers {first} to {last} in a model of {n_layer}");
        }
        if options.values > 4096 || options.limit.is_nan() || options.limit < 0.0 {
            bail!(InvalidArgument, "probe: {} values (4096 at most), limit {}", options.values, options.limit);
        }
        let capacity: u32 = points.iter().map(|p| if p.per_layer { n_layer } else { 1 }).sum();
        let make = |name: &str, bytes: u64| gpu.storage(name, bytes, MemoryClass::Other, scope);
        Ok(Self {
            partial: make("probe.partial", STATS_PARTIAL_BYTES)?,
            stats: make("probe.stats", u64::from(capacity) * ENTRY)?,
            words: make("probe.values", u64::from(capacity) * u64::from(options.values.max(1)) * 4)?,
            options,
            points,
            capacity,
            taps: RefCell::default(),
            readings: Vec::new(),
        })
    }

    /// Asks leave for every selected point; call it before recording.
    pub(crate) fn pass_gates(&self, gpu: &Gpu, scope: &Scope) -> Result<()> {
        self.taps.borrow_mut().clear();
        if self.readings.len() >= MAX_READINGS {
            bail!(InvalidState, "{MAX_READINGS} probe readings wait to be taken");
        }
        let layer = self.options.layers.map(|l| l.0);
        self.points.iter().try_for_each(|p| {
            let gate =
                Gate { layer: layer.filter(|_| p.per_layer), ..Gate::new(p.place, ReadbackClass::Debug, p.name) };
            gpu.gate(&gate, scope)
        })
    }

    fn selected(&self, name: &str, layer: Option<u32>) -> Option<ProbePoint> {
        let inside = match (layer, self.options.layers) {
            (Some(l), Some((first, last))) => (first..=last).contains(&l),
            _ => true,
        };
        self.points.iter().find(|p| p.name == name).copied().filter(|_| inside)
    }

    fn add(&self, tap: Tap) -> Result<u32> {
        let mut taps = self.taps.borrow_mut();
        let index = taps.len() as u32;
        if index >= self.capacity {
            bail!(Internal, "probe: point {} beyond {} readings of a submit", tap.point.name, self.capacity);
        }
        taps.push(tap);
        Ok(index)
    }

    /// Looks at a float tensor whose first row is at `position`.
    pub(crate) fn tensor(
        &self,
        r: &mut Recorder<'_>,
        name: &str,
        layer: Option<u32>,
        position: u32,
        x: Matrix<'_>,
    ) -> Result<()> {
        let Some(point) = self.selected(name, layer) else { return Ok(()) };
        let words = self.options.values.min(x.cols);
        let index = self.add(Tap { point, layer, position, rows: x.rows, cols: x.cols, has_stats: true, words })?;
        let (partial, stats) = (self.partial.whole(), self.stats.whole());
        for d in tensor_stats(x, self.options.limit, partial, stats, index)? {
            r.record(d.label("probe"))?;
        }
        self.copy(r, x.data, u64::from(x.offset) * 4, index, words)
    }

    /// Looks at the first of `n` words.
    pub(crate) fn words(
        &self,
        r: &mut Recorder<'_>,
        name: &str,
        layer: Option<u32>,
        position: u32,
        data: BufferSlice<'_>,
        n: u32,
    ) -> Result<()> {
        let Some(point) = self.selected(name, layer) else { return Ok(()) };
        let words = self.options.values.min(n);
        let index = self.add(Tap { point, layer, position, rows: 1, cols: n, has_stats: false, words })?;
        self.copy(r, data, 0, index, words)
    }

    fn copy(&self, r: &mut Recorder<'_>, data: BufferSlice<'_>, at: u64, index: u32, words: u32) -> Result<()> {
        if words == 0 {
            return Ok(());
        }
        let to = u64::from(index) * u64::from(self.options.values) * 4;
        let bytes = u64::from(words) * 4;
        r.copy(data.buffer.slice(data.offset + at, bytes), self.words.slice(to, bytes))
    }

    /// Records the copy of everything seen; after the submit [`Probe::read`] gets it.
    pub(crate) fn finish(&self, r: &mut Recorder<'_>) -> Result<Lease> {
        let (stats, words) = self.sizes();
        let lease = r.gpu().lease_readback((stats + words).max(4), r.scope())?;
        if stats > 0 {
            r.copy(self.stats.slice(0, stats), lease.buffer().slice(0, stats))?;
        }
        if words > 0 {
            r.copy(self.words.slice(0, words), lease.buffer().slice(stats, words))?;
        }
        Ok(lease)
    }

    /// Bytes of statistics and of values in this submit.
    fn sizes(&self) -> (u64, u64) {
        let n = self.taps.borrow().len() as u64;
        (n * ENTRY, n * u64::from(self.options.values) * 4)
    }

    /// Reads what was seen.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] naming layer, point and position of the first bad tensor, if the options ask for it; its reading is kept.
    pub(crate) fn read(&mut self, gpu: &Gpu, lease: &Lease, submission: &Submission, scope: &Scope) -> Result<()> {
        let (stats, words) = self.sizes();
        let taps = std::mem::take(&mut *self.taps.borrow_mut());
        if taps.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0u8; (stats + words) as usize];
        gpu.map_staging(lease.buffer(), submission, &mut bytes)?;
        let entry_bytes = ENTRY + u64::from(self.options.values) * 4;
        let mut places: Vec<(Place, u64)> = Vec::new();
        for tap in &taps {
            match places.iter_mut().find(|p| p.0 == tap.point.place) {
                Some(p) => p.1 += entry_bytes,
                None => places.push((tap.point.place, entry_bytes)),
            }
        }
        scope.read_back(ReadbackClass::Debug, &places);
        let (stats, words) = bytes.split_at(stats as usize);
        let mut bad = None;
        for (i, tap) in taps.into_iter().enumerate() {
            let entry: TensorStats = bytemuck::pod_read_unaligned(&stats[i * ENTRY as usize..][..ENTRY as usize]);
            let from = i * self.options.values as usize * 4;
            let reading = ProbeReading {
                point: tap.point,
                layer: tap.layer,
                position: tap.position,
                rows: tap.rows,
                cols: tap.cols,
                stats: tap.has_stats.then_some(entry),
                words: bytemuck::pod_collect_to_vec(&words[from..from + tap.words as usize * 4]),
            };
            if tap.has_stats && !entry.sound() && bad.is_none() {
                bad = Some(describe(&reading, &entry, self.options.limit));
            }
            self.readings.push(reading);
        }
        match bad.filter(|_| self.options.require_finite) {
            Some(text) => bail!(NotFinite, "{text}"),
            None => Ok(()),
        }
    }

    /// The readings that wait to be taken.
    pub(crate) fn readings(&self) -> &[ProbeReading] {
        &self.readings
    }

    /// Takes the readings.
    pub(crate) fn take(&mut self) -> Vec<ProbeReading> {
        std::mem::take(&mut self.readings)
    }
}

fn describe(r: &ProbeReading, s: &TensorStats, limit: f32) -> String {
    let layer = r.layer.map_or(String::new(), |l| format!(" of layer {l}"));
    let (row, col) = (s.first_bad / r.cols.max(1), s.first_bad % r.cols.max(1));
    format!(
        "{}{layer} at position {}: {} NaN, {} infinite, {} beyond {limit} of {} elements; the first is column {col} of position {}",
        r.point.name,
        r.position,
        s.nan,
        s.inf,
        s.over,
        s.count,
        r.position + row
    )
}
