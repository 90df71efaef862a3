//! Where records lie that are on their way through a chain.
//!
//! A module may hold millions of them, so each takes few bytes here: eight say where a pushed record lies
//! ([`Source`]), sixteen say what a module's token means ([`Slot`]).
#![forbid(unsafe_code)]

use std::num::NonZeroU64;
use std::sync::Arc;

use lcap_ffi::{MdtName, RecordIndex};

use super::super::Nanos;
use super::super::window::Window;
use crate::batch::{Batch, index_of};

/// Beyond the slack: pinned bytes per byte of held records before they are copied together.
pub(super) const PINNED_FACTOR: usize = 4;

/// The records of a chain.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) mdts: Vec<MdtLog>,
    /// Records of the modules' making, of all MDTs.
    pub(super) made: Window<Made>,
}

impl Places {
    pub(super) fn new(mdts: &[MdtName]) -> Self {
        let mdts = mdts.iter().map(|name| MdtLog::new(name.clone())).collect();
        Self { mdts, made: Window::new(0) }
    }

    pub(super) fn mdt(&self, mdt: u32) -> Option<&MdtLog> {
        self.mdts.get(mdt as usize)
    }

    pub(super) fn mdt_mut(&mut self, mdt: u32) -> Option<&mut MdtLog> {
        self.mdts.get_mut(mdt as usize)
    }

    /// The packed record.
    #[inline]
    pub(super) fn record(&self, slot: Slot) -> &[u8] {
        // What is on its way has its place, so the default is never used.
        let record = match slot.body() {
            Body::Source(number) => self.mdt(slot.mdt()).and_then(|log| log.record(number)),
            Body::Made(number) => self.made.get(number).map(|made| &*made.record),
        };
        record.unwrap_or_default()
    }

    /// Takes out a record of a module's making that is on its way no longer.
    pub(super) fn take_made(&mut self, number: u64) -> Made {
        let nothing = || Made { record: Box::default(), sources: Vec::new() };
        self.made.take(number).unwrap_or_else(nothing)
    }
}

/// A record on its way through the chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// From the top: a bit that is set, one for a record of a module's making, [`MDT_BITS`] of the
    /// MDT, and its number.
    packed: NonZeroU64,
    /// Key for the lanes of a queue; zero is none.
    pub(super) route: u64,
}

/// What a slot stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// As it was pushed: its number in its MDT's log.
    Source(u64),
    /// A module's own: its number in [`Places::made`].
    Made(u64),
}

const MDT_BITS: u32 = 14;
/// More than Lustre can have.
pub(super) const MAX_MDTS: usize = 1 << MDT_BITS;
/// A million records a second for eight years.
const NUMBER_BITS: u32 = 48;
const SET: u64 = 1 << 63;
const MADE: u64 = 1 << 62;

impl Slot {
    fn new(kind: u64, mdt: u32, number: u64) -> Self {
        let packed = SET | kind | u64::from(mdt) << NUMBER_BITS | number;
        Self { packed: NonZeroU64::new(packed).unwrap_or(NonZeroU64::MIN), route: 0 }
    }

    /// Of a pushed record.
    #[inline]
    pub(super) fn source(mdt: u32, number: u64) -> Self {
        Self::new(0, mdt, number)
    }

    /// Of a record of a module's making.
    pub(super) fn made(mdt: u32, number: u64) -> Self {
        Self::new(MADE, mdt, number)
    }

    /// Number of its MDT.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // 14 bits are left
    pub(super) fn mdt(self) -> u32 {
        (self.packed.get() >> NUMBER_BITS) as u32 & (MAX_MDTS as u32 - 1)
    }

    #[inline]
    pub(super) fn body(self) -> Body {
        let number = self.packed.get() & ((1 << NUMBER_BITS) - 1);
        if self.packed.get() & MADE == 0 { Body::Source(number) } else { Body::Made(number) }
    }
}

/// A record of a module's making.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) record: Box<[u8]>,
    /// Numbers of the pushed records that it stands for.
    pub(super) sources: Vec<u64>,
}

