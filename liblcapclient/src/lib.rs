//! Reads changelog records from lcapd.
//!
//! ```text
//! libzmq ─▶ session ─▶ client (protocol) ─▶ inbox ─▶ api ─▶ the application
//!    the one background thread                       its own thread
//! ```
//!
//! * [`Builder`] and [`Client`]: records of one MDT.
//! * [`Client::recv_hsm`]: events of its HSM actions, from a stream of kind `hsm`.
//! * [`Control`]: one-shot requests (clear, readers, status).
//! * [`mover::Mover`]: HSM requests, for who carries them out.
//! * [`Direct`]: an MDT's records without lcapd, through liblustreapi.
//! * [`client`]: the protocol without sockets; [`place`]: what was had; [`ack`]: what may be
//!   acknowledged; [`batch`]: a message, record by record.
//!
//! The C library is the package in `capi/`, the preload library the one in `preload/`.
#![forbid(unsafe_code)]

pub mod ack;
mod api;
pub mod batch;
pub mod client;
mod control;
mod direct;
pub mod endpoint;
mod error;
mod inbox;
mod keys;
mod log;
pub mod mover;
pub mod place;
mod promise;
mod session;
#[cfg(test)]
mod testing;

pub use api::{Builder, Clearer, Client, DEFAULT_TIMEOUT, DEFAULT_URI, Options, Stats};
pub use control::Control;
pub use direct::Direct;
pub use error::ClientError;
pub use inbox::ReceivedBatch;
pub use keys::{KeyPair, Keys};
/// HSM events: what [`Client::recv_hsm`] gives.
pub use lcap_ffi::hsm_action::{ActionCode, EventKind, HsmActionEvent, StatusCode};
pub use lcap_ffi::{Fid, MdtName, RecordIndex};
