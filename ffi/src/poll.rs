//! Waiting for file descriptors by number.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Waits until one of `fds` (at most eight) is readable, hung up or in error, or until `timeout`
/// has passed; says whether one is. A number that is not open counts as being in error.
///
/// # Errors
/// `EINTR`, or `EINVAL` for more than eight.
pub fn wait_readable(fds: &[RawFd], timeout: Option<Duration>) -> io::Result<bool> {
    let mut set = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 8];
    let set = set.get_mut(..fds.len()).ok_or(io::ErrorKind::InvalidInput)?;
    for (entry, &fd) in set.iter_mut().zip(fds) {
        entry.fd = fd;
    }
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `set` is a live array of that many entries, `timeout` null or a live timespec; the
    // kernel checks the descriptors themselves.
    let rc = unsafe {
        libc::ppoll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout, std::ptr::null())
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc > 0) }
}
