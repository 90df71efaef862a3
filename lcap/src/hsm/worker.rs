//! `lcap hsm worker`: takes requests from the queue and runs a command for each, or for a batch.
//!
//! Three kinds of threads. This one asks for work as far as there is room, and waits for the answer.
//! `jobs` threads run commands. One reports: what is done, as soon as it is, and else that we live.
//! When the worker dies, the commands die with it, and lcapd gives to others what it held.
#![forbid(unsafe_code)]

mod command;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use clap::Args;
use crossbeam_channel::{Receiver, Sender, unbounded};
use lcap_wire::control::Op;
use lcap_wire::hsm_queue::{Done, Fetch, Fetched, HsmOp, Leased, Report, Reported, WorkerState};
use lcapclient::{ClientError, Control};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

use command::{Batch, Ended};

/// How long a question for work stays open.
const WAIT: Duration = Duration::from_secs(5);
/// How long a report waits for its answer before it is sent again.
const REPORT: Duration = Duration::from_secs(5);
/// Before lcapd is asked again after it did not answer.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// What to run; ACTION FSNAME ARCHIVE_ID FLAGS DATA FID... are added to it.
    #[arg(long, value_name = "CMD", default_value = "lfs hsm_upcall lhsm_worker_posix")]
    exec: String,
    /// FIDs in one run, at most.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    batch: u32,
    /// Runs at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    jobs: u32,
    /// Serve only this archive; may be given more than once.
    #[arg(long, value_name = "N")]
    archive_id: Vec<u32>,
    /// Serve only this kind: archive, restore, remove; may be given more than once.
    #[arg(long, value_name = "A")]
    action: Vec<String>,
    /// The worker's name, which is what rules of the configuration call a host [default: HOST-PID].
    #[arg(long)]
    name: Option<String>,
    /// Kill a run that takes longer than so many seconds; it has failed then.
    #[arg(long)]
    timeout: Option<u64>,
    /// End when there has been nothing to do for so many seconds.
    #[arg(long)]
    exit_when_idle: Option<u64>,
}

/// What the threads share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What we hold, by id.
    held: BTreeMap<u64, Held>,
    /// What is to be reported.
    done: Vec<Done>,
    returned: Vec<u64>,
    /// What is being reported: lcapd may not know of it yet.
    reporting: Vec<u64>,
    /// The last question that was answered.
    got: u64,
    lease: Duration,
    /// No more work is taken.
    stopping: bool,
    /// Everything is done and to be reported for the last time.
    ended: bool,
}

#[derive(Default)]
struct Held {
    /// Names our run of it. What we lost may come to us again while its first run still ends.
    lease: u64,
    /// Of its command, if that runs.
    pid: Option<Pid>,
    /// Not ours any more, or cancelled: its result is not wanted.
    dropped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let name = args.name.clone().unwrap_or_else(|| {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        format!("{}-{}", host.split('.').next().unwrap_or_default(), std::process::id())
    });
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
    let program = Arc::new(command::Program::parse(&args.exec, args.timeout)?);
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let for_signals = Arc::clone(&shared);
    thread::spawn(move || {
        for _ in signals.forever() {
            let mut state = for_signals.lock();
            if state.stopping {
                // The second time: what runs dies with us.
                std::process::exit(1);
            }
            state.stopping = true;
            for_signals.changed.notify_all();
        }
    });
    let (batches, batches_in) = unbounded();
    let runners: Vec<_> = (0..args.jobs)
        .map(|_| {
            let (shared, program) = (Arc::clone(&shared), Arc::clone(&program));
            let batches: Receiver<Batch> = batches_in.clone();
            thread::spawn(move || {
                for batch in batches {
                    run_batch(&shared, &program, batch);
                }
            })
        })
        .collect();
    let identity = WorkerState { worker: name, instance: random(), ..WorkerState::default() };
    let mut reporter =
        Reporter { control: crate::control()?.with_timeout(REPORT), identity: identity.clone() };
    let for_reports = Arc::clone(&shared);
    let reports = thread::spawn(move || reporter.run(&for_reports));

