use proptest::prelude::*;

use super::*;
use crate::record::records;
use crate::sample::{Extra, Sample, any_name, any_sample, capture, fid, tcp};
use crate::text;

const ALL: (u16, u64) = (0xf000, 0x1f);

fn repacked(shape: Shape, bytes: &[u8], (flags, extra): (u16, u64)) -> Vec<u8> {
    let (record, rest) = split_first(bytes).unwrap();
    assert!(rest.is_empty());
    let mut out = vec![0xee];
    repack_as(shape, &record, flags, extra, &mut out);
    assert_eq!(out.remove(0), 0xee, "appends");
    out
}

/// Flag word, extra flags (0 without) and bytes before the name.
fn shape_of(bytes: &[u8]) -> (u16, u64, usize) {
    let (record, rest) = split_first(bytes).unwrap();
    assert!(rest.is_empty());
    let names = record.names().len();
    (record.flags(), record.extra_flags().unwrap_or(0), bytes.len() - names)
}

/// A record as a server of today writes it.
fn raw(rec_type: u32, flags: u16) -> Sample {
    Sample {
        rec_type,
        flags,
        index: 7,
        target: fid(0x2_0000_0402, 2),
        jobid: Some(b"job".into()),
        extra: Some(Extra {
            uidgid: Some((1000, 100)),
            nid: tcp([192, 168, 1, 5]),
            ..Extra::default()
        }),
        names: b"name".into(),
        ..Sample::default()
    }
}

fn with(mut sample: Sample, change: impl Fn(&mut Extra)) -> Sample {
    change(sample.extra.as_mut().unwrap());
    sample
}

/// What the libraries of 2.12.0, 2.15.0 and 2.17.57 were seen to do.
#[test]
fn shapes_are_those_of_the_libraries() {
    let bare = Sample { jobid: None, extra: None, ..raw(1, 0x1000) };
    let rename =
        Sample { rename: Some((fid(1, 2), fid(1, 3))), names: b"new\0old".into(), ..raw(8, 0) };
    let bare_rename = Sample { jobid: None, extra: None, ..rename.clone() };
    let open = with(raw(10, 0x1242), |extra| extra.open_flags = Some(0x242));
    let xattr = with(raw(15, 0x1000), |extra| extra.xattr = Some(b"user.a".into()));
    let nothing = (0x3000, 0);
    let fixed = Shape::Fixed;
    let variable = Shape::Variable;
    let cases = [
        ("CREAT", &raw(1, 0x1000), variable, ALL, (0xd000, 0x13, 144)),
        ("CREAT", &raw(1, 0x1000), fixed, ALL, (0xf000, 0x0f, 436)),
        ("OPEN", &open, variable, ALL, (0xd242, 0x17, 148)),
        ("OPEN", &open, fixed, ALL, (0xf242, 0x0f, 436)),
        ("XATTR", &xattr, variable, ALL, (0xd000, 0x1b, 400)),
        ("XATTR", &xattr, fixed, ALL, (0xf000, 0x0f, 436)),
        ("RENME", &rename, variable, ALL, (0xf000, 0x13, 176)),
        ("RENME", &rename, fixed, ALL, (0xf000, 0x0f, 436)),
        ("bare", &bare, variable, ALL, (0x1000, 0, 64)),
        ("bare", &bare, fixed, ALL, (0xf000, 0x0f, 436)),
        ("bare, flags 0", &bare, variable, nothing, (0x1000, 0, 64)),
        ("bare, flags 0", &bare, fixed, nothing, (0x3000, 0, 96)),
        ("bare RENME, flags 0", &bare_rename, variable, nothing, (0x3000, 0, 96)),
        ("CREAT, flags 0", &raw(1, 0x1000), variable, nothing, (0x1000, 0, 64)),
        ("CREAT, jobid", &raw(1, 0x1000), variable, (0x7000, 0), (0x5000, 0, 96)),
        ("CREAT, jobid, 2.7 to 2.10", &raw(1, 0x1000), fixed, (0x7000, 0), (0x7000, 0, 128)),
        ("no extra asked for", &raw(1, 0x1000), variable, (0xf000, 0), (0xd000, 0, 104)),
        ("owner only", &raw(1, 0x1000), variable, (0xb000, 0x01), (0x9000, 0x01, 88)),
        ("NID without NID_BE", &raw(1, 0x1000), variable, (0xf000, 0x0f), (0xd000, 0x03, 144)),
        ("NID_BE without NID", &raw(1, 0x1000), variable, (0xf000, 0x11), (0xd000, 0x01, 120)),
        ("extra bits but no extra", &open, variable, (0x7000, 0x1f), (0x5242, 0, 96)),
        ("rename not asked for", &rename, variable, (0x1000, 0), (0x1000, 0, 64)),
        ("version not asked for", &rename, variable, (0x2000, 0), (0x3000, 0, 96)),
    ];
    for (what, sample, shape, wanted, want) in cases {
        let have = repacked(shape, &sample.encode(), wanted);
        assert_eq!(shape_of(&have), want, "{what}, {shape:?}");
        assert!(have.ends_with(&sample.names), "{what}");
    }
}

