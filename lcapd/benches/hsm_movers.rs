//! 100,000 archives with short data: taken in, handed out, done by one mover over a socket; and a million that
//! wait, and are there again after a restart.
//!
//!     cargo bench -p lcapd --bench hsm_movers [N [WAITING]]
//!
//! Each line is a process of its own, with a fresh directory. Memory is what the process grew by from the moment
//! at which the queue was empty until all requests waited in it, divided by their number: the queue's own, what
//! passes through, and what the allocator keeps.
#![allow(clippy::unwrap_used)] // a measurement: to panic is to fail

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use lcap_ffi::Fid;
use lcap_ffi::hsm::{ActionItem, HsmAction, ListBuilder, TO_THE_END};
use lcap_ffi::zmq_monitor::Watched;
use lcapclient::mover::MoverBuilder;
use lcapd::hsm::lustre::{FromLustre, ToLustre};
use lcapd::hsm::mover_socket::MoverSocket;
use lcapd::hsm::movers::{Movers, Settings};
use lcapd::hsm::queue::Queue;
use lcapd::hsm::service::{Clock, Core, Job, Service, router};
use lcapd::hsm::store::HsmStore;
use lcapd::security::Access;
use lcapd::wake::Waker;

/// As many items as a message of Lustre's has.
const PER_LIST: u64 = 50;
/// Lists that are under way, as in a pipe.
const UNDER_WAY: usize = 16;
/// Each line is measured so often.
const TIMES: usize = 3;

fn list(first: u64) -> Vec<u8> {
    let mut list = ListBuilder::new(b"lustre", 1, 0);
    for cookie in first..first + PER_LIST {
        let oid = u32::try_from(cookie & 0xffff_ffff).unwrap();
        let fid = Fid { seq: 0x2_0000_0402, oid, ver: 0 };
        let data = format!("tag={}", cookie % 7);
        let item = ActionItem {
            action: HsmAction::Archive.number(),
            fid,
            dfid: fid,
            offset: 0,
            length: TO_THE_END,
            cookie,
            gid: 0,
            data: data.as_bytes(),
        };
        list.push(&item).unwrap();
    }
    list.finish()
}

/// Seconds of CPU of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The queue's thread, and what it is spoken to by.
struct Stage {
    lists: Sender<FromLustre>,
    jobs: Sender<Job>,
    waker: Waker,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
    commits: Arc<AtomicU64>,
    endpoint: String,
    /// What Lustre would be told.
    _told: crossbeam_channel::Receiver<ToLustre>,
}

