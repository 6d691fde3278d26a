//! Verbs, global flags, and how the program ends. One file a verb.

mod adapters;
mod bench;
mod chat;
mod choose;
mod embed;
mod format;
mod generate;
mod info;
mod input;
mod interrupt;
mod logits;
mod open;
mod outcome;
mod perplexity;
mod probe;
mod report;
mod sampling;
mod selfcheck;
mod speculate;
mod test;
mod tokenize;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use outcome::{Failure, Outcome};

/// Language models on any GPU that wgpu reaches.
#[derive(Debug, Parser)]
#[command(name = "doppler", version, about, arg_required_else_help = true)]
struct Program {
    #[command(flatten)]
    device: open::DeviceArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Continue a prompt.
    Generate(generate::Args),
    /// Talk with a model.
    Chat(chat::Args),
    /// Show what a GGUF file holds, and whether it runs; needs no GPU.
    Info(info::Args),
    /// List the adapters of this machine.
    Adapters(adapters::Args),
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: BenchVerb,
    },
    /// Check this build on this machine's GPU.
    Test {
        #[command(subcommand)]
        what: TestVerb,
    },
    /// Turn text into token ids; needs no GPU.
    Tokenize(tokenize::Args),
    /// Write the logits of every position.
    Logits(logits::Args),
    /// Render a conversation through a chat template; needs no GPU.
    Format(format::Args),
    /// Look at a model's intermediate tensors; fails if one holds NaN, infinities or values beyond a limit.
    Probe(probe::Args),
    /// Say which of several texts is most likely to follow a prompt.
    Choose(choose::Args),
    /// Turn texts into vectors.
    Embed(embed::Args),
    /// Perplexity of a text, in independent windows.
    Perplexity(perplexity::Args),
}

#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Prompt evaluation and greedy generation of models.
    Inference(bench::inference::Args),
    /// Single operations of the kernels.
    Kernels(bench::kernels::Args),
    /// The way to the first token: device, loading, a short prompt.
    Load(bench::load::Args),
    /// Results of `inference` and `kernels` against each other.
    Compare(bench::compare::Args),
    /// Results as a table and a picture in a document, beside another engine's.
    Table(bench::table::Args),
}

#[derive(Debug, Subcommand)]
enum TestVerb {
    /// Every kernel against a reference on the CPU; with a model also its ways of evaluating a prompt against each other.
    Correctness(test::Args),
}

/// Warnings and errors of the library on stderr; of other crates errors only.
struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, m: &log::Metadata<'_>) -> bool {
        m.level() <= if m.target().starts_with("doppler") { log::Level::Warn } else { log::Level::Error }
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("doppler: {}: {}", record.level().as_str().to_lowercase(), record.args());
        }
    }
    fn flush(&self) {}
}

/// Parses the command line, runs the verb, and turns its outcome into an exit code: 0 done, 1 failed, 2 wrong usage.
pub(crate) fn main() -> ExitCode {
    let program = Program::parse();
    // Fails only if a logger is set already, and there is none.
    let _ = log::set_logger(&StderrLog).map(|()| log::set_max_level(log::LevelFilter::Warn));
    match run(&program) {
        Ok(()) | Err(Failure::Pipe) => ExitCode::SUCCESS,
        Err(Failure::Reported) => ExitCode::from(1),
        Err(Failure::Message(text)) => {
            eprintln!("doppler: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(text)) => {
            eprintln!("doppler: {text}");
            ExitCode::from(2)
        }
    }
}

fn run(program: &Program) -> Outcome {
    let device = &program.device;
    match &program.verb {
        Verb::Generate(a) => generate::run(device, a),
        Verb::Chat(a) => chat::run(device, a),
        Verb::Info(a) => info::run(a),
        Verb::Adapters(a) => adapters::run(a),
        Verb::Bench { what: BenchVerb::Inference(a) } => bench::inference::run(device, a),
        Verb::Bench { what: BenchVerb::Kernels(a) } => bench::kernels::run(device, a),
        Verb::Bench { what: BenchVerb::Load(a) } => bench::load::run(device, a),
        Verb::Bench { what: BenchVerb::Compare(a) } => bench::compare::run(a),
        Verb::Bench { what: BenchVerb::Table(a) } => bench::table::run(a),
        Verb::Test { what: TestVerb::Correctness(a) } => test::run(device, a),
        Verb::Tokenize(a) => tokenize::run(a),
        Verb::Logits(a) => logits::run(device, a),
        Verb::Format(a) => format::run(a),
        Verb::Probe(a) => probe::run(device, a),
        Verb::Choose(a) => choose::run(device, a),
        Verb::Embed(a) => embed::run(device, a),
        Verb::Perplexity(a) => perplexity::run(device, a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Program::command().debug_assert();
    }
}
