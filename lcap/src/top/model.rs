//! What the view knows: two answers of lcapd, and what became of the numbers between them.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use lcap_wire::control::{Delivery, MdtStatus, Status, StreamStatus};

/// An answer, and when it came.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    status: Status,
}

/// The last answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    before: Option<Sample>,
    now: Option<Sample>,
    /// Since when there is no answer, and why.
    silent: Option<(Instant, String)>,
}

/// How urgent a row is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    #[default]
    Quiet,
    /// It copes, or falls behind.
    Notable,
    /// Somebody should act.
    Alarming,
}

/// One MDT.
#[derive(Clone, Debug)]
pub(super) struct MdtRow {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) mood: Mood,
    pub(super) rate: u64,
    pub(super) read: u64,
    pub(super) cleared: u64,
    pub(super) lag: u64,
    pub(super) source: String,
    pub(super) reason: Option<String>,
}

/// One stream, over all MDTs or of one.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamRow {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) mood: Mood,
    /// What is the matter with its policies.
    pub(super) faults: Vec<String>,
    pub(super) rate: u64,
    pub(super) dropped_rate: u64,
    pub(super) held: u64,
    pub(super) outstanding: u64,
    pub(super) lag: u64,
}

/// A reader, or a member of a queue.
#[derive(Clone, Debug)]
pub(super) struct ClientRow {
    pub(super) name: String,
    pub(super) stream: String,
    pub(super) state: String,
    pub(super) mood: Mood,
    pub(super) rate: u64,
    pub(super) lag: u64,
    /// The MDT that it is furthest behind on, or the member's.
    pub(super) mdt: String,
}

impl Model {
    /// Takes an answer in.
    pub(super) fn answered(&mut self, at: Instant, status: Status) {
        let fresh = Sample { at, status };
        let before = self.now.replace(fresh.clone());
        // Counters of another life have nothing to do with ours.
        self.before = before.filter(|sample| sample.status.epoch == fresh.status.epoch);
        self.silent = None;
    }

    /// Notes that there was no answer.
    pub(super) fn failed(&mut self, at: Instant, why: String) {
        let since = self.silent.take().map_or(at, |(since, _)| since);
        self.silent = Some((since, why));
    }

    /// For how long, and why, there has been no answer.
    pub(super) fn silence(&self, now: Instant) -> Option<(Duration, &str)> {
        let (since, why) = self.silent.as_ref()?;
        Some((now.saturating_duration_since(*since), why))
    }

    /// The last answer.
    pub(super) fn status(&self) -> Option<&Status> {
        self.now.as_ref().map(|sample| &sample.status)
    }

    /// How much a number has grown in a second. `pick` finds it in an answer.
    fn rate(&self, pick: impl Fn(&Status) -> Option<u64>) -> u64 {
        let (Some(before), Some(now)) = (&self.before, &self.now) else { return 0 };
        let (Some(was), Some(is)) = (pick(&before.status), pick(&now.status)) else { return 0 };
        let ms = now.at.saturating_duration_since(before.at).as_millis().max(1);
        let rate = u128::from(is.saturating_sub(was)) * 1000 / ms;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    pub(super) fn mdts(&self) -> Vec<MdtRow> {
        let mdts = self.status().map(|status| status.mdts.as_slice()).unwrap_or_default();
        let row = |mdt: &MdtStatus| MdtRow {
            name: mdt.name.clone(),
            state: mdt.state.clone(),
            mood: match mdt.state.as_str() {
                "reading" | "idle" => Mood::Quiet,
                "waiting" => Mood::Notable,
                _ => Mood::Alarming,
            },
            rate: self.rate(|s| Some(find_mdt(s, &mdt.name)?.records_read)),
            read: mdt.read_index,
            cleared: mdt.cleared_index,
            lag: mdt.lag_records,
            source: mdt.source.clone(),
            reason: mdt.reason.clone(),
        };
        mdts.iter().map(row).collect()
    }

    /// One row per stream, or, `by_mdt`, one per stream and MDT.
    pub(super) fn streams(&self, by_mdt: bool) -> Vec<StreamRow> {
        let mut rows = Vec::new();
        for stream in self.status().map(|s| s.streams.as_slice()).unwrap_or_default() {
            let each = stream.mdts.keys().map(|mdt| self.stream_of_mdt(stream, mdt));
            if by_mdt {
                rows.extend(
                    each.map(|(mdt, row)| StreamRow {
                        name: format!("{} {mdt}", stream.name),
                        ..row
                    }),
                );
            } else {
                let mut all = StreamRow {
                    name: stream.name.clone(),
                    kind: kind(stream),
                    ..StreamRow::default()
                };
                for fault in stream.policies.iter().filter(|policy| policy.state != "active") {
                    let why = fault.fault.as_deref().unwrap_or_default();
                    all.faults.push(format!("policy {} {}: {why}", fault.module, fault.state));
                    all.mood = Mood::Notable;
                }
                for (_, row) in each {
                    all.mood = all.mood.max(row.mood);
                    all.rate += row.rate;
                    all.dropped_rate += row.dropped_rate;
                    all.held += row.held;
                    all.outstanding += row.outstanding;
                    all.lag += row.lag;
                }
                rows.push(all);
            }
        }
        rows
    }

    fn stream_of_mdt<'a>(&self, stream: &StreamStatus, mdt: &'a str) -> (&'a str, StreamRow) {
        let find = |s: &Status| Some(*find_stream(s, &stream.name)?.mdts.get(mdt)?);
        let here = stream.mdts.get(mdt).copied().unwrap_or_default();
        let row = StreamRow {
            name: String::new(),
            kind: kind(stream),
            mood: if here.stopped { Mood::Alarming } else { Mood::Quiet },
            faults: Vec::new(),
            rate: self.rate(|s| find(s).map(|at| at.sent)),
            dropped_rate: self.rate(|s| find(s).map(|at| at.dropped)),
            held: here.held,
            outstanding: here.outstanding,
            lag: if keeps_records(stream) { self.behind(mdt, here.watermark) } else { 0 },
        };
        (mdt, row)
    }

