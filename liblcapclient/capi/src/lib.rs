//! Every function of `include/lcap_client.h` and, in [`mover`], of `lcap_mover.h`: converts, calls the Rust client, nothing more.
//!
//! The contract of each is in the header. What a caller promises there is what makes the `unsafe`
//! in here sound: a context is null or live, used by one thread at a time, and pointers for results
//! are null or writable.

mod context;
pub mod hsm;
pub mod mover;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_longlong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};

use lcap_client::ClientError;

use context::{Context, Stats};

/// End of the records.
const END: c_int = 1;

thread_local! {
    /// Why this thread's last failed start failed.
    static START_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of an exported function: an error becomes `-errno`, a panic `-ENOTRECOVERABLE`.
fn c_call(body: impl FnOnce() -> Result<c_int, ClientError>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(rc)) => rc,
        Ok(Err(error)) => -error.errno(),
        Err(_panic) => -libc::ENOTRECOVERABLE,
    }
}

/// Runs a body on a context: keeps its error for `lcap_changelog_error()`; after a panic the
/// context answers nothing any more.
///
/// # Safety
/// `ctx` is null or live, and no other thread uses it.
unsafe fn with_context(
    ctx: *mut Context,
    body: impl FnOnce(&mut Context) -> Result<c_int, ClientError>,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(ctx) = (unsafe { ctx.as_mut() }) else { return -libc::EINVAL };
    if !ctx.is_usable() {
        return -libc::ENOTRECOVERABLE;
    }
    match catch_unwind(AssertUnwindSafe(|| body(ctx))) {
        Ok(Ok(rc)) => rc,
        Ok(Err(error)) => ctx.failed(&error),
        Err(_panic) => ctx.panicked(),
    }
}

fn bad(what: &str) -> ClientError {
    ClientError::BadArgument(what.to_owned())
}

/// A text of the caller's; null is none.
///
/// # Safety
/// `text` is null or a C string that lives through the call.
unsafe fn optional_text<'a>(text: *const c_char) -> Result<Option<&'a str>, ClientError> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: a C string, by the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| bad("a name is not UTF-8"))
}

/// `lcap_changelog_start()`
///
/// # Safety
/// `out` is null or writable, `mdtname` null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_start(
    out: *mut *mut Context,
    flags: c_int,
    mdtname: *const c_char,
    startrec: c_longlong,
) -> c_int {
    c_call(|| {
        let start = || {
            let out = NonNull::new(out).ok_or_else(|| bad("no place for the context"))?;
            // SAFETY: this function's contract.
            let mdt = unsafe { optional_text(mdtname) }?.ok_or_else(|| bad("no MDT name"))?;
            let from = u64::try_from(startrec).map_err(|_| bad("negative start record"))?;
            let context = Box::into_raw(Box::new(Context::start(flags, mdt, from)?));
            // SAFETY: writable by contract; written, not borrowed: it may be uninitialised.
            unsafe { out.write(context) };
            Ok(0)
        };
        let result = start();
        if let Err(error) = &result {
            START_ERROR.set(context::sentence(error));
        }
        result
    })
}

/// `lcap_changelog_fini()`
///
/// # Safety
/// `ctx` is null or live; it is gone afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_fini(ctx: *mut Context) -> c_int {
    c_call(|| {
        let ctx = NonNull::new(ctx).ok_or_else(|| bad("no context"))?;
        // SAFETY: made by `Box::into_raw` in start, and given back once.
        drop(unsafe { Box::from_raw(ctx.as_ptr()) });
        Ok(0)
    })
}

/// `lcap_changelog_recv()`
///
/// # Safety
/// `ctx` is null or live and unshared, `rec` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_recv(ctx: *mut Context, rec: *mut *const u8) -> c_int {
    let Some(out) = NonNull::new(rec) else { return -libc::EINVAL };
    // SAFETY: writable by contract; written, not borrowed: it may be uninitialised.
    unsafe { out.write(ptr::null()) };
    let body = |ctx: &mut Context| {
        let Some(record) = ctx.recv()? else { return Ok(END) };
        // SAFETY: as above.
        unsafe { out.write(record) };
        Ok(0)
    };
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, body) }
}

