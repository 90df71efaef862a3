//! What is said on the JSON port. No sockets.
//!
//! A mover with an `id` is a worker of the queue by that name and keeps what it runs for its grace
//! time when its connection goes; one without is a worker by its address and keeps nothing. Replies
//! are to be sent when the queue's changes are on disk.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::Fid;
use lcap_ffi::hsm::ITEM_HEAD_BYTES;
use serde::Serialize as _;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::hsm::lustre::ToLustre;
use crate::hsm::queue::view::View;
use crate::hsm::queue::{
    Admitted, Arrival, Event, Outcome, Queue, STATES, State, What, Worker, WorkerSpec,
};
use crate::hsm::request::{Kind, Request, Source};
use crate::hsm::scheduler::slots::Slot;
use crate::hsm::scheduler::{Lock, Now, Wants};

/// What an item takes of a mover's buffer, besides its data.
const ITEM_BYTES: u64 = 2 * ITEM_HEAD_BYTES as u64;
/// A smaller buffer is refused.
const LEAST_BUFFER: i64 = 172;
const _: () = assert!(ITEM_HEAD_BYTES + 100 == 172);
/// Requests in one reply.
const LIST_ITEMS: u32 = 100;
/// `verbose` from which a status lists requests.
const VERBOSE_QUEUES: i64 = 6;

/// What a site has chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file system.
    pub fsname: Arc<str>,
    /// What Lustre's requests are filed under.
    pub mdt: Arc<str>,
    /// How long a mover that went away keeps what it runs.
    pub grace: Duration,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    running: [Option<u32>; 3],
    bytes: u64,
}

#[derive(Debug)]
struct Client {
    /// What it is called until, or unless, it says an id.
    address: String,
    /// Its name in the queue, once it has said hello.
    worker: Option<Arc<str>>,
    /// It said it itself.
    named: bool,
    waiting: Option<Waiting>,
    cancels: Vec<Arc<Request>>,
}

/// All of them.
#[derive(Debug)]
pub struct Clients {
    settings: Settings,
    clients: BTreeMap<u64, Client>,
    by_worker: HashMap<Arc<str>, u64>,
    /// Who waits, in the order in which they began to.
    queue: Vec<u64>,
    replies: Vec<(u64, Vec<u8>)>,
    to_lustre: Vec<ToLustre>,
}

type Object = Map<String, Value>;
/// An error number, as it is answered, and a sentence.
type Refusal = (i64, String);

fn invalid(what: impl Into<String>) -> Refusal {
    (libc::EINVAL.into(), what.into())
}

