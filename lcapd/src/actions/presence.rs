//! What a sink wants to know of an MDT besides its events: the state, and whether the MDT is here.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::journal::Journal;
use super::poller::PollerStats;
use crate::sink::{LiveState, Snapshot};

/// An MDT's journal, and who fills it.
#[derive(Debug)]
pub struct Presence {
    /// Has the state.
    pub journal: Arc<Journal>,
    /// Knows whether the MDT is here.
    pub stats: Arc<PollerStats>,
}

impl LiveState for Presence {
    fn present_since(&self) -> Option<u64> {
        Some(self.stats.here_since_ms.load(Ordering::Acquire)).filter(|&since| since > 0)
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let mut state = self.journal.snapshot()?;
        let upto = state.next_index().prev();
        Ok(Snapshot { upto, read: Box::new(move |n_bytes, out| state.read(n_bytes, out)) })
    }
}
