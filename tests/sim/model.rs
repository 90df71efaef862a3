//! What must hold, said as plainly as possible: sets of records, nothing clever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::mdt::{self, Identity, SimMdt};

/// Whom the MDT's log is kept for: a registered reader (with its name) or a queue.
pub(super) type HolderKey = (usize, Option<String>);

/// What a stream's policies do, as far as the model needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Everything in order.
    None,
    /// Drops, and gives the rest in another order.
    Shuffle,
    /// Makes one record of several, and gives them in another order.
    Fold,
    /// One of these, another one whenever lcapd starts.
    Changing,
}

impl Policy {
    /// Whether a record must come out.
    fn passes(self, index: u64) -> bool {
        match self {
            Self::None | Self::Fold => true,
            Self::Shuffle | Self::Changing => !index.is_multiple_of(5),
        }
    }

    /// What comes out may be made of several records, so that some come again.
    fn merges(self) -> bool {
        matches!(self, Self::Fold | Self::Changing)
    }
}

/// On one MDT.
#[derive(Debug, Default)]
struct Holder {
    /// Records up to here are not its business.
    start: u64,
    /// What `start` was before, with the last history for which it was that: a record of that
    /// history may still be on its way when the MDT begins another.
    earlier_starts: Vec<(u16, u64)>,
    /// In every history, since it was registered from an index.
    fixed: bool,
    acked: BTreeSet<Identity>,
    /// Cleared up to here, and found right.
    checked: u64,
}

impl Holder {
    /// Up to where records were not its business when a record of that history was the newest.
    fn start_in(&self, version: u16) -> u64 {
        let earlier = self.earlier_starts.iter().find(|(last, _)| version <= *last);
        earlier.map_or(self.start, |&(_, start)| start)
    }
}

/// A client process, from its start to its end.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) mdt: usize,
    pub(super) holder: Option<HolderKey>,
    pub(super) stream: usize,
    last: Option<u64>,
    had: BTreeSet<Identity>,
    /// By the index under which they came.
    handed_out: BTreeMap<u64, BTreeSet<Identity>>,
    /// Indexes that it was told are gone.
    told_gone: Vec<(u64, u64)>,
    /// What it was told besides records, for a report.
    pub(super) told: Vec<String>,
}

impl Life {
    pub(super) fn new(mdt: usize, stream: usize, holder: Option<HolderKey>) -> Self {
        let (had, handed_out, told_gone) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        let told = Vec::new();
        Self { mdt, holder, stream, last: None, had, handed_out, told_gone, told }
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    /// It was told that these are gone.
    pub(super) fn gone(&mut self, first: u64, last: u64) {
        self.told_gone.push((first, last));
        self.told.push(format!("{first} to {last} are gone"));
    }

    /// It was told that indexes from `first` on are issued again.
    pub(super) fn rewound(&mut self, first: u64) {
        self.told.push(format!("again from {first}"));
        self.had.retain(|(index, _)| *index < first);
        self.last = self.had.iter().map(|(index, _)| *index).max().filter(|_| self.last.is_some());
    }
}

/// The model.
#[derive(Debug)]
pub(super) struct Model {
    policies: Vec<Policy>,
    queues: Vec<bool>,
    mdts: Vec<Arc<SimMdt>>,
    holders: BTreeMap<(HolderKey, usize), Holder>,
    cleared: Vec<u64>,
    /// It is noted on disk that the MDT is going to be told to forget up to there: who is not
    /// registered may be told that those are gone.
    given_up: Vec<u64>,
    /// The MDT was told to forget what somebody needed.
    pub(super) cleared_early: bool,
    pub(super) n_delivered: u64,
    pub(super) n_again: u64,
}

impl Model {
    pub(super) fn new(policies: Vec<Policy>, queues: Vec<bool>, mdts: Vec<Arc<SimMdt>>) -> Self {
        let mut holders = BTreeMap::new();
        for (stream, _) in queues.iter().enumerate().filter(|(_, is_queue)| **is_queue) {
            for mdt in 0..mdts.len() {
                holders.insert(((stream, None), mdt), Holder::default());
            }
        }
        let (cleared, given_up) = (vec![0; mdts.len()], vec![0; mdts.len()]);
        let (cleared_early, n_delivered, n_again) = (false, 0, 0);
        Self {
            policies,
            queues,
            mdts,
            holders,
            cleared,
            given_up,
            cleared_early,
            n_delivered,
            n_again,
        }
    }

    /// A reader was registered, says the daemon, with these watermarks. What the MDT had forgotten
    /// before is not promised to it, even if a restarted daemon does not know that it had.
    pub(super) fn registered(&mut self, key: &HolderKey, starts: &[u64], fixed: bool) {
        for (mdt, &start) in starts.iter().enumerate() {
            let start = start.max(self.cleared[mdt]);
            let holder = Holder { start, fixed, checked: start, ..Holder::default() };
            self.holders.entry((key.clone(), mdt)).or_insert(holder);
        }
    }

    /// A reader is being removed: nothing is promised to it any more.
    pub(super) fn deregistered(&mut self, key: &HolderKey) {
        self.holders.retain(|(other, _), _| other != key);
    }

