//! The kernel's packed changelog record, `struct changelog_rec` of `lustre_user.h`.
//!
//! A record is a 64-byte head, extensions in a fixed order as two flag words say, and a name area;
//! nothing is aligned or padded. [`split_first`] checks one against its buffer and borrows it;
//! [`split_len`] only finds its end, for those who pass whole records on.
#![forbid(unsafe_code)]

use std::fmt;

use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::name::{Fid, RecordIndex};
pub use crate::nid::Nid;

/// `cr_flags`: base format.
pub const CLF_VERSION: u16 = 0x1000;
/// `cr_flags`: the rename extension follows.
pub const CLF_RENAME: u16 = 0x2000;
/// `cr_flags`: the jobid extension follows.
pub const CLF_JOBID: u16 = 0x4000;
/// `cr_flags`: the extra-flags extension follows.
pub const CLF_EXTRA_FLAGS: u16 = 0x8000;
/// `cr_flags`: the bits whose meaning depends on the record type.
pub const CLF_FLAGMASK: u16 = 0x0fff;

/// `cr_extra_flags`: owner of the process that made the change.
pub const CLFE_UIDGID: u64 = 0x01;
/// `cr_extra_flags`: NID of the client that made the change.
pub const CLFE_NID: u64 = 0x02;
/// `cr_extra_flags`: open mode.
pub const CLFE_OPEN: u64 = 0x04;
/// `cr_extra_flags`: name of the extended attribute.
pub const CLFE_XATTR: u64 = 0x08;
/// `cr_extra_flags`: the NID area holds a big-endian `struct lnet_nid`. Adds no bytes.
pub const CLFE_NID_BE: u64 = 0x10;

/// Every format bit of `cr_flags` that has a meaning.
pub const CLF_SUPPORTED: u16 = CLF_VERSION | CLF_RENAME | CLF_JOBID | CLF_EXTRA_FLAGS;
/// Every bit of `cr_extra_flags` that has a meaning.
pub const CLFE_SUPPORTED: u64 = CLFE_UIDGID | CLFE_NID | CLFE_OPEN | CLFE_XATTR | CLFE_NID_BE;

/// Largest record that a client's buffer must hold (`CR_MAXSIZE` since Lustre 2.11).
pub const MAX_RECORD_BYTES: usize = 952;
/// Longest name of a directory entry.
pub const NAME_MAX: usize = 255;
/// Size of the fixed head.
pub const HEAD_BYTES: usize = size_of::<RecordHead>();

/// A FID as it lies in a record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawFid {
    seq: U64,
    oid: U32,
    ver: U32,
}

impl From<RawFid> for Fid {
    fn from(raw: RawFid) -> Self {
        Self { seq: raw.seq.get(), oid: raw.oid.get(), ver: raw.ver.get() }
    }
}

impl From<Fid> for RawFid {
    fn from(fid: Fid) -> Self {
        Self { seq: fid.seq.into(), oid: fid.oid.into(), ver: fid.ver.into() }
    }
}

/// Fixed head of a record. Integers are in the byte order of the client that read it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RecordHead {
    /// Bytes of the name area.
    pub name_len: U16,
    /// Format bits and per-type bits.
    pub flags: U16,
    /// Record type, `CL_*`.
    pub rec_type: U32,
    /// Record index.
    pub index: U64,
    /// Documented as the previous index for this FID; no server writes it.
    pub prev: U64,
    /// Seconds << 30 | nanoseconds.
    pub time: U64,
    /// Target FID; its first word is `cr_markerflags` in a MARK record.
    pub target: RawFid,
    /// Parent FID; zero or stale for types without a parent.
    pub parent: RawFid,
}

/// `struct changelog_ext_rename`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RenameExt {
    /// The object that moved.
    pub source: RawFid,
    /// The directory that it left.
    pub source_parent: RawFid,
}

/// `struct changelog_ext_uidgid`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct UidGidExt {
    /// User id.
    pub uid: U64,
    /// Group id.
    pub gid: U64,
}

/// `struct changelog_ext_jobid`: text up to the first NUL; what follows is stale.
pub const JOBID_BYTES: usize = 32;
/// `struct changelog_ext_nid`, tail padding included.
pub const NID_BYTES: usize = 24;
/// `struct changelog_ext_xattr`: text up to the first NUL; what follows is stale.
pub const XATTR_BYTES: usize = 256;

