//! What the service manager is told, and what it lets us keep.
#![forbid(unsafe_code)]

use std::io;
use std::thread;
use std::time::Duration;

use lcap_wire::control::StreamKind;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use sd_notify::NotifyState;
use tracing::{debug, error};

use crate::config::Config;
use crate::health::StatusPort;
use crate::source::SourceUri;

/// Tells the service manager, if there is one.
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot tell the service manager");
    }
}

/// lcapd works.
pub fn tell_ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// lcapd reads its configuration again; [`tell_ready`] ends that.
pub fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(at) => tell(&[NotifyState::Reloading, at]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// lcapd ends.
pub fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog as long as the engine answers, if the service manager has one.
///
/// # Errors
/// If there is no thread to be had.
pub fn feed_watchdog(engine: StatusPort) -> io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let pause = (limit / 4).max(Duration::from_millis(1));
    let feed = move || loop {
        if engine.ask(pause).is_some() {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!("the engine does not answer; the service manager's watchdog is not fed");
        }
        thread::sleep(pause);
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(feed).map(drop)
}

/// As many descriptors as we may have: clients need one each.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "cannot raise the limit of open files");
    }
}

/// Connections that there may be unless the configuration says: three quarters of the descriptors, so
/// that what lcapd does itself always has some.
pub fn default_max_connections() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(65536);
    usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX)
}

/// What Lustre asks of uid 0, if this lcapd talks to Lustre; else nothing.
pub fn needed_capabilities(config: &Config) -> CapabilitySet {
    let lustre = |source: &SourceUri| matches!(source, SourceUri::Device(_) | SourceUri::Llapi);
    // Of HSM requests, the spool and lists of actions belong to root.
    let hsm = config.hsm.is_some() || config.streams.iter().any(|s| s.kind == StreamKind::Hsm);
    if hsm || config.mdts.iter().any(|mdt| lustre(&mdt.source)) {
        CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH
    } else {
        CapabilitySet::empty()
    }
}

/// Gives up every capability but `keep`, for good. To be called before there are other threads.
///
/// # Errors
/// What the kernel says.
pub fn keep_capabilities(keep: CapabilitySet) -> io::Result<()> {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            Err(Errno::INVAL) => break, // the kernel knows no more
            Err(Errno::PERM) => break,  // an ordinary user: there is nothing to give up
            Err(error) => return Err(error.into()),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let now = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective & keep,
            permitted: now.permitted & keep,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}
