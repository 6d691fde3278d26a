//! Sessions: `doppler_session`.
//!
//! A session is behind a lock that is only ever tried: a call from a callback of the same session, or from a second thread, finds it taken
//! and answers DOPPLER_STATUS_INVALID_STATE. Cancelling needs no lock.

use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::ffi::context::{doppler_guard_mode, guard_mode};
use crate::ffi::guard;
use crate::ffi::handle::Table;
use crate::ffi::model::{MODELS, doppler_model};
use crate::ffi::stats::{doppler_phase_stats, doppler_place_stats, phases, places, time_source};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, optional_slot, output, read, slot};
use crate::ffi::text::{buffer_out, doppler_message, messages_in, slice_in, text_in};
use crate::gpu::Guard;
use crate::session::{CancelHandle, DEFAULT_NGRAM, DraftSource, Model, Session, SessionOptions, Speculation};

/// A conversation with a model: a sequence of tokens and its place in the attention cache.
#[derive(Debug)]
pub struct doppler_session {
    _private: [u8; 0],
}

/// What a session handle names.
pub(crate) struct Object {
    cancel: CancelHandle,
    session: Mutex<Session>,
}

pub(crate) static SESSIONS: Table<doppler_session, Object> = Table::new("session", 3);

impl Object {
    /// A handle for a new session.
    pub(crate) fn publish(session: Session) -> *mut doppler_session {
        SESSIONS.insert(Self { cancel: session.cancel_handle(), session: Mutex::new(session) })
    }

    /// The session, unless a call is running in it.
    pub(crate) fn enter(&self) -> Result<MutexGuard<'_, Session>> {
        let refuse = |text: &str| Err(Failure::new(doppler_status::InvalidState, text));
        match self.session.try_lock() {
            Ok(session) => Ok(session),
            Err(TryLockError::WouldBlock) => refuse("the session is in the middle of another call"),
            Err(TryLockError::Poisoned(_)) => refuse("an earlier call in this session panicked: destroy it"),
        }
    }
}

/// How to create a session. Fill it with doppler_session_options_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_session_options {
    /// Set by doppler_session_options_init().
    pub struct_size: usize,
    /// Context length in tokens. 0: the model's.
    pub n_ctx: u32,
    /// Tokens drawn in one submit. They arrive together, and a cancel request waits for them. Default 1.
    pub tokens_per_submit: u32,
    /// A doppler_guard_mode. Default INHERIT.
    pub guard_mode: u32,
    /// Microseconds that the tokens of a submit may take, so that they arrive smoothly: as many are drawn as were measured to fit, one to
    /// `tokens_per_submit`. 0 (default): always `tokens_per_submit`. The text is the same.
    pub submit_time_us: u32,
    /// Who drafts tokens that the model verifies several at a time: a doppler_drafter. The text is the same with and without. Models with
    /// recurrent layers are refused. Default NONE.
    pub drafter: u32,
    /// Tokens drafted at a time, at most 15. 0 (default): 7. One less than a multiple of eight suits: rows are evaluated in eights.
    pub max_draft: u32,
    /// With DOPPLER_DRAFTER_MODEL: a smaller model whose token ids mean the same (the tables may differ by up to 128 rows at their ends). The session
    /// keeps it.
    pub draft_model: *mut doppler_model,
    /// With DOPPLER_DRAFTER_LOOKUP: the shortest run of last tokens whose earlier occurrence counts. 0 (default): 2.
    pub ngram_min: u32,
    /// The longest run that is looked for, at most 64. 0 (default): 4.
    pub ngram_max: u32,
    /// Not 0: always `max_draft` tokens. By default fewer are drafted where drafts are wrong, and none for a while where drafting was measured to be
    /// slower.
    pub fixed_draft: u32,
    /// 0.
    pub reserved2: u32,
}

/// Who drafts tokens.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_drafter {
    /// Nobody: each token is decoded.
    None = 0,
    /// The text so far: what followed the last tokens where they stood before.
    Lookup = 1,
    /// A smaller model.
    Model = 2,
}

// SAFETY: `repr(C)`, numbers and a raw pointer.
unsafe impl Versioned for doppler_session_options {
    const NAME: &'static str = "doppler_session_options";
    const FIRST: usize = std::mem::offset_of!(Self, submit_time_us) + 4;
}

