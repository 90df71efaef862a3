//! One reading of an MDT's list: what has changed since the last one becomes events.
//!
//! A line that is as it was costs a hash of its bytes and nothing else; only others are parsed.
//!
//! | found | events |
//! | --- | --- |
//! | a slot that was not there | NEW |
//! | another line in a slot, of the same request | UPDATE |
//! | another request in a slot | PURGED, NEW |
//! | a slot that is gone | PURGED, at the end |
//!
//! A line that cannot be parsed, or does not say what is asked for, is counted. If it tells its slot at least, what was there stays
//! there. If it does not, it may be any line, so nothing is purged that the next reading does not
//! miss, too. And if there are more of those than others, the text is no list of actions and nothing
//! is purged at all.
#![forbid(unsafe_code)]

use std::io::{self, Read};

use lcap_ffi::hsm_action::line::{ActionLine, MAX_DATA_BYTES, slot_of};
use lcap_ffi::hsm_action::{EventKind, EventSource, HsmActionEvent, RecordTime};
use lcap_ffi::record::split_first;

use super::journal::{Draft, JournalError, Writer};
use super::live::{COMPARED_BYTES, hash};

/// Read at once. The kernel makes the whole list before the first byte.
const CHUNK_BYTES: usize = 128 << 10;

/// What a reading found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Lines, blank ones not counted.
    pub lines: u64,
    /// Lines that could not be used.
    pub bad_lines: u64,
    /// Events.
    pub new: u64,
    /// Events.
    pub updated: u64,
    /// Events.
    pub purged: u64,
    /// Actions that were not found and that the next reading decides about.
    pub doubtful: u64,
}

impl Found {
    /// Number of events.
    pub fn events(&self) -> u64 {
        self.new + self.updated + self.purged
    }
}

/// Why a reading was not finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The list could not be read to its end. What it had until then was taken.
    #[error("cannot read the list of actions")]
    Read(#[from] io::Error),
    /// What has changed could not be written down; the next reading finds it again.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Reads a list and appends what has changed.
///
/// # Errors
/// [`ScanError`].
pub fn scan(
    mut list: impl Read,
    mut writer: Writer<'_>,
    now: RecordTime,
) -> Result<Found, ScanError> {
    writer.live_mut().begin_reading();
    let mut scan = Scan { writer, now, hint: 0, unknown: 0, found: Found::default() };
    match scan.read(&mut list) {
        Ok(()) => scan.purge()?,
        Err(ScanError::Read(error)) => {
            scan.writer.commit()?;
            return Err(error.into());
        }
        Err(error) => return Err(error),
    }
    scan.writer.commit()?;
    Ok(scan.found)
}

struct Scan<'j> {
    writer: Writer<'j>,
    now: RecordTime,
    /// Position after that of the last line's slot.
    hint: usize,
    /// Lines that may be any.
    unknown: u64,
    found: Found,
}

impl Scan<'_> {
    /// Takes the lines apart as they come. A line longer than the buffer is not one of Lustre's.
    fn read(&mut self, list: &mut impl Read) -> Result<(), ScanError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut have, mut overlong) = (0, false);
        loop {
            let n = match list.read(&mut chunk[have..]) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if n == 0 {
                if have > 0 && !overlong {
                    self.line(&chunk[..have], false)?;
                }
                return Ok(());
            }
            let end = have + n;
            let mut from = 0;
            while let Some(at) = memchr(&chunk[from..end]) {
                if !std::mem::take(&mut overlong) {
                    self.line(&chunk[from..from + at], true)?;
                }
                from += at + 1;
            }
            chunk.copy_within(from..end, 0);
            have = end - from;
            if have == chunk.len() {
                if !overlong {
                    (self.found.lines, self.found.bad_lines) =
                        (self.found.lines + 1, self.found.bad_lines + 1);
                    self.unknown += 1;
                }
                (have, overlong) = (0, true);
            }
        }
    }

    /// A line; without its end it may be half of one.
    fn line(&mut self, line: &[u8], has_end: bool) -> Result<(), ScanError> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        self.found.lines += 1;
        let Some(slot) = slot_of(line) else {
            self.found.bad_lines += 1;
            self.unknown += 1;
            return Ok(());
        };
        let position = self.writer.live().find(slot, self.hint);
        if let Some(position) = position {
            self.hint = position + 1;
            let entry = &mut self.writer.live_mut().entries_mut()[position];
            if entry.hash == hash(line) {
                entry.see();
                return Ok(());
            }
        }
        let parsed = ActionLine::parse(line).ok().filter(|parsed| {
            let fields = &parsed.fields;
            let is_known = fields.action.0 != 0 && fields.status.0 != 0;
            if has_end { !parsed.action.is_empty() } else { is_known }
        });
        let Some(parsed) = parsed else {
            self.found.bad_lines += 1;
            if let Some(position) = position {
                self.writer.live_mut().entries_mut()[position].see();
            }
            return Ok(());
        };
        let mut room = [0; MAX_DATA_BYTES];
        let fields = parsed.fields(&mut room);
        let (source, time) = (EventSource::Actions, self.now);
        let mut draft = Draft { kind: EventKind::New, source, time, fields, line: Some(line) };
        match position {
            Some(position) => {
                // Seen either way: what is not in the slot any more was purged here.
                let entry = &mut self.writer.live_mut().entries_mut()[position];
                let was_seen = entry.is_seen();
                entry.see();
                if was_seen {
                    // The same slot twice in one list: the first one counts.
                    self.found.bad_lines += 1;
                } else if self.is_same_request(position, &draft)? {
                    draft.kind = EventKind::Update;
                    self.writer.push_update(position, &draft)?;
                    self.found.updated += 1;
                } else {
                    self.writer.push_purge(position, source, time)?;
                    self.writer.push_new(&draft)?;
                    self.found.purged += 1;
                    self.found.new += 1;
                }
            }
            None => {
                self.writer.push_new(&draft)?;
                self.found.new += 1;
            }
        }
        Ok(())
    }

    /// Whether the action at a position is the one of this line: its slot may have been used again.
    fn is_same_request(
        &mut self,
        position: usize,
        draft: &Draft<'_>,
    ) -> Result<bool, JournalError> {
        let cookie = self.writer.live().entries()[position].cookie;
        if cookie != draft.fields.cookie {
            return Ok(false);
        }
        let bytes = self.writer.last_event(position)?;
        let event = split_first(bytes).ok().map(|(record, _)| HsmActionEvent::parse(&record));
        Ok(event.is_none_or(|event| {
            event.is_ok_and(|event| {
                let (was, is) = (event.fields, draft.fields);
                was.fid == is.fid && was.action == is.action
            })
        }))
    }

    /// What was not in the list is gone.
    fn purge(&mut self) -> Result<(), ScanError> {
        let good = self.found.lines - self.found.bad_lines;
        let is_list = self.unknown == 0 || good > self.unknown;
        for position in 0..self.writer.live().len() {
            let entry = &mut self.writer.live_mut().entries_mut()[position];
            if entry.is_seen() {
                continue;
            }
            if self.unknown == 0 || (is_list && entry.was_missed()) {
                self.writer.push_purge(position, EventSource::Actions, self.now)?;
                self.found.purged += 1;
            } else {
                if is_list {
                    entry.miss();
                }
                self.found.doubtful += 1;
            }
        }
        Ok(())
    }
}

/// Position of the first newline.
fn memchr(text: &[u8]) -> Option<usize> {
    text.iter().position(|&byte| byte == b'\n')
}

const _: () = assert!(COMPARED_BYTES < CHUNK_BYTES);

#[cfg(test)]
mod tests;
