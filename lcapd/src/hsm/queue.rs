//! The queue: what state each request is in, and what becomes of it.
//!
//! ```text
//!            admit                take                  done
//! (nothing) ──────▶ waiting ───────────────▶ running ─────────▶ (nothing)
//!              hold ⇅  ▲ ▲ given back, worker dead │  failed
//!                 held │ └───────── delayed ◀──────┤
//!              requeue └───────────── dead  ◀──────┘ too often
//! ```
//!
//! Requests on one file are a line: only its first may run or wait for a worker. So they happen in the
//! order in which they came, whatever is scheduled how. A dead request has left the line.
//!
//! No I/O, no thread, no clock. [`Queue::take_changes`] is what must be on disk before anybody is told
//! of it, [`Queue::take_events`] what to tell.
//!
//! # Use
//!
//! * Entrances: [`Queue::admit`] a request, then commit, then acknowledge. [`Queue::cancel`], with the
//!   id from [`Queue::find`] for an MDT's cancel.
//! * Exits: [`Queue::hello`] when a worker or mover appears; [`Queue::take`] when it has room, commit,
//!   then hand out; [`Queue::done`] when it is through with one. [`Queue::heard`] keeps it alive,
//!   [`Queue::disconnected`] starts its grace time, [`Queue::drop_worker`] ends it. One that
//!   comes back with work says so with [`Queue::claim`], then [`Queue::keep_only`].
//! * Time: [`Queue::tick`] whenever [`Queue::next_deadline`] has come. What can be taken after
//!   any of these calls: ask [`Queue::take_wake`], and if it says so, try every worker that waits.
#![forbid(unsafe_code)]

mod recover;
#[cfg(test)]
mod tests;
pub mod view;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::Fid;
use lcap_ffi::placer::Plan;

use super::request::{Kind, Request, Source};
use super::scheduler::hosts::HostSet;
use super::scheduler::{self, Ask, Lock, Look, Now, Scheduler, Turn, Wants};
pub use recover::{Changes, Meta, Saved, SavedState};
pub use worker::{Worker, WorkerSpec};

/// What a site has chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Who gets what next.
    pub scheduler: scheduler::Settings,
    /// What happens to what failed.
    pub retry: Retry,
    /// A worker that runs on for so long after it was told to stop loses the request, which counts as cancelled.
    pub cancel_limit: Option<Duration>,
    /// Requests for which somebody else chooses the worker.
    pub placing: Option<Placing>,
}

/// Of which requests somebody else says who is to do them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placing {
    /// By kind, in the order archive, restore, remove; those that a rule has hosts for are left out.
    pub kinds: [bool; 3],
    /// After so long, any worker may.
    pub limit: Duration,
}

/// How often and when a failed request is tried again, if nobody but us would do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// So many failures, and it is dead.
    pub attempts: u32,
    /// Wait after the first; each further wait is twice as long.
    pub first: Duration,
    /// Longest wait.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 8, first: Duration::from_secs(5), max: Duration::from_secs(3600) }
    }
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// From its source. If we have it already and it is running, the source asks once more: it
    /// does not count as ended when what runs now ends.
    Sent,
    /// Somebody lists what there is. What we have already is left alone.
    Listed,
}

/// What became of a request that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is in the queue under this id.
    New(u64),
    /// It was there already.
    Duplicate(u64),
    /// It runs, and will be run again.
    Again(u64),
}

impl Admitted {
    /// The id that it has in the queue.
    pub fn id(self) -> u64 {
        let (Self::New(id) | Self::Duplicate(id) | Self::Again(id)) = self;
        id
    }
}

/// How a cancel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// There is no such request (any more).
    Unknown,
    /// It never ran, and never will. A coordinator has to be told.
    Freed(Arc<Request>),
    /// It runs. [`What::CancelRunning`] goes to the worker, whose word is the last.
    Running(Arc<str>),
}

/// How a worker's work on a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Success,
    /// Not done: an error number, and what the worker says of it.
    Failed {
        /// Positive.
        errno: i32,
        /// For people.
        error: String,
    },
    /// Lustre does not know the action any more, which means that it has ended: by a worker that
    /// died before it could tell us, or by the MDT's own time limit.
    Refused,
}

