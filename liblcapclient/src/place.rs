//! Where a client stands in one MDT's records: what it has had, so that nothing is lost and nothing
//! comes twice whatever happens to the connection.
#![forbid(unsafe_code)]

use lcap_ffi::RecordIndex;
use lcap_ffi::record::{RecordError, split_len};
use lcap_wire::{Header, RangeSet};

/// A client's place: everything up to `low`, and `had` above it.
#[derive(Clone, Debug)]
pub struct Place {
    /// First index that was asked for at the very start; 0 leaves it to the server.
    from: u64,
    /// Everything up to here was had or is of no interest; `None` until the first session.
    low: Option<RecordIndex>,
    /// What was had above `low`: empty as long as records come in order.
    had: RangeSet,
    /// History of the MDT that these indexes belong to.
    generation: Option<u16>,
}

/// A run of records inside a body, by byte: `start..end`.
pub type Part = (usize, usize);

/// What of a message is new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The new records; one part unless some in between were had before.
    pub parts: Vec<Part>,
    /// How many they are.
    pub n_records: u32,
    /// How many others had been had before.
    pub n_known: u32,
    /// Whether their indexes ascend.
    pub ascending: bool,
}

/// Why a message with records is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// A record is broken.
    #[error("byte {at} of the body: {problem}")]
    Record {
        /// Where.
        at: usize,
        /// How.
        problem: RecordError,
    },
    /// Not as many records as the header says.
    #[error("{have} records, the header says {want}")]
    Count {
        /// Records in the body.
        have: u32,
        /// Records that the header announced.
        want: u32,
    },
}

/// Walks a body and sorts its records into new and `known` ones.
pub(crate) fn sift(
    header: &Header,
    body: &[u8],
    mut known: impl FnMut(RecordIndex) -> bool,
) -> Result<Admitted, AdmitError> {
    let mut out = Admitted { ascending: true, ..Admitted::default() };
    let (mut at, mut prev) = (0, RecordIndex::ZERO);
    while let Some(rest) = body.get(at..).filter(|rest| !rest.is_empty()) {
        let (len, index) = split_len(rest).map_err(|problem| AdmitError::Record { at, problem })?;
        let end = at + len;
        if known(index) {
            out.n_known += 1;
        } else {
            out.n_records += 1;
            out.ascending &= index > prev;
            prev = index;
            match out.parts.last_mut() {
                Some(part) if part.1 == at => part.1 = end,
                _ => out.parts.push((at, end)),
            }
        }
        at = end;
    }
    let have = out.n_records + out.n_known;
    if have == header.count { Ok(out) } else { Err(AdmitError::Count { have, want: header.count }) }
}

impl Place {
    /// Before the first session. `from` 0 means where the server thinks right.
    pub fn new(from: u64) -> Self {
        Self { from, low: None, had: RangeSet::new(), generation: None }
    }

    /// What to ask for when a session starts: the first index wanted, and its generation.
    pub fn resume(&self) -> (u64, Option<u16>) {
        match self.low {
            Some(low) => (low.next().get(), self.generation),
            None => (self.from, None),
        }
    }

    /// There was no session yet.
    pub fn is_fresh(&self) -> bool {
        self.low.is_none()
    }

    /// Everything up to here was had.
    pub fn low(&self) -> RecordIndex {
        self.low.unwrap_or_default()
    }

    /// History of the MDT that the indexes belong to.
    pub fn generation(&self) -> u16 {
        self.generation.unwrap_or(0)
    }

    /// A session began: delivery begins at `next` unless there is a place already.
    pub fn started(&mut self, next: RecordIndex, generation: u16) {
        self.low.get_or_insert(next.prev());
        self.generation = Some(generation);
    }

    /// The MDT issued indexes from `first` on again: what was had of them does not count.
    pub fn rewind(&mut self, first: RecordIndex, generation: u16) {
        self.had.remove_from(first);
        self.low = self.low.map(|low| low.min(first.prev()));
        self.generation = Some(generation);
    }

    /// Everything up to `low` was delivered or dropped.
    pub fn pass(&mut self, low: RecordIndex) {
        let low = self.low().max(low);
        self.low = Some(low);
        self.had.remove_upto(low);
    }

