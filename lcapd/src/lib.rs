//! The daemon as a library, so that tests can drive its parts.
//!
//! Records go `source → reader → log → worker (policies) → engine / publisher → client`, and
//! acknowledgements come back `client → engine → store → clearer`.

pub mod batch;
pub mod policy;
pub mod source;
