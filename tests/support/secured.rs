//! An lcapd with keys, and clients that it knows.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lcapclient::{Builder, Control, KeyPair, Keys};

use crate::daemon::{Daemon, PATIENCE};

/// Files of an lcapd that demands CURVE.
#[derive(Debug)]
pub struct Secured {
    dir: PathBuf,
    server: String,
}

impl Secured {
    /// With keys of its own and one client, `admin`, that may do everything.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn new(dir: &Path) -> Self {
        let pair = KeyPair::generate().expect("keys");
        pair.create(&dir.join("server.key")).expect("a key file");
        let secured = Self { dir: dir.to_owned(), server: pair.public.to_z85() };
        fs::write(secured.list(), "").expect("a list");
        secured.allow("admin", "admin = true");
        secured
    }

    /// The piece of the configuration.
    pub fn config(&self) -> String {
        let (dir, list) = (self.dir.display(), self.list());
        let list = list.display();
        format!("[security]\nkey_file = \"{dir}/server.key\"\nclients = \"{list}\"\n")
    }

    /// Makes keys for a client, and adds it to the list with these rights.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn allow(&self, name: &str, rights: &str) {
        let key = self.stranger(name);
        let list = fs::read_to_string(self.list()).expect("a list");
        let list = format!("{list}[[client]]\nname = \"{name}\"\nkey = '{key}'\n{rights}\n");
        fs::write(self.list(), list).expect("a list");
    }

    /// Takes a client off the list.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn forbid(&self, name: &str) {
        let list = fs::read_to_string(self.list()).expect("a list");
        let own = format!("\nname = \"{name}\"\n");
        let rest = list.split_inclusive("[[client]]").map(str::to_owned).collect::<Vec<_>>();
        let rest = rest.into_iter().filter(|part| !part.starts_with(&own)).collect::<String>();
        let rest = rest.trim_end().trim_end_matches("[[client]]").to_owned() + "\n";
        fs::write(self.list(), rest).expect("a list");
    }

    /// Makes keys for a client that is on no list; gives the public one.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn stranger(&self, name: &str) -> String {
        let pair = KeyPair::generate().expect("keys");
        pair.create(&self.key_file(name)).expect("a key file");
        pair.public.to_z85()
    }

    /// Where a client's keys are.
    pub fn key_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// The server's public key.
    pub fn server_key(&self) -> &str {
        &self.server
    }

    /// What a client needs to connect.
    ///
    /// # Panics
    /// If it has no key file.
    pub fn keys(&self, name: &str) -> Keys {
        Keys::new(&self.server, Some(&self.key_file(name))).expect("keys")
    }

    /// The allow-list.
    pub fn list(&self) -> PathBuf {
        self.dir.join("clients.toml")
    }
}

impl Daemon {
    /// A connection of a client that has keys.
    ///
    /// # Panics
    /// If libzmq has no socket left.
    pub fn control_of(&self, secured: &Secured, name: &str, timeout: Duration) -> Control {
        let keys = Some(secured.keys(name));
        Control::new(self.setup().control_endpoint(), keys, timeout).expect("a connection")
    }

    /// A client that has keys.
    pub fn client_of(&self, secured: &Secured, name: &str, mdt: &str, stream: &str) -> Builder {
        let builder = self.client(mdt, stream).timeout(PATIENCE);
        builder.keys(secured.server_key(), Some(secured.key_file(name)))
    }
}
