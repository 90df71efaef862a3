//! What was found, and how it is told.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// Good to know; or something that cannot be seen from here.
    Note,
    Warning,
    Error,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// The MDT, or the part of the machine.
    pub(super) about: String,
    pub(super) what: String,
    /// What to type, or to write into the configuration.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        level: Level,
        about: &str,
        what: impl Into<String>,
        fix: Option<String>,
    ) {
        self.findings.push(Finding { level, about: about.to_owned(), what: what.into(), fix });
    }

    pub(super) fn ok(&mut self, about: &str, what: impl Into<String>) {
        self.add(Level::Ok, about, what, None);
    }

    pub(super) fn note(&mut self, about: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Note, about, what, Some(fix.into()).filter(|fix| !fix.is_empty()));
    }

    pub(super) fn warning(&mut self, about: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Warning, about, what, Some(fix.into()));
    }

    pub(super) fn error(&mut self, about: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Error, about, what, Some(fix.into()));
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    pub(super) fn errors(&self) -> usize {
        self.count(Level::Error)
    }

    /// For people: grouped by what it is about.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut about = "";
        for finding in &self.findings {
            if finding.about != about {
                about = &finding.about;
                let _ = writeln!(text, "{about}");
            }
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Note => "note",
                Level::Warning => "WARNING",
                Level::Error => "ERROR",
            };
            let _ = writeln!(text, "  {level:<8} {}", finding.what);
            for line in finding.fix.iter().flat_map(|fix| fix.lines()) {
                let _ = writeln!(text, "           > {line}");
            }
        }
        let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let (errors, warnings) = (self.errors(), self.count(Level::Warning));
        let _ = writeln!(text, "\n{}, {}", many(errors, "error"), many(warnings, "warning"));
        text
    }
}
