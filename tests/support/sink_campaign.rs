//! HSM actions into Redis while lcapd, Redis and a viewer are killed at random: at the end Redis shows
//! what the lists say, and nothing that lives was never new.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::contract::{self, Views};
use crate::daemon::{Daemon, PATIENCE, Setup};
use crate::lists::{Action, List, Lists, text};
use crate::redis::{RedisServer, entries};
use crate::rng::Rng;

const MDTS: [&str; 2] = ["elm-MDT0000", "elm-MDT0001"];
const STATUSES: [&str; 5] = ["WAITING", "STARTED", "FAILED", "CANCELED", "SUCCEED"];
/// Places in a list, so that they are used again.
const SLOTS: u64 = 400;

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Kills and stops, by whom they hit.
    pub hits: BTreeMap<&'static str, usize>,
    /// Entries in Redis.
    pub entries: usize,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Changes a list a little: new actions, progress, ends, and places used again.
fn change(list: &mut List, next_oid: &mut u64, rng: &mut Rng) {
    for _ in 0..rng.between(1, 60) {
        let rec = u32::try_from(rng.below(SLOTS)).unwrap_or(0);
        match list.get_mut(&rec) {
            Some(_) if rng.chance(300) => {
                list.remove(&rec);
            }
            Some(action) if rng.chance(800) => action.status = STATUSES[rng.index(STATUSES.len())],
            _ => {
                *next_oid += 1;
                list.insert(rec, Action::archive(*next_oid));
            }
        }
    }
}

fn viewer(daemon: &Daemon) -> Option<Child> {
    let mut command = daemon.lcap(&["hsm", "tail", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// What is wrong with what Redis shows of a list.
fn compare(key: &str, list: &List, redis: &RedisServer) -> (Vec<String>, usize) {
    let Some(mut link) = redis.link(1) else { return (vec!["no Redis".to_owned()], 0) };
    let all = entries(&mut link, key);
    let views: Views = contract::read(key, &all);
    let truth = contract::truth(&text(list));
    let mut problems = views.problems;
    if views.by_slot != truth {
        problems.push(format!("{key}: by slot {} live, {}", views.by_slot.len(), truth.len()));
    }
    let keys = contract::keys(&truth);
    if !views.by_key.keys().eq(keys.iter()) {
        problems.push(format!("{key}: by key {} live, {}", views.by_key.len(), keys.len()));
    }
    let new = views.seen.iter().filter(|(_, n)| **n > 0).map(|((key, _), _)| key);
    let new: BTreeSet<&String> = new.collect();
    let never: Vec<&String> = keys.iter().filter(|key| !new.contains(key)).collect();
    if !never.is_empty() {
        problems.push(format!("{key}: never new: {never:?}"));
    }
    (problems, all.len())
}

/// Runs for that long, with what `seed` decides, and then until Redis is right or patience ends.
///
/// # Panics
/// If a program does not start.
pub fn run(duration: Duration, seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let dir = tempfile::tempdir().expect("a directory");
    let directory = Lists::new(dir.path());
    let mut lists: Vec<List> = vec![List::new(); MDTS.len()];
    let mut next_oid = 0;
    let mut setup = Setup::new()
        .server("hsm_audit_interval = \"100ms\"\nclear_interval = \"50ms\"")
        .broadcast("hsm", "kind = \"hsm\"")
        .more(&format!("[[sink]]\nstream = \"hsm\"\nredis = \"{}\"\nburst = \"0s\"", redis.url(1)));
    for mdt in MDTS {
        directory.write(mdt, "");
        setup = setup.mdt(mdt, &directory.source());
    }
    let mut daemon = setup.start();
    let mut watching = viewer(&daemon);
    let mut report = Report::default();
    let until = Instant::now() + duration;
    while Instant::now() < until {
        for (mdt, list) in MDTS.iter().zip(&mut lists) {
            change(list, &mut next_oid, &mut rng);
            directory.write(mdt, &text(list));
        }
        thread::sleep(Duration::from_millis(rng.between(0, 150)));
        let hit = match rng.below(8) {
            0 => {
                daemon.kill();
                daemon.launch();
                "lcapd"
            }
            1 => {
                redis.kill();
                redis.launch();
                "Redis"
            }
            2 => {
                end(watching.take());
                watching = viewer(&daemon);
                "viewer"
            }
            3 => {
                redis.signal(Signal::STOP);
                thread::sleep(Duration::from_millis(rng.between(10, 300)));
                redis.signal(Signal::CONT);
                "Redis, stopped"
            }
            _ => continue,
        };
        *report.hits.entry(hit).or_default() += 1;
    }
    end(watching);
    let deadline = Instant::now() + PATIENCE;
    loop {
        (report.problems, report.entries) = (Vec::new(), 0);
        for (mdt, list) in MDTS.iter().zip(&lists) {
            let (problems, n) = compare(&format!("hsm:actions:{mdt}"), list, &redis);
            report.problems.extend(problems);
            report.entries += n;
        }
        if report.problems.is_empty() || Instant::now() >= deadline {
            if !report.problems.is_empty() {
                report.problems.push(daemon.log());
            }
            return report;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
