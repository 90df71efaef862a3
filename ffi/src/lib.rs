//! Every layout shared with another compiler, and every foreign call.
//!
//! * [`name`]: typed names and numbers: [`MdtName`], [`RecordIndex`], [`Fid`].
//! * [`record`]: the kernel's packed changelog record, borrowed from the buffer it came in.
//! * [`text`]: one record as `lfs changelog` prints it.
//! * [`device`]: what the changelog device needs and std lacks.
//! * [`fuse`]: what serves files of our own in place of that device.
//! * [`llapi`]: liblustreapi, opened at run time.
//! * [`policy`]: the table that a policy library exports (`include/lcap_policy.h`).
//! * [`zmq_frame`]: frames handed to libzmq without a copy.
//!
//! No other crate describes a foreign layout; those above this one see safe types only.

pub mod device;
pub mod fuse;
pub mod llapi;
pub mod name;
pub mod record;
pub mod zmq_frame;

pub use name::{BadMdtName, Fid, MdtName, RecordIndex};
pub use record::{Record, RecordError, RecordType};
