//! HSM actions into a real Redis, as lustre-hsm-action-stream's consumers need them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lcap_tests::contract::{self, Views};
use lcap_tests::daemon::{Daemon, PATIENCE, Setup, free_port, wait_until};
use lcap_tests::lists::{Action, List, Lists, text};
use lcap_tests::redis::{RedisServer, entries, entries_after};
use lcapd::sink::target::{as_bytes, as_list, as_text};
use rustix::process::Signal;

const MDT: &str = "elm-MDT0000";
const OTHER: &str = "elm-MDT0001";
const KEY: &str = "hsm:actions:elm-MDT0000";
const DB: u32 = 1;

/// An lcapd that reads lists as fast as it may, and writes at once.
fn start(redis: &RedisServer, lists: &Lists, more: &str) -> Daemon {
    setup(redis, lists, more).start()
}

fn setup(redis: &RedisServer, lists: &Lists, more: &str) -> Setup {
    let sink = format!("[[sink]]\nstream = \"hsm\"\nredis = \"{}\"\n{more}", redis.url(DB));
    let sink = if more.contains("burst") { sink } else { format!("{sink}\nburst = \"0s\"") };
    Setup::new()
        .server("hsm_audit_interval = \"100ms\"\nclear_interval = \"50ms\"")
        .mdt(MDT, &lists.source())
        .mdt(OTHER, &lists.source())
        .broadcast("hsm", "kind = \"hsm\"")
        .more(&sink)
}

fn views(redis: &RedisServer, key: &str) -> Option<Views> {
    let mut link = redis.link(DB)?;
    Some(contract::read(key, &entries(&mut link, key)))
}

/// Waits until both kinds of consumers see what the list says, by entries that break no rule.
fn wait_for_truth(redis: &RedisServer, key: &str, list: &str) -> Views {
    let truth = contract::truth(list);
    let mut last = None;
    let right = |views: &Views| {
        views.by_slot == truth && views.by_key.keys().eq(contract::keys(&truth).iter())
    };
    wait_until(&format!("{key} shows {} actions", truth.len()), || {
        last = views(redis, key);
        last.as_ref().is_some_and(right)
    });
    let views = last.unwrap();
    assert_eq!(views.problems, Vec::<String>::new());
    views
}

fn archives(recs: std::ops::Range<u32>, status: &'static str) -> List {
    recs.map(|rec| (rec, Action::archive(rec.into()).status(status))).collect()
}

fn dir() -> (tempfile::TempDir, Lists) {
    let dir = tempfile::tempdir().unwrap();
    let lists = Lists::new(dir.path());
    (dir, lists)
}

#[test]
fn every_entry_keeps_the_contract_and_both_views_are_right() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    lists.write(OTHER, "");
    let daemon = start(&redis, &lists, "burst = \"100ms\"");
    // C13: a stream is there before the first action.
    wait_until("both streams are there", || {
        views(&redis, "hsm:actions:elm-MDT0001").is_some_and(|v| v == Views::default())
            && redis.link(DB).is_some_and(|mut link| {
                let keys = link.call(&[b"KEYS", b"hsm:actions:*"]).unwrap();
                as_list(&keys).unwrap().len() == 2 // C10: and nothing else
            })
    });
    let all = ["WAITING", "STARTED", "FAILED", "CANCELED", "SUCCEED"];
    let actions = ["ARCHIVE", "RESTORE", "REMOVE", "CANCEL"];
    let mut list = List::new();
    for (n, (status, action)) in
        all.iter().flat_map(|status| actions.iter().map(move |action| (status, action))).enumerate()
    {
        let n = u32::try_from(n).unwrap();
        list.insert(n, Action { action, status, ..Action::archive(u64::from(n) + 1) });
    }
    let mut lines = text(&list);
    // Words that nobody knows, and bytes that are none.
    lines.push_str(
        "lrh=[type=10680000 len=1 idx=9/9] fid=[0x1:0x9:0x0] action=SHUFFLE status=ODD\n",
    );
    lists.write(MDT, &lines);
    wait_for_truth(&redis, KEY, &lines);
    // What changes is told, what goes is purged.
    for action in list.values_mut() {
        action.status = "SUCCEED";
    }
    lists.write(MDT, &text(&list));
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!(views.kinds.get("PURGED"), Some(&1));
    lists.write(MDT, "");
    let views = wait_for_truth(&redis, KEY, "");
    assert_eq!((views.kinds["NEW"], views.kinds["PURGED"]), (21, 21));
    wait_until("everything is acknowledged", || {
        let status = daemon.control().status().unwrap();
        let mdt = status.hsm_mdts.iter().find(|mdt| mdt.name == MDT).unwrap();
        mdt.read_index > 0 && mdt.cleared_index == mdt.read_index
    });
}

