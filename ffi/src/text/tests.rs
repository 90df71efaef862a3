use proptest::prelude::*;

use super::*;
use crate::record::{records, split_first};
use crate::sample::{Extra, Sample, any_sample, capture, fid, tcp};

fn line(sample: &Sample) -> String {
    let bytes = sample.encode();
    let (record, rest) = split_first(&bytes).unwrap();
    assert!(rest.is_empty());
    let mut out = Vec::new();
    write_line(&record, &mut out);
    String::from_utf8(out).unwrap()
}

/// Lines of 2023-11-14 22:13:20 and after, `touch.1000`-like, by uid 1000.
fn sample(index: u64, rec_type: u32, flags: u16, jobid: &str) -> Sample {
    let extra = Extra { uidgid: Some((1000, 100)), nid: tcp([192, 168, 1, 5]), ..Extra::default() };
    Sample {
        rec_type,
        flags: 0x1000 | flags,
        index,
        seconds: 1_700_000_000,
        target: fid(0x2_0000_0402, 2),
        jobid: Some(jobid.into()),
        extra: Some(extra),
        ..Sample::default()
    }
}

#[test]
fn captures_print_as_lfs_printed_them() {
    for (bin, txt) in [
        ("odd-mdt0.bin", "odd-mdt0.txt"),
        ("odd-mdt1.bin", "odd-mdt1.txt"),
        ("work-mdt0.bin.gz", "work-mdt0.txt.gz"),
    ] {
        let (bytes, want) = (capture(bin), capture(txt));
        let mut have = Vec::new();
        let mut n_records = 0;
        for record in records(&bytes) {
            let at = have.len();
            let record = record.unwrap();
            write_line(&record, &mut have);
            n_records += 1;
            let (have, want) = (&have[at..], want.get(at..have.len()).unwrap_or_default());
            assert_eq!(have, want, "{bin}, {record:?}: {:?}", String::from_utf8_lossy(have));
        }
        assert_eq!(have.len(), want.len(), "{bin}");
        assert!(n_records >= 14, "{bin}");
    }
}

#[test]
fn both_nid_layouts_print_alike_but_for_the_flag() {
    let text = |name: &str| {
        let mut out = Vec::new();
        for record in records(&capture(name)) {
            write_line(&record.unwrap(), &mut out);
        }
        String::from_utf8(out).unwrap()
    };
    let (on, off) = (text("nidbe-on.bin"), text("nidbe-off.bin"));
    assert_eq!(on.lines().count(), 6);
    assert_ne!(on, off);
    assert_eq!(on.replace(" ef=0x1", " ef=0x"), off);
}

