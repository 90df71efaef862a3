//! Compiled expressions.

use std::fmt;

use lcap_ffi::hsm_action::{EventKind, HsmActionEvent};
use lcap_ffi::record::CLF_FLAGMASK;
use lcap_ffi::{Fid, Record, RecordType};

use crate::glob::Glob;
use crate::lex::quote;
use crate::nid::NidRange;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Expr {
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    /// One bit per record type.
    Types(u32),
    Flag(Flag),
    /// The record has it.
    Has(Field),
    Number(Number, Numbers),
    Fid(FidField, Vec<Fid>),
    Text(TextField, Texts),
    Nid(Vec<NidRange>),
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Flag {
    /// The last link is gone: by unlink, rmdir, or a rename over it.
    Last,
    /// … and an archive copy exists.
    Archived,
    /// The file is dirty after the HSM event.
    HsmDirty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Number(Number),
    Fid(FidField),
    Text(TextField),
    Nid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    Index,
    Time,
    Flags,
    Uid,
    Gid,
    OpenFlags,
    Hsm,
    HsmError,
    ArchiveId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FidField {
    Target,
    Parent,
    Source,
    SourceParent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TextField {
    Name,
    SourceName,
    Jobid,
    Xattr,
    Mdt,
    Hsm(HsmWord),
}

/// Words of an event of an HSM stream, as its JSON form has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HsmWord {
    EventType,
    Action,
    Status,
    LastStatus,
}

/// What a number may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Numbers {
    /// Within one of these, ends included.
    In(Vec<(u64, u64)>),
    /// Has one of these bits.
    Bits(u64),
}

/// What a text may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Texts {
    Is(Vec<Vec<u8>>),
    Like(Vec<Glob>),
}

/// `cr_flags` of an HSM record: event in bits 7 to 9, dirty in bit 10, error in bits 0 to 6.
pub(crate) const HSM_EVENTS: [&str; 6] =
    ["archive", "restore", "cancel", "release", "remove", "state"];
/// Bits of an open mode.
pub(crate) const OPEN_BITS: [(&str, u64); 7] = [
    ("read", 0x1),
    ("write", 0x2),
    ("exec", 0x4),
    ("creat", 0x40),
    ("excl", 0x80),
    ("trunc", 0x200),
    ("append", 0x400),
];
pub(crate) const NUMBERS: [(&str, Number); 9] = [
    ("index", Number::Index),
    ("time", Number::Time),
    ("flags", Number::Flags),
    ("uid", Number::Uid),
    ("gid", Number::Gid),
    ("open_flags", Number::OpenFlags),
    ("hsm", Number::Hsm),
    ("hsm_error", Number::HsmError),
    ("archive_id", Number::ArchiveId),
];
pub(crate) const FIDS: [(&str, FidField); 4] = [
    ("fid", FidField::Target),
    ("parent", FidField::Parent),
    ("source", FidField::Source),
    ("source_parent", FidField::SourceParent),
];
pub(crate) const TEXTS: [(&str, TextField); 9] = [
    ("name", TextField::Name),
    ("source_name", TextField::SourceName),
    ("jobid", TextField::Jobid),
    ("xattr", TextField::Xattr),
    ("mdt", TextField::Mdt),
    ("event_type", TextField::Hsm(HsmWord::EventType)),
    ("action", TextField::Hsm(HsmWord::Action)),
    ("status", TextField::Hsm(HsmWord::Status)),
    ("last_status", TextField::Hsm(HsmWord::LastStatus)),
];
pub(crate) const FLAGS: [(&str, Flag); 3] =
    [("last", Flag::Last), ("archived", Flag::Archived), ("hsm_dirty", Flag::HsmDirty)];

/// A type's bit; types beyond the mask share none.
pub(crate) fn type_bit(rec_type: RecordType) -> u32 {
    1_u32.checked_shl(rec_type.0).unwrap_or(0)
}

