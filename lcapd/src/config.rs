//! The configuration file: TOML in, a checked [`Config`] out.
//!
//! Everything that can be known to be wrong without touching a device or socket is found here, and
//! told with file, line and key. Unknown keys are errors: a misspelt option must not be silent.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::MdtName;
use lcap_wire::control::{Delivery, StreamKind};
use lcap_wire::z85::Key;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::actions::place::ListPlace;
use crate::hsm::config::{Hsm, RawHsm};
use crate::hsm::events::{Told, mdt_of};
use crate::lease;
use crate::policy::PolicyConfig;
use crate::security::SecurityConfig;
use crate::sink::config::{RawSink, SinkConfig};
use crate::sink::target::{Credentials, Target};
use crate::source::SourceUri;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The file that it is from.
    pub path: PathBuf,
    /// Of the daemon as a whole.
    pub server: Server,
    /// Keys and clients; without it nothing is encrypted and everybody may do everything.
    pub security: Option<SecurityConfig>,
    /// One per MDT.
    pub mdts: Vec<Mdt>,
    /// At least one, unless HSM requests are all that is served.
    pub streams: Vec<Stream>,
    /// The queue of HSM requests.
    pub hsm: Option<Hsm>,
    /// Streams to other systems.
    pub sinks: Vec<Arc<SinkConfig>>,
}

/// `[server]`.
#[derive(Debug)]
pub struct Server {
    /// Endpoint of the control socket.
    pub control: String,
    /// Where state survives restarts.
    pub state_dir: PathBuf,
    /// Bound on memory for records.
    pub memory_limit_bytes: usize,
    /// Least time between two clears of an MDT, unless `clear_records` are due.
    pub clear_interval: Duration,
    /// So many settled indexes are cleared at once, whatever the time.
    pub clear_records: u64,
    /// The same index is cleared again after this, so that Lustre does not take us for dead.
    pub clear_keep_alive: Duration,
    /// How often a client has to be heard of; silent for five times as long, it is gone.
    pub heartbeat: Duration,
    /// A list of HSM actions is read at least this often.
    pub hsm_audit_interval: Duration,
    /// So many HSM events of an MDT are kept for readers that do not acknowledge them.
    pub hsm_max_events: u64,
    /// Where policy modules are looked for first.
    pub policy_path: Vec<PathBuf>,
    /// Whose turn it is, if several lcapds share `state_dir`: how long one may be silent.
    pub lease: Option<Duration>,
    /// Where that is kept, if not in `state_dir`.
    pub lease_redis: Option<Target>,
    /// What is logged, unless the command line says.
    pub log: Option<String>,
    /// A call into a policy module that takes longer is an error.
    pub policy_timeout: Duration,
    /// Where figures and health are served over HTTP.
    pub http: Option<SocketAddr>,
    /// Connections that there may be to all sockets; by default, what descriptors allow.
    pub max_connections: Option<usize>,
}

/// `[[mdt]]`.
#[derive(Debug)]
pub struct Mdt {
    /// Its name.
    pub name: MdtName,
    /// The changelog user that we are on it.
    pub user: Option<String>,
    /// Where its records come from.
    pub source: SourceUri,
    /// The source as it was written, for people.
    pub source_text: String,
    /// Public key of the other lcapd, if the source is one that demands CURVE.
    pub server_key: Option<String>,
    /// Where its list of HSM actions is.
    pub hsm_actions: HsmSource,
}

/// `hsm_actions` of an MDT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HsmSource {
    /// Where Lustre has it.
    Auto,
    /// Nobody wants to know.
    Off,
    /// A path, or a pattern in which a component with wildcards stands for the MDT's name.
    Path(PathBuf),
}

impl Mdt {
    /// Where the list of its HSM actions is to be looked for, if at all.
    pub fn hsm_place(&self) -> Option<ListPlace> {
        match (&self.hsm_actions, &self.source) {
            (HsmSource::Off, _) => None,
            (HsmSource::Path(pattern), _) => Some(ListPlace::of_pattern(pattern, &self.name)),
            (HsmSource::Auto, SourceUri::Sim(options)) => {
                Some(ListPlace::Sim(Arc::new(options.actions(&self.name)?)))
            }
            // The other lcapd reads it.
            (HsmSource::Auto, SourceUri::Relay { .. } | SourceUri::Replay { .. }) => None,
            (HsmSource::Auto, _) => Some(ListPlace::of_kernel(&self.name)),
        }
    }
}

