//! Conversations: messages, and how they are rendered.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Result, bail};
use crate::session::model::Model;
use crate::text::{ChatTemplate, Markers, Piece, SegmentKind, builtin_names, builtin_template};

/// One message of a conversation: an object with `role`, and what else the template knows (`content`, `tool_calls`, …).
#[derive(Debug, Clone, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of plain text. Roles are `system`, `user`, `assistant`, and what else the template knows.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let pair = |key: &str, value: String| (key.to_string(), Value::String(value));
        Self([pair("role", role.into()), pair("content", content.into())].into_iter().collect())
    }

    /// Messages from a JSON array of objects, each with a text as `role`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the element that is none.
    pub fn from_json(json: Value) -> Result<Vec<Self>> {
        let Value::Array(list) = json else { bail!(InvalidArgument, "messages: a JSON array is needed") };
        let message = |(i, value)| match value {
            Value::Object(fields) if fields.get("role").is_some_and(Value::is_string) => Ok(Self(fields)),
            _ => bail!(InvalidArgument, "messages[{i}]: an object with a text as \"role\" is needed"),
        };
        list.into_iter().enumerate().map(message).collect()
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said, if that is plain text.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// All fields, as templates see them.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// A reply, as part of the conversation: the reasoning is apart from the content (under the names that templates use), calls of
    /// tools stay in it as they were written.
    pub(super) fn reply(pieces: &[Piece]) -> Self {
        let of = |kind| pieces.iter().filter(move |p| p.kind == kind).map(|p| p.text.as_str());
        let reasoning: String = of(SegmentKind::Reasoning).collect();
        let mut content = String::new();
        for (i, piece) in pieces.iter().enumerate() {
            let beside =
                |j: Option<usize>| j.and_then(|j| pieces.get(j)).is_some_and(|p| p.kind == SegmentKind::ToolCall);
            match piece.kind {
                SegmentKind::Content | SegmentKind::ToolCall => content.push_str(&piece.text),
                SegmentKind::Marker if beside(i.checked_sub(1)) || beside(Some(i + 1)) => content.push_str(&piece.text),
                SegmentKind::Marker | SegmentKind::Reasoning => {}
            }
        }
        if reasoning.is_empty() {
            return Self::new("assistant", content);
        }
        let mut message = Self::new("assistant", content.trim_start());
        for name in ["reasoning_content", "thinking"] {
            message.0.insert(name.to_string(), Value::String(reasoning.trim().to_string()));
        }
        message
    }
}

/// How conversations are rendered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// `None`: the file's template. Otherwise the name of another one of the file (such as `tool_use`), the name of a built-in one (such as
    /// `chatml`), or a template itself.
    pub template: Option<String>,
    /// Tools that the model may call, an array of JSON objects in the form its template expects.
    pub tools: Option<Value>,
    /// Values for the template's own switches, such as `enable_thinking`; they win over the usual names.
    pub variables: Map<String, Value>,
}

impl ChatOptions {
    /// Options from texts: `tools` a JSON array, `variables` a JSON object.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the text that is no such JSON.
    pub fn from_texts(template: Option<&str>, tools: Option<&str>, variables: Option<&str>) -> Result<Self> {
        let parse = |name: &str, text: &str| {
            serde_json::from_str(text).map_err(|e| Error::InvalidArgument(format!("{name} is not JSON: {e}")))
        };
        let tools = match tools.map(|t| parse("tools", t)).transpose()? {
            None | Some(Value::Null) => None,
            Some(list @ Value::Array(_)) => Some(list),
            Some(_) => bail!(InvalidArgument, "tools: a JSON array is needed"),
        };
        let variables = match variables.map(|t| parse("variables", t)).transpose()? {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map,
            Some(_) => bail!(InvalidArgument, "variables: a JSON object is needed"),
        };
        Ok(Self { template: template.map(str::to_string), tools, variables })
    }
}