impl Default for doppler_session_options {
    fn default() -> Self {
        let d = SessionOptions::default();
        Self {
            struct_size: size_of::<Self>(),
            n_ctx: d.n_ctx,
            tokens_per_submit: d.tokens_per_submit,
            guard_mode: doppler_guard_mode::Inherit as u32,
            submit_time_us: d.submit_time_us,
            drafter: doppler_drafter::None as u32,
            max_draft: 0,
            draft_model: std::ptr::null_mut(),
            ngram_min: 0,
            ngram_max: 0,
            fixed_draft: 0,
            reserved2: 0,
        }
    }
}

/// How a session is to draft.
fn speculation(o: &doppler_session_options) -> Result<Option<Speculation>> {
    const NONE: u32 = doppler_drafter::None as u32;
    const LOOKUP: u32 = doppler_drafter::Lookup as u32;
    const MODEL: u32 = doppler_drafter::Model as u32;
    let or = |n: u32, default: u32| if n == 0 { default } else { n };
    let source = match o.drafter {
        NONE => return Ok(None),
        LOOKUP => {
            let max = or(o.ngram_max, DEFAULT_NGRAM.max(o.ngram_min));
            DraftSource::Lookup { min: or(o.ngram_min, 2.min(max)), max }
        }
        MODEL if o.draft_model.is_null() => return Err(Failure::null("draft_model")),
        MODEL => DraftSource::Model(Model::clone(&*MODELS.get(o.draft_model)?)),
        other => return Err(Failure::new(doppler_status::InvalidArgument, format!("drafter {other}: 0, 1 or 2"))),
    };
    Ok(Some(Speculation { source, max_draft: o.max_draft, adaptive: o.fixed_draft == 0 }))
}

/// What a session has done since it was created or its statistics reset. Set `struct_size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_session_stats {
    /// sizeof(doppler_session_stats)
    pub struct_size: usize,
    /// This session's share of the work, by doppler_phase.
    pub phases: [doppler_phase_stats; 4],
    /// CPU times of its submit calls: entry i counts calls of 2^i to 2^(i+1) nanoseconds.
    pub submit_histogram: [u64; 32],
    /// Prompt tokens evaluated.
    pub prefill_tokens: u64,
    /// Wall time of evaluating them, nanoseconds.
    pub prefill_ns: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Those of them that came from decoding (the first of each generation comes with its prompt).
    pub decode_tokens: u64,
    /// Wall time of decoding, nanoseconds.
    pub decode_ns: u64,
    /// Wall time from the start of the latest generation to its first token, nanoseconds.
    pub first_token_ns: u64,
    /// Tokens in the session.
    pub n_tokens: u32,
    /// Those of them that are in the attention cache.
    pub cached_tokens: u32,
    /// Tokens that it can hold.
    pub n_ctx: u32,
    /// A doppler_gpu_time_source.
    pub gpu_time_source: u32,
    /// Readbacks by doppler_place; the last two are reserved and 0.
    pub places: [doppler_place_stats; 12],
    /// Tokens drafted and verified.
    pub drafted_tokens: u64,
    /// Those of them that were accepted.
    pub accepted_tokens: u64,
    /// Submits that verified drafts; each gives one token more than it accepts.
    pub verifications: u64,
    /// Wall time of drafting, a draft model's evaluation of prompts included, nanoseconds.
    pub draft_ns: u64,
    /// Accepted tokens of a verification, on average; 0 where there was none.
    pub mean_accepted: f64,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_session_stats {
    const NAME: &'static str = "doppler_session_stats";
    const FIRST: usize = std::mem::offset_of!(Self, gpu_time_source) + 4;
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_options_init(
    options: *mut doppler_session_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_session_options::default()) })
}

/// Creates a session.
///
/// @param model    the model; sessions of one model take turns on the device
/// @param options  NULL: defaults
/// @param session  gets the handle; end it with doppler_session_destroy()
/// @return         DOPPLER_STATUS_INVALID_ARGUMENT for a context longer than the model's, or a draft model of another vocabulary;
///                 DOPPLER_STATUS_UNSUPPORTED for drafts with recurrent layers; DOPPLER_STATUS_OUT_OF_MEMORY
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_create(
    model: *mut doppler_model,
    options: *const doppler_session_options,
    session: *mut *mut doppler_session,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for pointer and structure.
        let (out, o) = unsafe { (slot(session, "session")?, read(options, doppler_session_options::default())?) };
        let options = SessionOptions {
            n_ctx: o.n_ctx,
            tokens_per_submit: o.tokens_per_submit,
            submit_time_us: o.submit_time_us,
            guard: guard_mode(o.guard_mode)?.map(|mode| Guard { mode, ..Guard::default() }),
            speculation: speculation(&o)?,
        };
        out.write(Object::publish(model.open_session(&options)?));
        Ok(())
    })
}

