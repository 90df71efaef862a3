//! Policy modules: found, checked, loaded and called. The contract is `include/lcap_policy.h`.
//!
//! * [`Loader`] finds a file and checks who could have written it; [`Module`] is its code.
//! * An instance (private) calls it and turns what it says into checked [`Decision`]s.
//! * [`Chain`] runs a stream's modules one after another and knows which records are settled.
//!
//! Nothing here has a thread, a socket or a clock of its own, and only loading does I/O.
//! This file is the only one of the daemon with `unsafe` in it.

mod chain;
mod config;
mod figures;
mod inspect;
mod loader;
mod output;
mod schema;
mod window;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lcap_ffi::policy::{self as abi, PolicyHost, PolicyOps, PolicyOut, PolicyReader, PolicyRecord};
use lcap_ffi::record::MAX_RECORD_BYTES;
use lcap_ffi::{MdtName, RecordIndex};
use serde_json::Value;
use tracing::{debug, error, info, warn};

pub use chain::{Chain, Held, HeldBatch, ModuleState, ModuleStats};
pub use config::{OnError, PolicyConfig};
pub use figures::{CallWatch, ChainFigures, FiguresSlot, Noticed};
pub use inspect::{Inspection, inspect};
pub use loader::Loader;
pub use output::{ChainOutput, OutRecord, Part};

/// Decisions that a module may give at once.
const MAX_DECISIONS: usize = 1024;
/// Room for a module's own figures.
const MAX_STATS_BYTES: usize = 16 << 10;

/// A moment on the caller's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

/// Why a module cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// There is no such file.
    #[error("no policy module `{module}`{}", searched_text(searched))]
    NotFound {
        /// Name or path.
        module: String,
        /// Where it was looked for; empty for a path.
        searched: Vec<PathBuf>,
    },
    /// Somebody else could have written it.
    #[error("refusing to load a policy module: {} {problem}; to fix it: {fix}", path.display())]
    Untrusted {
        /// File or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// A command.
        fix: String,
    },
    /// The dynamic linker refused it.
    #[error("cannot load {}: {reason}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The linker's words.
        reason: String,
    },
    /// It is a library, but no module.
    #[error("{} is no policy module: {problem}", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// It was built for another contract.
    #[error("{} was built for policy ABI {theirs}, this lcapd has {}: rebuild it", path.display(), abi::ABI)]
    Abi {
        /// The file.
        path: PathBuf,
        /// Its ABI number.
        theirs: u32,
    },
    /// The configuration does not fit the module's schema.
    #[error("policy module `{module}`: {problem}")]
    Options {
        /// Its name.
        module: String,
        /// Which option, and what it may be.
        problem: String,
    },
    /// Its `create` failed.
    #[error("policy module `{module}` could not be set up: {reason}")]
    Create {
        /// Its name.
        module: String,
        /// Its own words, or its errno.
        reason: String,
    },
    /// It broke the contract or gave up, and `on_error` is `stop`.
    #[error("policy module `{module}` failed: {fault}")]
    Failed {
        /// Its name.
        module: String,
        /// What it did.
        fault: Fault,
    },
}

fn searched_text(searched: &[PathBuf]) -> String {
    if searched.is_empty() {
        return String::new();
    }
    let dirs: Vec<String> = searched.iter().map(|dir| dir.display().to_string()).collect();
    format!(" in {}", dirs.join(":"))
}

/// What an instance did that ends its use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A negative return value.
    #[error("{call}() returned {code} ({})", errno_text(*code))]
    Returned {
        /// Which function.
        call: &'static str,
        /// Its return value.
        code: c_int,
    },
    /// More decisions than there was room for.
    #[error("dequeue() claims {claimed} decisions where {max} fit")]
    TooMany {
        /// Its return value.
        claimed: c_int,
        /// The room it was given.
        max: usize,
    },
    /// Neither EMIT nor DROP.
    #[error("verdict {0} is unknown")]
    Verdict(u32),
    /// A decision on no token or on more than are held.
    #[error("a decision on {count} tokens while {held} are held")]
    Count {
        /// As it says.
        count: u32,
        /// Tokens that are undecided.
        held: usize,
    },
    /// A token that it does not hold: never given, or decided already.
    #[error("token {0} is not held: it was never given, or is decided already")]
    Token(u64),
    /// A list at an address where no list can be.
    #[error("the list of tokens is not aligned")]
    Alignment,
    /// A record of its own making that is none.
    #[error("the record that stands for token {token} is malformed: {problem}")]
    Record {
        /// The first token.
        token: u64,
        /// What is wrong.
        problem: String,
    },
    /// Undecided tokens after a flush.
    #[error("{0} records are still held after a flush")]
    Kept(usize),
}

