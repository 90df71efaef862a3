//! What was told of one MDT's HSM actions, durably: the log that streams of `kind = "hsm"` follow.
//!
//! The state (which actions are there, and what was told of them last) is what the events say when
//! they are read from a checkpoint on. So there is one thing to write, not two, and after a crash
//! at any moment nothing was announced that is not in the state, or the other way round. An event
//! is given to readers only once it is on disk.
//!
//! A journal is a directory of [`segment`](super::segment)s. A new one begins now and then; old ones
//! go once every reader has cleared them, or when there are too many events.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lcap_ffi::RecordIndex;
use lcap_ffi::hsm_action::line::write as write_line;
use lcap_ffi::hsm_action::{
    ActionFields, EventKind, EventSource, HsmActionEvent, RecordTime, Slot, StatusCode,
};
use lcap_ffi::record::{records, split_first};
use tracing::warn;

use super::live::{COMPARED_BYTES, Change, Entry, Live, hash};
use super::segment::{
    EventReader, FRAME_BYTES, Frame, FrameKind, HEAD_BYTES, body_of, frame_at, read_events,
    read_head, write_frame, write_head,
};
use crate::lease::{Lease, leave_behind};

/// Events are made durable, and given to readers, after so many bytes at the latest.
const SYNC_BYTES: u64 = 8 << 20;
/// A segment is not replaced before it has so many bytes of events.
const MIN_SEGMENT_BYTES: u64 = 16 << 20;

/// What is wrong with a journal.
#[derive(Debug, thiserror::Error)]
#[error("journal of HSM events in {}: cannot {action}", path.display())]
pub struct JournalError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// An event to be: index, the event before it, first sight and last status are filled in.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// What happened.
    pub kind: EventKind,
    /// Who noticed.
    pub source: EventSource,
    /// When.
    pub time: RecordTime,
    /// The action, known by slot and cookie. Of a purge only these two count.
    pub fields: ActionFields<'a>,
    /// The line that it was read from, if it was.
    pub line: Option<&'a [u8]>,
}

/// The journal of one MDT.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    max_events: u64,
    lease: Lease,
    writing: Mutex<Writing>,
    shared: Mutex<Shared>,
}

/// What who appends needs. Its newest segment is the last of `Shared::segments`.
#[derive(Debug)]
struct Writing {
    live: Live,
    file: File,
    /// Where the next frame goes.
    end: u64,
    /// Where events begin, after the checkpoint.
    events_from: u64,
    next: u64,
    reader: EventReader,
}

