//! Between the queue and Lustre: what is asked for, and what is answered.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::owner::Owner;
use super::request::Request;

/// What Lustre is to be told about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToLustre {
    /// Nobody will carry it out: it ends with this error number.
    Fail {
        /// The request.
        request: Arc<Request>,
        /// Positive.
        errno: i32,
    },
    /// It is still in the queue: its time limit begins anew.
    KeepAlive {
        /// Its number in the queue.
        id: u64,
        /// The request.
        request: Arc<Request>,
    },
}

/// What Lustre says.
#[derive(Debug)]
pub enum FromLustre {
    /// A list of requests, as it came.
    List(Vec<u8>),
    /// The same, and whose each item's file is.
    Owned(Vec<u8>, Vec<Owner>),
    /// Requests that an MDT says it has sent: lines of `hsm/active_requests`.
    Active(Vec<u8>),
    /// Answer to a keep-alive that was not yes.
    Trouble {
        /// The number of the request.
        id: u64,
        /// `ECANCELED`: it is to be ended. `ENOENT`: the MDT does not know it.
        errno: i32,
    },
}
