//! Many consumers, and consumers that come late.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lcap_tests::daemon::{Daemon, Setup};

use super::{Bench, FIFO, FILE};
use crate::delivery::{Cost, broadcast, mdt_name, wait_read};
use crate::report::{Row, Series};

/// Clients look so long for a daemon that is gone.
const GIVE_UP: Duration = Duration::from_secs(5);

/// A client in a thread of ours that reads live until its daemon is gone; `begun` counts those that have
/// had a record.
fn follower(
    daemon: &Daemon,
    from: u64,
    filter: Option<&str>,
    begun: &Arc<AtomicU64>,
) -> Result<JoinHandle<()>> {
    let builder = daemon.client(&mdt_name(0), "changelog").from(from).follow(true);
    let mut client = builder.filter(filter).timeout(GIVE_UP).connect()?;
    let begun = Arc::clone(begun);
    Ok(std::thread::spawn(move || {
        if let Ok(Some(_)) = client.recv() {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        while let Ok(Some(_)) = client.recv() {}
    }))
}

/// Waits for the clients, too: those that still look for their daemon would be measured with what comes next.
fn end(daemon: Daemon, clients: Vec<JoinHandle<()>>) {
    drop(daemon);
    for client in clients {
        let _ = client.join(); // a client that panicked has said so
    }
}

fn read_index(daemon: &Daemon) -> Result<u64> {
    Ok(daemon.control().status()?.mdts.first().context("an MDT")?.read_index)
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
            let begun = Arc::default();
            let from = read_index(&daemon)? + 1;
            let start = |_| follower(&daemon, from, None, &begun);
            let clients: Vec<_> = (0..n).map(start).collect::<Result<_>>()?;
            wait_for("a subscriber", || Ok(begun.load(Ordering::Relaxed) == u64::from(n)))?;
            let (before, cost) = (read_index(&daemon)?, Cost::begin(&daemon));
            wait_for("the stream", || Ok(read_index(&daemon)? >= before + RATE * SECONDS))?;
            let records = (read_index(&daemon)? - before) as f64;
            let (cpu, threads) = cost.end();
            end(daemon, clients);
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
            let had = Arc::default();
            // What they look for is rare, so that their cost is that of the question.
            let filter = |at: u64| format!("uid = {} and name = \"none-{at}\"", 1000 + at);
            let clients: Vec<_> = (0..n)
                .map(|at| follower(&daemon, 1, Some(&filter(if differ { at } else { 0 })), &had))
                .collect::<Result<_>>()?;
            // Those who began at the first record have caught up.
            std::thread::sleep(Duration::from_secs(1));
            let (before, cost) = (read_index(&daemon)?, Cost::begin(&daemon));
            wait_for("the stream", || Ok(read_index(&daemon)? >= before + RATE * SECONDS))?;
            let records = read_index(&daemon)? - before;
            let seconds = cost.end().0;
            end(daemon, clients);
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
