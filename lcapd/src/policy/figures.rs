//! What a chain's modules do, for other threads to read at any time.
//!
//! The thread that runs the chain writes them after each batch; `lcap status`, the metrics and the
//! watchdog read them without asking that thread, which may be stuck in a module.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Module, ModuleState, ModuleStats};

/// Of all modules of a chain, and of the call that is under way.
#[derive(Debug, Default)]
pub struct ChainFigures {
    modules: Vec<ModuleFigures>,
    /// Which call the chain is in.
    pub watch: CallWatch,
    /// The call takes longer than a module may.
    stuck: AtomicBool,
}

/// Of one module.
#[derive(Debug)]
struct ModuleFigures {
    module: String,
    version: String,
    state: AtomicU8,
    records_in: AtomicU64,
    emitted: AtomicU64,
    dropped: AtomicU64,
    merged: AtomicU64,
    held: AtomicU64,
    busy_ns: AtomicU64,
    calls: AtomicU64,
    rare: Mutex<Rare>,
}

/// What is not written after each batch.
#[derive(Debug, Default)]
struct Rare {
    fault: Option<String>,
    own: Value,
}

const STATES: [ModuleState; 3] = [ModuleState::Active, ModuleState::Bypassed, ModuleState::Failed];

/// Counters of one module, as the chain's thread has them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) records_in: u64,
    pub(super) emitted: u64,
    pub(super) dropped: u64,
    pub(super) merged: u64,
    pub(super) held: u64,
    pub(super) busy_ns: u64,
    pub(super) calls: u64,
}

impl ChainFigures {
    pub(super) fn of(modules: &[Arc<Module>]) -> Self {
        let modules = modules.iter().map(|module| ModuleFigures {
            module: module.name().to_owned(),
            version: module.version().to_owned(),
            state: AtomicU8::new(0),
            records_in: AtomicU64::new(0),
            emitted: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            merged: AtomicU64::new(0),
            held: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            rare: Mutex::default(),
        });
        Self { modules: modules.collect(), ..Self::default() }
    }

    /// Figures, in the chain's order.
    pub fn snapshot(&self) -> Vec<ModuleStats> {
        let of = |atomic: &AtomicU64| atomic.load(Ordering::Relaxed);
        let stats = self.modules.iter().map(|module| {
            let rare = module.rare();
            let state = usize::from(module.state.load(Ordering::Relaxed));
            ModuleStats {
                module: module.module.clone(),
                version: module.version.clone(),
                state: STATES.get(state).copied().unwrap_or(ModuleState::Failed),
                fault: rare.fault.clone(),
                records_in: of(&module.records_in),
                emitted: of(&module.emitted),
                dropped: of(&module.dropped),
                merged: of(&module.merged),
                held: of(&module.held),
                busy_ns: of(&module.busy_ns),
                calls: of(&module.calls),
                own: rare.own.clone(),
            }
        });
        stats.collect()
    }

    /// Name of the module at that place.
    pub fn module(&self, nth: usize) -> &str {
        self.modules.get(nth).map_or("", |module| &module.module)
    }

    /// Number of modules.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The place of the module that has been in one call for longer than it may, and for how long,
    /// as far as the watchdog has noticed.
    pub fn stuck(&self) -> Option<(usize, Duration)> {
        if self.stuck.load(Ordering::Relaxed) { self.watch.current() } else { None }
    }

    /// Notes whether a call takes longer than `limit`. Returns what to say if that has changed.
    pub fn look(&self, limit: Duration) -> Option<Noticed> {
        let long = self.watch.current().filter(|(_, since)| *since >= limit);
        let was = self.stuck.swap(long.is_some(), Ordering::Relaxed);
        match (was, long) {
            (false, Some((nth, since))) => Some(Noticed::Stuck { nth, since }),
            (true, None) => Some(Noticed::Returned),
            _ => None,
        }
    }

    pub(super) fn count(&self, nth: usize, now: &Counters) {
        let Some(module) = self.modules.get(nth) else { return };
        let set = |atomic: &AtomicU64, value| atomic.store(value, Ordering::Relaxed);
        set(&module.records_in, now.records_in);
        set(&module.emitted, now.emitted);
        set(&module.dropped, now.dropped);
        set(&module.merged, now.merged);
        set(&module.held, now.held);
        set(&module.busy_ns, now.busy_ns);
        set(&module.calls, now.calls);
    }

    pub(super) fn own(&self, nth: usize, own: Value) {
        if let Some(module) = self.modules.get(nth) {
            module.rare().own = own;
        }
    }

    pub(super) fn fault(&self, nth: usize, state: ModuleState, fault: String) {
        let Some(module) = self.modules.get(nth) else { return };
        let at = STATES.iter().position(|known| *known == state).unwrap_or(0);
        module.state.store(u8::try_from(at).unwrap_or(0), Ordering::Relaxed);
        module.rare().fault = Some(fault);
    }
}

impl ModuleFigures {
    fn rare(&self) -> std::sync::MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`ChainFigures::look`] noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// The module at that place has been in one call for so long.
    Stuck {
        /// Its place in the chain.
        nth: usize,
        /// How long.
        since: Duration,
    },
    /// The call that took too long is over.
    Returned,
}

/// Tells from another thread which call a chain is in, and for how long.
///
/// A module that never returns cannot be interrupted; it can only be noticed.
#[derive(Debug)]
pub struct CallWatch {
    made: Instant,
    /// 0: in no call; else the place in the chain plus one.
    stage: AtomicU64,
    /// When the call began, in nanoseconds since `made`.
    since: AtomicU64,
}

impl Default for CallWatch {
    fn default() -> Self {
        Self { made: Instant::now(), stage: AtomicU64::new(0), since: AtomicU64::new(0) }
    }
}

impl CallWatch {
    /// The place in the chain of the module that is being called, and for how long.
    pub fn current(&self) -> Option<(usize, Duration)> {
        let stage = self.stage.load(Ordering::Acquire);
        let since = Duration::from_nanos(self.since.load(Ordering::Acquire));
        let nth = usize::try_from(stage.checked_sub(1)?).ok()?;
        Some((nth, self.made.elapsed().saturating_sub(since)))
    }

    pub(super) fn enter(&self, stage: usize, now: Instant) {
        let since = now.saturating_duration_since(self.made).as_nanos();
        self.since.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Release);
        self.stage.store(stage as u64 + 1, Ordering::Release);
    }

    pub(super) fn leave(&self) {
        self.stage.store(0, Ordering::Release);
    }
}

/// The figures of the chain that a worker runs now: another one after each reload.
#[derive(Debug, Default)]
pub struct FiguresSlot(Mutex<Arc<ChainFigures>>);

impl FiguresSlot {
    /// The present ones.
    pub fn get(&self) -> Arc<ChainFigures> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another chain is at work.
    pub fn set(&self, figures: Arc<ChainFigures>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_call_is_noticed_once_and_its_end_too() {
        let figures = ChainFigures::default();
        let limit = Duration::from_secs(3600);
        assert_eq!(figures.look(Duration::ZERO), None, "no call is under way");
        figures.watch.enter(2, Instant::now());
        assert_eq!(figures.look(limit), None, "not long yet");
        assert!(matches!(figures.look(Duration::ZERO), Some(Noticed::Stuck { nth: 2, .. })));
        assert_eq!(figures.look(Duration::ZERO), None, "told already");
        assert_eq!(figures.stuck().map(|(nth, _)| nth), Some(2));
        figures.watch.leave();
        assert_eq!(figures.look(limit), Some(Noticed::Returned));
        assert_eq!((figures.look(limit), figures.stuck()), (None, None));
    }
}
