//! What Lustre's HSM coordinator and a copytool tell each other: action lists, and progress.
//!
//! A list (`struct hsm_action_list`) is a head, the file system's name, and items, each padded to
//! eight bytes; an item (`struct hsm_action_item`) ends with data of the requester's. Everything is
//! in host byte order and unaligned.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::name::Fid;

/// `HAL_VERSION`: the only one that there has ever been.
pub const LIST_VERSION: u32 = 1;
/// Bytes of a list's head, before the file system's name.
pub const LIST_HEAD_BYTES: usize = size_of::<ListHead>();
/// Bytes of an item without its data.
pub const ITEM_HEAD_BYTES: usize = size_of::<ItemHead>();
/// Most data that an item has: a message of Lustre's has room for less.
pub const MAX_DATA_BYTES: usize = 1 << 16;
/// Longest name of a file system that is believed.
const MAX_FSNAME_BYTES: usize = 255;
/// `LUSTRE_EOF`: the length of an extent that goes to the end of the file.
pub const TO_THE_END: u64 = u64::MAX;

/// `hal_flags`: the requester insists.
pub const FLAG_FORCE: u64 = 0x1;
/// `hal_flags`: a process waits for this restore (2.17).
pub const FLAG_BLOCKING: u64 = 0x4;
/// `hp_flags`: the action is over.
pub const PROGRESS_COMPLETED: u16 = 0x1;
/// `hp_flags`: it may be tried again.
pub const PROGRESS_RETRY: u16 = 0x2;

/// `LL_IOC_HSM_PROGRESS`. The size in it is not that of the structure.
const IOC_PROGRESS: u32 = 0x4018_66d8;

/// What a copytool is asked to do (`HSMA_*`); the discriminant is Lustre's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum HsmAction {
    /// Copy the file to the archive.
    Archive = 20,
    /// Bring the data back.
    Restore = 21,
    /// Delete the archive's copy.
    Remove = 22,
    /// Do not do what was asked for before.
    Cancel = 23,
}

impl HsmAction {
    /// The action with that number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            20 => Some(Self::Archive),
            21 => Some(Self::Restore),
            22 => Some(Self::Remove),
            23 => Some(Self::Cancel),
            _ => None,
        }
    }

    /// Lustre's number.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Lustre's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Archive => "ARCHIVE",
            Self::Restore => "RESTORE",
            Self::Remove => "REMOVE",
            Self::Cancel => "CANCEL",
        }
    }
}

impl fmt::Display for HsmAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A FID inside a packed structure (`struct lu_fid`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PackedFid {
    seq: U64,
    oid: U32,
    ver: U32,
}

impl From<PackedFid> for Fid {
    fn from(fid: PackedFid) -> Self {
        Self { seq: fid.seq.get(), oid: fid.oid.get(), ver: fid.ver.get() }
    }
}

impl From<Fid> for PackedFid {
    fn from(fid: Fid) -> Self {
        Self { seq: fid.seq.into(), oid: fid.oid.into(), ver: fid.ver.into() }
    }
}

/// A part of a file (`struct hsm_extent`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PackedExtent {
    offset: U64,
    length: U64,
}

/// `struct hsm_action_list` up to the name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ListHead {
    version: U32,
    count: U32,
    compound_id: U64,
    flags: U64,
    archive_id: U32,
    padding: U32,
}

/// `struct hsm_action_item` up to the data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ItemHead {
    len: U32,
    action: U32,
    fid: PackedFid,
    dfid: PackedFid,
    extent: PackedExtent,
    cookie: U64,
    gid: U64,
}

