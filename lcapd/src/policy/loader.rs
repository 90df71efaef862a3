//! Finds a module's file and decides whether it may be loaded.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{Module, PolicyError};

/// Where modules are looked for, in order.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    search: Vec<PathBuf>,
}

impl Loader {
    /// Looks in these directories only.
    pub fn new(search: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { search: search.into_iter().collect() }
    }

    /// Looks in `configured` first (`[server] policy_path`), then in `LCAP_POLICY_PATH` (separated by
    /// colons), beside the executable, in `../lib/lcap/policies` from there, and in the system's
    /// library directories.
    pub fn standard(configured: &[PathBuf]) -> Self {
        let mut search = configured.to_vec();
        if let Some(list) = std::env::var_os("LCAP_POLICY_PATH") {
            search.extend(std::env::split_paths(&list).filter(|dir| !dir.as_os_str().is_empty()));
        }
        let exe = std::env::current_exe().ok();
        if let Some(dir) = exe.as_deref().and_then(Path::parent) {
            search.push(dir.to_owned());
            if let Some(prefix) = dir.parent() {
                for lib in ["lib", "lib64"] {
                    search.push(prefix.join(lib).join("lcap/policies"));
                }
                search.push(prefix.join("lib").join(multiarch()).join("lcap/policies"));
            }
        }
        for lib in ["/usr/lib", "/usr/lib64"] {
            search.push(Path::new(lib).join("lcap/policies"));
        }
        search.push(Path::new("/usr/lib").join(multiarch()).join("lcap/policies"));
        Self { search }
    }

    /// The directories, in order.
    pub fn search_path(&self) -> &[PathBuf] {
        &self.search
    }

    /// Finds the file of a module: `name` itself if there is a slash in it, else `NAME.so`,
    /// `libNAME.so` or `liblcap_policy_NAME.so` along the search path.
    ///
    /// # Errors
    /// [`PolicyError::NotFound`].
    pub fn find(&self, name: &str) -> Result<PathBuf, PolicyError> {
        let not_found = |searched| PolicyError::NotFound { module: name.to_owned(), searched };
        if name.contains('/') {
            let path = PathBuf::from(name);
            return if path.is_file() { Ok(path) } else { Err(not_found(Vec::new())) };
        }
        let lib = name.replace('-', "_"); // as cargo names libraries
        let files =
            [format!("{name}.so"), format!("lib{name}.so"), format!("liblcap_policy_{lib}.so")];
        let candidates = self.search.iter().flat_map(|dir| files.iter().map(|file| dir.join(file)));
        candidates
            .into_iter()
            .find(|path| !name.is_empty() && path.is_file())
            .ok_or_else(|| not_found(self.search.clone()))
    }

    /// Finds and checks a module of another kind; gives the path of a copy to load it from, and its own.
    ///
    /// # Errors
    /// [`PolicyError`], each with what to do about it.
    pub fn checked_copy(&self, name: &str) -> Result<(PathBuf, PathBuf), PolicyError> {
        let (real, code) = read_checked(&self.find(name)?)?;
        let copy = private_copy(&real, &code);
        let copy = copy.map_err(|reason| PolicyError::Open {
            path: real.clone(),
            reason: reason.to_string(),
        })?;
        Ok((copy, real))
    }

    /// Finds, checks and loads a module. The code stays mapped until the process ends.
    ///
    /// # Errors
    /// [`PolicyError`], each with what to do about it.
    pub fn load(&self, name: &str) -> Result<Arc<Module>, PolicyError> {
        load_file(&self.find(name)?)
    }
}

/// Debian's name for the machine in library paths.
fn multiarch() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

/// Loads one file after checking its owner and mode. A file with the content of one that was loaded
/// before under its name is that module.
pub(super) fn load_file(path: &Path) -> Result<Arc<Module>, PolicyError> {
    static LOADED: OnceLock<Mutex<HashMap<Version, Arc<Module>>>> = OnceLock::new();
    let (real, code) = read_checked(path)?;
    let version = (real.clone(), code.len(), digest(&code));
    let mut loaded =
        LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = loaded.get(&version) {
        return Ok(Arc::clone(module));
    }
    let unreadable =
        |reason: io::Error| PolicyError::Open { path: path.to_owned(), reason: reason.to_string() };
    let module = match Module::open(&private_copy(&real, &code).map_err(unreadable)?, &real) {
        // Some systems let nothing be run from memory; and where the file is no library, the
        // message is to name it.
        Err(PolicyError::Open { .. }) => Module::open(&real, &real)?,
        opened => opened?,
    };
    let module = Arc::new(module);
    loaded.insert(version, Arc::clone(&module));
    Ok(module)
}

