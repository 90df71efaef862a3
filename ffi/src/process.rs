//! The process that a library is a guest in: its environment, its signals.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

unsafe extern "C" {
    /// glibc's and musl's `getenv` for libraries; the `libc` crate does not have it.
    fn secure_getenv(name: *const c_char) -> *mut c_char;
}

/// An environment variable as text; `None` in a privileged process (set-user-id, file
/// capabilities), whose environment comes from a less trusted user.
pub fn secure_env(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a C string. As with every getenv, the host must not change the environment
    // on another thread meanwhile; the result is copied before anything else is called.
    let value = unsafe {
        let value = secure_getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    };
    value.and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Runs `body` with every signal blocked on this thread: a thread that it spawns inherits that, so
/// the host's signals stay with the host's threads.
pub fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    /// Restores the mask also when `body` panics.
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the set came from the kernel; the old mask is not wanted.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
        }
    }
    let mut all = MaybeUninit::uninit();
    let mut old = MaybeUninit::uninit();
    // SAFETY: both sets are writable; `sigfillset` initialises the first before it is read,
    // `pthread_sigmask` the second, which cannot fail with these arguments.
    let _restore = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
        Restore(old.assume_init())
    };
    body()
}

/// Has the process that `command` starts killed when the thread that starts it ends, however that
/// happens.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: prctl and getppid are.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It may have ended just before.
            if u32::try_from(libc::getppid()).ok() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// A pipe whose read end does not block; both ends go with an `exec`.
///
/// # Errors
/// If there is no descriptor left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the kernel writes two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new, and nobody else's.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    // SAFETY: sets a flag of an open descriptor of ours.
    if unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((reader, writer))
}

/// Writes at most `PIPE_BUF` bytes to a pipe, whole; waits for room. `EPIPE` raises no signal if
/// the reader is in this process.
///
/// # Errors
/// The kernel's.
pub fn write_whole(pipe: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open while it is borrowed, and the bytes are there.
        let n = unsafe { libc::write(pipe.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if n >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: i32) -> bool {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: asks for the mask only; it is initialised on return.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn a_thread_spawned_inside_takes_no_signals_and_its_parent_does_again() {
        let inside = with_signals_blocked(|| std::thread::spawn(|| is_blocked(libc::SIGTERM)));
        assert!(inside.join().unwrap());
        assert!(!is_blocked(libc::SIGTERM));
    }

    #[test]
    fn the_environment_is_read() {
        assert_eq!(secure_env("LCAP_SURELY_NOT_SET"), None);
        assert_eq!(secure_env("no\0name"), None);
        assert!(secure_env("PATH").is_some());
    }
}
