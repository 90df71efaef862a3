//! Plain files as an archive, laid out as lhsmtool_posix does: under the root, six directories of
//! four hexadecimal digits (the FID's parts, lowest first), then the FID.
//!
//! What has its name is whole: files are written under a name of their own, synced and renamed. So
//! any number of processes may store and remove one FID at once; the last one stays.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::request::Fid;
use crate::spool::RequestId;

/// What could not be done to an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The copy is not as long as the file.
    #[error("read {copied} bytes of a file of {size}")]
    Length {
        /// Bytes that were read.
        copied: u64,
        /// Bytes that the file has.
        size: u64,
    },
    /// The file was written to during the copy.
    #[error("the file was changed while it was read")]
    Changed,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    move |source| ArchiveError::Io { what, path: path.to_owned(), source }
}

/// Where a FID's copy is.
pub fn path_of(root: &Path, fid: Fid) -> PathBuf {
    let seq = fid.seq;
    let parts = [
        u64::from(fid.oid) & 0xffff,
        u64::from(fid.oid) >> 16,
        seq & 0xffff,
        seq >> 16 & 0xffff,
        seq >> 32 & 0xffff,
        seq >> 48,
    ];
    let mut path = root.to_owned();
    path.extend(parts.map(|part| format!("{part:04x}")));
    path.push(format!("{:#x}:{:#x}:{:#x}", fid.seq, fid.oid, fid.ver));
    path
}

/// Stores what `source` has to its end, instead of what the archive may have of this FID. Returns
/// how many bytes that was; they are on disk then.
///
/// # Errors
/// What went wrong; what the archive had, it has still.
pub fn store(root: &Path, fid: Fid, source: &File) -> Result<u64, ArchiveError> {
    let input = Path::new("the input");
    let before = source.metadata().map_err(failed("stat", input))?;
    let path = path_of(root, fid);
    let directory = path.parent().unwrap_or(root);
    make_directories(root, directory)?;
    let (temporary, mut file) = create_beside(&path)?;
    let copied = copy(source, &mut file, &temporary).and_then(|copied| {
        check(source, &before, copied)?;
        // The archive's copy bears the file's time, as lhsmtool_posix's does.
        if let (true, Ok(modified)) = (before.is_file(), before.modified()) {
            file.set_modified(modified).map_err(failed("set the time of", &temporary))?;
        }
        file.sync_all().map_err(failed("sync", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("rename", &temporary))?;
        Ok(copied)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let copied = copied?;
    sync_directory(directory)?;
    Ok(copied)
}

/// Deletes the copy of a FID, and the layout that lhsmtool_posix may have put beside it. That
/// there is none is no error: it may be that we were here before.
///
/// # Errors
/// What went wrong.
pub fn remove(root: &Path, fid: Fid) -> Result<(), ArchiveError> {
    // A root that is not mounted must not look like an empty archive.
    fs::read_dir(root).map_err(failed("read", root))?;
    let path = path_of(root, fid);
    let mut layout = path.clone().into_os_string();
    layout.push(".lov");
    for path in [path.clone(), layout.into()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
    }
    match path.parent().map(sync_directory) {
        Some(Err(ArchiveError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Some(result) => result,
        None => Ok(()),
    }
}

/// A new file in the same directory, with a name that nobody else has.
fn create_beside(path: &Path) -> Result<(PathBuf, File), ArchiveError> {
    let mut id = RequestId::now();
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("_tmp.{id}"));
        let temporary = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => id.count += 1,
            Err(error) => return Err(failed("create", &temporary)(error)),
        }
    }
}

fn copy(mut source: &File, file: &mut File, path: &Path) -> Result<u64, ArchiveError> {
    io::copy(&mut source, file).map_err(failed("copy to", path))
}

/// A file must have been read whole, and be the same as before. (A pipe tells neither.)
fn check(mut source: &File, before: &fs::Metadata, copied: u64) -> Result<(), ArchiveError> {
    if !before.is_file() {
        return Ok(());
    }
    let input = Path::new("the input");
    let at_end = source.read(&mut [0]).map_err(failed("read", input))? == 0;
    let after = source.metadata().map_err(failed("stat", input))?;
    let same = |a: &fs::Metadata| (a.size(), a.mtime(), a.mtime_nsec());
    if !at_end || same(before) != same(&after) {
        return Err(ArchiveError::Changed);
    }
    if copied != after.size() {
        return Err(ArchiveError::Length { copied, size: after.size() });
    }
    Ok(())
}

/// Makes what is missing below `root`, and has each new name on disk. The root must be there: one
/// that is not mounted must not be filled.
fn make_directories(root: &Path, directory: &Path) -> Result<(), ArchiveError> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut parent = root.to_owned();
    let below = directory.strip_prefix(root).unwrap_or(Path::new(""));
    for part in below {
        let path = parent.join(part);
        match fs::create_dir(&path) {
            Ok(()) => sync_directory(&parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create", &path)(error)),
        }
        parent = path;
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), ArchiveError> {
    let directory = File::open(path).map_err(failed("open", path))?;
    directory.sync_all().map_err(failed("sync", path))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    const FID: Fid = Fid { seq: 0x1234_5678_9abc_def0, oid: 0xfedc_0042, ver: 0x7 };

    fn input(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
        }
        all
    }

    #[test]
    fn the_layout_is_that_of_lhsmtool_posix() {
        let want = "/a/0042/fedc/def0/9abc/5678/1234/0x123456789abcdef0:0xfedc0042:0x7";
        assert_eq!(path_of(Path::new("/a"), FID), Path::new(want));
        let usual = Fid { seq: 0x2_0000_0401, oid: 0x1, ver: 0 };
        let want = "/a/0001/0000/0401/0000/0002/0000/0x200000401:0x1:0x0";
        assert_eq!(path_of(Path::new("/a"), usual), Path::new(want));
    }

    #[test]
    fn a_file_is_stored_stored_again_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = path_of(root.path(), FID);
        let long = vec![7_u8; 3_000_000];
        for content in [&b"first"[..], &long, b""] {
            let source = input(content);
            assert_eq!(store(root.path(), FID, &source).unwrap(), content.len() as u64);
            assert_eq!(fs::read(&path).unwrap(), content);
            let modified = source.metadata().unwrap().modified().unwrap();
            assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
            assert_eq!(files(root.path()), std::slice::from_ref(&path));
        }
        fs::write(path.with_file_name("0x123456789abcdef0:0xfedc0042:0x7.lov"), "x").unwrap();
        remove(root.path(), FID).unwrap();
        assert_eq!(files(root.path()), Vec::<PathBuf>::new());
        remove(root.path(), FID).unwrap();
        remove(root.path(), Fid { seq: 9, ..FID }).unwrap();
    }

    #[test]
    fn an_archive_that_is_not_there_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let gone = root.path().join("gone");
        assert!(store(&gone, FID, &input(b"x")).is_err());
        assert!(remove(&gone, FID).is_err());
        assert!(!gone.exists());
    }

    #[test]
    fn what_was_not_read_whole_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        store(root.path(), FID, &input(b"whole")).unwrap();
        let mut source = input(b"longer than that");
        source.seek(io::SeekFrom::Start(4)).unwrap();
        let error = store(root.path(), FID, &source).unwrap_err();
        assert!(matches!(error, ArchiveError::Length { copied: 12, size: 16 }), "{error}");
        assert_eq!(fs::read(path_of(root.path(), FID)).unwrap(), b"whole");
        assert_eq!(files(root.path()).len(), 1);
    }
}
