//! `window`: holds records back for a time or until there is a number of them, then lets them all out.
//!
//! ```toml
//! policies = [ { module = "window", time = "2s", count = 100000, memory = "64MiB" } ]
//! ```
//!
//! A window begins with a record and ends when `time` has passed since, or `count` records or
//! `memory` bytes of records are there. With `order = "time"` what comes out is sorted by the
//! records' own times, which do not always follow the index; else it comes as it came in.
#![deny(unsafe_code)]

use std::time::Duration;

use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, OptionKind, Out, Policy, PolicyOption, Records, Size, Span,
    export_policy,
};
use serde::Deserialize;

/// The module.
#[derive(Debug)]
pub struct Window {
    time: Duration,
    count: usize,
    memory: u64,
    by_time: bool,
    /// Token and time of what is held.
    held: Vec<(u64, u64)>,
    held_bytes: u64,
    /// When the window began.
    since: Nanos,
}

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "default_time")]
    time: Span,
    #[serde(default = "default_count")]
    count: usize,
    #[serde(default = "default_memory")]
    memory: Size,
    #[serde(default)]
    order: Order,
}

/// In which order records leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// As they came.
    #[default]
    Log,
    /// By their own times.
    Time,
}

fn default_time() -> Span {
    Span(Duration::from_secs(1))
}

fn default_count() -> usize {
    100_000
}

fn default_memory() -> Size {
    Size(64 << 20)
}

impl Policy for Window {
    const NAME: &'static CStr = c"window";
    const SUMMARY: &'static str = "holds records back for a time or a number of them";
    const VERBATIM: bool = true;
    type Config = Config;

    fn options() -> Vec<PolicyOption> {
        let most = OptionKind::Integer(1, 100_000_000);
        vec![
            PolicyOption::new("time", OptionKind::Duration, "longest wait of a record")
                .default("1s"),
            PolicyOption::new("count", most, "most records held").default(100_000),
            PolicyOption::new("memory", OptionKind::Size, "most bytes held").default("64MiB"),
            PolicyOption::new("order", OptionKind::Choice(&["log", "time"]), "how they come out")
                .default("log"),
        ]
    }

    fn create(config: Config, _: &Host) -> Result<Self, Failure> {
        Ok(Self {
            time: config.time.0,
            count: config.count,
            memory: config.memory.0,
            by_time: config.order == Order::Time,
            held: Vec::new(),
            held_bytes: 0,
            since: Nanos(0),
        })
    }

    fn enqueue(&mut self, records: Records<'_>, now: Nanos) -> Result<(), Failure> {
        if self.held.is_empty() {
            self.since = now;
        }
        for item in records {
            let time = if self.by_time { item.record()?.head().time.get() } else { 0 };
            self.held.push((item.token, time));
            self.held_bytes += item.bytes.len() as u64;
        }
        Ok(())
    }

    fn dequeue(
        &mut self,
        now: Nanos,
        flush: bool,
        out: &mut Out,
    ) -> Result<Option<Nanos>, Failure> {
        let until = self.since + self.time;
        let full = self.held.len() >= self.count || self.held_bytes >= self.memory;
        if self.held.is_empty() || !(flush || full || now >= until) {
            return Ok((!self.held.is_empty()).then_some(until));
        }
        if self.by_time {
            self.held.sort_by_key(|&(token, time)| (time, token));
        }
        for (token, _) in self.held.drain(..) {
            out.emit(token);
        }
        self.held_bytes = 0;
        Ok(None)
    }
}

export_policy!(Window);

#[cfg(test)]
mod tests {
    use lcap_policy_sdk::harness::{Harness, emitted};
    use lcap_policy_sdk::{RecordBuilder, RecordType, serde_json::json};

    use super::*;

    const NONE: [u64; 0] = [];

    fn record(index: u64, second: u64) -> Vec<u8> {
        RecordBuilder::new(RecordType::CREATE).index(index).time(second, 0).build()
    }

    fn pull(window: &mut Harness) -> Vec<u64> {
        let decided = window.pull().unwrap();
        emitted(&decided).iter().map(|record| record.index().get()).collect()
    }

    #[test]
    fn a_window_ends_by_time_count_memory_or_flush() {
        let mut window =
            Harness::of::<Window>(json!({"time": "2s", "count": 4, "memory": "1KiB"})).unwrap();
        let start = window.now();
        window.push(&record(1, 9));
        assert_eq!(pull(&mut window), NONE);
        assert_eq!(window.wake_at(), Some(start + Duration::from_secs(2)));
        window.advance(Duration::from_secs(1));
        window.push(&record(2, 8));
        assert_eq!(pull(&mut window), NONE);
        window.advance(Duration::from_secs(1));
        assert_eq!(pull(&mut window), [1, 2], "two seconds after the first");
        assert_eq!(window.wake_at(), None);

        for index in 3..=6 {
            assert_eq!(pull(&mut window), NONE);
            window.push(&record(index, 1));
        }
        assert_eq!(pull(&mut window), [3, 4, 5, 6], "four");

        let long = RecordBuilder::new(RecordType::CREATE).index(7).name(&[b'x'; 255]).xattr(b"x");
        window.push(&long.build());
        assert_eq!(pull(&mut window), NONE);
        window.push(&long.index(8).build());
        assert_eq!(pull(&mut window), [7, 8], "a kilobyte");

        window.push(&record(9, 1));
        assert_eq!(window.flush().unwrap().len(), 1);
    }

    #[test]
    fn records_can_be_sorted_by_their_times() {
        let mut window = Harness::of::<Window>(json!({"order": "time"})).unwrap();
        for (index, second) in [(1, 5), (2, 3), (3, 5), (4, 1)] {
            window.push(&record(index, second));
        }
        window.advance(Duration::from_secs(1));
        assert_eq!(pull(&mut window), [4, 2, 1, 3]);
    }
}
