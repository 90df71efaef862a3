//! HSM actions into Redis while lcapds, Redis and a viewer are killed at random, and an MDT moves between
//! two servers: at the end Redis shows what the lists say, and what was there was new exactly once.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::contract::{self, Views};
use crate::daemon::{Daemon, PATIENCE, Setup};
use crate::lists::{Action, List, Lists, text};
use crate::redis::{RedisServer, StreamEntry, entries, entries_after};
use crate::rng::Rng;

/// The first stays at the first server, the second moves.
const MDTS: [&str; 2] = ["elm-MDT0000", "elm-MDT0001"];
const STATUSES: [&str; 5] = ["WAITING", "STARTED", "FAILED", "CANCELED", "SUCCEED"];
/// Places in a list, so that they are used again.
const SLOTS: u64 = 400;
/// What is older is trimmed. Who follows the stream sees everything before that.
const RETAIN: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Kills and stops, by whom they hit.
    pub hits: BTreeMap<&'static str, usize>,
    /// Entries that were seen in Redis.
    pub entries: usize,
    /// Actions that were new.
    pub new: usize,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// An MDS: its lcapd, and the lists of the MDTs that are there.
struct Server {
    daemon: Daemon,
    lists: Lists,
    _dir: TempDir,
}

impl Server {
    fn start(redis: &RedisServer) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let lists = Lists::new(dir.path());
        let sink = format!(
            "[[sink]]\nstream = \"hsm\"\nredis = \"{}\"\nburst = \"0s\"\naudit = \"2s\"\n\
             retain = \"{}s\"\nexact_trimming = true\ntimeout = \"1s\"",
            redis.url(1),
            RETAIN.as_secs()
        );
        let setup = Setup::new()
            .server("hsm_audit_interval = \"100ms\"\nclear_interval = \"50ms\"")
            .broadcast("hsm", "kind = \"hsm\"")
            .more(&sink);
        let setup = MDTS.iter().fold(setup, |setup, mdt| setup.mdt(mdt, &lists.source()));
        Self { daemon: setup.start(), lists, _dir: dir }
    }

    fn kill(&mut self) {
        self.daemon.kill();
        self.daemon.launch();
    }
}

/// One MDT's list, and what Redis was seen to say of it.
struct Mdt {
    key: String,
    list: List,
    next_oid: u64,
    /// Number of the server that has it.
    at: usize,
    seen: Vec<StreamEntry>,
}

impl Mdt {
    fn new(name: &str) -> Self {
        let key = format!("hsm:actions:{name}");
        Self { key, list: List::new(), next_oid: 0, at: 0, seen: Vec::new() }
    }

    /// A little happens: new actions, progress, ends, and places used again.
    fn change(&mut self, rng: &mut Rng) {
        for _ in 0..rng.between(1, 60) {
            let rec = u32::try_from(rng.below(SLOTS)).unwrap_or(0);
            match self.list.get_mut(&rec) {
                Some(_) if rng.chance(300) => {
                    self.list.remove(&rec);
                }
                Some(action) if rng.chance(800) => {
                    action.status = STATUSES[rng.index(STATUSES.len())];
                }
                _ => {
                    self.next_oid += 1;
                    self.list.insert(rec, Action::archive(self.next_oid));
                }
            }
        }
    }

    /// Reads what Redis has more than was seen, if it answers.
    fn follow(&mut self, redis: &RedisServer) {
        let Some(mut link) = redis.link(1) else { return };
        let last = self.seen.last().map_or("0-0", |entry| entry.id.as_str());
        if let Some(more) = entries_after(&mut link, &self.key, last) {
            self.seen.extend(more);
        }
    }

    /// What is wrong with what Redis shows now.
    fn compare(&self, redis: &RedisServer) -> Vec<String> {
        let Some(mut link) = redis.link(1) else { return vec!["no Redis".to_owned()] };
        let views: Views = contract::read(&self.key, &entries(&mut link, &self.key));
        let truth = contract::truth(&text(&self.list));
        let (key, mut problems) = (&self.key, views.problems);
        if views.by_slot != truth {
            problems.push(format!("{key}: by slot {} live, {}", views.by_slot.len(), truth.len()));
        }
        let keys = contract::keys(&truth);
        if !views.by_key.keys().eq(keys.iter()) {
            problems.push(format!("{key}: by key {} live, {}", views.by_key.len(), keys.len()));
        }
        problems
    }

