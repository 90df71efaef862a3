//! A small HTTP server for figures and health: one thread, bounded in connections, bytes and time.
//!
//! It answers GET and HEAD, one request per connection. A client that sends or reads slowly costs a
//! slot for a few seconds and no thread; when all slots are taken, the one that has waited longest
//! for its client gives way.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::debug;

use crate::wake::Waker;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Time to send a request, and again to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read or written at once, before others have their turn.
const TURN_BYTES: usize = 64 << 10;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: Arc<str>,
}

impl Answer {
    /// A line of text.
    pub fn text(code: u16, body: impl Into<Arc<str>>) -> Self {
        Self { code, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    fn reason(&self) -> &'static str {
        match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        }
    }
}

/// Answers a path.
pub type Router = Box<dyn FnMut(&str) -> Answer + Send>;

/// The server's state.
pub struct Http {
    listener: TcpListener,
    router: Router,
    connections: Vec<Connection>,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// One client. It sends its request until there is an answer to send.
struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    answer: Option<Vec<u8>>,
    written: usize,
    deadline: Instant,
}

/// Whether a connection goes on.
#[derive(PartialEq, Eq)]
enum Step {
    Waits,
    Ends,
}

impl Http {
    /// Binds `address`. [`Self::run`] answers with `router` until `stop` is set and `waker` used.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        router: Router,
        waker: Waker,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, router, connections: Vec::new(), waker, stop })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop.
    pub fn run(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.sleep();
            self.accept();
            let now = Instant::now();
            let router = &mut self.router;
            self.connections.retain_mut(|connection| {
                connection.deadline > now && connection.step(router) == Step::Waits
            });
        }
    }

    fn sleep(&self) {
        self.waker.falling_asleep();
        if !self.stop.load(Ordering::Relaxed) {
            let deadline = self.connections.iter().map(|c| c.deadline).min();
            let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            let mut set = vec![
                PollFd::new(&self.waker, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            set.extend(self.connections.iter().map(|connection| {
                let sends = connection.answer.is_some();
                let flags = if sends { PollFlags::OUT } else { PollFlags::IN };
                PollFd::new(&connection.stream, flags)
            }));
            let _ = poll(&mut set, timeout.as_ref()); // EINTR: look again
        }
        self.waker.awake();
    }

    fn accept(&mut self) {
        for _ in 0..MAX_CONNECTIONS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, say: some connection ends before long.
                    debug!(%error, "cannot accept an HTTP connection");
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() >= MAX_CONNECTIONS {
                let oldest = self.connections.iter().enumerate();
                let oldest = oldest.min_by_key(|(_, c)| (c.answer.is_some(), c.deadline));
                if let Some((at, _)) = oldest {
                    self.connections.swap_remove(at);
                }
            }
            let deadline = Instant::now() + PATIENCE;
            let (head, answer) = (Vec::new(), None);
            self.connections.push(Connection { stream, head, answer, written: 0, deadline });
        }
    }
}

impl Connection {
    fn step(&mut self, router: &mut Router) -> Step {
        if self.answer.is_none() {
            match self.read_head(router) {
                Ok(Step::Waits) => {}
                Ok(Step::Ends) | Err(_) => return Step::Ends,
            }
        }
        match self.write_answer() {
            Ok(step) => step,
            Err(_) => Step::Ends,
        }
    }

