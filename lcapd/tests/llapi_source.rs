//! The source `llapi:` against a stand-in for liblustreapi.
//!
//! The library and what it serves are named by environment variables, so each test runs itself
//! again in a process of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test from end to end

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lcap_ffi::record::{self, CLF_VERSION};
use lcap_ffi::{MdtName, RecordIndex};
use lcapd::source::sim::{Generator, GeneratorOptions};
use lcapd::source::{
    ChangelogSource, ClearError, MIN_READ_BYTES, ReadOutcome, SourceError, SourceUri, WaitFor,
};

const TRACE: &str = "LCAP_STANDIN_TRACE";
const RECORDS: u64 = 2000;

/// Runs the test called `name` in a process that has the stand-in. True in that process.
fn in_child(name: &str, environment: &[(&str, &str)]) -> bool {
    if std::env::var_os(TRACE).is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("lustre-MDT0000.bin");
    fs::write(&trace, some_records(RECORDS)).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("LCAP_LIBLUSTREAPI", standin(dir.path()))
        .env(TRACE, dir.path().join("%s.bin"))
        .env("LCAP_STANDIN_STATE", dir.path().join("state"))
        .env("LCAP_STANDIN_USERS", "cl1,cl2")
        .env("LCAP_STANDIN_POLL_MS", "10")
        .envs(environment.iter().copied())
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its own process");
    false
}

fn standin(dir: &Path) -> PathBuf {
    let library = dir.join("liblustreapi.so.1");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/standin_llapi.c");
    let status = Command::new("cc")
        .args(["-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-O1"])
        .args(["-Wall", "-Wextra", "-Werror", "-pthread", source, "-o"])
        .arg(&library)
        .status()
        .expect("a C compiler called cc");
    assert!(status.success());
    library
}

fn some_records(n: u64) -> Vec<u8> {
    let mut buf = Vec::with_capacity(1 << 20);
    assert_eq!(Generator::new(GeneratorOptions::default()).fill(&mut buf, n), n);
    buf
}

/// What liblustreapi makes of raw records: every one gets the base format's bit.
fn as_llapi_gives(raw: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for record in record::records(raw) {
        let record = record.unwrap();
        let at = all.len();
        all.extend_from_slice(record.as_bytes());
        all[at + 2..at + 4].copy_from_slice(&(record.flags() | CLF_VERSION).to_ne_bytes());
    }
    all
}

fn mdt() -> MdtName {
    "lustre-MDT0000".parse().unwrap()
}

fn ix(n: u64) -> RecordIndex {
    RecordIndex::new(n)
}

fn upstream(
    user: Option<&str>,
) -> Result<std::sync::Arc<dyn lcapd::source::Upstream>, SourceError> {
    "llapi:".parse::<SourceUri>().unwrap().upstream(&mdt(), user, Path::new("/nowhere"))
}

/// Reads, waiting as the source says, until it is at the end.
fn read_to_end(source: &mut dyn ChangelogSource) -> Result<Vec<u8>, SourceError> {
    let give_up = Instant::now() + Duration::from_secs(60);
    let mut all = Vec::new();
    loop {
        assert!(Instant::now() < give_up, "no end after {} bytes", all.len());
        let mut buf = Vec::with_capacity(MIN_READ_BYTES);
        match source.read(&mut buf)? {
            ReadOutcome::Bytes(n) => {
                assert!(n > 0 && n == buf.len());
                all.extend_from_slice(&buf);
            }
            ReadOutcome::Wait { at_end: true, .. } => return Ok(all),
            ReadOutcome::Wait { on, .. } => wait(on),
            ReadOutcome::Ended | ReadOutcome::Lost { .. } => panic!("a following log does not end"),
        }
    }
}

fn wait(on: WaitFor) {
    let (fd, until) = match on {
        WaitFor::Readable(fd) => (fd, None),
        WaitFor::ReadableUntil(fd, until) => (fd, Some(until)),
        other => panic!("{other:?}"),
    };
    let mut items = [zmq::PollItem::from_fd(fd, zmq::POLLIN)];
    let millis = until.map_or(60_000, |until| {
        let left = until.saturating_duration_since(Instant::now());
        i64::try_from(left.as_millis()).unwrap() + 1
    });
    zmq::poll(&mut items, millis).unwrap();
}

#[test]
fn without_the_library_the_error_names_it_and_what_to_install() {
    let name = "without_the_library_the_error_names_it_and_what_to_install";
    if !in_child(name, &[("LCAP_LIBLUSTREAPI", "/nowhere/liblustreapi.so.1")]) {
        return;
    }
    let err = upstream(None).unwrap_err().to_string();
    for part in ["liblustreapi", "/nowhere/liblustreapi.so.1", "lustre-client", "device:"] {
        assert!(err.contains(part), "{err}");
    }
}

