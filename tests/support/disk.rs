//! A disk that can be filled.
//!
//! Tests that need one are marked `#[cfg_attr(no_tmpfs, ignore = "no right to mount a tmpfs here")]`:
//! the build script finds out whether that is so, and test runners then count them as ignored.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of `size`, as tmpfs takes it.
    ///
    /// # Panics
    /// If that cannot be.
    pub fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).expect("a mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at);
        let out = mount.output().expect("mount");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(at.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes until nothing more goes in; who removes the returned file makes room again.
    ///
    /// # Panics
    /// If anything else stops it.
    pub fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).expect("a file");
        loop {
            // By pages: a larger piece that does not fit whole would leave some room.
            if let Err(error) = file.write_all(&[0; 4096]) {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                return path;
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
