//! `sim:`: an MDT whose records are generated.
#![forbid(unsafe_code)]

mod actions;
mod episode;
mod generator;
mod pack;

use std::fmt;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lcap_ffi::{MdtName, RecordIndex};

pub use actions::SimActions;
pub use generator::{Clock, Generator, GeneratorOptions};

use super::emulated::{Memory, ONLY_USER, Rate};
use super::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// What `sim:` may be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimOptions {
    /// Records per second; without it all of them exist at once.
    pub rate: Option<Rate>,
    /// How many records there will ever be; without it there is no end.
    pub records: Option<u64>,
    /// The same seed gives the same records.
    pub seed: u64,
    /// After so many records, one index is missing.
    pub gaps: Option<NonZeroU64>,
    /// So many HSM actions are in its list at any time.
    pub actions: Option<NonZeroU64>,
    /// Of each so many seconds, the MDT's list is elsewhere for the last fifth.
    pub failover: Option<NonZeroU64>,
}

impl SimOptions {
    /// Its list of HSM actions, if it has one. What it shows depends on the time alone, also over
    /// restarts.
    pub fn actions(&self, mdt: &MdtName) -> Option<SimActions> {
        let failover = self.failover.map(|seconds| Duration::from_secs(seconds.get()));
        let began = std::time::SystemTime::UNIX_EPOCH;
        Some(SimActions::new(mdt, self.actions?.get(), self.seed, failover, began))
    }
}

impl fmt::Display for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut option = |key: &str, value: Option<String>| -> fmt::Result {
            let Some(value) = value else { return Ok(()) };
            write!(f, "{separator}{key}={value}")?;
            separator = ",";
            Ok(())
        };
        option("rate", self.rate.map(|r| r.to_string()))?;
        option("records", self.records.map(|n| n.to_string()))?;
        option("seed", (self.seed != 0).then(|| self.seed.to_string()))?;
        option("gaps", self.gaps.map(|n| n.to_string()))?;
        option("actions", self.actions.map(|n| n.to_string()))?;
        option("failover", self.failover.map(|n| n.to_string()))
    }
}

/// A generated MDT: which records exist now, and what was cleared.
#[derive(Debug)]
pub struct SimMdt {
    options: SimOptions,
    generator: GeneratorOptions,
    memory: Memory,
    /// How many records were ever read: without a rate, those are the ones that exist.
    n_read: AtomicU64,
}

impl SimMdt {
    /// An MDT with that name and those registered changelog users, continuing what `state_dir`
    /// remembers of it.
    ///
    /// # Errors
    /// If its memory cannot be read or written.
    pub fn new(
        options: SimOptions,
        mdt: &MdtName,
        state_dir: &Path,
        users: &[u32],
    ) -> Result<Self, SourceError> {
        let memory = Memory::open(state_dir, mdt, &format!("sim:{options}"), users)?;
        let clock = match options.rate {
            Some(rate) => Clock { start_ns: memory.started_ns(), rate: Some(rate) },
            None => Clock::default(),
        };
        let generator = GeneratorOptions {
            seed: options.seed,
            mdt_index: mdt.mdt_index(),
            gaps: options.gaps,
            clock,
        };
        Ok(Self { options, generator, memory, n_read: 0.into() })
    }

    /// What it was told.
    pub fn options(&self) -> &SimOptions {
        &self.options
    }

    /// A generator at the first record that exists with an index of at least `from`.
    pub fn generator_at(&self, from: RecordIndex) -> Generator {
        let mut generator = Generator::new(self.generator);
        generator.seek(from.max(self.memory.purged().next()));
        generator
    }

    /// How many records were made until now, purged ones included.
    pub fn n_existing(&self) -> u64 {
        let made = self.options.rate.map_or(u64::MAX, |rate| rate.n_records(self.memory.elapsed()));
        made.min(self.options.records.unwrap_or(u64::MAX))
    }

    /// When the record with that ordinal is made, be it past; `None` if it never will, or if all
    /// exist from the start.
    pub fn due(&self, ordinal: u64) -> Option<Instant> {
        let rate = self.options.rate?;
        let expected = self.options.records.is_none_or(|n| ordinal < n);
        expected.then(|| self.memory.moment(rate.due(ordinal)))
    }

    /// Notes that the records before that ordinal were read.
    pub fn note_read(&self, ordinal: u64) {
        self.n_read.fetch_max(ordinal, Ordering::Relaxed);
    }

    /// The newest record that exists, purged or not.
    pub fn newest(&self) -> RecordIndex {
        let n = match self.n_existing() {
            u64::MAX => self.n_read.load(Ordering::Relaxed),
            n => n,
        };
        let made = n.checked_sub(1).map_or(RecordIndex::ZERO, |last| self.generator.index(last));
        made.max(self.memory.purged())
    }

    /// Clears for a user, as an MDT does.
    ///
    /// # Errors
    /// [`ClearError`]; nothing was cleared then.
    pub fn clear(&self, user: u32, upto: RecordIndex) -> Result<(), ClearError> {
        self.memory.clear(user, upto, self.newest())
    }
}

/// `sim:` as a source.
#[derive(Debug)]
pub struct SimUpstream {
    mdt: Arc<SimMdt>,
}

impl SimUpstream {
    /// As [`SimMdt::new`], with one changelog user.
    ///
    /// # Errors
    /// If its memory cannot be read or written.
    pub fn new(options: SimOptions, mdt: &MdtName, state_dir: &Path) -> Result<Self, SourceError> {
        Ok(Self { mdt: Arc::new(SimMdt::new(options, mdt, state_dir, &[ONLY_USER])?) })
    }
}

