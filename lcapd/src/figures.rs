//! The daemon's own figures: MDTs, streams, readers, requests.
//!
//! What threads count by themselves is read from their atomics; what only the engine knows is asked
//! of it once for each scrape.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::{Delivery, MdtStatus, Status, StreamStatus};

use crate::health::{Health, StatusPort};
use crate::http::{Answer, Router};
use crate::metrics::families as f;
use crate::metrics::histogram::Histogram;
use crate::metrics::{Metrics, Samples};
use crate::reader::ReaderStats;
use crate::security::Refusals;

/// How long a scrape waits for the engine. Prometheus gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Counted by the server's thread.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Requests that were understood.
    pub requests: AtomicU64,
}

/// Of one stream.
#[derive(Debug, Default)]
pub struct StreamFigures {
    /// From the read of a batch to its publication.
    pub latency: Histogram,
    /// Catch-ups begun.
    pub catch_ups: AtomicU64,
    /// Catch-ups that run now.
    pub catching_up: AtomicU64,
}

/// Where the daemon's figures are.
#[derive(Debug)]
pub struct Figures {
    /// Changelogs by MDT, in their order.
    pub mdts: Vec<(MdtName, Arc<ReaderStats>)>,
    /// Journals of HSM events by MDT, in their order.
    pub hsm_mdts: Vec<(MdtName, Arc<ReaderStats>)>,
    /// By stream, in their order.
    pub streams: Vec<(String, Arc<StreamFigures>)>,
    /// Requests.
    pub server: Arc<ServerStats>,
    /// What was refused.
    pub refusals: Arc<Refusals>,
    /// The engine.
    pub engine: StatusPort,
    /// When this lcapd began.
    pub started: SystemTime,
}

impl Figures {
    /// Registers everything.
    pub fn register(self, metrics: &Metrics) {
        metrics.register(move |samples| self.put(samples));
    }

    fn put(&self, samples: &mut Samples) {
        samples.put(&f::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1_u64);
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        samples.put(&f::START_TIME, &[], started.as_secs_f64());
        for (mdt, stats) in &self.mdts {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let labels = [mdt.as_str()];
            samples.put(&f::MDT_READ_RECORDS, &labels, load(&stats.records));
            samples.put(&f::MDT_READ_BYTES, &labels, load(&stats.bytes));
            samples.put(&f::MDT_READ_ERRORS, &labels, load(&stats.errors));
            samples.put(&f::MDT_GAPS, &labels, load(&stats.gaps));
            samples.put(&f::MDT_HEAD, &labels, load(&stats.read_index));
            samples.put(&f::MDT_WAITING, &labels, stats.trouble().is_some());
        }
        for (stream, figures) in &self.streams {
            let labels = [stream.as_str()];
            samples.put(&f::STREAM_LATENCY, &labels, &figures.latency);
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            samples.put(&f::STREAM_CATCH_UPS, &labels, load(&figures.catch_ups));
            samples.put(&f::STREAM_CATCHING_UP, &labels, load(&figures.catching_up));
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        samples.put(&f::REQUESTS, &[], load(&self.server.requests));
        let refusals = &self.refusals;
        samples.put(&f::REFUSED, &["malformed"], load(&refusals.malformed));
        samples.put(&f::REFUSED, &["handshake"], load(&refusals.handshake));
        samples.put(&f::REFUSED, &["unknown_key"], load(&refusals.unknown_key));
        samples.put(&f::REFUSED, &["denied"], load(&refusals.denied));
        samples.put(&f::REFUSED, &["limit"], load(&refusals.limit));

        let status = self.engine.ask(PATIENCE);
        let health = Health::of(status.as_ref());
        samples.put(&f::ENGINE_UP, &[], health.live);
        samples.put(&f::READY, &[], health.ready);
        if let Some(status) = &status {
            self.put_status(samples, status);
        }
    }

    fn put_status(&self, samples: &mut Samples, status: &Status) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        samples.put(&f::STATE_ERROR, &[], status.store_error.is_some());
        for (mdt, (_, stats)) in status.mdts.iter().zip(&self.mdts) {
            self.put_mdt(samples, status, mdt, stats, now);
        }
        for stream in &status.streams {
            self.put_stream(samples, status, stream, now);
        }
    }

    fn put_mdt(
        &self,
        samples: &mut Samples,
        status: &Status,
        mdt: &MdtStatus,
        stats: &ReaderStats,
        now: Duration,
    ) {
        let labels = [mdt.name.as_str()];
        samples.put(&f::MDT_CLEARED, &labels, mdt.cleared_index);
        samples.put(&f::MDT_LAG_RECORDS, &labels, mdt.lag_records);
        samples.put(&f::MDT_LAG_SECONDS, &labels, age(stats, mdt.cleared_index, now));
        samples.put(&f::MDT_NOT_CLEARING, &labels, mdt.state == "not clearing");
        let streams = status.streams.iter().filter(|stream| stream.kind.is_changelog());
        let readers = streams.flat_map(|stream| &stream.readers);
        let marks = readers.filter_map(|reader| reader.watermark.get(&mdt.name).copied());
        let lowest = marks.chain([mdt.cleared_index]).min().unwrap_or(0);
        stats.timeline.forget_below(RecordIndex::new(lowest));
    }

