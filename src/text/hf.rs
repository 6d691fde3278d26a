//! Tokenizers of `tokenizer.json` files: the `tokenizers` crate reads them and encodes; tokens are shown, and replies ended, as with others.
//!
//! Its rules for added tokens (white space taken away beside them, whole words only) hold as the file says. Invariant: special tokens are
//! found in text only if the caller asks for it.

use super::vocab::Vocab;
use crate::error::{Error, Result, bail};
use serde_json::Value;
use std::sync::{Mutex, PoisonError};
use tokenizers::Tokenizer as Crate;

/// What stands beside `tokenizer.json`; each may be absent.
#[derive(Debug, Clone, Default)]
pub struct HfFiles {
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Value>,
    /// `generation_config.json`.
    pub generation_config: Option<Value>,
    /// `config.json`.
    pub config: Option<Value>,
}

/// Encodes by the rules of a `tokenizer.json`.
pub(super) struct Hf {
    /// Whether special tokens are found is a state of the crate's tokenizer, so calls take turns.
    tokenizer: Mutex<Crate>,
}

impl Hf {
    /// The tokens of a text, without BOS and EOS.
    pub(super) fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let mut tokenizer = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        tokenizer.set_encode_special_tokens(!parse_special);
        match tokenizer.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => bail!(InvalidArgument, "the text cannot be tokenized: {e}"),
        }
    }
}

/// What a tokenizer is built from.
pub(super) struct Read {
    pub hf: Hf,
    /// The tokens and their kinds; as the model, `gpt2` where tokens are bytes written as characters, else `llama`.
    pub vocab: Vocab,
    /// Further tokens that end a reply.
    pub ends: Vec<u32>,
}

/// Reads a `tokenizer.json`. `name` stands for it in messages.
pub(super) fn read(name: &str, json: &[u8], files: &HfFiles) -> Result<Read> {
    let broken = |e: &dyn std::fmt::Display| Error::BadFile(format!("{name}: {e}"));
    let parsed: Value = serde_json::from_slice(json).map_err(|e| broken(&e))?;
    let at = |path: &str| parsed.pointer(path);
    let kind = match at("/model/type").and_then(Value::as_str) {
        Some(kind) => kind,
        None if at("/model/merges").is_some() => "BPE",
        None => bail!(BadFile, "{name}: key \"model.type\" is missing"),
    };
    if !matches!(kind, "BPE" | "Unigram") {
        bail!(Unsupported, "{name}: key \"model.type\": \"{kind}\" (BPE and Unigram run)");
    }
    // Some files do not mark an end token as special; a prompt could then end a turn by writing it.
    let mut marked = parsed.get("added_tokens").cloned();
    let mut changed = false;
    for token in marked.iter_mut().filter_map(Value::as_array_mut).flatten() {
        let ends = token.get("content").and_then(Value::as_str).is_some_and(super::vocab::is_end);
        if let Some(special) = token.get_mut("special").filter(|s| ends && s.as_bool() == Some(false)) {
            *special = Value::Bool(true);
            changed = true;
        }
    }
    let parsed_anew = || {
        let mut all = parsed.clone();
        if let (Some(slot), Some(marked)) = (all.get_mut("added_tokens"), marked) {
            *slot = marked;
        }
        Crate::from_bytes(all.to_string())
    };
    let tokenizer = if changed { parsed_anew() } else { Crate::from_bytes(json) };
    let mut tokenizer = tokenizer.map_err(|e| broken(&e))?;
    // A text is given as it is, and the crate's memory of words belongs to threads and outlives the tokenizer.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| broken(&e))?;
    let mut model = tokenizer.get_model().clone();
    model.resize_cache(0);
    tokenizer.with_model(model);

    let added = tokenizer.get_added_tokens_decoder();
    let known = tokenizer.get_vocab(true);
    let count = known.values().chain(added.keys()).max().map_or(0, |&id| id as usize + 1);
    if count == 0 || count > 1 << 24 {
        bail!(BadFile, "{name}: {count} tokens");
    }
    // Numbers without a token stay empty and unused.
    let (mut tokens, mut types) = (vec![String::new(); count], vec![5; count]);
    let fallback = at("/model/byte_fallback").and_then(Value::as_bool) == Some(true);
    for (token, id) in known {
        let byte = fallback && super::vocab::byte_of(&token).is_some();
        if let (Some(slot), Some(kind)) = (tokens.get_mut(id as usize), types.get_mut(id as usize)) {
            (*slot, *kind) = (token, if byte { 6 } else { 1 });
        }
    }
    for (id, token) in &added {
        if let (Some(slot), Some(kind)) = (tokens.get_mut(*id as usize), types.get_mut(*id as usize)) {
            (*slot, *kind) = (token.content.clone(), if token.special { 3 } else { 4 });
        }
    }
    let id_of = |text: &str| tokenizer.token_to_id(text);
    let wanted = |key: &str| -> Option<u32> {
        let of_text = files.tokenizer_config.as_ref().and_then(|c| c.get(format!("{key}_token")));
        let text = of_text.and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
        let first = |v: &Value| v.as_u64().or_else(|| v.get(0)?.as_u64()).and_then(|n| u32::try_from(n).ok());
        let number = |c: &Option<Value>| c.as_ref()?.get(format!("{key}_token_id")).and_then(first);
        text.and_then(id_of).or_else(|| number(&files.config)).or_else(|| number(&files.generation_config))
    };
    let (bos, eos) = (wanted("bos"), wanted("eos"));
    let mut ends = Vec::new();
    for list in [&files.generation_config, &files.config].into_iter().flatten().filter_map(|c| c.get("eos_token_id")) {
        let all = list.as_array().map_or(std::slice::from_ref(list), Vec::as_slice);
        ends.extend(all.iter().filter_map(Value::as_u64).filter_map(|n| u32::try_from(n).ok()));
    }
    // The file's own additions to a text show whether it begins with BOS; the configuration may say it, too.
    let framed = tokenizer.encode_fast("", true).map_err(|e| broken(&e))?;
    let flag = |key: &str| files.tokenizer_config.as_ref().and_then(|c| c.get(key)).and_then(Value::as_bool);
    let add_bos = flag("add_bos_token").unwrap_or_else(|| bos.is_some() && framed.get_ids().first().copied() == bos);
    let add_eos =
        flag("add_eos_token").unwrap_or_else(|| eos.is_some() && eos != bos && framed.get_ids().last().copied() == eos);
    let mentions = |part: &str, what: &str| at(part).is_some_and(|v| v.to_string().contains(what));
    let byte_level = mentions("/decoder", "\"ByteLevel\"") || mentions("/pre_tokenizer", "\"ByteLevel\"");
    let prefix = mentions("/decoder", "\"Strip\"")
        || mentions("/normalizer", "\"Prepend\"")
        || (mentions("/pre_tokenizer", "\"Metaspace\"") && !mentions("/pre_tokenizer", "\"never\""));
    let vocab = Vocab {
        model: if byte_level { "gpt2" } else { "llama" }.to_owned(),
        tokens,
        token_types: Some(types),
        bos,
        eos,
        unk: at("/model/unk_token").and_then(Value::as_str).and_then(id_of),
        add_bos: Some(add_bos),
        add_eos: Some(add_eos),
        add_space_prefix: Some(prefix && !byte_level),
        ..Vocab::default()
    };
    Ok(Read { hf: Hf { tokenizer: Mutex::new(tokenizer) }, vocab, ends })
}

#[cfg(test)]
#[path = "hf_tests.rs"]
mod tests;
