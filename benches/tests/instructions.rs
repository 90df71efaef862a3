//! A guard on the hot path that no load disturbs: instructions per record, as callgrind counts them.
//!
//! The bounds are those of the profile that tests are built with, a quarter above what was counted when
//! they were written. Who goes beyond one has put work on the path of every record, or has a good reason
//! and moves the bound.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

/// Stage, records of the smaller and of the larger run, and instructions per record at most.
const BOUNDS: [(&str, u64, u64, u64); 7] = [
    ("read", 20_000, 120_000, 220),
    ("send", 20_000, 120_000, 105),
    ("fifo", 20_000, 120_000, 320),
    ("walk", 20_000, 120_000, 570),
    ("compact", 20_000, 70_000, 4_100),
    ("hsm", 5_000, 20_000, 16_000),
    ("hsm-again", 5_000, 20_000, 20_300),
];

/// What every record passes on its way, whatever the policies: no memory of its own is taken for it.
const HOT_PATH: [&str; 4] = ["read", "send", "fifo", "walk"];

/// Allocations of a run: per batch there may be some, per record there may be none.
fn allocations(stage: &str, records: u64) -> u64 {
    let program = Path::new(env!("CARGO_BIN_EXE_lcap-stages"));
    let output = Command::new("valgrind")
        .args(["--tool=memcheck", "--undef-value-errors=no", "--leak-check=no"])
        .arg(program)
        .args([stage, &records.to_string()])
        .output()
        .expect("valgrind is installed: make setup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stage}: {stderr}");
    let usage = stderr.lines().find_map(|line| line.split_once("total heap usage: "));
    let n = usage.and_then(|(_, usage)| usage.split(' ').next()?.replace(',', "").parse().ok());
    n.unwrap_or_else(|| panic!("valgrind says nothing of allocations: {stderr}"))
}

#[test]
fn no_stage_of_the_hot_path_allocates_per_record() {
    for stage in HOT_PATH {
        let (few, many) = (allocations(stage, 20_000), allocations(stage, 120_000));
        let more = many.saturating_sub(few);
        println!("{stage}: {more} allocations for 100,000 records");
        assert!(more <= 2000, "{stage}: {more} allocations for 100,000 records in 100 batches");
    }
}

/// Instructions of a run.
fn count(stage: &str, records: u64) -> u64 {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("callgrind.out");
    let program = Path::new(env!("CARGO_BIN_EXE_lcap-stages"));
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args([stage, &records.to_string()])
        .output()
        .expect("valgrind is installed: make setup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stage}: {stderr}");
    let collected = stderr.lines().find_map(|line| line.split_once("Collected : "));
    let n = collected.and_then(|(_, n)| n.trim().parse().ok());
    n.unwrap_or_else(|| panic!("callgrind says nothing of instructions: {stderr}"))
}

#[test]
fn no_stage_of_the_hot_path_takes_more_instructions_than_it_did() {
    for (stage, few, many, bound) in BOUNDS {
        let more = count(stage, many).saturating_sub(count(stage, few));
        let per_record = more / (many - few);
        println!("{stage}: {per_record} instructions per record, at most {bound}");
        assert!(per_record > 0, "{stage}: nothing was measured");
        assert!(
            per_record <= bound,
            "{stage}: {per_record} instructions per record, {bound} allowed"
        );
    }
}
