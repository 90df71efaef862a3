//! Records of one MDT that are moved together.
#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use lcap_ffi::record::{RecordError, split_len};
use lcap_ffi::{Record, RecordIndex};

use crate::buffers::{Buffer, Buffers};

/// Consecutive records of one MDT, byte for byte as the source gave them, in one buffer.
///
/// Invariant: at least one record; `ends` are the records' end offsets, the last one the end of
/// `bytes`; no record is malformed.
#[derive(Debug)]
pub struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ends: Vec<u32>,
    first: RecordIndex,
    last: RecordIndex,
    ordered: bool,
    read_at: Instant,
    crc: OnceLock<u32>,
    /// Where its memory came from.
    home: Option<Arc<Buffers>>,
}

/// Bytes that are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A record is cut short or lies about its size.
    #[error("record at byte {at} of the batch, after index {after}: {problem}")]
    Record {
        /// Offset of the record.
        at: usize,
        /// The last good index.
        after: RecordIndex,
        /// What is wrong with it.
        problem: RecordError,
    },
    /// More bytes than offsets can tell.
    #[error("batch of {0} bytes; the limit is 4 GiB")]
    TooLarge(usize),
    /// No record at all.
    #[error("no records")]
    Empty,
}

impl Batch {
    /// Finds the records in `bytes`.
    ///
    /// # Errors
    /// [`BatchError`] if there are none, or they do not end where `bytes` ends.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BatchError> {
        // A modern namespace record is some 160 bytes long.
        let ends = Vec::with_capacity(bytes.len() / 128 + 1);
        Self::parse_into(Buffer { bytes, ends }, None)
    }

    /// As [`Self::parse`], in a buffer that goes back to `home` at the end.
    ///
    /// # Errors
    /// As there.
    pub fn parse_pooled(buffer: Buffer, home: &Arc<Buffers>) -> Result<Self, BatchError> {
        Self::parse_into(buffer, Some(Arc::clone(home)))
    }

    fn parse_into(buffer: Buffer, home: Option<Arc<Buffers>>) -> Result<Self, BatchError> {
        let Buffer { bytes, mut ends } = buffer;
        if u32::try_from(bytes.len()).is_err() {
            return Err(BatchError::TooLarge(bytes.len()));
        }
        ends.clear();
        let (mut first, mut last) = (RecordIndex::new(u64::MAX), RecordIndex::ZERO);
        let (mut at, mut ordered, mut after) = (0, true, RecordIndex::ZERO);
        while at < bytes.len() {
            let (size, index) = split_len(&bytes[at..]).map_err(|problem| BatchError::Record {
                at,
                after,
                problem,
            })?;
            at += size;
            ordered &= index > after;
            after = index;
            first = first.min(index);
            last = last.max(index);
            ends.push(u32::try_from(at).map_err(|_| BatchError::TooLarge(bytes.len()))?);
        }
        if ends.is_empty() {
            return Err(BatchError::Empty);
        }
        let (read_at, crc) = (Instant::now(), OnceLock::new());
        Ok(Self { bytes, ends, first, last, ordered, read_at, crc, home })
    }

    /// A batch of records that are known to be well-formed, from several others.
    pub(crate) fn from_parts(
        bytes: Vec<u8>,
        ends: Vec<u32>,
        first: RecordIndex,
        last: RecordIndex,
    ) -> Self {
        let (read_at, crc) = (Instant::now(), OnceLock::new());
        Self { bytes, ends, first, last, ordered: false, read_at, crc, home: None }
    }

    /// Whether indexes increase from record to record, as those of a source must.
    pub fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Puts batches that follow each other into one, so that many small ones make one message.
    pub fn join(parts: &[std::sync::Arc<Self>]) -> Option<Self> {
        let (first, last) = (parts.first()?, parts.last()?);
        let mut bytes = Vec::with_capacity(parts.iter().map(|b| b.bytes.len()).sum());
        let mut ends = Vec::with_capacity(parts.iter().map(|b| b.ends.len()).sum());
        for part in parts {
            let base = u32::try_from(bytes.len()).ok()?;
            ends.extend(part.ends.iter().map(|end| base + end));
            bytes.extend_from_slice(&part.bytes);
        }
        let read_at = first.read_at;
        Some(Self {
            bytes,
            ends,
            first: first.first,
            last: last.last,
            ordered: parts.iter().all(|part| part.ordered),
            read_at,
            crc: OnceLock::new(),
            home: None,
        })
    }

    /// The records with index ≥ `from` as a batch of their own; `None` if there are none.
    pub fn tail_from(&self, from: RecordIndex) -> Option<Self> {
        let skip = (0..self.len()).take_while(|&nth| self.index(nth) < from).count();
        let bytes = self.bytes.get(self.start(skip)..)?.to_vec();
        let mut tail = Self::parse(bytes).ok()?;
        tail.read_at = self.read_at;
        Some(tail)
    }

    /// The records before the first one with index ≥ `from`; `None` if there are none.
    pub fn head_before(&self, from: RecordIndex) -> Option<Self> {
        let n = (0..self.len()).take_while(|&nth| self.index(nth) < from).count();
        let mut head = Self::parse(self.bytes.get(..self.start(n))?.to_vec()).ok()?;
        head.read_at = self.read_at;
        Some(head)
    }

    /// All records, back to back.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// End offset of each record.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never: see the invariant.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>() + size_of::<Self>()
    }

    /// Lowest index.
    pub fn first(&self) -> RecordIndex {
        self.first
    }

    /// Highest index.
    pub fn last(&self) -> RecordIndex {
        self.last
    }

    /// When it was read from its source.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// CRC-32C of the bytes, computed once for all streams.
    pub fn crc(&self) -> u32 {
        *self.crc.get_or_init(|| lcap_wire::frame::body_crc(&self.bytes))
    }

    /// Offset at which record `nth` begins; for `len()`, the end.
    ///
    /// # Panics
    /// If there are fewer records.
    #[inline]
    pub fn start(&self, nth: usize) -> usize {
        if nth == 0 { 0 } else { self.ends[nth - 1] as usize }
    }

    /// Bytes of record `nth`, counted from 0.
    ///
    /// # Panics
    /// If there is no such record.
    #[inline]
    pub fn record(&self, nth: usize) -> &[u8] {
        &self.bytes[self.start(nth)..self.ends[nth] as usize]
    }

    /// Index of record `nth`, counted from 0.
    ///
    /// # Panics
    /// If there is no such record.
    #[inline]
    pub fn index(&self, nth: usize) -> RecordIndex {
        index_of(self.record(nth))
    }

    /// Its records, parsed.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        lcap_ffi::record::records(&self.bytes).map_while(Result::ok)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let (bytes, ends) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.ends));
            home.give(Buffer { bytes, ends });
        }
    }
}

impl AsRef<[u8]> for Batch {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `cr_index` of a whole record.
pub(crate) fn index_of(record: &[u8]) -> RecordIndex {
    split_len(record).map_or(RecordIndex::ZERO, |(_, index)| index)
}

#[cfg(test)]
pub(crate) mod testing {
    /// A packed record with that index and name; nothing else in it is set.
    pub(crate) fn packed(index: u64, name: &str) -> Vec<u8> {
        let mut bytes = vec![0_u8; 64];
        bytes[..2].copy_from_slice(&u16::try_from(name.len()).unwrap().to_ne_bytes());
        bytes[2..4].copy_from_slice(&0x1000_u16.to_ne_bytes());
        bytes[4..8].copy_from_slice(&1_u32.to_ne_bytes());
        bytes[8..16].copy_from_slice(&index.to_ne_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }
}
