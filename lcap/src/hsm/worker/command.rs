//! One run of a worker's command.
//!
//! Exit code 0: all FIDs are done. Otherwise they have failed, unless the command says of each, on
//! its standard output: a line `FID STATUS`, with 0 or an error number, and words for people after it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Of what a command says on stdout and stderr, so much is read at most.
const MAX_OUTPUT: u64 = 1 << 20;

/// What all requests of a run have in common.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) action: String,
    pub(super) fsname: String,
    pub(super) archive_id: u32,
    pub(super) flags: u64,
    pub(super) data: Vec<u8>,
}

/// One request of a run.
#[derive(Clone)]
pub(super) struct File {
    pub(super) id: u64,
    pub(super) lease: u64,
    pub(super) fid: String,
}

/// What is done in one run.
pub(super) struct Batch {
    pub(super) args: Arguments,
    pub(super) files: Vec<File>,
}

/// How it ended for one request.
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) lease: u64,
    pub(super) errno: i32,
    pub(super) error: String,
    /// The command said so, of this very file.
    pub(super) said: bool,
}

/// What is run.
pub(super) struct Program {
    words: Vec<String>,
    timeout: Option<Duration>,
}

impl Program {
    pub(super) fn parse(text: &str, timeout: Option<u64>) -> Result<Self> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            bail!("--exec: no command given");
        }
        Ok(Self { words, timeout: timeout.map(Duration::from_secs) })
    }

    /// Runs it and waits for its end; `running` is told its process, and then that there is none.
    pub(super) fn run(&self, batch: &Batch, running: impl Fn(Option<Pid>)) -> Vec<Ended> {
        let args = &batch.args;
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg(&args.action).arg(&args.fsname);
        command.arg(args.archive_id.to_string()).arg(args.flags.to_string());
        // An argument ends at a NUL: so does what the kernel would have given.
        let data = args.data.split(|&b| b == 0).next().unwrap_or_default();
        command.arg(OsString::from_vec(data.to_vec()));
        command.args(batch.files.iter().map(|file| &file.fid));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        lcap_ffi::process::die_with_parent(&mut command);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let text = format!("cannot run {}: {error}", self.words[0]);
                return verdicts(batch, &HashMap::new(), errno, &text);
            }
        };
        let pid = Pid::from_child(&child);
        running(Some(pid));
        let (done, watched) = mpsc::channel::<()>();
        let timer = self.timeout.map(|timeout| {
            thread::spawn(move || {
                let late = watched.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
                late && kill_process(pid, Signal::KILL).is_ok()
            })
        });
        let (out, err) = read_both(&mut child);
        let status = child.wait();
        running(None);
        drop(done);
        let late = timer.is_some_and(|timer| timer.join().unwrap_or(false));
        let (errno, text) = match status {
            Ok(status) if status.success() => (0, String::new()),
            _ if late => (libc::ETIMEDOUT, "took too long".to_owned()),
            Ok(status) => (libc::EIO, describe(status, &err)),
            Err(error) => (libc::EIO, error.to_string()),
        };
        verdicts(batch, &said(&out), errno, &text)
    }
}

/// Both at once, so that neither pipe fills up.
fn read_both(child: &mut Child) -> (String, String) {
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let out = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>);
    let err = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>);
    thread::scope(|scope| {
        let err = scope.spawn(move || read(err));
        (read(out), err.join().unwrap_or_default())
    })
}

fn describe(status: ExitStatus, err: &str) -> String {
    let last = err.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let last: String = last.chars().take(200).collect();
    if last.is_empty() { status.to_string() } else { format!("{status}: {last}") }
}

/// What a command says of single files.
fn said(out: &str) -> HashMap<&str, (i32, &str)> {
    let line = |line: &'_ str| -> Option<(usize, i32)> {
        let (fid, rest) = line.split_once(' ')?;
        fid.starts_with("[0x").then_some(())?;
        let status = rest.split(' ').next()?;
        Some((fid.len(), status.parse().ok()?))
    };
    out.lines()
        .filter_map(|text| {
            let (len, errno) = line(text)?;
            let words = text[len + 1..].split_once(' ').map_or("", |(_, words)| words);
            Some((&text[..len], (errno, words)))
        })
        .collect()
}

fn verdicts(
    batch: &Batch,
    said: &HashMap<&str, (i32, &str)>,
    errno: i32,
    text: &str,
) -> Vec<Ended> {
    let verdict = |file: &File| {
        let own = said.get(file.fid.as_str());
        let (errno, error) = own.copied().unwrap_or((errno, text));
        let (errno, error) = (errno.saturating_abs(), error.to_owned());
        Ended { id: file.id, lease: file.lease, errno, error, said: own.is_some() }
    };
    batch.files.iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, n: u64) -> Vec<Ended> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.sh");
        std::fs::write(&path, script).unwrap();
        let program = Program::parse(&format!("sh {}", path.display()), Some(60)).unwrap();
        let args = Arguments {
            action: "ARCHIVE".into(),
            fsname: "lustre".into(),
            archive_id: 1,
            flags: 0,
            data: b"a b\0c".to_vec(),
        };
        let files = (1..=n).map(|id| File { id, lease: id, fid: format!("[0x1:{id:#x}:0x0]") });
        program.run(&Batch { args, files: files.collect() }, |_| ())
    }

    #[test]
    fn each_file_has_a_verdict_of_its_own() {
        let ended = run("test \"$*\" = 'ARCHIVE lustre 1 0 a b [0x1:0x1:0x0]'", 1);
        assert_eq!((ended[0].errno, ended[0].said), (0, false));
        let ended = run("echo \"$6 0\"; echo \"$7 28 no room\"; echo noise; exit 3", 3);
        let got: Vec<_> = ended.iter().map(|e| (e.errno, e.said)).collect();
        assert_eq!(got, [(0, true), (28, true), (libc::EIO, false)]);
        assert_eq!(ended[1].error, "no room");
        let ended = run("echo first >&2; echo last >&2; exit 3", 1);
        assert!(ended[0].error.ends_with("3: last"), "{}", ended[0].error);
        // More than a pipe holds.
        assert_eq!(run("yes | head -c 3000000; yes | head -c 3000000 >&2", 1)[0].errno, 0);
    }

    #[test]
    fn what_cannot_be_run_or_takes_too_long_has_failed() {
        let args = Arguments {
            action: "REMOVE".into(),
            fsname: "l".into(),
            archive_id: 1,
            flags: 0,
            data: Vec::new(),
        };
        let files = vec![File { id: 1, lease: 1, fid: "[0x1:0x1:0x0]".into() }];
        let batch = Batch { args, files };
        let program = Program::parse("/nowhere/at-all", None).unwrap();
        assert_eq!(program.run(&batch, |_| ())[0].errno, libc::ENOENT);
        let words = ["sh", "-c", "exec sleep 1000"].map(str::to_owned).to_vec();
        let late = Program { words, timeout: Some(Duration::from_millis(50)) };
        assert_eq!(late.run(&batch, |_| ())[0].errno, libc::ETIMEDOUT);
    }
}
