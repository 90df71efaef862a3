use std::collections::BTreeMap;
use std::sync::Arc;

use lcap_ffi::RecordIndex;
use lcap_ffi::hsm_action::HsmActionEvent;
use lcap_ffi::record::records;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::actions::journal::Journal;
use crate::actions::upstream::JournalUpstream;
use crate::source::{ReadOutcome, Upstream as _};

struct Table {
    _dir: TempDir,
    journal: Arc<Journal>,
    told: RecordIndex,
}

fn line(rec: u32, cookie: u64, status: &str) -> String {
    format!(
        "lrh=[type=10680000 len=136 idx=1/{rec}] fid=[0x200000402:{cookie:#x}:0x0] \
         dfid=[0x200000402:{cookie:#x}:0x0] compound/cookie=0x0/{cookie:#x} action=ARCHIVE \
         archive#=1 flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 datalen=0 status={status} \
         data=[]\n"
    )
}

impl Table {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(dir.path(), 1_000_000).unwrap());
        Self { _dir: dir, journal, told: RecordIndex::new(1) }
    }

    fn read(&mut self, list: impl Read) -> (Result<Found, ScanError>, Vec<String>) {
        let result = scan(list, self.journal.writer(), RecordTime::new(1, 0));
        (result, self.events())
    }

    fn text(&mut self, text: &str) -> Vec<String> {
        let (result, events) = self.read(text.as_bytes());
        result.unwrap();
        events
    }

    /// `kind slot cookie status`, of what was not told yet.
    fn events(&mut self) -> Vec<String> {
        let mut source = JournalUpstream(Arc::clone(&self.journal)).open(self.told).unwrap();
        let mut told = Vec::new();
        loop {
            let mut buf = Vec::with_capacity(1 << 16);
            let ReadOutcome::Bytes(_) = source.read(&mut buf).unwrap() else { break };
            for record in records(&buf) {
                let event = HsmActionEvent::parse(&record.unwrap()).unwrap();
                let fields = event.fields;
                let status = String::from_utf8_lossy(event.status_name()).into_owned();
                let (slot, cookie) = (fields.slot.rec, fields.cookie);
                told.push(format!("{} {slot} {cookie} {status}", event.kind.name()));
                self.told = event.index.next();
            }
        }
        told
    }
}

#[test]
fn a_life_is_told_step_by_step() {
    let mut table = Table::new();
    let steps: [(&str, String, &[&str]); 9] = [
        ("nothing", String::new(), &[]),
        ("asked for", line(1, 7, "WAITING"), &["NEW 1 7 WAITING"]),
        ("as before", line(1, 7, "WAITING"), &[]),
        ("runs", line(1, 7, "STARTED"), &["UPDATE 1 7 STARTED"]),
        (
            "over, another one asked for",
            line(1, 7, "SUCCEED") + &line(2, 8, "WAITING"),
            &["UPDATE 1 7 SUCCEED", "NEW 2 8 WAITING"],
        ),
        ("purged", line(2, 8, "WAITING"), &["PURGED 1 7 SUCCEED"]),
        (
            "a slot that is used again",
            line(2, 9, "WAITING"),
            &["PURGED 2 8 WAITING", "NEW 2 9 WAITING"],
        ),
        ("another word", line(2, 9, "PAUSED"), &["UPDATE 2 9 PAUSED"]),
        ("all gone", String::new(), &["PURGED 2 9 PAUSED"]),
    ];
    for (what, text, want) in steps {
        assert_eq!(table.text(&text), want, "{what}");
    }
}

#[test]
fn every_status_and_field_of_the_captures_is_told_once() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/2.17/hsm");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.to_string_lossy().contains("hsm-actions-"));
    files.sort();
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        // A single row stands behind the parameter's name, several stand below it.
        let (mut lists, mut mdt) = (BTreeMap::<String, String>::new(), String::new());
        for row in text.lines() {
            let rest = match row.strip_prefix("mdt.").and_then(|r| r.split_once(".hsm.actions=")) {
                Some((name, rest)) => {
                    name.clone_into(&mut mdt);
                    rest
                }
                None => row,
            };
            let list = lists.entry(mdt.clone()).or_default();
            if !rest.is_empty() {
                *list += &format!("{rest}\n");
            }
        }
        for (mdt, list) in lists {
            let table = tables.entry(mdt).or_insert_with(Table::new);
            is_told_once(table, &list);
        }
    }
}

fn is_told_once(table: &mut Table, list: &str) {
    let (result, _) = table.read(list.as_bytes());
    assert_eq!(result.unwrap().bad_lines, 0);
    assert_eq!(table.text(list), Vec::<String>::new(), "the same again says nothing");
    let live: Vec<_> = list.lines().collect();
    let mut snapshot = table.journal.snapshot().unwrap();
    let mut bytes = Vec::new();
    while snapshot.read(1 << 16, &mut bytes).unwrap() {}
    let mut have: Vec<String> = records(&bytes)
        .map(|record| {
            let record = record.unwrap();
            let mut raw = Vec::new();
            HsmActionEvent::parse(&record).unwrap().write_raw(&mut raw);
            String::from_utf8(raw).unwrap()
        })
        .collect();
    have.sort();
    let mut want: Vec<String> = live.iter().map(|line| (*line).to_owned()).collect();
    want.sort();
    assert_eq!(have, want, "the state is the list");
}

