//! Logging of the session's thread: to whoever listens to `tracing`; to stderr only when the
//! environment says `LCAP_LOG=error|warn|info|debug|trace`.
#![forbid(unsafe_code)]

use lcap_ffi::process::secure_env;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt;

/// Sends what this thread logs to stderr, if the environment says so.
pub(crate) fn for_this_thread() -> Option<DefaultGuard> {
    let level: tracing::Level = secure_env("LCAP_LOG")?.parse().ok()?;
    let subscriber =
        fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false).finish();
    Some(tracing::subscriber::set_default(subscriber))
}
