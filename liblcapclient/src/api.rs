//! The application's side: [`Builder`] and [`Client`].
#![forbid(unsafe_code)]

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use lcap_ffi::hsm_action::HsmActionEvent;
use lcap_ffi::process::secure_env;
use lcap_ffi::record::split_first;
use lcap_ffi::{MdtName, Record, RecordIndex};
use lcap_wire::DEFAULT_STREAM;
use lcap_wire::control::{self, Delivery, Op, Reply};

use crate::ack::{MemberAcks, ReaderAcks};
use crate::client::{Config, Gap, Item};
use crate::endpoint;
use crate::error::ClientError;
use crate::inbox::{Inbox, ReceivedBatch};
use crate::keys::Keys;
use crate::promise::promise;
use crate::session::{self, Command};

/// Where lcapd is looked for unless told otherwise.
pub const DEFAULT_URI: &str = "tcp://localhost:8189";
/// How long an answer may take unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The session says by itself when the time is up; this is for a machine that is too busy to.
const GRACE: Duration = Duration::from_secs(5);
/// Settled records that are acknowledged at once, not at the next interval.
const ACK_RECORDS: u64 = 10_000;

/// Options that may still be changed after the greeting, until the first record is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stream; `changelog` unless set.
    pub stream: String,
    /// Registered reader that this client is.
    pub reader: Option<String>,
    /// Only records that pass this expression, in the language of docs/policies.md.
    pub filter: Option<String>,
    /// Of an HSM stream: what is there now first, then what changes.
    pub snapshot: bool,
    /// Bytes of records that may wait for the application; 8 MiB unless set.
    pub prefetch_bytes: usize,
    /// How long an acknowledgement may wait; 1 s unless set.
    pub ack_interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What a client is to do; [`Builder::connect`] does it.
#[derive(Clone, Debug)]
pub struct Builder {
    mdt: MdtName,
    options: Options,
    stream_required: bool,
    from: u64,
    follow: bool,
    patient: bool,
    servers: Option<String>,
    server_key: Option<String>,
    client_key_file: Option<PathBuf>,
    bad_env: Option<ClientError>,
}

impl Builder {
    /// For this MDT; everything else as the environment says (`LCAP_REC_URI`, `LCAP_STREAM`,
    /// `LCAP_READER`, `LCAP_TIMEOUT_MS`, `LCAP_SERVER_KEY`, `LCAP_CLIENT_KEY_FILE`). What it says
    /// wrongly is an error of [`Self::connect`].
    pub fn new(mdt: MdtName) -> Self {
        let stream = env("LCAP_STREAM");
        let mut builder = Self::without_env(mdt);
        builder.stream_required = stream.is_some();
        builder.options.stream = stream.unwrap_or(builder.options.stream);
        builder.options.reader = env("LCAP_READER");
        match env_timeout() {
            Ok(timeout) => builder.options.timeout = timeout,
            Err(error) => builder.bad_env = Some(error),
        }
        builder.servers = env("LCAP_REC_URI");
        builder.server_key = env("LCAP_SERVER_KEY");
        builder.client_key_file = env("LCAP_CLIENT_KEY_FILE").map(PathBuf::from);
        builder
    }

    /// For this MDT; everything else at its default, whatever the environment says.
    pub fn without_env(mdt: MdtName) -> Self {
        Self {
            mdt,
            stream_required: false,
            options: Options {
                stream: DEFAULT_STREAM.to_owned(),
                reader: None,
                filter: None,
                snapshot: false,
                prefetch_bytes: 8 << 20,
                ack_interval: Duration::from_secs(1),
                timeout: DEFAULT_TIMEOUT,
            },
            from: 0,
            follow: false,
            patient: false,
            servers: None,
            server_key: None,
            client_key_file: None,
            bad_env: None,
        }
    }

    /// Servers, separated by commas: `tcp://HOST:PORT`, `HOST`, `ipc://PATH`. Tried in turn.
    #[must_use]
    pub fn servers(mut self, list: &str) -> Self {
        self.servers = Some(list.to_owned());
        self
    }

