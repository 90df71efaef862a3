//! The held records: a queue in the order of the log, and what concerns which object and name.
//!
//! Records are numbered as they come, from 1. A record that is dropped, or folded into an earlier one,
//! stays in the queue as an empty place until its turn, so numbers are places.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use lcap_policy_sdk::{Fid, Nanos, Out, Record, RecordType, record::split_first};

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

/// One held record.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) rec_type: RecordType,
    /// `LIVE`, or an empty place.
    live: bool,
    chunk: u64,
    start: u32,
    end: u32,
    /// The object, and for renames the overwritten one (or zero) in `other`.
    pub(crate) about: Fid,
    pub(crate) other: Fid,
    /// Directories that it names: parent and, of a rename, source parent.
    dirs: [Fid; 2],
    /// The name that it gives (or takes away), and the one that a rename takes away.
    pub(crate) name: u64,
    source_name: u64,
    /// The record that gave it its present name: itself, or what was folded into it last.
    pub(crate) named_at: Seq,
    changed: Option<Box<Changed>>,
}

/// What became of a record that others were folded into.
#[derive(Debug, Default)]
struct Changed {
    /// Tokens of the others.
    tokens: Vec<u64>,
    /// The record as it is now; empty as long as it is the original.
    record: Vec<u8>,
}

/// What is known of an object of which records are held.
#[derive(Debug, Default)]
pub(crate) struct Object {
    /// Live records about it, in order.
    pub(crate) held: VecDeque<Seq>,
    /// Live records that name it as a directory.
    pub(crate) n_inside: u32,
    /// Last record that gave or took one of its names, whatever became of it.
    pub(crate) last_name: Seq,
    /// Its names, if its birth is held.
    pub(crate) names: Vec<u64>,
    /// Its history is not all here: another MDT has a part in it.
    pub(crate) foreign: bool,
    pub(crate) is_no_dir: bool,
}

impl Object {
    fn remove(&mut self, seq: Seq) {
        if self.held.front() == Some(&seq) {
            self.held.pop_front();
        }
        if let Ok(at) = self.held.binary_search(&seq) {
            self.held.remove(at);
        }
    }
}

/// A record that was just appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pushed {
    pub(crate) seq: Seq,
    /// The record that last touched its name before, 0 if that is not held.
    pub(crate) name_touched: Seq,
    /// The same for the name that a rename takes away.
    pub(crate) source_touched: Seq,
}

