//! What is seen while the demonstration runs: a table that is drawn anew on a terminal, a line per
//! second elsewhere.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use lcap_wire::control::Status;

use super::scene::Scene;
use super::tally::Count;
use crate::screen::grouped;

/// Rates are those of the last second.
const WINDOW: Duration = Duration::from_secs(1);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Nowhere,
    Terminal,
    Lines,
}

/// Shows how far everything is.
#[derive(Debug)]
pub(super) struct Show {
    to: Where,
    /// When, and what each row said then.
    history: VecDeque<(Duration, Vec<u64>)>,
    drawn_lines: usize,
    next_line: Duration,
}

impl Show {
    pub(super) fn nothing() -> Self {
        Self::to(Where::Nowhere)
    }

    pub(super) fn on_stdout() -> Self {
        Self::to(if io::stdout().is_terminal() { Where::Terminal } else { Where::Lines })
    }

    fn to(to: Where) -> Self {
        Self { to, history: VecDeque::new(), drawn_lines: 0, next_line: LINE_EVERY }
    }

    /// Says who takes part.
    pub(super) fn cast(&self, scene: &Scene, lcapd: u32, clients: &[u32]) {
        if self.to == Where::Nowhere {
            return;
        }
        println!("lcapd (process {lcapd}) reads:");
        for mdt in scene.mdts() {
            println!("  {}  {} records, {}", mdt.name, grouped(mdt.n_records), mdt.what);
        }
        println!("policy fifo, then:");
        for (role, pid) in scene.roles().iter().zip(clients) {
            let what = match (&role.c_example, role.members) {
                (Some(_), _) => "a registered reader written in C".to_owned(),
                (None, 0) => "a registered reader".to_owned(),
                (None, n) => format!("{n} members of the queue"),
            };
            println!("  stream {:<10} {:<10} {what} (process {pid})", role.stream, role.name);
        }
        println!();
    }

    /// Shows the present state.
    pub(super) fn progress(
        &mut self,
        now: Duration,
        scene: &Scene,
        status: &Status,
        counts: &[Count],
    ) {
        match self.to {
            Where::Nowhere => {}
            Where::Terminal => self.draw(now, scene, status, counts),
            Where::Lines if now >= self.next_line => {
                self.next_line = now + LINE_EVERY;
                self.line(now, status, counts);
            }
            Where::Lines => {}
        }
    }

    /// Leaves the last picture as it is.
    pub(super) fn end(&self) {
        if self.to != Where::Nowhere {
            println!();
        }
    }

    /// Notes the rows' numbers and gives their rates.
    fn rates(&mut self, now: Duration, numbers: Vec<u64>) -> Vec<u64> {
        while self.history.len() > 1 && self.history[1].0 + WINDOW <= now {
            self.history.pop_front();
        }
        let before = self.history.front().cloned().unwrap_or_default();
        let ms = u64::try_from((now - before.0).as_millis()).unwrap_or(u64::MAX).max(1);
        let was = |at: usize| before.1.get(at).copied().unwrap_or(0);
        let rate = |(at, n): (usize, &u64)| n.saturating_sub(was(at)).saturating_mul(1000) / ms;
        let rates = numbers.iter().enumerate().map(rate).collect();
        self.history.push_back((now, numbers));
        rates
    }

    fn draw(&mut self, now: Duration, scene: &Scene, status: &Status, counts: &[Count]) {
        let mut rows: Vec<(String, u64, String)> = Vec::new();
        for mdt in &status.mdts {
            let cleared = format!("{:>13} cleared", grouped(mdt.cleared_index));
            rows.push((format!("read from {}", mdt.name), mdt.records_read, cleared));
        }
        for (stream, client) in scene.clients() {
            let own = counts.iter().filter(|count| count.client == client);
            let n = own.map(|count| count.records).sum();
            rows.push((format!("{stream} to {client}"), n, String::new()));
        }
        let rates = self.rates(now, rows.iter().map(|row| row.1).collect());
        let mut text = String::new();
        if self.drawn_lines > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn_lines);
        }
        let seconds = now.as_secs_f64();
        let _ = writeln!(text, "\x1b[2K{seconds:>6.1} s {:>32} {:>12}", "records", "per second");
        for ((what, n, more), rate) in rows.iter().zip(rates) {
            let (n, rate) = (grouped(*n), grouped(rate));
            let _ = writeln!(text, "\x1b[2K  {what:<26} {n:>12} {rate:>12} {more}");
        }
        self.drawn_lines = rows.len() + 1;
        print!("{text}");
        let _ = io::stdout().flush();
    }

    fn line(&mut self, now: Duration, status: &Status, counts: &[Count]) {
        let read = status.mdts.iter().map(|mdt| mdt.records_read).sum();
        let cleared = status.mdts.iter().map(|mdt| mdt.cleared_index).sum();
        let received = counts.iter().map(|count| count.records).sum();
        let rates = self.rates(now, vec![read, received]);
        let rate = |at: usize| grouped(rates.get(at).copied().unwrap_or(0));
        println!(
            "{:>5.1} s  read {} ({}/s)  received by clients {} ({}/s)  cleared {}",
            now.as_secs_f64(),
            grouped(read),
            rate(0),
            grouped(received),
            rate(1),
            grouped(cleared),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_second() {
        let mut show = Show::nothing();
        let at = Duration::from_millis;
        assert_eq!(show.rates(at(500), vec![500]), [1000]);
        assert_eq!(show.rates(at(1000), vec![500]), [0]);
        assert_eq!(show.rates(at(1500), vec![1500]), [1000]);
        assert_eq!(show.rates(at(2000), vec![1500]), [1000]);
        assert_eq!(show.rates(at(3000), vec![1500]), [0]);
    }
}