impl Stage {
    fn start(dir: &Path, store: Option<HsmStore>) -> Self {
        let endpoint = format!("ipc://{}/movers", dir.display());
        let context = zmq::Context::new();
        let socket = router(&context).unwrap();
        socket.bind(&endpoint).unwrap();
        let settings = Settings {
            fsname: "lustre".into(),
            heartbeat: Duration::from_secs(1),
            grace: Duration::from_secs(60),
            graces: Default::default(),
        };
        let mdt = settings.any_mdt();
        let queue = Queue::new(Default::default());
        let keep_alive = Some(Duration::from_secs(600));
        let now = Clock::default().now();
        let core = Core::new(queue, Movers::new(settings, 1), None, mdt, keep_alive, now);
        let (lists, from_lustre) = bounded(UNDER_WAY);
        let (to_lustre, told) = unbounded();
        let (jobs, jobs_in) = unbounded::<Job>();
        let (waker, stop) = (Waker::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let commits = Arc::new(AtomicU64::new(0));
        let (counted, mut store) = (Arc::clone(&commits), store);
        let mut service = Service {
            core,
            socket: Some(MoverSocket::new(Watched::from(socket), None, Access::default())),
            from_lustre,
            to_lustre,
            jobs: jobs_in,
            commit: Box::new(move |changes, marks| {
                counted.fetch_add(1, Ordering::Relaxed);
                match &mut store {
                    Some(store) => store.commit(changes, marks).map_err(|e| e.to_string()),
                    None => Ok(()),
                }
            }),
            waker: waker.clone(),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || service.run());
        Self { lists, jobs, waker, stop, thread, commits, endpoint, _told: told }
    }

    fn take_in(&self, n: u64) {
        for at in 0..n / PER_LIST {
            self.lists.send(FromLustre::List(list(at * PER_LIST + 1))).unwrap();
            self.waker.wake();
        }
        self.wait_for(n);
    }

    /// Until so many are in the queue, and everything is written down.
    fn wait_for(&self, want: u64) {
        loop {
            let (answer, answered) = unbounded();
            let job = move |core: &mut Core, _| {
                let n = core.queue.len() as u64;
                core.after_commit.push(Box::new(move || {
                    let _ = answer.send(n);
                }));
            };
            self.jobs.send(Box::new(job)).unwrap();
            self.waker.wake();
            if answered.recv().unwrap() == want {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.thread.join().unwrap();
        self.commits.load(Ordering::Relaxed)
    }
}

/// In and out.
fn through(n: u64, with_store: bool) {
    let dir = tempfile::tempdir().unwrap();
    let store = with_store.then(|| HsmStore::open(dir.path(), false).unwrap().0);
    let stage = Stage::start(dir.path(), store);
    stage.wait_for(0);
    let (memory, start, began) = (resident_kib(), Instant::now(), cpu());
    stage.take_in(n);
    let (taken, taken_cpu, full) = (start.elapsed(), cpu() - began, resident_kib());
    let mover = MoverBuilder::new().servers(&stage.endpoint).name("m1").window(4096);
    let mover = mover.connect().unwrap();
    for _ in 0..n {
        let action = mover.recv(None).unwrap().unwrap();
        mover.done(action.key(), 0);
    }
    mover.shut_down();
    stage.wait_for(0);
    let (wall, used) = (start.elapsed(), cpu() - began);
    println!(
        "{n} archives, {}: in {:.2} s ({taken_cpu:.2} s CPU), in and out {:.2} s ({used:.2} s CPU), \
         {} bytes a request, {} commits",
        if with_store { "store" } else { "no store" },
        taken.as_secs_f64(),
        wall.as_secs_f64(),
        (full.saturating_sub(memory)) * 1024 / n,
        stage.end(),
    );
}

/// In, where they stay.
fn enqueue(n: u64, dir: &Path) {
    let stage = Stage::start(dir, Some(HsmStore::open(dir, false).unwrap().0));
    stage.wait_for(0);
    let (memory, start, began) = (resident_kib(), Instant::now(), cpu());
    stage.take_in(n);
    let (taken, used, full) = (start.elapsed(), cpu() - began, resident_kib());
    let commits = stage.end();
    let file = std::fs::metadata(dir.join("hsm.redb")).unwrap().len();
    println!(
        "{n} archives that wait, store: in {:.2} s ({used:.2} s CPU), {} bytes a request, \
         {commits} commits, hsm.redb {} MiB",
        taken.as_secs_f64(),
        (full.saturating_sub(memory)) * 1024 / n,
        file >> 20,
    );
}

/// There again.
fn recover(n: u64, dir: &Path) {
    let (memory, start, began) = (resident_kib(), Instant::now(), cpu());
    let (_store, loaded) = HsmStore::open(dir, false).unwrap();
    let now = Clock::default().now();
    let queue = Queue::recover(Default::default(), loaded.meta, loaded.requests, now);
    assert_eq!(queue.len() as u64, n);
    println!(
        "{n} archives that waited: there again after {:.2} s ({:.2} s CPU), {} bytes a request",
        start.elapsed().as_secs_f64(),
        cpu() - began,
        (resident_kib().saturating_sub(memory)) * 1024 / n,
    );
}

/// One line, by a process of its own.
fn line(what: &str, n: u64, dir: &Path) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = command.arg(what).arg(n.to_string()).arg(dir).status().unwrap();
    assert!(status.success(), "{what}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [what, n, dir] = &args[..] {
        let (n, dir) = (n.parse().unwrap(), Path::new(dir));
        return match what.as_str() {
            "through" => through(n, false),
            "stored" => through(n, true),
            "enqueue" => enqueue(n, dir),
            "recover" => recover(n, dir),
            what => panic!("no line is called {what}"),
        };
    }
    let mut numbers = args.iter().map(|arg| arg.parse::<u64>().unwrap() / PER_LIST * PER_LIST);
    let n = numbers.next().unwrap_or(100_000);
    let waiting = numbers.next().unwrap_or(1_000_000);
    for _ in 0..TIMES {
        for what in ["through", "stored"] {
            line(what, n, Path::new("."));
        }
        let dir = tempfile::tempdir().unwrap();
        for what in ["enqueue", "recover"] {
            line(what, waiting, dir.path());
        }
    }
}