/// `[[stream]]`.
#[derive(Debug)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// What it carries.
    pub kind: StreamKind,
    /// Who gets what.
    pub delivery: Delivery,
    /// Endpoint of its data socket.
    pub publish: String,
    /// Parts of a queue that have one owner at a time; 1: members take turns.
    pub lanes: u16,
    /// Modules, in order.
    pub policies: Vec<PolicyConfig>,
    /// A reader idle for longer and further behind than `max_lag` is suspended.
    pub max_idle: Duration,
    /// A reader further behind and idle for longer than `max_idle` is suspended.
    pub max_lag: u64,
}

/// What is wrong with a configuration, and where.
#[derive(Debug)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    key: String,
    problem: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.problem)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    server: RawServer,
    security: Option<SecurityConfig>,
    #[serde(default)]
    mdt: Vec<RawMdt>,
    #[serde(default)]
    stream: Vec<RawStream>,
    hsm: Option<RawHsm>,
    #[serde(default)]
    sink: Vec<RawSink>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawServer {
    control: Option<Spanned<String>>,
    state_dir: Option<PathBuf>,
    memory_limit: Option<ByteSize>,
    clear_interval: Option<Span>,
    clear_records: Option<u64>,
    clear_keep_alive: Option<Span>,
    heartbeat: Option<Span>,
    max_idle: Option<Span>,
    max_lag: Option<u64>,
    hsm_audit_interval: Option<Span>,
    hsm_max_events: Option<u64>,
    max_connections: Option<usize>,
    policy_path: Vec<PathBuf>,
    policy_timeout: Option<Span>,
    http: Option<Spanned<String>>,
    lease: Option<Spanned<Span>>,
    lease_redis: Option<Spanned<String>>,
    lease_redis_password_file: Option<PathBuf>,
    lease_redis_ca_file: Option<PathBuf>,
    log: Option<Spanned<String>>,
    allow_plaintext: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMdt {
    name: Spanned<String>,
    user: Option<String>,
    source: Option<Spanned<String>>,
    server_key: Option<Spanned<String>>,
    hsm_actions: Option<Spanned<RawHsmActions>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStream {
    name: Spanned<String>,
    kind: Option<StreamKind>,
    delivery: Spanned<Delivery>,
    publish: Spanned<String>,
    lanes: Option<Spanned<u16>>,
    #[serde(default)]
    policies: Vec<Spanned<toml::Table>>,
    max_idle: Option<Span>,
    max_lag: Option<u64>,
}

/// `"auto"`, `false`, a path or a pattern.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum RawHsmActions {
    Switch(bool),
    Text(String),
}

/// `"64MiB"`, `"1GiB"`, or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ByteSize(usize);

/// `"500ms"`, `"1s"`, `"30m"`, `"2h"`, `"7d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

fn split_unit(text: &str) -> (Option<u64>, &str) {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (text[..digits].parse().ok(), text[digits..].trim())
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        let bytes = match Form::deserialize(de)? {
            Form::Number(n) => Some(n),
            Form::Text(text) => {
                let (number, unit) = split_unit(&text);
                let factor = match unit {
                    "" | "B" => Some(1),
                    "KiB" | "K" => Some(1 << 10),
                    "MiB" | "M" => Some(1 << 20),
                    "GiB" | "G" => Some(1 << 30),
                    _ => None,
                };
                number.zip(factor).and_then(|(n, factor): (u64, u64)| n.checked_mul(factor))
            }
        };
        let bytes = bytes.and_then(|b| usize::try_from(b).ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("not a size; write e.g. \"1GiB\""))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let text = String::deserialize(de)?;
        let (number, unit) = split_unit(&text);
        let millis = match unit {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" | "min" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000),
            _ => None,
        };
        let millis = number.zip(millis).and_then(|(n, unit): (u64, u64)| n.checked_mul(unit));
        let span = millis.map(|ms| Self(Duration::from_millis(ms)));
        span.ok_or_else(|| {
            serde::de::Error::custom("not a duration; write e.g. \"500ms\" or \"1h\"")
        })
    }
}

