//! `replay:`: an MDT whose records come from a trace.
//!
//! At the trace's end there is nothing more, or, with `loop=1`, it begins anew: then indexes go on
//! growing (each pass adds the trace's last index to every `cr_index`), and nothing else changes.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::record;
use lcap_ffi::{MdtName, RecordIndex};

use super::emulated::{Memory, ONLY_USER, Rate};
use super::trace::{Block, Trace};
use super::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// How fast a trace is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// All of it exists at once.
    #[default]
    Full,
    /// So many records per second.
    Rate(Rate),
    /// As fast as it was read when it was recorded; bare records, as fast as they happened.
    Recorded,
}

impl fmt::Display for Pace {
    /// The value of `rate=`; empty for full speed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => Ok(()),
            Self::Rate(rate) => rate.fmt(f),
            Self::Recorded => f.write_str("recorded"),
        }
    }
}

/// Between the passes of a loop at recorded speed.
const PAUSE_BETWEEN_PASSES: Duration = Duration::from_millis(1);

/// An MDT that replays a trace.
#[derive(Debug)]
pub struct ReplayUpstream {
    log: Arc<ReplayLog>,
}

/// What the MDT and every open log of it share.
#[derive(Debug)]
struct ReplayLog {
    trace: Trace,
    pace: Pace,
    repeat: bool,
    memory: Memory,
}

impl ReplayUpstream {
    /// Replays the trace in `path`, continuing what `state_dir` remembers of it.
    ///
    /// # Errors
    /// If the trace is damaged, or the memory cannot be read or written.
    pub fn new(
        path: &Path,
        pace: Pace,
        repeat: bool,
        mdt: &MdtName,
        state_dir: &Path,
    ) -> Result<Self, SourceError> {
        let trace = Trace::open(path)?;
        if let Some(recorded) = trace.mdt().filter(|&recorded| recorded != mdt) {
            tracing::info!(%mdt, %recorded, trace = %path.display(), "replaying another MDT's trace");
        }
        let identity = format!("replay:{}?rate={pace}&loop={}", path.display(), u8::from(repeat));
        let memory = Memory::open(state_dir, mdt, &identity, &[ONLY_USER])?;
        // An empty trace has no passes.
        let repeat = repeat && trace.n_records() > 0;
        Ok(Self { log: Arc::new(ReplayLog { trace, pace, repeat, memory }) })
    }
}

/// A place in a replay: which pass of the loop, which block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    pass: u64,
    block: usize,
}

impl ReplayLog {
    /// What each pass adds to the indexes.
    fn indexes_per_pass(&self) -> u64 {
        self.trace.blocks().last().map_or(0, |b| b.last.get())
    }

    fn shifted(&self, index: RecordIndex, pass: u64) -> RecordIndex {
        let shift = self.indexes_per_pass().saturating_mul(pass);
        RecordIndex::new(index.get().saturating_add(shift))
    }

    /// The block at a place, if there is one.
    fn block(&self, place: Place) -> Option<&Block> {
        if place.pass > 0 && !self.repeat { None } else { self.trace.blocks().get(place.block) }
    }

    fn after(&self, place: Place) -> Place {
        if place.block + 1 == self.trace.blocks().len() && self.repeat {
            Place { pass: place.pass + 1, block: 0 }
        } else {
            Place { block: place.block + 1, ..place }
        }
    }

    /// The first block with a record of at least that index.
    fn find(&self, from: RecordIndex) -> Place {
        let mut pass = 0;
        if self.repeat {
            pass = from.get().saturating_sub(1) / self.indexes_per_pass();
        }
        let block = self.trace.blocks().partition_point(|b| self.shifted(b.last, pass) < from);
        Place { pass, block }
    }

    /// How long after the start a record of a block comes to exist.
    fn due(&self, place: Place, block: &Block, in_block: u64) -> Duration {
        match self.pace {
            Pace::Full => Duration::ZERO,
            Pace::Rate(rate) => {
                let passed = self.trace.n_records().saturating_mul(place.pass);
                rate.due(passed.saturating_add(block.ordinal + in_block))
            }
            Pace::Recorded => {
                let blocks = self.trace.blocks();
                let first = blocks.first().map_or(0, |b| b.time_ns);
                let last = blocks.last().map_or(0, |b| b.time_ns);
                let one_pass =
                    Duration::from_nanos(last.saturating_sub(first)) + PAUSE_BETWEEN_PASSES;
                let passed = one_pass.saturating_mul(u32::try_from(place.pass).unwrap_or(u32::MAX));
                passed + Duration::from_nanos(block.time_ns.saturating_sub(first))
            }
        }
    }

