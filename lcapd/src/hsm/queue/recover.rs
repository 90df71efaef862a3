//! What of the queue is on disk, and how it comes back.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Entry, Queue, Settings, State, Trouble, Worker};
use crate::hsm::request::Request;
use crate::hsm::scheduler::hosts::HostSet;
use crate::hsm::scheduler::{Lock, Now};

/// A request as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The request.
    pub request: Arc<Request>,
    /// Where it is.
    pub state: SavedState,
    /// Its turn; its id unless it was moved.
    pub order: i64,
    /// What goes before its turn: those of a lower rank are first.
    #[serde(default, skip_serializing_if = "is_level")]
    pub rank: i32,
    /// Hosts that were chosen for it; chosen once, because the choice may depend on data that it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<Box<str>>>,
    /// How often it failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// What was said then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<str>>,
    /// Cancelled while it ran.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel: bool,
    /// Asked for again while it ran.
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
    /// A worker had it at some time.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ran: bool,
}

/// A state as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedState {
    /// For a worker; or delayed, which a restart shortens.
    Waiting,
    /// By an operator.
    Held,
    /// A worker has it.
    Running {
        /// Which.
        worker: Arc<str>,
        /// Names the run.
        lease: u64,
        /// How long it has to come back, in milliseconds.
        grace_ms: u64,
    },
    /// It failed too often.
    Dead,
}

/// What there is besides requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// No id that was ever given out is as high.
    pub next_id: u64,
    /// No lease that was ever given out is as high.
    pub next_lease: u64,
    /// What is locked.
    #[serde(default)]
    pub locks: BTreeSet<Lock>,
    /// From where everything was taken over once.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub imported: BTreeSet<String>,
}

/// What must be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Requests by id; `None` for one that is gone.
    pub requests: Vec<(u64, Option<Saved>)>,
    /// Always the present state.
    pub meta: Meta,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(flag: &bool) -> bool {
    !flag
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_level(rank: &i32) -> bool {
    *rank == 0
}

impl Entry {
    fn save(&self, workers: &BTreeMap<Arc<str>, Worker>) -> Saved {
        let grace_ms = |worker: &Arc<str>| {
            let grace = workers.get(worker).map_or(Duration::ZERO, |worker| worker.spec.grace);
            u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)
        };
        Saved {
            request: Arc::clone(&self.request),
            state: match &self.state {
                State::Waiting | State::Delayed(_) => SavedState::Waiting,
                State::Held => SavedState::Held,
                State::Running { worker, lease } => {
                    let grace_ms = grace_ms(worker);
                    SavedState::Running { worker: Arc::clone(worker), lease: *lease, grace_ms }
                }
                State::Dead => SavedState::Dead,
            },
            rank: self.rank,
            order: self.order,
            hosts: self.hosts.names().map(<[_]>::to_vec),
            failures: self.failures(),
            error: self.trouble.as_ref().and_then(|trouble| trouble.error.clone()),
            cancel: self.cancel,
            again: self.again,
            ran: self.ran,
        }
    }
}

impl Queue {
    /// What was on disk: requests in the order of their ids. Workers that had some have their grace
    /// time to come back.
    pub fn recover(
        settings: Settings,
        meta: Meta,
        saved: impl IntoIterator<Item = (u64, Saved)>,
        now: Now,
    ) -> Self {
        let mut queue = Self::new(settings);
        queue.next_id = meta.next_id.max(1);
        queue.next_lease = meta.next_lease.max(1);
        queue.locks = meta.locks;
        queue.imported = meta.imported;
        for (id, saved) in saved {
            queue.restore(id, saved, now);
        }
        queue.dirty.clear();
        queue
    }

    fn restore(&mut self, id: u64, saved: Saved, now: Now) {
        self.next_id = self.next_id.max(id + 1);
        let mut request = saved.request;
        let mdt = self.intern(Arc::clone(&request.mdt));
        Arc::make_mut(&mut request).mdt = mdt;
        let hosts = saved.hosts.map_or_else(HostSet::default, HostSet::only);
        let hosts = self.scheduler.intern(hosts);
        let state = match saved.state {
            SavedState::Waiting => State::Waiting,
            SavedState::Held => State::Held,
            SavedState::Dead => State::Dead,
            SavedState::Running { worker, lease, grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                self.next_lease = self.next_lease.max(lease + 1);
                let known = self.workers.get_key_value(&worker).map(|(name, _)| Arc::clone(name));
                let name = known.unwrap_or(worker);
                let worker = self.workers.entry(Arc::clone(&name));
                let worker =
                    worker.or_insert_with(|| Worker::remembered(Arc::clone(&name), grace, now));
                worker.started(id, request.kind);
                self.scheduler.started(&request, &name, now);
                State::Running { worker: name, lease }
            }
        };
        let placing =
            state == State::Waiting && !saved.ran && self.is_to_be_placed(request.kind, &hosts);
        let (failures, error) = (saved.failures, saved.error);
        let trouble = failures > 0 || error.is_some();
        let trouble = trouble.then(|| Box::new(Trouble { failures, error }));
        let entry = Entry {
            request,
            hosts,
            trouble,
            state,
            rank: saved.rank,
            order: saved.order,
            next: 0,
            last: 0,
            cancel: saved.cancel,
            again: saved.again,
            ran: saved.ran,
            ready: false,
            placing,
        };
        let (fid, running) = (entry.request.fid, matches!(entry.state, State::Running { .. }));
        if running && entry.cancel {
            self.watch_cancel(id, now);
        }
        self.add(id, entry, now);
        if running && let Some(first) = self.lines.get(&fid).copied().filter(|first| *first != id) {
            // It began before an earlier one came back from the dead.
            self.unready(first);
            self.leave_line(id, now);
            self.lead_line(id, first);
        }
    }

    fn lead_line(&mut self, id: u64, second: u64) {
        let Some(last) = self.entries.get(&second).map(|entry| entry.last) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        (entry.next, entry.last) = (second, last);
        self.lines.insert(entry.request.fid, id);
    }

    /// What must be on disk before anybody is told of it; `None` if that is nothing.
    pub fn take_changes(&mut self) -> Option<Changes> {
        if self.dirty.is_empty() && !std::mem::take(&mut self.meta_dirty) {
            return None;
        }
        self.meta_dirty = false;
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        let requests = dirty
            .map(|id| (id, self.entries.get(&id).map(|entry| entry.save(&self.workers))))
            .collect();
        Some(Changes { requests, meta: self.meta() })
    }

    fn meta(&self) -> Meta {
        let (next_id, next_lease) = (self.next_id, self.next_lease);
        let (locks, imported) = (self.locks.clone(), self.imported.clone());
        Meta { next_id, next_lease, locks, imported }
    }
}
