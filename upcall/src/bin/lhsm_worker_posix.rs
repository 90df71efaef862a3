//! lhsm_worker_posix: one file into, or out of, an archive of plain files. See docs/hsm.md.
//!
//! `lfs hsm_upcall` starts it once per FID, with the file on stdin. Exit code 0: done and on disk.
//! 1: failed. 2: wrong arguments. 3: wrong settings.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lcap_upcall::archive::{self, ArchiveError};
use lcap_upcall::request::{Action, BadArgument, Request};
use lcap_upcall::settings::{self, SettingsError};

const SETTINGS: &str = "/etc/lcap/worker_posix.toml";

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Arguments(#[from] BadArgument),
    #[error("takes ACTION FSNAME ARCHIVE_ID FLAGS DATA FID, with one FID")]
    Usage,
    #[error("{0} is not for this program, only ARCHIVE and REMOVE are")]
    Action(Action),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("stdin: {0}")]
    Stdin(io::Error),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Err(failure) = run(&args) else { return ExitCode::SUCCESS };
    let fid = args.get(5).map(|fid| fid.to_string_lossy()).unwrap_or_default();
    let _ = writeln!(io::stderr(), "lhsm_worker_posix: {fid}: {failure}");
    ExitCode::from(match failure {
        Failure::Archive(_) | Failure::Stdin(_) => 1,
        Failure::Arguments(_) | Failure::Usage | Failure::Action(_) => 2,
        Failure::Settings(_) => 3,
    })
}

fn run(args: &[OsString]) -> Result<(), Failure> {
    let request = Request::from_args(args)?;
    let &[fid] = request.fids.as_slice() else { return Err(Failure::Usage) };
    match request.action {
        Action::Archive => {
            // A copy of the descriptor, not std's stdin, which has a buffer of its own.
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(Failure::Stdin)?;
            archive::store(&root()?, fid, &File::from(stdin))?;
        }
        Action::Remove => archive::remove(&root()?, fid)?,
        other => return Err(Failure::Action(other)),
    }
    Ok(())
}

/// `LCAP_ARCHIVE_ROOT`, or what the settings say.
fn root() -> Result<PathBuf, Failure> {
    if let Some(root) = std::env::var_os("LCAP_ARCHIVE_ROOT") {
        return Ok(root.into());
    }
    Ok(settings::archive_root(Path::new(SETTINGS))?)
}
