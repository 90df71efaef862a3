//! Makes packed records: for modules that fold several into one, and for tests.
#![forbid(unsafe_code)]

use lcap_ffi::record::Nid;
use lcap_ffi::record::{
    CLF_EXTRA_FLAGS, CLF_FLAGMASK, CLF_JOBID, CLF_RENAME, CLF_VERSION, CLFE_NID, CLFE_NID_BE,
    CLFE_OPEN, CLFE_UIDGID, CLFE_XATTR, JOBID_BYTES, NID_BYTES, XATTR_BYTES,
};
use lcap_ffi::{Fid, Record, RecordIndex, RecordType};

/// A record that can be changed; [`RecordBuilder::build`] packs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordBuilder {
    rec_type: u32,
    type_flags: u16,
    index: u64,
    prev: u64,
    time: u64,
    target: Fid,
    parent: Fid,
    rename: Option<(Fid, Fid, Vec<u8>)>,
    jobid: Option<Vec<u8>>,
    extra: bool,
    uidgid: Option<(u64, u64)>,
    nid: Option<(bool, [u8; NID_BYTES])>,
    open_flags: Option<u32>,
    xattr: Option<Vec<u8>>,
    name: Vec<u8>,
}

impl RecordBuilder {
    /// An empty record of that type.
    pub fn new(rec_type: RecordType) -> Self {
        Self { rec_type: rec_type.0, ..Self::default() }
    }

    /// A copy of a record.
    pub fn of(record: &Record<'_>) -> Self {
        let rename = record.source().map(|source| {
            let source_name = record.source_name().unwrap_or_default().to_vec();
            (source, record.source_parent().unwrap_or_default(), source_name)
        });
        let nid = record.nid().map(|nid| {
            let mut area = [0; NID_BYTES];
            match nid {
                Nid::Small(word) => area[..8].copy_from_slice(&word.to_ne_bytes()),
                Nid::Large(bytes) => area[..20].copy_from_slice(&bytes),
            }
            (matches!(nid, Nid::Large(_)), area)
        });
        Self {
            rec_type: record.rec_type().0,
            type_flags: record.type_flags(),
            index: record.index().get(),
            prev: record.head().prev.get(),
            time: record.head().time.get(),
            target: record.target(),
            parent: record.parent(),
            rename,
            jobid: record.jobid().map(<[u8]>::to_vec),
            extra: record.extra_flags().is_some(),
            uidgid: record.uid().zip(record.gid()),
            nid,
            open_flags: record.open_flags(),
            xattr: record.xattr().map(<[u8]>::to_vec),
            name: record.name().to_vec(),
        }
    }

    /// Its number on its MDT.
    #[must_use]
    pub fn index(mut self, index: u64) -> Self {
        self.index = index;
        self
    }

    /// The bits whose meaning depends on the type.
    #[must_use]
    pub fn type_flags(mut self, flags: u16) -> Self {
        self.type_flags = flags & CLF_FLAGMASK;
        self
    }

    /// Seconds and nanoseconds since 1970.
    #[must_use]
    pub fn time(mut self, seconds: u64, nanoseconds: u32) -> Self {
        self.time = seconds << 30 | u64::from(nanoseconds & 0x3fff_ffff);
        self
    }

    /// The object concerned.
    #[must_use]
    pub fn target(mut self, fid: Fid) -> Self {
        self.target = fid;
        self
    }

    /// Its directory.
    #[must_use]
    pub fn parent(mut self, fid: Fid) -> Self {
        self.parent = fid;
        self
    }

    /// Its name; without NUL, cut at 255 bytes.
    #[must_use]
    pub fn name(mut self, name: &[u8]) -> Self {
        self.name = clean(name, 255);
        self
    }

    /// What moved, from which directory, under which name.
    #[must_use]
    pub fn renamed_from(mut self, source: Fid, parent: Fid, name: &[u8]) -> Self {
        self.rename = Some((source, parent, clean(name, 255)));
        self
    }

    /// Scheduler's tag; cut at 31 bytes.
    #[must_use]
    pub fn jobid(mut self, jobid: &[u8]) -> Self {
        self.jobid = Some(clean(jobid, JOBID_BYTES - 1));
        self
    }

    /// Owner of the process that made the change.
    #[must_use]
    pub fn uidgid(mut self, uid: u64, gid: u64) -> Self {
        self.uidgid = Some((uid, gid));
        self
    }

    /// The client that made the change.
    #[must_use]
    pub fn nid(mut self, nid: u64) -> Self {
        let mut area = [0; NID_BYTES];
        area[..8].copy_from_slice(&nid.to_ne_bytes());
        self.nid = Some((false, area));
        self
    }

    /// The same as the big-endian `struct lnet_nid`.
    #[must_use]
    pub fn nid_be(mut self, nid: [u8; 20]) -> Self {
        let mut area = [0; NID_BYTES];
        area[..20].copy_from_slice(&nid);
        self.nid = Some((true, area));
        self
    }

    /// Open mode.
    #[must_use]
    pub fn open_flags(mut self, flags: u32) -> Self {
        self.open_flags = Some(flags);
        self
    }

