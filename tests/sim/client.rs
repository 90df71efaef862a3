//! A client process of the simulation: the library's state machine, an application on top, and the
//! client's ends of its connections.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lcap_ffi::RecordIndex;
use lcap_wire::RangeSet;
use lcap_wire::control::Delivery;
use lcapclient::ack::{MemberAcks, ReaderAcks};
use lcapclient::batch::Batch;
use lcapclient::client::{Config, Item, Output, Protocol, Source};

use super::mdt::{Identity, identities};
use super::model::Life;

/// Bytes of a message's body.
pub(super) type Bytes = Vec<u8>;

/// What travels to a client.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Control(Bytes),
    /// Topic, header, body.
    Data([Bytes; 3]),
}

/// A DEALER and its peer's pipe.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) identity: u64,
    /// Which of the server's sockets.
    pub(super) socket: usize,
    pub(super) up: VecDeque<Bytes>,
    pub(super) down: VecDeque<Down>,
}

/// A SUB.
#[derive(Debug)]
pub(super) struct Sub {
    pub(super) stream: usize,
    pub(super) topics: [Bytes; 2],
    /// The publisher knows of it.
    pub(super) known: bool,
    pub(super) down: VecDeque<[Bytes; 3]>,
}

/// What the application does with its acknowledgements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    /// How often, in a thousand records, it clears.
    pub(super) clears: u64,
    /// How often that is everything it was given; else some of it.
    pub(super) clears_all: u64,
}

/// What the application was given and must clear, as the library keeps it.
#[derive(Debug)]
enum Acks {
    None,
    Reader(ReaderAcks),
    Member(MemberAcks),
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) protocol: Protocol<Bytes>,
    pub(super) life: Life,
    pub(super) control: Option<Conn>,
    pub(super) queue: Option<Conn>,
    pub(super) sub: Option<Sub>,
    pub(super) habits: Habits,
    /// The process is stopped until then.
    pub(super) frozen_until: Duration,
    /// Set when nothing more comes.
    pub(super) over: Option<String>,
    inbox: VecDeque<Item<Bytes>>,
    current: Option<Batch<Bytes>>,
    has_reader: bool,
    acks: Acks,
    consumed: ReaderAcks,
    generation: u16,
    settled: RecordIndex,
    settled_records: RangeSet,
    queue_life: u64,
}

impl Client {
    pub(super) fn new(config: Config, life: Life, habits: Habits, now: Instant) -> Self {
        let has_reader = config.reader.is_some();
        let mut protocol = Protocol::new(config.clone(), now);
        protocol.begin(config, now);
        Self {
            protocol,
            life,
            control: None,
            queue: None,
            sub: None,
            habits,
            frozen_until: Duration::ZERO,
            over: None,
            inbox: VecDeque::new(),
            current: None,
            has_reader,
            acks: Acks::None,
            consumed: ReaderAcks::default(),
            generation: 0,
            settled: RecordIndex::ZERO,
            settled_records: RangeSet::new(),
            queue_life: 0,
        }
    }

    /// Does what the state machine wants done; `identity` makes up names of connections,
    /// `socket_of` and `stream_of` know what is behind an endpoint.
    pub(super) fn act(
        &mut self,
        identity: &mut dyn FnMut() -> u64,
        socket_of: &dyn Fn(&str) -> usize,
        stream_of: &dyn Fn(&str) -> usize,
    ) {
        let mut conn = |socket| {
            let (up, down) = (VecDeque::new(), VecDeque::new());
            Some(Conn { identity: identity(), socket, up, down })
        };
        while let Some(output) = self.protocol.poll_output() {
            match output {
                Output::ConnectControl(_) => {
                    (self.sub, self.queue) = (None, None);
                    self.control = conn(0);
                }
                Output::ConnectLive(endpoint, topics) => {
                    let (stream, down) = (stream_of(&endpoint), VecDeque::new());
                    self.sub = Some(Sub { stream, topics, known: false, down });
                }
                Output::ConnectQueue(endpoint) => self.queue = conn(socket_of(&endpoint)),
                Output::Control(bytes) => {
                    self.control.as_mut().map(|conn| conn.up.push_back(bytes)).unwrap_or_default();
                }
                Output::Queue(bytes) => {
                    self.queue.as_mut().map(|conn| conn.up.push_back(bytes)).unwrap_or_default();
                }
                Output::Deliver(item) => self.push(item),
                Output::Greeted(_) | Output::Answer(..) | Output::Closed { .. } => {}
            }
        }
    }

    /// As the library's inbox does.
    fn push(&mut self, item: Item<Bytes>) {
        match (&item, self.inbox.back_mut()) {
            (Item::Low(low), Some(Item::Batch(last))) => last.raise_low(*low),
            (Item::Low(low), Some(Item::Low(last))) => *last = (*last).max(*low),
            _ => self.inbox.push_back(item),
        }
    }

