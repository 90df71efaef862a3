//! Typed names and numbers of a Lustre changelog.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// Position of a record in one MDT's changelog (the kernel's `cr_index`).
///
/// Indexes grow, but with gaps: compare them, do not subtract them to count records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordIndex(u64);

impl RecordIndex {
    /// Before every record: a changelog counts from 1.
    pub const ZERO: Self = Self(0);

    /// Wraps the kernel's number.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The kernel's number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The index after this one; the last possible one stays.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The index before this one; zero stays.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for RecordIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An MDT as the server prints it, e.g. `lustre-MDT0000`.
///
/// Invariant: `<fsname>-MDT<4 hex digits>`, at most 127 bytes, only letters, digits, `_`, `-` and
/// `.`; so it fits a topic, a file name, a C string and a metrics label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MdtName(Box<str>);

/// The text is no MDT name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an MDT name; expected <fsname>-MDT and four hexadecimal digits, e.g. lustre-MDT0000")]
pub struct BadMdtName;

impl MdtName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file system's name: what stands before `-MDT`.
    pub fn fsname(&self) -> &str {
        self.0.rsplit_once("-MDT").map_or(&*self.0, |(fsname, _)| fsname)
    }

    /// The MDT's number within its file system.
    pub fn mdt_index(&self) -> u16 {
        let hex = self.0.rsplit_once("-MDT").map_or("0", |(_, hex)| hex);
        u16::from_str_radix(hex, 16).unwrap_or(0)
    }
}

impl FromStr for MdtName {
    type Err = BadMdtName;

    fn from_str(s: &str) -> Result<Self, BadMdtName> {
        let (fsname, index) = s.rsplit_once("-MDT").ok_or(BadMdtName)?;
        let hex = index.len() == 4 && index.bytes().all(|b| b.is_ascii_hexdigit());
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let fits = !fsname.is_empty() && s.len() <= 127 && fsname.bytes().all(plain);
        if hex && fits { Ok(Self(s.into())) } else { Err(BadMdtName) }
    }
}

impl fmt::Display for MdtName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Lustre's file identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fid {
    /// Sequence.
    pub seq: u64,
    /// Object id within the sequence.
    pub oid: u32,
    /// Version; zero in practice.
    pub ver: u32,
}

impl Fid {
    /// Lustre's own test: the version does not count.
    pub const fn is_zero(self) -> bool {
        self.seq == 0 && self.oid == 0
    }
}

/// `[0x200000402:0x1a:0x0]`, as user space prints it (`DFID` through glibc): a zero sequence is a
/// plain `0`, unlike in the kernel's own files.
impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seq, oid, ver } = *self;
        let hash = if seq == 0 { "" } else { "0x" };
        write!(f, "[{hash}{seq:x}:0x{oid:x}:0x{ver:x}]")
    }
}

/// The text is no FID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a FID; expected [0xSEQ:0xOID:0xVER]")]
pub struct BadFid;

impl FromStr for Fid {
    type Err = BadFid;

    fn from_str(s: &str) -> Result<Self, BadFid> {
        let bare = match s.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or(BadFid)?,
            None => s,
        };
        let mut parts = bare.split(':').map(|part| {
            let hex = part.strip_prefix("0x").unwrap_or(part);
            let digits = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u64::from_str_radix(hex, 16).map_err(|_| BadFid) } else { Err(BadFid) }
        });
        let mut part = || parts.next().unwrap_or(Err(BadFid));
        let seq = part()?;
        let oid = u32::try_from(part()?).map_err(|_| BadFid)?;
        let ver = u32::try_from(part()?).map_err(|_| BadFid)?;
        if parts.next().is_some() { Err(BadFid) } else { Ok(Self { seq, oid, ver }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mdt_names_are_checked() {
        for good in ["lustre-MDT0000", "a-MDTffff", "fs-1-MDT001f", "my_fs.x-MDT0001"] {
            assert_eq!(good.parse::<MdtName>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "lustre", "-MDT0000", "lustre-MDT", "lustre-MDT00000", "lustre-MDT00g0"] {
            assert_eq!(bad.parse::<MdtName>(), Err(BadMdtName), "{bad:?}");
        }
        for bad in ["lus/tre-MDT0000", "lus\0-MDT0000", "lustre-OST0000", "a b-MDT0000"] {
            assert_eq!(bad.parse::<MdtName>(), Err(BadMdtName), "{bad:?}");
        }
        let name: MdtName = "lustre-MDT001f".parse().unwrap();
        assert_eq!((name.fsname(), name.mdt_index()), ("lustre", 31));
    }

    #[test]
    fn fids_print_as_lfs_does_and_parse_back() {
        let cases = [
            (Fid { seq: 0x2_0000_0402, oid: 0x1a, ver: 0 }, "[0x200000402:0x1a:0x0]"),
            (Fid::default(), "[0:0x0:0x0]"),
        ];
        for (fid, text) in cases {
            assert_eq!(fid.to_string(), text);
            assert_eq!(text.parse(), Ok(fid));
        }
        assert_eq!("0x1:0x2:0x3".parse(), Ok(Fid { seq: 1, oid: 2, ver: 3 }));
        for bad in [
            "",
            "[",
            "[]",
            "[0x1:0x2]",
            "[0x1:0x2:0x3:0x4]",
            "[0x1:0x2:0x3",
            "[0x1:0x100000000:0x0]",
            "[+1:0x0:0x0]",
        ] {
            assert_eq!(bad.parse::<Fid>(), Err(BadFid), "{bad:?}");
        }
    }
}
