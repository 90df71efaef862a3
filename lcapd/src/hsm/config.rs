//! `[hsm]` of the configuration file.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::coordinatool;
use super::entrances::{self, Entrances};
use super::events::Told;
use super::placer;
use super::queue::{Placing, Retry, Settings};
use super::reports;
use super::request::Kind;
use super::scheduler::hosts::Rule;
use super::scheduler::slots::Batching;
use super::scheduler::{Limits, Order, ShareBy};
use crate::config::Span;
use crate::sink::target::{Credentials, DEFAULT_TIMEOUT, Target};

/// Default of `cancel_limit`.
const CANCEL_LIMIT: Duration = Duration::from_secs(600);

/// What a site has chosen.
#[derive(Clone, Debug)]
pub struct Hsm {
    /// Where the upcall puts requests.
    pub spool: Option<PathBuf>,
    /// A worker that is silent for so long is dead.
    pub lease: Duration,
    /// Of the queue and its scheduler.
    pub queue: Settings,
    /// What HSM streams are told of.
    pub told: Told,
    /// The module that chooses movers.
    pub placer: Option<placer::Settings>,
    /// Files for users.
    pub reports: Option<reports::Settings>,
    /// Where the queue is kept, if not in the state directory.
    pub redis: Option<Target>,
    /// Coordinatool's Redis, from which everything is taken over once.
    pub original_redis: Option<Target>,
    /// Lustre, movers and the JSON port.
    pub entrances: Entrances,
    /// Lines of a configuration of coordinatool that say nothing to lcapd.
    pub ignored: Vec<String>,
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
    cancel_limit: Option<Span>,
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
    events: Option<Spanned<String>>,
    placer: Option<RawPlacer>,
    redis: Option<Spanned<String>>,
    redis_password_file: Option<PathBuf>,
    redis_ca_file: Option<PathBuf>,
    /// A Redis that coordinatool has written to.
    coordinatool_redis: Option<Spanned<String>>,
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
    json_port: Option<Spanned<String>>,
    heartbeat: Option<Spanned<Span>>,
    grace: Option<Span>,
    #[serde(default)]
    graces: BTreeMap<String, Span>,
}

/// Keys that are not ours are the module's own.
#[derive(Deserialize)]
struct RawPlacer {
    module: String,
    actions: Option<Vec<Kind>>,
    limit: Option<Span>,
    #[serde(flatten)]
    options: serde_json::Map<String, serde_json::Value>,
}

