//! A mover's side of the HSM protocol, without sockets: what is said and heard as values.
//!
//! The mover holds requests: *unread* ones, which the application has not taken yet, and *given*
//! ones. All of them are presented again when the connection was cut, so that lcapd, restarted or
//! not, knows that they are taken care of. A request is let go when it is reported; the report is
//! kept, and said again, until lcapd has it on disk.
#![forbid(unsafe_code)]

mod session;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use lcap_ffi::Fid;
use lcap_ffi::hsm::{ActionItem, ActionList, HsmAction, ListBuilder};
use lcap_wire::mover::{
    Hello, Limits, MoverEvent, MoverMessage, MoverOp, Report, RequestKey, Welcome, What,
};

use crate::error::ClientError;

pub use session::{Mover, MoverBuilder};

/// An answer to a hello takes no longer.
const GREETING: Duration = Duration::from_secs(5);
/// Between two hellos that were refused, or not answered.
const PAUSE: Duration = Duration::from_secs(1);
/// The same, if lcapd does not want the mover's key: somebody has to change a list.
const UNWELCOME: Duration = Duration::from_secs(5);
/// lcapd is silent for so many heartbeats: the connection is made anew.
const SILENCE: u32 = 4;

/// One request, or the cancel of one, in memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What is to be done; `HSMA_*`.
    pub action: u32,
    /// The file.
    pub fid: Fid,
    /// The file that holds the data.
    pub dfid: Fid,
    /// First byte.
    pub offset: u64,
    /// Bytes; all ones to the end.
    pub length: u64,
    /// The coordinator's name for it.
    pub cookie: u64,
    /// Group lock.
    pub gid: u64,
    /// Where to or from.
    pub archive_id: u32,
    /// `hal_flags`.
    pub flags: u64,
    /// The requester's, any bytes.
    pub data: Box<[u8]>,
}

impl Action {
    fn of(list: &ActionList<'_>, item: &ActionItem<'_>) -> Self {
        Self {
            action: item.action,
            fid: item.fid,
            dfid: item.dfid,
            offset: item.offset,
            length: item.length,
            cookie: item.cookie,
            gid: item.gid,
            archive_id: list.archive_id,
            flags: list.flags,
            data: item.data.into(),
        }
    }

    /// What names it.
    pub fn key(&self) -> RequestKey {
        RequestKey { cookie: self.cookie, fid: self.fid }
    }

    /// Whether it ends another.
    pub fn is_cancel(&self) -> bool {
        self.action == HsmAction::Cancel.number()
    }

    /// As it stands in a list.
    pub fn as_item(&self) -> ActionItem<'_> {
        ActionItem {
            action: self.action,
            fid: self.fid,
            dfid: self.dfid,
            offset: self.offset,
            length: self.length,
            cookie: self.cookie,
            gid: self.gid,
            data: &self.data,
        }
    }
}

/// Who a mover is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Random.
    pub life: u64,
    /// Its file system.
    pub fsname: Option<String>,
    /// Archives that it serves; all if none.
    pub archives: Vec<u32>,
    /// Most that it runs.
    pub limits: Limits,
    /// Requests that may be unread.
    pub window: u32,
}

/// What the protocol wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A new connection, to the next server if there are several.
    Connect,
    /// These frames.
    Send(Vec<Vec<u8>>),
    /// The application may have these.
    Deliver(Vec<Action>),
    /// Take it from the unread ones and call [`Protocol::returned`], or give the application this cancel.
    Cancel(Action),
    /// The first session is open.
    Greeted(Welcome),
    /// There will be none.
    Failed(ClientError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until then nothing is tried.
    Paused(Instant),
    Greeting(Instant),
    Open {
        session: u64,
        heartbeat: Duration,
    },
    /// Refused for good.
    Failed,
}

/// The protocol.
#[derive(Debug)]
pub struct Protocol {
    who: Identity,
    state: State,
    attempt: u64,
    was_open: bool,
    held: HashMap<RequestKey, Action>,
    n_unread: u64,
    /// Of this session.
    received: u64,
    granted: u64,
    /// Reports that lcapd does not have on disk yet.
    unstored: VecDeque<(u64, Vec<u8>)>,
    next_report: u64,
    /// Last report that was in the hello.
    presented: u64,
    heard: Instant,
    said: Instant,
    outputs: VecDeque<Output>,
}

impl Protocol {
    /// Nothing is said yet.
    pub fn new(who: Identity, now: Instant) -> Self {
        Self {
            who,
            state: State::Paused(now),
            attempt: 0,
            was_open: false,
            held: HashMap::new(),
            n_unread: 0,
            received: 0,
            granted: 0,
            unstored: VecDeque::new(),
            next_report: 1,
            presented: 0,
            heard: now,
            said: now,
            outputs: VecDeque::new(),
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether everything that was reported is on lcapd's disk.
    pub fn is_settled(&self) -> bool {
        self.unstored.is_empty()
    }

    /// When [`Self::on_timer`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Paused(until) => Some(until),
            State::Greeting(since) => Some(since + GREETING),
            State::Open { heartbeat, .. } => {
                Some((self.said + heartbeat).min(self.heard + heartbeat * SILENCE))
            }
            State::Failed => None,
        }
    }

