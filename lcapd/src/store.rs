//! What survives a restart: readers, their watermarks, how far each stream and MDT is.
//!
//! One redb file. The engine never waits for it: changes go to the store's thread, which commits
//! what has gathered (one fsync for all of it) and says when it is on disk. Nothing is cleared on an
//! MDT, and no registration answered, before that.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use lcap_ffi::RecordIndex;
use redb::{ReadTransaction, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::db::{DbFile, Schema, StoreError};
use crate::overlap::Digest;

/// Version of the tables below.
const SCHEMA: Schema = Schema { table: META, key: "schema", version: 1 };

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// MDT → [`MdtState`] as JSON.
const MDTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("mdts");
/// `stream NUL mdt` → index: a broadcast stream's `low`, a queue's watermark.
const STREAMS: TableDefinition<'_, &str, u64> = TableDefinition::new("streams");
/// `stream NUL reader` → [`ReaderState`] as JSON.
const READERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("readers");
/// `stream NUL reader NUL mdt` → watermark.
const WATERMARKS: TableDefinition<'_, &str, u64> = TableDefinition::new("watermarks");

/// What is kept of an MDT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdtState {
    /// The MDT has confirmed that it may forget up to here.
    pub cleared: u64,
    /// The MDT may have been told to forget up to here: noted before it is told, so that it is
    /// never told less after a crash in between.
    #[serde(default)]
    pub clearing: u64,
    /// Its present history.
    pub generation: u16,
    /// For each generation after the first: the lowest index that it issued again.
    #[serde(default)]
    pub rewinds: Vec<u64>,
}

/// MDT → index and digest of the records read last, as JSON.
const TAILS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tails");

/// What is kept of a reader, besides its watermarks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderState {
    /// Names of the record types that it wants; all if empty.
    #[serde(default)]
    pub mask: Vec<String>,
    /// It was idle and far behind for too long: it holds nothing until registered again.
    #[serde(default)]
    pub suspended: bool,
}

/// Stream and reader.
pub type ReaderKey = (String, String);

/// Everything that was on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// By MDT name.
    pub mdts: BTreeMap<String, MdtState>,
    /// Digests of the records read last, by MDT name.
    pub tails: BTreeMap<String, Vec<Digest>>,
    /// By stream and MDT.
    pub streams: BTreeMap<(String, String), RecordIndex>,
    /// By stream and reader.
    pub readers: BTreeMap<ReaderKey, ReaderState>,
    /// By stream, reader and MDT.
    pub watermarks: BTreeMap<(String, String, String), RecordIndex>,
}

/// One thing to write. Later changes of the same thing replace earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// State of an MDT.
    Mdt(String, MdtState),
    /// The records of an MDT that were read last.
    Tail(String, Vec<Digest>),
    /// How far a stream is with an MDT.
    Stream(String, String, RecordIndex),
    /// A reader was registered or changed.
    Reader(ReaderKey, ReaderState),
    /// A reader was removed, with all its watermarks.
    ReaderGone(ReaderKey),
    /// A reader's watermark on an MDT.
    Watermark(ReaderKey, String, RecordIndex),
}

/// The open store.
#[derive(Debug)]
pub struct Store(DbFile);

impl Store {
    /// Opens or creates `state_dir/lcapd.redb` and reads all of it; `take_over` as in [`DbFile::open`].
    ///
    /// # Errors
    /// If it cannot be opened, is in use, damaged, or from a newer release.
    pub fn open(state_dir: &Path, take_over: bool) -> Result<(Self, Saved), StoreError> {
        let file = DbFile::open(state_dir, "lcapd.redb", SCHEMA, take_over, |tx| {
            tx.open_table(MDTS)?;
            tx.open_table(TAILS)?;
            tx.open_table(STREAMS)?;
            tx.open_table(READERS)?;
            tx.open_table(WATERMARKS)?;
            Ok(())
        })?;
        let saved = file.read(load)?;
        Ok((Self(file), saved))
    }

    /// Writes all of `changes` or nothing; returns when it is on disk.
    ///
    /// # Errors
    /// If it could not be written (a full disk, say); it may be tried again.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.0.write(|tx| apply(tx, changes))
    }
}

fn load(tx: &ReadTransaction) -> Result<Saved, Box<dyn std::error::Error + Send + Sync>> {
    let mut saved = Saved::default();
    for row in tx.open_table(MDTS)?.iter()? {
        let (key, value) = row?;
        saved.mdts.insert(key.value().to_owned(), serde_json::from_slice(value.value())?);
    }
    for row in tx.open_table(TAILS)?.iter()? {
        let (key, value) = row?;
        let tail: Vec<(u64, u32)> = serde_json::from_slice(value.value())?;
        let tail = tail.into_iter().map(|(index, crc)| (RecordIndex::new(index), crc));
        saved.tails.insert(key.value().to_owned(), tail.collect());
    }
    for row in tx.open_table(STREAMS)?.iter()? {
        let (key, value) = row?;
        if let Some((stream, mdt)) = key.value().split_once('\0') {
            let key = (stream.to_owned(), mdt.to_owned());
            saved.streams.insert(key, RecordIndex::new(value.value()));
        }
    }
    for row in tx.open_table(READERS)?.iter()? {
        let (key, value) = row?;
        if let Some((stream, reader)) = key.value().split_once('\0') {
            let key = (stream.to_owned(), reader.to_owned());
            saved.readers.insert(key, serde_json::from_slice(value.value())?);
        }
    }
    for row in tx.open_table(WATERMARKS)?.iter()? {
        let (key, value) = row?;
        let mut parts = key.value().splitn(3, '\0').map(str::to_owned);
        if let (Some(stream), Some(reader), Some(mdt)) = (parts.next(), parts.next(), parts.next())
        {
            let index = RecordIndex::new(value.value());
            saved.watermarks.insert((stream, reader, mdt), index);
        }
    }
    Ok(saved)
}

