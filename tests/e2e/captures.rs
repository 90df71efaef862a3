//! What a real Lustre wrote comes out as the real `lfs changelog` printed it.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lcap_tests::daemon::{Daemon, Setup};

const CAPTURES: [&str; 3] = ["odd-mdt0", "odd-mdt1", "work-mdt0"];
const FIFO: &str = r#"policies = [{ module = "fifo" }]"#;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/2.17/changelog")
}

/// A fixture, unpacked if it is packed.
fn fixture(name: &str) -> Vec<u8> {
    if let Ok(bytes) = fs::read(fixtures().join(name)) {
        return bytes;
    }
    let packed = fs::read(fixtures().join(format!("{name}.gz"))).unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*packed).read_to_end(&mut plain).unwrap();
    plain
}

fn mdt_name(at: usize) -> String {
    format!("lustre-MDT{at:04x}")
}

/// All captures as MDTs of one daemon.
fn replaying() -> (Daemon, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new().broadcast("changelog", "").broadcast("fifo", FIFO);
    for (at, capture) in CAPTURES.iter().enumerate() {
        let path = dir.path().join(format!("{capture}.bin"));
        fs::write(&path, fixture(&format!("{capture}.bin"))).unwrap();
        setup = setup.mdt(&mdt_name(at), &format!("replay:{}", path.display()));
    }
    (setup.start(), dir)
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
    assert_eq!(errors, "", "{command:?}");
    output.stdout
}

#[test]
fn text_is_byte_for_byte_what_lfs_changelog_printed() {
    let (daemon, _files) = replaying();
    for (at, capture) in CAPTURES.iter().enumerate() {
        let want = fixture(&format!("{capture}.txt"));
        for stream in ["changelog", "fifo"] {
            let args = ["changelog", "--stream", stream, &mdt_name(at)];
            let have = output(&mut daemon.lcap(&args));
            assert!(have == want, "{capture} by {stream}: {} bytes of {}", have.len(), want.len());
        }
    }
}

/// The text of each record: names may hold newlines, so it has no lines.
fn in_records(bytes: &[u8], text: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = text;
    let cut = lcap_ffi::record::records(bytes).map(|record| {
        let mut line = Vec::new();
        lcap_ffi::text::write_line(&record.unwrap(), &mut line);
        let (this, after) = rest.split_at(line.len());
        rest = after;
        assert!(this == line && this.ends_with(b"\n"));
        line
    });
    let cut = cut.collect();
    assert_eq!(rest, b"");
    cut
}

#[test]
fn start_and_end_are_inclusive() {
    let (daemon, _files) = replaying();
    let all = in_records(&fixture("work-mdt0.bin"), &fixture("work-mdt0.txt"));
    for (first, last) in [(1, 1), (2, 17), (39_990, 40_000), (40_000, 0), (123, 4567), (0, 3)] {
        let args = ["changelog", &mdt_name(2), &first.to_string(), &last.to_string()];
        let have = output(&mut daemon.lcap(&args));
        let (first, last) =
            (if first == 0 { 1 } else { first }, if last == 0 { 40_000 } else { last });
        assert!(have == all[first - 1..last].concat(), "{args:?}");
    }
    let beyond = output(&mut daemon.lcap(&["changelog", &mdt_name(2), "40001"]));
    assert_eq!(beyond, b"");
}

#[test]
fn json_says_the_same() {
    let (daemon, _files) = replaying();
    for (at, capture) in CAPTURES.iter().enumerate() {
        let json = output(&mut daemon.lcap(&["changelog", "--json", &mdt_name(at)]));
        let lines: Vec<serde_json::Value> = json
            .split_inclusive(|&b| b == b'\n')
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        let bytes = fixture(&format!("{capture}.bin"));
        let records: Vec<_> = lcap_ffi::record::records(&bytes).map(Result::unwrap).collect();
        assert_eq!(lines.len(), records.len(), "{capture}");
        for (line, record) in lines.iter().zip(&records) {
            assert_eq!(line["mdt"], mdt_name(at));
            assert_eq!(line["index"], record.index().get());
            assert_eq!(line["type"].as_str(), record.rec_type().name());
            let name = String::from_utf8_lossy(record.name());
            assert_eq!(line["name"].as_str(), Some(&*name), "{capture} {}", record.index());
        }
    }
}
