//! [`Mover`]: the application's handle, and the thread behind it that owns the socket.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lcap_ffi::hsm::{ListBuilder, item_bytes};
use lcap_ffi::process::{secure_env, with_signals_blocked};
use lcap_wire::mover::{
    Limits, MAX_FRAME_BYTES, REPORT_BYTES, Report, RequestKey, Welcome, What, is_name,
};

use super::shelf::Shelf;
use super::{Action, Identity, Output, Protocol};
use crate::endpoint;
use crate::error::ClientError;
use crate::keys::Keys;
use crate::log;
use crate::promise::{Promise, promise};

/// Where movers look for lcapd unless told otherwise.
pub(crate) const DEFAULT_MOVER_URI: &str = "tcp://localhost:8193";
/// Requests that may wait in the mover unless told otherwise.
const DEFAULT_WINDOW: u32 = 64;
/// Events of libzmq's: the connection is over; the server's list of clients does not have our key; the
/// handshake was broken off, without a reason or with one.
const DISCONNECTED: u16 = 0x0200;
const NOT_ALLOWED: u16 = 0x4000;
const NO_HANDSHAKE: [u16; 2] = [0x0800, 0x2000];
/// How long what was said last may take to leave, and to be acknowledged.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a mover is to be; [`MoverBuilder::connect`] makes it.
#[derive(Clone, Debug)]
pub struct MoverBuilder {
    who: Identity,
    servers: String,
    server_key: Option<String>,
    client_key_file: Option<PathBuf>,
    patience: Option<Duration>,
    bad: Option<ClientError>,
}

impl Default for MoverBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl MoverBuilder {
    /// As the environment says: `LCAP_MOVER_URI`, `LCAP_MOVER_NAME` (the host's name up to its first
    /// dot), `LCAP_MAX_ARCHIVE`, `LCAP_MAX_RESTORE`, `LCAP_MAX_REMOVE`, `LCAP_MOVER_WINDOW`,
    /// `LCAP_SERVER_KEY`, `LCAP_CLIENT_KEY_FILE`. What it says wrongly is an error of
    /// [`Self::connect`].
    pub fn new() -> Self {
        let mut bad = None;
        let mut number = |name: &str| {
            let text = secure_env(name).filter(|text| !text.is_empty() && text != "-1")?;
            let value = text.parse().ok();
            if value.is_none() {
                let problem = format!("{name}: `{text}` is no number");
                bad = Some(ClientError::BadArgument(problem));
            }
            value
        };
        let limits = Limits {
            archive: number("LCAP_MAX_ARCHIVE"),
            restore: number("LCAP_MAX_RESTORE"),
            remove: number("LCAP_MAX_REMOVE"),
        };
        let window = number("LCAP_MOVER_WINDOW").unwrap_or(DEFAULT_WINDOW);
        let set = |name: &str| secure_env(name).filter(|value| !value.is_empty());
        let name = set("LCAP_MOVER_NAME").unwrap_or_else(host_name);
        Self {
            who: Identity { name, limits, window, ..Identity::default() },
            servers: set("LCAP_MOVER_URI").unwrap_or_else(|| DEFAULT_MOVER_URI.to_owned()),
            server_key: set("LCAP_SERVER_KEY"),
            client_key_file: set("LCAP_CLIENT_KEY_FILE").map(PathBuf::from),
            patience: None,
            bad,
        }
    }

    /// Servers, separated by commas: `tcp://HOST:PORT`, `ipc://PATH`. Tried in turn.
    #[must_use]
    pub fn servers(mut self, list: &str) -> Self {
        list.clone_into(&mut self.servers);
        self
    }

