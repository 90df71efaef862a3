//! One thread per MDT: source → batches → log. It does nothing else that can block.
#![forbid(unsafe_code)]

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use lcap_ffi::record::split_first;
use lcap_ffi::{MdtName, RecordIndex, RecordType};
use tracing::{error, info, warn};

use crate::actions::Due;
use crate::batch::Batch;
use crate::buffers::{Buffer, Buffers};
use crate::follower::{REOPEN_PAUSE, sleep_on};
use crate::log::{Entry, Gap, MdtLog};
use crate::overlap::{OVERLAP_RECORDS, Overlap, Verdict};
use crate::pace::Pace;
use crate::server::Outcome;
use crate::source::{ChangelogSource, ReadOutcome, SourceError, Upstream, WaitFor};
use crate::timeline::Timeline;
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
    /// When records were written.
    pub timeline: Timeline,
    /// The source has nothing more at present.
    pub at_end: AtomicBool,
    /// It was found to be the log that was read before. Until then none of its records may be
    /// cleared: their indexes may mean others than those that consumers are done with.
    pub compared: AtomicBool,
    /// It has no record at all to compare. Told what it was told before, it keeps our user.
    pub empty: AtomicBool,
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
    /// Its number.
    pub mdt_at: usize,
    /// The MDT.
    pub mdt: MdtName,
    /// Where it is read from.
    pub upstream: Arc<dyn Upstream>,
    /// Where records go.
    pub log: Arc<MdtLog>,
    /// What others may know.
    pub stats: Arc<ReaderStats>,
    /// Memory to read into.
    pub buffers: Arc<Buffers>,
    /// How often to look while records keep coming.
    pub pace: Pace,
    /// Where the engine learns of gaps and new histories.
    pub outcomes: Sender<Outcome>,
    /// Wakes the engine.
    pub engine: Waker,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
    /// To be told of HSM records: the MDT's list of actions has changed.
    pub hsm_due: Option<Due>,
}

/// A source that a reader has opened.
#[derive(Debug)]
pub struct Open {
    source: Box<dyn ChangelogSource>,
    place: Place,
    buffer: Buffer,
    /// The last read found so many records, and after them nothing more.
    drained: Option<usize>,
}

/// What a step of a reader came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// There may be more to read.
    Again,
    /// Nothing to read until then.
    Wait {
        /// What to wait for.
        on: WaitFor,
        /// The source has nothing more.
        at_end: bool,
        /// Its log has had its day: to be opened again after the wait.
        reopen: bool,
    },
}

/// Where a reader is with a source that it has just opened.
#[derive(Debug)]
enum Place {
    /// It is compared with what is known; nothing new is taken yet.
    Comparing(Overlap),
    /// It goes on where the log ends.
    Reading,
}

