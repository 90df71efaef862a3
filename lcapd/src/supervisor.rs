//! Starts, names, stops and joins every thread.
//!
//! Stopping goes along the data path: readers and workers first, then the engine, which waits for
//! its last commit, then publishers, the store and the clearers.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use lcap_ffi::connection::Door;
use lcap_ffi::zmq_monitor::Watched;
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{Delivery, StreamKind};
use tracing::{error, info, warn};

use crate::actions::poller::{Poller, PollerStats};
use crate::actions::presence::Presence;
use crate::actions::upstream::JournalUpstream;
use crate::actions::{Due, Journal};
use crate::buffers::Buffers;
use crate::catch_up::{CatchUp, Handle, LiveWorker, Notify};
use crate::clearer::Clearer;
use crate::config::{Config, Mdt, Stream};
use crate::engine::retention::ClearPolicy;
use crate::engine::{CatchUpStart, Engine, MdtSetup, Settings, StreamSetup, log_key};
use crate::figures::{self, Figures, ServerStats, StreamFigures};
use crate::follower::Follower;
use crate::health::{StatusPort, status_port};
use crate::hsm;
use crate::hsm::mover_socket::MoverSocket;
use crate::hsm::service::Handle as HsmQueue;
use crate::http::Http;
use crate::last_read::{self, LastRead};
use crate::lease::Lease;
use crate::log::MdtLog;
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::pipeline::Pipeline;
use crate::policies::{Keeper, ReloadRequest, StreamPolicies, in_stream};
use crate::policy::{Loader, PolicyError};
use crate::publisher::subscribers::Subscribers;
use crate::publisher::{self, Broadcaster, Publisher, Topic};
use crate::reader::{Reader, ReaderStats, chain};
use crate::security::doorman::Doorman;
use crate::security::zap::Zap;
use crate::security::{Access, Domain, Security};
use crate::server::{self, CatchUps, MdtEnd, Outcome, Server, WorkerEnd};
use crate::service;
use crate::sink::{self, LiveState, Sink, SinkStats};
use crate::source::relay::{RelayKeys, RelayUpstream};
use crate::source::{SourceUri, Upstream};
use crate::store::{Change, Store};
use crate::taps::Taps;
use crate::wake::Waker;
use crate::worker::{Output, Progress, Worker};

/// Inputs between a worker and the engine.
const HANDOVER: usize = 8;
/// Threads that serve clients from the past, at most.
const MAX_CATCH_UPS: usize = 512;
/// Buffers of an MDT that lie unused, at most.
const KEPT_BUFFERS: usize = 8;

/// Memory, divided: what each part may take of the configured limit.
#[derive(Clone, Copy, Debug)]
struct Budget {
    log_bytes: usize,
    read_bytes: usize,
    queue_bytes: usize,
    send_limit: i32,
}

impl Budget {
    /// Half for the logs of all MDTs, an eighth for queues, an eighth for what waits at slow
    /// subscribers; the rest is for policies, catch-up and the allocator.
    fn new(limit: usize, n_mdts: usize, n_queues: usize) -> Self {
        let read_bytes = (limit / 256 / n_mdts.max(1)).clamp(64 << 10, 1 << 20);
        let queues = (n_queues * n_mdts).max(1);
        Self {
            log_bytes: (limit / 2 / n_mdts.max(1)).max(read_bytes * 2),
            read_bytes,
            queue_bytes: (limit / 8 / queues).max(read_bytes * 2),
            send_limit: i32::try_from((limit / 8 / read_bytes).clamp(16, 1000)).unwrap_or(1000),
        }
    }
}

/// One log of an MDT, as it is to be read.
struct Unit {
    name: MdtName,
    kind: StreamKind,
    source_text: String,
    clears: bool,
    upstream: Arc<dyn Upstream>,
    /// Of HSM events.
    journal: Option<Arc<Journal>>,
    /// To be told of HSM records.
    hsm_due: Option<Due>,
}

impl Unit {
    fn setup(&self) -> MdtSetup {
        MdtSetup {
            name: self.name.clone(),
            kind: self.kind,
            source: self.source_text.clone(),
            clears: self.clears,
        }
    }
}

/// One MDT's shared parts.
#[derive(Clone, Debug)]
struct MdtParts {
    name: MdtName,
    kind: StreamKind,
    journal: Option<Arc<Journal>>,
    upstream: Arc<dyn Upstream>,
    log: Arc<MdtLog>,
    buffers: Arc<Buffers>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    threads: Vec<Stage>,
    reloads: Sender<ReloadRequest>,
    /// Threads that run policies are waited for no longer than this.
    patience: Duration,
    epoch: u64,
    endpoints: Vec<String>,
    metrics: Metrics,
    engine_status: StatusPort,
    security: Option<Arc<Security>>,
    revoked: Revoked,
    hsm: Option<HsmQueue>,
}

/// Whom to tell that somebody may do less than before.
#[derive(Debug)]
struct Revoked {
    outcomes: Sender<Outcome>,
    engine: Waker,
    sockets: Vec<(Arc<AtomicBool>, Waker)>,
}

/// Threads that are stopped together.
#[derive(Debug)]
struct Stage {
    stop: Arc<AtomicBool>,
    wakers: Vec<Waker>,
    handles: Vec<JoinHandle<()>>,
    /// Each thread has a sender; when all of them are over, the channel is closed.
    alive: Sender<Infallible>,
    ended: Receiver<Infallible>,
}