/// Turns byte offsets of the file into errors with line numbers.
pub(crate) struct Place<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    pub(crate) fn error(
        &self,
        at: Option<Range<usize>>,
        key: &str,
        problem: impl fmt::Display,
    ) -> ConfigError {
        let line = at.map(|at| {
            let before = self.text.get(..at.start).unwrap_or_default();
            before.bytes().filter(|&b| b == b'\n').count() + 1
        });
        let (file, key) = (self.file.to_owned(), key.to_owned());
        ConfigError { file, line, key, problem: problem.to_string() }
    }

    /// The key of the line that an offset lies in, for errors of the TOML parser.
    fn key_at(&self, at: usize) -> String {
        let start = self.text.get(..at).and_then(|t| t.rfind('\n')).map_or(0, |nl| nl + 1);
        let line = self.text.get(start..).unwrap_or_default().lines().next().unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        if line.contains('=') { key.to_owned() } else { line.trim().to_owned() }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.to_owned(),
            line: None,
            key: String::new(),
            problem: format!("cannot be read: {error}"),
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let place = Place { file: path, text };
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let key = error.span().map(|at| place.key_at(at.start)).unwrap_or_default();
            place.error(error.span(), &key, error.message())
        })?;
        let exposed = Exposed { allowed: raw.server.allow_plaintext || raw.security.is_some() };
        let server = raw.server.check(&place, exposed)?;
        let mut mdts: Vec<Mdt> = Vec::new();
        for raw_mdt in &raw.mdt {
            let mdt = raw_mdt.check(&place)?;
            if mdts.iter().any(|other| other.name == mdt.name) {
                let at = raw_mdt.name.span();
                return Err(place.error(Some(at), "mdt.name", format!("{} twice", mdt.name)));
            }
            mdts.push(mdt);
        }
        let hsm = raw.hsm.as_ref().map(RawHsm::check).transpose();
        let hsm = hsm.map_err(|(at, key, problem)| place.error(at, key, problem))?;
        if let (Some(raw_hsm), Some(hsm)) = (&raw.hsm, &hsm) {
            if let Some(movers) = &raw_hsm.movers {
                check_endpoint(&place, movers, "hsm.movers", exposed)?;
            }
            if let Some(port) = &hsm.entrances.json_port {
                let url = Spanned::new(raw_hsm.json_port_at(), format!("tcp://{port}"));
                // It knows no keys.
                let exposed = Exposed { allowed: raw.server.allow_plaintext };
                check_endpoint(&place, &url, "hsm.json_port", exposed)?;
            }
        }
        if mdts.is_empty() && hsm.is_none() {
            return Err(place.error(None, "mdt", "no [[mdt]] given; there is nothing to read"));
        }
        let mut streams: Vec<Stream> = Vec::new();
        for raw_stream in &raw.stream {
            let stream = raw_stream.check(&place, &raw.server, exposed)?;
            let at = raw_stream.name.span();
            if streams.iter().any(|other| other.name == stream.name) {
                return Err(place.error(Some(at), "stream.name", format!("{} twice", stream.name)));
            }
            let shared = |other: &&Stream| {
                other.publish == stream.publish && !stream.publish.ends_with(":*")
            };
            if let Some(other) = streams.iter().find(shared) {
                let problem =
                    format!("{} is already taken by stream {}", stream.publish, other.name);
                return Err(place.error(
                    Some(raw_stream.publish.span()),
                    "stream.publish",
                    problem,
                ));
            }
            streams.push(stream);
        }
        if streams.is_empty() && (hsm.is_none() || !mdts.is_empty()) {
            return Err(place.error(None, "stream", "no [[stream]] given; nobody could read"));
        }
        let mut sinks = Vec::new();
        for raw_sink in &raw.sink {
            sinks.push(Arc::new(raw_sink.check(&place, &streams, &sinks)?));
        }
        let (path, security) = (path.to_owned(), raw.security);
        Ok(Self { path, server, security, mdts, streams, sinks, hsm })
    }
}

