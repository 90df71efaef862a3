//! The live actions of an MDT, out of the journal of its events.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hsm::{LiveState, Snapshot};
use crate::actions::Journal;
use crate::actions::poller::PollerStats;

/// What a journal and who fills it know.
#[derive(Debug)]
pub struct JournalState {
    /// Events, and what they leave.
    pub journal: Arc<Journal>,
    /// Whether the MDT is here.
    pub poller: Arc<PollerStats>,
}

impl LiveState for JournalState {
    fn present_since(&self) -> Option<u64> {
        Some(self.poller.here_since_ms.load(Ordering::Relaxed)).filter(|&since| since > 0)
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let mut snapshot = self.journal.snapshot()?;
        let upto = snapshot.next_index().prev();
        Ok(Snapshot { upto, read: Box::new(move |n_bytes, out| snapshot.read(n_bytes, out)) })
    }
}
