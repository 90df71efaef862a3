//! A real lcapd on a state directory of its own.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lcapclient::{Builder, Control, Keys};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::programs::program;
use crate::secured::Secured;

/// Nothing that is waited for takes longer, on any machine that tests run on.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One `[[stream]]`.
#[derive(Clone, Debug)]
struct Stream {
    name: String,
    delivery: &'static str,
    publish: String,
    more: String,
}

/// What an lcapd is to be started with.
#[derive(Debug)]
pub struct Setup {
    dir: TempDir,
    control: String,
    tcp: bool,
    state_dir: PathBuf,
    server: String,
    /// Asked for by [`Self::secured`].
    keys: Option<Keys>,
    mdts: Vec<(String, String)>,
    streams: Vec<Stream>,
    dies_with_parent: bool,
    /// Tables after all others.
    more: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// In a fresh directory, on `ipc:` endpoints in there.
    ///
    /// # Panics
    /// If there is no room for a directory.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("lcap-").tempdir().expect("a directory");
        let control = format!("ipc://{}/control", dir.path().display());
        let state_dir = dir.path().join("state");
        let server = String::new();
        Self {
            dir,
            control,
            tcp: false,
            state_dir,
            server,
            mdts: Vec::new(),
            streams: Vec::new(),
            more: String::new(),
            keys: None,
            dies_with_parent: false,
        }
    }

    /// On TCP ports that the kernel chooses now; they stay the same over restarts.
    #[must_use]
    pub fn on_tcp(mut self) -> Self {
        self.tcp = true;
        self.control = format!("tcp://127.0.0.1:{}", free_port());
        self
    }

    /// It does not outlive the thread that starts it, however that ends.
    #[must_use]
    pub fn dies_with_parent(mut self) -> Self {
        self.dies_with_parent = true;
        self
    }

    /// Keeps its state there instead of in its own directory.
    #[must_use]
    pub fn state_dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.state_dir);
        self
    }

    /// A line of `[server]`.
    #[must_use]
    pub fn server(mut self, line: &str) -> Self {
        self.server.push_str(line);
        self.server.push('\n');
        self
    }

    /// With keys: only clients that are allowed may connect.
    #[must_use]
    pub fn secured(mut self) -> (Self, Secured) {
        let secured = Secured::new(self.dir.path());
        self.keys = Some(secured.keys("admin"));
        (self.more(&secured.config()), secured)
    }

    /// An MDT and its source.
    #[must_use]
    pub fn mdt(mut self, name: &str, source: &str) -> Self {
        self.mdts.push((name.to_owned(), source.to_owned()));
        self
    }

    /// An MDT that is a stream of another lcapd on TCP, read as its reader `reader`.
    #[must_use]
    pub fn relayed(self, name: &str, upstream: &Self, stream: &str, reader: &str) -> Self {
        let host_port = upstream.control.trim_start_matches("tcp://");
        // The user is a line of the same table.
        self.mdt(name, &format!("lcap://{host_port}/{stream}\"\nuser = \"{reader}"))
    }

    /// A broadcast stream, with further lines.
    #[must_use]
    pub fn broadcast(self, name: &str, more: &str) -> Self {
        self.stream(name, "broadcast", more)
    }

    /// A queue stream, with further lines.
    #[must_use]
    pub fn queue(self, name: &str, more: &str) -> Self {
        self.stream(name, "queue", more)
    }

    /// Further text of the configuration file.
    #[must_use]
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self.more.push('\n');
        self
    }

    fn stream(mut self, name: &str, delivery: &'static str, more: &str) -> Self {
        let publish = if self.tcp {
            format!("tcp://127.0.0.1:{}", free_port())
        } else {
            format!("ipc://{}/{name}", self.dir.path().display())
        };
        let (name, more) = (name.to_owned(), more.to_owned());
        self.streams.push(Stream { name, delivery, publish, more });
        self
    }

    /// Where everything of it lies.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Where the control socket is.
    pub fn control_endpoint(&self) -> &str {
        &self.control
    }

    /// Where a stream's data socket is.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn publish_endpoint(&self, stream: &str) -> &str {
        let found = self.streams.iter().find(|s| s.name == stream);
        &found.expect("a stream of the setup").publish
    }

    /// The configuration file's text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "[server]\ncontrol = \"{}\"\nstate_dir = \"{}\"\n{}",
            self.control,
            self.state_dir.display(),
            self.server
        );
        for (name, source) in &self.mdts {
            let _ = write!(text, "[[mdt]]\nname = \"{name}\"\nsource = \"{source}\"\n");
        }
        for Stream { name, delivery, publish, more } in &self.streams {
            let _ = write!(
                text,
                "[[stream]]\nname = \"{name}\"\ndelivery = \"{delivery}\"\npublish = \"{publish}\"\n{more}\n"
            );
        }
        text.push_str(&self.more);
        text
    }

    /// Starts lcapd and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(self) -> Daemon {
        let mut daemon = self.launched();
        daemon.wait_ready();
        daemon
    }

    /// Starts lcapd without waiting.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn launched(self) -> Daemon {
        let config = self.dir.path().join("lcapd.toml");
        fs::write(&config, self.text()).expect("a configuration file");
        let mut daemon = Daemon { setup: self, config, child: None, n_starts: 0 };
        daemon.launch();
        daemon
    }
}

/// A command whose process is killed when the thread that started it ends, however that ends.
pub fn dying_with_parent(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A port that was free a moment ago.
///
/// # Panics
/// If the kernel has none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

/// An lcapd, running or not. It is killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    config: PathBuf,
    child: Option<Child>,
    n_starts: u32,
}

