//! 100,000 archives with short data: taken in, handed out, done by one mover over a socket.
//!
//!     cargo bench -p lcapd --bench hsm_movers [N]
//!
//! Once without a store and once with it, in fresh directories. Memory is what the process grew by
//! while the requests came in.
#![allow(clippy::unwrap_used)] // a measurement: to panic is to fail

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use lcap_ffi::Fid;
use lcap_ffi::hsm::{ActionItem, HsmAction, ListBuilder, TO_THE_END};
use lcapclient::mover::MoverBuilder;
use lcapd::hsm::lustre::FromLustre;
use lcapd::hsm::movers::{Movers, Settings};
use lcapd::hsm::queue::Queue;
use lcapd::hsm::service::{Clock, Core, Service, router};
use lcapd::hsm::store::HsmStore;
use lcapd::wake::Waker;

/// As many items as a message of Lustre's has.
const PER_LIST: u64 = 50;

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

fn run(n: u64, with_store: bool) {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}/movers", dir.path().display());
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
    let core = Core::new(queue, Movers::new(settings, 1), None, mdt, None, Clock::default().now());
    let (lists, from_lustre) = unbounded();
    let (to_lustre, _told) = unbounded();
    let (jobs_in, jobs) = unbounded::<lcapd::hsm::service::Job>();
    let (waker, stop) = (Waker::new().unwrap(), Arc::new(AtomicBool::new(false)));
    let mut store = with_store.then(|| HsmStore::open(dir.path(), false).unwrap().0);
    let commits = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&commits);
    let mut service = Service {
        core,
        socket: Some(socket),
        from_lustre,
        to_lustre,
        jobs,
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
    let all: Vec<Vec<u8>> = (0..n / PER_LIST).map(|at| list(at * PER_LIST + 1)).collect();
    let waiting = |what: &str, want: u64| {
        // The queue's length, asked of its thread.
        loop {
            let (answer, answered) = unbounded();
            let job = move |core: &mut Core, _| {
                let _ = answer.send(core.queue.len() as u64);
            };
            jobs_in.send(Box::new(job)).unwrap();
            waker.wake();
            if answered.recv().unwrap() == want {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
            let _ = what;
        }
    };
    let (memory, start, began) = (resident_kib(), Instant::now(), cpu());
    for list in all {
        lists.send(FromLustre::List(list)).unwrap();
        waker.wake();
    }
    waiting("taken in", n);
    let (taken, taken_cpu, full) = (start.elapsed(), cpu() - began, resident_kib());
    let mover = MoverBuilder::new().servers(&endpoint).name("m1").window(4096).connect().unwrap();
    let mut left = n;
    while left > 0 {
        let action = mover.recv(None).unwrap().unwrap();
        mover.done(action.key(), 0);
        left -= 1;
    }
    mover.shut_down();
    waiting("done", 0);
    let (wall, used) = (start.elapsed(), cpu() - began);
    stop.store(true, Ordering::Relaxed);
    waker.wake();
    thread.join().unwrap();
    println!(
        "{n} archives, {}: in {:.2} s ({taken_cpu:.2} s CPU), in and out {:.2} s ({used:.2} s CPU), \
         {} bytes a request, {} commits",
        if with_store { "store" } else { "no store" },
        taken.as_secs_f64(),
        wall.as_secs_f64(),
        (full.saturating_sub(memory)) * 1024 / n,
        commits.load(Ordering::Relaxed),
    );
}

fn main() {
    let n = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    let n = n / PER_LIST * PER_LIST;
    run(n, false);
    run(n, true);
}
