//! lhsm_mdt_upcall: stores an HSM request that an MDT diverts from its coordinator. See
//! docs/hsm.md.
//!
//! The kernel starts it as root, without an environment and perhaps without open descriptors (std
//! opens /dev/null for those), while an RPC waits. So it stores the request and ends: no Lustre, no
//! lcapd, no network. Exit code 0: the request is on disk. 1: it could not be stored. 2: wrong
//! arguments. 3: wrong settings. Unless it is 0, the MDT asks its own coordinator.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use lcap_upcall::request::{BadArgument, Request};
use lcap_upcall::settings::{SettingsError, Upcall};
use lcap_upcall::spool::{SpoolError, store};

const SETTINGS: &str = "/etc/lcap/upcall.toml";

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Arguments(#[from] BadArgument),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Severities of syslog, in its facility `daemon`.
const ERROR: u8 = 3 << 3 | 3;
const INFO: u8 = 3 << 3 | 6;

fn main() -> ExitCode {
    let started = Instant::now();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Err(failure) = run(&args, started) else { return ExitCode::SUCCESS };
    let shown: Vec<_> = args.iter().take(4).map(|arg| arg.to_string_lossy()).collect();
    let code = match failure {
        Failure::Spool(_) => 1,
        Failure::Arguments(_) => 2,
        Failure::Settings(_) => 3,
    };
    tell(ERROR, format_args!("request not stored: {failure} ({} …)", shown.join(" ")));
    ExitCode::from(code)
}

fn run(args: &[OsString], started: Instant) -> Result<(), Failure> {
    let request = Request::from_args(args)?;
    let settings =
        std::env::var_os("LCAP_UPCALL_CONF").map_or_else(|| SETTINGS.into(), PathBuf::from);
    let settings = Upcall::load(&settings)?;
    let stored = store(&settings.spool, &request)?;
    if settings.timing {
        let (took, fsync) = (started.elapsed().as_micros(), stored.fsync.as_micros());
        tell(INFO, format_args!("stored {} in {took} us, {fsync} us of it fsync", stored.id));
    }
    Ok(())
}

/// To stderr, and to syslog, because the kernel gives us a stderr that nobody reads.
fn tell(priority: u8, text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "lhsm_mdt_upcall: {text}");
    let to_syslog = || -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        // A log that is stuck must not hold up an RPC.
        socket.set_nonblocking(true)?;
        socket.connect("/dev/log")?;
        let pid = std::process::id();
        socket.send(format!("<{priority}>lhsm_mdt_upcall[{pid}]: {text}").as_bytes())?;
        Ok(())
    };
    let _ = to_syslog();
}
