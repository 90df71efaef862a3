//! From one MDT's records to one stream's messages: a follower, and the stream's policies on it.
//!
//! Live workers, queue workers and catch-up threads all run one of these; what differs is where the
//! messages go.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::{Flags, Header, Kind};

use crate::batch::Batch;
use crate::follower::{Follower, Step};
use crate::log::Gap;
use crate::policy::{Chain, ChainOutput, Nanos, Part, PolicyError};
use crate::source::{SourceError, WaitFor};

/// The records of a message.
#[derive(Clone, Debug)]
pub enum Body {
    /// A batch as it was read; shared with the log and other streams.
    Batch(Arc<Batch>),
    /// Records that policies chose.
    Bytes(Arc<Vec<u8>>),
}

impl Body {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Batch(batch) => batch.bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// For libzmq, which keeps them until the last peer has them.
    pub fn share(&self) -> lcap_ffi::zmq_frame::SharedBytes {
        match self {
            Self::Batch(batch) => Arc::<Batch>::clone(batch) as _,
            Self::Bytes(bytes) => Arc::<Vec<u8>>::clone(bytes) as _,
        }
    }
}

/// One message to be, without a number yet.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Everything but epoch and sequence is filled in.
    pub header: Header,
    /// Its records.
    pub body: Body,
    /// A route key per record; empty if no policy gave any.
    pub routes: Vec<u64>,
    /// When the oldest of its records was read.
    pub read_at: Instant,
}

/// What a pipeline has.
#[derive(Debug)]
pub enum Poll {
    /// A message.
    Message(Outgoing),
    /// No message, but records were dropped or held: look at the figures.
    Moved,
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

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The source cannot be read now; try again after a pause.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A policy failed and the configuration says to stop.
    #[error("a policy stopped the stream")]
    Policy(#[from] PolicyError),
}

/// A stream's view of one MDT.
#[derive(Debug)]
pub struct Pipeline {
    follower: Follower,
    chain: Chain,
    output: ChainOutput,
    ready: VecDeque<Outgoing>,
    /// Everything up to here has left in messages, or was dropped.
    low: RecordIndex,
    /// The history that what is sent now belongs to.
    generation: u16,
    /// Nothing beyond is read.
    limit: Option<RecordIndex>,
    started: Instant,
}

impl Pipeline {
    /// A pipeline over a follower. `started` is the clock that policies see.
    pub fn new(follower: Follower, chain: Chain, started: Instant) -> Self {
        let low = follower.next_index().prev();
        let (output, ready) = (ChainOutput::default(), VecDeque::new());
        let generation = follower.generation();
        Self { follower, chain, output, ready, low, generation, limit: None, started }
    }

    /// The stream's policies.
    pub fn chain(&mut self) -> &mut Chain {
        &mut self.chain
    }

    /// Whether policies make records of their own.
    pub fn merges(&self) -> bool {
        self.chain.merges()
    }

    /// Nothing beyond `limit` is to come out, and nothing beyond it is to go into what does.
    pub fn limit(&mut self, limit: RecordIndex) {
        self.limit = Some(limit);
    }

    /// Records that policies hold.
    pub fn held(&self) -> u64 {
        self.chain.held()
    }

    /// Records that policies dropped.
    pub fn dropped(&self) -> u64 {
        self.chain.dropped()
    }

    /// Everything up to here was returned in messages or dropped.
    pub fn low(&self) -> RecordIndex {
        self.low
    }

    /// See [`Follower::head`].
    pub fn head(&self) -> RecordIndex {
        self.follower.head()
    }
    /// The lowest index not read yet.
    pub fn next_index(&self) -> RecordIndex {
        self.follower.next_index()
    }

    /// The MDT's history that it is in.
    pub fn generation(&self) -> u16 {
        self.generation
    }

    /// Asks the source where its end is now.
    pub fn want_end(&mut self) {
        self.follower.want_end();
    }

    /// Whether [`Self::poll`] may have more than it said last; asked after the waker was armed.
    pub fn has_news(&self) -> bool {
        !self.ready.is_empty() || self.follower.has_news()
    }

    /// The reader thread is not to wait for us.
    pub fn detach(&self) {
        self.follower.detach();
    }

