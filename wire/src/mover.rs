//! Messages between lcapd and movers, over DEALER to ROUTER: a JSON object, and frames of packed
//! bytes behind it where there are requests to name.
//!
//! | mover says | behind it | lcapd says | behind it |
//! | --- | --- | --- | --- |
//! | `hello` | action lists of what it holds, then [`Report`]s | `welcome`, `refused` | |
//! | `credit` | | `work` | one action list |
//! | `report` | [`Report`]s | `stored` | |
//! | `heartbeat` | | `heartbeat` | |
//! | `here` | | `probe` | |
//! | `bye` | | `lost` | |
//!
//! Lists are Lustre's own (`lcap_ffi::hsm`), so user data of any bytes passes as it is, and cookies
//! have 64 bits. Unknown fields are ignored on both sides, so that either may be newer.

use lcap_ffi::Fid;
use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;

/// Largest frame that is accepted, in bytes: more than any action list has.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Longest name of a mover, in bytes. Letters, digits, `_`, `-`, `.` and `:`.
pub const MAX_NAME_BYTES: usize = 127;

/// One message of a mover's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoverMessage {
    /// [`PROTOCOL_VERSION`].
    pub v: u8,
    /// What it says.
    #[serde(flatten)]
    pub op: MoverOp,
}

/// What a mover says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum MoverOp {
    /// Opens a session, or goes on with one after the connection was cut.
    Hello(Hello),
    /// Items numbered up to `upto` within the session may be sent, the first having number 1.
    Credit {
        /// The session.
        session: u64,
        /// Repeating a value is harmless.
        upto: u64,
    },
    /// What became of requests. Answered by `stored`, and said again after a reconnect until it is.
    Report {
        /// The session.
        session: u64,
        /// Counts the reports of one life of the mover, from 1.
        sequence: u64,
    },
    /// The mover lives.
    Heartbeat {
        /// The session.
        session: u64,
    },
    /// Answer to `probe`.
    Here {
        /// The session.
        session: u64,
    },
    /// The end: what it holds goes to others at once.
    Bye {
        /// The session.
        session: u64,
    },
}

/// Who the mover is, and what it can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its name, unique among movers.
    pub mover: String,
    /// Chosen at random by each process: tells a mover that reconnects from one that was started
    /// again.
    pub life: u64,
    /// Counts the hellos of one life, so that an old one that arrives late is known for one.
    pub attempt: u64,
    /// Its file system, if it knows: `EINVAL` if lcapd has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fsname: Option<String>,
    /// Archives that it serves; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archives: Vec<u32>,
    /// Most requests that it runs at once, by kind.
    #[serde(default)]
    pub limits: Limits,
    /// First credit.
    #[serde(default)]
    pub upto: u64,
    /// Sequences of reports that were not `stored`: they stand behind the lists, so that what has
    /// ended is known before anything is given to others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<u64>,
    /// Release of its library.
    #[serde(default)]
    pub version: String,
}

/// Most requests of each kind; none if absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the kinds
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<u32>,
}

/// What lcapd says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum MoverEvent {
    /// The session is open. What the mover runs and lcapd knows is the mover's.
    Welcome(Welcome),
    /// It is not.
    Refused {
        /// The hello's.
        attempt: u64,
        /// Why, as a number: `EEXIST` if a living mover has that name, `EINVAL` if it asks for what
        /// cannot be.
        errno: i32,
        /// Why, as a sentence.
        error: String,
    },
    /// Requests, and cancels (`HSMA_CANCEL`) of some that it has.
    Work {
        /// The session.
        session: u64,
    },
    /// A report is on disk.
    Stored {
        /// The session.
        session: u64,
        /// Reports up to this one.
        sequence: u64,
    },
    /// Answer to `heartbeat`.
    Heartbeat {
        /// The session.
        session: u64,
    },
    /// Another says that it is this mover: `here`, or the name is the other's.
    Probe {
        /// The session.
        session: u64,
    },
    /// The session is not known (any more): say hello again.
    Lost {
        /// The session.
        session: u64,
        /// Why, as a sentence.
        error: String,
    },
}

/// An open session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The hello's.
    pub attempt: u64,
    /// Its number, to be given with everything. Never given twice.
    pub session: u64,
    /// The file system whose requests are served.
    pub fsname: String,
    /// How often the mover has to be heard of, in milliseconds. Silent for five times as long, it has
    /// vanished, and its grace time runs.
    pub heartbeat_ms: u64,
    /// Release of lcapd.
    pub version: String,
}

impl MoverMessage {
    /// The bytes of its first frame.
    pub fn encode(op: MoverOp) -> Vec<u8> {
        // Plain data: cannot fail.
        serde_json::to_vec(&Self { v: PROTOCOL_VERSION, op }).unwrap_or_default()
    }
}