/// Types whose parent FID means something. Others may carry a stale one.
fn has_parent(rec_type: RecordType) -> bool {
    const NAMESPACE: u32 = 0x3fe | 1 << 20; // CREAT to RNMTO, MIGRT
    const ATTRIBUTES: u32 = 1 << 13 | 1 << 14 | 1 << 17 | 1 << 18 | 1 << 19; // since 2.14
    type_bit(rec_type) & (NAMESPACE | ATTRIBUTES) != 0
}

impl Expr {
    pub(crate) fn holds(&self, record: &Record<'_>, mdt: &str) -> bool {
        match self {
            Self::All(list) => list.iter().all(|one| one.holds(record, mdt)),
            Self::Any(list) => list.iter().any(|one| one.holds(record, mdt)),
            Self::Not(one) => !one.holds(record, mdt),
            Self::Types(mask) => mask & type_bit(record.rec_type()) != 0,
            Self::Flag(flag) => flag.of(record),
            Self::Has(Field::Number(field)) => field.of(record).is_some(),
            Self::Has(Field::Fid(field)) => field.of(record).is_some(),
            Self::Has(Field::Text(field)) => field.of(record, mdt).is_some_and(|t| !t.is_empty()),
            Self::Has(Field::Nid) => record.nid().is_some(),
            Self::Number(field, numbers) => field.of(record).is_some_and(|n| numbers.hold(n)),
            Self::Fid(field, fids) => field.of(record).is_some_and(|fid| fids.contains(&fid)),
            Self::Text(field, texts) => field.of(record, mdt).is_some_and(|text| texts.hold(text)),
            Self::Nid(ranges) => {
                record.nid().is_some_and(|nid| ranges.iter().any(|range| range.contains(nid)))
            }
        }
    }
}

impl Flag {
    fn of(self, record: &Record<'_>) -> bool {
        let ends = matches!(
            record.rec_type(),
            RecordType::UNLINK | RecordType::RMDIR | RecordType::RENAME
        );
        let (is_type, bit) = match self {
            Self::Last => (ends, 0x1),
            Self::Archived => (ends, 0x2),
            Self::HsmDirty => (record.rec_type() == RecordType::HSM, 0x400),
        };
        is_type && record.type_flags() & bit != 0
    }
}

impl Number {
    fn of(self, record: &Record<'_>) -> Option<u64> {
        let hsm = || (record.rec_type() == RecordType::HSM).then(|| u64::from(record.type_flags()));
        match self {
            Self::Index => Some(record.index().get()),
            Self::Time => Some(record.seconds()),
            Self::Flags => Some(u64::from(record.flags() & CLF_FLAGMASK)),
            Self::Uid => record.uid(),
            Self::Gid => record.gid(),
            // OPEN and NOPEN have an extension, CLOSE has the mode in its flags only.
            Self::OpenFlags => record.open_flags().map(u64::from).or_else(|| {
                (record.rec_type() == RecordType::CLOSE).then(|| u64::from(record.type_flags()))
            }),
            Self::Hsm => hsm().map(|flags| flags >> 7 & 7),
            Self::HsmError => hsm().map(|flags| flags & 0x7f),
            Self::ArchiveId => {
                HsmActionEvent::parse(record).ok().map(|event| event.fields.archive_id.into())
            }
        }
    }
}

impl FidField {
    fn of(self, record: &Record<'_>) -> Option<Fid> {
        let fid = match self {
            // The place of the FID holds a MARK's flags.
            Self::Target => (record.rec_type() != RecordType::MARK).then(|| record.target()),
            Self::Parent => has_parent(record.rec_type()).then(|| record.parent()),
            Self::Source => record.source(),
            Self::SourceParent => record.source_parent(),
        };
        fid.filter(|fid| !fid.is_zero())
    }
}

