//! The protocol with values: no socket, no thread, a clock that the test moves.
#![forbid(unsafe_code)]

use lcap_wire::control::{Op, Reply, Request, Start};
use serde_json::json;

use super::*;
use crate::testing::{message, records_of};

const MDT: &str = "lustre-MDT0000";
const BEAT: Duration = Duration::from_secs(1);

struct Table {
    client: Protocol<Vec<u8>>,
    now: Instant,
    /// Indexes that the application was given.
    got: Vec<u64>,
    gaps: Vec<Gap>,
    ended: bool,
    failed: Option<ClientError>,
    troubles: usize,
    greeted: Option<Result<(), ClientError>>,
    closed: bool,
    /// Requests of the client, in order; taken by the tests.
    said: VecDeque<Request>,
    connected: Vec<String>,
    hello_topic: Vec<u8>,
    subscriptions: usize,
    session: u64,
    epoch: u64,
}

fn config(follow: bool, reader: Option<&str>) -> Config {
    Config {
        mdt: MDT.parse().unwrap(),
        stream: "changelog".into(),
        stream_required: true,
        reader: reader.map(str::to_owned),
        filter: None,
        snapshot: false,
        from: 0,
        follow,
        patient: follow,
        endpoints: vec!["tcp://a:1".into(), "tcp://b:2".into()],
        timeout: Duration::from_secs(4),
        prefetch_bytes: 8 << 20,
        ack_interval: BEAT,
        unique: "me".into(),
    }
}

impl Table {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        let mut table = Self {
            client: Protocol::new(config, now),
            now,
            got: Vec::new(),
            gaps: Vec::new(),
            ended: false,
            failed: None,
            troubles: 0,
            greeted: None,
            closed: false,
            said: VecDeque::new(),
            connected: Vec::new(),
            hello_topic: Vec::new(),
            subscriptions: 0,
            session: 10,
            epoch: 1,
        };
        table.look();
        table
    }

    /// Greeted, started, subscribed, caught up: live after sequence `sequence`.
    fn live(reader: Option<&str>, sequence: u64) -> Self {
        let mut table = Self::new(config(true, reader));
        table.greet();
        table.start(json!({}));
        table.hello(sequence);
        assert!(matches!(table.next().op, Op::Fetch(_)));
        table.event(Event::Live { session: table.session, sequence, low: 0 });
        table
    }

    fn look(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::ConnectControl(endpoint) => self.connected.push(endpoint),
                Output::ConnectLive(_, [_, hello]) => {
                    self.hello_topic = hello;
                    self.subscriptions += 1;
                }
                Output::ConnectQueue(endpoint) => self.connected.push(endpoint),
                Output::Control(bytes) | Output::Queue(bytes) => {
                    self.said.push_back(serde_json::from_slice(&bytes).unwrap());
                }
                Output::Deliver(Item::Batch(mut batch)) => {
                    while let Some((range, _)) = batch.next_range() {
                        self.got.extend(records_of(&batch.buffer()[range]));
                    }
                }
                Output::Deliver(Item::Gap(gap)) => self.gaps.push(gap),
                Output::Deliver(Item::Low(_) | Item::Generation(_)) | Output::Answer(..) => {}
                Output::Deliver(Item::End) => self.ended = true,
                Output::Deliver(Item::Failed(error)) => self.failed = Some(error),
                Output::Deliver(Item::Trouble(_)) => self.troubles += 1,
                Output::Greeted(result) => self.greeted = Some(result),
                Output::Closed { .. } => self.closed = true,
            }
        }
    }

    fn next(&mut self) -> Request {
        self.said.pop_front().expect("the client says something")
    }

    fn next_start(&mut self) -> (Start, u64) {
        loop {
            let request = self.next();
            if let Op::Start(start) = request.op {
                return (start, request.id.unwrap());
            }
        }
    }

    fn reply(&mut self, id: Option<u64>, body: &serde_json::Value) {
        self.client.on_control(&Reply::ok(id, body).encode(), self.now);
        self.look();
    }

    fn refuse(&mut self, id: Option<u64>, errno: i32) {
        self.client.on_control(&Reply::error(id, errno, "no").encode(), self.now);
        self.look();
    }

    fn greet(&mut self) {
        let hello = self.next();
        assert!(matches!(hello.op, Op::Hello(_)));
        self.reply(hello.id, &json!({"version": "0", "epoch": 1, "mdts": [], "streams": []}));
        let config = self.client.config.clone();
        self.client.begin(config, self.now);
        self.look();
    }

    /// Answers a start; `more` overrides fields of the reply.
    fn start(&mut self, more: serde_json::Value) -> Start {
        let (start, id) = self.next_start();
        self.session += 1;
        let mut body = json!({
            "session": self.session, "epoch": self.epoch, "generation": 0,
            "delivery": "broadcast", "publish": "tcp://*:9", "next": start.from.max(1),
            "heartbeat_ms": 1000,
        });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        if body["watermark"].is_null() && start.reader.is_some() {
            body["watermark"] = json!(0);
        }
        self.reply(Some(id), &body);
        start
    }

    fn hello(&mut self, sequence: u64) {
        let mut header = Header::for_body(Kind::Hello, b"");
        (header.epoch, header.sequence) = (self.epoch, sequence);
        let topic = self.hello_topic.clone();
        self.data(Source::Live, &topic, &header, Vec::new());
    }

    fn data(&mut self, source: Source, topic: &[u8], header: &Header, body: Vec<u8>) {
        self.client.on_data(source, topic, &header.encode(), body, self.now);
        self.look();
    }

    fn records(&mut self, source: Source, sequence: u64, low: u64, indexes: &[u64]) {
        let (mut header, body) = message(low, indexes);
        (header.epoch, header.sequence) = (self.epoch, sequence);
        self.data(source, b"", &header, body);
    }

    fn event(&mut self, event: Event) {
        self.client.on_control(&event.encode(), self.now);
        self.look();
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.client.on_timer(self.now);
        self.look();
    }

    /// Lets a heartbeat go out, and answers it.
    fn heartbeat(&mut self, sequence: u64, low: u64) {
        self.wait(BEAT);
        let beat = self.next();
        assert!(matches!(beat.op, Op::Heartbeat(_)), "{beat:?}");
        let body = json!({"epoch": self.epoch, "sequence": sequence, "low": low, "head": low});
        self.reply(beat.id, &body);
    }

    /// The client gave its session up and asks for another: from where?
    fn restarted_from(&mut self) -> Option<u64> {
        let fini = self.said.front().map(|request| &request.op);
        if !matches!(fini, Some(Op::Fini(_))) {
            return None;
        }
        let (start, _) = self.next_start();
        Some(start.from)
    }
}

