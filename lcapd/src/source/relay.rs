//! `lcap://`: another lcapd's stream as an MDT. One lcapd on each MDS, one for the site.
//!
//! `user` in the configuration is the name of a registered reader of that stream: what is settled
//! here is acknowledged there, so the MDT keeps what the last hop has not settled. The stream must
//! keep the order of records (no window, group or compact in it): it stands for an MDT's log.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lcap_ffi::{MdtName, RecordIndex};
use lcapclient::{Builder, Client, ClientError, Control, Keys};

use super::{ChangelogSource, ClearError, ReadOutcome, SourceError, Upstream, WaitFor};

/// How long the other lcapd may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One MDT of another lcapd.
#[derive(Debug)]
pub struct RelayUpstream {
    endpoint: String,
    stream: String,
    mdt: MdtName,
    reader: Option<String>,
    keys: Option<RelayKeys>,
    control: Mutex<Option<Control>>,
}

/// What the other lcapd demands to see.
#[derive(Clone, Debug)]
pub struct RelayKeys {
    /// Its public key, as text.
    pub server: String,
    /// The file with our own keys. Without one, some are made up.
    pub own: Option<PathBuf>,
}

impl RelayKeys {
    fn load(&self) -> Result<Keys, ClientError> {
        Keys::new(&self.server, self.own.as_deref())
    }
}

impl RelayUpstream {
    /// The MDT of that name, by a stream of the lcapd at `endpoint`. Clears go to `reader`.
    pub fn new(endpoint: &str, stream: &str, mdt: &MdtName, reader: Option<&str>) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            stream: stream.to_owned(),
            mdt: mdt.clone(),
            reader: reader.map(str::to_owned),
            keys: None,
            control: Mutex::default(),
        }
    }

    /// The same, over CURVE.
    ///
    /// # Errors
    /// If a key is malformed or the file not usable.
    pub fn with_keys(mut self, keys: RelayKeys) -> Result<Self, ClientError> {
        keys.load()?;
        self.keys = Some(keys);
        Ok(self)
    }
}

impl Upstream for RelayUpstream {
    fn open(&self, from: RecordIndex) -> Result<Box<dyn ChangelogSource>, SourceError> {
        let mut builder = Builder::new(self.mdt.clone());
        if let Some(RelayKeys { server, own }) = &self.keys {
            builder = builder.keys(server, own.clone());
        }
        let client = builder
            .servers(&self.endpoint)
            .stream(&self.stream)
            .reader(self.reader.as_deref())
            .from(from.get())
            .follow(true)
            .patient(false)
            .timeout(TIMEOUT)
            .connect()
            .map_err(|error| failed("open", &self.endpoint, error))?;
        Ok(Box::new(RelaySource {
            client,
            endpoint: self.endpoint.clone(),
            keys: self.keys.clone(),
            mdt: self.mdt.clone(),
            n_gaps: 0,
            next: from,
            end_wanted: true,
            end: None,
        }))
    }

    /// Policies of the other lcapd may have dropped records; it tells what is lost.
    fn is_dense(&self) -> bool {
        false
    }

    fn clear(&self, upto: RecordIndex) -> Result<(), ClearError> {
        let Some(reader) = &self.reader else {
            return Err(ClearError::NoUser { user: "(none is configured)".into() });
        };
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let control = match &mut *control {
            Some(control) => control,
            none => none.insert(
                connect(&self.endpoint, self.keys.as_ref()).map_err(|e| self.refused(upto, &e))?,
            ),
        };
        let stream = Some(self.stream.as_str());
        control
            .clear(stream, self.mdt.as_str(), reader, upto.get())
            .map_err(|error| self.refused(upto, &error))
    }
}

impl RelayUpstream {
    fn refused(&self, upto: RecordIndex, error: &ClientError) -> ClearError {
        match (error.errno(), &self.reader) {
            (libc::ENOENT, Some(reader)) => ClearError::NoUser { user: reader.clone() },
            (libc::EINVAL, _) => ClearError::OutOfRange(upto),
            _ => ClearError::Retry {
                what: format!("acknowledge {} up to {upto} at {}", self.mdt, self.endpoint),
                source: std::io::Error::other(error.clone()),
            },
        }
    }
}

fn connect(endpoint: &str, keys: Option<&RelayKeys>) -> Result<Control, ClientError> {
    Control::new(endpoint, keys.map(RelayKeys::load).transpose()?, TIMEOUT)
}

fn failed(action: &'static str, endpoint: &str, error: ClientError) -> SourceError {
    let (what, source) = (format!("stream of {endpoint}"), std::io::Error::other(error));
    SourceError::Io { action, what, source }
}

/// One session with the other lcapd.
#[derive(Debug)]
struct RelaySource {
    client: Client,
    endpoint: String,
    keys: Option<RelayKeys>,
    mdt: MdtName,
    n_gaps: u64,
    next: RecordIndex,
    end_wanted: bool,
    /// The newest index when the end was asked for last.
    end: Option<RecordIndex>,
}

impl RelaySource {
    /// Asks the other lcapd for the newest index that it has read. What the session knows of it is
    /// older than that. `None` if it does not answer: then nothing is said of the end.
    fn find_end(&self) -> Option<RecordIndex> {
        let status = connect(&self.endpoint, self.keys.as_ref()).ok()?.status().ok()?;
        let mdt = status.mdts.iter().find(|mdt| mdt.name == self.mdt.as_str())?;
        Some(RecordIndex::new(mdt.read_index))
    }
}

impl ChangelogSource for RelaySource {
    fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        let before = buf.len();
        // One record less than fits: its size is known only once it is here.
        while buf.capacity() - buf.len() > lcap_ffi::record::MAX_RECORD_BYTES {
            match self.client.recv_range(false) {
                Ok(Some(range)) => {
                    let batch = self.client.current().map(|batch| batch.buffer());
                    let record = batch.and_then(|batch| batch.get(range)).unwrap_or_default();
                    buf.extend_from_slice(record);
                }
                Ok(None) => break, // never, since it follows
                Err(ClientError::WouldBlock) => break,
                Err(error) => return Err(failed("read", &self.endpoint, error)),
            }
        }
        if buf.len() > before {
            return Ok(ReadOutcome::Bytes(buf.len() - before));
        }
        let stats = self.client.stats();
        if stats.gaps != self.n_gaps {
            self.n_gaps = stats.gaps;
            let (first, last) = (stats.gap_first, stats.gap_last);
            let (first, last) = (RecordIndex::new(first), RecordIndex::new(last));
            return Ok(ReadOutcome::Lost { first, last });
        }
        let fd = self.client.fd().map_err(|error| failed("wait for", &self.endpoint, error))?;
        let on = WaitFor::Readable(fd.as_fd().as_raw_fd());
        self.next = self.next.max(RecordIndex::new(stats.last_index).next());
        if std::mem::take(&mut self.end_wanted) {
            self.end = self.find_end();
        }
        let at_end = self.end.is_some_and(|end| self.next > end);
        Ok(ReadOutcome::Wait { on, at_end })
    }

    fn ask_end(&mut self) {
        self.end_wanted = true;
    }
}
