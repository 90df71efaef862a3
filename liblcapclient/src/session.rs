//! The one background thread of a client: it owns the sockets and drives [`Protocol`].
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use lcap_ffi::process::with_signals_blocked;
use lcap_wire::control::{Op, Reply};
use lcap_wire::frame::MAX_BODY_BYTES;

use crate::client::{Config, Item, Output, Protocol, Source};
use crate::error::ClientError;
use crate::inbox::{Body, Inbox};
use crate::keys::Keys;
use crate::log;

/// What the application asks of the thread. It wakes it by the inbox.
pub(crate) enum Command {
    /// Records are wanted, with these options.
    Begin(Box<Config>),
    /// A request of the application's own.
    Request(Op, Sender<Result<Reply, ClientError>>),
    /// The end.
    Close,
}

/// Handles of a running session.
pub(crate) struct Spawned {
    pub(crate) commands: Sender<Command>,
    pub(crate) greeted: Receiver<Result<(), ClientError>>,
    pub(crate) thread: JoinHandle<()>,
}

/// A live message waits in libzmq for at most so many others before TCP pushes back.
const LIVE_QUEUE: i32 = 32;
/// How many messages are read from one socket before the others get their turn.
const TURN: usize = 64;
/// How long what was said last may take to leave.
const LINGER_MS: i32 = 500;

/// Starts the thread.
pub(crate) fn spawn(
    config: Config,
    keys: Option<Keys>,
    inbox: Arc<Inbox>,
) -> Result<Spawned, ClientError> {
    let (commands, command_queue) = crossbeam_channel::unbounded();
    let (greeted_sender, greeted) = crossbeam_channel::bounded(1);
    let name = "lcap-session".to_owned();
    let body = move || {
        let gone = Arc::clone(&inbox);
        let run = AssertUnwindSafe(|| {
            let _logging = log::for_this_thread();
            Session::new(config, keys, inbox, command_queue, greeted_sender).run();
        });
        if catch_unwind(run).is_err() {
            gone.push(Item::Failed(ClientError::ThreadGone));
        }
    };
    let thread = with_signals_blocked(|| std::thread::Builder::new().name(name).spawn(body))
        .map_err(|error| ClientError::io("starting a thread", &error))?;
    Ok(Spawned { commands, greeted, thread })
}

struct Session {
    protocol: Protocol<Body>,
    keys: Option<Keys>,
    inbox: Arc<Inbox>,
    commands: Receiver<Command>,
    greeted: Sender<Result<(), ClientError>>,
    answers: HashMap<u64, Sender<Result<Reply, ClientError>>>,
    // Sockets before the context, which cannot end before them.
    control: Option<zmq::Socket>,
    live: Option<zmq::Socket>,
    queue: Option<zmq::Socket>,
    context: zmq::Context,
    ack_interval: Duration,
    closed: bool,
}

impl Session {
    fn new(
        config: Config,
        keys: Option<Keys>,
        inbox: Arc<Inbox>,
        commands: Receiver<Command>,
        greeted: Sender<Result<(), ClientError>>,
    ) -> Self {
        let ack_interval = config.ack_interval;
        Self {
            protocol: Protocol::new(config, Instant::now()),
            keys,
            inbox,
            commands,
            greeted,
            answers: HashMap::new(),
            control: None,
            live: None,
            queue: None,
            context: zmq::Context::new(),
            ack_interval,
            closed: false,
        }
    }

    fn run(mut self) {
        loop {
            self.act();
            if self.closed {
                return;
            }
            let counters = self.protocol.counters();
            self.inbox.set_counters(counters);
            // Asked for before the wait, so that what the application takes meanwhile wakes us.
            self.take_consumed();
            self.wait();
            self.read_all();
            self.obey();
            self.take_settled();
            let now = Instant::now();
            if self.protocol.next_deadline().is_some_and(|at| at <= now) {
                self.protocol.on_timer(now);
            }
        }
    }