#[test]
fn a_session_begins_in_the_documented_order() {
    let mut table = Table::new(config(true, None));
    assert_eq!(table.connected, ["tcp://a:1"]);
    table.greet();
    assert_eq!(table.greeted, Some(Ok(())));
    assert_eq!(table.start(json!({})).from, 0);
    assert!(table.said.is_empty(), "no fetch before the subscription is proven");
    table.hello(5);
    let fetch = table.next();
    assert!(matches!(&fetch.op, Op::Fetch(fetch) if fetch.upto > 0), "{fetch:?}");
    table.records(Source::Control, 1, 3, &[1, 2, 3]);
    table.records(Source::Live, 6, 5, &[5]); // kept
    table.records(Source::Control, 2, 4, &[4]);
    assert_eq!(table.got, [1, 2, 3, 4]);
    table.event(Event::Live { session: table.session, sequence: 5, low: 4 });
    table.records(Source::Live, 7, 6, &[6]);
    assert_eq!(table.got, [1, 2, 3, 4, 5, 6]);
    assert_eq!(table.restarted_from(), None);
}

#[test]
fn live_messages_that_are_lost_late_or_double() {
    type Script = fn(&mut Table);
    let cases: [(&str, Script, Option<u64>, &[u64]); 9] = [
        ("in order", |t| t.records(Source::Live, 8, 2, &[2]), None, &[1, 2]),
        ("again", |t| t.records(Source::Live, 7, 1, &[1]), None, &[1]),
        ("one is missing", |t| t.records(Source::Live, 9, 3, &[3]), Some(2), &[1]),
        (
            "one is damaged",
            |t| {
                let (mut header, mut body) = message(2, &[2]);
                (header.epoch, header.sequence) = (t.epoch, 8);
                body[60] ^= 1;
                t.data(Source::Live, b"", &header, body);
                assert_eq!(t.client.counters().malformed, 1);
                t.records(Source::Live, 9, 3, &[3]);
            },
            Some(2),
            &[1],
        ),
        (
            "of an earlier epoch",
            |t| {
                t.client.old_epoch = Some(77);
                t.epoch = 77;
                t.records(Source::Live, 8, 2, &[2]);
            },
            None,
            &[1],
        ),
        (
            "of a new epoch",
            |t| {
                t.epoch = 2;
                t.records(Source::Live, 1, 2, &[2]);
            },
            Some(2),
            &[1],
        ),
        ("a second hello, nothing lost", |t| t.hello(7), None, &[1]),
        ("a second hello, something lost", |t| t.hello(8), Some(2), &[1]),
        (
            "a hello of a new epoch",
            |t| {
                t.epoch = 2;
                t.hello(0);
            },
            Some(2),
            &[1],
        ),
    ];
    for (what, script, restarted_from, got) in cases {
        let mut table = Table::live(None, 6);
        table.records(Source::Live, 7, 1, &[1]);
        script(&mut table);
        assert_eq!(table.restarted_from(), restarted_from, "{what}");
        assert_eq!(table.got, got, "{what}");
    }
}