    /// Reads one message, if there is one. Answers whether there was.
    pub(super) fn receive(&mut self, source: Source, now: Instant) -> bool {
        let pipe = match source {
            Source::Control => self.control.as_mut().map(|conn| &mut conn.down),
            Source::Queue => self.queue.as_mut().map(|conn| &mut conn.down),
            Source::Live => {
                if !self.protocol.wants_live() {
                    return false;
                }
                let message = self.sub.as_mut().and_then(|sub| sub.down.pop_front());
                let Some([topic, header, body]) = message else { return false };
                self.protocol.on_data(source, &topic, &header, body, now);
                return true;
            }
        };
        match pipe.and_then(VecDeque::pop_front) {
            Some(Down::Control(bytes)) => self.protocol.on_control(&bytes, now),
            Some(Down::Data([topic, header, body])) => {
                self.protocol.on_data(source, &topic, &header, body, now);
            }
            None => return false,
        }
        true
    }

    /// Takes one record, as [`lcapclient::Client`] does. `None` if there is none now.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u64, Vec<Identity>)> {
        loop {
            if let Some(batch) = &mut self.current
                && let Some((range, index)) = batch.next_range()
            {
                let taken = identities(&batch.buffer()[range]);
                match &mut self.acks {
                    Acks::None => {}
                    Acks::Reader(acks) => acks.hand_out(index),
                    Acks::Member(acks) => acks.hand_out(index),
                }
                if batch.n_left() == 0 {
                    let low = batch.low();
                    self.consumed_upto(low);
                }
                return Some(taken);
            }
            match self.inbox.pop_front()? {
                Item::Batch(batch) => {
                    self.protocol.on_consumed(batch.buffer().len(), now);
                    if matches!(self.acks, Acks::None) {
                        self.acks = match batch.delivery() {
                            Delivery::Queue => Acks::Member(MemberAcks::default()),
                            Delivery::Broadcast if self.has_reader => Acks::Reader(self.consumed),
                            Delivery::Broadcast => Acks::None,
                        };
                    }
                    self.current = Some(batch);
                }
                Item::Low(low) => self.consumed_upto(low),
                Item::Gap(gap) => {
                    let Some(generation) = gap.new_generation else {
                        self.life.gone(gap.first.get(), gap.last.get());
                        continue;
                    };
                    self.life.rewound(gap.first.get());
                    self.consumed.rewind(gap.first);
                    match &mut self.acks {
                        Acks::None => {}
                        Acks::Reader(acks) => acks.rewind(gap.first),
                        Acks::Member(acks) => acks.rewind(gap.first),
                    }
                    self.settled = self.settled.min(gap.first.prev());
                    self.generation = generation;
                }
                Item::Generation(generation) => self.generation = generation,
                Item::Life(life) => {
                    self.queue_life = life;
                    self.settled_records = RangeSet::new();
                    if let Acks::Member(acks) = &mut self.acks {
                        acks.forget();
                    }
                }
                Item::End => self.over = Some("the end".to_owned()),
                Item::Failed(error) => self.over = Some(error.to_string()),
                Item::Trouble(_) => {}
            }
        }
    }

    fn consumed_upto(&mut self, low: RecordIndex) {
        match &mut self.acks {
            Acks::Reader(acks) => acks.consumed(low),
            _ => self.consumed.consumed(low),
        }
        // As the library's inbox does for records that policies dropped.
        let idle = match &self.acks {
            Acks::None => self.has_reader,
            Acks::Reader(acks) => acks.is_idle(),
            Acks::Member(_) => false,
        };
        if idle {
            self.settled = self.settled.max(low);
        }
    }

    /// The application is done with what it was given up to `upto`.
    pub(super) fn clear(&mut self, upto: RecordIndex) {
        match &mut self.acks {
            Acks::None => {}
            Acks::Reader(acks) => {
                acks.clear(upto);
                let so_far = self.current.as_ref().and_then(Batch::low_so_far);
                self.settled = self.settled.max(acks.watermark(so_far));
            }
            Acks::Member(acks) => acks.clear(upto, &mut self.settled_records),
        }
    }

    /// The session's thread looks at what was settled.
    pub(super) fn take_settled(&mut self) {
        self.protocol.settle_reader(self.settled.get(), self.generation);
        let records = std::mem::take(&mut self.settled_records);
        if !records.is_empty() {
            self.protocol.settle_member(&records, self.queue_life);
        }
    }

    /// Its state, for a report.
    pub(super) fn state(&self) -> String {
        let protocol = format!("{:?}", self.protocol);
        let from = protocol.find("phase:").unwrap_or(0);
        let (conns, acks) = ((&self.control, &self.queue), &self.acks);
        let inbox = self.inbox.len();
        format!("{} {conns:?} {acks:?} {inbox} in the inbox", &protocol[from..])
    }

    /// Whether it could do something without any time passing.
    pub(super) fn has_input(&self) -> bool {
        let conns = [&self.control, &self.queue];
        let any = conns.into_iter().flatten().any(|conn| !conn.down.is_empty());
        let live = self.sub.as_ref().is_some_and(|sub| !sub.down.is_empty());
        any || (live && self.protocol.wants_live()) || !self.inbox.is_empty()
    }
}