    /// The mover's name, unique among movers.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.who.name);
        self
    }

    /// The file system, to be told if lcapd serves another.
    #[must_use]
    pub fn fsname(mut self, fsname: &str) -> Self {
        self.who.fsname = Some(fsname.to_owned());
        self
    }

    /// Archives that it serves; all if none.
    #[must_use]
    pub fn archives(mut self, archives: &[u32]) -> Self {
        archives.clone_into(&mut self.who.archives);
        self
    }

    /// Most requests that it runs at once, by kind.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.who.limits = limits;
        self
    }

    /// Most requests that it runs at once, where given; else as it was.
    #[must_use]
    pub fn at_most(mut self, limits: Limits) -> Self {
        let own = &mut self.who.limits;
        own.archive = limits.archive.or(own.archive);
        own.restore = limits.restore.or(own.restore);
        own.remove = limits.remove.or(own.remove);
        self
    }

    /// Requests that may wait in the mover for the application; at least 1.
    #[must_use]
    pub fn window(mut self, window: u32) -> Self {
        self.who.window = window;
        self
    }

    /// The server's public key (Z85), and the file with the mover's own.
    #[must_use]
    pub fn keys(mut self, server: &str, client_file: Option<PathBuf>) -> Self {
        self.server_key = Some(server.to_owned());
        self.client_key_file = client_file;
        self
    }

    /// How long [`Self::connect`] waits for lcapd; for ever unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Starts the mover, and waits until lcapd knows it.
    ///
    /// # Errors
    /// What is wrong with the options; `EEXIST` if the name stays taken, `EINVAL` if lcapd
    /// serves another file system, `EACCES` if it does not want the key, `ETIMEDOUT` after [`Self::patience`].
    pub fn connect(self) -> Result<Mover, ClientError> {
        self.connect_with(None)
    }

    /// As [`Self::connect`]; reports ([`Report::to_bytes`]) are also read from a pipe, where any
    /// process may write them.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub fn connect_with(mut self, pipe: Option<OwnedFd>) -> Result<Mover, ClientError> {
        if let Some(bad) = self.bad {
            return Err(bad);
        }
        if !is_name(&self.who.name) {
            let problem = format!("`{}` cannot be a mover's name", self.who.name);
            return Err(ClientError::BadArgument(problem));
        }
        let endpoints = endpoint::parse_list(&self.servers)?;
        let keys = match &self.server_key {
            Some(server) => Some(Keys::new(server, self.client_key_file.as_deref())?),
            None => None,
        };
        self.who.life = random();
        let name = self.who.name.clone();
        let shelf = Arc::new(Shelf::new()?);
        let (greeting, greeted) = promise();
        let closing = Arc::new(AtomicBool::new(false));
        let thread = {
            let (shelf, closing) = (Arc::clone(&shelf), Arc::clone(&closing));
            let session = Session {
                protocol: Protocol::new(self.who, Instant::now()),
                endpoints: endpoints.clone(),
                next_endpoint: 0,
                keys,
                shelf: Arc::clone(&shelf),
                pipe,
                greeting: Some(greeting),
                closing,
                socket: None,
                monitor: None,
                n_sockets: 0,
                context: zmq::Context::new(),
            };
            let body = move || {
                let run = AssertUnwindSafe(|| {
                    let _logging = log::for_this_thread();
                    session.run();
                });
                if catch_unwind(run).is_err() {
                    shelf.fail(ClientError::ThreadGone);
                }
            };
            let builder = std::thread::Builder::new().name("lcap-mover".to_owned());
            with_signals_blocked(|| builder.spawn(body))
                .map_err(|error| ClientError::io("starting a thread", &error))?
        };
        let mut mover = Mover {
            shelf,
            closing,
            thread: Mutex::new(Some(thread)),
            welcome: Welcome::default(),
            name,
        };
        let answer = match self.patience {
            Some(patience) => greeted.wait(patience),
            None => greeted.wait(Duration::from_secs(u64::from(u32::MAX))),
        };
        let timeout = || {
            let (endpoints, waited) = (endpoints.join(", "), self.patience.unwrap_or_default());
            match mover.shelf.trouble() {
                Some(trouble) => ClientError::System {
                    action: format!("connecting to {endpoints}"),
                    reason: trouble.to_owned(),
                    errno: libc::ETIMEDOUT,
                },
                None => ClientError::Timeout { endpoints, waited },
            }
        };
        mover.welcome = answer.unwrap_or_else(|| Err(timeout()))?;
        Ok(mover)
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 1
}

