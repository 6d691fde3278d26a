//! `doppler chat`: a conversation, one line a turn.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use doppler::session::{ChatOptions, FinishReason, Message, Session};

use super::open::{self, DeviceArgs, EngineArgs, LoraArgs, SubmitArgs};
use super::outcome::{Failure, Outcome};
use super::sampling::SamplingArgs;
use super::speculate::SpeculationArgs;
use super::{generate, input, interrupt};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors, with a chat template
    model: PathBuf,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Chat template, instead of the file's: a name, such as chatml, or a file
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<String>,
    /// JSON file with an array of tools
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Values for the template's own switches, such as {"enable_thinking": false}
    #[arg(long, value_name = "JSON")]
    set: Option<String>,
    /// Tokens of a reply, at most; 0 = as many as the context holds
    #[arg(short, long = "tokens", value_name = "N", default_value_t = 0)]
    n: u32,
    #[command(flatten)]
    submits: SubmitArgs,
    /// Show times and counters after each reply
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    drafts: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

impl Args {
    fn chat_options(&self) -> Outcome<ChatOptions> {
        let template = match &self.template {
            Some(file) if Path::new(file).is_file() => Some(input::text(Path::new(file))?),
            name => name.clone(),
        };
        let tools = self.tools.as_deref().map(input::text).transpose()?;
        Ok(ChatOptions::from_texts(template.as_deref(), tools.as_deref(), self.set.as_deref())?)
    }
}

/// What a person needs to know, on a terminal only.
const HELP: &str = "Ctrl-C stops a reply; /reset forgets everything, /stats shows costs, /quit ends.";

struct Chat<'a> {
    args: &'a Args,
    session: Session,
    /// The system message was said.
    begun: bool,
}

impl Chat<'_> {
    fn show_stats(&self) {
        eprint!("{}{}", self.session.stats().summary(), self.session.model().context().stats().summary());
    }

    fn reply(&mut self, line: &str) -> Outcome {
        let mut messages = Vec::new();
        if let Some(system) = self.args.system.as_ref().filter(|_| !self.begun) {
            messages.push(Message::new("system", system.as_str()));
        }
        messages.push(Message::new("user", line));
        self.session.append_messages(&messages, true)?;
        self.begun = true;
        interrupt::busy(true);
        let options = self.args.sampling.generate_options(self.args.n, false);
        let generated = generate::stream(&mut self.session, &options);
        interrupt::busy(false);
        let generated = generated?;
        writeln!(std::io::stdout())?;
        match generated.reason {
            FinishReason::Cancelled => eprintln!("(stopped)"),
            FinishReason::ContextFull => eprintln!("(the context is full: /reset starts anew)"),
            _ => {}
        }
        if self.args.verbose {
            self.show_stats();
        }
        Ok(())
    }
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let context = device.open()?;
    let model = open::model(&context, &args.model, &args.engine.model_options())?;
    let how = args.drafts.session_options(&context, &args.engine.model_options(), &args.submits)?;
    let mut session = model.open_session(&how)?;
    args.lora.give(&mut session)?;
    // Fails here, not at the first line, for a file without a usable template.
    session.set_chat_options(args.chat_options()?)?;
    interrupt::watch(session.cancel_handle());
    let mut chat = Chat { args, session, begun: false };
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal {
        eprintln!("{}: {} tokens of context. {HELP}", model.info().name, chat.session.n_ctx());
    }
    let mut line = String::new();
    loop {
        if terminal {
            let mut out = std::io::stdout().lock();
            write!(out, "> ")?;
            out.flush()?;
        }
        line.clear();
        if std::io::stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => return Ok(()),
            "/reset" => {
                chat.session.reset();
                chat.begun = false;
            }
            "/stats" => chat.show_stats(),
            "/help" => eprintln!("{HELP}"),
            text => match chat.reply(text) {
                // On a terminal the conversation goes on: the person can shorten it or start anew.
                Err(Failure::Message(problem)) if terminal => eprintln!("doppler: {problem}"),
                other => other?,
            },
        }
    }
}
