//! lcap-upcalls: upcalls by the thousand under kills, and how long one takes.
//!
//! `cargo run -p lcap-tests --bin lcap-upcalls` runs 20,000 in bursts of 200 with lcapd killed ten times;
//! `-- latency` measures single upcalls beside a program that only makes a file and syncs it, with
//! lcapd up, hung and down.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use lcap_tests::upcalls::{Campaign, Stage};
use rustix::process::Signal;

#[derive(Parser)]
struct Args {
    /// Upcalls at once.
    #[arg(long, default_value_t = 200)]
    burst: u32,
    /// How many bursts.
    #[arg(long, default_value_t = 100)]
    bursts: u32,
    /// How often lcapd is killed.
    #[arg(long, default_value_t = 10)]
    daemon_kills: u32,
    /// How often the worker is killed.
    #[arg(long, default_value_t = 3)]
    worker_kills: u32,
    /// Upcalls that are killed, of a thousand.
    #[arg(long, default_value_t = 5)]
    upcall_kills: u64,
    /// Decides what is killed when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(subcommand)]
    command: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// How long an upcall takes.
    Latency {
        /// Upcalls in each state of lcapd.
        #[arg(long, default_value_t = 500)]
        n: usize,
    },
    /// Makes a file, syncs it and its directory: what an upcall is compared with.
    Touch {
        /// The file.
        file: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lcap-upcalls: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let args = Args::parse();
    match args.command {
        Some(What::Touch { file }) => touch(&file).map(|()| true),
        Some(What::Latency { n }) => latency(n).map(|()| true),
        None => {
            let Args { burst, bursts, daemon_kills, worker_kills, upcall_kills, seed, .. } = args;
            let started = Instant::now();
            let campaign =
                Campaign { burst, bursts, daemon_kills, worker_kills, upcall_kills, seed };
            let verdict = campaign.run();
            for problem in verdict.problems.iter().take(20) {
                println!("PROBLEM {problem}");
            }
            println!(
                "{} accepted, {} killed, {} runs, {} of them again, {} problems, {:.0} s",
                verdict.accepted,
                verdict.killed,
                verdict.runs,
                verdict.repeated,
                verdict.problems.len(),
                started.elapsed().as_secs_f64()
            );
            Ok(verdict.problems.is_empty())
        }
    }
}

fn touch(path: &Path) -> Result<()> {
    std::fs::File::create_new(path)?.sync_all()?;
    let directory = path.parent().context("a directory")?;
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}

/// Wall time of a process, and what it says of itself.
fn timed(mut command: Command) -> Result<(Duration, String)> {
    let started = Instant::now();
    let out = command.output()?;
    let took = started.elapsed();
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok((took, String::from_utf8_lossy(&out.stderr).into_owned()))
}

fn latency(n: usize) -> Result<()> {
    let mut stage = Stage::new();
    let this = std::env::current_exe()?;
    let dir = stage.daemon.dir().join("touched");
    std::fs::create_dir(&dir)?;
    println!(
        "{:<6} {:>10} {:>10} {:>12} {:>12}",
        "lcapd", "median", "p99", "without fsync", "touch"
    );
    for state in ["up", "hung", "down"] {
        match state {
            "hung" => stage.daemon.signal(Signal::STOP),
            "down" => stage.daemon.kill(),
            _ => {}
        }
        let (mut whole, mut own, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let fid = format!("[0x200000401:{:#x}:0x0]", i + 1);
            let (took, said) = timed(stage.upcall("ARCHIVE", "x", &[fid]))?;
            whole.push(took);
            own.push(took.saturating_sub(fsync_of(&said).context("no timing")?));
            let mut command = Command::new(&this);
            command.arg("touch").arg(dir.join(format!("{state}{i}"))).stdin(Stdio::null());
            bare.push(timed(command)?.0);
        }
        let show = |times: &mut Vec<Duration>, part: usize| {
            times.sort_unstable();
            times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3
        };
        println!(
            "{state:<6} {:>7.2} ms {:>7.2} ms {:>5.2}, {:>5.2} ms {:>5.2}, {:>5.2} ms",
            show(&mut whole, 50),
            show(&mut whole, 99),
            show(&mut own, 50),
            show(&mut own, 99),
            show(&mut bare, 50),
            show(&mut bare, 99),
        );
    }
    Ok(())
}

/// From `… stored ID in X us, Y us of it fsync`.
fn fsync_of(said: &str) -> Option<Duration> {
    let (_, rest) = said.split_once(" us, ")?;
    let (micros, _) = rest.split_once(" us of it fsync")?;
    Some(Duration::from_micros(micros.parse().ok()?))
}