impl Stage {
    fn new() -> Self {
        let (alive, ended) = bounded(0);
        Self { stop: Arc::default(), wakers: Vec::new(), handles: Vec::new(), alive, ended }
    }

    /// Linux shows 15 bytes of a thread's name.
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let alive = self.alive.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            body();
            drop(alive);
        });
        self.handles.push(thread.with_context(|| format!("cannot start thread {name}"))?);
        Ok(())
    }

    /// Stops and waits, but not for longer than `patience`: nobody can end a thread that is in foreign
    /// code. What it was about to send is not settled.
    fn stop(self, patience: Option<Duration>) {
        self.stop.store(true, Ordering::Relaxed);
        for waker in &self.wakers {
            waker.wake();
        }
        drop(self.alive);
        let late = match patience {
            Some(patience) => self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout),
            None => false,
        };
        for handle in self.handles {
            let name = handle.thread().name().unwrap_or_default().to_owned();
            if late && !handle.is_finished() {
                error!(
                    thread = name,
                    "thread does not end, probably a policy module that does \
                    not return; stopping without it"
                );
                continue;
            }
            if handle.join().is_err() {
                warn!(thread = name, "thread had panicked");
            }
        }
    }
}

/// Everything that can be checked without starting anything: policies load and accept their
/// options, sources are usable.
///
/// # Errors
/// What is wrong.
pub fn check(config: &Config) -> Result<()> {
    if let Some(security) = &config.security {
        Security::load(security)?;
    }
    let loader = Loader::standard(&config.server.policy_path);
    for stream in &config.streams {
        let in_place = |error: PolicyError| anyhow!(in_stream(&config.path, &stream.name, &error));
        policies(config, &loader, stream)?.joints().map_err(in_place)?;
    }
    if let Some(placer) = config.hsm.as_ref().and_then(|hsm| hsm.placer.as_ref()) {
        hsm::placer::load(placer, &loader)?;
    }
    Ok(())
}

fn policies(config: &Config, loader: &Loader, stream: &Stream) -> Result<StreamPolicies> {
    let reads = |mdt: &&Mdt| match stream.kind {
        StreamKind::Changelog => mdt.source.is_changelog(),
        StreamKind::Hsm => mdt.hsm_place().is_some(),
    };
    let mut mdts: Vec<MdtName> =
        config.mdts.iter().filter(reads).map(|mdt| mdt.name.clone()).collect();
    if stream.kind == StreamKind::Hsm {
        mdts.extend(config.request_mdts());
    }
    StreamPolicies::new(loader, stream, mdts)
        .map_err(|error| anyhow!(in_stream(&config.path, &stream.name, &error)))
}

