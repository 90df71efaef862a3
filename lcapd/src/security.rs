//! Who may connect, and what each client may do.
//!
//! With a key of its own, lcapd speaks CURVE on every socket and knows each client by its public
//! key: [`zap`] lets only those of the allow-list in, and to a stream's socket only those that may
//! read it. libzmq ties the client's name to every message, so [`Access::refuse`] judges
//! each request by who sent it, not by what it says.
#![forbid(unsafe_code)]

pub mod doorman;
pub mod taken;
pub mod zap;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lcap_wire::control::Op;
use lcap_wire::hsm_queue::{Fetch, HsmOp, Report};
use lcap_wire::z85::Key;
use lcapclient::KeyPair;
use serde::Deserialize;
use tracing::{info, warn};

use self::taken::Taken;

/// `[security]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SecurityConfig {
    /// File with lcapd's keys.
    pub key_file: PathBuf,
    /// File with the clients that are allowed.
    pub clients: PathBuf,
}

/// What a socket is for, as libzmq passes it on to [`zap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Control.
    Control,
    /// A stream, by name.
    Stream(String),
    /// Movers of HSM requests.
    Movers,
}

impl Domain {
    /// The other direction of its text.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "control" => Some(Self::Control),
            "movers" => Some(Self::Movers),
            _ => text.strip_prefix("stream ").map(|name| Self::Stream(name.to_owned())),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Stream(name) => write!(f, "stream {name}"),
            Self::Movers => f.write_str("movers"),
        }
    }
}

/// Some names, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    names: Vec<String>,
}

impl Names {
    fn contain(&self, name: &str) -> bool {
        self.all || self.names.iter().any(|own| own == name)
    }

    fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(de)?;
        Ok(Self { all: names.iter().any(|name| name == "*"), names })
    }
}

/// Names of movers: none, all, or some.
fn movers<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Names, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "true, false, or a list of movers' names")]
    enum Raw {
        All(bool),
        Some(Vec<String>),
    }
    Ok(match Raw::deserialize(de)? {
        Raw::All(all) => Names { all, names: Vec::new() },
        Raw::Some(names) => Names { all: names.iter().any(|name| name == "*"), names },
    })
}

/// `[[client]]` of the allow-list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClient {
    name: String,
    key: String,
    #[serde(default)]
    read: Names,
    #[serde(default)]
    readers: Names,
    #[serde(default, deserialize_with = "movers")]
    mover: Names,
    #[serde(default)]
    admin: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClients {
    #[serde(default)]
    client: Vec<RawClient>,
}

/// One client of the allow-list.
#[derive(Debug, PartialEq, Eq)]
struct Client {
    key: Key,
    read: Names,
    readers: Names,
    mover: Names,
    admin: bool,
}

impl Client {
    fn may_read(&self, stream: &str) -> bool {
        self.admin || self.read.contain(stream)
    }

    fn may_move(&self) -> bool {
        self.admin || !self.mover.is_empty()
    }

    fn may_be_mover(&self, name: &str) -> bool {
        self.admin || self.mover.contain(name)
    }

    fn may_be(&self, reader: &str) -> bool {
        self.admin || self.readers.contain(reader)
    }
}

/// The allow-list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Clients {
    by_name: HashMap<String, Client>,
    names: HashMap<Key, String>,
}

impl Clients {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("{shown}"))?;
        Self::parse(&text).with_context(|| format!("{shown}"))
    }

    /// Reads its text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let raw: RawClients = toml::from_str(text)?;
        let mut clients = Self::default();
        for RawClient { name, key, read, readers, mover, admin } in raw.client {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
                bail!("client `{name}`: 1 to 64 letters, digits, `_`, `-`, `.`, `@` make a name");
            }
            let key = Key::from_z85(&key).with_context(|| format!("client {name}: key"))?;
            if let Some(other) = clients.names.insert(key, name.clone()) {
                bail!("clients {other} and {name} have the same key");
            }
            let client = Client { key, read, readers, mover, admin };
            if clients.by_name.insert(name.clone(), client).is_some() {
                bail!("client {name} twice");
            }
        }
        Ok(clients)
    }
}

/// Counts what was refused, and logs some of it.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Handshakes with a key that is on no list, or without the right.
    pub unknown_key: AtomicU64,
    /// Handshakes that failed before: no CURVE, a wrong server key, garbage, a replay.
    pub handshake: AtomicU64,
    /// Requests without the right.
    pub denied: AtomicU64,
    /// Beyond a limit.
    pub limit: AtomicU64,
    /// Messages that are no requests.
    pub malformed: AtomicU64,
    throttle: Mutex<Option<(Instant, u64)>>,
}

impl Refusals {
    /// True if it may be logged now: once a second. Otherwise it is counted for the next time.
    fn may_log(&self) -> Option<u64> {
        let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &mut *throttle {
            Some((last, missed)) if now.duration_since(*last) < Duration::from_secs(1) => {
                *missed += 1;
                None
            }
            last => {
                let missed = last.map_or(0, |(_, missed)| missed);
                *last = Some((now, 0));
                Some(missed)
            }
        }
    }

