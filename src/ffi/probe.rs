//! Probes: looking at a session's intermediate tensors.

use std::ffi::c_char;

use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::doppler_status;
use crate::ffi::structs::{Versioned, init, read};
use crate::ffi::text::{buffer_out, c_texts_in, fixed};
use crate::ffi::{DOPPLER_NONE, guard};
use crate::session::{ProbeOptions, ProbeReading};

/// What to look at. Fill it with doppler_probe_options_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_probe_options {
    /// Set by doppler_probe_options_init().
    pub struct_size: usize,
    /// Names of the points, NUL-terminated: "embed", "attn.norm", "attn.qkv", "attn.q", "kv.table", "mix.in", "mix.conv", "mix.scan",
    /// "attn.heads", "attn.residual", "ffn.norm", "moe.router", "moe.weights", "ffn.inner", "ffn.residual", "output.norm", "logits", "sample.picked", "stop.state". Read during the call.
    pub points: *const *const c_char,
    /// How many; 0: all.
    pub n_points: usize,
    /// First layer. Default 0.
    pub first_layer: u32,
    /// Last layer; DOPPLER_NONE: the model's last. Default DOPPLER_NONE.
    pub last_layer: u32,
    /// Magnitude beyond which a finite element counts as bad. Default: the largest float.
    pub limit: f32,
    /// Not 0: calls end with DOPPLER_STATUS_NOT_FINITE at the first tensor with a bad element.
    pub require_finite: u32,
}

// SAFETY: `repr(C)`, numbers and raw pointers.
unsafe impl Versioned for doppler_probe_options {
    const NAME: &'static str = "doppler_probe_options";
    const FIRST: usize = std::mem::offset_of!(Self, require_finite) + 4;
}

impl Default for doppler_probe_options {
    fn default() -> Self {
        let d = ProbeOptions::default();
        Self {
            struct_size: size_of::<Self>(),
            points: std::ptr::null(),
            n_points: 0,
            first_layer: 0,
            last_layer: DOPPLER_NONE,
            limit: d.limit,
            require_finite: d.require_finite.into(),
        }
    }
}

/// Values that a reading shows of its tensor.
const VALUES: usize = 8;

/// What a probe saw: one tensor of one submit. It stands in arrays, so it does not grow: `reserved` is for what is added.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_probe_reading {
    /// Where; NUL-terminated.
    pub point: [c_char; 32],
    /// The layer, or DOPPLER_NONE.
    pub layer: u32,
    /// Position of the first row in the session.
    pub position: u32,
    /// Rows (tokens).
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// 1 if the tensor holds floats and has statistics; 0 if it holds words: then only `words` is filled in.
    pub has_stats: u32,
    /// NaN in it.
    pub nan: u32,
    /// Infinities in it.
    pub inf: u32,
    /// Finite elements beyond the limit.
    pub over: u32,
    /// Number, by row and column, of the first element that is not finite or beyond the limit; DOPPLER_NONE: there is none.
    pub first_bad: u32,
    /// Smallest finite element.
    pub min: f32,
    /// Largest finite element.
    pub max: f32,
    /// Entries of `words` in use.
    pub n_words: u32,
    /// Mean of the finite elements.
    pub mean: f64,
    /// Root of their mean square.
    pub rms: f64,
    /// The first values of the first row, as bits: floats where `has_stats` is 1.
    pub words: [u32; 8],
    /// 0.
    pub reserved: [u64; 2],
}

impl From<&ProbeReading> for doppler_probe_reading {
    fn from(r: &ProbeReading) -> Self {
        let s = r.stats.unwrap_or_default();
        Self {
            point: fixed(r.point.name),
            layer: r.layer.unwrap_or(DOPPLER_NONE),
            position: r.position,
            rows: r.rows,
            cols: r.cols,
            has_stats: r.stats.is_some().into(),
            nan: s.nan,
            inf: s.inf,
            over: s.over,
            first_bad: s.first_bad,
            min: s.min,
            max: s.max,
            n_words: r.words.len().min(VALUES) as u32,
            mean: s.mean(),
            rms: s.rms(),
            words: std::array::from_fn(|i| r.words.get(i).copied().unwrap_or(0)),
            reserved: [0; 2],
        }
    }
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_probe_options_init(
    options: *mut doppler_probe_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_probe_options::default()) })
}

/// Looks at a session's tensors from now on. Statistics are made on the GPU in the same submit; while a probe is set, decoding runs one token a
/// submit and is slower. Under a STRICT guard calls then end with DOPPLER_STATUS_GUARD before any work.
///
/// @param options  NULL: look no longer
/// @return         DOPPLER_STATUS_INVALID_ARGUMENT for an unknown point or a layer that the model does not have
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_set_probe(
    session: *mut doppler_session,
    options: *const doppler_probe_options,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        if options.is_null() {
            return Ok(object.enter()?.set_probe(None)?);
        }
        // SAFETY: the caller vouches for structure and texts.
        let (o, points) = unsafe {
            let o = read(options, doppler_probe_options::default())?;
            (o, c_texts_in(o.points, o.n_points, "points")?)
        };
        let mut session = object.enter()?;
        let last = match o.last_layer {
            DOPPLER_NONE => session.model().spec().layers.len() as u32 - 1,
            n => n,
        };
        let options = ProbeOptions {
            points,
            layers: Some((o.first_layer, last)),
            values: VALUES as u32,
            limit: o.limit,
            require_finite: o.require_finite != 0,
        };
        Ok(session.set_probe(Some(options))?)
    })
}

/// What the probe has seen since the readings were last taken, in order. Getting them takes them; asking for the number does not. At most
/// 131,072 wait: then generating and evaluating fail with DOPPLER_STATUS_INVALID_STATE until they are taken.
///
/// @param readings  gets the readings; NULL (with `capacity` 0) to ask for the number
/// @param capacity  readings that fit
/// @param needed    gets the number of readings, also when they do not fit; may be NULL
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written, the readings stay)
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_take_readings(
    session: *mut doppler_session,
    readings: *mut doppler_probe_reading,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(readings, capacity, needed)? };
        let mut session = object.enter()?;
        let list: Vec<_> = session.readings().iter().map(doppler_probe_reading::from).collect();
        out.fill(&list)?;
        if !readings.is_null() {
            session.take_readings();
        }
        Ok(())
    })
}
