//! The thread that owns the queue: Lustre, movers and operators on one side, the disk on the other.
//!
//! One turn: take what has come in, see what time does, hand out, write the changes down, and only then
//! send what was decided. What gathers during a write is written with the next.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use lcap_ffi::hsm::{ActionList, HsmAction};
use lcap_ffi::placer::Plan;
use lcap_wire::mover::MAX_FRAME_BYTES;
use tracing::{error, info, warn};

use super::active;
use super::json_port::JsonPort;
use super::lustre::{FromLustre, ToLustre};
use super::mover_socket::MoverSocket;
use super::movers::{Movers, Output, request_of};
use super::owner::Owner;
use super::placer::{MOST_ASKED, Question};
use super::queue::{Arrival, Cancelled, Changes, Event, Queue, State, What};
use super::scheduler::Now;
use super::store::SpoolMarks;
use super::workers::Workers;
use crate::wake::Waker;

/// Messages taken from the socket before the others have their turn.
const BURST: usize = 256;
/// Lists of Lustre's taken before the others have their turn.
const LISTS: usize = 256;
/// Keep-alives that may wait for Lustre.
const MAX_KEEP_ALIVES: usize = 256;
/// Waking up so much too late is a pause for which nobody else is to blame.
const OVERSLEPT: Duration = Duration::from_millis(250);
/// Before a failed write is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// Writes changes, all or nothing; returns when they are on disk.
pub type Commit = Box<dyn FnMut(Option<&Changes>, &SpoolMarks) -> Result<(), String> + Send>;
/// Something for this thread to do with its parts.
pub type Job = Box<dyn FnOnce(&mut Core, Now) + Send>;
/// How others reach the queue.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: Sender<Job>,
    waker: Waker,
}

impl Handle {
    /// To the thread that takes from the other end of `jobs`.
    pub fn new(jobs: Sender<Job>, waker: Waker) -> Self {
        Self { jobs, waker }
    }

    /// Wakes the queue's thread.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Has the queue's thread do something. Dropped undone if that has ended.
    pub fn call(&self, job: impl FnOnce(&mut Core, Now) + Send + 'static) {
        let _ = self.jobs.send(Box::new(job));
        self.waker.wake();
    }
}

/// Told of everything that happens to requests, once it is on disk.
pub type Observer = Box<dyn FnMut(&Event, Now) + Send>;

/// What the thread decides with; no I/O.
pub struct Core {
    /// The requests.
    pub queue: Queue,
    /// Who carries them out.
    pub movers: Movers,
    /// Clients of the original's protocol.
    pub json: Option<JsonPort>,
    /// `lcap hsm worker`s.
    pub workers: Workers,
    /// Files of the spool that the next write speaks of.
    pub spool_marks: SpoolMarks,
    /// Why nothing can be written down, if so.
    pub trouble: Option<String>,
    /// What to do when everything up to now is on disk.
    pub after_commit: Vec<Box<dyn FnOnce() + Send>>,
    mdt: Arc<str>,
    keep_alive: Option<Duration>,
    /// Requests of Lustre's, in the order in which they are due.
    due: VecDeque<(Now, u64)>,
    to_lustre: Vec<ToLustre>,
    /// Who is asked which mover is to do a request, and when.
    pub placer: Option<Sender<Question>>,
    /// Questions that are not answered.
    asked: usize,
    /// When the last answer came, or the first question after it was asked.
    answered: Now,
    observers: Vec<Observer>,
    /// What observers have not been told yet.
    unobserved: Vec<(Event, Now)>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("queue", &self.queue.len()).finish_non_exhaustive()
    }
}

