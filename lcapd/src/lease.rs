//! Which of several lcapds works, when more than one is there for the same MDTs.
//!
//! They share `state_dir`, and a [`Place`] where the right to work is kept: [`files`] beside the state, or a key in
//! [`redis`]. Who works renews it a few times per lease. Who waits looks at it, and takes it when it has not
//! changed for a lease, or says that it was given back.
//!
//! The old one may only be slow (stopped, swapped out, cut off from the place). So it counts the lease from before each
//! renewal, and neither clears nor writes when it has run out; and the new one waits for a lease, after it took
//! it, before it begins. Both go by their own clock, and need it to run only about as fast as the other's.
#![forbid(unsafe_code)]

pub mod files;
pub mod redis;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

/// Renewals per lease.
pub const RENEWALS: u32 = 5;

/// The right to work. Cloned to whoever must ask before it does something for good.
#[derive(Clone, Debug)]
pub struct Lease(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    place: Box<dyn Place>,
    own: Holder,
    length: Duration,
    /// On [`now`]'s clock, in milliseconds.
    valid_until_ms: AtomicU64,
    released: AtomicBool,
    /// What says that it was given back is the last thing that is said.
    saying: Mutex<()>,
}

/// Where the right to work is kept. Once taken, it is this object's until another takes it.
pub trait Place: Send + Sync + fmt::Debug {
    /// Who has it.
    ///
    /// # Errors
    /// If that cannot be found out.
    fn look(&self) -> io::Result<Seen>;

    /// Takes it, if it still is as it was seen. Its term; `None` if another was faster.
    ///
    /// # Errors
    /// If nothing can be written.
    fn take(&self, seen: &Seen, own: &Holder) -> io::Result<Option<u64>>;

    /// Says how its holder is.
    ///
    /// # Errors
    /// [`RenewError`].
    fn renew(&self, own: &Holder) -> Result<(), RenewError>;

    /// Whether another is known to have taken it, as far as that is quickly found out.
    fn is_taken(&self) -> bool {
        false
    }

    /// It is ours now: what earlier holders left may go.
    fn is_ours(&self) {}

    /// Whether one that cannot be reached is waited for.
    fn may_come_back(&self) -> bool;
}

/// Why it could not be renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Another has it.
    #[error("another lcapd has taken the lease")]
    Taken,
    /// It may still be ours.
    #[error(transparent)]
    Trouble(#[from] io::Error),
}

/// What is found at a [`Place`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Counts holders.
    pub term: u64,
    /// What the last one said, a [`Holder`]; empty if there was none.
    pub content: Vec<u8>,
    /// There was none.
    pub free: bool,
    /// It is the newest.
    pub certain: bool,
}

/// What a holder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
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

/// Who waits, and for what.
struct Queueing<'a> {
    place: &'a dyn Place,
    own: &'a Holder,
    length: Duration,
    pause: Duration,
    is_told: bool,
}

impl Queueing<'_> {
    /// Waits until it is taken: whether its last holder is known to be gone. `None` if `give_up` says so.
    fn take(&mut self, give_up: &mut dyn FnMut() -> bool) -> io::Result<Option<(u64, bool)>> {
        let mut last: Option<(u64, Vec<u8>)> = None;
        let mut since = now();
        loop {
            let seen = self.place.look()?;
            let holder: Option<Holder> = serde_json::from_slice(&seen.content).ok();
            let is_gone = seen.free || holder.as_ref().is_some_and(|h| h.is_gone(self.own));
            let is_gone = is_gone && seen.certain;
            let present = Some((seen.term, seen.content.clone()));
            if last != present {
                if !std::mem::replace(&mut self.is_told, true) && !is_gone {
                    let host = holder.map(|holder| holder.host).unwrap_or_default();
                    info!(host, "another lcapd is at work; standing by");
                }
                (last, since) = (present, now());
            }
            if (is_gone || now() > since + self.length)
                && let Some(term) = self.place.take(&seen, self.own)?
            {
                return Ok(Some((term, is_gone)));
            }
            if give_up() {
                return Ok(None);
            }
            thread::sleep(self.pause);
        }
    }
}

impl Lease {
    /// For an lcapd that shares its state with nobody: always valid.
    pub fn not_needed() -> Self {
        Self(None)
    }

