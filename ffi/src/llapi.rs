//! liblustreapi, opened at run time.
//!
//! Only what has been there since Lustre 2.10 is required; newer calls are used if they are there.
//! Nothing of Lustre is needed to build.

use std::error::Error as _;
use std::ffi::{CString, OsString, c_char, c_int, c_longlong, c_void};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libloading::Library;

use crate::name::{MdtName, RecordIndex};
use crate::record::{self, HEAD_BYTES, MAX_RECORD_BYTES, RecordError};

/// Names another library than the system's, for tests and unusual places.
pub const LIBRARY_VARIABLE: &str = "LCAP_LIBLUSTREAPI";
/// What the system's is called, newest first.
const LIBRARY_NAMES: [&str; 2] = ["liblustreapi.so.1", "liblustreapi.so"];

/// `enum changelog_send_flag`: wait for new records at the end.
pub const FLAG_FOLLOW: c_int = 0x01;
/// `enum changelog_send_flag`: without effect since 2.10.
pub const FLAG_BLOCK: c_int = 0x02;
/// `enum changelog_send_flag`: give jobids.
pub const FLAG_JOBID: c_int = 0x04;
/// `enum changelog_send_flag`: give the extensions that `set_xflags` names.
pub const FLAG_EXTRA_FLAGS: c_int = 0x08;
/// `enum changelog_send_flag`: give NIDs as `struct lnet_nid` (2.16).
pub const FLAG_NID_BE: c_int = 0x10;
/// `enum changelog_send_extra_flag`: owner, NID, open mode and xattr name.
pub const XFLAG_ALL: c_int = 0x0f;

type StartFn = unsafe extern "C" fn(*mut *mut c_void, c_int, *const c_char, c_longlong) -> c_int;
type HandleFn = unsafe extern "C" fn(*mut c_void) -> c_int;
type OutFn = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type RecvFn = unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int;
type XflagsFn = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type ClearFn = unsafe extern "C" fn(*const c_char, *const c_char, c_longlong) -> c_int;

/// The library is not there, or is none.
#[derive(Debug, thiserror::Error)]
pub enum LlapiError {
    /// No file of any of its names could be loaded.
    #[error(
        "liblustreapi is needed and cannot be loaded ({reason}); install the Lustre client \
         (package lustre-client or lustre-client-utils), or use the source device:, which needs \
         no library"
    )]
    Missing {
        /// What the dynamic linker said.
        reason: String,
    },
    /// It lacks a function.
    #[error("{library} has no {symbol}: Lustre 2.10 or newer is needed")]
    TooOld {
        /// Name that it was loaded by.
        library: String,
        /// The function.
        symbol: &'static str,
    },
}

/// The loaded library.
pub struct Llapi {
    start: StartFn,
    recv: RecvFn,
    free: OutFn,
    fini: OutFn,
    clear: ClearFn,
    get_fd: HandleFn,
    in_buf: Option<HandleFn>,
    set_xflags: Option<XflagsFn>,
    name: String,
    /// Last, so that the code stays mapped as long as the pointers into it.
    _library: Library,
}

