//! Frames handed to libzmq without a copy.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// Bytes that several frames may share, e.g. one batch for many subscribers.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Runs on a thread of libzmq when the last reference to the frame is gone.
unsafe extern "C" fn release(_data: *mut c_void, hint: *mut c_void) {
    // SAFETY: `hint` is the box that `send_shared` leaked for this frame, and libzmq calls this
    // once per frame.
    drop(unsafe { Box::from_raw(hint.cast::<SharedBytes>()) });
}

/// Sends `bytes` as one frame. libzmq keeps a reference until the last peer has it; nothing is
/// copied here.
///
/// # Errors
/// `EAGAIN` with `zmq::DONTWAIT`, when the peer's queue is full; what `zmq_msg_send` gives otherwise.
pub fn send_shared(
    socket: &mut zmq::Socket,
    bytes: SharedBytes,
    flags: i32,
) -> Result<(), zmq::Error> {
    let boxed = Box::new(bytes);
    let slice: &[u8] = (**boxed).as_ref();
    let (data, len) = (slice.as_ptr(), slice.len());
    let hint = Box::into_raw(boxed);
    let mut message = zmq_sys::zmq_msg_t::default();
    // SAFETY: `message` is ours to initialise. `data..data+len` stays valid and unchanged until
    // `release`, because `hint` owns it; libzmq only reads it, so the cast to mut is harmless.
    let rc = unsafe {
        zmq_sys::zmq_msg_init_data(
            ptr::from_mut(&mut message),
            data.cast_mut().cast(),
            len,
            Some(release),
            hint.cast(),
        )
    };
    if rc != 0 {
        // SAFETY: libzmq did not take the frame (out of memory), so the box is still ours.
        drop(unsafe { Box::from_raw(hint) });
        return Err(zmq::Error::ENOMEM);
    }
    // SAFETY: the socket is live (borrowed mutably, so no other thread has it), the message initialised above.
    let rc =
        unsafe { zmq_sys::zmq_msg_send(ptr::from_mut(&mut message), socket.as_mut_ptr(), flags) };
    if rc >= 0 {
        return Ok(()); // libzmq owns the frame now
    }
    // SAFETY: no argument; read right after the failed call, on the same thread.
    let error = zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() });
    // SAFETY: after a failed send the message is still ours; closing it calls `release`.
    unsafe { zmq_sys::zmq_msg_close(ptr::from_mut(&mut message)) };
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published `zmq-sys` would build its own libzmq, without it.
    #[test]
    fn the_system_libzmq_is_linked_and_has_curve() {
        assert_eq!(zmq::has("curve"), Some(true));
        assert!(zmq::CurveKeyPair::new().is_ok());
    }

    #[test]
    fn shared_bytes_arrive_and_are_given_back() {
        let context = zmq::Context::new();
        let (mut a, b) = (context.socket(zmq::PAIR).unwrap(), context.socket(zmq::PAIR).unwrap());
        b.bind("inproc://frame").unwrap();
        a.connect("inproc://frame").unwrap();
        let bytes: Arc<Vec<u8>> = Arc::new(vec![7; 1000]);
        send_shared(&mut a, Arc::<Vec<u8>>::clone(&bytes) as _, 0).unwrap();
        let received = b.recv_msg(0).unwrap();
        assert_eq!(received.as_ptr(), bytes.as_ptr(), "not copied");
        assert_eq!(*received, **bytes);
        drop(received);
        assert_eq!(Arc::strong_count(&bytes), 1);
    }
}
