//! Adapters of a model, and which of them a session has.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::gpu::Phase;
use crate::model::{self, LoraInfo};
use crate::session::model::Model;
use crate::session::snapshot::NO_ADAPTERS;
use crate::session::state::Session;

/// A LoRA adapter, loaded for one model. Clones share it; it keeps the model, and sessions keep it. Any thread.
#[derive(Debug, Clone)]
pub struct Lora(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    model: Model,
    lora: Arc<model::Lora>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.model.0.engine.lock().forget_lora(&self.lora);
    }
}

impl Lora {
    /// What it is.
    pub fn info(&self) -> &LoraInfo {
        self.0.lora.info()
    }

    /// The model it was loaded for.
    pub fn model(&self) -> &Model {
        &self.0.model
    }
}

/// What becomes of keys and values that were made with other adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoraCache {
    /// They are forgotten: everything said is evaluated again, as if the session had had these adapters from the beginning.
    #[default]
    Forget,
    /// They stay: what was said before is seen as the adapters of that time saw it. Costs nothing, and gives what no single adapter would.
    Keep,
}

impl Model {
    /// Loads a LoRA adapter: a GGUF file, or a folder as PEFT writes it (`adapter_config.json`, `adapter_model.safetensors`). The model stays as it is;
    /// sessions choose their adapters with [`Session::set_loras`].
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] naming file and key or tensor: what is not plain LoRA, is made
    /// for another architecture or does not fit the model; [`crate::Error::OutOfMemory`].
    pub fn load_lora(&self, path: &Path) -> Result<Lora> {
        let places = self.0.engine.lock().lora_places();
        let lora = model::load_lora(self.context().gpu(), path, self.spec(), places)?;
        Ok(Lora(Arc::new(Inner { model: self.clone(), lora: Arc::new(lora) })))
    }
}

/// How a list of adapters is told from another one: each one's content and factor.
pub(super) fn describe(list: &[(Lora, f32)]) -> String {
    let active = list.iter().filter(|(_, scale)| *scale != 0.0);
    let words: Vec<String> = active.map(|(l, scale)| format!("{:016x}*{scale}", l.info().fingerprint)).collect();
    if words.is_empty() { NO_ADAPTERS.to_string() } else { words.join(" ") }
}

impl Session {
    /// The session's adapters, with their factors.
    pub fn loras(&self) -> &[(Lora, f32)] {
        &self.loras
    }

    /// Gives the session these adapters in the place of those it has, each with a factor; what they change adds up. Whatever is evaluated from now
    /// on is evaluated with them. The same list again changes nothing. What was evaluated with other adapters is evaluated again when it is
    /// needed, unless `cache` says otherwise. Nothing is loaded; pipelines and plans that are missing are made here, so that the next token
    /// makes none. Lists that were used lately are kept ready.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for an adapter of another model or a factor that is not finite, [`crate::Error::InvalidState`] while
    /// generating, [`crate::Error::Unsupported`] in a session with drafts, or what compiling reports: the session is then as it was.
    pub fn set_loras(&mut self, list: &[(Lora, f32)], cache: LoraCache) -> Result<()> {
        self.idle()?;
        if list.iter().any(|(l, _)| !Arc::ptr_eq(&l.model().0, &self.model.0)) {
            bail!(InvalidArgument, "an adapter that was loaded for another model");
        }
        if self.speculator.is_some() && !list.is_empty() {
            bail!(Unsupported, "adapters in a session with drafts: end the drafts first");
        }
        let scope = self.scope(Phase::Load);
        let raw: Vec<_> = list.iter().map(|(l, scale)| (l.0.lora.clone(), *scale)).collect();
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        let changed = self.model.0.engine.lock().set_loras(sequence, &raw, &scope)?;
        // The old ones may go with this: they take the engine's lock.
        self.loras = list.to_vec();
        if changed && cache == LoraCache::Forget {
            self.forget_from(0);
        }
        Ok(())
    }
}
