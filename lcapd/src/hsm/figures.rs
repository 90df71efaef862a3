//! The queue's figures at `/metrics`.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;

use super::queue::{STATES, State};
use super::request::Kind;
use super::scheduler::Now;
use super::service::{Core, Handle};
use super::spool;
use crate::metrics::families as f;
use crate::metrics::{Metrics, Samples};

/// How long a scrape waits for the queue. Prometheus gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Registers everything. The queue is asked once for each scrape.
pub fn register(metrics: &Metrics, queue: Handle, spool: Option<Arc<spool::Stats>>) {
    metrics.register(move |samples| {
        if let Some(stats) = &spool {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            samples.put(&f::HSM_SPOOL_TAKEN, &[], load(&stats.files));
            samples.put(&f::HSM_SPOOL_BAD, &[], load(&stats.bad));
            samples.put(&f::HSM_SPOOL_WAITING, &[], load(&stats.waiting));
        }
        let (answer, answered) = bounded(1);
        queue.call(move |core, now| {
            let _ = answer.try_send(Figures::of(core, now));
        });
        if let Ok(figures) = answered.recv_timeout(PATIENCE) {
            figures.put(samples);
        }
    });
}

struct Figures {
    /// By state, kind.
    counts: Vec<(&'static str, Kind, usize)>,
    /// By kind: admitted, done, failures, cancelled.
    stats: Vec<(Kind, [u64; 4])>,
    /// By worker and kind.
    workers: Vec<(Arc<str>, Kind, u64)>,
    n_workers: usize,
    oldest: Duration,
    trouble: bool,
}

impl Figures {
    fn of(core: &Core, now: Now) -> Self {
        let queue = &core.queue;
        let states = STATES.iter().enumerate();
        let counts = states
            .flat_map(|(at, state)| Kind::ALL.map(|kind| (*state, kind, queue.count(at, kind))));
        let stats = queue.stats();
        let by_kind = Kind::ALL.map(|kind| {
            let at = kind.at();
            let all = [&stats.admitted, &stats.done, &stats.failures, &stats.cancelled];
            (kind, all.map(|counts| counts[at]))
        });
        let done = queue.workers().flat_map(|worker| {
            let name = &worker.spec.name;
            Kind::ALL.map(|kind| (Arc::clone(name), kind, worker.done[kind.at()]))
        });
        let waits = queue
            .iter()
            .filter(|view| matches!(view.state, State::Waiting | State::Delayed(_) | State::Held));
        let oldest = waits.map(|view| view.request.received_ns).min();
        Self {
            counts: counts.collect(),
            stats: by_kind.to_vec(),
            workers: done.collect(),
            n_workers: queue.workers().filter(|worker| worker.connected).count(),
            oldest: oldest
                .map_or(Duration::ZERO, |ns| now.saturating_sub(Duration::from_nanos(ns))),
            trouble: core.trouble.is_some(),
        }
    }

    fn put(self, samples: &mut Samples) {
        let word = |kind: Kind| kind.name().to_lowercase();
        for (state, kind, n) in self.counts {
            samples.put(&f::HSM_REQUESTS, &[state, &word(kind)], n);
        }
        for (kind, [admitted, done, failures, cancelled]) in self.stats {
            let labels = [&*word(kind)];
            samples.put(&f::HSM_ADMITTED, &labels, admitted);
            samples.put(&f::HSM_DONE, &labels, done);
            samples.put(&f::HSM_FAILURES, &labels, failures);
            samples.put(&f::HSM_CANCELLED, &labels, cancelled);
        }
        for (worker, kind, done) in self.workers {
            samples.put(&f::HSM_WORKER_DONE, &[&worker, &word(kind)], done);
        }
        samples.put(&f::HSM_WORKERS, &[], self.n_workers);
        samples.put(&f::HSM_OLDEST, &[], self.oldest.as_secs_f64());
        samples.put(&f::HSM_STORE_FAILING, &[], self.trouble);
    }
}
