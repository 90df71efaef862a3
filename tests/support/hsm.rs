//! A file system with an HSM coordinator, played by the stand-in for liblustreapi, an lcapd that is
//! its copytool, and copytools that are lcapd's movers: real processes, all of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lcapclient::mover::{Mover, MoverBuilder};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::daemon::{PATIENCE, wait_until_or};
use crate::programs::{library, program};

/// The stand-in's library, its administrator's program, and the copytool.
#[derive(Debug)]
struct Built {
    dir: TempDir,
}

fn built() -> &'static Path {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let dir = tempfile::Builder::new().prefix("lcap-hsm-").tempdir().expect("a directory");
            let at = |name: &str| dir.path().join(name);
            let shared = ["-shared", "-fPIC", "-fvisibility=hidden"];
            let soname = "-Wl,-soname,liblustreapi.so.1";
            cc(
                "tests/support/standin_hsm.c",
                &at("liblustreapi.so.1"),
                &[&shared[..], &[soname]].concat(),
            );
            cc("tests/support/standin_hsm.c", &at("standin-hsm"), &["-DSTANDIN_HSM_CTL"]);
            std::os::unix::fs::symlink("liblustreapi.so.1", at("liblustreapi.so")).expect("a link");
            let folder = format!("-L{}", dir.path().display());
            cc("tests/c/copytool.c", &at("copytool"), &[&folder, "-llustreapi"]);
            let ours = library("liblcapclient.so");
            std::os::unix::fs::symlink(&ours, at("liblcapclient.so.1")).expect("a link");
            let ours = ours.parent().expect("a folder").display();
            let (include, folder) = (root().join("include"), format!("-L{ours}"));
            let include = format!("-I{}", include.display());
            cc("tests/c/mover.c", &at("mover"), &[&*include, &folder, "-llcapclient"]);
            Built { dir }
        })
        .dir
        .path()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cc(source: &str, out: &Path, args: &[&str]) {
    let output = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread"])
        .arg(root().join(source))
        .arg("-o")
        .arg(out)
        .args(args)
        .output()
        .expect("cc");
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Without what the environment of the test says to lcap.
fn without_ours(mut command: Command) -> Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LCAP_")) {
        command.env_remove(name);
    }
    command
}

