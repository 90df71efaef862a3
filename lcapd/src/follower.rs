//! Reads one MDT from a place on: out of memory where it can, from the source where it must.
//!
//! A stream that falls off the tail of the log opens its own handle on the source at its place and
//! catches up. That is what makes Lustre itself the backlog: memory stays bounded and nobody waits
//! for the slowest.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use lcap_ffi::RecordIndex;

use crate::actions::journal::{Journal, Snapshot};
use crate::batch::Batch;
use crate::buffers::Buffers;
use crate::log::{Entry, Found, Gap, Lookup, MdtLog, Place};
use crate::reader::{Piece, pieces};
use crate::source::{ChangelogSource, ReadOutcome, SourceError, Upstream, WaitFor};
use crate::wake::Waker;

/// A state is given out in pieces of about so many bytes.
const STATE_BYTES: usize = 64 << 10;
/// Pause before a source that cannot follow is opened again.
pub const REOPEN_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// A place in one MDT's records that moves forward.
#[derive(Debug)]
pub struct Follower {
    log: Arc<MdtLog>,
    upstream: Arc<dyn Upstream>,
    place: Arc<Place>,
    next: RecordIndex,
    generation: u16,
    buffers: Arc<Buffers>,
    mode: Mode,
    /// What lies right before `next` was read once: if the source begins later, records are gone.
    continues: bool,
    /// What came together with a hole in it, and is to be returned piece by piece.
    pending: VecDeque<Piece>,
    /// What the log last said of the source, if it had nothing for us.
    at_end: bool,
    /// The state that comes before everything else.
    state: Option<State>,
}

/// A state that comes first.
#[derive(Debug)]
enum State {
    /// That of this journal, when it is asked for.
    Wanted(Arc<Journal>),
    /// What is left of it.
    Known(Snapshot),
}

#[derive(Debug)]
enum Mode {
    /// Find out where `next` is.
    Lost,
    /// In memory, at this serial.
    Memory(u64),
    /// On a handle of its own.
    Source(Box<dyn ChangelogSource>),
}

/// What the follower has.
#[derive(Debug)]
pub enum Step {
    /// Records, all with index ≥ its place.
    Records(Arc<Batch>),
    /// Records are gone, or a new history begins.
    Gap(Gap),
    /// Nothing now; the waker will say when. Whether the source has nothing more, either.
    Head {
        /// No record that exists now is unread.
        at_end: bool,
    },
    /// Nothing now; to be asked again after the wait (or when woken).
    Wait {
        /// What to wait for.
        on: WaitFor,
        /// No record that exists now is unread.
        at_end: bool,
    },
}

impl Follower {
    /// A follower that begins at `from`, which comes right after something that was read once if
    /// `continues`. `waker` wakes the thread that uses it.
    pub fn new(
        log: Arc<MdtLog>,
        upstream: Arc<dyn Upstream>,
        from: RecordIndex,
        continues: bool,
        buffers: Arc<Buffers>,
        waker: Waker,
    ) -> Self {
        let (_, generation) = log.head();
        let place = log.follow(waker);
        Self {
            log,
            upstream,
            place,
            next: from,
            generation,
            buffers,
            mode: Mode::Lost,
            continues,
            pending: VecDeque::new(),
            at_end: false,
            state: None,
        }
    }

    /// Begins with the state of a journal instead of what led to it. It is looked up by the first
    /// [`Self::step`], since it may have to wait for who is writing the journal.
    pub fn begin_with_state_of(&mut self, journal: Arc<Journal>) {
        self.continues = false;
        self.state = Some(State::Wanted(journal));
    }

    /// Asks the source where its end is now: [`Step::Head`] and [`Step::Wait`] say `at_end` only
    /// once every record that exists now was returned.
    pub fn want_end(&mut self) {
        self.log.want_end();
        if let Mode::Source(source) = &mut self.mode {
            source.ask_end();
        }
    }

    /// The lowest index not yet returned.
    pub fn next_index(&self) -> RecordIndex {
        self.next
    }

    /// The generation that its indexes belong to.
    pub fn generation(&self) -> u16 {
        self.generation
    }

