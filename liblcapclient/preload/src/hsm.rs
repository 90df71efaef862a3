//! The `llapi_hsm_copytool_*` functions: an unmodified copytool gets its requests from lcapd.
//!
//! The copytool's handle is the real library's own, made by its own `register`, whose ioctl to the
//! kernel ([`ioctl`]) is answered here: so Lustre never hears of this copytool, and the real `begin`,
//! `progress` and `end` find in the handle what they need, whatever its layout. What is ours of a
//! handle is kept beside it.
//!
//! `begin`, `progress` and `end` go to Lustre; then lcapd is told, through a pipe, because a copytool
//! may fork and end an action in a child.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use lcap_client::ClientError;
use lcap_client::mover::{Mover, MoverBuilder};
use lcap_ffi::hsm::{ActionItem, ITEM_HEAD_BYTES, ItemBytes};
use lcap_ffi::process::{pipe, secure_env, write_whole};
use lcap_wire::mover::{Report, RequestKey, What};

use crate::{c_call, real, text};

/// `LL_IOC_HSM_CT_START`: registers or unregisters with the kernel.
const IOC_CT_START: c_ulong = 0x4018_66d5;
/// Largest list that is handed out, unless `LCAP_HAL_BYTES` says otherwise.
const DEFAULT_LIST_BYTES: usize = 1 << 20;

type Handle = *mut c_void;

thread_local! {
    /// The real library is registering, or unregistering, a copytool of ours.
    static HIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// What is ours of a copytool.
struct Copytool {
    mover: Mover,
    blocking: bool,
    max_bytes: usize,
    /// The list that was handed out last: the program reads it until its next `recv`.
    list: Mutex<Vec<u8>>,
    /// Where anybody, also a child, says what became of a request.
    reports: OwnedFd,
    /// So that a late report of another thread finds a pipe, and no signal.
    _reader: OwnedFd,
}

type Copytools = HashMap<usize, Arc<Copytool>>;

fn copytools() -> &'static RwLock<Copytools> {
    static COPYTOOLS: OnceLock<RwLock<Copytools>> = OnceLock::new();
    COPYTOOLS.get_or_init(RwLock::default)
}

/// Actions that have begun: of which copytool, and for which request.
fn actions() -> MutexGuard<'static, HashMap<usize, (usize, RequestKey)>> {
    static ACTIONS: OnceLock<Mutex<HashMap<usize, (usize, RequestKey)>>> = OnceLock::new();
    ACTIONS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn copytool(handle: usize) -> Option<Arc<Copytool>> {
    copytools().read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
}

/// Whether the environment asks for lcapd's requests.
fn asked_for() -> bool {
    secure_env("LCAP_MOVER_URI").is_some_and(|uri| !uri.is_empty())
}

impl Copytool {
    fn report(&self, key: RequestKey, what: What, status: c_int) {
        let report = Report { key, what, status: status.saturating_abs() };
        // It can only fail if the mover's thread is gone, and then there is nobody to tell.
        let _ = write_whole(&self.reports, &report.to_bytes());
    }
}

fn key_of(item: &ActionItem<'_>) -> RequestKey {
    RequestKey { cookie: item.cookie, fid: item.fid }
}

/// Runs `body` with the kernel's registration hidden from the real library.
fn hidden<T>(body: impl FnOnce() -> T) -> T {
    HIDDEN.set(true);
    let result = body();
    HIDDEN.set(false);
    result
}

/// In front of libc's, for one request of a thread that registers a copytool of ours: the kernel is
/// not asked, and the answer is yes. Everything else passes.
///
/// # Safety
/// As libc's. That is variadic; an argument that is not there is never looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    type Ioctl = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;
    static NEXT: OnceLock<Option<Ioctl>> = OnceLock::new();
    if request == IOC_CT_START && HIDDEN.try_with(Cell::get).unwrap_or(false) {
        return 0;
    }
    let next = NEXT.get_or_init(|| {
        // SAFETY: asks for the next definition of a name after this library's own.
        let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ioctl".as_ptr()) };
        // SAFETY: a function of that name is libc's ioctl, or stands in front of it.
        NonNull::new(next)
            .map(|next| unsafe { std::mem::transmute::<*mut c_void, Ioctl>(next.as_ptr()) })
    });
    match next {
        // SAFETY: the caller's arguments, as they came.
        Some(next) => unsafe { next(fd, request, argument) },
        // SAFETY: as above.
        None => c_int::try_from(unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) })
            .unwrap_or(-1),
    }
}