#[test]
fn what_was_kept_during_the_catch_up_has_no_holes() {
    // Kept live messages, a second hello with its sequence, and what is delivered after `live` 5.
    type Case = (&'static str, &'static [u64], Option<u64>, &'static [u64], Option<u64>);
    let cases: [Case; 5] = [
        ("nothing came", &[], None, &[], None),
        ("older ones are in the catch-up", &[4, 5, 6, 7], None, &[6, 7], None),
        ("the first after it is missing", &[7], None, &[], Some(6)),
        ("one in the middle is missing", &[6, 8], None, &[6], Some(7)),
        ("the connection was cut after 6 and 7", &[6, 7], Some(7), &[], Some(6)),
    ];
    for (what, kept, cut, got, restarted_from) in cases {
        let mut table = Table::new(config(true, None));
        table.greet();
        table.start(json!({}));
        table.hello(3);
        table.next();
        for &sequence in kept {
            table.records(Source::Live, sequence, sequence, &[sequence]);
        }
        if let Some(sequence) = cut {
            table.hello(sequence);
        }
        table.event(Event::Live { session: table.session, sequence: 5, low: 5 });
        assert_eq!(table.got, got, "{what}");
        assert_eq!(table.restarted_from(), restarted_from, "{what}");
    }
}

#[test]
fn heartbeats_tell_what_did_not_come() {
    let mut table = Table::live(None, 6);
    table.heartbeat(6, 40); // nothing new, but policies dropped up to 40
    assert_eq!(table.client.low(), RecordIndex::new(40));
    table.heartbeat(7, 50);
    assert_eq!(table.restarted_from(), None, "7 may be on its way");
    table.records(Source::Live, 7, 50, &[50]);
    table.heartbeat(9, 70);
    assert_eq!(table.restarted_from(), None, "7 came; 9 may be on its way");
    table.heartbeat(9, 70);
    assert_eq!(table.restarted_from(), Some(51));
}

#[test]
fn while_the_application_is_slow_nothing_counts_as_lost() {
    let mut small = config(true, None);
    small.prefetch_bytes = 100;
    let mut table = Table::new(small);
    table.greet();
    table.start(json!({}));
    table.hello(0);
    table.event(Event::Live { session: table.session, sequence: 0, low: 0 });
    table.said.clear();
    table.records(Source::Live, 1, 2, &[1, 2]);
    assert!(!table.client.wants_live());
    table.heartbeat(50, 90);
    table.heartbeat(60, 99);
    assert_eq!(table.restarted_from(), None);
    table.client.on_consumed(1000, table.now);
    assert!(table.client.wants_live());
    table.heartbeat(60, 99);
    assert_eq!(table.restarted_from(), None);
    // What libzmq had no room for shows in the next message.
    table.records(Source::Live, 30, 60, &[60]);
    assert_eq!(table.restarted_from(), Some(3));
}

#[test]
fn a_session_that_is_over_is_followed_by_another_at_the_place() {
    type Script = fn(&mut Table);
    let cases: [(&str, Script); 4] = [
        ("lost", |t| {
            let (session, error) = (t.session, "silence".to_owned());
            t.event(Event::Lost { session, errno: libc::ESTALE, error });
        }),
        ("unknown to the server", |t| {
            t.wait(BEAT);
            let beat = t.next();
            t.refuse(beat.id, libc::ESTALE);
        }),
        ("another epoch", |t| {
            t.epoch = 5;
            t.heartbeat(0, 0);
        }),
        ("another generation without notice", |t| {
            let (mut header, body) = message(4, &[4]);
            (header.epoch, header.sequence, header.generation) = (t.epoch, 8, 1);
            t.data(Source::Live, b"", &header, body);
        }),
    ];
    for (what, script) in cases {
        let mut table = Table::live(None, 6);
        table.records(Source::Live, 7, 2, &[1, 2, 9]);
        script(&mut table);
        assert!(matches!(table.next().op, Op::Fini(_)), "{what}");
        let start = table.start(json!({}));
        assert_eq!((start.from, start.generation), (3, Some(0)), "{what}");
        if table.epoch == 1 {
            assert_eq!(table.subscriptions, 1, "{what}: the subscription still is live");
        } else {
            table.hello(0);
        }
        table.next();
        table.records(Source::Control, 1, 9, &[3, 9]);
        assert_eq!(table.got, [1, 2, 9, 3], "{what}");
    }
}

#[test]
fn a_cut_connection_ends_what_comes_over_it() {
    let mut table = Table::new(config(true, None));
    table.greet();
    table.start(json!({}));
    table.hello(0);
    table.next();
    table.records(Source::Control, 1, 3, &[1, 2, 3]);
    table.client.on_disconnected(Source::Control, table.now);
    table.look();
    assert_eq!(table.restarted_from(), Some(4));

    let mut table = Table::live(None, 6);
    table.client.on_disconnected(Source::Control, table.now);
    table.look();
    assert_eq!(table.restarted_from(), None, "live records come another way");
}

#[test]
fn events_of_other_sessions_change_nothing() {
    let mut table = Table::live(None, 6);
    table.event(Event::Lost { session: 1, errno: libc::ESTALE, error: String::new() });
    table.event(Event::End { session: table.session, low: 9 }); // it follows
    table.client.on_control(b"{]", table.now);
    table.look();
    assert_eq!((table.restarted_from(), table.ended), (None, false));
    assert_eq!(table.client.counters().malformed, 1);
}

#[test]
fn a_rewind_is_told_once_and_its_records_come_again() {
    let mut table = Table::live(None, 6);
    table.records(Source::Live, 7, 9, &[7, 8, 9]);
    let mut header = Header::for_body(Kind::Gap, b"");
    (header.epoch, header.sequence, header.generation) = (1, 8, 1);
    (header.first, header.low) = (RecordIndex::new(8), RecordIndex::new(7));
    table.data(Source::Live, b"", &header, Vec::new());
    let (mut header, body) = message(9, &[8, 9]);
    (header.epoch, header.sequence, header.generation) = (1, 9, 1);
    table.data(Source::Live, b"", &header, body);
    assert_eq!(table.got, [7, 8, 9, 8, 9]);
    let gap = Gap { first: RecordIndex::new(8), last: RecordIndex::ZERO, new_generation: Some(1) };
    assert_eq!(table.gaps, [gap]);

    // The same, slept through: the next session tells.
    table.event(Event::Lost { session: table.session, errno: libc::ESTALE, error: "x".into() });
    table.next();
    let start = table.start(json!({"generation": 2, "rewind": 5, "next": 5}));
    assert_eq!((start.from, start.generation), (10, Some(1)));
    table.next();
    assert_eq!(table.gaps.len(), 2);
    let (mut header, body) = message(6, &[5, 6]);
    (header.epoch, header.sequence, header.generation) = (1, 1, 2);
    table.data(Source::Control, b"", &header, body);
    assert_eq!(table.got, [7, 8, 9, 8, 9, 5, 6]);
}

#[test]
fn acknowledgements_cover_everything_since_the_session_began_and_are_repeated_after_a_loss() {
    let acks = |table: &mut Table| {
        let acks = std::mem::take(&mut table.said).into_iter().filter_map(|r| match r.op {
            Op::Ack(ack) => Some((r.id, ack.ranges)),
            _ => None,
        });
        acks.collect::<Vec<_>>()
    };
    let mut table = Table::live(Some("rbh"), 6);
    table.records(Source::Live, 7, 9, &[7, 8, 9]);
    table.wait(BEAT);
    assert_eq!(acks(&mut table), [], "nothing was cleared");
    table.client.settle_reader(8, 0);
    table.client.settle_reader(99, 1); // of a generation that is not here yet
    table.wait(BEAT);
    let sent = acks(&mut table);
    assert_eq!(sent[0].1, [(1, 8)]);
    table.wait(BEAT);
    assert_eq!(acks(&mut table), [], "its answer is awaited");
    table.event(Event::Lost { session: table.session, errno: libc::ESTALE, error: "x".into() });
    table.start(json!({"watermark": 3}));
    table.wait(BEAT);
    let sent = acks(&mut table);
    assert_eq!(sent[0].1, [(4, 8)]);
    table.reply(sent[0].0, &json!({}));
    table.client.settle_reader(9, 0);
    table.client.flush(table.now);
    table.look();
    let sent = acks(&mut table);
    assert_eq!(sent[0].1, [(4, 9)], "a flush does not wait");
    table.client.close(table.now);
    table.look();
    assert!(!table.closed, "its answer is awaited");
    table.reply(sent[0].0, &json!({}));
    assert!(table.closed && matches!(table.next().op, Op::Fini(_)));
}

#[test]
fn closing_waits_for_nobody_who_does_not_answer() {
    let mut table = Table::live(Some("rbh"), 6);
    table.records(Source::Live, 7, 9, &[7, 8, 9]);
    table.client.settle_reader(9, 0);
    table.client.close(table.now);
    table.look();
    assert!(!table.closed);
    assert!(table.client.next_deadline().unwrap() <= table.now + CLOSE_TIME);
    table.wait(CLOSE_TIME);
    assert!(table.closed);
}

#[test]
fn without_following_the_end_is_told_and_acknowledging_goes_on() {
    let mut table = Table::new(config(false, Some("rbh")));
    table.greet();
    table.start(json!({}));
    assert_eq!(table.subscriptions, 0);
    table.next();
    table.records(Source::Control, 1, 3, &[1, 2, 3]);
    table.event(Event::End { session: table.session, low: 4 });
    assert!(table.ended);
    // The server falls silent; nothing more is read from the next one.
    for _ in 0..5 {
        table.wait(BEAT);
    }
    assert_eq!(table.connected.last().unwrap(), "tcp://b:2");
    assert!(!table.said.iter().any(|request| matches!(request.op, Op::Start(_))));
    table.said.clear();
    // A clear needs no session.
    table.client.settle_reader(4, 0);
    table.wait(BEAT);
    let clear = table.next();
    assert!(matches!(&clear.op, Op::Clear(clear) if clear.upto == 4), "{clear:?}");
}

#[test]
fn a_member_takes_redelivered_records_once_and_acknowledges_them_again() {
    let mut table = Table::new(config(true, None));
    table.greet();
    let queue = json!({"delivery": "queue", "publish": "tcp://q:9"});
    table.start(queue.clone());
    assert_eq!(table.connected.last().unwrap(), "tcp://q:9");
    assert!(matches!(table.next().op, Op::Fetch(_)));
    table.records(Source::Queue, 1, 0, &[4, 1]);
    let mut settled = RangeSet::new();
    settled.insert(RecordIndex::new(4), RecordIndex::new(4));
    table.client.settle_member(&settled);
    table.wait(BEAT);
    let mut said = std::mem::take(&mut table.said).into_iter();
    let ack = said.find(|request| matches!(request.op, Op::Ack(_))).unwrap();
    assert!(matches!(&ack.op, Op::Ack(ack) if ack.ranges == [(4, 4)]));
    // The answer is lost with the session: 4 comes again, and is acknowledged again, not delivered.
    table.event(Event::Lost { session: table.session, errno: libc::ESTALE, error: "x".into() });
    table.start(queue);
    table.next();
    table.records(Source::Queue, 1, 0, &[1, 4, 6]);
    assert_eq!(table.got, [4, 1, 6]);
    table.wait(BEAT);
    let mut said = std::mem::take(&mut table.said).into_iter();
    let ack = said.find(|request| matches!(request.op, Op::Ack(_))).unwrap();
    assert!(matches!(&ack.op, Op::Ack(ack) if ack.ranges == [(4, 4)]), "{ack:?}");
}

#[test]
fn servers_are_tried_in_turn() {
    let mut table = Table::new(config(true, None));
    table.wait(Duration::from_secs(2));
    assert_eq!(table.connected, ["tcp://a:1", "tcp://b:2"]);
    assert_eq!(table.greeted, None);
    table.wait(Duration::from_secs(2));
    assert_eq!(table.greeted.as_ref().unwrap().as_ref().unwrap_err().errno(), libc::ETIMEDOUT);
    table.said.clear();
    table.wait(Duration::from_secs(2));
    assert_eq!(table.connected.len(), 4, "it goes on trying: {:?}", table.connected);
    // In a session, five silent heartbeats are enough.
    let mut table = Table::live(None, 6);
    table.said.clear();
    for _ in 0..4 {
        table.wait(BEAT);
    }
    assert_eq!(table.connected, ["tcp://a:1"]);
    table.wait(BEAT);
    assert_eq!(table.connected, ["tcp://a:1", "tcp://b:2"]);
    assert_eq!(table.next_start().0.from, 1);
}

#[test]
fn a_server_without_the_mdt_is_no_answer_while_there_is_another() {
    let mut table = Table::new(config(false, None));
    let hello = table.next();
    table.refuse(hello.id, libc::ENOENT);
    assert_eq!((table.connected.len(), table.greeted.is_some()), (2, false));
    let hello = table.next();
    table.refuse(hello.id, libc::ENOENT);
    assert_eq!(table.greeted.unwrap().unwrap_err().errno(), libc::ENOENT);
}

#[test]
fn a_refused_start_is_final_or_tried_again_with_growing_pauses() {
    for errno in [libc::ENOENT, libc::EKEYEXPIRED, libc::EINVAL] {
        let mut table = Table::new(config(true, None));
        table.greet();
        let (_, id) = table.next_start();
        table.refuse(Some(id), errno);
        assert_eq!(table.failed.unwrap().errno(), errno);
    }
    let mut table = Table::new(config(true, None));
    table.greet();
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let (_, id) = table.next_start();
        table.refuse(Some(id), libc::EAGAIN);
        let pause = match table.said.front() {
            Some(_) => Duration::ZERO,
            None => table.client.next_deadline().unwrap() - table.now,
        };
        pauses.push(pause);
        table.wait(pause);
    }
    assert_eq!(pauses[0], Duration::ZERO, "the first time at once");
    assert!(pauses.is_sorted() && *pauses.last().unwrap() == MAX_BACKOFF, "{pauses:?}");
}

#[test]
fn who_does_not_wait_is_told_that_the_server_is_away() {
    let mut table = Table::new(config(false, None));
    table.greet();
    table.start(json!({}));
    table.next();
    table.event(Event::Lost { session: table.session, errno: libc::ESTALE, error: "x".into() });
    table.wait(Duration::from_secs(4));
    assert_eq!(table.troubles, 1);
    table.wait(Duration::from_secs(4));
    assert_eq!(table.troubles, 2);
}

#[test]
fn streams_of_other_things_than_records_are_refused() {
    let mut table = Table::live(None, 6);
    let mut header = Header::for_body(Kind::Records, b"x");
    header.flags = Flags::JSON;
    (header.epoch, header.sequence, header.count) = (1, 7, 1);
    table.data(Source::Live, b"", &header, b"x".to_vec());
    assert_eq!(table.failed.unwrap().errno(), libc::ENOTSUP);
}
