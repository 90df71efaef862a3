//! What of the queue survives a restart: `hsm.redb` in the state directory.
//!
//! Written by the queue's thread, all that has gathered in one transaction, before anybody is told of
//! it. A request that cannot be read back is set aside, and everything else goes on.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use lcap_upcall::spool::RequestId;
use redb::{ReadTransaction, ReadableTable as _, TableDefinition, WriteTransaction};
use tracing::error;

use super::queue::{Changes, Meta, Saved};
use super::redis_store::RedisStore;
use crate::db::{DbFile, Schema, StoreError};
use crate::reader::chain;

const SCHEMA: Schema = Schema { table: SCHEMAS, key: "hsm", version: 1 };
/// Version of the tables below.
const SCHEMAS: TableDefinition<'_, &str, u64> = TableDefinition::new("schema");
/// [`Meta`] as JSON, under "meta".
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Id → [`Saved`] as JSON.
const REQUESTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("requests");
/// Requests that could not be read back.
const BAD: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bad");
/// Files of the spool that are in the queue and perhaps still in the spool.
const TAKEN: TableDefinition<'_, &str, ()> = TableDefinition::new("taken");

/// What was on disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Besides requests.
    pub meta: Meta,
    /// In the order of ids.
    pub requests: Vec<(u64, Saved)>,
    /// Files of the spool that are in the queue already.
    pub taken: BTreeSet<RequestId>,
    /// How many requests could not be read, now or before.
    pub n_bad: u64,
}

/// Files of the spool, as far as they concern a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolMarks {
    /// Their requests are in this commit.
    pub taken: Vec<RequestId>,
    /// They are gone from the spool for good.
    pub gone: Vec<RequestId>,
}

impl SpoolMarks {
    /// Nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.gone.is_empty()
    }
}

/// Where the queue is kept.
#[derive(Debug)]
pub enum Kept {
    /// In the state directory.
    File(HsmStore),
    /// In Redis.
    Redis(Box<RedisStore>),
}

impl Kept {
    /// Writes all of it or nothing; returns when it is safe. The error is for people.
    ///
    /// # Errors
    /// If it could not be written; it may be tried again.
    pub fn commit(&mut self, changes: Option<&Changes>, marks: &SpoolMarks) -> Result<(), String> {
        match self {
            Self::File(file) => file.commit(changes, marks).map_err(|error| chain(&error)),
            Self::Redis(redis) => redis.commit(changes, marks).map_err(|error| chain(&error)),
        }
    }
}

/// The open file.
#[derive(Debug)]
pub struct HsmStore(DbFile);

impl HsmStore {
    /// Opens or creates `state_dir/hsm.redb` and reads all of it; `take_over` as in [`DbFile::open`].
    ///
    /// # Errors
    /// If it cannot be opened, is in use, or from a newer release.
    pub fn open(state_dir: &Path, take_over: bool) -> Result<(Self, Loaded), StoreError> {
        let mut file = DbFile::open(state_dir, "hsm.redb", SCHEMA, take_over, |tx| {
            tx.open_table(META)?;
            tx.open_table(REQUESTS)?;
            tx.open_table(BAD)?;
            tx.open_table(TAKEN)?;
            Ok(())
        })?;
        let (mut loaded, bad) = file.read(|tx| load(tx).map_err(Into::into))?;
        if !bad.is_empty() {
            file.write(|tx| set_aside(tx, &bad))?;
            loaded.n_bad += bad.len() as u64;
        }
        Ok((Self(file), loaded))
    }

    /// Writes all of it or nothing; returns when it is on disk.
    ///
    /// # Errors
    /// If it could not be written (a full disk, say); it may be tried again.
    pub fn commit(
        &mut self,
        changes: Option<&Changes>,
        marks: &SpoolMarks,
    ) -> Result<(), StoreError> {
        self.0.write(|tx| apply(tx, changes, marks))
    }
}

