//! A stream's modules at work, one after another.
//!
//! Records are numbered when they are pushed. Each module's tokens are tied to those numbers from
//! end to end, so a pushed record is settled only when some module dropped it, or when it, or a record
//! that stands for it, came out at the end. Until then its bytes are kept: a module that fails is
//! taken out without losing anything, and a chain that is replaced hands over what it held.
#![forbid(unsafe_code)]

mod express;
mod handover;
mod places;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use lcap_ffi::record::split_len;
use lcap_ffi::{MdtName, RecordIndex};
use serde::Serialize;
use tracing::error;

use self::places::{Body, Buffer, MAX_MDTS, Made, MdtLog, PINNED_FACTOR, Places, Slot, Source};
use super::figures::Counters;
use super::output::ChainOutput;
use super::window::Window;
use super::{ChainFigures, Fault, Instance, Module, Nanos, OnError, PolicyConfig, PolicyError};
use crate::batch::{Batch, index_of};

/// A module that wants to be called again at once is called again after this time.
const MIN_WAKE_NS: u64 = 1_000_000;
/// Memory that held records may pin without being copied together.
const PINNED_SLACK_BYTES: usize = 1 << 20;
/// Modules are asked for their own figures no more often than this.
const OWN_EVERY_NS: u64 = 1_000_000_000;

pub use self::handover::{Held, HeldBatch};

/// A chain of modules, for one MDT of a stream, or for all of them if a module is shared.
#[derive(Debug)]
pub struct Chain {
    stages: Vec<Stage>,
    places: Places,
    /// What has passed the last module since the last pull.
    ready: Vec<Slot>,
    /// Nothing works any more: a module with `on_error = "stop"` failed.
    stopped: Option<(String, Fault)>,
    figures: Arc<ChainFigures>,
    own_figures_at: Nanos,
    /// The latest `now`: modules never see it go back.
    now: Nanos,
    held_bytes: usize,
    pinned_bytes: usize,
    /// For [`express`]: its buffers serve again.
    ranges: Vec<Range<usize>>,
    next_ranges: Vec<Range<usize>>,
}

/// One module of the chain.
#[derive(Debug)]
struct Stage {
    instance: Instance,
    config: PolicyConfig,
    /// Undecided tokens.
    slots: Window<Slot>,
    /// First token of each enqueue and when it was, for `max_hold`.
    ages: VecDeque<(u64, Nanos)>,
    wake_at: Option<Nanos>,
    fault: Option<Fault>,
    n_in: u64,
    n_emitted: u64,
    n_dropped: u64,
    n_merged: u64,
}

/// Whether a module is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleState {
    /// It is.
    Active,
    /// It failed and is skipped.
    Bypassed,
    /// It failed, and the stream with it.
    Failed,
}

impl ModuleState {
    /// Its name, as programs see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Bypassed => "bypassed",
            Self::Failed => "failed",
        }
    }
}

/// Figures of one module of a chain: `records_in = emitted + dropped + merged + held`.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleStats {
    /// Its name.
    pub module: String,
    /// Its version.
    pub version: String,
    /// Whether it is at work.
    pub state: ModuleState,
    /// What it did, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Records that it was given.
    pub records_in: u64,
    /// Records that it gave.
    pub emitted: u64,
    /// Records that it dropped.
    pub dropped: u64,
    /// Records that went into others of its making, less those.
    pub merged: u64,
    /// Records that it holds.
    pub held: u64,
    /// Time spent in it.
    pub busy_ns: u64,
    /// Calls into it.
    pub calls: u64,
    /// Its own figures.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub own: serde_json::Value,
}

impl Chain {
    /// A chain for one MDT.
    ///
    /// # Errors
    /// If an option is wrong or a module's `create` fails.
    pub fn new(
        modules: &[(Arc<Module>, PolicyConfig)],
        mdt: &MdtName,
    ) -> Result<Self, PolicyError> {
        Self::for_mdts(modules, std::slice::from_ref(mdt))
    }

