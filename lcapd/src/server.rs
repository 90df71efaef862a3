//! The engine's thread: control and queue sockets on one side, the engine's effects on the other.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use lcap_ffi::zmq_frame::send_shared;
use lcap_ffi::zmq_monitor::Watched;
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{Event, MAX_MESSAGE_BYTES, Op, Reply, Request, StreamKind};
use lcap_wire::frame::topic;
use lcap_wire::hsm_queue::HsmOp;
use lcap_wire::{Flags, Header, Kind, PROTOCOL_VERSION};
use tracing::{debug, warn};

use crate::catch_up::{Handle, Item};
use crate::engine::retention::Now;
use crate::engine::{
    CatchUpStart, Effect, Engine, MdtNow, NotCleared, Peer, TailWanted, WorkerState,
};
use crate::figures::{ServerStats, StreamFigures};
use crate::health::StatusQuestions;
use crate::hsm::operator;
use crate::hsm::service::Handle as HsmQueue;
use crate::hsm::workers::Answer;
use crate::intake::{self, Received};
use crate::log::{Gap, MdtLog};
use crate::pipeline::Outgoing;
use crate::policies::{ReloadRequest, Reloaded};
use crate::publisher::kind_on_wire;
use crate::reader::ReaderStats;
use crate::security::Access;
use crate::sink::config::SinkConfig;
use crate::store::Change;
use crate::taps::Taps;
use crate::wake::Waker;
use crate::worker::{Command, Progress, QueueInput};

/// Requests taken from one socket before the others have their turn.
const BURST: usize = 64;
/// Messages sent to one catching-up client before the others have their turn.
const CATCH_UP_BURST: usize = 16;

/// Sessions that a client may have, and, where clients have no names, a connection.
const MAX_CLIENT_SESSIONS: usize = 1024;
const MAX_CONNECTION_SESSIONS: usize = 64;
/// Catch-ups that a client, or a connection, may have running: each is a thread.
const MAX_CLIENT_CATCH_UPS: usize = 64;
/// Connections whose owners are remembered before those that are gone are looked for.
const MAX_OWNERS: usize = 4096;
/// Messages of one client that wait in libzmq before TCP pushes back. Each may have
/// [`MAX_MESSAGE_BYTES`].
const RECEIVE_LIMIT: i32 = 32;

fn max_sessions(who: Option<&str>) -> usize {
    if who.is_some() { MAX_CLIENT_SESSIONS } else { MAX_CONNECTION_SESSIONS }
}

/// Results that other threads have for the engine.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Effect::Commit`].
    Committed(Result<(), String>),
    /// Of [`Effect::Clear`].
    Cleared {
        /// Number of the MDT.
        mdt: usize,
        /// Up to here.
        upto: RecordIndex,
        /// The history that the index belongs to.
        generation: u16,
        /// Done, or why not.
        result: Result<(), NotCleared>,
    },
    /// Of [`Effect::AskPolicy`].
    PolicyAllows {
        /// Number of the stream.
        stream: usize,
        /// Number of the MDT.
        mdt: usize,
        /// What was asked.
        proposed: RecordIndex,
        /// The answer.
        upto: RecordIndex,
    },
    /// The list of clients has changed: some may do less than before.
    Revoked,
    /// A stream has other policies.
    PoliciesReplaced {
        /// Number of the stream.
        stream: usize,
        /// They have a say in clearing.
        clears: bool,
        /// They make records of their own.
        merges: bool,
    },
    /// The answer to a request that took another thread some time.
    Answer(Peer, Reply),
    /// A sink's target has confirmed records.
    SinkSettled {
        /// Numbers of the stream and the MDT.
        place: (usize, usize),
        /// The sink.
        sink: Arc<SinkConfig>,
        /// Up to here.
        upto: RecordIndex,
        /// The history that `upto` belongs to.
        generation: u16,
    },
    /// The reader thread found records gone, or a new history of the MDT.
    Gap {
        /// Number of the MDT.
        mdt: usize,
        /// What is gone.
        gap: Gap,
    },
}