/// What became of a request whose work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is out of the queue.
    Freed,
    /// Its source had asked for it once more meanwhile: it waits again.
    Again,
    /// It will be tried again.
    Retry,
    /// It is dead.
    Dead,
    /// There is no such request; it was ended before.
    Unknown,
    /// This worker does not hold it.
    NotHeld,
}

/// A request that is to be done by a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its id.
    pub id: u64,
    /// To be given back with its end.
    pub lease: u64,
    /// What is to be done.
    pub request: Arc<Request>,
    /// How often it has failed.
    pub failures: u32,
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For a worker, or for an earlier request on the same file.
    Waiting,
    /// For the moment at which it is tried again.
    Delayed(Now),
    /// For an operator.
    Held,
    /// A worker has it.
    Running {
        /// Which.
        worker: Arc<str>,
        /// Names this run.
        lease: u64,
    },
    /// It failed too often, and waits for an operator.
    Dead,
}

impl State {
    /// For people and programs.
    pub fn name(&self) -> &'static str {
        STATES[self.at()]
    }

    fn at(&self) -> usize {
        match self {
            Self::Waiting => 0,
            Self::Delayed(_) => 1,
            Self::Held => 2,
            Self::Running { .. } => 3,
            Self::Dead => 4,
        }
    }
}

/// Names of the states.
pub const STATES: [&str; 5] = ["waiting", "delayed", "held", "running", "dead"];

/// Something happened to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: u64,
    /// The request.
    pub request: Arc<Request>,
    /// What happened.
    pub what: What,
}

/// What can happen to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It came in.
    New,
    /// A rule has chosen the worker before it had room.
    Assigned(Arc<str>),
    /// A worker has it.
    Sent(Arc<str>),
    /// A worker has it no longer: it is dead, or gave it back.
    Returned(Arc<str>),
    /// The worker that has it is to be told that it is cancelled.
    CancelRunning(Arc<str>),
    /// It was cancelled and is gone. What had not been `ran` has nobody who told Lustre.
    Cancelled {
        /// A worker had it at some time.
        ran: bool,
    },
    /// It ended with this error number, 0 for success, on this worker.
    Done(Arc<str>, i32),
    /// It failed with this error number and will be tried again.
    Retry(i32),
    /// It failed with this error number, too often.
    Dead(i32),
    /// An operator held it, or let it go on.
    Held(bool),
}

/// Where a request is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Before all others.
    First,
    /// Behind all others.
    Last,
    /// To one of these workers, or to any.
    Hosts(Option<Vec<String>>),
    /// To another archive.
    Archive(u32),
}

/// Why an operator's wish cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotBe {
    /// No such request.
    #[error("there is no such request")]
    Unknown,
    /// Not in this state.
    #[error("the request is {0}")]
    State(&'static str),
}

/// How often a request failed, and what was said of that.
#[derive(Debug)]
struct Trouble {
    failures: u32,
    error: Option<Box<str>>,
}

#[derive(Debug)]
struct Entry {
    request: Arc<Request>,
    hosts: HostSet,
    trouble: Option<Box<Trouble>>,
    state: State,
    rank: i32,
    order: i64,
    /// The next on the same file, or 0.
    next: u64,
    /// Of the first on a file: the last one.
    last: u64,
    /// The worker that runs it is to stop.
    cancel: bool,
    /// Asked for again while it runs.
    again: bool,
    /// A worker had it at some time.
    ran: bool,
    /// The scheduler has it.
    ready: bool,
    /// Who is to do it is being asked.
    placing: bool,
}

impl Entry {
    fn failures(&self) -> u32 {
        self.trouble.as_ref().map_or(0, |trouble| trouble.failures)
    }

    fn turn(&self, id: u64) -> Turn {
        Turn { rank: self.rank, order: self.order, id }
    }
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    entries: HashMap<u64, Box<Entry>>,
    /// First request on each file.
    lines: HashMap<Fid, u64>,
    scheduler: Scheduler,
    workers: BTreeMap<Arc<str>, Worker>,
    delayed: BTreeSet<(Now, u64)>,
    /// Cancelled while they ran, by when that is to be over.
    stopping: BTreeSet<(Now, u64)>,
    /// Asked about, by when there must be an answer.
    placing: BTreeSet<(Now, u64)>,
    to_place: VecDeque<u64>,
    /// Whoever is asked does not answer, so nobody waits for that.
    placing_off: bool,
    locks: BTreeSet<Lock>,
    imported: BTreeSet<String>,
    mdts: BTreeSet<Arc<str>>,
    /// By state and kind.
    counts: [[usize; 3]; STATES.len()],
    stats: view::Stats,
    next_id: u64,
    next_lease: u64,
    dirty: BTreeSet<u64>,
    meta_dirty: bool,
    events: Vec<Event>,
    wake: bool,
}

