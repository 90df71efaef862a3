//! Policy modules in a real lcapd: bad ones, stuck ones, shared ones, and ones that are replaced
//! while records flow.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_tests::programs::program;
use lcap_wire::control::{From, PolicyStatus, Status};
use rustix::process::Signal;

const MDT: &str = "lustre-MDT0000";
const NO_POLICIES: &str = "policies = []";

/// Compiles the module that does on demand what modules may not do.
fn toy(dir: &Path, name: &str, defines: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (out, part) = (dir.join(name), dir.join(format!("{name}.part")));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
        .args(defines)
        .arg("-I")
        .arg(root.join("include"))
        .arg("-o")
        .arg(&part)
        .arg(root.join("lcapd/tests/policies/toy.c"))
        .status();
    assert!(status.expect("a C compiler").success());
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&part, &out).unwrap();
    out
}

/// The Rust module that panics on demand.
fn unruly() -> PathBuf {
    let path = program("lcapd").with_file_name("examples").join("libunruly.so");
    assert!(path.is_file(), "{}: cargo build -p lcap-policy-sdk --example unruly", path.display());
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a stream from the oldest record to the present end.
fn indexes(daemon: &Daemon, mdt: &str, stream: &str) -> Vec<u64> {
    let mut client = daemon.client(mdt, stream).from(1).connect().unwrap();
    let mut indexes = Vec::new();
    while let Some(record) = client.recv().unwrap() {
        indexes.push(record.index().get());
    }
    indexes
}

fn status(daemon: &Daemon) -> Status {
    daemon.control().status().unwrap()
}

fn modules(status: &Status, stream: &str) -> Vec<PolicyStatus> {
    status.streams.iter().find(|s| s.name == stream).unwrap().policies.clone()
}

#[test]
fn whatever_a_module_does_wrong_no_record_is_lost() {
    const RECORDS: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let toy = toy(dir.path(), "toy.so", &[]);
    let mut setup = Setup::new()
        .server("clear_interval = \"10ms\"")
        .mdt(MDT, &format!("sim:records={RECORDS},seed=5"));
    let misdeeds = [
        ("garbage", "token 244837814094590 is not held"),
        ("drop-twice", "is decided already"),
        ("list-twice", "is decided already"),
        ("merge-bad-index", "the lowest of its tokens"),
        ("merge-garbage", "malformed"),
        ("past-the-end", "tokens while"),
        ("bad-verdict", "verdict 7 is unknown"),
        ("too-many", "claims 1025 decisions where 1024 fit"),
        ("fail-first-enqueue", "enqueue() returned -12"),
        ("fail-dequeue", "dequeue() returned -5"),
        ("hold-for-ever", "still held after a flush"),
    ];
    for (mode, _) in misdeeds {
        let policies = format!(
            "policies = [ {{ module = \"fifo\" }}, {{ module = \"{}\", mode = \"{mode}\", \
             max_hold = \"100ms\" }}, {{ module = \"fifo\" }} ]",
            toy.display()
        );
        setup = setup.broadcast(mode, &policies);
    }
    for place in ["enqueue", "dequeue"] {
        let unruly = unruly();
        let policies =
            format!("policies = [ {{ module = \"{}\", panic = \"{place}\" }} ]", unruly.display());
        setup = setup.broadcast(&format!("panic-{place}"), &policies);
    }
    // One that stops: nothing comes, nothing is cleared for its reader.
    let policies = format!(
        "policies = [ {{ module = \"{}\", mode = \"fail-dequeue\", on_error = \"stop\" }} ]",
        toy.display()
    );
    let daemon = setup.broadcast("stopped", &policies).start();
    let all: Vec<u64> = (1..=RECORDS).collect();
    let streams = misdeeds.iter().map(|(mode, fault)| (*mode, *fault));
    let panics = [("panic-enqueue", "enqueue() returned"), ("panic-dequeue", "dequeue() returned")];
    for (stream, fault) in streams.chain(panics) {
        let mut seen = indexes(&daemon, MDT, stream);
        if stream == "drop-twice" {
            // It had dropped the first once, as it may, before it dropped it again.
            assert_eq!(seen.first(), Some(&2));
            seen.insert(0, 1);
        }
        assert_eq!(seen, all, "{stream}");
        let told = || modules(&status(&daemon), stream).into_iter().find(|m| m.state == "bypassed");
        wait_until(stream, || told().is_some());
        let told = told().unwrap();
        assert!(told.fault.as_deref().unwrap().contains(fault), "{told:?}");
        assert_eq!(told.mdt.as_deref(), Some(MDT));
    }
    let told = || modules(&status(&daemon), "stopped")[0].clone();
    wait_until("the stream stops", || told().state == "failed");
    let human = text(&daemon.lcap(&["status"]).output().unwrap().stdout);
    for want in ["POLICY", "bypassed: dequeue() returned -5", "failed: dequeue() returned -5"] {
        assert!(human.contains(want), "{want}\n{human}");
    }
    let log = daemon.log();
    assert!(log.contains("going on without it; what it held is emitted unchanged"), "{log}");
    // The remedy, without a restart: other policies.
    let text = daemon.setup().text().replace(", on_error = \"stop\"", "");
    fs::write(daemon.config(), text.replace("\"fail-dequeue\"", "\"pass\"")).unwrap();
    daemon.control().reload_policies("stopped").unwrap();
    wait_until("it goes on", || {
        let status = status(&daemon);
        status.streams.last().unwrap().mdts[MDT].sent == RECORDS && told_active(&status)
    });
    assert_eq!(indexes(&daemon, MDT, "stopped"), all);
}

fn told_active(status: &Status) -> bool {
    modules(status, "stopped").iter().all(|module| module.state == "active")
}

#[test]
fn what_cannot_be_used_is_refused_with_file_stream_module_and_option() {
    let dir = tempfile::tempdir().unwrap();
    let good = toy(dir.path(), "toy.so", &[]);
    let writable = toy(dir.path(), "writable.so", &[]);
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o666)).unwrap();
    let abi = toy(dir.path(), "abi.so", &["-DTOY_ABI=7"]);
    let size = toy(dir.path(), "size.so", &["-DTOY_SIZE=40"]);
    let daemon = Setup::new()
        .mdt(MDT, "sim:records=10")
        .broadcast("narrow", "policies = [ { module = \"fifo\" } ]")
        .start();
    let with = |policies: &str| {
        daemon.setup().text().replace("policies = [ { module = \"fifo\" } ]", policies)
    };
    let of = |path: &Path, more: &str| {
        format!("policies = [ {{ module = \"{}\"{more} }} ]", path.display())
    };
    let panics = of(&unruly(), ", panic = \"create\"");
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "an option",
            "policies = [ { module = \"compact\", widow = \"1s\" } ]",
            &["stream narrow", "`compact`", "unknown option `widow`"],
        ),
        (
            "a value",
            "policies = [ { module = \"compact\", window = 5 } ]",
            &["stream narrow", "`compact`", "option `window`"],
        ),
        (
            "an expression",
            "policies = [ { module = \"filter\", keep = \"uid = \" } ]",
            &["stream narrow", "`filter`", "`keep`"],
        ),
        ("no module", "policies = [ { module = \"fife\" } ]", &["stream narrow", "`fife` in /"]),
        ("writable", &of(&writable, ", mode = \"pass\""), &["writable by its group", "chmod go-w"]),
        ("another ABI", &of(&abi, ", mode = \"pass\""), &["was built for policy ABI 7"]),
        ("another size", &of(&size, ", mode = \"pass\""), &["its table has 40 bytes"]),
        ("create fails", &of(&good, ", mode = \"fail-create\""), &["the moon is not full"]),
        ("create panics", &panics, &["`unruly`", "no more"]),
    ];
    let file = daemon.config().display().to_string();
    let checked = daemon.dir().join("checked.toml");
    for (what, policies, wants) in cases {
        fs::write(&checked, with(policies)).unwrap();
        let output = Command::new(program("lcapd")).arg("--check").arg("-c").arg(&checked).output();
        let output = output.unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {errors}");
        // The same when lcapd runs: the old policies stay.
        fs::write(daemon.config(), with(policies)).unwrap();
        let output = daemon.lcap(&["policy", "reload", "narrow"]).output().unwrap();
        let refused = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {refused}");
        for want in *wants {
            assert!(errors.contains(want), "{what}: {errors}");
            assert!(refused.contains(want), "{what}: {refused}");
        }
        assert!(errors.contains("checked.toml") && refused.contains(&file), "{errors}{refused}");
    }
    fs::write(daemon.config(), "[[mdt]\n").unwrap();
    let output = daemon.lcap(&["policy", "reload", "narrow"]).output().unwrap();
    assert!(text(&output.stderr).contains(&format!("{file}:1")), "{output:?}");
    let output = daemon.lcap(&["policy", "reload", "no-such"]).output().unwrap();
    assert!(text(&output.stderr).contains("there is no stream no-such"), "{output:?}");
    assert_eq!(modules(&status(&daemon), "narrow")[0].module, "fifo");
    assert_eq!(indexes(&daemon, MDT, "narrow"), (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_module_that_does_not_return_is_noticed_and_ends_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (toy, blocker) = (toy(dir.path(), "toy.so", &[]), dir.path().join("blocker"));
    let policies = format!(
        "policies = [ {{ module = \"{}\", mode = \"block\", file = \"{}\" }} ]",
        toy.display(),
        blocker.display()
    );
    let mut daemon = Setup::new()
        .server("policy_timeout = \"500ms\"")
        .mdt(MDT, "sim:records=1000,seed=5")
        .broadcast("stuck", &policies)
        .broadcast("free", "")
        .start();
    let all: Vec<u64> = (1..=1000).collect();
    assert_eq!(indexes(&daemon, MDT, "stuck"), all);
    fs::write(&blocker, "").unwrap();
    daemon.stop();
    daemon.start();
    // Catch-ups of other streams, and everything else, go on.
    assert_eq!(indexes(&daemon, MDT, "free"), all);
    let mut control = daemon.control();
    control.register("stuck", "late", Vec::new(), From::Oldest).unwrap();
    let reader = {
        let client = daemon.client(MDT, "stuck").reader(Some("late"));
        std::thread::spawn(move || {
            let mut client = client.connect().unwrap();
            let mut n = 0;
            while client.recv().unwrap().is_some() {
                n += 1;
            }
            n
        })
    };
    let line = "a policy module does not return from a call";
    wait_until("the watchdog", || daemon.log().contains(line));
    // Nobody can end the call; lcapd itself can end.
    assert!(daemon.stop().success());
    assert!(!reader.is_finished(), "it waits for lcapd");
    fs::remove_file(&blocker).unwrap();
    daemon.start();
    assert_eq!(reader.join().unwrap(), 1000);

    // A live worker that is stuck: shown, and replaced when it comes back.
    fs::write(&blocker, "").unwrap();
    let longer = daemon.setup().text().replace("records=1000", "records=2000");
    daemon.stop();
    fs::write(daemon.config(), &longer).unwrap();
    daemon.start();
    let told = || modules(&status(&daemon), "stuck")[0].clone();
    wait_until("it is shown", || told().state == "stuck");
    let human = text(&daemon.lcap(&["status"]).output().unwrap().stdout);
    assert!(human.contains("it has not returned from a call for"), "{human}");
    fs::write(daemon.config(), longer.replace("mode = \"block\"", "mode = \"drop-odd\"")).unwrap();
    let reply = daemon.control().reload_policies("stuck").unwrap();
    assert_eq!(reply.waiting, [MDT]);
    fs::remove_file(&blocker).unwrap();
    wait_until("it is noticed", || daemon.log().contains("the policy module has returned"));
    wait_until("the new one is at work", || told().state == "active");
    let even: Vec<u64> = (1..=1000).map(|n| n * 2).collect();
    assert_eq!(indexes(&daemon, MDT, "stuck"), even);
    assert!(daemon.stop().success());
}

#[test]
fn a_shared_module_sees_all_mdts_of_a_stream() {
    let dir = tempfile::tempdir().unwrap();
    let shared =
        toy(dir.path(), "shared.so", &["-DTOY_FLAGS=(LCAP_POLICY_SHARED|LCAP_POLICY_VERBATIM)"]);
    let policies =
        format!("policies = [ {{ module = \"{}\", mode = \"hold\" }} ]", shared.display());
    let names = ["lustre-MDT0000", "lustre-MDT0001", "lustre-MDT0002"];
    let mut setup = Setup::new();
    for name in names {
        setup = setup.mdt(name, "sim:rate=2000,records=2000,seed=5");
    }
    let daemon = setup.broadcast("common", &policies).broadcast("plain", "").start();
    let readers: Vec<_> = names
        .iter()
        .map(|name| {
            let client = daemon.client(name, "common").from(1).follow(true);
            std::thread::spawn(move || {
                let mut client = client.connect().unwrap();
                let mut seen = Vec::new();
                while seen.last() != Some(&2000) {
                    seen.push(client.recv().unwrap().unwrap().index().get());
                }
                seen
            })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), (1..=2000).collect::<Vec<_>>());
    }
    let told = || modules(&status(&daemon), "common");
    wait_until("all is settled", || told()[0].held == 0 && told()[0].records_in == 6000);
    let told = told();
    assert_eq!((told.len(), &told[0].mdt, told[0].emitted), (1, &None, 6000), "{told:?}");
    // To instances of their own.
    let other = daemon.setup().text().replace(&policies, "policies = [ { module = \"fifo\" } ]");
    fs::write(daemon.config(), other).unwrap();
    assert_eq!(daemon.control().reload_policies("common").unwrap().modules[0].module, "fifo");
    assert_eq!(modules(&status(&daemon), "common").len(), 3);
    for name in names {
        assert_eq!(indexes(&daemon, name, "common").len(), 2000);
    }
}

