//! The XPUB socket of a broadcast stream: workers send on it, one thread takes subscriptions.
//!
//! A worker sends on its own thread: handing each message to another would cost more than to send it.
//! libzmq allows that if a lock passes the socket from thread to thread.
#![forbid(unsafe_code)]

pub mod subscribers;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lcap_ffi::connection::{Connection, Door};
use lcap_ffi::poll::wait_readable;
use lcap_ffi::zmq_frame::send_shared;
use lcap_ffi::zmq_monitor::Watched;
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::StreamKind;
use lcap_wire::frame::{parse_hello_topic, topic};
use lcap_wire::{Header, Kind};
use tracing::{debug, error, info};

use self::subscribers::Subscribers;
use crate::figures::StreamFigures;
use crate::pipeline::Outgoing;
use crate::security::Access;
use crate::taps::{Taps, topic_name};
use crate::wake::Waker;
use crate::worker::{Publish, Published};

/// Subscriptions taken before messages have their turn.
const SUBSCRIPTION_BURST: usize = 64;
/// Longest message of a subscriber: a handshake with CURVE, or a hello of a long stream and MDT.
const MAX_MESSAGE_BYTES: i64 = 512;
/// Subscriptions of one connection that libzmq takes in before TCP pushes back.
const RECEIVE_LIMIT: i32 = 64;
/// The kernel keeps so many bytes of a subscriber, also of one that was cut.
const RECEIVE_BYTES: i32 = 8 << 10;

/// What publishes one broadcast stream, for the threads that do.
#[derive(Debug)]
pub struct Broadcaster {
    publisher: Mutex<Publisher>,
    /// Held by who waits for the publisher: everybody has it once before anybody has it again.
    turn: Mutex<()>,
    /// Readable when the socket has something to do.
    socket: RawFd,
    /// Wakes who serves.
    waker: Waker,
    /// Set when somebody may no longer read the stream.
    revoked: Arc<AtomicBool>,
    /// Set before the last wake.
    stop: Arc<AtomicBool>,
}

impl Broadcaster {
    /// Publishes through `publisher`.
    ///
    /// # Errors
    /// What libzmq says of the socket.
    pub fn new(
        publisher: Publisher,
        waker: Waker,
        revoked: Arc<AtomicBool>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, zmq::Error> {
        let socket = publisher.socket.get_fd()?;
        let publisher = Mutex::new(publisher);
        Ok(Self { publisher, turn: Mutex::new(()), socket, waker, revoked, stop })
    }

    fn lock(&self) -> MutexGuard<'_, Publisher> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Its state is right between any two statements that can panic.
        self.publisher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes subscriptions until told to stop.
    pub fn serve(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut publisher = self.lock();
            if self.revoked.swap(false, Ordering::Relaxed) {
                publisher.revoke();
            }
            if publisher.take_subscriptions() {
                continue;
            }
            self.waker.falling_asleep();
            // Whoever uses the socket takes from its descriptor what would wake us, and tells us. What
            // came before that, and before we said that we sleep, is seen now.
            let more = publisher.has_subscriptions();
            drop(publisher);
            if !more && !self.stop.load(Ordering::Relaxed) && !self.revoked.load(Ordering::Relaxed)
            {
                // An interrupted or failed poll is a short sleep.
                let _ = wait_readable(&[self.waker.raw_fd(), self.socket], None);
            }
            self.waker.awake();
        }
    }
}

impl Publish for Broadcaster {
    fn publish(&self, published: Published) {
        let mut publisher = self.lock();
        if let Err(error) = publisher.publish(&published) {
            // XPUB drops for slow subscribers without an error: this is a real one.
            error!(stream = publisher.stream, %error, "cannot publish; subscribers will fetch");
        }
        let more = publisher.has_subscriptions();
        drop(publisher);
        if more {
            self.waker.wake();
        }
    }
}

