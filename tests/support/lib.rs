//! What the end-to-end tests and the fault campaign are made of.
//!
//! * [`programs`]: finds (and, under cargo, builds) `lcapd` and `lcap`. * [`daemon`]: a configured
//!   lcapd on a state directory of its own, to be killed and started again.
//! * [`sim`]: engine, workers, catch-ups and clients in one thread, over a network and on a clock
//!   that are made up: every schedule is decided by a seed.
//! * [`redis`]: a real redis-server of a test's own; [`lists`]: HSM actions as files; [`contract`]: what
//!   consumers of lustre-hsm-action-stream see.
//! * [`campaign`]: real processes that are killed, stopped and cut off; [`proxy`] does the cutting.
//!   They write a [`journal`], and [`check`] reads it.
//! * [`abuse`]: floods and garbage; [`impostors`]: the same of those that have keys.
#![forbid(unsafe_code)]

pub mod abuse;
pub mod campaign;
pub mod check;
pub mod contract;
pub mod daemon;
pub mod disk;
pub mod hsm;
pub mod impostors;
pub mod journal;
pub mod lists;
pub mod programs;
pub mod proxy;
pub mod redis;
pub mod rng;
pub mod secured;
#[path = "../sim/mod.rs"]
pub mod sim;
pub mod sink_campaign;
pub mod upcalls;