fn apply(tx: &redb::WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    let json = |value: &dyn erased::Json| value.bytes();
    let mut mdts = tx.open_table(MDTS)?;
    let mut tails = tx.open_table(TAILS)?;
    let mut streams = tx.open_table(STREAMS)?;
    let mut readers = tx.open_table(READERS)?;
    let mut watermarks = tx.open_table(WATERMARKS)?;
    for change in changes {
        match change {
            Change::Mdt(mdt, state) => {
                mdts.insert(mdt.as_str(), json(state).as_slice())?;
            }
            Change::Tail(mdt, tail) => {
                let tail: Vec<(u64, u32)> =
                    tail.iter().map(|(index, crc)| (index.get(), *crc)).collect();
                tails.insert(mdt.as_str(), json(&tail).as_slice())?;
            }
            Change::Stream(stream, mdt, index) => {
                streams.insert(format!("{stream}\0{mdt}").as_str(), index.get())?;
            }
            Change::Reader((stream, reader), state) => {
                let key = format!("{stream}\0{reader}");
                readers.insert(key.as_str(), json(state).as_slice())?;
            }
            Change::ReaderGone((stream, reader)) => {
                let key = format!("{stream}\0{reader}");
                readers.remove(key.as_str())?;
                let (from, to) = (format!("{key}\0"), format!("{key}\u{1}"));
                watermarks.retain_in(from.as_str()..to.as_str(), |_, _| false)?;
            }
            Change::Watermark((stream, reader), mdt, index) => {
                let key = format!("{stream}\0{reader}\0{mdt}");
                watermarks.insert(key.as_str(), index.get())?;
            }
        }
    }
    Ok(())
}

/// Serialising plain structs cannot fail; one place says so.
mod erased {
    use serde::Serialize;

    pub(super) trait Json {
        fn bytes(&self) -> Vec<u8>;
    }

    impl<T: Serialize> Json for T {
        fn bytes(&self) -> Vec<u8> {
            serde_json::to_vec(self).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stream: &str, reader: &str) -> ReaderKey {
        (stream.to_owned(), reader.to_owned())
    }

    #[test]
    fn what_was_committed_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, saved) = Store::open(dir.path(), false).unwrap();
        assert_eq!(saved, Saved::default());
        let mdt = MdtState { cleared: 7, clearing: 9, generation: 1, rewinds: vec![3] };
        let tail = vec![(RecordIndex::new(7), 9)];
        store
            .commit(&[
                Change::Mdt("a-MDT0000".into(), mdt.clone()),
                Change::Tail("a-MDT0000".into(), tail.clone()),
                Change::Stream("s".into(), "a-MDT0000".into(), RecordIndex::new(9)),
                Change::Reader(key("s", "r"), ReaderState::default()),
                Change::Watermark(key("s", "r"), "a-MDT0000".into(), RecordIndex::new(5)),
                Change::Reader(key("s", "r2"), ReaderState::default()),
                Change::Watermark(key("s", "r2"), "a-MDT0000".into(), RecordIndex::new(6)),
            ])
            .unwrap();
        store.commit(&[Change::ReaderGone(key("s", "r"))]).unwrap();
        drop(store);
        let (_store, saved) = Store::open(dir.path(), false).unwrap();
        assert_eq!(saved.mdts["a-MDT0000"], mdt);
        assert_eq!(saved.tails["a-MDT0000"], tail);
        assert_eq!(saved.streams[&key("s", "a-MDT0000")], RecordIndex::new(9));
        assert_eq!(saved.readers.keys().collect::<Vec<_>>(), [&key("s", "r2")]);
        let mark = ("s".to_owned(), "r2".to_owned(), "a-MDT0000".to_owned());
        assert_eq!(saved.watermarks, BTreeMap::from([(mark, RecordIndex::new(6))]));
    }

    #[test]
    fn who_lost_the_lease_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut old, _) = Store::open(dir.path(), false).unwrap();
        let stream =
            |index| [Change::Stream("s".into(), "a-MDT0000".into(), RecordIndex::new(index))];
        old.commit(&stream(1)).unwrap();
        let (mut new, saved) = Store::open(dir.path(), true).unwrap();
        assert_eq!(saved.streams.values().next(), Some(&RecordIndex::new(1)));
        old.commit(&stream(2)).unwrap();
        new.commit(&stream(3)).unwrap();
        drop((old, new));
        let (_, saved) = Store::open(dir.path(), false).unwrap();
        assert_eq!(saved.streams.values().next(), Some(&RecordIndex::new(3)));
    }
}
