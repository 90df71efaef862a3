//! lcap: the command-line tool. One file per subcommand; see lcap(1).
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. Text for people, `--json` for programs, errors on
//! stderr.
#![forbid(unsafe_code)]

mod bench;
mod changelog;
mod clear;
mod completions;
mod demo;
mod doctor;
mod hsm;
mod keygen;
mod policy;
mod reader;
mod screen;
mod status;
mod top;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lcap::{record, sim};
use lcapclient::Control;

/// Read and manage the changelog streams that lcapd serves.
///
/// The server is named by LCAP_REC_URI (default tcp://localhost:8189; several, separated by commas,
/// are tried in turn).
#[derive(Parser)]
#[command(name = "lcap", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the records of an MDT as `lfs changelog` does. Acknowledges nothing unless told to.
    Changelog(changelog::ChangelogArgs),
    /// Acknowledge records up to an index on behalf of a registered reader.
    Clear(clear::ClearArgs),
    /// Register, remove and list readers.
    Reader(reader::ReaderArgs),
    /// Show MDTs, streams and readers.
    Status(status::StatusArgs),
    /// Watch MDTs, streams and readers on the full screen.
    Top(top::TopArgs),
    /// Say what is wrong with this installation, and what to type.
    Doctor(doctor::DoctorArgs),
    /// Look at HSM actions as they change, at the queue of HSM requests, and work on it.
    Hsm(hsm::HsmArgs),
    /// Write an MDT's records to a trace that `replay:` reads.
    Record(record::RecordArgs),
    /// Serve simulated MDTs as files that behave like changelog devices.
    Sim(sim::SimArgs),
    /// Make CURVE keys for lcapd or a client, and print the public one.
    Keygen(keygen::KeygenArgs),
    /// Look at policy modules.
    Policy(policy::PolicyArgs),
    /// Measure what lcapd does on this machine, with a simulated MDT.
    Bench(bench::BenchArgs),
    /// Print a script by which a shell completes the command line of lcap.
    Completions(completions::CompletionsArgs),
    /// Write manual pages.
    #[command(hide = true)]
    Man(completions::ManArgs),
    /// Run a daemon with simulated MDTs and a few clients, and prove that nothing is lost.
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    // A link of that name stands for the command.
    if words.first().is_some_and(|name| Path::new(name).ends_with("coordinatool-client")) {
        words.splice(..1, ["lcap", "hsm", "coordinatool-client"].map(OsString::from));
    }
    let args = Args::parse_from(words);
    let result = match args.command {
        Command::Changelog(args) => changelog::run(&args),
        Command::Clear(args) => clear::run(&args),
        Command::Reader(args) => reader::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Hsm(args) => hsm::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => completions::man(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lcap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A connection for requests, to where the environment says.
fn control() -> Result<Control> {
    Ok(Control::from_env()?)
}

/// Writes to stdout; unlike `print!`, a reader who has seen enough is an error, not a panic.
fn print(text: &str) -> Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
