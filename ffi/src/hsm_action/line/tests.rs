use proptest::prelude::*;

use super::super::tests::{any_fields, captured_lines};
use super::*;

const LINE: &str = "lrh=[type=10680000 len=144 idx=1/5] fid=[0x240000402:0xe:0x0] \
    dfid=[0x240000402:0xf:0x0] compound/cookie=0x0/0x6b023304 action=ARCHIVE archive#=3 flags=0x1 \
    extent=0x0-0xffffffffffffffff gid=0x7 datalen=8 status=STARTED data=[7461673D67]";

fn parse(line: &str) -> Result<ActionLine<'_>, BadLine> {
    ActionLine::parse(line.as_bytes())
}

fn print(line: &ActionLine<'_>) -> String {
    let mut out = Vec::new();
    write(&line.fields(&mut [0; MAX_DATA_BYTES]), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn every_field_of_a_line_is_read() {
    let line = parse(LINE).unwrap();
    let mut room = [0; MAX_DATA_BYTES];
    let want = ActionFields {
        slot: Slot { cat: 1, rec: 5 },
        cookie: 0x6b02_3304,
        compound: 0,
        fid: Fid { seq: 0x2_4000_0402, oid: 0xe, ver: 0 },
        dfid: Fid { seq: 0x2_4000_0402, oid: 0xf, ver: 0 },
        action: ActionCode::ARCHIVE,
        status: StatusCode::STARTED,
        archive_id: 3,
        flags: 1,
        extent_offset: 0,
        extent_length: u64::MAX,
        gid: 7,
        data_len: 8,
        data: b"tag=g",
        llog_type: 0x1068_0000,
        llog_len: 144,
    };
    assert_eq!(line.fields(&mut room), want);
    assert_eq!(print(&line), LINE);
}

#[test]
fn every_captured_line_prints_as_it_was_read() {
    let lines = captured_lines();
    assert!(lines.len() > 100, "{}", lines.len());
    for line in &lines {
        assert_eq!(&print(&parse(line).unwrap()), line);
        assert_eq!(slot_of(line.as_bytes()), Some(parse(line).unwrap().fields.slot));
    }
    let words = |of: fn(&ActionLine<'_>) -> String| {
        let words = lines.iter().map(|line| of(&parse(line).unwrap()));
        words.collect::<std::collections::BTreeSet<_>>()
    };
    let statuses = words(|line| line.fields.status.to_string());
    assert!(!statuses.contains("UNKNOWN"), "{statuses:?}");
    let actions = words(|line| line.fields.action.to_string());
    assert!(actions.len() >= 4 && !actions.contains("UNKNOWN"), "{actions:?}");
}

#[test]
fn odd_lines_give_what_they_have() {
    let whole = |changed: (&str, &str)| LINE.replacen(changed.0, changed.1, 1);
    type Check = fn(&ActionLine<'_>) -> bool;
    let cases: [(&str, (&str, &str), Check); 14] = [
        ("a field of a later version", (" gid", " agent=[a b] gid"), |l| l.fields.gid == 7),
        ("no action", ("action=ARCHIVE ", ""), |l| l.action.is_empty() && l.fields.gid == 7),
        ("a new action", ("ARCHIVE", "PREFETCH"), |l| l.action == b"PREFETCH"),
        ("no status", (" status=STARTED", ""), |l| l.status.is_empty()),
        ("an unknown status", ("STARTED", "UNKNOWN"), |l| l.fields.status == StatusCode::UNKNOWN),
        ("a number too large", ("archive#=3", "archive#=99999999999"), |l| {
            l.fields.archive_id == 0
        }),
        ("a negative number", ("datalen=8", "datalen=-1"), |l| l.fields.data_len == 0),
        ("data that is none", ("7461673D67", "tag=g"), |l| l.data_hex.is_empty()),
        ("data of half a byte", ("7461673D67", "746"), |l| l.data_hex.is_empty()),
        ("no data", ("7461673D67", ""), |l| l.data_hex.is_empty()),
        ("a bare cookie", ("compound/cookie=0x0/", "cookie="), |l| l.fields.cookie == 0x6b02_3304),
        ("words without value", (" gid", " odd words gid"), |l| l.fields.gid == 7),
        ("a bare idx", ("lrh=[type=10680000 len=144 idx=1/5]", "idx=1/5"), |l| l.fields.gid == 7),
        ("blanks around", ("lrh=", "  lrh="), |l| l.fields.llog_len == 144),
    ];
    for (what, change, check) in cases {
        let text = whole(change);
        let line = parse(&text).unwrap();
        assert!(check(&line), "{what}: {line:?}");
        assert_eq!(line.fields.slot, Slot { cat: 1, rec: 5 }, "{what}");
        assert_eq!(slot_of(text.as_bytes()), Some(line.fields.slot), "{what}");
    }
}

#[test]
fn lines_that_name_no_action_are_errors() {
    let slot = Slot { cat: 1, rec: 5 };
    for (change, want) in [
        (("idx=1/5", "idx=1"), BadLine::NoSlot),
        (("idx=1/5", "idx=1/-5"), BadLine::NoSlot),
        (("idx=1/5", "idx=1/4294967296"), BadLine::NoSlot),
        (("idx=1/5", "idx=/"), BadLine::NoSlot),
        (("idx=1/5]", "idx=1/5"), BadLine::NoFid(slot)), // the FID is within the bracket
        (("fid=[0x240000402:0xe:0x0]", "fid=[0x240000402:0xe]"), BadLine::NoFid(slot)),
        (("fid=[0x240000402:0xe:0x0]", "fid=[]"), BadLine::NoFid(slot)),
        (("fid=[0x240000402:0xe:0x0]", ""), BadLine::NoFid(slot)),
    ] {
        let text = LINE.replace("dfid=[0x240000402:0xf:0x0] ", "").replacen(change.0, change.1, 1);
        assert_eq!(parse(&text), Err(want), "{text}");
    }
    assert_eq!(parse(""), Err(BadLine::NoSlot));
    assert_eq!(parse("= =[] ==] [="), Err(BadLine::NoSlot));
}

#[test]
fn a_line_cut_anywhere_is_no_other_line() {
    let whole = parse(LINE).unwrap().fields;
    for end in 0..LINE.len() {
        let Ok(cut) = parse(&LINE[..end]) else { continue };
        assert_eq!((cut.fields.slot, cut.fields.fid), (whole.slot, whole.fid), "{end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_algorithm: prop::test_runner::RngAlgorithm::ChaCha,
        rng_seed: prop::test_runner::RngSeed::Fixed(6),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_printed_is_read_again(fields in any_fields(), data in prop::collection::vec(any::<u8>(), 0..6)) {
        let fields = ActionFields { data: &data, ..fields };
        let mut text = Vec::new();
        write(&fields, &mut text);
        let line = ActionLine::parse(&text).unwrap();
        let mut room = [0; MAX_DATA_BYTES];
        prop_assert_eq!(line.fields(&mut room), fields);
        prop_assert_eq!(slot_of(&text), Some(fields.slot));
    }

    #[test]
    fn any_bytes_are_read_or_refused(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ActionLine::parse(&line);
        let _ = slot_of(&line);
    }

    #[test]
    fn damaged_lines_are_read_or_refused(at in 0..LINE.len(), byte in any::<u8>()) {
        let mut line = LINE.as_bytes().to_vec();
        line[at] = byte;
        if let Ok(parsed) = ActionLine::parse(&line) {
            prop_assert_eq!(slot_of(&line), Some(parsed.fields.slot));
        }
    }
}
