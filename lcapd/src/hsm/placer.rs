//! A module that chooses the mover of requests, and their turn (`lcap_policy.h`, placers): on a thread of its own,
//! with a time limit.
//!
//! A request that the module is asked about may not start before it has answered, or the time is over; then
//! any mover may have it. The queue's thread never waits, and no more than [`MOST_ASKED`] questions do.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use lcap_ffi::placer::{PlaceRequest, Placer, Plan};
use lcap_wire::mover::is_name;
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::request::{Kind, Request};
use super::service::Handle;
use crate::policy::Loader;

/// Questions that wait for the module. What is not asked yet waits in the queue.
pub const MOST_ASKED: usize = 1024;

/// What a site has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of a module on the search path, or a path with a slash.
    pub module: String,
    /// What it is asked about.
    pub kinds: [bool; 3],
    /// How long a request waits for its answer.
    pub limit: Duration,
    /// The module's own.
    pub options: Map<String, Value>,
}

/// Finds the module, and makes its instance.
///
/// # Errors
/// What cannot be used, and why.
pub fn load(settings: &Settings, loader: &Loader) -> Result<Placer> {
    let module = &settings.module;
    let in_place = || format!("the placer {module}");
    let (path, shown) = loader.checked_copy(module).with_context(in_place)?;
    let options = CString::new(serde_json::to_string(&settings.options)?)?;
    Placer::load(&path, &shown, &options).with_context(in_place)
}

/// A request, and the movers that are there.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its number.
    pub id: u64,
    /// The request.
    pub request: Arc<Request>,
    /// Names.
    pub movers: Arc<[CString]>,
    /// Nobody waits for the answer after that.
    pub until: Instant,
}

/// The thread.
#[derive(Debug)]
pub struct Asker {
    placer: Placer,
    questions: Receiver<Question>,
    queue: Handle,
}

impl Asker {
    /// With where questions go to.
    pub fn new(placer: Placer, queue: Handle) -> (Sender<Question>, Self) {
        let (ask, questions) = unbounded();
        (ask, Self { placer, questions, queue })
    }

    /// Until nobody asks any more.
    pub fn run(&mut self) {
        let mut troubles: BTreeMap<i32, u64> = BTreeMap::new();
        while let Ok(question) = self.questions.recv() {
            let id = question.id;
            let plan = if question.until <= Instant::now() {
                None // it went anywhere
            } else {
                self.ask(&question, &mut troubles)
            };
            self.queue.call(move |core, now| core.planned(id, plan, now));
        }
        if !troubles.is_empty() {
            info!(?troubles, "requests that could not be placed, by error number");
        }
    }
}

impl Asker {
    fn ask(&mut self, question: &Question, troubles: &mut BTreeMap<i32, u64>) -> Option<Plan> {
        let plan = self.placer.plan(&asked(&question.request), &question.movers);
        let plan = plan.and_then(|plan| match &plan.host {
            // No mover can have such a name, and it would wait for ever.
            Some(host) if !is_name(host) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            _ => Ok(plan),
        });
        let error = match plan {
            Ok(plan) => return Some(plan),
            Err(error) => error,
        };
        let n = troubles.entry(error.raw_os_error().unwrap_or(0)).or_default();
        if *n == 0 {
            let module = self.placer.name();
            warn!(module, %error, "cannot place a request, which goes anywhere; said once for each error");
        }
        *n += 1;
        None
    }
}

fn asked(request: &Request) -> PlaceRequest {
    PlaceRequest {
        action: request.kind as u32,
        archive_id: request.archive_id,
        flags: request.flags,
        fid: request.fid,
        owner: [request.uid, request.gid, request.project],
        data: (*request.data).into(),
        fsname: CString::new(request.fsname()).unwrap_or_default(),
    }
}

/// For [`Settings::kinds`].
pub fn kinds(of: &[Kind]) -> [bool; 3] {
    let mut kinds = [false; 3];
    for kind in of {
        kinds[kind.at()] = true;
    }
    kinds
}