    let taken = take_work(args, &identity, &shared, &batches);
    shared.lock().stopping = true;
    drop(batches);
    for runner in runners {
        let _ = runner.join();
    }
    shared.lock().ended = true;
    shared.changed.notify_all();
    let _ = reports.join();
    taken
}

/// Asks for work until told to stop.
fn take_work(
    args: &WorkerArgs,
    identity: &WorkerState,
    shared: &Shared,
    batches: &Sender<Batch>,
) -> Result<()> {
    let mut control = crate::control()?.with_timeout(WAIT + Duration::from_secs(5));
    let room = args.jobs as usize * args.batch as usize;
    let idle = args.exit_when_idle.map(Duration::from_secs);
    let mut busy_at = Instant::now();
    let mut seq = 0;
    loop {
        let mut state = shared.lock();
        while state.held.len() >= room && !state.stopping {
            state = shared.wait(state, Duration::from_secs(3600));
        }
        if state.stopping {
            return Ok(());
        }
        let n = u32::try_from(room - state.held.len()).unwrap_or(u32::MAX);
        if !state.held.is_empty() {
            busy_at = Instant::now();
        }
        seq += 1;
        let wait = idle.map_or(WAIT, |idle| idle.min(WAIT)).as_millis();
        let fetch = Fetch {
            worker: identify(identity, &state),
            kinds: args.action.clone(),
            archive_ids: args.archive_id.clone(),
            seq,
            n,
            wait_ms: u64::try_from(wait).unwrap_or(0),
        };
        drop(state);
        let fetched: Fetched = match control.request(Op::Hsm(HsmOp::Fetch(fetch))) {
            Ok(reply) => serde_json::from_value(reply.body)?,
            Err(error @ ClientError::Refused { .. }) => return Err(error.into()),
            Err(ClientError::Interrupted) => continue,
            Err(error) => {
                eprintln!("lcap: {error}; trying again");
                thread::sleep(AGAIN);
                continue;
            }
        };
        let mut state = shared.lock();
        state.got = seq;
        state.lease = Duration::from_millis(fetched.lease_ms);
        for leased in &fetched.requests {
            state.held.insert(leased.id, Held { lease: leased.lease, ..Held::default() });
        }
        drop(state);
        if !fetched.requests.is_empty() {
            busy_at = Instant::now();
        } else if idle.is_some_and(|idle| busy_at.elapsed() >= idle) {
            return Ok(());
        }
        for batch in group(fetched.requests, args.batch as usize)? {
            let _ = batches.send(batch);
        }
    }
}

fn identify(identity: &WorkerState, state: &State) -> WorkerState {
    // Until lcapd has been told what became of a request, it must not look lost.
    let done = state.done.iter().map(|done| done.id);
    let unreported = done.chain(state.returned.iter().copied());
    let held = state.held.keys().copied();
    let holding = held.chain(unreported).chain(state.reporting.iter().copied()).collect();
    WorkerState { got: state.got, holding, ..identity.clone() }
}

/// Requests that one run can do: they differ in their FID only.
fn group(requests: Vec<Leased>, most: usize) -> Result<Vec<Batch>> {
    let mut batches: Vec<Batch> = Vec::new();
    for request in requests {
        let data = BASE64.decode(&request.data_b64).context("data of a request")?;
        let Leased { id, lease, action, fsname, fid, archive_id, flags, .. } = request;
        let args = command::Arguments { action, fsname, archive_id, flags, data };
        let open = batches.iter_mut().find(|b| b.args == args && b.files.len() < most);
        let file = command::File { id, lease, fid };
        match open {
            Some(batch) => batch.files.push(file),
            None => batches.push(Batch { args, files: vec![file] }),
        }
    }
    Ok(batches)
}

