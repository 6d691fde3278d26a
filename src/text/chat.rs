//! Chat templates: a conversation to the text that a model expects, as Jinja2 with the settings of transformers does it.
//!
//! A template comes with a model file and is not trusted: it sees only the values given to it, reaches no file and no
//! clock but the one it is given, cannot change a conversation, and its work and memory are bounded. How deep it nests
//! values is its own choice, and nested values are shown and freed by recursion; so rendering happens on a short-lived
//! thread with a stack of known size, not on whatever stack the host has. Which tokens the text becomes is the
//! tokenizer's business. Invariant: every failure of a template is [`Error::Template`]; one that the template raises itself
//! carries exactly its own message.

use super::python;
use super::strftime::Moment;
use crate::error::{Error, Result, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use std::sync::{Arc, Mutex, PoisonError};

type JinjaError = minijinja::Error;

const NAME: &str = "chat_template";
/// Steps, and 64-byte units of text, that one rendering may take: about a second of work, some 100 MB at most.
const FUEL: u64 = 2_000_000;
/// Room for the deepest value that so many steps can nest (measured: 107 MB); it is reserved, not used.
const STACK: usize = 256 << 20;

/// A compiled chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of those tokens, which templates write themselves.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| told(&e))?;
        env.set_syntax(syntax);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.set_debug(false);
        python::add_to(&mut env);
        // Jinja2 sees line ends of one kind only.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        env.add_template_owned(NAME, without_generation_tags(&source)).map_err(|e| told(&e))?;
        Ok(Self { env, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned) })
    }

    /// The text of a conversation. `messages` is an array of objects with `role` and `content`; `extra` holds values for
    /// the template's own switches and wins over the usual names. Dates are the present time, in UTC.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        self.render_at(messages, tools, add_generation_prompt, extra, None)
    }

    /// As [`ChatTemplate::render`], with the time that `strftime_now` tells: seconds since 1970, shifted to the time zone
    /// that is wanted. `None` is the present time, in UTC.
    pub fn render_at(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
        now: Option<i64>,
    ) -> Result<String> {
        let moment = now.map_or_else(Moment::now, Moment::from_unix);
        let work = || self.render_here(messages, tools, add_generation_prompt, extra, moment);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("doppler-template".into()).stack_size(STACK);
            match thread.spawn_scoped(scope, work) {
                Ok(running) => {
                    running.join().unwrap_or_else(|_| Err(Error::Internal("a chat template panicked".into())))
                }
                Err(e) => bail!(OutOfMemory, "no thread to render a chat template on: {e}"),
            }
        })
    }

    fn render_here(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
        moment: Moment,
    ) -> Result<String> {
        let raised: Arc<Mutex<Option<String>>> = Arc::default();
        let slot = raised.clone();
        let raise = move |message: Value| -> std::result::Result<Value, JinjaError> {
            let message = message.to_string();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.clone());
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        };
        let mut context = vec![
            ("messages".to_owned(), Value::from(Serde(messages))),
            ("tools".to_owned(), tools.map_or(Value::from(()), |t| Value::from(Serde(t)))),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("raise_exception".to_owned(), Value::from_function(raise)),
            ("strftime_now".to_owned(), Value::from_function(move |pattern: &str| moment.format(pattern))),
        ];
        let token =
            |name: &str, text: &Option<String>| text.as_ref().map(|t| (name.to_owned(), Value::from(t.as_str())));
        context.extend(token("bos_token", &self.bos));
        context.extend(token("eos_token", &self.eos));
        context.extend(extra.iter().map(|(k, v)| (k.clone(), Value::from(Serde(v)))));
        let context = Value::from_pairs(context);

        let template = self.env.get_template(NAME).map_err(|e| told(&e))?;
        template.render(context).map_err(|e| {
            let raised = raised.lock().unwrap_or_else(PoisonError::into_inner).take();
            raised.map_or_else(|| told(&e), Error::Template)
        })
    }
}

/// An array of messages from pairs of role and content.
#[must_use]
pub fn messages_from<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> serde_json::Value {
    pairs.into_iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect()
}

fn told(e: &JinjaError) -> Error {
    let line = e.line().map_or(String::new(), |l| format!("line {l}: "));
    let detail = e.detail().map_or(String::new(), |d| format!(": {d}"));
    Error::Template(format!("{line}{}{detail}", e.kind()))
}

/// Replaces the tags with which transformers marks what the assistant said by ones that mean nothing, keeping their
/// white-space control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = after;
        let Some((tag, _)) = after.split_once("%}") else { break };
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&tag.replace(word, instead));
        rest = after.get(tag.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
