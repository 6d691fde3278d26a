//! Reading what the user gives: files, token ids, JSON.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use serde_json::Value;

use super::outcome::{Failure, Outcome};

fn in_file(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::Message(format!("{}: {e}", path.display()))
}

/// A text file; `-` is stdin.
pub(super) fn text(path: &Path) -> Outcome<String> {
    if path.as_os_str() == "-" {
        return stdin();
    }
    std::fs::read_to_string(path).map_err(|e| in_file(path, e))
}

/// All of stdin, unless a person sits at it.
pub(super) fn stdin() -> Outcome<String> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::Usage("no prompt: give --prompt, --prompt-file or --ids, or pipe text in".into()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// A JSON file; `-` is stdin.
pub(super) fn json(path: &Path) -> Outcome<Value> {
    serde_json::from_str(&text(path)?).map_err(|e| in_file(path, e))
}

/// Token ids: a JSON array, or an object with an array `ids`.
pub(super) fn ids(path: &Path) -> Outcome<Vec<u32>> {
    ids_of(&json(path)?)
        .ok_or_else(|| in_file(path, "an array of token ids is needed, or an object with one as \"ids\""))
}

fn ids_of(value: &Value) -> Option<Vec<u32>> {
    let list = value.as_array().or_else(|| value.get("ids")?.as_array())?;
    list.iter().map(|v| v.as_u64().and_then(|v| u32::try_from(v).ok())).collect()
}

/// Writes a JSON value and a newline to stdout.
pub(super) fn print_json(value: &Value) -> Outcome {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_come_as_an_array_or_in_an_object() {
        assert_eq!(ids_of(&json!([1, 2])), Some(vec![1, 2]));
        assert_eq!(ids_of(&json!({"ids": []})), Some(vec![]));
        for bad in [json!([1, -2]), json!([1.5]), json!({"tokens": [1]}), json!("1"), json!([1u64 << 32])] {
            assert_eq!(ids_of(&bad), None, "{bad}");
        }
    }
}
