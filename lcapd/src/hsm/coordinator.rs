//! Lustre's side of the queue: lcapd is the copytool of a mount.
//!
//! Two threads, because every call may block. [`Intake`] keeps the registration and takes requests in;
//! [`Teller`] tells Lustre what is still queued, and what nobody will carry out.
//!
//! Lustre does not say when a registration is lost: after an eviction, a restart of an MDT or
//! its coordinator, `recv` is silent for ever. So it is renewed whenever there is a reason to think so,
//! and every `renew` anyhow: the next one is made before the last but one ends, so at every moment
//! there is a pipe that a message may go to, and one that arrives twice is known by its cookie.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use lcap_ffi::copytool::{CopytoolApi, Registration};
use lcap_ffi::hsm::{ActionList, keep_alive};
use lcap_ffi::poll::wait_readable;
use lcap_filter::Glob;
use tracing::{debug, info, warn};

use super::lustre::{FromLustre, ToLustre};
use super::movers::item_of;
use super::owner::Owners;
use crate::wake::Waker;

/// How often the mount and the agents' lists are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Between two attempts to register; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Messages of one pipe before the others have their turn.
const BURST: usize = 64;
/// Largest `active_requests` that is read.
const MAX_ACTIVE_BYTES: u64 = 256 << 20;

/// What a site has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The mount that lcapd is the copytool of.
    pub mount: PathBuf,
    /// Archives that are taken; all if empty.
    pub archives: Vec<u32>,
    /// The registration is renewed so often at least.
    pub renew: Duration,
    /// Files, with `*`, that show what an MDT has sent; read after each registration.
    pub active_requests: String,
    /// Files, with `*`, that show an MDT's agents.
    pub agents: String,
}

/// Figures.
#[derive(Debug, Default)]
pub struct Stats {
    /// Whether there is a registration, as far as is known.
    pub registered: AtomicBool,
    /// Registrations made.
    pub registrations: AtomicU64,
    /// Lists received.
    pub lists: AtomicU64,
    /// Keep-alives sent.
    pub keep_alives: AtomicU64,
    /// Requests ended with an error.
    pub failed: AtomicU64,
    /// Calls that failed otherwise than by an answer about the request.
    pub errors: AtomicU64,
}

/// What the two threads share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Any registration: it serves to end requests.
    registration: Mutex<Option<Arc<Registration>>>,
    /// There is a reason to think that it is lost.
    suspect: AtomicBool,
    /// Figures.
    pub stats: Stats,
}

impl Shared {
    fn registration(&self) -> Option<Arc<Registration>> {
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_registration(&self, registration: Option<Arc<Registration>>) {
        self.stats.registered.store(registration.is_some(), Ordering::Relaxed);
        *self.registration.lock().unwrap_or_else(PoisonError::into_inner) = registration;
    }
}

/// The thread that receives.
pub struct Intake {
    /// What the site has chosen.
    pub settings: Settings,
    /// liblustreapi.
    pub api: Arc<CopytoolApi>,
    /// With the other thread.
    pub shared: Arc<Shared>,
    /// Looks up whose files are.
    pub owners: Option<Owners>,
    /// What it receives.
    pub out: Sender<FromLustre>,
    /// Wakes who takes it.
    pub wake: Waker,
    /// Wakes this thread.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What the mount was when we registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MountId(u64, u64);

impl Intake {
    /// Receives until told to stop.
    pub fn run(&mut self) {
        // The last two; each gets every message.
        let mut links: VecDeque<Arc<Registration>> = VecDeque::new();
        let mut mount: Option<MountId> = None;
        let (mut renewed, mut looked) = (Instant::now(), Instant::now());
        let mut retry = RETRY.0;
        let mut trouble = String::new();
        while !self.stop.load(Ordering::Relaxed) {
            // Many requests that the MDT has forgotten are one reason.
            let settled = links.is_empty() || renewed.elapsed() >= LOOK / 2;
            let lost = settled && self.is_lost(&links, mount, &mut looked);
            if lost || renewed.elapsed() >= self.settings.renew {
                match self.renew(&mut links) {
                    Ok(()) => {
                        if links.len() == 1 || !trouble.is_empty() {
                            info!(mount = %self.settings.mount.display(), "registered as copytool");
                        }
                        if lost {
                            self.import();
                        }
                        (mount, renewed, retry) =
                            (mount_id(&self.settings.mount), Instant::now(), RETRY.0);
                        trouble.clear();
                    }
                    Err(error) => {
                        // Once per change of state.
                        let text = error.to_string();
                        if text != trouble {
                            warn!(mount = %self.settings.mount.display(), %error, "cannot register as copytool, will retry");
                            trouble = text;
                        }
                        self.shared.suspect.store(true, Ordering::Relaxed);
                        self.sleep(&links, retry);
                        retry = (retry * 2).min(RETRY.1);
                    }
                }
            }
            if !self.receive(&links) {
                let until_renewal = self.settings.renew.saturating_sub(renewed.elapsed());
                self.sleep(&links, LOOK.min(until_renewal));
            }
        }
        self.shared.set_registration(None);
    }

