//! Floods and garbage on every open port of an lcapd, for as long as one likes.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::rng::Rng;

/// What a greeting of ZMTP 3.1 without encryption looks like.
fn greeting() -> Vec<u8> {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
    greeting.extend_from_slice(b"NULL");
    greeting.resize(64, 0);
    greeting
}

/// Requests to be mutated.
const REQUESTS: [&str; 10] = [
    r#"{"v":1,"id":1,"op":"hello"}"#,
    r#"{"v":1,"id":2,"op":"start","stream":"changelog","mdt":"lustre-MDT0000","follow":true}"#,
    r#"{"v":1,"id":3,"op":"start","stream":"work","mdt":"lustre-MDT0000","reader":"x","from":9}"#,
    r#"{"v":1,"op":"fetch","session":1,"upto":18446744073709551615}"#,
    r#"{"v":1,"id":4,"op":"ack","session":1,"ranges":[[1,18446744073709551615],[5,2]]}"#,
    r#"{"v":1,"id":5,"op":"clear","mdt":"lustre-MDT0000","reader":"audit","upto":1}"#,
    r#"{"v":1,"id":6,"op":"status"}"#,
    r#"{"v":1,"id":7,"op":"start","stream":"changelog","mdt":"lustre-MDT0000","filter":"uid = 7"}"#,
    r#"{"v":255,"id":8,"op":"reader.list"}"#,
    r#"{"v":1,"id":9,"op":"fini","session":12345}"#,
];

/// Who attacks what.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The control socket, e.g. `127.0.0.1:8189`.
    pub control: String,
    /// Data sockets of streams.
    pub streams: Vec<String>,
    /// Figures and health.
    pub http: String,
}

/// Threads that attack until they are stopped.
#[derive(Debug)]
pub struct Abuse {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    n_blows: Arc<AtomicU64>,
}

impl Abuse {
    /// Starts one attacker of each kind; `seed` decides what they send.
    ///
    /// # Panics
    /// If a thread cannot be started.
    pub fn start(targets: &Targets, seed: u64) -> Self {
        let (stop, n_blows) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let zmtp: Vec<String> =
            std::iter::once(&targets.control).chain(&targets.streams).cloned().collect();
        let all: Vec<String> = zmtp.iter().chain([&targets.http]).cloned().collect();
        let mut abuse = Self { stop, threads: Vec::new(), n_blows };
        abuse.attack(seed, move |rng| garbage(rng, &all));
        let (control, streams) = (targets.control.clone(), targets.streams.clone());
        abuse.attack(seed + 1, move |rng| frames(rng, &zmtp));
        abuse.attack(seed + 2, move |rng| requests(rng, &control));
        abuse.attack(seed + 3, move |rng| subscriptions(rng, &streams));
        let control = targets.control.clone();
        abuse.attack(seed + 5, move |rng| {
            endless(&control, 8 << 20);
            thread::sleep(Duration::from_millis(rng.below(200)));
        });
        let http = targets.http.clone();
        abuse.attack(seed + 4, move |rng| slow_http(rng, &http));
        abuse
    }

    /// Adds an attacker.
    ///
    /// # Panics
    /// If its thread cannot be started.
    pub fn attack(&mut self, seed: u64, mut blow: impl FnMut(&mut Rng) + Send + 'static) {
        let (stop, n_blows) = (Arc::clone(&self.stop), Arc::clone(&self.n_blows));
        let mut rng = Rng::new(seed);
        let attack = move || {
            while !stop.load(Ordering::Relaxed) {
                blow(&mut rng);
                n_blows.fetch_add(1, Ordering::Relaxed);
            }
        };
        self.threads.push(thread::Builder::new().spawn(attack).expect("a thread"));
    }

    /// How often somebody connected and sent something.
    pub fn n_blows(&self) -> u64 {
        self.n_blows.load(Ordering::Relaxed)
    }

    /// Stops them, and waits for that.
    ///
    /// # Panics
    /// If one of them had.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("an attacker");
        }
        self.n_blows.load(Ordering::Relaxed)
    }
}

/// A connection that does not wait for long.
pub(crate) fn connect(address: &str) -> Option<TcpStream> {
    let address: SocketAddr = address.parse().ok()?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(200))).ok()?;
    Some(stream)
}

fn bytes(rng: &mut Rng, n: u64) -> Vec<u8> {
    (0..rng.below(n.max(1))).map(|_| u8::try_from(rng.below(256)).unwrap_or(0)).collect()
}

fn any<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.index(of.len())]
}

/// Bytes without meaning.
fn garbage(rng: &mut Rng, addresses: &[String]) {
    let address = any(rng, addresses);
    if let Some(mut stream) = connect(address) {
        let _ = stream.write_all(&bytes(rng, 4096));
        if rng.below(2) == 0 {
            let _ = stream.read(&mut [0; 64]);
        }
    }
}

