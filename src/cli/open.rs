//! Opening devices and models the way the flags say.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use doppler::gpu::{AdapterChoice, Features, Guard, GuardMode, PowerPreference};
use doppler::kernels::KvType;
use doppler::session::{Context, ContextOptions, LoraCache, Model, ModelOptions, Session, WeightFormat};
use indicatif::{ProgressBar, ProgressStyle};

use super::outcome::Outcome;

/// Flags of every verb that opens a device.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// Adapter by its number in `doppler adapters`, or a part of its name
    #[arg(long, global = true, value_name = "INDEX|NAME")]
    adapter: Option<String>,
    /// Refuse adapters that compute on the CPU
    #[arg(long, global = true)]
    no_software: bool,
    /// Prefer a frugal or a fast adapter
    #[arg(long, global = true, value_enum, default_value = "high")]
    power: Power,
    /// Do without these abilities of the device
    #[arg(long, global = true, value_enum, value_delimiter = ',', value_name = "ABILITY,…")]
    disable: Vec<Ability>,
    /// Most bytes on the device; 0 = no limit
    #[arg(long, global = true, value_name = "BYTES", default_value_t = 0)]
    memory_budget: u64,
    /// Take GPU times with timestamp queries (costs a readback now and then)
    #[arg(long, global = true)]
    gpu_timing: bool,
    /// What happens when work breaks its budget
    #[arg(long, global = true, value_enum, default_value = "off")]
    guard: GuardArg,
    /// Keep compiled pipelines, and how wide the device is, in this folder from one run to the next
    #[arg(long, global = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Workgroups that the device is taken to run at once, 1 to 256, by which work is divided; 0: as measured, if that is kept in --cache-dir, or a guess
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=256))]
    width: u32,
    /// Write a trace of every call made of wgpu to this folder
    #[cfg(feature = "api-trace")]
    #[arg(long, global = true, value_name = "DIR")]
    api_trace: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Power {
    Low,
    High,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ability {
    Subgroups,
    F16,
    Immediates,
    Timestamps,
    PipelineCache,
    CooperativeMatrix,
    Chains,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GuardArg {
    Off,
    Warn,
    Strict,
}

fn say_if_software(context: &Context) {
    let adapter = context.adapter();
    if adapter.is_software() {
        eprintln!("doppler: note: {} computes on the CPU", adapter.name);
    }
}

impl DeviceArgs {
    fn options(&self) -> ContextOptions {
        let on = |a| !self.disable.contains(&a);
        let index = self.adapter.as_ref().and_then(|a| a.parse().ok());
        ContextOptions {
            adapter: AdapterChoice {
                index,
                name: self.adapter.clone().filter(|_| index.is_none()),
                power: match self.power {
                    Power::Low => PowerPreference::LowPower,
                    Power::High => PowerPreference::HighPerformance,
                },
                allow_software: !self.no_software,
            },
            features: Features {
                subgroups: on(Ability::Subgroups),
                f16: on(Ability::F16),
                immediates: on(Ability::Immediates),
                timestamps: on(Ability::Timestamps),
                pipeline_cache: on(Ability::PipelineCache),
                cooperative_matrix: on(Ability::CooperativeMatrix),
                chains: on(Ability::Chains),
            },
            memory_budget: self.memory_budget,
            timing: self.gpu_timing,
            guard: Guard {
                mode: match self.guard {
                    GuardArg::Off => GuardMode::Off,
                    GuardArg::Warn => GuardMode::Warn,
                    GuardArg::Strict => GuardMode::Strict,
                },
                ..Guard::default()
            },
            cache_dir: self.cache_dir.clone(),
            width: self.width,
            #[cfg(feature = "api-trace")]
            api_trace: self.api_trace.clone(),
            #[cfg(not(feature = "api-trace"))]
            api_trace: None,
        }
    }

    /// Opens the device, and says so on stderr if it computes on the CPU.
    pub(super) fn open(&self) -> Outcome<Context> {
        let context = Context::open(&self.options())?;
        say_if_software(&context);
        if self.gpu_timing && !context.gpu().timed() {
            eprintln!("doppler: note: this device takes no GPU times");
        }
        Ok(context)
    }
}

/// The flag of verbs whose work can be profiled.
#[derive(Debug, clap::Args)]
pub(super) struct ProfileArgs {
    /// Take a profile of every GPU operation: its table goes to stderr, a trace (Perfetto, chrome://tracing) to this file
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

impl ProfileArgs {
    /// Whether one is asked for.
    pub(super) fn wanted(&self) -> bool {
        self.profile.is_some()
    }

    /// Starts a profile if one is asked for.
    pub(super) fn start(&self, context: &Context) -> Outcome {
        match self.profile {
            Some(_) => Ok(context.start_profile()?),
            None => Ok(()),
        }
    }

    /// Ends the profile that was started.
    pub(super) fn finish(&self, context: &Context) -> Outcome {
        if let Some(file) = &self.profile {
            eprint!("{}", context.stop_profile()?.table());
            context.write_trace(file)?;
        }
        Ok(())
    }
}

impl DeviceArgs {
    /// [`DeviceArgs::open`] with GPU times, whatever the flags say.
    pub(super) fn open_timed(&self) -> Outcome<Context> {
        let context = Context::open(&ContextOptions { timing: true, ..self.options() })?;
        say_if_software(&context);
        Ok(context)
    }

    /// Opens the device once more with fewer abilities. What it does is in no trace of calls.
    pub(super) fn open_with(&self, features: Features) -> Outcome<Context> {
        Ok(Context::open(&ContextOptions { features, api_trace: None, ..self.options() })?)
    }
}

/// Storage of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum KvArg {
    F16,
    F32,
    Q8,
}

impl From<KvArg> for KvType {
    fn from(k: KvArg) -> Self {
        match k {
            KvArg::F16 => KvType::F16,
            KvArg::F32 => KvType::F32,
            KvArg::Q8 => KvType::Q8,
        }
    }
}

/// Flags of every verb that runs a model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(super) struct EngineArgs {
    /// Storage of keys and values
    #[arg(long, value_enum, default_value = "f16")]
    kv: KvArg,
    /// Context length; 0 = what the model was trained for, at most 4096
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) ctx: u32,
    /// Prompt tokens in one submit; 0 = as many as suit the device
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunk: u32,
    /// Keep activations in f32 in every product; decoding quantised weights rounds them to 8 bits otherwise
    #[arg(long)]
    exact: bool,
    /// Quantise the weights of a folder of safetensors while they are loaded
    #[arg(long, value_enum, value_name = "FORMAT")]
    quantize: Option<QuantizeArg>,
}