impl Config {
    /// What streams of HSM events have requests of the queue under, a name for each file system.
    pub fn request_mdts(&self) -> Vec<MdtName> {
        let Some(hsm) = self.hsm.as_ref().filter(|hsm| hsm.told != Told::Off) else {
            return Vec::new();
        };
        if !self.streams.iter().any(|stream| stream.kind == StreamKind::Hsm) {
            return Vec::new();
        }
        let of_mdts = self.mdts.iter().filter_map(|mdt| mdt.name.as_str().rsplit_once("-MDT"));
        let fsnames: BTreeSet<&str> =
            of_mdts.map(|(fsname, _)| fsname).chain(hsm.entrances.fsname.as_deref()).collect();
        fsnames.into_iter().filter_map(|fsname| mdt_of(fsname).ok()).collect()
    }

    /// What is allowed but probably not meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(self.hsm.iter().flat_map(|hsm| hsm.ignored.iter().cloned()));
        for mdt in &self.mdts {
            if mdt.user.is_none() && mdt.source.needs_user() {
                warnings.push(format!(
                    "{}: no `user` is given, so nothing will ever be cleared on this MDT; `lctl \
                     --device {} changelog_register` on its MDS makes one",
                    mdt.name, mdt.name
                ));
            }
        }
        warnings
    }
}

const DEFAULT_MAX_IDLE: Duration = Duration::from_secs(30 * 86_400);
const DEFAULT_MAX_LAG: u64 = u64::MAX;

impl RawServer {
    fn check(&self, place: &Place<'_>, exposed: Exposed) -> Result<Server, ConfigError> {
        let control = match &self.control {
            Some(control) => {
                check_endpoint(place, control, "server.control", exposed)?;
                control.get_ref().clone()
            }
            None => format!("tcp://127.0.0.1:{}", lcap_wire::DEFAULT_CONTROL_PORT),
        };
        let seconds = |span: Option<Span>, default: u64| {
            span.map_or(Duration::from_secs(default), |span| span.0)
        };
        let memory_limit_bytes = self.memory_limit.map_or(1 << 30, |size| size.0);
        if memory_limit_bytes < 4 << 20 {
            return Err(place.error(None, "server.memory_limit", "at least 4MiB is needed"));
        }
        let http = self.http.as_ref().map(|http| {
            let address = http.get_ref().parse();
            let problem = "not an address; write e.g. \"127.0.0.1:9189\" or \"[::1]:9189\"";
            address.map_err(|_| place.error(Some(http.span()), "server.http", problem))
        });
        let http = http.transpose()?;
        if let Some(log) = &self.log
            && let Err(problem) = crate::logging::check(log.get_ref())
        {
            return Err(place.error(Some(log.span()), "server.log", format!("{problem:#}")));
        }
        if let Some(lease) = &self.lease
            && lease.get_ref().0 < Duration::from_millis(100)
        {
            return Err(place.error(Some(lease.span()), "server.lease", "at least 100ms"));
        }
        Ok(Server {
            control,
            state_dir: self.state_dir.clone().unwrap_or_else(|| "/var/lib/lcap".into()),
            memory_limit_bytes,
            clear_interval: seconds(self.clear_interval, 1),
            clear_records: self.clear_records.unwrap_or(10_000).max(1),
            clear_keep_alive: seconds(self.clear_keep_alive, 3600),
            heartbeat: seconds(self.heartbeat, 1).max(Duration::from_millis(10)),
            // Half of the time that Lustre keeps what is over in its list.
            hsm_audit_interval: seconds(self.hsm_audit_interval, 30)
                .max(Duration::from_millis(100)),
            hsm_max_events: self.hsm_max_events.unwrap_or(1_000_000).max(1000),
            policy_path: self.policy_path.clone(),
            lease: self.lease.as_ref().map(|lease| lease.get_ref().0),
            lease_redis: self.lease_redis(place)?,
            log: self.log.as_ref().map(|log| log.get_ref().clone()),
            policy_timeout: seconds(self.policy_timeout, 10).max(Duration::from_millis(100)),
            http,
            max_connections: self.max_connections.map(|n| n.max(16)),
        })
    }

