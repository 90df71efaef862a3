//! Records in the shapes that liblustreapi gives its callers.
//!
//! The device gives every extension that the server wrote. The library shows a caller only what it
//! asked for, in a shape that depends on the library's version ([`Shape`]); the C accessors that
//! are compiled into the caller decode that shape. Servers before 2.3 wrote a rename as two
//! records, which [`RenameJoiner`] makes one of.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use zerocopy::IntoBytes as _;

use crate::name::{Fid, RecordIndex};
use crate::nid::Nid;
use crate::record::{
    CLF_EXTRA_FLAGS, CLF_FLAGMASK, CLF_JOBID, CLF_RENAME, CLF_SUPPORTED, CLF_VERSION, CLFE_NID,
    CLFE_NID_BE, CLFE_OPEN, CLFE_SUPPORTED, CLFE_UIDGID, CLFE_XATTR, JOBID_BYTES, MAX_RECORD_BYTES,
    NID_BYTES, Record, RecordHead, RecordType, RenameExt, UidGidExt, XATTR_BYTES, split_first,
};

/// `CHANGELOG_FLAG_JOBID`, of `llapi_changelog_start()`.
pub const SEND_JOBID: u32 = 0x04;
/// `CHANGELOG_FLAG_EXTRA_FLAGS`.
pub const SEND_EXTRA_FLAGS: u32 = 0x08;
/// `CHANGELOG_FLAG_NID_BE`.
pub const SEND_NID_BE: u32 = 0x10;

/// How a version of liblustreapi lays out what it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 2.16 and later: what is wanted and present.
    Variable,
    /// 2.7 to 2.15: everything that is wanted, at fixed offsets; what the record does not have is
    /// zero (the real library left leftovers of its heap in the extra extensions).
    Fixed,
}

/// What `llapi_changelog_recv()` shows a caller, as the format bits and the extra bits that
/// [`repack`] takes: `send_flags` are those of `llapi_changelog_start()`, `extra_flags` those of
/// `llapi_changelog_set_xflags()`.
pub fn wanted(send_flags: u32, extra_flags: u32) -> (u16, u64) {
    let mut flags = CLF_VERSION | CLF_RENAME;
    let mut extra = 0;
    if send_flags & SEND_JOBID != 0 {
        flags |= CLF_JOBID;
    }
    if send_flags & SEND_EXTRA_FLAGS != 0 {
        flags |= CLF_EXTRA_FLAGS;
        extra = u64::from(extra_flags) & (CLFE_SUPPORTED & !CLFE_NID_BE);
        if extra & CLFE_NID != 0 && send_flags & SEND_NID_BE != 0 {
            extra |= CLFE_NID_BE;
        }
    }
    (flags, extra)
}

/// Appends the record with the extensions that it has and `wanted_flags` (`CLF_*`) and
/// `wanted_extra` (`CLFE_*`) name: the shape of 2.16 and later. The low 12 bits stay.
///
/// A NID in the large layout is turned into the small one for who wants NIDs without
/// `CLFE_NID_BE`, as the server would have done had it been asked without.
pub fn repack(record: &Record<'_>, wanted_flags: u16, wanted_extra: u64, out: &mut Vec<u8>) {
    repack_as(Shape::Variable, record, wanted_flags, wanted_extra, out);
}

/// [`repack`], in either shape.
pub fn repack_as(
    shape: Shape,
    record: &Record<'_>,
    wanted_flags: u16,
    wanted_extra: u64,
    out: &mut Vec<u8>,
) {
    let mut parts = Parts::of(record);
    if wanted_extra & CLFE_NID_BE == 0 || shape == Shape::Fixed {
        parts.nid = parts.nid.map(|_| small_nid_area(record.nid()));
        parts.nid_is_large = false;
    }
    parts.keep(wanted_flags, wanted_extra);
    if shape == Shape::Fixed {
        parts.add_missing(wanted_flags, wanted_extra);
    }
    parts.write(out);
}

/// [`repack`] as `llapi_changelog_repack_rec()` does it: the NID's bytes stay as they are even if
/// `CLFE_NID_BE`, which tells their layout, is not wanted and dropped.
pub fn repack_verbatim(
    record: &Record<'_>,
    wanted_flags: u16,
    wanted_extra: u64,
    out: &mut Vec<u8>,
) {
    let mut parts = Parts::of(record);
    parts.keep(wanted_flags, wanted_extra);
    parts.nid_is_large &= wanted_extra & CLFE_NID_BE != 0;
    parts.write(out);
}

