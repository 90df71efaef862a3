//! A configuration file of coordinatool, as it is: what of it is about the queue.
//!
//! One `key value` a line; keys without regard to case, but for `archive_on_hosts_ch`, which in any other
//! spelling is `archive_on_hosts`; `#` begins a comment line. Lines may be indented, and tabs are
//! blanks.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::scheduler::hosts::Rule;
use super::scheduler::slots::Batching;

/// What such a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conf {
    /// `host` and `port`: where its JSON port listens.
    pub host: Option<String>,
    /// See there.
    pub port: Option<String>,
    /// `archive_id`, each.
    pub archive_ids: Vec<u32>,
    /// `redis_host`; empty for none.
    pub redis_host: Option<String>,
    /// `redis_port`.
    pub redis_port: Option<u16>,
    /// `client_grace_ms`.
    pub grace: Option<Duration>,
    /// `archive_on_hosts` and `archive_on_hosts_ch`, in their order.
    pub rules: Vec<Rule>,
    /// `batch_archives_slices_sec` and `batch_archives_slots_per_client`.
    pub batching: Option<Batching>,
    /// `reporting_dir`, a name below the mount point.
    pub reporting_dir: Option<PathBuf>,
    /// `reporting_hint`.
    pub reporting_hint: Option<String>,
    /// `reporting_schedule_interval_ms`.
    pub reporting_interval: Option<Duration>,
    /// Lines that say nothing to us.
    pub ignored: Vec<String>,
}

/// What is wrong with such a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfError {
    file: PathBuf,
    line: usize,
    key: String,
    problem: String,
}

impl std::error::Error for ConfError {}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, key, problem } = self;
        match line {
            0 => write!(f, "{}: {problem}", file.display()),
            line => write!(f, "{}:{line}: {key}: {problem}", file.display()),
        }
    }
}

impl Conf {
    /// Where the original would listen, if the file says anything about that.
    pub fn address(&self) -> Option<String> {
        if self.host.is_none() && self.port.is_none() {
            return None;
        }
        let host = self.host.as_deref().unwrap_or("coordinatool");
        Some(format!("{host}:{}", self.port.as_deref().unwrap_or("5123")))
    }

    /// Its Redis, if the file names one.
    pub fn redis_url(&self) -> Option<String> {
        let host = self.redis_host.as_deref().filter(|host| !host.is_empty())?;
        Some(format!("redis://{host}:{}", self.redis_port.unwrap_or(6379)))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, with line and key.
    pub fn load(path: &Path) -> Result<Self, ConfError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfError {
            file: path.to_owned(),
            line: 0,
            key: String::new(),
            problem: error.to_string(),
        })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// What is wrong with it, with line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfError> {
        let mut conf = Self::default();
        let (mut idle, mut max, mut slots) = (0, 0, 1);
        for (line, content) in (1..).zip(text.lines()) {
            let content = content.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (key, value) = content.split_once(char::is_whitespace).unwrap_or((content, ""));
            let value = value.trim();
            let wrong = |problem: &str| ConfError {
                file: path.to_owned(),
                line,
                key: key.to_owned(),
                problem: problem.to_owned(),
            };
            let number = |text: &str| number(text).ok_or_else(|| wrong("not a number"));
            if value.is_empty() {
                conf.ignored.push(format!("{}:{line}: {key}: no value", path.display()));
                continue;
            }
            let words: Vec<&str> = value.split_whitespace().collect();
            match key.to_ascii_lowercase().as_str() {
                "host" => conf.host = Some(value.to_owned()),
                "port" => conf.port = Some(value.to_owned()),
                "archive_id" => {
                    let id = number(value)?;
                    let id = i32::try_from(id).ok().filter(|id| *id > 0);
                    let id = id.ok_or_else(|| wrong("an archive id is 1 to 2147483647"))?;
                    conf.archive_ids.push(id.unsigned_abs());
                }
                "redis_host" => conf.redis_host = Some(value.to_owned()),
                "redis_port" => {
                    let port = number(value)?.try_into();
                    conf.redis_port = Some(port.map_err(|_| wrong("a port is 0 to 65535"))?);
                }
                "client_grace_ms" => conf.grace = Some(Duration::from_millis(number(value)?)),
                "archive_on_hosts_ch" if key == "archive_on_hosts_ch" => {
                    let [tag, n_values, hosts @ ..] = words.as_slice() else {
                        return Err(wrong("TAG N HOST... is needed"));
                    };
                    // As the original takes what is no number.
                    let n_values = self::number(n_values).unwrap_or(0);
                    conf.rules.extend(Rule::hashed(tag, n_values, hosts));
                }
                "archive_on_hosts" | "archive_on_hosts_ch" => {
                    let rule = words.split_first().and_then(|(t, hosts)| Rule::contains(t, hosts));
                    if rule.is_none() {
                        conf.ignored.push(format!("{}:{line}: {key}: no host", path.display()));
                    }
                    conf.rules.extend(rule);
                }
                "batch_archives_slices_sec" => {
                    idle = number(words[0])?;
                    max = words.get(1).map_or(Ok(0), |max| number(max))?;
                }
                "batch_archives_slots_per_client" => {
                    slots = u32::try_from(number(value)?).unwrap_or(u32::MAX);
                    if slots == 0 {
                        return Err(wrong("without slots, no archive would ever be made"));
                    }
                }
                "reporting_dir" => conf.reporting_dir = Some(value.into()),
                "reporting_hint" => conf.reporting_hint = Some(value.to_owned()),
                "reporting_schedule_interval_ms" => {
                    conf.reporting_interval = Some(Duration::from_millis(number(value)?));
                }
                // Of its own log, and of its clients.
                "verbose" | "client_id" | "max_restore" | "max_archive" | "max_remove"
                | "hal_size" => {}
                _ => conf.ignored.push(format!("{}:{line}: {key}: not known", path.display())),
            }
        }
        if idle > 0 {
            let max = (max > 0).then(|| Duration::from_secs(max));
            conf.batching = Some(Batching { idle: Duration::from_secs(idle), max, slots });
        }
        Ok(conf)
    }
}

