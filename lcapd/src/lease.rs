//! Which of several lcapds works, when more than one is there for the same MDTs.
//!
//! They share `state_dir`. In it lie files `lease-N`, one for each *term*: the highest one
//! belongs to who works now, and only that one writes to it, a few times per lease. Who waits reads it,
//! and when it has not changed for a lease, or says that it was given back, makes `lease-N+1`;
//! of several that try, the file system lets one succeed. Nothing but the creation of a file has to be
//! atomic, so NFS and Lustre will do, and no lock can be left behind by a node that hangs.
//!
//! The old one may only be slow (stopped, swapped out, cut off from the storage). So it looks for a
//! higher term after each renewal, counts the lease from before that renewal, and neither clears nor
//! commits when it has run out; and the new one waits for a lease, after it made its file, before
//! it begins. Both go by their own clock, and need it to run only about as fast as the other's.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

/// Renewals per lease.
const RENEWALS: u32 = 5;

/// The right to work. Cloned to whoever must ask before it does something for good.
#[derive(Clone, Debug)]
pub struct Lease(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    next: PathBuf,
    own: Holder,
    length: Duration,
    /// On [`now`]'s clock, in milliseconds.
    valid_until_ms: AtomicU64,
    released: AtomicBool,
}

/// What a lease file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Host, for people.
    host: String,
    /// Which processes the holder's `pid` is comparable with.
    space: String,
    pid: u32,
    beat: u64,
    released: bool,
}

/// Time that also passes while the machine or this process sleeps.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Holder {
    fn own() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let boot = read("/proc/sys/kernel/random/boot_id");
        Self {
            host: read("/proc/sys/kernel/hostname"),
            space: format!("{boot} {}", namespace.display()),
            pid: std::process::id(),
            beat: 0,
            released: false,
        }
    }

    /// It gave the lease back, or died where we can see it.
    fn is_gone(&self, own: &Self) -> bool {
        let here = self.space == own.space && self.pid != own.pid;
        self.released || here && !Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

fn file_of(dir: &Path, term: u64) -> PathBuf {
    dir.join(format!("lease-{term:08}"))
}

fn terms(dir: &Path) -> io::Result<Vec<u64>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_prefix("lease-")?.parse().ok()).collect())
}

impl Lease {
    /// For an lcapd that shares its state with nobody: always valid.
    pub fn not_needed() -> Self {
        Self(None)
    }

    /// Waits until this lcapd is the one that works; asks `give_up` meanwhile. `None` if it said so.
    ///
    /// # Errors
    /// If `dir` cannot be read or written.
    pub fn acquire(
        dir: &Path,
        length: Duration,
        mut give_up: impl FnMut() -> bool,
    ) -> io::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        let own = Holder::own();
        let pause = (length / 20).clamp(Duration::from_millis(5), Duration::from_millis(250));
        let mut seen: Option<(u64, Vec<u8>)> = None;
        let mut since = now();
        let (term, at_once) = loop {
            let newest = terms(dir)?.into_iter().max();
            let content = newest.map(|term| fs::read(file_of(dir, term)).unwrap_or_default());
            let holder: Option<Holder> =
                content.as_deref().and_then(|content| serde_json::from_slice(content).ok());
            let gone = newest.is_none() || holder.as_ref().is_some_and(|h| h.is_gone(&own));
            let present = newest.zip(content);
            if seen != present {
                if seen.is_none() && !gone {
                    let host = holder.map(|holder| holder.host).unwrap_or_default();
                    info!(host, "another lcapd is at work; standing by");
                }
                (seen, since) = (present, now());
            }
            if gone || now() > since + length {
                let term = newest.map_or(1, |term| term + 1);
                match OpenOptions::new().write(true).create_new(true).open(file_of(dir, term)) {
                    Ok(_) => break (term, gone),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
            if give_up() {
                return Ok(None);
            }
            thread::sleep(pause);
        };
        let held = Held {
            path: file_of(dir, term),
            next: file_of(dir, term + 1),
            own,
            length,
            valid_until_ms: AtomicU64::new(0),
            released: AtomicBool::new(false),
        };
        let begin = now() + if at_once { Duration::ZERO } else { length };
        loop {
            held.renew()?;
            if now() >= begin {
                break;
            }
            if give_up() {
                held.write(true)?;
                return Ok(None);
            }
            thread::sleep(pause.min(length / RENEWALS));
        }
        info!(term, "this lcapd is the one that works now");
        for old in terms(dir)?.into_iter().filter(|&old| old + 1 < term) {
            let _ = fs::remove_file(file_of(dir, old));
        }
        Ok(Some(Self(Some(Arc::new(held)))))
    }

    /// Whether it may have had a predecessor that still has files of the state open.
    pub fn is_needed(&self) -> bool {
        self.0.is_some()
    }

    /// Whether this lcapd may do something for good now.
    pub fn is_held(&self) -> bool {
        self.0.as_ref().is_none_or(|held| held.is_valid())
    }

    /// Renews it until it is given back. When it is lost, calls `lost`, which does not return.
    pub fn keep(&self, lost: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Some(held) = self.0.clone() else { return Ok(()) };
        let keep = move || {
            let pause = held.length / RENEWALS;
            while !held.released.load(Ordering::Acquire) {
                if let Err(error) = held.renew() {
                    if !held.is_valid() {
                        error!(%error, "another lcapd has taken over, or may have: stopping at once");
                        return lost();
                    }
                    warn!(%error, "cannot renew the lease, will retry");
                }
                thread::sleep(pause);
            }
        };
        thread::Builder::new().name("lease".to_owned()).spawn(keep).map(drop)
    }

    /// Gives it back, so that another takes over at once. To be called when nothing is written any
    /// more.
    pub fn release(&self) {
        if let Some(held) = &self.0
            && !held.released.swap(true, Ordering::AcqRel)
            && let Err(error) = held.write(true)
        {
            warn!(%error, "cannot give the lease back; it will run out");
        }
    }
}

impl Held {
    fn is_valid(&self) -> bool {
        !self.next.exists() && millis(now()) < self.valid_until_ms.load(Ordering::Acquire)
    }

