//! Control messages: one JSON object per message, over DEALER to ROUTER.
//!
//! A request is `{"v":1,"id":7,"op":"start",…}`; its reply repeats the `id` and says `"ok":true`
//! and what the op returns, or `"ok":false` with `errno` and a sentence. Requests without an `id`
//! are not answered. Messages that the server sends of its own accord carry `event`, not `ok`.
//! Unknown fields are ignored on both sides, so that either may be newer.

use std::collections::BTreeMap;

use lcap_ffi::RecordIndex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::PROTOCOL_VERSION;
use crate::hsm_queue::HsmOp;

/// Largest control message that is accepted, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Inclusive ranges of record indexes, `[[first, last], …]`.
pub type Ranges = Vec<(u64, u64)>;

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`].
    pub v: u8,
    /// Repeated in the reply; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What is asked.
    #[serde(flatten)]
    pub op: Op,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op")]
#[allow(missing_docs)] // each is its own struct below
pub enum Op {
    #[serde(rename = "hello")]
    Hello(Hello),
    #[serde(rename = "start")]
    Start(Start),
    #[serde(rename = "fetch")]
    Fetch(Fetch),
    #[serde(rename = "ack")]
    Ack(Ack),
    #[serde(rename = "heartbeat")]
    Heartbeat(SessionRef),
    #[serde(rename = "fini")]
    Fini(SessionRef),
    #[serde(rename = "clear")]
    Clear(Clear),
    #[serde(rename = "reader.register")]
    ReaderRegister(ReaderRegister),
    #[serde(rename = "reader.deregister")]
    ReaderDeregister(ReaderDeregister),
    #[serde(rename = "reader.list")]
    ReaderList(ReaderList),
    #[serde(rename = "status")]
    Status(StatusRequest),
    #[serde(rename = "hsm")]
    Hsm(HsmOp),
    #[serde(rename = "policy.reload")]
    PolicyReload(PolicyReload),
}

/// Asks who is there, and whether an MDT and a stream are served. Returns [`HelloReply`];
/// `ENOENT` if one that is named is not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// MDT that the client wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mdt: Option<String>,
    /// Stream that the client wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
}

/// Who the server is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloReply {
    /// Release of lcapd.
    pub version: String,
    /// Its present life.
    pub epoch: u64,
    /// MDTs that it serves.
    pub mdts: Vec<String>,
    /// Streams that it offers.
    pub streams: Vec<String>,
}

/// Opens a session: one stream of one MDT. Returns [`StartReply`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Name of the stream.
    pub stream: String,
    /// Name of the MDT.
    pub mdt: String,
    /// Registered reader that this client is, on a broadcast stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reader: Option<String>,
    /// First index wanted. 0: after the reader's watermark, or the oldest that the MDT still has.
    #[serde(default)]
    pub from: u64,
    /// The MDT generation that `from` belongs to, when the client goes on where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u16>,
    /// Go on with new records after the present end.
    #[serde(default)]
    pub follow: bool,
    /// Only records that pass this expression (docs/policies.md); the rest settles by itself. Of a
    /// broadcast stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Of an HSM stream, from the beginning: the present state first (each action's last event, marked
    /// as telling a state), then what comes after it, instead of all that has happened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snapshot: bool,
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamKind {
    /// Changelog records of MDTs.
    #[default]
    Changelog,
    /// Events of their HSM actions.
    Hsm,
}

impl StreamKind {
    /// It carries changelog records.
    pub fn is_changelog(&self) -> bool {
        *self == Self::Changelog
    }
}

/// How a stream is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Every subscriber gets every record.
    Broadcast,
    /// Every record goes to one member.
    Queue,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartReply {
    /// Its number, to be given with everything that concerns it.
    pub session: u64,
    /// Present life of lcapd.
    pub epoch: u64,
    /// Present history of the MDT.
    pub generation: u16,
    /// Set if the client's generation is older: indexes from here on were issued again, so the
    /// client forgets that it had them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewind: Option<u64>,
    /// How the stream is delivered.
    pub delivery: Delivery,
    /// Where its data socket is: SUB connects there for a broadcast stream, DEALER for a queue.
    /// A wildcard host stands for the host of the control endpoint.
    pub publish: String,
    /// The stream's policies make records of their own: what has an index that the client has had
    /// may stand for more than it did. At a new session a reader forgets what it has had above its
    /// `low`, and a member of a queue at a new epoch what it has had at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merges: bool,
    /// What stands for the stream's name in the topics to subscribe to, if that is not its name:
    /// filtered records have topics of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The index that delivery begins at.
    pub next: u64,
    /// The reader's watermark, if a reader was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<u64>,
    /// How often the client has to be heard of, in milliseconds. Silent for five times as long, a
    /// session ends.
    pub heartbeat_ms: u64,
}

/// Says how much the client has room for. On the control socket for a broadcast stream (records
/// before the live ones), on the stream's data socket for a queue. Answered by data messages
/// numbered from 1 within the session; then, on a broadcast stream, by [`Event::Live`] or
/// [`Event::End`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The session.
    pub session: u64,
    /// Messages with sequence up to here may be sent. Repeating a value is harmless.
    pub upto: u64,
}

/// Settles records: every one in the ranges that was delivered to this session is done with.
/// For a reader's session the ranges speak of dropped records, too: indexes between two delivered
/// ones belong to them as soon as a `low` has passed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The session.
    pub session: u64,
    /// What is settled, in any order.
    pub ranges: Ranges,
}

/// Names a session. `heartbeat` returns [`HeartbeatReply`]; `fini` ends it: a queue gives what it
/// held and did not acknowledge to other members at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// The session.
    pub session: u64,
}

/// Where the stream is. A client that has not seen `sequence` at the next heartbeat has lost
/// messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// Present life of lcapd.
    pub epoch: u64,
    /// Last sequence that was published for this stream and MDT.
    pub sequence: u64,
    /// Up to here everything was published or dropped.
    pub low: u64,
    /// Newest index that was read from the MDT.
    pub head: u64,
}

/// What the server sends for a session without being asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The session has caught up: the live stream goes on after `sequence`.
    Live {
        /// The session.
        session: u64,
        /// Last live sequence whose records the session has had.
        sequence: u64,
        /// Everything up to here was delivered or dropped.
        low: u64,
    },
    /// The present end, for a client that does not follow.
    End {
        /// The session.
        session: u64,
        /// Everything up to here was delivered or dropped.
        low: u64,
    },
    /// The session is over. The client may start another.
    Lost {
        /// The session.
        session: u64,
        /// Why, as a number.
        errno: i32,
        /// Why, as a sentence.
        error: String,
    },
}

/// Settles up to an index on behalf of a registered reader, without a session
/// (`lcap clear`, `lfs changelog_clear`). Answered once it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clear {
    /// Stream that the reader belongs to; needed only if two streams have one of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The MDT.
    pub mdt: String,
    /// The reader.
    pub reader: String,
    /// Last index that is done with; 0 means all that was delivered, as in Lustre.
    pub upto: u64,
}

/// Where a new reader begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// After the newest record that was read, as a new changelog user does on an MDS.
    #[default]
    Now,
    /// At the oldest record that the MDT still has.
    Oldest,
    /// At an index.
    Index(u64),
}

/// Creates a reader. Answered once it is on disk; `EEXIST` if there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReaderRegister {
    /// Stream to read.
    pub stream: String,
    /// Name of the reader.
    pub name: String,
    /// Names of the record types that it wants; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask: Vec<String>,
    /// Where it begins.
    #[serde(default)]
    pub from: From,
}

/// Removes a reader: it holds nothing any more. `ENOENT` if there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderDeregister {
    /// Its stream.
    pub stream: String,
    /// Its name.
    pub name: String,
}

/// Lists readers; returns `{"readers": [`[`ReaderStatus`]`, …]}` with their stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderList {
    /// Only this stream's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
}

/// Reads a stream's policies from the configuration again, and goes on through them without losing,
/// repeating or reordering a record. Returns [`PolicyReloadReply`]; `EINVAL` with the reason if they
/// cannot be used: the old ones are at work then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReload {
    /// The stream.
    pub stream: String,
}

/// What a stream runs now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReloadReply {
    /// The stream.
    pub stream: String,
    /// In the order of the chain.
    pub modules: Vec<LoadedModule>,
    /// MDTs that a module does not return for; they follow when it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
}

/// A policy module that was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModule {
    /// Its name.
    pub module: String,
    /// Its version.
    pub version: String,
    /// Its file.
    pub path: String,
}

/// Asks for [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {}

/// What `lcap status --json` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Release of lcapd.
    pub version: String,
    /// Its present life.
    pub epoch: u64,
    /// Why state cannot be written, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_error: Option<String>,
    /// Every MDT.
    pub mdts: Vec<MdtStatus>,
    /// The journal of HSM events of every MDT that has one: what `read_index` and the others count
    /// are events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hsm_mdts: Vec<MdtStatus>,
    /// Every stream.
    pub streams: Vec<StreamStatus>,
}

/// One MDT.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MdtStatus {
    /// Its name.
    pub name: String,
    /// URI of its source.
    pub source: String,
    /// `reading`, `idle` (at the end), `waiting` (source away, will retry), `gap` (records lost).
    pub state: String,
    /// Why, if the state needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Newest index read.
    pub read_index: u64,
    /// Index up to which the MDT was told to forget.
    pub cleared_index: u64,
    /// Indexes read and not cleared.
    pub lag_records: u64,
    /// History of the MDT, see the data header.
    pub generation: u16,
    /// Records read in this epoch.
    pub records_read: u64,
    /// Records that the MDT lost before they could be read, as far as indexes tell.
    pub gaps: u64,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its name.
    pub name: String,
    /// How it is delivered.
    pub delivery: Delivery,
    /// What it carries.
    #[serde(default, skip_serializing_if = "StreamKind::is_changelog")]
    pub kind: StreamKind,
    /// By MDT name.
    pub mdts: BTreeMap<String, StreamMdtStatus>,
    /// Registered readers of a broadcast stream.
    pub readers: Vec<ReaderStatus>,
    /// Members of a queue stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// Its policy modules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyStatus>,
    /// Sessions that are open now.
    #[serde(default)]
    pub sessions: u64,
}

/// One policy module of a stream on one MDT: `records_in = emitted + dropped + merged + held`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its place in the chain, from 0.
    pub nth: u32,
    /// Its name.
    pub module: String,
    /// Its version.
    pub version: String,
    /// The MDT; none if it serves all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mdt: Option<String>,
    /// `active`, `bypassed` (it failed and is skipped), `failed` (and the stream with it), `stuck` (it
    /// does not return from a call).
    pub state: String,
    /// What it did, if it is not active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Records that it was given.
    pub records_in: u64,
    /// Records that it gave.
    pub emitted: u64,
    /// Records that it dropped.
    pub dropped: u64,
    /// Records that went into others of its making, less those.
    pub merged: u64,
    /// Records that it holds.
    pub held: u64,
    /// Time spent in it, in nanoseconds.
    pub busy_ns: u64,
    /// Calls into it.
    pub calls: u64,
    /// Its own figures.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub own: Value,
}

/// One MDT in one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamMdtStatus {
    /// Records delivered live in this epoch.
    pub sent: u64,
    /// Records that policies dropped in this epoch.
    pub dropped: u64,
    /// Records that policies hold now.
    pub held: u64,
    /// Everything up to here was sent or dropped.
    pub low: u64,
    /// Last sequence.
    pub sequence: u64,
    /// Every index up to here is acknowledged by all (queue: by the members).
    pub watermark: u64,
    /// Queue: records sent and not acknowledged.
    #[serde(default)]
    pub outstanding: u64,
    /// Queue: records sent again.
    #[serde(default)]
    pub redelivered: u64,
    /// A policy with `on_error = "stop"` failed: it stands still.
    #[serde(default)]
    pub stopped: bool,
}

/// One registered reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderStatus {
    /// Its stream.
    pub stream: String,
    /// Its name.
    pub name: String,
    /// Watermark by MDT name.
    pub watermark: BTreeMap<String, u64>,
    /// Indexes read and not acknowledged, over all MDTs.
    pub lag_records: u64,
    /// It no longer holds the MDTs' logs.
    pub suspended: bool,
    /// Sessions that it has open now.
    #[serde(default)]
    pub sessions: u64,
    /// Seconds since it last was heard of.
    #[serde(default)]
    pub idle_seconds: u64,
}

/// One member of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Session number.
    pub session: u64,
    /// Its MDT.
    pub mdt: String,
    /// Records that it holds.
    pub outstanding: u64,
    /// Lanes that it owns.
    pub lanes: Vec<u16>,
}

/// Answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// [`PROTOCOL_VERSION`].
    pub v: u8,
    /// The request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Whether it was done.
    pub ok: bool,
    /// If not: the error number, positive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// If not: what is wrong and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the op returns.
    #[serde(flatten)]
    pub body: Value,
}

/// A message from the server.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerMessage {
    /// Answer to a request.
    Reply(Reply),
    /// Sent of its own accord.
    Event(Event),
}

impl Request {
    /// A request that wants an answer.
    pub fn new(id: u64, op: Op) -> Self {
        Self { v: PROTOCOL_VERSION, id: Some(id), op }
    }

    /// A request that wants none.
    pub fn silent(op: Op) -> Self {
        Self { v: PROTOCOL_VERSION, id: None, op }
    }

    /// The bytes of its message.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Reply {
    /// `ok` with what the op returns.
    pub fn ok(id: Option<u64>, body: &impl Serialize) -> Self {
        let body = serde_json::to_value(body).unwrap_or(Value::Null);
        Self { v: PROTOCOL_VERSION, id, ok: true, errno: None, error: None, body }
    }

    /// Not `ok`: an error number (positive) and a sentence.
    pub fn error(id: Option<u64>, errno: i32, error: impl Into<String>) -> Self {
        let (errno, error) = (Some(errno), Some(error.into()));
        let body = Value::Object(serde_json::Map::new());
        Self { v: PROTOCOL_VERSION, id, ok: false, errno, error, body }
    }

    /// The bytes of its message.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Event {
    /// The bytes of its message.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The session that it speaks of.
    pub fn session(&self) -> u64 {
        match self {
            Self::Live { session, .. } | Self::End { session, .. } | Self::Lost { session, .. } => {
                *session
            }
        }
    }
}

/// These types have string keys only and no failing serialiser, so there is no error to report.
fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// Reads a message from the server.
///
/// # Errors
/// What is wrong with the JSON, as a sentence.
pub fn parse_server_message(bytes: &[u8]) -> Result<ServerMessage, serde_json::Error> {
    let value: Value = serde_json::from_slice(bytes)?;
    if value.get("event").is_some() {
        serde_json::from_value(value).map(ServerMessage::Event)
    } else {
        serde_json::from_value(value).map(ServerMessage::Reply)
    }
}

/// Ranges of typed indexes as they travel.
pub fn to_ranges(ranges: impl IntoIterator<Item = (RecordIndex, RecordIndex)>) -> Ranges {
    ranges.into_iter().map(|(first, last)| (first.get(), last.get())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: what clients out there send and expect.
    #[test]
    fn messages_look_as_documented() {
        let start = Start {
            stream: "changelog".into(),
            mdt: "lustre-MDT0000".into(),
            reader: Some("rbh".into()),
            from: 0,
            generation: None,
            follow: true,
            filter: None,
            snapshot: false,
        };
        let text = r#"{"v":1,"id":7,"op":"start","stream":"changelog","mdt":"lustre-MDT0000","reader":"rbh","from":0,"follow":true}"#;
        let request = Request::new(7, Op::Start(start));
        assert_eq!(String::from_utf8(request.encode()).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);

        let text = r#"{"v":1,"op":"ack","session":3,"ranges":[[1,5],[7,7]]}"#;
        let request = Request::silent(Op::Ack(Ack { session: 3, ranges: vec![(1, 5), (7, 7)] }));
        assert_eq!(String::from_utf8(request.encode()).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);

        let text = r#"{"v":1,"id":7,"ok":false,"errno":2,"error":"no MDT x"}"#;
        assert_eq!(Reply::error(Some(7), 2, "no MDT x").encode(), text.as_bytes());
        let text = r#"{"event":"live","session":3,"sequence":9,"low":100}"#;
        let live = Event::Live { session: 3, sequence: 9, low: 100 };
        assert_eq!(live.encode(), text.as_bytes());
        assert_eq!(parse_server_message(text.as_bytes()).unwrap(), ServerMessage::Event(live));
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_ops_are_errors() {
        let newer = r#"{"v":1,"id":1,"op":"fetch","session":1,"upto":4,"colour":"red"}"#;
        assert!(serde_json::from_str::<Request>(newer).is_ok());
        let unknown = r#"{"v":1,"id":1,"op":"dance"}"#;
        let error = serde_json::from_str::<Request>(unknown).unwrap_err().to_string();
        assert!(error.contains("dance"), "{error}");
    }

    #[test]
    fn registration_positions_have_three_forms() {
        for (text, want) in [
            (r#""now""#, From::Now),
            (r#""oldest""#, From::Oldest),
            (r#"{"index":17}"#, From::Index(17)),
        ] {
            assert_eq!(serde_json::from_str::<From>(text).unwrap(), want);
            assert_eq!(serde_json::to_string(&want).unwrap(), text);
        }
    }
}
