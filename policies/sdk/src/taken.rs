//! Records that a module has taken and not decided: they lie at the host, which keeps them in place.
//!
//! This is what lets a module that says [`crate::Policy::LOOKS_BACK`] read them without a copy of its
//! own. A record is forgotten here when the host is handed its decision, before the host can free it.

use std::collections::VecDeque;
use std::ptr::NonNull;

use lcap_ffi::Record;
use lcap_ffi::policy::{PolicyOut, PolicyRecord};
use lcap_ffi::record::{RecordError, RecordHead, split_first, split_len};

/// The undecided records of an instance, by token.
#[derive(Debug, Default)]
pub struct Taken {
    /// Token of the first of `lent`.
    first: u64,
    lent: VecDeque<Option<Lent>>,
}

/// A record of the host's: where it begins. It says itself how long it is.
#[derive(Clone, Copy, Debug)]
struct Lent(NonNull<u8>);

// SAFETY: what it points to is only read, and stays where it is and as it is whichever thread does
// (the host's promise, see `Taken::take`).
unsafe impl Send for Lent {}

impl Lent {
    /// Its bytes.
    ///
    /// # Safety
    /// The host still lends it.
    unsafe fn bytes<'a>(self) -> Option<&'a [u8]> {
        let mut size = size_of::<RecordHead>();
        loop {
            // SAFETY: a record has at least its head, and `split_len` asks for more only if the record
            // says that there is more; the host lends whole records.
            let bytes = unsafe { std::slice::from_raw_parts(self.0.as_ptr(), size) };
            match split_len(bytes) {
                Ok((whole, _)) => return bytes.get(..whole),
                Err(RecordError::Short { need, .. }) if need > size => size = need,
                Err(_) => return None,
            }
        }
    }
}

impl Taken {
    /// The record with that token, if it was taken and is not decided.
    #[inline]
    pub fn get(&self, token: u64) -> Option<Record<'_>> {
        let at = usize::try_from(token.checked_sub(self.first)?).ok()?;
        let lent = (*self.lent.get(at)?)?;
        // SAFETY: the host still lends what is in the list; the record is given out for the time of a borrow
        // of `self` only, and `decided` needs all of it.
        let bytes = unsafe { lent.bytes() }?;
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
        let lent = |record: &PolicyRecord| NonNull::new(record.rec.cast_mut().cast()).map(Lent);
        self.lent.extend(records.iter().map(lent));
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
