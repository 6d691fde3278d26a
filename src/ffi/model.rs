//! Models: `doppler_model`.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use crate::Error;
use crate::ffi::context::{CONTEXTS, doppler_context};
use crate::ffi::handle::Table;
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, output, read, slot};
use crate::ffi::text::{buffer_out, c_text_in, doppler_message, fixed, messages_in, slice_in, text_in};
use crate::ffi::{DOPPLER_NONE, guard};
use crate::session::{KvType, Model, ModelOptions, WeightFormat};

/// A loaded model. Sessions keep it alive, so it may be destroyed before them.
#[derive(Debug)]
pub struct doppler_model {
    _private: [u8; 0],
}

pub(crate) static MODELS: Table<doppler_model, Model> = Table::new("model", 2);

/// How keys and values of the attention cache are stored.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_kv_type {
    /// Half precision.
    F16 = 0,
    /// Single precision: twice the memory.
    F32 = 1,
    /// Signed bytes with a scale for each 32 dimensions of a head: about half the memory of F16. Models whose heads are no multiple of 32
    /// dimensions do not load with it (DOPPLER_STATUS_UNSUPPORTED).
    Q8 = 2,
}

/// Hears how loading goes on: bytes done, and bytes in all. Called on the thread that loads. Not 0 ends the load.
/// It must return: no exception and no longjmp may leave it.
pub type doppler_progress_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, done_bytes: u64, total_bytes: u64) -> c_int>;

/// How to load a model. Fill it with doppler_model_options_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_model_options {
    /// Set by doppler_model_options_init().
    pub struct_size: usize,
    /// Longest context of a session, in tokens. 0: the length the model was trained with, at most 4096.
    pub n_ctx: u32,
    /// Prompt tokens evaluated in one submit. 0: as many as suit the device, 256 to 2048.
    pub prefill_chunk: u32,
    /// A doppler_kv_type. Default F16.
    pub kv_type: u32,
    /// Not 0: compile the pipelines of decoding while loading, so that the first token compiles nothing. Default 1.
    pub prewarm: u32,
    /// Hears the progress; may be NULL.
    pub on_progress: doppler_progress_callback,
    /// Handed to `on_progress`.
    pub progress_user: *mut c_void,
    /// Not 0: products in f32 alone. Default 0: where the device is faster so, decoding rounds the activations of quantised weights to signed
    /// bytes, 32 with a scale, and those of weights in f16 or bf16 to 16 bits of mantissa; prompts take matrix units, which round operands to f16 (a
    /// row with a power of two of its own).
    pub exact: u32,
    /// A doppler_weight_format: what the weights of a folder of safetensors become while they are loaded. Default AS_STORED, the only one for
    /// GGUF files.
    pub quantize: u32,
}

/// What weights become while they are loaded.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_weight_format {
    /// As they are stored.
    AsStored = 0,
    /// 8 bits and a scale for each 32 weights.
    Q8 = 1,
    /// 4 bits and a scale for each 32 weights.
    Q4 = 2,
}

fn weight_format(number: u32) -> Result<Option<WeightFormat>> {
    match number {
        n if n == doppler_weight_format::AsStored as u32 => Ok(None),
        n if n == doppler_weight_format::Q8 as u32 => Ok(Some(WeightFormat::Q8_0)),
        n if n == doppler_weight_format::Q4 as u32 => Ok(Some(WeightFormat::Q4_0)),
        n => Err(Failure::new(doppler_status::InvalidArgument, format!("quantize is {n}"))),
    }
}

// SAFETY: `repr(C)`, numbers, raw pointers and an optional function.
unsafe impl Versioned for doppler_model_options {
    const NAME: &'static str = "doppler_model_options";
    const FIRST: usize = std::mem::offset_of!(Self, progress_user) + size_of::<usize>();
}

impl Default for doppler_model_options {
    fn default() -> Self {
        let d = ModelOptions::default();
        Self {
            struct_size: size_of::<Self>(),
            n_ctx: d.n_ctx,
            prefill_chunk: d.prefill_chunk,
            kv_type: kv_number(d.kv_type),
            prewarm: d.prewarm.into(),
            on_progress: None,
            progress_user: std::ptr::null_mut(),
            exact: d.exact.into(),
            quantize: doppler_weight_format::AsStored as u32,
        }
    }
}

fn kv_number(kv: KvType) -> u32 {
    let number = match kv {
        KvType::F16 => doppler_kv_type::F16,
        KvType::F32 => doppler_kv_type::F32,
        KvType::Q8 => doppler_kv_type::Q8,
    };
    number as u32
}

fn kv_type(number: u32) -> Result<KvType> {
    match number {
        n if n == doppler_kv_type::F16 as u32 => Ok(KvType::F16),
        n if n == doppler_kv_type::F32 as u32 => Ok(KvType::F32),
        n if n == doppler_kv_type::Q8 as u32 => Ok(KvType::Q8),
        n => Err(Failure::new(doppler_status::InvalidArgument, format!("kv_type is {n}"))),
    }
}

