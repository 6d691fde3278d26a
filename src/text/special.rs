//! Finds special tokens in text.
//!
//! At each place the longest token wins, and the first place wins over later ones. It does not decide which tokens are
//! special. Invariant: matches begin and end on character borders, because both texts are whole UTF-8.

/// A set of token texts to look for.
#[derive(Default)]
pub(super) struct Finder {
    /// Candidates by their first byte, the longest first.
    by_first: Vec<Vec<(Box<str>, u32)>>,
}

impl Finder {
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut by_first: Vec<Vec<(Box<str>, u32)>> = vec![Vec::new(); 256];
        for (text, id) in tokens {
            if let Some(slot) = text.bytes().next().and_then(|b| by_first.get_mut(usize::from(b))) {
                slot.push((text.into(), id));
            }
        }
        by_first.iter_mut().for_each(|slot| slot.sort_by_key(|(text, _)| std::cmp::Reverse(text.len())));
        Self { by_first }
    }

    /// The next match at or after byte `from`: where it begins, where it ends, which token.
    pub(super) fn next(&self, text: &str, from: usize) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        for (at, first) in bytes.iter().enumerate().skip(from) {
            let Some(candidates) = self.by_first.get(usize::from(*first)) else { continue };
            if candidates.is_empty() {
                continue;
            }
            let rest = bytes.get(at..).unwrap_or_default();
            if let Some((token, id)) = candidates.iter().find(|(t, _)| rest.starts_with(t.as_bytes())) {
                return Some((at, at + token.len(), *id));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_at_the_first_place() {
        let f = Finder::new([("<a", 1), ("<a>", 2), ("é", 3), ("", 4)].into_iter());
        assert_eq!(f.next("x<a><a", 0), Some((1, 4, 2)));
        assert_eq!(f.next("x<a><a", 4), Some((4, 6, 1)));
        assert_eq!(f.next("aé", 0), Some((1, 3, 3)));
        assert_eq!(f.next("none", 0), None);
    }
}