/// What readers may know.
#[derive(Debug)]
pub(super) struct Shared {
    /// Index of the first event of each segment, oldest first; at least one.
    segments: Vec<u64>,
    /// Up to where the newest segment is on disk.
    end: u64,
    /// After the newest event on disk.
    next: u64,
    cleared: u64,
    /// Too many events were there, and the oldest are gone.
    overflowed: bool,
    readers: Vec<Weak<OwnedFd>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept there is consistent between any two statements that can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn segment_name(first: u64) -> String {
    format!("{first:020}.events")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Journal {
    /// Opens or begins the journal in a directory. It keeps `max_events` events at least, if its
    /// readers do not clear them, and not many more.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(dir: &Path, max_events: u64) -> Result<Self, JournalError> {
        Self::taken_over(dir, max_events, Lease::not_needed())
    }

    /// The same, perhaps from another lcapd that may still have it open: that one keeps the old file. Nothing is written
    /// or removed while the lease is not held.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn taken_over(dir: &Path, max_events: u64, lease: Lease) -> Result<Self, JournalError> {
        let failed = |action| move |source| JournalError { path: dir.to_owned(), action, source };
        fs::create_dir_all(dir).map_err(failed("create the directory"))?;
        let mut segments = list(dir).map_err(failed("list the directory"))?;
        if segments.is_empty() {
            create_segment(dir, 1, |_| Ok(HEAD_BYTES)).map_err(failed("begin it"))?;
            segments.push(1);
        }
        let newest = segments.last().copied().unwrap_or(1);
        let path = dir.join(segment_name(newest));
        if lease.is_needed() {
            leave_behind(&path).map_err(failed("take it over"))?;
        }
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).open(&path).map_err(failed("open it"))?;
        let writing = recover(dir, file).map_err(failed("read it"))?;
        let shared = Shared {
            segments,
            end: writing.end,
            next: writing.next,
            cleared: 0,
            overflowed: false,
            readers: Vec::new(),
        };
        let (writing, shared) = (Mutex::new(writing), Mutex::new(shared));
        Ok(Self { dir: dir.to_owned(), max_events, lease, writing, shared })
    }

    /// The index of the next event.
    pub fn next_index(&self) -> RecordIndex {
        RecordIndex::new(lock(&self.shared).next)
    }

    /// Appends events; returns once they are on disk. Nobody else appends meanwhile.
    ///
    /// # Errors
    /// If they could not be written; the first of them may have been.
    pub fn append(&self, events: &[Draft<'_>]) -> Result<(), JournalError> {
        let mut writer = self.writer();
        for event in events {
            writer.push(event)?;
        }
        writer.commit()
    }

    /// For who appends many events and looks at the state meanwhile.
    pub fn writer(&self) -> Writer<'_> {
        let writing = lock(&self.writing);
        let next = writing.next;
        Writer {
            journal: self,
            synced: writing.end,
            writing,
            next,
            changes: Vec::new(),
            frame: Vec::with_capacity(FRAME_BYTES + 1024),
            n_in_frame: 0,
            scratch: Vec::new(),
        }
    }

    /// The present state: the last event of every action that is there, in the order of their
    /// indexes, and the index after all that is known.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let writing = lock(&self.writing);
        let mut at: Vec<u64> = writing.live.entries().iter().map(Entry::at).collect();
        at.sort_unstable();
        at.reverse(); // the next one is taken from the end
        let (file, next) = (writing.file.try_clone()?, RecordIndex::new(writing.next));
        Ok(Snapshot { file, at, next, reader: EventReader::default() })
    }

    /// How many actions are there.
    pub fn n_live(&self) -> usize {
        lock(&self.writing).live.len()
    }

    /// Events up to `upto` need not be kept.
    pub fn clear(&self, upto: RecordIndex) {
        let mut shared = lock(&self.shared);
        shared.cleared = shared.cleared.max(upto.get());
        self.drop_old(&mut shared);
    }

    /// Removes the oldest segments that nobody needs, or that are too many.
    fn drop_old(&self, shared: &mut Shared) {
        while let &[oldest, second, ..] = shared.segments.as_slice() {
            let is_cleared = second <= shared.cleared + 1;
            let is_too_old = shared.next - second >= self.max_events;
            if !is_cleared && !is_too_old {
                return;
            }
            if !is_cleared && !std::mem::replace(&mut shared.overflowed, true) {
                warn!(
                    journal = %self.dir.display(), events = shared.next - oldest,
                    "more HSM events than hsm_max_events; the oldest are dropped, and readers that \
                     had not acknowledged them are told"
                );
            }
            if is_cleared {
                shared.overflowed = false;
            }
            if !self.lease.is_held() {
                return;
            }
            shared.segments.remove(0);
            let path = self.dir.join(segment_name(oldest));
            if let Err(error) = fs::remove_file(&path) {
                warn!(file = %path.display(), %error, "cannot remove an old journal");
            }
        }
    }

    /// Where the events of one segment are: its file, and up to where it may be read.
    pub(super) fn locate(&self, next: u64) -> Located {
        let shared = lock(&self.shared);
        if next >= shared.next {
            return Located::AtEnd;
        }
        let nth = shared.segments.partition_point(|&first| first <= next).saturating_sub(1);
        let first = shared.segments.get(nth).copied().unwrap_or(1);
        let behind = shared.segments.get(nth + 1).copied();
        let end = behind.is_none().then_some(shared.end);
        Located::In { first, end, behind: behind.unwrap_or(shared.next) }
    }

    pub(super) fn segment_path(&self, first: u64) -> PathBuf {
        self.dir.join(segment_name(first))
    }

    /// Makes `fd` readable whenever there are new events.
    pub(super) fn add_reader(&self, fd: &Arc<OwnedFd>) {
        let mut shared = lock(&self.shared);
        shared.readers.retain(|reader| reader.strong_count() > 0);
        shared.readers.push(Arc::downgrade(fd));
    }

    fn may_write(&self) -> io::Result<()> {
        let error = || io::Error::other("another lcapd may be at work");
        if self.lease.is_held() { Ok(()) } else { Err(error()) }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> JournalError + '_ {
        move |source| JournalError { path: self.dir.clone(), action, source }
    }
}