/// `llapi_hsm_copytool_register()`
///
/// # Safety
/// As liblustreapi demands: `out` is writable, `mount` a C string, `archives` an array of
/// `n_archives`. Null is an error, but for no archives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_hsm_copytool_register(
    out: *mut Handle,
    mount: *const c_char,
    n_archives: c_int,
    archives: *mut c_int,
    flags: c_int,
) -> c_int {
    c_call(|| {
        let Some(register) = real::functions().ct_register else { return Ok(-libc::ENOSYS) };
        if !asked_for() {
            // SAFETY: the caller's arguments, as they came.
            return Ok(unsafe { register(out, mount, n_archives, archives, flags) });
        }
        // SAFETY: this function's contract.
        let known = unsafe { text(mount) }.is_some();
        let n = usize::try_from(n_archives)
            .map_err(|_| ())
            .and_then(|n| if n > 0 && archives.is_null() { Err(()) } else { Ok(n) });
        let (Some(place), true, Ok(n)) = (NonNull::new(out), known, n) else {
            return Ok(-libc::EINVAL);
        };
        let ids = if n == 0 {
            Ok(Vec::new())
        } else {
            // SAFETY: an array of so many by contract.
            let ids = unsafe { std::slice::from_raw_parts(archives, n) };
            ids.iter().map(|&id| u32::try_from(id)).collect()
        };
        let Ok(mut ids) = ids else { return Ok(-libc::EINVAL) };
        if ids.contains(&0) {
            ids.clear(); // all
        }
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: the caller's arguments, and a place of our own.
        let rc =
            hidden(|| unsafe { register(&raw mut handle, mount, n_archives, archives, flags) });
        if rc < 0 {
            return Ok(rc);
        }
        match join(mount, &ids, flags) {
            Ok(ours) => {
                let mut all = copytools().write().unwrap_or_else(PoisonError::into_inner);
                all.insert(handle as usize, Arc::new(ours));
                // SAFETY: writable by contract.
                unsafe { place.write(handle) };
                Ok(0)
            }
            Err(error) => {
                complain(&error);
                forget(&mut handle);
                Err(error)
            }
        }
    })
}

/// A copytool prints a number, if anything.
fn complain(error: &ClientError) {
    if secure_env("LCAP_LOG").is_some() {
        eprintln!("liblcap_llapi: cannot register with lcapd: {error}");
    }
}

/// Makes the mover.
fn join(mount: *const c_char, archives: &[u32], flags: c_int) -> Result<Copytool, ClientError> {
    let broken = |error: std::io::Error| ClientError::System {
        action: "pipe".to_owned(),
        reason: error.to_string(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    };
    let (reader, reports) = pipe().map_err(broken)?;
    let mut builder = MoverBuilder::new().archives(archives);
    if let Some(fsname) = fsname_of(mount) {
        builder = builder.fsname(&fsname);
    }
    if let Some(millis) = secure_env("LCAP_MOVER_TIMEOUT_MS").and_then(|text| text.parse().ok()) {
        builder = builder.patience(Duration::from_millis(millis));
    }
    let max_bytes = secure_env("LCAP_HAL_BYTES").and_then(|text| text.parse().ok());
    let kept = reader.try_clone().map_err(broken)?;
    Ok(Copytool {
        mover: builder.connect_with(Some(reader))?,
        blocking: flags & libc::O_NONBLOCK == 0,
        max_bytes: max_bytes.unwrap_or(DEFAULT_LIST_BYTES),
        list: Mutex::default(),
        reports,
        _reader: kept,
    })
}

/// As the real library tells.
fn fsname_of(mount: *const c_char) -> Option<String> {
    let search = real::functions().search_fsname?;
    // The library writes at most a path's length.
    let mut name = vec![0_u8; 4097];
    // SAFETY: a C string by the caller's contract; the buffer is as large as it may be.
    let rc = unsafe { search(mount, name.as_mut_ptr().cast()) };
    let end = name.iter().position(|&b| b == 0)?;
    name.truncate(end);
    (rc == 0).then_some(name).and_then(|name| String::from_utf8(name).ok())
}

/// Ends the real library's handle without the kernel's knowledge.
fn forget(handle: &mut Handle) -> c_int {
    let Some(unregister) = real::functions().ct_unregister else { return -libc::ENOSYS };
    // SAFETY: a live handle of the real library's, which ends here.
    hidden(|| unsafe { unregister(&raw mut *handle) })
}

/// `llapi_hsm_copytool_unregister()`
///
/// # Safety
/// `handle` is null, or the address of null or of a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_hsm_copytool_unregister(handle: *mut Handle) -> c_int {
    c_call(|| {
        let Some(place) = NonNull::new(handle) else { return Ok(-libc::EINVAL) };
        // SAFETY: readable by contract.
        let mut inner = unsafe { place.read() };
        let ours = {
            let mut all = copytools().write().unwrap_or_else(PoisonError::into_inner);
            all.remove(&(inner as usize))
        };
        let Some(ours) = ours else {
            let Some(unregister) = real::functions().ct_unregister else {
                return Ok(-libc::EINVAL);
            };
            // SAFETY: the caller's argument, as it came.
            return Ok(unsafe { unregister(handle) });
        };
        let rc = forget(&mut inner);
        // SAFETY: writable by contract.
        unsafe { place.write(inner) };
        // Somebody may be in `recv` still: this may be a signal's handler.
        ours.mover.shut_down();
        Ok(rc)
    })
}

