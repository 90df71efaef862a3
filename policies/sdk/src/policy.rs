//! What a module implements, and what it is given.

use std::ffi::{CStr, CString};
use std::fmt;
use std::ops::Add;
use std::time::Duration;

use lcap_ffi::policy::{PolicyHost, PolicyRecord, log_level};
use lcap_ffi::record::split_first;
use lcap_ffi::{Record, RecordError, RecordIndex};
use serde::de::DeserializeOwned;

use crate::options::PolicyOption;
use crate::out::Out;
use crate::taken::Taken;

/// A policy: takes records, and decides on each of them once.
///
/// Its methods are called by one thread at a time. They must not block: while they run, their stream
/// stands still. A panic counts as a failure; lcapd goes on without the module, or stops the
/// stream, as its configuration says, and no record is lost.
pub trait Policy: Sized + Send + 'static {
    /// Short name.
    const NAME: &'static CStr;
    /// What it does, in one sentence.
    const SUMMARY: &'static str;
    /// One instance serves all MDTs of a stream; else there is one for each.
    const SHARED: bool = false;
    /// What comes out is what came in: it never emits a record of its own making, and drops none
    /// because another one makes up for it. Consumers then see nothing twice after a restart.
    const VERBATIM: bool = false;
    /// It looks at records again that it took in earlier calls and has not decided:
    /// [`Records::taken`]. lcapd then keeps the batches that they came in as they are; otherwise it may move
    /// the few that are held together and free the rest.
    const LOOKS_BACK: bool = false;
    /// Its options, as they stand in lcapd's configuration; [`crate::NoConfig`] if there are none.
    type Config: DeserializeOwned;

    /// Its options for the schema that lcapd checks the configuration against.
    fn options() -> Vec<PolicyOption> {
        Vec::new()
    }

    /// Makes an instance.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the configuration.
    fn create(config: Self::Config, host: &Host) -> Result<Self, Failure>;

    /// Takes records. Keep their tokens and what you need of them: the records themselves are
    /// lent for this call, unless [`Policy::LOOKS_BACK`].
    ///
    /// # Errors
    /// After an error the instance is not used any more.
    fn enqueue(&mut self, records: Records<'_>, now: Nanos) -> Result<(), Failure>;

    /// Decides on what is ready, in the order in which it is to be emitted; with `flush` on
    /// everything. Returns when to be called again at the latest, if records are held.
    ///
    /// # Errors
    /// After an error the instance is not used any more.
    fn dequeue(&mut self, now: Nanos, flush: bool, out: &mut Out)
    -> Result<Option<Nanos>, Failure>;

    /// Up to where an MDT may be cleared: lower than `proposed` holds back. Without readers, higher
    /// allows clearing what nobody has read, as far as it came out of the chain.
    fn clear(&mut self, mdt: u32, readers: &[Reader<'_>], proposed: RecordIndex) -> RecordIndex {
        let _ = (mdt, readers);
        proposed
    }

    /// Figures of its own, by name.
    fn stats(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Why a module cannot go on; the text goes to lcapd's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl Failure {
    /// A failure with that text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        Self(error.to_string())
    }
}

/// A moment on the host's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Add<Duration> for Nanos {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A registered reader, in [`Policy::clear`].
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// Its name.
    pub name: &'a str,
    /// Every record up to it is settled for this reader.
    pub watermark: RecordIndex,
}

/// Records on their way in, with consecutive tokens.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: std::slice::Iter<'a, PolicyRecord>,
    taken: &'a Taken,
}

impl<'a> Records<'a> {
    pub(crate) fn new(list: &'a [PolicyRecord], taken: &'a Taken) -> Self {
        Self { rest: list.iter(), taken }
    }

    /// All records that are not decided, these included; none unless [`Policy::LOOKS_BACK`].
    pub fn taken(&self) -> &'a Taken {
        self.taken
    }

    /// Token of the first of the records that are left.
    pub fn first_token(&self) -> Option<u64> {
        self.rest.as_slice().first().map(|record| record.token)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Item<'a>;

    #[inline]
    fn next(&mut self) -> Option<Item<'a>> {
        let raw = self.rest.next()?;
        Some(Item { token: raw.token, mdt: raw.mdt, bytes: crate::glue::record_bytes(raw) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rest.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}

/// One record on its way in.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// What to decide on.
    pub token: u64,
    /// Number of its MDT, for [`Host::mdt_name`].
    pub mdt: u32,
    /// The packed record.
    pub bytes: &'a [u8],
}

impl<'a> Item<'a> {
    /// The record, parsed.
    ///
    /// # Errors
    /// Never with lcapd, which checks records when they come in.
    #[inline]
    pub fn record(&self) -> Result<Record<'a>, RecordError> {
        split_first(self.bytes).map(|(record, _)| record)
    }
}

/// What the host offers to an instance. Valid as long as the instance is.
#[derive(Clone, Copy)]
pub struct Host {
    pub(crate) raw: *const PolicyHost,
}

impl Host {
    /// MDTs that this instance serves: numbers 0 to `n_mdts() - 1`.
    pub fn n_mdts(&self) -> u32 {
        crate::glue::host_n_mdts(self)
    }

    /// Name of an MDT, e.g. `lustre-MDT0000`.
    pub fn mdt_name(&self, mdt: u32) -> Option<String> {
        crate::glue::host_mdt_name(self, mdt)
    }

    /// A line for lcapd's log: somebody must act.
    pub fn error(&self, text: &str) {
        self.log(log_level::ERROR, text);
    }

    /// A line for lcapd's log: something is wrong, the module copes.
    pub fn warn(&self, text: &str) {
        self.log(log_level::WARN, text);
    }

    /// A line for lcapd's log.
    pub fn info(&self, text: &str) {
        self.log(log_level::INFO, text);
    }

    /// A line for lcapd's log, for authors.
    pub fn debug(&self, text: &str) {
        self.log(log_level::DEBUG, text);
    }

    fn log(&self, level: i32, text: &str) {
        let clean: String = text.chars().filter(|&c| c != '\0').collect();
        if let Ok(line) = CString::new(clean) {
            crate::glue::host_log(self, level, &line);
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("n_mdts", &self.n_mdts()).finish()
    }
}
