//! `group`: gives records a route key, so that a queue's lanes bring what belongs together to one
//! member, in order; and, inside a window, brings it together in the stream, too.
//!
//! ```toml
//! policies = [ { module = "group", by = "tfid" } ]
//! policies = [ { module = "group", by = "pfid", window = "500ms" } ]
//! ```
//!
//! Without `window` nothing is held back or reordered: records only get their keys. With it, the
//! records of a window come out group by group, groups in the order of their first record.
//!
//! The key of a record:
//!
//! | `by` | the key is of |
//! | --- | --- |
//! | `tfid` | the object that it is about: the target; of a rename or migration the object that moved |
//! | `pfid` | its directory; of a rename the new one; without a (trustworthy) parent, as `tfid` |
//! | `mdt` | its MDT |
//! | `uid`, `jobid` | who made the change; records that do not say get a key of their own |
//!
//! A rename that overwrites a file concerns two objects; it goes with the one that moved.
#![deny(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use lcap_policy_sdk::{
    CStr, Failure, Fid, Host, Nanos, OptionKind, Out, Policy, PolicyOption, Record, RecordType,
    Records, Span, export_policy,
};
use serde::Deserialize;

/// The module.
#[derive(Debug)]
pub struct Group {
    by: By,
    window: Duration,
    count: usize,
    /// Token and key of what is held, in order.
    held: Vec<(u64, u64)>,
    since: Nanos,
}

/// What belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Records about one object.
    Tfid,
    /// Records of one directory.
    Pfid,
    /// Records of one MDT.
    Mdt,
    /// Records of one user.
    Uid,
    /// Records of one job.
    Jobid,
}

/// Its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    by: By,
    #[serde(default = "no_window")]
    window: Span,
    #[serde(default = "default_count")]
    count: usize,
}

fn no_window() -> Span {
    Span(Duration::ZERO)
}

fn default_count() -> usize {
    100_000
}

impl Policy for Group {
    const NAME: &'static CStr = c"group";
    const SUMMARY: &'static str =
        "gives route keys, so that what belongs together goes to one member of a queue, in order";
    const VERBATIM: bool = true;
    type Config = Config;

    fn options() -> Vec<PolicyOption> {
        let by = OptionKind::Choice(&["tfid", "pfid", "mdt", "uid", "jobid"]);
        vec![
            PolicyOption::new("by", by, "what belongs together").required(),
            PolicyOption::new(
                "window",
                OptionKind::Duration,
                "hold records for so long and bring groups together; 0s only gives keys",
            )
            .default("0s"),
            PolicyOption::new("count", OptionKind::Integer(1, 100_000_000), "most records held")
                .default(100_000),
        ]
    }

    fn create(config: Config, _: &Host) -> Result<Self, Failure> {
        let Config { by, window, count } = config;
        Ok(Self { by, window: window.0, count, held: Vec::new(), since: Nanos(0) })
    }

    fn enqueue(&mut self, records: Records<'_>, now: Nanos) -> Result<(), Failure> {
        if self.held.is_empty() {
            self.since = now;
        }
        self.held.reserve(records.len());
        for item in records {
            self.held.push((item.token, self.by.key(&item.record()?, item.mdt)));
        }
        Ok(())
    }

    fn dequeue(
        &mut self,
        now: Nanos,
        flush: bool,
        out: &mut Out,
    ) -> Result<Option<Nanos>, Failure> {
        let until = self.since + self.window;
        if self.held.is_empty() || !(flush || now >= until || self.held.len() >= self.count) {
            return Ok((!self.held.is_empty()).then_some(until));
        }
        if !self.window.is_zero() {
            let mut first_of: HashMap<u64, u64> = HashMap::new();
            for &(token, key) in &self.held {
                first_of.entry(key).or_insert(token);
            }
            self.held.sort_by_cached_key(|&(token, key)| (first_of.get(&key).copied(), token));
        }
        for (token, key) in self.held.drain(..) {
            out.emit_routed(token, key);
        }
        Ok(None)
    }
}

impl By {
    /// Never zero, which means no key.
    fn key(self, record: &Record<'_>, mdt: u32) -> u64 {
        let about = || record.source().filter(|fid| !fid.is_zero()).unwrap_or(record.target());
        let hash = match self {
            Self::Tfid => of_fid(about()),
            Self::Pfid => of_fid(parent(record).unwrap_or_else(about)),
            Self::Mdt => mix(u64::from(mdt) + 1),
            Self::Uid => mix(record.uid().map_or(0, |uid| uid.wrapping_add(1))),
            Self::Jobid => of_bytes(record.jobid().unwrap_or_default()),
        };
        hash.max(1)
    }
}

/// Other types have none, or may carry a stale one.
fn parent(record: &Record<'_>) -> Option<Fid> {
    let named = matches!(record.rec_type().0, 1..=9) || record.rec_type() == RecordType::MIGRATE;
    named.then(|| record.parent()).filter(|fid| !fid.is_zero())
}

