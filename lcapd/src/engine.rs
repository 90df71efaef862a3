//! What goes to whom, what is settled, and what may be cleared: rules without I/O.
//!
//! Requests, progress, results and the time come in; [`Effect`]s go out, and `server.rs` carries
//! them out. No socket, thread, file or clock is used here, so that schedules of crashes and losses
//! can be tested with values.
//!
//! * [`position`]: one reader on one MDT. * [`queue`]: one queue stream on one MDT.
//! * [`retention`]: when an MDT is cleared. * [`sessions`]: requests of clients.
//! * [`sinks`]: readers that are part of lcapd.
//! * [`status`]: what is shown to people.
#![forbid(unsafe_code)]

pub mod position;
pub mod queue;
pub mod retention;
pub mod sessions;
pub mod sinks;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{Delivery, Reply, StreamKind};
use tracing::{error, info, warn};

use crate::log::MdtLog;
use crate::pipeline::Outgoing;
use crate::policy::FiguresSlot;
use crate::store::{Change, MdtState, ReaderState, Saved};
use crate::taps::{Tap, TapId};
use position::{Position, Sent};
use queue::Queue;
use retention::{ClearPolicy, Need, Now, Retention, floor};
use sessions::Session;

/// A commit begins when something waits for it, or this long after the first change.
const COMMIT_DELAY: Duration = Duration::from_millis(200);
/// Pause after a failed commit.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

/// Who sent a request, and where the answer goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Which of the server's sockets.
    pub socket: usize,
    /// The connection's identity there.
    pub identity: Vec<u8>,
    /// It is a REQ socket, which puts an empty frame before its messages.
    pub delimiter: bool,
}

/// What the engine wants done.
#[derive(Debug)]
pub enum Effect {
    /// Send a control message.
    Send(Peer, Vec<u8>),
    /// Begin to read what came before the live stream, for a session.
    StartCatchUp {
        /// The session.
        session: u64,
        /// What to read.
        start: CatchUpStart,
    },
    /// A consumer gave a filter that no other has.
    OpenTap {
        /// Number of the stream.
        stream: usize,
        /// The filter.
        tap: Arc<Tap>,
    },
    /// The last consumer with that filter is gone.
    CloseTap {
        /// Number of the stream.
        stream: usize,
        /// The filter's number.
        id: TapId,
    },
    /// The session has room for messages up to this number.
    Credit {
        /// The session.
        session: u64,
        /// The number.
        upto: u64,
    },
    /// The session is over: end its catch-up.
    EndSession(u64),
    /// Send a batch of a queue to a member.
    Dispatch {
        /// The member's data connection.
        peer: Peer,
        /// Number of the stream.
        stream: usize,
        /// Number of the MDT.
        mdt: usize,
        /// The batch.
        batch: queue::BatchId,
        /// The message's number within the session.
        sequence: u64,
        /// Somebody else may have had it.
        redelivered: bool,
    },
    /// Write to the store; answered by [`Engine::committed`].
    Commit {
        /// What is new.
        changes: Vec<Change>,
        /// Where digests have to go along.
        tails: Vec<TailWanted>,
    },
    /// Clear an MDT; answered by [`Engine::cleared`].
    Clear {
        /// Number of the MDT.
        mdt: usize,
        /// Up to here, inclusive.
        upto: RecordIndex,
        /// The history that the index belongs to.
        generation: u16,
    },
    /// Ask a stream's policies up to where the MDT may be cleared; answered by
    /// [`Engine::policy_allows`].
    AskPolicy {
        /// Number of the stream.
        stream: usize,
        /// Number of the MDT.
        mdt: usize,
        /// Registered readers and their watermarks.
        readers: Vec<(String, RecordIndex)>,
        /// What the host would clear; zero, which is nothing, if nobody is registered.
        offer: RecordIndex,
        /// Given back with the answer.
        proposed: RecordIndex,
    },
    /// Read a stream's policies again.
    ReloadPolicies {
        /// Number of the stream.
        stream: usize,
        /// Who asked.
        peer: Peer,
        /// Of the request.
        id: Option<u64>,
    },
}

/// A place within an MDT's log is written down, and says nothing unless it is known, too, which
/// records its indexes meant.
#[derive(Clone, Debug)]
pub struct TailWanted {
    /// Number of the MDT.
    pub mdt: usize,
    /// Its log's name in the store.
    pub key: String,
    /// The history that the places are of. The log may be in a newer one already, and its newest
    /// records then say nothing of what these places meant.
    pub generation: u16,
}

