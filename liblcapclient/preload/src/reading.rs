//! One open log: records from lcapd in the shape that liblustreapi would give them.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::AsRawFd;

use lcap_client::{Builder, Client, ClientError};
use lcap_ffi::process::secure_env;
use lcap_ffi::record::{CLF_RENAME, RecordType, split_first, split_len};
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
    flags: u32,
    xflags: u32,
    /// Bits of the record types that are wanted; 0 is all.
    mask: u64,
    shape: Shape,
    joiner: RenameJoiner,
    /// Records that came out of the joiner and were not handed out: bytes from `at` on.
    joined: Vec<u8>,
    at: usize,
    ended: bool,
    /// The latest record, as it was handed out.
    out: Vec<u8>,
    /// It could not be taken, and is to be handed out again.
    again: bool,
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
            xflags: 0,
            mask,
            shape,
            joiner: RenameJoiner::new(),
            joined: Vec::new(),
            at: 0,
            ended: false,
            out: Vec::new(),
            again: false,
        })))
    }

    /// The next record, in its shape; `None` at the end.
    pub(crate) fn recv(&mut self) -> Result<Option<&[u8]>, ClientError> {
        if std::mem::take(&mut self.again) {
            return Ok(Some(&self.out));
        }
        loop {
            if let Some(rest) = self.joined.get(self.at..).filter(|rest| !rest.is_empty()) {
                let Ok((len, index)) = split_len(rest) else {
                    self.at = self.joined.len();
                    continue;
                };
                let shaped = match split_first(rest) {
                    Ok((record, _)) => shape_into(
                        &mut self.out,
                        &record,
                        (self.shape, self.flags, self.xflags, self.mask),
                    ),
                    Err(_) => false,
                };
                self.at += len;
                self.progress.handed_out(index, self.joiner.held_from());
                if shaped {
                    return Ok(Some(&self.out));
                }
                continue;
            }
            self.joined.clear();
            self.at = 0;
            if self.ended {
                return Ok(None);
            }
            let Some(range) = self.client.recv_range(true)? else {
                self.ended = true;
                self.joiner.flush(&mut self.joined);
                continue;
            };
            if self.client.has_retired() {
                drop(self.client.take_retired());
            }
            let Some(batch) = self.client.current() else { continue };
            if batch.n_left() == 0 {
                let held = self.joiner.held_from().map_or(batch.low(), RecordIndex::prev);
                self.progress.consumed(batch.low().min(held));
            }
            if let Some(clearer) = self.client.clearer().filter(|_| !self.progress.is_member()) {
                self.progress.set_member(clearer);
            }
            let bytes = batch.buffer().get(range).unwrap_or_default();
            let Ok((record, _)) = split_first(bytes) else { continue };
            if is_half_rename(&record) || self.joiner.held_from().is_some() {
                self.joiner.push(&record, &mut self.joined);
                continue;
            }
            self.progress.handed_out(record.index(), None);
            let how = (self.shape, self.flags, self.xflags, self.mask);
            if shape_into(&mut self.out, &record, how) {
                return Ok(Some(&self.out));
            }
        }
    }

    /// The last record is to be received again.
    pub(crate) fn again(&mut self) {
        self.again = true;
    }

    pub(crate) fn set_xflags(&mut self, xflags: c_int) {
        self.xflags = xflags.cast_unsigned();
    }

    pub(crate) fn in_buf(&mut self) -> Result<bool, ClientError> {
        Ok(self.at < self.joined.len() || self.client.in_buf()?)
    }

    pub(crate) fn fd(&mut self) -> Result<c_int, ClientError> {
        self.client.fd().map(|fd| fd.as_raw_fd())
    }
}

/// One of the two records that old servers wrote for a rename.
fn is_half_rename(record: &Record<'_>) -> bool {
    let rec_type = record.rec_type();
    rec_type == RecordType::EXT
        || (rec_type == RecordType::RENAME && record.flags() & CLF_RENAME == 0)
}

/// Puts the record into `out` as the caller wants it. `false` if he does not want its type.
fn shape_into(
    out: &mut Vec<u8>,
    record: &Record<'_>,
    (shape, flags, xflags, mask): (Shape, u32, u32, u64),
) -> bool {
    let bit = 1_u64.checked_shl(record.rec_type().0).unwrap_or(0);
    if mask != 0 && mask & bit == 0 {
        return false;
    }
    let (wanted_flags, wanted_extra) = wanted(flags, xflags);
    out.clear();
    repack_as(shape, record, wanted_flags, wanted_extra, out);
    true
}
