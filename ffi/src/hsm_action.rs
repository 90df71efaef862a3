//! Changes of HSM actions as packed records.
//!
//! An MDT shows its HSM actions as text ([`line`]). What changes there becomes an event, and an event
//! is a packed record like those of the changelog: the same head, a type of our own, and a body in
//! the name area. So everything that carries, filters, acknowledges and replays changelog records
//! does the same for events.
//!
//! ```text
//! head   index in the journal of events; cr_prev: index of the action's event before this one;
//!        time: when it was noticed; target: the file; parent: the data FID
//! body   `Body`, 96 bytes, integers in the byte order of the head; then `data_bytes` of the
//!        request's data as far as Lustre shows it, then `raw_bytes` of the line as it was read,
//!        which are there only if the fields do not print as that very line
//! ```
#![forbid(unsafe_code)]

pub mod line;

use std::fmt;

use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::name::{Fid, RecordIndex};
use crate::record::{CLF_VERSION, HEAD_BYTES, MAX_RECORD_BYTES, Record, RecordHead, RecordType};

/// What stands in the name area of an event, before the data and the line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Body {
    /// Size of this part: the data begins there, also when a later version adds fields.
    fixed_bytes: U16,
    event: u8,
    source: u8,
    action: u8,
    status: u8,
    last_status: u8,
    bits: u8,
    cat_idx: U32,
    rec_idx: U32,
    cookie: U64,
    compound: U64,
    flags: U64,
    extent_offset: U64,
    extent_length: U64,
    gid: U64,
    created: U64,
    archive_id: U32,
    data_len: U32,
    llog_type: U32,
    llog_len: U32,
    data_bytes: U16,
    raw_bytes: U16,
    reserved: U32,
}

const BODY_BYTES: usize = size_of::<Body>();
/// Most bytes of data and line together that an event has room for; a longer line is cut.
pub const MAX_TEXT_BYTES: usize = MAX_RECORD_BYTES - HEAD_BYTES - BODY_BYTES;

// Frozen: docs/protocol.md and lcap_client.h say the same.
const _: () = {
    use std::mem::offset_of;
    assert!(BODY_BYTES == 96);
    assert!(offset_of!(Body, event) == 2 && offset_of!(Body, source) == 3);
    assert!(offset_of!(Body, action) == 4 && offset_of!(Body, status) == 5);
    assert!(offset_of!(Body, last_status) == 6 && offset_of!(Body, bits) == 7);
    assert!(offset_of!(Body, cat_idx) == 8 && offset_of!(Body, rec_idx) == 12);
    assert!(offset_of!(Body, cookie) == 16 && offset_of!(Body, compound) == 24);
    assert!(offset_of!(Body, flags) == 32 && offset_of!(Body, extent_offset) == 40);
    assert!(offset_of!(Body, extent_length) == 48 && offset_of!(Body, gid) == 56);
    assert!(offset_of!(Body, created) == 64 && offset_of!(Body, archive_id) == 72);
    assert!(offset_of!(Body, data_len) == 76 && offset_of!(Body, llog_type) == 80);
    assert!(offset_of!(Body, llog_len) == 84 && offset_of!(Body, data_bytes) == 88);
    assert!(offset_of!(Body, raw_bytes) == 90 && offset_of!(Body, reserved) == 92);
};

/// The line was longer than an event has room for; what there is of it ends early.
const BIT_RAW_CUT: u8 = 0x01;
/// Not a change: tells a subscriber who asked for it what the present state is.
const BIT_SNAPSHOT: u8 = 0x02;

/// What happened to an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// It is there.
    New = 1,
    /// Something of it has changed.
    Update = 2,
    /// It is gone from the MDT's list.
    Purged = 3,
}

impl EventKind {
    /// `NEW`, `UPDATE` or `PURGED`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Update => "UPDATE",
            Self::Purged => "PURGED",
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::New),
            2 => Some(Self::Update),
            3 => Some(Self::Purged),
            _ => None,
        }
    }
}

