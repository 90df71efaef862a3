//! What stands between an MDT and lcapd's queue of HSM requests, and behind it.
//!
//! `MDT → lhsm_mdt_upcall → spool → lcapd → lcap hsm worker → lhsm_worker_posix → archive`. Here are
//! both programs, and the spool's format, which lcapd reads.
//!
//! * [`request`]: a request, from arguments and from bytes. * [`spool`]: the directory.
//! * [`archive`]: plain files as an archive. * [`settings`]: the two configuration files.
#![forbid(unsafe_code)]

pub mod archive;
pub mod request;
pub mod settings;
pub mod spool;