/// Shakes hands as a socket of that type: true if the other side has, too.
fn shake_hands(stream: &mut TcpStream, socket: &str) -> bool {
    let mut said = greeting();
    let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    ready.push(u8::try_from(socket.len()).unwrap_or(0));
    ready.extend_from_slice(socket.as_bytes());
    said.extend_from_slice(&[4, u8::try_from(ready.len()).unwrap_or(0)]);
    said.extend_from_slice(&ready);
    let mut head = [0; 64 + 2];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    stream.write_all(&said).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && stream.read_exact(&mut vec![0; head[65].into()]).is_ok()
        && stream.set_read_timeout(Some(Duration::from_millis(20))).is_ok()
}

/// A right handshake, then frames that are wrong, too long, or without end.
fn frames(rng: &mut Rng, addresses: &[String]) {
    let address: &String = any(rng, addresses);
    let Some(mut stream) = connect(address) else { return };
    let kinds = ["DEALER", "SUB", "REQ", "PUB"];
    let kind = kinds[rng.index(kinds.len())];
    if !shake_hands(&mut stream, kind) {
        return;
    }
    let mut sent = Vec::new();
    for _ in 0..rng.below(50) {
        let flags = u8::try_from(rng.below(8)).unwrap_or(0);
        if flags & 2 == 0 {
            let body = bytes(rng, 200);
            sent.extend_from_slice(&[flags, u8::try_from(body.len()).unwrap_or(0)]);
            sent.extend_from_slice(&body);
        } else {
            // As long as it likes to be.
            sent.push(flags);
            sent.extend_from_slice(&(rng.below(u64::MAX) >> rng.below(64)).to_be_bytes());
        }
    }
    let cut = rng.index(sent.len() + 1);
    let sent = if rng.below(4) == 0 { &sent[..cut] } else { &sent[..] };
    let _ = stream.write_all(sent);
    let _ = stream.read(&mut [0; 256]);
}

/// A message that has no last part. How many bytes of it were taken, at most so many.
pub fn endless(address: &str, most: usize) -> usize {
    let Some(mut stream) = connect(address) else { return 0 };
    // One that was cut is often not told so: its last word from the other side was to wait.
    let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
    if !shake_hands(&mut stream, "DEALER") {
        return 0;
    }
    let mut part = vec![3]; // a long frame, and more to come
    part.extend_from_slice(&(64_u64 << 10).to_be_bytes());
    part.resize(part.len() + (64 << 10), 0);
    let mut sent = 0;
    while sent < most && stream.write_all(&part).is_ok() {
        sent += part.len();
    }
    sent
}

/// Requests, right and mutated, as fast as the socket takes them.
fn requests(rng: &mut Rng, address: &str) {
    let context = zmq::Context::new();
    let kind = if rng.below(4) == 0 { zmq::REQ } else { zmq::DEALER };
    let Ok(socket) = context.socket(kind) else { return };
    let _ = socket.set_linger(50);
    let _ = socket.connect(&format!("tcp://{address}"));
    for _ in 0..2000 {
        let mut request = any(rng, &REQUESTS).as_bytes().to_vec();
        if rng.below(2) == 0 {
            let at = rng.index(request.len());
            request[at] = u8::try_from(rng.below(256)).unwrap_or(0);
        }
        if rng.below(100) == 0 {
            request = vec![b'['; 500_000];
        }
        let parts: Vec<Vec<u8>> = match rng.below(50) {
            0 => vec![request.clone(), request],
            1 => vec![Vec::new(), Vec::new(), Vec::new(), request],
            _ => vec![request],
        };
        if socket.send_multipart(parts, zmq::DONTWAIT).is_err() {
            break;
        }
    }
    while socket.recv_bytes(zmq::DONTWAIT).is_ok() {}
}

/// Subscriptions to anything, never taken back.
fn subscriptions(rng: &mut Rng, addresses: &[String]) {
    let context = zmq::Context::new();
    let Ok(socket) = context.socket(zmq::SUB) else { return };
    let (_, _) = (socket.set_linger(0), socket.set_sndhwm(0));
    let _ = socket.connect(&format!("tcp://{}", any(rng, addresses)));
    for _ in 0..5000 {
        let topic = bytes(rng, 400);
        if socket.set_subscribe(&topic).is_err() {
            return;
        }
    }
    let _ = socket.poll(zmq::POLLIN, 100);
}

/// Requests that come byte by byte, and answers that nobody reads.
fn slow_http(rng: &mut Rng, address: &str) {
    let mut held = Vec::new();
    for _ in 0..40 {
        let Some(mut stream) = connect(address) else { continue };
        let request: &[u8] =
            if rng.below(2) == 0 { b"GET /metr" } else { b"GET /metrics HTTP/1.1\r\n\r\n" };
        let _ = stream.write_all(request);
        held.push(stream);
    }
    thread::sleep(Duration::from_millis(20));
}