#[test]
fn callers_see_what_they_asked_for() {
    for (send, extra, want) in [
        (0x00, 0x0, (0x3000, 0)),
        (0x03, 0xf, (0x3000, 0)),
        (0x04, 0x0, (0x7000, 0)),
        (0x08, 0x0, (0xb000, 0)),
        (0x0c, 0xf, (0xf000, 0x0f)),
        (0x1c, 0xf, (0xf000, 0x1f)),
        (0x1c, 0x1, (0xf000, 0x01)),
        (0x18, 0xffff_ffff, (0xb000, 0x1f)),
    ] {
        assert_eq!(wanted(send, extra), want, "{send:#x} {extra:#x}");
    }
}

#[test]
fn unknown_bits_are_dropped() {
    let sample = with(raw(1, 0x1000), |extra| extra.unknown_bits = 0xff00);
    let have = repacked(Shape::Variable, &sample.encode(), (0xffff, u64::MAX));
    assert_eq!(shape_of(&have), (0xd000, 0x13, 144));
}

#[test]
fn what_is_missing_is_zero_in_the_fixed_shape() {
    let bare = Sample { jobid: None, extra: None, ..raw(1, 0x1000) };
    let have = repacked(Shape::Fixed, &bare.encode(), ALL);
    let extra_at = 64 + 32 + 32;
    assert!(have[64..extra_at].iter().all(|&b| b == 0));
    assert_eq!(have[extra_at..extra_at + 8], 0x0f_u64.to_ne_bytes());
    assert!(have[extra_at + 8..436].iter().all(|&b| b == 0));
    assert_eq!(&have[436..], b"name");
}

#[test]
fn names_that_no_file_system_has_are_cut_rather_than_overrun_the_caller() {
    let long = Sample { jobid: None, extra: None, names: vec![b'n'; 888], ..raw(1, 0x1000) };
    let have = repacked(Shape::Fixed, &long.encode(), ALL);
    assert_eq!(have.len(), MAX_RECORD_BYTES);
    assert_eq!(shape_of(&have), (0xf000, 0x0f, 436));
}

/// The same records were read twice, asking for large NIDs and not.
#[test]
fn readers_without_nid_be_get_what_the_server_gives_them() {
    let (on, off) = (capture("nidbe-on.bin"), capture("nidbe-off.bin"));
    let all = |bytes: &[u8], extra| {
        let mut out = Vec::new();
        records(bytes).for_each(|record| repack(&record.unwrap(), 0xf000, extra, &mut out));
        out
    };
    assert_ne!(all(&on, 0x1f), all(&off, 0x1f));
    assert_eq!(all(&on, 0x0f), all(&off, 0x0f));
}

#[test]
fn the_exported_function_leaves_the_nid_alone() {
    let bytes = raw(1, 0x1000).encode();
    let (record, _) = split_first(&bytes).unwrap();
    let mut have = Vec::new();
    repack_verbatim(&record, 0xf000, 0x0f, &mut have);
    assert_eq!(shape_of(&have), (0xd000, 0x03, 144));
    assert_eq!(have[120..144], bytes[120..144]);
    have.clear();
    repack_verbatim(&record, 0xf000, 0x1f, &mut have);
    assert_eq!(have, bytes);
}

#[test]
fn large_ipv6_nids_become_zero_in_the_small_layout() {
    let mut area = [7; 24];
    area[..2].copy_from_slice(&[12, 2]);
    let sample = with(raw(1, 0x1000), |extra| extra.nid = Some((area, true)));
    let have = repacked(Shape::Variable, &sample.encode(), (0xf000, 0x0f));
    assert_eq!(have[120..144], [0; 24]);
}

#[test]
fn captures_print_alike_raw_and_repacked() {
    for name in ["odd-mdt0.bin", "odd-mdt1.bin", "work-mdt0.bin.gz"] {
        for record in records(&capture(name)) {
            let record = record.unwrap();
            let (mut packed, mut have, mut want) = (Vec::new(), Vec::new(), Vec::new());
            repack(&record, 0xf000, 0x1f, &mut packed);
            text::write_line(&split_first(&packed).unwrap().0, &mut have);
            text::write_line(&record, &mut want);
            assert_eq!(have, want);
        }
    }
}

