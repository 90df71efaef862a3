//! The checker: reads the journals of a campaign and counts broken promises.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use lcap_ffi::RecordIndex;
use lcap_wire::RangeSet;

use crate::journal::{ClientKind, Line, Time};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Records that were handed to applications.
    pub records: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Records that somebody should have been given, and was not.
    pub lost: u64,
    /// Times that an MDT had forgotten what was not acknowledged.
    pub early_clears: u64,
    /// Records that one process of a broadcast stream was given twice.
    pub duplicates: u64,
    /// Records that members of a queue were given again, which may happen.
    pub redelivered: u64,
    /// Records that unregistered clients missed because nobody had kept them.
    pub missed: u64,
    /// The first few, as sentences.
    pub examples: Vec<String>,
}

impl Findings {
    /// Nothing lost, nothing cleared too early, nothing twice.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.early_clears == 0 && self.duplicates == 0
    }

    fn example(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < 20 {
            self.examples.push(what());
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kills={} records={} lost={} early_clears={} duplicates={} redelivered={} missed={}",
            self.kills,
            self.records,
            self.lost,
            self.early_clears,
            self.duplicates,
            self.redelivered,
            self.missed
        )
    }
}

/// What lcapd has noted that it is about to clear, strangers are told to be gone; the MDT hears of it
/// a little later.
const GIVEN_UP_NANOS: Time = 5_000_000_000;

/// Stream, reader (`-`: a queue), MDT.
type HolderKey = (String, String, String);

#[derive(Debug, Default)]
struct Holder {
    start: u64,
    got: RangeSet,
    acked: RangeSet,
    gone: bool,
}

#[derive(Debug)]
struct Client {
    kind: ClientKind,
    key: HolderKey,
    got: RangeSet,
    /// Given and not acknowledged.
    open: RangeSet,
    last: Option<u64>,
}

fn ix(index: u64) -> RecordIndex {
    RecordIndex::new(index)
}

/// Reads every `*.journal` in a directory and checks them against each other.
///
/// # Errors
/// What cannot be read. A last line without its end is what a killed process leaves; it is ignored.
pub fn check(dir: &Path) -> Result<Findings, String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "journal"));
    paths.sort();
    let mut lines: Vec<(Time, usize, Line)> = Vec::new();
    for (file, path) in paths.iter().enumerate() {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for (nth, line) in text.split_inclusive('\n').enumerate() {
            let Some(line) = line.strip_suffix('\n') else { continue };
            let (time, line) = Line::parse(line)
                .map_err(|error| format!("{}:{}: {error}", path.display(), nth + 1))?;
            lines.push((time, file, line));
        }
    }
    // Stable: lines of one file stay in order. What was acknowledged in the moment of a clear counts.
    lines.sort_by_key(|(time, _, line)| (*time, matches!(line, Line::Cleared(..))));
    let mut checker = Checker::default();
    for (_, _, line) in &lines {
        if let Line::Exists(mdt, first, last) = line {
            checker.exists.entry(mdt.clone()).or_default().insert(ix(*first), ix(*last));
        }
    }
    for (time, file, line) in lines {
        checker.now = time;
        checker.take(file, line);
    }
    Ok(checker.finish())
}

#[derive(Debug, Default)]
struct Checker {
    exists: BTreeMap<String, RangeSet>,
    holders: BTreeMap<HolderKey, Holder>,
    clients: BTreeMap<usize, Client>,
    cleared: BTreeMap<String, u64>,
    now: Time,
    /// What strangers have not had and what was not cleared yet, by MDT.
    given_up: Vec<(Time, String, u64, u64)>,
    finished: bool,
    findings: Findings,
}

impl Checker {
    fn take(&mut self, file: usize, line: Line) {
        match line {
            Line::Client(kind, stream, mdt, reader) => {
                let (got, open) = (RangeSet::new(), RangeSet::new());
                let client = Client { kind, key: (stream, reader, mdt), got, open, last: None };
                self.clients.insert(file, client);
            }
            Line::Got(first, last) => self.got(file, first, last),
            Line::Ack(upto) => self.ack(file, upto),
            Line::Gap(..) | Line::Exists(..) => {}
            Line::Cleared(mdt, upto) => self.cleared(mdt, upto),
            Line::Holder(stream, reader, mdt, start) => {
                let holder = self.holders.entry((stream, reader, mdt)).or_default();
                (holder.start, holder.gone) = (start, false);
            }
            Line::Gone(stream, reader) => {
                for (key, holder) in &mut self.holders {
                    holder.gone |= (&key.0, &key.1) == (&stream, &reader);
                }
            }
            Line::Kill(_) => self.findings.kills += 1,
            Line::Finished => self.finished = true,
        }
    }

