//! What of the queue survives a restart: `hsm.redb` in the state directory.
//!
//! Written by the queue's thread, all that has gathered in one transaction, before anybody is told of
//! it. A request that cannot be read back is set aside, and everything else goes on.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lcap_upcall::spool::RequestId;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tracing::error;

use super::queue::{Changes, Meta, Saved};
use crate::store::StoreError;

/// Version of the tables below.
const SCHEMA: u64 = 1;

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

/// The open file.
#[derive(Debug)]
pub struct HsmStore {
    path: PathBuf,
    /// None after a failed commit: redb then refuses everything until the file is opened again.
    db: Option<Database>,
}

fn commit_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Commit(Box::new(error.into()))
}

impl HsmStore {
    /// Opens or creates `state_dir/hsm.redb` and reads all of it.
    ///
    /// # Errors
    /// If it cannot be opened, is in use, or from a newer release.
    pub fn open(state_dir: &Path) -> Result<(Self, Loaded), StoreError> {
        let path = state_dir.join("hsm.redb");
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(state_dir).map_err(|error| failed(error.into()))?;
        let db = match Database::create(&path) {
            Ok(db) => db,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(StoreError::InUse { path });
            }
            Err(error) => return Err(failed(error.into())),
        };
        let found = prepare(&db).map_err(|error| failed(error.into()))?;
        if found > SCHEMA {
            return Err(StoreError::Newer { path, found });
        }
        let (mut loaded, bad) = load(&db).map_err(|error| failed(error.into()))?;
        if !bad.is_empty() {
            set_aside(&db, &bad).map_err(|error| failed(error.into()))?;
            loaded.n_bad += bad.len() as u64;
        }
        Ok((Self { path, db: Some(db) }, loaded))
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
        let db = match self.db.take() {
            Some(db) => db,
            None => Database::create(&self.path).map_err(commit_error)?,
        };
        let tx = db.begin_write().map_err(commit_error)?;
        apply(&tx, changes, marks).map_err(commit_error)?;
        tx.commit().map_err(commit_error)?;
        self.db = Some(db);
        Ok(())
    }
}

fn prepare(db: &Database) -> Result<u64, redb::Error> {
    let tx = db.begin_write()?;
    let found = {
        let mut schemas = tx.open_table(SCHEMAS)?;
        let found = schemas.get("hsm")?.map(|found| found.value());
        if found.is_none() {
            schemas.insert("hsm", SCHEMA)?;
        }
        tx.open_table(META)?;
        tx.open_table(REQUESTS)?;
        tx.open_table(BAD)?;
        tx.open_table(TAKEN)?;
        found.unwrap_or(SCHEMA)
    };
    tx.commit()?;
    Ok(found)
}

fn load(db: &Database) -> Result<(Loaded, Vec<u64>), redb::Error> {
    let tx = db.begin_read()?;
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

fn set_aside(db: &Database, ids: &[u64]) -> Result<(), redb::Error> {
    let tx = db.begin_write()?;
    {
        let (mut requests, mut bad) = (tx.open_table(REQUESTS)?, tx.open_table(BAD)?);
        for id in ids {
            if let Some(value) = requests.remove(id)? {
                bad.insert(id, value.value())?;
            }
        }
    }
    tx.commit()?;
    Ok(())
}

fn apply(
    tx: &redb::WriteTransaction,
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
        let (mut store, loaded) = HsmStore::open(dir.path()).unwrap();
        assert!(loaded.requests.is_empty());
        let now = Duration::from_secs(9);
        let mut queue = Queue::new(Settings::default());
        for oid in 1..=5 {
            let fid = Fid { seq: 1, oid, ver: 0 };
            let mdt = "l-MDTffff".into();
            let mut request = Request::new(Source::Upcall, mdt, Kind::Archive, fid, 1);
            request.data = Box::from(&b"\xff\0tag"[..]);
            queue.admit(request, Arrival::Sent, now);
        }
        let marks = SpoolMarks { taken: vec![spool_id(1), spool_id(2)], gone: Vec::new() };
        store.commit(queue.take_changes().as_ref(), &marks).unwrap();
        queue.cancel(2, now);
        let marks = SpoolMarks { taken: Vec::new(), gone: vec![spool_id(1)] };
        store.commit(queue.take_changes().as_ref(), &marks).unwrap();

        let tx = store.db.as_ref().unwrap().begin_write().unwrap();
        tx.open_table(REQUESTS).unwrap().insert(4, &b"{\"request\":"[..]).unwrap();
        tx.commit().unwrap();
        drop(store);
        for _ in 0..2 {
            let (store, loaded) = HsmStore::open(dir.path()).unwrap();
            let ids: Vec<u64> = loaded.requests.iter().map(|(id, _)| *id).collect();
            assert_eq!((ids, loaded.n_bad), (vec![1, 3, 5], 1));
            assert_eq!(loaded.taken, BTreeSet::from([spool_id(2)]));
            assert_eq!(loaded.meta.next_id, 6);
            assert_eq!(&*loaded.requests[0].1.request.data, b"\xff\0tag");
            drop(store);
        }
    }
}
