//! `liblcap_llapi.so`: the `llapi_changelog_*` functions of liblustreapi, for programs that are
//! started with `LD_PRELOAD`. Their records come from lcapd; where lcapd is not asked for, or does
//! not have the MDT, the real library is called. Likewise `llapi_hsm_copytool_*`, for copytools.
//!
//! Prototypes, ownership, return values and shapes of records are those of Lustre 2.12 to 2.17.
//! Every function converts, calls [`reading`] or [`clearing`], or passes on to [`real`].

mod clearing;
pub mod hsm;
mod reading;
mod real;

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};

use lcap_client::ClientError;
use lcap_ffi::record::{HEAD_BYTES, MAX_RECORD_BYTES, RecordError, split_first, split_len};
use lcap_ffi::repack::repack_verbatim;

use reading::{Log, Started};

/// End of the records.
const END: c_int = 1;
/// First number of our contexts; the real library's is 0xCA8E1080.
const MAGIC: u32 = 0x4c43_6c6c;

/// What `*priv` points to. Its first number tells ours from the real library's.
#[repr(C)]
struct Handle {
    magic: u32,
    log: Log,
}

/// Runs the body of an exported function: an error becomes `-errno`, a panic `-ENOTRECOVERABLE`.
fn c_call(body: impl FnOnce() -> Result<c_int, ClientError>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(rc)) => rc,
        Ok(Err(error)) => -error.errno(),
        Err(_panic) => -libc::ENOTRECOVERABLE,
    }
}

/// Whose context that is.
enum Owner<'a> {
    Ours(&'a mut Handle),
    Real,
    Nobody,
}

/// # Safety
/// `handle` is null, or points to a context of ours or of the real library's that no other thread
/// uses.
unsafe fn owner<'a>(handle: *mut c_void) -> Owner<'a> {
    if handle.is_null() {
        return Owner::Nobody;
    }
    // SAFETY: contexts of both begin with a number of four bytes.
    match unsafe { handle.cast::<u32>().read() } {
        // SAFETY: only `open` makes blocks that begin so; unshared by the caller's promise.
        MAGIC => Owner::Ours(unsafe { &mut *handle.cast::<Handle>() }),
        // Not ours; the real library looks at its own magic number.
        _ => Owner::Real,
    }
}

/// # Safety
/// `text` is null or a C string that lives through the call.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    // SAFETY: the caller's promise.
    unsafe { text.as_ref().map(|text| CStr::from_ptr(text)) }?.to_str().ok()
}

/// Opens a log, by lcapd or the real library; `by_real` calls the latter.
///
/// # Safety
/// `out` is null or writable, `mdt` null or a C string.
unsafe fn open(
    out: *mut *mut c_void,
    flags: c_int,
    mdt: *const c_char,
    reader: Option<&str>,
    mask: u64,
    from: c_longlong,
    by_real: impl FnOnce() -> Option<c_int>,
) -> c_int {
    c_call(|| {
        let bad = || ClientError::BadArgument("an argument is missing or negative".to_owned());
        let out = NonNull::new(out).ok_or_else(bad)?;
        if !reading::asked_for() {
            return Ok(by_real().unwrap_or(-libc::ENOENT));
        }
        // SAFETY: this function's contract.
        let mdt = unsafe { text(mdt) }.ok_or_else(bad)?;
        let from = u64::try_from(from).map_err(|_| bad())?;
        match Log::start(flags, mdt, reader, mask, from)? {
            Started::Here(log) => {
                let handle = Box::into_raw(Box::new(Handle { magic: MAGIC, log: *log }));
                // SAFETY: writable by contract; written only on success, as the real one does.
                unsafe { out.write(handle.cast()) };
                Ok(0)
            }
            Started::NotServed(error) => Ok(by_real().unwrap_or(-error.errno())),
        }
    })
}

/// `llapi_changelog_start()`
///
/// # Safety
/// As liblustreapi demands: `out` is writable, `mdtname` a C string. Null is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_start(
    out: *mut *mut c_void,
    flags: c_int,
    mdtname: *const c_char,
    startrec: c_longlong,
) -> c_int {
    let by_real = || {
        // SAFETY: the caller's arguments, as they came.
        real::functions().start.map(|start| unsafe { start(out, flags, mdtname, startrec) })
    };
    // SAFETY: this function's contract.
    unsafe { open(out, flags, mdtname, None, 0, startrec, by_real) }
}

