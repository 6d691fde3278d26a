//! A session: one sequence of tokens, its place in the cache, its counters.
//!
//! `tokens` is what was said, `cached` how many of them have keys and values. Everything that adds text only extends `tokens`; evaluation
//! catches up when something is generated or asked for. `cached` moves only after the device has finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::{Error, Result, bail};
use crate::gpu::{BatchingSaving, Counters, Guard, Phase, PhaseSnapshot, Scope};
use crate::model::{MAX_TOKENS_PER_SUBMIT, ProbeOptions, ProbeReading, Sequence};
use crate::session::chat::{Chat, ChatOptions, Message};
use crate::session::generation::Generation;
use crate::session::lora::Lora;
use crate::session::model::Model;
use crate::session::options::SessionOptions;
use crate::session::pace::Pace;
use crate::session::speculate::{SpeculationStats, Speculator};
use crate::session::stats::SessionStats;
use crate::text::{Piece, Segmenter};

/// Tokens at the end of a prompt that may have begun a segment of the reply.
const PROMPT_TAIL: usize = 32;

/// Ends a running call of its session from any thread; it takes effect within one submit.
#[derive(Debug, Clone, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks the running call, or else the next one, to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Takes the request, if there is one.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// Times and counts of a session.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) prefill_tokens: u64,
    pub(super) prefill_ns: u64,
    pub(super) generated_tokens: u64,
    pub(super) decode_tokens: u64,
    pub(super) decode_ns: u64,
    pub(super) first_token_ns: u64,
    pub(super) speculation: SpeculationStats,
}

/// A conversation with a model. One thread at a time.
#[derive(Debug)]
pub struct Session {
    pub(super) model: Model,
    /// Present until dropped.
    pub(super) sequence: Option<Sequence>,
    pub(super) tokens: Vec<u32>,
    pub(super) cached: u32,
    pub(super) n_ctx: u32,
    pub(super) pace: Pace,
    /// `None`: the context's, whatever it is at the time.
    pub(super) guard: Option<Guard>,
    pub(super) counters: Arc<Counters>,
    pub(super) tally: Tally,
    pub(super) cancel: CancelHandle,
    pub(super) generation: Option<Generation>,
    /// Who drafts, if anyone does.
    pub(super) speculator: Option<Speculator>,
    pub(super) messages: Vec<Message>,
    /// `None`: the file's template alone.
    pub(super) chat: Option<Arc<Chat>>,
    /// The segment that the last generation ended in, and the number of tokens then: the next one may go on with it.
    pub(super) segment: Option<(usize, Segmenter)>,
    pub(super) loras: Vec<(Lora, f32)>,
}

impl Session {
    pub(super) fn open(model: &Model, options: &SessionOptions) -> Result<Self> {
        let n_ctx = if options.n_ctx == 0 { model.info().n_ctx } else { options.n_ctx };
        let tokens_per_submit = options.tokens_per_submit.max(1);
        if tokens_per_submit > MAX_TOKENS_PER_SUBMIT {
            bail!(InvalidArgument, "tokens_per_submit {tokens_per_submit}: at most {MAX_TOKENS_PER_SUBMIT}");
        }
        let gpu = model.context().gpu();
        let counters = Arc::new(Counters::default());
        let scope = gpu.scope(Phase::Other).with_session(counters.clone());
        let sequence = model.0.engine.lock().open(n_ctx, &scope)?;
        let mut session = Self {
            model: model.clone(),
            sequence: Some(sequence),
            tokens: Vec::new(),
            cached: 0,
            n_ctx,
            pace: Pace::new(tokens_per_submit, options.submit_time_us),
            guard: options.guard,
            counters,
            tally: Tally::default(),
            cancel: CancelHandle::default(),
            generation: None,
            speculator: None,
            messages: Vec::new(),
            chat: None,
            segment: None,
            loras: Vec::new(),
        };
        if options.speculation.is_some() {
            session.set_speculation(options.speculation.as_ref())?;
        }
        Ok(session)
    }

