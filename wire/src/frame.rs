//! Data messages: topic, header, body.
//!
//! ```text
//! frame 0  <stream> NUL <MDT> NUL
//! frame 1  64 bytes, little-endian, see `Layout`
//! frame 2  packed records back to back (or what the kind says)
//! ```

use std::fmt;

use lcap_ffi::{MdtName, RecordIndex};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PROTOCOL_VERSION;

/// First four bytes of a header: `LCAP`.
pub const MAGIC: [u8; 4] = *b"LCAP";
/// Size of a header on the wire.
pub const HEADER_BYTES: usize = size_of::<Layout>();
/// Largest body that a receiver accepts.
pub const MAX_BODY_BYTES: usize = 64 << 20;

/// The header as it lies on the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    flags: U16,
    epoch: U64,
    sequence: U64,
    low: U64,
    first: U64,
    last: U64,
    count: U32,
    body_bytes: U32,
    lane: U16,
    generation: U16,
    body_crc: U32,
}
const _: () = {
    use std::mem::offset_of;
    assert!(HEADER_BYTES == 64);
    assert!(offset_of!(Layout, epoch) == 8 && offset_of!(Layout, sequence) == 16);
    assert!(offset_of!(Layout, low) == 24 && offset_of!(Layout, first) == 32);
    assert!(offset_of!(Layout, last) == 40 && offset_of!(Layout, count) == 48);
    assert!(offset_of!(Layout, body_bytes) == 52 && offset_of!(Layout, lane) == 56);
    assert!(offset_of!(Layout, generation) == 58 && offset_of!(Layout, body_crc) == 60);
};

/// What a data message carries. Numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Packed changelog records.
    Records = 1,
    /// HSM action events.
    Hsm = 2,
    /// Records `first..=last` are lost: the MDT no longer has them. No body.
    Gap = 3,
    /// Proof that a subscription is live. No body; `sequence` and `low` are the present ones.
    Hello = 4,
}

impl TryFrom<u8> for Kind {
    type Error = HeaderError;

    fn try_from(kind: u8) -> Result<Self, HeaderError> {
        Ok(match kind {
            1 => Self::Records,
            2 => Self::Hsm,
            3 => Self::Gap,
            4 => Self::Hello,
            other => return Err(HeaderError::Kind(other)),
        })
    }
}

/// Properties of a data message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// Sent before to a member that did not acknowledge it.
    pub const REDELIVERED: Self = Self(0x1);
    /// The body is JSON lines, not packed records.
    pub const JSON: Self = Self(0x2);
    /// Answer to a fetch, not the live stream: `sequence` counts within the session.
    pub const CATCH_UP: Self = Self(0x4);

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The fields of a data message's header; [`Header::encode`] and [`Header::decode`] are its only
/// ways to and from the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// Its properties.
    pub flags: Flags,
    /// Life of the lcapd process; sequences count within it.
    pub epoch: u64,
    /// Number of this message for its stream and MDT, from 1, without gaps.
    pub sequence: u64,
    /// Once this message is consumed, every source record up to here was delivered or dropped.
    pub low: RecordIndex,
    /// Lowest index in the body.
    pub first: RecordIndex,
    /// Highest index in the body.
    pub last: RecordIndex,
    /// Records in the body.
    pub count: u32,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// Lane of a queue stream; 0 elsewhere.
    pub lane: u16,
    /// Which history of the MDT the indexes belong to: one more each time that the MDT issued
    /// known indexes again.
    pub generation: u16,
    /// CRC-32C of the body.
    pub body_crc: u32,
}

/// What is wrong with a header or its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not 64 bytes.
    #[error("header of {0} bytes, expected {HEADER_BYTES}")]
    Size(usize),
    /// Does not begin with `LCAP`.
    #[error("header without the magic LCAP")]
    Magic,
    /// A version that this side does not know.
    #[error("data format version {0}, expected {PROTOCOL_VERSION}")]
    Version(u8),
    /// A kind that this side does not know.
    #[error("unknown kind of data message {0}")]
    Kind(u8),
    /// The body has another length than the header says.
    #[error("body of {have} bytes, the header says {want}")]
    BodyLength {
        /// Bytes in the frame.
        have: usize,
        /// Bytes that the header announced.
        want: u32,
    },
    /// The body was damaged.
    #[error("body does not match its CRC-32C")]
    BodyCrc,
}

impl Header {
    /// A header for `body`: length and CRC are filled in, the rest is given.
    ///
    /// # Panics
    /// If `body` is larger than a header can say (4 GiB), which no batch is.
    #[allow(clippy::expect_used)]
    pub fn for_body(kind: Kind, body: &[u8]) -> Self {
        Self {
            kind,
            flags: Flags::default(),
            epoch: 0,
            sequence: 0,
            low: RecordIndex::ZERO,
            first: RecordIndex::ZERO,
            last: RecordIndex::ZERO,
            count: 0,
            body_bytes: u32::try_from(body.len()).expect("a batch is far below 4 GiB"),
            lane: 0,
            generation: 0,
            body_crc: body_crc(body),
        }
    }