    /// A chain for several MDTs, on one thread: what a shared module needs ([`Module::is_shared`]).
    /// MDTs are told apart by their place in `mdts`.
    ///
    /// # Errors
    /// If an option is wrong or a module's `create` fails.
    pub fn for_mdts(
        modules: &[(Arc<Module>, PolicyConfig)],
        mdts: &[MdtName],
    ) -> Result<Self, PolicyError> {
        if mdts.len() > MAX_MDTS
            && let Some((module, _)) = modules.first()
        {
            let problem = format!("it would see {} MDTs, {MAX_MDTS} are possible", mdts.len());
            return Err(PolicyError::Options { module: module.name().to_owned(), problem });
        }
        let loaded: Vec<Arc<Module>> = modules.iter().map(|(m, _)| Arc::clone(m)).collect();
        let figures = Arc::new(ChainFigures::of(&loaded));
        let stages = modules.iter().enumerate().map(|(nth, (module, config))| {
            Ok(Stage {
                instance: Instance::create(module, config, mdts, nth, &figures)?,
                config: config.clone(),
                slots: Window::new(1),
                ages: VecDeque::new(),
                wake_at: None,
                fault: None,
                n_in: 0,
                n_emitted: 0,
                n_dropped: 0,
                n_merged: 0,
            })
        });
        Ok(Self {
            stages: stages.collect::<Result<_, PolicyError>>()?,
            places: Places::new(mdts),
            ready: Vec::new(),
            stopped: None,
            figures,
            own_figures_at: Nanos(0),
            now: Nanos(0),
            held_bytes: 0,
            pinned_bytes: 0,
            ranges: Vec::new(),
            next_ranges: Vec::new(),
        })
    }

    /// No modules: batches may be passed on without the chain.
    pub fn is_identity(&self) -> bool {
        self.stages.is_empty()
    }

    /// What its modules do, for other threads.
    pub fn figures(&self) -> Arc<ChainFigures> {
        Arc::clone(&self.figures)
    }

    /// Some module makes records of its own, or drops by what is around a record: what comes out under
    /// an index may be another record when the chain runs again.
    pub fn merges(&self) -> bool {
        self.stages.iter().any(|stage| !stage.instance.module.is_verbatim())
    }

    /// Takes a batch of the (first) MDT.
    ///
    /// # Errors
    /// Only if a module with `on_error = "stop"` has failed.
    pub fn push(&mut self, batch: &Arc<Batch>, now: Nanos) -> Result<(), PolicyError> {
        self.push_from(0, batch, now)
    }

    /// Takes a batch of the MDT with that number; of one that there is not, nothing.
    ///
    /// # Errors
    /// Only if a module with `on_error = "stop"` has failed.
    pub fn push_from(
        &mut self,
        mdt: u32,
        batch: &Arc<Batch>,
        now: Nanos,
    ) -> Result<(), PolicyError> {
        self.check_stopped()?;
        self.now = self.now.max(now);
        let Some(log) = self.places.mdt_mut(mdt) else { return Ok(()) };
        if batch.is_empty() {
            return Ok(());
        }
        log.last = log.last.max(batch.last());
        let buffer = log.buffers.push(Buffer::new(Arc::clone(batch), self.now));
        self.held_bytes += batch.bytes.len();
        self.pinned_bytes += batch.bytes.len();
        let mut slots = Vec::with_capacity(batch.len());
        for nth in 0..batch.len() {
            let number = log.sources.push(Source::new(buffer, nth));
            slots.push(Slot::source(mdt, number));
        }
        self.pass(0, slots);
        self.publish();
        self.check_stopped()
    }

    /// Collects what is ready into `out`, which is cleared first. With `flush` nothing stays held.
    ///
    /// # Errors
    /// If a module with `on_error = "stop"` failed, now or before. `out` is empty then, and
    /// [`Chain::low`] has not moved.
    pub fn pull(
        &mut self,
        now: Nanos,
        flush: bool,
        out: &mut ChainOutput,
    ) -> Result<(), PolicyError> {
        out.clear();
        self.check_stopped()?;
        self.now = self.now.max(now);
        for nth in 0..self.stages.len() {
            self.run(nth, flush);
            self.check_stopped()?;
        }
        for slot in std::mem::take(&mut self.ready) {
            let (mdt, route) = (slot.mdt(), slot.route);
            match slot.body() {
                Body::Source(number) => self.settle(mdt, number, Some((&mut *out, route))),
                Body::Made(number) => {
                    let made = self.places.take_made(number);
                    for &number in &made.sources {
                        self.settle(mdt, number, None);
                    }
                    if let Some(log) = self.places.mdt_mut(mdt) {
                        log.dropped += made.sources.len() as u64 - 1;
                    }
                    out.push_bytes(mdt, &made.record, route);
                }
            }
        }
        out.end_run();
        for log in &mut self.places.mdts {
            log.low = log.first_unsettled().map_or(log.last, RecordIndex::prev);
        }
        self.unpin();
        self.publish();
        Ok(())
    }