impl Clients {
    /// Nobody.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            clients: BTreeMap::new(),
            by_worker: HashMap::new(),
            queue: Vec::new(),
            replies: Vec::new(),
            to_lustre: Vec::new(),
        }
    }

    /// Replies, by client, once the queue's changes are on disk.
    pub fn take_replies(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.replies)
    }

    /// What Lustre is to be told.
    pub fn take_to_lustre(&mut self) -> Vec<ToLustre> {
        std::mem::take(&mut self.to_lustre)
    }

    /// Whether a mover of that name is here.
    pub fn has(&self, worker: &str) -> bool {
        self.by_worker.contains_key(worker)
    }

    /// The connection of a mover.
    pub fn number_of(&self, worker: &str) -> Option<u64> {
        self.by_worker.get(worker).copied()
    }

    /// A new connection.
    pub fn connected(&mut self, number: u64, address: &str) {
        let address = address.to_owned();
        let client =
            Client { address, worker: None, named: false, waiting: None, cancels: Vec::new() };
        self.clients.insert(number, client);
    }

    /// It is gone.
    pub fn gone(&mut self, number: u64, queue: &mut Queue, now: Now) {
        self.queue.retain(|&waiting| waiting != number);
        let Some(client) = self.clients.remove(&number) else { return };
        let Some(worker) = client.worker else { return };
        self.by_worker.remove(&worker);
        if client.named {
            info!(
                mover = &*worker,
                "mover has left the JSON port; it keeps what it runs for its grace time"
            );
            queue.disconnected(&worker, now);
        } else {
            queue.drop_worker(&worker, now);
        }
    }

    /// One object that a client said.
    ///
    /// # Errors
    /// If it makes so little sense that the client is to be hung up on.
    pub fn object(
        &mut self,
        number: u64,
        bytes: &[u8],
        queue: &mut Queue,
        now: Now,
    ) -> Result<(), &'static str> {
        let Ok(Value::Object(object)) = serde_json::from_slice(bytes) else {
            return Err("what it says is no JSON object");
        };
        let Some(command) = object.get("command").and_then(Value::as_str) else {
            return Err("what it says has no command");
        };
        match command {
            "ehlo" => {
                let result = self.ehlo(number, &object, queue, now);
                self.answer(number, "ehlo", result.map(|()| Object::new()));
            }
            "recv" => {
                if let Err(refusal) = self.recv(number, &object) {
                    self.answer(number, "recv", Err(refusal));
                }
            }
            "done" => {
                let result = self.done(number, &object, queue, now);
                self.answer(number, "done", result.map(|()| Object::new()));
            }
            "queue" => self.take_in(number, &object, queue, now),
            "lock" => {
                let result = lock(&object, queue);
                self.answer(number, "lock", result.map(|()| Object::new()));
            }
            "status" => {
                let verbose = object.get("verbose").and_then(Value::as_i64).unwrap_or(4);
                let status = self.status(queue, verbose >= VERBOSE_QUEUES);
                self.answer(number, "status", Ok(status));
            }
            _ => return Err("a command that is not known"),
        }
        Ok(())
    }

    fn answer(&mut self, number: u64, command: &str, result: Result<Object, Refusal>) {
        let mut object = match result {
            Ok(object) => object,
            Err((status, error)) => {
                let mut object = Object::new();
                object.insert("status".to_owned(), status.into());
                object.insert("error".to_owned(), error.into());
                object
            }
        };
        object.insert("command".to_owned(), command.into());
        self.replies.push((number, encode(&Value::Object(object))));
    }

    // --- movers ---

    fn ehlo(
        &mut self,
        number: u64,
        object: &Object,
        queue: &mut Queue,
        now: Now,
    ) -> Result<(), Refusal> {
        let Some(client) = self.clients.get(&number) else { return Ok(()) };
        if client.worker.is_some() {
            return Err(invalid("it has said hello before"));
        }
        if let Some(fsname) = object.get("fsname").and_then(Value::as_str)
            && !fsname.is_empty()
            && *fsname != *self.settings.fsname
        {
            let ours = &self.settings.fsname;
            return Err(invalid(format!("requests here are of {ours}, not {fsname}")));
        }
        let id = object.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let name: Arc<str> = id.unwrap_or(&client.address).into();
        if queue.worker(&name).is_some_and(|worker| worker.connected) {
            return Err((libc::EEXIST.into(), format!("a mover named {name} is there already")));
        }
        let ids = object.get("archive_ids").and_then(Value::as_array);
        let archive_ids: Option<Vec<u32>> = ids
            .into_iter()
            .flatten()
            .map(|id| {
                let id = id.as_i64().filter(|id| (1..=i64::from(i32::MAX)).contains(id))?;
                u32::try_from(id).ok()
            })
            .collect();
        let archive_ids = archive_ids
            .ok_or_else(|| invalid("an archive id must be a number from 1 to 2147483647"))?;
        let grace = if id.is_some() { self.settings.grace } else { Duration::ZERO };
        let spec = WorkerSpec {
            name: Arc::clone(&name),
            kinds: Kind::ALL.to_vec(),
            archive_ids,
            upcalls: false,
            silence: None,
            grace,
        };
        queue.hello(spec, now);
        let held = object.get("hai_list").and_then(Value::as_array).filter(|_| id.is_some());
        let mut ids = BTreeSet::new();
        for item in held.into_iter().flatten() {
            let Some(request) = request_of(item, &self.settings.mdt) else { continue };
            let id = queue.admit(request, Arrival::Listed, now).id();
            if queue.claim(id, &name, now).is_ok() {
                ids.insert(id);
            }
        }
        queue.keep_only(&name, &ids, now);
        let mut cancels = Vec::new();
        for id in ids {
            let view = queue.get(id).filter(|view| view.cancel);
            cancels.extend(view.map(|view| Arc::clone(view.request)));
        }
        info!(mover = &*name, "mover is there, on the JSON port");
        self.by_worker.insert(Arc::clone(&name), number);
        if let Some(client) = self.clients.get_mut(&number) {
            (client.worker, client.named, client.cancels) = (Some(name), id.is_some(), cancels);
        }
        Ok(())
    }

    fn recv(&mut self, number: u64, object: &Object) -> Result<(), Refusal> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        if client.worker.is_none() {
            return Err(invalid("it has not said hello"));
        }
        if client.waiting.is_some() {
            return Err(invalid("it waits already"));
        }
        let bytes = object.get("max_bytes").and_then(Value::as_i64).unwrap_or(1 << 20);
        if bytes < LEAST_BUFFER {
            return Err(invalid(format!("a buffer of {bytes} bytes is too small")));
        }
        let limit = |key: &str| {
            let limit = object.get(key).and_then(Value::as_i64).unwrap_or(-1);
            u32::try_from(limit).ok()
        };
        let running = [limit("max_archive"), limit("max_restore"), limit("max_remove")];
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        client.waiting = Some(Waiting { running, bytes });
        self.queue.push(number);
        Ok(())
    }

    fn done(
        &mut self,
        number: u64,
        object: &Object,
        queue: &mut Queue,
        now: Now,
    ) -> Result<(), Refusal> {
        let cookie = object.get("hai_cookie").and_then(integer);
        let cookie = cookie.ok_or_else(|| invalid("hai_cookie is missing"))?;
        let dfid = object.get("hai_dfid").and_then(fid_of);
        let dfid = dfid.ok_or_else(|| invalid("hai_dfid is missing"))?;
        let status = object.get("status").and_then(Value::as_i64).unwrap_or(0);
        let worker = self.clients.get(&number).and_then(|client| client.worker.clone());
        let Some(worker) = worker else { return Ok(()) };
        let Some(id) = self.held(queue, &worker, cookie, dfid) else { return Ok(()) };
        let outcome = match status {
            0 => Outcome::Success,
            _ => {
                let errno = i32::try_from(status.saturating_abs()).unwrap_or(libc::EIO);
                Outcome::Failed { errno, error: format!("error {errno}") }
            }
        };
        queue.done(id, &worker, None, outcome, now);
        Ok(())
    }

    /// The request that this mover runs. Movers of the original name a cookie by its low 32 bits.
    fn held(&self, queue: &Queue, worker: &str, cookie: u64, fid: Fid) -> Option<u64> {
        let mine = |id: &u64| {
            let view = queue.get(*id);
            view.is_some_and(|view| {
                matches!(view.state, State::Running { worker: holder, .. } if **holder == *worker)
            })
        };
        if let Some(id) = queue.find(&self.settings.mdt, cookie, fid).filter(mine) {
            return Some(id);
        }
        queue.worker(worker)?.running.iter().copied().find(|&id| {
            queue.get(id).is_some_and(|view| {
                let own = view.request.cookie().unwrap_or(0);
                let alike = own == cookie || sign_extended(own) == cookie;
                alike && (view.request.dfid == fid || view.request.fid == fid)
            })
        })
    }

    // --- work ---

    /// Something happened to a request.
    pub fn on_event(&mut self, event: &Event) {
        if let What::CancelRunning(worker) = &event.what
            && let Some(number) = self.by_worker.get(worker)
            && let Some(client) = self.clients.get_mut(number)
        {
            client.cancels.push(Arc::clone(&event.request));
        }
    }

    /// Answers those that wait, as far as there is something for them.
    pub fn dispatch(&mut self, queue: &mut Queue, now: Now) {
        let mut still = Vec::new();
        for number in std::mem::take(&mut self.queue) {
            if !self.hand_out(number, queue, now) {
                still.push(number);
            }
        }
        self.queue = still;
    }

    fn hand_out(&mut self, number: u64, queue: &mut Queue, now: Now) -> bool {
        let Some(client) = self.clients.get_mut(&number) else { return true };
        let (Some(waiting), Some(worker)) = (client.waiting, client.worker.clone()) else {
            return true;
        };
        let locked = queue.locks().iter().any(|lock| *lock == Lock::default());
        if locked {
            return false;
        }
        let mut list = Vec::new();
        let mut uniform = None;
        client.cancels.retain(|request| {
            let both = (request.archive_id, request.flags);
            let now = *uniform.get_or_insert(both) == both;
            if now {
                list.extend(item_of(request, 23));
            }
            !now
        });
        if list.is_empty() {
            let wants = Wants {
                n: LIST_ITEMS,
                running: waiting.running,
                bytes: Some(waiting.bytes),
                item_bytes: ITEM_BYTES,
                uniform: true,
            };
            for taken in queue.take(&worker, &wants, now) {
                let request = &taken.request;
                match item_of(request, request.kind as u32) {
                    Some(item) => {
                        uniform = Some((request.archive_id, request.flags));
                        list.push(item);
                    }
                    None => {
                        // JSON has no way to say it, so Lustre has to know that it will not be.
                        warn!(
                            id = taken.id,
                            "user data that is no text cannot go through the JSON port"
                        );
                        let error = "user data that is no text".to_owned();
                        let errno = libc::EILSEQ;
                        self.to_lustre.push(ToLustre::Fail { request: Arc::clone(request), errno });
                        let outcome = Outcome::Failed { errno, error };
                        queue.done(taken.id, &worker, Some(taken.lease), outcome, now);
                    }
                }
            }
        }
        let Some((archive_id, flags)) = uniform else { return false };
        let mut hal = Object::new();
        hal.insert("hal_version".to_owned(), 1.into());
        hal.insert("hal_archive_id".to_owned(), archive_id.into());
        if flags != 0 {
            hal.insert("hal_flags".to_owned(), flags.cast_signed().into());
        }
        hal.insert("hal_fsname".to_owned(), (*self.settings.fsname).into());
        hal.insert("list".to_owned(), list.into());
        let mut reply = Object::new();
        reply.insert("hsm_action_list".to_owned(), hal.into());
        if let Some(client) = self.clients.get_mut(&number) {
            client.waiting = None;
        }
        self.answer(number, "recv", Ok(reply));
        true
    }

    // --- operators ---

    fn take_in(&mut self, number: u64, object: &Object, queue: &mut Queue, now: Now) {
        let fsname = object.get("fsname").or_else(|| object.get("hal_fsname"));
        if let Some(fsname) = fsname.and_then(Value::as_str)
            && *fsname != *self.settings.fsname
        {
            let error = format!("requests here are of {}, not {fsname}", self.settings.fsname);
            self.answer(number, "queue", Err(invalid(error)));
            return;
        }
        let Some(items) = object.get("hsm_action_items").and_then(Value::as_array) else {
            self.answer(number, "queue", Err(invalid("hsm_action_items is missing")));
            return;
        };
        let (mut enqueued, mut skipped, mut bad) = (0, 0, None);
        for (at, item) in items.iter().enumerate() {
            match request_of(item, &self.settings.mdt) {
                Some(request) => match queue.admit(request, Arrival::Listed, now) {
                    Admitted::New(_) => enqueued += 1,
                    _ => skipped += 1,
                },
                None => bad = Some(at),
            }
        }
        let mut reply = Object::new();
        let mut put = |key: &str, n: i64| {
            if n != 0 {
                reply.insert(key.to_owned(), n.into());
            }
        };
        put("enqueued", enqueued);
        put("skipped", skipped);
        if let Some(at) = bad {
            put("status", -i64::from(libc::EINVAL));
            let error = format!("item {at} is no request");
            reply.insert("error".to_owned(), error.into());
        }
        self.answer(number, "queue", Ok(reply));
    }

    /// Everything, with the original's keys.
    pub fn status(&self, queue: &Queue, with_requests: bool) -> Object {
        let mut status = Object::new();
        let mut put = |key: String, n: u64| {
            if n != 0 {
                status.insert(key, n.into());
            }
        };
        let state = |name: &str| STATES.iter().position(|state| *state == name).unwrap_or(0);
        let mut cancelled = 0;
        for kind in Kind::ALL {
            let word = kind_word(kind);
            let count = |name: &str| queue.count(state(name), kind) as u64;
            put(format!("running_{word}"), count("running"));
            put(format!("pending_{word}"), count("waiting") + count("delayed") + count("held"));
            put(format!("done_{word}"), queue.stats().done[at(kind)]);
            put(format!("failed_{word}"), queue.stats().failures[at(kind)]);
            cancelled += queue.stats().cancelled[at(kind)];
        }
        let pending_cancel: usize = self.clients.values().map(|c| c.cancels.len()).sum();
        put("pending_cancel".to_owned(), pending_cancel as u64);
        put("done_cancel".to_owned(), cancelled);
        put("clients_connected".to_owned(), self.clients.len() as u64);
        put("locked".to_owned(), u64::from(queue.locks().contains(&Lock::default())));
        let mut clients = Vec::new();
        for client in self.clients.values().rev().filter(|client| client.worker.is_none()) {
            clients.push(json!({"client_id": client.address, "status": "init", "batches": []}));
        }
        let (there, away): (Vec<&Worker>, Vec<&Worker>) =
            queue.workers().partition(|worker| worker.connected);
        for worker in there.into_iter().chain(away) {
            clients.push(self.worker_status(queue, worker, with_requests));
        }
        status.insert("clients".to_owned(), clients.into());
        if with_requests {
            let waiting = |kind: Kind| {
                let waiting = queue.iter().filter(|view| {
                    view.request.kind == kind && !matches!(view.state, State::Running { .. })
                });
                let turn = |v: View<'_>| ((v.rank, v.order), brief(v.request));
                let mut waiting: Vec<_> = waiting.map(turn).collect();
                waiting.sort_by_key(|(turn, _)| *turn);
                waiting.into_iter().map(|(_, brief)| brief).collect::<Vec<_>>()
            };
            for kind in Kind::ALL {
                status.insert(format!("waiting_{}", kind_word(kind)), waiting(kind).into());
            }
        }
        status
    }

    fn worker_status(&self, queue: &Queue, worker: &Worker, with_requests: bool) -> Value {
        let name = &worker.spec.name;
        let mut status = Object::new();
        status.insert("client_id".to_owned(), (**name).into());
        for kind in Kind::ALL {
            let word = kind_word(kind);
            status.insert(format!("current_{word}"), worker.n_running[at(kind)].into());
            let done = worker.done[at(kind)] + worker.failed[at(kind)];
            status.insert(format!("done_{word}"), done.into());
            if worker.failed[at(kind)] > 0 {
                status.insert(format!("failed_{word}"), worker.failed[at(kind)].into());
            }
        }
        let client = self.by_worker.get(name).and_then(|number| self.clients.get(number));
        let state = match client {
            _ if !worker.connected => "disconnected",
            Some(client) if client.waiting.is_some() => "waiting",
            _ => "ready",
        };
        status.insert("status".to_owned(), state.into());
        let slots = queue.scheduler().slots();
        let batch = |slot: &Slot| {
            let tag = slot.tag.as_deref().unwrap_or_default();
            json!({
                "hint": String::from_utf8_lossy(tag),
                "current_count": slots.running(name, tag),
                "expire_idle_s": slot.idle_until.as_secs(),
                "expire_max_s": slot.max_until.map_or(0, |until| until.as_secs()),
            })
        };
        let batches: Vec<Value> = slots.of(name).iter().map(batch).collect();
        status.insert("batches".to_owned(), batches.into());
        if let Some(gone) = worker.gone_at.filter(|_| !worker.connected) {
            let since = gone.saturating_sub(worker.spec.grace).as_nanos();
            let since = i64::try_from(since).unwrap_or(i64::MAX);
            status.insert("disconnected_timestamp".to_owned(), since.into());
        }
        if with_requests {
            let active = worker.running.iter().filter_map(|&id| queue.get(id));
            let active: Vec<Value> = active.map(|view| brief(view.request)).collect();
            status.insert("active_requests".to_owned(), active.into());
            let cancels = client.map(|client| client.cancels.as_slice()).unwrap_or_default();
            let cancels: Vec<Value> = cancels.iter().map(|request| brief(request)).collect();
            status.insert("cancels".to_owned(), cancels.into());
        }
        Value::Object(status)
    }
}

