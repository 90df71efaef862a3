//! `lcap hsm`: the same from lcapd and from Redis.

use std::process::Command;

use lcap_tests::daemon::{Setup, wait_until};
use lcap_tests::lists::{Action, List, Lists, text};
use lcap_tests::redis::RedisServer;
use serde_json::{Value, json};

const MDT: &str = "elm-MDT0000";
const KEY: &str = "hsm:actions:elm-MDT0000";

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}{text}");
    text
}

#[test]
fn tail_top_and_stats_show_the_same_from_lcapd_and_from_redis() {
    let redis = RedisServer::start();
    let dir = tempfile::tempdir().unwrap();
    let lists = Lists::new(dir.path());
    let mut list: List = (1..21).map(|rec| (rec, Action::archive(rec.into()))).collect();
    list.insert(30, Action { action: "RESTORE", ..Action::archive(30).status("STARTED") });
    lists.write(MDT, &text(&list));
    let url = redis.url(1);
    let daemon = Setup::new()
        .server("hsm_audit_interval = \"100ms\"")
        .mdt(MDT, &lists.source())
        .broadcast("hsm", "kind = \"hsm\"")
        .more(&format!("[[sink]]\nstream = \"hsm\"\nredis = \"{url}\"\nburst = \"0s\""))
        .start();
    wait_until("21 actions are in Redis", || redis.entries(1, KEY).len() == 21);
    list.retain(|rec, _| rec % 2 == 0);
    lists.write(MDT, &text(&list));
    wait_until("10 of them are purged", || redis.entries(1, KEY).len() == 31);

    let from_redis = ["--redis", url.as_str()];
    let lcap = |args: &[&str], from: &[&str]| output(&mut daemon.lcap(&[args, from].concat()));
    for from in [&[][..], &from_redis] {
        let stats: Value = serde_json::from_str(&lcap(&["hsm", "stats"], from)).unwrap();
        assert_eq!(stats["summary"]["total_live_actions"], 11, "{stats}");
        let row = |action: &str, status: &str, count: u64| json!({"mdt": MDT, "action": action, "status": status, "count": count});
        let want = [row("ARCHIVE", "WAITING", 10), row("RESTORE", "STARTED", 1)];
        assert_eq!(stats["breakdown"], json!(want), "{stats}");
        assert_eq!(stats["streams"][0]["mdt"], MDT, "{stats}");

        let top = lcap(&["hsm", "top", "--once"], from);
        assert!(top.contains("live 11"), "{top}");
        let line = top.lines().find(|line| line.contains("RESTORE")).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.get(..4), Some(&[MDT, "RESTORE", "STARTED", "1"][..]), "{top}");
    }
    // What happened is in Redis; lcapd keeps what somebody still needs, and knows the state.
    let tails = [
        (lcap(&["hsm", "tail", "--once"], &from_redis), 21),
        (lcap(&["hsm", "tail", "--once", "--state"], &[]), 11),
    ];
    for (tail, n) in tails {
        assert_eq!(tail.lines().count(), n, "{tail}");
        let restore = tail.lines().find(|line| line.contains("RESTORE")).unwrap_or_default();
        let want = format!("[{MDT}] RESTORE  STARTED  -> 0x200000402:0x1e:0x0 (id: ");
        assert!(restore.contains(&want), "{tail}");
    }
    let tail = lcap(&["hsm", "tail", "--once", "--json", "--show", "PURGED"], &from_redis);
    assert_eq!(tail.lines().count(), 10, "{tail}");
    for line in tail.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["event_type"], "PURGED");
        assert_eq!(event["mdt"], MDT);
    }
    let state = lcap(&["hsm", "tail", "--once", "--state", "--json", "--show", "restore"], &[]);
    let event: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(event["fid"], "0x200000402:0x1e:0x0");
    // The summary is that of the original: Redis's own figures where it reads from Redis.
    let stats: Value = serde_json::from_str(&lcap(&["hsm", "stats"], &from_redis)).unwrap();
    assert_eq!(stats["summary"]["total_stream_entries"], 31);
    assert_eq!(stats["summary"]["total_events_replayed"], 31);

    let nowhere = daemon.lcap(&["hsm", "stats", "--redis", "unix:///nowhere"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere"));
}