    /// Every record of the (first) MDT that was pushed with an index up to this one was emitted or
    /// dropped when the last pull returned. Zero before that.
    pub fn low(&self) -> RecordIndex {
        self.low_of(0)
    }

    /// The same of the MDT with that number.
    pub fn low_of(&self, mdt: u32) -> RecordIndex {
        self.places.mdt(mdt).map_or(RecordIndex::ZERO, |log| log.low)
    }

    /// Records that are not settled.
    pub fn held(&self) -> u64 {
        self.places.mdts.iter().map(|log| log.sources.len() as u64).sum()
    }

    /// The same of the MDT with that number.
    pub fn held_of(&self, mdt: u32) -> u64 {
        self.places.mdt(mdt).map_or(0, |log| log.sources.len() as u64)
    }

    /// Highest index of the MDT with that number that was pushed.
    pub fn last_of(&self, mdt: u32) -> RecordIndex {
        self.places.mdt(mdt).map_or(RecordIndex::ZERO, |log| log.last)
    }

    /// Memory that they keep alive, as far as it is records. Pull with `flush` if it is too much.
    pub fn pinned_bytes(&self) -> usize {
        self.pinned_bytes
    }

    /// Pushed records that did not come out: dropped, or merged into others.
    pub fn dropped(&self) -> u64 {
        self.places.mdts.iter().map(|log| log.dropped).sum()
    }

    /// The same of the MDT with that number.
    pub fn dropped_of(&self, mdt: u32) -> u64 {
        self.places.mdt(mdt).map_or(0, |log| log.dropped)
    }

    /// When to pull at the latest, if nothing is pushed before.
    pub fn wake_at(&self) -> Option<Nanos> {
        let overdue = |stage: &Stage| stage.overdue_at();
        let stages = self.stages.iter().filter(|stage| stage.fault.is_none());
        stages.flat_map(|stage| [stage.wake_at, overdue(stage)]).flatten().min()
    }

    /// Figures, in the chain's order, the modules' own included.
    pub fn stats(&mut self) -> Vec<ModuleStats> {
        self.publish();
        self.publish_own();
        self.figures.snapshot()
    }

    /// Lets other threads see what was done.
    fn publish(&mut self) {
        for (nth, stage) in self.stages.iter().enumerate() {
            let counters = Counters {
                records_in: stage.n_in,
                emitted: stage.n_emitted,
                dropped: stage.n_dropped,
                merged: stage.n_merged,
                held: stage.slots.len() as u64,
                busy_ns: stage.instance.busy_ns,
                calls: stage.instance.n_calls,
            };
            self.figures.count(nth, &counters);
        }
        if self.now.0 >= self.own_figures_at.0 {
            self.own_figures_at = Nanos(self.now.0.saturating_add(OWN_EVERY_NS));
            self.publish_own();
        }
    }

    fn publish_own(&mut self) {
        for (nth, stage) in self.stages.iter_mut().enumerate() {
            if stage.fault.is_none() {
                let own = stage.instance.stats();
                self.figures.own(nth, own);
            }
        }
    }

    /// Up to where the (first) MDT may be cleared as far as this chain goes: `proposed`, or less if a
    /// module holds back. Without readers a module may allow more, up to [`Chain::low`].
    pub fn clear_upto(
        &mut self,
        readers: &[(String, RecordIndex)],
        proposed: RecordIndex,
    ) -> RecordIndex {
        self.clear_upto_of(0, readers, proposed)
    }

