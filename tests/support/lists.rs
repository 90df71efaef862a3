//! Lists of HSM actions as files, as MDTs show them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// One action of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Object number of its FID.
    pub oid: u64,
    /// Number of the request.
    pub cookie: u64,
    /// `ARCHIVE`, …
    pub action: &'static str,
    /// `WAITING`, …
    pub status: &'static str,
}

impl Action {
    /// An archive of file `oid`, waiting.
    pub fn archive(oid: u64) -> Self {
        Self { oid, cookie: oid + 0x1000, action: "ARCHIVE", status: "WAITING" }
    }

    /// The same in another state.
    #[must_use]
    pub fn status(mut self, status: &'static str) -> Self {
        self.status = status;
        self
    }
}

/// A list by record number.
pub type List = BTreeMap<u32, Action>;

/// The text of a list.
pub fn text(list: &List) -> String {
    let mut text = String::new();
    for (rec, Action { oid, cookie, action, status }) in list {
        let fid = format!("0x200000402:{oid:#x}:0x0");
        let _ = writeln!(
            text,
            "lrh=[type=10680000 len=144 idx=1/{rec}] fid=[{fid}] dfid=[{fid}] \
             compound/cookie=0x0/{cookie:#x} action={action} archive#=1 flags=0x0 \
             extent=0x0-0xffffffffffffffff gid=0x0 datalen=8 status={status} data=[7461673D67]"
        );
    }
    text
}

/// The lists of the MDTs of one server.
#[derive(Clone, Debug)]
pub struct Lists(PathBuf);

impl Lists {
    /// Below a directory.
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// What to write as `source` of an MDT.
    pub fn source(&self) -> String {
        format!("hsm-actions:\"\nhsm_actions = \"{}/*/hsm/actions", self.0.display())
    }

    fn path(&self, mdt: &str) -> PathBuf {
        self.0.join(mdt).join("hsm/actions")
    }

    /// Replaces a list at one moment, as a read of the kernel's sees it.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn write(&self, mdt: &str, text: &str) {
        let path = self.path(mdt);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path.with_extension("new"), text).expect("a file");
        fs::rename(path.with_extension("new"), path).expect("a file");
    }

    /// The MDT goes elsewhere.
    ///
    /// # Panics
    /// If it was not here.
    pub fn leave(&self, mdt: &str) {
        fs::remove_file(self.path(mdt)).expect("it was here");
    }
}
