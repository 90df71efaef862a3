//! What was read from one MDT and still lies in memory: a bounded log that streams follow.
//!
//! The reader thread appends; any number of followers read, each at its own place. The log drops
//! its oldest entries to stay within its limit. Before it does, it waits a little for followers
//! that are merely busy; it never waits for one that waits for its own consumers.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lcap_ffi::RecordIndex;

use crate::batch::Batch;
use crate::last_read::LastRead;
use crate::overlap::{Digest, KEPT_DIGESTS, digest};
use crate::wake::Waker;

/// How long the reader waits for a busy follower before it lets it fall behind.
const PATIENCE: Duration = Duration::from_secs(1);
/// Small batches that wait are given out together, up to this size.
const JOIN_BYTES: usize = 64 << 10;

/// What happened on an MDT, in the order of delivery.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Records.
    Records(Arc<Batch>),
    /// Records are gone, or a new history of the MDT begins.
    Gap(Gap),
}

/// Records that the MDT lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First index that is missing; in a new generation, the lowest that is issued again.
    pub first: RecordIndex,
    /// Last index that is missing; zero if not known.
    pub last: RecordIndex,
    /// The generation from here on.
    pub generation: u16,
    /// The MDT issues indexes from `first` on again: a new generation begins.
    pub rewinds: bool,
}

/// A bounded log of one MDT.
#[derive(Debug)]
pub struct MdtLog {
    limit_bytes: usize,
    state: Mutex<State>,
    moved: Condvar,
    /// Wakes the reader thread.
    reader: Waker,
    /// Somebody wants to know the source's present end.
    end_wanted: AtomicBool,
    /// The MDT has forgotten up to here.
    gone: AtomicU64,
    /// What is read is noted there before anybody gets it.
    last_read: Option<Mutex<LastRead>>,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Serial number of `entries[0]`.
    base: u64,
    /// Every record with at least this index that was read lies in `entries`.
    covers_from: RecordIndex,
    /// After the newest record that was read.
    next: RecordIndex,
    generation: u16,
    /// Histories that began since the log did, and the first index of each.
    rewinds: Vec<(u16, RecordIndex)>,
    /// What an earlier life of lcapd had read last. It knew more than this log until that has
    /// been read again.
    known: Vec<Digest>,
    /// Histories that have ended, and what was read last of each: as long as the engine's state
    /// is of one of them, that is what has to be remembered with it.
    ended: Vec<(u16, Vec<Digest>)>,
    /// The source had nothing more when it was asked last.
    at_end: bool,
    followers: Followers,
}

/// They are woken after the log is unlocked, so that nobody wakes only to wait for it: a snapshot is cheap.
type Followers = Arc<[Arc<Place>]>;

fn wake_all(followers: &Followers) {
    for follower in followers.iter() {
        follower.waker.wake();
    }
}

/// Where a follower is, for the reader thread to see.
#[derive(Debug)]
pub struct Place {
    serial: AtomicU64,
    /// The reader may wait for it: it is in memory, and not waiting for its own consumers.
    attached: AtomicBool,
    waker: Waker,
}

/// Where a follower's place is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// In memory, at this serial.
    At(u64),
    /// Records from there on are no longer in memory.
    Nowhere,
    /// Its indexes are of an older history; this came since.
    Rewound(Gap),
}

/// Answer to a follower.
#[derive(Debug)]
pub enum Lookup {
    /// The next entry, and the serial after it.
    Found(Entry, u64),
    /// Nothing new; its waker will be woken. Whether the source has nothing more, either.
    Head {
        /// The source had nothing more when it was asked last.
        at_end: bool,
    },
    /// No longer in memory.
    Dropped,
}