    /// The stream to read. Connecting fails if the server does not have it.
    #[must_use]
    pub fn stream(mut self, stream: &str) -> Self {
        stream.clone_into(&mut self.options.stream);
        self.stream_required = true;
        self
    }

    /// The registered reader that this client is.
    #[must_use]
    pub fn reader(mut self, reader: Option<&str>) -> Self {
        self.options.reader = reader.map(str::to_owned);
        self
    }

    /// Only records that pass this expression, in the language of docs/policies.md. The server
    /// evaluates it.
    #[must_use]
    pub fn filter(mut self, filter: Option<&str>) -> Self {
        self.options.filter = filter.map(str::to_owned);
        self
    }

    /// Of an HSM stream: what is there now first, as events that are marked as telling a state, then
    /// what changes. Without it, everything that the journal still has.
    #[must_use]
    pub fn snapshot(mut self, snapshot: bool) -> Self {
        self.options.snapshot = snapshot;
        self
    }

    /// First record wanted. 0: after the reader's watermark, or the oldest that there is.
    #[must_use]
    pub fn from(mut self, index: u64) -> Self {
        self.from = index;
        self
    }

    /// Go on with new records after the present end. Otherwise [`Client::recv`] ends there.
    #[must_use]
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Wait for a server that is not there, now or later, instead of giving an error. Following
    /// implies it.
    #[must_use]
    pub fn patient(mut self, patient: bool) -> Self {
        self.patient = patient;
        self
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// The options that may be changed later, too.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The same, to be changed.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// The server's public key (Z85), and the file with the client's own.
    #[must_use]
    pub fn keys(mut self, server: &str, client_file: Option<PathBuf>) -> Self {
        self.server_key = Some(server.to_owned());
        self.client_key_file = client_file;
        self
    }

    /// Greets the server. A patient client comes back after the timeout even if there is none.
    ///
    /// # Errors
    /// `ENOENT` if the MDT or the stream is not served, `ETIMEDOUT` if no server answers and the
    /// client is not patient, `EINVAL` for options that cannot be.
    pub fn connect(self) -> Result<Client, ClientError> {
        if let Some(error) = self.bad_env {
            return Err(error);
        }
        let patient = self.patient || self.follow;
        let config = self.config()?;
        let keys = keys(self.server_key.as_deref(), self.client_key_file.as_ref())?;
        let inbox = Arc::new(Inbox::new()?);
        if config.from != 0 {
            // What it skips settles when it clears something, not before.
            inbox.set_busy();
        }
        let timeout = config.timeout;
        let spawned = session::spawn(config.clone(), keys, Arc::clone(&inbox))?;
        let client = Client {
            config,
            options: self.options,
            inbox,
            commands: spawned.commands,
            thread: Some(spawned.thread),
            pid: std::process::id(),
            begun: false,
            over: None,
            current: None,
            retired: None,
            acks: Acks::None,
            consumed: ReaderAcks::default(),
            unflushed: 0,
            stats: Stats::default(),
        };
        match spawned.greeted.wait(timeout.saturating_add(GRACE)) {
            Some(Ok(())) => Ok(client),
            Some(Err(ClientError::Timeout { .. })) if patient => Ok(client),
            Some(Err(error)) => Err(error),
            None => Err(ClientError::ThreadGone),
        }
    }

    fn config(&self) -> Result<Config, ClientError> {
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let servers = self.servers.as_deref().unwrap_or(DEFAULT_URI);
        let unique = format!(
            "{}-{}-{:x}",
            std::process::id(),
            CLIENTS.fetch_add(1, Ordering::Relaxed),
            // Other hosts have the same process ids.
            std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos())
        );
        let mut config = Config {
            mdt: self.mdt.clone(),
            stream: String::new(),
            stream_required: self.stream_required,
            reader: None,
            filter: None,
            snapshot: false,
            from: self.from,
            follow: self.follow,
            patient: self.patient || self.follow,
            endpoints: endpoint::parse_list(servers)?,
            timeout: self.options.timeout,
            prefetch_bytes: 0,
            ack_interval: Duration::ZERO,
            unique,
        };
        self.options.apply(&mut config)?;
        Ok(config)
    }
}

