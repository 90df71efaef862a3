//! Between the C table and the trait: the only `unsafe` of the SDK besides [`Taken`] and the test harness.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::{Mutex, OnceLock, PoisonError};

use lcap_ffi::RecordIndex;
use lcap_ffi::policy::{self as abi, PolicyHost, PolicyOps, PolicyOut, PolicyReader, PolicyRecord};

use crate::options::description;
use crate::out::Out;
use crate::policy::{Failure, Host, Nanos, Policy, Reader, Records};
use crate::taken::Taken;

/// A module's table. Made by [`crate::export_policy!`].
#[derive(Debug)]
pub struct Table(PolicyOps);

// SAFETY: the table is constant, and its functions may be called from any thread.
unsafe impl Sync for Table {}

impl Table {
    /// The table of a policy.
    pub const fn of<P: Policy>(version: &'static CStr) -> Self {
        let shared = if P::SHARED { abi::SHARED } else { 0 };
        let verbatim = if P::VERBATIM { abi::VERBATIM } else { 0 };
        Self(PolicyOps {
            abi: abi::ABI,
            #[allow(clippy::cast_possible_truncation)] // 88 bytes
            size: size_of::<PolicyOps>() as u32,
            name: P::NAME.as_ptr(),
            version: version.as_ptr(),
            // Without looking back records are lent for the call only, so no pointer can be kept.
            flags: if P::LOOKS_BACK { 0 } else { abi::NO_POINTERS } | shared | verbatim,
            describe: Some(describe::<P>),
            create: Some(create::<P>),
            destroy: Some(destroy::<P>),
            enqueue: Some(enqueue::<P>),
            dequeue: Some(dequeue::<P>),
            clear: Some(clear::<P>),
            stats: Some(stats::<P>),
        })
    }

    /// For the host.
    pub fn as_ptr(&self) -> *const PolicyOps {
        &raw const self.0
    }

    #[cfg(feature = "harness")]
    pub(crate) fn ops(&self) -> PolicyOps {
        self.0
    }
}

/// An instance, behind the host's `state` pointer.
struct Shell<P> {
    policy: P,
    host: Host,
    out: Out,
    wake: Option<Nanos>,
    /// Empty unless the policy looks back.
    taken: Taken,
}

/// The bytes of a record that the host lends.
#[inline]
pub(crate) fn record_bytes(raw: &PolicyRecord) -> &[u8] {
    // SAFETY: `raw` comes from the host's array (`Records::new` is private), whose records are valid
    // at least until `enqueue` returns; the borrow of `raw` ends before.
    unsafe { slice::from_raw_parts(raw.rec.cast::<u8>(), raw.size as usize) }
}

pub(crate) fn host_n_mdts(host: &Host) -> u32 {
    // SAFETY: null, or the host's struct, which is valid as long as the instance.
    unsafe { host.raw.as_ref() }.map_or(0, |raw| raw.n_mdts)
}

pub(crate) fn host_mdt_name(host: &Host, mdt: u32) -> Option<String> {
    // SAFETY: as in `host_n_mdts`.
    let mdt_name = unsafe { host.raw.as_ref() }?.mdt_name?;
    // SAFETY: the host's own function with its own pointer.
    let name = unsafe { mdt_name(host.raw, mdt) };
    if name.is_null() {
        return None;
    }
    // SAFETY: not null: a C string that is valid as long as the instance.
    unsafe { CStr::from_ptr(name) }.to_str().ok().map(str::to_owned)
}

pub(crate) fn host_log(host: &Host, level: c_int, line: &CStr) {
    // SAFETY: as in `host_n_mdts`.
    if let Some(log) = unsafe { host.raw.as_ref() }.and_then(|raw| raw.log) {
        // SAFETY: the host's own function with its own pointer; `line` lives during the call.
        unsafe { log(host.raw, level, line.as_ptr()) };
    }
}

/// Runs a module's code: a failure is logged and becomes `-EIO`, a panic `-ENOTRECOVERABLE`.
fn guarded(host: &Host, body: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(rc)) => rc,
        Ok(Err(failure)) => {
            host.error(&failure.0);
            -libc::EIO
        }
        Err(panic) => {
            host.error(&format!("panic: {}", panic_text(&*panic)));
            -libc::ENOTRECOVERABLE
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else {
        panic.downcast_ref::<String>().map_or("of an unknown kind", String::as_str)
    }
}

unsafe extern "C" fn describe<P: Policy>() -> *const c_char {
    // One static for all types: only a test binary has several.
    static MADE: OnceLock<Mutex<HashMap<TypeId, CString>>> = OnceLock::new();
    let json = catch_unwind(|| description(P::SUMMARY, &P::options()).to_string());
    let json = json.ok().and_then(|json| CString::new(json).ok()).unwrap_or_else(|| c"{}".into());
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    // The buffer of a CString stays where it is when the map grows, and entries are never removed.
    made.entry(TypeId::of::<P>()).or_insert(json).as_ptr()
}

unsafe extern "C" fn create<P: Policy>(
    config_json: *const c_char,
    host: *const PolicyHost,
    state: *mut *mut c_void,
) -> c_int {
    let host = Host { raw: host };
    if config_json.is_null() || state.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: not null; a C string that is valid during the call (contract).
    let json = unsafe { CStr::from_ptr(config_json) }.to_bytes();
    let made = catch_unwind(AssertUnwindSafe(|| {
        let config =
            serde_json::from_slice(json).map_err(|error| Failure::new(error.to_string()))?;
        P::create(config, &host)
    }));
    match made {
        Ok(Ok(policy)) => {
            let (out, taken) = (Out::default(), Taken::default());
            let shell = Shell { policy, host, out, wake: None, taken };
            // SAFETY: not null, writable by contract.
            unsafe { state.write(Box::into_raw(Box::new(shell)).cast()) };
            0
        }
        Ok(Err(failure)) => {
            host.error(&failure.0);
            -libc::EINVAL
        }
        Err(panic) => {
            host.error(&format!("panic: {}", panic_text(&*panic)));
            -libc::ENOTRECOVERABLE
        }
    }
}