// The layout is frozen by the kernel's header (`lustre_user.h`, measured by compiling it).
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<RecordHead>() == 64);
    assert!(offset_of!(RecordHead, name_len) == 0);
    assert!(offset_of!(RecordHead, flags) == 2);
    assert!(offset_of!(RecordHead, rec_type) == 4);
    assert!(offset_of!(RecordHead, index) == 8);
    assert!(offset_of!(RecordHead, prev) == 16);
    assert!(offset_of!(RecordHead, time) == 24);
    assert!(offset_of!(RecordHead, target) == 32);
    assert!(offset_of!(RecordHead, parent) == 48);
    assert!(offset_of!(RawFid, oid) == 8 && offset_of!(RawFid, ver) == 12);
    assert!(size_of::<RenameExt>() == 32 && offset_of!(RenameExt, source_parent) == 16);
    assert!(size_of::<UidGidExt>() == 16 && offset_of!(UidGidExt, gid) == 8);
};

/// What is wrong with the bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The buffer ends inside the record.
    #[error("record ends after {have} of {need} bytes")]
    Short {
        /// Bytes that the record needs, as far as they can be known.
        need: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// The head claims a size that no record can have.
    #[error("record of {claimed} bytes; none is larger than {MAX_RECORD_BYTES}")]
    TooLong {
        /// The size that its flags and name length add up to.
        claimed: usize,
    },
}

/// A record's type, `CL_*`. Unknown numbers are kept: newer servers may send them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u32);

/// Names by number, as `changelog_type2str()` gives them.
const TYPE_NAMES: [&str; 25] = [
    "MARK", "CREAT", "MKDIR", "HLINK", "SLINK", "MKNOD", "UNLNK", "RMDIR", "RENME", "RNMTO",
    "OPEN", "CLOSE", "LYOUT", "TRUNC", "SATTR", "XATTR", "HSM", "MTIME", "CTIME", "ATIME", "MIGRT",
    "FLRW", "RESYNC", "GXATR", "NOPEN",
];

#[allow(missing_docs)] // the names say it
impl RecordType {
    pub const MARK: Self = Self(0);
    pub const CREATE: Self = Self(1);
    pub const MKDIR: Self = Self(2);
    pub const HARDLINK: Self = Self(3);
    pub const SOFTLINK: Self = Self(4);
    pub const MKNOD: Self = Self(5);
    pub const UNLINK: Self = Self(6);
    pub const RMDIR: Self = Self(7);
    pub const RENAME: Self = Self(8);
    pub const EXT: Self = Self(9);
    pub const OPEN: Self = Self(10);
    pub const CLOSE: Self = Self(11);
    pub const LAYOUT: Self = Self(12);
    pub const TRUNC: Self = Self(13);
    pub const SETATTR: Self = Self(14);
    pub const SETXATTR: Self = Self(15);
    pub const HSM: Self = Self(16);
    pub const MTIME: Self = Self(17);
    pub const CTIME: Self = Self(18);
    pub const ATIME: Self = Self(19);
    pub const MIGRATE: Self = Self(20);
    pub const FLRW: Self = Self(21);
    pub const RESYNC: Self = Self(22);
    pub const GETXATTR: Self = Self(23);
    pub const DN_OPEN: Self = Self(24);
    /// Not Lustre's: a change of an HSM action, see [`crate::hsm_action`]. Never in a changelog.
    pub const HSM_ACTION: Self = Self(0x6c63_0001);
}

impl RecordType {
    /// Short name, e.g. `CREAT`; `None` for a number that has none.
    pub fn name(self) -> Option<&'static str> {
        if self == Self::HSM_ACTION {
            return Some("ACTION");
        }
        TYPE_NAMES.get(usize::try_from(self.0).ok()?).copied()
    }

    /// Lustre's type of that short name, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        let at = TYPE_NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
        u32::try_from(at).ok().map(Self)
    }

    /// Every type of Lustre's, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).map(Self).take(TYPE_NAMES.len())
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// One record, borrowed from the buffer that it came in.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) head: &'a RecordHead,
    pub(crate) rename: Option<&'a RenameExt>,
    pub(crate) jobid: Option<&'a [u8]>,
    pub(crate) extra_flags: Option<u64>,
    pub(crate) uidgid: Option<&'a UidGidExt>,
    pub(crate) nid: Option<&'a [u8]>,
    pub(crate) open_flags: Option<u32>,
    pub(crate) xattr: Option<&'a [u8]>,
    pub(crate) names: &'a [u8],
}