    /// Whether it reads from its own handle, behind what lies in memory.
    pub fn is_catching_up(&self) -> bool {
        matches!(self.mode, Mode::Source(_))
    }

    /// Whether there may be more than [`Step::Head`] now; asked after the waker was armed.
    pub fn has_news(&self) -> bool {
        self.state.is_some()
            || !self.pending.is_empty()
            || matches!(self.mode, Mode::Memory(serial) if self.log.has_news(serial, self.at_end))
    }

    /// The thread now waits for its consumers; the reader is not to wait for it.
    pub fn detach(&self) {
        self.place.detach();
    }

    /// The index after the newest record that lies in memory.
    pub fn head(&self) -> RecordIndex {
        self.log.head().0
    }

    /// The next records, if there are any now.
    ///
    /// # Errors
    /// If the source cannot be read. The follower can be used again, after a pause.
    pub fn step(&mut self) -> Result<Step, SourceError> {
        while let Some(piece) = self.pending.pop_front() {
            if let Some(step) = self.take_piece(piece) {
                return Ok(step);
            }
        }
        if let Some(step) = self.step_state()? {
            return Ok(step);
        }
        loop {
            match &mut self.mode {
                Mode::Lost => match self.log.find(self.next, self.generation) {
                    Found::At(serial) => self.mode = Mode::Memory(serial),
                    Found::Rewound(gap) => return Ok(self.rewind(gap)),
                    Found::Nowhere => {
                        self.place.detach();
                        let (first, last) = (self.next, self.log.gone());
                        if self.continues && first <= last {
                            // The source might not tell: if nothing is left, it has no first record.
                            let generation = self.generation;
                            let gap = Gap { first, last, generation, rewinds: false };
                            if let Some(step) = self.take(Entry::Gap(gap)) {
                                return Ok(step);
                            }
                        }
                        self.mode = Mode::Source(self.upstream.open(self.next)?);
                    }
                },
                Mode::Memory(serial) => match self.log.get(&self.place, *serial) {
                    Lookup::Found(entry, after) => {
                        *serial = after;
                        if let Some(step) = self.take(entry) {
                            return Ok(step);
                        }
                    }
                    Lookup::Head { at_end } => {
                        self.at_end = at_end;
                        return Ok(Step::Head { at_end });
                    }
                    Lookup::Dropped => self.mode = Mode::Lost,
                },
                Mode::Source(_) => match self.log.find(self.next, self.generation) {
                    Found::At(serial) => self.mode = Mode::Memory(serial),
                    Found::Rewound(gap) => return Ok(self.rewind(gap)),
                    Found::Nowhere => return self.read_source(),
                },
            }
        }
    }

    /// The next part of the state. Its events have holes between their indexes: what is missing has no
    /// part in it.
    fn step_state(&mut self) -> Result<Option<Step>, SourceError> {
        let failed = |source| SourceError::Io {
            action: "read",
            what: "the state of HSM actions".to_owned(),
            source,
        };
        let state = match &mut self.state {
            None => return Ok(None),
            Some(State::Known(state)) => state,
            Some(State::Wanted(journal)) => {
                let state = journal.snapshot().map_err(failed)?;
                match self.state.insert(State::Known(state)) {
                    State::Known(state) => state,
                    State::Wanted(_) => return Ok(None),
                }
            }
        };
        let mut bytes = Vec::new();
        let read = state.read(STATE_BYTES, &mut bytes);
        if !read.map_err(failed)? {
            // What comes after it goes on without a hole.
            self.next = self.next.max(state.next_index());
            self.continues = true;
            self.state = None;
            return Ok(None);
        }
        let batch = Batch::parse(bytes).map_err(|problem| SourceError::Malformed {
            what: "the state of HSM actions".to_owned(),
            problem: problem.to_string(),
        })?;
        Ok(self.take(Entry::Records(Arc::new(batch))))
    }