    /// Name of the extended attribute; cut at 255 bytes.
    #[must_use]
    pub fn xattr(mut self, name: &[u8]) -> Self {
        self.xattr = Some(clean(name, XATTR_BYTES - 1));
        self
    }

    /// The packed record.
    pub fn build(&self) -> Vec<u8> {
        let mut extra_flags = 0;
        let mut has = |present: bool, bit: u64| extra_flags |= if present { bit } else { 0 };
        has(self.uidgid.is_some(), CLFE_UIDGID);
        has(self.nid.is_some(), CLFE_NID);
        has(self.nid.is_some_and(|(big_endian, _)| big_endian), CLFE_NID_BE);
        has(self.open_flags.is_some(), CLFE_OPEN);
        has(self.xattr.is_some(), CLFE_XATTR);
        let extra = self.extra || extra_flags != 0;
        // As servers do: renames carry CLF_RENAME in place of CLF_VERSION.
        let mut flags = self.type_flags;
        flags |= if self.rename.is_some() { CLF_RENAME } else { CLF_VERSION };
        flags |= if self.jobid.is_some() { CLF_JOBID } else { 0 };
        flags |= if extra { CLF_EXTRA_FLAGS } else { 0 };
        let mut names = self.name.clone();
        if let Some((_, _, source_name)) = &self.rename {
            names.push(0);
            names.extend_from_slice(source_name);
        }
        let mut out = Vec::with_capacity(436 + names.len());
        // At most 511: both names are cut.
        out.extend_from_slice(&u16::try_from(names.len()).unwrap_or(u16::MAX).to_ne_bytes());
        out.extend_from_slice(&flags.to_ne_bytes());
        out.extend_from_slice(&self.rec_type.to_ne_bytes());
        for word in [self.index, self.prev, self.time] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        put_fid(&mut out, self.target);
        put_fid(&mut out, self.parent);
        if let Some((source, source_parent, _)) = &self.rename {
            put_fid(&mut out, *source);
            put_fid(&mut out, *source_parent);
        }
        if let Some(jobid) = &self.jobid {
            put_text(&mut out, jobid, JOBID_BYTES);
        }
        if extra {
            out.extend_from_slice(&extra_flags.to_ne_bytes());
        }
        if let Some((uid, gid)) = self.uidgid {
            out.extend_from_slice(&uid.to_ne_bytes());
            out.extend_from_slice(&gid.to_ne_bytes());
        }
        if let Some((_, area)) = &self.nid {
            out.extend_from_slice(area);
        }
        if let Some(open_flags) = self.open_flags {
            out.extend_from_slice(&open_flags.to_ne_bytes());
        }
        if let Some(xattr) = &self.xattr {
            put_text(&mut out, xattr, XATTR_BYTES);
        }
        out.extend_from_slice(&names);
        out
    }
}

fn clean(text: &[u8], most: usize) -> Vec<u8> {
    text.iter().copied().take_while(|&b| b != 0).take(most).collect()
}

fn put_fid(out: &mut Vec<u8>, fid: Fid) {
    out.extend_from_slice(&fid.seq.to_ne_bytes());
    out.extend_from_slice(&fid.oid.to_ne_bytes());
    out.extend_from_slice(&fid.ver.to_ne_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8], size: usize) {
    let end = out.len() + size;
    out.extend_from_slice(text);
    out.resize(end, 0);
}

/// What differs between an index and the one that replaces it is eight bytes: no need to build.
impl RecordBuilder {
    /// A copy of a packed record with another index; too short a record stays as it is.
    pub fn reindexed(record: &[u8], index: RecordIndex) -> Vec<u8> {
        let mut copy = record.to_vec();
        if let Some(word) = copy.get_mut(8..16) {
            word.copy_from_slice(&index.get().to_ne_bytes());
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use lcap_ffi::record::split_first;

    use super::*;

    #[test]
    fn what_is_built_parses_back_to_the_same() {
        let fid = |oid| Fid { seq: 0x2_0000_0401, oid, ver: 0 };
        let plain = RecordBuilder::new(RecordType::CREATE)
            .index(7)
            .target(fid(1))
            .parent(fid(2))
            .name(b"x");
        let full = RecordBuilder::new(RecordType::RENAME)
            .index(8)
            .type_flags(3)
            .time(1_700_000_000, 5)
            .target(fid(1))
            .parent(fid(2))
            .name(b"new")
            .renamed_from(fid(3), fid(4), b"old")
            .jobid(b"job")
            .uidgid(1000, 100)
            .nid(0x0002_0000_c0a8_0105)
            .open_flags(2)
            .xattr(b"user.x");
        for builder in [plain, full.clone(), full.nid_be([7; 20])] {
            let bytes = builder.build();
            let (record, rest) = split_first(&bytes).unwrap();
            assert!(rest.is_empty());
            let again = RecordBuilder::of(&record).build();
            assert_eq!(again, bytes);
            let moved = RecordBuilder::reindexed(&bytes, RecordIndex::new(99));
            assert_eq!(split_first(&moved).unwrap().0.index().get(), 99);
        }
    }
}
