//! What comes out of a chain.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use lcap_ffi::RecordIndex;

use crate::batch::{Batch, index_of};

/// A smaller batch that comes with others is copied together with them: each part is a message to every
/// subscriber, and only so many messages may wait for one.
const SMALL_BYTES: usize = 16 << 10;
/// No part is larger, unless it is one record: it has to fit into a message.
const MAX_PART_BYTES: usize = 1 << 20;

/// A record in [`ChainOutput::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutRecord {
    /// Its index.
    pub index: RecordIndex,
    /// Where it ends in the buffer.
    pub end: u32,
    /// Key for the lanes of a queue; zero is none.
    pub route: u64,
}

/// Emitted records of one MDT that follow one another.
#[derive(Clone, Debug)]
pub enum Part {
    /// A batch as it was pushed: nothing is copied. Its records have no route keys.
    Whole {
        /// Number of the MDT in the chain; 0 if there is one only.
        mdt: u32,
        /// The batch.
        batch: Arc<Batch>,
    },
    /// Records in the output's own buffer.
    Packed {
        /// Number of the MDT in the chain.
        mdt: u32,
        /// Which of [`ChainOutput::records`].
        records: Range<usize>,
        /// Which of [`ChainOutput::bytes`].
        bytes: Range<usize>,
    },
}

/// Records that are ready, in order. Make one and use it again: it keeps its buffers.
#[derive(Debug, Default)]
pub struct ChainOutput {
    /// In the order of emission.
    pub parts: Vec<Part>,
    /// Records of the packed parts, back to back.
    pub bytes: Vec<u8>,
    /// One for each of them.
    pub records: Vec<OutRecord>,
    run: Option<Run>,
}

/// Consecutive records of one batch that are not copied yet.
#[derive(Debug)]
struct Run {
    mdt: u32,
    buffer: u64,
    batch: Arc<Batch>,
    from: usize,
    to: usize,
}

impl ChainOutput {
    /// Nothing was emitted.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        let whole = self.parts.iter().map(|part| match part {
            Part::Whole { batch, .. } => batch.len(),
            Part::Packed { .. } => 0,
        });
        whole.sum::<usize>() + self.records.len()
    }

    /// Every record in order: MDT, bytes, route key.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8], u64)> {
        self.parts.iter().flat_map(move |part| -> Box<dyn Iterator<Item = _>> {
            match part {
                Part::Whole { mdt, batch } => {
                    Box::new((0..batch.len()).map(move |nth| (*mdt, batch.record(nth), 0)))
                }
                Part::Packed { mdt, records, bytes } => {
                    let mut start = bytes.start;
                    Box::new(self.records[records.clone()].iter().map(move |record| {
                        let bytes = &self.bytes[start..record.end as usize];
                        start = record.end as usize;
                        (*mdt, bytes, record.route)
                    }))
                }
            }
        })
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.bytes.clear();
        self.records.clear();
        self.run = None;
    }

    /// Emits record `nth` of a buffer.
    #[inline]
    pub(super) fn push(
        &mut self,
        mdt: u32,
        buffer: u64,
        batch: &Arc<Batch>,
        nth: usize,
        route: u64,
    ) {
        if route == 0 {
            if let Some(run) = &mut self.run
                && (run.mdt, run.buffer, run.to) == (mdt, buffer, nth)
            {
                run.to += 1;
                return;
            }
            self.end_run();
            self.run = Some(Run { mdt, buffer, batch: Arc::clone(batch), from: nth, to: nth + 1 });
        } else {
            self.push_bytes(mdt, batch.record(nth), route);
        }
    }

    /// Emits consecutive records of a batch, without route keys.
    pub(super) fn push_range(&mut self, mdt: u32, batch: &Arc<Batch>, range: &Range<usize>) {
        self.end_run();
        let batch = Arc::clone(batch);
        self.run = Some(Run { mdt, buffer: 0, batch, from: range.start, to: range.end });
        self.end_run();
    }

    /// Emits a record that is in no buffer, or has a route key.
    pub(super) fn push_bytes(&mut self, mdt: u32, record: &[u8], route: u64) {
        self.end_run();
        let (n_records, n_bytes) = (self.records.len(), self.bytes.len());
        self.bytes.extend_from_slice(record);
        self.records.push(OutRecord {
            index: index_of(record),
            end: offset(self.bytes.len()),
            route,
        });
        self.end_packed(mdt, n_records, n_bytes);
    }

    /// Ends the open run. What is not a batch as it was pushed, or is small and not alone, is copied.
    pub(super) fn end_run(&mut self) {
        let Some(Run { mdt, batch, from, to, .. }) = self.run.take() else { return };
        let is_whole = (from, to) == (0, batch.len());
        let size = batch.start(to) - batch.start(from);
        if is_whole && size <= MAX_PART_BYTES && !(size < SMALL_BYTES && self.make_room(mdt)) {
            self.parts.push(Part::Whole { mdt, batch });
            return;
        }
        let mut from = from;
        while batch.start(to) - batch.start(from) > MAX_PART_BYTES {
            let fits = |&nth: &usize| batch.start(nth + 1) - batch.start(from) <= MAX_PART_BYTES;
            let end = (from..to).take_while(fits).last().unwrap_or(from) + 1;
            self.copy(mdt, &batch, from..end);
            from = end;
        }
        if from < to {
            self.copy(mdt, &batch, from..to);
        }
    }

    /// Whether the last part is one that more records of this MDT can be copied to. Makes it one if that
    /// is a small batch.
    fn make_room(&mut self, of: u32) -> bool {
        match self.parts.last() {
            Some(Part::Packed { mdt, bytes, .. }) => *mdt == of && bytes.end == self.bytes.len(),
            Some(Part::Whole { mdt, batch }) if *mdt == of && batch.bytes.len() < SMALL_BYTES => {
                let batch = Arc::clone(batch);
                self.parts.pop();
                self.copy(of, &batch, 0..batch.len());
                true
            }
            _ => false,
        }
    }

    fn copy(&mut self, mdt: u32, batch: &Batch, nth: Range<usize>) {
        let (n_records, n_bytes) = (self.records.len(), self.bytes.len());
        let start = batch.start(nth.start);
        self.bytes.extend_from_slice(&batch.bytes[start..batch.start(nth.end)]);
        self.records.extend(nth.map(|nth| OutRecord {
            index: batch.index(nth),
            end: offset(n_bytes + batch.start(nth + 1) - start),
            route: 0,
        }));
        self.end_packed(mdt, n_records, n_bytes);
    }

    /// Joins what was appended to the last part, or makes a new one of it if that would be too large.
    fn end_packed(&mut self, mdt: u32, n_records: usize, n_bytes: usize) {
        let ends = (self.records.len(), self.bytes.len());
        match self.parts.last_mut() {
            Some(Part::Packed { mdt: last, records, bytes })
                if *last == mdt
                    && (records.end, bytes.end) == (n_records, n_bytes)
                    && ends.1 - bytes.start <= MAX_PART_BYTES =>
            {
                (records.end, bytes.end) = ends;
            }
            _ => self.parts.push(Part::Packed {
                mdt,
                records: n_records..ends.0,
                bytes: n_bytes..ends.1,
            }),
        }
    }
}

