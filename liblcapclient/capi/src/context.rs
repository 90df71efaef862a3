//! What stands behind `struct lcap_cl_ctx`.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString, c_int};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lcap_client::{Builder, Client, ClientError, Direct, ReceivedBatch};
use lcap_ffi::llapi::OwnedRecord;
use lcap_ffi::{MdtName, RecordIndex};

const FOLLOW: c_int = 0x01;
const BLOCK: c_int = 0x02;
const DIRECT: c_int = 0x04;
const JOBID: c_int = 0x08;

const OPT_READER: c_int = 1;
const OPT_STREAM: c_int = 2;
const OPT_FILTER: c_int = 3;
const OPT_PREFETCH: c_int = 4;
const OPT_ACK_INTERVAL: c_int = 5;
const OPT_TIMEOUT: c_int = 6;
const OPT_SNAPSHOT: c_int = 7;

/// `struct lcap_cl_stats`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // the header has them
pub struct Stats {
    pub records: u64,
    pub bytes: u64,
    pub last_index: u64,
    pub head_index: u64,
    pub lag_records: u64,
    pub gaps: u64,
    pub gap_first: u64,
    pub gap_last: u64,
    pub redelivered: u64,
    pub repeated: u64,
    pub reconnects: u64,
    pub malformed: u64,
    pub reserved: [u64; 12],
}
const _: () = assert!(size_of::<Stats>() == 24 * 8);

/// `struct lcap_cl_ctx`
#[derive(Debug)]
pub struct Context {
    channel: Channel,
    /// Records of the client's current batch that the program has not given back.
    n_out: u32,
    /// Earlier batches of which it has not given back everything, by address.
    kept: Vec<Kept>,
    error: CString,
    gaps_told: u64,
    usable: bool,
}

#[derive(Debug)]
enum Channel {
    Server(Box<Client>),
    Direct {
        log: Box<Direct>,
        /// Changelog user of the environment or of the option.
        user: Option<String>,
        /// What the program has not given back.
        out: Vec<OwnedRecord>,
        ended: bool,
    },
}

#[derive(Debug)]
struct Kept {
    /// First byte of the buffer and the one after the last.
    start: usize,
    end: usize,
    n_out: u32,
    /// Keeps the buffer alive.
    _batch: ReceivedBatch,
}

fn bad(what: impl Into<String>) -> ClientError {
    ClientError::BadArgument(what.into())
}

/// The text for `lcap_changelog_error()`.
pub(crate) fn sentence(error: &ClientError) -> CString {
    // No text of ours has a NUL; a server's might, and loses it.
    let text: Vec<u8> = error.to_string().bytes().filter(|&byte| byte != 0).collect();
    CString::new(text).unwrap_or_default()
}

impl Context {
    pub(crate) fn start(flags: c_int, mdt: &str, from: u64) -> Result<Self, ClientError> {
        if flags & !(FOLLOW | BLOCK | DIRECT | JOBID) != 0 {
            return Err(bad(format!("unknown flags {flags:#x}")));
        }
        let name: MdtName = mdt.parse().map_err(|error| ClientError::System {
            action: format!("`{mdt}`"),
            reason: format!("{error}"),
            errno: libc::ENOENT,
        })?;
        let builder = Builder::new(name.clone())
            .from(from)
            .follow(flags & FOLLOW != 0)
            .patient(flags & BLOCK != 0);
        let channel = if flags & DIRECT != 0 {
            let log = Box::new(Direct::open(name, from, flags & FOLLOW != 0)?);
            let user = builder.options().reader.clone();
            Channel::Direct { log, user, out: Vec::new(), ended: false }
        } else {
            Channel::Server(Box::new(builder.connect()?))
        };
        let (kept, error) = (Vec::new(), CString::default());
        Ok(Self { channel, n_out: 0, kept, error, gaps_told: 0, usable: true })
    }

