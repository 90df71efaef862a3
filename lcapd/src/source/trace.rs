//! Traces: records kept in a file, byte for byte, with the time at which they were read.
//!
//! `lcap record` writes `.clog` files, and [`Trace`] reads them. All numbers are little-endian but
//! those inside records, which are as the reading machine had them.
//!
//! | at | bytes | file head |
//! | ---: | ---: | --- |
//! | 0 | 8 | `lcapclog` |
//! | 8 | 4 | version, now 1 |
//! | 12 | 4 | CRC-32C of the next 128 bytes |
//! | 16 | 128 | name of the MDT, padded with NUL |
//!
//! | at | bytes | head of each block |
//! | ---: | ---: | --- |
//! | 0 | 4 | `CLBK` |
//! | 4 | 4 | CRC-32C of the rest of this head and the body |
//! | 8 | 4 | bytes of the body |
//! | 12 | 4 | records in the body |
//! | 16 | 8 | first index |
//! | 24 | 8 | last index |
//! | 32 | 8 | when it was read, nanoseconds since 1970 |
//! | 40 | | the body: packed records, back to back |
//!
//! Indexes grow through the whole file. A file that ends inside a block was cut off, by a crash
//! for instance; what comes before that block is whole. Bare packed records, as `cat` of the
//! device gives, are taken as well.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lcap_ffi::record::{self, HEAD_BYTES, MAX_RECORD_BYTES};
use lcap_ffi::{MdtName, RecordIndex};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SourceError;
use super::emulated::io_error;

const MAGIC: [u8; 8] = *b"lcapclog";
const BLOCK_MAGIC: [u8; 4] = *b"CLBK";
const VERSION: u32 = 1;
/// No block is larger: whoever reads one needs that much memory.
pub const MAX_BLOCK_BYTES: usize = 4 << 20;
/// How much of a bare file is one block.
const BARE_BLOCK_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileHead {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    mdt: [u8; 128],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockHead {
    magic: [u8; 4],
    crc: U32,
    n_bytes: U32,
    n_records: U32,
    first: U64,
    last: U64,
    read_at_ns: U64,
}

const FILE_HEAD_BYTES: u64 = size_of::<FileHead>() as u64;
const BLOCK_HEAD_BYTES: u64 = size_of::<BlockHead>() as u64;
const _: () = assert!(FILE_HEAD_BYTES == 144 && BLOCK_HEAD_BYTES == 40);

impl BlockHead {
    fn checksum(&self, body: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.as_bytes()[8..]), body)
    }
}

/// Writes a trace.
#[derive(Debug)]
pub struct TraceWriter {
    file: File,
    path: PathBuf,
    last: RecordIndex,
}

impl TraceWriter {
    /// Begins a trace of that MDT in a new file.
    ///
    /// # Errors
    /// If the file exists, or cannot be written.
    pub fn create(path: &Path, mdt: &MdtName) -> Result<Self, SourceError> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| io_error("create", path, e))?;
        let mut name = [0; 128];
        name[..mdt.as_str().len()].copy_from_slice(mdt.as_str().as_bytes());
        let head = FileHead {
            magic: MAGIC,
            version: VERSION.into(),
            crc: crc32c::crc32c(&name).into(),
            mdt: name,
        };
        file.write_all(head.as_bytes()).map_err(|e| io_error("write", path, e))?;
        Ok(Self { file, path: path.to_owned(), last: RecordIndex::ZERO })
    }

    /// Appends whole packed records that were read at that time (nanoseconds since 1970).
    /// Returns how many.
    ///
    /// # Errors
    /// If they are malformed, their indexes do not grow, or the file cannot be written.
    pub fn append(&mut self, records: &[u8], read_at_ns: u64) -> Result<u64, SourceError> {
        let mut rest = records;
        let mut n_written = 0;
        while !rest.is_empty() {
            let span = measure(rest, MAX_BLOCK_BYTES, usize::MAX, self.last)
                .map_err(|e| self.malformed(&e.problem))?;
            if span.n_bytes == 0 {
                return Err(self.malformed("records to be written end inside one"));
            }
            let (body, after) = rest.split_at(span.n_bytes);
            let mut head = BlockHead {
                magic: BLOCK_MAGIC,
                crc: 0.into(),
                n_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX).into(),
                n_records: span.n_records.into(),
                first: span.first.get().into(),
                last: span.last.get().into(),
                read_at_ns: read_at_ns.into(),
            };
            head.crc = head.checksum(body).into();
            let mut block = Vec::with_capacity(size_of::<BlockHead>() + body.len());
            block.extend_from_slice(head.as_bytes());
            block.extend_from_slice(body);
            self.file.write_all(&block).map_err(|e| io_error("write", &self.path, e))?;
            self.last = span.last;
            n_written += u64::from(span.n_records);
            rest = after;
        }
        Ok(n_written)
    }

    /// Makes sure that all of it is on disk.
    ///
    /// # Errors
    /// If the disk says that it is not.
    pub fn sync(&self) -> Result<(), SourceError> {
        self.file.sync_all().map_err(|e| io_error("sync", &self.path, e))
    }

    fn malformed(&self, problem: &str) -> SourceError {
        SourceError::Malformed {
            what: self.path.display().to_string(),
            problem: problem.to_owned(),
        }
    }
}

