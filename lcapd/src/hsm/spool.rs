//! Takes the upcall's requests in: each once, in their order, also after a crash at any point.
//!
//! 1. Files are read in the order of their names. What is no request is set aside.
//! 2. Their requests and their names go to disk in one transaction.
//! 3. The files are removed, and the directory is synced.
//! 4. The names are forgotten.
//!
//! A file that is there after a crash between 2 and 3 has its name on disk: it is removed only. The name
//! stays until the file cannot come back, not even by a crash of the machine.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::bounded;
use lcap_ffi::Fid;
use lcap_upcall::request::{MAX_FILE_BYTES, Request as Upcall};
use lcap_upcall::spool::{BAD, NEW, RequestId, TMP};
use rustix::fs::inotify;
use tracing::{error, info, warn};

use super::owner::{Owner, Owners};
use super::queue::{Arrival, Queue};
use super::request::{Kind, Request, Source};
use super::scheduler::Now;
use super::service::Handle;
use crate::wake::Waker;

/// Files in one transaction.
const FILES: usize = 512;
/// A directory that says nothing is looked at all the same (an event may be lost, a disk may be
/// full for a time).
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// What an upcall was writing for longer was left by one that was killed.
const STALE: Duration = Duration::from_secs(3600);

/// Figures.
#[derive(Debug, Default)]
pub struct Stats {
    /// Files taken in.
    pub files: AtomicU64,
    /// Files set aside.
    pub bad: AtomicU64,
    /// Files that lie there.
    pub waiting: AtomicU64,
}

/// The thread.
#[derive(Debug)]
pub struct Intake {
    /// The spool.
    pub dir: PathBuf,
    /// The queue.
    pub queue: Handle,
    /// Looks up whose files are.
    pub owners: Option<Owners>,
    /// Files whose requests are in the queue.
    pub taken: BTreeSet<RequestId>,
    /// Figures.
    pub stats: Arc<Stats>,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

/// Makes what is missing of a spool.
///
/// # Errors
/// Of the file system.
pub fn create(dir: &Path) -> io::Result<()> {
    for folder in [NEW, TMP, BAD] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join(folder))?;
    }
    Ok(())
}

enum Gone {
    /// lcapd stops.
    Stopping,
    /// For the log; it is tried again.
    Trouble(io::Error),
}

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        Self::Trouble(error)
    }
}

impl Intake {
    /// Takes requests in until told to stop.
    pub fn run(&mut self) {
        self.clean();
        let mut watch = None;
        let mut trouble = false;
        while !self.stop.load(Ordering::Relaxed) {
            // First the watch, then the look: what comes in between is seen by both.
            if watch.is_none() {
                watch = self.watch().inspect_err(|error| warn!(%error, "no inotify")).ok();
            }
            if let Some(fd) = &watch {
                drain(fd);
            }
            match self.take_all() {
                Ok(()) => trouble = false,
                Err(Gone::Stopping) => return,
                Err(Gone::Trouble(error)) => {
                    if !trouble {
                        error!(%error, spool = %self.dir.display(), "cannot take requests in");
                    }
                    trouble = true;
                }
            }
            let wait = if trouble || watch.is_none() { Duration::from_secs(1) } else { LOOK_AGAIN };
            let fd = watch.as_ref().map(|fd| fd.as_raw_fd());
            let stop = &self.stop;
            self.waker.sleep(fd, Some(Instant::now() + wait), || stop.load(Ordering::Relaxed));
        }
    }