/// A mover that lcapd knows. Dropping it gives back what it holds.
#[derive(Debug)]
pub struct Mover {
    shelf: Arc<Shelf>,
    closing: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    welcome: Welcome,
    name: String,
}

impl Mover {
    /// The file system whose requests these are.
    pub fn fsname(&self) -> &str {
        &self.welcome.fsname
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next request, or the cancel of one that was received before. `None` when `timeout` is over;
    /// without one it waits.
    ///
    /// # Errors
    /// `EINTR` for a signal; what ended the mover.
    pub fn recv(&self, timeout: Option<Duration>) -> Result<Option<Action>, ClientError> {
        let pick = |unread: &mut VecDeque<Action>| {
            let action = unread.pop_front();
            let n = u64::from(action.as_ref().is_some_and(|action| !action.is_cancel()));
            (action, n)
        };
        self.shelf.take(timeout, pick).map(Option::flatten)
    }

    /// The next requests as one list of Lustre's, of at most `max_bytes` unless a single one is
    /// larger.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn recv_list(
        &self,
        timeout: Option<Duration>,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let pick = |unread: &mut VecDeque<Action>| {
            let Some(first) = unread.front() else { return (Vec::new(), 0) };
            let (archive_id, flags) = (first.archive_id, first.flags);
            let mut list = ListBuilder::new(self.welcome.fsname.as_bytes(), archive_id, flags);
            let mut n = 0;
            while let Some(action) = unread.front() {
                let alike = (action.archive_id, action.flags) == (archive_id, flags);
                let fits = list.n_bytes() + item_bytes(action.data.len()) <= max_bytes;
                if !alike || !(fits || list.is_empty()) {
                    break;
                }
                let _ = list.push(&action.as_item()); // it came in a list, so it fits one
                n += u64::from(!action.is_cancel());
                unread.pop_front();
            }
            (list.finish(), n)
        };
        self.shelf.take(timeout, pick)
    }

    /// Readable while [`Self::recv`] would give something at once.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shelf.ready_fd()
    }

    /// Lustre lets the request begin. From here on the mover tells of its progress; before, lcapd
    /// keeps it alive.
    pub fn begun(&self, key: RequestKey) {
        self.shelf.report(Report { key, what: What::Begun, status: 0 });
    }

    /// The request was ended with Lustre: `status` is 0 or an error number.
    pub fn done(&self, key: RequestKey, status: i32) {
        self.shelf.report(Report { key, what: What::Done, status });
    }

    /// Lustre would not let it begin, with this error number. `ENOENT` means that it was ended
    /// already. lcapd ends it with Lustre if need be.
    pub fn refused(&self, key: RequestKey, status: i32) {
        self.shelf.report(Report { key, what: What::Refused, status });
    }

    /// The request will not be carried out here, and Lustre was not told. With `ECANCELED` it was
    /// cancelled, else others may have it.
    pub fn returned(&self, key: RequestKey, status: i32) {
        self.shelf.report(Report { key, what: What::Returned, status });
    }

    /// Ends the mover: what it holds goes to others at once. Waits for a moment until lcapd has its
    /// last reports on disk. Who is in [`Self::recv`] gets `ESHUTDOWN`.
    pub fn shut_down(&self) {
        self.closing.store(true, Ordering::Release);
        self.shelf.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.shut_down();
    }
}

struct Session {
    protocol: Protocol,
    endpoints: Vec<String>,
    next_endpoint: usize,
    keys: Option<Keys>,
    shelf: Arc<Shelf>,
    pipe: Option<OwnedFd>,
    greeting: Option<Promise<Result<Welcome, ClientError>>>,
    closing: Arc<AtomicBool>,
    // Sockets before the context, which cannot end before them.
    socket: Option<zmq::Socket>,
    monitor: Option<zmq::Socket>,
    n_sockets: u64,
    context: zmq::Context,
}

