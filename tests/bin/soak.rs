//! lcap-soak: everything goes wrong for as long as it is told; then one line says whether a promise
//! was broken. Exit code 0 only if nothing was lost and nothing cleared too early.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use lcap_tests::campaign::{Plan, run};
use lcap_tests::programs::program;
use lcap_tests::sim;

/// Kills, stops and cuts off lcapd and its clients, and runs schedules of the simulation beside it.
#[derive(Parser)]
#[command(name = "lcap-soak", version)]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Or, for tests of this program.
    #[arg(long)]
    seconds: Option<u64>,
    /// Decides what happens when, and where the simulation begins [default: the time].
    #[arg(long, env = "LCAP_SEED")]
    seed: Option<u64>,
    /// MDTs.
    #[arg(long, default_value_t = 3)]
    mdts: usize,
    /// Records per second and MDT.
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    /// The lcapd that clients talk to reads another one, and both are killed.
    #[arg(long)]
    two_hops: bool,
    /// Where the journals stay; `lcap-check` reads them.
    #[arg(long)]
    journals: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let client = program("lcap-journal-client"); // which may take a while the first time
    let started = Instant::now();
    let total =
        Duration::from_secs(args.seconds.unwrap_or(args.minutes * 60)).max(Duration::from_secs(8));
    let seed = args.seed.unwrap_or_else(lcap_tests::journal::now);
    let plan = Plan {
        // The end takes some time, too.
        chaos: total.saturating_sub((total / 4).min(Duration::from_secs(20))),
        patience: Duration::from_secs(60),
        seed,
        n_mdts: args.mdts,
        rate: args.rate,
        two_hops: args.two_hops,
        client,
        journals: args.journals.clone(),
    };
    eprintln!("soak: LCAP_SEED={seed}");
    let stop = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&stop);
    let simulation = std::thread::spawn(move || {
        let (mut all, mut n, mut broken) = (sim::Summary::default(), 0, Vec::new());
        while !own.load(Ordering::Relaxed) {
            match sim::run(seed.wrapping_add(n)) {
                Ok(summary) => all.add(&summary),
                Err(what) => {
                    eprintln!("{what}");
                    broken.push(what);
                }
            }
            n += 1;
        }
        (all, n, broken)
    });
    let findings = run(&plan, &mut |line| eprintln!("soak: {line}"));
    while started.elapsed() < total {
        std::thread::sleep(Duration::from_millis(50)); // the simulation goes on
    }
    stop.store(true, Ordering::Relaxed);
    let Ok((simulated, schedules, broken)) = simulation.join() else {
        eprintln!("soak: the simulation panicked");
        return ExitCode::FAILURE;
    };
    let findings = match findings {
        Ok(findings) => findings,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::FAILURE;
        }
    };
    for example in &findings.examples {
        eprintln!("soak: {example}");
    }
    if !broken.is_empty() {
        let seeds: Vec<u64> = broken.iter().map(|broken| broken.seed).collect();
        eprintln!("soak: schedules that broke a promise: {seeds:?} (LCAP_SEED replays them)");
    }
    // A schedule that broke a promise counts as one record.
    let early = broken.iter().filter(|broken| broken.cleared_early).count() as u64;
    let lost = findings.lost + (broken.len() as u64 - early);
    println!(
        "soak: seconds={} schedules={schedules} kills={} records={} lost={} early_clears={} duplicates={}",
        started.elapsed().as_secs(),
        findings.kills + simulated.crashes + simulated.client_crashes,
        findings.records + simulated.delivered,
        lost,
        findings.early_clears + early,
        findings.duplicates
    );
    if findings.is_clean() && broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
