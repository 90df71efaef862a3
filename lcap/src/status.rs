//! `lcap status`: where everything stands.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Args;
use lcap_wire::control::{Delivery, MdtStatus, Status, StreamKind, StreamStatus};

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let status = crate::control()?.status()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

fn print(status: &Status) {
    println!("lcapd {} epoch {}", status.version, status.epoch);
    print_logs("MDT", &status.mdts);
    if !status.hsm_mdts.is_empty() {
        print_logs("HSM EVENTS OF", &status.hsm_mdts);
    }
    for stream in &status.streams {
        print_stream(stream);
    }
}

fn print_logs(what: &str, mdts: &[MdtStatus]) {
    println!("\n{what:<20} {:<13} {:>14} {:>14} {:>10}  SOURCE", "STATE", "READ", "CLEARED", "LAG");
    for mdt in mdts {
        println!(
            "{:<20} {:<13} {:>14} {:>14} {:>10}  {}",
            mdt.name, mdt.state, mdt.read_index, mdt.cleared_index, mdt.lag_records, mdt.source
        );
        if let Some(reason) = &mdt.reason {
            println!("{:<20} {reason}", "");
        }
    }
}

fn print_stream(stream: &StreamStatus) {
    let delivery = match stream.delivery {
        Delivery::Broadcast => "broadcast",
        Delivery::Queue => "queue",
    };
    let kind = if stream.kind == StreamKind::Hsm { ", HSM events" } else { "" };
    println!("\nstream {} ({delivery}{kind})", stream.name);
    println!(
        "  {:<20} {:>14} {:>12} {:>10} {:>14} {:>12}",
        "MDT", "SENT", "DROPPED", "HELD", "WATERMARK", "OUTSTANDING"
    );
    for (mdt, s) in &stream.mdts {
        println!(
            "  {mdt:<20} {:>14} {:>12} {:>10} {:>14} {:>12}",
            s.sent, s.dropped, s.held, s.watermark, s.outstanding
        );
    }
    if !stream.policies.is_empty() {
        crate::policy::print_policies(&stream.policies);
    }
    for member in &stream.members {
        println!("  member {} of {}: {} held", member.session, member.mdt, member.outstanding);
    }
    if stream.delivery == Delivery::Broadcast && stream.readers.is_empty() {
        println!("  no registered reader: this stream neither keeps records nor lets them go");
    } else if !stream.readers.is_empty() {
        crate::reader::print_readers(&stream.readers);
    }
}
