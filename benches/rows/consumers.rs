//! Many consumers, and consumers that come late.
#![forbid(unsafe_code)]

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use lcap_ffi::poll::wait_readable;
use lcap_tests::daemon::{Daemon, Setup};
use lcapclient::Control;

use super::{Bench, FIFO, FILE};
use crate::delivery::{Cost, broadcast, mdt_name, wait_read};
use crate::report::{Row, Series};

/// Clients in threads of ours that read live.
struct Followers {
    threads: Vec<JoinHandle<Result<()>>>,
    /// Those that have had a record.
    begun: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Followers {
    /// One for each filter, from that index on.
    fn start(daemon: &Daemon, from: u64, filters: &[Option<String>]) -> Result<Self> {
        let (begun, stop) = (Arc::default(), Arc::default());
        let mut followers = Self { threads: Vec::new(), begun, stop };
        for filter in filters {
            let builder = daemon.client(&mdt_name(0), "changelog").from(from).follow(true);
            let mut client = builder.filter(filter.as_deref()).connect()?;
            let (begun, stop) = (Arc::clone(&followers.begun), Arc::clone(&followers.stop));
            followers.threads.push(std::thread::spawn(move || {
                let mut had = false;
                while !stop.load(Ordering::Relaxed) {
                    let fd = client.fd()?.as_raw_fd();
                    wait_readable(&[fd], Some(Duration::from_millis(100)))?;
                    while client.recv_range(false).is_ok_and(|record| record.is_some()) {
                        if !std::mem::replace(&mut had, true) {
                            begun.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                Ok(())
            }));
        }
        Ok(followers)
    }

    /// Ends them: who looked for a daemon that is gone would be measured with what comes next.
    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(())
    }
}

fn read_index(control: &mut Control) -> Result<u64> {
    Ok(control.status()?.mdts.first().context("an MDT")?.read_index)
}

/// What one subscriber more costs a live stream. They share two cores with lcapd here, so the stream is slow.
pub(super) fn subscribers(bench: &mut Bench<'_>) -> Result<()> {
    const RATE: u64 = 10_000;
    const SECONDS: u64 = 3;
    let (mut own_points, mut all_points) = (Vec::new(), Vec::new());
    for n in [1_u32, 10, 100, 200] {
        let (mut own, mut all) = (Vec::new(), Vec::new());
        for _ in 0..bench.settings.runs {
            let daemon = broadcast(true, 1, &format!("sim:rate={RATE}"), FIFO).start();
            // One for all questions: to connect for each would be measured, too.
            let mut control = daemon.control();
            let from = read_index(&mut control)? + 1;
            let clients = Followers::start(&daemon, from, &vec![None; usize::try_from(n)?])?;
            let all_begun = || Ok(clients.begun.load(Ordering::Relaxed) == u64::from(n));
            wait_for("a subscriber", all_begun)?;
            let (before, cost) = (read_index(&mut control)?, Cost::begin(&daemon));
            wait_for("the stream", || Ok(read_index(&mut control)? >= before + RATE * SECONDS))?;
            let records = (read_index(&mut control)? - before) as f64;
            let (cpu, threads) = cost.end();
            clients.end()?;
            // libzmq's own threads are named ZMQbg.
            let ours = threads.iter().filter(|(name, _)| !name.starts_with("ZMQ"));
            own.push(ours.map(|(_, seconds)| seconds).sum::<f64>() / records * 1e6);
            all.push(cpu / records * 1e6 / f64::from(n));
        }
        let command = format!("sim:rate={RATE}, {n} Rust clients over tcp");
        let name = format!("growth: {n} subscribers, lcapd's own threads");
        let row = Row::new(&name, "s of cpu per million records", &own, &command);
        own_points.push((f64::from(n), row.value));
        bench.report.add(row);
        let name = format!("growth: {n} subscribers, with libzmq's threads, for each");
        let row = Row::new(&name, "s of cpu per million deliveries", &all, &command);
        all_points.push((f64::from(n), row.value));
        bench.report.add(row);
    }
    for (name, y, points) in [
        ("subscribers", "s of cpu of lcapd's own threads per million records", own_points),
        ("deliveries", "s of cpu of lcapd per million deliveries", all_points),
    ] {
        bench.report.add_series(Series { name: name.into(), x: "subscribers", y, points });
    }
    Ok(())
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done()? {
        ensure!(Instant::now() < deadline, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A hundred consumers that want something else each, or all the same.
pub(super) fn filters(bench: &mut Bench<'_>) -> Result<()> {
    const RATE: u64 = 100_000;
    const SECONDS: u64 = 3;
    for (what, n, differ) in [
        ("nobody filters", 0, false),
        ("100 equal filters", 100, false),
        ("100 filters", 100, true),
    ] {
        let samples = bench.repeat(|| {
            let daemon = broadcast(false, 1, &format!("sim:rate={RATE}"), FIFO).start();
            // What they look for is rare, so that their cost is that of the question.
            let filter = |at: u64| format!("uid = {} and name = \"none-{at}\"", 1000 + at);
            let filters: Vec<_> =
                (0..n).map(|at| Some(filter(if differ { at } else { 0 }))).collect();
            let clients = Followers::start(&daemon, 1, &filters)?;
            let mut control = daemon.control();
            // Those who began at the first record have caught up.
            std::thread::sleep(Duration::from_secs(1));
            let (before, cost) = (read_index(&mut control)?, Cost::begin(&daemon));
            wait_for("the stream", || Ok(read_index(&mut control)? >= before + RATE * SECONDS))?;
            let records = read_index(&mut control)? - before;
            let seconds = cost.end().0;
            clients.end()?;
            Ok(seconds / records as f64 * 1e6)
        })?;
        let name = format!("live at {RATE} records/s, {what}");
        let command = format!("sim:rate={RATE}, {n} Rust clients over ipc that get nothing");
        bench.report.add(Row::new(&name, "s of cpu per million records", &samples, &command));
    }
    Ok(())
}

/// One who comes when everything was read: out of memory, and past it from the source again.
pub(super) fn catch_up(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n;
    let source = format!("replay:{}", bench.file().display());
    for (what, limit) in [("memory", "1GiB"), ("the source", "16MiB")] {
        let rates = bench.repeat(|| {
            let setup = Setup::new().on_tcp().mdt(&mdt_name(0), &source);
            let setup = setup.server(&format!("memory_limit = \"{limit}\""));
            let daemon = setup.broadcast("changelog", FIFO).start();
            wait_read(&daemon, n)?;
            let received = bench.receive(&daemon, n)?;
            Ok(received.records / received.seconds)
        })?;
        let name = format!("catch-up from {what}");
        let command =
            format!("replay: of {FILE} in memory, memory_limit {limit}, client.c over tcp");
        bench.report.add(Row::new(&name, "records/s", &rates, &command));
    }
    Ok(())
}
