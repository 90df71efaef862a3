//! The actions that are there, in little memory: an MDT may have hundreds of thousands.
//!
//! Of each only what it takes to see that its line has changed: the last event in the journal has
//! the rest.
#![forbid(unsafe_code)]

use std::hash::Hasher as _;

use lcap_ffi::hsm_action::Slot;

/// So much of a line counts; no line of Lustre's is nearly as long.
pub const COMPARED_BYTES: usize = 700;

/// One action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the list.
    pub slot: Slot,
    /// Its request.
    pub cookie: u64,
    /// [`hash`] of its line.
    pub hash: u64,
    at_and_marks: u64,
}
const _: () = assert!(size_of::<Entry>() == 32);

const SEEN: u64 = 1 << 63;
const MISSED: u64 = 1 << 62;
const DEAD: u64 = 1 << 61;
const MARKS: u64 = SEEN | MISSED | DEAD;

impl Entry {
    /// An action whose last event lies at that offset of the journal's newest segment.
    pub fn new(slot: Slot, cookie: u64, hash: u64, at: u64) -> Self {
        Self { slot, cookie, hash, at_and_marks: at & !MARKS }
    }

    /// Offset of its last event.
    pub fn at(&self) -> u64 {
        self.at_and_marks & !MARKS
    }

    /// The reading that is under way has it.
    pub fn is_seen(&self) -> bool {
        self.at_and_marks & SEEN != 0
    }

    /// A reading that may not have been complete did not have it.
    pub fn was_missed(&self) -> bool {
        self.at_and_marks & MISSED != 0
    }

    /// Notes that the reading has it.
    pub fn see(&mut self) {
        self.at_and_marks = self.at_and_marks & !MISSED | SEEN;
    }

    /// Notes that the reading did not have it, and may have left it out by mistake.
    pub fn miss(&mut self) {
        self.at_and_marks |= MISSED;
    }

    fn key(&self) -> (Slot, u64) {
        (self.slot, self.cookie)
    }
}

/// What an event does to the actions that are there. Positions are those before all of them.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Another one.
    New(Entry),
    /// Its line and last event are others now.
    Update {
        /// Which.
        position: usize,
        /// [`hash`] of its line.
        hash: u64,
        /// Offset of the event.
        at: u64,
    },
    /// It is gone.
    Purged {
        /// Which.
        position: usize,
        /// Offset of the event.
        at: u64,
    },
}

impl Change {
    /// Offset of the event.
    pub fn at(&self) -> u64 {
        match self {
            Self::New(entry) => entry.at(),
            Self::Update { at, .. } | Self::Purged { at, .. } => *at,
        }
    }
}

/// The actions, in the order of their slots.
#[derive(Clone, Debug, Default)]
pub struct Live {
    entries: Vec<Entry>,
}

impl FromIterator<Entry> for Live {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        entries.sort_unstable_by_key(Entry::key);
        Self { entries }
    }
}

impl Live {
    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All of them, to be marked or moved; not to be put in another order.
    pub fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// The position of a slot. `hint` is where it probably is: lists are in order as a rule.
    pub fn find(&self, slot: Slot, hint: usize) -> Option<usize> {
        match self.entries.get(hint) {
            Some(entry) if entry.slot == slot => return Some(hint),
            _ => {}
        }
        let at = self.entries.partition_point(|entry| entry.slot < slot);
        self.entries.get(at).filter(|entry| entry.slot == slot).map(|_| at)
    }

    /// The position of an action.
    pub fn find_action(&self, slot: Slot, cookie: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&(slot, cookie), Entry::key).ok()
    }

    /// Forgets what the last reading saw.
    pub fn begin_reading(&mut self) {
        for entry in &mut self.entries {
            entry.at_and_marks &= !SEEN;
        }
    }

    /// Carries changes out, in one go.
    pub fn apply(&mut self, changes: &[Change]) {
        let mut any_dead = false;
        for change in changes {
            match *change {
                Change::New(entry) => self.entries.push(entry),
                Change::Update { position, hash, at } => {
                    if let Some(entry) = self.entries.get_mut(position) {
                        entry.hash = hash;
                        entry.at_and_marks = entry.at_and_marks & MARKS | at & !MARKS;
                    }
                }
                Change::Purged { position, .. } => {
                    if let Some(entry) = self.entries.get_mut(position) {
                        entry.at_and_marks |= DEAD;
                        any_dead = true;
                    }
                }
            }
        }
        if any_dead {
            self.entries.retain(|entry| entry.at_and_marks & DEAD == 0);
        }
        if !self.entries.is_sorted_by(|a, b| a.key() < b.key()) {
            self.entries.sort_unstable_by_key(|entry| (entry.key(), u64::MAX - entry.at()));
            // A list that names an action twice: the last one counts, as when the journal is read.
            self.entries.dedup_by_key(|entry| entry.key());
        }
    }

    /// Moves an action's last event.
    pub fn relocate(&mut self, position: usize, at: u64) {
        if let Some(entry) = self.entries.get_mut(position) {
            entry.at_and_marks = entry.at_and_marks & MARKS | at & !MARKS;
        }
    }
}

/// Of a line. Only compared within one life of the process.
pub fn hash(line: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(&line[..line.len().min(COMPARED_BYTES)]);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(rec: u32) -> Slot {
        Slot { cat: 1, rec }
    }

    fn entry(rec: u32, cookie: u64) -> Entry {
        Entry::new(slot(rec), cookie, 0, u64::from(rec))
    }

    #[test]
    fn changes_are_carried_out_together() {
        let mut live: Live = [5, 1, 3].into_iter().map(|rec| entry(rec, 9)).collect();
        let at = |live: &Live, rec| live.find(slot(rec), 0).unwrap();
        live.apply(&[
            Change::Purged { position: at(&live, 3), at: 10 },
            Change::New(entry(2, 9)),
            Change::Update { position: at(&live, 5), hash: 7, at: 11 },
            // A slot that is used again.
            Change::Purged { position: at(&live, 1), at: 12 },
            Change::New(entry(1, 10)),
        ]);
        let have: Vec<_> = live.entries().iter().map(|e| (e.slot.rec, e.cookie, e.at())).collect();
        assert_eq!(have, [(1, 10, 1), (2, 9, 2), (5, 9, 11)]);
        assert_eq!(live.find_action(slot(1), 9), None);
        assert_eq!(live.find_action(slot(1), 10), Some(0));
        for hint in 0..4 {
            assert_eq!(live.find(slot(5), hint), Some(2));
            assert_eq!(live.find(slot(4), hint), None);
        }
    }

    #[test]
    fn marks_do_not_touch_the_offset() {
        let mut one = Entry::new(slot(1), 1, 1, 1 << 60);
        one.miss();
        assert!(one.was_missed() && !one.is_seen());
        one.see();
        assert!(!one.was_missed() && one.is_seen());
        assert_eq!(one.at(), 1 << 60);
        let mut live: Live = std::iter::once(one).collect();
        live.begin_reading();
        live.relocate(0, 77);
        assert!(!live.entries()[0].is_seen());
        assert_eq!(live.entries()[0].at(), 77);
    }
}
