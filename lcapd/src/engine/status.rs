//! What is shown to people: `lcap status`, `lcap reader list`.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lcap_wire::control::{
    MdtStatus, MemberStatus, PolicyStatus, ReaderStatus, Status, StreamKind, StreamMdtStatus,
    StreamStatus,
};

use super::queue::Queue;
use super::retention::Now;
use super::{Engine, Stream};
use crate::policy::ChainFigures;

impl Engine {
    /// The present state of everything.
    pub fn status(&self, now: Now) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.settings.epoch,
            store_error: self.dirty.failing.clone(),
            mdts: self.logs_of(StreamKind::Changelog),
            hsm_mdts: self.logs_of(StreamKind::Hsm),
            streams: (self.streams.iter().enumerate())
                .map(|(at, stream)| self.stream_status(at, stream, now))
                .collect(),
        }
    }

    fn logs_of(&self, kind: StreamKind) -> Vec<MdtStatus> {
        self.mdts.iter().filter(|mdt| mdt.setup.kind == kind).map(mdt_status).collect()
    }

    fn stream_status(&self, at: usize, stream: &Stream, now: Now) -> StreamStatus {
        let per_mdt = self
            .mdts
            .iter()
            .enumerate()
            .zip(&stream.mdts)
            .filter(|((_, mdt), _)| stream.reads(mdt));
        let per_mdt = per_mdt.map(|((mdt_at, mdt), entry)| {
            let queue = entry.queue.as_ref();
            let positions = stream.readers.values().filter_map(|r| r.positions.get(mdt_at));
            let lowest = positions.map(|p| p.watermark().get()).min().unwrap_or(0);
            let status = StreamMdtStatus {
                sent: entry.worker.sent_records,
                dropped: entry.worker.dropped,
                held: entry.worker.held,
                low: entry.worker.sent.low.get(),
                sequence: entry.worker.sequence,
                watermark: queue.map_or(lowest, |queue| queue.watermark().get()),
                outstanding: queue.map_or(0, Queue::n_outstanding),
                redelivered: queue.map_or(0, Queue::n_redelivered),
                stopped: entry.worker.stopped,
            };
            (mdt.setup.name.to_string(), status)
        });
        StreamStatus {
            name: stream.setup.name.clone(),
            delivery: stream.setup.delivery,
            kind: stream.setup.kind,
            mdts: per_mdt.collect(),
            readers: self.reader_status(at, stream, now).collect(),
            members: self.member_status(stream),
            policies: self.policy_status(stream),
            sessions: self.sessions.values().filter(|s| s.stream == at).count() as u64,
        }
    }

    pub(super) fn reader_status<'a>(
        &'a self,
        at: usize,
        stream: &'a Stream,
        now: Now,
    ) -> impl Iterator<Item = ReaderStatus> + 'a {
        stream.readers.iter().map(move |(name, reader)| {
            let marks = || {
                let all = self.mdts.iter().zip(&reader.positions);
                all.filter(|(mdt, _)| stream.reads(mdt))
            };
            let lag = marks().map(|(mdt, position)| {
                mdt.now.read_index.get().saturating_sub(position.watermark().get())
            });
            let open = self
                .sessions
                .values()
                .filter(|s| s.stream == at && s.reader.as_ref() == Some(name))
                .count() as u64;
            let idle = if open > 0 { 0 } else { now.saturating_sub(reader.last_heard).as_secs() };
            ReaderStatus {
                stream: stream.setup.name.clone(),
                name: name.clone(),
                watermark: marks()
                    .map(|(mdt, position)| (mdt.setup.name.to_string(), position.watermark().get()))
                    .collect(),
                lag_records: lag.sum(),
                suspended: reader.state.suspended,
                sessions: open,
                idle_seconds: idle,
            }
        })
    }

    fn policy_status(&self, stream: &Stream) -> Vec<PolicyStatus> {
        let mut chains: Vec<(Option<String>, Arc<ChainFigures>)> = Vec::new();
        for (mdt, entry) in self.mdts.iter().zip(&stream.mdts) {
            let figures = entry.policies.get();
            match chains.iter_mut().find(|(_, known)| Arc::ptr_eq(known, &figures)) {
                Some((name, _)) => *name = None, // one chain for all MDTs
                None => chains.push((Some(mdt.setup.name.to_string()), figures)),
            }
        }
        chains.into_iter().flat_map(|(mdt, figures)| modules_status(mdt, &figures)).collect()
    }

    fn member_status(&self, stream: &Stream) -> Vec<MemberStatus> {
        let queues = self.mdts.iter().zip(&stream.mdts);
        let queues = queues.filter_map(|(mdt, entry)| Some((mdt, entry.queue.as_ref()?)));
        let members = queues.flat_map(|(mdt, queue)| {
            queue.members().filter_map(move |session| {
                let (outstanding, lanes) = queue.member(session)?;
                let mdt = mdt.setup.name.to_string();
                Some(MemberStatus { session, mdt, outstanding, lanes })
            })
        });
        members.collect()
    }
}

/// One chain's modules.
fn modules_status(mdt: Option<String>, figures: &ChainFigures) -> Vec<PolicyStatus> {
    let stuck = figures.stuck();
    let modules = figures.snapshot().into_iter().enumerate().map(|(nth, module)| {
        let (mut state, mut fault) = (module.state.as_str(), module.fault);
        if let Some((_, since)) = stuck.filter(|(at, _)| *at == nth) {
            state = "stuck";
            fault = Some(format!("it has not returned from a call for {} s", since.as_secs()));
        }
        PolicyStatus {
            nth: u32::try_from(nth).unwrap_or(u32::MAX),
            module: module.module,
            version: module.version,
            mdt: mdt.clone(),
            state: state.to_owned(),
            fault,
            records_in: module.records_in,
            emitted: module.emitted,
            dropped: module.dropped,
            merged: module.merged,
            held: module.held,
            busy_ns: module.busy_ns,
            calls: module.calls,
            own: module.own,
        }
    });
    modules.collect()
}

fn mdt_status(mdt: &super::Mdt) -> MdtStatus {
    let read = mdt.now.read_index.get();
    let cleared = mdt.retention.cleared().get();
    let (state, reason) = match (&mdt.now.trouble, &mdt.clear_trouble) {
        (Some(reason), _) => ("waiting", Some(reason.clone())),
        (None, Some(reason)) => ("not clearing", Some(reason.clone())),
        (None, None) if mdt.now.at_end => ("idle", None),
        (None, None) => ("reading", None),
    };
    MdtStatus {
        name: mdt.setup.name.to_string(),
        source: mdt.setup.source.clone(),
        state: state.to_owned(),
        reason,
        read_index: read,
        cleared_index: cleared,
        lag_records: read.saturating_sub(cleared),
        generation: mdt.state.generation,
        records_read: mdt.now.records,
        gaps: mdt.now.gaps,
    }
}
