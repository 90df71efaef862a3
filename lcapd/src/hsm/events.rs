//! What happens to requests of the queue, as events of HSM streams.
//!
//! What came by an upcall is in no MDT's list, so it gets a journal of its own, under the name
//! `<fsname>-MDTffff`. The queue's thread hands over what it has on disk; the thread here appends it.
//!
//! The journal's state is what was told. It is compared with the queue when lcapd starts: what happened between
//! the queue's last commit and the journal's is told then, its steps in between left out.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lcap_ffi::MdtName;
use lcap_ffi::hsm_action::line::write as write_line;
use lcap_ffi::hsm_action::{
    ActionCode, ActionFields, EventKind, EventSource, RecordTime, Slot, StatusCode,
};
use tracing::{error, info, warn};

use super::queue::{Queue, State, What};
use super::request::{Request, Source};
use super::scheduler::Now;
use super::service::Observer;
use crate::actions::journal::{Draft, Journal, JournalError};
use crate::actions::live::hash;
use crate::actions::poller::PollerStats;

/// Which requests are told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// None.
    Off,
    /// Those that MDTs divert: nobody else tells of them.
    #[default]
    Upcalls,
    /// Those of the coordinator, too, which MDTs have in their own lists.
    All,
}

impl Told {
    fn includes(self, request: &Request) -> bool {
        match self {
            Self::Off => false,
            Self::Upcalls => request.source == Source::Upcall,
            Self::All => true,
        }
    }
}

/// What requests of a file system are filed under in streams.
///
/// # Errors
/// If that is no name of a file system.
pub fn mdt_of(fsname: &str) -> Result<MdtName, lcap_ffi::BadMdtName> {
    format!("{fsname}-MDTffff").parse()
}

/// The journal of one file system's requests.
#[derive(Clone, Debug)]
pub struct Target {
    /// What they are filed under.
    pub mdt: MdtName,
    /// Where events go.
    pub journal: Arc<Journal>,
    /// Its figures.
    pub stats: Arc<PollerStats>,
}

/// How a request is now; `None` once it is gone.
#[derive(Clone, Debug)]
struct Step {
    target: usize,
    id: u64,
    request: Arc<Request>,
    status: Option<StatusCode>,
    time: RecordTime,
}

/// The thread that appends.
#[derive(Debug)]
pub struct Teller {
    targets: Vec<Target>,
    /// How everything was at start.
    state: Vec<Step>,
    steps: Receiver<Step>,
    /// Set when lcapd stops.
    stop: Arc<AtomicBool>,
}

/// Steps taken together.
const BATCH: usize = 10_000;
/// Before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Makes both ends: who watches the queue, on its thread, and who writes.
pub fn tell(
    queue: &Queue,
    told: Told,
    targets: Vec<Target>,
    stop: Arc<AtomicBool>,
    now: Now,
) -> (Observer, Teller) {
    let names: HashMap<String, usize> =
        targets.iter().enumerate().map(|(at, target)| (target.mdt.to_string(), at)).collect();
    let mut strangers = BTreeSet::new();
    let mut target_of = move |request: &Request| {
        if !told.includes(request) {
            return None;
        }
        let known = names.get(&*request.mdt).copied();
        if known.is_none() && strangers.insert(Arc::clone(&request.mdt)) {
            warn!(
                fsname = request.fsname(),
                "no stream tells of this file system's requests; it is neither `fsname` of [hsm] nor that of an [[mdt]]"
            );
        }
        known
    };
    let present = queue.iter().filter_map(|view| {
        let (target, status) = (target_of(view.request)?, Some(status_of(view.state)));
        let request = Arc::clone(view.request);
        Some(Step { target, id: view.id, request, status, time: time_of(now) })
    });
    let mut state: Vec<Step> = present.collect();
    state.sort_unstable_by_key(|step| step.id);
    let (out, steps) = unbounded();
    let observer = observer(target_of, out);
    (observer, Teller { targets, state, steps, stop })
}

fn observer(
    mut target_of: impl FnMut(&Request) -> Option<usize> + Send + 'static,
    out: Sender<Step>,
) -> Observer {
    Box::new(move |event, now| {
        let Some(target) = target_of(&event.request) else { return };
        let step = |status| {
            let (id, request) = (event.id, Arc::clone(&event.request));
            let _ = out.send(Step { target, id, request, status, time: time_of(now) });
        };
        match &event.what {
            What::New | What::Returned(_) | What::Retry(_) | What::Held(_) => {
                step(Some(StatusCode::WAITING));
            }
            What::Sent(_) => step(Some(StatusCode::STARTED)),
            What::Dead(_) => step(Some(StatusCode::FAILED)),
            What::Done(_, errno) => {
                step(Some(if *errno == 0 { StatusCode::SUCCEED } else { StatusCode::FAILED }));
                step(None);
            }
            What::Cancelled { .. } => {
                step(Some(StatusCode::CANCELED));
                step(None);
            }
            What::Assigned(_) | What::CancelRunning(_) => {}
        }
    })
}

fn status_of(state: &State) -> StatusCode {
    match state {
        State::Waiting | State::Delayed(_) | State::Held => StatusCode::WAITING,
        State::Running { .. } => StatusCode::STARTED,
        State::Dead => StatusCode::FAILED,
    }
}