    /// The MDT issues indexes from `first` on again, as a history with that number: those are other
    /// records.
    pub(super) fn rewound(&mut self, mdt: usize, first: u64, version: u16) {
        self.cleared[mdt] = self.cleared[mdt].min(first - 1);
        self.given_up[mdt] = self.given_up[mdt].min(first - 1);
        for ((_, at), holder) in &mut self.holders {
            if *at == mdt {
                if !holder.fixed && holder.start >= first {
                    holder.earlier_starts.push((version - 1, holder.start));
                    holder.start = first - 1;
                }
                holder.checked = holder.checked.min(first - 1);
            }
        }
    }

    /// A record is handed to an application: under that index, for those records.
    pub(super) fn delivered(
        &mut self,
        life: &mut Life,
        index: u64,
        stands_for: &[Identity],
    ) -> Result<(), String> {
        self.n_delivered += 1;
        let (mdt, policy) = (life.mdt, self.policies[life.stream]);
        if !policy.passes(index) && policy != Policy::Changing {
            return Err(format!("{index} was dropped by the policy and came all the same"));
        }
        let version = stands_for[0].1;
        let again = !life.had.insert((index, version));
        life.had.extend(stands_for);
        life.handed_out.entry(index).or_default().extend(stands_for);
        if self.queues[life.stream] {
            self.n_again += u64::from(again);
            life.last = Some(index);
            return Ok(()); // at least once, in any order
        }
        if again && policy.merges() {
            self.n_again += 1;
        } else if again {
            return Err(format!("{index} came twice"));
        }
        if policy == Policy::None {
            let (cleared, given_up) = (self.cleared[mdt], self.given_up[mdt]);
            let holder = life.holder.as_ref().and_then(|k| self.holders.get(&(k.clone(), mdt)));
            // What may be missing before it: what nobody holds and is gone (and if something came
            // before that: was told), what was acknowledged.
            let mut missing = mdt::next_after(life.last.unwrap_or(0));
            while let Some(skipped) = missing.filter(|&i| i < index) {
                let told = || life.told_gone.iter().any(|&(a, b)| a <= skipped && skipped <= b);
                let excused = match (holder, life.last) {
                    (Some(holder), None) => {
                        let versions = (skipped, 0)..=(skipped, u16::MAX);
                        skipped <= holder.start_in(version)
                            || holder.acked.range(versions).next().is_some()
                    }
                    (Some(_), Some(_)) => false,
                    (None, None) => skipped <= cleared || (skipped <= given_up && told()),
                    (None, Some(_)) => skipped <= given_up && told(),
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
    pub(super) fn acked(&mut self, life: &mut Life, upto: u64) {
        let Some(key) = &life.holder else { return };
        if let Some(holder) = self.holders.get_mut(&(key.clone(), life.mdt)) {
            for records in life.handed_out.range(..=upto).map(|(_, records)| records) {
                holder.acked.extend(records);
            }
        }
        life.handed_out = life.handed_out.split_off(&upto.saturating_add(1));
    }

    /// It was noted that the MDT is going to be told to forget.
    pub(super) fn given_up(&mut self, mdt: usize, upto: u64) {
        self.given_up[mdt] = self.given_up[mdt].max(upto);
    }

    /// The MDT was told to forget.
    pub(super) fn cleared(&mut self, mdt: usize, upto: u64) -> Result<(), String> {
        if upto == 0 || upto < self.cleared[mdt] {
            return Err(format!("cleared {upto} after {}", self.cleared[mdt]));
        }
        self.cleared[mdt] = upto;
        let existing = self.mdts[mdt].existing();
        for ((key, at), holder) in &mut self.holders {
            if *at != mdt || holder.checked >= upto {
                continue;
            }
            let after = holder.checked.max(holder.start);
            let fresh = existing.iter().filter(|(index, _)| *index > after && *index <= upto);
            for record in fresh {
                let policy = self.policies[key.0];
                if policy.passes(record.0) && !holder.acked.contains(record) {
                    self.cleared_early = true;
                    return Err(format!(
                        "MDT {mdt} cleared up to {upto}; {key:?} has not acknowledged {record:?}"
                    ));
                }
            }
            holder.checked = upto;
        }
        Ok(())
    }

    /// What is still to come: the first record that somebody has not acknowledged, or that is not
    /// cleared though everybody has.
    pub(super) fn outstanding(&self, mdt: usize) -> Option<String> {
        let existing = self.mdts[mdt].existing();
        let mut held = false;
        for ((key, at), holder) in &self.holders {
            if *at != mdt {
                continue;
            }
            held = true;
            let policy = self.policies[key.0];
            let open = existing.iter().find(|record| {
                let asked = record.0 > holder.start && policy.passes(record.0);
                asked && record.0 > holder.checked && !holder.acked.contains(record)
            });
            if let Some(record) = open {
                return Some(format!("{key:?} has not had {record:?} of MDT {mdt}"));
            }
        }
        let (head, cleared) = (self.mdts[mdt].head(), self.cleared[mdt]);
        (held && cleared < head).then(|| format!("MDT {mdt} is cleared up to {cleared} of {head}"))
    }

    /// What an unregistered client that has been there to the end has not had.
    pub(super) fn missed(&self, life: &Life) -> Option<Identity> {
        let (policy, cleared) = (self.policies[life.stream], self.cleared[life.mdt]);
        let missed = |record: &Identity| {
            policy.passes(record.0) && record.0 > cleared && !life.had.contains(record)
        };
        self.mdts[life.mdt].existing().into_iter().find(missed)
    }
}
