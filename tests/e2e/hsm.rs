//! HSM actions as a stream: from an MDT's list to readers, through crashes and failover.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lcap_tests::daemon::{Daemon, PATIENCE, Setup, wait_until};
use lcap_tests::disk::SmallDisk;
use lcap_wire::control::From;
use lcapclient::{Builder, Client, EventKind};

const MDT: &str = "lustre-MDT0000";
const OTHER: &str = "lustre-MDT0001";

fn line(rec: u32, cookie: u64, status: &str) -> String {
    format!(
        "lrh=[type=10680000 len=136 idx=1/{rec}] fid=[0x200000402:{cookie:#x}:0x0] \
         dfid=[0x200000402:{cookie:#x}:0x0] compound/cookie=0x0/{cookie:#x} action=ARCHIVE \
         archive#=1 flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 datalen=0 status={status} \
         data=[]\n"
    )
}

/// The lists of a file system's MDTs, as files.
#[derive(Clone, Debug)]
struct Lists(PathBuf);

impl Lists {
    fn path(&self, mdt: &str) -> PathBuf {
        self.0.join(mdt).join("hsm/actions")
    }

    /// Replaces a list at one moment, as a read of the kernel's sees it.
    fn write(&self, mdt: &str, text: &str) {
        let path = self.path(mdt);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// The MDT goes elsewhere.
    fn leave(&self, mdt: &str) {
        fs::remove_file(self.path(mdt)).unwrap();
    }
}

/// An lcapd that reads lists as fast as it may.
fn start(more: &str) -> (Daemon, Lists, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let lists = Lists(dir.path().to_owned());
    let pattern = format!("hsm-actions:\"\nhsm_actions = \"{}/*/hsm/actions", dir.path().display());
    let daemon = Setup::new()
        .server("hsm_audit_interval = \"100ms\"\nclear_interval = \"50ms\"\nheartbeat = \"200ms\"")
        .server(more)
        .mdt(MDT, &pattern)
        .mdt(OTHER, &pattern)
        .broadcast("hsm", "kind = \"hsm\"")
        .start();
    (daemon, lists, dir)
}

fn follow(builder: Builder) -> Client {
    builder.follow(true).connect().unwrap()
}

/// `kind slot cookie status last-status`, a star for a state.
fn next(client: &mut Client) -> String {
    let event = client.recv_hsm().unwrap().expect("it follows");
    let status = String::from_utf8_lossy(event.status_name()).into_owned();
    let mark = if event.is_snapshot { "*" } else { "" };
    let (slot, cookie) = (event.fields.slot.rec, event.fields.cookie);
    format!("{}{mark} {slot} {cookie} {status} {}", event.kind.name(), event.last_status)
}

fn nexts(client: &mut Client, n: usize) -> Vec<String> {
    (0..n).map(|_| next(client)).collect()
}

#[test]
fn an_mdt_that_moves_away_and_comes_back_is_told_without_a_false_purge() {
    let (daemon, lists, _dir) = start("");
    let mut client = follow(daemon.client(MDT, "hsm"));
    let mut other = follow(daemon.client(OTHER, "hsm"));
    let away = || daemon.log().matches("no list of HSM actions here").count();
    wait_until("it is told that no list is here", || away() == 2);
    lists.write(MDT, &(line(1, 7, "WAITING") + &line(2, 8, "WAITING")));
    assert_eq!(nexts(&mut client, 2), ["NEW 1 7 WAITING UNKNOWN", "NEW 2 8 WAITING UNKNOWN"]);

    lists.leave(MDT);
    wait_until("it is told that the list is away", || away() == 3);
    // The other MDT does not wait for it; while it is told, the first one is looked for many times.
    for cookie in 1..20 {
        lists.write(OTHER, &line(1, cookie, "STARTED"));
        if cookie > 1 {
            let purged = format!("PURGED 1 {} STARTED STARTED", cookie - 1);
            assert_eq!(next(&mut other), purged);
        }
        assert_eq!(next(&mut other), format!("NEW 1 {cookie} STARTED UNKNOWN"));
    }
    assert_eq!(away(), 3, "once for each change: {}", daemon.log());

    // Meanwhile, on another host: one went on, one went and its slot was used again, one came.
    let back = line(1, 7, "SUCCEED") + &line(2, 9, "WAITING") + &line(3, 10, "FAILED");
    lists.write(MDT, &back);
    let want = [
        "UPDATE 1 7 SUCCEED WAITING",
        "PURGED 2 8 WAITING WAITING",
        "NEW 2 9 WAITING UNKNOWN",
        "NEW 3 10 FAILED UNKNOWN",
    ];
    assert_eq!(nexts(&mut client, 4), want);
    // A list that is there and empty is something else.
    lists.write(MDT, "");
    let purged: Vec<_> = nexts(&mut client, 3);
    assert!(purged.iter().all(|event| event.starts_with("PURGED")), "{purged:?}");
}

#[test]
fn a_state_comes_first_and_what_changes_after_it_without_a_gap() {
    let (mut daemon, lists, _dir) = start("");
    let mut early = follow(daemon.client(MDT, "hsm"));
    lists.write(MDT, &(1..=300).map(|rec| line(rec, rec.into(), "WAITING")).collect::<String>());
    nexts(&mut early, 300);
    lists.write(MDT, &(201..=300).map(|rec| line(rec, rec.into(), "STARTED")).collect::<String>());
    nexts(&mut early, 300);

    let mut late = follow(daemon.client(MDT, "hsm").snapshot(true));
    let state: BTreeSet<String> = nexts(&mut late, 100).into_iter().collect();
    let want = (201..=300).map(|rec| format!("UPDATE* {rec} {rec} STARTED WAITING"));
    assert_eq!(state, want.collect());
    lists.write(MDT, &line(201, 201, "SUCCEED"));
    assert_eq!(next(&mut late), "UPDATE 201 201 SUCCEED STARTED");
    let purges: BTreeSet<String> = nexts(&mut late, 99).into_iter().collect();
    assert!(purges.len() == 99 && purges.iter().all(|event| event.starts_with("PURGED ")));

    // The same after a crash, for who does not follow; and all of it for who wants the history.
    daemon.kill();
    daemon.start();
    let all = |builder: Builder| {
        let mut client = builder.connect().unwrap();
        let mut n = 0;
        while client.recv_hsm().unwrap().is_some() {
            n += 1;
        }
        n
    };
    assert_eq!(all(daemon.client(MDT, "hsm").snapshot(true)), 1);
    assert_eq!(all(daemon.client(MDT, "hsm")), 300 + 300 + 100);
    // What goes before the oldest that a client sees, and is settled by its reader, is kept for nobody.
    let mut control = daemon.control();
    control.register("hsm", "all", Vec::new(), From::Oldest).unwrap();
    let mut reader = follow(daemon.client(MDT, "hsm").reader(Some("all")));
    assert_eq!(next(&mut reader), "NEW 1 1 WAITING UNKNOWN");
    // A changelog stream knows nothing of this.
    let refused = daemon.client(MDT, "changelog").connect().unwrap_err();
    assert_eq!(refused.errno(), 2, "{refused}");
}

#[test]
fn a_client_may_choose_by_file_action_and_status() {
    let (daemon, lists, _dir) = start("");
    let mut some = follow(
        daemon
            .client(MDT, "hsm")
            .filter(Some("fid in ([0x200000402:0x2:0x0], [0x200000402:0x4:0x0])")),
    );
    lists.write(MDT, &(1..=5).map(|rec| line(rec, rec.into(), "WAITING")).collect::<String>());
    assert_eq!(nexts(&mut some, 2), ["NEW 2 2 WAITING UNKNOWN", "NEW 4 4 WAITING UNKNOWN"]);

    let failures = "action = archive and (status = failed or event_type = purged)";
    let mut failed = follow(daemon.client(MDT, "hsm").filter(Some(failures)).from(6));
    let list = |status| line(1, 1, "STARTED") + &line(2, 2, status);
    lists.write(MDT, &list("FAILED"));
    let purges = ["PURGED 3 3 WAITING WAITING", "PURGED 4 4 WAITING WAITING"];
    let rest = ["PURGED 5 5 WAITING WAITING"];
    let mut seen = nexts(&mut failed, 4);
    seen.sort();
    assert_eq!(seen, [&purges[..], &rest, &["UPDATE 2 2 FAILED WAITING"]].concat());
    // What goes without having failed is told, too: its status is PURGED.
    lists.write(MDT, &list("SUCCEED"));
    lists.write(MDT, "");
    let mut seen = nexts(&mut failed, 2);
    seen.sort();
    assert!(
        seen[0].starts_with("PURGED 1 1 STARTED") && seen[1].starts_with("PURGED 2 2 "),
        "{seen:?}"
    );
}

#[test]
fn strange_files_are_told_once_and_harm_nothing() {
    let (daemon, lists, _dir) = start("");
    let mut client = follow(daemon.client(MDT, "hsm"));
    lists.write(MDT, &line(1, 7, "STARTED"));
    assert_eq!(next(&mut client), "NEW 1 7 STARTED UNKNOWN");
    let path = lists.path(MDT);
    let mut expected = 0;
    for odd in ["garbage", "directory", "endless"] {
        match odd {
            "garbage" => {
                let garbage: Vec<u8> =
                    (0..200_000_u32).map(|n| (n * 7919).to_le_bytes()[1]).collect();
                fs::write(&path, garbage).unwrap();
            }
            "directory" => {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
                expected += 1;
                wait_until("it is told", || {
                    daemon.log().matches("cannot read HSM actions").count() == expected
                });
            }
            _ => fs::write(&path, vec![b'x'; 3 << 20]).unwrap(),
        }
        // It works on while it sees this: the other list is read.
        let mut other = follow(daemon.client(OTHER, "hsm").snapshot(true));
        lists.write(OTHER, &line(1, 1, odd));
        wait_until("the other MDT is told", || next(&mut other).contains(odd));
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        }
    }
    lists.write(MDT, &line(1, 7, "SUCCEED"));
    assert_eq!(next(&mut client), "UPDATE 1 7 SUCCEED STARTED");
    let told = daemon.log().matches("lines of the list of HSM actions are not understood").count();
    assert!(told <= 1, "{}", daemon.log());
}

