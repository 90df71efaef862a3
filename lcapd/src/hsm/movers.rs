//! Movers: who is there, what each may get, what it says of what it has. No socket, no clock.
//!
//! A mover's name is what the queue calls a worker. A *session* is one stretch of talk with one
//! process of that name; its number is in every message, so that nothing late of an earlier one can
//! disturb it. The queue keeps what a mover runs while it is away; here is decided whether it is.
//!
//! [`Movers::take_outputs`] must be sent only when the queue's changes up to then are on disk.
#![forbid(unsafe_code)]

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::hsm::{ActionItem, ActionList, HsmAction, ITEM_HEAD_BYTES, ListBuilder};
use lcap_wire::mover::{
    Hello, MoverEvent, MoverMessage, MoverOp, Report, RequestKey, Welcome, What as Told, is_name,
};
use tracing::{debug, info, warn};

use super::lustre::ToLustre;
use super::queue::{Admitted, Arrival, Assignment, Event, Outcome, Queue, State, What, WorkerSpec};
use super::request::{Kind, Request, Source};
use super::scheduler::{Now, Wants};
use crate::security::Access;

/// Silent for so many heartbeats, a mover has vanished.
const SILENCE: u32 = 5;
/// Requests in one list.
const LIST_ITEMS: u32 = 512;
/// Requests that one mover gets before the others have their turn.
const TURN: u32 = 64;
/// Bytes of one list.
const LIST_BYTES: u64 = 1 << 20;

/// Who a message comes from and goes to: what the socket calls it.
pub type Peer = Arc<[u8]>;

/// What a site has chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file system.
    pub fsname: Arc<str>,
    /// How often a mover has to be heard of.
    pub heartbeat: Duration,
    /// How long a vanished mover keeps what it runs.
    pub grace: Duration,
    /// The same for single movers.
    pub graces: BTreeMap<String, Duration>,
}

impl Settings {
    fn grace_of(&self, mover: &str) -> Duration {
        self.graces.get(mover).copied().unwrap_or(self.grace)
    }

    /// What requests are filed under that come from Lustre: it does not say which MDT they are of.
    pub fn any_mdt(&self) -> Arc<str> {
        format!("{}-MDTffff", self.fsname).into()
    }
}

/// Frames for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// To whom.
    pub peer: Peer,
    /// The message.
    pub frames: Vec<Vec<u8>>,
}

/// One stretch of talk.
#[derive(Debug)]
struct Session {
    name: Arc<str>,
    peer: Peer,
    hello: Hello,
    /// Items sent.
    sent: u64,
    /// Items that may be sent.
    upto: u64,
    heard: Now,
    /// Last report that was taken, of this life.
    reports: u64,
}

/// A hello of a name that is taken: is its holder alive?
#[derive(Debug)]
struct Challenger {
    peer: Peer,
    hello: Hello,
    behind: Vec<Vec<u8>>,
    until: Now,
}

/// Everybody.
#[derive(Debug)]
pub struct Movers {
    settings: Settings,
    access: Access,
    mdt: Arc<str>,
    sessions: HashMap<u64, Session>,
    by_name: BTreeMap<Arc<str>, u64>,
    challengers: HashMap<Arc<str>, Challenger>,
    /// Requests that a mover has begun with Lustre: their progress is its to tell.
    begun: HashSet<u64>,
    next_session: u64,
    /// Who has its turn first.
    turn: usize,
    outputs: Vec<Output>,
    to_lustre: Vec<ToLustre>,
}

/// A mover, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoverView {
    /// Its name.
    pub name: Arc<str>,
    /// Its session's number.
    pub session: u64,
    /// Release of its library.
    pub version: String,
    /// It could take so many more requests.
    pub room: u64,
}

impl Movers {
    /// Nobody is there. `first_session` is above every number that was ever given.
    pub fn new(settings: Settings, first_session: u64) -> Self {
        Self {
            mdt: settings.any_mdt(),
            settings,
            access: Access::default(),
            sessions: HashMap::new(),
            by_name: BTreeMap::new(),
            challengers: HashMap::new(),
            begun: HashSet::new(),
            next_session: first_session,
            turn: 0,
            outputs: Vec::new(),
            to_lustre: Vec::new(),
        }
    }