    fn renew(&self) -> io::Result<()> {
        let begun = now();
        self.write(false)?;
        if self.next.exists() {
            self.valid_until_ms.store(0, Ordering::Release);
            return Err(io::Error::other(format!("{} is there", self.next.display())));
        }
        self.valid_until_ms.store(millis(begun + self.length), Ordering::Release);
        Ok(())
    }

    fn write(&self, released: bool) -> io::Result<()> {
        if released != self.released.load(Ordering::Acquire) && !released {
            return Ok(()); // it was given back meanwhile
        }
        let holder = Holder { beat: millis(now()), released, ..self.own.clone() };
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        let mut content = serde_json::to_vec(&holder)?;
        content.resize(content.len().next_multiple_of(512), b' ');
        file.write_all(&content)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_millis(300);

    fn acquire(dir: &Path) -> Lease {
        Lease::acquire(dir, LENGTH, || false).unwrap().unwrap()
    }

    #[test]
    fn one_that_is_given_back_is_taken_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let long = Duration::from_secs(3600);
        let first = Lease::acquire(dir.path(), long, || false).unwrap().unwrap();
        assert!(first.is_held());
        assert!(Lease::acquire(dir.path(), long, || true).unwrap().is_none());
        first.release();
        let second = Lease::acquire(dir.path(), long, || false).unwrap().unwrap();
        assert!(second.is_held() && !first.is_held());
    }

    #[test]
    fn one_that_is_not_renewed_is_lost_before_another_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let first = acquire(dir.path()); // and never renewed: its holder was stopped
        let second = acquire(dir.path());
        assert!(!first.is_held());
        assert!(first.0.as_ref().unwrap().renew().is_err());
        assert!(!first.is_held(), "a renewal that comes too late changes nothing");
        drop(second);
    }

    #[test]
    fn never_two_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at_work = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4)
            .map(|nth| {
                let (dir, at_work) = (dir.path().to_owned(), Arc::clone(&at_work));
                thread::spawn(move || {
                    for _ in 0..5 {
                        let lease = acquire(&dir);
                        assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "thread {nth}");
                        assert_eq!(at_work.fetch_sub(1, Ordering::SeqCst), 1, "thread {nth}");
                        lease.release();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let long = Duration::from_secs(3600);
        let lease = Lease::acquire(dir.path(), long, || false).unwrap().unwrap();
        assert!(terms(dir.path()).unwrap().len() <= 2, "old files are removed");
        assert!(lease.is_held());
    }
}