impl Core {
    /// With a recovered queue. `mdt` is what Lustre's requests are filed under, `keep_alive` how often
    /// Lustre is told of those that wait.
    pub fn new(
        queue: Queue,
        movers: Movers,
        json: Option<JsonPort>,
        mdt: Arc<str>,
        keep_alive: Option<Duration>,
        now: Now,
    ) -> Self {
        let mut core = Self {
            queue,
            movers,
            json,
            workers: Workers::default(),
            spool_marks: SpoolMarks::default(),
            trouble: None,
            after_commit: Vec::new(),
            mdt,
            keep_alive,
            due: VecDeque::new(),
            to_lustre: Vec::new(),
            placer: None,
            asked: 0,
            answered: now,
            observers: Vec::new(),
            unobserved: Vec::new(),
        };
        let mut known: Vec<u64> = core
            .queue
            .iter()
            .filter(|view| view.request.cookie().is_some())
            .map(|view| view.id)
            .collect();
        known.sort_unstable();
        // What was kept alive by the last lcapd may be near its end.
        if keep_alive.is_some() {
            core.due.extend(known.into_iter().map(|id| (now, id)));
        }
        core
    }

    /// What requests are filed under whose MDT nobody knows.
    pub fn any_mdt(&self) -> Arc<str> {
        Arc::clone(&self.mdt)
    }

    /// Has somebody told of everything that happens to requests.
    pub fn add_observer(&mut self, observer: Observer) {
        self.observers.push(observer);
    }

    fn tell_observers(&mut self) {
        for (event, at) in self.unobserved.drain(..) {
            for observer in &mut self.observers {
                observer(&event, at);
            }
        }
    }

    /// Ends a mover or worker, of whatever kind: others get at once what it has. How much that was; `None` if there
    /// is none of that name.
    pub fn drop_worker(&mut self, name: &str, now: Now) -> Option<usize> {
        let had = self.queue.worker(name)?.running.len();
        // It hears of it, and may come back with nothing; a worker hears of it with its next report.
        self.movers.drop_mover(&mut self.queue, name, now);
        if let Some(json) = &mut self.json {
            json.drop_mover(name);
        }
        self.queue.drop_worker(name, now);
        Some(had)
    }

    /// Something that Lustre said.
    pub fn on_lustre(&mut self, said: FromLustre, now: Now) {
        match said {
            FromLustre::List(bytes) => self.on_list(&bytes, &[], now),
            FromLustre::Owned(bytes, owners) => self.on_list(&bytes, &owners, now),
            FromLustre::Active(text) => self.on_active(&text, now),
            FromLustre::Trouble { id, errno } => {
                if errno == libc::ENOENT {
                    info!(id, "Lustre does not know this request any more");
                }
                self.queue.cancel(id, now);
            }
        }
    }

    fn on_list(&mut self, bytes: &[u8], owners: &[Owner], now: Now) {
        let list = match ActionList::parse(bytes) {
            Ok(list) => list,
            Err(error) => {
                error!(%error, "a list of Lustre's cannot be read");
                return;
            }
        };
        let mdt = Arc::clone(&self.mdt);
        for (nth, item) in list.items().enumerate() {
            if item.action == HsmAction::Cancel.number() {
                let found = self.queue.find(&mdt, item.cookie, item.fid);
                let cancelled = found.map_or(Cancelled::Unknown, |id| self.queue.cancel(id, now));
                if cancelled == Cancelled::Unknown {
                    // Nobody has it: it would only wait for Lustre's time limit.
                    let mut stand_in = item;
                    stand_in.action = HsmAction::Archive.number();
                    if let Some(request) = request_of(&mdt, &list, &stand_in) {
                        let request = Arc::new(request);
                        self.to_lustre.push(ToLustre::Fail { request, errno: libc::ECANCELED });
                    }
                }
                continue;
            }
            let Some(mut request) = request_of(&mdt, &list, &item) else {
                warn!(action = item.action, cookie = item.cookie, "an action that is not known");
                continue;
            };
            owners.get(nth).copied().unwrap_or(Owner::UNKNOWN).put(&mut request);
            self.queue.admit(request, Arrival::Sent, now);
        }
    }

