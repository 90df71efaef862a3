//! Placers: real modules in C, and a queue that does not wait for them.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use lcap_ffi::Fid;
use lcap_ffi::placer::{PlaceRequest, Placer, Plan};
use lcapd::hsm::movers::{Movers, Settings as MoverSettings};
use lcapd::hsm::placer::{Asker, kinds};
use lcapd::hsm::queue::{Arrival, Move, Placing, Queue, Settings, WorkerSpec};
use lcapd::hsm::request::{Kind, Request, Source};
use lcapd::hsm::scheduler::Wants;
use lcapd::hsm::service::{Core, Handle, Job};
use lcapd::policy::Loader;
use lcapd::wake::Waker;

const NOW: Duration = Duration::from_secs(1000);
const LIMIT: Duration = Duration::from_secs(5);

fn module(dir: &Path, old: bool) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = dir.join("placer.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("../include"))
        .arg("-o")
        .arg(&out)
        .arg(root.join("tests/policies/placer.c"))
        .args(old.then_some("-DOLD"))
        .status()
        .expect("a C compiler");
    assert!(status.success());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&out, mode).unwrap();
    out
}

fn load(options: &str, old: bool) -> Result<Placer, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = module(dir.path(), old);
    let (copy, real) = Loader::default().checked_copy(path.to_str().unwrap()).unwrap();
    assert_eq!(real, path.canonicalize().unwrap());
    let options = CString::new(options).unwrap();
    Placer::load(&copy, &real, &options).map_err(|error| error.to_string())
}

#[test]
fn a_module_names_a_mover_or_none_and_a_turn() {
    for old in [true, false] {
        let mut placer = load("{}", old).unwrap();
        let movers = ["m1", "m2"].map(|name| CString::new(name).unwrap());
        let mut ask = |data: &str| {
            let request = PlaceRequest {
                action: 21,
                archive_id: 1,
                flags: 0,
                fid: Fid { seq: 1, oid: 2, ver: 3 },
                owner: [u32::MAX; 3],
                data: data.as_bytes().into(),
                fsname: c"l".into(),
            };
            placer.plan(&request, &movers).map_err(|error| error.raw_os_error())
        };
        let to = |host: &str| Ok(Plan { host: Some(host.to_owned()), rank: 0 });
        assert_eq!((ask("to=far"), ask("many")), (to("far"), to("m2")));
        assert_eq!((ask(""), ask("to=")), (Ok(Plan::default()), Ok(Plan::default())));
        assert_eq!((ask("fail"), ask("odd")), (Err(Some(libc::EIO)), Err(Some(libc::EINVAL))));
        let rank = if old { 0 } else { -7 };
        assert_eq!(ask("rank=-7"), Ok(Plan { host: None, rank }));
    }
    assert!(load("{\"mode\": \"refuse\"}", false).unwrap_err().contains("refuses its options"));
}

#[test]
fn what_is_no_placer_is_refused() {
    let error = |path: &str| Loader::default().checked_copy(path).unwrap_err().to_string();
    assert!(error("./nowhere/placer.so").contains("nowhere"));
    let dir = tempfile::tempdir().unwrap();
    let path = module(dir.path(), false);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&path, open).unwrap();
    assert!(error(path.to_str().unwrap()).contains("writable"));
    let text = dir.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    assert!(Placer::load(&text, &text, c"{}").unwrap_err().to_string().contains("text.so"));
}

fn worker(name: &str) -> WorkerSpec {
    WorkerSpec {
        name: name.into(),
        kinds: Kind::ALL.to_vec(),
        archive_ids: Vec::new(),
        upcalls: true,
        silence: None,
        grace: NOW,
    }
}

/// A queue, a module on its thread, and what that thread has the queue do.
struct Stage {
    core: Core,
    jobs: Receiver<Job>,
}

impl Stage {
    fn new() -> Self {
        let placing = Placing { kinds: kinds(&[Kind::Restore]), limit: LIMIT };
        let queue = Queue::new(Settings { placing: Some(placing), ..Settings::default() });
        let movers = MoverSettings {
            fsname: "l".into(),
            heartbeat: NOW,
            grace: NOW,
            graces: BTreeMap::new(),
        };
        let movers = Movers::new(movers, 1);
        let mut core = Core::new(queue, movers, None, "l-MDTffff".into(), None, NOW);
        for name in ["m1", "m2"] {
            core.queue.hello(worker(name), NOW);
        }
        let (jobs_in, jobs) = unbounded();
        let (ask, mut asker) =
            Asker::new(load("{}", false).unwrap(), Handle::new(jobs_in, Waker::new().unwrap()));
        core.placer = Some(ask);
        std::thread::spawn(move || asker.run());
        Self { core, jobs }
    }

