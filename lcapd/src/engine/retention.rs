//! Up to where one MDT may be cleared, and when it is told.
//!
//! The rules of clearing upstream: only what is settled *on disk* by every stream; never index
//! zero (that means everything), never lower than before (some servers then lose the user), in
//! large steps (a call costs milliseconds), and the same index again now and then (a user who never
//! clears is deregistered).
#![forbid(unsafe_code)]

use std::time::Duration;

use lcap_ffi::RecordIndex;

/// Time since the engine began.
pub type Now = Duration;

/// When to clear.
#[derive(Clone, Copy, Debug)]
pub struct ClearPolicy {
    /// Least time between two clears, unless `records` are due.
    pub interval: Duration,
    /// So many indexes are cleared at once, whatever the time.
    pub records: u64,
    /// The same index is cleared again after this.
    pub keep_alive: Duration,
}

/// What one stream needs of an MDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nobody is registered with it: it neither holds records nor lets them go.
    Nobody,
    /// Everything above this index.
    Above(RecordIndex),
}

/// Up to where all streams agree to clear. If nobody is registered with any, nothing goes.
pub fn floor(needs: impl IntoIterator<Item = Need>) -> Option<RecordIndex> {
    let above = needs.into_iter().filter_map(|need| match need {
        Need::Nobody => None,
        Need::Above(index) => Some(index),
    });
    above.min()
}

/// The clearing of one MDT.
#[derive(Debug)]
pub struct Retention {
    policy: ClearPolicy,
    cleared: RecordIndex,
    /// The MDT may have been told up to here, by this life or an earlier one.
    told: RecordIndex,
    in_flight: Option<RecordIndex>,
    last_clear: Option<Now>,
    not_before: Option<Now>,
    failures: u32,
}

/// First pause after a failed clear; doubled each time up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(60);

impl Retention {
    /// For an MDT that was cleared up to `cleared` in an earlier life, which may have been killed
    /// while it was told to forget up to `told`.
    pub fn new(policy: ClearPolicy, cleared: RecordIndex, told: RecordIndex) -> Self {
        Self {
            policy,
            cleared,
            told: told.max(cleared),
            in_flight: None,
            last_clear: None,
            not_before: None,
            failures: 0,
        }
    }

    /// The MDT has confirmed that it may forget up to here.
    pub fn cleared(&self) -> RecordIndex {
        self.cleared
    }

    /// The MDT has forgotten up to here, or may at any moment.
    pub fn given_up(&self) -> RecordIndex {
        self.told
    }

    /// The index to clear now, if any; it counts as in flight until [`Self::done`] or
    /// [`Self::failed`].
    pub fn due(&mut self, floor: Option<RecordIndex>, now: Now) -> Option<RecordIndex> {
        if self.in_flight.is_some() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        // Never less than it may have been told already.
        let target = floor.unwrap_or_default().max(self.told);
        if target == RecordIndex::ZERO {
            return None;
        }
        let waited = self.last_clear.map_or(Duration::MAX, |at| now.saturating_sub(at));
        let step = target.get() - self.cleared.get();
        let due = match step {
            0 => waited >= self.policy.keep_alive && self.last_clear.is_some(),
            _ => step >= self.policy.records || waited >= self.policy.interval,
        };
        if due {
            self.in_flight = Some(target);
            self.told = target;
        } else if step == 0 && self.last_clear.is_none() {
            self.last_clear = Some(now); // the keep-alive counts from our start
        }
        due.then_some(target)
    }

    /// When [`Self::due`] may next say something new without any other event.
    pub fn wake_at(&self, floor: Option<RecordIndex>) -> Option<Now> {
        if self.in_flight.is_some() {
            return None;
        }
        let pending = floor.unwrap_or_default().max(self.told) > self.cleared;
        let wait = if pending { self.policy.interval } else { self.policy.keep_alive };
        let regular = self.last_clear.map(|at| at + wait);
        regular.max(self.not_before)
    }

    /// The MDT has done what was in flight.
    pub fn done(&mut self, upto: RecordIndex, now: Now) {
        self.in_flight = None;
        self.cleared = self.cleared.max(upto);
        self.last_clear = Some(now);
        self.not_before = None;
        self.failures = 0;
    }

    /// It was not asked, after all.
    pub fn put_off(&mut self) {
        self.in_flight = None;
    }

