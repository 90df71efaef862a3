//! One thread per broadcast stream: owns its XPUB socket and sends what the workers made.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;
use lcap_ffi::zmq_frame::send_shared;
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::StreamKind;
use lcap_wire::frame::{parse_hello_topic, topic};
use lcap_wire::{Header, Kind};
use tracing::{debug, error};

use crate::figures::StreamFigures;
use crate::pipeline::Outgoing;
use crate::taps::{Taps, topic_name};
use crate::wake::Waker;
use crate::worker::Published;

/// Messages sent between two looks at subscriptions.
const BURST: usize = 64;

/// Publishes one broadcast stream.
pub struct Publisher {
    /// Its name.
    pub stream: String,
    /// What its messages carry: what is a message of records to everybody else may be events.
    pub kind: StreamKind,
    /// A bound socket, see [`socket`].
    pub socket: zmq::Socket,
    /// One life of lcapd.
    pub epoch: u64,
    /// By MDT, see [`Topic::new`]; `None` for what the stream does not carry.
    pub topics: Vec<Option<Topic>>,
    /// What to send.
    pub messages: Receiver<Published>,
    /// Filters of consumers.
    pub taps: Taps,
    /// Counts here how long messages took.
    pub figures: Arc<StreamFigures>,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

/// One MDT of the stream.
#[derive(Debug)]
pub struct Topic {
    mdt: MdtName,
    bytes: Vec<u8>,
    /// What was sent last.
    sequence: u64,
    low: RecordIndex,
    generation: u16,
}

impl Topic {
    /// The topic of an MDT in a stream; nothing was sent yet.
    pub fn new(stream: &str, mdt: &MdtName) -> Self {
        let (mdt, bytes) = (mdt.clone(), topic(stream, mdt));
        Self { mdt, bytes, sequence: 0, low: RecordIndex::ZERO, generation: 0 }
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// An XPUB socket for a broadcast stream, not bound yet.
///
/// # Errors
/// What libzmq says.
pub fn socket(context: &zmq::Context, send_limit: i32) -> Result<zmq::Socket, zmq::Error> {
    let socket = context.socket(zmq::XPUB)?;
    socket.set_linger(0)?;
    socket.set_sndhwm(send_limit)?;
    // Every subscription is told, also one that another client has already: a hello proves it live.
    socket.set_xpub_verbose(true)?;
    // A subscription is a topic; nobody has business sending more than that.
    socket.set_maxmsgsize(4096)?;
    Ok(socket)
}

fn send(
    socket: &mut zmq::Socket,
    epoch: u64,
    kind: StreamKind,
    topic: &[u8],
    message: &Outgoing,
) -> Result<(), zmq::Error> {
    let kind = kind_on_wire(message.header.kind, kind);
    let header = Header { epoch, kind, ..message.header.clone() };
    socket.send(topic, zmq::SNDMORE)?;
    socket.send(header.encode().as_slice(), zmq::SNDMORE)?;
    send_shared(socket, message.body.share(), 0)
}

/// Inside lcapd, events are records. Outside they are told apart.
pub fn kind_on_wire(kind: Kind, stream: StreamKind) -> Kind {
    match (kind, stream) {
        (Kind::Records, StreamKind::Hsm) => Kind::Hsm,
        (kind, _) => kind,
    }
}

impl Publisher {
    /// Publishes until told to stop. What waits then is still sent.
    pub fn run(&mut self) {
        loop {
            let mut sent = 0;
            while sent < BURST
                && let Ok(published) = self.messages.try_recv()
            {
                if let Err(error) = self.publish(&published) {
                    // XPUB drops for slow subscribers without an error: this is a real one.
                    error!(stream = self.stream, %error, "cannot publish; subscribers will fetch");
                }
                sent += 1;
            }
            self.greet();
            if sent == BURST {
                continue;
            }
            if self.stop.load(Ordering::Relaxed) && self.messages.is_empty() {
                return;
            }
            self.waker.falling_asleep();
            if self.messages.is_empty() && !self.stop.load(Ordering::Relaxed) {
                let mut items = [
                    self.socket.as_poll_item(zmq::POLLIN),
                    zmq::PollItem::from_fd(self.waker.raw_fd(), zmq::POLLIN),
                ];
                let _ = zmq::poll(&mut items, -1); // EINTR: look again
            }
            self.waker.awake();
        }
    }

    fn publish(&mut self, published: &Published) -> Result<(), zmq::Error> {
        let Published { mdt_at, message, filtered } = published;
        let Some(Some(at)) = self.topics.get_mut(*mdt_at) else { return Ok(()) };
        at.sequence = message.header.sequence;
        at.low = message.header.low;
        at.generation = message.header.generation;
        for (tap, message) in filtered {
            let topic = topic(&topic_name(&self.stream, *tap), &at.mdt);
            send(&mut self.socket, self.epoch, self.kind, &topic, message)?;
        }
        send(&mut self.socket, self.epoch, self.kind, &at.bytes, message)?;
        self.figures.latency.observe(message.read_at.elapsed());
        Ok(())
    }

    /// Answers subscriptions to a hello topic: what was subscribed before it is live now.
    fn greet(&mut self) {
        while let Ok(subscription) = self.socket.recv_bytes(zmq::DONTWAIT) {
            let Some((1, hello)) = subscription.split_first().map(|(kind, rest)| (*kind, rest))
            else {
                continue;
            };
            let Some((name, mdt, _)) = parse_hello_topic(hello) else { continue };
            let taps = self.taps.now();
            if name != self.stream && !taps.iter().any(|t| topic_name(&self.stream, t.id) == name) {
                debug!(stream = self.stream, name, "subscription to a topic that is not served");
                continue;
            }
            let mut topics = self.topics.iter().flatten();
            let Some(topic) = topics.find(|topic| topic.mdt.as_str() == mdt) else {
                debug!(stream = self.stream, mdt, "subscription to an MDT that is not served");
                continue;
            };
            let mut header = Header::for_body(Kind::Hello, &[]);
            header.epoch = self.epoch;
            header.sequence = topic.sequence;
            header.low = topic.low;
            header.generation = topic.generation;
            let sent = self.socket.send(hello, zmq::SNDMORE).and_then(|()| {
                self.socket.send(header.encode().as_slice(), zmq::SNDMORE)?;
                self.socket.send(&[][..], 0)
            });
            if let Err(error) = sent {
                debug!(stream = self.stream, %error, "cannot greet a subscriber");
            }
        }
    }
}
