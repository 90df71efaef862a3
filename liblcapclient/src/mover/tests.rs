//! The protocol of a mover, message by message; lcapd's side of it is simulated in lcapd.

use super::*;

fn welcome(attempt: u64, session: u64) -> Vec<u8> {
    let welcome = Welcome {
        attempt,
        session,
        fsname: "fs".into(),
        heartbeat_ms: 1000,
        version: String::new(),
    };
    MoverEvent::Welcome(welcome).encode()
}

fn work(session: u64, items: &[(HsmAction, u64)]) -> Vec<Vec<u8>> {
    let mut list = ListBuilder::new(b"fs", 1, 0);
    for &(action, cookie) in items {
        let fid = Fid { seq: 7, oid: u32::try_from(cookie & 0xff).unwrap(), ver: 0 };
        let item = ActionItem {
            action: action.number(),
            fid,
            dfid: fid,
            offset: 0,
            length: u64::MAX,
            cookie,
            gid: 0,
            data: b"\xff\0data",
        };
        list.push(&item).unwrap();
    }
    vec![MoverEvent::Work { session }.encode(), list.finish()]
}

struct Peer {
    protocol: Protocol,
    now: Instant,
}

impl Peer {
    fn new() -> Self {
        let now = Instant::now();
        let who = Identity { name: "m".into(), life: 9, window: 4, ..Identity::default() };
        Self { protocol: Protocol::new(who, now), now }
    }

    fn hear(&mut self, frames: &[Vec<u8>]) -> Vec<Output> {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        self.protocol.on_message(&frames, self.now);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.protocol.poll_output()).collect()
    }

    /// What it said last, and how many frames were behind that.
    fn said(outputs: &[Output]) -> Vec<(MoverOp, usize)> {
        let sent = outputs.iter().filter_map(|output| match output {
            Output::Send(frames) => {
                let message: MoverMessage = serde_json::from_slice(&frames[0]).unwrap();
                Some((message.op, frames.len() - 1))
            }
            _ => None,
        });
        sent.collect()
    }

    fn open(&mut self) {
        self.protocol.on_timer(self.now);
        let said = Self::said(&self.outputs());
        assert!(matches!(&said[..], [(MoverOp::Hello(h), 0)] if h.attempt == 1 && h.upto == 4));
        let outputs = self.hear(&[welcome(1, 50)]);
        assert!(matches!(&outputs[..], [Output::Greeted(_)]));
    }

    fn key(cookie: u64) -> RequestKey {
        let fid = Fid { seq: 7, oid: u32::try_from(cookie & 0xff).unwrap(), ver: 0 };
        RequestKey { cookie, fid }
    }

    fn report(&mut self, cookie: u64, what: What) -> Vec<(MoverOp, usize)> {
        let report = Report { key: Self::key(cookie), what, status: 0 };
        self.protocol.on_reports(&[report], self.now);
        Self::said(&self.outputs())
    }
}

#[test]
fn what_is_held_and_not_yet_stored_is_said_again() {
    let mut peer = Peer::new();
    peer.open();
    let big = 1 << 40;
    let outputs = peer.hear(&work(50, &[(HsmAction::Archive, big), (HsmAction::Archive, 2)]));
    let Output::Deliver(actions) = &outputs[0] else { panic!("{outputs:?}") };
    assert_eq!((actions[0].cookie, &*actions[0].data), (big, &b"\xff\0data"[..]));
    peer.protocol.on_taken(2, peer.now);
    assert_eq!(Peer::said(&peer.outputs()), [(MoverOp::Credit { session: 50, upto: 6 }, 0)]);
    assert_eq!(peer.report(big, What::Begun), [(MoverOp::Report { session: 50, sequence: 1 }, 1)]);
    assert_eq!(peer.report(big, What::Done), [(MoverOp::Report { session: 50, sequence: 2 }, 1)]);
    // B7: an end that is told twice is told once.
    assert_eq!(peer.report(big, What::Done), []);
    assert_eq!(peer.report(3, What::Done), []);
    peer.hear(&[MoverEvent::Stored { session: 50, sequence: 1 }.encode()]);
    peer.protocol.on_disconnected(peer.now);
    let said = Peer::said(&peer.outputs());
    let [(MoverOp::Hello(hello), 2)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((hello.attempt, &hello.reports[..]), (2, &[2][..]));
    // What the old session still says is not heard.
    assert!(peer.hear(&work(50, &[(HsmAction::Archive, 8)])).is_empty());
    assert!(peer.hear(&[welcome(1, 51)]).is_empty());
    // What ends before the welcome is told after it.
    assert_eq!(peer.report(2, What::Done), []);
    let said = Peer::said(&peer.hear(&[welcome(2, 52)]));
    assert_eq!(said[0], (MoverOp::Report { session: 52, sequence: 3 }, 1));
    assert!(!peer.protocol.is_settled());
    peer.hear(&[MoverEvent::Stored { session: 52, sequence: 3 }.encode()]);
    assert!(peer.protocol.is_settled());
}

#[test]
fn a_cancel_reaches_only_who_has_the_request() {
    let mut peer = Peer::new();
    peer.open();
    peer.hear(&work(50, &[(HsmAction::Archive, 1)]));
    let outputs = peer.hear(&work(50, &[(HsmAction::Cancel, 1), (HsmAction::Cancel, 2)]));
    assert!(matches!(&outputs[..], [Output::Cancel(action)] if action.cookie == 1), "{outputs:?}");
    peer.protocol.returned(Peer::key(1), peer.now);
    let said = Peer::said(&peer.outputs());
    assert_eq!(said[0], (MoverOp::Report { session: 50, sequence: 1 }, 1));
}

#[test]
fn silence_and_refusals_lead_to_another_hello() {
    let mut peer = Peer::new();
    peer.open();
    peer.now += Duration::from_secs(1);
    peer.protocol.on_timer(peer.now);
    assert_eq!(Peer::said(&peer.outputs()), [(MoverOp::Heartbeat { session: 50 }, 0)]);
    peer.now += Duration::from_secs(3);
    peer.protocol.on_timer(peer.now);
    let outputs = peer.outputs();
    assert!(matches!(outputs[0], Output::Connect), "{outputs:?}");
    let error = "taken".to_owned();
    peer.hear(&[MoverEvent::Refused { attempt: 2, errno: libc::EEXIST, error }.encode()]);
    peer.protocol.on_timer(peer.now);
    assert!(peer.outputs().is_empty());
    peer.now += PAUSE;
    peer.protocol.on_timer(peer.now);
    assert!(matches!(peer.outputs()[0], Output::Connect));
    peer.hear(&[welcome(3, 60)]);
    let error = "over".to_owned();
    let outputs = peer.hear(&[MoverEvent::Lost { session: 60, error }.encode()]);
    assert!(matches!(outputs[0], Output::Connect));
    assert!(peer.hear(&[b"nonsense".to_vec(), vec![1, 2]]).is_empty());
    // One that was never welcome is told why.
    let mut peer = Peer::new();
    peer.protocol.on_timer(peer.now);
    peer.outputs();
    let error = "other file system".to_owned();
    let outputs =
        peer.hear(&[MoverEvent::Refused { attempt: 1, errno: libc::EINVAL, error }.encode()]);
    assert!(matches!(&outputs[..], [Output::Failed(e)] if e.errno() == libc::EINVAL));
}
