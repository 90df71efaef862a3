//! How far one registered reader is on one MDT.
#![forbid(unsafe_code)]

use lcap_ffi::RecordIndex;
use lcap_wire::RangeSet;

/// What a stream has sent of one MDT, as far as acknowledgements need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Every record with index ≤ `low` was sent or dropped by a policy.
    pub low: RecordIndex,
    /// Highest index sent so far; may be above `low` if policies reorder.
    pub highest: RecordIndex,
}

/// A reader's watermark, and what it has acknowledged above it.
///
/// Invariant: every record with index ≤ `watermark` is settled: acknowledged, or dropped by a
/// policy. The watermark never passes a record that was not sent (`Sent::low`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    watermark: RecordIndex,
    /// Acknowledged above the watermark. At most [`MAX_RANGES`]: what is not kept is sent again
    /// after a restart, no more.
    acked: RangeSet,
}

/// Bound on the holes that a reader may leave.
const MAX_RANGES: usize = 4096;

impl Position {
    /// A reader that has settled everything up to `watermark`.
    pub fn new(watermark: RecordIndex) -> Self {
        Self { watermark, acked: RangeSet::new() }
    }

    /// Every index up to here is settled.
    pub fn watermark(&self) -> RecordIndex {
        self.watermark
    }

    /// Notes that the reader is done with `first..=last`, as far as that was sent. Ranges may come
    /// in any order and more than once.
    pub fn ack(&mut self, first: RecordIndex, last: RecordIndex, sent: Sent) {
        let last = last.min(sent.highest.max(sent.low));
        if last <= self.watermark || self.acked.n_ranges() >= MAX_RANGES {
            return;
        }
        self.acked.insert(first.max(self.watermark.next()), last);
        self.settle(sent);
    }

    /// Notes that the stream has moved: dropped records settle by themselves.
    pub fn settle(&mut self, sent: Sent) {
        loop {
            let before = self.watermark;
            if let Some(end) = self.acked.end_of_range_at(before.next()) {
                self.watermark = end.min(sent.low).max(before);
            }
            if self.watermark >= sent.highest {
                // Nothing that was sent is unsettled, so all between here and `low` was dropped.
                self.watermark = self.watermark.max(sent.low);
            }
            if self.watermark == before {
                break;
            }
        }
        self.acked.remove_upto(self.watermark);
    }

    /// Indexes from `from` on are issued again with other content: what is known of them is void.
    pub fn rewind(&mut self, from: RecordIndex) {
        self.watermark = self.watermark.min(from.prev());
        self.acked.remove_from(from);
    }

    /// Records up to here are gone for good; there is nothing to wait for.
    pub fn skip_to(&mut self, upto: RecordIndex) {
        self.watermark = self.watermark.max(upto);
        self.acked.remove_upto(self.watermark);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ix(index: u64) -> RecordIndex {
        RecordIndex::new(index)
    }

    #[test]
    fn the_watermark_waits_for_what_is_missing() {
        let sent = Sent { low: ix(20), highest: ix(20) };
        let cases = [
            ("in order", &[(1, 5), (6, 9)][..], 9),
            ("a hole holds it", &[(1, 5), (7, 9)], 5),
            ("a hole is closed later", &[(7, 9), (1, 6)], 9),
            ("repeated and overlapping", &[(1, 5), (1, 5), (3, 8)], 8),
            ("beyond what was sent does not count", &[(1, 99)], 20),
            ("backwards changes nothing", &[(1, 9), (1, 2)], 9),
            ("empty", &[(5, 1)], 0),
        ];
        for (what, acks, want) in cases {
            let mut position = Position::default();
            for &(first, last) in acks {
                position.ack(ix(first), ix(last), sent);
            }
            assert_eq!(position.watermark(), ix(want), "{what}");
        }
    }

    /// A stream as it may really be: every record read is dropped, held, or sent, and a held one
    /// is sent or dropped later. Checked against a plain set of what is unsettled.
    #[derive(Clone, Debug)]
    enum Step {
        Read { drop: bool, hold: bool },
        Release { at: usize, drop: bool },
        AckSent { at: usize, n: usize },
        AckAnything { first: u64, last: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<bool>(), any::<bool>()).prop_map(|(drop, hold)| Step::Read { drop, hold }),
            2 => (0usize..8, any::<bool>()).prop_map(|(at, drop)| Step::Release { at, drop }),
            4 => (0usize..8, 1usize..5).prop_map(|(at, n)| Step::AckSent { at, n }),
            1 => (0u64..60, 0u64..60).prop_map(|(first, last)| Step::AckAnything { first, last }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn never_passes_a_record_that_is_held_or_not_acknowledged(
            steps in proptest::collection::vec(step(), 1..60)
        ) {
            let mut position = Position::default();
            let (mut next, mut highest) = (1u64, 0u64);
            let (mut held, mut unacked, mut sent_ever) =
                (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            for step in steps {
                let low = |next: u64, held: &BTreeSet<u64>| {
                    held.first().map_or(next - 1, |first| first - 1)
                };
                match step {
                    Step::Read { drop, hold } => {
                        if hold {
                            held.insert(next);
                        } else if !drop {
                            unacked.insert(next);
                            sent_ever.insert(next);
                            highest = highest.max(next);
                        }
                        next += 1;
                    }
                    Step::Release { at, drop } => {
                        if let Some(&index) = held.iter().nth(at) {
                            held.remove(&index);
                            if !drop {
                                unacked.insert(index);
                                sent_ever.insert(index);
                                highest = highest.max(index);
                            }
                        }
                    }
                    Step::AckSent { at, n } => {
                        // As the client does: a range over records that it has, closed over
                        // dropped ones only where `low` has passed them.
                        let some: Vec<u64> = unacked.iter().copied().skip(at).take(n).collect();
                        let sent = Sent { low: ix(low(next, &held)), highest: ix(highest) };
                        for index in some {
                            unacked.remove(&index);
                            let mut first = index;
                            while first > 1
                                && !sent_ever.contains(&(first - 1))
                                && first - 1 <= sent.low.get()
                            {
                                first -= 1;
                            }
                            position.ack(ix(first), ix(index), sent);
                        }
                    }
                    Step::AckAnything { first, last } => {
                        // A confused client may settle only what it was sent; the model agrees
                        // that those are settled, nothing else.
                        let sent = Sent { low: ix(low(next, &held)), highest: ix(highest) };
                        if held.range(first..=last.max(first)).next().is_none() {
                            position.ack(ix(first), ix(last), sent);
                            unacked.retain(|i| !(first..=last).contains(i));
                        }
                    }
                }
                let sent = Sent { low: ix(low(next, &held)), highest: ix(highest) };
                position.settle(sent);
                let first_open = held.iter().chain(unacked.iter()).min().copied().unwrap_or(next);
                prop_assert!(position.watermark().get() < first_open,
                    "watermark {} with {first_open} open", position.watermark());
                if unacked.is_empty() {
                    // The client joins its ranges over dropped records once `low` has passed them.
                    position.ack(ix(0), sent.low, sent);
                    prop_assert_eq!(position.watermark(), sent.low, "all settled");
                }
            }
        }
    }
}