/// Who noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventSource {
    /// The MDT's list of actions.
    Actions = 1,
    /// Requests that an MDT diverts by its upcall.
    Upcall = 2,
    /// lcapd's own coordinator.
    Coordinator = 3,
}

impl EventSource {
    /// Name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Actions => "actions",
            Self::Upcall => "upcall",
            Self::Coordinator => "coordinator",
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            2 => Self::Upcall,
            3 => Self::Coordinator,
            _ => Self::Actions,
        }
    }
}

/// What is asked for, by Lustre's number (`HSMA_*`); zero for a word that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionCode(pub u8);

/// Words by number.
const ACTIONS: [(u8, &str); 5] =
    [(10, "NOOP"), (20, "ARCHIVE"), (21, "RESTORE"), (22, "REMOVE"), (23, "CANCEL")];

#[allow(missing_docs)] // the names say it
impl ActionCode {
    pub const UNKNOWN: Self = Self(0);
    pub const NOOP: Self = Self(10);
    pub const ARCHIVE: Self = Self(20);
    pub const RESTORE: Self = Self(21);
    pub const REMOVE: Self = Self(22);
    pub const CANCEL: Self = Self(23);

    /// Lustre's word, or `UNKNOWN`.
    pub fn name(self) -> &'static str {
        ACTIONS.iter().find(|(number, _)| *number == self.0).map_or("UNKNOWN", |(_, name)| name)
    }

    /// The number of a word.
    pub fn from_name(name: &[u8]) -> Self {
        let known = ACTIONS.iter().find(|(_, known)| known.as_bytes() == name);
        known.map_or(Self::UNKNOWN, |(number, _)| Self(*number))
    }
}

impl fmt::Display for ActionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How far an action is; zero for a word that is not known, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusCode(pub u8);

/// Words by number less one.
const STATUSES: [&str; 5] = ["WAITING", "STARTED", "FAILED", "CANCELED", "SUCCEED"];

#[allow(missing_docs)] // the names say it
impl StatusCode {
    pub const UNKNOWN: Self = Self(0);
    pub const WAITING: Self = Self(1);
    pub const STARTED: Self = Self(2);
    pub const FAILED: Self = Self(3);
    pub const CANCELED: Self = Self(4);
    pub const SUCCEED: Self = Self(5);

    /// Lustre's word, or `UNKNOWN`.
    pub fn name(self) -> &'static str {
        let at = usize::from(self.0).wrapping_sub(1);
        STATUSES.get(at).copied().unwrap_or("UNKNOWN")
    }

    /// The number of a word.
    pub fn from_name(name: &[u8]) -> Self {
        let at = STATUSES.iter().position(|known| known.as_bytes() == name);
        at.and_then(|at| u8::try_from(at + 1).ok()).map_or(Self::UNKNOWN, Self)
    }

    /// Nothing more will happen but that it is purged.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::FAILED | Self::CANCELED | Self::SUCCEED)
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A place in an MDT's list: catalogue and record number. Unique at one time, used again later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Number in the catalogue.
    pub cat: u32,
    /// Number in the log.
    pub rec: u32,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cat, self.rec)
    }
}

/// A moment as records carry it: seconds << 30 | nanoseconds since 1970. Zero: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordTime(pub u64);

impl RecordTime {
    /// That moment.
    pub const fn new(seconds: u64, nanoseconds: u32) -> Self {
        Self(seconds << 30 | nanoseconds as u64)
    }

    /// Whole seconds.
    pub const fn seconds(self) -> u64 {
        self.0 >> 30
    }

    /// Nanoseconds within the second.
    pub fn nanoseconds(self) -> u32 {
        u32::try_from(self.0 & 0x3fff_ffff).unwrap_or(0)
    }
}

