//! The part of `lcap hsm top` that shows lcapd's queue of requests, and who carries them out.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lcap_wire::hsm_queue::{HsmOp, Status};
use lcapclient::ClientError;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use serde_json::Value;

use super::super::status::lock_text;
use super::super::watch::now_ms;
use super::{as_float, span};
use crate::screen::grouped;

/// In the order in which they are served by default.
const KINDS: [&str; 3] = ["restore", "remove", "archive"];

/// The queue's status, asked for on a thread of its own, so that no key waits for lcapd.
pub(super) struct Asked {
    answers: Receiver<Result<Value, String>>,
    /// Dropped to end it.
    _go_on: SyncSender<()>,
}

/// The status now; `None` if this lcapd has no queue.
pub(super) fn ask_once() -> Result<Option<Value>> {
    match super::super::ask::<Value>(HsmOp::Status(Status::default())) {
        Ok(status) => Ok(Some(status)),
        Err(error) => match error.downcast_ref::<ClientError>() {
            Some(ClientError::Refused { errno, .. }) if *errno == libc::EOPNOTSUPP => Ok(None),
            _ => Err(error),
        },
    }
}

impl Asked {
    pub(super) fn every(interval: Duration) -> Result<Self> {
        let (answer, answers) = sync_channel(1);
        let (go_on, stop) = sync_channel::<()>(0);
        let body = move || {
            loop {
                let asked = ask_once().map_err(|error| format!("{error:#}"));
                match asked.transpose().map(|asked| answer.send(asked)) {
                    Some(Ok(())) => {}
                    // Nobody wants to know, or there is nothing to be known.
                    Some(Err(_)) | None => return,
                }
                if stop.recv_timeout(interval) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        thread::Builder::new().name("queue".to_owned()).spawn(body).context("a thread")?;
        Ok(Self { answers, _go_on: go_on })
    }

    pub(super) fn take(&self, queue: &mut QueueView, now: Instant) {
        for answer in self.answers.try_iter() {
            match answer {
                Ok(status) => queue.take(status, now),
                Err(error) => queue.trouble = Some(error),
            }
        }
    }
}

/// What is shown.
#[derive(Default)]
pub(super) struct QueueView {
    status: Option<Value>,
    trouble: Option<String>,
    /// How often it is asked for.
    interval: Duration,
    taken: Option<Instant>,
    /// Done in all, by kind and mover, when it was asked before.
    before: BTreeMap<String, u64>,
    /// Done per second.
    rates: BTreeMap<String, f64>,
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn sum(of: &Value, what: &str) -> u64 {
    KINDS.iter().map(|kind| number(&of[format!("{what}_{kind}")])).sum()
}

impl QueueView {
    /// Nothing is known yet.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, ..Self::default() }
    }

    /// What is shown is old: nobody has answered since.
    fn silence(&self, now: Instant) -> Option<String> {
        let silent = now.saturating_duration_since(self.taken?);
        let is_old = silent > self.interval * 2 + Duration::from_secs(2);
        is_old.then(|| format!("no answer for {}; this is how it was", span(silent.as_secs())))
    }

    /// A new status; rates are since the one before.
    pub(super) fn take(&mut self, status: Value, now: Instant) {
        let mut done = BTreeMap::new();
        for kind in KINDS {
            done.insert(kind.to_owned(), number(&status[format!("done_{kind}")]));
        }
        for mover in movers(&status) {
            done.insert(format!("mover {}", name(mover)), sum(mover, "done"));
        }
        let seconds = self.taken.map(|taken| now.duration_since(taken).as_secs_f64());
        let rate = |(key, now): (&String, &u64)| {
            let before = self.before.get(key)?;
            let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
            Some((key.clone(), as_float(now.saturating_sub(*before)) / seconds))
        };
        self.rates = done.iter().filter_map(rate).collect();
        (self.before, self.taken) = (done, Some(now));
        (self.status, self.trouble) = (Some(status), None);
    }

    /// How many movers there are.
    pub(super) fn n_movers(&self) -> usize {
        self.status.as_ref().map_or(0, |status| movers(status).count())
    }

    /// The queue in so many rows, with at most so many lines about movers, of which `skip` are left out at the top.
    pub(super) fn lines(&self, rows: usize, most_movers: usize, skip: usize) -> Vec<Line<'static>> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let alarming = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        let trouble = self.trouble.clone().or_else(|| self.silence(Instant::now()));
        let trouble = trouble.map(|text| Line::styled(format!(" queue: {text}"), alarming));
        let Some(status) = &self.status else { return trouble.into_iter().collect() };
        let mut lines = vec![Line::styled(
            format!(
                " {:<8}{:>11}{:>8}{:>8}{:>8}{:>8}{:>11}{:>7}{:>9}",
                "QUEUE",
                "WAITING",
                "DELAYED",
                "HELD",
                "RUNNING",
                "DEAD",
                "DONE",
                "FAILED",
                "DONE/s"
            ),
            bold,
        )];
        lines.extend(KINDS.map(|kind| self.kind_line(status, kind)));
        lines.push(Line::raw(waits(status)));
        for lock in status["locks"].as_array().into_iter().flatten() {
            let yellow = Style::new().fg(Color::Yellow);
            lines.push(Line::styled(format!(" locked: {}", lock_text(lock)), yellow));
        }
        if let Some(problem) = status["store_error"].as_str() {
            let text = format!(" nothing is handed out: {problem}");
            lines.push(Line::styled(text, alarming));
        }
        lines.extend(trouble);
        lines.push(Line::raw(""));
        lines.push(Line::styled(
            format!(
                " {:<24} {:<13} {:>7} {:>11} {:>8} {:>8}",
                "MOVER", "STATE", "RUNNING", "DONE", "FAILED", "DONE/s"
            ),
            bold,
        ));
        let mut all: Vec<&Value> = movers(status).collect();
        if all.is_empty() {
            lines.push(Line::raw(" nobody is there"));
        }
        all.sort_by_key(|mover| (name(mover).to_owned(), is_away(mover)));
        let skip = skip.min(all.len().saturating_sub(1));
        let room = most_movers.min(rows.saturating_sub(lines.len())).max(1);
        let fit = if all.len() - skip > room { room - 1 } else { room };
        lines.extend(all.iter().skip(skip).take(fit).map(|mover| self.mover_line(mover)));
        let hidden = all.len().saturating_sub(skip + fit);
        if hidden > 0 {
            lines.push(Line::raw(format!(" and {hidden} more")));
        }
        lines
    }

    fn kind_line(&self, status: &Value, kind: &str) -> Line<'static> {
        let of = |state: &str| grouped(number(&status["states"][state][kind]));
        Line::raw(format!(
            " {kind:<8}{:>11}{:>8}{:>8}{:>8}{:>8}{:>11}{:>7}{:>9.1}",
            of("waiting"),
            of("delayed"),
            of("held"),
            of("running"),
            of("dead"),
            grouped(number(&status[format!("done_{kind}")])),
            grouped(number(&status[format!("failed_{kind}")])),
            self.rates.get(kind).copied().unwrap_or(0.0),
        ))
    }

