//! Generation as a state machine: each step is one submit, its tokens become events.
//!
//! [`Session::generate`] runs the steps to the end. A step evaluates one chunk of the prompt, or draws the next batch of tokens; between
//! steps a cancel request is taken and the caller's word is heard.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::error::{Result, bail};
use crate::gpu::Phase;
use crate::model::{Drawn, Follows, Stop};
use crate::session::options::GenerateOptions;
use crate::session::state::Session;
use crate::session::together;
use crate::text::{Piece, ReplyStream, Said, SegmentKind, add_piece};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model drew an end-of-generation token.
    EndToken,
    /// A stop string was met.
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller's callback asked for it.
    Callback,
    /// It was cancelled.
    Cancelled,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEvent {
    /// Its id.
    pub token: u32,
    /// Text that became certain with it: whole UTF-8, possibly empty, never part of a stop string.
    pub text: String,
    /// The same text by segments: content, reasoning, calls of tools.
    pub pieces: Vec<Piece>,
}

/// The outcome of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Why it ended.
    pub reason: FinishReason,
    /// Which stop string was met, by its place in the options.
    pub stop_string: Option<u32>,
    /// The tokens, an end token included.
    pub tokens: Vec<u32>,
    /// The text, without stop string.
    pub text: String,
    /// The same text by segments.
    pub pieces: Vec<Piece>,
    /// The end of it that came with no token: it was held back until nothing more could follow.
    pub held: Vec<Piece>,
}

fn joined(pieces: &[Piece]) -> String {
    pieces.iter().map(|p| p.text.as_str()).collect()
}

/// Why a generation ended, and by which stop string.
pub(super) type Ended = (FinishReason, Option<u32>);

/// A generation under way.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) max_tokens: u32,
    render_special: bool,
    /// Present until the generation has ended.
    reply: Option<ReplyStream>,
    started: Instant,
    /// The first token was drawn: the device goes on by itself.
    decoding: bool,
    pub(super) tokens: Vec<u32>,
    pieces: Vec<Piece>,
    held: Vec<Piece>,
    events: VecDeque<TokenEvent>,
    finished: Option<Ended>,
}