/// What the server knows of one stream's worker on one MDT.
#[derive(Debug)]
pub struct WorkerEnd {
    /// How far it is.
    pub progress: Arc<Progress>,
    /// What is asked of it.
    pub commands: Sender<Command>,
    /// Wakes it.
    pub waker: Waker,
    /// Of a queue: what it has read.
    pub inputs: Option<Receiver<QueueInput>>,
}

/// What the server knows of one MDT.
#[derive(Debug)]
pub struct MdtEnd {
    /// Its name.
    pub name: MdtName,
    /// What its log holds.
    pub kind: StreamKind,
    /// Its reader thread's figures.
    pub stats: Arc<ReaderStats>,
    /// What was read last.
    pub log: Arc<MdtLog>,
    /// Its clearer.
    pub clears: Sender<(RecordIndex, u16)>,
}

/// Starts catch-up threads.
pub trait CatchUps: Send {
    /// Starts one.
    ///
    /// # Errors
    /// If there is no thread or policy to be had, as a sentence.
    fn start(&mut self, session: u64, start: CatchUpStart) -> Result<Handle, String>;
}

/// A session that is served from a catch-up thread.
struct CatchUpSession {
    handle: Handle,
    upto: u64,
    sequence: u64,
    _counted: CountedCatchUp,
}

/// A catch-up that is counted as long as this lives.
struct CountedCatchUp(Arc<StreamFigures>);

impl CountedCatchUp {
    fn new(figures: Arc<StreamFigures>) -> Self {
        figures.catch_ups.fetch_add(1, Ordering::Relaxed);
        figures.catching_up.fetch_add(1, Ordering::Relaxed);
        Self(figures)
    }
}

