//! Whose a file is, for fair shares: Lustre's requests do not say. Asked of the mount by whoever takes requests in,
//! never by the queue's thread, and only if the site shares by it.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lcap_ffi::Fid;
use lcap_ffi::project::project_of;

use super::request::{Request, UNKNOWN_OWNER};
use super::scheduler::ShareBy;

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project.
    pub project: u32,
}

impl Owner {
    /// Of a file that is gone, say.
    pub const UNKNOWN: Self =
        Self { uid: UNKNOWN_OWNER, gid: UNKNOWN_OWNER, project: UNKNOWN_OWNER };

    /// Writes it into a request.
    pub fn put(self, request: &mut Request) {
        (request.uid, request.gid, request.project) = (self.uid, self.gid, self.project);
    }
}

/// Looks owners up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owners {
    by_fid: PathBuf,
    projects: bool,
}

impl Owners {
    /// Of files of a mount, if that is what shares are by.
    pub fn new(mount: &Path, share_by: &ShareBy) -> Option<Self> {
        let projects = match share_by {
            ShareBy::None | ShareBy::Tag(_) => return None,
            ShareBy::Uid | ShareBy::Gid => false,
            ShareBy::Project => true,
        };
        Some(Self { by_fid: mount.join(".lustre/fid"), projects })
    }

    /// Of one file; an RPC to its MDT.
    pub fn of(&self, fid: Fid) -> Owner {
        let path = self.by_fid.join(fid.to_string());
        let Ok(meta) = fs::symlink_metadata(&path) else { return Owner::UNKNOWN };
        let project = if self.projects && meta.is_file() { project_of(&path).ok() } else { None };
        Owner { uid: meta.uid(), gid: meta.gid(), project: project.unwrap_or(UNKNOWN_OWNER) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_asked_for_by_its_fid_and_only_if_shares_are_by_its_owner() {
        let mount = tempfile::tempdir().unwrap();
        let by_fid = mount.path().join(".lustre/fid");
        fs::create_dir_all(&by_fid).unwrap();
        let fid = Fid { seq: 0x2_0000_0401, oid: 7, ver: 0 };
        let path = by_fid.join("[0x200000401:0x7:0x0]");
        fs::write(&path, "").unwrap();
        let meta = fs::metadata(&path).unwrap();
        for share_by in [ShareBy::None, ShareBy::Tag("user=".to_owned())] {
            assert_eq!(Owners::new(mount.path(), &share_by), None);
        }
        let owners = Owners::new(mount.path(), &ShareBy::Uid).unwrap();
        let found = owners.of(fid);
        assert_eq!((found.uid, found.gid, found.project), (meta.uid(), meta.gid(), UNKNOWN_OWNER));
        assert_eq!(owners.of(Fid { oid: 8, ..fid }), Owner::UNKNOWN);
        // Not every file system has projects; a file without any is in 0.
        let project = Owners::new(mount.path(), &ShareBy::Project).unwrap().of(fid).project;
        assert!([0, UNKNOWN_OWNER].contains(&project), "{project}");
    }
}