    /// Other grace times, for movers that come from now on.
    pub fn set_graces(&mut self, grace: Duration, graces: BTreeMap<String, Duration>) {
        (self.settings.grace, self.settings.graces) = (grace, graces);
    }

    /// What is to be sent, once the queue's changes are on disk.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// What Lustre is to be told.
    pub fn take_to_lustre(&mut self) -> Vec<ToLustre> {
        std::mem::take(&mut self.to_lustre)
    }

    /// Whether a mover has begun it.
    pub fn has_begun(&self, id: u64) -> bool {
        self.begun.contains(&id)
    }

    /// Movers that are there.
    pub fn views(&self) -> impl Iterator<Item = MoverView> {
        self.by_name.iter().filter_map(|(name, number)| {
            let session = self.sessions.get(number)?;
            Some(MoverView {
                name: Arc::clone(name),
                session: *number,
                version: session.hello.version.clone(),
                room: session.upto.saturating_sub(session.sent),
            })
        })
    }

    fn say(&mut self, peer: &Peer, event: &MoverEvent, behind: Vec<Vec<u8>>) {
        let mut frames = vec![event.encode()];
        frames.extend(behind);
        self.outputs.push(Output { peer: Arc::clone(peer), frames });
    }

    /// Only who may be a mover of a name gets it.
    pub fn set_access(&mut self, access: Access) {
        self.access = access;
    }

    /// A message of somebody without a name: its frames. What makes no sense is ignored.
    pub fn on_message(&mut self, queue: &mut Queue, peer: &Peer, frames: &[Vec<u8>], now: Now) {
        self.on_message_of(queue, (peer, None), frames, now);
    }

    /// A message of a client on the list, if there is one.
    pub fn on_message_of(
        &mut self,
        queue: &mut Queue,
        (peer, client): (&Peer, Option<&str>),
        frames: &[Vec<u8>],
        now: Now,
    ) {
        let Some((head, behind)) = frames.split_first() else { return };
        let message = match serde_json::from_slice::<MoverMessage>(head) {
            Ok(message) => message,
            Err(error) => {
                debug!(%error, "message of a mover's that makes no sense, ignored");
                return;
            }
        };
        match message.op {
            MoverOp::Hello(hello) => {
                if self.access.may_be_mover(client, &hello.mover) {
                    self.hello(queue, peer, hello, behind, now);
                } else {
                    let client = client.unwrap_or("?");
                    let error = format!("client {client} may not be the mover {}", hello.mover);
                    warn!(client, mover = hello.mover, "refused: another may be this mover");
                    self.refuse(peer, hello.attempt, libc::EACCES, error);
                }
            }
            MoverOp::Credit { session, upto } => {
                if let Some(session) = self.heard(peer, session, now) {
                    session.upto = session.upto.max(upto);
                }
            }
            MoverOp::Report { session, sequence } => {
                if self.heard(peer, session, now).is_some() {
                    for frame in behind {
                        self.report(queue, session, sequence, frame, now);
                    }
                    self.say(peer, &MoverEvent::Stored { session, sequence }, Vec::new());
                }
            }
            MoverOp::Heartbeat { session } => {
                if self.heard(peer, session, now).is_some() {
                    self.say(peer, &MoverEvent::Heartbeat { session }, Vec::new());
                }
            }
            MoverOp::Here { session } => {
                if let Some(held) = self.heard(peer, session, now) {
                    let name = Arc::clone(&held.name);
                    self.refuse_challenger(&name);
                }
            }
            MoverOp::Bye { session } => {
                if let Some(session) = self.heard(peer, session, now) {
                    let name = Arc::clone(&session.name);
                    info!(mover = &*name, "mover says goodbye");
                    self.drop_mover(queue, &name, now);
                }
            }
        }
    }

    /// The session, if it is one, and that peer's.
    fn heard(&mut self, peer: &Peer, number: u64, now: Now) -> Option<&mut Session> {
        let known = self.sessions.get(&number).is_some_and(|session| session.peer == *peer);
        if !known {
            let error = "this session is over".to_owned();
            self.say(peer, &MoverEvent::Lost { session: number, error }, Vec::new());
            return None;
        }
        let session = self.sessions.get_mut(&number)?;
        session.heard = now;
        Some(session)
    }

