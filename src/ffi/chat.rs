//! Conversations with a template, tools and variables of the caller's choice.

use std::ffi::c_char;

use crate::ffi::guard;
use crate::ffi::model::{MODELS, doppler_model};
use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, optional_slot, read};
use crate::ffi::text::{buffer_out, c_text_in, text_in};
use crate::session::{ChatOptions, Message};

/// How conversations are rendered. Fill it with doppler_chat_options_init(). The texts are only read during the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_chat_options {
    /// Set by doppler_chat_options_init().
    pub struct_size: usize,
    /// NULL (default): the model's own template. Otherwise a name, or a Jinja template itself; NUL-terminated UTF-8. Names are those of further
    /// templates of the model's file, and of the built-in ones: "chatml", "llama2", "llama3", "gemma", "mistral", "mistral-v7", "phi3", "phi4", "zephyr",
    /// "vicuna", "alpaca", "deepseek", "command-r", "granite", "glm4".
    pub chat_template: *const c_char,
    /// Tools that the model may call: a JSON array, in the form that the template expects (mostly that of OpenAI); NULL: none. NUL-terminated UTF-8.
    pub tools: *const c_char,
    /// Values for the template's own switches: a JSON object such as {"enable_thinking": false}; NULL: none. NUL-terminated UTF-8.
    pub variables: *const c_char,
}

// SAFETY: `repr(C)`, a number and raw pointers.
unsafe impl Versioned for doppler_chat_options {
    const NAME: &'static str = "doppler_chat_options";
    const FIRST: usize = std::mem::offset_of!(Self, variables) + size_of::<usize>();
}

impl Default for doppler_chat_options {
    fn default() -> Self {
        let none = std::ptr::null();
        Self { struct_size: size_of::<Self>(), chat_template: none, tools: none, variables: none }
    }
}

/// # Safety
/// `from` is as `read` asks, its texts as `c_text_in` does, or NULL.
unsafe fn convert(from: *const doppler_chat_options) -> Result<ChatOptions> {
    // SAFETY: passed on.
    let o = unsafe { read(from, doppler_chat_options::default())? };
    let text = |text: *const c_char, name: &str| {
        // SAFETY: passed on.
        if text.is_null() { Ok(None) } else { unsafe { c_text_in(text, name) }.map(Some) }
    };
    let (template, tools) = (text(o.chat_template, "chat_template")?, text(o.tools, "tools")?);
    Ok(ChatOptions::from_texts(template, tools, text(o.variables, "variables")?)?)
}

/// # Safety
/// As `text_in`.
unsafe fn messages(json: *const c_char, bytes: usize) -> Result<Vec<Message>> {
    // SAFETY: passed on.
    let text = unsafe { text_in(json, bytes, "messages")? };
    let json = serde_json::from_str(text)
        .map_err(|e| Failure::new(doppler_status::InvalidArgument, format!("messages is not JSON: {e}")))?;
    Ok(Message::from_json(json)?)
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_chat_options_init(
    options: *mut doppler_chat_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_chat_options::default()) })
}

/// Renders a conversation with a template, tools and variables of the caller's choice.
///
/// @param messages               a JSON array of objects with a text as "role" and what else the template knows ("content", "tool_calls", …);
///                               UTF-8, not NUL-terminated
/// @param messages_bytes         its length
/// @param options                NULL: defaults
/// @param add_generation_prompt  not 0: open the assistant's turn at the end
/// @param buffer                 gets the text, NUL-terminated UTF-8; NULL (with `capacity` 0) to ask for the size
/// @param capacity               bytes that fit
/// @param needed                 gets the bytes of the text, NUL included, also when they do not fit; may be NULL
/// @return                       DOPPLER_STATUS_INVALID_ARGUMENT for what is no such JSON, or an unknown name of a template;
///                               DOPPLER_STATUS_UNSUPPORTED if there is no template, DOPPLER_STATUS_TEMPLATE if it fails (the error text is the template's
///                               own message, where it has one), DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_render_chat(
    model: *const doppler_model,
    messages: *const c_char,
    messages_bytes: usize,
    options: *const doppler_chat_options,
    add_generation_prompt: u32,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for texts, structure and buffer.
        let (messages, options, out) = unsafe {
            (self::messages(messages, messages_bytes)?, convert(options)?, buffer_out(buffer, capacity, needed)?)
        };
        out.fill_text(model.render_chat(&messages, &options, add_generation_prompt != 0)?)
    })
}

/// Chooses the template, the tools and the variables that a session's conversation is rendered with, from the next message on. What the session
/// holds already stays; the next rendering keeps as much of it as is the same. Forks take the choice over, snapshots do not hold it.
///
/// @param options  NULL: the model's own template, no tools, no variables
/// @return         as doppler_model_render_chat(); the choice is then as before
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_set_chat_options(
    session: *mut doppler_session,
    options: *const doppler_chat_options,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for structure and texts.
        let options = unsafe { convert(options)? };
        Ok(object.enter()?.set_chat_options(options)?)
    })
}

/// As doppler_session_append_messages(), with messages as JSON: they may have more than a text, such as the results of tools.
///
/// @param messages               a JSON array of objects with a text as "role" and what else the template knows ("content", "tool_calls", …);
///                               UTF-8, not NUL-terminated
/// @param messages_bytes         its length
/// @param add_generation_prompt  not 0: open the assistant's turn, as is wanted before doppler_session_generate()
/// @param n_added                gets the number of tokens that are new; may be NULL
/// @return                       DOPPLER_STATUS_INVALID_ARGUMENT for what is no such JSON; else as doppler_session_append_messages()
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_append_messages_json(
    session: *mut doppler_session,
    messages: *const c_char,
    messages_bytes: usize,
    add_generation_prompt: u32,
    n_added: *mut u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for text and pointer.
        let (messages, n_added) = unsafe { (self::messages(messages, messages_bytes)?, optional_slot(n_added)) };
        n_added.write(object.enter()?.append_messages(&messages, add_generation_prompt != 0)?);
        Ok(())
    })
}
