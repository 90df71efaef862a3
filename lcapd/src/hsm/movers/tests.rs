//! Cases that are named in the list of the original's faults; the rest is in the simulation.

use super::*;
use lcap_ffi::Fid;

use crate::hsm::queue::Cancelled;

const NOW: Now = Duration::from_secs(1_800_000_000);
const SECOND: Duration = Duration::from_secs(1);

struct Desk {
    movers: Movers,
    queue: Queue,
    now: Now,
}

/// What a peer was told: the event, and its list.
type Told1 = (MoverEvent, Vec<(u32, u64)>);

impl Desk {
    fn new() -> Self {
        let settings = Settings {
            fsname: "fs".into(),
            heartbeat: SECOND,
            grace: SECOND * 60,
            graces: BTreeMap::from([("short".to_owned(), SECOND * 2)]),
        };
        Self { movers: Movers::new(settings, 100), queue: Queue::new(Default::default()), now: NOW }
    }

    fn admit(&mut self, cookie: u64, arrival: Arrival) -> u64 {
        let fid = Fid { seq: 7, oid: u32::try_from(cookie & 0xffff).unwrap(), ver: 0 };
        let source = Source::Coordinator { cookie };
        let request = Request::new(source, self.movers.mdt.clone(), Kind::Archive, fid, 1);
        self.queue.admit(request, arrival, self.now).id()
    }

    fn say(&mut self, peer: u8, op: MoverOp, behind: Vec<Vec<u8>>) {
        let mut frames = vec![MoverMessage::encode(op)];
        frames.extend(behind);
        let peer: Peer = vec![peer].into();
        self.movers.on_message(&mut self.queue, &peer, &frames, self.now);
    }

    fn hello(&mut self, peer: u8, name: &str, life: u64, attempt: u64, held: &[u64]) {
        let mut list = ListBuilder::new(b"fs", 1, 0);
        for &cookie in held {
            let fid = Fid { seq: 7, oid: u32::try_from(cookie & 0xffff).unwrap(), ver: 0 };
            let source = Source::Coordinator { cookie };
            let request = Request::new(source, "fs-MDTffff".into(), Kind::Archive, fid, 1);
            list.push(&item_of(&request)).unwrap();
        }
        let lists = if held.is_empty() { Vec::new() } else { vec![list.finish()] };
        let hello = Hello { mover: name.to_owned(), life, attempt, upto: 10, ..Hello::default() };
        self.say(peer, MoverOp::Hello(hello), lists);
    }

    fn report(
        &mut self,
        peer: u8,
        session: u64,
        sequence: u64,
        cookie: u64,
        what: Told,
        status: i32,
    ) {
        let fid = Fid { seq: 7, oid: u32::try_from(cookie & 0xffff).unwrap(), ver: 0 };
        let report = Report { key: RequestKey { cookie, fid }, what, status };
        self.say(peer, MoverOp::Report { session, sequence }, vec![report.to_bytes().to_vec()]);
    }

    fn settle(&mut self) -> Vec<(u8, Told1)> {
        self.movers.tick(&mut self.queue, self.now);
        self.queue.tick(self.now);
        for _ in 0..3 {
            for event in self.queue.take_events() {
                self.movers.on_event(&event);
            }
            self.movers.dispatch(&mut self.queue, self.now);
        }
        let outputs = self.movers.take_outputs().into_iter();
        outputs
            .map(|Output { peer, frames }| {
                let event = serde_json::from_slice(&frames[0]).unwrap();
                let items = frames[1..].iter().flat_map(|list| {
                    let list = ActionList::parse(list).unwrap();
                    list.items().map(|item| (item.action, item.cookie)).collect::<Vec<_>>()
                });
                (peer[0], (event, items.collect()))
            })
            .collect()
    }

    fn session(&self, name: &str) -> u64 {
        self.movers.by_name[name]
    }

    fn work_of(told: &[(u8, Told1)], peer: u8) -> Vec<(u32, u64)> {
        told.iter()
            .filter(|(to, _)| *to == peer)
            .flat_map(|(_, (_, items))| items.clone())
            .collect()
    }
}

#[test]
fn a_cancel_while_its_mover_is_away_waits_for_it() {
    // B2
    let mut desk = Desk::new();
    desk.hello(1, "a", 1, 1, &[]);
    let id = desk.admit(5, Arrival::Sent);
    assert_eq!(Desk::work_of(&desk.settle(), 1), [(20, 5)]);
    desk.movers.unreachable(&mut desk.queue, &vec![1].into(), desk.now);
    assert!(matches!(desk.queue.cancel(id, desk.now), Cancelled::Running(_)));
    desk.settle();
    desk.now += SECOND * 10;
    desk.hello(2, "a", 1, 2, &[5]);
    assert_eq!(Desk::work_of(&desk.settle(), 2), [(23, 5)]);
    let session = desk.session("a");
    desk.report(2, session, 1, 5, Told::Done, libc::ECANCELED);
    desk.settle();
    assert!(desk.queue.is_empty());
}

