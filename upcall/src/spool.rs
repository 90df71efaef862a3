//! The spool: a directory in which every request is a file of its own.
//!
//! ```text
//! SPOOL/tmp/   being written; nothing here counts
//! SPOOL/new/   whole and on disk: accepted
//! SPOOL/bad/   damaged, set aside by lcapd, each with a .reason
//! ```
//!
//! A file is written and synced in `tmp`, renamed into `new`, and `new` is synced. So whatever is in
//! `new` is whole, and a request is accepted if and only if its file gets there.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::request::Request;

/// Folder of accepted requests.
pub const NEW: &str = "new";
/// Folder of what is being written.
pub const TMP: &str = "tmp";
/// Folder of damaged files.
pub const BAD: &str = "bad";

/// Names a request, for good: when its upcall began, which process that was, and a number that
/// tells apart what would be the same.
///
/// An upcall that begins after another one has ended has the greater id, as long as the clock is
/// not set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Process id.
    pub pid: u32,
    /// From 0.
    pub count: u32,
}

impl RequestId {
    /// For this process, now.
    pub fn now() -> Self {
        Self { time_ns: now_ns(), pid: std::process::id(), count: 0 }
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}-{:04x}", self.time_ns, self.pid, self.count)
    }
}

/// Not a [`RequestId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a request's id")]
pub struct BadRequestId;

impl FromStr for RequestId {
    type Err = BadRequestId;

    fn from_str(text: &str) -> Result<Self, BadRequestId> {
        let parse = || {
            let mut parts = text.split('-');
            let time_ns = u64::from_str_radix(parts.next()?, 16).ok()?;
            let pid = u32::from_str_radix(parts.next()?, 16).ok()?;
            let count = u32::from_str_radix(parts.next()?, 16).ok()?;
            let id = Self { time_ns, pid, count };
            // One spelling only: the id of a file is its name.
            (parts.next().is_none() && id.to_string() == text).then_some(id)
        };
        parse().ok_or(BadRequestId)
    }
}

/// A request that could not be stored. Nothing of it is in the spool.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", path.display())]
pub struct SpoolError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> SpoolError {
    move |source| SpoolError { what, path: path.to_owned(), source: source.into() }
}

/// A request that is on disk.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its id, which is the file's name.
    pub id: RequestId,
    /// What the disk took.
    pub fsync: Duration,
}

/// Stores a request. It is on disk when this returns, whatever happens to the machine then.
///
/// # Errors
/// What went wrong; then there is no such request.
pub fn store(spool: &Path, request: &Request) -> Result<Stored, SpoolError> {
    let mut id = RequestId::now();
    let (tmp, new) = (spool.join(TMP), spool.join(NEW));
    // First of all, because afterwards there is no way to say no.
    let directory = File::open(&new).map_err(failed("open", &new))?;
    let (temporary, mut file) = loop {
        let path = tmp.join(id.to_string());
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => break (path, file),
            // Two name spaces of processes, one spool.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => id.count += 1,
            Err(error) => return Err(failed("create", &path)(error)),
        }
    };
    let guard = RemoveUnlessDone(Some(&temporary));
    file.write_all(&request.encode()).map_err(failed("write", &temporary))?;
    let before = Instant::now();
    file.sync_all().map_err(failed("sync", &temporary))?;
    let mut fsync = before.elapsed();
    let path = loop {
        let path = new.join(id.to_string());
        match renameat_with(CWD, &temporary, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => break path,
            Err(Errno::EXIST) => id.count += 1,
            Err(error) => return Err(failed("rename", &temporary)(error)),
        }
    };
    guard.done();
    let before = Instant::now();
    if let Err(error) = directory.sync_all() {
        // lcapd may have it already; then it is done, and the MDT's coordinator does it again.
        let _ = std::fs::remove_file(path);
        return Err(failed("sync", &new)(error));
    }
    fsync += before.elapsed();
    Ok(Stored { id, fsync })
}

struct RemoveUnlessDone<'a>(Option<&'a Path>);

impl RemoveUnlessDone<'_> {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveUnlessDone<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Action, Fid};

    fn request(oid: u32) -> Request {
        Request {
            action: Action::Archive,
            fsname: "lustre".into(),
            archive_id: 1,
            flags: 0,
            data: Vec::new(),
            fids: vec![Fid { seq: 1, oid, ver: 0 }],
        }
    }

    #[test]
    fn requests_lie_in_order_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [NEW, TMP] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let ids: Vec<RequestId> =
            (0..50).map(|oid| store(dir.path(), &request(oid)).unwrap().id).collect();
        let list = |folder| {
            let entries = std::fs::read_dir(dir.path().join(folder)).unwrap();
            let mut names: Vec<String> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(list(NEW), ids.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(list(TMP).len(), 0);
        for (oid, id) in (0..).zip(&ids) {
            let bytes = std::fs::read(dir.path().join(NEW).join(id.to_string())).unwrap();
            assert_eq!(Request::decode(&bytes), Ok(request(oid)));
            assert_eq!(id.to_string().parse(), Ok(*id));
        }
    }

    #[test]
    fn without_its_folders_there_is_no_spool() {
        let dir = tempfile::tempdir().unwrap();
        let error = store(dir.path(), &request(1)).unwrap_err().to_string();
        assert!(error.contains("cannot open") && error.contains("/new"), "{error}");
        std::fs::create_dir(dir.path().join(NEW)).unwrap();
        let error = store(dir.path(), &request(1)).unwrap_err().to_string();
        assert!(error.contains("cannot create") && error.contains("/tmp/"), "{error}");
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = RequestId { time_ns: 0xab, pid: 1, count: 2 };
        assert_eq!(id.to_string(), "00000000000000ab-00000001-0002");
        for bad in
            ["", "ab-1-2", "00000000000000AB-00000001-0002", "00000000000000ab-00000001-0002-"]
        {
            assert_eq!(bad.parse::<RequestId>(), Err(BadRequestId), "{bad}");
        }
    }
}
