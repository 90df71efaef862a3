//! A C program that was linked with liblustreapi, with the preload library in front of it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fake::{Fake, MDT, record};

/// A folder with a stand-in for liblustreapi, programs linked with it, and its records.
struct Bench {
    dir: tempfile::TempDir,
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The library as cargo built it for this test.
fn built() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let found = [deps, deps.parent().unwrap()].map(|dir| dir.join("liblcap_llapi.so"));
    found.into_iter().find(|path| path.exists()).expect("liblcap_llapi.so")
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}\n{}", text(&stdout), text(&stderr));
    text(&stdout)
}

fn cc(args: &[&str], sources: &[&str], out: &Path) {
    run(Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread", "-I"])
        .arg(root().join("include"))
        .args(sources.iter().map(|source| root().join("tests/c").join(source)))
        .arg("-o")
        .arg(out)
        .args(args));
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("liblustreapi.so.1");
        let soname = "-Wl,-soname,liblustreapi.so.1";
        cc(&["-shared", "-fPIC", soname], &["standin_llapi.c"], &library);
        std::os::unix::fs::symlink(&library, dir.path().join("liblustreapi.so")).unwrap();
        let folder = format!("-L{}", dir.path().display());
        let program = dir.path().join("program");
        cc(&["-DHAVE_STANDIN", &folder, "-llustreapi"], &["client_llapi.c"], &program);
        // The stand-in's records: 7 and 8.
        for mdt in [MDT, "elsewhere-MDT0000"] {
            std::fs::write(dir.path().join(mdt), [record(7), record(8)].concat()).unwrap();
        }
        Self { dir }
    }

    fn program(&self, fake: Option<&Fake>) -> Command {
        let mut command = Command::new(self.dir.path().join("program"));
        self.environment(&mut command, fake);
        command
    }

    fn environment(&self, command: &mut Command, fake: Option<&Fake>) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LCAP_")) {
            command.env_remove(name);
        }
        command
            .env("LD_PRELOAD", built())
            .env("LD_LIBRARY_PATH", self.dir.path())
            .env("STANDIN_DIR", self.dir.path())
            .env("LCAP_TIMEOUT_MS", "60000");
        if let Some(fake) = fake {
            command.env("LCAP_REC_URI", &fake.endpoint);
        }
    }

    fn cleared_by_the_real_library(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("cleared")).unwrap_or_default()
    }
}

fn fake_with(n: u64) -> Fake {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("cl1".into(), 0));
    fake.append(1..=n);
    fake
}

fn name(n: usize) -> String {
    format!("file-{n}-{}", "x".repeat(n % 7))
}

#[test]
fn records_come_from_lcapd_in_the_shape_that_was_asked_for() {
    let (bench, fake) = (Bench::new(), fake_with(300));
    let plain = run(bench.program(Some(&fake)).arg(MDT));
    let want: String = (1..=300).map(|n| format!("{n} CREAT 0x1000 {}\n", name(n))).collect();
    assert_eq!(plain, want);
    let jobs = run(bench.program(Some(&fake)).args(["-j", "-p", "-s", "250", MDT]));
    let line = |n| format!("{n} CREAT 0x5000 j=job.42 {}\n", name(n));
    assert_eq!(jobs, (250..=300).map(line).collect::<String>());
    // What is asked for and not there is left out, as libraries since 2.16 do, or zero.
    let extra = run(bench.program(Some(&fake)).args(["-e", "-x", "15", "-n", "1", MDT]));
    assert_eq!(extra, format!("1 CREAT 0x1000 {}\n", name(1)));
    let mut fixed = bench.program(Some(&fake));
    fixed.env("LCAP_LLAPI_SHAPE", "fixed").args(["-j", "-e", "-x", "3", "-n", "1", MDT]);
    assert_eq!(run(&mut fixed), format!("1 CREAT 0xf000 j=job.42 ef=0x3 {} s=\n", name(1)));
}

