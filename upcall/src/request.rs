//! A request of an MDT: what its arguments say, and the bytes that it has in the spool.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::str::FromStr;

/// Largest DATA and most FIDs that are taken. An MDT sends at most 1.7 kB of both together.
const MAX_DATA_BYTES: usize = 1 << 20;
const MAX_FIDS: usize = 1 << 16;
/// No file of a spool is larger.
pub const MAX_FILE_BYTES: usize = HEAD_BYTES + 255 + MAX_DATA_BYTES + MAX_FIDS * FID_BYTES + 4;

const MAGIC: [u8; 4] = *b"LHSM";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 40;
const FID_BYTES: usize = 16;

/// What is asked for (`HSMA_*`); the discriminant is Lustre's number. `lcap_ffi::hsm::HsmAction` is the same; this crate
/// links nothing of lcap's, so that the program stays small, and a test of lcapd compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Action {
    /// Copy the file to the archive.
    Archive = 20,
    /// Bring the data back.
    Restore = 21,
    /// Delete the archive's copy.
    Remove = 22,
    /// Do not do what was asked for before.
    Cancel = 23,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Archive, Self::Restore, Self::Remove, Self::Cancel];

    /// Lustre's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Archive => "ARCHIVE",
            Self::Restore => "RESTORE",
            Self::Remove => "REMOVE",
            Self::Cancel => "CANCEL",
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|action| *action as u16 == number)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Action {
    type Err = BadArgument;

    fn from_str(text: &str) -> Result<Self, BadArgument> {
        let found = Self::ALL.into_iter().find(|action| action.name() == text);
        found.ok_or_else(|| {
            BadArgument::new("ACTION", text, "not ARCHIVE, RESTORE, REMOVE or CANCEL")
        })
    }
}

/// A file's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // Lustre's names
pub struct Fid {
    pub seq: u64,
    pub oid: u32,
    pub ver: u32,
}

impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}:{:#x}:{:#x}]", self.seq, self.oid, self.ver)
    }
}

impl FromStr for Fid {
    type Err = BadArgument;

    fn from_str(text: &str) -> Result<Self, BadArgument> {
        let parse = || {
            let inner = match text.strip_prefix('[') {
                Some(rest) => rest.strip_suffix(']')?,
                None => text,
            };
            let mut parts = inner.split(':').map(|part| {
                let hex = part.strip_prefix("0x")?;
                // Not what from_str_radix takes besides: a sign.
                let digits = hex.bytes().all(|b| b.is_ascii_hexdigit());
                if digits { u64::from_str_radix(hex, 16).ok() } else { None }
            });
            let seq = parts.next()??;
            let oid = u32::try_from(parts.next()??).ok()?;
            let ver = u32::try_from(parts.next()??).ok()?;
            (parts.next().is_none() && seq != 0).then_some(Self { seq, oid, ver })
        };
        parse().ok_or_else(|| BadArgument::new("FID", text, "not a FID like [0x200000401:0x1:0x0]"))
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub action: Action,
    /// Of which file system.
    pub fsname: String,
    /// Which archive.
    pub archive_id: u32,
    /// `hr_flags`.
    pub flags: u64,
    /// What the user gave for the copytool, uninterpreted.
    pub data: Vec<u8>,
    /// At least one.
    pub fids: Vec<Fid>,
}

/// An argument that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{argument} `{value}`: {problem}")]
pub struct BadArgument {
    argument: &'static str,
    value: String,
    problem: &'static str,
}

impl BadArgument {
    fn new(argument: &'static str, value: &str, problem: &'static str) -> Self {
        Self { argument, value: value.chars().take(200).collect(), problem }
    }
}

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFile {
    /// Not as long as it says, or too long or short for any request.
    #[error("{0} bytes are not the length that it says")]
    Length(usize),
    /// Something else, or its beginning is damaged.
    #[error("no request of an upcall")]
    Magic,
    /// Written by a newer release.
    #[error("version {0}, this release knows {VERSION}")]
    Version(u16),
    /// Damaged.
    #[error("checksum does not match")]
    Checksum,
    /// Whole, but no such request can be.
    #[error("its {0} cannot be")]
    Field(&'static str),
}

/// `ACTION FSNAME ARCHIVE_ID FLAGS DATA FID...`, for messages.
pub const USAGE: &str = "ACTION FSNAME ARCHIVE_ID FLAGS DATA FID...";

fn valid_fsname(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=8).contains(&name.len()) && name.bytes().all(plain)
}

/// Digits only, as the kernel prints numbers.
fn number<T: FromStr>(argument: &'static str, text: &str) -> Result<T, BadArgument> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = if digits { text.parse().ok() } else { None };
    value.ok_or_else(|| BadArgument::new(argument, text, "not a decimal number in range"))
}

impl Request {
    /// Reads the arguments of an upcall (without the program's name).
    ///
    /// # Errors
    /// The first argument that cannot be.
    pub fn from_args(args: &[OsString]) -> Result<Self, BadArgument> {
        let [action, fsname, archive_id, flags, data, fids @ ..] = args else {
            return Err(BadArgument::new("arguments", &format!("{} of them", args.len()), USAGE));
        };
        let text = |arg: &OsString| arg.to_string_lossy().into_owned();
        let fsname = text(fsname);
        if !valid_fsname(&fsname) {
            let problem = "not a file system's name (1 to 8 letters, digits, `_`, `-`)";
            return Err(BadArgument::new("FSNAME", &fsname, problem));
        }
        let data = data.as_bytes().to_vec();
        if data.len() > MAX_DATA_BYTES {
            return Err(BadArgument::new("DATA", "", "longer than 1 MiB"));
        }
        if fids.is_empty() || fids.len() > MAX_FIDS {
            let n = format!("{} of them", fids.len());
            return Err(BadArgument::new("FID", &n, "1 to 65536 are allowed"));
        }
        Ok(Self {
            action: text(action).parse()?,
            fsname,
            archive_id: number("ARCHIVE_ID", &text(archive_id))?,
            flags: number("FLAGS", &text(flags))?,
            data,
            fids: fids.iter().map(|fid| text(fid).parse()).collect::<Result<_, _>>()?,
        })
    }

