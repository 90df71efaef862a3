use lcap_ffi::hsm_action::line::ActionLine;
use lcap_ffi::hsm_action::{EventKind, EventSource, HsmActionEvent, RecordTime, StatusCode};
use lcap_ffi::record::split_first;
use lcap_ffi::{Fid, RecordType};
use lcap_policy_sdk::RecordBuilder;
use proptest::prelude::*;

use super::*;

fn fid(oid: u32) -> Fid {
    Fid { seq: 0x2_0000_0401, oid, ver: 0 }
}

fn holds(expression: &str, record: &RecordBuilder) -> bool {
    let filter: Filter = expression.parse().unwrap_or_else(|e| panic!("{expression}: {e}"));
    // The canonical spelling means the same.
    let again: Filter = filter.to_string().parse().unwrap_or_else(|e| panic!("{filter}: {e}"));
    assert_eq!(again, filter, "{expression}");
    let bytes = record.build();
    let (record, _) = split_first(&bytes).unwrap();
    assert_eq!(filter.matches(&record, "lustre-MDT0001"), again.matches(&record, "lustre-MDT0001"));
    filter.matches(&record, "lustre-MDT0001")
}

#[test]
fn every_field_is_covered() {
    let create = RecordBuilder::new(RecordType::CREATE)
        .index(70)
        .time(1_700_000_000, 5)
        .target(fid(1))
        .parent(fid(2))
        .name(b"run.tmp")
        .jobid(b"slurm.1234")
        .uidgid(1000, 100)
        .nid(0x0002_0000_c0a8_0105);
    let bare = RecordBuilder::new(RecordType::CREATE).index(71);
    let rename = RecordBuilder::new(RecordType::RENAME)
        .target(fid(9))
        .type_flags(3)
        .parent(fid(2))
        .name(b"new")
        .renamed_from(fid(3), fid(4), b"old name");
    let hsm =
        |flags| RecordBuilder::new(RecordType::HSM).target(fid(1)).parent(fid(2)).type_flags(flags);
    let open = RecordBuilder::new(RecordType::OPEN).target(fid(1)).open_flags(0xd242);
    let xattr = RecordBuilder::new(RecordType::SETXATTR).target(fid(1)).xattr(b"user.tag");
    let cases: &[(&str, &RecordBuilder, bool)] = &[
        ("type = CREAT", &create, true),
        ("type == creat", &create, true),
        ("type in (UNLNK, 1)", &create, true),
        ("type != CREAT", &create, false),
        ("type not in (CREAT)", &rename, true),
        ("index = 70", &create, true),
        ("index < 70", &create, false),
        ("index <= 70 and index >= 70 and index > 69", &create, true),
        ("index < 0 or index > 18446744073709551615", &create, false),
        ("time >= 1700000000", &create, true),
        ("flags & 2", &rename, true),
        ("flags & 0x4", &rename, false),
        ("flags & (4, 1)", &rename, true),
        ("fid = [0x200000401:0x1:0x0]", &create, true),
        ("fid in (0x200000401:0x9:0x0, [0x200000401:0x2:0x0])", &rename, true),
        ("parent = [0x200000401:0x2:0x0]", &create, true),
        ("parent = [0x200000401:0x2:0x0]", &hsm(0), false), // may be stale there
        ("source = [0x200000401:0x3:0x0] and source_parent = [0x200000401:0x4:0x0]", &rename, true),
        ("source", &create, false),
        ("source", &rename, true),
        ("name = run.tmp", &create, true),
        ("name ~ *.tmp", &create, true),
        ("name !~ \"*.tmp\"", &create, false),
        ("name ~ (*.o, \"r[a-z]n.*\")", &create, true),
        ("name in ('a', 'run.tmp')", &create, true),
        ("name", &bare, false),
        ("source_name = \"old name\" and name = new", &rename, true),
        ("source_name = x", &create, false),
        ("source_name != x", &create, true),
        ("jobid ~ slurm.*", &create, true),
        ("jobid", &bare, false),
        ("uid = 1000", &create, true),
        ("uid in (5, 900-1100)", &create, true),
        ("uid != 1000", &bare, true),
        ("gid = 1-99", &create, false),
        ("gid > 99", &create, true),
        ("uid or gid", &bare, false),
        ("nid in (10.0.0.0/8@tcp, 192.168.1.*@tcp)", &create, true),
        ("nid = *@o2ib", &create, false),
        ("nid", &bare, false),
        ("mdt = lustre-MDT0001", &bare, true),
        ("mdt ~ *-MDT0000", &bare, false),
        ("last and archived", &rename, true),
        ("last", &create, false),
        ("hsm = archive", &hsm(0), true),
        ("hsm = restore and hsm_error = 125", &hsm(0xfd), true),
        ("hsm in (release, remove)", &hsm(0x180), true),
        ("hsm_error != 0 and hsm_dirty", &hsm(0x410), true),
        ("hsm_dirty", &hsm(0x10), false),
        ("hsm", &create, false),
        ("open_flags & write and open_flags & (creat, trunc)", &open, true),
        ("open_flags & exec", &open, false),
        ("xattr = user.tag", &xattr, true),
        ("xattr ~ trusted.*", &xattr, false),
        // Shape.
        ("type = CREAT and not name ~ *.tmp", &create, false),
        ("not (type = CREAT and uid = 1) && !(uid = 7)", &create, true),
        ("uid = 1 and uid = 2 or uid = 1000", &create, true),
        ("uid = 1 and (uid = 2 or uid = 1000)", &create, false),
        ("NOT NOT uid = 1000", &create, true),
        ("((uid=1000))", &create, true),
    ];
    for (expression, record, want) in cases {
        assert_eq!(holds(expression, record), *want, "{expression}");
    }
}

