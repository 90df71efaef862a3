//! The tables of what coordinatool did wrong, what it tests and what it can do, in tests/README.md: no number is
//! missing, and what is named there is a test.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

/// Names of the functions that are marked as tests.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src/hsm"), &mut files);
    sources(&root.join("tests"), &mut files);
    sources(&root.join("../tests/e2e"), &mut files);
    sources(&root.join("../lcap/src/hsm"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                marked = true;
            } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
                names.extend(rest.split('(').next().map(str::to_owned));
                marked = false;
            }
        }
    }
    names
}

#[test]
fn every_fault_and_row_of_the_original_has_a_test_by_name() {
    let readme = include_str!("../../tests/README.md");
    let known = tests();
    let mut there = BTreeSet::new();
    for line in readme.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, _, named, _] = cells[..] else { continue };
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        for name in names.iter().filter(|name| name.contains('_') && **name != "active_requests") {
            assert!(known.contains(*name), "{number}: {name} is no test");
        }
        if !names.is_empty() || named.starts_with("not applicable: ") {
            there.insert(number.to_owned());
        }
    }
    let numbered = |letter: &'static str, n: u32| (1..=n).map(move |n| format!("{letter}{n}"));
    let faults = numbered("B", 15).chain(numbered("S", 11)).chain(numbered("O", 12));
    let faults = faults.chain(numbered("F", 41));
    let rows = (0..=15).chain(30..=32).chain(40..=42).chain(50..=52).chain(60..=63);
    for number in faults.chain(rows.map(|n| format!("{n:02}"))) {
        assert!(there.contains(&number), "{number} is missing");
    }
}
