//! The picture: a line of summary, three panels, a line of keys.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::model::{ClientRow, MdtRow, Model, Mood, StreamRow, short};
use super::view::{Panel, Sort, View};
use crate::screen::number;

const KEYS: &str = " q quit  h help  Tab panel  z zoom  s sort  m by MDT  p pause  +/- pace";

const HELP: &str = " Tab, 1, 2, 3     go to a panel: MDTs, streams, readers
 up, down, PgUp, PgDn, Home, End   scroll it
 z                it alone on the screen, and back
 s                sort by name, by lag, by rate
 m                streams: all MDTs in one line, or a line for each
 p                pause; everything stands still
 + -              ask lcapd more often, more seldom
 q, Control-C     leave

 READ/s  indexes per second   LAG  indexes not acknowledged yet
 HELD    records that policies hold back
 OUT     records that members of a queue have and did not acknowledge
 yellow: away or retrying; red: somebody should act (lcap status)";

impl Mood {
    fn style(self) -> Style {
        match self {
            Self::Quiet => Style::new(),
            Self::Notable => Style::new().fg(Color::Yellow),
            Self::Alarming => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

/// Lines of a panel below its heading, with how they look.
type Rows = Vec<(String, Mood)>;

/// A panel in characters.
struct Content {
    title: &'static str,
    /// Width of the first column.
    name_width: usize,
    /// Headings of the others.
    heading: String,
    rows: Rows,
}

impl Content {
    /// Lines that it fills, with a blank one above all but the first.
    fn height(&self, at: usize) -> u16 {
        u16::try_from(self.rows.len() + 1 + usize::from(at > 0)).unwrap_or(u16::MAX)
    }
}

/// Draws everything. `every`: how often lcapd is asked; nothing for a picture that is printed.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, view: &mut View, now: Instant) {
    let width = usize::from(frame.area().width);
    let contents = Panel::ALL.map(|panel| content(panel, model, view, width));
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(summary(model, view, now, width), top);
    let heights = heights(&contents, view, middle.height);
    let areas = Layout::vertical(heights.map(Constraint::Length)).areas::<3>(middle);
    for ((panel, content), area) in Panel::ALL.into_iter().zip(&contents).zip(areas) {
        draw_panel(frame, panel, content, view, area);
    }
    if let Some((silence, why)) = model.silence(now) {
        let text = format!(" no answer for {}: {why}", short(silence.as_secs()));
        let style = Style::new().fg(Color::Red).add_modifier(Modifier::REVERSED);
        frame.render_widget(Line::styled(text, style), bottom);
    } else if let Some(error) = model.status().and_then(|status| status.store_error.as_ref()) {
        let text = format!(" nothing is cleared, state cannot be written: {error}");
        frame.render_widget(Line::styled(text, Mood::Alarming.style()), bottom);
    } else if view.interactive() {
        frame.render_widget(Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)), bottom);
    }
    if view.help() {
        draw_help(frame);
    }
}

/// Lines that everything needs.
pub(super) fn lines_needed(model: &Model, view: &View, width: u16) -> u16 {
    let panels = Panel::ALL.map(|panel| content(panel, model, view, width.into()));
    let heights = panels.iter().enumerate().map(|(at, panel)| panel.height(at));
    heights.fold(2, u16::saturating_add)
}

fn summary<'a>(model: &Model, view: &View, now: Instant, width: usize) -> Line<'a> {
    let style = Style::new().add_modifier(Modifier::REVERSED);
    let Some(status) = model.status() else {
        return Line::styled(format!("{:<width$}", " lcap top: waiting for lcapd"), style);
    };
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let (mdts, clients) = (model.mdts(), model.clients());
    let lag = mdts.iter().map(|mdt| mdt.lag).max().unwrap_or(0);
    let rate: u64 = mdts.iter().map(|mdt| mdt.rate).sum();
    let left = format!(
        " lcapd {}  {}  {}  {}/s  greatest lag {}",
        status.version,
        many(mdts.len(), "MDT"),
        many(clients.len(), "client"),
        number(rate),
        number(lag),
    );
    let right = match (view.interactive(), view.paused(), model.silence(now)) {
        (false, ..) => String::new(),
        (_, true, _) => "PAUSED ".to_owned(),
        (_, _, Some(_)) => "OLD ".to_owned(),
        _ => format!("every {} ", pace(view.every())),
    };
    let pad = width.saturating_sub(left.chars().count() + right.len());
    Line::styled(format!("{left}{:pad$}{right}", ""), style)
}

fn pace(every: Duration) -> String {
    if every < Duration::from_secs(1) {
        format!("{}ms", every.as_millis())
    } else {
        format!("{}s", every.as_secs())
    }
}

/// Every panel gets what it needs, if that fits; else the one in front gets most.
fn heights(contents: &[Content; 3], view: &View, total: u16) -> [u16; 3] {
    let needed = [0, 1, 2].map(|at: usize| contents[at].height(at));
    let front = view.panel() as usize;
    if view.zoomed() {
        let mut heights = [0; 3];
        heights[front] = total;
        return heights;
    }
    // Nobody gets less than a share while another has more than one.
    let mut heights = needed;
    loop {
        let sum: u32 = heights.iter().map(|h| u32::from(*h)).sum();
        if sum <= total.into() {
            return heights;
        }
        // The largest of the others gives first; the one in front keeps half of the screen.
        let others = (0..3).filter(|at| *at != front).max_by_key(|at| heights[*at]);
        let other = others.unwrap_or(front);
        let least = total * 3 / 10;
        let gives = if heights[other] > least { other } else { front };
        if heights[gives] == 0 {
            return heights;
        }
        heights[gives] -= 1;
    }
}

