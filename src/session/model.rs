//! A loaded model: engine, tokenizer, chat template.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use once_cell::sync::OnceCell;

use crate::checksum::Checksum;
use crate::error::{Error, Result, bail};
use crate::format::Gguf;
use crate::gpu::{Mutex, MutexGuard, Phase, Scope};
use crate::model::{self, Engine, EngineOptions, KvType, LoadedSizes, ModelSpec};
use crate::session::chat::{Chat, ChatOptions, Message};
use crate::session::context::Context;
use crate::session::options::{ModelOptions, SessionOptions};
use crate::session::state::Session;
use crate::session::stats::{LoadStats, ModelStats};
use crate::session::{embed, file};
use crate::text::{ChatTemplate, Markers, Tokenizer, Vocab};

/// Contexts are not made longer than this unless asked for: the trained length of some files would take all memory.
const DEFAULT_N_CTX: u32 = 4096;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) context: Context,
    pub(super) spec: Arc<ModelSpec>,
    pub(super) tokenizer: Tokenizer,
    pub(super) engine: Mutex<Engine>,
    /// Names and chat templates of the file; the usual one has no name.
    pub(super) templates: Vec<(String, String)>,
    /// Compiled at first use: a file whose template is broken can still be used without it.
    chat: OnceCell<Arc<Chat>>,
    options: EngineOptions,
    sizes: LoadedSizes,
    /// Of the file's tensors: snapshots belong to one set of weights.
    pub(super) fingerprint: u64,
    /// `<architecture>.pooling_type`, if the file has it.
    pub(super) pooling_type: Option<u32>,
    load_ns: u64,
    load: LoadStats,
}

impl Inner {
    /// Prompt tokens in one submit.
    pub(super) fn options_chunk(&self) -> u32 {
        self.options.chunk
    }
}

/// A loaded model. Clones share it; sessions keep it alive. Any thread: sessions of one model take turns on the device.
#[derive(Debug, Clone)]
pub struct Model(pub(super) Arc<Inner>);

/// What a model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Weight format of most bytes.
    pub format: &'static str,
    /// Weights of all matrices.
    pub parameters: u64,
    /// Bytes of weights in the file.
    pub file_bytes: u64,
    /// Bytes of weights that evaluating one token reads: what bounds the speed of decoding.
    pub token_bytes: u64,
    /// Layers.
    pub n_layer: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Entries of the vocabulary.
    pub n_vocab: u32,
    /// Longest context of a session, as loaded.
    pub n_ctx: u32,
    /// Context length of training.
    pub n_ctx_train: u32,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// The file carries a chat template.
    pub has_chat_template: bool,
}

/// The vocabulary of a file.
///
/// # Errors
/// [`Error::BadFile`] naming a key that is missing or of a wrong type.
pub(crate) fn read_vocab(file: &Gguf) -> Result<Vocab> {
    let id = |key: &str| file.get_u32(&format!("tokenizer.ggml.{key}_token_id"));
    let flag = |key: &str| file.get_bool(&format!("tokenizer.ggml.{key}"));
    Ok(Vocab {
        model: file.require_str("tokenizer.ggml.model")?.to_string(),
        pre: file.get_str("tokenizer.ggml.pre")?.map(str::to_string),
        name: file.get_str("general.name")?.map(str::to_string),
        tokens: file.require_str_array("tokenizer.ggml.tokens")?.to_vec(),
        scores: file.get_f32_array("tokenizer.ggml.scores")?,
        token_types: file.get_i32_array("tokenizer.ggml.token_type")?,
        merges: file.get_str_array("tokenizer.ggml.merges")?.map(<[String]>::to_vec).unwrap_or_default(),
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        eom: id("eom")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
    })
}

/// The chat templates of a file, with their names; the usual one has an empty name.
///
/// # Errors
/// [`Error::BadFile`] naming a key of a wrong type.
pub(crate) fn read_templates(file: &Gguf) -> Result<Vec<(String, String)>> {
    const KEY: &str = "tokenizer.chat_template";
    let mut templates = Vec::new();
    for (key, _) in file.metadata() {
        let Some(name) =
            key.strip_prefix(KEY).and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('.') })
        else {
            continue;
        };
        templates.extend(file.get_str(key)?.map(|source| (name.to_string(), source.to_string())));
    }
    Ok(templates)
}

/// A number that other weights do not have: of all tensors' names, types and shapes, and the beginnings of their bytes.
fn fingerprint(file: &Gguf) -> u64 {
    let mut hash = Checksum::default();
    for tensor in file.tensors() {
        hash.write(tensor.name.as_bytes());
        hash.write(&tensor.ggml_type.to_le_bytes());
        tensor.dims.iter().for_each(|d| hash.write(&d.to_le_bytes()));
        hash.write(&file.sample(tensor, 64));
    }
    hash.value()
}

impl Inner {
    /// The engine, with everything that evaluation needs: a session opened since may have replaced buffers, or the model was loaded without
    /// prewarming. What that costs is no part of prompts or decoding. Held until the work is done, so that nothing is replaced in between.
    pub(super) fn warm_engine(&self, scope: &Scope) -> Result<MutexGuard<'_, Engine>> {
        let mut engine = self.engine.lock();
        engine.prewarm(&scope.clone().in_phase(Phase::Load))?;
        Ok(engine)
    }
}

