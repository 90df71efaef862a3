//! Modules that choose the mover of an HSM request: `struct lcap_placer_ops` of `lcap_policy.h`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::name::Fid;

/// Version of the contract.
pub const ABI: u32 = 1;
/// Longest name of a mover, with its NUL.
const NAME_BYTES: usize = 256;
/// What `place` answers if any mover will do.
const ANYWHERE: c_int = 1;

/// `struct lcap_place_request`.
#[repr(C)]
struct CRequest {
    size: u32,
    action: u32,
    archive_id: u32,
    data_len: u32,
    flags: u64,
    fid_seq: u64,
    fid_oid: u32,
    fid_ver: u32,
    uid: u32,
    gid: u32,
    project: u32,
    reserved: u32,
    data: *const u8,
    fsname: *const c_char,
}

/// `struct lcap_placer_ops`.
#[repr(C)]
struct COps {
    abi: u32,
    size: u32,
    name: *const c_char,
    create: Option<unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int>,
    destroy: Option<unsafe extern "C" fn(*mut c_void)>,
    place: Option<
        unsafe extern "C" fn(
            *mut c_void,
            *const CRequest,
            *const *const c_char,
            usize,
            *mut c_char,
            usize,
        ) -> c_int,
    >,
}

// Frozen: lcap_policy.h says the same.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(CRequest, flags) == 16 && offset_of!(CRequest, fid_seq) == 24);
    assert!(offset_of!(CRequest, fid_oid) == 32 && offset_of!(CRequest, uid) == 40);
    assert!(offset_of!(CRequest, project) == 48 && offset_of!(CRequest, data) == 56);
    assert!(size_of::<CRequest>() == 56 + 2 * size_of::<usize>());
    assert!(offset_of!(COps, name) == 8 && offset_of!(COps, create) == 8 + size_of::<usize>());
    assert!(size_of::<COps>() == 8 + 4 * size_of::<usize>());
};

/// What a module is told of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceRequest {
    /// Lustre's number (`HSMA_*`).
    pub action: u32,
    /// Its archive.
    pub archive_id: u32,
    /// `hal_flags`.
    pub flags: u64,
    /// The file.
    pub fid: Fid,
    /// Its owner, group and project; all ones where they are not known.
    pub owner: [u32; 3],
    /// What the user gave.
    pub data: Box<[u8]>,
    /// The file system.
    pub fsname: CString,
}

/// Why a module cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlacerError {
    /// No library, or not of this kind.
    #[error("{}: {reason}", path.display())]
    Open {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Its `create` refused.
    #[error("module refuses its options")]
    Refused(#[source] std::io::Error),
}

/// A loaded module, made for one thread at a time. Its code stays mapped until the process ends.
pub struct Placer {
    ops: &'static COps,
    state: *mut c_void,
    name: String,
}

// SAFETY: the contract in lcap_policy.h: an instance is used by one thread at a time, not always the same one.
unsafe impl Send for Placer {}

impl fmt::Debug for Placer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Placer").field(&self.name).finish()
    }
}

impl Placer {
    /// Loads `path` (`shown` is for messages) and makes an instance with these options, a JSON object.
    ///
    /// # Errors
    /// [`PlacerError`].
    pub fn load(path: &Path, shown: &Path, options: &CStr) -> Result<Self, PlacerError> {
        let open = |reason: String| PlacerError::Open { path: shown.to_owned(), reason };
        // SAFETY: whoever configures lcapd vouches for what a module does when it is loaded; who may write the file
        // was checked by the caller.
        let library = unsafe { Library::new(path) }.map_err(|error| open(error.to_string()))?;
        // SAFETY: the type is the contract's.
        let entry =
            unsafe { library.get::<unsafe extern "C" fn() -> *const COps>(b"lcap_placer_entry\0") };
        let entry = entry.map_err(|_| open("it has no lcap_placer_entry()".to_owned()))?;
        // SAFETY: the contract: callable once the library is loaded.
        let table = unsafe { entry() };
        // SAFETY: null, or a table that is valid while the library is loaded, which it is for ever (below).
        let ops: &'static COps =
            unsafe { table.as_ref() }.ok_or_else(|| open("it cannot work here".to_owned()))?;
        std::mem::forget(library);
        let known = u32::try_from(size_of::<COps>()).unwrap_or(u32::MAX);
        if ops.abi != ABI || ops.size < known || ops.place.is_none() {
            let (abi, size) = (ops.abi, ops.size);
            return Err(open(format!(
                "its table has ABI {abi} and {size} bytes, not {ABI} and {known}"
            )));
        }
        let mut state = ptr::null_mut();
        if let Some(create) = ops.create {
            // SAFETY: the table's own function; the string outlives the call, and `state` is writable.
            let rc = unsafe { create(options.as_ptr(), &raw mut state) };
            if rc < 0 {
                return Err(PlacerError::Refused(std::io::Error::from_raw_os_error(-rc)));
            }
        }
        let name = if ops.name.is_null() {
            String::new()
        } else {
            // SAFETY: not null, so by the contract a string that stays.
            unsafe { CStr::from_ptr(ops.name) }.to_string_lossy().into_owned()
        };
        Ok(Self { ops, state, name })
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for the mover of a request; `None`: any will do.
    ///
    /// # Errors
    /// The module's, or `EINVAL` if what it answers is no name.
    pub fn place(
        &mut self,
        request: &PlaceRequest,
        movers: &[CString],
    ) -> Result<Option<String>, std::io::Error> {
        let place = self.ops.place.ok_or(std::io::ErrorKind::Unsupported)?;
        let [uid, gid, project] = request.owner;
        let asked = CRequest {
            size: u32::try_from(size_of::<CRequest>()).unwrap_or(u32::MAX),
            action: request.action,
            archive_id: request.archive_id,
            data_len: u32::try_from(request.data.len()).unwrap_or(u32::MAX),
            flags: request.flags,
            fid_seq: request.fid.seq,
            fid_oid: request.fid.oid,
            fid_ver: request.fid.ver,
            uid,
            gid,
            project,
            reserved: 0,
            data: request.data.as_ptr(),
            fsname: request.fsname.as_ptr(),
        };
        let names: Vec<*const c_char> = movers.iter().map(|name| name.as_ptr()).collect();
        let mut host = [0_u8; NAME_BYTES];
        // SAFETY: `state` came from this table's `create`; `&mut self` rules out a second caller; everything pointed
        // to outlives the call, and `host` has the room that is said.
        let rc = unsafe {
            place(
                self.state,
                &raw const asked,
                names.as_ptr(),
                names.len(),
                host.as_mut_ptr().cast(),
                host.len(),
            )
        };
        match rc {
            ANYWHERE => Ok(None),
            0 => {
                let name =
                    CStr::from_bytes_until_nul(&host).ok().and_then(|name| name.to_str().ok());
                let name = name.filter(|name| !name.is_empty());
                name.map(|name| Some(name.to_owned()))
                    .ok_or(std::io::ErrorKind::InvalidInput.into())
            }
            rc => Err(std::io::Error::from_raw_os_error(rc.saturating_abs())),
        }
    }
}

impl Drop for Placer {
    fn drop(&mut self) {
        if let Some(destroy) = self.ops.destroy {
            // SAFETY: made by this table's `create`, and not used after this.
            unsafe { destroy(self.state) }
        }
    }
}
