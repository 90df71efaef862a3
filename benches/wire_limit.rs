//! The reference for everything that travels: a bare libzmq sender and receiver, two processes, moving
//! the same number of bytes in messages of one size.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Bytes per second from a sender process to this one, over `endpoint`.
///
/// # Errors
/// If libzmq or the process fails.
pub(crate) fn measure(endpoint: &str, message_bytes: usize, total_bytes: usize) -> Result<f64> {
    let n = (total_bytes / message_bytes).max(2);
    let mut sender = Command::new(std::env::current_exe()?)
        .args(["wire-sender", endpoint, &message_bytes.to_string(), &n.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut bound = String::new();
    BufReader::new(sender.stdout.take().context("a pipe")?).read_line(&mut bound)?;
    let context = zmq::Context::new();
    let socket = context.socket(zmq::PULL)?;
    socket.connect(bound.trim())?;
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

/// The other process: sends as fast as libzmq takes it.
///
/// # Errors
/// If libzmq fails.
pub(crate) fn send(endpoint: &str, message_bytes: usize, n: usize) -> Result<()> {
    let context = zmq::Context::new();
    let mut socket = context.socket(zmq::PUSH)?;
    socket.set_sndhwm(1000.min((256 << 20) / message_bytes).try_into()?)?;
    socket.bind(endpoint)?;
    println!("{}", socket.get_last_endpoint()?.unwrap_or_default());
    let body = std::sync::Arc::new(vec![7_u8; message_bytes]);
    for _ in 0..n {
        let shared = std::sync::Arc::<Vec<u8>>::clone(&body);
        lcap_ffi::zmq_frame::send_shared(&mut socket, shared as _, 0)?;
    }
    Ok(())
}
