//! HSM actions of MDTs as a durable stream of events.
//!
//! `hsm/actions` of an MDT → [`scan`] (what has changed) → [`journal`] (events and the last state,
//! one file) → reader thread, log, pipeline and so on, as for a changelog: a journal is an
//! [`Upstream`](crate::source::Upstream).
//!
//! * [`place`]: where an MDT's list is read. * [`scan`]: one reading of it, compared with the state.
//! * [`live`]: the actions that are there. * [`journal`], [`segment`]: what was told of them.
//! * [`poller`]: the thread that reads when there is a reason to. * [`presence`]: what sinks ask. * [`upstream`]: the journal as a log.
#![forbid(unsafe_code)]

pub mod journal;
pub mod live;
pub mod place;
pub mod poller;
pub mod presence;
pub mod scan;
pub mod segment;
pub mod upstream;

pub use journal::{Draft, Journal, JournalError};
pub use poller::Due;
