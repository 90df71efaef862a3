//! Runs a module without lcapd, for its tests: a policy of the same crate, or a built `.so`.
//!
//! It goes through the same C table as lcapd and makes the same checks: each token decided once, made-up
//! records well formed with the lowest index of their tokens, nothing held after a flush.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::time::Duration;

use lcap_ffi::policy::{
    self as abi, EntryFn, PolicyHost, PolicyOps, PolicyOut, PolicyReader, PolicyRecord,
};
use lcap_ffi::record::split_len;
use lcap_ffi::{Record, RecordIndex};

use crate::glue::Table;
use crate::policy::{Nanos, Policy};

/// Few, so that portions are tested too.
const ROOM: usize = 7;

/// A module at work.
pub struct Harness {
    ops: PolicyOps,
    state: *mut c_void,
    /// A raw pointer and not a box: the module holds a copy of it.
    host: *mut TestHost,
    held: BTreeMap<u64, (u32, Box<[u8]>)>,
    next_token: u64,
    now: Nanos,
    wake_at: Option<Nanos>,
}

/// What the module decided on one record, or on several at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// It came out.
    Emitted {
        /// The packed record.
        record: Vec<u8>,
        /// Key for the lanes of a queue, 0 for none.
        route: u64,
        /// Indexes of the records that it stands for.
        indexes: Vec<u64>,
    },
    /// It was dropped.
    Dropped {
        /// Its index.
        index: u64,
    },
}

#[repr(C)]
struct TestHost {
    head: PolicyHost,
    mdts: Vec<CString>,
    errors: Vec<String>,
}

unsafe extern "C" fn mdt_name(host: *const PolicyHost, mdt: u32) -> *const c_char {
    // SAFETY: modules have the pointer that `Harness` gave them: the head of a `TestHost`.
    let host = unsafe { &*host.cast::<TestHost>() };
    host.mdts.get(mdt as usize).map_or(ptr::null(), |name| name.as_ptr())
}

unsafe extern "C" fn log(host: *const PolicyHost, level: c_int, text: *const c_char) {
    if level == abi::log_level::ERROR && !text.is_null() {
        // SAFETY: as in `mdt_name`, and nobody else has a reference during the module's call; the
        // text is a C string.
        let (host, text) =
            unsafe { (&mut *host.cast::<TestHost>().cast_mut(), CStr::from_ptr(text)) };
        host.errors.push(text.to_string_lossy().into_owned());
    }
}

impl Harness {
    /// An instance of a policy, with its options.
    ///
    /// # Errors
    /// What the module says if it cannot be created.
    pub fn of<P: Policy>(config: serde_json::Value) -> Result<Self, String> {
        Self::new(Table::of::<P>(c"0").ops(), &config)
    }

    /// An instance of a built module, with its options. Its options are not checked against its
    /// schema; lcapd does that.
    ///
    /// # Errors
    /// If it cannot be loaded or created.
    pub fn load(path: &Path, config: &serde_json::Value) -> Result<Self, String> {
        // SAFETY: running its initialisers is what loading a module means; the caller wants it.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
        // SAFETY: the symbol's type is fixed by the contract.
        let entry = unsafe { library.get::<EntryFn>(abi::ENTRY_SYMBOL) }
            .map(|symbol| *symbol)
            .map_err(|e| e.to_string())?;
        std::mem::forget(library);
        // SAFETY: the function of a library that stays mapped.
        let table = unsafe { entry() };
        // SAFETY: null, or a table that begins with ABI and size.
        let Some((theirs, size)) = (unsafe { table.as_ref().map(|t| (t.abi, t.size)) }) else {
            return Err("no table".to_owned());
        };
        if theirs != abi::ABI || (size as usize) < size_of::<PolicyOps>() {
            return Err(format!("table of ABI {theirs} with {size} bytes"));
        }
        // SAFETY: a table of at least our size.
        Self::new(unsafe { *table }, config)
    }

    fn new(ops: PolicyOps, config: &serde_json::Value) -> Result<Self, String> {
        let host = Box::new(TestHost {
            head: PolicyHost {
                abi: abi::ABI,
                size: u32::try_from(size_of::<PolicyHost>()).unwrap_or(0),
                n_mdts: 2,
                reserved: 0,
                mdt_name: Some(mdt_name),
                log: Some(log),
            },
            mdts: vec![c"lustre-MDT0000".into(), c"lustre-MDT0001".into()],
            errors: Vec::new(),
        });
        let mut this = Self {
            ops,
            state: ptr::null_mut(),
            host: Box::into_raw(host),
            held: BTreeMap::new(),
            next_token: 1000,
            now: Nanos(1_000_000_000),
            wake_at: None,
        };
        let config = CString::new(config.to_string()).map_err(|e| e.to_string())?;
        let create = ops.create.ok_or("no create()")?;
        let mut state = ptr::null_mut();
        // SAFETY: the module's own function; all arguments live during the call, the host longer.
        let rc = unsafe { create(config.as_ptr(), this.host.cast(), &raw mut state) };
        if rc < 0 {
            this.ops.destroy = None; // not owed
            return Err(this.errors().pop().unwrap_or_else(|| format!("create() returned {rc}")));
        }
        this.state = state;
        Ok(this)
    }

