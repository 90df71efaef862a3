//! Requests of clients, and the sessions that they open.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lcap_ffi::{RecordIndex, RecordType};
use lcap_filter::Filter;
use lcap_wire::RangeSet;
use lcap_wire::control::{
    Ack, Clear, Delivery, Event, Fetch, From, HeartbeatReply, Hello, HelloReply, Op,
    ReaderDeregister, ReaderList, ReaderRegister, Reply, Request, SessionRef, Start, StartReply,
    StreamKind,
};
use tracing::{info, warn};

use super::position::Position;
use super::retention::Now;
use super::{CatchUpStart, Effect, Engine, Peer, Reader};
use crate::store::{Change, ReaderState};
use crate::taps::{Tap, TapId, topic_name};

/// Silent for so many heartbeats, a session is over.
const MISSED_HEARTBEATS: u32 = 5;
/// More sessions than this are refused: each may hold a thread and a handle on the source.
const MAX_SESSIONS: usize = 4096;

/// One stream of one MDT for one client.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) stream: usize,
    pub(super) mdt: usize,
    pub(super) reader: Option<String>,
    pub(super) follow: bool,
    /// Where the session was opened.
    control: Peer,
    /// Where its data goes.
    data: Option<Peer>,
    tap: Option<Arc<Tap>>,
    /// The client has had everything up to here: it may acknowledge that, also if it was an
    /// earlier life of lcapd that sent it.
    had: RecordIndex,
    /// First index wanted, until the first fetch.
    pending_start: Option<CatchUpStart>,
    told_end: bool,
    last_heard: Now,
}

impl Session {
    /// Whether that is its connection. Over a queue's socket a fetch comes before everything else,
    /// and says which connection that is.
    fn lives_on(&self, peer: &Peer) -> bool {
        let own = |own: &Peer| own.identity == peer.identity;
        match &self.data {
            _ if peer.socket == self.control.socket => own(&self.control),
            Some(data) => peer.socket == data.socket && own(data),
            None => false,
        }
    }
}

/// What others may know of a session.
#[derive(Debug)]
pub struct OpenSession<'a> {
    /// Its number.
    pub number: u64,
    /// The connection that opened it.
    pub peer: &'a Peer,
    /// Number of its stream.
    pub stream: usize,
    /// The reader that it is.
    pub reader: Option<&'a str>,
}

/// An answer that is not `ok`.
struct Refusal {
    errno: i32,
    text: String,
}

fn refuse<T>(errno: i32, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { errno, text: text.into() })
}

impl Engine {
    /// Answers one request.
    pub fn request(&mut self, peer: &Peer, request: Request, now: Now) {
        let id = request.id;
        let answer = if request.v == lcap_wire::PROTOCOL_VERSION {
            self.answer(peer, request.op, id, now)
        } else {
            let text = format!(
                "protocol version {}, this lcapd speaks {}",
                request.v,
                lcap_wire::PROTOCOL_VERSION
            );
            refuse(libc::EPROTO, text)
        };
        let reply = match answer {
            Ok(Some(reply)) => reply,
            Ok(None) => return,
            Err(Refusal { errno, text }) => Reply::error(id, errno, text),
        };
        if id.is_some() {
            self.effects.push(Effect::Send(peer.clone(), reply.encode()));
        }
    }

