//! One thread per stream and MDT: runs the stream's policies over the MDT's log.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::Kind;
use tracing::{error, warn};

use crate::engine::position::Sent;
use crate::engine::queue::QueueBatch;
use crate::follower::sleep_on;
use crate::pipeline::{Joint, Outgoing, Pipeline, PipelineError, Poll};
use crate::policy::FiguresSlot;
use crate::reader::chain;
use crate::source::WaitFor;
use crate::taps::{TapId, Taps, filtered};
use crate::wake::Waker;

/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// How far a worker is, for others to read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    /// Records sent in this epoch.
    pub sent: AtomicU64,
    /// Records that policies dropped in this epoch.
    pub dropped: AtomicU64,
    /// Records that policies hold.
    pub held: AtomicU64,
    /// Last sequence.
    pub sequence: AtomicU64,
    /// Everything up to here was sent or dropped.
    pub low: AtomicU64,
    /// Highest index sent.
    pub highest: AtomicU64,
    /// The lowest index not read yet.
    pub next: AtomicU64,
    /// The MDT's history that it is in.
    pub generation: AtomicU16,
    /// A policy stopped it.
    pub stopped: AtomicBool,
    /// What its policies do.
    pub policies: Arc<FiguresSlot>,
}

impl Progress {
    /// What acknowledgements need to know of it, and of which history: that is written last and
    /// read first, so what is said of a new history is never an old one's. Of the two indexes,
    /// `highest` is written first and read last: `low` beside a `highest` from before it would say
    /// that what was just sent had been dropped by a policy.
    pub fn sent_state(&self) -> (Sent, u16) {
        let generation = self.generation.load(Ordering::Acquire);
        let low = RecordIndex::new(self.low.load(Ordering::Acquire));
        let highest = RecordIndex::new(self.highest.load(Ordering::Acquire));
        (Sent { low, highest }, generation)
    }

    /// The worker begins after `low`. What lies before it was sent in an earlier life, to whom is
    /// not known: it is not to be taken for dropped.
    fn begin(&self, low: RecordIndex) {
        self.highest.store(low.get(), Ordering::Release);
        self.low.store(low.get(), Ordering::Release);
    }

    fn note_message(&self, message: &Outgoing) {
        if message.header.kind == Kind::Records {
            self.sent.fetch_add(message.header.count.into(), Ordering::Relaxed);
            self.highest.fetch_max(message.header.last.get(), Ordering::AcqRel);
        } else if message.header.generation != self.generation.load(Ordering::Relaxed) {
            // A new history: only what both have in common was sent of it.
            self.highest.fetch_min(message.header.first.prev().get(), Ordering::AcqRel);
        }
    }

    fn note(&self, pipeline: &Pipeline) {
        self.dropped.store(pipeline.dropped(), Ordering::Relaxed);
        self.held.store(pipeline.held(), Ordering::Relaxed);
        self.next.store(pipeline.next_index().get(), Ordering::Relaxed);
    }
}

/// What others ask of a worker.
#[derive(Debug)]
pub enum Command {
    /// Send all that policies hold, then say where the stream is, and wake who asked.
    Barrier {
        /// Not before everything below this was read.
        past: RecordIndex,
        /// Takes the answer.
        reply: Sender<BarrierReply>,
        /// Wakes who asked.
        waker: Waker,
    },
    /// Ask the policies up to where the MDT may be cleared.
    ClearUpto {
        /// Registered readers and their watermarks.
        readers: Vec<(String, RecordIndex)>,
        /// What the host would clear.
        proposed: RecordIndex,
        /// Takes the answer.
        answer: Answer,
    },
    /// Go on through other policies.
    Replace {
        /// The policies.
        joint: Arc<Joint>,
        /// Number of the MDT there.
        mdt: u32,
        /// Done, or why the old ones are still at work.
        done: Sender<Result<(), String>>,
    },
}

/// Takes the answer of a policy, on the worker's thread.
pub struct Answer(Box<dyn FnOnce(RecordIndex) + Send>);

