//! One thread per MDT: source → batches → log. It does nothing else that can block.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lcap_ffi::{MdtName, RecordIndex};
use tracing::{info, warn};

use crate::batch::{Batch, BatchError};
use crate::follower::{REOPEN_PAUSE, sleep_on, trim};
use crate::log::{Entry, MdtLog};
use crate::source::{ReadOutcome, SourceError, Upstream, WaitFor};
use crate::wake::Waker;

/// First pause after a source failed; doubled each time up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause before a source is tried again.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// What a reader thread tells the others.
#[derive(Debug, Default)]
pub struct ReaderStats {
    /// Records read in this epoch.
    pub records: AtomicU64,
    /// Bytes read in this epoch.
    pub bytes: AtomicU64,
    /// Times that the source failed.
    pub errors: AtomicU64,
    /// Newest index read.
    pub read_index: AtomicU64,
    /// Gaps seen.
    pub gaps: AtomicU64,
    /// The source has nothing more at present.
    pub at_end: AtomicBool,
    /// Why there is nothing to read, if the source is away.
    trouble: Mutex<Option<String>>,
}

impl ReaderStats {
    /// Why the source is away; `None` if it is not.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) -> bool {
        let mut now = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = now.is_some() != trouble.is_some();
        *now = trouble;
        changed
    }
}

/// Reads one MDT.
#[derive(Debug)]
pub struct Reader {
    /// The MDT.
    pub mdt: MdtName,
    /// Where it is read from.
    pub upstream: Arc<dyn Upstream>,
    /// Where records go.
    pub log: Arc<MdtLog>,
    /// What others may know.
    pub stats: Arc<ReaderStats>,
    /// Size of a read buffer.
    pub read_bytes: usize,
    /// Wakes this thread, to stop it.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

impl Reader {
    /// Reads until told to stop. A source that fails is opened again, later and later.
    pub fn run(&mut self) {
        let mut backoff = MIN_BACKOFF;
        while !self.stopped() {
            let (next, _) = self.log.head();
            let started = Instant::now();
            let Err(error) = self.read_from(next) else { return };
            self.stats.errors.fetch_add(1, Ordering::Relaxed);
            if started.elapsed() > MAX_BACKOFF {
                backoff = MIN_BACKOFF; // it had worked for a while
            }
            if self.stats.set_trouble(Some(chain(&error))) {
                warn!(mdt = %self.mdt, error = chain(&error), "source failed, will be opened again");
            }
            let until = Instant::now() + backoff;
            self.waker.sleep(None, Some(until), || self.stopped());
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn read_from(&mut self, next: RecordIndex) -> Result<(), SourceError> {
        let mut source = self.upstream.open(next)?;
        let mut buf = Vec::with_capacity(self.read_bytes);
        while !self.stopped() {
            let outcome = source.read(&mut buf)?;
            if self.stats.set_trouble(None) {
                info!(mdt = %self.mdt, next = %self.log.head().0, "source is back");
            }
            match outcome {
                ReadOutcome::Bytes(_) => {
                    let full = std::mem::take(&mut buf);
                    if full.len() < self.read_bytes / 2 {
                        // Small reads are copied out, so that the large buffer serves again.
                        self.append(full.as_slice().to_vec())?;
                        buf = full;
                        buf.clear();
                    } else {
                        self.append(trim(full))?;
                        buf = Vec::with_capacity(self.read_bytes);
                    }
                }
                ReadOutcome::Wait { on, at_end } => self.wait(on, at_end),
                ReadOutcome::Ended => {
                    self.wait(WaitFor::Until(Instant::now() + REOPEN_PAUSE), true);
                    let (next, _) = self.log.head();
                    source = self.upstream.open(next)?;
                }
            }
        }
        Ok(())
    }

    fn wait(&self, on: WaitFor, at_end: bool) {
        if at_end {
            self.stats.at_end.store(true, Ordering::Relaxed);
            self.log.set_at_end();
        }
        sleep_on(&self.waker, Some(on), None, || self.stopped());
    }

    fn append(&self, bytes: Vec<u8>) -> Result<(), SourceError> {
        let (next, _) = self.log.head();
        let n_bytes = bytes.len() as u64;
        let malformed = |problem: String| {
            let what = format!("records of {}", self.mdt);
            Err(SourceError::Malformed { what, problem })
        };
        let batch = match Batch::parse(bytes) {
            Ok(batch) if !batch.is_ordered() => return malformed("indexes go back".to_owned()),
            Ok(batch) if batch.last() < next => return Ok(()),
            Ok(batch) if batch.first() < next => match batch.tail_from(next) {
                Some(tail) => tail,
                None => return Ok(()),
            },
            Ok(batch) => batch,
            Err(BatchError::Empty) => return Ok(()),
            Err(problem) => return malformed(problem.to_string()),
        };
        self.stats.at_end.store(false, Ordering::Relaxed);
        self.stats.records.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.stats.bytes.fetch_add(n_bytes, Ordering::Relaxed);
        self.stats.read_index.store(batch.last().get(), Ordering::Relaxed);
        self.log.push(Entry::Records(Arc::new(batch)), &self.stop);
        Ok(())
    }
}

/// An error with everything behind it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
