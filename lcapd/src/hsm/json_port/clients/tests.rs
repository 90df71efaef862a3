//! What is said on the JSON port, word by word.

use super::*;

const NOW: Now = Duration::from_secs(1_800_000_000);

struct Port {
    clients: Clients,
    queue: Queue,
}

impl Port {
    fn new() -> Self {
        let settings = Settings {
            fsname: "testfs0".into(),
            mdt: "testfs0-MDTffff".into(),
            grace: Duration::from_secs(600),
        };
        let mut clients = Clients::new(settings);
        clients.connected(1, "10.0.0.1:1000");
        clients.connected(2, "10.0.0.2:2000");
        Self { clients, queue: Queue::new(Default::default()) }
    }

    fn admit(&mut self, kind: Kind, cookie: u64, archive_id: u32, data: &[u8]) -> u64 {
        let fid = Fid { seq: 0x2_0000_0400, oid: u32::try_from(cookie & 0xffff).unwrap(), ver: 0 };
        let source = Source::Coordinator { cookie };
        let mdt = Arc::clone(&self.clients.settings.mdt);
        let mut request = Request::new(source, mdt, kind, fid, archive_id);
        request.data = data.into();
        self.queue.admit(request, Arrival::Sent, NOW).id()
    }

    /// What this client is answered.
    fn say(&mut self, number: u64, text: &str) -> Vec<String> {
        self.clients.object(number, text.as_bytes(), &mut self.queue, NOW).unwrap();
        self.settle(number)
    }

    fn settle(&mut self, number: u64) -> Vec<String> {
        for _ in 0..2 {
            for event in self.queue.take_events() {
                self.clients.on_event(&event);
            }
            self.clients.dispatch(&mut self.queue, NOW);
        }
        let replies = self.clients.take_replies().into_iter().filter(|(to, _)| *to == number);
        replies.map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect()
    }

    fn value(&mut self, number: u64, text: &str) -> Value {
        let replies = self.say(number, text);
        assert_eq!(replies.len(), 1, "{text}: {replies:?}");
        serde_json::from_str(&replies[0]).unwrap()
    }
}