/// The instance behind `state`.
///
/// # Safety
/// `state` came from `create::<P>`, is not destroyed, and no other call has it.
unsafe fn shell<'a, P: Policy>(state: *mut c_void) -> &'a mut Shell<P> {
    // SAFETY: the caller's promise.
    unsafe { &mut *state.cast::<Shell<P>>() }
}

unsafe extern "C" fn destroy<P: Policy>(state: *mut c_void) {
    if state.is_null() {
        return;
    }
    // SAFETY: made by `Box::into_raw` in `create::<P>`; the host destroys an instance once.
    let shell = unsafe { Box::from_raw(state.cast::<Shell<P>>()) };
    // A panic in a destructor must not cross into the host.
    drop(catch_unwind(AssertUnwindSafe(move || drop(shell))));
}

unsafe extern "C" fn enqueue<P: Policy>(
    state: *mut c_void,
    recs: *const PolicyRecord,
    n: usize,
    now_ns: u64,
) -> c_int {
    // SAFETY: an instance of this table, one call at a time (contract).
    let shell = unsafe { shell::<P>(state) };
    // SAFETY: `n` records, valid during the call (contract).
    let records = unsafe { slice::from_raw_parts(recs, n) };
    let Shell { policy, host, taken, .. } = shell;
    if P::LOOKS_BACK {
        // SAFETY: the table does not say NO_POINTERS, so they are valid until they are decided; all
        // decisions pass `dequeue`.
        unsafe { taken.take(records) };
    }
    let records = Records::new(records, taken);
    guarded(host, || policy.enqueue(records, Nanos(now_ns)).map(|()| 0))
}

unsafe extern "C" fn dequeue<P: Policy>(
    state: *mut c_void,
    now_ns: u64,
    flags: u32,
    out: *mut PolicyOut,
    max: usize,
    wake_ns: *mut u64,
) -> c_int {
    // SAFETY: an instance of this table, one call at a time (contract).
    let shell = unsafe { shell::<P>(state) };
    // SAFETY: room for `max` entries, zeroed by the host (contract).
    let room = unsafe { slice::from_raw_parts_mut(out, max) };
    let Shell { policy, host, out, wake, taken } = shell;
    let rc = guarded(host, || {
        let mut n = 0;
        // What did not fit last time comes first. The host's pointers into `out` are of no use to it
        // any more: they were good until this call.
        if out.is_taken() {
            out.clear();
            *wake = policy.dequeue(Nanos(now_ns), flags & abi::FLUSH != 0, out)?;
        }
        n += out.take(room);
        if P::LOOKS_BACK {
            // SAFETY: what `out` has just written, with pointers to its own tokens.
            unsafe { taken.decided(room.get(..n).unwrap_or_default()) };
        }
        c_int::try_from(n).map_err(|_| Failure::new("more decisions than an int can count"))
    });
    if let Some(wake) = *wake {
        // SAFETY: writable during the call (contract).
        unsafe { wake_ns.write(wake.0) };
    }
    rc
}

unsafe extern "C" fn clear<P: Policy>(
    state: *mut c_void,
    mdt: u32,
    readers: *const PolicyReader,
    n: usize,
    proposed: u64,
    upto: *mut u64,
) -> c_int {
    // SAFETY: an instance of this table, one call at a time (contract).
    let shell = unsafe { shell::<P>(state) };
    let raw = if n == 0 {
        &[]
    } else {
        // SAFETY: `n` readers, valid during the call (contract).
        unsafe { slice::from_raw_parts(readers, n) }
    };
    let list: Vec<Reader<'_>> = raw
        .iter()
        .map(|reader| Reader {
            // SAFETY: a C string that is valid during the call (contract).
            name: unsafe { CStr::from_ptr(reader.name) }.to_str().unwrap_or_default(),
            watermark: RecordIndex::new(reader.watermark),
        })
        .collect();
    guarded(&shell.host, || {
        let answer = shell.policy.clear(mdt, &list, RecordIndex::new(proposed));
        // SAFETY: writable during the call (contract).
        unsafe { upto.write(answer.get()) };
        Ok(0)
    })
}

unsafe extern "C" fn stats<P: Policy>(state: *mut c_void, json: *mut c_char, len: usize) -> c_int {
    // SAFETY: an instance of this table, one call at a time (contract).
    let shell = unsafe { shell::<P>(state) };
    guarded(&shell.host, || {
        let figures: serde_json::Map<String, serde_json::Value> =
            shell.policy.stats().into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
        let text = serde_json::Value::Object(figures).to_string();
        if text.len() >= len {
            return Ok(-libc::ENOSPC);
        }
        // SAFETY: `len` writable bytes (contract), more than the text has.
        let room = unsafe { slice::from_raw_parts_mut(json.cast::<u8>(), len) };
        room[..text.len()].copy_from_slice(text.as_bytes());
        room[text.len()] = 0;
        Ok(c_int::try_from(text.len()).unwrap_or(-libc::ENOSPC))
    })
}
