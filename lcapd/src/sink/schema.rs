//! HSM actions in Redis as lustre-hsm-action-stream writes them, so that its consumers can read
//! ours: one JSON object per entry, in the field `data`.
//!
//! Keys, their order, separators and escapes are those that its shipper has; what its consumers
//! need beyond that (every entry with both of its keys, words never empty) is kept here, too.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hasher as _};

use lcap_ffi::MdtName;
use lcap_ffi::digits::{push_dec, push_hex};
use lcap_ffi::hsm_action::line::write_fid;
use lcap_ffi::hsm_action::{EventKind, HsmActionEvent, Slot};
use serde::Deserialize;

/// What an entry may have beyond what the original has, and what it may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The whole line under `raw`, for people to see. More than half of an entry.
    pub raw: bool,
    /// Cookie, archive and the status before it: keys that the original does not have.
    pub extra: bool,
    /// The file system before FID and action in `action_key`: two file systems in one Redis may
    /// have the same FIDs.
    pub qualified: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { raw: true, extra: false, qualified: false }
    }
}

/// Writes entries of one MDT.
#[derive(Debug)]
pub struct Schema {
    mdt: String,
    /// What stands before FID and action in a key.
    qualifier: String,
    shape: Shape,
    line: Vec<u8>,
    key: Vec<u8>,
}

/// A digest that tells two actions, or two states of one, apart.
pub type Digest = u64;

/// What is remembered of an entry: which action it speaks of, and in which state that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Of `action_key`.
    pub key: Digest,
    /// Of status and line.
    pub state: Digest,
}

fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish()
}

impl Schema {
    /// For the entries of one MDT.
    pub fn new(mdt: &MdtName, shape: Shape) -> Self {
        let mdt = mdt.to_string();
        let fs = mdt.rsplit_once("-MDT").map_or("", |(fs, _)| fs);
        let qualifier = if shape.qualified { format!("{fs}:") } else { String::new() };
        Self { qualifier, mdt, shape, line: Vec::new(), key: Vec::new() }
    }

    /// The key that stands for the action at many consumers: `FID:ACTION`.
    fn note_key(&mut self, event: &HsmActionEvent<'_>) {
        self.key.clear();
        self.key.extend_from_slice(self.qualifier.as_bytes());
        write_fid(event.fields.fid, &mut self.key);
        self.key.push(b':');
        self.key.extend_from_slice(event.action_name());
    }

    fn note_line(&mut self, event: &HsmActionEvent<'_>) {
        self.line.clear();
        event.write_raw(&mut self.line);
    }

    /// What the entry of this event would be remembered by.
    pub fn summary(&mut self, event: &HsmActionEvent<'_>) -> Summary {
        self.note_key(event);
        let key = digest(&[&self.key]);
        if !self.shape.raw {
            return Summary { key, state: digest(&[event.status_name(), b""]) };
        }
        self.note_line(event);
        // As a reader of the entry would see it.
        let line = String::from_utf8_lossy(&self.line);
        Summary { key, state: digest(&[event.status_name(), line.as_bytes()]) }
    }

    /// Appends the entry of an event as `kind`.
    pub fn write(&mut self, event: &HsmActionEvent<'_>, kind: EventKind, out: &mut Vec<u8>) {
        self.note_key(event);
        self.note_line(event);
        let (slot, seconds) = (event.fields.slot, event.time.seconds());
        if kind == EventKind::Purged {
            let (action, fid) = (event.action_name(), event.fields.fid);
            self.purged(slot, seconds, out);
            string(out, "action", action);
            out.extend_from_slice(b", \"fid\": \"");
            write_fid(fid, out);
            out.push(b'"');
        } else {
            out.extend_from_slice(b"{\"cat_idx\": ");
            push_dec(out, slot.cat.into());
            number(out, "rec_idx", slot.rec.into());
            out.extend_from_slice(b", \"fid\": \"");
            write_fid(event.fields.fid, out);
            out.push(b'"');
            string(out, "action", event.action_name());
            string(out, "status", event.status_name());
            string(out, "event_type", kind.name().as_bytes());
            string(out, "mdt", self.mdt.as_bytes());
            number(out, "timestamp", seconds);
            if self.shape.raw {
                string(out, "raw", &self.line);
            }
            string(out, "action_key", &self.key);
        }
        if self.shape.extra {
            out.extend_from_slice(b", \"cookie\": \"0x");
            push_hex(out, event.fields.cookie);
            out.push(b'"');
            number(out, "archive_id", event.fields.archive_id.into());
            number(out, "created", event.created.seconds());
            if event.last_status.0 != 0 {
                string(out, "last_status", event.last_status.name().as_bytes());
            }
        }
        out.push(b'}');
    }

