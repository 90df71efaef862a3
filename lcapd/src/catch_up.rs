//! One thread per client that reads what came before the live stream.
//!
//! It runs the stream's policies anew from the client's place on, out of memory or from the source.
//! Once it has reached the live worker, that one is asked to send all that its policies hold (a
//! barrier): what the client has had then and what comes live after it fit together exactly.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::Kind;
use tracing::warn;

use crate::follower::sleep_on;
use crate::pipeline::{Outgoing, Pipeline, PipelineError, Poll};
use crate::reader::chain;
use crate::source::WaitFor;
use crate::taps::{Tap, filtered};
use crate::wake::Waker;
use crate::worker::{BarrierReply, Command, Progress, Stepped};

/// Messages that wait for the client to have room.
const WAITING: usize = 4;
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// What a catch-up has for its client.
#[derive(Debug)]
pub enum Item {
    /// A message, without a number yet.
    Message(Outgoing),
    /// It goes on live after `sequence`.
    Live {
        /// Last live sequence whose records the client has had.
        sequence: u64,
        /// Everything up to here was delivered or dropped.
        low: RecordIndex,
    },
    /// The present end.
    End {
        /// Everything up to here was delivered or dropped.
        low: RecordIndex,
    },
    /// It cannot go on.
    Failed(String),
}

/// The live worker of the same stream and MDT.
#[derive(Clone, Debug)]
pub struct LiveWorker {
    /// What is asked of it.
    pub commands: Sender<Command>,
    /// Wakes it.
    pub waker: Waker,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// The engine's end.
#[derive(Debug)]
pub struct Handle {
    /// What there is for the client.
    pub items: Receiver<Item>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

impl Handle {
    /// Tells the thread that there is room again.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

impl Drop for Handle {
    /// Ends the thread, without waiting for it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// The thread's state.
#[derive(Debug)]
pub struct CatchUp {
    mdt: MdtName,
    pipeline: Pipeline,
    live: LiveWorker,
    follow: bool,
    filter: Option<Arc<Tap>>,
    items: Sender<Item>,
    /// Tells the engine that there is an item.
    notify: Notify,
    waker: Waker,
    stop: Arc<AtomicBool>,
    /// What is to be handed over first.
    outbox: VecDeque<Item>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Reads what came before the live stream.
    Past,
    /// Has asked the live worker where it is.
    Barrier(Receiver<BarrierReply>),
    /// Reads on to where that was.
    Joining(BarrierReply),
    /// Nothing follows.
    Over,
}

/// How the engine learns of items.
#[derive(Clone, Debug)]
pub struct Notify {
    /// The session that has one.
    pub session: u64,
    /// Sessions that have one.
    pub ready: Sender<u64>,
    /// Wakes the engine.
    pub waker: Waker,
}

impl CatchUp {
    /// A catch-up over a pipeline that `waker` was made for, and the engine's end of it.
    pub fn new(
        mdt: MdtName,
        pipeline: Pipeline,
        live: LiveWorker,
        follow: bool,
        filter: Option<Arc<Tap>>,
        notify: Notify,
        waker: Waker,
    ) -> (Self, Handle) {
        let (items, received) = bounded(WAITING);
        let stop = Arc::new(AtomicBool::new(false));
        let handle = Handle { items: received, stop: Arc::clone(&stop), waker: waker.clone() };
        let (outbox, phase) = (VecDeque::new(), Phase::Past);
        let catch_up =
            Self { mdt, pipeline, live, follow, filter, items, notify, waker, stop, outbox, phase };
        (catch_up, handle)
    }

    /// Works until the client has caught up, or is gone.
    pub fn run(&mut self) {
        while !self.stopped() {
            match self.step() {
                Stepped::Again => {}
                Stepped::Over => return,
                Stepped::Wait(on) => {
                    // While the client has no room, or the live worker is asked, policies wait.
                    let reads = matches!(self.phase, Phase::Past | Phase::Joining(_));
                    let until = self.pipeline.wake_at().filter(|_| reads && self.outbox.is_empty());
                    sleep_on(&self.waker, on, until, || self.stopped() || self.has_news());
                }
            }
        }
    }

    /// Does one thing that there is to do. Waits for nothing.
    pub fn step(&mut self) -> Stepped {
        if let Some(item) = self.outbox.pop_front() {
            return self.give(item);
        }
        match &self.phase {
            Phase::Past => self.read_on(),
            Phase::Barrier(answer) => match answer.try_recv() {
                Ok(reply) => {
                    self.pipeline.want_end();
                    self.phase = Phase::Joining(reply);
                    Stepped::Again
                }
                Err(TryRecvError::Empty) => Stepped::Wait(None),
                Err(TryRecvError::Disconnected) => Stepped::Over, // lcapd stops
            },
            Phase::Joining(reply) => {
                let reply = *reply;
                self.join(reply)
            }
            Phase::Over => Stepped::Over,
        }
    }

