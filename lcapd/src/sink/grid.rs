//! When a sink writes: in bursts that begin at round moments of the wall clock, with silence between.
//!
//! The original's tools end a replay when nothing new has come for half a second, so a stream that
//! trickles keeps them for ever. All sinks of all machines write at the same moments, and are silent
//! for a second at least before the next.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The least silence between two bursts.
const SILENCE: Duration = Duration::from_secs(1);
/// A burst that does not end by itself is broken off after so many intervals.
const LONGEST: u32 = 10;
/// Without bursts, work that waits for quiet moments is done this often all the same.
const LONGEST_REAL_TIME: Duration = Duration::from_secs(10);

/// The moments of a sink.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    interval: Duration,
}

impl Grid {
    /// A burst at each multiple of `interval` since 1970; zero: whenever there is something.
    pub fn new(interval: Duration) -> Self {
        Self { interval }
    }

    /// When a burst that begins now has to end.
    pub fn last_moment(&self) -> Instant {
        let longest =
            if self.interval.is_zero() { LONGEST_REAL_TIME } else { self.interval * LONGEST };
        Instant::now() + longest
    }

    /// When the next burst begins; `None`: whenever there is something.
    pub fn next(&self) -> Option<Instant> {
        if self.interval.is_zero() {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Instant::now() + self.wait(now))
    }

    /// From `now`, since 1970, to the next burst.
    fn wait(&self, now: Duration) -> Duration {
        let earliest = (now + SILENCE).as_nanos();
        let interval = self.interval.as_nanos().max(1);
        let at = earliest.div_ceil(interval) * interval;
        Duration::from_nanos(u64::try_from(at - now.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_begin_together_and_leave_a_second_of_silence() {
        let ms = Duration::from_millis;
        let cases = [
            ("in the middle", 2000, 10_300, 1700),
            ("too short before the next", 2000, 11_500, 2500),
            ("just enough", 2000, 11_000, 1000),
            ("at the moment itself", 2000, 12_000, 2000),
            ("shorter than the silence", 100, 10_050, 1050),
        ];
        for (what, interval, now, wait) in cases {
            assert_eq!(Grid::new(ms(interval)).wait(ms(now)), ms(wait), "{what}");
        }
        assert!(Grid::new(Duration::ZERO).next().is_none());
    }
}