#[test]
fn the_transcript_of_the_original_is_repeated() {
    let mut port = Port::new();
    let hello = port.say(1, r#"{"command":"ehlo","id":"m1","archive_ids":[1]}"#);
    assert_eq!(hello, [r#"{"command": "ehlo"}"#]);
    let recv = r#"{"command":"recv","max_archive":-1,"max_restore":-1,"max_remove":-1,"max_bytes":1048576}"#;
    assert!(port.say(1, recv).is_empty());
    let id = port.admit(Kind::Archive, 0x617d_23ef, 1, b"tag=foo");
    let reply: Value = serde_json::from_str(&port.settle(1)[0]).unwrap();
    let received = port.queue.get(id).unwrap().request.received_ns;
    let oid = 0x23ef;
    assert_eq!(
        reply,
        json!({"hsm_action_list": {"hal_version": 1, "hal_archive_id": 1, "hal_fsname": "testfs0",
            "list": [{"hai_action": 20,
                "hai_fid": {"f_seq": 8_589_935_616_u64, "f_oid": oid, "f_ver": 0},
                "hai_dfid": {"f_seq": 8_589_935_616_u64, "f_oid": oid, "f_ver": 0},
                "hai_extent_offset": 0, "hai_extent_length": -1, "hai_cookie": 1_635_591_151,
                "hai_gid": 0, "hal_archive_id": 1, "hal_flags": 0, "hai_data": "tag=foo",
                "timestamp": received}]},
            "command": "recv"})
    );
    let done = format!(
        r#"{{"command":"done","hai_cookie":1635591151,"hai_dfid":{{"f_seq":8589935616,"f_oid":{oid},"f_ver":0}},"status":0}}"#
    );
    assert_eq!(port.say(1, &done), [r#"{"command": "done"}"#]);
    assert!(port.queue.is_empty());
    assert_eq!(port.say(1, &done), [r#"{"command": "done"}"#], "said twice (B7)");
    let cases = [
        (1, r#"{"command":"lock","locked":7}"#, -22),
        (1, r#"{"command":"queue","fsname":"nope","hsm_action_items":[]}"#, 22),
        (2, r#"{"command":"ehlo","id":"m1"}"#, 17),
        (1, r#"{"command":"ehlo","id":"m1"}"#, 22),
        (2, r#"{"command":"recv"}"#, 22),
        (2, r#"{"command":"ehlo","id":"m2","archive_ids":[0]}"#, 22),
        (2, r#"{"command":"ehlo","id":"m2","fsname":"other"}"#, 22),
        (1, r#"{"command":"recv","max_bytes":171}"#, 22),
        (1, r#"{"command":"done","hai_cookie":1}"#, 22),
    ];
    for (number, text, status) in cases {
        assert_eq!(port.value(number, text)["status"], status, "{text}");
    }
    for bad in ["[1]", "{}", r#"{"command":7}"#, r#"{"command":"no such"}"#, "{\"a\""] {
        assert!(port.clients.object(1, bad.as_bytes(), &mut port.queue, NOW).is_err(), "{bad}");
    }
}

#[test]
fn a_cookie_that_went_through_an_int_is_still_known() {
    // B5
    let mut port = Port::new();
    port.say(1, r#"{"command":"ehlo","id":"m1"}"#);
    for cookie in [0x9000_0001_u64, 0x1_7000_0002, u64::MAX - 3] {
        port.admit(Kind::Archive, cookie, 1, b"");
        port.say(1, r#"{"command":"recv"}"#);
        let oid = cookie & 0xffff;
        let cut = sign_extended(cookie).cast_signed();
        let done = format!(
            r#"{{"command":"done","hai_cookie":{cut},"hai_dfid":{{"f_seq":8589935616,"f_oid":{oid},"f_ver":0}}}}"#
        );
        port.say(1, &done);
        assert!(port.queue.is_empty(), "{cookie:x}");
    }
}

#[test]
fn what_no_json_can_say_ends_with_an_error() {
    // B1, B6
    let mut port = Port::new();
    port.say(1, r#"{"command":"ehlo","id":"m1"}"#);
    port.admit(Kind::Archive, 1, 1, b"\xff\xfe");
    port.admit(Kind::Remove, 2, 0, b"nul\0inside");
    let reply = port.value(1, r#"{"command":"recv"}"#);
    let list = &reply["hsm_action_list"];
    assert_eq!(list["hal_archive_id"], 0);
    assert_eq!(list["list"][0]["hai_data"], "nul\0inside");
    assert!(port.say(1, r#"{"command":"recv"}"#).is_empty());
    let [ToLustre::Fail { request, errno: libc::EILSEQ }] = &port.clients.take_to_lustre()[..]
    else {
        panic!("Lustre is not told")
    };
    assert_eq!(request.cookie(), Some(1));
    assert_eq!(port.queue.len(), 1);
}

#[test]
fn a_mover_comes_back_with_what_it_runs() {
    let mut port = Port::new();
    port.say(1, r#"{"command":"ehlo","id":"m1"}"#);
    let ids: Vec<u64> = (1..=3).map(|n| port.admit(Kind::Archive, n, 1, b"")).collect();
    port.say(1, r#"{"command":"recv","max_archive":2}"#);
    assert_eq!(port.queue.worker("m1").unwrap().running.len(), 2);
    port.clients.gone(1, &mut port.queue, NOW);
    assert_eq!(port.queue.worker("m1").unwrap().running.len(), 2, "for its grace time");
    // A cancel while it is away reaches it when it is back (B2).
    port.queue.cancel(ids[0], NOW);
    port.clients.connected(3, "10.0.0.1:1001");
    let item = |n: u64| {
        format!(
            r#"{{"hai_action":20,"hai_fid":{{"f_seq":8589935616,"f_oid":{n},"f_ver":0}},"hai_dfid":{{"f_seq":8589935616,"f_oid":{n},"f_ver":0}},"hai_extent_offset":0,"hai_extent_length":-1,"hai_cookie":{n},"hai_gid":0,"hai_data":"","hal_archive_id":1}}"#
        )
    };
    // It has 1, not 2, and 77, which nobody knew.
    let hello = format!(r#"{{"command":"ehlo","id":"m1","hai_list":[{},{}]}}"#, item(1), item(77));
    assert_eq!(port.value(3, &hello), json!({"command": "ehlo"}));
    let running = &port.queue.worker("m1").unwrap().running;
    assert!(running.contains(&ids[0]) && running.len() == 2 && !running.contains(&ids[1]));
    let reply = port.value(3, r#"{"command":"recv","max_archive":2}"#);
    assert_eq!(reply["hsm_action_list"]["list"][0]["hai_action"], 23);
    // Limits hold after the reconnect (S3).
    assert!(port.say(3, r#"{"command":"recv","max_archive":2}"#).is_empty());
    let done = r#"{"command":"done","hai_cookie":1,"hai_dfid":{"f_seq":8589935616,"f_oid":1,"f_ver":0},"status":125}"#;
    // Both the cancel and the cancelled are acknowledged (B7); there is room for one more.
    assert_eq!(port.say(3, done).len(), 2, "the answer, and the open receive");
    port.say(3, done);
    let status = port.value(2, r#"{"command":"status","verbose":6}"#);
    assert_eq!(status["running_archive"], 2);
    assert_eq!(status["pending_archive"], 1);
    assert_eq!(status["done_cancel"], 1);
    let clients = status["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 2);
    assert_eq!(clients[1]["client_id"], "m1");
    assert_eq!(clients[1]["current_archive"], 2);
    assert_eq!(clients[1]["active_requests"].as_array().unwrap().len(), 2);
}

#[test]
fn queue_takes_good_items_and_wakes_who_waits() {
    let mut port = Port::new();
    port.say(1, r#"{"command":"ehlo"}"#);
    assert!(port.say(1, r#"{"command":"recv"}"#).is_empty());
    let item = r#"{"hai_action":21,"hai_fid":{"f_seq":8589935616,"f_oid":5,"f_ver":0},"hai_dfid":{"f_seq":8589935616,"f_oid":5,"f_ver":0},"hai_extent_offset":0,"hai_extent_length":-1,"hai_cookie":5,"hai_gid":0,"hai_data":"x","hal_archive_id":1,"hal_flags":0}"#;
    let bad = item.replace("\"f_ver\":0}", "\"f_ver\":0,\"more\":1}");
    let text = format!(
        r#"{{"command":"queue","hsm_action_items":[{item},{bad},{item}],"fsname":"testfs0"}}"#
    );
    port.clients.object(2, text.as_bytes(), &mut port.queue, NOW).unwrap();
    for event in port.queue.take_events() {
        port.clients.on_event(&event);
    }
    port.clients.dispatch(&mut port.queue, NOW);
    let replies: Vec<(u64, Value)> = port
        .clients
        .take_replies()
        .into_iter()
        .map(|(to, bytes)| (to, serde_json::from_slice(&bytes).unwrap()))
        .collect();
    let (_, answer) = replies.iter().find(|(to, _)| *to == 2).unwrap();
    assert_eq!((&answer["enqueued"], &answer["skipped"]), (&json!(1), &json!(1)));
    assert_eq!(answer["status"], -22);
    let (_, work) = replies.iter().find(|(to, _)| *to == 1).expect("S4: it is woken");
    assert_eq!(work["hsm_action_list"]["list"][0]["hai_cookie"], 5);
    // Without an id, what it ran is at once anybody's when it goes.
    port.clients.gone(1, &mut port.queue, NOW);
    assert_eq!(port.queue.count(0, Kind::Restore), 1);
}

#[test]
fn a_lock_holds_back_work_and_cancels() {
    let mut port = Port::new();
    port.say(1, r#"{"command":"ehlo","id":"m1"}"#);
    port.say(2, r#"{"command":"lock","locked":1}"#);
    port.admit(Kind::Archive, 1, 1, b"");
    assert!(port.say(1, r#"{"command":"recv"}"#).is_empty());
    assert_eq!(port.value(2, r#"{"command":"status"}"#)["locked"], 1);
    port.clients.object(2, br#"{"command":"lock","locked":0}"#, &mut port.queue, NOW).unwrap();
    assert_eq!(port.settle(1).len(), 1);
}

#[test]
fn a_status_has_the_originals_keys() {
    use crate::hsm::queue::Settings as QueueSettings;
    use crate::hsm::scheduler::Settings as SchedulerSettings;
    use crate::hsm::scheduler::slots::Batching;

    let mut port = Port::new();
    let (idle, max) = (Duration::from_secs(10), Some(Duration::from_secs(20)));
    let batching = Some(Batching { idle, max, slots: 2 });
    let scheduler = SchedulerSettings { batching, ..SchedulerSettings::default() };
    port.queue = Queue::new(QueueSettings { scheduler, ..QueueSettings::default() });
    port.say(1, r#"{"command":"ehlo","id":"m1"}"#);
    port.say(1, r#"{"command":"recv"}"#);
    port.admit(Kind::Archive, 1, 1, b"tag=a");
    port.settle(1);
    port.admit(Kind::Restore, 2, 1, b"");
    port.admit(Kind::Archive, 3, 1, b"tag=b");
    let status = port.value(2, r#"{"command":"status","verbose":6}"#);
    for (key, want) in [("running_archive", 1), ("pending_restore", 1), ("pending_archive", 1)] {
        assert_eq!(status[key], want, "{key}: {status}");
    }
    assert_eq!((&status["clients_connected"], &status["locked"]), (&json!(2), &Value::Null));
    assert_eq!(status["waiting_restore"][0]["hai_cookie"], 2);
    let clients = status["clients"].as_array().unwrap();
    assert_eq!(clients[0], json!({"client_id": "10.0.0.2:2000", "status": "init", "batches": []}));
    let m1 = &clients[1];
    assert_eq!((&m1["client_id"], &m1["status"]), (&json!("m1"), &json!("ready")));
    assert_eq!((&m1["current_archive"], &m1["done_archive"]), (&json!(1), &json!(0)));
    assert_eq!(m1["active_requests"][0]["hai_data"], "tag=a");
    let now = NOW.as_secs();
    assert_eq!(
        m1["batches"],
        json!([
            {"hint": "tag=a", "current_count": 1, "expire_idle_s": now + 10, "expire_max_s": now + 20},
            {"hint": "", "current_count": 0, "expire_idle_s": 0, "expire_max_s": 0},
        ])
    );
}
