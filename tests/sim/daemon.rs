//! One life of lcapd, without threads and sockets: the real engine, workers, catch-ups, logs and
//! pipelines, held together as `server.rs` and `supervisor.rs` hold them together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{Delivery, Event, Reply, Request, StreamKind};
use lcap_wire::frame::{parse_hello_topic, topic};
use lcap_wire::{Flags, Header, Kind};
use lcapd::buffers::Buffers;
use lcapd::catch_up::{CatchUp, Handle, Item, LiveWorker, Notify};
use lcapd::engine::retention::ClearPolicy;
use lcapd::engine::{
    CatchUpStart, Effect, Engine, MdtNow, MdtSetup, Peer, Settings, StreamSetup, WorkerState,
};
use lcapd::follower::Follower;
use lcapd::last_read::{self, LastRead};
use lcapd::log::MdtLog;
use lcapd::pace::Pace;
use lcapd::pipeline::Pipeline;
use lcapd::policy::{Chain, Module, PolicyConfig};
use lcapd::reader::{Open, ReadStep, Reader, ReaderStats};
use lcapd::server::Outcome;
use lcapd::source::Upstream;
use lcapd::store::{Change, Saved};
use lcapd::taps::Taps;
use lcapd::wake::Waker;
use lcapd::worker::{Command, Output, Progress, Publish, Published, QueueInput, Stepped, Worker};

use super::client::Down;
use super::mdt::{Kept, SimMdt, SimUpstream};
use super::model::Policy;

/// A stream of the simulation.
#[derive(Clone, Debug)]
pub(super) struct StreamPlan {
    pub(super) name: String,
    pub(super) delivery: Delivery,
    pub(super) lanes: u16,
    pub(super) policy: Policy,
    /// What a module does to it in this life; nothing without one.
    pub(super) module: Option<(Arc<Module>, PolicyConfig)>,
}

/// What stays the same over all lives.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) mdts: Vec<(MdtName, Arc<SimMdt>)>,
    /// Of each: what lcapd's lives keep of what they read last.
    pub(super) last_read: Vec<Kept>,
    pub(super) streams: Vec<StreamPlan>,
    pub(super) log_bytes: usize,
    pub(super) read_bytes: usize,
    pub(super) queue_bytes: usize,
    pub(super) heartbeat: Duration,
    pub(super) clear: ClearPolicy,
    pub(super) started: Instant,
}

/// What a daemon sends: to whom, and what. Answers whether there is such a peer.
pub(super) type Net<'a> = dyn FnMut(&Peer, Down) -> bool + 'a;

struct MdtEnd {
    mdt: Arc<SimMdt>,
    upstream: Arc<SimUpstream>,
    log: Arc<MdtLog>,
    reader: Reader,
    open: Option<Open>,
    /// Restarts of the MDT that the reader has seen.
    restarts: u32,
    stats: Arc<ReaderStats>,
}

struct WorkerEnd {
    worker: Worker,
    progress: Arc<Progress>,
    commands: Sender<Command>,
    waker: Waker,
    inputs: Option<Receiver<QueueInput>>,
}

/// Last sequence, low and generation that a publisher sent for an MDT.
type Sent = (u64, RecordIndex, u16);

struct Publisher {
    messages: Receiver<Published>,
    sent: Vec<Sent>,
}

/// What a worker has said and nobody has heard yet.
struct ToPublisher(Sender<Published>);

impl Publish for ToPublisher {
    fn publish(&self, published: Published) {
        let _ = self.0.send(published); // fails when that life is over
    }
}

struct CatchUpSession {
    catch_up: CatchUp,
    handle: Handle,
    upto: u64,
    sequence: u64,
    over: bool,
}

/// One life.
pub(super) struct Life {
    pub(super) engine: Engine,
    pub(super) epoch: u64,
    began: Duration,
    mdts: Vec<MdtEnd>,
    workers: Vec<Vec<WorkerEnd>>,
    publishers: Vec<Option<Publisher>>,
    catch_ups: BTreeMap<u64, CatchUpSession>,
    ready: BTreeSet<u64>,
    notify: (Sender<u64>, Receiver<u64>),
    waker: Waker,
    /// A commit that is under way.
    pub(super) commit: Option<Vec<Change>>,
    /// Clears that are under way, by MDT.
    pub(super) clears: Vec<VecDeque<(RecordIndex, u16)>>,
    outcomes: Receiver<Outcome>,
}

