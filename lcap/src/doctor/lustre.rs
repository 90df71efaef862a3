//! What an MDT's parameters say about our changelog user.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::params::{Params, User, users};
use super::report::Report;
use crate::screen::grouped;

/// Without these a mirror of the namespace is wrong.
const NAMESPACE: [&str; 9] =
    ["CREAT", "MKDIR", "HLINK", "SLINK", "MKNOD", "UNLNK", "RMDIR", "RENME", "RNMTO"];
/// What policy engines want besides.
const CONTENT: [&str; 6] = ["CLOSE", "LYOUT", "TRUNC", "SATTR", "XATTR", "HSM"];

/// What the configuration says of an MDT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours<'a> {
    pub(super) mdt: &'a str,
    pub(super) user: Option<&'a str>,
    /// How often we clear even if there is nothing to clear.
    pub(super) keep_alive: Duration,
}

/// Looks at one MDT.
pub(super) fn check(report: &mut Report, params: &Params, ours: Ours<'_>) {
    let mdt = ours.mdt;
    let get = |name: &str| params.get(&format!("mdd.{mdt}.{name}"));
    let Some(text) = get("changelog_users") else {
        report.note(
            mdt,
            "its users and its mask cannot be seen from here: they are parameters of its MDS",
            "on the MDS:  lctl get_param mdd.*.changelog_* mdt.*.hsm_control > /tmp/params\n\
             then here:   lcap doctor --params /tmp/params",
        );
        return;
    };
    let Some((current, all)) = users(&text) else {
        report.warning(
            mdt,
            "changelog_users does not look like that of any version of Lustre that is known",
            format!("lctl get_param mdd.{mdt}.changelog_users"),
        );
        return;
    };
    our_user(report, ours, current, &all);
    others(report, params, ours, current, &all);
    mask(report, mdt, get("changelog_current_mask").or_else(|| get("changelog_mask")), &all);
    collection(report, params, ours);
    let hsm = format!("mdt.{mdt}.hsm_control");
    match params.get(&hsm).as_deref().map(str::trim) {
        None | Some("enabled") => {}
        Some(state) => report.note(
            mdt,
            format!("the HSM coordinator is {state}"),
            format!("if HSM is used, on the MDS:  lctl set_param {hsm}=enabled"),
        ),
    }
}

fn our_user(report: &mut Report, ours: Ours<'_>, current: u64, all: &[User]) {
    let mdt = ours.mdt;
    let register = format!("on the MDS:  lctl --device {mdt} changelog_register");
    let Some(user) = ours.user else {
        report.error(
            mdt,
            "no `user` is configured: lcapd clears nothing, and nobody keeps records for it",
            format!("{register}\nthen in its [[mdt]]:  user = \"clN\", as that answered"),
        );
        return;
    };
    match all.iter().find(|known| known.is(user)) {
        Some(known) => {
            let lag = grouped(current.saturating_sub(known.index));
            let idle = known.idle.map(|s| format!(", last cleared {s} s ago")).unwrap_or_default();
            report.ok(mdt, format!("changelog user {}: {lag} records behind{idle}", known.id));
        }
        None => report.error(
            mdt,
            format!("there is no changelog user {user}: records are lost without notice"),
            format!(
                "{register}\nthen in its [[mdt]]:  user = \"clN\", as that answered;  systemctl \
                 restart lcapd\nand have programs that mirror the file system rescan"
            ),
        ),
    }
}