impl TextField {
    fn of<'a>(self, record: &Record<'a>, mdt: &'a str) -> Option<&'a [u8]> {
        match self {
            Self::Name => Some(record.name()),
            Self::SourceName => record.source_name(),
            Self::Jobid => record.jobid(),
            Self::Xattr => record.xattr(),
            Self::Mdt => Some(mdt.as_bytes()),
            Self::Hsm(word) => HsmActionEvent::parse(record).ok().and_then(|event| word.of(&event)),
        }
    }
}

impl HsmWord {
    fn of<'a>(self, event: &HsmActionEvent<'a>) -> Option<&'a [u8]> {
        Some(match self {
            Self::EventType => event.kind.name().as_bytes(),
            Self::Action => event.action_name(),
            Self::Status if event.kind == EventKind::Purged => event.kind.name().as_bytes(),
            Self::Status => event.status_name(),
            Self::LastStatus if event.last_status.0 == 0 => return None,
            Self::LastStatus => event.last_status.name().as_bytes(),
        })
    }
}

impl Numbers {
    fn hold(&self, number: u64) -> bool {
        match self {
            Self::In(ranges) => ranges.iter().any(|&(from, to)| from <= number && number <= to),
            Self::Bits(bits) => number & bits != 0,
        }
    }
}

impl Texts {
    fn hold(&self, text: &[u8]) -> bool {
        match self {
            Self::Is(list) => list.iter().any(|one| one == text),
            Self::Like(list) => list.iter().any(|glob| glob.matches(text)),
        }
    }
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], what: &T) -> &'static str {
    table.iter().find(|(_, one)| one == what).map_or("", |(name, _)| name)
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    mut write: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    f.write_str("(")?;
    for (nth, item) in items.iter().enumerate() {
        if nth > 0 {
            f.write_str(", ")?;
        }
        write(f, item)?;
    }
    f.write_str(")")
}

/// The canonical spelling, which parses back to the same expression.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(parts) | Self::Any(parts) => {
                let word = if matches!(self, Self::All(_)) { " and " } else { " or " };
                f.write_str("(")?;
                for (nth, part) in parts.iter().enumerate() {
                    write!(f, "{}{part}", if nth > 0 { word } else { "" })?;
                }
                f.write_str(")")
            }
            Self::Not(one) => write!(f, "not {one}"),
            Self::Types(mask) => {
                let types: Vec<u32> = (0..32).filter(|n| mask >> n & 1 == 1).collect();
                f.write_str("type in ")?;
                list(f, &types, |f, &n| RecordType(n).fmt(f))
            }
            Self::Flag(flag) => f.write_str(name_of(&FLAGS, flag)),
            Self::Has(Field::Number(field)) => f.write_str(name_of(&NUMBERS, field)),
            Self::Has(Field::Fid(field)) => f.write_str(name_of(&FIDS, field)),
            Self::Has(Field::Text(field)) => f.write_str(name_of(&TEXTS, field)),
            Self::Has(Field::Nid) => f.write_str("nid"),
            Self::Number(field, Numbers::Bits(bits)) => {
                write!(f, "{} & {bits}", name_of(&NUMBERS, field))
            }
            Self::Number(field, Numbers::In(ranges)) => {
                write!(f, "{} in ", name_of(&NUMBERS, field))?;
                list(f, ranges, |f, (from, to)| {
                    if from == to { write!(f, "{from}") } else { write!(f, "{from}-{to}") }
                })
            }
            Self::Fid(field, fids) => {
                write!(f, "{} in ", name_of(&FIDS, field))?;
                list(f, fids, |f, fid| fid.fmt(f))
            }
            Self::Text(field, Texts::Is(texts)) => {
                write!(f, "{} in ", name_of(&TEXTS, field))?;
                list(f, texts, |f, text| quote(text, f))
            }
            Self::Text(field, Texts::Like(globs)) => {
                write!(f, "{} ~ ", name_of(&TEXTS, field))?;
                list(f, globs, |f, glob| glob.fmt(f))
            }
            Self::Nid(ranges) => {
                f.write_str("nid in ")?;
                list(f, ranges, |f, range| range.fmt(f))
            }
        }
    }
}
