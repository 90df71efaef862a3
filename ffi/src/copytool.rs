//! liblustreapi's calls for a copytool, opened at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use crate::hsm::{ActionItem, ListBuilder, PROGRESS_COMPLETED};
use crate::llapi::{LlapiError, check, errno, open_library};

/// Longest list that is believed (`HAL_MAXSIZE`).
const MAX_LIST_BYTES: usize = 1 << 20;

type Handle = *mut c_void;
type RegisterFn =
    unsafe extern "C" fn(*mut Handle, *const c_char, c_int, *mut c_int, c_int) -> c_int;
type UnregisterFn = unsafe extern "C" fn(*mut Handle) -> c_int;
type GetFdFn = unsafe extern "C" fn(Handle) -> c_int;
type RecvFn = unsafe extern "C" fn(Handle, *mut *mut c_void, *mut c_int) -> c_int;
type BeginFn =
    unsafe extern "C" fn(*mut Handle, Handle, *const c_void, c_int, c_int, bool) -> c_int;
type EndFn = unsafe extern "C" fn(*mut Handle, *const c_void, c_int, c_int) -> c_int;
type FsnameFn = unsafe extern "C" fn(*const c_char, *mut c_char) -> c_int;

/// The functions.
pub struct CopytoolApi {
    register: RegisterFn,
    unregister: UnregisterFn,
    get_fd: GetFdFn,
    recv: RecvFn,
    begin: BeginFn,
    end: EndFn,
    search_fsname: FsnameFn,
    name: String,
    /// Last, so that the code stays mapped as long as the pointers into it.
    _library: Library,
}

impl fmt::Debug for CopytoolApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopytoolApi").field("name", &self.name).finish_non_exhaustive()
    }
}

impl CopytoolApi {
    /// Loads the library: the one that [`crate::llapi::LIBRARY_VARIABLE`] names, or else the
    /// system's.
    ///
    /// # Errors
    /// [`LlapiError`], if it is not there or lacks a function.
    pub fn load() -> Result<Arc<Self>, LlapiError> {
        let (library, name) = open_library()?;
        // SAFETY (of each): the types above are those of lustreapi.h, unchanged since 2.10.
        macro_rules! find {
            ($symbol:literal) => {
                // SAFETY: see above.
                *unsafe { library.get($symbol.as_bytes()) }
                    .map_err(|_| LlapiError::TooOld { library: name.clone(), symbol: $symbol })?
            };
        }
        Ok(Arc::new(Self {
            register: find!("llapi_hsm_copytool_register"),
            unregister: find!("llapi_hsm_copytool_unregister"),
            get_fd: find!("llapi_hsm_copytool_get_fd"),
            recv: find!("llapi_hsm_copytool_recv"),
            begin: find!("llapi_hsm_action_begin"),
            end: find!("llapi_hsm_action_end"),
            search_fsname: find!("llapi_search_fsname"),
            name,
            _library: library,
        }))
    }

    /// The name of the file system that `mount` is a mount of.
    ///
    /// # Errors
    /// As the library says: ENOENT if it is none.
    pub fn fsname(&self, mount: &Path) -> io::Result<String> {
        let path = c_path(mount)?;
        // The library writes at most a path's length.
        let mut name = vec![0_u8; 4096 + 1];
        // SAFETY: the path lives through the call, and the buffer is as large as it may be.
        check(unsafe { (self.search_fsname)(path.as_ptr(), name.as_mut_ptr().cast()) })?;
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| errno(libc::EPROTO))?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// Registers with every MDT as the copytool of a mount, for these archives, or all if there are
    /// none. [`Registration::recv`] will not block.
    ///
    /// # Errors
    /// As the library says: ENOENT if it is no Lustre mount, EPERM without CAP_SYS_ADMIN, EEXIST if
    /// the MDTs know this mount as an agent already.
    pub fn register(self: &Arc<Self>, mount: &Path, archives: &[u32]) -> io::Result<Registration> {
        let path = c_path(mount)?;
        let bad = |_| errno(libc::EINVAL);
        let mut ids: Vec<c_int> = archives
            .iter()
            .map(|&id| c_int::try_from(id).map_err(bad))
            .collect::<Result<_, _>>()?;
        let count = c_int::try_from(ids.len()).map_err(bad)?;
        let ids = if ids.is_empty() { ptr::null_mut() } else { ids.as_mut_ptr() };
        let mut handle = ptr::null_mut();
        // SAFETY: path, ids and the out pointer live through the call; `count` is that of `ids`.
        check(unsafe {
            (self.register)(&raw mut handle, path.as_ptr(), count, ids, libc::O_NONBLOCK)
        })?;
        let handle = NonNull::new(handle).ok_or_else(|| errno(libc::EPROTO))?;
        Ok(Registration { api: Arc::clone(self), handle, receiving: Mutex::new(()) })
    }
}

