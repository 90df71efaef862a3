//! For tests: records put together byte by byte, by code that shares nothing with the parser.

use proptest::prelude::*;

use crate::Fid;

/// What a record is to contain. Which extensions there are follows from the `Option`s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub rec_type: u32,
    /// Only the low 12 bits count, and the version bit.
    pub flags: u16,
    pub index: u64,
    pub seconds: u64,
    pub nanoseconds: u32,
    pub target: Fid,
    pub parent: Fid,
    /// Source and the parent that it left.
    pub rename: Option<(Fid, Fid)>,
    /// Text, then what stands behind its NUL.
    pub jobid: Option<Vec<u8>>,
    pub extra: Option<Extra>,
    /// The whole name area.
    pub names: Vec<u8>,
}

/// What hangs on the extra flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    pub uidgid: Option<(u64, u64)>,
    /// The 24 bytes, and whether they are big-endian.
    pub nid: Option<([u8; 24], bool)>,
    pub open_flags: Option<u32>,
    pub xattr: Option<Vec<u8>>,
    /// Bits that no Lustre of today knows.
    pub unknown_bits: u64,
}

pub(crate) const fn fid(seq: u64, oid: u32) -> Fid {
    Fid { seq, oid, ver: 0 }
}

/// The bytes of an IPv4 NID on tcp, big-endian.
pub(crate) fn tcp(address: [u8; 4]) -> Option<([u8; 24], bool)> {
    let mut area = [0; 24];
    area[1] = 2;
    area[4..8].copy_from_slice(&address);
    Some((area, true))
}

fn put_fid(out: &mut Vec<u8>, fid: Fid) {
    out.extend(fid.seq.to_ne_bytes());
    out.extend(fid.oid.to_ne_bytes());
    out.extend(fid.ver.to_ne_bytes());
}

/// `text` in a field of `size` bytes; what does not come from `text` is leftover memory.
fn put_text(out: &mut Vec<u8>, text: &[u8], size: usize) {
    let mut field = vec![0xa5; size];
    field[..text.len()].copy_from_slice(text);
    if text.len() < size {
        field[text.len()] = 0;
    }
    out.extend(field);
}

impl Sample {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut flags = self.flags & 0x1fff;
        flags |= if self.rename.is_some() { 0x2000 } else { 0 };
        flags |= if self.jobid.is_some() { 0x4000 } else { 0 };
        flags |= if self.extra.is_some() { 0x8000 } else { 0 };
        let mut out = Vec::new();
        out.extend(u16::try_from(self.names.len()).unwrap().to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(self.rec_type.to_ne_bytes());
        out.extend(self.index.to_ne_bytes());
        out.extend(0u64.to_ne_bytes());
        out.extend((self.seconds << 30 | u64::from(self.nanoseconds)).to_ne_bytes());
        put_fid(&mut out, self.target);
        put_fid(&mut out, self.parent);
        if let Some((source, source_parent)) = self.rename {
            put_fid(&mut out, source);
            put_fid(&mut out, source_parent);
        }
        if let Some(jobid) = &self.jobid {
            put_text(&mut out, jobid, 32);
        }
        if let Some(extra) = &self.extra {
            out.extend(extra.flags().to_ne_bytes());
            if let Some((uid, gid)) = extra.uidgid {
                out.extend(uid.to_ne_bytes());
                out.extend(gid.to_ne_bytes());
            }
            if let Some((nid, _)) = extra.nid {
                out.extend(nid);
            }
            if let Some(mode) = extra.open_flags {
                out.extend(mode.to_ne_bytes());
            }
            if let Some(xattr) = &extra.xattr {
                put_text(&mut out, xattr, 256);
            }
        }
        out.extend(&self.names);
        out
    }
}

impl Extra {
    pub(crate) fn flags(&self) -> u64 {
        let mut flags = self.unknown_bits;
        flags |= if self.uidgid.is_some() { 0x1 } else { 0 };
        flags |= if self.nid.is_some() { 0x2 } else { 0 };
        flags |= if self.open_flags.is_some() { 0x4 } else { 0 };
        flags |= if self.xattr.is_some() { 0x8 } else { 0 };
        flags |= if self.nid.is_some_and(|(_, big)| big) { 0x10 } else { 0 };
        flags
    }
}

fn any_fid() -> impl Strategy<Value = Fid> {
    prop_oneof![
        1 => Just(Fid::default()),
        4 => (any::<u64>(), any::<u32>(), any::<u32>())
            .prop_map(|(seq, oid, ver)| Fid { seq, oid, ver }),
    ]
}

/// Bytes as file names have them: neither NUL nor `/`.
pub(crate) fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z]{1,12}".prop_map(String::into_bytes),
        proptest::collection::vec(
            any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'_' } else { b }),
            1..=255
        ),
    ]
}

fn any_text(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1u8..=255, 0..=max)
}

fn any_extra() -> impl Strategy<Value = Extra> {
    let nid = (any::<[u8; 24]>(), any::<bool>());
    (
        proptest::option::of((any::<u64>(), any::<u64>())),
        proptest::option::of(nid),
        proptest::option::of(any::<u32>()),
        proptest::option::of(any_text(255)),
        (0u64..8).prop_map(|bits| bits << 5),
    )
        .prop_map(|(uidgid, nid, open_flags, xattr, unknown_bits)| Extra {
            uidgid,
            nid,
            open_flags,
            xattr,
            unknown_bits,
        })
}

/// Any record that a server could make, and some that it would not.
pub(crate) fn any_sample() -> impl Strategy<Value = Sample> {
    let names = (proptest::option::of(any_name()), any_name());
    let head = (0u32..30, 0u16..0x2000, any::<u64>(), 0u64..1 << 34, 0u32..1 << 30);
    let fids = (any_fid(), any_fid(), proptest::option::of((any_fid(), any_fid())));
    let rest = (proptest::option::of(any_text(32)), proptest::option::of(any_extra()), names);
    (head, fids, rest).prop_map(|(head, fids, (jobid, extra, (name, source_name)))| {
        let (rec_type, flags, index, seconds, nanoseconds) = head;
        let (target, parent, rename) = fids;
        let mut names = name.unwrap_or_default();
        if rename.is_some() {
            names.push(0);
            names.extend(source_name);
        }
        Sample {
            rec_type,
            flags,
            index,
            seconds,
            nanoseconds,
            target,
            parent,
            rename,
            jobid,
            extra,
            names,
        }
    })
}

/// A capture of a real file system, see `tests/fixtures/2.17/README.md`.
pub(crate) fn capture(name: &str) -> Vec<u8> {
    use std::io::Read as _;
    let path = format!("{}/../tests/fixtures/2.17/changelog/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*bytes).read_to_end(&mut plain).unwrap();
    plain
}