/// Ends a session handle. A call that is running in it, on another thread or around the callback that calls this, is cancelled, and
/// the session is freed when that call returns.
///
/// @param session  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_session_destroy(session: *mut doppler_session) -> doppler_status {
    guard(|| {
        if let Some(object) = SESSIONS.remove(session)? {
            object.cancel.cancel();
        }
        Ok(())
    })
}

/// Asks the running call of a session, or else its next one, to end. Takes effect within one submit: doppler_session_generate() then succeeds with
/// reason CANCELLED, doppler_session_eval() fails with DOPPLER_STATUS_CANCELLED. doppler_session_reset() takes a request back that nothing has answered yet.
///
/// Threads: any, at any time, callbacks included.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_session_cancel(session: *const doppler_session) -> doppler_status {
    guard(|| {
        SESSIONS.get(session)?.cancel.cancel();
        Ok(())
    })
}

/// Adds text to the end of a session. Nothing is evaluated yet. The first text gets a BOS token in front where the model wants one.
///
/// @param text           UTF-8, not NUL-terminated; may be NULL if `text_bytes` is 0
/// @param text_bytes     its length
/// @param parse_special  not 0: the text of control tokens becomes those tokens. Do not set it for text of strangers.
/// @param n_added        gets the number of tokens added; may be NULL
/// @return               DOPPLER_STATUS_CONTEXT_FULL (nothing is added), DOPPLER_STATUS_BAD_UTF8
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_append_text(
    session: *mut doppler_session,
    text: *const c_char,
    text_bytes: usize,
    parse_special: u32,
    n_added: *mut u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for text and pointer.
        let (text, n_added) = unsafe { (text_in(text, text_bytes, "text")?, optional_slot(n_added)) };
        n_added.write(object.enter()?.append_text(text, parse_special != 0)?);
        Ok(())
    })
}

/// Adds tokens to the end of a session. Nothing is evaluated yet.
///
/// @param tokens    may be NULL if `n_tokens` is 0
/// @param n_tokens  how many
/// @return          DOPPLER_STATUS_CONTEXT_FULL or DOPPLER_STATUS_INVALID_ARGUMENT (a token outside the vocabulary); nothing is added
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_append_tokens(
    session: *mut doppler_session,
    tokens: *const u32,
    n_tokens: usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the tokens.
        let tokens = unsafe { slice_in(tokens, n_tokens, "tokens")? };
        Ok(object.enter()?.append_tokens(tokens)?)
    })
}

/// Adds messages to the conversation of a session, and renders it through the model's chat template. What the session holds already stays, only
/// what is new is evaluated later. Replies become part of the conversation by themselves: doppler_session_generate() adds them.
///
/// @param messages               the new messages; may be NULL if `n_messages` is 0
/// @param n_messages             how many
/// @param add_generation_prompt  not 0: open the assistant's turn, as is wanted before doppler_session_generate()
/// @param n_added                gets the number of tokens that are new; may be NULL
/// @return                       DOPPLER_STATUS_CONTEXT_FULL, DOPPLER_STATUS_UNSUPPORTED (no template), DOPPLER_STATUS_TEMPLATE; the conversation is then
///                               as before
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_append_messages(
    session: *mut doppler_session,
    messages: *const doppler_message,
    n_messages: usize,
    add_generation_prompt: u32,
    n_added: *mut u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for messages and pointer.
        let (messages, n_added) = unsafe { (messages_in(messages, n_messages)?, optional_slot(n_added)) };
        n_added.write(object.enter()?.append_messages(&messages, add_generation_prompt != 0)?);
        Ok(())
    })
}

