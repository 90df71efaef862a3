//! Who gets which request next. Holds what may start now, sorted; no I/O.
//!
//! Requests that a worker may take or leave together are a *group*: one kind, archive id, set of
//! flags and choice of hosts. So none stands before another that could go. In a group there is a
//! part per *share* (a user, say), and, if archives are batched, per *tag*.
//!
//! The kind is chosen by a fixed order or by weights with aging, then the share that had least, then
//! the request of the lowest rank, and of these the oldest.
#![forbid(unsafe_code)]

pub mod hosts;
pub mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::{Kind, Request, Source, UNKNOWN_OWNER, tag_value};
use hosts::{HostSet, Rule};
use slots::{Batching, Slots};

/// Time since 1970, given by the caller; it never goes back within one life.
pub type Now = Duration;

/// How many requests that do not fit are passed over in one line before it is left.
const LOOK_PAST: usize = 64;

/// Which kind goes first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// As long as one of the first kind can go, it goes.
    Fixed([Kind; 3]),
    /// The kind with the greatest `weight + aging * minutes` goes, where the minutes are those that
    /// its oldest request has waited.
    Weighted {
        /// By kind, in the order archive, restore, remove.
        weights: [f64; 3],
        /// Added for each minute.
        aging: f64,
    },
}

/// Who shares with whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ShareBy {
    /// Nobody: first come, first served.
    #[default]
    None,
    /// Owners of files.
    Uid,
    /// Groups of files.
    Gid,
    /// Projects.
    Project,
    /// Values of a key in the data, written with its `=`.
    Tag(String),
}

/// One that shares: the bytes of its number, or of its tag.
pub type Share = Box<[u8]>;

/// What may run at once, besides what each worker allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// On one worker.
    pub worker: Option<u32>,
    /// On the workers named.
    pub workers: BTreeMap<String, u32>,
    /// By kind, in the order archive, restore, remove.
    pub kind: [Option<u32>; 3],
    /// By archive id.
    pub archive: BTreeMap<u32, u32>,
    /// Of one share.
    pub share: Option<u32>,
}

/// What a site has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Which kind goes first.
    pub order: Order,
    /// Who shares.
    pub share_by: ShareBy,
    /// Shares that get more or less than 1.
    pub share_weights: BTreeMap<Share, f64>,
    /// What may run at once.
    pub limits: Limits,
    /// `archive_on_hosts` and `archive_on_hosts_ch`, in the order of the file.
    pub rules: Vec<Rule>,
    /// Archives of one tag stay on one worker for a time.
    pub batching: Option<Batching>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            order: Order::Fixed(Kind::ALL),
            share_by: ShareBy::None,
            share_weights: BTreeMap::new(),
            limits: Limits::default(),
            rules: Vec::new(),
            batching: None,
        }
    }
}

/// Nothing that this matches is started. What is `None` matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lock {
    /// Only on this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Only this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Only this archive id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_id: Option<u32>,
}

impl Lock {
    /// Whether it is meant for such a request on such a worker.
    pub fn matches(&self, worker: &str, kind: Kind, archive_id: u32) -> bool {
        self.worker.as_deref().is_none_or(|w| w == worker)
            && self.kind.is_none_or(|k| k == kind)
            && self.archive_id.is_none_or(|a| a == archive_id)
    }
}

/// What a worker can take now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wants {
    /// How many requests, at most.
    pub n: u32,
    /// How many may run on it in all, by kind (archive, restore, remove).
    pub running: [Option<u32>; 3],
    /// How many bytes, if each request counts as [`Self::item_bytes`] and its data.
    pub bytes: Option<u64>,
    /// What a request takes besides its data.
    pub item_bytes: u64,
    /// Only requests that have archive id and flags in common, as Lustre's lists do.
    pub uniform: bool,
}

impl Wants {
    /// As many requests, of any kind and size.
    pub fn any(n: u32) -> Self {
        Self { n, running: [None; 3], bytes: None, item_bytes: 0, uniform: false }
    }
}

/// A worker, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Taker<'a> {
    /// Its name, which is what rules call a host.
    pub name: &'a str,
    /// What it can do.
    pub kinds: &'a [Kind],
    /// Archives that it serves; all, and 0, if there is none.
    pub archive_ids: &'a [u32],
    /// It can do what an upcall asked for.
    pub upcalls: bool,
    /// What runs on it, by kind.
    pub running: [u32; 3],
}

/// What the scheduler asks of a request in line.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How long its data is.
    pub data_bytes: u64,
    /// When it was taken in.
    pub received: Now,
}