    fn watch(&self) -> io::Result<OwnedFd> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags)?;
        let what = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE;
        inotify::add_watch(&fd, self.dir.join(NEW), what)?;
        Ok(fd)
    }

    /// Until there is nothing more.
    fn take_all(&mut self) -> Result<(), Gone> {
        loop {
            let files = self.list()?;
            self.stats.waiting.store(files.len() as u64, Ordering::Relaxed);
            if files.is_empty() {
                return Ok(());
            }
            for files in files.chunks(FILES) {
                self.take(files)?;
            }
        }
    }

    /// What lies there, in order. What bears no request's name is set aside.
    fn list(&self) -> io::Result<Vec<RequestId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.dir.join(NEW))? {
            let name = entry?.file_name();
            match name.to_str().and_then(|name| name.parse().ok()) {
                Some(id) => ids.push(id),
                None => self.set_aside(Path::new(&name), "not a name that an upcall gives")?,
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    fn take(&mut self, files: &[RequestId]) -> Result<(), Gone> {
        let mut read: Vec<(RequestId, Upcall, Vec<Owner>)> = Vec::new();
        for id in files.iter().filter(|id| !self.taken.contains(id)) {
            let path = self.dir.join(NEW).join(id.to_string());
            match read_file(&path) {
                Ok(Ok(request)) => {
                    let fids = request.fids.iter().copied().map(fid_of);
                    let owners = self.owners.as_ref();
                    let owners = owners.map(|owners| fids.map(|fid| owners.of(fid)).collect());
                    read.push((*id, request, owners.unwrap_or_default()));
                }
                Ok(Err(problem)) => self.set_aside(Path::new(&id.to_string()), &problem)?,
                // An upcall that could not sync has taken it back.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ids: Vec<RequestId> = read.iter().map(|(id, ..)| *id).collect();
        let n = ids.len() as u64;
        if n > 0 {
            let (stored, is_stored) = bounded(1);
            let marks = ids.clone();
            self.queue.call(move |core, now| {
                for (id, upcall, owners) in &read {
                    admit(&mut core.queue, *id, upcall, owners, now);
                }
                core.spool_marks.taken.extend(marks);
                core.after_commit.push(Box::new(move || {
                    let _ = stored.send(());
                }));
            });
            // The sender is dropped unsent if the queue's thread ends first.
            is_stored.recv().map_err(|_| Gone::Stopping)?;
            self.taken.extend(&ids);
            self.stats.files.fetch_add(n, Ordering::Relaxed);
        }
        self.remove(files)
    }

    /// Removes files whose requests are in the queue.
    fn remove(&mut self, files: &[RequestId]) -> Result<(), Gone> {
        let new = self.dir.join(NEW);
        let gone: Vec<RequestId> =
            files.iter().filter(|id| self.taken.contains(id)).copied().collect();
        if gone.is_empty() {
            return Ok(());
        }
        for id in &gone {
            match fs::remove_file(new.join(id.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        File::open(&new)?.sync_all()?;
        for id in &gone {
            self.taken.remove(id);
        }
        self.queue.call(move |core, _| core.spool_marks.gone.extend(gone));
        Ok(())
    }

    /// Into `bad`, with the reason beside it.
    fn set_aside(&self, name: &Path, problem: &str) -> io::Result<()> {
        let (from, to) = (self.dir.join(NEW).join(name), self.dir.join(BAD).join(name));
        error!(file = %to.display(), problem, "a file of the spool is no request and is set aside");
        let mut reason = to.clone().into_os_string();
        reason.push(".reason");
        writeln!(File::create(reason)?, "{problem}")?;
        fs::rename(from, to)?;
        self.stats.bad.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes what killed upcalls have left; forgets files that are gone.
    fn clean(&mut self) {
        let now = SystemTime::now();
        let stale = |entry: &fs::DirEntry| {
            let modified = entry.metadata().and_then(|meta| meta.modified());
            modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > STALE))
        };
        let entries = fs::read_dir(self.dir.join(TMP)).into_iter().flatten().flatten();
        for entry in entries.filter(stale) {
            info!(file = %entry.path().display(), "left by an upcall that did not finish; removed");
            let _ = fs::remove_file(entry.path());
        }
        let there = |id: &RequestId| self.dir.join(NEW).join(id.to_string()).exists();
        let gone: Vec<RequestId> = self.taken.iter().filter(|id| !there(id)).copied().collect();
        let synced = File::open(self.dir.join(NEW)).and_then(|new| new.sync_all());
        if synced.is_ok() && !gone.is_empty() {
            self.taken.retain(|id| !gone.contains(id));
            self.queue.call(move |core, _| core.spool_marks.gone.extend(gone));
        }
    }
}

/// The request in a file, or what is wrong with it.
fn read_file(path: &Path) -> io::Result<Result<Upcall, String>> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Ok(Err("not a plain file".to_owned()));
    }
    if meta.len() > MAX_FILE_BYTES as u64 {
        return Ok(Err(format!("{} bytes are too many for a request", meta.len())));
    }
    Ok(Upcall::decode(&fs::read(path)?).map_err(|error| error.to_string()))
}

fn drain(fd: &OwnedFd) {
    let mut events = [0; 16 << 10];
    while rustix::io::read(fd, &mut events).is_ok_and(|n| n > 0) {}
}

/// The upcall's own type, because it links nothing of ours.
fn fid_of(fid: lcap_upcall::request::Fid) -> Fid {
    Fid { seq: fid.seq, oid: fid.oid, ver: fid.ver }
}

/// Puts an upcall's request into the queue, a request for each file.
fn admit(queue: &mut Queue, id: RequestId, upcall: &Upcall, owners: &[Owner], now: Now) {
    let mdt: Arc<str> = format!("{}-MDTffff", upcall.fsname).into();
    let fids = upcall.fids.iter().copied().map(fid_of);
    let Some(kind) = Kind::from_number(upcall.action as u32) else {
        let ids: Vec<u64> = fids.flat_map(|fid| queue.of_file(&mdt, fid)).collect();
        for id in ids {
            queue.cancel(id, now);
        }
        return;
    };
    for (nth, fid) in fids.enumerate() {
        let mdt = Arc::clone(&mdt);
        let mut request = Request::new(Source::Upcall, mdt, kind, fid, upcall.archive_id);
        request.flags = upcall.flags;
        request.data = upcall.data.as_slice().into();
        request.received_ns = id.time_ns;
        owners.get(nth).copied().unwrap_or(Owner::UNKNOWN).put(&mut request);
        queue.admit(request, Arrival::Sent, now);
    }
}

#[cfg(test)]
mod tests {
    use lcap_ffi::hsm::HsmAction;
    use lcap_upcall::request::Action;

    #[test]
    fn the_upcall_has_the_same_words_and_numbers_for_actions() {
        for action in Action::ALL {
            let ours = HsmAction::from_number(action as u32).unwrap();
            assert_eq!((ours.name(), ours.number()), (action.name(), action as u32));
        }
    }
}
