//! One received message, handed out record by record without a copy.
#![forbid(unsafe_code)]

use std::ops::Range;

use lcap_ffi::RecordIndex;
use lcap_ffi::record::split_len;
use lcap_wire::control::Delivery;

use crate::place::{Admitted, Part};

/// The new records of one message. They stay in the buffer that they were received in.
pub struct Batch<B> {
    body: B,
    parts: Vec<Part>,
    /// Part and byte of the next record.
    next: (usize, usize),
    n_left: u32,
    ascending: bool,
    low: RecordIndex,
    delivery: Delivery,
}

impl<B: AsRef<[u8]>> Batch<B> {
    /// The part of `body` that `admitted` allows; `low` counts once it is consumed.
    pub(crate) fn new(body: B, admitted: Admitted, low: RecordIndex, delivery: Delivery) -> Self {
        let Admitted { parts, n_records, ascending, .. } = admitted;
        let next = (0, parts.first().map_or(0, |part| part.0));
        Self { body, parts, next, n_left: n_records, ascending, low, delivery }
    }

    /// Where the next record lies in the buffer, and its index.
    #[inline]
    pub fn next_range(&mut self) -> Option<(Range<usize>, RecordIndex)> {
        let (part, at) = self.next;
        let &(_, end) = self.parts.get(part)?;
        let rest = self.body.as_ref().get(at..end)?;
        // Checked when the message came in, so there is no error to report.
        let (len, index) = split_len(rest).ok()?;
        self.n_left = self.n_left.saturating_sub(1);
        self.next = if at + len < end {
            (part, at + len)
        } else {
            (part + 1, self.parts.get(part + 1).map_or(0, |part| part.0))
        };
        Some((at..at + len, index))
    }

    /// Records that have not been handed out.
    #[inline]
    pub fn n_left(&self) -> u32 {
        self.n_left
    }

    /// The whole buffer. Records that were handed out lie in it.
    pub fn buffer(&self) -> &[u8] {
        self.body.as_ref()
    }

    /// Everything up to here has been delivered or dropped as soon as the batch is consumed.
    pub fn low(&self) -> RecordIndex {
        self.low
    }

    /// How its stream is delivered.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// A heartbeat said that more was dropped after this batch.
    pub fn raise_low(&mut self, low: RecordIndex) {
        self.low = self.low.max(low);
    }

    /// Everything up to here has been delivered or dropped now, if that can be told.
    pub fn low_so_far(&self) -> Option<RecordIndex> {
        if self.n_left == 0 {
            return Some(self.low);
        }
        if !self.ascending {
            return None;
        }
        let (part, at) = self.next;
        let rest = self.body.as_ref().get(at..self.parts.get(part)?.1)?;
        let (_, next) = split_len(rest).ok()?;
        Some(self.low.min(next.prev()))
    }
}

impl<B> std::fmt::Debug for Batch<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("n_left", &self.n_left)
            .field("low", &self.low)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::sift;
    use crate::testing::{message, record};

    #[test]
    fn only_admitted_records_come_out() {
        let (header, body) = message(20, &[11, 12, 13, 14, 15]);
        let skip = |index: RecordIndex| matches!(index.get(), 11 | 13 | 14);
        let admitted = sift(&header, &body, skip).unwrap();
        let mut batch = Batch::new(body, admitted, header.low, Delivery::Broadcast);
        let mut got = Vec::new();
        let mut lows = vec![batch.low_so_far().unwrap().get()];
        while let Some((range, index)) = batch.next_range() {
            assert_eq!(batch.buffer()[range], record(index.get()));
            got.push((index.get(), batch.n_left()));
            lows.push(batch.low_so_far().unwrap().get());
        }
        assert_eq!(got, [(12, 1), (15, 0)].map(|(i, n)| (i, n)));
        assert_eq!(lows, [11, 14, 20], "before, between and after");
    }
}