#[test]
fn events_of_hsm_actions_are_chosen_by_their_words() {
    let line = |action: &str, status: &str| {
        format!(
            "lrh=[type=10680000 len=136 idx=1/2] fid=[0x1:0x2:0x0] dfid=[0x1:0x2:0x0] \
             compound/cookie=0x0/0x5 action={action} archive#=3 flags=0x0 extent=0x0-0xff gid=0x0 \
             datalen=0 status={status} data=[]"
        )
    };
    let passes = |expression: &str, kind: EventKind, line: &str| {
        let fields = ActionLine::parse(line.as_bytes()).unwrap().fields;
        let event = HsmActionEvent {
            index: lcap_ffi::RecordIndex::new(1),
            prev: lcap_ffi::RecordIndex::ZERO,
            time: RecordTime::new(1, 0),
            created: RecordTime::new(1, 0),
            kind,
            source: EventSource::Actions,
            last_status: if kind == EventKind::New {
                StatusCode::UNKNOWN
            } else {
                StatusCode::STARTED
            },
            fields,
            raw: Some(line.as_bytes()),
            raw_is_cut: false,
            is_snapshot: false,
        };
        let mut bytes = Vec::new();
        event.pack(&mut bytes);
        let filter: Filter = expression.parse().unwrap();
        assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter, "{expression}");
        filter.matches(&split_first(&bytes).unwrap().0, "lustre-MDT0001")
    };
    let (new, update, purged) = (EventKind::New, EventKind::Update, EventKind::Purged);
    let cases = [
        ("action = archive", new, "ARCHIVE", "WAITING", true),
        ("action in (restore, REMOVE)", new, "ARCHIVE", "WAITING", false),
        ("action ~ re*", new, "RESTORE", "WAITING", true),
        ("action = shuffle and status = odd", new, "SHUFFLE", "ODD", true),
        ("status = failed", update, "ARCHIVE", "FAILED", true),
        ("status = failed", purged, "ARCHIVE", "FAILED", false),
        ("status = purged and event_type = PURGED", purged, "ARCHIVE", "FAILED", true),
        ("event_type != new", update, "ARCHIVE", "FAILED", true),
        ("last_status = started", update, "ARCHIVE", "FAILED", true),
        ("last_status", new, "ARCHIVE", "WAITING", false),
        ("archive_id in (2-3)", new, "ARCHIVE", "WAITING", true),
        ("archive_id > 3", new, "ARCHIVE", "WAITING", false),
    ];
    for (expression, kind, action, status, want) in cases {
        assert_eq!(passes(expression, kind, &line(action, status)), want, "{expression}");
    }
    // A record of the changelog has none of these, whatever it is called.
    let record = RecordBuilder::new(RecordType::HSM).target(fid(1)).name(b"ARCHIVE");
    assert!(!holds("action or status or archive_id", &record));
}

