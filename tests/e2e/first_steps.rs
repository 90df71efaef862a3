//! What a stranger tries first: `lcap demo`, the examples of the documentation, `make install`.
//!
//! Needs what `make test` builds before: the programs, and the C example.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test: to panic is to fail

mod demo;
mod hsm_alert;
mod install;
mod manual;
mod python;
mod python_package;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// Root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// `target/<profile>`, where cargo puts programs; tests lie in `deps` below it.
fn built() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(2).unwrap().to_owned()
}

/// A program or library that `make test` has built.
fn program(name: &str) -> PathBuf {
    let path = built().join(name);
    assert!(path.is_file(), "{} is missing; `make test` builds it", path.display());
    path
}

/// Standard output of a command that succeeds.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}\n{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An lcapd with one MDT and one broadcast stream, `changelog`, that has a policy.
struct Lcapd {
    dir: TempDir,
    process: Option<Killed>,
}

const MDT: &str = "lustre-MDT0000";

impl Lcapd {
    fn start(source: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("lcap-").tempdir_in("/tmp").unwrap();
        let at = dir.path().display();
        let config = format!(
            "[server]\n\
             control = \"ipc://{at}/control\"\n\
             state_dir = \"{at}/state\"\n\
             clear_interval = \"10ms\"\n\
             [[mdt]]\n\
             name = \"{MDT}\"\n\
             source = \"{source}\"\n\
             [[stream]]\n\
             name = \"changelog\"\n\
             delivery = \"broadcast\"\n\
             publish = \"ipc://{at}/changelog\"\n\
             policies = [ {{ module = \"fifo\" }} ]\n"
        );
        std::fs::write(dir.path().join("lcapd.toml"), config).unwrap();
        let mut lcapd = Self { dir, process: None };
        lcapd.restart();
        lcapd
    }

    /// `kill -9`, and another one on the same state.
    fn restart(&mut self) {
        self.process = None;
        let config = self.dir.path().join("lcapd.toml");
        let mut command = Command::new(program("lcapd"));
        command.arg("-c").arg(config).stdin(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Killed(command.spawn().unwrap()));
    }

    fn control(&self) -> String {
        format!("ipc://{}/control", self.dir.path().display())
    }

    /// Standard output of an `lcap` command.
    fn lcap(&self, args: &[&str]) -> String {
        let mut command = Command::new(program("lcap"));
        command.args(args).env("LCAP_REC_URI", self.control()).env("LCAP_TIMEOUT_MS", "60000");
        run(&mut command)
    }
}

#[test]
fn what_was_read_before_the_first_reader_registered_waits_for_it() {
    let capture = root().join("tests/fixtures/2.17/changelog/odd-mdt0.bin");
    let lcapd = Lcapd::start(&format!("replay:{}", capture.display()));
    // The end: by then everything has gone through the policy.
    let present = lcapd.lcap(&["changelog", MDT]);
    lcapd.lcap(&["reader", "register", "--from", "oldest", "changelog", "audit"]);
    assert_eq!(lcapd.lcap(&["changelog", "--reader", "audit", MDT]), present);
    let indexes = lcapd.lcap(&["changelog", "--json", "--reader", "audit", MDT]);
    assert_eq!(indexes.lines().count(), 106);
}
