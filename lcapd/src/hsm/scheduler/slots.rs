//! Batches: for a time, a worker's slot takes archives of one tag only, to spare tape movements.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Now;

/// How archives are batched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// A slot without a request of its tag for so long is free again.
    pub idle: Duration,
    /// A slot that others wait for is given up after this, whatever waits.
    pub max: Option<Duration>,
    /// Slots of each worker.
    pub slots: u32,
}

/// One slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is now.
    pub tag: Option<Box<[u8]>>,
    /// Free from then on, unless requests wait.
    pub idle_until: Now,
    /// Free from then on for others.
    pub max_until: Option<Now>,
}

impl Slot {
    fn is_over(&self, now: Now) -> bool {
        self.tag.is_some() && self.max_until.is_some_and(|until| until <= now)
    }
}

#[derive(Debug, Default)]
struct Held {
    slots: Vec<Slot>,
    /// What runs on the worker, by tag.
    running: BTreeMap<Box<[u8]>, u32>,
    away: bool,
    over: bool,
}

/// The slots of all workers.
#[derive(Debug, Default)]
pub struct Slots {
    batching: Option<Batching>,
    workers: BTreeMap<String, Held>,
    /// Requests that may start, by tag.
    waiting: HashMap<Box<[u8]>, usize>,
}

impl Slots {
    pub(super) fn new(batching: Option<Batching>) -> Self {
        Self { batching, ..Self::default() }
    }

    /// Those of one worker.
    pub fn of(&self, worker: &str) -> &[Slot] {
        self.workers.get(worker).map_or(&[], |held| &held.slots)
    }

    /// What of a tag runs on a worker.
    pub fn running(&self, worker: &str, tag: &[u8]) -> u32 {
        let held = self.workers.get(worker);
        held.and_then(|held| held.running.get(tag)).copied().unwrap_or_default()
    }

    pub(super) fn joined(&mut self, tag: &[u8], now: Now) {
        let Some(batching) = self.batching.filter(|_| !tag.is_empty()) else { return };
        let waiting = self.waiting.entry(tag.into()).or_default();
        let first = *waiting == 0;
        *waiting += 1;
        for slot in self.workers.values_mut().flat_map(|held| &mut held.slots) {
            if slot.tag.as_deref() != Some(tag) {
                continue;
            }
            if first && slot.idle_until <= now {
                *slot = Slot::default();
            } else {
                slot.idle_until = now + batching.idle;
            }
        }
    }

    pub(super) fn left(&mut self, tag: &[u8]) {
        if let Some(waiting) = self.waiting.get_mut(tag) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(tag);
            }
        }
    }

    /// Frees slots whose time is over.
    pub(super) fn refresh(&mut self, worker: &str, now: Now) {
        let Some(batching) = self.batching else { return };
        if !self.workers.contains_key(worker) {
            self.workers.insert(worker.to_owned(), Held::default());
        }
        let Some(held) = self.workers.get_mut(worker) else { return };
        held.slots.resize_with(batching.slots as usize, Slot::default);
        held.away = false;
        for slot in &mut held.slots {
            let idle = slot.tag.as_ref().is_some_and(|tag| !self.waiting.contains_key(tag));
            if idle && slot.idle_until <= now {
                *slot = Slot::default();
            }
        }
        held.over = held.slots.iter().any(|slot| slot.is_over(now));
    }

    /// Whether a new tag could have a slot.
    pub(super) fn has_free(&self, worker: &str, now: Now) -> bool {
        self.of(worker).iter().any(|slot| slot.tag.is_none() || slot.is_over(now))
    }

    /// Whether a slot's time is over though its tag has more.
    pub(super) fn has_over(&self, worker: &str) -> bool {
        self.workers.get(worker).is_some_and(|held| held.over)
    }

    /// Whether a tag is a connected worker's.
    pub(super) fn is_taken(&self, tag: &[u8]) -> bool {
        let here = self.workers.values().filter(|held| !held.away);
        here.flat_map(|held| &held.slots).any(|slot| slot.tag.as_deref() == Some(tag))
    }

    /// Tags of a worker's slots whose time is not over (or is, if `over`), if a slot may have more
    /// of them: all slots together `most`, each an equal part.
    pub(super) fn tags_with_room(
        &self,
        worker: &str,
        most: Option<u32>,
        over: bool,
        now: Now,
    ) -> impl Iterator<Item = &[u8]> {
        let slots = self.of(worker);
        let n = u32::try_from(slots.len()).unwrap_or(u32::MAX).max(1);
        let tags = slots.iter().filter(move |slot| slot.is_over(now) == over);
        tags.filter_map(|slot| slot.tag.as_deref())
            .filter(move |tag| most.is_none_or(|most| self.running(worker, tag) < most.div_ceil(n)))
    }

    /// Gives a slot to a tag.
    pub(super) fn open(&mut self, worker: &str, tag: &[u8], now: Now) {
        let Some(batching) = self.batching else { return };
        let Some(held) = self.workers.get_mut(worker) else { return };
        let best = held.slots.iter_mut().min_by_key(|slot| {
            let own = slot.tag.as_deref() == Some(tag);
            (!own, slot.tag.is_some(), slot.max_until)
        });
        if let Some(slot) = best {
            *slot = Slot {
                tag: Some(tag.into()),
                idle_until: now + batching.idle,
                max_until: batching.max.map(|max| now + max),
            };
        }
    }

    pub(super) fn sent(&mut self, worker: &str, tag: &[u8], now: Now) {
        let Some(batching) = self.batching.filter(|_| !tag.is_empty()) else { return };
        let held = self.workers.entry(worker.to_owned()).or_default();
        *held.running.entry(tag.into()).or_default() += 1;
        for slot in held.slots.iter_mut().filter(|slot| slot.tag.as_deref() == Some(tag)) {
            slot.idle_until = now + batching.idle;
        }
    }

    pub(super) fn ended(&mut self, worker: &str, tag: &[u8]) {
        let Some(held) = self.workers.get_mut(worker) else { return };
        if let Some(running) = held.running.get_mut(tag) {
            *running -= 1;
            if *running == 0 {
                held.running.remove(tag);
            }
        }
    }

    pub(super) fn set_connected(&mut self, worker: &str, connected: bool) {
        if let Some(held) = self.workers.get_mut(worker) {
            held.away = !connected;
        }
    }

    pub(super) fn forget(&mut self, worker: &str) {
        self.workers.remove(worker);
    }

    /// When the next slot's time is over.
    pub(super) fn next_deadline(&self, now: Now) -> Option<Now> {
        let slots = self.workers.values().filter(|held| !held.away).flat_map(|held| &held.slots);
        let ends = slots
            .filter(|slot| slot.tag.is_some())
            .flat_map(|slot| [Some(slot.idle_until), slot.max_until].into_iter().flatten());
        ends.filter(|end| *end > now).min()
    }
}