impl Session {
    fn run(mut self) {
        let mut farewell: Option<Instant> = None;
        loop {
            self.protocol.on_timer(Instant::now());
            self.act();
            let now = Instant::now();
            if self.closing.load(Ordering::Acquire) {
                let until = *farewell.get_or_insert(now + FAREWELL);
                // Nobody waits for a server that never answered.
                let unknown = self.greeting.is_some();
                if (self.protocol.is_settled() && !self.has_news()) || unknown || until <= now {
                    self.protocol.close(now);
                    self.act();
                    self.shelf.fail(ClientError::System {
                        action: "receiving".to_owned(),
                        reason: "the mover has ended".to_owned(),
                        errno: libc::ESHUTDOWN,
                    });
                    return;
                }
            }
            self.wait(farewell);
            self.take_news();
            self.read_all();
            self.look_for_cuts();
        }
    }

    fn has_news(&mut self) -> bool {
        let before = self.protocol.is_settled();
        self.take_news();
        before != self.protocol.is_settled()
    }

    fn act(&mut self) {
        while let Some(output) = self.protocol.poll_output() {
            match output {
                Output::Connect => {
                    if let Err(error) = self.connect() {
                        tracing::warn!(%error, "cannot connect, will try again");
                    }
                }
                // A full pipe means that nobody is there; the protocol's timers see to that.
                Output::Send(frames) => {
                    if let Some(socket) = &self.socket {
                        let _ = socket.send_multipart(frames, zmq::DONTWAIT);
                    }
                }
                Output::Deliver(actions) => self.shelf.put(actions),
                Output::Cancel(action) => {
                    if self.shelf.take_back(action.key()) {
                        self.protocol.returned(action.key(), Instant::now());
                    } else {
                        self.shelf.put(vec![action]);
                    }
                }
                Output::Greeted(welcome) => {
                    if let Some(greeting) = self.greeting.take() {
                        greeting.keep(Ok(welcome));
                    }
                }
                Output::Failed(error) => {
                    if let Some(greeting) = self.greeting.take() {
                        greeting.keep(Err(error.clone()));
                    }
                    self.shelf.fail(error);
                }
            }
        }
    }

    fn connect(&mut self) -> Result<(), ClientError> {
        (self.socket, self.monitor) = (None, None);
        let endpoint = self.endpoints[self.next_endpoint % self.endpoints.len()].clone();
        self.next_endpoint += 1;
        self.n_sockets += 1;
        let events = format!("inproc://mover-events-{}", self.n_sockets);
        let connect = || {
            let socket = self.context.socket(zmq::DEALER)?;
            socket.set_linger(i32::try_from(FAREWELL.as_millis()).unwrap_or(1000))?;
            socket.set_ipv6(true)?;
            socket.set_sndhwm(0)?;
            socket.set_maxmsgsize(i64::try_from(MAX_FRAME_BYTES).unwrap_or(i64::MAX))?;
            socket.set_reconnect_ivl(100)?;
            socket.set_reconnect_ivl_max(2_000)?;
            if let Some(keys) = &self.keys {
                keys.apply(&socket)?;
            }
            let wanted = [DISCONNECTED, NOT_ALLOWED, NO_HANDSHAKE[0], NO_HANDSHAKE[1]];
            socket.monitor(
                &events,
                wanted.into_iter().fold(0, |all, event| all | i32::from(event)),
            )?;
            let monitor = self.context.socket(zmq::PAIR)?;
            monitor.set_linger(0)?;
            monitor.connect(&events)?;
            socket.connect(&endpoint)?;
            Ok((socket, monitor))
        };
        let (socket, monitor) =
            connect().map_err(|error| ClientError::zmq(endpoint.as_str(), error))?;
        tracing::debug!(endpoint, "connecting");
        (self.socket, self.monitor) = (Some(socket), Some(monitor));
        Ok(())
    }

