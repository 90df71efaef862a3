//! The table that a policy library exports: `include/lcap_policy.h`, field by field.
//!
//! The contract is written in the header; the names here are the same without the prefix.
#![forbid(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// Version of the contract.
pub const ABI: u32 = 1;
/// The exported symbol.
pub const ENTRY_SYMBOL: &str = "lcap_policy_entry";

/// Module flag: one instance serves all MDTs of a stream.
pub const SHARED: u64 = 1;
/// Module flag: keeps no pointer into a record after `enqueue`.
pub const NO_POINTERS: u64 = 2;
/// Module flag: emits what it was given and nothing else; no record makes up for a dropped one.
pub const VERBATIM: u64 = 4;
/// Flag of `dequeue`: decide everything now.
pub const FLUSH: u32 = 1;
/// Verdict: the record goes on.
pub const EMIT: u32 = 1;
/// Verdict: the record is done with.
pub const DROP: u32 = 2;

/// Levels of [`PolicyHost::log`].
pub mod log_level {
    use std::ffi::c_int;

    /// Somebody must act; the reason of a failed `create`.
    pub const ERROR: c_int = 1;
    /// Coped.
    pub const WARN: c_int = 2;
    /// Start and change of state.
    pub const INFO: c_int = 3;
    /// For authors.
    pub const DEBUG: c_int = 4;
}

/// `struct lcap_policy_record`: one record on its way in.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PolicyRecord {
    /// Consecutive within an instance.
    pub token: u64,
    /// A packed `struct changelog_rec`.
    pub rec: *const c_void,
    /// Its size in bytes.
    pub size: u32,
    /// Number of its MDT.
    pub mdt: u32,
}

/// `struct lcap_policy_out`: a decision on its way out.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PolicyOut {
    /// [`EMIT`] or [`DROP`].
    pub verdict: u32,
    /// How many tokens it decides.
    pub count: u32,
    /// First of consecutive tokens, if `tokens` is null.
    pub token: u64,
    /// The tokens themselves.
    pub tokens: *const u64,
    /// A record that takes the place of all of them, or null.
    pub rec: *const c_void,
    /// Its size in bytes.
    pub rec_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Key for the lanes of a queue; zero is none.
    pub route: u64,
}

impl PolicyOut {
    /// All zero, as the host hands it to `dequeue`.
    pub const EMPTY: Self = Self {
        verdict: 0,
        count: 0,
        token: 0,
        tokens: ptr::null(),
        rec: ptr::null(),
        rec_size: 0,
        reserved: 0,
        route: 0,
    };
}

/// `struct lcap_policy_reader`: a reader, for `clear`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PolicyReader {
    /// Its name.
    pub name: *const c_char,
    /// Every record up to it is settled for this reader.
    pub watermark: u64,
}

/// `struct lcap_policy_host`: what the host offers to an instance.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PolicyHost {
    /// [`ABI`] of the host.
    pub abi: u32,
    /// Size of this struct at the host.
    pub size: u32,
    /// MDTs that the instance serves.
    pub n_mdts: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of an MDT.
    pub mdt_name: Option<MdtNameFn>,
    /// One line for the host's log.
    pub log: Option<LogFn>,
}

