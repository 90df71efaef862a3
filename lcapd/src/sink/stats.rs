//! Figures of one sink on one MDT.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lcap_ffi::MdtName;

use crate::engine::sinks::PREFIX;
use crate::metrics::Samples;
use crate::metrics::families as f;

/// Figures of one sink on one MDT, for others to read at any time.
#[derive(Debug, Default)]
pub struct SinkStats {
    /// Entries that Redis has confirmed.
    pub entries: AtomicU64,
    /// Transactions.
    pub batches: AtomicU64,
    /// Connections that were lost or could not be made.
    pub failures: AtomicU64,
    /// There is a connection, and no error since.
    pub connected: AtomicBool,
    /// Another lcapd has the MDT.
    pub fenced: AtomicBool,
}

impl SinkStats {
    /// Puts them; `reader` is the sink's name among the stream's readers.
    pub fn put(&self, stream: &str, reader: &str, mdt: &MdtName, samples: &mut Samples) {
        let sink = reader.strip_prefix(PREFIX).unwrap_or(reader);
        let labels = [stream, sink, mdt.as_str()];
        samples.put(&f::SINK_ENTRIES, &labels, self.entries.load(Ordering::Relaxed));
        samples.put(&f::SINK_BATCHES, &labels, self.batches.load(Ordering::Relaxed));
        samples.put(&f::SINK_FAILURES, &labels, self.failures.load(Ordering::Relaxed));
        samples.put(&f::SINK_CONNECTED, &labels, self.connected.load(Ordering::Relaxed));
        samples.put(&f::SINK_FENCED, &labels, self.fenced.load(Ordering::Relaxed));
    }
}
