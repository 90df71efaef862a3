//! What `lcap hsm queue` asks of the queue.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use lcap_ffi::Fid;
use lcap_wire::hsm_queue::{
    Changed, HsmOp, Import, Imported, List, Listed, Lock as WireLock, Move as WireMove, Place,
    Queued, Shown, Which,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::active;
use super::json_port::clients::{Clients, Settings};
use super::queue::view::View;
use super::queue::{Admitted, Arrival, Cancelled, Move, Queue, STATES, State};
use super::request::{Kind, Source};
use super::scheduler::{Lock, Now};
use super::service::Core;
use super::workers::Answer;

/// Requests in one answer.
const MAX_LIST: usize = 2000;

/// Does what is asked, and answers: at once what only looks, and else when it is on disk.
pub fn handle(core: &mut Core, op: HsmOp, answer: Answer, now: Now) {
    let queue = &mut core.queue;
    let done = match op {
        HsmOp::Fetch(fetch) => return core.workers.fetch(queue, fetch, answer, now),
        HsmOp::Report(report) => return core.workers.report(queue, report, answer, now),
        HsmOp::Status(ask) => return answer(Ok(status(core, ask.verbose, now))),
        HsmOp::List(ask) => return answer(list(queue, &ask)),
        HsmOp::Show(which) => return answer(show(queue, &which)),
        HsmOp::Cancel(which) => each(&which.ids, |id| match queue.cancel(id, now) {
            Cancelled::Unknown => Err("there is no such request".to_owned()),
            Cancelled::Freed(_) | Cancelled::Running(_) => Ok(()),
        }),
        HsmOp::Hold(which) => each(&which.ids, |id| queue.hold(id).map_err(|e| e.to_string())),
        HsmOp::Requeue(which) => {
            each(&which.ids, |id| queue.requeue(id, now).map_err(|e| e.to_string()))
        }
        HsmOp::Move(WireMove { ids, to }) => {
            let to = match to {
                Place::First => Move::First,
                Place::Last => Move::Last,
                Place::Anywhere => Move::Hosts(None),
                Place::Hosts(hosts) => Move::Hosts(Some(hosts)),
                Place::Archive(id) => Move::Archive(id),
            };
            each(&ids, |id| queue.move_to(id, to.clone(), now).map_err(|e| e.to_string()))
        }
        HsmOp::Lock(lock) => parse_lock(lock).map(|lock| {
            queue.lock(lock);
            value(&Changed { changed: 1, refused: Vec::new() })
        }),
        HsmOp::Unlock(lock) => parse_lock(lock).and_then(|lock| {
            let was_there = queue.unlock(&lock);
            let none = || (libc::ENOENT, "there is no such lock; see `status`".to_owned());
            was_there.then(|| value(&Changed { changed: 1, refused: Vec::new() })).ok_or_else(none)
        }),
        HsmOp::Drop(ask) => {
            let there = core.drop_worker(&ask.worker, now);
            let changed = |changed| value(&Changed { changed, refused: Vec::new() });
            there.map(changed).ok_or_else(|| (libc::ENOENT, format!("no worker {}", ask.worker)))
        }
        HsmOp::Import(ask) => Ok(import(core, &ask, now)),
    };
    core.after_commit.push(Box::new(move || answer(done)));
}

type Done = Result<Value, (i32, String)>;

fn value(body: &impl Serialize) -> Value {
    serde_json::to_value(body).unwrap_or_default()
}

fn each(ids: &[u64], mut what: impl FnMut(u64) -> Result<(), String>) -> Done {
    let mut all = Changed::default();
    for &id in ids {
        match what(id) {
            Ok(()) => all.changed += 1,
            Err(why) => all.refused.push((id, why)),
        }
    }
    Ok(value(&all))
}

fn parse_lock(lock: WireLock) -> Result<Lock, (i32, String)> {
    let kind = lock.kind.map(|kind| parse_kind(&kind)).transpose()?;
    Ok(Lock { worker: lock.worker, kind, archive_id: lock.archive_id })
}

fn parse_kind(text: &str) -> Result<Kind, (i32, String)> {
    text.parse().map_err(|error| (libc::EINVAL, format!("`{text}`: {error}")))
}

fn list(queue: &Queue, ask: &List) -> Done {
    let kind = ask.kind.as_deref().map(parse_kind).transpose()?;
    let fid = ask.fid.as_deref().map(str::parse::<Fid>).transpose();
    let fid = fid.map_err(|error| (libc::EINVAL, format!("fid: {error}")))?;
    if let Some(state) = ask.state.as_deref().filter(|state| !STATES.contains(state)) {
        return Err((libc::EINVAL, format!("`{state}` is none of {}", STATES.join(", "))));
    }
    let wanted = |view: &View<'_>| {
        view.id > ask.after
            && ask.state.as_deref().is_none_or(|state| view.state.name() == state)
            && kind.is_none_or(|kind| view.request.kind == kind)
            && ask.archive_id.is_none_or(|id| view.request.archive_id == id)
            && fid.is_none_or(|fid| view.request.fid == fid)
            && ask.worker.as_deref().is_none_or(|name| worker_of(view) == Some(name))
    };
    let limit = ask.limit.clamp(1, MAX_LIST);
    // The lowest ids of a queue that may be long: never more than twice as many are kept.
    let mut found: Vec<View<'_>> = Vec::new();
    let mut more = false;
    for view in queue.iter().filter(wanted) {
        found.push(view);
        if found.len() >= 2 * limit {
            found.select_nth_unstable_by_key(limit, |view| view.id);
            found.truncate(limit);
            more = true;
        }
    }
    found.sort_unstable_by_key(|view| view.id);
    more |= found.len() > limit;
    found.truncate(limit);
    Ok(value(&Listed { requests: found.iter().map(queued).collect(), more }))
}

