//! `lcap hsm top`: lcapd's queue and its movers; how many actions are in which state, and how that moves.
#![forbid(unsafe_code)]

mod queue;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

use self::queue::{Asked, QueueView};
use super::counts::{Counts, Figures, Row};
use super::tail::local_time;
use super::watch::{Begin, From, News, Watch, now_ms};
use crate::screen::{self, Input, Screen, grouped};

#[derive(Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    from: From,
    /// Print one frame and end; works without a terminal.
    #[arg(long, alias = "run-once")]
    once: bool,
    /// Seconds between two frames, which differences are taken over.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    interval: f64,
}

/// News that are taken in before a key is looked at.
const BURST: usize = 20_000;
/// How long a key waits at most.
const GLANCE: Duration = Duration::from_millis(100);
/// Waiting actions that are named.
const OLDEST: usize = 5;
const KEYS: &str = " q quit  h help  v view  s sort  a action  t status  m MDT  e empty  p pause";
/// Movers that are shown beside everything else.
const MOVERS: usize = 6;
const HELP: &str = " v        everything; only the queue and its movers; only the MDTs' actions
 s        sort by name, by count, by rate
 a        only one action: the next one, then all
 t        only one status: the next one, then all
 m        only one MDT: the next one, then all
 e        rows that are empty now, too
 p        pause; everything stands still
 up down  scroll (movers, where only they are shown)
 q        leave (also Control-C)

 DIFF     change of COUNT since the frame before
 IN/s     actions that came into the state, per second
 OLDEST   the longest time without change";

pub(crate) fn run(args: &TopArgs) -> Result<()> {
    if !(0.1..=3600.0).contains(&args.interval) {
        bail!("--interval: expected 0.1 to 3600 seconds");
    }
    let interval = Duration::from_secs_f64(args.interval);
    let has_queue = !args.from.is_redis();
    let queue = if has_queue { queue::ask_once()? } else { None };
    let watch = match Watch::start(&args.from, Begin::State, !args.once) {
        Ok(watch) => Some(watch),
        // An lcapd that is a coordinator need not read the MDTs' lists.
        Err(_) if queue.is_some() => None,
        Err(error) => return Err(error),
    };
    let place = match &watch {
        Some(watch) => watch.place.clone(),
        None => format!("lcapd {}", crate::control()?.endpoint().unwrap_or_default()),
    };
    let mut top = Top::new(place, interval);
    top.has_actions = watch.is_some();
    if let Some(status) = queue {
        top.queue = Some(QueueView::new(interval));
        top.queue.iter_mut().for_each(|queue| queue.take(status.clone(), Instant::now()));
    }
    if !args.once {
        return follow(watch.as_ref(), &mut top);
    }
    while let Some(Ok(news)) = watch.as_ref().map(|watch| watch.news.recv()) {
        if let News::Trouble(Some(error)) = news {
            bail!("{}: {error}", top.place);
        }
        top.counts.take(news);
    }
    top.tick(Instant::now());
    let queue_lines =
        top.queue.as_ref().map_or(0, |queue| queue.lines(usize::MAX, usize::MAX, 0).len() + 1);
    let lines = top.rows().len() + OLDEST + 8 + queue_lines;
    let lines = u16::try_from(lines).unwrap_or(u16::MAX);
    top.most_movers = usize::MAX;
    let text = screen::as_text(screen::columns(), lines, |frame| top.draw(frame, false))?;
    crate::print(&text)
}

fn follow(watch: Option<&Watch>, top: &mut Top) -> Result<()> {
    let asked = top.queue.is_some().then(|| Asked::every(top.interval)).transpose()?;
    let mut screen = Screen::open()?;
    loop {
        if !top.paused {
            for news in watch.into_iter().flat_map(|watch| watch.news.try_iter()).take(BURST) {
                top.counts.take(news);
            }
            top.tick_if_due(Instant::now());
            if let (Some(asked), Some(queue)) = (&asked, &mut top.queue) {
                asked.take(queue, Instant::now());
            }
        }
        screen.draw(|frame| top.draw(frame, true))?;
        match screen.input(GLANCE)? {
            Input::Redraw => {}
            Input::Quit => return Ok(()),
            Input::Key(key) => {
                if top.key(key) {
                    return Ok(());
                }
            }
        }
    }
}

