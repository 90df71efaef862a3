//! Any text as the files that an administrator writes: configuration, list of clients, key.

use std::path::Path;

use lcap_wire::z85::Key;
use lcapd::config::Config;
use lcapd::security::Clients;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = Config::parse(text, Path::new("lcapd.toml")) {
        assert!(!config.streams.is_empty());
        let _ = config.warnings();
    }
    let _ = Clients::parse(text);
    for line in text.lines() {
        if let Ok(key) = Key::from_z85(line) {
            assert_eq!(key.to_z85(), line, "a key has one text");
        }
    }
}
