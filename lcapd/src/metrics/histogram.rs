//! A distribution of times that any thread may add to without waiting for another.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds: 1, 2.5 and 5 of each power of ten.
const BOUNDS_US: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 10_000_000, 60_000_000,
];

/// Counts of times, by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// What a [`Histogram`] had counted at one moment.
#[derive(Clone, Debug)]
pub struct Counted {
    /// All times together.
    pub sum_seconds: f64,
    /// How many times.
    pub count: u64,
    /// Upper bounds in seconds, the last of them infinite, and how many times lie in each bucket.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// Adds one.
    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_US.partition_point(|&bound| bound < us);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn counted(&self) -> Counted {
        let bounds = BOUNDS_US.iter().map(|&us| Duration::from_micros(us).as_secs_f64());
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> =
            bounds.chain(std::iter::once(f64::INFINITY)).zip(counts).collect();
        Counted {
            sum_seconds: Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64(),
            // Of the same loads, so that it agrees with the last bucket.
            count: buckets.iter().map(|(_, n)| n).sum(),
            buckets,
        }
    }
}