    fn got(&mut self, file: usize, first: u64, last: u64) {
        let Some(client) = self.clients.get_mut(&file) else { return };
        let findings = &mut self.findings;
        findings.records += last - first + 1;
        let again = overlap(&client.got, first, last);
        if client.kind == ClientKind::Member {
            findings.redelivered += again;
        } else {
            findings.duplicates += again;
            if again > 0 {
                findings.example(|| format!("{:?} was given {first}-{last} twice", client.key));
            } else if client.last.is_some_and(|before| before > first) {
                findings.duplicates += 1;
                findings.example(|| {
                    format!("{:?} was given {first} after {:?}", client.key, client.last)
                });
            }
            if let Some(before) = client.last.filter(|before| before + 1 < first) {
                let exists = self.exists.get(&client.key.2);
                let cleared = self.cleared.get(&client.key.2).copied().unwrap_or(0);
                let holes = exists.map_or(0, |all| overlap(all, before + 1, first - 1));
                let excused =
                    exists.map_or(0, |all| overlap(all, before + 1, cleared.min(first - 1)));
                let is_stranger = client.kind == ClientKind::Ephemeral;
                let excused = if is_stranger { excused } else { 0 };
                findings.missed += excused;
                if is_stranger && holes > excused {
                    let from = (before + 1).max(cleared + 1);
                    self.given_up.push((self.now, client.key.2.clone(), from, first - 1));
                } else if holes > excused {
                    findings.lost += holes - excused;
                    findings.example(|| {
                        format!("{:?} was given {first} right after {before}", client.key)
                    });
                }
            }
        }
        client.last = Some(last);
        client.got.insert(ix(first), ix(last));
        client.open.insert(ix(first), ix(last));
        if let Some(holder) = self.holders.get_mut(&client.key) {
            holder.got.insert(ix(first), ix(last));
        }
    }

    fn ack(&mut self, file: usize, upto: u64) {
        let Some(client) = self.clients.get_mut(&file) else { return };
        let Some(holder) = self.holders.get_mut(&client.key) else { return };
        for (first, last) in client.open.iter().take_while(|(first, _)| first.get() <= upto) {
            holder.acked.insert(first, last.min(ix(upto)));
        }
        client.open.remove_upto(ix(upto));
    }

    fn cleared(&mut self, mdt: String, upto: u64) {
        let before = self.cleared.get(&mdt).copied().unwrap_or(0);
        if upto < before {
            self.findings.early_clears += 1;
            self.findings.example(|| format!("{mdt} cleared {upto} after {before}"));
        }
        for (key, holder) in self.holders.iter().filter(|(key, h)| key.2 == mdt && !h.gone) {
            let Some(exists) = self.exists.get(&mdt) else { continue };
            if let Some(open) = first_missing(exists, &holder.acked, holder.start + 1, upto) {
                self.findings.early_clears += 1;
                let what =
                    format!("{mdt} cleared up to {upto}, {key:?} had not acknowledged {open}");
                self.findings.example(|| what);
            }
        }
        for (since, of, first, last) in &mut self.given_up {
            if *of == mdt && self.now <= since.saturating_add(GIVEN_UP_NANOS) && *first <= upto {
                let exists = self.exists.get(&mdt);
                let now_gone = exists.map_or(0, |all| overlap(all, *first, upto.min(*last)));
                self.findings.missed += now_gone;
                *first = upto + 1;
            }
        }
        self.cleared.insert(mdt, upto.max(before));
    }