impl Daemon {
    /// Starts everything.
    ///
    /// # Errors
    /// What cannot be started, and why; nothing runs then.
    pub fn start(config: &Config, lease: &Lease) -> Result<Self> {
        let started = Instant::now();
        let epoch = epoch();
        let n_queues = config.streams.iter().filter(|s| s.delivery == Delivery::Queue).count();
        let budget = Budget::new(config.server.memory_limit_bytes, config.mdts.len(), n_queues);
        let loader = Loader::standard(&config.server.policy_path);
        let policies: Vec<Arc<StreamPolicies>> = config
            .streams
            .iter()
            .map(|stream| policies(config, &loader, stream).map(Arc::new))
            .collect::<Result<_>>()?;
        let security = config.security.as_ref().map(Security::load).transpose()?;
        let security = security.map(Arc::new);
        let access = security.as_ref().map(|s| s.access().clone()).unwrap_or_default();
        let (store, saved) = Store::open(&config.server.state_dir, lease.is_needed())?;
        let (mut intake, mut core, mut outlet) = (Stage::new(), Stage::new(), Stage::new());
        // The last, since it hears of every connection until that is closed.
        let (mut watch, mut foreign) = (Stage::new(), Stage::new());

        let context = zmq::Context::new();
        // More I/O threads than cores only take turns.
        let io_threads = thread::available_parallelism().map_or(1, |n| n.get().min(4));
        context.set_io_threads(i32::try_from(io_threads).unwrap_or(1))?;
        let mut endpoints = Vec::new();
        // Before any socket is bound: see there.
        let max_connections =
            config.server.max_connections.unwrap_or_else(service::default_max_connections);
        let mut gate = Gate::new(&context, security.clone(), &access, max_connections, &mut watch)?;
        let socket = server::router(&context, 1000)?;
        let (control, bound) =
            gate.open(&context, socket, &Domain::Control, &config.server.control)?;
        endpoints.push(bound);
        let mut routers = vec![control];
        let mut publishers = Vec::new();
        let mut setups = Vec::new();
        for (stream, policies) in config.streams.iter().zip(&policies) {
            let domain = Domain::Stream(stream.name.clone());
            let is_queue = stream.delivery == Delivery::Queue;
            let socket = if is_queue {
                server::router(&context, 1000)?
            } else {
                publisher::socket(&context, budget.send_limit)?
            };
            let (socket, publish) = gate.open(&context, socket, &domain, &stream.publish)?;
            if is_queue { &mut routers } else { &mut publishers }.push(socket);
            endpoints.push(publish.clone());
            setups.push(StreamSetup {
                name: stream.name.clone(),
                kind: stream.kind,
                delivery: stream.delivery,
                publish,
                lanes: stream.lanes,
                policy_clears: policies.modules().have_a_say_in_clearing(),
                merges: policies.modules().merge(),
                max_idle: stream.max_idle,
                max_lag: stream.max_lag,
            });
        }
        let hsm = HsmActions::start(config, lease, &mut intake)?;
        let units = units(config, &hsm)?;
        let mdt_setups: Vec<MdtSetup> = units.iter().map(Unit::setup).collect();
        let settings = Settings {
            epoch,
            seed: random(),
            heartbeat: config.server.heartbeat,
            clear: ClearPolicy {
                interval: config.server.clear_interval,
                records: config.server.clear_records,
                keep_alive: config.server.clear_keep_alive,
            },
        };
        let mut engine = Engine::new(settings, mdt_setups, setups, &saved);
        for stream in 0..config.streams.len() {
            let sinks = config.sinks.iter().filter(|sink| sink.stream == stream);
            let names: Vec<String> = sinks.map(|sink| sink.reader.clone()).collect();
            engine.adopt_sinks(stream, &names, Duration::ZERO);
        }

        let engine_waker = Waker::new()?;
        let (outcomes, outcomes_in) = unbounded();
        let (commits, commits_in) = unbounded();
        let committed = (outcomes.clone(), engine_waker.clone());
        start_store(&mut outlet, store, lease.clone(), commits_in, committed)?;

        let flowing = Arc::default();
        let metrics = Metrics::default();
        hsm.register(&metrics);
        let (engine_status, questions) = status_port(engine_waker.clone());
        let stream_figures: Vec<Arc<StreamFigures>> =
            config.streams.iter().map(|_| Arc::default()).collect();

        let (mut mdts, mut mdt_ends) = (Vec::new(), Vec::new());
        for (at, mdt) in units.iter().enumerate() {
            let own = (0..config.streams.len()).filter(|&s| config.streams[s].kind == mdt.kind);
            let start = own.map(|s| engine.start_of(s, at)).min();
            let start = start.unwrap_or(RecordIndex::new(1));
            let waker = Waker::new()?;
            let generation = engine.generation_of(at);
            let key = log_key(mdt.kind, &mdt.name);
            let tail = saved.tails.get(&key).cloned().unwrap_or_default();
            let new =
                |known| MdtLog::new(budget.log_bytes, start, generation, known, waker.clone());
            let log = match mdt.kind {
                StreamKind::Changelog => {
                    let path = config.server.state_dir.join("last-read").join(&key);
                    let (file, kept) = last_read::open(&path, lease.is_needed())
                        .with_context(|| format!("what was read last, in {}", path.display()))?;
                    let known = last_read::known(&kept, &tail, generation);
                    new(known.clone()).noting(LastRead::new(generation, known, Box::new(file)))
                }
                StreamKind::Hsm => new(tail), // our own journal forgets nothing
            };
            log.set_gone(engine.gone_of(at));
            let buffers = Arc::new(Buffers::new(budget.read_bytes, KEPT_BUFFERS));
            let parts = MdtParts {
                name: mdt.name.clone(),
                kind: mdt.kind,
                journal: mdt.journal.clone(),
                upstream: Arc::clone(&mdt.upstream),
                log: Arc::new(log),
                buffers,
            };
            let stats = Arc::new(ReaderStats::default());
            stats.read_index.store(start.prev().get(), Ordering::Relaxed);
            let mut reader = Reader {
                mdt_at: at,
                mdt: mdt.name.clone(),
                upstream: Arc::clone(&parts.upstream),
                log: Arc::clone(&parts.log),
                stats: Arc::clone(&stats),
                buffers: Arc::clone(&parts.buffers),
                pace: Pace::new(Arc::clone(&flowing)),
                outcomes: outcomes.clone(),
                engine: engine_waker.clone(),
                waker: waker.clone(),
                stop: Arc::clone(&intake.stop),
                hsm_due: mdt.hsm_due.clone(),
            };
            intake.wakers.push(waker);
            intake.spawn(&format!("rd-{}", mdt.name), move || reader.run())?;
            let (clears, clears_in) = unbounded();
            let mut clearer = Clearer {
                mdt_at: at,
                mdt: mdt.name.clone(),
                upstream: Arc::clone(&parts.upstream),
                log: Arc::clone(&parts.log),
                stats: Arc::clone(&stats),
                lease: lease.clone(),
                evicted: false,
                clears: clears_in,
                outcomes: outcomes.clone(),
                waker: engine_waker.clone(),
            };
            outlet.spawn("clearer", move || clearer.run())?;
            let log = Arc::clone(&parts.log);
            mdt_ends.push(MdtEnd { name: mdt.name.clone(), kind: mdt.kind, stats, log, clears });
            mdts.push(parts);
        }

        let taps: Vec<Taps> = config.streams.iter().map(|_| Taps::default()).collect();
        let mut publishers = publishers.into_iter();
        let mut to_tell = Vec::new();
        let (mut workers, mut live) = (Vec::new(), Vec::new());
        for (stream_at, (stream, policies)) in config.streams.iter().zip(&policies).enumerate() {
            let publisher = match stream.delivery {
                Delivery::Broadcast => {
                    let socket = publishers.next().context("a socket per broadcast stream")?;
                    let broadcast = Broadcast {
                        stream,
                        socket,
                        endpoint: &endpoints[stream_at + 1],
                        access: &access,
                        taps: &taps[stream_at],
                        figures: &stream_figures[stream_at],
                    };
                    let (broadcaster, revoked, waker) =
                        start_publisher(&mut outlet, broadcast, epoch, &mdts)?;
                    to_tell.push((revoked, waker));
                    Some(broadcaster)
                }
                Delivery::Queue => None,
            };
            let (mut ends, mut lives) = (Vec::new(), Vec::new());
            let joints = policies
                .joints()
                .map_err(|error| anyhow!(in_stream(&config.path, &stream.name, &error)))?;
            let mut joints = joints.into_iter();
            for (at, mdt) in mdts.iter().enumerate() {
                if mdt.kind != stream.kind {
                    let (end, life) = idle_worker()?;
                    ends.push(end);
                    lives.push(life);
                    continue;
                }
                let (joint, number) = joints.next().context("policies for each MDT")?;
                let waker = Waker::new()?;
                let from = engine.start_of(stream_at, at);
                let continues = from > RecordIndex::new(1);
                let follower = follower(mdt, from, continues, &waker);
                let pipeline = Pipeline::through(follower, joint, number, started);
                let (command, commands) = unbounded();
                let progress = Arc::new(Progress::default());
                engine.watch_policies(stream_at, at, &progress.policies);
                let (output, inputs) = match &publisher {
                    Some(broadcaster) => {
                        let (to, taps) = (Arc::clone(broadcaster), taps[stream_at].clone());
                        (Output::Broadcast { to, taps }, None)
                    }
                    None => {
                        let (inputs, received) = bounded(HANDOVER);
                        let (waker, lanes) = (engine_waker.clone(), stream.lanes);
                        (Output::Queue { inputs, waker, lanes }, Some(received))
                    }
                };
                let mut worker = Worker {
                    mdt_at: at,
                    mdt: mdt.name.clone(),
                    stream: stream.name.clone(),
                    pipeline,
                    output,
                    progress: Arc::clone(&progress),
                    commands,
                    waker: waker.clone(),
                    stop: Arc::clone(&intake.stop),
                    barriers: Vec::new(),
                    told_end: None,
                };
                intake.wakers.push(waker.clone());
                intake.spawn(&stream.name, move || worker.run())?;
                let (progress, commands) = (progress, command);
                let live_end = LiveWorker {
                    commands: commands.clone(),
                    waker: waker.clone(),
                    progress: Arc::clone(&progress),
                };
                lives.push(live_end);
                ends.push(WorkerEnd { progress, commands, waker, inputs });
            }
            workers.push(ends);
            live.push(lives);
        }

        let (reloads, reloads_in) = unbounded();
        let keeper = Keeper {
            file: config.path.clone(),
            streams: policies.clone(),
            live: own_workers(&live, &config.streams, &mdts),
            limit: config.server.policy_timeout,
            requests: reloads_in,
            outcomes: outcomes.clone(),
            waker: engine_waker.clone(),
        };
        policies.iter().for_each(|policies| policies.register(&metrics));
        outlet.spawn("policies", move || keeper.run())?;
        let owner = if config.sinks.is_empty() { None } else { Some(state_owner(config)?) };
        for (sink, owner) in config.sinks.iter().zip(owner.iter().cycle()) {
            let kind = config.streams[sink.stream].kind;
            for (at, mdt) in mdts.iter().enumerate().filter(|(_, mdt)| mdt.kind == kind) {
                let waker = Waker::new()?;
                let from = engine.sink_watermark(sink.stream, at, &sink.reader).next();
                let follower = follower(mdt, from, from > RecordIndex::new(1), &waker);
                let policies = Arc::clone(&policies[sink.stream]);
                let (joint, version) = policies.joint_for(&mdt.name)?;
                let stats = Arc::<SinkStats>::default();
                let (shown, name) = (Arc::clone(&stats), mdt.name.clone());
                let (stream, reader) =
                    (config.streams[sink.stream].name.clone(), sink.reader.clone());
                metrics.register(move |samples| shown.put(&stream, &reader, &name, samples));
                let parts = sink::Parts {
                    place: (sink.stream, at),
                    mdt: mdt.name.clone(),
                    pipeline: Pipeline::through(follower, joint, 0, started)
                        .keeping_up_with(policies, version, &mdt.name),
                    owner: owner.clone(),
                    state: hsm.presence_of(&mdt.name),
                    stats,
                    outcomes: outcomes.clone(),
                    engine: engine_waker.clone(),
                    waker: waker.clone(),
                    stop: Arc::clone(&intake.stop),
                };
                let mut sink = Sink::new(sink, parts);
                intake.wakers.push(waker);
                intake.spawn(&format!("sink-{}", mdt.name), move || sink.run())?;
            }
        }

        let (ready, ready_in) = unbounded();
        let catch_ups = CatchUpThreads {
            mdts,
            policies,
            live,
            started,
            ready,
            waker: engine_waker.clone(),
            running: Arc::default(),
        };
        let movers = open_movers(&mut gate, &context, config, &access)?;
        let revoked_movers = movers.as_ref().map(MoverSocket::revoked);
        let host = hsm::entrances::Host {
            loader: &loader,
            lease,
            epoch,
            stop_intake: Arc::clone(&intake.stop),
            stop: Arc::clone(&outlet.stop),
        };
        let stages = (&mut intake, &mut outlet, &mut foreign);
        let hsm = start_hsm(stages, config, (&hsm, movers), &host, &metrics)?;
        let to_hsm = revoked_movers.zip(hsm.as_ref().map(|queue| queue.waker().clone()));
        to_tell.extend(to_hsm);
        let hsm_queue = hsm.clone();
        gate.start(&mut watch)?;
        let server_stats = Arc::new(ServerStats::default());
        let names = config.streams.iter().map(|stream| stream.name.clone());
        let logs = |is_changelog| {
            let logs = mdt_ends.iter().filter(move |mdt| mdt.kind.is_changelog() == is_changelog);
            logs.map(|mdt| (mdt.name.clone(), Arc::clone(&mdt.stats))).collect()
        };
        let own = Figures {
            mdts: logs(true),
            hsm_mdts: logs(false),
            streams: names.zip(stream_figures.iter().cloned()).collect(),
            server: Arc::clone(&server_stats),
            refusals: Arc::clone(&access.refusals),
            engine: engine_status.clone(),
            started: SystemTime::now(),
        };
        own.register(&metrics);
        let http = start_http(&mut core, config.server.http, &metrics, &engine_status)?;
        let mut server = Server {
            engine,
            sockets: routers,
            mdts: mdt_ends,
            workers,
            taps,
            stream_names: config.streams.iter().map(|s| s.name.clone()).collect(),
            epoch,
            queue_limit_bytes: budget.queue_bytes,
            catch_ups: Box::new(catch_ups),
            reloads: reloads.clone(),
            ready: ready_in,
            commits,
            hsm,
            outcomes: outcomes_in,
            outcome_sender: outcomes.clone(),
            questions,
            stats: server_stats,
            access: access.clone(),
            owners: HashMap::new(),
            figures: stream_figures,
            waker: engine_waker.clone(),
            stop: Arc::clone(&core.stop),
        };
        let revoked = Revoked { outcomes, engine: engine_waker.clone(), sockets: to_tell };
        core.wakers.push(engine_waker);
        core.spawn("engine", move || server.run())?;
        info!(
            epoch,
            mdts = config.mdts.len(),
            streams = config.streams.len(),
            control = endpoints.first().map_or("", String::as_str),
            http = http.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            "lcapd is ready"
        );
        let patience = config.server.policy_timeout;
        let threads = vec![intake, core, outlet, foreign, watch];
        Ok(Self {
            threads,
            reloads,
            patience,
            epoch,
            endpoints,
            metrics,
            engine_status,
            security,
            revoked,
            hsm: hsm_queue,
        })
    }

