//! The thread that libzmq asks who may connect (ZAP, ZeroMQ RFC 27), and that hears of connections and
//! of handshakes which failed before there was anything to ask.
//!
//! It is asked without keys, too: then libzmq speaks only the version of its protocol that has
//! handshakes, and messages say which connection they came over.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lcap_ffi::connection::{Arrivals, Connection, Door};
use lcap_wire::z85::Key;

use super::doorman::{Doorman, Manner, Verdict};
use super::{Access, Domain};
use crate::wake::Waker;

/// Where libzmq asks.
const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// A connection broke before its handshake was complete, without a reason, or with one.
const HANDSHAKE_FAILED: [u16; 2] = [0x0800, 0x2000];
const ACCEPTED: u16 = 0x0020;
const DISCONNECTED: u16 = 0x0200;
/// After something came, what a client has sent is looked at so much later, with all that came meanwhile.
const LOOK_LATER: Duration = Duration::from_millis(25);

/// The thread's state.
pub struct Zap {
    socket: zmq::Socket,
    monitors: Vec<Monitor>,
    access: Access,
    doorman: Doorman,
    arrivals: Arrivals,
    /// Connections of clients that have sent something, and when they are looked at.
    talking: Vec<i32>,
    look_at: Duration,
    started: Instant,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

/// What tells of one socket's connections.
struct Monitor {
    socket: zmq::Socket,
    door: Option<Door>,
    /// It is a broadcast stream's: those that connect only subscribe.
    is_broadcast: bool,
    /// Handshakes that failed, and whose connections have not ended yet: only the end tells which it is.
    n_failed: u32,
}

impl std::fmt::Debug for Zap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Zap")
    }
}

impl Zap {
    /// Listens to the questions of all sockets of `context`. To be made before any of them is
    /// bound: without somebody to ask, libzmq would let everybody in.
    ///
    /// # Errors
    /// What libzmq says.
    pub fn new(
        context: &zmq::Context,
        access: Access,
        doorman: Doorman,
        waker: Waker,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let socket = context.socket(zmq::ROUTER)?;
        socket.set_linger(0)?;
        socket.bind(ENDPOINT)?;
        let (monitors, arrivals, started) = (Vec::new(), Arrivals::new()?, Instant::now());
        let (talking, look_at) = (Vec::new(), Duration::ZERO);
        Ok(Self {
            socket,
            monitors,
            access,
            doorman,
            arrivals,
            talking,
            look_at,
            started,
            waker,
            stop,
        })
    }

    /// Hears of the connections of a socket that is not bound yet. This thread must live until that is
    /// over ([`lcap_ffi::zmq_monitor::Watched`]).
    ///
    /// # Errors
    /// What libzmq says.
    pub fn watch(
        &mut self,
        context: &zmq::Context,
        socket: &zmq::Socket,
    ) -> Result<(), zmq::Error> {
        let endpoint = format!("inproc://handshakes-{}", self.monitors.len());
        let [silent, told] = HANDSHAKE_FAILED;
        socket.monitor(&endpoint, (silent | told | ACCEPTED | DISCONNECTED).into())?;
        let monitor = context.socket(zmq::PAIR)?;
        monitor.set_linger(0)?;
        monitor.connect(&endpoint)?;
        let is_broadcast = socket.get_socket_type()? == zmq::XPUB;
        let monitor = Monitor { socket: monitor, door: None, is_broadcast, n_failed: 0 };
        self.monitors.push(monitor);
        Ok(())
    }

    /// Where the socket that was watched last is bound now.
    pub fn is_bound(&mut self, door: Option<Door>) {
        if let Some(last) = self.monitors.last_mut() {
            last.door = door;
        }
    }

