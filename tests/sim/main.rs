//! Thousands of schedules of the simulation, each decided by a seed.
//!
//! `LCAP_SEED=n` runs one. `LCAP_SECONDS=n` goes on for longer, `LCAP_FIRST_SEED=n` begins elsewhere.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use lcap_tests::sim::{Summary, run};

/// The suite does not take longer, however slow the machine.
const TIME_BOX: Duration = Duration::from_secs(20);

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
    let time_box = number("LCAP_SECONDS").map_or(TIME_BOX, Duration::from_secs);
    let first = number("LCAP_FIRST_SEED").unwrap_or(0);
    let (mut all, mut n) = (Summary::default(), 0);
    while n < 3000 || number("LCAP_SECONDS").is_some() {
        if started.elapsed() > time_box {
            break;
        }
        match run(first + n) {
            Ok(summary) => all.add(&summary),
            Err(broken) => panic!("{broken}"),
        }
        n += 1;
    }
    println!("{n} schedules: {all:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(n >= 20 && all.crashes > n / 2 && all.lost_messages > n && all.clears > n, "{all:?}");
}