    /// The bytes of its file. Little-endian; docs/hsm.md has the table.
    pub fn encode(&self) -> Vec<u8> {
        let len = HEAD_BYTES
            + self.fsname.len()
            + self.data.len()
            + self.fids.len() * FID_BYTES
            + size_of::<u32>();
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.action as u16).to_le_bytes());
        bytes.extend(length(len));
        bytes.extend(self.archive_id.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(length(self.fsname.len()));
        bytes.extend(length(self.data.len()));
        bytes.extend(length(self.fids.len()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(self.fsname.as_bytes());
        bytes.extend(&self.data);
        for fid in &self.fids {
            bytes.extend(fid.seq.to_le_bytes());
            bytes.extend(fid.oid.to_le_bytes());
            bytes.extend(fid.ver.to_le_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadFile> {
        let too_short = BadFile::Length(bytes.len());
        let mut rest = Bytes(bytes);
        let magic = rest.take(4).ok_or(too_short)?;
        let version = rest.u16().ok_or(too_short)?;
        if magic != MAGIC {
            return Err(BadFile::Magic);
        }
        if version != VERSION {
            return Err(BadFile::Version(version));
        }
        let action = rest.u16().ok_or(too_short)?;
        let len = rest.u32().ok_or(too_short)?;
        let body_len = bytes.len().checked_sub(4).ok_or(too_short)?;
        let (body, crc) = bytes.split_at(body_len);
        if len as usize != bytes.len() || bytes.len() < HEAD_BYTES + 4 {
            return Err(too_short);
        }
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(BadFile::Checksum);
        }
        // From here on it is as it was written; what is wrong was wrong then.
        let field = |name| move || BadFile::Field(name);
        let action = Action::from_number(action).ok_or_else(field("action"))?;
        let archive_id = rest.u32().ok_or(too_short)?;
        let flags = rest.u64().ok_or(too_short)?;
        let n_fsname = rest.u32().ok_or(too_short)? as usize;
        let n_data = rest.u32().ok_or(too_short)? as usize;
        let n_fids = rest.u32().ok_or(too_short)? as usize;
        rest.u32().ok_or(too_short)?;
        let fsname = rest.take(n_fsname).and_then(|name| std::str::from_utf8(name).ok());
        let fsname = fsname.filter(|name| valid_fsname(name)).ok_or_else(field("fsname"))?;
        let data = rest.take(n_data).ok_or_else(field("data"))?.to_vec();
        if rest.0.len() != n_fids.saturating_mul(FID_BYTES).saturating_add(4) || n_fids == 0 {
            return Err(BadFile::Field("FIDs"));
        }
        let mut fids = Vec::with_capacity(n_fids);
        for _ in 0..n_fids {
            let fid = (rest.u64(), rest.u32(), rest.u32());
            let (Some(seq), Some(oid), Some(ver)) = fid else { return Err(too_short) };
            fids.push(Fid { seq, oid, ver });
        }
        let fsname = fsname.to_owned();
        Ok(Self { action, fsname, archive_id, flags, data, fids })
    }
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use proptest::prelude::*;

    use super::*;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    const GOOD: [&str; 6] = ["ARCHIVE", "lustre", "2", "1", "a=b c", "[0x200000401:0x1:0x0]"];

    #[test]
    fn good_arguments_are_understood() {
        let mut words = args(&GOOD);
        words[4] = OsString::from_vec(b"\xff\n \x01".to_vec());
        let request = Request::from_args(&words).unwrap();
        let fid = Fid { seq: 0x2_0000_0401, oid: 1, ver: 0 };
        let want = Request {
            action: Action::Archive,
            fsname: "lustre".into(),
            archive_id: 2,
            flags: 1,
            data: b"\xff\n \x01".to_vec(),
            fids: vec![fid],
        };
        assert_eq!(request, want);
        assert_eq!(fid.to_string(), GOOD[5]);
        assert!(Request::from_args(&args(&["REMOVE", "l", "0", "0", "", "0x1:0x2:0x3"])).is_ok());
    }

    #[test]
    fn every_bad_argument_is_named() {
        let cases = [
            (0, "archive", "ACTION"),
            (0, "NOOP", "ACTION"),
            (0, "", "ACTION"),
            (1, "", "FSNAME"),
            (1, "nine-long", "FSNAME"),
            (1, "a/b", "FSNAME"),
            (2, "-1", "ARCHIVE_ID"),
            (2, "+1", "ARCHIVE_ID"),
            (2, "4294967296", "ARCHIVE_ID"),
            (2, "0x1", "ARCHIVE_ID"),
            (3, "", "FLAGS"),
            (3, "18446744073709551616", "FLAGS"),
            (5, "[0x1:0x2]", "FID"),
            (5, "[0x1:0x2:0x3:0x4]", "FID"),
            (5, "[0x1:0x100000000:0x0]", "FID"),
            (5, "[0x0:0x0:0x0]", "FID"),
            (5, "[0x1:0x+2:0x3]", "FID"),
            (5, "[0x1:0x2:0x3", "FID"),
            (5, "", "FID"),
        ];
        for (at, value, name) in cases {
            let mut words = GOOD;
            words[at] = value;
            let error = Request::from_args(&args(&words)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} `{value}`: ")), "{value:?}: {error}");
        }
        for n in 0..6 {
            assert!(Request::from_args(&args(&GOOD[..n])).is_err(), "{n} arguments");
        }
    }

    /// Frozen: files of an older release lie in the spool when lcapd is upgraded.
    #[test]
    fn the_format_is_as_documented() {
        let request = Request::from_args(&args(&GOOD)).unwrap();
        let mut want = Vec::new();
        want.extend(b"LHSM\x01\x00\x14\x00");
        want.extend([71, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        want.extend([6, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        want.extend(b"lustrea=b c");
        want.extend([1, 4, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        want.extend(crc32c::crc32c(&want).to_le_bytes());
        assert_eq!(request.encode(), want);
        assert_eq!(Request::decode(&want), Ok(request));
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let good = Request::from_args(&args(&GOOD)).unwrap().encode();
        for n in 0..good.len() {
            assert!(Request::decode(&good[..n]).is_err(), "cut to {n} bytes");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[n] ^= 1 << bit;
                assert!(Request::decode(&bad).is_err(), "bit {bit} of byte {n}");
            }
        }
        let mut longer = good;
        longer.push(0);
        assert!(Request::decode(&longer).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            data in proptest::collection::vec(any::<u8>(), 0..300),
            fids in proptest::collection::vec((1_u64.., any::<u32>(), any::<u32>()), 1..60),
            archive_id: u32,
            flags: u64,
        ) {
            let fids = fids.into_iter().map(|(seq, oid, ver)| Fid { seq, oid, ver }).collect();
            let fsname = "fs-1_A".to_owned();
            let request = Request { action: Action::Remove, fsname, archive_id, flags, data, fids };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            // As far as the fields: length and checksum made right.
            if bytes.len() > HEAD_BYTES + 4 {
                bytes[..6].copy_from_slice(b"LHSM\x01\x00");
                let len = u32::try_from(bytes.len()).unwrap();
                bytes[8..12].copy_from_slice(&len.to_le_bytes());
                let body = bytes.len() - 4;
                let crc = crc32c::crc32c(&bytes[..body]);
                bytes[body..].copy_from_slice(&crc.to_le_bytes());
                let _ = Request::decode(&bytes);
            }
        }
    }
}
