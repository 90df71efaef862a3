//! A deterministic simulation: the daemon's and the client's real rules, a made-up network that
//! loses, delays and cuts, processes that crash at any step, a clock that jumps. One seed decides
//! everything; a naive [`model`] says what must hold.
//!
//! Real: engine, positions, queues, retention, logs, followers, pipelines with policies, workers,
//! catch-ups, the client's protocol, place and acknowledgements. Made up: threads, sockets, store,
//! MDT, time. Two things are left to real processes (`tests/e2e`, `lcap-soak`): what happens inside
//! one step of a thread, and what libzmq does.

mod client;
mod daemon;
mod mdt;
mod model;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{
    Delivery, From, Op, ReaderDeregister, ReaderRegister, Request, ServerMessage,
    parse_server_message,
};
use lcapclient::client::{Config, Source};
use lcapd::engine::retention::ClearPolicy;
use lcapd::engine::{NotCleared, Peer};
use lcapd::policy::{Loader, Module, PolicyConfig};
use lcapd::store::{Change, Saved};

use crate::rng::Rng;
use client::{Client, Down, Habits};
use daemon::{Plan, StreamPlan, write};
use mdt::{Kept, SimMdt};
use model::{HolderKey, Model, Policy};

/// What one schedule came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Things that happened.
    pub steps: u64,
    /// Records that were handed to applications.
    pub delivered: u64,
    /// Records that a queue's member was given again.
    pub again: u64,
    /// Daemons killed.
    pub crashes: u64,
    /// Clients killed.
    pub client_crashes: u64,
    /// Connections cut.
    pub cuts: u64,
    /// Live messages lost.
    pub lost_messages: u64,
    /// Clears of an MDT.
    pub clears: u64,
    /// Crashes of an MDT after which it issued indexes again.
    pub rewinds: u64,
}

impl Summary {
    /// Adds another schedule's figures.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.delivered += other.delivered;
        self.again += other.again;
        self.crashes += other.crashes;
        self.client_crashes += other.client_crashes;
        self.cuts += other.cuts;
        self.lost_messages += other.lost_messages;
        self.clears += other.clears;
        self.rewinds += other.rewinds;
    }
}

/// A schedule on which a promise was broken.
#[derive(Debug)]
pub struct Broken {
    /// Runs it again.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
    /// It was that an MDT was cleared too early.
    pub cleared_early: bool,
    /// What happened before, latest last.
    pub history: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.history {
            writeln!(f, "  {line}")?;
        }
        write!(f, "LCAP_SEED={}: {}", self.seed, self.what)
    }
}

/// Runs one schedule.
///
/// # Errors
/// [`Broken`] if a promise was.
pub fn run(seed: u64) -> Result<Summary, Broken> {
    let mut world = World::new(seed);
    let result = world.play().and_then(|()| world.settle());
    let cleared_early = world.model.cleared_early;
    result.map_err(|what| Broken { seed, what, cleared_early, history: world.history.into() })?;
    world.summary.delivered = world.model.n_delivered;
    world.summary.again = world.model.n_again;
    Ok(world.summary)
}

/// Lines of history that are kept.
const HISTORY: usize = 400;
/// Messages that wait in one live subscription; what comes then is dropped, as by libzmq.
const LIVE_PIPE: usize = 12;

struct Slot {
    client: Option<Client>,
    mdt: usize,
    stream: usize,
    reader: Option<String>,
}

/// A reader that is registered while everything goes on.
struct LateReader {
    key: HolderKey,
    from: From,
    state: Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    Wanted,
    Registered,
    Unwanted,
    Gone,
}

struct World {
    rng: Rng,
    base: Instant,
    now: Duration,
    plan: Plan,
    model: Model,
    saved: Saved,
    life: Option<daemon::Life>,
    next_epoch: u64,
    slots: Vec<Slot>,
    late: Vec<LateReader>,
    admin: VecDeque<Vec<u8>>,
    admin_replies: VecDeque<Vec<u8>>,
    next_identity: u64,
    n_records: usize,
    chaos: bool,
    summary: Summary,
    history: VecDeque<String>,
}

/// A C module of this folder.
fn module(cell: &OnceLock<Arc<Module>>, name: &str) -> Arc<Module> {
    let load = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join(format!("{name}.so"));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]);
        cc.arg("-I").arg(root.join("../include")).arg("-o").arg(&out);
        let status = cc.arg(root.join(format!("sim/{name}.c"))).status().expect("a C compiler");
        assert!(status.success(), "{cc:?}");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&out, mode).expect("its own file");
        let path = out.to_str().expect("a path");
        Loader::default().load(path).expect("a module")
    };
    Arc::clone(cell.get_or_init(load))
}

