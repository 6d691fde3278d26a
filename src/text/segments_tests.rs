//! Tests of segments: families' forms, cut at every place.

use super::SegmentKind::{Content, Marker, Reasoning, ToolCall};
use super::*;

/// A reply that may have all the marks in `tokens`, in pieces of `size` characters.
fn cut(tokens: &[&str], prompt: &str, reply: &str, size: usize) -> Vec<(SegmentKind, String)> {
    let markers = Markers::find(|t| tokens.contains(&t), None);
    let mut s = Segmenter::after(Arc::new(markers), prompt);
    let mut out = Vec::new();
    for chunk in reply.chars().collect::<Vec<_>>().chunks(size) {
        s.push(&chunk.iter().collect::<String>(), true, &mut out);
    }
    s.flush(&mut out);
    assert_eq!(out.iter().map(|p| p.text.as_str()).collect::<String>(), reply);
    out.into_iter().map(|p| (p.kind, p.text)).collect()
}

fn check(tokens: &[&str], prompt: &str, wanted: &[(SegmentKind, &str)]) {
    let reply: String = wanted.iter().map(|(_, text)| *text).collect();
    let wanted: Vec<(SegmentKind, String)> = wanted.iter().map(|(kind, text)| (*kind, (*text).to_owned())).collect();
    for size in 1..=reply.chars().count().max(1) {
        assert_eq!(cut(tokens, prompt, &reply, size), wanted, "in pieces of {size}");
    }
}

const QWEN: &[&str] = &["<think>", "</think>", "<tool_call>", "</tool_call>"];
const HARMONY: &[&str] = &["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"];

#[test]
fn reasoning_and_calls() {
    let reply = [
        (Marker, "<think>"),
        (Reasoning, "\nHm, <tool_call> \u{e9}?\n"),
        (Marker, "</think>"),
        (Content, "\n\nLet me look.\n"),
        (Marker, "<tool_call>"),
        (ToolCall, "\n{\"name\": \"f\"}\n"),
        (Marker, "</tool_call>"),
        (Content, "\n<thin"),
    ];
    check(QWEN, "<|im_start|>assistant\n", &reply);
    check(&[], "", &[(Content, "<think>no marks in this model</think>")]);
}

#[test]
fn reasoning_that_the_prompt_began() {
    let reply = [(Reasoning, "Hm."), (Marker, "</think>"), (Content, "Yes.")];
    check(QWEN, "<|im_start|>assistant\n<think>\n", &reply);
    check(QWEN, "<|im_start|>assistant\n<think>\n\n</think>\n\n", &[(Content, "Yes.")]);
}

#[test]
fn calls_to_the_end() {
    let reply = [
        (Content, "Now: "),
        (Marker, "[TOOL_CALLS]"),
        (ToolCall, "[{\"name\": \"f\"}]"),
        (Marker, "[TOOL_CALLS]"),
        (ToolCall, "g"),
    ];
    check(&["[TOOL_CALLS]"], "[/INST]", &reply);
    check(&["<|python_tag|>"], "", &[(Marker, "<|python_tag|>"), (ToolCall, "f.call(x=1)")]);
}

#[test]
fn messages_with_headers() {
    let reply = [
        (Marker, "<|channel|>analysis<|message|>"),
        (Reasoning, "Need the price."),
        (Marker, "<|end|><|start|>assistant<|channel|>commentary<|message|>"),
        (Content, "One moment."),
        (Marker, "<|end|>"),
        (ToolCall, "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}"),
        (Marker, "<|call|><|start|>assistant<|channel|>final<|message|>"),
        (Content, "7 gold"),
    ];
    check(HARMONY, "<|start|>user<|message|>How much?<|end|><|start|>assistant", &reply);
    check(HARMONY, "<|start|>assistant<|channel|>analysis<|message|>So", &[(Reasoning, " what"), (Marker, "<|end|>")]);
    let long = "x".repeat(MAX_HEADER) + "<|message|>";
    check(HARMONY, "", &[(Marker, "<|start|>"), (Content, &long)]);
}

#[test]
fn marks_of_a_template_count_and_hidden_text_stays_hidden() {
    let markers = Markers::find(|t| t == "[TOOL_CALLS]", Some("{{ '<think>\\n' }}"));
    assert_eq!(markers.0.len(), 2);
    let mut s = Segmenter::after(Arc::new(markers), "");
    let mut out = Vec::new();
    for (text, show) in
        [("a", true), ("<s>", false), ("[TOOL_CALLS]", false), ("f", true), ("[ARGS]", false), ("{}", true)]
    {
        s.push(text, show, &mut out);
    }
    s.flush(&mut out);
    let piece = |kind, text: &str| Piece { kind, text: text.into() };
    assert_eq!(out, [piece(Content, "a"), piece(ToolCall, "f[ARGS]{}")]);
}

#[test]
fn marks_are_listed_once() {
    let mut opens: Vec<&str> = FORMS
        .iter()
        .map(|f| match f {
            Form::Pair { open, .. } => *open,
            Form::Headed { start, .. } => *start,
        })
        .collect();
    let n = opens.len();
    opens.sort_unstable();
    opens.dedup();
    assert_eq!(opens.len(), n);
}
