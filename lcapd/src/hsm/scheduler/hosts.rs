//! Which hosts an archive may go to, by what its data says: `archive_on_hosts` and
//! `archive_on_hosts_ch`, with the results that coordinatool gives.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::hsm::request::{Kind, Request, tag_value};

/// Names of workers that a request may go to; all if it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostSet(Option<Arc<Names>>);

/// Behind a thin pointer, of which each request has one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Names(Box<[Box<str>]>);

impl HostSet {
    /// Only these.
    pub fn only<S: Into<Box<str>>>(hosts: impl IntoIterator<Item = S>) -> Self {
        Self(Some(Arc::new(Names(hosts.into_iter().map(Into::into).collect()))))
    }

    /// Whether a worker of this name may have it.
    pub fn allows(&self, worker: &str) -> bool {
        self.names().is_none_or(|hosts| hosts.iter().any(|host| **host == *worker))
    }

    /// The names, unless it is for all.
    pub fn names(&self) -> Option<&[Box<str>]> {
        self.0.as_deref().map(|names| &*names.0)
    }
}

/// A line of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Archives whose data has `text` anywhere go to any of `hosts`, and to no other.
    Contains {
        /// The text.
        text: String,
        /// The hosts, not none.
        hosts: HostSet,
    },
    /// Of archives whose data has the tag, each value has one host.
    Hashed {
        /// The tag, with its `=`.
        tag: String,
        /// If not 0, the value is replaced by a number below this.
        n_values: u64,
        /// The hosts, not none, each in a set of its own.
        hosts: Vec<HostSet>,
        /// By highest random weight: another host takes its part of the values, and all others stay where they are. Else
        /// by remainder, as in coordinatool, where nearly all of them move.
        rendezvous: bool,
    },
}

impl Rule {
    /// `archive_on_hosts TEXT HOST...`; `None` without a host.
    pub fn contains(text: &str, hosts: &[&str]) -> Option<Self> {
        let hosts = (!hosts.is_empty()).then(|| HostSet::only(hosts.iter().copied()))?;
        Some(Self::Contains { text: text.to_owned(), hosts })
    }

    /// A rule by values goes by highest random weight.
    #[must_use]
    pub fn by_rendezvous(mut self) -> Self {
        if let Self::Hashed { rendezvous, .. } = &mut self {
            *rendezvous = true;
        }
        self
    }

    /// `archive_on_hosts_ch TAG N HOST...`; `None` without a host.
    pub fn hashed(tag: &str, n_values: u64, hosts: &[&str]) -> Option<Self> {
        let hosts: Vec<_> = hosts.iter().map(|host| HostSet::only([*host])).collect();
        (!hosts.is_empty()).then(|| Self::Hashed {
            tag: tag.to_owned(),
            n_values,
            hosts,
            rendezvous: false,
        })
    }
}

/// Where the last rule that matches sends a request, and its new data if the rule says so.
pub(super) fn route(rules: &[Rule], request: &Request) -> (HostSet, Option<Box<[u8]>>) {
    let everywhere = (HostSet::default(), None);
    if request.kind != Kind::Archive {
        return everywhere;
    }
    let data = request.hint();
    let found = rules.iter().rev().find(|rule| {
        let (Rule::Contains { text, .. } | Rule::Hashed { tag: text, .. }) = rule;
        contains(data, text.as_bytes())
    });
    match found {
        None => everywhere,
        Some(Rule::Contains { hosts, .. }) => (hosts.clone(), None),
        Some(Rule::Hashed { tag, n_values, hosts, rendezvous }) => {
            // A tag that stands only inside of another word says nothing.
            let Some(value) = tag_value(data, tag) else { return everywhere };
            let n_hosts = hosts.len() as u64;
            let host = |h: u64| {
                let best = hosts.iter().max_by_key(|host| weight(h, host));
                match best.filter(|_| *rendezvous) {
                    Some(best) => best.clone(),
                    None => hosts[usize::try_from(h % n_hosts).unwrap_or(0)].clone(),
                }
            };
            if *n_values == 0 {
                return (host(hash(value)), None);
            }
            let value_now = (hash(value) % n_values).to_string();
            let at = value.as_ptr() as usize - data.as_ptr() as usize;
            let rest = &request.data[at + value.len()..];
            let data = [&data[..at], value_now.as_bytes(), rest].concat();
            (host(hash(value_now.as_bytes())), Some(data.into()))
        }
    }
}

fn contains(data: &[u8], text: &[u8]) -> bool {
    text.is_empty() || data.windows(text.len()).any(|window| window == text)
}

