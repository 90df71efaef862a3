//! `lcap policy`: what modules say of themselves.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Load a module and show what it is and which options it takes.
    Inspect {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        /// The module, e.g. fifo.so.
        file: PathBuf,
    },
}

pub(crate) fn run(args: &PolicyArgs) -> Result<()> {
    match &args.command {
        PolicyCommand::Inspect { json, file } => {
            let inspection = lcapd::policy::inspect(file)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&inspection)?);
            } else {
                print!("{inspection}");
            }
        }
    }
    Ok(())
}
