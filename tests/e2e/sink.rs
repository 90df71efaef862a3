//! Streams into a real Redis.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lcap_tests::daemon::{Daemon, Setup, free_port, wait_until};
use lcap_tests::redis::{RedisServer, StreamEntry};
use rustix::process::Signal;

const MDT: &str = "lustre-MDT0000";
const KEY: &str = "lcap:changelog:lustre-MDT0000";

fn changelog_setup(redis: &RedisServer, source: &str, more: &str) -> Setup {
    let sink = format!("[[sink]]\nstream = \"changelog\"\nredis = \"{}\"\n{more}", redis.url(0));
    Setup::new().mdt(MDT, source).broadcast("changelog", "").more(&sink)
}

fn n_entries(redis: &RedisServer, key: &str) -> usize {
    let answer = redis.link(0).and_then(|mut link| link.call(&[b"XLEN", key.as_bytes()]).ok());
    let n = answer.as_ref().and_then(lcapd::sink::target::as_number);
    n.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

fn cleared(daemon: &Daemon) -> u64 {
    daemon.control().status().unwrap().mdts[0].cleared_index
}

fn indexes(entries: &[StreamEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.number("index").unwrap()).collect()
}

#[test]
fn records_come_as_fields_and_are_cleared_once_redis_has_them() {
    let redis = RedisServer::start();
    let more = "groups = [\"audit\"]";
    let daemon = changelog_setup(&redis, "sim:records=5000,seed=1", more).start();
    wait_until("all records are in Redis", || n_entries(&redis, KEY) == 5000);
    wait_until("they are cleared", || cleared(&daemon) == 5000);
    let entries = redis.entries(0, KEY);
    assert_eq!(indexes(&entries), (1..=5000).collect::<Vec<_>>());
    let types: BTreeSet<&str> = entries.iter().map(|entry| entry.text("type").unwrap()).collect();
    assert!(types.contains("CREAT") && types.contains("RENME"), "{types:?}");
    for entry in &entries {
        assert_eq!(entry.text("mdt"), Some(MDT));
        // A record of a file's attributes names no directory.
        let parent = entry.text("pfid").unwrap();
        assert!(parent.starts_with("[0x") || parent == "[0:0x0:0x0]", "{entry:?}");
        assert!(entry.text("time").unwrap().ends_with('Z'), "{entry:?}");
    }
    // The group was there before the first entry.
    let mut link = redis.link(0).unwrap();
    let read: &[&[u8]] = &[b"XREADGROUP", b"GROUP", b"audit", b"me", b"COUNT", b"1", b"STREAMS"];
    let answer = link.call(&[read, &[KEY.as_bytes(), b">"]].concat()).unwrap();
    assert!(format!("{answer:?}").contains("1"), "{answer:?}");
    let status = daemon.control().status().unwrap();
    assert!(format!("{status:?}").contains("sink:redis"), "{status:?}");
}

#[test]
fn nothing_is_missing_or_doubled_whoever_is_killed() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let source = "sim:records=30000,seed=2";
    let mut daemon = changelog_setup(&redis, source, "").start();
    for at in [2000, 8000, 14_000] {
        wait_until("some records are in Redis", || n_entries(&redis, KEY) >= at);
        redis.kill();
        redis.restart();
        wait_until("some more", || n_entries(&redis, KEY) >= at + 3000);
        daemon.kill();
        daemon.start();
    }
    wait_until("more than 23000", || n_entries(&redis, KEY) >= 23_000);
    redis.signal(Signal::STOP);
    daemon.kill();
    daemon.start();
    redis.signal(Signal::CONT);
    wait_until("all records are in Redis", || n_entries(&redis, KEY) >= 30_000);
    wait_until("they are cleared", || cleared(&daemon) == 30_000);
    assert_eq!(indexes(&redis.entries(0, KEY)), (1..=30_000).collect::<Vec<_>>());
}

#[test]
fn a_redis_that_refuses_keeps_the_records_on_the_mdt() {
    let redis = RedisServer::with(&["--requirepass", "right"]);
    let password = redis.dir().join("password");
    std::fs::write(&password, "wrong\n").unwrap();
    let more = format!("password_file = \"{}\"", password.display());
    let mut daemon = changelog_setup(&redis, "sim:records=100,seed=3", &more).start();
    wait_until("the refusal is told", || daemon.log().contains("sink interrupted"));
    assert!(daemon.log().contains("authentication failed"), "{}", daemon.log());
    assert_eq!(cleared(&daemon), 0);
    std::fs::write(&password, "right\n").unwrap();
    daemon.stop();
    daemon.start();
    wait_until("they are cleared", || cleared(&daemon) == 100);
}

/// A certificate authority and a server's certificate of it, as `NAME.crt` and `NAME-server.crt`.
fn certificates(dir: &Path, name: &str) {
    let openssl = |args: &str| {
        let words = args.split_whitespace().map(|word| word.replace("NAME", name));
        let output = Command::new("openssl").args(words).current_dir(dir).output();
        let output = output.expect("openssl is installed (packaging/setup.sh test)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=NAME -keyout NAME.key -out NAME.crt"));
    openssl(&format!("req {key} -subj /CN=server -keyout NAME-server.key -out NAME.csr"));
    openssl(
        "x509 -req -in NAME.csr -CA NAME.crt -CAkey NAME.key -CAcreateserial -days 2 \
         -extfile names -out NAME-server.crt",
    );
}

#[test]
fn tls_is_spoken_with_who_the_authority_knows_and_with_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), "right");
    certificates(dir.path(), "wrong");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port().to_string();
    let (cert, key, ca) = (file("right-server.crt"), file("right-server.key"), file("right.crt"));
    let redis = RedisServer::with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
        "--user",
        "lcap",
        "on",
        ">secret",
        "~*",
        "+@all",
    ]);
    let trusted = dir.path().join("trusted.crt");
    std::fs::copy(file("wrong.crt"), &trusted).unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "guessed\n").unwrap();
    let sink = format!(
        "[[sink]]\nstream = \"changelog\"\nredis = \"rediss://lcap@127.0.0.1:{port}/0\"\n\
         ca_file = \"{}\"\npassword_file = \"{}\"",
        trusted.display(),
        password.display()
    );
    let setup = Setup::new().mdt(MDT, "sim:records=100,seed=4").broadcast("changelog", "");
    let mut daemon = setup.more(&sink).start();
    wait_until("the certificate is refused", || daemon.log().contains("sink interrupted"));
    assert_eq!(n_entries(&redis, KEY), 0);
    assert_eq!(cleared(&daemon), 0);
    daemon.stop();
    std::fs::copy(&ca, &trusted).unwrap();
    daemon.start();
    wait_until("the password is refused", || daemon.log().contains("authentication failed"));
    assert_eq!(n_entries(&redis, KEY), 0);
    daemon.stop();
    std::fs::write(&password, "secret\n").unwrap();
    daemon.start();
    wait_until("all records are in Redis", || n_entries(&redis, KEY) == 100);
}
