//! Starts, names, stops and joins every thread.
//!
//! Stopping goes along the data path: readers and workers first, then the engine, which waits for
//! its last commit, then publishers, the store and the clearers.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::Delivery;
use tracing::{info, warn};

use crate::catch_up::{CatchUp, Handle, LiveWorker, Notify};
use crate::clearer::Clearer;
use crate::config::{Config, Stream};
use crate::engine::retention::ClearPolicy;
use crate::engine::{CatchUpStart, Engine, MdtSetup, Settings, StreamSetup};
use crate::figures::{self, Figures, ServerStats, StreamFigures};
use crate::follower::Follower;
use crate::health::{StatusPort, status_port};
use crate::hsm;
use crate::hsm::service::Handle as HsmQueue;
use crate::http::Http;
use crate::log::MdtLog;
use crate::metrics::Metrics;
use crate::pipeline::Pipeline;
use crate::policy::{Chain, Loader, Module, PolicyConfig, PolicyError};
use crate::publisher::{self, Publisher, Topic};
use crate::reader::{Reader, ReaderStats, chain};
use crate::server::{self, CatchUps, MdtEnd, Outcome, Server, WorkerEnd};
use crate::source::Upstream;
use crate::store::{Change, Store};
use crate::taps::Taps;
use crate::wake::Waker;
use crate::worker::{Output, Progress, Published, Worker};

/// Messages between a worker and its publisher, inputs between a worker and the engine.
const HANDOVER: usize = 8;
/// Threads that serve clients from the past, at most.
const MAX_CATCH_UPS: usize = 512;

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

/// One MDT's shared parts.
#[derive(Clone, Debug)]
struct MdtParts {
    name: MdtName,
    upstream: Arc<dyn Upstream>,
    log: Arc<MdtLog>,
}

/// The modules of one stream, loaded once.
#[derive(Clone, Debug)]
struct Modules(Vec<(Arc<Module>, PolicyConfig)>);