#[test]
fn slots_that_are_used_again_and_files_with_two_actions_confuse_nobody() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    let mut list = archives(1..4, "STARTED");
    lists.write(MDT, &text(&list));
    let _daemon = start(&redis, &lists, "");
    wait_for_truth(&redis, KEY, &text(&list));
    // The slot of file 1 is taken by file 9, without a moment in between.
    list.insert(1, Action::archive(9));
    lists.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    // File 2 was archived, which is still shown, and is to be archived again.
    list.insert(2, Action::archive(2).status("SUCCEED"));
    list.insert(7, Action { cookie: 77, ..Action::archive(2) });
    lists.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    // The first of the two goes: who knows actions by file must not lose the second.
    list.remove(&2);
    lists.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
}

#[test]
fn whoever_is_killed_the_stream_ends_right() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (_dir, lists) = dir();
    let mut list = archives(1..3000, "WAITING");
    lists.write(MDT, &text(&list));
    let mut daemon = start(&redis, &lists, "");
    let n = |redis: &RedisServer| redis.link(DB).map_or(0, |mut l| entries(&mut l, KEY).len());
    wait_until("a batch is in Redis", || n(&redis) > 0);
    redis.kill(); // in the middle of a batch, as likely as not
    redis.restart();
    wait_until("more than that", || n(&redis) > 500);
    daemon.kill();
    for (rec, action) in &mut list {
        if rec % 3 == 0 {
            action.status = "STARTED";
        }
    }
    list.retain(|rec, _| rec % 5 != 0);
    lists.write(MDT, &text(&list));
    daemon.start();
    let before = wait_for_truth(&redis, KEY, &text(&list));
    assert!(before.kinds["NEW"] <= 2999, "nothing is new twice: {:?}", before.kinds);
    // A Redis that stands still, and an lcapd that is killed meanwhile.
    redis.signal(Signal::STOP);
    list.retain(|rec, _| rec % 7 != 0);
    lists.write(MDT, &text(&list));
    daemon.kill();
    daemon.start();
    redis.signal(Signal::CONT);
    let after = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!(after.kinds["NEW"], before.kinds["NEW"]);
    assert!(before.seen.values().all(|&n| n <= 1));
}

#[test]
fn a_redis_that_lost_everything_gets_the_present_state() {
    let mut redis = RedisServer::start();
    let (_dir, lists) = dir();
    let list = archives(1..1200, "WAITING");
    lists.write(MDT, &text(&list));
    let _daemon = start(&redis, &lists, "");
    wait_for_truth(&redis, KEY, &text(&list));
    redis.kill();
    redis.restart();
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!(views.kinds.get("NEW"), Some(&1199));
}

#[test]
fn what_should_not_be_there_goes_and_what_is_missing_comes() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    let list = archives(1..6, "STARTED");
    lists.write(MDT, &text(&list));
    let mut daemon = start(&redis, &lists, "audit = \"1s\"");
    wait_for_truth(&redis, KEY, &text(&list));
    daemon.stop();
    let mut link = redis.link(DB).unwrap();
    let first = entries(&mut link, KEY)[0].id.clone();
    link.call(&[b"XDEL", KEY.as_bytes(), first.as_bytes()]).unwrap();
    let orphan = br#"{"cat_idx": 4, "rec_idx": 4, "fid": "0x9:0x9:0x0", "action": "RESTORE", "status": "WAITING", "event_type": "NEW", "mdt": "elm-MDT0000", "timestamp": 1700000000, "raw": "x", "action_key": "0x9:0x9:0x0:RESTORE"}"#;
    link.call(&[b"XADD", KEY.as_bytes(), b"*", b"data", orphan]).unwrap();
    daemon.start();
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!(views.kinds["PURGED"], 1);
}

