//! How fast a chain of modules is, and what `compact` saves.
//!
//! `cargo bench -p lcapd --bench policies [-- FILE…]`: FILEs are packed records, as `cat` of a changelog
//! device gives them, measured besides LCAP_BENCH_RECORDS (default 2000000) of the generator (`sim:`).
//! LCAP_BENCH_ONLY measures only chains whose name contains it.
//! One thread, no lcapd around it; what counts is CPU time, so other work on the machine does not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lcap_ffi::{MdtName, RecordType};
use lcapd::batch::Batch;
use lcapd::policy::{Chain, ChainOutput, Loader, Nanos, PolicyConfig};
use lcapd::source::sim::{Generator, GeneratorOptions};

/// Records in a batch, as a busy reader makes them.
const BATCH: usize = 1000;
/// A chain whose memory is told.
const MILLION: &str = "compact, 1000000 held";
/// Virtual time between two batches: a million records per second.
const STEP_NS: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<PathBuf> =
        std::env::args_os().skip(1).map(PathBuf::from).filter(|path| path.is_file()).collect();
    let n = std::env::var("LCAP_BENCH_RECORDS").ok().and_then(|n| n.parse().ok());
    let mut generated = Vec::new();
    let mut generator = Generator::new(GeneratorOptions { seed: 1, ..Default::default() });
    for _ in 0..n.unwrap_or(2_000_000) {
        generated.extend_from_slice(generator.next_record());
    }
    let mut inputs = vec![("generator".to_owned(), generated)];
    for path in files {
        inputs.push((path.display().to_string(), std::fs::read(&path)?));
    }
    let beside = std::env::current_exe()?.parent().map(PathBuf::from);
    let loader = Loader::new(beside);
    let config = PolicyConfig::of;
    let filter =
        config("filter").with("drop", "type = MARK or jobid ~ 'backup.*' or name ~ '*.swp'");
    let million =
        config("compact").with("count", 1_000_000).with("memory", "64GiB").with("window", "1h");
    let chains = [
        ("fifo", vec![config("fifo")]),
        ("filter", vec![filter.clone()]),
        ("compact", vec![config("compact")]),
        ("compact, 20000 held", vec![config("compact").with("count", 20_000)]),
        (MILLION, vec![million.clone()]),
        ("window", vec![config("window").with("time", "500ms")]),
        ("sample", vec![config("sample").with("one_in", 10)]),
        ("group", vec![config("group").with("by", "tfid")]),
        (
            "filter, compact, group",
            vec![filter, config("compact"), config("group").with("by", "tfid")],
        ),
    ];
    let only = std::env::var("LCAP_BENCH_ONLY").unwrap_or_default();
    for (name, bytes) in &inputs {
        let batches = cut(bytes)?;
        let n: usize = batches.iter().map(|batch| batch.len()).sum();
        println!("{name}: {n} records, {:.1} MB", bytes.len() as f64 / 1e6);
        for (chain, modules) in chains.iter().filter(|(name, _)| name.contains(&only)) {
            let run = run(&loader, modules, &batches, false)?;
            println!(
                "  {chain:24} {:6.2} M records per CPU second, {:.0} % come out",
                n as f64 / run.seconds.max(1e-9) / 1e6,
                100.0 * run.n_out as f64 / n as f64,
            );
            if *chain == MILLION && run.most_held > 0 {
                println!(
                    "  {:24} {:6.0} bytes of memory for each of {} held records ({:.0} bytes on the \
                     device)",
                    "",
                    run.memory as f64 / run.most_held as f64,
                    run.most_held,
                    bytes.len() as f64 / n as f64,
                );
            }
        }
        if !only.is_empty() {
            continue;
        }
        let out = run(&loader, &[config("compact")], &batches, true)?.by_type;
        println!("  compact by type:         in       out");
        let mut by_type: BTreeMap<u32, usize> = BTreeMap::new();
        for record in batches.iter().flat_map(|batch| batch.records()) {
            *by_type.entry(record.rec_type().0).or_default() += 1;
        }
        for (rec_type, n) in by_type {
            let left = out.get(&rec_type).copied().unwrap_or(0);
            println!("    {:16} {n:8} {left:9}", RecordType(rec_type).to_string());
        }
    }
    Ok(())
}

/// Runs all batches through a chain.
fn run(
    loader: &Loader,
    modules: &[PolicyConfig],
    batches: &[Arc<Batch>],
    by_types: bool,
) -> Result<Run, Box<dyn std::error::Error>> {
    let mdt: MdtName = "lustre-MDT0000".parse()?;
    let load = |config: &PolicyConfig| Ok((loader.load(&config.module)?, config.clone()));
    let modules: Vec<_> =
        modules.iter().map(load).collect::<Result<_, lcapd::policy::PolicyError>>()?;
    let mut chain = Chain::new(&modules, &mdt)?;
    let mut out = ChainOutput::default();
    let mut by_type: BTreeMap<u32, usize> = BTreeMap::new();
    let (mut now, mut nanos) = (0, 0);
    let (mut n_out, mut most_held, mut memory) = (0, 0, 0);
    let memory_before = resident_bytes()?;
    for at in 0..=batches.len() {
        // As if just read: what the chain keeps of it, it keeps alone.
        let batch = batches.get(at).map(|batch| Batch::parse(batch.bytes().to_vec()));
        let batch = batch.transpose()?.map(Arc::new);
        let started = cpu_nanos()?;
        chain.run_batch(0, batch.as_ref(), Nanos(now), at == batches.len(), &mut out)?;
        nanos += cpu_nanos()? - started;
        now += STEP_NS;
        n_out += out.len();
        if chain.held() > most_held {
            most_held = chain.held();
            memory = resident_bytes()?.saturating_sub(memory_before);
        }
        if !by_types {
            continue;
        }
        for (_, record, _) in out.iter() {
            let word = record.get(4..8).and_then(|word| word.first_chunk()).copied();
            *by_type.entry(u32::from_ne_bytes(word.unwrap_or_default())).or_default() += 1;
        }
    }
    let seconds = nanos as f64 / 1e9;
    Ok(Run { seconds, n_out, most_held, memory, by_type })
}

struct Run {
    seconds: f64,
    n_out: usize,
    most_held: u64,
    /// What the process had more than before, when it held most: records, chain and module.
    memory: usize,
    by_type: BTreeMap<u32, usize>,
}

/// Time that this thread has had on a CPU, in nanoseconds: others on the machine do not count.
fn cpu_nanos() -> Result<u64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split_whitespace().next().unwrap_or_default().parse()?)
}

fn resident_bytes() -> Result<usize, Box<dyn std::error::Error>> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(pages * 4096)
}

fn cut(bytes: &[u8]) -> Result<Vec<Arc<Batch>>, Box<dyn std::error::Error>> {
    let whole = Batch::parse(bytes.to_vec())?;
    let mut batches = Vec::new();
    for from in (0..whole.len()).step_by(BATCH) {
        let to = (from + BATCH).min(whole.len());
        batches.push(Arc::new(Batch::parse(bytes[whole.start(from)..whole.start(to)].to_vec())?));
    }
    Ok(batches)
}
