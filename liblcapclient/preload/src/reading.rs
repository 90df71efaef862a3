//! One open log: records from lcapd in the shape that liblustreapi would give them.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::ops::Range;
use std::os::fd::AsRawFd;

use lcap_client::{Builder, Client, ClientError};
use lcap_ffi::process::secure_env;
use lcap_ffi::record::{
    CLF_EXTRA_FLAGS, CLF_JOBID, CLF_RENAME, CLF_SUPPORTED, CLF_VERSION, HEAD_BYTES, JOBID_BYTES,
    RecordType, RenameExt, split_first,
};
use lcap_ffi::repack::{RenameJoiner, Shape, repack_as, wanted};
use lcap_ffi::{MdtName, Record, RecordIndex};

use crate::clearing::{self, Registered};

const FLAG_FOLLOW: c_int = 0x01;

/// Whether records are to come from lcapd at all: `LCAP_REC_URI` names it, and `LCAP_DIRECT` does
/// not say otherwise.
pub(crate) fn asked_for() -> bool {
    let set = |name| secure_env(name).is_some_and(|value: String| !value.is_empty());
    set("LCAP_REC_URI") && !secure_env("LCAP_DIRECT").is_some_and(|v| !v.is_empty() && v != "0")
}

/// A log that was opened.
#[derive(Debug)]
pub(crate) struct Log {
    client: Client,
    progress: Registered,
    /// Flags of the start.
    flags: u32,
    /// Format bits and extra bits that the program is shown.
    wanted: (u16, u64),
    /// Bits of the record types that are wanted; 0 is all.
    mask: u64,
    shape: Shape,
    joiner: RenameJoiner,
    /// Records that came out of the joiner and were not handed out: bytes from `at` on.
    joined: Vec<u8>,
    at: usize,
    begun: bool,
    ended: bool,
    joiner_is_empty: bool,
    /// Where the latest record is, and its flag word.
    latest: Latest,
    latest_flags: u16,
    /// A record that had to be repacked.
    out: Vec<u8>,
    /// It could not be taken, and is to be handed out again.
    again: bool,
}

/// Where a record is.
#[derive(Debug)]
enum Latest {
    /// In the buffer that it was received in.
    InBatch(Range<usize>),
    /// In a buffer of the log's.
    Repacked,
}

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Started {
    Here(Box<Log>),
    /// lcapd does not have the MDT.
    NotServed(ClientError),
}

impl Log {
    pub(crate) fn start(
        flags: c_int,
        mdt: &str,
        reader: Option<&str>,
        mask: u64,
        from: u64,
    ) -> Result<Started, ClientError> {
        let name: MdtName = match mdt.parse() {
            Ok(name) => name,
            Err(error) => {
                // The real library takes any name, and finds no device for it.
                let error = ClientError::Refused {
                    endpoint: mdt.to_owned(),
                    errno: libc::ENOENT,
                    error: format!("{error}"),
                };
                return Ok(Started::NotServed(error));
            }
        };
        // Who follows waits for lcapd; who reads to the end wants to know that it is not there.
        let mut builder = Builder::new(name).from(from).follow(flags & FLAG_FOLLOW != 0);
        if reader.is_some() {
            builder = builder.reader(reader);
        }
        let client = match builder.connect() {
            Ok(client) => client,
            Err(error) if error.errno() == libc::ENOENT => return Ok(Started::NotServed(error)),
            Err(error) => return Err(error),
        };
        let shape = match secure_env("LCAP_LLAPI_SHAPE").as_deref() {
            Some("fixed") => Shape::Fixed,
            _ => Shape::Variable,
        };
        let progress = clearing::register(mdt, from);
        Ok(Started::Here(Box::new(Self {
            client,
            progress,
            flags: flags.cast_unsigned(),
            wanted: wanted(flags.cast_unsigned(), 0),
            mask,
            shape,
            joiner: RenameJoiner::new(),
            joined: Vec::new(),
            at: 0,
            begun: false,
            ended: false,
            joiner_is_empty: true,
            latest: Latest::Repacked,
            latest_flags: 0,
            out: Vec::new(),
            again: false,
        })))
    }

