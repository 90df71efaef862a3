//! Where the log goes, and how much of it; that can be changed while lcapd runs.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use tracing::debug;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// What is logged unless something else is said.
pub const DEFAULT: &str = "info";

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn filter(text: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| format!("log level `{text}`"))
}

/// Whether that is a level, or a filter.
///
/// # Errors
/// If it is neither.
pub fn check(level: &str) -> Result<()> {
    filter(level).map(drop)
}

/// Starts it: to journald when systemd says that stderr is its own, else to stderr. In the journal,
/// `MDT`, `STREAM` and `READER` are fields.
///
/// # Errors
/// If `level` is neither a level nor a filter as in `info,lcapd::reader=debug`.
pub fn start(level: &str) -> Result<()> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let _ = LEVEL.set(handle);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journald) = tracing_journald::layer()
    {
        registry.with(journald.with_field_prefix(None)).init();
    } else {
        let ansi = io::stderr().is_terminal();
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(ansi);
        registry.with(layer).init();
    }
    Ok(())
}

/// Logs that much from now on.
///
/// # Errors
/// As [`start`].
pub fn set_level(level: &str) -> Result<()> {
    let filter = filter(level)?;
    let Some(handle) = LEVEL.get() else { return Ok(()) }; // a test, without a log
    handle.reload(filter).context("cannot change the log level")?;
    debug!(level, "this much is logged from now on");
    Ok(())
}