/// A worker that asks for work.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Who asks.
    pub taker: Taker<'a>,
    /// For what.
    pub wants: &'a Wants,
    /// How much more fits in what it gets.
    pub bytes_left: Option<u64>,
    /// Archive id and flags of what it has got already, if all must have the same.
    pub uniform: Option<(u32, u64)>,
    /// What is locked.
    pub locks: &'a BTreeSet<Lock>,
    /// Looks at a request.
    pub look: &'a dyn Fn(u64) -> Look,
    /// The time.
    pub now: Now,
}

impl std::fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask")
            .field("taker", &self.taker)
            .field("wants", self.wants)
            .finish_non_exhaustive()
    }
}

/// A request that may go, and the tag if that takes a new slot.
type Found = (Turn, Option<Box<[u8]>>);

/// A request's place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// 0, unless somebody gave it another place before or behind the rest.
    pub rank: i32,
    /// Its id, unless it was moved.
    pub order: i64,
    /// Its id.
    pub id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    kind: Kind,
    archive_id: u32,
    flags: u64,
    hosts: HostSet,
    upcall: bool,
}

/// Line of one share in one group.
#[derive(Debug, Default)]
struct Lines {
    /// By tag; without batching there is one.
    tags: BTreeMap<Box<[u8]>, BTreeSet<Turn>>,
    /// The first of each, so that the oldest is found among many.
    heads: BTreeMap<Turn, Box<[u8]>>,
}

impl Lines {
    fn insert(&mut self, tag: &[u8], turn: Turn) {
        if !self.tags.contains_key(tag) {
            self.tags.insert(tag.into(), BTreeSet::new());
        }
        let Some(line) = self.tags.get_mut(tag) else { return };
        let old = line.first().copied();
        line.insert(turn);
        self.move_head(tag, old);
    }

    fn remove(&mut self, tag: &[u8], turn: Turn) -> bool {
        let Some(line) = self.tags.get_mut(tag) else { return false };
        let old = line.first().copied();
        let was_there = line.remove(&turn);
        self.move_head(tag, old);
        was_there
    }

