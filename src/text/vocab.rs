//! A vocabulary as a file gives it, and what kind each of its tokens is.
//!
//! Only data and the rules that correct it: no splitting of text. Invariant of [`Kinds`]: one entry a token, and the
//! end-of-generation set is sorted, without repeats, and inside the vocabulary.

use std::collections::HashMap;
use std::sync::Arc;

/// Everything a tokenizer is built from; the fields follow the `tokenizer.ggml.*` keys of GGUF.
#[derive(Debug, Clone, Default)]
pub struct Vocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4` (BPE on UTF-8).
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut before BPE; `None` is taken as `default`.
    pub pre: Option<String>,
    /// `general.name`. Phi-3 files are told by it: their special tokens swallow the white space that follows.
    pub name: Option<String>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, one a token; needed for `llama`.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`, one a token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`, each two tokens with a space between, best first; needed for BPE.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; the default depends on `model` and `pre`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; by default none is added.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; by default `llama` adds one.
    pub add_space_prefix: Option<bool>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The kinds of all tokens, after correction, with what follows from the tokens' texts.
pub(super) struct Kinds {
    pub kinds: Vec<Kind>,
    /// Control tokens that are part of a reply's text and therefore always shown.
    pub shown: Vec<u32>,
    pub end_of_generation: Vec<u32>,
}

/// Texts that end a turn or a document in one family of models or another. A GGUF file names one end token only, so
/// the rest are known by their text.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    // Fill-in-the-middle models end with one of these when the file at hand is done.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

/// The harmony format writes its channels with control tokens that a reader of the reply needs to see.
const HARMONY_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl Kinds {
    /// `further` are more tokens that end a reply.
    pub(super) fn new(vocab: &Vocab, by_text: &HashMap<Arc<str>, u32>, further: &[u32]) -> Self {
        let types = vocab.token_types.as_deref().unwrap_or_default();
        let mut kinds: Vec<Kind> = (0..vocab.tokens.len())
            .map(|i| match types.get(i) {
                Some(2) => Kind::Unknown,
                Some(3) => Kind::Control,
                Some(4) => Kind::UserDefined,
                Some(5) => Kind::Unused,
                Some(6) => Kind::Byte,
                Some(_) => Kind::Normal,
                None if vocab.tokens.get(i).is_some_and(|t| byte_of(t).is_some()) => Kind::Byte,
                None => Kind::Normal,
            })
            .collect();
        let find = |text: &str| by_text.get(text).copied();

        let mut ends: Vec<u32> = ENDS.iter().filter_map(|t| find(t)).collect();
        for &id in &ends {
            // Some files mark an end token as ordinary text; a prompt could then end a turn by writing it.
            if let Some(kind) = kinds.get_mut(id as usize) {
                *kind = Kind::Control;
            }
        }
        ends.extend([vocab.eos, vocab.eot, vocab.eom].into_iter().flatten());
        ends.extend(further);
        ends.sort_unstable();
        ends.dedup();
        ends.retain(|&id| (id as usize) < kinds.len());

        let mut shown: Vec<u32> = HARMONY_SHOWN.iter().filter_map(|t| find(t)).collect();
        let has = |text: &str| find(text).is_some_and(|id| ends.contains(&id));
        let calls = has("<|call|>") || has("<|calls|>");
        let mut not_ends = Vec::new();
        if calls && (has("<|return|>") || has("<|flush|>")) {
            // Here <|end|> closes one message of several in the same reply.
            not_ends.extend(find("<|end|>"));
            shown.extend(find("<|end|>"));
        }
        if has("<|tool_response>") {
            not_ends.extend(find("</s>"));
        }
        ends.retain(|id| !not_ends.contains(id) || [vocab.eos, vocab.eot, vocab.eom].contains(&Some(*id)));
        Self { kinds, shown, end_of_generation: ends }
    }
}

/// Whether a token of this text ends a turn or a document.
pub(super) fn is_end(text: &str) -> bool {
    ENDS.contains(&text)
}

/// The byte that a `<0xNN>` token stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}