impl Reader {
    /// Reads until told to stop. A source that fails is opened again, later and later.
    pub fn run(&mut self) {
        // The kernel may else wake us 50 µs late to save power.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut backoff = MIN_BACKOFF;
        while !self.stopped() {
            let started = Instant::now();
            let Err(error) = self.read_source() else { return };
            self.stats.compared.store(false, Ordering::Release);
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

    /// Opens the source and reads it until it fails, or until told to stop.
    fn read_source(&mut self) -> Result<(), SourceError> {
        let mut open = self.open()?;
        while !self.stopped() {
            let (on, at_end, reopen) = match self.step(&mut open)? {
                ReadStep::Again => {
                    let drained = open.drained.take();
                    let again = drained.and_then(|n| self.pace.found(n, Instant::now()));
                    let Some(at) = again else { continue };
                    (WaitFor::Until(at), false, false)
                }
                ReadStep::Wait { on, at_end, reopen } => {
                    self.pace.found_nothing();
                    (on, at_end, reopen)
                }
            };
            self.wait(on, at_end);
            if reopen {
                open.source = self.upstream.open(self.log.head().0)?;
            }
        }
        Ok(())
    }

    /// Opens the source a little before the place, to compare.
    ///
    /// # Errors
    /// If it cannot be opened now.
    pub fn open(&mut self) -> Result<Open, SourceError> {
        self.stats.compared.store(false, Ordering::Release);
        self.stats.empty.store(false, Ordering::Release);
        let overlap = Overlap::new(self.log.tail(OVERLAP_RECORDS));
        let (next, _) = self.log.head();
        let from = overlap.start().map_or(next, |start| start.min(next));
        let source = self.upstream.open(from)?;
        let buffer = self.buffers.take();
        Ok(Open { source, place: Place::Comparing(overlap), buffer, drained: None })
    }

    /// Reads once. Waits for nothing but a full log.
    ///
    /// # Errors
    /// If the source fails; it is to be opened again then.
    pub fn step(&mut self, open: &mut Open) -> Result<ReadStep, SourceError> {
        let Open { source, place, buffer, drained } = open;
        if self.log.take_end_wanted() {
            source.ask_end();
        }
        let outcome = source.read(&mut buffer.bytes)?;
        if self.stats.set_trouble(None) {
            info!(mdt = %self.mdt, next = %self.log.head().0, "source is back");
        }
        let step = match outcome {
            ReadOutcome::Bytes(_) => {
                let nothing_after = is_small(&buffer.bytes);
                let batch = self.take_batch(buffer)?;
                *drained = nothing_after.then_some(batch.len());
                let last = batch.last();
                self.take(place, batch);
                let (next, _) = self.log.head();
                if next <= last && matches!(place, Place::Reading) {
                    *source = self.upstream.open(next)?; // it goes on before what was just read
                }
                ReadStep::Again
            }
            ReadOutcome::Wait { at_end: true, .. } if self.see_end(place) == Verdict::Nothing => {
                *source = self.upstream.open(RecordIndex::new(1))?;
                ReadStep::Again
            }
            ReadOutcome::Wait { on, at_end } => ReadStep::Wait { on, at_end, reopen: false },
            ReadOutcome::Lost { first, last } => {
                self.tell_gap(first, last);
                ReadStep::Again
            }
            ReadOutcome::Ended => {
                self.see_end(place);
                let on = WaitFor::Until(Instant::now() + REOPEN_PAUSE);
                ReadStep::Wait { on, at_end: true, reopen: true }
            }
        };
        match place {
            Place::Reading => self.stats.compared.store(true, Ordering::Release),
            Place::Comparing(overlap) => {
                let at_end = matches!(step, ReadStep::Wait { at_end: true, .. });
                self.stats.empty.store(at_end && overlap.found_nothing(), Ordering::Release);
            }
        }
        Ok(step)
    }

    fn wait(&self, on: WaitFor, at_end: bool) {
        if at_end && !self.log.is_end_wanted() {
            self.stats.at_end.store(true, Ordering::Relaxed);
            self.log.set_at_end();
        }
        let ready = || self.stopped() || self.log.is_end_wanted();
        sleep_on(&self.waker, Some(on), None, ready);
    }

    /// The batch of what was read. Small reads are copied out, so that the large buffer serves
    /// again.
    fn take_batch(&self, buffer: &mut Buffer) -> Result<Batch, SourceError> {
        self.stats.bytes.fetch_add(buffer.bytes.len() as u64, Ordering::Relaxed);
        let parsed = if is_small(&buffer.bytes) {
            let bytes = buffer.bytes.as_slice().to_vec();
            buffer.bytes.clear();
            Batch::parse(bytes)
        } else {
            let full = std::mem::replace(buffer, self.buffers.take());
            Batch::parse_pooled(full, &self.buffers)
        };
        let problem = match parsed {
            Ok(batch) if batch.is_ordered() => return Ok(batch),
            Ok(_) => "indexes go back".to_owned(),
            Err(problem) => problem.to_string(),
        };
        let what = format!("records of {}", self.mdt);
        Err(SourceError::Malformed { what, problem })
    }

    /// Nothing more is there: what does that say of the records that were known?
    fn see_end(&mut self, place: &mut Place) -> Verdict {
        let Place::Comparing(overlap) = place else { return Verdict::Same };
        let verdict = overlap.see_end();
        match verdict {
            Verdict::Same => *place = Place::Reading,
            Verdict::Differs(from) => {
                self.begin_history(from);
                *place = Place::Reading;
            }
            Verdict::Nothing => overlap.look_from_the_beginning(),
            Verdict::Open => {}
        }
        verdict
    }

    /// Takes a batch in: what was known already is compared, the rest goes to the log.
    fn take(&mut self, place: &mut Place, batch: Batch) {
        if let Place::Comparing(overlap) = place {
            let mut verdicts = batch.records().map(|record| overlap.see(&record));
            let decided = verdicts.find(|verdict| *verdict != Verdict::Open);
            drop(verdicts);
            match decided {
                None => {
                    // A known place may lie below what is known of it: an earlier life's.
                    return self.append(batch);
                }
                // Nothing was found as it was: what is not known any more may be others, too.
                Some(Verdict::Differs(from))
                    if !overlap.has_matched() && from > self.log.gone().next() =>
                {
                    *place = Place::Reading;
                    return self.begin_history(self.log.gone().next());
                }
                Some(Verdict::Differs(from)) => {
                    *place = Place::Reading;
                    if let Some(as_known) = batch.head_before(from) {
                        self.append(as_known);
                    }
                    self.begin_history(from);
                    if let Some(new) = batch.tail_from(from) {
                        self.append(new);
                    }
                    return;
                }
                Some(_) => {}
            }
            *place = Place::Reading;
        }
        self.append(batch);
    }

    /// From `first` on, the MDT's indexes mean other records than before.
    fn begin_history(&mut self, first: RecordIndex) {
        let (next, generation) = self.log.head();
        let generation = generation.wrapping_add(1);
        error!(
            mdt = %self.mdt, first = first.get(), read = next.prev().get(), generation,
            "this MDT issues known indexes again with other records (a crash or a lost changelog); \
             consumers are told, what is new is delivered"
        );
        let gap = Gap { first, last: RecordIndex::ZERO, generation, rewinds: true };
        // The engine first: nothing of the new history is to be settled by what is said of the old.
        let _ = self.outcomes.send(Outcome::Gap { mdt: self.mdt_at, gap });
        self.engine.wake();
        self.stats.gaps.fetch_add(1, Ordering::Relaxed);
        self.stats.read_index.store(first.prev().get(), Ordering::Relaxed);
        self.log.push(Entry::Gap(gap), &self.stop);
    }

    /// Records are gone; the stream goes on.
    fn tell_gap(&self, first: RecordIndex, last: RecordIndex) {
        error!(
            mdt = %self.mdt, first = first.get(), last = last.get(),
            "records were lost before they could be read; consumers are told"
        );
        let (_, generation) = self.log.head();
        let gap = Gap { first, last, generation, rewinds: false };
        self.stats.gaps.fetch_add(1, Ordering::Relaxed);
        self.log.push(Entry::Gap(gap), &self.stop);
    }

    fn note_hsm(&self, batch: &Batch) {
        let Some(due) = &self.hsm_due else { return };
        let hsm = RecordType::HSM.0.to_ne_bytes();
        if (0..batch.len()).any(|nth| batch.record(nth).get(4..8) == Some(&hsm[..])) {
            due.mark();
        }
    }

    fn append(&self, batch: Batch) {
        let (next, _) = self.log.head();
        let batch = if batch.last() < next {
            return;
        } else if batch.first() < next {
            let Some(tail) = batch.tail_from(next) else { return };
            tail
        } else {
            batch
        };
        let knows_before = next > RecordIndex::new(1);
        for piece in pieces(batch, next, knows_before, self.upstream.is_dense()) {
            match piece {
                Piece::Hole(first, last) => self.tell_gap(first, last),
                Piece::Records(batch) => {
                    self.note_hsm(&batch);
                    self.stats.at_end.store(false, Ordering::Relaxed);
                    self.stats.records.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    if let Ok((first, _)) = split_first(batch.record(0)) {
                        self.stats.timeline.note(
                            first.index(),
                            first.seconds() * 1_000_000_000 + u64::from(first.nanoseconds()),
                        );
                    }
                    self.stats.read_index.store(batch.last().get(), Ordering::Relaxed);
                    self.log.push(Entry::Records(Arc::new(batch)), &self.stop);
                }
            }
        }
    }
}

/// Less than half of a buffer: the source had no more.
fn is_small(bytes: &Vec<u8>) -> bool {
    bytes.len() < bytes.capacity() / 2
}

/// Part of what a source gave: records, or the place where some are missing.
#[derive(Debug)]
pub enum Piece {
    /// Records without a hole.
    Records(Batch),
    /// Records of these indexes, both included, are gone.
    Hole(RecordIndex, RecordIndex),
}

/// Takes a batch that should begin at `next` apart at its holes, in order. An MDT numbers its
/// records without gaps if it is `dense`; the first record that it has may have any number unless
/// `knows_before`.
pub fn pieces(batch: Batch, next: RecordIndex, knows_before: bool, dense: bool) -> Vec<Piece> {
    let span = batch.last().get() - batch.first().get() + 1;
    let begins_late = dense && knows_before && batch.first() > next;
    let has_holes = dense && span != batch.len() as u64;
    let mut pieces = Vec::new();
    if begins_late {
        pieces.push(Piece::Hole(next, batch.first().prev()));
    }
    let mut rest = Some(batch);
    while has_holes && let Some(batch) = rest.take() {
        let mut expected = batch.first();
        let hole = batch.records().find_map(|record| {
            let before = std::mem::replace(&mut expected, record.index().next());
            (record.index() > before).then(|| (before, record.index().prev()))
        });
        let Some((first, last)) = hole else {
            rest = Some(batch);
            break;
        };
        pieces.extend(batch.head_before(first).map(Piece::Records));
        pieces.push(Piece::Hole(first, last));
        rest = batch.tail_from(first);
    }
    pieces.extend(rest.map(Piece::Records));
    pieces
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::{AsRawFd as _, OwnedFd};

    use crossbeam_channel::{Receiver, unbounded};
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::batch::testing::packed;
    use crate::log::Lookup;
    use crate::overlap::Digest;
    use crate::source::ClearError;

    /// An MDT that does what a real one was seen to do: loses transactions in a crash, counts from
    /// 1 again, purges records, and answers a restart with an error on every open descriptor.
    #[derive(Clone, Debug, Default)]
    struct FakeMdt(Arc<Mutex<MdtState>>);

    #[derive(Debug, Default)]
    struct MdtState {
        /// Index and what it says.
        records: Vec<(u64, String)>,
        restarts: u32,
        /// Readable after each change.
        readers: Vec<Arc<OwnedFd>>,
    }

    impl MdtState {
        fn tell(&self) {
            for reader in &self.readers {
                rustix::io::write(reader, &1_u64.to_ne_bytes()).unwrap();
            }
        }
    }

    #[derive(Debug)]
    struct FakeLog {
        mdt: FakeMdt,
        next: u64,
        restarts: u32,
        changed: Arc<OwnedFd>,
    }

    impl FakeMdt {
        fn change(&self, change: impl FnOnce(&mut Vec<(u64, String)>)) {
            let mut state = self.0.lock().unwrap();
            change(&mut state.records);
            state.tell();
        }

        fn add(&self, indexes: std::ops::RangeInclusive<u64>, says: &str) {
            self.change(|records| records.extend(indexes.map(|i| (i, format!("{says}{i}")))));
        }

        fn restart(&self, change: impl FnOnce(&mut Vec<(u64, String)>)) {
            let mut state = self.0.lock().unwrap();
            change(&mut state.records);
            state.restarts += 1;
            state.tell();
        }
    }

    impl Upstream for FakeMdt {
        fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
            let mut state = self.0.lock().unwrap();
            let changed = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            state.readers.push(Arc::clone(&changed));
            let (mdt, restarts) = (self.clone(), state.restarts);
            Ok(Box::new(FakeLog { mdt, next: from.get(), restarts, changed }))
        }

        fn clear(&self, _: RecordIndex) -> Result<(), ClearError> {
            Ok(())
        }
    }

    impl ChangelogSource for FakeLog {
        fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
            let state = self.mdt.0.lock().unwrap();
            let _ = rustix::io::read(&self.changed, &mut [0_u8; 8]); // EAGAIN if nothing has
            if state.restarts != self.restarts {
                let source = io::Error::from_raw_os_error(libc::EIO);
                return Err(SourceError::Io { action: "read", what: "the device".into(), source });
            }
            let before = buf.len();
            for (index, says) in state.records.iter().filter(|(index, _)| *index >= self.next) {
                buf.extend_from_slice(&packed(*index, says));
            }
            if buf.len() == before {
                let on = WaitFor::Readable(self.changed.as_raw_fd());
                return Ok(ReadOutcome::Wait { on, at_end: true });
            }
            self.next = state.records.last().map_or(1, |(index, _)| index + 1);
            Ok(ReadOutcome::Bytes(buf.len() - before))
        }
    }