/// Follows a stream as a registered reader, over restarts of lcapd, until it has had so many records.
fn follow(daemon: &Daemon, stream: &str, records: u64) -> (Arc<AtomicU64>, JoinHandle<Vec<u64>>) {
    let had = Arc::new(AtomicU64::new(0));
    let client = daemon.client(MDT, stream).reader(Some("audit")).follow(true);
    let counter = Arc::clone(&had);
    let thread = std::thread::spawn(move || {
        let mut client = client.connect().unwrap();
        let mut seen = Vec::new();
        while seen.last() != Some(&records) {
            let index = client.recv().unwrap().unwrap().index();
            seen.push(index.get());
            client.clear(index).unwrap();
            counter.store(seen.len() as u64, Ordering::Relaxed);
        }
        seen
    });
    (had, thread)
}

/// Policies of that module which give out what came in.
fn pass(module: &Path) -> String {
    format!("policies = [ {{ module = \"{}\", mode = \"pass\" }} ]", module.display())
}

/// Policies to replace by each other. None of them drops anything, so what comes out is known
/// exactly; most hold records back, and `compact` might make records of its own.
fn variants(module: &Path) -> [String; 5] {
    let all_types = "\"MARK\", \"CREAT\", \"MKDIR\", \"HLINK\", \"SLINK\", \"MKNOD\", \"UNLNK\", \
        \"RMDIR\", \"RENME\", \"CLOSE\", \"LYOUT\", \"TRUNC\", \"SATTR\", \"XATTR\", \"HSM\", \
        \"MTIME\", \"CTIME\", \"ATIME\", \"MIGRT\", \"FLRW\", \"RESYNC\", \"GXATR\", \"NOPEN\", \
        \"OPEN\"";
    [
        format!(
            "policies = [ {{ module = \"compact\", window = \"200ms\", keep = [{all_types}] }} ]"
        ),
        "policies = [ { module = \"window\", time = \"150ms\" }, { module = \"fifo\" } ]"
            .to_owned(),
        pass(module),
        format!(
            "policies = [ {{ module = \"group\", by = \"tfid\" }}, {{ module = \"compact\", \
             window = \"300ms\", keep = [{all_types}] }} ]"
        ),
        NO_POLICIES.to_owned(),
    ]
}

