//! `lcap hsm tail`: events as they come, a line each.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::paths::Paths;
use super::watch::{Begin, Event, From, News, Watch};

#[derive(Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    from: From,
    /// Begin with all that is still kept, not with what comes now.
    #[arg(long)]
    from_beginning: bool,
    /// Begin with the actions that are there now (of lcapd).
    #[arg(long, conflicts_with_all = ["from_beginning", "redis"])]
    state: bool,
    /// End when all that is there was printed.
    #[arg(long, alias = "run-once")]
    once: bool,
    /// Only these actions and statuses (ARCHIVE, WAITING, PURGED, …).
    #[arg(long, value_name = "WORD", num_args = 1.., value_delimiter = ',')]
    show: Vec<String>,
    /// Not these actions and statuses; PURGED unless it is shown.
    #[arg(long, value_name = "WORD", num_args = 1.., value_delimiter = ',')]
    hide: Vec<String>,
    /// Print paths: a mount point of the file system, for lfs fid2path.
    #[arg(long, alias = "mountpoint", value_name = "DIR")]
    mount: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Which events are printed.
struct Choice {
    show: Vec<String>,
    hide: Vec<String>,
}

impl Choice {
    fn new(show: &[String], hide: &[String]) -> Self {
        let upper = |words: &[String]| words.iter().map(|w| w.to_uppercase()).collect::<Vec<_>>();
        let (show, mut hide) = (upper(show), upper(hide));
        let purged = "PURGED".to_owned();
        if !show.contains(&purged) {
            hide.push(purged);
        }
        Self { show, hide }
    }

    fn takes(&self, event: &Event) -> bool {
        let is_one_of = |words: &[String]| {
            words.iter().any(|word| *word == event.action || *word == event.status)
        };
        (self.show.is_empty() || is_one_of(&self.show)) && !is_one_of(&self.hide)
    }
}

pub(crate) fn run(args: &TailArgs) -> Result<()> {
    let begin = match (args.from_beginning, args.state) {
        (true, _) => Begin::Oldest,
        (_, true) => Begin::State,
        _ if args.once => Begin::Oldest,
        _ => Begin::Now,
    };
    let watch = Watch::start(&args.from, begin, !args.once)?;
    let choice = Choice::new(&args.show, &args.hide);
    let mut paths = args.mount.clone().map(Paths::new);
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut out = io::stdout().lock();
    let mut malformed = 0_u64;
    loop {
        let news = match watch.news.try_recv() {
            Ok(news) => news,
            Err(_) => {
                out.flush()?; // whoever reads a pipe sees a line when it comes
                let Ok(news) = watch.news.recv() else { break };
                news
            }
        };
        match news {
            News::Event(event) if choice.takes(&event) => {
                if args.json {
                    writeln!(out, "{}", event.json)?;
                } else {
                    let line = line(&event, paths.as_mut(), colour);
                    writeln!(out, "{line}")?;
                }
            }
            News::Event(_) | News::Stream { .. } => {}
            News::Malformed => malformed += 1,
            News::Trouble(Some(error)) if args.once => bail!("{}: {error}", watch.place),
            News::Trouble(Some(error)) => eprintln!("lcap: {}: {error}, waiting", watch.place),
            News::Trouble(None) => eprintln!("lcap: {}: goes on", watch.place),
        }
    }
    out.flush()?;
    if malformed > 0 {
        eprintln!("lcap: {malformed} entries are no events, passed over");
    }
    Ok(())
}

/// As hsm-stream-tail prints it. Without a mount point the FID stands where the path would.
fn line(event: &Event, paths: Option<&mut Paths>, colour: bool) -> String {
    let time = event.seconds.map_or_else(|| "N/A".to_owned(), local_time);
    let path = match paths {
        _ if event.fid.is_empty() => String::new(),
        Some(paths) => {
            paths.path(&event.fid).unwrap_or_else(|| format!("(path for {} not found)", event.fid))
        }
        None => event.fid.clone(),
    };
    let (mdt, action, status, id) = (&event.mdt, &event.action, &event.status, &event.id);
    if !colour {
        return format!("{time} [{mdt}] {action:<8} {status:<8} -> {path} (id: {id})");
    }
    let tint = match status.as_str() {
        "STARTED" => "\x1b[94m",
        "WAITING" => "\x1b[93m",
        "SUCCEED" => "\x1b[92m",
        "FAILED" | "CANCELED" => "\x1b[91m",
        "PURGED" => "\x1b[2m",
        _ => "",
    };
    format!(
        "{time} [{mdt}] {action:<8} {tint}{status:<8}\x1b[0m -> {path} \x1b[2m(id: {id})\x1b[0m"
    )
}

/// `2026-11-22 00:28:58`, in local time.
pub(super) fn local_time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let Ok(time) = Timestamp::from_second(seconds) else { return "N/A".to_owned() };
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use lcap_ffi::hsm_action::EventKind;

    use super::*;

    fn event(action: &str, status: &str, fid: &str) -> Event {
        Event {
            mdt: "elm-MDT0000".into(),
            kind: EventKind::Update,
            slot: None,
            key: String::new(),
            action: action.to_owned(),
            status: status.to_owned(),
            fid: fid.to_owned(),
            seconds: None,
            taken_ms: 0,
            id: "1795307338419-1".to_owned(),
            json: String::new(),
        }
    }

    #[test]
    fn lines_are_those_of_the_original() {
        let plain = |event| line(&event, None, false);
        assert_eq!(
            plain(event("ARCHIVE", "PURGED", "0x1:0x2:0x0")),
            "N/A [elm-MDT0000] ARCHIVE  PURGED   -> 0x1:0x2:0x0 (id: 1795307338419-1)"
        );
        assert_eq!(
            plain(event("RESTORE", "CANCELED", "")),
            "N/A [elm-MDT0000] RESTORE  CANCELED ->  (id: 1795307338419-1)"
        );
    }

    #[test]
    fn purges_are_hidden_unless_they_are_asked_for() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let cases = [
            (&[][..], &[][..], "ARCHIVE", "PURGED", false),
            (&["purged"], &[], "ARCHIVE", "PURGED", true),
            (&["purged"], &[], "ARCHIVE", "WAITING", false),
            (&["archive"], &[], "ARCHIVE", "WAITING", true),
            (&["archive"], &["waiting"], "ARCHIVE", "WAITING", false),
            (&[], &["restore"], "RESTORE", "STARTED", false),
        ];
        for (show, hide, action, status, want) in cases {
            let choice = Choice::new(&words(show), &words(hide));
            assert_eq!(choice.takes(&event(action, status, "")), want, "{show:?} {hide:?}");
        }
    }
}