    /// Does what is due.
    pub fn on_timer(&mut self, now: Instant) {
        match self.state {
            State::Paused(until) if until <= now => self.greet(now),
            State::Greeting(since) if since + GREETING <= now => self.greet(now),
            State::Open { session, heartbeat } => {
                if self.heard + heartbeat * SILENCE <= now {
                    tracing::warn!("lcapd is silent, connecting anew");
                    self.greet(now);
                } else if self.said + heartbeat <= now {
                    self.say(MoverOp::Heartbeat { session }, Vec::new(), now);
                }
            }
            _ => {}
        }
    }

    /// The connection was cut.
    pub fn on_disconnected(&mut self, now: Instant) {
        if matches!(self.state, State::Open { .. }) {
            tracing::warn!("the connection to lcapd was cut, connecting anew");
            self.greet(now);
        }
    }

    /// lcapd knows this mover's key, and does not want it. The connection is to be given up.
    pub fn on_unwelcome(&mut self, now: Instant) {
        let error = "this client's key is not that of a mover, says lcapd: the list of clients there \
                     (`clients` of [security]) needs it, with `mover = true`";
        self.refused(libc::EACCES, error.to_owned(), now);
    }

    fn greet(&mut self, now: Instant) {
        self.state = State::Greeting(now);
        self.attempt += 1;
        (self.received, self.granted) = (0, 0);
        self.outputs.push_back(Output::Connect);
        self.granted = self.room();
        let hello = Hello {
            mover: self.who.name.clone(),
            life: self.who.life,
            attempt: self.attempt,
            fsname: self.who.fsname.clone(),
            archives: self.who.archives.clone(),
            limits: self.who.limits,
            upto: self.granted,
            reports: self.unstored.iter().map(|(sequence, _)| *sequence).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.presented = self.next_report - 1;
        let mut behind = self.held_lists();
        behind.extend(self.unstored.iter().map(|(_, frame)| frame.clone()));
        self.say(MoverOp::Hello(hello), behind, now);
    }

    /// Everything that is held, as lists.
    fn held_lists(&self) -> Vec<Vec<u8>> {
        let fsname = self.who.fsname.as_deref().unwrap_or_default();
        let mut lists: BTreeMap<(u32, u64), ListBuilder> = BTreeMap::new();
        for action in self.held.values() {
            let (archive_id, flags) = (action.archive_id, action.flags);
            let list = lists
                .entry((archive_id, flags))
                .or_insert_with(|| ListBuilder::new(fsname.as_bytes(), archive_id, flags));
            // It came in a list, so it fits one.
            let _ = list.push(&action.as_item());
        }
        lists.into_values().map(ListBuilder::finish).collect()
    }

    fn room(&self) -> u64 {
        let window = u64::from(self.who.window.max(1));
        self.received + window.saturating_sub(self.n_unread)
    }

    fn say(&mut self, op: MoverOp, behind: Vec<Vec<u8>>, now: Instant) {
        self.said = now;
        let mut frames = vec![MoverMessage::encode(op)];
        frames.extend(behind);
        self.outputs.push_back(Output::Send(frames));
    }

    /// A message of lcapd's: its frames.
    pub fn on_message(&mut self, frames: &[&[u8]], now: Instant) {
        let Some((head, behind)) = frames.split_first() else { return };
        let event = match serde_json::from_slice::<MoverEvent>(head) {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, "a message of lcapd's makes no sense, ignored");
                return;
            }
        };
        match (event, self.state) {
            (MoverEvent::Welcome(welcome), State::Greeting(_))
                if welcome.attempt == self.attempt =>
            {
                self.welcome(welcome, now);
            }
            (MoverEvent::Refused { attempt, errno, error }, State::Greeting(_))
                if attempt == self.attempt =>
            {
                self.refused(errno, error, now);
            }
            (event, State::Open { session, .. }) => self.on_event(&event, behind, session, now),
            _ => {} // of an earlier session
        }
    }

    fn on_event(&mut self, event: &MoverEvent, behind: &[&[u8]], session: u64, now: Instant) {
        match *event {
            MoverEvent::Work { session: of } if of == session => {
                self.heard = now;
                for list in behind {
                    self.on_work(list, now);
                }
            }
            MoverEvent::Stored { session: of, sequence } if of == session => {
                self.heard = now;
                while self.unstored.front().is_some_and(|(number, _)| *number <= sequence) {
                    self.unstored.pop_front();
                }
            }
            MoverEvent::Heartbeat { session: of } if of == session => self.heard = now,
            MoverEvent::Probe { session: of } if of == session => {
                self.heard = now;
                self.say(MoverOp::Here { session }, Vec::new(), now);
            }
            MoverEvent::Lost { session: of, ref error } if of == session => {
                tracing::warn!(error, "lcapd does not know this session, saying hello again");
                self.greet(now);
            }
            _ => {}
        }
    }

    fn welcome(&mut self, welcome: Welcome, now: Instant) {
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.clamp(10, 600_000));
        self.state = State::Open { session: welcome.session, heartbeat };
        self.heard = now;
        if self.who.fsname.is_none() {
            self.who.fsname = Some(welcome.fsname.clone());
        }
        // What ended between the hello and now was not in it.
        let session = welcome.session;
        let later = self.unstored.iter().filter(|(sequence, _)| *sequence > self.presented);
        for (sequence, frame) in later.cloned().collect::<Vec<_>>() {
            self.say(MoverOp::Report { session, sequence }, vec![frame], now);
        }
        self.grant(now);
        if !std::mem::replace(&mut self.was_open, true) {
            self.outputs.push_back(Output::Greeted(welcome));
        }
    }

    fn refused(&mut self, errno: i32, error: String, now: Instant) {
        // A name is taken until its other mover is known for dead; what is wrong for a mover that
        // was welcome before may be right again after lcapd's next restart.
        if errno == libc::EEXIST || self.was_open {
            tracing::warn!(error, "lcapd refuses this mover, will try again");
            let pause = if errno == libc::EACCES { UNWELCOME } else { PAUSE };
            self.state = State::Paused(now + pause);
        } else {
            self.state = State::Failed;
            let refused = ClientError::Refused { endpoint: "lcapd".to_owned(), errno, error };
            self.outputs.push_back(Output::Failed(refused));
        }
    }

    fn on_work(&mut self, bytes: &[u8], now: Instant) {
        let list = match ActionList::parse(bytes) {
            Ok(list) => list,
            Err(error) => {
                tracing::error!(%error, "lcapd sent work that cannot be read");
                return;
            }
        };
        let mut fresh = Vec::with_capacity(list.len());
        for item in list.items() {
            let action = Action::of(&list, &item);
            if action.is_cancel() {
                if !fresh.is_empty() {
                    self.outputs.push_back(Output::Deliver(std::mem::take(&mut fresh)));
                }
                if self.held.contains_key(&action.key()) {
                    self.outputs.push_back(Output::Cancel(action));
                }
                continue;
            }
            self.received += 1;
            // Held already: it is Lustre's own retry, or was presented to an lcapd that had
            // forgotten it. Either way it is taken care of.
            if self.held.insert(action.key(), action.clone()).is_none() {
                self.n_unread += 1;
                fresh.push(action);
            }
        }
        if !fresh.is_empty() {
            self.outputs.push_back(Output::Deliver(fresh));
        }
        self.grant(now);
    }

    /// The application took so many.
    pub fn on_taken(&mut self, n: u64, now: Instant) {
        self.n_unread = self.n_unread.saturating_sub(n);
        self.grant(now);
    }

    /// An unread request was taken away again, because it is cancelled.
    pub fn returned(&mut self, key: RequestKey, now: Instant) {
        self.n_unread = self.n_unread.saturating_sub(1);
        self.on_reports(&[Report { key, what: What::Returned, status: libc::ECANCELED }], now);
        self.grant(now);
    }

    /// Says how much more may come, if that is worth a message.
    fn grant(&mut self, now: Instant) {
        let State::Open { session, .. } = self.state else { return };
        let room = self.room();
        let enough = u64::from(self.who.window / 2).max(1);
        if room >= self.granted + enough || (room > self.granted && self.n_unread == 0) {
            self.granted = room;
            self.say(MoverOp::Credit { session, upto: room }, Vec::new(), now);
        }
    }

    /// The application tells what became of requests. Those that are not held are left out: they
    /// were reported before.
    pub fn on_reports(&mut self, reports: &[Report], now: Instant) {
        let mut frame = Vec::new();
        for report in reports {
            let known = match report.what {
                What::Begun => self.held.contains_key(&report.key),
                _ => self.held.remove(&report.key).is_some(),
            };
            if known {
                report.pack(&mut frame);
            }
        }
        if frame.is_empty() {
            return;
        }
        let sequence = self.next_report;
        self.next_report += 1;
        self.unstored.push_back((sequence, frame.clone()));
        if let State::Open { session, .. } = self.state {
            self.say(MoverOp::Report { session, sequence }, vec![frame], now);
        }
    }

    /// The end: others may have what is held.
    pub fn close(&mut self, now: Instant) {
        if let State::Open { session, .. } = self.state {
            self.say(MoverOp::Bye { session }, Vec::new(), now);
        }
        self.state = State::Failed;
    }
}