fn write_policies(daemon: &Daemon, policies: &str) {
    fs::write(daemon.config(), daemon.setup().text().replace(NO_POLICIES, policies)).unwrap();
}

#[test]
fn policies_are_replaced_and_lcapd_killed_without_a_lost_or_reordered_record() {
    const RECORDS: u64 = 24_000;
    let dir = tempfile::tempdir().unwrap();
    let module = toy(dir.path(), "toy.so", &["-DTOY_VERSION=\"first\""]);
    let toy_policies = pass(&module);
    let variants = variants(&module);
    let mut daemon = Setup::new()
        .server("clear_interval = \"20ms\"")
        .mdt(MDT, &format!("sim:rate=4000,records={RECORDS},seed=9"))
        .broadcast("robinhood", NO_POLICIES)
        .start();
    daemon.control().register("robinhood", "audit", Vec::new(), From::Oldest).unwrap();
    let (had, reader) = follow(&daemon, "robinhood", RECORDS);
    let mut n_reloads = 0;
    // However slow the machine is, each kind of reload is tried.
    while n_reloads < 8 || !reader.is_finished() {
        let before = had.load(Ordering::Relaxed);
        let policies = &variants[n_reloads % variants.len()];
        write_policies(&daemon, policies);
        if n_reloads % 3 == 2 {
            daemon.signal(Signal::HUP);
        } else if n_reloads % 7 != 6 {
            let reply = daemon.control().reload_policies("robinhood").unwrap();
            assert_eq!(reply.waiting, [""; 0]);
            let n = policies.matches("module =").count();
            assert_eq!(modules(&status(&daemon), "robinhood").len(), n, "{policies}");
        }
        if n_reloads % 4 == 1 {
            write_policies(&daemon, "policies = [ { module = \"compact\", window = \"never\" } ]");
            assert!(daemon.control().reload_policies("robinhood").is_err());
            write_policies(&daemon, policies);
        }
        if n_reloads == 2 {
            // A new file under the old name is really loaded.
            toy(dir.path(), "toy.so", &["-DTOY_VERSION=\"second\""]);
        }
        if n_reloads % 5 == 3 {
            // Right after, or (after SIGHUP) in the middle of a reload.
            daemon.kill();
            daemon.start();
        }
        n_reloads += 1;
        wait_until("records flow", || {
            reader.is_finished() || had.load(Ordering::Relaxed) > before + 500
        });
    }
    let seen = reader.join().unwrap();
    // `compact` may make records of its own, so a new session of its reader repeats what policies may
    // fold anew. New records come in order all the same, each of them.
    let mut next = 1;
    for (at, &index) in seen.iter().enumerate() {
        assert!(index <= next, "{next} is missing: {:?}", &seen[at.saturating_sub(3)..=at]);
        next = next.max(index + 1);
    }
    assert_eq!(next, RECORDS + 1);
    write_policies(&daemon, &toy_policies);
    let reply = daemon.control().reload_policies("robinhood").unwrap();
    assert_eq!((reply.modules[0].module.as_str(), &*reply.modules[0].version), ("toy", "second"));
    wait_until("the reader's last word", || daemon.cleared(MDT) == RECORDS);
    let log = daemon.log();
    assert!(log.contains("policies not reloaded, the old ones stay at work"), "{log}");
}

