//! Records that a module has taken and not decided: they lie at the host, which keeps them in place.
//!
//! This is what lets a module that says [`crate::Policy::LOOKS_BACK`] read them without a copy of its
//! own. A record is forgotten here when the host is handed its decision, before the host can free it.

use std::collections::VecDeque;

use lcap_ffi::Record;
use lcap_ffi::policy::{PolicyOut, PolicyRecord};
use lcap_ffi::record::split_first;

/// The undecided records of an instance, by token.
#[derive(Debug, Default)]
pub struct Taken {
    /// Token of the first of `lent`.
    first: u64,
    lent: VecDeque<Option<Lent>>,
}

/// A record of the host's.
#[derive(Debug)]
struct Lent(&'static [u8]);

impl Taken {
    /// The record with that token, if it was taken and is not decided.
    #[inline]
    pub fn get(&self, token: u64) -> Option<Record<'_>> {
        let at = usize::try_from(token.checked_sub(self.first)?).ok()?;
        let Lent(bytes) = self.lent.get(at)?.as_ref()?;
        split_first(bytes).ok().map(|(record, _)| record)
    }

    /// The host lends these until they are decided.
    ///
    /// # Safety
    /// The records stay valid and unchanged until [`Self::decided`] was told of their tokens (the host's
    /// promise to a module without `LCAP_POLICY_NO_POINTERS`).
    pub(crate) unsafe fn take(&mut self, records: &[PolicyRecord]) {
        let Some(first) = records.first() else { return };
        // Tokens count on; a host that leaves some out has none to be asked for between them.
        let next = self.first + self.lent.len() as u64;
        if self.lent.is_empty() {
            self.first = first.token;
        } else if first.token != next {
            let n_left_out = first.token.saturating_sub(next);
            self.lent.extend((0..n_left_out).map(|_| None));
        }
        self.lent.extend(records.iter().map(|record| {
            // SAFETY: `size` valid bytes; the reference ends with the entry, which `decided` removes,
            // and is given out for the time of a borrow of `self` only.
            Some(Lent(unsafe {
                std::slice::from_raw_parts(record.rec.cast::<u8>(), record.size as usize)
            }))
        }));
    }

    /// The host is about to learn these decisions.
    ///
    /// # Safety
    /// Token lists of the entries are valid.
    pub(crate) unsafe fn decided(&mut self, entries: &[PolicyOut]) {
        for entry in entries {
            if entry.tokens.is_null() {
                (entry.token..).take(entry.count as usize).for_each(|token| self.forget(token));
            } else {
                // SAFETY: the caller's promise.
                let tokens =
                    unsafe { std::slice::from_raw_parts(entry.tokens, entry.count as usize) };
                tokens.iter().for_each(|&token| self.forget(token));
            }
        }
        while let Some(None) = self.lent.front() {
            self.lent.pop_front();
            self.first += 1;
        }
    }

    fn forget(&mut self, token: u64) {
        let at = token.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(place) = at.and_then(|at| self.lent.get_mut(at)) {
            *place = None;
        }
    }
}
