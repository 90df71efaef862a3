//! `[hsm]` of the configuration file.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::coordinatool;
use super::entrances::{self, Entrances};
use super::queue::{Retry, Settings};
use super::reports;
use super::request::Kind;
use super::scheduler::hosts::Rule;
use super::scheduler::slots::Batching;
use super::scheduler::{Limits, Order, ShareBy};
use crate::config::Span;

/// What a site has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Hsm {
    /// Where the upcall puts requests.
    pub spool: Option<PathBuf>,
    /// A worker that is silent for so long is dead.
    pub lease: Duration,
    /// Of the queue and its scheduler.
    pub queue: Settings,
    /// Files for users.
    pub reports: Option<reports::Settings>,
    /// Lustre, movers and the JSON port.
    pub entrances: Entrances,
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawHsm {
    spool: Option<Spanned<PathBuf>>,
    lease: Option<Span>,
    attempts: Option<u32>,
    retry_first: Option<Span>,
    retry_max: Option<Span>,
    order: Option<Spanned<Vec<Kind>>>,
    weights: Option<RawWeights>,
    share_by: Option<Spanned<String>>,
    #[serde(default)]
    share_weights: BTreeMap<String, f64>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    archive_on_hosts: Vec<Spanned<Vec<String>>>,
    #[serde(default)]
    archive_on_hosts_ch: Vec<Spanned<RawHashed>>,
    batch_archives: Option<RawBatching>,
    reporting_dir: Option<Spanned<PathBuf>>,
    reporting_hint: Option<String>,
    reporting_interval: Option<Span>,
    /// A configuration file of coordinatool, read as it is.
    coordinatool_conf: Option<Spanned<PathBuf>>,
    mount: Option<Spanned<PathBuf>>,
    fsname: Option<Spanned<String>>,
    #[serde(default)]
    archives: Vec<Spanned<u32>>,
    keep_alive: Option<Span>,
    renew: Option<Span>,
    active_requests: Option<String>,
    agents: Option<String>,
    pub(crate) movers: Option<Spanned<String>>,
    pub(crate) json_port: Option<Spanned<String>>,
    heartbeat: Option<Spanned<Span>>,
    grace: Option<Span>,
    #[serde(default)]
    graces: BTreeMap<String, Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct RawWeights {
    archive: f64,
    restore: f64,
    remove: f64,
    aging: f64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    worker: Option<u32>,
    workers: BTreeMap<String, u32>,
    archive: Option<u32>,
    restore: Option<u32>,
    remove: Option<u32>,
    archive_id: BTreeMap<String, u32>,
    share: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHashed {
    tag: String,
    #[serde(default)]
    n_values: u64,
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBatching {
    idle: Span,
    max: Option<Span>,
    slots: Option<Spanned<u32>>,
}

/// A problem, where it is, and the key.
pub(crate) type Problem = (Option<std::ops::Range<usize>>, &'static str, String);

impl RawHsm {
    pub(crate) fn check(&self) -> Result<Hsm, Problem> {
        let original = match &self.coordinatool_conf {
            None => coordinatool::Conf::default(),
            Some(path) => coordinatool::Conf::load(path.get_ref()).map_err(|problem| {
                (Some(path.span()), "hsm.coordinatool_conf", problem.to_string())
            })?,
        };
        let spool = self.spool.as_ref().map(|spool| {
            let wrong = (Some(spool.span()), "hsm.spool", "not an absolute path".to_owned());
            if spool.get_ref().is_absolute() { Ok(spool.get_ref().clone()) } else { Err(wrong) }
        });
        let reports = self.reports(&original)?;
        let mut queue = Settings { retry: self.retry(), ..Settings::default() };
        queue.scheduler.order = self.order()?;
        queue.scheduler.share_by = self.share_by()?;
        queue.scheduler.share_weights = self.share_weights()?;
        queue.scheduler.limits = self.limits()?;
        queue.scheduler.rules = original.rules;
        queue.scheduler.rules.extend(self.rules()?);
        queue.scheduler.batching = match &self.batch_archives {
            None => original.batching,
            Some(raw) => Some(raw.check()?),
        };
        let lease = self.lease.map_or(Duration::from_secs(30), |span| span.0);
        if lease < Duration::from_secs(1) {
            return Err((None, "hsm.lease", "at least \"1s\" is needed".to_owned()));
        }
        let entrances = self.entrances()?;
        Ok(Hsm { spool: spool.transpose()?, lease, queue, reports, entrances })
    }

    fn entrances(&self) -> Result<Entrances, Problem> {
        let default = Entrances::default();
        if let Some(fsname) = &self.fsname
            && !(1..=8).contains(&fsname.get_ref().len())
        {
            let problem = "a file system's name has 1 to 8 characters".to_owned();
            return Err((Some(fsname.span()), "hsm.fsname", problem));
        }
        let mut archives = Vec::new();
        for id in &self.archives {
            if *id.get_ref() == 0 {
                let problem = "0 is no archive; leave `archives` out to take all".to_owned();
                return Err((Some(id.span()), "hsm.archives", problem));
            }
            archives.push(*id.get_ref());
        }
        let copytool = match &self.mount {
            None => None,
            Some(mount) if !mount.get_ref().is_absolute() => {
                let problem = "not an absolute path".to_owned();
                return Err((Some(mount.span()), "hsm.mount", problem));
            }
            Some(mount) => Some(entrances::copytool(
                mount.get_ref().clone(),
                archives,
                self.renew.map(|span| span.0),
                self.active_requests.clone(),
                self.agents.clone(),
            )),
        };
        let heartbeat = match &self.heartbeat {
            None => default.heartbeat,
            Some(beat) if beat.get_ref().0 < Duration::from_millis(50) => {
                let problem = "at least \"50ms\" is needed".to_owned();
                return Err((Some(beat.span()), "hsm.heartbeat", problem));
            }
            Some(beat) => beat.get_ref().0,
        };
        Ok(Entrances {
            copytool,
            fsname: self.fsname.as_ref().map(|fsname| fsname.get_ref().clone()),
            keep_alive: self.keep_alive.map_or(default.keep_alive, |span| span.0),
            movers: self.movers.as_ref().map(|movers| movers.get_ref().clone()),
            json_port: self.json_port.as_ref().map(|port| port.get_ref().clone()),
            heartbeat,
            grace: self.grace.map_or(default.grace, |span| span.0),
            graces: self.graces.iter().map(|(name, span)| (name.clone(), span.0)).collect(),
        })
    }

    fn retry(&self) -> Retry {
        let default = Retry::default();
        Retry {
            attempts: self.attempts.unwrap_or(default.attempts).max(1),
            first: self.retry_first.map_or(default.first, |span| span.0),
            max: self.retry_max.map_or(default.max, |span| span.0),
        }
    }

    fn reports(&self, original: &coordinatool::Conf) -> Result<Option<reports::Settings>, Problem> {
        let hint = self.reporting_hint.as_ref().or(original.reporting_hint.as_ref());
        let Some(dir) = &self.reporting_dir else { return Ok(None) };
        let at = Some(dir.span());
        if !dir.get_ref().is_absolute() {
            return Err((at, "hsm.reporting_dir", "not an absolute path".to_owned()));
        }
        let problem = "`reporting_hint` is needed, too";
        let hint = hint.ok_or((at, "hsm.reporting_dir", problem.to_owned()))?;
        let interval = self.reporting_interval.map(|span| span.0);
        let interval = interval.or(original.reporting_interval);
        Ok(Some(reports::Settings {
            dir: dir.get_ref().clone(),
            hint: format!("{hint}="),
            interval: interval.unwrap_or(Duration::from_secs(60)),
        }))
    }

    fn order(&self) -> Result<Order, Problem> {
        if let Some(RawWeights { archive, restore, remove, aging }) = &self.weights {
            let weights = [*archive, *restore, *remove];
            return Ok(Order::Weighted { weights, aging: *aging });
        }
        let Some(order) = &self.order else { return Ok(Order::Fixed(Kind::ALL)) };
        let kinds = <[Kind; 3]>::try_from(order.get_ref().as_slice()).ok();
        let kinds = kinds.filter(|kinds| Kind::ALL.iter().all(|kind| kinds.contains(kind)));
        let problem = "archive, restore and remove are needed, each once";
        kinds.map(Order::Fixed).ok_or((Some(order.span()), "hsm.order", problem.to_owned()))
    }

    fn share_by(&self) -> Result<ShareBy, Problem> {
        let Some(by) = &self.share_by else { return Ok(ShareBy::None) };
        Ok(match by.get_ref().as_str() {
            "uid" => ShareBy::Uid,
            "gid" => ShareBy::Gid,
            "project" => ShareBy::Project,
            other => match other.strip_prefix("tag:") {
                Some(tag) if !tag.is_empty() => ShareBy::Tag(tag.to_owned()),
                _ => {
                    let problem = "\"uid\", \"gid\", \"project\" or \"tag:KEY=\" is needed";
                    return Err((Some(by.span()), "hsm.share_by", problem.to_owned()));
                }
            },
        })
    }

    fn share_weights(&self) -> Result<BTreeMap<Box<[u8]>, f64>, Problem> {
        let mut weights = BTreeMap::new();
        for (share, &weight) in &self.share_weights {
            if !(weight.is_finite() && weight > 0.0) {
                let problem = format!("{share}: a weight is more than 0");
                return Err((None, "hsm.share_weights", problem));
            }
            weights.insert(share.as_bytes().into(), weight);
        }
        Ok(weights)
    }

    fn limits(&self) -> Result<Limits, Problem> {
        let raw = &self.limits;
        let mut archive = BTreeMap::new();
        for (id, &most) in &raw.archive_id {
            let wrong = || (None, "hsm.limits.archive_id", format!("{id}: not an archive id"));
            archive.insert(id.parse().map_err(|_| wrong())?, most);
        }
        Ok(Limits {
            worker: raw.worker,
            workers: raw.workers.clone(),
            kind: [raw.archive, raw.restore, raw.remove],
            archive,
            share: raw.share,
        })
    }

    fn rules(&self) -> Result<Vec<Rule>, Problem> {
        let mut rules = Vec::new();
        for line in &self.archive_on_hosts {
            let words: Vec<&str> = line.get_ref().iter().map(String::as_str).collect();
            let rule = words.split_first().and_then(|(text, hosts)| Rule::contains(text, hosts));
            let problem = "a text and at least one host are needed";
            let wrong = || (Some(line.span()), "hsm.archive_on_hosts", problem.to_owned());
            rules.push(rule.ok_or_else(wrong)?);
        }
        for line in &self.archive_on_hosts_ch {
            let RawHashed { tag, n_values, hosts } = line.get_ref();
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            let problem = "at least one host is needed";
            let wrong = || (Some(line.span()), "hsm.archive_on_hosts_ch", problem.to_owned());
            rules.push(Rule::hashed(tag, *n_values, &hosts).ok_or_else(wrong)?);
        }
        Ok(rules)
    }
}

impl RawBatching {
    fn check(&self) -> Result<Batching, Problem> {
        let slots = self.slots.as_ref().map_or(1, |slots| *slots.get_ref());
        if slots == 0 {
            let at = self.slots.as_ref().map(Spanned::span);
            let problem = "without slots, no archive would ever be made";
            return Err((at, "hsm.batch_archives.slots", problem.to_owned()));
        }
        Ok(Batching { idle: self.idle.0, max: self.max.map(|span| span.0), slots })
    }
}

/// Checks what can only be known with the machine at hand.
///
/// # Errors
/// What is wrong with the spool.
pub fn prepare(hsm: &Hsm) -> Result<(), (PathBuf, std::io::Error)> {
    let spool: Option<&Path> = hsm.spool.as_deref();
    spool.map_or(Ok(()), |dir| super::spool::create(dir).map_err(|error| (dir.to_owned(), error)))
}
