//! What is measured, one function a section of the table.
#![forbid(unsafe_code)]

mod consumers;
mod costs;
mod hsm;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lcap_tests::daemon::{Daemon, Setup};

use crate::delivery::{CClient, Cost, Received, broadcast, mdt_name, wait_read};
use crate::report::{Report, Row, Series};
use crate::{latency, memory, wire_limit};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Runs of each measurement.
    pub(crate) runs: usize,
    /// Records of a run.
    pub(crate) n: u64,
}

/// What the sections share.
struct Bench<'a> {
    settings: &'a Settings,
    report: &'a mut Report,
    client: CClient,
    /// In memory if the machine has a place for that.
    dir: &'a Path,
    /// Bytes of `settings.n` records.
    bytes: f64,
}

/// A section: its name, and what measures it.
type Section = (&'static str, fn(&mut Bench<'_>) -> Result<()>);

const SECTIONS: [Section; 19] = [
    ("memory", references),
    ("device", device),
    ("end to end", end_to_end),
    ("curve", curve),
    ("policies", policies),
    ("fan-out", fan_out),
    ("subscribers", consumers::subscribers),
    ("catch-up", consumers::catch_up),
    ("filters", consumers::filters),
    ("queue", queue),
    ("readers", readers),
    ("cpu", cpu_live),
    ("latency", latencies),
    ("idle", idle),
    ("growth", growth),
    ("outstanding", costs::outstanding),
    ("system calls", costs::system_calls),
    ("hsm poll", hsm::poll),
    ("redis sink", hsm::sink),
];

/// Measures everything whose section's name contains `only`.
///
/// # Errors
/// If something cannot be measured at all.
pub(crate) fn measure(settings: &Settings, only: &str, report: &mut Report) -> Result<()> {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("lcap-bench-").tempdir_in(base)?;
    let records = memory::records(settings.n);
    let bytes = records.len() as f64;
    fs::write(dir.path().join(FILE), &records)?;
    drop(records);
    let client = CClient::build(dir.path())?;
    let mut bench = Bench { settings, report, client, dir: dir.path(), bytes };
    for (name, section) in SECTIONS {
        if name.contains(only) {
            section(&mut bench).with_context(|| format!("section `{name}`"))?;
        }
    }
    Ok(())
}

/// Bare packed records.
const FILE: &str = "records.bin";

impl Bench<'_> {
    /// All records, in a file.
    fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn repeat(&self, mut one: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
        (0..self.settings.runs).map(|_| one()).collect()
    }

    /// One client receives everything that the daemon's MDT has; the records were all read before, so that
    /// only their delivery is measured.
    fn receive(&self, daemon: &Daemon, n: u64) -> Result<Received> {
        self.client.start(daemon, &mdt_name(0), "changelog", n)?.finish()
    }

    /// Records per second over a bare libzmq pair with the same number of bytes.
    fn wire(&self, endpoint: &str, bytes: wire_limit::Bytes) -> Result<f64> {
        let bytes_per_record = self.bytes / self.settings.n as f64;
        let total = usize::try_from(self.settings.n)? * 170;
        Ok(wire_limit::measure(endpoint, MESSAGE_BYTES, total, bytes)? / bytes_per_record)
    }
}

/// Of the wire limit: as large as lcapd's are.
const MESSAGE_BYTES: usize = 1 << 20;

fn references(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    let bytes = memory::records(n);
    let walk = bench.repeat(|| memory::walk(&bytes, n))?;
    bench.report.add(Row::new("memory limit: records walked", "records/s", &walk, "in process"));
    let one = bench.repeat(|| memory::one_by_one(&bench.file(), n))?;
    let name = "liblustreapi style: 4 KiB reads, one copy each";
    bench.report.add(Row::new(name, "records/s", &one, "in process"));
    Ok(())
}

fn device(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    let records = memory::records(n);
    let samples = bench.repeat(|| memory::device(&bench.file(), &records, n))?;
    let row = Row::new("device in memory → batches", "records/s", &samples, "in process");
    bench.report.add(row.at_least(20e6));
    Ok(())
}

