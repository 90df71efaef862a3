//! Who does the work: movers and `lcap hsm worker` alike.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Now;
use crate::hsm::request::Kind;
use crate::hsm::scheduler::Taker;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Its name: one worker each. Rules call it a host.
    pub name: Arc<str>,
    /// What it can do.
    pub kinds: Vec<Kind>,
    /// Archives that it serves; all if none is named.
    pub archive_ids: Vec<u32>,
    /// It can do what an upcall asked for. A copytool cannot: Lustre knows nothing of such a request.
    pub upcalls: bool,
    /// Not heard of for so long, it is dead. `None`: its connection tells.
    pub silence: Option<Duration>,
    /// What it runs is kept for it for so long after its connection went.
    pub grace: Duration,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What it said of itself.
    pub spec: WorkerSpec,
    /// It is there.
    pub connected: bool,
    /// When it was heard of last.
    pub heard: Now,
    /// When its grace time is over.
    pub gone_at: Option<Now>,
    /// Requests that it has.
    pub running: BTreeSet<u64>,
    /// How many, by kind.
    pub n_running: [u32; 3],
    /// What it has done, by kind.
    pub done: [u64; 3],
    /// What it has failed to do, by kind.
    pub failed: [u64; 3],
}

impl Worker {
    pub(super) fn new(spec: WorkerSpec, now: Now) -> Self {
        Self {
            spec,
            connected: true,
            heard: now,
            gone_at: None,
            running: BTreeSet::new(),
            n_running: [0; 3],
            done: [0; 3],
            failed: [0; 3],
        }
    }

    /// One of the last life that has not come yet.
    pub(super) fn remembered(name: Arc<str>, grace: Duration, now: Now) -> Self {
        let (kinds, archive_ids) = (Vec::new(), Vec::new());
        let spec = WorkerSpec { name, kinds, archive_ids, upcalls: false, silence: None, grace };
        Self { connected: false, gone_at: Some(now + grace), ..Self::new(spec, now) }
    }

    pub(super) fn came_back(&mut self, spec: WorkerSpec, now: Now) {
        self.spec = spec;
        (self.connected, self.heard, self.gone_at) = (true, now, None);
    }

    pub(super) fn started(&mut self, id: u64, kind: Kind) {
        self.running.insert(id);
        self.n_running[kind.at()] += 1;
    }

    pub(super) fn ended(&mut self, id: u64, kind: Kind) {
        if self.running.remove(&id) {
            self.n_running[kind.at()] -= 1;
        }
    }

    pub(super) fn taker(&self) -> Taker<'_> {
        Taker {
            name: &self.spec.name,
            kinds: &self.spec.kinds,
            archive_ids: &self.spec.archive_ids,
            upcalls: self.spec.upcalls,
            running: self.n_running,
        }
    }

    /// When others get what it has, if nothing is heard of it.
    pub fn dies_at(&self) -> Option<Now> {
        let silent = self.spec.silence.map(|silence| self.heard + silence);
        if self.connected { silent } else { self.gone_at }
    }
}
