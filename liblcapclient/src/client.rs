//! The client's side of the protocol as a state machine: messages and time in, [`Output`]s out.
//! It has no socket, thread or clock; [`crate::session`] gives it those.
//!
//! ```text
//! Greeting ─▶ Greeted ─▶ Starting ─▶ Subscribing ─▶ CatchUp ─▶ Live        a broadcast stream, following
//!                            │  ▲                      └─────▶ Ended       without following
//!                            │  └── Waiting ◀── (anything lost, a restart of lcapd, silence)
//!                            └────────────────▶ Member ─────▶ Ended        a queue
//! ```
#![forbid(unsafe_code)]

mod credit;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{self, Delivery, Event, HeartbeatReply, Reply, ServerMessage, StartReply};
use lcap_wire::{Flags, Header, Kind, RangeSet, frame};

use crate::batch::Batch;
use crate::endpoint;
use crate::error::ClientError;
use crate::place::{Place, sift};
use credit::Credit;
use requests::Pending;

/// What the application wants of a session.
#[derive(Clone, Debug)]
pub struct Config {
    /// The MDT.
    pub mdt: MdtName,
    /// The stream.
    pub stream: String,
    /// Whether the greeting fails if the server does not have the stream.
    pub stream_required: bool,
    /// Registered reader, on a broadcast stream.
    pub reader: Option<String>,
    /// Only records that pass this expression.
    pub filter: Option<String>,
    /// The present state first, of an HSM stream.
    pub snapshot: bool,
    /// First index; 0 leaves it to the server.
    pub from: u64,
    /// Go on after the present end.
    pub follow: bool,
    /// Wait for a server that is away, for ever.
    pub patient: bool,
    /// Servers, tried in turn. Never empty.
    pub endpoints: Vec<String>,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// How much may wait for the application.
    pub prefetch_bytes: usize,
    /// How long an acknowledgement may wait.
    pub ack_interval: Duration,
    /// Tells this client's subscription from others'.
    pub unique: String,
}

/// Something for the driver to do, in order.
#[derive(Debug)]
pub enum Output<B> {
    /// Close every socket and connect DEALER here.
    ConnectControl(String),
    /// Connect SUB and subscribe, in this order; close an older one.
    ConnectLive(String, [Vec<u8>; 2]),
    /// Connect DEALER for a queue's records; close an older one.
    ConnectQueue(String),
    /// Send on the control socket.
    Control(Vec<u8>),
    /// Send on the queue's socket.
    Queue(Vec<u8>),
    /// Hand to the application.
    Deliver(Item<B>),
    /// The server answered the greeting, or did not within the timeout. Comes once.
    Greeted(Result<(), ClientError>),
    /// Answer to [`Protocol::request`].
    Answer(u64, Result<Reply, ClientError>),
    /// After [`Protocol::close`]: everything is said.
    Closed {
        /// Somebody is there to hear it.
        heard: bool,
    },
}

/// What the application gets, in order.
#[derive(Debug)]
pub enum Item<B> {
    /// Records.
    Batch(Batch<B>),
    /// Records that are gone for good.
    Gap(Gap),
    /// Everything up to here was delivered or dropped.
    Low(RecordIndex),
    /// History of the MDT that the records from here on belong to, where that is no news.
    Generation(u16),
    /// The present end. Nothing follows.
    End,
    /// The session is over for good. Nothing follows.
    Failed(ClientError),
    /// No server for as long as the timeout; the client goes on trying.
    Trouble(ClientError),
}

/// A gap notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First missing index, or first that is issued again.
    pub first: RecordIndex,
    /// Last missing index; 0 if it is not known.
    pub last: RecordIndex,
    /// The history that begins here, if the MDT issues indexes from `first` on again.
    pub new_generation: Option<u16>,
}

/// Which socket a data message came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// DEALER at the control endpoint.
    Control,
    /// SUB.
    Live,
    /// DEALER at a queue stream.
    Queue,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions that had to be started again.
    pub restarts: u64,
    /// Messages that were not usable.
    pub malformed: u64,
    /// Records that had been sent before to somebody who did not acknowledge them.
    pub redelivered: u64,
    /// Records that came again and were left out.
    pub repeated: u64,
    /// Newest index that the server has read from the MDT.
    pub head: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Greeted,
    Starting,
    Subscribing,
    CatchUp,
    Live,
    Member,
    Ended,
    Waiting,
    Failed,
}

