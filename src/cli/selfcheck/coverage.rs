//! Which declared variants of the kernels were executed and compared with their references.
//!
//! A variant counts when a check that passed read a buffer which its dispatch wrote, or which was computed from that. So a check has
//! nothing to do for it: running dispatches and reading results through the `Lab` is enough.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use doppler::Result;
use doppler::gpu::{Buffer, Dispatch, Features, Grid, Variant};
use doppler::kernels::variants::{self, Declared, VariantKey};

/// One dispatch and the buffers it touched, by number.
#[derive(Clone)]
struct Executed {
    key: VariantKey,
    touched: Vec<u64>,
    written: Vec<u64>,
}

/// See the module's text.
#[derive(Clone, Default)]
pub(in crate::cli) struct Coverage {
    declared: Arc<Vec<Declared>>,
    /// The short round: only some forms of each kernel are asked for.
    quick: bool,
    covered: HashSet<VariantKey>,
    /// What had been covered when the present device was opened: which cases run does not depend on the order of the checks.
    before: HashSet<VariantKey>,
    /// Of the check that is running: dispatches whose results were not read yet, and variants whose results were.
    pending: Vec<Executed>,
    read: HashSet<VariantKey>,
    /// Kernels that each check was seen to run.
    kernels: HashMap<&'static str, HashSet<&'static str>>,
}

impl Coverage {
    /// Everything that kernels declare for an adapter with these abilities.
    pub(in crate::cli) fn new(present: Features, quick: bool) -> Result<Self> {
        Ok(Self { declared: Arc::new(variants::declared(present)?), quick, ..Default::default() })
    }

    /// A device is opened: from now on only what is not covered yet is asked for.
    pub(super) fn begin(&mut self) {
        self.before = self.covered.clone();
    }

    pub(super) fn dispatched(&mut self, d: &Dispatch<'_>, features: Features) -> Result<()> {
        // A grid without workgroups executes nothing.
        if matches!(d.grid, Grid::Direct(g) if g.contains(&0)) {
            return Ok(());
        }
        let (key, bindings) = VariantKey::with_bindings(d.kernel, &d.variant, features)?;
        let ids: Vec<u64> = d.bindings.iter().map(|(_, s)| s.buffer.id()).collect();
        let written = ids.iter().zip(&bindings).filter(|(_, b)| !b.read_only).map(|(&id, _)| id).collect();
        self.pending.push(Executed { key, touched: ids, written });
        Ok(())
    }

    /// A result was read: the dispatches that it came from are looked at now.
    pub(super) fn read(&mut self, buffer: &Buffer) {
        self.sources_of(buffer.id());
    }

    fn sources_of(&mut self, buffer: u64) {
        let mut sources = HashSet::from([buffer]);
        let mut unread = Vec::new();
        for e in std::mem::take(&mut self.pending).into_iter().rev() {
            if e.written.iter().any(|id| sources.contains(id)) {
                sources.extend(e.touched);
                self.read.insert(e.key);
            } else {
                unread.push(e);
            }
        }
        unread.reverse();
        self.pending = unread;
    }

    /// A check has ended; what it read counts if it passed.
    pub(super) fn end(&mut self, check: &'static str, pass: bool) {
        let seen = self.kernels.entry(check).or_default();
        seen.extend(self.read.iter().map(VariantKey::kernel));
        self.pending.clear();
        let read = self.read.drain();
        if pass {
            self.covered.extend(read);
        }
    }

    /// Adds what was covered on another device.
    pub(in crate::cli) fn merge(&mut self, other: Self) {
        self.covered.extend(other.covered);
    }

    /// Variants of a kernel that only a device with these abilities executes of those opened so far.
    fn missing_on(&self, kernel: &str, features: Features) -> impl Iterator<Item = &Declared> {
        let here = move |d: &&Declared| {
            VariantKey::new(d.kernel, &d.form, features).is_ok_and(|key| key == d.key && !self.before.contains(&key))
        };
        self.declared.iter().filter(move |d| d.kernel.name == kernel).filter(here)
    }

    pub(super) fn missing_forms(&self, kernel: &str, features: Features) -> Vec<Variant> {
        let mut forms: Vec<Variant> = self.missing_on(kernel, features).map(|d| d.form.clone()).collect();
        if self.quick {
            // The last form of each fragment has its most flags.
            forms = forms.chunk_by(|a, b| a.slots == b.slots).filter_map(|same| same.last().cloned()).collect();
        }
        forms
    }

    pub(super) fn wants(&self, check: &str, features: Features) -> bool {
        self.kernels.get(check).into_iter().flatten().any(|k| self.missing_on(k, features).next().is_some())
    }

    /// Variants to be tried.
    pub(in crate::cli) fn declared(&self) -> usize {
        self.declared.len()
    }

    /// Those not tried, by kernel, form and device.
    pub(in crate::cli) fn missing(&self) -> Vec<String> {
        self.declared.iter().filter(|d| !self.covered.contains(&d.key)).map(Declared::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use doppler::kernels::KERNELS;

    use super::*;

    fn executed(kernel: usize, touched: &[u64], written: &[u64]) -> Executed {
        let k = KERNELS.iter().filter(|k| k.slots.is_empty() && k.forms.paths.is_empty()).nth(kernel).unwrap();
        let key = VariantKey::new(k, &Variant::default(), Features::ALL).unwrap();
        Executed { key, touched: touched.to_vec(), written: written.to_vec() }
    }

    #[test]
    fn a_variant_counts_when_its_result_was_read_by_a_check_that_passed() {
        let mut c = Coverage::new(Features::ALL, false).unwrap();
        let declared = c.declared();
        assert_eq!(c.missing().len(), declared, "nothing has run");
        // 0 writes buffer 2; 1 makes 3 of it; what 2 wrote is never read.
        let run = |c: &mut Coverage| {
            c.pending = vec![executed(0, &[1, 2], &[2]), executed(1, &[2, 3], &[3]), executed(2, &[2, 4], &[4])];
            c.sources_of(3);
        };
        run(&mut c);
        c.end("x", false);
        assert_eq!(c.missing().len(), declared, "the check failed");
        run(&mut c);
        c.end("x", true);
        assert_eq!(c.missing().len(), declared - 2);
        let left = executed(2, &[], &[]).key;
        assert!(c.missing().iter().any(|m| m.starts_with(left.kernel())), "{:?}", c.missing());
        assert!(c.pending.is_empty(), "a later check cannot read this check's results");
    }
}