/// Bytes before the name area, as the two flag words say.
const fn prefix_bytes(flags: u16, extra_flags: u64) -> usize {
    let mut size = HEAD_BYTES;
    if flags & CLF_RENAME != 0 {
        size += size_of::<RenameExt>();
    }
    if flags & CLF_JOBID != 0 {
        size += JOBID_BYTES;
    }
    if flags & CLF_EXTRA_FLAGS != 0 {
        size += 8;
        if extra_flags & CLFE_UIDGID != 0 {
            size += size_of::<UidGidExt>();
        }
        if extra_flags & CLFE_NID != 0 {
            size += NID_BYTES;
        }
        if extra_flags & CLFE_OPEN != 0 {
            size += 4;
        }
        if extra_flags & CLFE_XATTR != 0 {
            size += XATTR_BYTES;
        }
    }
    size
}

// Sizes before the name that compiling the real header gave.
const _: () = {
    assert!(prefix_bytes(0x1000, 0) == 64);
    assert!(prefix_bytes(0x7000, 0) == 128);
    assert!(prefix_bytes(0x9000, 0x03) == 112);
    assert!(prefix_bytes(0xd000, 0x13) == 144);
    assert!(prefix_bytes(0xd000, 0x07) == 148);
    assert!(prefix_bytes(0xd000, 0x0b) == 400);
    assert!(prefix_bytes(0xf000, 0x03) == 176);
    assert!(prefix_bytes(0xf000, 0x1f) == 436);
};

/// Finds the end of the first record in `buf` and its index; looks at nothing else.
///
/// # Errors
/// [`RecordError`] if `buf` ends inside the record, or the record claims an impossible size.
#[inline]
pub fn split_len(buf: &[u8]) -> Result<(usize, RecordIndex), RecordError> {
    let short = |need| RecordError::Short { need, have: buf.len() };
    let (head, _) = RecordHead::ref_from_prefix(buf).map_err(|_| short(HEAD_BYTES))?;
    let flags = head.flags.get();
    let extra_flags = if flags & CLF_EXTRA_FLAGS == 0 {
        0
    } else {
        let at = prefix_bytes(flags & !CLF_EXTRA_FLAGS, 0);
        let word = buf.get(at..at + 8).ok_or(short(at + 8))?;
        U64::read_from_bytes(word).map_err(|_| short(at + 8))?.get()
    };
    let size = prefix_bytes(flags, extra_flags) + usize::from(head.name_len.get());
    if size > MAX_RECORD_BYTES {
        return Err(RecordError::TooLong { claimed: size });
    }
    if size > buf.len() {
        return Err(short(size));
    }
    Ok((size, RecordIndex::new(head.index.get())))
}

/// Splits the first record off `buf`; returns it and the bytes after it. Copies nothing.
///
/// # Errors
/// [`RecordError`] if `buf` ends inside the record, or the record claims an impossible size.
pub fn split_first(buf: &[u8]) -> Result<(Record<'_>, &[u8]), RecordError> {
    let (size, _) = split_len(buf)?;
    let (bytes, after) = buf.split_at(size);
    let short = RecordError::Short { need: size, have: buf.len() };
    let (head, mut rest) = RecordHead::ref_from_prefix(bytes).map_err(|_| short)?;
    let flags = head.flags.get();
    let mut take = |present: bool, n: usize| -> Result<Option<&[u8]>, RecordError> {
        if !present {
            return Ok(None);
        }
        let (ext, tail) = rest.split_at_checked(n).ok_or(short)?;
        rest = tail;
        Ok(Some(ext))
    };
    let rename = take(flags & CLF_RENAME != 0, size_of::<RenameExt>())?;
    let jobid = take(flags & CLF_JOBID != 0, JOBID_BYTES)?;
    let extra_flags = take(flags & CLF_EXTRA_FLAGS != 0, 8)?
        .map(|word| U64::read_from_bytes(word).map(U64::get).map_err(|_| short))
        .transpose()?;
    let has = |bit: u64| extra_flags.unwrap_or(0) & bit != 0;
    let uidgid = take(has(CLFE_UIDGID), size_of::<UidGidExt>())?;
    let nid = take(has(CLFE_NID), NID_BYTES)?;
    let open_flags = take(has(CLFE_OPEN), 4)?
        .map(|word| U32::read_from_bytes(word).map(U32::get).map_err(|_| short))
        .transpose()?;
    let xattr = take(has(CLFE_XATTR), XATTR_BYTES)?;
    let record = Record {
        bytes,
        head,
        rename: rename.map(RenameExt::ref_from_bytes).transpose().map_err(|_| short)?,
        jobid,
        extra_flags,
        uidgid: uidgid.map(UidGidExt::ref_from_bytes).transpose().map_err(|_| short)?,
        nid,
        open_flags,
        xattr,
        names: rest,
    };
    Ok((record, after))
}