impl From<Box<dyn FnOnce(RecordIndex) + Send>> for Answer {
    fn from(answer: Box<dyn FnOnce(RecordIndex) + Send>) -> Self {
        Self(answer)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

/// Where a stream is right after a barrier.
#[derive(Clone, Copy, Debug)]
pub struct BarrierReply {
    /// Last sequence sent.
    pub sequence: u64,
    /// Everything up to here was sent or dropped, and nothing beyond.
    pub low: RecordIndex,
    /// The MDT's history.
    pub generation: u16,
}

/// Where a worker's messages go.
pub enum Output {
    /// To a broadcast stream's subscribers.
    Broadcast {
        /// Sends to them.
        to: Arc<dyn Publish>,
        /// Filters that consumers gave.
        taps: Taps,
    },
    /// To the engine, which gives them to the queue's members.
    Queue {
        /// What was read, with the number of the MDT.
        inputs: Sender<QueueInput>,
        /// Wakes the engine.
        waker: Waker,
        /// Lanes of the queue.
        lanes: u16,
    },
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broadcast { .. } => "Broadcast",
            Self::Queue { .. } => "Queue",
        })
    }
}

/// Sends what a broadcast stream's workers have made.
pub trait Publish: Send + Sync {
    /// Sends a message to all subscribers. Does not wait for any of them.
    fn publish(&self, published: Published);
}

/// A message of a broadcast stream.
#[derive(Debug)]
pub struct Published {
    /// Number of its MDT.
    pub mdt_at: usize,
    /// The message.
    pub message: Outgoing,
    /// The same for each filter.
    pub filtered: Vec<(TapId, Outgoing)>,
}

/// What a step of a worker or catch-up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// There may be more to do.
    Again,
    /// Nothing to do until woken, until the policies want to be called, or until this.
    Wait(Option<WaitFor>),
    /// Nothing to do ever again.
    Over,
}

/// Progress of a queue stream on one MDT.
#[derive(Debug)]
pub enum QueueInput {
    /// Batches to give out; then everything up to `low` is known to the queue.
    Batches {
        /// The batches.
        batches: Vec<QueueBatch<Outgoing>>,
        /// Everything up to here is in them or earlier ones, or was dropped.
        low: RecordIndex,
        /// The history that `low` belongs to.
        generation: u16,
    },
    /// A gap: to be told to every member.
    Gap(Outgoing),
    /// Whether the source has nothing more.
    AtEnd(bool),
}

/// The thread's state.
#[derive(Debug)]
pub struct Worker {
    /// Number of the MDT.
    pub mdt_at: usize,
    /// Its name.
    pub mdt: MdtName,
    /// Name of the stream.
    pub stream: String,
    /// What it runs.
    pub pipeline: Pipeline,
    /// Where messages go.
    pub output: Output,
    /// What others may know.
    pub progress: Arc<Progress>,
    /// What others ask.
    pub commands: Receiver<Command>,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
    /// Barriers that were asked for and wait until it has read so far.
    pub barriers: Vec<(RecordIndex, Sender<BarrierReply>, Waker)>,
    /// What a queue was told last of whether the source has nothing more.
    pub told_end: Option<bool>,
}

impl Worker {
    /// Works until told to stop.
    pub fn run(&mut self) {
        self.begin();
        while !self.stop.load(Ordering::Relaxed) {
            let on = match self.step() {
                Stepped::Again => continue,
                Stepped::Wait(on) => on,
                Stepped::Over => return,
            };
            let until = self.pipeline.wake_at();
            let (commands, stop) = (&self.commands, &self.stop);
            // The log wakes us for records; look at it again after arming the waker.
            sleep_on(&self.waker, on, until, || {
                stop.load(Ordering::Relaxed) || !commands.is_empty() || self.pipeline.has_news()
            });
        }
    }

    /// Says where it begins; to be called once, before the first [`Self::step`].
    pub fn begin(&mut self) {
        self.pipeline.set_waker(&self.waker);
        self.progress.policies.set(self.pipeline.figures());
        self.progress.begin(self.pipeline.low());
        self.progress.generation.store(self.pipeline.generation(), Ordering::Release);
        self.progress.note(&self.pipeline);
    }

