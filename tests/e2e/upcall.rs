//! HSM upcalls, from the MDT's program to the worker's command.
#![forbid(unsafe_code)]

use std::fs;
use std::process::{Command, Stdio};

use lcap_tests::daemon::wait_until;
use lcap_tests::programs::program;
use lcap_tests::upcalls::Stage;

fn fid(n: u32) -> String {
    format!("[0x200000401:{n:#x}:0x0]")
}

fn lcap(stage: &Stage, args: &[&str]) -> (bool, String) {
    let out = stage.daemon.lcap(args).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_request_goes_from_the_mdt_to_the_command_and_an_operator_sees_it() {
    let mut stage = Stage::new();
    // Two files in one upcall, data with a blank, while lcapd is away.
    stage.daemon.kill();
    let status = stage.upcall("REMOVE", "a b", &[fid(1), fid(2)]).status().unwrap();
    assert!(status.success());
    assert!(stage.upcall("ARCHIVE", "x", &[fid(3)]).status().unwrap().success());
    // Damage, of several kinds, and something that is no file.
    let new = stage.spool().join("new");
    fs::write(new.join("0000000000000001-00000001-0000"), "LHSM but no more").unwrap();
    fs::write(new.join("README"), "hello").unwrap();
    fs::create_dir(new.join("0000000000000002-00000001-0000")).unwrap();
    stage.daemon.start();
    wait_until("all is taken in", || stage.spooled("new") == 0);
    assert_eq!(stage.spooled("bad"), 6, "three files and their reasons");

    let (ok, text) = lcap(&stage, &["hsm", "queue", "list"]);
    assert!(ok && text.lines().count() == 4 && text.contains("\"a b\""), "{text}");
    let (ok, text) = lcap(&stage, &["hsm", "queue", "hold", "3", "99"]);
    assert!(!ok && text.contains("99: there is no such request"), "{text}");
    let (ok, text) = lcap(&stage, &["hsm", "queue", "list", "--state", "held", "--json"]);
    assert!(ok && text.contains("\"id\":3") && text.lines().count() == 1, "{text}");
    assert!(lcap(&stage, &["hsm", "queue", "lock", "--action", "remove"]).0);

    let mut worker = stage.worker(&["--batch", "8"]);
    wait_until("a worker", || stage.status()["clients"].as_array().is_some_and(|c| !c.is_empty()));
    // What is locked or held stays, also over a restart of lcapd.
    stage.daemon.kill();
    stage.daemon.start();
    assert_eq!(stage.status()["states"]["waiting"]["remove"], 2);
    assert_eq!(stage.status()["states"]["held"]["archive"], 1);
    assert!(stage.runs().is_empty());
    assert!(lcap(&stage, &["hsm", "queue", "requeue", "3"]).0);
    wait_until("the archive", || stage.runs() == [(fid(3), "x".to_owned())]);
    assert!(lcap(&stage, &["hsm", "queue", "unlock", "--action", "remove"]).0);
    stage.wait_empty();
    assert_eq!(stage.runs().len(), 3);
    assert_eq!(stage.status()["done_remove"], 2);
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn what_fails_too_often_is_dead_until_an_operator_says_otherwise() {
    let stage = Stage::new();
    let marker = stage.daemon.dir().join("now");
    let script = stage.daemon.dir().join("fail.sh");
    let text = format!("test -e {} || {{ echo no tape >&2; exit 5; }}\n", marker.display());
    fs::write(&script, text).unwrap();
    assert!(stage.upcall("ARCHIVE", "", &[fid(1)]).status().unwrap().success());
    let exec = format!("sh {}", script.display());
    let mut worker = stage.daemon.lcap(&["hsm", "worker", "--exec", &exec]);
    let mut worker = worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let failures = || {
        let (_, text) = lcap(&stage, &["hsm", "queue", "show", "1", "--json"]);
        serde_json::from_str::<serde_json::Value>(&text)
            .map_or(0, |v| v["failures"].as_u64().unwrap_or(0))
    };
    wait_until("two failures", || failures() >= 2);
    let (_, text) = lcap(&stage, &["hsm", "queue", "list"]);
    assert!(text.contains("no tape"), "{text}");
    fs::write(marker, "").unwrap();
    // It may run just now, and be refused; then its own retry is as good.
    lcap(&stage, &["hsm", "queue", "requeue", "1"]);
    stage.wait_empty();
    // SIGTERM: it finishes and says goodbye.
    let pid = rustix::process::Pid::from_child(&worker);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(worker.wait().unwrap().success());
    wait_until("no worker", || stage.status()["clients"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn an_upcall_that_cannot_store_says_so_and_leaves_nothing() {
    let stage = Stage::new();
    // A file may have no byte at all: as a full disk, but without the need to fill one.
    let upcall = program("lhsm_mdt_upcall");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]).arg(upcall);
    command.args(["ARCHIVE", "lustre", "1", "0", "x"]).arg(fid(1));
    command.env_clear().env("LCAP_UPCALL_CONF", stage.daemon.dir().join("upcall.toml"));
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    for args in [vec!["ARCHIVE"], vec!["ARCHIVE", "lustre", "1", "0", "x", "no FID"]] {
        let mut command = Command::new(program("lhsm_mdt_upcall"));
        assert_eq!(command.args(args).env_clear().output().unwrap().status.code(), Some(2));
    }
    assert_eq!((stage.spooled("tmp"), stage.spooled("new"), stage.spooled("bad")), (0, 0, 0));
    assert_eq!(stage.status()["states"]["waiting"]["archive"], 0);
}