    // --- coming ---

    fn hello(
        &mut self,
        queue: &mut Queue,
        peer: &Peer,
        hello: Hello,
        behind: &[Vec<u8>],
        now: Now,
    ) {
        let wrong = self.what_is_wrong(&hello);
        if let Some(error) = wrong {
            self.refuse(peer, hello.attempt, libc::EINVAL, error);
            return;
        }
        let name: Arc<str> = hello.mover.as_str().into();
        let holder = self.by_name.get(&name).and_then(|number| self.sessions.get(number));
        match holder {
            // An old one that arrives late finds the newer one's session, and nothing happens.
            Some(old) if old.hello.life == hello.life && hello.attempt <= old.hello.attempt => {
                return;
            }
            Some(old) if old.hello.life != hello.life => {
                let probe = self.by_name.get(&name).copied().unwrap_or_default();
                let old = Arc::clone(&old.peer);
                let until = now + self.settings.heartbeat * 2;
                let (peer, behind) = (Arc::clone(peer), behind.to_vec());
                let challenger = Challenger { peer, hello, behind, until };
                if let Some(other) = self.challengers.insert(name, challenger) {
                    let error = "another mover asks for this name, too".to_owned();
                    self.refuse(&other.peer, other.hello.attempt, libc::EEXIST, error);
                }
                self.say(&old, &MoverEvent::Probe { session: probe }, Vec::new());
                return;
            }
            _ => {}
        }
        self.open(queue, peer, name, hello, behind, now);
    }

    fn what_is_wrong(&self, hello: &Hello) -> Option<String> {
        if !is_name(&hello.mover) {
            return Some(format!("`{}` cannot be a mover's name", hello.mover));
        }
        let other = hello.fsname.as_deref().filter(|fsname| **fsname != *self.settings.fsname);
        if let Some(other) = other {
            let ours = &self.settings.fsname;
            return Some(format!("requests here are of file system {ours}, not {other}"));
        }
        let bad = hello.archives.iter().any(|&id| id == 0 || i32::try_from(id).is_err());
        bad.then(|| "an archive id must be a number from 1 to 2147483647".to_owned())
    }

    fn refuse(&mut self, peer: &Peer, attempt: u64, errno: i32, error: String) {
        self.say(peer, &MoverEvent::Refused { attempt, errno, error }, Vec::new());
    }

    fn refuse_challenger(&mut self, name: &Arc<str>) {
        if let Some(challenger) = self.challengers.remove(name) {
            warn!(mover = &**name, "a second mover of this name was refused");
            let error = format!("a mover named {name} is there already");
            self.refuse(&challenger.peer, challenger.hello.attempt, libc::EEXIST, error);
        }
    }

