//! The live actions, as events leave them: what `top` and `stats` show.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lcap_ffi::hsm_action::{EventKind, Slot};

use super::watch::{Event, News};

/// MDT, action and status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row {
    pub mdt: Arc<str>,
    pub action: Arc<str>,
    pub status: Arc<str>,
}

/// Figures of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Live actions.
    pub count: u64,
    /// Actions that have come into this state since the beginning.
    pub entered: u64,
}

/// An action is known by its place; without one, by its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Slot(Arc<str>, Slot),
    Key(Arc<str>, String),
}

#[derive(Clone, Copy, Debug)]
struct Live {
    row: usize,
    /// Number of its event, for the order in `by_age`.
    serial: u64,
    taken_ms: u64,
}

/// A stream of an MDT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamFigures {
    pub length: u64,
    /// First and last entry, if the stream says so.
    edges_ms: Option<(u64, u64)>,
    /// First and last event that came.
    seen_ms: Option<(u64, u64)>,
}

impl StreamFigures {
    /// Milliseconds of the first and the last event.
    pub(crate) fn edges_ms(&self) -> Option<(u64, u64)> {
        self.edges_ms.filter(|(_, last)| *last > 0).or(self.seen_ms)
    }
}

/// What is live now.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    live: HashMap<Identity, Live>,
    rows: Vec<(Row, Figures)>,
    row_of: HashMap<Row, usize>,
    /// Live actions by the age of their last event: (milliseconds, serial) → row and FID.
    by_age: BTreeMap<(u64, u64), (usize, Box<str>)>,
    /// Identities without a slot, by key, for purges that have only that.
    by_key: HashMap<(Arc<str>, String), Slot>,
    pub streams: BTreeMap<Arc<str>, StreamFigures>,
    pub n_events: u64,
    pub malformed: u64,
    pub last_event_ms: Option<u64>,
    pub trouble: Option<String>,
    words: HashMap<String, Arc<str>>,
}

impl Counts {
    /// Takes news in.
    pub(crate) fn take(&mut self, news: News) {
        match news {
            News::Event(event) => self.event(event),
            News::Stream { mdt, length, edges_ms } => {
                self.streams.insert(mdt, StreamFigures { length, edges_ms, seen_ms: None });
            }
            News::Malformed => self.malformed += 1,
            News::Trouble(trouble) => self.trouble = trouble,
        }
    }

    fn event(&mut self, event: Event) {
        self.n_events += 1;
        self.last_event_ms = self.last_event_ms.max(Some(event.taken_ms));
        let stream = self.streams.entry(Arc::clone(&event.mdt)).or_default();
        let (first, last) = stream.seen_ms.unwrap_or((event.taken_ms, event.taken_ms));
        stream.seen_ms = Some((first.min(event.taken_ms), last.max(event.taken_ms)));
        let by_key = (Arc::clone(&event.mdt), event.key);
        let slot = match (event.slot, event.kind) {
            (Some(slot), EventKind::Purged) => {
                self.by_key.remove(&by_key);
                Some(slot)
            }
            (Some(slot), _) => {
                self.by_key.insert(by_key.clone(), slot);
                Some(slot)
            }
            (None, _) => self.by_key.remove(&by_key),
        };
        let identity = match slot {
            Some(slot) => Identity::Slot(Arc::clone(&event.mdt), slot),
            None => Identity::Key(by_key.0, by_key.1),
        };
        let before = self.live.remove(&identity);
        if let Some(before) = before {
            self.rows[before.row].1.count -= 1;
            self.by_age.remove(&(before.taken_ms, before.serial));
        }
        if event.kind == EventKind::Purged {
            return;
        }
        let row = self.row(event.mdt, &event.action, &event.status);
        let figures = &mut self.rows[row].1;
        figures.count += 1;
        if before.is_none_or(|before| before.row != row) {
            figures.entered += 1;
        }
        let live = Live { row, serial: self.n_events, taken_ms: event.taken_ms };
        self.by_age.insert((live.taken_ms, live.serial), (row, event.fid.into()));
        self.live.insert(identity, live);
    }

    fn row(&mut self, mdt: Arc<str>, action: &str, status: &str) -> usize {
        let mut word = |text: &str| -> Arc<str> {
            if let Some(word) = self.words.get(text) {
                return Arc::clone(word);
            }
            let word: Arc<str> = text.into();
            self.words.insert(text.to_owned(), Arc::clone(&word));
            word
        };
        let row = Row { mdt, action: word(action), status: word(status) };
        if let Some(&at) = self.row_of.get(&row) {
            return at;
        }
        self.rows.push((row.clone(), Figures::default()));
        self.row_of.insert(row, self.rows.len() - 1);
        self.rows.len() - 1
    }

    /// How many actions are live.
    pub(crate) fn n_live(&self) -> usize {
        self.live.len()
    }

    /// Every row that there ever was, in order.
    pub(crate) fn rows(&self) -> BTreeMap<&Row, Figures> {
        self.rows.iter().map(|(row, figures)| (row, *figures)).collect()
    }

    /// The live actions that have not changed for longest: milliseconds of their last event, row
    /// and FID.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (u64, &Row, &str)> {
        self.by_age.iter().map(|(&(ms, _), (row, fid))| (ms, &self.rows[*row].0, &**fid))
    }
}
