//! The held records: a queue in the order of the log, and what concerns which object and name.
//!
//! Records are numbered as they come, from 1. A record that is dropped, or folded into an earlier one,
//! stays in the queue as an empty place until its turn, so numbers are places.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::list::List;
use lcap_policy_sdk::{Fid, Nanos, Out, Record, RecordType, Taken, record::split_first};

/// Number of a held record.
pub(crate) type Seq = u64;

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

/// An object of which something is held: its place in a table, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(u32);

impl Id {
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// One held record.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) rec_type: RecordType,
    /// `LIVE`, or an empty place.
    live: bool,
    /// Bytes of the record.
    size: u16,
    /// Bits whose meaning depends on the type.
    pub(crate) flags: u16,
    /// The object, and of a rename the overwritten one in `other`.
    pub(crate) about: Id,
    pub(crate) other: Id,
    /// Directories that it names: parent and, of a rename, source parent.
    dirs: [Id; 2],
    /// The record that gave it its present name: itself, or what was folded into it last.
    pub(crate) named_at: Seq,
    changed: Option<Box<Changed>>,
}

/// What became of a record that others were folded into.
#[derive(Debug, Default)]
struct Changed {
    /// Tokens of the others.
    tokens: Vec<u64>,
    /// The record as it is now.
    record: Vec<u8>,
}

/// What is known of an object of which records are held.
#[derive(Debug, Default)]
pub(crate) struct Object {
    fid: Fid,
    /// Live records about it, in order.
    pub(crate) held: List,
    /// Live records that name it as a directory.
    pub(crate) n_inside: u32,
    /// Last record that gave or took one of its names, whatever became of it.
    pub(crate) last_name: Seq,
    /// Its names, if its birth is held.
    pub(crate) names: List,
    /// Its history is not all here: another MDT has a part in it.
    pub(crate) foreign: bool,
    pub(crate) is_no_dir: bool,
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
    /// The record that last touched its name before, 0 if that is not held.
    pub(crate) name_touched: Seq,
    /// The same for the name that a rename takes away.
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
    /// Places in `objects`.
    ids: HashMap<Fid, Id, BuildHasherDefault<Mixer>>,
    objects: Vec<Object>,
    /// Places that are free; their buffers are used again.
    free: Vec<Id>,
    /// Last record that touched a name. Tidied now and then.
    touched: HashMap<u64, Seq, BuildHasherDefault<Mixer>>,
    /// Tokens of dropped records, since the last dequeue.
    dropped: Vec<u64>,
    /// Dropped together, at the place of the first: until then the MDT keeps all of them.
    together: HashMap<Seq, Vec<u64>>,
    /// Once a record has left, what was folded into it must not be read again without it: everything
    /// up to there leaves at once.
    leave_upto: Seq,
}

