//! Which actions a Redis stream shows as live, and by which entries: what is needed to trim and
//! repair it without reading it again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use lcap_ffi::hsm_action::Slot;

use super::schema::{Digest, Summary};

/// Name of an entry of a Redis stream: milliseconds, and a number within them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds of Redis's wall clock.
    pub ms: u64,
    /// Tells entries of one millisecond apart.
    pub seq: u64,
}

impl EntryId {
    /// Sent, but Redis has not said yet what it is called.
    const UNKNOWN: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The next possible one.
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// Not the name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an entry of a Redis stream")]
pub struct BadEntryId;

impl FromStr for EntryId {
    type Err = BadEntryId;

    fn from_str(text: &str) -> Result<Self, BadEntryId> {
        let (ms, seq) = text.split_once('-').ok_or(BadEntryId)?;
        let number = |text: &str| text.parse().map_err(|_| BadEntryId);
        Ok(Self { ms: number(ms)?, seq: number(seq)? })
    }
}

/// A live action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// What its last entry says.
    pub summary: Summary,
    /// Its last entry.
    pub id: EntryId,
    /// Which of our own sendings that entry is, while its name is not known.
    serial: u64,
}

/// Slots that share a key.
#[derive(Clone, Debug)]
enum Sharing {
    One(Slot),
    /// At least two.
    Many(Vec<Slot>),
}

/// The live actions of one stream.
#[derive(Debug, Default)]
pub struct Mirror {
    live: HashMap<Slot, Live>,
    by_id: BTreeMap<EntryId, Slot>,
    by_key: HashMap<Digest, Sharing>,
    /// Changes that Redis has not confirmed, oldest first, and what was there before each.
    unconfirmed: Vec<(Slot, Option<Live>)>,
    next_serial: u64,
}

/// A change that was sent: to be confirmed, or taken back by [`Mirror::abandon`].
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    slot: Slot,
    serial: u64,
}

impl Mirror {
    /// How many actions are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// No action is live.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The action in a slot.
    pub fn get(&self, slot: Slot) -> Option<&Live> {
        self.live.get(&slot)
    }

