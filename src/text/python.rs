//! What templates expect of Python and of Jinja2 that minijinja does not have or does otherwise: methods, filters, tests, and how values
//! are shown.
//!
//! Only what a value does; parsing and control flow are minijinja's. `tests/data/jinja.json` holds what Jinja2 makes of each.

use super::json::{Style, python_float, to_json};
use minijinja::value::{Kwargs, Rest, Serde, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Texts padded to more than this are refused: a template is not trusted.
const MAX_WIDTH: usize = 1 << 16;
/// Nesting that is shown; what is deeper is shown as `...`.
const MAX_DEPTH: usize = 128;

/// Adds everything to an environment.
pub(super) fn add_to(env: &mut Environment<'static>) {
    minijinja_contrib::add_to_environment(env);
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, _, value| Ok(out.write_str(&shown(value))?));
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| if value.as_str().is_some() { value } else { Value::from(shown(&value)) });
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("dictsort", dictsort);
    env.add_filter("center", |text: &str, width: Option<i64>| padded(text, "center", width.unwrap_or(80), " "));
    env.add_filter("wordcount", |text: &str| words(text).count());
    env.add_filter("wordwrap", wordwrap);
    env.add_filter("indent", indent);
    env.add_filter("truncate", truncate);
    env.add_filter("urlencode", urlencode);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_function("dict", dict);
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    env.add_test("callable", |value: Value| {
        // Values of a conversation are data; what else is an object can be called.
        value.kind() == ValueKind::Plain
    });
    env.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// A value as `str` of Python shows it.
fn shown(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let mut out = String::new();
            show(&mut out, value, 0);
            out
        }
    }
}

