//! What one reading of an MDT's list of HSM actions costs.
//!
//! `cargo bench -p lcapd --bench hsm_poll`: lists of 10,000, 100,000 and 350,000 actions as files
//! (LCAP_BENCH_ACTIONS names others, separated by commas): the first reading, one where nothing has
//! changed, and one where 1 % has. CPU time of the process and the most memory that it ever had; each size in a
//! process of its own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use lcap_ffi::hsm_action::RecordTime;
use lcapd::actions::Journal;
use lcapd::actions::scan::{Found, scan};
use lcapd::source::sim::SimActions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(n) = std::env::var("LCAP_BENCH_ONE").ok().and_then(|n| n.parse().ok()) {
        return one(n);
    }
    let sizes = std::env::var("LCAP_BENCH_ACTIONS").unwrap_or("10000,100000,350000".to_owned());
    println!("   actions  reading         wall s   CPU s   events   RSS MB");
    for n in sizes.split(',') {
        let mut again = Command::new(std::env::current_exe()?);
        again.env("LCAP_BENCH_ONE", n).status()?;
    }
    Ok(())
}

fn one(n: u64) -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let lists = ["first", "changed"].map(|name| dir.path().join(name));
    write_list(&lists[0], n, None)?;
    write_list(&lists[1], n, Some(100))?;
    let journal = Journal::open(&dir.path().join("journal"), 10_000_000)?;
    let read = |what: &str, list: &Path| -> Result<(), Box<dyn std::error::Error>> {
        let (began, cpu_before) = (Instant::now(), cpu());
        let found: Found = scan(File::open(list)?, journal.writer(), RecordTime::new(1, 0))?;
        let (wall, cpu) = (began.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
        assert_eq!((found.lines, found.bad_lines), (n, 0));
        println!(
            "{n:>10}  {what:<14} {wall:>7.3} {cpu:>7.3} {:>8} {:>8.1}",
            found.events(),
            most_memory() as f64 / 1e6
        );
        Ok(())
    };
    read("first", &lists[0])?;
    for _ in 0..3 {
        read("unchanged", &lists[0])?;
    }
    read("1 % changed", &lists[1])?;
    read("1 % changed", &lists[0])?;
    drop(journal);
    let (began, cpu_before) = (Instant::now(), cpu());
    let journal = Journal::open(&dir.path().join("journal"), 10_000_000)?;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    assert_eq!(journal.n_live() as u64, n);
    println!(
        "{n:>10}  restart        {wall:>7.3} {cpu:>7.3} {:>8} {:>8.1}",
        0,
        most_memory() as f64 / 1e6
    );
    Ok(())
}

/// A made-up list; every `nth` line has another status.
fn write_list(path: &Path, n: u64, nth: Option<usize>) -> io::Result<()> {
    let mdt = "bench-MDT0000".parse().map_err(io::Error::other)?;
    let sim = SimActions::new(&mdt, n, 1, None, UNIX_EPOCH);
    let mut text = String::new();
    let mut list = sim.at(Duration::from_secs(1)).ok_or_else(|| io::Error::other("no list"))?;
    io::Read::read_to_string(&mut list, &mut text)?;
    let mut file = io::BufWriter::new(File::create(path)?);
    for (at, line) in text.lines().enumerate() {
        if nth.is_some_and(|nth| at % nth == 0) {
            let (before, after) = line.split_once("status=").unwrap_or((line, ""));
            let after = after.split_once(' ').map_or("", |(_, after)| after);
            writeln!(file, "{before}status=PAUSED {after}")?;
        } else {
            writeln!(file, "{line}")?;
        }
    }
    file.flush()
}

/// Time that this thread, the only one, was on a CPU.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The most memory that this process ever had, in bytes.
fn most_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
