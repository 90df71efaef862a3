//! A broadcast stream's socket, which workers and the thread that takes subscriptions share.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test: to panic is to fail

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use lcap_ffi::MdtName;
use lcap_wire::control::StreamKind;
use lcap_wire::frame::{hello_topic, topic};
use lcap_wire::{Header, Kind};
use lcapd::figures::StreamFigures;
use lcapd::pipeline::{Body, Outgoing};
use lcapd::publisher::subscribers::Subscribers;
use lcapd::publisher::{self, Broadcaster, Publisher, Topic};
use lcapd::security::Access;
use lcapd::taps::Taps;
use lcapd::wake::Waker;
use lcapd::worker::{Publish as _, Published};

const STREAM: &str = "changelog";
const PATIENCE_MS: i32 = 30_000;

fn mdt() -> MdtName {
    "lustre-MDT0000".parse().unwrap()
}

struct Server {
    broadcaster: Arc<Broadcaster>,
    endpoint: String,
    waker: Waker,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(context: &zmq::Context) -> Self {
        let socket = publisher::socket(context, 100_000).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        let publisher = Publisher {
            stream: STREAM.to_owned(),
            kind: StreamKind::Changelog,
            socket: socket.into(),
            epoch: 1,
            topics: vec![Some(Topic::new(STREAM, &mdt()))],
            taps: Taps::default(),
            figures: Arc::new(StreamFigures::default()),
            door: None,
            subscribers: Subscribers::default(),
            access: Access::default(),
            started: Instant::now(),
        };
        let (waker, stop) = (Waker::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let revoked = Arc::default();
        let broadcaster = Arc::new(
            Broadcaster::new(publisher, waker.clone(), revoked, Arc::clone(&stop)).unwrap(),
        );
        let serving = Arc::clone(&broadcaster);
        let thread = Some(std::thread::spawn(move || serving.serve()));
        Self { broadcaster, endpoint, waker, stop, thread }
    }

    fn publish(&self, sequence: u64) {
        let header = Header { sequence, ..Header::for_body(Kind::Records, b"body") };
        let body = Body::Bytes(Arc::new(b"body".to_vec()));
        let message = Outgoing { header, body, routes: Vec::new(), read_at: Instant::now() };
        self.broadcaster.publish(Published { mdt_at: 0, message, filtered: Vec::new() });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A worker that publishes so many messages whenever it is told to.
fn worker(server: &Arc<Server>, sequence: &Arc<AtomicU64>) -> Sender<u64> {
    let (orders, received) = bounded(0);
    let (server, sequence) = (Arc::clone(server), Arc::clone(sequence));
    std::thread::spawn(move || {
        for n in received {
            for _ in 0..n {
                server.publish(sequence.fetch_add(1, Ordering::SeqCst) + 1);
            }
        }
    });
    orders
}

fn sequence_of(frames: &[Vec<u8>]) -> u64 {
    Header::decode(&frames[1]).unwrap().sequence
}

/// Who sends takes from the socket's descriptor what would wake the thread for subscriptions. If that were
/// not told, a subscription that came at that moment would wait for the next message, which may never come.
#[test]
fn no_subscription_waits_for_a_message_and_nothing_is_missed_after_the_hello() {
    let context = zmq::Context::new();
    let (server, sequence) = (Arc::new(Server::start(&context)), Arc::new(AtomicU64::new(0)));
    let worker = worker(&server, &sequence);
    for attempt in 0..500_u64 {
        let subscriber = context.socket(zmq::SUB).unwrap();
        subscriber.set_rcvtimeo(PATIENCE_MS).unwrap();
        subscriber.set_rcvhwm(0).unwrap();
        let hello = hello_topic(STREAM, &mdt(), &attempt.to_string());
        subscriber.set_subscribe(&topic(STREAM, &mdt())).unwrap();
        subscriber.set_subscribe(&hello).unwrap();
        subscriber.connect(&server.endpoint).unwrap();
        // Few enough that all of them are said before the subscription comes, while it does, or after.
        worker.send(attempt % 40).unwrap();
        let begun = loop {
            let frames = subscriber.recv_multipart(0).expect("an answer to the hello");
            if frames[0] == hello {
                break sequence_of(&frames);
            }
        };
        worker.send(3).unwrap();
        worker.send(0).unwrap(); // it has done with the order before
        for expected in begun + 1..=sequence.load(Ordering::SeqCst) {
            let frames = subscriber.recv_multipart(0).expect("every message after the hello");
            assert_eq!(sequence_of(&frames), expected, "attempt {attempt}");
        }
    }
}
