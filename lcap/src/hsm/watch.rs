//! HSM actions as they change, from lcapd or from a Redis that a sink (or lustre-hsm-action-stream)
//! fills.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lcap_ffi::MdtName;
use lcap_ffi::hsm_action::{EventKind, HsmActionEvent, Slot};
use lcapclient::{Builder, ClientError};
use lcapd::sink::mirror::EntryId;
use lcapd::sink::schema::Entry;
use lcapd::sink::target::{
    Credentials, DEFAULT_TIMEOUT, Link, Target, Value, as_bytes, as_list, as_number, as_text,
};

/// Where actions are read from.
#[derive(Args, Clone, Debug)]
pub(crate) struct From {
    /// Stream of lcapd that carries HSM actions.
    #[arg(long, value_name = "NAME", default_value = "hsm", conflicts_with = "redis")]
    stream: String,
    /// Only this MDT; may be given more than once.
    #[arg(long, value_name = "MDT")]
    mdt: Vec<MdtName>,
    /// Read from this Redis instead of lcapd: redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://…
    /// with TLS, unix:///PATH?db=DB.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// What the keys in Redis begin with.
    #[arg(long, value_name = "PREFIX", default_value = "hsm:actions")]
    prefix: String,
    /// File with the password of Redis on its first line.
    #[arg(long, value_name = "FILE", requires = "redis")]
    password_file: Option<std::path::PathBuf>,
    /// File with the certificates that Redis's is to be checked with (PEM).
    #[arg(long, value_name = "FILE", requires = "redis")]
    ca_file: Option<std::path::PathBuf>,
}

impl From {
    /// Nothing is asked of lcapd.
    pub(crate) fn is_redis(&self) -> bool {
        self.redis.is_some()
    }
}

/// What is asked of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// What is there now, then what changes.
    State,
    /// All that is still kept, then what changes.
    Oldest,
    /// Only what changes from now on.
    Now,
}

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Which stream it came from.
    pub mdt: Arc<str>,
    /// What happened; a state that is told is an update.
    pub kind: EventKind,
    /// Place in the MDT's list; purges of the original's maintenance have none.
    pub slot: Option<Slot>,
    /// Identity for those that have no slot.
    pub key: String,
    pub action: String,
    /// Lustre's word, or `PURGED`.
    pub status: String,
    pub fid: String,
    /// Of the event, in seconds.
    pub seconds: Option<u64>,
    /// When the stream took it in, in milliseconds.
    pub taken_ms: u64,
    /// Name in the stream: an index, or Redis's.
    pub id: String,
    /// As JSON, for programs.
    pub json: String,
}

/// What comes from the sources.
#[derive(Debug)]
pub(crate) enum News {
    Event(Event),
    /// A stream: how much it has, and the milliseconds of its first and last entry if that is known.
    Stream {
        mdt: Arc<str>,
        length: u64,
        edges_ms: Option<(u64, u64)>,
    },
    /// Something that is no event.
    Malformed,
    /// The source does not answer, or answers again.
    Trouble(Option<String>),
}

/// Reads on threads of its own; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    pub news: Receiver<News>,
    /// Where from, for people.
    pub place: String,
}

/// News that wait to be taken.
const WAITING: usize = 4096;
/// Entries that are read from Redis at once.
const READ_AT_ONCE: &[u8] = b"1000";
/// How long Redis is asked to wait for an entry.
const BLOCK: Duration = Duration::from_secs(1);
/// Pause before the next try to reach Redis; streams that are new are looked for as often.
const PAUSE: Duration = Duration::from_secs(2);

impl Watch {
    /// Begins. Without `follow`, it ends when everything that is there has come.
    pub(crate) fn start(from: &From, begin: Begin, follow: bool) -> Result<Self> {
        match &from.redis {
            Some(url) => Self::redis(from, url, begin, follow),
            None => Self::lcapd(from, begin, follow),
        }
    }

