//! `lcap hsm coordinatool-client`: the options of that program, for scripts that know it. Also what lcap does
//! when it is started under that name.
#![forbid(unsafe_code)]

use std::io::{self, Read as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{ArgAction, Args};
use lcap_wire::DEFAULT_CONTROL_PORT;
use lcap_wire::control::Op;
use lcap_wire::hsm_queue::{Changed, HsmOp, Lock, Status};
use lcapclient::{ClientError, Control, DEFAULT_TIMEOUT};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{lock, queue, take};

/// `-v` given so often lists requests, too.
const VERBOSE_QUEUES: u8 = 2;

#[derive(Args)]
#[command(disable_version_flag = true)]
pub(crate) struct ClientArgs {
    /// Taken and not read: lcapd is found by LCAP_REC_URI, or by -H and -p.
    #[arg(short, long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// Where lcapd is.
    #[arg(short = 'H', long)]
    host: Option<String>,
    /// Its control port; with --recv and --drain the port of its movers.
    #[arg(short, long)]
    port: Option<u16>,
    /// Start nothing more.
    #[arg(long, group = "what")]
    lock: bool,
    /// Go on.
    #[arg(long, group = "what")]
    unlock: bool,
    /// Start nothing more, and wait until nothing runs. lcapd goes on: systemctl stops it.
    #[arg(long, group = "what")]
    lock_quit: bool,
    /// Take in requests from `hsm/active_requests` on standard input.
    #[arg(short = 'Q', long, group = "what")]
    queue: bool,
    /// Fail if lcapd serves another file system.
    #[arg(long, value_name = "NAME")]
    fsname: Option<String>,
    /// For tests: take work as a mover, and keep it; it goes back at the end.
    #[arg(short = 'R', long, group = "what")]
    recv: bool,
    /// For tests: take work as a mover, and call it done; Lustre is not told. What lets running work end is
    /// `lcap hsm queue drain`.
    #[arg(long, group = "what")]
    drain: bool,
    /// With --recv and --drain: the mover's name.
    #[arg(short = 'I', long, value_name = "NAME")]
    client_id: Option<String>,
    /// With --recv and --drain: only requests of this archive; may be given more than once.
    #[arg(short = 'A', long = "archive", value_name = "ID")]
    archives: Vec<u32>,
    /// So many answers; one, and with --recv and --drain no end, unless given.
    #[arg(short, long, value_name = "N")]
    iters: Option<u32>,
    /// Say more; twice lists requests.
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Say less.
    #[arg(short, long, action = ArgAction::Count)]
    quiet: u8,
}

impl ClientArgs {
    fn control(&self) -> Result<Control> {
        if self.host.is_none() && self.port.is_none() {
            return crate::control();
        }
        let host = self.host.as_deref().unwrap_or("localhost");
        let port = self.port.unwrap_or(DEFAULT_CONTROL_PORT);
        Ok(Control::new(&format!("tcp://{host}:{port}"), None, DEFAULT_TIMEOUT)?)
    }

    /// Where movers connect, if it is said here.
    fn movers(&self) -> Option<String> {
        (self.host.is_some() || self.port.is_some()).then(|| {
            let host = self.host.as_deref().unwrap_or("localhost");
            format!("tcp://{host}:{}", self.port.unwrap_or(take::DEFAULT_PORT))
        })
    }

    fn ask<T: DeserializeOwned>(&self, op: HsmOp) -> Result<T> {
        let reply = self.control()?.request(Op::Hsm(op))?;
        Ok(serde_json::from_value(reply.body)?)
    }
}

pub(crate) fn run(args: &ClientArgs) -> Result<()> {
    if let Some(file) = &args.config {
        eprintln!(
            "lcap: {} is not read; -H and -p, or LCAP_REC_URI, say where lcapd is",
            file.display()
        );
    }
    if args.recv || args.drain {
        return take::run(&take::Take {
            server: args.movers(),
            name: args.client_id.as_deref(),
            fsname: args.fsname.as_deref(),
            archives: &args.archives,
            answers: args.iters,
            done: args.drain,
        });
    }
    if let Some(wanted) = &args.fsname {
        let status: Value = args.ask(HsmOp::Status(Status::default()))?;
        let ours = status["fsname"].as_str().unwrap_or_default();
        if ours != wanted {
            bail!("lcapd serves the file system {ours}, not {wanted}");
        }
    }
    let ask = |op| args.ask::<Changed>(op).map(drop);
    if args.queue {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("standard input")?;
        let taken = queue::import_text(&text, |op| args.ask(op))?;
        let reply = json!({"enqueued": taken.enqueued, "skipped": taken.skipped});
        show("queue", &reply)?;
        return queue::complain(&taken);
    }
    if args.lock || args.lock_quit {
        ask(HsmOp::Lock(Lock::default()))?;
        if args.lock_quit {
            lock::wait_idle(&Lock::default(), None, |op| args.ask(op))?;
        }
        println!("ok");
        return Ok(());
    }
    if args.unlock {
        match ask(HsmOp::Unlock(Lock::default())) {
            // As in the original, it need not have been locked.
            Err(error) if is_refusal(&error, libc::ENOENT) => {}
            other => other?,
        }
        println!("ok");
        return Ok(());
    }
    for nth in 0..args.iters.unwrap_or(1) {
        if nth > 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
        let verbose = args.verbose.saturating_sub(args.quiet) >= VERBOSE_QUEUES;
        let status: Value = args.ask(HsmOp::Status(Status { verbose }))?;
        show("status", &status)?;
    }
    Ok(())
}

fn is_refusal(error: &anyhow::Error, wanted: i32) -> bool {
    let refused = error.downcast_ref::<ClientError>();
    refused.is_some_and(|e| matches!(e, ClientError::Refused { errno, .. } if *errno == wanted))
}

/// As the original shows a reply; the header comes first here, also through a pipe.
pub(super) fn show(kind: &str, reply: &impl Serialize) -> Result<()> {
    crate::print(&format!("Got {kind} reply:\n{}\n", serde_json::to_string_pretty(reply)?))
}
