//! What the client says to the server, and what it makes of the answers.
#![forbid(unsafe_code)]

use std::time::Instant;

use lcap_wire::RangeSet;
use lcap_wire::control::{
    Ack, Clear, Delivery, Fetch, Hello, HelloReply, Op, Reply, Request, SessionRef, Start,
    to_ranges,
};

use super::{CLOSE_TIME, Output, Phase, Protocol, join};
use crate::error::ClientError;

/// A request whose answer is awaited.
#[derive(Debug)]
pub(super) enum Pending {
    Hello,
    Start,
    Heartbeat,
    /// The reader's watermark that was sent.
    ReaderAck(u64),
    MemberAck(RangeSet),
    /// The application's own, with its token.
    Passed {
        token: u64,
        until: Instant,
    },
}

impl Pending {
    pub(super) fn deadline(&self) -> Option<Instant> {
        if let Self::Passed { until, .. } = self { Some(*until) } else { None }
    }
}

/// Ranges in one acknowledgement: far below the largest control message.
const MAX_RANGES: usize = 10_000;

impl<B: AsRef<[u8]>> Protocol<B> {
    /// Passes a request on; the answer comes as [`Output::Answer`] with `token`.
    pub fn request(&mut self, op: Op, token: u64, now: Instant) {
        let until = now + self.config.timeout;
        self.send(op, Pending::Passed { token, until });
    }

    /// The application has settled everything of its reader up to `upto`, in that generation.
    pub fn settle_reader(&mut self, upto: u64, generation: u16) {
        if self.place.generation() == generation {
            self.settled = self.settled.max(upto);
        }
    }

    /// The application has settled these records of the queue.
    pub fn settle_member(&mut self, ranges: &RangeSet) {
        self.to_ack = join(&self.to_ack, ranges);
    }

    /// Sends what there is to acknowledge at the next occasion, which is now.
    pub fn flush(&mut self, now: Instant) {
        if self.wants_ack() {
            self.send_acks(now);
        }
    }

    /// Ends the session: acknowledges what is settled, waits for the answer, but not for long.
    /// [`Output::Closed`] is the last output.
    pub fn close(&mut self, now: Instant) {
        self.closing = Some(now + CLOSE_TIME.min(self.config.timeout));
        if self.wants_ack() {
            self.send_acks(now);
        }
        self.close_if_done();
    }

    pub(super) fn wants_ack(&self) -> bool {
        if !self.to_ack.is_empty() {
            return self.session.is_some();
        }
        let sent = |p: &Pending| matches!(p, Pending::ReaderAck(upto) if *upto >= self.settled);
        self.settled > self.confirmed
            && self.config.reader.is_some()
            && (self.session.is_some() || self.phase == Phase::Ended)
            && !self.pending.values().any(sent)
    }

    pub(super) fn send_acks(&mut self, now: Instant) {
        self.next_ack = now + self.config.ack_interval;
        let Some((id, delivery, base)) =
            self.session.as_ref().map(|s| (s.id, s.delivery, s.acked_base))
        else {
            return self.clear_without_session();
        };
        if delivery == Delivery::Broadcast {
            let upto = self.settled;
            let ack = Ack { session: id, ranges: vec![(base + 1, upto)] };
            return self.send(Op::Ack(ack), Pending::ReaderAck(upto));
        }
        let ranges: Vec<_> = std::mem::take(&mut self.to_ack).iter().collect();
        for chunk in ranges.chunks(MAX_RANGES) {
            let mut sent = RangeSet::new();
            for &(first, last) in chunk {
                sent.insert(first, last);
                self.acked.insert(first, last);
            }
            let ack = Ack { session: id, ranges: to_ranges(chunk.iter().copied()) };
            self.send(Op::Ack(ack), Pending::MemberAck(sent));
        }
    }