/// The request that an item is, filed under `mdt`; `None` if something is missing or wrong.
pub(in crate::hsm) fn request_of(item: &Value, mdt: &Arc<str>) -> Option<Request> {
    let number = |key: &str| item.get(key).and_then(integer);
    let word = |key: &str| number(key).map(low_word);
    let kind = Kind::from_number(word("hai_action")?)?;
    let archive_id = word("hal_archive_id").filter(|&id| id != 0)?;
    let source = Source::Coordinator { cookie: number("hai_cookie")? };
    let fid = item.get("hai_fid").and_then(fid_of)?;
    let mut request = Request::new(source, Arc::clone(mdt), kind, fid, archive_id);
    request.dfid = item.get("hai_dfid").and_then(fid_of)?;
    request.offset = number("hai_extent_offset")?;
    request.length = number("hai_extent_length")?;
    request.gid_lock = number("hai_gid")?;
    request.flags = number("hal_flags").unwrap_or(0);
    request.data = item.get("hai_data")?.as_str()?.as_bytes().into();
    request.received_ns = number("timestamp").unwrap_or(0);
    Some(request)
}

fn lock(object: &Object, queue: &mut Queue) -> Result<(), Refusal> {
    match object.get("locked").and_then(Value::as_i64).unwrap_or(0) {
        0 => {
            queue.unlock(&Lock::default());
        }
        1 => queue.lock(Lock::default()),
        2 => {
            // The original ends when nothing runs any more. lcapd has more to do than that, and
            // nobody has proved who he is: it stays.
            info!("locked from the JSON port, to quit: nothing is started any more; lcapd stays");
            queue.lock(Lock::default());
        }
        other => {
            let error = format!("locked must be 0, 1 or 2, not {other}");
            return Err((-i64::from(libc::EINVAL), error));
        }
    }
    Ok(())
}