/// Where a reader has to read next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Located {
    /// Everything was read.
    AtEnd,
    /// In the segment that begins with that index; it may be read up to `end`, or whole.
    In {
        /// Its first index.
        first: u64,
        /// Of the newest segment: what is on disk.
        end: Option<u64>,
        /// The index after its last event.
        behind: u64,
    },
}

/// The state at one moment. Its file stays as long as this does.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    at: Vec<u64>,
    next: RecordIndex,
    reader: EventReader,
}

impl Snapshot {
    /// The index after everything that it knows.
    pub fn next_index(&self) -> RecordIndex {
        self.next
    }

    /// How many actions are left.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Appends the next events, marked as telling a state, up to about `n_bytes`; false if there
    /// are no more.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&mut self, n_bytes: usize, out: &mut Vec<u8>) -> io::Result<bool> {
        let from = out.len();
        while out.len() - from < n_bytes {
            let Some(at) = self.at.pop() else { break };
            let bytes = self.reader.event(&self.file, at)?;
            let event = split_first(bytes).ok().map(|(record, _)| HsmActionEvent::parse(&record));
            if let Some(Ok(event)) = event {
                HsmActionEvent { is_snapshot: true, ..event }.pack(out);
            }
        }
        Ok(out.len() > from)
    }
}

/// Appends events; what was not committed when it is dropped was not appended.
#[derive(Debug)]
pub struct Writer<'j> {
    journal: &'j Journal,
    writing: MutexGuard<'j, Writing>,
    /// Up to where the file is on disk.
    synced: u64,
    next: u64,
    changes: Vec<Change>,
    frame: Vec<u8>,
    n_in_frame: u32,
    scratch: Vec<u8>,
}

