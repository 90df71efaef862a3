//! `lcap hsm queue`: what is queued, and what an operator does about it.
#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use clap::{Args, Subcommand};
use lcap_wire::hsm_queue::{
    Changed, Drop, HsmOp, Import, Imported, List, Listed, Move, Place, Queued, Shown, Which,
};

use super::{ask, json, lock, status};

/// Requests asked for at once.
const PAGE: usize = 1000;
/// Bytes of an import sent at once; a control message may have one MiB.
const PIECE_BYTES: usize = 256 << 10;

#[derive(Args)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Subcommand)]
enum QueueCommand {
    /// List requests, by number.
    List(ListArgs),
    /// Show one request.
    Show {
        /// Its number.
        id: u64,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// End requests. What runs is told to stop.
    Cancel(WhichArgs),
    /// Keep requests from being started, until `requeue`.
    Hold(WhichArgs),
    /// Let requests that are held, delayed or dead go on, as if they were new.
    Requeue(RequeueArgs),
    /// List requests that failed too often.
    Dead {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Put requests elsewhere in the queue.
    Move(MoveArgs),
    /// Start nothing (of a worker, kind or archive), until `unlock`. What runs goes on.
    Lock(lock::LockArgs),
    /// Take a lock away.
    Unlock(lock::LockArgs),
    /// Lock, and wait until nothing of it runs any more.
    Drain(lock::DrainArgs),
    /// Take away from a worker what it has, and give it to others.
    Drop {
        /// Its name.
        worker: String,
    },
    /// Take in requests from `hsm/active_requests`.
    Import(ImportArgs),
    /// Show figures, with the keys of `coordinatool-client`.
    Status(status::StatusArgs),
}

#[derive(Args)]
struct ListArgs {
    /// Only in this state: waiting, delayed, held, running, dead.
    #[arg(long)]
    state: Option<String>,
    /// Only of this kind: archive, restore, remove.
    #[arg(long)]
    action: Option<String>,
    /// Only of this archive.
    #[arg(long)]
    archive_id: Option<u32>,
    /// Only of this file.
    #[arg(long)]
    fid: Option<String>,
    /// Only on this worker.
    #[arg(long)]
    worker: Option<String>,
    /// At most so many.
    #[arg(short = 'n', long)]
    limit: Option<usize>,
    /// A JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct WhichArgs {
    /// Their numbers.
    #[arg(required = true)]
    ids: Vec<u64>,
}

#[derive(Args)]
struct RequeueArgs {
    /// Their numbers.
    ids: Vec<u64>,
    /// All that are dead.
    #[arg(long, conflicts_with = "ids")]
    all_dead: bool,
}

#[derive(Args)]
struct MoveArgs {
    /// Their numbers.
    #[arg(required = true)]
    ids: Vec<u64>,
    #[command(flatten)]
    to: To,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct To {
    /// Before all others.
    #[arg(long)]
    first: bool,
    /// Behind all others.
    #[arg(long)]
    last: bool,
    /// To any worker.
    #[arg(long)]
    anywhere: bool,
    /// To these workers only.
    #[arg(long, value_delimiter = ',')]
    hosts: Vec<String>,
    /// To another archive.
    #[arg(long)]
    archive_id: Option<u32>,
}

#[derive(Args)]
struct ImportArgs {
    /// A file; standard input if there is none.
    file: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &QueueArgs) -> Result<()> {
    match &args.command {
        QueueCommand::List(args) => list(args),
        QueueCommand::Show { id, json } => show(*id, *json),
        QueueCommand::Cancel(which) => change(HsmOp::Cancel(which.which())),
        QueueCommand::Hold(which) => change(HsmOp::Hold(which.which())),
        QueueCommand::Requeue(args) => requeue(args),
        QueueCommand::Dead { json } => {
            let state = Some("dead".to_owned());
            print(&List { state, ..List::default() }, None, *json)
        }
        QueueCommand::Move(args) => {
            change(HsmOp::Move(Move { ids: args.ids.clone(), to: args.to.place() }))
        }
        QueueCommand::Lock(args) => change(HsmOp::Lock(args.lock())),
        QueueCommand::Unlock(args) => change(HsmOp::Unlock(args.lock())),
        QueueCommand::Drain(args) => lock::drain(args),
        QueueCommand::Drop { worker } => change(HsmOp::Drop(Drop { worker: worker.clone() })),
        QueueCommand::Import(args) => import(args),
        QueueCommand::Status(args) => status::run(args),
    }
}

impl WhichArgs {
    fn which(&self) -> Which {
        Which { ids: self.ids.clone() }
    }
}

impl To {
    fn place(&self) -> Place {
        match self.archive_id {
            Some(id) => Place::Archive(id),
            None if self.first => Place::First,
            None if self.last => Place::Last,
            None if self.anywhere => Place::Anywhere,
            None => Place::Hosts(self.hosts.clone()),
        }
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let wanted = List {
        state: args.state.clone(),
        kind: args.action.clone(),
        archive_id: args.archive_id,
        fid: args.fid.clone(),
        worker: args.worker.clone(),
        ..List::default()
    };
    print(&wanted, args.limit, args.json)
}

/// Asks page by page, so that a long queue can be listed while it is served.
fn print(wanted: &List, limit: Option<usize>, as_json: bool) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut left = limit.unwrap_or(usize::MAX);
    let mut wanted = wanted.clone();
    let mut n = 0;
    while left > 0 {
        wanted.limit = left.min(PAGE);
        let page: Listed = ask(HsmOp::List(wanted.clone()))?;
        for request in &page.requests {
            if as_json {
                writeln!(out, "{}", serde_json::to_string(request)?)?;
            } else {
                if n == 0 {
                    writeln!(
                        out,
                        "{:>8} {:<8} {:<8} {:>7} {:<24} {:>8} WORKER, DATA, ERROR",
                        "ID", "STATE", "ACTION", "ARCHIVE", "FID", "AGE"
                    )?;
                }
                print_line(&mut out, request)?;
            }
            n += 1;
        }
        left -= page.requests.len().min(left);
        match page.requests.last() {
            Some(last) if page.more => wanted.after = last.id,
            _ => break,
        }
    }
    out.flush()?;
    Ok(())
}

fn print_line(out: &mut impl io::Write, request: &Queued) -> Result<()> {
    let state =
        if request.blocked && request.state == "waiting" { "blocked" } else { &request.state };
    write!(
        out,
        "{:>8} {:<8} {:<8} {:>7} {:<24} {:>8}",
        request.id,
        state,
        request.action,
        request.archive_id,
        request.fid,
        age(request.received_ns),
    )?;
    if let Some(worker) = &request.worker {
        write!(out, " {worker}")?;
    }
    let data = BASE64.decode(&request.data_b64)?;
    if !data.is_empty() {
        write!(out, " \"{}\"", data.escape_ascii())?;
    }
    if let Some(error) = &request.error {
        write!(out, " {} failures: {error}", request.failures)?;
    }
    writeln!(out)?;
    Ok(())
}

/// Of a request, in its largest unit.
fn age(received_ns: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(received_ns / 1_000_000_000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn show(id: u64, as_json: bool) -> Result<()> {
    let Shown { request } = ask(HsmOp::Show(Which { ids: vec![id] }))?;
    if as_json {
        return json(&request);
    }
    let object = serde_json::to_value(&request)?;
    for (key, value) in object.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(text) => println!("{key:<12} {text}"),
            None => println!("{key:<12} {value}"),
        }
    }
    Ok(())
}

fn requeue(args: &RequeueArgs) -> Result<()> {
    if !args.all_dead {
        if args.ids.is_empty() {
            bail!(
                "nothing to requeue; give numbers (`lcap hsm queue dead` lists them) or --all-dead"
            );
        }
        return change(HsmOp::Requeue(Which { ids: args.ids.clone() }));
    }
    let state = Some("dead".to_owned());
    let mut wanted = List { state, limit: PAGE, ..List::default() };
    loop {
        let page: Listed = ask(HsmOp::List(wanted.clone()))?;
        let ids: Vec<u64> = page.requests.iter().map(|request| request.id).collect();
        let Some(&last) = ids.last() else { return Ok(()) };
        change(HsmOp::Requeue(Which { ids }))?;
        wanted.after = last;
    }
}

/// Says what could not be done; that is an error.
pub(super) fn change(op: HsmOp) -> Result<()> {
    let changed: Changed = ask(op)?;
    for (id, why) in &changed.refused {
        eprintln!("lcap: {id}: {why}");
    }
    if changed.refused.is_empty() {
        return Ok(());
    }
    bail!("{} done, {} refused", changed.changed, changed.refused.len())
}

fn import(args: &ImportArgs) -> Result<()> {
    let mut text = String::new();
    match &args.file {
        Some(path) => {
            let context = || format!("cannot read {}", path.display());
            text = std::fs::read_to_string(path).with_context(context)?;
        }
        None => {
            io::stdin().read_to_string(&mut text).context("standard input")?;
        }
    }
    let all = import_text(&text, ask)?;
    if args.json {
        json(&all)?;
    } else {
        println!(
            "{} enqueued, {} known already, {} cancelled and left out",
            all.enqueued, all.skipped, all.cancelled
        );
    }
    complain(&all)
}

/// Sends the text of `active_requests`, in pieces.
pub(super) fn import_text(text: &str, ask: impl Fn(HsmOp) -> Result<Imported>) -> Result<Imported> {
    let mut all = Imported::default();
    let (mut piece, mut first_line) = (String::new(), 1);
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        piece.push_str(line);
        piece.push('\n');
        if piece.len() >= PIECE_BYTES || at + 1 == lines.len() {
            let op = HsmOp::Import(Import { text: std::mem::take(&mut piece), first_line });
            let part = ask(op)?;
            all.enqueued += part.enqueued;
            all.skipped += part.skipped;
            all.cancelled += part.cancelled;
            all.bad_lines.extend(part.bad_lines);
            first_line = at + 2;
        }
    }
    Ok(all)
}

/// An error if there were lines that could not be used.
pub(super) fn complain(all: &Imported) -> Result<()> {
    if all.bad_lines.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = all.bad_lines.iter().take(10).map(ToString::to_string).collect();
    bail!("{} lines are no requests: line {}", all.bad_lines.len(), lines.join(", "))
}