/// `lcap_policy_host.mdt_name`.
pub type MdtNameFn = unsafe extern "C" fn(host: *const PolicyHost, mdt: u32) -> *const c_char;
/// `lcap_policy_host.log`.
pub type LogFn = unsafe extern "C" fn(host: *const PolicyHost, level: c_int, text: *const c_char);
/// `lcap_policy_ops.describe`.
pub type DescribeFn = unsafe extern "C" fn() -> *const c_char;
/// `lcap_policy_ops.create`.
pub type CreateFn = unsafe extern "C" fn(
    config_json: *const c_char,
    host: *const PolicyHost,
    state: *mut *mut c_void,
) -> c_int;
/// `lcap_policy_ops.destroy`.
pub type DestroyFn = unsafe extern "C" fn(state: *mut c_void);
/// `lcap_policy_ops.enqueue`.
pub type EnqueueFn = unsafe extern "C" fn(
    state: *mut c_void,
    recs: *const PolicyRecord,
    n: usize,
    now_ns: u64,
) -> c_int;
/// `lcap_policy_ops.dequeue`.
pub type DequeueFn = unsafe extern "C" fn(
    state: *mut c_void,
    now_ns: u64,
    flags: u32,
    out: *mut PolicyOut,
    max: usize,
    wake_ns: *mut u64,
) -> c_int;
/// `lcap_policy_ops.clear`.
pub type ClearFn = unsafe extern "C" fn(
    state: *mut c_void,
    mdt: u32,
    readers: *const PolicyReader,
    n: usize,
    proposed: u64,
    upto: *mut u64,
) -> c_int;
/// `lcap_policy_ops.stats`.
pub type StatsFn = unsafe extern "C" fn(state: *mut c_void, json: *mut c_char, len: usize) -> c_int;
/// `lcap_policy_entry`.
pub type EntryFn = unsafe extern "C" fn() -> *const PolicyOps;

/// `struct lcap_policy_ops`: the table of a module. Entries are only appended.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PolicyOps {
    /// [`ABI`] that the module was built with.
    pub abi: u32,
    /// Size of the table then.
    pub size: u32,
    /// Short name.
    pub name: *const c_char,
    /// The module's own version.
    pub version: *const c_char,
    /// [`SHARED`], [`NO_POINTERS`], [`VERBATIM`].
    pub flags: u64,
    /// Tells about the module.
    pub describe: Option<DescribeFn>,
    /// Makes an instance.
    pub create: Option<CreateFn>,
    /// Frees one.
    pub destroy: Option<DestroyFn>,
    /// Takes records.
    pub enqueue: Option<EnqueueFn>,
    /// Gives decisions.
    pub dequeue: Option<DequeueFn>,
    /// Limits clearing; may be absent.
    pub clear: Option<ClearFn>,
    /// Figures; may be absent.
    pub stats: Option<StatsFn>,
}

/// The smallest table that can work: it reaches to `dequeue`.
pub const MIN_OPS_BYTES: usize = std::mem::offset_of!(PolicyOps, clear);

// The layout is frozen: modules that were built once must load for ever.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<PolicyRecord>() == 24 && offset_of!(PolicyRecord, rec) == 8);
    assert!(offset_of!(PolicyRecord, size) == 16 && offset_of!(PolicyRecord, mdt) == 20);
    assert!(size_of::<PolicyOut>() == 48 && offset_of!(PolicyOut, token) == 8);
    assert!(offset_of!(PolicyOut, tokens) == 16 && offset_of!(PolicyOut, rec) == 24);
    assert!(offset_of!(PolicyOut, rec_size) == 32 && offset_of!(PolicyOut, route) == 40);
    assert!(size_of::<PolicyReader>() == 16 && offset_of!(PolicyReader, watermark) == 8);
    assert!(size_of::<PolicyHost>() == 32 && offset_of!(PolicyHost, mdt_name) == 16);
    assert!(offset_of!(PolicyHost, log) == 24);
    assert!(offset_of!(PolicyOps, name) == 8 && offset_of!(PolicyOps, version) == 16);
    assert!(offset_of!(PolicyOps, flags) == 24 && offset_of!(PolicyOps, describe) == 32);
    assert!(offset_of!(PolicyOps, create) == 40 && offset_of!(PolicyOps, destroy) == 48);
    assert!(offset_of!(PolicyOps, enqueue) == 56 && offset_of!(PolicyOps, dequeue) == 64);
    assert!(MIN_OPS_BYTES == 72 && offset_of!(PolicyOps, stats) == 80);
    assert!(size_of::<PolicyOps>() == 88);
};