fn errno_text(code: c_int) -> String {
    std::io::Error::from_raw_os_error(code.saturating_neg()).to_string()
}

/// The code of a module, loaded once and for good.
pub struct Module {
    path: PathBuf,
    name: String,
    version: String,
    ops: PolicyOps,
    summary: String,
    schema: Value,
}

// SAFETY: the table's functions may be called from any thread (contract), its strings were copied.
unsafe impl Send for Module {}
// SAFETY: as above; nothing in it changes after loading.
unsafe impl Sync for Module {}

impl Module {
    /// Loads `opened_as`, which is the file `path`, and checks its table.
    fn open(opened_as: &Path, path: &Path) -> Result<Self, PolicyError> {
        let path = path.to_owned();
        // SAFETY: running a library's initialisers is what loading a module means; the loader has
        // checked that only root or the daemon's user can have written it.
        let library = unsafe { libloading::Library::new(opened_as) }
            .map_err(|error| PolicyError::Open { path: path.clone(), reason: error.to_string() })?;
        let no_module = |problem: String| PolicyError::NotAModule { path: path.clone(), problem };
        // SAFETY: the symbol's type is fixed by the contract.
        let entry = unsafe { library.get::<abi::EntryFn>(abi::ENTRY_SYMBOL) }
            .map(|symbol| *symbol)
            .map_err(|_| no_module(format!("it does not export {}", abi::ENTRY_SYMBOL)))?;
        // Never unloaded: instances, thread-local destructors and strings may live in it.
        std::mem::forget(library);
        // SAFETY: the function of a library that stays mapped, with the contract's type.
        let table = unsafe { entry() };
        if table.is_null() || !table.is_aligned() {
            return Err(no_module("it gives no table: it cannot work here".to_owned()));
        }
        // SAFETY: not null, aligned; every version of the table begins with `abi` and `size`.
        let (theirs, size) = unsafe { ((*table).abi, (*table).size) };
        if theirs != abi::ABI {
            return Err(PolicyError::Abi { path, theirs });
        }
        let size = usize::try_from(size).unwrap_or(0);
        if size < abi::MIN_OPS_BYTES {
            return Err(no_module(format!(
                "its table has {size} bytes, {} are needed",
                abi::MIN_OPS_BYTES
            )));
        }
        let mut ops = PolicyOps {
            abi: 0,
            size: 0,
            name: ptr::null(),
            version: ptr::null(),
            flags: 0,
            describe: None,
            create: None,
            destroy: None,
            enqueue: None,
            dequeue: None,
            clear: None,
            stats: None,
        };
        // SAFETY: the table has `size` bytes by its own word, `ops` has its own size, and any bytes
        // of a table are valid for `PolicyOps`: integers, pointers, and optional functions.
        unsafe {
            ptr::copy_nonoverlapping(
                table.cast::<u8>(),
                ptr::from_mut(&mut ops).cast::<u8>(),
                size.min(size_of::<PolicyOps>()),
            );
        }
        let missing = [
            ("describe", ops.describe.is_none()),
            ("create", ops.create.is_none()),
            ("destroy", ops.destroy.is_none()),
            ("enqueue", ops.enqueue.is_none()),
            ("dequeue", ops.dequeue.is_none()),
        ];
        let missing: Vec<&str> =
            missing.iter().filter(|(_, none)| *none).map(|(n, _)| *n).collect();
        if !missing.is_empty() {
            return Err(no_module(format!("its table lacks {}", missing.join(", "))));
        }
        // SAFETY: null or a string that lives as long as the library (contract).
        let (name, version) = unsafe { (text(ops.name), text(ops.version)) };
        let name = name.ok_or_else(|| no_module("it has no name".to_owned()))?;
        // SAFETY: the function of a library that stays mapped; it may be called at any time. Its
        // string lives as long as the library.
        let described = unsafe { ops.describe.and_then(|describe| text(describe())) };
        let described: Value = serde_json::from_str(described.as_deref().unwrap_or("{}"))
            .map_err(|error| no_module(format!("describe() gives no JSON: {error}")))?;
        let summary =
            described.get("summary").and_then(Value::as_str).unwrap_or_default().to_owned();
        let schema = described.get("options").cloned().unwrap_or(Value::Bool(true));
        Ok(Self { path, name, version: version.unwrap_or_default(), ops, summary, schema })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its own name for itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// It has a say in clearing.
    pub fn has_clear(&self) -> bool {
        self.ops.clear.is_some()
    }

    /// Whether it wants one instance for all MDTs.
    pub fn is_shared(&self) -> bool {
        self.ops.flags & abi::SHARED != 0
    }

    /// It emits what it was given and nothing else. If not, one index may stand for different
    /// records from run to run.
    pub fn is_verbatim(&self) -> bool {
        self.ops.flags & abi::VERBATIM != 0
    }

    /// It keeps no pointer to a record: what it holds may be moved.
    fn keeps_no_pointers(&self) -> bool {
        self.ops.flags & abi::NO_POINTERS != 0
    }

    /// Checks a module's options against its schema.
    ///
    /// # Errors
    /// [`PolicyError::Options`].
    pub fn check_options(&self, config: &PolicyConfig) -> Result<(), PolicyError> {
        schema::check(&self.schema, &Value::Object(config.options.clone()))
            .map_err(|problem| PolicyError::Options { module: self.name.clone(), problem })
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Copies a C string.
///
/// # Safety
/// `from` is null or points to a string with a NUL.
unsafe fn text(from: *const c_char) -> Option<String> {
    if from.is_null() {
        return None;
    }
    // SAFETY: not null; the caller's promise.
    Some(unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned())
}

/// Which tokens a decision is on.
#[derive(Clone, Copy, Debug)]
enum Tokens<'a> {
    Run { first: u64, count: u32 },
    List(&'a [u64]),
}

impl Tokens<'_> {
    fn iter(self) -> impl Iterator<Item = u64> {
        let (run, list) = match self {
            Self::Run { first, count } => {
                (first..first.saturating_add(count.into()), [].as_slice())
            }
            Self::List(list) => (0..0, list),
        };
        run.chain(list.iter().copied())
    }
}

/// One checked entry of a module's answer. Whether the tokens are held is for the chain to say.
#[derive(Clone, Copy, Debug)]
struct Decision<'a> {
    emit: bool,
    tokens: Tokens<'a>,
    /// Takes the place of all of them.
    record: Option<&'a [u8]>,
    route: u64,
}

/// What the callbacks of `struct lcap_policy_host` find behind their first argument.
#[repr(C)]
struct HostSide {
    /// First, so that a pointer to it is a pointer to the whole.
    host: PolicyHost,
    module: String,
    mdts: Vec<CString>,
    last_error: Mutex<Option<String>>,
}

unsafe extern "C" fn host_mdt_name(host: *const PolicyHost, mdt: u32) -> *const c_char {
    // SAFETY: modules get `host` from `create` only, where it is the head of a live `HostSide`.
    let Some(side) = (unsafe { host.cast::<HostSide>().as_ref() }) else { return ptr::null() };
    let name = usize::try_from(mdt).ok().and_then(|mdt| side.mdts.get(mdt));
    name.map_or(ptr::null(), |name| name.as_ptr())
}

unsafe extern "C" fn host_log(host: *const PolicyHost, level: c_int, line: *const c_char) {
    // SAFETY: as in `host_mdt_name`; `line` is null or a C string by contract.
    let (side, line) = unsafe { (host.cast::<HostSide>().as_ref(), text(line)) };
    let (Some(side), Some(line)) = (side, line) else { return };
    let module = side.module.as_str();
    match level {
        abi::log_level::ERROR => {
            error!(module, "{line}");
            *side.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        }
        abi::log_level::WARN => warn!(module, "{line}"),
        abi::log_level::INFO => info!(module, "{line}"),
        _ => debug!(module, "{line}"),
    }
}

/// A module at work. Every call is timed, and everything that it answers is checked.
struct Instance {
    module: Arc<Module>,
    state: *mut c_void,
    /// `destroy` is owed.
    created: bool,
    /// A raw pointer and not a box: the module holds a copy of it.
    side: *mut HostSide,
    out: Vec<PolicyOut>,
    n_used: usize,
    records: Vec<PolicyRecord>,
    stage: usize,
    figures: Arc<ChainFigures>,
    busy_ns: u64,
    n_calls: u64,
}

// SAFETY: the contract lets an instance be called from any thread, one at a time, and every call
// takes `&mut self`. The pointers in `out` and `records` are not read between calls.
unsafe impl Send for Instance {}

impl Instance {
    /// Checks the options and makes an instance.
    fn create(
        module: &Arc<Module>,
        config: &PolicyConfig,
        mdts: &[MdtName],
        stage: usize,
        figures: &Arc<ChainFigures>,
    ) -> Result<Self, PolicyError> {
        module.check_options(config)?;
        let failed = |reason: String| PolicyError::Create { module: module.name.clone(), reason };
        let options = serde_json::to_string(&config.options).map_err(|e| failed(e.to_string()))?;
        // JSON escapes a NUL, and an MDT's name has none.
        let options = CString::new(options).map_err(|e| failed(e.to_string()))?;
        let names = mdts.iter().map(|mdt| CString::new(mdt.as_str()));
        let side = Box::new(HostSide {
            host: PolicyHost {
                abi: abi::ABI,
                size: u32::try_from(size_of::<PolicyHost>()).unwrap_or(0),
                n_mdts: u32::try_from(mdts.len()).unwrap_or(0),
                reserved: 0,
                mdt_name: Some(host_mdt_name),
                log: Some(host_log),
            },
            module: module.name.clone(),
            mdts: names.collect::<Result<_, _>>().map_err(|e| failed(e.to_string()))?,
            last_error: Mutex::new(None),
        });
        let mut this = Self {
            module: Arc::clone(module),
            state: ptr::null_mut(),
            created: false,
            side: Box::into_raw(side),
            out: vec![PolicyOut::EMPTY; MAX_DECISIONS],
            n_used: 0,
            records: Vec::new(),
            stage,
            figures: Arc::clone(figures),
            busy_ns: 0,
            n_calls: 0,
        };
        let Some(create) = module.ops.create else { return Err(failed("no create()".to_owned())) };
        let mut state = ptr::null_mut();
        // SAFETY: a function of a library that stays mapped; `options` lives during the call, the host
        // side until `drop`, after `destroy`; `state` is writable.
        let rc =
            unsafe { create(options.as_ptr(), this.side.cast::<PolicyHost>(), &raw mut state) };
        if rc < 0 {
            let said = this.last_error().unwrap_or_else(|| errno_text(rc));
            return Err(failed(said));
        }
        this.state = state;
        this.created = true;
        Ok(this)
    }