fn chain(plan: &Plan, stream: usize, mdt: usize) -> Chain {
    let modules: Vec<_> = plan.streams[stream].module.iter().cloned().collect();
    Chain::new(&modules, &plan.mdts[mdt].0).expect("a chain")
}

impl Life {
    /// Begins where `saved` says.
    pub(super) fn new(plan: &Plan, saved: &Saved, epoch: u64, began: Duration) -> Self {
        let streams: Vec<StreamSetup> = (plan.streams.iter())
            .map(|stream| StreamSetup {
                name: stream.name.clone(),
                kind: StreamKind::Changelog,
                delivery: stream.delivery,
                publish: format!("ipc://{}", stream.name),
                lanes: stream.lanes,
                policy_clears: false,
                merges: stream.module.iter().any(|(module, _)| !module.is_verbatim()),
                max_idle: Duration::from_secs(1 << 30),
                max_lag: u64::MAX,
            })
            .collect();
        let setups = plan.mdts.iter();
        let setups = setups.map(|(name, _)| MdtSetup {
            name: name.clone(),
            kind: StreamKind::Changelog,
            source: String::new(),
            clears: true,
        });
        let (heartbeat, clear) = (plan.heartbeat, plan.clear);
        let settings = Settings { epoch, seed: epoch, heartbeat, clear };
        let engine = Engine::new(settings, setups.collect(), streams, saved);
        let new_waker = || Waker::new().expect("a descriptor");
        let stop = Arc::new(AtomicBool::new(false));
        let (outcomes_out, outcomes) = unbounded();
        let engine_waker = new_waker();
        let mdts: Vec<MdtEnd> = (plan.mdts.iter().enumerate())
            .map(|(at, (name, mdt))| {
                let start = (0..plan.streams.len()).map(|s| engine.start_of(s, at)).min();
                let start = start.unwrap_or(RecordIndex::new(1));
                let waker = new_waker();
                let generation = engine.generation_of(at);
                let tail = saved.tails.get(name.as_str()).map_or(&[][..], Vec::as_slice);
                let known = last_read::known(&plan.last_read[at].bytes(), tail, generation);
                let keep = Box::new(plan.last_read[at].clone());
                let last = LastRead::new(generation, known.clone(), keep);
                let log = MdtLog::new(plan.log_bytes, start, generation, known, waker.clone());
                let log = log.noting(last);
                log.set_gone(engine.gone_of(at));
                let (log, stats) = (Arc::new(log), Arc::new(ReaderStats::default()));
                stats.read_index.store(start.prev().get(), Relaxed);
                let upstream = Arc::new(SimUpstream(Arc::clone(mdt)));
                let reader = Reader {
                    mdt_at: at,
                    mdt: name.clone(),
                    upstream: Arc::<SimUpstream>::clone(&upstream),
                    log: Arc::clone(&log),
                    stats: Arc::clone(&stats),
                    buffers: Arc::new(Buffers::new(plan.read_bytes, 1)),
                    pace: Pace::default(),
                    outcomes: outcomes_out.clone(),
                    engine: engine_waker.clone(),
                    waker,
                    stop: Arc::clone(&stop),
                    hsm_due: None,
                };
                let (mdt, open, restarts) = (Arc::clone(mdt), None, 0);
                MdtEnd { mdt, upstream, log, reader, open, restarts, stats }
            })
            .collect();
        let (mut workers, mut publishers) = (Vec::new(), Vec::new());
        for (stream_at, stream) in plan.streams.iter().enumerate() {
            let (messages, messages_in) = unbounded();
            let mut ends = Vec::new();
            for (at, mdt) in mdts.iter().enumerate() {
                let waker = new_waker();
                let from = engine.start_of(stream_at, at);
                let continues = from > RecordIndex::new(1);
                let follower = follower(mdt, from, continues, plan, &waker);
                let pipeline = Pipeline::new(follower, chain(plan, stream_at, at), plan.started);
                let (commands, commands_in) = unbounded();
                let progress = Arc::new(Progress::default());
                let (output, inputs) = match stream.delivery {
                    Delivery::Broadcast => (
                        Output::Broadcast {
                            to: Arc::new(ToPublisher(messages.clone())),
                            taps: Taps::default(),
                        },
                        None,
                    ),
                    Delivery::Queue => {
                        let (inputs, received) = unbounded();
                        let (waker, lanes) = (waker.clone(), stream.lanes);
                        (Output::Queue { inputs, waker, lanes }, Some(received))
                    }
                };
                let mut worker = Worker {
                    mdt_at: at,
                    mdt: plan.mdts[at].0.clone(),
                    stream: stream.name.clone(),
                    pipeline,
                    output,
                    progress: Arc::clone(&progress),
                    commands: commands_in,
                    waker: waker.clone(),
                    stop: Arc::clone(&stop),
                    barriers: Vec::new(),
                    told_end: None,
                };
                worker.begin();
                ends.push(WorkerEnd { worker, progress, commands, waker, inputs });
            }
            workers.push(ends);
            let sent = vec![(0, RecordIndex::ZERO, 0); mdts.len()];
            publishers.push(
                (stream.delivery == Delivery::Broadcast)
                    .then_some(Publisher { messages: messages_in, sent }),
            );
        }
        Self {
            engine,
            epoch,
            began,
            clears: mdts.iter().map(|_| VecDeque::new()).collect(),
            mdts,
            workers,
            publishers,
            catch_ups: BTreeMap::new(),
            ready: BTreeSet::new(),
            notify: unbounded(),
            waker: new_waker(),
            commit: None,
            outcomes,
        }
    }