/// `struct hsm_progress`. Not packed in C, but without holes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PackedProgress {
    fid: PackedFid,
    cookie: U64,
    extent: PackedExtent,
    flags: U16,
    errval: U16,
    padding: U32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<PackedFid>() == 16);
    assert!(size_of::<PackedExtent>() == 16);
    assert!(size_of::<ListHead>() == 32);
    assert!(offset_of!(ListHead, count) == 4);
    assert!(offset_of!(ListHead, compound_id) == 8);
    assert!(offset_of!(ListHead, flags) == 16);
    assert!(offset_of!(ListHead, archive_id) == 24);
    assert!(size_of::<ItemHead>() == 72);
    assert!(offset_of!(ItemHead, action) == 4);
    assert!(offset_of!(ItemHead, fid) == 8);
    assert!(offset_of!(ItemHead, dfid) == 24);
    assert!(offset_of!(ItemHead, extent) == 40);
    assert!(offset_of!(ItemHead, cookie) == 56);
    assert!(offset_of!(ItemHead, gid) == 64);
    assert!(size_of::<PackedProgress>() == 48);
    assert!(offset_of!(PackedProgress, cookie) == 16);
    assert!(offset_of!(PackedProgress, extent) == 24);
    assert!(offset_of!(PackedProgress, flags) == 40);
    assert!(offset_of!(PackedProgress, errval) == 42);
};

/// The bytes are no action list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HsmListError {
    /// They end inside what their own words promise.
    #[error("the action list is cut short: {have} bytes, at least {need} are needed")]
    Short {
        /// Bytes that must be there.
        need: usize,
        /// Bytes that are.
        have: usize,
    },
    /// Another version.
    #[error("action list of version {0}; only {LIST_VERSION} is known")]
    Version(u32),
    /// An item is shorter than its own head.
    #[error("an action item says that it has {0} bytes")]
    ItemLength(u32),
    /// The name of the file system does not end.
    #[error("the action list names no file system")]
    Fsname,
}

/// One request, borrowed from its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionItem<'a> {
    /// What is to be done; `HSMA_*`.
    pub action: u32,
    /// The file.
    pub fid: Fid,
    /// The file that the data is in: another one in the middle of a restore.
    pub dfid: Fid,
    /// First byte.
    pub offset: u64,
    /// Bytes; [`TO_THE_END`] in practice.
    pub length: u64,
    /// The coordinator's name for it, unique per MDT. A cancel has that of what it cancels.
    pub cookie: u64,
    /// Group lock; zero in practice.
    pub gid: u64,
    /// The requester's, any bytes.
    pub data: &'a [u8],
}

/// An item's head, as a C program passes it by its address.
pub type ItemBytes = [u8; ITEM_HEAD_BYTES];

impl<'a> ActionItem<'a> {
    /// An item without its data; `None` if the head is too short by its own word.
    pub fn of_head(head: &'a ItemBytes) -> Option<Self> {
        let mut bare = *head;
        let len: u32 = u32::from_ne_bytes(*head.first_chunk()?);
        if (len as usize) < ITEM_HEAD_BYTES {
            return None;
        }
        bare.get_mut(..4)?.copy_from_slice(&u32::try_from(ITEM_HEAD_BYTES).ok()?.to_ne_bytes());
        let (item, _) = split_item(&bare).ok()?;
        Some(Self { data: &[], ..item })
    }
}

/// A list of requests with one archive id and one set of flags.
#[derive(Clone, Copy, Debug)]
pub struct ActionList<'a> {
    /// Where to or from; 0 is any.
    pub archive_id: u32,
    /// `HSM_*` flags of all items.
    pub flags: u64,
    /// The file system.
    pub fsname: &'a [u8],
    count: u32,
    items: &'a [u8],
}

impl<'a> ActionList<'a> {
    /// Looks at all of it, so that nothing can be wrong later. Bytes after the last item are left
    /// alone.
    ///
    /// # Errors
    /// [`HsmListError`] if the words of the list do not fit together.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HsmListError> {
        let short = |need| HsmListError::Short { need, have: bytes.len() };
        let (head, rest) = ListHead::ref_from_prefix(bytes).map_err(|_| short(LIST_HEAD_BYTES))?;
        if head.version.get() != LIST_VERSION {
            return Err(HsmListError::Version(head.version.get()));
        }
        let end = rest.iter().take(MAX_FSNAME_BYTES + 1).position(|&b| b == 0);
        let end = end.ok_or(HsmListError::Fsname)?;
        let (fsname, _) = rest.split_at(end);
        let items = rest.get(round8(end + 1)..).unwrap_or_default();
        let list = Self {
            archive_id: head.archive_id.get(),
            flags: head.flags.get(),
            fsname,
            count: head.count.get(),
            items,
        };
        let mut at = items;
        for _ in 0..list.count {
            at = split_item(at).map_err(|e| e.of(bytes.len()))?.1;
        }
        Ok(list)
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items, in order.
    pub fn items(&self) -> impl Iterator<Item = ActionItem<'a>> + use<'a> {
        let mut at = self.items;
        (0..self.count).map_while(move |_| {
            let (item, rest) = split_item(at).ok()?;
            at = rest;
            Some(item)
        })
    }
}

