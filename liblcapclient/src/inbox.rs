//! Between the session's thread and the application: items one way, what was consumed and settled
//! the other way. Locks are taken per message or batch, never per record.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lcap_ffi::RecordIndex;
use lcap_ffi::received::Received;
use lcap_wire::RangeSet;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::batch::Batch;
use crate::client::{Counters, Item};
use crate::error::ClientError;

/// What the two sides share.
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Becomes readable when there is something for the application. Its `read` blocks, so that a
    /// waiting application is interrupted by signals exactly as one that reads a device.
    ready: OwnedFd,
    /// Wakes the session's thread.
    wake: OwnedFd,
    /// Watermark that the application has settled, and the generation that it belongs to.
    settled: AtomicU64,
    settled_generation: AtomicU16,
    /// Records of a queue that the application has settled since the session last looked, and in
    /// which life.
    settled_records: Mutex<(RangeSet, u64)>,
    /// Acknowledge now.
    flush: AtomicBool,
    counters: Mutex<Counters>,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item<Received>>,
    /// `ready` was written to since it was last read.
    signalled: bool,
    /// The application polls `ready`: it must not be readable in vain.
    exposed: bool,
    /// Bytes that the application took since the session last looked.
    consumed_bytes: usize,
    /// The session wants to know when the application takes something.
    throttled: bool,
    /// The application has records that it has not cleared.
    busy: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the application is told of it. The others only change what it may acknowledge.
fn is_news(item: &Item<Received>) -> bool {
    matches!(item, Item::Batch(_) | Item::End | Item::Failed(_) | Item::Trouble(_))
}

