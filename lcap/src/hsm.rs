//! `lcap hsm`: Lustre's hierarchical storage management: its actions as they change, its requests.
#![forbid(unsafe_code)]

mod coordinatool;
mod counts;
mod lock;
mod paths;
mod queue;
mod stats;
mod status;
mod tail;
mod take;
mod top;
mod watch;
mod worker;

use anyhow::Result;
use clap::{Args, Subcommand};
use lcap_wire::control::Op;
use lcap_wire::hsm_queue::HsmOp;
use serde::de::DeserializeOwned;

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
    /// Look at the queue of requests, and change it.
    Queue(queue::QueueArgs),
    /// Take requests from the queue and run a command for each.
    Worker(worker::WorkerArgs),
    /// The options of coordinatool's program of this name.
    CoordinatoolClient(coordinatool::ClientArgs),
}

pub(crate) fn run(args: &HsmArgs) -> Result<()> {
    match &args.command {
        HsmCommand::Tail(args) => tail::run(args),
        HsmCommand::Top(args) => top::run(args),
        HsmCommand::Stats(args) => stats::run(args),
        HsmCommand::Queue(args) => queue::run(args),
        HsmCommand::Worker(args) => worker::run(args),
        HsmCommand::CoordinatoolClient(args) => coordinatool::run(args),
    }
}

/// Asks the queue.
fn ask<T: DeserializeOwned>(op: HsmOp) -> Result<T> {
    let reply = crate::control()?.request(Op::Hsm(op))?;
    Ok(serde_json::from_value(reply.body)?)
}

fn json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