    fn open(
        &mut self,
        queue: &mut Queue,
        peer: &Peer,
        name: Arc<str>,
        hello: Hello,
        behind: &[Vec<u8>],
        now: Now,
    ) {
        let number = self.next_session;
        self.next_session += 1;
        let before = self.by_name.insert(Arc::clone(&name), number);
        let before = before.and_then(|before| self.sessions.remove(&before));
        let same_life = before.filter(|before| before.hello.life == hello.life);
        let session = Session {
            name: Arc::clone(&name),
            peer: Arc::clone(peer),
            sent: 0,
            upto: hello.upto,
            heard: now,
            reports: same_life.as_ref().map_or(0, |before| before.reports),
            hello,
        };
        queue.hello(self.spec(&session), now);
        let hello = &session.hello;
        let reports: Vec<u64> = hello.reports.clone();
        let n_lists = behind.len().saturating_sub(reports.len());
        let (lists, frames) = behind.split_at(n_lists);
        info!(
            mover = &*name,
            session = number,
            version = hello.version,
            returned = same_life.is_some(),
            "mover is there"
        );
        let welcome = Welcome {
            attempt: hello.attempt,
            session: number,
            fsname: self.settings.fsname.to_string(),
            heartbeat_ms: u64::try_from(self.settings.heartbeat.as_millis()).unwrap_or(1000),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.say(peer, &MoverEvent::Welcome(welcome), Vec::new());
        self.sessions.insert(number, session);
        // What has ended first, so that it is not taken for lost.
        for (sequence, frame) in reports.iter().zip(frames) {
            self.report(queue, number, *sequence, frame, now);
            self.say(
                peer,
                &MoverEvent::Stored { session: number, sequence: *sequence },
                Vec::new(),
            );
        }
        self.adopt(queue, number, &name, lists, now);
    }

    fn spec(&self, session: &Session) -> WorkerSpec {
        WorkerSpec {
            name: Arc::clone(&session.name),
            kinds: Kind::ALL.to_vec(),
            archive_ids: session.hello.archives.clone(),
            upcalls: false,
            silence: None, // is looked at here
            grace: self.settings.grace_of(&session.name),
        }
    }

    /// What a mover says that it holds is its own, unless another has it; the rest of what the queue
    /// thinks is its own waits again.
    fn adopt(
        &mut self,
        queue: &mut Queue,
        number: u64,
        name: &Arc<str>,
        lists: &[Vec<u8>],
        now: Now,
    ) {
        let mut ids = BTreeSet::new();
        let mut not_its_own = Vec::new();
        let mut cancelled = Vec::new();
        for bytes in lists {
            let list = match ActionList::parse(bytes) {
                Ok(list) => list,
                Err(error) => {
                    warn!(mover = &**name, %error, "mover names what it runs in a list that cannot be read");
                    continue;
                }
            };
            for item in list.items() {
                let Some(request) = request_of(&self.mdt, &list, &item) else { continue };
                let id = match queue.admit(request, Arrival::Listed, now) {
                    Admitted::New(id) => {
                        info!(mover = &**name, id, "mover runs a request that was not known");
                        id
                    }
                    Admitted::Duplicate(id) | Admitted::Again(id) => id,
                };
                if queue.claim(id, name, now).is_ok() {
                    ids.insert(id);
                    let view = queue.get(id).filter(|view| view.cancel);
                    cancelled.extend(view.map(|view| Arc::clone(view.request)));
                } else {
                    not_its_own.extend(queue.get(id).map(|view| Arc::clone(view.request)));
                }
            }
        }
        let Some(session) = self.sessions.get(&number) else { return };
        let peer = Arc::clone(&session.peer);
        let lost: Vec<u64> = queue
            .worker(name)
            .map(|worker| worker.running.difference(&ids).copied().collect())
            .unwrap_or_default();
        for id in lost {
            self.begun.remove(&id);
        }
        queue.keep_only(name, &ids, now);
        for request in not_its_own.iter().chain(&cancelled) {
            self.send_cancel(number, &peer, request);
        }
    }

    // --- going ---

    /// A message could not be delivered: its peer is gone.
    pub fn unreachable(&mut self, queue: &mut Queue, peer: &Peer, now: Now) {
        let found = self.sessions.iter().find(|(_, session)| session.peer == *peer);
        if let Some((&number, _)) = found {
            self.vanished(queue, number, "its connection is gone", now);
        }
        self.challengers.retain(|_, challenger| challenger.peer != *peer);
    }

    /// The mover that a peer is, if it is one.
    pub fn name_of(&self, peer: &Peer) -> Option<Arc<str>> {
        let session = self.sessions.values().find(|session| session.peer == *peer);
        session.map(|session| Arc::clone(&session.name))
    }

    /// That peer may not be a mover any longer. It keeps what it runs for its grace time.
    pub fn revoke(&mut self, queue: &mut Queue, peer: &Peer, now: Now) {
        let found = self.sessions.iter().find(|(_, session)| session.peer == *peer);
        if let Some((&number, _)) = found {
            let error = "this client may not be a mover any longer".to_owned();
            self.say(peer, &MoverEvent::Lost { session: number, error }, Vec::new());
            self.vanished(queue, number, "its client may not be a mover any longer", now);
        }
        self.challengers.retain(|_, challenger| challenger.peer != *peer);
    }

    fn vanished(&mut self, queue: &mut Queue, number: u64, why: &str, now: Now) {
        let Some(session) = self.sessions.remove(&number) else { return };
        let name = session.name;
        self.by_name.remove(&name);
        let grace = self.settings.grace_of(&name);
        warn!(
            mover = &*name,
            ?grace,
            why,
            "mover has vanished; it keeps what it runs for its grace time"
        );
        queue.disconnected(&name, now);
        if let Some(next) = self.challengers.remove(&name) {
            self.open(queue, &next.peer, name, next.hello, &next.behind, now);
        }
    }

    /// Ends a mover: others get at once what it has. False if there is none of that name.
    pub fn drop_mover(&mut self, queue: &mut Queue, name: &str, now: Now) -> bool {
        if let Some(number) = self.by_name.remove(name)
            && let Some(session) = self.sessions.remove(&number)
        {
            let error = "this mover was ended".to_owned();
            self.say(&session.peer, &MoverEvent::Lost { session: number, error }, Vec::new());
        }
        let Some(worker) = queue.worker(name) else { return false };
        for id in &worker.running {
            self.begun.remove(id);
        }
        queue.drop_worker(name, now);
        true
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Now> {
        let silence = self.settings.heartbeat * SILENCE;
        let silent = self.sessions.values().map(|session| session.heard + silence).min();
        let challenged = self.challengers.values().map(|challenger| challenger.until).min();
        silent.into_iter().chain(challenged).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, queue: &mut Queue, now: Now) {
        let silence = self.settings.heartbeat * SILENCE;
        let mut gone: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.heard + silence <= now)
            .map(|(&number, _)| number)
            .collect();
        let answered = self.challengers.iter().filter(|(_, challenger)| challenger.until <= now);
        gone.extend(answered.filter_map(|(name, _)| self.by_name.get(name)));
        for number in gone {
            self.vanished(queue, number, "it is silent", now);
        }
    }

    // --- reports ---

    fn report(&mut self, queue: &mut Queue, number: u64, sequence: u64, frame: &[u8], now: Now) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if sequence <= session.reports {
            return; // said again, because our answer was lost
        }
        session.reports = sequence;
        let name = Arc::clone(&session.name);
        let Some(reports) = Report::unpack(frame) else {
            warn!(mover = &*name, "report of a mover's that cannot be read, ignored");
            return;
        };
        for report in reports {
            self.told(queue, &name, report, now);
        }
    }