/// What a model is. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "plain data for C")]
pub struct doppler_model_info {
    /// sizeof(doppler_model_info)
    pub struct_size: usize,
    /// Name, or empty; NUL-terminated UTF-8.
    pub name: [c_char; 256],
    /// Architecture, such as "llama"; NUL-terminated UTF-8.
    pub architecture: [c_char; 64],
    /// Weight format of most bytes, such as "Q8_0"; NUL-terminated UTF-8.
    pub format: [c_char; 32],
    /// Weights of all matrices.
    pub parameters: u64,
    /// Bytes of weights in the file.
    pub file_bytes: u64,
    /// Layers.
    pub n_layer: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Tokens in the vocabulary: logits have this many entries, token ids are below it.
    pub n_vocab: u32,
    /// Longest context of a session, in tokens, as loaded.
    pub n_ctx: u32,
    /// Context that the model was trained with, in tokens.
    pub n_ctx_train: u32,
    /// A doppler_kv_type.
    pub kv_type: u32,
    /// 1 if the file has a chat template.
    pub has_chat_template: u32,
    /// The token that begins a text, or DOPPLER_NONE.
    pub bos_token: u32,
    /// The token that the file names as the end, or DOPPLER_NONE. There may be more: doppler_model_is_end_of_generation().
    pub eos_token: u32,
    /// 1 if tokenizing with `add_special` puts the BOS token in front.
    pub adds_bos: u32,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_model_info {
    const NAME: &'static str = "doppler_model_info";
    const FIRST: usize = std::mem::offset_of!(Self, adds_bos) + 4;
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_options_init(
    options: *mut doppler_model_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_model_options::default()) })
}

/// Loads a model from a GGUF file, or from a folder with config.json, tokenizer.json and model.safetensors (or shards with their index). They are
/// only needed during the call.
///
/// @param context  into which device
/// @param path     NUL-terminated UTF-8
/// @param options  NULL: defaults
/// @param model    gets the handle; end it with doppler_model_destroy()
/// @return         DOPPLER_STATUS_IO, DOPPLER_STATUS_BAD_FILE or DOPPLER_STATUS_UNSUPPORTED (the error text names the file, and the key or tensor),
///                 DOPPLER_STATUS_OUT_OF_MEMORY, DOPPLER_STATUS_CANCELLED if `on_progress` asked for it
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_load(
    context: *mut doppler_context,
    path: *const c_char,
    options: *const doppler_model_options,
    model: *mut *mut doppler_model,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for pointer, text and structure.
        let (model, path, o) = unsafe {
            (slot(model, "model")?, c_text_in(path, "path")?, read(options, doppler_model_options::default())?)
        };
        let options = ModelOptions {
            n_ctx: o.n_ctx,
            prefill_chunk: o.prefill_chunk,
            kv_type: kv_type(o.kv_type)?,
            prewarm: o.prewarm != 0,
            exact: o.exact != 0,
            quantize: weight_format(o.quantize)?,
        };
        let mut progress = |done, total| match o.on_progress {
            // SAFETY: the caller vouches for the function, and that it takes its own `progress_user`.
            Some(f) if unsafe { f(o.progress_user, done, total) } != 0 => {
                Err(Error::Cancelled(format!("{path}: the progress callback ended the load")))
            }
            _ => Ok(()),
        };
        model.write(MODELS.insert(context.load_model(Path::new(path), &options, &mut progress)?));
        Ok(())
    })
}

/// Ends a model handle. Its sessions go on working; its memory is freed with the last of them.
///
/// @param model  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_model_destroy(model: *mut doppler_model) -> doppler_status {
    guard(|| MODELS.remove(model).map(drop))
}

/// What a model is.
///
/// @param info  filled in; set its `struct_size`
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_get_info(
    model: *const doppler_model,
    info: *mut doppler_model_info,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the structure.
        let info = unsafe { output(info)? };
        let (i, t) = (model.info(), model.tokenizer());
        info.write(doppler_model_info {
            struct_size: size_of::<doppler_model_info>(),
            name: fixed(&i.name),
            architecture: fixed(&i.architecture),
            format: fixed(i.format),
            parameters: i.parameters,
            file_bytes: i.file_bytes,
            n_layer: i.n_layer,
            n_embd: i.n_embd,
            n_vocab: i.n_vocab,
            n_ctx: i.n_ctx,
            n_ctx_train: i.n_ctx_train,
            kv_type: kv_number(i.kv_type),
            has_chat_template: i.has_chat_template.into(),
            bos_token: t.bos().unwrap_or(DOPPLER_NONE),
            eos_token: t.eos().unwrap_or(DOPPLER_NONE),
            adds_bos: t.adds_bos().into(),
        });
        Ok(())
    })
}