/// The NID area as readers see it that did not ask for the large layout.
fn small_nid_area(nid: Option<Nid>) -> [u8; NID_BYTES] {
    let mut area = [0; NID_BYTES];
    area[..8].copy_from_slice(&nid.map_or(0, Nid::to_small).to_ne_bytes());
    area
}

/// A record taken apart, to be put together otherwise.
#[derive(Clone, Debug)]
struct Parts<'a> {
    head: RecordHead,
    rename: Option<RenameExt>,
    jobid: Option<&'a [u8]>,
    has_extra: bool,
    uidgid: Option<UidGidExt>,
    nid: Option<[u8; NID_BYTES]>,
    nid_is_large: bool,
    open_flags: Option<u32>,
    xattr: Option<&'a [u8]>,
    name: &'a [u8],
    /// Stands behind the name and a NUL.
    second_name: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(record: &Record<'a>) -> Self {
        Self {
            head: *record.head,
            rename: record.rename.copied(),
            jobid: record.jobid,
            has_extra: record.extra_flags.is_some(),
            uidgid: record.uidgid.copied(),
            nid: record.nid.and_then(|area| area.first_chunk().copied()),
            nid_is_large: record.extra_flags.unwrap_or(0) & CLFE_NID_BE != 0,
            open_flags: record.open_flags,
            xattr: record.xattr,
            name: record.names,
            second_name: None,
        }
    }

    /// Drops what is not wanted.
    fn keep(&mut self, flags: u16, extra: u64) {
        let extra = if flags & CLF_EXTRA_FLAGS == 0 { 0 } else { extra };
        self.rename.take_if(|_| flags & CLF_RENAME == 0);
        self.jobid.take_if(|_| flags & CLF_JOBID == 0);
        self.has_extra &= flags & CLF_EXTRA_FLAGS != 0;
        self.uidgid.take_if(|_| extra & CLFE_UIDGID == 0);
        self.nid.take_if(|_| extra & CLFE_NID == 0);
        self.open_flags.take_if(|_| extra & CLFE_OPEN == 0);
        self.xattr.take_if(|_| extra & CLFE_XATTR == 0);
    }

    /// Puts zeros where something is wanted that is not there.
    fn add_missing(&mut self, flags: u16, extra: u64) {
        // The library always made room for a rename.
        let none =
            RenameExt { source: Fid::default().into(), source_parent: Fid::default().into() };
        self.rename.get_or_insert(none);
        if flags & CLF_JOBID != 0 {
            self.jobid.get_or_insert(&[0; JOBID_BYTES]);
        }
        if flags & CLF_EXTRA_FLAGS == 0 {
            return;
        }
        self.has_extra = true;
        if extra & CLFE_UIDGID != 0 {
            self.uidgid.get_or_insert(UidGidExt { uid: 0.into(), gid: 0.into() });
        }
        if extra & CLFE_NID != 0 {
            self.nid.get_or_insert([0; NID_BYTES]);
        }
        if extra & CLFE_OPEN != 0 {
            self.open_flags.get_or_insert(0);
        }
        if extra & CLFE_XATTR != 0 {
            self.xattr.get_or_insert(&[0; XATTR_BYTES]);
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let mut flags = self.head.flags.get() & CLF_FLAGMASK | CLF_VERSION;
        out.extend_from_slice(self.head.as_bytes());
        if let Some(rename) = &self.rename {
            flags |= CLF_RENAME;
            out.extend_from_slice(rename.as_bytes());
        }
        if let Some(jobid) = self.jobid {
            flags |= CLF_JOBID;
            out.extend_from_slice(jobid);
        }
        if self.has_extra {
            flags |= CLF_EXTRA_FLAGS;
            self.write_extra(out);
        }
        // Stretching a record cannot make it too long as long as its names are file names.
        let mut room = MAX_RECORD_BYTES.saturating_sub(out.len() - start);
        let names_at = out.len();
        for part in [Some(self.name), self.second_name.map(|_| &[0][..]), self.second_name] {
            let part = part.unwrap_or_default();
            let fits = &part[..part.len().min(room)];
            room -= fits.len();
            out.extend_from_slice(fits);
        }
        let mut head = self.head;
        head.name_len = u16::try_from(out.len() - names_at).unwrap_or(u16::MAX).into();
        head.flags = flags.into();
        out[start..start + size_of::<RecordHead>()].copy_from_slice(head.as_bytes());
    }

    fn write_extra(&self, out: &mut Vec<u8>) {
        let mut extra = 0;
        let at = out.len();
        out.extend_from_slice(&[0; 8]);
        if let Some(uidgid) = &self.uidgid {
            extra |= CLFE_UIDGID;
            out.extend_from_slice(uidgid.as_bytes());
        }
        if let Some(nid) = &self.nid {
            extra |= CLFE_NID | if self.nid_is_large { CLFE_NID_BE } else { 0 };
            out.extend_from_slice(nid);
        }
        if let Some(open_flags) = self.open_flags {
            extra |= CLFE_OPEN;
            out.extend_from_slice(&open_flags.to_ne_bytes());
        }
        if let Some(xattr) = self.xattr {
            extra |= CLFE_XATTR;
            out.extend_from_slice(xattr);
        }
        out[at..at + 8].copy_from_slice(&extra.to_ne_bytes());
    }
}

