//! Choosing between continuations: `doppler_session_choose`.

use std::ffi::c_char;

use crate::ffi::guard;
use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, optional_slot, read};
use crate::ffi::text::{c_texts_in, lists_in, slice_in};
use crate::session::{Choice, Ranking, Score};

/// What decides between continuations.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_ranking {
    /// The likelihood of the whole continuation: the longer it is, the less likely.
    Sum = 0,
    /// The likelihood by token, for continuations of different lengths.
    Mean = 1,
    /// The likelihood of the first token.
    First = 2,
}

/// How to choose. Fill it with doppler_choose_options_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_choose_options {
    /// Set by doppler_choose_options_init().
    pub struct_size: usize,
    /// A doppler_ranking. Default SUM.
    pub ranking: u32,
    /// Not 0: the text of control tokens becomes those tokens. Default 0.
    pub parse_special: u32,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_choose_options {
    const NAME: &'static str = "doppler_choose_options";
    const FIRST: usize = std::mem::offset_of!(Self, parse_special) + 4;
}

impl Default for doppler_choose_options {
    fn default() -> Self {
        Self { struct_size: size_of::<Self>(), ranking: doppler_ranking::Sum as u32, parse_special: 0 }
    }
}

fn ranking(number: u32) -> Result<Ranking> {
    match number {
        n if n == doppler_ranking::Sum as u32 => Ok(Ranking::Sum),
        n if n == doppler_ranking::Mean as u32 => Ok(Ranking::Mean),
        n if n == doppler_ranking::First as u32 => Ok(Ranking::First),
        n => Err(Failure::new(doppler_status::InvalidArgument, format!("ranking is {n}"))),
    }
}

/// How likely a continuation is, in natural logarithms. It stands in arrays, so it does not grow.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_score {
    /// ln p of the whole continuation: the sum over its tokens. -INFINITY for what the model excludes.
    pub log_likelihood: f64,
    /// The same, divided by the number of tokens.
    pub mean: f64,
    /// ln p of the first token.
    pub first: f64,
    /// Tokens of the continuation.
    pub n_tokens: u32,
    /// 0.
    pub reserved: [u32; 3],
}

impl From<&Score> for doppler_score {
    fn from(s: &Score) -> Self {
        Self {
            log_likelihood: s.log_likelihood(),
            mean: s.mean(),
            first: s.first(),
            n_tokens: s.log_probs.len() as u32,
            reserved: [0; 3],
        }
    }
}

/// Writes scores to an array of the caller with room for all of them.
///
/// # Safety
/// `to` is NULL or points to as many writable elements as there are scores.
unsafe fn write_scores(choice: &Choice, to: *mut doppler_score) {
    for (i, score) in choice.scores.iter().enumerate().filter(|_| !to.is_null()) {
        // SAFETY: `i` is below the number of scores; no alignment is assumed.
        unsafe { to.add(i).write_unaligned(score.into()) };
    }
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_choose_options_init(
    options: *mut doppler_choose_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_choose_options::default()) })
}

/// Says how likely each of several texts is as the continuation of what a session holds, and which is best. The session's own tokens are evaluated once;
/// the continuations share them and are evaluated together, as many in one submit as fit (models with recurrent layers: one after the other). Only
/// one number a token is read back. The session is as before, but that its tokens are evaluated. Each text is tokenized by itself, as
/// doppler_session_append_text() would append it: where words begin with a space, so should a continuation that begins one.
///
/// @param continuations    NUL-terminated UTF-8, each of one token at least
/// @param n_continuations  how many, 1 at least
/// @param options          NULL: defaults
/// @param scores           gets `n_continuations` scores; may be NULL
/// @param best             gets the place of the best one, the first of several that are equal; may be NULL
/// @return                 DOPPLER_STATUS_INVALID_STATE in an empty session; DOPPLER_STATUS_INVALID_ARGUMENT or DOPPLER_STATUS_CONTEXT_FULL name the continuation at
///                         fault; DOPPLER_STATUS_CANCELLED; DOPPLER_STATUS_GUARD for a broken budget in strict mode. Nothing is written then.
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_choose(
    session: *mut doppler_session,
    continuations: *const *const c_char,
    n_continuations: usize,
    options: *const doppler_choose_options,
    scores: *mut doppler_score,
    best: *mut u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the texts, the structure and the pointer.
        let (texts, o, best) = unsafe {
            (
                c_texts_in(continuations, n_continuations, "continuations")?,
                read(options, doppler_choose_options::default())?,
                optional_slot(best),
            )
        };
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let choice = object.enter()?.choose(&texts, o.parse_special != 0, ranking(o.ranking)?)?;
        // SAFETY: the caller vouches for as many elements as there are continuations.
        unsafe { write_scores(&choice, scores) };
        best.write(choice.best as u32);
        Ok(())
    })
}

/// As doppler_session_choose(), for token ids, with each token's own number.
///
/// @param tokens           the tokens of all continuations, one after the other
/// @param lengths          how many of them each continuation has, 1 at least
/// @param n_continuations  how many, 1 at least
/// @param options          NULL: defaults
/// @param log_probs        gets ln p of each of `tokens`, given the session and the tokens of its continuation before it; may be NULL
/// @param scores           gets `n_continuations` scores; may be NULL
/// @param best             gets the place of the best one; may be NULL
/// @return                 as doppler_session_choose()
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_choose_tokens(
    session: *mut doppler_session,
    tokens: *const u32,
    lengths: *const u32,
    n_continuations: usize,
    options: *const doppler_choose_options,
    log_probs: *mut f32,
    scores: *mut doppler_score,
    best: *mut u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the arrays, the structure and the pointer.
        let (lists, o, best) = unsafe {
            let lengths = slice_in(lengths, n_continuations, "lengths")?;
            (
                lists_in(tokens, lengths, "tokens")?,
                read(options, doppler_choose_options::default())?,
                optional_slot(best),
            )
        };
        let choice = object.enter()?.choose_tokens(&lists, ranking(o.ranking)?)?;
        let all = choice.scores.iter().flat_map(|s| &s.log_probs).enumerate().filter(|_| !log_probs.is_null());
        for (i, &v) in all {
            // SAFETY: there are as many as `tokens`, which the caller vouches for; no alignment is assumed.
            unsafe { log_probs.add(i).write_unaligned(v) };
        }
        // SAFETY: the caller vouches for as many elements as there are continuations.
        unsafe { write_scores(&choice, scores) };
        best.write(choice.best as u32);
        Ok(())
    })
}
