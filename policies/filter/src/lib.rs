//! `filter`: lets records pass or not, by an expression of the filter language.
//!
//! ```toml
//! policies = [ { module = "filter", keep = "type in (CREAT, UNLNK) and not name ~ '*.tmp'" } ]
//! policies = [ { module = "filter", drop = "jobid ~ 'backup.*' or type = CLOSE" } ]
//! ```
//!
//! What is dropped settles at once. With both, a record must pass `keep` and not fall under `drop`.
#![deny(unsafe_code)]

use lcap_filter::Filter as Expression;
use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, OptionKind, Out, Policy, PolicyOption, Records, export_policy,
};
use serde::Deserialize;

/// The module.
#[derive(Debug)]
pub struct Filter {
    keep: Option<Expression>,
    drop: Option<Expression>,
    mdts: Vec<String>,
    /// Decided runs: first token, number, verdict.
    runs: Vec<(u64, u32, bool)>,
}

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    keep: Option<String>,
    drop: Option<String>,
}

impl Policy for Filter {
    const NAME: &'static CStr = c"filter";
    const SUMMARY: &'static str = "lets records pass or not, by an expression";
    const VERBATIM: bool = true;
    type Config = Config;

    fn options() -> Vec<PolicyOption> {
        vec![
            PolicyOption::new("keep", OptionKind::Text, "expression: only these records pass"),
            PolicyOption::new("drop", OptionKind::Text, "expression: these records do not pass"),
        ]
    }

    fn create(config: Config, host: &Host) -> Result<Self, Failure> {
        let compile = |option: &str, text: Option<String>| {
            let parse = |text: String| {
                text.parse().map_err(|error| Failure::new(format!("option `{option}`: {error}")))
            };
            text.map(parse).transpose()
        };
        if config.keep.is_none() && config.drop.is_none() {
            return Err(Failure::new("one of the options `keep` and `drop` is needed"));
        }
        Ok(Self {
            keep: compile("keep", config.keep)?,
            drop: compile("drop", config.drop)?,
            mdts: (0..host.n_mdts()).map(|mdt| host.mdt_name(mdt).unwrap_or_default()).collect(),
            runs: Vec::new(),
        })
    }

    fn enqueue(&mut self, records: Records<'_>, _: Nanos) -> Result<(), Failure> {
        for item in records {
            let record = item.record()?;
            let mdt = self.mdts.get(item.mdt as usize).map_or("", String::as_str);
            let kept = self.keep.as_ref().is_none_or(|keep| keep.matches(&record, mdt));
            let passes = kept && !self.drop.as_ref().is_some_and(|drop| drop.matches(&record, mdt));
            match self.runs.last_mut() {
                Some((first, n, verdict))
                    if *verdict == passes
                        && first.checked_add(u64::from(*n)) == Some(item.token) =>
                {
                    *n += 1;
                }
                _ => self.runs.push((item.token, 1, passes)),
            }
        }
        Ok(())
    }

    fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
        for (first, n, passes) in self.runs.drain(..) {
            if passes { out.emit_run(first, n) } else { out.drop_run(first, n) }
        }
        Ok(None)
    }
}

export_policy!(Filter);

#[cfg(test)]
mod tests {
    use lcap_policy_sdk::harness::{Harness, emitted};
    use lcap_policy_sdk::{RecordBuilder, RecordType, serde_json::json};

    use super::*;

    fn passed(config: serde_json::Value) -> Vec<u64> {
        let mut filter = Harness::of::<Filter>(config).unwrap();
        let record = |index: u64| {
            let rec_type =
                if index.is_multiple_of(3) { RecordType::UNLINK } else { RecordType::CREATE };
            RecordBuilder::new(rec_type).index(index).uidgid(index % 4, 0).build()
        };
        for mdt in 0..2 {
            let records: Vec<_> = (1..=12).map(|n| record(n + 100 * u64::from(mdt))).collect();
            filter.push_all(mdt, records.iter().map(Vec::as_slice)).unwrap();
        }
        let decided = filter.pull().unwrap();
        assert_eq!((decided.len(), filter.held()), (24, 0), "nothing is held back");
        emitted(&decided).iter().map(|record| record.index().get()).collect()
    }

    use lcap_policy_sdk::serde_json;

    #[test]
    fn records_pass_as_the_expressions_say() {
        assert_eq!(passed(json!({"keep": "type = UNLNK and mdt ~ *0000"})), [3, 6, 9, 12]);
        assert_eq!(passed(json!({"drop": "uid != 0 or mdt ~ *0001"})), [4, 8, 12]);
        assert_eq!(passed(json!({"keep": "index < 10", "drop": "index in (2-8)"})), [1, 9]);
        assert_eq!(passed(json!({"keep": "type = HSM"})), Vec::<u64>::new());
    }

    #[test]
    fn wrong_expressions_are_refused_with_their_place() {
        let fails = |config| Harness::of::<Filter>(config).unwrap_err();
        let error = fails(json!({"keep": "uid = bob"}));
        assert!(
            error.contains("option `keep`: filter, at character 7: expected a number"),
            "{error}"
        );
        assert!(fails(json!({})).contains("`keep` and `drop`"));
        assert!(fails(json!({"kep": "uid"})).contains("kep"));
    }
}
