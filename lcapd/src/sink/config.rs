//! `[[sink]]`: a stream, a Redis, and how the one is written to the other.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::schema::Shape;
use super::target::{Credentials, DEFAULT_TIMEOUT, Target};
use crate::config::{ConfigError, Place, Span, Stream};
use crate::engine::sinks::PREFIX;
use lcap_wire::control::{Delivery, StreamKind};

/// One `[[sink]]`, checked.
#[derive(Debug)]
pub struct SinkConfig {
    /// The registered reader that it is.
    pub reader: String,
    /// Number of its stream.
    pub stream: usize,
    /// Where it writes to.
    pub target: Target,
    /// Keys are `PREFIX:MDT`.
    pub prefix: String,
    /// It writes at multiples of this; zero: at once.
    pub burst: Duration,
    /// What it writes.
    pub kind: SinkKind,
}

/// What a sink writes.
#[derive(Clone, Debug)]
pub enum SinkKind {
    /// Records of the changelog.
    Changelog(ChangelogOptions),
    /// HSM actions.
    Hsm(HsmOptions),
}

/// How records of the changelog are written.
#[derive(Clone, Debug, Default)]
pub struct ChangelogOptions {
    /// Redis keeps about so many entries of an MDT.
    pub max_len: Option<u64>,
    /// Consumer groups that are made before the first entry is.
    pub groups: Vec<String>,
}

/// How HSM actions are written.
#[derive(Clone, Debug)]
pub struct HsmOptions {
    /// What an entry has.
    pub shape: Shape,
    /// What is older, and not needed to know the live actions, is trimmed.
    pub retain: Duration,
    /// Trim to the entry; otherwise to a node of Redis's tree.
    pub exact: bool,
    /// How often the stream is compared with what the MDT has.
    pub audit: Duration,
}

impl Default for HsmOptions {
    fn default() -> Self {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        Self { shape: Shape::default(), retain: hours(6), exact: false, audit: hours(6) }
    }
}

/// The keys as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSink {
    stream: Spanned<String>,
    redis: Spanned<String>,
    name: Option<Spanned<String>>,
    prefix: Option<Spanned<String>>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    timeout: Option<Span>,
    burst: Option<Span>,
    // Of changelog streams.
    max_len: Option<Spanned<u64>>,
    groups: Option<Spanned<Vec<String>>>,
    // Of HSM streams.
    raw: Option<Spanned<bool>>,
    extra: Option<Spanned<bool>>,
    qualified_keys: Option<Spanned<bool>>,
    retain: Option<Spanned<Span>>,
    exact_trimming: Option<Spanned<bool>>,
    audit: Option<Spanned<Span>>,
}

