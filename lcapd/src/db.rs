//! One redb file: opened by one lcapd at a time, of a known schema, written in whole transactions.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    WriteTransaction,
};
use tracing::error;

/// Pages that are kept in memory; redb would take a GiB, and all that is read is read once.
const CACHE_BYTES: usize = 32 << 20;

/// What is wrong with a file of state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory or file cannot be used.
    #[error("state in {}", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process has it open.
    #[error("state in {} is in use by another lcapd", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Written by a newer release.
    #[error(
        "state in {} has schema {found}, this release knows {known}: it was written by a newer release; install that again, or move the state away and register the readers anew",
        path.display()
    )]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// A commit failed; the file is as it was before.
    #[error("cannot write state")]
    Commit(#[from] Box<redb::Error>),
}

fn commit_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Commit(Box::new(error.into()))
}

/// Where a file says which version its tables have.
#[derive(Clone, Copy)]
pub struct Schema {
    /// The table.
    pub table: TableDefinition<'static, &'static str, u64>,
    /// The key in it.
    pub key: &'static str,
    /// The version that this release writes. A newer one is refused, an older one would be converted by who
    /// opens the file.
    pub version: u64,
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "schema {}", self.version)
    }
}

/// The open file.
#[derive(Debug)]
pub struct DbFile {
    path: PathBuf,
    /// None after a failed commit: redb then refuses everything until the file is opened again.
    db: Option<Database>,
}

impl DbFile {
    /// Opens or creates `dir/name`; `tables` makes those that are missing. With `take_over`, a process that
    /// still has the file open is one that may not write to it any more (see `lease.rs`): it keeps the
    /// old file, which nobody looks at again, and we go on with a copy.
    ///
    /// # Errors
    /// If it cannot be opened, is in use, damaged, or from a newer release.
    pub fn open(
        dir: &Path,
        name: &str,
        schema: Schema,
        take_over: bool,
        tables: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<Self, StoreError> {
        let path = dir.join(name);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(|error| failed(error.into()))?;
        survive(|| Self::open_at(path.clone(), schema, take_over, tables))
            .unwrap_or_else(|| Err(failed(DAMAGED.into())))
    }

    fn open_at(
        path: PathBuf,
        schema: Schema,
        take_over: bool,
        tables: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<Self, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.clone(),
            source,
        };
        let db = match create(&path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if take_over => {
                crate::lease::leave_behind(&path).map_err(|error| failed(error.into()))?;
                create(&path)
            }
            opened => opened,
        };
        let db = match db {
            Ok(db) => db,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(StoreError::InUse { path });
            }
            Err(error) => return Err(failed(error.into())),
        };
        let found = prepare(&db, schema, tables).map_err(|error| failed(error.into()))?;
        if found > schema.version {
            return Err(StoreError::Newer { path, found, known: schema.version });
        }
        Ok(Self { path, db: Some(db) })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<T, StoreError> {
        let failed = |source| StoreError::Open { path: self.path.clone(), source };
        let Some(db) = &self.db else { return Err(failed("it was not written".into())) };
        let tx = db.begin_read().map_err(|error| failed(error.into()))?;
        survive(|| read(&tx)).unwrap_or_else(|| Err(DAMAGED.into())).map_err(failed)
    }

    /// Writes all that `write` does or nothing; returns when it is on disk.
    ///
    /// # Errors
    /// If it could not be written (a full disk, say); it may be tried again.
    pub fn write(
        &mut self,
        write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => create(&self.path).map_err(commit_error)?,
        };
        let written = survive(|| {
            let tx = db.begin_write().map_err(commit_error)?;
            write(&tx).map_err(commit_error)?;
            tx.commit().map_err(commit_error)
        });
        let damaged = || StoreError::Open { path: self.path.clone(), source: DAMAGED.into() };
        match written.unwrap_or_else(|| Err(damaged())) {
            Ok(()) => self.db = Some(db),
            Err(error) => {
                let _ = survive(|| drop(db)); // the first error says more
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Closing a file writes to it.
impl Drop for DbFile {
    fn drop(&mut self) {
        let db = self.db.take();
        if survive(|| drop(db)).is_none() {
            error!(file = %self.path.display(), "{DAMAGED}");
        }
    }
}

/// What to do about a file in which nothing can be found again.
const DAMAGED: &str =
    "the file is damaged; move it away (readers must be registered anew) or take one from a backup";

/// redb checks its file when that was not closed, and otherwise trusts it: where bytes of it were changed, by a
/// broken disk say, it panics. `None` if it did; all that it had is gone then.
fn survive<T>(use_file: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(use_file)).ok()
}

fn create(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path)
}

fn prepare(
    db: &Database,
    schema: Schema,
    tables: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<u64, redb::Error> {
    let tx = db.begin_write()?;
    let found = {
        let mut table = tx.open_table(schema.table)?;
        let found = table.get(schema.key)?.map(|found| found.value());
        if let Some(newer) = found.filter(|&found| found > schema.version) {
            return Ok(newer); // and nothing is written
        }
        if found.is_none() {
            table.insert(schema.key, schema.version)?;
        }
        found.unwrap_or(schema.version)
    };
    tables(&tx)?;
    tx.commit()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    const SCHEMA: Schema = Schema { table: META, key: "schema", version: 3 };

    #[test]
    fn two_at_once_and_newer_schemas_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |schema| DbFile::open(dir.path(), "x.redb", schema, false, |_| Ok(()));
        let file = open(SCHEMA).unwrap();
        assert!(matches!(open(SCHEMA), Err(StoreError::InUse { .. })));
        drop(file);
        let older = Schema { version: 2, ..SCHEMA };
        assert!(matches!(open(older), Err(StoreError::Newer { found: 3, known: 2, .. })));
    }

    /// Bytes that fuzzing found: the number of pages, and the place of the newest commit.
    #[test]
    fn a_damaged_file_is_told() {
        for (at, byte) in [(0x10_0000, 0xff), (0x10, 2), (0x1000, 0xff)] {
            let dir = tempfile::tempdir().unwrap();
            let open = || DbFile::open(dir.path(), "x.redb", SCHEMA, false, |_| Ok(()));
            drop(open().unwrap());
            let path = dir.path().join("x.redb");
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            std::fs::write(&path, bytes).unwrap();
            let read = open().and_then(|file| {
                file.read(|tx| Ok(tx.open_table(META)?.get("schema")?.map(|v| v.value())))
            });
            assert!(matches!(read, Ok(_) | Err(StoreError::Open { .. })), "{at}: {read:?}");
        }
    }

    #[test]
    fn what_could_not_be_written_leaves_all_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = DbFile::open(dir.path(), "x.redb", SCHEMA, false, |_| Ok(())).unwrap();
        let put = |tx: &WriteTransaction, value| -> Result<(), redb::Error> {
            tx.open_table(META)?.insert("k", value)?;
            Ok(())
        };
        file.write(|tx| put(tx, 1)).unwrap();
        let failed = file.write(|tx| {
            put(tx, 2)?;
            Err(redb::Error::Io(std::io::ErrorKind::StorageFull.into()))
        });
        assert!(matches!(failed, Err(StoreError::Commit(_))));
        // Not before it was opened again, which the next write does.
        assert!(file.read(|_| Ok(())).is_err());
        file.write(|_| Ok(())).unwrap();
        let value = file.read(|tx| Ok(tx.open_table(META)?.get("k")?.map(|k| k.value())));
        assert_eq!(value.unwrap(), Some(1));
    }
}