impl Queue {
    /// An empty one.
    pub fn new(settings: Settings) -> Self {
        Self {
            scheduler: Scheduler::new(settings.scheduler.clone()),
            settings,
            entries: HashMap::new(),
            lines: HashMap::new(),
            workers: BTreeMap::new(),
            delayed: BTreeSet::new(),
            stopping: BTreeSet::new(),
            placing: BTreeSet::new(),
            to_place: VecDeque::new(),
            placing_off: false,
            locks: BTreeSet::new(),
            imported: BTreeSet::new(),
            mdts: BTreeSet::new(),
            counts: Default::default(),
            stats: view::Stats::default(),
            next_id: 1,
            next_lease: 1,
            dirty: BTreeSet::new(),
            meta_dirty: false,
            events: Vec::new(),
            wake: false,
        }
    }

    /// Goes by other limits, orders, weights and times from now on. What requests that are there are sorted by (shares,
    /// hosts, batches, placing) stays as it was.
    pub fn set_limits(&mut self, settings: &Settings) {
        (self.settings.retry, self.settings.cancel_limit) = (settings.retry, settings.cancel_limit);
        self.scheduler.set_limits(&settings.scheduler);
        self.wake = true;
    }

    // --- entrances ---

    /// Takes a request in.
    pub fn admit(&mut self, mut request: Request, arrival: Arrival, now: Now) -> Admitted {
        if let Source::Coordinator { cookie } = request.source
            && let Some(id) = self.find(&request.mdt, cookie, request.fid)
            && let Some(entry) = self.entries.get_mut(&id)
        {
            let running = matches!(entry.state, State::Running { .. });
            if arrival == Arrival::Listed || !running {
                return Admitted::Duplicate(id);
            }
            entry.again = true;
            self.dirty.insert(id);
            return Admitted::Again(id);
        }
        let (hosts, data) = self.scheduler.route(&request);
        if let Some(data) = data {
            request.data = (*data).into();
        }
        request.mdt = self.intern(request.mdt);
        if request.received_ns == 0 {
            request.received_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        }
        let id = self.next_id;
        self.next_id += 1;
        let hosts = self.scheduler.intern(hosts);
        let placing = self.is_to_be_placed(request.kind, &hosts);
        let entry = Entry {
            request: Arc::new(request),
            hosts,
            trouble: None,
            state: State::Waiting,
            rank: 0,
            order: i64::try_from(id).unwrap_or(i64::MAX),
            next: 0,
            last: 0,
            cancel: false,
            again: false,
            ran: false,
            ready: false,
            placing,
        };
        self.stats.admitted[entry.request.kind.at()] += 1;
        self.add(id, entry, now);
        self.event(id, What::New);
        if let Some([host]) = self.entries.get(&id).and_then(|entry| entry.hosts.names()) {
            let host = Arc::from(&**host);
            self.event(id, What::Assigned(host));
        }
        Admitted::New(id)
    }

    /// The id of an MDT's request.
    pub fn find(&self, mdt: &str, cookie: u64, fid: Fid) -> Option<u64> {
        let wanted =
            |entry: &Entry| entry.request.cookie() == Some(cookie) && *entry.request.mdt == *mdt;
        let mut id = self.lines.get(&fid).copied().unwrap_or(0);
        while let Some(entry) = self.entries.get(&id) {
            if wanted(entry) {
                return Some(id);
            }
            id = entry.next;
        }
        None
    }

