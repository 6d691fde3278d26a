//! BPE with ranked merges: on bytes written as printable characters (GPT-2's way), or on UTF-8 with `▁` for the space.
//!
//! The merging itself is the `tokenizers` crate's; this cuts the text into pieces and remembers the pieces of one call.
//! The crate's own memory of words is switched off, because it belongs to the thread and outlives the tokenizer.
//! Invariant: the tokens of a text spell exactly that text, or an error says what cannot be spelled.

use super::pre::Pre;
use super::vocab::{Kind, byte_of};
use crate::error::{Error, Result, bail};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::utils::SysRegex;

pub(super) struct Bpe {
    model: BPE,
    cuts: Vec<Cut>,
    /// Whether tokens are bytes written as characters; otherwise they are UTF-8 with byte tokens for the rest.
    byte_level: bool,
    /// What the vocabulary can spell: for byte level all 256 bytes normally, for UTF-8 its single characters.
    characters: HashSet<char>,
    all_bytes: bool,
}

/// One pattern that cuts text.
struct Cut {
    regex: SysRegex,
    /// White space leaves its last character to what follows.
    leaves_space: bool,
    /// White space up to a line end is a piece of its own, and leaves nothing.
    keeps_lines: bool,
    /// Matches are numbers, and groups of three digits from their right end are pieces.
    thirds: bool,
}

impl Cut {
    fn new(pattern: &str) -> std::result::Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let (leaves_space, keeps_lines) = (pattern.ends_with(r"|\s+"), pattern.contains(r"\s*[\r\n]"));
        let thirds = pattern.starts_with(r"\d+");
        Ok(Self { regex: SysRegex::new(pattern)?, leaves_space, keeps_lines, thirds })
    }

    /// Cuts `text` at the matches; what is between them is a piece as well.
    fn apply<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
        let mut done = 0;
        'restart: loop {
            let base = done;
            for (start, end) in self.regex.find_iter(text.get(base..).unwrap_or_default()) {
                let (start, end) = (base + start, base + end);
                let found = text.get(start..end).unwrap_or_default();
                out.extend(text.get(done..start).filter(|gap| !gap.is_empty()));
                if let Some(left) = self.left_behind(found).filter(|_| end < text.len()) {
                    done = end - left;
                    out.extend(text.get(start..done));
                    continue 'restart;
                }
                if self.thirds {
                    from_the_right(found, out);
                } else {
                    out.extend(Some(found).filter(|found| !found.is_empty()));
                }
                done = end;
            }
            out.extend(text.get(done..).filter(|rest| !rest.is_empty()));
            return;
        }
    }

    /// How many bytes of a match belong to what follows.
    fn left_behind(&self, found: &str) -> Option<usize> {
        let last = found.chars().next_back()?;
        let whole = self.keeps_lines && matches!(last, '\r' | '\n');
        let leaves = self.leaves_space && !whole && found.len() > last.len_utf8();
        (leaves && found.chars().all(char::is_whitespace)).then_some(last.len_utf8())
    }
}

/// Cuts a number into groups of three digits, of which the first may be shorter.
fn from_the_right<'t>(number: &'t str, out: &mut Vec<&'t str>) {
    let starts: Vec<usize> = number.char_indices().map(|(at, _)| at).collect();
    let first = starts.len() % 3;
    let mut from = 0;
    for at in starts.iter().skip(first).step_by(3).filter(|&&at| at > 0).chain([&number.len()]) {
        out.extend(number.get(from..*at));
        from = *at;
    }
}

/// The character that stands for a byte in byte-level vocabularies: itself where it is printable, otherwise the
/// characters from U+0100 on, in the order of the bytes.
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
}

