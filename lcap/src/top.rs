//! `lcap top`: MDTs, streams and clients, at a glance and as they move.
#![forbid(unsafe_code)]

mod draw;
mod model;
mod view;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use lcap_wire::control::Status;
use lcapclient::{ClientError, Control};

use crate::screen::{self, Input, Screen};
use model::Model;
use view::{View, Wish};

#[derive(Args)]
pub(crate) struct TopArgs {
    /// Print one picture and end; works without a terminal.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks (and, with --once, that rates are taken over).
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
    interval: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
    if !(0.25..=60.0).contains(&seconds) {
        return Err("expected 0.25 to 60".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// How long a key waits at most for a picture with a new answer, and an answer for its picture.
const GLANCE: Duration = Duration::from_millis(100);

pub(crate) fn run(args: &TopArgs) -> Result<()> {
    let control = crate::control()?;
    if args.once { once(control, args.interval) } else { follow(control, args.interval) }
}

/// Two answers, for the rates, and a picture as long as it needs to be.
fn once(mut control: Control, interval: Duration) -> Result<()> {
    let mut model = Model::default();
    model.answered(Instant::now(), control.status()?);
    thread::sleep(interval);
    model.answered(Instant::now(), control.status()?);
    let mut view = View::new(false, interval);
    let columns = screen::columns();
    let lines = draw::lines_needed(&model, &view, columns);
    let text = screen::as_text(columns, lines, |frame| {
        draw::draw(frame, &model, &mut view, Instant::now());
    })?;
    crate::print(&text)
}

type Answer = (Instant, Result<Status, ClientError>);

fn follow(control: Control, interval: Duration) -> Result<()> {
    let mut view = View::new(true, interval);
    let mut model = Model::default();
    let mut screen = Screen::open()?;
    // Asking takes seconds if nobody is there; keys must not wait for that.
    let (answer, answers) = mpsc::channel();
    let (pace, paces) = mpsc::channel();
    thread::Builder::new()
        .name("asks".to_owned())
        .spawn(move || ask(control, &answer, &paces, interval))
        .context("cannot start a thread")?;
    loop {
        while let Ok((at, result)) = answers.try_recv() {
            match result {
                _ if view.paused() => {}
                Ok(status) => model.answered(at, status),
                Err(error) => model.failed(at, error.to_string()),
            }
        }
        screen.draw(|frame| draw::draw(frame, &model, &mut view, Instant::now()))?;
        match screen.input(GLANCE)? {
            Input::Redraw => {}
            Input::Quit => return Ok(()),
            Input::Key(key) => match view.key(key) {
                Wish::Stay => {}
                Wish::Leave => return Ok(()),
                // The thread lives as long as this one.
                Wish::Pace => drop(pace.send(view.every())),
            },
        }
    }
}

/// Asks lcapd until nobody wants to know any more.
fn ask(mut control: Control, answer: &Sender<Answer>, paces: &Receiver<Duration>, first: Duration) {
    let mut every = first;
    loop {
        let result = control.status();
        if answer.send((Instant::now(), result)).is_err() {
            return;
        }
        match paces.recv_timeout(every) {
            Ok(new) => every = new,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests;
