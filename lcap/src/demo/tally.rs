//! What a consumer counted of one MDT.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Numbers of one client on one MDT, as it reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    /// Name of the reader or member.
    pub(super) client: String,
    pub(super) mdt: String,
    /// Records received.
    pub(super) records: u64,
    /// Of them, those that this client, or another member of its queue, had already.
    pub(super) repeated: u64,
    /// Of them, those with an index that was not above the one before.
    pub(super) out_of_order: u64,
}

impl Count {
    pub(super) fn new(client: &str, mdt: &str) -> Self {
        Self { client: client.to_owned(), mdt: mdt.to_owned(), ..Self::default() }
    }

    pub(super) fn distinct(&self) -> u64 {
        self.records - self.repeated
    }
}

/// Which indexes were seen: a bit each, since those of the demonstration begin at 1.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<u64>);

/// Beyond this an index is not one of the demonstration's, and not worth the memory.
const MAX_INDEX: u64 = 1 << 36;

impl Seen {
    /// False if it was seen before, or cannot be.
    pub(super) fn insert(&mut self, index: u64) -> bool {
        let (Ok(word), bit) = (usize::try_from(index / 64), 1 << (index % 64)) else {
            return false;
        };
        if index > MAX_INDEX {
            return false;
        }
        if word >= self.0.len() {
            self.0.resize((word + 1).next_power_of_two(), 0);
        }
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }
}

/// Counts one client's records of one MDT.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) count: Count,
    last: u64,
}

impl Tally {
    pub(super) fn new(client: &str, mdt: &str) -> Self {
        Self { count: Count::new(client, mdt), last: 0 }
    }

    /// Notes a record. `seen` is shared by those who share the records.
    pub(super) fn note(&mut self, index: u64, seen: &mut Seen) {
        self.count.records += 1;
        self.count.repeated += u64::from(!seen.insert(index));
        self.count.out_of_order += u64::from(index <= self.last);
        self.last = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_and_disorder_are_counted() {
        let cases = [
            ("in order", &[1, 2, 64, 65, 1000][..], (5, 0, 0)),
            ("twice", &[1, 2, 2, 3], (4, 1, 1)),
            ("late", &[1, 3, 2, 4], (4, 0, 1)),
            ("absurd", &[1, u64::MAX], (2, 1, 0)),
        ];
        for (what, indexes, want) in cases {
            let (mut tally, mut seen) = (Tally::new("c", "m"), Seen::default());
            indexes.iter().for_each(|&index| tally.note(index, &mut seen));
            let count = tally.count;
            assert_eq!((count.records, count.repeated, count.out_of_order), want, "{what}");
        }
    }

    #[test]
    fn what_another_member_had_is_a_repetition() {
        let mut seen = Seen::default();
        let (mut one, mut two) = (Tally::new("1", "m"), Tally::new("2", "m"));
        one.note(1, &mut seen);
        two.note(2, &mut seen);
        two.note(1, &mut seen);
        assert_eq!((one.count.distinct(), two.count.distinct()), (1, 1));
    }
}
