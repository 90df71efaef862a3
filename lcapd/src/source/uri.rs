//! The names of sources, as the configuration and the command line give them.
#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use lcap_ffi::MdtName;

use super::device::DeviceUpstream;
use super::emulated::Rate;
use super::llapi::LlapiUpstream;
use super::relay::RelayUpstream;
use super::replay::{Pace, ReplayUpstream};
use super::sim::{SimOptions, SimUpstream};
use super::{SourceError, Upstream};

/// Where an MDT's records come from.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceUri {
    /// The kernel's changelog device, in that directory.
    Device(PathBuf),
    /// liblustreapi, loaded at run time.
    Llapi,
    /// A recorded trace, or bare packed records.
    Replay {
        /// The file.
        path: PathBuf,
        /// How fast.
        pace: Pace,
        /// Begin anew at the end, with indexes that go on growing.
        repeat: bool,
    },
    /// No changelog: only the list of HSM actions is read.
    HsmActions,
    /// The generator.
    Sim(SimOptions),
    /// Another lcapd.
    Relay {
        /// Its control endpoint, e.g. `tcp://mds1:8189`.
        endpoint: String,
        /// Its stream.
        stream: String,
    },
}

/// What is wrong with a source's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("source `{uri}`: {problem}")]
pub struct BadSourceUri {
    uri: String,
    problem: String,
}

impl SourceUri {
    /// It is cleared on behalf of a registered changelog user, or of a reader of another lcapd.
    pub fn needs_user(&self) -> bool {
        matches!(self, Self::Device(_) | Self::Llapi | Self::Relay { .. })
    }

    /// It gives changelog records.
    pub fn is_changelog(&self) -> bool {
        !matches!(self, Self::HsmActions)
    }

    /// The MDT's log that it stands for. `user` is the registered changelog user to clear as;
    /// without one, nothing is ever cleared on a real MDT. Sources that play an MDT keep their
    /// state in `state_dir`.
    ///
    /// # Errors
    /// If the library or file is not usable. A device that is not there is an error only of
    /// [`Upstream::open`], since it may come later.
    pub fn upstream(
        &self,
        mdt: &MdtName,
        user: Option<&str>,
        state_dir: &Path,
    ) -> Result<Arc<dyn Upstream>, SourceError> {
        Ok(match self {
            Self::Device(dir) => Arc::new(DeviceUpstream::new(dir, mdt, user)?),
            Self::Llapi => Arc::new(LlapiUpstream::new(mdt, user)?),
            Self::Replay { path, pace, repeat } => {
                Arc::new(ReplayUpstream::new(path, *pace, *repeat, mdt, state_dir)?)
            }
            Self::Sim(options) => Arc::new(SimUpstream::new(*options, mdt, state_dir)?),
            Self::HsmActions => return Err(SourceError::NoChangelog),
            Self::Relay { endpoint, stream } => {
                Arc::new(RelayUpstream::new(endpoint, stream, mdt, user))
            }
        })
    }
}

impl FromStr for SourceUri {
    type Err = BadSourceUri;

    fn from_str(uri: &str) -> Result<Self, BadSourceUri> {
        let bad = |problem: String| BadSourceUri { uri: uri.to_owned(), problem };
        let (scheme, rest) = uri.split_once(':').ok_or_else(|| {
            bad("expected device:, llapi:, replay:FILE, sim:, lcap://HOST:PORT/STREAM or hsm-actions:"
                .into())
        })?;
        match scheme {
            "device" if rest.is_empty() => Ok(Self::Device("/dev".into())),
            "device" if rest.starts_with('/') => Ok(Self::Device(rest.into())),
            "device" => Err(bad("the directory must be an absolute path".into())),
            "llapi" if rest.is_empty() => Ok(Self::Llapi),
            "llapi" => Err(bad("llapi: takes no options".into())),
            "replay" => parse_replay(rest).map_err(bad),
            "hsm-actions" if rest.is_empty() => Ok(Self::HsmActions),
            "hsm-actions" => Err(bad("hsm-actions: takes no options; set `hsm_actions`".into())),
            "sim" => parse_sim(rest).map_err(bad),
            "lcap" => parse_relay(rest).map_err(bad),
            other => Err(bad(format!("unknown kind of source `{other}:`"))),
        }
    }
}

impl fmt::Display for SourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(dir) if dir == Path::new("/dev") => f.write_str("device:"),
            Self::Device(dir) => write!(f, "device:{}", dir.display()),
            Self::Llapi => f.write_str("llapi:"),
            Self::HsmActions => f.write_str("hsm-actions:"),
            Self::Replay { path, pace, repeat } => {
                write!(f, "replay:{}", path.display())?;
                let rate = pace.to_string();
                match (rate.is_empty(), repeat) {
                    (true, false) => Ok(()),
                    (true, true) => f.write_str("?loop=1"),
                    (false, false) => write!(f, "?rate={rate}"),
                    (false, true) => write!(f, "?rate={rate}&loop=1"),
                }
            }
            Self::Sim(options) => write!(f, "sim:{options}"),
            Self::Relay { endpoint, stream } => {
                let host = endpoint.strip_prefix("tcp://").unwrap_or(endpoint);
                write!(f, "lcap://{host}/{stream}")
            }
        }
    }
}