impl HsmListError {
    /// Sizes inside an error of an item are of what was left.
    fn of(self, total: usize) -> Self {
        match self {
            Self::Short { need, have } => Self::Short { need: total - have + need, have: total },
            other => other,
        }
    }
}

/// The first item, and what is after it.
fn split_item(bytes: &[u8]) -> Result<(ActionItem<'_>, &[u8]), HsmListError> {
    let short = |need| HsmListError::Short { need, have: bytes.len() };
    let (head, _) = ItemHead::ref_from_prefix(bytes).map_err(|_| short(ITEM_HEAD_BYTES))?;
    let len = head.len.get() as usize;
    if !(ITEM_HEAD_BYTES..=ITEM_HEAD_BYTES + MAX_DATA_BYTES).contains(&len) {
        return Err(HsmListError::ItemLength(head.len.get()));
    }
    let data = bytes.get(ITEM_HEAD_BYTES..len).ok_or_else(|| short(len))?;
    let item = ActionItem {
        action: head.action.get(),
        fid: head.fid.into(),
        dfid: head.dfid.into(),
        offset: head.extent.offset.get(),
        length: head.extent.length.get(),
        cookie: head.cookie.get(),
        gid: head.gid.get(),
        data,
    };
    // The last one's padding may be missing.
    Ok((item, bytes.get(round8(len)..).unwrap_or_default()))
}