    fn on_active(&mut self, text: &[u8], now: Now) {
        let (mut known, mut new, mut bad) = (0, 0, 0);
        let mdt = Arc::clone(&self.mdt);
        for line in active::parse(text, &mdt) {
            match line {
                Ok(line) if line.canceled => {
                    let cookie = line.request.cookie().unwrap_or(0);
                    if self.queue.find(&mdt, cookie, line.request.fid).is_none() {
                        let request = Arc::new(line.request);
                        self.to_lustre.push(ToLustre::Fail { request, errno: libc::ECANCELED });
                    }
                }
                Ok(line) => match self.queue.admit(line.request, Arrival::Listed, now) {
                    super::queue::Admitted::New(_) => new += 1,
                    _ => known += 1,
                },
                Err(_) => bad += 1,
            }
        }
        if new + bad > 0 {
            info!(known, new, bad, "requests that the MDT had sent before");
        }
    }

    /// Does what is due, hands out what there is, and tells everybody what happened.
    pub fn settle(&mut self, now: Now) {
        self.movers.tick(&mut self.queue, now);
        if let Some(json) = &mut self.json {
            json.tick(&mut self.queue, now);
        }
        self.queue.tick(now);
        // Credit comes without the queue's knowledge, so movers are asked each time.
        self.queue.take_wake();
        self.tell_events(now);
        loop {
            self.movers.dispatch(&mut self.queue, now);
            if let Some(json) = &mut self.json {
                json.dispatch(&mut self.queue, now);
            }
            self.workers.dispatch(&mut self.queue, now);
            if !self.tell_events(now) {
                break;
            }
        }
        self.ask_placer(now);
        self.after_commit.extend(self.workers.take_after());
        self.to_lustre.extend(self.movers.take_to_lustre());
        self.to_lustre.extend(self.json.iter_mut().flat_map(JsonPort::take_to_lustre));
    }

    fn ask_placer(&mut self, now: Now) {
        let Some(placer) = &self.placer else { return };
        let Some(limit) = self.queue.placing_limit() else { return };
        if self.asked > 0 && now >= self.answered + limit && self.queue.set_placing(false) {
            warn!("the placer does not answer; until it does, requests go to any mover");
        }
        let to_place = self.queue.take_to_place(MOST_ASKED.saturating_sub(self.asked));
        if to_place.is_empty() {
            return;
        }
        if self.asked == 0 {
            self.answered = now;
        }
        self.asked += to_place.len();
        let here = self.queue.workers().filter(|worker| worker.connected);
        let movers: Arc<[CString]> =
            here.filter_map(|worker| CString::new(&*worker.spec.name).ok()).collect();
        let until = Instant::now() + limit;
        for (id, request) in to_place {
            let _ = placer.send(Question { id, request, movers: Arc::clone(&movers), until });
        }
    }

    /// What the placer says of a request; `None` if that is nothing.
    pub fn planned(&mut self, id: u64, plan: Option<Plan>, now: Now) {
        self.asked = self.asked.saturating_sub(1);
        self.answered = now;
        if self.queue.set_placing(true) {
            info!("the placer answers again");
        }
        self.queue.placed(id, plan.as_ref(), now);
    }

    /// False if nothing had happened.
    fn tell_events(&mut self, now: Now) -> bool {
        let events = self.queue.take_events();
        for event in &events {
            if let Some(interval) = self.keep_alive
                && event.what == What::New
                && event.request.cookie().is_some()
            {
                // It has just been sent, or seen.
                self.due.push_back((now + interval, event.id));
            }
            self.movers.on_event(event);
            self.workers.on_event(event);
            if let Some(json) = &mut self.json {
                json.on_event(event);
            }
        }
        let any = !events.is_empty();
        if !self.observers.is_empty() {
            self.unobserved.extend(events.into_iter().map(|event| (event, now)));
        }
        any
    }

    /// What Lustre is to be told, at most so many keep-alives.
    pub fn take_to_lustre(&mut self, room: usize, now: Now) -> Vec<ToLustre> {
        let mut told = std::mem::take(&mut self.to_lustre);
        let Some(interval) = self.keep_alive else { return told };
        let mut n = 0;
        while n < room
            && let Some(&(at, id)) = self.due.front()
            && at <= now
        {
            self.due.pop_front();
            let Some(view) = self.queue.get(id) else { continue };
            // What a mover has begun is its own to tell of. Movers of the JSON port do not say when
            // they begin: they do it at once.
            let at_mover = matches!(view.state, State::Running { worker, .. }
                if self.movers.has_begun(id)
                    || self.json.as_ref().is_some_and(|json| json.clients().has(worker)));
            self.due.push_back((now + interval, id));
            if !at_mover {
                told.push(ToLustre::KeepAlive { id, request: Arc::clone(view.request) });
                n += 1;
            }
        }
        told
    }

