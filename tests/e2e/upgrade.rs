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