    /// Does what the protocol wants done.
    fn act(&mut self) {
        while let Some(output) = self.protocol.poll_output() {
            let done = match output {
                Output::ConnectControl(endpoint) => self.connect_control(&endpoint),
                Output::ConnectLive(endpoint, topics) => self.connect_live(&endpoint, &topics),
                Output::ConnectQueue(endpoint) => self.connect_queue(&endpoint),
                // A full pipe means that nobody is there; the protocol's timers see to that.
                Output::Control(message) => {
                    let _ = self.control.as_ref().map(|s| s.send(message, zmq::DONTWAIT));
                    Ok(())
                }
                Output::Queue(message) => {
                    let _ = self.queue.as_ref().map(|s| s.send(message, zmq::DONTWAIT));
                    Ok(())
                }
                Output::Deliver(item) => {
                    // First, so that whoever has the item sees what it did to the counters.
                    self.inbox.set_counters(self.protocol.counters());
                    self.inbox.push(item);
                    Ok(())
                }
                Output::Greeted(result) => {
                    let _ = self.greeted.try_send(result);
                    Ok(())
                }
                Output::Answer(token, result) => {
                    let answer = self.answers.remove(&token);
                    let _ = answer.map(|sender| sender.try_send(result));
                    Ok(())
                }
                Output::Closed => {
                    let _ = self.control.as_ref().map(|s| s.set_linger(LINGER_MS));
                    self.closed = true;
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::warn!(%error, "cannot connect, will try again");
            }
        }
    }

    fn socket(&self, kind: zmq::SocketType) -> zmq::Result<zmq::Socket> {
        let socket = self.context.socket(kind)?;
        socket.set_linger(0)?;
        socket.set_ipv6(true)?;
        socket.set_maxmsgsize(i64::try_from(MAX_BODY_BYTES).unwrap_or(i64::MAX))?;
        socket.set_reconnect_ivl(100)?;
        socket.set_reconnect_ivl_max(2_000)?;
        // TCP alone notices a dead peer after hours.
        socket.set_heartbeat_ivl(5_000)?;
        if let Some(keys) = &self.keys {
            keys.apply(&socket)?;
        }
        Ok(socket)
    }

    fn connect_control(&mut self, endpoint: &str) -> Result<(), ClientError> {
        (self.control, self.live, self.queue) = (None, None, None);
        let connect = || {
            let socket = self.socket(zmq::DEALER)?;
            socket.connect(endpoint)?;
            Ok(socket)
        };
        self.control = Some(connect().map_err(|error| ClientError::zmq(endpoint, error))?);
        tracing::debug!(endpoint, "connecting");
        Ok(())
    }

    fn connect_live(&mut self, endpoint: &str, topics: &[Vec<u8>]) -> Result<(), ClientError> {
        self.live = None;
        let connect = || {
            let socket = self.socket(zmq::SUB)?;
            socket.set_rcvhwm(LIVE_QUEUE)?;
            socket.set_sndhwm(0)?; // else subscriptions beyond it are lost silently
            for topic in topics {
                socket.set_subscribe(topic)?;
            }
            socket.connect(endpoint)?;
            Ok(socket)
        };
        self.live = Some(connect().map_err(|error| ClientError::zmq(endpoint, error))?);
        tracing::debug!(endpoint, "subscribing");
        Ok(())
    }

    fn connect_queue(&mut self, endpoint: &str) -> Result<(), ClientError> {
        self.queue = None;
        let connect = || {
            let socket = self.socket(zmq::DEALER)?;
            socket.connect(endpoint)?;
            Ok(socket)
        };
        self.queue = Some(connect().map_err(|error| ClientError::zmq(endpoint, error))?);
        tracing::debug!(endpoint, "joining the queue");
        Ok(())
    }

    /// Sleeps until there is something to do. Signals do not come to this thread.
    fn wait(&mut self) {
        let now = Instant::now();
        let until = self.protocol.next_deadline().unwrap_or(now + Duration::from_secs(60));
        // The application settles records without waking us.
        let until = until.min(now + self.ack_interval.max(Duration::from_millis(10)));
        // Rounded up: a poll that returns a moment too early would spin.
        let timeout = until.saturating_duration_since(now) + Duration::from_micros(999);
        let timeout = i64::try_from(timeout.as_millis()).unwrap_or(60_000);
        let live = self.live.as_ref().filter(|_| self.protocol.wants_live());
        let sockets = [self.control.as_ref(), live, self.queue.as_ref()];
        let mut items = vec![zmq::PollItem::from_fd(self.inbox.wake_fd().as_raw_fd(), zmq::POLLIN)];
        items.extend(sockets.into_iter().flatten().map(|socket| socket.as_poll_item(zmq::POLLIN)));
        let _ = zmq::poll(&mut items, timeout);
        if items.first().is_some_and(zmq::PollItem::is_readable) {
            self.inbox.woken();
        }
    }

    fn read_all(&mut self) {
        for source in [Source::Control, Source::Queue, Source::Live] {
            for _ in 0..TURN {
                if source == Source::Live && !self.protocol.wants_live() {
                    break;
                }
                let socket = match source {
                    Source::Control => &self.control,
                    Source::Queue => &self.queue,
                    Source::Live => &self.live,
                };
                let Some(frames) = socket.as_ref().and_then(receive) else { break };
                self.take_message(source, frames);
                // Sockets are closed and made anew at once, so that nothing of an old one is read.
                self.act();
            }
        }
    }

    fn take_message(&mut self, source: Source, mut frames: Vec<zmq::Message>) {
        let now = Instant::now();
        if frames.first().is_some_and(|first| first.is_empty()) {
            frames.remove(0); // REQ's delimiter
        }
        let mut frames = frames.into_iter();
        match (frames.next(), frames.next(), frames.next(), frames.next()) {
            (Some(message), None, None, None) if source != Source::Live => {
                self.protocol.on_control(&message, now);
            }
            (Some(topic), Some(header), Some(body), None) => {
                self.protocol.on_data(source, &topic, &header, Body(body), now);
            }
            _ => self.protocol.on_garbage(),
        }
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            let now = Instant::now();
            match command {
                Command::Begin(config) => {
                    self.ack_interval = config.ack_interval;
                    self.protocol.begin(*config, now);
                }
                Command::Request(op, answer) => {
                    let token = u64::try_from(self.answers.len()).unwrap_or(0);
                    let free = (token..).find(|token| !self.answers.contains_key(token));
                    let token = free.unwrap_or(token);
                    self.answers.insert(token, answer);
                    self.protocol.request(op, token, now);
                }
                Command::Close => {
                    self.take_settled();
                    self.protocol.close(now);
                }
            }
        }
    }

    fn take_consumed(&mut self) {
        let n_bytes = self.inbox.take_consumed(self.protocol.is_throttled());
        if n_bytes > 0 {
            self.protocol.on_consumed(n_bytes, Instant::now());
            self.act();
        }
    }

    fn take_settled(&mut self) {
        let (upto, generation) = self.inbox.settled();
        self.protocol.settle_reader(upto, generation);
        let records = self.inbox.take_settled_records();
        if !records.is_empty() {
            self.protocol.settle_member(&records);
        }
        if self.inbox.take_flush() {
            self.protocol.flush(Instant::now());
        }
    }
}

/// One whole message, if there is one now. The body stays in libzmq's buffer.
fn receive(socket: &zmq::Socket) -> Option<Vec<zmq::Message>> {
    let mut frames = Vec::with_capacity(3);
    loop {
        // Messages arrive as a whole: after the first frame the others are there.
        let frame = socket.recv_msg(zmq::DONTWAIT).ok()?;
        let more = frame.get_more();
        if frames.len() < 5 {
            frames.push(frame); // more than any message has, so one of those is known for garbage
        }
        if !more {
            return Some(frames);
        }
    }
}