/// Writes a value as `repr` of Python does.
fn show(out: &mut String, value: &Value, depth: usize) {
    if depth > MAX_DEPTH {
        return out.push_str("...");
    }
    let list = |out: &mut String, items: Vec<Value>| {
        for (i, item) in items.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            show(out, item, depth + 1);
        }
    };
    let items = || value.try_iter().map(Iterator::collect::<Vec<Value>>).unwrap_or_default();
    match value.kind() {
        ValueKind::Undefined if depth == 0 => {}
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Number if !value.is_integer() => {
            let x = f64::try_from(value.clone()).unwrap_or(f64::NAN);
            match (x.is_nan(), x.is_infinite()) {
                (true, _) => out.push_str("nan"),
                (_, true) => out.push_str(if x > 0.0 { "inf" } else { "-inf" }),
                _ => out.push_str(&python_float(x)),
            }
        }
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq if value.downcast_object_ref::<Tuple>().is_some() => {
            let items = items();
            let one = items.len() == 1;
            out.push('(');
            list(out, items);
            out.push_str(if one { ",)" } else { ")" });
        }
        ValueKind::Seq => {
            out.push('[');
            list(out, items());
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in items().iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                show(out, key, depth + 1);
                out.push_str(": ");
                show(out, &value.get_item(key).unwrap_or_default(), depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// A text between the quotes that Python chooses.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => out.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..='\u{a0}').contains(&c) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            // Formatting characters and spaces other than the usual one.
            '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{205f}'..='\u{206f}'
            | '\u{3000}'
            | '\u{feff}'
            | '\u{e000}'..='\u{f8ff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

fn int(value: Value, default: Option<Value>, base: Option<u32>) -> Value {
    let default = default.unwrap_or_else(|| Value::from(0));
    let Some(text) = value.as_str() else {
        return match value.kind() {
            ValueKind::Bool => Value::from(i64::from(value.is_true())),
            ValueKind::Number if value.is_integer() => value,
            ValueKind::Number => f64::try_from(value).map_or(default, |x| Value::from(x.trunc() as i128)),
            _ => default,
        };
    };
    let text = text.trim().replace('_', "").to_lowercase();
    let base = base.unwrap_or(10);
    let digits = match base {
        16 => text.strip_prefix("0x").unwrap_or(&text),
        8 => text.strip_prefix("0o").unwrap_or(&text),
        2 => text.strip_prefix("0b").unwrap_or(&text),
        _ => &text,
    };
    if (2..=36).contains(&base)
        && let Ok(n) = i128::from_str_radix(digits, base)
    {
        return Value::from(n);
    }
    text.parse::<f64>().ok().filter(|x| x.is_finite()).map_or(default, |x| Value::from(x.trunc() as i128))
}

fn float(value: Value, default: Option<Value>) -> Value {
    let number = match (value.as_str(), value.kind()) {
        (Some(text), _) => text.trim().parse().ok(),
        (_, ValueKind::Bool) => Some(if value.is_true() { 1.0 } else { 0.0 }),
        (_, ValueKind::Number) => f64::try_from(value).ok(),
        _ => None,
    };
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

fn default(value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let instead = args.first().cloned().map_or_else(|| named.get::<Option<Value>>("default_value"), |v| Ok(Some(v)))?;
    let boolean = args.get(1).cloned().map_or_else(|| named.get::<Option<Value>>("boolean"), |v| Ok(Some(v)))?;
    named.assert_all_used()?;
    let replace = value.is_undefined() || (boolean.is_some_and(|b| b.is_true()) && !value.is_true());
    Ok(if replace { instead.unwrap_or_else(|| Value::from("")) } else { value })
}

/// A map in the order of its entries.
struct Pairs(Vec<(Value, Value)>);

impl serde::Serialize for Pairs {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(k, v)| (k, v)))
    }
}

/// A mapping or pairs, and named values over them.
fn dict(from: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    let mut put = |key: Value, value: Value| match pairs.iter_mut().find(|(k, _)| *k == key) {
        Some(pair) => pair.1 = value,
        None => pairs.push((key, value)),
    };
    if let Some(from) = from {
        for item in from.try_iter()? {
            match from.kind() {
                ValueKind::Map => put(item.clone(), from.get_item(&item)?),
                _ => put(item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            }
        }
    }
    for name in named.args() {
        put(Value::from(name), named.get(name)?);
    }
    Ok(Value::from(Serde(Pairs(pairs))))
}

/// `dictsort(case_sensitive=false, by='key', reverse=false)`.
fn dictsort(value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        args.get(place).cloned().map_or_else(|| named.get::<Option<Value>>(name), |v| Ok(Some(v)))
    };
    let truth = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let case_sensitive = truth(option(0, "case_sensitive")?);
    let by_value = match option(1, "by")?.as_ref().map(|v| v.as_str().unwrap_or_default()) {
        None | Some("key") => false,
        Some("value") => true,
        Some(other) => return Err(invalid(format!("dictsort: by {other:?} (\"key\" and \"value\" are possible)"))),
    };
    let reverse = truth(option(2, "reverse")?);
    named.assert_all_used()?;
    if value.kind() != ValueKind::Map {
        return Err(invalid("dictsort: a mapping is needed"));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        let rank = if by_value { item.clone() } else { key.clone() };
        let lower = rank.as_str().filter(|_| !case_sensitive).map(|text| Value::from(text.to_lowercase()));
        pairs.push((lower.unwrap_or(rank), key, item));
    }
    pairs.sort_by(|a, b| if reverse { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) });
    Ok(pairs.into_iter().map(|(_, key, item)| Value::from(Tuple::from([key, item]))).collect())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// Breaks lines at white space; longer words are cut.
fn wordwrap(text: &str, width: Option<usize>) -> Result<String, Error> {
    let width = width.unwrap_or(79);
    if width == 0 {
        return Err(invalid("wordwrap: a width of 0"));
    }
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut current: Vec<char> = Vec::new();
        for word in line.split(' ') {
            let mut word: Vec<char> = word.chars().collect();
            let gap = usize::from(!current.is_empty());
            if current.len() + gap + word.len() > width && !current.is_empty() {
                lines.push(std::mem::take(&mut current).into_iter().collect());
            }
            if !current.is_empty() {
                current.push(' ');
            }
            while word.len() > width {
                let rest = word.split_off(width);
                lines.push(word.into_iter().collect());
                word = rest;
            }
            current.append(&mut word);
        }
        lines.push(current.into_iter().collect());
    }
    Ok(lines.join("\n"))
}