    /// The next record, in its shape; `None` at the end.
    #[inline]
    pub(crate) fn recv(&mut self) -> Result<Option<Shown<'_>>, ClientError> {
        if !std::mem::take(&mut self.again) && !self.advance()? {
            return Ok(None);
        }
        let bytes = match &self.latest {
            Latest::InBatch(range) => self.client.current().and_then(|batch| {
                let bytes = batch.buffer();
                bytes.get(range.clone())
            }),
            Latest::Repacked => Some(self.out.as_slice()),
        };
        Ok(bytes.map(|bytes| Shown { bytes, flags: self.latest_flags }))
    }

    /// Goes to the next record that is wanted. `false` at the end.
    fn advance(&mut self) -> Result<bool, ClientError> {
        loop {
            if self.at < self.joined.len() {
                if self.take_joined() {
                    return Ok(true);
                }
                continue;
            }
            if self.ended {
                return Ok(false);
            }
            let Some(range) = self.client.recv_range(true)? else {
                self.ended = true;
                self.joined.clear();
                self.at = 0;
                self.joiner.flush(&mut self.joined);
                continue;
            };
            if !self.begun || self.client.has_retired() {
                self.new_batch();
            }
            let Some(batch) = self.client.current() else { continue };
            if batch.n_left() == 0 {
                let held = self.joiner.held_from().map_or(batch.low(), RecordIndex::prev);
                self.progress.consumed(batch.low().min(held));
            }
            let bytes = batch.buffer().get(range.clone()).unwrap_or_default();
            let Some(peek) = Peek::at(bytes) else { continue };
            if peek.is_half_rename() || !self.joiner_is_empty {
                let Ok((record, _)) = split_first(bytes) else { continue };
                self.joined.clear();
                self.at = 0;
                self.joiner.push(&record, &mut self.joined);
                self.joiner_is_empty = self.joiner.held_from().is_none();
                continue;
            }
            self.progress.handed_out(peek.index, None);
            if !self.wants(peek.rec_type) {
                continue;
            }
            if self.shape == Shape::Variable && peek.is_wholly_wanted(self.wanted) {
                // Nothing is left out: as it lies there, but for a bit that renames lack.
                self.latest = Latest::InBatch(range);
                self.latest_flags = peek.flags | CLF_VERSION;
                return Ok(true);
            }
            let Ok((record, _)) = split_first(bytes) else { continue };
            show(&mut self.out, self.shape, self.wanted, &record);
            self.set_repacked();
            return Ok(true);
        }
    }

    /// Takes a record that came out of the joiner. `false` if it is not wanted.
    #[cold]
    fn take_joined(&mut self) -> bool {
        let rest = self.joined.get(self.at..).unwrap_or_default();
        let Ok((record, after)) = split_first(rest) else {
            self.at = self.joined.len();
            return false;
        };
        let (index, rec_type) = (record.index(), record.rec_type().0);
        show(&mut self.out, self.shape, self.wanted, &record);
        self.at = self.joined.len() - after.len();
        self.progress.handed_out(index, self.joiner.held_from());
        self.set_repacked();
        self.wants(rec_type)
    }

    #[cold]
    fn new_batch(&mut self) {
        self.begun = true;
        drop(self.client.take_retired());
        if let Some(clearer) = self.client.clearer().filter(|_| !self.progress.is_member()) {
            self.progress.set_member(clearer);
        }
    }

    fn set_repacked(&mut self) {
        self.latest = Latest::Repacked;
        self.latest_flags = Peek::at(&self.out).map_or(CLF_VERSION, |peek| peek.flags);
    }

    fn wants(&self, rec_type: u32) -> bool {
        self.mask == 0 || self.mask & 1_u64.checked_shl(rec_type).unwrap_or(0) != 0
    }

    /// The last record is to be received again.
    pub(crate) fn again(&mut self) {
        self.again = true;
    }

    pub(crate) fn set_xflags(&mut self, xflags: c_int) {
        self.wanted = wanted(self.flags, xflags.cast_unsigned());
    }

    pub(crate) fn in_buf(&mut self) -> Result<bool, ClientError> {
        Ok(self.at < self.joined.len() || self.client.in_buf()?)
    }

    pub(crate) fn fd(&mut self) -> Result<c_int, ClientError> {
        self.client.fd().map(|fd| fd.as_raw_fd())
    }
}