/// What one pull emits is far below 4 GiB: batches and held records are bounded by memory limits.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::testing::packed;

    /// So many records of about so many bytes each.
    fn batch(first: u64, n: u64, bytes: usize) -> Arc<Batch> {
        let name = "n".repeat(bytes - 64);
        let all = (first..first + n).flat_map(|index| packed(index, &name)).collect();
        Arc::new(Batch::parse(all).unwrap())
    }

    /// What comes of whole batches: of each part its records, and whether it was copied.
    fn parts(batches: &[Arc<Batch>]) -> Vec<(usize, bool)> {
        let mut out = ChainOutput::default();
        for batch in batches {
            out.push_range(0, batch, &(0..batch.len()));
        }
        let want: Vec<_> = batches.iter().flat_map(|b| b.records()).map(|r| r.index()).collect();
        let got: Vec<_> = out.iter().map(|(_, record, _)| index_of(record)).collect();
        assert_eq!((got, out.len()), (want.clone(), want.len()));
        let of = |part: &Part| match part {
            Part::Whole { batch, .. } => (batch.len(), false),
            Part::Packed { records, bytes, .. } => {
                assert!(bytes.len() <= MAX_PART_BYTES);
                (records.len(), true)
            }
        };
        out.parts.iter().map(of).collect()
    }

    #[test]
    fn neither_many_small_parts_come_out_nor_one_that_is_too_large() {
        let small = |nth: u64| batch(1 + nth * 10, 10, 100);
        let large = |nth: u64| batch(1 + nth * 200, 200, 200);
        let many: Vec<_> = (0..300).map(small).collect();
        type Row<'a> = (&'a str, Vec<Arc<Batch>>, &'a [(usize, bool)]);
        let rows: [Row<'_>; 6] = [
            ("one alone", vec![small(0)], &[(10, false)]),
            ("small ones", many, &[(3000, true)]),
            ("large ones", vec![large(0), large(1)], &[(200, false), (200, false)]),
            ("one after a large one", vec![large(0), small(20)], &[(200, false), (10, false)]),
            ("one before a large one", vec![small(0), large(1)], &[(10, false), (200, false)]),
            (
                "a huge one",
                vec![batch(1, 20_000, 128)],
                &[(8192, true), (8192, true), (3616, true)],
            ),
        ];
        for (what, batches, want) in rows {
            assert_eq!(parts(&batches), want, "{what}");
        }
    }
}
