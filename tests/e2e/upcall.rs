//! HSM upcalls, from the MDT's program to the worker's command.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use lcap_tests::daemon::{Setup, wait_until};
use lcap_tests::disk::SmallDisk;
use lcap_tests::programs::program;
use lcap_tests::upcalls::{Campaign, Stage};
use lcapclient::Client;
use rustix::process::Signal;

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

#[test]
fn no_accepted_request_is_lost_or_overtaken_whoever_is_killed() {
    let campaign = Campaign {
        burst: 40,
        bursts: 6,
        daemon_kills: 3,
        worker_kills: 2,
        upcall_kills: 20,
        seed: 7,
    };
    let verdict = campaign.run();
    assert_eq!(verdict.problems, [""; 0], "{verdict:?}");
    assert!(verdict.accepted >= 200, "{verdict:?}");
}

fn next(client: &mut Client) -> String {
    let event = client.recv_hsm().unwrap().expect("it follows");
    let fields = &event.fields;
    format!(
        "{} {} {} {} {}",
        event.kind.name(),
        fields.cookie,
        fields.action,
        fields.status,
        event.last_status
    )
}

#[test]
fn streams_tell_what_becomes_of_requests_that_no_list_of_an_mdt_shows() {
    let setup = Setup::new().broadcast("hsm", "kind = \"hsm\"");
    let spool = setup.directory().join("spool");
    let mut stage = Stage::of(setup, spool);
    let client = stage.daemon.client("lustre-MDTffff", "hsm");
    let mut client = client.follow(true).connect().unwrap();
    let upcall = |stage: &Stage, action, data, n| {
        assert!(stage.upcall(action, data, &[fid(n)]).status().unwrap().success());
    };
    upcall(&stage, "ARCHIVE", "tag=x", 1);
    let event = client.recv_hsm().unwrap().expect("it follows");
    assert_eq!((event.source.name(), event.fields.data), ("upcall", &b"tag=x"[..]));
    assert_eq!((event.fields.cookie, event.fields.archive_id), (1, 1));
    assert_eq!(event.fields.fid.to_string(), fid(1));
    upcall(&stage, "REMOVE", "", 2);
    assert_eq!(next(&mut client), "NEW 2 REMOVE WAITING UNKNOWN");
    // What an operator holds still waits; what is cancelled goes.
    assert!(lcap(&stage, &["hsm", "queue", "hold", "1"]).0);
    assert!(lcap(&stage, &["hsm", "queue", "cancel", "2"]).0);
    assert_eq!(next(&mut client), "UPDATE 2 REMOVE CANCELED WAITING");
    assert_eq!(next(&mut client), "PURGED 2 REMOVE CANCELED CANCELED");
    assert!(lcap(&stage, &["hsm", "queue", "requeue", "1"]).0);
    let mut worker = stage.worker(&[]);
    assert_eq!(next(&mut client), "UPDATE 1 ARCHIVE STARTED WAITING");
    assert_eq!(next(&mut client), "UPDATE 1 ARCHIVE SUCCEED STARTED");
    assert_eq!(next(&mut client), "PURGED 1 ARCHIVE SUCCEED SUCCEED");
    // With a goodbye: a killed one might still be given something.
    let pid = rustix::process::Pid::from_child(&worker);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(worker.wait().unwrap().success());
    // What came in while lcapd was away, and what it was killed with, is told once.
    upcall(&stage, "ARCHIVE", "", 3);
    assert_eq!(next(&mut client), "NEW 3 ARCHIVE WAITING UNKNOWN");
    stage.daemon.kill();
    upcall(&stage, "ARCHIVE", "", 4);
    stage.daemon.start();
    assert_eq!(next(&mut client), "NEW 4 ARCHIVE WAITING UNKNOWN");
}