impl Upstream for SimUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let generator = self.mdt.generator_at(from);
        Ok(Box::new(SimSource { mdt: Arc::clone(&self.mdt), generator }))
    }

    fn is_dense(&self) -> bool {
        self.mdt.options.gaps.is_none()
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        self.mdt.clear(ONLY_USER, upto)
    }
}

/// One open log of a generated MDT.
#[derive(Debug)]
struct SimSource {
    mdt: Arc<SimMdt>,
    generator: Generator,
}

impl ChangelogSource for SimSource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        let waiting = self.mdt.n_existing().saturating_sub(self.generator.ordinal());
        if waiting == 0 {
            let on = self.mdt.due(self.generator.ordinal()).map_or(WaitFor::Never, WaitFor::Until);
            return Ok(ReadOutcome::Wait { on, at_end: true });
        }
        let before = buf.len();
        self.generator.fill(buf, waiting);
        self.mdt.note_read(self.generator.ordinal());
        Ok(ReadOutcome::Bytes(buf.len() - before))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::MIN_READ_BYTES;
    use super::*;
    use lcap_ffi::record;

    fn upstream(text: &str, dir: &Path) -> SimUpstream {
        let super::super::SourceUri::Sim(options) = text.parse().unwrap() else {
            panic!("{text} is no sim:")
        };
        SimUpstream::new(options, &"lustre-MDT0000".parse().unwrap(), dir).unwrap()
    }

    /// Everything that can be read without waiting.
    fn drain(source: &mut dyn ChangelogSource) -> (Vec<u8>, WaitFor) {
        let mut all = Vec::new();
        loop {
            let mut buf = Vec::with_capacity(MIN_READ_BYTES);
            match source.read(&mut buf).unwrap() {
                ReadOutcome::Bytes(n) => {
                    assert_eq!(n, buf.len());
                    assert!(n > 0);
                    all.extend_from_slice(&buf);
                }
                ReadOutcome::Wait { on, at_end } => {
                    assert!(at_end);
                    return (all, on);
                }
                ReadOutcome::Ended | ReadOutcome::Lost { .. } => {
                    panic!("a simulated log stays open")
                }
            }
        }
    }

    fn indexes(bytes: &[u8]) -> Vec<u64> {
        record::records(bytes).map(|r| r.unwrap().index().get()).collect()
    }

    #[test]
    fn it_ends_after_the_records_that_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let sim = upstream("sim:records=1000,seed=3", dir.path());
        let (bytes, on) = drain(&mut *sim.open(RecordIndex::ZERO).unwrap());
        assert_eq!(indexes(&bytes), (1..=1000).collect::<Vec<_>>());
        assert_eq!(on, WaitFor::Never);
    }

    #[test]
    fn what_was_cleared_is_gone_and_the_rest_is_served_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let uri = "sim:records=600,gaps=7";
        let first = upstream(uri, dir.path());
        let (all, _) = drain(&mut *first.open(RecordIndex::new(1)).unwrap());
        first.clear(RecordIndex::new(300)).unwrap();
        drop(first);

        let again = upstream(uri, dir.path());
        for from in [0, 1, 200, 301] {
            let (rest, _) = drain(&mut *again.open(RecordIndex::new(from)).unwrap());
            assert!(all.ends_with(&rest), "from {from}");
            assert_eq!(indexes(&rest).first(), Some(&301), "from {from}");
        }
        let (tail, _) = drain(&mut *again.open(RecordIndex::new(500)).unwrap());
        assert!(all.ends_with(&tail) && indexes(&tail)[0] == 500);
        let newest = *indexes(&all).last().unwrap();
        assert_eq!(newest, 600 + 599 / 7);
        assert!(matches!(
            again.clear(RecordIndex::new(newest + 1)),
            Err(ClearError::OutOfRange(_))
        ));
        assert!(matches!(again.clear(RecordIndex::new(299)), Err(ClearError::NoUser { .. })));
        again.clear(RecordIndex::new(newest)).unwrap();
        assert_eq!(drain(&mut *again.open(RecordIndex::ZERO).unwrap()).0, b"");
    }

    #[test]
    fn with_a_rate_each_record_comes_at_its_own_moment_and_carries_it() {
        let dir = tempfile::tempdir().unwrap();
        let sim = upstream("sim:rate=200", dir.path());
        let mut source = sim.open(RecordIndex::ZERO).unwrap();
        let mut n_seen = 0;
        while n_seen < 20 {
            let (bytes, on) = drain(&mut *source);
            for record in record::records(&bytes) {
                let record = record.unwrap();
                let ns = record.seconds() * 1_000_000_000 + u64::from(record.nanoseconds());
                assert_eq!(ns, sim.mdt.memory.started_ns() + n_seen * 5_000_000);
                n_seen += 1;
            }
            let WaitFor::Until(due) = on else { panic!("{on:?}") };
            assert_eq!(due, sim.mdt.memory.moment(Duration::from_millis(n_seen * 5)));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        drop(source);
        drop(sim);
        // The clock goes on while nobody looks.
        let again = upstream("sim:rate=200", dir.path());
        let (bytes, _) = drain(&mut *again.open(RecordIndex::ZERO).unwrap());
        assert!(indexes(&bytes).len() as u64 > n_seen);
    }

    #[test]
    fn without_a_rate_what_was_read_exists() {
        let dir = tempfile::tempdir().unwrap();
        let sim = upstream("sim:", dir.path());
        let mut buf = Vec::with_capacity(MIN_READ_BYTES);
        sim.open(RecordIndex::ZERO).unwrap().read(&mut buf).unwrap();
        let newest = *indexes(&buf).last().unwrap();
        assert!(matches!(sim.clear(RecordIndex::new(newest + 1)), Err(ClearError::OutOfRange(_))));
        sim.clear(RecordIndex::new(newest)).unwrap();
    }
}
