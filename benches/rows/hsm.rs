//! HSM actions: what reading their lists costs, and how fast they get into Redis.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_tests::redis::RedisServer;
use lcapd::sink::target::as_number;
use lcapd::source::sim::SimActions;

use super::Bench;
use crate::hsm_poll;
use crate::report::{Row, Series};

/// How many live actions the targets are about.
const MOST: u64 = 350_000;

/// Readings of lists of three sizes.
pub(super) fn poll(bench: &mut Bench<'_>) -> Result<()> {
    let mut points = Vec::new();
    for n in [10_000, 100_000, MOST] {
        let mut polls = Vec::new();
        for _ in 0..bench.settings.runs {
            polls.push(hsm_poll::measure(n)?);
        }
        let of = |part: fn(&hsm_poll::Poll) -> f64| polls.iter().map(part).collect::<Vec<_>>();
        let command = format!("a list of {n} actions in a file, in a process of its own");
        let (all, bound) = (n == MOST, 0.5);
        for (what, samples) in [
            ("first", of(|poll| poll.first)),
            ("unchanged", of(|poll| poll.unchanged)),
            ("1 % changed", of(|poll| poll.changed)),
            ("restart", of(|poll| poll.restart)),
        ] {
            let row = Row::new(&format!("hsm poll of {n}, {what}"), "s of cpu", &samples, &command);
            if what == "unchanged" {
                points.push((n as f64, row.value / n as f64 * 1e6));
            }
            bench.report.add(if all { row.at_most(bound) } else { row });
        }
        let memory = of(|poll| poll.memory / 1e6);
        let row = Row::new("  resident memory", "MB", &memory, &command);
        bench.report.add(if all { row.at_most(80.0) } else { row });
    }
    bench.report.add_series(Series {
        name: "hsm-poll".into(),
        x: "live actions",
        y: "s of cpu per million",
        points,
    });
    Ok(())
}

/// A first load of Redis, beside what redis-benchmark gets into it, and how long others wait meanwhile.
pub(super) fn sink(bench: &mut Bench<'_>) -> Result<()> {
    let (mut limits, mut limit_pings) = (vec![], vec![]);
    let (mut rates, mut pings, mut memory) = (vec![], vec![], vec![]);
    for _ in 0..bench.settings.runs {
        let redis = RedisServer::start();
        let (rate, ping) = beside(&redis, || redis_benchmark(&redis))?;
        limits.push(rate);
        limit_pings.push(ping);
        let dir = tempfile::tempdir_in(bench.dir)?;
        let (found, ping) = beside(&redis, || first_load(&redis, dir.path()))?;
        rates.push(found.0);
        pings.push(ping);
        memory.push(found.1 as f64 / 1e6);
    }
    let command = "redis-benchmark -c 1 -P 500 XADD, entries of as many bytes";
    let limit = Row::new("redis limit: redis-benchmark", "events/s", &limits, command);
    let reference = limit.value;
    bench.report.add(limit);
    bench.report.add(Row::new("  longest PING of another client", "ms", &limit_pings, command));
    let command =
        format!("lcapd with a Redis sink finds {MOST} live actions; redis-server on a socket");
    let row = Row::new("redis sink, first load", "events/s", &rates, &command);
    bench.report.add(row.against(reference).at_least(150e3));
    let row = Row::new("  longest PING of another client", "ms", &pings, &command);
    bench.report.add(row.at_most(20.0));
    bench.report.add(Row::new("  memory of lcapd, with its sink", "MB", &memory, &command));
    Ok(())
}

/// The longest answer to a PING of another client during `work`, in milliseconds.
fn beside<T>(redis: &RedisServer, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut link = redis.link(0).context("a connection to Redis")?;
    let pings = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || -> Result<Duration, lcapd::sink::target::TargetError> {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                link.call(&[b"PING"])?;
                longest = longest.max(asked.elapsed());
                std::thread::sleep(Duration::from_millis(1)); // the pace of the other client
            }
            Ok(longest)
        })
    };
    let result = work();
    stop.store(true, Ordering::Relaxed);
    let longest = pings.join().map_err(|_| anyhow::anyhow!("the other client panicked"))??;
    Ok((result?, longest.as_secs_f64() * 1e3))
}

/// Events per second from the first entry to the last, and the memory of lcapd.
fn first_load(redis: &RedisServer, dir: &Path) -> Result<(f64, u64)> {
    const MDT: &str = "bench-MDT0000";
    let key = format!("hsm:actions:{MDT}");
    let lists = dir.join(MDT).join("hsm");
    fs::create_dir_all(&lists)?;
    let sim = SimActions::new(&MDT.parse()?, MOST, 1, None, UNIX_EPOCH);
    let list = std::io::read_to_string(sim.at(Duration::from_secs(1)).context("a list")?)?;
    fs::write(lists.join("actions"), list)?;
    let setup = Setup::new().more(&format!(
        "[[mdt]]\nname = \"{MDT}\"\nsource = \"hsm-actions:\"\n\
         hsm_actions = \"{}/*/hsm/actions\"\n\
         [[stream]]\nname = \"hsm\"\nkind = \"hsm\"\ndelivery = \"broadcast\"\n\
         publish = \"ipc://{}/hsm\"\n\
         [[sink]]\nstream = \"hsm\"\nredis = \"{}\"\n",
        dir.display(),
        dir.display(),
        redis.url(1)
    ));
    let mut link = redis.link(1).context("a connection to Redis")?;
    let mut length = || {
        let answer = link.call(&[b"XLEN", key.as_bytes()]).ok();
        answer.as_ref().and_then(as_number).unwrap_or(0)
    };
    let daemon: Daemon = setup.start();
    wait_until("the first entry", || length() > 0);
    let (first, began) = (length(), Instant::now());
    wait_until("all entries", || length() >= MOST);
    let seconds = began.elapsed().as_secs_f64();
    ensure!(first < MOST / 10, "{first} entries were there at the first look");
    Ok(((MOST - first) as f64 / seconds, daemon.memory().0))
}

/// Entries per second that redis-benchmark adds, 500 at once on one connection.
fn redis_benchmark(redis: &RedisServer) -> Result<f64> {
    let output = Command::new("redis-benchmark")
        .arg("-s")
        .arg(redis.socket())
        .args(["-c", "1", "-P", "500", "-n", &MOST.to_string(), "-q", "XADD", "bench", "*", "data"])
        .arg("x".repeat(465))
        .output()
        .context("redis-benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
    let last = text.lines().rfind(|line| line.contains("requests per second"));
    let rate = last.and_then(|line| line.split(": ").last()?.split(' ').next()?.parse().ok());
    rate.with_context(|| format!("redis-benchmark says {text:?}"))
}
