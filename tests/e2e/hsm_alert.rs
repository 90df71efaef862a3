//! `docs/examples/hsm_alert.{c,rs,py}`: three programs that tell the same.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use lcap_tests::daemon::Setup;

use super::{Killed, MDT, program, root, run};

fn line(rec: u32, action: &str, status: &str) -> String {
    format!(
        "lrh=[type=10680000 len=136 idx=1/{rec}] fid=[0x200000402:{rec:#x}:0x0] \
         dfid=[0x200000402:{rec:#x}:0x0] compound/cookie=0x0/{:#x} action={action} archive#=2 \
         flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 datalen=0 status={status} data=[]\n",
        0x6b02_3300 + rec
    )
}

#[test]
fn failures_are_told_by_a_c_program_a_rust_program_and_a_python_program() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("actions");
    let source = format!("hsm-actions:\"\nhsm_actions = \"{}", list.display());
    let write = |text: String| {
        fs::write(dir.path().join("new"), text).unwrap();
        fs::rename(dir.path().join("new"), &list).unwrap();
    };
    write(line(1, "ARCHIVE", "FAILED") + &line(2, "RESTORE", "STARTED"));
    let daemon = Setup::new()
        .server("hsm_audit_interval = \"100ms\"")
        .mdt(MDT, &source)
        .broadcast("hsm", "kind = \"hsm\"")
        .start();
    let server = daemon.setup().control_endpoint().to_owned();
    let mut programs: Vec<(&str, Command)> = vec![
        ("C", Command::new(program("examples-c/hsm_alert"))),
        ("Rust", Command::new(program("examples/hsm_alert"))),
        ("Python", Command::new("/usr/bin/python3")),
    ];
    for (_, command) in &mut programs[..2] {
        command.args(["-f", MDT]).env("LCAP_REC_URI", &server).env_remove("LCAP_STREAM");
    }
    programs[2].1.arg(root().join("docs/examples/hsm_alert.py")).args([&server, "hsm", MDT]);
    let mut running: Vec<_> = programs
        .into_iter()
        .map(|(name, mut command)| {
            let mut process = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
            let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
            (name, process, lines)
        })
        .collect();
    let mut expect = |want: &str| {
        for (name, _, lines) in &mut running {
            assert_eq!(lines.next().unwrap().unwrap(), want, "{name}");
        }
    };
    let fid = |rec: u32| format!("[0x200000402:{rec:#x}:0x0]");
    expect(&format!("{MDT} ARCHIVE of {} in archive 2 FAILED (cookie 0x6b023301)", fid(1)));
    // One goes well, the failed one is purged, another one fails.
    write(line(2, "RESTORE", "SUCCEED") + &line(3, "REMOVE", "FAILED"));
    expect(&format!("{MDT} REMOVE of {} in archive 2 FAILED (cookie 0x6b023303)", fid(3)));
    write(line(3, "REMOVE", "FAILED") + &line(4, "ARCHIVE", "FAILED"));
    expect(&format!("{MDT} ARCHIVE of {} in archive 2 FAILED (cookie 0x6b023304)", fid(4)));
    drop(running);

    // Who does not follow ends.
    let mut once = Command::new(program("examples-c/hsm_alert"));
    let told = run(once.arg(MDT).env("LCAP_REC_URI", &server).env_remove("LCAP_STREAM"));
    assert_eq!(told.lines().count(), 3, "{told}");
}
