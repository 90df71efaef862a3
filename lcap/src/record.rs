//! `lcap record`: writes the records of any source to a trace, byte for byte.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use lcap_ffi::device::poll_any;
use lcap_ffi::{MdtName, RecordIndex, record};
use lcapd::source::trace::TraceWriter;
use lcapd::source::{ChangelogSource, ReadOutcome, SourceUri, WaitFor};

/// One read, and so one block of the trace.
const READ_BYTES: usize = 1 << 20;
/// A crash of the machine loses no more than what was read in so long.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `lcap record`.
#[derive(Clone, Debug, clap::Args)]
pub struct RecordArgs {
    /// An MDT, which is read by its device, or any source, e.g. llapi: or device:/some/dir.
    #[arg(value_name = "MDT|SOURCE")]
    pub source: String,
    /// The MDT's name, if a source is given that does not say it.
    #[arg(long)]
    pub mdt: Option<MdtName>,
    /// The trace to write; must not exist.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The first index to record.
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    pub from: u64,
    /// Stop after so many records.
    #[arg(long, value_name = "N")]
    pub records: Option<u64>,
    /// Stop at the present end. Without it, record until SIGINT or SIGTERM.
    #[arg(long)]
    pub until_end: bool,
}

/// Records until there is enough, or SIGINT or SIGTERM comes. Clears nothing.
///
/// # Errors
/// If the source cannot be opened or read, or the trace cannot be written. What was read before
/// is in the trace then.
pub fn run(args: &RecordArgs) -> anyhow::Result<()> {
    let (stop, stopper) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::low_level::pipe::register(signal, stopper.try_clone()?)?;
    }
    let n = record(args, stop.as_fd())?;
    eprintln!("{n} records in {}", args.output.display());
    Ok(())
}

/// Records until there is enough, or `stop` becomes readable; returns how many.
///
/// # Errors
/// As [`run`].
pub fn record(args: &RecordArgs, stop: BorrowedFd<'_>) -> anyhow::Result<u64> {
    let (uri, mdt) = names(args)?;
    // Sources that play an MDT begin anew for us, and forget it.
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    let result = (|| {
        let upstream = uri.upstream(&mdt, None, scratch.path())?;
        let mut source = upstream.open(RecordIndex::new(args.from))?;
        let mut trace = TraceWriter::create(&args.output, &mdt)?;
        let n = copy(args, &mut *source, &mut trace, stop);
        trace.sync()?;
        n
    })();
    result.with_context(|| format!("cannot record {uri} of {mdt}"))
}

fn names(args: &RecordArgs) -> anyhow::Result<(SourceUri, MdtName)> {
    if let Ok(mdt) = args.source.parse::<MdtName>() {
        return Ok((SourceUri::Device("/dev".into()), mdt));
    }
    let uri: SourceUri = args.source.parse()?;
    match (&args.mdt, &uri) {
        (Some(mdt), _) => Ok((uri, mdt.clone())),
        (None, SourceUri::Sim(_)) => Ok((uri, "lustre-MDT0000".parse()?)),
        (None, SourceUri::Replay { path, .. }) => {
            let trace = lcapd::source::trace::Trace::open(path)?;
            match trace.mdt() {
                Some(mdt) => Ok((uri, mdt.clone())),
                None => bail!("{uri} does not say which MDT it is from; give --mdt"),
            }
        }
        _ => bail!("which MDT of {uri}? give --mdt"),
    }
}

fn copy(
    args: &RecordArgs,
    source: &mut dyn ChangelogSource,
    trace: &mut TraceWriter,
    stop: BorrowedFd<'_>,
) -> anyhow::Result<u64> {
    let mut buf = Vec::with_capacity(READ_BYTES);
    let mut n = 0;
    let mut synced_at = Instant::now();
    while args.records.is_none_or(|enough| n < enough) {
        buf.clear();
        match source.read(&mut buf)? {
            ReadOutcome::Bytes(_) => {
                let left = args.records.map_or(u64::MAX, |enough| enough - n);
                n += trace.append(first(&buf, left), now_ns())?;
                if poll_any([stop.as_raw_fd()], Some(Duration::ZERO))?[0].any() {
                    return Ok(n);
                }
            }
            ReadOutcome::Lost { first, last } => {
                eprintln!("lcap: records {first} to {last} are gone; the trace goes on after them");
            }
            ReadOutcome::Ended if args.until_end => return Ok(n),
            ReadOutcome::Ended => {
                bail!("this kernel cannot follow the changelog; use --until-end")
            }
            ReadOutcome::Wait { at_end: true, .. } if args.until_end => return Ok(n),
            ReadOutcome::Wait { on: WaitFor::Never, .. } => return Ok(n),
            ReadOutcome::Wait { on, .. } => {
                if synced_at.elapsed() >= SYNC_INTERVAL {
                    trace.sync()?;
                    synced_at = Instant::now();
                }
                if wait(on, stop)? {
                    return Ok(n);
                }
            }
        }
    }
    Ok(n)
}

/// Waits for a source; true if it is time to stop.
fn wait(on: WaitFor, stop: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    let (fd, timeout) = match on {
        WaitFor::Readable(fd) => (fd, None),
        WaitFor::ReadableUntil(fd, until) => (fd, Some(left(until))),
        WaitFor::Until(until) => (-1, Some(left(until))),
        WaitFor::Never => (-1, None),
    };
    let [_, stopped] = poll_any([fd, stop.as_raw_fd()], timeout)?;
    Ok(stopped.any())
}

/// The first `n` records of `buf`.
fn first(buf: &[u8], n: u64) -> &[u8] {
    let taken = record::records(buf).zip(0..n).map_while(|(r, _)| r.ok());
    &buf[..taken.map(|r| r.as_bytes().len()).sum()]
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
