//! Is an MDT that came back still the one that was read?
//!
//! After a crash an MDT may have lost transactions that a reader has seen: their indexes are then
//! issued again, with other content and without an error. After a restart without changelog users
//! they begin at 1 again. Both were measured on a real MDT. So a source that is opened again is
//! opened a little before its place, and what comes is compared with what is known of it.
#![forbid(unsafe_code)]

use lcap_ffi::{Record, RecordIndex};
use lcap_wire::frame::add_crc;

/// Records before a place that are compared when a source is opened again.
pub const OVERLAP_RECORDS: usize = 4096;

/// Digests of the newest records that are kept with the state of an MDT.
pub const KEPT_DIGESTS: usize = 64;

/// A record's index and the checksum of what it says.
pub type Digest = (RecordIndex, u32);

/// Checksum of what a record says. Bytes behind the text in the jobid, NID and xattr areas do not
/// count: they are leftovers of the server's memory and may differ from read to read.
pub fn digest(record: &Record<'_>) -> Digest {
    let head = record.head();
    let mut sum = Sum { crc: 0, n: 0, parts: [0; 512] };
    sum.add(&head.rec_type.get().to_le_bytes());
    sum.add(&record.type_flags().to_le_bytes());
    sum.add(&head.time.get().to_le_bytes());
    for fid in [Some(record.target()), record.source(), record.source_parent()] {
        let fid = fid.unwrap_or_default();
        sum.add(&fid.seq.to_le_bytes());
        sum.add(&fid.oid.to_le_bytes());
    }
    for text in [record.jobid(), record.xattr()] {
        sum.add(text.unwrap_or_default());
        sum.add(&[0]);
    }
    sum.add(record.names());
    (record.index(), sum.finish())
}

/// Puts small parts together before they are summed: each call of the checksum costs as much as a hundred
/// bytes do.
struct Sum {
    crc: u32,
    n: usize,
    parts: [u8; 512],
}

impl Sum {
    fn add(&mut self, part: &[u8]) {
        if let Some(room) = self.parts.get_mut(self.n..self.n + part.len()) {
            room.copy_from_slice(part);
            self.n += part.len();
            return;
        }
        self.flush();
        self.crc = add_crc(self.crc, part);
    }

    fn flush(&mut self) {
        self.crc = add_crc(self.crc, self.parts.get(..self.n).unwrap_or_default());
        self.n = 0;
    }

    fn finish(mut self) -> u32 {
        self.flush();
        self.crc
    }
}

/// What a comparison has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough was seen.
    Open,
    /// It goes on as it was.
    Same,
    /// From this index on it is another history.
    Differs(RecordIndex),
    /// Nothing of what is known is there, nor anything newer: look from the very beginning.
    Nothing,
}

/// Compares what a reopened source gives with what is known.
#[derive(Debug)]
pub struct Overlap {
    /// In order; the last one is the newest that was read.
    known: Vec<Digest>,
    /// The highest index that was found as it was known.
    matched: Option<RecordIndex>,
    from_the_beginning: bool,
}

impl Overlap {
    /// A comparison with `known` records, in order.
    pub fn new(known: Vec<Digest>) -> Self {
        Self { known, matched: None, from_the_beginning: false }
    }

    /// Where to open the source: at the first known record.
    pub fn start(&self) -> Option<RecordIndex> {
        self.known.first().map(|&(index, _)| index)
    }

    /// From now on the source is read from its very beginning.
    pub fn look_from_the_beginning(&mut self) {
        self.from_the_beginning = true;
    }

    /// Whether any record was found as it was known.
    pub fn has_matched(&self) -> bool {
        self.matched.is_some()
    }

    /// Whether the source was found to have nothing at all.
    pub fn found_nothing(&self) -> bool {
        self.from_the_beginning
    }

    /// A record came from the source.
    pub fn see(&mut self, record: &Record<'_>) -> Verdict {
        let (index, crc) = digest(record);
        let Some(&(newest, _)) = self.known.last() else { return Verdict::Same };
        if index > newest {
            // Records up to the newest may have been cleared; nothing speaks against it.
            return Verdict::Same;
        }
        if self.from_the_beginning {
            // Nothing was there at or above the known ones, so this MDT counts anew.
            return Verdict::Differs(index);
        }
        match self.known.binary_search_by_key(&index, |&(index, _)| index) {
            Ok(at) if self.known[at].1 == crc => {
                self.matched = Some(index);
                if index == newest { Verdict::Same } else { Verdict::Open }
            }
            Ok(_) => Verdict::Differs(index),
            // An index that did not exist among known ones, or one before them.
            Err(0) => Verdict::Open,
            Err(_) => Verdict::Differs(index),
        }
    }

