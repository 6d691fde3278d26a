//! Model files and folders: which of the two a path is, and what it gives without a device.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result, bail};
use crate::format::{Gguf, read_json};
use crate::model::hf::{self, WeightFormat};
use crate::session::model::read_vocab;
use crate::text::{ChatTemplate, HfFiles, Tokenizer};

/// Opens a GGUF file, or a folder of safetensors as if it were one.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`], [`Error::Unsupported`] naming file and key or tensor; [`Error::InvalidArgument`] for a GGUF file that is to be
/// quantised. No tensor is read.
pub fn open_model_file(path: &Path, quantize: Option<WeightFormat>) -> Result<Gguf> {
    if path.is_dir() {
        return hf::open(path, quantize);
    }
    if quantize.is_some() {
        bail!(InvalidArgument, "{}: only folders of safetensors are quantised while they are loaded", path.display());
    }
    Gguf::open(path)
}

/// A JSON file of a folder, if it is there.
fn optional(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
}

/// The tokenizer of a folder.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`], [`Error::Unsupported`] naming the file and what is wrong in it.
pub(super) fn folder_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let name = path.display().to_string();
    let json = std::fs::read(&path).map_err(|e| Error::Io(format!("{name}: {e}")))?;
    let files = HfFiles {
        tokenizer_config: optional(folder, "tokenizer_config.json")?,
        generation_config: optional(folder, "generation_config.json")?,
        config: optional(folder, "config.json")?,
    };
    Tokenizer::from_json(&name, &json, &files)
}

/// The chat templates of a folder, with their names; the usual one has an empty name.
pub(super) fn folder_templates(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::Io(format!("{}: {e}", path.display())))?;
        templates.push((String::new(), text));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let Some(json) = optional(folder, file)? else { continue };
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).map(str::to_string);
        match json.get("chat_template") {
            Some(Value::String(source)) => templates.push((String::new(), source.clone())),
            Some(Value::Array(list)) => templates.extend(list.iter().filter_map(|t| {
                let name = text(t, "name").filter(|n| n != "default").unwrap_or_default();
                Some((name, text(t, "template")?))
            })),
            _ => {}
        }
    }
    Ok(templates)
}

/// The tokenizer of a GGUF file or of a folder; no tensors are needed. Any thread, no device.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`] naming a missing or broken key, [`Error::Unsupported`] naming the kind of tokenizer.
pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
    if path.is_dir() {
        return folder_tokenizer(path);
    }
    let file = Gguf::open(path)?;
    Tokenizer::new(read_vocab(&file)?).map_err(|e| e.within(file.name()))
}

/// The chat template of a GGUF file or of a folder, with the texts of its BOS and EOS tokens. Any thread, no device.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`], [`Error::Unsupported`] if there is no template, [`Error::Template`] if it does not compile.
pub fn chat_template_of(path: &Path) -> Result<ChatTemplate> {
    if path.is_dir() {
        let templates = folder_templates(path)?;
        let Some((_, source)) = templates.iter().find(|(name, _)| name.is_empty()) else {
            bail!(Unsupported, "{}: no chat template (chat_template.jinja, tokenizer_config.json)", path.display());
        };
        let t = folder_tokenizer(path)?;
        let text = |id: Option<u32>| id.and_then(|id| t.token_text(id));
        return ChatTemplate::new(source, text(t.bos()), text(t.eos()));
    }
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