/// A copytool's registration; ends when it is dropped.
pub struct Registration {
    api: Arc<CopytoolApi>,
    handle: NonNull<c_void>,
    /// The buffer behind `recv` is the handle's.
    receiving: Mutex<()>,
}

// SAFETY: the library has no thread-local state for a handle.
unsafe impl Send for Registration {}
// SAFETY: `recv` is under a lock; the other calls only read what the handle had from its start.
unsafe impl Sync for Registration {}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("library", &self.api.name).finish_non_exhaustive()
    }
}

impl Registration {
    /// What becomes readable when there are requests.
    ///
    /// # Errors
    /// If the library has none.
    pub fn fd(&self) -> io::Result<RawFd> {
        // SAFETY: the handle is live.
        check(unsafe { (self.api.get_fd)(self.handle.as_ptr()) })
    }

    /// The next list of requests, if there is one now.
    ///
    /// # Errors
    /// As the library says; ESHUTDOWN: nothing will come any more.
    pub fn recv(&self) -> io::Result<Option<Vec<u8>>> {
        let _receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut list, mut size) = (ptr::null_mut(), 0);
        // SAFETY: the handle is live, no other thread is in this call, the out pointers are ours.
        let rc = unsafe { (self.api.recv)(self.handle.as_ptr(), &raw mut list, &raw mut size) };
        match check(rc) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(None),
            other => other?,
        };
        let list = NonNull::new(list).ok_or_else(|| errno(libc::EPROTO))?;
        let size = usize::try_from(size).ok().filter(|&size| size <= MAX_LIST_BYTES);
        let size = size.ok_or_else(|| errno(libc::EMSGSIZE))?;
        // SAFETY: the library says that so many bytes are there until the next call, which the lock
        // keeps away.
        let bytes = unsafe { std::slice::from_raw_parts(list.as_ptr().cast::<u8>(), size) };
        Ok(Some(bytes.to_vec()))
    }

    /// Ends a request that nobody will carry out, with an error number.
    ///
    /// # Errors
    /// As the library says; ENOENT: the MDT does not know it (any more).
    pub fn fail(&self, item: &ActionItem<'_>, errval: c_int) -> io::Result<()> {
        // The library wants an item with its length in front, as it stands in a list.
        let mut list = ListBuilder::new(b"", 0, 0);
        let bare = ActionItem { data: &[], ..*item };
        list.push(&bare).map_err(|_| errno(libc::EINVAL))?;
        let list = list.finish();
        let first = list.len() - crate::hsm::ITEM_HEAD_BYTES;
        let packed = list.get(first..).ok_or_else(|| errno(libc::EINVAL))?;
        let extent = packed.get(40..56).ok_or_else(|| errno(libc::EINVAL))?;
        let mut action = ptr::null_mut();
        // SAFETY: the handle is live; the item is whole (its length says 72 bytes, which it has) and
        // unaligned access is what the packed type is for; the out pointer is ours.
        check(unsafe {
            (self.api.begin)(
                &raw mut action,
                self.handle.as_ptr(),
                packed.as_ptr().cast(),
                -1,
                0,
                true,
            )
        })?;
        // SAFETY: the action is what `begin` just gave, and ends here; the extent has 16 bytes.
        check(unsafe {
            (self.api.end)(
                &raw mut action,
                extent.as_ptr().cast(),
                PROGRESS_COMPLETED.into(),
                errval,
            )
        })?;
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut handle = self.handle.as_ptr();
        // SAFETY: the handle is live and this is its end.
        unsafe { (self.api.unregister)(&raw mut handle) };
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| errno(libc::EINVAL))
}