    /// A client that has read to the end needs no session to acknowledge.
    fn clear_without_session(&mut self) {
        let Some(reader) = self.config.reader.clone() else { return };
        let (stream, mdt) = (Some(self.config.stream.clone()), self.config.mdt.to_string());
        let clear = Clear { stream, mdt, reader, upto: self.settled };
        self.send(Op::Clear(clear), Pending::ReaderAck(self.settled));
    }

    /// Notes that the records of a queue's message are here.
    pub(super) fn hold(&mut self, body: &[u8]) {
        for record in lcap_ffi::record::records(body).flatten() {
            let index = record.index();
            if self.acked.contains(index) {
                self.to_ack.insert(index, index); // the acknowledgement came too late: again
            }
            self.held.insert(index, index);
        }
    }

    /// Asks for as many messages as there is room for.
    pub(super) fn fetch_more(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::CatchUp | Phase::Member) {
            return;
        }
        let Some(session) = &mut self.session else { return };
        let room = self.config.prefetch_bytes.saturating_sub(self.queued_bytes);
        let room = if self.queued_bytes == 0 { room.max(1) } else { room };
        // The first tells a queue which connection is ours, even if there is no room now.
        let first = !std::mem::replace(&mut session.introduced, true);
        let Some(upto) = session.credit.ask(room).or(first.then_some(0)) else { return };
        let fetch = Request::silent(Op::Fetch(Fetch { session: session.id, upto })).encode();
        let queue = session.delivery == Delivery::Queue;
        session.next_heartbeat = session.next_heartbeat.max(now);
        self.out.push_back(if queue { Output::Queue(fetch) } else { Output::Control(fetch) });
    }

    pub(super) fn send_hello(&mut self) {
        // A stream that the application may still change is looked for in the reply.
        let stream = self.config.stream_required.then(|| self.config.stream.clone());
        let hello = Hello { mdt: Some(self.config.mdt.to_string()), stream };
        self.send(Op::Hello(hello), Pending::Hello);
    }

    pub(super) fn send_start(&mut self, now: Instant) {
        self.phase = Phase::Starting;
        self.deadline = Some(now + self.config.timeout);
        let (from, generation) = self.place.resume();
        let start = Start {
            stream: self.config.stream.clone(),
            mdt: self.config.mdt.to_string(),
            reader: self.config.reader.clone(),
            from,
            generation,
            follow: self.config.follow,
            filter: self.config.filter.clone(),
            snapshot: self.config.snapshot && self.place.is_fresh(),
        };
        self.pending.retain(|_, pending| !matches!(pending, Pending::Start));
        self.send(Op::Start(start), Pending::Start);
    }

    pub(super) fn send_heartbeat(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        session.next_heartbeat = now + session.heartbeat;
        let op = Op::Heartbeat(SessionRef { session: session.id });
        self.pending.retain(|_, pending| !matches!(pending, Pending::Heartbeat));
        self.send(op, Pending::Heartbeat);
    }

    /// Tells the server that the session is over; no answer is awaited.
    pub(super) fn send_fini(&mut self) {
        let Some(session) = &self.session else { return };
        let fini = Request::silent(Op::Fini(SessionRef { session: session.id })).encode();
        self.out.push_back(Output::Control(fini));
    }

    pub(super) fn finish_close(&mut self) {
        self.closing = None;
        self.send_fini();
        self.session = None;
        self.phase = Phase::Failed;
        self.deadline = None;
        self.out.push_back(Output::Closed { heard: self.heard });
    }

    fn close_if_done(&mut self) {
        let waits = |p: &Pending| matches!(p, Pending::ReaderAck(_) | Pending::MemberAck(_));
        if self.closing.is_some() && !self.pending.values().any(waits) {
            self.finish_close();
        }
    }

    fn send(&mut self, op: Op, pending: Pending) {
        let id = self.next_id;
        self.next_id += 1;
        let of_session = matches!(op, Op::Ack(_) | Op::Heartbeat(_));
        let is_member = self.session.as_ref().is_some_and(|s| s.delivery == Delivery::Queue);
        let message = Request::new(id, op).encode();
        self.pending.insert(id, pending);
        self.out.push_back(if of_session && is_member {
            Output::Queue(message)
        } else {
            Output::Control(message)
        });
    }

    pub(super) fn expire_requests(&mut self, now: Instant) {
        let error = self.timeout_error();
        let late = |p: &Pending| p.deadline().is_some_and(|until| until <= now);
        let late: Vec<u64> =
            self.pending.iter().filter(|(_, p)| late(p)).map(|(&id, _)| id).collect();
        for id in late {
            if let Some(Pending::Passed { token, .. }) = self.pending.remove(&id) {
                self.out.push_back(Output::Answer(token, Err(error.clone())));
            }
        }
    }

    /// The server's words as an error.
    fn refused(&self, reply: &Reply) -> ClientError {
        ClientError::Refused {
            endpoint: self.endpoint().to_owned(),
            errno: reply.errno.unwrap_or(libc::EIO),
            error: reply.error.clone().unwrap_or_else(|| "refused without a reason".to_owned()),
        }
    }

    pub(super) fn on_reply(&mut self, reply: Reply, now: Instant) {
        let Some(pending) = reply.id.and_then(|id| self.pending.remove(&id)) else { return };
        match pending {
            Pending::Hello => self.on_hello_reply(&reply, now),
            Pending::Start if reply.ok => match serde_json::from_value(reply.body) {
                Ok(started) => self.on_started(started, now),
                Err(error) => {
                    let endpoint = self.endpoint().to_owned();
                    self.fail(ClientError::Protocol { endpoint, problem: error.to_string() });
                }
            },
            Pending::Start => self.on_start_refused(&reply, now),
            Pending::Heartbeat if reply.ok => match serde_json::from_value(reply.body) {
                Ok(beat) => self.on_heartbeat(beat, now),
                Err(_) => self.counters.malformed += 1,
            },
            Pending::Heartbeat => {
                if reply.errno == Some(libc::ESTALE) {
                    self.restart("the server does not know the session any more", now);
                }
            }
            Pending::ReaderAck(upto) if reply.ok => self.confirmed = self.confirmed.max(upto),
            Pending::MemberAck(sent) if reply.ok => {
                for (first, last) in sent.iter() {
                    self.acked.remove(first, last);
                    self.held.remove(first, last);
                }
            }
            Pending::ReaderAck(_) | Pending::MemberAck(_) => {
                tracing::warn!(errno = reply.errno, error = reply.error, "acknowledgement refused");
                if reply.errno == Some(libc::ESTALE) {
                    self.restart("the server does not know the session any more", now);
                }
            }
            Pending::Passed { token, .. } => {
                let result = if reply.ok { Ok(reply) } else { Err(self.refused(&reply)) };
                self.out.push_back(Output::Answer(token, result));
            }
        }
        self.close_if_done();
    }

    fn on_hello_reply(&mut self, reply: &Reply, now: Instant) {
        if self.phase != Phase::Greeting {
            return;
        }
        if reply.ok && serde_json::from_value::<HelloReply>(reply.body.clone()).is_ok() {
            self.phase = Phase::Greeted;
            self.deadline = None;
            self.greeted(Ok(()));
            if self.wanted {
                self.send_start(now);
            }
            return;
        }
        // Another server may have the MDT: only when all have said no, no it is.
        if self.n_tried + 1 < self.config.endpoints.len() {
            return self.try_next_server(now);
        }
        let error = self.refused(reply);
        self.greeted(Err(error.clone()));
        if self.wanted {
            self.fail(error);
        } else {
            self.phase = Phase::Failed;
            self.deadline = None;
        }
    }

    fn on_start_refused(&mut self, reply: &Reply, now: Instant) {
        let passing = [libc::ESTALE, libc::EAGAIN, libc::EBUSY, libc::EUSERS];
        if reply.errno.is_some_and(|errno| passing.contains(&errno)) {
            return self.restart("the server cannot start a session now", now);
        }
        self.fail(self.refused(reply));
    }
}
