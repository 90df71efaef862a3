//! The queue's figures at `/metrics`.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;

use super::coordinator;
use super::queue::STATES;
use super::queue::view::Ages;
use super::request::Kind;
use super::scheduler::Now;
use super::service::{Core, Handle};
use super::spool;
use crate::metrics::families as f;
use crate::metrics::{Metrics, Samples};

/// How long a scrape waits for the queue. Prometheus gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Registers everything. The queue is asked once for each scrape.
pub fn register(
    metrics: &Metrics,
    queue: Handle,
    spool: Option<Arc<spool::Stats>>,
    lustre: Option<Arc<coordinator::Shared>>,
) {
    metrics.register(move |samples| {
        if let Some(lustre) = &lustre {
            let stats = &lustre.stats;
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            samples.put(&f::HSM_REGISTERED, &[], stats.registered.load(Ordering::Relaxed));
            samples.put(&f::HSM_REGISTRATIONS, &[], load(&stats.registrations));
            samples.put(&f::HSM_LISTS, &[], load(&stats.lists));
            samples.put(&f::HSM_KEEP_ALIVES, &[], load(&stats.keep_alives));
            samples.put(&f::HSM_ENDED, &[], load(&stats.failed));
            samples.put(&f::HSM_LUSTRE_ERRORS, &[], load(&stats.errors));
        }
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

/// One worker or mover.
struct Of {
    name: Arc<str>,
    up: bool,
    running: [u32; 3],
    done: [u64; 3],
    failed: [u64; 3],
}

struct Figures {
    /// By state, kind.
    counts: Vec<(&'static str, Kind, usize)>,
    /// By kind: admitted, done, failures, cancelled.
    stats: Vec<(Kind, [u64; 4])>,
    workers: Vec<Of>,
    /// Movers and what they would take.
    rooms: Vec<(Arc<str>, u64)>,
    waited: Duration,
    unplaced: u64,
    ages: Ages,
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
        let workers = queue.workers().map(|worker| Of {
            name: Arc::clone(&worker.spec.name),
            up: worker.connected,
            running: worker.n_running,
            done: worker.done,
            failed: worker.failed,
        });
        Self {
            counts: counts.collect(),
            stats: by_kind.to_vec(),
            workers: workers.collect(),
            rooms: core.movers.views().map(|mover| (mover.name, mover.room)).collect(),
            waited: stats.waited,
            unplaced: stats.unplaced,
            ages: queue.ages(now),
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
        let n_up = self.workers.iter().filter(|worker| worker.up).count();
        for Of { name, up, running, done, failed } in self.workers {
            samples.put(&f::HSM_WORKER_UP, &[&name], up);
            for kind in Kind::ALL {
                let (labels, at) = ([&*name, &*word(kind)], kind.at());
                samples.put(&f::HSM_WORKER_RUNNING, &labels, u64::from(running[at]));
                samples.put(&f::HSM_WORKER_DONE, &labels, done[at]);
                samples.put(&f::HSM_WORKER_FAILURES, &labels, failed[at]);
            }
        }
        for (mover, room) in self.rooms {
            samples.put(&f::HSM_MOVER_ROOM, &[&mover], room);
        }
        let age = |percent| self.ages.part(percent).unwrap_or_default().as_secs_f64();
        for (quantile, percent) in [("0.5", 50), ("0.9", 90), ("0.99", 99)] {
            samples.put(&f::HSM_AGE, &[quantile], age(percent));
        }
        samples.put(&f::HSM_OLDEST, &[], age(100));
        samples.put(&f::HSM_WAITED, &[], self.waited.as_secs_f64());
        samples.put(&f::HSM_UNPLACED, &[], self.unplaced);
        samples.put(&f::HSM_WORKERS, &[], n_up);
        samples.put(&f::HSM_STORE_FAILING, &[], self.trouble);
    }
}