/// A part of a trace that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where its records begin in the file.
    pub at: u64,
    /// Bytes of its records.
    pub n_bytes: usize,
    /// Records in it.
    pub n_records: u32,
    /// How many records of the trace come before it.
    pub ordinal: u64,
    /// Index of its first record.
    pub first: RecordIndex,
    /// Index of its last record.
    pub last: RecordIndex,
    /// When it was read, in nanoseconds since 1970; of bare records, when the first happened.
    pub time_ns: u64,
    /// Checked against the body; bare records have none.
    checksum: Option<u32>,
}

/// A trace: the file, and where what is in it. Holds some bytes per block, not the records.
#[derive(Debug)]
pub struct Trace {
    file: File,
    path: PathBuf,
    mdt: Option<MdtName>,
    blocks: Vec<Block>,
}

impl Trace {
    /// Opens a trace and finds its blocks. Of a `.clog`, checks every head and the last body;
    /// the other bodies are checked as they are read. Bare records are checked whole.
    ///
    /// # Errors
    /// If the file cannot be read, is neither form, or is cut off or damaged: at which byte.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        let size = file.metadata().map_err(|e| io_error("read", path, e))?.len();
        let mut trace = Self { file, path: path.to_owned(), mdt: None, blocks: Vec::new() };
        let mut start = Vec::new();
        let at_most = FILE_HEAD_BYTES;
        (&trace.file)
            .take(at_most)
            .read_to_end(&mut start)
            .map_err(|e| io_error("read", path, e))?;
        if start.starts_with(&[0x1f, 0x8b]) {
            return Err(trace.malformed(0, "this is compressed; gunzip it first"));
        }
        if start.starts_with(&MAGIC) {
            trace.read_head(&start)?;
            trace.find_blocks(size)?;
            if let Some(last) = trace.blocks.last() {
                trace.read_block(last, &mut Vec::new())?;
            }
        } else if !start.is_empty() && MAGIC.starts_with(&start) {
            return Err(trace.malformed(0, "the file ends inside its head"));
        } else {
            trace.find_bare_blocks(size)?;
        }
        Ok(trace)
    }

    /// The MDT that it was recorded from; bare records do not say.
    pub fn mdt(&self) -> Option<&MdtName> {
        self.mdt.as_ref()
    }

    /// Its parts, in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// How many records it has.
    pub fn n_records(&self) -> u64 {
        self.blocks.last().map_or(0, |b| b.ordinal + u64::from(b.n_records))
    }

    /// Reads the records of a block into `body`, replacing what is there.
    ///
    /// # Errors
    /// If the file cannot be read, or the block is damaged.
    pub fn read_block(&self, block: &Block, body: &mut Vec<u8>) -> Result<(), SourceError> {
        body.resize(block.n_bytes, 0);
        self.read_at(body, block.at)?;
        let Some(want) = block.checksum else { return Ok(()) };
        let head_at = block.at - BLOCK_HEAD_BYTES;
        if self.block_head(head_at)?.checksum(body) != want {
            return Err(self.malformed(head_at, "the block is damaged: wrong checksum"));
        }
        let span = measure(body, usize::MAX, usize::MAX, block.first.prev())
            .map_err(|e| self.malformed(block.at + e.at as u64, &e.problem))?;
        let same = span.n_bytes == body.len()
            && (span.n_records, span.first, span.last)
                == (block.n_records, block.first, block.last);
        if same { Ok(()) } else { Err(self.malformed(head_at, "the block's head is wrong")) }
    }

    /// An error about the file at that byte.
    pub fn malformed(&self, at: u64, problem: &str) -> SourceError {
        SourceError::Malformed {
            what: format!("{} at byte {at}", self.path.display()),
            problem: problem.to_owned(),
        }
    }

    fn read_head(&mut self, start: &[u8]) -> Result<(), SourceError> {
        let head = FileHead::read_from_bytes(start)
            .map_err(|_| self.malformed(0, "the file ends inside its head"))?;
        if head.version.get() != VERSION {
            let problem = format!(
                "version {} of the trace format; this program knows {VERSION}",
                head.version
            );
            return Err(self.malformed(8, &problem));
        }
        if head.crc.get() != crc32c::crc32c(&head.mdt) {
            return Err(self.malformed(12, "the head is damaged: wrong checksum"));
        }
        let name = head.mdt.split(|&b| b == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
        self.mdt = Some(name.ok_or_else(|| self.malformed(16, "the MDT name is none"))?);
        Ok(())
    }

    fn find_blocks(&mut self, size: u64) -> Result<(), SourceError> {
        let (mut at, mut ordinal, mut last) = (FILE_HEAD_BYTES, 0, RecordIndex::ZERO);
        while at < size {
            if size - at < BLOCK_HEAD_BYTES {
                return Err(self.cut_off(at));
            }
            let head = self.block_head(at)?;
            let n_bytes = head.n_bytes.get() as usize;
            let (first, head_last) =
                (RecordIndex::new(head.first.get()), RecordIndex::new(head.last.get()));
            let sane = n_bytes <= MAX_BLOCK_BYTES
                && n_bytes / HEAD_BYTES >= head.n_records.get() as usize
                && head.n_records.get() > 0
                && first <= head_last;
            if head.magic != BLOCK_MAGIC || !sane {
                return Err(self.malformed(at, "no block begins here"));
            }
            if first <= last {
                return Err(self.malformed(at, "the indexes go back"));
            }
            if n_bytes as u64 > size - at - BLOCK_HEAD_BYTES {
                return Err(self.cut_off(at));
            }
            self.blocks.push(Block {
                at: at + BLOCK_HEAD_BYTES,
                n_bytes,
                n_records: head.n_records.get(),
                ordinal,
                first,
                last: head_last,
                time_ns: head.read_at_ns.get(),
                checksum: Some(head.crc.get()),
            });
            ordinal += u64::from(head.n_records.get());
            last = head_last;
            at += BLOCK_HEAD_BYTES + n_bytes as u64;
        }
        Ok(())
    }

    fn find_bare_blocks(&mut self, size: u64) -> Result<(), SourceError> {
        let (mut at, mut ordinal, mut last) = (0, 0, RecordIndex::ZERO);
        let mut buf = Vec::new();
        while at < size {
            let room = (BARE_BLOCK_BYTES + MAX_RECORD_BYTES) as u64;
            buf.resize(usize::try_from(room.min(size - at)).unwrap_or(0), 0);
            self.read_at(&mut buf, at)?;
            let span = measure(&buf, BARE_BLOCK_BYTES, usize::MAX, last).map_err(|e| {
                let nothing = if at == 0 && e.at == 0 { "no trace: " } else { "" };
                self.malformed(at + e.at as u64, &format!("{nothing}{}", e.problem))
            })?;
            if span.n_bytes == 0 {
                return Err(self.cut_off(at));
            }
            if at + buf.len() as u64 == size && span.n_bytes < buf.len() && span.torn {
                return Err(self.cut_off(at + span.n_bytes as u64));
            }
            self.blocks.push(Block {
                at,
                n_bytes: span.n_bytes,
                n_records: span.n_records,
                ordinal,
                first: span.first,
                last: span.last,
                time_ns: span.time_ns,
                checksum: None,
            });
            ordinal += u64::from(span.n_records);
            last = span.last;
            at += span.n_bytes as u64;
        }
        Ok(())
    }

    fn block_head(&self, at: u64) -> Result<BlockHead, SourceError> {
        let mut bytes = [0; size_of::<BlockHead>()];
        self.read_at(&mut bytes, at)?;
        Ok(zerocopy::transmute!(bytes))
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), SourceError> {
        self.file.read_exact_at(buf, at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.malformed(at, "the file became shorter while it was read")
            }
            _ => io_error("read", &self.path, e),
        })
    }

    fn cut_off(&self, at: u64) -> SourceError {
        if at == 0 {
            return self.malformed(0, "no trace: the file ends inside its first record");
        }
        let path = self.path.display();
        let problem = format!(
            "the file is cut off here; what comes before is whole (`truncate -s {at} {path}` keeps it)"
        );
        self.malformed(at, &problem)
    }
}