fn show(queue: &Queue, which: &Which) -> Done {
    let id = which.ids.first().copied().unwrap_or_default();
    let view = queue.get(id).ok_or_else(|| (libc::ENOENT, format!("no request {id}")))?;
    Ok(value(&Shown { request: queued(&view) }))
}

fn worker_of<'a>(view: &View<'a>) -> Option<&'a str> {
    match view.state {
        State::Running { worker, .. } => Some(worker),
        _ => None,
    }
}

fn queued(view: &View<'_>) -> Queued {
    let request = view.request;
    let dfid = (request.dfid != request.fid).then(|| request.dfid.to_string());
    let source = match request.source {
        Source::Coordinator { .. } => "coordinator",
        Source::Upcall => "upcall",
    };
    Queued {
        id: view.id,
        state: view.state.name().to_owned(),
        blocked: view.blocked,
        action: request.kind.to_string(),
        fid: request.fid.to_string(),
        dfid,
        archive_id: request.archive_id,
        flags: request.flags,
        data_b64: BASE64.encode(&*request.data),
        mdt: request.mdt.to_string(),
        source: source.to_owned(),
        cookie: request.cookie(),
        received_ns: request.received_ns,
        worker: worker_of(view).map(str::to_owned),
        rank: view.rank,
        hosts: view.hosts.names().map(|names| names.iter().map(ToString::to_string).collect()),
        failures: view.failures,
        error: view.error.map(str::to_owned),
        cancel: view.cancel,
    }
}

fn import(core: &mut Core, ask: &Import, now: Now) -> Value {
    let mut all = Imported::default();
    let mdt = core.any_mdt();
    for line in active::parse(ask.text.as_bytes(), &mdt) {
        match line {
            Ok(line) if line.canceled => all.cancelled += 1,
            Ok(line) => match core.queue.admit(line.request, Arrival::Listed, now) {
                Admitted::New(_) => all.enqueued += 1,
                _ => all.skipped += 1,
            },
            Err(at) => all.bad_lines.push(ask.first_line + at - 1),
        }
    }
    value(&all)
}

