//! Keys, rights, and what becomes of those that have none.

use std::time::Duration;

use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_tests::impostors::{record_registration, replay};
use lcap_tests::secured::Secured;
use lcap_wire::control::From;
use lcapclient::{ClientError, Control, KeyPair, Keys};
use rustix::process::Signal;

const MDT: &str = "lustre-MDT0000";
/// For answers that never come.
const SHORT: Duration = Duration::from_millis(700);

fn start(source: &str) -> (Daemon, Secured) {
    let (setup, secured) = Setup::new().on_tcp().server("http = \"127.0.0.1:0\"").secured();
    secured.allow("audit", "read = [\"changelog\"]\nreaders = [\"audit\"]");
    secured.allow("worker", "read = [\"work\"]");
    let setup = setup.mdt(MDT, source).broadcast("changelog", "").queue("work", "");
    (setup.start(), secured)
}

fn refused(daemon: &Daemon, reason: &str) -> f64 {
    let sample = format!("lcap_requests_refused_total{{reason=\"{reason}\"}}");
    daemon.figure(&sample).unwrap()
}

fn errno<T>(result: Result<T, ClientError>) -> i32 {
    result.err().map_or(0, |error| error.errno())
}

#[test]
fn each_client_may_do_what_the_list_says() {
    let (daemon, secured) = start("sim:records=2000");
    let mut admin = daemon.control();
    for reader in ["audit", "robinhood"] {
        admin.register("changelog", reader, Vec::new(), From::Oldest).unwrap();
    }
    let mut audit = daemon.client_of(&secured, "audit", MDT, "changelog");
    audit = audit.reader(Some("audit")).follow(true);
    let mut audit = audit.connect().unwrap();
    for expected in 1..=2000 {
        let index = audit.recv().unwrap().unwrap().index();
        assert_eq!(index.get(), expected);
        audit.clear(index).unwrap();
    }
    let mut worker = daemon.client_of(&secured, "worker", MDT, "work").follow(true);
    worker = worker.patient(false);
    assert!(worker.connect().unwrap().recv().unwrap().is_some(), "a queue, over CURVE");

    // Names of others, streams of others, and what only administrators may.
    let eacces = rustix::io::Errno::ACCESS.raw_os_error();
    let cases = [("audit", "changelog", Some("robinhood")), ("worker", "changelog", None)];
    for (who, stream, reader) in cases {
        let client = daemon.client_of(&secured, who, MDT, stream).reader(reader).patient(false);
        let outcome = client.connect().and_then(|mut client| client.recv().map(drop));
        assert_eq!(errno(outcome), eacces, "{who} {stream} {reader:?}");
    }
    let mut control = daemon.control_of(&secured, "audit", Duration::from_secs(60));
    assert_eq!(errno(control.clear(None, MDT, "robinhood", 10)), eacces);
    assert_eq!(errno(control.deregister("changelog", "robinhood")), eacces);
    assert_eq!(errno(control.clear(None, MDT, "audit", 2000)), 0);
    assert!(refused(&daemon, "denied") >= 4.0);

    // Keys that are on no list, that belong to another server, and none at all.
    secured.stranger("mallory");
    let endpoint = daemon.setup().control_endpoint();
    let elsewhere = KeyPair::generate().unwrap().public.to_z85();
    let wrong = Keys::new(&elsewhere, Some(&secured.key_file("audit"))).unwrap();
    for keys in [Some(secured.keys("mallory")), Some(wrong), None] {
        let mut control = Control::new(endpoint, keys, SHORT).unwrap();
        assert!(matches!(control.status(), Err(ClientError::Timeout { .. })));
    }
    wait_until("all of them are counted", || {
        refused(&daemon, "unknown_key") >= 1.0 && refused(&daemon, "handshake") >= 2.0
    });
    assert_eq!(admin.readers(None).unwrap().len(), 2, "nothing has changed");
    let secret = std::fs::read_to_string(secured.key_file("audit")).unwrap();
    let secret = secret.lines().find_map(|line| line.strip_prefix("secret-key = ")).unwrap();
    assert!(!daemon.log().contains(secret.trim_matches('"')));
}