impl MoverEvent {
    /// The bytes of its first frame.
    pub fn encode(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Versioned<'a> {
            v: u8,
            #[serde(flatten)]
            event: &'a MoverEvent,
        }
        serde_json::to_vec(&Versioned { v: PROTOCOL_VERSION, event: self }).unwrap_or_default()
    }
}

/// Whether a mover may have that name.
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

/// What names a request: two MDTs may give the same cookie, but not for the same file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    /// The coordinator's cookie.
    pub cookie: u64,
    /// The file.
    pub fid: Fid,
}

/// What became of a request at a mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum What {
    /// The mover has ended it with Lustre.
    Done = 0,
    /// Lustre refused to let it begin: somebody has ended it, or the file is gone.
    Refused = 1,
    /// It has begun: from here on its progress is the mover's to tell.
    Begun = 2,
    /// It will not be carried out, and Lustre was not told.
    Returned = 3,
}

/// One entry of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The request.
    pub key: RequestKey,
    /// What became of it.
    pub what: What,
    /// Error number, 0 for success.
    pub status: i32,
}

/// Bytes of a packed [`Report`]: cookie, sequence, object id and version of the FID, status, what;
/// little-endian.
pub const REPORT_BYTES: usize = 32;

impl Report {
    /// Appends it to a frame.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; REPORT_BYTES] {
        let Self { key: RequestKey { cookie, fid }, what, status } = *self;
        let mut bytes = [0; REPORT_BYTES];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(part) {
                *to = *from;
            }
            at += part.len();
        };
        put(&cookie.to_le_bytes());
        put(&fid.seq.to_le_bytes());
        put(&fid.oid.to_le_bytes());
        put(&fid.ver.to_le_bytes());
        put(&status.to_le_bytes());
        put(&(what as u32).to_le_bytes());
        bytes
    }

    /// Reads one back; `None` if it says what is not known.
    pub fn from_bytes(bytes: &[u8; REPORT_BYTES]) -> Option<Self> {
        let long = |at: usize| bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b));
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
        let what = match word(28)? {
            0 => What::Done,
            1 => What::Refused,
            2 => What::Begun,
            3 => What::Returned,
            _ => return None,
        };
        let fid = Fid { seq: long(8)?, oid: word(16)?, ver: word(20)? };
        let key = RequestKey { cookie: long(0)?, fid };
        Some(Self { key, what, status: word(24)?.cast_signed() })
    }

    /// All of a frame; `None` if it is not made of whole reports.
    pub fn unpack(frame: &[u8]) -> Option<Vec<Self>> {
        let (reports, rest) = frame.as_chunks::<REPORT_BYTES>();
        if !rest.is_empty() {
            return None;
        }
        reports.iter().map(Self::from_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_keep_every_bit() {
        let fid = Fid { seq: u64::MAX - 1, oid: 0x8000_0001, ver: 3 };
        let all = [
            Report { key: RequestKey { cookie: u64::MAX, fid }, what: What::Done, status: 0 },
            Report { key: RequestKey { cookie: 1 << 31, fid }, what: What::Refused, status: 2 },
            Report { key: RequestKey { cookie: 0, fid }, what: What::Begun, status: 0 },
            Report { key: RequestKey::default(), what: What::Returned, status: -5 },
        ];
        let mut frame = Vec::new();
        for report in &all {
            report.pack(&mut frame);
        }
        assert_eq!(frame.len(), all.len() * REPORT_BYTES);
        assert_eq!(frame[0..8], [0xff; 8]);
        assert_eq!(Report::unpack(&frame).unwrap(), all);
        assert_eq!(Report::unpack(&frame[1..]), None);
        frame[28] = 9;
        assert_eq!(Report::unpack(&frame), None);
    }

    #[test]
    fn messages_look_like_this() {
        let hello = Hello {
            mover: "m1".into(),
            life: 7,
            attempt: 1,
            archives: vec![1, 2],
            limits: Limits { restore: Some(3), ..Limits::default() },
            upto: 64,
            version: "0.1.0".into(),
            ..Hello::default()
        };
        let bytes = MoverMessage::encode(MoverOp::Hello(hello.clone()));
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"op":"hello","mover":"m1","life":7,"attempt":1,"archives":[1,2],"limits":{"restore":3},"upto":64,"version":"0.1.0"}"#
        );
        let read: MoverMessage = serde_json::from_str(&text).unwrap();
        assert_eq!(read.op, MoverOp::Hello(hello));
        let event = MoverEvent::Stored { session: 9, sequence: 4 };
        let text = String::from_utf8(event.encode()).unwrap();
        assert_eq!(text, r#"{"v":1,"event":"stored","session":9,"sequence":4}"#);
        assert_eq!(serde_json::from_str::<MoverEvent>(&text).unwrap(), event);
        assert!(is_name("node-1.lan:2") && !is_name("") && !is_name("a b"));
        assert!(!is_name(&"x".repeat(128)));
    }
}
