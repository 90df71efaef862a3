//! What the end-to-end tests and the fault campaign are made of: real processes, real sockets.
//!
//! * [`programs`]: finds (and, under cargo, builds) `lcapd` and `lcap`. * [`daemon`]: a configured
//!   lcapd on a state directory of its own, to be killed and started again.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod programs;