    /// How many records of a block exist now.
    fn n_existing(&self, place: Place, block: &Block) -> u64 {
        let all = u64::from(block.n_records);
        match self.pace {
            Pace::Full => all,
            Pace::Recorded if self.due(place, block, 0) <= self.memory.elapsed() => all,
            Pace::Recorded => 0,
            Pace::Rate(rate) => {
                let passed = self.trace.n_records().saturating_mul(place.pass) + block.ordinal;
                rate.n_records(self.memory.elapsed()).saturating_sub(passed).min(all)
            }
        }
    }

    /// The newest record that exists now.
    fn newest(&self) -> Result<RecordIndex, SourceError> {
        let purged = self.memory.purged();
        match (self.pace, self.trace.blocks().last()) {
            (Pace::Full, _) if self.repeat => return Ok(RecordIndex::new(u64::MAX)),
            (Pace::Full, Some(last)) => return Ok(last.last.max(purged)),
            _ => {}
        }
        // From the purged records on, look for the first block that does not exist whole.
        let mut place = self.find(purged);
        let mut newest = purged;
        while let Some(block) = self.block(place) {
            let existing = self.n_existing(place, block);
            if existing < u64::from(block.n_records) {
                let in_part = self.index_in(block, existing)?;
                return Ok(in_part.map_or(newest, |index| self.shifted(index, place.pass)));
            }
            newest = newest.max(self.shifted(block.last, place.pass));
            place = self.after(place);
        }
        Ok(newest)
    }

    /// Index of the last of the first `n` records of a block, unshifted.
    fn index_in(&self, block: &Block, n: u64) -> Result<Option<RecordIndex>, SourceError> {
        let Some(before) = n.checked_sub(1) else { return Ok(None) };
        let mut body = Vec::new();
        self.trace.read_block(block, &mut body)?;
        let nth = record::records(&body).nth(usize::try_from(before).unwrap_or(usize::MAX));
        Ok(nth.and_then(Result::ok).map(|record| record.index()))
    }
}

impl Upstream for ReplayUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let from = from.max(self.log.memory.purged().next());
        let place = self.log.find(from);
        let source = ReplaySource {
            log: Arc::clone(&self.log),
            place,
            body: Vec::new(),
            loaded: false,
            n_read: 0,
            at: 0,
            from,
        };
        Ok(Box::new(source))
    }

    /// A trace may have been taken through a mask, or cut.
    fn is_dense(&self) -> bool {
        false
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        let newest = self.log.newest().map_err(|e| ClearError::Retry {
            what: "look for the newest record".into(),
            source: std::io::Error::other(e),
        })?;
        self.log.memory.clear(ONLY_USER, upto, newest)
    }
}

/// One open log of a replayed MDT.
#[derive(Debug)]
struct ReplaySource {
    log: Arc<ReplayLog>,
    place: Place,
    /// The block at `place`, its indexes shifted; only if `loaded`.
    body: Vec<u8>,
    loaded: bool,
    /// Records of the block that were read or skipped, and where the next one begins.
    n_read: u64,
    at: usize,
    /// Records below are skipped.
    from: RecordIndex,
}

impl ChangelogSource for ReplaySource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        let before = buf.len();
        loop {
            let Some(block) = self.log.block(self.place).copied() else {
                return Ok(self.outcome(before, buf, WaitFor::Never));
            };
            let existing = self.log.n_existing(self.place, &block);
            if existing > self.n_read {
                self.load(&block)?;
                let full = !self.copy(existing, buf)?;
                if full {
                    return Ok(self.outcome(before, buf, WaitFor::Never));
                }
            }
            if self.n_read == u64::from(block.n_records) {
                self.place = self.log.after(self.place);
                (self.loaded, self.n_read, self.at) = (false, 0, 0);
                continue;
            }
            let due = self.log.due(self.place, &block, self.n_read);
            let on = WaitFor::Until(self.log.memory.moment(due));
            return Ok(self.outcome(before, buf, on));
        }
    }
}

impl ReplaySource {
    fn outcome(&self, before: usize, buf: &[u8], on: WaitFor) -> ReadOutcome {
        match buf.len() - before {
            0 => ReadOutcome::Wait { on, at_end: true },
            n => ReadOutcome::Bytes(n),
        }
    }

