//! `make bench`: measures lcap on this machine, beside references measured in the same run.
//!
//! * [`rows`]: what is measured, one function a table section. * [`delivery`]: lcapd and C clients as
//!   processes; [`hsm_poll`]: readings of lists of HSM actions; [`wire_limit`], [`memory`]: the references.
//! * [`report`]: table, JSON, plots.
//!
//! Rates are per second of wall time; costs are processor time, so that they move less with what else
//! the machine does. Each figure is the median of several runs, with the smallest and the largest.
#![forbid(unsafe_code)]
#![allow(clippy::cast_precision_loss)] // counts are shown with three digits

mod delivery;
mod hsm_poll;
mod latency;
mod machine;
mod memory;
mod report;
mod rows;
mod wire_limit;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures lcap on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Runs of each measurement.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Records of one measurement, in millions.
    #[arg(long, default_value_t = 3)]
    millions: u64,
    /// Only the sections whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where results.json and the plots go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

/// Other processes of a measurement.
#[derive(Debug, Subcommand)]
enum Role {
    /// The sender of the wire limit.
    #[command(hide = true)]
    WireSender {
        /// Where to bind.
        endpoint: String,
        /// Bytes of a message.
        message_bytes: usize,
        /// How many.
        n: usize,
        /// From where.
        bytes: wire_limit::Bytes,
    },
    /// The sender of the latency of libzmq alone.
    #[command(hide = true)]
    WirePace {
        /// Messages per second.
        rate: u32,
        /// How many.
        n: usize,
    },
    /// One reading after another of lists of HSM actions.
    #[command(hide = true)]
    HsmPoll {
        /// Where `first` and `changed` are.
        lists: PathBuf,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        Some(Role::WireSender { endpoint, message_bytes, n, bytes }) => {
            return wire_limit::send(endpoint, *message_bytes, *n, *bytes);
        }
        Some(Role::WirePace { rate, n }) => return wire_limit::send_paced(*rate, *n),
        Some(Role::HsmPoll { lists }) => return hsm_poll::run(lists),
        None => {}
    }
    let mut report = report::Report::new(machine::describe());
    let settings = rows::Settings { runs: args.runs.max(1), n: args.millions.max(1) * 1_000_000 };
    let result = rows::measure(&settings, &args.only, &mut report);
    // What was measured before something failed is worth keeping.
    report.write(&args.out)?;
    result
}