/// Everything of one test.
#[derive(Debug)]
pub struct FileSystem {
    dir: TempDir,
    /// Further lines of `[server]`.
    pub server: String,
    /// Further lines of `[hsm]`, and tables after it.
    pub options: String,
    /// Where movers connect.
    pub movers: String,
    n_logs: u32,
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// SIGKILL, and its end.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM; true if it ended well within its time.
    ///
    /// # Panics
    /// If it does not end.
    pub fn terminate(mut self) -> bool {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end: {}", self.log());
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Its exit code, once it ends by itself.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let mut code = None;
        wait_until_or("it ends", || match self.child.try_wait().expect("wait") {
            Some(status) => {
                code = status.code();
                Ok(())
            }
            None => Err(self.log()),
        });
        (code, self.log())
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Default for FileSystem {
    fn default() -> Self {
        Self::new(2000)
    }
}

impl FileSystem {
    /// One whose coordinator has at most so many requests in all.
    ///
    /// # Panics
    /// If there is no room for a directory.
    pub fn new(max_requests: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("lcap-fs-").tempdir().expect("a directory");
        for name in ["mnt", "archive"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let movers = format!("ipc://{}/movers", dir.path().display());
        let (server, options) = (String::new(), String::new());
        let fs = Self { dir, server, options, movers, n_logs: 0 };
        fs.mdt(&["create", "testfs0", &max_requests.to_string()]);
        fs
    }

    /// The mount.
    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The archive.
    pub fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    /// Anything else.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has the MDT's administrator do something; what he sees.
    ///
    /// # Panics
    /// If it cannot be done.
    pub fn mdt(&self, args: &[&str]) -> String {
        let output = Command::new(built().join("standin-hsm"))
            .arg(self.mount())
            .args(args)
            .output()
            .expect("standin-hsm");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Requests on `n` files from object `oid` on; the first cookie.
    pub fn request(&self, action: &str, n: u64, archive: u32, data: &str, oid: u32) -> u64 {
        let (n, archive, oid) = (n.to_string(), archive.to_string(), oid.to_string());
        let cookie = self.mdt(&["add", action, &n, &archive, data, &oid]);
        cookie.trim().parse().expect("a cookie")
    }

    /// The coordinator's counts.
    pub fn summary(&self) -> BTreeMap<String, u64> {
        let text = self.mdt(&["summary"]);
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, n)| (key.to_owned(), n.parse().unwrap_or(u64::MAX))).collect()
    }

    /// One line a request: cookie, action, status, error, begins, times sent.
    pub fn show(&self) -> String {
        self.mdt(&["show"])
    }

    /// Waits until the coordinator's counts are so.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&BTreeMap<String, u64>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let summary = self.summary();
            if is_so(&summary) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {summary:?}\n{}", self.show());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes the configuration.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn config(&self) -> PathBuf {
        let path = self.path("lcapd.toml");
        let text = format!(
            "[server]\ncontrol = \"ipc://{dir}/control\"\nstate_dir = \"{dir}/state\"\n{}\n\
             [hsm]\nmount = \"{dir}/mnt\"\nmovers = \"{}\"\n\
             active_requests = \"{dir}/mnt/active_requests\"\nagents = \"{dir}/mnt/agents\"\n{}",
            self.server,
            self.movers,
            self.options,
            dir = self.dir.path().display()
        );
        fs::write(&path, text).expect("a configuration");
        path
    }

    fn spawn(&mut self, mut command: Command, name: &str) -> Process {
        self.n_logs += 1;
        let log = self.path(&format!("{name}-{}.log", self.n_logs));
        command.stderr(File::create(&log).expect("a log")).stdin(Stdio::null());
        Process { child: command.spawn().expect("a process"), log }
    }

    /// Starts lcapd; the stand-in is in front of its ioctl.
    pub fn lcapd(&mut self) -> Process {
        let mut command = without_ours(Command::new(program("lcapd")));
        let library = built().join("liblustreapi.so.1");
        command.arg("-c").arg(self.config()).stdout(Stdio::null());
        command.env("LCAP_LIBLUSTREAPI", &library).env("LD_PRELOAD", &library);
        self.spawn(command, "lcapd")
    }

    /// What `lcapd --check` says of the configuration: its exit code, and its errors.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn check(&self) -> (Option<i32>, String) {
        let mut command = without_ours(Command::new(program("lcapd")));
        let output = command.arg("--check").arg("-c").arg(self.config()).output().expect("lcapd");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a copytool under the preload library.
    pub fn copytool(&mut self, name: &str, args: &[&str]) -> Process {
        self.copytool_with(name, args, &[])
    }

    /// The same, with more in its environment.
    pub fn copytool_with(
        &mut self,
        name: &str,
        args: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Process {
        let mut command = without_ours(Command::new(built().join("copytool")));
        command.args(args).arg(self.mount()).arg(self.archive()).stdout(Stdio::null());
        command
            .env("LD_PRELOAD", library("liblcap_llapi.so"))
            .env("LD_LIBRARY_PATH", built())
            .env("LCAP_MOVER_URI", &self.movers)
            .env("LCAP_MOVER_NAME", name)
            .env("LCAP_MAX_ARCHIVE", "8")
            .env("LCAP_MOVER_WINDOW", "4")
            .env("LCAP_LOG", "info")
            .envs(environment.iter().copied());
        self.spawn(command, name)
    }

    /// Starts a mover in C that refuses `n` requests.
    pub fn refusing_mover(
        &mut self,
        name: &str,
        n: u32,
        environment: &[(&str, &OsStr)],
    ) -> Process {
        let mut command = without_ours(Command::new(built().join("mover")));
        command.arg(n.to_string()).stdout(Stdio::null());
        command.env("LCAP_MOVER_URI", &self.movers).env("LCAP_MOVER_NAME", name);
        command
            .env("LD_LIBRARY_PATH", built())
            .env("LCAP_LOG", "info")
            .envs(environment.iter().copied());
        self.spawn(command, name)
    }

    /// Compiles a module of `tests/c` into the file system's directory.
    ///
    /// # Panics
    /// If it cannot be compiled.
    pub fn module(&self, name: &str) -> PathBuf {
        let out = self.path(&format!("{name}.so"));
        let include = format!("-I{}", root().join("include").display());
        cc(&format!("tests/c/{name}.c"), &out, &["-shared", "-fPIC", &include]);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&out, mode).expect("a mode");
        out
    }

    /// What `lcap hsm queue list` shows, request by request.
    ///
    /// # Panics
    /// If it fails.
    pub fn queued(&self) -> Vec<serde_json::Value> {
        let output = self.lcap(&["hsm", "queue", "list", "--json"]).output().expect("lcap");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits until the queue is so.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_queued(&self, what: &str, is_so: impl Fn(&[serde_json::Value]) -> bool) {
        wait_until_or(what, || {
            let queued = self.queued();
            if is_so(&queued) { Ok(()) } else { Err(format!("{queued:?}")) }
        });
    }

    /// A mover in this process that has room for `window` requests.
    ///
    /// # Panics
    /// If lcapd does not want it.
    pub fn mover(&self, name: &str, window: u32) -> Mover {
        let builder = MoverBuilder::new().servers(&self.movers).name(name).window(window);
        builder.patience(PATIENCE).connect().expect("a mover")
    }

    /// A command of `lcap` for this lcapd.
    pub fn lcap(&self, args: &[&str]) -> Command {
        let mut command = without_ours(Command::new(program("lcap")));
        command.args(args).env("LCAP_MOVER_URI", &self.movers);
        command.env("LCAP_REC_URI", format!("ipc://{}/control", self.dir.path().display()));
        command
    }

    /// An object's data in the file system.
    pub fn data(&self, oid: u32) -> Option<String> {
        fs::read_to_string(self.mount().join("files").join(oid.to_string())).ok()
    }

    /// An object's data in the archive.
    pub fn archived(&self, oid: u32) -> Option<String> {
        fs::read_to_string(self.archive().join(oid.to_string())).ok()
    }
}