    fn lcapd(from: &From, begin: Begin, follow: bool) -> Result<Self> {
        let mut control = crate::control()?;
        let hello = control.hello(None, Some(&from.stream))?;
        let all = hello.mdts.iter().map(|name| name.parse::<MdtName>());
        let all: Vec<MdtName> = all.collect::<Result<_, _>>().context("lcapd's MDTs")?;
        let mdts = if from.mdt.is_empty() { all } else { from.mdt.clone() };
        if mdts.is_empty() {
            bail!("stream {} has no MDT with a list of HSM actions", from.stream);
        }
        let heads = control.status()?.hsm_mdts;
        let (send, news) = sync_channel(WAITING);
        for mdt in mdts {
            let mut builder = Builder::new(mdt.clone());
            builder = builder.stream(&from.stream).reader(None).follow(follow);
            builder = builder.snapshot(begin == Begin::State);
            let head = heads.iter().find(|status| status.name == mdt.as_str());
            if let Some(head) = head.filter(|_| begin == Begin::Now) {
                builder = builder.from(head.read_index + 1);
            }
            let length = head.map_or(0, |head| head.read_index.saturating_sub(head.cleared_index));
            send.send(News::Stream { mdt: mdt.as_str().into(), length, edges_ms: None })?;
            let client = builder.connect()?;
            let reading = Reading { name: mdt.as_str().into(), mdt, send: send.clone() };
            thread::Builder::new().name("watch".to_owned()).spawn(move || reading.lcapd(client))?;
        }
        let place = format!("lcapd {}", control.endpoint().unwrap_or_default());
        Ok(Self { news, place })
    }

    fn redis(from: &From, url: &str, begin: Begin, follow: bool) -> Result<Self> {
        let (password_file, ca_file) = (from.password_file.clone(), from.ca_file.clone());
        let credentials = Credentials { password_file, ca_file, client: None };
        let target = Target::new(url, &credentials, DEFAULT_TIMEOUT)?;
        let mut link = target.connect().with_context(|| format!("Redis at {target}"))?;
        let mut streams = Streams {
            prefix: from.prefix.clone(),
            wanted: from.mdt.iter().map(ToString::to_string).collect(),
            known: Vec::new(),
        };
        streams.discover(&mut link)?;
        let (send, news) = sync_channel(WAITING);
        let place = format!("Redis {target}");
        let mut reading = RedisReading { target, streams, begin, follow, send };
        thread::Builder::new().name("watch".to_owned()).spawn(move || reading.run(link))?;
        Ok(Self { news, place })
    }
}

/// One MDT of lcapd.
struct Reading {
    mdt: MdtName,
    name: Arc<str>,
    send: SyncSender<News>,
}

impl Reading {
    fn lcapd(self, mut client: lcapclient::Client) {
        loop {
            let news = match client.recv() {
                Ok(Some(record)) => match HsmActionEvent::parse(&record) {
                    Ok(event) => News::Event(self.event(&event)),
                    Err(_) => News::Malformed,
                },
                Ok(None) => return,
                Err(ClientError::Interrupted) => continue,
                Err(error) => News::Trouble(Some(error.to_string())),
            };
            let is_over = matches!(news, News::Trouble(_));
            if self.send.send(news).is_err() || is_over {
                return;
            }
        }
    }

    fn event(&self, event: &HsmActionEvent<'_>) -> Event {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let is_purge = event.kind == EventKind::Purged;
        let status = if is_purge { b"PURGED" } else { event.status_name() };
        let mut fid = Vec::new();
        lcap_ffi::hsm_action::line::write_fid(event.fields.fid, &mut fid);
        let fid = text(&fid);
        let action = text(event.action_name());
        let mut json = Vec::new();
        lcap_wire::hsm::write_line(self.mdt.as_str(), event, &mut json);
        Event {
            mdt: Arc::clone(&self.name),
            kind: event.kind,
            slot: Some(event.fields.slot),
            key: format!("{fid}:{action}"),
            action,
            status: text(status),
            fid,
            seconds: Some(event.time.seconds()),
            taken_ms: event.time.seconds() * 1000 + u64::from(event.time.nanoseconds() / 1_000_000),
            id: event.index.to_string(),
            json: text(&json).trim_end().to_owned(),
        }
    }
}

