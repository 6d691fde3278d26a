//! Flags for drafts.

use std::path::PathBuf;

use doppler::session::{Context, DraftSource, ModelOptions, SessionOptions, Speculation, SpeculationStats};
use serde_json::{Value, json};

use super::open::{self, SubmitArgs};
use super::outcome::Outcome;

/// Who drafts tokens, and how many.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Drafts")]
pub(super) struct SpeculationArgs {
    /// Verify what followed the longest earlier occurrence of the last tokens, at most N of them; the text stays the same
    #[arg(long, value_name = "N", conflicts_with = "draft_model")]
    lookup: Option<u32>,
    /// Verify what this smaller model of the same vocabulary drafts; the text stays the same
    #[arg(long, value_name = "FILE")]
    draft_model: Option<PathBuf>,
    /// Tokens drafted at a time, at most 15 [default: 7]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    draft: u32,
    /// Always draft as many, even where it does not pay
    #[arg(long)]
    fixed_draft: bool,
}

impl SpeculationArgs {
    /// Whether anything is to be drafted.
    pub(super) fn wanted(&self) -> bool {
        self.lookup.is_some() || self.draft_model.is_some()
    }

    /// Opens the drafter that is asked for; a draft model has the target's options.
    pub(super) fn open(&self, context: &Context, options: &ModelOptions) -> Outcome<Option<Speculation>> {
        let how = match (&self.draft_model, self.lookup) {
            (Some(file), _) => Speculation::draft_model(&open::model(context, file, options)?),
            (None, Some(max)) => Speculation::lookup(max),
            (None, None) => return Ok(None),
        };
        Ok(Some(Speculation { max_draft: self.draft, adaptive: !self.fixed_draft, ..how }))
    }

    /// A session's options.
    pub(super) fn session_options(
        &self,
        context: &Context,
        options: &ModelOptions,
        submits: &SubmitArgs,
    ) -> Outcome<SessionOptions> {
        Ok(SessionOptions {
            tokens_per_submit: submits.tokens_per_submit,
            submit_time_us: u32::from(submits.submit_ms) * 1000,
            speculation: self.open(context, options)?,
            ..Default::default()
        })
    }
}

/// Who drafts, for programs; null where nobody does.
pub(super) fn source_json(how: Option<&Speculation>) -> Value {
    let Some(how) = how else { return Value::Null };
    let mut value = match &how.source {
        DraftSource::Lookup { min, max } => json!({"drafter": "lookup", "ngram_min": min, "ngram_max": max}),
        DraftSource::Model(model) => json!({"drafter": "model", "model": model.info().name}),
    };
    value["max_draft"] = how.max_draft.into();
    value["adaptive"] = how.adaptive.into();
    value
}

/// What drafts did.
pub(super) fn stats_json(s: &SpeculationStats) -> Value {
    json!({
        "drafted": s.drafted, "accepted": s.accepted, "verifications": s.verifications, "acceptance": s.acceptance(),
        "mean_accepted": s.mean_accepted(), "draft_ms": s.draft_ns as f64 / 1e6,
    })
}
