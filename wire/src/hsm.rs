//! One HSM action event as one line of JSON; `docs/protocol.md` has the keys.
//!
//! The first keys are those of lustre-hsm-action-stream, in its order, so that its consumers find
//! what they know; ours follow.

use lcap_ffi::digits::{push_dec, push_hex};
use lcap_ffi::hsm_action::line::{write_data, write_fid};
use lcap_ffi::hsm_action::{EventKind, HsmActionEvent};

use crate::json::{push_key, push_number, push_string, push_time};

/// Appends the event as one JSON object on one line, newline included.
pub fn write_line(mdt: &str, event: &HsmActionEvent<'_>, out: &mut Vec<u8>) {
    write_object(mdt, event, true, out);
    out.push(b'\n');
}

/// Appends the event as a JSON object without a newline, with the line as Lustre printed it if
/// `with_raw`.
pub fn write_object(mdt: &str, event: &HsmActionEvent<'_>, with_raw: bool, out: &mut Vec<u8>) {
    let fields = &event.fields;
    let is_purge = event.kind == EventKind::Purged;
    out.extend_from_slice(b"{\"cat_idx\":");
    push_dec(out, fields.slot.cat.into());
    push_number(out, "rec_idx", fields.slot.rec.into());
    push_key(out, "fid");
    out.push(b'"');
    write_fid(fields.fid, out);
    out.push(b'"');
    push_key(out, "action");
    push_word(out, event.action_name());
    push_key(out, "status");
    push_word(out, if is_purge { b"PURGED" } else { event.status_name() });
    push_key(out, "event_type");
    push_string(out, event.kind.name());
    push_key(out, "mdt");
    push_string(out, mdt);
    push_number(out, "timestamp", event.time.seconds());
    if with_raw && !is_purge {
        push_key(out, "raw");
        let mut raw = Vec::with_capacity(320);
        event.write_raw(&mut raw);
        push_word(out, &raw);
    }
    push_key(out, "action_key");
    out.push(b'"');
    write_fid(fields.fid, out);
    out.push(b':');
    let key = out.len();
    push_word(out, event.action_name());
    out.remove(key); // its opening quote: one string
    push_own(event, out);
    out.push(b'}');
}

/// What the original does not have.
fn push_own(event: &HsmActionEvent<'_>, out: &mut Vec<u8>) {
    let fields = &event.fields;
    push_number(out, "index", event.index.get());
    push_time(out, event.time.seconds(), event.time.nanoseconds());
    push_number(out, "created", event.created.seconds());
    push_key(out, "source");
    push_string(out, event.source.name());
    if event.last_status.0 != 0 {
        push_key(out, "last_status");
        push_string(out, event.last_status.name());
    }
    push_hex_number(out, "cookie", fields.cookie);
    push_key(out, "dfid");
    out.push(b'"');
    write_fid(fields.dfid, out);
    out.push(b'"');
    push_number(out, "archive_id", fields.archive_id.into());
    push_hex_number(out, "flags", fields.flags);
    push_hex_number(out, "extent_offset", fields.extent_offset);
    push_hex_number(out, "extent_length", fields.extent_length);
    push_hex_number(out, "gid", fields.gid);
    push_number(out, "datalen", fields.data_len.into());
    push_key(out, "data");
    out.push(b'"');
    write_data(fields.data, out);
    out.push(b'"');
    if event.is_snapshot {
        push_key(out, "snapshot");
        out.extend_from_slice(b"true");
    }
}

/// Numbers that a double cannot hold are text.
fn push_hex_number(out: &mut Vec<u8>, key: &str, n: u64) {
    push_key(out, key);
    out.extend_from_slice(b"\"0x");
    push_hex(out, n);
    out.push(b'"');
}

fn push_word(out: &mut Vec<u8>, word: &[u8]) {
    push_string(out, &String::from_utf8_lossy(word));
}