    /// It has not. Tried again later, further apart each time.
    pub fn failed(&mut self, now: Now) {
        self.in_flight = None;
        let pause = MIN_PAUSE.saturating_mul(1 << self.failures.min(10)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    /// Indexes from `from` on are issued again; what was cleared of them is void.
    pub fn rewind(&mut self, from: RecordIndex) {
        self.cleared = self.cleared.min(from.prev());
        self.told = self.told.min(from.prev());
        self.in_flight = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ix(index: u64) -> RecordIndex {
        RecordIndex::new(index)
    }

    fn at(ms: u64) -> Now {
        Duration::from_millis(ms)
    }

    fn retention(cleared: u64) -> Retention {
        let policy = ClearPolicy {
            interval: Duration::from_secs(1),
            records: 100,
            keep_alive: Duration::from_secs(3600),
        };
        Retention::new(policy, ix(cleared), ix(0))
    }

    #[test]
    fn nobody_registered_means_nothing_goes() {
        assert_eq!(floor([]), None);
        assert_eq!(floor([Need::Nobody, Need::Nobody]), None);
        assert_eq!(floor([Need::Nobody, Need::Above(ix(7))]), Some(ix(7)));
        assert_eq!(floor([Need::Above(ix(9)), Need::Above(ix(3))]), Some(ix(3)));
    }

    #[test]
    fn zero_is_never_cleared() {
        let mut r = retention(0);
        assert_eq!(r.due(Some(ix(0)), at(0)), None);
        assert_eq!(r.due(None, at(10_000_000)), None);
    }

    #[test]
    fn clears_in_large_steps_or_once_an_interval() {
        let mut r = retention(0);
        assert_eq!(r.due(Some(ix(5)), at(0)), Some(ix(5)), "the first at once");
        assert_eq!(r.due(Some(ix(500)), at(1)), None, "one at a time");
        r.done(ix(5), at(2));
        assert_eq!(r.due(Some(ix(6)), at(3)), None, "a small step waits");
        assert_eq!(r.wake_at(Some(ix(6))), Some(at(1002)));
        assert_eq!(r.due(Some(ix(105)), at(4)), Some(ix(105)), "a large one does not");
        r.done(ix(105), at(5));
        assert_eq!(r.due(Some(ix(106)), at(1005)), Some(ix(106)), "nor a small one for ever");
    }

    #[test]
    fn never_goes_backwards() {
        let mut r = retention(50);
        assert_eq!(r.due(Some(ix(49)), at(0)), None);
        assert_eq!(r.due(Some(ix(49)), at(3_600_000)), Some(ix(50)), "but keeps itself alive");
    }

    #[test]
    fn what_an_earlier_life_may_have_told_is_told_again_and_never_less() {
        let policy = retention(0).policy;
        let mut r = Retention::new(policy, ix(50), ix(70));
        assert_eq!(r.given_up(), ix(70), "a reader that is registered now begins after it");
        assert_eq!(r.due(Some(ix(60)), at(0)), Some(ix(70)));
        r.failed(at(0));
        assert_eq!(r.due(None, at(500)), Some(ix(70)), "nobody registered changes nothing");
        r.done(ix(70), at(600));
        assert_eq!((r.cleared(), r.due(Some(ix(60)), at(5000))), (ix(70), None));
        r.rewind(ix(40));
        assert_eq!((r.cleared(), r.given_up()), (ix(39), ix(39)));
    }

    #[test]
    fn a_failure_is_tried_again_later_and_later() {
        let mut r = retention(0);
        assert_eq!(r.due(Some(ix(5)), at(0)), Some(ix(5)));
        r.failed(at(0));
        assert_eq!(r.due(Some(ix(5)), at(499)), None);
        assert_eq!(r.due(Some(ix(5)), at(500)), Some(ix(5)));
        r.failed(at(500));
        assert_eq!(r.due(Some(ix(5)), at(1499)), None);
        assert_eq!(r.due(Some(ix(5)), at(1500)), Some(ix(5)));
        assert_eq!(r.cleared(), ix(0));
    }

    #[test]
    fn a_quiet_file_system_is_kept_alive() {
        let mut r = retention(50);
        assert_eq!(r.due(Some(ix(50)), at(0)), None);
        assert_eq!(r.wake_at(Some(ix(50))), Some(at(3_600_000)));
        assert_eq!(r.due(Some(ix(50)), at(3_600_000)), Some(ix(50)));
        r.done(ix(50), at(3_600_001));
        assert_eq!(r.due(Some(ix(50)), at(3_600_002)), None);
    }
}