    /// One life of lcapd.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where its sockets are bound: control, then one per stream.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Reads the policies of all streams again. What comes of it is in the log.
    pub fn reload(&self) {
        let request = ReloadRequest { stream: None, answer: Box::new(|_, _| {}) };
        let _ = self.reloads.send(request);
    }

    /// Where its figures are registered.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where the engine is asked how things are.
    pub fn engine_status(&self) -> &StatusPort {
        &self.engine_status
    }

    /// Reads the list of clients again. Sessions and connections of
    /// those that may do less end.
    ///
    /// # Errors
    /// What is wrong; nothing has changed then.
    pub fn reload_clients(&self) -> Result<()> {
        let Some(security) = &self.security else { return Ok(()) };
        if security.reload()? {
            let _ = self.revoked.outcomes.send(Outcome::Revoked);
            self.revoked.engine.wake();
            for (revoked, thread) in &self.revoked.sockets {
                revoked.store(true, Ordering::Relaxed);
                thread.wake();
            }
        }
        Ok(())
    }

    /// Goes by other limits, orders and times of the queue of HSM requests from now on.
    pub fn reload_hsm(&self, config: &Config) {
        let (Some(queue), Some(hsm)) = (&self.hsm, &config.hsm) else { return };
        let (settings, entrances) = (hsm.queue.clone(), hsm.entrances.clone());
        queue.call(move |core, _| {
            core.queue.set_limits(&settings);
            core.movers.set_graces(entrances.grace, entrances.graces);
        });
    }

