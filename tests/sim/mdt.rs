//! An MDT of the simulation: a table of records, a head, a cleared index.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use lcap_ffi::RecordIndex;
use lcap_ffi::record::split_len;
use lcapd::source::sim::{Generator, GeneratorOptions};
use lcapd::source::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// More records than any schedule needs.
const TABLE: usize = 2048;

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

/// Indexes of the first `n` records.
pub(super) fn indexes(n: usize) -> impl DoubleEndedIterator<Item = u64> + Clone {
    table().iter().take(n).map(|(index, _)| *index)
}

/// The bytes of a record.
pub(super) fn bytes_of(index: u64) -> Option<&'static [u8]> {
    let at = table().binary_search_by_key(&index, |(index, _)| *index).ok()?;
    Some(&table()[at].1)
}

/// The first record after `index`, whether it exists already or not.
pub(super) fn next_after(index: u64) -> Option<u64> {
    let at = table().partition_point(|(other, _)| *other <= index);
    table().get(at).map(|(index, _)| *index)
}

/// The MDT itself; it outlives every daemon.
#[derive(Debug, Default)]
pub(super) struct SimMdt {
    n_existing: AtomicUsize,
    cleared: AtomicU64,
    /// Most records that one read gives.
    pub(super) read_records: AtomicUsize,
}

impl SimMdt {
    pub(super) fn grow(&self, n: usize) {
        let now = self.n_existing();
        self.n_existing.store((now + n).min(TABLE), Ordering::Relaxed);
    }

    pub(super) fn n_existing(&self) -> usize {
        self.n_existing.load(Ordering::Relaxed)
    }

    /// The newest index.
    pub(super) fn head(&self) -> u64 {
        indexes(self.n_existing()).next_back().unwrap_or(0)
    }

    pub(super) fn cleared(&self) -> u64 {
        self.cleared.load(Ordering::Relaxed)
    }
}

/// What a daemon has of it.
#[derive(Debug)]
pub(super) struct SimUpstream(pub(super) Arc<SimMdt>);

impl Upstream for SimUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        Ok(Box::new(SimSource { mdt: Arc::clone(&self.0), next: from.get() }))
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        if upto.get() > self.0.head() {
            return Err(ClearError::OutOfRange(upto));
        }
        if upto.get() < self.0.cleared() {
            return Err(ClearError::NoUser { user: "cl1".to_owned() });
        }
        self.0.cleared.store(upto.get(), Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug)]
struct SimSource {
    mdt: Arc<SimMdt>,
    next: u64,
}

impl ChangelogSource for SimSource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        let before = buf.len();
        // What is purged is gone for open logs, too.
        let from = self.next.max(self.mdt.cleared() + 1);
        let most = self.mdt.read_records.load(Ordering::Relaxed).max(1);
        let existing = table().iter().take(self.mdt.n_existing());
        for (index, bytes) in existing.skip_while(|(index, _)| *index < from).take(most) {
            buf.extend_from_slice(bytes);
            self.next = index + 1;
        }
        Ok(match buf.len() - before {
            0 => ReadOutcome::Wait { on: WaitFor::Never, at_end: true },
            n => ReadOutcome::Bytes(n),
        })
    }
}
