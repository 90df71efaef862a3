//! What comes out of a chain.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use lcap_ffi::RecordIndex;

use crate::batch::{Batch, index_of};

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

    /// Copies the open run, unless it is a whole batch.
    pub(super) fn end_run(&mut self) {
        let Some(Run { mdt, batch, from, to, .. }) = self.run.take() else { return };
        if (from, to) == (0, batch.len()) {
            self.parts.push(Part::Whole { mdt, batch });
            return;
        }
        let (n_records, n_bytes) = (self.records.len(), self.bytes.len());
        let start = batch.start(from);
        self.bytes.extend_from_slice(&batch.bytes[start..batch.start(to)]);
        self.records.extend((from..to).map(|nth| OutRecord {
            index: batch.index(nth),
            end: offset(n_bytes + batch.start(nth + 1) - start),
            route: 0,
        }));
        self.end_packed(mdt, n_records, n_bytes);
    }

    /// Joins what was appended to the last part, or makes a new one of it.
    fn end_packed(&mut self, mdt: u32, n_records: usize, n_bytes: usize) {
        let ends = (self.records.len(), self.bytes.len());
        match self.parts.last_mut() {
            Some(Part::Packed { mdt: last, records, bytes })
                if *last == mdt && (records.end, bytes.end) == (n_records, n_bytes) =>
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