    /// The next record's address.
    #[inline]
    pub(crate) fn recv(&mut self) -> Result<Option<*const u8>, ClientError> {
        let Channel::Server(client) = &mut self.channel else { return self.recv_direct() };
        let Some(range) = client.recv_range(true)? else { return Ok(None) };
        let retired = if client.has_retired() { client.take_retired() } else { None };
        let Some(batch) = client.current() else { return Ok(None) };
        let record = batch.buffer().as_ptr().wrapping_add(range.start);
        if let Some(batch) = retired {
            self.keep(batch);
        }
        self.n_out += 1;
        Ok(Some(record))
    }

    #[cold]
    fn keep(&mut self, batch: ReceivedBatch) {
        let n_out = std::mem::take(&mut self.n_out);
        if n_out > 0 {
            let bytes = batch.buffer().as_ptr_range();
            let (start, end) = (bytes.start.addr(), bytes.end.addr());
            let at = self.kept.partition_point(|kept| kept.start < start);
            self.kept.insert(at, Kept { start, end, n_out, _batch: batch });
        }
    }

    #[cold]
    fn recv_direct(&mut self) -> Result<Option<*const u8>, ClientError> {
        let Channel::Direct { log, out, ended, .. } = &mut self.channel else { return Ok(None) };
        if *ended {
            return Ok(None);
        }
        let Some(record) = log.recv()? else {
            *ended = true;
            return Ok(None);
        };
        let address = record.as_bytes().as_ptr();
        out.push(record);
        Ok(Some(address))
    }

    /// Takes a record back.
    #[inline]
    pub(crate) fn free(&mut self, record: *const u8) -> Result<(), ClientError> {
        let address = record.addr();
        if let Channel::Server(client) = &self.channel
            && self.n_out > 0
            && let Some(batch) = client.current()
            && batch.buffer().as_ptr_range().contains(&record)
        {
            self.n_out -= 1;
            return Ok(());
        }
        self.free_kept(address)
    }

    #[cold]
    fn free_kept(&mut self, address: usize) -> Result<(), ClientError> {
        let stranger = || bad("the record is not of this context, or was given back already");
        if let Channel::Direct { out, .. } = &mut self.channel {
            let is_it = |record: &OwnedRecord| record.as_bytes().as_ptr().addr() == address;
            // The latest, nearly always.
            let at = out.iter().rposition(is_it).ok_or_else(stranger)?;
            out.swap_remove(at);
            return Ok(());
        }
        let at = self.kept.partition_point(|kept| kept.end <= address);
        match self.kept.get_mut(at) {
            Some(kept) if kept.start <= address => {
                kept.n_out -= 1;
                if kept.n_out == 0 {
                    self.kept.remove(at);
                }
                Ok(())
            }
            _ => Err(stranger()),
        }
    }

    #[inline]
    pub(crate) fn clear(
        &mut self,
        mdt: &CStr,
        id: Option<&CStr>,
        upto: u64,
    ) -> Result<(), ClientError> {
        if let Channel::Server(client) = &mut self.channel
            && client.mdt().as_str().as_bytes() == mdt.to_bytes()
        {
            let reader = client.reader().map(str::as_bytes);
            if id.is_none() || id.map(CStr::to_bytes) == reader || client.is_member() {
                return client.clear(RecordIndex::new(upto));
            }
        }
        self.clear_for(mdt, id, upto)
    }

    /// Clears for somebody else, or an MDT's own changelog user.
    #[cold]
    fn clear_for(&mut self, mdt: &CStr, id: Option<&CStr>, upto: u64) -> Result<(), ClientError> {
        let utf8 = |text: &CStr| -> Result<String, ClientError> {
            text.to_str().map(str::to_owned).map_err(|_| bad("a name is not UTF-8"))
        };
        let (mdt, id) = (utf8(mdt)?, id.map(utf8).transpose()?);
        match &mut self.channel {
            Channel::Server(client) => match id {
                Some(id) => client.clear_for(&mdt, &id, upto),
                None => Err(bad(format!("`{mdt}`: this context reads {}", client.mdt()))),
            },
            Channel::Direct { log, user, .. } => match id.or_else(|| user.clone()) {
                Some(user) => log.clear(&mdt, &user, upto),
                None => Ok(()), // nobody is registered, so there is nothing to clear
            },
        }
    }