    /// The 64 bytes for the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let layout = Layout {
            magic: MAGIC,
            version: PROTOCOL_VERSION,
            kind: self.kind as u8,
            flags: self.flags.0.into(),
            epoch: self.epoch.into(),
            sequence: self.sequence.into(),
            low: self.low.get().into(),
            first: self.first.get().into(),
            last: self.last.get().into(),
            count: self.count.into(),
            body_bytes: self.body_bytes.into(),
            lane: self.lane.into(),
            generation: self.generation.into(),
            body_crc: self.body_crc.into(),
        };
        zerocopy::transmute!(layout)
    }

    /// Reads a header from its frame.
    ///
    /// # Errors
    /// [`HeaderError`] for anything but a header of this version.
    pub fn decode(frame: &[u8]) -> Result<Self, HeaderError> {
        let layout = Layout::ref_from_bytes(frame).map_err(|_| HeaderError::Size(frame.len()))?;
        if layout.magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        if layout.version != PROTOCOL_VERSION {
            return Err(HeaderError::Version(layout.version));
        }
        Ok(Self {
            kind: Kind::try_from(layout.kind)?,
            flags: Flags(layout.flags.get()),
            epoch: layout.epoch.get(),
            sequence: layout.sequence.get(),
            low: RecordIndex::new(layout.low.get()),
            first: RecordIndex::new(layout.first.get()),
            last: RecordIndex::new(layout.last.get()),
            count: layout.count.get(),
            body_bytes: layout.body_bytes.get(),
            lane: layout.lane.get(),
            generation: layout.generation.get(),
            body_crc: layout.body_crc.get(),
        })
    }

    /// Whether `body` is the one that this header was made for.
    ///
    /// # Errors
    /// [`HeaderError::BodyLength`] or [`HeaderError::BodyCrc`].
    pub fn check_body(&self, body: &[u8]) -> Result<(), HeaderError> {
        if u32::try_from(body.len()) != Ok(self.body_bytes) {
            return Err(HeaderError::BodyLength { have: body.len(), want: self.body_bytes });
        }
        if body_crc(body) == self.body_crc { Ok(()) } else { Err(HeaderError::BodyCrc) }
    }
}

/// The checksum of a body: CRC-32C.
pub fn body_crc(body: &[u8]) -> u32 {
    crc32c::crc32c(body)
}

/// CRC-32C of what `crc` was made of, followed by `bytes`.
pub fn add_crc(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// First frame of a data message, and what a subscriber subscribes to: `<stream> NUL <MDT> NUL`.
pub fn topic(stream: &str, mdt: &MdtName) -> Vec<u8> {
    let mut topic = Vec::with_capacity(stream.len() + mdt.as_str().len() + 2);
    topic.extend_from_slice(stream.as_bytes());
    topic.push(0);
    topic.extend_from_slice(mdt.as_str().as_bytes());
    topic.push(0);
    topic
}

/// Topic of the message that proves a subscription live: `NUL hello NUL <stream> NUL <MDT> NUL
/// <any text of the subscriber's own>`. No stream's topic begins with NUL.
pub fn hello_topic(stream: &str, mdt: &MdtName, own: &str) -> Vec<u8> {
    let mut hello = b"\0hello\0".to_vec();
    hello.extend_from_slice(&topic(stream, mdt));
    hello.extend_from_slice(own.as_bytes());
    hello
}

/// Takes a hello topic apart: stream, MDT as text, the subscriber's own text.
pub fn parse_hello_topic(hello: &[u8]) -> Option<(&str, &str, &str)> {
    let rest = std::str::from_utf8(hello.strip_prefix(b"\0hello\0")?).ok()?;
    let mut parts = rest.splitn(3, '\0');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Records => "records",
            Self::Hsm => "hsm",
            Self::Gap => "gap",
            Self::Hello => "hello",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        let mut header = Header::for_body(Kind::Records, b"body");
        header.flags = Flags::REDELIVERED.with(Flags::CATCH_UP);
        header.epoch = 0x1122_3344_5566_7788;
        header.sequence = 7;
        header.low = RecordIndex::new(41);
        header.first = RecordIndex::new(40);
        header.last = RecordIndex::new(42);
        header.count = 3;
        header.lane = 5;
        header.generation = 2;
        header
    }

    /// Frozen: a change here breaks every client that is out there.
    #[test]
    fn header_bytes_are_frozen() {
        let want: [u8; 64] = [
            b'L', b'C', b'A', b'P', 1, 1, 5, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 7,
            0, 0, 0, 0, 0, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0,
            0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 2, 0, 0xca, 0x29, 0xf1, 0xf9,
        ];
        let crc = crc32c::crc32c(b"body").to_le_bytes();
        let mut want = want;
        want[60..].copy_from_slice(&crc);
        assert_eq!(sample().encode(), want);
    }

    #[test]
    fn headers_survive_the_wire() {
        assert_eq!(Header::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn bad_headers_are_named() {
        let good = sample().encode();
        let changed = |at: usize, to: u8| {
            let mut bytes = good;
            bytes[at] = to;
            Header::decode(&bytes)
        };
        assert_eq!(Header::decode(&good[..63]), Err(HeaderError::Size(63)));
        assert_eq!(changed(0, b'X'), Err(HeaderError::Magic));
        assert_eq!(changed(4, 9), Err(HeaderError::Version(9)));
        assert_eq!(changed(5, 99), Err(HeaderError::Kind(99)));
        assert_eq!(sample().check_body(b"body"), Ok(()));
        assert_eq!(sample().check_body(b"bode"), Err(HeaderError::BodyCrc));
        let length = HeaderError::BodyLength { have: 3, want: 4 };
        assert_eq!(sample().check_body(b"bod"), Err(length));
    }

    #[test]
    fn hello_topics_come_apart() {
        let mdt: MdtName = "lustre-MDT0000".parse().unwrap();
        let hello = hello_topic("changelog", &mdt, "me-1");
        assert_eq!(parse_hello_topic(&hello), Some(("changelog", "lustre-MDT0000", "me-1")));
        assert_eq!(parse_hello_topic(b"changelog\0lustre-MDT0000\0"), None);
    }
}
