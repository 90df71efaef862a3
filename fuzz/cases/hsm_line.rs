//! Any bytes as a line of `hsm/actions`, and as the body of an event.

use lcap_ffi::RecordIndex;
use lcap_ffi::hsm_action::line::{ActionLine, MAX_DATA_BYTES, slot_of, write};
use lcap_ffi::hsm_action::{EventKind, EventSource, HsmActionEvent, RecordTime, StatusCode};
use lcap_ffi::record::split_first;

pub(crate) fn run(bytes: &[u8]) {
    if let Ok((record, _)) = split_first(bytes)
        && let Ok(event) = HsmActionEvent::parse(&record)
    {
        check(&event);
    }
    let Ok(line) = ActionLine::parse(bytes) else { return };
    let mut room = [0; MAX_DATA_BYTES];
    let fields = line.fields(&mut room);
    let _ = slot_of(bytes);
    let mut printed = Vec::new();
    write(&fields, &mut printed);
    let again = ActionLine::parse(&printed).expect("what we print can be read");
    let mut room = [0; MAX_DATA_BYTES];
    assert_eq!(again.fields(&mut room).slot, fields.slot);
    check(&HsmActionEvent {
        index: RecordIndex::new(1),
        prev: RecordIndex::ZERO,
        time: RecordTime(0),
        created: RecordTime(0),
        kind: EventKind::New,
        source: EventSource::Actions,
        last_status: StatusCode::UNKNOWN,
        fields,
        raw: Some(bytes),
        raw_is_cut: false,
        is_snapshot: false,
    });
}

/// It survives its record, and its JSON is one line.
fn check(event: &HsmActionEvent<'_>) {
    let mut packed = Vec::new();
    event.pack(&mut packed);
    let (record, rest) = split_first(&packed).expect("a record");
    assert!(rest.is_empty());
    let again = HsmActionEvent::parse(&record).expect("an event");
    assert_eq!(again.fields, event.fields);
    let mut json = Vec::new();
    lcap_wire::hsm::write_line("lustre-MDT0000", &again, &mut json);
    assert_eq!(json.iter().filter(|&&b| b == b'\n').count(), 1);
    let _: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
}