    /// Stops everything and waits for it.
    pub fn stop(self) {
        drop(self.reloads); // the last but the engine's
        for (nth, stage) in self.threads.into_iter().enumerate() {
            // Policies run in the first, a placer in the fourth.
            stage.stop([0, 3].contains(&nth).then_some(self.patience));
        }
        info!("lcapd has stopped");
    }
}

/// The log of an MDT. Another lcapd is shown our keys, if it has some of its own.
fn upstream(config: &Config, mdt: &Mdt) -> Result<Arc<dyn Upstream>> {
    let user = mdt.user.as_deref();
    if let (SourceUri::Relay { endpoint, stream }, Some(server)) = (&mdt.source, &mdt.server_key) {
        let own = config.security.as_ref().map(|security| security.key_file.clone());
        let relay = RelayUpstream::new(endpoint, stream, &mdt.name, user);
        let relay = relay.with_keys(RelayKeys { server: server.clone(), own });
        return Ok(Arc::new(relay.with_context(|| format!("source of {}", mdt.name))?));
    }
    Ok(mdt.source.upstream(&mdt.name, user, &config.server.state_dir)?)
}

fn follower(mdt: &MdtParts, from: RecordIndex, continues: bool, waker: &Waker) -> Follower {
    let (log, upstream) = (Arc::clone(&mdt.log), Arc::clone(&mdt.upstream));
    Follower::new(log, upstream, from, continues, Arc::clone(&mdt.buffers), waker.clone())
}

