//! Statistics in depth: submits by label, savings, summaries as text, caches, profiles.

use std::ffi::c_char;

use crate::ffi::DOPPLER_NONE;
use crate::ffi::context::{CONTEXTS, doppler_context};
use crate::ffi::guard;
use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Result, doppler_status};
use crate::ffi::structs::{optional_slot, slot};
use crate::ffi::text::{buffer_out, c_text_in, fixed};
use crate::gpu::{PoolLabelStats, Profile, SubmitStats};

/// The submits made under one label in one phase. Times are CPU times of the submit calls, in nanoseconds. It stands in arrays, so it does not
/// grow: `reserved` is for what is added.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_submit_stats {
    /// What the submits were for, such as "decode"; NUL-terminated.
    pub label: [c_char; 32],
    /// A doppler_phase.
    pub phase: u32,
    /// 0.
    pub reserved: u32,
    /// How many.
    pub submits: u64,
    /// Dispatches in them.
    pub dispatches: u64,
    /// All calls together.
    pub total_ns: u64,
    /// Shortest call.
    pub min_ns: u64,
    /// Longest call.
    pub max_ns: u64,
    /// 0.
    pub reserved2: [u64; 2],
}

impl From<&SubmitStats> for doppler_submit_stats {
    fn from(s: &SubmitStats) -> Self {
        Self {
            label: fixed(s.label),
            phase: s.phase as u32,
            reserved: 0,
            submits: s.submits,
            dispatches: s.dispatches,
            total_ns: s.total_ns,
            min_ns: s.min_ns,
            max_ns: s.max_ns,
            reserved2: [0; 2],
        }
    }
}

/// What drawing more tokens in one submit would have saved.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_batching_saving {
    /// Submits that would not have been made.
    pub submits: u64,
    /// CPU time that submitting them took, nanoseconds. Recording and waiting come on top.
    pub submit_cpu_ns: u64,
}

/// The transient buffers borrowed under one label. It stands in arrays, so it does not grow: `reserved` is for what is added.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_pool_stats {
    /// What they were for, such as "readback"; NUL-terminated.
    pub label: [c_char; 32],
    /// On loan now. While no call runs, anything but 0 is a leak.
    pub leased: u64,
    /// Bytes of those.
    pub leased_bytes: u64,
    /// Requests so far.
    pub requests: u64,
    /// 0.
    pub reserved: [u64; 2],
}

/// What doppler_context_purge_caches() freed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_purged {
    /// Compiled pipelines.
    pub pipelines: u64,
    /// Shader modules.
    pub modules: u64,
    /// Bind-group layouts.
    pub group_layouts: u64,
    /// Pipeline layouts.
    pub pipeline_layouts: u64,
    /// Bytes of idle transient buffers.
    pub pool_bytes: u64,
}

/// GPU times of one operation. It stands in arrays, so it does not grow: `reserved` is for what is added.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_profile_row {
    /// The operation, such as "attn.qkv"; NUL-terminated.
    pub label: [c_char; 32],
    /// A doppler_phase.
    pub phase: u32,
    /// The layer, or DOPPLER_NONE outside the layers.
    pub layer: u32,
    /// Dispatches.
    pub count: u64,
    /// All together, nanoseconds by timestamp queries.
    pub total_ns: u64,
    /// Shortest.
    pub min_ns: u64,
    /// Longest.
    pub max_ns: u64,
    /// 0.
    pub reserved: [u64; 2],
}

/// How complete a profile is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_profile_info {
    /// A doppler_gpu_time_source; a profile exists only with timestamps.
    pub gpu_time_source: u32,
    /// 0.
    pub reserved: u32,
    /// Dispatches that found no free query: they are in no sum.
    pub dropped: u64,
    /// Dispatches that were measured wrongly (ends before it starts, over a minute): in no sum.
    pub invalid: u64,
    /// Dispatches that are in the sums but not in the trace.
    pub untraced: u64,
}

fn rows(profile: &Profile) -> Vec<doppler_profile_row> {
    profile
        .rows()
        .map(|r| doppler_profile_row {
            label: fixed(r.label),
            phase: r.phase as u32,
            layer: r.layer.unwrap_or(DOPPLER_NONE),
            count: r.time.count,
            total_ns: r.time.total_ns,
            min_ns: r.time.min_ns,
            max_ns: r.time.max_ns,
            reserved: [0; 2],
        })
        .collect()
}

/// # Safety
/// As [`buffer_out`].
unsafe fn submits_out(
    list: &[SubmitStats],
    to: *mut doppler_submit_stats,
    capacity: usize,
    needed: *mut usize,
) -> Result<()> {
    let list: Vec<_> = list.iter().map(doppler_submit_stats::from).collect();
    // SAFETY: passed on.
    unsafe { buffer_out(to, capacity, needed)? }.fill(&list)
}

/// The submits of a context by phase and label.
///
/// @param submits   gets the entries; NULL (with `capacity` 0) to ask for the number
/// @param capacity  entries that fit
/// @param needed    gets the number of entries, also when they do not fit; may be NULL
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_submits(
    context: *const doppler_context,
    submits: *mut doppler_submit_stats,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { submits_out(&context.gpu().counters().submits(), submits, capacity, needed) }
    })
}

