//! Every layout shared with another compiler, and every foreign call.
//!
//! * [`connection`]: single connections of libzmq's sockets.
//! * [`digits`]: numbers as text.
//! * [`name`]: typed names and numbers: [`MdtName`], [`RecordIndex`], [`Fid`].
//! * [`record`]: the kernel's packed changelog record, borrowed from the buffer it came in.
//! * [`nid`]: network addresses of clients.
//! * [`hsm_action`]: changes of HSM actions, as lines of an MDT's list and as records.
//! * [`text`]: one record as `lfs changelog` prints it.
//! * [`repack`]: records in the shapes that liblustreapi gives them.
//! * [`device`]: what the changelog device needs and std lacks.
//! * [`fuse`]: what serves files of our own in place of that device.
//! * [`hsm`]: action lists of the HSM coordinator.
//! * [`copytool`]: liblustreapi's calls for who takes HSM requests.
//! * [`llapi`]: liblustreapi, opened at run time.
//! * [`policy`]: the table that a policy library exports (`include/lcap_policy.h`).
//! * [`poll`]: waiting for descriptors by number.
//! * [`process`]: environment and signals of the process that a library is a guest in.
//! * [`placer`]: modules that choose movers.
//! * [`project`]: the project of a file.
//! * [`received`]: frames that libzmq gave us.
//! * [`zmq_frame`]: frames handed to libzmq without a copy.
//! * [`zmq_monitor`]: what libzmq says of a socket's connection.
//!
//! No other crate describes a foreign layout; those above this one see safe types only.

pub mod connection;
pub mod copytool;
pub mod device;
pub mod digits;
pub mod fuse;
pub mod hsm;
pub mod hsm_action;
pub mod llapi;
pub mod name;
pub mod nid;
pub mod placer;
pub mod policy;
pub mod poll;
pub mod process;
pub mod project;
#[cfg(feature = "zmq")]
pub mod received;
pub mod record;
pub mod repack;
pub mod text;
#[cfg(feature = "zmq")]
pub mod zmq_frame;
#[cfg(feature = "zmq")]
pub mod zmq_monitor;

#[cfg(test)]
mod sample;

pub use name::{BadMdtName, Fid, MdtName, RecordIndex};
pub use record::{Record, RecordError, RecordType};
