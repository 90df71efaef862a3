//! The socket that movers connect to, and who may be one.
//!
//! Who connects was asked for its key then; whether it may still be a mover is looked at with each message, which
//! costs nothing where there are no keys.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lcap_ffi::connection::{Connection, Door};
use lcap_ffi::zmq_monitor::Watched;
use tracing::info;

use super::movers::{Movers, Peer};
use super::queue::Queue;
use super::scheduler::Now;
use crate::security::Access;

/// A bound ROUTER.
#[derive(Debug)]
pub struct MoverSocket {
    socket: Watched,
    door: Option<Door>,
    access: Access,
    /// Names on the list of clients, by connection, where there is such a list.
    clients: HashMap<Peer, Box<str>>,
    revoked: Arc<AtomicBool>,
}

impl MoverSocket {
    /// With where it is bound, if connections are to be cut, and who may be a mover.
    pub fn new(socket: Watched, door: Option<Door>, access: Access) -> Self {
        let (clients, revoked) = (HashMap::new(), Arc::default());
        Self { socket, door, access, clients, revoked }
    }

    /// The socket, to wait for it and to send.
    pub fn socket(&self) -> &zmq::Socket {
        &self.socket
    }

    /// To be set when somebody may do less than before; then the thread is to be woken.
    pub fn revoked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.revoked)
    }

    /// Who may be a mover.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The name of a peer's client, where there are names.
    pub fn client_of(&self, peer: &Peer) -> Option<&str> {
        self.clients.get(peer).map(|client| &**client)
    }

    /// The next message of who may be a mover: from whom, and its frames. `None` if there is none now.
    pub fn receive(&mut self) -> Option<(Peer, Vec<Vec<u8>>)> {
        loop {
            let peer: Peer = Arc::from(&*self.socket.recv_msg(zmq::DONTWAIT).ok()?);
            let mut frames = Vec::new();
            let mut admitted = true;
            // The frames of a message arrive together.
            while self.socket.get_rcvmore().unwrap_or(false) {
                let mut frame = self.socket.recv_msg(zmq::DONTWAIT).ok()?;
                if frames.is_empty() {
                    self.access.taken.note(&mut frame);
                    admitted = self.admits(&peer, &mut frame);
                }
                frames.push(frame.to_vec());
            }
            if admitted && !frames.is_empty() {
                return Some((peer, frames));
            }
        }
    }

    fn admits(&mut self, peer: &Peer, frame: &mut zmq::Message) -> bool {
        if !self.access.has_list() {
            return true;
        }
        let client = frame.gets("User-Id").unwrap_or_default().to_owned();
        if self.access.may_move(&client) {
            if self.clients.get(peer).is_none_or(|known| **known != *client) {
                self.clients.insert(Arc::clone(peer), client.into());
            }
            return true;
        }
        self.clients.remove(peer);
        info!(client, "this client may not be a mover any longer; its connection is cut");
        if let (Some(connection), Some(door)) = (Connection::of_message(frame), &self.door) {
            connection.cut(door); // if this fails, it is over already
        }
        false
    }

    /// Ends the sessions of those that may not be movers any longer, if somebody may do less than before. They
    /// keep what they run for their grace time: nobody can stop them.
    pub fn revoke(&mut self, movers: &mut Movers, queue: &mut Queue, now: Now) {
        if !self.revoked.swap(false, Ordering::Relaxed) {
            return;
        }
        let access = &self.access;
        self.clients.retain(|peer, client| {
            // Those that are gone for another reason are of no interest either.
            let Some(name) = movers.name_of(peer) else { return false };
            let may = access.may_be_mover(Some(client), &name);
            if !may {
                movers.revoke(queue, peer, now);
            }
            may
        });
    }
}