#[test]
#[cfg_attr(no_tmpfs, ignore = "no right to mount a tmpfs here")]
fn with_a_full_disk_upcalls_fail_loudly_and_what_was_accepted_waits() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("disk"), "64m");
    let setup = Setup::new().state_dir(&disk.path().join("state"));
    let stage = Stage::of(setup, disk.path().join("spool"));
    // So large that what lies in the spool does not fit into pages that the store has already.
    let data = "x".repeat(16 << 10);
    let accept = |n| {
        let out = stage.upcall("ARCHIVE", &data, &[fid(n)]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    // One that a worker has, one in the queue, and more in the spool.
    let go_on = stage.daemon.dir().join("go-on");
    let script = stage.daemon.dir().join("slow.sh");
    let text = format!(
        "while ! test -e {}; do sleep 0.1; done; exec sh {} {} \"$@\"\n",
        go_on.display(),
        stage.script().display(),
        stage.log().display(),
    );
    fs::write(&script, text).unwrap();
    let exec = format!("sh {}", script.display());
    let mut worker = stage.daemon.lcap(&["hsm", "worker", "--exec", &exec]);
    let mut worker = worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    accept(1);
    wait_until("it runs", || stage.status()["states"]["running"]["archive"] == 1);
    accept(2);
    wait_until("it is taken in", || stage.status()["states"]["waiting"]["archive"] == 1);
    stage.daemon.signal(Signal::STOP);
    (3..=102).for_each(accept);
    let filler = disk.fill();
    for n in 103..120 {
        let out = stage.upcall("ARCHIVE", "x", &[fid(n)]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("No space left on device"), "{said}");
    }
    assert_eq!((stage.spooled("tmp"), stage.spooled("new"), stage.spooled("bad")), (0, 100, 0));
    // lcapd can write nothing down, says so, and forgets nothing.
    stage.daemon.signal(Signal::CONT);
    wait_until("it says so", || {
        stage.daemon.log().contains("requests cannot be written down")
            && stage.status()["store_error"].is_string()
    });
    fs::write(&go_on, "").unwrap();
    wait_until("the command has run", || stage.runs().len() == 1);
    // Longer than the lease: a worker that waits for lcapd's answer is not taken for dead.
    let since = std::time::Instant::now();
    wait_until("more than a lease", || since.elapsed() > std::time::Duration::from_secs(4));
    assert_eq!(stage.spooled("new"), 100);
    fs::remove_file(filler).unwrap();
    stage.wait_empty();
    let runs: Vec<String> = stage.runs().into_iter().map(|(fid, _)| fid).collect();
    assert_eq!(runs, (1..=102).map(fid).collect::<Vec<_>>(), "each once, in their order");
    accept(103);
    stage.wait_empty();
    assert_eq!(stage.spooled("bad"), 0);
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn the_options_of_the_original_client_do_what_they_say() {
    let setup = Setup::new().on_tcp();
    let port = setup.control_endpoint().rsplit(':').next().unwrap().to_owned();
    let spool = setup.directory().join("spool");
    let stage = Stage::of(setup, spool);
    let link = stage.daemon.dir().join("coordinatool-client");
    std::os::unix::fs::symlink(program("lcap"), &link).unwrap();
    let client = |args: &[&str], input: &str| {
        let mut command = Command::new(&link);
        command.args(["-H", "127.0.0.1", "-p", &port]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    };
    let status = |args: &[&str]| {
        let (code, text) = client(args, "");
        assert_eq!(code, Some(0));
        let json = text.strip_prefix("Got status reply:\n").unwrap();
        serde_json::from_str::<serde_json::Value>(json).unwrap()
    };
    assert_eq!(status(&["--fsname", "lustre"])["fsname"], "lustre");
    assert_eq!(client(&["--fsname", "other"], "").0, Some(1));
    let ok = (Some(0), "ok\n".to_owned());
    assert_eq!(client(&["--lock"], ""), ok);
    assert_eq!(status(&[])["locked"], 1);
    assert_eq!(client(&["--lock-quit"], ""), ok);
    assert_eq!((client(&["--unlock"], ""), client(&["--unlock"], "")), (ok.clone(), ok));
    assert!(status(&[])["locked"].is_null());
    let line = "fid=[0x200000402:0x1:0x0] dfid=[0x200000402:0x1:0x0] compound/cookie=0x0/0x7 \
        action=ARCHIVE archive#=1 flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 data=[7461] \
        canceled=0 uuid=u done=0\n";
    let (code, text) = client(&["-Q"], line);
    assert!(code == Some(0) && text.starts_with("Got queue reply:\n"), "{text}");
    assert!(text.contains("\"enqueued\": 1"), "{text}");
    assert_eq!(client(&["-Q"], "nonsense\n").0, Some(1));
    assert_eq!(status(&["-v", "-v"])["pending_archive"], 1);
    assert!(client(&["-v", "-v"], "").1.contains("\"hai_cookie\": 7"));
    assert_eq!(client(&["--nonsense"], "").0, Some(2));
}