    fn told(&mut self, queue: &mut Queue, name: &Arc<str>, report: Report, now: Now) {
        let Report { key, what, status } = report;
        let Some(id) = self.find(queue, key) else { return };
        let holds = queue.get(id).is_some_and(
            |view| matches!(view.state, State::Running { worker, .. } if worker == name),
        );
        if !holds {
            debug!(mover = &**name, id, "mover speaks of a request that it does not hold");
            return;
        }
        match what {
            Told::Begun => {
                self.begun.insert(id);
                return;
            }
            Told::Done => {
                let outcome = match status {
                    0 => Outcome::Success,
                    errno => Outcome::Failed { errno, error: format!("error {errno}") },
                };
                queue.done(id, name, None, outcome, now);
            }
            Told::Refused => {
                // Whoever ended it: Lustre is told once more, and says ENOENT if it was.
                self.end_with_lustre(queue, id, status);
                queue.done(id, name, None, Outcome::Refused, now);
            }
            Told::Returned if status == libc::ECANCELED => {
                let error = "cancelled".to_owned();
                queue.done(id, name, None, Outcome::Failed { errno: status, error }, now);
            }
            Told::Returned => {
                queue.release(id, name, None, now);
            }
        }
        self.begun.remove(&id);
    }

    fn end_with_lustre(&mut self, queue: &Queue, id: u64, errno: i32) {
        if let Some(view) = queue.get(id)
            && view.request.cookie().is_some()
        {
            self.to_lustre.push(ToLustre::Fail { request: Arc::clone(view.request), errno });
        }
    }

    fn find(&self, queue: &Queue, key: RequestKey) -> Option<u64> {
        queue.find(&self.mdt, key.cookie, key.fid)
    }

    // --- work ---