/// What stands at the start of some packed records.
struct Span {
    n_bytes: usize,
    n_records: u32,
    first: RecordIndex,
    last: RecordIndex,
    time_ns: u64,
    /// It ends because the bytes end inside a record.
    torn: bool,
}

/// Where packed records go wrong, and how.
struct Wrong {
    at: usize,
    problem: String,
}

/// Measures the whole records at the start of `bytes`: at most so many bytes and records, with
/// indexes that grow from `before` on.
fn measure(
    bytes: &[u8],
    max_bytes: usize,
    max_records: usize,
    before: RecordIndex,
) -> Result<Span, Wrong> {
    let mut span = Span {
        n_bytes: 0,
        n_records: 0,
        first: RecordIndex::ZERO,
        last: before,
        time_ns: 0,
        torn: false,
    };
    while span.n_bytes < bytes.len() && (span.n_records as usize) < max_records {
        let rest = &bytes[span.n_bytes..];
        let (size, index) = match record::split_len(rest) {
            Ok(split) => split,
            Err(record::RecordError::Short { .. }) => {
                span.torn = true;
                break;
            }
            Err(e) => return Err(Wrong { at: span.n_bytes, problem: e.to_string() }),
        };
        if span.n_bytes + size > max_bytes {
            break;
        }
        if index <= span.last {
            let problem = format!("record {index} comes after {}", span.last);
            return Err(Wrong { at: span.n_bytes, problem });
        }
        if span.n_records == 0 {
            span.first = index;
            if let Ok((first, _)) = record::split_first(rest) {
                let seconds = first.seconds().saturating_mul(1_000_000_000);
                span.time_ns = seconds.saturating_add(u64::from(first.nanoseconds()));
            }
        }
        span.n_bytes += size;
        span.n_records += 1;
        span.last = index;
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::sim::{Generator, GeneratorOptions};

    fn mdt() -> MdtName {
        "lustre-MDT0000".parse().unwrap()
    }

    fn some_records(n: u64) -> Vec<u8> {
        let mut buf = Vec::with_capacity(1 << 20);
        Generator::new(GeneratorOptions::default()).fill(&mut buf, n);
        buf
    }

    /// Three blocks of four records.
    fn small_trace(path: &Path) -> Vec<u8> {
        let records = some_records(12);
        let mut writer = TraceWriter::create(path, &mdt()).unwrap();
        let mut ends = vec![0];
        for record in record::records(&records) {
            ends.push(ends[ends.len() - 1] + record.unwrap().as_bytes().len());
        }
        for block in 0..3 {
            let body = &records[ends[4 * block]..ends[4 * block + 4]];
            assert_eq!(writer.append(body, 1000 * block as u64).unwrap(), 4);
        }
        writer.sync().unwrap();
        records
    }

    fn read_all(path: &Path) -> Result<Vec<u8>, SourceError> {
        let trace = Trace::open(path)?;
        let (mut all, mut body) = (Vec::new(), Vec::new());
        for block in trace.blocks() {
            trace.read_block(block, &mut body)?;
            all.extend_from_slice(&body);
        }
        Ok(all)
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.clog");
        let records = small_trace(&path);
        assert_eq!(read_all(&path).unwrap(), records);
        let trace = Trace::open(&path).unwrap();
        assert_eq!((trace.mdt(), trace.n_records()), (Some(&mdt()), 12));
        let starts: Vec<_> =
            trace.blocks().iter().map(|b| (b.ordinal, b.first.get(), b.time_ns)).collect();
        assert_eq!(starts, [(0, 1, 0), (4, 5, 1000), (8, 9, 2000)]);
        let again = TraceWriter::create(&path, &mdt()).unwrap_err();
        assert!(again.to_string().starts_with("create"), "{again}");
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_named_with_where_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.clog");
        let records = small_trace(&path);
        let whole = std::fs::read(&path).unwrap();
        let mut ends = vec![FILE_HEAD_BYTES];
        for block in Trace::open(&path).unwrap().blocks() {
            ends.push(block.at + block.n_bytes as u64);
        }
        let torn = dir.path().join("torn.clog");
        for (n_kept, len) in (1..whole.len()).zip(1_u64..) {
            std::fs::write(&torn, &whole[..n_kept]).unwrap();
            let result = read_all(&torn);
            if ends.contains(&len) {
                assert!(records.starts_with(&result.unwrap()), "{len}");
                continue;
            }
            let SourceError::Malformed { what, .. } = result.unwrap_err() else {
                panic!("{len}: another error")
            };
            let begin = ends.iter().rev().find(|&&end| end < len).copied().unwrap_or(0);
            assert!(what.ends_with(&format!(" at byte {begin}")), "{len}: {what}");
        }
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.clog");
        small_trace(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            assert!(read_all(&path).is_err(), "byte {at}");
            bytes[at] ^= 0x10;
        }
    }

    #[test]
    fn bare_records_torn_at_any_byte_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bare");
        let records = some_records(5);
        let mut ends = vec![0];
        for record in record::records(&records) {
            ends.push(ends[ends.len() - 1] + record.unwrap().as_bytes().len());
        }
        for len in 0..=records.len() {
            std::fs::write(&path, &records[..len]).unwrap();
            match read_all(&path) {
                Ok(all) => {
                    assert!(ends.contains(&len), "{len}");
                    assert_eq!(all, records[..len]);
                }
                Err(e) => {
                    assert!(!ends.contains(&len), "{len}");
                    let begin = ends.iter().rev().find(|&&end| end < len).unwrap();
                    assert!(e.to_string().contains(&format!("at byte {begin}:")), "{len}: {e}");
                }
            }
        }
    }

    #[test]
    fn bare_records_in_many_blocks_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bare");
        let mut records = Vec::with_capacity(2 << 20);
        let n = Generator::new(GeneratorOptions::default()).fill(&mut records, u64::MAX);
        std::fs::write(&path, &records).unwrap();
        assert!(Trace::open(&path).unwrap().blocks().len() > 7);
        assert_eq!(Trace::open(&path).unwrap().n_records(), n);
        assert_eq!(read_all(&path).unwrap(), records);
    }

    #[test]
    fn what_is_no_trace_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let backwards = [some_records(2), some_records(1)].concat();
        for (bytes, want) in [
            (&b"hello"[..], "no trace: the file ends inside its first record"),
            (&[0xff; 500][..], "no trace: record of "),
            (&[0x1f, 0x8b, 8, 0][..], "gunzip"),
            (&b"lcap"[..], "ends inside its head"),
            (&backwards[..], "record 1 comes after 2"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let err = Trace::open(&path).unwrap_err().to_string();
            assert!(err.contains(want), "{err}");
        }
    }

    #[test]
    fn only_whole_growing_records_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let records = some_records(3);
        let mut writer = TraceWriter::create(&dir.path().join("a"), &mdt()).unwrap();
        assert!(writer.append(&records[..10], 0).is_err());
        writer.append(&records, 0).unwrap();
        assert!(writer.append(&records, 0).is_err());
    }
}