fn load(tx: &ReadTransaction) -> Result<(Loaded, Vec<u64>), redb::Error> {
    let (mut loaded, mut bad) = (Loaded::default(), Vec::new());
    if let Some(meta) = tx.open_table(META)?.get("meta")? {
        // Ids come back with their requests; what is locked would be lost.
        loaded.meta = serde_json::from_slice(meta.value()).unwrap_or_else(|problem| {
            error!(%problem, "hsm.redb: locks cannot be read and are gone");
            Meta::default()
        });
    }
    for row in tx.open_table(REQUESTS)?.iter()? {
        let (id, value) = row?;
        match serde_json::from_slice(value.value()) {
            Ok(saved) => loaded.requests.push((id.value(), saved)),
            Err(problem) => {
                let id = id.value();
                error!(id, %problem, "hsm.redb: a request cannot be read and is set aside");
                bad.push(id);
            }
        }
    }
    for row in tx.open_table(TAKEN)?.iter()? {
        loaded.taken.extend(row?.0.value().parse::<RequestId>());
    }
    for row in tx.open_table(BAD)?.iter()? {
        // Their ids are not given out again either.
        loaded.meta.next_id = loaded.meta.next_id.max(row?.0.value() + 1);
        loaded.n_bad += 1;
    }
    if let Some(highest) = bad.last() {
        loaded.meta.next_id = loaded.meta.next_id.max(highest + 1);
    }
    Ok((loaded, bad))
}

fn set_aside(tx: &WriteTransaction, ids: &[u64]) -> Result<(), redb::Error> {
    let (mut requests, mut bad) = (tx.open_table(REQUESTS)?, tx.open_table(BAD)?);
    for id in ids {
        if let Some(value) = requests.remove(id)? {
            bad.insert(id, value.value())?;
        }
    }
    Ok(())
}

fn apply(
    tx: &WriteTransaction,
    changes: Option<&Changes>,
    marks: &SpoolMarks,
) -> Result<(), redb::Error> {
    let mut taken = tx.open_table(TAKEN)?;
    for id in &marks.taken {
        taken.insert(id.to_string().as_str(), ())?;
    }
    for id in &marks.gone {
        taken.remove(id.to_string().as_str())?;
    }
    let Some(changes) = changes else { return Ok(()) };
    let mut requests = tx.open_table(REQUESTS)?;
    for (id, saved) in &changes.requests {
        match saved {
            // Plain structs: their JSON cannot fail.
            Some(saved) => {
                let json = serde_json::to_vec(saved).unwrap_or_default();
                requests.insert(id, json.as_slice())?;
            }
            None => {
                requests.remove(id)?;
            }
        }
    }
    let meta = serde_json::to_vec(&changes.meta).unwrap_or_default();
    tx.open_table(META)?.insert("meta", meta.as_slice())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lcap_ffi::Fid;

    use super::*;
    use crate::hsm::queue::{Arrival, Queue, Settings};
    use crate::hsm::request::{Kind, Request, Source};

    fn spool_id(time_ns: u64) -> RequestId {
        RequestId { time_ns, pid: 1, count: 0 }
    }

    #[test]
    fn the_queue_comes_back_in_order_without_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, loaded) = HsmStore::open(dir.path(), false).unwrap();
        assert!(loaded.requests.is_empty());
        let now = Duration::from_secs(9);
        let mut queue = Queue::new(Settings::default());
        for oid in 1..=5 {
            let fid = Fid { seq: 1, oid, ver: 0 };
            let mdt = "l-MDTffff".into();
            let mut request = Request::new(Source::Upcall, mdt, Kind::Archive, fid, 1);
            request.data = b"\xff\0tag"[..].into();
            queue.admit(request, Arrival::Sent, now);
        }
        let marks = SpoolMarks { taken: vec![spool_id(1), spool_id(2)], gone: Vec::new() };
        store.commit(queue.take_changes().as_ref(), &marks).unwrap();
        queue.cancel(2, now);
        let marks = SpoolMarks { taken: Vec::new(), gone: vec![spool_id(1)] };
        store.commit(queue.take_changes().as_ref(), &marks).unwrap();

        let damage = &b"{\"request\":"[..];
        store.0.write(|tx| Ok(tx.open_table(REQUESTS)?.insert(4, damage).map(drop)?)).unwrap();
        drop(store);
        for _ in 0..2 {
            let (store, loaded) = HsmStore::open(dir.path(), false).unwrap();
            let ids: Vec<u64> = loaded.requests.iter().map(|(id, _)| *id).collect();
            assert_eq!((ids, loaded.n_bad), (vec![1, 3, 5], 1));
            assert_eq!(loaded.taken, BTreeSet::from([spool_id(2)]));
            assert_eq!(loaded.meta.next_id, 6);
            assert_eq!(&*loaded.requests[0].1.request.data, b"\xff\0tag");
            drop(store);
        }
    }
}
