//! A directory that is gone afterwards.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A new, private directory among the temporary files; removed with what is in it on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// If none can be made.
    pub fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        let mut n = 0_u32;
        loop {
            let path = parent.join(format!("lcap-{}-{n}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Another's, or an earlier process's that was killed.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 10_000 => n += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind among the temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.path);
    }
}
