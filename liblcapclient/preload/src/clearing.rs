//! `llapi_changelog_clear()`: comes from any thread, with or without an open log, and is answered
//! once it is on lcapd's disk.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lcap_client::{Clearer, ClientError, Control};
use lcap_ffi::RecordIndex;

/// How far an open log of this process has been received. What the program has not been given must
/// not be cleared, whatever order a policy delivers in.
#[derive(Debug)]
pub(crate) struct Progress {
    mdt: String,
    /// Highest index handed out, or the one before the first that was asked for.
    last: AtomicU64,
    /// Everything up to here was handed out or dropped.
    low: AtomicU64,
    /// Indexes did not always ascend: `last` says nothing about those below it.
    disordered: AtomicBool,
    member: OnceLock<Clearer>,
}

impl Progress {
    /// A record was handed out; from `held` on, some are held back.
    pub(crate) fn handed_out(&self, index: RecordIndex, held: Option<RecordIndex>) {
        // One thread writes; clearing on another one may see the value a moment later.
        let last = self.last.load(Ordering::Relaxed);
        if index.get() > last {
            self.last.store(index.get(), Ordering::Release);
        } else {
            self.disordered.store(true, Ordering::Release);
        }
        if let Some(held) = held {
            self.disordered.store(true, Ordering::Release);
            self.low.fetch_min(held.prev().get(), Ordering::AcqRel);
        }
    }

    /// Everything up to `low` was handed out or dropped.
    pub(crate) fn consumed(&self, low: RecordIndex) {
        self.low.store(low.get(), Ordering::Release);
    }

    /// The log is a queue's.
    pub(crate) fn set_member(&self, clearer: Clearer) {
        let _ = self.member.set(clearer);
    }

    pub(crate) fn is_member(&self) -> bool {
        self.member.get().is_some()
    }

    /// As far as a clear may go that asks for `upto`; 0 asks for all that was received.
    fn limit(&self, upto: u64) -> u64 {
        let last = self.last.load(Ordering::Acquire);
        let upto = if upto == 0 { last } else { upto };
        if self.disordered.load(Ordering::Acquire) {
            upto.min(self.low.load(Ordering::Acquire))
        } else {
            upto.min(last)
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&LOGS).retain(|log| !Arc::ptr_eq(log, &self.0));
        hang_up_if_idle();
    }
}

/// An open log's entry; dropping it takes it out.
#[derive(Debug)]
pub(crate) struct Registered(Arc<Progress>);

impl std::ops::Deref for Registered {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.0
    }
}

/// Open logs of this process.
static LOGS: Mutex<Vec<Arc<Progress>>> = Mutex::new(Vec::new());
/// The connection for clears, and the process that it belongs to. Kept while a log is open.
static CONTROL: Mutex<Option<(u32, Control)>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a log that was opened at `from`.
pub(crate) fn register(mdt: &str, from: u64) -> Registered {
    let progress = Arc::new(Progress {
        mdt: mdt.to_owned(),
        last: AtomicU64::new(from.saturating_sub(1)),
        low: AtomicU64::new(from.saturating_sub(1)),
        disordered: AtomicBool::new(false),
        member: OnceLock::new(),
    });
    lock(&LOGS).push(Arc::clone(&progress));
    Registered(progress)
}

/// Why a clear was not done.
#[derive(Debug)]
pub(crate) enum ClearFailed {
    /// lcapd does not have the MDT.
    NotServed(ClientError),
    /// It has, and says no; or does not answer.
    Refused(ClientError),
}

/// Clears for the reader `id`, or for the queue that this process is a member of.
pub(crate) fn clear(mdt: &str, id: &str, upto: u64) -> Result<(), ClearFailed> {
    let logs: Vec<Arc<Progress>> =
        lock(&LOGS).iter().filter(|log| log.mdt == mdt).cloned().collect();
    if let Some(clearer) = logs.iter().find_map(|log| log.member.get()) {
        clearer.clear(RecordIndex::new(upto));
        return Ok(());
    }
    // With several logs of one MDT in a process, the one that was read furthest counts.
    let limit = logs.iter().map(|log| log.limit(upto)).max();
    match limit {
        Some(0) => Ok(()), // nothing was received yet
        Some(limit) => control(|control| clear_reader(control, mdt, id, limit)),
        None => control(|control| clear_reader(control, mdt, id, upto)),
    }
}

fn clear_reader(control: &mut Control, mdt: &str, id: &str, upto: u64) -> Result<(), ClearFailed> {
    let stream = lcap_ffi::process::secure_env("LCAP_STREAM").filter(|name| !name.is_empty());
    // Lustre takes `cl3-robinhood` for cl3; here a name may have a dash of its own.
    let bare = id.split_once('-').map(|(bare, _)| bare).filter(|bare| !bare.is_empty());
    let mut refused = None;
    for name in [Some(id), bare].into_iter().flatten() {
        match control.clear(stream.as_deref(), mdt, name, upto) {
            Ok(()) => return Ok(()),
            Err(error) if error.errno() == libc::ENOENT => refused = Some(error),
            Err(error) => return Err(ClearFailed::Refused(error)),
        }
    }
    // Is it the reader that is not there, or the MDT?
    match control.hello(Some(mdt), None) {
        Err(error) if error.errno() == libc::ENOENT => Err(ClearFailed::NotServed(error)),
        Err(error) => Err(ClearFailed::Refused(error)),
        Ok(_) => Err(ClearFailed::Refused(refused.unwrap_or(ClientError::WouldBlock))),
    }
}

/// Runs a request on this process's connection; makes it first if need be.
fn control(
    request: impl FnOnce(&mut Control) -> Result<(), ClearFailed>,
) -> Result<(), ClearFailed> {
    let mut connection = lock(&CONTROL);
    let pid = std::process::id();
    if let Some((_, parents)) = connection.take_if(|(owner, _)| *owner != pid) {
        // libzmq's threads are not in this process: even closing would wait for them.
        std::mem::forget(parents);
    }
    if connection.is_none() {
        let new = Control::from_env().map_err(ClearFailed::Refused)?;
        *connection = Some((pid, new));
    }
    let result = match connection.as_mut() {
        Some((_, control)) => request(control),
        None => Ok(()),
    };
    drop(connection);
    hang_up_if_idle();
    result
}

/// Closes the connection if no log is open: a program that only clears, or has finished, is left
/// without threads of ours.
fn hang_up_if_idle() {
    let idle = lock(&LOGS).is_empty();
    if idle && let Ok(mut connection) = CONTROL.try_lock() {
        let pid = std::process::id();
        if connection.as_ref().is_some_and(|(owner, _)| *owner == pid) {
            *connection = None;
        }
    }
}
