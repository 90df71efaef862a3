//! Any frames as what movers say, action lists, and objects of coordinatool's protocol, to the code that serves
//! them and a queue behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::hsm::ActionList;
use lcap_wire::mover::{MoverEvent, MoverMessage, Report};
use lcapd::hsm::active;
use lcapd::hsm::json_port::clients::{self, Clients};
use lcapd::hsm::movers::{Movers, Settings};
use lcapd::hsm::queue::Queue;

/// Between messages, and between frames of one; neither is in JSON.
const SEPARATORS: [u8; 2] = [0xff, 0xfe];

pub(crate) fn run(bytes: &[u8]) {
    let [message, frame] = SEPARATORS;
    let frames = |bytes: &[u8]| bytes.split(|&b| b == frame).map(<[u8]>::to_vec).collect();
    let messages: Vec<Vec<Vec<u8>>> = bytes.split(|&b| b == message).map(frames).collect();
    let (fsname, grace) = (Arc::<str>::from("lustre"), Duration::from_secs(60));
    let settings = Settings {
        fsname: Arc::clone(&fsname),
        heartbeat: Duration::from_secs(1),
        grace,
        graces: BTreeMap::new(),
    };
    let mdt = settings.any_mdt();
    let mut movers = Movers::new(settings, 1);
    let mut clients = Clients::new(clients::Settings { fsname, mdt: Arc::clone(&mdt), grace });
    let mut queue = Queue::new(lcapd::hsm::queue::Settings::default());
    for (nth, frames) in messages.iter().enumerate() {
        let now = Duration::from_secs(nth as u64);
        let peer = [u8::try_from(nth % 3).unwrap_or(0)];
        movers.on_message(&mut queue, &Arc::from(peer.as_slice()), frames, now);
        clients.connected(nth as u64 % 3, "10.0.0.1:1");
        for frame in frames {
            let _ = clients.object(nth as u64 % 3, frame, &mut queue, now);
            if let Ok(message) = serde_json::from_slice::<MoverMessage>(frame) {
                let again = MoverMessage::encode(message.op.clone());
                let again: MoverMessage = serde_json::from_slice(&again).expect("our own message");
                assert_eq!(again.op, message.op);
            }
            let _ = serde_json::from_slice::<MoverEvent>(frame);
            let _ = Report::unpack(frame);
            if let Ok(list) = ActionList::parse(frame) {
                assert_eq!(list.items().count(), list.len());
            }
            assert!(active::parse(frame, &mdt).count() <= frame.len() + 1);
        }
        queue.tick(now);
        clients.dispatch(&mut queue, now);
        let _ = (movers.take_outputs(), clients.take_replies());
    }
}