impl Modules {
    fn load(loader: &Loader, stream: &Stream) -> Result<Self, PolicyError> {
        let load = |config: &PolicyConfig| Ok((loader.load(&config.module)?, config.clone()));
        stream.policies.iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    fn chain(&self, mdt: &MdtName) -> Result<Chain, PolicyError> {
        Chain::new(&self.0, mdt)
    }

    fn have_a_say_in_clearing(&self) -> bool {
        self.0.iter().any(|(module, _)| module.has_clear())
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    threads: Vec<Stage>,
    epoch: u64,
    endpoints: Vec<String>,
    metrics: Metrics,
}

/// Threads that are stopped together.
#[derive(Debug)]
struct Stage {
    stop: Arc<AtomicBool>,
    wakers: Vec<Waker>,
    handles: Vec<JoinHandle<()>>,
}

impl Stage {
    fn new() -> Self {
        Self { stop: Arc::default(), wakers: Vec::new(), handles: Vec::new() }
    }

    /// Linux shows 15 bytes of a thread's name.
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        self.handles.push(thread.with_context(|| format!("cannot start thread {name}"))?);
        Ok(())
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for waker in &self.wakers {
            waker.wake();
        }
        for handle in self.handles {
            let name = handle.thread().name().unwrap_or_default().to_owned();
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
    let loader = Loader::standard(&config.server.policy_path);
    for stream in &config.streams {
        let modules =
            Modules::load(&loader, stream).with_context(|| format!("stream {}", stream.name))?;
        for mdt in &config.mdts {
            modules.chain(&mdt.name).with_context(|| format!("stream {}", stream.name))?;
        }
    }
    Ok(())
}

fn bind(socket: &zmq::Socket, endpoint: &str, what: &str) -> Result<String> {
    // With IPv6 on, IPv4 addresses are shown in a form that nobody recognises.
    socket.set_ipv6(endpoint.contains('['))?;
    socket.bind(endpoint).with_context(|| format!("cannot bind {what} to {endpoint}"))?;
    let bound = socket.get_last_endpoint().ok().and_then(Result::ok);
    Ok(bound.unwrap_or_else(|| endpoint.to_owned()))
}

impl Daemon {
    /// Starts everything.
    ///
    /// # Errors
    /// What cannot be started, and why; nothing runs then.
    pub fn start(config: &Config) -> Result<Self> {
        let started = Instant::now();
        let epoch = epoch();
        let n_queues = config.streams.iter().filter(|s| s.delivery == Delivery::Queue).count();
        let budget = Budget::new(config.server.memory_limit_bytes, config.mdts.len(), n_queues);
        let loader = Loader::standard(&config.server.policy_path);
        let modules: Vec<Modules> = config
            .streams
            .iter()
            .map(|stream| Modules::load(&loader, stream).with_context(|| stream.name.clone()))
            .collect::<Result<_>>()?;
        let (store, saved) = Store::open(&config.server.state_dir)?;

        let context = zmq::Context::new();
        // More I/O threads than cores only take turns.
        let io_threads = thread::available_parallelism().map_or(1, |n| n.get().min(4));
        context.set_io_threads(i32::try_from(io_threads).unwrap_or(1))?;
        let mut endpoints = Vec::new();
        let control = server::router(&context, 1000)?;
        endpoints.push(bind(&control, &config.server.control, "the control socket")?);
        let mut routers = vec![control];
        let mut publishers = Vec::new();
        let mut setups = Vec::new();
        for (stream, modules) in config.streams.iter().zip(&modules) {
            let what = format!("stream {}", stream.name);
            let publish = if stream.delivery == Delivery::Queue {
                let socket = server::router(&context, 1000)?;
                let bound = bind(&socket, &stream.publish, &what)?;
                routers.push(socket);
                bound
            } else {
                let socket = publisher::socket(&context, budget.send_limit)?;
                let bound = bind(&socket, &stream.publish, &what)?;
                publishers.push(socket);
                bound
            };
            endpoints.push(publish.clone());
            setups.push(StreamSetup {
                name: stream.name.clone(),
                delivery: stream.delivery,
                publish,
                lanes: stream.lanes,
                policy_clears: modules.have_a_say_in_clearing(),
                max_idle: stream.max_idle,
                max_lag: stream.max_lag,
            });
        }
        let mdt_setups = config.mdts.iter().map(|mdt| MdtSetup {
            name: mdt.name.clone(),
            source: mdt.source_text.clone(),
            clears: mdt.user.is_some() || !mdt.source.needs_user(),
        });
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
        let engine = Engine::new(settings, mdt_setups.collect(), setups, &saved);

        let (mut intake, mut core, mut outlet) = (Stage::new(), Stage::new(), Stage::new());
        let engine_waker = Waker::new()?;
        let (outcomes, outcomes_in) = unbounded();
        let (commits, commits_in) = unbounded();
        start_store(&mut outlet, store, commits_in, outcomes.clone(), engine_waker.clone())?;

        let metrics = Metrics::default();
        let (engine_status, questions) = status_port(engine_waker.clone());
        let stream_figures: Vec<Arc<StreamFigures>> =
            config.streams.iter().map(|_| Arc::default()).collect();

        let (mut mdts, mut mdt_ends) = (Vec::new(), Vec::new());
        for (at, mdt) in config.mdts.iter().enumerate() {
            let upstream =
                mdt.source.upstream(&mdt.name, mdt.user.as_deref(), &config.server.state_dir)?;
            let start = (0..config.streams.len()).map(|s| engine.start_of(s, at)).min();
            let start = start.unwrap_or(RecordIndex::new(1));
            let waker = Waker::new()?;
            let generation = engine.generation_of(at);
            let log = MdtLog::new(budget.log_bytes, start, generation, waker.clone());
            let parts = MdtParts { name: mdt.name.clone(), upstream, log: Arc::new(log) };
            let stats = Arc::new(ReaderStats::default());
            stats.read_index.store(start.prev().get(), Ordering::Relaxed);
            let mut reader = Reader {
                mdt_at: at,
                mdt: mdt.name.clone(),
                upstream: Arc::clone(&parts.upstream),
                log: Arc::clone(&parts.log),
                stats: Arc::clone(&stats),
                read_bytes: budget.read_bytes,
                known: saved.tails.get(mdt.name.as_str()).cloned().unwrap_or_default(),
                outcomes: outcomes.clone(),
                engine: engine_waker.clone(),
                waker: waker.clone(),
                stop: Arc::clone(&intake.stop),
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
                evicted: false,
                clears: clears_in,
                outcomes: outcomes.clone(),
                waker: engine_waker.clone(),
            };
            outlet.spawn("clearer", move || clearer.run())?;
            let log = Arc::clone(&parts.log);
            mdt_ends.push(MdtEnd { name: mdt.name.clone(), stats, log, clears });
            mdts.push(parts);
        }

        let taps: Vec<Taps> = config.streams.iter().map(|_| Taps::default()).collect();
        let mut publishers = publishers.into_iter();
        let (mut workers, mut live) = (Vec::new(), Vec::new());
        for (stream_at, (stream, modules)) in config.streams.iter().zip(&modules).enumerate() {
            let publisher = match stream.delivery {
                Delivery::Broadcast => {
                    let socket = publishers.next().context("a socket per broadcast stream")?;
                    Some(start_publisher(
                        &mut outlet,
                        stream,
                        socket,
                        epoch,
                        &mdts,
                        &taps[stream_at],
                        &stream_figures[stream_at],
                    )?)
                }
                Delivery::Queue => None,
            };
            let (mut ends, mut lives) = (Vec::new(), Vec::new());
            for (at, mdt) in mdts.iter().enumerate() {
                let waker = Waker::new()?;
                let from = engine.start_of(stream_at, at);
                let continues = from > RecordIndex::new(1);
                let follower = follower(mdt, from, continues, budget, &waker);
                let pipeline = Pipeline::new(follower, modules.chain(&mdt.name)?, started);
                let (command, commands) = unbounded();
                let progress = Arc::new(Progress::default());
                let (output, inputs) = match &publisher {
                    Some((messages, waker)) => {
                        let (messages, waker) = (messages.clone(), waker.clone());
                        let taps = taps[stream_at].clone();
                        (Output::Broadcast { messages, taps, waker }, None)
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

        let (ready, ready_in) = unbounded();
        let catch_ups = CatchUpThreads {
            mdts,
            modules,
            live,
            budget,
            started,
            ready,
            waker: engine_waker.clone(),
            running: Arc::default(),
        };
        let hsm = start_hsm(&mut intake, &mut outlet, config, &context, epoch)?;
        let server_stats = Arc::new(ServerStats::default());
        let names = config.streams.iter().map(|stream| stream.name.clone());
        let own = Figures {
            mdts: mdt_ends.iter().map(|m| (m.name.clone(), Arc::clone(&m.stats))).collect(),
            streams: names.zip(stream_figures.iter().cloned()).collect(),
            server: Arc::clone(&server_stats),
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
            ready: ready_in,
            commits,
            hsm,
            outcomes: outcomes_in,
            outcome_sender: outcomes,
            questions,
            stats: server_stats,
            figures: stream_figures,
            waker: engine_waker.clone(),
            stop: Arc::clone(&core.stop),
        };
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
        Ok(Self { threads: vec![intake, core, outlet], epoch, endpoints, metrics })
    }

    /// One life of lcapd.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where its sockets are bound: control, then one per stream.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Where its figures are registered.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Stops everything and waits for it.
    pub fn stop(self) {
        for stage in self.threads {
            stage.stop();
        }
        info!("lcapd has stopped");
    }
}

fn follower(
    mdt: &MdtParts,
    from: RecordIndex,
    continues: bool,
    budget: Budget,
    waker: &Waker,
) -> Follower {
    let (log, upstream) = (Arc::clone(&mdt.log), Arc::clone(&mdt.upstream));
    Follower::new(log, upstream, from, continues, budget.read_bytes, waker.clone())
}

type ToPublisher = (Sender<Published>, Waker);

fn start_publisher(
    outlet: &mut Stage,
    stream: &Stream,
    socket: zmq::Socket,
    epoch: u64,
    mdts: &[MdtParts],
    taps: &Taps,
    figures: &Arc<StreamFigures>,
) -> Result<ToPublisher> {
    let (messages, received) = bounded(HANDOVER);
    let waker = Waker::new()?;
    let mut publisher = Publisher {
        stream: stream.name.clone(),
        socket,
        epoch,
        topics: mdts.iter().map(|mdt| Topic::new(&stream.name, &mdt.name)).collect(),
        messages: received,
        taps: taps.clone(),
        figures: Arc::clone(figures),
        waker: waker.clone(),
        stop: Arc::clone(&outlet.stop),
    };
    outlet.wakers.push(waker.clone());
    outlet.spawn(&format!("pub-{}", stream.name), move || publisher.run())?;
    Ok((messages, waker))
}

/// The queue of HSM requests, and what fills it, if there is to be one.
fn start_hsm(
    intake: &mut Stage,
    outlet: &mut Stage,
    config: &Config,
    context: &zmq::Context,
    epoch: u64,
) -> Result<Option<HsmQueue>> {
    let Some(hsm) = &config.hsm else { return Ok(None) };
    let (stop, stop_intake) = (Arc::clone(&outlet.stop), Arc::clone(&intake.stop));
    let (dir, secure) = (&config.server.state_dir, |_: &zmq::Socket| Ok(()));
    let started = hsm::start::build(hsm, dir, context, &secure, epoch, stop, stop_intake)?;
    if let Some(mut spool) = started.intake {
        intake.wakers.push(spool.waker.clone());
        intake.spawn("hsm-spool", move || spool.run())?;
    }
    let mut service = started.service;
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
    commits: Receiver<Vec<Change>>,
    outcomes: Sender<Outcome>,
    waker: Waker,
) -> Result<()> {
    outlet.spawn("store", move || {
        while let Ok(changes) = commits.recv() {
            let result = store.commit(&changes).map_err(|error| chain(&error));
            let _ = outcomes.send(Outcome::Committed(result));
            waker.wake();
        }
    })
}

/// Starts a thread for each client that reads the past.
struct CatchUpThreads {
    mdts: Vec<MdtParts>,
    modules: Vec<Modules>,
    live: Vec<Vec<LiveWorker>>,
    budget: Budget,
    started: Instant,
    ready: Sender<u64>,
    waker: Waker,
    running: Arc<()>,
}

impl CatchUps for CatchUpThreads {
    fn start(&mut self, session: u64, start: CatchUpStart) -> Result<Handle, String> {
        let CatchUpStart { stream, mdt, from, continues, follow, filter } = start;
        // Each thread holds a reference until it ends.
        if Arc::strong_count(&self.running) > MAX_CATCH_UPS {
            return Err(format!("{MAX_CATCH_UPS} clients are catching up already; try again"));
        }
        let parts = &self.mdts[mdt];
        let waker = Waker::new().map_err(|error| error.to_string())?;
        let chain = self.modules[stream].chain(&parts.name).map_err(|error| chain(&error))?;
        let follower = follower(parts, from, continues, self.budget, &waker);
        let mut pipeline = Pipeline::new(follower, chain, self.started);
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
