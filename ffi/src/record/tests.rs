use proptest::prelude::*;

use super::*;
use crate::sample::{Extra, Sample, any_sample, capture};

const CAPTURES: [&str; 5] =
    ["odd-mdt0.bin", "odd-mdt1.bin", "nidbe-on.bin", "nidbe-off.bin", "work-mdt0.bin.gz"];

/// Reads every part of a record, so that a wrong bound would show.
fn touch(record: &Record<'_>) -> String {
    let mut line = Vec::new();
    crate::text::write_line(record, &mut line);
    format!("{record:?} {:?} {line:?}", record.source_name())
}

/// A record as the fields of a [`Sample`], without what stands behind NULs.
fn fields(record: &Record<'_>) -> Sample {
    let extra = record.extra_flags().map(|flags| Extra {
        uidgid: record.uid().zip(record.gid()),
        nid: record.nid.map(|area| (area.try_into().unwrap(), flags & CLFE_NID_BE != 0)),
        open_flags: record.open_flags,
        xattr: record.xattr().map(Into::into),
        unknown_bits: flags & !CLFE_SUPPORTED,
    });
    Sample {
        rec_type: record.rec_type().0,
        flags: record.flags() & (CLF_FLAGMASK | CLF_VERSION),
        index: record.index().get(),
        seconds: record.seconds(),
        nanoseconds: record.nanoseconds(),
        target: record.target(),
        parent: record.parent(),
        rename: record.source().zip(record.source_parent()),
        jobid: record.jobid().map(Into::into),
        extra,
        names: record.names().into(),
    }
}

#[test]
fn captures_are_whole_records_with_growing_indexes() {
    let counts = [106, 14, 6, 6, 40_000];
    for (name, want) in CAPTURES.into_iter().zip(counts) {
        let bytes = capture(name);
        let (mut last, mut n_records, mut n_bytes) = (RecordIndex::ZERO, 0, 0);
        for record in records(&bytes) {
            let record = record.unwrap();
            assert!(record.index() > last, "{name}: {record:?}");
            last = record.index();
            n_records += 1;
            n_bytes += record.as_bytes().len();
            assert!(record.nanoseconds() < 1_000_000_000);
            assert!(record.rec_type().name().is_some());
        }
        assert_eq!((n_records, n_bytes), (want, bytes.len()), "{name}");
    }
}

/// Numbers that the capture's text shows, read by hand from its first lines.
#[test]
fn fields_of_a_captured_record_are_where_they_should_be() {
    let bytes = capture("odd-mdt0.bin");
    let (record, _) = split_first(&bytes).unwrap();
    assert_eq!(record.index().get(), 66_948);
    assert_eq!(record.rec_type(), RecordType::MKDIR);
    assert_eq!(record.target().to_string(), "[0x200000bd1:0x51dc:0x0]");
    assert_eq!(record.parent().to_string(), "[0x200000007:0x1:0x0]");
    assert_eq!(record.jobid(), Some(&b"lfs.0"[..]));
    assert_eq!(record.extra_flags(), Some(0x13));
    assert_eq!((record.uid(), record.gid()), (Some(0), Some(0)));
    assert_eq!(record.nid().unwrap().to_string(), "0@lo");
    assert_eq!(record.name(), b"exotic");
    assert_eq!((record.source(), record.source_name()), (None, None));
    assert_eq!((record.open_flags(), record.xattr()), (None, None));
    assert_eq!(record.as_bytes().len(), 144 + 6);
}

/// Every prefix of every small capture: whole records come out, and the rest is an error.
#[test]
fn every_truncation_is_an_error_that_says_what_is_missing() {
    for name in &CAPTURES[..4] {
        let bytes = capture(name);
        let ends: Vec<usize> = records(&bytes)
            .scan(0, |end, record| {
                *end += record.unwrap().as_bytes().len();
                Some(*end)
            })
            .collect();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|&&end| end <= cut).count();
            let start = whole.checked_sub(1).map_or(0, |last| ends[last]);
            let mut parsed = records(&bytes[..cut]).skip(whole);
            if start == cut {
                assert!(parsed.next().is_none(), "{name} cut at {cut}");
                continue;
            }
            let have = cut - start;
            match parsed.next() {
                Some(Err(RecordError::Short { need, have: said })) => {
                    assert_eq!(said, have, "{name} cut at {cut}");
                    assert!(need > have && start + need <= ends[whole], "{name} cut at {cut}");
                }
                other => panic!("{name} cut at {cut}: {other:?}"),
            }
            assert!(parsed.next().is_none(), "nothing after an error");
            assert!(split_len(&bytes[start..cut]).is_err());
        }
    }
}