    /// A reader thread on a fake MDT, and a follower of its log.
    struct Run {
        mdt: FakeMdt,
        log: Arc<MdtLog>,
        place: Arc<crate::log::Place>,
        serial: u64,
        waker: Waker,
        outcomes: Receiver<Outcome>,
        stop: Arc<AtomicBool>,
        reader: Waker,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Run {
        fn start(mdt: &FakeMdt, next: u64, known: Vec<Digest>) -> Self {
            let (reader_waker, waker) = (Waker::new().unwrap(), Waker::new().unwrap());
            let next = RecordIndex::new(next);
            let log = Arc::new(MdtLog::new(1 << 20, next, 0, known, reader_waker.clone()));
            let (send, outcomes) = unbounded();
            let stop = Arc::new(AtomicBool::new(false));
            let mut reader = Reader {
                mdt_at: 0,
                mdt: "fake-MDT0000".parse().unwrap(),
                upstream: Arc::new(mdt.clone()),
                log: Arc::clone(&log),
                stats: Arc::default(),
                buffers: Arc::new(Buffers::new(1 << 16, 1)),
                pace: Pace::default(),
                outcomes: send,
                engine: waker.clone(),
                waker: reader_waker.clone(),
                stop: Arc::clone(&stop),
                hsm_due: None,
            };
            let thread = Some(std::thread::spawn(move || reader.run()));
            let place = log.follow(waker.clone());
            let (mdt, reader) = (mdt.clone(), reader_waker);
            Self { mdt, log, place, serial: 0, waker, outcomes, stop, reader, thread }
        }

        /// What the log says until the record with that text has come.
        fn until(&mut self, last: &str) -> Vec<String> {
            let mut said = Vec::new();
            while said.last().map(String::as_str) != Some(last) {
                match self.log.get(&self.place, self.serial) {
                    Lookup::Found(Entry::Records(batch), next) => {
                        let names = batch.records().map(|r| r.name().to_vec());
                        said.extend(names.map(|name| String::from_utf8(name).unwrap()));
                        self.serial = next;
                    }
                    Lookup::Found(Entry::Gap(gap), next) => {
                        let kind = if gap.rewinds { "again from" } else { "lost" };
                        said.push(format!("{kind} {}-{}", gap.first, gap.last));
                        self.serial = next;
                    }
                    Lookup::Head { at_end } => {
                        let (log, serial) = (&self.log, self.serial);
                        self.waker.sleep(None, None, || log.has_news(serial, at_end));
                    }
                    Lookup::Dropped => panic!("the log is large enough"),
                }
            }
            said
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.reader.wake();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn a_clean_restart_changes_nothing() {
        let mdt = FakeMdt::default();
        mdt.add(1..=5, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        run.until("a5");
        mdt.restart(|_| ());
        mdt.add(6..=7, "a");
        assert_eq!(run.until("a7"), ["a6", "a7"]);
        assert!(run.outcomes.is_empty());
    }

    #[test]
    fn indexes_issued_again_are_delivered_as_a_new_history() {
        let mdt = FakeMdt::default();
        mdt.add(1..=9, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        run.until("a9");
        mdt.restart(|records| {
            records.truncate(6);
            records.extend((7..=8).map(|i| (i, format!("b{i}"))));
        });
        assert_eq!(run.until("b8"), ["again from 7-0", "b7", "b8"]);
        let Ok(Outcome::Gap { gap, .. }) = run.outcomes.try_recv() else { panic!("not told") };
        assert_eq!((gap.first, gap.generation, gap.rewinds), (RecordIndex::new(7), 1, true));
        assert_eq!(run.log.head(), (RecordIndex::new(9), 1));
    }

    #[test]
    fn a_loss_beyond_what_is_remembered_goes_back_to_what_was_cleared() {
        let mdt = FakeMdt::default();
        mdt.add(1..=9, "a");
        let run = &mut Run::start(&mdt, 1, Vec::new());
        run.until("a9");
        let known = run.log.tail(2); // 8 and 9
        mdt.restart(|records| {
            records.truncate(5);
            records.extend((6..=9).map(|i| (i, format!("b{i}"))));
        });
        let mut second = Run::start(&run.mdt, 10, known);
        let got = second.until("b9");
        let want = ["again from 1-0", "a1", "a2", "a3", "a4", "a5", "b6", "b7", "b8", "b9"];
        assert_eq!(got, want, "nothing was cleared");
    }

    #[test]
    fn a_lower_head_is_noticed_before_anything_new_comes() {
        let mdt = FakeMdt::default();
        mdt.add(1..=9, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        run.until("a9");
        mdt.restart(|records| records.truncate(6));
        assert_eq!(run.until("again from 7-0"), ["again from 7-0"]);
        mdt.add(7..=7, "b");
        assert_eq!(run.until("b7"), ["b7"]);
    }

    #[test]
    fn counting_from_1_again_is_noticed() {
        let mdt = FakeMdt::default();
        mdt.add(100..=105, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        run.until("a105");
        mdt.restart(Vec::clear);
        mdt.add(1..=2, "b");
        assert_eq!(run.until("b2"), ["again from 1-0", "b1", "b2"]);
    }

    #[test]
    fn a_cleared_log_is_no_new_history() {
        let mdt = FakeMdt::default();
        mdt.add(1..=5, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        run.until("a5");
        mdt.restart(Vec::clear);
        mdt.add(6..=6, "a");
        assert_eq!(run.until("a6"), ["a6"]);
    }

    #[test]
    fn purged_records_are_told_and_do_not_stop_the_stream() {
        let mdt = FakeMdt::default();
        mdt.add(1..=5, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        run.until("a5");
        mdt.restart(Vec::clear);
        mdt.add(9..=10, "a");
        assert_eq!(run.until("a10"), ["lost 6-8", "a9", "a10"]);
        mdt.add(12..=12, "a");
        assert_eq!(run.until("a12"), ["lost 11-11", "a12"], "also while it is read");
        mdt.change(|records| {
            records.extend([13, 14, 17].map(|i| (i, format!("a{i}"))));
        });
        let got = run.until("a17");
        assert_eq!(
            got,
            ["a13", "a14", "lost 15-16", "a17"],
            "in the middle of a read: in its place"
        );
    }

    #[test]
    fn what_an_earlier_life_read_is_compared_too() {
        let mdt = FakeMdt::default();
        mdt.add(1..=9, "a");
        let run = &mut Run::start(&mdt, 1, Vec::new());
        run.until("a9");
        let known = run.log.tail(4);
        // Everything up to 7 was settled when the daemon died; then the MDT crashed, too.
        mdt.restart(|records| {
            records.truncate(8);
            records.push((9, "b9".to_owned()));
        });
        let mut second = Run::start(&run.mdt, 8, known);
        assert_eq!(second.until("b9"), ["a8", "again from 9-0", "b9"]);
    }

    #[test]
    fn the_oldest_record_may_have_any_number() {
        let mdt = FakeMdt::default();
        mdt.add(66_948..=66_950, "a");
        let mut run = Run::start(&mdt, 1, Vec::new());
        assert_eq!(run.until("a66950"), ["a66948", "a66949", "a66950"]);
    }
}
