//! An older release's state, clients and messages, as they were recorded.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use lcap_tests::daemon::Setup;
use lcap_wire::control::{ServerMessage, parse_server_message};
use lcap_wire::{Header, Kind};
use serde_json::Value;

const MDT: &str = "lustre-MDT0000";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/upgrade").join(name)
}

fn unzipped(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = fs::File::open(fixture(name)).unwrap();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn state_of_an_older_release_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("lcapd.redb"), unzipped("state-1.redb.gz")).unwrap();
    let setup = Setup::new().state_dir(&state).mdt(MDT, "sim:records=1000,seed=1");
    let mut daemon = setup.broadcast("changelog", "").start();
    let readers = daemon.control().readers(None).unwrap();
    assert_eq!(readers.len(), 1);
    assert_eq!((readers[0].name.as_str(), readers[0].watermark[MDT]), ("audit", 700));
    let client = daemon.client(MDT, "changelog").reader(Some("audit"));
    let record = client.connect().unwrap().recv().unwrap().unwrap().index();
    assert!(record.get() > 700, "it goes on where it was");
    assert!(daemon.stop().success());
}

/// The keys of an object, and which kind of value each has, also of objects in it.
fn shape(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                shape(value, &format!("{path}.{key}"), into);
            }
            "object"
        }
        Value::Array(items) => {
            for item in items.iter().take(1) {
                shape(item, &format!("{path}[]"), into);
            }
            "array"
        }
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    };
    into.insert(format!("{path}: {kind}"));
}

#[test]
fn an_older_client_is_answered_as_it_expects() {
    let setup = Setup::new().mdt(MDT, "sim:records=1000,seed=1").broadcast("changelog", "");
    let daemon = setup.start();
    let audit = lcap_wire::control::From::Oldest;
    daemon.control().register("changelog", "audit", Vec::new(), audit).unwrap();
    lcap_tests::daemon::wait_until("all is read", || {
        daemon.control().status().unwrap().mdts[0].read_index == 1000
    });
    let context = zmq::Context::new();
    let socket = context.socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(60_000).unwrap();
    socket.connect(daemon.setup().control_endpoint()).unwrap();
    let mut session = 0;
    let mut recorded_session = 0;
    for line in fs::read_to_string(fixture("control-1.jsonl")).unwrap().lines() {
        let exchange: Value = serde_json::from_str(line).unwrap();
        let recorded = exchange["reply"].as_str().unwrap();
        // A newer client understands what an older lcapd said, too.
        let understood = parse_server_message(recorded.as_bytes()).unwrap();
        let Some(request) = exchange["request"].as_str() else {
            assert!(matches!(understood, ServerMessage::Event(_)));
            continue;
        };
        let request = request.replace(&format!("{recorded_session}"), &format!("{session}"));
        socket.send(&request, 0).unwrap();
        let reply: Value = serde_json::from_slice(&socket.recv_bytes(0).unwrap()).unwrap();
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        if let (Some(new), Some(old)) = (reply["session"].as_u64(), recorded["session"].as_u64()) {
            (session, recorded_session) = (new, old);
        }
        let (mut had, mut has) = (BTreeSet::new(), BTreeSet::new());
        shape(&recorded, "", &mut had);
        shape(&reply, "", &mut has);
        let missing: Vec<_> = had.difference(&has).collect();
        assert!(missing.is_empty(), "{request}\n{reply}\nis without {missing:?}");
        assert_eq!(reply["ok"], recorded["ok"], "{request}: {reply}");
        assert_eq!(reply["errno"], recorded["errno"], "{request}: {reply}");
    }
}