/// Streams of a Redis.
struct Streams {
    prefix: String,
    wanted: Vec<String>,
    known: Vec<Stream>,
}

struct Stream {
    key: String,
    mdt: Arc<str>,
    /// Everything up to here was read.
    last: EntryId,
    /// What there was when we began.
    end: EntryId,
}

impl Streams {
    /// Looks for streams that were not known. Those begin at their first entry.
    fn discover(&mut self, link: &mut Link) -> Result<()> {
        let pattern = format!("{}:*", self.prefix);
        let mut cursor = "0".to_owned();
        loop {
            let args: [&[u8]; 6] =
                [b"SCAN", cursor.as_bytes(), b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"];
            let answer = link.call(&args)?;
            let [next, keys] = as_list(&answer).unwrap_or_default() else {
                bail!("Redis gives an unexpected answer to SCAN");
            };
            for key in as_list(keys).unwrap_or_default().iter().filter_map(as_text) {
                let mdt = key.rsplit(':').next().unwrap_or_default();
                let wanted = self.wanted.is_empty() || self.wanted.iter().any(|w| w == mdt);
                if !wanted || self.known.iter().any(|stream| stream.key == key) {
                    continue;
                }
                if as_text(&link.call(&[b"TYPE", key.as_bytes()])?) == Some("stream") {
                    self.known.push(Stream {
                        key: key.to_owned(),
                        mdt: mdt.into(),
                        last: EntryId::default(),
                        end: EntryId::default(),
                    });
                }
            }
            cursor = as_text(next).unwrap_or("0").to_owned();
            if cursor == "0" {
                self.known.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(());
            }
        }
    }
}

/// All streams of one Redis.
struct RedisReading {
    target: Target,
    streams: Streams,
    begin: Begin,
    follow: bool,
    send: SyncSender<News>,
}

impl RedisReading {
    fn run(&mut self, mut link: Link) {
        let mut begun = false;
        loop {
            let read = if begun { Ok(()) } else { self.begin(&mut link) };
            begun = begun || read.is_ok();
            let Err(error) = read.and_then(|()| self.read_on(&mut link)) else { return };
            if error.downcast_ref::<SendError<News>>().is_some() // nobody wants to know any more
                || self.send.send(News::Trouble(Some(format!("{error:#}")))).is_err()
                || !self.follow
            {
                return;
            }
            link = loop {
                thread::sleep(PAUSE);
                match self.target.connect() {
                    Ok(link) => break link,
                    Err(_) if self.send.send(News::Trouble(Some("no Redis".into()))).is_ok() => {}
                    Err(_) => return,
                }
            };
            if self.send.send(News::Trouble(None)).is_err() {
                return;
            }
        }
    }

    /// Where each stream ends now.
    fn begin(&mut self, link: &mut Link) -> Result<()> {
        for stream in &mut self.streams.known {
            let key = stream.key.as_bytes();
            let edge =
                |link: &mut Link, command: &[u8], from: &[u8], to: &[u8]| -> Result<EntryId> {
                    let answer = link.call(&[command, key, from, to, b"COUNT", b"1"])?;
                    let first = as_list(&answer).and_then(|entries| entries.first());
                    let id =
                        first.and_then(as_list).and_then(|entry| entry.first()).and_then(as_text);
                    Ok(id.and_then(|id| id.parse().ok()).unwrap_or_default())
                };
            let first = edge(link, b"XRANGE", b"-", b"+")?;
            stream.end = edge(link, b"XREVRANGE", b"+", b"-")?;
            let length = as_number(&link.call(&[b"XLEN", key])?);
            if self.begin == Begin::Now {
                stream.last = stream.end;
            }
            let mdt = Arc::clone(&stream.mdt);
            let (length, edges_ms) = (length.unwrap_or(0), Some((first.ms, stream.end.ms)));
            self.send.send(News::Stream { mdt, length, edges_ms })?;
        }
        Ok(())
    }