/// The flag of verbs whose session may have adapters.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(super) struct LoraArgs {
    /// LoRA adapter, a GGUF file or a folder as PEFT writes it, with a factor (1 if none is given); may be repeated
    #[arg(long = "lora", value_name = "FILE[=SCALE]")]
    loras: Vec<String>,
}

/// A file and its factor. What follows the last `=` is a part of the name where it is no number.
fn lora_of(text: &str) -> (&str, f32) {
    let split = text.rsplit_once('=').and_then(|(file, scale)| Some((file, scale.parse().ok()?)));
    split.filter(|_| !Path::new(text).exists()).unwrap_or((text, 1.0))
}

impl LoraArgs {
    /// Loads the adapters and gives them to a session.
    pub(super) fn give(&self, session: &mut Session) -> Outcome {
        let mut list = Vec::with_capacity(self.loras.len());
        for text in &self.loras {
            let (file, scale) = lora_of(text);
            list.push((session.model().load_lora(Path::new(file))?, scale));
        }
        Ok(session.set_loras(&list, LoraCache::Forget)?)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum QuantizeArg {
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

/// Tokens of a submit
#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    /// Tokens drawn in one submit; they arrive together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) tokens_per_submit: u32,
    /// Draw as many tokens in one submit as take this long, at most that number
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(super) submit_ms: u16,
}

impl SubmitArgs {
    /// Always so many.
    pub(super) fn of(tokens_per_submit: u32) -> Self {
        Self { tokens_per_submit, submit_ms: 0 }
    }
}

impl EngineArgs {
    pub(super) fn model_options(&self) -> ModelOptions {
        let quantize = self.quantize.map(|q| match q {
            QuantizeArg::Q8_0 => WeightFormat::Q8_0,
            QuantizeArg::Q4_0 => WeightFormat::Q4_0,
        });
        ModelOptions {
            n_ctx: self.ctx,
            prefill_chunk: self.chunk,
            kv_type: self.kv.into(),
            exact: self.exact,
            quantize,
            ..Default::default()
        }
    }
}

/// Loads a model, with a progress bar where stderr is a terminal.
pub(super) fn model(context: &Context, path: &Path, options: &ModelOptions) -> Outcome<Model> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("loading {bar:32} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let model = context.load_model(path, options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        Ok(())
    });
    bar.finish_and_clear();
    Ok(model?)
}

#[cfg(test)]
mod tests {
    use super::lora_of;

    #[test]
    fn factors_of_adapters() {
        assert_eq!(lora_of("a.gguf"), ("a.gguf", 1.0));
        assert_eq!(lora_of("a.gguf=0.5"), ("a.gguf", 0.5));
        assert_eq!(lora_of("a=b/c.gguf"), ("a=b/c.gguf", 1.0));
        assert_eq!(lora_of("a=1=-2"), ("a=1", -2.0));
    }
}