    /// The module's last line at level ERROR.
    fn last_error(&self) -> Option<String> {
        // SAFETY: made by `Box::into_raw` in `create`, freed in `drop` only.
        let side = unsafe { &*self.side };
        side.last_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Runs one call into the module.
    fn timed<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> T {
        let started = Instant::now();
        self.figures.watch.enter(self.stage, started);
        let answer = call(self);
        self.busy_ns += u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.n_calls += 1;
        self.figures.watch.leave();
        answer
    }

    /// Starts the list of records of the next [`Instance::enqueue`].
    fn start_records(&mut self) {
        self.records.clear();
    }

    /// Adds a record to it. The caller keeps its bytes in place until the token is decided, or, if
    /// the module keeps no pointers, until after `enqueue`.
    #[inline]
    fn add_record(&mut self, token: u64, mdt: u32, record: &[u8]) {
        // A record has at most `MAX_RECORD_BYTES`.
        #[allow(clippy::cast_possible_truncation)]
        let size = record.len() as u32;
        self.records.push(PolicyRecord { token, rec: record.as_ptr().cast(), size, mdt });
    }

    /// Hands the records over.
    fn enqueue(&mut self, now: Nanos) -> Result<(), Fault> {
        let Some(enqueue) = self.module.ops.enqueue else { return Ok(()) };
        let rc = self.timed(|this| {
            let records = &this.records;
            // SAFETY: a live instance, used by this thread only (`&mut self`); the array is valid
            // during the call, and the caller of `add_record` keeps the records in place.
            unsafe { enqueue(this.state, records.as_ptr(), records.len(), now.0) }
        });
        self.records.clear();
        if rc < 0 { Err(Fault::Returned { call: "enqueue", code: rc }) } else { Ok(()) }
    }

    /// Asks for decisions. They are read with [`Instance::decision`] until the next call.
    /// Returns their number, and whether there may be more.
    fn dequeue(&mut self, now: Nanos, flush: bool, wake: &mut u64) -> Result<(usize, bool), Fault> {
        let Some(dequeue) = self.module.ops.dequeue else { return Ok((0, false)) };
        if let Some(used) = self.out.get_mut(..self.n_used) {
            used.fill(PolicyOut::EMPTY);
        }
        self.n_used = 0;
        let max = self.out.len();
        let flags = if flush { abi::FLUSH } else { 0 };
        *wake = u64::MAX;
        let code = self.timed(|this| {
            // SAFETY: a live instance, used by this thread only; `out` has room for `max` entries.
            unsafe { dequeue(this.state, now.0, flags, this.out.as_mut_ptr(), max, wake) }
        });
        let n = usize::try_from(code).map_err(|_| Fault::Returned { call: "dequeue", code })?;
        if n > max {
            self.n_used = max;
            return Err(Fault::TooMany { claimed: code, max });
        }
        self.n_used = n;
        Ok((n, n == max))
    }

    /// Entry `nth` of the last answer. `held` is the number of undecided tokens.
    fn decision(&self, nth: usize, held: usize) -> Result<Decision<'_>, Fault> {
        let entry = self.out.get(nth).copied().unwrap_or(PolicyOut::EMPTY);
        let emit = match entry.verdict {
            abi::EMIT => true,
            abi::DROP => false,
            other => return Err(Fault::Verdict(other)),
        };
        let count = entry.count;
        let fits = usize::try_from(count).is_ok_and(|count| 0 < count && count <= held);
        if !fits {
            return Err(Fault::Count { count, held });
        }
        let tokens = if entry.tokens.is_null() {
            Tokens::Run { first: entry.token, count }
        } else if entry.tokens.is_aligned() {
            // SAFETY: not null, aligned; the module vouches for `count` tokens until its next call,
            // and the borrow of `self` rules that call out. `count` is no more than it was given.
            Tokens::List(unsafe { std::slice::from_raw_parts(entry.tokens, count as usize) })
        } else {
            return Err(Fault::Alignment);
        };
        let size = usize::try_from(entry.rec_size).unwrap_or(usize::MAX);
        let record = if entry.rec.is_null() || !emit {
            None
        } else if size > MAX_RECORD_BYTES {
            let token = tokens.iter().next().unwrap_or(entry.token);
            return Err(Fault::Record { token, problem: format!("it has {size} bytes") });
        } else {
            // SAFETY: not null; the module vouches for `rec_size` bytes until its next call.
            Some(unsafe { std::slice::from_raw_parts(entry.rec.cast::<u8>(), size) })
        };
        Ok(Decision { emit, tokens, record, route: entry.route })
    }

