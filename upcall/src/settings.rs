//! The two small configuration files, `upcall.toml` and `worker_posix.toml`.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// A file that does not say what it must.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is not there, or not readable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML, or a key is missing, unknown, or has a value that cannot be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// `upcall.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upcall {
    /// `spool`: the directory that lcapd takes requests from.
    pub spool: PathBuf,
    /// `timing`: say how long it took, and how much of that was the disk.
    pub timing: bool,
}

impl Upcall {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let mut spool = None;
        let mut timing = false;
        each_key(path, |key, value| match (key, value) {
            ("spool", DeValue::String(dir)) => {
                spool = Some(absolute(key, dir)?);
                Ok(())
            }
            ("timing", DeValue::Boolean(on)) => {
                timing = *on;
                Ok(())
            }
            _ => Err(format!("`{key}`: not a key of this file, or not a value for it")),
        })?;
        let spool = spool.ok_or_else(|| missing(path, "spool"))?;
        Ok(Self { spool, timing })
    }
}

/// `archive_root` of `worker_posix.toml`.
///
/// # Errors
/// What is wrong with the file.
pub fn archive_root(path: &Path) -> Result<PathBuf, SettingsError> {
    let mut root = None;
    each_key(path, |key, value| match (key, value) {
        ("archive_root", DeValue::String(dir)) => {
            root = Some(absolute(key, dir)?);
            Ok(())
        }
        _ => Err(format!("`{key}`: not a key of this file, or not a value for it")),
    })?;
    root.ok_or_else(|| missing(path, "archive_root"))
}

fn absolute(key: &str, dir: &str) -> Result<PathBuf, String> {
    // The kernel starts us in `/`, a test somewhere else.
    if dir.starts_with('/') {
        Ok(dir.into())
    } else {
        Err(format!("`{key}`: not an absolute path"))
    }
}

fn missing(path: &Path, key: &str) -> SettingsError {
    SettingsError::Content { path: path.to_owned(), problem: format!("`{key}` is missing") }
}

fn each_key(
    path: &Path,
    mut take: impl FnMut(&str, &DeValue<'_>) -> Result<(), String>,
) -> Result<(), SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let wrong = |problem| SettingsError::Content { path: path.to_owned(), problem };
    let table =
        DeTable::parse(&text).map_err(|error| wrong(error.to_string().trim().to_owned()))?;
    for (key, value) in table.get_ref().iter() {
        take(key.get_ref(), value.get_ref()).map_err(wrong)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upcall.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Upcall::load(&path).map_err(|error| error.to_string())
        };
        let want = Upcall { spool: "/var/spool/lcap hsm".into(), timing: false };
        assert_eq!(load("# ours\nspool = \"/var/spool/lcap hsm\"\n"), Ok(want));
        assert!(load("spool = '/a'\ntiming = true").unwrap().timing);
        for (text, problem) in [
            ("", "`spool` is missing"),
            ("spool = 3", "`spool`"),
            ("spool = \"a\"", "absolute"),
            ("spol = \"/a\"", "`spol`"),
            ("spool = \"/a", "TOML"),
            ("spool = '/a'\ntiming = 1", "`timing`"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains("upcall.toml") && error.contains(problem), "{text}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Upcall::load(&path).unwrap_err().to_string().starts_with("cannot read"));
    }
}