/// `llapi_changelog_start_user()`: the user is a reader, the mask the types that are wanted.
///
/// # Safety
/// As for [`llapi_changelog_start`]; `username` is null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_start_user(
    out: *mut *mut c_void,
    flags: c_int,
    mdtname: *const c_char,
    username: *const c_char,
    mask: u64,
    startrec: c_longlong,
) -> c_int {
    let by_real = || match real::functions().start_user {
        // SAFETY: the caller's arguments, as they came.
        Some(start) => Some(unsafe { start(out, flags, mdtname, username, mask, startrec) }),
        None => Some(-libc::ENOSYS),
    };
    // SAFETY: this function's contract.
    let reader = unsafe { text(username) }.filter(|name| !name.is_empty());
    // SAFETY: this function's contract.
    unsafe { open(out, flags, mdtname, reader, mask, startrec, by_real) }
}

/// `llapi_changelog_fini()`
///
/// # Safety
/// `handle` is null, or the address of null or of a live context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_fini(handle: *mut *mut c_void) -> c_int {
    c_call(|| {
        let Some(place) = NonNull::new(handle) else { return Ok(-libc::EINVAL) };
        // SAFETY: readable by contract.
        let context = unsafe { place.read() };
        // SAFETY: null or live by contract.
        match unsafe { owner(context) } {
            Owner::Ours(ours) => {
                ours.magic = 0;
                // SAFETY: made by `Box::into_raw` in `open`, and given back once: the magic number
                // was there.
                drop(unsafe { Box::from_raw(context.cast::<Handle>()) });
                // SAFETY: writable by contract.
                unsafe { place.write(ptr::null_mut()) };
                Ok(0)
            }
            Owner::Real => {
                // SAFETY: the caller's argument, as it came.
                let rc = real::functions().fini.map(|fini| unsafe { fini(handle) });
                Ok(rc.unwrap_or(-libc::EINVAL))
            }
            Owner::Nobody => Ok(-libc::EINVAL),
        }
    })
}

/// `llapi_changelog_recv()`
///
/// # Safety
/// `handle` is null or a live context that no other thread uses, `rech` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_recv(
    handle: *mut c_void,
    rech: *mut *mut c_void,
) -> c_int {
    c_call(|| {
        let Some(out) = NonNull::new(rech) else { return Ok(-libc::EINVAL) };
        // SAFETY: null or live by contract.
        let log = match unsafe { owner(handle) } {
            Owner::Ours(ours) => &mut ours.log,
            Owner::Real => {
                // SAFETY: the caller's arguments, as they came.
                let rc = real::functions().recv.map(|recv| unsafe { recv(handle, rech) });
                return Ok(rc.unwrap_or(-libc::EINVAL));
            }
            Owner::Nobody => return Ok(-libc::EINVAL),
        };
        // SAFETY: writable by contract.
        unsafe { out.write(ptr::null_mut()) };
        let Some(record) = log.recv()? else { return Ok(END) };
        let Some(block) = to_heap(record.bytes, record.flags) else {
            log.again();
            return Ok(-libc::ENOMEM);
        };
        // SAFETY: as above.
        unsafe { out.write(block.as_ptr()) };
        Ok(0)
    })
}

/// A block from `malloc` as large as any record can be, zero behind the record: what the real
/// library gives, and what programs rely on that edit a record or print a name as a string.
fn to_heap(record: &[u8], flags: u16) -> Option<NonNull<c_void>> {
    // SAFETY: no precondition.
    let block = NonNull::new(unsafe { libc::malloc(MAX_RECORD_BYTES) })?;
    let len = record.len().min(MAX_RECORD_BYTES);
    // SAFETY: the block has MAX_RECORD_BYTES bytes, is new, and overlaps nothing.
    unsafe {
        let to = block.as_ptr().cast::<u8>();
        ptr::copy_nonoverlapping(record.as_ptr(), to, len);
        ptr::write_bytes(to.add(len), 0, MAX_RECORD_BYTES - len);
        // The flag word; a block is large enough for a head, which the record may not be.
        ptr::copy_nonoverlapping(flags.to_ne_bytes().as_ptr(), to.add(2), 2);
    }
    Some(block)
}

/// `llapi_changelog_free()`
///
/// # Safety
/// `rech` is null, or the address of null or of a record that our `recv` or the real one returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_free(rech: *mut *mut c_void) -> c_int {
    let Some(place) = NonNull::new(rech) else { return 0 };
    // SAFETY: by contract. Records of both libraries are plain blocks of malloc (2.10 and later).
    unsafe {
        libc::free(place.read());
        place.write(ptr::null_mut());
    }
    0
}

