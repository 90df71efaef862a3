//! From one MDT's records to one stream's messages: a follower, and the stream's policies on it.
//!
//! Live workers, queue workers and catch-up threads all run one of these; what differs is where the
//! messages go.
#![forbid(unsafe_code)]

mod joint;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::{Header, Kind};
use tracing::warn;

use crate::batch::Batch;
use crate::follower::{Follower, Step};
use crate::log::Gap;
use crate::policies::StreamPolicies;
use crate::policy::{Chain, ChainFigures, Nanos, PolicyError};
use crate::reader::chain;
use crate::source::{SourceError, WaitFor};
use crate::wake::Waker;

pub use joint::Joint;
use joint::Taken;

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
    joint: Arc<Joint>,
    /// Number of the MDT there.
    mdt: u32,
    /// Dropped by policies that others took the place of.
    dropped_before: u64,
    renewal: Option<Renewal>,
    /// What the policies would not take: one of them has stopped the stream.
    refused: Option<Step>,
    ready: VecDeque<Outgoing>,
    /// Everything up to here has left in messages, or was dropped.
    low: RecordIndex,
    /// The history that what is sent now belongs to.
    generation: u16,
    started: Instant,
}

/// Where a pipeline that no worker has learns of other policies.
#[derive(Debug)]
struct Renewal {
    policies: Arc<StreamPolicies>,
    version: u64,
    mdt: MdtName,
}

impl Pipeline {
    /// A pipeline over a follower, with policies of its own. `started` is the clock that they see.
    pub fn new(follower: Follower, chain: Chain, started: Instant) -> Self {
        Self::through(follower, Arc::new(Joint::new(chain, 1)), 0, started)
    }

    /// A pipeline through policies that may be common to several, for the MDT with that number there.
    pub fn through(follower: Follower, joint: Arc<Joint>, mdt: u32, started: Instant) -> Self {
        let low = follower.next_index().prev();
        let generation = follower.generation();
        let (ready, refused) = (VecDeque::new(), None);
        Self {
            follower,
            joint,
            mdt,
            dropped_before: 0,
            renewal: None,
            refused,
            ready,
            low,
            generation,
            started,
        }
    }

    /// The same, going on through other policies whenever the stream does. `version` is that of the
    /// present ones.
    #[must_use]
    pub fn keeping_up_with(
        mut self,
        policies: Arc<StreamPolicies>,
        version: u64,
        mdt: &MdtName,
    ) -> Self {
        self.renewal = Some(Renewal { policies, version, mdt: mdt.clone() });
        self
    }

    /// Who is to be woken when another pipeline has brought something out for this one.
    pub fn set_waker(&self, waker: &Waker) {
        self.joint.set_waker(self.mdt, waker);
    }

    /// See [`Chain::clear_upto`].
    pub fn clear_upto(
        &self,
        readers: &[(String, RecordIndex)],
        proposed: RecordIndex,
    ) -> RecordIndex {
        self.joint.with(|chain| chain.clear_upto_of(self.mdt, readers, proposed))
    }

    /// What the stream's policies do.
    pub fn figures(&self) -> Arc<ChainFigures> {
        self.joint.figures()
    }

    /// Records that policies hold.
    pub fn held(&self) -> u64 {
        self.joint.with(|chain| chain.held_of(self.mdt))
    }