/// What a stream's policies are in one life of lcapd.
fn modules(policy: Policy, rng: &mut Rng) -> Option<(Arc<Module>, PolicyConfig)> {
    static SHUFFLE: OnceLock<Arc<Module>> = OnceLock::new();
    static FOLD: OnceLock<Arc<Module>> = OnceLock::new();
    match policy {
        Policy::None => None,
        Policy::Shuffle => Some((module(&SHUFFLE, "shuffle"), PolicyConfig::of("shuffle"))),
        Policy::Fold => Some((module(&FOLD, "fold"), PolicyConfig::of("fold"))),
        Policy::Changing => {
            let now = [Policy::None, Policy::Shuffle, Policy::Fold][rng.index(3)];
            modules(now, rng)
        }
    }
}

/// One schedule is looked at closely.
fn verbose() -> bool {
    std::env::var_os("LCAP_SEED").is_some()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let n_mdts = 1 + rng.index(2);
        let mdts = (0..n_mdts).map(|at| {
            let mdt = SimMdt::default();
            let most = 1 + rng.index(20);
            mdt.read_records.store(most, std::sync::atomic::Ordering::Relaxed);
            (format!("sim-MDT{at:04x}").parse().expect("a name"), Arc::new(mdt))
        });
        let mdts: Vec<_> = mdts.collect();
        let kinds = [
            (Delivery::Broadcast, 1, Policy::None),
            (Delivery::Queue, 1, Policy::None),
            (Delivery::Broadcast, 1, Policy::Shuffle),
            (Delivery::Queue, 3, Policy::Shuffle),
            (Delivery::Broadcast, 1, Policy::Fold),
            (Delivery::Queue, 2, Policy::Fold),
            (Delivery::Broadcast, 1, Policy::Changing),
            (Delivery::Queue, 1, Policy::Changing),
        ];
        // At least the first, then any of the others.
        let chosen: Vec<_> =
            kinds.into_iter().enumerate().filter(|(at, _)| *at == 0 || rng.chance(350)).collect();
        let streams: Vec<StreamPlan> = chosen
            .iter()
            .map(|&(at, (delivery, lanes, policy))| StreamPlan {
                name: format!("s{at}"),
                delivery,
                lanes,
                policy,
                module: None,
            })
            .collect();
        let base = Instant::now();
        let plan = Plan {
            last_read: mdts.iter().map(|_| Kept::default()).collect(),
            mdts,
            streams,
            log_bytes: usize::try_from(1 << rng.between(10, 17)).unwrap_or(1 << 17),
            read_bytes: 8 << 10,
            queue_bytes: 4 << 10,
            heartbeat: ms(100),
            clear: ClearPolicy {
                interval: ms(rng.between(1, 200)),
                records: rng.between(1, 100),
                keep_alive: Duration::from_secs(5),
            },
            started: base,
        };
        let policies = chosen.iter().map(|(_, (_, _, policy))| *policy).collect();
        let queues: Vec<bool> =
            plan.streams.iter().map(|s| s.delivery == Delivery::Queue).collect();
        let mdts = plan.mdts.iter().map(|(_, mdt)| Arc::clone(mdt)).collect();
        let model = Model::new(policies, queues.clone(), mdts);
        let mut slots = Vec::new();
        let mut late = Vec::new();
        for (stream, is_queue) in queues.iter().enumerate() {
            for mdt in 0..n_mdts {
                let n = if *is_queue { 1 + rng.index(3) } else { 2 };
                for nth in 0..n {
                    let reader = (!is_queue).then(|| format!("r{nth}"));
                    slots.push(Slot { client: None, mdt, stream, reader });
                }
                if !is_queue && rng.chance(500) {
                    slots.push(Slot { client: None, mdt, stream, reader: None });
                }
            }
            for nth in 0..if *is_queue { 0 } else { 2 } {
                let key = (stream, Some(format!("r{nth}")));
                late.push(LateReader { key, from: From::Oldest, state: Late::Wanted });
            }
        }
        let n_records = 40 + rng.index(260);
        Self {
            rng,
            base,
            now: Duration::ZERO,
            plan,
            model,
            saved: Saved::default(),
            life: None,
            next_epoch: 1,
            slots,
            late,
            admin: VecDeque::new(),
            admin_replies: VecDeque::new(),
            next_identity: 1,
            n_records,
            chaos: true,
            summary: Summary::default(),
            history: VecDeque::new(),
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.history.len() == HISTORY && !verbose() {
            self.history.pop_front();
        }
        self.history.push_back(format!("{:>8.3}s {}", self.now.as_secs_f64(), what()));
    }

    fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Everything goes wrong that can.
    fn play(&mut self) -> Result<(), String> {
        // The first readers are there before the first record is read.
        while self.late.iter().any(|late| late.state == Late::Wanted) {
            self.ensure_daemon();
            self.administer()?;
            self.turn()?;
            self.finish_commit(true);
            self.now += ms(1);
        }
        let steps = 200 + self.rng.below(3000);
        for _ in 0..steps {
            self.summary.steps += 1;
            self.step()?;
        }
        Ok(())
    }

    /// Nothing goes wrong any more: everything must come to where it should.
    fn settle(&mut self) -> Result<(), String> {
        self.chaos = false;
        self.note(|| "--- no more faults ---".to_owned());
        for slot in &mut self.slots {
            if let Some(client) = &mut slot.client {
                client.frozen_until = Duration::ZERO;
            }
        }
        for late in &mut self.late {
            if late.state == Late::Wanted {
                late.state = Late::Unwanted; // it may be there or not; make sure
            }
        }
        let (mut quiet, mut delivered) = (0, 0);
        for _ in 0..20_000 {
            let busy = self.round()?;
            if self.is_settled() {
                return self.check_ephemerals();
            }
            quiet = if self.model.n_delivered == delivered { quiet + 1 } else { 0 };
            delivered = self.model.n_delivered;
            if quiet == 2000 {
                // A client that began after a watermark which then was lost with the daemon has
                // nothing to acknowledge before the next record.
                self.n_records += 1;
                self.note(|| "one more record".to_owned());
            }
            if quiet > 6000 {
                break;
            }
            let wake = self.next_wake();
            self.now = if busy { self.now + ms(1) } else { wake.max(self.now + ms(1)) };
        }
        let open = (0..self.plan.mdts.len()).find_map(|mdt| self.model.outstanding(mdt));
        let late = |s: &&Slot| {
            let last = s.client.as_ref().and_then(|c| c.life.last()).unwrap_or(0);
            last + 4 < self.plan.mdts[s.mdt].1.head()
        };
        let clients: Vec<String> = (self.slots.iter().filter(late))
            .map(|s| match &s.client {
                Some(c) => format!(
                    "s{} m{} {:?}: had up to {:?}, low {}, {:?}, {}",
                    s.stream,
                    s.mdt,
                    s.reader,
                    c.life.last(),
                    c.protocol.low(),
                    c.over,
                    c.state()
                ),
                None => "dead".to_owned(),
            })
            .collect();
        if std::env::var_os("LCAP_SEED").is_some() {
            eprintln!("{:#?}", self.life.as_ref().map(|life| &life.engine));
        }
        let status = self.life.as_ref().map(|l| serde_json::to_string(&l.engine.status(self.now)));
        Err(format!("not all came: {open:?}\n{}\n{status:?}", clients.join("\n")))
    }

    fn is_settled(&self) -> bool {
        let all_grown = self.plan.mdts.iter().all(|(_, m)| m.n_existing() >= self.n_records);
        let late = self.late.iter().all(|l| matches!(l.state, Late::Registered | Late::Gone));
        let clear = self.plan.mdts.iter().enumerate();
        let mut clear = clear.map(|(at, _)| self.model.outstanding(at));
        all_grown && late && clear.all(|open| open.is_none()) && self.ephemerals_are_there()
    }

    fn ephemerals_are_there(&self) -> bool {
        let ephemeral = |slot: &&Slot| {
            slot.reader.is_none() && self.plan.streams[slot.stream].delivery == Delivery::Broadcast
        };
        self.slots.iter().filter(ephemeral).all(|slot| {
            let head = RecordIndex::new(self.plan.mdts[slot.mdt].1.head());
            slot.client.as_ref().is_some_and(|c| c.protocol.low() >= head && !c.has_input())
        })
    }

    fn check_ephemerals(&self) -> Result<(), String> {
        for slot in &self.slots {
            let Some(client) = &slot.client else { continue };
            if let Some(over) = &client.over {
                return Err(format!("a client gave up: {over}"));
            }
            let broadcast = self.plan.streams[slot.stream].delivery == Delivery::Broadcast;
            if slot.reader.is_none()
                && broadcast
                && let Some(index) = self.model.missed(&client.life)
            {
                return Err(format!("an unregistered client has not had {index:?}"));
            }
        }
        Ok(())
    }

    /// Everybody does a little.
    fn round(&mut self) -> Result<bool, String> {
        let mut busy = self.ensure_daemon();
        self.administer()?;
        for mdt in 0..self.plan.mdts.len() {
            let left = self.n_records.saturating_sub(self.plan.mdts[mdt].1.n_existing());
            self.plan.mdts[mdt].1.grow(left.min(7));
            busy |= left > 0;
            busy |= self.life.as_mut().is_some_and(|life| life.read(mdt, false));
        }
        for stream in 0..self.plan.streams.len() {
            for mdt in 0..self.plan.mdts.len() {
                busy |= self.life.as_mut().is_some_and(|life| life.work(stream, mdt));
            }
            busy |= self.publish(stream);
        }
        let n = self.life.as_ref().map_or(0, daemon::Life::n_catch_ups);
        for nth in 0..n {
            busy |= self.life.as_mut().is_some_and(|life| life.catch_up(nth));
        }
        self.turn()?;
        busy |= self.finish_commit(true);
        for mdt in 0..self.plan.mdts.len() {
            busy |= self.finish_clear(mdt, true)?;
        }
        for at in 0..self.slots.len() {
            busy |= self.start_client(at);
            for source in [Source::Control, Source::Queue, Source::Live] {
                busy |= self.client_receives(at, source);
            }
            self.client_time(at);
            for _ in 0..16 {
                busy |= self.client_takes(at)?;
            }
            self.client_clears(at, true);
        }
        Ok(busy)
    }

    fn next_wake(&self) -> Duration {
        let clients = self.slots.iter().filter_map(|slot| slot.client.as_ref());
        let clients = clients.filter_map(|c| c.protocol.next_deadline());
        let clients = clients.map(|at| at.saturating_duration_since(self.base));
        let engine = self.life.as_ref().map(|life| life.wake_at(self.now));
        clients.chain(engine).min().unwrap_or(self.now)
    }

    /// One thing happens.
    fn step(&mut self) -> Result<(), String> {
        let n_mdts = self.plan.mdts.len();
        let n_streams = self.plan.streams.len();
        match self.rng.below(1000) {
            0..40 => {
                let mdt = self.rng.index(n_mdts);
                let left = self.n_records.saturating_sub(self.plan.mdts[mdt].1.n_existing());
                let n = self.rng.index(12).min(left);
                self.plan.mdts[mdt].1.grow(n);
            }
            40..120 => {
                let (mdt, reopen) = (self.rng.index(n_mdts), self.rng.chance(20));
                if let Some(life) = &mut self.life {
                    life.read(mdt, reopen);
                }
            }
            120..240 => {
                let (stream, mdt) = (self.rng.index(n_streams), self.rng.index(n_mdts));
                if let Some(life) = &mut self.life {
                    life.work(stream, mdt);
                }
            }
            240..320 => {
                let stream = self.rng.index(n_streams);
                self.publish(stream);
            }
            320..420 => {
                if let Some(life) = &mut self.life {
                    let nth = self.rng.index(life.n_catch_ups());
                    life.catch_up(nth);
                }
            }
            420..540 => self.turn()?,
            540..560 => {
                let ok = !self.rng.chance(50);
                self.finish_commit(ok);
            }
            560..580 => {
                let (mdt, ok) = (self.rng.index(n_mdts), !self.rng.chance(50));
                self.finish_clear(mdt, ok)?;
            }
            580..900 => self.client_step()?,
            900..970 => {
                self.now += Duration::from_micros(self.rng.below(12_000));
            }
            970..990 => {
                self.ensure_daemon();
                self.administer()?;
            }
            _ => self.fault()?,
        }
        Ok(())
    }

    fn client_step(&mut self) -> Result<(), String> {
        let at = self.rng.index(self.slots.len());
        if self.slots[at].client.is_none() {
            if self.rng.chance(100) {
                self.start_client(at);
            }
            return Ok(());
        }
        if self.slots[at].client.as_ref().is_some_and(|c| c.frozen_until > self.now) {
            return Ok(());
        }
        match self.rng.below(10) {
            0..2 => {
                self.client_receives(at, Source::Control);
            }
            2..3 => {
                self.client_receives(at, Source::Queue);
            }
            3..5 => {
                self.client_receives(at, Source::Live);
            }
            5..7 => self.client_time(at),
            _ => {
                for _ in 0..=self.rng.below(6) {
                    self.client_takes(at)?;
                    self.client_clears(at, false);
                }
            }
        }
        Ok(())
    }

    fn fault(&mut self) -> Result<(), String> {
        let at = self.rng.index(self.slots.len());
        match self.rng.below(100) {
            0..15 => self.crash_daemon()?,
            15..30 => {
                if let Some(client) = self.slots[at].client.take() {
                    self.note(|| format!("client {at} is killed, had {:?}", client.life.last()));
                    self.summary.client_crashes += 1;
                }
            }
            30..45 => {
                let until = self.now + ms(self.rng.below(2000));
                if let Some(client) = &mut self.slots[at].client {
                    client.frozen_until = until;
                    self.note(|| format!("client {at} is stopped"));
                }
            }
            45..65 => self.cut(at),
            65..80 => {
                let now = self.rng.index(3);
                if let Some(sub) = self.slots[at].client.as_mut().and_then(|c| c.sub.as_mut()) {
                    // Any live message may be lost, come again, or late.
                    match (now, sub.down.len()) {
                        (_, 0) => {}
                        (0, n) => {
                            sub.down.remove(self.rng.index(n));
                            self.summary.lost_messages += 1;
                        }
                        (1, n) => {
                            let nth = self.rng.index(n);
                            let copy = sub.down[nth].clone();
                            sub.down.push_back(copy);
                        }
                        (_, n) => {
                            let (a, b) = (self.rng.index(n), self.rng.index(n));
                            sub.down.swap(a, b);
                        }
                    }
                }
            }
            80..86 => {
                let jump = ms(self.rng.below(3000));
                self.now += jump;
                self.note(|| format!("the clock jumps by {jump:?}"));
            }
            86..91 => self.add_late_reader(),
            91..96 => self.remove_late_reader(),
            _ => self.crash_mdt(),
        }
        Ok(())
    }

    /// An MDT crashes and comes back, often without its newest records.
    fn crash_mdt(&mut self) {
        let mdt = self.rng.index(self.plan.mdts.len());
        let sim = &self.plan.mdts[mdt].1;
        let first = if self.rng.chance(200) {
            sim.begin_again().then_some(1)
        } else {
            sim.crash(self.rng.index(12))
        };
        self.note(|| format!("MDT {mdt} crashes, issues again from {first:?}"));
        if let Some(first) = first {
            let version = self.plan.mdts[mdt].1.version();
            self.model.rewound(mdt, first, version);
            self.summary.rewinds += 1;
        }
    }

    fn add_late_reader(&mut self) {
        let broadcast: Vec<usize> = (self.plan.streams.iter().enumerate())
            .filter(|(_, s)| s.delivery == Delivery::Broadcast)
            .map(|(at, _)| at)
            .collect();
        if self.late.len() >= 8 {
            return;
        }
        let stream = broadcast[self.rng.index(broadcast.len())];
        let name = format!("late{}", self.late.len());
        let from = match self.rng.below(3) {
            0 => From::Now,
            1 => From::Oldest,
            _ => From::Index(self.rng.below(self.n_records as u64)),
        };
        self.note(|| format!("{name} of s{stream} is to be registered from {from:?}"));
        self.late.push(LateReader { key: (stream, Some(name)), from, state: Late::Wanted });
    }

    fn remove_late_reader(&mut self) {
        let nth = self.rng.index(self.late.len());
        let late = &mut self.late[nth];
        let key = late.key.clone();
        if late.state != Late::Registered || !key.1.as_ref().is_some_and(|n| n.starts_with("late"))
        {
            return;
        }
        late.state = Late::Unwanted;
        self.model.deregistered(&key);
        self.note(|| format!("{key:?} is to be removed"));
        self.slots.retain(|slot| (slot.stream, slot.reader.clone()) != key);
    }

    /// Sends what registrations are wanted, and looks at the answers.
    fn administer(&mut self) -> Result<(), String> {
        while let Some(reply) = self.admin_replies.pop_front() {
            let Ok(ServerMessage::Reply(reply)) = parse_server_message(&reply) else { continue };
            let Some(nth) = reply.id.and_then(|id| usize::try_from(id / 2).ok()) else { continue };
            let registers = reply.id.is_some_and(|id| id % 2 == 0);
            let late = &mut self.late[nth];
            match (registers, reply.ok, reply.errno, late.state) {
                (true, true, _, Late::Wanted) | (true, false, Some(17), Late::Wanted) => {
                    late.state = Late::Registered;
                    let key = late.key.clone();
                    self.new_reader(&key);
                }
                (false, true, ..) | (false, false, Some(2), _) => late.state = Late::Gone,
                _ => {} // again
            }
        }
        if !self.admin.is_empty() || self.life.is_none() {
            return Ok(());
        }
        for (nth, late) in self.late.iter().enumerate() {
            let stream = self.plan.streams[late.key.0].name.clone();
            let name = late.key.1.clone().unwrap_or_default();
            let id = nth as u64 * 2;
            let request = match late.state {
                Late::Wanted => {
                    let (mask, from) = (Vec::new(), late.from);
                    let op = ReaderRegister { stream, name, mask, from };
                    Request::new(id, Op::ReaderRegister(op))
                }
                Late::Unwanted => {
                    let op = ReaderDeregister { stream, name };
                    Request::new(id + 1, Op::ReaderDeregister(op))
                }
                Late::Registered | Late::Gone => continue,
            };
            self.admin.push_back(request.encode());
        }
        Ok(())
    }

    fn new_reader(&mut self, key: &HolderKey) {
        let stream = self.plan.streams[key.0].name.clone();
        let name = key.1.clone().unwrap_or_default();
        let start = |mdt: &MdtName| {
            let row = (stream.clone(), name.clone(), mdt.to_string());
            self.saved.watermarks.get(&row).map_or(0, |index| index.get())
        };
        let starts: Vec<u64> = self.plan.mdts.iter().map(|(mdt, _)| start(mdt)).collect();
        self.note(|| format!("{key:?} is registered at {starts:?}"));
        let from = self.late.iter().find(|late| late.key == *key).map(|late| late.from);
        self.model.registered(key, &starts, matches!(from, Some(From::Index(_))));
        if name.starts_with("late") {
            for mdt in 0..self.plan.mdts.len() {
                let reader = Some(name.clone());
                self.slots.push(Slot { client: None, mdt, stream: key.0, reader });
            }
        }
    }

    fn ensure_daemon(&mut self) -> bool {
        if self.life.is_some() {
            return false;
        }
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        for stream in &mut self.plan.streams {
            stream.module = modules(stream.policy, &mut self.rng);
        }
        self.life = Some(daemon::Life::new(&self.plan, &self.saved, epoch, self.now));
        let marks = format!("{:?}", self.saved.watermarks.values());
        let streams = format!("{:?}", self.saved.streams.values());
        self.note(|| format!("lcapd starts, epoch {epoch}, watermarks {marks}, streams {streams}"));
        true
    }

    fn crash_daemon(&mut self) -> Result<(), String> {
        let Some(mut life) = self.life.take() else { return Ok(()) };
        self.summary.crashes += 1;
        // What was under way may have been done, or not.
        if let Some(changes) = life.commit.take()
            && self.rng.chance(500)
        {
            self.write(&changes);
        }
        for mdt in 0..self.plan.mdts.len() {
            if let Some((upto, generation)) = life.clears[mdt].pop_front()
                && life.may_clear(mdt, generation)
                && self.rng.chance(500)
            {
                self.clear_mdt(mdt, upto)?;
            }
        }
        self.note(|| "lcapd is killed".to_owned());
        for at in 0..self.slots.len() {
            self.cut(at);
        }
        self.admin.clear();
        self.admin_replies.clear();
        Ok(())
    }

    /// A client's connections break; it has what had arrived, and what was not sent yet goes out
    /// over the next one.
    fn cut(&mut self, at: usize) {
        let rng = &mut self.rng;
        let Some(client) = &mut self.slots[at].client else { return };
        self.summary.cuts += 1;
        for conn in [&mut client.control, &mut client.queue].into_iter().flatten() {
            let lost = rng.index(conn.up.len() + 1);
            conn.up.drain(..lost);
            let kept = rng.index(conn.down.len() + 1);
            conn.down.truncate(kept);
            self.next_identity += 1;
            conn.identity = self.next_identity;
        }
        if let Some(sub) = &mut client.sub {
            let kept = rng.index(sub.down.len() + 1);
            sub.down.truncate(kept);
            sub.known = false;
        }
        if self.life.is_some() {
            self.note(|| format!("connections of client {at} are cut"));
        }
    }

    /// A turn of the engine's thread, with some of the requests that have arrived.
    fn turn(&mut self) -> Result<(), String> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let mut requests = Vec::new();
        let mut peers = vec![(0, 0)]; // the administrator
        while let Some(bytes) = self.admin.pop_front() {
            requests.push((peer(0, 0), bytes));
        }
        for slot in &mut self.slots {
            let Some(client) = &mut slot.client else { continue };
            for conn in [&mut client.control, &mut client.queue].into_iter().flatten() {
                peers.push((conn.socket, conn.identity));
                let n = if self.chaos { self.rng.index(conn.up.len() + 1) } else { conn.up.len() };
                let who = peer(conn.socket, conn.identity);
                requests.extend(conn.up.drain(..n).map(|bytes| (who.clone(), bytes)));
            }
        }
        let n_replies = self.admin_replies.len();
        let (slots, replies) = (&mut self.slots, &mut self.admin_replies);
        let mut net = |to: &Peer, down: Down| {
            if to.identity == 0_u64.to_le_bytes() {
                if let Down::Control(bytes) = down {
                    replies.push_back(bytes);
                }
                return true;
            }
            let clients = slots.iter_mut().filter_map(|slot| slot.client.as_mut());
            let mut conns = clients.flat_map(|c| [&mut c.control, &mut c.queue]).flatten();
            let conn = conns.find(|conn| conn.identity.to_le_bytes()[..] == to.identity);
            conn.map(|conn| conn.down.push_back(down)).is_some()
        };
        life.turn(&self.plan, requests, self.now, &mut net);
        let n_new = self.admin_replies.len() - n_replies;
        self.admin_replies.iter().rev().take(n_new).try_for_each(|reply| self.is_on_disk(reply))
    }

    /// "Exists" and "is gone" are only said once a crash cannot make them untrue.
    fn is_on_disk(&self, reply: &[u8]) -> Result<(), String> {
        let Ok(ServerMessage::Reply(reply)) = parse_server_message(reply) else { return Ok(()) };
        let late = reply.id.and_then(|id| self.late.get(usize::try_from(id / 2).ok()?));
        let Some(LateReader { key: (stream, Some(name)), state, .. }) = late else { return Ok(()) };
        let unwanted = matches!(state, Late::Unwanted | Late::Gone);
        let row = (self.plan.streams[*stream].name.clone(), name.clone());
        let on_disk = self.saved.readers.contains_key(&row);
        match (reply.errno, on_disk) {
            (Some(17), false) if !unwanted => {
                Err(format!("{row:?}: \"exists\" was said, and is not true after a crash"))
            }
            (Some(2), true) => Err(format!("{row:?}: errno {:?}, on disk {on_disk}", reply.errno)),
            _ => Ok(()),
        }
    }

    fn write(&mut self, changes: &[Change]) {
        write(&mut self.saved, changes);
        for change in changes {
            let Change::Mdt(name, state) = change else { continue };
            let of_it = |(mdt, _): &(MdtName, _)| mdt.as_str() == name;
            let Some(mdt) = self.plan.mdts.iter().position(of_it) else { continue };
            self.model.given_up(mdt, state.clearing);
        }
    }

    fn finish_commit(&mut self, ok: bool) -> bool {
        let Some(life) = &mut self.life else { return false };
        let Some(changes) = life.commit.take() else { return false };
        let result = if ok {
            self.write(&changes);
            Ok(())
        } else {
            Err("no space left on device".to_owned())
        };
        let Some(life) = &mut self.life else { return false };
        let time = life.time(self.now);
        life.engine.committed(result, time);
        // What it wants done now is done at its next turn.
        true
    }

    fn finish_clear(&mut self, mdt: usize, ok: bool) -> Result<bool, String> {
        let Some(life) = &mut self.life else { return Ok(false) };
        let Some((upto, generation)) = life.clears[mdt].pop_front() else { return Ok(false) };
        let result = if !life.may_clear(mdt, generation) {
            Err(NotCleared::NotNow)
        } else if ok {
            life.has_cleared(mdt, upto);
            Ok(self.clear_mdt(mdt, upto)?)
        } else {
            Err(NotCleared::Failed("busy".to_owned()))
        };
        if let Some(life) = &mut self.life {
            let time = life.time(self.now);
            life.engine.cleared(mdt, upto, generation, result, time);
        }
        Ok(true)
    }

    fn clear_mdt(&mut self, mdt: usize, upto: RecordIndex) -> Result<(), String> {
        use lcapd::source::Upstream as _;
        self.summary.clears += 1;
        self.note(|| format!("MDT {mdt} is cleared up to {upto}"));
        let upstream = mdt::SimUpstream(Arc::clone(&self.plan.mdts[mdt].1));
        upstream
            .clear(upto)
            .map_err(|error| format!("clearing MDT {mdt} up to {upto}: {error}"))?;
        self.model.cleared(mdt, upto.get())
    }

    fn publish(&mut self, stream: usize) -> bool {
        let Some(life) = &mut self.life else { return false };
        let mut busy = false;
        if let Some(message) = life.publish(stream, &self.plan) {
            busy = true;
            for slot in &mut self.slots {
                let Some(sub) = slot.client.as_mut().and_then(|c| c.sub.as_mut()) else { continue };
                let wanted = sub.known && sub.stream == stream && message[0] == sub.topics[0];
                if wanted && sub.down.len() < LIVE_PIPE {
                    sub.down.push_back(message.clone());
                } else if wanted {
                    self.summary.lost_messages += 1;
                }
            }
        }
        for slot in &mut self.slots {
            let Some(sub) = slot.client.as_mut().and_then(|c| c.sub.as_mut()) else { continue };
            if sub.known || sub.stream != stream || (self.chaos && self.rng.chance(500)) {
                continue;
            }
            sub.known = true;
            if let Some(hello) = life.greet(stream, &sub.topics[1], &self.plan) {
                sub.down.push_back(hello);
            }
            busy = true;
        }
        busy
    }

    fn start_client(&mut self, at: usize) -> bool {
        let slot = &self.slots[at];
        let key = (slot.stream, slot.reader.clone());
        let broadcast = self.plan.streams[slot.stream].delivery == Delivery::Broadcast;
        if slot.client.is_some() {
            return false;
        }
        let config = Config {
            mdt: self.plan.mdts[slot.mdt].0.clone(),
            stream: self.plan.streams[slot.stream].name.clone(),
            stream_required: true,
            reader: slot.reader.clone(),
            filter: None,
            snapshot: false,
            from: 0,
            follow: true,
            patient: true,
            endpoints: vec!["ipc://sim".to_owned()],
            timeout: ms(1000),
            prefetch_bytes: usize::try_from(1 << self.rng.between(9, 16)).unwrap_or(1 << 16),
            ack_interval: ms(self.rng.between(1, 100)),
            unique: format!("{at}-{}", self.next_identity),
        };
        let holder = (slot.reader.is_some() || !broadcast).then_some(key);
        let life = model::Life::new(slot.mdt, slot.stream, holder);
        let habits =
            Habits { clears: self.rng.between(50, 1000), clears_all: self.rng.below(1000) };
        let now = self.instant();
        self.slots[at].client = Some(Client::new(config, life, habits, now));
        self.note(|| format!("client {at} starts"));
        self.client_acts(at);
        true
    }

    fn client_acts(&mut self, at: usize) {
        let Some(client) = &mut self.slots[at].client else { return };
        let next = &mut self.next_identity;
        let mut identity = || {
            *next += 1;
            *next
        };
        let streams = &self.plan.streams;
        let named = |endpoint: &str| {
            let name = endpoint.trim_start_matches("ipc://");
            streams.iter().position(|s| s.name == name).unwrap_or(0)
        };
        let socket = |endpoint: &str| {
            let queues = streams.iter().take(named(endpoint));
            1 + queues.filter(|s| s.delivery == Delivery::Queue).count()
        };
        client.act(&mut identity, &socket, &named);
    }

    fn client_receives(&mut self, at: usize, source: Source) -> bool {
        let now = self.instant();
        let received = self.slots[at].client.as_mut().is_some_and(|c| c.receive(source, now));
        self.client_acts(at);
        received
    }

    fn client_time(&mut self, at: usize) {
        let now = self.instant();
        if let Some(client) = &mut self.slots[at].client {
            client.take_settled();
            if client.protocol.next_deadline().is_some_and(|at| at <= now) {
                client.protocol.on_timer(now);
            }
        }
        self.client_acts(at);
    }

    /// The application takes a record.
    fn client_takes(&mut self, at: usize) -> Result<bool, String> {
        let now = self.instant();
        let Some(client) = &mut self.slots[at].client else { return Ok(false) };
        let taken = client.take(now);
        if verbose() {
            let (told, what) = (std::mem::take(&mut client.life.told), format!("{taken:?}"));
            if taken.is_some() || !told.is_empty() {
                self.note(|| format!("client {at} is told {told:?}, takes {what}"));
            }
        }
        let Some(client) = &mut self.slots[at].client else { return Ok(false) };
        let Some((index, stands_for)) = taken else {
            if let Some(over) = client.over.clone() {
                return Err(format!("client {at} gave up: {over}"));
            }
            return Ok(false);
        };
        let delivered = self.model.delivered(&mut client.life, index, &stands_for);
        self.client_acts(at);
        delivered.map_err(|what| {
            let slot = &self.slots[at];
            format!("client {at} (s{} m{} {:?}): {what}", slot.stream, slot.mdt, slot.reader)
        })?;
        Ok(true)
    }

    /// The application clears, or not, as its habits are.
    fn client_clears(&mut self, at: usize, always: bool) {
        let Some(client) = &mut self.slots[at].client else { return };
        let Some(last) = client.life.last() else { return };
        if !always && !self.rng.chance(client.habits.clears) {
            return;
        }
        let all = always || self.rng.chance(client.habits.clears_all);
        let upto = if all { u64::MAX } else { last.saturating_sub(self.rng.below(10)) };
        self.model.acked(&mut client.life, upto);
        client.clear(RecordIndex::new(upto));
    }
}

fn peer(socket: usize, identity: u64) -> Peer {
    Peer { socket, identity: identity.to_le_bytes().to_vec(), delimiter: false }
}