    fn finish(mut self) -> Findings {
        for (_, mdt, first, last) in std::mem::take(&mut self.given_up) {
            let exists = self.exists.get(&mdt);
            let lost =
                if first > last { 0 } else { exists.map_or(0, |all| overlap(all, first, last)) };
            self.findings.lost += lost;
            if lost > 0 {
                let what = format!("a stranger was not given {first} to {last} of {mdt}");
                self.findings.example(|| what);
            }
        }
        if !self.finished {
            return self.findings; // who was still on its way is not counted
        }
        let mut named = BTreeSet::new();
        for (key, holder) in self.holders.iter().filter(|(_, holder)| !holder.gone) {
            let Some(exists) = self.exists.get(&key.2) else { continue };
            let newest = exists.last().map_or(0, RecordIndex::get);
            let all = overlap(exists, holder.start + 1, newest);
            let mut had = 0;
            for (first, last) in holder.got.iter() {
                had += overlap(exists, first.get().max(holder.start + 1), last.get());
            }
            self.findings.lost += all - had;
            if had < all && named.insert(key.clone()) {
                let open = first_missing(exists, &holder.got, holder.start + 1, newest);
                let what = format!("{key:?} was never given {} records, first {open:?}", all - had);
                self.findings.example(|| what);
            }
        }
        self.findings
    }
}

/// How many of `first..=last` are in the set.
fn overlap(set: &RangeSet, first: u64, last: u64) -> u64 {
    let parts = set.iter().filter(|(a, b)| a.get() <= last && b.get() >= first);
    parts.map(|(a, b)| (b.get().min(last) + 1).saturating_sub(a.get().max(first))).sum()
}

/// The first of `all` within `from..=upto` that is not in `some`.
fn first_missing(all: &RangeSet, some: &RangeSet, from: u64, upto: u64) -> Option<u64> {
    for (first, last) in all.iter() {
        let (first, last) = (first.get().max(from), last.get().min(upto));
        if first > last {
            continue;
        }
        match some.end_of_range_at(ix(first)) {
            None => return Some(first),
            Some(end) if end.get() < last => return Some(end.get() + 1),
            Some(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(journals: &[(&str, &str)]) -> Findings {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in journals {
            std::fs::write(dir.path().join(format!("{name}.journal")), text).unwrap();
        }
        check(dir.path()).unwrap()
    }

    const DRIVER: &str = "1 exists m 1 10\n1 holder s r m 0\n";

    #[test]
    fn what_is_wrong_is_counted() {
        let reader = "2 client reader s m r\n3 got 1 5\n4 ack 5\n";
        let cases: [(&str, &str, &str, [u64; 3]); 7] = [
            ("all is well", "9 cleared m 5\n", reader, [0, 0, 0]),
            ("6 was cleared", "9 cleared m 6\n", reader, [0, 1, 0]),
            ("cleared before the acknowledgement", "3 cleared m 1\n", reader, [0, 1, 0]),
            ("cleared backwards", "9 cleared m 5\n10 cleared m 4\n", reader, [0, 1, 0]),
            ("6 to 10 never came", "9 finished\n", reader, [5, 0, 0]),
            ("5 came twice", "", "2 client reader s m r\n3 got 1 5\n4 got 5 7\n", [0, 0, 1]),
            (
                "4 and 5 were left out",
                "",
                "2 client reader s m r\n3 got 1 3\n4 got 6 7\n",
                [2, 0, 0],
            ),
        ];
        for (what, driver, client, want) in cases {
            let found = findings(&[("a", &format!("{DRIVER}{driver}")), ("b", client)]);
            assert_eq!(
                [found.lost, found.early_clears, found.duplicates],
                want,
                "{what}: {found:?}"
            );
        }
    }

    #[test]
    fn two_lives_of_a_reader_count_together_and_a_torn_line_is_no_line() {
        let first = "2 client reader s m r\n3 got 1 5\n4 ack 3\n5 got 6";
        let second = "6 client reader s m r\n7 got 4 10\n8 ack 10\n";
        let driver = format!("{DRIVER}9 cleared m 10\n9 finished\n5 kill client\n");
        let found = findings(&[("a", &driver), ("b", first), ("c", second)]);
        assert!(found.is_clean(), "{found:?}");
        assert_eq!((found.records, found.kills), (12, 1));
    }

    #[test]
    fn a_queue_may_give_records_again_and_strangers_may_miss_what_nobody_kept() {
        let driver = "1 exists m 1 10\n1 holder q - m 0\n6 cleared m 4\n9 finished\n";
        let one = "2 client member q m -\n3 got 1 4\n4 ack 4\n";
        let two = "2 client member q m -\n3 got 3 10\n4 got 9 10\n5 ack 10\n";
        let stranger = "2 client ephemeral q m x\n3 got 1 2\n7 got 5 7\n";
        let found = findings(&[("a", driver), ("b", one), ("c", two), ("d", stranger)]);
        assert!(found.is_clean(), "{found:?}");
        assert_eq!((found.redelivered, found.missed), (2, 2));
    }
}
