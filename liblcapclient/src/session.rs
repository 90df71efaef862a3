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
use lcap_ffi::received::Received;
use lcap_ffi::zmq_monitor::stop_monitor;
use lcap_wire::control::{Delivery, Op, Reply};
use lcap_wire::frame::MAX_BODY_BYTES;

use crate::client::{Config, Item, Output, Protocol, Source};
use crate::error::ClientError;
use crate::inbox::Inbox;
use crate::keys::Keys;
use crate::log;
use crate::promise::{Promise, Promised, promise};

/// What the application asks of the thread. It wakes it by the inbox.
pub(crate) enum Command {
    /// Records are wanted, with these options.
    Begin(Box<Config>),
    /// A request of the application's own.
    Request(Op, Promise<Result<Reply, ClientError>>),
    /// The end.
    Close,
}

/// Handles of a running session.
pub(crate) struct Spawned {
    pub(crate) commands: Sender<Command>,
    pub(crate) greeted: Promised<Result<(), ClientError>>,
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
    let (greeting, greeted) = promise();
    let name = "lcap-session".to_owned();
    let body = move || {
        let gone = Arc::clone(&inbox);
        let run = AssertUnwindSafe(|| {
            let _logging = log::for_this_thread();
            Session::new(config, keys, inbox, command_queue, greeting).run();
        });
        if catch_unwind(run).is_err() {
            gone.push(Item::Failed(ClientError::ThreadGone));
        }
    };
    let thread = with_signals_blocked(|| std::thread::Builder::new().name(name).spawn(body))
        .map_err(|error| ClientError::io("starting a thread", &error))?;
    Ok(Spawned { commands, greeted, thread })
}

/// A socket, and what libzmq says of its connection.
struct Watched {
    socket: zmq::Socket,
    monitor: zmq::Socket,
}

impl Watched {
    /// Whether the connection was cut since the last call.
    fn was_cut(&self) -> bool {
        let mut cut = false;
        // Two frames each: number and value of the event, address.
        while let Some(frames) = receive(&self.monitor) {
            let event = frames.first().and_then(|frame| frame.first_chunk());
            cut |= event.is_some_and(|event| {
                u16::from_ne_bytes(*event) == zmq::SocketEvent::DISCONNECTED.to_raw()
            });
        }
        cut
    }
}

impl Drop for Watched {
    /// The events end before either socket does: libzmq writes them while it closes the one, long
    /// after `drop`, and would wait for ever for the other to read them.
    fn drop(&mut self) {
        let _ = stop_monitor(&mut self.socket);
    }
}