/// What the real library and the format of `lfs` gave for such records.
#[test]
fn records_of_every_shape_print_as_lfs_does() {
    let dir = fid(0x2_0000_0402, 1);
    let root = fid(0x2_0000_0007, 1);
    let with = |mut sample: Sample, change: fn(&mut Extra)| {
        change(sample.extra.as_mut().unwrap());
        sample
    };
    let cases = [
        (
            Sample {
                target: dir,
                parent: root,
                nanoseconds: 1,
                names: b"dir".into(),
                ..sample(1, 2, 0, "mkdir.1000")
            },
            "1 02MKDIR 22:13:20.000000001 2023.11.14 0x0 t=[0x200000402:0x1:0x0] j=mkdir.1000 ef=0x13 u=1000:100 nid=192.168.1.5@tcp p=[0x200000007:0x1:0x0] dir",
        ),
        (
            with(
                Sample {
                    seconds: 1_700_000_001,
                    nanoseconds: 5,
                    ..sample(3, 10, 0x242, "dd.1000")
                },
                |extra| extra.open_flags = Some(0x1242),
            ),
            "3 10OPEN  22:13:21.000000005 2023.11.14 0x242 t=[0x200000402:0x2:0x0] j=dd.1000 ef=0x17 u=1000:100 nid=192.168.1.5@tcp m=-w-",
        ),
        (
            Sample { seconds: 1_700_000_002, parent: dir, ..sample(5, 14, 0x14, "chmod.1000") },
            "5 14SATTR 22:13:22.000000000 2023.11.14 0x14 t=[0x200000402:0x2:0x0] j=chmod.1000 ef=0x13 u=1000:100 nid=192.168.1.5@tcp p=[0x200000402:0x1:0x0]",
        ),
        (
            with(sample(6, 15, 0, "setfattr.1000"), |extra| {
                extra.xattr = Some(b"user.comment".into())
            }),
            "6 15XATTR 22:13:20.000000000 2023.11.14 0x0 t=[0x200000402:0x2:0x0] j=setfattr.1000 ef=0x1b u=1000:100 nid=192.168.1.5@tcp x=user.comment",
        ),
        (
            Sample {
                flags: 3,
                target: fid(0x2_0000_0402, 9),
                parent: dir,
                rename: Some((fid(0x2_0000_0402, 2), root)),
                names: b"victim\0new_name".into(),
                ..sample(8, 8, 3, "mv.1000")
            },
            "8 08RENME 22:13:20.000000000 2023.11.14 0x3 t=[0x200000402:0x9:0x0] j=mv.1000 ef=0x13 u=1000:100 nid=192.168.1.5@tcp p=[0x200000402:0x1:0x0] victim s=[0x200000402:0x2:0x0] sp=[0x200000007:0x1:0x0] new_name",
        ),
        (
            Sample {
                target: Fid::default(),
                rename: Some((Fid::default(), root)),
                names: b"a\0b".into(),
                jobid: None,
                extra: None,
                ..sample(9, 8, 0, "")
            },
            "9 08RENME 22:13:20.000000000 2023.11.14 0x0 t=[0:0x0:0x0] a",
        ),
        (
            Sample { jobid: None, extra: None, ..sample(15, 22, 0, "") },
            "15 22RESYNC 22:13:20.000000000 2023.11.14 0x0 t=[0x200000402:0x2:0x0]",
        ),
        (
            Sample { jobid: Some(vec![]), extra: Some(Extra::default()), ..sample(16, 25, 0, "") },
            "16 25(null) 22:13:20.000000000 2023.11.14 0x0 t=[0x200000402:0x2:0x0] ef=0x0",
        ),
        (
            Sample { jobid: None, extra: None, ..sample(u64::MAX, u32::MAX, 0xfff, "") },
            "18446744073709551615 -1(null) 22:13:20.000000000 2023.11.14 0xfff t=[0x200000402:0x2:0x0]",
        ),
        (
            Sample {
                seconds: (1 << 34) - 1,
                nanoseconds: (1 << 30) - 1,
                jobid: None,
                extra: None,
                ..sample(17, 0, 0, "")
            },
            "17 00MARK  01:53:03.1073741823 2514.05.30 0x0 t=[0x200000402:0x2:0x0]",
        ),
    ];
    for (sample, want) in cases {
        assert_eq!(line(&sample), format!("{want}\n"));
    }
}

#[test]
fn open_modes_print_as_three_letters() {
    let cases = [
        (0, ""),
        (0x1, " m=r--"),
        (0x2, " m=-w-"),
        (0x3, " m=rw-"),
        (0x4, " m=--x"),
        (0x7, " m=--x"),
        (0x40, ""),
        (0x200, " m=-w-"),
        (0x401, " m=rw-"),
        (0xd004, " m=--x"),
        (0xf000, ""),
    ];
    for (open_flags, want) in cases {
        let mut record = sample(1, 10, 0, "j");
        record.extra = Some(Extra { open_flags: Some(open_flags), ..Extra::default() });
        let line = line(&record);
        assert_eq!(line.split_once("ef=0x4").unwrap().1, format!("{want}\n"), "{open_flags:#x}");
    }
}

