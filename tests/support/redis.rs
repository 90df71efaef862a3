//! A real redis-server of a test's own.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use lcapd::sink::target::{Credentials, DEFAULT_TIMEOUT, Link, Target, as_bytes, as_list, as_text};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::daemon::PATIENCE;

/// A redis-server on a socket in a directory of its own, running or not. It writes nothing to disk
/// unless told to. It is killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    dir: TempDir,
    args: Vec<String>,
    child: Option<Child>,
}

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its name.
    pub id: String,
    /// Its fields.
    pub fields: Vec<(String, Vec<u8>)>,
}

impl StreamEntry {
    /// The value of a field, as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name)?;
        str::from_utf8(value).ok()
    }

    /// The value of a field, as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

impl RedisServer {
    /// Starts one.
    ///
    /// # Panics
    /// If it does not run (`packaging/setup.sh test` installs it).
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with further options, e.g. `--appendonly yes`.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn with(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("lcap-redis-").tempdir().expect("a directory");
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut server = Self { dir, args, child: None };
        server.restart();
        server
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What to write in `[[sink]]`, for a database.
    pub fn url(&self, db: u32) -> String {
        format!("unix://{}?db={db}", self.socket().display())
    }

    /// Starts it again.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.launch();
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "redis-server ended: {ended:?}\n{log}");
            assert!(Instant::now() < deadline, "redis-server does not answer\n{log}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// It is there, and has read its files. It may want a password.
    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<[u8; 7]> {
            let mut socket = UnixStream::connect(self.socket())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.write_all(b"PING\r\n")?;
            let mut answer = [0; 7];
            socket.read_exact(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer == *b"+PONG\r\n" || answer == *b"-NOAUTH")
    }

    /// Starts it again without waiting.
    ///
    /// # Panics
    /// If there is no redis-server.
    pub fn launch(&mut self) {
        let log = self.dir.path().join("log");
        let log: File = OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--dir"]).arg(self.dir.path());
        command.arg("--unixsocket").arg(self.socket());
        command.args(&self.args).stdin(Stdio::null()).stdout(log);
        let child = command.spawn();
        self.child = Some(child.expect("redis-server is installed (packaging/setup.sh test)"));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("redis-server runs");
        kill_process(Pid::from_child(child), signal).expect("a signal can be sent");
    }

    /// A connection, if it answers.
    pub fn link(&self, db: u32) -> Option<Link> {
        let target = Target::new(&self.url(db), &Credentials::default(), DEFAULT_TIMEOUT).ok()?;
        let mut link = target.connect().ok()?;
        let answer = link.call(&[b"PING"]).ok()?;
        (as_text(&answer) == Some("PONG")).then_some(link)
    }

    /// All entries of a stream.
    ///
    /// # Panics
    /// If Redis does not answer as it should.
    pub fn entries(&self, db: u32, key: &str) -> Vec<StreamEntry> {
        let mut link = self.link(db).expect("a connection");
        entries(&mut link, key)
    }
}

/// All entries of a stream.
///
/// # Panics
/// If Redis does not answer as it should.
pub fn entries(link: &mut Link, key: &str) -> Vec<StreamEntry> {
    range(link, key, "-").expect("an answer")
}

/// Entries of a stream after one of them, if Redis answers.
///
/// # Panics
/// If Redis does not answer as it should.
pub fn entries_after(link: &mut Link, key: &str, last: &str) -> Option<Vec<StreamEntry>> {
    range(link, key, &format!("({last}"))
}

fn range(link: &mut Link, key: &str, from: &str) -> Option<Vec<StreamEntry>> {
    let answer = link.call(&[b"XRANGE", key.as_bytes(), from.as_bytes(), b"+"]).ok()?;
    let parse = |entry| {
        let [id, fields] = as_list(entry)? else { return None };
        let fields = as_list(fields)?
            .chunks_exact(2)
            .map(|pair| Some((as_text(&pair[0])?.to_owned(), as_bytes(&pair[1])?.to_vec())));
        let fields = fields.collect::<Option<_>>()?;
        Some(StreamEntry { id: as_text(id)?.to_owned(), fields })
    };
    let list = as_list(&answer).expect("a list");
    Some(list.iter().map(|entry| parse(entry).expect("an entry")).collect())
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
