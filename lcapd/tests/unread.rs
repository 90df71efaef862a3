//! What nobody has registered for is cleared only if a policy says so of its own accord.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test: to panic is to fail

use std::time::Duration;

use lcap_ffi::RecordIndex;
use lcap_wire::control::{Delivery, StreamKind};
use lcapd::engine::position::Sent;
use lcapd::engine::retention::ClearPolicy;
use lcapd::engine::{Effect, Engine, MdtSetup, Settings, StreamSetup, WorkerState};
use lcapd::store::Saved;

fn ix(index: u64) -> RecordIndex {
    RecordIndex::new(index)
}

/// A broadcast stream without readers, whose policies have a say in clearing.
fn engine() -> Engine {
    let clear = ClearPolicy {
        interval: Duration::from_secs(1),
        records: 1,
        keep_alive: Duration::from_secs(3600),
    };
    let settings = Settings { epoch: 1, seed: 1, heartbeat: Duration::from_secs(1), clear };
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
        policy_clears: true,
        max_idle: Duration::MAX,
        max_lag: u64::MAX,
    };
    Engine::new(settings, vec![mdt], vec![stream], &Saved::default())
}

/// Asks once, with so much delivered, and answers; gives what was offered and then cleared.
fn ask(engine: &mut Engine, delivered: u64, answer: u64) -> (Option<u64>, Option<u64>) {
    let now = Duration::from_secs(delivered);
    let sent = Sent { low: ix(delivered), highest: ix(delivered) };
    engine.note_worker(0, 0, WorkerState { sent, ..WorkerState::default() });
    engine.tick(now);
    let mut offered = None;
    for effect in engine.take_effects() {
        match effect {
            Effect::AskPolicy { stream, mdt, offer, proposed, .. } => {
                offered = Some(offer.get());
                engine.policy_allows(stream, mdt, proposed, ix(answer), now);
            }
            Effect::Clear { upto, .. } => panic!("cleared {upto} before the policy had answered"),
            _ => {}
        }
    }
    let cleared = engine.take_effects().into_iter().find_map(|effect| match effect {
        Effect::Clear { upto, .. } => Some(upto.get()),
        _ => None,
    });
    (offered, cleared)
}

#[test]
fn unread_records_go_only_if_a_policy_says_so_of_its_own_accord() {
    let mut engine = engine();
    assert_eq!(ask(&mut engine, 10, 0), (Some(0), None), "it leaves the offer as it is");
    assert_eq!(ask(&mut engine, 20, 15), (Some(0), Some(15)), "it allows it");
}