/// The pushed records of one MDT that are not settled.
#[derive(Debug)]
pub(super) struct MdtLog {
    pub(super) name: MdtName,
    pub(super) sources: Window<Source>,
    pub(super) buffers: Window<Buffer>,
    /// Highest index pushed.
    pub(super) last: RecordIndex,
    /// As of the last pull.
    pub(super) low: RecordIndex,
    pub(super) dropped: u64,
}

/// Where a record lies: which buffer (its number's low bits), and which record of that. Eight bytes, since
/// a module may hold millions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source(NonZeroU64);

/// A batch has less than 4 GiB, and a record at least 64 bytes.
const NTH_BITS: u32 = 26;
/// Far more buffers than any chain has at a time.
const BUFFER_BITS: u32 = 37;

impl Source {
    pub(super) fn new(buffer: u64, nth: usize) -> Self {
        let buffer = buffer & ((1 << BUFFER_BITS) - 1);
        // The top bit makes it differ from zero.
        let packed = 1 << 63 | buffer << NTH_BITS | nth as u64;
        Self(NonZeroU64::new(packed).unwrap_or(NonZeroU64::MIN))
    }

    /// The buffer's number, which is below `next` and not by much.
    #[inline]
    pub(super) fn buffer(self, next: u64) -> u64 {
        let behind = next.wrapping_sub(self.0.get() >> NTH_BITS) & ((1 << BUFFER_BITS) - 1);
        next.wrapping_sub(behind)
    }

    #[inline]
    pub(super) fn nth(self) -> usize {
        (self.0.get() & ((1 << NTH_BITS) - 1)) as usize
    }
}

/// A batch of which some records are not settled.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) batch: Arc<Batch>,
    /// When the (first) of its records was pushed.
    pub(super) since: Nanos,
    pub(super) n_live: usize,
    pub(super) live_bytes: usize,
    /// With fewer live bytes than this the batch is not worth its memory.
    move_below: usize,
}

impl Buffer {
    pub(super) fn new(batch: Arc<Batch>, since: Nanos) -> Self {
        let (n_live, live_bytes) = (batch.len(), batch.bytes.len());
        Self { batch, since, n_live, live_bytes, move_below: live_bytes / PINNED_FACTOR }
    }
}

impl MdtLog {
    pub(super) fn new(name: MdtName) -> Self {
        Self {
            name,
            sources: Window::new(0),
            buffers: Window::new(0),
            last: RecordIndex::ZERO,
            low: RecordIndex::ZERO,
            dropped: 0,
        }
    }

    #[inline]
    pub(super) fn record(&self, number: u64) -> Option<&[u8]> {
        let source = self.sources.get(number)?;
        let buffer = self.buffers.get(source.buffer(self.buffers.next()))?;
        Some(buffer.batch.record(source.nth()))
    }

    pub(super) fn first_unsettled(&self) -> Option<RecordIndex> {
        let (number, _) = self.sources.first()?;
        self.record(number).map(index_of)
    }

    /// Copies the records of mostly settled buffers into one; returns the bytes that
    /// all buffers have then.
    pub(super) fn copy_together(&mut self) -> usize {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let (mut first, mut last) = (RecordIndex::new(u64::MAX), RecordIndex::ZERO);
        let (buffer, mut since) = (self.buffers.next(), Nanos(u64::MAX));
        for source in self.sources.iter_mut() {
            let number = source.buffer(buffer);
            let Some(from) = self.buffers.get_mut(number) else { continue };
            let record = from.batch.record(source.nth());
            let Ok(end) = u32::try_from(bytes.len() + record.len()) else { break };
            let nth = ends.len();
            let mostly_settled = from.move_below > from.live_bytes;
            if !mostly_settled {
                continue;
            }
            bytes.extend_from_slice(record);
            ends.push(end);
            first = first.min(index_of(record));
            last = last.max(index_of(record));
            since = since.min(from.since);
            from.n_live -= 1;
            if from.n_live == 0 {
                self.buffers.take(number);
            }
            *source = Source::new(buffer, nth);
        }
        if !ends.is_empty() {
            let batch = Arc::new(Batch::from_parts(bytes, ends, first, last));
            self.buffers.push(Buffer::new(batch, since));
        }
        self.buffers.iter().map(|(_, buffer)| buffer.batch.bytes.len()).sum()
    }
}
