//! Z85 (ZeroMQ RFC 32): keys as text. Checked, and without a copy of the text left behind.
#![forbid(unsafe_code)]

use std::fmt;

/// Bytes of a CURVE key.
pub const KEY_BYTES: usize = 32;
/// Characters of its text.
pub const KEY_CHARS: usize = 40;

const ALPHABET: &[u8; 85] =
    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// A CURVE key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; KEY_BYTES]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key") // it may be secret
    }
}

/// Not a key's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key of 40 Z85 characters")]
pub struct BadKey;

impl Key {
    /// Reads a key's text.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn from_z85(text: &str) -> Result<Self, BadKey> {
        let chars: &[u8; KEY_CHARS] = text.as_bytes().try_into().map_err(|_| BadKey)?;
        let mut key = [0; KEY_BYTES];
        for (group, out) in chars.chunks_exact(5).zip(key.chunks_exact_mut(4)) {
            let mut value: u32 = 0;
            for &c in group {
                let digit = ALPHABET.iter().position(|&a| a == c).ok_or(BadKey)?;
                let digit = u32::try_from(digit).map_err(|_| BadKey)?;
                value = value.checked_mul(85).and_then(|v| v.checked_add(digit)).ok_or(BadKey)?;
            }
            out.copy_from_slice(&value.to_be_bytes());
        }
        Ok(Self(key))
    }

    /// Its text.
    pub fn to_z85(self) -> String {
        let mut text = String::with_capacity(KEY_CHARS);
        for group in self.0.chunks_exact(4) {
            let mut value = group.iter().fold(0_u32, |value, &byte| value << 8 | u32::from(byte));
            let mut chars = [0_u8; 5];
            for out in chars.iter_mut().rev() {
                *out = ALPHABET.get((value % 85) as usize).copied().unwrap_or(b'0');
                value /= 85;
            }
            text.extend(chars.iter().map(|&c| char::from(c)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_there_and_back() {
        // The example of RFC 26: a test key of its client.
        let text = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
        let key = Key::from_z85(text).unwrap();
        assert_eq!(key.0[..4], [0xbb, 0x88, 0x47, 0x1d]);
        assert_eq!(key.to_z85(), text);
        for bytes in [[0; 32], [0xff; 32], [0x80; 32]] {
            assert_eq!(Key::from_z85(&Key(bytes).to_z85()), Ok(Key(bytes)));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let good = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
        let cases = [
            String::new(),
            good[1..].to_owned(),
            format!("{good}0"),
            good.replace('Y', " "),
            good.replace('Y', "\0"),
            good.replace("Yn", "é"),
            "#".repeat(40), // each group is more than 32 bits
        ];
        for text in cases {
            assert_eq!(Key::from_z85(&text), Err(BadKey), "{text:?}");
        }
    }
}