/// `key=value` pairs, each key at most once.
fn options(text: &str, separator: char) -> impl Iterator<Item = Result<(&str, &str), String>> {
    let mut seen = Vec::new();
    text.split(separator).filter(|pair| !pair.is_empty()).map(move |pair| {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| format!("`{pair}`: expected key=value"))?;
        if seen.contains(&key) {
            return Err(format!("`{key}` is given twice"));
        }
        seen.push(key);
        Ok((key, value))
    })
}

fn value<T: FromStr>(key: &str, text: &str) -> Result<T, String>
where
    T::Err: fmt::Display,
{
    text.parse().map_err(|e| format!("`{key}={text}`: {e}"))
}

fn parse_replay(rest: &str) -> Result<SourceUri, String> {
    let (path, query) = rest.rsplit_once('?').unwrap_or((rest, ""));
    if path.is_empty() {
        return Err("expected replay:FILE".into());
    }
    let (mut pace, mut repeat) = (Pace::Full, false);
    for option in options(query, '&') {
        match option? {
            ("rate", "recorded") => pace = Pace::Recorded,
            ("rate", text) => pace = Pace::Rate(value("rate", text)?),
            ("loop", "1") => repeat = true,
            ("loop", "0") => repeat = false,
            ("loop", text) => return Err(format!("`loop={text}`: expected 0 or 1")),
            (key, _) => return Err(format!("unknown option `{key}`; there are rate and loop")),
        }
    }
    Ok(SourceUri::Replay { path: path.into(), pace, repeat })
}

fn parse_sim(rest: &str) -> Result<SourceUri, String> {
    let mut sim = SimOptions::default();
    for option in options(rest, ',') {
        match option? {
            ("rate", text) => sim.rate = Some(value::<Rate>("rate", text)?),
            ("records", text) => sim.records = Some(value("records", text)?),
            ("seed", text) => sim.seed = value("seed", text)?,
            ("gaps", "0") => sim.gaps = None,
            ("gaps", text) => sim.gaps = Some(value::<NonZeroU64>("gaps", text)?),
            ("actions", "0") => sim.actions = None,
            ("actions", text) => sim.actions = Some(value::<NonZeroU64>("actions", text)?),
            ("failover", text) => sim.failover = Some(value::<NonZeroU64>("failover", text)?),
            (key, _) => {
                return Err(format!(
                    "unknown option `{key}`; there are rate, records, seed, gaps, actions and failover"
                ));
            }
        }
    }
    Ok(SourceUri::Sim(sim))
}

fn parse_relay(rest: &str) -> Result<SourceUri, String> {
    let problem = || "expected lcap://HOST:PORT/STREAM".to_owned();
    let rest = rest.strip_prefix("//").ok_or_else(problem)?;
    let (host_port, stream) = rest.split_once('/').ok_or_else(problem)?;
    let (host, port) = host_port.rsplit_once(':').ok_or_else(problem)?;
    let port: u16 = value("port", port)?;
    if host.is_empty() || stream.is_empty() || stream.contains('/') {
        return Err(problem());
    }
    Ok(SourceUri::Relay { endpoint: format!("tcp://{host}:{port}"), stream: stream.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_parses_and_prints_the_same() {
        for uri in [
            "device:",
            "device:/tmp/sim",
            "llapi:",
            "replay:/path/trace.clog",
            "replay:/path/trace.clog?rate=recorded",
            "replay:relative file?rate=2.5&loop=1",
            "replay:/a?loop=1",
            "sim:",
            "sim:rate=100000,records=7,seed=1,gaps=10",
            "sim:seed=1,actions=350000,failover=60",
            "hsm-actions:",
            "lcap://mds1:8189/changelog",
            "lcap://[::1]:8189/changelog",
        ] {
            let parsed: SourceUri = uri.parse().unwrap();
            assert_eq!(parsed.to_string(), uri);
            assert_eq!(parsed.to_string().parse::<SourceUri>().unwrap(), parsed);
        }
        assert_eq!("device:/dev".parse::<SourceUri>(), "device:".parse());
    }

    #[test]
    fn mistakes_are_named() {
        for (uri, want) in [
            ("", "expected device:"),
            ("/dev", "expected device:"),
            ("kafka:", "unknown kind of source `kafka:`"),
            ("device:dev", "absolute"),
            ("llapi:x", "no options"),
            ("replay:", "replay:FILE"),
            ("replay:f?speed=1", "unknown option `speed`"),
            ("replay:f?rate=fast", "`rate=fast`: expected records per second"),
            ("replay:f?loop=yes", "`loop=yes`: expected 0 or 1"),
            ("sim:rate", "`rate`: expected key=value"),
            ("sim:rate=0", "`rate=0`"),
            ("sim:seed=-1", "`seed=-1`"),
            ("sim:seed=1,seed=2", "`seed` is given twice"),
            ("sim:recrods=1", "unknown option `recrods`"),
            ("lcap:mds1", "lcap://HOST:PORT/STREAM"),
            ("lcap://mds1/changelog", "lcap://HOST:PORT/STREAM"),
            ("lcap://mds1:70000/changelog", "`port=70000`"),
            ("lcap://mds1:8189/", "lcap://HOST:PORT/STREAM"),
        ] {
            let err = uri.parse::<SourceUri>().unwrap_err().to_string();
            assert!(err.contains(want), "{uri:?} gave: {err}");
        }
    }
}
