//! JSON as Python's `json.dumps` writes it, for the `tojson` filter of chat templates.
//!
//! Models were trained on that exact spacing, so it is not a matter of taste. It is not a general serializer.
//! Invariant: the nesting it follows is bounded, so a template cannot exhaust the stack.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// How to write.
#[derive(Debug, Clone)]
pub(super) struct Style {
    pub ascii: bool,
    pub sort_keys: bool,
    /// What one level is indented with; `None` writes one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
}

const MAX_DEPTH: usize = 128;

pub(super) fn to_json(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, style, 0)?;
    Ok(out)
}

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refuse("the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)?),
        ValueKind::String => string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            list(out, &items, ('[', ']'), style, depth, |out, item| write(out, item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                pairs.push((key_text(&key)?, item));
            }
            if style.sort_keys {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            list(out, &pairs, ('{', '}'), style, depth, |out, (key, item)| {
                string(out, key, style.ascii);
                out.push_str(&style.key_separator);
                write(out, item, style, depth + 1)
            })?;
        }
        other => return Err(refuse(format_args!("a value of type {other} is not JSON serializable"))),
    }
    Ok(())
}

fn list<T>(
    out: &mut String,
    items: &[T],
    (open, close): (char, char),
    style: &Style,
    depth: usize,
    mut each: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, depth + 1);
        each(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => (if key.is_true() { "true" } else { "false" }).to_owned(),
        ValueKind::Number => number(key)?,
        other => return Err(refuse(format_args!("a key of type {other} is not possible"))),
    })
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    Ok(python_float(f64::try_from(value.clone())?))
}

/// A float as Python shows it: shortest digits, with an exponent when it is below -4 or at least 16.
pub(super) fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return (if x > 0.0 { "Infinity" } else { "-Infinity" }).to_owned();
    }
    let scientific = format!("{x:e}");
    let exponent = scientific.split_once('e').and_then(|(m, e)| Some((m.to_owned(), e.parse::<i32>().ok()?)));
    match exponent {
        Some((mantissa, e)) if !(-4..16).contains(&e) && x != 0.0 => {
            format!("{mantissa}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
        _ => format!("{x:?}"),
    }
}

fn string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    fn style() -> Style {
        let (item_separator, key_separator) = (", ".into(), ": ".into());
        Style { ascii: false, sort_keys: false, indent: None, item_separator, key_separator }
    }

    #[test]
    fn writes_as_python_does() {
        let v: serde_json::Value =
            serde_json::from_str(r#"{"b":[1,2.0,1e-5,1e16,true,null,{}],"a":"\"é\n<\u0001"}"#).unwrap();
        let v = Value::from(Serde(&v));
        let one_line = r#"{"b": [1, 2.0, 1e-05, 1e+16, true, null, {}], "a": "\"é\n<\u0001"}"#;
        assert_eq!(to_json(&v, &style()).unwrap(), one_line);
        let v = Value::from(Serde(serde_json::json!({"b": [1, []], "a": "\u{1f525}"})));
        let indented = Style { indent: Some("  ".into()), item_separator: ",".into(), ..style() };
        assert_eq!(to_json(&v, &indented).unwrap(), "{\n  \"b\": [\n    1,\n    []\n  ],\n  \"a\": \"\u{1f525}\"\n}");
        let sorted = Style { sort_keys: true, ascii: true, ..style() };
        assert_eq!(to_json(&v, &sorted).unwrap(), r#"{"a": "\ud83d\udd25", "b": [1, []]}"#);
    }
}
