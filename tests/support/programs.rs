//! The programs under test: they lie beside the test's own executable.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of a program of this workspace: `lcapd`, `lcap`, `lcap-journal-client`.
///
/// Under cargo (`cargo test`, `cargo run`) they are brought up to date first, once per process.
///
/// # Panics
/// If it is not there, with what to type.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    let path = directory().join(name);
    assert!(path.is_file(), "{} is missing; run `cargo build --workspace` first", path.display());
    path
}

/// Path of a library of this workspace, brought up to date like a program.
///
/// # Panics
/// If it is not there, with what to type.
pub fn library(name: &str) -> PathBuf {
    program(name)
}

/// `target/<profile>`.
fn directory() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let dir = exe.parent().map(Path::to_owned).unwrap_or_default();
    // Tests lie in `deps`, programs beside it.
    if dir.ends_with("deps") { dir.parent().map(Path::to_owned).unwrap_or(dir) } else { dir }
}

fn build() {
    let Some(cargo) = std::env::var_os("CARGO") else { return };
    let dir = directory();
    let Some(target) = dir.parent() else { return };
    // The whole workspace with examples, as `make test` builds it: other selections have other features,
    // and everything would be compiled once more.
    let mut command = Command::new(&cargo);
    command.args(["build", "--quiet", "--workspace", "--lib", "--bins", "--examples"]);
    command.arg("--target-dir").arg(target);
    if dir.ends_with("release") {
        command.arg("--release");
    }
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // Cargo tells a test which package it belongs to. Build scripts watch that (ring's does), and
    // everything after them would be compiled anew in here, and once more outside.
    let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"];
    for (name, _) in std::env::vars_os() {
        if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let status = command.status();
    assert!(status.is_ok_and(|status| status.success()), "cannot be built: {command:?}");
}