    /// What is wrong with all that was seen: an action that was never new, or new twice.
    fn history(&self) -> (Vec<String>, usize) {
        let views = contract::read(&self.key, &self.seen);
        let mut new: BTreeMap<&str, usize> = BTreeMap::new();
        for ((key, _), n) in &views.seen {
            *new.entry(key).or_default() += n;
        }
        new.retain(|_, n| *n > 0);
        let told: BTreeSet<&str> = views.seen.keys().map(|(key, _)| key.as_str()).collect();
        let here = contract::keys(&contract::truth(&text(&self.list)));
        let all = told.into_iter().chain(here.iter().map(String::as_str));
        let never: BTreeSet<&str> = all.filter(|key| !new.contains_key(key)).collect();
        let twice: Vec<&str> = new.iter().filter(|(_, n)| **n > 1).map(|(key, _)| *key).collect();
        let mut problems = views.problems;
        if !never.is_empty() {
            problems.push(format!("{}: never new: {never:?}", self.key));
        }
        if !twice.is_empty() {
            problems.push(format!("{}: new more than once: {twice:?}", self.key));
        }
        for key in never.iter().chain(&twice).take(1) {
            problems.extend(self.entries_of(key));
        }
        (problems, new.len())
    }

    /// What was seen of an action, and of others in its place.
    fn entries_of(&self, key: &str) -> Vec<String> {
        let quoted = format!("\"{key}\"");
        let texts = || self.seen.iter().filter_map(|e| Some((&e.id, e.text("data")?)));
        let place = texts().find(|(_, text)| text.contains(&quoted)).and_then(|(_, text)| {
            let from = text.find("\"rec_idx\"")?;
            text.get(from..)?.split_inclusive(',').next()
        });
        let is_there = |text: &str| place.is_some_and(|place| text.contains(place));
        texts()
            .filter(|(_, text)| is_there(text))
            .map(|(id, text)| format!("{id} {text}"))
            .collect()
    }
}

fn viewer(daemon: &Daemon, redis: &RedisServer) -> Option<Child> {
    let mut command = daemon.lcap(&["hsm", "tail", "--json", "--redis", &redis.url(1)]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Runs for that long, with what `seed` decides, and then until Redis is right or patience ends.
///
/// # Panics
/// If a program does not start.
pub fn run(duration: Duration, seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut servers = [Server::start(&redis), Server::start(&redis)];
    let mut mdts = MDTS.map(Mdt::new);
    let mut watching = viewer(&servers[0].daemon, &redis);
    let mut report = Report::default();
    let until = Instant::now() + duration;
    while Instant::now() < until {
        for (name, mdt) in MDTS.iter().zip(&mut mdts) {
            mdt.change(&mut rng);
            servers[mdt.at].lists.write(name, &text(&mdt.list));
        }
        thread::sleep(Duration::from_millis(rng.between(0, 150)));
        mdts.iter_mut().for_each(|mdt| mdt.follow(&redis));
        let hit = match rng.below(10) {
            0 | 1 => {
                servers[rng.index(2)].kill();
                "lcapd"
            }
            2 => {
                redis.kill();
                redis.launch();
                "Redis"
            }
            3 => {
                end(watching.take());
                watching = viewer(&servers[0].daemon, &redis);
                "viewer"
            }
            4 => {
                redis.signal(Signal::STOP);
                thread::sleep(Duration::from_millis(rng.between(10, 1500)));
                redis.signal(Signal::CONT);
                "Redis, stopped"
            }
            5 => {
                let mdt = &mut mdts[1];
                servers[mdt.at].lists.leave(MDTS[1]);
                // Nobody takes an MDT over faster; longer than a process here waits for a CPU.
                thread::sleep(Duration::from_millis(rng.between(300, 800)));
                mdt.at = 1 - mdt.at;
                mdt.change(&mut rng);
                servers[mdt.at].lists.write(MDTS[1], &text(&mdt.list));
                "MDT moved"
            }
            _ => continue,
        };
        *report.hits.entry(hit).or_default() += 1;
    }
    end(watching);
    let deadline = Instant::now() + PATIENCE;
    loop {
        report.problems = mdts.iter().flat_map(|mdt| mdt.compare(&redis)).collect();
        if report.problems.is_empty() || Instant::now() >= deadline {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    for mdt in &mut mdts {
        mdt.follow(&redis);
        let (problems, new) = mdt.history();
        report.problems.extend(problems);
        report.entries += mdt.seen.len();
        report.new += new;
    }
    if !report.problems.is_empty() {
        report.problems.extend(servers.iter().map(|server| server.daemon.log()));
    }
    report
}