#[test]
fn data_of_an_older_release_is_understood() {
    let text = String::from_utf8(unzipped("data-1.hex.gz")).unwrap();
    let parts: Vec<Vec<u8>> = text
        .split_whitespace()
        .map(|part| {
            let digits = part.as_bytes().chunks_exact(2);
            let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16);
            digits.map(|two| byte(two).unwrap()).collect()
        })
        .collect();
    let [topic, header, body] = parts.as_slice() else { panic!("three frames") };
    assert_eq!(topic, b"changelog\0lustre-MDT0000\0");
    let header = Header::decode(header).unwrap();
    assert!(header.check_body(body).is_ok());
    assert_eq!((header.kind, header.first.get(), header.last.get()), (Kind::Records, 701, 1000));
    let records = lcap_ffi::record::records(body).map(Result::unwrap);
    assert_eq!(records.count(), header.count as usize);
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_queue_of_an_older_release_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("hsm.redb"), unzipped("hsm-1.redb.gz")).unwrap();
    let spool = dir.path().join("spool");
    let hsm = format!("[hsm]\nfsname = \"lustre\"\nspool = \"{}\"", spool.display());
    let setup = Setup::new().state_dir(&state).mdt(MDT, "sim:records=10,seed=1");
    let daemon = setup.broadcast("changelog", "").more(&hsm).start();
    let lcap = |args: &[&str]| {
        let out = daemon.lcap(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let list = || -> Vec<Value> {
        let text = lcap(&["hsm", "queue", "list", "--json"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let want = [
        (1, "waiting", "ARCHIVE", "[0x200000401:0x1:0x0]", Some("dGFnPWE="), "coordinator"),
        (3, "running", "REMOVE", "[0x200000401:0x3:0x0]", None, "coordinator"),
        (4, "held", "ARCHIVE", "[0x200000401:0x4:0x0]", Some("eA=="), "coordinator"),
        (5, "waiting", "ARCHIVE", "[0x200000402:0x1:0x0]", Some("YSBi"), "upcall"),
        (6, "waiting", "ARCHIVE", "[0x200000402:0x2:0x0]", Some("YSBi"), "upcall"),
    ];
    let found = list();
    assert_eq!(found.len(), want.len(), "{found:?}");
    for (found, (id, state, action, fid, data, source)) in found.iter().zip(want) {
        assert_eq!(found["id"], id);
        assert_eq!(found["state"], state, "{found}");
        assert_eq!(found["action"], action, "{found}");
        assert_eq!(found["fid"], fid, "{found}");
        assert_eq!(found["data_b64"].as_str(), data, "{found}");
        assert_eq!(found["source"], source, "{found}");
        assert_eq!(found["archive_id"], 1, "{found}");
    }
    assert_eq!(found[1]["worker"], "m1");
    // What was locked is; what comes new has a number that was never given.
    lcap(&["hsm", "queue", "unlock", "--action", "remove"]);
    let conf = dir.path().join("upcall.toml");
    fs::write(&conf, format!("spool = \"{}\"\n", spool.display())).unwrap();
    let mut upcall = std::process::Command::new(lcap_tests::programs::program("lhsm_mdt_upcall"));
    upcall.env("LCAP_UPCALL_CONF", conf);
    upcall.args(["ARCHIVE", "lustre", "1", "0", "", "[0x200000402:0x9:0x0]"]);
    assert!(upcall.status().unwrap().success());
    lcap_tests::daemon::wait_until("it is in the queue", || list().len() == 6);
    assert_eq!(list()[5]["id"], 7);
}

#[test]
fn an_older_mover_is_served_as_it_expects() {
    let port = lcap_tests::daemon::free_port();
    let setup = Setup::new().mdt(MDT, "sim:records=10,seed=1").broadcast("changelog", "");
    let movers = format!("ipc://{}/movers", setup.directory().display());
    let hsm = format!(
        "[hsm]\nfsname = \"lustre\"\nmovers = \"{movers}\"\njson_port = \"127.0.0.1:{port}\""
    );
    let _daemon = setup.more(&hsm).start();
    let items =
        [(20, 1, "tag=a"), (21, 2, ""), (22, 3, ""), (20, 4, "x")].map(|(kind, n, data)| {
            let fid = serde_json::json!({"f_seq": 0x2_0000_0401_u64, "f_oid": n, "f_ver": 0});
            serde_json::json!({
                "hai_action": kind, "hai_cookie": n, "hai_fid": fid, "hai_dfid": fid,
                "hai_extent_offset": 0, "hai_extent_length": i64::MAX, "hai_gid": 0,
                "hai_data": data, "hal_archive_id": 1, "hal_flags": 0,
            })
        });
    let queue = serde_json::json!({"command": "queue", "hsm_action_items": items});
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Write::write_all(&mut socket, queue.to_string().as_bytes()).unwrap();
    let mut answer = [0; 100];
    let n = socket.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(answer.contains("\"enqueued\": 4"), "{answer}");

    let context = zmq::Context::new();
    let socket = context.socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(60_000).unwrap();
    socket.connect(&movers).unwrap();
    let (mut session, mut recorded_session) = (0, 0);
    for line in fs::read_to_string(fixture("mover-1.jsonl")).unwrap().lines() {
        let step: Value = serde_json::from_str(line).unwrap();
        let frames = |of: &Value| -> Vec<String> { serde_json::from_value(of.clone()).unwrap() };
        if let Some(say) = step.get("say") {
            let mut said = frames(say);
            let head =
                said.remove(0).replace(&format!("{recorded_session}"), &format!("{session}"));
            let all = std::iter::once(head.into_bytes()).chain(said.iter().map(|hex| unhex(hex)));
            socket.send_multipart(all, 0).unwrap();
            continue;
        }
        let recorded = frames(&step["hear"]);
        // A newer mover understands what an older lcapd said, too.
        serde_json::from_str::<lcap_wire::mover::MoverEvent>(&recorded[0]).unwrap();
        let heard = socket.recv_multipart(0).unwrap();
        let new: Value = serde_json::from_slice(&heard[0]).unwrap();
        let old: Value = serde_json::from_str(&recorded[0]).unwrap();
        if let (Some(new), Some(old)) = (new["session"].as_u64(), old["session"].as_u64()) {
            (session, recorded_session) = (new, old);
        }
        assert_eq!(new["event"], old["event"], "{new}");
        let (mut had, mut has) = (BTreeSet::new(), BTreeSet::new());
        shape(&old, "", &mut had);
        shape(&new, "", &mut has);
        assert!(had.is_subset(&has), "{new} is without {:?}", had.difference(&has));
        let behind: Vec<Vec<u8>> = recorded[1..].iter().map(|hex| unhex(hex)).collect();
        assert_eq!(heard[1..], behind, "{new}");
    }
    assert_ne!(session, 0);
}
