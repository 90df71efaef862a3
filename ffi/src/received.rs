//! Received frames whose bytes are at hand.

use std::fmt;
use std::ptr::NonNull;
use std::slice;

/// A frame that libzmq gave us. Unlike `zmq::Message` it asks libzmq for the bytes once, not at
/// every look: two calls into another library for each record would cost more than the record.
pub struct Received {
    data: NonNull<u8>,
    len: usize,
    /// Owns the bytes. In a box, because libzmq keeps those of a small message inside it.
    _message: Box<zmq::Message>,
}

// SAFETY: the bytes belong to `_message`, which is Send; nobody writes to them.
unsafe impl Send for Received {}
// SAFETY: as above: shared access only reads.
unsafe impl Sync for Received {}

impl From<zmq::Message> for Received {
    fn from(message: zmq::Message) -> Self {
        let message = Box::new(message);
        let bytes: &[u8] = &message;
        let (data, len) = (NonNull::from(bytes).cast(), bytes.len());
        Self { data, len, _message: message }
    }
}

impl AsRef<[u8]> for Received {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the bytes of `_message`: it lives as long as `self`, stays where it is in its
        // box, and is not accessible to anyone who could change it.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_stay_where_the_frame_goes() {
        for bytes in [vec![], vec![7; 5], vec![9; 5000]] {
            let frame = Received::from(zmq::Message::from(&bytes));
            let at = frame.as_ref().as_ptr().addr();
            let moved = std::thread::spawn(move || {
                assert_eq!(frame.as_ref().as_ptr().addr(), at);
                frame
            });
            assert_eq!(moved.join().unwrap().as_ref(), bytes);
        }
    }
}
