//! End to end: a real lcapd, the real tool, real clients.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test: to panic is to fail

mod abuse;
mod captures;
mod commands;
mod faults;
mod figures;
mod hsm;
mod hsm_movers;
mod hsm_redis;
mod hsm_viewers;
mod merging;
mod mover_keys;
mod mover_tools;
mod placers;
mod policies;
mod relay;
mod security;
mod service;
mod shares;
mod sink;
mod sink_hsm;
mod standby;
mod terminal;
mod upcall;
mod upgrade;
