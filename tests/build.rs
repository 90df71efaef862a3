//! Finds out what of the tests this machine can run.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(no_tmpfs, no_chown)");
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    if !can_mount(&Path::new(&out).join("tmpfs")) {
        println!(
            "cargo::warning=no right to mount a tmpfs here: tests with a full disk are ignored"
        );
        println!("cargo::rustc-cfg=no_tmpfs");
    }
    let file = Path::new(&out).join("owned");
    if fs::write(&file, "").and_then(|()| std::os::unix::fs::chown(&file, Some(1), None)).is_err() {
        println!(
            "cargo::warning=no right to change owners here: tests of shares by user are ignored"
        );
        println!("cargo::rustc-cfg=no_chown");
    }
    let _ = fs::remove_file(&file);
}

fn can_mount(at: &Path) -> bool {
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).arg(at).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    fs::create_dir_all(at).is_ok()
        && run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        && run("umount", &[])
}