impl Bpe {
    pub(super) fn new(
        tokens: &[Arc<str>],
        kinds: &[Kind],
        merges: &[String],
        pre: Pre,
        byte_level: bool,
    ) -> Result<Self> {
        // Text becomes ordinary tokens only; user-defined ones were taken out of it before.
        let usable = |k: &Kind| matches!(k, Kind::Normal | Kind::Byte) || (!byte_level && *k == Kind::UserDefined);
        let mut vocab = Vocab::default();
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            if usable(kind) && !token.is_empty() {
                vocab.entry(token.to_string()).or_insert(id as u32);
            }
        }
        let mut pairs = Vec::with_capacity(merges.len());
        let mut skipped = 0usize;
        let mut joined = String::new();
        for merge in merges {
            // A space at the very start belongs to the first token.
            let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(i, _)| i);
            let Some((a, b)) = space.and_then(|i| Some((merge.get(..i)?, merge.get(i + 1..)?))) else {
                bail!(BadFile, "the merge {merge:?} (key tokenizer.ggml.merges) is not two tokens");
            };
            joined.clear();
            joined.push_str(a);
            joined.push_str(b);
            if vocab.contains_key(a) && vocab.contains_key(b) && vocab.contains_key(&joined) {
                pairs.push((a.to_owned(), b.to_owned()));
            } else {
                skipped += 1;
            }
        }
        if skipped > 0 {
            log::warn!(
                "{skipped} of {} merges name tokens that the vocabulary does not have; they are left out",
                merges.len()
            );
        }
        let characters: HashSet<char> = vocab
            .keys()
            .filter_map(|t| {
                let mut chars = t.chars();
                chars.next().filter(|_| chars.next().is_none())
            })
            .collect();
        let all_bytes = if byte_level {
            (0..=255).all(|b| characters.contains(&byte_char(b)))
        } else {
            vocab.keys().filter_map(|t| byte_of(t)).collect::<HashSet<u8>>().len() == 256
        };
        let internal = |e: Box<dyn std::error::Error + Send + Sync>| Error::Internal(format!("tokenizer: {e}"));
        let model = BPE::builder()
            .vocab_and_merges(vocab, pairs)
            .cache_capacity(0)
            .ignore_merges(pre.ignore_merges)
            .byte_fallback(!byte_level)
            .build()
            .map_err(internal)?;
        let cuts = pre.patterns.iter().map(|p| Cut::new(p).map_err(internal)).collect::<Result<_>>()?;
        Ok(Self { model, cuts, byte_level, characters, all_bytes })
    }

    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let text: Cow<'_, str> = if self.byte_level { text.into() } else { text.replace(' ', "\u{2581}").into() };
        let mut known: HashMap<&str, (usize, usize)> = HashMap::new();
        for piece in self.pieces(&text) {
            if let Some(&(from, to)) = known.get(piece) {
                out.extend_from_within(from..to);
                continue;
            }
            let from = out.len();
            self.encode_piece(piece, out)?;
            known.insert(piece, (from, out.len()));
        }
        Ok(())
    }

    fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for cut in &self.cuts {
            let mut finer = Vec::with_capacity(pieces.len());
            pieces.iter().for_each(|piece| cut.apply(piece, &mut finer));
            pieces = finer;
        }
        pieces
    }

    fn encode_piece(&self, piece: &str, out: &mut Vec<u32>) -> Result<()> {
        let spelled: Cow<'_, str> =
            if self.byte_level { piece.bytes().map(byte_char).collect::<String>().into() } else { piece.into() };
        // The crate leaves out, without a word, what it cannot spell.
        if !self.all_bytes
            && let Some(c) = spelled.chars().find(|c| !self.characters.contains(c))
        {
            bail!(InvalidArgument, "the text has {piece:?}, and the vocabulary has no token for {c:?} in it");
        }
        // UTF-8 vocabularies keep runs of line ends as tokens without merges that lead to them.
        if !self.byte_level
            && piece.bytes().all(|b| b == b'\n')
            && let Some(id) = self.model.token_to_id(piece)
        {
            out.push(id);
            return Ok(());
        }
        match self.model.tokenize(&spelled) {
            Ok(tokens) => out.extend(tokens.iter().map(|t| t.id)),
            Err(e) => bail!(Internal, "tokenizer: {e}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_from_the_right() {
        let cut = |pattern: &str, text: &'static str| {
            let mut pieces = Vec::new();
            Cut::new(pattern).unwrap().apply(text, &mut pieces);
            pieces
        };
        assert_eq!(cut(r"\d+\b", "a 1234567, 12 123"), ["a ", "1", "234", "567", ", ", "12", " ", "123"]);
        assert_eq!(cut(r"\d+\b", "1234x 4321"), ["1234x ", "4", "321"], "only numbers that end a word");
        assert_eq!(cut(r"\d+", "1234x"), ["1", "234", "x"]);
    }

    #[test]
    fn byte_characters_are_distinct_and_as_published() {
        assert_eq!(byte_char(b'a'), 'a');
        assert_eq!(byte_char(b' '), '\u{120}');
        assert_eq!(byte_char(b'\n'), '\u{10a}');
        assert_eq!((0..=255).map(byte_char).collect::<HashSet<char>>().len(), 256);
    }
}