/// A first half whose second half has not come after so many records is passed on as it is.
const PATIENCE: u64 = 1_024;

/// Joins the RENME and RNMTO (`CL_EXT`) records of old servers into one record with a rename
/// extension. Other records may stand between the two; they are passed on at once.
///
/// The joined record takes the place, index and time of the second half. Records of newer servers
/// go through untouched, and cost one look at their type.
///
/// Lustre before 2.1.1 names the moved object in both halves; later the second half names the object
/// that was overwritten, so that nothing ties the halves together but their order. A second half is
/// therefore joined to the first half that names the same object, else to the oldest one.
#[derive(Debug, Default)]
pub struct RenameJoiner {
    /// First halves, oldest first, with the value of `seen` when they came.
    waiting: VecDeque<(u64, Box<[u8]>)>,
    /// Records so far.
    seen: u64,
}

impl RenameJoiner {
    /// A joiner that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record, and appends what can be passed on: nothing, the record itself or the
    /// joined one; and before it first halves that have waited in vain.
    pub fn push(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        self.seen += 1;
        while self.waiting.front().is_some_and(|(came, _)| self.seen - came > PATIENCE) {
            self.waiting.pop_front().into_iter().for_each(|(_, half)| out.extend(half));
        }
        match record.rec_type() {
            RecordType::RENAME if is_half(record) => {
                self.waiting.push_back((self.seen, record.as_bytes().into()));
            }
            RecordType::EXT => match self.take_first_half(record) {
                Some(first) => join(&first, record, out),
                None => out.extend_from_slice(record.as_bytes()),
            },
            _ => out.extend_from_slice(record.as_bytes()),
        }
    }

    /// The lowest index that is held back: nothing from there on may be acknowledged.
    pub fn held_from(&self) -> Option<RecordIndex> {
        let (_, half) = self.waiting.front()?;
        split_first(half).ok().map(|(record, _)| record.index())
    }

    /// Appends the first halves that are still waiting, as they are.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        self.waiting.drain(..).for_each(|(_, half)| out.extend(half));
    }

    fn take_first_half(&mut self, second: &Record<'_>) -> Option<Box<[u8]>> {
        let names_it = |half: &[u8]| {
            split_first(half).is_ok_and(|(first, _)| first.target() == second.target())
        };
        let same = self.waiting.iter().position(|(_, half)| names_it(half));
        self.waiting.remove(same.unwrap_or(0)).map(|(_, half)| half)
    }
}

/// Whether a rename record does not say what was moved.
fn is_half(record: &Record<'_>) -> bool {
    record.source().is_none_or(|source| source.is_zero())
}

/// Appends one record for both; or both, should they not fit into one.
fn join(first: &[u8], second: &Record<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    if let Ok((first, _)) = split_first(first) {
        let mut parts = Parts::of(second);
        let other = Parts::of(&first);
        parts.head.rec_type = RecordType::RENAME.0.into();
        parts.head.flags = ((first.flags() | second.flags()) & !CLF_SUPPORTED).into();
        if first.target() == second.target() {
            parts.head.target = Fid::default().into(); // the moved object; nothing was overwritten
        }
        parts.rename =
            Some(RenameExt { source: first.head.target, source_parent: first.head.parent });
        parts.jobid = parts.jobid.or(other.jobid);
        if !parts.has_extra {
            parts = Parts {
                has_extra: other.has_extra,
                uidgid: other.uidgid,
                nid: other.nid,
                nid_is_large: other.nid_is_large,
                open_flags: other.open_flags,
                xattr: other.xattr,
                ..parts
            };
        }
        parts.name = second.name();
        parts.second_name = Some(first.name());
        parts.write(out);
        let names_bytes = second.name().len() + 1 + first.name().len();
        if split_first(&out[start..]).is_ok_and(|(joined, _)| joined.names().len() == names_bytes) {
            return;
        }
    }
    out.truncate(start);
    out.extend_from_slice(first);
    out.extend_from_slice(second.as_bytes());
}

#[cfg(test)]
mod tests;