#[derive(Debug)]
struct Session {
    id: u64,
    epoch: u64,
    delivery: Delivery,
    heartbeat: Duration,
    next_heartbeat: Instant,
    /// Index before the first that an acknowledgement has to mention.
    acked_base: u64,
    /// Data messages of the session that were asked for, and that came.
    credit: Credit,
    /// A fetch was sent.
    introduced: bool,
    /// Last live sequence that was consumed.
    live_sequence: u64,
    /// Live sequence that an earlier heartbeat promised.
    owed: Option<u64>,
    /// A second hello came during catch-up: what was published up to here is lost.
    lost_upto: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Protocol<B> {
    config: Config,
    place: Place,
    phase: Phase,
    /// When the phase has lasted too long (or, `Waiting`, long enough).
    deadline: Option<Instant>,
    endpoint: usize,
    n_tried: usize,
    greeting_until: Option<Instant>,
    wanted: bool,
    session: Option<Session>,
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    last_heard: Instant,
    /// The present server has said something.
    heard: bool,
    next_trouble: Instant,
    /// Epoch of the last hello on the present subscription, and where that is.
    subscribed: Option<u64>,
    live_endpoint: Option<String>,
    /// What stands for the stream in the topics subscribed to.
    topic: String,
    subscriptions: u64,
    old_epoch: Option<u64>,
    kept: VecDeque<(Header, B)>,
    kept_bytes: usize,
    /// Bytes that wait for the application.
    queued_bytes: usize,
    fruitless: u32,
    /// The reader's watermark as the application has it, and what the server has confirmed.
    settled: u64,
    confirmed: u64,
    /// A queue's records: had and not confirmed; cleared and not yet sent; sent and not confirmed.
    held: RangeSet,
    to_ack: RangeSet,
    acked: RangeSet,
    next_ack: Instant,
    closing: Option<Instant>,
    counters: Counters,
    out: VecDeque<Output<B>>,
}

const MAX_BACKOFF: Duration = Duration::from_secs(2);
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Silence for so many heartbeats ends a session.
const SILENT_HEARTBEATS: u32 = 5;

impl<B: AsRef<[u8]>> Protocol<B> {
    /// Begins to greet the first server.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut client = Self {
            place: Place::new(config.from),
            phase: Phase::Greeting,
            deadline: None,
            endpoint: 0,
            n_tried: 0,
            greeting_until: Some(now + config.timeout),
            wanted: false,
            session: None,
            next_id: 1,
            pending: BTreeMap::new(),
            last_heard: now,
            heard: false,
            next_trouble: now + config.timeout,
            subscribed: None,
            live_endpoint: None,
            topic: String::new(),
            subscriptions: 0,
            old_epoch: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            queued_bytes: 0,
            fruitless: 0,
            settled: 0,
            confirmed: 0,
            held: RangeSet::new(),
            to_ack: RangeSet::new(),
            acked: RangeSet::new(),
            next_ack: now,
            closing: None,
            counters: Counters::default(),
            out: VecDeque::new(),
            config,
        };
        client.greet(now);
        client
    }

    /// The application wants records; `config` is final now.
    pub fn begin(&mut self, config: Config, now: Instant) {
        if self.wanted {
            return;
        }
        self.config = config;
        self.wanted = true;
        if self.phase == Phase::Greeted {
            self.send_start(now);
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<B>> {
        self.out.pop_front()
    }

    /// When to call [`Self::on_timer`] at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let beat = self.session.as_ref().map(|s| s.next_heartbeat.min(self.silence_deadline(s)));
        let ack = self.wants_ack().then_some(self.next_ack);
        let trouble = self.troubled().then_some(self.next_trouble);
        let pending = self.pending.values().filter_map(Pending::deadline).min();
        let times = [self.deadline, self.greeting_until, beat, ack, trouble, pending, self.closing];
        times.into_iter().flatten().min()
    }

    /// Whether the server waits for the application to consume.
    pub fn is_throttled(&self) -> bool {
        matches!(self.phase, Phase::CatchUp | Phase::Member) || !self.wants_live()
    }

    /// Whether live messages should be read now. While they are not, libzmq keeps a few and lcapd
    /// drops the rest, which the sequence tells later: the records then come by catch-up.
    pub fn wants_live(&self) -> bool {
        self.phase != Phase::Live || self.queued_bytes < self.config.prefetch_bytes
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How the stream is delivered, once that is known.
    pub fn delivery(&self) -> Option<Delivery> {
        self.session.as_ref().map(|session| session.delivery)
    }

    /// History of the MDT that the client is in.
    pub fn generation(&self) -> u16 {
        self.place.generation()
    }

    /// Everything up to here was received.
    pub fn low(&self) -> RecordIndex {
        self.place.low()
    }

    /// The server that is talked to.
    pub fn endpoint(&self) -> &str {
        self.config.endpoints.get(self.endpoint).map_or("", String::as_str)
    }

    /// The application has taken so many bytes out of its queue.
    pub fn on_consumed(&mut self, n_bytes: usize, now: Instant) {
        let was_full = !self.wants_live();
        self.queued_bytes = self.queued_bytes.saturating_sub(n_bytes);
        if was_full && let Some(session) = &mut self.session {
            session.owed = None; // what is owed was not read on purpose
        }
        self.fetch_more(now);
    }

    /// A control message came, on the control socket or the queue's.
    pub fn on_control(&mut self, message: &[u8], now: Instant) {
        self.last_heard = now;
        self.heard = true;
        self.next_trouble = now + self.config.timeout;
        match control::parse_server_message(message) {
            Ok(ServerMessage::Reply(reply)) => self.on_reply(reply, now),
            Ok(ServerMessage::Event(event)) => self.on_event(event, now),
            Err(_) => self.counters.malformed += 1,
        }
    }

    /// A data message came.
    pub fn on_data(&mut self, source: Source, topic: &[u8], header: &[u8], body: B, now: Instant) {
        if source != Source::Live {
            self.last_heard = now;
        }
        let checked = Header::decode(header).and_then(|header| {
            header.check_body(body.as_ref())?;
            Ok(header)
        });
        let Ok(header) = checked else {
            self.counters.malformed += 1;
            return; // the next sequence tells that one is missing
        };
        match source {
            Source::Control if self.phase == Phase::CatchUp => self.on_numbered(&header, body, now),
            Source::Queue if self.phase == Phase::Member => self.on_numbered(&header, body, now),
            Source::Live if header.kind == Kind::Hello => self.on_hello(topic, &header, now),
            Source::Live => self.on_live(header, body, now),
            _ => {} // of a session that is over
        }
    }

    /// A connection was cut, and is being made again: what was on its way is lost, and the server
    /// knows the new one by another name.
    pub fn on_disconnected(&mut self, source: Source, now: Instant) {
        match (source, self.phase) {
            (Source::Control, Phase::CatchUp | Phase::Starting | Phase::Subscribing)
            | (Source::Queue, Phase::Member) => self.restart("the connection was cut", now),
            // Nothing of a live session comes over it, but what a heartbeat asks for.
            _ => {}
        }
    }

    /// Something came that is no message of the protocol.
    pub fn on_garbage(&mut self) {
        self.counters.malformed += 1;
    }

    /// Time has passed.
    pub fn on_timer(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.expire_requests(now);
        if due(self.greeting_until) {
            self.greeted(Err(self.timeout_error()));
        }
        if due(self.closing) {
            self.finish_close();
        }
        if self.troubled() && self.next_trouble <= now {
            self.next_trouble = now + self.config.timeout;
            self.out.push_back(Output::Deliver(Item::Trouble(self.timeout_error())));
        }
        if due(self.deadline) {
            self.deadline = None;
            match self.phase {
                Phase::Waiting => self.send_start(now),
                Phase::Greeting | Phase::Starting => self.try_next_server(now),
                Phase::Subscribing => self.restart("no proof of the subscription", now),
                _ => {}
            }
        }
        if let Some(session) = &self.session {
            if self.silence_deadline(session) <= now {
                self.try_next_server(now);
            } else if session.next_heartbeat <= now {
                self.send_heartbeat(now);
            }
        }
        if self.wants_ack() && self.next_ack <= now {
            self.send_acks(now);
        }
    }

    /// The records that policies hold back or drop do not come; without a session there is no one
    /// who says so.
    fn silence_deadline(&self, session: &Session) -> Instant {
        self.last_heard + session.heartbeat * SILENT_HEARTBEATS
    }

    /// Whether a missing server is to be reported.
    fn troubled(&self) -> bool {
        let away = matches!(self.phase, Phase::Greeting | Phase::Starting | Phase::Waiting);
        away && self.wanted && !self.config.patient
    }

    fn timeout_error(&self) -> ClientError {
        let endpoints = self.config.endpoints.join(", ");
        ClientError::Timeout { endpoints, waited: self.config.timeout }
    }

    fn greeted(&mut self, result: Result<(), ClientError>) {
        if self.greeting_until.take().is_some() {
            self.out.push_back(Output::Greeted(result));
        }
    }

    /// How long one server may take.
    fn attempt_time(&self) -> Duration {
        let n = u32::try_from(self.config.endpoints.len()).unwrap_or(u32::MAX).max(1);
        (self.config.timeout / n).max(Duration::from_millis(100))
    }

    fn greet(&mut self, now: Instant) {
        self.out.push_back(Output::ConnectControl(self.endpoint().to_owned()));
        self.phase = Phase::Greeting;
        self.deadline = Some(now + self.attempt_time());
        self.send_hello();
    }

    /// Turns to the next server, which may be the same one over a fresh connection.
    fn try_next_server(&mut self, now: Instant) {
        self.leave_session();
        self.n_tried += 1;
        self.endpoint = (self.endpoint + 1) % self.config.endpoints.len().max(1);
        self.last_heard = now;
        self.heard = false;
        self.subscribed = None;
        self.live_endpoint = None;
        if self.phase == Phase::Ended {
            // Only acknowledgements are left, and those go by `clear`.
            self.out.push_back(Output::ConnectControl(self.endpoint().to_owned()));
        } else if self.phase == Phase::Greeting || !self.wanted {
            self.greet(now);
        } else {
            self.counters.restarts += 1;
            self.out.push_back(Output::ConnectControl(self.endpoint().to_owned()));
            self.send_start(now);
        }
    }

    /// Forgets the session, not the place.
    fn leave_session(&mut self) {
        if let Some(session) = self.session.take() {
            self.old_epoch = Some(session.epoch);
        }
        self.kept.clear();
        self.kept_bytes = 0;
        self.pending.retain(|_, pending| matches!(pending, Pending::Passed { .. }));
        self.to_ack = join(&self.to_ack, &self.acked);
        self.acked = RangeSet::new();
    }

    /// The one answer to everything that goes wrong: a new session from the place.
    fn restart(&mut self, why: &str, now: Instant) {
        tracing::info!(mdt = %self.config.mdt, why, "starting the session again");
        self.send_fini();
        self.leave_session();
        self.counters.restarts += 1;
        if self.phase == Phase::Ended {
            return; // nothing more is wanted; acknowledgements go by `clear`
        }
        let exponent = self.fruitless.min(8);
        let pause = if self.fruitless == 0 {
            Duration::ZERO
        } else {
            (Duration::from_millis(10) * 2_u32.pow(exponent)).min(MAX_BACKOFF)
        };
        self.fruitless += 1;
        self.phase = Phase::Waiting;
        self.deadline = Some(now + pause);
        if pause.is_zero() {
            self.deadline = None;
            self.send_start(now);
        }
    }

    fn fail(&mut self, error: ClientError) {
        self.leave_session();
        self.phase = Phase::Failed;
        self.deadline = None;
        self.out.push_back(Output::Deliver(Item::Failed(error)));
    }

    fn on_started(&mut self, reply: StartReply, now: Instant) {
        let next = RecordIndex::new(reply.next);
        if let Some(first) = reply.rewind.map(RecordIndex::new) {
            self.rewind(first, reply.generation);
        }
        let known = self.place.resume().1;
        if known.is_none() {
            // Who asks to begin at an index is done with what lies before it.
            let before = RecordIndex::new(self.config.from).prev().max(next.prev());
            self.out.push_back(Output::Deliver(Item::Low(before)));
        }
        if reply.rewind.is_none() && known != Some(reply.generation) {
            self.out.push_back(Output::Deliver(Item::Generation(reply.generation)));
        }
        self.place.started(next, reply.generation);
        let watermark = reply.watermark.unwrap_or_else(|| next.prev().get());
        self.confirmed = watermark;
        let heartbeat = Duration::from_millis(reply.heartbeat_ms.clamp(10, 3_600_000));
        self.session = Some(Session {
            id: reply.session,
            epoch: reply.epoch,
            delivery: reply.delivery,
            heartbeat,
            next_heartbeat: now + heartbeat,
            acked_base: watermark,
            credit: Credit::default(),
            introduced: false,
            live_sequence: 0,
            owed: None,
            lost_upto: 0,
        });
        self.deadline = None;
        let publish = endpoint::resolve(&reply.publish, self.endpoint());
        match reply.delivery {
            Delivery::Queue => {
                self.phase = Phase::Member;
                self.out.push_back(Output::ConnectQueue(publish));
                self.fetch_more(now);
            }
            Delivery::Broadcast if !self.config.follow => self.catch_up(now),
            Delivery::Broadcast => {
                let topic = reply.topic.as_ref().unwrap_or(&self.config.stream).clone();
                self.subscribe(publish, &topic, reply.epoch, now);
            }
        }
    }

    fn subscribe(&mut self, publish: String, topic: &str, epoch: u64, now: Instant) {
        let same = self.live_endpoint.as_ref() == Some(&publish) && self.topic == topic;
        if same && self.subscribed == Some(epoch) {
            return self.catch_up(now);
        }
        self.phase = Phase::Subscribing;
        self.deadline = Some(now + self.config.timeout);
        self.subscribed = None;
        self.subscriptions += 1;
        let own = format!("{}-{}", self.config.unique, self.subscriptions);
        let topics = [
            frame::topic(topic, &self.config.mdt),
            frame::hello_topic(topic, &self.config.mdt, &own),
        ];
        self.topic = topic.to_owned();
        self.live_endpoint = Some(publish.clone());
        self.out.push_back(Output::ConnectLive(publish, topics));
    }

    fn catch_up(&mut self, now: Instant) {
        self.phase = Phase::CatchUp;
        self.deadline = None;
        self.fetch_more(now);
    }

    /// A hello on the subscription: it is live, or live again.
    fn on_hello(&mut self, topic: &[u8], header: &Header, now: Instant) {
        let own = format!("{}-{}", self.config.unique, self.subscriptions);
        if frame::parse_hello_topic(topic).is_none_or(|(_, _, text)| text != own) {
            return;
        }
        self.subscribed = Some(header.epoch);
        let Some(session) = &mut self.session else { return };
        if session.epoch != header.epoch {
            if self.old_epoch != Some(header.epoch) {
                self.restart("lcapd was restarted", now);
            }
            return;
        }
        match self.phase {
            Phase::Subscribing => self.catch_up(now),
            Phase::CatchUp => {
                session.lost_upto = header.sequence;
                self.kept.clear();
                self.kept_bytes = 0;
            }
            Phase::Live if header.sequence > session.live_sequence => {
                self.restart("messages were lost with the connection", now);
            }
            _ => {}
        }
    }

    /// A live message.
    fn on_live(&mut self, header: Header, body: B, now: Instant) {
        let Some(session) = &mut self.session else { return };
        if header.epoch != session.epoch {
            if self.old_epoch != Some(header.epoch) {
                self.restart("lcapd was restarted", now);
            }
            return;
        }
        match self.phase {
            Phase::CatchUp => self.keep(header, body),
            Phase::Live if header.sequence == session.live_sequence + 1 => {
                session.live_sequence = header.sequence;
                self.consume(&header, body, now);
            }
            Phase::Live if header.sequence > session.live_sequence => {
                self.restart("live messages were lost", now);
            }
            _ => {}
        }
    }

    /// Keeps a live message for after the catch-up; the newest ones, as many as there is room for.
    fn keep(&mut self, header: Header, body: B) {
        self.kept_bytes += body.as_ref().len();
        self.kept.push_back((header, body));
        while self.kept_bytes > self.config.prefetch_bytes / 2 && self.kept.len() > 1 {
            if let Some((_, body)) = self.kept.pop_front() {
                self.kept_bytes -= body.as_ref().len();
            }
        }
    }

    /// A message that is numbered within the session: catch-up, or a queue's.
    fn on_numbered(&mut self, header: &Header, body: B, now: Instant) {
        let Some(session) = &mut self.session else { return };
        if header.epoch != session.epoch {
            return;
        }
        if !session.credit.received(header.sequence, body.as_ref().len()) {
            return self.restart("messages of the session were lost", now);
        }
        self.consume(header, body, now);
        self.fetch_more(now);
    }

    /// Takes the next message in.
    fn consume(&mut self, header: &Header, body: B, now: Instant) {
        if header.kind == Kind::Gap {
            return self.on_gap(header);
        }
        if !matches!(header.kind, Kind::Records | Kind::Hsm) || header.flags.has(Flags::JSON) {
            let error = format!("stream `{}` does not carry packed records", self.config.stream);
            let endpoint = self.endpoint().to_owned();
            self.send_fini();
            return self.fail(ClientError::Refused { endpoint, errno: libc::ENOTSUP, error });
        }
        if header.generation > self.place.generation() {
            return self.restart("the notice of a new generation was lost", now);
        }
        if header.generation < self.place.generation() {
            return;
        }
        let is_member = self.phase == Phase::Member;
        let admitted = if is_member {
            let held = &self.held;
            sift(header, body.as_ref(), |index| held.contains(index))
        } else {
            self.place.admit(header, body.as_ref())
        };
        let Ok(admitted) = admitted else {
            self.counters.malformed += 1;
            return self.restart("a message was malformed", now);
        };
        self.fruitless = 0;
        self.counters.head = self.counters.head.max(header.last.get());
        self.counters.repeated += u64::from(admitted.n_known);
        if header.flags.has(Flags::REDELIVERED) {
            self.counters.redelivered += u64::from(admitted.n_records);
        }
        if is_member {
            self.hold(body.as_ref());
        }
        let low = self.place.low();
        if admitted.n_records == 0 {
            self.out.push_back(Output::Deliver(Item::Low(low)));
            return;
        }
        self.queued_bytes += body.as_ref().len();
        let delivery = if is_member { Delivery::Queue } else { Delivery::Broadcast };
        let batch = Batch::new(body, admitted, low, delivery);
        self.out.push_back(Output::Deliver(Item::Batch(batch)));
    }

    fn on_gap(&mut self, header: &Header) {
        let new_history = header.generation > self.place.generation();
        if new_history {
            self.rewind(header.first, header.generation);
        } else if header.last != RecordIndex::ZERO || header.first > self.place.low() {
            let (first, last) = (header.first, header.last);
            let gap = Gap { first, last, new_generation: None };
            self.out.push_back(Output::Deliver(Item::Gap(gap)));
        }
        self.place.pass(header.low);
        self.out.push_back(Output::Deliver(Item::Low(self.place.low())));
    }

    fn rewind(&mut self, first: RecordIndex, generation: u16) {
        self.place.rewind(first, generation);
        self.held.remove_from(first);
        self.to_ack.remove_from(first);
        self.acked.remove_from(first);
        self.settled = self.settled.min(first.prev().get());
        let gap = Gap { first, last: RecordIndex::ZERO, new_generation: Some(generation) };
        self.out.push_back(Output::Deliver(Item::Gap(gap)));
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        let Some(session) = &mut self.session else { return };
        if event.session() != session.id {
            return;
        }
        match event {
            Event::Live { sequence, low, .. } if self.phase == Phase::CatchUp => {
                session.live_sequence = sequence;
                let lost_upto = session.lost_upto;
                self.phase = Phase::Live;
                self.pass(RecordIndex::new(low));
                for (header, body) in std::mem::take(&mut self.kept) {
                    if self.phase == Phase::Live {
                        self.on_live(header, body, now);
                    }
                }
                self.kept_bytes = 0;
                let at = self.session.as_ref().map_or(u64::MAX, |session| session.live_sequence);
                if at < lost_upto {
                    self.restart("live messages were lost", now);
                }
            }
            Event::End { low, .. } if !self.config.follow => {
                if session.delivery == Delivery::Broadcast {
                    self.pass(RecordIndex::new(low));
                }
                self.phase = Phase::Ended;
                self.deadline = None;
                self.out.push_back(Output::Deliver(Item::End));
            }
            Event::Lost { error, .. } => self.restart(&error, now),
            _ => {}
        }
    }

    fn on_heartbeat(&mut self, beat: HeartbeatReply, now: Instant) {
        self.counters.head = self.counters.head.max(beat.head);
        let paused = !self.wants_live();
        let Some(session) = &mut self.session else { return };
        if beat.epoch != session.epoch {
            return self.restart("lcapd was restarted", now);
        }
        if self.phase != Phase::Live || paused {
            session.owed = None;
            return;
        }
        if session.owed.is_some_and(|owed| session.live_sequence < owed) {
            return self.restart("live messages did not come", now);
        }
        let at = session.live_sequence;
        session.owed = (beat.sequence > at).then_some(beat.sequence);
        if beat.sequence == at {
            self.pass(RecordIndex::new(beat.low));
        }
    }

    /// Everything up to `low` was delivered or dropped, says an event.
    fn pass(&mut self, low: RecordIndex) {
        if low > self.place.low() {
            self.place.pass(low);
            self.out.push_back(Output::Deliver(Item::Low(low)));
        }
    }
}

/// Both sets together.
fn join(a: &RangeSet, b: &RangeSet) -> RangeSet {
    let mut both = a.clone();
    for (first, last) in b.iter() {
        both.insert(first, last);
    }
    both
}

#[cfg(test)]
mod tests;