/// A variable of the environment that has a value.
pub(crate) fn env(name: &str) -> Option<String> {
    secure_env(name).filter(|value| !value.is_empty())
}

/// How long an answer may take, as the environment says.
pub(crate) fn env_timeout() -> Result<Duration, ClientError> {
    let Some(text) = env("LCAP_TIMEOUT_MS") else { return Ok(DEFAULT_TIMEOUT) };
    let bad = |_| ClientError::BadArgument(format!("LCAP_TIMEOUT_MS=`{text}`: not a number"));
    text.parse().map(Duration::from_millis).map_err(bad)
}

/// The keys that a server key asks for, if there is one.
pub(crate) fn keys(
    server: Option<&str>,
    client_file: Option<&PathBuf>,
) -> Result<Option<Keys>, ClientError> {
    server.map(|server| Keys::new(server, client_file.map(PathBuf::as_path))).transpose()
}

impl Options {
    fn apply(&self, config: &mut Config) -> Result<(), ClientError> {
        let plain = |name: &str| !name.is_empty() && !name.contains('\0');
        if !plain(&self.stream) || self.reader.as_deref().is_some_and(|reader| !plain(reader)) {
            return Err(ClientError::BadArgument("empty name of a stream or reader".to_owned()));
        }
        config.stream.clone_from(&self.stream);
        config.reader.clone_from(&self.reader);
        config.filter.clone_from(&self.filter);
        config.snapshot = self.snapshot;
        config.prefetch_bytes = self.prefetch_bytes.max(1);
        config.ack_interval = self.ack_interval;
        config.timeout = self.timeout;
        Ok(())
    }
}

/// What happened to a client's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records handed to the application.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Gap notices: records that are gone for good, or indexes issued again.
    pub gaps: u64,
    /// Latest gap: first missing index.
    pub gap_first: u64,
    /// Latest gap: last missing index; 0 if that is not known.
    pub gap_last: u64,
    /// Last index handed to the application.
    pub last_index: u64,
    /// Newest index that the server has read from the MDT.
    pub head_index: u64,
    /// Records that had been sent before to somebody who did not acknowledge them.
    pub redelivered: u64,
    /// Records that came again and were left out.
    pub repeated: u64,
    /// Sessions that had to be started again.
    pub reconnects: u64,
    /// Messages that were not usable.
    pub malformed: u64,
}

/// What the application was given and must clear.
#[derive(Debug)]
enum Acks {
    /// Not known yet, or nobody wants to know.
    None,
    Reader(ReaderAcks),
    /// Shared with [`Clearer`]s.
    Member(Arc<Mutex<MemberAcks>>),
}

/// Clears on another thread than the one that receives, for a member of a queue. A reader can be
/// cleared from anywhere, by [`crate::Control::clear`].
#[derive(Clone, Debug)]
pub struct Clearer {
    inbox: Arc<Inbox>,
    acks: Arc<Mutex<MemberAcks>>,
}

impl Clearer {
    /// As [`Client::clear`].
    pub fn clear(&self, upto: RecordIndex) {
        let upto = if upto == RecordIndex::ZERO { RecordIndex::new(u64::MAX) } else { upto };
        self.inbox.with_settled_records(|settled| lock(&self.acks).clear(upto, settled));
    }
}

/// Nothing panics half-way through a change of these.
fn lock(acks: &Mutex<MemberAcks>) -> MutexGuard<'_, MemberAcks> {
    acks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the records of one MDT. One thread at a time.