impl fmt::Debug for Llapi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Llapi").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Llapi {
    /// Loads the library: the one that [`LIBRARY_VARIABLE`] names, or else the system's.
    ///
    /// # Errors
    /// [`LlapiError`], in a sentence that says what to install.
    pub fn load() -> Result<Arc<Self>, LlapiError> {
        let (library, name) = open_library()?;
        Self::resolve(library, &name)
    }

    fn resolve(library: Library, name: &str) -> Result<Arc<Self>, LlapiError> {
        /// The function of that name, as the type that Lustre's header gives it.
        ///
        /// # Safety
        /// `T` is the type of a pointer to that function.
        unsafe fn find<T: Copy>(library: &Library, symbol: &str) -> Option<T> {
            // SAFETY: the caller's promise.
            unsafe { library.get::<T>(symbol.as_bytes()) }.ok().map(|found| *found)
        }
        let too_old = |symbol| LlapiError::TooOld { library: name.to_owned(), symbol };
        // SAFETY (of each): the types above are those of lustreapi.h, unchanged since 2.10.
        macro_rules! required {
            ($symbol:literal) => {
                // SAFETY: see above.
                unsafe { find(&library, $symbol) }.ok_or_else(|| too_old($symbol))?
            };
        }
        macro_rules! optional {
            ($symbol:literal) => {
                // SAFETY: see above.
                unsafe { find(&library, $symbol) }
            };
        }
        Ok(Arc::new(Self {
            start: required!("llapi_changelog_start"),
            recv: required!("llapi_changelog_recv"),
            free: required!("llapi_changelog_free"),
            fini: required!("llapi_changelog_fini"),
            clear: required!("llapi_changelog_clear"),
            get_fd: required!("llapi_changelog_get_fd"),
            in_buf: optional!("llapi_changelog_in_buf"),
            set_xflags: optional!("llapi_changelog_set_xflags"),
            name: name.to_owned(),
            _library: library,
        }))
    }

    /// Opens an MDT's changelog at the first record with an index of at least `from`.
    /// With [`FLAG_EXTRA_FLAGS`], every extension is asked for.
    ///
    /// # Errors
    /// As the library says, e.g. ENOENT for an MDT that is not there.
    pub fn start(
        self: &Arc<Self>,
        mdt: &MdtName,
        flags: c_int,
        from: RecordIndex,
    ) -> io::Result<ChangelogHandle> {
        let mdt = c_string(mdt.as_str())?;
        let from = c_longlong::try_from(from.get()).map_err(|_| errno(libc::EINVAL))?;
        let mut handle = ptr::null_mut();
        // SAFETY: the out pointer and the string live through the call.
        check(unsafe { (self.start)(&raw mut handle, flags, mdt.as_ptr(), from) })?;
        let handle = NonNull::new(handle).ok_or_else(|| errno(libc::EPROTO))?;
        let log = ChangelogHandle { library: Arc::clone(self), handle };
        if let Some(set_xflags) = self.set_xflags.filter(|_| flags & FLAG_EXTRA_FLAGS != 0) {
            // SAFETY: the handle is live and ours.
            check(unsafe { set_xflags(log.handle.as_ptr(), XFLAG_ALL) })?;
        }
        Ok(log)
    }

    /// Clears an MDT's changelog up to `upto` for a user.
    ///
    /// # Errors
    /// As the library says: ENOENT for an unknown user, EINVAL beyond the newest record. Index
    /// zero, which would clear everything, is refused here.
    pub fn clear(&self, mdt: &MdtName, user: &str, upto: RecordIndex) -> io::Result<()> {
        let (mdt, user) = (c_string(mdt.as_str())?, c_string(user)?);
        let upto = match c_longlong::try_from(upto.get()) {
            Ok(upto) if upto > 0 => upto,
            _ => return Err(errno(libc::EINVAL)),
        };
        // SAFETY: both strings live through the call.
        check(unsafe { (self.clear)(mdt.as_ptr(), user.as_ptr(), upto) }).map(drop)
    }
}

/// Opens the library that [`LIBRARY_VARIABLE`] names, or else the system's; with its name.
pub(crate) fn open_library() -> Result<(Library, String), LlapiError> {
    let names: Vec<OsString> = match std::env::var_os(LIBRARY_VARIABLE) {
        Some(name) => vec![name],
        None => LIBRARY_NAMES.map(OsString::from).to_vec(),
    };
    let mut reasons = Vec::new();
    for name in &names {
        // SAFETY: loading runs the library's initialisers. It is Lustre's own, or what the
        // administrator put in its place.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok((library, name.to_string_lossy().into_owned())),
            // The reason proper is the dynamic linker's, one level down.
            Err(e) => reasons.push(e.source().map_or(e.to_string(), ToString::to_string)),
        }
    }
    Err(LlapiError::Missing { reason: reasons.join("; ") })
}

/// One open changelog.
pub struct ChangelogHandle {
    library: Arc<Llapi>,
    handle: NonNull<c_void>,
}

// SAFETY: the library keeps no thread-local state for a handle; it only must not be used by two
// threads at once, which `&mut self` sees to.
unsafe impl Send for ChangelogHandle {}

