//! What must hold, said as plainly as possible: sets of indexes, nothing clever.

use std::collections::{BTreeMap, BTreeSet};

use super::mdt;

/// Whom the MDT's log is kept for: a registered reader (with its name) or a queue.
pub(super) type HolderKey = (usize, Option<String>);

/// What a stream's policies do, as far as the model needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Everything in order.
    None,
    /// Drops, and gives the rest in another order.
    Shuffle,
}

impl Policy {
    /// Whether a record comes out.
    pub(super) fn passes(self, index: u64) -> bool {
        match self {
            Self::None => true,
            Self::Shuffle => !index.is_multiple_of(5),
        }
    }
}

/// On one MDT.
#[derive(Debug, Default)]
struct Holder {
    /// Records up to here are not its business.
    start: u64,
    acked: BTreeSet<u64>,
    /// Cleared up to here, and found right.
    checked: u64,
}

/// A client process, from its start to its end.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) mdt: usize,
    pub(super) holder: Option<HolderKey>,
    pub(super) stream: usize,
    last: Option<u64>,
    had: BTreeSet<u64>,
}

impl Life {
    pub(super) fn new(mdt: usize, stream: usize, holder: Option<HolderKey>) -> Self {
        Self { mdt, holder, stream, last: None, had: BTreeSet::new() }
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }
}

/// The model.
#[derive(Debug)]
pub(super) struct Model {
    policies: Vec<Policy>,
    queues: Vec<bool>,
    holders: BTreeMap<(HolderKey, usize), Holder>,
    cleared: Vec<u64>,
    pub(super) n_delivered: u64,
    pub(super) n_again: u64,
}

impl Model {
    pub(super) fn new(policies: Vec<Policy>, queues: Vec<bool>, n_mdts: usize) -> Self {
        let mut holders = BTreeMap::new();
        for (stream, _) in queues.iter().enumerate().filter(|(_, is_queue)| **is_queue) {
            for mdt in 0..n_mdts {
                holders.insert(((stream, None), mdt), Holder::default());
            }
        }
        let cleared = vec![0; n_mdts];
        Self { policies, queues, holders, cleared, n_delivered: 0, n_again: 0 }
    }

    /// A reader was registered, says the daemon, with these watermarks. What the MDT had forgotten
    /// before is not promised to it, even if a restarted daemon does not know that it had.
    pub(super) fn registered(&mut self, key: &HolderKey, starts: &[u64]) {
        for (mdt, &start) in starts.iter().enumerate() {
            let start = start.max(self.cleared[mdt]);
            let holder = Holder { start, acked: BTreeSet::new(), checked: start };
            self.holders.entry((key.clone(), mdt)).or_insert(holder);
        }
    }

    /// A reader is being removed: nothing is promised to it any more.
    pub(super) fn deregistered(&mut self, key: &HolderKey) {
        self.holders.retain(|(other, _), _| other != key);
    }

    /// A record is handed to an application.
    pub(super) fn delivered(&mut self, life: &mut Life, index: u64) -> Result<(), String> {
        self.n_delivered += 1;
        let (mdt, policy) = (life.mdt, self.policies[life.stream]);
        if !policy.passes(index) {
            return Err(format!("{index} was dropped by the policy and came all the same"));
        }
        let again = !life.had.insert(index);
        if self.queues[life.stream] {
            self.n_again += u64::from(again);
            life.last = Some(index);
            return Ok(()); // at least once, in any order
        }
        if again {
            return Err(format!("{index} came twice"));
        }
        if policy == Policy::None {
            let cleared = self.cleared[mdt];
            let holder = life.holder.as_ref().and_then(|k| self.holders.get(&(k.clone(), mdt)));
            // What may be missing before it: what nobody holds and is gone, what was acknowledged.
            let mut missing = mdt::next_after(life.last.unwrap_or(0));
            while let Some(skipped) = missing.filter(|&i| i < index) {
                let excused = match (holder, life.last) {
                    (Some(holder), None) => {
                        skipped <= holder.start || holder.acked.contains(&skipped)
                    }
                    (Some(_), Some(_)) => false,
                    (None, _) => skipped <= cleared,
                };
                if !excused {
                    return Err(format!("{skipped} was left out before {index}"));
                }
                missing = mdt::next_after(skipped);
            }
            if life.last.is_some_and(|last| last >= index) {
                return Err(format!("{index} came after {:?}", life.last));
            }
        }
        life.last = Some(index);
        Ok(())
    }

    /// The application is done with everything that it was given up to `upto`.
    pub(super) fn acked(&mut self, life: &Life, upto: u64) {
        let Some(key) = &life.holder else { return };
        if let Some(holder) = self.holders.get_mut(&(key.clone(), life.mdt)) {
            holder.acked.extend(life.had.range(..=upto));
        }
    }

    /// The MDT was told to forget.
    pub(super) fn cleared(&mut self, mdt: usize, upto: u64) -> Result<(), String> {
        if upto == 0 || upto < self.cleared[mdt] {
            return Err(format!("cleared {upto} after {}", self.cleared[mdt]));
        }
        self.cleared[mdt] = upto;
        for ((key, at), holder) in &mut self.holders {
            if *at != mdt || holder.checked >= upto {
                continue;
            }
            let mut next = mdt::next_after(holder.checked);
            while let Some(index) = next.filter(|&i| i <= upto) {
                let policy = self.policies[key.0];
                if policy.passes(index) && index > holder.start && !holder.acked.contains(&index) {
                    return Err(format!(
                        "MDT {mdt} cleared up to {upto}; {key:?} has not acknowledged {index}"
                    ));
                }
                next = mdt::next_after(index);
            }
            holder.checked = upto;
        }
        Ok(())
    }

    /// What is still to come: the first record that somebody has not acknowledged, or that is not
    /// cleared though everybody has.
    pub(super) fn outstanding(&self, mdt: usize, n_existing: usize) -> Option<String> {
        let mut held = false;
        for ((key, at), holder) in &self.holders {
            if *at != mdt {
                continue;
            }
            held = true;
            let policy = self.policies[key.0];
            let open = mdt::indexes(n_existing).find(|&index| {
                index > holder.start && policy.passes(index) && !holder.acked.contains(&index)
            });
            if let Some(index) = open {
                return Some(format!("{key:?} has not had {index} of MDT {mdt}"));
            }
        }
        let head = mdt::indexes(n_existing).next_back().unwrap_or(0);
        let cleared = self.cleared[mdt];
        (held && cleared < head).then(|| format!("MDT {mdt} is cleared up to {cleared} of {head}"))
    }

    /// What an unregistered client that has been there to the end has not had.
    pub(super) fn missed(&self, life: &Life, n_existing: usize) -> Option<u64> {
        let (policy, cleared) = (self.policies[life.stream], self.cleared[life.mdt]);
        let mut all = mdt::indexes(n_existing);
        all.find(|index| policy.passes(*index) && *index > cleared && !life.had.contains(index))
    }
}
