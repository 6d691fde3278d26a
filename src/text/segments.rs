//! What a reply is made of: content, reasoning, calls of tools, and the marks between them.
//!
//! One table lists the marks of all families of models. A family's marks are looked for if they are tokens of the vocabulary or stand in
//! the chat template; nothing here knows an architecture. Marks may be spread over tokens. What a call or a thought says is not read.
//! Invariant: the texts that come out, joined, are those that went in (without the hidden ones), wherever the input was cut.

use std::sync::Arc;

/// What a part of a reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SegmentKind {
    /// For the reader.
    #[default]
    Content,
    /// What the model thinks before it answers.
    Reasoning,
    /// A call of a tool, in the form of the model's family.
    ToolCall,
    /// A mark that begins or ends another part.
    Marker,
}

/// A stretch of text of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its kind.
    pub kind: SegmentKind,
    /// Its text.
    pub text: String,
}

/// Adds text to the last piece, or as a new one if that is of another kind.
pub(crate) fn add_piece(pieces: &mut Vec<Piece>, kind: SegmentKind, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(last) if last.kind == kind => last.text.push_str(text),
        _ => pieces.push(Piece { kind, text: text.to_owned() }),
    }
}

#[derive(Debug)]
enum Form {
    /// From one mark to another; without the other, to the end of the reply.
    Pair { open: &'static str, close: &'static str, kind: SegmentKind },
    /// Messages with a header: `start` or `more`, header, `body`, text, an end. The first entry of `kinds` whose text is in the header
    /// says what it is a header of; content if there is none.
    Headed {
        start: &'static str,
        more: &'static str,
        body: &'static str,
        ends: &'static [&'static str],
        kinds: &'static [(&'static str, SegmentKind)],
    },
}

const fn reasoning(open: &'static str, close: &'static str) -> Form {
    Form::Pair { open, close, kind: SegmentKind::Reasoning }
}

const fn tool_call(open: &'static str, close: &'static str) -> Form {
    Form::Pair { open, close, kind: SegmentKind::ToolCall }
}

const fn content(open: &'static str, close: &'static str) -> Form {
    Form::Pair { open, close, kind: SegmentKind::Content }
}

