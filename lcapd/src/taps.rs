//! Filters that consumers give at start: equal ones are evaluated once and get a topic of their own.
//!
//! A tap sends a message for every message of its stream, under the same sequence and `low`, with
//! only the records that pass, possibly none: so everything that is true of sequences, barriers and
//! acknowledgements of the stream is true of the tap, and what is filtered out settles by itself.
#![forbid(unsafe_code)]

use std::sync::{Arc, PoisonError, RwLock};

use lcap_ffi::MdtName;
use lcap_ffi::record::records;
use lcap_filter::Filter;
use lcap_wire::{Header, Kind};

use crate::pipeline::{Body, Outgoing};

/// Number of a tap within its stream; never used again.
pub type TapId = u64;

/// One filter of one stream.
#[derive(Debug)]
pub struct Tap {
    /// Its number.
    pub id: TapId,
    /// Which records pass.
    pub filter: Filter,
}

/// The taps of one stream, shared by the engine, which opens and closes them, the workers and the
/// publisher.
#[derive(Clone, Debug, Default)]
pub struct Taps(Arc<RwLock<Arc<Vec<Arc<Tap>>>>>);

impl Taps {
    /// The taps at this moment.
    pub fn now(&self) -> Arc<Vec<Arc<Tap>>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds one. Every message that a worker makes from now on has it.
    pub fn open(&self, tap: Arc<Tap>) {
        let mut taps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut list = taps.as_ref().clone();
        list.push(tap);
        *taps = Arc::new(list);
    }

    /// Removes one.
    pub fn close(&self, id: TapId) {
        let mut taps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let list = taps.iter().filter(|tap| tap.id != id).cloned().collect();
        *taps = Arc::new(list);
    }
}

/// The stream name in a tap's topics. `#` is in no stream's own name.
pub fn topic_name(stream: &str, tap: TapId) -> String {
    format!("{stream}#{tap}")
}

/// A message with only the records that pass each filter, in the filters' order. Each record is
/// parsed once for all of them.
pub fn filtered<'a>(
    message: &Outgoing,
    mdt: &MdtName,
    filters: impl ExactSizeIterator<Item = &'a Filter>,
) -> Vec<Outgoing> {
    if message.header.kind != Kind::Records {
        return filters.map(|_| message.clone()).collect();
    }
    let filters: Vec<&Filter> = filters.collect();
    let mut parts: Vec<Part> = filters.iter().map(|_| Part::default()).collect();
    for record in records(message.body.as_slice()).map_while(Result::ok) {
        for (filter, part) in filters.iter().zip(&mut parts) {
            if filter.matches(&record, mdt.as_str()) {
                part.bytes.extend_from_slice(record.as_bytes());
                let index = record.index();
                part.first = Some(part.first.map_or(index, |first| first.min(index)));
                part.last = part.last.max(index);
                part.count += 1;
            }
        }
    }
    parts.into_iter().map(|part| part.into_message(message)).collect()
}

#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    first: Option<lcap_ffi::RecordIndex>,
    last: lcap_ffi::RecordIndex,
    count: u32,
}

impl Part {
    fn into_message(self, of: &Outgoing) -> Outgoing {
        let mut header = Header::for_body(Kind::Records, &self.bytes);
        header.flags = of.header.flags;
        header.sequence = of.header.sequence;
        header.low = of.header.low;
        header.generation = of.header.generation;
        header.first = self.first.unwrap_or_default();
        header.last = self.last;
        header.count = self.count;
        let body = Body::Bytes(Arc::new(self.bytes));
        Outgoing { header, body, routes: Vec::new(), read_at: of.read_at }
    }
}
