//! `hsm/active_requests`: what an MDT has sent to an agent and waits for.
//!
//! How requests come back that the last lcapd had received and not written down, and those that
//! another coordinator left. Two forms: the file itself has a request a line; `lctl get_param` puts
//! `mdt.NAME.hsm.active_requests=` before the first one, on the same line if there is but one.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lcap_ffi::hsm_action::line::{ActionLine, MAX_DATA_BYTES};

use super::request::{Kind, Request, Source};

/// A line that is a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    /// The request; of its user data as much as Lustre shows, which is five bytes.
    pub request: Request,
    /// A cancel is pending.
    pub canceled: bool,
}

/// Every line: a request, or the number of a line that is none, counted from 1.
pub fn parse<'a>(
    text: &'a [u8],
    mdt: &'a Arc<str>,
) -> impl Iterator<Item = Result<Active, usize>> + use<'a> {
    let lines = text.split(|&b| b == b'\n').enumerate();
    lines.filter_map(move |(at, line)| {
        let line = without_parameter(line).trim_ascii();
        (!line.is_empty()).then(|| parse_line(line, mdt).ok_or(at + 1))
    })
}

/// Without `mdt.….active_requests=`.
fn without_parameter(line: &[u8]) -> &[u8] {
    if !line.starts_with(b"mdt.") {
        return line;
    }
    let end = line.iter().position(|&b| b == b'=');
    end.and_then(|end| line.get(end + 1..)).unwrap_or_default()
}

fn parse_line(bare: &[u8], mdt: &Arc<str>) -> Option<Active> {
    // A line of hsm/actions, but for the number of its entry.
    let whole = [b"idx=0/0 ", bare].concat();
    let line = ActionLine::parse(&whole).ok()?;
    let mut room = [0; MAX_DATA_BYTES];
    let fields = line.fields(&mut room);
    let kind = Kind::from_number(fields.action.0.into()).filter(|_| fields.cookie != 0)?;
    let source = Source::Coordinator { cookie: fields.cookie };
    // Its data FID is a volatile file of whoever began a restore; who begins it again makes another.
    let mut request = Request::new(source, Arc::clone(mdt), kind, fields.fid, fields.archive_id);
    request.flags = fields.flags;
    request.data = fields.data[..].into();
    let canceled = bare.split(u8::is_ascii_whitespace).any(|word| word == b"canceled=1");
    Some(Active { request, canceled })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "fid=[0x200000402:0x23:0x0] dfid=[0x200000402:0x2c:0x0] \
        compound/cookie=0x0/0x6b023308 action=RESTORE archive#=1 flags=0x4 \
        extent=0x0-0xffffffffffffffff gid=0x0 data=[7461673D67] canceled=0 uuid=b9e88835 done=0";

    #[test]
    fn both_forms_are_read_and_bad_lines_are_numbered() {
        let mdt: Arc<str> = "lustre-MDTffff".into();
        let one_line = format!(
            "mdt.lustre-MDT0000.hsm.active_requests={LINE}\n\
            mdt.lustre-MDT0001.hsm.active_requests=\n"
        );
        let cancelled = LINE.replace("canceled=0", "canceled=1").replace("RESTORE", "ARCHIVE");
        let bad = LINE.replace("RESTORE", "NOOP");
        let many = format!("mdt.lustre-MDT0000.hsm.active_requests=\n{LINE}\n{bad}\n{cancelled}");
        let one: Vec<_> = parse(one_line.as_bytes(), &mdt).collect();
        let [Ok(active)] = &one[..] else { panic!("{one:?}") };
        assert_eq!((active.request.kind, active.canceled), (Kind::Restore, false));
        assert_eq!(active.request.cookie(), Some(0x6b02_3308));
        assert_eq!((active.request.fid.oid, active.request.dfid.oid), (0x23, 0x23));
        assert_eq!((&*active.request.data, active.request.flags), (&b"tag=g"[..], 4));
        let all: Vec<_> = parse(many.as_bytes(), &mdt).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[1], Err(3));
        let Ok(last) = &all[2] else { panic!() };
        assert_eq!((last.request.kind, last.canceled), (Kind::Archive, true));
        assert_eq!(parse(b"\n\n", &mdt).count(), 0);
    }
}
