//! Schedules of the simulation, each decided by a seed: some hundreds in the suite.
//!
//! `LCAP_SEED=n` runs one. `LCAP_SECONDS=n` goes on for longer, `LCAP_FIRST_SEED=n` begins elsewhere.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use lcap_tests::sim::{Summary, run};

/// So many in the suite, the same ones on every machine.
const SCHEDULES: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn nothing_is_lost_nothing_comes_twice_nothing_is_cleared_too_early() {
    if let Some(seed) = number("LCAP_SEED") {
        match run(seed) {
            Ok(summary) => println!("{summary:?}"),
            Err(broken) => panic!("{broken}"),
        }
        return;
    }
    let started = Instant::now();
    let time_box = number("LCAP_SECONDS").map(Duration::from_secs);
    let first = number("LCAP_FIRST_SEED").unwrap_or(0);
    let (mut all, mut n, mut broken) = (Summary::default(), 0, Vec::new());
    while time_box.map_or(n < SCHEDULES, |time_box| started.elapsed() < time_box) {
        match run(first + n) {
            Ok(summary) => all.add(&summary),
            Err(schedule) => {
                println!("{schedule}");
                broken.push(schedule.seed);
            }
        }
        n += 1;
    }
    assert!(broken.is_empty(), "{n} schedules, of which these broke a promise: {broken:?}");
    println!("{n} schedules: {all:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(n >= 20 && all.crashes > n / 2 && all.lost_messages > n && all.clears > n, "{all:?}");
}