/// Publishes one broadcast stream.
pub struct Publisher {
    /// Its name.
    pub stream: String,
    /// What its messages carry: what is a message of records to everybody else may be events.
    pub kind: StreamKind,
    /// A bound socket, see [`socket`].
    pub socket: Watched,
    /// One life of lcapd.
    pub epoch: u64,
    /// By MDT, see [`Topic::new`]; `None` for what the stream does not carry.
    pub topics: Vec<Option<Topic>>,
    /// Filters of consumers.
    pub taps: Taps,
    /// Counts here how long messages took.
    pub figures: Arc<StreamFigures>,
    /// Where the socket is bound.
    pub door: Option<Door>,
    /// What each connection has subscribed to.
    pub subscribers: Subscribers<Connection>,
    /// Who may read it, and what was refused.
    pub access: Access,
    /// For limits per time.
    pub started: Instant,
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
    socket.set_maxmsgsize(MAX_MESSAGE_BYTES)?;
    socket.set_rcvhwm(RECEIVE_LIMIT)?;
    socket.set_rcvbuf(RECEIVE_BYTES)?;
    socket.set_handshake_ivl(5_000)?;
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
    /// Whether [`Self::take_subscriptions`] would find some.
    fn has_subscriptions(&self) -> bool {
        self.socket.get_events().is_ok_and(|events| events.contains(zmq::POLLIN))
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

    /// True if there may be more of them.
    fn take_subscriptions(&mut self) -> bool {
        for _ in 0..SUBSCRIPTION_BURST {
            let Ok(mut message) = self.socket.recv_msg(zmq::DONTWAIT) else { return false };
            // A connection that is over has none any more; what it had, libzmq has forgotten.
            if let Some(from) = Connection::of_message(&mut message)
                && !self.admits(from, &mut message)
            {
                continue;
            }
            if let Some((1, topic)) = message.split_first() {
                self.greet(topic);
            }
        }
        true
    }

    /// Counts what a connection says. False if it is being cut.
    fn admits(&mut self, from: Connection, message: &mut zmq::Message) -> bool {
        if self.subscribers.is_cut(from) {
            return false;
        }
        if !self.subscribers.knows(from) {
            let user = message.gets("User-Id").filter(|user| !user.is_empty()).map(str::to_owned);
            let may_read = self.access.may_read(user.as_deref(), &self.stream, None);
            self.subscribers.enter(from, user.clone());
            if !may_read {
                self.cut_revoked(from, user.as_deref());
                return false;
            }
        }
        let now = self.started.elapsed();
        let why = match message.split_first() {
            Some((1, topic)) => {
                let is_served = self.is_served(topic);
                self.subscribers.subscribe(from, topic, is_served, now)
            }
            Some((0, topic)) => self.subscribers.unsubscribe(from, topic, now),
            _ => Some("a message that is no subscription"),
        };
        if let Some(why) = why {
            self.cut_for_excess(from, why);
        }
        if let Some(heaviest) = self.subscribers.sweep(Connection::is_open) {
            self.cut_for_excess(heaviest, "most of too many subscriptions");
        }
        why.is_none()
    }

    fn cut(&mut self, connection: Connection) {
        self.subscribers.cut(connection);
        // If this fails, it is over already.
        self.door.as_ref().map(|door| connection.cut(door));
    }

    fn cut_for_excess(&mut self, connection: Connection, why: &str) {
        let refusals = &self.access.refusals;
        let who = connection.peer().map_or_else(|| "?".to_owned(), |peer| peer.to_string());
        let what = format_args!("{why}, stream {}; the connection is cut", self.stream);
        refusals.note(&refusals.limit, &who, what);
        self.cut(connection);
    }

    fn cut_revoked(&mut self, connection: Connection, user: Option<&str>) {
        let (stream, client) = (&self.stream, user.unwrap_or("?"));
        info!(
            stream,
            client, "this client may not read the stream any longer; its connection is cut"
        );
        self.cut(connection);
    }

    /// Ends the connections of those that may not read the stream any longer.
    fn revoke(&mut self) {
        let must_go = |user: Option<&str>| !self.access.may_read(user, &self.stream, None);
        for (connection, user) in self.subscribers.of_users(must_go) {
            self.cut_revoked(connection, user.as_deref());
        }
    }

    /// Answers a subscription to a hello topic: what was subscribed before it is live now.
    fn greet(&mut self, hello: &[u8]) {
        let Some((name, mdt, _)) = parse_hello_topic(hello) else { return };
        if !self.has_name(name) {
            debug!(stream = self.stream, name, "subscription to a topic that is not served");
            return;
        }
        let mut topics = self.topics.iter().flatten();
        let Some(topic) = topics.find(|topic| topic.mdt.as_str() == mdt) else {
            debug!(stream = self.stream, mdt, "subscription to an MDT that is not served");
            return;
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

    /// The stream's own name, or that of a filter in it.
    fn has_name(&self, name: &str) -> bool {
        let taps = self.taps.now();
        name == self.stream || taps.iter().any(|t| topic_name(&self.stream, t.id) == name)
    }

    /// A topic of this stream, of a filter in it, or what several of them begin with; or a hello.
    fn is_served(&self, topic: &[u8]) -> bool {
        let mut topics = self.topics.iter().flatten();
        if topics.any(|own| own.bytes.starts_with(topic)) {
            return true;
        }
        let hello = parse_hello_topic(topic).map(|(name, mdt, _)| (name, mdt));
        let (name, mdt) = match (hello, std::str::from_utf8(topic)) {
            (Some(hello), _) => hello,
            (None, Ok(topic)) => topic.split_once('\0').unwrap_or((topic, "")),
            (None, Err(_)) => return false,
        };
        let mdt = mdt.strip_suffix('\0').unwrap_or(mdt);
        let mut topics = self.topics.iter().flatten();
        self.has_name(name) && (mdt.is_empty() || topics.any(|topic| topic.mdt.as_str() == mdt))
    }
}
