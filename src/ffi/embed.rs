//! Embeddings: `doppler_model_embed`.

use std::ffi::c_char;

use crate::ffi::guard;
use crate::ffi::model::{MODELS, doppler_model};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, read};
use crate::ffi::text::{BufferOut, buffer_out, c_texts_in, lists_in, slice_in};
use crate::session::{EmbedOptions, Model, Pooling};

/// How the rows of a text become one.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_pooling {
    /// As the model's file says; the mean where it says nothing.
    Model = 0,
    /// They do not: a row for each token.
    None = 1,
    /// Their mean.
    Mean = 2,
    /// The first token's row.
    Cls = 3,
    /// The last token's row.
    Last = 4,
}

/// How to embed. Fill it with doppler_embed_options_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_embed_options {
    /// Set by doppler_embed_options_init().
    pub struct_size: usize,
    /// A doppler_pooling. Default MODEL.
    pub pooling: u32,
    /// Not 0: rows get length 1 (L2). Default 1.
    pub normalize: u32,
    /// Not 0: the text of control tokens becomes those tokens. Default 0.
    pub parse_special: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_embed_options {
    const NAME: &'static str = "doppler_embed_options";
    const FIRST: usize = std::mem::offset_of!(Self, reserved) + 4;
}

impl Default for doppler_embed_options {
    fn default() -> Self {
        let d = EmbedOptions::default();
        Self {
            struct_size: size_of::<Self>(),
            pooling: doppler_pooling::Model as u32,
            normalize: d.normalize.into(),
            parse_special: d.parse_special.into(),
            reserved: 0,
        }
    }
}

fn convert(o: doppler_embed_options) -> Result<EmbedOptions> {
    let pooling = match o.pooling {
        n if n == doppler_pooling::Model as u32 => None,
        n if n == doppler_pooling::None as u32 => Some(Pooling::None),
        n if n == doppler_pooling::Mean as u32 => Some(Pooling::Mean),
        n if n == doppler_pooling::Cls as u32 => Some(Pooling::Cls),
        n if n == doppler_pooling::Last as u32 => Some(Pooling::Last),
        n => return Err(Failure::new(doppler_status::InvalidArgument, format!("pooling is {n}"))),
    };
    Ok(EmbedOptions { pooling, normalize: o.normalize != 0, parse_special: o.parse_special != 0 })
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_embed_options_init(
    options: *mut doppler_embed_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_embed_options::default()) })
}

/// Embeds lists of tokens, unless the caller only asks for the size.
fn embed(model: &Model, lists: &[&[u32]], options: &EmbedOptions, out: BufferOut<f32>) -> Result<()> {
    let rows: usize = match options.pooling.map_or_else(|| model.pooling(), Ok)? {
        Pooling::None => lists.iter().map(|l| l.len()).sum(),
        _ => lists.len(),
    };
    if out.wants(rows.saturating_mul(model.info().n_embd as usize))? {
        out.fill(&model.embed_tokens(lists, options)?.values)?;
    }
    Ok(())
}

/// The embeddings of texts: their final hidden states, pooled on the device. Texts that are short are evaluated together. No session is needed, and none
/// changes. The rows have `n_embd` numbers (doppler_model_get_info()): one row a text, without pooling one row for each token of each text.
///
/// @param texts       NUL-terminated UTF-8, tokenized with BOS and EOS where the model's file says so
/// @param n_texts     how many
/// @param options     NULL: defaults
/// @param n_tokens    gets the tokens of each text, `n_texts` numbers; may be NULL
/// @param embeddings  gets the rows; NULL (with `capacity` 0) to ask for the size, which evaluates nothing
/// @param capacity    numbers that fit
/// @param needed      gets how many numbers there are, also when they do not fit; may be NULL
/// @return            DOPPLER_STATUS_BUFFER_TOO_SMALL (found before anything is evaluated), DOPPLER_STATUS_UNSUPPORTED if the file asks for a pooling that is not
///                    here (ranking), DOPPLER_STATUS_INVALID_ARGUMENT or DOPPLER_STATUS_CONTEXT_FULL naming the text, DOPPLER_STATUS_GUARD
///
/// Threads: any; the call takes turns with the model's sessions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_embed(
    model: *mut doppler_model,
    texts: *const *const c_char,
    n_texts: usize,
    options: *const doppler_embed_options,
    n_tokens: *mut u32,
    embeddings: *mut f32,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the texts, the structure and the buffer.
        let (texts, o, out) = unsafe {
            (
                c_texts_in(texts, n_texts, "texts")?,
                read(options, doppler_embed_options::default())?,
                buffer_out(embeddings, capacity, needed)?,
            )
        };
        let options = convert(o)?;
        let tokens = |t: &String| model.tokenize_for_embedding(t, options.parse_special);
        let lists: Vec<Vec<u32>> = texts.iter().map(tokens).collect::<crate::Result<_>>()?;
        embed(&model, &lists.iter().map(Vec::as_slice).collect::<Vec<_>>(), &options, out)?;
        for (i, list) in lists.iter().enumerate().filter(|_| !n_tokens.is_null()) {
            // SAFETY: the caller vouches for `n_texts` elements; no alignment is assumed.
            unsafe { n_tokens.add(i).write_unaligned(list.len() as u32) };
        }
        Ok(())
    })
}

/// As doppler_model_embed(), for token ids as they are.
///
/// @param tokens      the tokens of all texts, one after the other
/// @param lengths     how many of them each text has, 1 at least
/// @param n_texts     how many texts
/// @param options     NULL: defaults; `parse_special` means nothing here
/// @param embeddings  gets the rows; NULL (with `capacity` 0) to ask for the size, which evaluates nothing
/// @param capacity    numbers that fit
/// @param needed      gets how many numbers there are, also when they do not fit; may be NULL
/// @return            as doppler_model_embed()
///
/// Threads: any; the call takes turns with the model's sessions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_embed_tokens(
    model: *mut doppler_model,
    tokens: *const u32,
    lengths: *const u32,
    n_texts: usize,
    options: *const doppler_embed_options,
    embeddings: *mut f32,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the arrays, the structure and the buffer.
        let (lists, o, out) = unsafe {
            let lengths = slice_in(lengths, n_texts, "lengths")?;
            (
                lists_in(tokens, lengths, "tokens")?,
                read(options, doppler_embed_options::default())?,
                buffer_out(embeddings, capacity, needed)?,
            )
        };
        embed(&model, &lists, &convert(o)?, out)
    })
}