    /// Counts one in `counter`, and logs it unless there was one less than a second ago.
    pub fn note(&self, counter: &AtomicU64, who: &str, what: fmt::Arguments<'_>) {
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(missed) = self.may_log() {
            warn!(client = who, not_shown = missed, "refused: {what}");
        }
    }
}

/// The present allow-list, if there is one, and what was refused by it.
#[derive(Clone, Debug, Default)]
pub struct Access {
    clients: Option<Arc<RwLock<Arc<Clients>>>>,
    /// What was refused, and why.
    pub refusals: Arc<Refusals>,
    /// Messages taken, by connection.
    pub taken: Taken,
}

impl Access {
    /// Only these clients.
    pub fn only(clients: Clients) -> Self {
        Self { clients: Some(Arc::new(RwLock::new(Arc::new(clients)))), ..Self::default() }
    }

    /// Goes by another list from now on. True if somebody may do less than before.
    pub fn replace(&self, clients: Clients) -> bool {
        let Some(list) = &self.clients else { return false };
        let clients = Arc::new(clients);
        let mut list = list.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *list, Arc::clone(&clients));
        before.by_name.iter().any(|(name, client)| clients.by_name.get(name) != Some(client))
    }

    fn now(&self) -> Option<Arc<Clients>> {
        let list = self.clients.as_ref()?.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&list))
    }

    /// The name of who has a key, if it may use the socket of `domain`. Without a list everybody may, and
    /// has no name.
    pub fn admit(&self, key: Option<Key>, domain: &Domain) -> Option<String> {
        let Some(clients) = self.now() else { return Some(String::new()) };
        let name = clients.names.get(&key?)?;
        let client = clients.by_name.get(name)?;
        let may = match domain {
            Domain::Control => true,
            Domain::Stream(stream) => client.may_read(stream),
            Domain::Movers => client.may_move(),
        };
        may.then(|| name.clone())
    }

    /// Whether only those on a list may do anything.
    pub fn has_list(&self) -> bool {
        self.clients.is_some()
    }

    /// Whether a client may go on being a mover.
    pub fn may_move(&self, name: &str) -> bool {
        let Some(clients) = self.now() else { return true };
        clients.by_name.get(name).is_some_and(Client::may_move)
    }

    /// Whether a client may be the mover, or worker, of a name.
    pub fn may_be_mover(&self, client: Option<&str>, mover: &str) -> bool {
        let Some(clients) = self.now() else { return true };
        let client = client.and_then(|client| clients.by_name.get(client));
        client.is_some_and(|client| client.may_be_mover(mover))
    }

    /// Whether a client may go on reading a stream as a reader.
    pub fn may_read(&self, name: Option<&str>, stream: &str, reader: Option<&str>) -> bool {
        let Some(clients) = self.now() else { return true };
        let client = name.and_then(|name| clients.by_name.get(name));
        client.is_some_and(|client| {
            client.may_read(stream) && reader.is_none_or(|reader| client.may_be(reader))
        })
    }

    /// Why a client may not do something; `None` if it may.
    ///
    /// What belongs to a session is the business of who opened it: the engine takes it from
    /// nobody else. Here it only matters that the client is still on the list.
    pub fn refuse(&self, name: Option<&str>, op: &Op) -> Option<String> {
        let clients = self.now()?;
        let Some((name, client)) = name.and_then(|name| clients.by_name.get_key_value(name)) else {
            return Some("this client is not on the list of those that are allowed".to_owned());
        };
        let missing = match op {
            Op::Hello(_) | Op::Fetch(_) | Op::Ack(_) | Op::Heartbeat(_) | Op::Fini(_) => None,
            Op::Start(start) => {
                let reader = start.reader.as_deref();
                if client.may_read(&start.stream) {
                    reader.filter(|r| !client.may_be(r)).map(|r| format!("be reader {r}"))
                } else {
                    Some(format!("read stream {}", start.stream))
                }
            }
            Op::Clear(clear) => {
                let reader = &clear.reader;
                (!client.may_be(reader)).then(|| format!("acknowledge as reader {reader}"))
            }
            Op::ReaderList(_) | Op::Status(_) => {
                let sees = client.admin || !client.read.is_empty();
                (!sees).then(|| "see the state of streams".to_owned())
            }
            Op::Hsm(HsmOp::Fetch(Fetch { worker, .. }) | HsmOp::Report(Report { worker, .. })) => {
                let name = &worker.worker;
                let as_whom = || format!("take HSM requests as {name}");
                (!client.may_be_mover(name)).then(as_whom)
            }
            // What is new is for administrators until somebody decides otherwise.
            _ => (!client.admin).then(|| "administer lcapd".to_owned()),
        };
        missing.map(|missing| format!("client {name} may not {missing}"))
    }
}

/// lcapd's keys and who may connect.
#[derive(Debug)]
pub struct Security {
    keys: KeyPair,
    clients: PathBuf,
    access: Access,
}