    fn put_stream(
        &self,
        samples: &mut Samples,
        status: &Status,
        stream: &StreamStatus,
        now: Duration,
    ) {
        let (heads, logs) = if stream.kind.is_changelog() {
            (&status.mdts, &self.mdts)
        } else {
            (&status.hsm_mdts, &self.hsm_mdts)
        };
        let name = stream.name.as_str();
        let is_queue = stream.delivery == Delivery::Queue;
        for (mdt, at) in &stream.mdts {
            let labels = [name, mdt.as_str()];
            samples.put(&f::STREAM_IN, &labels, at.sent + at.dropped + at.held);
            samples.put(&f::STREAM_SENT, &labels, at.sent);
            samples.put(&f::STREAM_DROPPED, &labels, at.dropped);
            samples.put(&f::STREAM_HELD, &labels, at.held);
            let head = heads.iter().find(|m| m.name == *mdt).map_or(0, |m| m.read_index);
            samples.put(&f::STREAM_LAG, &labels, head.saturating_sub(at.low));
            samples.put(&f::STREAM_STOPPED, &labels, at.stopped);
            samples.put(&f::STREAM_WATERMARK, &labels, at.watermark);
            if is_queue {
                samples.put(&f::QUEUE_OUTSTANDING, &labels, at.outstanding);
                samples.put(&f::QUEUE_REDELIVERED, &labels, at.redelivered);
            }
        }
        for policy in &stream.policies {
            let (mdt, place) = (policy.mdt.as_deref().unwrap_or("all"), policy.nth.to_string());
            let labels = [name, mdt, &place, &policy.module];
            samples.put(&f::POLICY_IN, &labels, policy.records_in);
            samples.put(&f::POLICY_EMITTED, &labels, policy.emitted);
            samples.put(&f::POLICY_DROPPED, &labels, policy.dropped);
            samples.put(&f::POLICY_MERGED, &labels, policy.merged);
            samples.put(&f::POLICY_HELD, &labels, policy.held);
            let busy = Duration::from_nanos(policy.busy_ns);
            samples.put(&f::POLICY_BUSY, &labels, busy.as_secs_f64());
            let is_failed = matches!(policy.state.as_str(), "bypassed" | "failed");
            samples.put(&f::POLICY_FAILED, &labels, is_failed);
            samples.put(&f::POLICY_STUCK, &labels, policy.state == "stuck");
        }
        samples.put(&f::STREAM_SESSIONS, &[name], stream.sessions);
        if is_queue {
            samples.put(&f::QUEUE_MEMBERS, &[name], stream.members.len());
        }
        for reader in &stream.readers {
            let labels = [name, reader.name.as_str()];
            samples.put(&f::READER_SUSPENDED, &labels, reader.suspended);
            samples.put(&f::READER_SESSIONS, &labels, reader.sessions);
            samples.put(&f::READER_IDLE, &labels, reader.idle_seconds);
            for (mdt, &watermark) in &reader.watermark {
                let labels = [name, reader.name.as_str(), mdt.as_str()];
                samples.put(&f::READER_WATERMARK, &labels, watermark);
                let log = logs.iter().find(|(name, _)| name.as_str() == mdt);
                let Some((_, stats)) = log else { continue };
                let head = stats.read_index.load(Ordering::Relaxed);
                samples.put(&f::READER_LAG_RECORDS, &labels, head.saturating_sub(watermark));
                samples.put(&f::READER_LAG_SECONDS, &labels, age(stats, watermark, now));
            }
        }
    }
}

/// Age in seconds of the first record above `index`; 0 if none was read.
fn age(stats: &ReaderStats, index: u64, now: Duration) -> f64 {
    if index >= stats.read_index.load(Ordering::Relaxed) {
        return 0.0;
    }
    let written = stats.timeline.after(RecordIndex::new(index)).map(Duration::from_nanos);
    written.map_or(0.0, |written| now.saturating_sub(written).as_secs_f64())
}

/// Answers `/metrics`, `/healthz`, `/livez` and `/readyz`.
pub fn router(metrics: Metrics, engine: StatusPort) -> Router {
    let counts: Arc<[(u16, AtomicU64); 3]> =
        Arc::new([200, 404, 503].map(|code| (code, AtomicU64::new(0))));
    let shown = Arc::clone(&counts);
    metrics.register(move |samples| {
        for (code, n) in shown.iter() {
            samples.put(&f::HTTP_REQUESTS, &[&code.to_string()], n.load(Ordering::Relaxed));
        }
    });
    Box::new(move |path| {
        let answer = answer(path, &metrics, &engine);
        if let Some((_, n)) = counts.iter().find(|(code, _)| *code == answer.code) {
            n.fetch_add(1, Ordering::Relaxed);
        }
        answer
    })
}

fn answer(path: &str, metrics: &Metrics, engine: &StatusPort) -> Answer {
    match path {
        "/metrics" => Answer {
            code: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: metrics.render().into(),
        },
        "/healthz" | "/readyz" | "/livez" => {
            let health = Health::of(engine.ask(PATIENCE).as_ref());
            let well = if path == "/livez" { health.live } else { health.ready };
            health.answer(if well { 200 } else { 503 })
        }
        _ => Answer::text(404, "here are /metrics, /healthz, /livez and /readyz\n"),
    }
}