    /// A second session that goes on from here by itself: with the same tokens, conversation, adapters and options. What was evaluated is shared,
    /// not copied, and not evaluated again. Its counters start at zero.
    ///
    /// # Errors
    /// [`Error::InvalidState`] while generating, [`Error::OutOfMemory`].
    pub fn fork(&self) -> Result<Self> {
        self.idle()?;
        let counters = Arc::new(Counters::default());
        let scope = self.model.context().gpu().scope(Phase::Other).with_session(counters.clone());
        let Some(parent) = &self.sequence else { bail!(Internal, "a session without sequence") };
        let evaluated = &self.tokens[..self.cached as usize];
        let sequence = self.model.0.engine.lock().fork(parent, evaluated, &scope)?;
        let mut child = Self {
            model: self.model.clone(),
            sequence: Some(sequence),
            tokens: self.tokens.clone(),
            cached: self.cached,
            n_ctx: self.n_ctx,
            pace: self.pace,
            guard: self.guard,
            counters,
            tally: Tally::default(),
            cancel: CancelHandle::default(),
            generation: None,
            speculator: None,
            messages: self.messages.clone(),
            chat: self.chat.clone(),
            segment: self.segment.clone(),
            loras: self.loras.clone(),
        };
        child.adopt_speculator(self.speculator.as_ref())?;
        Ok(child)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// All tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens this session can hold.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// A handle to end calls from another thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    pub(super) fn scope(&self, phase: Phase) -> Scope {
        self.model.context().gpu().scope(phase).with_session(self.counters.clone()).with_guard(self.guard())
    }

    /// The guard this session is under.
    pub fn guard(&self) -> Guard {
        self.guard.unwrap_or_else(|| self.model.context().gpu().guard())
    }

    /// Puts the session under a guard of its own, or with `None` under its context's.
    pub fn set_guard(&mut self, guard: Option<Guard>) {
        self.guard = guard;
    }

    /// Fails while a generation that was begun has not ended.
    pub(super) fn idle(&self) -> Result<()> {
        match self.generation {
            Some(_) => bail!(InvalidState, "a generation is running in this session"),
            None => Ok(()),
        }
    }

