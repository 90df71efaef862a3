//! Is lcapd well? What `/healthz` answers, and what systemd's watchdog is told.
//!
//! *Alive* is a daemon whose engine answers: it is what every acknowledgement passes, it depends on
//! no disk and no MDT, and a question to it goes through all of its loop. *Ready* is one that has,
//! besides, nothing to complain of.
#![forbid(unsafe_code)]

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use lcap_wire::control::Status;
use serde::Serialize;

use crate::http::Answer;
use crate::wake::Waker;

/// Where the engine is asked for its state from other threads.
#[derive(Clone, Debug)]
pub struct StatusPort {
    questions: Sender<Sender<Status>>,
    waker: Waker,
}

/// The engine's end of a [`StatusPort`].
pub type StatusQuestions = Receiver<Sender<Status>>;

/// A port, and the end that the engine listens on. `waker` wakes the engine.
pub fn status_port(waker: Waker) -> (StatusPort, StatusQuestions) {
    // A few: questions that are not answered must not pile up.
    let (questions, asked) = bounded(4);
    (StatusPort { questions, waker }, asked)
}

impl StatusPort {
    /// The present state of everything; `None` if the engine does not answer within `patience`.
    pub fn ask(&self, patience: Duration) -> Option<Status> {
        let (answer, answered) = bounded(1);
        self.questions.try_send(answer).ok()?;
        self.waker.wake();
        answered.recv_timeout(patience).ok()
    }
}

/// What `/healthz` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The engine answers.
    pub live: bool,
    /// It is alive, and there is nothing to complain of.
    pub ready: bool,
    /// What is wrong, one sentence each.
    pub reasons: Vec<String>,
}

impl Health {
    /// Another lcapd is at work.
    pub fn standing_by() -> Self {
        let reasons = vec!["standing by: another lcapd is at work".to_owned()];
        Self { live: true, ready: false, reasons }
    }

    /// For who asks over HTTP.
    pub fn answer(&self, code: u16) -> Answer {
        let mut body = serde_json::to_string(self).unwrap_or_default();
        body.push('\n');
        Answer { code, content_type: "application/json", body: body.into() }
    }

    /// Judges what the engine said, if it said anything.
    pub fn of(status: Option<&Status>) -> Self {
        let Some(status) = status else {
            let reasons = vec!["the engine does not answer".to_owned()];
            return Self { live: false, ready: false, reasons };
        };
        let mut reasons = Vec::new();
        if let Some(error) = &status.store_error {
            reasons.push(format!("state cannot be written: {error}"));
        }
        for mdt in &status.mdts {
            if let Some(reason) = &mdt.reason {
                reasons.push(format!("{}: {}: {reason}", mdt.name, mdt.state));
            }
        }
        for stream in &status.streams {
            for (mdt, at) in &stream.mdts {
                if at.stopped {
                    reasons.push(format!("stream {}: a policy stopped it on {mdt}", stream.name));
                }
            }
            for reader in stream.readers.iter().filter(|reader| reader.suspended) {
                reasons
                    .push(format!("stream {}: reader {} is suspended", stream.name, reader.name));
            }
        }
        Self { live: true, ready: reasons.is_empty(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use lcap_wire::control::MdtStatus;

    use super::*;

    #[test]
    fn reasons_are_given() {
        assert!(!Health::of(None).live);
        let mut status = Status::default();
        let well = Health { live: true, ready: true, reasons: Vec::new() };
        assert_eq!(Health::of(Some(&status)), well);
        status.store_error = Some("disk full".to_owned());
        status.mdts.push(MdtStatus {
            name: "a-MDT0000".to_owned(),
            state: "waiting".to_owned(),
            reason: Some("no such device".to_owned()),
            ..MdtStatus::default()
        });
        let health = Health::of(Some(&status));
        assert!(health.live && !health.ready);
        let reasons = ["state cannot be written: disk full", "a-MDT0000: waiting: no such device"];
        assert_eq!(health.reasons, reasons);
    }

    #[test]
    fn an_engine_that_is_stuck_is_found() {
        let (port, asked) = status_port(Waker::new().unwrap());
        for _ in 0..10 {
            assert!(port.ask(Duration::from_millis(1)).is_none());
        }
        let engine = std::thread::spawn(move || {
            for answer in asked.iter().take(5) {
                let _ = answer.send(Status::default());
            }
        });
        while port.ask(Duration::from_secs(60)).is_none() {}
        engine.join().unwrap();
    }
}
