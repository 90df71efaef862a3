//! `llapi:`: liblustreapi, for clients whose kernel the device source does not suit.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lcap_ffi::device::{poll, set_nonblocking};
use lcap_ffi::llapi::{
    ChangelogHandle, FLAG_BLOCK, FLAG_EXTRA_FLAGS, FLAG_FOLLOW, FLAG_JOBID, FLAG_NID_BE, Llapi,
};
use lcap_ffi::record::{self, MAX_RECORD_BYTES};
use lcap_ffi::{MdtName, RecordIndex};

use super::device::{UserId, clear_error, nobody};
use super::end::{EndFinder, Probe, Probed};
use super::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// Everything that a record may carry.
const FLAGS: i32 = FLAG_BLOCK | FLAG_JOBID | FLAG_EXTRA_FLAGS | FLAG_NID_BE;
/// No read gives more, so that one does not take long.
const MAX_READ_BYTES: usize = 1 << 20;

/// An MDT as liblustreapi sees it.
#[derive(Debug)]
pub struct LlapiUpstream {
    library: Arc<Llapi>,
    mdt: MdtName,
    user: Option<UserId>,
}

impl LlapiUpstream {
    /// Loads the library. Clears are made for `user`.
    ///
    /// # Errors
    /// If the library is not there, or `user` is none.
    pub fn new(mdt: &MdtName, user: Option<&str>) -> Result<Self, SourceError> {
        let user = user.map(UserId::parse).transpose()?;
        let library = Llapi::load().map_err(|e| SourceError::Library(e.to_string()))?;
        Ok(Self { library, mdt: mdt.clone(), user })
    }
}

impl Upstream for LlapiUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let handle = start(&self.library, &self.mdt, FLAGS | FLAG_FOLLOW, from)
            .map_err(|e| failed("open", &self.mdt, e))?;
        Ok(Box::new(LlapiSource {
            library: Arc::clone(&self.library),
            handle,
            mdt: self.mdt.clone(),
            next: from,
            end: EndFinder::new(Instant::now()),
            error: None,
        }))
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        let user = self.user.as_ref().ok_or_else(nobody)?;
        self.library.clear(&self.mdt, user.as_str(), upto).map_err(|e| {
            clear_error(e, user, upto, format!("clear {} up to {upto} by liblustreapi", self.mdt))
        })
    }
}

fn failed(action: &'static str, mdt: &MdtName, source: io::Error) -> SourceError {
    SourceError::Io { action, what: format!("changelog of {mdt} by liblustreapi"), source }
}

/// Opens a log that does not block.
fn start(
    library: &Arc<Llapi>,
    mdt: &MdtName,
    flags: i32,
    from: RecordIndex,
) -> io::Result<ChangelogHandle> {
    let handle = library.start(mdt, flags, from)?;
    set_nonblocking(handle.fd()?)?;
    // The kernel fetches nothing, and recv says EAGAIN for ever, before the first poll.
    poll(handle.fd()?, Duration::ZERO)?;
    Ok(handle)
}

/// One open log of the library's.
#[derive(Debug)]
struct LlapiSource {
    library: Arc<Llapi>,
    handle: ChangelogHandle,
    mdt: MdtName,
    /// The index after the last one read.
    next: RecordIndex,
    end: EndFinder,
    /// An error that came after records, which go out first.
    error: Option<io::Error>,
}

impl ChangelogSource for LlapiSource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        if let Some(error) = self.error.take() {
            return Err(failed("read", &self.mdt, error));
        }
        let before = buf.len();
        loop {
            let n = buf.len() - before;
            let room = buf.capacity() - buf.len();
            if room < MAX_RECORD_BYTES || n >= MAX_READ_BYTES {
                return Ok(ReadOutcome::Bytes(n));
            }
            match self.handle.recv() {
                Ok(Some(record)) => {
                    let bytes = record.as_bytes();
                    if let Ok((_, index)) = record::split_len(bytes) {
                        self.next = index.next();
                    }
                    buf.extend_from_slice(bytes);
                }
                Ok(None) if n > 0 => return Ok(ReadOutcome::Bytes(n)), // it says so again
                Ok(None) => return Ok(ReadOutcome::Ended),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return if n > 0 { Ok(ReadOutcome::Bytes(n)) } else { self.wait() };
                }
                Err(e) if n > 0 => {
                    // Not every error comes a second time: a skipped record's does not.
                    self.error = Some(e);
                    return Ok(ReadOutcome::Bytes(n));
                }
                Err(e) => return Err(failed("read", &self.mdt, e)),
            }
        }
    }

    fn ask_end(&mut self) {
        self.end.ask(Instant::now());
    }
}

impl LlapiSource {
    fn wait(&mut self) -> Result<ReadOutcome, SourceError> {
        let (library, mdt, next) = (&self.library, &self.mdt, self.next);
        let verdict = self.end.look(Instant::now(), next, || {
            Ok(Box::new(LlapiProbe(start(library, mdt, FLAGS, next)?)))
        });
        let fd = self.handle.fd().map_err(|e| failed("poll", &self.mdt, e))?.as_raw_fd();
        let on = match verdict.look_again {
            Some(at) => WaitFor::ReadableUntil(fd, at),
            None => WaitFor::Readable(fd),
        };
        Ok(ReadOutcome::Wait { on, at_end: verdict.at_end })
    }
}

/// A second log, which does not follow.
#[derive(Debug)]
struct LlapiProbe(ChangelogHandle);

impl Probe for LlapiProbe {
    fn step(&mut self) -> io::Result<Probed> {
        match self.0.recv() {
            Ok(None) => Ok(Probed::End),
            Ok(Some(record)) => {
                let (size, index) =
                    record::split_len(record.as_bytes()).map_err(io::Error::other)?;
                Ok(Probed::Read(size, index))
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
