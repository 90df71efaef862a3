//! lcapd as the copytool of a file system, and copytools as its movers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lcap_tests::daemon::{PATIENCE, free_port, wait_until, wait_until_or};
use lcap_tests::hsm::{FileSystem, Process};
use lcap_tests::lists::{Action, Lists, text};
use lcap_tests::rng::Rng;
use lcapclient::Builder;
use rustix::process::Signal;

/// Short times, so that nothing is waited for longer than it must.
const QUICK: &str =
    "heartbeat = \"200ms\"\ngrace = \"60s\"\nkeep_alive = \"250ms\"\nrenew = \"2s\"\n";

fn done(n: u64) -> impl Fn(&std::collections::BTreeMap<String, u64>) -> bool {
    move |summary| summary["succeed"] == n
}

/// Movers have begun so many.
fn wait_begun(fs: &FileSystem, n: usize) {
    wait_until_or("movers have begun", || {
        let show = fs.show();
        let begun = show.lines().filter(|line| line.contains("STARTED 0 1")).count();
        if begun >= n { Ok(()) } else { Err(show) }
    });
}

/// Nothing is left, and nothing went wrong.
fn assert_clean(fs: &FileSystem, lcapd: &Process) {
    let summary = fs.summary();
    for key in ["waiting", "started", "failed", "forgotten", "timeouts", "doubles"] {
        assert_eq!(summary[key], 0, "{key}: {summary:?}\n{}\n{}", fs.show(), lcapd.log());
    }
}

#[test]
fn unmodified_copytools_archive_restore_and_remove() {
    let mut fs = FileSystem::default();
    fs.options = QUICK.to_owned();
    let lcapd = fs.lcapd();
    let tools = [
        fs.copytool("threads", &[]),
        fs.copytool("forks", &["-f"]),
        fs.copytool("own-loop", &["-n"]),
    ];
    fs.request("archive", 100, 1, "tag=foo", 1);
    fs.wait_for("100 archives", done(100));
    for oid in 1..=100 {
        assert_eq!(fs.archived(oid), fs.data(oid), "{oid}");
        std::fs::write(fs.mount().join(format!("files/{oid}")), "").unwrap(); // released
    }
    fs.request("restore", 100, 1, "", 1);
    fs.wait_for("100 restores", done(200));
    for oid in 1..=100 {
        assert_eq!(fs.data(oid), fs.archived(oid), "{oid}");
        assert_eq!(fs.data(oid).unwrap(), format!("data of file {oid}\n"));
    }
    fs.request("remove", 50, 1, "", 1);
    fs.request("remove", 50, 0, "", 51); // of files that are gone
    fs.wait_for("100 removes", done(300));
    assert_eq!(std::fs::read_dir(fs.archive()).unwrap().count(), 0);
    assert_clean(&fs, &lcapd);
    for tool in tools {
        assert!(tool.terminate());
    }
    assert!(lcapd.terminate());
}

#[test]
fn cancels_are_answered_in_every_state() {
    let mut fs = FileSystem::default();
    fs.options = QUICK.to_owned();
    let lcapd = fs.lcapd();
    // Nobody is there: they wait.
    let first = fs.request("archive", 3, 1, "", 1);
    fs.wait_for("they were sent", |s| s["started"] == 3);
    fs.mdt(&["cancel", &first.to_string()]);
    fs.wait_for("a waiting one is cancelled", |s| s["canceled"] == 1);
    // Now they run, for a long time.
    let slow = fs.copytool("slow", &["-d", "600000"]);
    let other = fs.request("archive", 1, 1, "", 4);
    wait_begun(&fs, 3);
    fs.mdt(&["cancel", &(first + 1).to_string(), &other.to_string()]);
    fs.wait_for("running ones are cancelled", |s| s["canceled"] == 3);
    // Its mover dies: the cancel is not lost with it.
    slow.kill();
    fs.mdt(&["cancel", &(first + 2).to_string()]);
    let again = fs.copytool("slow", &[]);
    fs.wait_for("one whose mover died is cancelled", |s| s["canceled"] == 4);
    // A cancel of what nobody knows: it was over before.
    assert_clean(&fs, &lcapd);
    assert!(again.terminate());
}