/// Every bit of the first records of a capture, flipped: never a panic, never a record that reaches
/// beyond the buffer.
#[test]
fn every_flipped_bit_gives_a_record_or_an_error() {
    let mut bytes = capture("odd-mdt1.bin");
    let mut errors = 0;
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        for record in records(&bytes) {
            match record {
                Ok(record) => assert!(!touch(&record).is_empty()),
                Err(_) => errors += 1,
            }
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(errors > 100, "some flips must be noticed: {errors}");
}

#[test]
fn impossible_sizes_are_refused_before_they_are_believed() {
    let mut bytes = vec![0; 70_000];
    bytes[..2].copy_from_slice(&0xffff_u16.to_ne_bytes());
    assert_eq!(split_len(&bytes), Err(RecordError::TooLong { claimed: 64 + 0xffff }));
    assert!(matches!(split_first(&bytes), Err(RecordError::TooLong { .. })));
    bytes[..2].copy_from_slice(&888_u16.to_ne_bytes());
    assert_eq!(split_len(&bytes).unwrap().0, MAX_RECORD_BYTES);
    bytes[..2].copy_from_slice(&889_u16.to_ne_bytes());
    assert!(matches!(split_len(&bytes), Err(RecordError::TooLong { .. })));
}

#[test]
fn names_of_a_rename_end_at_the_nul() {
    let sample = |names: &[u8]| Sample {
        rename: Some((Fid::default(), Fid::default())),
        names: names.into(),
        ..Sample::default()
    };
    for (names, name, source_name) in [
        ("new\0old", "new", Some("old")),
        ("new\0", "new", Some("")),
        ("new", "new", None),
        ("\0old", "", Some("old")),
    ] {
        let bytes = sample(names.as_bytes()).encode();
        let (record, _) = split_first(&bytes).unwrap();
        assert_eq!(record.name(), name.as_bytes());
        assert_eq!(record.source_name(), source_name.map(str::as_bytes));
    }
    let plain = Sample { names: b"a\0b".into(), ..Sample::default() }.encode();
    let (record, _) = split_first(&plain).unwrap();
    assert_eq!((record.name(), record.source_name()), (&b"a\0b"[..], None));
}

#[test]
fn type_names_are_lustre_s() {
    assert_eq!(RecordType::CREATE.name(), Some("CREAT"));
    assert_eq!(RecordType::DN_OPEN.name(), Some("NOPEN"));
    assert_eq!(RecordType(25).name(), None);
    assert_eq!(RecordType(u32::MAX).name(), None);
    assert_eq!(RecordType::all().count(), 25);
    for rec_type in RecordType::all() {
        let name = rec_type.name().unwrap();
        assert_eq!(RecordType::from_name(&name.to_lowercase()), Some(rec_type));
        assert_eq!(name.len() > 5, rec_type == RecordType::RESYNC);
    }
    assert_eq!(RecordType::from_name("NOSUCH"), None);
}

proptest! {
    #[test]
    fn what_was_encoded_is_what_is_parsed(samples in proptest::collection::vec(any_sample(), 0..8)) {
        let bytes: Vec<u8> = samples.iter().flat_map(Sample::encode).collect();
        let parsed: Vec<_> = records(&bytes).map(|record| fields(&record.unwrap())).collect();
        prop_assert_eq!(parsed, samples);
    }

    #[test]
    fn the_end_is_found_without_parsing(sample in any_sample(), tail in proptest::collection::vec(any::<u8>(), 0..100)) {
        let record = sample.encode();
        let bytes = [&record[..], &tail].concat();
        prop_assert_eq!(split_len(&bytes), Ok((record.len(), RecordIndex::new(sample.index))));
        let (parsed, rest) = split_first(&bytes).unwrap();
        prop_assert_eq!(parsed.as_bytes(), &record[..]);
        prop_assert_eq!(rest, &tail[..]);
    }

    #[test]
    fn open_modes_come_without_format_bits(mode: u32) {
        let extra = Extra { open_flags: Some(mode), ..Extra::default() };
        let bytes = Sample { extra: Some(extra), ..Sample::default() }.encode();
        prop_assert_eq!(split_first(&bytes).unwrap().0.open_flags(), Some(mode & 0xfff));
    }

    #[test]
    fn any_bytes_give_records_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        for record in records(&bytes).flatten() {
            touch(&record);
        }
    }

    /// Small name lengths and any flags: most of these are records.
    #[test]
    fn any_flags_give_records_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 64..2000), name_len in 0u16..300) {
        bytes[..2].copy_from_slice(&name_len.to_ne_bytes());
        match (split_len(&bytes), split_first(&bytes)) {
            (Ok((size, index)), Ok((record, rest))) => {
                prop_assert_eq!(record.as_bytes().len(), size);
                prop_assert_eq!(record.index(), index);
                prop_assert_eq!(rest.len(), bytes.len() - size);
                touch(&record);
            }
            (Err(one), Err(other)) => prop_assert_eq!(one, other),
            (one, other) => prop_assert!(false, "{:?} {:?}", one, other),
        }
    }
}