impl Daemon {
    /// Its configuration.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// A directory for the test's own files, removed at the end.
    pub fn dir(&self) -> &Path {
        self.setup.dir.path()
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts it (again), on the same state and endpoints, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "lcapd is running already");
        self.n_starts += 1;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path());
        let log: File = log.expect("a log file");
        let mut command = if self.setup.dies_with_parent {
            dying_with_parent(&program("lcapd"))
        } else {
            Command::new(program("lcapd"))
        };
        command.arg("-c").arg(&self.config).stdin(Stdio::null());
        command.env_remove("JOURNAL_STREAM");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.child = Some(command.spawn().expect("lcapd starts"));
    }

    /// Waits until the control socket answers.
    ///
    /// # Panics
    /// If lcapd ends instead, or stays silent for [`PATIENCE`].
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // One request is enough: libzmq connects as soon as there is a socket.
        let mut control = self.control_within(Duration::from_secs(2));
        while control.hello(None, None).is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(ended.is_none(), "lcapd ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "lcapd does not answer\n{}", self.log());
        }
    }

    /// How often it was started.
    pub fn n_starts(&self) -> u32 {
        self.n_starts
    }

    /// Its process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("lcapd runs");
        Pid::from_child(child)
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a signal can be sent");
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`].
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`].
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("lcapd runs");
        let pid = child.id();
        let (done, ended) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let status = child.wait();
            let _ = done.send(());
            status
        });
        if ended.recv_timeout(PATIENCE).is_err() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            panic!("lcapd does not stop\n{}", self.log());
        }
        waiter.join().expect("a thread").expect("a status")
    }

    /// A connection for requests.
    ///
    /// # Panics
    /// If libzmq has no socket left.
    pub fn control(&self) -> Control {
        self.control_within(PATIENCE)
    }

    /// The same, with answers that must come within this time.
    ///
    /// # Panics
    /// If libzmq has no socket left.
    pub fn control_within(&self, timeout: Duration) -> Control {
        Control::new(self.setup.control_endpoint(), self.setup.keys, timeout)
            .expect("a control connection")
    }

    /// A client of one MDT and stream, not connected yet.
    ///
    /// # Panics
    /// If that is no MDT's name.
    pub fn client(&self, mdt: &str, stream: &str) -> Builder {
        let mut builder = Builder::new(mdt.parse().expect("an MDT's name"));
        builder = builder.servers(self.setup.control_endpoint()).stream(stream).reader(None);
        builder.options_mut().ack_interval = Duration::from_millis(50);
        builder.timeout(PATIENCE)
    }

    /// `lcap` with these arguments, pointed at this daemon.
    pub fn lcap(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("lcap"));
        command.args(args).env("LCAP_REC_URI", self.setup.control_endpoint());
        for name in ["LCAP_STREAM", "LCAP_READER", "LCAP_SERVER_KEY", "LCAP_CLIENT_KEY_FILE"] {
            command.env_remove(name);
        }
        command
    }

    /// Up to where an emulated MDT (`sim:`, `replay:`) was cleared: what is on its disk.
    ///
    /// # Panics
    /// If its state is not readable.
    pub fn cleared(&self, mdt: &str) -> u64 {
        cleared_of(&self.setup.state_dir, mdt).expect("state of an emulated MDT")
    }

    /// Where figures and health are: as the log says, for `http = "127.0.0.1:0"`.
    ///
    /// # Panics
    /// If it has none.
    pub fn http_address(&self) -> String {
        let log = self.log();
        let (_, address) = log.rsplit_once("http=\"").expect("an address in the log");
        address.split('"').next().unwrap_or_default().to_owned()
    }

    /// Status line, headers and body of what is at `path` there.
    ///
    /// # Panics
    /// If nobody answers.
    pub fn http(&self, path: &str) -> String {
        http_get(&self.http_address(), path)
    }

    /// One sample of `/metrics`, by its name and labels as they are printed.
    pub fn figure(&self, sample: &str) -> Option<f64> {
        let text = self.http("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line?.parse().ok()
    }

    /// What it has logged, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("lcapd.log")
    }

    /// Resident memory in bytes: the most that it ever was (`VmHWM`), and now (`VmRSS`).
    ///
    /// # Panics
    /// If it does not run.
    pub fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = fs::read_to_string(path).expect("/proc");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
            kib.map_or(0, |kib| kib << 10)
        };
        (field("VmHWM:"), field("VmRSS:"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of lcapd ---\n{}--- end ---", self.log());
        }
        self.kill();
    }
}

/// Asks over HTTP: status line, headers and body.
///
/// # Panics
/// If nobody answers.
pub fn http_get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// What the state file of an emulated MDT says; `None` if there is none.
pub fn cleared_of(state_dir: &Path, mdt: &str) -> Option<u64> {
    let bytes = fs::read(state_dir.join(format!("emulated-{mdt}.json"))).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    state.get("users")?.get("1")?.as_u64()
}

/// Asks `what` until it says so; for states that come by themselves and cannot be waited for.
///
/// # Panics
/// After [`PATIENCE`].
pub fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    wait_until_or(what, || if reached() { Ok(()) } else { Err(String::new()) });
}

/// The same, for what can say how it is instead.
///
/// # Panics
/// After [`PATIENCE`], with what it said last.
pub fn wait_until_or(what: &str, mut reached: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(instead) = reached() {
        assert!(Instant::now() < deadline, "in vain: {what}\n{instead}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