fn run_batch(shared: &Shared, program: &command::Program, mut batch: Batch) {
    let mut state = shared.lock();
    let stopping = state.stopping;
    batch.files.retain(|file| {
        let Some(held) = state.held.get(&file.id).filter(|held| held.lease == file.lease) else {
            return false;
        };
        let begins = !held.dropped && !stopping;
        if !begins {
            // Cancelled or lost, it never begins, and makes room for something else.
            state.held.remove(&file.id);
            state.returned.push(file.id);
        }
        begins
    });
    drop(state);
    shared.changed.notify_all();
    if batch.files.is_empty() {
        return;
    }
    let ended = program.run(&batch, |pid| {
        let mut state = shared.lock();
        for file in &batch.files {
            if let Some(held) = state.held.get_mut(&file.id).filter(|h| h.lease == file.lease) {
                held.pid = pid;
                if let Some(pid) = pid.filter(|_| held.dropped) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
        }
    });
    if batch.files.len() > 1 && ended.iter().all(|ended| !ended.said && ended.errno != 0) {
        // It failed as a whole, and does not say at what: one by one, then.
        for file in batch.files {
            run_batch(shared, program, Batch { args: batch.args.clone(), files: vec![file] });
        }
        return;
    }
    finish(shared, ended);
}

fn finish(shared: &Shared, ended: Vec<Ended>) {
    let mut state = shared.lock();
    for Ended { id, lease, errno, error, .. } in ended {
        if state.held.get(&id).is_some_and(|held| held.lease == lease) {
            state.held.remove(&id);
            state.done.push(Done { id, lease, errno, error });
        }
    }
    shared.changed.notify_all();
}

struct Reporter {
    control: Control,
    identity: WorkerState,
}

impl Reporter {
    fn run(&mut self, shared: &Shared) {
        loop {
            let mut state = shared.lock();
            let lease = state.lease.max(Duration::from_secs(1));
            let due = Instant::now() + lease / 4;
            while state.done.is_empty() && state.returned.is_empty() && !state.ended {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = shared.wait(state, left);
            }
            let report = Report {
                worker: identify(&self.identity, &state),
                done: std::mem::take(&mut state.done),
                returned: std::mem::take(&mut state.returned),
                bye: state.ended,
            };
            let done = report.done.iter().map(|done| done.id);
            state.reporting = done.chain(report.returned.iter().copied()).collect();
            let (ended, lease) = (state.ended, state.lease);
            drop(state);
            if !self.send(shared, &report, lease) || ended {
                return;
            }
            shared.lock().reporting.clear();
        }
    }

    /// Until it has arrived: a result must not get lost. False if nobody will ever take it.
    fn send(&mut self, shared: &Shared, report: &Report, lease: Duration) -> bool {
        let mut until = None;
        loop {
            let mut report = report.clone();
            {
                // More may be held by now, and must not look lost.
                let state = shared.lock();
                report.worker = identify(&self.identity, &state);
            }
            match self.control.request(Op::Hsm(HsmOp::Report(report.clone()))) {
                Ok(reply) => {
                    if let Ok(told) = serde_json::from_value::<Reported>(reply.body) {
                        stop(shared, &told);
                    }
                    return true;
                }
                Err(error) => {
                    let state = shared.lock();
                    let unsaid = [&report.done, &state.done].iter().any(|done| !done.is_empty())
                        || [&report.returned, &state.returned].iter().any(|ids| !ids.is_empty());
                    let ended = state.ended;
                    drop(state);
                    // Who stops does not wait for an lcapd that is down, which may be stopping, too: if it has
                    // nothing to say, or for longer than it would be believed.
                    if ended && !unsaid {
                        return false;
                    }
                    let now = Instant::now();
                    if ended && now > *until.get_or_insert(now + lease) {
                        eprintln!(
                            "lcap: {error}; results are lost, and what they are of is done again"
                        );
                        return false;
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }
}

/// Ends commands whose result is not wanted any more.
fn stop(shared: &Shared, told: &Reported) {
    let mut state = shared.lock();
    for id in told.lost.iter().chain(&told.cancel) {
        if let Some(held) = state.held.get_mut(id)
            && !std::mem::replace(&mut held.dropped, true)
            && let Some(pid) = held.pid
        {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}