    /// Takes a message in: says which of its records are new, and remembers them.
    ///
    /// # Errors
    /// If the body is not what the header says; the place is as before then.
    pub fn admit(&mut self, header: &Header, body: &[u8]) -> Result<Admitted, AdmitError> {
        let (low, in_order) = (self.low(), self.had.is_empty());
        let had = &self.had;
        let known = |index| index <= low || (!in_order && had.contains(index));
        let admitted = sift(header, body, known)?;
        if header.last > header.low {
            for &(start, end) in &admitted.parts {
                let mut rest = body.get(start..end).unwrap_or_default();
                while let Ok((len, index)) = split_len(rest) {
                    if index > header.low {
                        self.had.insert(index, index);
                    }
                    rest = rest.get(len..).unwrap_or_default();
                }
            }
        }
        self.pass(header.low);
        Ok(admitted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{message, records_of};

    fn index(n: u64) -> RecordIndex {
        RecordIndex::new(n)
    }

    fn admitted(place: &mut Place, low: u64, indexes: &[u64]) -> Vec<u64> {
        let (header, body) = message(low, indexes);
        let out = place.admit(&header, &body).unwrap();
        assert_eq!(out.n_records + out.n_known, u32::try_from(indexes.len()).unwrap());
        out.parts.iter().flat_map(|&(start, end)| records_of(&body[start..end])).collect()
    }

    #[test]
    fn what_was_had_does_not_come_again() {
        let mut place = Place::new(0);
        place.started(index(10), 0);
        let cases: [(&str, u64, &[u64], &[u64]); 6] = [
            ("records before the place are not wanted", 11, &[8, 9, 10, 11], &[10, 11]),
            ("in order", 13, &[12, 13], &[12, 13]),
            ("a policy holds 14 back", 13, &[15, 16], &[15, 16]),
            ("it comes later", 16, &[14], &[14]),
            ("the same again after a lost connection", 16, &[14, 15, 16], &[]),
            ("half of it is new", 18, &[15, 17, 16, 18], &[17, 18]),
        ];
        for (what, low, sent, want) in cases {
            assert_eq!(admitted(&mut place, low, sent), want, "{what}");
        }
        assert_eq!(place.resume(), (19, Some(0)));
    }

    #[test]
    fn a_rewind_forgets_what_will_be_issued_again() {
        let mut place = Place::new(0);
        place.started(index(1), 0);
        admitted(&mut place, 5, &[1, 2, 3, 4, 5, 8]);
        place.rewind(index(4), 1);
        assert_eq!(place.resume(), (4, Some(1)));
        assert_eq!(admitted(&mut place, 8, &[4, 5, 8]), [4, 5, 8]);
    }

    #[test]
    fn before_the_first_session_the_application_decides() {
        assert_eq!(Place::new(0).resume(), (0, None));
        assert_eq!(Place::new(77).resume(), (77, None));
    }

    #[test]
    fn lying_messages_change_nothing() {
        let mut place = Place::new(0);
        place.started(index(1), 0);
        let (mut header, body) = message(9, &[1, 2, 9]);
        header.count = 4;
        let want = AdmitError::Count { have: 3, want: 4 };
        assert_eq!(place.admit(&header, &body), Err(want));
        header.count = 3;
        let short = place.admit(&header, &body[..body.len() - 1]);
        assert!(matches!(short, Err(AdmitError::Record { .. })), "{short:?}");
        assert_eq!(place.resume(), (1, Some(0)));
    }

    proptest! {
        /// Any stream, cut and begun again at `low + 1` anywhere, gives each record once.
        #[test]
        fn nothing_lost_nothing_twice(
            swaps in proptest::collection::vec((0usize..40, 0usize..6), 0..12),
            cuts in proptest::collection::vec((0usize..12, 1usize..7), 1..12),
        ) {
            let mut stream: Vec<u64> = (1..=40).collect();
            for (at, by) in swaps {
                let to = (at + by).min(stream.len() - 1);
                stream.swap(at, to);
            }
            let low_after = |n: usize| {
                let sent = &stream[..n];
                (0..=40).take_while(|&i| i == 0 || sent.contains(&i)).last().unwrap_or(0)
            };
            let mut place = Place::new(0);
            place.started(index(1), 0);
            let mut got = Vec::new();
            let mut plan = cuts.into_iter();
            loop {
                // A session sends, in stream order, everything with an index from `low + 1` on.
                let (from, _) = place.resume();
                let (messages, size) = plan.next().unwrap_or((1000, 3));
                let tail: Vec<(usize, u64)> = stream.iter().copied().enumerate()
                    .filter(|&(_, i)| i >= from).collect();
                for chunk in tail.chunks(size).take(messages) {
                    let indexes: Vec<u64> = chunk.iter().map(|&(_, i)| i).collect();
                    let low = low_after(chunk.last().unwrap().0 + 1);
                    got.extend(admitted(&mut place, low, &indexes));
                }
                if messages == 1000 {
                    break;
                }
            }
            prop_assert_eq!(got, stream);
        }
    }
}