/// Everything that one MDT has, to one C client.
fn end_to_end(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    for (transport, tcp) in [("tcp", true), ("ipc", false)] {
        let endpoint = if tcp {
            "tcp://127.0.0.1:*".to_owned()
        } else {
            format!("ipc://{}/wire", bench.dir.display())
        };
        let source = format!("replay:{}", bench.file().display());
        let (mut rates, mut costs, mut client) = (vec![], vec![], vec![]);
        let (mut whole, mut stages) = (vec![], vec![]);
        let (mut wire, mut hot) = (vec![], vec![]);
        for _ in 0..bench.settings.runs {
            // In turn, so that what else the machine does meets all of them.
            wire.push(bench.wire(&endpoint, wire_limit::Bytes::Different)?);
            hot.push(bench.wire(&endpoint, wire_limit::Bytes::Same)?);
            let setup = Setup::new();
            let setup = if tcp { setup.on_tcp() } else { setup };
            let setup = setup.mdt(&mdt_name(0), &source).broadcast("changelog", FIFO);
            let daemon = setup.server("memory_limit = \"1GiB\"").start();
            wait_read(&daemon, n)?;
            let cost = Cost::begin(&daemon);
            let received = bench.receive(&daemon, n)?;
            let (cpu, threads) = cost.end();
            rates.push(received.records / received.seconds);
            costs.push(cpu / received.records * 1e6);
            client.push(received.thread_cpu / received.records * 1e9);
            whole.push(received.process_cpu / received.records * 1e6);
            stages.push(threads);
        }
        let command = format!("libzmq alone, messages of {MESSAGE_BYTES} bytes");
        let name = format!("wire limit, {transport}");
        let wire = Row::new(&name, "records/s", &wire, &command);
        let limit = wire.value;
        bench.report.add(wire);
        let name = format!("  with one message out of the cache, {transport}");
        bench.report.add(Row::new(&name, "records/s", &hot, &command));
        let command =
            format!("lcapd with fifo on replay: of a file in memory, client.c over {transport}");
        let name = format!("end to end, 1 MDT, {transport}");
        let row = Row::new(&name, "records/s", &rates, &command).against(limit);
        bench.report.add(if tcp { row.at_least_ratio(0.6) } else { row });
        let name = format!("  cpu of lcapd, {transport}");
        bench.report.add(Row::new(&name, "s per million records", &costs, &command).at_most(0.25));
        let name = format!("  recv + free in the client, {transport}");
        bench.report.add(Row::new(&name, "ns per record", &client, &command).at_most(40.0));
        let name = format!("  cpu of the client's process, {transport}");
        bench.report.add(Row::new(&name, "s per million records", &whole, &command));
        for (thread, seconds) in stages.pop().into_iter().flatten() {
            let cost = seconds / n as f64 * 1e6;
            if cost > 0.005 {
                let name = format!("  cpu of threads named {thread}, {transport}");
                bench.report.add(Row::new(&name, "s per million records", &[cost], &command));
            }
        }
    }
    let per_mdt = n / 8;
    let source = format!("sim:records={per_mdt}");
    let rates = bench.repeat(|| {
        let daemon = broadcast(true, 8, &source, FIFO).start();
        wait_read(&daemon, per_mdt)?;
        let clients: Vec<_> = (0..8)
            .map(|at| bench.client.start(&daemon, &mdt_name(at), "changelog", per_mdt))
            .collect::<Result<_>>()?;
        let received: Vec<Received> =
            clients.into_iter().map(crate::delivery::Running::finish).collect::<Result<_>>()?;
        let slowest = received.iter().map(|r| r.seconds).fold(0.0, f64::max);
        Ok(received.iter().map(|r| r.records).sum::<f64>() / slowest)
    })?;
    let command = "lcapd with 8 times sim:, 8 times client.c over tcp";
    bench.report.add(Row::new("end to end, 8 MDTs, tcp", "records/s", &rates, command));
    Ok(())
}

