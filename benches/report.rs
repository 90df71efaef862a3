//! What was measured: a table for people, JSON for programs, plots.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// The median of all runs.
    pub(crate) value: f64,
    /// Of `value`, `min`, `max` and `reference`.
    pub(crate) unit: &'static str,
    /// The smallest of all runs.
    pub(crate) min: f64,
    /// The largest of all runs.
    pub(crate) max: f64,
    /// What it is compared with, measured in the same run; its median.
    pub(crate) reference: Option<f64>,
    /// `value / reference`.
    pub(crate) ratio: Option<f64>,
    /// What is to be reached, as a sentence.
    pub(crate) target: Option<String>,
    /// Whether it was.
    pub(crate) met: Option<bool>,
    /// How it was measured.
    pub(crate) command: String,
}

impl Row {
    /// The median of `samples`.
    pub(crate) fn new(name: &str, unit: &'static str, samples: &[f64], command: &str) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |n: usize| sorted.get(n).copied().unwrap_or(f64::NAN);
        Self {
            name: name.to_owned(),
            value: at(sorted.len() / 2),
            unit,
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            reference: None,
            ratio: None,
            target: None,
            met: None,
            command: command.to_owned(),
        }
    }

    /// Compares with another figure of this run.
    #[must_use]
    pub(crate) fn against(mut self, reference: f64) -> Self {
        (self.reference, self.ratio) = (Some(reference), Some(self.value / reference));
        self
    }

    /// At least so much is wanted.
    #[must_use]
    pub(crate) fn at_least(mut self, bound: f64) -> Self {
        self.target = Some(format!("at least {} {}", short(bound), self.unit));
        self.met = Some(self.value >= bound);
        self
    }

    /// At most so much is wanted.
    #[must_use]
    pub(crate) fn at_most(mut self, bound: f64) -> Self {
        self.target = Some(format!("at most {} {}", short(bound), self.unit));
        self.met = Some(self.value <= bound);
        self
    }

    /// At least that part of the reference is wanted.
    #[must_use]
    pub(crate) fn at_least_ratio(mut self, bound: f64) -> Self {
        self.target = Some(format!("at least {:.0} % of the reference", bound * 100.0));
        self.met = self.ratio.map(|ratio| ratio >= bound);
        self
    }
}

/// Figures that belong together and are drawn as one line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    /// Becomes the file's name.
    pub(crate) name: String,
    /// What is varied.
    pub(crate) x: &'static str,
    /// What is measured.
    pub(crate) y: &'static str,
    /// The points.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    rows: Vec<Row>,
    series: Vec<Series>,
}

/// Three significant digits, with a suffix for millions and thousands.
fn short(value: f64) -> String {
    let digits = |v: f64| match v.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    match value.abs() {
        v if v >= 1e6 => format!("{:.*} M", digits(value / 1e6), value / 1e6),
        v if v >= 1e4 => format!("{:.*} k", digits(value / 1e3), value / 1e3),
        _ => format!("{:.*}", digits(value), value),
    }
}

impl Report {
    /// An empty report of that machine.
    pub(crate) fn new(machine: String) -> Self {
        println!("{machine}\n");
        let head = ["value", "min", "max", "reference", "ratio"];
        println!(
            "{:52} {:>10} {:>10} {:>10} {:>10} {:>6}  unit, target",
            "", head[0], head[1], head[2], head[3], head[4]
        );
        Self { machine, rows: Vec::new(), series: Vec::new() }
    }

    /// Takes a figure in, and shows it at once.
    pub(crate) fn add(&mut self, row: Row) {
        let optional = |value: Option<f64>| value.map(short).unwrap_or_default();
        let ratio = row.ratio.map(|ratio| format!("{:.0} %", ratio * 100.0)).unwrap_or_default();
        let verdict = match (&row.target, row.met) {
            (Some(target), Some(true)) => format!("; {target}: met"),
            (Some(target), _) => format!("; {target}: MISSED"),
            _ => String::new(),
        };
        println!(
            "{:52} {:>10} {:>10} {:>10} {:>10} {:>6}  {}{verdict}",
            row.name,
            short(row.value),
            short(row.min),
            short(row.max),
            optional(row.reference),
            ratio,
            row.unit,
        );
        self.rows.push(row);
    }

    /// Takes a line of points in.
    pub(crate) fn add_series(&mut self, series: Series) {
        self.series.push(series);
    }

    /// Writes `results.json` and a plot per series into `dir`.
    ///
    /// # Errors
    /// If that cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("results.json"), serde_json::to_vec_pretty(self)?)?;
        for series in &self.series {
            let file = series.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            fs::write(dir.join(file).with_extension("svg"), plot(series))?;
        }
        println!("\nwritten: {}/results.json and {} plots", dir.display(), self.series.len());
        Ok(())
    }
}

/// Size of a plot, and where its axes are, in pixels.
const W: f64 = 640.0;
const H: f64 = 320.0;
const LEFT: f64 = 80.0;
const BOTTOM: f64 = 50.0;
const TOP: f64 = 40.0;

/// A line over a logarithmic axis from zero up.
fn plot(series: &Series) -> String {
    let xs = || series.points.iter().map(|(x, _)| x.max(1.0).log10());
    let (lo, hi) = (xs().fold(f64::MAX, f64::min), xs().fold(f64::MIN, f64::max));
    let top = series.points.iter().map(|(_, y)| *y).fold(0.0, f64::max) * 1.1;
    let px = |x: f64| LEFT + (x.max(1.0).log10() - lo) / (hi - lo).max(1e-9) * (W - LEFT - 30.0);
    let py = |y: f64| H - BOTTOM - y / top.max(1e-12) * (H - BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{W}\" height=\"{H}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"20\">{}</text>\n",
        series.name
    );
    let (base, end) = (H - BOTTOM, W - 30.0);
    let _ =
        writeln!(svg, "<path d=\"M{LEFT},{TOP}V{base}H{end}\" fill=\"none\" stroke=\"black\"/>");
    let mut line = String::new();
    for (x, y) in &series.points {
        let (px, py) = (px(*x), py(*y));
        let _ = write!(line, "{}{px:.1},{py:.1}", if line.is_empty() { 'M' } else { 'L' });
        let _ = writeln!(
            svg,
            "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\"/>\n<text x=\"{px:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}</text>\n<text x=\"{px:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}</text>",
            base + 16.0,
            short(*x),
            py - 8.0,
            short(*y),
        );
    }
    let _ = writeln!(svg, "<path d=\"{line}\" fill=\"none\" stroke=\"steelblue\"/>");
    let _ =
        writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{} — {}</text>", H - 12.0, series.x, series.y);
    svg.push_str("</svg>\n");
    svg
}
