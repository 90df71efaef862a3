//! Any bytes as what comes in at other doors: libzmq's questions who may connect, requests in frames, the stream of
//! objects at the JSON port, a request of the upcall.

use lcap_upcall::request::Request;
use lcap_wire::z85::Key;
use lcapd::hsm::json_port::split::Splitter;
use lcapd::intake;
use lcapd::security::{Access, Clients, zap};

/// Between frames.
const SEPARATOR: u8 = 0xff;
const MAX_OBJECT_BYTES: usize = 1 << 20;

pub(crate) fn run(bytes: &[u8]) {
    let frames: Vec<Vec<u8>> = bytes.split(|&b| b == SEPARATOR).map(<[u8]>::to_vec).collect();
    who_may_connect(&frames);
    let n_frames = frames.len();
    let messages: Vec<zmq::Message> = frames.iter().map(zmq::Message::from).collect();
    match intake::sort_out(messages, n_frames) {
        Some(Ok(received)) => assert!(n_frames == if received.delimiter { 3 } else { 2 }),
        Some(Err(identity)) => assert_eq!(identity, frames[0]),
        None => assert!(frames.is_empty()),
    }
    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(Request::decode(&request.encode()).expect("our own request"), request);
    }
    assert_eq!(objects(bytes, bytes.len().max(1)), objects(bytes, 3), "however it arrives");
}

/// Only the one key that is on the list is let in.
fn who_may_connect(frames: &[Vec<u8>]) {
    let key = Key([b'k'; 32]);
    let list = format!("[[client]]\nname = \"a\"\nkey = '{}'\nread = [\"s\"]\n", key.to_z85());
    let access = Access::only(Clients::parse(&list).expect("a list"));
    let Some(answer) = zap::answer(&access, frames) else { return };
    assert_eq!(answer.len(), 8);
    assert_eq!(answer[..4], frames[..4]);
    let allowed = [&b"control"[..], b"stream s"].contains(&frames[4].as_slice());
    let allowed = allowed && frames[7] == b"CURVE" && frames[8..] == [key.0.to_vec()];
    assert_eq!(answer[4], if allowed { b"200" } else { b"400" });
    assert_eq!(answer[6].is_empty(), !allowed);
}

/// The objects in a stream that arrives in parts, up to the first thing that is none.
fn objects(bytes: &[u8], part: usize) -> (Vec<Vec<u8>>, bool) {
    let mut splitter = Splitter::default();
    let mut found = Vec::new();
    for part in bytes.chunks(part) {
        splitter.push(part);
        loop {
            match splitter.next(MAX_OBJECT_BYTES) {
                Ok(Some(object)) => {
                    assert!(object.starts_with(b"{"));
                    found.push(object);
                }
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}