/// What the events so far say is there: slot and cookie, and the status.
type Model = BTreeMap<(u32, u64), String>;

fn apply(model: &mut Model, client: &mut Client, last: &mut u64) {
    let event = client.recv_hsm().unwrap().expect("it follows");
    assert_eq!(event.index.get(), *last + 1, "none twice, none missing");
    *last = event.index.get();
    let key = (event.fields.slot.rec, event.fields.cookie);
    let status = String::from_utf8_lossy(event.status_name()).into_owned();
    match event.kind {
        EventKind::New => assert_eq!(model.insert(key, status), None, "{key:?}"),
        EventKind::Update => assert!(model.insert(key, status).is_some(), "{key:?}"),
        EventKind::Purged => assert!(model.remove(&key).is_some(), "{key:?}"),
    }
    let index = event.index;
    client.clear(index).unwrap();
}

/// A list that changes all the time, until told to stop; then it stays as it is.
fn churn(lists: &Lists, stop: &AtomicBool) -> Model {
    let mut model = Model::new();
    let mut cookie = 0_u64;
    let words = ["WAITING", "STARTED", "SUCCEED", "FAILED"];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    loop {
        for _ in 0..20 {
            let rec = u32::try_from(random(200)).unwrap() + 1;
            let there = model.keys().find(|(slot, _)| *slot == rec).copied();
            match (there, random(4)) {
                (Some(key), 0) => drop(model.remove(&key)),
                (Some(key), _) => {
                    let word = words[usize::try_from(random(4)).unwrap()];
                    model.insert(key, word.to_owned());
                }
                (None, _) => {
                    cookie += 1;
                    model.insert((rec, cookie), "WAITING".to_owned());
                }
            }
        }
        let list = model.iter().map(|((rec, cookie), status)| line(*rec, *cookie, status));
        lists.write(MDT, &list.collect::<String>());
        if stop.load(Ordering::Relaxed) {
            return model;
        }
        std::thread::sleep(Duration::from_millis(3)); // the pace of the made-up MDT
    }
}

