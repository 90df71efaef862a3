use lcap_ffi::Fid;
use lcap_ffi::hsm_action::ActionCode;
use tempfile::TempDir;

use super::*;
use crate::actions::upstream::JournalUpstream;
use crate::source::{ChangelogSource, ReadOutcome, Upstream as _};

fn fields(rec: u32, cookie: u64, status: StatusCode) -> ActionFields<'static> {
    ActionFields {
        slot: Slot { cat: 1, rec },
        cookie,
        fid: Fid { seq: 0x2_0000_0402, oid: rec, ver: 0 },
        action: ActionCode::ARCHIVE,
        status,
        data: b"tag=m",
        data_len: 6,
        ..ActionFields::default()
    }
}

fn draft(kind: EventKind, rec: u32, status: StatusCode) -> Draft<'static> {
    let (source, time) = (EventSource::Upcall, RecordTime::new(1000 + u64::from(rec), 0));
    Draft { kind, source, time, fields: fields(rec, 9, status), line: None }
}

fn new(rec: u32) -> Draft<'static> {
    draft(EventKind::New, rec, StatusCode::WAITING)
}

/// `index kind slot status last-status prev` of each event.
fn show(bytes: &[u8]) -> Vec<String> {
    let events = records(bytes).map(|record| {
        let record = record.unwrap();
        let event = HsmActionEvent::parse(&record).unwrap();
        let mark = if event.is_snapshot { "*" } else { "" };
        format!(
            "{}{mark} {} {} {} {} {}",
            event.index,
            event.kind.name(),
            event.fields.slot.rec,
            event.fields.status,
            event.last_status,
            event.prev
        )
    });
    events.collect()
}

fn drain(source: &mut dyn ChangelogSource) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut buf = Vec::with_capacity(crate::source::MIN_READ_BYTES);
        match source.read(&mut buf).unwrap() {
            ReadOutcome::Bytes(_) => all.extend_from_slice(&buf),
            ReadOutcome::Wait { at_end, .. } => {
                assert!(at_end);
                return all;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn log(journal: &Arc<Journal>, from: u64) -> Vec<String> {
    let upstream = JournalUpstream(Arc::clone(journal));
    show(&drain(upstream.open(RecordIndex::new(from)).unwrap().as_mut()))
}

fn state(journal: &Journal) -> Vec<String> {
    let (mut snapshot, mut all) = (journal.snapshot().unwrap(), Vec::new());
    while snapshot.read(100, &mut all).unwrap() {}
    show(&all)
}

fn open(dir: &TempDir) -> Arc<Journal> {
    Arc::new(Journal::open(dir.path(), 1_000_000).unwrap())
}

/// One that was stopped, and goes on when another has taken over, can neither add to the journal nor remove
/// what the other has; what it had told of is there.
#[test]
fn whoever_has_lost_its_lease_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let lease = || {
        let place = crate::lease::files::Files::new(&dir.path().join("state")).unwrap();
        Lease::acquire(Box::new(place), std::time::Duration::from_millis(200), || false)
    };
    let open = |lease: &Lease| {
        Journal::taken_over(&dir.path().join("journal"), 1000, lease.clone()).map(Arc::new)
    };
    let (first_lease, first) = {
        let lease = lease().unwrap().unwrap();
        let journal = open(&lease).unwrap();
        (lease, journal)
    };
    first.append(&[new(1), new(2)]).unwrap();
    let second_lease = lease().unwrap().unwrap(); // the first was not renewed
    assert!(!first_lease.is_held() && second_lease.is_held());
    let second = open(&second_lease).unwrap();
    assert!(first.append(&[new(7)]).is_err());
    second.append(&[new(3)]).unwrap();
    first.clear(RecordIndex::new(2));
    assert!(first.append(&[new(8)]).is_err());
    second_lease.release();
    let third = open(&lease().unwrap().unwrap()).unwrap();
    let want =
        ["1 NEW 1 WAITING UNKNOWN 0", "2 NEW 2 WAITING UNKNOWN 0", "3 NEW 3 WAITING UNKNOWN 0"];
    assert_eq!(log(&second, 1), want);
    assert_eq!(log(&third, 1), want);
}

#[test]
fn events_know_what_was_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir);
    assert_eq!(log(&journal, 1), Vec::<String>::new());
    journal.append(&[new(1), new(2)]).unwrap();
    journal
        .append(&[
            draft(EventKind::Update, 2, StatusCode::STARTED),
            draft(EventKind::Purged, 1, StatusCode::UNKNOWN),
        ])
        .unwrap();
    // What cannot be is made what it must mean.
    journal
        .append(&[
            draft(EventKind::New, 2, StatusCode::FAILED),
            draft(EventKind::Purged, 7, StatusCode::UNKNOWN),
            draft(EventKind::Update, 5, StatusCode::STARTED),
        ])
        .unwrap();
    let events = [
        "1 NEW 1 WAITING UNKNOWN 0",
        "2 NEW 2 WAITING UNKNOWN 0",
        "3 UPDATE 2 STARTED WAITING 2",
        "4 PURGED 1 WAITING WAITING 1",
        "5 UPDATE 2 FAILED STARTED 3",
        "6 NEW 5 STARTED UNKNOWN 0",
    ];
    assert_eq!(log(&journal, 1), events);
    assert_eq!(log(&journal, 5), &events[4..]);
    assert_eq!(log(&journal, 99), Vec::<String>::new());
    let now = ["5* UPDATE 2 FAILED STARTED 3", "6* NEW 5 STARTED UNKNOWN 0"];
    assert_eq!(state(&journal), now);
    assert_eq!(journal.snapshot().unwrap().next_index(), RecordIndex::new(7));

    drop(journal);
    let journal = open(&dir);
    assert_eq!(
        (log(&journal, 1), state(&journal)),
        (events.map(str::to_owned).into(), now.map(str::to_owned).into())
    );
    journal.append(&[new(9)]).unwrap();
    assert_eq!(log(&journal, 7), ["7 NEW 9 WAITING UNKNOWN 0"]);
}

