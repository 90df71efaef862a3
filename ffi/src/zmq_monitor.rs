//! What libzmq says of a socket's connection.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr;

/// A socket that may have a monitor, which is stopped before the socket is closed: see [`stop_monitor`].
pub struct Watched(zmq::Socket);

impl From<zmq::Socket> for Watched {
    fn from(socket: zmq::Socket) -> Self {
        Self(socket)
    }
}

impl Deref for Watched {
    type Target = zmq::Socket;

    fn deref(&self) -> &zmq::Socket {
        &self.0
    }
}

impl DerefMut for Watched {
    fn deref_mut(&mut self) -> &mut zmq::Socket {
        &mut self.0
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = stop_monitor(&mut self.0); // only fails where there is none
    }
}

/// Stops the events that [`zmq::Socket::monitor`] asked for.
///
/// To be called before the monitored socket or the reader of the events is closed. libzmq closes a
/// socket later, on a thread of its own, and writes an event about every connection that ends with
/// it. If nobody is left to read that, the write waits for ever, and every other socket of the
/// context with it.
///
/// # Errors
/// What `zmq_socket_monitor` gives: the context ended, or memory ran out.
pub fn stop_monitor(socket: &mut zmq::Socket) -> Result<(), zmq::Error> {
    // SAFETY: the socket is live (borrowed mutably, so no other thread has it); no address means
    // that the monitor is to stop, and libzmq reads none then.
    let rc = unsafe { zmq_sys::zmq_socket_monitor(socket.as_mut_ptr(), ptr::null(), 0) };
    if rc == 0 {
        return Ok(());
    }
    // SAFETY: no argument; read right after the failed call, on the same thread.
    Err(zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without [`stop_monitor`] one of these contexts stands still sooner or later: its thread for
    /// connections waits for a reader of events that is gone.
    #[test]
    fn a_watched_socket_that_is_closed_leaves_the_others_alive() {
        for _ in 0..200 {
            let context = zmq::Context::new();
            let router = context.socket(zmq::ROUTER).unwrap();
            router.bind("tcp://127.0.0.1:*").unwrap();
            let endpoint = router.get_last_endpoint().unwrap().unwrap();
            let mut watched = context.socket(zmq::DEALER).unwrap();
            let events = zmq::SocketEvent::DISCONNECTED.to_raw().into();
            watched.monitor("inproc://events", events).unwrap();
            let monitor = context.socket(zmq::PAIR).unwrap();
            monitor.connect("inproc://events").unwrap();
            watched.connect(&endpoint).unwrap();
            watched.send("hello", 0).unwrap();
            router.recv_multipart(0).unwrap();
            drop(router); // the connection ends while the monitor is closed
            stop_monitor(&mut watched).unwrap();
            drop(watched);
            drop(monitor);
            let router = context.socket(zmq::ROUTER).unwrap();
            router.bind("tcp://127.0.0.1:*").unwrap();
            let endpoint = router.get_last_endpoint().unwrap().unwrap();
            let dealer = context.socket(zmq::DEALER).unwrap();
            dealer.connect(&endpoint).unwrap();
            dealer.send("still there", 0).unwrap();
            router.set_rcvtimeo(60_000).unwrap();
            assert_eq!(router.recv_multipart(0).unwrap()[1], b"still there");
        }
    }
}
