//! What was read last of an MDT, kept where a kill cannot take it.
//!
//! The state store is written some times a second, and with what it says of places go digests of the
//! newest records, so that an MDT that lost them is recognised after a restart. Records are delivered
//! sooner than that. If lcapd and its MDT end together, the MDT may issue indexes again that consumers
//! have had while nothing in the store says so. So the newest digests are written before anybody gets the
//! batch: one small write into the page cache, which outlives lcapd. It need not outlive the machine:
//! what an MDT loses with its machine are seconds, and the store is behind by fractions of one.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use lcap_ffi::RecordIndex;
use lcap_ffi::record::split_first;
use tracing::warn;

use crate::batch::Batch;
use crate::lease::leave_behind;
use crate::overlap::{Digest, KEPT_DIGESTS, digest};

/// Histories that are kept: the store may still be in the one before.
const MAX_HISTORIES: usize = 4;
const MAGIC: &[u8; 8] = b"lcapread";
/// Magic, length and checksum of what follows.
const HEAD_BYTES: usize = 16;
const DIGEST_BYTES: usize = 12;
/// More than everything takes. Allocated at the beginning, so that a full disk changes nothing.
const FILE_BYTES: usize = 4096;

/// Where it is written.
pub trait Keep: Send {
    /// Replaces what was written before.
    ///
    /// # Errors
    /// If it cannot.
    fn keep(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// A file of its own.
impl Keep for File {
    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, 0)
    }
}

/// The newest records of each history, without a hole.
type Histories = Vec<(u16, Vec<Digest>)>;

/// What was read last of one MDT.
pub struct LastRead {
    /// The present history last.
    histories: Histories,
    keep: Box<dyn Keep>,
    failing: bool,
    buffer: Vec<u8>,
}

impl fmt::Debug for LastRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastRead").field("histories", &self.histories).finish_non_exhaustive()
    }
}

impl LastRead {
    /// Goes on in history `generation`, of which an earlier life knew `known`.
    pub fn new(generation: u16, known: Vec<Digest>, keep: Box<dyn Keep>) -> Self {
        let histories = vec![(generation, known)];
        Self { histories, keep, failing: false, buffer: Vec::new() }
    }

    /// A batch was read, and nobody has it yet.
    pub(crate) fn note(&mut self, batch: &Batch) {
        let Some((_, digests)) = self.histories.last_mut() else { return };
        let newest = digests.last().map_or(RecordIndex::ZERO, |&(index, _)| index);
        if batch.last() <= newest {
            return; // read again: more is known already
        }
        let fresh = (0..batch.len()).rev().take_while(|&nth| batch.index(nth) > newest);
        let fresh = fresh.take(KEPT_DIGESTS).count();
        let from = batch.len() - fresh;
        if fresh == KEPT_DIGESTS {
            digests.clear(); // there is a hole between them and these
        }
        let records = (from..batch.len()).map(|nth| split_first(batch.record(nth)));
        digests.extend(records.flatten().map(|(record, _)| digest(&record)));
        digests.drain(..digests.len().saturating_sub(KEPT_DIGESTS));
        self.write();
    }

    /// From `first` on, indexes mean other records.
    pub(crate) fn begin(&mut self, generation: u16, first: RecordIndex) {
        let present = self.histories.last().map(|(_, digests)| digests.as_slice());
        let present = present.unwrap_or_default().iter().copied();
        let common = present.filter(|(index, _)| *index < first).collect();
        self.histories.push((generation, common));
        self.histories.drain(..self.histories.len().saturating_sub(MAX_HISTORIES));
        self.write();
    }

    fn write(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        encode(&self.histories, &mut buffer);
        match self.keep.keep(&buffer) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                warn!(%error, "cannot write what was read last; only the state store remembers it");
            }
            Err(_) => {}
        }
        self.buffer = buffer;
    }
}

fn encode(histories: &Histories, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(MAGIC);
    out.resize(HEAD_BYTES, 0);
    for (generation, digests) in histories {
        out.extend_from_slice(&generation.to_le_bytes());
        out.extend_from_slice(&u16::try_from(digests.len()).unwrap_or(u16::MAX).to_le_bytes());
        for (index, crc) in digests {
            out.extend_from_slice(&index.get().to_le_bytes());
            out.extend_from_slice(&crc.to_le_bytes());
        }
    }
    let (head, body) = out.split_at_mut(HEAD_BYTES);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    head[8..12].copy_from_slice(&length.to_le_bytes());
    head[12..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
}

/// What was written, if it is whole.
fn decode(bytes: &[u8]) -> Option<Histories> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let mut body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut histories = Histories::new();
    while !body.is_empty() {
        let (generation, rest) = body.split_first_chunk()?;
        let (n, rest) = rest.split_first_chunk()?;
        let (digests, rest) =
            rest.split_at_checked(usize::from(u16::from_le_bytes(*n)) * DIGEST_BYTES)?;
        let digest = |part: &[u8]| {
            let (index, crc) = part.split_first_chunk()?;
            let index = RecordIndex::new(u64::from_le_bytes(*index));
            Some((index, u32::from_le_bytes(crc.try_into().ok()?)))
        };
        let digests: Option<Vec<Digest>> = digests.chunks(DIGEST_BYTES).map(digest).collect();
        histories.push((u16::from_le_bytes(*generation), digests?));
        body = rest;
    }
    Some(histories)
}