#[test]
fn history_that_nobody_needs_is_trimmed_though_an_old_action_lives() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    let mut list = archives(1..2, "WAITING"); // stuck
    lists.write(MDT, &text(&list));
    let more = "retain = \"0s\"\nexact_trimming = true\nraw = false";
    let mut daemon = start(&redis, &lists, more);
    wait_for_truth(&redis, KEY, &text(&list));
    list.extend(archives(2..6000, "STARTED"));
    lists.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    list.retain(|&rec, _| rec == 1);
    lists.write(MDT, &text(&list));
    let n = |redis: &RedisServer| redis.entries(DB, KEY).len();
    wait_until("almost nothing is left", || n(&redis) <= 2);
    wait_for_truth(&redis, KEY, &text(&list));
    lists.write(MDT, "");
    daemon.stop(); // and what is trimmed after a start is right, too
    daemon.start();
    wait_until("nothing is left", || n(&redis) == 0);
}

#[test]
fn an_mdt_that_moves_between_servers_is_right_in_every_order() {
    let redis = RedisServer::start();
    let (_dir_a, a) = dir();
    let (_dir_b, b) = dir();
    let mut list = archives(1..800, "WAITING");
    a.write(MDT, &text(&list));
    let mut lcapd_a = start(&redis, &a, "");
    let mut lcapd_b = start(&redis, &b, "");
    wait_for_truth(&redis, KEY, &text(&list));
    // As it should be: the one loses it, then the other has it. And nothing is new again.
    a.leave(MDT);
    list.retain(|rec, _| rec % 2 == 0);
    b.write(MDT, &text(&list));
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!(views.kinds["NEW"], 799);
    // The new server is first: the old one still shows what it had.
    a.write(MDT, &text(&list));
    list.insert(900, Action::archive(900));
    a.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    b.leave(MDT);
    // The old server was down meanwhile, and comes back with what it knew.
    lcapd_b.kill();
    list.retain(|rec, _| rec % 3 == 0);
    a.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    lcapd_b.start();
    list.insert(901, Action::archive(901));
    a.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    // Back again, while the one that had it is dead.
    lcapd_a.kill();
    a.leave(MDT);
    list.remove(&900);
    b.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    lcapd_a.start();
    list.insert(902, Action::archive(902));
    b.write(MDT, &text(&list));
    let views = wait_for_truth(&redis, KEY, &text(&list));
    let twice: Vec<_> = views.seen.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "{twice:?} {:?}", views.kinds);
}

#[test]
fn what_another_server_trimmed_while_the_mdt_was_there_is_not_purged_again() {
    let redis = RedisServer::start();
    let (_dir_a, a) = dir();
    let (_dir_b, b) = dir();
    let more = "retain = \"0s\"\nexact_trimming = true\nraw = false";
    let mut list = archives(1..50, "WAITING");
    b.write(MDT, &text(&list));
    let _lcapd_b = start(&redis, &b, more);
    wait_for_truth(&redis, KEY, &text(&list));
    // The other server has it now, and other requests have these slots. Their purges and first entries
    // are trimmed before this one sees them.
    b.leave(MDT);
    list = (1..50).map(|rec| (rec, Action::archive(u64::from(rec) + 1000))).collect();
    a.write(MDT, &text(&list));
    let mut lcapd_a = start(&redis, &a, more);
    wait_for_truth(&redis, KEY, &text(&list));
    list.values_mut().for_each(|action| action.status = "STARTED");
    a.write(MDT, &text(&list));
    wait_for_truth(&redis, KEY, &text(&list));
    lcapd_a.stop(); // it trims when it starts
    lcapd_a.start();
    wait_until("the rest is trimmed", || redis.entries(DB, KEY).len() == 49);
    a.leave(MDT);
    list.insert(900, Action::archive(900));
    b.write(MDT, &text(&list));
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!((views.kinds.get("NEW"), views.kinds.get("PURGED")), (Some(&1), None));
}