impl Session {
    /// Generates until something ends it. `on_token` gets each token as it arrives, and can end the generation.
    ///
    /// # Errors
    /// [`crate::Error::InvalidState`] in an empty session, [`crate::Error::InvalidArgument`] for senseless options, [`crate::Error::Guard`] for a broken
    /// budget in strict mode, or what the device reports. The session then holds the tokens delivered so far.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(&TokenEvent) -> ControlFlow<()>,
    ) -> Result<Generated> {
        self.begin(options)?;
        let ended = self.run_to_end(on_token);
        self.conclude(ended)
    }

    /// Takes the generation's state away: what it came to, or the error that ended it.
    pub(super) fn conclude(&mut self, ended: Result<Ended>) -> Result<Generated> {
        let generation = self.generation.take();
        let (reason, stop_string) = ended?;
        let Some(generation) = generation else { bail!(Internal, "a generation ended without its state") };
        let Generation { tokens, pieces, held, render_special, .. } = generation;
        if render_special {
            let text = self.model.tokenizer().decode(&tokens, false)?;
            self.remember_reply(&[Piece { kind: SegmentKind::Content, text }]);
        } else {
            self.remember_reply(&pieces);
        }
        Ok(Generated { reason, stop_string, tokens, text: joined(&pieces), pieces, held })
    }

    /// Sets a generation up; nothing is submitted yet.
    pub(super) fn begin(&mut self, options: &GenerateOptions) -> Result<()> {
        self.idle()?;
        if self.tokens.is_empty() {
            bail!(InvalidState, "the session is empty: append a prompt first");
        }
        let of_model = if options.ignore_eos { &[][..] } else { self.model.tokenizer().end_of_generation() };
        let mut ends = of_model.to_vec();
        for &token in &options.end_tokens {
            if !ends.contains(&token) {
                ends.push(token);
            }
        }
        if let Some(token) = ends.iter().find(|&&t| t >= self.model.spec().n_vocab) {
            bail!(InvalidArgument, "end_tokens: {token} in a vocabulary of {}", self.model.spec().n_vocab);
        }
        let scope = self.scope(Phase::Prefill);
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        self.model.0.engine.lock().configure(sequence, &options.sampling, &ends, &scope)?;
        // The last token's logits are needed: it is evaluated again if its keys and values are there already.
        self.forget_from(self.tokens.len() as u32 - 1);
        let reply = ReplyStream::new(self.segmenter()?, options.stop.clone());
        // Every drawn token needs a place, if only in the next evaluation.
        let full = self.tokens.len() >= self.n_ctx as usize;
        self.generation = Some(Generation {
            max_tokens: if options.max_tokens == 0 { u32::MAX } else { options.max_tokens },
            render_special: options.render_special,
            reply: Some(reply),
            started: Instant::now(),
            decoding: false,
            tokens: Vec::new(),
            pieces: Vec::new(),
            held: Vec::new(),
            events: VecDeque::new(),
            finished: full.then_some((FinishReason::ContextFull, None)),
        });
        Ok(())
    }

    fn run_to_end(&mut self, on_token: &mut dyn FnMut(&TokenEvent) -> ControlFlow<()>) -> Result<Ended> {
        loop {
            if let Some(ended) = self.deliver(on_token) {
                return Ok(ended);
            }
            self.step()?;
        }
    }

    /// Hands out the events that wait. The reason, if the generation has ended.
    pub(super) fn deliver(&mut self, on_token: &mut dyn FnMut(&TokenEvent) -> ControlFlow<()>) -> Option<Ended> {
        while let Some(event) = self.generation.as_mut().and_then(|g| g.events.pop_front()) {
            let Some(g) = &mut self.generation else { break };
            event.pieces.iter().for_each(|p| add_piece(&mut g.pieces, p.kind, &p.text));
            if on_token(&event).is_break() {
                let dropped: usize = g.events.len();
                g.tokens.truncate(g.tokens.len() - dropped);
                let keep = self.tokens.len() - dropped;
                self.truncate_tokens(keep as u32);
                return Some((FinishReason::Callback, None));
            }
        }
        self.generation.as_ref().and_then(|g| g.finished)
    }

    /// One submit: a chunk of the prompt, or the next batch of tokens.
    fn step(&mut self) -> Result<()> {
        if self.take_cancel()? {
            return Ok(());
        }
        self.model.context().gpu().rest_profiler()?;
        match self.is_decoding() {
            true if self.step_drafted()? => Ok(()),
            true => together::decode(&mut [&mut *self])?.into_iter().collect(),
            false => self.step_prompt(Some(&[])),
        }
    }

    /// Ends the generation if that was asked for.
    pub(super) fn take_cancel(&mut self) -> Result<bool> {
        let cancelled = self.cancel.take();
        if cancelled {
            self.finish(FinishReason::Cancelled, None)?;
        }
        Ok(cancelled)
    }

    /// True once the first token was drawn.
    pub(super) fn is_decoding(&self) -> bool {
        self.generation.as_ref().is_some_and(|g| g.decoding)
    }

    /// Tokens that the next decode batch may draw, that the batch after it may, and so many before `max_tokens` or the context ends it.
    pub(super) fn wanted(&self) -> Result<[u32; 3]> {
        let Some(g) = &self.generation else { bail!(InvalidState, "no generation is running") };
        let [now, next] = if self.is_probed() { [1, 1] } else { [self.pace.now(), self.pace.next()] };
        let left = g.max_tokens.saturating_sub(g.tokens.len() as u32);
        Ok([now, next, left.min(self.n_ctx.saturating_sub(self.tokens.len() as u32))])
    }

    pub(super) fn is_probed(&self) -> bool {
        self.sequence.as_ref().is_some_and(|s| s.is_probed())
    }

    /// Evaluates the prompt and draws the first token. With `companions`, the batch after it is decoded with them, all past their prompts, and is made
    /// ready meanwhile.
    pub(super) fn step_prompt(&mut self, companions: Option<&[&Session]>) -> Result<()> {
        let chunk = self.model.0.options_chunk() as usize;
        // The last chunk is drawn from; whole chunks come before it.
        let missing = self.tokens.len() - self.cached as usize;
        let last = (missing - 1) % chunk + 1;
        if !self.catch_up(last)? {
            return self.finish(FinishReason::Cancelled, None);
        }
        let (scope, decode_scope) = (self.scope(Phase::Prefill), self.scope(Phase::Decode));
        // Where drafts are verified next, there is no batch to be encoded ahead.
        let plain = self.speculator.as_ref().is_none_or(|s| s.rests());
        let left = self.generation.as_ref().filter(|_| plain).map_or(0, |g| g.max_tokens - 1);
        let then = self.pace.now().min(left).min((self.n_ctx as usize - self.tokens.len()) as u32 - 1);
        let with = companions.unwrap_or_default();
        let decode_scope = with.iter().fold(decode_scope, |scope, s| scope.with_session(s.counters.clone()));
        let wanted = with.iter().map(|s| s.wanted().map_or(0, |[now, _, left]| now.min(left)));
        let tokens = wanted.fold(then, u32::min);
        let others: Vec<_> = with.iter().filter_map(|s| s.sequence.as_ref()).collect();
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        let mut engine = self.model.0.warm_engine(&scope)?;
        let fits = tokens > 0 && others.len() == with.len() && others.len() < engine.max_sequences() as usize;
        let then = companions.filter(|_| fits).map(|_| Follows { others: &others, tokens, scope: &decode_scope });
        let started = Instant::now();
        let before = self.counters.phase(Phase::Prefill);
        let tail = &self.tokens[self.cached as usize..];
        // The last token that fits is drawn from the position before it.
        let drawn = engine.prefill_and_draw(sequence, tail, self.cached, self.n_ctx - 1, then, &scope)?;
        drop(engine);
        self.check_prefill(&before, last, 1)?;
        self.cached = self.tokens.len() as u32;
        self.tally.prefill_tokens += last as u64;
        self.tally.prefill_ns += started.elapsed().as_nanos() as u64;
        if let Some(g) = &mut self.generation {
            g.decoding = true;
            self.tally.first_token_ns = g.started.elapsed().as_nanos() as u64;
        }
        self.accept(&[drawn])
    }

    /// Turns drawn tokens into events, up to what ends the generation. What was drawn behind that is forgotten.
    pub(super) fn accept(&mut self, drawn: &[Drawn]) -> Result<()> {
        let accepted = self.accept_some(drawn);
        self.settle();
        accepted
    }

    fn accept_some(&mut self, drawn: &[Drawn]) -> Result<()> {
        for d in drawn {
            let model = self.model.clone();
            let tokenizer = model.tokenizer();
            let Some(g) = &mut self.generation else { bail!(InvalidState, "no generation is running") };
            // Evaluated on the device: everything before the token that was just drawn.
            self.cached = self.tokens.len() as u32;
            self.tokens.push(d.token);
            g.tokens.push(d.token);
            self.tally.generated_tokens += 1;
            let ends = d.stop == Stop::Token;
            // An end token is not part of the text, unless special tokens are shown; a row of the table that the tokenizer
            // does not know (padding of the vocabulary) has no text.
            let Some(reply) = &mut g.reply else { bail!(InvalidState, "the generation has ended") };
            let said = if ends && !g.render_special {
                Said::default()
            } else {
                match tokenizer.token_bytes(d.token, g.render_special).unwrap_or_default() {
                    bytes if bytes.is_empty() => reply.push_hidden(tokenizer.token_text(d.token).unwrap_or_default()),
                    bytes => reply.push(&bytes),
                }
            };
            g.events.push_back(TokenEvent { token: d.token, text: joined(&said.pieces), pieces: said.pieces });
            let n = g.tokens.len() as u32;
            if let Some(stop) = said.stop {
                return self.finish(FinishReason::StopString, Some(stop as u32));
            }
            if ends {
                return self.finish(FinishReason::EndToken, None);
            }
            if n >= g.max_tokens {
                return self.finish(FinishReason::MaxTokens, None);
            }
            if d.stop == Stop::Limit {
                return self.finish(FinishReason::ContextFull, None);
            }
        }
        Ok(())
    }

    /// Ends the generation; text held back comes out with the last event.
    fn finish(&mut self, reason: FinishReason, stop: Option<u32>) -> Result<()> {
        let Some(g) = &mut self.generation else { bail!(InvalidState, "no generation is running") };
        if let Some((rest, segments)) = g.reply.take().map(ReplyStream::finish).filter(|_| stop.is_none()) {
            match g.events.back_mut() {
                Some(last) => {
                    last.text.push_str(&joined(&rest));
                    rest.iter().for_each(|p| add_piece(&mut last.pieces, p.kind, &p.text));
                }
                // Nothing is waiting to be delivered: the text goes to the result alone.
                None => {
                    rest.iter().for_each(|p| add_piece(&mut g.pieces, p.kind, &p.text));
                    g.held = rest;
                }
            }
            self.segment = Some((self.tokens.len(), segments));
        }
        g.finished = Some((reason, stop));
        Ok(())
    }
}
