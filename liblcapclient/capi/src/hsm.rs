//! HSM events in C. An event is a packed record: what gives one gives the other.

use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use lcap_client::ClientError;
use lcap_ffi::hsm_action::{BadEvent, HsmActionEvent};
use lcap_ffi::record::{HEAD_BYTES, MAX_RECORD_BYTES, split_first};

use crate::context::Context;
use crate::{lcap_changelog_free, lcap_changelog_recv, optional_text, with_context};

/// `lcap_hsm_recv()`
///
/// # Safety
/// `ctx` is null or live and unshared, `event` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_hsm_recv(ctx: *mut Context, event: *mut *const u8) -> c_int {
    // SAFETY: the same contract.
    let rc = unsafe { lcap_changelog_recv(ctx, event) };
    if rc != 0 {
        return rc;
    }
    // SAFETY: 0 was returned, so it was written, and points to a whole record in a live buffer.
    let problem = unsafe { parse(event.read(), |_| ()) }.err();
    let Some(problem) = problem else { return 0 };
    // SAFETY: it came from this context.
    unsafe { lcap_changelog_free(ctx, event) };
    let body = |_: &mut Context| Err::<c_int, _>(not_an_event(&problem));
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, body) }
}

fn not_an_event(problem: &BadEvent) -> ClientError {
    ClientError::System {
        action: "receive an HSM event".to_owned(),
        reason: format!("{problem}; is the stream of kind \"hsm\"?"),
        errno: libc::EPROTO,
    }
}

/// `lcap_hsm_free()`
///
/// # Safety
/// `ctx` is null or live and unshared, `event` null or readable and writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_hsm_free(ctx: *mut Context, event: *mut *const u8) -> c_int {
    // SAFETY: the same contract.
    unsafe { lcap_changelog_free(ctx, event) }
}

/// `lcap_hsm_raw()`
///
/// # Safety
/// `event` is null or an event, `text` null or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_hsm_raw(event: *const u8, text: *mut c_char, size: usize) -> c_int {
    let write = |event: &HsmActionEvent<'_>, out: &mut Vec<u8>| event.write_raw(out);
    // SAFETY: this function's contract.
    unsafe { print(event, text, size, write) }
}

/// `lcap_hsm_json()`
///
/// # Safety
/// `mdtname` is null or a C string, `event` null or an event, `text` null or writable for `size`
/// bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_hsm_json(
    mdtname: *const c_char,
    event: *const u8,
    text: *mut c_char,
    size: usize,
) -> c_int {
    // SAFETY: a C string by contract.
    let Ok(Some(mdt)) = (unsafe { optional_text(mdtname) }) else { return -libc::EINVAL };
    let write = |event: &HsmActionEvent<'_>, out: &mut Vec<u8>| {
        lcap_wire::hsm::write_object(mdt, event, true, out);
    };
    // SAFETY: this function's contract.
    unsafe { print(event, text, size, write) }
}

/// Reads the event at an address.
///
/// # Safety
/// A whole record lies there.
unsafe fn parse<T>(
    event: *const u8,
    with: impl FnOnce(&HsmActionEvent<'_>) -> T,
) -> Result<T, BadEvent> {
    // SAFETY: a record has a head at least, and the head's first word says how long the rest is.
    let head = unsafe { std::slice::from_raw_parts(event, HEAD_BYTES) };
    let rest = usize::from(u16::from_ne_bytes([head[0], head[1]]));
    let size = HEAD_BYTES + rest.min(MAX_RECORD_BYTES);
    // SAFETY: what is no event may be longer, never shorter: extensions come before the name.
    let bytes = unsafe { std::slice::from_raw_parts(event, size) };
    match split_first(bytes) {
        Ok((record, _)) => HsmActionEvent::parse(&record).map(|event| with(&event)),
        Err(_) => Err(BadEvent::Body(rest)),
    }
}

/// # Safety
/// `event` is null or an event, `text` null or writable for `size` bytes.
unsafe fn print(
    event: *const u8,
    text: *mut c_char,
    size: usize,
    write: impl FnOnce(&HsmActionEvent<'_>, &mut Vec<u8>),
) -> c_int {
    if event.is_null() || (text.is_null() && size > 0) {
        return -libc::EINVAL;
    }
    let make = || {
        let mut out = Vec::with_capacity(1024);
        // SAFETY: an event, by contract.
        unsafe { parse(event, |event| write(event, &mut out)) }.map(|()| out)
    };
    match catch_unwind(AssertUnwindSafe(make)) {
        Ok(Ok(line)) => {
            if let (Some(to), true) = (NonNull::new(text.cast::<u8>()), size > 0) {
                let n = line.len().min(size - 1);
                // SAFETY: writable for `size` bytes by contract, and not ours.
                unsafe {
                    to.as_ptr().copy_from_nonoverlapping(line.as_ptr(), n);
                    to.as_ptr().add(n).write(0);
                }
            }
            c_int::try_from(line.len()).unwrap_or(c_int::MAX)
        }
        Ok(Err(_)) => -libc::EPROTO,
        Err(_panic) => -libc::ENOTRECOVERABLE,
    }
}
