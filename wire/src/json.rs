//! One changelog record as one line of JSON; `docs/protocol.md` has the keys.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lcap_ffi::digits::{push_dec, push_dec_padded};
use lcap_ffi::hsm_action::HsmActionEvent;
use lcap_ffi::text::{UtcTime, write_fid};
use lcap_ffi::{Fid, Record};

const NANOSECONDS: u32 = 1_000_000_000;

/// Appends the record as one JSON object on one line, newline included.
///
/// Texts that are not UTF-8 have their bad bytes replaced, and stand beside it in base64, under
/// the key with `_b64` appended.
///
/// An HSM action event gets its own form ([`crate::hsm`]).
pub fn write_line(mdt: &str, record: &Record<'_>, out: &mut Vec<u8>) {
    if let Ok(event) = HsmActionEvent::parse(record) {
        return crate::hsm::write_line(mdt, &event, out);
    }
    out.extend_from_slice(b"{\"mdt\":");
    push_string(out, mdt);
    push_number(out, "index", record.index().get());
    push_key(out, "type");
    match record.rec_type().name() {
        Some(name) => push_string(out, name),
        None => push_string(out, &record.rec_type().to_string()),
    }
    push_number(out, "flags", record.type_flags().into());
    push_time(out, record.seconds(), record.nanoseconds());
    push_fid(out, "tfid", record.target());
    push_fid(out, "pfid", record.parent());
    push_text(out, "name", "name_b64", record.name());
    if let (Some(source), Some(source_parent)) = (record.source(), record.source_parent())
        && !source.is_zero()
    {
        push_fid(out, "sfid", source);
        push_fid(out, "spfid", source_parent);
        push_text(out, "sname", "sname_b64", record.source_name().unwrap_or_default());
    }
    if let Some(jobid) = record.jobid()
        && !jobid.is_empty()
    {
        push_text(out, "jobid", "jobid_b64", jobid);
    }
    if let (Some(uid), Some(gid)) = (record.uid(), record.gid()) {
        push_number(out, "uid", uid);
        push_number(out, "gid", gid);
    }
    if let Some(nid) = record.nid() {
        push_key(out, "nid");
        out.push(b'"');
        nid.write_text(out); // has nothing that JSON would escape
        out.push(b'"');
    }
    if let Some(open_flags) = record.open_flags() {
        push_number(out, "open_flags", open_flags.into());
    }
    if let Some(xattr) = record.xattr()
        && !xattr.is_empty()
    {
        push_text(out, "xattr", "xattr_b64", xattr);
    }
    out.extend_from_slice(b"}\n");
}

pub(crate) fn push_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

pub(crate) fn push_number(out: &mut Vec<u8>, key: &str, n: u64) {
    push_key(out, key);
    push_dec(out, n);
}

fn push_fid(out: &mut Vec<u8>, key: &str, fid: Fid) {
    push_key(out, key);
    out.push(b'"');
    write_fid(fid, out);
    out.push(b'"');
}

pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Strings have a JSON form, and a Vec takes it: this cannot fail.
    let _ = serde_json::to_writer(out, text);
}

fn push_text(out: &mut Vec<u8>, key: &str, key_b64: &str, bytes: &[u8]) {
    push_key(out, key);
    if let Ok(text) = str::from_utf8(bytes) {
        push_string(out, text);
        return;
    }
    push_string(out, &String::from_utf8_lossy(bytes));
    push_key(out, key_b64);
    let _ = write!(out, "\"{}\"", BASE64.encode(bytes));
}

pub(crate) fn push_time(out: &mut Vec<u8>, seconds: u64, nanoseconds: u32) {
    push_key(out, "time");
    out.push(b'"');
    write_time(out, seconds, nanoseconds);
    out.push(b'"');
}

