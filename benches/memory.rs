//! References within one process: walking records in memory, and reading a memory-backed device.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use lcap_ffi::record;
use lcapd::batch::Batch;
use lcapd::buffers::Buffers;
use lcapd::source::sim::{Generator, GeneratorOptions};

/// So many records of the generator, back to back.
pub(crate) fn records(n: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::try_from(n).unwrap_or(0) * 170);
    let mut generator = Generator::new(GeneratorOptions::default());
    generator.fill(&mut bytes, n);
    bytes
}

/// Records per second when they are only walked: the index of each is looked at.
///
/// # Errors
/// Never, for records of the generator.
pub(crate) fn walk(bytes: &[u8], n: u64) -> Result<f64> {
    let started = Instant::now();
    let mut sum = 0_u64;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (size, index) = record::split_len(rest)?;
        sum = sum.wrapping_add(index.get());
        rest = rest.get(size..).unwrap_or_default();
    }
    black_box(sum);
    Ok(n as f64 / started.elapsed().as_secs_f64())
}

/// Records per second in the style of liblustreapi: 4 KiB are read at a time from the file, each record is
/// looked at, copied into memory of its own, and given back.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn one_by_one(file: &Path, n: u64) -> Result<f64> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(file)?;
    let (mut at, mut buf, mut sum) = (0_u64, vec![0_u8; 4096], 0_u64);
    let started = Instant::now();
    loop {
        let n_bytes = file.read_at(&mut buf, at)?;
        let mut rest = buf.get(..n_bytes).unwrap_or_default();
        let before = rest.len();
        while let Ok((size, index)) = record::split_len(rest) {
            let (rec, after) = rest.split_at(size);
            let own = black_box(rec.to_vec());
            sum = sum.wrapping_add(index.get() + own.len() as u64);
            rest = after;
        }
        if rest.len() == before {
            break;
        }
        at += (before - rest.len()) as u64;
    }
    black_box(sum);
    Ok(n as f64 / started.elapsed().as_secs_f64())
}

/// Records per second from a file in memory into batches, by the work of lcapd's reader on a changelog device:
/// a read of at most 1 MiB, a walk that finds the index after it, the batch. No file can play the device
/// itself, which ends every read after a whole record; here those places are found beforehand.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn device(file: &Path, records: &[u8], n: u64) -> Result<f64> {
    use std::os::unix::fs::FileExt as _;
    let (mut cuts, mut at, mut begin) = (Vec::new(), 0, 0);
    while let Some(rest) = records.get(at..).filter(|rest| !rest.is_empty()) {
        let (size, _) = record::split_len(rest)?;
        if at + size - begin > READ_BYTES {
            cuts.push((begin, at));
            begin = at;
        }
        at += size;
    }
    cuts.push((begin, at));
    let file = std::fs::File::open(file)?;
    let buffers = Arc::new(Buffers::new(READ_BYTES, 2));
    let started = Instant::now();
    let mut n_read = 0;
    for (begin, end) in cuts {
        let mut buffer = buffers.take();
        buffer.bytes.resize(end - begin, 0);
        file.read_exact_at(&mut buffer.bytes, begin as u64)?;
        let mut rest = buffer.bytes.as_slice();
        while !rest.is_empty() {
            let (size, index) = record::split_len(rest)?;
            black_box(index);
            rest = rest.get(size..).unwrap_or_default();
        }
        n_read += Batch::parse_pooled(buffer, &buffers)?.len() as u64;
    }
    anyhow::ensure!(n_read == n, "{n_read} records of {n}");
    Ok(n as f64 / started.elapsed().as_secs_f64())
}

/// A read of lcapd with a memory limit of 1 GiB.
const READ_BYTES: usize = 1 << 20;
