//! Guards: what decoding and prompts may cost, and what happens when they cost more.

use crate::ffi::context::{CONTEXTS, doppler_context, doppler_guard_mode, guard_mode};
use crate::ffi::guard;
use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, output, read};
use crate::gpu::{Budget, Guard, GuardMode};

/// Guards ready made.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_guard_preset {
    /// For shipped programs: STRICT, with the production budgets.
    Production = 0,
    /// For development: WARN.
    Debug = 1,
    /// For measuring: OFF. Counters count as always.
    Benchmark = 2,
}

/// Upper limits for one submit and what belongs to it. UINT64_MAX: no limit. This structure stands inside others, so it does not grow.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_budget {
    /// Submits. Production: 1.
    pub submits: u64,
    /// Required readbacks (not debug, not profile). Production: 1.
    pub readbacks: u64,
    /// Bytes read back for each token drawn. Production: 16.
    pub readback_bytes_per_token: u64,
    /// Buffers created. Production: 0.
    pub buffers: u64,
    /// Bind groups created. Production: 0.
    pub bind_groups: u64,
    /// Pipelines created. Production: 0.
    pub pipelines: u64,
}

impl From<Budget> for doppler_budget {
    fn from(b: Budget) -> Self {
        Self {
            submits: b.submits,
            readbacks: b.readbacks,
            readback_bytes_per_token: b.readback_bytes_per_token,
            buffers: b.buffers,
            bind_groups: b.bind_groups,
            pipelines: b.pipelines,
        }
    }
}

impl From<doppler_budget> for Budget {
    fn from(b: doppler_budget) -> Self {
        Self {
            submits: b.submits,
            readbacks: b.readbacks,
            readback_bytes_per_token: b.readback_bytes_per_token,
            buffers: b.buffers,
            bind_groups: b.bind_groups,
            pipelines: b.pipelines,
        }
    }
}

/// A guard: a mode and two budgets. Fill it with doppler_guard_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_guard {
    /// Set by doppler_guard_init().
    pub struct_size: usize,
    /// A doppler_guard_mode, but not INHERIT.
    pub mode: u32,
    /// 0.
    pub reserved: u32,
    /// For each submit of decoding.
    pub decode: doppler_budget,
    /// For each submit of a prompt; a chunk from which no token is drawn reads nothing back.
    pub prefill: doppler_budget,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_guard {
    const NAME: &'static str = "doppler_guard";
    const FIRST: usize = std::mem::offset_of!(Self, prefill) + size_of::<doppler_budget>();
}

impl From<Guard> for doppler_guard {
    fn from(g: Guard) -> Self {
        let mode = match g.mode {
            GuardMode::Off => doppler_guard_mode::Off,
            GuardMode::Warn => doppler_guard_mode::Warn,
            GuardMode::Strict => doppler_guard_mode::Strict,
        };
        Self {
            struct_size: size_of::<Self>(),
            mode: mode as u32,
            reserved: 0,
            decode: g.decode.into(),
            prefill: g.prefill.into(),
        }
    }
}

fn convert(g: doppler_guard) -> Result<Guard> {
    let Some(mode) = guard_mode(g.mode)? else {
        return Err(Failure::new(doppler_status::InvalidArgument, "mode: pass NULL for a session to inherit"));
    };
    Ok(Guard { mode, decode: g.decode.into(), prefill: g.prefill.into() })
}

/// Fills a guard from a preset.
///
/// @param values       filled in
/// @param struct_size  sizeof *values
/// @param preset       a doppler_guard_preset
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_guard_init(
    values: *mut doppler_guard,
    struct_size: usize,
    preset: u32,
) -> doppler_status {
    use doppler_guard_preset as P;
    guard(|| {
        let preset = match preset {
            n if n == P::Production as u32 => Guard::PRODUCTION,
            n if n == P::Debug as u32 => Guard::DEBUG,
            n if n == P::Benchmark as u32 => Guard::BENCHMARK,
            n => return Err(Failure::new(doppler_status::InvalidArgument, format!("preset is {n}"))),
        };
        // SAFETY: the caller vouches for the structure.
        unsafe { init(values, struct_size, preset.into()) }
    })
}

/// Replaces the guard of a context, from now on; sessions with a guard of their own keep theirs.
///
/// @param new_guard  copied
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_set_guard(
    context: *mut doppler_context,
    new_guard: *const doppler_guard,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        if new_guard.is_null() {
            return Err(Failure::null("guard"));
        }
        // SAFETY: the caller vouches for the structure.
        let new = unsafe { read(new_guard, Guard::default().into())? };
        context.set_guard(convert(new)?);
        Ok(())
    })
}

/// The guard of a context.
///
/// @param current  filled in; set its `struct_size`
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_guard(
    context: *const doppler_context,
    current: *mut doppler_guard,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the structure.
        unsafe { output(current)? }.write(context.guard().into());
        Ok(())
    })
}

/// Gives a session a guard of its own.
///
/// @param new_guard  copied; NULL: the context's guard, whatever it is at the time
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_set_guard(
    session: *mut doppler_session,
    new_guard: *const doppler_guard,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        let new = match new_guard.is_null() {
            true => None,
            // SAFETY: the caller vouches for the structure.
            false => Some(convert(unsafe { read(new_guard, Guard::default().into())? })?),
        };
        object.enter()?.set_guard(new);
        Ok(())
    })
}