/// `indent(width=4, first=false, blank=false)`; the width is a number of spaces, or the text to put before lines.
fn indent(text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        args.get(place).cloned().map_or_else(|| named.get::<Option<Value>>(name), |v| Ok(Some(v)))
    };
    let width = match option(0, "width")? {
        None => " ".repeat(4),
        Some(v) if v.as_str().is_some() => v.as_str().unwrap_or_default().to_owned(),
        Some(v) => " ".repeat(usize::try_from(v)?.min(MAX_WIDTH)),
    };
    let truth = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let (first, blank) = (truth(option(1, "first")?), truth(option(2, "blank")?));
    named.assert_all_used()?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        if (i > 0 || first) && (blank || !line.is_empty() || i == 0) {
            out.push_str(&width);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `truncate(length=255, killwords=false, end='...', leeway=5)`.
fn truncate(text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        args.get(place).cloned().map_or_else(|| named.get::<Option<Value>>(name), |v| Ok(Some(v)))
    };
    let number = |v: Option<Value>, default: usize| v.map_or(Ok(default), usize::try_from);
    let length = number(option(0, "length")?, 255)?;
    let kill = option(1, "killwords")?.is_some_and(|v| v.is_true());
    let end = option(2, "end")?.map_or_else(|| "...".to_owned(), |v| v.to_string());
    let leeway = number(option(3, "leeway")?, 5)?;
    named.assert_all_used()?;
    let chars = text.chars().count();
    if chars <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let Some(keep) = length.checked_sub(end.chars().count()) else {
        return Err(invalid(format!("truncate: {length} characters have no room for {end:?}")));
    };
    let cut: String = text.chars().take(keep).collect();
    let cut = if kill { cut.as_str() } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before) };
    Ok(format!("{cut}{end}"))
}

/// Percent-encoding: of a text, with `/` kept, or of pairs, as a query.
fn urlencode(value: Value) -> Result<String, Error> {
    let encode = |text: &str, query: bool| -> String {
        let mut out = String::new();
        for b in text.bytes() {
            match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(b)),
                b'/' if !query => out.push('/'),
                b' ' if query => out.push('+'),
                _ => out.push_str(&format!("%{b:02X}")),
            }
        }
        out
    };
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            let of = |key: Value| Ok((key.clone(), value.get_item(&key)?));
            value.try_iter()?.map(of).collect::<Result<_, Error>>()?
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let of = |pair: Value| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            value.try_iter()?.map(of).collect::<Result<_, Error>>()?
        }
        _ => return Ok(encode(&shown(&value), false)),
    };
    let pair = |(k, v): &(Value, Value)| format!("{}={}", encode(&shown(k), true), encode(&shown(v), true));
    Ok(pairs.iter().map(pair).collect::<Vec<_>>().join("&"))
}

