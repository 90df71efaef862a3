//! Which record last touched a name.
#![forbid(unsafe_code)]

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::seq::{Seq, ShortSeq};

/// Names that may be left over before they are tidied away.
const MIN_TIDY: usize = 1024;

/// The names of held records, and of some that have left.
#[derive(Debug, Default)]
pub(crate) struct Names {
    touched: HashTable<Touched>,
    /// To be tidied when there are more.
    tidy_at: usize,
}

/// Eight bytes, since a window may have millions.
#[derive(Clone, Copy, Debug)]
struct Touched {
    /// Stands for the name. Where two names share one, records are only kept apart that could have been
    /// folded.
    key: u32,
    seq: ShortSeq,
}

impl Touched {
    fn hash(self) -> u64 {
        u64::from(self.key).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Names {
    /// Record `seq`, the newest one, touches the name with that key. Says which record did last before; 0 if
    /// none that is known.
    pub(crate) fn touch(&mut self, key: u64, seq: Seq) -> Seq {
        #[allow(clippy::cast_possible_truncation)] // half of it is left
        let touched = Touched { key: (key >> 32) as u32, seq: ShortSeq::of(seq) };
        let is_it = |other: &Touched| other.key == touched.key;
        match self.touched.entry(touched.hash(), is_it, |other| other.hash()) {
            Entry::Occupied(mut before) => {
                std::mem::replace(before.get_mut(), touched).seq.upto(seq)
            }
            Entry::Vacant(vacant) => {
                vacant.insert(touched);
                0
            }
        }
    }

    /// Names that no record after `left` has touched do not matter any more.
    pub(crate) fn tidy(&mut self, left: Seq, newest: Seq) {
        if self.touched.len() > self.tidy_at.max(MIN_TIDY) {
            self.touched.retain(|touched| touched.seq.upto(newest) > left);
            self.tidy_at = 2 * self.touched.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_remembers_who_touched_it_last_also_when_numbers_are_large() {
        for base in [1, 0xffff_fff0, 0x1_ffff_fff0_u64] {
            let mut names = Names::default();
            let key = |n: u64| n << 32;
            assert_eq!((names.touch(key(1), base), names.touch(key(2), base + 1)), (0, 0));
            assert_eq!(names.touch(key(1), base + 100), base);
            assert_eq!(names.touch(key(1), base + 101), base + 100);
            for n in 0..10_000 {
                names.touch(key(3 + n), base + 102 + n);
                names.tidy(base + n, base + 102 + n);
                assert!(names.touched.len() < 2 * MIN_TIDY, "they do not pile up");
            }
            assert_eq!(names.touch(key(2), base + 10_200), 0, "tidied away");
            assert_eq!(names.touch(key(10_002), base + 10_201), base + 10_101);
        }
    }
}