impl TailWanted {
    /// What to write, if there is anything to say.
    pub fn of(&self, log: &MdtLog) -> Option<Change> {
        let tail = log.tail_of(self.generation);
        (!tail.is_empty()).then(|| Change::Tail(self.key.clone(), tail))
    }
}

/// What a catch-up reads.
#[derive(Clone, Debug)]
pub struct CatchUpStart {
    /// Number of the stream.
    pub stream: usize,
    /// Number of the MDT.
    pub mdt: usize,
    /// First index wanted.
    pub from: RecordIndex,
    /// The client has had what lies right before it.
    pub continues: bool,
    /// The history that these indexes belong to.
    pub generation: u16,
    /// Join the live stream at the end.
    pub follow: bool,
    /// Which records the client wants.
    pub filter: Option<Arc<Tap>>,
    /// The present state first, and `from` means what comes after it.
    pub snapshot: bool,
}

/// What the engine is told of an MDT when it is made.
#[derive(Clone, Debug)]
pub struct MdtSetup {
    /// Its name.
    pub name: MdtName,
    /// What this log of it holds: an MDT may have one of each kind.
    pub kind: StreamKind,
    /// Its source, for people.
    pub source: String,
    /// We may clear it: we have a changelog user there.
    pub clears: bool,
}

/// What an MDT's log of that kind is called in the store.
pub fn log_key(kind: StreamKind, mdt: &MdtName) -> String {
    match kind {
        StreamKind::Changelog => mdt.to_string(),
        StreamKind::Hsm => format!("hsm:{mdt}"), // no MDT's name has a colon
    }
}

impl MdtSetup {
    fn key(&self) -> String {
        log_key(self.kind, &self.name)
    }
}

/// What the engine is told of a stream when it is made.
#[derive(Clone, Debug)]
pub struct StreamSetup {
    /// Its name.
    pub name: String,
    /// Which logs it reads.
    pub kind: StreamKind,
    /// Who gets what.
    pub delivery: Delivery,
    /// Where clients connect for data.
    pub publish: String,
    /// Lanes of a queue.
    pub lanes: u16,
    /// Its policies have a say in clearing.
    pub policy_clears: bool,
    /// Its policies make records of their own: under one index there may be another record each
    /// time that they run ([`crate::policy::Chain::merges`]).
    pub merges: bool,
    /// See [`crate::config::Stream`].
    pub max_idle: Duration,
    /// See [`crate::config::Stream`].
    pub max_lag: u64,
}

/// Fixed figures.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// One life of lcapd.
    pub epoch: u64,
    /// Makes session numbers hard to guess.
    pub seed: u64,
    /// How often a client has to be heard of.
    pub heartbeat: Duration,
    /// When to clear MDTs.
    pub clear: ClearPolicy,
}

/// What is known of a worker at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerState {
    /// See [`crate::worker::Progress`].
    pub sent_records: u64,
    /// Dropped by policies.
    pub dropped: u64,
    /// Held by policies.
    pub held: u64,
    /// Last sequence.
    pub sequence: u64,
    /// What acknowledgements need.
    pub sent: Sent,
    /// The history that `sent` belongs to.
    pub generation: u16,
    /// A policy stopped it.
    pub stopped: bool,
}

/// What is known of an MDT's reader thread at one moment.
#[derive(Clone, Debug, Default)]
pub struct MdtNow {
    /// Newest index read.
    pub read_index: RecordIndex,
    /// Records read in this epoch.
    pub records: u64,
    /// Gaps seen in this epoch.
    pub gaps: u64,
    /// The source has nothing more.
    pub at_end: bool,
    /// It was found to be the log that was read before: its indexes mean what they meant.
    pub compared: bool,
    /// There is nothing in it to compare.
    pub empty: bool,
    /// Why the source is away.
    pub trouble: Option<String>,
}

/// Why an MDT was not cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCleared {
    /// It is being opened again, or began a new history: it was not asked.
    NotNow,
    /// It said no.
    Failed(String),
}

#[derive(Debug)]
struct Mdt {
    setup: MdtSetup,
    state: MdtState,
    retention: Retention,
    /// To be cleared as soon as that is noted on disk.
    to_clear: Option<RecordIndex>,
    now: MdtNow,
    /// The last clear was refused: Lustre does not know our user.
    clear_trouble: Option<String>,
}

#[derive(Debug)]
struct StreamMdt {
    worker: WorkerState,
    /// What catch-ups have sent, which may be more than the live worker after a restart.
    caught_up: Sent,
    /// On disk: a broadcast stream's `low`, a queue's watermark.
    persisted: RecordIndex,
    /// On disk, or on its way there.
    noted: RecordIndex,
    /// Of a queue stream.
    queue: Option<Queue<Outgoing>>,
    at_end: bool,
    /// What the policies last answered to a clear, and to which question.
    allowed: Option<(RecordIndex, RecordIndex)>,
    asked: Option<RecordIndex>,
    /// What its policies do, for people.
    policies: Arc<FiguresSlot>,
}

