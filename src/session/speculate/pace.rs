//! How much is drafted, and when drafting rests. Nothing here changes what is drawn.
//!
//! The rule: times are measured for a token of plain batches and for a token of verifications (drafting included), each as a smoothed mean. The
//! first batch of a session is plain, to have something to compare with. After a verification all of whose drafts were right the next one may have
//! twice as many; after one with less than half right, half as many, but three. If after [`TRIAL`] verifications a token of theirs takes longer than
//! one of plain batches, drafting rests for [`REST`] tokens, and twice as long each time that this happens again, up to [`LONGEST_REST`]; a trial that
//! pays sets it back. So a text that cannot be guessed costs a few verifications now and then.

/// Drafts of a single group of rows, with the token before them.
const LEAST: u32 = 3;
/// Verifications before a judgement.
const TRIAL: u32 = 4;
/// Tokens that are decoded plainly after a trial that did not pay.
const REST: u32 = 32;
const LONGEST_REST: u32 = 512;
/// Share of the newest time in a mean.
const NEWEST: f64 = 0.25;

/// See the module's text.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    adaptive: bool,
    most: u32,
    length: u32,
    /// Nanoseconds a token.
    plain: Option<f64>,
    drafted: Option<f64>,
    /// Verifications since drafting began, or began again.
    tried: u32,
    /// Tokens left to be decoded plainly.
    rest: u32,
    next_rest: u32,
}

fn smoothed(mean: Option<f64>, new: f64) -> Option<f64> {
    Some(mean.map_or(new, |old| old + NEWEST * (new - old)))
}

impl Pace {
    pub(super) fn new(most: u32, adaptive: bool) -> Self {
        let length = if adaptive { LEAST.min(most) } else { most };
        Self { adaptive, most, length, plain: None, drafted: None, tried: 0, rest: 0, next_rest: REST }
    }

    /// Tokens to draft now; 0: none, the next batch is plain.
    pub(super) fn length(&self) -> u32 {
        let rests = self.adaptive && (self.rest > 0 || self.plain.is_none());
        if rests { 0 } else { self.length }
    }

    /// A plain batch of so many tokens took that long.
    pub(super) fn plain(&mut self, tokens: usize, ns: u64) {
        if tokens > 0 {
            self.plain = smoothed(self.plain, ns as f64 / tokens as f64);
            self.rest = self.rest.saturating_sub(tokens as u32);
        }
    }

    /// A verification of `drafted` tokens, `accepted` of them right, gave `tokens` in that time.
    pub(super) fn verified(&mut self, drafted: u32, accepted: u32, tokens: usize, ns: u64) {
        self.drafted = smoothed(self.drafted, ns as f64 / tokens.max(1) as f64);
        self.tried += 1;
        if !self.adaptive {
            return;
        }
        if accepted == drafted {
            self.length = (self.length * 2 + 1).min(self.most);
        } else if accepted * 2 < drafted {
            self.length = (self.length / 2).max(LEAST.min(self.most));
        }
        if self.tried < TRIAL {
            return;
        }
        match self.drafted.zip(self.plain) {
            Some((drafted, plain)) if drafted > plain => {
                self.rest = self.next_rest;
                self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
                (self.drafted, self.tried) = (None, 0);
            }
            _ => self.next_rest = REST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_drafts_grow_and_wrong_ones_shrink() {
        let mut p = Pace::new(15, true);
        assert_eq!(p.length(), 0, "a plain batch first");
        p.plain(1, 1000);
        let mut seen = Vec::new();
        for accepted in [3, 7, 15, 15, 10, 3, 3, 1] {
            seen.push(p.length());
            p.verified(p.length(), accepted, accepted as usize + 1, 500);
        }
        assert_eq!(seen, [3, 7, 15, 15, 15, 15, 7, 3]);
        assert_eq!(p.length(), 3);
        assert_eq!(Pace::new(2, true).length, 2);
        let mut fixed = Pace::new(7, false);
        fixed.verified(7, 0, 1, 1_000_000);
        assert_eq!(fixed.length(), 7);
    }

    #[test]
    fn drafts_that_do_not_pay_rest_longer_each_time() {
        let mut p = Pace::new(7, true);
        p.plain(4, 4000);
        let trial = |p: &mut Pace| {
            for _ in 0..TRIAL {
                assert_eq!(p.length(), 3);
                p.verified(3, 0, 1, 2000);
            }
        };
        for rest in [32, 64, 128, 256, 512, 512] {
            trial(&mut p);
            for _ in 0..rest / 4 {
                assert_eq!(p.length(), 0);
                p.plain(4, 4000);
            }
        }
        // One that pays sets the rest back.
        (0..TRIAL).for_each(|_| p.verified(3, 3, 4, 2000));
        assert!(p.length() > 0);
        assert_eq!(p.next_rest, REST);
    }
}
