//! The safety valve: a reader that is idle for too long *and* too far behind holds nothing any more.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test: to panic is to fail

use std::time::Duration;

use lcap_ffi::RecordIndex;
use lcap_wire::control::{Delivery, From, Op, ReaderRegister, Reply, Request, Start, StreamKind};
use lcapd::engine::position::Sent;
use lcapd::engine::retention::ClearPolicy;
use lcapd::engine::{Effect, Engine, MdtNow, MdtSetup, Peer, Settings, StreamSetup, WorkerState};
use lcapd::store::Saved;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One MDT with a thousand records, all sent; one broadcast stream; nothing is read meanwhile.
fn engine() -> Engine {
    let clear = ClearPolicy { interval: secs(1), records: 1, keep_alive: secs(3600) };
    let settings = Settings { epoch: 1, seed: 1, heartbeat: secs(1), clear };
    let mdt = MdtSetup {
        name: "lustre-MDT0000".parse().unwrap(),
        kind: StreamKind::Changelog,
        source: "sim:".to_owned(),
        clears: true,
    };
    let stream = StreamSetup {
        name: "changelog".to_owned(),
        kind: StreamKind::Changelog,
        delivery: Delivery::Broadcast,
        publish: "ipc:///none".to_owned(),
        lanes: 1,
        policy_clears: false,
        merges: false,
        max_idle: secs(60),
        max_lag: 100,
    };
    let mut engine = Engine::new(settings, vec![mdt], vec![stream], &Saved::default());
    let head = RecordIndex::new(1000);
    engine.note_mdt(0, MdtNow { read_index: head, compared: true, ..MdtNow::default() });
    let sent = Sent { low: head, highest: head };
    engine.note_worker(0, 0, WorkerState { sent, ..WorkerState::default() });
    engine
}

/// Sends a request; commits are written at once. Gives the error number of the answer, 0 if `ok`.
fn ask(engine: &mut Engine, op: Op, now: Duration) -> i32 {
    let peer = Peer { socket: 0, identity: vec![1], delimiter: false };
    engine.request(&peer, Request::new(1, op), now);
    let mut errno = None;
    for _ in 0..3 {
        for effect in engine.take_effects() {
            match effect {
                Effect::Commit { .. } => engine.committed(Ok(()), now),
                Effect::Send(_, bytes) => {
                    let reply: Reply = serde_json::from_slice(&bytes).unwrap();
                    errno = Some(reply.errno.unwrap_or(0));
                }
                _ => {}
            }
        }
    }
    errno.expect("an answer")
}

/// What is cleared once everything that has gathered is on disk: not before that.
fn cleared(engine: &mut Engine, now: Duration) -> Option<u64> {
    engine.tick(now);
    let clear = |effect: &Effect| match effect {
        Effect::Clear { upto, .. } => Some(upto.get()),
        _ => None,
    };
    let before = engine.take_effects();
    assert_eq!(before.iter().find_map(clear), None, "noted first");
    assert!(before.iter().any(|effect| matches!(effect, Effect::Commit { .. })));
    engine.committed(Ok(()), now);
    engine.take_effects().iter().find_map(clear)
}

fn register(name: &str, from: From) -> Op {
    let (stream, name) = ("changelog".to_owned(), name.to_owned());
    Op::ReaderRegister(ReaderRegister { stream, name, mask: Vec::new(), from })
}

fn start(name: &str) -> Op {
    Op::Start(Start {
        stream: "changelog".to_owned(),
        mdt: "lustre-MDT0000".to_owned(),
        reader: Some(name.to_owned()),
        from: 0,
        generation: None,
        follow: true,
        filter: None,
        snapshot: false,
    })
}

fn suspended(engine: &Engine, now: Duration) -> Vec<(String, bool)> {
    let status = engine.status(now);
    status.streams[0].readers.iter().map(|r| (r.name.clone(), r.suspended)).collect()
}

#[test]
fn idle_and_far_behind_is_suspended_told_and_lifted_by_registering_again() {
    let mut engine = engine();
    assert_eq!(ask(&mut engine, register("behind", From::Oldest), secs(0)), 0);
    assert_eq!(ask(&mut engine, register("current", From::Now), secs(0)), 0);
    engine.tick(secs(59));
    let both = |behind| vec![("behind".to_owned(), behind), ("current".to_owned(), false)];
    assert_eq!(suspended(&engine, secs(59)), both(false), "far behind, but not idle for long");
    engine.take_effects();

    engine.tick(secs(61));
    assert_eq!(suspended(&engine, secs(61)), both(true), "the other is idle, but not behind");
    // It no longer holds the MDT's log: the slowest of the others decides.
    assert_eq!(cleared(&mut engine, secs(62)), Some(1000));
    assert_eq!(ask(&mut engine, start("behind"), secs(62)), libc::EKEYEXPIRED);

    assert_eq!(ask(&mut engine, register("behind", From::Now), secs(71)), 0);
    assert_eq!(suspended(&engine, secs(71)), both(false));
    assert_eq!(ask(&mut engine, start("behind"), secs(72)), 0);
}

#[test]
fn a_reader_that_is_heard_of_is_never_suspended() {
    let mut engine = engine();
    assert_eq!(ask(&mut engine, register("slow", From::Oldest), secs(0)), 0);
    for now in (50..500).step_by(50) {
        let clear = lcap_wire::control::Clear {
            stream: None,
            mdt: "lustre-MDT0000".to_owned(),
            reader: "slow".to_owned(),
            upto: now,
        };
        assert_eq!(ask(&mut engine, Op::Clear(clear), secs(now)), 0);
        engine.tick(secs(now));
    }
    assert_eq!(suspended(&engine, secs(500)), [("slow".to_owned(), false)]);
}