#[cfg(test)]
mod tests {
    use lcap_ffi::RecordIndex;
    use lcap_ffi::hsm_action::line::{ActionLine, MAX_DATA_BYTES};
    use lcap_ffi::hsm_action::{EventSource, RecordTime, StatusCode};
    use serde_json::Value;

    use super::*;

    const LINE: &str = "lrh=[type=10680000 len=144 idx=1/5] fid=[0x240000402:0xe:0x0] \
        dfid=[0x240000402:0xf:0x0] compound/cookie=0x0/0x6b023304 action=ARCHIVE archive#=3 \
        flags=0x1 extent=0x0-0xffffffffffffffff gid=0x7 datalen=8 status=STARTED \
        data=[7461673D67]";

    fn json(kind: EventKind, change: impl FnOnce(&mut HsmActionEvent<'_>)) -> String {
        let mut room = [0; MAX_DATA_BYTES];
        let mut event = HsmActionEvent {
            index: RecordIndex::new(7),
            prev: RecordIndex::new(3),
            time: RecordTime::new(1_700_000_000, 5),
            created: RecordTime::new(1_600_000_000, 6),
            kind,
            source: EventSource::Actions,
            last_status: StatusCode::WAITING,
            fields: ActionLine::parse(LINE.as_bytes()).unwrap().fields(&mut room),
            raw: None,
            raw_is_cut: false,
            is_snapshot: false,
        };
        change(&mut event);
        let mut out = Vec::new();
        write_line("elm-MDT0000", &event, &mut out);
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(!out.contains(&b'\n'), "one line");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_update_has_the_keys_of_the_original_and_ours() {
        let want = [
            r#"{"cat_idx":1,"rec_idx":5,"fid":"0x240000402:0xe:0x0","action":"ARCHIVE","#,
            r#""status":"STARTED","event_type":"UPDATE","mdt":"elm-MDT0000","#,
            r#""timestamp":1700000000,"raw":""#,
            LINE,
            r#"","action_key":"0x240000402:0xe:0x0:ARCHIVE","index":7,"#,
            r#""time":"2023-11-14T22:13:20.000000005Z","created":1600000000,"#,
            r#""source":"actions","last_status":"WAITING","cookie":"0x6b023304","#,
            r#""dfid":"0x240000402:0xf:0x0","archive_id":3,"flags":"0x1","#,
            r#""extent_offset":"0x0","extent_length":"0xffffffffffffffff","gid":"0x7","#,
            r#""datalen":8,"data":"7461673D67"}"#,
        ];
        assert_eq!(json(EventKind::Update, |_| ()), want.concat());
    }

    #[test]
    fn a_purge_says_so_twice_and_has_no_line() {
        let value: Value = serde_json::from_str(&json(EventKind::Purged, |_| ())).unwrap();
        assert_eq!((&value["event_type"], &value["status"]), (&"PURGED".into(), &"PURGED".into()));
        assert_eq!(value["action_key"], "0x240000402:0xe:0x0:ARCHIVE");
        assert_eq!(value.get("raw"), None);
    }

    #[test]
    fn odd_words_are_valid_json_and_never_empty() {
        let odd = &b"lrh=[idx=1/5] fid=[0x1:0x2:0x0] action=\"\xff\\ status=\x01"[..];
        let text = json(EventKind::New, |event| {
            event.raw = Some(odd);
            (event.fields.action.0, event.fields.status.0) = (0, 0);
        });
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["action"], "\"\u{fffd}\\");
        assert_eq!(value["action_key"], "0x240000402:0xe:0x0:\"\u{fffd}\\");
        assert_eq!(value["status"], "\u{1}");
        let text = json(EventKind::New, |event| event.fields.status.0 = 0);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["status"], "UNKNOWN");
        let value: Value =
            serde_json::from_str(&json(EventKind::New, |event| event.is_snapshot = true)).unwrap();
        assert_eq!(value["snapshot"], true);
    }
}