/// `llapi_changelog_in_buf()`
///
/// # Safety
/// `handle` is null or a live context that no other thread uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_in_buf(handle: *mut c_void) -> c_int {
    // SAFETY: null or live by contract.
    c_call(|| match unsafe { owner(handle) } {
        Owner::Ours(ours) => ours.log.in_buf().map(c_int::from),
        Owner::Real => {
            // SAFETY: the caller's argument, as it came.
            let rc = real::functions().in_buf.map(|in_buf| unsafe { in_buf(handle) });
            Ok(rc.unwrap_or(0))
        }
        Owner::Nobody => Ok(-libc::EINVAL), // the real one crashes
    })
}

/// `llapi_changelog_get_fd()`
///
/// # Safety
/// `handle` is null or a live context that no other thread uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_get_fd(handle: *mut c_void) -> c_int {
    // SAFETY: null or live by contract.
    c_call(|| match unsafe { owner(handle) } {
        Owner::Ours(ours) => ours.log.fd(),
        Owner::Real => {
            // SAFETY: the caller's argument, as it came.
            let rc = real::functions().get_fd.map(|get_fd| unsafe { get_fd(handle) });
            Ok(rc.unwrap_or(-libc::EINVAL))
        }
        Owner::Nobody => Ok(-libc::EINVAL),
    })
}

/// `llapi_changelog_set_xflags()`
///
/// # Safety
/// `handle` is null or a live context that no other thread uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_set_xflags(handle: *mut c_void, xflags: c_int) -> c_int {
    // SAFETY: null or live by contract.
    c_call(|| match unsafe { owner(handle) } {
        Owner::Ours(ours) => {
            ours.log.set_xflags(xflags);
            Ok(0)
        }
        Owner::Real => {
            let set = real::functions().set_xflags;
            // SAFETY: the caller's arguments, as they came.
            Ok(set.map_or(-libc::EINVAL, |set| unsafe { set(handle, xflags) }))
        }
        Owner::Nobody => Ok(-libc::EINVAL),
    })
}

/// `llapi_changelog_clear()`: needs no context.
///
/// # Safety
/// Both texts are null or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_clear(
    mdtname: *const c_char,
    idstr: *const c_char,
    endrec: c_longlong,
) -> c_int {
    c_call(|| {
        let by_real = || {
            // SAFETY: the caller's arguments, as they came.
            real::functions().clear.map(|clear| unsafe { clear(mdtname, idstr, endrec) })
        };
        if !reading::asked_for() {
            return Ok(by_real().unwrap_or(-libc::ENOENT));
        }
        // SAFETY: this function's contract.
        let (mdt, id) = unsafe { (text(mdtname), text(idstr)) };
        let (Some(mdt), Some(id), Ok(upto)) = (mdt, id, u64::try_from(endrec)) else {
            return Ok(-libc::EINVAL);
        };
        match clearing::clear(mdt, id, upto) {
            Err(clearing::ClearFailed::NotServed(error)) => Ok(by_real().unwrap_or(-error.errno())),
            Err(clearing::ClearFailed::Refused(error)) => Err(error),
            Ok(()) => Ok(0),
        }
    })
}

/// `llapi_changelog_repack_rec()`: the caller frees the block.
///
/// # Safety
/// `rec` is null or a whole record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_changelog_repack_rec(
    rec: *const c_void,
    wanted_flags: c_int,
    wanted_extra: c_int,
) -> *mut c_void {
    let repack = || {
        // SAFETY: a whole record by contract.
        let bytes = unsafe { record_at(NonNull::new(rec.cast_mut())?) }?;
        let (record, _) = split_first(bytes).ok()?;
        let mut out = Vec::with_capacity(MAX_RECORD_BYTES);
        // The C enums are 32-bit words of bits; the upper ones of the first mean nothing.
        let flags = u16::try_from(wanted_flags & 0xffff).ok()?;
        let extra = u64::from(wanted_extra.cast_unsigned());
        repack_verbatim(&record, flags, extra, &mut out);
        let flags = u16::from_ne_bytes(*out.get(2..)?.first_chunk()?);
        to_heap(&out, flags)
    };
    let block = catch_unwind(AssertUnwindSafe(repack)).ok().flatten();
    block.map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// The bytes of a record, found as its own words tell: no more is looked at than what the part
/// before says must be there.
///
/// # Safety
/// `rec` is a whole record that lives through the call.
unsafe fn record_at<'a>(rec: NonNull<c_void>) -> Option<&'a [u8]> {
    let mut known = HEAD_BYTES;
    loop {
        // SAFETY: the record has at least `known` bytes: its head has, and then its head says so.
        let bytes = unsafe { std::slice::from_raw_parts(rec.as_ptr().cast::<u8>(), known) };
        match split_len(bytes) {
            Ok(_) => return Some(bytes),
            Err(RecordError::Short { need, .. }) if need > known && need <= MAX_RECORD_BYTES => {
                known = need;
            }
            Err(_) => return None,
        }
    }
}
