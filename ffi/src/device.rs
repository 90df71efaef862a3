//! System calls for the changelog device that std lacks: its ioctl, `poll`, reads into spare room.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// Wait for new records at the log's end instead of reporting it (`CHANGELOG_FLAG_FOLLOW`).
pub const FOLLOW: u64 = 0x01;
/// Give NIDs as big-endian `struct lnet_nid`, IPv6 included (`CHANGELOG_FLAG_NID_BE`).
pub const NID_BE: u64 = 0x10;

/// `OBD_IOC_CHLG_SET_FLAGS`, `_IOR('f', 233, long)`; the argument is a value, not a pointer.
const SET_FLAGS: u32 = 0x8008_66e9;

/// Sets an open device's flags, before anything is read.
///
/// # Errors
/// The kernel's; those that cannot follow know no such ioctl.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: `fd` is open while it is borrowed, and this request takes its argument by value, so
    // that no memory of ours is touched.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), SET_FLAGS.into(), flags) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What `poll` found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There are records to be read.
    pub readable: bool,
    /// The end of the log, of a descriptor that does not follow.
    pub hung_up: bool,
    /// The next read tells what is wrong.
    pub failed: bool,
}

impl Ready {
    /// Whether a read would tell something.
    pub fn any(self) -> bool {
        self.readable || self.hung_up || self.failed
    }
}

/// Waits for an event to read, at most for so long; a signal counts as nothing.
///
/// # Errors
/// The kernel's.
pub fn poll(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<Ready> {
    poll_any([fd.as_raw_fd()], Some(timeout)).map(|[ready]| ready)
}

/// Waits for an event to read on any of the descriptors, at most for so long, or without limit;
/// a signal counts as nothing. A negative descriptor stands for none.
///
/// # Errors
/// The kernel's.
pub fn poll_any<const N: usize>(
    fds: [RawFd; N],
    timeout: Option<Duration>,
) -> io::Result<[Ready; N]> {
    let millis = timeout.map_or(-1, |timeout| {
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX)
    });
    let mut entries = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let n_entries = libc::nfds_t::try_from(N).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: `N` entries, which live through the call. A descriptor that is closed is reported,
    // and touches no memory.
    let rc = unsafe { libc::poll(entries.as_mut_ptr(), n_entries, millis) };
    if rc < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok([Ready::default(); N]),
            _ => Err(error),
        };
    }
    Ok(entries.map(|entry| {
        let has = |bit: libc::c_short| entry.revents & bit != 0;
        Ready {
            readable: has(libc::POLLIN),
            hung_up: has(libc::POLLHUP),
            failed: has(libc::POLLERR) || has(libc::POLLNVAL),
        }
    }))
}

/// Reads once, at most `max` bytes, into the free capacity of `buf`; returns how many were added.
///
/// # Errors
/// The kernel's; `buf` is as it was then.
pub fn read_spare(fd: BorrowedFd<'_>, buf: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    let spare = buf.spare_capacity_mut();
    let room = spare.len().min(max);
    // SAFETY: `spare` is writable memory of at least `room` bytes.
    let rc = unsafe { libc::read(fd.as_raw_fd(), spare.as_mut_ptr().cast(), room) };
    let n = usize::try_from(rc).map_err(|_| io::Error::last_os_error())?;
    let len = buf.len() + n;
    // SAFETY: the kernel wrote `n` bytes behind the old length, and `n` is at most the free room.
    unsafe { buf.set_len(len) };
    Ok(n)
}

/// Makes reads return at once.
///
/// # Errors
/// The kernel's.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `fd` is open while it is borrowed; these commands touch no memory of ours.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_pipe_is_polled_and_read_without_waiting() {
        let (reader, mut writer) = io::pipe().unwrap();
        set_nonblocking(reader.as_fd()).unwrap();
        let mut buf = Vec::with_capacity(8);
        buf.push(b'>');
        let again = read_spare(reader.as_fd(), &mut buf, 100).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        assert!(!poll(reader.as_fd(), Duration::ZERO).unwrap().any());

        writer.write_all(b"0123456789").unwrap();
        assert!(poll(reader.as_fd(), Duration::from_secs(60)).unwrap().readable);
        assert_eq!(read_spare(reader.as_fd(), &mut buf, 3).unwrap(), 3);
        let room = buf.capacity() - buf.len();
        assert_eq!(read_spare(reader.as_fd(), &mut buf, 100).unwrap(), room.min(7));
        assert!(buf.starts_with(b">0123456"));

        drop(writer);
        assert!(poll(reader.as_fd(), Duration::ZERO).unwrap().hung_up);
    }

    #[test]
    fn what_is_no_device_refuses_the_flags() {
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert_eq!(set_flags(file.as_fd(), FOLLOW).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
