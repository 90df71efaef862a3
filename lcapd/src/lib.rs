//! The daemon as a library, so that tests can drive its parts.
//!
//! Records go `source → reader → log → follower → pipeline (policies) → worker → publisher or
//! queue → client`, and acknowledgements come back `client → engine → store → clearer`.

pub mod actions;
pub mod batch;
pub mod buffers;
pub mod catch_up;
pub mod clearer;
pub mod config;
pub mod db;
pub mod engine;
pub mod figures;
pub mod follower;
pub mod health;
pub mod hsm;
pub mod http;
pub mod intake;
pub mod last_read;
pub mod lease;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod overlap;
pub mod pace;
pub mod pipeline;
pub mod policies;
pub mod policy;
pub mod publisher;
pub mod reader;
pub mod security;
pub mod server;
pub mod service;
pub mod sink;
pub mod source;
pub mod store;
pub mod supervisor;
pub mod taps;
pub mod timeline;
pub mod wake;
pub mod worker;
