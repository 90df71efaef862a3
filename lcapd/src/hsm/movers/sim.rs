//! A simulation: an MDT, an lcapd and some movers, each the real thing but for sockets, disk and clock.
//! A seed decides what happens: lost connections, kills of movers and of lcapd at any moment, cancels.
//!
//! At the end everything is mended, and then: no request is left anywhere, none was run by two
//! movers at once, every cancel was answered, and nothing ran into Lustre's time limit.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lcap_ffi::Fid;
use lcap_ffi::hsm::{ActionItem, HsmAction, ListBuilder, TO_THE_END};
use lcap_wire::mover::{Limits, Report, RequestKey, What as Told};
use lcapclient::mover::{Action, Identity, Output as Said, Protocol};

use crate::hsm::lustre::{FromLustre, ToLustre};
use crate::hsm::movers::{Movers, Output, Peer, Settings};
use crate::hsm::queue::{Meta, Queue, Saved};
use crate::hsm::service::Core;

const FSNAME: &str = "testfs0";
/// Lustre's time limit.
const LIMIT: Duration = Duration::from_secs(600);
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(120);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Started,
    Over(i32),
}

#[derive(Debug)]
struct OnMdt {
    key: RequestKey,
    kind: HsmAction,
    archive_id: u32,
    data: Vec<u8>,
    at: At,
    cancel: bool,
    heard: Duration,
    /// Lives of mover processes that have begun it and not ended it.
    runners: Vec<u64>,
}

/// The coordinator of an MDT.
#[derive(Default)]
struct Mdt {
    requests: BTreeMap<u64, OnMdt>,
    timeouts: u64,
}

impl Mdt {
    /// Progress, or the end.
    fn report(&mut self, cookie: u64, end: Option<i32>, now: Duration) -> Result<(), i32> {
        let request = self.requests.get_mut(&cookie).filter(|r| r.at == At::Started);
        let request = request.ok_or(libc::ENOENT)?;
        request.heard = now;
        match end {
            Some(errno) => {
                request.at = At::Over(errno);
                request.runners.clear();
                Ok(())
            }
            None if request.cancel => Err(libc::ECANCELED),
            None => Ok(()),
        }
    }

    fn sweep(&mut self, now: Duration) {
        for request in self.requests.values_mut() {
            if request.at == At::Started && request.heard + LIMIT < now {
                request.at = At::Over(libc::ETIME);
                self.timeouts += 1;
            }
        }
    }

    fn item(request: &OnMdt, action: HsmAction) -> ActionItem<'_> {
        ActionItem {
            action: action.number(),
            fid: request.key.fid,
            dfid: request.key.fid,
            offset: 0,
            length: TO_THE_END,
            cookie: request.key.cookie,
            gid: 0,
            data: &request.data,
        }
    }

    fn list(&self, cookie: u64, action: Option<HsmAction>) -> FromLustre {
        let request = &self.requests[&cookie];
        let mut list = ListBuilder::new(FSNAME.as_bytes(), request.archive_id, 0);
        list.push(&Self::item(request, action.unwrap_or(request.kind))).unwrap();
        FromLustre::List(list.finish())
    }

    fn active(&self) -> FromLustre {
        let mut text = String::new();
        for request in self.requests.values().filter(|r| r.at == At::Started) {
            let RequestKey { cookie, fid } = request.key;
            let canceled = u8::from(request.cancel);
            text += &format!(
                "fid={fid} dfid={fid} compound/cookie=0x0/{cookie:#x} action={} archive#={} \
                 flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 data=[] canceled={canceled} \
                 uuid=x done=0\n",
                request.kind, request.archive_id
            );
        }
        FromLustre::Active(text.into_bytes())
    }
}

/// A mover's process.
struct Mover {
    name: String,
    life: u64,
    protocol: Protocol,
    /// Its present connection; messages of others are lost.
    connection: u64,
    unread: VecDeque<Action>,
    running: Vec<(Action, Duration)>,
    cancelled: Vec<RequestKey>,
    alive: bool,
    back_at: Duration,
    talked: Duration,
}

struct World {
    dice: Dice,
    start: Instant,
    now: Duration,
    mdt: Mdt,
    next_cookie: u64,
    movers: Vec<Mover>,
    n_lives: u64,
    n_connections: u64,
    to_lcapd: VecDeque<(u64, Vec<Vec<u8>>)>,
    to_movers: VecDeque<(u64, Vec<Vec<u8>>)>,
    from_lustre: VecDeque<FromLustre>,
    core: Core,
    disk: (BTreeMap<u64, Saved>, Meta),
    n_starts: u64,
    started: Duration,
    doubles: Vec<u64>,
    runs: HashMap<u64, u32>,
}