// --- joining

/// Halves as servers before and after 2.1.1 wrote them.
fn halves(index: u64, moved: u32, overwritten: Fid) -> (Sample, Sample) {
    let half = |rec_type, index, target, parent, name: String| Sample {
        rec_type,
        flags: 0x1000,
        index,
        target,
        parent,
        names: name.into_bytes(),
        ..Sample::default()
    };
    let first = half(8, index, fid(1, moved), fid(1, 1), format!("old{moved}"));
    (first, half(9, index + 1, overwritten, fid(1, 2), format!("new{moved}")))
}

fn joined(samples: &[&Sample]) -> (RenameJoiner, Vec<u8>) {
    let (mut joiner, mut out) = (RenameJoiner::new(), Vec::new());
    for sample in samples {
        joiner.push(&split_first(&sample.encode()).unwrap().0, &mut out);
    }
    (joiner, out)
}

fn lines(bytes: &[u8]) -> Vec<String> {
    records(bytes)
        .map(|record| {
            let record = record.unwrap();
            let field = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!(
                "{} {} {:#x} t={} p={} {} s={} sp={} {}",
                record.index(),
                record.rec_type(),
                record.flags(),
                record.target(),
                record.parent(),
                field(record.name()),
                record.source().unwrap_or_default(),
                record.source_parent().unwrap_or_default(),
                field(record.source_name().unwrap_or_default()),
            )
        })
        .collect()
}

const JOINED: &str = "p=[0x1:0x2:0x0] new5 s=[0x1:0x5:0x0] sp=[0x1:0x1:0x0] old5";

#[test]
fn two_halves_become_one_rename() {
    let cases = [
        ("the second half names the moved object", fid(1, 5), 0, "[0:0x0:0x0]"),
        ("the second half names nothing", Fid::default(), 0, "[0:0x0:0x0]"),
        ("it names what was overwritten", fid(1, 9), 1, "[0x1:0x9:0x0]"),
    ];
    for (what, second_target, last, target) in cases {
        let (first, mut second) = halves(10, 5, second_target);
        second.flags |= last;
        let (joiner, out) = joined(&[&first, &second]);
        let want = format!("11 RENME {:#x} t={target} {JOINED}", 0x3000 | last);
        assert_eq!(lines(&out), [want], "{what}");
        assert_eq!(joiner.held_from(), None);
    }
}

#[test]
fn other_records_between_the_halves_go_first() {
    let (first, mut second) = halves(10, 5, Fid::default());
    second.index = 12;
    let between = Sample { index: 11, ..raw(1, 0x1000) };
    let (joiner, out) = joined(&[&first, &between]);
    assert_eq!(out, between.encode());
    assert_eq!(joiner.held_from(), Some(RecordIndex::new(10)));
    let (joiner, out) = joined(&[&first, &between, &second]);
    assert_eq!(lines(&out)[1], format!("12 RENME 0x3000 t=[0:0x0:0x0] {JOINED}"));
    assert_eq!(joiner.held_from(), None);
}

#[test]
fn two_renames_at_once_find_their_own_halves() {
    let (first5, second5) = halves(10, 5, fid(1, 5));
    let (first6, second6) = halves(20, 6, fid(1, 6));
    let (_, out) = joined(&[&first5, &first6, &second6, &second5]);
    let names: Vec<_> = records(&out)
        .map(|record| (record.unwrap().name(), record.unwrap().source_name()))
        .collect();
    assert_eq!(names, [(&b"new6"[..], Some(&b"old6"[..])), (b"new5", Some(b"old5"))]);
}

#[test]
fn halves_without_a_partner_are_passed_on_as_they_are() {
    let (first, second) = halves(10, 5, Fid::default());
    let (_, out) = joined(&[&second]);
    assert_eq!(out, second.encode());
    let (mut joiner, mut out) = joined(&[&first]);
    assert_eq!(out, []);
    joiner.flush(&mut out);
    assert_eq!(out, first.encode());
    assert_eq!(joiner.held_from(), None);
    let other = raw(1, 0x1000);
    let mut many = vec![&first];
    many.extend(std::iter::repeat_n(&other, usize::try_from(PATIENCE).unwrap() + 1));
    let (joiner, out) = joined(&many);
    assert_eq!(records(&out).count(), many.len(), "patience has an end");
    assert_eq!(joiner.held_from(), None);
}