/// Of each stream, the workers on the logs that it reads.
fn own_workers(
    live: &[Vec<LiveWorker>],
    streams: &[Stream],
    mdts: &[MdtParts],
) -> Vec<Vec<LiveWorker>> {
    let own = |(workers, stream): (&Vec<LiveWorker>, &Stream)| {
        let pairs = workers.iter().zip(mdts).filter(|(_, mdt)| mdt.kind == stream.kind);
        pairs.map(|(worker, _)| worker.clone()).collect()
    };
    live.iter().zip(streams).map(own).collect()
}

/// Stands where a stream does not read a log.
fn idle_worker() -> Result<(WorkerEnd, LiveWorker)> {
    let (waker, (commands, _)) = (Waker::new()?, unbounded());
    let progress = Arc::new(Progress::default());
    let live = LiveWorker {
        commands: commands.clone(),
        waker: waker.clone(),
        progress: Arc::clone(&progress),
    };
    Ok((WorkerEnd { progress, commands, waker, inputs: None }, live))
}

/// Journals of HSM events, and the threads that fill them.
#[derive(Debug, Default)]
struct HsmActions {
    mdts: Vec<HsmMdt>,
}

/// Those of one MDT.
#[derive(Debug)]
struct HsmMdt {
    name: MdtName,
    /// Where its list is, for people.
    place: String,
    journal: Arc<Journal>,
    /// To be told that there is a reason to read the list, if there is one.
    due: Option<Due>,
    stats: Arc<PollerStats>,
}

impl HsmActions {
    /// Begins to read the lists of the MDTs, if there is a stream for that.
    fn start(config: &Config, lease: &Lease, intake: &mut Stage) -> Result<Self> {
        let mut hsm = Self::default();
        if !config.streams.iter().any(|stream| stream.kind == StreamKind::Hsm) {
            return Ok(hsm);
        }
        let journal = |dir: &Path| {
            Journal::taken_over(dir, config.server.hsm_max_events, lease.clone()).map(Arc::new)
        };
        for mdt in &config.mdts {
            let Some(place) = mdt.hsm_place() else { continue };
            let dir = config.server.state_dir.join("hsm").join(mdt.name.as_str());
            let journal = journal(&dir)?;
            let waker = Waker::new()?;
            let due = Due::new(waker.clone());
            let stats = Arc::new(PollerStats::default());
            hsm.mdts.push(HsmMdt {
                name: mdt.name.clone(),
                place: place.to_string(),
                journal: Arc::clone(&journal),
                due: Some(due.clone()),
                stats: Arc::clone(&stats),
            });
            let mut poller = Poller {
                mdt: mdt.name.clone(),
                place,
                journal,
                audit_interval: config.server.hsm_audit_interval,
                due,
                stats,
                waker: waker.clone(),
                stop: Arc::clone(&intake.stop),
            };
            intake.wakers.push(waker);
            intake.spawn(&format!("hsm-{}", mdt.name), move || poller.run())?;
        }
        for name in config.request_mdts() {
            let dir = config.server.state_dir.join("hsm").join(name.as_str());
            let journal = journal(&dir)?;
            let (place, stats) = ("requests of lcapd".to_owned(), PollerStats::here());
            hsm.mdts.push(HsmMdt { name, place, journal, due: None, stats: Arc::new(stats) });
        }
        Ok(hsm)
    }

    /// To be told that there is a reason to read a list.
    fn lists(&self) -> Vec<Due> {
        self.mdts.iter().filter_map(|of| of.due.clone()).collect()
    }

    /// The journals that have no list: the queue of requests fills them.
    fn of_requests(&self) -> Vec<hsm::events::Target> {
        let of_requests = self.mdts.iter().filter(|of| of.due.is_none());
        let target = |of: &HsmMdt| hsm::events::Target {
            mdt: of.name.clone(),
            journal: Arc::clone(&of.journal),
            stats: Arc::clone(&of.stats),
        };
        of_requests.map(target).collect()
    }

    fn register(&self, metrics: &Metrics) {
        for of in &self.mdts {
            let (mdt, stats) = (of.name.clone(), Arc::clone(&of.stats));
            metrics.register(move |samples| stats.put(&mdt, samples));
        }
    }

    fn presence_of(&self, mdt: &MdtName) -> Option<Arc<dyn LiveState>> {
        let of = self.mdts.iter().find(|of| of.name == *mdt)?;
        Some(Arc::new(Presence { journal: Arc::clone(&of.journal), stats: Arc::clone(&of.stats) }))
    }
}

/// Every log that is read: changelogs first, then journals of HSM events.
fn units(config: &Config, hsm: &HsmActions) -> Result<Vec<Unit>> {
    let mut units = Vec::new();
    for mdt in config.mdts.iter().filter(|mdt| mdt.source.is_changelog()) {
        let upstream = upstream(config, mdt)?;
        let due = hsm.mdts.iter().find(|of| of.name == mdt.name);
        units.push(Unit {
            name: mdt.name.clone(),
            kind: StreamKind::Changelog,
            source_text: mdt.source_text.clone(),
            clears: mdt.user.is_some() || !mdt.source.needs_user(),
            upstream,
            journal: None,
            hsm_due: due.and_then(|of| of.due.clone()),
        });
    }
    for mdt in &hsm.mdts {
        units.push(Unit {
            name: mdt.name.clone(),
            kind: StreamKind::Hsm,
            source_text: mdt.place.clone(),
            clears: true,
            upstream: Arc::new(JournalUpstream(Arc::clone(&mdt.journal))),
            journal: Some(Arc::clone(&mdt.journal)),
            hsm_due: None,
        });
    }
    Ok(units)
}

