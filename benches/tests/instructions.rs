//! A guard on the hot path that no load disturbs: instructions per record, as callgrind counts them.
//!
//! The bounds are those of the profile that tests are built with, a quarter above what was counted when
//! they were written. Who goes beyond one has put work on the path of every record, or has a good reason
//! and moves the bound.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

/// Stage, and instructions per record at most.
const BOUNDS: [(&str, u64); 4] = [("read", 220), ("send", 105), ("fifo", 1120), ("walk", 570)];

/// Allocations of a run: per batch there may be some, per record there may be none.
fn allocations(stage: &str, records: u64) -> u64 {
    let program = Path::new(env!("CARGO_BIN_EXE_lcap-stages"));
    let output = Command::new("valgrind")
        .args(["--tool=memcheck", "--undef-value-errors=no"])
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
    for (stage, _) in BOUNDS {
        let (few, many) = (allocations(stage, 20_000), allocations(stage, 120_000));
        let more = many.saturating_sub(few);
        println!("{stage}: {more} allocations for 100,000 records");
        assert!(more <= 1000, "{stage}: {more} allocations for 100,000 records in 100 batches");
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
    for (stage, bound) in BOUNDS {
        let (few, many) = (count(stage, 20_000), count(stage, 120_000));
        let per_record = many.saturating_sub(few) / 100_000;
        println!("{stage}: {per_record} instructions per record, at most {bound}");
        assert!(per_record > 0, "{stage}: nothing was measured");
        assert!(
            per_record <= bound,
            "{stage}: {per_record} instructions per record, {bound} allowed"
        );
    }
}