impl fmt::Debug for ChangelogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangelogHandle").field("library", &self.library.name).finish()
    }
}

impl ChangelogHandle {
    /// The next record; `None` at the end. Blocks if the descriptor does.
    ///
    /// # Errors
    /// As the library says: EAGAIN if the descriptor is non-blocking and nothing is there.
    /// ENOMEM if it skipped a record that it had no memory for: open again at the index after the
    /// last one. EPROTO if what it gave is no record.
    pub fn recv(&mut self) -> io::Result<Option<OwnedRecord>> {
        let mut rec = ptr::null_mut();
        // SAFETY: the handle is live and ours alone; the out pointer lives through the call.
        let rc = unsafe { (self.library.recv)(self.handle.as_ptr(), &raw mut rec) };
        if check(rc)? == 1 {
            return Ok(None);
        }
        let ptr = NonNull::new(rec).ok_or_else(|| errno(libc::ENOMEM))?;
        let mut record = OwnedRecord { library: Arc::clone(&self.library), ptr, len: 0 };
        record.len = record.measure().ok_or_else(|| errno(libc::EPROTO))?;
        Ok(Some(record))
    }

    /// Whether the library holds records that it has read already. Libraries before 2.13 do not
    /// tell: false.
    pub fn in_buf(&mut self) -> bool {
        // SAFETY: the handle is live and ours alone.
        self.library.in_buf.is_some_and(|in_buf| unsafe { in_buf(self.handle.as_ptr()) } == 1)
    }

    /// The device's descriptor, to poll it or make it non-blocking.
    ///
    /// # Errors
    /// If the library has none.
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        // SAFETY: the handle is live.
        let fd: RawFd = check(unsafe { (self.library.get_fd)(self.handle.as_ptr()) })?;
        // SAFETY: the library keeps it open as long as the handle lives.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }
}

impl Drop for ChangelogHandle {
    fn drop(&mut self) {
        let mut handle = self.handle.as_ptr();
        // SAFETY: the handle is live and this is its end.
        unsafe { (self.library.fini)(&raw mut handle) };
    }
}

/// A record in memory of the library's.
pub struct OwnedRecord {
    library: Arc<Llapi>,
    ptr: NonNull<c_void>,
    len: usize,
}

// SAFETY: plain memory from malloc, owned by this value.
unsafe impl Send for OwnedRecord {}

impl fmt::Debug for OwnedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedRecord").field("len", &self.len).finish_non_exhaustive()
    }
}

impl OwnedRecord {
    /// The whole packed record.
    pub fn as_bytes(&self) -> &[u8] {
        self.slice(self.len)
    }

    /// Gives the library's pointer away; whoever has it must free it as liblustreapi says.
    pub fn into_raw(self) -> NonNull<c_void> {
        let ptr = self.ptr;
        // The library stays loaded: its `free` is needed yet.
        std::mem::forget(self);
        ptr
    }

    /// Finds its length: nobody tells how large the block is, so no more is looked at than what
    /// the part before says must be there.
    fn measure(&self) -> Option<usize> {
        let mut known = HEAD_BYTES;
        loop {
            match record::split_len(self.slice(known)) {
                Ok((len, _)) => return Some(len),
                Err(RecordError::Short { need, .. })
                    if need > known && need <= MAX_RECORD_BYTES =>
                {
                    known = need;
                }
                Err(_) => return None,
            }
        }
    }

    fn slice(&self, len: usize) -> &[u8] {
        // SAFETY: the library gave a record, whose head is there, and its head says that `len`
        // bytes of it are; it is freed only when `self` is gone.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast::<u8>(), len) }
    }
}

impl Drop for OwnedRecord {
    fn drop(&mut self) {
        let mut ptr = self.ptr.as_ptr();
        // SAFETY: it came from the library's `recv` and is freed once.
        unsafe { (self.library.free)(&raw mut ptr) };
    }
}

pub(crate) fn check(rc: c_int) -> io::Result<c_int> {
    if rc < 0 { Err(errno(rc.saturating_neg())) } else { Ok(rc) }
}

pub(crate) fn errno(number: c_int) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| errno(libc::EINVAL))
}
