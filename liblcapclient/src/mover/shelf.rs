//! Between a mover's thread and its application: requests one way, reports the other.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lcap_wire::mover::{Report, RequestKey};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::Action;
use crate::error::ClientError;

#[derive(Debug, Default)]
struct State {
    unread: VecDeque<Action>,
    /// `ready` was written to since it was last read.
    signalled: bool,
    /// Requests that the application took since the thread last looked.
    n_taken: u64,
    reports: Vec<Report>,
    failed: Option<ClientError>,
    /// Why lcapd has not answered yet, as far as that is known.
    trouble: Option<&'static str>,
}

/// What the two share.
#[derive(Debug)]
pub(super) struct Shelf {
    state: Mutex<State>,
    /// Readable while there is something to take.
    ready: OwnedFd,
    /// Wakes the thread.
    wake: OwnedFd,
}

fn signal(fd: &OwnedFd) {
    // An eventfd's counter cannot overflow by ones in any process's life.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

impl Shelf {
    pub(super) fn new() -> Result<Self, ClientError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let new_fd =
            || eventfd(0, flags).map_err(|error| ClientError::io("eventfd", &error.into()));
        Ok(Self { state: Mutex::default(), ready: new_fd()?, wake: new_fd()? })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The thread's side.

    pub(super) fn put(&self, actions: Vec<Action>) {
        let mut state = self.lock();
        state.unread.extend(actions);
        self.show(&mut state);
    }

    pub(super) fn fail(&self, error: ClientError) {
        let mut state = self.lock();
        state.failed = Some(error);
        self.show(&mut state);
    }

    /// Notes why lcapd does not answer. Said once in the log.
    pub(super) fn note_trouble(&self, trouble: &'static str) {
        let before = self.lock().trouble.replace(trouble);
        if before != Some(trouble) {
            tracing::warn!("lcapd does not answer: {trouble}; will try again");
        }
    }

    /// What was noted last.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.lock().trouble
    }

    /// Takes an unread request away again. False if the application has it.
    pub(super) fn take_back(&self, key: RequestKey) -> bool {
        let mut state = self.lock();
        let found =
            state.unread.iter().position(|action| action.key() == key && !action.is_cancel());
        let was_there = found.and_then(|at| state.unread.remove(at)).is_some();
        self.show(&mut state);
        was_there
    }

    /// What the application has taken and reported since the last call.
    pub(super) fn news(&self) -> (u64, Vec<Report>) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut state = self.lock();
        (std::mem::take(&mut state.n_taken), std::mem::take(&mut state.reports))
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes `ready` say what there is.
    fn show(&self, state: &mut State) {
        let something = !state.unread.is_empty() || state.failed.is_some();
        if something && !state.signalled {
            signal(&self.ready);
        } else if !something && state.signalled {
            let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        }
        state.signalled = something;
    }

    // The application's side.

    pub(super) fn ready_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// What `pick` takes off the unread ones, as soon as there is one; it also says how many
    /// requests (not cancels) it took. `None` when the time is up.
    pub(super) fn take<T>(
        &self,
        timeout: Option<Duration>,
        pick: impl FnOnce(&mut VecDeque<Action>) -> (T, u64),
    ) -> Result<Option<T>, ClientError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let mut state = self.lock();
            if !state.unread.is_empty() {
                let (picked, n_requests) = pick(&mut state.unread);
                // The thread looks at all that gathers until it wakes.
                let wake = state.n_taken == 0 && n_requests > 0;
                state.n_taken += n_requests;
                self.show(&mut state);
                drop(state);
                if wake {
                    self.wake();
                }
                return Ok(Some(picked));
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            drop(state);
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.wait(left)?;
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [PollFd::new(&self.ready, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(()),
            Err(Errno::INTR) => Err(ClientError::Interrupted),
            Err(error) => Err(ClientError::io("poll", &error.into())),
        }
    }

    pub(super) fn report(&self, report: Report) {
        let mut state = self.lock();
        let first = state.reports.is_empty();
        state.reports.push(report);
        drop(state);
        if first {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        signal(&self.wake);
    }
}
