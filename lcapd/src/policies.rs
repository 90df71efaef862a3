//! The policies of each stream: loaded, replaced while records flow, and watched.
//!
//! Live workers and catch-ups get their chains here. One thread, the [`Keeper`], reads the
//! configuration again when it is asked to, builds the new chains beside the old ones and has each
//! worker go on through its new one; and it looks every second whether a module does not return.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use lcap_ffi::MdtName;
use lcap_wire::control::{LoadedModule, PolicyReloadReply};
use tracing::{error, info, warn};

use crate::catch_up::LiveWorker;
use crate::config::{Config, Stream};
use crate::metrics::{Metrics, families as f};
use crate::pipeline::Joint;
use crate::policy::{Chain, ChainFigures, Loader, Module, Noticed, PolicyConfig, PolicyError};
use crate::reader::chain;
use crate::server::Outcome;
use crate::wake::Waker;
use crate::worker::Command;

/// How often the keeper looks at modules.
const LOOK: Duration = Duration::from_secs(1);
/// How long a reload waits for a worker; less than clients wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The modules of one stream, and their options.
#[derive(Clone, Debug)]
pub struct Modules(Arc<[(Arc<Module>, PolicyConfig)]>);

impl Modules {
    /// Loads them and checks their options.
    ///
    /// # Errors
    /// What is wrong, with stream, module and option.
    pub fn load(loader: &Loader, stream: &Stream) -> Result<Self, PolicyError> {
        let load = |config: &PolicyConfig| {
            let module = loader.load(&config.module)?;
            module.check_options(config)?;
            Ok((module, config.clone()))
        };
        stream
            .policies
            .iter()
            .map(load)
            .collect::<Result<Vec<_>, _>>()
            .map(|list| Self(list.into()))
    }

    /// A chain for one MDT.
    ///
    /// # Errors
    /// If a module refuses to be set up.
    pub fn chain(&self, mdt: &MdtName) -> Result<Chain, PolicyError> {
        Chain::new(&self.0, mdt)
    }

    /// A chain for each MDT, or the same for all if a module wants that, and the MDT's number there.
    ///
    /// # Errors
    /// If a module refuses to be set up.
    pub fn joints(&self, mdts: &[MdtName]) -> Result<Vec<(Arc<Joint>, u32)>, PolicyError> {
        if self.0.iter().any(|(module, _)| module.is_shared()) {
            let joint = Arc::new(Joint::new(Chain::for_mdts(&self.0, mdts)?, mdts.len()));
            return Ok((0..).zip(mdts).map(|(at, _)| (Arc::clone(&joint), at)).collect());
        }
        let alone = |mdt| Ok((Arc::new(Joint::new(self.chain(mdt)?, 1)), 0));
        mdts.iter().map(alone).collect()
    }

    /// One of them has a say in clearing.
    pub fn have_a_say_in_clearing(&self) -> bool {
        self.0.iter().any(|(module, _)| module.has_clear())
    }

    fn told(&self) -> Vec<LoadedModule> {
        let told = self.0.iter().map(|(module, _)| LoadedModule {
            module: module.name().to_owned(),
            version: module.version().to_owned(),
            path: module.path().display().to_string(),
        });
        told.collect()
    }
}

/// What happened to a stream's policies.
#[derive(Debug, Default)]
struct Counts {
    /// Calls that took too long.
    long_calls: AtomicU64,
    reloaded: AtomicU64,
    refused: AtomicU64,
}

/// What one stream runs at present.
#[derive(Debug)]
pub struct StreamPolicies {
    name: String,
    mdts: Vec<MdtName>,
    modules: Mutex<Modules>,
    /// Counts replacements.
    version: AtomicU64,
    counts: Arc<Counts>,
    /// Every chain that is at work, and for which MDT, for the watchdog.
    at_work: Mutex<Vec<(String, Arc<ChainFigures>)>>,
}