    /// Records that policies dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped_before + self.joint.with(|chain| chain.dropped_of(self.mdt))
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
        !self.ready.is_empty() || self.joint.has_mail(self.mdt) || self.follower.has_news()
    }

    /// The reader thread is not to wait for us.
    pub fn detach(&self) {
        self.follower.detach();
    }

    /// When policies want to be asked again.
    pub fn wake_at(&self) -> Option<Instant> {
        self.joint.with(|chain| chain.wake_at()).map(|at| self.started + Duration::from_nanos(at.0))
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The next message, or why there is none.
    ///
    /// # Errors
    /// [`PipelineError`]; nothing is lost, it can be asked again.
    pub fn poll(&mut self) -> Result<Poll, PipelineError> {
        self.renew();
        if let Some(message) = self.next_ready() {
            return Ok(Poll::Message(message));
        }
        if self.joint.has_mail(self.mdt) {
            let taken = self.joint.collect(self.mdt);
            self.note(taken);
            return Ok(self.next_ready().map_or(Poll::Moved, Poll::Message));
        }
        let step = match self.refused.take() {
            Some(step) => step,
            None => self.follower.step()?,
        };
        match step {
            Step::Records(batch) => {
                if self.joint.is_identity() {
                    self.low = batch.last();
                    return Ok(Poll::Message(self.whole(batch)));
                }
                if let Err(error) = self.run(Some(&batch), false, batch.read_at()) {
                    // One that they took is theirs, whatever became of them.
                    let taken = self.joint.with(|chain| chain.last_of(self.mdt)) >= batch.last();
                    self.refused = (!taken).then_some(Step::Records(batch));
                    return Err(error);
                }
                Ok(self.next_ready().map_or(Poll::Moved, Poll::Message))
            }
            Step::Gap(gap) => {
                // What is held belongs to the history before.
                if let Err(error) = self.flush() {
                    self.refused = Some(Step::Gap(gap));
                    return Err(error);
                }
                self.generation = gap.generation;
                self.ready.push_back(gap_message(gap, self.low));
                if gap.rewinds {
                    self.low = self.low.min(gap.first.prev());
                    self.joint.with(|chain| chain.rewind_of(self.mdt, gap.first));
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
        if self.joint.is_identity() { Ok(()) } else { self.run(None, true, Instant::now()) }
    }

    /// A message that is ready, without reading any further.
    pub fn next_ready(&mut self) -> Option<Outgoing> {
        self.ready.pop_front()
    }

    /// Goes on through other policies, from exactly where it is: what the old ones hold goes into the
    /// new ones, in order. If that fails, all is as it was.
    ///
    /// # Errors
    /// If one of the new policies fails and the configuration says to stop.
    pub fn replace(&mut self, joint: &Arc<Joint>, mdt: u32) -> Result<(), PolicyError> {
        let (left, held, dropped) = self.joint.leave(self.mdt);
        self.note(left);
        let taken = joint.adopt(mdt, &held, self.now())?;
        (self.joint, self.mdt) = (Arc::clone(joint), mdt);
        self.dropped_before += dropped;
        self.note(taken);
        Ok(())
    }

    fn renew(&mut self) {
        let Some(mut renewal) = self.renewal.take() else { return };
        if renewal.policies.version() != renewal.version {
            let made = renewal.policies.joint_for(&renewal.mdt);
            let renewed = made.and_then(|(joint, version)| {
                renewal.version = version;
                self.replace(&joint, 0)
            });
            if let Err(error) = renewed {
                renewal.version = renewal.policies.version(); // said once
                warn!(mdt = %renewal.mdt, stream = renewal.policies.stream(),
                    error = chain(&error), "what reads the past goes on through the old policies");
            }
        }
        self.renewal = Some(renewal);
    }

    fn pull_if_due(&mut self) -> Result<(), PipelineError> {
        let due = self.joint.with(|chain| chain.wake_at()).is_some_and(|at| at <= self.now());
        if due { self.run(None, false, Instant::now()) } else { Ok(()) }
    }

    /// Hands a batch to the policies, if there is one, and takes out what is ready.
    fn run(
        &mut self,
        batch: Option<&Arc<Batch>>,
        flush: bool,
        read_at: Instant,
    ) -> Result<(), PipelineError> {
        let taken = self.joint.run(self.mdt, batch, self.now(), flush, read_at)?;
        self.note(taken);
        Ok(())
    }

    fn note(&mut self, taken: Taken) {
        let before = self.low;
        self.low = taken.low.max(before);
        let n_new = taken.messages.len();
        for (nth, mut message) in taken.messages.into_iter().enumerate() {
            // Only the last message completes what was settled.
            message.header.low = if nth + 1 == n_new { self.low } else { before };
            message.header.generation = self.generation;
            self.ready.push_back(message);
        }
    }

    /// A batch that no policy sees.
    fn whole(&self, batch: Arc<Batch>) -> Outgoing {
        let mut message = joint::whole(batch);
        message.header.low = self.low;
        message.header.generation = self.generation;
        message
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