#[derive(Debug)]
struct Reader {
    state: ReaderState,
    positions: Vec<Position>,
    /// On disk, by MDT.
    persisted: Vec<RecordIndex>,
    /// On disk, or on its way there.
    noted: Vec<RecordIndex>,
    last_heard: Now,
}

#[derive(Debug)]
struct Stream {
    setup: StreamSetup,
    mdts: Vec<StreamMdt>,
    readers: BTreeMap<String, Reader>,
    /// Filters in use, and by how many sessions.
    taps: Vec<(Arc<Tap>, usize)>,
    next_tap: TapId,
}

/// The state of everything that is delivered and acknowledged.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    mdts: Vec<Mdt>,
    streams: Vec<Stream>,
    /// In order of their numbers, so that one schedule has one outcome.
    sessions: BTreeMap<u64, Session>,
    session_seed: u64,
    dirty: Dirty,
    effects: Vec<Effect>,
}

/// Changes that are not on disk.
#[derive(Debug, Default)]
struct Dirty {
    /// By what they change, so that a later one replaces an earlier one.
    changes: BTreeMap<ChangeKey, Change>,
    since: Option<Now>,
    in_flight: Option<Vec<Change>>,
    not_before: Option<Now>,
    /// Why the last commit failed, if it did.
    failing: Option<String>,
    /// Answers that wait for the next commit, and for the one that is under way.
    waiting: Vec<(Peer, Reply)>,
    waiting_in_flight: Vec<(Peer, Reply)>,
}

/// Registrations before watermarks, so that a reader is there before its watermark is.
type ChangeKey = (u8, String, String, String);

fn change_key(change: &Change) -> ChangeKey {
    let own = String::clone;
    match change {
        Change::Mdt(mdt, _) => (0, own(mdt), String::new(), String::new()),
        Change::Tail(mdt, _) => (0, own(mdt), "tail".to_owned(), String::new()),
        Change::Stream(stream, mdt, _) => (1, own(stream), own(mdt), String::new()),
        Change::Reader((stream, reader), _) | Change::ReaderGone((stream, reader)) => {
            (2, own(stream), own(reader), String::new())
        }
        Change::Watermark((stream, reader), mdt, _) => (3, own(stream), own(reader), own(mdt)),
    }
}

impl Dirty {
    fn add(&mut self, change: Change, now: Now) {
        if let Change::ReaderGone((stream, reader)) = &change {
            self.changes.retain(|key, _| key.0 != 3 || (&key.1, &key.2) != (stream, reader));
        }
        self.changes.insert(change_key(&change), change);
        self.since.get_or_insert(now);
    }
}

impl Engine {
    /// An engine that goes on where `saved` says.
    pub fn new(
        settings: Settings,
        mdts: Vec<MdtSetup>,
        streams: Vec<StreamSetup>,
        saved: &Saved,
    ) -> Self {
        let mdts: Vec<Mdt> = mdts
            .into_iter()
            .map(|setup| {
                let state = saved.mdts.get(&setup.key()).cloned().unwrap_or_default();
                let (cleared, told) = (state.cleared, state.clearing);
                let (cleared, told) = (RecordIndex::new(cleared), RecordIndex::new(told));
                let retention = Retention::new(settings.clear, cleared, told);
                let (now, to_clear, clear_trouble) = (MdtNow::default(), None, None);
                Mdt { setup, state, retention, to_clear, now, clear_trouble }
            })
            .collect();
        let streams = streams.into_iter().map(|setup| Stream::restore(setup, &mdts, saved));
        let streams: Vec<Stream> = streams.collect();
        Self {
            settings,
            mdts,
            streams,
            sessions: BTreeMap::new(),
            session_seed: settings.seed,
            dirty: Dirty::default(),
            effects: Vec::new(),
        }
    }