/// Appends a time as RFC 3339. A record that claims a second or more of nanoseconds gets them
/// carried over.
pub fn write_time(out: &mut Vec<u8>, seconds: u64, nanoseconds: u32) {
    let time = UtcTime::from_seconds(seconds + u64::from(nanoseconds / NANOSECONDS));
    push_dec_padded(out, u64::from(time.year), 4);
    let parts = [
        (b'-', u64::from(time.month), 2),
        (b'-', u64::from(time.day), 2),
        (b'T', u64::from(time.hour), 2),
        (b':', u64::from(time.minute), 2),
        (b':', u64::from(time.second), 2),
        (b'.', u64::from(nanoseconds % NANOSECONDS), 9),
    ];
    for (before, n, width) in parts {
        out.push(before);
        push_dec_padded(out, n, width);
    }
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use lcap_ffi::record::{records, split_first};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// A record of 2023-11-14 22:13:20.123456789: head, extensions as given, names.
    fn packed(rec_type: u32, flags: u16, extensions: &[u8], names: &[u8]) -> Vec<u8> {
        let time = 1_700_000_000u64 << 30 | 123_456_789;
        let mut rec = Vec::new();
        rec.extend(u16::try_from(names.len()).unwrap().to_ne_bytes());
        rec.extend(flags.to_ne_bytes());
        rec.extend(rec_type.to_ne_bytes());
        for word in [7, 0, time, 0x2_0000_0402, 0x1a, 0x2_0000_0007, 1] {
            rec.extend(u64::to_ne_bytes(word));
        }
        rec.extend(extensions);
        rec.extend(names);
        rec
    }

    fn line(rec: &[u8]) -> String {
        let (record, rest) = split_first(rec).unwrap();
        assert!(rest.is_empty());
        let mut out = Vec::new();
        write_line("lustre-MDT0000", &record, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn capture(name: &str) -> Vec<u8> {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/2.17/changelog/");
        std::fs::read(format!("{dir}{name}")).unwrap()
    }

    #[test]
    fn a_plain_record_has_the_keys_that_every_record_has() {
        let want = r#"{"mdt":"lustre-MDT0000","index":7,"type":"CREAT","flags":0,"time":"2023-11-14T22:13:20.123456789Z","tfid":"[0x200000402:0x1a:0x0]","pfid":"[0x200000007:0x1:0x0]","name":"file"}"#;
        assert_eq!(line(&packed(1, 0x1000, &[], b"file")), format!("{want}\n"));
    }

    #[test]
    fn extensions_show_where_they_are() {
        let mut ext = Vec::new();
        for word in [0x2_0000_0402u64, 2, 0x2_0000_0402, 1] {
            ext.extend(word.to_ne_bytes()); // source and its parent
        }
        ext.extend(*b"mv.1000\0leftover leftover leftov");
        ext.extend(0xfu64.to_ne_bytes());
        ext.extend(1000u64.to_ne_bytes());
        ext.extend(100u64.to_ne_bytes());
        ext.extend(0x0002_0000_c0a8_0105u64.to_ne_bytes());
        ext.extend([0; 16]);
        ext.extend(0xf242u32.to_ne_bytes());
        let mut xattr = b"user.a\"b".to_vec();
        xattr.resize(256, 0);
        ext.extend(xattr);
        let want = concat!(
            r#"{"mdt":"lustre-MDT0000","index":7,"type":"RENME","flags":3,"#,
            r#""time":"2023-11-14T22:13:20.123456789Z","tfid":"[0x200000402:0x1a:0x0]","#,
            r#""pfid":"[0x200000007:0x1:0x0]","name":"new","sfid":"[0x200000402:0x2:0x0]","#,
            r#""spfid":"[0x200000402:0x1:0x0]","sname":"old","jobid":"mv.1000","uid":1000,"#,
            r#""gid":100,"nid":"192.168.1.5@tcp","open_flags":578,"xattr":"user.a\"b"}"#,
        );
        assert_eq!(line(&packed(8, 0xe003, &ext, b"new\0old")), format!("{want}\n"));
    }

    #[test]
    fn what_is_empty_or_zero_is_left_out() {
        let mut ext = vec![0; 32 + 32]; // no source, no job
        ext.extend(0u64.to_ne_bytes());
        let value: Value = serde_json::from_str(&line(&packed(8, 0xf000, &ext, b"n"))).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 8, "{keys:?}");
        assert_eq!(value["name"], "n");
    }

    #[test]
    fn names_that_are_not_utf8_come_in_base64_too() {
        let value: Value =
            serde_json::from_str(&line(&packed(1, 0x1000, &[], b"caf\xe9\n\"\x01"))).unwrap();
        assert_eq!(value["name"], "caf\u{fffd}\n\"\u{1}");
        assert_eq!(BASE64.decode(value["name_b64"].as_str().unwrap()).unwrap(), b"caf\xe9\n\"\x01");
    }

    #[test]
    fn unknown_types_are_numbers_as_text() {
        let value: Value = serde_json::from_str(&line(&packed(99, 0x1000, &[], b""))).unwrap();
        assert_eq!(value["type"], "99");
        assert_eq!(value["name"], "");
    }

    #[test]
    fn captured_records_keep_their_names_and_times() {
        let bytes = capture("odd-mdt0.bin");
        let mut odd_names = 0;
        for record in records(&bytes) {
            let record = record.unwrap();
            let mut out = Vec::new();
            write_line("lustre-MDT0000", &record, &mut out);
            assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1, "one line each");
            let value: Value = serde_json::from_slice(&out).unwrap();
            for (key, name) in [("name", Some(record.name())), ("sname", record.source_name())] {
                let Some(name) = name else { continue };
                let have = match value[format!("{key}_b64")].as_str() {
                    Some(b64) => {
                        odd_names += 1;
                        BASE64.decode(b64).unwrap()
                    }
                    None => value[key].as_str().unwrap().into(),
                };
                assert_eq!(have, name);
            }
            let time: jiff::Timestamp = value["time"].as_str().unwrap().parse().unwrap();
            let nanoseconds = i64::from(record.nanoseconds());
            assert_eq!(time.as_second(), i64::try_from(record.seconds()).unwrap());
            assert_eq!(i64::from(time.subsec_nanosecond()), nanoseconds);
        }
        assert!(odd_names > 0, "the capture has names that are not UTF-8");
    }

    proptest! {
        #[test]
        fn every_time_is_rfc_3339(seconds in 0u64..1 << 34, nanoseconds in 0u32..1 << 30) {
            let mut out = b"{\"a\":0".to_vec();
            push_time(&mut out, seconds, nanoseconds);
            out.push(b'}');
            let value: Value = serde_json::from_slice(&out).unwrap();
            let time: jiff::Timestamp = value["time"].as_str().unwrap().parse().unwrap();
            let want = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
            prop_assert_eq!(time.as_nanosecond(), want);
        }

        #[test]
        fn every_name_gives_valid_json(name in proptest::collection::vec(any::<u8>(), 0..255)) {
            let value: Value = serde_json::from_str(&line(&packed(1, 0x1000, &[], &name))).unwrap();
            let have = match value["name_b64"].as_str() {
                Some(b64) => BASE64.decode(b64).unwrap(),
                None => value["name"].as_str().unwrap().into(),
            };
            prop_assert_eq!(have, name);
        }

        #[test]
        fn bytes_that_pass_as_records_give_valid_json(mut bytes in proptest::collection::vec(any::<u8>(), 64..1000)) {
            bytes[0] = 9;
            bytes[1] = 0;
            if let Ok((record, _)) = split_first(&bytes) {
                let mut out = Vec::new();
                write_line("\"\\\n", &record, &mut out);
                prop_assert!(serde_json::from_slice::<Value>(&out).is_ok());
            }
        }
    }
}