    /// Something happened to a request.
    pub fn on_event(&mut self, event: &Event) {
        match &event.what {
            What::CancelRunning(name) => {
                let number = self.by_name.get(name).copied();
                if let Some(number) = number
                    && let Some(session) = self.sessions.get(&number)
                {
                    let peer = Arc::clone(&session.peer);
                    self.send_cancel(number, &peer, &event.request);
                }
            }
            What::Cancelled { .. } => {
                self.begun.remove(&event.id);
                if event.request.cookie().is_some() {
                    let request = Arc::clone(&event.request);
                    self.to_lustre.push(ToLustre::Fail { request, errno: libc::ECANCELED });
                }
            }
            What::Returned(_) | What::Done(..) => {
                self.begun.remove(&event.id);
            }
            _ => {}
        }
    }

    fn send_cancel(&mut self, number: u64, peer: &Peer, request: &Request) {
        let mut list = self.new_list(request);
        let mut item = item_of(request);
        item.action = HsmAction::Cancel.number();
        if list.push(&item).is_ok() {
            self.say(peer, &MoverEvent::Work { session: number }, vec![list.finish()]);
        }
    }

    fn new_list(&self, request: &Request) -> ListBuilder {
        ListBuilder::new(self.settings.fsname.as_bytes(), request.archive_id, request.flags)
    }

    /// Hands out what there is, in turns, so that one mover does not get all of it.
    pub fn dispatch(&mut self, queue: &mut Queue, now: Now) {
        let mut numbers: Vec<u64> = self.by_name.values().copied().collect();
        if numbers.is_empty() {
            return;
        }
        self.turn = (self.turn + 1) % numbers.len();
        numbers.rotate_left(self.turn);
        let turn = if numbers.len() == 1 { LIST_ITEMS } else { TURN };
        while !numbers.is_empty() {
            numbers.retain(|&number| self.hand_out(queue, number, turn, now));
        }
    }

    /// One list for one mover. False if it gets no more now.
    fn hand_out(&mut self, queue: &mut Queue, number: u64, turn: u32, now: Now) -> bool {
        let Some(session) = self.sessions.get_mut(&number) else { return false };
        let room = u32::try_from(session.upto.saturating_sub(session.sent)).unwrap_or(u32::MAX);
        if room == 0 {
            return false;
        }
        let limits = session.hello.limits;
        let wants = Wants {
            n: room.min(turn),
            running: [limits.archive, limits.restore, limits.remove],
            bytes: Some(LIST_BYTES),
            item_bytes: u64::try_from(ITEM_HEAD_BYTES + 8).unwrap_or(80),
            uniform: true,
        };
        let (name, peer) = (Arc::clone(&session.name), Arc::clone(&session.peer));
        let taken = queue.take(&name, &wants, now);
        let Some(Assignment { request: first, .. }) = taken.first() else { return false };
        let mut list = self.new_list(first);
        for Assignment { id, request, .. } in &taken {
            if list.push(&item_of(request)).is_err() {
                // More data than any list of Lustre's has: it did not come from there.
                let error = "its data is too long for a mover".to_owned();
                let outcome = Outcome::Failed { errno: libc::E2BIG, error };
                queue.done(*id, &name, None, outcome, now);
            }
        }
        if let Some(session) = self.sessions.get_mut(&number) {
            session.sent += u64::try_from(list.len()).unwrap_or(0);
        }
        self.say(&peer, &MoverEvent::Work { session: number }, vec![list.finish()]);
        true
    }
}

/// As it stands in a list.
pub(super) fn item_of(request: &Request) -> ActionItem<'_> {
    ActionItem {
        action: request.kind as u32,
        fid: request.fid,
        dfid: request.dfid,
        offset: request.offset,
        length: request.length,
        cookie: request.cookie().unwrap_or(0),
        gid: request.gid_lock,
        data: &request.data,
    }
}

/// The request that an item is; `None` if it is none (a cancel, say).
pub(super) fn request_of(
    mdt: &Arc<str>,
    list: &ActionList<'_>,
    item: &ActionItem<'_>,
) -> Option<Request> {
    let kind = Kind::from_number(item.action)?;
    let source = Source::Coordinator { cookie: item.cookie };
    let mut request = Request::new(source, Arc::clone(mdt), kind, item.fid, list.archive_id);
    request.dfid = item.dfid;
    request.offset = item.offset;
    request.length = item.length;
    request.gid_lock = item.gid;
    request.flags = list.flags;
    request.data = item.data.into();
    Some(request)
}
