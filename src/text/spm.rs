//! SentencePiece BPE: neighbours are joined as long as the joined text is a token, the best score first.
//!
//! Scores may be equal, and then the leftmost pair wins; a table of ranked merges cannot say that, so this is not built
//! on the `tokenizers` crate's BPE. Spaces have become `▁` before text arrives here. Invariant: the tokens of a text spell
//! exactly that text (bytes where no token fits), or an error says which byte has none.

use super::vocab::{Kind, byte_of};
use crate::error::{Result, bail};
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

pub(super) struct Spm {
    /// The tokens that text can become, with their scores.
    pieces: HashMap<Arc<str>, (u32, f32)>,
    longest: usize,
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    /// No token goes on past the end of a word, so words can be encoded one by one (and once each).
    by_words: bool,
}

/// Where a word ends and the space mark of the next begins, if it does.
fn word_end(text: &str) -> Option<usize> {
    let after_word = text.find(|c| c != MARK)?;
    let rest = text.get(after_word..)?;
    rest.find(MARK).map(|at| after_word + at)
}

const MARK: char = '\u{2581}';

/// A stretch of the text; joined ones grow, the ones they swallow become empty.
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

/// A pair that could be joined, best first in a max-heap: highest score, then leftmost.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| Reverse(self.left).cmp(&Reverse(other.left)))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

impl Spm {
    /// `unknown` stands for what neither a token nor byte tokens can spell.
    pub(super) fn new(tokens: &[Arc<str>], kinds: &[Kind], scores: &[f32], unknown: Option<u32>) -> Self {
        let mut pieces = HashMap::with_capacity(tokens.len());
        let mut bytes = vec![None; 256];
        let mut longest = 0;
        let mut by_words = true;
        for (id, ((token, kind), score)) in tokens.iter().zip(kinds).zip(scores).enumerate() {
            let id = id as u32;
            match kind {
                Kind::Byte => {
                    if let Some(slot) = byte_of(token).and_then(|b| bytes.get_mut(usize::from(b))) {
                        *slot = Some(id);
                    }
                }
                // Plain text never becomes a control token, and user-defined ones were taken out before.
                Kind::Control | Kind::Unknown => {}
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    longest = longest.max(token.len());
                    by_words &= word_end(token).is_none();
                    // Adding zero makes -0.0 equal to 0.0, as scores are compared by value.
                    pieces.entry(token.clone()).or_insert((id, *score + 0.0));
                }
            }
        }
        Self { pieces, longest, bytes, unknown, by_words }
    }

    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        if !self.by_words {
            return self.encode_whole(text, out);
        }
        let mut known: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (word, after) = rest.split_at_checked(word_end(rest).unwrap_or(rest.len())).unwrap_or((rest, ""));
            rest = after;
            if let Some(&(from, to)) = known.get(word) {
                out.extend_from_within(from..to);
                continue;
            }
            let from = out.len();
            self.encode_whole(word, out)?;
            known.insert(word, (from, out.len()));
        }
        Ok(())
    }

    fn encode_whole(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                prev: i.checked_sub(1).unwrap_or(NONE),
                next: i + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut heap = BinaryHeap::new();
        for right in 1..symbols.len() {
            heap.extend(self.pair(text, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, len, .. }) = heap.pop() {
            let (Some(l), Some(r)) = (symbols.get(left), symbols.get(right)) else { continue };
            // Either side has been joined with something else since this pair was found.
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            let next = r.next;
            let prev = l.prev;
            if let Some(r) = symbols.get_mut(right) {
                r.len = 0;
            }
            if let Some(l) = symbols.get_mut(left) {
                l.len = len;
                l.next = next;
            }
            if let Some(n) = symbols.get_mut(next) {
                n.prev = left;
            }
            heap.extend(self.pair(text, &symbols, prev, left));
            heap.extend(self.pair(text, &symbols, left, next));
        }
        for s in symbols.iter().filter(|s| s.len > 0) {
            self.emit(text.get(s.start..s.start + s.len).unwrap_or_default(), out)?;
        }
        Ok(())
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (l, r) = (symbols.get(left)?, symbols.get(right)?);
        let len = l.len + r.len;
        if len > self.longest {
            return None;
        }
        let (_, score) = self.pieces.get(text.get(l.start..l.start + len)?)?;
        Some(Pair { score: *score, left, right, len })
    }

    fn emit(&self, piece: &str, out: &mut Vec<u32>) -> Result<()> {
        if let Some((id, _)) = self.pieces.get(piece) {
            out.push(*id);
            return Ok(());
        }
        let at = out.len();
        for byte in piece.bytes() {
            match self.bytes.get(usize::from(byte)).copied().flatten() {
                Some(id) => out.push(id),
                None => {
                    let Some(unknown) = self.unknown else {
                        bail!(InvalidArgument, "the text has {piece:?}, which the vocabulary cannot express");
                    };
                    out.truncate(at);
                    out.push(unknown);
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_before_marks() {
        assert_eq!(word_end("a\u{2581}b"), Some(1));
        assert_eq!(word_end("\u{2581}\u{2581}ab\u{2581}"), Some(8));
        assert_eq!(word_end("\u{2581}ab"), None);
        assert_eq!(word_end("\u{2581}"), None);
    }

    /// With and without cutting at words the tokens are the same.
    #[test]
    fn words_make_no_difference() {
        let list = ["\u{2581}", "a", "b", "ab", "\u{2581}a", "\u{2581}\u{2581}", "ba", "aa"];
        let tokens: Vec<Arc<str>> = list.iter().map(|t| Arc::from(*t)).collect();
        let scores = [-9.0, -9.0, -9.0, -2.0, -3.0, -1.0, -2.0, -2.0];
        let mut spm = Spm::new(&tokens, &[Kind::Normal; 8], &scores, None);
        assert!(spm.by_words);
        for n in 0..3usize.pow(8) {
            let text: String = (0..8).map(|i| ['\u{2581}', 'a', 'b'][n / 3usize.pow(i) % 3]).collect();
            let (mut by_words, mut whole) = (Vec::new(), Vec::new());
            spm.by_words = true;
            spm.encode(&text, &mut by_words).unwrap();
            spm.by_words = false;
            spm.encode(&text, &mut whole).unwrap();
            assert_eq!(by_words, whole, "{text}");
        }
    }
}