/// The bytes of one enqueue.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
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
    chunks: VecDeque<Chunk>,
    n_chunks_left: u64,
    n_bytes: usize,
    objects: HashMap<Fid, Object, BuildHasherDefault<Mixer>>,
    /// Last record that touched a name.
    touched: HashMap<u64, Seq, BuildHasherDefault<Mixer>>,
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
        self.chunks.push_back(Chunk { bytes: Vec::new(), since: now, n_places: 0 });
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
        let entry = self.entries.front()?;
        self.chunk(entry.chunk).map(|chunk| chunk.since)
    }

    fn chunk(&self, number: u64) -> Option<&Chunk> {
        self.chunks.get(usize::try_from(number.checked_sub(self.n_chunks_left)?).ok()?)
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

    /// The record as it will leave.
    pub(crate) fn record(&self, seq: Seq) -> Option<Record<'_>> {
        self.record_of(self.get(seq)?)
    }

    fn record_of<'a>(&'a self, entry: &'a Entry) -> Option<Record<'a>> {
        let bytes = match &entry.changed {
            Some(changed) if !changed.record.is_empty() => &changed.record[..],
            _ => {
                let chunk = self.chunk(entry.chunk)?;
                chunk.bytes.get(entry.start as usize..entry.end as usize)?
            }
        };
        split_first(bytes).ok().map(|(record, _)| record)
    }

    pub(crate) fn object(&self, fid: Fid) -> Option<&Object> {
        self.objects.get(&fid)
    }

    pub(crate) fn object_mut(&mut self, fid: Fid) -> &mut Object {
        self.objects.entry(fid).or_default()
    }

    /// Appends a record and notes what it concerns.
    pub(crate) fn push(&mut self, record: &Record<'_>) -> Pushed {
        let seq = self.next();
        let mut pushed = Pushed { seq, name_touched: 0, source_touched: 0 };
        let rec_type = record.rec_type();
        let kind = Kind::of(rec_type);
        let moves = matches!(kind, Kind::Rename | Kind::Migrate);
        let (about, other) = match (kind, record.source()) {
            (Kind::Barrier, _) => (Fid::default(), Fid::default()),
            (_, Some(source)) if moves => (source, record.target()),
            _ => (record.target(), Fid::default()),
        };
        let (mut dirs, mut name, mut source_name) = ([Fid::default(); 2], 0, 0);
        if kind.has_name() {
            dirs[0] = record.parent();
            name = name_key(record.parent(), record.name());
            pushed.name_touched = self.touched.insert(name, seq).unwrap_or(0);
            if moves {
                let parent = record.source_parent().unwrap_or_default();
                dirs[1] = parent;
                source_name = name_key(parent, record.source_name().unwrap_or_default());
                pushed.source_touched = self.touched.insert(source_name, seq).unwrap_or(0);
            }
        }
        let number = self.n_chunks_left + self.chunks.len() as u64 - 1;
        let (mut start, mut end) = (0, 0);
        if let Some(chunk) = self.chunks.back_mut() {
            // The records of one call are far from 4 GiB; one that is cut would not parse, and stay.
            start = u32::try_from(chunk.bytes.len()).unwrap_or(u32::MAX);
            chunk.bytes.extend_from_slice(record.as_bytes());
            end = u32::try_from(chunk.bytes.len()).unwrap_or(u32::MAX);
            chunk.n_places += 1;
            self.n_bytes += record.as_bytes().len();
        }
        for fid in [about, other] {
            if !fid.is_zero() {
                let object = self.objects.entry(fid).or_default();
                object.held.push_back(seq);
                if kind.has_name() {
                    object.last_name = seq;
                }
                object.is_no_dir |= match kind {
                    Kind::Birth => rec_type != RecordType::MKDIR,
                    Kind::Link | Kind::Hsm | Kind::Mirror => true,
                    Kind::Unlink => rec_type == RecordType::UNLINK,
                    Kind::Update => matches!(rec_type, RecordType::CLOSE | RecordType::TRUNC),
                    _ => false,
                };
            }
        }
        for dir in dirs {
            self.enter(dir);
        }
        self.entries.push_back(Entry {
            kind,
            rec_type,
            live: true,
            chunk: number,
            start,
            end,
            about,
            other,
            dirs,
            name,
            source_name,
            named_at: seq,
            changed: None,
        });
        pushed
    }

    fn enter(&mut self, dir: Fid) {
        if !dir.is_zero() {
            self.objects.entry(dir).or_default().n_inside += 1;
        }
    }

    fn exit(&mut self, dir: Fid) {
        if let Some(object) = self.objects.get_mut(&dir)
            && !dir.is_zero()
        {
            object.n_inside = object.n_inside.saturating_sub(1);
            self.forget_if_idle(dir);
        }
    }

    fn forget_if_idle(&mut self, fid: Fid) {
        let idle = |object: &Object| object.held.is_empty() && object.n_inside == 0;
        if self.objects.get(&fid).is_some_and(idle) {
            self.objects.remove(&fid);
        }
    }

    /// Makes the place of a record empty; returns its tokens.
    fn vacate(&mut self, seq: Seq) -> Vec<u64> {
        let own = seq.wrapping_add(self.token_offset);
        let Some(entry) = self.get_mut(seq) else { return Vec::new() };
        entry.live = false;
        let (about, other, dirs) = (entry.about, entry.other, entry.dirs);
        let mut tokens = vec![own];
        tokens.extend(entry.changed.take().map(|changed| changed.tokens).unwrap_or_default());
        self.forget(seq, about, other, dirs);
        tokens
    }

    fn forget(&mut self, seq: Seq, about: Fid, other: Fid, dirs: [Fid; 2]) {
        for fid in [about, other] {
            if let Some(object) = self.objects.get_mut(&fid) {
                object.remove(seq);
                self.forget_if_idle(fid);
            }
        }
        for dir in dirs {
            self.exit(dir);
        }
    }

    /// Drops a record and what was folded into it. Returns how many that were.
    pub(crate) fn drop(&mut self, seq: Seq) -> u64 {
        let tokens = self.vacate(seq);
        self.dropped.extend_from_slice(&tokens);
        tokens.len() as u64
    }

    /// Drops two records, when the turn of the first comes. Returns how many that were.
    pub(crate) fn drop_together(&mut self, first: Seq, second: Seq) -> u64 {
        let mut tokens = self.vacate(first);
        tokens.append(&mut self.vacate(second));
        let n = tokens.len() as u64;
        self.together.insert(first, tokens);
        n
    }

    /// Replaces a record; what it concerns stays the same.
    pub(crate) fn change(&mut self, seq: Seq, record: Vec<u8>) {
        if let Some(entry) = self.get_mut(seq) {
            entry.changed.get_or_insert_default().record = record;
        }
    }

    /// Folds record `from` into the earlier record `into`, which then is `record`.
    pub(crate) fn fold(&mut self, into: Seq, from: Seq, record: Vec<u8>) {
        let Ok((parsed, _)) = split_first(&record) else { return };
        let tokens = self.vacate(from);
        let rec_type = parsed.rec_type();
        let moves = parsed.source().is_some();
        let dirs = [
            parsed.parent(),
            if moves { parsed.source_parent().unwrap_or_default() } else { Fid::default() },
        ];
        let name = name_key(parsed.parent(), parsed.name());
        let Some(entry) = self.get_mut(into) else { return };
        let old_dirs = std::mem::replace(&mut entry.dirs, dirs);
        entry.kind = Kind::of(rec_type);
        entry.rec_type = rec_type;
        entry.name = name;
        entry.named_at = from;
        let changed = entry.changed.get_or_insert_default();
        changed.tokens.extend_from_slice(&tokens);
        changed.record = record;
        for dir in dirs {
            self.enter(dir);
        }
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
                    if let Some(record) = self.record_of(&entry) {
                        out.emit_as(&tokens, record.as_bytes(), 0);
                    }
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
        for name in [entry.name, entry.source_name] {
            if self.touched.get(&name) == Some(&seq) {
                self.touched.remove(&name);
            }
        }
        self.n_bytes -= (entry.end - entry.start) as usize;
        // Chunks leave in order, too. A call without records leaves an empty one.
        if let Some(chunk) = self.chunks.front_mut() {
            chunk.n_places = chunk.n_places.saturating_sub(1);
        }
        while self.chunks.front().is_some_and(|chunk| chunk.n_places == 0) {
            self.chunks.pop_front();
            self.n_chunks_left += 1;
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
