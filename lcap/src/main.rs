//! `lcap`, the command-line tool.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};

/// Lustre changelogs for any number of consumers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a source's records to a trace file.
    Record(lcap::record::RecordArgs),
    /// Serve simulated changelog devices in a directory.
    Sim(lcap::sim::SimArgs),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Record(args) => lcap::record::run(&args),
        Command::Sim(args) => lcap::sim::run(&args),
    }
}
