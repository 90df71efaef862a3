//! lcapd: reads the changelogs of Lustre's MDTs once and fans them out. See lcapd(8).
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use lcapd::config::Config;
use lcapd::health::Health;
use lcapd::http::{Answer, Http};
use lcapd::lease::files::Files;
use lcapd::lease::redis::InRedis;
use lcapd::lease::{Lease, Place};
use lcapd::supervisor::{Daemon, check, default_config};
use lcapd::wake::Waker;
use lcapd::{logging, service};
use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

/// Exit code when another lcapd has taken over.
const FENCED: i32 = 3;

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
    /// Check the configuration, then have the lcapd with this process number read it again.
    #[arg(long, value_name = "PID", conflicts_with = "check")]
    reload: Option<i32>,
    /// What to log: error, warn, info, debug, trace, or per module as in RUST_LOG [default: what the
    /// configuration says, or info].
    #[arg(long, env = "LCAP_LOG")]
    log: Option<String>,
}

impl Args {
    fn log<'a>(&'a self, config: &'a Config) -> &'a str {
        self.log.as_deref().or(config.server.log.as_deref()).unwrap_or(logging::DEFAULT)
    }
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
    if let Some(pid) = args.reload {
        check(&config)?;
        let Some(pid) = Pid::from_raw(pid).filter(|pid| !pid.is_init()) else {
            bail!("{pid} is no lcapd's process number");
        };
        return kill_process(pid, Signal::HUP).context("cannot signal lcapd");
    }
    logging::start(args.log(&config))?;
    for warning in config.warnings() {
        warn!("{warning}");
    }
    // Both before there are threads: these would keep what they have, and take signals.
    let keep = service::needed_capabilities(&config);
    service::keep_capabilities(keep).context("cannot give up capabilities")?;
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot listen for signals")?;
    service::raise_descriptor_limit();

    let Some(lease) = take_turn(&config, &mut signals)? else { return Ok(()) };
    let daemon = Daemon::start(&config, &lease)?;
    service::feed_watchdog(daemon.engine_status().clone())?;
    service::tell_ready("reading");
    for signal in signals.forever() {
        if signal != SIGHUP {
            info!(signal, "stopping");
            break;
        }
        service::tell_reloading();
        if let Err(error) = reload(args, &daemon) {
            error!(error = format!("{error:#}"), "SIGHUP: not everything was read again");
        }
        service::tell_ready("reading");
    }
    service::tell_stopping();
    daemon.stop();
    lease.release();
    Ok(())
}

/// Waits until it is this lcapd's turn to work. `None` if it was told to stop meanwhile.
fn take_turn(config: &Config, signals: &mut Signals) -> Result<Option<Lease>> {
    let Some(length) = config.server.lease else { return Ok(Some(Lease::not_needed())) };
    let waiting = Waiting::start(config)?;
    let stop = || {
        service::tell(&[NotifyState::Watchdog]);
        signals.pending().any(|signal| signal != SIGHUP)
    };
    let dir = &config.server.state_dir;
    let (place, shown): (Box<dyn Place>, String) = match &config.server.lease_redis {
        Some(target) => {
            let mdts: Vec<&str> = config.mdts.iter().map(|mdt| mdt.name.as_str()).collect();
            (Box::new(InRedis::new(target.clone(), &mdts, length)), target.to_string())
        }
        None => {
            let shown = dir.display().to_string();
            (Box::new(Files::new(dir).with_context(|| format!("lease in {shown}"))?), shown)
        }
    };
    let lease = Lease::acquire(place, length, stop).with_context(|| format!("lease in {shown}"))?;
    waiting.stop();
    if let Some(lease) = &lease {
        // Nothing may be written or sent any more, whatever other threads are doing.
        lease.keep(|| std::process::exit(FENCED))?;
    }
    Ok(lease)
}

/// What a standby shows of itself.
struct Waiting {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<thread::JoinHandle<()>>,
}

impl Waiting {
    fn start(config: &Config) -> Result<Self> {
        service::tell_ready("standing by");
        let (stop, waker) = (Arc::new(AtomicBool::new(false)), Waker::new()?);
        let mut thread = None;
        if let Some(address) = config.server.http {
            let router = |path: &str| {
                let health = Health::standing_by();
                let code = if path == "/livez" { 200 } else { 503 };
                match path {
                    "/livez" | "/readyz" | "/healthz" => health.answer(code),
                    _ => Answer::text(503, "# standing by\n"),
                }
            };
            // Another lcapd on this machine may have the port; it shows more than we could.
            match Http::bind(address, Box::new(router), waker.clone(), Arc::clone(&stop)) {
                Ok(mut http) => thread = Some(thread::spawn(move || http.run())),
                Err(error) => warn!(%error, %address, "cannot bind http while standing by"),
            }
        }
        Ok(Self { stop, waker, thread })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

/// Reads the configuration again, as far as it may change while lcapd runs.
fn reload(args: &Args, daemon: &Daemon) -> Result<()> {
    let config = Config::load(&args.config)?;
    logging::set_level(args.log(&config))?;
    daemon.reload();
    daemon.reload_clients()?;
    daemon.reload_hsm(&config);
    info!(
        "read again: log level, clients, policies, and of [hsm] order, weights, limits, retries and grace times; the rest needs a restart"
    );
    Ok(())
}
