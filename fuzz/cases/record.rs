//! Any bytes as packed records: parsed, printed, reshaped, joined.

use lcap_ffi::record::{records, split_first, split_len};
use lcap_ffi::repack::{RenameJoiner, Shape, repack_as, repack_verbatim};
use lcap_ffi::text;

pub(crate) fn run(bytes: &[u8]) {
    let mut joiner = RenameJoiner::new();
    let mut joined = Vec::new();
    let (mut n_bytes, mut n_held) = (0, 0);
    for record in records(bytes) {
        let Ok(record) = record else { break };
        let raw = record.as_bytes();
        assert_eq!(split_len(raw), Ok((raw.len(), record.index())));
        n_bytes += raw.len();

        let mut line = Vec::new();
        text::write_line(&record, &mut line);
        assert_eq!(line.last(), Some(&b'\n'));

        // What the library returns for "everything" prints alike, but for where it must cut.
        let mut all = Vec::new();
        repack_as(Shape::Variable, &record, 0xf000, 0x1f, &mut all);
        let mut again = Vec::new();
        text::write_line(&split_first(&all).expect("a record").0, &mut again);
        assert_eq!(line, again);

        let flags = record.flags() ^ u16::try_from(record.index().get() & 0xffff).unwrap_or(0);
        for shape in [Shape::Variable, Shape::Fixed] {
            let mut some = Vec::new();
            repack_as(shape, &record, flags, record.index().get(), &mut some);
            let (_, rest) = split_first(&some).expect("a record");
            assert!(rest.is_empty());
        }
        let mut some = Vec::new();
        repack_verbatim(&record, flags, 0x0f, &mut some);
        assert!(split_first(&some).expect("a record").1.is_empty());

        let mut json = Vec::new();
        lcap_wire::json::write_line("lustre-MDT0000", &record, &mut json);
        assert_eq!(json.iter().filter(|&&b| b == b'\n').count(), 1);

        joiner.push(&record, &mut joined);
        n_held += 1;
    }
    joiner.flush(&mut joined);
    let mut n_joined = 0;
    for record in records(&joined) {
        record.expect("a record");
        n_joined += 1;
    }
    assert!(n_joined <= n_held);
    assert!(n_bytes <= bytes.len());
}
