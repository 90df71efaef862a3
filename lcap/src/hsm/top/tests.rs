use lcap_ffi::hsm_action::{EventKind, Slot};

use super::super::watch::Event;
use super::*;

fn event(kind: EventKind, rec: u32, action: &str, status: &str) -> News {
    News::Event(Event {
        mdt: "elm-MDT0000".into(),
        kind,
        slot: Some(Slot { cat: 1, rec }),
        key: format!("0x1:{rec:#x}:0x0:{action}"),
        action: action.to_owned(),
        status: status.to_owned(),
        fid: format!("0x1:{rec:#x}:0x0"),
        seconds: Some(1_700_000_000),
        taken_ms: 1_700_000_000_000,
        id: "1-1".to_owned(),
        json: String::new(),
    })
}

fn top(events: impl IntoIterator<Item = News>) -> Top {
    let mut top = Top::new("nowhere".to_owned(), Duration::from_secs(2));
    for news in events {
        top.counts.take(news);
    }
    top
}

fn table(top: &Top) -> Vec<(String, u64, i64)> {
    let text = |row: &&TableRow| format!("{} {}", row.row.action, row.row.status);
    top.rows().iter().map(|row| (text(row), row.count, row.diff)).collect()
}

#[test]
fn rows_count_what_is_live_and_differences_are_since_the_frame_before() {
    use EventKind::{New, Purged, Update};
    let mut top = top([
        event(New, 1, "ARCHIVE", "WAITING"),
        event(New, 2, "ARCHIVE", "WAITING"),
        event(New, 3, "RESTORE", "STARTED"),
    ]);
    let start = Instant::now();
    top.tick(start);
    let row = |text: &str, count, diff| (text.to_owned(), count, diff);
    assert_eq!(table(&top), [row("ARCHIVE WAITING", 2, 2), row("RESTORE STARTED", 1, 1)]);
    for news in [
        event(Update, 1, "ARCHIVE", "STARTED"),
        event(Update, 3, "RESTORE", "SUCCEED"),
        event(Purged, 3, "RESTORE", "PURGED"),
        News::Malformed,
    ] {
        top.counts.take(news);
    }
    top.tick(start + Duration::from_secs(2));
    let want = [
        row("ARCHIVE STARTED", 1, 1),
        row("ARCHIVE WAITING", 1, -1),
        row("RESTORE STARTED", 0, -1),
    ];
    assert_eq!(table(&top), want);
    assert!((top.rows()[0].rate - 0.5).abs() < 1e-9);
    assert_eq!((top.counts.n_live(), top.counts.n_events, top.counts.malformed), (2, 6, 1));
    // An update that repeats the state, as a sink writes them to be able to trim, enters nothing.
    top.counts.take(event(Update, 1, "ARCHIVE", "STARTED"));
    top.tick(start + Duration::from_secs(4));
    assert_eq!(table(&top), [row("ARCHIVE STARTED", 1, 0), row("ARCHIVE WAITING", 1, 0)]);
    assert!(top.rows()[0].rate.abs() < 1e-9);
}

#[test]
fn keys_filter_and_sort() {
    use EventKind::New;
    let mut top = top([
        event(New, 1, "ARCHIVE", "WAITING"),
        event(New, 2, "RESTORE", "WAITING"),
        event(New, 3, "RESTORE", "WAITING"),
    ]);
    top.tick(Instant::now());
    let actions = |top: &Top| -> Vec<String> {
        top.rows().iter().map(|row| row.row.action.to_string()).collect()
    };
    assert_eq!(actions(&top), ["ARCHIVE", "RESTORE"]);
    top.key(KeyCode::Char('s'));
    assert_eq!(actions(&top), ["RESTORE", "ARCHIVE"]);
    top.key(KeyCode::Char('a'));
    assert_eq!(actions(&top), ["ARCHIVE"]);
    top.key(KeyCode::Char('a'));
    assert_eq!(actions(&top), ["RESTORE"]);
    top.key(KeyCode::Char('a'));
    assert_eq!(actions(&top), ["RESTORE", "ARCHIVE"]);
    assert!(top.key(KeyCode::Char('q')));
}

#[test]
fn a_purge_without_a_slot_finds_its_action_by_key() {
    let purge = News::Event(Event {
        slot: None,
        ..match event(EventKind::Purged, 1, "ARCHIVE", "PURGED") {
            News::Event(event) => event,
            _ => unreachable!(),
        }
    });
    let top = top([event(EventKind::New, 1, "ARCHIVE", "WAITING"), purge]);
    assert_eq!(top.counts.n_live(), 0);
}

#[test]
fn the_frame_shows_counts_and_who_waits() {
    let mut top = top([event(EventKind::New, 7, "ARCHIVE", "WAITING")]);
    top.tick(Instant::now());
    let text = screen::as_text(90, 12, |frame| top.draw(frame, false)).unwrap();
    assert!(text.contains("live 1  events 1"), "{text}");
    let row = text.lines().find(|line| line.starts_with(" elm-MDT0000"));
    assert!(
        row.is_some_and(|row| row.contains("ARCHIVE  WAITING             1        +1")),
        "{text}"
    );
    assert!(text.contains("elm-MDT0000  ARCHIVE  0x1:0x7:0x0"), "{text}");
    top.key(KeyCode::Char('h'));
    let text = screen::as_text(90, 20, |frame| top.draw(frame, true)).unwrap();
    assert!(text.contains("since the frame before"), "{text}");
}