    /// Ends a request that need not be done any more.
    pub fn cancel(&mut self, id: u64, now: Now) -> Cancelled {
        let Some(entry) = self.entries.get_mut(&id) else { return Cancelled::Unknown };
        if let State::Running { worker, .. } = &entry.state {
            let worker = Arc::clone(worker);
            entry.again = false;
            if !entry.cancel {
                entry.cancel = true;
                self.dirty.insert(id);
                self.watch_cancel(id, now);
                self.event(id, What::CancelRunning(Arc::clone(&worker)));
            }
            return Cancelled::Running(worker);
        }
        let request = Arc::clone(&entry.request);
        self.free_cancelled(id, now);
        Cancelled::Freed(request)
    }

    fn watch_cancel(&mut self, id: u64, now: Now) {
        if let Some(limit) = self.settings.cancel_limit {
            self.stopping.insert((now + limit, id));
        }
    }

    fn free_cancelled(&mut self, id: u64, now: Now) {
        let Some(entry) = self.entries.get(&id) else { return };
        self.stats.cancelled[entry.request.kind.at()] += 1;
        let ran = entry.ran;
        self.event(id, What::Cancelled { ran });
        self.free(id, now);
    }

    // --- exits ---

    /// A worker is there (again). What it held before, it holds still.
    pub fn hello(&mut self, spec: WorkerSpec, now: Now) {
        let name = Arc::clone(&spec.name);
        self.scheduler.set_connected(&name, true);
        match self.workers.get_mut(&name) {
            Some(worker) => worker.came_back(spec, now),
            None => {
                self.workers.insert(name, Worker::new(spec, now));
            }
        }
        self.wake = true;
    }

    /// A worker that is not there, but may come and say what it runs.
    pub fn remember(&mut self, name: &str, grace: Duration, now: Now) {
        let name: Arc<str> = name.into();
        let remembered = || Worker::remembered(Arc::clone(&name), grace, now);
        self.workers.entry(Arc::clone(&name)).or_insert_with(remembered);
    }

    /// Whether everything was taken over from there once.
    pub fn has_imported(&self, from: &str) -> bool {
        self.imported.contains(from)
    }

    /// Notes that it was.
    pub fn set_imported(&mut self, from: &str) {
        self.meta_dirty |= self.imported.insert(from.to_owned());
    }

