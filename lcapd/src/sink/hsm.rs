//! HSM actions of one MDT into one Redis stream, in the original's schema (`schema.rs`).
//!
//! Consumers rebuild the live actions by reading the stream from its beginning, and find them by
//! slot or by `FID:ACTION`. So beyond the events themselves some entries are written that keep both
//! views right: see [`Todo`]. What Redis shows is known from reading the stream once when a
//! connection is made ([`Mirror`]); after that it is kept up to date by what is sent.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lcap_ffi::hsm_action::{EventKind, HsmActionEvent, Slot};
use lcap_ffi::record::split_first;
use lcap_ffi::{MdtName, RecordIndex};
use redis::Value;
use tracing::{info, warn};

use super::config::HsmOptions;
use super::feed::Item;
use super::mirror::{EntryId, Mirror, Sending};
use super::old_news::OldNews;
use super::schema::{Digest, Entry, Schema, Summary, as_update};
use super::target::{Commands, Link, TargetError, as_bytes, as_list, as_number, as_text};
use super::token::Token;
use super::{Claim, Shipped, Writer};

/// Entries that are read at once: other clients of Redis wait for as long.
const READ_AT_ONCE: usize = 500;
/// Entries that are written between two looks at how things stand.
const REPAIR_AT_ONCE: usize = 500;
/// Entries that are trimmed at once.
const TRIM_AT_ONCE: &[u8] = b"1000";
/// A stream may have so many entries beyond twice its live actions before the oldest live ones
/// are written again, so that what lies between can go.
const SLACK: usize = 10_000;
/// Bytes of the live actions that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Pause after they could not be read.
const AUDIT_PAUSE: Duration = Duration::from_secs(30);
/// How often trimming is thought of.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);

/// The live actions of an MDT, as the HSM source has them.
pub trait LiveState: fmt::Debug + Send + Sync {
    /// Since when the MDT has been here, in milliseconds since 1970; `None` while it is not.
    fn present_since(&self) -> Option<u64>;

    /// The state after the newest event.
    ///
    /// # Errors
    /// If it cannot be read now.
    fn snapshot(&self) -> io::Result<Snapshot>;
}

/// The live actions after an event.
pub struct Snapshot {
    /// That event.
    pub upto: RecordIndex,
    /// Appends packed events, one for each action, of about so many bytes; `false` if there are no
    /// more.
    pub read: ReadSnapshot,
}

/// See [`Snapshot::read`].
pub type ReadSnapshot = Box<dyn FnMut(usize, &mut Vec<u8>) -> io::Result<bool> + Send>;

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("upto", &self.upto).finish_non_exhaustive()
    }
}

/// Entries to write besides the events.
#[derive(Debug, Default)]
struct Todo {
    /// Actions to be purged of which only an entry is known: the stream shows them as live, the
    /// MDT does not have them.
    purge: VecDeque<(Slot, EntryId)>,
    /// Actions to be written again: an action of the same key was purged, and who goes by keys
    /// would take them for gone, too.
    again: VecDeque<Slot>,
}

/// A comparison with what the MDT has, under way.
#[derive(Debug)]
struct Audit {
    snapshot: Snapshot,
    /// A piece of it.
    piece: Vec<u8>,
    /// How much of the piece was compared.
    offset: usize,
    known: HashSet<Slot>,
    missing: u64,
}

/// Writes one MDT's events.
#[derive(Debug)]
pub(super) struct HsmWriter {
    key: String,
    /// Who we are in the token.
    owner: String,
    options: HsmOptions,
    state: Option<Arc<dyn LiveState>>,
    schema: Schema,
    mirror: Mirror,
    /// Everything up to here is in the mirror.
    last_id: EntryId,
    /// In the batch that is made, and in the one that is on its way.
    planned: Vec<Sending>,
    flying: Vec<Sending>,
    todo: Todo,
    old_news: OldNews,
    /// Redis's clock is ahead of ours by so many milliseconds. Claims are in its time, which is the
    /// same for all servers.
    ahead_ms: i64,
    next_audit: Option<Instant>,
    audit: Option<Audit>,
    next_trim: Instant,
    data: Vec<u8>,
}

