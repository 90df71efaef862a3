//! `lcap demo client`: one of the demonstration's consumers, a process of its own.
//!
//! Reports what it counted as JSON lines on stdout, and ends when its stdin does, that is, also
//! when whoever started it dies.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lcap_ffi::MdtName;
use lcapclient::{Builder, Client};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::tally::{Count, Seen, Tally};

/// Between two reports.
const REPORT_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

#[derive(Args)]
pub(crate) struct ClientArgs {
    /// The stream.
    #[arg(long)]
    stream: String,
    /// Be this registered reader.
    #[arg(long, conflicts_with = "members")]
    reader: Option<String>,
    /// Be so many members of a queue.
    #[arg(long, default_value_t = 1)]
    members: u32,
    /// The MDTs.
    mdts: Vec<MdtName>,
}

/// A consumer's numbers, and what those who share its records have seen.
struct Shared {
    tally: Mutex<Tally>,
    seen: Arc<Mutex<Seen>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn run(args: &ClientArgs) -> Result<()> {
    let mut threads = Vec::new();
    let mut consumers = Vec::new();
    for mdt in &args.mdts {
        let seen = Arc::new(Mutex::new(Seen::default()));
        for member in 1..=args.members {
            let name = args.reader.clone().unwrap_or_else(|| format!("member-{member}"));
            let builder = Builder::new(mdt.clone()).stream(&args.stream);
            let mut builder = builder.reader(args.reader.as_deref()).follow(true);
            builder.options_mut().ack_interval = Duration::from_millis(100);
            let tally = Mutex::new(Tally::new(&name, mdt.as_str()));
            let shared = Arc::new(Shared { tally, seen: Arc::clone(&seen) });
            consumers.push(Arc::clone(&shared));
            threads.push(thread::spawn(move || consume(builder.connect()?, &shared)));
        }
    }
    loop {
        let ended = wait(&mut [], Some(&REPORT_EVERY))?;
        if ended || threads.iter().any(thread::JoinHandle::is_finished) {
            break;
        }
        report(&consumers)?;
    }
    for thread in threads {
        match thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("a thread of the client panicked"),
        }
    }
    report(&consumers)
}

/// Receives and clears until stdin ends.
fn consume(mut client: Client, shared: &Shared) -> Result<()> {
    loop {
        if !client.in_buf()? {
            let fd = client.fd()?;
            if wait(&mut [PollFd::new(&fd, PollFlags::IN)], None)? {
                return Ok(());
            }
            continue;
        }
        let Some(record) = client.recv()? else { bail!("the records ended") };
        let index = record.index();
        lock(&shared.tally).note(index.get(), &mut lock(&shared.seen));
        client.clear(index)?;
    }
}

/// Waits for one of `fds`, or the end of stdin. Returns whether that came.
fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<bool> {
    let stdin = io::stdin();
    let stdin = stdin.as_fd();
    // Nobody writes to it: whatever comes is the end.
    let mut all = vec![PollFd::new(&stdin, PollFlags::IN)];
    all.extend(fds.iter().cloned());
    match poll(&mut all, timeout) {
        Ok(_) => Ok(!all[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("poll"),
    }
}

fn report(consumers: &[Arc<Shared>]) -> Result<()> {
    let counts: Vec<Count> =
        consumers.iter().map(|shared| lock(&shared.tally).count.clone()).collect();
    let mut line = serde_json::to_vec(&counts)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}
