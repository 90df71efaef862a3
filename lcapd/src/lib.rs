//! The daemon as a library, so that tests can drive its parts.
//!
//! Records go `source → reader → log → follower → worker (policies) → publisher or queue → client`,
//! and acknowledgements come back `client → engine → store → clearer`.

pub mod batch;
pub mod engine {
    //! wip
    pub mod position;
    pub mod queue;
    pub mod retention;
}
pub mod follower;
pub mod log;
pub mod reader;
pub mod source;
pub mod wake;