    /// Hands in one record of the first MDT.
    ///
    /// # Panics
    /// If the module refuses it.
    pub fn push(&mut self, record: &[u8]) {
        if let Err(error) = self.push_all(0, [record]) {
            panic!("{error}");
        }
    }

    /// Hands in records of an MDT (0 or 1) in one call.
    ///
    /// # Errors
    /// What the module returned or said.
    pub fn push_all<'a>(
        &mut self,
        mdt: u32,
        records: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), String> {
        let first = self.next_token;
        for record in records {
            self.held.insert(self.next_token, (mdt, record.into()));
            self.next_token += 1;
        }
        let lent = |(&token, (mdt, record)): (&u64, &(u32, Box<[u8]>))| PolicyRecord {
            token,
            rec: record.as_ptr().cast(),
            size: u32::try_from(record.len()).unwrap_or(u32::MAX),
            mdt: *mdt,
        };
        let list: Vec<PolicyRecord> = self.held.range(first..).map(lent).collect();
        let enqueue = self.ops.enqueue.ok_or("no enqueue()")?;
        if list.is_empty() {
            return Ok(());
        }
        // SAFETY: a live instance; the list lives during the call, the records until they are decided.
        let rc = unsafe { enqueue(self.state, list.as_ptr(), list.len(), self.now.0) };
        self.check(rc, "enqueue").map(|_| ())
    }

    /// Lets time pass.
    pub fn advance(&mut self, span: Duration) {
        self.now = self.now + span;
    }

    /// The present moment.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// When the module wants to be called again.
    pub fn wake_at(&self) -> Option<Nanos> {
        self.wake_at
    }

    /// Records that the module holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Lowest index of the records that the module holds.
    pub fn lowest_held(&self) -> Option<u64> {
        let index = |record: &[u8]| split_len(record).map_or(0, |(_, index)| index.get());
        self.held.values().map(|(_, record)| index(record)).min()
    }

    /// All decisions that are ready.
    ///
    /// # Errors
    /// What the module returned or said, or what it did against the contract.
    pub fn pull(&mut self) -> Result<Vec<Decided>, String> {
        self.dequeue(0)
    }

    /// All decisions, with nothing held back.
    ///
    /// # Errors
    /// As [`Harness::pull`], or if records are still held.
    pub fn flush(&mut self) -> Result<Vec<Decided>, String> {
        let decided = self.dequeue(abi::FLUSH)?;
        if self.held.is_empty() {
            Ok(decided)
        } else {
            Err(format!("{} records are still held after a flush", self.held.len()))
        }
    }

    /// Asks up to where the first MDT may be cleared.
    ///
    /// # Errors
    /// What the module returned or said.
    pub fn clear(&mut self, readers: &[(&str, u64)], proposed: u64) -> Result<u64, String> {
        let Some(clear) = self.ops.clear else { return Ok(proposed) };
        let names: Vec<CString> =
            readers.iter().filter_map(|(name, _)| CString::new(*name).ok()).collect();
        let list: Vec<PolicyReader> = names
            .iter()
            .zip(readers)
            .map(|(name, (_, watermark))| PolicyReader {
                name: name.as_ptr(),
                watermark: *watermark,
            })
            .collect();
        let mut upto = proposed;
        // SAFETY: a live instance; names and list live during the call.
        let rc =
            unsafe { clear(self.state, 0, list.as_ptr(), list.len(), proposed, &raw mut upto) };
        self.check(rc, "clear").map(|_| upto)
    }

    /// The module's own figures, if it has any.
    pub fn stats(&mut self) -> serde_json::Value {
        let Some(stats) = self.ops.stats else { return serde_json::Value::Null };
        let mut json = vec![0_u8; 16 << 10];
        // SAFETY: a live instance; `json` has `len` writable bytes.
        let n = unsafe { stats(self.state, json.as_mut_ptr().cast(), json.len()) };
        let text = usize::try_from(n).ok().and_then(|n| json.get(..n));
        text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    /// What the module says of itself.
    pub fn describe(&self) -> serde_json::Value {
        let Some(describe) = self.ops.describe else { return serde_json::Value::Null };
        // SAFETY: may be called at any time.
        let text = unsafe { describe() };
        if text.is_null() {
            return serde_json::Value::Null;
        }
        // SAFETY: not null: a C string that lives as long as the library.
        let text = unsafe { CStr::from_ptr(text) };
        serde_json::from_slice(text.to_bytes()).unwrap_or_default()
    }

    /// Takes the lines that the module has logged at level ERROR.
    pub fn errors(&mut self) -> Vec<String> {
        // SAFETY: made by `Box::into_raw`, freed in `drop` only, and no call is under way.
        std::mem::take(unsafe { &mut (*self.host).errors })
    }

    fn check(&mut self, rc: c_int, call: &str) -> Result<usize, String> {
        usize::try_from(rc)
            .map_err(|_| self.errors().pop().unwrap_or_else(|| format!("{call}() returned {rc}")))
    }

    fn dequeue(&mut self, flags: u32) -> Result<Vec<Decided>, String> {
        let dequeue = self.ops.dequeue.ok_or("no dequeue()")?;
        let mut decided = Vec::new();
        loop {
            let mut room = [PolicyOut::EMPTY; ROOM];
            let mut wake = u64::MAX;
            // SAFETY: a live instance; room for ROOM entries.
            let rc = unsafe {
                dequeue(self.state, self.now.0, flags, room.as_mut_ptr(), ROOM, &raw mut wake)
            };
            let n = self.check(rc, "dequeue")?;
            for entry in room.get(..n).ok_or("more decisions than there was room for")? {
                self.decide(entry, &mut decided)?;
            }
            self.wake_at = (wake != u64::MAX).then_some(Nanos(wake));
            if n < ROOM {
                return Ok(decided);
            }
        }
    }

    fn decide(&mut self, entry: &PolicyOut, decided: &mut Vec<Decided>) -> Result<(), String> {
        let n = entry.count as usize;
        if n == 0 || n > self.held.len() {
            return Err(format!("a decision on {n} tokens while {} are held", self.held.len()));
        }
        let tokens: Vec<u64> = if entry.tokens.is_null() {
            (entry.token..).take(n).collect()
        } else {
            // SAFETY: the module vouches for `count` tokens until its next call.
            unsafe { std::slice::from_raw_parts(entry.tokens, n) }.to_vec()
        };
        let mut records = Vec::new();
        for token in tokens {
            let record = self.held.remove(&token);
            records.push(record.ok_or(format!("token {token} is not held"))?);
        }
        let index = |record: &[u8]| split_len(record).map_or(0, |(_, index)| index.get());
        let indexes: Vec<u64> = records.iter().map(|(_, record)| index(record)).collect();
        match (entry.verdict, entry.rec.is_null()) {
            (abi::DROP, _) => {
                decided.extend(indexes.into_iter().map(|index| Decided::Dropped { index }));
            }
            (abi::EMIT, true) => decided.extend(records.iter().map(|(_, record)| {
                let indexes = vec![index(record)];
                Decided::Emitted { record: record.to_vec(), route: entry.route, indexes }
            })),
            (abi::EMIT, false) => {
                let size = entry.rec_size as usize;
                // SAFETY: the module vouches for `rec_size` bytes until its next call.
                let record = unsafe { std::slice::from_raw_parts(entry.rec.cast::<u8>(), size) };
                let whole = split_len(record).map_err(|e| e.to_string())?;
                let lowest = indexes.iter().min().copied().unwrap_or(0);
                if whole != (size, RecordIndex::new(lowest)) {
                    return Err(format!(
                        "a record of size and index {whole:?}, not {size}, {lowest}"
                    ));
                }
                if records.windows(2).any(|pair| pair[0].0 != pair[1].0) {
                    return Err("a record for tokens of several MDTs".to_owned());
                }
                let record = record.to_vec();
                decided.push(Decided::Emitted { record, route: entry.route, indexes });
            }
            (verdict, _) => return Err(format!("verdict {verdict} is unknown")),
        }
        Ok(())
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(destroy) = self.ops.destroy {
            // SAFETY: made by `create` of the same table, destroyed once.
            unsafe { destroy(self.state) };
        }
        // SAFETY: made by `Box::into_raw` in `new`; the module may no longer use it.
        drop(unsafe { Box::from_raw(self.host) });
    }
}

impl std::fmt::Debug for Harness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

/// The records that came out, in order.
///
/// # Panics
/// If one of them is malformed; the harness has checked that they are not.
pub fn emitted(decided: &[Decided]) -> Vec<Record<'_>> {
    let records = decided.iter().filter_map(|one| match one {
        Decided::Emitted { record, .. } => Some(record),
        Decided::Dropped { .. } => None,
    });
    records
        .map(|record| match lcap_ffi::record::split_first(record) {
            Ok((record, _)) => record,
            Err(error) => panic!("{error}"),
        })
        .collect()
}
