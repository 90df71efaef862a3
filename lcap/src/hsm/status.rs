//! `lcap hsm queue status`.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Args;
use lcap_wire::hsm_queue::{HsmOp, Status};
use serde_json::Value;

use super::{ask, json};

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Requests, too (with --json).
    #[arg(short, long)]
    verbose: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<()> {
    let status: Value = ask(HsmOp::Status(Status { verbose: args.verbose }))?;
    if args.json {
        return json(&status);
    }
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    println!("{:<8} {:>9} {:>9} {:>9}", "", "ARCHIVE", "RESTORE", "REMOVE");
    for state in ["waiting", "delayed", "held", "running", "dead"] {
        let counts = &status["states"][state];
        let of = |kind: &str| number(&counts[kind]);
        println!("{state:<8} {:>9} {:>9} {:>9}", of("archive"), of("restore"), of("remove"));
    }
    let done = |kind: &str| number(&status[format!("done_{kind}")]);
    println!("{:<8} {:>9} {:>9} {:>9}", "done", done("archive"), done("restore"), done("remove"));
    let failed = |kind: &str| number(&status[format!("failed_{kind}")]);
    let [archive, restore, remove] = ["archive", "restore", "remove"].map(failed);
    println!("{:<8} {archive:>9} {restore:>9} {remove:>9}", "failed");
    if let Some(oldest) = status["waiting_seconds"]["max"].as_f64() {
        let median = status["waiting_seconds"]["p50"].as_f64().unwrap_or(0.0);
        println!("\nwaiting for {median:.0} s (median), the oldest for {oldest:.0} s");
    }
    for lock in status["locks"].as_array().into_iter().flatten() {
        println!("locked: {}", lock_text(lock));
    }
    if let Some(problem) = status["store_error"].as_str() {
        println!("nothing is handed out: {problem}");
    }
    let clients = status["clients"].as_array();
    let mut first = true;
    for client in clients.into_iter().flatten() {
        if std::mem::take(&mut first) {
            println!("\n{:<24} {:<13} {:>8} {:>10}", "WORKER", "STATE", "RUNNING", "DONE");
        }
        let sum = |what: &str| -> u64 {
            ["archive", "restore", "remove"]
                .iter()
                .map(|kind| number(&client[format!("{what}_{kind}")]))
                .sum()
        };
        println!(
            "{:<24} {:<13} {:>8} {:>10}",
            client["client_id"].as_str().unwrap_or_default(),
            client["status"].as_str().unwrap_or_default(),
            sum("current"),
            sum("done")
        );
    }
    Ok(())
}

/// What a lock is for.
pub(super) fn lock_text(lock: &Value) -> String {
    let part = |key: &str, word: &str| match &lock[key] {
        Value::Null => None,
        Value::String(text) => Some(format!("{word} {text}")),
        value => Some(format!("{word} {value}")),
    };
    let parts = [part("kind", "action"), part("archive_id", "archive"), part("worker", "worker")];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "everything".to_owned() } else { parts.join(" ") }
}
