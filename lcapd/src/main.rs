//! lcapd: reads the changelogs of Lustre's MDTs once and fans them out. See lcapd(8).
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use lcapd::config::Config;
use lcapd::supervisor::{Daemon, check, default_config};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Reads the changelogs of Lustre's MDTs once and fans them out to any number of consumers.
#[derive(Parser)]
#[command(name = "lcapd", version)]
struct Args {
    /// Configuration file.
    #[arg(short, long, default_value = default_config().as_os_str())]
    config: PathBuf,
    /// Check the configuration, say what is wrong, and exit.
    #[arg(long)]
    check: bool,
    /// What to log: error, warn, info, debug, trace, or per module as in RUST_LOG.
    #[arg(long, env = "LCAP_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lcapd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let config = Config::load(&args.config)?;
    if args.check {
        check(&config)?;
        println!("{}: ok", args.config.display());
        return Ok(());
    }
    start_logging(&args.log)?;
    for warning in config.warnings() {
        warn!("{warning}");
    }
    // Before any thread, so that a signal during the start is not lost.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .context("cannot listen for signals")?;
    let daemon = Daemon::start(&config)?;
    for signal in signals.forever() {
        if signal == SIGHUP {
            info!("SIGHUP: reading the policies of all streams again");
            daemon.reload();
            continue;
        }
        info!(signal, "stopping");
        break;
    }
    daemon.stop();
    Ok(())
}

/// To journald when systemd says that stderr is its own, else to stderr.
fn start_logging(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journald) = tracing_journald::layer()
    {
        registry.with(journald).init();
    } else {
        let ansi = io::stderr().is_terminal();
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(ansi);
        registry.with(layer).init();
    }
    Ok(())
}
