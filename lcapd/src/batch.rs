//! Consecutive records of one MDT in one buffer.
#![forbid(unsafe_code)]

use std::fmt;

use lcap_ffi::record::{RecordError, split_len};
use lcap_ffi::{Record, RecordIndex};

/// Packed records back to back, with their ends.
///
/// Invariant of [`Batch::parse`]: `ends` has the end of each record in `bytes`, the last is the end of
/// `bytes`, and no record is malformed.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    /// The records, byte for byte as they came.
    pub bytes: Vec<u8>,
    /// End offset of each record in `bytes`.
    pub ends: Vec<u32>,
    /// Lowest index.
    pub first: RecordIndex,
    /// Highest index.
    pub last: RecordIndex,
}

/// Bytes that are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A record is cut short or lies about its size.
    #[error("record at byte {at} of the batch: {problem}")]
    Record {
        /// Offset of the record.
        at: usize,
        /// What is wrong with it.
        problem: RecordError,
    },
    /// More bytes than offsets can tell.
    #[error("batch of {0} bytes; the limit is 4 GiB")]
    TooLarge(usize),
}

impl Batch {
    /// Finds the records in `bytes`.
    ///
    /// # Errors
    /// [`BatchError`] if they do not end where `bytes` ends.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BatchError> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(BatchError::TooLarge(bytes.len()));
        }
        // A modern namespace record is some 160 bytes long.
        let mut ends = Vec::with_capacity(bytes.len() / 128);
        let (mut first, mut last) = (RecordIndex::new(u64::MAX), RecordIndex::ZERO);
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            let (size, index) =
                split_len(rest).map_err(|problem| BatchError::Record { at, problem })?;
            at += size;
            ends.push(u32::try_from(at).map_err(|_| BatchError::TooLarge(bytes.len()))?);
            first = first.min(index);
            last = last.max(index);
        }
        if ends.is_empty() {
            first = RecordIndex::ZERO;
        }
        Ok(Self { bytes, ends, first, last })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No record at all.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Offset at which record `nth` begins; for `len()`, the end.
    ///
    /// # Panics
    /// If there are fewer records.
    #[inline]
    pub fn start(&self, nth: usize) -> usize {
        if nth == 0 { 0 } else { self.ends[nth - 1] as usize }
    }

    /// The bytes of record `nth`.
    ///
    /// # Panics
    /// If there is no such record.
    #[inline]
    pub fn record(&self, nth: usize) -> &[u8] {
        &self.bytes[self.start(nth)..self.ends[nth] as usize]
    }

    /// The index of record `nth`.
    ///
    /// # Panics
    /// If there is no such record.
    #[inline]
    pub fn index(&self, nth: usize) -> RecordIndex {
        index_of(self.record(nth))
    }

    /// The records, parsed.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        lcap_ffi::record::records(&self.bytes).map_while(Result::ok)
    }
}

/// `cr_index` of a whole record.
pub(crate) fn index_of(record: &[u8]) -> RecordIndex {
    let word = record.get(8..16).and_then(|word| word.first_chunk());
    RecordIndex::new(word.map_or(0, |word| u64::from_ne_bytes(*word)))
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("first", &self.first.get())
            .field("last", &self.last.get())
            .field("records", &self.len())
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// Lets a frame share the batch.
impl AsRef<[u8]> for Batch {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of type CREAT with that index and name.
    fn create(index: u64, name: &str) -> Vec<u8> {
        let mut rec = vec![0; 64];
        rec[0..2].copy_from_slice(&u16::try_from(name.len()).unwrap().to_ne_bytes());
        rec[2..4].copy_from_slice(&0x1000_u16.to_ne_bytes());
        rec[4] = 1;
        rec[8..16].copy_from_slice(&index.to_ne_bytes());
        rec.extend_from_slice(name.as_bytes());
        rec
    }

    #[test]
    fn records_are_found_and_cut_ones_refused() {
        let bytes = [create(7, "a"), create(9, ""), create(8, "long name")].concat();
        let batch = Batch::parse(bytes.clone()).unwrap();
        assert_eq!((batch.len(), batch.first.get(), batch.last.get()), (3, 7, 9));
        assert_eq!(batch.record(2), &create(8, "long name"));
        assert_eq!(batch.index(1).get(), 9);
        assert_eq!(batch.start(3), bytes.len());
        let whole = [0, 65, 65 + 64, bytes.len()];
        for cut in 0..=bytes.len() {
            assert_eq!(Batch::parse(bytes[..cut].to_vec()).is_ok(), whole.contains(&cut), "{cut}");
        }
        let none = Batch::parse(Vec::new()).unwrap();
        assert!(none.is_empty() && none.first == RecordIndex::ZERO);
    }
}