/// The file behind a path, and what is in it, if nobody but root and the daemon's user can write it.
fn read_checked(path: &Path) -> Result<(PathBuf, Vec<u8>), PolicyError> {
    let unreadable =
        |reason: io::Error| PolicyError::Open { path: path.to_owned(), reason: reason.to_string() };
    let real = path.canonicalize().map_err(unreadable)?;
    let mut file = File::open(&real).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(unreadable(io::Error::other("not a regular file")));
    }
    check_owner_and_mode(&real, &meta)?;
    if let Some(dir) = real.parent() {
        check_directory(dir, &fs::metadata(dir).map_err(unreadable)?)?;
    }
    let mut code = Vec::new();
    file.read_to_end(&mut code).map_err(unreadable)?;
    Ok((real, code))
}

/// Path, size, and digest of the content.
type Version = (PathBuf, usize, u64);

fn digest(code: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(code);
    hasher.finish()
}

/// Puts the code where nobody can change it any more, and gives the path to load it from.
///
/// The dynamic linker knows a library by path and inode: it would give the old code for a file that
/// was replaced (`lcap policy reload`), and a file that is written over while it is mapped brings
/// lcapd down. What is loaded is also exactly what was checked.
fn private_copy(real: &Path, code: &[u8]) -> io::Result<PathBuf> {
    let name = real.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = CString::new(name.unwrap_or_default()).unwrap_or_default();
    let mut copy = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    copy.write_all(code)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    // Open as long as the code is mapped, which is until the process ends: the linker would take the
    // next file with that number for this one.
    std::mem::forget(copy);
    Ok(path)
}

/// Whoever can write the file or its directory can run code as the daemon.
fn check_owner_and_mode(path: &Path, meta: &Metadata) -> Result<(), PolicyError> {
    let refuse = |problem: String, fix: String| {
        Err(PolicyError::Untrusted { path: path.to_owned(), problem, fix })
    };
    if meta.mode() & 0o022 != 0 {
        return refuse(
            format!("is writable by its group or by others (mode {:04o})", meta.mode() & 0o7777),
            format!("chmod go-w {}", path.display()),
        );
    }
    let me = own_uid();
    if meta.uid() != 0 && me != Some(meta.uid()) {
        return refuse(
            format!("is owned by uid {}, neither root nor the daemon's user", meta.uid()),
            format!("chown root {}", path.display()),
        );
    }
    Ok(())
}

fn check_directory(dir: &Path, meta: &Metadata) -> Result<(), PolicyError> {
    let sticky = meta.mode() & 0o1000 != 0;
    if meta.mode() & 0o002 != 0 && !sticky {
        return Err(PolicyError::Untrusted {
            path: dir.to_owned(),
            problem: format!(
                "is a directory that anybody can write (mode {:04o})",
                meta.mode() & 0o7777
            ),
            fix: format!("chmod o-w {}", dir.display()),
        });
    }
    Ok(())
}

/// The effective uid, as the owner of our own entry in `/proc`.
fn own_uid() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|meta| meta.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn names_are_found_along_the_path_under_three_spellings() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let at = |dir: usize, file: &str| dirs[dir].path().join(file);
        for (dir, file) in [(0, "liblcap_policy_two_words.so"), (1, "one.so"), (1, "libthree.so")] {
            fs::write(at(dir, file), "").unwrap();
        }
        let loader = Loader::new(dirs.iter().map(|dir| dir.path().to_owned()));
        assert_eq!(loader.find("two-words").unwrap(), at(0, "liblcap_policy_two_words.so"));
        assert_eq!(loader.find("one").unwrap(), at(1, "one.so"));
        assert_eq!(loader.find("three").unwrap(), at(1, "libthree.so"));
        let path = at(1, "one.so");
        assert_eq!(loader.find(path.to_str().unwrap()).unwrap(), path);
        for missing in ["", "four", "./one.so"] {
            let error = loader.find(missing).unwrap_err();
            assert!(matches!(error, PolicyError::NotFound { .. }), "{missing}: {error}");
        }
        fs::write(at(0, "one.so"), "").unwrap();
        assert_eq!(loader.find("one").unwrap(), at(0, "one.so"), "the first directory wins");
    }

    #[test]
    fn a_file_or_directory_that_others_can_write_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.so");
        fs::write(&path, "not ELF").unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
        };
        for mode in [0o664, 0o646] {
            set(&path, mode);
            let error = load_file(&path).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, PolicyError::Untrusted { .. }), "{mode:o}: {text}");
            assert!(text.contains("chmod go-w"), "{text}");
        }
        set(&path, 0o644);
        set(dir.path(), 0o777);
        let text = load_file(&path).unwrap_err().to_string();
        assert!(text.contains("chmod o-w"), "{text}");
        set(dir.path(), 0o755);
        // Trusted now, but no library.
        assert!(matches!(load_file(&path).unwrap_err(), PolicyError::Open { .. }));
    }
}