/// Replaces policies while records flow, and nothing else. What the reader had, and how often it
/// had to begin anew.
fn reload_while_records_flow(records: u64) -> (Vec<u64>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let variants = variants(&toy(dir.path(), "toy.so", &[]));
    let daemon = Setup::new()
        .server("clear_interval = \"20ms\"")
        .mdt(MDT, &format!("sim:rate=1000,records={records},seed=9"))
        .broadcast("robinhood", &variants[0])
        .start();
    daemon.control().register("robinhood", "audit", Vec::new(), From::Oldest).unwrap();
    let (had, reader) = follow(&daemon, "robinhood", records);
    let text = daemon.setup().text();
    for n_reloads in 1.. {
        let before = had.load(Ordering::Relaxed);
        wait_until("records flow", || {
            reader.is_finished() || had.load(Ordering::Relaxed) > before + 100
        });
        if reader.is_finished() {
            assert!(n_reloads > 5, "only {n_reloads} reloads");
            break;
        }
        let policies = &variants[n_reloads % variants.len()];
        fs::write(daemon.config(), text.replace(&variants[0], policies)).unwrap();
        daemon.control().reload_policies("robinhood").unwrap();
    }
    let seen = reader.join().unwrap();
    wait_until("all is cleared", || daemon.cleared(MDT) == records);
    let opened = |line: &&str| line.contains("session opened") && line.contains("audit");
    (seen, daemon.log().lines().filter(opened).count())
}

