//! The reference for everything that travels: a bare libzmq sender and receiver, two processes, moving
//! the same number of bytes in messages of one size.
//!
//! Records that wait for a client lie in memory, not in the processor's cache, so the reference sends
//! from memory, too, without a copy of its own. A sender that repeats one message from its cache is faster than
//! anybody with something to say; it is measured beside it, as [`Bytes::Same`].
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

/// What the sender sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Bytes {
    /// Each message lies elsewhere in memory.
    Different,
    /// The same message again and again.
    Same,
}

/// Bytes per second from a sender process to this one, over `endpoint`.
///
/// # Errors
/// If libzmq or the process fails.
pub(crate) fn measure(
    endpoint: &str,
    message_bytes: usize,
    total_bytes: usize,
    bytes: Bytes,
) -> Result<f64> {
    let n = (total_bytes / message_bytes).max(2);
    let bytes = if bytes == Bytes::Same { "same" } else { "different" };
    let (message_size, count) = (message_bytes.to_string(), n.to_string());
    let (mut sender, socket) = sender(&["wire-sender", endpoint, &message_size, &count, bytes])?;
    let mut message = zmq::Message::new();
    socket.recv(&mut message, 0)?;
    let started = Instant::now();
    for _ in 1..n {
        socket.recv(&mut message, 0)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    sender.wait()?;
    Ok((n - 1) as f64 * message_bytes as f64 / seconds)
}

/// This program again in one of its roles as a sender, and a socket that is connected to it.
fn sender(role: &[&str]) -> Result<(Child, zmq::Socket)> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut sender = command.args(role).stdout(Stdio::piped()).spawn()?;
    let mut bound = String::new();
    BufReader::new(sender.stdout.take().context("a pipe")?).read_line(&mut bound)?;
    let socket = zmq::Context::new().socket(zmq::PULL)?;
    socket.connect(bound.trim())?;
    Ok((sender, socket))
}

/// One message of many in one piece of memory.
#[derive(Debug)]
struct Part {
    all: Arc<Vec<u8>>,
    at: usize,
    len: usize,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.all.get(self.at..self.at + self.len).unwrap_or_default()
    }
}

/// The other process: sends as fast as libzmq takes it.
///
/// # Errors
/// If libzmq fails.
pub(crate) fn send(endpoint: &str, len: usize, n: usize, bytes: Bytes) -> Result<()> {
    let context = zmq::Context::new();
    let mut socket = context.socket(zmq::PUSH)?;
    socket.set_sndhwm(1000.min((256 << 20) / len).try_into()?)?;
    let n_parts = if bytes == Bytes::Same { 1 } else { n };
    let all = Arc::new(vec![7_u8; len * n_parts]);
    socket.bind(endpoint)?;
    println!("{}", socket.get_last_endpoint()?.unwrap_or_default());
    for at in 0..n {
        let part = Part { all: Arc::clone(&all), at: at % n_parts * len, len };
        lcap_ffi::zmq_frame::send_shared(&mut socket, Arc::new(part), 0)?;
    }
    Ok(())
}

/// Latencies of a bare libzmq pair over TCP, in seconds: a sender process that sends a message
/// of a record's size `rate` times a second, for `n` messages, and says in each when it was due.
///
/// # Errors
/// If libzmq or the process fails.
pub(crate) fn latencies(rate: u32, n: usize) -> Result<Vec<f64>> {
    let (mut sender, socket) = sender(&["wire-pace", &rate.to_string(), &n.to_string()])?;
    let (mut message, mut found) = (zmq::Message::new(), Vec::with_capacity(n));
    for _ in 0..n {
        socket.recv(&mut message, 0)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let due = message.first_chunk().copied().map(u64::from_ne_bytes).context("a time")?;
        found.push(now.saturating_sub(Duration::from_nanos(due)).as_secs_f64());
    }
    sender.wait()?;
    Ok(found)
}

/// The other process of [`latencies`].
///
/// # Errors
/// If libzmq fails.
pub(crate) fn send_paced(rate: u32, n: usize) -> Result<()> {
    // As lcapd's readers: the kernel may else wake us 50 µs late.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let context = zmq::Context::new();
    let socket = context.socket(zmq::PUSH)?;
    socket.bind("tcp://127.0.0.1:*")?;
    println!("{}", socket.get_last_endpoint()?.unwrap_or_default());
    let (start, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let mut message = [0_u8; 170];
    for at in 1..=u32::try_from(n)? {
        let due = Duration::from_secs(1) / rate * at;
        std::thread::sleep(due.saturating_sub(start.elapsed())); // the pace that is measured
        let due = u64::try_from((wall + due).as_nanos())?;
        message[..8].copy_from_slice(&due.to_ne_bytes());
        socket.send(message.as_slice(), 0)?;
    }
    Ok(())
}
