//! CURVE keys, and the files that they are kept in.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use lcap_wire::z85::Key;

use crate::error::ClientError;

/// Largest key file that is read.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A public key and the secret one that belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyPair {
    /// May be known to everybody.
    pub public: Key,
    /// Is known to its owner alone.
    pub secret: Key,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public.to_z85()).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn generate() -> Result<Self, ClientError> {
        let pair = zmq::CurveKeyPair::new()
            .map_err(|error| ClientError::zmq("making CURVE keys", error))?;
        Ok(Self { public: Key(pair.public_key), secret: Key(pair.secret_key) })
    }

    /// Reads a file that [`Self::create`] wrote, or a certificate of CZMQ.
    ///
    /// # Errors
    /// If it cannot be read, if others than its owner could read it, or if a key is missing or
    /// malformed.
    pub fn load(path: &Path) -> Result<Self, ClientError> {
        let shown = path.display();
        let failed = |error| ClientError::io(shown.to_string(), &error);
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        let mode = about.mode() & 0o777;
        if !about.is_file() || mode & 0o077 != 0 {
            return Err(ClientError::BadArgument(format!(
                "{shown}: others than its owner can read this secret key (mode {mode:04o}); make a \
                 new one with `lcap keygen`, or `chmod 600` if you are sure that nobody did"
            )));
        }
        let mut text = String::new();
        (&file).take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
        let key = |name: &str| -> Result<Key, ClientError> {
            let what = format!("{shown}: {name}-key");
            let value = find_key(&text, name).ok_or_else(|| {
                ClientError::BadArgument(format!("{what} is missing; see lcap keygen"))
            })?;
            decode(&what, value)
        };
        Ok(Self { public: key("public")?, secret: key("secret")? })
    }

    /// Writes a new file that its owner alone can read.
    ///
    /// # Errors
    /// If there is one already, or it cannot be written.
    pub fn create(&self, path: &Path) -> Result<(), ClientError> {
        let failed = |error| ClientError::io(path.display().to_string(), &error);
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let (public, secret) = (self.public.to_z85(), self.secret.to_z85());
        let text = format!(
            "# Keys of lcap. The secret one must stay with its owner.\n\
             public-key = \"{public}\"\nsecret-key = \"{secret}\"\n"
        );
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }
}

/// What a client needs to talk to a server that demands CURVE.
#[derive(Clone, Copy)]
pub struct Keys {
    server: Key,
    own: KeyPair,
}

impl Keys {
    /// The server's public key as Z85 text, and the client's key file. Without a file the client
    /// makes keys up, which a server with an allow-list refuses.
    ///
    /// # Errors
    /// If the text or the file is not what it should be.
    pub fn new(server: &str, client: Option<&Path>) -> Result<Self, ClientError> {
        let server = decode("server key", server.trim())?;
        let own = client.map_or_else(KeyPair::generate, KeyPair::load)?;
        Ok(Self { server, own })
    }

    /// Makes `socket` use the keys.
    pub(crate) fn apply(&self, socket: &zmq::Socket) -> zmq::Result<()> {
        socket.set_curve_serverkey(&self.server.0)?;
        socket.set_curve_publickey(&self.own.public.0)?;
        socket.set_curve_secretkey(&self.own.secret.0)
    }
}

/// The value of `NAME-key = "…"` (or `NAME = …`), as in CZMQ's certificates.
fn find_key<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let key = key.trim();
        let bare = key.strip_suffix("-key").or_else(|| key.strip_suffix("_key")).unwrap_or(key);
        (bare == name).then(|| value.trim().trim_matches('"'))
    })
}

fn decode(what: &str, z85: &str) -> Result<Key, ClientError> {
    Key::from_z85(z85).map_err(|error| ClientError::BadArgument(format!("{what}: {error}")))
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys") // no secret in a log
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn key_files_are_read_and_bad_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.key");
        let pair = KeyPair::generate().unwrap();
        pair.create(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(KeyPair::load(&file), Ok(pair));
        assert!(pair.create(&file).is_err(), "a file that is there stays");

        let (public, secret) = (pair.public.to_z85(), pair.secret.to_z85());
        let theirs =
            format!("# mine\ncurve\n  public-key = \"{public}\"\n  secret-key = \"{secret}\"\n");
        fs::write(&file, theirs).unwrap();
        assert_eq!(Keys::new(&public, Some(&file)).unwrap().own, pair);

        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let error = KeyPair::load(&file).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && !error.contains(&secret), "{error}");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();

        fs::write(&file, format!("public-key = {public}\n")).unwrap();
        let error = Keys::new(&public, Some(&file)).unwrap_err();
        assert!(error.to_string().contains("secret-key is missing"), "{error}");
        assert!(Keys::new("short", None).is_err());
        assert!(!format!("{pair:?}").contains(&secret));
    }
}
