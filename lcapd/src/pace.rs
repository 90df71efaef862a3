//! How often a reader looks at an MDT on which records keep coming.
//!
//! A record that comes alone leaves at once. When records come one after the other, a look at each
//! would cost more than the record: every batch wakes a worker, a publisher, libzmq and each client.
//! So while they flow, looks are a little apart, and the more MDTs flow at the same time, the further: the
//! batches per second of all of them together stay bounded. Where few records come at a time, looks are
//! further apart once it is clear that they keep coming: a look costs the same for two records as for twenty.
//! Network cards moderate their interrupts the same way.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at one MDT whose records flow.
const SPACING: Duration = Duration::from_micros(200);
/// The same, where fewer come than [`MANY_PER_SECOND`].
const WIDE_SPACING: Duration = Duration::from_micros(500);
const MANY_PER_SECOND: f64 = 50_000.0;
/// So many looks in a row have to find records before they are that far apart.
const STEADY_LOOKS: u32 = 32;
/// Added for each MDT that flows, so that all together make at most 10,000 batches a second.
const SPACING_PER_MDT: Duration = Duration::from_micros(100);

/// Of one MDT.
#[derive(Debug, Default)]
pub struct Pace {
    /// How many MDTs flow, of all that share it.
    flowing: Arc<AtomicUsize>,
    /// Looks in a row that found records which flow; none if they do not.
    n_looks: u32,
    /// The last one found few.
    few: bool,
    last: Option<Instant>,
}

impl Pace {
    /// A pace that takes into account how many of those with the same `flowing` have records.
    pub fn new(flowing: Arc<AtomicUsize>) -> Self {
        Self { flowing, ..Self::default() }
    }

    /// A look at `now` found `n` records, and after them nothing more. Returns when to look again: not
    /// before then if they flow.
    pub fn found(&mut self, n: usize, now: Instant) -> Option<Instant> {
        let since = self.last.replace(now).map(|last| now.saturating_duration_since(last));
        // Twice: what comes just as fast as we look must not make us change our mind all the time.
        let flows = since.is_some_and(|since| since < self.spacing() * 2);
        self.set_looks(if flows { self.n_looks.saturating_add(1) } else { 0 });
        let per_second = since.map_or(0.0, |since| n as f64 / since.as_secs_f64());
        self.few = per_second < MANY_PER_SECOND;
        flows.then(|| now + self.spacing())
    }

    /// A look found nothing.
    pub fn found_nothing(&mut self) {
        self.set_looks(0);
    }

    fn spacing(&self) -> Duration {
        let n = u32::try_from(self.flowing.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let wide = self.few && self.n_looks >= STEADY_LOOKS;
        let own = if wide { WIDE_SPACING } else { SPACING };
        own.max(SPACING_PER_MDT.saturating_mul(n))
    }

    fn set_looks(&mut self, n: u32) {
        match (self.n_looks > 0, n > 0) {
            (false, true) => self.flowing.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.flowing.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.n_looks = n;
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.set_looks(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks that find records so far apart; whether each is told to wait, and for how long.
    fn looks(pace: &mut Pace, gaps_us: &[u64]) -> Vec<Option<u128>> {
        let mut now = Instant::now();
        let look = |gap: &u64| {
            now += Duration::from_micros(*gap);
            pace.found(1, now).map(|at| at.saturating_duration_since(now).as_micros())
        };
        gaps_us.iter().map(look).collect()
    }

    #[test]
    fn only_records_that_follow_each_other_closely_wait() {
        type Case<'a> = (&'a str, &'a [u64], &'a [Option<u128>]);
        let cases: [Case<'_>; 3] = [
            ("one a millisecond", &[0, 1000, 1000, 1000], &[None, None, None, None]),
            ("a burst", &[0, 10, 200, 200], &[None, Some(200), Some(200), Some(200)]),
            ("and its end", &[0, 10, 200, 900], &[None, Some(200), Some(200), None]),
        ];
        for (what, gaps, want) in cases {
            assert_eq!(looks(&mut Pace::default(), gaps), want, "{what}");
        }
    }

    #[test]
    fn few_that_keep_coming_wait_longer_and_many_do_not() {
        for (n, before, later) in [(4, 200, 500), (20, 200, 200)] {
            let (mut pace, mut now) = (Pace::default(), Instant::now());
            let mut waits = Vec::new();
            for _ in 0..100 {
                let at = pace.found(n, now).unwrap_or(now + Duration::from_micros(100));
                waits.push((at - now).as_micros());
                now = at;
            }
            assert_eq!((waits[10], waits[99]), (before, later), "{n} records a look");
            // A pause, and all begins anew.
            now += Duration::from_millis(2);
            assert_eq!(pace.found(n, now), None);
            now += Duration::from_micros(100);
            assert_eq!(pace.found(n, now), Some(now + SPACING));
        }
    }

    #[test]
    fn many_that_flow_look_less_often_each() {
        let flowing = Arc::new(AtomicUsize::new(0));
        let mut paces: Vec<Pace> = (0..64).map(|_| Pace::new(Arc::clone(&flowing))).collect();
        for pace in &mut paces {
            looks(pace, &[0, 10]);
        }
        assert_eq!(flowing.load(Ordering::Relaxed), 64);
        assert_eq!(looks(&mut paces[0], &[0, 100]).last(), Some(&Some(6400)));
        paces[1].found_nothing();
        paces.truncate(2);
        assert_eq!(
            flowing.load(Ordering::Relaxed),
            1,
            "who stops flowing, or is gone, counts no more"
        );
    }
}
