#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use lcap_wire::control::{PolicyStatus, Status};
use ratatui::crossterm::event::KeyCode;
use serde_json::{Value, json};

use super::draw;
use super::model::Model;
use super::view::{View, Wish};
use crate::screen::as_text;

fn mdt(at: usize) -> String {
    format!("lustre-MDT{at:04x}")
}

/// A site with so many MDTs, `records` records after its start. As JSON, since lcapd may say more than
/// is of interest here.
fn site(n_mdts: usize, records: u64) -> Status {
    let mdts = (0..n_mdts).map(|at| {
        json!({
            "name": mdt(at), "source": "device:", "state": if at == 1 { "waiting" } else { "reading" },
            "reason": (at == 1).then_some("cannot open /dev/changelog-lustre-MDT0001"),
            "read_index": 1_000_000 + records, "cleared_index": 999_000 + records,
            "lag_records": 1000, "generation": 0, "records_read": records, "gaps": 0,
        })
    });
    let by_mdt = |of: Value| -> Value { (0..n_mdts).map(|at| (mdt(at), of.clone())).collect() };
    let reader = |name: &str, sessions: u64, suspended: bool, behind: u64| {
        json!({
            "stream": "changelog", "name": name, "lag_records": behind, "suspended": suspended,
            "watermark": by_mdt((1_000_000 + records).saturating_sub(behind).into()),
            "sessions": sessions, "idle_seconds": 7300,
        })
    };
    let stream = |name: &str, delivery: &str, readers: &[Value], members: &[Value]| {
        let at = json!({
            "sent": records, "dropped": 0, "held": 7, "outstanding": 40, "low": 0, "sequence": 0,
            "watermark": 999_990 + records,
        });
        json!({
            "name": name, "delivery": delivery, "mdts": by_mdt(at), "readers": readers,
            "members": members,
        })
    };
    let readers = [
        reader("audit", 1, false, 0),
        reader("robinhood", 0, false, 1000),
        reader("forgotten", 0, true, 123_456_789),
    ];
    let members = [json!({"session": 12, "mdt": mdt(0), "outstanding": 40, "lanes": [0, 1, 2]})];
    let status = json!({
        "version": "0.1.0", "epoch": 1, "mdts": mdts.collect::<Vec<_>>(),
        "streams": [
            stream("changelog", "broadcast", &readers, &[]),
            stream("work", "queue", &[], &members),
        ],
    });
    serde_json::from_value(status).unwrap()
}

fn model(n_mdts: usize) -> Model {
    let mut model = Model::default();
    let start = Instant::now();
    model.answered(start, site(n_mdts, 500_000));
    model.answered(start + Duration::from_secs(2), site(n_mdts, 524_690));
    model
}

fn picture(model: &Model, view: &mut View, columns: u16, lines: u16) -> String {
    as_text(columns, lines, |frame| draw::draw(frame, model, view, Instant::now())).unwrap()
}

#[test]
fn a_small_site_fits_an_80x24_terminal() {
    let mut view = View::new(true, Duration::from_secs(1));
    let text = picture(&model(2), &mut view, 80, 24);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    let wants = [
        (0, " lcapd 0.1.0  2 MDTs  4 clients  24,690/s  greatest lag 1,000"),
        (1, "MDT                  STATE           READ/s         READ      CLEARED       LAG"),
        (2, "lustre-MDT0000       reading         12,345      1524690      1523690     1,000"),
        (4, "  cannot open /dev/changelog-lustre-MDT0001"),
        (6, "STREAM               DELIVERY     SENT/s DROPPED/s      HELD       OUT       LAG"),
        (7, "changelog            broadcast    24,690         0        14        80        20"),
        (10, "READER              STREAM       STATE         ACKED/s       LAG  MOST ON"),
        (11, "audit               changelog    connected      24,690         0  lustre-MDT"),
        (12, "robinhood           changelog    away 2h        24,690     1,000  lustre-MDT"),
        (13, "forgotten           changelog    suspended           0    123.4M  lustre-MDT"),
        (14, "member 12           work         3 lanes             0        40  lustre-MDT"),
        (23, " q quit  h help"),
    ];
    for (at, want) in wants {
        assert!(lines[at].starts_with(want.get(..80).unwrap_or(want)), "{at}: {want}\n{text}");
    }
}

