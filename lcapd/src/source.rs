//! Where an MDT's records come from.
//!
//! A [`SourceUri`] names one; [`Upstream`] is what it stands for: one MDT whose log can be opened
//! any number of times and cleared. One open log is a [`ChangelogSource`]. Reading never blocks: a
//! source says what to wait for, and whoever reads waits for that and for its own signals.
//!
//! * [`device`]: the kernel's changelog device; [`llapi`]: the same through liblustreapi.
//! * [`sim`]: generated records; [`replay`]: a recorded [`trace`]. Both are [`emulated`] MDTs: what
//!   was cleared stays cleared, everything else is served again, also after a restart.
#![forbid(unsafe_code)]

pub mod device;
pub mod emulated;
mod end;
pub mod llapi;
pub mod relay;
pub mod replay;
pub mod sim;
pub mod trace;
pub mod uri;

use std::fmt;
use std::os::fd::RawFd;
use std::time::Instant;

use lcap_ffi::RecordIndex;

pub use uri::{BadSourceUri, SourceUri};

/// Read buffers are at least this large: no read may return less than a whole record.
pub const MIN_READ_BYTES: usize = 64 << 10;

/// What one read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes of whole packed records were appended to the buffer.
    Bytes(usize),
    /// Nothing now. The log's end was reached if `at_end`; read again after the wait.
    Wait {
        /// What to wait for.
        on: WaitFor,
        /// Every record that existed when the source was opened, or when
        /// [`ask_end`](ChangelogSource::ask_end) was last called, has been read.
        at_end: bool,
    },
    /// Records are gone that this source knows of; `last` is zero if it is not known how many.
    Lost {
        /// First index that is missing.
        first: RecordIndex,
        /// Last index that is missing, or zero.
        last: RecordIndex,
    },
    /// The log's end, and this open log will never give more although the MDT may: pause, then
    /// open another at the next index. (A kernel that cannot follow.)
    Ended,
}

/// What a source waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The descriptor becoming readable.
    Readable(RawFd),
    /// The descriptor becoming readable, or a moment, whichever comes first.
    ReadableUntil(RawFd, Instant),
    /// A moment.
    Until(Instant),
    /// Nothing: there will be no more records in this source's life.
    Never,
}

/// What went wrong with a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file or device could not be used.
    #[error("{action} {what}")]
    Io {
        /// `open`, `read`, ….
        action: &'static str,
        /// Path or device.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A library that is needed at run time is not there.
    #[error("{0}")]
    Library(String),
    /// A kind of source that this build has not got.
    #[error("{0}: relaying from another lcapd is not built yet")]
    Unsupported(String),
    /// Of this MDT, only the list of HSM actions is read.
    #[error("hsm-actions: gives no changelog records")]
    NoChangelog,
    /// The bytes are not what they should be.
    #[error("{what}: {problem}")]
    Malformed {
        /// File or device, and where in it.
        what: String,
        /// What is wrong there.
        problem: String,
    },
}

/// What a clear was answered with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClearError {
    /// The MDT does not know our changelog user (any more), or the index was lower than before.
    #[error("the MDT does not know changelog user {user}, or had cleared further already")]
    NoUser {
        /// The user.
        user: String,
    },
    /// The index is beyond the newest record.
    #[error("index {0} is beyond the newest record")]
    OutOfRange(RecordIndex),
    /// Worth trying again.
    #[error("{what}")]
    Retry {
        /// What was tried, on what.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// One open log, read forward. Dropping it closes it.
pub trait ChangelogSource: fmt::Debug + Send {
    /// Appends whole packed records to `buf`, byte for byte as they are, at most as many as fit
    /// its free capacity (at least [`MIN_READ_BYTES`]). Does not block.
    ///
    /// # Errors
    /// After an error the source is of no more use; open another.
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError>;

    /// Somebody wants to know the present end: from now on `at_end` is true only once every record
    /// that exists at this moment has been read. Where finding that out costs the MDT something,
    /// it is done only after this call (and once after opening).
    fn ask_end(&mut self) {}
}

/// One MDT's log: opened any number of times, cleared by one.
pub trait Upstream: fmt::Debug + Send + Sync {
    /// Opens the log at the first record with an index of at least `from`.
    ///
    /// # Errors
    /// If it cannot be opened now; the caller retries with back-off.
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError>;

    /// Whether it numbers its records without gaps, as a real MDT does: then a missing index is a
    /// lost record.
    fn is_dense(&self) -> bool {
        true
    }

    /// Tells the MDT that records up to and including `upto` may go. May block for a second.
    /// Never called with index zero, which would mean everything.
    ///
    /// # Errors
    /// [`ClearError`]; the MDT keeps the records then.
    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError>;
}