    /// When policies want to be asked again.
    pub fn wake_at(&self) -> Option<Instant> {
        self.chain.wake_at().map(|at| self.started + Duration::from_nanos(at.0))
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The next message, or why there is none.
    ///
    /// # Errors
    /// [`PipelineError`]; nothing is lost, it can be asked again.
    pub fn poll(&mut self) -> Result<Poll, PipelineError> {
        if let Some(message) = self.next_ready() {
            return Ok(Poll::Message(message));
        }
        match self.follower.step()? {
            Step::Records(batch) => {
                let within = match self.limit {
                    Some(limit) if batch.last() > limit => {
                        batch.head_before(limit.next()).map(Arc::new)
                    }
                    _ => Some(batch),
                };
                let Some(batch) = within else { return Ok(Poll::Moved) };
                if self.chain.is_identity() {
                    self.low = batch.last();
                    return Ok(Poll::Message(self.whole(batch, self.low)));
                }
                let (read_at, now) = (batch.read_at(), self.now());
                self.chain.push(&batch, now)?;
                self.pull(false, read_at)?;
                Ok(self.next_ready().map_or(Poll::Moved, Poll::Message))
            }
            Step::Gap(gap) => {
                // What is held belongs to the history before.
                self.flush()?;
                self.generation = gap.generation;
                self.ready.push_back(gap_message(gap, self.low));
                if gap.rewinds {
                    self.low = self.low.min(gap.first.prev());
                    self.chain.rewind(gap.first);
                } else {
                    self.low = self.low.max(gap.last);
                }
                Ok(self.next_ready().map_or(Poll::Moved, Poll::Message))
            }
            Step::Head { at_end } => {
                self.pull_if_due()?;
                Ok(self.next_ready().map_or(Poll::Head { at_end }, Poll::Message))
            }
            Step::Wait { on, at_end } => {
                self.pull_if_due()?;
                Ok(self.next_ready().map_or(Poll::Wait { on, at_end }, Poll::Message))
            }
        }
    }

    /// Makes the policies give up all that they hold; [`Self::next_ready`] has it then.
    ///
    /// # Errors
    /// If a policy fails and the configuration says to stop.
    pub fn flush(&mut self) -> Result<(), PipelineError> {
        if !self.chain.is_identity() {
            self.pull(true, Instant::now())?;
        }
        Ok(())
    }

    /// A message that is ready, without reading any further.
    pub fn next_ready(&mut self) -> Option<Outgoing> {
        self.ready.pop_front()
    }

    fn pull_if_due(&mut self) -> Result<(), PipelineError> {
        let due = self.chain.wake_at().is_some_and(|at| at <= self.now());
        if due { self.pull(false, Instant::now()) } else { Ok(()) }
    }

    fn pull(&mut self, flush: bool, read_at: Instant) -> Result<(), PipelineError> {
        let now = self.now();
        self.chain.pull(now, flush, &mut self.output)?;
        let before = self.low;
        self.low = self.chain.low().max(before);
        let first = self.ready.len();
        let bytes = std::mem::take(&mut self.output.bytes);
        let bytes = Arc::new(bytes);
        for part in &self.output.parts {
            match part {
                Part::Whole { batch, .. } => {
                    let message = self.whole(Arc::clone(batch), before);
                    self.ready.push_back(message);
                }
                Part::Packed { records, bytes: range, .. } => {
                    let all = range.len() == bytes.len();
                    let body = match bytes.get(range.clone()) {
                        _ if all => Arc::clone(&bytes),
                        part => Arc::new(part.unwrap_or_default().to_vec()),
                    };
                    let records = self.output.records.get(records.clone()).unwrap_or_default();
                    let mut header = Header::for_body(Kind::Records, &body);
                    header.low = before;
                    header.first = records.iter().map(|r| r.index).min().unwrap_or(before);
                    header.last = records.iter().map(|r| r.index).max().unwrap_or(before);
                    header.count = u32::try_from(records.len()).unwrap_or(u32::MAX);
                    header.generation = self.generation();
                    let routed = records.iter().any(|r| r.route != 0);
                    let routes = records.iter().filter(|_| routed).map(|r| r.route).collect();
                    self.ready.push_back(Outgoing {
                        header,
                        body: Body::Bytes(body),
                        routes,
                        read_at,
                    });
                }
            }
        }
        // Only the last message completes what this pull settled.
        let low = self.low;
        if let Some(last) = self.ready.iter_mut().skip(first).next_back() {
            last.header.low = low;
        }
        Ok(())
    }

    fn whole(&self, batch: Arc<Batch>, low: RecordIndex) -> Outgoing {
        let header = Header {
            kind: Kind::Records,
            flags: Flags::default(),
            epoch: 0,
            sequence: 0,
            low,
            first: batch.first(),
            last: batch.last(),
            count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
            body_bytes: u32::try_from(batch.bytes().len()).unwrap_or(u32::MAX),
            lane: 0,
            generation: self.generation(),
            body_crc: batch.crc(),
        };
        let read_at = batch.read_at();
        Outgoing { header, body: Body::Batch(batch), routes: Vec::new(), read_at }
    }
}

fn gap_message(gap: Gap, low: RecordIndex) -> Outgoing {
    let mut header = Header::for_body(Kind::Gap, &[]);
    header.first = gap.first;
    header.last = gap.last;
    header.generation = gap.generation;
    header.low = if gap.rewinds { low.min(gap.first.prev()) } else { low.max(gap.last) };
    let body = Body::Bytes(Arc::new(Vec::new()));
    Outgoing { header, body, routes: Vec::new(), read_at: Instant::now() }
}

/// Builds a stream's policies for one MDT, anew for each worker and catch-up.
pub trait ChainFactory: Send + Sync {
    /// A fresh chain.
    ///
    /// # Errors
    /// If a module refuses to be created.
    fn make(&self, mdt: &MdtName) -> Result<Chain, PolicyError>;
}