/// The transient buffers of a context by label: requests, and what is on loan.
///
/// @param labels    gets the entries; NULL (with `capacity` 0) to ask for the number
/// @param capacity  entries that fit
/// @param needed    gets the number of entries, also when they do not fit; may be NULL
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_pool(
    context: *const doppler_context,
    labels: *mut doppler_pool_stats,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        let entry = |(label, s): (&'static str, PoolLabelStats)| doppler_pool_stats {
            label: fixed(label),
            leased: s.leased,
            leased_bytes: s.leased_bytes,
            requests: s.requests,
            reserved: [0; 2],
        };
        let list: Vec<_> = context.gpu().pool().labels().into_iter().map(entry).collect();
        // SAFETY: the caller vouches for the buffer.
        unsafe { buffer_out(labels, capacity, needed)? }.fill(&list)
    })
}

/// The submits of a session by phase and label; else as doppler_context_get_submits().
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_get_submits(
    session: *const doppler_session,
    submits: *mut doppler_submit_stats,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        let list = object.enter()?.counters().submits();
        // SAFETY: the caller vouches for the buffer.
        unsafe { submits_out(&list, submits, capacity, needed) }
    })
}

/// What drawing more tokens in one submit would have saved in a session's decoding so far.
///
/// @param tokens_per_submit  the number to compare with
/// @param saving             filled in
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_estimate_batching(
    session: *const doppler_session,
    tokens_per_submit: u32,
    saving: *mut doppler_batching_saving,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the pointer.
        let out = unsafe { slot(saving, "saving")? };
        let s = object.enter()?.batching_saving(tokens_per_submit);
        out.write(doppler_batching_saving { submits: s.submits, submit_cpu_ns: s.submit_cpu_ns });
        Ok(())
    })
}

/// Everything that a context has done and holds, as text of some lines for people.
///
/// @param text      gets the text with its terminating NUL; NULL (with `capacity` 0) to ask for the size
/// @param capacity  bytes that fit
/// @param needed    gets the bytes of the text with its NUL, also when it does not fit; may be NULL
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_summary(
    context: *const doppler_context,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { buffer_out(text, capacity, needed)? }.fill_text(context.stats().summary())
    })
}

/// Everything that a session has done, as text; else as doppler_context_get_summary().
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_get_summary(
    session: *const doppler_session,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(text, capacity, needed)? };
        out.fill_text(object.enter()?.stats().summary())
    })
}

/// Forgets compiled pipelines and idle transient buffers. Loaded models keep what their plans use; what is needed again is compiled again.
///
/// @param purged  gets what was freed; may be NULL
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_purge_caches(
    context: *mut doppler_context,
    purged: *mut doppler_purged,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the pointer.
        let out = unsafe { optional_slot(purged) };
        let (held, pool_bytes) = context.purge_caches();
        out.write(doppler_purged {
            pipelines: held.pipelines,
            modules: held.modules,
            group_layouts: held.group_layouts,
            pipeline_layouts: held.pipeline_layouts,
            pool_bytes,
        });
        Ok(())
    })
}

/// Starts a profile: until doppler_context_stop_profile() each GPU operation of the context is timed by itself, which makes work slower.
///
/// @return  DOPPLER_STATUS_UNSUPPORTED without timestamp queries, DOPPLER_STATUS_GUARD if the context's guard is STRICT
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_context_start_profile(context: *mut doppler_context) -> doppler_status {
    guard(|| Ok(CONTEXTS.get(context)?.start_profile()?))
}

/// Ends the profile and keeps it, in place of the one before, for the functions below.
///
/// @param info  filled in; may be NULL
/// @return      DOPPLER_STATUS_INVALID_STATE if none was started
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_stop_profile(
    context: *mut doppler_context,
    info: *mut doppler_profile_info,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the pointer.
        let out = unsafe { optional_slot(info) };
        let profile = context.stop_profile()?;
        out.write(doppler_profile_info {
            gpu_time_source: crate::ffi::stats::time_source(true),
            reserved: 0,
            dropped: profile.dropped,
            invalid: profile.invalid,
            untraced: profile.untraced,
        });
        Ok(())
    })
}

/// The rows of the profile taken last: each operation of each layer in each phase.
///
/// @param rows      gets the rows; NULL (with `capacity` 0) to ask for the number
/// @param capacity  rows that fit
/// @param needed    gets the number of rows, also when they do not fit; may be NULL
/// @return          DOPPLER_STATUS_INVALID_STATE if no profile was taken; DOPPLER_STATUS_BUFFER_TOO_SMALL
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_profile(
    context: *const doppler_context,
    rows_out: *mut doppler_profile_row,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(rows_out, capacity, needed)? };
        out.fill(&rows(context.last_profile()?.as_ref()))
    })
}

/// The profile taken last as a table for people; else as doppler_context_get_summary().
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_profile_text(
    context: *const doppler_context,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { buffer_out(text, capacity, needed)? }.fill_text(context.last_profile()?.table())
    })
}

/// Writes the profile taken last as a trace file that Perfetto and chrome://tracing open.
///
/// @param path  the file, replaced if it exists; NUL-terminated UTF-8
/// @return      DOPPLER_STATUS_INVALID_STATE if no profile was taken, DOPPLER_STATUS_IO if the file cannot be written
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_write_trace(
    context: *const doppler_context,
    path: *const c_char,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the text.
        let path = unsafe { c_text_in(path, "path")? };
        Ok(context.write_trace(path.as_ref())?)
    })
}
