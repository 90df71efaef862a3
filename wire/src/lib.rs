//! What travels between lcapd and its clients. `docs/protocol.md` is the same in prose.
//!
//! * [`frame`]: topics and the 64-byte header of data messages.
//! * [`control`]: requests and replies, one JSON object per message.
//! * [`json`]: a record as a line of JSON. * [`hsm`]: an HSM action event as one.
//! * [`hsm_queue`]: requests about the queue of HSM requests.
//! * [`mover`]: what movers of HSM requests and lcapd say to each other.
//! * [`ranges`]: sets of record indexes. * [`z85`]: keys as text.
#![forbid(unsafe_code)]

pub mod control;
pub mod frame;
pub mod hsm;
pub mod hsm_queue;
pub mod json;
pub mod mover;
pub mod ranges;
pub mod z85;

pub use frame::{Flags, Header, HeaderError, Kind};
pub use ranges::RangeSet;

/// Version of the control messages and of the data header.
pub const PROTOCOL_VERSION: u8 = 1;
/// Where lcapd listens unless told otherwise.
pub const DEFAULT_CONTROL_PORT: u16 = 8189;
/// The stream that a client reads unless it names one.
pub const DEFAULT_STREAM: &str = "changelog";