    /// The same of the MDT with that number.
    pub fn clear_upto_of(
        &mut self,
        mdt: u32,
        readers: &[(String, RecordIndex)],
        proposed: RecordIndex,
    ) -> RecordIndex {
        let low = self.low_of(mdt);
        let mut upto = proposed;
        for nth in 0..self.stages.len() {
            let stage = &mut self.stages[nth];
            if stage.fault.is_some() {
                continue;
            }
            match stage.instance.clear(mdt, readers, upto) {
                Ok(None) => {}
                Ok(Some(answer)) if readers.is_empty() => upto = answer.min(low.max(proposed)),
                Ok(Some(answer)) => upto = upto.min(answer),
                // What it held comes out with the next pull; until then it decides nothing.
                Err(fault) => self.fail(nth, fault),
            }
        }
        upto
    }

    /// The MDT with that number issues indexes from `from` on again. To be called when nothing of it
    /// is held.
    pub fn rewind_of(&mut self, mdt: u32, from: RecordIndex) {
        if let Some(log) = self.places.mdt_mut(mdt) {
            log.last = log.last.min(from.prev());
            log.low = log.low.min(from.prev());
        }
    }

    /// What is not settled, as it was pushed, for a chain that is to take the place of this one.
    pub fn held_records(&self) -> Held {
        let mut held = Held::default();
        for log in &self.places.mdts {
            held.add(log);
        }
        held
    }

    /// The same of the MDT with that number.
    pub fn held_records_of(&self, mdt: u32) -> Held {
        let mut held = Held::default();
        if let Some(log) = self.places.mdt(mdt) {
            held.add(log);
        }
        held
    }

    /// Goes on where a replaced chain stopped: pushes what it held and takes over its marks. To be
    /// called before anything else of these MDTs is pushed. MDTs that this chain does not have are
    /// left out.
    ///
    /// # Errors
    /// Only if a module with `on_error = "stop"` fails.
    pub fn adopt(&mut self, held: &Held, now: Nanos) -> Result<(), PolicyError> {
        for (name, last, low) in &held.marks {
            if let Some(log) = self.places.mdts.iter_mut().find(|log| log.name == *name) {
                (log.last, log.low) = (*last, *low);
            }
        }
        for HeldBatch { mdt, since, batch } in &held.batches {
            let nth = self.places.mdts.iter().position(|log| log.name == *mdt);
            if let Some(mdt) = nth.and_then(|nth| u32::try_from(nth).ok()) {
                // As old as they are: a chain that is replaced again and again holds nothing longer.
                self.push_from(mdt, batch, *since)?;
            }
        }
        self.now = self.now.max(now);
        Ok(())
    }

    fn check_stopped(&self) -> Result<(), PolicyError> {
        match &self.stopped {
            None => Ok(()),
            Some((module, fault)) => {
                Err(PolicyError::Failed { module: module.clone(), fault: fault.clone() })
            }
        }
    }

    /// Hands records to module `nth`, or to the first one after it that is at work.
    fn pass(&mut self, nth: usize, mut slots: Vec<Slot>) {
        if slots.is_empty() {
            return;
        }
        let at_work = (nth..self.stages.len()).find(|&nth| self.stages[nth].fault.is_none());
        let Some(nth) = at_work else {
            self.ready.append(&mut slots);
            return;
        };
        let (stage, places) = (&mut self.stages[nth], &self.places);
        stage.ages.push_back((stage.slots.next(), self.now));
        stage.n_in += slots.len() as u64;
        stage.instance.start_records();
        for slot in slots {
            stage.instance.add_record(stage.slots.next(), slot.mdt(), places.record(slot));
            stage.slots.push(slot);
        }
        if let Err(fault) = stage.instance.enqueue(self.now) {
            self.fail(nth, fault);
        }
    }

    /// Asks module `nth` for all that is ready and passes it on.
    fn run(&mut self, nth: usize, flush: bool) {
        let now = self.now;
        let stage = &mut self.stages[nth];
        if stage.fault.is_some() || stage.slots.len() == 0 {
            return;
        }
        let overdue = stage.overdue_at().is_some_and(|at| at <= now);
        let mut wake = u64::MAX;
        loop {
            let stage = &mut self.stages[nth];
            let (n, more) = match stage.instance.dequeue(now, flush || overdue, &mut wake) {
                Ok(answer) => answer,
                Err(fault) => return self.fail(nth, fault),
            };
            if let Some(fault) = self.carry_out(nth, n) {
                return self.fail(nth, fault);
            }
            if !more {
                break;
            }
        }
        let n_kept = self.stages[nth].after_answer(wake, now);
        if n_kept > 0 && (flush || overdue) {
            self.fail(nth, Fault::Kept(n_kept));
        }
    }