#[test]
fn kills_at_any_moment_neither_repeat_nor_lose_an_event() {
    let (mut daemon, lists, _dir) = start("");
    daemon.control().register("hsm", "audit", Vec::new(), From::Oldest).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (lists, stop) = (lists.clone(), Arc::clone(&stop));
        std::thread::spawn(move || churn(&lists, &stop))
    };
    // One that lives through all of it.
    let mut live = follow(daemon.client(MDT, "hsm").reader(Some("audit")));
    let (mut model, mut last) = (Model::new(), 0);
    for _ in 0..4 {
        for _ in 0..150 {
            apply(&mut model, &mut live, &mut last);
        }
        daemon.kill();
        daemon.start();
    }
    stop.store(true, Ordering::Relaxed);
    let there = writer.join().unwrap();
    wait_for(&mut live, &mut model, &mut last, &there);
    // And one that comes now, for the state.
    let mut late = daemon.client(MDT, "hsm").snapshot(true).connect().unwrap();
    let mut state = Model::new();
    while let Some(event) = late.recv_hsm().unwrap() {
        let status = String::from_utf8_lossy(event.status_name()).into_owned();
        state.insert((event.fields.slot.rec, event.fields.cookie), status);
    }
    assert_eq!(state, there);
}

/// Takes events until they say what is there.
fn wait_for(client: &mut Client, model: &mut Model, last: &mut u64, there: &Model) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while model != there {
        assert!(std::time::Instant::now() < deadline, "{model:?}\n{there:?}");
        apply(model, client, last);
    }
}

