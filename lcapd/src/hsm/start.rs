//! Starts what `[hsm]` asks for.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use crossbeam_channel::unbounded;
use tracing::{info, warn};

use super::config::{Hsm, prepare};
use super::coordinator::{self, Teller};
use super::entrances::{self, Host};
use super::events;
use super::mover_socket::MoverSocket;
use super::original;
use super::owner::Owners;
use super::placer;
use super::queue::Queue;
use super::redis_store::RedisStore;
use super::reports;
use super::scheduler::Now;
use super::service::{Clock, Core, Handle, Service};
use super::spool::{self, Intake};
use super::store::{HsmStore, Kept, Loaded};
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
    /// The thread that asks a module; ends after the queue's.
    pub asker: Option<placer::Asker>,
    /// The thread that writes events for streams; ends after the queue's.
    pub events: Option<events::Teller>,
    /// Wakes the queue's thread.
    pub waker: Waker,
}

fn ask_module(
    settings: &placer::Settings,
    host: &Host<'_>,
    core: &mut Core,
    queue: &Handle,
) -> Result<placer::Asker> {
    let loaded = placer::load(settings, host.loader)?;
    info!(module = loaded.name(), "places HSM requests");
    let (ask, asker) = placer::Asker::new(loaded, queue.clone());
    core.placer = Some(ask);
    Ok(asker)
}

fn open_store(hsm: &Hsm, state_dir: &Path, take_over: bool) -> Result<(Kept, Loaded)> {
    let Some(target) = &hsm.redis else {
        let (file, loaded) = HsmStore::open(state_dir, take_over)?;
        return Ok((Kept::File(file), loaded));
    };
    let fsname = hsm.entrances.fsname.as_deref().unwrap_or("lustre");
    let opened = RedisStore::open(target, fsname);
    let (redis, loaded) =
        opened.with_context(|| format!("the queue of HSM requests in Redis at {target}"))?;
    Ok((Kept::Redis(Box::new(redis)), loaded))
}

/// Once in the life of the queue: what coordinatool has in its Redis.
fn take_over(hsm: &Hsm, queue: &mut Queue, now: Now) -> Result<()> {
    let Some(target) = &hsm.original_redis else { return Ok(()) };
    let from = target.to_string();
    if queue.has_imported(&from) {
        return Ok(());
    }
    let fsname = hsm.entrances.fsname.as_deref().unwrap_or("lustre");
    let mdt = format!("{fsname}-MDTffff").into();
    let found = original::read(target, &mdt).with_context(|| {
        format!("coordinatool's requests in Redis at {from} (to start without them, leave out `coordinatool_redis`, and `redis_host` of its configuration)")
    })?;
    original::import(queue, found, hsm.entrances.grace, now);
    queue.set_imported(&from);
    Ok(())
}

/// Opens what is on disk and puts the parts together; runs nothing yet. What happens to requests is told to `targets`;
/// `socket` is for movers.
///
/// # Errors
/// What cannot be opened, and why.
pub fn build(
    hsm: &Hsm,
    state_dir: &Path,
    targets: Vec<events::Target>,
    socket: Option<MoverSocket>,
    host: &Host<'_>,
) -> Result<Started> {
    prepare(hsm).map_err(|(dir, error)| {
        anyhow::Error::new(error).context(format!("cannot make the spool {}", dir.display()))
    })?;
    let (mut store, loaded) = open_store(hsm, state_dir, host.lease.is_needed())?;
    if loaded.n_bad > 0 {
        warn!(n = loaded.n_bad, "requests that cannot be read are set aside");
    }
    let now = Clock::default().now();
    info!(requests = loaded.requests.len(), "HSM requests from before");
    let mut queue = Queue::recover(hsm.queue.clone(), loaded.meta, loaded.requests, now);
    take_over(hsm, &mut queue, now)?;
    let waker = Waker::new()?;
    let (jobs, jobs_in) = unbounded();
    let handle = Handle::new(jobs, waker.clone());
    let mount = hsm.entrances.copytool.as_ref().map(|copytool| copytool.mount.as_path());
    let owners = mount.and_then(|mount| Owners::new(mount, &hsm.queue.scheduler.share_by));
    let opened = entrances::open(&hsm.entrances, owners.clone(), host, &waker)?;
    let keep_alive = opened.copytool.as_ref().map(|_| hsm.entrances.keep_alive);
    let mut core = Core::new(queue, opened.movers, opened.json, opened.mdt, keep_alive, now);
    core.workers = Workers::new(hsm.lease);
    if let Some(socket) = &socket {
        core.movers.set_access(socket.access().clone());
    }
    let reports = hsm.reports.as_ref().map(|settings| {
        let (sender, lines) = reports::lines();
        core.add_observer(reports::observer(settings.hint.clone(), sender));
        let (queue, stop) = (handle.clone(), Arc::clone(&host.stop_intake));
        reports::Writer { settings: settings.clone(), queue, lines, stop }
    });
    let events = (!targets.is_empty()).then(|| {
        let stop = Arc::clone(&host.stop);
        let (observer, teller) = events::tell(&core.queue, hsm.told, targets, stop, now);
        core.add_observer(observer);
        teller
    });
    let asker = hsm.placer.as_ref().map(|settings| ask_module(settings, host, &mut core, &handle));
    let asker = asker.transpose()?;
    let lease = host.lease.clone();
    let service = Service {
        core,
        socket,
        from_lustre: opened.from_lustre,
        to_lustre: opened.to_lustre,
        jobs: jobs_in,
        commit: Box::new(move |changes, marks| {
            if !lease.is_held() {
                return Err("another lcapd may be at work".to_owned());
            }
            store.commit(changes, marks)
        }),
        waker: waker.clone(),
        stop: Arc::clone(&host.stop),
    };
    let intake = match &hsm.spool {
        None => None,
        Some(dir) => Some(Intake {
            dir: dir.clone(),
            queue: handle.clone(),
            owners,
            taken: loaded.taken,
            stats: Arc::new(spool::Stats::default()),
            waker: Waker::new().context("a waker")?,
            stop: Arc::clone(&host.stop_intake),
        }),
    };
    let copytool = opened.copytool;
    Ok(Started { queue: handle, service, intake, copytool, reports, asker, events, waker })
}
