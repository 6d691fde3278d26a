//! Drafts by a smaller model, in a session of its own that follows the target's tokens.

use std::sync::Arc;

use crate::error::{Error, Result, bail};
use crate::gpu::{Counters, Guard, Phase};
use crate::model::DraftRole;
use crate::sample::SamplingOptions;
use crate::session::model::Model;
use crate::session::options::SessionOptions;
use crate::session::speculate::Drafter;
use crate::session::state::Session;

/// By so many ids two vocabularies may differ: rows that pad tables to round numbers (llama.cpp's tolerance too).
const PADDING: usize = 128;

/// Fails, naming what differs, unless the ids of two models mean the same.
fn check_vocabularies(target: &Model, draft: &Model) -> Result<()> {
    let (a, b) = (target.tokenizer(), draft.tokenizer());
    let (n, m) = (a.vocab_size(), b.vocab_size());
    if n.abs_diff(m) > PADDING {
        bail!(InvalidArgument, "draft model: its vocabulary has {m} tokens, the target's {n}");
    }
    for id in 0..n.min(m) as u32 {
        let (x, y) = (a.token_text(id), b.token_text(id));
        if x != y {
            let text = |t: Option<&str>| format!("{:?}", t.unwrap_or_default());
            bail!(InvalidArgument, "draft model: its token {id} is {}, the target's is {}", text(y), text(x));
        }
    }
    Ok(())
}

#[derive(Debug)]
pub(super) struct ModelDrafter {
    /// Its tokens are the target's, and at most drafts behind them.
    session: Session,
    /// Tokens before a draft that may be missing in its cache.
    lead: usize,
}

impl ModelDrafter {
    pub(super) fn open(target: &Model, draft: &Model, n_ctx: u32, counters: &Arc<Counters>) -> Result<Self> {
        check_vocabularies(target, draft)?;
        let options = SessionOptions { n_ctx: n_ctx.min(draft.info().n_ctx), ..Default::default() };
        let session = draft.open_session(&options)?;
        Self::of(session, counters).map_err(|e| e.within("draft model"))
    }

    /// Makes a session draft.
    fn of(mut session: Session, counters: &Arc<Counters>) -> Result<Self> {
        session.counters = counters.clone();
        let (scope, loading) = (session.scope(Phase::Other), session.scope(Phase::Load));
        let Some(sequence) = &mut session.sequence else { bail!(Internal, "a session without sequence") };
        let mut engine = session.model.0.engine.lock();
        engine.expect_drafts(sequence, DraftRole::Drafts)?;
        engine.configure(sequence, &SamplingOptions::greedy(), &[], &scope)?;
        engine.prewarm(&loading)?;
        let lead = engine.lead() as usize;
        drop(engine);
        Ok(Self { session, lead })
    }

    /// Brings the session's tokens to `tokens`, keeping what is evaluated of them but for the last, which is drawn from. False if they do not
    /// fit, or one is not in the draft model's table.
    fn follow(&mut self, tokens: &[u32]) -> bool {
        let s = &mut self.session;
        let vocab = s.model.spec().n_vocab;
        let known = s.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count().min(tokens.len().saturating_sub(1));
        if tokens.len() >= s.n_ctx as usize || tokens[known..].iter().any(|&t| t >= vocab) {
            return false;
        }
        s.truncate_tokens(known as u32);
        s.tokens.extend_from_slice(&tokens[known..]);
        true
    }

    fn missing(&self) -> usize {
        self.session.tokens.len() - self.session.cached as usize
    }
}

impl Drafter for ModelDrafter {
    fn prepare(&mut self, tokens: &[u32], guard: Guard) -> Result<bool> {
        if !self.follow(tokens) || self.missing() <= self.lead {
            return Ok(true);
        }
        self.session.guard = Some(guard);
        let chunk = self.session.model.0.options_chunk() as usize;
        let keep = (self.missing() - 1).saturating_sub(chunk) + 1;
        self.session.catch_up(keep)?;
        Ok(self.missing() <= self.lead)
    }

    fn draft(&mut self, tokens: &[u32], most: u32, guard: Guard, drafts: &mut Vec<u32>) -> Result<()> {
        if !self.follow(tokens) {
            return Ok(());
        }
        let s = &mut self.session;
        s.guard = Some(guard);
        // All but the last draft are evaluated.
        let n = most.min(s.n_ctx - s.tokens.len() as u32 + 1);
        let scope = s.scope(Phase::Decode);
        let mut engine = s.model.0.warm_engine(&scope)?;
        let before = s.counters.phase(Phase::Decode);
        let sequence = s.sequence.as_mut().ok_or_else(|| Error::Internal("a session without sequence".into()))?;
        let new = engine.draft(sequence, &s.tokens[s.cached as usize..], s.cached, n, &scope)?;
        drop(engine);
        let cost = s.counters.phase(Phase::Decode).since(&before);
        guard.check_decode(&cost, 1, n.into())?;
        let evaluated = new.len().min(n as usize - 1);
        s.tokens.extend_from_slice(&new[..evaluated]);
        s.cached = s.tokens.len() as u32;
        drafts.extend(new);
        Ok(())
    }

    fn fork(&self, counters: &Arc<Counters>) -> Result<Box<dyn Drafter>> {
        Ok(Box::new(Self::of(self.session.fork()?, counters)?))
    }
}
