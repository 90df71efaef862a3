//! A journal as a log that can be opened, read forward and cleared, like an MDT's changelog.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use lcap_ffi::RecordIndex;
use lcap_ffi::record::split_len;
use rustix::event::{EventfdFlags, eventfd};

use super::journal::{Journal, Located};
use super::segment::{FrameKind, HEAD_BYTES, frame_at, read_events};
use crate::source::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// A journal as an MDT's log of events.
#[derive(Debug)]
pub struct JournalUpstream(pub Arc<Journal>);

impl Upstream for JournalUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let fd = Arc::new(fd.map_err(|error| io_error("watch", error.into()))?);
        self.0.add_reader(&fd);
        let next = from.get().max(1);
        Ok(Box::new(JournalSource { journal: Arc::clone(&self.0), fd, next, segment: None }))
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        self.0.clear(upto);
        Ok(())
    }
}

fn io_error(action: &'static str, source: io::Error) -> SourceError {
    SourceError::Io { action, what: "the journal of HSM events".to_owned(), source }
}

/// A journal, read forward.
#[derive(Debug)]
struct JournalSource {
    journal: Arc<Journal>,
    /// Readable when there is news.
    fd: Arc<OwnedFd>,
    next: u64,
    segment: Option<OpenSegment>,
}

#[derive(Debug)]
struct OpenSegment {
    first: u64,
    file: File,
    at: u64,
}

impl ChangelogSource for JournalSource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        // Before looking, so that what comes after the look makes it readable again.
        let _ = rustix::io::read(self.fd.as_fd(), &mut [0_u8; 8]);
        let before = buf.len();
        loop {
            let Located::In { first, end, behind } = self.journal.locate(self.next) else {
                return Ok(ReadOutcome::Wait {
                    on: WaitFor::Readable(self.fd.as_raw_fd()),
                    at_end: true,
                });
            };
            if self.segment.as_ref().is_none_or(|open| open.first != first) {
                match File::open(self.journal.segment_path(first)) {
                    Ok(file) => self.segment = Some(OpenSegment { first, file, at: HEAD_BYTES }),
                    // Cleared in this very moment; look again.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(io_error("open", error)),
                }
            }
            if self.read_segment(end, buf).map_err(|error| io_error("read", error))? {
                return Ok(ReadOutcome::Bytes(buf.len() - before));
            }
            // Nothing in there that is wanted: a crash cut it short. What is missing shows as a hole.
            self.next = self.next.max(behind);
        }
    }
}

impl JournalSource {
    /// Takes events out of the open segment; false if it has none of those that are wanted.
    fn read_segment(&mut self, end: Option<u64>, buf: &mut Vec<u8>) -> io::Result<bool> {
        let Some(open) = &mut self.segment else { return Ok(false) };
        let end = match end {
            Some(end) => end,
            None => open.file.metadata()?.len(),
        };
        let before = buf.len();
        let mut events = Vec::new();
        while let Some(frame) = frame_at(&open.file, open.at, end)? {
            if frame.kind == FrameKind::Events && frame.last() >= self.next {
                if buf.capacity() - buf.len() < frame.size && buf.len() > before {
                    return Ok(true);
                }
                events.clear();
                if !read_events(&open.file, &frame, &mut events)? {
                    let damaged = format!("the events from index {} on are damaged", frame.first);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, damaged));
                }
                let mut rest = events.as_slice();
                while let Ok((size, index)) = split_len(rest) {
                    if index.get() >= self.next {
                        buf.extend_from_slice(&rest[..size]);
                        self.next = index.get() + 1;
                    }
                    rest = &rest[size..];
                }
            }
            open.at = frame.end();
        }
        Ok(buf.len() > before)
    }
}