/// What is known of history `generation`, in which the store's state is: what `kept` says, unless the
/// store, whose digests are `saved`, knows of later records.
pub fn known(kept: &[u8], saved: &[Digest], generation: u16) -> Vec<Digest> {
    let newest = |digests: &[Digest]| digests.last().map(|&(index, _)| index);
    let kept = decode(kept).into_iter().flatten().rfind(|(of, _)| *of == generation);
    let kept = kept.map(|(_, digests)| digests).unwrap_or_default();
    if newest(&kept) > newest(saved) { kept } else { saved.to_vec() }
}

/// Opens the file of an MDT, and gives what an earlier life has left there. With `take_over`, an earlier lcapd
/// that may still write keeps the old file.
///
/// # Errors
/// If there can be no such file.
pub fn open(path: &Path, take_over: bool) -> io::Result<(File, Vec<u8>)> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if take_over && path.exists() {
        leave_behind(path)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path)?;
    let mut kept = Vec::new();
    file.read_to_end(&mut kept)?;
    if kept.len() < FILE_BYTES {
        file.write_all_at(&vec![0; FILE_BYTES - kept.len()], kept.len() as u64)?;
    }
    Ok((file, kept))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::source::sim::{Generator, GeneratorOptions};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Keep for Kept {
        fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
            bytes.clone_into(&mut self.0.lock().unwrap());
            Ok(())
        }
    }

    fn batches(sizes: &[u64]) -> Vec<Batch> {
        let mut generator = Generator::new(GeneratorOptions::default());
        let batch = |n: &u64| {
            let mut bytes = Vec::new();
            for _ in 0..*n {
                bytes.extend_from_slice(generator.next_record());
            }
            Batch::parse(bytes).unwrap()
        };
        sizes.iter().map(batch).collect()
    }

    fn indexes(digests: &[Digest]) -> Vec<u64> {
        digests.iter().map(|(index, _)| index.get()).collect()
    }

    #[test]
    fn the_newest_records_are_there_without_a_hole() {
        let kept = Kept::default();
        let mut last = LastRead::new(3, Vec::new(), Box::new(kept.clone()));
        let of = |generation| indexes(&known(&kept.0.lock().unwrap(), &[], generation));
        for (batch, want) in
            batches(&[10, 1, 200, 5]).iter().zip([1..=10, 1..=11, 148..=211, 153..=216])
        {
            last.note(batch);
            assert_eq!(of(3), want.collect::<Vec<_>>());
        }
        last.note(&batches(&[20])[0]);
        assert_eq!(of(3).last(), Some(&216), "what is read again says nothing new");
        last.begin(4, RecordIndex::new(160));
        assert_eq!((of(3).last(), of(4).last()), (Some(&216), Some(&159)));
        for generation in 5..8 {
            last.begin(generation, RecordIndex::new(155));
        }
        assert_eq!((of(3), of(7).last()), (vec![], Some(&154)), "some histories later");
        assert!(kept.0.lock().unwrap().len() <= FILE_BYTES);
    }

    #[test]
    fn who_knows_of_later_records_is_believed() {
        let digests = |upto: u64| -> Vec<Digest> {
            (1..=upto).map(|index| (RecordIndex::new(index), 0)).collect()
        };
        let mut bytes = Vec::new();
        encode(&vec![(1, digests(9)), (2, digests(5))], &mut bytes);
        let newest = |saved, generation| indexes(&known(&bytes, &digests(saved), generation)).len();
        assert_eq!(newest(7, 1), 9);
        assert_eq!(newest(7, 2), 7);
        assert_eq!(newest(7, 3), 7, "nothing is kept of that history");
        assert_eq!(known(b"", &digests(2), 1).len(), 2);
    }

    #[test]
    fn a_file_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-read/a-MDT0000");
        let (file, kept) = open(&path, false).unwrap();
        assert_eq!(decode(&kept), None);
        LastRead::new(0, Vec::new(), Box::new(file)).note(&batches(&[70])[0]);
        let (_, kept) = open(&path, true).unwrap();
        assert_eq!((kept.len(), known(&kept, &[], 0).len()), (FILE_BYTES, KEPT_DIGESTS));
    }

    proptest! {
        #[test]
        fn garbage_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..100_usize, flip in 1..=255_u8) {
            prop_assert_eq!(decode(&bytes), None);
            let history = (0..5).map(|i| (RecordIndex::new(i), 7)).collect();
            encode(&vec![(1, history)], &mut bytes);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert_eq!(decode(&bytes), None);
        }
    }
}