impl Security {
    /// Reads both files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn load(config: &SecurityConfig) -> Result<Self> {
        if !zmq::has("curve").unwrap_or(false) {
            bail!("[security]: the system's libzmq was built without CURVE");
        }
        let keys = KeyPair::load(&config.key_file).context("[security] key_file")?;
        let clients = Clients::load(&config.clients).context("[security] clients")?;
        let access = Access::only(clients);
        Ok(Self { keys, clients: config.clients.clone(), access })
    }

    /// Who may do what.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Reads the allow-list again. True if somebody may do less than before. A list that is wrong
    /// changes nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn reload(&self) -> Result<bool> {
        let less = self.access.replace(Clients::load(&self.clients)?);
        info!(clients = %self.clients.display(), revoked = less, "list of clients read again");
        Ok(less)
    }

    /// Makes a socket that is not bound yet speak CURVE, and nothing else.
    ///
    /// # Errors
    /// What libzmq says.
    pub fn protect(&self, socket: &zmq::Socket) -> Result<(), zmq::Error> {
        socket.set_curve_server(true)?;
        socket.set_curve_secretkey(&self.keys.secret.0)
    }
}

#[cfg(test)]
mod tests {
    use lcap_wire::control::{Clear, ReaderDeregister, Start, StatusRequest};

    use super::*;

    fn access() -> (Access, Key, Key) {
        let (a, b) = (Key([1; 32]), Key([2; 32]));
        let text = format!(
            "[[client]]\nname = \"audit\"\nkey = '{}'\nread = [\"changelog\"]\nreaders = [\"audit\"]\n\
             [[client]]\nname = \"root\"\nkey = '{}'\nadmin = true\n",
            a.to_z85(),
            b.to_z85()
        );
        (Access::only(Clients::parse(&text).unwrap()), a, b)
    }

    fn start(stream: &str, reader: Option<&str>) -> Op {
        Op::Start(Start {
            stream: stream.to_owned(),
            mdt: "a-MDT0000".to_owned(),
            reader: reader.map(str::to_owned),
            from: 0,
            generation: None,
            follow: true,
            filter: None,
            snapshot: false,
        })
    }

    #[test]
    fn each_may_do_what_the_list_says() {
        let (access, a, b) = access();
        let clear = |reader: &str| {
            let (mdt, reader) = ("a-MDT0000".to_owned(), reader.to_owned());
            Op::Clear(Clear { stream: None, mdt, reader, upto: 1 })
        };
        let deregister = Op::ReaderDeregister(ReaderDeregister {
            stream: "changelog".to_owned(),
            name: "audit".to_owned(),
        });
        let cases = [
            (Some("audit"), start("changelog", None), true),
            (Some("audit"), start("changelog", Some("audit")), true),
            (Some("audit"), start("changelog", Some("robinhood")), false),
            (Some("audit"), start("work", None), false),
            (Some("audit"), clear("audit"), true),
            (Some("audit"), clear("robinhood"), false),
            (Some("audit"), deregister.clone(), false),
            (Some("audit"), Op::Status(StatusRequest {}), true),
            (Some("root"), start("work", Some("robinhood")), true),
            (Some("root"), deregister.clone(), true),
            (Some("mallory"), Op::Status(StatusRequest {}), false),
            (None, start("changelog", None), false),
        ];
        for (who, op, allowed) in cases {
            assert_eq!(access.refuse(who, &op).is_none(), allowed, "{who:?} {op:?}");
        }
        let work = Domain::Stream("work".to_owned());
        assert_eq!(access.admit(Some(a), &Domain::Control).as_deref(), Some("audit"));
        assert_eq!(access.admit(Some(a), &work), None);
        assert_eq!(access.admit(Some(a), &Domain::Movers), None);
        assert_eq!(access.admit(Some(b), &work).as_deref(), Some("root"));
        assert_eq!(access.admit(Some(Key([3; 32])), &Domain::Control), None);
        assert_eq!(access.admit(None, &Domain::Control), None);
        assert_eq!(Access::default().admit(None, &Domain::Movers).as_deref(), Some(""));
        for domain in [Domain::Control, work, Domain::Movers] {
            assert_eq!(Domain::parse(&domain.to_string()), Some(domain));
        }
        assert!(Access::default().refuse(None, &deregister).is_none(), "no list, no rules");

        assert!(access.replace(Clients::default()));
        assert!(access.refuse(Some("audit"), &start("changelog", None)).is_some());
        assert!(!access.may_read(Some("audit"), "changelog", None));
    }

    #[test]
    fn lists_that_are_wrong_are_refused() {
        let key = Key([1; 32]).to_z85();
        let one = format!("[[client]]\nname = \"a\"\nkey = '{key}'\n");
        let cases = [
            (format!("{one}rights = 1\n"), "unknown field"),
            (one.replace("\"a\"", "\"a b\""), "make a name"),
            (one.replace(&key, "short"), "40 Z85"),
            (format!("{one}{one}"), "same key"),
            (format!("{one}{}", one.replace(&key, &Key([2; 32]).to_z85())), "client a twice"),
        ];
        for (text, want) in cases {
            let error = format!("{:#}", Clients::parse(&text).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
