//! The process that a library is a guest in: its environment, its signals.

use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
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