/// What `coordinatool-client` shows, with its keys, and what it does not.
fn status(core: &Core, verbose: bool, now: Now) -> Value {
    let queue = &core.queue;
    // Without the original's port there are no clients of it, but the rest is the same.
    let nobody = || {
        let mdt = core.any_mdt();
        Clients::new(Settings { fsname: Arc::clone(&mdt), mdt, grace: Duration::ZERO })
    };
    let mut status = match &core.json {
        Some(json) => json.clients().status(queue, verbose),
        None => nobody().status(queue, verbose),
    };
    let by_state = STATES.iter().enumerate().map(|(at, name)| {
        let kinds = Kind::ALL.map(|kind| (kind.name().to_lowercase(), queue.count(at, kind)));
        (*name, kinds.into_iter().collect::<BTreeMap<_, _>>())
    });
    let ages = queue.ages(now);
    let age = |percent: usize| ages.part(percent).map(|age| age.as_secs_f64());
    status.insert("states".to_owned(), json!(by_state.collect::<BTreeMap<_, _>>()));
    let mdt = core.any_mdt();
    let fsname = mdt.rsplit_once("-MDT").map_or(&*mdt, |(fsname, _)| fsname);
    status.insert("fsname".to_owned(), fsname.into());
    status.insert("locks".to_owned(), json!(queue.locks()));
    status.insert("ready".to_owned(), json!(queue.scheduler().n_ready()));
    status.insert(
        "waiting_seconds".to_owned(),
        json!({"p50": age(50), "p90": age(90), "p99": age(99), "max": age(100)}),
    );
    if let Some(problem) = &core.trouble {
        status.insert("store_error".to_owned(), problem.as_str().into());
    }
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::hsm::movers::{Movers, Settings as MoverSettings};
    use crate::hsm::queue::Settings as QueueSettings;
    use crate::hsm::request::Request;
    use crate::hsm::workers::Workers;

    fn core(n: u32) -> Core {
        let mut queue = Queue::new(QueueSettings::default());
        let now = Duration::from_secs(1);
        for oid in 1..=n {
            let fid = Fid { seq: 1, oid, ver: 0 };
            let request = Request::new(Source::Upcall, "l-MDTffff".into(), Kind::Archive, fid, 1);
            queue.admit(request, Arrival::Sent, now);
        }
        let settings = MoverSettings {
            fsname: "l".into(),
            heartbeat: now,
            grace: now,
            graces: BTreeMap::new(),
        };
        Core::new(queue, Movers::new(settings, 1), None, "l-MDTffff".into(), None, now)
    }

    fn ask(core: &mut Core, op: Value) -> Done {
        let got = Arc::new(Mutex::new(None));
        let into = Arc::clone(&got);
        let op = serde_json::from_value(op).unwrap();
        handle(
            core,
            op,
            Box::new(move |done| *into.lock().unwrap() = Some(done)),
            Duration::from_secs(2),
        );
        for then in std::mem::take(&mut core.after_commit) {
            then();
        }
        let done = got.lock().unwrap().take();
        done.unwrap()
    }

    #[test]
    fn a_list_is_in_order_and_goes_on_where_it_ended() {
        let mut core = core(1000);
        let mut after = 0;
        let mut all = Vec::new();
        loop {
            let op = json!({"do": "list", "limit": 7, "after": after});
            let listed: Listed = serde_json::from_value(ask(&mut core, op).unwrap()).unwrap();
            all.extend(listed.requests.iter().map(|request| request.id));
            after = all.last().copied().unwrap();
            if !listed.more {
                break;
            }
        }
        assert_eq!(all, (1..=1000).collect::<Vec<u64>>());
        let op = json!({"do": "list", "limit": 7, "fid": "[0x1:0x5:0x0]", "state": "waiting"});
        let listed: Listed = serde_json::from_value(ask(&mut core, op).unwrap()).unwrap();
        assert_eq!(listed.requests.len(), 1);
        let op = json!({"do": "list", "limit": 7, "state": "asleep"});
        assert!(ask(&mut core, op).unwrap_err().1.contains("waiting, delayed"));
    }

    #[test]
    fn each_request_has_an_answer_of_its_own() {
        let mut core = core(3);
        let done = ask(&mut core, json!({"do": "hold", "ids": [1, 9]})).unwrap();
        assert_eq!(done, json!({"changed": 1, "refused": [[9, "there is no such request"]]}));
        let shown = ask(&mut core, json!({"do": "show", "ids": [1]})).unwrap();
        let shown = &shown["request"];
        assert_eq!((&shown["state"], &shown["fid"]), (&json!("held"), &json!("[0x1:0x1:0x0]")));
        ask(&mut core, json!({"do": "cancel", "ids": [1, 2]})).unwrap();
        assert_eq!(core.queue.len(), 1);
        ask(&mut core, json!({"do": "lock", "kind": "archive"})).unwrap();
        let status = ask(&mut core, json!({"do": "status"})).unwrap();
        assert_eq!(status["pending_archive"], 1);
        assert_eq!(status["locks"], json!([{"kind": "archive"}]));
        assert!(ask(&mut core, json!({"do": "unlock"})).is_err());
        ask(&mut core, json!({"do": "unlock", "kind": "archive"})).unwrap();
    }

    #[test]
    fn whoever_is_dropped_loses_at_once_what_it_had() {
        let mut core = core(2);
        core.workers = Workers::new(Duration::from_secs(60));
        let op = serde_json::from_value(json!({
            "do": "fetch", "worker": "w", "instance": 1, "got": 0, "holding": [],
            "kinds": [], "archive_ids": [], "seq": 1, "n": 2, "wait_ms": 0,
        }));
        let op = op.unwrap();
        let now = Duration::from_secs(2);
        handle(&mut core, op, Box::new(|_| ()), now);
        core.settle(now);
        assert_eq!(core.queue.worker("w").unwrap().running.len(), 2);
        let done = ask(&mut core, json!({"do": "drop", "worker": "w"})).unwrap();
        assert_eq!(done, json!({"changed": 2}));
        assert!(core.queue.worker("w").is_none() && core.queue.scheduler().n_ready() == 2);
        assert!(ask(&mut core, json!({"do": "drop", "worker": "w"})).is_err());
    }

    #[test]
    fn an_import_names_bad_lines_and_leaves_out_what_is_known_or_cancelled() {
        let mut core = core(0);
        let line = |oid: u32, canceled| {
            format!(
                "fid=[0x200000402:{oid:#x}:0x0] dfid=[0x200000402:{oid:#x}:0x0] \
                compound/cookie=0x0/{:#x} action=ARCHIVE archive#=1 flags=0x0 \
                extent=0x0-0xffffffffffffffff gid=0x0 data=[7461] canceled={canceled} uuid=u done=0",
                oid + 7
            )
        };
        let text = format!("{}\nnonsense\n{}\n{}", line(1, 0), line(2, 1), line(1, 0));
        let done = ask(&mut core, json!({"do": "import", "text": text, "first_line": 11})).unwrap();
        let want = json!({"enqueued": 1, "skipped": 1, "cancelled": 1, "bad_lines": [12]});
        assert_eq!(done, want);
    }
}
