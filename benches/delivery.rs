//! lcapd as a process of its own, and C clients: what gets through, and what it costs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lcap_tests::daemon::{Daemon, Setup};

use crate::machine::{cpu_by_thread, cpu_seconds};

/// What one C client reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Records.
    pub(crate) records: f64,
    /// From the first record to the last.
    pub(crate) seconds: f64,
    /// Processor time of the thread that receives, in that time.
    pub(crate) thread_cpu: f64,
    /// Processor time of the client's process, in that time.
    pub(crate) process_cpu: f64,
}

/// The compiled `client.c`.
#[derive(Debug)]
pub(crate) struct CClient {
    path: PathBuf,
}

impl CClient {
    /// Compiles it into `dir`, against the library that lies beside this program.
    ///
    /// # Errors
    /// If the compiler fails.
    pub(crate) fn build(dir: &Path) -> Result<Self> {
        let libraries = std::env::current_exe()?.parent().context("a directory")?.to_owned();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let path = dir.join("client");
        std::os::unix::fs::symlink(
            libraries.join("liblcapclient.so"),
            dir.join("liblcapclient.so.1"),
        )?;
        let status = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(root.join("include"))
            .arg(root.join("benches/client.c"))
            .arg("-o")
            .arg(&path)
            .arg(libraries.join("liblcapclient.so"))
            .arg(format!("-Wl,-rpath,{}", dir.display()))
            .status()?;
        ensure!(status.success(), "client.c cannot be compiled");
        Ok(Self { path })
    }

    /// Starts it, to receive `n` records.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(
        &self,
        daemon: &Daemon,
        mdt: &str,
        stream: &str,
        n: u64,
    ) -> Result<Running> {
        self.start_with(daemon, mdt, stream, n, &[])
    }

    /// The same with more environment.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start_with(
        &self,
        daemon: &Daemon,
        mdt: &str,
        stream: &str,
        n: u64,
        environment: &[(&str, &OsStr)],
    ) -> Result<Running> {
        let mut command = Command::new(&self.path);
        command.args([mdt, stream, &n.to_string()]).envs(environment.iter().copied());
        command.env("LCAP_REC_URI", daemon.setup().control_endpoint()).env_remove("LCAP_READER");
        Ok(Running(command.stdout(Stdio::piped()).spawn()?))
    }
}

/// A client that receives.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Waits for its report.
    ///
    /// # Errors
    /// If it failed.
    pub(crate) fn finish(self) -> Result<Received> {
        let output = self.0.wait_with_output()?;
        ensure!(output.status.success(), "the client failed: {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        let words: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
        let &[records, _, seconds, thread_cpu, process_cpu, _] = words.as_slice() else {
            bail!("the client reports {text:?}");
        };
        Ok(Received { records, seconds, thread_cpu, process_cpu })
    }
}

/// Processor time of an lcapd over some work.
#[derive(Debug)]
pub(crate) struct Cost {
    pid: u32,
    before: f64,
    threads: BTreeMap<String, f64>,
}

impl Cost {
    /// Begins to count.
    pub(crate) fn begin(daemon: &Daemon) -> Self {
        let pid = pid(daemon);
        Self { pid, before: cpu_seconds(pid), threads: cpu_by_thread(pid) }
    }

    /// Seconds since then, in all and by thread.
    pub(crate) fn end(self) -> (f64, BTreeMap<String, f64>) {
        let mut threads = cpu_by_thread(self.pid);
        for (name, seconds) in &mut threads {
            *seconds -= self.threads.get(name).copied().unwrap_or(0.0);
        }
        (cpu_seconds(self.pid) - self.before, threads)
    }
}

fn pid(daemon: &Daemon) -> u32 {
    daemon.pid().as_raw_nonzero().get().unsigned_abs()
}

/// An lcapd with `n_mdts` MDTs of that source, and one broadcast stream.
pub(crate) fn broadcast(tcp: bool, n_mdts: usize, source: &str, more: &str) -> Setup {
    let setup = if tcp { Setup::new().on_tcp() } else { Setup::new() };
    let mdts = (0..n_mdts).map(mdt_name);
    mdts.fold(setup, |setup, mdt| setup.mdt(&mdt, source)).broadcast("changelog", more)
}

/// `lustre-MDT0000` and so on.
pub(crate) fn mdt_name(at: usize) -> String {
    format!("lustre-MDT{at:04x}")
}

/// Waits until every MDT of the daemon was read up to that index.
///
/// # Errors
/// If that takes longer than two minutes.
pub(crate) fn wait_read(daemon: &Daemon, index: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut control = daemon.control();
    while !control.status()?.mdts.iter().all(|mdt| mdt.read_index >= index) {
        ensure!(Instant::now() < deadline, "lcapd reads too slowly\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
