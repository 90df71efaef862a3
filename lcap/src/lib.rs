//! The command-line tool as a library: one module per subcommand.
#![forbid(unsafe_code)]

pub mod record;
pub mod sim;