/// `llapi_hsm_copytool_get_fd()`
///
/// # Safety
/// `handle` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_hsm_copytool_get_fd(handle: Handle) -> c_int {
    c_call(|| match copytool(handle as usize) {
        Some(ours) => Ok(ours.mover.fd().as_raw_fd()),
        None => {
            // SAFETY: the caller's argument, as it came.
            let rc = real::functions().ct_get_fd.map(|get_fd| unsafe { get_fd(handle) });
            Ok(rc.unwrap_or(-libc::EINVAL))
        }
    })
}

/// `llapi_hsm_copytool_recv()`
///
/// # Safety
/// `handle` is null or live and in no other thread's `recv`; the others are null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_hsm_copytool_recv(
    handle: Handle,
    list: *mut *mut c_void,
    size: *mut c_int,
) -> c_int {
    c_call(|| {
        let Some(ours) = copytool(handle as usize) else {
            // SAFETY: the caller's arguments, as they came.
            let rc = real::functions().ct_recv.map(|recv| unsafe { recv(handle, list, size) });
            return Ok(rc.unwrap_or(-libc::EINVAL));
        };
        let (Some(list), Some(size)) = (NonNull::new(list), NonNull::new(size)) else {
            return Ok(-libc::EINVAL);
        };
        // SAFETY: writable by contract.
        unsafe {
            list.write(ptr::null_mut());
            size.write(0);
        }
        let timeout = if ours.blocking { None } else { Some(Duration::ZERO) };
        let Some(bytes) = ours.mover.recv_list(timeout, ours.max_bytes)? else {
            return Ok(-libc::EAGAIN);
        };
        let mut kept = ours.list.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = bytes;
        let n = c_int::try_from(kept.len()).unwrap_or(c_int::MAX);
        // SAFETY: writable by contract. The bytes stay where they are until the next call, or the
        // handle's end, as with the real library; a Vec is aligned for its elements only, but
        // malloc's blocks are for everything.
        unsafe {
            list.write(kept.as_mut_ptr().cast());
            size.write(n);
        }
        Ok(0)
    })
}

/// `llapi_hsm_action_begin()`
///
/// # Safety
/// As liblustreapi demands: `out` is writable, `handle` live, `item` an item with its length in front.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_hsm_action_begin(
    out: *mut Handle,
    handle: Handle,
    item: *const c_void,
    mdt_index: c_int,
    open_flags: c_int,
    is_error: bool,
) -> c_int {
    c_call(|| {
        let Some(begin) = real::functions().begin else { return Ok(-libc::ENOSYS) };
        // SAFETY: the caller's arguments, as they came.
        let rc = unsafe { begin(out, handle, item, mdt_index, open_flags, is_error) };
        let (Some(ours), Some(item)) = (copytool(handle as usize), NonNull::new(item.cast_mut()))
        else {
            return Ok(rc);
        };
        // SAFETY: an item has at least its head by contract.
        let head = unsafe { item.cast::<ItemBytes>().read_unaligned() };
        let Some(key) = ActionItem::of_head(&head).map(|item| key_of(&item)) else { return Ok(rc) };
        if rc < 0 {
            if !is_error {
                // Lustre knows it no longer, or has no such file: else it would stay with this
                // mover for ever if the program says no more of it.
                ours.report(key, What::Refused, rc);
            }
            return Ok(rc);
        }
        if !is_error {
            ours.report(key, What::Begun, 0);
        }
        // SAFETY: written by the real one, which succeeded.
        let action = unsafe { out.read() };
        actions().insert(action as usize, (handle as usize, key));
        Ok(rc)
    })
}

/// `llapi_hsm_action_end()`
///
/// # Safety
/// As liblustreapi demands: `action` is null, or the address of null or of a live action.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llapi_hsm_action_end(
    action: *mut Handle,
    extent: *const c_void,
    flags: c_int,
    errval: c_int,
) -> c_int {
    c_call(|| {
        let Some(end) = real::functions().end else { return Ok(-libc::ENOSYS) };
        // SAFETY: readable by contract.
        let inner = NonNull::new(action).map(|action| unsafe { action.read() } as usize);
        // Before the call: afterwards another action may have the address.
        let known = inner.and_then(|inner| actions().remove(&inner));
        // SAFETY: the caller's arguments, as they came.
        let rc = unsafe { end(action, extent, flags, errval) };
        let (Some(inner), Some((handle, key))) = (inner, known) else { return Ok(rc) };
        if rc == -libc::EINVAL
            && NonNull::new(action).is_some_and(|action| {
                // SAFETY: readable by contract; null when the action ended.
                !unsafe { action.read() }.is_null()
            })
        {
            actions().insert(inner, (handle, key)); // it did not end
            return Ok(rc);
        }
        if let Some(ours) = copytool(handle) {
            let status = if errval != 0 { errval } else { rc };
            ours.report(key, What::Done, status);
        }
        Ok(rc)
    })
}

const _: () = assert!(size_of::<ItemBytes>() == ITEM_HEAD_BYTES);