impl MdtLog {
    /// An empty log of at most `limit_bytes`, beginning at `start`. `known` is what was read last
    /// in an earlier life, in order. `reader` wakes the thread that fills it.
    pub fn new(
        limit_bytes: usize,
        start: RecordIndex,
        generation: u16,
        known: Vec<Digest>,
        reader: Waker,
    ) -> Self {
        let state = State {
            entries: VecDeque::new(),
            bytes: 0,
            base: 0,
            covers_from: start,
            next: start,
            generation,
            rewinds: Vec::new(),
            known,
            ended: Vec::new(),
            at_end: false,
            followers: Followers::default(),
        };
        let (state, moved) = (Mutex::new(state), Condvar::new());
        let (end_wanted, gone) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { limit_bytes, state, moved, reader, end_wanted, gone, last_read: None }
    }

    /// Notes there what is read, before anybody gets it.
    #[must_use]
    pub fn noting(self, last_read: LastRead) -> Self {
        Self { last_read: Some(Mutex::new(last_read)), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends; called by the reader thread only. May wait up to a second for busy followers.
    pub fn push(&self, entry: Entry, stop: &AtomicBool) {
        if let Some(last_read) = &self.last_read {
            let mut last_read = last_read.lock().unwrap_or_else(PoisonError::into_inner);
            match &entry {
                Entry::Records(batch) => last_read.note(batch),
                Entry::Gap(gap) if gap.rewinds => last_read.begin(gap.generation, gap.first),
                Entry::Gap(_) => {}
            }
        }
        let mut state = self.lock();
        let deadline = Instant::now() + PATIENCE;
        while state.bytes >= self.limit_bytes && !stop.load(Ordering::Relaxed) {
            let oldest_needed = state.oldest_needed();
            if oldest_needed.is_some_and(|serial| serial <= state.base) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.detach_laggards();
                    continue;
                }
                let waited = self.moved.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else if !state.drop_oldest() {
                break;
            }
        }
        match &entry {
            Entry::Records(batch) => {
                state.bytes += batch.memory_bytes();
                state.next = batch.last().next();
            }
            Entry::Gap(gap) => {
                if gap.rewinds {
                    let (ended, tail) = (state.generation, state.tail(KEPT_DIGESTS));
                    state.ended.push((ended, tail));
                    state.known.retain(|(index, _)| *index < gap.first);
                    state.forget_from(*gap);
                    self.gone.fetch_min(gap.first.prev().get(), Ordering::AcqRel);
                    state.rewinds.push((gap.generation, gap.first));
                    // From here on all of the new history lies in memory.
                    state.next = gap.first;
                    state.covers_from = state.covers_from.min(gap.first);
                } else {
                    state.next = gap.last.next().max(state.next);
                }
                state.generation = gap.generation;
            }
        }
        state.entries.push_back(entry);
        state.at_end = false;
        let followers = Arc::clone(&state.followers);
        drop(state);
        wake_all(&followers);
    }

    /// The MDT has forgotten everything up to `upto`.
    pub fn set_gone(&self, upto: RecordIndex) {
        self.gone.fetch_max(upto.get(), Ordering::AcqRel);
    }

    /// The MDT has forgotten everything up to here: who has to read it from there is too late.
    pub fn gone(&self) -> RecordIndex {
        RecordIndex::new(self.gone.load(Ordering::Acquire))
    }

    /// Says that the source has nothing more at present.
    pub fn set_at_end(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.at_end, true) {
            let followers = Arc::clone(&state.followers);
            drop(state);
            wake_all(&followers);
        }
    }

    /// Asks for the source's present end: [`Lookup::Head`] says `at_end` only once every record
    /// that exists now was read.
    pub fn want_end(&self) {
        self.lock().at_end = false;
        self.end_wanted.store(true, Ordering::SeqCst);
        self.reader.wake();
    }

    /// Whether somebody asked, once.
    pub fn take_end_wanted(&self) -> bool {
        self.end_wanted.swap(false, Ordering::SeqCst)
    }