    pub(crate) fn set_option(&mut self, option: c_int, value: &[u8]) -> Result<(), ClientError> {
        let not_supported = |what: &str| ClientError::System {
            action: what.to_owned(),
            reason: "not supported".to_owned(),
            errno: libc::ENOTSUP,
        };
        let client = match &mut self.channel {
            Channel::Server(client) => client,
            Channel::Direct { user, .. } if option == OPT_READER => {
                *user = Some(text(value)?);
                return Ok(());
            }
            Channel::Direct { .. } => return Err(not_supported("options with LCAP_CL_DIRECT")),
        };
        let options = client.options_mut()?;
        match option {
            OPT_READER => options.reader = Some(text(value)?),
            OPT_STREAM => options.stream = text(value)?,
            OPT_FILTER => options.filter = Some(text(value)?),
            OPT_PREFETCH => {
                let n_bytes = usize::try_from(number(value)?);
                options.prefetch_bytes = n_bytes.map_err(|_| bad("too large a prefetch"))?;
            }
            OPT_ACK_INTERVAL => options.ack_interval = Duration::from_millis(number(value)?),
            OPT_SNAPSHOT => {
                options.snapshot = match number(value)? {
                    0 => false,
                    1 => true,
                    _ => return Err(bad("a snapshot is wanted (1) or not (0)")),
                }
            }
            OPT_TIMEOUT => options.timeout = Duration::from_millis(number(value)?),
            _ => return Err(bad(format!("there is no option {option}"))),
        }
        Ok(())
    }

    pub(crate) fn fd(&mut self) -> Result<c_int, ClientError> {
        match &mut self.channel {
            Channel::Server(client) => client.fd().map(|fd| fd.as_raw_fd()),
            Channel::Direct { log, .. } => log.fd().map(|fd| fd.as_raw_fd()),
        }
    }

    pub(crate) fn in_buf(&mut self) -> Result<bool, ClientError> {
        match &mut self.channel {
            Channel::Server(client) => client.in_buf(),
            Channel::Direct { log, ended, .. } => Ok(*ended || log.in_buf()),
        }
    }

    /// The numbers, and whether there was a gap since they were last told.
    pub(crate) fn stats(&mut self) -> (Stats, bool) {
        let stats = match &self.channel {
            Channel::Server(client) => client.stats(),
            Channel::Direct { log, .. } => log.stats(),
        };
        let new_gap = stats.gaps > self.gaps_told;
        self.gaps_told = stats.gaps;
        let numbers = Stats {
            records: stats.records,
            bytes: stats.bytes,
            last_index: stats.last_index,
            head_index: stats.head_index,
            lag_records: stats.head_index.saturating_sub(stats.last_index),
            gaps: stats.gaps,
            gap_first: stats.gap_first,
            gap_last: stats.gap_last,
            redelivered: stats.redelivered,
            repeated: stats.repeated,
            reconnects: stats.reconnects,
            malformed: stats.malformed,
            reserved: [0; 12],
        };
        (numbers, new_gap)
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.usable
    }

    pub(crate) fn error(&self) -> &CStr {
        &self.error
    }

    /// Keeps the sentence, gives the return value.
    #[cold]
    pub(crate) fn failed(&mut self, error: &ClientError) -> c_int {
        self.error = sentence(error);
        -error.errno()
    }

    /// Nothing is sure about the context any more.
    #[cold]
    pub(crate) fn panicked(&mut self) -> c_int {
        self.usable = false;
        self.error = c"the library met with a bug; the context is only good for fini".to_owned();
        -libc::ENOTRECOVERABLE
    }
}

/// A text option's value. A NUL at the end does not count.
fn text(value: &[u8]) -> Result<String, ClientError> {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    match std::str::from_utf8(value) {
        Ok(text) if !text.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(bad("not a name")),
    }
}

/// A number option's value, of either size.
fn number(value: &[u8]) -> Result<u64, ClientError> {
    if let Ok(bytes) = value.try_into() {
        return Ok(u32::from_ne_bytes(bytes).into());
    }
    match value.try_into() {
        Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
        Err(_) => Err(bad("a number of 4 or 8 bytes is expected")),
    }
}
