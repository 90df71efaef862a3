//! What the user gave for the copytool: any bytes, and as a rule few.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Deref;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// So many bytes need no memory of their own.
const SHORT: usize = 22;

/// The bytes. As JSON they are base64 without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(Kept);

#[derive(Clone, PartialEq, Eq)]
enum Kept {
    /// Behind the first `len` there are zeroes.
    Short {
        len: u8,
        bytes: [u8; SHORT],
    },
    Long(Box<[u8]>),
}

// A million requests wait in memory.
const _: () = assert!(size_of::<Data>() == 24);

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Kept::Short { len, bytes } => &bytes[..usize::from(*len).min(SHORT)],
            Kept::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Data {
    fn from(data: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..data.len()), u8::try_from(data.len())) {
            (Some(part), Ok(len)) => {
                part.copy_from_slice(data);
                Self(Kept::Short { len, bytes })
            }
            _ => Self(Kept::Long(data.into())),
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self::from(&[][..])
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&**self))
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self::from(bytes.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_whatever_their_number() {
        for n in 0..300_usize {
            let bytes: Vec<u8> = (0..n).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let data = Data::from(bytes.as_slice());
            assert_eq!(*data, *bytes);
            let json = serde_json::to_string(&data).unwrap();
            assert_eq!(serde_json::from_str::<Data>(&json).unwrap(), data, "{json}");
        }
        assert_eq!(Data::default().len(), 0);
    }
}
