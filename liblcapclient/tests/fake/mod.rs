//! A small lcapd for tests: one MDT, one broadcast stream `changelog`, one queue stream `work`;
//! real sockets, and faults on demand.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used
)] // every test file uses its own part

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{
    Delivery, Event, HeartbeatReply, HelloReply, Op, Ranges, ReaderStatus, Reply, Request,
    StartReply,
};
use lcap_wire::{Flags, Header, Kind, frame};
use serde_json::json;

pub const MDT: &str = "lustre-MDT0000";
pub const HEARTBEAT_MS: u64 = 50;

/// A packed record: 64 bytes of head, a jobid, and a name that varies in length.
pub fn record(index: u64) -> Vec<u8> {
    let name = format!("file-{index}-{}", "x".repeat(usize::try_from(index % 7).unwrap()));
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u16::try_from(name.len()).unwrap().to_ne_bytes());
    bytes.extend_from_slice(&0x5000_u16.to_ne_bytes()); // version, jobid
    bytes.extend_from_slice(&1_u32.to_ne_bytes()); // create
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&((1_700_000_000_u64 << 30) | index).to_ne_bytes());
    for (seq, oid) in [(0x2_0000_0402_u64, index), (0x2_0000_0007, 1)] {
        bytes.extend_from_slice(&seq.to_ne_bytes());
        bytes.extend_from_slice(&u32::try_from(oid).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
    }
    let mut jobid = [0_u8; 32];
    jobid[..6].copy_from_slice(b"job.42");
    bytes.extend_from_slice(&jobid);
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

#[derive(Debug)]
pub struct Session {
    peer: Vec<u8>,
    follow: bool,
    /// Index to go on with in catch-up.
    next: u64,
    live: bool,
    ended: bool,
    sent: u64,
    upto: u64,
    queue_peer: Option<Vec<u8>>,
    /// Queue: indexes that the member holds.
    held: Vec<u64>,
}

/// What the server's thread works on. Tests change it with [`Fake::with`].
pub struct State {
    control: zmq::Socket,
    live: zmq::Socket,
    queue: zmq::Socket,
    live_endpoint: String,
    queue_endpoint: String,
    mdt: MdtName,
    pub epoch: u64,
    pub generation: u16,
    pub log: BTreeMap<u64, Vec<u8>>,
    /// Everything up to here is read (and dropped, where there is no record).
    pub head: u64,
    pub sequence: u64,
    pub sessions: BTreeMap<u64, Session>,
    next_session: u64,
    /// Readers and their watermarks.
    pub readers: BTreeMap<String, u64>,
    /// Queue: indexes that are in the log and were not acknowledged.
    pub queued: Vec<u64>,
    pub redelivered: Vec<u64>,
    pub queue_acked: Vec<u64>,
    pub per_message: usize,
    pub rewound: Option<(u16, u64)>,
    /// Send the bytes in the log, not those that `record` makes.
    pub from_log: bool,
    // Faults.
    pub lose_live: u32,
    pub lose_catch_up: u32,
    pub twice: bool,
    pub mute: bool,
    pub refuse_start: Option<i32>,
    // Observations.
    pub starts: Vec<(u64, Option<String>)>,
    pub acks: Vec<Ranges>,
    pub clears: Vec<(String, u64)>,
    pub finis: u32,
}

type Job = Box<dyn FnOnce(&mut State) + Send>;

pub struct Fake {
    pub endpoint: String,
    jobs: Option<Sender<Job>>,
    bell: zmq::Socket,
    thread: Option<JoinHandle<()>>,
}

fn bind(
    context: &zmq::Context,
    kind: zmq::SocketType,
    at: &str,
    secret: Option<&[u8]>,
) -> (zmq::Socket, String) {
    let socket = context.socket(kind).unwrap();
    socket.set_linger(0).unwrap();
    if let Some(secret) = secret {
        socket.set_curve_server(true).unwrap();
        socket.set_curve_secretkey(secret).unwrap();
    }
    if kind == zmq::XPUB {
        socket.set_xpub_verbose(true).unwrap();
    }
    socket.bind(at).unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    (socket, endpoint)
}

impl Fake {
    pub fn start() -> Self {
        Self::start_at("tcp://127.0.0.1:*", 1)
    }

    /// With a control endpoint and an epoch of the test's choice.
    pub fn start_at(control: &str, epoch: u64) -> Self {
        Self::start_with(control, epoch, None)
    }

    /// With CURVE: the secret key of the server.
    pub fn start_with(control: &str, epoch: u64, secret: Option<&[u8]>) -> Self {
        let context = zmq::Context::new();
        let any = "tcp://127.0.0.1:*";
        let (control, endpoint) = bind(&context, zmq::ROUTER, control, secret);
        let (live, live_endpoint) = bind(&context, zmq::XPUB, any, secret);
        let (queue, queue_endpoint) = bind(&context, zmq::ROUTER, any, secret);
        let (bell, ring) = (context.socket(zmq::PAIR).unwrap(), context.socket(zmq::PAIR).unwrap());
        bell.bind("inproc://bell").unwrap();
        ring.connect("inproc://bell").unwrap();
        let (jobs, queue_of_jobs) = crossbeam_channel::unbounded();
        let state = State {
            control,
            live,
            queue,
            live_endpoint,
            queue_endpoint,
            mdt: MDT.parse().unwrap(),
            epoch,
            generation: 0,
            log: BTreeMap::new(),
            head: 0,
            sequence: 0,
            sessions: BTreeMap::new(),
            next_session: epoch * 1000,
            readers: BTreeMap::new(),
            queued: Vec::new(),
            redelivered: Vec::new(),
            queue_acked: Vec::new(),
            per_message: 10,
            rewound: None,
            from_log: false,
            lose_live: 0,
            lose_catch_up: 0,
            twice: false,
            mute: false,
            refuse_start: None,
            starts: Vec::new(),
            acks: Vec::new(),
            clears: Vec::new(),
            finis: 0,
        };
        let thread = std::thread::spawn(move || state.run(&ring, &queue_of_jobs));
        Self { endpoint, jobs: Some(jobs), bell, thread: Some(thread) }
    }

    /// Does something to the server, between two messages of its own.
    pub fn with<T: Send + 'static>(&self, job: impl FnOnce(&mut State) -> T + Send + 'static) -> T {
        let (sender, result) = crossbeam_channel::bounded(1);
        let job: Job = Box::new(move |state| {
            let _ = sender.send(job(state));
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        self.bell.send("ding", 0).unwrap();
        result.recv().unwrap()
    }

    /// Waits until the server's state is as the test wants it.
    pub fn until(&self, what: &str, test: impl Fn(&State) -> bool + Send + Clone + 'static) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let test = test.clone();
            if self.with(move |state| test(state)) {
                return;
            }
            assert!(Instant::now() < deadline, "never happened: {what}");
            std::thread::yield_now();
        }
    }

    pub fn append(&self, indexes: impl IntoIterator<Item = u64>) {
        let indexes: Vec<u64> = indexes.into_iter().collect();
        self.with(move |state| state.append(&indexes));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.bell.send("ding", 0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn run(mut self, ring: &zmq::Socket, jobs: &Receiver<Job>) {
        loop {
            let mut items = [
                ring.as_poll_item(zmq::POLLIN),
                self.control.as_poll_item(zmq::POLLIN),
                self.live.as_poll_item(zmq::POLLIN),
                self.queue.as_poll_item(zmq::POLLIN),
            ];
            zmq::poll(&mut items, -1).unwrap();
            let ready = items.map(|item| item.is_readable());
            if ready[0] {
                ring.recv_bytes(0).unwrap();
                let Ok(job) = jobs.try_recv() else { return };
                job(&mut self);
            }
            if ready[1] {
                let mut frames = self.control.recv_multipart(0).unwrap();
                let (message, peer) = (frames.pop().unwrap(), frames.swap_remove(0));
                self.on_request(&peer, &message, false);
            }
            if ready[2] {
                let message = self.live.recv_bytes(0).unwrap();
                self.on_subscription(&message);
            }
            if ready[3] {
                let mut frames = self.queue.recv_multipart(0).unwrap();
                let (message, peer) = (frames.pop().unwrap(), frames.swap_remove(0));
                self.on_request(&peer, &message, true);
            }
            self.serve();
        }
    }

    fn on_subscription(&mut self, message: &[u8]) {
        if message[0] == 1 && message.get(1) == Some(&0) && !self.mute {
            let mut header = Header::for_body(Kind::Hello, b"");
            header.epoch = self.epoch;
            header.sequence = self.sequence;
            self.live.send_multipart([&message[1..], &header.encode()[..], b""], 0).unwrap();
        }
    }

    fn on_request(&mut self, peer: &[u8], message: &[u8], over_queue: bool) {
        if self.mute {
            return;
        }
        let request: Request = serde_json::from_slice(message).unwrap();
        let id = request.id;
        let no_session = Reply::error(id, libc::ESTALE, "no such session");
        let reply = match request.op {
            Op::Hello(hello) => {
                let streams = ["changelog", "work"].map(String::from);
                if hello.mdt.is_some_and(|mdt| mdt != self.mdt.as_str()) {
                    Reply::error(id, libc::ENOENT, "no such MDT")
                } else if hello.stream.is_some_and(|stream| !streams.contains(&stream)) {
                    Reply::error(id, libc::ENOENT, "no such stream")
                } else {
                    let (version, epoch) = ("0".to_owned(), self.epoch);
                    let mdts = vec![self.mdt.to_string()];
                    Reply::ok(id, &HelloReply { version, epoch, mdts, streams: streams.to_vec() })
                }
            }
            Op::Start(start) => {
                self.starts.push((start.from, start.reader.clone()));
                let known = start.reader.as_ref().is_none_or(|r| self.readers.contains_key(r));
                if let Some(errno) = self.refuse_start {
                    Reply::error(id, errno, "refused by the test")
                } else if !known {
                    Reply::error(id, libc::ENOENT, "no such reader")
                } else {
                    Reply::ok(id, &self.open(peer, &start))
                }
            }
            Op::Fetch(fetch) => {
                if let Some(session) = self.sessions.get_mut(&fetch.session) {
                    session.upto = session.upto.max(fetch.upto);
                    if over_queue {
                        session.queue_peer = Some(peer.to_vec());
                    }
                }
                return;
            }
            Op::Ack(ack) => {
                self.acks.push(ack.ranges.clone());
                match self.sessions.get_mut(&ack.session) {
                    None => no_session,
                    Some(session) => {
                        if over_queue {
                            let done =
                                |i: &u64| ack.ranges.iter().any(|&(a, b)| a <= *i && *i <= b);
                            let (acked, kept) = session.held.drain(..).partition::<Vec<_>, _>(done);
                            session.held = kept;
                            self.queue_acked.extend(acked);
                        } else {
                            for mark in self.readers.values_mut() {
                                for &(first, last) in &ack.ranges {
                                    if first <= *mark + 1 {
                                        *mark = (*mark).max(last.min(self.head));
                                    }
                                }
                            }
                        }
                        Reply::ok(id, &json!({}))
                    }
                }
            }
            Op::Heartbeat(beat) if self.sessions.contains_key(&beat.session) => {
                let (epoch, sequence) = (self.epoch, self.sequence);
                Reply::ok(id, &HeartbeatReply { epoch, sequence, low: self.head, head: self.head })
            }
            Op::Heartbeat(_) => no_session,
            Op::Fini(fini) => {
                self.finis += 1;
                self.close(fini.session);
                return;
            }
            Op::Clear(clear) if clear.mdt != self.mdt.as_str() => {
                Reply::error(id, libc::ENOENT, "no such MDT")
            }
            Op::Clear(clear) => match self.readers.get_mut(&clear.reader) {
                None => Reply::error(id, libc::ENOENT, "no such reader"),
                Some(mark) => {
                    *mark = (*mark).max(clear.upto);
                    self.clears.push((clear.reader, clear.upto));
                    Reply::ok(id, &json!({}))
                }
            },
            Op::ReaderRegister(register) => {
                if self.readers.contains_key(&register.name) {
                    Reply::error(id, libc::EEXIST, "there is one")
                } else {
                    self.readers.insert(register.name, self.head);
                    Reply::ok(id, &json!({}))
                }
            }
            Op::ReaderDeregister(gone) => match self.readers.remove(&gone.name) {
                None => Reply::error(id, libc::ENOENT, "no such reader"),
                Some(_) => Reply::ok(id, &json!({})),
            },
            Op::ReaderList(_) => {
                let readers: Vec<ReaderStatus> = self
                    .readers
                    .iter()
                    .map(|(name, &mark)| ReaderStatus {
                        name: name.clone(),
                        watermark: [(self.mdt.to_string(), mark)].into(),
                        ..ReaderStatus::default()
                    })
                    .collect();
                Reply::ok(id, &json!({ "readers": readers }))
            }
            Op::Status(_) => Reply::ok(
                id,
                &json!({"version": "0", "epoch": self.epoch, "mdts": [], "streams": []}),
            ),
            // Requests of `lcap` only.
            _ => Reply::error(id, libc::ENOSYS, "not played here"),
        };
        if id.is_some() {
            let socket = if over_queue { &self.queue } else { &self.control };
            socket.send_multipart([peer, &reply.encode()], 0).unwrap();
        }
    }

    fn open(&mut self, peer: &[u8], start: &lcap_wire::control::Start) -> StartReply {
        self.next_session += 1;
        let delivery = if start.stream == "work" { Delivery::Queue } else { Delivery::Broadcast };
        let watermark = start.reader.as_ref().map(|reader| self.readers[reader]);
        let oldest = watermark.map_or(1, |mark| mark + 1);
        let mut next = if start.from == 0 { oldest } else { start.from };
        let older =
            |(generation, _): &(u16, u64)| start.generation.is_some_and(|g| g < *generation);
        let rewind = self.rewound.filter(older).map(|(_, first)| first);
        next = next.min(rewind.unwrap_or(u64::MAX));
        let session = Session {
            peer: peer.to_vec(),
            follow: start.follow,
            next,
            live: false,
            ended: false,
            sent: 0,
            upto: 0,
            queue_peer: None,
            held: Vec::new(),
        };
        self.sessions.insert(self.next_session, session);
        let publish = match delivery {
            Delivery::Queue => self.queue_endpoint.clone(),
            Delivery::Broadcast => self.live_endpoint.clone(),
        };
        StartReply {
            session: self.next_session,
            epoch: self.epoch,
            generation: self.generation,
            rewind,
            delivery,
            publish,
            topic: None,
            next,
            watermark,
            heartbeat_ms: HEARTBEAT_MS,
        }
    }

    pub fn close(&mut self, session: u64) {
        if let Some(session) = self.sessions.remove(&session) {
            self.redelivered.extend(&session.held);
            self.queued.extend(session.held);
            self.queued.sort_unstable();
        }
    }

    /// Ends every session as a server does that heard nothing of its client.
    pub fn lose_sessions(&mut self) {
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let session = &self.sessions[&id];
            let lost = Event::Lost { session: id, errno: libc::ESTALE, error: "silence".into() };
            self.control.send_multipart([&session.peer, &lost.encode()], 0).unwrap();
            self.close(id);
        }
    }

    /// A new life on the same ports: sequences begin again, sessions are unknown.
    pub fn restart(&mut self) {
        self.epoch += 1;
        self.sequence = 0;
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close(id);
        }
    }

    pub fn append(&mut self, indexes: &[u64]) {
        for chunk in indexes.chunks(self.per_message) {
            let last = *chunk.iter().max().unwrap();
            self.head = self.head.max(last);
            for &index in chunk {
                self.log.insert(index, record(index));
            }
            self.queued.extend(chunk);
            self.publish(Kind::Records, chunk, self.head);
        }
    }

    /// Publishes in an order, and with a low, of the test's choice.
    pub fn publish(&mut self, kind: Kind, indexes: &[u64], low: u64) {
        self.sequence += 1;
        if self.lose_live > 0 {
            self.lose_live -= 1;
            return;
        }
        let frames = self.frames("changelog", kind, indexes, low, self.sequence, Flags::default());
        let n = if self.twice { 2 } else { 1 };
        for _ in 0..n {
            self.live.send_multipart(&frames, 0).unwrap();
        }
    }

    /// The MDT issues indexes from `first` on again. Sessions end: an acknowledgement that is on
    /// its way speaks of the old records.
    pub fn rewind(&mut self, first: u64) {
        self.lose_sessions();
        self.generation += 1;
        self.rewound = Some((self.generation, first));
        self.log.split_off(&first);
        self.head = first - 1;
        self.publish(Kind::Gap, &[first], first - 1);
    }

    fn frames(
        &self,
        stream: &str,
        kind: Kind,
        indexes: &[u64],
        low: u64,
        sequence: u64,
        flags: Flags,
    ) -> [Vec<u8>; 3] {
        let is_gap = kind == Kind::Gap;
        let body: Vec<u8> = if is_gap {
            Vec::new()
        } else {
            let bytes = |index: &u64| match self.log.get(index) {
                Some(bytes) if self.from_log => bytes.clone(),
                _ => record(*index),
            };
            indexes.iter().flat_map(bytes).collect()
        };
        let mut header = Header::for_body(kind, &body);
        header.flags = flags;
        header.epoch = self.epoch;
        header.sequence = sequence;
        header.low = RecordIndex::new(low);
        header.first = RecordIndex::new(*indexes.iter().min().unwrap());
        header.last = RecordIndex::new(if is_gap { 0 } else { *indexes.iter().max().unwrap() });
        header.count = if is_gap { 0 } else { u32::try_from(indexes.len()).unwrap() };
        header.generation = self.generation;
        [frame::topic(stream, &self.mdt), header.encode().to_vec(), body]
    }

    /// Sends what there is credit for.
    fn serve(&mut self) {
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let mut session = self.sessions.remove(&id).unwrap();
            if session.queue_peer.is_some() {
                self.serve_member(id, &mut session);
            } else {
                self.serve_catch_up(id, &mut session);
            }
            self.sessions.insert(id, session);
        }
    }

    fn serve_catch_up(&mut self, id: u64, session: &mut Session) {
        while !session.live && !session.ended && session.upto > 0 {
            let batch: Vec<u64> =
                self.log.range(session.next..).map(|(&i, _)| i).take(self.per_message).collect();
            let Some(&last) = batch.last() else {
                let event = if session.follow {
                    session.live = true;
                    Event::Live { session: id, sequence: self.sequence, low: self.head }
                } else {
                    session.ended = true;
                    Event::End { session: id, low: self.head }
                };
                self.control.send_multipart([&session.peer, &event.encode()], 0).unwrap();
                return;
            };
            if session.sent >= session.upto {
                return;
            }
            session.sent += 1;
            session.next = last + 1;
            // Only what a later message shows: a connection that is cut is another fault.
            let more =
                session.sent < session.upto && self.log.range(session.next..).next().is_some();
            if self.lose_catch_up > 0 && more {
                self.lose_catch_up -= 1;
                continue;
            }
            let [topic, header, body] = self.frames(
                "changelog",
                Kind::Records,
                &batch,
                last,
                session.sent,
                Flags::CATCH_UP,
            );
            self.control.send_multipart([&session.peer, &topic, &header, &body], 0).unwrap();
        }
    }

    fn serve_member(&mut self, id: u64, session: &mut Session) {
        let peer = session.queue_peer.clone().unwrap();
        while session.sent < session.upto && !self.queued.is_empty() {
            let n = self.per_message.min(self.queued.len());
            let batch: Vec<u64> = self.queued.drain(..n).collect();
            let again = batch.iter().any(|index| self.redelivered.contains(index));
            let flags = if again { Flags::REDELIVERED } else { Flags::default() };
            session.sent += 1;
            session.held.extend(&batch);
            let [topic, header, body] =
                self.frames("work", Kind::Records, &batch, 0, session.sent, flags);
            self.queue.send_multipart([&peer, &topic, &header, &body], 0).unwrap();
        }
        if !session.follow && !session.ended && self.queued.is_empty() && session.upto > 0 {
            session.ended = true;
            let end = Event::End { session: id, low: self.head };
            self.queue.send_multipart([&peer, &end.encode()], 0).unwrap();
        }
    }
}
