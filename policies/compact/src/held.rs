//! The held records: a queue in the order of the log, and what concerns which object and name.
//!
//! Records are numbered as they come, from 1. A record that is dropped, or folded into an earlier one,
//! stays in the queue as an empty place until its turn, so numbers are places.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use lcap_policy_sdk::{Fid, Nanos, Out, Record, RecordType, Taken, record::split_first};

use crate::hash::{Mixer, name_key};
use crate::names::Names;
use crate::objects::{Id, Object, Objects};
use crate::seq::Seq;

/// What a record does, as far as the rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// CREAT, MKDIR, SLINK, MKNOD.
    Birth,
    /// HLINK.
    Link,
    /// UNLNK, RMDIR.
    Unlink,
    /// RENME.
    Rename,
    /// Attributes, data, layout: what a consumer answers by looking at the object again.
    Update,
    /// OPEN, GXATR: what was looked at.
    Access,
    /// NOPEN: a refusal; a matter of security.
    Refusal,
    /// FLRW, RESYNC: state of a mirror.
    Mirror,
    /// HSM.
    Hsm,
    /// MIGRT.
    Migrate,
    /// MARK, RNMTO, types from the future: nothing may cross it.
    Barrier,
}

impl Kind {
    pub(crate) fn of(rec_type: RecordType) -> Self {
        match rec_type {
            RecordType::CREATE | RecordType::MKDIR | RecordType::SOFTLINK | RecordType::MKNOD => {
                Self::Birth
            }
            RecordType::HARDLINK => Self::Link,
            RecordType::UNLINK | RecordType::RMDIR => Self::Unlink,
            RecordType::RENAME => Self::Rename,
            RecordType::CLOSE
            | RecordType::LAYOUT
            | RecordType::TRUNC
            | RecordType::SETATTR
            | RecordType::SETXATTR
            | RecordType::MTIME
            | RecordType::CTIME
            | RecordType::ATIME => Self::Update,
            RecordType::OPEN | RecordType::GETXATTR => Self::Access,
            RecordType::DN_OPEN => Self::Refusal,
            RecordType::FLRW | RecordType::RESYNC => Self::Mirror,
            RecordType::HSM => Self::Hsm,
            RecordType::MIGRATE => Self::Migrate,
            _ => Self::Barrier,
        }
    }

    /// Its parent and name mean something.
    pub(crate) fn has_name(self) -> bool {
        matches!(self, Self::Birth | Self::Link | Self::Unlink | Self::Rename | Self::Migrate)
    }
}

/// One held record. A window may have millions, and most are dropped: what few of them have lies elsewhere.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Its type, or [`OTHER_TYPE`].
    rec_type: u8,
    /// Not an empty place.
    live: bool,
    /// What lies elsewhere: [`CHANGED`], [`TOGETHER`].
    elsewhere: u8,
    /// Bits whose meaning depends on the type.
    pub(crate) flags: u16,
    /// Bytes of the record.
    size: u16,
    /// The object, and of a rename the overwritten one in `other`.
    pub(crate) about: Id,
    pub(crate) other: Id,
    /// Directories that it names: parent and, of a rename, source parent.
    dirs: [Id; 2],
}

/// It has an entry in [`Held::changes`].
const CHANGED: u8 = 1;
/// It has one in [`Held::together`].
const TOGETHER: u8 = 2;
/// A type from the future: no rule says anything of it.
const OTHER_TYPE: u8 = u8::MAX;

fn short_type(rec_type: RecordType) -> u8 {
    u8::try_from(rec_type.0).unwrap_or(OTHER_TYPE)
}

impl Entry {
    pub(crate) fn rec_type(&self) -> RecordType {
        RecordType(self.rec_type.into())
    }

    fn is_changed(&self) -> bool {
        self.elsewhere & CHANGED != 0
    }
}

/// What became of a record that others were folded into.
#[derive(Debug)]
struct Changed {
    /// Tokens of the others.
    tokens: Vec<u64>,
    /// The record as it is now.
    record: Vec<u8>,
    /// The one that gave it its present name: itself, or what was folded into it last.
    named_at: Seq,
}