/// What of it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    All,
    Queue,
    Actions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Name,
    Count,
    Rate,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
struct TableRow {
    row: Row,
    count: u64,
    diff: i64,
    rate: f64,
    oldest_s: Option<u64>,
}

struct Top {
    counts: Counts,
    /// The MDTs' lists are read.
    has_actions: bool,
    /// Of an lcapd that has one.
    queue: Option<QueueView>,
    most_movers: usize,
    view: View,
    place: String,
    interval: Duration,
    /// The figures at the frame before, and when that was.
    before: BTreeMap<Row, Figures>,
    before_at: Option<Instant>,
    /// The table of the present frame.
    table: Vec<TableRow>,
    sort: Sort,
    only_action: Option<String>,
    only_status: Option<String>,
    only_mdt: Option<String>,
    empty: bool,
    paused: bool,
    help: bool,
    scroll: usize,
}

impl Top {
    fn new(place: String, interval: Duration) -> Self {
        Self {
            counts: Counts::default(),
            has_actions: true,
            queue: None,
            most_movers: MOVERS,
            view: View::All,
            place,
            interval,
            before: BTreeMap::new(),
            before_at: None,
            table: Vec::new(),
            sort: Sort::Name,
            only_action: None,
            only_status: None,
            only_mdt: None,
            empty: false,
            paused: false,
            help: false,
            scroll: 0,
        }
    }

    fn tick_if_due(&mut self, now: Instant) {
        if self.before_at.is_none_or(|at| now.duration_since(at) >= self.interval) {
            self.tick(now);
        }
    }

    /// Makes the table anew; differences are from here on.
    fn tick(&mut self, now: Instant) {
        let seconds = self.before_at.map(|at| now.duration_since(at).as_secs_f64());
        let mut oldest: BTreeMap<&Row, u64> = BTreeMap::new();
        let now_ms = now_ms();
        for (ms, row, _) in self.counts.oldest() {
            oldest.entry(row).or_insert_with(|| now_ms.saturating_sub(ms) / 1000);
        }
        let rows = self.counts.rows();
        self.table = rows
            .iter()
            .map(|(row, figures)| {
                let before = self.before.get(row).copied().unwrap_or_default();
                let entered = figures.entered.saturating_sub(before.entered);
                let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                TableRow {
                    row: (*row).clone(),
                    count: figures.count,
                    diff: signed(figures.count) - signed(before.count),
                    rate: seconds.filter(|s| *s > 0.0).map_or(0.0, |s| as_float(entered) / s),
                    oldest_s: oldest.get(row).copied(),
                }
            })
            .collect();
        self.before = rows.into_iter().map(|(row, figures)| (row.clone(), figures)).collect();
        self.before_at = Some(now);
    }

    /// The lines that are wanted, in the order that is wanted.
    fn rows(&self) -> Vec<&TableRow> {
        let is = |only: &Option<String>, word: &str| only.as_ref().is_none_or(|only| only == word);
        let wanted = |row: &&TableRow| {
            (self.empty || row.count > 0 || row.diff != 0)
                && is(&self.only_action, &row.row.action)
                && is(&self.only_status, &row.row.status)
                && is(&self.only_mdt, &row.row.mdt)
        };
        let mut rows: Vec<&TableRow> = self.table.iter().filter(wanted).collect();
        match self.sort {
            Sort::Name => {}
            Sort::Count => rows.sort_by_key(|row| std::cmp::Reverse(row.count)),
            Sort::Rate => rows.sort_by(|a, b| b.rate.total_cmp(&a.rate)),
        }
        rows
    }

