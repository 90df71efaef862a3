//! Every layout shared with another compiler, and every foreign call.
//!
//! * [`name`]: typed names and numbers: [`MdtName`], [`RecordIndex`], [`Fid`].
//! * [`record`]: the kernel's packed changelog record, borrowed from the buffer it came in.
//! * [`text`]: one record as `lfs changelog` prints it.
//! * [`llapi`]: liblustreapi, opened at run time.
//! * [`policy`]: the table that a policy library exports (`include/lcap_policy.h`).
//! * [`process`]: environment and signals of the process that a library is a guest in.
//! * [`received`]: frames that libzmq gave us.
//! * [`zmq_frame`]: frames handed to libzmq without a copy.
//!
//! No other crate describes a foreign layout; those above this one see safe types only.

pub mod name;
pub mod process;
pub mod received;
pub mod record;
pub mod zmq_frame;

pub use name::{BadMdtName, Fid, MdtName, RecordIndex};
pub use record::{Record, RecordError, RecordType};
