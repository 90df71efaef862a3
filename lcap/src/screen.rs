//! The terminal as a full screen, for views that redraw themselves: set up, read keys from, and left as
//! it was, however the program ends. And the same pictures as text, for `--once` and for tests.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Frame, Terminal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Something that a view may have to react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A key was pressed.
    Key(KeyCode),
    /// The picture is out of date: the terminal has another size, or the time is over.
    Redraw,
    /// Control-C, or a signal that asks to end.
    Quit,
}

/// A full screen, until this is dropped.
pub(crate) struct Screen {
    terminal: DefaultTerminal,
    asked_to_end: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal over.
    pub(crate) fn open() -> Result<Self> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            bail!("this is not a terminal; --once prints one picture");
        }
        let asked_to_end = Arc::new(AtomicBool::new(false));
        // Not SIGHUP: a terminal that is gone has nothing to restore, and crossterm reads it for ever.
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&asked_to_end)).context("signals")?;
        }
        // This also makes a panic leave the screen before it prints.
        let terminal = ratatui::try_init().context("cannot set up the terminal")?;
        Ok(Self { terminal, asked_to_end })
    }

    /// Draws a picture.
    pub(crate) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        self.terminal.draw(picture).context("cannot draw")?;
        Ok(())
    }

    /// Waits for a key, for so long.
    pub(crate) fn input(&mut self, patience: Duration) -> Result<Input> {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let patience = Timespec::try_from(patience).context("a time to wait")?;
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, Some(&patience));
        if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(Input::Quit);
        }
        let has_input = event::poll(Duration::ZERO)?;
        let input = if has_input { translate(&event::read()?) } else { Input::Redraw };
        Ok(if self.asked_to_end.load(Ordering::Relaxed) { Input::Quit } else { input })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn translate(event: &Event) -> Input {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Press => Input::Redraw,
        Event::Key(key)
            if key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL =>
        {
            Input::Quit
        }
        Event::Key(key) => Input::Key(key.code),
        _ => Input::Redraw,
    }
}

/// Columns of the terminal, or what is usual where there is none.
pub(crate) fn columns() -> u16 {
    match ratatui::crossterm::terminal::size() {
        Ok((columns, _)) if io::stdout().is_terminal() && columns > 0 => columns,
        _ => 80,
    }
}

/// A picture as text, without blanks at the ends of its lines, and without empty lines at its end.
pub(crate) fn as_text(
    columns: u16,
    lines: u16,
    picture: impl FnOnce(&mut Frame<'_>),
) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines))?;
    terminal.draw(picture)?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..lines {
        let line: String = (0..columns).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

/// `1234567` as `1,234,567`, and from ten millions on as `12.3M`: at most nine characters.
pub(crate) fn number(n: u64) -> String {
    const UNITS: [(u64, char); 4] = [
        (1_000_000_000_000_000, 'P'),
        (1_000_000_000_000, 'T'),
        (1_000_000_000, 'G'),
        (1_000_000, 'M'),
    ];
    if n < 10_000_000 {
        return grouped(n);
    }
    let (unit, letter) = UNITS.into_iter().find(|(unit, _)| n >= *unit).unwrap_or((1, ' '));
    format!("{}.{}{letter}", grouped(n / unit), n % unit * 10 / unit)
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use ratatui::widgets::Paragraph;

    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (9_999_999, "9,999,999"),
            (12_345_678, "12.3M"),
            (1_234_567_890, "1.2G"),
            (u64::MAX, "18,446.7P"),
        ];
        for (n, want) in cases {
            assert_eq!(number(n), want);
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_picture_becomes_text() {
        let text =
            as_text(10, 5, |frame| frame.render_widget(Paragraph::new("a\n\n b"), frame.area()))
                .unwrap();
        assert_eq!(text, "a\n\n b\n");
    }
}