/// The tokens of a text.
///
/// @param text           UTF-8, not NUL-terminated; may be NULL if `text_bytes` is 0
/// @param text_bytes     its length
/// @param add_special    not 0: BOS before and EOS after it, where the model's file says so
/// @param parse_special  not 0: the text of control tokens becomes those tokens. Do not set it for text of strangers.
/// @param tokens         gets the tokens; NULL (with `capacity` 0) to ask for the number
/// @param capacity       tokens that fit
/// @param needed         gets the number of tokens, also when they do not fit; may be NULL
/// @return               DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written), DOPPLER_STATUS_BAD_UTF8
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_tokenize(
    model: *const doppler_model,
    text: *const c_char,
    text_bytes: usize,
    add_special: u32,
    parse_special: u32,
    tokens: *mut u32,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for text and buffer.
        let (text, out) = unsafe { (text_in(text, text_bytes, "text")?, buffer_out(tokens, capacity, needed)?) };
        out.fill(&model.tokenizer().encode(text, add_special != 0, parse_special != 0)?)
    })
}

/// The text of tokens. Bytes that are not UTF-8 become U+FFFD.
///
/// @param tokens          may be NULL if `n_tokens` is 0
/// @param n_tokens        how many
/// @param render_special  not 0: control tokens show as text
/// @param buffer          gets the text, NUL-terminated; NULL (with `capacity` 0) to ask for the size
/// @param capacity        bytes that fit
/// @param needed          gets the bytes of the text, NUL included, also when they do not fit; may be NULL
/// @return                DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written), DOPPLER_STATUS_INVALID_ARGUMENT for a token
///                        outside the vocabulary
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_detokenize(
    model: *const doppler_model,
    tokens: *const u32,
    n_tokens: usize,
    render_special: u32,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for tokens and buffer.
        let (tokens, out) = unsafe { (slice_in(tokens, n_tokens, "tokens")?, buffer_out(buffer, capacity, needed)?) };
        out.fill_text(model.tokenizer().decode(tokens, render_special != 0)?)
    })
}

/// The exact bytes of one token, which may be a part of a character, or a zero byte. Streamed output is easier to have from doppler_session_generate().
///
/// @param token           below `n_vocab`
/// @param render_special  not 0: control tokens show as text
/// @param buffer          gets the bytes and a NUL behind them; NULL (with `capacity` 0) to ask for the size
/// @param capacity        bytes that fit
/// @param needed          gets the number of bytes, NUL included, also when they do not fit; may be NULL
/// @return                as doppler_model_detokenize()
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_token_bytes(
    model: *const doppler_model,
    token: u32,
    render_special: u32,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(buffer, capacity, needed)? };
        out.fill_text(model.tokenizer().token_bytes(token, render_special != 0)?)
    })
}

/// The name of a token in the vocabulary, marks for spaces and bytes included: for people, not for output.
///
/// @param token     below `n_vocab`
/// @param buffer    gets the text, NUL-terminated UTF-8; NULL (with `capacity` 0) to ask for the size
/// @param capacity  bytes that fit
/// @param needed    gets the bytes of the text, NUL included, also when they do not fit; may be NULL
/// @return          as doppler_model_detokenize()
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_token_text(
    model: *const doppler_model,
    token: u32,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(buffer, capacity, needed)? };
        let Some(text) = model.tokenizer().token_text(token) else {
            let text = format!("token {token} in a vocabulary of {}", model.tokenizer().vocab_size());
            return Err(Failure::new(doppler_status::InvalidArgument, text));
        };
        out.fill_text(text)
    })
}

/// Whether a token ends a reply.
///
/// @param token  a token
/// @param ends   gets 1 or 0
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_is_end_of_generation(
    model: *const doppler_model,
    token: u32,
    ends: *mut u32,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the pointer.
        let ends = unsafe { slot(ends, "ends")? };
        ends.write(model.tokenizer().end_of_generation().contains(&token).into());
        Ok(())
    })
}

/// Renders a conversation through the model's chat template. doppler_session_append_messages() does this and appends the result.
///
/// @param messages               the conversation; may be NULL if `n_messages` is 0
/// @param n_messages             how many
/// @param add_generation_prompt  not 0: open the assistant's turn at the end
/// @param buffer                 gets the text, NUL-terminated UTF-8; NULL (with `capacity` 0) to ask for the size
/// @param capacity               bytes that fit
/// @param needed                 gets the bytes of the text, NUL included, also when they do not fit; may be NULL
/// @return                       DOPPLER_STATUS_UNSUPPORTED if the file has no template, DOPPLER_STATUS_TEMPLATE if it fails,
///                               DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_format_chat(
    model: *const doppler_model,
    messages: *const doppler_message,
    n_messages: usize,
    add_generation_prompt: u32,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for messages and buffer.
        let (messages, out) = unsafe { (messages_in(messages, n_messages)?, buffer_out(buffer, capacity, needed)?) };
        out.fill_text(model.format_chat(&messages, add_generation_prompt != 0)?)
    })
}