#[test]
fn halves_that_a_library_has_stretched_are_joined_too() {
    let (first, second) = halves(10, 5, Fid::default());
    let stretch = |sample: &Sample| repacked(Shape::Fixed, &sample.encode(), (0x7000, 0));
    let (mut joiner, mut out) = (RenameJoiner::new(), Vec::new());
    for bytes in [stretch(&first), stretch(&second)] {
        joiner.push(&split_first(&bytes).unwrap().0, &mut out);
    }
    assert_eq!(lines(&out), [format!("11 RENME 0x7000 t=[0:0x0:0x0] {JOINED}")]);
}

#[test]
fn records_of_today_s_servers_go_through_untouched() {
    for name in ["odd-mdt0.bin", "odd-mdt1.bin", "work-mdt0.bin.gz"] {
        let bytes = capture(name);
        let (mut joiner, mut out) = (RenameJoiner::new(), Vec::new());
        records(&bytes).for_each(|record| joiner.push(&record.unwrap(), &mut out));
        assert!(out == bytes, "{name}");
    }
}

proptest! {
    #[test]
    fn wanting_everything_that_is_known_changes_nothing_but_the_version_bit(mut sample in any_sample()) {
        if let Some(extra) = &mut sample.extra {
            extra.unknown_bits = 0;
        }
        let mut want = sample.encode();
        want[3] |= if cfg!(target_endian = "little") { 0x10 } else { 0 };
        prop_assert_eq!(repacked(Shape::Variable, &sample.encode(), ALL), want);
    }

    #[test]
    fn what_is_kept_stays_the_same(sample in any_sample(), flags: u16, extra: u64, fixed: bool) {
        let bytes = sample.encode();
        let shape = if fixed { Shape::Fixed } else { Shape::Variable };
        let have = repacked(shape, &bytes, (flags, extra));
        let (have, rest) = split_first(&have).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(have.index().get(), sample.index);
        prop_assert_eq!(have.target(), sample.target);
        prop_assert_eq!(have.parent(), sample.parent);
        prop_assert_eq!(have.type_flags(), sample.flags & 0xfff);
        prop_assert_eq!(have.names(), &sample.names[..]);
        let (record, _) = split_first(&bytes).unwrap();
        if flags & CLF_JOBID != 0 && sample.jobid.is_some() {
            prop_assert_eq!(have.jobid(), record.jobid());
        }
        if flags & CLF_EXTRA_FLAGS != 0 && extra & CLFE_UIDGID != 0 && record.uid().is_some() {
            prop_assert_eq!((have.uid(), have.gid()), (record.uid(), record.gid()));
        }
        if flags & CLF_EXTRA_FLAGS != 0 && extra & CLFE_XATTR != 0 && record.xattr().is_some() {
            prop_assert_eq!(have.xattr(), record.xattr());
        }
        let again = repacked(shape, have.as_bytes(), (flags, extra));
        prop_assert_eq!(&again[..], have.as_bytes(), "twice is once");
    }

    /// Pairs of one thread each: a second half follows its first one, in the same order.
    #[test]
    fn every_pair_is_joined_once(
        others in proptest::collection::vec((any_sample(), 0usize..4), 0..20),
        names in proptest::collection::vec((any_name(), any_name()), 1..10),
        overwrites: bool,
    ) {
        let mut samples = Vec::new();
        let mut seconds = VecDeque::new();
        for (n, (new, old)) in (1u32..).zip(&names) {
            let gone = if overwrites { fid(3, n) } else { Fid::default() };
            let (mut first, mut second) = halves(0, n, gone);
            (first.names, second.names) = (old.clone(), new.clone());
            samples.push(first);
            seconds.push_back(second);
            for (other, at) in &others {
                if usize::try_from(n).unwrap() % 4 == *at {
                    let rec_type = if matches!(other.rec_type, 8 | 9) { 1 } else { other.rec_type };
                    samples.push(Sample { rec_type, ..other.clone() });
                }
            }
            if n % 3 != 1 {
                samples.extend(seconds.pop_front());
            }
        }
        samples.extend(seconds);
        let (joiner, out) = joined(&samples.iter().collect::<Vec<_>>());
        prop_assert_eq!(joiner.held_from(), None);
        let renames: Vec<_> = records(&out)
            .map(Result::unwrap)
            .filter(|record| record.rec_type() == RecordType::RENAME)
            .map(|record| (record.name().to_vec(), record.source_name().unwrap().to_vec()))
            .collect();
        prop_assert_eq!(renames, names);
        let others_in = samples.iter().filter(|sample| !matches!(sample.rec_type, 8 | 9));
        let others_out = records(&out).map(Result::unwrap).filter(|record| record.rec_type() != RecordType::RENAME);
        prop_assert!(others_in.map(Sample::encode).eq(others_out.map(|record| record.as_bytes().to_vec())));
    }
}