fn draw_panel(frame: &mut Frame<'_>, panel: Panel, content: &Content, view: &mut View, area: Rect) {
    if area.height == 0 {
        return;
    }
    let blank = u16::from(panel != Panel::Mdts && !view.zoomed());
    let area = Rect { y: area.y + blank, height: area.height.saturating_sub(blank), ..area };
    let room = usize::from(area.height.saturating_sub(1));
    let first = view.scroll_to_fit(panel, content.rows.len(), room);
    let in_front = view.interactive() && view.panel() == panel;
    let mut style = Style::new().add_modifier(Modifier::BOLD);
    if in_front {
        style = style.fg(Color::Cyan);
    }
    let (n, w) = (content.rows.len(), content.name_width);
    let title = if n > room {
        format!("{} [{}-{}/{n}]", content.title, first + 1, (first + room).min(n))
    } else {
        content.title.to_owned()
    };
    let heading = format!("{title:<w$} {}", content.heading);
    let mut lines = vec![Line::styled(heading, style)];
    for (text, mood) in content.rows.iter().skip(first).take(room) {
        lines.push(Line::styled(text.clone(), mood.style()));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_help(frame: &mut Frame<'_>) {
    let lines: Vec<Line<'_>> = HELP.lines().map(Line::raw).collect();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX);
    let area = frame.area();
    let (width, height) = (area.width.min(74), area.height.min(height));
    let (x, y) = ((area.width - width) / 2, (area.height - height) / 2);
    let area = Rect { x, y, width, height };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(Span::raw(" lcap top: any key closes this "));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn content(panel: Panel, model: &Model, view: &View, width: usize) -> Content {
    match panel {
        Panel::Mdts => mdts(model.mdts(), view, width),
        Panel::Streams => streams(model.streams(view.by_mdt()), view, width),
        Panel::Clients => clients(model.clients(), view, width),
    }
}

/// What is left of the width for the first column.
fn name_width(width: usize, others: usize, longest: usize) -> usize {
    width.saturating_sub(others).clamp(8, longest.max(20))
}

fn order<R>(rows: &mut [R], view: &View, lag: impl Fn(&R) -> u64, rate: impl Fn(&R) -> u64) {
    match view.sort() {
        Sort::Name => {}
        Sort::Lag => rows.sort_by_key(|row| std::cmp::Reverse(lag(row))),
        Sort::Rate => rows.sort_by_key(|row| std::cmp::Reverse(rate(row))),
    }
}

fn mdts(mut rows: Vec<MdtRow>, view: &View, width: usize) -> Content {
    order(&mut rows, view, |row| row.lag, |row| row.rate);
    let w = name_width(width, 59, rows.iter().map(|row| row.name.len()).max().unwrap_or(0));
    let wide = width > w + 59 + 12;
    let source = |text: &str| if wide { format!("  {text}") } else { String::new() };
    let heading = format!(
        "{:<12} {:>9} {:>12} {:>12} {:>9}{}",
        "STATE",
        "READ/s",
        "READ",
        "CLEARED",
        "LAG",
        source("SOURCE")
    );
    let mut lines = Rows::new();
    for row in rows {
        let text = format!(
            "{:<w$.w$} {:<12.12} {:>9} {:>12} {:>12} {:>9}{}",
            row.name,
            row.state,
            number(row.rate),
            row.read,
            row.cleared,
            number(row.lag),
            source(&row.source)
        );
        lines.push((text, row.mood));
        if let Some(reason) = row.reason {
            lines.push((format!("  {reason}"), row.mood));
        }
    }
    if lines.is_empty() {
        lines.push(("  none".to_owned(), Mood::Quiet));
    }
    Content { title: "MDT", name_width: w, heading, rows: lines }
}

fn streams(mut rows: Vec<StreamRow>, view: &View, width: usize) -> Content {
    order(&mut rows, view, |row| row.lag, |row| row.rate);
    let w = name_width(width, 60, rows.iter().map(|row| row.name.len()).max().unwrap_or(0));
    let heading = format!(
        "{:<9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "DELIVERY", "SENT/s", "DROPPED/s", "HELD", "OUT", "LAG"
    );
    let mut lines = Rows::new();
    for row in rows {
        let text = format!(
            "{:<w$.w$} {:<9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            row.name,
            row.kind,
            number(row.rate),
            number(row.dropped_rate),
            number(row.held),
            number(row.outstanding),
            number(row.lag)
        );
        lines.push((text, row.mood));
        lines.extend(row.faults.into_iter().map(|fault| (format!("  {fault}"), row.mood)));
    }
    Content { title: "STREAM", name_width: w, heading, rows: lines }
}

fn clients(mut rows: Vec<ClientRow>, view: &View, width: usize) -> Content {
    order(&mut rows, view, |row| row.lag, |row| row.rate);
    let w = name_width(width, 61, rows.iter().map(|row| row.name.len()).max().unwrap_or(0));
    let heading =
        format!("{:<12} {:<11} {:>9} {:>9}  {}", "STREAM", "STATE", "ACKED/s", "LAG", "MOST ON");
    let mut lines: Rows = rows
        .into_iter()
        .map(|row| {
            let text = format!(
                "{:<w$.w$} {:<12.12} {:<11.11} {:>9} {:>9}  {}",
                row.name,
                row.stream,
                row.state,
                number(row.rate),
                number(row.lag),
                row.mdt
            );
            (text, row.mood)
        })
        .collect();
    if lines.is_empty() {
        let text = "  nobody is registered: nothing is kept, and nothing is cleared";
        lines.push((text.to_owned(), Mood::Notable));
    }
    Content { title: "READER", name_width: w, heading, rows: lines }
}