/// What stands before every socket: who may connect, and how many.
struct Gate {
    security: Option<Arc<Security>>,
    zap: Zap,
}

impl Gate {
    fn new(
        context: &zmq::Context,
        security: Option<Arc<Security>>,
        access: &Access,
        max_connections: usize,
        stage: &mut Stage,
    ) -> Result<Self> {
        let waker = Waker::new()?;
        stage.wakers.push(waker.clone());
        let doorman = Doorman::new(max_connections);
        let zap = Zap::new(context, access.clone(), doorman, waker, Arc::clone(&stage.stop))?;
        Ok(Self { security, zap })
    }

    /// Makes a socket that is not bound yet accept nobody but who is allowed in `domain`.
    fn protect(&self, socket: &zmq::Socket, domain: &Domain) -> Result<(), zmq::Error> {
        if let Some(security) = &self.security {
            security.protect(socket)?;
        }
        // A handler is asked for a domain only if that is not empty.
        socket.set_zap_domain(&domain.to_string())
    }

    /// Protects a socket, binds it, and watches over its connections. Says where it is bound.
    fn open(
        &mut self,
        context: &zmq::Context,
        socket: zmq::Socket,
        domain: &Domain,
        endpoint: &str,
    ) -> Result<(Watched, String)> {
        self.protect(&socket, domain)?;
        let socket = Watched::from(socket);
        self.zap.watch(context, &socket)?;
        // With IPv6 on, IPv4 addresses are shown in a form that nobody recognises.
        socket.set_ipv6(endpoint.contains('['))?;
        socket.bind(endpoint).with_context(|| format!("cannot bind {domain} to {endpoint}"))?;
        let bound = socket.get_last_endpoint().ok().and_then(Result::ok);
        let bound = bound.unwrap_or_else(|| endpoint.to_owned());
        self.zap.is_bound(Door::of_endpoint(&bound));
        Ok((socket, bound))
    }

    /// From now on questions are answered; what was asked before has waited.
    fn start(self, stage: &mut Stage) -> Result<()> {
        let mut zap = self.zap;
        stage.spawn("zap", move || zap.run())
    }
}

/// What one broadcast stream has of its own.
struct Broadcast<'a> {
    stream: &'a Stream,
    socket: Watched,
    endpoint: &'a str,
    access: &'a Access,
    taps: &'a Taps,
    figures: &'a Arc<StreamFigures>,
}

/// Returns what sends, what is to be set when somebody may no longer read, and what is to be woken then.
fn start_publisher(
    outlet: &mut Stage,
    broadcast: Broadcast<'_>,
    epoch: u64,
    mdts: &[MdtParts],
) -> Result<(Arc<Broadcaster>, Arc<AtomicBool>, Waker)> {
    let Broadcast { stream, socket, endpoint, access, taps, figures } = broadcast;
    let topic =
        |mdt: &MdtParts| (mdt.kind == stream.kind).then(|| Topic::new(&stream.name, &mdt.name));
    let publisher = Publisher {
        stream: stream.name.clone(),
        kind: stream.kind,
        socket,
        epoch,
        topics: mdts.iter().map(topic).collect(),
        taps: taps.clone(),
        figures: Arc::clone(figures),
        door: Door::of_endpoint(endpoint),
        subscribers: Subscribers::default(),
        access: access.clone(),
        started: Instant::now(),
    };
    let (revoked, waker) = (Arc::new(AtomicBool::new(false)), Waker::new()?);
    let stop = Arc::clone(&outlet.stop);
    let broadcaster = Broadcaster::new(publisher, waker.clone(), Arc::clone(&revoked), stop)?;
    let broadcaster = Arc::new(broadcaster);
    outlet.wakers.push(waker.clone());
    let serving = Arc::clone(&broadcaster);
    outlet.spawn(&format!("pub-{}", stream.name), move || serving.serve())?;
    Ok((broadcaster, revoked, waker))
}

/// Where movers connect, if they may.
fn open_movers(
    gate: &mut Gate,
    context: &zmq::Context,
    config: &Config,
    access: &Access,
) -> Result<Option<MoverSocket>> {
    let hsm = config.hsm.as_ref();
    let Some(endpoint) = hsm.and_then(|hsm| hsm.entrances.movers.as_deref()) else {
        return Ok(None);
    };
    let socket = hsm::service::router(context)?;
    let (socket, bound) = gate.open(context, socket, &Domain::Movers, endpoint)?;
    info!(endpoint = bound, "movers are served");
    Ok(Some(MoverSocket::new(socket, Door::of_endpoint(&bound), access.clone())))
}