    /// Whether there is no registration, or a reason to think so.
    fn is_lost(
        &self,
        links: &VecDeque<Arc<Registration>>,
        mount: Option<MountId>,
        looked: &mut Instant,
    ) -> bool {
        if links.is_empty() || self.shared.suspect.swap(false, Ordering::Relaxed) {
            return true;
        }
        if looked.elapsed() < LOOK {
            return false;
        }
        *looked = Instant::now();
        if mount_id(&self.settings.mount) != mount {
            warn!(mount = %self.settings.mount.display(), "the mount is gone or another, registering again");
            return true;
        }
        let agents = expand(&self.settings.agents);
        // A list without anybody cannot have us. (It belongs to the MDS; a mere client has none.)
        let empty = |path: &PathBuf| fs::read(path).is_ok_and(|text| text.trim_ascii().is_empty());
        if let Some(path) = agents.iter().find(|path| empty(path)) {
            warn!(agents = %path.display(), "the MDT has no agent, registering again");
            return true;
        }
        false
    }

    /// One more registration; of three, the oldest ends.
    fn renew(&self, links: &mut VecDeque<Arc<Registration>>) -> io::Result<()> {
        if links.len() > 1 {
            // Others still use it for a moment at most; it ends when they are done. What it has
            // received came to the next one, too.
            self.shared.set_registration(links.back().cloned());
            links.pop_front();
        }
        match self.api.register(&self.settings.mount, &self.settings.archives) {
            Ok(link) => {
                links.push_back(Arc::new(link));
                self.shared.stats.registrations.fetch_add(1, Ordering::Relaxed);
            }
            // The MDTs say that they know us.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && !links.is_empty() => {}
            Err(error) => return Err(error),
        }
        self.shared.set_registration(links.back().cloned());
        Ok(())
    }

    /// What the MDTs on this node say that they have sent.
    fn import(&self) {
        for path in expand(&self.settings.active_requests) {
            let text = fs::metadata(&path).and_then(|meta| {
                if meta.len() > MAX_ACTIVE_BYTES {
                    Err(io::ErrorKind::FileTooLarge.into())
                } else {
                    fs::read(&path)
                }
            });
            match text {
                Ok(text) => {
                    let _ = self.out.send(FromLustre::Active(text));
                    self.wake.wake();
                }
                Err(error) => debug!(path = %path.display(), %error, "cannot be read"),
            }
        }
    }

