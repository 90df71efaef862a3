//! One thread per MDT that tells it what it may forget: each call may take a second.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use lcap_ffi::{MdtName, RecordIndex};
use tracing::{debug, error, warn};

use crate::engine::NotCleared;
use crate::lease::Lease;
use crate::log::{Entry, Gap, MdtLog};
use crate::reader::{ReaderStats, chain};
use crate::server::Outcome;
use crate::source::{ClearError, Upstream};
use crate::wake::Waker;

/// The thread's state.
#[derive(Debug)]
pub struct Clearer {
    /// Number of the MDT.
    pub mdt_at: usize,
    /// Its name.
    pub mdt: MdtName,
    /// Its log.
    pub upstream: Arc<dyn Upstream>,
    /// Where consumers are told of lost records.
    pub log: Arc<MdtLog>,
    /// Counts gaps.
    pub stats: Arc<ReaderStats>,
    /// Whether we may clear now.
    pub lease: Lease,
    /// The MDT did not know our user when it was asked last.
    pub evicted: bool,
    /// What to clear, and the history that the index belongs to. It ends when the other side is dropped.
    pub clears: Receiver<(RecordIndex, u16)>,
    /// What became of it.
    pub outcomes: Sender<Outcome>,
    /// Wakes the engine.
    pub waker: Waker,
}

impl Clearer {
    /// Clears as it is told, until there is nobody left to tell it.
    pub fn run(&mut self) {
        while let Ok((upto, generation)) = self.clears.recv() {
            if !self.lease.is_held() {
                warn!(mdt = %self.mdt, upto = upto.get(), "not cleared: another lcapd may be at work");
                continue;
            }
            let result = self.clear(upto, generation);
            debug!(mdt = %self.mdt, upto = upto.get(), ok = result.is_ok(), "cleared");
            let mdt = self.mdt_at;
            let _ = self.outcomes.send(Outcome::Cleared { mdt, upto, generation, result });
            self.waker.wake();
        }
    }

    fn clear(&mut self, upto: RecordIndex, generation: u16) -> Result<(), NotCleared> {
        // Things may have changed since this was asked for.
        let stats = &self.stats;
        let compared =
            stats.compared.load(Ordering::Acquire) || stats.empty.load(Ordering::Acquire);
        if !compared || self.log.head().1 != generation {
            return Err(NotCleared::NotNow);
        }
        let result = self.upstream.clear(upto);
        match &result {
            Err(error @ ClearError::NoUser { .. }) => self.tell_eviction(error),
            Err(_) => {}
            Ok(()) => self.evicted = false,
        }
        if result.is_ok() {
            self.log.set_gone(upto);
        }
        result.map_err(|error| NotCleared::Failed(chain(&error)))
    }

    /// Lustre has deregistered our user (it was idle for too long, or the MDT ran out of space, or
    /// somebody did it by hand): while nobody is registered, events leave no trace at all.
    fn tell_eviction(&mut self, error: &ClearError) {
        if std::mem::replace(&mut self.evicted, true) {
            return;
        }
        error!(
            mdt = %self.mdt, error = chain(error),
            "our changelog user is gone: records may be lost from here on and none is cleared; \
             register one on the MDS (lctl changelog_register), give it in the configuration, \
             restart, and rescan; consumers are told"
        );
        let (next, generation) = self.log.head();
        let gap = Gap { first: next, last: RecordIndex::ZERO, generation, rewinds: false };
        self.stats.gaps.fetch_add(1, Ordering::Relaxed);
        self.log.push(Entry::Gap(gap), &AtomicBool::new(false));
    }
}