/// The fields of an action, as Lustre's list shows them or as a request has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActionFields<'a> {
    /// Place in the list.
    pub slot: Slot,
    /// Number of the request, of which there is only one.
    pub cookie: u64,
    /// Always zero in newer versions.
    pub compound: u64,
    /// The file.
    pub fid: Fid,
    /// The object that holds the data: another one while a restore runs.
    pub dfid: Fid,
    /// What is asked for.
    pub action: ActionCode,
    /// How far it is.
    pub status: StatusCode,
    /// Which archive; zero is any.
    pub archive_id: u32,
    /// Flags of the request.
    pub flags: u64,
    /// First byte.
    pub extent_offset: u64,
    /// Number of bytes, all ones for all.
    pub extent_length: u64,
    /// Group lock id.
    pub gid: u64,
    /// Bytes of data that the request has, of which Lustre shows only the first.
    pub data_len: u32,
    /// What is shown of them.
    pub data: &'a [u8],
    /// Type of the llog record.
    pub llog_type: u32,
    /// Size of the llog record.
    pub llog_len: u32,
}

/// One change of one action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HsmActionEvent<'a> {
    /// Its number in the journal of its MDT.
    pub index: RecordIndex,
    /// Number of the event before it of the same action; zero if none.
    pub prev: RecordIndex,
    /// When it was noticed.
    pub time: RecordTime,
    /// When the action was first seen.
    pub created: RecordTime,
    /// What happened.
    pub kind: EventKind,
    /// Who noticed.
    pub source: EventSource,
    /// The status before this event; of a purge, the last one that was seen.
    pub last_status: StatusCode,
    /// The action as it is now, or was last.
    pub fields: ActionFields<'a>,
    /// The line, if the fields do not print as that.
    pub raw: Option<&'a [u8]>,
    /// `raw` ends early.
    pub raw_is_cut: bool,
    /// Tells the present state, not a change.
    pub is_snapshot: bool,
}

/// A record is no event of HSM actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEvent {
    /// A changelog record.
    #[error("record of type {0}, not an HSM action event")]
    Type(RecordType),
    /// It ends early, or its sizes do not fit.
    #[error("HSM action event with a body of {0} bytes is malformed")]
    Body(usize),
    /// A kind that this release does not know.
    #[error("HSM action event of unknown kind {0}")]
    Kind(u8),
}

impl<'a> HsmActionEvent<'a> {
    /// Reads an event from its record.
    ///
    /// # Errors
    /// [`BadEvent`].
    pub fn parse(record: &Record<'a>) -> Result<Self, BadEvent> {
        if record.rec_type() != RecordType::HSM_ACTION {
            return Err(BadEvent::Type(record.rec_type()));
        }
        let names = record.names();
        let malformed = BadEvent::Body(names.len());
        let (body, _) = Body::ref_from_prefix(names).map_err(|_| malformed)?;
        let fixed_bytes = usize::from(body.fixed_bytes.get());
        let text = names.get(fixed_bytes.max(BODY_BYTES)..).ok_or(malformed)?;
        let (data, rest) = text.split_at_checked(body.data_bytes.get().into()).ok_or(malformed)?;
        let raw = rest.get(..body.raw_bytes.get().into()).ok_or(malformed)?;
        Ok(Self {
            index: record.index(),
            prev: RecordIndex::new(record.head().prev.get()),
            time: RecordTime(record.head().time.get()),
            created: RecordTime(body.created.get()),
            kind: EventKind::from_number(body.event).ok_or(BadEvent::Kind(body.event))?,
            source: EventSource::from_number(body.source),
            last_status: StatusCode(body.last_status),
            fields: ActionFields {
                slot: Slot { cat: body.cat_idx.get(), rec: body.rec_idx.get() },
                cookie: body.cookie.get(),
                compound: body.compound.get(),
                fid: record.target(),
                dfid: record.parent(),
                action: ActionCode(body.action),
                status: StatusCode(body.status),
                archive_id: body.archive_id.get(),
                flags: body.flags.get(),
                extent_offset: body.extent_offset.get(),
                extent_length: body.extent_length.get(),
                gid: body.gid.get(),
                data_len: body.data_len.get(),
                data,
                llog_type: body.llog_type.get(),
                llog_len: body.llog_len.get(),
            },
            raw: (!raw.is_empty()).then_some(raw),
            raw_is_cut: body.bits & BIT_RAW_CUT != 0,
            is_snapshot: body.bits & BIT_SNAPSHOT != 0,
        })
    }