fn time_of(now: Now) -> RecordTime {
    RecordTime::new(now.as_secs(), now.subsec_nanos())
}

impl Step {
    /// A request is known by its number in the queue, and by its cookie if it has one.
    fn key(&self) -> (Slot, u64) {
        let low = |id: u64| u32::try_from(id & u64::from(u32::MAX)).unwrap_or(0);
        let slot = Slot { cat: low(self.id >> 32), rec: low(self.id) };
        (slot, self.request.cookie().unwrap_or(self.id))
    }

    fn draft(&self) -> Draft<'_> {
        let (slot, cookie) = self.key();
        let request = &self.request;
        let fields = ActionFields {
            slot,
            cookie,
            fid: request.fid,
            dfid: request.dfid,
            action: ActionCode(request.kind as u8),
            status: self.status.unwrap_or_default(),
            archive_id: request.archive_id,
            flags: request.flags,
            extent_offset: request.offset,
            extent_length: request.length,
            gid: request.gid_lock,
            data_len: u32::try_from(request.data.len()).unwrap_or(u32::MAX),
            data: &request.data,
            ..ActionFields::default()
        };
        let kind = if self.status.is_some() { EventKind::New } else { EventKind::Purged };
        let source = match request.source {
            Source::Upcall => EventSource::Upcall,
            Source::Coordinator { .. } => EventSource::Coordinator,
        };
        Draft { kind, source, time: self.time, fields, line: None }
    }
}

impl Teller {
    /// Until the queue's thread has ended and everything is told.
    pub fn run(&mut self) {
        let state = std::mem::take(&mut self.state);
        for (at, target) in self.targets.iter().enumerate() {
            let present: Vec<&Step> = state.iter().filter(|step| step.target == at).collect();
            self.write(target, |journal| compare(journal, &present));
        }
        drop(state);
        while let Ok(first) = self.steps.recv() {
            let more = self.steps.try_iter().take(BATCH);
            for round in rounds(std::iter::once(first).chain(more)) {
                for (at, target) in self.targets.iter().enumerate() {
                    let steps: Vec<&Step> = round.iter().filter(|step| step.target == at).collect();
                    if !steps.is_empty() {
                        self.write(target, |journal| append(journal, &steps));
                    }
                }
            }
        }
    }

    /// Until it is written, or lcapd stops: it is made up for at the next start then.
    fn write(&self, target: &Target, write: impl Fn(&Journal) -> Result<u64, JournalError>) {
        let Target { mdt, journal, stats } = target;
        let mut failing = false;
        loop {
            match write(journal) {
                Ok(n_events) => {
                    if failing {
                        info!(%mdt, "events of requests are written again");
                    }
                    stats.events.fetch_add(n_events, Ordering::Relaxed);
                    stats.live.store(journal.n_live() as u64, Ordering::Relaxed);
                    return;
                }
                Err(error) => {
                    if !failing {
                        let error = crate::reader::chain(&error);
                        error!(%mdt, error, "events of requests cannot be written, will retry");
                        stats.errors.fetch_add(1, Ordering::Relaxed);
                    }
                    failing = true;
                    if self.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }
}

/// What happened, so that no action comes twice in one round: a journal takes one change of each at a time.
fn rounds(steps: impl Iterator<Item = Step>) -> Vec<Vec<Step>> {
    let mut rounds: Vec<Vec<Step>> = Vec::new();
    let mut had: HashMap<u64, usize> = HashMap::new();
    for step in steps {
        let nth = had.entry(step.id).or_default();
        if rounds.len() == *nth {
            rounds.push(Vec::new());
        }
        rounds[*nth].push(step);
        *nth += 1;
    }
    rounds
}

/// Appends what is not known yet; returns how many events that were.
fn append(journal: &Journal, steps: &[&Step]) -> Result<u64, JournalError> {
    let mut writer = journal.writer();
    let mut n_events = 0;
    let mut line = Vec::new();
    for step in steps {
        let (slot, cookie) = step.key();
        let draft = step.draft();
        line.clear();
        write_line(&draft.fields, &mut line);
        let found = writer.live().find_action(slot, cookie);
        let known = found.and_then(|at| writer.live().entries().get(at)).map(|entry| entry.hash);
        let is_told = match step.status {
            Some(_) => known == Some(hash(&line)),
            None => known.is_none(),
        };
        if !is_told {
            writer.push(&draft)?;
            n_events += 1;
        }
    }
    writer.commit()?;
    Ok(n_events)
}

/// Tells what has changed since the journal was written.
fn compare(journal: &Journal, present: &[&Step]) -> Result<u64, JournalError> {
    let n_events = append(journal, present)?;
    let there: BTreeSet<(Slot, u64)> = present.iter().map(|step| step.key()).collect();
    let mut writer = journal.writer();
    let gone: Vec<usize> = (0..writer.live().len())
        .filter(|&at| {
            let entry = writer.live().entries().get(at);
            entry.is_some_and(|entry| !there.contains(&(entry.slot, entry.cookie)))
        })
        .collect();
    for &at in &gone {
        writer.push_purge(at, EventSource::Upcall, crate::actions::poller::now())?;
    }
    writer.commit()?;
    Ok(n_events + gone.len() as u64)
}