    /// `Ok(None)` if the answer comes later, or not at all.
    fn answer(
        &mut self,
        peer: &Peer,
        op: Op,
        id: Option<u64>,
        now: Now,
    ) -> Result<Option<Reply>, Refusal> {
        match op {
            Op::Hello(op) => self.hello(&op).map(|reply| Some(Reply::ok(id, &reply))),
            Op::Start(op) => self.start(peer, &op, now).map(|reply| Some(Reply::ok(id, &reply))),
            Op::Fetch(op) => self.fetch(peer, &op, now).map(|()| None),
            Op::Ack(op) => self.ack(peer, &op, now).map(|()| Some(done(id))),
            Op::Heartbeat(op) => {
                self.heartbeat(peer, op, now).map(|reply| Some(Reply::ok(id, &reply)))
            }
            Op::Fini(op) => {
                self.end_session(op.session, now);
                Ok(Some(done(id)))
            }
            Op::Clear(op) => {
                self.clear(&op, now)?;
                Ok(self.tell_when_on_disk(peer, id, Ok(()), now))
            }
            Op::ReaderRegister(op) => {
                let answer = self.register(&op, now);
                Ok(self.tell_when_on_disk(peer, id, answer, now))
            }
            Op::ReaderDeregister(op) => {
                let answer = self.deregister(&op, now);
                Ok(self.tell_when_on_disk(peer, id, answer, now))
            }
            Op::ReaderList(op) => self.list(&op, now).map(|list| Some(Reply::ok(id, &list))),
            Op::Status(_) => Ok(Some(Reply::ok(id, &self.status(now)))),
            Op::Hsm(_) => refuse(libc::EOPNOTSUPP, "not the engine's"),
            Op::PolicyReload(op) => {
                let (stream, peer) = (self.stream_named(&op.stream)?, peer.clone());
                self.effects.push(Effect::ReloadPolicies { stream, peer, id });
                Ok(None)
            }
        }
    }

    /// The answer, or none yet: what it rests on has to be on disk first. That goes for a refusal,
    /// too: "exists already" must still be true after a crash.
    fn tell_when_on_disk(
        &mut self,
        peer: &Peer,
        id: Option<u64>,
        answer: Result<(), Refusal>,
        now: Now,
    ) -> Option<Reply> {
        id?;
        let reply = match answer {
            Ok(()) => done(id),
            Err(Refusal { errno, text }) => Reply::error(id, errno, text),
        };
        let nothing_to_write = self.dirty.changes.is_empty() && self.dirty.in_flight.is_none();
        if nothing_to_write {
            return Some(reply);
        }
        self.dirty.waiting.push((peer.clone(), reply));
        self.dirty.since.get_or_insert(now);
        self.commit_if_due(now);
        None
    }

    /// The log of that MDT that a stream of that kind reads.
    fn mdt_named(&self, name: &str, kind: StreamKind) -> Result<usize, Refusal> {
        let mut all = self.mdts.iter();
        let at = all.position(|m| m.setup.name.as_str() == name && m.setup.kind == kind);
        at.map_or_else(
            || {
                let known = self.mdt_names(kind).join(", ");
                refuse(libc::ENOENT, format!("MDT {name} is not served here; served: {known}"))
            },
            Ok,
        )
    }

    fn stream_named(&self, name: &str) -> Result<usize, Refusal> {
        let at = self.streams.iter().position(|stream| stream.setup.name == name);
        at.map_or_else(
            || {
                let known: Vec<&str> = self.streams.iter().map(|s| s.setup.name.as_str()).collect();
                let known = known.join(", ");
                refuse(libc::ENOENT, format!("there is no stream {name}; there are: {known}"))
            },
            Ok,
        )
    }

    fn mdt_names(&self, kind: StreamKind) -> Vec<String> {
        let own = self.mdts.iter().filter(|mdt| mdt.setup.kind == kind);
        own.map(|mdt| mdt.setup.name.to_string()).collect()
    }

