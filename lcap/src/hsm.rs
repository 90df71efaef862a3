//! `lcap hsm`: requests of Lustre's hierarchical storage management.
#![forbid(unsafe_code)]

mod lock;
mod queue;
mod status;
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
    /// Look at the queue of requests, and change it.
    Queue(queue::QueueArgs),
    /// Take requests from the queue and run a command for each.
    Worker(worker::WorkerArgs),
}

pub(crate) fn run(args: &HsmArgs) -> Result<()> {
    match &args.command {
        HsmCommand::Queue(args) => queue::run(args),
        HsmCommand::Worker(args) => worker::run(args),
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
