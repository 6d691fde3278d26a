//! Sessions: `doppler_session`.
//!
//! A session is behind a lock that is only ever tried: a call from a callback of the same session, or from a second thread, finds it taken
//! and answers DOPPLER_STATUS_INVALID_STATE. Cancelling needs no lock.

use std::ffi::{c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Instant;

use crate::ffi::context::{doppler_guard_mode, guard_mode};
use crate::ffi::handle::Table;
use crate::ffi::model::{MODELS, doppler_model};
use crate::ffi::stats::{doppler_phase_stats, phases, time_source};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, optional_slot, output, read, slot};
use crate::ffi::text::{buffer_out, c_texts_in, doppler_message, messages_in, slice_in, text_in};
use crate::ffi::{DOPPLER_NONE, guard};
use crate::gpu::Guard;
use crate::session::{
    CancelHandle, FinishReason, GenerateOptions, SamplingOptions, Session, SessionOptions, Timings, TokenEvent,
};

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

static SESSIONS: Table<doppler_session, Object> = Table::new("session", 3);

impl Object {
    fn enter(&self) -> Result<MutexGuard<'_, Session>> {
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
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_session_options {
    const NAME: &'static str = "doppler_session_options";
    const FIRST: usize = std::mem::offset_of!(Self, reserved) + 4;
}

impl Default for doppler_session_options {
    fn default() -> Self {
        let d = SessionOptions::default();
        Self {
            struct_size: size_of::<Self>(),
            n_ctx: d.n_ctx,
            tokens_per_submit: d.tokens_per_submit,
            guard_mode: doppler_guard_mode::Inherit as u32,
            reserved: 0,
        }
    }
}

/// Added to the logit of one token.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_logit_bias {
    /// The token.
    pub token: u32,
    /// Finite, or -INFINITY to forbid the token.
    pub bias: f32,
}

/// How to generate. Fill it with doppler_generate_options_init(). What it points to is only read during the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_generate_options {
    /// Set by doppler_generate_options_init().
    pub struct_size: usize,
    /// Tokens to generate, at most. 0 (default): as many as the context holds.
    pub max_tokens: u32,
    /// Divides the logits before the draw, 0 to 100. 0 takes the most likely token every time. Default 0.8.
    pub temperature: f32,
    /// Keeps the most likely tokens, this many. 0: all. Default 40.
    pub top_k: u32,
    /// Keeps the shortest list of most likely tokens that has this share of the probability, 0 to 1. 1: all. Default 0.95.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one, 0 to 1. 0: none. Default 0.05.
    pub min_p: f32,
    /// Divides the positive logits of recent tokens, multiplies the negative ones, 0.01 to 100. Default 1: off.
    pub repeat_penalty: f32,
    /// Subtracted from a logit for each recent occurrence of its token, -100 to 100. Default 0.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of a token that occurred recently, -100 to 100. Default 0.
    pub presence_penalty: f32,
    /// How many of the newest tokens, prompt included, are "recent". 0: no penalties. Default 64.
    pub penalty_last_n: u32,
    /// Not 0: do not stop at tokens that end a reply.
    pub ignore_eos: u32,
    /// The same seed gives the same text. Default 0.
    pub seed: u64,
    /// Entries for single tokens, each token at most once; may be NULL if `n_logit_bias` is 0.
    pub logit_bias: *const doppler_logit_bias,
    /// How many, at most 256.
    pub n_logit_bias: usize,
    /// Texts that end the generation and do not appear in it, NUL-terminated UTF-8; may be NULL if `n_stop` is 0.
    pub stop: *const *const c_char,
    /// How many.
    pub n_stop: usize,
    /// Not 0: show control tokens in the text.
    pub render_special: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, numbers and raw pointers.
unsafe impl Versioned for doppler_generate_options {
    const NAME: &'static str = "doppler_generate_options";
    const FIRST: usize = std::mem::offset_of!(Self, reserved) + 4;
}

impl Default for doppler_generate_options {
    fn default() -> Self {
        let d = GenerateOptions::default();
        let s = &d.sampling;
        Self {
            struct_size: size_of::<Self>(),
            max_tokens: d.max_tokens,
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repeat_penalty: s.repeat_penalty,
            frequency_penalty: s.frequency_penalty,
            presence_penalty: s.presence_penalty,
            penalty_last_n: s.penalty_last_n,
            ignore_eos: d.ignore_eos.into(),
            seed: s.seed,
            logit_bias: std::ptr::null(),
            n_logit_bias: 0,
            stop: std::ptr::null(),
            n_stop: 0,
            render_special: d.render_special.into(),
            reserved: 0,
        }
    }
}

