//! One message from a client: what it says, and who says it.
#![forbid(unsafe_code)]

use crate::security::taken::Taken;

/// Frames that a request has at most: identity, REQ's delimiter, the request.
const MAX_FRAMES: usize = 3;

/// A message on a ROUTER socket.
#[derive(Debug)]
pub struct Received {
    /// The connection.
    pub identity: Vec<u8>,
    /// A REQ socket's empty frame came before the body.
    pub delimiter: bool,
    /// The request.
    pub body: zmq::Message,
    /// The client's name on the allow-list, as libzmq vouches for it; `None` without CURVE.
    pub user: Option<String>,
}

/// The next message of a ROUTER socket, if there is one: `Err` with the connection if it has the
/// wrong number of frames.
pub fn receive(socket: &zmq::Socket, taken: &Taken) -> Option<Result<Received, Vec<u8>>> {
    let mut frames: Vec<zmq::Message> = Vec::with_capacity(MAX_FRAMES);
    let mut n_frames = 0;
    loop {
        // The frames of a message arrive together.
        let frame = socket.recv_msg(zmq::DONTWAIT).ok()?;
        let more = frame.get_more();
        n_frames += 1;
        if n_frames <= MAX_FRAMES {
            frames.push(frame);
        }
        if !more {
            break;
        }
    }
    if let Some(body) = frames.get_mut(1) {
        taken.note(body);
    }
    sort_out(frames, n_frames)
}

/// What the first frames of a message of `n_frames` are: `Err` with the connection if these are the wrong number.
pub fn sort_out(frames: Vec<zmq::Message>, n_frames: usize) -> Option<Result<Received, Vec<u8>>> {
    let mut frames = frames.into_iter();
    let identity = frames.next()?.to_vec();
    let (body, delimiter) = match (frames.next(), frames.next()) {
        (Some(body), None) => (body, false),
        (Some(empty), Some(body)) if empty.is_empty() && n_frames == MAX_FRAMES => (body, true),
        _ => return Some(Err(identity)),
    };
    let mut body = body;
    let user = body.gets("User-Id").filter(|user| !user.is_empty()).map(str::to_owned);
    Some(Ok(Received { identity, delimiter, body, user }))
}