/// A record for the program: these bytes, but for the flag word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) flags: u16,
}

/// The few words of a record that decide what is done with it.
#[derive(Clone, Copy, Debug)]
struct Peek {
    flags: u16,
    rec_type: u32,
    index: RecordIndex,
    extra: u64,
}

impl Peek {
    #[inline]
    fn at(bytes: &[u8]) -> Option<Self> {
        let flags = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let extra = if flags & CLF_EXTRA_FLAGS == 0 {
            0
        } else {
            let rename = if flags & CLF_RENAME == 0 { 0 } else { size_of::<RenameExt>() };
            let jobid = if flags & CLF_JOBID == 0 { 0 } else { JOBID_BYTES };
            u64::from_ne_bytes(*bytes.get(HEAD_BYTES + rename + jobid..)?.first_chunk()?)
        };
        Some(Self {
            flags,
            rec_type: u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
            index: RecordIndex::new(u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?)),
            extra,
        })
    }

    /// One of the two records that old servers wrote for a rename.
    #[inline]
    fn is_half_rename(self) -> bool {
        self.rec_type == RecordType::EXT.0
            || (self.rec_type == RecordType::RENAME.0 && self.flags & CLF_RENAME == 0)
    }

    /// Whether it has nothing that the program did not ask for.
    #[inline]
    fn is_wholly_wanted(self, (flags, extra): (u16, u64)) -> bool {
        self.flags & CLF_SUPPORTED & !flags == 0 && self.extra & !extra == 0
    }
}

/// Puts the record into `out` as the program wants it.
fn show(out: &mut Vec<u8>, shape: Shape, (flags, extra): (u16, u64), record: &Record<'_>) {
    out.clear();
    repack_as(shape, record, flags, extra, out);
}

#[cfg(test)]
mod tests {
    use lcap_ffi::record::records;

    use super::*;

    /// What is passed on as it lies there is what repacking it would give.
    #[test]
    fn the_short_way_and_the_long_way_give_the_same_records() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/2.17/changelog/odd-mdt0.bin"
        );
        let bytes = std::fs::read(file).unwrap();
        let (mut n_short, mut n_long) = (0, 0);
        for record in records(&bytes) {
            let record = record.unwrap();
            for (flags, xflags) in [(0x1e, 15), (0x1c, 3), (0x04, 0), (0, 0), (0x0c, 15)] {
                let wanted = wanted(flags, xflags);
                let peek = Peek::at(record.as_bytes()).unwrap();
                assert_eq!(peek.index, record.index());
                assert_eq!(peek.extra, record.extra_flags().unwrap_or(0));
                if !peek.is_wholly_wanted(wanted) {
                    n_long += 1;
                    continue;
                }
                n_short += 1;
                let mut out = Vec::new();
                show(&mut out, Shape::Variable, wanted, &record);
                let mut short = record.as_bytes().to_vec();
                short[2..4].copy_from_slice(&(peek.flags | CLF_VERSION).to_ne_bytes());
                assert_eq!(short, out, "{record:?}");
            }
        }
        assert!(n_short > 10 && n_long > 10, "{n_short} {n_long}");
    }
}