    /// The first keys of a purge, of the action in `self.key` whose last line is in `self.line`.
    fn purged(&self, slot: Slot, seconds: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"event_type\": \"PURGED\"");
        string(out, "mdt", self.mdt.as_bytes());
        number(out, "cat_idx", slot.cat.into());
        number(out, "rec_idx", slot.rec.into());
        number(out, "timestamp", seconds);
        string(out, "status", b"PURGED");
        string(out, "action_key", &self.key);
        out.extend_from_slice(format!(", \"hash\": \"{:x}\"", md5::compute(&self.line)).as_bytes());
    }

    /// Appends the purge of an action of which only its last entry is known.
    pub fn write_purge_of(&mut self, entry: &Entry, seconds: u64, out: &mut Vec<u8>) {
        let Some(slot) = entry.slot() else { return };
        self.key.clear();
        self.key.extend_from_slice(entry.action_key.as_bytes());
        self.line.clear();
        self.line.extend_from_slice(entry.raw.as_deref().unwrap_or_default().as_bytes());
        self.purged(slot, seconds, out);
        string(out, "action", entry.action.as_deref().unwrap_or("UNKNOWN").as_bytes());
        if let Some(fid) = &entry.fid {
            string(out, "fid", fid.as_bytes());
        }
        out.push(b'}');
    }
}

/// An entry as it is read back, of ours or of the original's shipper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Entry {
    /// `NEW`, `UPDATE` or `PURGED`.
    #[serde(default)]
    pub event_type: String,
    /// Lustre's word, or `PURGED`.
    #[serde(default)]
    pub status: String,
    /// The action for those who do not look at slots.
    #[serde(default)]
    pub action_key: String,
    /// Absent in purges that the original's maintenance makes.
    pub cat_idx: Option<u32>,
    /// As `cat_idx`.
    pub rec_idx: Option<u32>,
    /// The MDT.
    pub mdt: Option<String>,
    /// Lustre's word.
    pub action: Option<String>,
    /// Without brackets.
    pub fid: Option<String>,
    /// When it was noticed, in seconds; some write fractions.
    pub timestamp: Option<serde_json::Number>,
    /// The line.
    pub raw: Option<String>,
}

impl Entry {
    /// Reads the field `data` of an entry.
    pub fn parse(data: &[u8]) -> Option<Self> {
        serde_json::from_slice(data).ok()
    }

    /// The action is gone.
    pub fn is_purge(&self) -> bool {
        self.event_type == "PURGED" || self.status == "PURGED"
    }

    /// Its place in the MDT's list.
    pub fn slot(&self) -> Option<Slot> {
        Some(Slot { cat: self.cat_idx?, rec: self.rec_idx? })
    }

    /// What it is remembered by.
    pub fn summary(&self) -> Summary {
        let raw = self.raw.as_deref().unwrap_or_default();
        Summary {
            key: digest(&[self.action_key.as_bytes()]),
            state: digest(&[self.status.as_bytes(), raw.as_bytes()]),
        }
    }
}

/// An entry's `data` again, as an update: it is how things still are.
pub fn as_update(data: &[u8]) -> Vec<u8> {
    const NEW: &[u8] = b"\"event_type\": \"NEW\"";
    let Some(at) = data.windows(NEW.len()).position(|window| window == NEW) else {
        return data.to_vec();
    };
    let (before, after) = (&data[..at], &data[at + NEW.len()..]);
    [before, b"\"event_type\": \"UPDATE\"", after].concat()
}

fn number(out: &mut Vec<u8>, key: &str, n: u64) {
    out.extend_from_slice(b", \"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\": ");
    push_dec(out, n);
}

fn string(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(b", \"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\": \"");
    push_escaped(out, value);
    out.push(b'"');
}

