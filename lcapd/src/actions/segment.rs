//! One file of a journal.
//!
//! ```text
//! head    24 bytes: magic, index of the first event, zero
//! frames  24 bytes (size, CRC-32C, kind, count, first index), then so many packed events
//! ```
//!
//! The first frames are a checkpoint: the last event of each action that was there when the segment
//! began, so that the newest segment alone tells the whole state. The rest are events. Whatever is
//! not a whole frame at the end was being written when lcapd or the machine died.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use lcap_ffi::record::{MAX_RECORD_BYTES, split_len};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A frame's events are not more than this: any read buffer has room for a frame.
pub const FRAME_BYTES: usize = 48 << 10;
/// Size of the head of a file.
pub const HEAD_BYTES: u64 = size_of::<Head>() as u64;

const MAGIC: [u8; 8] = *b"LCAPHSM1";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    first: U64,
    reserved: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct FrameHead {
    size: U32,
    crc: U32,
    kind: U32,
    count: U32,
    first: U64,
}
const _: () = assert!(size_of::<Head>() == 24 && size_of::<FrameHead>() == 24);

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Last events of actions that were there when the segment began.
    Checkpoint,
    /// Events.
    Events,
}

/// A frame that was read.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Index of its first event.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Where its events begin in the file.
    pub body: u64,
    /// Bytes of them.
    pub size: usize,
    crc: u32,
}

impl Frame {
    /// Where the next frame begins.
    pub fn end(&self) -> u64 {
        self.body + self.size as u64
    }

    /// Index of its last event.
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count).saturating_sub(1)
    }
}

/// Writes the head of a file.
///
/// # Errors
/// The system's.
pub fn write_head(file: &File, first: u64) -> io::Result<()> {
    let head = Head { magic: MAGIC, first: first.into(), reserved: 0.into() };
    file.write_all_at(head.as_bytes(), 0)
}

/// The index of the first event of a file.
///
/// # Errors
/// The system's, or that it is no segment.
pub fn read_head(file: &File) -> io::Result<u64> {
    let mut head = Head::new_zeroed();
    file.read_exact_at(head.as_mut_bytes(), 0)?;
    if head.magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a journal of HSM events"));
    }
    Ok(head.first.get())
}

/// Writes a frame at `at`; returns where its events lie and where it ends.
///
/// # Errors
/// The system's; part of it may be in the file then.
pub fn write_frame(
    file: &File,
    at: u64,
    kind: FrameKind,
    first: u64,
    count: u32,
    events: &[u8],
) -> io::Result<u64> {
    let mut head = FrameHead {
        size: u32::try_from(events.len()).unwrap_or(u32::MAX).into(),
        crc: 0.into(),
        kind: u32::from(kind == FrameKind::Events).into(),
        count: count.into(),
        first: first.into(),
    };
    head.crc = crc_of(&head, events).into();
    file.write_all_at(head.as_bytes(), at)?;
    let body = at + size_of::<FrameHead>() as u64;
    file.write_all_at(events, body)?;
    Ok(body + events.len() as u64)
}

/// Where the events of a frame that is written at `at` will lie.
pub fn body_of(at: u64) -> u64 {
    at + size_of::<FrameHead>() as u64
}

fn crc_of(head: &FrameHead, events: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head.as_bytes()[8..]), events)
}

/// The head of the frame at `at`; `None` if there is no whole one before `end`.
///
/// # Errors
/// The system's.
pub fn frame_at(file: &File, at: u64, end: u64) -> io::Result<Option<Frame>> {
    if body_of(at) > end {
        return Ok(None);
    }
    let mut head = FrameHead::new_zeroed();
    file.read_exact_at(head.as_mut_bytes(), at)?;
    let size = head.size.get() as usize;
    let frame = Frame {
        kind: if head.kind.get() == 0 { FrameKind::Checkpoint } else { FrameKind::Events },
        first: head.first.get(),
        count: head.count.get(),
        body: body_of(at),
        size,
        crc: head.crc.get(),
    };
    let fits = size <= FRAME_BYTES + MAX_RECORD_BYTES && frame.end() <= end && head.kind.get() <= 1;
    Ok(fits.then_some(frame))
}

/// Appends a frame's events to `out`; false if they are damaged, and `out` is as before then.
///
/// # Errors
/// The system's.
pub fn read_events(file: &File, frame: &Frame, out: &mut Vec<u8>) -> io::Result<bool> {
    let from = out.len();
    out.resize(from + frame.size, 0);
    file.read_exact_at(&mut out[from..], frame.body)?;
    let head = FrameHead {
        size: u32::try_from(frame.size).unwrap_or(u32::MAX).into(),
        crc: frame.crc.into(),
        kind: u32::from(frame.kind == FrameKind::Events).into(),
        count: frame.count.into(),
        first: frame.first.into(),
    };
    let is_whole = crc_of(&head, &out[from..]) == frame.crc;
    if !is_whole {
        out.truncate(from);
    }
    Ok(is_whole)
}

/// Reads single events out of a file, many of them near each other.
#[derive(Debug, Default)]
pub struct EventReader {
    at: u64,
    window: Vec<u8>,
}

/// What is read at once.
const WINDOW_BYTES: usize = 64 << 10;

impl EventReader {
    /// The packed event at an offset.
    ///
    /// # Errors
    /// The system's, or that there is none.
    pub fn event(&mut self, file: &File, at: u64) -> io::Result<&[u8]> {
        let inside = |reader: &Self| {
            let skip = usize::try_from(at.checked_sub(reader.at)?).ok()?;
            let (size, _) = split_len(reader.window.get(skip..)?).ok()?;
            Some(skip..skip + size)
        };
        let range = match inside(self) {
            Some(range) => range,
            None => {
                self.fill(file, at)?;
                inside(self).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "no event where there should be one")
                })?
            }
        };
        Ok(&self.window[range])
    }

    fn fill(&mut self, file: &File, at: u64) -> io::Result<()> {
        self.at = at;
        self.window.resize(WINDOW_BYTES, 0);
        let mut have = 0;
        while have < WINDOW_BYTES {
            match file.read_at(&mut self.window[have..], at + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.window.truncate(have);
        Ok(())
    }

    /// Forgets what it has read: another file.
    pub fn forget(&mut self) {
        self.window.clear();
    }
}
