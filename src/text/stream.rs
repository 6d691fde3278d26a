//! Text that arrives token by token: whole characters out of loose bytes, and stop strings across token borders.
//!
//! Neither type knows tokens or models. Invariants: what comes out, joined, does not depend on how the input was cut;
//! nothing that comes out is ever taken back.

/// Turns bytes into text as soon as they form whole characters.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The beginning of a character; at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// A stream at its beginning.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes, gives the text that is certain. A byte that cannot begin or continue a character becomes U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut out = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at_checked(e.valid_up_to()).unwrap_or((&[], rest));
                    out.push_str(&String::from_utf8_lossy(good));
                    rest = bad;
                    // Without a length the end is merely missing.
                    let Some(n) = e.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(n..).unwrap_or_default();
                }
            }
        }
        self.held = rest.to_vec();
        out
    }

    /// Ends the stream: a character that was begun becomes U+FFFD.
    pub fn flush(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        out
    }

    /// Whether a character is begun and not whole yet.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }
}

/// What a [`StopMatcher`] has to say about a piece of text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched {
    /// Text that cannot be part of a stop string any more.
    pub text: String,
    /// Which stop string was met, by its place in the list; the text ends before it.
    pub stop: Option<usize>,
}

/// Ends a text where the first of several strings is complete.
///
/// If two are complete at the same character, the longer one counts. The stop string itself never comes out.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Empty strings in the list are ignored, but keep their place.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes text, gives back what is certain. After a stop nothing more comes out.
    pub fn push(&mut self, text: &str) -> Matched {
        if self.stopped {
            return Matched::default();
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_stop() {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Matched { text, stop: Some(stop) };
        }
        let safe = self.held.len() - self.possible_start();
        let kept = self.held.split_off(safe);
        Matched { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// Ends the text: gives what was held back, for no stop string came of it.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string was met.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Where the stop string that is complete first begins, and which it is.
    fn first_stop(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let found = found.filter_map(|(i, s)| self.held.find(s.as_str()).map(|start| (start + s.len(), start, i)));
        found.min().map(|(_, start, i)| (start, i))
    }

    /// Bytes at the end that a stop string could begin with.
    fn possible_start(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &str| {
            let stop = stop.as_bytes();
            let most = stop.len().saturating_sub(1).min(held.len());
            (1..=most).rev().find(|&n| stop.get(..n) == held.get(held.len() - n..)).unwrap_or(0)
        };
        // A match begins with a first byte, so it begins on a character border.
        self.stops.iter().map(|s| longest(s)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_out_whole() {
        let mut s = Utf8Stream::new();
        assert_eq!(s.push(b"a\xe2\x82"), "a");
        assert!(s.is_holding());
        assert_eq!(s.push(b"\xacb"), "\u{20ac}b");
        assert_eq!(s.push(b"\xff\xf0\x9f"), "\u{fffd}");
        assert_eq!(s.push(b"x"), "\u{fffd}x");
        assert_eq!(s.push(b"\xc3"), "");
        assert_eq!(s.flush(), "\u{fffd}");
        assert_eq!(s.flush(), "");
    }

    #[test]
    fn utf8_does_not_depend_on_the_cuts() {
        let bytes = b"\xe4\xbd\xa0\xff\xf0\x9f\x94\xa5 \xed\xa0\x80\xc0z\xf0\x9f\x94";
        let whole = String::from_utf8_lossy(bytes);
        for size in 1..bytes.len() {
            let mut s = Utf8Stream::new();
            let mut out: String = bytes.chunks(size).map(|c| s.push(c)).collect();
            out.push_str(&s.flush());
            assert_eq!(out, whole);
        }
    }

    fn run(stops: &[&str], text: &str, size: usize) -> (String, Option<usize>) {
        let mut m = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = String::new();
        for c in text.chars().collect::<Vec<_>>().chunks(size) {
            let got = m.push(&c.iter().collect::<String>());
            out.push_str(&got.text);
            if got.stop.is_some() {
                assert!(m.is_stopped() && m.push("more").text.is_empty());
                return (out, got.stop);
            }
        }
        out.push_str(&m.flush());
        (out, None)
    }

    #[test]
    fn stops_do_not_depend_on_the_cuts() {
        for size in 1..12 {
            assert_eq!(run(&["END", "\n\n"], "one EN\ntwoENDx", size), ("one EN\ntwo".into(), Some(0)));
            assert_eq!(run(&["abcX", "b"], "zabcX", size), ("za".into(), Some(1)));
            assert_eq!(run(&["b", "ab"], "zab", size), ("z".into(), Some(1)));
            assert_eq!(run(&["aab"], "aaab", size), ("a".into(), Some(0)));
            assert_eq!(run(&["", "\u{e9}\u{e8}"], "x\u{e9}\u{e9}\u{e8}", size), ("x\u{e9}".into(), Some(1)));
            assert_eq!(run(&["stop"], "no sto", size), ("no sto".into(), None));
            assert_eq!(run(&[], "text", size), ("text".into(), None));
        }
    }

    #[test]
    fn only_what_could_stop_is_held_back() {
        let mut m = StopMatcher::new(vec!["<end>".into()]);
        assert_eq!(m.push("a <e").text, "a ");
        assert_eq!(m.push("gg").text, "<egg");
    }
}
