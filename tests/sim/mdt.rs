//! An MDT of the simulation: records, a head, a cleared index. As a real one was seen to do, it may
//! lose its newest records in a crash and issue their indexes again with other content, or begin
//! at 1 again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lcap_ffi::RecordIndex;
use lcap_ffi::record::split_len;
use lcapd::last_read::Keep;
use lcapd::source::sim::{Generator, GeneratorOptions};
use lcapd::source::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// More records than any schedule needs.
const TABLE: usize = 2048;
/// Where a packed record has its index, `cr_prev` and time.
const INDEX_AT: usize = 8;
const PREV_AT: usize = 16;
const TIME_AT: usize = 24;
/// `cr_prev` is of no use to anybody: its upper bits tell the history that the record is of, the
/// lower ones which others a record of a policy's making stands for (see `fold.c`).
const VERSION_SHIFT: u32 = 48;

/// The records of every simulated MDT: index and bytes. Every 11th index is missing.
fn table() -> &'static [(u64, Vec<u8>)] {
    static RECORDS: OnceLock<Vec<(u64, Vec<u8>)>> = OnceLock::new();
    RECORDS.get_or_init(|| {
        let gaps = std::num::NonZeroU64::new(10);
        let mut generator = Generator::new(GeneratorOptions { gaps, ..Default::default() });
        let record = |_| {
            let bytes = generator.next_record().to_vec();
            let index = split_len(&bytes).map_or(0, |(_, index)| index.get());
            (index, bytes)
        };
        (0..TABLE).map(record).collect()
    })
}

/// The first record after `index`, whether it exists already or not.
pub(super) fn next_after(index: u64) -> Option<u64> {
    let at = table().partition_point(|(other, _)| *other <= index);
    table().get(at).map(|(index, _)| *index)
}

/// One record of one history.
pub(super) type Identity = (u64, u16);

fn number_at(record: &[u8], at: usize) -> u64 {
    let bytes = record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_ne_bytes(bytes.unwrap_or_default())
}

/// The record's index, and what it stands for: itself, and others if a policy made it.
pub(super) fn identities(record: &[u8]) -> (u64, Vec<Identity>) {
    let (index, prev) = (number_at(record, INDEX_AT), number_at(record, PREV_AT));
    let version = u16::try_from(prev >> VERSION_SHIFT).unwrap_or(u16::MAX);
    let others = (0..VERSION_SHIFT).filter(|bit| prev >> bit & 1 == 1);
    let others = others.map(|bit| (index + 1 + u64::from(bit), version));
    (index, std::iter::once((index, version)).chain(others).collect())
}

/// The MDT itself; it outlives every daemon.
#[derive(Debug, Default)]
pub(super) struct SimMdt {
    state: Mutex<State>,
    /// Most records that one read gives.
    pub(super) read_records: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Of each record that exists, in the table's order: the history that it is of.
    versions: Vec<u16>,
    version: u16,
    cleared: u64,
    restarts: u32,
}

impl State {
    fn head(&self) -> u64 {
        self.versions.len().checked_sub(1).map_or(0, |last| table()[last].0)
    }
}

impl SimMdt {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn grow(&self, n: usize) {
        let mut state = self.lock();
        let (len, version) = ((state.versions.len() + n).min(TABLE), state.version);
        state.versions.resize(len, version);
    }

    /// It crashes and comes back, without its newest `n_lost` records as far as nobody has cleared
    /// them. The lowest index that it will issue again, if there is one.
    pub(super) fn crash(&self, n_lost: usize) -> Option<u64> {
        let mut state = self.lock();
        state.restarts += 1;
        let cleared = table().partition_point(|(index, _)| *index <= state.cleared);
        let len = state.versions.len();
        let keep = len.saturating_sub(n_lost).max(cleared);
        if keep >= len {
            return None;
        }
        state.versions.truncate(keep);
        state.version += 1;
        Some(table()[keep].0)
    }

    /// It restarts without a changelog user, with nothing that anybody has not cleared, and counts
    /// from 1 again. Whether it did.
    pub(super) fn begin_again(&self) -> bool {
        let mut state = self.lock();
        if state.cleared < state.head() || state.cleared == 0 {
            return false;
        }
        state.restarts += 1;
        state.version += 1;
        state.versions.clear();
        state.cleared = 0;
        true
    }

    /// Number of its present history.
    pub(super) fn version(&self) -> u16 {
        self.lock().version
    }

    pub(super) fn n_existing(&self) -> usize {
        self.lock().versions.len()
    }

    /// The records that exist.
    pub(super) fn existing(&self) -> Vec<Identity> {
        let versions = self.lock().versions.clone();
        table().iter().map(|(index, _)| *index).zip(versions).collect()
    }

    /// The newest index.
    pub(super) fn head(&self) -> u64 {
        self.lock().head()
    }

    pub(super) fn cleared(&self) -> u64 {
        self.lock().cleared
    }

    /// How often it was restarted.
    pub(super) fn restarts(&self) -> u32 {
        self.lock().restarts
    }
}

/// What outlives a daemon that is killed, though it has waited for no disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Keep for Kept {
    fn keep(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        bytes.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// What a daemon has of it.
#[derive(Debug)]
pub(super) struct SimUpstream(pub(super) Arc<SimMdt>);

impl Upstream for SimUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let (restarts, gone) = (self.0.restarts(), self.0.cleared());
        let next = from.get().max(gone + 1);
        Ok(Box::new(SimSource { mdt: Arc::clone(&self.0), next, restarts }))
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        let mut state = self.0.lock();
        if upto.get() > state.head() {
            return Err(ClearError::OutOfRange(upto));
        }
        if upto.get() < state.cleared {
            return Err(ClearError::NoUser { user: "cl1".to_owned() });
        }
        state.cleared = upto.get();
        Ok(())
    }
}

#[derive(Debug)]
struct SimSource {
    mdt: Arc<SimMdt>,
    next: u64,
    restarts: u32,
}

impl ChangelogSource for SimSource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        let most = self.mdt.read_records.load(Ordering::Relaxed).max(1);
        let state = self.mdt.lock();
        if state.restarts != self.restarts {
            let source = std::io::Error::from(rustix::io::Errno::IO);
            return Err(SourceError::Io { action: "read", what: "the log".to_owned(), source });
        }
        // What is purged is gone for open logs, too.
        if self.next <= state.cleared {
            let first = RecordIndex::new(self.next);
            self.next = state.cleared + 1;
            return Ok(ReadOutcome::Lost { first, last: RecordIndex::new(state.cleared) });
        }
        let before = buf.len();
        let existing = table().iter().zip(&state.versions);
        let first = self.next;
        let from = existing.skip_while(|((index, _), _)| *index < first);
        for ((index, bytes), version) in from.take(most) {
            let at = buf.len();
            buf.extend_from_slice(bytes);
            // Other content, and a digest of it that differs.
            let prev = u64::from(*version) << VERSION_SHIFT;
            let time = number_at(bytes, TIME_AT) ^ u64::from(*version);
            buf[at + PREV_AT..at + PREV_AT + 8].copy_from_slice(&prev.to_ne_bytes());
            buf[at + TIME_AT..at + TIME_AT + 8].copy_from_slice(&time.to_ne_bytes());
            self.next = index + 1;
        }
        Ok(match buf.len() - before {
            0 => ReadOutcome::Wait { on: WaitFor::Never, at_end: true },
            n => ReadOutcome::Bytes(n),
        })
    }
}
