//! What must not be paid per record: system calls, and what lies behind.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use lcap_wire::control::From;

use super::{Bench, FIFO, wait_settled};
use crate::delivery::{Cost, broadcast, mdt_name};
use crate::report::{Row, Series};

/// System calls of lcapd while it reads and publishes, as strace counts them.
pub(super) fn system_calls(bench: &mut Bench<'_>) -> Result<()> {
    let n = bench.settings.n / 3;
    for (what, source, bound) in [
        ("flat out", format!("replay:{}", bench.file().display()), Some(10_000.0)),
        ("live at 100000 records/s", format!("sim:rate=100000,records={n}"), None),
    ] {
        let samples = bench.repeat(|| {
            let daemon = broadcast(true, 1, &source, FIFO).start();
            let pid = daemon.pid().as_raw_nonzero().get().to_string();
            let mut strace = Command::new("strace")
                .args(["-c", "-f", "-p", &pid])
                .stderr(Stdio::piped())
                .spawn()
                .context("strace is needed")?;
            let mut said = BufReader::new(strace.stderr.take().context("its stderr")?);
            let mut line = String::new();
            said.read_line(&mut line)?; // "attached": it counts from now on
            ensure!(line.contains("attached"), "strace says {line:?}");
            bench.client.start(&daemon, &mdt_name(0), "changelog", n)?.finish()?;
            drop(daemon); // ends strace, too
            let total = said.lines().map_while(Result::ok).filter(|l| l.ends_with("total")).last();
            strace.wait()?;
            let total = total.context("strace gives no total")?;
            let calls = total.split_whitespace().nth(3).and_then(|calls| calls.parse::<f64>().ok());
            Ok(calls.with_context(|| format!("no count in {total:?}"))? / n as f64 * 1e6)
        })?;
        let name = format!("system calls of lcapd, {what}");
        let command = format!("strace -c -f -p; {source}, fifo, one client.c over tcp");
        let row = Row::new(&name, "per million records", &samples, &command);
        bench.report.add(match bound {
            Some(bound) => row.at_most(bound),
            None => row,
        });
    }
    Ok(())
}

/// The cost of a record must not depend on how many are not acknowledged.
pub(super) fn outstanding(bench: &mut Bench<'_>) -> Result<()> {
    let mut points = Vec::new();
    for behind in [1_000_u64, 100_000, 1_000_000, 10_000_000] {
        const MORE: u64 = 1_000_000;
        let samples = bench.repeat(|| {
            // One registered reader stays away: all that it has not had is outstanding.
            let source = format!("sim:records={}", behind + MORE);
            let setup = broadcast(false, 1, &source, FIFO).server("memory_limit = \"64MiB\"");
            let daemon = setup.start();
            daemon.control().register("changelog", "away", Vec::new(), From::Oldest)?;
            wait_settled(&daemon, behind)?;
            let (low, cost) = (low(&daemon)?, Cost::begin(&daemon));
            wait_settled(&daemon, behind + MORE)?;
            Ok(cost.end().0 / (behind + MORE - low).max(1) as f64 * 1e6)
        })?;
        let name = format!("growth: {behind} records outstanding");
        let command = format!("sim:, fifo, a registered reader that is away, {MORE} records more");
        let row = Row::new(&name, "s of cpu per million records", &samples, &command);
        points.push((behind as f64, row.value));
        bench.report.add(row);
    }
    bench.report.add_series(Series {
        name: "outstanding".into(),
        x: "records that are not acknowledged",
        y: "s of cpu per million records",
        points,
    });
    Ok(())
}

fn low(daemon: &lcap_tests::daemon::Daemon) -> Result<u64> {
    let status = daemon.control().status()?;
    let streams = status.streams.iter().flat_map(|stream| stream.mdts.values());
    streams.map(|mdt| mdt.low).min().context("a stream")
}
