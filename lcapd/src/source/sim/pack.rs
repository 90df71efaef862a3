//! Packing generated records, with every extension that a current server adds.
#![forbid(unsafe_code)]
// Every number that is made smaller here is small by construction: lengths and digits.
#![allow(clippy::cast_possible_truncation)]

use std::io::Write;

use lcap_ffi::record::{
    CLF_EXTRA_FLAGS, CLF_JOBID, CLF_RENAME, CLF_VERSION, CLFE_NID, CLFE_NID_BE, CLFE_UIDGID,
    CLFE_XATTR, JOBID_BYTES, NID_BYTES, RecordHead, RenameExt, UidGidExt, XATTR_BYTES,
};
use lcap_ffi::{Fid, RecordIndex, RecordType};
use zerocopy::IntoBytes;

const PREFIXES: [&str; 8] =
    ["ckpt.", "run_", "out-", "part-r-", "snapshot_", "log.", "sample", "tile_x"];
const SUFFIXES: [&str; 8] = [".dat", ".h5", ".nc", "", ".tmp", ".tar.gz", ".root", ".log"];

/// Jobid, extra flags, owner and NID, as they lie in every record of one job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    ext: [u8; Job::BYTES],
}

impl Job {
    const BYTES: usize = JOBID_BYTES + 8 + size_of::<UidGidExt>() + NID_BYTES;

    pub(super) fn new(jobid: &[u8], uid: u64, gid: u64, nid: [u8; 8]) -> Self {
        let mut ext = [0; Self::BYTES];
        ext[..jobid.len()].copy_from_slice(jobid);
        let (_, rest) = ext.split_at_mut(JOBID_BYTES);
        let (flags, rest) = rest.split_at_mut(8);
        flags.copy_from_slice(&(CLFE_UIDGID | CLFE_NID | CLFE_NID_BE).to_ne_bytes());
        let (owner, nid_area) = rest.split_at_mut(size_of::<UidGidExt>());
        owner.copy_from_slice(UidGidExt { uid: uid.into(), gid: gid.into() }.as_bytes());
        nid_area[..8].copy_from_slice(&nid);
        Self { ext }
    }
}

/// What a record says.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) rec_type: RecordType,
    pub(super) flags: u16,
    pub(super) target: Fid,
    pub(super) parent: Fid,
}

/// What only some records carry.
#[derive(Clone, Copy)]
pub(super) enum Ext<'a> {
    Rename(Fid, Fid),
    Xattr(&'a str),
}

/// Number and time of a record.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    pub(super) index: RecordIndex,
    pub(super) time_ns: u64,
}

/// Appends a record. `job` is who did it, and whether the record has a jobid.
///
/// As the device gives them: a rename carries `CLF_RENAME` in place of `CLF_VERSION`.
#[inline]
pub(super) fn pack(
    out: &mut Vec<u8>,
    stamp: Stamp,
    head: Head,
    (job, with_jobid): (&Job, bool),
    ext: Option<Ext<'_>>,
    names: &[u8],
) {
    let base = match ext {
        Some(Ext::Rename(..)) => CLF_RENAME,
        _ => CLF_VERSION,
    };
    let format = base | CLF_EXTRA_FLAGS | if with_jobid { CLF_JOBID } else { 0 };
    let (seconds, nanoseconds) = (stamp.time_ns / 1_000_000_000, stamp.time_ns % 1_000_000_000);
    let fixed = RecordHead {
        name_len: (names.len() as u16).into(),
        flags: (format | head.flags).into(),
        rec_type: head.rec_type.0.into(),
        index: stamp.index.get().into(),
        prev: 0.into(),
        time: ((seconds << 30) | nanoseconds).into(),
        target: head.target.into(),
        parent: head.parent.into(),
    };
    out.extend_from_slice(fixed.as_bytes());
    if let Some(Ext::Rename(source, source_parent)) = ext {
        let rename = RenameExt { source: source.into(), source_parent: source_parent.into() };
        out.extend_from_slice(rename.as_bytes());
    }
    let flags_at = out.len() + if with_jobid { JOBID_BYTES } else { 0 };
    out.extend_from_slice(&job.ext[if with_jobid { 0 } else { JOBID_BYTES }..]);
    if let Some(Ext::Xattr(name)) = ext {
        let flags = CLFE_UIDGID | CLFE_NID | CLFE_NID_BE | CLFE_XATTR;
        out[flags_at..flags_at + 8].copy_from_slice(&flags.to_ne_bytes());
        let mut area = [0; XATTR_BYTES];
        area[..name.len()].copy_from_slice(name.as_bytes());
        out.extend_from_slice(&area);
    }
    out.extend_from_slice(names);
}

/// Longest name that [`write_name`] makes.
pub(super) const MAX_NAME: usize = 255;

/// Formats into a buffer that is large enough; returns the length.
pub(super) fn write_into(buf: &mut [u8], text: std::fmt::Arguments<'_>) -> usize {
    let room = buf.len();
    let mut rest = buf;
    // A text that does not fit is cut, which no caller lets happen.
    let _ = rest.write_fmt(text);
    room - rest.len()
}

/// The text of a name; returns its length. Most are plain, a few are what users come up with.
#[inline]
pub(super) fn write_name(buf: &mut [u8], name: u32) -> usize {
    let (look, number) = ((name >> 16) as usize, name & 0xffff);
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        buf[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    match look >> 8 {
        0 => put(b"line\nfeed "),
        1 => put(b"latin1-\xe9t\xe9-"),
        2 => put("été-漢字-".as_bytes()),
        3 if look & 0xf == 0 => put(&[b'x'; 240]),
        _ => put(PREFIXES[look & 7].as_bytes()),
    }
    let mut digits = [b'0'; 5];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    put(&digits);
    put(SUFFIXES[look >> 3 & 7].as_bytes());
    len
}
