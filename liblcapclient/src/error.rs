//! What can go wrong, and the errno that each has in C.
#![forbid(unsafe_code)]

use std::time::Duration;

/// An error of the client library. Cheap to clone: the last one stays readable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No server answered.
    #[error(
        "no answer from {endpoints} within {waited:?}; is lcapd running there, and if it has keys, does it know ours?"
    )]
    Timeout {
        /// Every server that was asked.
        endpoints: String,
        /// For how long.
        waited: Duration,
    },
    /// The server said no.
    #[error("{endpoint}: {error}")]
    Refused {
        /// The server.
        endpoint: String,
        /// Its error number, positive.
        errno: i32,
        /// Its sentence.
        error: String,
    },
    /// The server's answer makes no sense.
    #[error("{endpoint}: unexpected answer: {problem}")]
    Protocol {
        /// The server.
        endpoint: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A value that cannot be.
    #[error("{0}")]
    BadArgument(String),
    /// Options are fixed once records flow.
    #[error("options must be set before the first record is received")]
    Started,
    /// A signal arrived first.
    #[error("interrupted by a signal")]
    Interrupted,
    /// Nothing is there now, and the caller does not want to wait.
    #[error("no record now")]
    WouldBlock,
    /// The process forked; the session belongs to the parent.
    #[error("the context belongs to the parent process")]
    Forked,
    /// The background thread is gone. It never ends by itself.
    #[error("the session's thread ended unexpectedly")]
    ThreadGone,
    /// A system or library call failed.
    #[error("{action}: {reason}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        reason: String,
        /// As a number, positive.
        errno: i32,
    },
}

impl ClientError {
    /// The errno for this error, positive. No `_` arm: a new variant must choose its own.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Timeout { .. } => libc::ETIMEDOUT,
            Self::Refused { errno, .. } | Self::System { errno, .. } => (*errno).max(1),
            Self::Protocol { .. } => libc::EPROTO,
            Self::BadArgument(_) => libc::EINVAL,
            Self::Started => libc::EBUSY,
            Self::Interrupted => libc::EINTR,
            Self::WouldBlock => libc::EAGAIN,
            Self::Forked => libc::ENXIO,
            Self::ThreadGone => libc::ENOTRECOVERABLE,
        }
    }

    /// A failed call of libzmq.
    pub(crate) fn zmq(action: impl Into<String>, error: zmq::Error) -> Self {
        let (reason, errno) = (error.message().to_owned(), error.to_raw());
        Self::System { action: action.into(), reason, errno }
    }

    /// A failed system call.
    pub(crate) fn io(action: impl Into<String>, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Self::System { action: action.into(), reason: error.to_string(), errno }
    }
}
