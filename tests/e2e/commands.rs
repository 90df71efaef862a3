//! The command-line tool and the daemon's own command line: what they answer, and exit with.

use std::fs;
use std::process::Command;

use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_tests::programs::program;
use rustix::process::Signal;

const MDT: &str = "lustre-MDT0000";

/// A daemon with one simulated MDT of so many records.
fn simulated(records: u64) -> Daemon {
    let daemon = Setup::new()
        .server("clear_interval = \"10ms\"")
        .mdt(MDT, &format!("sim:records={records},seed=3"))
        .broadcast("changelog", "")
        .queue("work", "")
        .start();
    let mut control = daemon.control();
    wait_until("all records are read", || control.status().unwrap().mdts[0].read_index == records);
    daemon
}

/// Runs `lcap` and returns its exit code and what it wrote.
fn run(daemon: &Daemon, args: &[&str]) -> (i32, String, String) {
    let output = daemon.lcap(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn done(daemon: &Daemon, args: &[&str]) -> String {
    let (code, out, errors) = run(daemon, args);
    assert_eq!((code, errors.as_str()), (0, ""), "{args:?}");
    out
}

/// The indexes of `lcap changelog --json`. (Names may hold newlines, so text has no lines.)
fn indexes(json: &[u8]) -> Vec<u64> {
    let lines = serde_json::Deserializer::from_slice(json).into_iter::<serde_json::Value>();
    lines.map(|line| line.unwrap()["index"].as_u64().unwrap()).collect()
}

#[test]
fn a_reader_is_registered_acknowledges_and_goes() {
    let daemon = simulated(100);
    done(&daemon, &["reader", "register", "changelog", "audit", "--from", "oldest"]);
    let listed = || -> serde_json::Value {
        serde_json::from_str(&done(&daemon, &["reader", "list", "--json"])).unwrap()
    };
    assert_eq!(listed()[0]["name"], "audit");
    assert_eq!(listed()[0]["watermark"][MDT], 0);
    let read = |more: &[&str]| {
        let args = [&["changelog", "--json", "--reader", "audit"], more, &[MDT]].concat();
        indexes(done(&daemon, &args).as_bytes())
    };
    assert_eq!(read(&[]), (1..=100).collect::<Vec<_>>());
    assert_eq!(read(&[]).len(), 100, "reading acknowledges nothing");
    // The queue has no member, so it holds everything on the MDT.
    done(&daemon, &["clear", MDT, "audit", "60"]);
    assert_eq!(listed()[0]["watermark"][MDT], 60);
    assert_eq!(read(&[]), (61..=100).collect::<Vec<_>>());
    done(&daemon, &["clear", "--stream", "changelog", MDT, "audit", "0"]);
    assert_eq!(listed()[0]["watermark"][MDT], 100);
    assert_eq!(daemon.cleared(MDT), 0, "the queue has not had it");
    done(&daemon, &["reader", "deregister", "changelog", "audit"]);
    assert_eq!(listed(), serde_json::json!([]));
}

#[test]
fn mistakes_are_told_with_exit_code_1_and_usage_errors_with_2() {
    let daemon = simulated(100);
    done(&daemon, &["reader", "register", "changelog", "audit", "--from", "oldest"]);
    done(&daemon, &["clear", MDT, "audit", "50"]);
    let no_mdt = "lustre-MDT0009";
    let cases: [(&[&str], i32, &str); 14] = [
        (&["changelog", no_mdt], 1, "is not served here"),
        (&["changelog", "--stream", "nope", MDT], 1, "there is no stream nope"),
        (&["changelog", "--reader", "nope", MDT], 1, "no reader nope"),
        (&["changelog", "not an MDT"], 2, "not an MDT"),
        (&["changelog"], 2, "Usage"),
        (&["dance"], 2, "dance"),
        (&["clear", MDT, "nope", "1"], 1, "no stream has a reader nope"),
        (&["clear", no_mdt, "audit", "1"], 1, "is not served here"),
        (&["clear", MDT, "audit", "101"], 1, "record out of range"),
        (&["clear", MDT, "audit", "49"], 1, "below the watermark"),
        (&["reader", "register", "changelog", "audit"], 1, "has a reader audit already"),
        (&["reader", "register", "work", "audit"], 1, "is a queue"),
        (&["reader", "register", "changelog", "x", "--mask", "DANCE"], 1, "record type DANCE"),
        (&["reader", "deregister", "changelog", "nope"], 1, "no reader nope"),
    ];
    for (args, want, why) in cases {
        let (code, _, errors) = run(&daemon, args);
        assert_eq!(code, want, "{args:?}: {errors}");
        assert!(errors.contains(why), "{args:?}: {errors}");
    }
    let mut control = daemon.control();
    let mut errno = |upto| control.clear(None, MDT, "audit", upto).unwrap_err().errno();
    const ENOENT: i32 = 2;
    const EINVAL: i32 = 22;
    assert_eq!(errno(101), EINVAL, "beyond what exists");
    assert_eq!(errno(49), ENOENT, "below the watermark");
    control.clear(None, MDT, "audit", 50).unwrap(); // the same again is welcome
}

#[test]
fn top_prints_one_picture_without_a_terminal() {
    let daemon = simulated(100);
    done(&daemon, &["reader", "register", "changelog", "audit", "--from", "oldest"]);
    let picture = done(&daemon, &["top", "--once", "--interval", "0.25"]);
    assert!(picture.starts_with(" lcapd ") && picture.contains("1 MDT  1 client"), "{picture}");
    for row in [MDT, "changelog ", "work ", "audit "] {
        assert!(picture.contains(&format!("\n{row}")), "{row}:\n{picture}");
    }
    let (code, _, errors) = run(&daemon, &["top"]);
    assert_eq!(code, 1);
    assert!(errors.contains("--once"), "{errors}");
}

#[test]
fn without_a_daemon_there_is_an_error_in_time() {
    let mut command = Command::new(program("lcap"));
    command.args(["status"]).env("LCAP_REC_URI", "ipc:///nonexistent/control");
    let output = command.env("LCAP_TIMEOUT_MS", "200").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("is lcapd running there, and if it has keys"), "{errors}");
}

#[test]
fn status_shows_where_everything_stands() {
    let daemon = simulated(100);
    let status: serde_json::Value =
        serde_json::from_str(&done(&daemon, &["status", "--json"])).unwrap();
    assert_eq!(status["mdts"][0]["name"], MDT);
    assert_eq!(status["mdts"][0]["read_index"], 100);
    assert_eq!(status["mdts"][0]["cleared_index"], 0);
    assert_eq!(status["mdts"][0]["lag_records"], 100);
    assert_eq!(status["streams"][0]["delivery"], "broadcast");
    assert_eq!(status["streams"][1]["delivery"], "queue");
    let text = done(&daemon, &["status"]);
    assert!(text.contains(MDT) && text.contains("stream work (queue)"), "{text}");
}

#[test]
fn a_queue_gives_each_record_to_one_member() {
    let daemon = simulated(20_000);
    let readers: Vec<_> = (0..4)
        .map(|_| daemon.lcap(&["changelog", "--json", "--stream", "work", MDT]))
        .map(|mut command| std::thread::spawn(move || command.output().unwrap()))
        .collect();
    let mut all = Vec::new();
    for reader in readers {
        let output = reader.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        all.extend(indexes(&output.stdout));
    }
    // Nobody acknowledged, so what one member had may come again to one that stayed longer.
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (1..=20_000).collect::<Vec<_>>());
    assert_eq!(daemon.cleared(MDT), 0, "nothing was acknowledged");
}