impl Drop for CountedCatchUp {
    fn drop(&mut self) {
        self.0.catching_up.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The thread's state.
pub struct Server {
    /// The rules.
    pub engine: Engine,
    /// Control first, then one per queue stream.
    pub sockets: Vec<Watched>,
    /// By MDT.
    pub mdts: Vec<MdtEnd>,
    /// By stream and MDT.
    pub workers: Vec<Vec<WorkerEnd>>,
    /// Filters of consumers, by stream.
    pub taps: Vec<Taps>,
    /// Names of the streams.
    pub stream_names: Vec<String>,
    /// One life of lcapd.
    pub epoch: u64,
    /// Memory that one queue may hold of one MDT.
    pub queue_limit_bytes: usize,
    /// Starts catch-up threads.
    pub catch_ups: Box<dyn CatchUps>,
    /// Replaces policies.
    pub reloads: Sender<ReloadRequest>,
    /// Sessions whose catch-up has something.
    pub ready: Receiver<u64>,
    /// The store's thread.
    pub commits: Sender<Vec<Change>>,
    /// The queue of HSM requests.
    pub hsm: Option<HsmQueue>,
    /// Results of other threads.
    pub outcomes: Receiver<Outcome>,
    /// Questions of how things are.
    pub questions: StatusQuestions,
    /// Counts requests.
    pub stats: Arc<ServerStats>,
    /// Who may do what.
    pub access: Access,
    /// Names of the clients that have opened sessions, by connection.
    pub owners: HashMap<(usize, Vec<u8>), String>,
    /// Counts what streams do, by stream.
    pub figures: Vec<Arc<StreamFigures>>,
    /// For answers that the engine waits for.
    pub outcome_sender: Sender<Outcome>,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// A ROUTER socket for control or a queue, not bound yet.
///
/// # Errors
/// What libzmq says.
pub fn router(context: &zmq::Context, send_limit: i32) -> Result<zmq::Socket, zmq::Error> {
    let socket = context.socket(zmq::ROUTER)?;
    // Acknowledgements of the last moments still go out when the daemon stops.
    socket.set_linger(200)?;
    socket.set_sndhwm(send_limit)?;
    socket.set_rcvhwm(RECEIVE_LIMIT)?;
    // Whoever connects and says nothing is not to keep a descriptor for long.
    socket.set_handshake_ivl(5_000)?;
    socket.set_router_mandatory(true)?;
    socket.set_maxmsgsize(i64::try_from(MAX_MESSAGE_BYTES).unwrap_or(i64::MAX))?;
    Ok(socket)
}

impl Server {
    /// Serves until told to stop; what is acknowledged by then is on disk when it returns.
    pub fn run(&mut self) {
        let started = Instant::now();
        let mut catch_ups: HashMap<u64, CatchUpSession> = HashMap::new();
        let mut ready: BTreeSet<u64> = BTreeSet::new();
        while !self.stop.load(Ordering::Relaxed) {
            let now = started.elapsed();
            self.look_at_threads();
            let mut busy = self.take_requests(now);
            busy |= self.take_queue_inputs(now);
            self.take_outcomes(now);
            self.answer_questions(now);
            self.engine.tick(now);
            self.carry_out(&mut catch_ups, &mut ready);
            ready.extend(self.ready.try_iter());
            busy |= self.serve_catch_ups(&mut catch_ups, &mut ready, now);
            if !busy {
                self.sleep(started, &ready);
            }
        }
        self.drain(started);
    }

    /// Waits for the last commit, so that what was acknowledged is not asked for again.
    fn drain(&mut self, started: Instant) {
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            let now = started.elapsed() + Duration::from_secs(1); // whatever is dirty is due
            self.look_at_threads();
            self.engine.tick(now);
            let commits =
                self.engine.take_effects().into_iter().filter_map(|effect| match effect {
                    Effect::Commit { changes, tails } => Some((changes, tails)),
                    _ => None,
                });
            for (changes, tails) in commits.collect::<Vec<_>>() {
                self.commit(changes, &tails);
            }
            if !self.engine.is_dirty() {
                return;
            }
            match self.outcomes.recv_deadline(deadline) {
                Ok(Outcome::Committed(result)) => self.engine.committed(result, now),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        warn!("stopped before all state was written; clients will see some records again");
    }

    /// Digests of what was read last go along, to compare with when lcapd starts again.
    fn commit(&self, mut changes: Vec<Change>, tails: &[TailWanted]) {
        for wanted in tails {
            if let Some(mdt) = self.mdts.get(wanted.mdt) {
                changes.extend(wanted.of(&mdt.log));
            }
        }
        let _ = self.commits.send(changes);
    }

    fn look_at_threads(&mut self) {
        for (at, mdt) in self.mdts.iter().enumerate() {
            let stats = &mdt.stats;
            let now = MdtNow {
                read_index: RecordIndex::new(stats.read_index.load(Ordering::Relaxed)),
                records: stats.records.load(Ordering::Relaxed),
                gaps: stats.gaps.load(Ordering::Relaxed),
                at_end: stats.at_end.load(Ordering::Relaxed),
                compared: stats.compared.load(Ordering::Acquire),
                empty: stats.empty.load(Ordering::Acquire),
                trouble: stats.trouble(),
            };
            self.engine.note_mdt(at, now);
        }
        for (stream, workers) in self.workers.iter().enumerate() {
            for (mdt, worker) in workers.iter().enumerate() {
                let progress = &worker.progress;
                let (sent, generation) = progress.sent_state();
                let state = WorkerState {
                    sent_records: progress.sent.load(Ordering::Relaxed),
                    dropped: progress.dropped.load(Ordering::Relaxed),
                    held: progress.held.load(Ordering::Relaxed),
                    sequence: progress.sequence.load(Ordering::Acquire),
                    sent,
                    generation,
                    stopped: progress.stopped.load(Ordering::Relaxed),
                };
                self.engine.note_worker(stream, mdt, state);
            }
        }
    }

    /// True if a socket may have more.
    fn take_requests(&mut self, now: Now) -> bool {
        let mut more = false;
        for socket in 0..self.sockets.len() {
            let mut taken = 0;
            while taken < BURST
                && let Some(received) = intake::receive(&self.sockets[socket], &self.access.taken)
            {
                match received {
                    Ok(received) => self.take_request(socket, received, now),
                    Err(_) => {
                        let refusals = &self.access.refusals;
                        let what = format_args!("a message with the wrong number of frames");
                        refusals.note(&refusals.malformed, "?", what);
                    }
                }
                taken += 1;
            }
            more |= taken == BURST;
        }
        more
    }

    fn take_request(&mut self, socket: usize, received: Received, now: Now) {
        let Received { identity, delimiter, body, user } = received;
        let peer = Peer { socket, identity, delimiter };
        let who = user.as_deref();
        let request = match serde_json::from_slice::<Request>(&body) {
            Ok(request) => request,
            Err(error) => {
                let refusals = &self.access.refusals;
                let what = format_args!("a malformed request: {error}");
                refusals.note(&refusals.malformed, who.unwrap_or("?"), what);
                // An id may still be readable, so that the client can match the answer.
                let value: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
                let id = value.and_then(|value| value.get("id")?.as_u64());
                let reply = Reply::error(id, libc::EINVAL, format!("malformed request: {error}"));
                self.send_control(&peer, &reply.encode());
                return;
            }
        };
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        let refusals = Arc::clone(&self.access.refusals);
        let refused = if let Some(why) = self.access.refuse(who, &request.op) {
            refusals.note(&refusals.denied, who.unwrap_or("?"), format_args!("{why}"));
            Some((libc::EACCES, why))
        } else if matches!(request.op, Op::Start(_)) && self.has_too_many(&peer, who) {
            let why = format!("more than {} sessions of one client", max_sessions(who));
            refusals.note(&refusals.limit, who.unwrap_or("?"), format_args!("{why}"));
            Some((libc::EUSERS, why))
        } else {
            None
        };
        if let Some((errno, why)) = refused {
            self.send_control(&peer, &Reply::error(request.id, errno, why).encode());
            return;
        }
        if let (Op::Start(_), Some(user)) = (&request.op, user) {
            self.owners.insert((peer.socket, peer.identity.clone()), user);
        }
        match request.op {
            Op::Hsm(op) if request.v == PROTOCOL_VERSION => self.ask_hsm(peer, request.id, op),
            _ => self.engine.request(&peer, request, now),
        }
    }

    /// Whose a connection is, by its name on the allow-list.
    fn owner(&self, peer: &Peer) -> Option<&str> {
        self.owners.get(&(peer.socket, peer.identity.clone())).map(String::as_str)
    }

    /// Without names each connection counts as a client.
    fn has_too_many(&mut self, peer: &Peer, who: Option<&str>) -> bool {
        if self.owners.len() > 2 * MAX_OWNERS {
            self.forget_owners();
        }
        let own = |other: &Peer| match who {
            Some(who) => self.owner(other) == Some(who),
            None => other == peer,
        };
        let n_sessions = self.engine.session_list().filter(|session| own(session.peer)).count();
        n_sessions >= max_sessions(who)
    }

    /// Forgets who had connections that no session is open over.
    fn forget_owners(&mut self) {
        let open = self.engine.session_list();
        let open: HashSet<_> = open.map(|s| (s.peer.socket, s.peer.identity.clone())).collect();
        self.owners.retain(|connection, _| open.contains(connection));
    }

    /// Ends sessions of clients that may not have them any longer.
    fn revoke(&mut self, now: Now) {
        self.forget_owners();
        let sessions = self.engine.session_list();
        let gone = sessions.filter(|session| {
            let stream = &self.stream_names[session.stream];
            !self.access.may_read(self.owner(session.peer), stream, session.reader)
        });
        for session in gone.map(|session| session.number).collect::<Vec<_>>() {
            self.engine.lose_session(session, libc::EACCES, "access was revoked", now);
        }
    }

    /// The answer comes back as an outcome.
    fn ask_hsm(&mut self, peer: Peer, id: Option<u64>, op: HsmOp) {
        let Some(hsm) = &self.hsm else {
            let error =
                "this lcapd has no queue of HSM requests; [hsm] in its configuration makes one";
            self.send_control(&peer, &Reply::error(id, libc::EOPNOTSUPP, error).encode());
            return;
        };
        let (outcomes, waker) = (self.outcome_sender.clone(), self.waker.clone());
        let answer: Answer = Box::new(move |answer| {
            let reply = match answer {
                Ok(body) => Reply::ok(id, &body),
                Err((errno, error)) => Reply::error(id, errno, error),
            };
            let _ = outcomes.send(Outcome::Answer(peer, reply));
            waker.wake();
        });
        hsm.call(move |core, now| operator::handle(core, op, answer, now));
    }

    /// True if there may be more.
    fn take_queue_inputs(&mut self, now: Now) -> bool {
        let mut more = false;
        for stream in 0..self.workers.len() {
            for mdt in 0..self.workers[stream].len() {
                while self.engine.queue_bytes(stream, mdt) < self.queue_limit_bytes {
                    let worker = &self.workers[stream][mdt];
                    let Some(Ok(input)) = worker.inputs.as_ref().map(Receiver::try_recv) else {
                        break;
                    };
                    more = true;
                    worker.waker.wake(); // there is room again
                    match input {
                        QueueInput::Batches { batches, low, generation } => {
                            if generation != self.engine.generation_of(mdt) {
                                // The notice of a new history was sent before, and comes first.
                                self.take_outcomes(now);
                            }
                            self.engine.queue_input(stream, mdt, batches, low, generation);
                        }
                        QueueInput::Gap(gap) => self.tell_members(stream, mdt, &gap),
                        QueueInput::AtEnd(at_end) => self.engine.queue_at_end(stream, mdt, at_end),
                    }
                }
            }
        }
        more
    }

    fn answer_questions(&mut self, now: Now) {
        while let Ok(answer) = self.questions.try_recv() {
            let _ = answer.try_send(self.engine.status(now));
        }
    }

    fn take_outcomes(&mut self, now: Now) {
        while let Ok(outcome) = self.outcomes.try_recv() {
            match outcome {
                Outcome::Committed(result) => self.engine.committed(result, now),
                Outcome::Cleared { mdt, upto, generation, result } => {
                    self.engine.cleared(mdt, upto, generation, result, now);
                }
                Outcome::PolicyAllows { stream, mdt, proposed, upto } => {
                    self.engine.policy_allows(stream, mdt, proposed, upto, now);
                }
                Outcome::Revoked => self.revoke(now),
                Outcome::PoliciesReplaced { stream, clears, merges } => {
                    self.engine.policies_replaced(stream, clears, merges);
                }
                Outcome::Answer(peer, reply) => {
                    self.send_control(&peer, &reply.encode());
                }
                Outcome::SinkSettled { place, sink, upto, generation } => {
                    self.engine.sink_settled(place, &sink.reader, upto, generation);
                }
                Outcome::Gap { mdt, gap } => self.engine.note_gap(mdt, gap, now),
            }
        }
    }

    fn carry_out(
        &mut self,
        catch_ups: &mut HashMap<u64, CatchUpSession>,
        ready: &mut BTreeSet<u64>,
    ) {
        for effect in self.engine.take_effects() {
            match effect {
                Effect::Send(peer, bytes) => {
                    self.send_control(&peer, &bytes);
                }
                Effect::StartCatchUp { session, start } => {
                    let figures = Arc::clone(&self.figures[start.stream]);
                    let begun = if self.has_too_many_catch_ups(session, catch_ups) {
                        Err(format!("this client is catching up {MAX_CLIENT_CATCH_UPS} times"))
                    } else {
                        self.catch_ups.start(session, start)
                    };
                    match begun {
                        Ok(handle) => {
                            let counted = CountedCatchUp::new(figures);
                            let entry =
                                CatchUpSession { handle, upto: 0, sequence: 0, _counted: counted };
                            catch_ups.insert(session, entry);
                        }
                        Err(error) => {
                            if let Some(peer) = self.engine.data_peer(session).cloned() {
                                let lost = Event::Lost { session, errno: libc::EAGAIN, error };
                                self.send_control(&peer, &lost.encode());
                            }
                        }
                    }
                }
                Effect::OpenTap { stream, tap } => self.taps[stream].open(tap),
                Effect::CloseTap { stream, id } => self.taps[stream].close(id),
                Effect::Credit { session, upto } => {
                    if let Some(entry) = catch_ups.get_mut(&session) {
                        entry.upto = entry.upto.max(upto);
                        ready.insert(session);
                    }
                }
                Effect::EndSession(session) => {
                    catch_ups.remove(&session);
                }
                Effect::Dispatch { peer, stream, mdt, batch, sequence, redelivered } => {
                    self.send_batch(&peer, stream, mdt, batch, sequence, redelivered);
                }
                Effect::Commit { changes, tails } => self.commit(changes, &tails),
                Effect::Clear { mdt, upto, generation } => {
                    let _ = self.mdts[mdt].clears.send((upto, generation));
                }
                Effect::AskPolicy { stream, mdt, readers, offer, proposed } => {
                    self.ask_policy(stream, mdt, readers, offer, proposed);
                }
                Effect::ReloadPolicies { stream, peer, id } => {
                    self.reload_policies(stream, &peer, id);
                }
            }
        }
    }

    fn has_too_many_catch_ups(
        &self,
        session: u64,
        catch_ups: &HashMap<u64, CatchUpSession>,
    ) -> bool {
        let Some(peer) = self.engine.data_peer(session) else { return false };
        let who = self.owner(peer);
        let others = catch_ups.keys().filter_map(|&number| self.engine.data_peer(number));
        let own = others.filter(|other| match who {
            Some(_) => self.owner(other) == who,
            None => *other == peer,
        });
        own.count() >= MAX_CLIENT_CATCH_UPS
    }

    /// The answer comes back as an outcome, so that a slow policy holds up nothing here.
    fn ask_policy(
        &mut self,
        stream: usize,
        mdt: usize,
        readers: Vec<(String, RecordIndex)>,
        offer: RecordIndex,
        proposed: RecordIndex,
    ) {
        let worker = &self.workers[stream][mdt];
        let (outcomes, waker) = (self.outcome_sender.clone(), self.waker.clone());
        let answer: Box<dyn FnOnce(RecordIndex) + Send> = Box::new(move |upto| {
            let _ = outcomes.send(Outcome::PolicyAllows { stream, mdt, proposed, upto });
            waker.wake();
        });
        let _ = worker.commands.send(Command::ClearUpto {
            readers,
            proposed: offer,
            answer: answer.into(),
        });
        worker.waker.wake();
    }

    /// The answer comes back as an outcome: loading a module and waiting for workers takes time.
    fn reload_policies(&self, stream: usize, peer: &Peer, id: Option<u64>) {
        let (outcomes, waker, peer) =
            (self.outcome_sender.clone(), self.waker.clone(), peer.clone());
        let answer = move |_: &str, reloaded: Reloaded| {
            let reply = match reloaded {
                Ok(reply) => Reply::ok(id, &reply),
                Err(problem) => Reply::error(id, libc::EINVAL, problem),
            };
            let _ = outcomes.send(Outcome::Answer(peer.clone(), reply));
            waker.wake();
        };
        let request = ReloadRequest { stream: Some(stream), answer: Box::new(answer) };
        let _ = self.reloads.send(request); // fails only when lcapd stops
    }

    fn serve_catch_ups(
        &mut self,
        catch_ups: &mut HashMap<u64, CatchUpSession>,
        ready: &mut BTreeSet<u64>,
        now: Now,
    ) -> bool {
        let (mut more, mut over) = (false, Vec::new());
        for session in std::mem::take(ready) {
            let Some(entry) = catch_ups.get_mut(&session) else { continue };
            let mut sent = 0;
            while entry.sequence < entry.upto {
                if sent == CATCH_UP_BURST {
                    ready.insert(session);
                    more = true;
                    break;
                }
                let Ok(item) = entry.handle.items.try_recv() else { break };
                entry.handle.wake();
                sent += 1;
                if !self.send_item(session, entry, item, now) {
                    over.push(session);
                    break;
                }
            }
        }
        for session in over {
            catch_ups.remove(&session);
        }
        more
    }

    fn send_item(
        &mut self,
        session: u64,
        entry: &mut CatchUpSession,
        item: Item,
        now: Now,
    ) -> bool {
        let Some(peer) = self.engine.data_peer(session).cloned() else { return false };
        match item {
            Item::Message(message) => {
                entry.sequence += 1;
                let Some((stream, mdt)) = self.engine.session_place(session) else { return false };
                let header = Header {
                    flags: message.header.flags.with(Flags::CATCH_UP),
                    sequence: entry.sequence,
                    ..message.header.clone()
                };
                let (low, last) = (header.low, header.last);
                if self.send_data(&peer, stream, mdt, header, message.body.share()).is_err() {
                    self.engine.lose_session(session, libc::ENOBUFS, "cannot send to client", now);
                    return false;
                }
                if message.header.kind == Kind::Records {
                    self.engine.note_catch_up(session, low, last);
                }
                true
            }
            Item::Live { sequence, low } => {
                let live = Event::Live { session, sequence, low: low.get() };
                self.send_last(session, &peer, &live, now)
            }
            Item::End { low } => {
                let end = Event::End { session, low: low.get() };
                self.send_last(session, &peer, &end, now)
            }
            Item::Failed(why) => {
                self.engine.lose_session(session, libc::ESTALE, &why, now);
                false
            }
        }
    }

    fn send_batch(
        &mut self,
        peer: &Peer,
        stream: usize,
        mdt: usize,
        batch: u64,
        sequence: u64,
        redelivered: bool,
    ) {
        let Some((batch, open)) = self.engine.queue_batch(stream, mdt, batch) else {
            // Acknowledged since, by a member that had it in an earlier session. Its number must
            // come all the same: a member waits for it.
            let mut header = Header::for_body(Kind::Records, &[]);
            (header.sequence, header.generation) = (sequence, self.engine.generation_of(mdt));
            let _ = self.send_data(peer, stream, mdt, header, Arc::new(Vec::new()) as _);
            return;
        };
        let message = &batch.payload;
        // What is open of an earlier history is so in the present one.
        let generation = self.engine.generation_of(mdt);
        let (lane, rest) = (batch.lane, message.header.clone());
        let mut header = Header { sequence, lane, generation, ..rest };
        let body = if open.len() == batch.indexes.len() {
            message.body.share()
        } else {
            let rest = open_records(message, open);
            header.count = u32::try_from(open.len()).unwrap_or(u32::MAX);
            let body_fields = Header::for_body(Kind::Records, &rest);
            header.body_bytes = body_fields.body_bytes;
            header.body_crc = body_fields.body_crc;
            let indexes = || open.iter().filter_map(|&at| batch.indexes.get(at as usize).copied());
            header.first = indexes().min().unwrap_or(header.first);
            header.last = indexes().max().unwrap_or(header.last);
            Arc::new(rest) as _
        };
        if redelivered {
            header.flags = header.flags.with(Flags::REDELIVERED);
        }
        if !redelivered {
            self.figures[stream].latency.observe(message.read_at.elapsed());
        }
        if let Err(error) = self.send_data(peer, stream, mdt, header, body) {
            // It stays with the member until that is found silent, then goes to another.
            debug!(%error, "cannot send to a queue member");
        }
    }

    fn tell_members(&mut self, stream: usize, mdt: usize, gap: &Outgoing) {
        for peer in self.engine.member_peers(stream, mdt) {
            let header = Header { sequence: 0, ..gap.header.clone() };
            let _ = self.send_data(&peer, stream, mdt, header, gap.body.share());
        }
    }

    fn send_data(
        &mut self,
        peer: &Peer,
        stream: usize,
        mdt: usize,
        header: Header,
        body: lcap_ffi::zmq_frame::SharedBytes,
    ) -> Result<(), zmq::Error> {
        let topic = topic(&self.stream_names[stream], &self.mdts[mdt].name);
        let kind = kind_on_wire(header.kind, self.mdts[mdt].kind);
        let header = Header { epoch: self.epoch, kind, ..header };
        let socket = &mut self.sockets[peer.socket];
        // ROUTER decides at the identity frame whether the whole message can go.
        socket.send(peer.identity.as_slice(), zmq::SNDMORE | zmq::DONTWAIT)?;
        if peer.delimiter {
            socket.send(&[][..], zmq::SNDMORE)?;
        }
        socket.send(topic.as_slice(), zmq::SNDMORE)?;
        socket.send(header.encode().as_slice(), zmq::SNDMORE)?;
        send_shared(socket, body, 0)
    }

    /// Ends a catch-up. A client that cannot be told would wait for ever: its session is over.
    fn send_last(&mut self, session: u64, peer: &Peer, event: &Event, now: Now) -> bool {
        if !self.send_control(peer, &event.encode()) {
            self.engine.lose_session(session, libc::ENOBUFS, "cannot send to client", now);
        }
        false
    }

    /// False if it could not be sent.
    fn send_control(&mut self, peer: &Peer, bytes: &[u8]) -> bool {
        let socket = &mut self.sockets[peer.socket];
        let sent = socket.send(peer.identity.as_slice(), zmq::SNDMORE | zmq::DONTWAIT);
        let sent = sent.and_then(|()| {
            if peer.delimiter {
                socket.send(&[][..], zmq::SNDMORE)?;
            }
            socket.send(bytes, 0)
        });
        if let Err(error) = sent {
            debug!(%error, "client is gone or does not read; its session will expire");
            return false;
        }
        true
    }

    fn sleep(&mut self, started: Instant, ready: &BTreeSet<u64>) {
        self.waker.falling_asleep();
        let inputs = self.workers.iter().enumerate().flat_map(|(stream, workers)| {
            workers.iter().enumerate().map(move |(mdt, worker)| (stream, mdt, worker))
        });
        let mut inputs = inputs.filter(|(_, _, worker)| {
            worker.inputs.as_ref().is_some_and(|inputs| !inputs.is_empty())
        });
        let work = !self.ready.is_empty()
            || !self.outcomes.is_empty()
            || !self.questions.is_empty()
            || !ready.is_empty()
            || self.stop.load(Ordering::Relaxed)
            || inputs.any(|(stream, mdt, _)| {
                self.engine.queue_bytes(stream, mdt) < self.queue_limit_bytes
            });
        if !work {
            let now = started.elapsed();
            let wait = self.engine.wake_at(now).saturating_sub(now);
            let wait = i64::try_from(wait.as_millis()).unwrap_or(1000) + 1;
            let mut items: Vec<zmq::PollItem<'_>> =
                self.sockets.iter().map(|socket| socket.as_poll_item(zmq::POLLIN)).collect();
            items.push(zmq::PollItem::from_fd(self.waker.raw_fd(), zmq::POLLIN));
            let _ = zmq::poll(&mut items, wait); // EINTR: look again
        }
        self.waker.awake();
    }
}

/// The records of a message that are not acknowledged, back to back.
fn open_records(message: &Outgoing, open: &[u32]) -> Vec<u8> {
    let records: Vec<_> =
        lcap_ffi::record::records(message.body.as_slice()).map_while(Result::ok).collect();
    let open = open.iter().filter_map(|&at| records.get(at as usize));
    open.flat_map(|record| record.as_bytes().iter().copied()).collect()
}
