//! lcap-journal-client: a client that writes down what it is given and what it acknowledges, to be
//! killed at any moment.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use lcap_ffi::record::split_len;
use lcap_ffi::{MdtName, RecordIndex};
use lcap_tests::journal::{ClientKind, Journal, Line};
use lcapclient::{Builder, ClientError};

/// Reads one MDT for ever and writes a journal; tests/README.md has its format.
#[derive(Parser)]
#[command(name = "lcap-journal-client", version)]
struct Args {
    /// Control endpoints of lcapd.
    #[arg(long)]
    server: String,
    /// The MDT.
    #[arg(long)]
    mdt: MdtName,
    /// The stream.
    #[arg(long)]
    stream: String,
    /// The registered reader; without one it acknowledges nothing, unless it is a member.
    #[arg(long)]
    reader: Option<String>,
    /// The stream is a queue.
    #[arg(long)]
    member: bool,
    /// The journal, appended to.
    #[arg(long)]
    journal: PathBuf,
    /// Records between two acknowledgements.
    #[arg(long, default_value_t = 100)]
    ack_every: u64,
    /// Time that the application takes for a hundred records.
    #[arg(long, default_value_t = 0)]
    work_us: u64,
    /// Bytes that may wait for the application.
    #[arg(long, default_value_t = 1 << 20)]
    prefetch: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut journal = Journal::append(&args.journal)?;
    let kind = match (&args.reader, args.member) {
        (Some(_), _) => ClientKind::Reader,
        (None, true) => ClientKind::Member,
        (None, false) => ClientKind::Ephemeral,
    };
    let reader = args.reader.clone().unwrap_or_else(|| "-".to_owned());
    journal.note(&Line::Client(kind, args.stream.clone(), args.mdt.to_string(), reader));
    journal.flush()?;
    let mut builder = Builder::new(args.mdt.clone()).servers(&args.server).stream(&args.stream);
    builder = builder.reader(args.reader.as_deref()).follow(true).timeout(Duration::from_secs(2));
    builder.options_mut().prefetch_bytes = args.prefetch;
    builder.options_mut().ack_interval = Duration::from_millis(100);
    let mut client = builder.connect()?;
    let (mut run, mut unacked): (Option<(u64, u64)>, u64) = (None, 0);
    let mut gaps = 0;
    loop {
        let received = match client.recv_range(false) {
            Err(ClientError::WouldBlock) => {
                note_run(&mut journal, &mut run);
                let stats = client.stats();
                if stats.gaps > gaps {
                    gaps = stats.gaps;
                    journal.note(&Line::Gap(stats.gap_first, stats.gap_last));
                }
                journal.flush()?;
                if unacked > 0 && kind != ClientKind::Ephemeral {
                    ack(&mut journal, &mut client)?;
                    unacked = 0;
                }
                client.recv_range(true)
            }
            other => other,
        };
        let range = match received {
            Ok(Some(range)) => range,
            Ok(None) => return Ok(()),
            Err(ClientError::Timeout { .. } | ClientError::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        };
        let bytes = client.current().and_then(|batch| batch.buffer().get(range));
        let (_, index) = split_len(bytes.unwrap_or_default())?;
        match &mut run {
            Some((_, last)) if *last + 1 == index.get() => *last += 1,
            _ => {
                note_run(&mut journal, &mut run);
                run = Some((index.get(), index.get()));
            }
        }
        unacked += 1;
        if args.work_us > 0 && unacked.is_multiple_of(100) {
            work(Duration::from_micros(args.work_us));
        }
        if unacked >= args.ack_every && kind != ClientKind::Ephemeral {
            note_run(&mut journal, &mut run);
            ack(&mut journal, &mut client)?;
            unacked = 0;
        }
    }
}

fn note_run(journal: &mut Journal, run: &mut Option<(u64, u64)>) {
    if let Some((first, last)) = run.take() {
        journal.note(&Line::Got(first, last));
    }
}

/// Written down first, then done: a clear that nobody knows of must not be.
fn ack(journal: &mut Journal, client: &mut lcapclient::Client) -> Result<()> {
    journal.note(&Line::Ack(u64::MAX));
    journal.flush()?;
    client.clear(RecordIndex::ZERO)?;
    Ok(())
}

/// A slow application.
fn work(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::sleep(left);
    }
}