/// For tables by kind.
fn at(kind: Kind) -> usize {
    match kind {
        Kind::Archive => 0,
        Kind::Restore => 1,
        Kind::Remove => 2,
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Archive => "archive",
        Kind::Restore => "restore",
        Kind::Remove => "remove",
    }
}

/// Numbers are signed on the wire: what is 2⁶³ or more comes as a negative one.
fn integer(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
}

#[allow(clippy::cast_possible_truncation)] // that is what it is for
fn low_word(value: u64) -> u32 {
    value as u32
}

/// What is left of a cookie that went through an `int`.
fn sign_extended(cookie: u64) -> u64 {
    i64::from(low_word(cookie).cast_signed()).cast_unsigned()
}

fn fid_of(value: &Value) -> Option<Fid> {
    let object = value.as_object().filter(|object| object.len() == 3)?;
    let number = |key: &str| object.get(key).and_then(integer);
    Some(Fid {
        seq: number("f_seq")?,
        oid: low_word(number("f_oid")?),
        ver: low_word(number("f_ver")?),
    })
}

fn fid_json(fid: Fid) -> Value {
    json!({"f_seq": fid.seq.cast_signed(), "f_oid": fid.oid, "f_ver": fid.ver})
}

/// An item as movers know it; `None` if its data is no text.
fn item_of(request: &Request, action: u32) -> Option<Value> {
    let data = std::str::from_utf8(&request.data).ok()?;
    Some(json!({
        "hai_action": action,
        "hai_fid": fid_json(request.fid),
        "hai_dfid": fid_json(request.dfid),
        "hai_extent_offset": request.offset.cast_signed(),
        "hai_extent_length": request.length.cast_signed(),
        "hai_cookie": request.cookie().unwrap_or(0).cast_signed(),
        "hai_gid": request.gid_lock.cast_signed(),
        "hal_archive_id": request.archive_id,
        "hal_flags": request.flags.cast_signed(),
        "hai_data": data,
        "timestamp": request.received_ns.cast_signed(),
    }))
}

/// As a status lists it. The FID is the data's, as in the original.
fn brief(request: &Request) -> Value {
    json!({
        "hai_fid": fid_json(request.dfid),
        "hai_cookie": request.cookie().unwrap_or(0).cast_signed(),
        "hai_data": String::from_utf8_lossy(request.hint()),
    })
}

/// With a blank after each comma and colon, as the original writes it.
fn encode(value: &Value) -> Vec<u8> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }

        fn begin_object_key<W: ?Sized + std::io::Write>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }

        fn begin_object_value<W: ?Sized + std::io::Write>(
            &mut self,
            writer: &mut W,
        ) -> std::io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    // To memory: cannot fail.
    let _ = value.serialize(&mut serializer);
    out
}