    fn hello(&self, op: &Hello) -> Result<HelloReply, Refusal> {
        let stream = op.stream.as_deref().map(|name| self.stream_named(name)).transpose()?;
        let kind = stream.map(|at| self.streams[at].setup.kind);
        if let Some(name) = &op.mdt {
            let changelog = self.mdt_named(name, kind.unwrap_or_default());
            // Who names no stream yet may want either.
            match kind {
                None => {
                    changelog.or_else(|no| self.mdt_named(name, StreamKind::Hsm).map_err(|_| no))?
                }
                Some(_) => changelog?,
            };
        }
        Ok(HelloReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.settings.epoch,
            mdts: self.mdt_names(kind.unwrap_or_default()),
            streams: self.streams.iter().map(|stream| stream.setup.name.clone()).collect(),
        })
    }

    fn start(&mut self, peer: &Peer, op: &Start, now: Now) -> Result<StartReply, Refusal> {
        let stream = self.stream_named(&op.stream)?;
        let kind = self.streams[stream].setup.kind;
        let mdt = self.mdt_named(&op.mdt, kind)?;
        if self.sessions.len() >= MAX_SESSIONS {
            return refuse(libc::EUSERS, format!("more than {MAX_SESSIONS} sessions"));
        }
        let delivery = self.streams[stream].setup.delivery;
        let snapshot = op.snapshot && op.from <= 1;
        if op.snapshot && (kind != StreamKind::Hsm || delivery == Delivery::Queue) {
            let text = "a snapshot is for broadcast streams of kind hsm";
            return refuse(libc::EINVAL, text);
        }
        let watermark = match &op.reader {
            Some(name) if delivery == Delivery::Broadcast => {
                Some(self.reader_of(stream, name)?.positions[mdt].watermark())
            }
            _ => None,
        };
        let generation = self.mdts[mdt].state.generation;
        let rewind = self.rewind_since(mdt, op.generation.unwrap_or(generation));
        let from = RecordIndex::new(op.from);
        let next = match (from, watermark) {
            // The state has old events in it.
            _ if snapshot => RecordIndex::new(1),
            (RecordIndex::ZERO, Some(watermark)) => watermark.next(),
            (RecordIndex::ZERO, None) => RecordIndex::new(1),
            (from, _) => rewind.map_or(from, |rewind| from.min(rewind)),
        };
        let filter = self.filter_of(stream, op)?;
        let tap = filter.map(|filter| self.open_tap(stream, filter));
        let number = self.next_session_number();
        if let Some(name) = &op.reader
            && let Some(reader) = self.streams[stream].readers.get_mut(name)
        {
            reader.last_heard = now;
        }
        // It goes on where it was, here or in an earlier session.
        let continues = op.generation.is_some()
            || (op.from == 0 && watermark.is_some_and(|w| w > RecordIndex::ZERO));
        // What its reader has cleared meanwhile and the MDT has forgotten is no loss.
        let cleared = watermark.unwrap_or_default().min(self.mdts[mdt].retention.given_up());
        let merges = self.streams[stream].setup.merges;
        let session = Session {
            stream,
            mdt,
            reader: op.reader.clone().filter(|_| delivery == Delivery::Broadcast),
            follow: op.follow,
            control: peer.clone(),
            data: None,
            tap: tap.clone(),
            had: from.prev(),
            pending_start: Some(CatchUpStart {
                stream,
                mdt,
                from: next.max(cleared.next()),
                continues,
                generation,
                follow: op.follow,
                filter: tap.clone(),
                snapshot,
            }),
            told_end: false,
            last_heard: now,
        };
        info!(
            stream = op.stream,
            mdt = op.mdt,
            reader = op.reader.as_deref().unwrap_or("-"),
            session = number,
            next = next.get(),
            follow = op.follow,
            "session opened"
        );
        self.sessions.insert(number, session);
        Ok(StartReply {
            session: number,
            epoch: self.settings.epoch,
            generation,
            rewind: rewind.map(RecordIndex::get),
            delivery,
            publish: self.streams[stream].setup.publish.clone(),
            merges,
            topic: tap.map(|tap| topic_name(&self.streams[stream].setup.name, tap.id)),
            next: next.get(),
            watermark: watermark.map(RecordIndex::get),
            heartbeat_ms: u64::try_from(self.settings.heartbeat.as_millis()).unwrap_or(1000),
        })
    }

    /// What a session may see: the reader's mask and the client's own filter.
    fn filter_of(&self, stream: usize, op: &Start) -> Result<Option<Filter>, Refusal> {
        let stream = &self.streams[stream];
        let reader = op.reader.as_ref().and_then(|name| stream.readers.get(name));
        let mask = reader.map(|reader| reader.state.mask.join(", ")).filter(|m| !m.is_empty());
        let mask = mask.map(|types| format!("type in ({types})"));
        let text = match (mask, &op.filter) {
            (None, None) => return Ok(None),
            (Some(mask), None) => mask,
            (None, Some(filter)) => filter.clone(),
            (Some(mask), Some(filter)) => format!("{mask} and ({filter})"),
        };
        if stream.setup.delivery == Delivery::Queue {
            let text = "members of a queue share all its records; use a `filter` policy instead";
            return refuse(libc::EINVAL, text);
        }
        text.parse().map(Some).or_else(|error| refuse(libc::EINVAL, format!("filter: {error}")))
    }

    fn open_tap(&mut self, stream_at: usize, filter: Filter) -> Arc<Tap> {
        let stream = &mut self.streams[stream_at];
        if let Some((tap, users)) = stream.taps.iter_mut().find(|(tap, _)| tap.filter == filter) {
            *users += 1;
            return Arc::clone(tap);
        }
        let tap = Arc::new(Tap { id: stream.next_tap, filter });
        stream.next_tap += 1;
        stream.taps.push((Arc::clone(&tap), 1));
        self.effects.push(Effect::OpenTap { stream: stream_at, tap: Arc::clone(&tap) });
        tap
    }

    fn close_tap(&mut self, stream_at: usize, id: TapId) {
        let taps = &mut self.streams[stream_at].taps;
        let Some(at) = taps.iter().position(|(tap, _)| tap.id == id) else { return };
        taps[at].1 -= 1;
        if taps[at].1 == 0 {
            taps.remove(at);
            self.effects.push(Effect::CloseTap { stream: stream_at, id });
        }
    }

    /// The lowest index that was issued again after generation `known`.
    pub(super) fn rewind_since(&self, mdt: usize, known: u16) -> Option<RecordIndex> {
        let rewinds = self.mdts.get(mdt)?.state.rewinds.get(usize::from(known)..)?;
        rewinds.iter().min().copied().map(RecordIndex::new)
    }

    /// splitmix64 over a random seed: distinct, and not to be guessed from outside.
    fn next_session_number(&mut self) -> u64 {
        loop {
            self.session_seed = self.session_seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut number = self.session_seed;
            number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            // Exact as a double, for clients in languages that have only those.
            number = (number ^ (number >> 31)) >> 11;
            if number != 0 && !self.sessions.contains_key(&number) {
                return number;
            }
        }
    }

    /// The session of that number, if `peer` is the one that it was opened over. A connection that
    /// was made anew has another identity: what was on its way when it broke is lost (the last
    /// message, a fetch), and nobody would ever notice, so the session is over.
    fn session(&mut self, peer: &Peer, number: u64, now: Now) -> Result<&mut Session, Refusal> {
        if self.sessions.get(&number).is_some_and(|session| !session.lives_on(peer)) {
            self.end_session(number, now);
        }
        match self.sessions.get_mut(&number) {
            Some(session) => {
                session.last_heard = now;
                Ok(session)
            }
            None => refuse(libc::ESTALE, "no such session; start another"),
        }
    }

    fn fetch(&mut self, peer: &Peer, op: &Fetch, now: Now) -> Result<(), Refusal> {
        let number = op.session;
        if let Some(session) = self.sessions.get_mut(&number)
            && peer.socket != session.control.socket
        {
            session.data.get_or_insert_with(|| peer.clone());
        }
        let Ok(session) = self.session(peer, number, now) else {
            // Fetches carry no id as a rule, so the client would wait for ever.
            let error = "no such session; start another".to_owned();
            let lost = Event::Lost { session: number, errno: libc::ESTALE, error };
            self.effects.push(Effect::Send(peer.clone(), lost.encode()));
            return Ok(());
        };
        let (stream, mdt) = (session.stream, session.mdt);
        let start = session.pending_start.take();
        session.data = Some(peer.clone());
        if self.streams[stream].setup.delivery == Delivery::Queue {
            if let Some(queue) = self.queue_mut(stream, mdt) {
                if start.is_some() {
                    queue.join(number);
                }
                queue.credit(number, op.upto);
            }
            self.dispatch(stream, mdt);
            return Ok(());
        }
        if let Some(start) = start {
            self.effects.push(Effect::StartCatchUp { session: number, start });
        }
        self.effects.push(Effect::Credit { session: number, upto: op.upto });
        Ok(())
    }

    fn ack(&mut self, peer: &Peer, op: &Ack, now: Now) -> Result<(), Refusal> {
        let session = self.session(peer, op.session, now)?;
        let (stream_at, mdt, reader) = (session.stream, session.mdt, session.reader.clone());
        let had = session.had;
        let ranges = op.ranges.iter().map(|&(a, b)| (RecordIndex::new(a), RecordIndex::new(b)));
        if let Some(queue) = self.queue_mut(stream_at, mdt) {
            let mut set = RangeSet::new();
            for (first, last) in ranges {
                set.insert(first, last);
            }
            queue.ack(op.session, &set);
            self.dispatch(stream_at, mdt);
            return Ok(());
        }
        let stream = &mut self.streams[stream_at];
        let mut sent = stream.sent(mdt);
        sent.highest = sent.highest.max(had);
        if stream.setup.merges {
            // It says itself what its own run of the policies has dropped; another's does not count.
            sent.low = sent.low.max(sent.highest);
            sent.highest = sent.low;
        }
        let Some(reader) = reader.and_then(|name| stream.readers.get_mut(&name)) else {
            return Ok(()); // ephemeral: there is nothing to remember
        };
        reader.last_heard = now;
        for (first, last) in ranges {
            reader.positions[mdt].ack(first, last, sent);
        }
        Ok(())
    }

    fn heartbeat(
        &mut self,
        peer: &Peer,
        op: SessionRef,
        now: Now,
    ) -> Result<HeartbeatReply, Refusal> {
        let session = self.session(peer, op.session, now)?;
        let (stream, mdt, reader) = (session.stream, session.mdt, session.reader.clone());
        let stream = &mut self.streams[stream];
        if let Some(reader) = reader.and_then(|name| stream.readers.get_mut(&name)) {
            reader.last_heard = now;
            if reader.state.suspended {
                return refuse(libc::EKEYEXPIRED, "this reader was suspended; register it again");
            }
        }
        let worker = stream.mdts[mdt].worker;
        Ok(HeartbeatReply {
            epoch: self.settings.epoch,
            sequence: worker.sequence,
            low: worker.sent.low.get(),
            head: self.mdts[mdt].now.read_index.get(),
        })
    }

    /// Ends a session, if there is one of that number.
    pub fn end_session(&mut self, number: u64, now: Now) {
        let Some(session) = self.sessions.remove(&number) else { return };
        let stream = &mut self.streams[session.stream];
        info!(
            stream = stream.setup.name, mdt = %self.mdts[session.mdt].setup.name,
            reader = session.reader.as_deref().unwrap_or("-"), session = number, "session ended"
        );
        if let Some(reader) = session.reader.and_then(|name| stream.readers.get_mut(&name)) {
            reader.last_heard = now;
        }
        if let Some(tap) = session.tap {
            self.close_tap(session.stream, tap.id);
        }
        self.effects.push(Effect::EndSession(number));
        if let Some(queue) = self.queue_mut(session.stream, session.mdt) {
            queue.leave(number);
            self.dispatch(session.stream, session.mdt);
        }
    }

    /// Ends a session and tells its client why.
    pub fn lose_session(&mut self, number: u64, errno: i32, why: &str, now: Now) {
        let Some(session) = self.sessions.get(&number) else { return };
        let lost = Event::Lost { session: number, errno, error: why.to_owned() }.encode();
        let peer = session.data.clone().unwrap_or_else(|| session.control.clone());
        self.effects.push(Effect::Send(peer, lost));
        self.end_session(number, now);
    }

    pub(super) fn expire_sessions(&mut self, now: Now) {
        let patience = self.settings.heartbeat * MISSED_HEARTBEATS;
        let silent = |session: &Session| now.saturating_sub(session.last_heard) > patience;
        let gone: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| silent(s)).map(|(&number, _)| number).collect();
        for number in gone {
            warn!(session = number, "client is silent, its session ends");
            self.lose_session(number, libc::ETIMEDOUT, "nothing heard for too long", now);
        }
    }

    /// The connection that a session's data goes to.
    pub fn data_peer(&self, number: u64) -> Option<&Peer> {
        self.sessions.get(&number)?.data.as_ref()
    }

    /// Data connections of a queue's members.
    pub fn member_peers(&self, stream: usize, mdt: usize) -> Vec<Peer> {
        let here = self.sessions.values().filter(|s| s.stream == stream && s.mdt == mdt);
        here.filter_map(|session| session.data.clone()).collect()
    }

    /// Every open session.
    pub fn session_list(&self) -> impl Iterator<Item = OpenSession<'_>> {
        self.sessions.iter().map(|(&number, session)| OpenSession {
            number,
            peer: &session.control,
            stream: session.stream,
            reader: session.reader.as_deref(),
        })
    }

    /// Stream and MDT of a session, by number.
    pub fn session_place(&self, number: u64) -> Option<(usize, usize)> {
        self.sessions.get(&number).map(|session| (session.stream, session.mdt))
    }

    /// Sends what a queue's members have room for, and tells those at the end that they are.
    pub(super) fn dispatch(&mut self, stream: usize, mdt: usize) {
        while let Some(next) = self.queue_mut(stream, mdt).and_then(super::queue::Queue::dispatch) {
            let Some(peer) = self.data_peer(next.session).cloned() else { continue };
            let (batch, sequence, redelivered) = (next.batch, next.sequence, next.redelivered);
            self.effects.push(Effect::Dispatch { peer, stream, mdt, batch, sequence, redelivered });
        }
        let entry = &self.streams[stream].mdts[mdt];
        let drained = entry.at_end && entry.queue.as_ref().is_some_and(|queue| queue.is_drained());
        if !drained {
            return;
        }
        let low = entry.worker.sent.low.get();
        for (&number, session) in &mut self.sessions {
            let here = session.stream == stream && session.mdt == mdt;
            if here && !session.follow && !session.told_end && session.data.is_some() {
                session.told_end = true;
                let end = Event::End { session: number, low };
                let peer = session.data.clone().unwrap_or_else(|| session.control.clone());
                self.effects.push(Effect::Send(peer, end.encode()));
            }
        }
    }

    fn reader_of(&self, stream: usize, name: &str) -> Result<&Reader, Refusal> {
        let stream = &self.streams[stream];
        match stream.readers.get(name) {
            None => {
                let stream = &stream.setup.name;
                let hint = format!("lcap reader register {stream} {name}");
                refuse(
                    libc::ENOENT,
                    format!("stream {stream} has no reader {name}; `{hint}` makes one"),
                )
            }
            Some(reader) if reader.state.suspended => refuse(
                libc::EKEYEXPIRED,
                format!(
                    "reader {name} was suspended: it was idle and too far behind, and records may \
                     be gone; deregister it, register it again and rescan"
                ),
            ),
            Some(reader) => Ok(reader),
        }
    }

    /// Which stream a reader's name means.
    fn stream_of_reader(&self, stream: Option<&str>, name: &str) -> Result<usize, Refusal> {
        if let Some(stream) = stream {
            return self.stream_named(stream);
        }
        let mut having =
            (0..self.streams.len()).filter(|&at| self.streams[at].readers.contains_key(name));
        match (having.next(), having.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => refuse(libc::ENOENT, format!("no stream has a reader {name}")),
            (Some(_), Some(_)) => refuse(
                libc::EINVAL,
                format!("more than one stream has a reader {name}; name the stream"),
            ),
        }
    }

    fn clear(&mut self, op: &Clear, now: Now) -> Result<(), Refusal> {
        let stream = self.stream_of_reader(op.stream.as_deref(), &op.reader)?;
        let mdt = self.mdt_named(&op.mdt, self.streams[stream].setup.kind)?;
        let watermark = self.reader_of(stream, &op.reader)?.positions[mdt].watermark();
        let sent = self.streams[stream].sent(mdt);
        let head = self.mdts[mdt].now.read_index.max(sent.low);
        let upto = match RecordIndex::new(op.upto) {
            RecordIndex::ZERO => sent.low,
            upto if upto > head => {
                return refuse(
                    libc::EINVAL,
                    format!("record out of range: {upto}, newest is {head}"),
                );
            }
            // As an MDT answers since 2.17.57.
            upto if upto < watermark => {
                let text = format!("{upto} is below the watermark {watermark} of {}", op.reader);
                return refuse(libc::ENOENT, text);
            }
            upto => upto,
        };
        let stream = &mut self.streams[stream];
        if let Some(reader) = stream.readers.get_mut(&op.reader) {
            reader.last_heard = now;
            // Whether it was sent in this life of lcapd or not: as on an MDT, one's word is enough.
            reader.positions[mdt].skip_to(upto);
        }
        self.settle_all(now);
        Ok(())
    }

    fn register(&mut self, op: &ReaderRegister, now: Now) -> Result<(), Refusal> {
        let stream_at = self.stream_named(&op.stream)?;
        if self.streams[stream_at].setup.delivery == Delivery::Queue {
            let text = format!("{} is a queue: its members share one position", op.stream);
            return refuse(libc::EINVAL, text);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if op.name.is_empty() || op.name.len() > 64 || !op.name.chars().all(plain) {
            return refuse(
                libc::EINVAL,
                "a reader's name is 1 to 64 letters, digits, `_`, `-`, `.`",
            );
        }
        if let Some(unknown) = op.mask.iter().find(|name| RecordType::from_name(name).is_none()) {
            return refuse(libc::EINVAL, format!("unknown record type {unknown}"));
        }
        let existing = self.streams[stream_at].readers.get(&op.name);
        if existing.is_some_and(|reader| !reader.state.suspended) {
            let text = format!("stream {} has a reader {} already", op.stream, op.name);
            return refuse(libc::EEXIST, text);
        }
        let starts: Vec<RecordIndex> = (self.mdts.iter().enumerate())
            .map(|(at, mdt)| {
                let cleared = mdt.retention.given_up();
                match op.from {
                    From::Now => mdt.now.read_index.max(self.streams[stream_at].sent(at).low),
                    From::Oldest => cleared,
                    From::Index(index) => RecordIndex::new(index).prev().max(cleared),
                }
            })
            .collect();
        let stream = &mut self.streams[stream_at];
        let key = (op.stream.clone(), op.name.clone());
        let state = ReaderState { mask: op.mask.clone(), suspended: false };
        self.dirty.add(Change::Reader(key.clone(), state.clone()), now);
        for (mdt, &start) in self.mdts.iter().zip(&starts).filter(|(mdt, _)| stream.reads(mdt)) {
            let change = Change::Watermark(key.clone(), mdt.setup.name.to_string(), start);
            self.dirty.add(change, now);
        }
        info!(stream = op.stream, reader = op.name, "reader registered");
        // From now on it counts: nothing above its start is cleared.
        let positions = starts.iter().map(|&start| Position::new(start)).collect();
        let (persisted, noted) = (starts.clone(), starts);
        let reader = Reader { state, positions, persisted, noted, last_heard: now };
        stream.readers.insert(op.name.clone(), reader);
        Ok(())
    }

    fn deregister(&mut self, op: &ReaderDeregister, now: Now) -> Result<(), Refusal> {
        let stream_at = self.stream_named(&op.stream)?;
        if self.streams[stream_at].readers.remove(&op.name).is_none() {
            let text = format!("stream {} has no reader {}", op.stream, op.name);
            return refuse(libc::ENOENT, text);
        }
        let of_it = |session: &Session| {
            session.stream == stream_at && session.reader.as_ref() == Some(&op.name)
        };
        let gone: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| of_it(s)).map(|(&number, _)| number).collect();
        for number in gone {
            self.lose_session(number, libc::ENOENT, "the reader was deregistered", now);
        }
        self.dirty.add(Change::ReaderGone((op.stream.clone(), op.name.clone())), now);
        info!(stream = op.stream, reader = op.name, "reader deregistered");
        Ok(())
    }

    fn list(&self, op: &ReaderList, now: Now) -> Result<serde_json::Value, Refusal> {
        let only = op.stream.as_deref().map(|name| self.stream_named(name)).transpose()?;
        let streams =
            self.streams.iter().enumerate().filter(|(at, _)| only.is_none_or(|o| o == *at));
        let readers: Vec<_> =
            streams.flat_map(|(at, stream)| self.reader_status(at, stream, now)).collect();
        Ok(serde_json::json!({ "readers": readers }))
    }
}

fn done(id: Option<u64>) -> Reply {
    Reply::ok(id, &serde_json::Map::new())
}
