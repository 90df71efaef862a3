//! One queue of HSM requests, with any number of entrances and exits.
//!
//! `coordinator | upcall spool | import → queue → scheduler → movers | workers`
//!
//! [`queue`] and [`scheduler`] have no I/O, thread or clock: requests, completions, deaths and the
//! time come in as values, and what is to be written and told comes out as values.

pub mod active;
pub mod config;
pub mod coordinatool;
pub mod coordinator;
pub mod data;
pub mod due;
pub mod entrances;
pub mod events;
pub mod figures;
pub mod json_port;
pub mod lustre;
pub mod mover_socket;
pub mod movers;
pub mod operator;
pub mod original;
pub mod owner;
pub mod placer;
pub mod queue;
pub mod redis_store;
pub mod reports;
pub mod request;
pub mod scheduler;
pub mod service;
pub mod spool;
pub mod start;
pub mod store;
pub mod workers;