    fn take(&mut self, entry: Entry) -> Option<Step> {
        match entry {
            Entry::Records(batch) if batch.last() < self.next => None,
            Entry::Records(batch) => {
                let batch = if batch.first() < self.next {
                    Arc::new(batch.tail_from(self.next)?)
                } else {
                    batch
                };
                self.next = batch.last().next();
                self.continues = true;
                Some(Step::Records(batch))
            }
            // It began after that.
            Entry::Gap(gap) if gap.rewinds && gap.generation <= self.generation => None,
            Entry::Gap(gap) => {
                // A hole that was found in an earlier history is one in this one, too.
                let gap = Gap { generation: gap.generation.max(self.generation), ..gap };
                self.generation = gap.generation;
                let resume = if gap.rewinds { gap.first } else { gap.last.next() };
                self.next = if gap.rewinds { self.next.min(resume) } else { self.next.max(resume) };
                Some(Step::Gap(gap))
            }
        }
    }

    /// A new history began while it was not in memory to see it.
    fn rewind(&mut self, gap: Gap) -> Step {
        self.mode = Mode::Lost;
        self.pending.clear();
        self.take(Entry::Gap(gap)).unwrap_or(Step::Head { at_end: false })
    }

    fn take_piece(&mut self, piece: Piece) -> Option<Step> {
        self.take(match piece {
            Piece::Records(batch) => Entry::Records(Arc::new(batch)),
            Piece::Hole(first, last) => {
                Entry::Gap(Gap { first, last, generation: self.generation, rewinds: false })
            }
        })
    }

    fn read_source(&mut self) -> Result<Step, SourceError> {
        let Mode::Source(source) = &mut self.mode else { return Ok(Step::Head { at_end: false }) };
        let mut buffer = self.buffers.take();
        let outcome = source.read(&mut buffer.bytes).inspect_err(|_| self.mode = Mode::Lost)?;
        match outcome {
            ReadOutcome::Lost { first, last } => {
                let gap = Gap { first, last, generation: self.generation, rewinds: false };
                Ok(self.take(Entry::Gap(gap)).unwrap_or(Step::Head { at_end: false }))
            }
            ReadOutcome::Wait { on, at_end } => Ok(Step::Wait { on, at_end }),
            ReadOutcome::Ended => {
                // This handle has had its day; open another after a pause.
                self.mode = Mode::Lost;
                let on = WaitFor::Until(Instant::now() + REOPEN_PAUSE);
                Ok(Step::Wait { on, at_end: true })
            }
            ReadOutcome::Bytes(_) => {
                let batch = Batch::parse_pooled(buffer, &self.buffers).map_err(|error| {
                    self.mode = Mode::Lost;
                    SourceError::Malformed {
                        what: "catch-up read".to_owned(),
                        problem: error.to_string(),
                    }
                })?;
                let dense = self.upstream.is_dense();
                let mut batch = if batch.first() < self.next {
                    batch.tail_from(self.next)
                } else {
                    Some(batch)
                };
                // What the log has not read was not noted either: nobody gets it before that.
                let (head, _) = self.log.head();
                if batch.as_ref().is_some_and(|batch| batch.last() >= head) {
                    self.mode = Mode::Lost;
                    batch = batch.and_then(|batch| batch.head_before(head));
                }
                // All of it may lie before our place, after a seek that was not exact.
                let again = Step::Wait { on: WaitFor::Until(Instant::now()), at_end: false };
                let Some(batch) = batch else { return Ok(again) };
                self.pending = pieces(batch, self.next, self.continues, dense).into();
                let first = self.pending.pop_front();
                Ok(first.and_then(|piece| self.take_piece(piece)).unwrap_or(again))
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.unfollow(&self.place);
    }
}

/// Sleeps until `waker` is woken or what `on` names has come; `until` bounds it.
pub fn sleep_on(
    waker: &Waker,
    on: Option<WaitFor>,
    until: Option<Instant>,
    ready: impl FnOnce() -> bool,
) {
    match on {
        Some(WaitFor::Readable(fd)) => waker.sleep(Some(fd), until, ready),
        Some(WaitFor::ReadableUntil(fd, at)) => {
            waker.sleep(Some(fd), Some(until.map_or(at, |until| until.min(at))), ready);
        }
        Some(WaitFor::Until(at)) => {
            waker.sleep(None, Some(until.map_or(at, |until| until.min(at))), ready);
        }
        Some(WaitFor::Never) | None => waker.sleep(None, until, ready),
    }
}