    /// Carries out the `n` decisions of module `nth`'s last answer, up to one that is against the contract.
    fn carry_out(&mut self, nth: usize, n: usize) -> Option<Fault> {
        let stage = &mut self.stages[nth];
        let mut passed_on = Vec::with_capacity(n);
        let mut settled = Vec::new();
        let fault = (0..n).find_map(|entry| {
            stage.apply(entry, &mut self.places, &mut passed_on, &mut settled).err()
        });
        for (mdt, number) in settled {
            self.settle(mdt, number, None);
            if let Some(log) = self.places.mdt_mut(mdt) {
                log.dropped += 1;
            }
        }
        self.pass(nth + 1, passed_on);
        fault
    }

    /// Takes module `nth` out of the chain, or stops the chain.
    fn fail(&mut self, nth: usize, fault: Fault) {
        let stage = &mut self.stages[nth];
        let module = stage.instance.module.name().to_owned();
        let said = stage.instance.last_error().unwrap_or_default();
        let mdt = self.places.mdts.first().map(|log| log.name.to_string()).unwrap_or_default();
        let held = stage.slots.len();
        stage.fault = Some(fault.clone());
        stage.wake_at = None;
        let state = match stage.config.on_error {
            OnError::Stop => ModuleState::Failed,
            OnError::Bypass => ModuleState::Bypassed,
        };
        self.figures.fault(nth, state, fault.to_string());
        match stage.config.on_error {
            OnError::Stop => {
                error!(module, mdt, held, %fault, said, "policy module failed, the stream stops");
                self.stopped = Some((module, fault));
            }
            OnError::Bypass => {
                error!(
                    module, mdt, held, %fault, said,
                    "policy module failed, going on without it; what it held is emitted unchanged"
                );
                stage.ages.clear();
                let held = stage.slots.drain();
                self.pass(nth + 1, held);
            }
        }
    }

    /// A pushed record is done with; it is emitted first, if there is an output.
    fn settle(&mut self, mdt: u32, number: u64, out: Option<(&mut ChainOutput, u64)>) {
        let Some(log) = self.places.mdt_mut(mdt) else { return };
        let Some(source) = log.sources.take(number) else { return };
        let (number, nth) = (source.buffer(log.buffers.next()), source.nth());
        let Some(buffer) = log.buffers.get_mut(number) else { return };
        let size = buffer.batch.record(nth).len();
        if let Some((out, route)) = out {
            out.push(mdt, number, &buffer.batch, nth, route);
        }
        buffer.n_live -= 1;
        buffer.live_bytes -= size;
        self.held_bytes -= size;
        if buffer.n_live == 0 {
            self.pinned_bytes -= buffer.batch.bytes.len();
            log.buffers.take(number);
        }
    }

    /// Copies held records together if they pin much more memory than they need, and no module has
    /// pointers to them.
    fn unpin(&mut self) {
        if self.pinned_bytes <= PINNED_SLACK_BYTES + PINNED_FACTOR * self.held_bytes {
            return;
        }
        let at_work = |stage: &&Stage| stage.fault.is_none() && stage.slots.len() > 0;
        let mut holding = self.stages.iter().filter(at_work);
        if holding.all(|stage| stage.instance.module.keeps_no_pointers()) {
            self.pinned_bytes = self.places.mdts.iter_mut().map(MdtLog::copy_together).sum();
        }
    }
}