    /// Whether there is anything that is not on disk.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.changes.is_empty() || self.dirty.in_flight.is_some()
    }

    /// What is to be done since this was called last.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Where a stream's live worker or queue has to begin reading an MDT.
    pub fn start_of(&self, stream: usize, mdt: usize) -> RecordIndex {
        let index = self.streams.get(stream).and_then(|s| s.mdts.get(mdt));
        let persisted = index.map_or(RecordIndex::ZERO, |s| s.persisted);
        persisted.max(self.gone_of(mdt)).next()
    }

    /// The MDT has forgotten up to here, or may have.
    pub fn gone_of(&self, mdt: usize) -> RecordIndex {
        self.mdts.get(mdt).map_or(RecordIndex::ZERO, |m| m.retention.given_up())
    }

    /// The MDT's present history.
    pub fn generation_of(&self, mdt: usize) -> u16 {
        self.mdts.get(mdt).map_or(0, |m| m.state.generation)
    }

    /// Notes how far a worker is.
    pub fn note_worker(&mut self, stream: usize, mdt: usize, worker: WorkerState) {
        let Some(stream) = self.streams.get_mut(stream) else { return };
        let Some(entry) = stream.mdts.get_mut(mdt) else { return };
        let generation = self.mdts.get(mdt).map_or(0, |mdt| mdt.state.generation);
        // A worker that has not seen a new history yet says nothing of it.
        let sent = if worker.generation == generation { worker.sent } else { entry.worker.sent };
        entry.worker = WorkerState { sent, ..worker };
    }

    /// Where the figures of a stream's policies are.
    pub fn watch_policies(&mut self, stream: usize, mdt: usize, policies: &Arc<FiguresSlot>) {
        if let Some(entry) = self.streams.get_mut(stream).and_then(|s| s.mdts.get_mut(mdt)) {
            entry.policies = Arc::clone(policies);
        }
    }

    /// A stream has other policies.
    pub fn policies_replaced(&mut self, stream: usize, policy_clears: bool, merges: bool) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.setup.policy_clears = policy_clears;
            // What merging ones have dropped in this epoch does not settle for others later, either.
            stream.setup.merges |= merges;
        }
    }

    /// Notes how far an MDT's reader thread is.
    pub fn note_mdt(&mut self, mdt: usize, now: MdtNow) {
        if let Some(entry) = self.mdts.get_mut(mdt) {
            entry.now = now;
        }
    }

    /// Notes that a catch-up sent a message: its client may acknowledge it.
    pub fn note_catch_up(&mut self, session: u64, low: RecordIndex, last: RecordIndex) {
        let Some(session) = self.sessions.get(&session) else { return };
        let stream = self.streams.get_mut(session.stream);
        let Some(entry) = stream.and_then(|s| s.mdts.get_mut(session.mdt)) else { return };
        entry.caught_up.low = entry.caught_up.low.max(low);
        entry.caught_up.highest = entry.caught_up.highest.max(last);
    }

    /// Takes batches of a queue in.
    pub fn queue_input(
        &mut self,
        stream: usize,
        mdt: usize,
        batches: Vec<queue::QueueBatch<Outgoing>>,
        low: RecordIndex,
        generation: u16,
    ) {
        let is_present = self.generation_of(mdt) == generation;
        // What an older history says of indexes that were issued again comes anew.
        let void_from = self.rewind_since(mdt, generation);
        let Some(queue) = self.queue_mut(stream, mdt) else { return };
        for batch in batches {
            queue.push(batch, void_from);
        }
        if is_present {
            queue.advance(low);
        }
        self.dispatch(stream, mdt);
    }

    /// Notes whether a queue's source has nothing more.
    pub fn queue_at_end(&mut self, stream: usize, mdt: usize, at_end: bool) {
        let entry = self.streams.get_mut(stream).and_then(|s| s.mdts.get_mut(mdt));
        if let Some(entry) = entry {
            entry.at_end = at_end;
            self.dispatch(stream, mdt);
        }
    }

    /// Memory that a queue holds.
    pub fn queue_bytes(&self, stream: usize, mdt: usize) -> usize {
        let entry = self.streams.get(stream).and_then(|s| s.mdts.get(mdt));
        entry.and_then(|e| e.queue.as_ref()).map_or(0, Queue::bytes)
    }

    /// A batch that is to be sent, and which of its records.
    pub fn queue_batch(
        &self,
        stream: usize,
        mdt: usize,
        batch: queue::BatchId,
    ) -> Option<(&queue::QueueBatch<Outgoing>, &[u32])> {
        let entry = self.streams.get(stream)?.mdts.get(mdt)?;
        entry.queue.as_ref()?.batch(batch)
    }

    fn queue_mut(&mut self, stream: usize, mdt: usize) -> Option<&mut Queue<Outgoing>> {
        self.streams.get_mut(stream)?.mdts.get_mut(mdt)?.queue.as_mut()
    }

    /// What was to be committed is on disk, or could not be written.
    pub fn committed(&mut self, result: Result<(), String>, now: Now) {
        let Some(changes) = self.dirty.in_flight.take() else { return };
        let waiting = std::mem::take(&mut self.dirty.waiting_in_flight);
        match result {
            Ok(()) => {
                if self.dirty.failing.take().is_some() {
                    info!("state is written again");
                }
                self.dirty.not_before = None;
                for change in changes {
                    self.is_on_disk(change);
                }
                for (peer, reply) in waiting {
                    self.effects.push(Effect::Send(peer, reply.encode()));
                }
            }
            Err(error) => {
                if self.dirty.failing.replace(error.clone()).is_none() {
                    error!(error, "cannot write state: nothing will be cleared until it can");
                }
                for change in changes {
                    let key = change_key(&change);
                    self.dirty.changes.entry(key).or_insert(change);
                }
                self.dirty.since.get_or_insert(now);
                self.dirty.not_before = Some(now + COMMIT_PAUSE);
                for (peer, reply) in waiting {
                    let text = format!("cannot write state: {error}");
                    let reply = Reply::error(reply.id, libc::EIO, text);
                    self.effects.push(Effect::Send(peer, reply.encode()));
                }
            }
        }
        self.tick(now);
    }

    fn is_on_disk(&mut self, change: Change) {
        let mdts = &self.mdts;
        let mdt_at = |stream: &Stream, name: &str| {
            mdts.iter().position(|m| m.setup.name.as_str() == name && stream.reads(m))
        };
        match change {
            Change::Stream(stream, mdt, index) => {
                let stream = self.streams.iter_mut().find(|s| s.setup.name == stream);
                let mdt = stream.as_ref().and_then(|stream| mdt_at(stream, &mdt));
                if let Some(entry) = stream.zip(mdt).and_then(|(s, m)| s.mdts.get_mut(m)) {
                    // A new history may have begun since that was sent to the disk.
                    entry.persisted = index.min(entry.noted);
                }
            }
            Change::Watermark((stream, reader), mdt, index) => {
                let stream = self.streams.iter_mut().find(|s| s.setup.name == stream);
                let mdt = stream.as_ref().and_then(|stream| mdt_at(stream, &mdt));
                let reader = stream.and_then(|s| s.readers.get_mut(&reader)).zip(mdt);
                if let Some((reader, mdt)) = reader {
                    // A new history may have begun since, or another reader of that name.
                    reader.persisted[mdt] = index.min(reader.noted[mdt]);
                }
            }
            Change::Mdt(key, state) => {
                let at = self.mdts.iter().position(|mdt| mdt.setup.key() == key);
                let Some(at) = at else { return };
                let (mdt, generation) = (&mut self.mdts[at], state.generation);
                let noted = |upto: &RecordIndex| {
                    upto.get() <= state.clearing && generation == mdt.state.generation
                };
                if let Some(upto) = mdt.to_clear.take_if(|upto| noted(upto)) {
                    self.effects.push(Effect::Clear { mdt: at, upto, generation });
                }
            }
            Change::Tail(..) | Change::Reader(..) | Change::ReaderGone(..) => {}
        }
    }

    /// What was to be cleared is cleared, or not. `generation` is as in [`Effect::Clear`].
    pub fn cleared(
        &mut self,
        mdt: usize,
        upto: RecordIndex,
        generation: u16,
        result: Result<(), NotCleared>,
        now: Now,
    ) {
        let Some(entry) = self.mdts.get_mut(mdt) else { return };
        if entry.state.generation != generation {
            return; // the index means other records by now
        }
        match result {
            Ok(()) => {
                entry.retention.done(upto, now);
                if entry.clear_trouble.take().is_some() {
                    info!(mdt = %entry.setup.name, upto = upto.get(), "changelog is cleared again");
                }
                entry.state.cleared = entry.retention.cleared().get();
                let change = Change::Mdt(entry.setup.key(), entry.state.clone());
                self.dirty.add(change, now);
            }
            Err(NotCleared::NotNow) => entry.retention.put_off(),
            Err(NotCleared::Failed(error)) => {
                entry.retention.failed(now);
                if entry.clear_trouble.as_ref() != Some(&error) {
                    warn!(mdt = %entry.setup.name, upto = upto.get(), error,
                        "changelog clear failed, will retry");
                    entry.clear_trouble = Some(error);
                }
            }
        }
        self.tick(now);
    }

    /// The policies of a stream have answered [`Effect::AskPolicy`].
    pub fn policy_allows(
        &mut self,
        stream: usize,
        mdt: usize,
        proposed: RecordIndex,
        upto: RecordIndex,
        now: Now,
    ) {
        let entry = self.streams.get_mut(stream).and_then(|s| s.mdts.get_mut(mdt));
        if let Some(entry) = entry {
            entry.asked = None;
            entry.allowed = Some((proposed, upto));
        }
        self.clear_mdts(now);
    }

    /// Does what the time asks for. To be called after everything else, and at [`Self::wake_at`].
    pub fn tick(&mut self, now: Now) {
        self.expire_sessions(now);
        self.settle_all(now);
        self.suspend_readers(now);
        self.clear_mdts(now);
        self.commit_if_due(now);
    }

    /// When [`Self::tick`] has to be called at the latest.
    pub fn wake_at(&self, now: Now) -> Now {
        // Progress of workers is looked at as often as MDTs may be cleared, and at a tenth of
        // that for commits; nothing here is worth more than that.
        let regular = now + self.settings.clear.interval.min(Duration::from_secs(1));
        let commit = self.dirty.since.filter(|_| self.dirty.in_flight.is_none());
        let commit = commit.map(|at| (at + COMMIT_DELAY).max(self.dirty.not_before.unwrap_or(at)));
        commit.map_or(regular, |at| at.min(regular)).max(now)
    }

    /// Moves every reader over records that policies dropped, and notes what is to be written.
    fn settle_all(&mut self, now: Now) {
        for stream in &mut self.streams {
            for mdt_at in 0..self.mdts.len() {
                if !stream.reads(&self.mdts[mdt_at]) {
                    continue;
                }
                stream.settle(mdt_at, &self.mdts[mdt_at].setup.name, &mut self.dirty, now);
            }
        }
    }

    fn clear_mdts(&mut self, now: Now) {
        for mdt_at in 0..self.mdts.len() {
            let mut needs = Vec::with_capacity(self.streams.len());
            for (stream_at, stream) in self.streams.iter_mut().enumerate() {
                if !stream.reads(&self.mdts[mdt_at]) {
                    continue;
                }
                let need = stream.need(mdt_at);
                needs.push(if stream.setup.policy_clears {
                    stream.ask_policy(stream_at, mdt_at, need, &mut self.effects)
                } else {
                    need
                });
            }
            let mdt = &mut self.mdts[mdt_at];
            // Until it is known that its indexes mean what they meant, nothing of it goes. But one
            // that has nothing may be told again what it knows: a quiet MDT is to keep our user.
            let again = mdt.now.empty && mdt.retention.given_up() == mdt.retention.cleared();
            if !mdt.setup.clears || !(mdt.now.compared || again) {
                continue;
            }
            let floor = floor(needs).filter(|_| mdt.now.compared);
            let Some(upto) = mdt.retention.due(floor, now) else { continue };
            let generation = mdt.state.generation;
            if upto.get() <= mdt.state.clearing && upto == mdt.retention.cleared() {
                // The same again, to be remembered by the MDT.
                self.effects.push(Effect::Clear { mdt: mdt_at, upto, generation });
                continue;
            }
            mdt.state.clearing = upto.get();
            mdt.to_clear = Some(upto);
            let change = Change::Mdt(mdt.setup.key(), mdt.state.clone());
            self.dirty.add(change, now);
        }
    }

    fn commit_if_due(&mut self, now: Now) {
        let dirty = &mut self.dirty;
        let due = dirty.since.is_some_and(|since| now >= since + COMMIT_DELAY);
        let paused = dirty.not_before.is_some_and(|at| now < at);
        if dirty.in_flight.is_some() || paused || (!due && dirty.waiting.is_empty()) {
            return;
        }
        let changes: Vec<Change> = std::mem::take(&mut dirty.changes).into_values().collect();
        dirty.since = None;
        dirty.waiting_in_flight = std::mem::take(&mut dirty.waiting);
        dirty.in_flight = Some(changes.clone());
        let tails = self.tails_of(&changes);
        self.effects.push(Effect::Commit { changes, tails });
    }

    fn tails_of(&self, changes: &[Change]) -> Vec<TailWanted> {
        let kind_of = |stream: &str| {
            self.streams.iter().find(|s| s.setup.name == stream).map(|s| s.setup.kind)
        };
        let places: BTreeSet<String> = (changes.iter())
            .filter_map(|change| match change {
                Change::Stream(stream, mdt, _) | Change::Watermark((stream, _), mdt, _) => {
                    Some(log_key(kind_of(stream)?, &mdt.parse().ok()?))
                }
                _ => None,
            })
            .collect();
        let wanted = |(at, mdt): (usize, &Mdt)| {
            let (key, generation) = (mdt.setup.key(), mdt.state.generation);
            places.contains(&key).then_some(TailWanted { mdt: at, key, generation })
        };
        self.mdts.iter().enumerate().filter_map(wanted).collect()
    }

    fn suspend_readers(&mut self, now: Now) {
        for stream in &mut self.streams {
            let (max_idle, max_lag) = (stream.setup.max_idle, stream.setup.max_lag);
            for (name, reader) in &mut stream.readers {
                let idle = now.saturating_sub(reader.last_heard);
                let is_sink = name.starts_with(sinks::PREFIX);
                if reader.state.suspended || idle <= max_idle || is_sink {
                    continue;
                }
                let own = self.mdts.iter().zip(&reader.positions);
                let own = own.filter(|(mdt, _)| mdt.setup.kind == stream.setup.kind);
                let lags = own.map(|(mdt, position)| {
                    mdt.now.read_index.get().saturating_sub(position.watermark().get())
                });
                let lag = lags.max().unwrap_or(0);
                if lag <= max_lag {
                    continue;
                }
                warn!(
                    stream = stream.setup.name,
                    reader = name,
                    lag,
                    idle_s = idle.as_secs(),
                    "reader suspended: idle and too far behind; it holds no records any more, \
                     register it again to lift this"
                );
                reader.state.suspended = true;
                let key = (stream.setup.name.clone(), name.clone());
                self.dirty.add(Change::Reader(key, reader.state.clone()), now);
            }
        }
    }

    /// The MDT lost records, or began a new history at `gap.first`.
    pub fn note_gap(&mut self, mdt_at: usize, gap: crate::log::Gap, now: Now) {
        let Some(mdt) = self.mdts.get_mut(mdt_at) else { return };
        if !gap.rewinds || gap.generation <= mdt.state.generation {
            return;
        }
        mdt.state.generation = gap.generation;
        mdt.state.rewinds.push(gap.first.get());
        mdt.retention.rewind(gap.first);
        mdt.state.cleared = mdt.retention.cleared().get();
        mdt.state.clearing = mdt.retention.given_up().get();
        mdt.to_clear = None;
        let name = mdt.setup.name.to_string();
        self.dirty.add(Change::Mdt(mdt.setup.key(), mdt.state.clone()), now);
        // What their clients say from now on may be of the history before: they start again, and
        // are told from where.
        let here: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.mdt == mdt_at).map(|(&n, _)| n).collect();
        for session in here {
            self.lose_session(session, libc::ESTALE, "the MDT began a new history", now);
        }
        let kind = self.mdts.get(mdt_at).map(|mdt| mdt.setup.kind);
        for stream in self.streams.iter_mut().filter(|s| Some(s.setup.kind) == kind) {
            let stream_name = stream.setup.name.clone();
            let Some(entry) = stream.mdts.get_mut(mdt_at) else { continue };
            let before = gap.first.prev();
            entry.caught_up.low = entry.caught_up.low.min(before);
            entry.caught_up.highest = entry.caught_up.highest.min(before);
            entry.worker.sent.low = entry.worker.sent.low.min(before);
            entry.worker.sent.highest = entry.worker.sent.highest.min(before);
            if let Some(queue) = &mut entry.queue {
                queue.rewind(gap.first);
            }
            entry.persisted = entry.persisted.min(before);
            entry.noted = entry.persisted;
            let change = Change::Stream(stream_name.clone(), name.clone(), entry.persisted);
            self.dirty.add(change, now);
            for (reader_name, reader) in &mut stream.readers {
                let Some(position) = reader.positions.get_mut(mdt_at) else { continue };
                position.rewind(gap.first);
                reader.persisted[mdt_at] = reader.persisted[mdt_at].min(before);
                reader.noted[mdt_at] = position.watermark();
                let key = (stream_name.clone(), reader_name.clone());
                let mark = position.watermark();
                self.dirty.add(Change::Watermark(key, name.clone(), mark), now);
            }
        }
    }
}