/// A client that is taken off the list gets no record more; the others miss none.
#[test]
fn revocation_ends_the_session() {
    let (daemon, secured) = start("sim:rate=2000");
    secured.allow("other", "read = [\"changelog\"]\nreaders = [\"other\"]");
    daemon.signal(Signal::HUP);
    let mut admin = daemon.control();
    for reader in ["audit", "other"] {
        admin.register("changelog", reader, Vec::new(), From::Oldest).unwrap();
    }
    let connect = |name: &str| {
        let client = daemon.client_of(&secured, name, MDT, "changelog").reader(Some(name));
        client.follow(true).connect().unwrap()
    };
    wait_until("the new list is in use", || daemon.log().contains("list of clients read again"));
    let (mut audit, mut other) = (connect("audit"), connect("other"));
    let mut next = 1;
    let mut read_on = |n: u64| {
        for _ in 0..n {
            let index = other.recv().unwrap().unwrap().index();
            assert_eq!(index.get(), next, "every record once, in order");
            other.clear(index).unwrap();
            next += 1;
        }
    };
    read_on(1000);
    for _ in 0..1000 {
        audit.recv().unwrap().unwrap();
    }
    secured.forbid("audit");
    daemon.signal(Signal::HUP);
    let error = loop {
        match audit.recv() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), rustix::io::Errno::ACCESS.raw_os_error(), "{error}");
    wait_until("its connection is cut", || {
        daemon.log().contains("its connection is cut stream=\"changelog\" client=\"audit\"")
    });
    assert_eq!(daemon.log().matches("connection is cut").count(), 1, "and no other");
    read_on(3000);
    wait_until("its session is over", || {
        daemon.figure("lcap_reader_sessions{stream=\"changelog\",reader=\"audit\"}") == Some(0.0)
    });

    // A list that is wrong changes nothing.
    std::fs::write(secured.list(), "[[client]]\nname = \"other\"\nkey = \"short\"\n").unwrap();
    daemon.signal(Signal::HUP);
    wait_until("the log tells", || daemon.log().contains("not everything was read again"));
    read_on(2000);
}

/// An administrator's registration, recorded from the first byte on and said again, as it was and with any bit
/// of it turned, changes nothing; each is counted, and the log says where it came from.
#[test]
fn recorded_handshakes_are_refused() {
    let (daemon, secured) = start("sim:records=10");
    let recorded = record_registration(&daemon, &secured);
    assert!(recorded.len() > 64 + 200 + 200, "greeting, HELLO, INITIATE and a request");
    assert!(!recorded.windows(5).any(|bytes| bytes == b"ghost"), "it is encrypted");
    let before = refused(&daemon, "handshake");
    let address = daemon.setup().control_endpoint().trim_start_matches("tcp://").to_owned();
    for nth in 0..20 {
        assert!(replay(&address, &recorded, nth % 2 == 0), "{nth}");
    }
    wait_until("all of them are counted", || refused(&daemon, "handshake") >= before + 20.0);
    for nth in 0..40 {
        let mut bytes = recorded.clone();
        let at = 64 + nth * (bytes.len() - 64) / 40;
        bytes[at] ^= 1 << (nth % 8);
        assert!(replay(&address, &bytes, nth % 2 == 0), "{nth}");
    }
    assert!(daemon.control().readers(None).unwrap().is_empty(), "no ghost");
    let log = daemon.log();
    assert!(log.contains("a handshake at tcp://127.0.0.1:"), "{log}");
    // Who has hung up before anybody looked is not known any more.
    assert!(log.contains("client=\"127.0.0.1\"") || log.contains("client=\"?\""), "{log}");
}

#[test]
fn keygen_makes_files_that_only_their_owner_reads() {
    use std::os::unix::fs::PermissionsExt as _;

    let (daemon, secured) = start("sim:records=10");
    let file = daemon.dir().join("new.key");
    let file = file.to_str().unwrap();
    let output = daemon.lcap(&["keygen", file]).output().unwrap();
    assert!(output.status.success());
    let public = String::from_utf8(output.stdout).unwrap();
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!((mode & 0o777, public.trim().len()), (0o600, 40));
    let again = daemon.lcap(&["keygen", file]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "an existing file is not replaced");
    let shown = daemon.lcap(&["keygen", "--public", file]).output().unwrap();
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), public);

    // The environment's keys are those of `lcap`; a readable file is refused.
    let status = |key: &std::path::Path| {
        let mut lcap = daemon.lcap(&["status"]);
        lcap.env("LCAP_SERVER_KEY", secured.server_key()).env("LCAP_CLIENT_KEY_FILE", key);
        lcap.output().unwrap()
    };
    let audit = secured.key_file("audit");
    assert!(status(&audit).status.success());
    std::fs::set_permissions(&audit, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = status(&audit);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mode 0644"));
}
