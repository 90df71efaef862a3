//! `sample`: lets a share of the records pass, for dashboards and tests.
//!
//! ```toml
//! policies = [ { module = "sample", one_in = 100 } ]
//! policies = [ { module = "sample", one_in = 100, by = "object" } ]
//! ```
//!
//! With `by = "record"` (the default) every so many-th record passes, counted from the start. With
//! `by = "object"` one in so many objects is chosen, by its FID, and all its records pass: always the
//! same objects, also after a restart and on every stream with the same `one_in` and `seed`.
#![deny(unsafe_code)]

use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, OptionKind, Out, Policy, PolicyOption, Records, export_policy,
};
use serde::Deserialize;

/// The module.
#[derive(Debug)]
pub struct Sample {
    config: Config,
    counted: u64,
    /// Token and verdict.
    decided: Vec<(u64, bool)>,
}

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    one_in: u64,
    #[serde(default)]
    by: By,
    #[serde(default)]
    seed: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Records.
    #[default]
    Record,
    /// Objects, with all their records.
    Object,
}

impl Policy for Sample {
    const NAME: &'static CStr = c"sample";
    const SUMMARY: &'static str = "lets a share of the records pass";
    const VERBATIM: bool = true;
    type Config = Config;

    fn options() -> Vec<PolicyOption> {
        let share = OptionKind::Integer(1, u64::MAX);
        let by = OptionKind::Choice(&["record", "object"]);
        vec![
            PolicyOption::new("one_in", share, "one in so many passes").required(),
            PolicyOption::new("by", by, "single records, or objects with all their records")
                .default("record"),
            PolicyOption::new(
                "seed",
                OptionKind::Integer(0, u64::MAX),
                "another choice of objects",
            )
            .default(0),
        ]
    }

    fn create(config: Config, _: &Host) -> Result<Self, Failure> {
        if config.one_in == 0 {
            return Err(Failure::new("option `one_in`: expected at least 1, got 0"));
        }
        Ok(Self { config, counted: 0, decided: Vec::new() })
    }

    fn enqueue(&mut self, records: Records<'_>, _: Nanos) -> Result<(), Failure> {
        let Config { one_in, by, seed } = self.config;
        for item in records {
            let number = match by {
                By::Record => self.counted,
                By::Object => {
                    let record = item.record()?;
                    let moved = record.source().filter(|fid| !fid.is_zero());
                    let fid = moved.unwrap_or(record.target());
                    mix(mix(fid.seq ^ seed) ^ u64::from(fid.oid))
                }
            };
            self.counted += 1;
            self.decided.push((item.token, number % one_in == 0));
        }
        Ok(())
    }

    fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
        for (token, passes) in self.decided.drain(..) {
            if passes { out.emit(token) } else { out.drop(token) }
        }
        Ok(None)
    }
}

/// Spreads a number over all bits (the finaliser of MurmurHash3).
fn mix(mut n: u64) -> u64 {
    n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ n >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    n = (n ^ n >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ n >> 33
}

export_policy!(Sample);

#[cfg(test)]
mod tests {
    use lcap_policy_sdk::harness::{Harness, emitted};
    use lcap_policy_sdk::{Fid, RecordBuilder, RecordType, serde_json::json};

    use super::*;

    /// Targets of what passes, of 1000 objects with three records each.
    fn targets(config: lcap_policy_sdk::serde_json::Value) -> Vec<u32> {
        let mut sample = Harness::of::<Sample>(config).unwrap();
        for index in 0..3000 {
            let target = Fid { seq: 0x2_0000_0401, oid: index % 1000, ver: 0 };
            let record =
                RecordBuilder::new(RecordType::SETATTR).index(u64::from(index)).target(target);
            sample.push(&record.build());
        }
        let decided = sample.pull().unwrap();
        assert_eq!((decided.len(), sample.held()), (3000, 0));
        emitted(&decided).iter().map(|record| record.target().oid).collect()
    }

    #[test]
    fn every_so_many_th_record_passes() {
        assert_eq!(targets(json!({"one_in": 500})), [0, 500, 0, 500, 0, 500]);
        assert_eq!(targets(json!({"one_in": 1})).len(), 3000);
    }

    #[test]
    fn objects_are_chosen_with_all_their_records() {
        let config = json!({"one_in": 10, "by": "object"});
        let chosen = targets(config.clone());
        assert_eq!(chosen, targets(config), "always the same");
        let (first, rest) = chosen.split_at(chosen.len() / 3);
        assert_eq!(rest, [first, first].concat());
        assert!((60..140).contains(&first.len()), "{}", first.len());
        assert_ne!(
            first,
            &targets(json!({"one_in": 10, "by": "object", "seed": 1}))[..first.len()]
        );
    }

    #[test]
    fn nothing_in_zero_is_refused() {
        assert!(Harness::of::<Sample>(json!({"one_in": 0})).unwrap_err().contains("at least 1"));
    }
}