/// Users that hold the log, and will be held against it.
fn others(report: &mut Report, params: &Params, ours: Ours<'_>, current: u64, all: &[User]) {
    const DAY: u64 = 86_400;
    let mdt = ours.mdt;
    let limit = |name: &str| params.number(&format!("mdd.{mdt}.{name}")).filter(|n| *n > 0);
    let max_idle = limit("changelog_max_idle_time");
    let max_behind = limit("changelog_max_idle_indexes");
    for user in all {
        let is_ours = ours.user.is_some_and(|name| user.is(name));
        let behind = current.saturating_sub(user.index);
        let near = |value: u64, limit: Option<u64>| limit.is_some_and(|max| value >= max / 2);
        let idle = user.idle.unwrap_or(0);
        if is_ours && (near(idle, max_idle) || near(behind, max_behind)) {
            report.error(
                mdt,
                format!(
                    "our user {} is on its way to be removed by the MDT: idle {idle} s (limit {}), \
                     {} records behind (limit {})",
                    user.id,
                    max_idle.unwrap_or(0),
                    grouped(behind),
                    grouped(max_behind.unwrap_or(0)),
                ),
                "lcap status    # which reader holds the log, and is lcapd clearing?",
            );
        } else if !is_ours && behind > 0 && idle > DAY {
            report.warning(
                mdt,
                format!(
                    "user {} holds {} records and has cleared nothing for {} days",
                    user.id,
                    grouped(behind),
                    idle / DAY
                ),
                format!(
                    "if nobody uses it, on the MDS:  lctl --device {mdt} changelog_deregister {}",
                    user.id
                ),
            );
        }
    }
}

fn mask(report: &mut Report, mdt: &str, mask: Option<String>, users: &[User]) {
    let Some(mask) = mask else { return };
    let logged: Vec<&str> = mask.split_whitespace().collect();
    let missing = |wanted: &[&'static str]| -> Vec<&'static str> {
        wanted.iter().copied().filter(|name| !logged.contains(name)).collect()
    };
    let names = missing(&NAMESPACE);
    let content = missing(&CONTENT);
    let set = |what: &[&str]| {
        let more: String = what.iter().map(|name| format!("+{name}")).collect();
        format!("on the MDS:  lctl set_param -P mdd.{mdt}.changelog_mask={more}")
    };
    if users.is_empty() && logged == ["MARK"] {
        report.note(mdt, "nothing is logged as long as there is no changelog user", "");
    } else if !names.is_empty() {
        report.error(
            mdt,
            format!("the mask leaves out {}: mirrors of the namespace go wrong", names.join(" ")),
            set(&names),
        );
    } else {
        report.ok(mdt, format!("mask: {}", logged.join(" ")));
    }
    if !content.is_empty() && logged != ["MARK"] {
        report.note(
            mdt,
            format!("the mask leaves out {}, which policy engines want", content.join(" ")),
            set(&content),
        );
    }
}

/// The MDT's garbage collection of users.
fn collection(report: &mut Report, params: &Params, ours: Ours<'_>) {
    let mdt = ours.mdt;
    let number = |name: &str| params.number(&format!("mdd.{mdt}.{name}"));
    match number("changelog_gc") {
        Some(0) => report.note(
            mdt,
            "changelog_gc=0: a user that nobody serves any more fills the MDT's disk",
            format!(
                "to have the MDT remove such users:  lctl set_param -P mdd.{mdt}.changelog_gc=1"
            ),
        ),
        Some(_) => {
            let max_idle = number("changelog_max_idle_time").unwrap_or(2_592_000);
            let keep_alive = ours.keep_alive.as_secs();
            if keep_alive.saturating_mul(2) >= max_idle {
                report.error(
                    mdt,
                    format!(
                        "the MDT removes users that are idle for {max_idle} s, and lcapd clears \
                         only every {keep_alive} s while nothing happens"
                    ),
                    format!(
                        "in [server]:  clear_keep_alive = \"{}s\"\nor on the MDS:  lctl set_param \
                         -P mdd.{mdt}.changelog_max_idle_time=2592000",
                        (max_idle / 4).max(1)
                    ),
                );
            } else {
                report.ok(
                    mdt,
                    format!(
                        "idle users are removed after {}; lcapd clears at least every {keep_alive} s",
                        if max_idle >= 172_800 {
                            format!("{} days", max_idle / 86_400)
                        } else {
                            format!("{max_idle} s")
                        }
                    ),
                );
            }
        }
        None => {}
    }
}
