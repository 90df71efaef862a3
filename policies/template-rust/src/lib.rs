//! A start for your own module: drops records of names with a given ending, and holds the rest back
//! for a moment.
//!
//! ```toml
//! policies = [ { module = "template-rust", ending = ".tmp", delay = "100ms" } ]
//! ```
#![deny(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, OptionKind, Out, Policy, PolicyOption, Records, Span, export_policy,
};
use serde::Deserialize;

/// The module: what one instance remembers.
#[derive(Debug)]
pub struct Template {
    ending: String,
    delay: Duration,
    /// Tokens that are held, and until when.
    held: VecDeque<(u64, Nanos)>,
    /// Tokens that are to be dropped.
    unwanted: Vec<u64>,
    n_dropped: u64,
}

/// Its options, as they stand in lcapd's configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    ending: String,
    #[serde(default = "default_delay")]
    delay: Span,
}

fn default_delay() -> Span {
    Span(Duration::ZERO)
}

impl Policy for Template {
    const NAME: &'static CStr = c"template-rust";
    const SUMMARY: &'static str = "drops records of names with a given ending";
    const VERBATIM: bool = true;
    type Config = Config;

    // lcapd checks the configuration against these before it makes an instance.
    fn options() -> Vec<PolicyOption> {
        vec![
            PolicyOption::new("ending", OptionKind::Text, "names that end so are dropped")
                .required(),
            PolicyOption::new("delay", OptionKind::Duration, "the others wait so long")
                .default("0s"),
        ]
    }

    // What the schema cannot say is checked here. The text ends up in lcapd's message.
    fn create(config: Config, host: &Host) -> Result<Self, Failure> {
        if config.ending.contains('/') {
            return Err(Failure::new("option `ending`: a name has no slash in it"));
        }
        host.info(&format!("dropping names that end in `{}`", config.ending));
        Ok(Self {
            ending: config.ending,
            delay: config.delay.0,
            held: VecDeque::new(),
            unwanted: Vec::new(),
            n_dropped: 0,
        })
    }

    // Look at the records and remember their tokens. The records themselves are lent for this call.
    fn enqueue(&mut self, records: Records<'_>, now: Nanos) -> Result<(), Failure> {
        for item in records {
            if item.record()?.name().ends_with(self.ending.as_bytes()) {
                self.unwanted.push(item.token);
            } else {
                self.held.push_back((item.token, now + self.delay));
            }
        }
        Ok(())
    }

    // Decide on what is ready, each token once. With `flush`, decide on everything.
    fn dequeue(
        &mut self,
        now: Nanos,
        flush: bool,
        out: &mut Out,
    ) -> Result<Option<Nanos>, Failure> {
        for token in self.unwanted.drain(..) {
            out.drop(token);
            self.n_dropped += 1;
        }
        while let Some(&(token, until)) = self.held.front() {
            if now < until && !flush {
                return Ok(Some(until)); // call me again then, at the latest
            }
            out.emit(token);
            self.held.pop_front();
        }
        Ok(None)
    }

    // Optional: figures for `lcap status` and the metrics.
    fn stats(&mut self) -> Vec<(&'static str, u64)> {
        vec![("dropped_by_ending", self.n_dropped)]
    }
}

export_policy!(Template);

#[cfg(test)]
mod tests {
    use lcap_policy_sdk::harness::{Harness, emitted};
    use lcap_policy_sdk::{RecordBuilder, RecordType, serde_json::json};

    use super::*;

    #[test]
    fn unwanted_names_go_and_the_others_wait() {
        let config = json!({"ending": ".tmp", "delay": "1s"});
        let mut module = Harness::of::<Template>(config).unwrap();
        for (index, name) in [(1, "a.tmp"), (2, "b.txt")] {
            let record = RecordBuilder::new(RecordType::CREATE).index(index).name(name.as_bytes());
            module.push(&record.build());
        }
        assert_eq!(module.pull().unwrap().len(), 1, "one is dropped");
        module.advance(Duration::from_secs(1));
        let decided = module.pull().unwrap();
        assert_eq!(emitted(&decided)[0].name(), b"b.txt");
        assert_eq!(module.held(), 0);
    }

    #[test]
    fn a_wrong_option_is_refused() {
        let error = Harness::of::<Template>(json!({"ending": "a/b"})).unwrap_err();
        assert!(error.contains("no slash"), "{error}");
    }
}
