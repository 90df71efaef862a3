//! Streams whose policies make records of their own, under kills: what comes again may stand for
//! more than before.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lcap_ffi::RecordType;
use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_wire::control::From;
use lcapclient::{Client, ClientError};

const MDT: &str = "lustre-MDT0000";
const RECORDS: u64 = 30_000;
/// `compact` lets every one of these through as it came.
const KEPT: &str = "RENME";

fn setup(delivery: &str) -> Setup {
    let policies =
        format!("policies = [{{ module = \"compact\", window = \"30ms\", keep = [\"{KEPT}\"] }}]");
    let setup = Setup::new()
        .on_tcp()
        .server("heartbeat = \"200ms\"\nclear_interval = \"50ms\"\nclear_records = 1000")
        .mdt(MDT, &format!("sim:rate=5000,records={RECORDS}"));
    match delivery {
        "queue" => setup.queue("small", &policies),
        _ => setup.broadcast("small", &policies),
    }
}

/// Indexes of the records that must come whatever is folded.
fn expected() -> BTreeSet<u64> {
    let daemon =
        Setup::new().mdt(MDT, &format!("sim:records={RECORDS}")).broadcast("changelog", "").start();
    let mut client = daemon.client(MDT, "changelog").connect().unwrap();
    let mut kept = BTreeSet::new();
    while let Some(record) = client.recv().unwrap() {
        if Some(record.rec_type()) == RecordType::from_name(KEPT) {
            kept.insert(record.index().get());
        }
    }
    assert!(kept.len() > 100, "{} records of type {KEPT}", kept.len());
    kept
}

/// Receives and clears until told to stop.
fn receive(mut client: Client, stop: &AtomicBool) -> BTreeSet<u64> {
    let mut got = BTreeSet::new();
    let mut pending = 0;
    while !stop.load(Ordering::Relaxed) {
        match client.recv_range(false) {
            Ok(Some(range)) => {
                let bytes = client.current().unwrap().buffer()[range].to_vec();
                let (record, _) = lcap_ffi::record::split_first(&bytes).unwrap();
                if Some(record.rec_type()) == RecordType::from_name(KEPT) {
                    got.insert(record.index().get());
                }
                pending += 1;
                if pending < 50 {
                    continue; // an acknowledgement is on its way, or lost, at most times
                }
            }
            Ok(None) => break,
            Err(ClientError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            Err(ClientError::Timeout { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        pending = 0;
        client.clear(lcap_ffi::RecordIndex::ZERO).unwrap();
    }
    got
}

/// Kills lcapd again and again while the MDT is read.
fn kill_now_and_then(daemon: &mut Daemon) {
    for part in 1..=6 {
        let mark = RECORDS * part / 8;
        wait_until("it goes on", || daemon.cleared(MDT) >= mark);
        daemon.kill();
        daemon.start();
    }
    wait_until("everything is settled and cleared", || daemon.cleared(MDT) == RECORDS);
}

#[test]
fn a_reader_of_folded_records_misses_nothing_when_lcapd_is_killed() {
    let mut daemon = setup("broadcast").start();
    daemon.control().register("small", "rbh", Vec::new(), From::Oldest).unwrap();
    let client = daemon.client(MDT, "small").reader(Some("rbh")).follow(true).connect().unwrap();
    let stop = AtomicBool::new(false);
    let got = std::thread::scope(|scope| {
        let reader = scope.spawn(|| receive(client, &stop));
        kill_now_and_then(&mut daemon);
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    let missing: Vec<u64> = expected().difference(&got).copied().collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn members_of_a_queue_of_folded_records_miss_nothing_when_lcapd_is_killed() {
    let mut daemon = setup("queue").start();
    let clients = [0, 1].map(|_| daemon.client(MDT, "small").follow(true).connect().unwrap());
    let stop = AtomicBool::new(false);
    let got: BTreeSet<u64> = std::thread::scope(|scope| {
        let members = clients.map(|client| scope.spawn(|| receive(client, &stop)));
        kill_now_and_then(&mut daemon);
        stop.store(true, Ordering::Relaxed);
        members.into_iter().flat_map(|member| member.join().unwrap()).collect()
    });
    let missing: Vec<u64> = expected().difference(&got).copied().collect();
    assert!(missing.is_empty(), "{missing:?}");
}
