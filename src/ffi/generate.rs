//! Generating: options, events, results.

use std::ffi::{c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::time::Instant;

use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, output, read};
use crate::ffi::text::{c_texts_in, slice_in};
use crate::ffi::{DOPPLER_NONE, guard};
use crate::session::{
    FinishReason, GenerateOptions, Generated, Piece, SamplingOptions, SegmentKind, Session, Timings, TokenEvent,
};

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
    /// Tokens that end the generation like the model's own, which they do with `ignore_eos` too; may be NULL if `n_end_tokens` is 0.
    pub end_tokens: *const u32,
    /// How many; with the model's own 64 at most.
    pub n_end_tokens: usize,
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
            end_tokens: std::ptr::null(),
            n_end_tokens: 0,
        }
    }
}

/// # Safety
/// The arrays of the options are as `slice_in` and `c_texts_in` ask.
pub(super) unsafe fn convert(o: &doppler_generate_options) -> Result<GenerateOptions> {
    // SAFETY: passed on.
    let (bias, stop) =
        unsafe { (slice_in(o.logit_bias, o.n_logit_bias, "logit_bias")?, c_texts_in(o.stop, o.n_stop, "stop")?) };
    // SAFETY: passed on.
    let end_tokens = unsafe { slice_in(o.end_tokens, o.n_end_tokens, "end_tokens")? }.to_vec();
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
        end_tokens,
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
    /// The token; DOPPLER_NONE in an event that only brings more text: of another kind than the event before it, or held back until the
    /// end.
    pub token: u32,
    /// The event's place in this generation, from 0.
    pub index: u32,
    /// What the text is: a doppler_segment_kind.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
}

/// What a part of a reply is. Marks of the model's family tell: those that are tokens of its vocabulary or stand in its chat template.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_segment_kind {
    /// For the reader.
    Content = 0,
    /// What the model thinks before it answers.
    Reasoning = 1,
    /// A call of a tool, in the form of the model's family; control tokens within it show.
    ToolCall = 2,
    /// A mark that begins or ends another part, such as "<think>". Marks that are control tokens have no text.
    Marker = 3,
}

fn segment_kind(kind: SegmentKind) -> u32 {
    let number = match kind {
        SegmentKind::Content => doppler_segment_kind::Content,
        SegmentKind::Reasoning => doppler_segment_kind::Reasoning,
        SegmentKind::ToolCall => doppler_segment_kind::ToolCall,
        SegmentKind::Marker => doppler_segment_kind::Marker,
    };
    number as u32
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
        let listener = Listener::new(|event| match on_token {
            // SAFETY: the caller vouches for the function, and that it takes its own `user`.
            Some(function) => unsafe { function(user, event) },
            None => 0,
        });
        let done = generate(&mut *object.enter()?, &options, listener)?;
        if let Some(result) = result {
            result.write(done);
        }
        Ok(())
    })
}

/// Who hears the events.
pub(super) struct Listener<F: FnMut(&doppler_token_event) -> c_int> {
    function: F,
    /// Text of the present event and its NUL; kept, so that it is not allocated for each token.
    text: Vec<u8>,
    /// Of the newest text.
    kind: SegmentKind,
    index: u32,
}

impl<F: FnMut(&doppler_token_event) -> c_int> Listener<F> {
    pub(super) fn new(function: F) -> Self {
        Self { function, text: Vec::new(), kind: SegmentKind::Content, index: 0 }
    }

    /// A token and its text; each stretch of another kind is an event of its own.
    pub(super) fn hear(&mut self, token: u32, pieces: &[Piece]) -> ControlFlow<()> {
        let none = Piece { kind: self.kind, text: String::new() };
        let pieces = if pieces.is_empty() && token != DOPPLER_NONE { std::slice::from_ref(&none) } else { pieces };
        for (i, piece) in pieces.iter().enumerate() {
            self.kind = piece.kind;
            self.tell(if i == 0 { token } else { DOPPLER_NONE }, &piece.text)?;
        }
        ControlFlow::Continue(())
    }

    fn tell(&mut self, token: u32, text: &str) -> ControlFlow<()> {
        self.text.clear();
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(0);
        let event = doppler_token_event {
            struct_size: size_of::<doppler_token_event>(),
            text: self.text.as_ptr().cast(),
            text_bytes: text.len(),
            token,
            index: self.index,
            kind: segment_kind(self.kind),
            reserved: 0,
        };
        self.index += 1;
        match (self.function)(&event) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

fn generate<F: FnMut(&doppler_token_event) -> c_int>(
    session: &mut Session,
    options: &GenerateOptions,
    mut to: Listener<F>,
) -> Result<doppler_generate_result> {
    let (started, before) = (Instant::now(), session.timings());
    let generated = session.generate(options, &mut |event: &TokenEvent| to.hear(event.token, &event.pieces))?;
    // Text held back for a stop string that did not come, when there was no token left to bring it.
    let _ = to.hear(DOPPLER_NONE, &generated.held);
    Ok(report(session, &generated, &before, started))
}

/// How a generation went that `started` when the session's times were `before`.
pub(super) fn report(
    session: &Session,
    generated: &Generated,
    before: &Timings,
    started: Instant,
) -> doppler_generate_result {
    let now = session.timings();
    let since = |f: fn(&Timings) -> u64| f(&now).saturating_sub(f(before));
    let reason = match generated.reason {
        FinishReason::EndToken => doppler_finish_reason::EndToken,
        FinishReason::StopString => doppler_finish_reason::StopString,
        FinishReason::MaxTokens => doppler_finish_reason::MaxTokens,
        FinishReason::ContextFull => doppler_finish_reason::ContextFull,
        FinishReason::Callback => doppler_finish_reason::Callback,
        FinishReason::Cancelled => doppler_finish_reason::Cancelled,
    };
    doppler_generate_result {
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
    }
}
