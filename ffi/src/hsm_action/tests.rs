use proptest::prelude::*;

use super::*;
use crate::record::split_first;

/// The lines of all captures in `tests/fixtures/2.17/hsm`: `lctl get_param` puts a single row behind
/// the parameter's name, and several below it.
pub(crate) fn captured_lines() -> Vec<String> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/2.17/hsm");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let actions = |path: &&std::path::PathBuf| path.to_string_lossy().contains("hsm-actions-");
    let texts = files.iter().filter(actions).map(|path| std::fs::read_to_string(path).unwrap());
    let lines = texts.flat_map(|text| {
        let rows = text.lines().filter_map(|row| row.find("lrh=").map(|at| row[at..].to_owned()));
        rows.collect::<Vec<_>>()
    });
    lines.collect()
}

pub(crate) fn any_fields() -> impl Strategy<Value = ActionFields<'static>> {
    let ids = (any::<(u32, u32)>(), any::<(u64, u64)>(), any::<(u64, u32, u32)>());
    let words = (prop::sample::select(vec![10_u8, 20, 21, 22, 23]), 1..6_u8);
    let numbers = (any::<u32>(), any::<(u64, u64, u64, u64)>(), any::<(u32, u32, u32)>());
    (ids, words, numbers, any::<(u64, u32, u32)>()).prop_map(|(ids, words, numbers, dfid)| {
        let ((cat, rec), (cookie, compound), (seq, oid, ver)) = ids;
        let (archive_id, (flags, offset, length, gid), (data_len, llog_type, llog_len)) = numbers;
        ActionFields {
            slot: Slot { cat, rec },
            cookie,
            compound,
            fid: Fid { seq, oid, ver },
            dfid: Fid { seq: dfid.0, oid: dfid.1, ver: dfid.2 },
            action: ActionCode(words.0),
            status: StatusCode(words.1),
            archive_id,
            flags,
            extent_offset: offset,
            extent_length: length,
            gid,
            data_len,
            data: b"",
            llog_type,
            llog_len,
        }
    })
}

fn sample() -> HsmActionEvent<'static> {
    HsmActionEvent {
        index: RecordIndex::new(7),
        prev: RecordIndex::new(3),
        time: RecordTime::new(1_700_000_000, 5),
        created: RecordTime::new(1_600_000_000, 6),
        kind: EventKind::Update,
        source: EventSource::Coordinator,
        last_status: StatusCode::WAITING,
        fields: ActionFields {
            slot: Slot { cat: 1, rec: 5 },
            cookie: 0x1122_3344_5566_7788,
            compound: 9,
            fid: Fid { seq: 0x2_4000_0402, oid: 0xe, ver: 0 },
            dfid: Fid { seq: 0x2_4000_0402, oid: 0xf, ver: 0 },
            action: ActionCode::RESTORE,
            status: StatusCode::STARTED,
            archive_id: 3,
            flags: 0x11,
            extent_offset: 0x22,
            extent_length: u64::MAX,
            gid: 0x33,
            data_len: 8,
            data: b"tag=g",
            llog_type: 0x1068_0000,
            llog_len: 144,
        },
        raw: None,
        raw_is_cut: false,
        is_snapshot: false,
    }
}

fn packed(event: &HsmActionEvent<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    event.pack(&mut out);
    out
}

/// Frozen: clients in other languages read these bytes.
#[test]
fn the_packed_form_is_frozen() {
    let mut want = Vec::new();
    want.extend(101_u16.to_ne_bytes());
    want.extend(0x1000_u16.to_ne_bytes());
    want.extend(0x6c63_0001_u32.to_ne_bytes());
    want.extend(7_u64.to_ne_bytes());
    want.extend(3_u64.to_ne_bytes());
    want.extend((1_700_000_000_u64 << 30 | 5).to_ne_bytes());
    for oid in [0xe_u32, 0xf] {
        want.extend(0x2_4000_0402_u64.to_ne_bytes());
        want.extend(oid.to_ne_bytes());
        want.extend(0_u32.to_ne_bytes());
    }
    assert_eq!(want.len(), 64);
    want.extend(96_u16.to_ne_bytes());
    want.extend([2, 3, 21, 2, 1, 0]);
    want.extend(1_u32.to_ne_bytes());
    want.extend(5_u32.to_ne_bytes());
    for n in [0x1122_3344_5566_7788, 9, 0x11, 0x22, u64::MAX, 0x33, 1_600_000_000_u64 << 30 | 6] {
        want.extend(n.to_ne_bytes());
    }
    for n in [3_u32, 8, 0x1068_0000, 144] {
        want.extend(n.to_ne_bytes());
    }
    want.extend(5_u16.to_ne_bytes());
    want.extend(0_u16.to_ne_bytes());
    want.extend(0_u32.to_ne_bytes());
    want.extend(b"tag=g");
    assert_eq!(packed(&sample()), want);
}

