//! Every function of `include/lcap_mover.h`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::time::Duration;

use lcap_client::ClientError;
use lcap_client::mover::{Action, Mover, MoverBuilder};
use lcap_ffi::Fid;
use lcap_wire::mover::{Limits, RequestKey};

use crate::{bad, c_call, optional_text};

/// `struct lcap_mover_fid`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // the header has them
pub struct CFid {
    pub seq: u64,
    pub oid: u32,
    pub ver: u32,
}

/// `struct lcap_mover_action`
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs)] // the header has them
pub struct CAction {
    pub action: u32,
    pub archive_id: u32,
    pub flags: u64,
    pub fid: CFid,
    pub dfid: CFid,
    pub offset: u64,
    pub length: u64,
    pub cookie: u64,
    pub gid: u64,
    pub data: *const c_void,
    pub data_len: usize,
}

/// An action as it is handed out: what C sees, and then the bytes that `data` points to.
#[repr(C)]
struct Lent {
    seen: CAction,
    data: Box<[u8]>,
}

/// `struct lcap_mover_options`
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)] // the header has them
pub struct COptions {
    pub size: usize,
    pub uri: *const c_char,
    pub name: *const c_char,
    pub fsname: *const c_char,
    pub archives: *const u32,
    pub n_archives: usize,
    pub max_archive: i32,
    pub max_restore: i32,
    pub max_remove: i32,
    pub window: u32,
    pub timeout_ms: i32,
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<CAction>() == 96);
    assert!(size_of::<COptions>() == 72);
};

/// `struct lcap_mover`
#[derive(Debug)]
pub struct CMover {
    mover: Mover,
    fsname: CString,
}

/// # Safety
/// What the options point to lives through the call.
unsafe fn builder(options: &COptions) -> Result<MoverBuilder, ClientError> {
    if options.size != size_of::<COptions>() {
        return Err(bad("options of another size"));
    }
    let mut builder = MoverBuilder::new();
    // SAFETY: C strings or null, by contract.
    let (uri, name, fsname) = unsafe {
        (optional_text(options.uri)?, optional_text(options.name)?, optional_text(options.fsname)?)
    };
    if let Some(uri) = uri {
        builder = builder.servers(uri);
    }
    if let Some(name) = name {
        builder = builder.name(name);
    }
    if let Some(fsname) = fsname {
        builder = builder.fsname(fsname);
    }
    if options.n_archives > 0 {
        let archives = NonNull::new(options.archives.cast_mut());
        let archives = archives.ok_or_else(|| bad("archives are missing"))?;
        // SAFETY: an array of so many, by contract.
        let archives = unsafe { std::slice::from_raw_parts(archives.as_ptr(), options.n_archives) };
        builder = builder.archives(archives);
    }
    let limit = |most: i32| u32::try_from(most).ok().filter(|&most| most > 0);
    let own = Limits {
        archive: limit(options.max_archive),
        restore: limit(options.max_restore),
        remove: limit(options.max_remove),
    };
    builder = builder.at_most(own);
    if options.window > 0 {
        builder = builder.window(options.window);
    }
    if let Ok(millis @ 1..) = u64::try_from(options.timeout_ms) {
        builder = builder.patience(Duration::from_millis(millis));
    }
    Ok(builder)
}

/// `lcap_mover_start()`
///
/// # Safety
/// `out` is null or writable, `options` null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_start(
    out: *mut *mut CMover,
    options: *const COptions,
) -> c_int {
    c_call(|| {
        let out = NonNull::new(out).ok_or_else(|| bad("mover is NULL"))?;
        // SAFETY: null or readable by contract.
        let builder = match unsafe { options.as_ref() } {
            // SAFETY: this function's contract.
            Some(options) => unsafe { builder(options) }?,
            None => MoverBuilder::new(),
        };
        let mover = builder.connect()?;
        let fsname = CString::new(mover.fsname()).unwrap_or_default();
        let mover = Box::into_raw(Box::new(CMover { mover, fsname }));
        // SAFETY: writable by contract.
        unsafe { out.write(mover) };
        Ok(0)
    })
}

