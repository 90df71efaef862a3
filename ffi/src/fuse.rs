//! The kernel's FUSE interface: as much of it as a directory of device-like files needs.
//!
//! Layouts are those of `linux/fuse.h`, protocol 7.28 and later; requests and replies are in host
//! byte order. Existing crates hide an ioctl's argument, which the changelog device takes by value,
//! and requests to interrupt, without which a program that waits for a record cannot be killed.

// Hidden types that zerocopy's derives make for the fields.
#![allow(missing_debug_implementations)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `enum fuse_opcode`.
#[allow(missing_docs)] // the names say it
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const ACCESS: u32 = 34;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
}

/// Protocol version that is offered.
pub const VERSION: (u32, u32) = (7, 31);
/// Node id of the mounted directory.
pub const ROOT_NODE: u64 = 1;
/// `InitOut::flags`: `max_pages` counts.
pub const INIT_MAX_PAGES: u32 = 1 << 22;
/// `OpenOut::flags`: every read and write comes here, none is cached or padded.
pub const OPEN_DIRECT_IO: u32 = 1;
/// `PollIn::flags`: tell when something changes.
pub const POLL_SCHEDULE_NOTIFY: u32 = 1;
/// Smallest buffer that requests may be read into, for small writes.
pub const REQUEST_BYTES: usize = 64 << 10;

/// Declares plain structs whose bytes travel as they are.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident: $ty:ty,)* })*) => { $(
        $(#[$doc])*
        #[allow(missing_docs)] // the names are those of linux/fuse.h
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )* };
}

wire! {
    /// Before every request.
    InHeader = 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// Before every reply. A notification has `unique` 0 and its code as `error`.
    OutHeader = 16 { len: u32, error: i32, unique: u64, }
    /// The start of `INIT`.
    InitIn = 16 { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// Reply to `INIT`.
    InitOut = 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, unused: [u32; 8],
    }
    /// What `stat` shows.
    Attr = 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Reply to `LOOKUP`.
    EntryOut = 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    /// Reply to `GETATTR` and `SETATTR`.
    AttrOut = 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// Reply to `OPEN` and `OPENDIR`.
    OpenOut = 16 { fh: u64, flags: u32, padding: u32, }
    /// `READ` and `READDIR`.
    ReadIn = 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// `WRITE`, before the bytes.
    WriteIn = 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// Reply to `WRITE`.
    WriteOut = 8 { size: u32, padding: u32, }
    /// `IOCTL`, before what a pointer pointed to.
    IoctlIn = 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    /// Reply to `IOCTL`.
    IoctlOut = 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    /// `POLL`.
    PollIn = 24 { fh: u64, kh: u64, flags: u32, events: u32, }
    /// Reply to `POLL`.
    PollOut = 8 { revents: u32, padding: u32, }
    /// The start of `RELEASE`.
    ReleaseIn = 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// `INTERRUPT`: which request is no longer waited for.
    InterruptIn = 8 { unique: u64, }
    /// An entry in the reply to `READDIR`, before its name, which is padded to 8 bytes.
    Dirent = 24 { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// Reply to `STATFS`.
    StatfsOut = 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
}

/// Splits a request or a part of it off `bytes`.
pub fn take<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

/// A mounted FUSE file system: requests are read from its file and replies written to it.
#[derive(Debug)]
pub struct Mount {
    device: File,
    target: CString,
}

impl Mount {
    /// Mounts at an existing directory, for every user. Needs root. What a dead process left
    /// mounted there is taken away first.
    ///
    /// # Errors
    /// The kernel's, from `/dev/fuse` or `mount(2)`.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let target = CString::new(dir.as_os_str().as_bytes())?;
        if let Err(e) = std::fs::metadata(dir)
            && e.raw_os_error() == Some(libc::ENOTCONN)
        {
            unmount(&target)?;
        }
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options)?;
        // SAFETY: four strings that live through the call; the kernel copies the options.
        let rc = unsafe {
            libc::mount(
                c"lcap-sim".as_ptr(),
                target.as_ptr(),
                c"fuse.lcap-sim".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        if rc == 0 { Ok(Self { device, target }) } else { Err(io::Error::last_os_error()) }
    }

    /// The file that carries requests and replies; does not block.
    pub fn device(&self) -> &File {
        &self.device
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Somebody else may have unmounted it; nothing is left to be done then.
        let _ = unmount(&self.target);
    }
}

/// Takes a mount out of sight at once; what is still open there ends with the process.
fn unmount(target: &CString) -> io::Result<()> {
    // SAFETY: a string that lives through the call.
    let rc = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
