//! One line of an MDT's `hsm/actions`.
//!
//! ```text
//! lrh=[type=10680000 len=136 idx=1/5] fid=[0x240000402:0xe:0x0] dfid=[0x240000402:0xe:0x0]
//! compound/cookie=0x0/0x6b023304 action=ARCHIVE archive#=1 flags=0x0
//! extent=0x0-0xffffffffffffffff gid=0x0 datalen=8 status=STARTED data=[7461673D67]
//! ```
//!
//! (one line). A line is `name=value` with blanks between; a value in brackets may have blanks.
//! Names that are not known are passed over, and a known one with a value that makes no sense counts
//! as absent: the line then does not print as it was read, and is kept whole. Only a line that does not
//! say which action it is about is an error. Nothing is allocated.
#![forbid(unsafe_code)]

use super::{ActionCode, ActionFields, Slot, StatusCode};
use crate::digits::{push_dec, push_hex};
use crate::name::Fid;

/// Most bytes of data that one line is believed to show; Lustre shows 5, old versions 12.
pub const MAX_DATA_BYTES: usize = 64;

/// A line taken apart; borrows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionLine<'a> {
    /// Its numbers. `data` is empty here: see `data_hex`.
    pub fields: ActionFields<'static>,
    /// The word for the action; empty if there is none.
    pub action: &'a [u8],
    /// The word for the status; empty if there is none.
    pub status: &'a [u8],
    /// What is shown of the data, two hexadecimal digits a byte.
    pub data_hex: &'a [u8],
}

/// Why a line is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// It does not say which entry of the list it is.
    #[error("line without idx=CATALOGUE/RECORD")]
    NoSlot,
    /// It does not say which file it is about.
    #[error("line of entry {0} without a FID")]
    NoFid(Slot),
}

impl<'a> ActionLine<'a> {
    /// Takes a line (without its newline) apart.
    ///
    /// # Errors
    /// [`BadLine`].
    pub fn parse(line: &'a [u8]) -> Result<Self, BadLine> {
        let mut parsed =
            ActionLine { fields: ActionFields::default(), action: b"", status: b"", data_hex: b"" };
        let (mut slot, mut fid) = (None, None);
        let fields = &mut parsed.fields;
        for (name, value) in Pairs(line) {
            match name {
                b"lrh" => {
                    for (name, value) in Pairs(unbracket(value)) {
                        match name {
                            b"type" => fields.llog_type = hex32(value).unwrap_or(0),
                            b"len" => fields.llog_len = dec32(value).unwrap_or(0),
                            b"idx" => slot = parse_slot(value),
                            _ => {}
                        }
                    }
                }
                b"idx" => slot = slot.or_else(|| parse_slot(value)),
                b"fid" => fid = parse_fid(value),
                b"dfid" => fields.dfid = parse_fid(value).unwrap_or_default(),
                b"compound/cookie" => {
                    let (compound, cookie) = pair(value, b'/').unwrap_or_default();
                    (fields.compound, fields.cookie) = (compound, cookie);
                }
                b"cookie" => fields.cookie = hex(value).unwrap_or(0),
                b"action" => parsed.action = unbracket(value),
                b"archive#" => fields.archive_id = dec32(value).unwrap_or(0),
                b"flags" => fields.flags = hex(value).unwrap_or(0),
                b"extent" => {
                    let (offset, length) = pair(value, b'-').unwrap_or_default();
                    (fields.extent_offset, fields.extent_length) = (offset, length);
                }
                b"gid" => fields.gid = hex(value).unwrap_or(0),
                b"datalen" => fields.data_len = dec32(value).unwrap_or(0),
                b"status" => parsed.status = unbracket(value),
                b"data" => {
                    let digits = unbracket(value);
                    if is_data(digits) {
                        parsed.data_hex = digits;
                    }
                }
                _ => {}
            }
        }
        fields.slot = slot.ok_or(BadLine::NoSlot)?;
        fields.fid = fid.ok_or(BadLine::NoFid(fields.slot))?;
        fields.action = ActionCode::from_name(parsed.action);
        fields.status = StatusCode::from_name(parsed.status);
        Ok(parsed)
    }

    /// All fields; the bytes of the data are put into `room`.
    pub fn fields<'b>(&self, room: &'b mut [u8; MAX_DATA_BYTES]) -> ActionFields<'b> {
        let mut n = 0;
        for (byte, digits) in room.iter_mut().zip(self.data_hex.chunks_exact(2)) {
            *byte = digit(digits[0]).unwrap_or(0) << 4 | digit(digits[1]).unwrap_or(0);
            n += 1;
        }
        ActionFields { data: &room[..n], ..self.fields }
    }
}

/// Which entry of the list a line is, without looking at the rest of it.
pub fn slot_of(line: &[u8]) -> Option<Slot> {
    // Nearly always near the beginning: `lrh=[type=… len=… idx=1/5]`.
    let at = line.windows(4).position(|w| w == b"idx=")?;
    if at > 0 && !matches!(line[at - 1], b' ' | b'[' | b'\t') {
        return ActionLine::parse(line).ok().map(|line| line.fields.slot);
    }
    let value = &line[at + 4..];
    let end = value.iter().position(|b| matches!(b, b']' | b' ' | b'\t')).unwrap_or(value.len());
    parse_slot(&value[..end])
}