    /// When [`Self::settle`] or [`Self::take_to_lustre`] has something to do.
    pub fn next_deadline(&self, now: Now) -> Option<Now> {
        let due = self.keep_alive.and(self.due.front()).map(|(at, _)| *at);
        let json = self.json.as_ref().and_then(JsonPort::next_deadline);
        let workers = self.workers.next_deadline();
        let all = [self.movers.next_deadline(), self.queue.next_deadline(now), due, json, workers];
        all.into_iter().flatten().min()
    }
}

/// The thread.
pub struct Service {
    /// What it decides with.
    pub core: Core,
    /// Where movers connect.
    pub socket: Option<MoverSocket>,
    /// What Lustre says.
    pub from_lustre: Receiver<FromLustre>,
    /// What it is told.
    pub to_lustre: Sender<ToLustre>,
    /// What others want done.
    pub jobs: Receiver<Job>,
    /// The disk.
    pub commit: Commit,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("core", &self.core).finish_non_exhaustive()
    }
}

/// A ROUTER for movers, not bound yet.
///
/// # Errors
/// What libzmq says.
pub fn router(context: &zmq::Context) -> Result<zmq::Socket, zmq::Error> {
    let socket = context.socket(zmq::ROUTER)?;
    socket.set_linger(200)?;
    // Whoever connects and says nothing is not to keep a descriptor for long.
    socket.set_handshake_ivl(5_000)?;
    socket.set_rcvhwm(1000)?;
    // What a mover has credit for is sent; it must not be held up by another that does not read.
    socket.set_sndhwm(0)?;
    // So that a mover whose connection is gone is known at once when it is spoken to.
    socket.set_router_mandatory(true)?;
    socket.set_maxmsgsize(i64::try_from(MAX_FRAME_BYTES).unwrap_or(i64::MAX))?;
    Ok(socket)
}

/// Wall clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    began: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), began }
    }
}

impl Clock {
    /// Since 1970.
    pub fn now(&self) -> Now {
        self.began + self.start.elapsed()
    }
}

