//! `compact`: drops what cancels out inside a window.
//!
//! ```toml
//! policies = [ { module = "compact", window = "500ms", count = 100000, memory = "64MiB" } ]
//! ```
//!
//! Each record is held for the window, and meanwhile later records may cancel it, be absorbed by it or be
//! folded into it; what is left leaves in its place, in the order of the log. The rules are a table in
//! `docs/policies.md`, and [`rules`] has them one by one. A consumer that follows the compacted stream
//! ends in the same state as one that follows the full stream: the tests prove it on random histories.
//!
//! The data flow: [`held::Held`] is the queue of held records and knows what concerns which object and
//! name; [`rules`] looks at each new record and at what is held; what is older than the window leaves.
#![deny(unsafe_code)]

mod hash;
mod held;
mod list;
mod names;
mod objects;
mod rules;
mod seq;
#[cfg(test)]
mod tests;

use std::time::Duration;

use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, OptionKind, Out, Policy, PolicyOption, RecordType, Records, Size,
    Span, export_policy,
};
use serde::Deserialize;

use held::Held;
use rules::{Counts, Rules};

/// The module.
#[derive(Debug)]
pub struct Compact {
    window: Duration,
    count: usize,
    memory: usize,
    rules: Rules,
    held: Held,
}

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "default_window")]
    window: Span,
    #[serde(default = "default_count")]
    count: usize,
    #[serde(default = "default_memory")]
    memory: Size,
    #[serde(default = "default_names")]
    names: bool,
    #[serde(default)]
    keep: Vec<String>,
}

fn default_window() -> Span {
    Span(Duration::from_millis(500))
}

fn default_count() -> usize {
    100_000
}

fn default_memory() -> Size {
    Size(64 << 20)
}

fn default_names() -> bool {
    true
}

impl Policy for Compact {
    const NAME: &'static CStr = c"compact";
    const SUMMARY: &'static str = "drops what cancels out inside a window";
    /// Rules compare names and attributes with those of held records.
    const LOOKS_BACK: bool = true;
    type Config = Config;

    fn options() -> Vec<PolicyOption> {
        let most = OptionKind::Integer(1, 100_000_000);
        vec![
            PolicyOption::new("window", OptionKind::Duration, "longest wait of a record")
                .default("500ms"),
            PolicyOption::new("count", most, "most records held").default(100_000),
            PolicyOption::new("memory", OptionKind::Size, "most memory used").default("64MiB"),
            PolicyOption::new(
                "names",
                OptionKind::Boolean,
                "also cancel and fold creates, links, renames and unlinks; false for consumers that \
                 apply records, crash before they acknowledge them, and cannot remove leftovers",
            )
            .default(true),
            PolicyOption::new("keep", OptionKind::Texts, "record types that are left alone"),
        ]
    }

    fn create(config: Config, _: &Host) -> Result<Self, Failure> {
        let mut keep = 0_u32;
        for name in &config.keep {
            let rec_type = RecordType::from_name(name).ok_or_else(|| {
                Failure::new(format!("option `keep`: `{name}` is no record type"))
            })?;
            keep |= 1 << rec_type.0;
        }
        Ok(Self {
            window: config.window.0,
            count: config.count,
            memory: usize::try_from(config.memory.0).unwrap_or(usize::MAX),
            rules: Rules::new(config.names, keep),
            held: Held::default(),
        })
    }

    fn enqueue(&mut self, records: Records<'_>, now: Nanos) -> Result<(), Failure> {
        let Some(first) = records.first_token() else { return Ok(()) };
        self.held.start(first, now);
        let taken = records.taken();
        for item in records {
            self.rules.apply(&mut self.held, taken, &item.record()?);
        }
        Ok(())
    }

    fn dequeue(
        &mut self,
        now: Nanos,
        flush: bool,
        out: &mut Out,
    ) -> Result<Option<Nanos>, Failure> {
        self.held.take_dropped(out);
        while let Some((since, n)) = self.held.oldest() {
            let until = since + self.window;
            let n = if flush || now >= until {
                n
            } else if self.held.must_leave() || self.held.bytes() > self.memory {
                1
            } else {
                n.min(self.held.len().saturating_sub(self.count))
            };
            if n == 0 {
                return Ok(Some(until));
            }
            for _ in 0..n {
                self.held.leave(out);
            }
        }
        Ok(None)
    }

    fn stats(&mut self) -> Vec<(&'static str, u64)> {
        let Counts { cancelled, absorbed, merged, folded } = self.rules.counts();
        vec![
            ("cancelled", cancelled),
            ("absorbed", absorbed),
            ("merged", merged),
            ("folded", folded),
            ("held_bytes", self.held.bytes() as u64),
        ]
    }
}

export_policy!(Compact);