#[test]
fn a_cancel_whose_mover_never_comes_back_is_answered() {
    let mut desk = Desk::new();
    desk.hello(1, "short", 1, 1, &[]);
    let id = desk.admit(5, Arrival::Sent);
    desk.settle();
    desk.queue.cancel(id, desk.now);
    desk.movers.unreachable(&mut desk.queue, &vec![1].into(), desk.now);
    desk.now += SECOND * 3;
    desk.settle();
    assert!(desk.queue.is_empty());
    let told = desk.movers.take_to_lustre();
    assert!(matches!(&told[..], [ToLustre::Fail { errno: libc::ECANCELED, .. }]), "{told:?}");
}

#[test]
fn a_retry_that_overtakes_the_end_of_the_first_run_is_not_lost() {
    // B13
    let mut desk = Desk::new();
    desk.hello(1, "a", 1, 1, &[]);
    desk.admit(5, Arrival::Sent);
    desk.settle();
    assert!(desk.queue.find("fs-MDTffff", 5, Fid { seq: 7, oid: 5, ver: 0 }).is_some());
    desk.admit(5, Arrival::Sent);
    let session = desk.session("a");
    desk.report(1, session, 1, 5, Told::Done, libc::EIO);
    assert_eq!(Desk::work_of(&desk.settle(), 1), [(20, 5)], "it is run again");
    // The first report, said again because its answer was lost, does not end the second run.
    desk.report(1, session, 1, 5, Told::Done, libc::EIO);
    desk.settle();
    assert_eq!(desk.queue.len(), 1);
    desk.report(1, session, 2, 5, Told::Done, 0);
    desk.settle();
    assert!(desk.queue.is_empty());
}

#[test]
fn a_refused_begin_ends_the_action_and_lustre_is_told() {
    let mut desk = Desk::new();
    desk.hello(1, "a", 1, 1, &[]);
    desk.admit(5, Arrival::Sent);
    desk.settle();
    let session = desk.session("a");
    desk.report(1, session, 1, 5, Told::Refused, libc::ENOENT);
    desk.settle();
    assert!(desk.queue.is_empty());
    let told = desk.movers.take_to_lustre();
    assert!(matches!(&told[..], [ToLustre::Fail { errno: libc::ENOENT, .. }]), "{told:?}");
}

#[test]
fn a_mover_may_end_only_what_it_holds() {
    let mut desk = Desk::new();
    desk.hello(1, "a", 1, 1, &[]);
    desk.admit(5, Arrival::Sent);
    desk.settle();
    desk.hello(2, "b", 2, 1, &[]);
    let (a, b) = (desk.session("a"), desk.session("b"));
    desk.report(2, b, 1, 5, Told::Done, 0);
    desk.settle();
    assert_eq!(desk.queue.len(), 1);
    // Nor may it speak in another's session.
    desk.report(2, a, 1, 5, Told::Done, 0);
    let told = desk.settle();
    assert!(
        told.iter().any(|(to, (event, _))| *to == 2 && matches!(event, MoverEvent::Lost { .. }))
    );
    assert_eq!(desk.queue.len(), 1);
}

#[test]
fn a_name_belongs_to_whoever_lives() {
    let mut desk = Desk::new();
    desk.hello(1, "a", 1, 1, &[]);
    desk.admit(5, Arrival::Sent);
    desk.settle();
    let session = desk.session("a");
    // A second one asks; the first is asked whether it lives, and says so.
    desk.hello(2, "a", 2, 1, &[]);
    let told = desk.settle();
    assert!(matches!(told[..], [(1, (MoverEvent::Probe { .. }, _))]), "{told:?}");
    desk.say(1, MoverOp::Here { session }, Vec::new());
    let told = desk.settle();
    let refused = |(to, (event, _)): &(u8, Told1)| {
        *to == 2 && matches!(event, MoverEvent::Refused { errno: libc::EEXIST, .. })
    };
    assert!(told.iter().any(refused), "{told:?}");
    // It asks again, and this time there is nobody to answer: what the dead one ran is free at once.
    desk.hello(2, "a", 2, 2, &[]);
    desk.settle();
    desk.movers.unreachable(&mut desk.queue, &vec![1].into(), desk.now);
    let told = desk.settle();
    assert_eq!(Desk::work_of(&told, 2), [(20, 5)]);
    assert_ne!(desk.session("a"), session);
    // A hello of the dead one's that arrives late changes nothing.
    desk.hello(1, "a", 1, 1, &[]);
    let now = desk.session("a");
    desk.say(2, MoverOp::Here { session: now }, Vec::new());
    desk.settle();
    assert_eq!(desk.session("a"), now);
    desk.hello(2, "a", 2, 1, &[5]);
    desk.settle();
    assert_eq!(desk.session("a"), now, "an old attempt of the living one's");
}

