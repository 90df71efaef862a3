//! How many messages were taken from each connection, so that who only says parts of one is found.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lcap_ffi::connection::fd_of_message;

/// Connections whose numbers are so far apart are counted as one: then one of them that sends no whole
/// message is found when the other is silent.
const SLOTS: usize = 4096;

/// Counts, by connection. Written by the threads that take messages, read by the doorman's.
#[derive(Clone, Debug)]
pub struct Taken(Arc<[AtomicU32]>);

impl Default for Taken {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Taken {
    fn slot(&self, number: i32) -> Option<&AtomicU32> {
        self.0.get(usize::try_from(number).ok()? % SLOTS)
    }

    /// A whole message was taken.
    pub fn note(&self, message: &mut zmq::Message) {
        if let Some(slot) = fd_of_message(message).and_then(|number| self.slot(number)) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were. It only matters whether that has changed.
    pub fn of(&self, number: i32) -> u32 {
        self.slot(number).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }
}