/// Appends the line that Lustre 2.17 prints for these fields.
pub fn write(fields: &ActionFields<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"lrh=[type=");
    let from = out.len();
    push_hex(out, fields.llog_type.into());
    out[from..].make_ascii_uppercase();
    out.extend_from_slice(b" len=");
    push_dec(out, fields.llog_len.into());
    out.extend_from_slice(b" idx=");
    push_dec(out, fields.slot.cat.into());
    out.push(b'/');
    push_dec(out, fields.slot.rec.into());
    out.extend_from_slice(b"] fid=[");
    write_fid(fields.fid, out);
    out.extend_from_slice(b"] dfid=[");
    write_fid(fields.dfid, out);
    out.extend_from_slice(b"] compound/cookie=0x");
    push_hex(out, fields.compound);
    out.extend_from_slice(b"/0x");
    push_hex(out, fields.cookie);
    out.extend_from_slice(b" action=");
    out.extend_from_slice(fields.action.name().as_bytes());
    out.extend_from_slice(b" archive#=");
    push_dec(out, fields.archive_id.into());
    out.extend_from_slice(b" flags=0x");
    push_hex(out, fields.flags);
    out.extend_from_slice(b" extent=0x");
    push_hex(out, fields.extent_offset);
    out.extend_from_slice(b"-0x");
    push_hex(out, fields.extent_length);
    out.extend_from_slice(b" gid=0x");
    push_hex(out, fields.gid);
    out.extend_from_slice(b" datalen=");
    push_dec(out, fields.data_len.into());
    out.extend_from_slice(b" status=");
    out.extend_from_slice(fields.status.name().as_bytes());
    out.extend_from_slice(b" data=[");
    write_data(fields.data, out);
    out.push(b']');
}

/// Appends bytes as Lustre shows data: two upper-case hexadecimal digits each.
pub fn write_data(data: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in data {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 0xf)]);
    }
}

/// Appends a FID as the kernel prints one, without brackets: `0x240000402:0xe:0x0`.
pub fn write_fid(fid: Fid, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0x");
    push_hex(out, fid.seq);
    out.extend_from_slice(b":0x");
    push_hex(out, fid.oid.into());
    out.extend_from_slice(b":0x");
    push_hex(out, fid.ver.into());
}

/// The `name=value` pairs of a text. What is no pair is passed over.
struct Pairs<'a>(&'a [u8]);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let text = self.0.trim_ascii_start();
            if text.is_empty() {
                return None;
            }
            let word_end = text.iter().position(|b| *b == b'=' || b.is_ascii_whitespace());
            let Some(at) = word_end else {
                self.0 = b"";
                return None;
            };
            if text[at] != b'=' {
                self.0 = &text[at..];
                continue;
            }
            let (name, rest) = (&text[..at], &text[at + 1..]);
            let end = match rest.first() {
                // A bracket that is never closed is a line cut short: its value is not to be had.
                Some(b'[') => match rest.iter().position(|b| *b == b']') {
                    Some(end) => end + 1,
                    None => {
                        self.0 = b"";
                        return None;
                    }
                },
                _ => rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len()),
            };
            self.0 = &rest[end..];
            return Some((name, &rest[..end]));
        }
    }
}

fn unbracket(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"[").and_then(|v| v.strip_suffix(b"]")).unwrap_or(value)
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        b'A'..=b'F' => Some(c - b'A' + 10),
        _ => None,
    }
}

fn is_data(digits: &[u8]) -> bool {
    digits.len().is_multiple_of(2)
        && digits.len() <= 2 * MAX_DATA_BYTES
        && digits.iter().all(|c| digit(*c).is_some())
}

/// Hexadecimal, with `0x` or without.
fn hex(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"0x").unwrap_or(text);
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |n: u64, c| Some(n << 4 | u64::from(digit(*c)?)))
}

fn hex32(text: &[u8]) -> Option<u32> {
    u32::try_from(hex(text)?).ok()
}

fn dec32(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u32, |n, c| {
        let digit = digit(*c).filter(|digit| *digit < 10)?;
        n.checked_mul(10)?.checked_add(digit.into())
    })
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == at)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Two hexadecimal numbers.
fn pair(text: &[u8], separator: u8) -> Option<(u64, u64)> {
    let (first, second) = split(text, separator)?;
    hex(first).zip(hex(second))
}

fn parse_slot(text: &[u8]) -> Option<Slot> {
    let (cat, rec) = split(text, b'/')?;
    Some(Slot { cat: dec32(cat)?, rec: dec32(rec)? })
}

fn parse_fid(text: &[u8]) -> Option<Fid> {
    let (seq, rest) = split(unbracket(text), b':')?;
    let (oid, ver) = split(rest, b':')?;
    Some(Fid { seq: hex(seq)?, oid: hex32(oid)?, ver: hex32(ver)? })
}

#[cfg(test)]
mod tests;