#[test]
fn lines_that_are_not_understood_purge_nothing() {
    let both = line(1, 7, "STARTED") + &line(2, 8, "STARTED");
    let half = &line(2, 8, "SUCCEED")[..30];
    let cut = |at: &str| line(1, 7, "STARTED") + line(2, 8, "SUCCEED").split(at).next().unwrap();
    let cases: [(&str, String, u64); 10] = [
        ("half a line", line(1, 7, "STARTED") + half, 1),
        ("half a line without its action", cut(" action="), 1),
        ("half a line without its status", cut(" status="), 1),
        ("half a status", cut("CEED data="), 1),
        ("a line without an action", both.replacen(" action=ARCHIVE", "", 1), 1),
        ("a word of a later Lustre", "version=2\n".to_owned() + &both, 1),
        (
            "a known slot without a FID",
            both.replacen("fid=[0x200000402:0x8:0x0] dfid", "dfid", 1),
            1,
        ),
        ("binary garbage", format!("\u{0}\u{1}\u{7f}{}\n\n\u{0}", "\u{1b}".repeat(9)), 2),
        ("an endless line", both.clone() + &"x".repeat(CHUNK_BYTES * 3) + "\n", 1),
        ("a slot twice", both.clone() + &line(2, 8, "FAILED"), 1),
    ];
    for (what, text, bad_lines) in cases {
        let mut table = Table::new();
        table.text(&both);
        let (result, events) = table.read(text.as_bytes());
        assert_eq!(result.unwrap().bad_lines, bad_lines, "{what}");
        assert_eq!(events, Vec::<String>::new(), "{what}");
        // The next reading settles it.
        assert_eq!(table.text(&line(2, 8, "STARTED")), ["PURGED 1 7 STARTED"], "{what}");
    }
}

#[test]
fn what_is_missed_twice_beside_strange_lines_is_gone_but_no_list_is_no_list() {
    let mut table = Table::new();
    table.text(&(line(1, 7, "STARTED") + &line(2, 8, "STARTED") + &line(3, 9, "STARTED")));
    let odd = "version=2\n".to_owned() + &line(2, 8, "STARTED") + &line(3, 9, "STARTED");
    assert_eq!(table.text(&odd), Vec::<String>::new());
    assert_eq!(table.text(&odd), ["PURGED 1 7 STARTED"]);
    for _ in 0..3 {
        assert_eq!(table.text("no list\nat all\n"), Vec::<String>::new());
    }
    assert_eq!(table.text(&line(3, 9, "STARTED")), ["PURGED 2 8 STARTED"]);
}

/// Gives so much, then an error.
struct Breaks<'a>(&'a [u8]);

impl Read for Breaks<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::Error::from_raw_os_error(libc::EIO)),
            n => Ok(n),
        }
    }
}

#[test]
fn a_list_that_breaks_off_tells_what_it_had_and_purges_nothing() {
    let mut table = Table::new();
    table.text(&(line(1, 7, "STARTED") + &line(2, 8, "STARTED")));
    let begin = line(1, 7, "FAILED");
    let (result, events) = table.read(Breaks(begin.as_bytes()));
    assert!(matches!(result, Err(ScanError::Read(_))));
    assert_eq!(events, ["UPDATE 1 7 FAILED"]);
    assert_eq!(table.text(&begin), ["PURGED 2 8 STARTED"]);
}

#[test]
fn a_storm_of_purges_and_slots_used_again_all_at_once() {
    let n = 5000;
    let list = |cookies: u64, status: &str| -> String {
        (1..=n).map(|rec| line(rec, cookies + u64::from(rec), status)).collect()
    };
    let mut table = Table::new();
    assert_eq!(table.text(&list(0, "WAITING")).len(), 5000);
    assert_eq!(table.text(&list(0, "SUCCEED")).len(), 5000);
    let events = table.text(&list(100_000, "WAITING"));
    assert_eq!(events.len(), 10_000);
    for (nth, pair) in events.chunks(2).enumerate() {
        let rec = nth + 1;
        assert_eq!(pair[0], format!("PURGED {rec} {rec} SUCCEED"));
        assert_eq!(pair[1], format!("NEW {rec} {} WAITING", 100_000 + rec));
    }
    let events = table.text("");
    assert!(events.len() == 5000 && events.iter().all(|event| event.starts_with("PURGED")));
    assert_eq!(table.journal.n_live(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        rng_algorithm: prop::test_runner::RngAlgorithm::ChaCha,
        rng_seed: prop::test_runner::RngSeed::Fixed(666),
        ..ProptestConfig::default()
    })]

    /// Whatever the lists say, one after the other, events lead from each to the next, and the journal
    /// that is opened again says the same.
    #[test]
    fn events_lead_from_each_list_to_the_next(
        lists in prop::collection::vec(
            prop::collection::btree_map(1..12_u32, (1..4_u64, 0..3_usize), 0..10), 1..8,
        ),
        shuffled in any::<bool>(),
    ) {
        let words = ["WAITING", "STARTED", "SUCCEED"];
        let mut table = Table::new();
        let mut model: BTreeMap<(String, String), String> = BTreeMap::new();
        for list in lists {
            let mut lines: Vec<String> =
                list.iter().map(|(&rec, &(cookie, word))| line(rec, cookie, words[word])).collect();
            if shuffled {
                lines.reverse();
            }
            for event in table.text(&lines.concat()) {
                let parts: Vec<&str> = event.split(' ').collect();
                let key = (parts[1].to_owned(), parts[2].to_owned());
                match parts[0] {
                    "NEW" => prop_assert!(model.insert(key, parts[3].to_owned()).is_none()),
                    "UPDATE" => prop_assert!(model.insert(key, parts[3].to_owned()).is_some()),
                    _ => prop_assert!(model.remove(&key).is_some()),
                }
            }
            let want: BTreeMap<(String, String), String> = list
                .iter()
                .map(|(rec, (cookie, word))| ((rec.to_string(), cookie.to_string()), words[*word].to_owned()))
                .collect();
            prop_assert_eq!(&model, &want);
            prop_assert_eq!(table.journal.n_live(), want.len());
        }
    }
}