/// The sum by which coordinatool chooses: its bytes are signed.
pub fn hash(value: &[u8]) -> u64 {
    value.iter().fold(5381, |h: u64, &b| {
        h.wrapping_mul(33).wrapping_add(i64::from(b.cast_signed()).cast_unsigned())
    })
}

/// Of a value on a host; each bit depends on all of both.
fn weight(value: u64, host: &HostSet) -> u64 {
    let name = host.names().and_then(<[_]>::first).map_or(0, |name| hash(name.as_bytes()));
    [name, value].into_iter().fold(0_u64, |sum, next| {
        let mut x = sum.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ next;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::request::Source;
    use lcap_ffi::Fid;

    fn archive(data: &[u8]) -> Request {
        let fid = Fid { seq: 1, oid: 1, ver: 0 };
        let mut request = Request::new(Source::Upcall, "l-MDTffff".into(), Kind::Archive, fid, 1);
        request.data = data.into();
        request
    }

    fn names(set: &HostSet) -> Vec<&str> {
        set.names().unwrap_or_default().iter().map(|name| &**name).collect()
    }

    #[test]
    fn hashes_choose_as_coordinatool_does() {
        for (value, sum, third, tenth, then) in [
            ("test0", 210_728_875_317, 0, 7, Some(1)),
            ("test1", 210_728_875_318, 1, 8, Some(2)),
            ("test2", 210_728_875_319, 2, 9, Some(0)),
            ("", 5381, 2, 1, None),
            ("project-A", 249_902_721_459_411_338, 2, 8, Some(2)),
            ("é", 5_857_809, 0, 9, Some(0)),
        ] {
            assert_eq!(hash(value.as_bytes()), sum, "{value}");
            let all = ["h0", "h1", "h2"];
            let request = archive(format!("a=b,grouping={value},c").as_bytes());
            let rules = [Rule::hashed("grouping=", 0, &all).unwrap()];
            let (hosts, data) = route(&rules, &request);
            assert_eq!((names(&hosts), data), (vec![all[third]], None), "{value}");

            let rules = [Rule::hashed("grouping=", 10, &all).unwrap()];
            let (hosts, data) = route(&rules, &request);
            let want = format!("a=b,grouping={tenth},c");
            assert_eq!(data.as_deref(), Some(want.as_bytes()), "{value}");
            if let Some(then) = then {
                assert_eq!(names(&hosts), [all[then]], "{value}");
            }
        }
    }

    #[test]
    fn with_another_host_only_those_values_move_that_go_there() {
        let choose = |all: &[&str], n: u32| {
            let rules = [Rule::hashed("g=", 0, all).unwrap().by_rendezvous()];
            let (hosts, _) = route(&rules, &archive(format!("g=group{n}").as_bytes()));
            names(&hosts)[0].to_owned()
        };
        let (three, four) = (["h0", "h1", "h2"], ["h0", "h1", "h2", "h3"]);
        let mut counts = [0; 4];
        for n in 0..4000 {
            let (before, after) = (choose(&three, n), choose(&four, n));
            assert!(after == before || after == "h3", "{n}: {before}, {after}");
            counts[four.iter().position(|host| *host == after).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&n| (800..1200).contains(&n)), "{counts:?}");
    }

    #[test]
    fn text_counts_anywhere_and_the_last_line_wins() {
        let rules = [
            Rule::contains("tag=n1", &["a"]).unwrap(),
            Rule::contains("tag=n2", &["b", "c"]).unwrap(),
        ];
        for (data, want) in [
            (&b"tag=n1"[..], &["a"][..]),
            (b"xtag=n22", &["b", "c"]),
            (b"tag=n1,tag=n2", &["b", "c"]),
            (b"x\0tag=n1", &[]),
            (b"", &[]),
        ] {
            assert_eq!(names(&route(&rules, &archive(data)).0), want, "{data:?}");
        }
        let mut restore = archive(b"tag=n1");
        restore.kind = Kind::Restore;
        assert_eq!(route(&rules, &restore).0, HostSet::default());
        // Data behind a NUL stays.
        let rules = [Rule::hashed("g=", 10, &["a"]).unwrap()];
        let (_, data) = route(&rules, &archive(b"g=test0\0x"));
        assert_eq!(data.as_deref(), Some(&b"g=7\0x"[..]));
        // Not the start of a word.
        assert_eq!(route(&rules, &archive(b"bag=test0")), (HostSet::default(), None));
    }
}