    fn read_head(&mut self, router: &mut Router) -> io::Result<Step> {
        let mut buf = [0; 2048];
        while self.answer.is_none() {
            match self.stream.read(&mut buf) {
                Ok(0) => return Ok(Step::Ends),
                Ok(n) => self.head.extend_from_slice(buf.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some((answer, with_body)) = answer(&self.head, router) {
                self.answer = Some(encode(&answer, with_body));
                self.head = Vec::new();
                self.deadline = Instant::now() + PATIENCE;
            }
        }
        Ok(Step::Waits)
    }

    fn write_answer(&mut self) -> io::Result<Step> {
        let Some(answer) = &self.answer else { return Ok(Step::Waits) };
        let before = self.written;
        while let Some(rest) = answer.get(self.written..).filter(|rest| !rest.is_empty()) {
            if self.written - before > TURN_BYTES {
                return Ok(Step::Waits);
            }
            match self.stream.write(rest) {
                Ok(0) => return Ok(Step::Ends),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Waits),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.shutdown(Shutdown::Write)?;
        Ok(Step::Ends)
    }
}

/// The answer to a head, once it is whole, and whether its body is wanted.
pub fn answer(head: &[u8], router: &mut Router) -> Option<(Answer, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) if head.len() <= MAX_HEAD_BYTES => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Some((Answer::text(431, "request too large\n"), true));
        }
        Err(_) => return Some((Answer::text(400, "not an HTTP request\n"), true)),
    }
    let path = request.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    match request.method {
        Some("GET") => Some((router(path), true)),
        Some("HEAD") => Some((router(path), false)),
        _ => Some((Answer::text(405, "only GET and HEAD\n"), true)),
    }
}

fn encode(answer: &Answer, with_body: bool) -> Vec<u8> {
    let Answer { code, content_type, body } = answer;
    let allow = if *code == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let mut bytes = format!(
        "HTTP/1.1 {code} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
        answer.reason(),
        body.len()
    )
    .into_bytes();
    if with_body {
        bytes.extend_from_slice(body.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    struct Running {
        address: SocketAddr,
        waker: Waker,
        stop: Arc<AtomicBool>,
        thread: Option<thread::JoinHandle<()>>,
    }

    impl Running {
        fn new() -> Self {
            let (waker, stop) = (Waker::new().unwrap(), Arc::new(AtomicBool::new(false)));
            let router: Router = Box::new(|path| match path {
                "/large" => Answer::text(200, "x".repeat(4 << 20)),
                "/" => Answer::text(200, "here\n"),
                _ => Answer::text(404, "nothing here\n"),
            });
            let any = "127.0.0.1:0".parse().unwrap();
            let mut http = Http::bind(any, router, waker.clone(), Arc::clone(&stop)).unwrap();
            let address = http.address().unwrap();
            let thread = Some(thread::spawn(move || http.run()));
            Self { address, waker, stop, thread }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        }

        fn ask(&self, request: &[u8]) -> String {
            let mut stream = self.connect();
            stream.write_all(request).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer); // it may be reset after the answer
            String::from_utf8(answer).unwrap()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.waker.wake();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn requests_are_answered_and_nonsense_is_refused() {
        let http = Running::new();
        let cases: [(&[u8], &str, &str); 6] = [
            (b"GET /?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 ", "here\n"),
            (b"HEAD / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 ", "\r\n\r\n"),
            (b"GET /no HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "nothing here\n"),
            (b"POST / HTTP/1.1\r\n\r\n", "HTTP/1.1 405 ", "HEAD\n"),
            (b"\0\x01\x02\r\n\r\n", "HTTP/1.1 400 ", "request\n"),
            (b"GET / HTTP/1.1\r\nA: ", "", ""),
        ];
        for (request, begins, ends) in &cases[..5] {
            let answer = http.ask(request);
            assert!(answer.starts_with(begins) && answer.ends_with(ends), "{answer}");
        }
        let mut long = cases[5].0.to_vec();
        long.resize(MAX_HEAD_BYTES + 1, b'x');
        assert!(http.ask(&long).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn silent_clients_take_no_slot_from_others() {
        let http = Running::new();
        let mut silent: Vec<TcpStream> = Vec::new();
        for nth in 0..MAX_CONNECTIONS * 3 {
            let mut stream = http.connect();
            if nth % 2 == 0 {
                let _ = stream.write_all(b"GET / HT");
            } else {
                let _ = stream.write_all(b"GET /large HTTP/1.1\r\n\r\n"); // and reads nothing
            }
            silent.push(stream);
        }
        assert!(http.ask(b"GET / HTTP/1.1\r\n\r\n").ends_with("here\n"));
        let large = http.ask(b"GET /large HTTP/1.1\r\n\r\n");
        assert!(large.ends_with(&"x".repeat(4 << 20)), "{} bytes", large.len());
    }
}
