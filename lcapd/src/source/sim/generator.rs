//! The stream of generated records: episodes put end to end, numbered and dated.
#![forbid(unsafe_code)]

use std::num::NonZeroU64;

use lcap_ffi::RecordIndex;

use super::episode::{EPISODE_RECORDS, Episode};
use crate::source::emulated::Rate;

/// When records happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Time of the first record, in nanoseconds since 1970.
    pub start_ns: u64,
    /// How they follow each other; without it, one every 10 µs.
    pub rate: Option<Rate>,
}

impl Default for Clock {
    /// From 2026-01-01 on.
    fn default() -> Self {
        Self { start_ns: 1_767_225_600_000_000_000, rate: None }
    }
}

impl Clock {
    /// When the record with that ordinal happens, in nanoseconds since 1970.
    pub fn time_ns(&self, ordinal: u64) -> u64 {
        let since = match self.rate {
            Some(rate) => u64::try_from(rate.due(ordinal).as_nanos()).unwrap_or(u64::MAX),
            None => ordinal.saturating_mul(10_000),
        };
        self.start_ns.saturating_add(since)
    }
}

/// What decides every byte of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// The same seed gives the same records.
    pub seed: u64,
    /// Number of the MDT: its FIDs differ from those of others.
    pub mdt_index: u16,
    /// After so many records, one index is missing.
    pub gaps: Option<NonZeroU64>,
    /// When they happen.
    pub clock: Clock,
}

impl GeneratorOptions {
    /// The index of a record by its ordinal, which counts from 0.
    pub fn index(&self, ordinal: u64) -> RecordIndex {
        let missing = self.gaps.map_or(0, |n| ordinal / n);
        RecordIndex::new(ordinal.saturating_add(1).saturating_add(missing))
    }

    /// The ordinal of the first record with an index of at least `from`.
    pub fn ordinal(&self, from: RecordIndex) -> u64 {
        let steps = from.get().saturating_sub(1);
        let Some(n) = self.gaps else { return steps };
        let period = n.saturating_add(1);
        (steps / period) * n.get() + (steps % period)
    }
}

/// Generates the changelog of a file system at work, from any index on. What the records say is
/// consistent: replayed from index 1 on an empty directory tree, each of them applies.
///
/// # Examples
///
/// ```
/// use lcapd::source::sim::{Generator, GeneratorOptions};
///
/// let mut generator = Generator::new(GeneratorOptions { seed: 7, ..Default::default() });
/// let record = lcap_ffi::record::split_first(generator.next_record()).unwrap().0;
/// assert_eq!(record.rec_type(), lcap_ffi::RecordType::MKDIR);
/// ```
#[derive(Debug)]
pub struct Generator {
    options: GeneratorOptions,
    episode: Episode,
    /// Ordinal of the next record.
    next: u64,
    /// Which episode `episode` holds.
    loaded: Option<u64>,
}

impl Generator {
    /// A generator at index 1.
    pub fn new(options: GeneratorOptions) -> Self {
        Self { options, episode: Episode::default(), next: 0, loaded: None }
    }

    /// Goes to the first record with an index of at least `from`, forward or back. Costs the
    /// same for any index.
    pub fn seek(&mut self, from: RecordIndex) {
        self.next = self.options.ordinal(from);
    }

    /// Ordinal of the next record: how many came before it.
    pub fn ordinal(&self) -> u64 {
        self.next
    }

    /// The next record.
    pub fn next_record(&mut self) -> &[u8] {
        let at = self.load();
        self.next += 1;
        self.episode.records(at, at + 1)
    }

    /// Appends at most `max_records` whole records to `buf`, as many as fit its free capacity.
    /// Returns how many.
    pub fn fill(&mut self, buf: &mut Vec<u8>, max_records: u64) -> u64 {
        let first = self.next;
        while self.next - first < max_records {
            let left = max_records - (self.next - first);
            let at = self.load();
            let end = usize::try_from(left).unwrap_or(usize::MAX).saturating_add(at);
            let room = buf.capacity() - buf.len();
            let fit = self.episode.fit(at, end.min(EPISODE_RECORDS), room);
            if fit == at {
                break;
            }
            buf.extend_from_slice(self.episode.records(at, fit));
            self.next += (fit - at) as u64;
        }
        self.next - first
    }

    /// Makes sure that the episode of the next record is at hand; returns its place in there.
    #[inline]
    fn load(&mut self) -> usize {
        let number = self.next / EPISODE_RECORDS as u64;
        if self.loaded != Some(number) {
            self.episode.generate(&self.options, number);
            self.loaded = Some(number);
        }
        usize::try_from(self.next % EPISODE_RECORDS as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcap_ffi::record;
    use proptest::prelude::*;

    fn take(options: GeneratorOptions, from: u64, n: u64) -> Vec<u8> {
        let mut generator = Generator::new(options);
        generator.seek(RecordIndex::new(from));
        let mut all = Vec::new();
        for _ in 0..n {
            all.extend_from_slice(generator.next_record());
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_index_gives_what_reading_from_the_first_gives(
            seed: u64,
            gaps in prop_oneof![Just(0_u64), 1_u64..600],
            from in 0_u64..3000,
            capacity in 952_usize..70_000,
        ) {
            let options =
                GeneratorOptions { seed, gaps: NonZeroU64::new(gaps), ..Default::default() };
            let all = take(options, 0, 3500);
            let mut generator = Generator::new(options);
            generator.seek(RecordIndex::new(from));
            let mut some = Vec::new();
            for _ in 0..8 {
                let mut buf = Vec::with_capacity(capacity);
                let room = buf.capacity();
                let n = generator.fill(&mut buf, 60);
                prop_assert!((1..=60).contains(&n));
                prop_assert_eq!(buf.capacity(), room);
                some.extend_from_slice(&buf);
            }
            let skipped: usize = record::records(&all)
                .map(|r| r.unwrap())
                .take_while(|r| r.index().get() < from)
                .map(|r| r.as_bytes().len())
                .sum();
            prop_assert!(all[skipped..].starts_with(&some));
        }

        #[test]
        fn indexes_and_ordinals_agree(gaps in 0_u64..50, ordinal in 0_u64..1 << 50) {
            let options = GeneratorOptions { gaps: NonZeroU64::new(gaps), ..Default::default() };
            let index = options.index(ordinal);
            prop_assert_eq!(options.ordinal(index), ordinal);
            prop_assert_eq!(options.ordinal(index.next()), ordinal + 1);
            prop_assert!(options.index(ordinal + 1) > index);
        }
    }

    #[test]
    fn seed_and_mdt_change_the_records() {
        let options = GeneratorOptions { seed: 1, ..Default::default() };
        assert_eq!(take(options, 1, 600), take(options, 1, 600));
        let other_seed = GeneratorOptions { seed: 2, ..options };
        let other_mdt = GeneratorOptions { mdt_index: 1, ..options };
        assert_ne!(take(options, 1, 600), take(other_seed, 1, 600));
        assert_ne!(take(options, 1, 600), take(other_mdt, 1, 600));
    }
}