fn signal(fd: &OwnedFd) {
    // An eventfd's counter cannot overflow by ones in any process's life.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

impl Inbox {
    pub(crate) fn new() -> Result<Self, ClientError> {
        let new_fd =
            |flags| eventfd(0, flags).map_err(|error| ClientError::io("eventfd", &error.into()));
        Ok(Self {
            state: Mutex::default(),
            ready: new_fd(EventfdFlags::CLOEXEC)?,
            wake: new_fd(EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            settled: AtomicU64::new(0),
            settled_generation: AtomicU16::new(0),
            settled_records: Mutex::default(),
            flush: AtomicBool::new(false),
            counters: Mutex::default(),
        })
    }

    // The session's side.

    /// Hands an item to the application.
    pub(crate) fn push(&self, item: Item<Received>) {
        let mut state = lock(&self.state);
        if let (Item::Low(low), Some(Item::Batch(last))) = (&item, state.items.back_mut()) {
            last.raise_low(*low);
            return;
        }
        if let (Item::Low(low), Some(Item::Low(last))) = (&item, state.items.back_mut()) {
            *last = (*last).max(*low);
            return;
        }
        let news = is_news(&item);
        state.items.push_back(item);
        if news && !state.signalled {
            state.signalled = true;
            signal(&self.ready);
        }
    }

    /// Everything up to `low` was delivered or dropped. If the application has nothing to clear, now
    /// or soon, that much is settled: nobody calls for records that policies dropped. Only for a
    /// reader, in the history that the application is in.
    pub(crate) fn settle_dropped(&self, low: RecordIndex, generation: u16) {
        let state = lock(&self.state);
        let nothing_waits = state.items.iter().all(|item| matches!(item, Item::Low(_)));
        let present = self.settled_generation.load(Ordering::Acquire) == generation;
        if !state.busy && nothing_waits && present {
            self.settled.fetch_max(low.get(), Ordering::AcqRel);
        }
    }

    /// Bytes that the application took since the last call; it calls back when it took more, if
    /// `throttled`.
    pub(crate) fn take_consumed(&self, throttled: bool) -> usize {
        let mut state = lock(&self.state);
        state.throttled = throttled;
        std::mem::take(&mut state.consumed_bytes)
    }

    /// What the session's thread polls besides its sockets.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Called after `wake_fd` was readable.
    pub(crate) fn woken(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// The watermark and its generation.
    pub(crate) fn settled(&self) -> (u64, u16) {
        // The generation first: the application lowers the watermark before it raises that.
        let generation = self.settled_generation.load(Ordering::Acquire);
        (self.settled.load(Ordering::Acquire), generation)
    }

    /// The queue's records that were settled since the last call, and their life.
    pub(crate) fn take_settled_records(&self) -> (RangeSet, u64) {
        let mut settled = lock(&self.settled_records);
        (std::mem::take(&mut settled.0), settled.1)
    }

    pub(crate) fn take_flush(&self) -> bool {
        self.flush.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn set_counters(&self, counters: Counters) {
        *lock(&self.counters) = counters;
    }

    // The application's side.

    /// The next item. Waits for one if `wait`.
    pub(crate) fn take(&self, wait: bool) -> Result<Item<Received>, ClientError> {
        loop {
            if let Some(item) = self.try_take() {
                return Ok(item);
            }
            if !wait {
                return Err(ClientError::WouldBlock);
            }
            match rustix::io::read(&self.ready, &mut [0; 8]) {
                Ok(_) => lock(&self.state).signalled = false,
                Err(Errno::INTR) => return Err(ClientError::Interrupted),
                Err(Errno::AGAIN) => return Err(ClientError::WouldBlock),
                Err(error) => return Err(ClientError::io("eventfd", &error.into())),
            }
        }
    }

    fn try_take(&self) -> Option<Item<Received>> {
        let mut state = lock(&self.state);
        let item = state.items.pop_front()?;
        if let Item::Batch(batch) = &item {
            state.busy = true;
            state.consumed_bytes += batch.buffer().len();
            // Nearly always every batch when there are few, every fourth or so when many.
            if state.throttled && (state.items.len() < 4 || state.items.len().is_multiple_of(4)) {
                signal(&self.wake);
            }
        }
        Some(item)
    }

    /// The descriptor to poll. From now on it is readable only if there is something to receive,
    /// provided that [`Self::settle_fd`] is called whenever that changes.
    pub(crate) fn expose(&self) -> BorrowedFd<'_> {
        lock(&self.state).exposed = true;
        self.ready.as_fd()
    }

    /// Makes the descriptor readable or not, as things are. `more`: the application has records
    /// left that it took already.
    pub(crate) fn settle_fd(&self, more: bool) {
        let mut state = lock(&self.state);
        if !state.exposed {
            return;
        }
        let readable = more || state.items.iter().any(is_news);
        if readable && !state.signalled {
            signal(&self.ready);
        } else if !readable && state.signalled {
            // Asked first: were it empty for any reason, reading would block.
            let mut fds = [PollFd::new(&self.ready, PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) {
                let _ = rustix::io::read(&self.ready, &mut [0; 8]);
            }
        }
        state.signalled = readable;
    }

    /// Whether something waits to be received.
    pub(crate) fn has_news(&self) -> bool {
        lock(&self.state).items.iter().any(is_news)
    }

    /// Everything of the reader up to `upto` is settled.
    #[inline]
    pub(crate) fn settle(&self, upto: RecordIndex) {
        self.settled.store(upto.get(), Ordering::Release);
    }

    /// The application has something to clear, or says itself from where on it clears.
    pub(crate) fn set_busy(&self) {
        lock(&self.state).busy = true;
    }

    /// The application has cleared all that it was given.
    pub(crate) fn set_idle(&self) {
        lock(&self.state).busy = false;
    }

    /// The application has arrived in a new generation of the MDT.
    pub(crate) fn enter_generation(&self, generation: u16, settled: RecordIndex) {
        self.settled.store(settled.get(), Ordering::Release);
        self.settled_generation.store(generation, Ordering::Release);
    }

    /// Changes the set of settled records of a queue.
    pub(crate) fn with_settled_records<T>(&self, body: impl FnOnce(&mut RangeSet) -> T) -> T {
        body(&mut lock(&self.settled_records).0)
    }

    /// What was settled before is void. `body` forgets what was handed out, at the same moment.
    pub(crate) fn enter_life(&self, life: u64, body: impl FnOnce()) {
        let mut settled = lock(&self.settled_records);
        *settled = (RangeSet::new(), life);
        body();
    }

    /// Asks the session to acknowledge now.
    pub(crate) fn flush(&self) {
        self.flush.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        signal(&self.wake);
    }

    pub(crate) fn counters(&self) -> Counters {
        *lock(&self.counters)
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// One message with records that the application works on.
pub type ReceivedBatch = Batch<Received>;