#[test]
fn a_list_that_is_away_or_odd_purges_nothing_and_a_storm_of_purges_is_told_whole() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    let mut list = archives(1..5001, "STARTED");
    lists.write(MDT, &text(&list));
    let daemon = start(&redis, &lists, "");
    wait_for_truth(&redis, KEY, &text(&list));
    // The MDT is elsewhere: not the same as an MDT without actions.
    let away = || daemon.log().matches("no list of HSM actions here").count();
    let before = away();
    lists.leave(MDT);
    wait_until("it is noticed", || away() > before);
    list.insert(9000, Action::archive(9000));
    lists.write(MDT, &text(&list));
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!((views.kinds["NEW"], views.kinds.get("PURGED")), (5001, None));
    // A line that nobody understands does not end the others that follow it.
    let odd = text(&list).replacen(" action=ARCHIVE", " act", 1) + "lrh=[type=1";
    lists.write(MDT, &odd);
    let told = || daemon.log().contains("lines of the list of HSM actions are not understood");
    wait_until("it is told", told);
    list.insert(9001, Action::archive(9001));
    lists.write(MDT, &text(&list));
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!((views.kinds["NEW"], views.kinds.get("PURGED")), (5002, None));
    // Everything ends at once.
    lists.write(MDT, "");
    let views = wait_for_truth(&redis, KEY, "");
    assert_eq!((views.kinds["NEW"], views.kinds["PURGED"]), (5002, 5002));
}

#[test]
fn a_redis_that_stands_still_for_longer_than_the_time_limit_gets_nothing_twice() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    lists.write(MDT, "");
    let daemon = start(&redis, &lists, "timeout = \"300ms\"");
    wait_until("the stream is there", || views(&redis, KEY).is_some_and(|v| v == Views::default()));
    let mut list = List::new();
    for round in 1..=3_u32 {
        let told = daemon.log().matches("sink interrupted").count();
        list.extend(archives(round * 10_000..round * 10_000 + 4000, "WAITING"));
        // It takes the batches in, and answers late: as likely as not in the middle of one.
        redis.signal(Signal::STOP);
        lists.write(MDT, &text(&list));
        wait_until("it is noticed", || daemon.log().matches("sink interrupted").count() > told);
        redis.signal(Signal::CONT);
        let views = wait_for_truth(&redis, KEY, &text(&list));
        assert_eq!(views.kinds["NEW"], list.len(), "{:?}", views.kinds);
    }
    assert_eq!(redis.entries(DB, KEY).len(), 12_000);
}

