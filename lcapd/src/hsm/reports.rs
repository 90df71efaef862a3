//! What happens to requests, in files that their users can read: a line for each event, with the words of
//! coordinatool.
//!
//! A request takes part if its data has `HINT=VALUE`; its file is `DIR/VALUE`. A file goes one to
//! two intervals after the last request of its value.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use tracing::{debug, warn};

use super::queue::{Event, Queue, State, What};
use super::request::{Kind, Request, tag_value};
use super::service::{Handle, Observer};

/// What a site has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the files are.
    pub dir: PathBuf,
    /// What stands before a value in the data, with its `=`.
    pub hint: String,
    /// How often files are looked after; never if zero.
    pub interval: Duration,
}

/// A file's name, and what is added to it.
pub type Line = (String, String);

/// The name of a request's file, if it has one.
fn value_of(request: &Request, hint: &str) -> Option<String> {
    let value = tag_value(&request.data, hint)?;
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let good = (1..=64).contains(&value.len()) && value.iter().all(plain);
    if !good {
        debug!(fid = %request.fid, "its report would have a name that is not allowed");
    }
    good.then(|| String::from_utf8_lossy(value).into_owned())
}

/// One line, without its end.
fn line_of(event: &Event) -> Option<String> {
    let fid = event.request.dfid;
    Some(match &event.what {
        What::New => format!("new {fid}"),
        What::Assigned(worker) => format!("assign {fid} {worker}"),
        What::Sent(worker) => format!("sent {fid} {worker}"),
        What::Cancelled { .. } => format!("cancel {fid}"),
        What::Done(_, errno) | What::Dead(errno) => format!("done {fid} {errno}"),
        What::Returned(_) | What::CancelRunning(_) | What::Retry(_) | What::Held(_) => return None,
    })
}

/// Sees what happens, on the queue's thread.
pub fn observer(hint: String, lines: Sender<Line>) -> Observer {
    Box::new(move |event, _| {
        if let Some(value) = value_of(&event.request, &hint)
            && let Some(line) = line_of(event)
        {
            let _ = lines.send((value, line));
        }
    })
}

/// Writes the files, on a thread of its own: they may be on a file system that hangs.
#[derive(Debug)]
pub struct Writer {
    /// What the site has chosen.
    pub settings: Settings,
    /// The queue.
    pub queue: Handle,
    /// Values and their lines.
    pub lines: Receiver<Line>,
    /// Set when lcapd stops.
    pub stop: Arc<AtomicBool>,
}

/// Both ends of what is to be written.
pub fn lines() -> (Sender<Line>, Receiver<Line>) {
    unbounded()
}

/// What a look at the queue gives: values that are in use, and lines on how far who waits is.
type Look = (BTreeSet<String>, Vec<Line>);

impl Writer {
    /// Until lcapd stops.
    pub fn run(&mut self) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.settings.dir);
        if let Err(error) = made {
            warn!(%error, dir = %self.settings.dir.display(), "no reports can be written");
        }
        // What the last lcapd left and nobody will end.
        let mut over: BTreeSet<String> = self.files();
        let mut next = Instant::now() + self.interval();
        while !self.stop.load(Ordering::Relaxed) {
            // So that the end of lcapd is seen.
            let until = next.min(Instant::now() + Duration::from_millis(500));
            match self.lines.recv_deadline(until) {
                Ok((value, line)) => self.write(&value, &line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next {
                next = Instant::now() + self.interval();
                over = self.tend(over);
            }
        }
    }

    /// Tells how far who waits is, and removes files of values that were over already the last time. Returns those that
    /// are over now.
    fn tend(&self, over: BTreeSet<String>) -> BTreeSet<String> {
        let Some((used, progress)) = self.look() else { return over };
        for (value, line) in progress {
            self.write(&value, &line);
        }
        for value in over.difference(&used) {
            let _ = fs::remove_file(self.settings.dir.join(value));
        }
        self.files().difference(&used).cloned().collect()
    }

    fn interval(&self) -> Duration {
        let interval = self.settings.interval;
        if interval.is_zero() { Duration::from_secs(365 * 86_400) } else { interval }
    }

    fn files(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.settings.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn look(&self) -> Option<Look> {
        let (answer, answered) = bounded(1);
        let hint = self.settings.hint.clone();
        self.queue.call(move |core, _| {
            let _ = answer.send(look(&core.queue, &hint));
        });
        answered.recv_timeout(Duration::from_secs(10)).ok()
    }

    fn write(&self, value: &str, line: &str) {
        let path = self.settings.dir.join(value);
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o644).open(&path)?;
            file.write_all(format!("{line}\n").as_bytes())
        };
        if let Err(error) = write() {
            warn!(%error, file = %path.display(), "cannot write a report");
        }
    }
}