    pub(super) fn clients(&self) -> Vec<ClientRow> {
        let mut rows = Vec::new();
        for stream in self.status().map(|s| s.streams.as_slice()).unwrap_or_default() {
            for reader in &stream.readers {
                let acknowledged = |s: &Status| {
                    let readers = &find_stream(s, &stream.name)?.readers;
                    let reader = readers.iter().find(|other| other.name == reader.name)?;
                    Some(reader.watermark.values().sum())
                };
                let lags = reader.watermark.iter();
                let worst = lags.max_by_key(|(mdt, at)| self.behind(mdt, **at));
                let (state, mood) = match (reader.suspended, reader.sessions) {
                    (true, _) => ("suspended".to_owned(), Mood::Alarming),
                    (false, 0) => (format!("away {}", short(reader.idle_seconds)), Mood::Notable),
                    (false, _) => ("connected".to_owned(), Mood::Quiet),
                };
                rows.push(ClientRow {
                    name: reader.name.clone(),
                    stream: stream.name.clone(),
                    state,
                    mood,
                    rate: self.rate(acknowledged),
                    lag: reader.lag_records,
                    mdt: worst.map(|(mdt, _)| mdt.clone()).unwrap_or_default(),
                });
            }
            for member in &stream.members {
                rows.push(ClientRow {
                    name: format!("member {}", member.session),
                    stream: stream.name.clone(),
                    state: match member.lanes.len() {
                        0 | 1 => "connected".to_owned(),
                        n => format!("{n} lanes"),
                    },
                    mood: Mood::Quiet,
                    rate: 0,
                    lag: member.outstanding,
                    mdt: member.mdt.clone(),
                });
            }
        }
        rows
    }

    fn behind(&self, mdt: &str, watermark: u64) -> u64 {
        let read = self.status().and_then(|s| find_mdt(s, mdt)).map_or(0, |m| m.read_index);
        read.saturating_sub(watermark)
    }
}

fn kind(stream: &StreamStatus) -> &'static str {
    match stream.delivery {
        Delivery::Broadcast => "broadcast",
        Delivery::Queue => "queue",
    }
}

/// A broadcast stream without readers keeps nothing, so it cannot be behind.
fn keeps_records(stream: &StreamStatus) -> bool {
    stream.delivery == Delivery::Queue || !stream.readers.is_empty()
}

fn find_mdt<'a>(status: &'a Status, name: &str) -> Option<&'a MdtStatus> {
    status.mdts.iter().find(|mdt| mdt.name == name)
}

fn find_stream<'a>(status: &'a Status, name: &str) -> Option<&'a StreamStatus> {
    status.streams.iter().find(|stream| stream.name == name)
}

/// Seconds as `42s`, `17m`, `5h` or `3d`.
pub(super) fn short(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