/// # Safety
/// The arrays of the options are as `slice_in` and `c_texts_in` ask.
unsafe fn convert(o: &doppler_generate_options) -> Result<GenerateOptions> {
    // SAFETY: passed on.
    let (bias, stop) =
        unsafe { (slice_in(o.logit_bias, o.n_logit_bias, "logit_bias")?, c_texts_in(o.stop, o.n_stop, "stop")?) };
    if let Some(i) = stop.iter().position(String::is_empty) {
        return Err(Failure::new(doppler_status::InvalidArgument, format!("stop[{i}] is empty")));
    }
    Ok(GenerateOptions {
        max_tokens: o.max_tokens,
        sampling: SamplingOptions {
            temperature: o.temperature,
            top_k: o.top_k,
            top_p: o.top_p,
            min_p: o.min_p,
            repeat_penalty: o.repeat_penalty,
            frequency_penalty: o.frequency_penalty,
            presence_penalty: o.presence_penalty,
            penalty_last_n: o.penalty_last_n,
            seed: o.seed,
            logit_bias: bias.iter().map(|b| (b.token, b.bias)).collect(),
        },
        stop,
        ignore_eos: o.ignore_eos != 0,
        render_special: o.render_special != 0,
    })
}

/// Text as it arrives. Valid during the callback. New fields are added at the end.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_token_event {
    /// sizeof(doppler_token_event) of the library.
    pub struct_size: usize,
    /// Text that became certain with this token: whole UTF-8 characters, possibly none, NUL-terminated. Never part of a stop string.
    /// The texts of all events, joined, are the reply.
    pub text: *const c_char,
    /// Its length in bytes, without the NUL.
    pub text_bytes: usize,
    /// The token; DOPPLER_NONE in a last event that only brings text held back until the end.
    pub token: u32,
    /// Its place in this generation, from 0.
    pub index: u32,
}

/// Hears each token of a generation, on the thread that generates. Not 0 ends the generation (reason CALLBACK); the token it was called for
/// stays in the session. Calls into the same session answer DOPPLER_STATUS_INVALID_STATE, except doppler_session_cancel() and
/// doppler_session_destroy(). It must return: no exception and no longjmp may leave it.
pub type doppler_token_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, event: *const doppler_token_event) -> c_int>;

/// Why a generation ended.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_finish_reason {
    /// The model ended its reply.
    EndToken = 0,
    /// A stop string was met.
    StopString = 1,
    /// `max_tokens` were generated.
    MaxTokens = 2,
    /// The context is full.
    ContextFull = 3,
    /// The callback asked for it.
    Callback = 4,
    /// doppler_session_cancel() was called, or the session destroyed.
    Cancelled = 5,
}

/// How a generation went. Set `struct_size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_generate_result {
    /// sizeof(doppler_generate_result)
    pub struct_size: usize,
    /// A doppler_finish_reason.
    pub reason: u32,
    /// Which stop string was met, by its place in the options; else DOPPLER_NONE.
    pub stop_string: u32,
    /// Tokens generated, an end token included.
    pub n_tokens: u32,
    /// Prompt tokens that had to be evaluated first.
    pub prefill_tokens: u32,
    /// Wall time of evaluating them, nanoseconds.
    pub prefill_ns: u64,
    /// Wall time from the start of the call to the first token, nanoseconds.
    pub first_token_ns: u64,
    /// Tokens that came after the first one.
    pub decode_tokens: u64,
    /// Wall time of decoding them, without the callbacks, nanoseconds.
    pub decode_ns: u64,
    /// Wall time of the call, callbacks included, nanoseconds.
    pub total_ns: u64,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_generate_result {
    const NAME: &'static str = "doppler_generate_result";
    const FIRST: usize = std::mem::offset_of!(Self, total_ns) + 8;
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

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_generate_options_init(
    options: *mut doppler_generate_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_generate_options::default()) })
}

/// Creates a session.
///
/// @param model    the model; sessions of one model take turns on the device
/// @param options  NULL: defaults
/// @param session  gets the handle; end it with doppler_session_destroy()
/// @return         DOPPLER_STATUS_INVALID_ARGUMENT for a context longer than the model's, DOPPLER_STATUS_OUT_OF_MEMORY
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
            guard: guard_mode(o.guard_mode)?.map(|mode| Guard { mode, ..Guard::default() }),
        };
        let session = model.open_session(&options)?;
        out.write(SESSIONS.insert(Object { cancel: session.cancel_handle(), session: Mutex::new(session) }));
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