impl HsmWriter {
    pub(super) fn new(
        key: String,
        mdt: &MdtName,
        owner: &str,
        options: &HsmOptions,
        state: Option<Arc<dyn LiveState>>,
    ) -> Self {
        Self {
            key,
            owner: owner.to_owned(),
            options: options.clone(),
            state,
            schema: Schema::new(mdt, options.shape),
            mirror: Mirror::default(),
            last_id: EntryId::default(),
            planned: Vec::new(),
            flying: Vec::new(),
            todo: Todo::default(),
            old_news: OldNews::default(),
            ahead_ms: 0,
            next_audit: None,
            audit: None,
            next_trim: Instant::now(),
            data: Vec::new(),
        }
    }

    fn xadd(&mut self, slot: Slot, summary: Option<Summary>, commands: &mut Commands) {
        let data = std::mem::take(&mut self.data);
        commands.push(&[b"XADD", self.key.as_bytes(), b"*", b"data", &data]);
        self.data = data;
        self.planned.push(self.mirror.send(slot, summary));
    }

    /// Writes an event, unless the stream shows it already.
    fn event(&mut self, event: &HsmActionEvent<'_>, commands: &mut Commands) -> Shipped {
        let slot = event.fields.slot;
        let summary = self.schema.summary(event);
        let before = self.mirror.get(slot).map(|live| live.summary);
        self.data.clear();
        if event.kind == EventKind::Purged {
            if before.is_none_or(|before| before.key != summary.key) {
                return Shipped::Nothing;
            }
            self.schema.write(event, EventKind::Purged, &mut self.data);
            self.xadd(slot, None, commands);
            if let Some(other) = self.mirror.slot_of_key(summary.key) {
                self.todo.again.push_back(other);
            }
            return Shipped::Entry;
        }
        let kind = match before {
            Some(before) if before == summary => return Shipped::Nothing,
            Some(before) if before.key == summary.key => EventKind::Update,
            Some(_) => {
                // Another action, whose purge was never seen: first that one has to go.
                let id = self.mirror.get(slot).map_or(EntryId::default(), |live| live.id);
                if !self.todo.purge.contains(&(slot, id)) {
                    self.todo.purge.push_back((slot, id));
                }
                return Shipped::Later;
            }
            // An update of what the stream does not show is new to its readers.
            None => EventKind::New,
        };
        self.schema.write(event, kind, &mut self.data);
        self.xadd(slot, Some(summary), commands);
        Shipped::Entry
    }

    /// The stream is to be read from its beginning.
    fn forget_stream(&mut self) {
        (self.mirror, self.last_id) = (Mirror::default(), EntryId::default());
        self.todo.again.clear();
    }

    /// Brings the mirror up to date with what is in Redis after `last_id`.
    fn read_stream(&mut self, link: &mut Link) -> Result<(), TargetError> {
        let started = Instant::now();
        let mut n_read = 0_usize;
        let mut malformed = 0_usize;
        // Keys whose last entry is a purge: who goes by keys takes the action for gone.
        let mut purged: HashSet<Digest> = HashSet::new();
        // Entries whose slot was taken by another action without a purge in between.
        let mut ghosts: HashMap<Digest, (Slot, EntryId)> = HashMap::new();
        loop {
            let from = self.last_id.next().to_string();
            let count = READ_AT_ONCE.to_string();
            let answer = link.call(&[
                b"XRANGE",
                self.key.as_bytes(),
                from.as_bytes(),
                b"+",
                b"COUNT",
                count.as_bytes(),
            ])?;
            let entries = as_list(&answer).ok_or(TargetError::Answer("XRANGE"))?;
            for entry in entries {
                let (id, data) = entry_of(entry).ok_or(TargetError::Answer("XRANGE"))?;
                self.last_id = id;
                n_read += 1;
                let Some(entry) = data.and_then(Entry::parse) else {
                    malformed += 1;
                    continue;
                };
                let summary = entry.summary();
                let slot = entry.slot().or_else(|| self.mirror.slot_of_key(summary.key));
                let Some(slot) = slot else { continue };
                self.old_news.note(summary.key, entry.is_purge());
                if entry.is_purge() {
                    self.mirror.apply(slot, id, None);
                    purged.insert(summary.key);
                    ghosts.remove(&summary.key);
                } else {
                    let before = self.mirror.get(slot).copied();
                    if let Some(before) = before.filter(|b| b.summary.key != summary.key) {
                        ghosts.insert(before.summary.key, (slot, before.id));
                    }
                    self.mirror.apply(slot, id, Some(summary));
                    purged.remove(&summary.key);
                    ghosts.remove(&summary.key);
                }
            }
            if entries.len() < READ_AT_ONCE {
                break;
            }
        }
        self.todo.again.extend(purged.iter().filter_map(|&key| self.mirror.slot_of_key(key)));
        let ghosts = ghosts.into_iter().filter(|(key, _)| self.mirror.slot_of_key(*key).is_none());
        self.todo.purge.extend(ghosts.map(|(_, ghost)| ghost));
        if malformed > 0 {
            warn!(key = self.key, malformed, "entries that are no events, passed over");
        }
        if n_read > 0 {
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(key = self.key, entries = n_read, live = self.mirror.len(), ms, "stream read");
        }
        Ok(())
    }

