//! Modules that decide who does a request, and when: a real module in a real lcapd.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lcap_tests::daemon::{PATIENCE, wait_until_or};
use lcap_tests::hsm::{FileSystem, Process};
use lcapclient::mover::Mover;
use rustix::io::Errno;

/// With the module `tests/c/turns.c`; the file that it hangs by.
fn with_module(fs: &mut FileSystem, limit: &str) -> PathBuf {
    let (module, gate) = (fs.module("turns"), fs.path("gate"));
    fs.options = format!(
        "heartbeat = \"200ms\"\ngrace = \"60s\"\nplacer = {{ module = \"{}\", actions = [\"archive\"], \
         limit = \"{limit}\", gate = \"{}\" }}\n",
        module.display(),
        gate.display()
    );
    gate
}

/// Takes the next request, and has lcapd end it with Lustre.
fn next(mover: &Mover) -> u32 {
    let action = mover.recv(Some(PATIENCE)).unwrap().expect("a request");
    mover.refused(action.key(), Errno::IO.raw_os_error());
    action.fid.oid
}

fn wait_log(lcapd: &Process, text: &str) {
    wait_until_or(text, || {
        let log = lcapd.log();
        if log.contains(text) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn a_module_chooses_the_mover_and_the_turn() {
    let mut fs = FileSystem::default();
    with_module(&mut fs, "60s");
    let mut lcapd = fs.lcapd();
    let turns =
        [(1, "rank=3"), (2, "rank=1"), (3, "rank=2"), (4, ""), (5, "rank=-9"), (6, "rank=2")];
    for (oid, data) in turns {
        fs.request("archive", 1, 1, data, oid);
    }
    for oid in [7, 8] {
        fs.request("archive", 1, 1, "host=m2", oid);
    }
    let ranks = |queued: &[serde_json::Value]| {
        let rank = |request: &serde_json::Value| request["rank"].as_i64().unwrap_or(0);
        let placed = queued.iter().filter(|request| request["hosts"][0] == "m2").count();
        queued.iter().map(rank).collect::<Vec<_>>() == [3, 1, 2, 0, -9, 2, 0, 0] && placed == 2
    };
    fs.wait_queued("all are placed", ranks);
    // What was decided is on disk.
    lcapd.kill();
    lcapd = fs.lcapd();
    wait_log(&lcapd, "lcapd is ready");
    fs.wait_queued("all are placed still", ranks);
    let m1 = fs.mover("m1", 1);
    let got: Vec<u32> = turns.iter().map(|_| next(&m1)).collect();
    assert_eq!(got, [5, 4, 2, 3, 6, 1], "lowest rank first, and of one rank the oldest");
    assert_eq!(m1.recv(Some(Duration::from_millis(300))).unwrap(), None, "the rest is not for it");
    let m2 = fs.mover("m2", 1);
    assert_eq!([next(&m2), next(&m2)], [7, 8]);
    fs.wait_for("all are over", |s| s["failed"] == 8);
    assert!(lcapd.terminate());
}

#[test]
fn a_module_that_talks_nonsense_or_hangs_holds_up_nothing() {
    let mut fs = FileSystem::default();
    let gate = with_module(&mut fs, "1s");
    fs.server = "policy_timeout = \"1s\"".to_owned();
    let lcapd = fs.lcapd();
    let tool = fs.copytool("tool", &[]);
    for (oid, data) in (1..).zip(["fail", "odd", "name", "rank=nonsense"]) {
        fs.request("archive", 1, 1, data, oid);
    }
    fs.wait_for("they go anywhere", |s| s["succeed"] == 4);
    assert_eq!(lcapd.log().matches("cannot place a request").count(), 2, "{}", lcapd.log());
    // It hangs: what it was asked about waits for the limit, what comes later does not.
    std::fs::write(&gate, "").unwrap();
    fs.request("archive", 1, 1, "hang", 10);
    wait_log(&lcapd, "the placer does not answer");
    let since = Instant::now();
    for oid in 0..30 {
        fs.request("archive", 1, 1, "host=m2", 100 + oid);
    }
    fs.wait_for("they go anywhere, too", |s| s["succeed"] == 35);
    let waited = since.elapsed();
    assert!(waited < Duration::from_secs(25), "each waited for the module: {waited:?}");
    // When it answers again, it is asked again.
    std::fs::remove_file(&gate).unwrap();
    wait_log(&lcapd, "the placer answers again");
    fs.request("archive", 1, 1, "host=m2", 200);
    fs.wait_queued("it waits for its mover", |queued| {
        queued.len() == 1 && queued[0]["hosts"][0] == "m2" && queued[0]["state"] == "waiting"
    });
    assert_eq!(next(&fs.mover("m2", 1)), 200);
    fs.wait_for("all are over", |s| s["succeed"] == 35 && s["failed"] == 1);
    // Nor does lcapd wait for it when it stops.
    std::fs::write(&gate, "").unwrap();
    fs.request("archive", 1, 1, "hang", 300);
    fs.wait_for("it went anywhere", |s| s["succeed"] == 36);
    assert!(tool.terminate() && lcapd.terminate());
}

#[test]
fn a_check_of_the_configuration_loads_the_module() {
    let mut fs = FileSystem::default();
    let gate = with_module(&mut fs, "1s");
    assert_eq!(fs.check().0, Some(0), "{:?}", fs.check());
    fs.options = fs.options.replace(&format!("gate = \"{}\"", gate.display()), "other = 1");
    let (code, said) = fs.check();
    assert!(code == Some(1) && said.contains("module refuses its options"), "{code:?} {said}");
    fs.options = fs.options.replace("turns.so", "nowhere.so");
    let (code, said) = fs.check();
    assert!(code == Some(1) && said.contains("nowhere.so"), "{code:?} {said}");
}

#[test]
fn a_module_that_crashes_loses_no_request() {
    let mut fs = FileSystem::default();
    with_module(&mut fs, "5s");
    let lcapd = fs.lcapd();
    wait_log(&lcapd, "lcapd is ready");
    fs.request("archive", 20, 1, "rank=1", 1);
    fs.request("archive", 1, 1, "crash", 30);
    let (code, log) = lcapd.wait();
    assert_eq!(code, None, "nothing can protect lcapd from a crash: {log}");
    // Without the module, all are done.
    fs.options = String::new();
    let lcapd = fs.lcapd();
    let tool = fs.copytool("tool", &[]);
    fs.wait_for("all are done", |s| s["succeed"] == 21);
    assert!(tool.terminate() && lcapd.terminate());
}