fn of_fid(fid: Fid) -> u64 {
    // The version is always zero, and does not count.
    mix(mix(fid.seq) ^ u64::from(fid.oid))
}

fn of_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(mix(bytes.len() as u64), |hash, &byte| mix(hash ^ u64::from(byte)))
}

/// Spreads a number over all bits (the finaliser of MurmurHash3): lanes are chosen by remainder.
fn mix(mut n: u64) -> u64 {
    n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ n >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    n = (n ^ n >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ n >> 33
}

export_policy!(Group);

#[cfg(test)]
mod tests {
    use lcap_policy_sdk::harness::{Decided, Harness};
    use lcap_policy_sdk::{RecordBuilder, serde_json::json};

    use super::*;

    fn fid(oid: u32) -> Fid {
        Fid { seq: 0x2_0000_0401, oid, ver: 0 }
    }

    fn create(index: u64, target: u32, parent: u32) -> RecordBuilder {
        RecordBuilder::new(RecordType::CREATE).index(index).target(fid(target)).parent(fid(parent))
    }

    /// Indexes and keys in the order of emission.
    fn run(
        config: lcap_policy_sdk::serde_json::Value,
        records: &[RecordBuilder],
    ) -> Vec<(u64, u64)> {
        let mut group = Harness::of::<Group>(config).unwrap();
        for record in records {
            group.push(&record.build());
        }
        let decided = group.flush().unwrap();
        let emitted = decided.into_iter().map(|one| match one {
            Decided::Emitted { route, indexes, .. } => (indexes[0], route),
            Decided::Dropped { .. } => panic!("nothing is dropped"),
        });
        emitted.collect()
    }

    #[test]
    fn what_belongs_together_has_one_key() {
        let rename = RecordBuilder::new(RecordType::RENAME)
            .index(4)
            .target(fid(9))
            .parent(fid(20))
            .renamed_from(fid(1), fid(10), b"x");
        let close = RecordBuilder::new(RecordType::CLOSE).index(5).target(fid(1)).parent(fid(99));
        let records = [
            create(1, 1, 10).uidgid(5, 0).jobid(b"a"),
            create(2, 2, 10).uidgid(6, 0).jobid(b"b"),
            create(3, 1, 20).uidgid(5, 0).jobid(b"a"),
            rename,
            close,
        ];
        // Which records share a key with which.
        let cases: &[(&str, &[&[usize]])] = &[
            ("tfid", &[&[0, 2, 3, 4], &[1]]),
            ("pfid", &[&[0, 1], &[2, 3], &[4]]),
            ("mdt", &[&[0, 1, 2, 3, 4]]),
            ("uid", &[&[0, 2], &[1], &[3, 4]]),
            ("jobid", &[&[0, 2], &[1], &[3, 4]]),
        ];
        for (by, classes) in cases {
            let keys: Vec<u64> =
                run(json!({"by": by}), &records).iter().map(|(_, key)| *key).collect();
            let class = |at: usize| classes.iter().position(|class| class.contains(&at));
            for a in 0..keys.len() {
                assert_ne!(keys[a], 0);
                for b in 0..keys.len() {
                    assert_eq!(keys[a] == keys[b], class(a) == class(b), "{by}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn keys_spread_over_lanes() {
        let records: Vec<_> = (1..=8000).map(|n| create(n, u32::try_from(n).unwrap(), 1)).collect();
        let mut lanes = [0; 8];
        for (_, key) in run(json!({"by": "tfid"}), &records) {
            lanes[usize::try_from(key % 8).unwrap()] += 1;
        }
        assert!(lanes.iter().all(|n| (800..1200).contains(n)), "{lanes:?}");
    }

    #[test]
    fn groups_come_together_inside_a_window_and_only_there() {
        let records: Vec<_> = [7, 8, 7, 9, 8, 7]
            .into_iter()
            .zip(1..)
            .map(|(target, index)| create(index, target, 1))
            .collect();
        let order = |config| run(config, &records).into_iter().map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(order(json!({"by": "tfid", "window": "1s"})), [1, 3, 6, 2, 5, 4]);
        assert_eq!(order(json!({"by": "tfid"})), [1, 2, 3, 4, 5, 6]);

        let mut group =
            Harness::of::<Group>(json!({"by": "tfid", "window": "1s", "count": 3})).unwrap();
        group.push(&records[0].build());
        assert_eq!(group.pull().unwrap().len(), 0);
        assert_eq!(group.wake_at(), Some(group.now() + Duration::from_secs(1)));
        group.advance(Duration::from_secs(1));
        assert_eq!(group.pull().unwrap().len(), 1);
        for record in &records[1..4] {
            group.push(&record.build());
        }
        assert_eq!(group.pull().unwrap().len(), 3, "three are enough");
        assert!(Harness::of::<Group>(json!({"by": "colour"})).is_err());
        assert!(Harness::of::<Group>(json!({})).unwrap_err().contains("by"));
    }
}