/// In any base that C has.
fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    match text.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Conf, String> {
        Conf::parse(text, Path::new("c.conf")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_read_as_it_is() {
        let conf = parse(
            "# ours\n\tHOST  coord1 \n  port 5124\narchive_id 2\narchive_id 0x10\nredis_host db\n\
            client_grace_ms 5000\narchive_on_hosts tag=n0 agent_0\narchive_on_hosts nothing\n\
            archive_on_hosts_ch grouping= 10 a b\nbatch_archives_slices_sec 10\t20\n\
            batch_archives_slots_per_client 2\nreporting_dir .reports\nreporting_hint r\n\
            reporting_schedule_interval_ms 1000\nbatch_archives_slice_sec 1 2\nmax_archive 3\n",
        )
        .unwrap();
        assert_eq!(conf.address().as_deref(), Some("coord1:5124"));
        assert_eq!(conf.archive_ids, [2, 16]);
        assert_eq!(conf.grace, Some(Duration::from_secs(5)));
        let rules = [
            Rule::contains("tag=n0", &["agent_0"]).unwrap(),
            Rule::hashed("grouping=", 10, &["a", "b"]).unwrap(),
        ];
        assert_eq!(conf.rules, rules);
        let (idle, max) = (Duration::from_secs(10), Some(Duration::from_secs(20)));
        assert_eq!(conf.batching, Some(Batching { idle, max, slots: 2 }));
        let ignored = [
            "c.conf:9: archive_on_hosts: no host",
            "c.conf:16: batch_archives_slice_sec: not known",
        ];
        assert_eq!(conf.ignored, ignored);
    }

    #[test]
    fn errors_name_line_and_key() {
        for (text, want) in [
            ("\narchive_id 0", "c.conf:2: archive_id: an archive id is"),
            ("archive_id 1 2", "c.conf:1: archive_id: not a number"),
            ("client_grace_ms soon", "c.conf:1: client_grace_ms: not a number"),
            ("archive_on_hosts_ch x", "c.conf:1: archive_on_hosts_ch: TAG N HOST"),
            (
                "batch_archives_slots_per_client 0",
                "c.conf:1: batch_archives_slots_per_client: with",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
        // Batching is off without an idle time, and a rule in capitals is the other rule.
        assert_eq!(parse("batch_archives_slices_sec 0 9").unwrap().batching, None);
        let conf = parse("ARCHIVE_ON_HOSTS_CH tag= 0 h").unwrap();
        assert_eq!(conf.rules, [Rule::contains("tag=", &["0", "h"]).unwrap()]);
    }
}