    /// Every live action.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Live)> {
        self.live.iter().map(|(&slot, live)| (slot, live))
    }

    /// The live actions whose last entries are the oldest, oldest first.
    pub fn oldest(&self) -> impl Iterator<Item = (EntryId, Slot)> + '_ {
        self.by_id.iter().map(|(&id, &slot)| (id, slot))
    }

    /// A slot in which an action with this key is live.
    pub fn slot_of_key(&self, key: Digest) -> Option<Slot> {
        match self.by_key.get(&key)? {
            Sharing::One(slot) => Some(*slot),
            Sharing::Many(slots) => slots.last().copied(),
        }
    }

    /// Notes an entry that is in Redis: the action's new state, or `None` if it is purged.
    pub fn apply(&mut self, slot: Slot, id: EntryId, summary: Option<Summary>) {
        let live = summary.map(|summary| Live { summary, id, serial: 0 });
        self.replace(slot, live);
    }

    /// Notes an entry that is being sent.
    pub fn send(&mut self, slot: Slot, summary: Option<Summary>) -> Sending {
        self.next_serial += 1;
        let serial = self.next_serial;
        let live = summary.map(|summary| Live { summary, id: EntryId::UNKNOWN, serial });
        let before = self.replace(slot, live);
        self.unconfirmed.push((slot, before));
        Sending { slot, serial }
    }

    /// Redis has these, in the order in which they were sent, under these names.
    pub fn confirm(&mut self, sent: impl ExactSizeIterator<Item = (Sending, EntryId)>) {
        self.unconfirmed.drain(..sent.len().min(self.unconfirmed.len()));
        for (sending, id) in sent {
            // A change that was sent after it, if there is one, will have a name of its own. What
            // that one would be taken back to is this entry.
            match self.live.get_mut(&sending.slot) {
                Some(live) if live.serial == sending.serial => {
                    (live.id, live.serial) = (id, 0);
                    self.by_id.insert(id, sending.slot);
                }
                _ => {
                    for (slot, before) in &mut self.unconfirmed {
                        if let Some(live) = before
                            && *slot == sending.slot
                            && live.serial == sending.serial
                        {
                            (live.id, live.serial) = (id, 0);
                        }
                    }
                }
            }
        }
    }

    /// Takes back what was sent and not confirmed.
    pub fn abandon(&mut self) {
        for (slot, before) in std::mem::take(&mut self.unconfirmed).into_iter().rev() {
            self.replace(slot, before);
        }
    }

    fn replace(&mut self, slot: Slot, live: Option<Live>) -> Option<Live> {
        let before = match live {
            Some(live) => self.live.insert(slot, live),
            None => self.live.remove(&slot),
        };
        if let Some(before) = &before {
            self.by_id.remove(&before.id);
            self.remove_key(before.summary.key, slot);
        }
        if let Some(live) = live {
            if live.id != EntryId::UNKNOWN {
                self.by_id.insert(live.id, slot);
            }
            self.add_key(live.summary.key, slot);
        }
        before
    }

    fn add_key(&mut self, key: Digest, slot: Slot) {
        let sharing = match self.by_key.remove(&key) {
            None => Sharing::One(slot),
            Some(Sharing::One(other)) => Sharing::Many(vec![other, slot]),
            Some(Sharing::Many(mut slots)) => {
                slots.push(slot);
                Sharing::Many(slots)
            }
        };
        self.by_key.insert(key, sharing);
    }

    fn remove_key(&mut self, key: Digest, slot: Slot) {
        let Some(Sharing::Many(mut slots)) = self.by_key.remove(&key) else { return };
        slots.retain(|other| *other != slot);
        let sharing = match slots[..] {
            [only] => Sharing::One(only),
            _ => Sharing::Many(slots),
        };
        self.by_key.insert(key, sharing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(rec: u32) -> Slot {
        Slot { cat: 1, rec }
    }

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn state(key: u64) -> Option<Summary> {
        Some(Summary { key, state: 0 })
    }

    fn oldest(mirror: &Mirror) -> Vec<(u64, u32)> {
        mirror.oldest().map(|(id, slot)| (id.ms, slot.rec)).collect()
    }

    #[test]
    fn names_of_entries_are_read_and_written() {
        let entry: EntryId = "1795307338419-7".parse().unwrap();
        assert_eq!(entry, EntryId { ms: 1_795_307_338_419, seq: 7 });
        assert_eq!(entry.next().to_string(), "1795307338419-8");
        assert_eq!(EntryId { ms: 1, seq: u64::MAX }.next().to_string(), "2-0");
        for bad in ["", "1", "1-", "-1", "1-x", "$"] {
            assert!(bad.parse::<EntryId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_oldest_are_known_by_their_last_entries() {
        let mut mirror = Mirror::default();
        mirror.apply(slot(1), id(10), state(1));
        mirror.apply(slot(2), id(20), state(2));
        mirror.apply(slot(1), id(30), state(1));
        assert_eq!(oldest(&mirror), [(20, 2), (30, 1)]);
        mirror.apply(slot(2), id(40), None);
        assert_eq!(oldest(&mirror), [(30, 1)]);
        assert_eq!(mirror.len(), 1);
    }

    #[test]
    fn what_is_sent_counts_and_is_named_or_taken_back() {
        let mut mirror = Mirror::default();
        mirror.apply(slot(1), id(10), state(1));
        let first = mirror.send(slot(1), state(1));
        let second = mirror.send(slot(2), state(2));
        assert_eq!(mirror.len(), 2);
        assert_eq!(oldest(&mirror), [], "what has no name cannot be trimmed by");
        // The next batch is made while the first one is on its way.
        let third = mirror.send(slot(2), None);
        let fourth = mirror.send(slot(1), state(1));
        mirror.confirm([(first, id(50)), (second, id(51))].into_iter());
        assert_eq!(mirror.len(), 1);
        // That one is lost: what the first one left is there again.
        mirror.abandon();
        assert_eq!(oldest(&mirror), [(50, 1), (51, 2)]);
        let _ = (third, fourth);
    }

    #[test]
    fn actions_with_one_key_are_told_apart() {
        let mut mirror = Mirror::default();
        mirror.apply(slot(1), id(10), state(7));
        mirror.apply(slot(2), id(20), state(7));
        mirror.apply(slot(3), id(30), state(8));
        mirror.apply(slot(2), id(40), None);
        assert_eq!(mirror.slot_of_key(7), Some(slot(1)));
        mirror.apply(slot(1), id(50), None);
        assert_eq!(mirror.slot_of_key(7), None);
        // A slot that is taken by another action.
        mirror.apply(slot(3), id(60), state(9));
        assert_eq!((mirror.slot_of_key(8), mirror.slot_of_key(9)), (None, Some(slot(3))));
    }
}