/// The queue of HSM requests, and what fills it, if there is to be one.
fn start_hsm(
    (intake, outlet, foreign): (&mut Stage, &mut Stage, &mut Stage),
    config: &Config,
    (actions, movers): (&HsmActions, Option<MoverSocket>),
    host: &hsm::entrances::Host<'_>,
    metrics: &Metrics,
) -> Result<Option<HsmQueue>> {
    let Some(hsm) = &config.hsm else { return Ok(None) };
    let state_dir = &config.server.state_dir;
    let started = hsm::start::build(hsm, state_dir, actions.of_requests(), movers, host)?;
    let spooled = started.intake.as_ref().map(|spool| Arc::clone(&spool.stats));
    let lustre = started.copytool.as_ref().map(|(intake, _)| Arc::clone(&intake.shared));
    hsm::figures::register(metrics, started.queue.clone(), spooled, lustre);
    if let Some(mut spool) = started.intake {
        intake.wakers.push(spool.waker.clone());
        intake.spawn("hsm-spool", move || spool.run())?;
    }
    if let Some(mut reports) = started.reports {
        intake.spawn("hsm-reports", move || reports.run())?;
    }
    if let Some(mut asker) = started.asker {
        foreign.spawn("hsm-placer", move || asker.run())?;
    }
    if let Some(mut events) = started.events {
        outlet.spawn("hsm-events", move || events.run())?;
    }
    let mut service = started.service;
    service.core.add_observer(hsm::due::observer(actions.lists()));
    outlet.wakers.push(started.waker);
    outlet.spawn("hsm", move || service.run())?;
    if let Some((mut lustre, mut teller)) = started.copytool {
        intake.wakers.push(lustre.waker.clone());
        intake.spawn("hsm-intake", move || lustre.run())?;
        outlet.spawn("hsm-teller", move || teller.run())?;
    }
    Ok(Some(started.queue))
}

/// Serves figures and health, if that is configured; says where.
fn start_http(
    stage: &mut Stage,
    address: Option<SocketAddr>,
    metrics: &Metrics,
    engine: &StatusPort,
) -> Result<Option<SocketAddr>> {
    let Some(address) = address else { return Ok(None) };
    let waker = Waker::new()?;
    let router = figures::router(metrics.clone(), engine.clone());
    let mut http = Http::bind(address, router, waker.clone(), Arc::clone(&stage.stop))
        .with_context(|| format!("cannot bind http to {address}"))?;
    let bound = http.address()?;
    stage.wakers.push(waker);
    stage.spawn("http", move || http.run())?;
    Ok(Some(bound))
}

/// Commits what has gathered, one transaction at a time. Ends when the engine is gone.
fn start_store(
    outlet: &mut Stage,
    mut store: Store,
    lease: Lease,
    commits: Receiver<Vec<Change>>,
    (outcomes, waker): (Sender<Outcome>, Waker),
) -> Result<()> {
    outlet.spawn("store", move || {
        while let Ok(changes) = commits.recv() {
            let result = if lease.is_held() {
                store.commit(&changes).map_err(|error| chain(&error))
            } else {
                Err("another lcapd may be at work".to_owned())
            };
            let _ = outcomes.send(Outcome::Committed(result));
            waker.wake();
        }
    })
}

/// Starts a thread for each client that reads the past.
struct CatchUpThreads {
    mdts: Vec<MdtParts>,
    policies: Vec<Arc<StreamPolicies>>,
    live: Vec<Vec<LiveWorker>>,
    started: Instant,
    ready: Sender<u64>,
    waker: Waker,
    running: Arc<()>,
}

impl CatchUps for CatchUpThreads {
    fn start(&mut self, session: u64, start: CatchUpStart) -> Result<Handle, String> {
        let CatchUpStart { stream, mdt, from, continues, generation, follow, filter, snapshot } =
            start;
        // Each thread holds a reference until it ends.
        if Arc::strong_count(&self.running) > MAX_CATCH_UPS {
            return Err(format!("{MAX_CATCH_UPS} clients are catching up already; try again"));
        }
        let parts = &self.mdts[mdt];
        if parts.log.head().1 != generation {
            // The reader thread and the engine learn of it one after the other.
            return Err("the MDT begins a new history; try again".to_owned());
        }
        let waker = Waker::new().map_err(|error| error.to_string())?;
        let policies = Arc::clone(&self.policies[stream]);
        let (joint, version) = policies.joint_for(&parts.name).map_err(|error| chain(&error))?;
        let mut follower = follower(parts, from, continues, &waker);
        if let Some(journal) = parts.journal.as_ref().filter(|_| snapshot) {
            follower.begin_with_state_of(Arc::clone(journal));
        }
        let mut pipeline = Pipeline::through(follower, joint, 0, self.started).keeping_up_with(
            policies,
            version,
            &parts.name,
        );
        if !follow {
            pipeline.want_end();
        }
        let notify = Notify { session, ready: self.ready.clone(), waker: self.waker.clone() };
        let live = self.live[stream][mdt].clone();
        let (mut catch_up, handle) =
            CatchUp::new(parts.name.clone(), pipeline, live, follow, filter, notify, waker);
        let running = Arc::clone(&self.running);
        let thread = thread::Builder::new().name("catch-up".to_owned());
        let spawned = thread.spawn(move || {
            catch_up.run();
            drop(running);
        });
        spawned.map(|_| handle).map_err(|error| format!("cannot start a thread: {error}"))
    }
}

/// Who this lcapd is for other writers of its sinks.
fn state_owner(config: &Config) -> Result<String> {
    let dir = &config.server.state_dir;
    sink::owner(dir).with_context(|| format!("state in {}", dir.display()))
}

/// Distinct for each life of lcapd, growing: the time of its start in microseconds.
fn epoch() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_micros()).unwrap_or(1).max(1)
}

/// From the system's randomness, which std takes for its hash maps.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0_u8)
}

/// The default place of the configuration.
pub fn default_config() -> &'static Path {
    Path::new("/etc/lcap/lcapd.toml")
}