    /// Reads the block at `place`, shifts its indexes and skips what lies before `from`.
    fn load(&mut self, block: &Block) -> Result<(), SourceError> {
        if self.loaded {
            return Ok(());
        }
        self.log.trace.read_block(block, &mut self.body)?;
        self.loaded = true;
        let shift = self.log.shifted(RecordIndex::ZERO, self.place.pass).get();
        if shift == 0 && block.first >= self.from {
            return Ok(());
        }
        let mut at = 0;
        while at < self.body.len() {
            let (size, index) = self.split(at)?;
            let index = index.get().saturating_add(shift);
            self.body[at + 8..at + 16].copy_from_slice(&index.to_ne_bytes());
            at += size;
            if index < self.from.get() {
                self.at = at;
                self.n_read += 1;
            }
        }
        Ok(())
    }

    /// Copies the block's records up to the one with that number; false if `buf` is full first.
    fn copy(&mut self, existing: u64, buf: &mut Vec<u8>) -> Result<bool, SourceError> {
        let start = self.at;
        let room = buf.capacity() - buf.len();
        let mut all = true;
        while self.n_read < existing {
            let (size, _) = self.split(self.at)?;
            if self.at + size - start > room {
                all = false;
                break;
            }
            self.at += size;
            self.n_read += 1;
        }
        buf.extend_from_slice(&self.body[start..self.at]);
        Ok(all)
    }

