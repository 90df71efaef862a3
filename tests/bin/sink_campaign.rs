//! lcap-sink-campaign: HSM actions into Redis while two lcapds, Redis and a viewer are killed at random.
//! Exit code 0 if Redis shows at the end what the lists of actions say, and every action was new once.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lcap_tests::sink_campaign::run;

/// Kills lcapd, Redis and a viewer at random while actions go into Redis.
#[derive(Parser)]
#[command(name = "lcap-sink-campaign", version)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Decides what happens.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let report = run(Duration::from_secs(args.seconds), args.seed);
    println!("hits {:?}, {} entries, {} of them new", report.hits, report.entries, report.new);
    for problem in &report.problems {
        println!("{problem}");
    }
    println!("campaign: {}", if report.problems.is_empty() { "ok" } else { "FAILED" });
    if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