    /// The source has nothing more at present.
    pub fn see_end(&self) -> Verdict {
        match (self.known.last(), self.matched) {
            (None, _) => Verdict::Same,
            // The head is below what was read.
            (Some(&(newest, _)), Some(matched)) if matched < newest => {
                Verdict::Differs(matched.next())
            }
            (Some(_), Some(_)) => Verdict::Same,
            (Some(_), None) if self.from_the_beginning => Verdict::Open,
            (Some(_), None) => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::testing::packed;

    /// Digests stand for records here: `see` only compares them.
    fn see(overlap: &mut Overlap, index: u64, name: &str) -> Verdict {
        let bytes = packed(index, name);
        let (record, _) = lcap_ffi::record::split_first(&bytes).unwrap();
        overlap.see(&record)
    }

    fn known(records: &[(u64, &str)]) -> Overlap {
        let digests = records.iter().map(|&(index, name)| {
            let bytes = packed(index, name);
            digest(&lcap_ffi::record::split_first(&bytes).unwrap().0)
        });
        Overlap::new(digests.collect())
    }

    /// They lie in the state of lcapds that are in use: these must know them again.
    #[test]
    fn a_digest_stays_what_it_is() {
        let digest_of = |name: &str| {
            let bytes = packed(7, name);
            digest(&lcap_ffi::record::split_first(&bytes).unwrap().0)
        };
        assert_eq!(digest_of("name"), (RecordIndex::new(7), 1_383_619_654));
        // However the parts are put together.
        for n in [0, 1, 400, 450, 470, 600, 800] {
            let name = "n".repeat(n);
            let fixed = [1_u32.to_le_bytes().as_slice(), &[0; 2 + 8 + 3 * 12 + 2]].concat();
            let all = [&fixed, name.as_bytes()].concat();
            assert_eq!(digest_of(&name).1, crc32c::crc32c(&all), "{n}");
        }
    }

    #[test]
    fn what_was_seen_decides() {
        use Verdict::*;
        let at = RecordIndex::new;
        type Row<'a> = (&'a str, &'a [(u64, &'a str)], Option<u64>, &'a [Verdict], Verdict);
        let rows: [Row<'_>; 7] = [
            ("as it was", &[(5, "a"), (6, "b"), (7, "c")], None, &[Open, Open, Same], Same),
            ("other content", &[(5, "a"), (6, "X")], None, &[Open, Differs(at(6))], Same),
            ("the head is lower", &[(5, "a")], None, &[Open], Differs(at(6))),
            ("all cleared", &[], None, &[], Nothing),
            ("all cleared, and newer ones", &[(8, "d")], None, &[Same], Nothing),
            ("the first ones cleared", &[(7, "c"), (8, "d")], None, &[Same, Same], Same),
            (
                "older ones of other users",
                &[(3, "z"), (5, "a")],
                None,
                &[Open, Open],
                Differs(at(6)),
            ),
        ];
        for (what, seen, _, verdicts, end) in rows {
            let mut overlap = known(&[(5, "a"), (6, "b"), (7, "c")]);
            let got: Vec<Verdict> =
                seen.iter().map(|&(index, name)| see(&mut overlap, index, name)).collect();
            assert_eq!(got, verdicts, "{what}");
            if !matches!(got.last(), Some(Same | Differs(_))) {
                assert_eq!(overlap.see_end(), end, "{what}: at the end");
            }
        }
    }

    #[test]
    fn counting_anew_is_found_from_the_beginning() {
        let mut overlap = known(&[(5, "a"), (6, "b")]);
        assert_eq!(overlap.see_end(), Verdict::Nothing);
        overlap.look_from_the_beginning();
        assert_eq!(overlap.see_end(), Verdict::Open, "it may all have been cleared");
        assert_eq!(see(&mut overlap, 1, "new"), Verdict::Differs(RecordIndex::new(1)));
        let mut overlap = known(&[(5, "a"), (6, "b")]);
        overlap.look_from_the_beginning();
        assert_eq!(see(&mut overlap, 7, "c"), Verdict::Same);
    }

    #[test]
    fn an_index_that_was_not_there_before_is_another_history() {
        let mut overlap = known(&[(5, "a"), (7, "c")]);
        assert_eq!(see(&mut overlap, 5, "a"), Verdict::Open);
        assert_eq!(see(&mut overlap, 6, "b"), Verdict::Differs(RecordIndex::new(6)));
    }

    #[test]
    fn nothing_known_means_nothing_to_compare() {
        let mut overlap = Overlap::new(Vec::new());
        assert_eq!(overlap.start(), None);
        assert_eq!(see(&mut overlap, 1, "a"), Verdict::Same);
        assert_eq!(overlap.see_end(), Verdict::Same);
    }
}