    /// True: leave.
    fn key(&mut self, key: KeyCode) -> bool {
        if self.help {
            self.help = false;
            return false;
        }
        let words = |of: fn(&Row) -> &str| {
            let mut words: Vec<String> =
                self.table.iter().map(|row| of(&row.row).to_owned()).collect();
            words.sort();
            words.dedup();
            words
        };
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Char('v') if self.queue.is_some() && self.has_actions => {
                self.scroll = 0;
                self.view = match self.view {
                    View::All => View::Queue,
                    View::Queue => View::Actions,
                    View::Actions => View::All,
                }
            }
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('e') => self.empty = !self.empty,
            KeyCode::Char('s') => {
                self.sort = match self.sort {
                    Sort::Name => Sort::Count,
                    Sort::Count => Sort::Rate,
                    Sort::Rate => Sort::Name,
                }
            }
            KeyCode::Char('a') => {
                self.only_action = next(&words(|row| &row.action), self.only_action.as_ref());
            }
            KeyCode::Char('t') => {
                self.only_status = next(&words(|row| &row.status), self.only_status.as_ref());
            }
            KeyCode::Char('m') => {
                self.only_mdt = next(&words(|row| &row.mdt), self.only_mdt.as_ref());
            }
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down => self.scroll += 1,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::PageDown => self.scroll += 10,
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        false
    }

    fn draw(&mut self, frame: &mut Frame<'_>, interactive: bool) {
        let shows_actions = self.has_actions && self.view != View::Queue;
        let oldest = if shows_actions { self.oldest_waiting() } else { Vec::new() };
        let n_oldest = oldest.len() + usize::from(!oldest.is_empty()) * 2;
        let height = usize::from(frame.area().height);
        let queue = match &self.queue {
            Some(queue) if self.view != View::Actions => {
                let (most, skip) = if shows_actions {
                    (self.most_movers, 0)
                } else {
                    self.scroll = self.scroll.min(queue.n_movers().saturating_sub(1));
                    (usize::MAX, self.scroll)
                };
                // Beside the head, a blank line, the actions' heading and some of them, and the keys.
                let others = if shows_actions { 2 + 1 + 1 + 4 + 1 } else { 3 };
                let mut lines = queue.lines(height.saturating_sub(others), most, skip);
                if shows_actions {
                    lines.push(Line::raw(""));
                }
                lines
            }
            _ => Vec::new(),
        };
        let rows_of = |n: usize| Constraint::Length(u16::try_from(n).unwrap_or(u16::MAX));
        let [head, requests, heading, table, waiting, bottom] = Layout::vertical([
            rows_of(if self.has_actions { 2 } else { 1 }),
            rows_of(queue.len()),
            rows_of(usize::from(shows_actions)),
            Constraint::Min(u16::from(shows_actions)),
            rows_of(if height < 30 && !queue.is_empty() { 0 } else { n_oldest }),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(queue), requests);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        let width = usize::from(frame.area().width);
        let mut title = format!(" lcap hsm top  {}  {}", local_time(now_ms() / 1000), self.place);
        if self.paused {
            title.push_str("  PAUSED");
        }
        let last = self.counts.last_event_ms.map_or_else(
            || "never".to_owned(),
            |ms| format!("{} ago", span(now_ms().saturating_sub(ms) / 1000)),
        );
        let mut summary = format!(
            " live {}  events {}  last event {last}",
            grouped(u64::try_from(self.counts.n_live()).unwrap_or(u64::MAX)),
            grouped(self.counts.n_events),
        );
        for (what, only) in
            [("action", &self.only_action), ("status", &self.only_status), ("MDT", &self.only_mdt)]
        {
            if let Some(only) = only {
                summary.push_str(&format!("  only {what} {only}"));
            }
        }
        let lines = vec![Line::styled(format!("{title:<width$}"), reversed), Line::raw(summary)];
        frame.render_widget(Paragraph::new(lines), head);
        if shows_actions {
            self.draw_actions(frame, heading, table);
        }
        if !oldest.is_empty() {
            let mut lines = vec![Line::raw(""), Line::styled(" waiting for longest", bold)];
            lines.extend(oldest.into_iter().map(Line::raw));
            frame.render_widget(Paragraph::new(lines), waiting);
        }
        let alarming = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        if let Some(trouble) = &self.counts.trouble {
            frame.render_widget(Line::styled(format!(" {trouble}"), alarming), bottom);
        } else if self.counts.malformed > 0 {
            let text = format!(" {} entries are no events", self.counts.malformed);
            frame.render_widget(Line::styled(text, alarming), bottom);
        } else if interactive {
            frame.render_widget(
                Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)),
                bottom,
            );
        }
        if self.help {
            let n_lines = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX);
            let area = frame.area();
            let [_, middle, _] = Layout::vertical([
                Constraint::Fill(1),
                Constraint::Length(n_lines + 2),
                Constraint::Fill(1),
            ])
            .areas(area);
            frame.render_widget(Clear, middle);
            frame.render_widget(
                Paragraph::new(HELP).block(Block::bordered().title(" keys ")),
                middle,
            );
        }
    }

    /// The table, with its heading.
    fn draw_actions(&mut self, frame: &mut Frame<'_>, heading: Rect, table: Rect) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let longest = self.table.iter().map(|row| row.row.mdt.len()).max().unwrap_or(0).max(3);
        let text = format!(
            " {:<longest$}  {:<8} {:<9} {:>11} {:>9} {:>9} {:>8}",
            "MDT", "ACTION", "STATUS", "COUNT", "DIFF", "IN/s", "OLDEST"
        );
        frame.render_widget(Line::styled(text, bold), heading);
        let rows = self.rows();
        let scroll = self.scroll.min(rows.len().saturating_sub(1));
        let lines: Vec<Line<'_>> = if rows.is_empty() {
            vec![Line::raw(" no live actions")]
        } else {
            let lines = rows.iter().skip(scroll).map(|row| table_line(row, longest));
            lines.collect()
        };
        frame.render_widget(Paragraph::new(lines), table);
        self.scroll = scroll;
    }

    /// Actions that wait for longest.
    fn oldest_waiting(&self) -> Vec<String> {
        let now = now_ms();
        let is = |only: &Option<String>, word: &str| only.as_ref().is_none_or(|only| only == word);
        let waiting = self.counts.oldest().filter(|(_, row, _)| {
            &*row.status == "WAITING"
                && is(&self.only_action, &row.action)
                && is(&self.only_mdt, &row.mdt)
        });
        let line = |(ms, row, fid): (u64, &Row, &str)| {
            let age = span(now.saturating_sub(ms) / 1000);
            format!(" {age:>8}  {}  {:<8} {fid}", row.mdt, row.action)
        };
        waiting.take(OLDEST).map(line).collect()
    }
}