#[test]
fn a_reload_repeats_and_leaves_out_nothing() {
    const RECORDS: u64 = 3000;
    // A client that stands still for longer than its queue of live messages lasts begins anew, and
    // behind policies that make records of their own that repeats some; this is about reloads.
    for _ in 0..10 {
        let (seen, sessions) = reload_while_records_flow(RECORDS);
        if sessions == 1 {
            assert_eq!(seen, (1..=RECORDS).collect::<Vec<_>>());
            return;
        }
        println!("the reader had {sessions} sessions: once more");
    }
    panic!("the reader never kept its session");
}

#[test]
fn what_reads_the_past_after_a_reload_goes_through_the_new_policies() {
    let daemon =
        Setup::new().mdt(MDT, "sim:records=5000,seed=9").broadcast("some", NO_POLICIES).start();
    let before = indexes(&daemon, MDT, "some");
    assert_eq!(before.len(), 5000);
    let filter = "policies = [ { module = \"filter\", keep = \"index > 4000\" } ]";
    fs::write(daemon.config(), daemon.setup().text().replace(NO_POLICIES, filter)).unwrap();
    let output = daemon.lcap(&["policy", "reload", "--json", "some"]).output().unwrap();
    let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&reply["stream"], &reply["modules"][0]["module"]),
        (&"some".into(), &"filter".into())
    );
    assert_eq!(indexes(&daemon, MDT, "some"), (4001..=5000).collect::<Vec<_>>());
}