/// Adds tokens and evaluates them with all their logits: row i holds the logits of what follows token i. Tokens that were appended before
/// are evaluated first. Budgets of the guard hold for those; the logits themselves are read back as often as they have to be.
///
/// @param tokens    may be NULL if `n_tokens` is 0
/// @param n_tokens  how many
/// @param logits    gets `n_tokens` rows of `n_vocab` numbers, row by row. If the call fails after it began, the content is undefined.
/// @param capacity  numbers that fit
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (found before any work), DOPPLER_STATUS_CONTEXT_FULL, DOPPLER_STATUS_INVALID_ARGUMENT,
///                  DOPPLER_STATUS_CANCELLED. The session then holds the tokens it had.
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_eval(
    session: *mut doppler_session,
    tokens: *const u32,
    n_tokens: usize,
    logits: *mut f32,
    capacity: usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the tokens.
        let tokens = unsafe { slice_in(tokens, n_tokens, "tokens")? };
        if logits.is_null() {
            return Err(Failure::null("logits"));
        }
        let mut session = object.enter()?;
        let n_vocab = session.model().info().n_vocab as usize;
        let needed = n_vocab.saturating_mul(n_tokens);
        if capacity < needed {
            let text = format!("logits has room for {capacity} numbers, {n_tokens} x {n_vocab} = {needed} are needed");
            return Err(Failure::new(doppler_status::BufferTooSmall, text));
        }
        let mut at = 0;
        session.eval(tokens, &mut |rows| {
            let n = rows.len().min(needed - at);
            // SAFETY: at + n <= needed <= capacity, which the caller vouches for; bytes have no alignment.
            unsafe {
                let to = logits.cast::<u8>().add(at * size_of::<f32>());
                std::ptr::copy_nonoverlapping(rows.as_ptr().cast::<u8>(), to, n * size_of::<f32>());
            }
            at += n;
            Ok(())
        })?;
        Ok(())
    })
}

/// The tokens of a session, generated ones included.
///
/// @param tokens    gets the tokens; NULL (with `capacity` 0) to ask for the number
/// @param capacity  tokens that fit
/// @param needed    gets the number of tokens, also when they do not fit; may be NULL
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_get_tokens(
    session: *const doppler_session,
    tokens: *mut u32,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(tokens, capacity, needed)? };
        out.fill(object.enter()?.tokens())
    })
}

/// How many tokens a session holds.
///
/// @param length  gets the number
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_get_length(
    session: *const doppler_session,
    length: *mut u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the pointer.
        let length = unsafe { slot(length, "length")? };
        length.write(object.enter()?.tokens().len() as u32);
        Ok(())
    })
}

/// Forgets everything said: the session is as new. Its statistics go on. A cancel request that nothing has answered yet is forgotten too.
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_session_reset(session: *mut doppler_session) -> doppler_status {
    guard(|| {
        SESSIONS.get(session)?.enter()?.reset();
        Ok(())
    })
}

/// Keeps the first tokens and forgets the rest. The conversation of doppler_session_append_messages() starts over. Models with sliding windows
/// or recurrent layers cannot go back to any place: some of the tokens that are kept may be evaluated again with the next call that evaluates.
///
/// @param n_tokens  how many to keep
/// @return          DOPPLER_STATUS_INVALID_ARGUMENT if there are fewer
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_session_truncate(session: *mut doppler_session, n_tokens: u32) -> doppler_status {
    guard(|| Ok(SESSIONS.get(session)?.enter()?.truncate(n_tokens)?))
}

/// Counters and times of a session. With `gpu_timing` this reads times back from the device.
///
/// @param stats  filled in; set its `struct_size`
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_get_stats(
    session: *const doppler_session,
    stats: *mut doppler_session_stats,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the structure.
        let out = unsafe { output(stats)? };
        let session = object.enter()?;
        let s = session.stats();
        out.write(doppler_session_stats {
            struct_size: size_of::<doppler_session_stats>(),
            phases: phases(&s.counters),
            submit_histogram: s.counters.submit_histogram,
            prefill_tokens: s.prefill_tokens,
            prefill_ns: s.prefill_ns,
            generated_tokens: s.generated_tokens,
            decode_tokens: s.decode_tokens,
            decode_ns: s.decode_ns,
            first_token_ns: s.first_token_ns,
            n_tokens: s.tokens,
            cached_tokens: s.cached_tokens,
            n_ctx: session.n_ctx(),
            gpu_time_source: time_source(s.gpu_timed),
            places: places(&s.counters),
            drafted_tokens: s.speculation.drafted,
            accepted_tokens: s.speculation.accepted,
            verifications: s.speculation.verifications,
            draft_ns: s.speculation.draft_ns,
            mean_accepted: s.speculation.mean_accepted(),
        });
        Ok(())
    })
}

/// Sets the statistics of a session to zero.
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_session_reset_stats(session: *mut doppler_session) -> doppler_status {
    guard(|| {
        SESSIONS.get(session)?.enter()?.reset_stats();
        Ok(())
    })
}
