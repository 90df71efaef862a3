//! Journals: what happened, a line each, written so that a killed process loses none that matters.
//! The format is in `tests/README.md`.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::str::{FromStr, SplitAsciiWhitespace};
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970.
pub type Time = u64;

/// The time now.
pub fn now() -> Time {
    nanos(SystemTime::now())
}

/// A time of a file, say.
pub fn nanos(time: SystemTime) -> Time {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// A registered reader.
    Reader,
    /// An unregistered client of a broadcast stream.
    Ephemeral,
    /// A member of a queue.
    Member,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The file is about this client process: kind, stream, MDT, reader's name (`-` without).
    Client(ClientKind, String, String, String),
    /// The application was given these indexes, one after the other.
    Got(u64, u64),
    /// It is about to clear what it was given up to here.
    Ack(u64),
    /// It was told that these are gone.
    Gap(u64, u64),
    /// The MDT has (or will have) these records.
    Exists(String, u64, u64),
    /// The MDT has forgotten up to here.
    Cleared(String, u64),
    /// Reader (`-`: a queue) of a stream: records of the MDT after the index are kept for it.
    Holder(String, String, String, u64),
    /// Reader of a stream: nothing is kept for it any more.
    Gone(String, String),
    /// A process was killed with `SIGKILL`: which.
    Kill(String),
    /// Every client was given the time to come to the end.
    Finished,
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<(Time, Self), String> {
        let bad = || format!("not a journal line: `{text}`");
        let mut words = text.split_ascii_whitespace();
        let time = number(&mut words).ok_or_else(bad)?;
        let word = words.next().ok_or_else(bad)?;
        let line = Self::from_words(word, &mut words).ok_or_else(bad)?;
        if words.next().is_some() { Err(bad()) } else { Ok((time, line)) }
    }

    fn from_words(word: &str, words: &mut SplitAsciiWhitespace<'_>) -> Option<Self> {
        Some(match word {
            "client" => {
                let kind = match words.next()? {
                    "reader" => ClientKind::Reader,
                    "ephemeral" => ClientKind::Ephemeral,
                    "member" => ClientKind::Member,
                    _ => return None,
                };
                Self::Client(kind, text(words)?, text(words)?, text(words)?)
            }
            "got" => Self::Got(number(words)?, number(words)?),
            "ack" => Self::Ack(number(words)?),
            "gap" => Self::Gap(number(words)?, number(words)?),
            "exists" => Self::Exists(text(words)?, number(words)?, number(words)?),
            "cleared" => Self::Cleared(text(words)?, number(words)?),
            "holder" => Self::Holder(text(words)?, text(words)?, text(words)?, number(words)?),
            "gone" => Self::Gone(text(words)?, text(words)?),
            "kill" => Self::Kill(text(words)?),
            "finished" => Self::Finished,
            _ => return None,
        })
    }
}

fn text(words: &mut SplitAsciiWhitespace<'_>) -> Option<String> {
    words.next().map(str::to_owned)
}

fn number<T: FromStr>(words: &mut SplitAsciiWhitespace<'_>) -> Option<T> {
    words.next()?.parse().ok()
}

impl Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(kind, stream, mdt, reader) => {
                let kind = match kind {
                    ClientKind::Reader => "reader",
                    ClientKind::Ephemeral => "ephemeral",
                    ClientKind::Member => "member",
                };
                write!(f, "client {kind} {stream} {mdt} {reader}")
            }
            Self::Got(first, last) => write!(f, "got {first} {last}"),
            Self::Ack(upto) => write!(f, "ack {upto}"),
            Self::Gap(first, last) => write!(f, "gap {first} {last}"),
            Self::Exists(mdt, first, last) => write!(f, "exists {mdt} {first} {last}"),
            Self::Cleared(mdt, upto) => write!(f, "cleared {mdt} {upto}"),
            Self::Holder(stream, reader, mdt, start) => {
                write!(f, "holder {stream} {reader} {mdt} {start}")
            }
            Self::Gone(stream, reader) => write!(f, "gone {stream} {reader}"),
            Self::Kill(what) => write!(f, "kill {what}"),
            Self::Finished => f.write_str("finished"),
        }
    }
}

/// A journal that is being written. Lines leave the process when [`Journal::flush`] is called.
#[derive(Debug)]
pub struct Journal {
    file: File,
    waiting: String,
}

impl Journal {
    /// Appends to a file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn append(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, waiting: String::new() })
    }

    /// Notes what happens now.
    pub fn note(&mut self, line: &Line) {
        self.note_at(now(), line);
    }

    /// Notes what happened at some time.
    pub fn note_at(&mut self, time: Time, line: &Line) {
        use std::fmt::Write as _;
        let _ = writeln!(self.waiting, "{time} {line}");
    }

    /// Hands everything to the kernel, where it survives the end of the process.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(self.waiting.as_bytes())?;
        self.waiting.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let name = || "a-MDT0000".to_owned();
        let own = str::to_owned;
        let lines = [
            Line::Client(ClientKind::Member, own("work"), name(), own("-")),
            Line::Got(1, 7),
            Line::Ack(7),
            Line::Gap(8, 9),
            Line::Exists(name(), 1, 100),
            Line::Cleared(name(), 5),
            Line::Holder(own("changelog"), own("r1"), name(), 0),
            Line::Gone(own("changelog"), own("r1")),
            Line::Kill(own("lcapd")),
            Line::Finished,
        ];
        for line in lines {
            assert_eq!(Line::parse(&format!("12 {line}")), Ok((12, line)));
        }
        for bad in
            ["", "12", "x got 1 2", "1 got 1", "1 got 1 2 3", "1 dance", "1 client cook s m -"]
        {
            assert!(Line::parse(bad).is_err(), "{bad}");
        }
    }
}
