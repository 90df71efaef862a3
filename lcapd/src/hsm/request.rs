//! What the queue holds: one action on one file.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use lcap_ffi::Fid;
use serde::{Deserialize, Serialize};

use super::data::Data;

/// What is asked for; the discriminant is Lustre's number (`HSMA_*`). A cancel is no request of its
/// own: it ends another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Kind {
    /// Copy the file to the archive.
    Archive = 20,
    /// Bring the data back.
    Restore = 21,
    /// Delete the archive's copy.
    Remove = 22,
}

impl Kind {
    /// All of them, in the order in which they are served by default.
    pub const ALL: [Self; 3] = [Self::Restore, Self::Remove, Self::Archive];

    /// Lustre's name, in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Archive => "ARCHIVE",
            Self::Restore => "RESTORE",
            Self::Remove => "REMOVE",
        }
    }

    /// From Lustre's number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// For tables by kind.
    pub(crate) fn at(self) -> usize {
        self as usize - Self::Archive as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is no kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not archive, restore or remove")]
pub struct BadKind;

impl FromStr for Kind {
    type Err = BadKind;

    fn from_str(text: &str) -> Result<Self, BadKind> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text)).ok_or(BadKind)
    }
}

/// Where a request came from, and what names it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An MDT's coordinator, which waits for its end. Its cookie is unique per MDT.
    Coordinator {
        /// The MDT's name for it.
        cookie: u64,
    },
    /// The upcall's spool. Nobody waits: it is ours to try again.
    Upcall,
}

/// Nobody knows whose it is.
pub const UNKNOWN_OWNER: u32 = u32::MAX;

/// One action on one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Where it came from.
    pub source: Source,
    /// The MDT, or `<fsname>-MDTffff` for an upcall, which does not tell.
    pub mdt: Arc<str>,
    /// What is asked for.
    pub kind: Kind,
    /// The file.
    #[serde(with = "text")]
    pub fid: Fid,
    /// Where data goes to or comes from; the file itself unless a restore is in progress.
    #[serde(with = "text")]
    pub dfid: Fid,
    /// First byte.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes; all ones for the whole file.
    pub length: u64,
    /// Group lock.
    #[serde(default)]
    pub gid_lock: u64,
    /// Which archive; 0 if nobody knows (a remove of a file that is gone).
    pub archive_id: u32,
    /// `hal_flags`.
    #[serde(default)]
    pub flags: u64,
    /// What the user gave for the copytool: any bytes.
    #[serde(default)]
    pub data: Data,
    /// When it was taken in, in nanoseconds since 1970.
    pub received_ns: u64,
    /// Owner of the file, where known.
    #[serde(default = "unknown", skip_serializing_if = "is_unknown")]
    pub uid: u32,
    /// Group of the file, where known.
    #[serde(default = "unknown", skip_serializing_if = "is_unknown")]
    pub gid: u32,
    /// Project of the file, where known.
    #[serde(default = "unknown", skip_serializing_if = "is_unknown")]
    pub project: u32,
}

impl Request {
    /// A request on a whole file, with nothing that is not always there.
    pub fn new(source: Source, mdt: Arc<str>, kind: Kind, fid: Fid, archive_id: u32) -> Self {
        Self {
            source,
            mdt,
            kind,
            fid,
            dfid: fid,
            offset: 0,
            length: u64::MAX,
            gid_lock: 0,
            archive_id,
            flags: 0,
            data: Data::default(),
            received_ns: 0,
            uid: UNKNOWN_OWNER,
            gid: UNKNOWN_OWNER,
            project: UNKNOWN_OWNER,
        }
    }

    /// The file system.
    pub fn fsname(&self) -> &str {
        self.mdt.rsplit_once("-MDT").map_or(&*self.mdt, |(fsname, _)| fsname)
    }

    /// The coordinator's name for it.
    pub fn cookie(&self) -> Option<u64> {
        match self.source {
            Source::Coordinator { cookie } => Some(cookie),
            Source::Upcall => None,
        }
    }

    /// The user's text, up to its first NUL.
    pub fn hint(&self) -> &[u8] {
        self.data.split(|&b| b == 0).next().unwrap_or_default()
    }
}

/// The value of `KEY` in data like `a=1,KEYvalue,b=2`: what stands between KEY, at the start or right
/// after a comma, and the next comma or the end. The key has its `=`, if it wants one.
pub fn tag_value<'a>(data: &'a [u8], key: &str) -> Option<&'a [u8]> {
    data.split(|&b| b == b',').find_map(|part| part.strip_prefix(key.as_bytes()))
}

fn unknown() -> u32 {
    UNKNOWN_OWNER
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_unknown(id: &u32) -> bool {
    *id == UNKNOWN_OWNER
}

/// Types that are written as they print.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(t: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(t)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_request_survives_its_json() {
        let mut request = Request::new(
            Source::Coordinator { cookie: u64::MAX },
            "lustre-MDT0001".into(),
            Kind::Restore,
            Fid { seq: u64::MAX, oid: u32::MAX, ver: 7 },
            0,
        );
        for data in [&b""[..], b"tag=a,b", b"\0\xff\xfe", &[0xc3, 0x28]] {
            request.data = data.into();
            request.uid = u32::try_from(data.len()).unwrap();
            let json = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request, "{json}");
        }
        assert_eq!(request.fsname(), "lustre");
    }

    #[test]
    fn a_tag_stands_at_the_start_or_after_a_comma() {
        for (data, want) in [
            ("tag=a", Some("a")),
            ("x=1,tag=a,y", Some("a")),
            ("xtag=b,tag=a", Some("a")),
            ("tag=", Some("")),
            ("xtag=a", None),
            ("", None),
        ] {
            assert_eq!(tag_value(data.as_bytes(), "tag="), want.map(str::as_bytes), "{data}");
        }
    }
}
