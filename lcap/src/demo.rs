//! `lcap demo`: a real lcapd with simulated MDTs, real client processes, and the proof that nothing
//! was lost.
//!
//! ```text
//! sim: MDT0000 ─┐            ┌─▶ changelog (broadcast) ─▶ reader `audit`     (lcap)
//! sim: MDT0001 ─┼─▶ lcapd ───┤                         └─▶ reader `c-example` (docs/examples/reader.c)
//! replay: MDT0002 ─┘         └─▶ work (queue) ──────────▶ member-1, member-2 (lcap)
//! ```
//!
//! The numbers are what the clients counted themselves, what the daemon says of itself, and what an
//! MDT's log still holds when all is over; the three must agree. [`stage`] has the processes,
//! [`client`] is the consumer, [`scene`] the configuration, [`show`] what is seen, [`verdict`] the
//! proof.
#![forbid(unsafe_code)]

mod client;
mod scene;
mod show;
pub(crate) mod stage;
mod tally;
mod verdict;

use std::io::{BufRead as _, BufReader};
use std::process::ChildStdout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use lcap_wire::control::{From, Status};
use lcapclient::{ClientError, Control};
use signal_hook::consts::{SIGINT, SIGTERM};

use scene::{BROADCAST, Scene};
use show::Show;
use stage::{Ending, Process};
use tally::{Count, Seen, Tally};
use verdict::Verdict;

/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(50);
/// The demonstration fails when nothing moves for so long.
const STALL: Duration = Duration::from_secs(60);
/// How long lcapd may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Flat out: so many records per simulated MDT, as fast as they go [default: at --rate].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    records: Option<u64>,
    /// Seconds that records appear for.
    #[arg(long, default_value_t = 8, conflicts_with = "records",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Records per second of each simulated MDT.
    #[arg(long, default_value_t = 20_000, conflicts_with = "records",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Nothing but the summary, as one JSON document.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the demonstration starts of itself.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Client(client::ClientArgs),
    #[command(hide = true)]
    Exec(stage::ExecArgs),
}

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    match &args.part {
        Some(Part::Client(args)) => return client::run(args),
        Some(Part::Exec(args)) => return stage::exec(args),
        None => {}
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let scene = match args.records {
        Some(records) => Scene::flat_out(records)?,
        None => Scene::paced(args.rate, args.seconds)?,
    };
    let show = if args.json { Show::nothing() } else { Show::on_stdout() };
    let verdict = play(&scene, show, &interrupted)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&verdict.to_json())?);
    } else {
        print!("{verdict}");
    }
    verdict.check()
}

/// Counts of all clients, as they came in last.
type Counts = Arc<Mutex<Vec<Count>>>;

/// Plays the scene to its end, and stops everything.
fn play(scene: &Scene, mut show: Show, interrupted: &AtomicBool) -> Result<Verdict> {
    let (dir, control_uri) = (scene.dir(), scene.control());
    let mut lcapd =
        Process::start("lcapd", dir, &stage::program("lcapd")?, Ending::Term, |command| {
            command.arg("--config").arg(scene.config());
        })?;
    let mut control = Control::new(&control_uri, None, Duration::from_secs(1))?;
    ask(&mut lcapd, interrupted, || control.hello(None, None))?;
    let started = Instant::now();

    // Before any client: nothing is cleared unless a reader or member has acknowledged it.
    let mut patient = Control::new(&control_uri, None, ANSWER)?;
    for reader in scene.readers() {
        patient.register(BROADCAST, reader, Vec::new(), From::Oldest)?;
    }
    let counts = Counts::default();
    let mut clients = start_clients(scene, &counts)?;
    show.cast(
        scene,
        lcapd.id(),
        &clients.iter().map(|client| client.process.id()).collect::<Vec<_>>(),
    );

    let mut delivered_after = None;
    let (mut moved, mut before) = (Instant::now(), (0, 0, 0));
    let status = loop {
        clients.iter_mut().try_for_each(|client| client.process.check())?;
        let status = ask(&mut lcapd, interrupted, || control.status())?;
        let now = counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        show.progress(started.elapsed(), scene, &status, &now);
        if delivered_after.is_none() && scene.all_delivered(&now) {
            delivered_after = Some(started.elapsed());
        }
        if delivered_after.is_some() && scene.all_cleared(&status) {
            break status;
        }
        let sum = progress(&status, &now);
        if sum != before {
            (moved, before) = (Instant::now(), sum);
        } else if moved.elapsed() > STALL {
            let missing = Verdict::new(scene, &status, &now, moved.duration_since(started));
            bail!("nothing moves any more\n{missing}{}", lcapd.last_words());
        }
        thread::sleep(TICK);
    };
    let seconds = delivered_after.unwrap_or_default();

    clients.into_iter().try_for_each(Client::stop)?;
    show.end();
    lcapd.stop()?;
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut verdict = Verdict::new(scene, &status, &counts, seconds);
    verdict.look_into_logs(scene)?;
    Ok(verdict)
}

