//! Changelog records as entries of a Redis stream: a field per property, no Lustre header needed.
//!
//! The fields and their values are those of the JSON form (docs/protocol.md), numbers in decimal.
#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lcap_ffi::record::split_first;
use lcap_ffi::text::write_fid;
use lcap_ffi::{Fid, MdtName, Record, RecordIndex};
use redis::Value;

use super::config::ChangelogOptions;
use super::feed::Item;
use super::target::{Commands, Link, TargetError, exists_already};
use super::token::Token;
use super::{Claim, Shipped, Writer};

/// Writes one MDT's records.
#[derive(Debug)]
pub(super) struct ChangelogWriter {
    key: String,
    mdt: MdtName,
    options: ChangelogOptions,
    fields: Fields,
}

/// Fields of one entry; the buffer is used again for the next.
#[derive(Debug, Default)]
struct Fields {
    bytes: Vec<u8>,
    /// Name and end of the value in `bytes`.
    ends: Vec<(&'static str, usize)>,
}

impl Fields {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn add(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push((name, self.bytes.len()));
    }

    fn bytes(&mut self, name: &'static str, value: &[u8]) {
        self.add(name, |out| out.extend_from_slice(value));
    }

    fn number(&mut self, name: &'static str, n: u64) {
        self.add(name, |out| lcap_ffi::digits::push_dec(out, n));
    }

    fn fid(&mut self, name: &'static str, fid: Fid) {
        self.add(name, |out| write_fid(fid, out));
    }

    /// Text that is not UTF-8 has its bad bytes replaced, and stands beside it in base64.
    fn text(&mut self, name: &'static str, name_b64: &'static str, value: &[u8]) {
        match str::from_utf8(value) {
            Ok(_) => self.bytes(name, value),
            Err(_) => {
                self.bytes(name, String::from_utf8_lossy(value).as_bytes());
                self.bytes(name_b64, BASE64.encode(value).as_bytes());
            }
        }
    }

    fn xadd(&self, key: &str, max_len: Option<u64>, commands: &mut Commands) {
        let limit = if max_len.is_some() { 3 } else { 0 };
        commands.begin(3 + limit + 2 * self.ends.len());
        commands.arg(b"XADD");
        commands.arg(key.as_bytes());
        if let Some(max_len) = max_len {
            commands.arg(b"MAXLEN");
            commands.arg(b"~");
            commands.arg(max_len.to_string().as_bytes());
        }
        commands.arg(b"*");
        let mut start = 0;
        for &(name, end) in &self.ends {
            commands.arg(name.as_bytes());
            commands.arg(self.bytes.get(start..end).unwrap_or_default());
            start = end;
        }
    }
}

impl ChangelogWriter {
    pub(super) fn new(key: String, mdt: &MdtName, options: &ChangelogOptions) -> Self {
        Self { key, mdt: mdt.clone(), options: options.clone(), fields: Fields::default() }
    }

    fn record(&mut self, record: &Record<'_>) {
        let fields = &mut self.fields;
        fields.clear();
        fields.bytes("mdt", self.mdt.as_str().as_bytes());
        fields.number("index", record.index().get());
        let rec_type = record.rec_type();
        match rec_type.name() {
            Some(name) => fields.bytes("type", name.as_bytes()),
            None => fields.bytes("type", rec_type.to_string().as_bytes()),
        }
        fields.number("flags", record.type_flags().into());
        fields.add("time", |out| {
            lcap_wire::json::write_time(out, record.seconds(), record.nanoseconds());
        });
        fields.fid("tfid", record.target());
        fields.fid("pfid", record.parent());
        fields.text("name", "name_b64", record.name());
        if let (Some(source), Some(source_parent)) = (record.source(), record.source_parent())
            && !source.is_zero()
        {
            fields.fid("sfid", source);
            fields.fid("spfid", source_parent);
            fields.text("sname", "sname_b64", record.source_name().unwrap_or_default());
        }
        if let Some(jobid) = record.jobid().filter(|jobid| !jobid.is_empty()) {
            fields.text("jobid", "jobid_b64", jobid);
        }
        if let (Some(uid), Some(gid)) = (record.uid(), record.gid()) {
            fields.number("uid", uid);
            fields.number("gid", gid);
        }
        if let Some(nid) = record.nid() {
            fields.add("nid", |out| nid.write_text(out));
        }
        if let Some(open_flags) = record.open_flags() {
            fields.number("open_flags", open_flags.into());
        }
        if let Some(xattr) = record.xattr().filter(|xattr| !xattr.is_empty()) {
            fields.text("xattr", "xattr_b64", xattr);
        }
    }
}

impl Writer for ChangelogWriter {
    /// Indexes are the MDT's own, so what another lcapd has written of it counts as written.
    fn claim(&self, _token: Option<&Token>) -> Claim {
        Claim::Ours
    }

    fn open(&mut self, link: &mut Link, _: u64) -> Result<(), TargetError> {
        for group in &self.options.groups {
            let create = [b"XGROUP".as_slice(), b"CREATE", self.key.as_bytes(), group.as_bytes()];
            match link.call(&[&create[..], &[b"0", b"MKSTREAM"]].concat()) {
                Err(error) if !exists_already(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&mut self, item: Item<'_>, commands: &mut Commands) -> Shipped {
        match item {
            Item::Record { bytes, .. } => match split_first(bytes) {
                Ok((record, _)) => self.record(&record),
                Err(_) => return Shipped::Nothing, // the source's parser has passed it
            },
            Item::Gap { first, last, generation } => {
                let fields = &mut self.fields;
                fields.clear();
                fields.bytes("mdt", self.mdt.as_str().as_bytes());
                fields.bytes("type", b"GAP");
                fields.number("first", first.get());
                fields.number("last", if last < first { 0 } else { last.get() });
                fields.number("generation", generation.into());
            }
        }
        self.fields.xadd(&self.key, self.options.max_len, commands);
        Shipped::Entry
    }

    fn confirmed(&mut self, _: &[Value]) -> Result<(), TargetError> {
        Ok(())
    }

    fn abandoned(&mut self) {}

    fn at_head(
        &mut self,
        _: &mut Link,
        _: RecordIndex,
        _: &mut Commands,
    ) -> Result<(), TargetError> {
        Ok(())
    }
}