impl Stream {
    fn restore(setup: StreamSetup, mdts: &[Mdt], saved: &Saved) -> Self {
        let per_mdt = mdts.iter().map(|mdt| {
            let key = (setup.name.clone(), mdt.setup.name.to_string());
            let saved = saved.streams.get(&key).copied();
            let persisted = saved.unwrap_or_else(|| mdt.retention.cleared());
            let is_queue = setup.delivery == Delivery::Queue;
            StreamMdt {
                worker: WorkerState::default(),
                caught_up: Sent::default(),
                persisted,
                noted: persisted,
                queue: is_queue.then(|| Queue::new(setup.lanes, persisted)),
                at_end: false,
                allowed: None,
                asked: None,
                policies: Arc::default(),
            }
        });
        let per_mdt = per_mdt.collect();
        let of_us = saved.readers.iter().filter(|((stream, _), _)| *stream == setup.name);
        let readers = of_us.map(|((stream, name), state)| {
            let persisted: Vec<RecordIndex> = mdts
                .iter()
                .map(|mdt| {
                    let key = (stream.clone(), name.clone(), mdt.setup.name.to_string());
                    saved.watermarks.get(&key).copied().unwrap_or_else(|| mdt.retention.cleared())
                })
                .collect();
            let positions = persisted.iter().map(|&at| Position::new(at)).collect();
            let state = state.clone();
            let last_heard = Duration::ZERO;
            let noted = persisted.clone();
            (name.clone(), Reader { state, positions, persisted, noted, last_heard })
        });
        let readers = readers.collect();
        Self { setup, mdts: per_mdt, readers, taps: Vec::new(), next_tap: 1 }
    }

