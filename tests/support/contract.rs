//! What consumers of lustre-hsm-action-stream need of every entry, and what they make of them.
//!
//! Two views of one stream: `hsm-stream-stats` knows an action by its slot, `hsm-action-top` and
//! the original's maintenance by `action_key`. A right stream gives both the same live actions.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lcap_ffi::hsm_action::line::ActionLine;
use serde_json::Value;

use crate::redis::StreamEntry;

/// Catalogue and record number.
pub type Place = (u64, u64);
/// `FID:ACTION` and status.
pub type State = (String, String);

/// What one stream shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Views {
    /// Live actions by their place.
    pub by_slot: BTreeMap<Place, State>,
    /// Status of live actions by their key.
    pub by_key: BTreeMap<String, String>,
    /// How many entries of each kind there are.
    pub kinds: BTreeMap<String, usize>,
    /// Every action that ever was new.
    pub seen: BTreeMap<State, usize>,
    /// Rules that are broken.
    pub problems: Vec<String>,
}

/// Reads a stream as its consumers do.
pub fn read(key: &str, entries: &[StreamEntry]) -> Views {
    let mut views = Views::default();
    let mdt = key.rsplit(':').next().unwrap_or_default();
    for entry in entries {
        let before = views.problems.len();
        views.take(mdt, entry);
        for problem in views.problems.iter_mut().skip(before) {
            *problem = format!("{key} {}: {problem}", entry.id);
        }
    }
    views
}

impl Views {
    fn take(&mut self, mdt: &str, entry: &StreamEntry) {
        let mut wrong = |problem: String| self.problems.push(problem);
        let data = match &entry.fields[..] {
            [(name, data)] if name == "data" => data,
            fields => {
                let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
                return wrong(format!("C2: fields {names:?}"));
            }
        };
        if !data.is_ascii() {
            wrong("C2: not ASCII".to_owned());
        }
        let Ok(Value::Object(data)) = serde_json::from_slice::<Value>(data) else {
            return wrong("C2: not a JSON object".to_owned());
        };
        let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| data.get(name).and_then(Value::as_u64);
        let kind = text("event_type").to_owned();
        if !matches!(kind.as_str(), "NEW" | "UPDATE" | "PURGED") {
            wrong(format!("C3, C11: event_type {kind:?}"));
        }
        if (kind == "PURGED") != (text("status") == "PURGED") {
            wrong(format!("C3: {kind} with status {:?}", text("status")));
        }
        if text("mdt") != mdt {
            wrong(format!("C1: mdt {:?}", text("mdt")));
        }
        let action_key = text("action_key").to_owned();
        let place = number("cat_idx").zip(number("rec_idx"));
        if place.is_none() || action_key.is_empty() {
            wrong(format!("C4: place {place:?}, action_key {action_key:?}"));
        }
        let (action, status, fid) = (text("action"), text("status"), text("fid"));
        if kind != "PURGED" && (action.is_empty() || status.is_empty() || fid.is_empty()) {
            wrong(format!("C5: action {action:?}, status {status:?}, fid {fid:?}"));
        }
        let seconds = data.get("timestamp").and_then(Value::as_f64);
        if seconds.is_none_or(|seconds| seconds <= 0.0 || seconds >= 1e11) {
            wrong(format!("C6: timestamp {seconds:?}"));
        }
        if !fid.is_empty() && (fid.contains(['[', ']']) || fid.split(':').count() != 3) {
            wrong(format!("C7: fid {fid:?}"));
        }
        if !fid.is_empty() && action_key != format!("{fid}:{action}") {
            wrong(format!("C7: action_key {action_key:?}"));
        }
        let ms = entry.id.split('-').next().and_then(|ms| ms.parse::<u64>().ok());
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs());
        if ms.is_none_or(|ms| (ms / 1000).abs_diff(now) > 86_400) {
            wrong("C8: the id is not of the wall clock".to_owned());
        }
        let state = (action_key.clone(), status.to_owned());
        if kind == "PURGED" {
            self.by_slot.remove(&place.unwrap_or_default());
            self.by_key.remove(&action_key);
        } else {
            self.by_slot.insert(place.unwrap_or_default(), state.clone());
            self.by_key.insert(action_key, status.to_owned());
            *self.seen.entry(state).or_default() += usize::from(kind == "NEW");
        }
        *self.kinds.entry(kind).or_default() += 1;
    }
}

/// What the text of an MDT's list says.
pub fn truth(text: &str) -> BTreeMap<Place, State> {
    let mut live = BTreeMap::new();
    for line in text.lines() {
        let Ok(parsed) = ActionLine::parse(line.as_bytes()) else { continue };
        let slot = parsed.fields.slot;
        let mut fid = Vec::new();
        lcap_ffi::hsm_action::line::write_fid(parsed.fields.fid, &mut fid);
        let word = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let key = format!("{}:{}", word(&fid), word(parsed.action));
        live.insert((slot.cat.into(), slot.rec.into()), (key, word(parsed.status)));
    }
    live
}

/// The same by keys: how many different ones there are, whatever their status.
pub fn keys(live: &BTreeMap<Place, State>) -> std::collections::BTreeSet<String> {
    live.values().map(|(key, _)| key.clone()).collect()
}