#[test]
fn what_cannot_be_understood_is_said_with_its_place() {
    let cases = [
        ("", 0, "expected a field"),
        ("uid", 0, ""),
        ("type", 0, "`type` needs a value"),
        ("typ = CREAT", 0, "unknown field `typ`; known: type, nid, index"),
        ("colour", 0, "unknown field `colour`"),
        ("type = CREATE_FILE", 7, "expected a record type"),
        ("type = 77", 7, "expected a record type"),
        ("type ~ C*", 0, "does not fit"),
        ("uid = bob", 6, "expected a number, got `bob`"),
        ("uid ~ 1*", 6, "compares text"),
        ("uid = 9-5", 6, "a range that goes up"),
        ("uid < (1, 2)", 10, "expected one value"),
        ("hsm = explode", 6, "expected an HSM event"),
        ("fid = 5", 6, "expected a FID"),
        ("nid = 10.0.0.1", 6, "not a range of NIDs"),
        ("name < x", 0, "does not fit"),
        ("last = 1", 0, "does not fit"),
        ("uid = 1 uid = 2", 8, "expected `and`, `or`"),
        ("(uid = 1", 8, "expected `)`"),
        ("uid in 5", 7, "expected a list"),
        ("uid in (5", 9, "expected `,` or `)`"),
        ("uid not 5", 8, "expected `in`"),
        ("name = \"x", 7, "the quote is not closed"),
        ("name = \"\\xzz\"", 7, "two hexadecimal digits"),
        ("and", 0, "unknown field"),
        ("not", 3, "expected a field"),
        ("uid = 1 | uid = 2", 8, "means nothing here"),
    ];
    for (expression, at, text) in cases {
        match expression.parse::<Filter>() {
            Err(error) => {
                assert_eq!(error.at, at, "{expression}: {error}");
                assert!(error.problem.contains(text), "{expression}: {error}");
            }
            Ok(_) => assert!(text.is_empty(), "{expression} is accepted"),
        }
    }
    assert!("(".repeat(4000).parse::<Filter>().unwrap_err().problem.contains("nested too deeply"));
    assert!(
        "not ".repeat(1000).parse::<Filter>().unwrap_err().problem.contains("nested too deeply")
    );
    assert!("x".repeat(5000).parse::<Filter>().unwrap_err().problem.contains("longer than 4096"));
}

#[test]
fn spelling_does_not_make_filters_different() {
    let same = [
        ("type in (UNLNK, CREAT)", "type in (creat,6)"),
        ("not not uid = 5", "uid == 5"),
        ("uid = 5 and (gid = 5 and index = 1)", "uid=5 && gid=5 && index=1"),
        ("name in (x)", "name = \"x\""),
        ("name = \"\\x41\"", "name = A"),
        ("uid not in (5)", "uid != 5"),
    ];
    for (one, other) in same {
        assert_eq!(one.parse::<Filter>(), other.parse::<Filter>(), "{one}");
    }
    assert_ne!("uid = 5".parse::<Filter>(), "gid = 5".parse::<Filter>());
}

proptest! {
    /// Expressions come from any client: nothing may panic, and what is accepted prints and parses
    /// back to itself.
    #[test]
    fn any_text_is_answered(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "type", "uid", "name", "nid", "fid", "last", "hsm", "and", "or", "not", "(", ")", ",", "=",
                "!=", "~", "!~", "<", "&", "in", "5", "1-9", "CREAT", "\"a\\\\b\"", "'*'", "*@tcp", "é", "\\",
            ]),
            0..12,
        ),
        noise in ".{0,12}",
    ) {
        for text in [words.join(" "), words.concat(), noise] {
            if let Ok(filter) = text.parse::<Filter>() {
                prop_assert_eq!(filter.to_string().parse::<Filter>(), Ok(filter), "{}", text);
            }
        }
    }
}