impl StreamPolicies {
    /// Loads what the configuration says.
    ///
    /// # Errors
    /// See [`Modules::load`].
    pub fn new(
        loader: &Loader,
        stream: &Stream,
        mdts: impl IntoIterator<Item = MdtName>,
    ) -> Result<Self, PolicyError> {
        Ok(Self {
            name: stream.name.clone(),
            mdts: mdts.into_iter().collect(),
            modules: Mutex::new(Modules::load(loader, stream)?),
            version: AtomicU64::new(0),
            counts: Arc::default(),
            at_work: Mutex::default(),
        })
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.name
    }

    /// The present ones.
    pub fn modules(&self) -> Modules {
        lock(&self.modules).clone()
    }

    /// Another number after each replacement.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Registers what is counted here.
    pub fn register(&self, metrics: &Metrics) {
        let (stream, counts) = (self.name.clone(), Arc::clone(&self.counts));
        metrics.register(move |samples| {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            samples.put(&f::POLICY_LONG_CALLS, &[&stream], load(&counts.long_calls));
            samples.put(&f::POLICY_RELOADS, &[&stream, "done"], load(&counts.reloaded));
            samples.put(&f::POLICY_RELOADS, &[&stream, "refused"], load(&counts.refused));
        });
    }

    /// For the live workers, by MDT.
    ///
    /// # Errors
    /// If a module refuses to be set up.
    pub fn joints(&self) -> Result<Vec<(Arc<Joint>, u32)>, PolicyError> {
        let joints = self.modules().joints(&self.mdts)?;
        self.watch(&joints);
        Ok(joints)
    }

    /// For a catch-up on one MDT, and the version that it is of.
    ///
    /// # Errors
    /// If a module refuses to be set up.
    pub fn joint_for(&self, mdt: &MdtName) -> Result<(Arc<Joint>, u64), PolicyError> {
        let version = self.version();
        let joint = Arc::new(Joint::new(self.modules().chain(mdt)?, 1));
        self.note(mdt, &joint);
        Ok((joint, version))
    }

    fn watch(&self, joints: &[(Arc<Joint>, u32)]) {
        for ((joint, number), mdt) in joints.iter().zip(&self.mdts) {
            if *number == 0 {
                self.note(mdt, joint);
            }
        }
    }

    fn note(&self, mdt: &MdtName, joint: &Joint) {
        lock(&self.at_work).push((mdt.to_string(), joint.figures()));
    }

