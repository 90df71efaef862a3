//! One open changelog file: what the kernel's reader does, as plain state. No I/O, no clock.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lcap_ffi::RecordIndex;
use lcap_ffi::device::FOLLOW;
use lcapd::source::ClearError;
use lcapd::source::sim::{Generator, SimMdt};

/// Records that the kernel's queue holds, and so the most that one read gives.
const QUEUE_RECORDS: u64 = 1024;
/// Longest command that the device takes.
const MAX_COMMAND_BYTES: usize = 64;

/// An MDT, and how often its descriptors were all cut off.
#[derive(Debug)]
pub(super) struct ServedMdt {
    pub(super) mdt: Arc<SimMdt>,
    n_evictions: AtomicU64,
}

impl ServedMdt {
    pub(super) fn new(mdt: Arc<SimMdt>) -> Self {
        Self { mdt, n_evictions: 0.into() }
    }

    /// Carries out a command that was written; errors are errno values.
    pub(super) fn command(&self, text: &[u8]) -> Result<(), i32> {
        if text.len() > MAX_COMMAND_BYTES {
            return Err(libc::EINVAL);
        }
        if text.trim_ascii_end() == b"sim:evict" {
            self.n_evictions.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let (user, index) = parse_clear(text).ok_or(libc::EINVAL)?;
        // Index 0 means everything, as it does on a real MDT.
        let upto = if index == 0 { self.mdt.newest() } else { RecordIndex::new(index) };
        match self.mdt.clear(user, upto) {
            Ok(()) => Ok(()),
            Err(ClearError::NoUser { .. }) => Err(libc::ENOENT),
            Err(ClearError::OutOfRange(_)) => Err(libc::EINVAL),
            Err(_) => Err(libc::EIO),
        }
    }
}

/// `clear:cl%u:%llu`, with anything behind it.
fn parse_clear(text: &[u8]) -> Option<(u32, u64)> {
    let (user, rest) = number(text.strip_prefix(b"clear:cl")?)?;
    let (index, _) = number(rest.strip_prefix(b":")?)?;
    Some((u32::try_from(user).ok()?, index))
}

/// The decimal digits at the start, and what follows.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let n_digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(n_digits);
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

/// Answer to a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Whole records, or nothing at the end or if the next one does not fit.
    Data(Vec<u8>),
    /// An errno.
    Error(i32),
    /// Nothing yet; ask again at that moment, or when something else happens.
    Wait(Option<Instant>),
}

/// What `poll` finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    pub(super) readable: bool,
    pub(super) hung_up: bool,
    pub(super) failed: bool,
    /// If nothing was found: look again then.
    pub(super) look_again: Option<Instant>,
}

impl Events {
    pub(super) fn any(self) -> bool {
        self.readable || self.hung_up || self.failed
    }
}

/// One open file.
#[derive(Debug)]
pub(super) struct OpenLog {
    served: Arc<ServedMdt>,
    scan: Duration,
    n_evictions: u64,
    follow: bool,
    /// The kernel's thread runs: a `poll` or a blocking read came.
    started: bool,
    /// Set by the first read, which brings the position.
    cursor: Option<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    generator: Generator,
    /// File position that the kernel has after what was read.
    position: u64,
    /// Records that the last look at the log found are those before this ordinal.
    visible: u64,
    looked_at: Instant,
    /// The end was met without follow mode, and stays.
    ended: bool,
}

impl OpenLog {
    pub(super) fn new(served: Arc<ServedMdt>, scan: Duration) -> Self {
        let n_evictions = served.n_evictions.load(Ordering::Relaxed);
        Self { served, scan, n_evictions, follow: false, started: false, cursor: None }
    }

    /// The ioctl: without effect once the kernel's thread runs.
    pub(super) fn set_flags(&mut self, flags: u64) {
        if !self.started {
            self.follow = flags & FOLLOW != 0;
        }
    }

    /// A read at a file position, of at most `size` bytes.
    pub(super) fn read(
        &mut self,
        position: u64,
        size: usize,
        nonblocking: bool,
        now: Instant,
    ) -> Answer {
        if self.is_evicted() {
            return Answer::Error(libc::EIO);
        }
        if nonblocking && !self.started {
            return Answer::Error(libc::EAGAIN); // for ever, until somebody polls
        }
        self.started = true;
        if let Err(errno) = self.go_to(position, now) {
            return Answer::Error(errno);
        }
        let events = self.look(now);
        let Some(cursor) = &mut self.cursor else { return Answer::Error(libc::EIO) };
        if events.hung_up {
            return Answer::Data(Vec::new());
        }
        if !events.readable {
            return match nonblocking {
                true => Answer::Error(libc::EAGAIN),
                false => Answer::Wait(events.look_again),
            };
        }
        let waiting = cursor.visible - cursor.generator.ordinal();
        let mut data = Vec::with_capacity(size);
        cursor.generator.fill(&mut data, waiting.min(QUEUE_RECORDS));
        cursor.position += data.len() as u64;
        self.served.mdt.note_read(cursor.generator.ordinal());
        Answer::Data(data)
    }

    /// A `poll`, which starts the kernel's thread.
    pub(super) fn poll(&mut self, now: Instant) -> Events {
        if self.is_evicted() {
            return Events { failed: true, ..Events::default() };
        }
        self.started = true;
        if self.cursor.is_some() {
            return self.look(now);
        }
        // The position is not known before the first read. Say that there is something whenever
        // that may be; a reader that does not block finds out.
        let oldest = self.served.mdt.generator_at(RecordIndex::ZERO).ordinal();
        let readable = self.served.mdt.n_existing() > oldest;
        let hung_up = !readable && !self.follow;
        let look_again = self.served.mdt.due(oldest).map(|due| due.max(now + self.scan));
        Events { readable, hung_up, look_again, ..Events::default() }
    }

    fn is_evicted(&self) -> bool {
        self.served.n_evictions.load(Ordering::Relaxed) != self.n_evictions
    }

    /// A position other than the one after the last read is an index that was sought.
    fn go_to(&mut self, position: u64, now: Instant) -> Result<(), i32> {
        let index = RecordIndex::new(position);
        match &mut self.cursor {
            None => {
                let generator = self.served.mdt.generator_at(index);
                let visible = self.served.mdt.n_existing();
                self.cursor =
                    Some(Cursor { generator, position, visible, looked_at: now, ended: false });
            }
            Some(cursor) if cursor.position != position => {
                let sought = self.served.mdt.generator_at(index);
                if sought.ordinal() < cursor.generator.ordinal() {
                    return Err(libc::EINVAL);
                }
                cursor.generator = sought;
                cursor.position = position;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// What the kernel's thread has found: it looks at once while it finds something, and then
    /// every so often, or no more.
    fn look(&mut self, now: Instant) -> Events {
        let Some(cursor) = &mut self.cursor else { return Events::default() };
        let mdt = &self.served.mdt;
        let ordinal = cursor.generator.ordinal();
        let next_look = cursor.looked_at + self.scan;
        if ordinal >= cursor.visible && !cursor.ended && (!self.follow || now >= next_look) {
            (cursor.visible, cursor.looked_at) = (mdt.n_existing(), now);
            cursor.ended = !self.follow && ordinal >= cursor.visible;
        }
        if ordinal < cursor.visible && !cursor.ended {
            return Events { readable: true, ..Events::default() };
        }
        let next_look = cursor.looked_at + self.scan;
        let look_again = mdt.due(ordinal).map(|due| due.max(next_look));
        Events { hung_up: cursor.ended, look_again, ..Events::default() }
    }
}
