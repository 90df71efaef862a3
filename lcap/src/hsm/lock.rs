//! `lcap hsm queue lock`, `unlock` and `drain`.
#![forbid(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use lcap_wire::hsm_queue::{HsmOp, List, Listed, Lock};

use super::ask;

/// How often a drain looks.
const LOOK: Duration = Duration::from_millis(200);

/// Without any, everything.
#[derive(Args)]
pub(crate) struct LockArgs {
    /// Only on this worker.
    #[arg(long)]
    worker: Option<String>,
    /// Only this kind: archive, restore, remove.
    #[arg(long)]
    action: Option<String>,
    /// Only of this archive.
    #[arg(long)]
    archive_id: Option<u32>,
}

#[derive(Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    what: LockArgs,
    /// Give up after so many seconds; the lock stays.
    #[arg(long)]
    timeout: Option<u64>,
}

impl LockArgs {
    pub(super) fn lock(&self) -> Lock {
        let Self { worker, action, archive_id } = self;
        Lock { worker: worker.clone(), kind: action.clone(), archive_id: *archive_id }
    }
}

pub(super) fn drain(args: &DrainArgs) -> Result<()> {
    let lock = args.what.lock();
    super::queue::change(HsmOp::Lock(lock.clone()))?;
    let until = args.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    wait_idle(&lock, until, ask)
}

/// Waits until nothing runs any more that a lock is for.
pub(super) fn wait_idle(
    lock: &Lock,
    until: Option<Instant>,
    ask: impl Fn(HsmOp) -> Result<Listed>,
) -> Result<()> {
    let state = Some("running".to_owned());
    let Lock { worker, kind, archive_id } = lock.clone();
    let running = List { state, worker, kind, archive_id, limit: 1, ..List::default() };
    loop {
        let page = ask(HsmOp::List(running.clone()))?;
        if page.requests.is_empty() {
            return Ok(());
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            bail!("requests still run; they are locked, and `unlock` ends that");
        }
        thread::sleep(LOOK);
    }
}
