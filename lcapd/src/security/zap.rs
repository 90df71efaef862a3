//! The thread that libzmq asks who may connect (ZAP, ZeroMQ RFC 27), and that hears of connections and
//! of handshakes which failed before there was anything to ask.
//!
//! It is asked without keys, too: then libzmq speaks only the version of its protocol that has
//! handshakes, and messages say which connection they came over.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lcap_ffi::connection::{Arrivals, Connection, Door};
use lcap_wire::z85::Key;

use super::doorman::Doorman;
use super::{Access, Domain};
use crate::wake::Waker;

/// Where libzmq asks.
const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// A connection broke before its handshake was complete, without a reason, or with one.
const HANDSHAKE_FAILED: [u16; 2] = [0x0800, 0x2000];
const ACCEPTED: u16 = 0x0020;
const DISCONNECTED: u16 = 0x0200;

/// The thread's state.
pub struct Zap {
    socket: zmq::Socket,
    monitors: Vec<Monitor>,
    access: Access,
    doorman: Doorman,
    /// Of connections to broadcast streams.
    arrivals: Arrivals,
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
        Ok(Self { socket, monitors, access, doorman, arrivals, started, waker, stop })
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
        self.monitors.push(Monitor { socket: monitor, door: None, is_broadcast });
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
                if let Some(answer) = self.answer(&frames) {
                    let _ = self.socket.send_multipart(answer, zmq::DONTWAIT);
                }
            }
            for nth in 0..self.monitors.len() {
                while let Ok(frames) = self.monitors[nth].socket.recv_multipart(zmq::DONTWAIT) {
                    self.note(nth, &frames);
                }
            }
            self.hear();
            self.waker.falling_asleep();
            if !self.stop.load(Ordering::Relaxed) {
                let mut items = vec![
                    self.socket.as_poll_item(zmq::POLLIN),
                    zmq::PollItem::from_fd(self.waker.raw_fd(), zmq::POLLIN),
                    zmq::PollItem::from_fd(self.arrivals.raw_fd(), zmq::POLLIN),
                ];
                items.extend(self.monitors.iter().map(|m| m.socket.as_poll_item(zmq::POLLIN)));
                let _ = zmq::poll(&mut items, -1); // EINTR: look again
            }
            self.waker.awake();
        }
    }

    /// Envelope, version, request, domain, address, identity, mechanism, credentials: the answer to
    /// that. Nothing if it is malformed: libzmq itself asks.
    fn answer(&self, frames: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
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
        let name = domain.as_ref().and_then(|domain| self.access.admit(key, domain));
        if name.is_none() {
            let address = String::from_utf8_lossy(address);
            let key = key.map_or_else(|| "no key".to_owned(), |key| key.to_z85());
            let place = domain.map_or_else(String::new, |domain| domain.to_string());
            let refusals = &self.access.refusals;
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

    /// Number and value of an event in the first frame, the endpoint in the second.
    fn note(&mut self, monitor: usize, frames: &[Vec<u8>]) {
        let refusals = &self.access.refusals;
        let Some((event, value)) = frames.first().and_then(|frame| frame.split_first_chunk::<2>())
        else {
            return;
        };
        let event = u16::from_ne_bytes(*event);
        let number = value.first_chunk().map_or(-1, |&number| i32::from_ne_bytes(number));
        if HANDSHAKE_FAILED.contains(&event) {
            let at = frames.get(1).map(|at| String::from_utf8_lossy(at)).unwrap_or_default();
            let what = format_args!(
                "a handshake at {at} failed: no CURVE, another server's key, or not ZeroMQ at all"
            );
            refusals.note(&refusals.handshake, "?", what);
        } else if event == DISCONNECTED {
            self.doorman.leave(number);
        } else if event == ACCEPTED
            && let Some(connection) = Connection::of_fd(number)
        {
            if let Some(why) = self.doorman.enter(number, connection) {
                self.cut(connection, why);
            } else if self.monitors[monitor].is_broadcast {
                // If it is over already, it says nothing.
                let _ = self.arrivals.watch(connection);
            }
        }
    }

    /// Looks at what subscribers have said meanwhile.
    fn hear(&mut self) {
        let mut numbers = Vec::new();
        self.arrivals.take(&mut numbers);
        for number in numbers {
            let Some(connection) = self.doorman.connection(number) else { continue };
            let Some(n_received) = connection.n_received() else { continue };
            if let Some(why) = self.doorman.hear(number, n_received, self.started.elapsed()) {
                self.cut(connection, why);
            }
        }
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
