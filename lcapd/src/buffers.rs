//! Memory of batches that serves again.
//!
//! Fresh memory is the dearest part of reading: the kernel hands it out page by page, zeroed. The
//! buffers of a batch come back here when the last stream, subscriber and libzmq message are done with it.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

/// The two buffers of a batch, empty.
#[derive(Debug, Default)]
pub struct Buffer {
    /// For the records.
    pub bytes: Vec<u8>,
    /// For their end offsets.
    pub ends: Vec<u32>,
}

/// Buffers of one size that nobody uses at present, a bounded number of them.
#[derive(Debug)]
pub struct Buffers {
    bytes: usize,
    keep: usize,
    free: Mutex<Vec<Buffer>>,
}

impl Buffers {
    /// For batches of `bytes`; at most `keep` lie here unused.
    pub fn new(bytes: usize, keep: usize) -> Self {
        Self { bytes, keep, free: Mutex::default() }
    }

    /// An empty one with room for a whole read.
    pub fn take(&self) -> Buffer {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Buffer {
            bytes: Vec::with_capacity(self.bytes),
            // A modern namespace record is some 160 bytes long.
            ends: Vec::with_capacity(self.bytes / 128 + 1),
        })
    }

    /// Takes one back. A smaller one, or one too many, is given to the allocator.
    pub fn give(&self, mut buffer: Buffer) {
        if buffer.bytes.capacity() < self.bytes {
            return;
        }
        buffer.bytes.clear();
        buffer.ends.clear();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.keep {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_only_so_many() {
        let buffers = Buffers::new(1000, 1);
        let (mut one, two) = (buffers.take(), buffers.take());
        one.bytes.push(7);
        one.ends.push(1);
        let at = one.bytes.as_ptr();
        buffers.give(Buffer { bytes: Vec::with_capacity(10), ends: Vec::new() });
        buffers.give(one);
        buffers.give(two);
        let again = buffers.take();
        assert_eq!((again.bytes.as_ptr(), again.bytes.len(), again.ends.len()), (at, 0, 0));
        assert_ne!(buffers.take().bytes.as_ptr(), at);
    }
}