fn table_line(row: &TableRow, longest: usize) -> Line<'static> {
    let diff = match row.diff {
        0 => String::new(),
        diff => format!("{diff:+}"),
    };
    let oldest = row.oldest_s.map_or_else(String::new, span);
    let text = format!(
        " {:<longest$}  {:<8} {:<9} {:>11} {diff:>9} {:>9.1} {oldest:>8}",
        row.row.mdt,
        row.row.action,
        row.row.status,
        grouped(row.count),
        row.rate,
    );
    let colour = match &*row.row.status {
        "STARTED" => Some(Color::Blue),
        "WAITING" => Some(Color::Yellow),
        "SUCCEED" => Some(Color::Green),
        "FAILED" | "CANCELED" => Some(Color::Red),
        _ => None,
    };
    Line::styled(text, colour.map_or_else(Style::new, |colour| Style::new().fg(colour)))
}

/// The word after `only`; nothing after the last.
fn next(words: &[String], only: Option<&String>) -> Option<String> {
    let at = match only {
        None => 0,
        Some(only) => words.iter().position(|word| word == only)? + 1,
    };
    words.get(at).cloned()
}

/// `42s`, `12m`, `5h`, `3d`.
fn span(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / 60),
        6000..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// For rates only.
#[allow(clippy::cast_precision_loss)]
fn as_float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests;