/// The records of `buf`, in order. After an error there are no more.
pub fn records(buf: &[u8]) -> Records<'_> {
    Records { rest: buf }
}

/// Iterator over packed records; made by [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let split = split_first(self.rest);
        self.rest = split.as_ref().map_or(&[], |(_, rest)| rest);
        Some(split.map(|(record, _)| record))
    }
}

/// `text` up to its first NUL: bytes behind it are leftovers of the server's memory.
fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&b| b == 0).next().unwrap_or_default()
}

impl<'a> Record<'a> {
    /// The whole record as it was received.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The fixed head.
    pub fn head(&self) -> &'a RecordHead {
        self.head
    }

    /// Its number on its MDT.
    pub fn index(&self) -> RecordIndex {
        RecordIndex::new(self.head.index.get())
    }

    /// What happened.
    pub fn rec_type(&self) -> RecordType {
        RecordType(self.head.rec_type.get())
    }

    /// The whole flag word, format bits included.
    pub fn flags(&self) -> u16 {
        self.head.flags.get()
    }

    /// The bits whose meaning depends on the type (`CLF_UNLINK_LAST`, HSM event, open mode, …).
    pub fn type_flags(&self) -> u16 {
        self.flags() & CLF_FLAGMASK
    }

    /// Seconds since 1970 on the server's clock.
    pub fn seconds(&self) -> u64 {
        self.head.time.get() >> 30
    }

    /// Nanoseconds within that second. A lying record may say up to 2³⁰ - 1.
    pub fn nanoseconds(&self) -> u32 {
        u32::try_from(self.head.time.get() & 0x3fff_ffff).unwrap_or(0)
    }

    /// The object concerned; of a rename, the one that was overwritten, or zero.
    pub fn target(&self) -> Fid {
        self.head.target.into()
    }

    /// Its directory; possibly stale for types that have none (see the record type's meaning).
    pub fn parent(&self) -> Fid {
        self.head.parent.into()
    }

    /// The object that a rename or migration moved.
    pub fn source(&self) -> Option<Fid> {
        self.rename.map(|ext| ext.source.into())
    }

    /// The directory that it left.
    pub fn source_parent(&self) -> Option<Fid> {
        self.rename.map(|ext| ext.source_parent.into())
    }

    /// Scheduler's tag; `None` without the extension, possibly empty with it.
    pub fn jobid(&self) -> Option<&'a [u8]> {
        self.jobid.map(until_nul)
    }

    /// Which further extensions there are; `None` without the extra-flags extension.
    pub fn extra_flags(&self) -> Option<u64> {
        self.extra_flags
    }

    /// User id of the process that made the change.
    pub fn uid(&self) -> Option<u64> {
        self.uidgid.map(|ext| ext.uid.get())
    }

    /// Group id of the process that made the change.
    pub fn gid(&self) -> Option<u64> {
        self.uidgid.map(|ext| ext.gid.get())
    }

    /// The client that made the change.
    pub fn nid(&self) -> Option<Nid> {
        let area = self.nid?;
        if self.extra_flags? & CLFE_NID_BE != 0 {
            area.first_chunk().copied().map(Nid::Large)
        } else {
            area.first_chunk().map(|word| Nid::Small(u64::from_ne_bytes(*word)))
        }
    }

    /// Open mode (`MDS_*` bits); the record's own format bits, which servers leave in it, masked.
    pub fn open_flags(&self) -> Option<u32> {
        self.open_flags.map(|flags| flags & u32::from(CLF_FLAGMASK))
    }

    /// Name of the extended attribute.
    pub fn xattr(&self) -> Option<&'a [u8]> {
        self.xattr.map(until_nul)
    }

    /// The whole name area: `target NUL source` in a rename.
    pub fn names(&self) -> &'a [u8] {
        self.names
    }

    /// Entry name; of a rename, the new one. Any bytes but NUL and `/`; empty for types without.
    pub fn name(&self) -> &'a [u8] {
        if self.rename.is_some() { until_nul(self.names) } else { self.names }
    }

    /// The old name of a rename or migration.
    pub fn source_name(&self) -> Option<&'a [u8]> {
        self.rename?;
        let at = self.names.iter().position(|&b| b == 0)?;
        self.names.get(at + 1..)
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("index", &self.index())
            .field("rec_type", &self.rec_type())
            .field("flags", &self.flags())
            .field("target", &self.target())
            .field("name", &String::from_utf8_lossy(self.name()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