    /// Answers until told to stop.
    pub fn run(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            while let Ok(frames) = self.socket.recv_multipart(zmq::DONTWAIT) {
                if let Some(answer) = answer(&self.access, &frames) {
                    let _ = self.socket.send_multipart(answer, zmq::DONTWAIT);
                }
            }
            for nth in 0..self.monitors.len() {
                while let Ok(frames) = self.monitors[nth].socket.recv_multipart(zmq::DONTWAIT) {
                    self.note(nth, &frames);
                }
            }
            self.hear();
            let wait = self.look();
            self.waker.falling_asleep();
            if !self.stop.load(Ordering::Relaxed) {
                let mut items = vec![
                    self.socket.as_poll_item(zmq::POLLIN),
                    zmq::PollItem::from_fd(self.waker.raw_fd(), zmq::POLLIN),
                    zmq::PollItem::from_fd(self.arrivals.raw_fd(), zmq::POLLIN),
                ];
                items.extend(self.monitors.iter().map(|m| m.socket.as_poll_item(zmq::POLLIN)));
                let _ = zmq::poll(&mut items, wait); // EINTR: look again
            }
            self.waker.awake();
        }
    }

    /// Number and value of an event in the first frame, the endpoint in the second.
    fn note(&mut self, monitor: usize, frames: &[Vec<u8>]) {
        let Some((event, value)) = frames.first().and_then(|frame| frame.split_first_chunk::<2>())
        else {
            return;
        };
        let event = u16::from_ne_bytes(*event);
        let number = value.first_chunk().map_or(-1, |&number| i32::from_ne_bytes(number));
        if HANDSHAKE_FAILED.contains(&event) {
            self.monitors[monitor].n_failed += 1;
        } else if event == DISCONNECTED {
            if self.monitors[monitor].n_failed > 0 {
                self.monitors[monitor].n_failed -= 1;
                let at = frames.get(1).map(|at| String::from_utf8_lossy(at)).unwrap_or_default();
                let who = self.doorman.address(number).map(|address| address.to_string());
                let what = format_args!(
                    "a handshake at {at} failed: no CURVE, another server's key, or not ZeroMQ at all"
                );
                let refusals = &self.access.refusals;
                refusals.note(&refusals.handshake, who.as_deref().unwrap_or("?"), what);
            }
            self.doorman.leave(number);
        } else if event == ACCEPTED
            && let Some(connection) = Connection::of_fd(number)
        {
            let manner = if self.monitors[monitor].is_broadcast {
                Manner::Subscribes
            } else {
                Manner::Asks(self.access.taken.of(number))
            };
            // If it is over already, it says nothing.
            if let Some(why) = self.doorman.enter(number, connection, manner) {
                self.cut(connection, why);
            } else if manner == Manner::Subscribes {
                let _ = self.arrivals.watch(connection);
            } else {
                let _ = self.arrivals.watch_once(connection);
            }
        }
    }

    /// Looks at what subscribers have said meanwhile, and notes which others have.
    fn hear(&mut self) {
        let mut numbers = Vec::new();
        self.arrivals.take(&mut numbers);
        let now = self.started.elapsed();
        for number in numbers {
            let Some(connection) = self.doorman.connection(number) else { continue };
            let Some(n_received) = connection.n_received() else { continue };
            if !self.doorman.subscribes(number) {
                if self.talking.is_empty() {
                    self.look_at = now + LOOK_LATER;
                }
                self.talking.push(number);
            } else if let Some(why) = self.doorman.hear(number, n_received, now) {
                self.cut(connection, why);
            }
        }
    }

    /// Looks at clients that have sent something. How many milliseconds there are until the next look, or -1.
    fn look(&mut self) -> i64 {
        let now = self.started.elapsed();
        if !self.talking.is_empty() && now >= self.look_at {
            for number in std::mem::take(&mut self.talking) {
                let Some(connection) = self.doorman.connection(number) else { continue };
                let Some(n_received) = connection.n_received() else { continue };
                let n_taken = self.access.taken.of(number);
                match self.doorman.wait_for(number, n_received, n_taken, now) {
                    Verdict::Fine => {
                        let _ = self.arrivals.watch_again(connection); // unless it is over
                    }
                    Verdict::Doubtful => self.talking.push(number),
                    Verdict::Cut(why) => self.cut(connection, why),
                }
            }
            self.look_at = now + LOOK_LATER;
        }
        if self.talking.is_empty() {
            return -1;
        }
        let left = self.look_at.saturating_sub(now).as_millis();
        i64::try_from(left).map_or(-1, |left| left + 1)
    }

    fn cut(&self, connection: Connection, why: &str) {
        let who = connection.peer().map_or_else(|| "?".to_owned(), |peer| peer.to_string());
        let mut doors = self.monitors.iter().filter_map(|monitor| monitor.door.as_ref());
        if doors.any(|door| connection.cut(door)) {
            let refusals = &self.access.refusals;
            refusals.note(&refusals.limit, &who, format_args!("{why}; the connection is cut"));
        }
    }
}

/// Envelope, version, request, domain, address, identity, mechanism, credentials: the answer to
/// that. Nothing if it is malformed: libzmq itself asks.
pub fn answer(access: &Access, frames: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let [peer, delimiter, version, request, domain, address, _, mechanism, credentials @ ..] =
        frames
    else {
        return None;
    };
    let domain = std::str::from_utf8(domain).ok().and_then(Domain::parse);
    let key = match (mechanism.as_slice(), credentials) {
        (b"CURVE", [key]) => <[u8; 32]>::try_from(key.as_slice()).ok().map(Key),
        _ => None,
    };
    let name = domain.as_ref().and_then(|domain| access.admit(key, domain));
    if name.is_none() {
        let address = String::from_utf8_lossy(address);
        let key = key.map_or_else(|| "no key".to_owned(), |key| key.to_z85());
        let place = domain.map_or_else(String::new, |domain| domain.to_string());
        let refusals = &access.refusals;
        let what = format_args!("key {key} is on no list, or may not use {place}");
        refusals.note(&refusals.unknown_key, &address, what);
    }
    let (code, text) = if name.is_some() { ("200", "OK") } else { ("400", "not allowed") };
    let user = name.unwrap_or_default().into_bytes();
    Some(vec![
        peer.clone(),
        delimiter.clone(),
        version.clone(),
        request.clone(),
        code.into(),
        text.into(),
        user,
        Vec::new(),
    ])
}
