//! A Redis server: where it is, how it is spoken to.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use redis::{Client, ClientTlsConfig, Connection, ErrorKind, IntoConnectionInfo as _};
use redis::{RedisError, TlsCertificates};

pub use redis::Value;

/// How long Redis may take to connect or to answer, unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is wrong with a server, or the way to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A file that the configuration names.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// What the client library or the server says.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The server has less than it said it had.
    #[error("entries are gone that were there")]
    Lost,
    /// An answer of a kind that the command does not have.
    #[error("unexpected answer to {0}")]
    Answer(&'static str),
}

/// Files beside the URL.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The password on its first line, so that it need not stand in the configuration.
    pub password_file: Option<PathBuf>,
    /// Certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and key (PEM), if the server asks for them.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A server and database.
#[derive(Clone)]
pub struct Target {
    client: Client,
    timeout: Duration,
    shown: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.shown).finish()
    }
}

/// The URL without its password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TargetError> {
    std::fs::read(path).map_err(|source| TargetError::File { path: path.to_owned(), source })
}

impl Target {
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://…` (TLS), `unix:///PATH[?db=DB]`.
    ///
    /// # Errors
    /// If the URL is none, or a file cannot be read or used.
    pub fn new(
        url: &str,
        credentials: &Credentials,
        timeout: Duration,
    ) -> Result<Self, TargetError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails only if somebody else has installed one, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut info = url.into_connection_info()?;
        let settings = info.redis_settings().clone();
        if let Some(path) = &credentials.password_file {
            let text = read(path)?;
            let text = String::from_utf8_lossy(&text);
            let password = text.lines().next().unwrap_or_default();
            info = info.set_redis_settings(settings.set_password(password));
        }
        let shown = format!("{}/{}", info.addr(), info.redis_settings().db());
        let root_cert = credentials.ca_file.as_deref().map(read).transpose()?;
        let client_tls = match &credentials.client {
            Some((cert, key)) => {
                Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? })
            }
            None => None,
        };
        let client = if root_cert.is_some() || client_tls.is_some() {
            Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })?
        } else {
            Client::open(info)?
        };
        Ok(Self { client, timeout, shown })
    }

    /// Connects, says who we are, chooses the database.
    ///
    /// # Errors
    /// If that does not work within the timeout.
    pub fn connect(&self) -> Result<Link, TargetError> {
        let connection = self.client.get_connection_with_timeout(self.timeout)?;
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(Link(connection))
    }
}

/// A connection. After an error it is of no more use.
pub struct Link(Connection);

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

impl Link {
    /// Sends commands without waiting for their answers.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn send(&mut self, commands: &Commands) -> Result<(), TargetError> {
        Ok(self.0.send_packed_command(&commands.bytes)?)
    }

    /// The answer to the oldest command that was not answered yet.
    ///
    /// # Errors
    /// What Redis says, or how the connection broke.
    pub fn answer(&mut self) -> Result<Value, TargetError> {
        match self.0.recv_response()? {
            Value::ServerError(error) => Err(RedisError::from(error).into()),
            value => Ok(value),
        }
    }

    /// One command and its answer.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn call(&mut self, args: &[&[u8]]) -> Result<Value, TargetError> {
        let mut commands = Commands::default();
        commands.push(args);
        self.send(&commands)?;
        self.answer()
    }
}

/// Whether an error says that the thing exists already (`BUSYGROUP`).
pub fn exists_already(error: &TargetError) -> bool {
    matches!(error, TargetError::Redis(error) if error.code() == Some("BUSYGROUP"))
}

/// Whether an error says that it will not go away by itself: a wrong password, say.
pub fn is_refusal(error: &TargetError) -> bool {
    matches!(error, TargetError::Redis(error)
        if matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig))
}

/// Commands back to back as they go over the wire. The library's own `Cmd` makes three allocations
/// for each; at 200,000 entries a second that is half the work.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    bytes: Vec<u8>,
    n: usize,
}

impl Commands {
    /// Adds a command.
    pub fn push(&mut self, args: &[&[u8]]) {
        self.begin(args.len());
        for arg in args {
            self.arg(arg);
        }
    }

    /// Adds a command that is not counted.
    pub fn prefix(&mut self, args: &[&[u8]]) {
        let n = self.n;
        self.push(args);
        self.n = n;
    }

    /// Begins a command of `n_args` arguments, its name included; they follow by [`Self::arg`].
    pub fn begin(&mut self, n_args: usize) {
        self.bytes.push(b'*');
        self.number(n_args);
        self.n += 1;
    }

    /// The next argument.
    pub fn arg(&mut self, arg: &[u8]) {
        self.bytes.push(b'$');
        self.number(arg.len());
        self.bytes.extend_from_slice(arg);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn number(&mut self, n: usize) {
        lcap_ffi::digits::push_dec(&mut self.bytes, n as u64);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.n
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Their size on the wire.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets them; the memory stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.n = 0;
    }
}

/// Bytes of an answer that is a string.
pub fn as_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Text of an answer that is a string.
pub fn as_text(value: &Value) -> Option<&str> {
    as_bytes(value).and_then(|bytes| str::from_utf8(bytes).ok())
}

/// Elements of an answer that is a list.
pub fn as_list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// An answer that is a number.
pub fn as_number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        value => as_text(value)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_redis_reads() {
        let mut commands = Commands::default();
        commands.push(&[b"XADD", b"k", b"*", b"data", b"{\r\n}"]);
        commands.push(&[b"EXEC"]);
        let want = "*5\r\n$4\r\nXADD\r\n$1\r\nk\r\n$1\r\n*\r\n$4\r\ndata\r\n$4\r\n{\r\n}\r\n\
                    *1\r\n$4\r\nEXEC\r\n";
        assert_eq!(commands.bytes, want.as_bytes());
        assert_eq!((commands.len(), commands.n_bytes()), (2, want.len()));
    }

    #[test]
    fn a_password_is_not_shown() {
        let new = |url| Target::new(url, &Credentials::default(), DEFAULT_TIMEOUT);
        let cases = [
            ("redis://:secret@host:7/1", "host:7/1"),
            ("rediss://me:secret@host", "host:6379/0"),
            ("unix:///run/redis.sock?db=2", "/run/redis.sock/2"),
        ];
        for (url, shown) in cases {
            let target = new(url).unwrap();
            assert_eq!(target.to_string(), shown, "{url}");
            assert!(!format!("{target:?}").contains("secret"), "{url}");
        }
        assert!(new("http://host").is_err());
        assert!(new("redis://").is_err());
    }
}