/// Builds a list.
#[derive(Clone, Debug)]
pub struct ListBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl ListBuilder {
    /// A list without items. A name that is too long or has a NUL is cut there.
    pub fn new(fsname: &[u8], archive_id: u32, flags: u64) -> Self {
        let end = fsname.iter().take(MAX_FSNAME_BYTES).position(|&b| b == 0);
        let name = fsname.get(..end.unwrap_or(fsname.len().min(MAX_FSNAME_BYTES)));
        let head = ListHead {
            version: LIST_VERSION.into(),
            count: 0.into(),
            compound_id: 0.into(),
            flags: flags.into(),
            archive_id: archive_id.into(),
            padding: 0.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(name.unwrap_or_default());
        bytes.resize(LIST_HEAD_BYTES + round8(bytes.len() - LIST_HEAD_BYTES + 1), 0);
        Self { bytes, count: 0 }
    }

    /// Appends an item. Data beyond [`MAX_DATA_BYTES`] is refused.
    ///
    /// # Errors
    /// [`HsmListError::ItemLength`] if the data is too long.
    pub fn push(&mut self, item: &ActionItem<'_>) -> Result<(), HsmListError> {
        let len = ITEM_HEAD_BYTES + item.data.len();
        let words = u32::try_from(len).unwrap_or(u32::MAX);
        if item.data.len() > MAX_DATA_BYTES {
            return Err(HsmListError::ItemLength(words));
        }
        let head = ItemHead {
            len: words.into(),
            action: item.action.into(),
            fid: item.fid.into(),
            dfid: item.dfid.into(),
            extent: PackedExtent { offset: item.offset.into(), length: item.length.into() },
            cookie: item.cookie.into(),
            gid: item.gid.into(),
        };
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(item.data);
        self.bytes.resize(round8(self.bytes.len()), 0);
        self.count += 1;
        Ok(())
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the list so far.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The list.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(count) = self.bytes.get_mut(4..8) {
            count.copy_from_slice(&self.count.to_ne_bytes());
        }
        self.bytes
    }
}

/// Bytes that an item of so much data takes in a list.
pub const fn item_bytes(n_data: usize) -> usize {
    round8(ITEM_HEAD_BYTES + n_data)
}

const fn round8(n: usize) -> usize {
    n.next_multiple_of(8)
}

/// Tells the MDT, through the mount that `mount` is a directory of, that a request is still being
/// taken care of: nothing was copied yet. Its time limit starts again.
///
/// # Errors
/// ECANCELED: a cancel is pending; the request is to be ended with that error. ENOENT: the MDT does
/// not know it (any more). EAGAIN: the coordinator is stopped. Others as the mount says.
pub fn keep_alive(mount: BorrowedFd<'_>, dfid: Fid, cookie: u64) -> io::Result<()> {
    let progress = PackedProgress {
        fid: dfid.into(),
        cookie: cookie.into(),
        extent: PackedExtent { offset: 0.into(), length: 0.into() },
        flags: 0.into(),
        errval: 0.into(),
        padding: 0.into(),
    };
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads 48 bytes, which the
    // structure has, and keeps no pointer.
    let rc = unsafe { libc::ioctl(mount.as_raw_fd(), IOC_PROGRESS.into(), &raw const progress) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(cookie: u64, data: &[u8]) -> ActionItem<'_> {
        ActionItem {
            action: HsmAction::Archive.number(),
            fid: Fid { seq: 0x2_0000_0402, oid: 7, ver: 0 },
            dfid: Fid { seq: 0x2_0000_0402, oid: 8, ver: 0 },
            offset: 0,
            length: TO_THE_END,
            cookie,
            gid: 0,
            data,
        }
    }

    fn list(fsname: &[u8], data: &[&[u8]]) -> Vec<u8> {
        let mut builder = ListBuilder::new(fsname, 3, FLAG_BLOCKING);
        for (at, data) in data.iter().enumerate() {
            builder.push(&item(u64::try_from(at).unwrap() + (1 << 40), data)).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn items_begin_where_lustre_says() {
        // Offset of the first item, by the name's length (facts of lustre_user.h's hai_first).
        for (name, first) in [("a", 40), ("lustre1", 40), ("lustre12", 48)] {
            let bytes = list(name.as_bytes(), &[b"x"]);
            assert_eq!(bytes.len(), first + 80, "{name}");
            assert_eq!(bytes[first..first + 4], 73_u32.to_ne_bytes(), "{name}");
        }
    }

    #[test]
    fn what_was_built_is_read_back() {
        let data: [&[u8]; 4] = [b"", b"tag=foo", b"\0\xff bin", &[7; 300]];
        let bytes = list(b"testfs0", &data);
        let parsed = ActionList::parse(&bytes).unwrap();
        assert_eq!((parsed.archive_id, parsed.flags), (3, FLAG_BLOCKING));
        assert_eq!((parsed.fsname, parsed.len()), (&b"testfs0"[..], 4));
        for (at, item) in parsed.items().enumerate() {
            assert_eq!((item.data, item.cookie), (data[at], at as u64 + (1 << 40)));
            assert_eq!((item.fid.oid, item.dfid.oid, item.length), (7, 8, TO_THE_END));
        }
        let mut builder = ListBuilder::new(b"a", 0, 0);
        let long = vec![0; MAX_DATA_BYTES + 1];
        assert!(builder.push(&item(1, &long)).is_err());
    }

    #[test]
    fn a_list_that_is_cut_anywhere_is_refused() {
        let bytes = list(b"testfs0", &[b"tag=foo", b"bar"]);
        let padding = 5; // of the last item: nobody needs it
        for len in 0..bytes.len() - padding {
            assert!(ActionList::parse(&bytes[..len]).is_err(), "{len}");
        }
        assert!(ActionList::parse(&bytes[..bytes.len() - padding]).is_ok());
        let mut bad = bytes.clone();
        bad[0] = 2;
        assert!(matches!(ActionList::parse(&bad), Err(HsmListError::Version(_))));
        let mut bad = bytes;
        bad[40..44].copy_from_slice(&71_u32.to_ne_bytes());
        assert!(matches!(ActionList::parse(&bad), Err(HsmListError::ItemLength(71))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), fix in any::<bool>()) {
            if fix && bytes.len() > 8 {
                bytes[..4].copy_from_slice(&1_u32.to_ne_bytes());
            }
            if let Ok(list) = ActionList::parse(&bytes) {
                prop_assert_eq!(list.items().count(), list.len());
            }
        }
    }
}
