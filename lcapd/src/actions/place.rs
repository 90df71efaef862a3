//! Where an MDT's list of HSM actions is read.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcap_ffi::MdtName;

use crate::source::sim::SimActions;

/// Where lists are, by version of Lustre: debugfs since 2.11, procfs before.
const DEFAULT_PLACES: [&str; 2] =
    ["/sys/kernel/debug/lustre/mdt/*/hsm/actions", "/proc/fs/lustre/mdt/*/hsm/actions"];

/// Where to look for an MDT's list. It may be there at one time and not at another.
#[derive(Clone, Debug)]
pub enum ListPlace {
    /// Files of this kernel, or others like them. `*` stands for the MDT's name.
    Files(Vec<PathBuf>),
    /// A made-up MDT's.
    Sim(Arc<SimActions>),
}

impl ListPlace {
    /// Where Lustre keeps the list of that MDT.
    pub fn of_kernel(mdt: &MdtName) -> Self {
        Self::Files(DEFAULT_PLACES.iter().map(|pattern| resolve(Path::new(pattern), mdt)).collect())
    }

    /// A path, or a pattern that names the lists of several MDTs: the component with a wildcard is
    /// the MDT's name.
    pub fn of_pattern(pattern: &Path, mdt: &MdtName) -> Self {
        Self::Files(vec![resolve(pattern, mdt)])
    }

    /// Opens the list. `None` if the MDT is not here.
    ///
    /// # Errors
    /// If it is here and cannot be opened.
    pub fn open(&self) -> io::Result<Option<Box<dyn Read>>> {
        match self {
            Self::Sim(sim) => Ok(sim.open().map(|text| Box::new(text) as Box<dyn Read>)),
            Self::Files(paths) => {
                for path in paths {
                    match File::open(path) {
                        Ok(file) => return Ok(Some(Box::new(file))),
                        // ENODEV: the MDT is being unmounted.
                        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                        }
                        Err(error) => {
                            let text = format!("{}: {error}", path.display());
                            return Err(io::Error::new(error.kind(), text));
                        }
                    }
                }
                Ok(None)
            }
        }
    }
}

impl fmt::Display for ListPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sim(_) => f.write_str("sim:"),
            Self::Files(paths) => {
                let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
                f.write_str(&paths.join(" or "))
            }
        }
    }
}

/// Puts the MDT's name where the pattern has a component with wildcards.
fn resolve(pattern: &Path, mdt: &MdtName) -> PathBuf {
    let component = |part: std::path::Component<'_>| {
        let text = part.as_os_str().to_string_lossy();
        if text.contains(['*', '?']) { mdt.as_str().into() } else { part.as_os_str().to_owned() }
    };
    pattern.components().map(component).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_one_file_of_each_mdt() {
        let mdt: MdtName = "lustre-MDT0001".parse().unwrap();
        let paths = ListPlace::of_kernel(&mdt).to_string();
        assert_eq!(
            paths,
            "/sys/kernel/debug/lustre/mdt/lustre-MDT0001/hsm/actions or \
             /proc/fs/lustre/mdt/lustre-MDT0001/hsm/actions"
        );
        for (pattern, want) in [
            (
                "/sys/kernel/debug/lustre/mdt/*-MDT????/hsm/actions",
                "/sys/kernel/debug/lustre/mdt/lustre-MDT0001/hsm/actions",
            ),
            ("/tmp/x/actions", "/tmp/x/actions"),
        ] {
            assert_eq!(ListPlace::of_pattern(Path::new(pattern), &mdt).to_string(), want);
        }
    }

    #[test]
    fn what_is_not_there_is_no_error() {
        let mdt: MdtName = "lustre-MDT0001".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let place = ListPlace::of_pattern(&dir.path().join("*/hsm/actions"), &mdt);
        assert!(place.open().unwrap().is_none());
        std::fs::create_dir_all(dir.path().join("lustre-MDT0001/hsm")).unwrap();
        std::fs::write(dir.path().join("lustre-MDT0001/hsm/actions"), "x").unwrap();
        let mut text = String::new();
        place.open().unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        // A component in the way that is no directory is an error that names the file.
        let place = ListPlace::of_pattern(&dir.path().join("*/hsm/actions/more"), &mdt);
        assert!(place.open().err().unwrap().to_string().contains("actions/more"));
    }
}