    fn mover_line(&self, mover: &Value) -> Line<'static> {
        let name = name(mover);
        let gone = mover["disconnected_timestamp"].as_u64().map(|ns| ns / 1_000_000);
        let state = match gone {
            Some(ms) => format!("away {}", span(now_ms().saturating_sub(ms) / 1000)),
            None => mover["status"].as_str().unwrap_or_default().to_owned(),
        };
        let rate = self.rates.get(&format!("mover {name}")).copied().unwrap_or(0.0);
        let text = format!(
            " {name:<24} {state:<13} {:>7} {:>11} {:>8} {rate:>8.1}",
            grouped(sum(mover, "current")),
            grouped(sum(mover, "done") - sum(mover, "failed").min(sum(mover, "done"))),
            grouped(sum(mover, "failed")),
        );
        let colour = if is_away(mover) { Style::new().fg(Color::Red) } else { Style::new() };
        Line::styled(text, colour)
    }
}

/// Without connections that have said nothing yet.
fn movers(status: &Value) -> impl Iterator<Item = &Value> {
    let clients = status["clients"].as_array().into_iter().flatten();
    clients.filter(|client| client["status"] != "init")
}

fn name(mover: &Value) -> &str {
    mover["client_id"].as_str().unwrap_or_default()
}

fn is_away(mover: &Value) -> bool {
    mover["status"] == "disconnected"
}

fn waits(status: &Value) -> String {
    let age = |part: &str| {
        let seconds = status["waiting_seconds"][part].as_f64()?;
        Some(span(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs()))
    };
    match (age("p50"), age("p99"), age("max")) {
        (Some(p50), Some(p99), Some(max)) => {
            format!(" waiting for {p50} (median), {p99} (99 %), the oldest for {max}")
        }
        _ => " nothing waits".to_owned(),
    }
}
