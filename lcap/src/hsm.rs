//! `lcap hsm`: actions of HSM, as they are and as they change.
#![forbid(unsafe_code)]

mod counts;
mod paths;
mod stats;
mod tail;
mod top;
mod watch;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct HsmArgs {
    #[command(subcommand)]
    command: HsmCommand,
}

#[derive(Subcommand)]
enum HsmCommand {
    /// Print what happens to HSM actions, a line per event, as hsm-stream-tail does.
    Tail(tail::TailArgs),
    /// Watch how many actions are waiting, running and over, per MDT.
    Top(top::TopArgs),
    /// Print the live actions as one JSON document, as hsm-stream-stats does.
    Stats(stats::StatsArgs),
}

pub(crate) fn run(args: &HsmArgs) -> Result<()> {
    match &args.command {
        HsmCommand::Tail(args) => tail::run(args),
        HsmCommand::Top(args) => top::run(args),
        HsmCommand::Stats(args) => stats::run(args),
    }
}