/// Asks lcapd, for as long as it lives, nobody interrupts, and [`ANSWER`] is not over. To be used with
/// what may be asked twice, and a connection that gives up soon.
fn ask<T>(
    lcapd: &mut Process,
    interrupted: &AtomicBool,
    mut question: impl FnMut() -> Result<T, ClientError>,
) -> Result<T> {
    let since = Instant::now();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        lcapd.check()?;
        match question() {
            Ok(answer) => return Ok(answer),
            Err(error) if since.elapsed() > ANSWER => {
                let last_words = lcapd.last_words();
                return Err(error).with_context(|| format!("lcapd is silent{last_words}"));
            }
            Err(_) => {}
        }
    }
}

/// A client process and the thread that takes what it prints.
struct Client {
    process: Process,
    listener: JoinHandle<()>,
}

impl Client {
    /// Ends it, and takes its last numbers.
    fn stop(self) -> Result<()> {
        self.process.stop()?;
        self.listener.join().map_err(|_| anyhow::anyhow!("a client's listener panicked"))
    }
}

/// What changes as long as something moves: records read, cleared and received.
fn progress(status: &Status, counts: &[Count]) -> (u64, u64, u64) {
    let sum = |of: fn(&lcap_wire::control::MdtStatus) -> u64| status.mdts.iter().map(of).sum();
    (
        sum(|mdt| mdt.records_read),
        sum(|mdt| mdt.cleared_index),
        counts.iter().map(|count| count.records).sum(),
    )
}

/// Three processes: a reader, the C example as another reader, two members of the queue.
fn start_clients(scene: &Scene, counts: &Counts) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for role in scene.roles() {
        let (program, ending) = match &role.c_example {
            Some(program) => (program.clone(), Ending::Term),
            None => (std::env::current_exe()?, Ending::HangUp),
        };
        let mut process = Process::start(&role.name, scene.dir(), &program, ending, |command| {
            command.env("LCAP_REC_URI", scene.control());
            if role.c_example.is_some() {
                command.env("LCAP_READER", &role.name).arg("-f");
            } else {
                command.args(["demo", "client", "--stream", role.stream]);
                if role.members > 0 {
                    command.arg("--members").arg(role.members.to_string());
                } else {
                    command.args(["--reader", &role.name]);
                }
            }
            command.args(scene.mdt_names());
        })?;
        let stdout = process.stdout()?;
        let counts = Arc::clone(counts);
        let listen: Box<dyn FnOnce() + Send> = if role.c_example.is_some() {
            let name = role.name.clone();
            Box::new(move || count_lines(stdout, &name, &counts))
        } else {
            Box::new(move || take_reports(stdout, &counts))
        };
        let listener = thread::Builder::new().name(role.name.clone()).spawn(listen)?;
        clients.push(Client { process, listener });
    }
    Ok(clients)
}

fn put(counts: &Counts, count: Count) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |other: &&mut Count| other.client == count.client && other.mdt == count.mdt;
    match counts.iter_mut().find(same) {
        Some(old) => *old = count,
        None => counts.push(count),
    }
}

/// Takes the reports of an `lcap demo client`.
fn take_reports(stdout: ChildStdout, counts: &Counts) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if let Ok(reports) = serde_json::from_str::<Vec<Count>>(&line) {
            reports.into_iter().for_each(|count| put(counts, count));
        }
    }
}

/// Counts what the C example prints: a line per record, MDT and index first.
fn count_lines(stdout: ChildStdout, client: &str, counts: &Counts) {
    /// Lines between two looks at the shared numbers.
    const OFTEN: u32 = 256;
    let mut tallies: Vec<(Tally, Seen)> = Vec::new();
    let mut stdout = BufReader::with_capacity(256 << 10, stdout);
    let (mut line, mut lines) = (Vec::new(), 0);
    loop {
        line.clear();
        let n = stdout.read_until(b'\n', &mut line).unwrap_or(0);
        let text = String::from_utf8_lossy(&line);
        let mut words = text.split(' ');
        if let (Some(mdt), Some(Ok(index))) = (words.next(), words.next().map(str::parse)) {
            let at = tallies.iter().position(|(tally, _)| tally.count.mdt == mdt);
            let at = at.unwrap_or_else(|| {
                tallies.push((Tally::new(client, mdt), Seen::default()));
                tallies.len() - 1
            });
            let (tally, seen) = &mut tallies[at];
            tally.note(index, seen);
        }
        lines += 1;
        // What is not in the buffer may be long in coming.
        if n == 0 || lines % OFTEN == 0 || stdout.buffer().is_empty() {
            tallies.iter().for_each(|(tally, _)| put(counts, tally.count.clone()));
        }
        if n == 0 {
            return;
        }
    }
}
