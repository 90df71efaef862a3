//! Modules that choose the mover of an HSM request, and its turn: `struct lcap_placer_ops` of `lcap_policy.h`.

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
/// The module has named a mover.
const HOST: c_int = 0;
/// Any mover will do.
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

/// `struct lcap_place_plan`.
#[repr(C)]
struct CPlan {
    size: u32,
    rank: i32,
    host: [u8; NAME_BYTES],
}

type PlaceFn = unsafe extern "C" fn(
    *mut c_void,
    *const CRequest,
    *const *const c_char,
    usize,
    *mut c_char,
    usize,
) -> c_int;
type PlanFn = unsafe extern "C" fn(
    *mut c_void,
    *const CRequest,
    *const *const c_char,
    usize,
    *mut CPlan,
) -> c_int;

/// `struct lcap_placer_ops`.
#[derive(Clone, Copy)]
#[repr(C)]
struct COps {
    abi: u32,
    size: u32,
    name: *const c_char,
    create: Option<unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int>,
    destroy: Option<unsafe extern "C" fn(*mut c_void)>,
    place: Option<PlaceFn>,
    plan: Option<PlanFn>,
}

/// A table of the first release ends here.
const LEAST_OPS: usize = std::mem::offset_of!(COps, plan);

// Frozen: lcap_policy.h says the same.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(CRequest, flags) == 16 && offset_of!(CRequest, fid_seq) == 24);
    assert!(offset_of!(CRequest, fid_oid) == 32 && offset_of!(CRequest, uid) == 40);
    assert!(offset_of!(CRequest, project) == 48 && offset_of!(CRequest, data) == 56);
    assert!(size_of::<CRequest>() == 56 + 2 * size_of::<usize>());
    assert!(offset_of!(CPlan, rank) == 4 && offset_of!(CPlan, host) == 8);
    assert!(size_of::<CPlan>() == 264);
    assert!(offset_of!(COps, name) == 8 && offset_of!(COps, create) == 8 + size_of::<usize>());
    assert!(LEAST_OPS == 8 + 4 * size_of::<usize>());
    assert!(size_of::<COps>() == 8 + 5 * size_of::<usize>());
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

/// What a module decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The mover; `None`: any will do.
    pub host: Option<String>,
    /// Those of a lower one go first.
    pub rank: i32,
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
    ops: COps,
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
        if table.is_null() {
            return Err(open("it cannot work here".to_owned()));
        }
        std::mem::forget(library);
        // SAFETY: not null, so a table that is valid while the library is loaded, which it is for ever; every table
        // has these two.
        let (abi, size) = unsafe { ((*table).abi, (*table).size as usize) };
        if abi != ABI || size < LEAST_OPS {
            return Err(open(format!(
                "its table has ABI {abi} and {size} bytes, not {ABI} and {LEAST_OPS} or more"
            )));
        }
        // What a shorter table lacks is absent here; what a longer one has more is not known here.
        let mut ops = COps {
            abi,
            size: 0,
            name: ptr::null(),
            create: None,
            destroy: None,
            place: None,
            plan: None,
        };
        // SAFETY: as many bytes as both have; a part of a table that was left zeroed is a null pointer or `None`.
        unsafe {
            ptr::copy_nonoverlapping(
                table.cast::<u8>(),
                (&raw mut ops).cast::<u8>(),
                size.min(size_of::<COps>()),
            );
        }
        if ops.place.is_none() && ops.plan.is_none() {
            return Err(open("its table has neither place() nor plan()".to_owned()));
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

    /// Asks for the mover of a request, and its turn.
    ///
    /// # Errors
    /// The module's, or `EINVAL` if what it answers is no answer.
    pub fn plan(
        &mut self,
        request: &PlaceRequest,
        movers: &[CString],
    ) -> Result<Plan, std::io::Error> {
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
        let size = u32::try_from(size_of::<CPlan>()).unwrap_or(u32::MAX);
        let mut plan = CPlan { size, rank: 0, host: [0; NAME_BYTES] };
        let (asked, state) = (&raw const asked, self.state);
        let (names, n_names) = (names.as_ptr(), names.len());
        let rc = match (self.ops.plan, self.ops.place) {
            // SAFETY: `state` came from this table's `create`; `&mut self` rules out a second caller; everything
            // pointed to outlives the call, and `plan` is as large as it says.
            (Some(ask), _) => unsafe { ask(state, asked, names, n_names, &raw mut plan) },
            (None, Some(ask)) => {
                let (host, room) = (plan.host.as_mut_ptr().cast(), plan.host.len());
                // SAFETY: as above; `host` has the room that is said.
                unsafe { ask(state, asked, names, n_names, host, room) }
            }
            (None, None) => return Err(std::io::ErrorKind::Unsupported.into()),
        };
        let rank = plan.rank;
        let no_answer = || std::io::Error::from_raw_os_error(libc::EINVAL);
        match rc {
            HOST => {
                let name = CStr::from_bytes_until_nul(&plan.host).ok();
                let name = name.and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty());
                let host = Some(name.ok_or_else(no_answer)?.to_owned());
                Ok(Plan { host, rank })
            }
            ANYWHERE => Ok(Plan { host: None, rank }),
            // An errno as the kernel has them.
            -4095..=-1 => Err(std::io::Error::from_raw_os_error(-rc)),
            _ => Err(no_answer()),
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