#[test]
fn events_that_a_reader_has_cleared_go_and_too_many_make_a_gap() {
    let (mut daemon, lists, _dir) = start("hsm_max_events = 2000");
    daemon.control().register("hsm", "slow", Vec::new(), From::Oldest).unwrap();
    let mut fast = follow(daemon.client(MDT, "hsm"));
    let mut slow = follow(daemon.client(MDT, "hsm").reader(Some("slow")));
    lists.write(MDT, &line(1, 1, "WAITING"));
    next(&mut fast);
    next(&mut slow);
    slow.clear(lcapclient::RecordIndex::new(1)).unwrap();
    drop(slow);
    for round in 0..8_u64 {
        let list = (1..=500).map(|rec| line(rec, 1000 * round + u64::from(rec), "WAITING"));
        lists.write(MDT, &list.collect::<String>());
        nexts(&mut fast, if round == 0 { 499 } else { 1000 });
    }
    // 7500 events; the oldest are gone although a reader wanted them, and it is told. (What is still in
    // memory would be given to it.)
    daemon.kill();
    daemon.start();
    let mut slow = daemon.client(MDT, "hsm").reader(Some("slow")).connect().unwrap();
    let mut n = 0;
    while slow.recv_hsm().unwrap().is_some() {
        n += 1;
    }
    let stats = slow.stats();
    assert!((2000..7500).contains(&n), "{n}");
    assert!(stats.gaps > 0 && stats.gap_last == 7500 - n, "{stats:?}");
    assert!(daemon.log().contains("more HSM events than hsm_max_events"));
}

#[test]
fn the_simulator_has_lists_with_whole_lives() {
    let daemon = Setup::new()
        .server("hsm_audit_interval = \"100ms\"")
        .mdt(MDT, "sim:rate=10,actions=600,seed=3")
        .broadcast("changelog", "")
        .broadcast("hsm", "kind = \"hsm\"")
        .start();
    // Both logs of one MDT, side by side under one name.
    let mut changelog = follow(daemon.client(MDT, "changelog"));
    assert!(changelog.recv().unwrap().is_some());
    let mut client = follow(daemon.client(MDT, "hsm"));
    let mut kinds = BTreeSet::new();
    while kinds.len() < 3 {
        let event = client.recv_hsm().unwrap().expect("it follows");
        kinds.insert(event.kind.name());
    }
    let status = daemon.control().status().unwrap();
    assert_eq!((status.mdts.len(), status.hsm_mdts.len()), (1, 1));
    assert!(status.hsm_mdts[0].read_index >= 600);
    let hsm = status.streams.iter().find(|stream| stream.name == "hsm").unwrap();
    assert_eq!(hsm.mdts.len(), 1);
}

#[test]
#[cfg_attr(no_tmpfs, ignore = "no right to mount a tmpfs here")]
fn a_full_disk_is_waited_for() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = SmallDisk::mount(state.path(), "8m");
    let lists = Lists(dir.path().to_owned());
    let pattern = format!("hsm-actions:\"\nhsm_actions = \"{}/*/hsm/actions", dir.path().display());
    let daemon = Setup::new()
        .state_dir(state.path())
        .server("hsm_audit_interval = \"100ms\"")
        .mdt(MDT, &pattern)
        .broadcast("hsm", "kind = \"hsm\"")
        .start();
    let mut client = follow(daemon.client(MDT, "hsm"));
    lists.write(MDT, &line(1, 7, "WAITING"));
    assert_eq!(next(&mut client), "NEW 1 7 WAITING UNKNOWN");
    let filler = disk.fill();
    let list: String = (1..=5000).map(|rec| line(rec, u64::from(rec) + 6, "STARTED")).collect();
    lists.write(MDT, &list);
    wait_until("it is told", || daemon.log().contains("cannot read HSM actions"));
    fs::remove_file(&filler).unwrap();
    assert_eq!(next(&mut client), "UPDATE 1 7 STARTED WAITING");
    for rec in 2..=5000_u64 {
        assert_eq!(next(&mut client), format!("NEW {rec} {} STARTED UNKNOWN", rec + 6));
    }
    drop(client);
    drop(daemon);
}