struct Session {
    protocol: Protocol<Received>,
    keys: Option<Keys>,
    inbox: Arc<Inbox>,
    commands: Receiver<Command>,
    greeting: Option<Promise<Result<(), ClientError>>>,
    answers: HashMap<u64, Promise<Result<Reply, ClientError>>>,
    // Sockets before the context, which cannot end before them.
    control: Option<Watched>,
    live: Option<zmq::Socket>,
    queue: Option<Watched>,
    n_watched: u64,
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
        greeting: Promise<Result<(), ClientError>>,
    ) -> Self {
        let ack_interval = config.ack_interval;
        Self {
            protocol: Protocol::new(config, Instant::now()),
            keys,
            inbox,
            commands,
            greeting: Some(greeting),
            answers: HashMap::new(),
            control: None,
            live: None,
            queue: None,
            n_watched: 0,
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
            self.look_for_cuts();
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
                    let _ = self.control.as_ref().map(|s| s.socket.send(message, zmq::DONTWAIT));
                    Ok(())
                }
                Output::Queue(message) => {
                    let _ = self.queue.as_ref().map(|s| s.socket.send(message, zmq::DONTWAIT));
                    Ok(())
                }
                Output::Deliver(item) => {
                    // First the numbers: who has the item sees what they say of it.
                    self.inbox.set_counters(self.protocol.counters());
                    if let Item::Low(low) = &item
                        && self.protocol.delivery() == Some(Delivery::Broadcast)
                    {
                        self.inbox.settle_dropped(*low, self.protocol.generation());
                    }
                    self.inbox.push(item);
                    Ok(())
                }
                Output::Greeted(result) => {
                    if let Some(greeting) = self.greeting.take() {
                        greeting.keep(result);
                    }
                    Ok(())
                }
                Output::Answer(token, result) => {
                    if let Some(answer) = self.answers.remove(&token) {
                        answer.keep(result);
                    }
                    Ok(())
                }
                Output::Closed { heard } => {
                    let linger = if heard { LINGER_MS } else { 0 };
                    let _ = self.control.as_ref().map(|s| s.socket.set_linger(linger));
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

    /// A DEALER whose connection is watched.
    fn dealer(&mut self, endpoint: &str) -> Result<Watched, ClientError> {
        self.n_watched += 1;
        let events = format!("inproc://events-{}", self.n_watched);
        let connect = || {
            let socket = self.socket(zmq::DEALER)?;
            socket.monitor(&events, zmq::SocketEvent::DISCONNECTED.to_raw().into())?;
            let monitor = self.context.socket(zmq::PAIR)?;
            monitor.set_linger(0)?;
            monitor.connect(&events)?;
            socket.connect(endpoint)?;
            Ok(Watched { socket, monitor })
        };
        connect().map_err(|error| ClientError::zmq(endpoint, error))
    }

    fn connect_control(&mut self, endpoint: &str) -> Result<(), ClientError> {
        (self.control, self.live, self.queue) = (None, None, None);
        self.control = Some(self.dealer(endpoint)?);
        tracing::debug!(endpoint, "connecting");
        Ok(())
    }

    fn connect_live(&mut self, endpoint: &str, topics: &[Vec<u8>]) -> Result<(), ClientError> {
        self.live = None;
        let connect = || {
            let socket = self.socket(zmq::SUB)?;
            socket.set_rcvhwm(LIVE_QUEUE)?;
            // While the application reads nothing, libzmq does not either, and would miss the answer to its own
            // heartbeat. It would connect again with a full queue, and end the process when that is read
            // (libzmq 4.3.4: `_input_stopped`). The control connection tells of a dead peer, and of lost messages.
            socket.set_heartbeat_ivl(0)?;
            socket.set_tcp_keepalive(1)?;
            socket.set_tcp_keepalive_idle(10)?;
            socket.set_tcp_keepalive_intvl(5)?;
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
        self.queue = Some(self.dealer(endpoint)?);
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
        let watched = [self.control.as_ref(), self.queue.as_ref()];
        let watched = watched.into_iter().flatten().flat_map(|w| [&w.socket, &w.monitor]);
        let mut items = vec![zmq::PollItem::from_fd(self.inbox.wake_fd().as_raw_fd(), zmq::POLLIN)];
        items
            .extend(live.into_iter().chain(watched).map(|socket| socket.as_poll_item(zmq::POLLIN)));
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
                    Source::Control => self.control.as_ref().map(|watched| &watched.socket),
                    Source::Queue => self.queue.as_ref().map(|watched| &watched.socket),
                    Source::Live => self.live.as_ref(),
                };
                let Some(frames) = socket.and_then(receive) else { break };
                self.take_message(source, frames);
                // Sockets are closed and made anew at once, so that nothing of an old one is read.
                self.act();
            }
        }
    }

    /// Looks for connections that were cut, after everything that still came over them was read.
    fn look_for_cuts(&mut self) {
        for source in [Source::Control, Source::Queue] {
            let watched = if source == Source::Queue { &self.queue } else { &self.control };
            if watched.as_ref().is_some_and(Watched::was_cut) {
                self.protocol.on_disconnected(source, Instant::now());
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
                self.protocol.on_data(source, &topic, &header, Received::from(body), now);
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
        let (records, life) = self.inbox.take_settled_records();
        if !records.is_empty() {
            self.protocol.settle_member(&records, life);
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