fn escape(value: Value) -> String {
    let mut out = String::new();
    for c in shown(&value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// `center`, `ljust` or `rjust`.
fn padded(text: &str, method: &str, width: i64, fill: &str) -> Result<Value, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_WIDTH || fill.chars().count() != 1 {
        return Err(invalid(format!("{method}: a width of {width}, filled with {fill:?}")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // As Python rounds it.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let n = size - column % size;
                out.push_str(&" ".repeat(n));
                column += n;
            }
            '\t' => {}
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// Whether words begin with an upper-case letter and go on in lower case.
fn is_title(text: &str) -> bool {
    let (mut any, mut inside) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && inside) || (c.is_lowercase() && !inside) {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        any |= inside;
    }
    any
}

/// `tojson` with the signature that transformers gives it: `(value, ensure_ascii, indent, separators, sort_keys)`.
fn tojson(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = args.get(place).cloned().map_or_else(|| named.get::<Option<Value>>(name), |v| Ok(Some(v)))?;
        Ok(given.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let truth = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let ascii = truth(option(0, "ensure_ascii")?);
    let indent = match option(1, "indent")? {
        None => None,
        Some(v) if v.as_str().is_some() => v.as_str().map(str::to_owned),
        Some(v) => Some(" ".repeat(usize::try_from(i64::try_from(v)?.clamp(0, 64)).unwrap_or(0))),
    };
    let (mut item_separator, mut key_separator) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = option(2, "separators")? {
        item_separator = separators.get_item_by_index(0)?.to_string();
        key_separator = separators.get_item_by_index(1)?.to_string();
    }
    let sort_keys = truth(option(3, "sort_keys")?);
    named.assert_all_used()?;
    to_json(value, &Style { ascii, sort_keys, indent, item_separator, key_separator }).map(Value::from)
}

/// Methods that Python's values have. Most are `minijinja-contrib`'s; these are the ones it lacks.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "removeprefix" | "removesuffix" => {
                let (part,): (&str,) = from_args(args)?;
                let cut = if method == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
                return Ok(Value::from(cut.unwrap_or(text)));
            }
            "partition" | "rpartition" => {
                let (by,): (&str,) = from_args(args)?;
                let parts = if method == "partition" { text.split_once(by) } else { text.rsplit_once(by) };
                let (a, b, c) = match parts {
                    Some((a, c)) => (a, by, c),
                    None if method == "partition" => (text, "", ""),
                    None => ("", "", text),
                };
                return Ok(Value::from(Tuple::from([a, b, c].map(Value::from))));
            }
            "rsplit" => {
                let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
                let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX).saturating_add(1);
                let mut parts: Vec<&str> = match by {
                    Some(by) => text.rsplitn(most, by).collect(),
                    None => rsplit_white_space(text, most),
                };
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "center" | "ljust" | "rjust" => {
                let (width, fill): (i64, Option<&str>) = from_args(args)?;
                return padded(text, method, width, fill.unwrap_or(" "));
            }
            "zfill" => {
                let (width,): (i64,) = from_args(args)?;
                let (sign, digits) = match text.strip_prefix(['-', '+']) {
                    Some(digits) => text.split_at(text.len() - digits.len()),
                    None => ("", text),
                };
                let digits = padded(digits, "rjust", width.saturating_sub(sign.len() as i64), "0")?;
                return Ok(Value::from(format!("{sign}{digits}")));
            }
            "expandtabs" => {
                let (size,): (Option<i64>,) = from_args(args)?;
                return Ok(Value::from(expand_tabs(text, usize::try_from(size.unwrap_or(8)).unwrap_or(0).min(64))));
            }
            "swapcase" => {
                let swap = |c: char| -> String {
                    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
                };
                return Ok(Value::from(text.chars().map(swap).collect::<String>()));
            }
            "casefold" => return Ok(Value::from(text.to_lowercase().replace('\u{df}', "ss"))),
            "isdecimal" => return Ok(Value::from(!text.is_empty() && text.chars().all(char::is_numeric))),
            "isidentifier" => {
                let start = |c: char| c == '_' || c.is_alphabetic();
                let all = text.chars().all(|c| start(c) || c.is_numeric());
                return Ok(Value::from(all && text.starts_with(start)));
            }
            "istitle" => return Ok(Value::from(is_title(text))),
            "index" => {
                let (part,): (&str,) = from_args(args)?;
                return match text.find(part) {
                    Some(at) => Ok(Value::from(text.get(..at).unwrap_or_default().chars().count())),
                    None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
                };
            }
            _ => {}
        }
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (Value,) = from_args(args)?;
        return match value.try_iter()?.position(|v| v == wanted) {
            Some(at) => Ok(Value::from(at)),
            None => Err(Error::new(ErrorKind::InvalidOperation, "the value is not in the list")),
        };
    }
    if matches!(value.kind(), ValueKind::Map | ValueKind::Seq) && method == "copy" && args.is_empty() {
        return Ok(value.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Words from the end, at most `most` parts; the last part is what is left of the text.
fn rsplit_white_space(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let cut = if parts.len() + 1 == most { None } else { rest.rfind(char::is_whitespace) };
        let Some(at) = cut else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
        parts.push(after.trim_start());
        rest = before.trim_end();
    }
    parts
}