#[test]
fn a_lost_registration_is_noticed_and_queued_requests_live_on() {
    let mut fs = FileSystem::default();
    fs.options = QUICK.to_owned();
    fs.mdt(&["set", "timeout_ms", "10000"]);
    let lcapd = fs.lcapd();
    // These wait longer than Lustre's limit, for there is no mover.
    fs.request("archive", 5, 1, "", 1);
    fs.wait_for("they were sent", |s| s["started"] == 5);
    let since = Instant::now();
    // Evicted: new requests stay with the MDT until lcapd is there again.
    fs.mdt(&["evict"]);
    fs.request("archive", 5, 1, "", 10);
    fs.wait_for("evicted", |s| s["started"] == 10);
    fs.mdt(&["shutdown"]);
    fs.mdt(&["enable"]);
    fs.request("archive", 5, 1, "", 20);
    fs.wait_for("the coordinator was stopped", |s| s["started"] == 15);
    // The MDT restarts and forgets what it had sent; lcapd finds out, and drops it.
    let forgotten = fs.request("archive", 1, 1, "", 30);
    fs.wait_for("it was sent", |s| s["started"] == 16);
    // Lustre's limit passes.
    std::thread::sleep(Duration::from_secs(11).saturating_sub(since.elapsed()));
    assert_eq!(fs.summary()["timeouts"], 0, "they were kept alive");
    let tool = fs.copytool("m", &[]);
    fs.wait_for("all are done", done(16));
    assert!(tool.terminate());
    fs.mdt(&["failover"]);
    // The mount goes, and comes back.
    let before = lcapd.log().len();
    std::fs::rename(fs.mount(), fs.path("elsewhere")).unwrap();
    // By looking, or by a renewal that happens to be due.
    let signs = ["the mount is gone or another", "cannot register as copytool"];
    wait_until("it is noticed", || signs.iter().any(|sign| lcapd.log()[before..].contains(sign)));
    std::fs::rename(fs.path("elsewhere"), fs.mount()).unwrap();
    fs.request("restore", 5, 1, "", 1);
    let tool = fs.copytool("m", &[]);
    fs.wait_for("after the failover", done(21));
    assert!(fs.show().contains(&forgotten.to_string()));
    assert_clean(&fs, &lcapd);
    assert!(tool.terminate());
}

