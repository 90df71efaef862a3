//! When records were written, by index: enough of it to say how old the oldest unsettled one is.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use lcap_ffi::RecordIndex;

/// Points that are kept; when there are more, every second one goes.
const MAX_POINTS: usize = 512;

/// Index and time of some records of one MDT, the more recent ones closer together.
#[derive(Debug, Default)]
pub struct Timeline(Mutex<Points>);

#[derive(Debug, Default)]
struct Points {
    /// Ascending by index; times in nanoseconds since 1970.
    points: Vec<(u64, u64)>,
    /// Records this much younger than the last point make a new one.
    step_ns: u64,
}

impl Timeline {
    /// Notes a record that was read. Called once for each batch.
    pub fn note(&self, index: RecordIndex, time_ns: u64) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Points { points, step_ns } = &mut *now;
        while points.last().is_some_and(|last| last.0 >= index.get()) {
            points.pop(); // a new history
        }
        if points.last().is_some_and(|last| time_ns < last.1.saturating_add(*step_ns)) {
            return;
        }
        points.push((index.get(), time_ns));
        if points.len() > MAX_POINTS {
            let mut nth = 0_usize;
            points.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
            *step_ns = (*step_ns * 2).max(100_000_000);
        }
    }

    /// Forgets what lies below `index`; nobody will ask for it.
    pub fn forget_below(&self, index: RecordIndex) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = now.points.partition_point(|point| point.0 < index.get());
        // The last one below stays, in case nothing newer is known.
        now.points.drain(..n.saturating_sub(1));
        if now.points.len() < MAX_POINTS / 4 {
            now.step_ns /= 2;
        }
    }

    /// Time of the first known record above `index`, or of the newest below it: nanoseconds since
    /// 1970. `None` if no record is known.
    pub fn after(&self, index: RecordIndex) -> Option<u64> {
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let above = now.points.partition_point(|point| point.0 <= index.get());
        now.points.get(above).or(now.points.last()).map(|point| point.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn it_stays_small_and_right() {
        let timeline = Timeline::default();
        assert_eq!(timeline.after(RecordIndex::ZERO), None);
        // A record each millisecond for an hour, in batches of ten.
        for batch in 1..360_000 {
            timeline.note(RecordIndex::new(batch * 10), batch * 10_000_000);
        }
        assert!(timeline.0.lock().unwrap().points.len() <= MAX_POINTS);
        for index in [0_u64, 1, 5_000, 1_000_000, 3_500_000] {
            let (want, got) = (index * 1_000_000, timeline.after(RecordIndex::new(index)).unwrap());
            assert!(got.abs_diff(want) < 30 * SECOND, "{index}: {want} {got}");
        }
        timeline.forget_below(RecordIndex::new(3_000_000));
        assert!(timeline.after(RecordIndex::ZERO).unwrap() > 2_900 * SECOND);
        // Indexes are issued again after a crash.
        timeline.note(RecordIndex::new(3_100_000), 4_000 * SECOND);
        assert_eq!(timeline.after(RecordIndex::new(3_099_999)), Some(4_000 * SECOND));
        assert_eq!(timeline.after(RecordIndex::new(9_000_000)), Some(4_000 * SECOND));
    }
}