/// Generates until something ends it, and returns then. The tokens become part of the session, so the next call goes on from there.
///
/// @param options   NULL: defaults
/// @param on_token  hears each token; may be NULL
/// @param user      handed to `on_token`
/// @param result    filled in on success; set its `struct_size`; may be NULL
/// @return          DOPPLER_STATUS_INVALID_STATE in an empty session, or from a callback of the same session; DOPPLER_STATUS_INVALID_ARGUMENT names
///                  the option at fault; DOPPLER_STATUS_GUARD for a broken budget in strict mode. Being cancelled is no failure: see `reason`.
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_generate(
    session: *mut doppler_session,
    options: *const doppler_generate_options,
    on_token: doppler_token_callback,
    user: *mut c_void,
    result: *mut doppler_generate_result,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the structures and what the options point to.
        let (options, result) = unsafe {
            let result = if result.is_null() { None } else { Some(output(result)?) };
            (convert(&read(options, doppler_generate_options::default())?)?, result)
        };
        // SAFETY: the caller vouches for the function, and that it takes its own `user`.
        let listener = unsafe { Listener::new(on_token, user) };
        let done = generate(&mut *object.enter()?, &options, listener)?;
        if let Some(result) = result {
            result.write(done);
        }
        Ok(())
    })
}

/// Who hears the events.
struct Listener {
    function: doppler_token_callback,
    user: *mut c_void,
    /// Text of the present event and its NUL; kept, so that it is not allocated for each token.
    text: Vec<u8>,
    delivered: usize,
    index: u32,
}

impl Listener {
    /// # Safety
    /// `function` is NULL or may be called with `user`, as long as this lives.
    unsafe fn new(function: doppler_token_callback, user: *mut c_void) -> Self {
        Self { function, user, text: Vec::new(), delivered: 0, index: 0 }
    }

    fn hear(&mut self, token: u32, text: &str) -> ControlFlow<()> {
        self.delivered += text.len();
        let Some(function) = self.function else { return ControlFlow::Continue(()) };
        self.text.clear();
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(0);
        let event = doppler_token_event {
            struct_size: size_of::<doppler_token_event>(),
            text: self.text.as_ptr().cast(),
            text_bytes: text.len(),
            token,
            index: self.index,
        };
        self.index += 1;
        // SAFETY: by the contract of `new`.
        match unsafe { function(self.user, &event) } {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

fn generate(session: &mut Session, options: &GenerateOptions, mut to: Listener) -> Result<doppler_generate_result> {
    let (started, before) = (Instant::now(), session.timings());
    let generated = session.generate(options, &mut |event: &TokenEvent| to.hear(event.token, &event.text))?;
    // Text held back for a stop string that did not come, when there was no token left to bring it.
    if let Some(rest) = generated.text.get(to.delivered..).filter(|rest| !rest.is_empty()) {
        let _ = to.hear(DOPPLER_NONE, rest);
    }
    let now = session.timings();
    let since = |f: fn(&Timings) -> u64| f(&now).saturating_sub(f(&before));
    let reason = match generated.reason {
        FinishReason::EndToken => doppler_finish_reason::EndToken,
        FinishReason::StopString => doppler_finish_reason::StopString,
        FinishReason::MaxTokens => doppler_finish_reason::MaxTokens,
        FinishReason::ContextFull => doppler_finish_reason::ContextFull,
        FinishReason::Callback => doppler_finish_reason::Callback,
        FinishReason::Cancelled => doppler_finish_reason::Cancelled,
    };
    Ok(doppler_generate_result {
        struct_size: size_of::<doppler_generate_result>(),
        reason: reason as u32,
        stop_string: generated.stop_string.unwrap_or(DOPPLER_NONE),
        n_tokens: generated.tokens.len() as u32,
        prefill_tokens: since(|t| t.prefill_tokens) as u32,
        prefill_ns: since(|t| t.prefill_ns),
        // Not a difference: the time of the latest generation, if it came as far as a token.
        first_token_ns: if generated.tokens.is_empty() { 0 } else { now.first_token_ns },
        decode_tokens: since(|t| t.decode_tokens),
        decode_ns: since(|t| t.decode_ns),
        total_ns: started.elapsed().as_nanos() as u64,
    })
}

/// Adds tokens and evaluates them with all their logits: row i holds the logits of what follows token i. Tokens that were appended before
/// are evaluated first.
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

/// Keeps the first tokens and forgets the rest. The conversation of doppler_session_append_messages() starts over.
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