fn settings() -> Settings {
    Settings { fsname: FSNAME.into(), heartbeat: HEARTBEAT, grace: GRACE, graces: BTreeMap::new() }
}

fn core(disk: &(BTreeMap<u64, Saved>, Meta), n_starts: u64, now: Duration) -> Core {
    let saved = disk.0.iter().map(|(&id, saved)| (id, saved.clone()));
    let queue = Queue::recover(Default::default(), disk.1.clone(), saved, now);
    let settings = settings();
    let mdt = settings.any_mdt();
    let movers = Movers::new(settings, n_starts << 32);
    Core::new(queue, movers, None, mdt, Some(KEEP_ALIVE), now)
}

impl World {
    fn new(seed: u64, n_movers: u64) -> Self {
        let now = Duration::from_secs(1_800_000_000);
        let disk = (BTreeMap::new(), Meta::default());
        let mut world = Self {
            dice: Dice(seed.wrapping_mul(77).wrapping_add(3)),
            start: Instant::now(),
            now,
            mdt: Mdt::default(),
            next_cookie: (1 << 31) + 7,
            movers: Vec::new(),
            n_lives: 0,
            n_connections: 0,
            to_lcapd: VecDeque::new(),
            to_movers: VecDeque::new(),
            from_lustre: VecDeque::new(),
            core: core(&disk, 1, now),
            disk,
            n_starts: 1,
            started: now,
            doubles: Vec::new(),
            runs: HashMap::new(),
        };
        for n in 0..n_movers {
            let mover = world.process(format!("m{n}"));
            world.movers.push(mover);
        }
        world
    }

    fn instant(&self) -> Instant {
        self.start + (self.now - Duration::from_secs(1_800_000_000))
    }

    fn process(&mut self, name: String) -> Mover {
        self.n_lives += 1;
        let limits = Limits { archive: Some(3), ..Limits::default() };
        let who = Identity {
            name: name.clone(),
            life: self.n_lives,
            fsname: Some(FSNAME.to_owned()),
            archives: Vec::new(),
            limits,
            window: 4,
        };
        Mover {
            name,
            life: self.n_lives,
            protocol: Protocol::new(who, self.instant()),
            connection: 0,
            unread: VecDeque::new(),
            running: Vec::new(),
            cancelled: Vec::new(),
            alive: true,
            back_at: self.now,
            talked: self.now,
        }
    }

    // --- the parts ---

