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

fn status(done: u64) -> serde_json::Value {
    serde_json::json!({
        "states": {
            "waiting": {"archive": 1_234_567, "restore": 3, "remove": 0},
            "running": {"archive": 12, "restore": 1, "remove": 0},
            "held": {"remove": 2},
        },
        "done_archive": done,
        "failed_archive": 2,
        "waiting_seconds": {"p50": 3.4, "p90": 20.0, "p99": 75.2, "max": 7300.0},
        "locks": [{"kind": "archive", "archive_id": 2, "worker": "m2"}, {}],
        "clients": [
            {"client_id": "127.0.0.1:7", "status": "init", "batches": []},
            {"client_id": "m2", "status": "ready", "current_archive": 8, "done_archive": done,
             "failed_archive": 2},
            {"client_id": "m1", "status": "disconnected", "current_archive": 4,
             "disconnected_timestamp": 1_000_000_000_u64},
        ],
    })
}

#[test]
fn a_frame_of_an_ordinary_terminal_shows_queue_movers_and_actions() {
    let mut top = top([event(EventKind::New, 7, "ARCHIVE", "WAITING")]);
    let mut queue = QueueView::new(Duration::from_secs(2));
    let start = Instant::now();
    queue.take(status(100), start);
    queue.take(status(300), start + Duration::from_secs(2));
    top.queue = Some(queue);
    top.tick(Instant::now());
    let text = screen::as_text(80, 24, |frame| top.draw(frame, true)).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let want = [
        " QUEUE       WAITING DELAYED    HELD RUNNING    DEAD       DONE FAILED   DONE/s",
        " restore           3       0       0       1       0          0      0      0.0",
        " remove            0       0       2       0       0          0      0      0.0",
        " archive   1,234,567       0       0      12       0        300      2    100.0",
        " waiting for 3s (median), 75s (99 %), the oldest for 2h",
        " locked: action archive archive 2 worker m2",
        " locked: everything",
        "",
        " MOVER                    STATE         RUNNING        DONE   FAILED   DONE/s",
    ];
    assert_eq!(lines[2..11], want, "{text}");
    assert!(lines[11].starts_with(" m1                       away "), "{text}");
    assert!(lines[11].ends_with("d         4           0        0      0.0"), "{text}");
    let m2 = " m2                       ready               8         298        2    100.0";
    assert_eq!(lines[12..14], [m2, ""], "{text}");
    assert!(lines[14].starts_with(" MDT          ACTION   STATUS"), "{text}");
    assert!(lines[15].contains("ARCHIVE  WAITING             1        +1"), "{text}");
    assert_eq!(lines[23], KEYS, "{text}");
    // Nobody answers any more.
    let long_ago = Instant::now().checked_sub(Duration::from_secs(7)).unwrap();
    top.queue.iter_mut().for_each(|queue| queue.take(status(300), long_ago));
    let text = screen::as_text(80, 24, |frame| top.draw(frame, true)).unwrap();
    assert!(text.contains(" queue: no answer for 7s; this is how it was"), "{text}");
    // The queue alone, then the actions alone.
    top.key(KeyCode::Char('v'));
    let text = screen::as_text(80, 24, |frame| top.draw(frame, true)).unwrap();
    assert!(text.contains(" MOVER") && !text.contains("elm-MDT0000"), "{text}");
    top.key(KeyCode::Char('v'));
    let text = screen::as_text(80, 24, |frame| top.draw(frame, true)).unwrap();
    assert!(!text.contains(" MOVER") && text.contains("elm-MDT0000"), "{text}");
}

#[test]
fn many_movers_leave_room_and_can_be_scrolled_through() {
    let mut top = top([event(EventKind::New, 7, "ARCHIVE", "WAITING")]);
    let clients: Vec<serde_json::Value> = (10..50)
        .map(|n| serde_json::json!({"client_id": format!("m{n}"), "status": "ready"}))
        .collect();
    let mut queue = QueueView::new(Duration::from_secs(2));
    queue.take(serde_json::json!({"clients": clients}), Instant::now());
    top.queue = Some(queue);
    top.tick(Instant::now());
    let frame = |top: &mut Top| screen::as_text(80, 24, |f| top.draw(f, true)).unwrap();
    let text = frame(&mut top);
    assert!(text.contains(" m14 ") && !text.contains(" m15 "), "{text}");
    assert!(text.contains("and 35 more") && text.contains("elm-MDT0000"), "{text}");
    top.key(KeyCode::Char('v'));
    let text = frame(&mut top);
    assert!(text.contains(" m10 ") && text.contains(" m20 ") && text.contains("more"), "{text}");
    (0..100).for_each(|_| assert!(!top.key(KeyCode::Down)));
    let text = frame(&mut top);
    assert!(text.contains(" m49 ") && !text.contains("more"), "{text}");
    // Without the MDTs' lists there is only the queue.
    top.has_actions = false;
    let text = frame(&mut top);
    assert!(text.contains(" QUEUE") && !text.contains("ACTION"), "{text}");
}