    /// Adds tokens to the end.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if they do not fit (nothing is added), [`Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn append_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        self.idle()?;
        let vocab = self.model.spec().n_vocab;
        if let Some(t) = tokens.iter().find(|&&t| t >= vocab) {
            bail!(InvalidArgument, "token {t} in a vocabulary of {vocab}");
        }
        let total = self.tokens.len() + tokens.len();
        if total > self.n_ctx as usize {
            bail!(
                ContextFull,
                "{} tokens and {} more do not fit in a context of {}",
                self.tokens.len(),
                tokens.len(),
                self.n_ctx
            );
        }
        self.tokens.extend_from_slice(tokens);
        self.segment = None;
        Ok(())
    }

    /// Adds text to the end; `parse_special` recognises control tokens in it. A BOS goes in front of the first text where the model
    /// wants one. Returns how many tokens were added.
    ///
    /// # Errors
    /// As [`Session::append_tokens`].
    pub fn append_text(&mut self, text: &str, parse_special: bool) -> Result<u32> {
        self.idle()?;
        let tokens = self.model.tokenizer().encode(text, self.tokens.is_empty(), parse_special)?;
        self.append_tokens(&tokens)?;
        Ok(tokens.len() as u32)
    }

    /// Adds messages to the conversation and renders it through the model's template; with `add_generation_prompt` the assistant's turn
    /// is opened. What the session already holds of the rendering is kept, the rest is replaced. Returns the number of tokens that are
    /// new.
    ///
    /// # Errors
    /// As [`Model::format_chat`] and [`Session::append_tokens`]; the conversation is then as before.
    pub fn append_messages(&mut self, messages: &[Message], add_generation_prompt: bool) -> Result<u32> {
        self.idle()?;
        let known = self.messages.len();
        self.messages.extend_from_slice(messages);
        let added = self.render_messages(add_generation_prompt);
        if added.is_err() {
            self.messages.truncate(known);
        }
        added
    }

    /// Chooses the template, the tools and the variables that the conversation is rendered with from the next
    /// [`Session::append_messages`] on. They are no part of snapshots; forks have them too.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the file has no template and none is chosen, [`Error::Template`] if it does not compile,
    /// [`Error::InvalidArgument`] for an unknown name, [`Error::InvalidState`] while generating. The options are then as before.
    pub fn set_chat_options(&mut self, options: ChatOptions) -> Result<()> {
        self.idle()?;
        self.chat = Some(Arc::new(Chat::new(&self.model, options)?));
        Ok(())
    }

    /// How a reply to the tokens so far is cut into segments.
    pub(super) fn segmenter(&mut self) -> Result<Segmenter> {
        if let Some((_, segment)) = self.segment.take().filter(|(n, _)| *n == self.tokens.len()) {
            return Ok(segment);
        }
        let markers = match &self.chat {
            Some(chat) => chat.markers.clone(),
            None => Arc::new(self.model.markers()),
        };
        let tail = self.tokens.len().saturating_sub(PROMPT_TAIL);
        Ok(Segmenter::after(markers, &self.known_text(&self.tokens[tail..])?))
    }

    /// The text of tokens, without those that the tokenizer does not know (rows that only pad the table).
    fn known_text(&self, tokens: &[u32]) -> Result<String> {
        let t = self.model.tokenizer();
        let known: Vec<u32> = tokens.iter().copied().filter(|&id| t.token_text(id).is_some()).collect();
        t.decode(&known, true)
    }

    fn render_messages(&mut self, add_generation_prompt: bool) -> Result<u32> {
        let chat = match &self.chat {
            Some(chat) => chat,
            None => self.model.chat()?,
        };
        let rendered = chat.render(&self.messages, add_generation_prompt)?;
        let wanted = self.model.tokenize_chat(&rendered)?;
        if wanted.len() > self.n_ctx as usize {
            bail!(ContextFull, "a conversation of {} tokens does not fit in a context of {}", wanted.len(), self.n_ctx);
        }
        let same = self.tokens.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        self.truncate_tokens(same as u32);
        self.append_tokens(&wanted[same..])?;
        Ok((wanted.len() - same) as u32)
    }

    /// The assistant's reply becomes part of the conversation, so that the next rendering contains it.
    pub(super) fn remember_reply(&mut self, pieces: &[Piece]) {
        if self.messages.last().is_some_and(|m| m.role() != "assistant") {
            self.messages.push(Message::reply(pieces));
        }
    }

    /// Keeps the first `n` tokens and forgets the rest; the conversation of [`Session::append_messages`] starts over.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are fewer, [`Error::InvalidState`] while generating.
    pub fn truncate(&mut self, n: u32) -> Result<()> {
        self.idle()?;
        if n as usize > self.tokens.len() {
            bail!(InvalidArgument, "truncating {} tokens to {n}", self.tokens.len());
        }
        self.messages.clear();
        self.truncate_tokens(n);
        Ok(())
    }

    pub(super) fn truncate_tokens(&mut self, n: u32) {
        self.segment = None;
        self.tokens.truncate(n as usize);
        self.forget_from(n);
    }

    /// Tokens from `n` on are to be evaluated again, and those before them too if a sliding window has moved on too far.
    pub(super) fn forget_from(&mut self, n: u32) {
        let kept = self.cached.min(n);
        self.cached = match &mut self.sequence {
            Some(s) => self.model.0.engine.lock().truncate(s, kept),
            None => 0,
        };
    }

    /// Where evaluation ran ahead of what counts, a recurrent state cannot be cut to it: what came after the state before is evaluated again.
    pub(super) fn settle(&mut self) {
        let Some(s) = &mut self.sequence else { return };
        let mut engine = self.model.0.engine.lock();
        if !engine.keeps(s, self.cached) {
            self.cached = engine.truncate(s, self.cached);
        }
    }

    /// Forgets everything said; the session is as new, its counters go on. Also ends a generation that was begun.
    pub fn reset(&mut self) {
        self.generation = None;
        self.messages.clear();
        self.truncate_tokens(0);
        self.cancel.take();
    }

    /// Evaluates everything not yet evaluated, but for the last `keep` tokens, chunk by chunk. Returns false if it was cancelled.
    pub(super) fn catch_up(&mut self, keep: usize) -> Result<bool> {
        let chunk = self.model.0.options_chunk();
        let scope = self.scope(Phase::Prefill);
        while self.tokens.len() - self.cached as usize > keep {
            if self.cancel.take() {
                return Ok(false);
            }
            let from = self.cached as usize;
            let n = (self.tokens.len() - from - keep).min(chunk as usize);
            let mut engine = self.model.0.warm_engine(&scope)?;
            let started = Instant::now();
            let before = self.counters.phase(Phase::Prefill);
            let sequence =
                self.sequence.as_mut().ok_or_else(|| Error::Internal("a session without sequence".into()))?;
            engine.prefill(sequence, &self.tokens[from..from + n], self.cached, &scope)?;
            drop(engine);
            self.check_prefill(&before, n, 0)?;
            self.cached += n as u32;
            self.tally.prefill_tokens += n as u64;
            self.tally.prefill_ns += started.elapsed().as_nanos() as u64;
        }
        Ok(true)
    }

    /// Compares what a chunk cost with its budget, before it is taken over: a refused chunk is evaluated again next time.
    pub(super) fn check_prefill(&self, before: &PhaseSnapshot, tokens: usize, drawn: u64) -> Result<()> {
        let cost = self.counters.phase(Phase::Prefill).since(before);
        self.guard().check_prefill(&cost, tokens as u64, drawn)
    }

    /// Adds `tokens` and evaluates them with full logits: `sink` gets rows `[n, n_vocab]` for the added tokens, in order. Tokens
    /// added before are evaluated first. On an error the session has the tokens it had, and what was evaluated stays.
    ///
    /// # Errors
    /// As [`Session::append_tokens`], [`Error::Cancelled`], what the device reports, or what `sink` returns.
    pub fn eval(&mut self, tokens: &[u32], sink: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let before = self.tokens.len() as u32;
        self.append_tokens(tokens)?;
        let result = self.eval_added(before, sink);
        if result.is_err() {
            self.truncate_tokens(before);
        }
        result
    }

    fn eval_added(&mut self, before: u32, sink: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        if !self.catch_up(self.tokens.len() - before as usize)? {
            bail!(Cancelled, "evaluation was cancelled");
        }
        let chunk = self.model.0.options_chunk() as usize;
        let scope = self.scope(Phase::Prefill);
        let mut from = before as usize;
        while from < self.tokens.len() {
            if self.cancel.take() {
                bail!(Cancelled, "evaluation was cancelled");
            }
            let n = (self.tokens.len() - from).min(chunk);
            let mut engine = self.model.0.warm_engine(&scope)?;
            let started = Instant::now();
            let sequence =
                self.sequence.as_mut().ok_or_else(|| Error::Internal("a session without sequence".into()))?;
            let piece = &self.tokens[from..from + n];
            engine.prefill_logits(sequence, piece, from as u32, &scope, sink)?;
            drop(engine);
            from += n;
            self.cached = from as u32;
            self.tally.prefill_tokens += n as u64;
            self.tally.prefill_ns += started.elapsed().as_nanos() as u64;
        }
        Ok(())
    }

    /// This session's counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What drawing `tokens_per_submit` tokens in one submit would have saved in decoding so far.
    pub fn batching_saving(&self, tokens_per_submit: u32) -> BatchingSaving {
        self.counters.phase(Phase::Decode).batching_saving(self.tally.decode_tokens, tokens_per_submit.into())
    }

    /// Looks at this session's tensors from now on, or with `None` no longer. While it does, decoding runs one token a submit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown point or layer, [`Error::OutOfMemory`], [`Error::InvalidState`] while generating.
    pub fn set_probe(&mut self, options: Option<ProbeOptions>) -> Result<()> {
        self.idle()?;
        let scope = self.scope(Phase::Other);
        let sequence = self.sequence.as_mut().ok_or_else(|| Error::Internal("a session without sequence".into()))?;
        self.model.0.engine.lock().set_probe(sequence, options, &scope)
    }

    /// What the probe has seen and was not taken yet, in order.
    pub fn readings(&self) -> &[ProbeReading] {
        self.sequence.as_ref().map(Sequence::readings).unwrap_or_default()
    }

    /// What the probe has seen since this was called last, in order.
    pub fn take_readings(&mut self) -> Vec<ProbeReading> {
        self.sequence.as_mut().map(Sequence::take_readings).unwrap_or_default()
    }

    /// Counters and times.
    pub fn stats(&self) -> SessionStats {
        let gpu = self.model.context().gpu();
        if let Err(e) = gpu.collect_times() {
            log::warn!("GPU times are missing: {e}");
        }
        let t = &self.tally;
        SessionStats {
            counters: self.counters.snapshot(),
            submits: self.counters.submits(),
            prefill_tokens: t.prefill_tokens,
            prefill_ns: t.prefill_ns,
            generated_tokens: t.generated_tokens,
            decode_tokens: t.decode_tokens,
            decode_ns: t.decode_ns,
            first_token_ns: t.first_token_ns,
            speculation: t.speculation,
            tokens: self.tokens.len() as u32,
            cached_tokens: self.cached,
            gpu_timed: gpu.timed(),
            guard: self.guard(),
        }
    }

    /// Sets counters and times to zero.
    pub fn reset_stats(&mut self) {
        self.counters.reset();
        self.tally = Tally::default();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(sequence) = self.sequence.take() {
            self.model.0.engine.lock().close(sequence);
        }
    }
}