/// Where everybody stands who waits: in the line of the kind and of the hosts that it is for.
fn look(queue: &Queue, hint: &str) -> Look {
    let mut used = BTreeSet::new();
    let mut lines: BTreeMap<(Kind, String), Vec<_>> = BTreeMap::new();
    for view in queue.iter() {
        let value = value_of(view.request, hint).filter(|_| *view.state != State::Dead);
        used.extend(value.clone());
        if *view.state == State::Waiting {
            let hosts = view.hosts.names().map(|names| names.join(","));
            let place = hosts.unwrap_or_else(|| "global_queue".to_owned());
            let line = lines.entry((view.request.kind, place)).or_default();
            line.push((view.order, view.request.dfid, value));
        }
    }
    let mut progress = Vec::new();
    for ((_, place), mut line) in lines {
        line.sort_by_key(|(order, ..)| *order);
        let total = line.len();
        for (at, (_, fid, value)) in (1..).zip(line) {
            if let Some(value) = value {
                progress.push((value, format!("progress {fid} {place} {at}/{total}")));
            }
        }
    }
    (used, progress)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use lcap_ffi::Fid;

    use super::*;
    use crate::hsm::movers::{Movers, Settings as MoverSettings};
    use crate::hsm::queue::{Arrival, Outcome, Settings as QueueSettings, WorkerSpec};
    use crate::hsm::request::Source;
    use crate::hsm::scheduler::Wants;
    use crate::hsm::service::{Core, Job};
    use crate::wake::Waker;

    fn restore(oid: u32, data: &str) -> Request {
        let fid = Fid { seq: 1, oid, ver: 0 };
        let mut request = Request::new(Source::Upcall, "l-MDTffff".into(), Kind::Restore, fid, 1);
        request.data = data.as_bytes().into();
        request
    }

    #[test]
    fn files_stay_while_somebody_uses_them_and_are_gone_two_looks_later() {
        let now = Duration::from_secs(1);
        let dir = tempfile::tempdir().unwrap();
        let (jobs, jobs_in) = unbounded::<Job>();
        let (_sender, lines) = lines();
        let writer = Writer {
            settings: Settings { dir: dir.path().into(), hint: "r=".into(), interval: now },
            queue: Handle::new(jobs, Waker::new().unwrap()),
            lines,
            stop: Arc::default(),
        };
        let movers = MoverSettings {
            fsname: "l".into(),
            heartbeat: now,
            grace: now,
            graces: BTreeMap::new(),
        };
        let queue = Queue::new(QueueSettings::default());
        let mut core =
            Core::new(queue, Movers::new(movers, 1), None, "l-MDTffff".into(), None, now);
        let mut over = BTreeSet::new();
        let mut tend = |core: &mut Core| {
            over = thread::scope(|scope| {
                let tending = scope.spawn(|| writer.tend(std::mem::take(&mut over)));
                jobs_in.recv().unwrap()(core, now);
                tending.join().unwrap()
            });
        };
        let file = dir.path().join("job-1");
        let lines = || fs::read_to_string(&file).unwrap().lines().count();
        let id = core.queue.admit(restore(1, "r=job-1"), Arrival::Sent, now).id();
        for n in 1..=3 {
            tend(&mut core);
            assert_eq!(lines(), n, "a line for each look");
        }
        core.queue.cancel(id, now);
        tend(&mut core);
        assert_eq!(lines(), 3);
        // Used again, elsewhere in the data, before it was gone.
        let id = core.queue.admit(restore(2, "x=1,r=job-1"), Arrival::Sent, now).id();
        tend(&mut core);
        assert_eq!(lines(), 4);
        core.queue.cancel(id, now);
        tend(&mut core);
        assert!(file.exists());
        tend(&mut core);
        assert!(!file.exists());
    }

    #[test]
    fn lines_are_those_of_coordinatool() {
        let now = Duration::from_secs(1);
        let mut queue = Queue::new(QueueSettings::default());
        let (sender, receiver) = lines();
        let mut observe = observer("r=".into(), sender);
        for (oid, data) in [(1, "r=job-1"), (2, "x=1,r=job-1"), (3, "xr=job-1"), (4, "r=../x")] {
            queue.admit(restore(oid, data), Arrival::Sent, now);
        }
        let (used, progress) = look(&queue, "r=");
        assert_eq!(used, BTreeSet::from(["job-1".to_owned()]));
        let at = |oid: u32, at: u32| format!("progress [0x1:{oid:#x}:0x0] global_queue {at}/4");
        let want: Vec<_> = [1, 2].map(|n| ("job-1".to_owned(), at(n, n))).to_vec();
        assert_eq!(progress, want);
        let spec = WorkerSpec {
            name: "m".into(),
            kinds: Kind::ALL.to_vec(),
            archive_ids: Vec::new(),
            upcalls: true,
            silence: None,
            grace: now,
        };
        queue.hello(spec, now);
        queue.take("m", &Wants::any(1), now);
        queue.done(1, "m", None, Outcome::Success, now);
        queue.cancel(2, now);
        for event in queue.take_events() {
            observe(&event, now);
        }
        let written: Vec<_> =
            receiver.try_iter().map(|(value, line)| value + ": " + &line).collect();
        let want = [
            "job-1: new [0x1:0x1:0x0]",
            "job-1: new [0x1:0x2:0x0]",
            "job-1: sent [0x1:0x1:0x0] m",
            "job-1: done [0x1:0x1:0x0] 0",
            "job-1: cancel [0x1:0x2:0x0]",
        ];
        assert_eq!(written, want);
    }
}
