//! What the person at the keyboard has chosen.
#![forbid(unsafe_code)]

use std::time::Duration;

use ratatui::crossterm::event::KeyCode;

/// The parts of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Panel {
    Mdts,
    Streams,
    Clients,
}

impl Panel {
    pub(super) const ALL: [Self; 3] = [Self::Mdts, Self::Streams, Self::Clients];
}

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Lag,
    Rate,
}

/// What a key asks the program to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Stay,
    Leave,
    /// The pace has changed.
    Pace,
}

/// The present choice.
#[derive(Clone, Debug)]
pub(super) struct View {
    interactive: bool,
    panel: Panel,
    zoomed: bool,
    sort: Sort,
    by_mdt: bool,
    paused: bool,
    help: bool,
    every: Duration,
    /// First row that is seen, by panel.
    first: [usize; 3],
    /// Rows that fit, by panel, when it was last drawn.
    room: [usize; 3],
}

const FASTEST: Duration = Duration::from_millis(250);
const SLOWEST: Duration = Duration::from_secs(60);

impl View {
    pub(super) fn new(interactive: bool, every: Duration) -> Self {
        Self {
            interactive,
            panel: Panel::Mdts,
            zoomed: false,
            sort: Sort::Name,
            by_mdt: false,
            paused: false,
            help: false,
            every: every.clamp(FASTEST, SLOWEST),
            first: [0; 3],
            room: [1; 3],
        }
    }

    pub(super) fn interactive(&self) -> bool {
        self.interactive
    }

    pub(super) fn panel(&self) -> Panel {
        self.panel
    }

    pub(super) fn zoomed(&self) -> bool {
        self.zoomed
    }

    pub(super) fn sort(&self) -> Sort {
        self.sort
    }

    pub(super) fn by_mdt(&self) -> bool {
        self.by_mdt
    }

    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    pub(super) fn help(&self) -> bool {
        self.help
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// Moves the panel's view so that no line stays empty while there are rows above, and returns
    /// the first row to draw.
    pub(super) fn scroll_to_fit(&mut self, panel: Panel, rows: usize, room: usize) -> usize {
        let at = panel as usize;
        self.room[at] = room.max(1);
        self.first[at] = self.first[at].min(rows.saturating_sub(room));
        self.first[at]
    }

    /// Takes a key.
    pub(super) fn key(&mut self, key: KeyCode) -> Wish {
        if self.help {
            self.help = false;
            return if key == KeyCode::Char('q') { Wish::Leave } else { Wish::Stay };
        }
        let at = self.panel as usize;
        let page = self.room[at];
        let first = &mut self.first[at];
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Leave,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.help = true,
            KeyCode::Tab => self.panel = Panel::ALL[(at + 1) % 3],
            KeyCode::BackTab => self.panel = Panel::ALL[(at + 2) % 3],
            KeyCode::Char('1') => self.panel = Panel::Mdts,
            KeyCode::Char('2') => self.panel = Panel::Streams,
            KeyCode::Char('3') => self.panel = Panel::Clients,
            KeyCode::Up | KeyCode::Char('k') => *first = first.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => *first = first.saturating_add(1),
            KeyCode::PageUp => *first = first.saturating_sub(page),
            KeyCode::PageDown => *first = first.saturating_add(page),
            KeyCode::Home => *first = 0,
            KeyCode::End => *first = usize::MAX,
            KeyCode::Char('z') | KeyCode::Enter => self.zoomed = !self.zoomed,
            KeyCode::Char('m') => self.by_mdt = !self.by_mdt,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                self.sort = match self.sort {
                    Sort::Name => Sort::Lag,
                    Sort::Lag => Sort::Rate,
                    Sort::Rate => Sort::Name,
                }
            }
            KeyCode::Char('+') => return self.pace(self.every / 2),
            KeyCode::Char('-') => return self.pace(self.every * 2),
            _ => {}
        }
        Wish::Stay
    }

    fn pace(&mut self, every: Duration) -> Wish {
        self.every = every.clamp(FASTEST, SLOWEST);
        Wish::Pace
    }
}
