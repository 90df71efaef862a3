//! The lease as files in a directory that all lcapds see.
//!
//! A file `lease-N` for each *term*: the highest one belongs to who works now, and only that one writes to
//! it. Who takes over makes `lease-N+1`; of several that try, the file system lets one succeed. Nothing but the
//! creation of a file has to be atomic, so NFS and Lustre will do, and no lock can be left behind by a
//! node that hangs.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Holder, Place, RenewError, Seen};

/// The directory, and which of its files is ours.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    /// 0 if we have none.
    term: AtomicU64,
}

fn file_of(dir: &Path, term: u64) -> PathBuf {
    dir.join(format!("lease-{term:08}"))
}

fn terms(dir: &Path) -> io::Result<Vec<u64>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_prefix("lease-")?.parse().ok()).collect())
}

impl Files {
    /// In `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// The system's.
    pub fn new(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), term: AtomicU64::new(0) })
    }

    fn own(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }
}

impl Place for Files {
    fn look(&self) -> io::Result<Seen> {
        let Some(term) = terms(&self.dir)?.into_iter().max() else {
            return Ok(Seen { free: true, certain: true, ..Seen::default() });
        };
        let content = fs::read(file_of(&self.dir, term)).unwrap_or_default();
        Ok(Seen { term, content, free: false, certain: true })
    }

    fn take(&self, seen: &Seen, _: &Holder) -> io::Result<Option<u64>> {
        let Some(term) = seen.term.checked_add(1) else {
            return Err(io::Error::other(format!("{} has no successor", seen.term)));
        };
        match OpenOptions::new().write(true).create_new(true).open(file_of(&self.dir, term)) {
            Ok(_) => {
                self.term.store(term, Ordering::Release);
                Ok(Some(term))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn renew(&self, own: &Holder) -> Result<(), RenewError> {
        let mut file = OpenOptions::new().write(true).open(file_of(&self.dir, self.own()))?;
        let mut content = serde_json::to_vec(own).map_err(io::Error::from)?;
        content.resize(content.len().next_multiple_of(512), b' ');
        file.write_all(&content)?;
        file.sync_data()?;
        if self.is_taken() { Err(RenewError::Taken) } else { Ok(()) }
    }

    fn is_taken(&self) -> bool {
        self.own().checked_add(1).is_none_or(|next| file_of(&self.dir, next).exists())
    }

    fn is_ours(&self) {
        let term = self.own();
        for old in terms(&self.dir).unwrap_or_default() {
            if old < term.saturating_sub(1) {
                let _ = fs::remove_file(file_of(&self.dir, old));
            }
        }
    }

    fn may_come_back(&self) -> bool {
        false
    }
}
