//! Any text as a filter of a client's, then NUL, then records: what is understood prints as what is understood alike.

use lcap_ffi::record::records;
use lcap_filter::Filter;

pub(crate) fn run(bytes: &[u8]) {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (text, bytes) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(filter) = text.parse::<Filter>() else { return };
    let printed = filter.to_string();
    let again: Filter = printed.parse().expect("what we print can be read");
    assert_eq!(again, filter, "{printed}");
    for record in records(bytes).map_while(Result::ok) {
        let passes = filter.matches(&record, "lustre-MDT0000");
        assert_eq!(again.matches(&record, "lustre-MDT0000"), passes);
    }
}
