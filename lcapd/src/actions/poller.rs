//! One thread per MDT that reads its list of actions when there is a reason to.
//!
//! Each reading makes the MDT walk its whole list, several times over. So it is read when the
//! changelog says that an HSM action ended, when our own coordinator says that something moves, and
//! else only now and then; and never more than a small part of the time.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lcap_ffi::MdtName;
use lcap_ffi::hsm_action::RecordTime;
use tracing::{info, warn};

use super::journal::Journal;
use super::place::ListPlace;
use super::scan::{Found, ScanError, scan};
use crate::metrics::Samples;
use crate::metrics::families as f;
use crate::reader::chain;
use crate::wake::Waker;

/// Least time between two readings.
const SPACING: Duration = Duration::from_secs(1);
/// A reading is followed by ten times as long without one, but for the audit.
const SHARE: u32 = 10;
/// After a reason to read, the list is read once more: it may say more a moment later.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// A list that is away is looked for this often; that costs the MDT nothing.
const RETURN_CHECK: Duration = Duration::from_secs(1);

/// Tells a poller that there is a reason to read.
#[derive(Clone, Debug)]
pub struct Due(Arc<DueState>);

#[derive(Debug)]
struct DueState {
    is_due: AtomicBool,
    waker: Waker,
}

impl Due {
    /// For the thread that `waker` wakes.
    pub fn new(waker: Waker) -> Self {
        Self(Arc::new(DueState { is_due: AtomicBool::new(false), waker }))
    }

    /// Something has happened to an action of this MDT, or will have in a moment.
    pub fn mark(&self) {
        if !self.0.is_due.swap(true, Ordering::Relaxed) {
            self.0.waker.wake();
        }
    }

    fn take(&self) -> bool {
        self.0.is_due.swap(false, Ordering::Relaxed)
    }

    fn is_marked(&self) -> bool {
        self.0.is_due.load(Ordering::Relaxed)
    }
}

