//! CURVE keys.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::error::ClientError;

/// What a client needs to talk to a server that demands CURVE.
#[derive(Clone)]
pub struct Keys {
    /// The server's public key.
    server: Vec<u8>,
    /// The client's own keys.
    public: Vec<u8>,
    secret: Vec<u8>,
}

impl Keys {
    /// The server's public key as Z85 text, and the client's key file. Without a file the client
    /// makes keys up, which a server with an allow-list refuses.
    ///
    /// # Errors
    /// If the text or the file is not what it should be.
    pub fn new(server: &str, client: Option<&Path>) -> Result<Self, ClientError> {
        let server = decode("server key", server.trim())?;
        let (public, secret) = match client {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| ClientError::io(path.display().to_string(), &error))?;
                let key = |name: &str| -> Result<Vec<u8>, ClientError> {
                    let what = format!("{}: {name}-key", path.display());
                    let value = find_key(&text, name).ok_or_else(|| {
                        ClientError::BadArgument(format!("{what} is missing; see lcap keygen"))
                    })?;
                    decode(&what, value)
                };
                (key("public")?, key("secret")?)
            }
            None => {
                let pair = zmq::CurveKeyPair::new()
                    .map_err(|error| ClientError::zmq("making CURVE keys", error))?;
                (pair.public_key.to_vec(), pair.secret_key.to_vec())
            }
        };
        Ok(Self { server, public, secret })
    }

    /// Makes `socket` use the keys.
    pub(crate) fn apply(&self, socket: &zmq::Socket) -> zmq::Result<()> {
        socket.set_curve_serverkey(&self.server)?;
        socket.set_curve_publickey(&self.public)?;
        socket.set_curve_secretkey(&self.secret)
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

fn decode(what: &str, z85: &str) -> Result<Vec<u8>, ClientError> {
    match zmq::z85_decode(z85) {
        Ok(key) if key.len() == 32 => Ok(key),
        _ => Err(ClientError::BadArgument(format!("{what}: not a key of 40 Z85 characters"))),
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys") // no secret in a log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_are_read_and_bad_ones_named() {
        let pair = zmq::CurveKeyPair::new().unwrap();
        let text = |key: &[u8]| zmq::z85_encode(key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.key");
        let (public, secret) = (text(&pair.public_key), text(&pair.secret_key));
        let written =
            format!("# mine\ncurve\n  public-key = \"{public}\"\n  secret-key = \"{secret}\"\n");
        std::fs::write(&file, written).unwrap();
        let keys = Keys::new(&public, Some(&file)).unwrap();
        assert_eq!(
            (keys.public, keys.secret),
            (pair.public_key.to_vec(), pair.secret_key.to_vec())
        );
        std::fs::write(&file, format!("public-key = {public}\n")).unwrap();
        let error = Keys::new(&public, Some(&file)).unwrap_err();
        assert!(error.to_string().contains("secret-key is missing"), "{error}");
        assert!(Keys::new("short", None).is_err());
    }
}
