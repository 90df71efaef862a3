//! `lcap bench`: what one MDT, one lcapd and one reader do on this machine. For numbers that can be
//! compared between versions there is `make bench`.
//!
//! An lcapd of its own with a simulated MDT, twice: first with all records there at once, to see how
//! many go through in a second; then with records that happen now and then, to see how long each takes.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lcap_wire::control::From;
use lcapclient::{Builder, Client, Control};
use serde_json::json;

use crate::demo::stage::{self, Ending, Process};
use crate::screen::grouped;

const MDT: &str = "lustre-MDT0000";
/// How long lcapd may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Ticks per second in /proc, on every machine that Linux runs on with Rust.
const USER_HZ: u64 = 100;

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Records that are there at once.
    #[arg(long, default_value_t = 2_000_000,
          value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    records: u64,
    /// Records per second, while it is measured how long one takes.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seconds that this is measured for.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let through = throughput(args.records)?;
    let mut delays = delays(args.rate, Duration::from_secs(args.seconds))?;
    delays.sort_unstable();
    let delay = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    if args.json {
        let report = json!({
            "records": args.records,
            "bytes": through.bytes,
            "seconds": through.elapsed.as_secs_f64(),
            "lcapd_cpu_seconds": through.lcapd_cpu.as_secs_f64(),
            "reader_cpu_seconds": through.reader_cpu.as_secs_f64(),
            "rate": args.rate,
            "delay_microseconds": { "p50": delay(50), "p99": delay(99), "max": delay(100) },
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let per_second = per(args.records, through.elapsed);
    let mib = per(through.bytes, through.elapsed) >> 20;
    println!(
        "throughput  {} records in {:.2} s: {} records/s, {mib} MiB/s",
        grouped(args.records),
        through.elapsed.as_secs_f64(),
        grouped(per_second)
    );
    let cpu = |time: Duration| time.as_nanos() / u128::from(args.records);
    println!(
        "processor   lcapd {} ns a record (the simulated MDT is part of it), reader {} ns",
        cpu(through.lcapd_cpu),
        cpu(through.reader_cpu)
    );
    println!(
        "delay       at {} records/s, from happening to the reader: median {} us, 99% {} us, greatest {} us",
        grouped(args.rate),
        grouped(delay(50)),
        grouped(delay(99)),
        grouped(delay(100))
    );
    Ok(())
}

fn per(n: u64, time: Duration) -> u64 {
    let ns = time.as_nanos().max(1);
    u64::try_from(u128::from(n) * 1_000_000_000 / ns).unwrap_or(u64::MAX)
}

/// An lcapd with one MDT and one stream, and a client that is its registered reader.
struct Bench {
    // In this order: the process ends before its directory goes.
    lcapd: Process,
    control: Control,
    uri: String,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn start(source: &str) -> Result<Self> {
        let dir = stage::directory()?;
        let at = dir.path().display();
        let uri = format!("ipc://{at}/control");
        let config = format!(
            "[server]\ncontrol = \"{uri}\"\nstate_dir = \"{at}/state\"\nmemory_limit = \"256MiB\"\n\
             [[mdt]]\nname = \"{MDT}\"\nsource = \"{source}\"\n\
             [[stream]]\nname = \"changelog\"\ndelivery = \"broadcast\"\n\
             publish = \"ipc://{at}/changelog\"\n"
        );
        let file = dir.path().join("lcapd.toml");
        fs::write(&file, config)?;
        let program = stage::program("lcapd")?;
        let mut lcapd = Process::start("lcapd", dir.path(), &program, Ending::Term, |command| {
            command.arg("--config").arg(&file);
        })?;
        let mut control = Control::new(&uri, None, Duration::from_millis(200))?;
        let since = Instant::now();
        while control.hello(Some(MDT), None).is_err() {
            lcapd.check()?;
            if since.elapsed() > ANSWER {
                bail!("lcapd is silent{}", lcapd.last_words());
            }
        }
        control.register("changelog", "bench", Vec::new(), From::Oldest)?;
        Ok(Self { lcapd, control, uri, _dir: dir })
    }

    fn client(&self) -> Result<Client> {
        let builder = Builder::without_env(MDT.parse()?).servers(&self.uri);
        Ok(builder.reader(Some("bench")).follow(true).connect()?)
    }

    fn cpu(&self) -> Result<Duration> {
        cpu(Path::new(&format!("/proc/{}/stat", self.lcapd.id())))
    }

    fn stop(self) -> Result<()> {
        drop(self.control);
        self.lcapd.stop()
    }
}

struct Throughput {
    elapsed: Duration,
    bytes: u64,
    lcapd_cpu: Duration,
    reader_cpu: Duration,
}

fn throughput(records: u64) -> Result<Throughput> {
    let start = Instant::now();
    let bench = Bench::start(&format!("sim:records={records},seed=1"))?;
    let own = Path::new("/proc/self/stat");
    let before = cpu(own)?;
    let mut client = bench.client()?;
    let mut bytes = 0;
    for _ in 0..records {
        let record = client.recv()?.context("the records ended")?;
        bytes += record.as_bytes().len() as u64;
        let index = record.index();
        client.clear(index)?;
    }
    // lcapd begins to read when it starts, so that counts, too.
    let elapsed = start.elapsed();
    let reader_cpu = cpu(own)?.saturating_sub(before);
    let lcapd_cpu = bench.cpu()?;
    drop(client);
    bench.stop()?;
    Ok(Throughput { elapsed, bytes, lcapd_cpu, reader_cpu })
}

/// Microseconds from the moment that a record bears to its receipt.
fn delays(rate: u64, time: Duration) -> Result<Vec<u64>> {
    let bench = Bench::start(&format!("sim:rate={rate},seed=2"))?;
    let mut client = bench.client()?;
    let mut delays = Vec::new();
    let start = Instant::now();
    // What happened before the client was there waited for it.
    let connected = SystemTime::now().duration_since(UNIX_EPOCH)?;
    while start.elapsed() < time || delays.is_empty() {
        let record = client.recv()?.context("the records ended")?;
        let happened = Duration::new(record.seconds(), record.nanoseconds());
        let index = record.index();
        if happened > connected {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let delay = now.saturating_sub(happened).as_micros();
            delays.push(u64::try_from(delay).unwrap_or(u64::MAX));
        }
        client.clear(index)?;
    }
    drop(client);
    bench.stop()?;
    Ok(delays)
}

/// Processor time of a process, by its `stat` file.
fn cpu(stat: &Path) -> Result<Duration> {
    let text = fs::read_to_string(stat).with_context(|| format!("{}", stat.display()))?;
    // The program's name, in parentheses, may hold anything; what follows it does not.
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let ticks = ticks(11).zip(ticks(12)).context("/proc has another form than is known")?;
    Ok(Duration::from_millis((ticks.0 + ticks.1) * 1000 / USER_HZ))
}