    fn wait(&self, farewell: Option<Instant>) {
        let now = Instant::now();
        let until = [self.protocol.next_deadline(), farewell].into_iter().flatten().min();
        let until = until.unwrap_or(now + Duration::from_secs(60));
        // Rounded up: a poll that returns a moment too early would spin.
        let timeout = until.saturating_duration_since(now) + Duration::from_micros(999);
        let timeout = i64::try_from(timeout.as_millis()).unwrap_or(60_000);
        let mut items = vec![zmq::PollItem::from_fd(self.shelf.wake_fd().as_raw_fd(), zmq::POLLIN)];
        items.extend(
            self.pipe.iter().map(|pipe| zmq::PollItem::from_fd(pipe.as_raw_fd(), zmq::POLLIN)),
        );
        items.extend(self.socket.iter().chain(&self.monitor).map(|s| s.as_poll_item(zmq::POLLIN)));
        let _ = zmq::poll(&mut items, timeout);
    }

    /// What the application has taken, and what it tells.
    fn take_news(&mut self) {
        let (n_taken, mut reports) = self.shelf.news();
        if let Some(pipe) = &self.pipe {
            read_reports(pipe, &mut reports);
        }
        let now = Instant::now();
        if n_taken > 0 {
            self.protocol.on_taken(n_taken, now);
        }
        for reports in reports.chunks(MAX_FRAME_BYTES / REPORT_BYTES / 2) {
            self.protocol.on_reports(reports, now);
        }
        self.act();
    }

    fn read_all(&mut self) {
        for _ in 0..64 {
            let Some(frames) =
                self.socket.as_ref().and_then(|s| s.recv_multipart(zmq::DONTWAIT).ok())
            else {
                return;
            };
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            self.protocol.on_message(&frames, Instant::now());
            // The socket may be another after this.
            self.act();
        }
    }

    /// What libzmq says of the connection.
    fn look_for_cuts(&mut self) {
        let (mut cut, mut unwelcome, mut strangers) = (false, false, false);
        while let Some(Ok(frames)) = self.monitor.as_ref().map(|m| m.recv_multipart(zmq::DONTWAIT))
        {
            let event = frames.first().and_then(|frame| frame.first_chunk::<2>());
            match event.map(|event| u16::from_ne_bytes(*event)) {
                Some(NOT_ALLOWED) => unwelcome = true,
                Some(event) if NO_HANDSHAKE.contains(&event) => strangers = true,
                _ => cut = true,
            }
        }
        let now = Instant::now();
        if unwelcome {
            // Else libzmq would knock on and on.
            (self.socket, self.monitor) = (None, None);
            self.protocol.on_unwelcome(now);
        } else if strangers {
            self.shelf.note_trouble(if self.keys.is_some() {
                "it breaks the handshake off: the server's key (LCAP_SERVER_KEY) is another lcapd's, or it has none"
            } else {
                "it breaks the handshake off: it wants keys (LCAP_SERVER_KEY, LCAP_CLIENT_KEY_FILE)"
            });
        } else if cut {
            self.protocol.on_disconnected(now);
        }
        self.act();
    }
}

/// All whole reports that are in the pipe. They are written whole, too.
fn read_reports(pipe: &OwnedFd, reports: &mut Vec<Report>) {
    let mut buffer = [0_u8; REPORT_BYTES * 128];
    while let Ok(n) = rustix::io::read(pipe, &mut buffer) {
        let Some(part) = buffer.get(..n).filter(|part| !part.is_empty()) else { return };
        let (whole, _) = part.as_chunks::<REPORT_BYTES>();
        reports.extend(whole.iter().filter_map(Report::from_bytes));
        if n < buffer.len() {
            return;
        }
    }
}
