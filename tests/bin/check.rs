//! lcap-check: reads the journals of a campaign, says what was lost, cleared too early, or came
//! twice. Exit code 0 if nothing was.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lcap_tests::check::check;

/// Checks the journals of a campaign against each other; tests/README.md has their format.
#[derive(Parser)]
#[command(name = "lcap-check", version)]
struct Args {
    /// Directory with *.journal files.
    journals: PathBuf,
}

fn main() -> ExitCode {
    match check(&Args::parse().journals) {
        Ok(findings) => {
            for example in &findings.examples {
                println!("{example}");
            }
            println!("check: {findings}");
            if findings.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("lcap-check: {error}");
            ExitCode::FAILURE
        }
    }
}