impl RawPlacer {
    fn check(&self) -> placer::Settings {
        placer::Settings {
            module: self.module.clone(),
            kinds: placer::kinds(self.actions.as_deref().unwrap_or(&[Kind::Restore])),
            limit: self.limit.map_or(Duration::from_secs(5), |limit| limit.0),
            options: self.options.clone(),
        }
    }
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
    #[serde(default)]
    rendezvous: bool,
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
    /// Where the address of the JSON port is from.
    pub(crate) fn json_port_at(&self) -> std::ops::Range<usize> {
        let conf = self.coordinatool_conf.as_ref().map(Spanned::span);
        self.json_port.as_ref().map(Spanned::span).or(conf).unwrap_or_default()
    }

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
        let limit = self.cancel_limit.map_or(CANCEL_LIMIT, |span| span.0);
        queue.cancel_limit = (!limit.is_zero()).then_some(limit);
        queue.scheduler.order = self.order()?;
        queue.scheduler.share_by = self.share_by()?;
        queue.scheduler.share_weights = self.share_weights()?;
        queue.scheduler.limits = self.limits()?;
        queue.scheduler.rules.clone_from(&original.rules);
        queue.scheduler.rules.extend(self.rules()?);
        queue.scheduler.batching = match &self.batch_archives {
            None => original.batching,
            Some(raw) => Some(raw.check()?),
        };
        let lease = self.lease.map_or(Duration::from_secs(30), |span| span.0);
        if lease < Duration::from_secs(1) {
            return Err((None, "hsm.lease", "at least \"1s\" is needed".to_owned()));
        }
        let (entrances, told) = (self.entrances(&original)?, self.told()?);
        let (redis, original_redis) = self.redis(&original)?;
        let (spool, ignored) = (spool.transpose()?, original.ignored);
        let placer = self.placer.as_ref().map(RawPlacer::check);
        queue.placing = placer.as_ref().map(|p| Placing { kinds: p.kinds, limit: p.limit });
        Ok(Hsm {
            spool,
            lease,
            queue,
            told,
            placer,
            reports,
            redis,
            original_redis,
            entrances,
            ignored,
        })
    }

    fn entrances(&self, original: &coordinatool::Conf) -> Result<Entrances, Problem> {
        let default = Entrances::default();
        if let Some(fsname) = &self.fsname
            && (!(1..=8).contains(&fsname.get_ref().len())
                || super::events::mdt_of(fsname.get_ref()).is_err())
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
        if archives.is_empty() {
            archives.clone_from(&original.archive_ids);
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
            json_port: self
                .json_port
                .as_ref()
                .map(|port| port.get_ref().clone())
                .or_else(|| original.address()),
            heartbeat,
            grace: self.grace.map(|span| span.0).or(original.grace).unwrap_or(default.grace),
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
        let (dir, at) = match (&self.reporting_dir, &original.reporting_dir, &self.mount) {
            (Some(dir), ..) if !dir.get_ref().is_absolute() => {
                let problem = "not an absolute path".to_owned();
                return Err((Some(dir.span()), "hsm.reporting_dir", problem));
            }
            (Some(dir), ..) => (dir.get_ref().clone(), Some(dir.span())),
            // The original's is a name below the mount, and without a hint it is off.
            (None, Some(dir), Some(mount)) if hint.is_some() => {
                (mount.get_ref().join(dir), Some(mount.span()))
            }
            _ => return Ok(None),
        };
        let problem = "`reporting_hint` is needed, too";
        let hint = hint.ok_or((at, "hsm.reporting_dir", problem.to_owned()))?;
        let interval = self.reporting_interval.map(|span| span.0);
        let interval = interval.or(original.reporting_interval);
        Ok(Some(reports::Settings {
            dir,
            hint: format!("{hint}="),
            interval: interval.unwrap_or(Duration::from_secs(60)),
        }))
    }

    fn redis(
        &self,
        original: &coordinatool::Conf,
    ) -> Result<(Option<Target>, Option<Target>), Problem> {
        let credentials = Credentials {
            password_file: self.redis_password_file.clone(),
            ca_file: self.redis_ca_file.clone(),
            client: None,
        };
        let target = |url: &str, credentials: &Credentials, at, key| {
            let target = Target::new(url, credentials, DEFAULT_TIMEOUT);
            target.map_err(|error| (at, key, crate::reader::chain(&error)))
        };
        if let Some(url) = self.redis.as_ref().filter(|_| self.fsname.is_none()) {
            let problem = "`fsname` is needed, too: keys are named after it".to_owned();
            return Err((Some(url.span()), "hsm.redis", problem));
        }
        let own = self
            .redis
            .as_ref()
            .map(|url| target(url.get_ref(), &credentials, Some(url.span()), "hsm.redis"));
        let named = self.coordinatool_redis.as_ref();
        let url = named.map(|url| url.get_ref().clone()).or_else(|| original.redis_url());
        let conf = self.coordinatool_conf.as_ref().map(Spanned::span);
        let at = named.map(Spanned::span).or(conf);
        if url.is_some() && self.mount.is_some() && self.fsname.is_none() {
            let problem = "`fsname` is needed, too: requests are filed under it".to_owned();
            return Err((at, "hsm.coordinatool_redis", problem));
        }
        // The original knows neither password nor TLS.
        let none = Credentials::default();
        let theirs = url.map(|url| target(&url, &none, at, "hsm.coordinatool_redis"));
        Ok((own.transpose()?, theirs.transpose()?))
    }

    fn told(&self) -> Result<Told, Problem> {
        let Some(events) = &self.events else { return Ok(Told::default()) };
        Ok(match events.get_ref().as_str() {
            "off" => Told::Off,
            "upcalls" => Told::Upcalls,
            "all" => Told::All,
            _ => {
                let problem = "\"off\", \"upcalls\" or \"all\" is needed".to_owned();
                return Err((Some(events.span()), "hsm.events", problem));
            }
        })
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
            let RawHashed { tag, n_values, hosts, rendezvous } = line.get_ref();
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            let problem = "at least one host is needed";
            let wrong = || (Some(line.span()), "hsm.archive_on_hosts_ch", problem.to_owned());
            let rule = Rule::hashed(tag, *n_values, &hosts).ok_or_else(wrong)?;
            rules.push(if *rendezvous { rule.by_rendezvous() } else { rule });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(more: &str) -> Result<Config, String> {
        let text = format!("[server]\nallow_plaintext = true\n[hsm]\n{more}");
        Config::parse(&text, Path::new("lcapd.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_of_coordinatool_counts_where_nothing_else_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("coordinatool.conf");
        std::fs::write(
            &conf,
            "host 0.0.0.0\narchive_id 2\nclient_grace_ms 5000\narchive_on_hosts tag=n0 agent_0\n\
             batch_archives_slices_sec 10 20\nreporting_dir .reports\nreporting_hint r\n\
             reporting_schedule_interval_ms 1000\nnonsense 1\n",
        )
        .unwrap();
        let from = format!("mount = \"/mnt/l\"\ncoordinatool_conf = \"{}\"\n", conf.display());
        let config = parse(&from).unwrap();
        let warned = config.warnings();
        assert!(warned.len() == 1 && warned[0].ends_with("9: nonsense: not known"), "{warned:?}");
        let hsm = config.hsm.unwrap();
        assert_eq!(hsm.entrances.json_port.as_deref(), Some("0.0.0.0:5123"));
        assert_eq!(hsm.entrances.copytool.unwrap().archives, [2]);
        assert_eq!(hsm.entrances.grace, Duration::from_secs(5));
        let rules = [Rule::contains("tag=n0", &["agent_0"]).unwrap()];
        assert_eq!(hsm.queue.scheduler.rules, rules);
        assert_eq!(hsm.queue.scheduler.batching.map(|b| b.idle), Some(Duration::from_secs(10)));
        let reports = hsm.reports.unwrap();
        assert_eq!((&*reports.hint, reports.interval), ("r=", Duration::from_secs(1)));
        assert_eq!(reports.dir, Path::new("/mnt/l/.reports"));

        let own = "json_port = \"127.0.0.1:1\"\narchives = [7]\ngrace = \"1m\"\n\
                   archive_on_hosts = [[\"x\", \"h\"]]\nreporting_dir = \"/var/r\"\n";
        let hsm = parse(&(from.clone() + own)).unwrap().hsm.unwrap();
        assert_eq!(hsm.entrances.json_port.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(hsm.entrances.copytool.unwrap().archives, [7]);
        assert_eq!(hsm.entrances.grace, Duration::from_secs(60));
        assert_eq!(hsm.queue.scheduler.rules.len(), 2);
        assert_eq!(hsm.reports.unwrap().dir, Path::new("/var/r"));

        // Where it listens is subject to our own rules.
        let text = format!("[server]\n[hsm]\n{from}");
        let error = Config::parse(&text, Path::new("l.toml")).unwrap_err().to_string();
        assert!(error.contains("hsm.json_port") && error.contains("allow_plaintext"), "{error}");
        std::fs::write(&conf, "archive_id 0\n").unwrap();
        assert!(parse(&from).unwrap_err().contains("coordinatool.conf:1: archive_id"));
    }

    #[test]
    fn slots_are_more_than_none() {
        let error = parse("batch_archives = { idle = \"1s\", slots = 0 }\n").unwrap_err();
        assert!(error.contains("hsm.batch_archives.slots"), "{error}");
    }
}