    fn split(&self, at: usize) -> Result<(usize, RecordIndex), SourceError> {
        record::split_len(&self.body[at..]).map_err(|e| {
            let block_at = self.log.block(self.place).map_or(0, |b| b.at);
            self.log.trace.malformed(block_at + at as u64, &e.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use super::super::trace::TraceWriter;
    use super::super::{MIN_READ_BYTES, SourceUri};
    use super::*;
    use crate::source::sim::{Generator, GeneratorOptions};

    fn mdt() -> MdtName {
        "lustre-MDT0000".parse().unwrap()
    }

    /// A trace of `n` records with gaps in blocks of 50, read 2 ms apart; and its bytes.
    fn trace(dir: &Path, n: u64) -> (PathBuf, Vec<u8>) {
        let path = dir.join("t.clog");
        let options = GeneratorOptions { gaps: std::num::NonZeroU64::new(9), ..Default::default() };
        let mut generator = Generator::new(options);
        let mut writer = TraceWriter::create(&path, &mdt()).unwrap();
        let mut all = Vec::new();
        for block in 0..n / 50 {
            let mut buf = Vec::with_capacity(MIN_READ_BYTES);
            assert_eq!(generator.fill(&mut buf, 50), 50);
            writer.append(&buf, 1_000 + block * 2_000_000).unwrap();
            all.extend_from_slice(&buf);
        }
        (path, all)
    }

    fn upstream(uri: String, state_dir: &Path) -> std::sync::Arc<dyn Upstream> {
        uri.parse::<SourceUri>().unwrap().upstream(&mdt(), None, state_dir).unwrap()
    }

    /// Everything that can be read without waiting, in reads of at most `capacity`.
    fn drain(source: &mut dyn ChangelogSource, capacity: usize) -> (Vec<u8>, WaitFor) {
        let mut all = Vec::new();
        loop {
            let mut buf = Vec::with_capacity(capacity);
            match source.read(&mut buf).unwrap() {
                ReadOutcome::Bytes(n) => {
                    assert!(n > 0 && n == buf.len());
                    all.extend_from_slice(&buf);
                }
                ReadOutcome::Wait { on, .. } => return (all, on),
                ReadOutcome::Ended | ReadOutcome::Lost { .. } => {
                    panic!("a replayed log stays open")
                }
            }
        }
    }

    fn indexes(bytes: &[u8]) -> Vec<u64> {
        record::records(bytes).map(|r| r.unwrap().index().get()).collect()
    }

    #[test]
    fn bytes_come_as_they_were_recorded_from_any_index() {
        let dir = tempfile::tempdir().unwrap();
        let (clog, all) = trace(dir.path(), 500);
        let bare = dir.path().join("bare.bin");
        std::fs::write(&bare, &all).unwrap();
        for path in [clog, bare] {
            let state = tempfile::tempdir().unwrap();
            let replay = upstream(format!("replay:{}", path.display()), state.path());
            for from in [0, 1, 9, 10, 11, 56, 57, 300, 555, 556, 10_000] {
                let mut source = replay.open(RecordIndex::new(from)).unwrap();
                let (bytes, on) = drain(&mut *source, 1000);
                let want: Vec<u64> =
                    indexes(&all).into_iter().filter(|&index| index >= from).collect();
                assert_eq!(indexes(&bytes), want, "from {from}");
                assert!(all.ends_with(&bytes), "from {from}");
                assert_eq!(on, WaitFor::Never);
            }
        }
    }

    #[test]
    fn what_was_cleared_is_gone_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = trace(dir.path(), 500);
        let uri = format!("replay:{}", path.display());
        let newest = *indexes(&all).last().unwrap();
        let replay = upstream(uri.clone(), dir.path());
        replay.clear(RecordIndex::new(120)).unwrap();
        assert!(matches!(
            replay.clear(RecordIndex::new(newest + 1)),
            Err(ClearError::OutOfRange(_))
        ));
        drop(replay);
        let replay = upstream(uri, dir.path());
        let (bytes, _) = drain(&mut *replay.open(RecordIndex::new(1)).unwrap(), MIN_READ_BYTES);
        assert!(all.ends_with(&bytes));
        assert_eq!(indexes(&bytes)[0], 121);
        assert!(matches!(replay.clear(RecordIndex::new(119)), Err(ClearError::NoUser { .. })));
        replay.clear(RecordIndex::new(newest)).unwrap();
    }

    #[test]
    fn a_loop_goes_on_with_growing_indexes_and_changes_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = trace(dir.path(), 100);
        let replay = upstream(format!("replay:{}?loop=1", path.display()), dir.path());
        let span = *indexes(&all).last().unwrap();
        let want: Vec<u64> = (0..5)
            .flat_map(|pass| indexes(&all).into_iter().map(move |i| i + pass * span))
            .collect();
        for from in [1, 60, span, span + 1, 3 * span - 1, 4 * span + 30] {
            let mut source = replay.open(RecordIndex::new(from)).unwrap();
            let want: Vec<u64> = want.iter().copied().filter(|&i| i >= from).collect();
            let mut got = Vec::new();
            while indexes(&got).len() < want.len() {
                let mut buf = Vec::with_capacity(MIN_READ_BYTES);
                source.read(&mut buf).unwrap();
                got.extend_from_slice(&buf);
            }
            assert_eq!(indexes(&got)[..want.len()], want, "from {from}");
        }
        let mut got = Vec::with_capacity(3 * all.len());
        replay.open(RecordIndex::ZERO).unwrap().read(&mut got).unwrap();
        for (record, original) in record::records(&got)
            .zip(record::records(&all).cycle())
            .map(|(a, b)| (a.unwrap(), b.unwrap()))
        {
            assert_eq!(record.as_bytes()[16..], original.as_bytes()[16..]);
            assert_eq!(record.as_bytes()[..8], original.as_bytes()[..8]);
        }
    }

    #[test]
    fn records_come_at_their_moment() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = trace(dir.path(), 200);
        for (rate, whole) in
            [("2000", Duration::from_micros(99_500)), ("recorded", Duration::from_millis(6))]
        {
            let state = tempfile::tempdir().unwrap();
            let begin = Instant::now();
            let replay = upstream(format!("replay:{}?rate={rate}", path.display()), state.path());
            let mut source = replay.open(RecordIndex::ZERO).unwrap();
            let mut got = Vec::new();
            loop {
                let (bytes, on) = drain(&mut *source, MIN_READ_BYTES);
                got.extend_from_slice(&bytes);
                match on {
                    WaitFor::Until(due) => {
                        assert!(due <= begin + whole + Duration::from_millis(500), "{rate}");
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    }
                    WaitFor::Never => break,
                    other => panic!("{other:?}"),
                }
                if let Some(&newest) = indexes(&got).last() {
                    // What was not made yet cannot be cleared.
                    let far = RecordIndex::new(newest + 200);
                    assert!(matches!(replay.clear(far), Err(ClearError::OutOfRange(_))), "{rate}");
                    replay.clear(RecordIndex::new(newest)).unwrap();
                }
            }
            assert_eq!(got, all, "{rate}");
            assert!(begin.elapsed() >= whole, "{rate}");
        }
    }

    #[test]
    fn an_empty_trace_is_an_mdt_without_records() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = trace(dir.path(), 0);
        let replay = upstream(format!("replay:{}?loop=1", path.display()), dir.path());
        let mut source = replay.open(RecordIndex::new(7)).unwrap();
        assert_eq!(drain(&mut *source, MIN_READ_BYTES), (Vec::new(), WaitFor::Never));
        assert!(matches!(replay.clear(RecordIndex::new(1)), Err(ClearError::OutOfRange(_))));
    }
}
