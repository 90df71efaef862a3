//! Thousands of schedules of the simulation, each decided by a seed.
//!
//! `LCAP_SEED=n` runs one; `LCAP_SEEDS=n` says how many otherwise.
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
    let (started, n_seeds) = (Instant::now(), number("LCAP_SEEDS").unwrap_or(3000));
    let mut all = Summary::default();
    let mut n = 0;
    while n < n_seeds && started.elapsed() < TIME_BOX {
        match run(n) {
            Ok(summary) => all.add(&summary),
            Err(broken) => panic!("{broken}"),
        }
        n += 1;
    }
    println!("{n} schedules: {all:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(n >= 20 && all.crashes > n / 2 && all.lost_messages > n && all.clears > n, "{all:?}");
}
