//! From the moment that a record says it was made until a client has it.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use lcap_tests::daemon::Daemon;

/// Latencies in seconds, in ascending order.
#[derive(Debug)]
pub(crate) struct Latencies(Vec<f64>);

impl Latencies {
    /// Of seconds, in any order.
    pub(crate) fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self(seconds)
    }

    /// The value that the part `p` of all is not above.
    pub(crate) fn quantile(&self, p: f64) -> f64 {
        let n = self.0.len().saturating_sub(1);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 ≤ p ≤ 1
        let at = (p * n as f64).round() as usize;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Receives for `duration` what is made from now on.
///
/// # Errors
/// If the client fails.
pub(crate) fn measure(daemon: &Daemon, mdt: &str, duration: Duration) -> Result<Latencies> {
    let read = daemon.control().status()?.mdts.first().map_or(0, |mdt| mdt.read_index);
    let builder = daemon.client(mdt, "changelog").from(read + 1).follow(true);
    let mut client = builder.connect()?;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (begin, mut latencies) = (now() + Duration::from_millis(500), Vec::new());
    let end = begin + duration;
    loop {
        let record = client.recv()?.context("a stream without end")?;
        let made = Duration::new(record.seconds(), record.nanoseconds());
        let now = now();
        if made >= begin {
            latencies.push(now.saturating_sub(made).as_secs_f64());
        }
        if now >= end {
            break;
        }
    }
    Ok(Latencies::of(latencies))
}
