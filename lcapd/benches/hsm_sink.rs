//! How fast a first load of HSM actions goes into Redis, and how long other clients wait meanwhile.
//!
//! `cargo bench -p lcapd --bench hsm_sink [-- ACTIONS]`: starts lcapd and a redis-server of its own,
//! lets lcapd find ACTIONS (350,000) live ones, and times from the first entry to the last, while
//! another client sends a PING every millisecond. `redis-benchmark` gives the machine's measure.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, missing_docs)] // a program for developers: to panic is to fail

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lcapd::sink::target::{Credentials, DEFAULT_TIMEOUT, Link, Target, as_number};

const KEY: &[u8] = b"hsm:actions:elm-MDT0000";

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Process {
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

fn connect(url: &str) -> Link {
    loop {
        let target = Target::new(url, &Credentials::default(), DEFAULT_TIMEOUT).unwrap();
        if let Ok(link) = target.connect() {
            return link;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn length(link: &mut Link) -> u64 {
    link.call(&[b"XLEN", KEY]).ok().as_ref().and_then(as_number).unwrap_or(0)
}

/// The longest answer to a PING until told to stop.
fn longest_ping(url: &str, stop: &AtomicBool) -> Duration {
    let (mut link, mut longest) = (connect(url), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        link.call(&[b"PING"]).unwrap();
        longest = longest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    longest
}

fn measured<T>(url: &str, body: impl FnOnce() -> T) -> (T, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let pings = {
        let (url, stop) = (url.to_owned(), Arc::clone(&stop));
        thread::spawn(move || longest_ping(&url, &stop))
    };
    let result = body();
    stop.store(true, Ordering::Relaxed);
    (result, pings.join().unwrap())
}

fn list(n: u64) -> String {
    let mut text = String::new();
    for rec in 1..=n {
        let fid = format!("0x200000402:{rec:#x}:0x0");
        let _ = writeln!(
            text,
            "lrh=[type=10680000 len=144 idx=1/{rec}] fid=[{fid}] dfid=[{fid}] \
             compound/cookie=0x0/{:#x} action=ARCHIVE archive#=1 flags=0x0 \
             extent=0x0-0xffffffffffffffff gid=0x0 datalen=8 status=WAITING data=[7461673D67]",
            rec + 0x6b02_3300
        );
    }
    text
}

fn benchmark(socket: &Path) -> String {
    let payload = "x".repeat(465);
    let output = Command::new("redis-benchmark")
        .arg("-s")
        .arg(socket)
        .args(["-c", "1", "-P", "500", "-n", "350000", "-q", "XADD", "bench", "*", "data"])
        .arg(payload)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
    let last = text.lines().rfind(|line| line.contains("requests per second"));
    let rate = last.and_then(|line| line.split(": ").last()).unwrap_or("no answer");
    rate.split(',').next().unwrap_or_default().to_owned()
}

fn main() {
    let n = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(350_000);
    let dir = tempfile::tempdir().unwrap();
    let (socket, lists) = (dir.path().join("redis.sock"), dir.path().join("elm-MDT0000/hsm"));
    std::fs::create_dir_all(&lists).unwrap();
    std::fs::write(lists.join("actions"), list(n)).unwrap();
    let _redis = start(
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket),
    );
    let url = format!("unix://{}?db=1", socket.display());
    drop(connect(&url));
    let (rate, ping) = measured(&url, || benchmark(&socket));
    println!("redis-benchmark, one connection, 500 XADDs at once: {rate}; longest PING {ping:.1?}");

    let config = dir.path().join("lcapd.toml");
    let at = dir.path().display();
    let text = format!(
        "[server]\ncontrol = \"ipc://{at}/control\"\nstate_dir = \"{at}/state\"\n\
         [[mdt]]\nname = \"elm-MDT0000\"\nsource = \"hsm-actions:\"\n\
         hsm_actions = \"{at}/*/hsm/actions\"\n\
         [[stream]]\nname = \"hsm\"\nkind = \"hsm\"\ndelivery = \"broadcast\"\n\
         publish = \"ipc://{at}/hsm\"\n\
         [[sink]]\nstream = \"hsm\"\nredis = \"{url}\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut link = connect(&url);
    let (seconds, ping) = measured(&url, || {
        let _lcapd = start(
            Command::new(env!("CARGO_BIN_EXE_lcapd")).arg("--log=warn").arg("-c").arg(&config),
        );
        while length(&mut link) == 0 {
            thread::sleep(Duration::from_micros(200));
        }
        let began = Instant::now();
        let first = length(&mut link);
        while length(&mut link) < n {
            thread::sleep(Duration::from_millis(1));
        }
        let seconds = began.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // for people
        let rate = (n - first) as f64 / seconds;
        println!("lcapd, {n} actions: {seconds:.2} s from the first to the last, {rate:.0}/s");
        seconds
    });
    println!("longest PING of another client in these {seconds:.2} s: {ping:.1?}");
}
