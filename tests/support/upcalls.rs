//! Upcalls by the thousand, an lcapd and a worker that are killed in between, and what must have
//! happened in the end.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::daemon::{Daemon, Setup, wait_until_or};
use crate::programs::program;
use crate::rng::Rng;

/// What a campaign does.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// Upcalls at once; each is of a file of its own, the same ones in each burst.
    pub burst: u32,
    /// How many bursts.
    pub bursts: u32,
    /// How often lcapd is killed.
    pub daemon_kills: u32,
    /// How often the worker is killed.
    pub worker_kills: u32,
    /// Upcalls that are killed, of a thousand.
    pub upcall_kills: u64,
    /// Decides what is killed when.
    pub seed: u64,
}

/// How it went.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Upcalls that ended with 0.
    pub accepted: usize,
    /// Upcalls that were killed; they may have stored their request or not.
    pub killed: usize,
    /// Runs of the command.
    pub runs: usize,
    /// Runs of a request that had been run before.
    pub repeated: usize,
    /// What went wrong.
    pub problems: Vec<String>,
}

/// A spool, an lcapd that takes from it, and what runs there.
#[derive(Debug)]
pub struct Stage {
    /// The daemon.
    pub daemon: Daemon,
    spool: PathBuf,
    conf: PathBuf,
    log: PathBuf,
    script: PathBuf,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// Everything in a fresh directory.
    ///
    /// # Panics
    /// If it cannot be set up.
    pub fn new() -> Self {
        let setup = Setup::new();
        let spool = setup.directory().join("spool");
        Self::of(setup, spool)
    }

    /// With an lcapd of more than a queue, and a spool elsewhere.
    ///
    /// # Panics
    /// If it cannot be set up.
    pub fn of(setup: Setup, spool: PathBuf) -> Self {
        Self::with(setup, spool, "")
    }

    /// The same, with further keys of `[hsm]`.
    ///
    /// # Panics
    /// If it cannot be set up.
    pub fn with(setup: Setup, spool: PathBuf, more: &str) -> Self {
        let setup = setup.more(&format!(
            "[hsm]\nspool = \"{}\"\nfsname = \"lustre\"\nlease = \"2s\"\nretry_first = \"100ms\"\nattempts = 1000\n{more}",
            spool.display()
        ));
        let daemon = setup.start();
        let at = |name: &str| daemon.dir().join(name);
        let (conf, log, script) = (at("upcall.toml"), at("log"), at("work.sh"));
        fs::write(&conf, format!("spool = \"{}\"\ntiming = true\n", spool.display()))
            .expect("conf");
        // One write for each line, so lines stay whole.
        let text = "log=$1; shift; data=$5; shift 5\nfor fid; do echo \"$fid $data\" >> \"$log\" || exit 1; done\n";
        fs::write(&script, text).expect("a script");
        Self { daemon, spool, conf, log, script }
    }

    /// An upcall, as the kernel starts it: with an empty environment, but for where its settings are.
    pub fn upcall(&self, action: &str, data: &str, fids: &[String]) -> Command {
        let mut command = Command::new(program("lhsm_mdt_upcall"));
        command.args([action, "lustre", "1", "0", data]).args(fids);
        command.env_clear().env("LCAP_UPCALL_CONF", &self.conf);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// A worker that writes down what it is told to do.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn worker(&self, args: &[&str]) -> Child {
        let exec = format!("sh {} {}", self.script.display(), self.log.display());
        let mut command = self.daemon.lcap(&["hsm", "worker", "--exec", &exec]);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("a worker")
    }

    /// What the queue says of itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn status(&self) -> Value {
        let out = self.daemon.lcap(&["hsm", "queue", "status", "--json"]).output().expect("lcap");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    /// Waits until nothing is in the spool or the queue, as long as something happens there.
    ///
    /// # Panics
    /// If nothing happens any more.
    pub fn wait_empty(&self) {
        let mut left = u64::MAX;
        while left > 0 {
            wait_until_or("fewer in the queue", || {
                // The spool first: what leaves it between two looks is in the queue by then.
                let spooled = self.spooled("new");
                let status = self.status();
                let states = status["states"].as_object().expect("states").values();
                let counts = states.flat_map(|kinds| kinds.as_object().expect("kinds").values());
                let queued: u64 = counts.map(|n| n.as_u64().expect("a number")).sum();
                let now_left = queued + spooled as u64;
                if now_left == 0 || now_left < left {
                    left = now_left;
                    return Ok(());
                }
                Err(format!("{spooled} files in the spool; {status:#}\n{}", self.daemon.log()))
            });
        }
    }

