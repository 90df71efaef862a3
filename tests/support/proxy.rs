//! A TCP proxy that can be told to cut its connections and to hold everything back.
//!
//! It stands between clients and the control endpoint of an lcapd; where the answers there name an
//! endpoint for data, it names a port of its own instead, so that data goes through it, too.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Between clients and one lcapd.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Vec<TcpStream>>,
    /// How long each piece waits.
    delay_ms: AtomicU64,
    /// New connections are closed at once.
    refuse: AtomicBool,
    /// Ports of lcapd for data, and ours for each.
    data_ports: Mutex<BTreeMap<u16, u16>>,
}

impl Proxy {
    /// Listens on a port of the kernel's choice and connects to `127.0.0.1:to`.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start(to: u16) -> Self {
        let shared = Arc::new(Shared::default());
        let port = listen(&shared, to);
        Self { port, shared }
    }

    /// How many endpoints for data it stands in for.
    pub fn n_data_ports(&self) -> usize {
        self.shared.data_ports.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The endpoint for clients.
    pub fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Breaks every connection. How many there were.
    pub fn cut(&self) -> usize {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        open.drain(..).count() / 2
    }

    /// Holds each piece back for so long.
    pub fn delay(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.shared.delay_ms.store(ms, Ordering::Relaxed);
    }

    /// Lets nobody in, or lets everybody in again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::Relaxed);
    }
}

fn listen(shared: &Arc<Shared>, to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let own = Arc::clone(shared);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if own.refuse.load(Ordering::Relaxed) {
                continue;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
            let pairs = [(&client, &server), (&server, &client)];
            for (nth, (from, to)) in pairs.into_iter().enumerate() {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                let own = Arc::clone(&own);
                thread::spawn(move || pump(from, to, nth == 1, &own));
            }
            let mut open = own.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.push(client);
            open.push(server);
        }
    });
    port
}

fn pump(mut from: TcpStream, mut to: TcpStream, answers: bool, shared: &Arc<Shared>) {
    let mut buf = [0; 16 << 10];
    while let Ok(n) = from.read(&mut buf) {
        let delay = shared.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            thread::sleep(Duration::from_millis(delay));
        }
        let piece = buf.get_mut(..n).unwrap_or_default();
        if answers {
            lead_data_here(piece, shared);
        }
        if n == 0 || to.write_all(piece).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Puts our port in the place of lcapd's in an answer to `start`. Frames have their length before
/// them, so ours has to have as many digits; ports of the kernel's choice have five. An answer that
/// came in two pieces is left as it is.
fn lead_data_here(piece: &mut [u8], shared: &Arc<Shared>) {
    const BEFORE: &[u8] = b"\"publish\":\"tcp://127.0.0.1:";
    let mut at = 0;
    while let Some(found) = piece[at..].windows(BEFORE.len()).position(|bytes| bytes == BEFORE) {
        at += found + BEFORE.len();
        let digits = piece[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = std::str::from_utf8(&piece[at..at + digits]);
        let Some(to) = text.ok().and_then(|text| text.parse().ok()) else { continue };
        let mut ports = shared.data_ports.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = ports.entry(to).or_insert_with(|| listen(shared, to)).to_string();
        if ours.len() == digits && at + digits < piece.len() {
            piece[at..at + digits].copy_from_slice(ours.as_bytes());
        }
    }
}