/// `lcap_mover_recv()`
///
/// # Safety
/// `mover` is null or live, `out` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_recv(
    mover: *const CMover,
    out: *mut *const CAction,
    timeout_ms: c_int,
) -> c_int {
    c_call(|| {
        // SAFETY: null or live by contract.
        let mover = unsafe { mover.as_ref() }.ok_or_else(|| bad("mover is NULL"))?;
        let out = NonNull::new(out).ok_or_else(|| bad("action is NULL"))?;
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        let Some(action) = mover.mover.recv(timeout)? else { return Ok(-libc::EAGAIN) };
        // SAFETY: writable by contract.
        unsafe { out.write(lend(action)) };
        Ok(0)
    })
}

fn lend(action: Action) -> *const CAction {
    let fid = |Fid { seq, oid, ver }: Fid| CFid { seq, oid, ver };
    let data_len = action.data.len();
    let mut data = action.data.into_vec();
    data.push(0);
    let data = data.into_boxed_slice();
    let seen = CAction {
        action: action.action,
        archive_id: action.archive_id,
        flags: action.flags,
        fid: fid(action.fid),
        dfid: fid(action.dfid),
        offset: action.offset,
        length: action.length,
        cookie: action.cookie,
        gid: action.gid,
        data: data.as_ptr().cast(),
        data_len,
    };
    Box::into_raw(Box::new(Lent { seen, data })).cast()
}

/// `lcap_mover_free()`
///
/// # Safety
/// `action` is null, or came from `lcap_mover_recv()` and was not given back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_free(action: *const CAction) {
    if !action.is_null() {
        // SAFETY: made by `lend`, whose block begins with what C sees; given back once.
        let lent = unsafe { Box::from_raw(action.cast_mut().cast::<Lent>()) };
        drop(lent.data);
    }
}

/// # Safety
/// Both are null or live.
unsafe fn tell(
    mover: *const CMover,
    action: *const CAction,
    body: impl FnOnce(&Mover, RequestKey),
) -> c_int {
    c_call(|| {
        // SAFETY: null or live by contract.
        let (mover, action) = unsafe { (mover.as_ref(), action.as_ref()) };
        let mover = mover.ok_or_else(|| bad("mover is NULL"))?;
        let action = action.ok_or_else(|| bad("action is NULL"))?;
        let CFid { seq, oid, ver } = action.fid;
        body(&mover.mover, RequestKey { cookie: action.cookie, fid: Fid { seq, oid, ver } });
        Ok(0)
    })
}

/// `lcap_mover_begun()`
///
/// # Safety
/// Both are null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_begun(mover: *const CMover, action: *const CAction) -> c_int {
    // SAFETY: this function's contract.
    unsafe { tell(mover, action, Mover::begun) }
}

/// `lcap_mover_done()`
///
/// # Safety
/// Both are null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_done(
    mover: *const CMover,
    action: *const CAction,
    status: c_int,
) -> c_int {
    // SAFETY: this function's contract.
    unsafe { tell(mover, action, |mover, key| mover.done(key, status.saturating_abs())) }
}

/// `lcap_mover_refused()`
///
/// # Safety
/// Both are null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_refused(
    mover: *const CMover,
    action: *const CAction,
    status: c_int,
) -> c_int {
    // SAFETY: this function's contract.
    unsafe { tell(mover, action, |mover, key| mover.refused(key, status.saturating_abs())) }
}

/// `lcap_mover_return()`
///
/// # Safety
/// Both are null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_return(mover: *const CMover, action: *const CAction) -> c_int {
    // SAFETY: this function's contract.
    unsafe { tell(mover, action, |mover, key| mover.returned(key, 0)) }
}

/// `lcap_mover_get_fd()`
///
/// # Safety
/// `mover` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_get_fd(mover: *const CMover) -> c_int {
    // SAFETY: null or live by contract.
    let mover = unsafe { mover.as_ref() };
    mover.map_or(-libc::EINVAL, |mover| mover.mover.fd().as_raw_fd())
}

/// `lcap_mover_fsname()`
///
/// # Safety
/// `mover` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_fsname(mover: *const CMover) -> *const c_char {
    // SAFETY: null or live by contract.
    unsafe { mover.as_ref() }.map_or(ptr::null(), |mover| mover.fsname.as_ptr())
}

/// `lcap_mover_fini()`
///
/// # Safety
/// `mover` is null, or came from `lcap_mover_start()` and was not ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lcap_mover_fini(mover: *mut CMover) -> c_int {
    c_call(|| {
        if mover.is_null() {
            return Ok(-libc::EINVAL);
        }
        // SAFETY: made by `lcap_mover_start`, and ended once.
        drop(unsafe { Box::from_raw(mover) });
        Ok(0)
    })
}
