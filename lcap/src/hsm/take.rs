//! `coordinatool-client --recv` and `--drain`: work that is taken as a mover takes it, and not carried out.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use lcap_ffi::Fid;
use lcapclient::mover::{Action, MoverBuilder};
use serde_json::{Value, json};

use super::coordinatool::show;

/// Where movers connect unless told otherwise.
pub(super) const DEFAULT_PORT: u16 = 8193;
/// How long lcapd may take to greet.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests that are shown in one answer.
const MOST: u32 = 100;

/// What is wanted.
pub(super) struct Take<'a> {
    /// `LCAP_MOVER_URI` if not given.
    pub(super) server: Option<String>,
    /// The mover's name; one of this process if not given.
    pub(super) name: Option<&'a str>,
    pub(super) fsname: Option<&'a str>,
    /// All, if none is given.
    pub(super) archives: &'a [u32],
    /// After so many the end.
    pub(super) answers: Option<u32>,
    /// Say that it is done.
    pub(super) done: bool,
}

pub(super) fn run(take: &Take<'_>) -> Result<()> {
    let own = format!("coordinatool-client-{}", std::process::id());
    let name = take.name.unwrap_or(&own);
    let mut builder = MoverBuilder::new().name(name).archives(take.archives).patience(PATIENCE);
    builder = builder.window(MOST);
    if let Some(server) = &take.server {
        builder = builder.servers(server);
    }
    if let Some(fsname) = take.fsname {
        builder = builder.fsname(fsname);
    }
    let mover = builder.connect()?;
    let mut left = take.answers;
    while left != Some(0) {
        let Some(first) = mover.recv(None)? else { continue };
        let mut all = vec![first];
        while all.len() < MOST as usize
            && let Some(next) = mover.recv(Some(Duration::ZERO))?
        {
            all.push(next);
        }
        show("recv", &reply(mover.fsname(), &all))?;
        for action in &all {
            if action.is_cancel() {
                // Nothing was begun that would have to be stopped.
                mover.returned(action.key(), libc::ECANCELED);
            } else if take.done {
                mover.done(action.key(), 0);
            }
        }
        left = left.map(|left| left - 1);
    }
    // Gives back what it holds, once what was reported is on lcapd's disk.
    mover.shut_down();
    Ok(())
}

/// As the original's daemon answers.
fn reply(fsname: &str, actions: &[Action]) -> Value {
    let (archive_id, flags) = actions.first().map_or((0, 0), |a| (a.archive_id, a.flags));
    json!({
        "command": "recv",
        "hsm_action_list": {
            "hal_version": 1,
            "hal_archive_id": archive_id,
            "hal_flags": flags,
            "hal_fsname": fsname,
            "list": actions.iter().map(item).collect::<Vec<_>>(),
        },
    })
}

fn item(action: &Action) -> Value {
    let fid = |fid: Fid| json!({"f_seq": fid.seq, "f_oid": fid.oid, "f_ver": fid.ver});
    json!({
        "hai_action": action.action,
        "hai_fid": fid(action.fid),
        "hai_dfid": fid(action.dfid),
        "hai_extent_offset": action.offset.cast_signed(),
        "hai_extent_length": action.length.cast_signed(),
        "hai_cookie": action.cookie.cast_signed(),
        "hai_gid": action.gid.cast_signed(),
        "hal_archive_id": action.archive_id,
        "hal_flags": action.flags.cast_signed(),
        "hai_data": String::from_utf8_lossy(&action.data),
    })
}
