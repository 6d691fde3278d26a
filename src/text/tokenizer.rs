//! Text to token ids and back, for the vocabularies that GGUF files carry.
//!
//! Built from a plain [`Vocab`]; it reads no file. Invariant: for text without special tokens, decoding what was encoded
//! gives the text again. A [`Tokenizer`] is immutable and may be used from many threads.

use super::bpe::{Bpe, byte_char};
use super::hf::{self, Hf, HfFiles};
use super::pre;
use super::special::Finder;
use super::spm::Spm;
use super::vocab::{Kind, Kinds, Vocab, byte_of};
use crate::error::{Result, bail};
use std::collections::HashMap;
use std::sync::Arc;

/// The mark that stands for a space in SentencePiece vocabularies.
const SPACE: &str = "\u{2581}";

enum Engine {
    Bpe(Box<Bpe>),
    Spm(Spm),
    Hf(Box<Hf>),
}

/// A model's tokenizer.
pub struct Tokenizer {
    tokens: Vec<Arc<str>>,
    by_text: HashMap<Arc<str>, u32>,
    kinds: Kinds,
    engine: Engine,
    /// The byte that each character of a byte-level token stands for; empty for other vocabularies.
    char_bytes: HashMap<char, u8>,
    /// Found in every text, and found only where special tokens are asked for as well.
    always: Finder,
    special: Finder,
    /// Special tokens that swallow the white space behind them.
    swallow: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    space_prefix: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds a tokenizer. `Unsupported` names a `model` or `pre` that is not known, `BadFile` the key that is broken.
    pub fn new(vocab: Vocab) -> Result<Self> {
        Self::build(vocab, None, &[])
    }

    /// Builds the tokenizer of a `tokenizer.json` and of what stands beside it. `name` stands for the file in messages. `Unsupported`
    /// names a kind of model that is not known, `BadFile` what is broken.
    pub fn from_json(name: &str, json: &[u8], files: &HfFiles) -> Result<Self> {
        let read = hf::read(name, json, files)?;
        Self::build(read.vocab, Some(Engine::Hf(Box::new(read.hf))), &read.ends).map_err(|e| e.within(name))
    }

    /// With an engine that is there already, or the one that the vocabulary asks for; `ends` are more tokens that end a reply.
    fn build(mut vocab: Vocab, engine: Option<Engine>, ends: &[u32]) -> Result<Self> {
        let count = vocab.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            bail!(BadFile, "the vocabulary (key tokenizer.ggml.tokens) has {count} tokens");
        }
        for (key, len) in
            [("scores", vocab.scores.as_ref().map(Vec::len)), ("token_type", vocab.token_types.as_ref().map(Vec::len))]
        {
            if let Some(len) = len.filter(|&len| len != count) {
                bail!(BadFile, "key tokenizer.ggml.{key} has {len} elements for {count} tokens");
            }
        }
        let spm = vocab.model == "llama";
        if spm && engine.is_none() {
            // What SentencePiece itself numbers them when a file does not say.
            vocab.unk = vocab.unk.or(Some(0));
            vocab.bos = vocab.bos.or(Some(1));
            vocab.eos = vocab.eos.or(Some(2));
        }
        for (name, id) in [
            ("bos", &mut vocab.bos),
            ("eos", &mut vocab.eos),
            ("eot", &mut vocab.eot),
            ("eom", &mut vocab.eom),
            ("unknown", &mut vocab.unk),
            ("padding", &mut vocab.pad),
        ] {
            if let Some(bad) = id.filter(|&id| id as usize >= count) {
                log::warn!("key tokenizer.ggml.{name}_token_id is {bad}, the vocabulary has {count} tokens; ignored");
                *id = None;
            }
        }