    /// Whether somebody asked.
    pub fn is_end_wanted(&self) -> bool {
        self.end_wanted.load(Ordering::SeqCst)
    }

    /// The index after the newest record read, and the generation.
    pub fn head(&self) -> (RecordIndex, u16) {
        let state = self.lock();
        (state.next, state.generation)
    }

    /// Registers a follower.
    pub fn follow(&self, waker: Waker) -> Arc<Place> {
        let place =
            Arc::new(Place { serial: AtomicU64::new(0), attached: AtomicBool::new(false), waker });
        let mut state = self.lock();
        state.followers = state.followers.iter().chain([&place]).cloned().collect();
        drop(state);
        place
    }

    /// Removes a follower.
    pub fn unfollow(&self, place: &Arc<Place>) {
        let mut state = self.lock();
        let others = state.followers.iter().filter(|other| !Arc::ptr_eq(other, place));
        state.followers = others.cloned().collect();
        drop(state);
        self.moved.notify_all();
    }

    /// Serial of the entry that holds the first record with an index of at least `from`, or of the
    /// next entry to come if none does. `generation` is the history that `from` belongs to.
    pub fn find(&self, from: RecordIndex, generation: u16) -> Found {
        let state = self.lock();
        if generation != state.generation {
            let since = state.rewinds.iter().filter(|(began, _)| *began > generation);
            if let Some(first) = since.map(|&(_, first)| first).min() {
                let (last, generation) = (RecordIndex::ZERO, state.generation);
                return Found::Rewound(Gap { first, last, generation, rewinds: true });
            }
        }
        if from < state.covers_from {
            return Found::Nowhere;
        }
        let mut at = state.entries.len();
        while let Some(entry) = at.checked_sub(1).and_then(|i| state.entries.get(i)) {
            let found = match entry {
                Entry::Records(batch) => batch.last() < from,
                // What lies before it is below `first`.
                Entry::Gap(gap) => gap.rewinds && gap.first <= from,
            };
            if found {
                break;
            }
            at -= 1;
        }
        Found::At(state.base + at as u64)
    }

    /// The entry at `serial`. Small batches that lie there together come as one.
    pub fn get(&self, place: &Place, serial: u64) -> Lookup {
        let state = self.lock();
        let Some(at) = serial.checked_sub(state.base).and_then(|at| usize::try_from(at).ok())
        else {
            place.attached.store(false, Ordering::Relaxed);
            return Lookup::Dropped;
        };
        let Some(entry) = state.entries.get(at) else {
            place.settle_at(serial);
            return Lookup::Head { at_end: state.at_end };
        };
        let mut small: Vec<Arc<Batch>> = Vec::new();
        let mut bytes = 0;
        for entry in state.entries.range(at..) {
            let Entry::Records(batch) = entry else { break };
            bytes += batch.bytes().len();
            if bytes > JOIN_BYTES {
                break;
            }
            small.push(Arc::clone(batch));
        }
        if small.len() < 2 {
            let entry = entry.clone();
            place.settle_at(serial + 1);
            drop(state);
            self.moved.notify_all();
            return Lookup::Found(entry, serial + 1);
        }
        let next = serial + small.len() as u64;
        place.settle_at(next);
        drop(state);
        self.moved.notify_all();
        match Batch::join(&small) {
            Some(joined) => Lookup::Found(Entry::Records(Arc::new(joined)), next),
            None => Lookup::Found(Entry::Records(Arc::clone(&small[0])), serial + 1),
        }
    }

    /// Digests of the newest records, `n` at most, of all that is known of the present history, in
    /// order.
    pub fn tail(&self, n: usize) -> Vec<Digest> {
        self.lock().tail(n)
    }