    fn new_request(&mut self) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let kind = [HsmAction::Archive, HsmAction::Archive, HsmAction::Restore, HsmAction::Remove]
            [usize::try_from(self.dice.roll(4)).unwrap()];
        let oid = u32::try_from(self.dice.roll(40)).unwrap();
        let fid = Fid { seq: 0x2_0000_0400, oid, ver: 0 };
        // An archive id of 0 is what a remove of a file that is gone may have.
        let archive_id = if kind == HsmAction::Remove { 0 } else { 1 };
        let request = OnMdt {
            key: RequestKey { cookie, fid },
            kind,
            archive_id,
            data: if self.dice.one_in(3) { vec![0xff, 0, 7] } else { b"tag=a".to_vec() },
            at: At::Started,
            cancel: false,
            heard: self.now,
            runners: Vec::new(),
        };
        self.mdt.requests.insert(cookie, request);
        let list = self.mdt.list(cookie, None);
        self.from_lustre.push_back(list);
    }

    fn cancel_one(&mut self) {
        let open: Vec<u64> = self
            .mdt
            .requests
            .iter()
            .filter(|(_, r)| r.at == At::Started && !r.cancel)
            .map(|(&cookie, _)| cookie)
            .collect();
        if open.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.roll(open.len() as u64)).unwrap();
        self.mdt.requests.get_mut(&open[at]).unwrap().cancel = true;
        let list = self.mdt.list(open[at], Some(HsmAction::Cancel));
        self.from_lustre.push_back(list);
    }

    /// lcapd dies with all that it had not written, and is started again.
    fn crash(&mut self) {
        self.n_starts += 1;
        self.to_lcapd.clear();
        self.to_movers.clear();
        self.from_lustre.clear(); // was in the pipe
        self.core = core(&self.disk, self.n_starts, self.now);
        self.started = self.now;
        self.from_lustre.push_back(self.mdt.active());
        let instant = self.instant();
        for at in 0..self.movers.len() {
            if self.movers[at].alive {
                self.movers[at].protocol.on_disconnected(instant);
                self.act(at);
            }
        }
    }

    fn cut(&mut self, at: usize) {
        let connection = self.movers[at].connection;
        self.to_lcapd.retain(|(of, _)| *of != connection);
        self.to_movers.retain(|(of, _)| *of != connection);
        self.movers[at].connection = 0;
        let instant = self.instant();
        self.movers[at].protocol.on_disconnected(instant);
        self.act(at);
    }

    fn kill(&mut self, at: usize) {
        let connection = self.movers[at].connection;
        // What it had sent arrives, or not.
        if self.dice.one_in(2) {
            self.to_lcapd.retain(|(of, _)| *of != connection);
        }
        let life = self.movers[at].life;
        for request in self.mdt.requests.values_mut() {
            request.runners.retain(|runner| *runner != life);
        }
        let name = self.movers[at].name.clone();
        let mut dead = self.process(name);
        dead.alive = false;
        dead.back_at = self.now + Duration::from_secs(self.dice.roll(200));
        self.movers[at] = dead;
    }

    /// One turn of lcapd's thread. `write` false: it dies before it has written.
    fn turn(&mut self, write: bool) {
        self.mdt.sweep(self.now);
        for _ in 0..=self.dice.roll(16) {
            if let Some(said) = self.from_lustre.pop_front() {
                self.core.on_lustre(said, self.now);
            }
            if let Some((of, frames)) = self.to_lcapd.pop_front() {
                let peer: Peer = of.to_le_bytes().to_vec().into();
                let core = &mut self.core;
                core.movers.on_message(&mut core.queue, &peer, &frames, self.now);
            }
        }
        self.core.settle(self.now);
        if !write {
            self.crash();
            return;
        }
        if let Some(changes) = self.core.queue.take_changes() {
            for (id, saved) in changes.requests {
                match saved {
                    // Through its text, as on a disk.
                    Some(saved) => {
                        let text = serde_json::to_string(&saved).unwrap();
                        self.disk.0.insert(id, serde_json::from_str(&text).unwrap());
                    }
                    None => {
                        self.disk.0.remove(&id);
                    }
                }
            }
            self.disk.1 = changes.meta;
        }
        for Output { peer, frames } in self.core.movers.take_outputs() {
            let of = u64::from_le_bytes(*peer.first_chunk().unwrap());
            if self.movers.iter().any(|mover| mover.alive && mover.connection == of) {
                self.to_movers.push_back((of, frames));
            } else {
                let core = &mut self.core;
                core.movers.unreachable(&mut core.queue, &peer, self.now);
            }
        }
        for told in self.core.take_to_lustre(8, self.now) {
            match told {
                ToLustre::Fail { request, errno } => {
                    let _ = self.mdt.report(request.cookie().unwrap(), Some(errno), self.now);
                }
                ToLustre::KeepAlive { id, request } => {
                    if let Err(errno) = self.mdt.report(request.cookie().unwrap(), None, self.now) {
                        self.from_lustre.push_back(FromLustre::Trouble { id, errno });
                    }
                }
            }
        }
    }

    /// What a mover's protocol wants done.
    fn act(&mut self, at: usize) {
        while let Some(output) = self.movers[at].protocol.poll_output() {
            let instant = self.instant();
            let mover = &mut self.movers[at];
            match output {
                Said::Connect => {
                    self.n_connections += 1;
                    mover.connection = self.n_connections;
                }
                Said::Send(frames) => self.to_lcapd.push_back((mover.connection, frames)),
                Said::Deliver(actions) => mover.unread.extend(actions),
                Said::Cancel(action) => {
                    let key = action.key();
                    let unread = mover.unread.iter().position(|a| a.key() == key);
                    if let Some(unread) = unread {
                        mover.unread.remove(unread);
                        mover.protocol.returned(key, instant);
                    } else {
                        mover.cancelled.push(key);
                    }
                }
                Said::Greeted(_) => {}
                Said::Failed(error) => panic!("{error}"),
            }
        }
    }

    fn run_mover(&mut self, at: usize) {
        let (now, instant) = (self.now, self.instant());
        if !self.movers[at].alive {
            if self.movers[at].back_at <= now {
                let name = self.movers[at].name.clone();
                self.movers[at] = self.process(name);
            }
            return;
        }
        self.movers[at].protocol.on_timer(instant);
        self.act(at);
        if self.movers[at].running.len() < 5
            && let Some(action) = self.movers[at].unread.pop_front()
        {
            self.movers[at].protocol.on_taken(1, instant);
            self.begin(at, action);
        }
        let mut ended = Vec::new();
        let mut at_once = self.dice.one_in(60);
        let mover = &mut self.movers[at];
        for (action, until) in std::mem::take(&mut mover.running) {
            let cancelled = self.mdt.report(action.cookie, None, now) == Err(libc::ECANCELED);
            if until <= now || cancelled {
                ended.push((action, if cancelled { libc::ECANCELED } else { 0 }));
            } else {
                mover.running.push((action, until));
            }
        }
        for (action, errno) in ended {
            let _ = self.mdt.report(action.cookie, Some(errno), now);
            *self.runs.entry(action.cookie).or_default() += 1;
            if std::mem::take(&mut at_once) {
                self.kill(at); // between telling Lustre and telling lcapd
                return;
            }
            self.tell(at, action.key(), Told::Done, errno);
        }
    }

    fn begin(&mut self, at: usize, action: Action) {
        let life = self.movers[at].life;
        let started = self.mdt.requests.get_mut(&action.cookie).filter(|r| r.at == At::Started);
        let Some(request) = started else {
            self.tell(at, action.key(), Told::Refused, libc::ENOENT);
            return;
        };
        assert_eq!(request.kind.number(), action.action);
        let others: Vec<u64> = request.runners.clone();
        request.runners.push(life);
        // Another runs it: allowed only if that one was given up, for its grace time was over.
        for other in others {
            let mover = self.movers.iter().find(|mover| mover.life == other);
            let silent = mover.map_or(GRACE, |mover| self.now - mover.talked.max(self.started));
            if other == life || silent < GRACE {
                self.doubles.push(action.cookie);
            }
        }
        self.tell(at, action.key(), Told::Begun, 0);
        let takes = Duration::from_millis(self.dice.roll(20_000));
        let until = self.now + takes;
        self.movers[at].running.push((action, until));
    }

    fn tell(&mut self, at: usize, key: RequestKey, what: Told, status: i32) {
        let instant = self.instant();
        self.movers[at].protocol.on_reports(&[Report { key, what, status }], instant);
        self.act(at);
    }

    fn deliver(&mut self) {
        for _ in 0..=self.dice.roll(8) {
            let Some((of, frames)) = self.to_movers.pop_front() else { return };
            let found = self.movers.iter().position(|m| m.alive && m.connection == of);
            let Some(at) = found else { continue };
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let instant = self.instant();
            self.movers[at].talked = self.now;
            self.movers[at].protocol.on_message(&frames, instant);
            self.act(at);
        }
    }

    /// One step of the world.
    fn step(&mut self, faults: bool) {
        let n = self.movers.len() as u64;
        let at = usize::try_from(self.dice.roll(n)).unwrap();
        match self.dice.roll(1000) {
            0..=2 if faults => self.crash(),
            3..=4 if faults => self.turn(false),
            5..=9 if faults => self.cut(at),
            10..=13 if faults && self.movers[at].alive => self.kill(at),
            14..=20 if faults => self.cancel_one(),
            21..=60 if faults => self.new_request(),
            61..=300 => self.turn(true),
            301..=600 => self.run_mover(at),
            601..=900 => self.deliver(),
            _ => self.now += Duration::from_millis(self.dice.roll(if faults { 400 } else { 1000 })),
        }
    }

    fn is_quiet(&self) -> bool {
        self.mdt.requests.values().all(|r| r.at != At::Started) && self.core.queue.is_empty()
    }

    fn left(&self) -> String {
        let open: Vec<&OnMdt> =
            self.mdt.requests.values().filter(|r| r.at == At::Started).collect();
        let queue: Vec<_> = self.core.queue.iter().map(|v| (v.id, v.state.clone())).collect();
        format!("open on the MDT: {open:?}\nin the queue: {queue:?}")
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed, 1 + seed % 4);
    for _ in 0..6_000 {
        world.step(true);
    }
    let mut steps = 0;
    while !world.is_quiet() {
        world.step(false);
        steps += 1;
        assert!(steps < 200_000, "seed {seed}: it does not come to an end\n{}", world.left());
    }
    assert!(world.doubles.is_empty(), "seed {seed}: run twice at once: {:?}", world.doubles);
    assert_eq!(world.mdt.timeouts, 0, "seed {seed}: Lustre's time limit");
    for (cookie, request) in &world.mdt.requests {
        let At::Over(errno) = request.at else { unreachable!("is quiet") };
        let right = errno == 0 || (errno == libc::ECANCELED && request.cancel);
        assert!(right, "seed {seed}: {cookie} ended with {errno}, cancelled: {}", request.cancel);
    }
    assert!(world.disk.0.is_empty(), "seed {seed}: requests left on disk");
    assert!(world.mdt.requests.len() > 50, "seed {seed}: nothing happened");
    let _ = Arc::new(world.runs);
}

#[test]
fn nothing_is_lost_or_run_twice_whoever_dies() {
    let seed = std::env::var("LCAP_SEED").ok().and_then(|seed| seed.parse().ok());
    let many = std::env::var("LCAP_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    match seed {
        Some(seed) => run(seed),
        None => (1..=many).for_each(run),
    }
}