impl Writer<'_> {
    /// The actions that are there, without what was pushed and not committed.
    pub fn live(&self) -> &Live {
        &self.writing.live
    }

    /// The same, to be marked.
    pub fn live_mut(&mut self) -> &mut Live {
        &mut self.writing.live
    }

    /// The last event of an action, packed.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn last_event(&mut self, position: usize) -> Result<&[u8], JournalError> {
        let writing = &mut *self.writing;
        let at = writing.live.entries().get(position).map_or(0, Entry::at);
        let path = &self.journal.dir;
        writing.reader.event(&writing.file, at).map_err(|source| JournalError {
            path: path.clone(),
            action: "read an event",
            source,
        })
    }

    /// Adds an event. A `NEW` of an action that is there becomes an `UPDATE`; an event of one
    /// that is not becomes a `NEW`, or nothing if it was a purge.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push(&mut self, draft: &Draft<'_>) -> Result<(), JournalError> {
        let found = self.writing.live.find_action(draft.fields.slot, draft.fields.cookie);
        match (draft.kind, found) {
            (EventKind::Purged, None) => Ok(()),
            (EventKind::Purged, Some(position)) => {
                self.push_purge(position, draft.source, draft.time)
            }
            (_, None) => self.push_new(draft),
            (_, Some(position)) => self.push_update(position, draft),
        }
    }

    /// Adds `NEW`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push_new(&mut self, draft: &Draft<'_>) -> Result<(), JournalError> {
        let (raw, hash) = self.raw_of(draft);
        let event = HsmActionEvent {
            index: RecordIndex::new(self.next),
            prev: RecordIndex::ZERO,
            time: draft.time,
            created: draft.time,
            kind: EventKind::New,
            source: draft.source,
            last_status: StatusCode::UNKNOWN,
            fields: draft.fields,
            raw,
            raw_is_cut: draft.line.is_some_and(|line| line.len() > COMPARED_BYTES),
            is_snapshot: false,
        };
        let at = self.put(&event)?;
        let entry = Entry::new(draft.fields.slot, draft.fields.cookie, hash, at);
        self.changes.push(Change::New(entry));
        Ok(())
    }

    /// Adds `UPDATE` of the action at a position.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push_update(&mut self, position: usize, draft: &Draft<'_>) -> Result<(), JournalError> {
        let (raw, hash) = self.raw_of(draft);
        let before = self.before(position)?;
        let event = HsmActionEvent {
            index: RecordIndex::new(self.next),
            prev: before.index,
            time: draft.time,
            created: before.created,
            kind: EventKind::Update,
            source: draft.source,
            last_status: before.status,
            fields: draft.fields,
            raw,
            raw_is_cut: draft.line.is_some_and(|line| line.len() > COMPARED_BYTES),
            is_snapshot: false,
        };
        let at = self.put(&event)?;
        self.changes.push(Change::Update { position, hash, at });
        Ok(())
    }

    /// Adds `PURGED` of the action at a position, with all that was last known of it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push_purge(
        &mut self,
        position: usize,
        source: EventSource,
        time: RecordTime,
    ) -> Result<(), JournalError> {
        let mut last = std::mem::take(&mut self.scratch);
        last.clear();
        last.extend_from_slice(self.last_event(position)?);
        let event = split_first(&last).ok().map(|(record, _)| HsmActionEvent::parse(&record));
        if let Some(Ok(before)) = event {
            let event = HsmActionEvent {
                index: RecordIndex::new(self.next),
                prev: before.index,
                time,
                kind: EventKind::Purged,
                source,
                last_status: before.fields.status,
                is_snapshot: false,
                ..before
            };
            let at = self.put(&event)?;
            self.changes.push(Change::Purged { position, at });
        }
        self.scratch = last;
        Ok(())
    }

    fn before(&mut self, position: usize) -> Result<Before, JournalError> {
        let bytes = self.last_event(position)?;
        let event = split_first(bytes).ok().map(|(record, _)| HsmActionEvent::parse(&record));
        Ok(match event {
            Some(Ok(event)) => {
                Before { index: event.index, created: event.created, status: event.fields.status }
            }
            _ => Before::default(),
        })
    }

    /// The line if it has to be kept, and the hash of it.
    fn raw_of<'a>(&mut self, draft: &Draft<'a>) -> (Option<&'a [u8]>, u64) {
        self.scratch.clear();
        write_line(&draft.fields, &mut self.scratch);
        match draft.line {
            Some(line) if line != self.scratch.as_slice() => {
                let kept = &line[..line.len().min(COMPARED_BYTES)];
                (Some(kept), hash(kept))
            }
            _ => (None, hash(&self.scratch)),
        }
    }

    /// Puts an event into the frame that is being made; returns where it will lie.
    fn put(&mut self, event: &HsmActionEvent<'_>) -> Result<u64, JournalError> {
        let at = body_of(self.writing.end) + self.frame.len() as u64;
        event.pack(&mut self.frame);
        self.n_in_frame += 1;
        self.next += 1;
        if self.frame.len() >= FRAME_BYTES - lcap_ffi::record::MAX_RECORD_BYTES {
            self.flush()?;
        }
        Ok(at)
    }

    /// Writes the frame.
    fn flush(&mut self) -> Result<(), JournalError> {
        if self.n_in_frame == 0 {
            return Ok(());
        }
        self.journal.may_write().map_err(self.journal.failed("write"))?;
        let first = self.next - u64::from(self.n_in_frame);
        let written = write_frame(
            &self.writing.file,
            self.writing.end,
            FrameKind::Events,
            first,
            self.n_in_frame,
            &self.frame,
        );
        self.writing.end = written.map_err(self.journal.failed("write"))?;
        self.frame.clear();
        self.n_in_frame = 0;
        if self.writing.end - self.synced >= SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    /// Makes durable what was written, and shows it to readers.
    fn sync(&mut self) -> Result<(), JournalError> {
        if self.writing.end == self.synced {
            return Ok(());
        }
        self.writing.file.sync_data().map_err(self.journal.failed("write"))?;
        self.synced = self.writing.end;
        self.writing.next = self.next;
        let mut shared = lock(&self.journal.shared);
        (shared.end, shared.next) = (self.writing.end, self.next);
        self.journal.drop_old(&mut shared);
        shared.readers.retain(|reader| {
            let Some(fd) = reader.upgrade() else { return false };
            // Fails only if it is readable anyway.
            let _ = rustix::io::write(fd.as_fd(), &1_u64.to_ne_bytes());
            true
        });
        Ok(())
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// If it could not be written: what was is there and known, the rest is forgotten.
    pub fn commit(mut self) -> Result<(), JournalError> {
        let result = self.flush().and_then(|()| self.sync());
        self.settle();
        result?;
        let written = self.writing.end - self.writing.events_from;
        // A checkpoint costs about 200 bytes an action, so this keeps its share small.
        let checkpoint = 200 * self.writing.live.len() as u64;
        let n_events = self.writing.next - self.first_of_segment();
        let many = n_events >= (self.journal.max_events / 4).max(1000);
        if written >= MIN_SEGMENT_BYTES.max(2 * checkpoint) || many {
            // What cannot be done now (a full disk) is tried after the next commit.
            if let Err(error) = self.begin_segment() {
                warn!(journal = %self.journal.dir.display(), %error, "cannot begin a new segment");
            }
        }
        Ok(())
    }

    fn first_of_segment(&self) -> u64 {
        lock(&self.journal.shared).segments.last().copied().unwrap_or(1)
    }

    /// What is on disk becomes the state; the rest of the file goes.
    fn settle(&mut self) {
        let synced = self.synced;
        self.changes.retain(|change| change.at() < synced);
        let changes = std::mem::take(&mut self.changes);
        self.writing.live.apply(&changes);
        if self.writing.end > synced || !self.frame.is_empty() {
            self.frame.clear();
            self.n_in_frame = 0;
            self.writing.end = synced;
            self.next = self.writing.next;
            // If this fails, the next frame overwrites it, and after a crash what is left of it does
            // not pass for a frame or tells what the next reading would find anyway.
            let _ = self.writing.file.set_len(synced);
        }
        self.writing.reader.forget();
    }

    /// A file that begins with the present state.
    fn begin_segment(&mut self) -> io::Result<()> {
        let writing = &mut *self.writing;
        let first = writing.next;
        let mut order: Vec<usize> = (0..writing.live.len()).collect();
        let entries = writing.live.entries();
        order.sort_unstable_by_key(|&position| entries[position].at());
        let (old, reader) = (&writing.file, &mut writing.reader);
        reader.forget();
        let mut places = Vec::with_capacity(order.len());
        self.journal.may_write()?;
        let (file, end) = create_segment(&self.journal.dir, first, |file| {
            let (mut end, mut frame, mut n_events, mut index) = (HEAD_BYTES, Vec::new(), 0, 0);
            for &position in &order {
                let event = reader.event(old, entries[position].at())?;
                places.push(body_of(end) + frame.len() as u64);
                if n_events == 0 {
                    index = lcap_ffi::record::split_len(event).map_or(0, |(_, at)| at.get());
                }
                frame.extend_from_slice(event);
                n_events += 1;
                if frame.len() >= FRAME_BYTES - lcap_ffi::record::MAX_RECORD_BYTES {
                    end = write_frame(file, end, FrameKind::Checkpoint, index, n_events, &frame)?;
                    frame.clear();
                    n_events = 0;
                }
            }
            if n_events > 0 {
                end = write_frame(file, end, FrameKind::Checkpoint, index, n_events, &frame)?;
            }
            self.journal.may_write()?; // it took a while
            Ok(end)
        })?;
        for (&position, &at) in order.iter().zip(&places) {
            writing.live.relocate(position, at);
        }
        writing.reader.forget();
        (writing.file, writing.end, writing.events_from) = (file, end, end);
        self.synced = end;
        let mut shared = lock(&self.journal.shared);
        shared.segments.push(first);
        shared.end = end;
        self.journal.drop_old(&mut shared);
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}

#[derive(Default)]
struct Before {
    index: RecordIndex,
    created: RecordTime,
    status: StatusCode,
}

/// First indexes of the segments in a directory, oldest first. Removes what was being made when a
/// life ended.
fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".tmp") || name.ends_with(".new") {
            fs::remove_file(entry.path())?;
        } else if let Some(first) = name.strip_suffix(".events").and_then(|n| n.parse().ok()) {
            segments.push(first);
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Makes a segment: it is there whole, or not at all. Returns it and where its checkpoint ends.
fn create_segment(
    dir: &Path,
    first: u64,
    checkpoint: impl FnOnce(&File) -> io::Result<u64>,
) -> io::Result<(File, u64)> {
    let temporary = dir.join(format!("{first:020}.tmp"));
    let make = || {
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(true).truncate(true).open(&temporary)?;
        write_head(&file, first)?;
        let end = checkpoint(&file)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(segment_name(first)))?;
        sync_dir(dir)?;
        Ok((file, end))
    };
    make().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Reads the state from the newest segment.
fn recover(dir: &Path, file: File) -> io::Result<Writing> {
    let first = read_head(&file)?;
    let length = file.metadata()?.len();
    let mut live: HashMap<(Slot, u64), Entry> = HashMap::new();
    let (mut at, mut next, mut events_from) = (HEAD_BYTES, first, HEAD_BYTES);
    let (mut events, mut line) = (Vec::new(), Vec::new());
    while let Some(frame) = frame_at(&file, at, length)? {
        events.clear();
        if !read_events(&file, &frame, &mut events)? {
            break;
        }
        take_frame(&frame, &events, &mut live, &mut line);
        at = frame.end();
        match frame.kind {
            FrameKind::Checkpoint => events_from = at,
            FrameKind::Events => next = frame.last() + 1,
        }
    }
    if at < length {
        warn!(
            journal = %dir.display(), bytes = length - at,
            "what was being written when the last life ended is left out; it was told to nobody"
        );
        file.set_len(at)?;
        file.sync_all()?;
    }
    let live = live.into_values().collect();
    Ok(Writing { live, file, end: at, events_from, next, reader: EventReader::default() })
}

fn take_frame(
    frame: &Frame,
    events: &[u8],
    live: &mut HashMap<(Slot, u64), Entry>,
    line: &mut Vec<u8>,
) {
    let mut at = frame.body;
    for record in records(events).map_while(Result::ok) {
        if let Ok(event) = HsmActionEvent::parse(&record) {
            let key = (event.fields.slot, event.fields.cookie);
            if event.kind == EventKind::Purged {
                live.remove(&key);
            } else {
                line.clear();
                event.write_raw(line);
                live.insert(key, Entry::new(key.0, key.1, hash(line), at));
            }
        }
        at += record.as_bytes().len() as u64;
    }
}

#[cfg(test)]
mod tests;