#[test]
fn what_the_library_does_not_know_is_not_printed() {
    let mut record = sample(1, 1, 0, "j");
    record.extra = Some(Extra { unknown_bits: 0x20, ..Extra::default() });
    assert!(line(&record).ends_with(" ef=0x0\n"));
    record.extra = Some(Extra { unknown_bits: 0x10, ..Extra::default() });
    assert!(line(&record).ends_with(" ef=0x0\n"), "a layout without a NID");
}

#[test]
fn lying_names_end_where_lfs_ends_them() {
    let long = vec![b'n'; 300];
    let cases: [(bool, &[u8], &str); 6] = [
        (false, b"plain\0tail", " plain"),
        (false, b"\0", " "),
        (true, b"only", " only s=[0x1:0x1:0x0] sp=[0x1:0x2:0x0] "),
        (true, b"", " s=[0x1:0x1:0x0] sp=[0x1:0x2:0x0] "),
        (true, b"a\0b\0c", " a s=[0x1:0x1:0x0] sp=[0x1:0x2:0x0] b"),
        (
            true,
            &long,
            &format!(" {} s=[0x1:0x1:0x0] sp=[0x1:0x2:0x0] {}", "n".repeat(300), "n".repeat(43)),
        ),
    ];
    for (rename, names, want) in cases {
        let rename = rename.then_some((fid(1, 1), fid(1, 2)));
        let record =
            Sample { rename, jobid: None, extra: None, names: names.into(), ..sample(1, 8, 0, "") };
        let line = line(&record);
        assert_eq!(line.split_once("t=[0x200000402:0x2:0x0]").unwrap().1, format!("{want}\n"));
    }
}

#[test]
fn times_are_gmtime_s() {
    let civil = |seconds| {
        let t = UtcTime::from_seconds(seconds);
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
            t.year, t.month, t.day, t.hour, t.minute, t.second
        )
    };
    for (seconds, want) in [
        (0, "1970-01-01 00:00:00"),
        (68_169_599, "1972-02-28 23:59:59"),
        (68_169_600, "1972-02-29 00:00:00"),
        (951_782_400, "2000-02-29 00:00:00"),
        (2_147_483_648, "2038-01-19 03:14:08"),
        (4_107_542_399, "2100-02-28 23:59:59"),
        (4_107_542_400, "2100-03-01 00:00:00"),
        ((1 << 34) - 1, "2514-05-30 01:53:03"),
        (u64::MAX, "3058-10-26 03:46:07"),
    ] {
        assert_eq!(civil(seconds), want, "{seconds}");
    }
}

/// Counts every day by the rule that schools teach.
#[test]
fn no_day_is_left_out() {
    let (mut year, mut month, mut day) = (1970, 1, 1);
    for n in 0..(1u64 << 34) / 86_400 {
        let have = UtcTime::from_seconds(n * 86_400 + n % 86_400);
        assert_eq!((have.year, have.month, have.day), (year, month, day));
        let of_day = u64::from(have.hour * 3_600 + have.minute * 60 + have.second);
        assert_eq!(of_day, n % 86_400);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        day += 1;
        if day > days {
            (day, month) = (1, month + 1);
        }
        if month > 12 {
            (month, year) = (1, year + 1);
        }
    }
    assert_eq!(year, 2514);
}

proptest! {
    #[test]
    fn every_record_prints_as_one_line_of_its_parts(sample in any_sample()) {
        let bytes = sample.encode();
        let (record, _) = split_first(&bytes).unwrap();
        let mut out = Vec::new();
        write_line(&record, &mut out);
        let line = String::from_utf8_lossy(&out).into_owned();
        let index = format!("{} ", sample.index);
        prop_assert!(line.starts_with(&index), "{}", line);
        prop_assert!(line.ends_with('\n'));
        let target = format!(" t={}", sample.target);
        prop_assert!(line.contains(&target), "{}", line);
    }
}