#[test]
fn an_event_survives_its_record() {
    for raw in [None, Some(&b"lrh=[idx=1/5] fid=[0x1:0x2:0x0] action=NEW status=ODD"[..])] {
        for is_snapshot in [false, true] {
            let event = HsmActionEvent { raw, is_snapshot, ..sample() };
            let bytes = packed(&event);
            let (record, rest) = split_first(&bytes).unwrap();
            assert!(rest.is_empty());
            assert_eq!(record.rec_type().name(), Some("ACTION"));
            assert_eq!(HsmActionEvent::parse(&record), Ok(event));
        }
    }
}

#[test]
fn words_without_a_number_are_kept() {
    let raw = Some(&b"lrh=[idx=1/5] fid=[0x1:0x2:0x0] action=NEW status=ODD"[..]);
    let mut event = HsmActionEvent { raw, ..sample() };
    assert_eq!((event.action_name(), event.status_name()), (&b"RESTORE"[..], &b"STARTED"[..]));
    (event.fields.action, event.fields.status) = (ActionCode(0), StatusCode(0));
    assert_eq!((event.action_name(), event.status_name()), (&b"NEW"[..], &b"ODD"[..]));
    event.raw = Some(b"lrh=[idx=1/5] fid=[0x1:0x2:0x0]");
    assert_eq!((event.action_name(), event.status_name()), (&b"UNKNOWN"[..], &b"UNKNOWN"[..]));
}

#[test]
fn what_is_too_long_is_cut_and_says_so() {
    let (line, data) = (vec![b'x'; 5000], vec![b'd'; 2000]);
    for (data, raw) in [(&data[..5], &line[..]), (&data[..], &line[..]), (&data[..], b"")] {
        let fields = ActionFields { data, ..sample().fields };
        let bytes = packed(&HsmActionEvent { raw: Some(raw), fields, ..sample() });
        let (record, rest) = split_first(&bytes).unwrap();
        assert!(rest.is_empty() && record.as_bytes().len() <= MAX_RECORD_BYTES);
        let event = HsmActionEvent::parse(&record).unwrap();
        assert_eq!(event.raw_is_cut, !raw.is_empty());
        let room = event.fields.data.len() + event.raw.unwrap_or_default().len();
        assert_eq!(room, MAX_TEXT_BYTES);
    }
}

#[test]
fn records_that_are_no_events_are_refused() {
    let good = packed(&sample());
    let parse = |bytes: &[u8]| HsmActionEvent::parse(&split_first(bytes).unwrap().0).map(|_| ());
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        parse(&bytes)
    };
    assert_eq!(parse(&good), Ok(()));
    assert_eq!(changed(7, 0), Err(BadEvent::Type(RecordType(0x0063_0001))));
    assert_eq!(changed(66, 9), Err(BadEvent::Kind(9)));
    assert_eq!(changed(64 + 88, 6), Err(BadEvent::Body(101)), "data beyond the end");
    assert_eq!(changed(64 + 90, 1), Err(BadEvent::Body(101)), "a line beyond the end");
    assert_eq!(changed(65, 1), Err(BadEvent::Body(101)), "a fixed part beyond the end");
    for n in 0..101_u8 {
        let mut bytes = good.clone();
        bytes[0] = n;
        bytes.truncate(64 + usize::from(n));
        assert_eq!(parse(&bytes), Err(BadEvent::Body(n.into())), "a body cut to {n}");
    }
    // A later version has more fields.
    let mut longer = good.clone();
    longer[0] += 8;
    longer[64] += 8;
    longer.splice(160..160, [1; 8]);
    assert_eq!(HsmActionEvent::parse(&split_first(&longer).unwrap().0), Ok(sample()));
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_algorithm: prop::test_runner::RngAlgorithm::ChaCha,
        rng_seed: prop::test_runner::RngSeed::Fixed(66),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_event_survives_its_record(fields in any_fields(), index in any::<u64>(), data in prop::collection::vec(any::<u8>(), 0..12)) {
        let fields = ActionFields { data: &data, ..fields };
        let event = HsmActionEvent { index: RecordIndex::new(index), fields, ..sample() };
        let bytes = packed(&event);
        prop_assert_eq!(HsmActionEvent::parse(&split_first(&bytes).unwrap().0), Ok(event));
    }
}