/// lcapd and movers are killed as the dice say; then everybody may finish.
fn campaign(seed: u64, rounds: u32) {
    let mut rng = Rng::new(seed);
    let mut fs = FileSystem::new(20_000);
    fs.options = QUICK.to_owned();
    let mut lcapd = fs.lcapd();
    let args: [&[&str]; 3] = [&["-d", "120"], &["-d", "60", "-n"], &["-d", "30"]];
    let mut tools: Vec<Option<Process>> =
        (0..3).map(|n| Some(fs.copytool(&format!("m{n}"), args[n]))).collect();
    let mut cookies = Vec::new();
    let mut cancelled = 0;
    let (mut lcapds, mut movers) = (0, 0);
    for round in 0..rounds {
        let oid = round * 20 + 1;
        let first = fs.request("archive", 12, 1, "tag=x", oid);
        cookies.extend(first..first + 12);
        std::thread::sleep(Duration::from_millis(rng.below(250)));
        match rng.below(5) {
            0 => {
                lcapd.kill();
                lcapds += 1;
                std::thread::sleep(Duration::from_millis(rng.below(300)));
                lcapd = fs.lcapd();
            }
            1 | 2 => {
                let at = usize::try_from(rng.below(3)).unwrap();
                if let Some(tool) = tools[at].take() {
                    tool.kill();
                    movers += 1;
                }
                std::thread::sleep(Duration::from_millis(rng.below(100)));
                tools[at] = Some(fs.copytool(&format!("m{at}"), args[at]));
            }
            3 => {
                // As a rule of what has just been asked for; now and then somebody dies at the same time.
                let n = usize::try_from(1 + rng.below(4)).unwrap();
                let recent = if rng.below(8) == 0 { cookies.len() as u64 } else { 16 };
                for _ in 0..n {
                    let back = rng.below(recent.min(cookies.len() as u64));
                    let at = cookies.len() - 1 - usize::try_from(back).unwrap();
                    fs.mdt(&["cancel", &cookies[at].to_string()]);
                    cancelled += 1;
                }
                match rng.below(4) {
                    0 => {
                        lcapd.kill();
                        lcapds += 1;
                        lcapd = fs.lcapd();
                    }
                    1 => {
                        let at = usize::try_from(rng.below(3)).unwrap();
                        if let Some(tool) = tools[at].take() {
                            tool.kill();
                            movers += 1;
                        }
                        tools[at] = Some(fs.copytool(&format!("m{at}"), args[at]));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let n = cookies.len() as u64;
    fs.wait_for(&format!("seed {seed}: all are over"), |s| s["succeed"] + s["canceled"] == n);
    assert_clean(&fs, &lcapd);
    let canceled = fs.summary()["canceled"];
    assert!(canceled <= cancelled);
    println!(
        "seed {seed}: {n} requests, {lcapds} kills of lcapd, {movers} of movers, {cancelled} cancels asked for, \
         {canceled} cancelled"
    );
    for line in fs.show().lines().filter(|line| line.contains("SUCCEED")) {
        let cookie: u64 = line.split(' ').next().unwrap().parse().unwrap();
        let at = u32::try_from(cookie - cookies[0]).unwrap();
        let oid = at / 12 * 20 + 1 + at % 12;
        assert_eq!(fs.archived(oid), fs.data(oid), "seed {seed}: {line}");
    }
}

#[test]
fn nothing_is_lost_when_lcapd_and_movers_are_killed() {
    let many = std::env::var("LCAP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let seed = std::env::var("LCAP_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    campaign(seed, many);
}

#[test]
fn a_mover_that_hangs_is_given_up_after_its_grace_time() {
    let mut fs = FileSystem::default();
    fs.options = QUICK.replace("60s", "1s");
    let lcapd = fs.lcapd();
    let hung = fs.copytool("hung", &["-d", "2000"]);
    fs.request("archive", 3, 1, "", 1);
    wait_begun(&fs, 3);
    hung.signal(Signal::STOP);
    let other = fs.copytool("other", &[]);
    fs.wait_for("another did them", done(3));
    hung.signal(Signal::CONT);
    // It comes back, and finds that they are over; it is of use again.
    other.kill();
    fs.request("archive", 3, 1, "", 10);
    fs.wait_for("it goes on", done(6));
    drop((hung, lcapd));
}

/// A client of the original's protocol.
struct Json(TcpStream);

impl Json {
    fn connect(port: u16) -> Self {
        let mut connected = None;
        wait_until(&format!("somebody listens on port {port}"), || {
            connected = TcpStream::connect(("127.0.0.1", port)).ok();
            connected.is_some()
        });
        let stream = connected.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> serde_json::Value {
        let mut bytes = Vec::new();
        let mut byte = [0];
        loop {
            assert_eq!(self.0.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&bytes));
            bytes.push(byte[0]);
            if byte[0] == b'}'
                && let Ok(value) = serde_json::from_slice(&bytes)
            {
                return value;
            }
        }
    }

    fn ask(&mut self, text: &str) -> serde_json::Value {
        self.say(text);
        self.hear()
    }
}

#[test]
fn the_json_port_cannot_be_held_up_and_loses_nothing() {
    let port = free_port();
    let mut fs = FileSystem::default();
    fs.options = format!("{QUICK}json_port = \"127.0.0.1:{port}\"\n");
    let lcapd = fs.lcapd();
    let mut mover = Json::connect(port);
    assert_eq!(mover.ask(r#"{"command":"ehlo","id":"m1"}"#)["status"], serde_json::Value::Null);
    // Those that stall: half an object, a token without an end, a newline, replies that nobody reads.
    let mut stalls: Vec<Json> = (0..3).map(|_| Json::connect(port)).collect();
    for (stall, text) in stalls.iter_mut().zip(["{\"command\":", "{\"x\":nonsens", "\n\n"]) {
        stall.say(text);
    }
    let mut deaf = Json::connect(port);
    deaf.say(&r#"{"command":"status","verbose":6}"#.repeat(2000));
    let mut leaver = Json::connect(port);
    leaver.say(&r#"{"command":"status","verbose":6}"#.repeat(200));
    drop(leaver); // B9
    mover.say(r#"{"command":"recv"}"#);
    let cookie = fs.request("archive", 1, 1, "tag=foo", 1);
    let work = mover.hear();
    let item = &work["hsm_action_list"]["list"][0];
    assert_eq!((item["hai_cookie"].as_u64(), &item["hai_data"]), (Some(cookie), &"tag=foo".into()));
    // Confirmed means written: after a kill it is there, with who runs what.
    let queued = r#"{"command":"queue","hsm_action_items":[{"hai_action":20,"hai_fid":{"f_seq":8589935616,"f_oid":77,"f_ver":0},"hai_dfid":{"f_seq":8589935616,"f_oid":77,"f_ver":0},"hai_extent_offset":0,"hai_extent_length":-1,"hai_cookie":4000000001,"hai_gid":0,"hai_data":"","hal_archive_id":3}]}"#;
    let mut operator = Json::connect(port);
    assert_eq!(operator.ask(queued)["enqueued"], 1);
    lcapd.kill();
    let lcapd = fs.lcapd();
    let mut operator = Json::connect(port);
    let status = operator.ask(r#"{"command":"status"}"#);
    assert_eq!(status["running_archive"], 1, "{status}\n{}", lcapd.log());
    assert_eq!(status["clients"][1]["client_id"], "m1");
    assert_eq!(status["clients"][1]["status"], "disconnected");
    // All of what nobody reads is read after all.
    drop((stalls, deaf));
    let mut again = Json::connect(port);
    let held = item.to_string();
    let hello = format!(r#"{{"command":"ehlo","id":"m1","hai_list":[{held}]}}"#);
    assert_eq!(again.ask(&hello)["status"], serde_json::Value::Null);
    let done = format!(
        r#"{{"command":"done","hai_cookie":{cookie},"hai_dfid":{},"status":0}}"#,
        item["hai_dfid"]
    );
    assert_eq!(again.ask(&done)["status"], serde_json::Value::Null);
    let status = operator.ask(r#"{"command":"status"}"#);
    assert_eq!(status["running_archive"], serde_json::Value::Null, "{status}");
    // Garbage ends the connection, and nothing else.
    let mut bad = Json::connect(port);
    bad.say("nonsense");
    assert_eq!(bad.0.read(&mut [0; 10]).unwrap(), 0);
    assert!(lcapd.terminate());
}

#[test]
fn what_the_coordinator_does_makes_the_mdts_lists_due() {
    const MDT: &str = "testfs0-MDT0000";
    let mut fs = FileSystem::default();
    let lists = Lists::new(&fs.path("lists"));
    fs.server = "hsm_audit_interval = \"1h\"".to_owned();
    fs.options = format!(
        "{QUICK}[[mdt]]\nname = \"{MDT}\"\nsource = \"{}\"\n[[stream]]\nname = \"hsm\"\n\
         kind = \"hsm\"\ndelivery = \"broadcast\"\npublish = \"ipc://{}\"\n",
        lists.source(),
        fs.path("hsm").display()
    );
    lists.write(MDT, "");
    let lcapd = fs.lcapd();
    wait_until("the list is read", || lcapd.log().contains("HSM actions are read"));
    let control = format!("ipc://{}", fs.path("control").display());
    let events = Builder::new(MDT.parse().unwrap()).servers(&control).stream("hsm");
    let mut events = events.timeout(PATIENCE).follow(true).connect().unwrap();
    let mut next = || {
        let event = events.recv_hsm().unwrap().expect("it follows");
        (event.kind.name(), event.fields.status.to_string())
    };
    // Nobody looks at the list for an hour, unless something happens.
    let show = |status| lists.write(MDT, &text(&[(1, Action::archive(1).status(status))].into()));
    show("STARTED");
    fs.request("archive", 1, 1, "tag=foo", 1);
    assert_eq!(next(), ("NEW", "STARTED".to_owned()));
    show("SUCCEED");
    let _tool = fs.copytool("mover", &[]);
    assert_eq!(next(), ("UPDATE", "SUCCEED".to_owned()));
}
