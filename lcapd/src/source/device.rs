//! `device:`: the kernel's changelog device, `/dev/changelog-<MDT>`.
//!
//! One descriptor that follows, does not block and stays open. Its file position is a record
//! index, set right after opening and never again; a read gives whole records only.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lcap_ffi::device::{FOLLOW, NID_BE, poll, read_spare, set_flags};
use lcap_ffi::record;
use lcap_ffi::{MdtName, RecordIndex};
use tracing::debug;

use super::emulated::io_error;
use super::end::{EndFinder, Probe, Probed};
use super::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// No read gives more: the kernel's queue is far smaller.
const MAX_READ_BYTES: usize = 1 << 20;
/// Room of a second reader that looks for the end.
const PROBE_BYTES: usize = 64 << 10;

/// A changelog user as the kernel's clear command wants it: `cl` and its number.
///
/// Accepts what `lctl changelog_register` prints, e.g. `cl3-robinhood`, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserId(String);

impl UserId {
    pub(super) fn parse(user: &str) -> Result<Self, SourceError> {
        let id = user.split('-').next().unwrap_or_default();
        match id.strip_prefix("cl").map(str::parse::<u32>) {
            Some(Ok(number)) if id.as_bytes()[2].is_ascii_digit() => {
                Ok(Self(format!("cl{number}")))
            }
            _ => Err(SourceError::Malformed {
                what: format!("changelog user `{user}`"),
                problem: "expected what lctl changelog_register printed, e.g. cl1".into(),
            }),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a clear without a registered user is answered with.
pub(super) fn nobody() -> ClearError {
    ClearError::NoUser { user: "(none is configured)".into() }
}

/// What the answer of the kernel or of liblustreapi to a clear means.
pub(super) fn clear_error(
    source: io::Error,
    user: &UserId,
    upto: RecordIndex,
    what: String,
) -> ClearError {
    match source.raw_os_error() {
        Some(libc::ENOENT) => ClearError::NoUser { user: user.as_str().to_owned() },
        Some(libc::EINVAL) => ClearError::OutOfRange(upto),
        _ => ClearError::Retry { what, source },
    }
}

/// The changelog device of an MDT.
#[derive(Debug)]
pub struct DeviceUpstream {
    path: PathBuf,
    user: Option<UserId>,
}

impl DeviceUpstream {
    /// The device of that MDT in a directory, which is `/dev` on a real client. It need not be
    /// there yet. Clears are made for `user`.
    ///
    /// # Errors
    /// If `user` is none.
    pub fn new(dir: &Path, mdt: &MdtName, user: Option<&str>) -> Result<Self, SourceError> {
        let user = user.map(UserId::parse).transpose()?;
        Ok(Self { path: dir.join(format!("changelog-{mdt}")), user })
    }
}

impl Upstream for DeviceUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let file = open_at(&self.path, from, FOLLOW | NID_BE)?;
        // The kernel fetches nothing, and a read says EAGAIN for ever, before the first poll.
        poll(file.as_fd(), Duration::ZERO).map_err(|e| io_error("poll", &self.path, e))?;
        Ok(Box::new(DeviceSource {
            file,
            path: self.path.clone(),
            next: from,
            end: EndFinder::new(Instant::now()),
        }))
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        let user = self.user.as_ref().ok_or_else(nobody)?;
        if upto == RecordIndex::ZERO {
            return Err(ClearError::OutOfRange(upto)); // it would mean everything
        }
        let retry = |source| ClearError::Retry {
            what: format!("open {} to clear it", self.path.display()),
            source,
        };
        let mut device = OpenOptions::new().write(true).open(&self.path).map_err(retry)?;
        let command = format!("clear:{}:{upto}\0", user.as_str());
        match device.write(command.as_bytes()) {
            Ok(n) if n == command.len() => Ok(()),
            Ok(_) => Err(retry(io::ErrorKind::WriteZero.into())),
            Err(e) => {
                let what = format!("clear {} up to {upto}", self.path.display());
                Err(clear_error(e, user, upto, what))
            }
        }
    }
}

/// Opens a device at an index. Flags that the kernel does not know are done without.
fn open_at(path: &Path, from: RecordIndex, flags: u64) -> Result<File, SourceError> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| io_error("open", path, e))?;
    if let Err(error) = set_flags(file.as_fd(), flags) {
        debug!(device = %path.display(), %error, "the device cannot follow or give large NIDs");
    }
    // Index 0 and 1 both mean the oldest, where a new descriptor stands already.
    if from > RecordIndex::new(1) {
        file.seek(SeekFrom::Start(from.get())).map_err(|e| io_error("seek in", path, e))?;
    }
    Ok(file)
}

/// One descriptor of a changelog device.
#[derive(Debug)]
struct DeviceSource {
    file: File,
    path: PathBuf,
    /// The index after the last one read.
    next: RecordIndex,
    end: EndFinder,
}

impl ChangelogSource for DeviceSource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        let before = buf.len();
        let read = loop {
            match read_spare(self.file.as_fd(), buf, MAX_READ_BYTES) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            // The end for a kernel that cannot follow. (Too little room says the same, but
            // callers give enough for any record.)
            Ok(0) => Ok(ReadOutcome::Ended),
            Ok(n) => {
                self.next = self.after(&buf[before..])?;
                Ok(ReadOutcome::Bytes(n))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(self.wait()),
            Err(e) => Err(io_error("read", &self.path, e)),
        }
    }

    fn ask_end(&mut self) {
        self.end.ask(Instant::now());
    }
}

