//! What one reading of an MDT's list of HSM actions costs: in a process of its own, on lists that another
//! one wrote, so that the memory of both is not mixed.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use lcap_ffi::hsm_action::RecordTime;
use lcapd::actions::Journal;
use lcapd::actions::scan::scan;
use lcapd::source::sim::SimActions;

/// CPU seconds of readings of one list after another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poll {
    /// The first one: all actions are new.
    pub(crate) first: f64,
    /// Nothing has changed.
    pub(crate) unchanged: f64,
    /// 1 % of the actions have.
    pub(crate) changed: f64,
    /// All that was known is read from the disk again.
    pub(crate) restart: f64,
    /// The most memory that the process had, in bytes.
    pub(crate) memory: f64,
}

/// Measures with lists of `n` actions.
///
/// # Errors
/// If files cannot be written, or the other process fails.
pub(crate) fn measure(n: u64) -> Result<Poll> {
    let dir = tempfile::tempdir()?;
    write_list(&dir.path().join("first"), n, None)?;
    write_list(&dir.path().join("changed"), n, Some(100))?;
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.arg("hsm-poll").arg(dir.path()).output()?;
    ensure!(output.status.success(), "hsm-poll: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
    let &[first, unchanged, changed, restart, memory] = numbers.as_slice() else {
        anyhow::bail!("hsm-poll says {text:?}");
    };
    Ok(Poll { first, unchanged, changed, restart, memory })
}

/// The other process.
///
/// # Errors
/// If a list cannot be read.
pub(crate) fn run(lists: &Path) -> Result<()> {
    let (first, changed) = (lists.join("first"), lists.join("changed"));
    let mut journal = Journal::open(&lists.join("journal"), 10_000_000)?;
    let read = |journal: &Journal, list: &Path, expected: Option<u64>| -> Result<f64> {
        let before = cpu();
        let found = scan(File::open(list)?, journal.writer(), RecordTime::new(1, 0))?;
        let seconds = (cpu() - before).as_secs_f64();
        ensure!(found.bad_lines == 0, "{} bad lines", found.bad_lines);
        let expected = expected.unwrap_or(found.lines);
        ensure!(found.events() == expected, "{} events, not {expected}", found.events());
        Ok(seconds)
    };
    let at_first = read(&journal, &first, None)?;
    let n = journal.n_live() as u64;
    let unchanged = read(&journal, &first, Some(0))?;
    let then = read(&journal, &changed, Some(n.div_ceil(100)))?;
    drop(journal);
    let before = cpu();
    journal = Journal::open(&lists.join("journal"), 10_000_000)?;
    let restart = (cpu() - before).as_secs_f64();
    ensure!(journal.n_live() as u64 == n, "after a restart {} are live", journal.n_live());
    let memory = most_memory().context("VmHWM")?;
    println!("{at_first} {unchanged} {then} {restart} {memory}");
    Ok(())
}

/// A made-up list; every `nth` line has another status.
fn write_list(path: &Path, n: u64, nth: Option<usize>) -> Result<()> {
    let sim = SimActions::new(&"bench-MDT0000".parse()?, n, 1, None, UNIX_EPOCH);
    let list = sim.at(Duration::from_secs(1)).context("a list")?;
    let mut file = io::BufWriter::new(File::create(path)?);
    for (at, line) in io::read_to_string(list)?.lines().enumerate() {
        match line.split_once("status=") {
            Some((before, after)) if nth.is_some_and(|nth| at % nth == 0) => {
                let after = after.split_once(' ').map_or("", |(_, after)| after);
                writeln!(file, "{before}status=PAUSED {after}")?;
            }
            _ => writeln!(file, "{line}")?,
        }
    }
    Ok(file.flush()?)
}

/// Time that this thread, the only one, was on a CPU.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The most memory that this process ever had, in bytes.
fn most_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}
