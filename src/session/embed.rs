//! Embeddings of texts.

use std::sync::Arc;

use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::gpu::{Counters, Phase};
use crate::model::Pooling;
use crate::session::model::Model;

/// How texts become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedOptions {
    /// `None`: as the model's file says, the mean where it says nothing.
    pub pooling: Option<Pooling>,
    /// Rows get length 1 (L2).
    pub normalize: bool,
    /// Recognise control tokens in texts.
    pub parse_special: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: None, normalize: true, parse_special: false }
    }
}

/// Rows of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Numbers of a row.
    pub n_embd: u32,
    /// What was done.
    pub pooling: Pooling,
    /// Tokens of each text.
    pub tokens: Vec<u32>,
    /// A row for each text; without pooling for each token of each text.
    pub values: Vec<f32>,
}

impl Embeddings {
    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.n_embd as usize)
    }
}

/// What a file says about pooling: `<architecture>.pooling_type`.
///
/// # Errors
/// [`crate::Error::BadFile`] for a key of a wrong type.
pub(super) fn pooling_type(file: &Gguf) -> Result<Option<u32>> {
    file.get_u32(&format!("{}.pooling_type", file.require_str("general.architecture")?))
}

impl Model {
    /// How the model's file wants rows to be pooled; the mean where it says nothing.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a way that is not known here, such as ranking.
    pub fn pooling(&self) -> Result<Pooling> {
        let named = match self.0.pooling_type {
            None | Some(1) => return Ok(Pooling::Mean),
            Some(0) => return Ok(Pooling::None),
            Some(2) => return Ok(Pooling::Cls),
            Some(3) => return Ok(Pooling::Last),
            Some(4) => "4 (rank)".to_string(),
            Some(n) => n.to_string(),
        };
        bail!(Unsupported, "key {}.pooling_type: {named}; none, mean, cls and last run", self.0.spec.architecture)
    }

    /// Tokens of a text that is to be embedded: with BOS and EOS where the model's file says so.
    ///
    /// # Errors
    /// As [`crate::text::Tokenizer::encode`].
    pub fn tokenize_for_embedding(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer().encode(text, true, parse_special)
    }

    /// The embeddings of texts: the final hidden states (the rows that the head would read), pooled. No session is needed, and none changes.
    ///
    /// # Errors
    /// As [`Model::embed_tokens`] and [`crate::text::Tokenizer::encode`].
    pub fn embed(&self, texts: &[&str], options: &EmbedOptions) -> Result<Embeddings> {
        let tokens = |t: &&str| self.tokenize_for_embedding(t, options.parse_special);
        let tokens: Vec<Vec<u32>> = texts.iter().map(tokens).collect::<Result<_>>()?;
        self.embed_tokens(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>(), options)
    }

    /// As [`Model::embed`], for token ids as they are. Short texts are evaluated together, up to 32 and up to a chunk of a prompt in one submit (with
    /// recurrent layers one after the other); long ones in several submits.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] as [`Model::pooling`]; [`crate::Error::InvalidArgument`] for a text without tokens or a token outside the vocabulary;
    /// [`crate::Error::ContextFull`] naming a text longer than the model's context; [`crate::Error::Guard`] for a broken budget of the context in strict mode; or
    /// what the device reports.
    pub fn embed_tokens(&self, texts: &[&[u32]], options: &EmbedOptions) -> Result<Embeddings> {
        let pooling = match options.pooling {
            Some(p) => p,
            None => self.pooling()?,
        };
        let (n_ctx, n_embd, vocab) = (self.info().n_ctx, self.0.spec.n_embd, self.0.spec.n_vocab);
        for (i, t) in texts.iter().enumerate() {
            if t.is_empty() {
                bail!(InvalidArgument, "text {i} has no tokens");
            }
            if let Some(id) = t.iter().find(|&&id| id >= vocab) {
                bail!(InvalidArgument, "text {i}: token {id} in a vocabulary of {vocab}");
            }
            if t.len() > n_ctx as usize {
                bail!(ContextFull, "text {i}: {} tokens do not fit in a context of {n_ctx}", t.len());
            }
        }
        let gpu = self.context().gpu();
        let counters = Arc::new(Counters::default());
        let scope = gpu.scope(Phase::Prefill).with_session(counters.clone());
        let guard = gpu.guard();
        let lens: Vec<u32> = texts.iter().map(|t| t.len() as u32).collect();
        let mut values = Vec::new();
        let mut at = 0;
        while at < texts.len() {
            gpu.rest_profiler()?;
            // Other users of the model get their turn between the waves. There may be no cache yet: the wave sees to that.
            let mut engine = self.0.engine.lock();
            let n = engine.wave(0, &lens[at..]);
            let mut before = counters.phase(Phase::Prefill);
            let wave = &texts[at..at + n];
            let rows = engine.embed_wave(wave, pooling, options.normalize, &scope, &mut |batch| {
                let now = counters.phase(Phase::Prefill);
                guard.check_results(&now.since(&before), batch.rows.into(), batch.bytes)?;
                before = now;
                Ok(())
            })?;
            values.extend(rows);
            at += n;
        }
        Ok(Embeddings { n_embd, pooling, tokens: lens, values })
    }
}