impl Service {
    /// Serves until told to stop. What was decided by then is on disk.
    pub fn run(&mut self) {
        let clock = Clock::default();
        let mut unwritten: Option<Changes> = None;
        let mut outputs: Vec<Output> = Vec::new();
        let mut write_at = Instant::now();
        let mut turned = clock.now();
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let now = clock.now();
            if self.core.trouble.is_some() {
                self.core.queue.excuse(now.saturating_sub(turned), now);
            }
            turned = now;
            let mut busy = self.take_messages(now);
            busy |= self.take_from_lustre(now);
            for job in self.jobs.try_iter() {
                job(&mut self.core, now);
            }
            if let Some(json) = &mut self.core.json {
                busy |= json.read(&mut self.core.queue, now);
            }
            self.core.settle(now);
            outputs.extend(self.core.movers.take_outputs());
            merge(&mut unwritten, self.core.queue.take_changes());
            let nothing = unwritten.is_none() && self.core.spool_marks.is_empty();
            if nothing || write_at <= Instant::now() {
                let written = self.write(&mut unwritten);
                turned = clock.now();
                self.core.queue.excuse(turned.saturating_sub(now), turned);
                match written {
                    Ok(()) => self.send(&mut outputs, turned),
                    Err(problem) => {
                        self.core.trouble = Some(problem.clone());
                        error!(
                            problem,
                            "requests cannot be written down; nothing is handed out or confirmed until they can"
                        );
                        write_at = Instant::now() + WRITE_AGAIN;
                    }
                }
            }
            let room = MAX_KEEP_ALIVES.saturating_sub(self.to_lustre.len());
            for told in self.core.take_to_lustre(room, now) {
                let _ = self.to_lustre.send(told);
            }
            if stopping {
                return;
            }
            if !busy {
                let wait = self.core.trouble.as_ref().map(|_| write_at);
                self.sleep(clock, wait);
            }
        }
    }

    fn write(&mut self, unwritten: &mut Option<Changes>) -> Result<(), String> {
        let marks = &self.core.spool_marks;
        if unwritten.is_some() || !marks.is_empty() {
            (self.commit)(unwritten.as_ref(), marks)?;
            *unwritten = None;
            self.core.spool_marks = SpoolMarks::default();
        }
        self.core.trouble = None;
        for then in std::mem::take(&mut self.core.after_commit) {
            then();
        }
        self.core.tell_observers();
        Ok(())
    }

    fn send(&mut self, outputs: &mut Vec<Output>, now: Now) {
        for Output { peer, frames } in std::mem::take(outputs) {
            let Some(socket) = &self.socket else { break };
            let all = std::iter::once(peer.to_vec()).chain(frames);
            match socket.socket().send_multipart(all, zmq::DONTWAIT) {
                Ok(()) => {}
                Err(zmq::Error::EHOSTUNREACH) => {
                    self.core.movers.unreachable(&mut self.core.queue, &peer, now);
                }
                Err(error) => warn!(%error, "cannot send to a mover"),
            }
        }
        if let Some(json) = &mut self.core.json {
            json.flush(now);
        }
    }

    /// True if there may be more.
    fn take_messages(&mut self, now: Now) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let core = &mut self.core;
        socket.revoke(&mut core.movers, &mut core.queue, now);
        for _ in 0..BURST {
            let Some((peer, frames)) = socket.receive() else { return false };
            let from = (&peer, socket.client_of(&peer));
            core.movers.on_message_of(&mut core.queue, from, &frames, now);
        }
        true
    }

    fn take_from_lustre(&mut self, now: Now) -> bool {
        for _ in 0..LISTS {
            let Ok(said) = self.from_lustre.try_recv() else { return false };
            self.core.on_lustre(said, now);
        }
        true
    }

    fn sleep(&mut self, clock: Clock, wait: Option<Instant>) {
        self.waker.falling_asleep();
        let ready = !self.from_lustre.is_empty()
            || !self.jobs.is_empty()
            || self.stop.load(Ordering::Relaxed);
        if !ready {
            let now = clock.now();
            let left = self.core.next_deadline(now).map(|at| at.saturating_sub(now));
            let wait = wait.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.into_iter().chain(wait).min().unwrap_or(Duration::from_secs(60));
            // Rounded up: a poll that returns a moment too early would spin.
            let timeout = (left + Duration::from_micros(999)).as_millis();
            let asleep = Instant::now();
            let mut items = vec![zmq::PollItem::from_fd(self.waker.raw_fd(), zmq::POLLIN)];
            let socket = self.socket.as_ref().map(MoverSocket::socket);
            items.extend(socket.map(|socket| socket.as_poll_item(zmq::POLLIN)));
            let json: Vec<(RawFd, bool)> =
                self.core.json.as_ref().map(JsonPort::wants).unwrap_or_default();
            items.extend(json.into_iter().map(|(fd, write)| {
                zmq::PollItem::from_fd(
                    fd,
                    if write { zmq::POLLIN | zmq::POLLOUT } else { zmq::POLLIN },
                )
            }));
            let _ = zmq::poll(&mut items, i64::try_from(timeout).unwrap_or(60_000));
            let slept = asleep.elapsed();
            if slept > left + OVERSLEPT {
                // We were stopped, or the machine was: others may have waited for us all the time.
                self.core.queue.excuse(slept, clock.now());
            }
        }
        self.waker.awake();
    }
}

/// Changes that were not written yet, and later ones.
fn merge(unwritten: &mut Option<Changes>, new: Option<Changes>) {
    match (unwritten.as_mut(), new) {
        (Some(old), Some(new)) => {
            // Later ones are applied later, and replace.
            old.requests.extend(new.requests);
            old.meta = new.meta;
        }
        (None, Some(new)) => *unwritten = Some(new),
        (_, None) => {}
    }
}