/// Records that only objects other than directories have. Directories are opened and closed, too,
/// and get HSM records; whether a mirror's state can be theirs is not ours to know.
pub(crate) fn proves_no_dir(rec_type: RecordType) -> bool {
    matches!(
        rec_type,
        RecordType::CREATE
            | RecordType::SOFTLINK
            | RecordType::MKNOD
            | RecordType::HARDLINK
            | RecordType::UNLINK
            | RecordType::TRUNC
    )
}

/// A record that was just appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pushed {
    pub(crate) seq: Seq,
    pub(crate) about: Id,
    pub(crate) other: Id,
    pub(crate) parent: Id,
    /// Its name, as a number, and the record that last touched that before; 0 if none is held.
    pub(crate) name: u64,
    pub(crate) name_touched: Seq,
    /// The same for the name that a rename takes away.
    pub(crate) source: u64,
    pub(crate) source_touched: Seq,
}

/// The records of one enqueue.
#[derive(Debug)]
struct Arrival {
    since: Nanos,
    /// Places in the queue that are left.
    n_places: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    entries: VecDeque<Entry>,
    /// Number of the first entry, less one.
    n_left: Seq,
    /// Token of a record less its number.
    token_offset: u64,
    arrivals: VecDeque<Arrival>,
    n_bytes: usize,
    objects: Objects,
    names: Names,
    /// Of live entries that others were folded into.
    changes: HashMap<Seq, Changed, BuildHasherDefault<Mixer>>,
    /// Tokens of dropped records, since the last dequeue.
    dropped: Vec<u64>,
    /// Dropped together, at the place of the first: until then the MDT keeps all of them.
    together: HashMap<Seq, Vec<u64>>,
    /// Once a record has left, what was folded into it must not be read again without it: everything
    /// up to there leaves at once.
    leave_upto: Seq,
}

/// What a place in the queue costs besides its record.
const ENTRY_BYTES: usize = size_of::<Entry>() + 2 * size_of::<Object>();

impl Held {
    /// A new call with records, the first of which has that token.
    pub(crate) fn start(&mut self, first_token: u64, now: Nanos) {
        self.token_offset = first_token.wrapping_sub(self.next());
        self.arrivals.push_back(Arrival { since: now, n_places: 0 });
    }

    /// The number that the next record will get.
    pub(crate) fn next(&self) -> Seq {
        self.newest() + 1
    }

    /// The number of the newest record.
    pub(crate) fn newest(&self) -> Seq {
        self.n_left + self.entries.len() as u64
    }

