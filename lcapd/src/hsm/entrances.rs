//! Where requests come from and who carries them out: the part of `[hsm]` that has to do with Lustre,
//! movers and the JSON port, and what is made of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use lcap_ffi::copytool::CopytoolApi;
use tracing::info;

use super::coordinator::{self, Intake, Shared, Teller};
use super::json_port::JsonPort;
use super::json_port::clients::Settings as JsonSettings;
use super::lustre::{FromLustre, ToLustre};
use super::movers::{Movers, Settings as MoverSettings};
use super::owner::Owners;
use crate::lease::Lease;
use crate::policy::Loader;
use crate::wake::Waker;

/// Where an MDT on the same node shows what it has sent.
pub(crate) const ACTIVE_REQUESTS: &str = "/sys/kernel/debug/lustre/mdt/*/hsm/active_requests";
/// Where it shows its agents.
pub(crate) const AGENTS: &str = "/sys/kernel/debug/lustre/mdt/*/hsm/agents";

/// What a site has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Entrances {
    /// The mount that lcapd is the copytool of.
    pub copytool: Option<coordinator::Settings>,
    /// The file system's name, if it is not to be asked of the mount.
    pub fsname: Option<String>,
    /// How often Lustre is told of requests that wait.
    pub keep_alive: Duration,
    /// Endpoint for movers.
    pub movers: Option<String>,
    /// `HOST:PORT` for clients of the original's protocol.
    pub json_port: Option<String>,
    /// How often a mover has to be heard of.
    pub heartbeat: Duration,
    /// How long a vanished mover keeps what it runs.
    pub grace: Duration,
    /// The same for single movers.
    pub graces: BTreeMap<String, Duration>,
}

impl Default for Entrances {
    fn default() -> Self {
        Self {
            copytool: None,
            fsname: None,
            keep_alive: Duration::from_secs(600),
            movers: None,
            json_port: None,
            heartbeat: Duration::from_secs(1),
            grace: Duration::from_secs(600),
            graces: BTreeMap::new(),
        }
    }
}

/// The copytool of a mount, with its defaults.
pub(crate) fn copytool(
    mount: PathBuf,
    archives: Vec<u32>,
    renew: Option<Duration>,
    active_requests: Option<String>,
    agents: Option<String>,
) -> coordinator::Settings {
    coordinator::Settings {
        mount,
        archives,
        renew: renew.unwrap_or(Duration::from_secs(60)),
        active_requests: active_requests.unwrap_or_else(|| ACTIVE_REQUESTS.to_owned()),
        agents: agents.unwrap_or_else(|| AGENTS.to_owned()),
    }
}

/// What was opened.
#[derive(Debug)]
pub struct Opened {
    /// The movers' side.
    pub movers: Movers,
    /// What Lustre's requests are filed under.
    pub mdt: Arc<str>,
    /// The original's protocol.
    pub json: Option<JsonPort>,
    /// What Lustre says.
    pub from_lustre: Receiver<FromLustre>,
    /// What it is told.
    pub to_lustre: Sender<ToLustre>,
    /// Lustre's two threads.
    pub copytool: Option<(Intake, Teller)>,
}

/// What lcapd as a whole lends.
pub struct Host<'a> {
    /// Finds modules.
    pub loader: &'a Loader,
    /// The right to write and to tell Lustre.
    pub lease: &'a Lease,
    /// This life of lcapd.
    pub epoch: u64,
    /// Ends the threads that take requests in, which must end first.
    pub stop_intake: Arc<AtomicBool>,
    /// Ends the others.
    pub stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Binds what is to be bound, and loads what is to be loaded. Runs nothing.
///
/// # Errors
/// What cannot be had, and why.
pub fn open(
    config: &Entrances,
    owners: Option<Owners>,
    host: &Host<'_>,
    wake: &Waker,
) -> Result<Opened> {
    let api = config.copytool.as_ref().map(|_| CopytoolApi::load()).transpose()?;
    let fsname: Arc<str> = match (&config.fsname, &api, &config.copytool) {
        (Some(fsname), ..) => fsname.as_str().into(),
        (None, Some(api), Some(copytool)) => {
            let mount = copytool.mount.display();
            let fsname = api.fsname(&copytool.mount).with_context(|| {
                format!("{mount} is no Lustre mount (if it will be one later, set `fsname`)")
            })?;
            fsname.into()
        }
        _ => "lustre".into(),
    };
    let settings = MoverSettings {
        fsname: Arc::clone(&fsname),
        heartbeat: config.heartbeat,
        grace: config.grace,
        graces: config.graces.clone(),
    };
    let mdt = settings.any_mdt();
    let json = match &config.json_port {
        None => None,
        Some(address) => {
            let grace = config.grace;
            let settings =
                JsonSettings { fsname: Arc::clone(&fsname), mdt: Arc::clone(&mdt), grace };
            let port = JsonPort::bind(address, settings)
                .with_context(|| format!("cannot bind the JSON port to {address}"))?;
            info!(address, "movers of coordinatool are served");
            Some(port)
        }
    };
    let (from_lustre_in, from_lustre) = unbounded();
    let (to_lustre, to_lustre_out) = unbounded();
    let copytool = match (&config.copytool, api) {
        (Some(settings), Some(api)) => {
            let shared = Arc::new(Shared::default());
            let intake = Intake {
                settings: settings.clone(),
                api,
                shared: Arc::clone(&shared),
                owners,
                out: from_lustre_in.clone(),
                wake: wake.clone(),
                waker: Waker::new()?,
                stop: Arc::clone(&host.stop_intake),
            };
            let teller = Teller {
                mount: settings.mount.clone(),
                shared,
                commands: to_lustre_out,
                out: from_lustre_in,
                wake: wake.clone(),
                stop: Arc::clone(&host.stop),
            };
            Some((intake, teller))
        }
        _ => None,
    };
    let movers = Movers::new(settings, host.epoch);
    Ok(Opened { movers, mdt, json, from_lustre, to_lustre, copytool })
}