    /// Does one thing that there is to do. Waits for nothing but a full output.
    pub fn step(&mut self) -> Stepped {
        if !self.obey() {
            return Stepped::Over;
        }
        self.answer_barriers();
        let (on, at_end) = match self.pipeline.poll() {
            Ok(Poll::Message(message)) => {
                self.told_end = None;
                self.send(message);
                return Stepped::Again;
            }
            Ok(Poll::Moved) => {
                self.note_low();
                return Stepped::Again;
            }
            Ok(Poll::Head { at_end }) => (None, at_end),
            Ok(Poll::Wait { on, at_end }) => (Some(on), at_end),
            Err(PipelineError::Source(error)) => {
                warn!(mdt = %self.mdt, stream = self.stream, error = chain(&error),
                    "cannot read the source to catch up, will retry");
                (Some(WaitFor::Until(Instant::now() + PAUSE)), false)
            }
            Err(error @ PipelineError::Policy(_)) => {
                error!(mdt = %self.mdt, stream = self.stream, error = chain(&error),
                    "a policy failed; the stream stands still until it gets other policies: `lcap policy reload`");
                self.progress.stopped.store(true, Ordering::Relaxed);
                (Some(WaitFor::Never), false)
            }
        };
        self.note_low();
        if self.told_end != Some(at_end) {
            self.told_end = Some(at_end);
            if let Output::Queue { inputs, waker, .. } = &self.output {
                let (inputs, waker) = (inputs.clone(), waker.clone());
                self.hand_over(&inputs, QueueInput::AtEnd(at_end));
                waker.wake();
            }
        }
        Stepped::Wait(on)
    }

    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Barrier { past, reply, waker }) => {
                    self.barriers.push((past, reply, waker));
                }
                Ok(Command::ClearUpto { readers, proposed, answer }) => {
                    (answer.0)(self.pipeline.clear_upto(&readers, proposed));
                }
                Ok(Command::Replace { joint, mdt, done }) => {
                    let replaced = self.pipeline.replace(&joint, mdt);
                    if replaced.is_ok() {
                        self.pipeline.set_waker(&self.waker);
                        self.progress.policies.set(self.pipeline.figures());
                        self.progress.stopped.store(false, Ordering::Relaxed);
                    }
                    // What came out is sent before `low` is told: `poll` has it next.
                    let _ = done.send(replaced.map_err(|error| chain(&error)));
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Answers the barriers whose place it has reached.
    fn answer_barriers(&mut self) {
        let next = self.pipeline.next_index();
        let stopped = self.progress.stopped.load(Ordering::Relaxed);
        let reached = |(past, ..): &(RecordIndex, _, _)| *past <= next || stopped;
        let (now, later) = std::mem::take(&mut self.barriers).into_iter().partition(reached);
        self.barriers = later;
        for (_, reply, waker) in now {
            if let Err(error) = self.pipeline.flush() {
                error!(mdt = %self.mdt, stream = self.stream, error = chain(&error),
                    "a policy failed");
            }
            while let Some(message) = self.pipeline.next_ready() {
                self.send(message);
            }
            self.note_low();
            let sequence = self.progress.sequence.load(Ordering::Relaxed);
            let (low, generation) = (self.pipeline.low(), self.pipeline.generation());
            let _ = reply.send(BarrierReply { sequence, low, generation });
            waker.wake();
        }
    }

    /// Says that records were settled without a message.
    fn note_low(&mut self) {
        let low = self.pipeline.low();
        let before = self.progress.low.swap(low.get(), Ordering::AcqRel);
        self.progress.generation.store(self.pipeline.generation(), Ordering::Release);
        self.progress.note(&self.pipeline);
        if before != low.get()
            && let Output::Queue { inputs, waker, .. } = &self.output
        {
            let (inputs, waker) = (inputs.clone(), waker.clone());
            let generation = self.pipeline.generation();
            self.hand_over(&inputs, QueueInput::Batches { batches: Vec::new(), low, generation });
            waker.wake();
        }
    }

    /// Gives the engine something for a queue; waits while the queue is full. Not handed over only
    /// when the daemon stops: it was not settled then.
    fn hand_over(&mut self, inputs: &Sender<QueueInput>, input: QueueInput) {
        let mut input = input;
        while let Err(TrySendError::Full(back)) = inputs.try_send(input) {
            input = back;
            // Members are slower than the MDT: the reader is not to wait for them.
            self.pipeline.detach();
            if self.stop.load(Ordering::Relaxed) || !self.obey() {
                return;
            }
            let (stop, commands) = (&self.stop, &self.commands);
            self.waker.sleep(None, None, || {
                stop.load(Ordering::Relaxed) || !inputs.is_full() || !commands.is_empty()
            });
        }
    }

    fn send(&mut self, mut message: Outgoing) {
        let (low, generation) = (message.header.low, message.header.generation);
        self.progress.note_message(&message);
        match &self.output {
            Output::Broadcast { to, taps } => {
                let sequence = self.progress.sequence.load(Ordering::Relaxed) + 1;
                message.header.sequence = sequence;
                let taps = taps.now();
                let filtered = if taps.is_empty() {
                    Vec::new()
                } else {
                    let filters = taps.iter().map(|tap| &tap.filter);
                    let parts = filtered(&message, &self.mdt, filters);
                    taps.iter().map(|tap| tap.id).zip(parts).collect()
                };
                to.publish(Published { mdt_at: self.mdt_at, message, filtered });
                self.progress.sequence.store(sequence, Ordering::Release);
            }
            Output::Queue { inputs, waker, lanes } => {
                let input = if message.header.kind == Kind::Gap {
                    QueueInput::Gap(message)
                } else {
                    QueueInput::Batches { batches: split_lanes(message, *lanes), low, generation }
                };
                let (inputs, waker) = (inputs.clone(), waker.clone());
                self.hand_over(&inputs, input);
                waker.wake();
            }
        }
        self.progress.low.store(low.get(), Ordering::Release);
        self.progress.generation.store(generation, Ordering::Release);
        self.progress.note(&self.pipeline);
    }
}

