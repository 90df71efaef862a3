//! The queue as others see it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::Fid;

use super::{Entry, Queue, State, Worker};
use crate::hsm::request::{Kind, Request};
use crate::hsm::scheduler::hosts::HostSet;
use crate::hsm::scheduler::{Lock, Now, Scheduler};

/// Figures of this life, by kind (archive, restore, remove).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that came in and were not there.
    pub admitted: [u64; 3],
    /// Requests that were done.
    pub done: [u64; 3],
    /// Runs that failed.
    pub failures: [u64; 3],
    /// Requests that were cancelled.
    pub cancelled: [u64; 3],
    /// Requests whose worker nobody chose in time.
    pub unplaced: u64,
    /// How long what was done had been in the queue, in all.
    pub waited: Duration,
}

impl Stats {
    pub(super) fn waited(&mut self, request: &Request, now: Now) {
        self.waited += now.saturating_sub(Duration::from_nanos(request.received_ns));
    }
}

/// A request and where it is.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id.
    pub id: u64,
    /// The request.
    pub request: &'a Arc<Request>,
    /// Where it is.
    pub state: &'a State,
    /// What goes before its turn: those of a lower rank are first.
    pub rank: i32,
    /// Its turn.
    pub order: i64,
    /// An earlier request on the same file is in the queue.
    pub blocked: bool,
    /// Where it may go.
    pub hosts: &'a HostSet,
    /// How often it failed.
    pub failures: u32,
    /// What was said the last time.
    pub error: Option<&'a str>,
    /// Its worker is to stop.
    pub cancel: bool,
}

/// How long those that do not run have been there.
#[derive(Clone, Debug)]
pub struct Ages(Vec<Duration>);

impl Ages {
    /// So many of a hundred are not older than this; `None` if there is nobody.
    pub fn part(&self, percent: usize) -> Option<Duration> {
        let at = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(at).copied()
    }
}

impl Queue {
    /// Ages of all that wait: for a worker, a moment or an operator.
    pub fn ages(&self, now: Now) -> Ages {
        let waits = |entry: &Entry| !matches!(entry.state, State::Running { .. } | State::Dead);
        let age =
            |entry: &Entry| now.saturating_sub(Duration::from_nanos(entry.request.received_ns));
        let all = self.entries.values().map(|entry| &**entry);
        let mut ages: Vec<Duration> = all.filter(|entry| waits(entry)).map(age).collect();
        ages.sort_unstable();
        Ages(ages)
    }

    /// How many requests there are, dead ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many are in a state (a number of [`super::STATES`]), of one kind.
    pub fn count(&self, state: usize, kind: Kind) -> usize {
        self.counts.get(state).map_or(0, |counts| counts[kind.at()])
    }

    /// Figures of this life.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Workers that are there or are waited for.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// One worker.
    pub fn worker(&self, name: &str) -> Option<&Worker> {
        self.workers.get(name)
    }

    /// What is locked.
    pub fn locks(&self) -> &BTreeSet<Lock> {
        &self.locks
    }

    /// What may start.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// One request.
    pub fn get(&self, id: u64) -> Option<View<'_>> {
        self.entries.get(&id).map(|entry| self.view(id, entry))
    }

    /// Ids of an MDT's requests on a file, in their order.
    pub fn of_file(&self, mdt: &str, fid: Fid) -> Vec<u64> {
        let mut ids = Vec::new();
        let mut id = self.lines.get(&fid).copied().unwrap_or(0);
        while let Some(entry) = self.entries.get(&id) {
            if *entry.request.mdt == *mdt {
                ids.push(id);
            }
            id = entry.next;
        }
        ids
    }

    /// All requests, in no order.
    pub fn iter(&self) -> impl Iterator<Item = View<'_>> {
        self.entries.iter().map(|(&id, entry)| self.view(id, entry))
    }

    fn view<'a>(&'a self, id: u64, entry: &'a Entry) -> View<'a> {
        let first = self.lines.get(&entry.request.fid) == Some(&id);
        View {
            id,
            request: &entry.request,
            state: &entry.state,
            rank: entry.rank,
            order: entry.order,
            blocked: !first && entry.state != State::Dead,
            hosts: &entry.hosts,
            failures: entry.failures(),
            error: entry.trouble.as_ref().and_then(|trouble| trouble.error.as_deref()),
            cancel: entry.cancel,
        }
    }
}