    /// Appends the event as a packed record. Data and line are cut to what there is room for.
    pub fn pack(&self, out: &mut Vec<u8>) {
        let fields = &self.fields;
        let data = &fields.data[..fields.data.len().min(MAX_TEXT_BYTES)];
        let whole = self.raw.unwrap_or_default();
        let raw = &whole[..whole.len().min(MAX_TEXT_BYTES - data.len())];
        let mut bits = 0;
        if self.raw_is_cut || raw.len() < whole.len() {
            bits |= BIT_RAW_CUT;
        }
        if self.is_snapshot {
            bits |= BIT_SNAPSHOT;
        }
        let head = RecordHead {
            name_len: small(BODY_BYTES + data.len() + raw.len()),
            flags: CLF_VERSION.into(),
            rec_type: RecordType::HSM_ACTION.0.into(),
            index: self.index.get().into(),
            prev: self.prev.get().into(),
            time: self.time.0.into(),
            target: fields.fid.into(),
            parent: fields.dfid.into(),
        };
        let body = Body {
            fixed_bytes: small(BODY_BYTES),
            event: self.kind as u8,
            source: self.source as u8,
            action: fields.action.0,
            status: fields.status.0,
            last_status: self.last_status.0,
            bits,
            cat_idx: fields.slot.cat.into(),
            rec_idx: fields.slot.rec.into(),
            cookie: fields.cookie.into(),
            compound: fields.compound.into(),
            flags: fields.flags.into(),
            extent_offset: fields.extent_offset.into(),
            extent_length: fields.extent_length.into(),
            gid: fields.gid.into(),
            created: self.created.0.into(),
            archive_id: fields.archive_id.into(),
            data_len: fields.data_len.into(),
            llog_type: fields.llog_type.into(),
            llog_len: fields.llog_len.into(),
            data_bytes: small(data.len()),
            raw_bytes: small(raw.len()),
            reserved: 0.into(),
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body.as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(raw);
    }

    /// Appends the action's line as it was read, or, where it was not kept, as its fields print.
    /// Of a purge, the last line that was seen.
    pub fn write_raw(&self, out: &mut Vec<u8>) {
        match self.raw {
            Some(raw) => out.extend_from_slice(raw),
            None => line::write(&self.fields, out),
        }
    }

    /// Lustre's word for the action, also one that has no number here.
    pub fn action_name(&self) -> &'a [u8] {
        self.word(self.fields.action.0, self.fields.action.name(), |line| line.action)
    }

    /// Lustre's word for the status, also one that has no number here.
    pub fn status_name(&self) -> &'a [u8] {
        self.word(self.fields.status.0, self.fields.status.name(), |line| line.status)
    }

    fn word(
        &self,
        code: u8,
        name: &'static str,
        of: impl Fn(&line::ActionLine<'a>) -> &'a [u8],
    ) -> &'a [u8] {
        let raw = self.raw.filter(|_| code == 0);
        let word = raw.and_then(|raw| line::ActionLine::parse(raw).ok()).map(|line| of(&line));
        word.filter(|word| !word.is_empty()).unwrap_or(name.as_bytes())
    }
}

/// Nothing in a record is larger than [`MAX_RECORD_BYTES`].
fn small(n: usize) -> U16 {
    u16::try_from(n).unwrap_or(u16::MAX).into()
}

#[cfg(test)]
mod tests;