        let tokens: Vec<Arc<str>> = vocab.tokens.iter().map(|t| Arc::from(t.as_str())).collect();
        let mut by_text = HashMap::with_capacity(count);
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() && engine.is_some() {
                // A number without a token.
            } else if by_text.contains_key(token) {
                log::warn!("token {id} {token:?} is a repeat; the first one stands for the text");
            } else {
                by_text.insert(token.clone(), id as u32);
            }
        }
        let kinds = Kinds::new(&vocab, &by_text, ends);
        let (engine, add_bos) = match (engine, vocab.model.as_str()) {
            (Some(engine), _) => (engine, false),
            (None, "gpt2") => {
                let pre = pre::by_name(vocab.pre.as_deref().unwrap_or("default"))?;
                (Engine::Bpe(Box::new(Bpe::new(&tokens, &kinds.kinds, &vocab.merges, pre, true)?)), pre.add_bos)
            }
            (None, "gemma4") => {
                let bpe = Bpe::new(&tokens, &kinds.kinds, &vocab.merges, pre::LINES, false)?;
                // Files of this family say no, but the models were trained with it.
                vocab.add_bos = Some(true);
                (Engine::Bpe(Box::new(bpe)), true)
            }
            (None, "llama") => {
                let Some(scores) = &vocab.scores else {
                    bail!(BadFile, "missing key \"tokenizer.ggml.scores\", which a \"llama\" vocabulary needs");
                };
                (Engine::Spm(Spm::new(&tokens, &kinds.kinds, scores, vocab.unk)), true)
            }
            (None, other) => bail!(Unsupported, "the tokenizer {other:?} (key tokenizer.ggml.model)"),
        };
        if matches!(engine, Engine::Bpe(_)) && vocab.merges.is_empty() {
            bail!(BadFile, "missing key \"tokenizer.ggml.merges\", which a {:?} vocabulary needs", vocab.model);
        }

        let of_kind = |wanted: &'static [Kind]| {
            let listed = tokens.iter().zip(&kinds.kinds).enumerate();
            listed.filter(|(_, (_, k))| wanted.contains(k)).map(|(i, (t, _))| (i as u32, t.clone()))
        };
        // Text has spaces where a SentencePiece token has marks.
        let as_text = |t: &str| if spm { t.replace(SPACE, " ") } else { t.to_owned() };
        let finder = |wanted| {
            let listed: Vec<(u32, String)> = of_kind(wanted).map(|(i, t)| (i, as_text(&t))).collect();
            Finder::new(listed.iter().map(|(i, t)| (t.as_str(), *i)))
        };
        const SPECIAL: &[Kind] = &[Kind::UserDefined, Kind::Control, Kind::Unknown];
        let name = vocab.name.as_deref().unwrap_or_default().to_lowercase();
        let swallow = if name.contains("phi-3") || name.contains("phi3") {
            let keeps = |t: &str| matches!(t, "<unk>" | "<s>" | "<|endoftext|>");
            of_kind(SPECIAL).filter(|(_, t)| !keeps(t)).map(|(i, _)| i).collect()
        } else {
            Vec::new()
        };
        let (always, special) = (finder(&[Kind::UserDefined]), finder(SPECIAL));
        let byte_level = vocab.model == "gpt2";
        Ok(Self {
            always,
            special,
            swallow,
            char_bytes: if byte_level { (0..=255).map(|b| (byte_char(b), b)).collect() } else { HashMap::new() },
            add_bos: vocab.add_bos.unwrap_or(add_bos) && vocab.bos.is_some(),
            add_eos: vocab.add_eos.unwrap_or(false) && vocab.eos.is_some(),
            space_prefix: vocab.add_space_prefix.unwrap_or(spm) && spm,
            bos: vocab.bos,
            eos: vocab.eos,
            tokens,
            by_text,
            kinds,
            engine,
        })
    }

    /// The tokens of a text. `add_special` puts BOS before and EOS after it where the file says so; `parse_special`
    /// takes the text of control tokens as those tokens, otherwise it is text like any other. User-defined tokens are
    /// always found. Fails only where the vocabulary cannot spell the text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.add_bos {
            out.extend(self.bos);
        }
        if let Engine::Hf(hf) = &self.engine {
            out.extend(hf.encode(text, parse_special)?);
            if add_special && self.add_eos {
                out.extend(self.eos);
            }
            return Ok(out);
        }
        let finder = if parse_special { &self.special } else { &self.always };
        let mut at = 0;
        let mut first = true;
        while let Some((start, end, id)) = finder.next(text, at) {
            if start > at {
                self.encode_plain(text.get(at..start).unwrap_or_default(), first, &mut out)?;
            }
            out.push(id);
            at = end;
            first = true;
            if self.swallow.contains(&id) {
                let rest = text.get(at..).unwrap_or_default();
                at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']).len();
            }
        }
        if at < text.len() {
            self.encode_plain(text.get(at..).unwrap_or_default(), first, &mut out)?;
        }
        if add_special && self.add_eos {
            out.extend(self.eos);
        }
        Ok(out)
    }

    /// Text without special tokens; `first` when it begins the text or follows a special token.
    fn encode_plain(&self, text: &str, first: bool, out: &mut Vec<u32>) -> Result<()> {
        match &self.engine {
            Engine::Bpe(bpe) => bpe.encode(text, out),
            Engine::Hf(hf) => {
                out.extend(hf.encode(text, false)?);
                Ok(())
            }
            Engine::Spm(spm) => {
                let mut marked = if self.space_prefix && first { SPACE.to_owned() } else { String::new() };
                marked.push_str(&text.replace(' ', SPACE));
                spm.encode(&marked, out)
            }
        }
    }

    /// The text of tokens. The space that SentencePiece puts before a text is taken off again at the start.
    /// Bytes that are not UTF-8 become U+FFFD. For text that arrives piece by piece use [`Tokenizer::token_bytes`].
    pub fn decode(&self, ids: &[u32], render_special: bool) -> Result<String> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut at_start = self.space_prefix;
        for &id in ids {
            let piece = self.token_bytes(id, render_special)?;
            let special = matches!(self.kind(id), Some(Kind::Control | Kind::Unknown));
            let strip = at_start && !special && piece.first() == Some(&b' ');
            bytes.extend_from_slice(if strip { piece.get(1..).unwrap_or_default() } else { &piece });
            at_start &= special;
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        })
    }

    /// One token's exact bytes, which may be part of a character. Control, unknown and unused tokens have none unless
    /// `render_special`, except those that belong to a reply's text.
    pub fn token_bytes(&self, id: u32, render_special: bool) -> Result<Vec<u8>> {
        let (Some(text), Some(kind)) = (self.tokens.get(id as usize), self.kind(id)) else {
            bail!(InvalidArgument, "token {id} is not in the vocabulary of {} tokens", self.tokens.len());
        };
        let byte_level = !self.char_bytes.is_empty();
        Ok(match kind {
            Kind::Control | Kind::Unknown | Kind::Unused => {
                if render_special || self.kinds.shown.contains(&id) {
                    text.as_bytes().to_vec()
                } else {
                    Vec::new()
                }
            }
            Kind::Byte => byte_of(text).map_or_else(|| text.as_bytes().to_vec(), |b| vec![b]),
            Kind::Normal if byte_level => {
                let mut bytes = Vec::with_capacity(text.len());
                for c in text.chars() {
                    match self.char_bytes.get(&c) {
                        Some(b) => bytes.push(*b),
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                bytes
            }
            Kind::UserDefined if byte_level => text.as_bytes().to_vec(),
            Kind::Normal | Kind::UserDefined => text.replace(SPACE, " ").into_bytes(),
        })
    }

    fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.kinds.get(id as usize).copied()
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that the file names as the end.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether [`Tokenizer::encode`] puts BOS before a text when asked for special tokens. A chat template that writes
    /// BOS itself must then be encoded without.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a token steers the model rather than being text.
    #[must_use]
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id) == Some(Kind::Control)
    }

    /// All tokens that end a reply, sorted: those the file names and those known by their text.
    #[must_use]
    pub fn end_of_generation(&self) -> &[u32] {
        &self.kinds.end_of_generation
    }

    /// A token's text as it stands in the vocabulary, marks and all.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(AsRef::as_ref)
    }

    /// The token with exactly this vocabulary text.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied()
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