/// As [`end_to_end`], with every byte encrypted and signed.
fn curve(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    let source = format!("replay:{}", bench.file().display());
    let (mut rates, mut costs) = (vec![], vec![]);
    for _ in 0..bench.settings.runs {
        let (setup, secured) = Setup::new().on_tcp().secured();
        let setup = setup.mdt(&mdt_name(0), &source).broadcast("changelog", FIFO);
        let daemon = setup.server("memory_limit = \"1GiB\"").start();
        wait_read(&daemon, n)?;
        let cost = Cost::begin(&daemon);
        let key_file = secured.key_file("admin");
        let keys = [
            ("LCAP_SERVER_KEY", secured.server_key().as_ref()),
            ("LCAP_CLIENT_KEY_FILE", key_file.as_os_str()),
        ];
        let client = bench.client.start_with(&daemon, &mdt_name(0), "changelog", n, &keys)?;
        let received = client.finish()?;
        rates.push(received.records / received.seconds);
        costs.push(cost.end().0 / received.records * 1e6);
    }
    let command = "lcapd with keys and fifo on replay: of a file in memory, client.c over tcp";
    let row = Row::new("end to end with CURVE, 1 MDT, tcp", "records/s", &rates, command);
    bench.report.add(row.at_least(1e6));
    let row = Row::new("  cpu of lcapd", "s per million records", &costs, command);
    bench.report.add(row);
    Ok(())
}

const FIFO: &str = "policies = [ { module = \"fifo\" } ]";

/// What each module costs on the way.
fn policies(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    let chains = [
        ("none", ""),
        ("fifo", FIFO),
        ("filter", "policies = [ { module = \"filter\", keep = \"uid >= 0\" } ]"),
        ("window", "policies = [ { module = \"window\", count = 1000 } ]"),
        ("group", "policies = [ { module = \"group\", by = \"tfid\" } ]"),
        ("sample", "policies = [ { module = \"sample\", one_in = 1 } ]"),
        ("compact", "policies = [ { module = \"compact\", window = \"500ms\" } ]"),
        (
            "filter, compact, group",
            "policies = [ { module = \"filter\", keep = \"uid >= 0\" }, \
             { module = \"compact\", window = \"500ms\" }, { module = \"group\", by = \"tfid\" } ]",
        ),
    ];
    for (name, policies) in chains {
        let samples = bench.repeat(|| {
            let setup = broadcast(false, 1, &format!("sim:records={n}"), policies);
            let daemon = setup.start();
            let cost = Cost::begin(&daemon);
            wait_settled(&daemon, n)?;
            Ok(cost.end().0 / n as f64 * 1e6)
        })?;
        let command = format!("lcapd on sim:records={n}, nobody subscribed, {policies}");
        let name = format!("sim: → policies: {name}");
        bench.report.add(Row::new(&name, "s of cpu per million records", &samples, &command));
    }
    Ok(())
}