/// As Python writes strings by default: ASCII only. Bytes that are not UTF-8 are replaced.
fn push_escaped(out: &mut Vec<u8>, value: &[u8]) {
    let plain = |b: &u8| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\');
    if value.iter().all(plain) {
        return out.extend_from_slice(value);
    }
    for c in String::from_utf8_lossy(value).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            ' '..='~' => out.push(c as u8),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lcap_ffi::RecordIndex;
    use lcap_ffi::hsm_action::line::ActionLine;
    use lcap_ffi::hsm_action::{EventSource, RecordTime, StatusCode};

    use super::*;

    const LINE: &[u8] = b"lrh=[type=10680000 len=192 idx=517/2] fid=[0x2c0005000:0x8:0x0] \
        dfid=[0x2c0005000:0x8:0x0] compound/cookie=0x0/0x6b023300 action=ARCHIVE archive#=1 \
        flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 datalen=5 status=STARTED data=[7461673D6D]";

    fn event(line: &[u8]) -> HsmActionEvent<'_> {
        HsmActionEvent {
            index: RecordIndex::new(1),
            prev: RecordIndex::ZERO,
            time: RecordTime::new(1_795_307_338, 0),
            created: RecordTime::new(1_795_307_000, 0),
            kind: EventKind::New,
            source: EventSource::Actions,
            last_status: StatusCode::WAITING,
            fields: ActionLine::parse(line).unwrap().fields,
            raw: Some(line),
            raw_is_cut: false,
            is_snapshot: false,
        }
    }

    fn written(shape: Shape, kind: EventKind, line: &[u8]) -> String {
        let mut out = Vec::new();
        Schema::new(&"elm-MDT0000".parse().unwrap(), shape).write(&event(line), kind, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn entries_are_those_of_the_original_to_the_byte() {
        let line = str::from_utf8(LINE).unwrap();
        let update = format!(
            "{{\"cat_idx\": 517, \"rec_idx\": 2, \"fid\": \"0x2c0005000:0x8:0x0\", \"action\": \
             \"ARCHIVE\", \"status\": \"STARTED\", \"event_type\": \"UPDATE\", \"mdt\": \
             \"elm-MDT0000\", \"timestamp\": 1795307338, \"raw\": \"{line}\", \"action_key\": \
             \"0x2c0005000:0x8:0x0:ARCHIVE\"}}"
        );
        assert_eq!(written(Shape::default(), EventKind::Update, LINE), update);
        let hash = format!("{:x}", md5::compute(LINE));
        let purged = format!(
            "{{\"event_type\": \"PURGED\", \"mdt\": \"elm-MDT0000\", \"cat_idx\": 517, \
             \"rec_idx\": 2, \"timestamp\": 1795307338, \"status\": \"PURGED\", \"action_key\": \
             \"0x2c0005000:0x8:0x0:ARCHIVE\", \"hash\": \"{hash}\", \"action\": \"ARCHIVE\", \
             \"fid\": \"0x2c0005000:0x8:0x0\"}}"
        );
        assert_eq!(written(Shape::default(), EventKind::Purged, LINE), purged);
        let without_raw = Shape { raw: false, ..Shape::default() };
        assert!(!written(without_raw, EventKind::New, LINE).contains("raw"));
        let qualified = Shape { qualified: true, ..Shape::default() };
        let key = "\"action_key\": \"elm:0x2c0005000:0x8:0x0:ARCHIVE\"";
        assert!(written(qualified, EventKind::New, LINE).contains(key));
        assert!(written(qualified, EventKind::Purged, LINE).contains(key));
        let extra = Shape { extra: true, ..Shape::default() };
        let own = ", \"cookie\": \"0x6b023300\", \"archive_id\": 1, \"created\": 1795307000, \
                   \"last_status\": \"WAITING\"}";
        assert!(written(extra, EventKind::Purged, LINE).ends_with(own));
    }

    #[test]
    fn what_is_read_back_is_what_was_written() {
        for kind in [EventKind::New, EventKind::Update, EventKind::Purged] {
            for raw in [true, false] {
                let shape = Shape { raw, ..Shape::default() };
                let text = written(shape, kind, LINE);
                let entry = Entry::parse(text.as_bytes()).unwrap();
                assert_eq!(entry.is_purge(), kind == EventKind::Purged);
                assert_eq!(entry.slot(), Some(Slot { cat: 517, rec: 2 }));
                let mut schema = Schema::new(&"elm-MDT0000".parse().unwrap(), shape);
                let summary = schema.summary(&event(LINE));
                assert_eq!(entry.summary().key, summary.key);
                assert_eq!(entry.summary() == summary, !entry.is_purge());
            }
        }
    }

    #[test]
    fn a_purge_can_be_made_of_the_last_entry() {
        let new = written(Shape::default(), EventKind::New, LINE);
        let entry = Entry::parse(new.as_bytes()).unwrap();
        let mut out = Vec::new();
        let mut schema = Schema::new(&"elm-MDT0000".parse().unwrap(), Shape::default());
        schema.write_purge_of(&entry, 1_795_307_338, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            written(Shape::default(), EventKind::Purged, LINE)
        );
    }

    #[test]
    fn an_entry_again_is_an_update() {
        let new = written(Shape::default(), EventKind::New, LINE);
        let update = written(Shape::default(), EventKind::Update, LINE);
        assert_eq!(as_update(new.as_bytes()), update.as_bytes());
        assert_eq!(as_update(update.as_bytes()), update.as_bytes());
    }

    #[test]
    fn strings_are_ascii_and_valid_whatever_the_line_holds() {
        let cases: [(&[u8], &str); 4] = [
            (b"tab\tquote\"back\\slash", "tab\\tquote\\\"back\\\\slash"),
            (b"\x01\x7f\n\r\x08\x0c", "\\u0001\\u007f\\n\\r\\b\\f"),
            ("é\u{1f600}".as_bytes(), "\\u00e9\\ud83d\\ude00"),
            (b"\xff", "\\ufffd"),
        ];
        for (bytes, want) in cases {
            let mut out = Vec::new();
            push_escaped(&mut out, bytes);
            assert_eq!(String::from_utf8(out.clone()).unwrap(), want);
            let back: String =
                serde_json::from_str(&format!("\"{}\"", String::from_utf8(out).unwrap())).unwrap();
            assert_eq!(back, String::from_utf8_lossy(bytes));
        }
    }
}
