//! Movers with keys: unmodified copytools under the preload library, and those that use the API.

use std::ffi::OsStr;
use std::time::Duration;

use lcap_tests::daemon::{PATIENCE, free_port, wait_until_or};
use lcap_tests::hsm::{FileSystem, Process};
use lcap_tests::secured::Secured;
use lcapclient::KeyPair;
use lcapclient::mover::MoverBuilder;
use rustix::io::Errno;
use rustix::process::Signal;

/// A file system whose lcapd wants keys, and on its list `m1` and `m2` (movers), `bound` (the mover `own`), and
/// `reader` (none).
fn secured() -> (FileSystem, Secured) {
    let mut fs = FileSystem::default();
    fs.movers = format!("tcp://127.0.0.1:{}", free_port());
    let dir = fs.path("keys");
    std::fs::create_dir(&dir).unwrap();
    let secured = Secured::new(&dir);
    for mover in ["m1", "m2"] {
        secured.allow(mover, "mover = true");
    }
    secured.allow("bound", "mover = [\"own\"]");
    secured.allow("reader", "read = [\"changelog\"]");
    secured.stranger("stranger");
    fs.options = format!(
        "heartbeat = \"200ms\"\ngrace = \"1s\"\nkeep_alive = \"250ms\"\n{}",
        secured.config()
    );
    (fs, secured)
}

fn contains(log: impl Fn() -> String, text: &str) {
    wait_until_or(&format!("`{text}` in the log"), || {
        let log = log();
        if log.contains(text) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn movers_need_the_right_keys() {
    let (mut fs, secured) = secured();
    let lcapd = fs.lcapd();
    let other = KeyPair::generate().unwrap().public.to_z85();
    let right = secured.server_key().to_owned();
    let file = |name: &str| secured.key_file(name);
    let not_a_mover = "this client's key is not that of a mover";
    let other_server = "LCAP_SERVER_KEY) is another lcapd's";
    // Who, with which keys, and what it hears.
    let with = |server: &str, of: &str| Some((server.to_owned(), file(of)));
    let cases = [
        ("reader", with(&right, "reader"), not_a_mover, Errno::ACCESS),
        ("stranger", with(&right, "stranger"), not_a_mover, Errno::ACCESS),
        ("misled", with(&other, "m1"), other_server, Errno::TIMEDOUT),
        ("keyless", None, "it wants keys", Errno::TIMEDOUT),
    ];
    for (name, keys, says, errno) in cases {
        let mut environment = vec![("LCAP_MOVER_TIMEOUT_MS", OsStr::new("2000"))];
        let mut builder = MoverBuilder::new().servers(&fs.movers).name(name);
        builder = builder.patience(Duration::from_secs(2));
        if let Some((server, file)) = &keys {
            environment.push(("LCAP_SERVER_KEY", OsStr::new(server)));
            environment.push(("LCAP_CLIENT_KEY_FILE", file.as_os_str()));
            builder = builder.keys(server, Some(file.clone()));
        }
        let error = builder.connect().unwrap_err();
        assert_eq!(error.errno(), errno.raw_os_error(), "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        let (code, log) = fs.refusing_mover(name, 1, &environment).wait();
        let told = std::io::Error::from(errno).to_string();
        let told = told.split(" (os").next().unwrap();
        assert!(code == Some(1) && log.contains(told), "{name}, C: {code:?} {log}");
        let (code, log) = fs.copytool_with(name, &[], &environment).wait();
        assert!(code == Some(1) && log.contains(says), "{name}, preload: {code:?} {log}");
    }
    assert!(!lcapd.log().contains("mover is there"), "{}", lcapd.log());

    let (m1, m2) = (file("m1"), file("m2"));
    let with =
        |file| [("LCAP_SERVER_KEY", OsStr::new(right.as_str())), ("LCAP_CLIENT_KEY_FILE", file)];
    fs.request("archive", 20, 1, "tag=foo", 1);
    let tool = fs.copytool_with("tool", &[], &with(m1.as_os_str()));
    fs.wait_for("archived over CURVE", |s| s["succeed"] == 20);
    assert!(tool.terminate());
    // The mover in C refuses, and lcapd ends the requests with Lustre.
    fs.request("archive", 3, 1, "", 100);
    let (code, log) = fs.refusing_mover("native", 3, &with(m2.as_os_str())).wait();
    assert_eq!(code, Some(0), "{log}");
    fs.wait_for("they have failed", |s| s["failed"] == 3);
    fs.request("archive", 1, 1, "tag=foo", 200);
    let native = MoverBuilder::new().servers(&fs.movers).name("rust").keys(&right, Some(m2));
    let native = native.connect().unwrap();
    let action = native.recv(None).unwrap().unwrap();
    assert_eq!((action.fid.oid, &*action.data), (200, &b"tag=foo"[..]));
    native.refused(action.key(), Errno::IO.raw_os_error());
    fs.wait_for("it has failed", |s| s["failed"] == 4);
    // A key that is bound to a name is of no use for another, not even one whose mover is away.
    drop(native);
    let bound = |name: &str| {
        let builder = MoverBuilder::new().servers(&fs.movers).name(name).patience(PATIENCE);
        builder.keys(&right, Some(file("bound"))).connect()
    };
    let error = bound("rust").unwrap_err();
    assert_eq!(error.errno(), Errno::ACCESS.raw_os_error(), "{error}");
    assert!(error.to_string().contains("client bound may not be the mover rust"), "{error}");
    bound("own").unwrap();
}

#[test]
fn a_mover_whose_key_is_taken_off_the_list_gets_nothing_more() {
    let (mut fs, secured) = secured();
    let lcapd = fs.lcapd();
    let key = secured.server_key().to_owned();
    let start = |fs: &mut FileSystem, name: &str, args: &[&str]| -> Process {
        let file = secured.key_file(name);
        let keys = [
            ("LCAP_SERVER_KEY", OsStr::new(key.as_str())),
            ("LCAP_CLIENT_KEY_FILE", file.as_os_str()),
        ];
        fs.copytool_with(name, args, &keys)
    };
    let first = start(&mut fs, "m1", &["-d", "600000"]);
    fs.request("archive", 2, 1, "", 1);
    wait_until_or("it has begun", || {
        let show = fs.show();
        if show.matches("STARTED 0 1").count() == 2 { Ok(()) } else { Err(show) }
    });
    let list = std::fs::read_to_string(secured.list()).unwrap();
    secured.forbid("m1");
    lcapd.signal(Signal::HUP);
    contains(|| lcapd.log(), "its client may not be a mover any longer");
    contains(|| first.log(), "this client's key is not that of a mover");
    // It is there, and is given nothing; the other does all.
    let second = start(&mut fs, "m2", &[]);
    fs.request("archive", 10, 1, "", 10);
    fs.wait_for("the other did these", |s| s["succeed"] >= 10);
    assert_eq!(lcapd.log().matches("mover is there mover=\"m1\"").count(), 1, "{}", lcapd.log());
    // Nobody can stop what it runs; when that is dead, the grace time has given it to the other.
    first.kill();
    fs.wait_for("all are done", |s| s["succeed"] == 12);
    assert!(second.terminate());
    // On the list again, it is welcome.
    std::fs::write(secured.list(), list).unwrap();
    lcapd.signal(Signal::HUP);
    let first = start(&mut fs, "m1", &[]);
    fs.request("archive", 1, 1, "", 30);
    fs.wait_for("it is of use again", |s| s["succeed"] == 13);
    assert!(first.terminate());
}
