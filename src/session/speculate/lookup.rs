//! Drafts from the text itself: what followed the last tokens where they stood before.

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::{Counters, Guard};
use crate::session::speculate::Drafter;

/// Looks for the longest earlier occurrence of the text's last `min` to `max` tokens; of equally long ones the latest counts.
#[derive(Debug, Clone)]
pub(super) struct LookupDrafter {
    pub(super) min: usize,
    pub(super) max: usize,
}

impl LookupDrafter {
    /// Where the tokens after the best occurrence begin, if there is one.
    fn find(&self, tokens: &[u32]) -> Option<usize> {
        let (mut best, mut length) = (None, self.min.max(1) - 1);
        for end in (1..tokens.len()).rev() {
            let same =
                tokens[..end].iter().rev().zip(tokens.iter().rev()).take(self.max).take_while(|(a, b)| a == b).count();
            if same > length {
                (best, length) = (Some(end), same);
                if same == self.max {
                    break;
                }
            }
        }
        best
    }
}

impl Drafter for LookupDrafter {
    fn prepare(&mut self, _: &[u32], _: Guard) -> Result<bool> {
        Ok(true)
    }

    fn draft(&mut self, tokens: &[u32], most: u32, _: Guard, drafts: &mut Vec<u32>) -> Result<()> {
        let Some(from) = self.find(tokens) else { return Ok(()) };
        let begun = drafts.len();
        for i in from..from + most as usize {
            // An occurrence that reaches the end goes on with what was drafted: the text repeats itself.
            let next = tokens.get(i).or_else(|| drafts.get(begun + i - tokens.len())).copied();
            drafts.extend(next);
        }
        Ok(())
    }

    fn fork(&self, _: &Arc<Counters>) -> Result<Box<dyn Drafter>> {
        Ok(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(min: usize, max: usize, tokens: &[u32], most: u32) -> Vec<u32> {
        let mut out = vec![99];
        LookupDrafter { min, max }.draft(tokens, most, Guard::default(), &mut out).unwrap();
        out.split_off(1)
    }

    #[test]
    fn the_longest_occurrence_counts_and_of_those_the_latest() {
        assert_eq!(drafts(1, 3, &[1, 2, 3, 7, 8, 5, 3, 9, 1, 2, 3], 2), [7, 8]);
        assert_eq!(drafts(1, 1, &[1, 2, 3, 7, 8, 5, 3, 9, 1, 2, 3], 2), [9, 1]);
        assert_eq!(drafts(1, 3, &[4, 3, 7, 4, 3, 9, 4, 3], 3), [9, 4, 3]);
        // Longer than max does not count more.
        assert_eq!(drafts(1, 2, &[6, 1, 2, 8, 5, 1, 2, 9, 6, 1, 2], 1), [9]);
        assert_eq!(drafts(1, 3, &[6, 1, 2, 8, 5, 1, 2, 9, 6, 1, 2], 1), [8]);
    }

    #[test]
    fn what_is_shorter_than_the_shortest_does_not_count() {
        assert!(drafts(2, 4, &[1, 2, 5, 2], 4).is_empty());
        assert_eq!(drafts(1, 4, &[1, 2, 5, 2], 4), [5, 2, 5, 2]);
        assert!(drafts(1, 4, &[1, 2, 3], 4).is_empty());
        assert!(drafts(1, 4, &[], 4).is_empty());
        assert!(drafts(1, 4, &[1], 4).is_empty());
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on_so() {
        assert_eq!(drafts(1, 3, &[1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
        assert_eq!(drafts(2, 3, &[4, 4, 4], 4), [4, 4, 4, 4]);
    }
}