#[test]
fn following_waits_for_what_comes() {
    let (bench, fake) = (Bench::new(), fake_with(3));
    let mut command = bench.program(Some(&fake));
    command.args(["-f", "-p", "-n", "5", MDT]).stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    fake.until("the program follows", |state| {
        state.sessions.values().any(|session| format!("{session:?}").contains("live: true"))
    });
    fake.append([4]);
    fake.append([5]);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    assert_eq!(String::from_utf8(out.stdout).unwrap().lines().count(), 5);
}

#[test]
fn clearing_is_durable_when_it_returns_with_a_log_and_without() {
    let (bench, fake) = (Bench::new(), fake_with(20));
    run(bench.program(Some(&fake)).args(["-n", "12", "-c", "cl1", MDT]));
    let clears = fake.with(|state| std::mem::take(&mut state.clears));
    let want: Vec<_> = (1..=12).map(|n| ("cl1".to_owned(), n)).collect();
    assert_eq!(clears, want);
    run(bench.program(Some(&fake)).args(["-C", "cl1", "15", MDT]));
    run(bench.program(Some(&fake)).args(["-C", "cl1-robinhood", "16", MDT]));
    assert_eq!(fake.with(|state| state.readers["cl1"]), 16);
    let refused = bench.program(Some(&fake)).args(["-C", "cl7", "15", MDT]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(said, "client_llapi: clear: No such file or directory\n");
    assert_eq!(bench.cleared_by_the_real_library(), "");
}

#[test]
fn what_was_not_received_is_not_cleared() {
    let (bench, fake) = (Bench::new(), fake_with(20));
    // Read two; then clear far beyond.
    let source = r#"
        #include <assert.h>
        #include "lustreapi_changelog.h"
        int main(int argc, char **argv)
        {
            struct changelog_rec *rec;
            void *log;
            assert(argc == 2 && !llapi_changelog_start(&log, CHANGELOG_FLAG_BLOCK, argv[1], 0));
            assert(!llapi_changelog_clear(argv[1], "cl1", 9));
            assert(!llapi_changelog_recv(log, &rec) && !llapi_changelog_free(&rec));
            assert(!llapi_changelog_recv(log, &rec) && !llapi_changelog_free(&rec));
            assert(!llapi_changelog_clear(argv[1], "cl1", 9));
            assert(!llapi_changelog_clear(argv[1], "cl1", 0));
            return llapi_changelog_fini(&log);
        }
    "#;
    let (file, program) = (bench.dir.path().join("early.c"), bench.dir.path().join("early"));
    std::fs::write(&file, source).unwrap();
    let folder = format!("-L{}", bench.dir.path().display());
    let headers = format!("-I{}", root().join("tests/c").display());
    cc(&[&headers, &folder, "-llustreapi"], &[file.to_str().unwrap()], &program);
    let mut command = Command::new(program);
    bench.environment(&mut command, Some(&fake));
    run(command.arg(MDT));
    let clears = fake.with(|state| std::mem::take(&mut state.clears));
    assert_eq!(clears, [("cl1".to_owned(), 2), ("cl1".to_owned(), 2)]);
}

#[test]
fn a_queue_is_acknowledged_whatever_the_id() {
    let (bench, fake) = (Bench::new(), fake_with(40));
    let mut command = bench.program(Some(&fake));
    run(command.env("LCAP_STREAM", "work").args(["-c", "anything", MDT]));
    assert_eq!(fake.with(|state| state.queue_acked.len()), 40);
}

#[test]
fn the_rest_of_the_interface_threads_and_forks() {
    let (bench, fake) = (Bench::new(), fake_with(100));
    run(bench.program(Some(&fake)).args(["-t", MDT]));
}

#[test]
fn the_real_library_is_called_where_lcapd_is_not_asked_for_or_has_not_got_the_mdt() {
    let (bench, fake) = (Bench::new(), fake_with(3));
    let real =
        format!("7 CREAT 0x5000 j=job.42 {}\n8 CREAT 0x5000 j=job.42 {}\n", name(7), name(8));
    assert_eq!(run(bench.program(None).args(["-c", "cl1", MDT])), real);
    let mut direct = bench.program(Some(&fake));
    assert_eq!(run(direct.env("LCAP_DIRECT", "1").args(["-c", "cl1", MDT])), real);
    let elsewhere = "elsewhere-MDT0000";
    assert_eq!(run(bench.program(Some(&fake)).args(["-c", "cl1", elsewhere])), real);
    let want = [MDT, MDT, elsewhere].map(|mdt| format!("{mdt} cl1 7\n{mdt} cl1 8\n")).concat();
    assert_eq!(bench.cleared_by_the_real_library(), want);
    assert!(fake.with(|state| state.clears.is_empty()));
    // Nobody has it.
    let nobody = bench.program(Some(&fake)).arg("none-MDT0000").output().unwrap();
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!(said, "client_llapi: start: No such file or directory\n");
}

#[test]
fn the_real_library_need_not_be_there() {
    let (bench, fake) = (Bench::new(), fake_with(30));
    // Linked with ours, and no stand-in in reach.
    let program = bench.dir.path().join("alone");
    cc(&[built().to_str().unwrap()], &["client_llapi.c"], &program);
    let mut command = Command::new(&program);
    bench.environment(&mut command, Some(&fake));
    command.env_remove("LD_PRELOAD").env("LD_LIBRARY_PATH", built().parent().unwrap());
    command.env("LCAP_LIBLUSTREAPI", "liblustreapi-is-not-there.so");
    let out = run(command.args(["-c", "cl1", MDT]));
    assert_eq!(out.lines().count(), 30);
    let mut command = Command::new(&program);
    bench.environment(&mut command, None);
    command.env_remove("LD_PRELOAD").env("LD_LIBRARY_PATH", built().parent().unwrap());
    command.env("LCAP_LIBLUSTREAPI", "liblustreapi-is-not-there.so");
    assert_eq!(command.arg(MDT).output().unwrap().status.code(), Some(1));
}

#[test]
fn old_rename_pairs_arrive_joined_also_with_something_in_between() {
    let (bench, fake) = (Bench::new(), fake_with(1));
    let half = |index: u64, rec_type: u32, name: &str| {
        let mut bytes = record(index);
        bytes.truncate(96);
        bytes[..2].copy_from_slice(&u16::try_from(name.len()).unwrap().to_ne_bytes());
        bytes[4..8].copy_from_slice(&rec_type.to_ne_bytes());
        bytes[32..48].copy_from_slice(&record(5)[32..48]); // the same object in both
        bytes.extend_from_slice(name.as_bytes());
        bytes
    };
    let (first, second) = (half(2, 8, "old"), half(4, 9, "new"));
    fake.with(move |state| {
        state.log.extend([(2, first), (3, record(3)), (4, second), (5, record(5))]);
        state.head = 5;
        state.from_log = true;
    });
    let out = run(bench.program(Some(&fake)).arg(MDT));
    let want = format!(
        "1 CREAT 0x1000 {}\n3 CREAT 0x1000 {}\n4 RENME 0x3000 new s=old\n5 CREAT 0x1000 {}\n",
        name(1),
        name(3),
        name(5)
    );
    assert_eq!(out, want);
}

#[test]
fn valgrind_finds_nothing() {
    let (bench, fake) = (Bench::new(), fake_with(60));
    let mut command = Command::new("valgrind");
    bench.environment(&mut command, Some(&fake));
    command.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
    command.arg(bench.dir.path().join("program")).args(["-j", "-p", "-c", "cl1", MDT]);
    assert_eq!(run(&mut command).lines().count(), 60);
}

#[test]
fn exactly_the_interface_is_exported() {
    let out = run(Command::new("nm").args(["-D", "--defined-only"]).arg(built()));
    let exported: BTreeSet<&str> = out.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let want = [
        "clear",
        "fini",
        "free",
        "get_fd",
        "in_buf",
        "recv",
        "repack_rec",
        "set_xflags",
        "start",
        "start_user",
    ];
    let want = want.map(|name| format!("llapi_changelog_{name}"));
    let copytool = [
        "ioctl", // keeps the kernel from being asked
        "llapi_hsm_action_begin",
        "llapi_hsm_action_end",
        "llapi_hsm_copytool_get_fd",
        "llapi_hsm_copytool_recv",
        "llapi_hsm_copytool_register",
        "llapi_hsm_copytool_unregister",
    ];
    assert_eq!(exported, want.iter().map(String::as_str).chain(copytool).collect());
}
