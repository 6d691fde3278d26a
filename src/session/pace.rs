//! How many tokens a submit draws.

/// Tokens for each submit: always as many, or as many as take a given time. The next batch is encoded while this one runs, so its size is
/// decided one batch before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    most: u32,
    /// What the tokens of a submit may take; 0: whatever they take.
    target_ns: u64,
    /// What a token takes, by the latest batches; 0: not known yet.
    token_ns: u64,
    now: u32,
    next: u32,
}

impl Pace {
    pub(super) fn new(most: u32, target_us: u32) -> Self {
        let first = if target_us == 0 { most } else { 1 };
        Self { most, target_ns: u64::from(target_us) * 1000, token_ns: 0, now: first, next: first }
    }

    /// Tokens of the batch that comes now.
    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// Tokens of the batch after it.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// A batch of `tokens` took so long, from its submit to its tokens; `whole`: it did not end before its last step, since else it says nothing of the
    /// others.
    pub(super) fn measured(&mut self, tokens: u32, ns: u64, whole: bool) {
        self.now = self.next;
        if self.target_ns == 0 || !whole {
            return;
        }
        let each = (ns / u64::from(tokens.max(1))).max(1);
        // One batch that something else delayed does not halve the next.
        self.token_ns = if self.token_ns == 0 { each } else { (3 * self.token_ns + each) / 4 };
        self.next = (self.target_ns / self.token_ns).clamp(1, self.most.into()) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;

    #[test]
    fn without_a_time_it_is_always_as_many() {
        let mut p = Pace::new(16, 0);
        for ns in [1, 1 << 40] {
            assert_eq!((p.now(), p.next()), (16, 16));
            p.measured(16, ns, true);
        }
    }

    #[test]
    fn batches_grow_and_shrink_to_what_fits() {
        let mut p = Pace::new(32, 16_000);
        assert_eq!((p.now(), p.next()), (1, 1));
        // A token of 1 ms, and 0.5 ms for a submit whatever its size.
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.push(p.now());
            p.measured(p.now(), 500_000 + u64::from(p.now()) * 1_000_000, true);
        }
        assert_eq!(seen[..3], [1, 1, 10]);
        assert_eq!(seen[19], 15);
        // Batches that ended early say nothing.
        (0..9).for_each(|_| p.measured(p.now(), 4_000_000, false));
        assert_eq!((p.now(), p.next()), (15, 15));
        // Ten times slower: 1 token, and none is ever less.
        for _ in 0..40 {
            p.measured(p.now(), u64::from(p.now()) * 20_000_000, true);
        }
        assert_eq!(p.now(), 1);
        for _ in 0..40 {
            p.measured(p.now(), u64::from(p.now()) * 1_000, true);
        }
        assert_eq!(p.now(), 32);
    }
}
