//! Records of one MDT that are moved together.
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::time::Instant;

use lcap_ffi::record::{RecordError, split_len};
use lcap_ffi::{Record, RecordIndex};

/// Consecutive records of one MDT, byte for byte as the source gave them, in one buffer.
///
/// Invariant: at least one record; `ends` are the records' end offsets; indexes increase.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    first: RecordIndex,
    last: RecordIndex,
    read_at: Instant,
    crc: OnceLock<u32>,
}

/// Why bytes are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A record is malformed.
    #[error("record after index {after}, {offset} bytes into the read: {error}")]
    Record {
        /// The last good index.
        after: RecordIndex,
        /// Where the bad record begins.
        offset: usize,
        /// What is wrong with it.
        error: RecordError,
    },
    /// Indexes do not increase.
    #[error("index {index} follows index {after}")]
    Order {
        /// The index that came.
        index: RecordIndex,
        /// The one before it.
        after: RecordIndex,
    },
    /// No record at all.
    #[error("no records")]
    Empty,
}

impl Batch {
    /// Takes the bytes of one read, all of whose records come after `after`.
    ///
    /// # Errors
    /// [`BatchError`]; the whole read is refused.
    pub fn parse(bytes: Vec<u8>, after: RecordIndex) -> Result<Self, BatchError> {
        let mut ends = Vec::with_capacity(bytes.len() / 128 + 1);
        let (mut at, mut first, mut last) = (0, None, after);
        while at < bytes.len() {
            let (size, index) = split_len(&bytes[at..])
                .map_err(|error| BatchError::Record { after: last, offset: at, error })?;
            if index <= last {
                return Err(BatchError::Order { index, after: last });
            }
            at += size;
            last = index;
            first.get_or_insert(index);
            ends.push(u32::try_from(at).map_err(|_| BatchError::Empty)?);
        }
        let first = first.ok_or(BatchError::Empty)?;
        Ok(Self { bytes, ends, first, last, read_at: Instant::now(), crc: OnceLock::new() })
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
            read_at,
            crc: OnceLock::new(),
        })
    }

    /// The records with index ≥ `from` as a batch of their own; `None` if there are none.
    pub fn tail_from(&self, from: RecordIndex) -> Option<Self> {
        let skip = (0..self.len()).take_while(|&i| self.index(i) < from).count();
        let start = self.start(skip);
        let bytes = self.bytes.get(usize::try_from(start).ok()?..)?.to_vec();
        let mut tail = Self::parse(bytes, RecordIndex::ZERO).ok()?;
        tail.read_at = self.read_at;
        Some(tail)
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

    fn start(&self, i: usize) -> u32 {
        if i == 0 { 0 } else { self.ends[i - 1] }
    }

    /// Bytes of record `i`, counted from 0.
    ///
    /// # Panics
    /// If there is no record `i`.
    pub fn record(&self, i: usize) -> &[u8] {
        &self.bytes[self.start(i) as usize..self.ends[i] as usize]
    }

    /// Index of record `i`, counted from 0.
    ///
    /// # Panics
    /// If there is no record `i`.
    pub fn index(&self, i: usize) -> RecordIndex {
        split_len(self.record(i)).map_or(self.last, |(_, index)| index)
    }

    /// Its records, parsed.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        lcap_ffi::record::records(&self.bytes).map_while(Result::ok)
    }
}

impl AsRef<[u8]> for Batch {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