/// What a poller tells the others.
#[derive(Debug, Default)]
pub struct PollerStats {
    /// Readings of the list.
    pub readings: AtomicU64,
    /// Readings that failed.
    pub errors: AtomicU64,
    /// Lines read.
    pub lines: AtomicU64,
    /// Lines that could not be used.
    pub bad_lines: AtomicU64,
    /// Events.
    pub events: AtomicU64,
    /// Actions that are there.
    pub live: AtomicU64,
    /// Duration of the last reading.
    pub last_microseconds: AtomicU64,
    /// Since when the list is here and was read, in milliseconds since 1970; 0 while it is not.
    pub here_since_ms: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl PollerStats {
    /// Of a list that is always here.
    pub fn here() -> Self {
        Self { here_since_ms: AtomicU64::new(unix_ms()), ..Self::default() }
    }

    /// Puts the figures of an MDT.
    pub fn put(&self, mdt: &MdtName, samples: &mut Samples) {
        let labels = [mdt.as_str()];
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        samples.put(&f::HSM_HERE, &labels, load(&self.here_since_ms) > 0);
        samples.put(&f::HSM_LIVE, &labels, load(&self.live));
        samples.put(&f::HSM_READINGS, &labels, load(&self.readings));
        samples.put(&f::HSM_ERRORS, &labels, load(&self.errors));
        samples.put(&f::HSM_BAD_LINES, &labels, load(&self.bad_lines));
        samples.put(&f::HSM_EVENTS, &labels, load(&self.events));
        let took = Duration::from_micros(load(&self.last_microseconds));
        samples.put(&f::HSM_READING_SECONDS, &labels, took.as_secs_f64());
    }

    /// Why the list cannot be read; `None` if it can, or is simply not here.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The thread's state.
#[derive(Debug)]
pub struct Poller {
    /// The MDT.
    pub mdt: MdtName,
    /// Where its list is.
    pub place: ListPlace,
    /// Where events go.
    pub journal: Arc<Journal>,
    /// Read at least this often.
    pub audit_interval: Duration,
    /// Reasons to read.
    pub due: Due,
    /// What others may know.
    pub stats: Arc<PollerStats>,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

/// How a reading went, as far as people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Here,
    Away,
    Trouble(String),
}

impl Poller {
    /// Reads until told to stop.
    pub fn run(&mut self) {
        let mut state = State::Unknown;
        self.stats.live.store(self.journal.n_live() as u64, Ordering::Relaxed);
        while !self.stop.load(Ordering::Relaxed) {
            let was_due = self.due.take();
            let (started, began_ms) = (Instant::now(), unix_ms());
            let now_state = self.read();
            let took = started.elapsed();
            self.tell(&state, &now_state, began_ms);
            let spacing = SPACING.min(self.audit_interval);
            let rest = (took * SHARE).min(self.audit_interval);
            let not_before = Instant::now() + spacing.max(rest);
            let audit = match now_state {
                State::Here if was_due => SECOND_LOOK.min(self.audit_interval),
                State::Here | State::Unknown => self.audit_interval,
                State::Away | State::Trouble(_) => RETURN_CHECK.min(self.audit_interval),
            };
            let audit = (started + audit).max(not_before);
            state = now_state;
            self.pause(not_before, audit);
        }
    }

    /// Sleeps until there is a reason to read and the time for it has come.
    fn pause(&self, not_before: Instant, audit: Instant) {
        loop {
            let until = if self.due.is_marked() { not_before } else { audit };
            if self.stop.load(Ordering::Relaxed) || Instant::now() >= until {
                return;
            }
            let waits_for_due = !self.due.is_marked();
            self.waker.sleep(None, Some(until), || {
                self.stop.load(Ordering::Relaxed) || (waits_for_due && self.due.is_marked())
            });
        }
    }

    fn read(&self) -> State {
        let list = match self.place.open() {
            Ok(Some(list)) => list,
            Ok(None) => return State::Away,
            Err(error) => return State::Trouble(error.to_string()),
        };
        let started = Instant::now();
        let result = scan(list, self.journal.writer(), now());
        let stats = &self.stats;
        stats.readings.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        stats.last_microseconds.store(took, Ordering::Relaxed);
        stats.live.store(self.journal.n_live() as u64, Ordering::Relaxed);
        match result {
            Ok(found) => {
                self.note(found);
                State::Here
            }
            // It went away while it was read.
            Err(ScanError::Read(error)) if error.raw_os_error() == Some(libc::ENODEV) => {
                State::Away
            }
            Err(error) => State::Trouble(chain(&error)),
        }
    }

    fn note(&self, found: Found) {
        let stats = &self.stats;
        stats.lines.fetch_add(found.lines, Ordering::Relaxed);
        stats.events.fetch_add(found.events(), Ordering::Relaxed);
        let before = stats.bad_lines.fetch_add(found.bad_lines, Ordering::Relaxed);
        if before == 0 && found.bad_lines > 0 {
            warn!(
                mdt = %self.mdt, lines = found.lines, bad = found.bad_lines,
                "lines of the list of HSM actions are not understood; they are counted and left out"
            );
        }
    }

    /// Once per change of state. The reading that found it began at `began_ms`.
    fn tell(&self, before: &State, now: &State, began_ms: u64) {
        let trouble = if let State::Trouble(why) = now { Some(why.clone()) } else { None };
        *self.stats.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        if std::mem::discriminant(before) == std::mem::discriminant(now) {
            return;
        }
        // No event that is noticed here is older than that.
        let here_since = if *now == State::Here { began_ms } else { 0 };
        self.stats.here_since_ms.store(here_since, Ordering::Release);
        let (mdt, place) = (&self.mdt, &self.place);
        match now {
            State::Here => {
                let live = self.journal.n_live();
                info!(%mdt, %place, live, "HSM actions are read");
            }
            State::Away => info!(
                %mdt, %place,
                "no list of HSM actions here: the MDT is elsewhere or not mounted; what is known of \
                 it stays, and it is looked for every second"
            ),
            State::Trouble(error) => {
                self.stats.errors.fetch_add(1, Ordering::Relaxed);
                warn!(%mdt, error, "cannot read HSM actions, will retry");
            }
            State::Unknown => {}
        }
    }
}

fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(1).max(1)
}

/// The time now.
pub fn now() -> RecordTime {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    RecordTime::new(since_1970.as_secs(), since_1970.subsec_nanos())
}