    /// A sign of life.
    pub fn heard(&mut self, worker: &str, now: Now) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.heard = now;
        }
    }

    /// For so long nobody could be answered: who was silent meanwhile may have waited for us.
    pub fn excuse(&mut self, pause: Duration, now: Now) {
        for worker in self.workers.values_mut() {
            worker.heard = (worker.heard + pause).min(now).max(worker.heard);
        }
    }

    /// Hands out what a worker wants, as far as there is something for it.
    pub fn take(&mut self, worker: &str, wants: &Wants, now: Now) -> Vec<Assignment> {
        let mut taken = Vec::new();
        let Some((name, _)) = self.workers.get_key_value(worker) else { return taken };
        let name = Arc::clone(name);
        let mut bytes_left = wants.bytes;
        let mut uniform = None;
        while taken.len() < wants.n as usize
            && let Some(id) = self.pick(worker, wants, bytes_left, uniform, now)
        {
            let Some(assignment) = self.start(id, &name, now) else { break };
            let request = &assignment.request;
            let bytes = wants.item_bytes + request.data.len() as u64;
            bytes_left = bytes_left.map(|left| left.saturating_sub(bytes));
            if wants.uniform {
                uniform = Some((request.archive_id, request.flags));
            }
            taken.push(assignment);
        }
        taken
    }

    fn pick(
        &mut self,
        worker: &str,
        wants: &Wants,
        bytes_left: Option<u64>,
        uniform: Option<(u32, u64)>,
        now: Now,
    ) -> Option<u64> {
        let worker = self.workers.get(worker).filter(|worker| worker.connected)?;
        let entries = &self.entries;
        let look = |id: u64| {
            let request = entries.get(&id).map(|entry| &entry.request);
            request.map_or(Look { data_bytes: 0, received: Now::ZERO }, |request| Look {
                data_bytes: request.data.len() as u64,
                received: Duration::from_nanos(request.received_ns),
            })
        };
        let (taker, locks) = (worker.taker(), &self.locks);
        self.scheduler.pick(&Ask { taker, wants, bytes_left, uniform, locks, look: &look, now })
    }

    fn start(&mut self, id: u64, worker: &Arc<str>, now: Now) -> Option<Assignment> {
        self.unready(id);
        let lease = self.next_lease;
        self.next_lease += 1;
        self.set_state(id, State::Running { worker: Arc::clone(worker), lease });
        let entry = self.entries.get_mut(&id)?;
        (entry.ran, entry.placing) = (true, false);
        let (request, failures) = (Arc::clone(&entry.request), entry.failures());
        self.scheduler.started(&request, worker, now);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.started(id, request.kind);
        }
        self.event(id, What::Sent(Arc::clone(worker)));
        Some(Assignment { id, lease, request, failures })
    }

    /// A worker says that it runs a request, wherever that is in the queue: it does, unless
    /// another one has it.
    ///
    /// # Errors
    /// If there is no such request or worker, or another worker runs it.
    pub fn claim(&mut self, id: u64, worker: &str, now: Now) -> Result<Assignment, CannotBe> {
        let Some((name, _)) = self.workers.get_key_value(worker) else {
            return Err(CannotBe::Unknown);
        };
        let name = Arc::clone(name);
        let entry = self.entries.get(&id).ok_or(CannotBe::Unknown)?;
        match &entry.state {
            State::Running { worker: other, lease } if *other == name => {
                let (request, failures) = (Arc::clone(&entry.request), entry.failures());
                Ok(Assignment { id, lease: *lease, request, failures })
            }
            state @ (State::Running { .. } | State::Dead) => Err(CannotBe::State(state.name())),
            _ => self.start(id, &name, now).ok_or(CannotBe::Unknown),
        }
    }

    /// A worker that came back has these and no others: the rest of what it had waits again.
    pub fn keep_only(&mut self, worker: &str, ids: &BTreeSet<u64>, now: Now) {
        let Some(found) = self.workers.get(worker) else { return };
        let lost: Vec<u64> = found.running.difference(ids).copied().collect();
        for id in lost {
            self.give_back(id, now);
        }
    }

    /// A worker gives a request back as it got it. False if it does not hold it.
    pub fn release(&mut self, id: u64, worker: &str, lease: Option<u64>, now: Now) -> bool {
        let held = self.holds(id, worker, lease);
        if held {
            self.give_back(id, now);
        }
        held
    }

    fn holds(&self, id: u64, worker: &str, wanted: Option<u64>) -> bool {
        match self.entries.get(&id).map(|entry| &entry.state) {
            Some(State::Running { worker: holder, lease }) => {
                **holder == *worker && wanted.is_none_or(|wanted| wanted == *lease)
            }
            _ => false,
        }
    }

    /// A worker is through with a request. Without a lease, any run of that worker is meant.
    pub fn done(
        &mut self,
        id: u64,
        worker: &str,
        lease: Option<u64>,
        outcome: Outcome,
        now: Now,
    ) -> Ended {
        if !self.entries.contains_key(&id) {
            return Ended::Unknown;
        }
        if !self.holds(id, worker, lease) {
            return Ended::NotHeld;
        }
        let Some(name) = self.stop_running(id) else { return Ended::NotHeld };
        let Some(entry) = self.entries.get_mut(&id) else { return Ended::Unknown };
        let at = entry.request.kind.at();
        let errno = match &outcome {
            Outcome::Success | Outcome::Refused => 0,
            Outcome::Failed { errno, .. } => *errno,
        };
        if let Some(worker) = self.workers.get_mut(worker) {
            if errno == 0 { worker.done[at] += 1 } else { worker.failed[at] += 1 }
        }
        if std::mem::take(&mut entry.again) && !entry.cancel {
            self.set_state(id, State::Waiting);
            self.event(id, What::Returned(name));
            self.make_ready(id, now);
            return Ended::Again;
        }
        match outcome {
            Outcome::Failed { .. } if entry.cancel => {
                self.free_cancelled(id, now);
                Ended::Freed
            }
            Outcome::Failed { errno, error } if entry.request.source == Source::Upcall => {
                let failures = entry.failures() + 1;
                entry.trouble = Some(Box::new(Trouble { failures, error: Some(error.into()) }));
                self.stats.failures[at] += 1;
                self.failed(id, errno, failures, now)
            }
            _ => {
                let kind = if errno == 0 { &mut self.stats.done } else { &mut self.stats.failures };
                kind[at] += 1;
                self.stats.waited(&entry.request, now);
                self.event(id, What::Done(name, errno));
                self.free(id, now);
                Ended::Freed
            }
        }
    }

    fn failed(&mut self, id: u64, errno: i32, failures: u32, now: Now) -> Ended {
        let retry = self.settings.retry;
        if failures >= retry.attempts {
            self.set_state(id, State::Dead);
            self.leave_line(id, now);
            self.event(id, What::Dead(errno));
            return Ended::Dead;
        }
        let doubled = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        let wait = retry.first.saturating_mul(doubled).min(retry.max);
        self.set_state(id, State::Delayed(now + wait));
        self.event(id, What::Retry(errno));
        Ended::Retry
    }

    /// A worker's connection is gone. It keeps what it runs for its grace time.
    pub fn disconnected(&mut self, worker: &str, now: Now) {
        self.scheduler.set_connected(worker, false);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.connected = false;
            worker.gone_at = Some(now + worker.spec.grace);
        }
    }

    /// A worker is dead: others get what it had.
    pub fn drop_worker(&mut self, worker: &str, now: Now) {
        let Some(found) = self.workers.get(worker) else { return };
        for id in found.running.clone() {
            self.give_back(id, now);
        }
        self.workers.remove(worker);
        self.scheduler.forget_worker(worker);
        self.wake = true;
    }

    // --- time ---

    /// Does what is due.
    pub fn tick(&mut self, now: Now) {
        while let Some(&(until, id)) = self.delayed.first()
            && until <= now
        {
            self.set_state(id, State::Waiting);
            self.make_ready(id, now);
        }
        while let Some(&(until, id)) = self.stopping.first()
            && until <= now
        {
            self.stopping.pop_first();
            let ignored = self.entries.get(&id).is_some_and(|entry| entry.cancel);
            if ignored && self.stop_running(id).is_some() {
                self.free_cancelled(id, now);
            }
        }
        while let Some(&(until, id)) = self.placing.first()
            && until <= now
        {
            self.placing.pop_first();
            if self.entries.get(&id).is_some_and(|entry| entry.placing) {
                self.stats.unplaced += 1;
                self.placed(id, None, now);
            }
        }
        let dead = self.workers.values().filter(|worker| worker.dies_at() <= Some(now));
        let dead = dead.filter(|worker| worker.dies_at().is_some());
        for name in dead.map(|worker| Arc::clone(&worker.spec.name)).collect::<Vec<_>>() {
            self.drop_worker(&name, now);
        }
        if self.scheduler.next_deadline(Now::ZERO).is_some_and(|at| at <= now) {
            self.wake = true;
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self, now: Now) -> Option<Now> {
        let delayed = self.delayed.first().map(|&(until, _)| until);
        let stopping = self.stopping.first().map(|&(until, _)| until);
        let placing = self.placing.first().map(|&(until, _)| until);
        let deaths = self.workers.values().filter_map(Worker::dies_at).min();
        let slots = self.scheduler.next_deadline(now);
        [delayed, stopping, placing, deaths, slots].into_iter().flatten().min()
    }

    // --- operators ---

    /// Keeps a request from being started.
    ///
    /// # Errors
    /// If it runs or is dead.
    pub fn hold(&mut self, id: u64) -> Result<(), CannotBe> {
        let entry = self.entries.get(&id).ok_or(CannotBe::Unknown)?;
        match &entry.state {
            State::Held => return Ok(()),
            State::Waiting | State::Delayed(_) => {}
            state => return Err(CannotBe::State(state.name())),
        }
        self.unready(id);
        self.set_state(id, State::Held);
        self.event(id, What::Held(true));
        Ok(())
    }

    /// Lets a request that is held, delayed or dead go on as if it were new.
    ///
    /// # Errors
    /// If it runs.
    pub fn requeue(&mut self, id: u64, now: Now) -> Result<(), CannotBe> {
        let entry = self.entries.get_mut(&id).ok_or(CannotBe::Unknown)?;
        let was_dead = match &entry.state {
            State::Waiting => return Ok(()),
            state @ State::Running { .. } => return Err(CannotBe::State(state.name())),
            state => *state == State::Dead,
        };
        entry.trouble = None;
        self.set_state(id, State::Waiting);
        if was_dead {
            self.join_line(id);
        }
        self.event(id, What::Held(false));
        self.make_ready(id, now);
        Ok(())
    }

    /// Puts a request elsewhere. It still waits for earlier ones on its file.
    ///
    /// # Errors
    /// If it runs.
    pub fn move_to(&mut self, id: u64, to: Move, now: Now) -> Result<(), CannotBe> {
        let entry = self.entries.get(&id).ok_or(CannotBe::Unknown)?;
        if let state @ State::Running { .. } = &entry.state {
            return Err(CannotBe::State(state.name()));
        }
        self.unready(id);
        let mut hosts = None;
        let turns = self.entries.values().map(|entry| (entry.rank, entry.order));
        let turn = match &to {
            Move::First => turns.min().map(|(rank, order)| (rank, order - 1)),
            Move::Last => turns.max().map(|(rank, order)| (rank, order + 1)),
            Move::Hosts(Some(names)) => {
                hosts =
                    Some(self.scheduler.intern(HostSet::only(names.iter().map(String::as_str))));
                None
            }
            Move::Hosts(None) => {
                hosts = Some(HostSet::default());
                None
            }
            Move::Archive(_) => None,
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            (entry.rank, entry.order) = turn.unwrap_or((entry.rank, entry.order));
            entry.placing &= hosts.is_none();
            entry.hosts = hosts.unwrap_or_else(|| entry.hosts.clone());
            if let Move::Archive(archive_id) = to {
                Arc::make_mut(&mut entry.request).archive_id = archive_id;
            }
        }
        self.dirty.insert(id);
        self.make_ready(id, now);
        Ok(())
    }

    /// Starts nothing that this matches, until [`Self::unlock`]; what runs goes on.
    pub fn lock(&mut self, lock: Lock) {
        self.meta_dirty |= self.locks.insert(lock);
    }

    /// Takes a lock away. False if there was none like it.
    pub fn unlock(&mut self, lock: &Lock) -> bool {
        let was_there = self.locks.remove(lock);
        self.meta_dirty |= was_there;
        self.wake |= was_there;
        was_there
    }

    // --- who is to do it ---

    /// How long a request waits to hear who is to do it, if anybody is asked.
    pub fn placing_limit(&self) -> Option<Duration> {
        self.settings.placing.map(|placing| placing.limit)
    }

    /// Whether requests that come in wait for somebody's word. False if that is so already.
    pub fn set_placing(&mut self, on: bool) -> bool {
        std::mem::replace(&mut self.placing_off, !on) == on
    }

    /// Requests about which somebody is to be asked, at most so many; each is named once.
    pub fn take_to_place(&mut self, most: usize) -> Vec<(u64, Arc<Request>)> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(id) = self.to_place.pop_front()
        {
            if let Some(entry) = self.entries.get(&id).filter(|entry| entry.placing) {
                taken.push((id, Arc::clone(&entry.request)));
            }
        }
        taken
    }

    /// The answer: which worker, or any, and when; `None` if there is none. It does not count if it comes too late.
    pub fn placed(&mut self, id: u64, plan: Option<&Plan>, now: Now) {
        let host = plan.and_then(|plan| plan.host.as_deref());
        let hosts = host.map(|host| self.scheduler.intern(HostSet::only([host])));
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.placing) else { return };
        entry.placing = false;
        let rank = plan.map_or(0, |plan| plan.rank);
        if rank != 0 || hosts.is_some() {
            self.dirty.insert(id);
        }
        entry.rank = rank;
        entry.hosts = hosts.unwrap_or_else(|| entry.hosts.clone());
        if let Some(host) = host {
            self.event(id, What::Assigned(host.into()));
        }
        self.make_ready(id, now);
    }

    // --- what is to be done about it ---

    /// True if there may be something for a worker that got nothing before.
    pub fn take_wake(&mut self) -> bool {
        std::mem::take(&mut self.wake)
    }

    /// What happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn event(&mut self, id: u64, what: What) {
        if let Some(entry) = self.entries.get(&id) {
            self.events.push(Event { id, request: Arc::clone(&entry.request), what });
        }
    }

    // --- the parts ---

    fn intern(&mut self, name: Arc<str>) -> Arc<str> {
        if let Some(known) = self.mdts.get(&name) {
            return Arc::clone(known);
        }
        self.mdts.insert(Arc::clone(&name));
        name
    }

    fn is_to_be_placed(&self, kind: Kind, hosts: &HostSet) -> bool {
        !self.placing_off
            && hosts.names().is_none()
            && self.settings.placing.is_some_and(|placing| placing.kinds[kind.at()])
    }

    fn add(&mut self, id: u64, entry: Entry, now: Now) {
        if let Some(placing) = self.settings.placing.filter(|_| entry.placing) {
            self.placing.insert((now + placing.limit, id));
            self.to_place.push_back(id);
        }
        self.counts[entry.state.at()][entry.request.kind.at()] += 1;
        let in_line = entry.state != State::Dead;
        if let State::Delayed(until) = entry.state {
            self.delayed.insert((until, id));
        }
        self.entries.insert(id, Box::new(entry));
        self.dirty.insert(id);
        if in_line {
            self.join_line(id);
            self.make_ready(id, now);
        }
    }

    fn set_state(&mut self, id: u64, state: State) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let kind = entry.request.kind.at();
        self.counts[entry.state.at()][kind] -= 1;
        self.counts[state.at()][kind] += 1;
        if let State::Delayed(until) = entry.state {
            self.delayed.remove(&(until, id));
        }
        if let State::Delayed(until) = state {
            self.delayed.insert((until, id));
        }
        entry.state = state;
        self.dirty.insert(id);
    }

    /// Hands it to the scheduler if it is its turn.
    fn make_ready(&mut self, id: u64, now: Now) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let first = self.lines.get(&entry.request.fid) == Some(&id);
        if entry.state == State::Waiting && first && !entry.ready && !entry.placing {
            entry.ready = true;
            self.scheduler.insert(entry.turn(id), &entry.request, &entry.hosts, now);
            self.wake = true;
        }
    }

    fn unready(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if std::mem::take(&mut entry.ready) {
            self.scheduler.remove(entry.turn(id), &entry.request, &entry.hosts);
        }
    }

    fn give_back(&mut self, id: u64, now: Now) {
        let Some(worker) = self.stop_running(id) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.cancel {
            self.free_cancelled(id, now);
            return;
        }
        entry.again = false;
        self.set_state(id, State::Waiting);
        self.event(id, What::Returned(worker));
        self.make_ready(id, now);
    }

    /// Off its worker. The caller sets the next state.
    fn stop_running(&mut self, id: u64) -> Option<Arc<str>> {
        let entry = self.entries.get(&id)?;
        let State::Running { worker, .. } = &entry.state else { return None };
        let (worker, request) = (Arc::clone(worker), Arc::clone(&entry.request));
        self.scheduler.ended(&request, &worker);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.ended(id, request.kind);
        }
        // There is room for another.
        self.wake = true;
        Some(worker)
    }

    fn free(&mut self, id: u64, now: Now) {
        self.unready(id);
        let Some(entry) = self.entries.get(&id) else { return };
        self.counts[entry.state.at()][entry.request.kind.at()] -= 1;
        if let State::Delayed(until) = entry.state {
            self.delayed.remove(&(until, id));
        }
        if entry.state != State::Dead {
            self.leave_line(id, now);
        }
        self.entries.remove(&id);
        self.dirty.insert(id);
    }

    fn join_line(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        (entry.next, entry.last) = (0, id);
        let first = *self.lines.entry(entry.request.fid).or_insert(id);
        if first == id {
            return;
        }
        let Some(first) = self.entries.get_mut(&first) else { return };
        let last = std::mem::replace(&mut first.last, id);
        if let Some(last) = self.entries.get_mut(&last) {
            last.next = id;
        }
    }

    fn leave_line(&mut self, id: u64, now: Now) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (fid, next, last) = (entry.request.fid, entry.next, entry.last);
        let Some(&first) = self.lines.get(&fid) else { return };
        if first != id {
            let mut before = first;
            while let Some(entry) = self.entries.get_mut(&before) {
                if entry.next == id {
                    entry.next = next;
                    break;
                }
                before = entry.next;
            }
            if next == 0
                && let Some(first) = self.entries.get_mut(&first)
            {
                first.last = before;
            }
        } else if let Some(second) = self.entries.get_mut(&next) {
            second.last = last;
            self.lines.insert(fid, next);
            self.make_ready(next, now);
        } else {
            self.lines.remove(&fid);
        }
    }
}
