//! A file's project, by the ioctl that all file systems with projects have (`FS_IOC_FSGETXATTR`).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}
const _: () = assert!(size_of::<FsXattr>() == 28);

/// `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;

/// The project of a file. Opens it, and reads nothing of it.
///
/// # Errors
/// The system's; `ENOTTY` or `EOPNOTSUPP` where there are no projects.
pub fn project_of(path: &Path) -> io::Result<u32> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut attributes =
        FsXattr { xflags: 0, extsize: 0, nextents: 0, projid: 0, cowextsize: 0, pad: [0; 8] };
    // SAFETY: the descriptor is open while `file` lives, and the kernel writes at most the size that
    // is part of the ioctl's number, which is that of the struct.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes.projid) }
}
