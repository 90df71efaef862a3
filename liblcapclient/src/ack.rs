//! What the application has been given and has cleared, and what may be acknowledged for that.
//!
//! Two rules, one per kind of stream. For a reader there is a watermark, the lower of two numbers:
//! how far delivery has come (`low`), and the last index before the lowest record that was handed
//! out and not cleared. For a member of a queue every index counts by itself.
#![forbid(unsafe_code)]

use lcap_ffi::RecordIndex;
use lcap_wire::RangeSet;

/// Acknowledgement of a registered reader.
///
/// Two numbers stand for all records that were handed out and not cleared, because a clear settles
/// every one of them up to an index: only their lowest matters, and after a clear it cannot lie
/// below the next index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReaderAcks {
    /// Everything up to here was handed out or dropped.
    low: RecordIndex,
    /// Bounds of what was handed out and not cleared; none if the first is above the second.
    open: Option<(RecordIndex, RecordIndex)>,
}

impl ReaderAcks {
    /// A record goes to the application.
    #[inline]
    pub fn hand_out(&mut self, index: RecordIndex) {
        self.open = Some(match self.open {
            Some((first, last)) => (first.min(index), last.max(index)),
            None => (index, index),
        });
    }

    /// Every record of the MDT up to `low` was handed out or dropped.
    pub fn consumed(&mut self, low: RecordIndex) {
        self.low = self.low.max(low);
    }

    /// The application is done with what it was given up to `upto`.
    #[inline]
    pub fn clear(&mut self, upto: RecordIndex) {
        if let Some((first, last)) = self.open {
            self.open = (upto < last).then_some((first.max(upto.next()), last));
        }
    }

    /// Everything that was handed out is cleared.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    /// The MDT issued indexes from `first` on again: what was known of them does not count.
    pub fn rewind(&mut self, first: RecordIndex) {
        self.low = self.low.min(first.prev());
        self.open = self.open.and_then(|(a, b)| {
            let b = b.min(first.prev());
            (a <= b).then_some((a, b))
        });
    }

    /// Every record up to here is settled. `so_far` is the low of a batch that is partly consumed.
    #[inline]
    pub fn watermark(&self, so_far: Option<RecordIndex>) -> RecordIndex {
        let low = so_far.map_or(self.low, |low| low.max(self.low));
        self.open.map_or(low, |(first, _)| low.min(first.prev()))
    }
}

/// Acknowledgement of a member of a queue.
#[derive(Clone, Debug, Default)]
pub struct MemberAcks {
    /// Handed out and not cleared, but for `run`.
    open: RangeSet,
    /// The latest of those: consecutive indexes, not yet in `open` because a set costs more.
    run: Option<(RecordIndex, RecordIndex)>,
}

impl MemberAcks {
    /// A record goes to the application.
    #[inline]
    pub fn hand_out(&mut self, index: RecordIndex) {
        match &mut self.run {
            Some((_, last)) if last.next() == index => *last = index,
            _ => {
                self.close_run();
                self.run = Some((index, index));
            }
        }
    }

    /// The application is done with what it was given up to `upto`: moves those to `settled`.
    pub fn clear(&mut self, upto: RecordIndex, settled: &mut RangeSet) {
        self.close_run();
        for (first, last) in self.open.iter().take_while(|&(first, _)| first <= upto) {
            settled.insert(first, last.min(upto));
        }
        self.open.remove_upto(upto);
    }

    /// What was handed out is void: it comes again.
    pub fn forget(&mut self) {
        (self.open, self.run) = (RangeSet::new(), None);
    }

    /// The MDT issued indexes from `first` on again: what was known of them does not count.
    pub fn rewind(&mut self, first: RecordIndex) {
        self.close_run();
        self.open.remove_from(first);
    }

    fn close_run(&mut self) {
        if let Some((first, last)) = self.run.take() {
            self.open.insert(first, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(n: u64) -> RecordIndex {
        RecordIndex::new(n)
    }

    #[derive(Clone, Copy)]
    enum Step {
        /// Handed out.
        Out(u64),
        /// A batch consumed, with its low.
        Low(u64),
        Clear(u64),
        Rewind(u64),
    }
    use Step::{Clear, Low, Out, Rewind};

    #[test]
    fn the_watermark_never_passes_what_is_unseen_or_uncleared() {
        let cases: [(&str, &[Step], u64); 9] = [
            ("nothing cleared", &[Low(9), Out(10), Out(11), Low(11)], 9),
            ("cleared in step", &[Low(9), Out(10), Out(11), Low(11), Clear(10)], 10),
            (
                "all cleared: what policies dropped behind it counts",
                &[Out(10), Low(15), Clear(10)],
                15,
            ),
            ("dropped records, nothing handed out", &[Low(15)], 15),
            ("4 not delivered yet, so clearing 5 cannot pass 3", &[Out(5), Low(3), Clear(5)], 3),
            ("4 delivered late and not cleared", &[Out(5), Low(3), Clear(5), Out(4), Low(5)], 3),
            (
                "a clear settles only what was handed out before it",
                &[Out(5), Low(3), Clear(9), Out(4), Low(5), Out(6), Low(6), Clear(4)],
                4,
            ),
            ("clearing beyond the newest", &[Out(5), Low(5), Clear(u64::MAX)], 5),
            (
                "indexes issued again are open again",
                &[Out(5), Low(5), Clear(5), Rewind(3), Out(3), Low(3)],
                2,
            ),
        ];
        for (what, steps, want) in cases {
            let mut acks = ReaderAcks::default();
            for &step in steps {
                match step {
                    Out(n) => acks.hand_out(index(n)),
                    Low(n) => acks.consumed(index(n)),
                    Clear(n) => acks.clear(index(n)),
                    Rewind(n) => acks.rewind(index(n)),
                }
            }
            assert_eq!(acks.watermark(None), index(want), "{what}");
        }
    }

    #[test]
    fn a_partly_consumed_batch_counts_as_far_as_it_was_handed_out() {
        let mut acks = ReaderAcks::default();
        acks.consumed(index(9));
        acks.hand_out(index(10));
        acks.clear(index(10));
        assert_eq!(acks.watermark(Some(index(10))), index(10));
        assert_eq!(acks.watermark(None), index(9));
    }

    #[test]
    fn a_member_settles_exactly_what_it_was_given() {
        let mut acks = MemberAcks::default();
        for n in [1, 2, 3, 7, 8, 5] {
            acks.hand_out(index(n));
        }
        let settled_by = |acks: &mut MemberAcks, upto| {
            let mut settled = RangeSet::new();
            acks.clear(index(upto), &mut settled);
            settled.iter().map(|(a, b)| (a.get(), b.get())).collect::<Vec<_>>()
        };
        assert_eq!(settled_by(&mut acks, 2), [(1, 2)]);
        assert_eq!(settled_by(&mut acks, 7), [(3, 3), (5, 5), (7, 7)], "4 and 6 are others'");
        acks.hand_out(index(9));
        acks.rewind(index(9));
        assert_eq!(settled_by(&mut acks, 100), [(8, 8)]);
    }
}
