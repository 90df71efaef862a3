//! A stream's messages on their way to a sink: taken record by record, kept until Redis has them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use lcap_ffi::RecordIndex;
use lcap_ffi::record::split_len;
use lcap_wire::Kind;

use crate::pipeline::{Body, Outgoing};

/// A place in the feed: everything before it has been taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Messages before it, since the feed began.
    message: u64,
    /// Bytes before it within the message.
    offset: usize,
    /// Index of the record before it.
    last: RecordIndex,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// One record.
    Record {
        /// Its index.
        index: RecordIndex,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// Records are gone, or a new history begins at `first`.
    Gap {
        /// First index that is missing or issued again.
        first: RecordIndex,
        /// Last missing index; zero if that is not known.
        last: RecordIndex,
        /// The history from here on.
        generation: u16,
    },
}

/// Messages, oldest first.
#[derive(Debug, Default)]
pub struct Feed {
    messages: VecDeque<Outgoing>,
    /// How many messages were dropped from the front.
    dropped: u64,
    next: Mark,
}

/// Records of a batch as it was read are in order; policies may have chosen another.
fn is_ordered(message: &Outgoing) -> bool {
    matches!(&message.body, Body::Batch(batch) if batch.is_ordered())
}

impl Feed {
    /// Takes a message in.
    pub fn push(&mut self, message: Outgoing) {
        self.messages.push_back(message);
    }

    /// Everything before this was taken.
    pub fn mark(&self) -> Mark {
        self.next
    }

    fn message(&self, mark: Mark) -> Option<&Outgoing> {
        self.messages.get(usize::try_from(mark.message - self.dropped).ok()?)
    }

    /// What comes next, without taking it. Nothing: the feed is empty for now.
    pub fn peek(&self) -> Option<Item<'_>> {
        let message = self.message(self.next)?;
        let header = &message.header;
        if header.kind == Kind::Gap {
            let (first, last, generation) = (header.first, header.last, header.generation);
            return Some(Item::Gap { first, last, generation });
        }
        let rest = message.body.as_slice().get(self.next.offset..)?;
        let (size, index) = split_len(rest).ok()?;
        Some(Item::Record { index, bytes: rest.get(..size)? })
    }

    /// Takes what [`Self::peek`] showed.
    pub fn take(&mut self) {
        let Some(message) = self.message(self.next) else { return };
        let body = message.body.as_slice();
        let rest = body.get(self.next.offset..).unwrap_or_default();
        let (size, last) = match split_len(rest) {
            Ok(found) if message.header.kind != Kind::Gap => found,
            _ => (rest.len(), self.next.last),
        };
        let end = self.next.offset + size;
        let is_whole = end >= body.len();
        let message = self.next.message + u64::from(is_whole);
        self.next = Mark { message, offset: if is_whole { 0 } else { end }, last };
    }

    /// The stream's `low` at a place: everything up to it was taken or dropped by policies. And
    /// the MDT's history there.
    pub fn low_at(&self, mark: Mark) -> Option<(RecordIndex, u16)> {
        if mark.offset > 0 {
            let message = self.message(mark)?;
            if is_ordered(message) {
                return Some((mark.last, message.header.generation));
            }
        }
        let before = Mark { message: mark.message.checked_sub(1)?, ..Mark::default() };
        let header = &self.message(before)?.header;
        Some((header.low, header.generation))
    }

    /// Redis has everything before the mark: it need not be kept. One message stays, so that
    /// [`Self::low_at`] can be asked.
    pub fn settle(&mut self, mark: Mark) {
        while self.dropped + 1 < mark.message && self.messages.pop_front().is_some() {
            self.dropped += 1;
        }
    }

    /// Goes back: what was taken after the mark comes again.
    pub fn rewind(&mut self, mark: Mark) {
        self.next = mark;
    }
}