    /// The `data` of entries, in their order; `None` for one that is gone.
    fn fetch(&self, link: &mut Link, ids: &[EntryId]) -> Result<Vec<Option<Vec<u8>>>, TargetError> {
        let mut commands = Commands::default();
        for id in ids {
            let id = id.to_string();
            commands.push(&[b"XRANGE", self.key.as_bytes(), id.as_bytes(), id.as_bytes()]);
        }
        link.send(&commands)?;
        let mut found = Vec::with_capacity(ids.len());
        for _ in ids {
            let answer = link.answer()?;
            let entry = as_list(&answer).and_then(<[Value]>::first).and_then(entry_of);
            found.push(entry.and_then(|(_, data)| data).map(<[u8]>::to_vec));
        }
        Ok(found)
    }

    /// Purges that have no event.
    fn purge(&mut self, link: &mut Link, commands: &mut Commands) -> Result<(), TargetError> {
        let n = self.todo.purge.len().min(REPAIR_AT_ONCE);
        let batch: Vec<(Slot, EntryId)> = self.todo.purge.drain(..n).collect();
        let ids: Vec<EntryId> = batch.iter().map(|&(_, id)| id).collect();
        let seconds = now_ms() / 1000;
        for ((slot, id), data) in batch.into_iter().zip(self.fetch(link, &ids)?) {
            let live = self.mirror.get(slot).copied();
            let is_current = live.is_some_and(|live| live.id == id);
            let entry = data.as_deref().and_then(Entry::parse).unwrap_or_else(|| Entry {
                action_key: format!("unknown:{}:{}", slot.cat, slot.rec),
                cat_idx: Some(slot.cat),
                rec_idx: Some(slot.rec),
                ..Entry::default()
            });
            self.data.clear();
            self.schema.write_purge_of(&entry, seconds, &mut self.data);
            let after = live.filter(|_| !is_current).map(|live| live.summary);
            self.xadd(slot, None, commands);
            if after.is_some() {
                // Who goes by slots takes the one that is there now for gone, too. It is no longer
                // in the mirror, so the next comparison with the MDT writes it again.
                self.next_audit = Some(Instant::now());
            } else if let Some(other) = self.mirror.slot_of_key(entry.summary().key) {
                self.todo.again.push_back(other);
            }
        }
        Ok(())
    }