    /// The reader thread is not to wait for it, from now until its next step.
    pub fn detach(&self) {
        self.pipeline.detach();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a step would do something now, though the last one had nothing to do.
    fn has_news(&self) -> bool {
        if !self.outbox.is_empty() {
            return !self.items.is_full();
        }
        match &self.phase {
            Phase::Barrier(answer) => !answer.is_empty(),
            _ => self.pipeline.has_news(),
        }
    }

    /// Reads towards the live stream, or the end.
    fn read_on(&mut self) -> Stepped {
        match self.pipeline.poll() {
            Ok(Poll::Message(message)) => {
                self.outbox.push_back(Item::Message(message));
                if self.follow && self.has_reached_live() {
                    return self.ask_live();
                }
                Stepped::Again
            }
            Ok(Poll::Moved) => Stepped::Again,
            Ok(Poll::Head { at_end: true } | Poll::Wait { at_end: true, .. }) if !self.follow => {
                self.drain();
                self.outbox.push_back(Item::End { low: self.pipeline.low() });
                self.finish()
            }
            Ok(Poll::Head { .. } | Poll::Wait { at_end: true, .. }) if self.follow => {
                self.ask_live()
            }
            Ok(Poll::Head { .. }) => Stepped::Wait(None),
            Ok(Poll::Wait { on, .. }) => Stepped::Wait(Some(on)),
            Err(error) => self.cannot_read(&error),
        }
    }

    fn has_reached_live(&self) -> bool {
        self.pipeline.next_index().get() >= self.live.progress.next.load(Ordering::Relaxed)
    }

    /// Asks the live worker for a barrier.
    fn ask_live(&mut self) -> Stepped {
        let (reply, answer) = bounded(1);
        if self.live.commands.send(Command::Barrier(reply, self.waker.clone())).is_err() {
            return Stepped::Over; // lcapd stops
        }
        self.live.waker.wake();
        self.phase = Phase::Barrier(answer);
        Stepped::Again
    }

    /// Joins the live stream at a barrier. The live worker may have been ahead: reads on to where
    /// it was.
    fn join(&mut self, reply: BarrierReply) -> Stepped {
        if self.pipeline.next_index() <= reply.low {
            match self.pipeline.poll() {
                Ok(Poll::Message(message)) => {
                    self.outbox.push_back(Item::Message(message));
                    return Stepped::Again;
                }
                Ok(Poll::Moved) => return Stepped::Again,
                Ok(Poll::Wait { on, at_end: false }) => return Stepped::Wait(Some(on)),
                // The live worker may read from the source, ahead of the log.
                Ok(Poll::Head { .. }) if self.pipeline.head() <= reply.low => {
                    return Stepped::Wait(None);
                }
                // All that there is was read: what the live worker had besides is purged.
                Ok(Poll::Head { .. } | Poll::Wait { at_end: true, .. }) => {}
                Err(error) => return self.cannot_read(&error),
            }
        }
        if self.pipeline.generation() == reply.generation {
            self.drain();
            let (sequence, low) = (reply.sequence, self.pipeline.low().max(reply.low));
            self.outbox.push_back(Item::Live { sequence, low });
        } else {
            let why = "the MDT began a new history meanwhile".to_owned();
            self.outbox.push_back(Item::Failed(why));
        }
        self.finish()
    }

    fn cannot_read(&mut self, error: &PipelineError) -> Stepped {
        if let PipelineError::Source(error) = error {
            warn!(mdt = %self.mdt, error = chain(error),
                "cannot read the source for a client that catches up, will retry");
            return Stepped::Wait(Some(WaitFor::Until(Instant::now() + PAUSE)));
        }
        self.outbox.push_back(Item::Failed(chain(error)));
        self.finish()
    }

    /// Nothing follows what is in the outbox.
    fn finish(&mut self) -> Stepped {
        self.phase = Phase::Over;
        Stepped::Again
    }

    /// Takes out all that the policies hold.
    fn drain(&mut self) {
        if let Err(error) = self.pipeline.flush() {
            self.outbox.push_back(Item::Failed(chain(&error)));
        }
        while let Some(message) = self.pipeline.next_ready() {
            self.outbox.push_back(Item::Message(message));
        }
    }

    /// Of a message, only what passes the client's filter; nothing at all if that is nothing.
    fn pass(&self, item: Item) -> Option<Item> {
        match (item, &self.filter) {
            (Item::Message(message), Some(tap)) if message.header.kind == Kind::Records => {
                let passed = filtered(&message, &self.mdt, std::iter::once(&tap.filter)).pop()?;
                (passed.header.count > 0).then_some(Item::Message(passed))
            }
            (item, _) => Some(item),
        }
    }

    /// Hands an item over if the client has room.
    fn give(&mut self, item: Item) -> Stepped {
        let Some(item) = self.pass(item) else { return Stepped::Again };
        match self.items.try_send(item) {
            Ok(()) => {
                let _ = self.notify.ready.send(self.notify.session);
                self.notify.waker.wake();
                Stepped::Again
            }
            Err(TrySendError::Disconnected(_)) => Stepped::Over,
            Err(TrySendError::Full(item)) => {
                self.outbox.push_front(item);
                self.pipeline.detach();
                Stepped::Wait(None)
            }
        }
    }
}
