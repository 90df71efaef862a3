//! A campaign with real processes: an lcapd that is killed and started again, clients that are
//! killed and stopped, connections that are cut, and a journal of all of it.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lcap_wire::control::From;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::check::{Findings, check};
use crate::daemon::{Daemon, Setup, cleared_of, dying_with_parent};
use crate::journal::{Journal, Line, nanos, now};
use crate::proxy::Proxy;
use crate::rng::Rng;

/// How a campaign goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long things go wrong.
    pub chaos: Duration,
    /// How long everybody has after that to come to the end.
    pub patience: Duration,
    /// Decides when what happens.
    pub seed: u64,
    /// MDTs.
    pub n_mdts: usize,
    /// Records per second and MDT.
    pub rate: u64,
    /// The lcapd that clients talk to reads another one, which is killed, too.
    pub two_hops: bool,
    /// Program of the clients: `lcap-journal-client`.
    pub client: PathBuf,
    /// Where the journals go; a directory of its own if there is none given.
    pub journals: Option<PathBuf>,
}

struct Slot {
    args: Vec<String>,
    name: String,
    lives: u32,
    child: Option<Child>,
    stopped_until: Option<Instant>,
    dead_until: Option<Instant>,
}

impl Slot {
    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.stopped_until = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Watches what an emulated MDT has forgotten, all the time.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(state_dir: &Path, mdts: &[String], journal: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (own, dir) = (Arc::clone(&stop), state_dir.to_owned());
        let (mdts, path) = (mdts.to_vec(), journal.to_owned());
        let thread = thread::spawn(move || {
            let mut journal = Journal::append(&path).expect("a journal");
            let mut last = vec![(None, 0); mdts.len()];
            while !own.load(Ordering::Relaxed) {
                for (mdt, last) in mdts.iter().zip(&mut last) {
                    let file = dir.join(format!("emulated-{mdt}.json"));
                    let Ok(written) = fs::metadata(&file).and_then(|meta| meta.modified()) else {
                        continue;
                    };
                    if last.0 == Some(written) {
                        continue;
                    }
                    let Some(upto) = cleared_of(&dir, mdt) else { continue };
                    // Replaced in between: the time is not that of the content.
                    let again = fs::metadata(&file).and_then(|meta| meta.modified());
                    if again.ok() != Some(written) {
                        continue;
                    }
                    if last.1 != upto {
                        // The file's clock ticks every few milliseconds.
                        let time = nanos(written).saturating_add(10_000_000).min(now());
                        journal.note_at(time, &Line::Cleared(mdt.clone(), upto));
                        let _ = journal.flush();
                    }
                    *last = (Some(written), upto);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a campaign and checks it. `tell` is given a line now and then.
///
/// # Errors
/// What the journals have that cannot be read, or who did not come to the end.
///
/// # Panics
/// If lcapd cannot be started.
pub fn run(plan: &Plan, tell: &mut dyn FnMut(&str)) -> Result<Findings, String> {
    let own = TempDir::new().map_err(|error| error.to_string())?;
    let journals = plan.journals.clone().unwrap_or_else(|| own.path().to_owned());
    fs::create_dir_all(&journals).map_err(|error| error.to_string())?;
    let mut campaign = Campaign::start(plan, &journals);
    let deadline = Instant::now() + plan.chaos;
    let mut told = Instant::now();
    while Instant::now() < deadline {
        campaign.go_wrong();
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            tell(&campaign.progress());
        }
    }
    tell(&format!("no more faults: {}", campaign.progress()));
    campaign.come_to_the_end(plan.patience);
    let open = campaign.open();
    campaign.driver.note(&Line::Finished);
    campaign.driver.flush().map_err(|error| error.to_string())?;
    if !open.is_empty() {
        tell(&format!("LCAP_SEED={}: not at the end in time: {open}", plan.seed));
        for daemon in campaign.near.iter().chain([&campaign.daemon]) {
            tell(&tail(&daemon.log()));
            let status = daemon.lcap(&["status", "--json"]).output();
            tell(&status.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            ));
        }
    }
    drop(campaign);
    check(&journals)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}

struct Campaign {
    rng: Rng,
    daemon: Daemon,
    /// The one that has the MDTs, if that is another.
    near: Option<Daemon>,
    near_down_until: Option<Instant>,
    proxy: Proxy,
    driver: Journal,
    journals: PathBuf,
    client: PathBuf,
    mdts: Vec<String>,
    /// Newest index that each MDT will ever have.
    newest: Vec<u64>,
    slots: Vec<Slot>,
    down_until: Option<Instant>,
    paused_until: Option<Instant>,
    delayed_until: Option<Instant>,
    n_cuts: usize,
    _watch: Watch,
}

impl Campaign {
    fn start(plan: &Plan, journals: &Path) -> Self {
        let mdts: Vec<String> = (0..plan.n_mdts).map(|at| format!("soak-MDT{at:04x}")).collect();
        let records = plan.rate * plan.chaos.as_secs().max(1);
        let mut driver = Journal::append(&journals.join("driver.journal")).expect("a journal");
        let mut setup = Setup::new()
            .on_tcp()
            .dies_with_parent()
            .server("memory_limit = \"64MiB\"\nclear_interval = \"50ms\"\nclear_records = 1000")
            .server("heartbeat = \"200ms\"")
            .broadcast("changelog", "")
            .broadcast("fifo", "policies = [{ module = \"fifo\" }]")
            .queue("work", "")
            .queue("lanes", "lanes = 4");
        let mut near_setup = Setup::new()
            .on_tcp()
            .dies_with_parent()
            .server("memory_limit = \"64MiB\"\nclear_interval = \"50ms\"\nclear_records = 1000")
            .server("heartbeat = \"200ms\"")
            .broadcast("all", "");
        let mut newest = Vec::new();
        for (at, mdt) in mdts.iter().enumerate() {
            let (rate, seed) = (plan.rate, plan.seed + at as u64);
            // Every second MDT leaves out an index after each 1,000 records.
            let (gaps, n_missing) =
                if at % 2 == 1 { (",gaps=1000", (records - 1) / 1000) } else { ("", 0) };
            let source = format!("sim:rate={rate},records={records},seed={seed}{gaps}");
            if plan.two_hops {
                near_setup = near_setup.mdt(mdt, &source);
            } else {
                setup = setup.mdt(mdt, &source);
            }
            newest.push(records + n_missing);
            for nth in 0..=n_missing {
                let first = 1 + nth * 1001;
                let last =
                    if gaps.is_empty() { records } else { (first + 999).min(records + n_missing) };
                driver.note(&Line::Exists(mdt.clone(), first, last));
            }
        }
        let near = plan.two_hops.then(|| near_setup.start());
        if let Some(near) = &near {
            let site = near.control().register("all", "site", Vec::new(), From::Oldest);
            site.expect("a reader");
            for mdt in &mdts {
                setup = setup.relayed(mdt, near.setup(), "all", "site");
            }
        }
        let daemon = setup.start();
        let state_dir = near.as_ref().unwrap_or(&daemon).dir().join("state");
        let mut control = daemon.control();
        let port =
            daemon.setup().control_endpoint().rsplit(':').next().and_then(|p| p.parse().ok());
        let proxy = Proxy::start(port.expect("a port"));
        let mut slots = Vec::new();
        for stream in ["changelog", "fifo"] {
            for reader in ["r0", "r1"] {
                control.register(stream, reader, Vec::new(), From::Oldest).expect("a reader");
                for mdt in &mdts {
                    let (stream, reader) = (stream.to_owned(), reader.to_owned());
                    driver.note(&Line::Holder(stream, reader, mdt.clone(), 0));
                }
            }
        }
        for stream in ["work", "lanes"] {
            for mdt in &mdts {
                driver.note(&Line::Holder(stream.to_owned(), "-".to_owned(), mdt.clone(), 0));
            }
        }
        driver.flush().expect("a journal");
        let mut add = |stream: &str, mdt: &str, more: &[&str]| {
            let base = ["--stream", stream, "--mdt", mdt];
            let args = base.iter().chain(more).map(|&arg| arg.to_owned()).collect();
            let name = format!("{}-{stream}-{mdt}", slots.len());
            let (child, stopped_until, dead_until) = (None, None, None);
            slots.push(Slot { args, name, lives: 0, child, stopped_until, dead_until });
        };
        for mdt in &mdts {
            for stream in ["changelog", "fifo"] {
                add(stream, mdt, &["--reader", "r0"]);
                add(stream, mdt, &["--reader", "r1", "--ack-every", "1000", "--prefetch", "65536"]);
            }
            add("changelog", mdt, &[]);
            for stream in ["work", "lanes"] {
                add(stream, mdt, &["--member"]);
                add(stream, mdt, &["--member", "--ack-every", "7"]);
            }
        }
        let watch = Watch::start(&state_dir, &mdts, &journals.join("mdts.journal"));
        Self {
            rng: Rng::new(plan.seed),
            daemon,
            near,
            near_down_until: None,
            proxy,
            driver,
            journals: journals.to_owned(),
            client: plan.client.clone(),
            mdts,
            newest,
            slots,
            down_until: None,
            paused_until: None,
            delayed_until: None,
            n_cuts: 0,
            _watch: watch,
        }
    }

    fn progress(&self) -> String {
        let cleared = self.mdts.iter().map(|mdt| self.cleared(mdt).to_string());
        let cleared: Vec<String> = cleared.collect();
        let lives: u32 = self.slots.iter().map(|slot| slot.lives).sum();
        format!(
            "{} lives of lcapd, {lives} of clients, {} connections cut ({} ports of data went through \
             the proxy), cleared up to {} of {:?}",
            self.daemon.n_starts() + self.near.as_ref().map_or(0, Daemon::n_starts),
            self.n_cuts,
            self.proxy.n_data_ports(),
            cleared.join(" "),
            self.newest
        )
    }

    /// Up to where an MDT is cleared.
    fn cleared(&self, mdt: &str) -> u64 {
        self.near.as_ref().unwrap_or(&self.daemon).cleared(mdt)
    }

    fn moment(&mut self, most_ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(self.rng.below(most_ms))
    }

    /// One thing goes wrong, some time passes, and what is over is mended.
    fn go_wrong(&mut self) {
        self.mend(Instant::now());
        let at = self.rng.index(self.slots.len());
        match self.rng.below(100) {
            0..9 if self.near.is_some() => {
                if self.near_down_until.is_none() {
                    self.note_kill("the first lcapd");
                    self.near.as_mut().map(Daemon::kill).unwrap_or_default();
                    self.near_down_until = Some(self.moment(700));
                }
            }
            0..18 => {
                if self.down_until.is_none() {
                    self.note_kill("lcapd");
                    self.daemon.kill();
                    self.paused_until = None;
                    self.down_until = Some(self.moment(700));
                }
            }
            18..22 => {
                // Long enough that clients turn away, sometimes.
                if self.down_until.is_none() && self.paused_until.is_none() {
                    self.daemon.signal(Signal::STOP);
                    self.paused_until = Some(self.moment(2500));
                }
            }
            22..55 => {
                let name = self.slots[at].name.clone();
                self.note_kill(&name);
                self.slots[at].kill();
                self.slots[at].dead_until = Some(self.moment(2000));
            }
            55..75 => {
                self.slots[at].signal(Signal::STOP);
                self.slots[at].stopped_until = Some(self.moment(4000));
            }
            75..90 => self.n_cuts += self.proxy.cut(),
            _ => {
                let delay = Duration::from_millis(self.rng.below(150));
                self.proxy.delay(delay);
                self.delayed_until = Some(self.moment(2000));
            }
        }
        let pause = Duration::from_millis(self.rng.below(400));
        thread::sleep(pause);
    }

    fn note_kill(&mut self, what: &str) {
        self.driver.note(&Line::Kill(what.to_owned()));
        let _ = self.driver.flush();
    }

    /// Ends the faults that have lasted until `until`.
    fn mend(&mut self, until: Instant) {
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= until);
        if over(self.down_until) {
            self.down_until = None;
            self.daemon.launch();
        }
        if over(self.near_down_until) {
            self.near_down_until = None;
            self.near.as_mut().map(Daemon::launch).unwrap_or_default();
        }
        if over(self.paused_until) {
            self.paused_until = None;
            self.daemon.signal(Signal::CONT);
        }
        if over(self.delayed_until) {
            self.delayed_until = None;
            self.proxy.delay(Duration::ZERO);
        }
        let server = self.proxy.endpoint();
        for slot in &mut self.slots {
            if over(slot.stopped_until) {
                slot.stopped_until = None;
                slot.signal(Signal::CONT);
            }
            let ended = slot.child.as_mut().is_some_and(|c| c.try_wait().ok().flatten().is_some());
            if ended {
                slot.child = None; // it gave up; its journal and log say why
            }
            let waits = slot.dead_until.is_some_and(|at| at > until);
            if slot.child.is_some() || waits {
                continue;
            }
            slot.dead_until = None;
            slot.lives += 1;
            let journal = self.journals.join(format!("{}-{}.journal", slot.name, slot.lives));
            let log = self.journals.join(format!("{}.log", slot.name));
            let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
            let mut command = dying_with_parent(&self.client);
            command.args(["--server", &server]).args(&slot.args).arg("--journal").arg(journal);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            slot.child = Some(command.spawn().expect("lcap-journal-client starts"));
        }
    }

    /// Everything is mended, and everybody has some time.
    fn come_to_the_end(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let day = Duration::from_secs(86_400);
        self.mend(Instant::now() + day);
        self.daemon.wait_ready();
        while Instant::now() < deadline && !self.open().is_empty() {
            self.mend(Instant::now() + day);
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Which MDTs are not cleared to their end.
    fn open(&self) -> String {
        let mdts = self.mdts.iter().zip(&self.newest);
        let open = mdts.filter(|(mdt, newest)| self.cleared(mdt) < **newest);
        open.map(|(mdt, newest)| format!("{mdt}: {} of {newest}; ", self.cleared(mdt))).collect()
    }
}