    /// Live actions whose last entry is written again.
    fn again(
        &mut self,
        link: &mut Link,
        slots: &[Slot],
        commands: &mut Commands,
    ) -> Result<(), TargetError> {
        let live: Vec<(Slot, Summary, EntryId)> = slots
            .iter()
            .filter_map(|&slot| self.mirror.get(slot).map(|live| (slot, live.summary, live.id)))
            .collect();
        let ids: Vec<EntryId> = live.iter().map(|&(_, _, id)| id).collect();
        for ((slot, summary, id), data) in live.into_iter().zip(self.fetch(link, &ids)?) {
            match data {
                Some(data) => {
                    self.data = as_update(&data);
                    self.xadd(slot, Some(summary), commands);
                }
                None => {
                    // Somebody has removed it: who reads the stream now does not see the action.
                    warn!(key = self.key, %id, "the entry of a live action is gone, writing it anew");
                    self.mirror.apply(slot, id, None);
                    self.next_audit = Some(Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Goes on comparing what the stream shows with what the MDT has, and writes the difference.
    fn compare(&mut self, mut audit: Audit, commands: &mut Commands) {
        let mut is_whole = false;
        while commands.len() < REPAIR_AT_ONCE {
            let rest = audit.piece.get(audit.offset..).unwrap_or_default();
            let Ok((record, after)) = split_first(rest) else {
                audit.piece.clear();
                audit.offset = 0;
                match (audit.snapshot.read)(READ_BYTES, &mut audit.piece) {
                    Ok(true) => continue,
                    Ok(false) => is_whole = true,
                    Err(error) => {
                        // Without all of it, nothing can be said of what is too much.
                        warn!(key = self.key, %error, "cannot read the live actions, will retry");
                        self.next_audit = Some(Instant::now() + AUDIT_PAUSE);
                        return;
                    }
                }
                break;
            };
            if let Ok(event) = HsmActionEvent::parse(&record) {
                let event = HsmActionEvent { is_snapshot: true, kind: EventKind::Update, ..event };
                audit.known.insert(event.fields.slot);
                match self.event(&event, commands) {
                    Shipped::Entry => audit.missing += 1,
                    Shipped::Nothing => {}
                    Shipped::Later => break,
                }
            }
            audit.offset = audit.piece.len() - after.len();
        }
        if !is_whole {
            self.audit = Some(audit);
            return;
        }
        self.old_news.settle();
        let orphans = self.mirror.iter().filter(|(slot, _)| !audit.known.contains(slot));
        let orphans: Vec<(Slot, EntryId)> = orphans.map(|(slot, live)| (slot, live.id)).collect();
        if audit.missing > 0 || !orphans.is_empty() {
            info!(
                key = self.key,
                missing = audit.missing,
                orphans = orphans.len(),
                "the stream did not show what the MDT has, repairing"
            );
        }
        self.todo.purge.extend(orphans);
    }

    /// Removes what no reader needs any more to know the live actions, if it is old enough.
    fn trim(&mut self, link: &mut Link, commands: &mut Commands) -> Result<(), TargetError> {
        let key = self.key.clone();
        let retain = u64::try_from(self.options.retain.as_millis()).unwrap_or(u64::MAX);
        let now = now_ms().saturating_add_signed(self.ahead_ms);
        let aged = EntryId { ms: now.saturating_sub(retain), seq: 0 };
        let oldest = self.mirror.oldest().next().map_or(self.last_id.next(), |(id, _)| id);
        let upto = oldest.min(aged).to_string();
        let trim = [b"XTRIM".as_slice(), key.as_bytes(), b"MINID", b"~", upto.as_bytes()];
        let trim = [&trim[..], &[b"LIMIT", TRIM_AT_ONCE]].concat();
        while as_number(&link.call(&trim)?).ok_or(TargetError::Answer("XTRIM"))? > 0 {}
        if self.options.exact {
            // What is left of one node of Redis's tree: a hundred entries at most.
            link.call(&[b"XTRIM", key.as_bytes(), b"MINID", upto.as_bytes()])?;
        }
        let answer = link.call(&[b"XLEN", key.as_bytes()])?;
        let n_entries = as_number(&answer).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        if n_entries < self.mirror.len() {
            return Err(TargetError::Lost); // somebody has deleted what shows the live actions
        }
        if oldest < aged && n_entries > 2 * self.mirror.len() + SLACK {
            // A few actions that do not end hold everything that came after them.
            let pins = self.mirror.oldest().take_while(|&(id, _)| id < aged);
            let pins: Vec<Slot> = pins.take(REPAIR_AT_ONCE).map(|(_, slot)| slot).collect();
            self.again(link, &pins, commands)?;
            self.next_trim = Instant::now();
        }
        Ok(())
    }

    /// The original's tools hang if there is no stream at all. An empty one is made by a group.
    fn make_stream(&self, link: &mut Link) -> Result<(), TargetError> {
        let key = self.key.as_bytes();
        if as_text(&link.call(&[b"TYPE", key])?) == Some("none") {
            link.call(&[b"XGROUP", b"CREATE", key, b"lcap-init", b"$", b"MKSTREAM"])?;
            link.call(&[b"XGROUP", b"DESTROY", key, b"lcap-init"])?;
        }
        Ok(())
    }

    /// In Redis's time.
    fn present_since(&self) -> Option<u64> {
        let since = self.state.as_ref().map_or(Some(0), |state| state.present_since());
        since.map(|since| since.saturating_add_signed(self.ahead_ms))
    }

    /// The comparison that is due, if the stream is where it speaks of.
    fn due_audit(&mut self, upto: RecordIndex) -> Option<Audit> {
        if self.audit.is_none() {
            if self.next_audit.is_none_or(|at| Instant::now() < at) {
                return None;
            }
            let state = self.state.as_ref()?;
            state.present_since()?;
            let snapshot = match state.snapshot() {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    warn!(key = self.key, %error, "cannot read the live actions, will retry");
                    self.next_audit = Some(Instant::now() + AUDIT_PAUSE);
                    return None;
                }
            };
            let (piece, known) = (Vec::new(), HashSet::new());
            self.audit = Some(Audit { snapshot, piece, offset: 0, known, missing: 0 });
            self.next_audit = Some(Instant::now() + self.options.audit);
        }
        let is_there = self.audit.as_ref().is_some_and(|audit| audit.snapshot.upto <= upto);
        if is_there { self.audit.take() } else { None }
    }
}

impl Writer for HsmWriter {
    fn claim(&self, token: Option<&Token>) -> Claim {
        let since = self.present_since();
        match (token, since) {
            (Some(token), _) if token.owner == self.owner => Claim::Ours,
            (Some(token), Some(since)) if (since, &self.owner) > (token.claim, &token.owner) => {
                Claim::Take(since)
            }
            (None, Some(since)) => Claim::Take(since),
            (Some(_), Some(_)) => Claim::Theirs,
            (_, None) => Claim::Unclear,
        }
    }

    fn prepare(&mut self, link: &mut Link) -> Result<(), TargetError> {
        self.ahead_ms = clock_ahead(link)?;
        self.make_stream(link)
    }
    fn open(&mut self, link: &mut Link, claim_ms: u64) -> Result<(), TargetError> {
        self.old_news.claim(claim_ms);
        self.todo.purge.clear(); // the comparison finds them again
        self.audit = None;
        self.next_audit = Some(Instant::now());
        self.next_trim = Instant::now();
        self.make_stream(link)?; // somebody may have deleted it since
        let info = link.call(&[b"XINFO", b"STREAM", self.key.as_bytes()])?;
        // A Redis that has less than it had was restarted without, or with older, data.
        let newest = field(&info, "last-generated-id").and_then(as_text);
        let newest: EntryId = newest.and_then(|id| id.parse().ok()).unwrap_or_default();
        let n_entries = field(&info, "length").and_then(as_number).unwrap_or(0);
        if newest < self.last_id || n_entries < self.mirror.len() as u64 {
            if self.last_id != EntryId::default() {
                warn!(key = self.key, "Redis has lost entries of this stream, writing them anew");
            }
            self.old_news.settle();
            self.forget_stream();
        }
        // Another server trims what it has written while the MDT is there. What is gone that we have not
        // read may be the purge of what we take for live: only all of the stream tells then.
        let oldest = field(&info, "first-entry").and_then(entry_of);
        if oldest.is_none_or(|(oldest, _)| oldest > self.last_id) {
            self.forget_stream();
        }
        self.read_stream(link)
    }

    fn write(&mut self, item: Item<'_>, commands: &mut Commands) -> Shipped {
        let Item::Record { index, bytes } = item else {
            // Events are gone, or count for nothing any more: only a comparison tells what is there.
            self.next_audit = Some(Instant::now());
            return Shipped::Nothing;
        };
        if self.audit.as_ref().is_some_and(|audit| audit.snapshot.upto < index) {
            return Shipped::Later;
        }
        let Ok((record, _)) = split_first(bytes) else { return Shipped::Nothing };
        match HsmActionEvent::parse(&record) {
            Ok(event) if !event.is_snapshot => {
                if self.old_news.has(event.time, self.ahead_ms) {
                    let (key, slot) = (self.schema.summary(&event).key, event.fields.slot);
                    let is_shown = self.mirror.get(slot).is_some();
                    if !self.old_news.is_news(slot, key, is_shown) {
                        return Shipped::Nothing;
                    }
                }
                self.event(&event, commands)
            }
            _ => Shipped::Nothing,
        }
    }

    fn sent(&mut self) {
        std::mem::swap(&mut self.flying, &mut self.planned);
    }

    fn confirmed(&mut self, answers: &[Value]) -> Result<(), TargetError> {
        let ids = answers.iter().map(|id| as_text(id).and_then(|id| id.parse().ok()));
        let ids: Option<Vec<EntryId>> = ids.collect();
        let ids = ids.filter(|ids| ids.len() == self.flying.len());
        let ids = ids.ok_or(TargetError::Answer("XADD"))?;
        self.last_id = ids.iter().copied().fold(self.last_id, EntryId::max);
        let flying = std::mem::take(&mut self.flying);
        self.mirror.confirm(flying.into_iter().zip(ids));
        Ok(())
    }

    fn abandoned(&mut self) {
        self.planned.clear();
        self.flying.clear();
        self.mirror.abandon();
    }

    fn at_head(
        &mut self,
        link: &mut Link,
        upto: RecordIndex,
        commands: &mut Commands,
    ) -> Result<(), TargetError> {
        if let Some(audit) = self.due_audit(upto) {
            self.compare(audit, commands);
            if !commands.is_empty() {
                return Ok(());
            }
        }
        if !self.todo.purge.is_empty() {
            return self.purge(link, commands);
        }
        if !self.todo.again.is_empty() {
            let n = self.todo.again.len().min(REPAIR_AT_ONCE);
            let slots: Vec<Slot> = self.todo.again.drain(..n).collect();
            self.again(link, &slots, commands)?;
            if !commands.is_empty() {
                return Ok(());
            }
        }
        if self.audit.is_none() && Instant::now() >= self.next_trim {
            self.next_trim = Instant::now() + TRIM_INTERVAL;
            self.trim(link, commands)?;
        }
        Ok(())
    }
}

/// Name and `data` of an entry in an answer.
fn entry_of(value: &Value) -> Option<(EntryId, Option<&[u8]>)> {
    let [id, fields] = as_list(value)? else { return None };
    let id = as_text(id)?.parse().ok()?;
    let fields = as_list(fields).unwrap_or_default();
    let data = fields.chunks_exact(2).find(|pair| as_bytes(&pair[0]) == Some(b"data"));
    Some((id, data.and_then(|pair| as_bytes(&pair[1]))))
}

/// A field of an answer that is a flat list of names and values.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let pairs = as_list(value)?.chunks_exact(2);
    pairs.into_iter().find(|pair| as_text(&pair[0]) == Some(name)).map(|pair| &pair[1])
}

/// By how many milliseconds Redis's clock is ahead of ours. One of us may have to wait for a CPU in the
/// middle of it, so the quickest of a few answers counts.
fn clock_ahead(link: &mut Link) -> Result<i64, TargetError> {
    let bad = || TargetError::Answer("TIME");
    let mut best: Option<(u64, i64)> = None;
    for _ in 0..5 {
        let asked = now_ms();
        let time = link.call(&[b"TIME"])?;
        let took = now_ms().saturating_sub(asked);
        let [seconds, microseconds] = as_list(&time).ok_or_else(bad)? else { return Err(bad()) };
        let number = |value| as_number(value).ok_or_else(bad);
        let redis_ms = number(seconds)? * 1000 + number(microseconds)? / 1000;
        let ahead = redis_ms.cast_signed().saturating_sub((asked + took / 2).cast_signed());
        best = best.filter(|(before, _)| *before <= took).or(Some((took, ahead)));
        if took <= 1 {
            break;
        }
    }
    best.map(|(_, ahead)| ahead).ok_or_else(bad)
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