#[test]
fn check_names_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lcapd.toml");
    let good = format!(
        "[server]\nstate_dir = \"{}\"\n[[mdt]]\nname = \"{MDT}\"\nsource = \"sim:\"\n\
         [[stream]]\nname = \"changelog\"\ndelivery = \"broadcast\"\npublish = \"tcp://127.0.0.1:*\"\n",
        dir.path().display()
    );
    let cases = [
        ("", "", 0, "ok"),
        ("state_dir", "stat_dir", 1, "lcapd.toml:2: stat_dir"),
        ("sim:", "sim:speed=1", 1, "lcapd.toml:5: mdt.source"),
        ("broadcast", "anycast", 1, "lcapd.toml:8: delivery"),
        ("127.0.0.1", "0.0.0.0", 1, "lcapd.toml:9: stream.publish"),
        ("name = \"changelog\"", "name = \"c\"\npolicies = [{ module = \"nope\" }]", 1, "nope"),
    ];
    for (old, new, code, want) in cases {
        fs::write(&path, if old.is_empty() { good.clone() } else { good.replace(old, new) })
            .unwrap();
        let output = Command::new(program("lcapd")).arg("--check").arg("-c").arg(&path).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.code(), Some(code), "{new}: {text}");
        assert!(text.contains(want), "{new}: {text}");
    }
}

#[test]
fn sigterm_ends_it_with_0_and_what_was_cleared_stays_cleared() {
    let mut daemon = simulated(1000);
    let mut control = daemon.control();
    control.register("changelog", "audit", Vec::new(), lcap_wire::control::From::Oldest).unwrap();
    let mut member = daemon.client(MDT, "work").connect().unwrap();
    while let Some(record) = member.recv().unwrap() {
        let index = record.index();
        member.clear(index).unwrap();
    }
    member.close();
    control.clear(None, MDT, "audit", 700).unwrap();
    wait_until("700 are cleared", || daemon.cleared(MDT) == 700);
    assert_eq!(daemon.stop().code(), Some(0));
    daemon.start();
    let mut control = daemon.control();
    assert_eq!(control.readers(None).unwrap()[0].watermark[MDT], 700);
    let mut client = daemon.client(MDT, "changelog").reader(Some("audit")).connect().unwrap();
    for want in 701..=1000 {
        assert_eq!(client.recv().unwrap().unwrap().index().get(), want);
    }
    assert!(client.recv().unwrap().is_none());
    assert_eq!(daemon.cleared(MDT), 700);
    daemon.signal(Signal::INT);
    daemon.kill();
}