impl DeviceSource {
    /// Checks that these are whole records; returns the index after the last one.
    fn after(&self, bytes: &[u8]) -> Result<RecordIndex, SourceError> {
        let (mut rest, mut next) = (bytes, self.next);
        while !rest.is_empty() {
            let (size, index) = record::split_len(rest).map_err(|e| SourceError::Malformed {
                what: format!("{} after record {}", self.path.display(), next.prev()),
                problem: e.to_string(),
            })?;
            rest = &rest[size..];
            next = index.next();
        }
        Ok(next)
    }

    fn wait(&mut self) -> ReadOutcome {
        let (path, next) = (&self.path, self.next);
        let verdict = self.end.look(Instant::now(), next, || {
            let file = open_at(path, next, 0).map_err(io::Error::other)?;
            poll(file.as_fd(), Duration::ZERO)?;
            Ok(Box::new(DeviceProbe { file, buf: Vec::with_capacity(PROBE_BYTES) }))
        });
        let fd = self.file.as_raw_fd();
        let on = match verdict.look_again {
            Some(at) => WaitFor::ReadableUntil(fd, at),
            None => WaitFor::Readable(fd),
        };
        ReadOutcome::Wait { on, at_end: verdict.at_end }
    }
}

/// A second descriptor, which does not follow.
#[derive(Debug)]
struct DeviceProbe {
    file: File,
    buf: Vec<u8>,
}

impl Probe for DeviceProbe {
    fn step(&mut self) -> io::Result<Probed> {
        self.buf.clear();
        match read_spare(self.file.as_fd(), &mut self.buf, PROBE_BYTES) {
            Ok(0) => Ok(Probed::End),
            Ok(n) => {
                let mut last = RecordIndex::ZERO;
                for record in record::records(&self.buf) {
                    last = record.map_err(io::Error::other)?.index();
                }
                Ok(Probed::Read(n, last))
            }
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                Ok(Probed::Pending)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::source::MIN_READ_BYTES;
    use crate::source::sim::{Generator, GeneratorOptions};

    fn mdt() -> MdtName {
        "lustre-MDT0000".parse().unwrap()
    }

    fn ix(n: u64) -> RecordIndex {
        RecordIndex::new(n)
    }

    fn some_records(n: u64) -> Vec<u8> {
        let mut buf = Vec::with_capacity(1 << 20);
        Generator::new(GeneratorOptions::default()).fill(&mut buf, n);
        buf
    }

    /// A plain file plays an old kernel's device: no ioctl, and reads end for good.
    fn file_device(bytes: &[u8]) -> (tempfile::TempDir, DeviceUpstream) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("changelog-lustre-MDT0000"), bytes).unwrap();
        let device = DeviceUpstream::new(dir.path(), &mdt(), Some("cl2-bob")).unwrap();
        (dir, device)
    }

    #[test]
    fn records_come_whole_and_the_end_of_an_old_kernel_is_final() {
        let records = some_records(100);
        let (_dir, device) = file_device(&records);
        let mut source = device.open(RecordIndex::ZERO).unwrap();
        let mut buf = Vec::with_capacity(MIN_READ_BYTES);
        assert_eq!(source.read(&mut buf).unwrap(), ReadOutcome::Bytes(records.len()));
        assert_eq!(buf, records);
        assert_eq!(source.read(&mut buf).unwrap(), ReadOutcome::Ended);
    }

    #[test]
    fn malformed_bytes_name_device_and_index() {
        let mut records = some_records(3);
        let short = records.len() - 1;
        records.truncate(short);
        let (dir, device) = file_device(&records);
        let mut source = device.open(ix(1)).unwrap();
        let err = source.read(&mut Vec::with_capacity(MIN_READ_BYTES)).unwrap_err().to_string();
        let path = dir.path().join("changelog-lustre-MDT0000");
        assert!(
            err.starts_with(&format!("{} after record 2: record ends after", path.display())),
            "{err}"
        );
    }

    #[test]
    fn clears_are_written_as_the_kernel_scans_them_and_never_for_index_zero() {
        let (dir, device) = file_device(b"");
        let path = dir.path().join("changelog-lustre-MDT0000");
        device.clear(ix(1234)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"clear:cl2:1234\0");
        assert!(matches!(device.clear(ix(0)), Err(ClearError::OutOfRange(_))));
        assert_eq!(fs::read(&path).unwrap(), b"clear:cl2:1234\0");
        fs::remove_file(&path).unwrap();
        // A device that is away is no verdict on our user.
        assert!(matches!(device.clear(ix(1235)), Err(ClearError::Retry { .. })));
        let without = DeviceUpstream::new(dir.path(), &mdt(), None).unwrap();
        assert!(matches!(without.clear(ix(1)), Err(ClearError::NoUser { .. })));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_of_opening() {
        let dir = tempfile::tempdir().unwrap();
        let device = DeviceUpstream::new(dir.path(), &mdt(), None).unwrap();
        let err = device.open(ix(1)).unwrap_err();
        assert!(err.to_string().starts_with("open "), "{err}");
    }

    #[test]
    fn users_are_what_lctl_prints() {
        for (text, want) in [("cl1", "cl1"), ("cl13-watcher", "cl13"), ("cl2-a-b", "cl2")] {
            assert_eq!(UserId::parse(text).unwrap().as_str(), want);
        }
        for bad in ["", "cl", "1", "c1", "cl-1", "cl+1", "clx", "cl99999999999", "bob"] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