    /// What is to be remembered with state that is of history `generation`: its newest records.
    /// Nothing if the log has not heard of that history yet; what is remembered already will do.
    pub fn tail_of(&self, generation: u16) -> Vec<Digest> {
        let mut state = self.lock();
        if state.generation == generation {
            state.ended.clear();
            return state.tail(KEPT_DIGESTS);
        }
        let ended = state.ended.iter().find(|(ended, _)| *ended == generation);
        ended.map(|(_, tail)| tail.clone()).unwrap_or_default()
    }

    /// Whether a follower that was told "nothing at `serial`" would be told something else now.
    pub fn has_news(&self, serial: u64, at_end: bool) -> bool {
        let state = self.lock();
        state.base + state.entries.len() as u64 > serial || state.at_end != at_end
    }

    /// Memory that the entries take.
    pub fn memory_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Wakes every follower, so that it looks at its own state.
    pub fn wake_all(&self) {
        let followers = Arc::clone(&self.lock().followers);
        wake_all(&followers);
    }
}

impl Place {
    fn settle_at(&self, serial: u64) {
        self.serial.store(serial, Ordering::Relaxed);
        self.attached.store(true, Ordering::Relaxed);
    }

    /// The follower now waits for its own consumers: the reader is not to wait for it.
    pub fn detach(&self) {
        self.attached.store(false, Ordering::Relaxed);
    }
}

impl State {
    /// See [`MdtLog::tail`].
    fn tail(&self, n: usize) -> Vec<Digest> {
        let newest = |known: &[Digest]| known[known.len().saturating_sub(n)..].to_vec();
        // Until what an earlier life had read is read again, that says more than the log: a new
        // history may begin between the two.
        if self.known.last().is_some_and(|&(index, _)| index >= self.next) {
            return newest(&self.known);
        }
        let mut batches = Vec::new();
        let mut found = 0;
        for entry in self.entries.iter().rev() {
            match entry {
                Entry::Records(batch) if found < n => {
                    found += batch.len();
                    batches.push(batch);
                }
                Entry::Gap(_) => {} // what lies before it is of the present history, too
                Entry::Records(_) => break,
            }
        }
        if batches.is_empty() {
            return newest(&self.known);
        }
        let records = batches.iter().rev().flat_map(|batch| batch.records());
        records.skip(found.saturating_sub(n)).map(|record| digest(&record)).collect()
    }

    fn oldest_needed(&self) -> Option<u64> {
        let attached = self.followers.iter().filter(|f| f.attached.load(Ordering::Relaxed));
        attached.map(|f| f.serial.load(Ordering::Relaxed)).min()
    }

    fn detach_laggards(&self) {
        for follower in self.followers.iter() {
            if follower.serial.load(Ordering::Relaxed) <= self.base {
                follower.detach();
            }
        }
    }

    /// Records from `gap.first` on are void. Serials stay: what is taken out leaves the gap in its
    /// place, which is no news to who has passed it already.
    fn forget_from(&mut self, gap: Gap) {
        for entry in self.entries.iter_mut().rev() {
            let batch = match entry {
                Entry::Records(batch) if batch.last() < gap.first => break,
                Entry::Records(batch) => batch,
                // A hole in what is void is none.
                Entry::Gap(hole) if !hole.rewinds && hole.last >= gap.first => {
                    let last = gap.first.prev();
                    *hole = if hole.first < gap.first { Gap { last, ..*hole } } else { gap };
                    continue;
                }
                Entry::Gap(_) => continue,
            };
            self.bytes = self.bytes.saturating_sub(batch.memory_bytes());
            *entry = match batch.head_before(gap.first) {
                Some(head) => {
                    self.bytes += head.memory_bytes();
                    Entry::Records(Arc::new(head))
                }
                None => Entry::Gap(gap),
            };
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else { return false };
        self.base += 1;
        match entry {
            Entry::Records(batch) => {
                self.bytes = self.bytes.saturating_sub(batch.memory_bytes());
                self.covers_from = batch.last().next();
            }
            Entry::Gap(gap) => self.covers_from = gap.last.next().max(gap.first),
        }
        true
    }
}
