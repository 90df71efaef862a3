//! `lcap policy`: what modules say of themselves.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use lcap_wire::control::{PolicyReloadReply, PolicyStatus};

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
    /// Have lcapd read a stream's policies from its configuration again, new module files included. No
    /// record is lost, repeated or reordered; if they cannot be used, the old ones stay.
    Reload {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        /// The stream.
        stream: String,
    },
}

pub(crate) fn run(args: &PolicyArgs) -> Result<()> {
    match &args.command {
        PolicyCommand::Reload { json, stream } => {
            let reply = crate::control()?.reload_policies(stream)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&reply)?);
            } else {
                print_reloaded(&reply);
            }
        }
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

fn print_reloaded(reply: &PolicyReloadReply) {
    println!("stream {}: reloaded", reply.stream);
    if reply.modules.is_empty() {
        println!("  no policies");
    }
    for module in &reply.modules {
        println!("  {} {}  {}", module.module, module.version, module.path);
    }
    for mdt in &reply.waiting {
        println!("  {mdt}: a module does not return; it follows when that does (`lcap status`)");
    }
}

/// A table of a stream's modules, each summed up over its MDTs.
pub(crate) fn print_policies(policies: &[PolicyStatus]) {
    let mut rows: Vec<PolicyStatus> = Vec::new();
    for one in policies {
        let Some(row) = rows.iter_mut().find(|row| row.nth == one.nth) else {
            rows.push(one.clone());
            continue;
        };
        row.records_in += one.records_in;
        row.emitted += one.emitted;
        row.dropped += one.dropped;
        row.merged += one.merged;
        row.held += one.held;
        row.busy_ns += one.busy_ns;
        if one.state != "active" {
            row.state.clone_from(&one.state);
        }
    }
    rows.sort_by_key(|row| row.nth);
    println!(
        "  {:<20} {:>14} {:>14} {:>12} {:>10} {:>10} {:>9}  STATE",
        "POLICY", "IN", "EMITTED", "DROPPED", "MERGED", "HELD", "NS/RECORD"
    );
    for row in &rows {
        let each = row.busy_ns.checked_div(row.records_in).unwrap_or(0);
        println!(
            "  {:<20} {:>14} {:>14} {:>12} {:>10} {:>10} {each:>9}  {}",
            row.module, row.records_in, row.emitted, row.dropped, row.merged, row.held, row.state
        );
        for one in policies.iter().filter(|one| one.nth == row.nth) {
            if let Some(fault) = &one.fault {
                println!(
                    "    {}: {}: {fault}",
                    one.mdt.as_deref().unwrap_or("all MDTs"),
                    one.state
                );
            }
        }
    }
}
