//! Placers: real modules in C, and a queue that does not wait for them.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use lcap_ffi::Fid;
use lcap_ffi::placer::{PlaceRequest, Placer};
use lcapd::hsm::movers::{Movers, Settings as MoverSettings};
use lcapd::hsm::placer::{Asker, kinds};
use lcapd::hsm::queue::{Arrival, Placing, Queue, Settings, WorkerSpec};
use lcapd::hsm::request::{Kind, Request, Source};
use lcapd::hsm::scheduler::Wants;
use lcapd::hsm::service::{Core, Handle, Job};
use lcapd::policy::Loader;
use lcapd::wake::Waker;

const NOW: Duration = Duration::from_secs(1000);
const LIMIT: Duration = Duration::from_secs(5);

fn module(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = dir.join("placer.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("../include"))
        .arg("-o")
        .arg(&out)
        .arg(root.join("tests/policies/placer.c"))
        .status()
        .expect("a C compiler");
    assert!(status.success());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&out, mode).unwrap();
    out
}

fn load(options: &str) -> Result<Placer, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = module(dir.path());
    let (copy, real) = Loader::default().checked_copy(path.to_str().unwrap()).unwrap();
    assert_eq!(real, path.canonicalize().unwrap());
    let options = CString::new(options).unwrap();
    Placer::load(&copy, &real, &options).map_err(|error| error.to_string())
}

#[test]
fn a_module_names_a_mover_or_none() {
    let mut placer = load("{}").unwrap();
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
        placer.place(&request, &movers).map_err(|error| error.raw_os_error())
    };
    assert_eq!(ask("to=far"), Ok(Some("far".to_owned())));
    assert_eq!(ask("many"), Ok(Some("m2".to_owned())));
    assert_eq!((ask(""), ask("to=")), (Ok(None), Ok(None)));
    assert_eq!(ask("fail"), Err(Some(libc::EIO)));
    assert!(load("{\"mode\": \"refuse\"}").unwrap_err().contains("refuses its options"));
}

#[test]
fn what_is_no_placer_is_refused() {
    let error = |path: &str| Loader::default().checked_copy(path).unwrap_err().to_string();
    assert!(error("./nowhere/placer.so").contains("nowhere"));
    let dir = tempfile::tempdir().unwrap();
    let path = module(dir.path());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&path, open).unwrap();
    assert!(error(path.to_str().unwrap()).contains("writable"));
    let text = dir.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    assert!(Placer::load(&text, &text, c"{}").unwrap_err().to_string().contains("text.so"));
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
            core.queue.hello(
                WorkerSpec {
                    name: name.into(),
                    kinds: Kind::ALL.to_vec(),
                    archive_ids: Vec::new(),
                    upcalls: true,
                    silence: None,
                    grace: NOW,
                },
                NOW,
            );
        }
        let (jobs_in, jobs) = unbounded();
        let (ask, mut asker) =
            Asker::new(load("{}").unwrap(), Handle::new(jobs_in, Waker::new().unwrap()));
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
fn a_module_that_hangs_holds_a_request_up_for_its_limit_only() {
    let mut stage = Stage::new();
    let (slow, next) = (stage.add(Kind::Restore, "hang"), stage.add(Kind::Restore, "to=m2"));
    assert_eq!(stage.take("m1", NOW + LIMIT - Duration::from_millis(1)), [0; 0]);
    assert_eq!(stage.core.queue.next_deadline(NOW), Some(NOW + LIMIT));
    assert_eq!(stage.take("m1", NOW + LIMIT), [slow, next], "anybody may have them now");
    assert_eq!(stage.core.queue.stats().unplaced, 2);
    // The answers come too late, and change nothing.
    (0..2).for_each(|_| stage.answered());
    assert_eq!(stage.take("m2", NOW + LIMIT), [0; 0]);
}