#[test]
fn a_reader_that_waits_for_silence_ends_though_the_list_never_rests() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    lists.write(MDT, "");
    // The default: bursts.
    let _daemon = start(&redis, &lists, "burst = \"2s\"");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in (1..).take_while(|_| !over.load(Ordering::Relaxed)) {
                lists.write(MDT, &text(&archives(n..n + 50, "STARTED")));
                std::thread::sleep(Duration::from_millis(20)); // the pace of the made-up MDT
            }
        });
        wait_until("there is something", || !redis.entries(DB, KEY).is_empty());
        // hsm-stream-stats ends after half a second without an entry.
        for _ in 0..3 {
            let n = replay_until_quiet(&redis, Duration::from_millis(500));
            assert!(n > 0);
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Reads from the beginning until nothing has come for so long. As many entries as it gets.
fn replay_until_quiet(redis: &RedisServer, quiet: Duration) -> usize {
    let mut link = redis.link(DB).unwrap();
    let (mut last, mut n) = ("0-0".to_owned(), 0);
    let mut changed = Instant::now();
    let deadline = Instant::now() + PATIENCE;
    while changed.elapsed() < quiet {
        assert!(Instant::now() < deadline, "never quiet");
        let more = entries_after(&mut link, KEY, &last).unwrap();
        if let Some(newest) = more.last() {
            (last, changed) = (newest.id.clone(), Instant::now());
            n += more.len();
        }
        std::thread::sleep(Duration::from_millis(10)); // as XREAD BLOCK would wait
    }
    n
}

#[test]
fn entries_that_others_spoiled_do_not_stop_it() {
    let redis = RedisServer::start();
    let (_dir, lists) = dir();
    let list = archives(1..10, "STARTED");
    lists.write(MDT, &text(&list));
    let mut daemon = start(&redis, &lists, "");
    wait_for_truth(&redis, KEY, &text(&list));
    daemon.stop();
    let mut link = redis.link(DB).unwrap();
    let poison: [(&[u8], &[u8]); 5] = [
        (b"data", b"\xff\xfe"),
        (b"data", b"7"),
        (b"data", b"[1]"),
        (b"data", b"{\"status\": 5}"),
        (b"other", b"{}"),
    ];
    let ids: Vec<Vec<u8>> = poison
        .iter()
        .map(|(field, value)| {
            let id = link.call(&[b"XADD", KEY.as_bytes(), b"*", field, value]).unwrap();
            as_bytes(&id).unwrap().to_vec()
        })
        .collect();
    daemon.start();
    wait_until("it is told", || daemon.log().contains("entries that are no events"));
    let list = archives(1..20, "SUCCEED");
    lists.write(MDT, &text(&list));
    let is_told = || views(&redis, KEY).unwrap().by_slot.contains_key(&(1, 19));
    wait_until("what is new is told", is_told);
    // Without what others wrote, it is as if nothing had happened.
    for id in ids {
        link.call(&[b"XDEL", KEY.as_bytes(), &id]).unwrap();
    }
    let views = wait_for_truth(&redis, KEY, &text(&list));
    assert_eq!(views.kinds.get("PURGED"), None);
}

/// What `/metrics` says of the first MDT's sink.
fn figure(port: u16, name: &str) -> Option<u64> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    let sample = format!("{name}{{stream=\"hsm\",sink=\"redis\",mdt=\"{MDT}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&sample))?.parse().ok()
}

#[test]
fn what_a_sink_does_is_told_at_metrics() {
    let mut redis = RedisServer::start();
    let (_dir, lists) = dir();
    let list = archives(1..101, "WAITING");
    lists.write(MDT, &text(&list));
    let port = free_port();
    let http = format!("http = \"127.0.0.1:{port}\"");
    let _daemon = setup(&redis, &lists, "timeout = \"300ms\"").server(&http).start();
    wait_for_truth(&redis, KEY, &text(&list));
    wait_until("its entries are counted", || figure(port, "lcap_sink_entries_total") == Some(100));
    assert!(figure(port, "lcap_sink_batches_total") > Some(0));
    assert_eq!(figure(port, "lcap_sink_fenced"), Some(0));
    assert_eq!(figure(port, "lcap_sink_connected"), Some(1));
    redis.kill();
    wait_until("it is cut off", || figure(port, "lcap_sink_connected") == Some(0));
    assert!(figure(port, "lcap_sink_failures_total") > Some(0));
    redis.restart();
    wait_until("it is connected again", || figure(port, "lcap_sink_connected") == Some(1));
}

#[test]
fn a_consumer_group_shares_the_entries_and_outlives_everybody() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (_dir, lists) = dir();
    lists.write(MDT, "");
    let mut daemon = start(&redis, &lists, "");
    wait_until("the stream is there", || views(&redis, KEY).is_some());
    let key = KEY.as_bytes();
    let group = |redis: &RedisServer, who: &[u8]| -> Vec<String> {
        let Some(mut link) = redis.link(DB) else { return Vec::new() };
        let ask: [&[u8]; 9] =
            [b"XREADGROUP", b"GROUP", b"archive", who, b"COUNT", b"7", b"STREAMS", key, b">"];
        let answer = link.call(&ask).unwrap();
        let streams = as_list(&answer).unwrap_or_default();
        let entries = streams.first().and_then(|of| as_list(of)?.get(1)).and_then(as_list);
        let ids = entries.unwrap_or_default().iter().filter_map(|e| as_text(as_list(e)?.first()?));
        let ids: Vec<String> = ids.map(str::to_owned).collect();
        for id in &ids {
            link.call(&[b"XACK", key, b"archive", id.as_bytes()]).unwrap();
        }
        ids
    };
    let create: [&[u8]; 5] = [b"XGROUP", b"CREATE", key, b"archive", b"0"];
    redis.link(DB).unwrap().call(&create).unwrap();
    let mut given = Vec::new();
    for round in 1..=4_u32 {
        lists.write(MDT, &text(&archives(1..100 * round + 1, "WAITING")));
        let n = usize::try_from(100 * round).unwrap();
        wait_until("both have it all", || {
            given.extend(["a", "b"].iter().flat_map(|who| group(&redis, who.as_bytes())));
            given.len() >= n
        });
        match round {
            1 => {
                redis.kill();
                redis.restart();
            }
            2 => {
                daemon.kill();
                daemon.start();
            }
            _ => {}
        }
    }
    assert_eq!(given, redis.entries(DB, KEY).iter().map(|e| e.id.clone()).collect::<Vec<_>>());
}

#[test]
fn a_campaign_of_kills_ends_right() {
    let report = lcap_tests::sink_campaign::run(Duration::from_secs(8), 1);
    assert!(report.problems.is_empty(), "{:?}\n{}", report.hits, report.problems.join("\n"));
    assert!(report.new > 100, "{report:?}");
}