    /// The watchdog.
    fn look(&self, limit: Duration) {
        let at_work: Vec<_> = lock(&self.at_work).clone();
        for (mdt, figures) in &at_work {
            match figures.look(limit) {
                None => {}
                Some(Noticed::Stuck { nth, since }) => {
                    self.counts.long_calls.fetch_add(1, Ordering::Relaxed);
                    error!(
                        stream = self.name,
                        mdt,
                        module = figures.module(nth),
                        seconds = since.as_secs(),
                        "a policy module does not return from a call; its stream waits, no record \
                         is lost; if it never returns, only a restart of lcapd helps"
                    );
                }
                Some(Noticed::Returned) => {
                    warn!(stream = self.name, mdt, "the policy module has returned, going on");
                }
            }
        }
        drop(at_work);
        // Of a chain that is gone only we know.
        lock(&self.at_work).retain(|(_, figures)| Arc::strong_count(figures) > 1);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a reload, by stream.
pub type Reloaded = Result<PolicyReloadReply, String>;

/// Takes it, with the name of the stream.
pub type Answer = Box<dyn FnMut(&str, Reloaded) + Send>;

/// Asks for a reload.
pub struct ReloadRequest {
    /// Number of the stream; all of them without.
    pub stream: Option<usize>,
    /// Takes what came of it, stream by stream, on the keeper's thread.
    pub answer: Answer,
}

impl fmt::Debug for ReloadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadRequest").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The thread's state.
#[derive(Debug)]
pub struct Keeper {
    /// The configuration file.
    pub file: PathBuf,
    /// By stream.
    pub streams: Vec<Arc<StreamPolicies>>,
    /// By stream and MDT.
    pub live: Vec<Vec<LiveWorker>>,
    /// A call into a module that takes longer is an error.
    pub limit: Duration,
    /// What is asked. The thread ends when nobody can ask any more.
    pub requests: Receiver<ReloadRequest>,
    /// Tells the engine.
    pub outcomes: Sender<Outcome>,
    /// Wakes it.
    pub waker: Waker,
}

impl Keeper {
    /// Works until nobody can ask any more.
    pub fn run(&self) {
        loop {
            match self.requests.recv_timeout(LOOK) {
                Ok(request) => self.serve(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for stream in &self.streams {
                stream.look(self.limit);
            }
        }
    }

    fn serve(&self, mut request: ReloadRequest) {
        let config = Config::load(&self.file).map_err(|error| error.to_string());
        if let (Ok(config), None) = (&config, request.stream) {
            let runs = |name: &str| self.streams.iter().any(|stream| stream.name == name);
            for stream in config.streams.iter().filter(|stream| !runs(&stream.name)) {
                warn!(stream = stream.name, "a new stream: it begins when lcapd is restarted");
            }
        }
        for (at, stream) in self.streams.iter().enumerate() {
            if request.stream.is_some_and(|wanted| wanted != at) {
                continue;
            }
            let done = match &config {
                Ok(config) => self.reload(at, config),
                Err(problem) => Err(problem.clone()),
            };
            match &done {
                Ok(reply) if reply.waiting.is_empty() => {
                    info!(stream = stream.name, "policies reloaded");
                }
                Ok(reply) => error!(
                    stream = stream.name,
                    mdts = reply.waiting.join(", "),
                    "policies reloaded, but a module does not return: these MDTs follow when it does"
                ),
                Err(problem) => error!(
                    stream = stream.name,
                    problem, "policies not reloaded, the old ones stay at work"
                ),
            }
            let counts = &stream.counts;
            let counter = if done.is_ok() { &counts.reloaded } else { &counts.refused };
            counter.fetch_add(1, Ordering::Relaxed);
            (request.answer)(&stream.name, done);
        }
    }

    /// Everything that can fail does so before anything is changed.
    fn reload(&self, at: usize, config: &Config) -> Reloaded {
        let policies = &self.streams[at];
        let name = &policies.name;
        let file = self.file.display();
        let Some(stream) = config.streams.iter().find(|stream| stream.name == *name) else {
            return Err(format!("{file}: there is no stream {name} in it any more"));
        };
        let loader = Loader::standard(&config.server.policy_path);
        let built = Modules::load(&loader, stream)
            .and_then(|modules| Ok((modules.joints(&policies.mdts)?, modules)));
        let (joints, modules) = built.map_err(|error| in_stream(&self.file, name, &error))?;
        policies.watch(&joints);
        let clears = modules.have_a_say_in_clearing();
        let told = modules.told();
        *lock(&policies.modules) = modules;
        policies.version.fetch_add(1, Ordering::AcqRel);

        let (mut answers, mut problems) = (Vec::new(), Vec::new());
        for ((joint, mdt), worker) in joints.into_iter().zip(&self.live[at]) {
            let (done, answer) = bounded(1);
            // Fails only when lcapd stops.
            let _ = worker.commands.send(Command::Replace { joint, mdt, done });
            worker.waker.wake();
            answers.push(answer);
        }
        let until = Instant::now() + self.limit.min(PATIENCE);
        let mut waiting = Vec::new();
        for (answer, mdt) in answers.iter().zip(&policies.mdts) {
            match answer.recv_deadline(until) {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => problems.push(format!("{mdt}: {problem}")),
                Err(_) => waiting.push(mdt.to_string()),
            }
        }
        let _ = self.outcomes.send(Outcome::PoliciesReplaced { stream: at, clears });
        self.waker.wake();
        if problems.is_empty() {
            Ok(PolicyReloadReply { stream: name.clone(), modules: told, waiting })
        } else {
            Err(format!("{file}: stream {name}: {}", problems.join("; ")))
        }
    }
}

/// What is wrong with a stream's policies, and where.
pub fn in_stream(file: &Path, stream: &str, error: &PolicyError) -> String {
    format!("{}: stream {stream}: {}", file.display(), chain(error))
}