/// Names that may be left over before they are tidied away.
const MIN_TIDY: usize = 1024;
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
        self.n_left + self.entries.len() as u64 + 1
    }

    /// Records held, empty places included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.n_bytes + self.entries.len() * ENTRY_BYTES
    }

    /// When the oldest record came.
    pub(crate) fn oldest(&self) -> Option<Nanos> {
        self.entries.front()?;
        self.arrivals.iter().find(|arrival| arrival.n_places > 0).map(|arrival| arrival.since)
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
        match &self.get(seq)?.changed {
            Some(changed) => split_first(&changed.record).ok().map(|(record, _)| record),
            None => taken.get(seq.wrapping_add(self.token_offset)),
        }
    }

    pub(crate) fn object(&self, id: Id) -> Option<&Object> {
        self.objects.get(id.0 as usize)
    }

    pub(crate) fn object_mut(&mut self, id: Id) -> Option<&mut Object> {
        self.objects.get_mut(id.0 as usize)
    }

    /// The object's place, if something is held of it.
    pub(crate) fn known(&self, fid: Fid) -> Option<Id> {
        self.ids.get(&fid).copied()
    }

    /// The object's place; a new one if nothing was held of it.
    fn id_of(&mut self, fid: Fid) -> Id {
        if fid.is_zero() {
            return Id::NONE;
        }
        let Self { ids, objects, free, .. } = self;
        *ids.entry(fid).or_insert_with(|| {
            let id = free.pop().unwrap_or_else(|| {
                objects.push(Object::default());
                Id(u32::try_from(objects.len() - 1).unwrap_or(u32::MAX))
            });
            if let Some(object) = objects.get_mut(id.0 as usize) {
                object.fid = fid;
            }
            id
        })
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
        let (about, other) = (self.id_of(about), self.id_of(other));
        let mut dirs = [Id::NONE; 2];
        let (mut name_touched, mut source_touched) = (0, 0);
        if kind.has_name() {
            dirs[0] = self.id_of(record.parent());
            let name = name_key(record.parent(), record.name());
            name_touched = self.touched.insert(name, seq).unwrap_or(0);
            if moves {
                let parent = record.source_parent().unwrap_or_default();
                dirs[1] = self.id_of(parent);
                let name = name_key(parent, record.source_name().unwrap_or_default());
                source_touched = self.touched.insert(name, seq).unwrap_or(0);
            }
        }
        // Lustre's are some hundred bytes long; this is for the sum only.
        let size = u16::try_from(record.as_bytes().len()).unwrap_or(u16::MAX);
        self.n_bytes += usize::from(size);
        self.arrive();
        for id in [about, other] {
            if let Some(object) = self.objects.get_mut(id.0 as usize) {
                object.held.push(seq);
                if kind.has_name() {
                    object.last_name = seq;
                }
                object.is_no_dir |= proves_no_dir(rec_type);
            }
        }
        for dir in dirs {
            self.enter(dir);
        }
        self.entries.push_back(Entry {
            kind,
            rec_type,
            flags: record.type_flags(),
            live: true,
            size,
            about,
            other,
            dirs,
            named_at: seq,
            changed: None,
        });
        Pushed { seq, about, other, parent: dirs[0], name_touched, source_touched }
    }

    /// Appends a place for a record that is dropped at once.
    pub(crate) fn push_dropped(&mut self, record: &Record<'_>) {
        let seq = self.next();
        self.dropped.push(seq.wrapping_add(self.token_offset));
        self.arrive();
        self.entries.push_back(Entry {
            kind: Kind::of(record.rec_type()),
            rec_type: record.rec_type(),
            flags: 0,
            live: false,
            size: 0,
            about: Id::NONE,
            other: Id::NONE,
            dirs: [Id::NONE; 2],
            named_at: seq,
            changed: None,
        });
    }

    fn arrive(&mut self) {
        if let Some(arrival) = self.arrivals.back_mut() {
            arrival.n_places += 1;
        }
    }

    fn enter(&mut self, dir: Id) {
        if let Some(object) = self.objects.get_mut(dir.0 as usize) {
            object.n_inside += 1;
        }
    }

    fn exit(&mut self, dir: Id) {
        if let Some(object) = self.objects.get_mut(dir.0 as usize) {
            object.n_inside = object.n_inside.saturating_sub(1);
            self.free_if_idle(dir);
        }
    }

    fn free_if_idle(&mut self, id: Id) {
        let Some(object) = self.objects.get_mut(id.0 as usize) else { return };
        // An object that is free already has no FID.
        if object.held.is_empty() && object.n_inside == 0 && !object.fid.is_zero() {
            self.ids.remove(&object.fid);
            object.fid = Fid::default();
            object.names = List::default();
            (object.last_name, object.foreign, object.is_no_dir) = (0, false, false);
            self.free.push(id);
        }
    }

    /// Makes the place of a record empty; appends its tokens.
    fn vacate(&mut self, seq: Seq, tokens: &mut Vec<u64>) {
        let own = seq.wrapping_add(self.token_offset);
        let Some(entry) = self.get_mut(seq) else { return };
        entry.live = false;
        let (about, other, dirs) = (entry.about, entry.other, entry.dirs);
        tokens.push(own);
        if let Some(changed) = entry.changed.take() {
            tokens.extend_from_slice(&changed.tokens);
        }
        self.forget(seq, about, other, dirs);
    }

    fn forget(&mut self, seq: Seq, about: Id, other: Id, dirs: [Id; 2]) {
        for id in [about, other] {
            if let Some(object) = self.objects.get_mut(id.0 as usize) {
                object.held.remove_in_order(seq);
                self.free_if_idle(id);
            }
        }
        for dir in dirs {
            self.exit(dir);
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
        self.together.insert(first, tokens);
        n
    }

    /// Replaces a record; what it concerns stays the same.
    pub(crate) fn change(&mut self, seq: Seq, flags: u16, record: Vec<u8>) {
        if let Some(entry) = self.get_mut(seq) {
            entry.flags = flags;
            entry.changed.get_or_insert_default().record = record;
        }
    }

    /// Folds record `from` into the earlier record `into`, which then is `record`.
    pub(crate) fn fold(&mut self, into: Seq, from: Seq, record: Vec<u8>) {
        let Ok((parsed, _)) = split_first(&record) else { return };
        let rec_type = parsed.rec_type();
        let flags = parsed.type_flags();
        let source_parent = parsed.source().and(parsed.source_parent()).unwrap_or_default();
        let dirs = [self.id_of(parsed.parent()), self.id_of(source_parent)];
        for dir in dirs {
            self.enter(dir);
        }
        let mut tokens = Vec::new();
        self.vacate(from, &mut tokens);
        let Some(entry) = self.get_mut(into) else { return };
        let old_dirs = std::mem::replace(&mut entry.dirs, dirs);
        entry.kind = Kind::of(rec_type);
        entry.rec_type = rec_type;
        entry.flags = flags;
        entry.named_at = from;
        let changed = entry.changed.get_or_insert_default();
        changed.tokens.append(&mut tokens);
        changed.record = record;
        for dir in old_dirs {
            self.exit(dir);
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
            match &entry.changed {
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
        if let Some(tokens) = self.together.remove(&seq) {
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
        if self.touched.len() > 2 * self.entries.len() + MIN_TIDY {
            self.touched.retain(|_, touched| *touched > seq);
        }
    }
}

/// A name within a directory, as one number. Two names with one number only keep records apart
/// that could have been folded.
pub(crate) fn name_key(parent: Fid, name: &[u8]) -> u64 {
    let mut mixer = Mixer(parent.seq);
    mixer.write_u32(parent.oid);
    mixer.write(name);
    mixer.finish()
}

/// A quick hash: its inputs come from the file system's own numbering, and the tables that use it are
/// bounded by the window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let n = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        n ^ n >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
