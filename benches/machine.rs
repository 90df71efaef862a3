//! What the kernel says of the machine and of processes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Processor, cores, memory and kernel, in one line.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name");
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or_default();
    format!("{cores} cores, {model}, {memory}, Linux {}, load {load} at the start", kernel.trim())
}

/// Processor time of a process by the names of its threads, in seconds; the kernel counts in ticks
/// of 10 ms. Threads that ended are in the total of [`cpu_seconds`] only.
pub(crate) fn cpu_by_thread(pid: u32) -> BTreeMap<String, f64> {
    let mut times = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        if let Some((name, seconds)) = stat(&task.path().join("stat")) {
            *times.entry(name).or_default() += seconds;
        }
    }
    times
}

/// Processor time of a process, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    stat(Path::new(&format!("/proc/{pid}/stat"))).map_or(0.0, |(_, seconds)| seconds)
}

fn stat(path: &Path) -> Option<(String, f64)> {
    let text = fs::read_to_string(path).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let ticks: u64 = after.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Some((name, ticks as f64 / 100.0))
}
