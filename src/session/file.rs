//! What a model file gives without a device: its tokenizer and its chat template.

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::Gguf;
use crate::session::model::read_vocab;
use crate::text::{ChatTemplate, Tokenizer};

/// The tokenizer of a GGUF file; the file needs no tensors. Any thread, no device.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`] naming a missing or broken key, [`Error::Unsupported`] naming the kind of tokenizer.
pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
    let file = Gguf::open(path)?;
    Tokenizer::new(read_vocab(&file)?).map_err(|e| e.within(file.name()))
}

/// The chat template of a GGUF file, with the texts of its BOS and EOS tokens. Any thread, no device.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`], [`Error::Unsupported`] if the file has no template, [`Error::Template`] if it does not compile.
pub fn chat_template_of(path: &Path) -> Result<ChatTemplate> {
    let file = Gguf::open(path)?;
    let Some(source) = file.get_str("tokenizer.chat_template")? else {
        return Err(Error::Unsupported(format!("{}: no chat template (key tokenizer.chat_template)", file.name())));
    };
    let tokens = file.get_str_array("tokenizer.ggml.tokens")?.unwrap_or_default();
    let text = |key: &str| -> Result<Option<&str>> {
        let id = file.get_u32(&format!("tokenizer.ggml.{key}_token_id"))?;
        Ok(id.and_then(|id| tokens.get(id as usize)).map(String::as_str))
    };
    ChatTemplate::new(source, text("bos")?, text("eos")?)
}
