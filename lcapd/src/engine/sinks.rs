//! Readers that are part of lcapd itself: sinks. They have a watermark like any other reader, and
//! hold an MDT's records as any other does; their names, which clients cannot give, begin with
//! [`PREFIX`].
#![forbid(unsafe_code)]

use lcap_ffi::RecordIndex;
use tracing::{info, warn};

use super::position::Position;
use super::retention::Now;
use super::{Engine, Reader};
use crate::store::{Change, ReaderState};

/// What the names of sinks' readers begin with.
pub const PREFIX: &str = "sink:";

impl Engine {
    /// Sees to it that exactly these sinks are registered with a stream. A new one begins at the
    /// oldest record that the MDTs still have; one that the configuration no longer names holds
    /// nothing any more.
    pub fn adopt_sinks(&mut self, stream: usize, names: &[String], now: Now) {
        let Some(entry) = self.streams.get_mut(stream) else { return };
        let stream_name = entry.setup.name.clone();
        let gone: Vec<String> = (entry.readers.keys())
            .filter(|name| name.starts_with(PREFIX) && !names.contains(name))
            .cloned()
            .collect();
        for name in gone {
            entry.readers.remove(&name);
            warn!(
                stream = stream_name,
                sink = name,
                "sink is configured no more, its place is lost"
            );
            self.dirty.add(Change::ReaderGone((stream_name.clone(), name)), now);
        }
        for name in names {
            if entry.readers.contains_key(name) {
                continue;
            }
            let key = (stream_name.clone(), name.clone());
            let starts: Vec<RecordIndex> =
                self.mdts.iter().map(|mdt| mdt.retention.given_up()).collect();
            self.dirty.add(Change::Reader(key.clone(), ReaderState::default()), now);
            let own = self.mdts.iter().zip(&starts).filter(|(mdt, _)| entry.reads(mdt));
            for (mdt, &start) in own {
                let change = Change::Watermark(key.clone(), mdt.setup.name.to_string(), start);
                self.dirty.add(change, now);
            }
            info!(stream = stream_name, sink = name, "sink registered");
            let reader = Reader {
                state: ReaderState::default(),
                positions: starts.iter().map(|&start| Position::new(start)).collect(),
                persisted: starts.clone(),
                noted: starts,
                last_heard: now,
            };
            entry.readers.insert(name.clone(), reader);
        }
    }

    /// Up to where a sink is done with an MDT.
    pub fn sink_watermark(&self, stream: usize, mdt: usize, name: &str) -> RecordIndex {
        let reader = self.streams.get(stream).and_then(|stream| stream.readers.get(name));
        let position = reader.and_then(|reader| reader.positions.get(mdt));
        position.map_or(RecordIndex::ZERO, Position::watermark)
    }

    /// A sink is done with everything up to `upto` of the MDT's history `generation`.
    pub fn sink_settled(
        &mut self,
        (stream, mdt): (usize, usize),
        name: &str,
        upto: RecordIndex,
        generation: u16,
    ) {
        if self.generation_of(mdt) != generation {
            return; // it speaks of indexes that have been issued again since
        }
        let reader = self.streams.get_mut(stream).and_then(|stream| stream.readers.get_mut(name));
        if let Some(position) = reader.and_then(|reader| reader.positions.get_mut(mdt)) {
            position.skip_to(upto);
        }
    }
}
