//! One stage of the hot path at a time, on records of the generator, for counting instructions:
//! `valgrind --tool=callgrind lcap-stages STAGE RECORDS`.
//!
//! Nothing else happens in the process that depends on RECORDS, so the difference between two runs is the
//! cost of the stage, whatever else the machine does.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use lcap_ffi::hsm_action::RecordTime;
use lcap_wire::{Header, Kind};
use lcapd::actions::Journal;
use lcapd::actions::scan::scan;
use lcapd::batch::Batch;
use lcapd::policy::{Chain, ChainOutput, Loader, Nanos, PolicyConfig};
use lcapd::source::sim::{Generator, GeneratorOptions, SimActions};

/// Records in a batch, as a busy reader makes them.
const BATCH: u64 = 1000;
/// Always as many are made, so that making them costs the same in every run.
const MOST: u64 = 200_000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (stage, n) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    let n: u64 = n
        .parse()
        .context("usage: lcap-stages read|send|fifo|compact|walk|hsm|hsm-again RECORDS")?;
    anyhow::ensure!(n <= MOST, "at most {MOST} records");
    let mut generator = Generator::new(GeneratorOptions::default());
    let mut batches = Vec::new();
    for _ in 0..MOST / BATCH {
        let mut bytes = Vec::with_capacity(200 * usize::try_from(BATCH)?);
        generator.fill(&mut bytes, BATCH);
        batches.push(bytes);
    }
    batches.truncate(usize::try_from(n / BATCH)?);
    match stage.as_str() {
        // What the reader thread does with what it read.
        "read" => {
            for bytes in batches {
                black_box(Batch::parse(bytes)?);
            }
        }
        // What it takes to make a message of it.
        "send" => {
            for bytes in &batches {
                black_box(Header::for_body(Kind::Records, bytes).encode());
            }
        }
        // The smallest module, called through its C interface.
        "fifo" => through(PolicyConfig::of("fifo"), batches)?,
        // The largest one, with as many records in its window as there are by default.
        "compact" => through(PolicyConfig::of("compact").with("window", "1h"), batches)?,
        // What a consumer cannot avoid.
        "walk" => {
            for record in batches.iter().flat_map(|bytes| lcap_ffi::record::records(bytes)) {
                black_box(record?.index());
            }
        }
        // A list of HSM actions that are all new, and the same list once more.
        "hsm" | "hsm-again" => {
            let sim = SimActions::new(&"bench-MDT0000".parse()?, MOST, 1, None, UNIX_EPOCH);
            let list = std::io::read_to_string(sim.at(Duration::from_secs(1)).context("a list")?)?;
            let end = list.match_indices('\n').nth(usize::try_from(n)?).map(|(at, _)| at + 1);
            let list = list.get(..end.unwrap_or(list.len())).unwrap_or_default();
            let dir = tempfile::tempdir()?;
            let journal = Journal::open(&dir.path().join("journal"), 10_000_000)?;
            for _ in 0..if stage == "hsm" { 1 } else { 2 } {
                let found = scan(list.as_bytes(), journal.writer(), RecordTime::new(1, 0))?;
                anyhow::ensure!(found.bad_lines == 0, "{} bad lines", found.bad_lines);
            }
        }
        other => bail!("no stage `{other}`"),
    }
    Ok(())
}

/// All batches through a chain of one module.
fn through(config: PolicyConfig, batches: Vec<Vec<u8>>) -> Result<()> {
    // Cargo puts modules beside this program, or, as dependencies of a test, into `deps`.
    let exe = std::env::current_exe()?;
    let beside = exe.parent().context("a directory")?;
    let loader = Loader::new([beside.to_owned(), beside.join("deps")]);
    let modules = [(loader.load(&config.module)?, config)];
    let mut chain = Chain::new(&modules, &"lustre-MDT0000".parse()?)?;
    let mut out = ChainOutput::default();
    for bytes in batches {
        let batch = Arc::new(Batch::parse(bytes)?);
        chain.run_batch(0, Some(&batch), Nanos(0), false, &mut out)?;
        black_box(out.len());
    }
    Ok(())
}