    /// True if there may be more.
    fn receive(&self, links: &VecDeque<Arc<Registration>>) -> bool {
        let mut any = false;
        for link in links {
            for _ in 0..BURST {
                match link.recv() {
                    Ok(Some(list)) => {
                        any = true;
                        self.shared.stats.lists.fetch_add(1, Ordering::Relaxed);
                        let _ = self.out.send(self.with_owners(list));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        warn!(%error, "receiving requests failed, registering again");
                        self.shared.suspect.store(true, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
        if any {
            self.wake.wake();
        }
        any
    }

    fn with_owners(&self, list: Vec<u8>) -> FromLustre {
        let Some(owners) = &self.owners else { return FromLustre::List(list) };
        let Ok(parsed) = ActionList::parse(&list) else { return FromLustre::List(list) };
        let found = parsed.items().map(|item| owners.of(item.fid)).collect();
        FromLustre::Owned(list, found)
    }

    fn sleep(&self, links: &VecDeque<Arc<Registration>>, at_most: Duration) {
        self.waker.falling_asleep();
        if !self.stop.load(Ordering::Relaxed) {
            let mut fds: Vec<RawFd> = links.iter().filter_map(|link| link.fd().ok()).collect();
            fds.push(self.waker.raw_fd());
            let _ = wait_readable(&fds, Some(at_most));
        }
        self.waker.awake();
    }
}

fn mount_id(mount: &Path) -> Option<MountId> {
    let meta = fs::metadata(mount).ok()?;
    Some(MountId(meta.dev(), meta.ino()))
}

/// Files whose paths match a pattern with `*` in its components.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    if !pattern.starts_with('/') {
        return Vec::new();
    }
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if !part.contains('*') {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let glob = Glob::new(part.as_bytes());
        let entries = found.iter().filter_map(|path| fs::read_dir(path).ok()).flatten();
        let entries = entries.filter_map(Result::ok);
        found = entries
            .filter(|entry| glob.matches(entry.file_name().as_encoded_bytes()))
            .map(|entry| entry.path())
            .collect();
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// The thread that tells Lustre.
#[derive(Debug)]
pub struct Teller {
    /// The mount.
    pub mount: PathBuf,
    /// With the other thread.
    pub shared: Arc<Shared>,
    /// What to tell.
    pub commands: Receiver<ToLustre>,
    /// What Lustre says.
    pub out: Sender<FromLustre>,
    /// Wakes who takes it.
    pub wake: Waker,
    /// Set before the commands end.
    pub stop: Arc<AtomicBool>,
}

impl Teller {
    /// Tells until the commands end.
    pub fn run(&mut self) {
        let mut mount: Option<File> = None;
        // Ends that Lustre did not take; it will not be asked in vain for ever, because once the
        // MDT is there it answers, if only with ENOENT.
        let mut later: VecDeque<ToLustre> = VecDeque::new();
        let mut next_try = Instant::now();
        loop {
            let timeout = if later.is_empty() {
                LOOK
            } else {
                next_try.saturating_duration_since(Instant::now())
            };
            match self.commands.recv_timeout(timeout) {
                Ok(command) => {
                    if let Some(command) = self.tell(&mut mount, command) {
                        later.push_back(command);
                        next_try = Instant::now() + RETRY.0 * 5;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(command) = later.pop_front()
                        && let Some(command) = self.tell(&mut mount, command)
                    {
                        later.push_front(command);
                        next_try = Instant::now() + RETRY.0 * 5;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.stop.load(Ordering::Relaxed) && self.commands.is_empty() {
                return;
            }
        }
    }

    /// Gives back what should be told again later.
    fn tell(&self, mount: &mut Option<File>, command: ToLustre) -> Option<ToLustre> {
        let stats = &self.shared.stats;
        match &command {
            ToLustre::KeepAlive { id, request } => {
                stats.keep_alives.fetch_add(1, Ordering::Relaxed);
                if mount.is_none() {
                    *mount = File::open(&self.mount).ok();
                }
                let dir = mount.as_ref()?;
                let cookie = request.cookie()?;
                let Err(error) = keep_alive(dir.as_fd(), request.dfid, cookie) else { return None };
                match error.raw_os_error() {
                    Some(errno @ (libc::ECANCELED | libc::ENOENT)) => {
                        if errno == libc::ENOENT {
                            // The MDT may have forgotten us, too.
                            self.shared.suspect.store(true, Ordering::Relaxed);
                        }
                        let _ = self.out.send(FromLustre::Trouble { id: *id, errno });
                        self.wake.wake();
                    }
                    _ => {
                        stats.errors.fetch_add(1, Ordering::Relaxed);
                        debug!(%error, "keep-alive failed");
                        *mount = None; // may be another by now
                    }
                }
                None
            }
            ToLustre::Fail { request, errno } => {
                let link = self.shared.registration();
                let result = match &link {
                    Some(link) => link.fail(&item_of(request), *errno),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                match result.map_err(|error| error.raw_os_error()) {
                    Ok(()) => {
                        stats.failed.fetch_add(1, Ordering::Relaxed);
                        None
                    }
                    // Ended already, or an argument that will not get better.
                    Err(Some(libc::ENOENT | libc::EINVAL)) => None,
                    Err(error) => {
                        stats.errors.fetch_add(1, Ordering::Relaxed);
                        debug!(?error, "ending a request failed, will retry");
                        Some(command)
                    }
                }
            }
        }
    }
}