/// Waits until the live stream has sent or dropped everything.
fn wait_settled(daemon: &Daemon, index: u64) -> Result<()> {
    let mut control = daemon.control();
    loop {
        let status = control.status()?;
        let streams = status.streams.iter().flat_map(|stream| stream.mdts.values());
        if streams.map(|mdt| mdt.low).all(|low| low >= index) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One stream to eight subscribers.
fn fan_out(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n / 3;
    let rates = bench.repeat(|| {
        let daemon = broadcast(true, 1, &format!("sim:records={n}"), FIFO).start();
        wait_read(&daemon, n)?;
        let start = |_| bench.client.start(&daemon, &mdt_name(0), "changelog", n);
        let clients: Vec<_> = (0..8).map(start).collect::<Result<_>>()?;
        let received: Vec<Received> =
            clients.into_iter().map(crate::delivery::Running::finish).collect::<Result<_>>()?;
        let slowest = received.iter().map(|r| r.seconds).fold(0.0, f64::max);
        Ok(received.iter().map(|r| r.records).sum::<f64>() / slowest)
    })?;
    let command = "sim:, everything read before, 8 times client.c over tcp";
    let row = Row::new("fan-out to 8, from the past", "record deliveries/s", &rates, command);
    bench.report.add(row.at_least(5e6));
    Ok(())
}

/// One queue, its members sharing the work.
fn queue(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n / 3;
    for (members, lanes) in [(1_u32, 1), (2, 1), (8, 1), (2, 8)] {
        let rates = bench.repeat(|| {
            let setup = Setup::new().on_tcp().mdt(&mdt_name(0), &format!("sim:records={n}"));
            let daemon = setup.queue("changelog", &format!("lanes = {lanes}")).start();
            // How much each gets is the queue's business; all of it is acknowledged.
            let started = std::time::Instant::now();
            let clients: Vec<_> =
                (0..members).map(|_| member(&daemon)).collect::<Result<Vec<_>>>()?;
            wait_acknowledged(&daemon, n)?;
            let seconds = started.elapsed().as_secs_f64();
            for client in clients {
                client.join().map_err(|_| anyhow::anyhow!("a member panicked"))??;
            }
            Ok(n as f64 / seconds)
        })?;
        let name = format!("queue, {members} members, {lanes} lanes, acknowledged");
        let command = format!("sim:records={n}, members in threads over tcp");
        bench.report.add(Row::new(&name, "records/s", &rates, &command));
    }
    Ok(())
}

/// A member that clears everything, until there is nothing more.
fn member(daemon: &Daemon) -> Result<std::thread::JoinHandle<Result<()>>> {
    let mut client = daemon.client(&mdt_name(0), "changelog").connect()?;
    Ok(std::thread::spawn(move || {
        let mut n = 0_u64;
        while let Some(record) = client.recv()? {
            let index = record.index();
            n += 1;
            if n.is_multiple_of(1000) {
                client.clear(index)?;
            }
        }
        client.clear(lcap_ffi::RecordIndex::new(u64::MAX >> 1))?;
        client.close();
        Ok(())
    }))
}

fn wait_acknowledged(daemon: &Daemon, index: u64) -> Result<()> {
    let mut control = daemon.control();
    loop {
        let status = control.status()?;
        let mut streams = status.streams.iter().flat_map(|stream| stream.mdts.values());
        if streams.all(|mdt| mdt.watermark >= index) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What registered readers that are far behind cost the stream.
fn readers(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n / 3;
    let mut points = Vec::new();
    for count in [1_u32, 100, 1000] {
        let samples = bench.repeat(|| {
            let daemon = broadcast(false, 1, &format!("sim:rate=500000,records={n}"), FIFO).start();
            let mut control = daemon.control();
            for at in 0..count {
                control.register(
                    "changelog",
                    &format!("r{at}"),
                    Vec::new(),
                    lcap_wire::control::From::Oldest,
                )?;
            }
            let cost = Cost::begin(&daemon);
            wait_settled(&daemon, n)?;
            Ok(cost.end().0 / n as f64 * 1e6)
        })?;
        let name = format!("{count} registered readers, nobody connected");
        let command = format!("sim:rate=500000,records={n}");
        let row = Row::new(&name, "s of cpu per million records", &samples, &command);
        points.push((f64::from(count), row.value));
        bench.report.add(row);
    }
    bench.report.add_series(Series {
        name: "readers".into(),
        x: "registered readers",
        y: "s of cpu per million records",
        points,
    });
    Ok(())
}

/// What a live stream costs, record by record.
fn cpu_live(bench: &mut Bench<'_>) -> Result<()> {
    for rate in [10_000_u64, 100_000, 1_000_000] {
        let n = (rate * 3).min(bench.settings.n);
        let mut samples = Vec::new();
        for _ in 0..bench.settings.runs {
            // Records out of a file: `sim:` would count the making of records, too.
            let source = format!("replay:{}?rate={rate}", bench.file().display());
            let daemon = broadcast(true, 1, &source, FIFO).start();
            let client = bench.client.start(&daemon, &mdt_name(0), "changelog", n)?;
            let cost = Cost::begin(&daemon);
            client.finish()?;
            samples.push(cost.end().0 / n as f64 * 1e6);
        }
        let name = format!("cpu of lcapd, live at {rate} records/s");
        let command = format!("replay:{FILE}?rate={rate}, fifo, one client.c over tcp");
        let row = Row::new(&name, "s per million records", &samples, &command);
        bench.report.add(if rate == 1_000_000 { row.at_most(0.25) } else { row });
    }
    Ok(())
}

fn latencies(bench: &mut Bench<'_>) -> Result<()> {
    let seconds = 5_u32;
    for (rate, bound) in [(1_000_u32, Some(300.0)), (10_000, None), (100_000, Some(1000.0))] {
        let (mut own, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..bench.settings.runs {
            if rate < 100_000 {
                let n = usize::try_from(rate * seconds)?;
                bare.push(latency::Latencies::of(wire_limit::latencies(rate, n)?));
            }
            let daemon = broadcast(true, 1, &format!("sim:rate={rate}"), FIFO).start();
            let duration = Duration::from_secs(seconds.into());
            own.push(latency::measure(&daemon, &mdt_name(0), duration)?);
        }
        for (what, p) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let of = |found: &[latency::Latencies]| {
                found.iter().map(|found| found.quantile(p) * 1e6).collect::<Vec<_>>()
            };
            let command = format!("sim:rate={rate}, fifo, one Rust client over tcp, {seconds} s");
            let name = format!("latency at {rate} records/s, {what}");
            let mut row = Row::new(&name, "µs", &of(&own), &command);
            if !bare.is_empty() {
                let command = format!("libzmq alone over tcp, {rate} messages/s, {seconds} s");
                let name = format!("  libzmq alone at {rate} messages/s, {what}");
                let reference = Row::new(&name, "µs", &of(&bare), &command);
                row = row.against(reference.value);
                bench.report.add(reference);
            }
            bench.report.add(match bound {
                Some(bound) if what == "p99" => row.at_most(bound),
                _ => row,
            });
        }
    }
    Ok(())
}

fn idle(bench: &mut Bench<'_>) -> Result<()> {
    let (mut cpu, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..bench.settings.runs {
        let daemon = broadcast(true, 64, "sim:records=1000", FIFO).start();
        wait_read(&daemon, 1000)?;
        std::thread::sleep(Duration::from_secs(2));
        let cost = Cost::begin(&daemon);
        std::thread::sleep(Duration::from_secs(5));
        cpu.push(cost.end().0 / 5.0 * 100.0);
        memory.push(daemon.memory().0 as f64 / f64::from(1 << 20));
    }
    let command = "64 MDTs at their end, for 5 s";
    bench.report.add(Row::new("idle, 64 MDTs", "% of a core", &cpu, command).at_most(1.0));
    bench.report.add(Row::new("  resident memory", "MiB", &memory, command).at_most(64.0));
    Ok(())
}

/// The cost of a record must not depend on how much else there is.
fn growth(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    let mut points = Vec::new();
    for n_mdts in [1_u32, 4, 16, 64] {
        let each = n / u64::from(n_mdts);
        let samples = bench.repeat(|| {
            let source = format!("sim:records={each}");
            let setup = broadcast(false, usize::try_from(n_mdts)?, &source, FIFO);
            let daemon = setup.start();
            let cost = Cost::begin(&daemon);
            wait_settled(&daemon, each)?;
            Ok(cost.end().0 / n as f64 * 1e6)
        })?;
        let name = format!("growth: {n_mdts} MDTs, flat out, nobody subscribed");
        let command = format!("{n_mdts} times sim:records={each}, fifo");
        let row = Row::new(&name, "s of cpu per million records", &samples, &command);
        points.push((f64::from(n_mdts), row.value));
        bench.report.add(row);
    }
    bench.report.add_series(Series {
        name: "mdts".into(),
        x: "MDTs",
        y: "s of cpu per million records",
        points,
    });
    Ok(())
}