    /// Whether it is a log of the kind that the stream carries. Of others the stream has entries, too,
    /// so that one number means the same log everywhere, but nothing ever happens there.
    fn reads(&self, mdt: &Mdt) -> bool {
        self.setup.kind == mdt.setup.kind
    }

    /// What the stream needs of an MDT: only what is on disk counts.
    fn need(&self, mdt_at: usize) -> Need {
        if let Some(StreamMdt { queue: Some(_), persisted, .. }) = self.mdts.get(mdt_at) {
            return Need::Above(*persisted);
        }
        let active = self.readers.values().filter(|reader| !reader.state.suspended);
        let lowest = active.filter_map(|reader| reader.persisted.get(mdt_at).copied()).min();
        lowest.map_or(Need::Nobody, Need::Above)
    }

    /// The policies' word on `need`: what they last said if they were asked about just that, else
    /// they are asked, and until they answer nothing more goes.
    fn ask_policy(
        &mut self,
        stream_at: usize,
        mdt_at: usize,
        need: Need,
        effects: &mut Vec<Effect>,
    ) -> Need {
        let Some(entry) = self.mdts.get_mut(mdt_at) else { return need };
        // Without readers the host offers nothing, and asks again whenever the stream has moved:
        // unread records go only if a policy says so of its own accord.
        let (offer, proposed) = match need {
            Need::Above(index) => (index, index),
            Need::Nobody => (RecordIndex::ZERO, entry.worker.sent.low),
        };
        match entry.allowed {
            Some((asked, upto)) if asked == proposed => {
                // With readers, policies may only hold back.
                return match need {
                    Need::Above(index) => Need::Above(upto.min(index)),
                    Need::Nobody if upto > RecordIndex::ZERO => {
                        Need::Above(upto.min(entry.worker.sent.low))
                    }
                    Need::Nobody => Need::Nobody,
                };
            }
            _ => {}
        }
        if entry.asked.is_none() {
            entry.asked = Some(proposed);
            let readers =
                self.readers.iter().filter(|(_, reader)| !reader.state.suspended).filter_map(
                    |(name, r)| Some((name.clone(), r.positions.get(mdt_at)?.watermark())),
                );
            let readers = readers.collect();
            let (stream, mdt) = (stream_at, mdt_at);
            effects.push(Effect::AskPolicy { stream, mdt, readers, offer, proposed });
        }
        let known = entry.allowed.map_or(RecordIndex::ZERO, |(_, upto)| upto);
        match need {
            Need::Above(index) => Need::Above(known.min(index)),
            Need::Nobody if known > RecordIndex::ZERO => Need::Above(known),
            Need::Nobody => Need::Nobody,
        }
    }

