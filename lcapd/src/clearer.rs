//! One thread per MDT that tells it what it may forget: each call may take a second.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use lcap_ffi::{MdtName, RecordIndex};
use tracing::debug;

use crate::reader::chain;
use crate::server::Outcome;
use crate::source::Upstream;
use crate::wake::Waker;

/// The thread's state.
#[derive(Debug)]
pub struct Clearer {
    /// Number of the MDT.
    pub mdt_at: usize,
    /// Its name.
    pub mdt: MdtName,
    /// Its log.
    pub upstream: Arc<dyn Upstream>,
    /// What to clear. It ends when the other side is dropped.
    pub clears: Receiver<RecordIndex>,
    /// What became of it.
    pub outcomes: Sender<Outcome>,
    /// Wakes the engine.
    pub waker: Waker,
}

impl Clearer {
    /// Clears as it is told, until there is nobody left to tell it.
    pub fn run(&mut self) {
        while let Ok(upto) = self.clears.recv() {
            let result = self.upstream.clear(upto).map_err(|error| chain(&error));
            debug!(mdt = %self.mdt, upto = upto.get(), ok = result.is_ok(), "cleared");
            let _ = self.outcomes.send(Outcome::Cleared { mdt: self.mdt_at, upto, result });
            self.waker.wake();
        }
    }
}
