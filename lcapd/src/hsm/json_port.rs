//! The original coordinatool's protocol: JSON objects over TCP, for its movers and its command line.
//!
//! Sockets and buffers are here, what is said in [`clients`]. No client can hold up another: nothing
//! blocks, buffers are bounded, and what is unfinished for too long is hung up on.
#![forbid(unsafe_code)]

pub mod clients;
pub mod split;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use tracing::{debug, info, warn};

use self::clients::{Clients, Settings};
use self::split::Splitter;
use super::lustre::ToLustre;
use super::queue::{Event, Queue};
use super::scheduler::Now;

/// Largest object that is taken.
const MAX_OBJECT_BYTES: usize = 64 << 20;
/// Replies that a client may leave unread.
const MAX_UNREAD_BYTES: usize = 64 << 20;
/// An object takes no longer to come.
const UNFINISHED: Duration = Duration::from_secs(30);
/// Connections at once.
const MAX_CLIENTS: usize = 1024;
/// Bytes of one client before the others have their turn.
const TURN_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    splitter: Splitter,
    /// When its unfinished object began.
    unfinished: Option<Now>,
    out: Vec<u8>,
    /// Of `out`, what is sent.
    sent: usize,
    /// Hung up on when `out` is sent.
    closing: bool,
}

/// The port.
#[derive(Debug)]
pub struct JsonPort {
    listener: TcpListener,
    connections: HashMap<u64, Connection>,
    clients: Clients,
    next: u64,
}

impl JsonPort {
    /// Listens on `address`, `HOST:PORT`.
    ///
    /// # Errors
    /// If it cannot be bound.
    pub fn bind(address: &str, settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let (connections, clients) = (HashMap::new(), Clients::new(settings));
        Ok(Self { listener, connections, clients, next: 1 })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Its clients.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Hangs up on a mover, whose requests others get.
    pub fn drop_mover(&mut self, name: &str) {
        let number = self.clients.number_of(name);
        if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
            connection.closing = true;
        }
    }

    /// What to poll, and whether for writing, too.
    pub fn wants(&self) -> Vec<(RawFd, bool)> {
        let mut fds = vec![(self.listener.as_raw_fd(), false)];
        let of = |c: &Connection| (c.stream.as_raw_fd(), c.sent < c.out.len());
        fds.extend(self.connections.values().map(of));
        fds
    }

    /// Takes what has come. True if there may be more.
    pub fn read(&mut self, queue: &mut Queue, now: Now) -> bool {
        self.accept();
        let mut more = false;
        let mut buffer = vec![0; 64 << 10];
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        for number in numbers {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            let mut taken = 0;
            let mut gone = false;
            while taken < TURN_BYTES && !connection.closing {
                match connection.stream.read(&mut buffer) {
                    Ok(0) => gone = true,
                    Ok(n) => {
                        taken += n;
                        connection.splitter.push(buffer.get(..n).unwrap_or_default());
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => gone = true,
                }
                break;
            }
            more |= taken >= TURN_BYTES;
            while !connection.closing {
                match connection.splitter.next(MAX_OBJECT_BYTES) {
                    Ok(Some(object)) => {
                        if let Err(reason) = self.clients.object(number, &object, queue, now) {
                            debug!(reason, "client of the JSON port hung up on");
                            connection.closing = true;
                        }
                    }
                    Ok(None) => break,
                    Err(reason) => {
                        warn!(reason, "client of the JSON port hung up on");
                        connection.closing = true;
                    }
                }
            }
            connection.unfinished = match connection.splitter.is_empty() {
                true => None,
                false => connection.unfinished.or(Some(now)),
            };
            if gone {
                self.connections.remove(&number);
                self.clients.gone(number, queue, now);
            }
        }
        more
    }

    fn accept(&mut self) {
        while let Ok((stream, address)) = self.listener.accept() {
            let usable = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if usable.is_err() || self.connections.len() >= MAX_CLIENTS {
                warn!(%address, "no room for another client of the JSON port");
                continue; // hangs up
            }
            let number = self.next;
            self.next += 1;
            let connection = Connection {
                stream,
                splitter: Splitter::default(),
                unfinished: None,
                out: Vec::new(),
                sent: 0,
                closing: false,
            };
            self.connections.insert(number, connection);
            self.clients.connected(number, &address.to_string());
        }
    }

    /// Something happened to a request.
    pub fn on_event(&mut self, event: &Event) {
        self.clients.on_event(event);
    }

    /// Answers those that wait for work, as far as there is some.
    pub fn dispatch(&mut self, queue: &mut Queue, now: Now) {
        self.clients.dispatch(queue, now);
    }

    /// Does what is due.
    pub fn tick(&mut self, queue: &mut Queue, now: Now) {
        let late = |c: &Connection| c.unfinished.is_some_and(|since| since + UNFINISHED <= now);
        let late: Vec<u64> =
            self.connections.iter().filter(|(_, c)| late(c)).map(|(&n, _)| n).collect();
        for number in late {
            info!("client of the JSON port hung up on: half an object, and nothing more");
            self.connections.remove(&number);
            self.clients.gone(number, queue, now);
        }
        let closed: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.closing && c.sent == c.out.len())
            .map(|(&n, _)| n)
            .collect();
        for number in closed {
            self.connections.remove(&number);
            self.clients.gone(number, queue, now);
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Now> {
        self.connections.values().filter_map(|c| c.unfinished).min().map(|since| since + UNFINISHED)
    }

    /// What Lustre is to be told.
    pub fn take_to_lustre(&mut self) -> Vec<ToLustre> {
        self.clients.take_to_lustre()
    }

    /// Sends what was said since the last call; to be called when it is on disk.
    pub fn flush(&mut self, _now: Now) {
        for (number, reply) in self.clients.take_replies() {
            if let Some(connection) = self.connections.get_mut(&number) {
                connection.out.extend_from_slice(&reply);
            }
        }
        for connection in self.connections.values_mut() {
            connection.write();
        }
    }
}

impl Connection {
    fn write(&mut self) {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) if n > 0 => self.sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Its end is seen when it is read.
                Ok(_) | Err(_) => {
                    self.sent = self.out.len();
                    self.closing = true;
                }
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.out.len() - self.sent > MAX_UNREAD_BYTES {
            warn!("client of the JSON port hung up on: it does not read its replies");
            self.out.clear();
            self.sent = 0;
            self.closing = true;
        }
    }
}