impl RawSink {
    pub(crate) fn check(
        &self,
        place: &Place<'_>,
        streams: &[Stream],
        others: &[std::sync::Arc<SinkConfig>],
    ) -> Result<SinkConfig, ConfigError> {
        let name = self.stream.get_ref();
        let stream = streams.iter().position(|stream| stream.name == *name).ok_or_else(|| {
            place.error(Some(self.stream.span()), "sink.stream", format!("no stream {name}"))
        })?;
        if streams[stream].delivery == Delivery::Queue {
            let problem = format!("{name} is a queue: its members share it; a sink takes all");
            return Err(place.error(Some(self.stream.span()), "sink.stream", problem));
        }
        let reader = self.reader(place)?;
        if others.iter().any(|other| other.stream == stream && other.reader == reader) {
            let problem = format!("{name} has another sink of that name; give this one a `name`");
            return Err(place.error(Some(self.stream.span()), "sink.name", problem));
        }
        let is_hsm = streams[stream].kind == StreamKind::Hsm;
        self.check_kind(place, is_hsm)?;
        if is_hsm && !streams[stream].policies.is_empty() {
            let problem = format!(
                "{name} has policies; a sink of HSM actions shows the live ones and needs them all"
            );
            return Err(place.error(Some(self.stream.span()), "sink.stream", problem));
        }
        let at = self.redis.span();
        let client = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => {
                let problem = "cert_file and key_file belong together";
                return Err(place.error(Some(at), "sink.cert_file", problem));
            }
        };
        let (password_file, ca_file) = (self.password_file.clone(), self.ca_file.clone());
        let credentials = Credentials { password_file, ca_file, client };
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0);
        let target = Target::new(self.redis.get_ref(), &credentials, timeout)
            .map_err(|error| place.error(Some(at), "sink.redis", crate::reader::chain(&error)))?;
        let prefix = self.prefix(place, name, is_hsm)?;
        if let Some(other) = others
            .iter()
            .find(|other| other.prefix == prefix && other.target.to_string() == target.to_string())
        {
            let problem = format!("{} writes to the same keys; give one a `prefix`", other.reader);
            return Err(place.error(Some(self.redis.span()), "sink.prefix", problem));
        }
        let default_burst = Duration::from_secs(if is_hsm { 2 } else { 0 });
        let burst = self.burst.map_or(default_burst, |span| span.0);
        let kind = if is_hsm { self.hsm() } else { self.changelog() };
        Ok(SinkConfig { reader, stream, target, prefix, burst, kind })
    }

    fn reader(&self, place: &Place<'_>) -> Result<String, ConfigError> {
        let Some(name) = &self.name else { return Ok(format!("{PREFIX}redis")) };
        let text = name.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
            let problem = "1 to 64 letters, digits, `_`, `-` or `.` are allowed";
            return Err(place.error(Some(name.span()), "sink.name", problem));
        }
        Ok(format!("{PREFIX}{text}"))
    }

    fn prefix(&self, place: &Place<'_>, stream: &str, is_hsm: bool) -> Result<String, ConfigError> {
        let Some(prefix) = &self.prefix else {
            return Ok(if is_hsm { "hsm:actions".to_owned() } else { format!("lcap:{stream}") });
        };
        let text = prefix.get_ref();
        if text.is_empty() || text.ends_with(':') || text.contains(char::is_whitespace) {
            let problem = "a word without a colon at its end; keys are PREFIX:MDT";
            return Err(place.error(Some(prefix.span()), "sink.prefix", problem));
        }
        Ok(text.clone())
    }

    /// Keys of the one kind are errors with the other.
    fn check_kind(&self, place: &Place<'_>, is_hsm: bool) -> Result<(), ConfigError> {
        fn at<T>(key: &Option<Spanned<T>>) -> Option<std::ops::Range<usize>> {
            key.as_ref().map(Spanned::span)
        }
        let changelog = [("max_len", at(&self.max_len)), ("groups", at(&self.groups))];
        let hsm = [
            ("raw", at(&self.raw)),
            ("extra", at(&self.extra)),
            ("qualified_keys", at(&self.qualified_keys)),
            ("retain", at(&self.retain)),
            ("exact_trimming", at(&self.exact_trimming)),
            ("audit", at(&self.audit)),
        ];
        let wrong: &[_] = if is_hsm { &changelog } else { &hsm };
        for (key, at) in wrong {
            if at.is_some() {
                let kind = if is_hsm { "changelog" } else { "hsm" };
                let problem = format!("is for streams of kind \"{kind}\"");
                return Err(place.error(at.clone(), &format!("sink.{key}"), problem));
            }
        }
        Ok(())
    }

    fn changelog(&self) -> SinkKind {
        let max_len = self.max_len.as_ref().map(|n| *n.get_ref());
        let groups = self.groups.as_ref().map(|groups| groups.get_ref().clone());
        SinkKind::Changelog(ChangelogOptions { max_len, groups: groups.unwrap_or_default() })
    }

    fn hsm(&self) -> SinkKind {
        let default = HsmOptions::default();
        let flag =
            |key: &Option<Spanned<bool>>, default| key.as_ref().map_or(default, |k| *k.get_ref());
        let span =
            |key: &Option<Spanned<Span>>, default| key.as_ref().map_or(default, |k| k.get_ref().0);
        SinkKind::Hsm(HsmOptions {
            shape: Shape {
                raw: flag(&self.raw, default.shape.raw),
                extra: flag(&self.extra, default.shape.extra),
                qualified: flag(&self.qualified_keys, default.shape.qualified),
            },
            retain: span(&self.retain, default.retain),
            exact: flag(&self.exact_trimming, default.exact),
            audit: span(&self.audit, default.audit).max(Duration::from_secs(1)),
        })
    }
}