///
/// ```no_run
/// # fn main() -> Result<(), lcap_client::ClientError> {
/// let mdt = "lustre-MDT0000".parse().expect("a name");
/// let mut client = lcap_client::Builder::new(mdt).follow(true).reader(Some("audit")).connect()?;
/// while let Some(record) = client.recv()? {
///     let index = record.index();
///     println!("{index} {}", record.rec_type());
///     client.clear(index)?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    config: Config,
    options: Options,
    inbox: Arc<Inbox>,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    pid: u32,
    begun: bool,
    /// Set when nothing more comes: the end, or an error for good.
    over: Option<Result<(), ClientError>>,
    current: Option<ReceivedBatch>,
    /// The batch before the current one, for who still holds records of it.
    retired: Option<ReceivedBatch>,
    acks: Acks,
    /// How far delivery has come, kept until it is known whose it is.
    consumed: ReaderAcks,
    /// Records handed out since an acknowledgement was asked for.
    unflushed: u64,
    stats: Stats,
}

impl Client {
    /// Options, to be changed before the first record is asked for.
    ///
    /// # Errors
    /// [`ClientError::Started`] after that.
    pub fn options_mut(&mut self) -> Result<&mut Options, ClientError> {
        if self.begun { Err(ClientError::Started) } else { Ok(&mut self.options) }
    }

    /// The MDT.
    pub fn mdt(&self) -> &MdtName {
        &self.config.mdt
    }

    /// The reader that this client is.
    pub fn reader(&self) -> Option<&str> {
        self.options.reader.as_deref()
    }

    /// Whether this client is a member of a queue. Known once a record was received.
    pub fn is_member(&self) -> bool {
        matches!(self.acks, Acks::Member(_))
    }

    /// For a member of a queue: what clears on other threads. Known once a record was received.
    pub fn clearer(&self) -> Option<Clearer> {
        match &self.acks {
            Acks::Member(acks) => {
                Some(Clearer { inbox: Arc::clone(&self.inbox), acks: Arc::clone(acks) })
            }
            Acks::None | Acks::Reader(_) => None,
        }
    }