#[test]
fn any_size_of_site_and_terminal_can_be_drawn() {
    for n_mdts in [0, 1, 3, 300] {
        let model = model(n_mdts);
        for (columns, lines) in [(1, 1), (5, 3), (40, 10), (80, 24), (200, 60)] {
            let mut view = View::new(true, Duration::from_secs(1));
            for key in ['m', 's', 's', 'z', 'z', 'h'] {
                picture(&model, &mut view, columns, lines);
                view.key(KeyCode::Char(key));
                view.key(KeyCode::End);
                view.key(KeyCode::Tab);
            }
        }
    }
}

#[test]
fn everything_can_be_scrolled_to_and_printed_at_once() {
    let model = model(300);
    let mut view = View::new(true, Duration::from_secs(1));
    let text = picture(&model, &mut view, 80, 24);
    assert!(text.contains("lustre-MDT0000") && !text.contains("lustre-MDT012a"), "{text}");
    // 300 MDTs, and the line with the reason of one of them.
    assert!(text.contains("/301]"), "{text}");
    view.key(KeyCode::End);
    let text = picture(&model, &mut view, 80, 24);
    assert!(text.contains("lustre-MDT012a") && text.contains("-301/301]"), "{text}");

    let mut view = View::new(false, Duration::from_secs(1));
    let lines = draw::lines_needed(&model, &view, 80);
    let text = picture(&model, &mut view, 80, lines);
    for want in ["lustre-MDT0000 ", "lustre-MDT012b ", "work ", "member 12"] {
        assert!(text.contains(want), "{want}");
    }
}

#[test]
fn silence_is_told_and_another_life_has_no_rates() {
    let mut model = model(1);
    let now = Instant::now();
    let text = |model: &Model| picture(model, &mut View::new(true, Duration::from_secs(1)), 80, 24);
    model.failed(now, "no answer from tcp://mds1:8189".into());
    model.failed(now, "no answer from tcp://mds1:8189".into());
    assert!(
        text(&model).contains("no answer for 0s: no answer from tcp://mds1"),
        "{}",
        text(&model)
    );
    model.answered(now, Status { epoch: 2, ..site(1, 10) });
    assert!(!text(&model).contains("no answer"));
    assert!(text(&model).contains("  0/s"), "{}", text(&model));
}

#[test]
fn a_policy_that_failed_is_seen() {
    let mut status = site(1, 10);
    status.streams[0].policies = vec![PolicyStatus {
        module: "compact".into(),
        state: "bypassed".into(),
        fault: Some("a wrong token".into()),
        ..PolicyStatus::default()
    }];
    let mut model = Model::default();
    model.answered(Instant::now(), status);
    let text = picture(&model, &mut View::new(true, Duration::from_secs(1)), 80, 24);
    assert!(text.contains("\n  policy compact bypassed: a wrong token\n"), "{text}");
}

#[test]
fn keys_do_what_the_help_says() {
    let mut view = View::new(true, Duration::from_secs(1));
    let model = model(2);
    view.key(KeyCode::Char('h'));
    assert!(picture(&model, &mut view, 80, 24).contains("any key closes this"));
    assert_eq!(view.key(KeyCode::Char('x')), Wish::Stay);
    assert!(!picture(&model, &mut view, 80, 24).contains("any key closes this"));
    view.key(KeyCode::Char('m'));
    assert!(picture(&model, &mut view, 80, 24).contains("work lustre-MDT0001"));
    view.key(KeyCode::Char('3'));
    view.key(KeyCode::Char('z'));
    let text = picture(&model, &mut view, 80, 24);
    assert!(text.contains("audit") && !text.contains("reading"), "{text}");
    view.key(KeyCode::Char('s'));
    let text = picture(&model, &mut view, 80, 24);
    assert!(text.find("forgotten") < text.find("audit"), "sorted by lag:\n{text}");
    assert_eq!(view.key(KeyCode::Char('-')), Wish::Pace);
    assert_eq!(view.every(), Duration::from_secs(2));
    assert_eq!(view.key(KeyCode::Char('q')), Wish::Leave);
}