    /// Whether a clear that was asked for may still be done: what the clearer's thread asks.
    pub(super) fn may_clear(&self, mdt: usize, generation: u16) -> bool {
        let end = &self.mdts[mdt];
        let compared = end.stats.compared.load(Relaxed) || end.stats.empty.load(Relaxed);
        // Between the MDT's restart and the reader's hearing of it nothing of ours gets through.
        let connected = end.restarts == end.mdt.restarts();
        connected && compared && end.log.head().1 == generation
    }

    /// The MDT has cleared.
    pub(super) fn has_cleared(&self, mdt: usize, upto: RecordIndex) {
        self.mdts[mdt].log.set_gone(upto);
    }

    /// The engine's clock.
    pub(super) fn time(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began)
    }

    pub(super) fn wake_at(&self, now: Duration) -> Duration {
        self.engine.wake_at(self.time(now)) + self.began
    }

    pub(super) fn n_catch_ups(&self) -> usize {
        self.catch_ups.len()
    }

    /// The MDT's reader thread reads once, or opens the source again. Whether it did something.
    pub(super) fn read(&mut self, mdt: usize, reopen: bool) -> bool {
        // A full log would wait, in real time, for followers that are busy. Here none ever is.
        for workers in &self.workers {
            workers[mdt].worker.pipeline.detach();
        }
        let end = &mut self.mdts[mdt];
        if reopen {
            end.open = None;
        }
        let open = match &mut end.open {
            Some(open) => open,
            None => {
                end.restarts = end.mdt.restarts();
                end.open.insert(end.reader.open().expect("a log"))
            }
        };
        match end.reader.step(open) {
            Ok(ReadStep::Again) => true,
            Ok(ReadStep::Wait { at_end, .. }) => {
                if at_end && !end.log.is_end_wanted() {
                    end.stats.at_end.store(true, Relaxed);
                    end.log.set_at_end();
                }
                false
            }
            Err(_) => {
                end.stats.compared.store(false, Relaxed);
                end.open = None;
                true
            }
        }
    }

    /// A worker does one thing. Whether there was any.
    pub(super) fn work(&mut self, stream: usize, mdt: usize) -> bool {
        let end = &mut self.workers[stream][mdt];
        if end.inputs.as_ref().is_some_and(|inputs| inputs.len() >= 4) {
            return false; // it would wait
        }
        let stepped = end.worker.step();
        end.worker.pipeline.detach();
        stepped == Stepped::Again
    }

    /// A catch-up does one thing.
    pub(super) fn catch_up(&mut self, nth: usize) -> bool {
        let Some(session) = self.catch_ups.values_mut().nth(nth) else { return false };
        if session.over {
            return false;
        }
        let stepped = session.catch_up.step();
        session.over = stepped == Stepped::Over;
        session.catch_up.detach();
        stepped == Stepped::Again
    }

    /// The next message that a publisher has for its subscribers.
    pub(super) fn publish(&mut self, stream: usize, plan: &Plan) -> Option<[Vec<u8>; 3]> {
        let publisher = self.publishers[stream].as_mut()?;
        let Published { mdt_at: mdt, message, .. } = publisher.messages.try_recv().ok()?;
        let header = Header { epoch: self.epoch, ..message.header.clone() };
        publisher.sent[mdt] = (header.sequence, header.low, header.generation);
        let topic = topic(&plan.streams[stream].name, &plan.mdts[mdt].0);
        Some([topic, header.encode().to_vec(), message.body.as_slice().to_vec()])
    }

    /// The answer to a subscription to a hello topic.
    pub(super) fn greet(&self, stream: usize, hello: &[u8], plan: &Plan) -> Option<[Vec<u8>; 3]> {
        let (_, mdt, _) = parse_hello_topic(hello)?;
        let at = plan.mdts.iter().position(|(name, _)| name.as_str() == mdt)?;
        let (sequence, low, generation) = self.publishers[stream].as_ref()?.sent[at];
        let mut header = Header::for_body(Kind::Hello, &[]);
        (header.epoch, header.sequence) = (self.epoch, sequence);
        (header.low, header.generation) = (low, generation);
        Some([hello.to_vec(), header.encode().to_vec(), Vec::new()])
    }

    /// One turn of the engine's thread: requests, inputs, time, effects.
    pub(super) fn turn(
        &mut self,
        plan: &Plan,
        requests: Vec<(Peer, Vec<u8>)>,
        now: Duration,
        net: &mut Net<'_>,
    ) {
        let time = self.time(now);
        self.look_at_threads();
        for (peer, body) in requests {
            match serde_json::from_slice::<Request>(&body) {
                Ok(request) => self.engine.request(&peer, request, time),
                Err(error) => {
                    let reply = Reply::error(None, 22, error.to_string());
                    net(&peer, Down::Control(reply.encode()));
                }
            }
        }
        // (Inputs of a new history can only be there if the notice of it is.)
        while let Ok(outcome) = self.outcomes.try_recv() {
            if let Outcome::Gap { mdt, gap } = outcome {
                self.engine.note_gap(mdt, gap, time);
            }
        }
        self.take_queue_inputs(plan, net);
        self.engine.tick(time);
        self.carry_out(plan, net);
        self.ready.extend(self.notify.1.try_iter());
        self.serve_catch_ups(plan, time, net);
    }

    fn look_at_threads(&mut self) {
        for (at, mdt) in self.mdts.iter().enumerate() {
            let stats = &mdt.stats;
            let now = MdtNow {
                read_index: RecordIndex::new(stats.read_index.load(Relaxed)),
                records: stats.records.load(Relaxed),
                gaps: stats.gaps.load(Relaxed),
                at_end: stats.at_end.load(Relaxed),
                compared: stats.compared.load(Relaxed),
                empty: stats.empty.load(Relaxed),
                trouble: None,
            };
            self.engine.note_mdt(at, now);
        }
        for (stream, workers) in self.workers.iter().enumerate() {
            for (mdt, end) in workers.iter().enumerate() {
                let progress = &end.progress;
                let (sent, generation) = progress.sent_state();
                let state = WorkerState {
                    sent_records: progress.sent.load(Relaxed),
                    dropped: progress.dropped.load(Relaxed),
                    held: progress.held.load(Relaxed),
                    sequence: progress.sequence.load(Relaxed),
                    sent,
                    generation,
                    stopped: false,
                };
                self.engine.note_worker(stream, mdt, state);
            }
        }
    }

    fn take_queue_inputs(&mut self, plan: &Plan, net: &mut Net<'_>) {
        for stream in 0..self.workers.len() {
            for mdt in 0..self.workers[stream].len() {
                while self.engine.queue_bytes(stream, mdt) < plan.queue_bytes {
                    let inputs = self.workers[stream][mdt].inputs.as_ref();
                    match inputs.map(Receiver::try_recv) {
                        Some(Ok(QueueInput::Batches { batches, low, generation })) => {
                            self.engine.queue_input(stream, mdt, batches, low, generation);
                        }
                        Some(Ok(QueueInput::Gap(gap))) => {
                            for peer in self.engine.member_peers(stream, mdt) {
                                let header = Header { sequence: 0, ..gap.header.clone() };
                                self.send(plan, &peer, (stream, mdt), header, Vec::new(), net);
                            }
                        }
                        Some(Ok(QueueInput::AtEnd(end))) => {
                            self.engine.queue_at_end(stream, mdt, end);
                        }
                        _ => break,
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, plan: &Plan, net: &mut Net<'_>) {
        for effect in self.engine.take_effects() {
            match effect {
                Effect::Send(peer, bytes) => {
                    net(&peer, Down::Control(bytes));
                }
                Effect::StartCatchUp { session, start } => {
                    let CatchUpStart { stream, mdt, from, continues, follow, filter, .. } = start;
                    let generation = start.generation;
                    if self.mdts[mdt].log.head().1 != generation {
                        if let Some(peer) = self.engine.data_peer(session).cloned() {
                            let error = "the MDT begins a new history; try again".to_owned();
                            let lost = Event::Lost { session, errno: 11, error };
                            net(&peer, Down::Control(lost.encode()));
                        }
                        continue;
                    }
                    let waker = Waker::new().expect("a descriptor");
                    let follower = follower(&self.mdts[mdt], from, continues, plan, &waker);
                    let chain = chain(plan, stream, mdt);
                    let pipeline = Pipeline::new(follower, chain, plan.started);
                    let ready = self.notify.0.clone();
                    let notify = Notify { session, ready, waker: self.waker.clone() };
                    let live = &self.workers[stream][mdt];
                    let live = LiveWorker {
                        commands: live.commands.clone(),
                        waker: live.waker.clone(),
                        progress: Arc::clone(&live.progress),
                    };
                    let name = plan.mdts[mdt].0.clone();
                    let (catch_up, handle) =
                        CatchUp::new(name, pipeline, live, follow, filter, notify, waker);
                    let (upto, sequence, over) = (0, 0, false);
                    let entry = CatchUpSession { catch_up, handle, upto, sequence, over };
                    self.catch_ups.insert(session, entry);
                }
                Effect::Credit { session, upto } => {
                    if let Some(entry) = self.catch_ups.get_mut(&session) {
                        entry.upto = entry.upto.max(upto);
                        self.ready.insert(session);
                    }
                }
                Effect::EndSession(session) => {
                    self.catch_ups.remove(&session);
                }
                Effect::Dispatch { peer, stream, mdt, batch, sequence, redelivered } => {
                    self.dispatch(plan, &peer, (stream, mdt), (batch, sequence, redelivered), net);
                }
                Effect::Commit { mut changes, tails } => {
                    changes.extend(tails.iter().filter_map(|t| t.of(&self.mdts[t.mdt].log)));
                    self.commit = Some(changes);
                }
                Effect::Clear { mdt, upto, generation } => {
                    self.clears[mdt].push_back((upto, generation));
                }
                Effect::AskPolicy { .. }
                | Effect::OpenTap { .. }
                | Effect::CloseTap { .. }
                | Effect::ReloadPolicies { .. } => {}
            }
        }
    }

    fn dispatch(
        &mut self,
        plan: &Plan,
        peer: &Peer,
        place: (usize, usize),
        (batch, sequence, redelivered): (u64, u64, bool),
        net: &mut Net<'_>,
    ) {
        let Some((batch, open)) = self.engine.queue_batch(place.0, place.1, batch) else {
            let mut header = Header::for_body(Kind::Records, &[]);
            (header.sequence, header.generation) = (sequence, self.engine.generation_of(place.1));
            self.send(plan, peer, place, header, Vec::new(), net);
            return;
        };
        let message = &batch.payload;
        let all: Vec<_> = lcap_ffi::record::records(message.body.as_slice()).flatten().collect();
        let rest: Vec<u8> =
            open.iter().flat_map(|&at| all[at as usize].as_bytes().iter().copied()).collect();
        let sized = Header::for_body(Kind::Records, &rest);
        let indexes = || open.iter().map(|&at| batch.indexes[at as usize]);
        let generation = self.engine.generation_of(place.1);
        let (lane, of_it) = (batch.lane, message.header.clone());
        let mut header = Header { sequence, lane, generation, ..of_it };
        (header.body_bytes, header.body_crc) = (sized.body_bytes, sized.body_crc);
        header.count = u32::try_from(open.len()).unwrap_or(u32::MAX);
        header.first = indexes().min().unwrap_or_default();
        header.last = indexes().max().unwrap_or_default();
        if redelivered {
            header.flags = header.flags.with(Flags::REDELIVERED);
        }
        self.send(plan, peer, place, header, rest, net);
    }

    fn serve_catch_ups(&mut self, plan: &Plan, time: Duration, net: &mut Net<'_>) {
        for session in std::mem::take(&mut self.ready) {
            while let Some(entry) = self.catch_ups.get_mut(&session)
                && entry.sequence < entry.upto
                && let Ok(item) = entry.handle.items.try_recv()
            {
                entry.handle.wake();
                let sequence = entry.sequence + 1;
                entry.sequence = sequence;
                let Some(peer) = self.engine.data_peer(session).cloned() else { break };
                match item {
                    Item::Message(message) => {
                        let Some(place) = self.engine.session_place(session) else { break };
                        let flags = message.header.flags.with(Flags::CATCH_UP);
                        let header = Header { flags, sequence, ..message.header.clone() };
                        let (kind, low, last) = (header.kind, header.low, header.last);
                        let body = message.body.as_slice().to_vec();
                        if !self.send(plan, &peer, place, header, body, net) {
                            self.engine.lose_session(session, 105, "cannot send", time);
                            break;
                        }
                        if kind == Kind::Records {
                            self.engine.note_catch_up(session, low, last);
                        }
                        continue;
                    }
                    Item::Live { sequence, low } => {
                        let live = Event::Live { session, sequence, low: low.get() };
                        net(&peer, Down::Control(live.encode()));
                    }
                    Item::End { low } => {
                        let end = Event::End { session, low: low.get() };
                        net(&peer, Down::Control(end.encode()));
                    }
                    Item::Failed(why) => self.engine.lose_session(session, 116, &why, time),
                }
                break;
            }
        }
    }

    fn send(
        &self,
        plan: &Plan,
        peer: &Peer,
        (stream, mdt): (usize, usize),
        header: Header,
        body: Vec<u8>,
        net: &mut Net<'_>,
    ) -> bool {
        let topic = topic(&plan.streams[stream].name, &plan.mdts[mdt].0);
        let header = Header { epoch: self.epoch, ..header };
        net(peer, Down::Data([topic, header.encode().to_vec(), body]))
    }
}

fn follower(
    mdt: &MdtEnd,
    from: RecordIndex,
    continues: bool,
    plan: &Plan,
    waker: &Waker,
) -> Follower {
    let upstream: Arc<dyn Upstream> = Arc::<SimUpstream>::clone(&mdt.upstream);
    let buffers = Arc::new(Buffers::new(plan.read_bytes, 1));
    Follower::new(Arc::clone(&mdt.log), upstream, from, continues, buffers, waker.clone())
}

/// As the store writes.
pub(super) fn write(saved: &mut Saved, changes: &[Change]) {
    for change in changes.iter().cloned() {
        match change {
            Change::Mdt(mdt, state) => {
                saved.mdts.insert(mdt, state);
            }
            Change::Tail(mdt, tail) => {
                saved.tails.insert(mdt, tail);
            }
            Change::Stream(stream, mdt, index) => {
                saved.streams.insert((stream, mdt), index);
            }
            Change::Reader(key, state) => {
                saved.readers.insert(key, state);
            }
            Change::ReaderGone(key) => {
                saved.readers.remove(&key);
                saved
                    .watermarks
                    .retain(|(stream, reader, _), _| (stream, reader) != (&key.0, &key.1));
            }
            Change::Watermark((stream, reader), mdt, index) => {
                saved.watermarks.insert((stream, reader, mdt), index);
            }
        }
    }
}
