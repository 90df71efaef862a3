//! `lcap sim`: a directory of simulated changelog devices, for those who write consumers.
//!
//! With `--actions`, `<MDT>/hsm/actions` lists HSM actions that live their lives, as debugfs does on an
//! MDS.
//!
//! `changelog-<MDT>` files behave as the kernel's devices were seen to: whole records only, the
//! file position is a record index, follow mode by ioctl, `poll`, clear by write, EIO after an
//! eviction. Being plain files to the kernel, they differ in what it decides itself: a position
//! below the present one is refused by the next read (EINVAL) and not by `lseek`, and after a read
//! the position counts bytes; what reads on as they come will not notice.
//!
//! One command is not Lustre's: writing `sim:evict` to a file does to every descriptor open on it
//! what a restart of the MDT does.
#![forbid(unsafe_code)]

mod open_log;
mod server;
mod tree;

use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use lcap_ffi::MdtName;
use lcapd::source::emulated::Rate;
use lcapd::source::sim::{SimMdt, SimOptions};

use server::Server;

/// Arguments of `lcap sim`.
#[derive(Clone, Debug, clap::Args)]
pub struct SimArgs {
    /// An existing directory to mount at. Needs root and /dev/fuse.
    #[arg(long, value_name = "DIR")]
    pub mount: PathBuf,
    /// An MDT to simulate; may be repeated.
    #[arg(long = "mdt", value_name = "NAME", default_value = "lustre-MDT0000")]
    pub mdts: Vec<MdtName>,
    /// Records per second of each MDT; without it, all of them exist at once.
    #[arg(long)]
    pub rate: Option<Rate>,
    /// Records of each MDT; without it, there is no end.
    #[arg(long)]
    pub records: Option<u64>,
    /// The same seed gives the same records.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// After so many records, one index is missing.
    #[arg(long)]
    pub gaps: Option<NonZeroU64>,
    /// HSM actions in each MDT's list, at any time.
    #[arg(long, value_name = "N")]
    pub actions: Option<NonZeroU64>,
    /// Of each so many seconds, the list is elsewhere for the last fifth, as in a failover.
    #[arg(long, value_name = "SECONDS", requires = "actions")]
    pub failover: Option<NonZeroU64>,
    /// How many changelog users are registered: cl1, cl2 and so on.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub users: u32,
    /// How often a following reader looks for new records, in milliseconds. Lustre's kernel does
    /// once a second.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    pub scan_ms: u64,
    /// Where to remember what was cleared and when it began; without it, nowhere.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// If it cannot be mounted, or the state directory cannot be used.
pub fn run(args: &SimArgs) -> anyhow::Result<()> {
    let (stop, stopper) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::low_level::pipe::register(signal, stopper.try_clone()?)?;
    }
    mount(args)?.serve(stop.as_fd())?;
    Ok(())
}

/// A mounted simulation, which answers once it is served.
#[derive(Debug)]
pub struct Simulation {
    server: Server,
    /// Where the state lies if nobody asked for it to be kept.
    _scratch: Option<tempfile::TempDir>,
}

/// Mounts what the arguments say.
///
/// # Errors
/// If it cannot be mounted, or the state directory cannot be used.
pub fn mount(args: &SimArgs) -> anyhow::Result<Simulation> {
    if args.users == 0 {
        bail!("--users 0: without a registered user, an MDT keeps no changelog");
    }
    let (scratch, state_dir) = match &args.state {
        Some(dir) => (None, dir.clone()),
        None => {
            let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
            let path = scratch.path().to_owned();
            (Some(scratch), path)
        }
    };
    let options = SimOptions {
        rate: args.rate,
        records: args.records,
        seed: args.seed,
        gaps: args.gaps,
        actions: args.actions,
        failover: args.failover,
    };
    let users: Vec<u32> = (1..=args.users).collect();
    let mut mdts: Vec<(MdtName, Arc<SimMdt>)> = Vec::new();
    for name in &args.mdts {
        if mdts.iter().any(|(known, _)| known == name) {
            bail!("--mdt {name} is given twice");
        }
        let mdt = SimMdt::new(options, name, &state_dir, &users)?;
        mdts.push((name.clone(), Arc::new(mdt)));
    }
    let scan = Duration::from_millis(args.scan_ms);
    let server = Server::mount(&args.mount, mdts, scan).with_context(|| {
        format!("cannot mount at {}; it takes root and /dev/fuse", args.mount.display())
    })?;
    Ok(Simulation { server, _scratch: scratch })
}

impl Simulation {
    /// Answers requests until `stop` becomes readable or is closed, or somebody unmounts it.
    ///
    /// # Errors
    /// If the kernel's side fails.
    pub fn serve(mut self, stop: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
        self.server.serve(stop)
    }
}