    fn add(&mut self, kind: Kind, data: &str) -> u64 {
        let oid = u32::try_from(self.core.queue.len()).unwrap() + 1;
        let fid = Fid { seq: 1, oid, ver: 0 };
        let mut request = Request::new(Source::Upcall, "l-MDTffff".into(), kind, fid, 1);
        request.data = data.as_bytes().into();
        let id = self.core.queue.admit(request, Arrival::Sent, NOW).id();
        self.core.settle(NOW);
        id
    }

    fn answered(&mut self) {
        let job = self.jobs.recv_timeout(Duration::from_secs(60)).unwrap();
        job(&mut self.core, NOW);
    }

    fn take(&mut self, worker: &str, now: Duration) -> Vec<u64> {
        self.core.queue.tick(now);
        let taken = self.core.queue.take(worker, &Wants::any(9), now);
        taken.into_iter().map(|assignment| assignment.id).collect()
    }
}

#[test]
fn a_request_waits_for_the_answer_and_goes_where_it_says() {
    let mut stage = Stage::new();
    let (far, any) = (stage.add(Kind::Restore, "to=m2"), stage.add(Kind::Restore, ""));
    let failed = stage.add(Kind::Restore, "fail");
    // Nobody is asked about an archive.
    let archive = stage.add(Kind::Archive, "to=m2");
    assert_eq!(stage.take("m1", NOW), [archive]);
    (0..3).for_each(|_| stage.answered());
    assert_eq!(stage.take("m1", NOW), [any, failed]);
    assert_eq!(stage.take("m2", NOW), [far]);
}

#[test]
fn those_of_a_lower_rank_go_first_also_after_a_restart() {
    let mut stage = Stage::new();
    let ids: Vec<u64> = ["rank=5", "", "rank=-2", "rank=5", "rank=2147483647"]
        .map(|data| stage.add(Kind::Restore, data))
        .to_vec();
    (0..5).for_each(|_| stage.answered());
    let changes = stage.core.queue.take_changes().unwrap();
    let saved = changes.requests.into_iter().filter_map(|(id, saved)| Some((id, saved?)));
    let mut again = Queue::recover(Settings::default(), changes.meta, saved, NOW);
    for queue in [&mut stage.core.queue, &mut again] {
        queue.hello(worker("m1"), NOW);
        queue.move_to(ids[4], Move::First, NOW).unwrap();
        let taken: Vec<u64> = queue.take("m1", &Wants::any(9), NOW).iter().map(|a| a.id).collect();
        assert_eq!(taken, [ids[4], ids[2], ids[1], ids[0], ids[3]]);
    }
}

#[test]
fn a_module_that_hangs_holds_a_request_up_for_its_limit_only() {
    let mut stage = Stage::new();
    let (slow, next) = (stage.add(Kind::Restore, "hang"), stage.add(Kind::Restore, "to=m2"));
    assert_eq!(stage.take("m1", NOW + LIMIT - Duration::from_millis(1)), [0; 0]);
    assert_eq!(stage.core.queue.next_deadline(NOW), Some(NOW + LIMIT));
    assert_eq!(stage.take("m1", NOW + LIMIT), [slow, next], "anybody may have them now");
    assert_eq!(stage.core.queue.stats().unplaced, 2);
    // Nor does anybody wait for it who comes now.
    stage.core.settle(NOW + LIMIT);
    let id = stage.add(Kind::Restore, "to=m2");
    assert_eq!(stage.take("m1", NOW + LIMIT), [id]);
    // The answers come too late, and change nothing.
    (0..2).for_each(|_| stage.answered());
    assert_eq!(stage.take("m2", NOW + LIMIT), [0; 0]);
    // It answers again, and so it is asked again.
    let placed = stage.add(Kind::Restore, "to=m2");
    assert_eq!(stage.take("m1", NOW), [0; 0]);
    stage.answered();
    assert_eq!((stage.take("m1", NOW), stage.take("m2", NOW)), (vec![], vec![placed]));
}