    /// Files in a folder of the spool.
    pub fn spooled(&self, folder: &str) -> usize {
        fs::read_dir(self.spool.join(folder)).map_or(0, Iterator::count)
    }

    /// The spool.
    pub fn spool(&self) -> &Path {
        &self.spool
    }

    /// What the worker's command adds to: see [`Self::runs`].
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The worker's command, which wants [`Self::log`] before what the worker gives it.
    pub fn script(&self) -> &Path {
        &self.script
    }

    /// What was run, in order: file and data.
    pub fn runs(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let split = |line: &str| {
            let (fid, data) = line.split_once(' ').unwrap_or((line, ""));
            (fid.to_owned(), data.to_owned())
        };
        text.lines().map(split).collect()
    }
}

impl Campaign {
    /// Runs it.
    ///
    /// # Panics
    /// If something cannot be started, or the queue does not become empty.
    pub fn run(&self) -> Verdict {
        let mut rng = Rng::new(self.seed);
        let mut stage = Stage::new();
        let mut worker = stage.worker(&["--jobs", "4"]);
        let mut verdict = Verdict::default();
        let (mut accepted, mut maybe) = (BTreeSet::new(), BTreeSet::new());
        let when = |n: u32, rng: &mut Rng| -> Vec<u32> {
            (0..n).map(|_| u32::try_from(rng.below(self.bursts.into())).unwrap_or(0)).collect()
        };
        let daemon_dies = when(self.daemon_kills, &mut rng);
        let worker_dies = when(self.worker_kills, &mut rng);
        for burst in 0..self.bursts {
            let mut children: Vec<(String, Child, bool)> = Vec::new();
            for file in 1..=self.burst {
                let fid = format!("[0x200000401:{file:#x}:0x0]");
                let mut command =
                    stage.upcall("ARCHIVE", &burst.to_string(), std::slice::from_ref(&fid));
                let mut child = command.spawn().expect("an upcall");
                let kill = rng.chance(self.upcall_kills);
                if kill {
                    let _ = child.kill();
                }
                children.push((fid, child, kill));
                if file == self.burst / 2 {
                    // In the middle of a burst.
                    for _ in daemon_dies.iter().filter(|at| **at == burst) {
                        stage.daemon.kill();
                        stage.daemon.launch();
                    }
                    for _ in worker_dies.iter().filter(|at| **at == burst) {
                        let _ = worker.kill();
                        let _ = worker.wait();
                        worker = stage.worker(&["--jobs", "4"]);
                    }
                }
            }
            for (fid, child, killed) in children {
                let out = child.wait_with_output().expect("an upcall's end");
                let request = (fid, burst);
                if out.status.success() {
                    verdict.accepted += 1;
                    accepted.insert(request);
                } else if killed {
                    verdict.killed += 1;
                    maybe.insert(request);
                } else {
                    let said = String::from_utf8_lossy(&out.stderr).into_owned();
                    verdict.problems.push(format!("an upcall failed: {said}"));
                }
            }
        }
        stage.daemon.wait_ready();
        stage.wait_empty();
        if let Some(status) = worker.try_wait().expect("a worker") {
            verdict.problems.push(format!("the worker ended by itself: {status}"));
        }
        let _ = worker.kill();
        let _ = worker.wait();
        judge(&stage, &accepted, &maybe, &mut verdict);
        if self.daemon_kills + self.worker_kills == 0 && verdict.repeated > 0 {
            verdict.problems.push("a request was run again without a crash".to_owned());
        }
        if stage.spooled("bad") > 0 {
            verdict.problems.push("the spool has damaged files".to_owned());
        }
        verdict
    }
}

type Request = (String, u32);

fn judge(
    stage: &Stage,
    accepted: &BTreeSet<Request>,
    maybe: &BTreeSet<Request>,
    verdict: &mut Verdict,
) {
    let mut done = BTreeSet::new();
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for (fid, data) in stage.runs() {
        verdict.runs += 1;
        let Ok(burst) = data.parse::<u32>() else {
            verdict.problems.push(format!("not what was asked for: {fid} {data}"));
            continue;
        };
        let before = last.insert(fid.clone(), burst);
        if before.is_some_and(|before| before > burst) {
            verdict.problems.push(format!("{fid}: {burst} after {}", before.unwrap_or(0)));
        }
        let request = (fid, burst);
        if !accepted.contains(&request) && !maybe.contains(&request) {
            verdict.problems.push(format!("invented: {request:?}"));
        }
        verdict.repeated += usize::from(!done.insert(request));
    }
    for lost in accepted.difference(&done) {
        verdict.problems.push(format!("lost: {lost:?}"));
    }
}