    fn lease_redis(&self, place: &Place<'_>) -> Result<Option<Target>, ConfigError> {
        let Some(url) = &self.lease_redis else { return Ok(None) };
        let error = |problem: String| place.error(Some(url.span()), "server.lease_redis", problem);
        let Some(lease) = &self.lease else {
            return Err(error("it is where `lease` is kept, which says for how long".to_owned()));
        };
        let credentials = Credentials {
            password_file: self.lease_redis_password_file.clone(),
            ca_file: self.lease_redis_ca_file.clone(),
            client: None,
        };
        // One that does not answer must not take as long as the lease.
        let timeout = lease.get_ref().0 / lease::RENEWALS;
        let target = Target::new(url.get_ref(), &credentials, timeout);
        target.map(Some).map_err(|problem| error(problem.to_string()))
    }
}

impl RawMdt {
    fn check(&self, place: &Place<'_>) -> Result<Mdt, ConfigError> {
        let name = self.name.get_ref().parse();
        let name = name.map_err(|e| place.error(Some(self.name.span()), "mdt.name", e))?;
        let source_text = self.source.as_ref().map_or("device:", |s| s.get_ref()).to_owned();
        let at = self.source.as_ref().map(Spanned::span);
        let source: SourceUri =
            source_text.parse().map_err(|e| place.error(at.clone(), "mdt.source", e))?;
        if let Some(key) = &self.server_key {
            let problem = match (&source, Key::from_z85(key.get_ref())) {
                (SourceUri::Relay { .. }, Ok(_)) => None,
                (SourceUri::Relay { .. }, Err(error)) => Some(error.to_string()),
                _ => Some("only lcap:// sources have one".to_owned()),
            };
            if let Some(problem) = problem {
                return Err(place.error(Some(key.span()), "mdt.server_key", problem));
            }
        }
        let server_key = self.server_key.as_ref().map(|key| key.get_ref().clone());
        let hsm_actions = match self.hsm_actions.as_ref().map(|raw| (raw.get_ref(), raw.span())) {
            None | Some((RawHsmActions::Switch(true), _)) => HsmSource::Auto,
            Some((RawHsmActions::Switch(false), _)) => HsmSource::Off,
            Some((RawHsmActions::Text(text), _)) if text == "auto" => HsmSource::Auto,
            Some((RawHsmActions::Text(text), _)) if text.starts_with('/') => {
                HsmSource::Path(text.into())
            }
            Some((_, at)) => {
                let problem = "expected \"auto\", false, or an absolute path (or pattern)";
                return Err(place.error(Some(at), "mdt.hsm_actions", problem));
            }
        };
        let user = self.user.clone();
        Ok(Mdt { name, user, source, source_text, server_key, hsm_actions })
    }
}

impl RawStream {
    fn check(
        &self,
        place: &Place<'_>,
        server: &RawServer,
        exposed: Exposed,
    ) -> Result<Stream, ConfigError> {
        let name = self.name.get_ref().clone();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let problem = "1 to 64 letters, digits, `_`, `-` or `.` are allowed";
            return Err(place.error(Some(self.name.span()), "stream.name", problem));
        }
        check_endpoint(place, &self.publish, "stream.publish", exposed)?;
        let delivery = *self.delivery.get_ref();
        let lanes = self.lanes.as_ref().map_or(1, |lanes| *lanes.get_ref());
        if let Some(at) = &self.lanes
            && (lanes == 0 || delivery == Delivery::Broadcast)
        {
            let problem = "lanes are for delivery = \"queue\", 1 to 65535 of them";
            return Err(place.error(Some(at.span()), "stream.lanes", problem));
        }
        let mut policies = Vec::new();
        for table in &self.policies {
            let policy = PolicyConfig::from_table(table.get_ref())
                .map_err(|e| place.error(Some(table.span()), "stream.policies", e))?;
            policies.push(policy);
        }
        let max_idle = self.max_idle.or(server.max_idle).map_or(DEFAULT_MAX_IDLE, |span| span.0);
        let max_lag = self.max_lag.or(server.max_lag).unwrap_or(DEFAULT_MAX_LAG);
        let publish = self.publish.get_ref().clone();
        let kind = self.kind.unwrap_or_default();
        Ok(Stream { name, kind, delivery, publish, lanes, policies, max_idle, max_lag })
    }
}