/// The marks of all families.
static FORMS: &[Form] = &[
    reasoning("<think>", "</think>"),
    reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    reasoning("[THINK]", "[/THINK]"),
    reasoning("<seed:think>", "</seed:think>"),
    reasoning("<|channel>thought", "<channel|>"),
    reasoning("\u{25c1}think\u{25b7}", "\u{25c1}/think\u{25b7}"),
    reasoning("Here is my thought process:", "Here is my response:"),
    content("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    content("<response>", "</response>"),
    tool_call("<tool_call>", "</tool_call>"),
    tool_call("<|tool_call_start|>", "<|tool_call_end|>"),
    tool_call("<|START_ACTION|>", "<|END_ACTION|>"),
    tool_call("<minimax:tool_call>", "</minimax:tool_call>"),
    tool_call("<seed:tool_call>", "</seed:tool_call>"),
    tool_call("<TOOLCALL>", "</TOOLCALL>"),
    tool_call("<|tool_call>", "<tool_call|>"),
    tool_call("<\u{ff5c}tool\u{2581}calls\u{2581}begin\u{ff5c}>", "<\u{ff5c}tool\u{2581}calls\u{2581}end\u{ff5c}>"),
    tool_call("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    tool_call("<|tool_call|>", "<|/tool_call|>"),
    tool_call("[TOOL_CALLS]", ""),
    tool_call("<|python_tag|>", ""),
    Form::Headed {
        start: "<|start|>",
        more: "<|channel|>",
        body: "<|message|>",
        ends: &["<|end|>", "<|return|>", "<|call|>"],
        kinds: &[(" to=", SegmentKind::ToolCall), ("<|channel|>analysis", SegmentKind::Reasoning)],
    },
];

/// Bytes of a header and its marks; what is longer is none.
const MAX_HEADER: usize = 512;

/// The marks that replies of one model may have.
#[derive(Debug, Default)]
pub struct Markers(Vec<&'static Form>);

impl Markers {
    /// The marks that are tokens (`is_token`) or stand in the chat template.
    pub fn find(is_token: impl Fn(&str) -> bool, template: Option<&str>) -> Self {
        let template = template.unwrap_or_default();
        let used = |form: &&Form| match form {
            Form::Pair { open, .. } => is_token(open) || template.contains(open),
            Form::Headed { more, body, .. } => {
                [more, body].iter().all(|m| is_token(m)) || [more, body].iter().all(|m| template.contains(**m))
            }
        };
        Self(FORMS.iter().filter(used).collect())
    }
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// Between marks.
    #[default]
    Outside,
    Inside(&'static Form, SegmentKind),
    /// The start of a header was met; the text held is the header.
    Header(&'static Form),
}

/// Cuts a reply that arrives piece by piece into segments.
#[derive(Debug, Clone, Default)]
pub struct Segmenter {
    markers: Arc<Markers>,
    state: State,
    held: String,
    /// For each byte held, whether it is to come out.
    shown: Vec<bool>,
}

impl Segmenter {
    /// A reply behind `prompt`, whose end may have begun a segment: some templates end with the mark of reasoning.
    #[must_use]
    pub fn after(markers: Arc<Markers>, prompt: &str) -> Self {
        let end = prompt.trim_end();
        let mut new = Self { markers, ..Self::default() };
        for form in new.markers.0.clone() {
            match form {
                Form::Pair { open, kind, .. } if end.ends_with(open) => new.state = State::Inside(form, *kind),
                Form::Pair { .. } => {}
                Form::Headed { start, .. } => {
                    // The last message of the prompt may be a header that was begun; the reply goes on with it.
                    let Some(message) = prompt.rfind(start).and_then(|at| prompt.get(at..)) else { continue };
                    new.push(message, true, &mut Vec::new());
                    new.held.clear();
                    new.shown.clear();
                }
            }
        }
        new
    }

    /// Takes text; gives what is certain. Hidden text (`show` is false) is looked at for marks and comes out only within calls of tools, which
    /// cannot be read without.
    pub fn push(&mut self, text: &str, show: bool, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        self.shown.resize(self.held.len(), show);
        while self.step(out) {}
    }

    /// Ends the reply: gives what was held back.
    pub fn flush(&mut self, out: &mut Vec<Piece>) {
        let kind = self.kind();
        self.emit(self.held.len(), kind, out);
    }

    /// Handles the first mark of the text held; false if there is none.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        if let State::Header(form) = self.state {
            let Form::Headed { start, more, body, kinds, .. } = form else { return false };
            let end = self.held.find(body).map(|at| at + body.len());
            let Some(end) = end.filter(|&end| end <= MAX_HEADER) else {
                if self.held.len() <= MAX_HEADER {
                    return false;
                }
                let mark = if self.held.starts_with(start) { start } else { more };
                self.state = State::Outside;
                self.emit(mark.len(), SegmentKind::Marker, out);
                return true;
            };
            let header = self.held.get(..end).unwrap_or_default();
            let kind =
                kinds.iter().find(|(text, _)| header.contains(text)).map_or(SegmentKind::Content, |(_, kind)| *kind);
            // The header of a call names the tool.
            let of_header = if kind == SegmentKind::ToolCall { kind } else { SegmentKind::Marker };
            self.emit(end, of_header, out);
            self.state = State::Inside(form, kind);
            return true;
        }
        let expected = self.expected();
        let found = expected.iter().filter_map(|(mark, then)| Some((self.held.find(mark)?, mark, then)));
        let kind = self.kind();
        match found.min_by_key(|(at, mark, _)| (*at, std::cmp::Reverse(mark.len()))) {
            Some((at, mark, then)) => {
                self.emit(at, kind, out);
                if !matches!(then, State::Header(_)) {
                    self.emit(mark.len(), SegmentKind::Marker, out);
                }
                self.state = *then;
                true
            }
            None => {
                let held = self.held.as_bytes();
                let begun = |mark: &str| {
                    let most = mark.len().saturating_sub(1).min(held.len());
                    (1..=most).rev().find(|&n| mark.as_bytes().get(..n) == held.get(held.len() - n..)).unwrap_or(0)
                };
                let keep = expected.iter().map(|(mark, _)| begun(mark)).max().unwrap_or(0);
                self.emit(held.len() - keep, kind, out);
                false
            }
        }
    }

    /// The marks that count now, and what follows each.
    fn expected(&self) -> Vec<(&'static str, State)> {
        let mut expected = Vec::new();
        let mut add = |mark: &'static str, then| {
            if !mark.is_empty() {
                expected.push((mark, then));
            }
        };
        let mut enter = |form: &'static Form| match form {
            Form::Pair { open, close, kind } => {
                add(open, State::Inside(form, *kind));
                add(close, State::Outside);
            }
            Form::Headed { start, more, ends, .. } => {
                [start, more].into_iter().for_each(|mark| add(mark, State::Header(form)));
                ends.iter().for_each(|mark| add(mark, State::Outside));
            }
        };
        match self.state {
            // Within reasoning and calls other marks are only text.
            State::Inside(form, _) => enter(form),
            _ => self.markers.0.iter().for_each(|form| enter(form)),
        }
        expected
    }

    fn kind(&self) -> SegmentKind {
        match self.state {
            State::Outside => SegmentKind::Content,
            State::Inside(_, kind) => kind,
            State::Header(_) => SegmentKind::Marker,
        }
    }

    /// Gives the first `n` bytes of the text held.
    fn emit(&mut self, n: usize, kind: SegmentKind, out: &mut Vec<Piece>) {
        let text: String = self.held.drain(..n).collect();
        let shown: Vec<bool> = self.shown.drain(..n).collect();
        let mut at = 0;
        for run in shown.chunk_by(|a, b| a == b) {
            if run.first() == Some(&true) || kind == SegmentKind::ToolCall {
                add_piece(out, kind, text.get(at..at + run.len()).unwrap_or_default());
            }
            at += run.len();
        }
    }
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;
