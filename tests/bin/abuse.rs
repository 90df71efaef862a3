//! Attacks an lcapd of its own for MINUTES, and says every minute what memory and descriptors it has.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use clap::Parser;
use lcap_tests::abuse::{Abuse, Targets};
use lcap_tests::daemon::Setup;
use lcap_tests::impostors;
use lcap_wire::control::From;

/// Floods and fuzzes the open ports of an lcapd.
#[derive(Parser)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Decides what is sent.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// With keys: wrong ones, handshakes that were recorded, and readers of others, too.
    #[arg(long)]
    keys: bool,
}

fn main() {
    let args = Args::parse();
    let setup = Setup::new().on_tcp().server("http = \"127.0.0.1:0\"\nmemory_limit = \"64MiB\"");
    let setup = setup.mdt("lustre-MDT0000", "sim:rate=2000");
    let setup = setup.broadcast("changelog", "").queue("work", "");
    let (daemon, secured) = if args.keys {
        let (setup, secured) = setup.secured();
        secured.allow("own", "read = [\"changelog\"]\nreaders = [\"own\"]");
        (setup.start(), Some(secured))
    } else {
        (setup.start(), None)
    };
    daemon
        .control()
        .register("changelog", "audit", Vec::new(), From::Oldest)
        .expect("a reader, so that there is something to steal");
    let host = |endpoint: &str| endpoint.trim_start_matches("tcp://").to_owned();
    let streams = ["changelog", "work"].map(|stream| host(daemon.setup().publish_endpoint(stream)));
    let control = host(daemon.setup().control_endpoint());
    let targets = Targets { control, streams: streams.to_vec(), http: daemon.http_address() };
    let mut abuse = Abuse::start(&targets, args.seed);
    let streams = ["changelog", "work"];
    let let_in = secured
        .as_ref()
        .map(|secured| impostors::attack(&mut abuse, &daemon, secured, &streams, args.seed));
    let begun = Instant::now();
    let report = |n_blows: u64| {
        let (peak, now) = daemon.memory();
        let path = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
        let n_fds = std::fs::read_dir(path).map_or(0, Iterator::count);
        println!(
            "{:>5} s  {n_blows:>8} blows  {:>5} MiB (at most {})  {n_fds:>5} descriptors",
            begun.elapsed().as_secs(),
            now >> 20,
            peak >> 20
        );
    };
    while begun.elapsed() < Duration::from_secs(args.minutes * 60) {
        std::thread::sleep(Duration::from_secs(60).min(Duration::from_secs(args.minutes * 6)));
        report(abuse.n_blows());
    }
    let n_blows = abuse.stop();
    std::thread::sleep(Duration::from_secs(10));
    report(n_blows);
    for reason in ["denied", "handshake", "limit", "malformed", "unknown_key"] {
        let sample = format!("lcap_requests_refused_total{{reason=\"{reason}\"}}");
        println!("{reason}: {} refused", daemon.figure(&sample).unwrap_or(0.0));
    }
    // Without keys everybody may do everything.
    if let Some(let_in) = let_in {
        let readers = daemon.control().readers(None).expect("an answer");
        assert_eq!(readers.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["audit"]);
        assert_eq!(readers[0].watermark["lustre-MDT0000"], 0, "somebody acknowledged in its name");
        assert_eq!(let_in.n(), 0, "some were let in");
    }
}
