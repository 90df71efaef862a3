//! The system's libzmq, for the `zmq` crate.
//!
//! `zmq` 0.10 takes its foreign functions from a crate named `zmq-sys`; the published one always
//! builds and links its own libzmq 4.3.4, without CURVE. This crate stands in for it by
//! `[patch.crates-io]`: the bindings are made from the installed header (`bindings.rs`, see
//! `regenerate.sh`), the link flags come from pkg-config.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals)]

mod bindings;
pub mod errno;

pub use bindings::*;
/// File descriptor of a socket, as `zmq_pollitem_t` holds it.
pub type RawFd = std::os::fd::RawFd;
