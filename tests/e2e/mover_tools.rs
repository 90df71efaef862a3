//! What an operator does about movers: drain, drop, and the original client's `--recv` and `--drain`.

use std::process::{Child, Stdio};
use std::time::Duration;

use lcap_tests::daemon::{PATIENCE, free_port, wait_until};
use lcap_tests::hsm::FileSystem;
use lcap_tests::programs::program;
use lcapclient::mover::{Action, Mover};
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value;

/// For what is not to come.
const SHORT: Duration = Duration::from_millis(300);

fn file_system() -> FileSystem {
    let mut fs = FileSystem::default();
    fs.options = "heartbeat = \"200ms\"\ngrace = \"60s\"\n".to_owned();
    fs
}

fn next(mover: &Mover) -> Action {
    mover.recv(Some(PATIENCE)).unwrap().expect("a request")
}

fn end(mover: &Mover, action: &Action) {
    mover.refused(action.key(), Errno::IO.raw_os_error());
}

fn lcap(fs: &FileSystem, args: &[&str]) -> (bool, String) {
    let output = fs.lcap(args).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn status(fs: &FileSystem) -> Value {
    let output = fs.lcap(&["hsm", "queue", "status", "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Begins to drain; comes back when lcapd knows of it.
fn drain(fs: &FileSystem, what: &[&str]) -> Child {
    let args = [&["hsm", "queue", "drain"], what].concat();
    let child = fs.lcap(&args).stdout(Stdio::null()).spawn().unwrap();
    wait_until("it is locked", || status(fs)["locks"].as_array().is_some_and(|l| l.len() == 1));
    child
}

#[test]
fn who_is_drained_finishes_and_gets_nothing_new() {
    let mut fs = file_system();
    let lcapd = fs.lcapd();
    let m1 = fs.mover("m1", 2);
    fs.request("archive", 2, 1, "", 1);
    let held = [next(&m1), next(&m1)];
    let mut draining = drain(&fs, &["--worker", "m1"]);
    let m2 = fs.mover("m2", 8);
    fs.request("archive", 4, 1, "", 10);
    for _ in 0..4 {
        let action = next(&m2);
        end(&m2, &action);
    }
    assert_eq!(m1.recv(Some(SHORT)).unwrap(), None);
    assert!(draining.try_wait().unwrap().is_none(), "it waits for what m1 runs");
    end(&m1, &held[0]);
    fs.wait_for("one is over", |s| s["failed"] == 5);
    assert!(draining.try_wait().unwrap().is_none(), "and for the other");
    end(&m1, &held[1]);
    assert!(draining.wait().unwrap().success());
    assert!(lcap(&fs, &["hsm", "queue", "unlock", "--worker", "m1"]).0);
    drop(m2);
    fs.request("archive", 1, 1, "", 20);
    end(&m1, &next(&m1));

    // A kind; others go on.
    fs.request("archive", 1, 1, "", 30);
    let held = next(&m1);
    let mut draining = drain(&fs, &["--action", "archive"]);
    fs.request("archive", 1, 1, "", 31);
    fs.request("restore", 1, 1, "", 32);
    let restore = next(&m1);
    assert_eq!((restore.action, restore.fid.oid), (21, 32));
    end(&m1, &restore);
    assert_eq!(m1.recv(Some(SHORT)).unwrap(), None);
    end(&m1, &held);
    assert!(draining.wait().unwrap().success());
    assert!(lcap(&fs, &["hsm", "queue", "unlock", "--action", "archive"]).0);
    end(&m1, &next(&m1));

    // An archive; others go on, and whoever does not want to wait for ever need not.
    fs.request("archive", 1, 2, "", 40);
    let held = next(&m1);
    let archive = ["hsm", "queue", "drain", "--archive-id", "2", "--timeout", "1"];
    let (ok, said) = lcap(&fs, &archive);
    assert!(!ok && said.contains("still run"), "{said}");
    fs.request("archive", 1, 2, "", 41);
    fs.request("archive", 1, 1, "", 42);
    let other = next(&m1);
    assert_eq!((other.archive_id, other.fid.oid), (1, 42));
    end(&m1, &other);
    end(&m1, &held);
    assert!(lcap(&fs, &archive).0);
    assert_eq!(m1.recv(Some(SHORT)).unwrap(), None);
    assert!(lcap(&fs, &["hsm", "queue", "unlock", "--archive-id", "2"]).0);
    end(&m1, &next(&m1));
    fs.wait_for("all are over", |s| s["failed"] == 13);
    assert!(lcapd.terminate());
}

#[test]
fn a_mover_that_is_dropped_loses_at_once_what_it_has() {
    let mut fs = file_system();
    let lcapd = fs.lcapd();
    // One that is there.
    let m1 = fs.mover("m1", 2);
    fs.request("archive", 2, 1, "", 1);
    let held = [next(&m1), next(&m1)];
    let m2 = fs.mover("m2", 8);
    assert!(lcap(&fs, &["hsm", "queue", "lock", "--worker", "m1"]).0);
    assert!(lcap(&fs, &["hsm", "queue", "drop", "m1"]).0);
    let mut taken = [next(&m2), next(&m2)];
    taken.sort_by_key(|action| action.fid.oid);
    assert_eq!(taken.each_ref().map(Action::key), held.each_ref().map(Action::key));
    // It comes back with them, and hears that they are no longer its own.
    for _ in 0..2 {
        let cancel = next(&m1);
        assert!(cancel.is_cancel() && held.iter().any(|action| action.key() == cancel.key()));
        m1.returned(cancel.key(), Errno::CANCELED.raw_os_error());
    }
    assert_eq!(fs.queued().len(), 2, "its word does not count");
    taken.iter().for_each(|action| end(&m2, action));
    fs.wait_for("the other ended them", |s| s["failed"] == 2);
    assert!(lcap(&fs, &["hsm", "queue", "unlock", "--worker", "m1"]).0);
    drop((m1, m2));

    // One that was killed, long before its grace time is over.
    let dead = fs.copytool("dead", &["-d", "600000"]);
    fs.request("archive", 3, 1, "", 10);
    fs.wait_queued("it runs them", |queued| queued.iter().all(|r| r["state"] == "running"));
    dead.kill();
    let living = fs.copytool("living", &[]);
    wait_until("its death is known", || {
        let clients = status(&fs)["clients"].clone();
        let is_dead = |c: &Value| c["client_id"] == "dead" && c["status"] == "disconnected";
        clients.as_array().is_some_and(|clients| clients.iter().any(is_dead))
    });
    assert_eq!(fs.summary()["succeed"], 0);
    assert!(lcap(&fs, &["hsm", "queue", "drop", "dead"]).0);
    fs.wait_for("another did them", |s| s["succeed"] == 3);
    let (ok, said) = lcap(&fs, &["hsm", "queue", "drop", "nobody"]);
    assert!(!ok && said.contains("no worker nobody"), "{said}");
    assert!(living.terminate() && lcapd.terminate());
}

#[test]
fn the_original_clients_recv_and_drain_take_work() {
    let mut fs = file_system();
    let port = free_port();
    fs.movers = format!("tcp://127.0.0.1:{port}");
    let lcapd = fs.lcapd();
    let link = fs.path("coordinatool-client");
    std::os::unix::fs::symlink(program("lcap"), &link).unwrap();
    let client = |args: &[&str]| {
        let mut command = std::process::Command::new(&link);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).args(args);
        command.stdout(Stdio::piped());
        command
    };
    let lists = |text: &str| -> Vec<Value> {
        let replies = text.split("Got recv reply:\n").filter(|reply| !reply.is_empty());
        replies.map(|reply| serde_json::from_str(reply).unwrap()).collect()
    };
    fs.request("archive", 2, 1, "", 1);
    fs.request("archive", 1, 2, "tag=x", 10);
    fs.wait_queued("all are there", |queued| queued.len() == 3);
    let output = client(&["-I", "debug", "-A", "2", "--recv", "-i", "1"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let replies = lists(&text);
    assert!(output.status.success() && replies.len() == 1, "{text}");
    let list = &replies[0]["hsm_action_list"];
    assert_eq!((&list["hal_archive_id"], &list["hal_fsname"]), (&2.into(), &"testfs0".into()));
    let item = &list["list"][0];
    assert_eq!((&item["hai_action"], &item["hai_fid"]["f_oid"]), (&20.into(), &10.into()));
    assert_eq!((&item["hai_data"], &item["hai_extent_length"]), (&"tag=x".into(), &(-1).into()));
    assert!(lcapd.log().contains("mover=\"debug\""), "{}", lcapd.log());
    fs.wait_queued("it gave it back", |queued| queued.iter().all(|r| r["state"] == "waiting"));
    // Another name, all archives; Lustre hears nothing of it.
    let mut child = client(&["--drain"]).spawn().unwrap();
    fs.wait_queued("the queue is drained", <[Value]>::is_empty);
    child.kill().unwrap();
    child.wait().unwrap();
    let summary = fs.summary();
    assert_eq!((summary["started"], summary["succeed"], summary["failed"]), (3, 0, 0));
    // Who serves another file system is not for it.
    let output = client(&["--fsname", "other", "-R"]).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("testfs0, not other"), "{said}");
    assert!(lcapd.terminate());
}

#[test]
fn limits_are_changed_while_everything_runs() {
    let mut fs = file_system();
    let before = fs.options.clone();
    fs.options = format!("{before}limits = {{ archive = 1 }}\n");
    let lcapd = fs.lcapd();
    fs.request("archive", 5, 1, "", 1);
    let mover = fs.mover("m", 8);
    let mut held = vec![next(&mover)];
    assert_eq!(mover.recv(Some(SHORT)).unwrap(), None, "one at a time");
    fs.options = format!("{before}limits = {{ archive = 3 }}\n");
    fs.config();
    lcapd.signal(Signal::HUP);
    held.extend([next(&mover), next(&mover)]);
    assert_eq!(mover.recv(Some(SHORT)).unwrap(), None, "three at a time");
    let output = fs.lcap(&["hsm", "top", "--once"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |start: &str| text.lines().find(|line| line.starts_with(start)).map(str::trim_end);
    let archives =
        " archive           2       0       0       3       0          0      0      0.0";
    assert_eq!(row(" archive"), Some(archives), "{text}");
    let movers = " m                        ready               3           0        0      0.0";
    assert_eq!(row(" m "), Some(movers), "{text}");
    held.iter().for_each(|action| end(&mover, action));
    (0..2).for_each(|_| end(&mover, &next(&mover)));
    fs.wait_for("all are over", |s| s["failed"] == 5);
    assert!(lcapd.terminate());
}

#[test]
fn another_lcapd_takes_over_and_the_movers_go_on() {
    let mut fs = file_system();
    fs.server = "lease = \"500ms\"".to_owned();
    let first = fs.lcapd();
    let tool = fs.copytool("tool", &["-d", "100"]);
    fs.request("archive", 40, 1, "tag=x", 1);
    fs.wait_for("some are done", |s| s["succeed"] >= 4);
    let second = fs.lcapd();
    wait_until("it stands by", || second.log().contains("standing by"));
    first.kill();
    fs.wait_for("all are done", |s| s["succeed"] == 40);
    let summary = fs.summary();
    let of = ["failed", "timeouts", "doubles", "agents"].map(|key| summary[key]);
    assert_eq!(of, [0, 0, 0, 1], "{summary:?}");
    assert_eq!(second.log().matches("mover is there").count(), 1, "{}", second.log());
    assert!(tool.terminate() && second.terminate());
}
