//! One thread per client that reads what came before the live stream.
//!
//! It runs the stream's policies anew from the client's place on, out of memory or from the source.
//! Once it has reached the live worker, that one is asked to send all that its policies hold (a
//! barrier): what the client has had then and what comes live after it fit together exactly.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use lcap_ffi::{MdtName, RecordIndex};
use tracing::{debug, warn};

use crate::follower::sleep_on;
use crate::pipeline::{Outgoing, Pipeline, PipelineError, Poll};
use crate::reader::chain;
use crate::source::WaitFor;
use crate::wake::Waker;
use crate::worker::{Command, Progress};

/// Messages that wait for the client to have room.
const WAITING: usize = 4;
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the live worker may take to answer before it is asked again.
const BARRIER_PATIENCE: Duration = Duration::from_secs(10);

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
    items: Sender<Item>,
    /// Tells the engine that there is an item.
    notify: Notify,
    waker: Waker,
    stop: Arc<AtomicBool>,
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
        notify: Notify,
        waker: Waker,
    ) -> (Self, Handle) {
        let (items, received) = bounded(WAITING);
        let stop = Arc::new(AtomicBool::new(false));
        let handle = Handle { items: received, stop: Arc::clone(&stop), waker: waker.clone() };
        (Self { mdt, pipeline, live, follow, items, notify, waker, stop }, handle)
    }

    /// Works until the client has caught up, or is gone.
    pub fn run(&mut self) {
        while !self.stopped() {
            let wait = match self.pipeline.poll() {
                Ok(Poll::Message(message)) => {
                    if !self.give(Item::Message(message)) {
                        return;
                    }
                    if self.follow && self.has_reached_live() {
                        return self.go_live();
                    }
                    continue;
                }
                Ok(Poll::Moved) => continue,
                Ok(Poll::Head { at_end: true } | Poll::Wait { at_end: true, .. })
                    if !self.follow =>
                {
                    return self.end();
                }
                Ok(Poll::Head { .. } | Poll::Wait { at_end: true, .. }) if self.follow => {
                    return self.go_live();
                }
                Ok(Poll::Head { .. }) => None,
                Ok(Poll::Wait { on, .. }) => Some(on),
                Err(PipelineError::Source(error)) => {
                    warn!(mdt = %self.mdt, error = chain(&error),
                        "cannot read the source for a client that catches up, will retry");
                    Some(WaitFor::Until(Instant::now() + PAUSE))
                }
                Err(error @ PipelineError::Policy(_)) => {
                    self.give(Item::Failed(chain(&error)));
                    return;
                }
            };
            let until = self.pipeline.wake_at();
            sleep_on(&self.waker, wait, until, || self.stopped() || self.pipeline.has_news());
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn has_reached_live(&self) -> bool {
        self.pipeline.next_index().get() >= self.live.progress.next.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        if self.drain() {
            self.give(Item::End { low: self.pipeline.low() });
        }
    }

    /// Joins the live stream at a barrier.
    fn go_live(&mut self) {
        let reply = loop {
            if self.stopped() {
                return;
            }
            let (reply, answer) = bounded(1);
            if self.live.commands.send(Command::Barrier(reply)).is_err() {
                return; // lcapd stops
            }
            self.live.waker.wake();
            match answer.recv_timeout(BARRIER_PATIENCE) {
                Ok(reply) => break reply,
                Err(_) => debug!(mdt = %self.mdt, "the live worker does not answer yet"),
            }
        };
        // The live worker may have been ahead: read on to where it was.
        while self.pipeline.next_index() <= reply.low && !self.stopped() {
            match self.pipeline.poll() {
                Ok(Poll::Message(message)) => {
                    if !self.give(Item::Message(message)) {
                        return;
                    }
                }
                Ok(Poll::Moved) => {}
                Ok(Poll::Head { .. }) => {
                    sleep_on(&self.waker, None, None, || {
                        self.stopped() || self.pipeline.has_news()
                    });
                }
                Ok(Poll::Wait { on, .. }) => {
                    sleep_on(&self.waker, Some(on), None, || self.stopped());
                }
                Err(PipelineError::Source(_)) => {
                    let until = Some(WaitFor::Until(Instant::now() + PAUSE));
                    sleep_on(&self.waker, until, None, || self.stopped());
                }
                Err(error) => {
                    self.give(Item::Failed(chain(&error)));
                    return;
                }
            }
        }
        if self.pipeline.generation() != reply.generation {
            self.give(Item::Failed("the MDT began a new history meanwhile".to_owned()));
        } else if self.drain() {
            self.give(Item::Live { sequence: reply.sequence, low: self.pipeline.low() });
        }
    }

    /// Sends all that the policies hold.
    fn drain(&mut self) -> bool {
        if let Err(error) = self.pipeline.flush() {
            self.give(Item::Failed(chain(&error)));
            return false;
        }
        while let Some(message) = self.pipeline.next_ready() {
            if !self.give(Item::Message(message)) {
                return false;
            }
        }
        true
    }

    /// Hands an item over; waits while the client has no room. False if it is gone.
    fn give(&self, item: Item) -> bool {
        let mut item = item;
        loop {
            if self.stopped() {
                return false;
            }
            match self.items.try_send(item) {
                Ok(()) => {
                    let _ = self.notify.ready.send(self.notify.session);
                    self.notify.waker.wake();
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => {
                    item = back;
                    self.pipeline.detach();
                    self.waker.sleep(None, None, || self.stopped() || !self.items.is_full());
                }
            }
        }
    }
}