/// `lcap_changelog_free()`
///
/// # Safety
/// `ctx` is null or live and unshared, `rec` null or readable and writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_free(ctx: *mut Context, rec: *mut *const u8) -> c_int {
    let Some(place) = NonNull::new(rec) else { return -libc::EINVAL };
    let body = |ctx: &mut Context| {
        // SAFETY: readable by contract. The record itself is not touched, only looked for.
        let record = unsafe { place.read() };
        if !record.is_null() {
            ctx.free(record)?;
            // SAFETY: writable by contract.
            unsafe { place.write(ptr::null()) };
        }
        Ok(0)
    };
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, body) }
}

/// `lcap_changelog_clear()`
///
/// # Safety
/// `ctx` is null or live and unshared, the texts are null or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_clear(
    ctx: *mut Context,
    mdtname: *const c_char,
    id: *const c_char,
    endrec: c_longlong,
) -> c_int {
    let body = |ctx: &mut Context| {
        let upto = u64::try_from(endrec).map_err(|_| bad("negative end record"))?;
        if mdtname.is_null() {
            return Err(bad("no MDT name"));
        }
        // SAFETY: a C string by this function's contract. Its bytes are compared first: this is
        // called for every record, and a check for UTF-8 costs more than the rest.
        let mdt = unsafe { CStr::from_ptr(mdtname) };
        // SAFETY: null or a C string, by contract.
        let id = unsafe { id.as_ref().map(|id| CStr::from_ptr(id)) };
        ctx.clear(mdt, id.filter(|id| !id.is_empty()), upto).map(|()| 0)
    };
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, body) }
}

/// `lcap_changelog_setopt()`
///
/// # Safety
/// `ctx` is null or live and unshared, `value` null or readable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_setopt(
    ctx: *mut Context,
    option: c_int,
    value: *const c_void,
    len: usize,
) -> c_int {
    let body = |ctx: &mut Context| {
        // More than any value has; keeps a lying length from being believed.
        if value.is_null() || len > 4096 {
            return Err(bad("no value, or too long a one"));
        }
        // SAFETY: readable by contract, and not changed meanwhile.
        let value = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), len) };
        ctx.set_option(option, value).map(|()| 0)
    };
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, body) }
}

/// `lcap_changelog_get_fd()`
///
/// # Safety
/// `ctx` is null or live and unshared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_get_fd(ctx: *mut Context) -> c_int {
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, Context::fd) }
}

/// `lcap_changelog_in_buf()`
///
/// # Safety
/// `ctx` is null or live and unshared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_in_buf(ctx: *mut Context) -> c_int {
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, |ctx| ctx.in_buf().map(c_int::from)) }
}

/// `lcap_changelog_stats()`
///
/// # Safety
/// `ctx` is null or live and unshared, `stats` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_stats(ctx: *mut Context, stats: *mut Stats) -> c_int {
    let body = |ctx: &mut Context| {
        let out = NonNull::new(stats).ok_or_else(|| bad("no place for the numbers"))?;
        let (numbers, new_gap) = ctx.stats();
        // SAFETY: writable by contract.
        unsafe { out.write(numbers) };
        Ok(c_int::from(new_gap))
    };
    // SAFETY: this function's contract.
    unsafe { with_context(ctx, body) }
}

/// `lcap_changelog_error()`
///
/// # Safety
/// `ctx` is null or live and unshared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_changelog_error(ctx: *const Context) -> *const c_char {
    // SAFETY: this function's contract.
    match unsafe { ctx.as_ref() } {
        Some(ctx) => ctx.error().as_ptr(),
        // The text lives as long as the thread, or until its next failed start.
        None => START_ERROR.with_borrow(|error| error.as_ptr()),
    }
}

/// `lcap_strerror()`
#[unsafe(no_mangle)]
pub extern "C" fn lcap_strerror(errnum: c_int) -> *const c_char {
    // SAFETY: takes any number and gives a static or thread-local text.
    unsafe { zmq_sys::zmq_strerror(errnum) }
}