#[test]
fn a_reader_is_woken_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir);
    let upstream = JournalUpstream(Arc::clone(&journal));
    let mut source = upstream.open(RecordIndex::new(1)).unwrap();
    assert!(drain(source.as_mut()).is_empty());
    let mut buf = Vec::with_capacity(1 << 16);
    let ReadOutcome::Wait { on: crate::source::WaitFor::Readable(fd), .. } =
        source.read(&mut buf).unwrap()
    else {
        panic!("no descriptor")
    };
    let zero = Some(std::time::Duration::ZERO);
    assert!(!lcap_ffi::poll::wait_readable(&[fd], zero).unwrap());
    journal.append(&[new(1)]).unwrap();
    assert!(lcap_ffi::poll::wait_readable(&[fd], zero).unwrap());
    assert_eq!(show(&drain(source.as_mut())), ["1 NEW 1 WAITING UNKNOWN 0"]);
    journal.append(&[new(2)]).unwrap();
    assert_eq!(show(&drain(source.as_mut())), ["2 NEW 2 WAITING UNKNOWN 0"]);
}

#[test]
fn a_journal_cut_anywhere_is_what_it_was_at_some_moment() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir);
    let path = journal.segment_path(1);
    let mut moments = vec![(fs::metadata(&path).unwrap().len(), state(&journal))];
    let steps: [&[Draft<'_>]; 4] = [
        &[new(1), new(2)],
        &[draft(EventKind::Update, 1, StatusCode::STARTED)],
        &[draft(EventKind::Purged, 2, StatusCode::UNKNOWN), new(3)],
        &[draft(EventKind::Purged, 1, StatusCode::UNKNOWN)],
    ];
    for step in steps {
        journal.append(step).unwrap();
        moments.push((fs::metadata(&path).unwrap().len(), state(&journal)));
    }
    drop(journal);
    let whole = fs::read(&path).unwrap();
    // Around the ends of frames, and here and there in between.
    let is_end = |at: usize| moments.iter().any(|(size, _)| size.abs_diff(at as u64) <= 1);
    let all = usize::try_from(HEAD_BYTES).unwrap()..=whole.len();
    for end in all.filter(|&at| is_end(at) || at % 53 == 0) {
        fs::write(&path, &whole[..end]).unwrap();
        let journal = open(&dir);
        let want = moments.iter().rev().find(|(size, _)| *size <= end as u64).unwrap();
        assert_eq!(state(&journal), want.1, "cut at {end}");
        // And it goes on from there.
        let next = journal.next_index();
        journal.append(&[new(8)]).unwrap();
        assert_eq!(log(&journal, next.get()).len(), 1);
    }
    for flipped in (usize::try_from(HEAD_BYTES).unwrap()..whole.len()).step_by(31) {
        let mut bytes = whole.clone();
        bytes[flipped] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let have = state(&open(&dir));
        assert!(moments.iter().any(|(_, state)| *state == have), "flipped at {flipped}");
    }
}

#[test]
fn old_segments_go_when_they_are_cleared_or_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(dir.path(), 4000).unwrap());
    let files = || list(dir.path()).unwrap();
    journal.append(&[new(1)]).unwrap(); // stays all the time
    for _ in 0..3 {
        let more: Vec<_> = (2..1002).map(new).collect();
        journal.append(&more).unwrap();
        let gone: Vec<_> =
            (2..1002).map(|rec| draft(EventKind::Purged, rec, StatusCode::UNKNOWN)).collect();
        journal.append(&gone).unwrap();
    }
    // Every append of so many ended in a new segment; 4000 events are kept at least.
    let next = journal.next_index().get();
    assert_eq!(next, 6002);
    let oldest = files()[0];
    assert!(oldest > 1 && next - oldest >= 4000 && next - oldest < 6000, "{oldest}");
    let first = log(&journal, 1)[0].clone();
    assert!(first.starts_with(&format!("{oldest} ")), "{first}");
    assert_eq!(state(&journal), ["1* NEW 1 WAITING UNKNOWN 0"]);

    journal.clear(RecordIndex::new(next - 1));
    assert_eq!(files(), [next]);
    assert_eq!(log(&journal, 1), Vec::<String>::new());
    drop(journal);
    fs::write(dir.path().join("00000000000000009999.tmp"), "half a segment").unwrap();
    let journal = open(&dir);
    assert_eq!(files(), [next]);
    assert_eq!(state(&journal), ["1* NEW 1 WAITING UNKNOWN 0"]);
    journal.append(&[draft(EventKind::Purged, 1, StatusCode::UNKNOWN)]).unwrap();
    assert_eq!(log(&journal, 1), ["6002 PURGED 1 WAITING WAITING 1"]);
}

#[test]
fn what_a_full_disk_refuses_is_as_if_it_had_not_been_tried() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir);
    journal.append(&[new(1)]).unwrap();
    // A limit on the size of files is to a write what a full disk is.
    let before = (log(&journal, 1), state(&journal));
    {
        let mut writing = lock(&journal.writing);
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut writing.file, full);
        drop(writing);
        assert!(journal.append(&[new(2), new(3)]).is_err());
        lock(&journal.writing).file = good;
    }
    assert_eq!((log(&journal, 1), state(&journal)), before);
    journal.append(&[new(2)]).unwrap();
    assert_eq!(log(&journal, 2), ["2 NEW 2 WAITING UNKNOWN 0"]);
    drop(journal);
    assert_eq!(log(&open(&dir), 1).len(), 2);
}