/// Options with their template compiled.
#[derive(Debug)]
pub(super) struct Chat {
    template: ChatTemplate,
    options: ChatOptions,
    /// The marks that replies may have.
    pub(super) markers: Arc<Markers>,
}

impl Chat {
    pub(super) fn new(model: &Model, options: ChatOptions) -> Result<Self> {
        let source = source(model, &options)?;
        let t = model.tokenizer();
        let text = |id: Option<u32>| id.and_then(|id| t.token_text(id));
        let template = ChatTemplate::new(source, text(t.bos()), text(t.eos()))?;
        let markers = Arc::new(Markers::find(|m| t.find(m).is_some(), Some(source)));
        Ok(Self { template, markers, options })
    }

    pub(super) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Value = messages.iter().map(|m| m.0.clone()).collect();
        self.template.render(&messages, self.options.tools.as_ref(), add_generation_prompt, &self.options.variables)
    }

    pub(super) fn template(&self) -> &ChatTemplate {
        &self.template
    }
}

/// The text of the template that is meant.
fn source<'a>(model: &'a Model, options: &'a ChatOptions) -> Result<&'a str> {
    let of_file = |name: &str| model.0.templates.iter().find(|(n, _)| n == name).map(|(_, source)| source.as_str());
    let Some(wanted) = &options.template else {
        // Files with a template of its own for tools mean it to be used with them.
        let for_tools = options.tools.as_ref().and_then(|_| of_file("tool_use"));
        let Some(source) = for_tools.or_else(|| of_file("")) else {
            bail!(
                Unsupported,
                "the model has no chat template (key tokenizer.chat_template); one can be named or given"
            );
        };
        return Ok(source);
    };
    if let Some(source) = of_file(wanted).or_else(|| builtin_template(wanted)) {
        return Ok(source);
    }
    if wanted.contains("{{") || wanted.contains("{%") {
        return Ok(wanted);
    }
    let own = model.0.templates.iter().map(|(name, _)| name.as_str());
    let mut names: Vec<&str> = own.filter(|n| !n.is_empty()).collect();
    for name in builtin_names() {
        names.push(name);
    }
    bail!(InvalidArgument, "chat template \"{wanted}\": neither a template nor a name ({})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_options_are_checked() {
        let refused = |json: &str, wanted: &str| {
            let e = Message::from_json(serde_json::from_str(json).unwrap()).unwrap_err().to_string();
            assert!(e.contains(wanted), "{e}");
        };
        refused("{}", "messages");
        refused(r#"[{"role": "user"}, {"role": 1}]"#, "messages[1]");
        let m = Message::from_json(serde_json::json!([{"role": "tool", "content": [1]}])).unwrap();
        assert_eq!((m[0].role(), m[0].content(), m[0].fields().len()), ("tool", None, 2));
        for (tools, variables, wanted) in
            [(Some("[}"), None, "tools"), (Some("{}"), None, "tools"), (None, Some("[]"), "variables")]
        {
            let e = ChatOptions::from_texts(None, tools, variables).unwrap_err().to_string();
            assert!(e.contains(wanted), "{e}");
        }
        assert_eq!(ChatOptions::from_texts(None, Some("null"), None).unwrap(), ChatOptions::default());
    }

    #[test]
    fn reasoning_stands_apart_in_replies() {
        let piece = |kind, text: &str| Piece { kind, text: text.into() };
        let (c, r, t, m) = (SegmentKind::Content, SegmentKind::Reasoning, SegmentKind::ToolCall, SegmentKind::Marker);
        assert_eq!(Message::reply(&[piece(c, " Hi")]), Message::new("assistant", " Hi"));
        let pieces =
            [(m, "<think>"), (r, "\nHm\n"), (m, "</think>"), (c, "\n\nOK "), (m, "<call>"), (t, "{}"), (m, "</call>")];
        let reply = Message::reply(&pieces.map(|(kind, text)| piece(kind, text)));
        assert_eq!(reply.content(), Some("OK <call>{}</call>"));
        assert_eq!(reply.fields()["reasoning_content"], "Hm");
    }
}