    fn move_head(&mut self, tag: &[u8], old: Option<Turn>) {
        let new = self.tags.get(tag).and_then(BTreeSet::first).copied();
        if new == old {
            return;
        }
        if let Some(old) = old {
            self.heads.remove(&old);
        }
        match new {
            Some(new) => {
                self.heads.insert(new, tag.into());
            }
            None => {
                self.tags.remove(tag);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// What it has had, divided by its weight.
    had: f64,
    ready: usize,
    running: u32,
}

/// Everything that may start, and what runs.
#[derive(Debug, Default)]
pub struct Scheduler {
    settings: Settings,
    groups: BTreeMap<GroupKey, BTreeMap<Share, Lines>>,
    accounts: HashMap<Share, Account>,
    /// What the share that was served last has had: one that comes back begins there.
    had_floor: f64,
    running: [u32; 3],
    running_archive: HashMap<u32, u32>,
    slots: Slots,
    host_sets: BTreeSet<HostSet>,
    ready: usize,
}

impl Scheduler {
    /// With nothing in it.
    pub fn new(settings: Settings) -> Self {
        let slots = Slots::new(settings.batching);
        Self { settings, slots, ..Self::default() }
    }

    /// What the site has chosen.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Goes by other limits, orders and weights from now on.
    pub fn set_limits(&mut self, settings: &Settings) {
        self.settings.order = settings.order;
        self.settings.limits.clone_from(&settings.limits);
        self.settings.share_weights.clone_from(&settings.share_weights);
    }

    /// How many could start if there were workers for them.
    pub fn n_ready(&self) -> usize {
        self.ready
    }

    /// Which hosts the rules choose for a request, and the data that it goes on with, if a rule says
    /// other data. To be asked once in the life of a request: the answer may depend on the data.
    pub fn route(&self, request: &Request) -> (HostSet, Option<Box<[u8]>>) {
        hosts::route(&self.settings.rules, request)
    }

    /// The one copy of a set of hosts.
    pub fn intern(&mut self, hosts: HostSet) -> HostSet {
        if let Some(known) = self.host_sets.get(&hosts) {
            return known.clone();
        }
        self.host_sets.insert(hosts.clone());
        hosts
    }

    /// Who a request is for.
    pub fn share_of(&self, request: &Request) -> Share {
        let number = |id: u32| if id == UNKNOWN_OWNER { Share::default() } else { decimal(id) };
        match &self.settings.share_by {
            ShareBy::None => Share::default(),
            ShareBy::Uid => number(request.uid),
            ShareBy::Gid => number(request.gid),
            ShareBy::Project => number(request.project),
            ShareBy::Tag(key) => tag_value(request.hint(), key).unwrap_or_default().into(),
        }
    }

    fn tag_of<'a>(&self, request: &'a Request) -> &'a [u8] {
        let batched = self.settings.batching.is_some() && request.kind == Kind::Archive;
        if batched { request.hint() } else { &[] }
    }

    /// It may start from now on.
    pub fn insert(&mut self, turn: Turn, request: &Request, hosts: &HostSet, now: Now) {
        let (share, tag) = (self.share_of(request), self.tag_of(request));
        let account = self.accounts.entry(share.clone()).or_default();
        if account.ready == 0 && account.running == 0 {
            account.had = account.had.max(self.had_floor);
        }
        account.ready += 1;
        self.ready += 1;
        self.slots.joined(tag, now);
        let group = self.groups.entry(group_key(request, hosts)).or_default();
        group.entry(share).or_default().insert(tag, turn);
    }

    /// It may not start any more. False if it was not there.
    pub fn remove(&mut self, turn: Turn, request: &Request, hosts: &HostSet) -> bool {
        let (share, tag) = (self.share_of(request), self.tag_of(request));
        let key = group_key(request, hosts);
        let Some(group) = self.groups.get_mut(&key) else { return false };
        let Some(lines) = group.get_mut(&share) else { return false };
        if !lines.remove(tag, turn) {
            return false;
        }
        if lines.tags.is_empty() {
            group.remove(&share);
            if group.is_empty() {
                self.groups.remove(&key);
            }
        }
        self.ready -= 1;
        self.slots.left(tag);
        self.settle(&share, |account| account.ready -= 1);
        true
    }

    fn settle(&mut self, share: &Share, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.accounts.get_mut(share) {
            change(account);
            if account.ready == 0 && account.running == 0 {
                self.accounts.remove(share);
            }
        }
    }

    /// It runs now.
    pub fn started(&mut self, request: &Request, worker: &str, now: Now) {
        let share = self.share_of(request);
        self.running[request.kind.at()] += 1;
        *self.running_archive.entry(request.archive_id).or_default() += 1;
        let weight = self.settings.share_weights.get(&share).copied().unwrap_or(1.0);
        let floor = self.had_floor;
        let account =
            self.accounts.entry(share).or_insert(Account { had: floor, ..Account::default() });
        self.had_floor = floor.max(account.had);
        account.had += 1.0 / weight;
        account.running += 1;
        self.slots.sent(worker, self.tag_of(request), now);
    }

    /// It does not run any more.
    pub fn ended(&mut self, request: &Request, worker: &str) {
        let share = self.share_of(request);
        self.running[request.kind.at()] -= 1;
        if let Some(n) = self.running_archive.get_mut(&request.archive_id) {
            *n -= 1;
            if *n == 0 {
                self.running_archive.remove(&request.archive_id);
            }
        }
        self.settle(&share, |account| account.running -= 1);
        self.slots.ended(worker, self.tag_of(request));
    }

    /// Slots of a worker that is gone for good.
    pub fn forget_worker(&mut self, worker: &str) {
        self.slots.forget(worker);
    }

    /// A worker's slots hold their tags only while it is there.
    pub fn set_connected(&mut self, worker: &str, connected: bool) {
        self.slots.set_connected(worker, connected);
    }

    /// A worker's slots, for status.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// When a slot that others wait for is over.
    pub fn next_deadline(&self, now: Now) -> Option<Now> {
        if self.ready == 0 { None } else { self.slots.next_deadline(now) }
    }

    /// The next request for a worker, if there is one for it.
    pub fn pick(&mut self, ask: &Ask<'_>) -> Option<u64> {
        let Ask { taker, now, .. } = *ask;
        let in_all: u32 = taker.running.iter().sum();
        let limits = &self.settings.limits;
        let most = limits.workers.get(taker.name).copied().or(limits.worker);
        if most.is_some_and(|most| in_all >= most) {
            return None;
        }
        self.slots.refresh(taker.name, now);
        for kind in self.kinds(ask) {
            let mut best = self.best(kind, ask, false);
            // A slot whose time is over goes on with its tag only if nobody else is there.
            if best.is_none() && kind == Kind::Archive && self.slots.has_over(taker.name) {
                best = self.best(kind, ask, true);
            }
            if let Some((turn, opens)) = best {
                if let Some(tag) = opens {
                    self.slots.open(taker.name, &tag, now);
                }
                return Some(turn.id);
            }
        }
        None
    }

    /// Of one kind: the oldest request of the share that had least.
    fn best(&self, kind: Kind, ask: &Ask<'_>, renew: bool) -> Option<Found> {
        let mut best: Option<(f64, Found)> = None;
        for (key, shares) in self.of_kind(kind) {
            let alike = ask.uniform.is_none_or(|both| both == (key.archive_id, key.flags));
            if !alike || !self.allowed(key, ask) {
                continue;
            }
            for (share, lines) in shares {
                let account = self.accounts.get(share).copied().unwrap_or_default();
                if self.settings.limits.share.is_some_and(|most| account.running >= most)
                    || best.as_ref().is_some_and(|(had, _)| *had < account.had)
                {
                    continue;
                }
                let Some(found) = self.first(lines, kind, ask, renew) else { continue };
                let better = |(had, other): &(f64, Found)| {
                    account.had < *had || account.had <= *had && found.0 < other.0
                };
                if best.as_ref().is_none_or(better) {
                    best = Some((account.had, found));
                }
            }
        }
        best.map(|(_, found)| found)
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&GroupKey, &BTreeMap<Share, Lines>)> {
        let first =
            GroupKey { kind, archive_id: 0, flags: 0, hosts: HostSet::default(), upcall: false };
        self.groups.range(first..).take_while(move |(key, _)| key.kind == kind)
    }

    fn allowed(&self, key: &GroupKey, ask: &Ask<'_>) -> bool {
        let taker = &ask.taker;
        let served = taker.archive_ids.is_empty() || taker.archive_ids.contains(&key.archive_id);
        let full = self.settings.limits.archive.get(&key.archive_id).is_some_and(|most| {
            self.running_archive.get(&key.archive_id).copied().unwrap_or_default() >= *most
        });
        served
            && (taker.upcalls || !key.upcall)
            && !full
            && key.hosts.allows(taker.name)
            && !ask.locks.iter().any(|lock| lock.matches(taker.name, key.kind, key.archive_id))
    }

    /// Kinds that this worker may have now, best first.
    fn kinds(&self, ask: &Ask<'_>) -> Vec<Kind> {
        let taker = &ask.taker;
        let open = |kind: &Kind| {
            let at = kind.at();
            taker.kinds.contains(kind)
                && ask.wants.running[at].is_none_or(|most| taker.running[at] < most)
                && self.settings.limits.kind[at].is_none_or(|most| self.running[at] < most)
        };
        match self.settings.order {
            Order::Fixed(order) => order.into_iter().filter(open).collect(),
            Order::Weighted { weights, aging } => {
                let score = |kind: Kind| {
                    // Only what this worker may take speaks for a kind.
                    let groups = self.of_kind(kind).filter(|(key, _)| self.allowed(key, ask));
                    let lines = groups.flat_map(|(_, shares)| shares.values());
                    let oldest = lines.filter_map(|lines| lines.heads.keys().next()).min()?;
                    let waited = ask.now.saturating_sub((ask.look)(oldest.id).received);
                    Some(weights[kind.at()] + aging * waited.as_secs_f64() / 60.0)
                };
                let scored = Kind::ALL.into_iter().filter(open);
                let mut scored: Vec<(f64, Kind)> =
                    scored.filter_map(|kind| Some((score(kind)?, kind))).collect();
                scored.sort_by(|a, b| b.0.total_cmp(&a.0));
                scored.into_iter().map(|(_, kind)| kind).collect()
            }
        }
    }

    /// The first in these lines that may go to a worker.
    fn first(&self, lines: &Lines, kind: Kind, ask: &Ask<'_>, renew: bool) -> Option<Found> {
        let fits = |id: u64| {
            let bytes = (ask.look)(id).data_bytes.saturating_add(ask.wants.item_bytes);
            ask.bytes_left.is_none_or(|left| bytes <= left)
        };
        let in_line = |tag: &[u8]| {
            let line = lines.tags.get(tag)?;
            line.iter().take(LOOK_PAST).find(|turn| fits(turn.id)).copied()
        };
        // Without a tag it needs no slot.
        let untagged = in_line(&[]).map(|turn| (turn, None));
        if kind != Kind::Archive || self.settings.batching.is_none() {
            return untagged;
        }
        let (worker, now) = (ask.taker.name, ask.now);
        let most = ask.wants.running[kind.at()];
        let own = self.slots.tags_with_room(worker, most, renew, now);
        let own = own.filter_map(|tag| Some((in_line(tag)?, renew.then(|| tag.into()))));
        let mut heads = lines.heads.values();
        let new = heads.find_map(|tag| {
            let free = !renew && !tag.is_empty() && !self.slots.is_taken(tag);
            let turn = if free { in_line(tag) } else { None };
            Some((turn?, Some(tag.clone())))
        });
        let new = new.filter(|_| self.slots.has_free(worker, now));
        untagged.into_iter().chain(own).chain(new).min_by_key(|(turn, _)| *turn)
    }
}

fn decimal(id: u32) -> Share {
    id.to_string().into_bytes().into()
}

fn group_key(request: &Request, hosts: &HostSet) -> GroupKey {
    let Request { kind, archive_id, flags, .. } = *request;
    let upcall = request.source == Source::Upcall;
    GroupKey { kind, archive_id, flags, hosts: hosts.clone(), upcall }
}
