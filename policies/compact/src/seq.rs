//! Numbers of held records, and the short form in which tables keep them.
#![forbid(unsafe_code)]

use crate::list::List;

/// Number of a held record, counted from 1.
pub(crate) type Seq = u64;

/// The low bits of a record's number. A window has far less records than these can tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShortSeq(u32);

impl ShortSeq {
    #[allow(clippy::cast_possible_truncation)] // that is what it is for
    pub(crate) fn of(seq: Seq) -> Self {
        Self(seq as u32)
    }

    /// The last number up to `newest` that has these low bits.
    pub(crate) fn upto(self, newest: Seq) -> Seq {
        newest.saturating_sub(Self::of(newest).0.wrapping_sub(self.0).into())
    }
}

/// Some records, in order. `newest` is the number of the newest record of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seqs(List<ShortSeq, 3>);

impl Seqs {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one that comes after all.
    pub(crate) fn push(&mut self, seq: Seq) {
        self.0.push(ShortSeq::of(seq));
    }

    pub(crate) fn remove(&mut self, seq: Seq, newest: Seq) {
        self.0.remove_in_order(ShortSeq::of(seq), |short| short.upto(newest));
    }

    pub(crate) fn iter(&self, newest: Seq) -> impl DoubleEndedIterator<Item = Seq> + '_ {
        self.0.iter().map(move |short| short.upto(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_known_again_when_their_low_bits_begin_anew() {
        for base in [0, 0xffff_fff0, 0x7_ffff_fff0_u64] {
            let mut seqs = Seqs::default();
            let all: Vec<Seq> = (1..40).map(|n| base + n).collect();
            all.iter().for_each(|&seq| seqs.push(seq));
            let newest = base + 1_000_000;
            assert_eq!(seqs.iter(newest).collect::<Vec<_>>(), all);
            for &seq in all.iter().rev() {
                seqs.remove(seq, newest);
                assert!(seqs.iter(newest).all(|other| other < seq));
            }
            assert!(seqs.is_empty());
        }
    }
}