    /// Asks up to where an MDT may be cleared; `None` if the module does not care.
    fn clear(
        &mut self,
        mdt: u32,
        readers: &[(String, RecordIndex)],
        proposed: RecordIndex,
    ) -> Result<Option<RecordIndex>, Fault> {
        let Some(clear) = self.module.ops.clear else { return Ok(None) };
        let names: Vec<CString> = readers
            .iter()
            .map(|(name, _)| CString::new(name.as_str()).unwrap_or_default())
            .collect();
        let list: Vec<PolicyReader> = names
            .iter()
            .zip(readers)
            .map(|(name, (_, mark))| PolicyReader { name: name.as_ptr(), watermark: mark.get() })
            .collect();
        let mut upto = proposed.get();
        let code = self.timed(|this| {
            // SAFETY: a live instance, used by this thread only; names and list live during the call.
            unsafe {
                clear(this.state, mdt, list.as_ptr(), list.len(), proposed.get(), &raw mut upto)
            }
        });
        if code < 0 {
            return Err(Fault::Returned { call: "clear", code });
        }
        Ok(Some(RecordIndex::new(upto)))
    }

    /// The module's own figures.
    fn stats(&mut self) -> Value {
        let Some(stats) = self.module.ops.stats else { return Value::Null };
        let mut json = vec![0_u8; MAX_STATS_BYTES];
        let n = self.timed(|this| {
            // SAFETY: a live instance, used by this thread only; `json` has `len` writable bytes.
            unsafe { stats(this.state, json.as_mut_ptr().cast(), json.len()) }
        });
        let written = usize::try_from(n).ok().and_then(|n| json.get(..n));
        written.and_then(|json| serde_json::from_slice(json).ok()).unwrap_or(Value::Null)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(destroy) = self.module.ops.destroy
            && self.created
        {
            // SAFETY: made by `create` of the same library, destroyed once.
            unsafe { destroy(self.state) };
        }
        // SAFETY: made by `Box::into_raw` in `create`; the module may no longer use it.
        drop(unsafe { Box::from_raw(self.side) });
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("module", &self.module).finish_non_exhaustive()
    }
}
