//! Starts what `[hsm]` asks for.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result};
use crossbeam_channel::unbounded;
use tracing::{info, warn};

use super::config::{Hsm, prepare};
use super::coordinator::{self, Teller};
use super::entrances;
use super::queue::Queue;
use super::reports;
use super::service::{Clock, Core, Handle, Service};
use super::spool::{self, Intake};
use super::store::HsmStore;
use super::workers::Workers;
use crate::wake::Waker;

/// What runs, and how it is reached.
#[derive(Debug)]
pub struct Started {
    /// The queue.
    pub queue: Handle,
    /// The queue's thread; ends last.
    pub service: Service,
    /// The spool's thread.
    pub intake: Option<Intake>,
    /// Lustre's two threads: the first ends with the spool's, the second with the queue's.
    pub copytool: Option<(coordinator::Intake, Teller)>,
    /// The thread that writes files for users.
    pub reports: Option<reports::Writer>,
    /// Wakes the queue's thread.
    pub waker: Waker,
}

/// Opens what is on disk and puts the parts together; runs nothing yet. `stop` ends the queue's thread,
/// `stop_intake` the spool's, which must end first.
///
/// # Errors
/// What cannot be opened, and why.
pub fn build(
    hsm: &Hsm,
    state_dir: &Path,
    context: &zmq::Context,
    secure: &dyn Fn(&zmq::Socket) -> Result<(), zmq::Error>,
    epoch: u64,
    stop: Arc<AtomicBool>,
    stop_intake: Arc<AtomicBool>,
) -> Result<Started> {
    prepare(hsm).map_err(|(dir, error)| {
        anyhow::Error::new(error).context(format!("cannot make the spool {}", dir.display()))
    })?;
    let (mut store, loaded) = HsmStore::open(state_dir)?;
    if loaded.n_bad > 0 {
        warn!(n = loaded.n_bad, "requests that cannot be read are set aside in hsm.redb");
    }
    let now = Clock::default().now();
    info!(requests = loaded.requests.len(), "HSM requests from before");
    let grace = hsm.lease.max(hsm.entrances.grace);
    let queue = Queue::recover(hsm.queue.clone(), loaded.meta, loaded.requests, grace, now);
    let waker = Waker::new()?;
    let (jobs, jobs_in) = unbounded();
    let handle = Handle::new(jobs, waker.clone());
    let opened = entrances::open(
        &hsm.entrances,
        context,
        secure,
        epoch,
        &waker,
        Arc::clone(&stop_intake),
        Arc::clone(&stop),
    )?;
    let keep_alive = opened.copytool.as_ref().map(|_| hsm.entrances.keep_alive);
    let mut core = Core::new(queue, opened.movers, opened.json, opened.mdt, keep_alive, now);
    core.workers = Workers::new(hsm.lease);
    let reports = hsm.reports.as_ref().map(|settings| {
        let (sender, lines) = reports::lines();
        core.set_observer(reports::observer(settings.hint.clone(), sender));
        let (queue, stop) = (handle.clone(), Arc::clone(&stop_intake));
        reports::Writer { settings: settings.clone(), queue, lines, stop }
    });
    let service = Service {
        core,
        socket: opened.socket.map(|socket| socket.0),
        from_lustre: opened.from_lustre,
        to_lustre: opened.to_lustre,
        jobs: jobs_in,
        commit: Box::new(move |changes, marks| {
            store.commit(changes, marks).map_err(|error| crate::reader::chain(&error))
        }),
        waker: waker.clone(),
        stop,
    };
    let intake = match &hsm.spool {
        None => None,
        Some(dir) => Some(Intake {
            dir: dir.clone(),
            queue: handle.clone(),
            taken: loaded.taken,
            stats: Arc::new(spool::Stats::default()),
            waker: Waker::new().context("a waker")?,
            stop: stop_intake,
        }),
    };
    let copytool = opened.copytool;
    Ok(Started { queue: handle, service, intake, copytool, reports, waker })
}