    /// Waits until this lcapd is the one that works; asks `give_up` meanwhile. `None` if it said so.
    ///
    /// # Errors
    /// If the place cannot be read or written, and that is not waited for.
    pub fn acquire(
        mut place: Box<dyn Place>,
        length: Duration,
        mut give_up: impl FnMut() -> bool,
    ) -> io::Result<Option<Self>> {
        let own = Holder::own();
        let pause = (length / 20).clamp(Duration::from_millis(5), Duration::from_millis(250));
        let mut trouble = false;
        let mut is_told = false;
        loop {
            let mut queueing = Queueing { place: &*place, own: &own, length, pause, is_told };
            let taken = queueing.take(&mut give_up);
            is_told = queueing.is_told;
            let (term, at_once) = match taken {
                Ok(Some(taken)) => taken,
                Ok(None) => return Ok(None),
                Err(error) if place.may_come_back() => {
                    if !std::mem::replace(&mut trouble, true) {
                        warn!(%error, "cannot ask for the lease, will retry; nothing is done without it");
                    }
                    if give_up() {
                        return Ok(None);
                    }
                    thread::sleep(pause);
                    continue;
                }
                Err(error) => return Err(error),
            };
            trouble = false;
            let begin = now() + if at_once { Duration::ZERO } else { length };
            let held = Held {
                place,
                own: own.clone(),
                length,
                valid_until_ms: AtomicU64::new(0),
                released: AtomicBool::new(false),
                saying: Mutex::new(()),
            };
            match held.wait_until(begin, pause, &mut give_up) {
                Ok(true) => {
                    info!(term, "this lcapd is the one that works now");
                    held.place.is_ours();
                    return Ok(Some(Self(Some(Arc::new(held)))));
                }
                Ok(false) => {
                    held.release()?;
                    return Ok(None);
                }
                Err(RenewError::Trouble(error)) if !held.place.may_come_back() => {
                    return Err(error);
                }
                Err(error) => warn!(%error, "the lease was lost before it began, will retry"),
            }
            place = held.place;
        }
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
    ///
    /// # Errors
    /// If there is no thread to be had.
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
            && let Err(error) = held.release()
        {
            warn!(%error, "cannot give the lease back; it will run out");
        }
    }
}

impl Held {
    fn is_valid(&self) -> bool {
        !self.place.is_taken() && millis(now()) < self.valid_until_ms.load(Ordering::Acquire)
    }

    fn renew(&self) -> Result<(), RenewError> {
        let begun = now();
        let _saying = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        if self.released.load(Ordering::Acquire) {
            return Ok(()); // it was given back meanwhile
        }
        let renewed = self.place.renew(&Holder { beat: millis(begun), ..self.own.clone() });
        let until = match renewed {
            Ok(()) => millis(begun + self.length),
            Err(RenewError::Taken) => 0,
            Err(RenewError::Trouble(_)) => return renewed,
        };
        self.valid_until_ms.store(until, Ordering::Release);
        renewed
    }

    /// Renews it until then. False if `give_up` says so.
    fn wait_until(
        &self,
        begin: Duration,
        pause: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> Result<bool, RenewError> {
        loop {
            self.renew()?;
            if now() >= begin {
                return Ok(true);
            }
            if give_up() {
                return Ok(false);
            }
            thread::sleep(pause.min(self.length / RENEWALS));
        }
    }

    fn release(&self) -> io::Result<()> {
        if self.released.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let _saying = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Holder { beat: millis(now()), released: true, ..self.own.clone() };
        match self.place.renew(&own) {
            Ok(()) | Err(RenewError::Taken) => Ok(()),
            Err(RenewError::Trouble(error)) => Err(error),
        }
    }
}

/// Puts a copy in the place of a file that an earlier lcapd may still have open. What that one was writing
/// when it lost its right to is not finished in the copy, as after a crash.
///
/// # Errors
/// The system's.
pub fn leave_behind(path: &Path) -> io::Result<()> {
    let copy = path.with_extension("new");
    fs::copy(path, &copy)?;
    File::open(&copy)?.sync_all()?;
    fs::rename(&copy, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::files::Files;
    use super::*;

    const LENGTH: Duration = Duration::from_millis(300);

    fn acquire_for(dir: &Path, length: Duration, give_up: bool) -> Option<Lease> {
        Lease::acquire(Box::new(Files::new(dir).unwrap()), length, || give_up).unwrap()
    }

    fn acquire(dir: &Path) -> Lease {
        acquire_for(dir, LENGTH, false).unwrap()
    }

    #[test]
    fn one_that_is_given_back_is_taken_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let long = Duration::from_secs(3600);
        let first = acquire_for(dir.path(), long, false).unwrap();
        assert!(first.is_held());
        assert!(acquire_for(dir.path(), long, true).is_none());
        first.release();
        let second = acquire_for(dir.path(), long, false).unwrap();
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
        let lease = acquire_for(dir.path(), long, false).unwrap();
        assert!(fs::read_dir(dir.path()).unwrap().count() <= 2, "old files are removed");
        assert!(lease.is_held());
    }
}