#[test]
fn a_silent_mover_keeps_what_it_runs_for_its_grace_time() {
    let mut desk = Desk::new();
    desk.hello(1, "a", 1, 1, &[]);
    desk.admit(5, Arrival::Sent);
    desk.settle();
    desk.hello(2, "b", 2, 1, &[]);
    let b = desk.session("b");
    for _ in 0..64 {
        desk.now += SECOND;
        desk.say(2, MoverOp::Heartbeat { session: b }, Vec::new());
        assert_eq!(Desk::work_of(&desk.settle(), 2), []);
    }
    desk.now += SECOND * 2;
    desk.say(2, MoverOp::Heartbeat { session: b }, Vec::new());
    assert_eq!(Desk::work_of(&desk.settle(), 2), [(20, 5)]);
    // It comes back nevertheless, and learns that another has it.
    desk.hello(3, "a", 1, 2, &[5]);
    assert_eq!(Desk::work_of(&desk.settle(), 3), [(23, 5)]);
    let a = desk.session("a");
    desk.report(3, a, 1, 5, Told::Done, 0);
    desk.settle();
    assert_eq!(desk.queue.len(), 1, "the other's end counts");
    // A command ends a mover at once.
    assert!(desk.movers.drop_mover(&mut desk.queue, "b", desk.now));
    assert_eq!(Desk::work_of(&desk.settle(), 3), [(20, 5)]);
}

#[test]
fn credit_and_limits_hold_over_reconnects() {
    // S3
    let mut desk = Desk::new();
    for cookie in 1..=30 {
        desk.admit(cookie, Arrival::Sent);
    }
    desk.hello(1, "a", 1, 1, &[]);
    assert_eq!(Desk::work_of(&desk.settle(), 1).len(), 10);
    let session = desk.session("a");
    desk.say(1, MoverOp::Credit { session, upto: 15 }, Vec::new());
    desk.say(1, MoverOp::Credit { session, upto: 12 }, Vec::new());
    assert_eq!(Desk::work_of(&desk.settle(), 1).len(), 5);
    desk.hello(1, "a", 1, 2, &(1..=15).collect::<Vec<_>>());
    desk.settle();
    let hello = desk.movers.sessions[&desk.session("a")].hello.clone();
    assert_eq!(hello.attempt, 2);
    assert_eq!(desk.queue.worker("a").unwrap().running.len(), 25, "15 and a new credit of 10");
    let wrong = [
        Hello { mover: "x y".into(), ..Hello::default() },
        Hello { mover: "x".into(), fsname: Some("other".into()), ..Hello::default() },
        Hello { mover: "x".into(), archives: vec![0], ..Hello::default() },
    ];
    for hello in wrong {
        desk.say(9, MoverOp::Hello(hello.clone()), Vec::new());
        let told = desk.settle();
        assert!(
            matches!(&told[..], [(9, (MoverEvent::Refused { errno: libc::EINVAL, .. }, _))]),
            "{hello:?}"
        );
    }
    for garbage in [&b"nonsense"[..], b"{}", b"{\"v\":1,\"op\":\"report\",\"session\":1}"] {
        let peer: Peer = vec![9].into();
        desk.movers.on_message(&mut desk.queue, &peer, &[garbage.to_vec()], desk.now);
    }
}

#[test]
fn what_an_upcall_asked_for_is_not_for_a_copytool() {
    let mut desk = Desk::new();
    let fid = Fid { seq: 7, oid: 1, ver: 0 };
    let mdt = desk.movers.mdt.clone();
    let upcall = Request::new(Source::Upcall, mdt, Kind::Archive, fid, 1);
    desk.queue.admit(upcall, Arrival::Sent, NOW);
    desk.hello(1, "a", 1, 1, &[]);
    assert!(Desk::work_of(&desk.settle(), 1).is_empty());
    desk.admit(5, Arrival::Sent);
    assert_eq!(Desk::work_of(&desk.settle(), 1), [(20, 5)]);
}