impl Stage {
    /// Carries out decision `nth` of the module's last answer. Tokens before a bad one of the same
    /// decision are carried out, unless the decision makes one record of them.
    fn apply(
        &mut self,
        nth: usize,
        places: &mut Places,
        passed_on: &mut Vec<Slot>,
        settled: &mut Vec<(u32, u64)>,
    ) -> Result<(), Fault> {
        let Self { instance, slots, .. } = self;
        let decision = instance.decision(nth, slots.len())?;
        if let Some(record) = decision.record {
            if instance.module.is_verbatim() {
                let token = decision.tokens.iter().next().unwrap_or_default();
                let problem =
                    "it is of the module's making, and the module says that it makes none";
                return Err(Fault::Record { token, problem: problem.to_owned() });
            }
            let tokens: Vec<u64> = decision.tokens.iter().collect();
            let made = merge(slots, places, &tokens, record, decision.route)?;
            self.n_emitted += 1;
            self.n_merged += tokens.len() as u64 - 1;
            passed_on.push(made);
            return Ok(());
        }
        for token in decision.tokens.iter() {
            let mut slot = slots.take(token).ok_or(Fault::Token(token))?;
            if decision.emit {
                self.n_emitted += 1;
                if decision.route != 0 {
                    slot.route = decision.route;
                }
                passed_on.push(slot);
            } else {
                self.n_dropped += 1;
                let mdt = slot.mdt();
                match slot.body() {
                    Body::Source(number) => settled.push((mdt, number)),
                    Body::Made(number) => {
                        let made = places.take_made(number);
                        settled.extend(made.sources.iter().map(|&number| (mdt, number)));
                    }
                }
            }
        }
        Ok(())
    }

    /// When the oldest held record has been held for as long as it may.
    fn overdue_at(&self) -> Option<Nanos> {
        let max_hold = u64::try_from(self.config.max_hold.as_nanos()).unwrap_or(u64::MAX);
        self.ages.front().map(|(_, since)| Nanos(since.0.saturating_add(max_hold)))
    }

    /// Notes what is held after the module's last answer, and when it wants to be asked again. Returns
    /// how many records that are.
    fn after_answer(&mut self, wake: u64, now: Nanos) -> usize {
        self.forget_ages();
        let n_kept = self.slots.len();
        self.wake_at = (n_kept > 0 && wake != u64::MAX)
            .then(|| Nanos(wake.max(now.0.saturating_add(MIN_WAKE_NS))));
        n_kept
    }

    /// Forgets when records came that are decided by now.
    fn forget_ages(&mut self) {
        let Some((oldest, _)) = self.slots.first() else { return self.ages.clear() };
        while self.ages.get(1).is_some_and(|(first, _)| *first <= oldest) {
            self.ages.pop_front();
        }
    }
}

/// Takes the slots of `tokens` and makes one of them, with a record of the module's making.
fn merge(
    slots: &mut Window<Slot>,
    places: &mut Places,
    tokens: &[u64],
    record: &[u8],
    route: u64,
) -> Result<Slot, Fault> {
    // As a rule it is one.
    let mut sorted = if tokens.len() > 1 { tokens.to_vec() } else { Vec::new() };
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Fault::Token(twice[0]));
    }
    let first = tokens.first().copied().unwrap_or(0);
    let bad = |problem: String| Fault::Record { token: first, problem };
    let (mut lowest, mut mdt) = (RecordIndex::new(u64::MAX), None);
    for &token in tokens {
        let slot = *slots.get(token).ok_or(Fault::Token(token))?;
        lowest = lowest.min(index_of(places.record(slot)));
        if *mdt.get_or_insert(slot.mdt()) != slot.mdt() {
            return Err(bad("its tokens are of several MDTs".to_owned()));
        }
    }
    let (size, index) = split_len(record).map_err(|problem| bad(problem.to_string()))?;
    if size != record.len() {
        return Err(bad(format!("it has {size} bytes where {} are given", record.len())));
    }
    if index != lowest {
        return Err(bad(format!("its index is {index}, the lowest of its tokens is {lowest}")));
    }
    let (mut sources, mut old_route) = (Vec::with_capacity(tokens.len()), 0);
    for slot in tokens.iter().filter_map(|&token| slots.take(token)) {
        if old_route == 0 {
            old_route = slot.route;
        }
        match slot.body() {
            Body::Source(number) => sources.push(number),
            Body::Made(number) => sources.extend(places.take_made(number).sources),
        }
    }
    let number = places.made.push(Made { record: record.into(), sources });
    let route = if route == 0 { old_route } else { route };
    let mut slot = Slot::made(mdt.unwrap_or(0), number);
    slot.route = route;
    Ok(slot)
}
