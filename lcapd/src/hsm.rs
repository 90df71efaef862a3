//! One queue of HSM requests, with any number of entrances and exits.
//!
//! `coordinator | upcall spool | import → queue → scheduler → movers | workers`
//!
//! [`queue`] and [`scheduler`] have no I/O, thread or clock: requests, completions, deaths and the
//! time come in as values, and what is to be written and told comes out as values.

pub mod queue;
pub mod request;
pub mod scheduler;
