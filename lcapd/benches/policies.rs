//! How fast a chain of modules is, and what `compact` saves.
//!
//! `cargo bench -p lcapd --bench policies [-- FILE…]`: FILEs are packed records, as `cat` of a changelog
//! device gives them, measured besides a made-up mix of LCAP_BENCH_RECORDS. One core, no lcapd around.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lcap_ffi::{Fid, MdtName, RecordType};
use lcap_policy_sdk::RecordBuilder;
use lcapd::batch::Batch;
use lcapd::policy::{Chain, ChainOutput, Loader, Nanos, PolicyConfig};

/// Records in a batch, as a busy reader makes them.
const BATCH: usize = 1000;
/// Virtual time between two batches: a million records per second.
const STEP_NS: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<PathBuf> =
        std::env::args_os().skip(1).map(PathBuf::from).filter(|path| path.is_file()).collect();
    let n = std::env::var("LCAP_BENCH_RECORDS").ok().and_then(|n| n.parse().ok());
    let mut inputs = vec![("made-up mix".to_owned(), mix(n.unwrap_or(1_000_000)))];
    for path in files {
        inputs.push((path.display().to_string(), std::fs::read(&path)?));
    }
    let beside = std::env::current_exe()?.parent().map(PathBuf::from);
    let loader = Loader::new(beside);
    let config = PolicyConfig::of;
    let filter =
        config("filter").with("drop", "type = MARK or jobid ~ 'backup.*' or name ~ '*.swp'");
    let chains = [
        ("fifo", vec![config("fifo")]),
        ("filter", vec![filter.clone()]),
        ("compact", vec![config("compact")]),
        ("compact, 20000 held", vec![config("compact").with("count", 20_000)]),
        ("group", vec![config("group").with("by", "tfid")]),
        (
            "filter, compact, group",
            vec![filter, config("compact"), config("group").with("by", "tfid")],
        ),
    ];
    for (name, bytes) in &inputs {
        let batches = cut(bytes)?;
        let n: usize = batches.iter().map(|batch| batch.len()).sum();
        println!("{name}: {n} records, {:.1} MB", bytes.len() as f64 / 1e6);
        for (chain, modules) in &chains {
            let run = run(&loader, modules, &batches, false)?;
            println!(
                "  {chain:24} {:6.2} M records per CPU second, {:.0} % come out",
                n as f64 / run.seconds.max(0.01) / 1e6,
                100.0 * run.n_out as f64 / n as f64,
            );
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
    let (mut now, started) = (0, cpu_seconds()?);
    let mut n_out = 0;
    for at in 0..=batches.len() {
        if let Some(batch) = batches.get(at) {
            chain.push(batch, Nanos(now))?;
        }
        chain.pull(Nanos(now), at == batches.len(), &mut out)?;
        now += STEP_NS;
        n_out += out.len();
        if !by_types {
            continue;
        }
        for (_, record, _) in out.iter() {
            let word = record.get(4..8).and_then(|word| word.first_chunk()).copied();
            *by_type.entry(u32::from_ne_bytes(word.unwrap_or_default())).or_default() += 1;
        }
    }
    Ok(Run { seconds: cpu_seconds()? - started, n_out, by_type })
}

struct Run {
    seconds: f64,
    n_out: usize,
    by_type: BTreeMap<u32, usize>,
}

/// Time that this process has had on a CPU: others on the machine do not count. In ticks of 10 ms.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Ok(ticks as f64 / 100.0)
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

/// Jobs that write files under temporary names and rename them, remove scratch files soon, archive a
/// few, and touch old files.
fn mix(n: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(n * 170);
    let mut seed = 1_u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    let fid = |oid: u64| Fid { seq: 0x2_0000_0401, oid: u32::try_from(oid).unwrap_or(0), ver: 0 };
    let (mut index, mut next) = (0_u64, 1000_u64);
    // What is yet to be done to files, soon or late.
    let mut open: Vec<(u64, u8)> = Vec::new();
    let named = |rec_type, object: u64| {
        RecordBuilder::new(rec_type)
            .target(fid(object))
            .parent(fid(object % 100))
            .name(format!("result-{object}.h5").as_bytes())
    };
    while usize::try_from(index).is_ok_and(|index| index < n) {
        let at = usize::try_from(random(open.len().max(1) as u64)).unwrap_or(0);
        let record = if open.len() < 2000 || random(5) == 0 {
            next += 1;
            open.push((next, u8::try_from(random(4)).unwrap_or(0) * 10));
            named(RecordType::CREATE, next)
        } else {
            let (object, state) = open[at];
            open[at].1 += 1;
            match state {
                // A result: written, renamed, its mode set.
                0 | 10 => RecordBuilder::new(RecordType::CLOSE).target(fid(object)).type_flags(2),
                1 => named(RecordType::RENAME, 0)
                    .target(Fid::default())
                    .renamed_from(
                        fid(object),
                        fid(object % 100),
                        format!("result-{object}.h5").as_bytes(),
                    )
                    .name(format!("final-{object}.h5").as_bytes()),
                2 => RecordBuilder::new(RecordType::SETATTR).target(fid(object)).type_flags(0x10),
                // Scratch: written and removed.
                11 => named(RecordType::UNLINK, object).type_flags(1),
                // Updates of old files.
                20..=22 => {
                    RecordBuilder::new(RecordType::MTIME).target(fid(object % 500)).type_flags(2)
                }
                30 => RecordBuilder::new(RecordType::CLOSE).target(fid(object)).type_flags(2),
                31 => RecordBuilder::new(RecordType::HSM).target(fid(object)),
                _ => {
                    open.swap_remove(at);
                    continue;
                }
            }
        };
        index += 1;
        let record =
            record.index(index).jobid(b"slurm.4711").uidgid(1000, 100).nid(0x0002_0000_c0a8_0105);
        bytes.extend_from_slice(&record.time(1_700_000_000 + index / 100_000, 0).build());
    }
    bytes
}
