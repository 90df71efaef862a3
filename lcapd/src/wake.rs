//! Waking one thread from others, and waiting for several things at once.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use lcap_ffi::poll::wait_readable;
use rustix::event::{EventfdFlags, eventfd};

/// Wakes one thread. Cheap when that thread is awake: the descriptor is written only for one that
/// sleeps.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    asleep: AtomicBool,
    /// Writes of the descriptor that were not read. Only for the thread that sleeps.
    unread: AtomicU64,
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Waker {
    /// A waker for one thread.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { fd, asleep: AtomicBool::new(false), unread: AtomicU64::new(0) })))
    }

    /// Ends the thread's present or next sleep.
    pub fn wake(&self) {
        if self.0.asleep.swap(false, Ordering::SeqCst) {
            // Can only fail by overflow, when it is readable anyway.
            let _ = rustix::io::write(&self.0.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Says that the thread is about to sleep. It must look at its inputs once more after this, and
    /// call [`Self::awake`] when it is up again.
    pub fn falling_asleep(&self) {
        self.0.asleep.store(true, Ordering::SeqCst);
    }

    /// Ends a sleep: drains the descriptor, if somebody has written it.
    pub fn awake(&self) {
        if !self.0.asleep.swap(false, Ordering::SeqCst) {
            self.0.unread.fetch_add(1, Ordering::Relaxed);
        }
        // Who ended a sleep that was over anyway may write only now. Then the next sleep ends at once,
        // and it is drained after that.
        if self.0.unread.load(Ordering::Relaxed) > 0 {
            let mut written = [0_u8; 8];
            if rustix::io::read(&self.0.fd, &mut written).is_ok() {
                self.0.unread.fetch_sub(u64::from_ne_bytes(written), Ordering::Relaxed);
            }
        }
    }

    /// For a poll set that is not ours (libzmq's).
    pub fn raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }

    /// Sleeps until woken, until `other` is readable, or until `deadline`. `ready` is asked once
    /// after the waker is armed; if it says so, there is no sleep.
    pub fn sleep(
        &self,
        other: Option<RawFd>,
        deadline: Option<Instant>,
        ready: impl FnOnce() -> bool,
    ) {
        self.falling_asleep();
        if !ready() {
            let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let own = self.raw_fd();
            // An interrupted or failed poll is a short sleep; the caller looks again anyway.
            let _ = match other {
                Some(fd) => wait_readable(&[own, fd], timeout),
                None => wait_readable(&[own], timeout),
            };
        }
        self.awake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wake_ends_the_sleep_before_or_during_it() {
        let waker = Waker::new().unwrap();
        let other = waker.clone();
        let hour = Instant::now() + Duration::from_secs(3600);
        // During: the closure runs after arming, so this wake is seen by the poll.
        waker.sleep(None, Some(hour), || {
            other.wake();
            false
        });
        // Inputs that came before are seen by `ready`.
        waker.sleep(None, Some(hour), || true);
        assert!(hour > Instant::now());
    }
    /// Between the two steps of a wake the sleeper may be up again for another reason.
    #[test]
    fn a_wake_that_comes_late_does_not_keep_its_thread_awake_for_ever() {
        let waker = Waker::new().unwrap();
        let long = || Instant::now() + Duration::from_secs(3600);
        waker.falling_asleep();
        assert!(waker.0.asleep.swap(false, Ordering::SeqCst), "first step");
        waker.awake();
        rustix::io::write(&waker.0.fd, &1_u64.to_ne_bytes()).unwrap(); // second step
        waker.sleep(None, Some(long()), || false);
        let until = Instant::now() + Duration::from_millis(20);
        waker.sleep(None, Some(until), || false);
        assert!(Instant::now() >= until);
    }
}
