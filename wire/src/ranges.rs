//! Sets of record indexes, kept as disjoint ranges.

use std::collections::BTreeMap;

use lcap_ffi::RecordIndex;

/// A set of indexes as disjoint, non-adjacent inclusive ranges: memory grows with the number of
/// holes, not of members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// First index of a range to its last.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no index in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it takes.
    pub fn n_ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Adds `first..=last`; does nothing if that is empty.
    pub fn insert(&mut self, first: RecordIndex, last: RecordIndex) {
        let (mut first, mut last) = (first.get(), last.get());
        if first > last {
            return;
        }
        // Everything that touches or overlaps is swallowed, from the back.
        while let Some((&start, &end)) = self.ranges.range(..=last.saturating_add(1)).next_back() {
            if end < first.saturating_sub(1) {
                break;
            }
            self.ranges.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        self.ranges.insert(first, last);
    }

    /// Takes out every index up to and including `upto`.
    pub fn remove_upto(&mut self, upto: RecordIndex) {
        let upto = upto.get();
        while let Some((&start, &end)) = self.ranges.first_key_value() {
            if start > upto {
                break;
            }
            self.ranges.remove(&start);
            if end > upto {
                self.ranges.insert(upto + 1, end);
            }
        }
    }

    /// Takes out every index from `from` on.
    pub fn remove_from(&mut self, from: RecordIndex) {
        let from = from.get();
        while let Some((&start, &end)) = self.ranges.last_key_value() {
            if end < from {
                break;
            }
            self.ranges.remove(&start);
            if start < from {
                self.ranges.insert(start, from - 1);
            }
        }
    }

    /// Takes out `first..=last`.
    pub fn remove(&mut self, first: RecordIndex, last: RecordIndex) {
        let (first, last) = (first.get(), last.get());
        while let Some((&start, &end)) = self.ranges.range(..=last).next_back() {
            if end < first || first > last {
                break;
            }
            self.ranges.remove(&start);
            if end > last {
                self.ranges.insert(last + 1, end);
            }
            if start < first {
                self.ranges.insert(start, first - 1);
            }
        }
    }

    /// Whether `index` is in it.
    pub fn contains(&self, index: RecordIndex) -> bool {
        let below = self.ranges.range(..=index.get()).next_back();
        below.is_some_and(|(_, &end)| end >= index.get())
    }

    /// Last index of the range that `index` lies in.
    pub fn end_of_range_at(&self, index: RecordIndex) -> Option<RecordIndex> {
        let (_, &end) = self.ranges.range(..=index.get()).next_back()?;
        (end >= index.get()).then_some(RecordIndex::new(end))
    }

    /// Its lowest index.
    pub fn first(&self) -> Option<RecordIndex> {
        self.ranges.first_key_value().map(|(&start, _)| RecordIndex::new(start))
    }

    /// Its highest index.
    pub fn last(&self) -> Option<RecordIndex> {
        self.ranges.last_key_value().map(|(_, &end)| RecordIndex::new(end))
    }

    /// The ranges, lowest first, both ends inclusive.
    pub fn iter(&self) -> impl Iterator<Item = (RecordIndex, RecordIndex)> {
        self.ranges.iter().map(|(&start, &end)| (RecordIndex::new(start), RecordIndex::new(end)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u64),
        RemoveUpto(u64),
        RemoveFrom(u64),
        Remove(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u64..60, 0u64..12).prop_map(|(a, n)| Op::Insert(a, a + n)),
            1 => (0u64..60).prop_map(Op::RemoveUpto),
            1 => (0u64..60).prop_map(Op::RemoveFrom),
            2 => (0u64..60, 0u64..20).prop_map(|(a, n)| Op::Remove(a, a + n)),
            1 => (1u64..60).prop_map(|a| Op::Remove(a, a - 1)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_plain_set(ops in proptest::collection::vec(op(), 0..60)) {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for op in ops {
                match op {
                    Op::Insert(a, b) => {
                        set.insert(RecordIndex::new(a), RecordIndex::new(b));
                        model.extend(a..=b);
                    }
                    Op::RemoveUpto(a) => {
                        set.remove_upto(RecordIndex::new(a));
                        model.retain(|&i| i > a);
                    }
                    Op::Remove(a, b) => {
                        set.remove(RecordIndex::new(a), RecordIndex::new(b));
                        model.retain(|&i| i < a || i > b);
                    }
                    Op::RemoveFrom(a) => {
                        set.remove_from(RecordIndex::new(a));
                        model.retain(|&i| i < a);
                    }
                }
                for i in 0..80 {
                    prop_assert_eq!(set.contains(RecordIndex::new(i)), model.contains(&i), "{}", i);
                }
                prop_assert_eq!(set.first().map(RecordIndex::get), model.first().copied());
                prop_assert_eq!(set.last().map(RecordIndex::get), model.last().copied());
                let mut prev_end = None;
                for (start, end) in set.iter() {
                    prop_assert!(start <= end);
                    prop_assert!(prev_end.is_none_or(|prev: u64| start.get() > prev + 1));
                    prev_end = Some(end.get());
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_range_do_not_overflow() {
        let (zero, max) = (RecordIndex::ZERO, RecordIndex::new(u64::MAX));
        let mut set = RangeSet::new();
        set.insert(max, max);
        set.insert(zero, zero);
        set.insert(zero, max);
        assert_eq!(set.n_ranges(), 1);
        set.remove_upto(max);
        assert!(set.is_empty());
    }
}