    fn read_on(&mut self, link: &mut Link) -> Result<()> {
        let block = BLOCK.as_millis().to_string();
        let mut looked = std::time::Instant::now();
        loop {
            if !self.follow && self.streams.known.iter().all(|stream| stream.last >= stream.end) {
                return Ok(());
            }
            if looked.elapsed() >= PAUSE {
                looked = std::time::Instant::now();
                self.streams.discover(link)?;
            }
            if self.streams.known.is_empty() {
                if !self.follow {
                    return Ok(());
                }
                thread::sleep(PAUSE);
                self.streams.discover(link)?;
                continue;
            }
            let ids: Vec<String> =
                self.streams.known.iter().map(|stream| stream.last.to_string()).collect();
            let mut args: Vec<&[u8]> = vec![b"XREAD", b"COUNT", READ_AT_ONCE];
            if self.follow {
                args.extend([b"BLOCK".as_slice(), block.as_bytes()]);
            }
            args.push(b"STREAMS");
            args.extend(self.streams.known.iter().map(|stream| stream.key.as_bytes()));
            args.extend(ids.iter().map(|id| id.as_bytes()));
            let answer = link.call(&args)?;
            for of_stream in as_list(&answer).unwrap_or_default() {
                let [key, entries] = as_list(of_stream).unwrap_or_default() else { continue };
                let key = as_text(key).unwrap_or_default();
                let Some(stream) = self.streams.known.iter_mut().find(|s| s.key == key) else {
                    continue;
                };
                for entry in as_list(entries).unwrap_or_default() {
                    let [id, fields] = as_list(entry).unwrap_or_default() else { continue };
                    let Some(id) = as_text(id).and_then(|id| id.parse().ok()) else { continue };
                    stream.last = id;
                    let news = event_of(stream, id, as_list(fields).unwrap_or_default());
                    self.send.send(news)?;
                }
            }
        }
    }
}

fn event_of(stream: &Stream, id: EntryId, fields: &[Value]) -> News {
    let data = fields.chunks_exact(2).find(|pair| as_bytes(&pair[0]) == Some(b"data"));
    let Some(data) = data.and_then(|pair| as_bytes(&pair[1])) else { return News::Malformed };
    let Some(entry) = Entry::parse(data) else { return News::Malformed };
    if entry.action_key.is_empty() && entry.slot().is_none() {
        return News::Malformed;
    }
    let kind = match (entry.is_purge(), entry.event_type.as_str()) {
        (true, _) => EventKind::Purged,
        (false, "NEW") => EventKind::New,
        _ => EventKind::Update,
    };
    News::Event(Event {
        mdt: Arc::clone(&stream.mdt),
        kind,
        slot: entry.slot(),
        seconds: entry.timestamp.as_ref().and_then(seconds_of),
        action: entry.action.clone().unwrap_or_else(|| kind.name().to_owned()),
        status: entry.status.clone(),
        fid: entry.fid.clone().unwrap_or_default(),
        key: entry.action_key,
        taken_ms: id.ms,
        id: id.to_string(),
        json: String::from_utf8_lossy(data).into_owned(),
    })
}

/// Seconds as they stand in an entry; some write fractions.
fn seconds_of(number: &serde_json::Number) -> Option<u64> {
    let seconds = number.as_u64().map_or_else(|| number.as_f64(), |n| Some(n as f64))?;
    Duration::try_from_secs_f64(seconds).ok().map(|time| time.as_secs())
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