#[test]
fn a_library_without_the_calls_is_said_to_be_too_old() {
    // Any other library will do.
    let name = "a_library_without_the_calls_is_said_to_be_too_old";
    if !in_child(name, &[("LCAP_LIBLUSTREAPI", "libc.so.6")]) {
        return;
    }
    let err = upstream(None).unwrap_err().to_string();
    assert!(err.contains("libc.so.6 has no llapi_changelog_start"), "{err}");
}

#[test]
fn records_come_in_the_librarys_shape_with_everything_they_have() {
    if !in_child("records_come_in_the_librarys_shape_with_everything_they_have", &[]) {
        return;
    }
    let want = as_llapi_gives(&some_records(RECORDS));
    let upstream = upstream(None).unwrap();
    for from in [0, 1, 2, 777, RECORDS, RECORDS + 1] {
        let mut source = upstream.open(ix(from)).unwrap();
        let got = read_to_end(&mut *source).unwrap();
        let skipped: usize = record::records(&want)
            .map(Result::unwrap)
            .filter(|r| r.index() < ix(from))
            .map(|r| r.as_bytes().len())
            .sum();
        assert!(got == want[skipped..], "from {from}");
    }
}

#[test]
fn a_log_that_grows_is_followed() {
    if !in_child("a_log_that_grows_is_followed", &[]) {
        return;
    }
    let path = std::env::var(TRACE).unwrap().replace("%s", mdt().as_str());
    let mut source = upstream(None).unwrap().open(ix(RECORDS)).unwrap();
    assert_eq!(record::records(&read_to_end(&mut *source).unwrap()).count(), 1);
    let more = some_records(RECORDS + 30);
    let more = &more[fs::metadata(&path).unwrap().len() as usize..];
    OpenOptions::new().append(true).open(&path).unwrap().write_all(more).unwrap();
    source.ask_end();
    assert_eq!(read_to_end(&mut *source).unwrap(), as_llapi_gives(more));
}

#[test]
fn clears_reach_the_mdt_and_its_answers_are_understood() {
    if !in_child("clears_reach_the_mdt_and_its_answers_are_understood", &[]) {
        return;
    }
    let robinhood = upstream(Some("cl1-robinhood")).unwrap();
    robinhood.clear(ix(100)).unwrap();
    robinhood.clear(ix(100)).unwrap();
    assert!(matches!(robinhood.clear(ix(99)), Err(ClearError::NoUser { .. })));
    assert!(matches!(robinhood.clear(ix(RECORDS + 1)), Err(ClearError::OutOfRange(_))));
    assert!(matches!(robinhood.clear(ix(0)), Err(ClearError::OutOfRange(_))));
    assert!(matches!(upstream(Some("cl3")).unwrap().clear(ix(1)), Err(ClearError::NoUser { .. })));
    upstream(Some("cl2")).unwrap().clear(ix(60)).unwrap();
    let got = read_to_end(&mut *robinhood.open(ix(1)).unwrap()).unwrap();
    assert_eq!(record::split_len(&got).unwrap().1, ix(61), "the slowest user decides");
}

#[test]
fn an_eviction_is_an_error_after_the_records_before_it() {
    let name = "an_eviction_is_an_error_after_the_records_before_it";
    if !in_child(name, &[("LCAP_STANDIN_FAIL_AFTER", "50")]) {
        return;
    }
    let upstream = upstream(None).unwrap();
    let mut source = upstream.open(ix(1)).unwrap();
    let mut got = Vec::new();
    let err = loop {
        let mut buf = Vec::with_capacity(MIN_READ_BYTES);
        match source.read(&mut buf) {
            Ok(ReadOutcome::Wait { on, .. }) => wait(on),
            Ok(_) => got.extend_from_slice(&buf),
            Err(e) => break e,
        }
    };
    assert_eq!(record::records(&got).count(), 50);
    let SourceError::Io { source: reason, .. } = err else { panic!("{err}") };
    assert_eq!(reason.raw_os_error(), Some(libc::EIO));
}

#[test]
fn an_mdt_that_is_not_there_is_an_error_of_opening() {
    if !in_child("an_mdt_that_is_not_there_is_an_error_of_opening", &[]) {
        return;
    }
    let other = "lustre-MDT0001".parse().unwrap();
    let uri: SourceUri = "llapi:".parse().unwrap();
    let err = uri.upstream(&other, None, Path::new("/")).unwrap().open(ix(1)).unwrap_err();
    assert_eq!(err.to_string(), "open changelog of lustre-MDT0001 by liblustreapi");
}
