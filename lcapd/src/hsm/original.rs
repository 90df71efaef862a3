//! What coordinatool has in its Redis: its two hashes, read once when a site switches.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::json_port::clients::request_of;
use super::queue::{Admitted, Arrival, Queue};
use super::redis_store::scan_hash;
use super::request::Request;
use super::scheduler::Now;
use crate::sink::target::{Target, TargetError};

/// Field to item.
const REQUESTS: &[u8] = b"coordinatool_requests";
/// Field to the mover that runs it.
const ASSIGNED: &[u8] = b"coordinatool_assigned";

/// A request, and the mover that runs it.
pub type Found = (Request, Option<String>);

/// Reads them, in the order in which they came. What cannot be read is named in the log and left where it is.
///
/// # Errors
/// What Redis says.
pub fn read(target: &Target, mdt: &Arc<str>) -> Result<Vec<Found>, TargetError> {
    let mut link = target.connect()?;
    let mut movers: HashMap<Vec<u8>, String> = HashMap::new();
    scan_hash(&mut link, ASSIGNED, |field, mover| {
        movers.insert(field.to_vec(), String::from_utf8_lossy(mover).into_owned());
    })?;
    let mut found: HashMap<Vec<u8>, Found> = HashMap::new();
    scan_hash(&mut link, REQUESTS, |field, value| {
        let item = serde_json::from_slice(value).ok();
        match item.and_then(|item| request_of(&item, mdt)) {
            Some(request) => {
                found.insert(field.to_vec(), (request, movers.get(field).cloned()));
            }
            None => {
                let field = field.escape_ascii().to_string();
                warn!(field, "an entry of coordinatool_requests cannot be read, left out");
            }
        }
    })?;
    let mut found: Vec<Found> = found.into_values().collect();
    found.sort_by_key(|(request, _)| (request.received_ns, request.cookie()));
    Ok(found)
}

/// Takes them into the queue. Movers that ran some have `grace` to come and say so.
pub fn import(queue: &mut Queue, found: Vec<Found>, grace: Duration, now: Now) {
    let (mut new, mut running) = (0, 0);
    for (request, mover) in found {
        let admitted = queue.admit(request, Arrival::Listed, now);
        new += usize::from(matches!(admitted, Admitted::New(_)));
        if let Some(mover) = mover {
            queue.remember(&mover, grace, now);
            running += usize::from(queue.claim(admitted.id(), &mover, now).is_ok());
        }
    }
    info!(new, running, "requests of coordinatool taken over from its Redis");
}