    /// Live records about an object, in order.
    pub(crate) fn about<'a>(
        &self,
        object: &'a Object,
    ) -> impl DoubleEndedIterator<Item = Seq> + use<'a> {
        object.held.iter(self.newest())
    }

    /// Records held, empty places included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.n_bytes + self.entries.len() * ENTRY_BYTES
    }

    /// When the oldest record came, and how many places that came with it are left.
    pub(crate) fn oldest(&self) -> Option<(Nanos, usize)> {
        // A call without records leaves an arrival without places.
        let oldest = self.arrivals.iter().find(|arrival| arrival.n_places > 0)?;
        Some((oldest.since, oldest.n_places))
    }

    fn place(&self, seq: Seq) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.n_left + 1)?).ok()
    }

    /// A record that is held and live.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(self.place(seq)?).filter(|entry| entry.live)
    }

    fn get_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let place = self.place(seq)?;
        self.entries.get_mut(place).filter(|entry| entry.live)
    }

    /// The record as it will leave: the one that was taken, or what others were folded into.
    pub(crate) fn record<'a>(&'a self, taken: &'a Taken, seq: Seq) -> Option<Record<'a>> {
        if self.get(seq)?.is_changed() {
            let changed = self.changes.get(&seq)?;
            return split_first(&changed.record).ok().map(|(record, _)| record);
        }
        taken.get(seq.wrapping_add(self.token_offset))
    }

    /// The record that gave a held one its present name.
    pub(crate) fn named_at(&self, seq: Seq) -> Seq {
        let is_changed = self.get(seq).is_some_and(Entry::is_changed);
        let changed = if is_changed { self.changes.get(&seq) } else { None };
        changed.map_or(seq, |changed| changed.named_at)
    }

    pub(crate) fn object(&self, id: Id) -> Option<&Object> {
        self.objects.get(id)
    }

    pub(crate) fn object_mut(&mut self, id: Id) -> Option<&mut Object> {
        self.objects.get_mut(id)
    }

    /// The object's place, if something is held of it.
    pub(crate) fn known(&self, fid: Fid) -> Option<Id> {
        self.objects.known(fid)
    }

    /// Appends a record and notes what it concerns.
    pub(crate) fn push(&mut self, record: &Record<'_>) -> Pushed {
        let seq = self.next();
        let rec_type = record.rec_type();
        let kind = Kind::of(rec_type);
        let moves = matches!(kind, Kind::Rename | Kind::Migrate);
        let (about, other) = match (kind, record.source()) {
            (Kind::Barrier, _) => (Fid::default(), Fid::default()),
            (_, Some(source)) if moves => (source, record.target()),
            _ => (record.target(), Fid::default()),
        };
        let (about, other) = (self.objects.id_of(about), self.objects.id_of(other));
        let mut dirs = [Id::NONE; 2];
        let (mut name, mut source) = (0, 0);
        let (mut name_touched, mut source_touched) = (0, 0);
        if kind.has_name() {
            dirs[0] = self.objects.id_of(record.parent());
            name = name_key(record.parent(), record.name());
            name_touched = self.names.touch(name, seq);
            if moves {
                let parent = record.source_parent().unwrap_or_default();
                dirs[1] = self.objects.id_of(parent);
                source = name_key(parent, record.source_name().unwrap_or_default());
                source_touched = self.names.touch(source, seq);
            }
        }
        // Lustre's are some hundred bytes long; this is for the sum only.
        let size = u16::try_from(record.as_bytes().len()).unwrap_or(u16::MAX);
        self.n_bytes += usize::from(size);
        self.arrive();
        for id in [about, other] {
            if let Some(object) = self.objects.get_mut(id) {
                object.held.push(seq);
                if kind.has_name() {
                    object.last_name = seq;
                }
                object.is_no_dir |= proves_no_dir(rec_type);
            }
        }
        for dir in dirs {
            self.objects.enter(dir);
        }
        self.entries.push_back(Entry {
            kind,
            rec_type: short_type(rec_type),
            live: true,
            elsewhere: 0,
            flags: record.type_flags(),
            size,
            about,
            other,
            dirs,
        });
        let parent = dirs[0];
        Pushed { seq, about, other, parent, name, name_touched, source, source_touched }
    }

    /// Appends a place for a record that is dropped at once.
    pub(crate) fn push_dropped(&mut self, record: &Record<'_>) {
        let seq = self.next();
        self.dropped.push(seq.wrapping_add(self.token_offset));
        self.arrive();
        self.entries.push_back(Entry {
            kind: Kind::of(record.rec_type()),
            rec_type: short_type(record.rec_type()),
            live: false,
            elsewhere: 0,
            flags: 0,
            size: 0,
            about: Id::NONE,
            other: Id::NONE,
            dirs: [Id::NONE; 2],
        });
    }

    fn arrive(&mut self) {
        if let Some(arrival) = self.arrivals.back_mut() {
            arrival.n_places += 1;
        }
    }

    /// Makes the place of a record empty; appends its tokens.
    fn vacate(&mut self, seq: Seq, tokens: &mut Vec<u64>) {
        let own = seq.wrapping_add(self.token_offset);
        let Some(entry) = self.get_mut(seq) else { return };
        entry.live = false;
        let (about, other, dirs, is_changed) =
            (entry.about, entry.other, entry.dirs, entry.is_changed());
        tokens.push(own);
        if is_changed && let Some(changed) = self.changes.remove(&seq) {
            tokens.extend_from_slice(&changed.tokens);
        }
        self.forget(seq, about, other, dirs);
    }

    fn forget(&mut self, seq: Seq, about: Id, other: Id, dirs: [Id; 2]) {
        let newest = self.newest().max(seq);
        for id in [about, other] {
            if let Some(object) = self.objects.get_mut(id) {
                object.held.remove(seq, newest);
                self.objects.free_if_idle(id);
            }
        }
        for dir in dirs {
            self.objects.exit(dir);
        }
    }

    /// Drops a record and what was folded into it. Returns how many that were.
    pub(crate) fn drop(&mut self, seq: Seq) -> u64 {
        let mut dropped = std::mem::take(&mut self.dropped);
        let before = dropped.len();
        self.vacate(seq, &mut dropped);
        self.dropped = dropped;
        (self.dropped.len() - before) as u64
    }

    /// Drops two records, when the turn of the first comes. Returns how many that were.
    pub(crate) fn drop_together(&mut self, first: Seq, second: Seq) -> u64 {
        let mut tokens = Vec::new();
        self.vacate(first, &mut tokens);
        self.vacate(second, &mut tokens);
        let n = tokens.len() as u64;
        // The place is empty by now, and stays.
        if let Some(entry) = self.place(first).and_then(|place| self.entries.get_mut(place)) {
            entry.elsewhere |= TOGETHER;
            self.together.insert(first, tokens);
        }
        n
    }

    /// Replaces a record; what it concerns stays the same.
    pub(crate) fn change(&mut self, seq: Seq, flags: u16, record: Vec<u8>) {
        if let Some(entry) = self.get_mut(seq) {
            entry.flags = flags;
            entry.elsewhere |= CHANGED;
            self.changed(seq).record = record;
        }
    }

    fn changed(&mut self, seq: Seq) -> &mut Changed {
        let unchanged = || Changed { tokens: Vec::new(), record: Vec::new(), named_at: seq };
        self.changes.entry(seq).or_insert_with(unchanged)
    }

    /// Folds record `from` into the earlier record `into`, which then is `record`.
    pub(crate) fn fold(&mut self, into: Seq, from: Seq, record: Vec<u8>) {
        let Ok((parsed, _)) = split_first(&record) else { return };
        let rec_type = parsed.rec_type();
        let flags = parsed.type_flags();
        let source_parent = parsed.source().and(parsed.source_parent()).unwrap_or_default();
        let dirs = [self.objects.id_of(parsed.parent()), self.objects.id_of(source_parent)];
        for dir in dirs {
            self.objects.enter(dir);
        }
        let mut tokens = Vec::new();
        self.vacate(from, &mut tokens);
        let Some(entry) = self.get_mut(into) else { return };
        let old_dirs = std::mem::replace(&mut entry.dirs, dirs);
        (entry.kind, entry.rec_type) = (Kind::of(rec_type), short_type(rec_type));
        entry.flags = flags;
        entry.elsewhere |= CHANGED;
        let changed = self.changed(into);
        changed.named_at = from;
        changed.tokens.append(&mut tokens);
        changed.record = record;
        for dir in old_dirs {
            self.objects.exit(dir);
        }
    }

    /// Hands over what was dropped.
    pub(crate) fn take_dropped(&mut self, out: &mut Out) {
        for token in self.dropped.drain(..) {
            out.drop(token);
        }
    }

    /// The oldest record must leave together with one that has left.
    pub(crate) fn must_leave(&self) -> bool {
        self.n_left < self.leave_upto
    }

    /// Lets the oldest record out.
    pub(crate) fn leave(&mut self, out: &mut Out) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.n_left += 1;
        let seq = self.n_left;
        if entry.live {
            let token = seq.wrapping_add(self.token_offset);
            let changed = if entry.is_changed() { self.changes.remove(&seq) } else { None };
            match changed {
                None => out.emit(token),
                Some(changed) => {
                    let mut tokens = vec![token];
                    tokens.extend_from_slice(&changed.tokens);
                    let last = tokens.iter().max().map_or(0, |t| t.wrapping_sub(self.token_offset));
                    self.leave_upto = self.leave_upto.max(last);
                    out.emit_as(&tokens, &changed.record, 0);
                }
            }
            self.forget(seq, entry.about, entry.other, entry.dirs);
        }
        if entry.elsewhere & TOGETHER != 0
            && let Some(tokens) = self.together.remove(&seq)
        {
            for token in tokens {
                out.drop(token);
                self.leave_upto = self.leave_upto.max(token.wrapping_sub(self.token_offset));
            }
        }
        self.n_bytes -= usize::from(entry.size);
        // A call without records leaves an arrival without places.
        while self.arrivals.front().is_some_and(|arrival| arrival.n_places == 0) {
            self.arrivals.pop_front();
        }
        if let Some(arrival) = self.arrivals.front_mut() {
            arrival.n_places -= 1;
        }
        // Names of records that have left do not matter.
        self.names.tidy(seq, self.newest());
    }
}
