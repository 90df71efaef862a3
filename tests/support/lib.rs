//! What the end-to-end tests and the fault campaign are made of.
//!
//! * [`programs`]: finds (and, under cargo, builds) `lcapd` and `lcap`. * [`daemon`]: a configured
//!   lcapd on a state directory of its own, to be killed and started again.
//! * [`sim`]: engine, workers, catch-ups and clients in one thread, over a network and on a clock
//!   that are made up: every schedule is decided by a seed.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod programs;
pub mod rng;
#[path = "../sim/mod.rs"]
pub mod sim;
