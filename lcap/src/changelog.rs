//! `lcap changelog`: records as text or JSON lines.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use clap::Args;
use lcap_ffi::hsm_action::HsmActionEvent;
use lcap_ffi::record::split_first;
use lcap_ffi::{MdtName, Record, RecordIndex, text};
use lcap_wire::json;
use lcapclient::{Builder, Client, ClientError};

/// Output gathers up to this size before it is written.
const OUTPUT_BYTES: usize = 64 << 10;

#[derive(Args)]
pub(crate) struct ChangelogArgs {
    /// Go on with new records instead of ending at the present end.
    #[arg(short, long)]
    follow: bool,
    /// One JSON object per record.
    #[arg(long)]
    json: bool,
    /// Acknowledge what was printed: for the reader, or as a member of a queue.
    #[arg(long)]
    ack: bool,
    /// Only records that pass this expression, e.g. 'type = HSM and hsm_error != 0'; see
    /// docs/policies.md. The server evaluates it.
    #[arg(long, value_name = "EXPR")]
    filter: Option<String>,
    /// Of a stream of HSM events: what is there now first, then what changes.
    #[arg(long)]
    snapshot: bool,
    /// Stream to read [default: LCAP_STREAM, or changelog].
    #[arg(long)]
    stream: Option<String>,
    /// Begin after this reader's watermark [default: LCAP_READER].
    #[arg(long)]
    reader: Option<String>,
    /// MDT, e.g. lustre-MDT0000.
    mdt: MdtName,
    /// First index to print; 0 is the oldest there is.
    #[arg(default_value_t = 0)]
    startrec: u64,
    /// Last index to print; 0 is no limit.
    #[arg(default_value_t = 0)]
    endrec: u64,
}

pub(crate) fn run(args: &ChangelogArgs) -> Result<()> {
    let mut builder = Builder::new(args.mdt.clone()).from(args.startrec).follow(args.follow);
    if let Some(stream) = &args.stream {
        builder = builder.stream(stream);
    }
    if let Some(reader) = &args.reader {
        builder = builder.reader(Some(reader));
    }
    builder = builder.filter(args.filter.as_deref()).snapshot(args.snapshot);
    let mut client = builder.connect().context("cannot start changelog")?;
    let mdt = args.mdt.as_str();
    let mut out = Vec::with_capacity(OUTPUT_BYTES * 2);
    let past_end =
        |record: &Record<'_>| args.endrec != 0 && record.index() > RecordIndex::new(args.endrec);
    loop {
        let range = match client.recv_range(false) {
            // Nothing is there: what has gathered goes out before we wait.
            Err(ClientError::WouldBlock) => {
                flush(&mut out)?;
                acknowledge(&mut client, args.ack)?;
                client.recv_range(true)?
            }
            other => other?,
        };
        let batch = client.current().map(|batch| batch.buffer());
        let Some(bytes) = range.and_then(|range| batch?.get(range)) else { break };
        let (record, _) = split_first(bytes)?;
        if past_end(&record) {
            break;
        }
        if args.json {
            json::write_line(mdt, &record, &mut out);
        } else {
            write_text(&record, &mut out);
        }
        if out.len() >= OUTPUT_BYTES {
            flush(&mut out)?;
            acknowledge(&mut client, args.ack)?;
        }
    }
    flush(&mut out)?;
    acknowledge(&mut client, args.ack)
}

/// As `lfs changelog` does; an HSM event, which that does not know, as index, what happened, when (seconds
/// since 1970), and the MDT's line.
fn write_text(record: &Record<'_>, out: &mut Vec<u8>) {
    let Ok(event) = HsmActionEvent::parse(record) else { return text::write_line(record, out) };
    let (kind, time) = (event.kind.name(), event.time);
    let state = if event.is_snapshot { " (state)" } else { "" };
    // A Vec takes everything.
    let _ =
        write!(out, "{} {kind}{state} {}.{:09} ", event.index, time.seconds(), time.nanoseconds());
    event.write_raw(out);
    out.push(b'\n');
}

/// Settles everything that was printed.
fn acknowledge(client: &mut Client, ack: bool) -> Result<()> {
    if ack {
        client.clear(RecordIndex::ZERO)?;
    }
    Ok(())
}

fn flush(out: &mut Vec<u8>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(out)?;
    stdout.flush()?;
    out.clear();
    Ok(())
}
