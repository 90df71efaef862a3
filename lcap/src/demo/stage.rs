//! The processes of the demonstration and the directory that they share. Whatever happens, no
//! process outlives this one.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// A Unix socket's path is at most 107 bytes long.
const MAX_BASE_BYTES: usize = 60;

/// Runs a program that is killed when the process that started it dies, however it dies.
#[derive(Args)]
pub(crate) struct ExecArgs {
    /// Process that starts it.
    parent: u32,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<std::ffi::OsString>,
}

/// Replaces this process by the program.
pub(crate) fn exec(args: &ExecArgs) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    // It may have died before that.
    if std::os::unix::process::parent_id() != args.parent {
        bail!("whoever wanted this started is gone");
    }
    let (program, rest) = args.command.split_first().context("no program")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// A directory under the system's one for temporary files, short enough for sockets.
pub(crate) fn directory() -> Result<tempfile::TempDir> {
    let usual = std::env::temp_dir();
    let base = if usual.as_os_str().len() <= MAX_BASE_BYTES { &usual } else { Path::new("/tmp") };
    let dir = tempfile::Builder::new().prefix("lcap-demo-").tempdir_in(base);
    dir.with_context(|| format!("cannot make a directory in {}", base.display()))
}

/// A program that lies beside this one, or else in `PATH`.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let beside = exe.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An installed daemon is in `sbin`, which is not in everybody's PATH.
    let sbin = exe.parent().and_then(Path::parent).map(|prefix| prefix.join("sbin"));
    let found = sbin.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(name));
    found
        .into_iter()
        .find(|file| file.is_file())
        .with_context(|| format!("there is no {name} beside {} or in PATH", exe.display()))
}

/// The C example, if it was built: `make build` does.
pub(crate) fn c_example() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    Some(exe.parent()?.join("examples-c/reader")).filter(|file| file.is_file())
}

/// How a process is asked to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// Its stdin is closed.
    HangUp,
    /// SIGTERM.
    Term,
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ending: Ending,
}

impl Process {
    /// Starts a program. Its stderr goes to a file in `dir`; its stdin and stdout are pipes.
    pub(crate) fn start(
        name: &str,
        dir: &Path,
        program: &Path,
        ending: Ending,
        set: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let stderr =
            File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["demo", "exec", &process::id().to_string(), "--"]).arg(program);
        // Settings of the caller's own lcapd mean nothing here.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"LCAP_") {
                command.env_remove(name);
            }
        }
        set(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, ending })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&mut self) -> Result<process::ChildStdout> {
        self.child.stdout.take().context("stdout is taken")
    }

    /// An error if it has ended: nothing of the demonstration ends by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}{}", self.name, self.last_words()),
        }
    }

    /// Asks it to end, waits for that, and expects success.
    pub(crate) fn stop(mut self) -> Result<()> {
        match self.ending {
            Ending::HangUp => drop(self.child.stdin.take()),
            Ending::Term => kill_process(Pid::from_child(&self.child), Signal::TERM)
                .with_context(|| format!("cannot stop {}", self.name))?,
        }
        let status = self.wait()?;
        if !status.success() {
            bail!("{} ended: {status}{}", self.name, self.last_words());
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("{} did not end within {PATIENCE:?}{}", self.name, self.last_words())
    }

    /// The end of what it wrote to stderr.
    pub(crate) fn last_words(&self) -> String {
        const LINES: usize = 15;
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
        last.iter().map(|line| format!("\n    {}: {line}", self.name)).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _: io::Result<()> = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