    /// Receives one record; waits for it. `None` is the end, and stays it.
    ///
    /// # Errors
    /// What the session met with; `EINTR` if a signal came first.
    pub fn recv(&mut self) -> Result<Option<Record<'_>>, ClientError> {
        let Some(range) = self.recv_range(true)? else { return Ok(None) };
        self.retired = None;
        let buffer = self.current.as_ref().map_or(&[][..], |batch| batch.buffer());
        let bytes = buffer.get(range).unwrap_or_default();
        match split_first(bytes) {
            Ok((record, _)) => Ok(Some(record)),
            Err(error) => {
                let (endpoint, problem) = (self.config.endpoints.join(","), error.to_string());
                Err(ClientError::Protocol { endpoint, problem })
            }
        }
    }

    /// Receives one event of a stream of HSM events; waits for it. `None` is the end, and stays it.
    ///
    /// # Errors
    /// As [`Self::recv`]; `EPROTO` if it is a changelog record.
    pub fn recv_hsm(&mut self) -> Result<Option<HsmActionEvent<'_>>, ClientError> {
        let endpoint = self.config.endpoints.join(",");
        let Some(record) = self.recv()? else { return Ok(None) };
        let event = HsmActionEvent::parse(&record);
        event.map(Some).map_err(|bad| ClientError::Protocol { endpoint, problem: bad.to_string() })
    }

    /// Receives one record: its bytes within [`Self::current`]'s buffer. When that is a new batch,
    /// the one before is in [`Self::take_retired`].
    ///
    /// # Errors
    /// As [`Self::recv`]; `EAGAIN` if nothing is there and not `wait`.
    #[inline]
    pub fn recv_range(&mut self, wait: bool) -> Result<Option<Range<usize>>, ClientError> {
        loop {
            if let Some(batch) = &mut self.current
                && let Some((range, index)) = batch.next_range()
            {
                let n_left = batch.n_left();
                match &mut self.acks {
                    Acks::None => {}
                    Acks::Reader(acks) => acks.hand_out(index),
                    Acks::Member(acks) => lock(acks).hand_out(index),
                }
                self.stats.records += 1;
                self.stats.bytes += range.len() as u64;
                self.stats.last_index = index.get();
                self.unflushed += 1;
                if n_left == 0 {
                    self.batch_consumed();
                }
                return Ok(Some(range));
            }
            if !self.next_item(wait)? {
                return Ok(None);
            }
        }
    }

    /// The batch that the last record came from.
    pub fn current(&self) -> Option<&ReceivedBatch> {
        self.current.as_ref()
    }

    /// Whether [`Self::take_retired`] has something.
    #[inline]
    pub fn has_retired(&self) -> bool {
        self.retired.is_some()
    }

    /// The batch before the current one, once.
    pub fn take_retired(&mut self) -> Option<ReceivedBatch> {
        self.retired.take()
    }

    /// The application is done with every record that it was given with an index up to `upto`;
    /// `RecordIndex::ZERO` means all of them. Cheap: the server is told every so often.
    ///
    /// # Errors
    /// [`ClientError::Forked`].
    #[inline]
    pub fn clear(&mut self, upto: RecordIndex) -> Result<(), ClientError> {
        let upto = if upto == RecordIndex::ZERO { RecordIndex::new(u64::MAX) } else { upto };
        match &mut self.acks {
            Acks::None => return Ok(()),
            Acks::Reader(acks) => {
                acks.clear(upto);
                let so_far = self.current.as_ref().and_then(|batch| batch.low_so_far());
                self.inbox.settle(acks.watermark(so_far));
                if acks.is_idle() && self.current.as_ref().is_none_or(|batch| batch.n_left() == 0) {
                    self.inbox.set_idle();
                }
            }
            Acks::Member(acks) => {
                self.inbox.with_settled_records(|settled| lock(acks).clear(upto, settled));
            }
        }
        if self.unflushed >= ACK_RECORDS {
            self.unflushed = 0;
            self.inbox.flush();
        }
        Ok(())
    }

    /// Settles up to `upto` on behalf of a registered reader of the stream, which need not be
    /// this client's own. Answered once it is on the server's disk.
    ///
    /// # Errors
    /// `ENOENT` if there is no such reader, `ETIMEDOUT` without an answer.
    pub fn clear_for(&mut self, mdt: &str, reader: &str, upto: u64) -> Result<(), ClientError> {
        let (stream, mdt) = (Some(self.options.stream.clone()), mdt.to_owned());
        self.request(Op::Clear(control::Clear { stream, mdt, reader: reader.to_owned(), upto }))?;
        Ok(())
    }

    /// Sends a request over the session's connection and waits for the answer.
    ///
    /// # Errors
    /// What the server answers, `ETIMEDOUT` without an answer.
    pub fn request(&mut self, op: Op) -> Result<Reply, ClientError> {
        self.check_fork()?;
        let (giver, answer) = promise();
        self.send(Command::Request(op, giver))?;
        let timeout = self.config.timeout.saturating_add(GRACE);
        answer.wait(timeout).unwrap_or(Err(ClientError::ThreadGone))
    }

    /// A descriptor that is readable exactly when [`Self::recv`] would not wait.
    ///
    /// # Errors
    /// [`ClientError::Forked`], or what is wrong with the options.
    pub fn fd(&mut self) -> Result<BorrowedFd<'_>, ClientError> {
        self.begin()?;
        self.inbox.expose();
        self.settle_fd();
        Ok(self.inbox.expose())
    }

    /// Whether [`Self::recv`] would not wait.
    ///
    /// # Errors
    /// As [`Self::fd`].
    pub fn in_buf(&mut self) -> Result<bool, ClientError> {
        self.begin()?;
        Ok(self.n_left() > 0 || self.over.is_some() || self.inbox.has_news())
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        let counters = self.inbox.counters();
        Stats {
            head_index: counters.head.max(self.stats.last_index),
            redelivered: counters.redelivered,
            repeated: counters.repeated,
            reconnects: counters.restarts,
            malformed: counters.malformed,
            ..self.stats
        }
    }

    /// Acknowledges what was cleared and ends the session; waits for that a moment at most.
    /// Dropping does the same.
    pub fn close(self) {}

    fn n_left(&self) -> u32 {
        self.current.as_ref().map_or(0, |batch| batch.n_left())
    }

    fn check_fork(&self) -> Result<(), ClientError> {
        if self.pid == std::process::id() { Ok(()) } else { Err(ClientError::Forked) }
    }

    fn send(&self, command: Command) -> Result<(), ClientError> {
        self.commands.send(command).map_err(|_| ClientError::ThreadGone)?;
        self.inbox.wake();
        Ok(())
    }

    /// Asks for records, with the options as they are now.
    fn begin(&mut self) -> Result<(), ClientError> {
        self.check_fork()?;
        if !self.begun {
            self.options.apply(&mut self.config)?;
            self.begun = true;
            self.send(Command::Begin(Box::new(self.config.clone())))?;
        }
        Ok(())
    }

    /// Takes the next item in. `false` at the end.
    #[cold]
    fn next_item(&mut self, wait: bool) -> Result<bool, ClientError> {
        if let Some(over) = &self.over {
            return over.clone().map(|()| false);
        }
        self.begin()?; // also sees to it that a child does not take what is the parent's
        match self.inbox.take(wait)? {
            Item::Batch(batch) => {
                self.know_delivery(batch.delivery());
                self.retired = self.current.replace(batch);
            }
            Item::Low(low) => self.consumed_upto(low),
            Item::Gap(gap) => self.on_gap(gap),
            Item::Generation(generation) => {
                let settled = RecordIndex::new(self.inbox.settled().0);
                self.inbox.enter_generation(generation, settled);
            }
            Item::Life(life) => self.inbox.enter_life(life, || {
                if let Acks::Member(acks) = &self.acks {
                    lock(acks).forget();
                }
            }),
            Item::End => {
                self.over = Some(Ok(()));
                return Ok(false);
            }
            Item::Failed(error) => {
                self.over = Some(Err(error.clone()));
                return Err(error);
            }
            Item::Trouble(error) => {
                self.settle_fd();
                return Err(error);
            }
        }
        Ok(true)
    }

    fn know_delivery(&mut self, delivery: Delivery) {
        if matches!(self.acks, Acks::None) {
            self.acks = match delivery {
                Delivery::Queue => Acks::Member(Arc::default()),
                Delivery::Broadcast if self.options.reader.is_some() => Acks::Reader(self.consumed),
                Delivery::Broadcast => Acks::None,
            };
        }
    }

    fn consumed_upto(&mut self, low: RecordIndex) {
        match &mut self.acks {
            Acks::Reader(acks) => acks.consumed(low),
            _ => self.consumed.consumed(low),
        }
    }

    fn batch_consumed(&mut self) {
        if let Some(low) = self.current.as_ref().map(|batch| batch.low()) {
            self.consumed_upto(low);
        }
        self.settle_fd();
    }

    fn settle_fd(&self) {
        self.inbox.settle_fd(self.n_left() > 0 || self.over.is_some());
    }

    fn on_gap(&mut self, gap: Gap) {
        self.stats.gaps += 1;
        self.stats.gap_first = gap.first.get();
        self.stats.gap_last = gap.last.get();
        let Some(generation) = gap.new_generation else { return };
        self.consumed.rewind(gap.first);
        match &mut self.acks {
            Acks::None => {}
            Acks::Reader(acks) => acks.rewind(gap.first),
            Acks::Member(acks) => lock(acks).rewind(gap.first),
        }
        let settled = RecordIndex::new(self.inbox.settled().0).min(gap.first.prev());
        self.inbox.enter_generation(generation, settled);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.check_fork().is_err() {
            // The thread is the parent's; so are the sockets. Not even detaching it is safe here.
            return std::mem::forget(thread);
        }
        let _ = self.send(Command::Close);
        let _ = thread.join();
    }
}