impl Model {
    pub(super) fn load(
        context: &Context,
        path: &Path,
        options: &ModelOptions,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Self> {
        let started = Instant::now();
        let file = file::open_model_file(path, options.quantize)?;
        let folder = path.is_dir();
        let spec = Arc::new(model::arch::read_spec(&file)?);
        let sizes = model::measure(&file, &spec)?;
        let pooling_type = embed::pooling_type(&file)?;
        let too_many = |tokens: usize| -> Result<()> {
            if tokens as u64 > u64::from(spec.n_vocab) {
                let (file, rows) = (file.name(), spec.n_vocab);
                bail!(BadFile, "{file}: the tokenizer has {tokens} tokens, the embedding table {rows} rows");
            }
            Ok(())
        };
        let vocab = if folder { None } else { Some(read_vocab(&file)?) };
        too_many(vocab.as_ref().map_or(0, |v| v.tokens.len()))?;
        let templates = if folder { file::folder_templates(path)? } else { read_templates(&file)? };
        let n_ctx = match options.n_ctx {
            0 => spec.context_length.min(DEFAULT_N_CTX),
            n => n,
        };
        let chunk = match options.prefill_chunk {
            0 => model::default_chunk(context.gpu(), &spec),
            n => n,
        };
        if n_ctx > 1 << 22 || chunk > 1 << 14 {
            bail!(InvalidArgument, "n_ctx {n_ctx} and prefill_chunk {chunk}: at most 4194304 and 16384");
        }
        let mut load = LoadStats { open_ns: started.elapsed().as_nanos() as u64, ..Default::default() };
        let (kv_type, exact) = (options.kv_type, options.exact);
        let engine_options = EngineOptions { n_ctx, chunk: chunk.min(n_ctx), kv_type, exact };
        // A large vocabulary takes a second to index: that happens beside the upload.
        let (tokenizer, engine) = std::thread::scope(|s| {
            let indexing = s.spawn(|| {
                let started = Instant::now();
                let tokenizer = match vocab {
                    Some(vocab) => Tokenizer::new(vocab).map_err(|e| e.within(file.name())),
                    None => file::folder_tokenizer(path),
                };
                Ok((tokenizer?, started.elapsed().as_nanos() as u64))
            });
            let engine =
                model::load_timed(context.gpu(), &file, spec.clone(), engine_options, options.prewarm, progress);
            let tokenizer = indexing.join().unwrap_or_else(|_| Err(Error::Internal("the tokenizer panicked".into())));
            (tokenizer, engine)
        });
        let ((engine, weights), (tokenizer, vocabulary_ns)) = (engine?, tokenizer?);
        (load.weights, load.vocabulary_ns) = (weights, vocabulary_ns);
        too_many(tokenizer.vocab_size())?;
        Ok(Self(Arc::new(Inner {
            context: context.clone(),
            tokenizer,
            engine: Mutex::new(engine),
            templates,
            chat: OnceCell::new(),
            options: engine_options,
            sizes,
            fingerprint: fingerprint(&file),
            pooling_type,
            load_ns: started.elapsed().as_nanos() as u64,
            load,
            spec,
        })))
    }

    /// The context it was loaded into.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Its shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.0.spec
    }

    /// What it is.
    pub fn info(&self) -> ModelInfo {
        let i = &self.0;
        ModelInfo {
            architecture: i.spec.architecture.clone(),
            name: i.spec.name.clone().unwrap_or_default(),
            format: i.sizes.format,
            parameters: i.sizes.parameters,
            file_bytes: i.sizes.file_bytes,
            token_bytes: i.sizes.token_bytes,
            n_layer: i.spec.layers.len() as u32,
            n_embd: i.spec.n_embd,
            n_vocab: i.spec.n_vocab,
            n_ctx: i.options.n_ctx,
            n_ctx_train: i.spec.context_length,
            kv_type: i.options.kv_type,
            has_chat_template: i.templates.iter().any(|(name, _)| name.is_empty()),
        }
    }

    /// What loading it cost and what its cache holds.
    pub fn stats(&self) -> ModelStats {
        let engine = self.0.engine.lock();
        let (kv, recurrent) = (engine.kv_stats(), engine.recurrent_stats());
        ModelStats { load_ns: self.0.load_ns, load: self.0.load, file_bytes: self.0.sizes.file_bytes, kv, recurrent }
    }

    /// The chat template of the file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the file has none, [`Error::Template`] if it does not compile.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        Ok(self.chat()?.template())
    }

    /// The file's template, without tools and variables.
    pub(super) fn chat(&self) -> Result<&Arc<Chat>> {
        self.0.chat.get_or_try_init(|| Chat::new(self, ChatOptions::default()).map(Arc::new))
    }

    /// The marks that replies may have where no template was chosen; one that does not compile is only text here.
    pub(super) fn markers(&self) -> Markers {
        let template = self.0.templates.iter().find(|(name, _)| name.is_empty()).map(|(_, source)| source.as_str());
        Markers::find(|mark| self.tokenizer().find(mark).is_some(), template)
    }

    /// Renders a conversation through the file's chat template.
    ///
    /// # Errors
    /// As [`Model::chat_template`]; [`Error::Template`] with the template's own message.
    pub fn format_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.chat()?.render(messages, add_generation_prompt)
    }

    /// Renders a conversation with a template, tools and variables of the caller's choice.
    ///
    /// # Errors
    /// As [`Model::format_chat`]; [`Error::InvalidArgument`] for the name of a template that is not known.
    pub fn render_chat(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        add_generation_prompt: bool,
    ) -> Result<String> {
        Chat::new(self, options.clone())?.render(messages, add_generation_prompt)
    }

    /// Tokens of a rendered conversation: special tokens parsed, and a BOS in front only if the template wrote none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenize_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        let t = &self.0.tokenizer;
        let has_bos = t.bos().and_then(|b| t.token_text(b)).is_some_and(|b| !b.is_empty() && rendered.starts_with(b));
        t.encode(rendered, !has_bos, true)
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a context beyond the model's, [`Error::OutOfMemory`].
    pub fn open_session(&self, options: &SessionOptions) -> Result<Session> {
        Session::open(self, options)
    }
}