    /// Everything that was sent of an MDT, live or to catch up.
    fn sent(&self, mdt_at: usize) -> Sent {
        self.mdts.get(mdt_at).map_or_else(Sent::default, |entry| Sent {
            low: entry.worker.sent.low.max(entry.caught_up.low),
            highest: entry.worker.sent.highest.max(entry.caught_up.highest),
        })
    }

    fn settle(&mut self, mdt_at: usize, mdt: &MdtName, dirty: &mut Dirty, now: Now) {
        let sent = self.sent(mdt_at);
        let Some(entry) = self.mdts.get_mut(mdt_at) else { return };
        let at = match &entry.queue {
            Some(queue) => queue.watermark(),
            None => entry.worker.sent.low,
        };
        if at > entry.noted {
            entry.noted = at;
            dirty.add(Change::Stream(self.setup.name.clone(), mdt.to_string(), at), now);
        }
        for (name, reader) in &mut self.readers {
            let Some(position) = reader.positions.get_mut(mdt_at) else { continue };
            if !self.setup.merges {
                position.settle(sent); // else what was dropped for others is not for this reader
            }
            let Some(noted) = reader.noted.get_mut(mdt_at) else { continue };
            if *noted < position.watermark() {
                *noted = position.watermark();
                let key = (self.setup.name.clone(), name.clone());
                let mark = Change::Watermark(key, mdt.to_string(), position.watermark());
                dirty.add(mark, now);
            }
        }
    }
}
