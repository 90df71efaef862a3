//! One record as text, byte for byte as `lfs changelog` of Lustre 2.17 prints it.
//!
//! `lfs` prints what liblustreapi hands it: with every flag asked for, the record without the
//! extensions that the library does not know. So a record as the device gave it and the same one
//! after [`repack`](crate::repack::repack) print alike.
#![forbid(unsafe_code)]

use crate::digits::{push_dec, push_dec_padded, push_hex};
use crate::name::Fid;
use crate::record::{CLFE_NID, CLFE_NID_BE, CLFE_SUPPORTED, NAME_MAX, Record, RecordType};

/// `MDS_FMODE_READ`, in a record's open mode.
const MODE_READ: u32 = 0x1;
/// `MDS_FMODE_EXEC`.
const MODE_EXEC: u32 = 0x4;
/// Whatever makes `lfs` print a `w`: `MDS_FMODE_WRITE`, `MDS_OPEN_TRUNC` and `MDS_OPEN_APPEND`.
const MODE_WRITES: u32 = 0x2 | 0x200 | 0x400;

/// Appends the record's line, newline included. Names are written as they are, newlines and all.
pub fn write_line(record: &Record<'_>, out: &mut Vec<u8>) {
    push_dec(out, record.index().get());
    out.push(b' ');
    push_type(out, record.rec_type());
    out.push(b' ');
    let time = UtcTime::from_seconds(record.seconds());
    push_dec_padded(out, time.hour.into(), 2);
    out.push(b':');
    push_dec_padded(out, time.minute.into(), 2);
    out.push(b':');
    push_dec_padded(out, time.second.into(), 2);
    out.push(b'.');
    push_dec_padded(out, record.nanoseconds().into(), 9);
    out.push(b' ');
    push_dec_padded(out, time.year.into(), 4);
    out.push(b'.');
    push_dec_padded(out, time.month.into(), 2);
    out.push(b'.');
    push_dec_padded(out, time.day.into(), 2);
    out.extend_from_slice(b" 0x");
    push_hex(out, record.type_flags().into());
    out.extend_from_slice(b" t=");
    write_fid(record.target(), out);
    if let Some(jobid) = record.jobid()
        && !jobid.is_empty()
    {
        out.extend_from_slice(b" j=");
        out.extend_from_slice(jobid);
    }
    push_extra(out, record);
    if !record.parent().is_zero() {
        out.extend_from_slice(b" p=");
        write_fid(record.parent(), out);
    }
    push_names(out, record);
    out.push(b'\n');
}

/// Appends `[0x200000402:0x1a:0x0]`; a zero sequence is a plain `0` (see [`Fid`]).
pub fn write_fid(fid: Fid, out: &mut Vec<u8>) {
    out.extend_from_slice(if fid.seq == 0 { b"[" } else { b"[0x" });
    push_hex(out, fid.seq);
    out.extend_from_slice(b":0x");
    push_hex(out, fid.oid.into());
    out.extend_from_slice(b":0x");
    push_hex(out, fid.ver.into());
    out.push(b']');
}

/// Number and name glued together: `%02d%-5s` of an `int`.
fn push_type(out: &mut Vec<u8>, rec_type: RecordType) {
    let number = i64::from(rec_type.0.cast_signed());
    if number < 0 {
        out.push(b'-');
        push_dec(out, number.unsigned_abs());
    } else {
        push_dec_padded(out, number.unsigned_abs(), 2);
    }
    let name = rec_type.name().unwrap_or("(null)");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&b"     "[name.len().min(5)..]);
}

/// What stands behind the extra flags.
fn push_extra(out: &mut Vec<u8>, record: &Record<'_>) {
    let Some(raw) = record.extra_flags() else { return };
    let mut known = raw & CLFE_SUPPORTED;
    if known & CLFE_NID == 0 {
        known &= !CLFE_NID_BE; // says something about a NID that is not there
    }
    out.extend_from_slice(b" ef=0x");
    push_hex(out, known);
    if let (Some(uid), Some(gid)) = (record.uid(), record.gid()) {
        out.extend_from_slice(b" u=");
        push_dec(out, uid);
        out.push(b':');
        push_dec(out, gid);
    }
    if let Some(nid) = record.nid() {
        out.extend_from_slice(b" nid=");
        nid.write_text(out);
    }
    if let Some(mode) = record.open_flags() {
        let letters: &[u8] =
            match (mode & MODE_EXEC != 0, mode & MODE_READ != 0, mode & MODE_WRITES != 0) {
                (true, ..) => b" m=--x",
                (false, true, true) => b" m=rw-",
                (false, true, false) => b" m=r--",
                (false, false, true) => b" m=-w-",
                (false, false, false) => b"",
            };
        out.extend_from_slice(letters);
    }
    if let Some(xattr) = record.xattr()
        && !xattr.is_empty()
    {
        out.extend_from_slice(b" x=");
        out.extend_from_slice(xattr);
    }
}

/// The name, and of a rename where it came from.
fn push_names(out: &mut Vec<u8>, record: &Record<'_>) {
    let names = record.names();
    if !names.is_empty() {
        out.push(b' ');
        out.extend_from_slice(until_nul(names));
    }
    let (Some(source), Some(source_parent)) = (record.source(), record.source_parent()) else {
        return;
    };
    if source.is_zero() {
        return;
    }
    out.extend_from_slice(b" s=");
    write_fid(source, out);
    out.extend_from_slice(b" sp=");
    write_fid(source_parent, out);
    out.push(b' ');
    // `lfs` looks for the NUL in as many bytes as a name may have, and takes what comes then.
    let target_bytes = names.iter().take(NAME_MAX + 1).position(|&b| b == 0);
    let source_at = target_bytes.unwrap_or(NAME_MAX + 1) + 1;
    out.extend_from_slice(until_nul(names.get(source_at..).unwrap_or_default()));
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&b| b == 0).next().unwrap_or_default()
}

/// A moment in the proleptic Gregorian calendar, UTC: what `gmtime` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UtcTime {
    /// From 1970 on; a record's 34 bits of seconds end in 2514.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
}

impl UtcTime {
    /// The moment so many seconds after 1970. Record times have 34 bits; what does not fit into
    /// 35 becomes the last moment that does.
    pub fn from_seconds(seconds: u64) -> Self {
        let seconds = seconds.min((1 << 35) - 1);
        // 35 bits of seconds are less than 400,000 days.
        let days = u32::try_from(seconds / 86_400).unwrap_or(0);
        let of_day = u32::try_from(seconds % 86_400).unwrap_or(0);
        // Years that begin on 1 March have their leap day at the end; 400 of them repeat.
        // Day 0 of that count is 1 March of the year 0, 719,468 days before 1970.
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        // Without the leap days at the end of 4, 100 and 400 years, every year has 365 days.
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months of 31, 30, 31, 30, 31 days from March on: 153 days in five months.
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: era * 400 + year_of_era + u32::from(month <= 2),
            month,
            day,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }
}

#[cfg(test)]
mod tests;