/// Whether sockets may be where other machines reach them: with CURVE, or if that was asked for.
#[derive(Clone, Copy)]
struct Exposed {
    allowed: bool,
}

/// An endpoint must be one that libzmq can bind, and stay on this machine unless told otherwise.
fn check_endpoint(
    place: &Place<'_>,
    endpoint: &Spanned<String>,
    key: &str,
    exposed: Exposed,
) -> Result<(), ConfigError> {
    let error = |problem: String| Err(place.error(Some(endpoint.span()), key, problem));
    let text = endpoint.get_ref();
    if let Some(path) = text.strip_prefix("ipc://") {
        return if path.is_empty() { error(format!("{text} names no path")) } else { Ok(()) };
    }
    let Some((host, port)) = text.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'))
    else {
        return error(format!("{text} is neither tcp://HOST:PORT nor ipc://PATH"));
    };
    if port != "*" && port.parse::<u16>().is_err() {
        return error(format!("{text}: no such port"));
    }
    let loopback = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    if loopback || exposed.allowed {
        return Ok(());
    }
    error(format!(
        "{text} is reachable from other machines and nothing would be encrypted; give lcapd keys in \
         [security], set `allow_plaintext = true` in [server] if the network is trusted, or bind \
         127.0.0.1"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[server]
control = "tcp://127.0.0.1:8189"
state_dir = "/tmp/x"
memory_limit = "64MiB"

[[mdt]]
name = "lustre-MDT0000"
source = "sim:rate=1000,seed=1"

[[stream]]
name = "changelog"
delivery = "broadcast"
publish = "tcp://127.0.0.1:8190"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("lcapd.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_is_understood() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.server.memory_limit_bytes, 64 << 20);
        assert_eq!(config.mdts[0].name.as_str(), "lustre-MDT0000");
        assert_eq!(config.streams[0].delivery, Delivery::Broadcast);
        assert_eq!(config.server.clear_records, 10_000);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let cases = [
            ("memory_limit", "memory_limt", "lcapd.toml:5: memory_limt: unknown field"),
            ("64MiB", "64 elephants", "lcapd.toml:5: memory_limit: not a size"),
            ("\"lustre-MDT0000\"", "\"lustre\"", "lcapd.toml:8: mdt.name: not an MDT name"),
            ("sim:rate=1000", "sim:rate=fast", "lcapd.toml:9: mdt.source: "),
            ("sim:rate=1000,seed=1", "tape:", "lcapd.toml:9: mdt.source: "),
            ("\"broadcast\"", "\"broad\"", "lcapd.toml:13: delivery: unknown variant"),
            (
                "127.0.0.1:8190",
                "0.0.0.0:8190",
                "lcapd.toml:14: stream.publish: tcp://0.0.0.0:8190 is reachable",
            ),
            (
                "tcp://127.0.0.1:8190",
                "udp://x",
                "lcapd.toml:14: stream.publish: udp://x is neither",
            ),
            ("\"changelog\"", "\"a b\"", "lcapd.toml:12: stream.name: 1 to 64"),
            ("delivery =", "lanes = 3\ndelivery =", "lcapd.toml:13: stream.lanes: lanes are for"),
            ("[server]", "[server", "lcapd.toml:2: [server: "),
        ];
        for (from, to, want) in cases {
            let text = GOOD.replacen(from, to, 1);
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(want), "{from} -> {to}: {error}");
        }
        assert!(parse("").unwrap_err().contains("no [[mdt]]"));
    }
}