/// Takes a message apart by lane. Without route keys, records go by their target.
fn split_lanes(message: Outgoing, lanes: u16) -> Vec<QueueBatch<Outgoing>> {
    let body = message.body.as_slice();
    let records = || lcap_ffi::record::records(body).map_while(Result::ok);
    if lanes <= 1 {
        let indexes = records().map(|record| record.index()).collect();
        let bytes = body.len();
        return vec![QueueBatch { lane: 0, indexes, bytes, payload: message }];
    }
    let mut parts: Vec<(Vec<RecordIndex>, Vec<u8>)> = vec![Default::default(); lanes.into()];
    for (at, record) in records().enumerate() {
        let key = message.routes.get(at).copied().filter(|&key| key != 0).unwrap_or_else(|| {
            let target = record.source().filter(|fid| !fid.is_zero()).unwrap_or(record.target());
            target.seq.rotate_left(32) ^ u64::from(target.oid)
        });
        let lane = usize::try_from(mix(key) % u64::from(lanes)).unwrap_or(0);
        if let Some((indexes, bytes)) = parts.get_mut(lane) {
            indexes.push(record.index());
            bytes.extend_from_slice(record.as_bytes());
        }
    }
    let with_lane = (0_u16..).zip(parts).filter(|(_, (indexes, _))| !indexes.is_empty());
    with_lane
        .map(|(lane, (indexes, bytes))| {
            let mut header = lcap_wire::Header::for_body(Kind::Records, &bytes);
            header.lane = lane;
            header.generation = message.header.generation;
            header.low = message.header.low;
            header.first = indexes.iter().min().copied().unwrap_or_default();
            header.last = indexes.iter().max().copied().unwrap_or_default();
            header.count = u32::try_from(indexes.len()).unwrap_or(u32::MAX);
            let (size, read_at) = (bytes.len(), message.read_at);
            let body = crate::pipeline::Body::Bytes(Arc::new(bytes));
            let payload = Outgoing { header, body, routes: Vec::new(), read_at };
            QueueBatch { lane, indexes, bytes: size, payload }
        })
        .collect()
}

/// Spreads keys that differ in few bits (the finaliser of splitmix64).
fn mix(key: u64) -> u64 {
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_never_looks_dropped() {
        let progress = Arc::new(Progress::default());
        let writer = Arc::clone(&progress);
        let sender = std::thread::spawn(move || {
            writer.begin(RecordIndex::new(10));
            for index in 11..2_000_000 {
                writer.highest.fetch_max(index, Ordering::AcqRel); // as in `send`
                writer.low.store(index, Ordering::Release);
            }
        });
        while !sender.is_finished() {
            let (sent, _) = progress.sent_state();
            assert!(sent.low <= sent.highest, "{sent:?}");
        }
        sender.join().unwrap();
    }
}
