//! A reply as it arrives: bytes of tokens to text of whole characters, cut into segments, up to a stop string.
//!
//! It knows no tokens. Invariant: what comes out does not depend on how the input was cut, and nothing is taken back.

use super::segments::{Piece, SegmentKind, Segmenter, add_piece};
use super::stream::{StopMatcher, Utf8Stream};
use std::collections::VecDeque;

/// What a [`ReplyStream`] makes of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Text that is certain.
    pub pieces: Vec<Piece>,
    /// Which stop string was met, by its place in the list; the text ends before it.
    pub stop: Option<usize>,
}

/// The text of a reply.
#[derive(Debug, Clone)]
pub struct ReplyStream {
    utf8: Utf8Stream,
    segments: Segmenter,
    stops: StopMatcher,
    /// Kinds and lengths of the text that `stops` holds.
    kinds: VecDeque<(SegmentKind, usize)>,
}

impl ReplyStream {
    /// A reply that ends at any of `stops`.
    #[must_use]
    pub fn new(segments: Segmenter, stops: Vec<String>) -> Self {
        Self { utf8: Utf8Stream::new(), segments, stops: StopMatcher::new(stops), kinds: VecDeque::new() }
    }

    /// The next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Said {
        let text = self.utf8.push(bytes);
        let mut pieces = Vec::new();
        self.segments.push(&text, true, &mut pieces);
        self.stop(pieces)
    }

    /// The text of a token that is not shown; it may be a mark.
    pub fn push_hidden(&mut self, text: &str) -> Said {
        let mut pieces = Vec::new();
        self.segments.push(text, false, &mut pieces);
        self.stop(pieces)
    }

    /// Ends the reply: gives what was held back. The segment it ended in is what is left.
    pub fn finish(mut self) -> (Vec<Piece>, Segmenter) {
        let mut pieces = Vec::new();
        self.segments.push(&self.utf8.flush(), true, &mut pieces);
        self.segments.flush(&mut pieces);
        let mut said = self.stop(pieces);
        if said.stop.is_none() {
            let rest = self.stops.flush();
            self.kinds_of(&rest, &mut said.pieces);
        }
        (said.pieces, self.segments)
    }

    /// Looks for stop strings, which may reach over segments.
    fn stop(&mut self, pieces: Vec<Piece>) -> Said {
        let mut said = Said::default();
        for piece in pieces {
            self.kinds.push_back((piece.kind, piece.text.len()));
            let matched = self.stops.push(&piece.text);
            self.kinds_of(&matched.text, &mut said.pieces);
            said.stop = matched.stop;
            if said.stop.is_some() {
                break;
            }
        }
        said
    }

    fn kinds_of(&mut self, mut text: &str, out: &mut Vec<Piece>) {
        while let Some((kind, length)) = self.kinds.front_mut() {
            if text.is_empty() {
                return;
            }
            let n = text.len().min(*length);
            let (now, later) = text.split_at_checked(n).unwrap_or((text, ""));
            add_piece(out, *kind, now);
            text = later;
            *length -= n;
            if *length == 0 {
                self.kinds.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::segments::Markers;
    use super::*;
    use SegmentKind::{Content, Marker, Reasoning};

    fn run(text: &str, stops: &[&str], size: usize) -> (Vec<Piece>, Option<usize>) {
        let markers = Markers::find(|t| t == "<think>", None);
        let segments = Segmenter::after(markers.into(), "");
        let mut r = ReplyStream::new(segments, stops.iter().map(|s| (*s).to_owned()).collect());
        let mut pieces = Vec::new();
        let mut add = |new: Vec<Piece>| new.iter().for_each(|p| add_piece(&mut pieces, p.kind, &p.text));
        for chunk in text.as_bytes().chunks(size) {
            let said = r.push(chunk);
            add(said.pieces);
            if said.stop.is_some() {
                return (pieces, said.stop);
            }
        }
        add(r.finish().0);
        (pieces, None)
    }

    #[test]
    fn stops_reach_over_segments_and_cuts_make_no_difference() {
        let piece = |kind, text: &str| Piece { kind, text: text.into() };
        let text = "<think>h\u{e9}h</think>\u{1f525} done.";
        for size in 1..text.len() {
            let all = [piece(Marker, "<think>"), piece(Reasoning, "h\u{e9}h"), piece(Marker, "</think>")];
            assert_eq!(run(text, &["h</th"], size), ([&all[..1], &[piece(Reasoning, "h\u{e9}")]].concat(), Some(0)));
            assert_eq!(
                run(text, &["dont", "ne"], size),
                ([&all[..], &[piece(Content, "\u{1f525} do")]].concat(), Some(1))
            );
            assert_eq!(run(text, &["dont"], size), ([&all[..], &[piece(Content, "\u{1f525} done.")]].concat(), None));
        }
    }
}
