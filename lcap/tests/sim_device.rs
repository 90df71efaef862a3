//! The simulated device of `lcap sim` against what the real one was seen to do, and the source
//! `device:` and `lcap record` against it.
//!
//! These need root and /dev/fuse, and fail without.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test from end to end

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lcap::record::RecordArgs;
use lcap::sim::SimArgs;
use lcap_ffi::device::{FOLLOW, NID_BE, poll, poll_any, set_flags, set_nonblocking};
use lcap_ffi::{MdtName, RecordIndex, record};
use lcapd::actions::Journal;
use lcapd::actions::place::ListPlace;
use lcapd::actions::scan::scan;
use lcapd::source::sim::{Generator, GeneratorOptions};
use lcapd::source::{
    ChangelogSource, ClearError, MIN_READ_BYTES, ReadOutcome, SourceError, SourceUri, Upstream,
    WaitFor,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn mdt() -> MdtName {
    "lustre-MDT0000".parse().unwrap()
}

fn ix(n: u64) -> RecordIndex {
    RecordIndex::new(n)
}

/// A mounted simulation; unmounted at the end of its life.
struct Sim {
    dir: tempfile::TempDir,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Sim {
    fn mount(change: impl FnOnce(&mut SimArgs)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(dir.path().metadata().unwrap().uid(), 0, "this test needs root");
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse");
        let mut args = SimArgs {
            mount: dir.path().to_owned(),
            mdts: vec![mdt()],
            rate: None,
            records: Some(3000),
            seed: 0,
            gaps: None,
            actions: None,
            failover: None,
            users: 2,
            scan_ms: 5,
            state: None,
        };
        change(&mut args);
        let simulation = lcap::sim::mount(&args).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || simulation.serve(stopped.as_fd()).unwrap());
        Self { dir, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("changelog-lustre-MDT0000")
    }

    fn open(&self, flags: i32) -> File {
        OpenOptions::new().read(true).custom_flags(flags).open(self.path()).unwrap()
    }

    fn command(&self, text: &[u8]) -> Result<(), i32> {
        let mut file = OpenOptions::new().write(true).open(self.path()).unwrap();
        match file.write(text) {
            Ok(n) => {
                assert_eq!(n, text.len());
                Ok(())
            }
            Err(e) => Err(e.raw_os_error().unwrap()),
        }
    }

    fn upstream(&self, user: &str) -> Arc<dyn Upstream> {
        let uri: SourceUri = format!("device:{}", self.dir.path().display()).parse().unwrap();
        uri.upstream(&mdt(), Some(user), Path::new("/nowhere")).unwrap()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || std::thread::panicking(), "the server failed");
        }
    }
}

/// The simulation's first `n` records.
fn generated(n: u64) -> Vec<u8> {
    let mut all = Vec::with_capacity(4 << 20);
    assert_eq!(Generator::new(GeneratorOptions::default()).fill(&mut all, n), n);
    all
}

fn indexes(bytes: &[u8]) -> Vec<u64> {
    record::records(bytes).map(|r| r.unwrap().index().get()).collect()
}

fn read_some(file: &mut File, size: usize) -> Result<Vec<u8>, i32> {
    let mut buf = vec![0; size];
    match file.read(&mut buf) {
        Ok(n) => {
            buf.truncate(n);
            Ok(buf)
        }
        Err(e) => Err(e.raw_os_error().unwrap()),
    }
}

/// Waits as the source says.
fn wait(on: WaitFor) {
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    let (fd, timeout) = match on {
        WaitFor::Readable(fd) => (fd, PATIENCE),
        WaitFor::ReadableUntil(fd, until) => (fd, left(until).min(PATIENCE)),
        WaitFor::Until(until) => (-1, left(until)),
        WaitFor::Never => panic!("a device never says never"),
    };
    poll_any([fd], Some(timeout)).unwrap();
}

/// Reads, waiting as the source says, until it is at the end.
fn read_to_end(source: &mut dyn ChangelogSource) -> Result<Vec<u8>, SourceError> {
    let give_up = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    loop {
        assert!(Instant::now() < give_up, "no end after {} bytes", all.len());
        let mut buf = Vec::with_capacity(MIN_READ_BYTES);
        match source.read(&mut buf)? {
            ReadOutcome::Bytes(_) => all.extend_from_slice(&buf),
            ReadOutcome::Wait { at_end: true, .. } => return Ok(all),
            ReadOutcome::Wait { on, .. } => wait(on),
            ReadOutcome::Ended | ReadOutcome::Lost { .. } => {
                panic!("a following descriptor does not end")
            }
        }
    }
}

#[test]
fn the_source_reads_what_the_device_has_from_any_index() {
    let sim = Sim::mount(|_| {});
    let all = generated(3000);
    for from in [0, 1, 2, 1500, 3000, 3001, 9999] {
        let mut source = sim.upstream("cl1").open(ix(from)).unwrap();
        let got = read_to_end(&mut *source).unwrap();
        assert!(all.ends_with(&got), "from {from}");
        let n_before = usize::try_from(from.clamp(1, 3001)).unwrap() - 1;
        assert_eq!(indexes(&got).len(), 3000 - n_before, "from {from}");
    }
}

#[test]
fn clears_by_the_source_reach_the_device_and_its_answers_are_understood() {
    let state = tempfile::tempdir().unwrap();
    let keep = |args: &mut SimArgs| args.state = Some(state.path().to_owned());
    let sim = Sim::mount(keep);
    let (one, two) = (sim.upstream("cl1"), sim.upstream("cl2-robinhood"));
    one.clear(ix(1000)).unwrap();
    one.clear(ix(1000)).unwrap();
    two.clear(ix(900)).unwrap();
    assert!(matches!(one.clear(ix(999)), Err(ClearError::NoUser { .. })));
    assert!(matches!(one.clear(ix(3001)), Err(ClearError::OutOfRange(_))));
    assert!(matches!(one.clear(ix(0)), Err(ClearError::OutOfRange(_))));
    assert!(matches!(sim.upstream("cl3").clear(ix(5)), Err(ClearError::NoUser { .. })));
    drop(sim);
    assert!(matches!(one.clear(ix(1001)), Err(ClearError::Retry { .. })), "it is away");
    assert!(one.open(ix(1)).is_err());

    let sim = Sim::mount(keep);
    let got = read_to_end(&mut *sim.upstream("cl1").open(ix(1)).unwrap()).unwrap();
    assert_eq!(indexes(&got)[0], 901, "the slowest user decides, also after a restart");
}

#[test]
fn an_eviction_is_an_error_and_a_new_descriptor_goes_on() {
    let sim = Sim::mount(|_| {});
    let upstream = sim.upstream("cl1");
    let mut source = upstream.open(ix(1)).unwrap();
    let mut buf = Vec::with_capacity(MIN_READ_BYTES);
    while buf.is_empty() {
        if let ReadOutcome::Wait { on, .. } = source.read(&mut buf).unwrap() {
            wait(on);
        }
    }
    let last = *indexes(&buf).last().unwrap();
    sim.command(b"sim:evict").unwrap();
    for _ in 0..3 {
        let SourceError::Io { source: reason, .. } = source.read(&mut buf).unwrap_err() else {
            panic!("another error")
        };
        assert_eq!(reason.raw_os_error(), Some(libc::EIO));
    }
    let rest = read_to_end(&mut *upstream.open(ix(last + 1)).unwrap()).unwrap();
    assert_eq!(indexes(&rest), (last + 1..=3000).collect::<Vec<_>>());
}

#[test]
fn a_following_source_gets_each_record_not_before_it_is_made() {
    let sim = Sim::mount(|args| {
        args.rate = Some("100".parse().unwrap());
        args.records = Some(30);
        args.scan_ms = 0;
    });
    let mut source = sim.upstream("cl1").open(ix(1)).unwrap();
    let (mut n_seen, mut n_waits) = (0, 0);
    while n_seen < 30 {
        let mut buf = Vec::with_capacity(MIN_READ_BYTES);
        match source.read(&mut buf).unwrap() {
            ReadOutcome::Wait { on, .. } => {
                n_waits += 1;
                wait(on);
            }
            _ => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                for record in record::records(&buf) {
                    let record = record.unwrap();
                    n_seen += 1;
                    assert_eq!(record.index(), ix(n_seen));
                    let made = Duration::new(record.seconds(), record.nanoseconds());
                    // The two clocks may drift apart by a little.
                    assert!(now + Duration::from_millis(5) >= made, "record {n_seen} is early");
                }
            }
        }
    }
    assert!(n_waits > 5);
    source.ask_end();
    assert_eq!(read_to_end(&mut *source).unwrap(), b"");
}

#[test]
fn a_read_gives_whole_records_and_nothing_if_the_first_does_not_fit() {
    let sim = Sim::mount(|_| {});
    let all = generated(3000);
    let mut file = sim.open(0);
    let mut got = Vec::new();
    while got.len() < all.len() {
        let (size, _) = record::split_len(&all[got.len()..]).unwrap();
        assert_eq!(read_some(&mut file, size - 1).unwrap(), b"", "too small a buffer");
        let some = read_some(&mut file, 5000).unwrap();
        assert!(some.len() >= size);
        got.extend_from_slice(&some);
        assert_eq!(indexes(&got).len(), record::records(&got).count());
    }
    assert_eq!(got, all);
    let mut large = sim.open(0);
    let some = read_some(&mut large, 1 << 20).unwrap();
    assert_eq!(indexes(&some).len(), 1024, "the kernel's queue holds no more");
}

#[test]
fn the_end_stays_for_a_descriptor_that_does_not_follow() {
    let sim = Sim::mount(|args| {
        args.rate = Some("50".parse().unwrap());
        args.scan_ms = 0;
    });
    let mut file = sim.open(0);
    while !read_some(&mut file, 4096).unwrap().is_empty() {}
    // More comes, which another descriptor sees.
    let next = {
        let mut other = sim.open(0);
        set_flags(other.as_fd(), FOLLOW).unwrap();
        let first = read_some(&mut other, 4096).unwrap();
        let n = indexes(&first).len();
        let more = read_some(&mut other, 4096).unwrap(); // waits for it
        indexes(&first)[n - 1].max(*indexes(&more).last().unwrap())
    };
    assert!(next > 1);
    assert_eq!(read_some(&mut file, 4096).unwrap(), b"");
    set_flags(file.as_fd(), FOLLOW).unwrap();
    assert_eq!(read_some(&mut file, 4096).unwrap(), b"", "too late to follow");
    assert!(poll(file.as_fd(), Duration::ZERO).unwrap().hung_up);
}

#[test]
fn without_blocking_nothing_comes_before_the_first_poll() {
    let sim = Sim::mount(|_| {});
    let mut file = sim.open(libc::O_NONBLOCK);
    for _ in 0..3 {
        assert_eq!(read_some(&mut file, 4096), Err(libc::EAGAIN));
    }
    assert!(poll(file.as_fd(), PATIENCE).unwrap().readable);
    assert_eq!(indexes(&read_some(&mut file, 4096).unwrap())[0], 1);
}

#[test]
fn nid_be_alone_is_not_follow() {
    let sim = Sim::mount(|args| args.records = Some(3));
    let mut file = sim.open(0);
    set_flags(file.as_fd(), NID_BE).unwrap();
    assert_eq!(indexes(&read_some(&mut file, 4096).unwrap()), [1, 2, 3]);
    assert_eq!(read_some(&mut file, 4096).unwrap(), b"");

    let mut file = sim.open(libc::O_NONBLOCK);
    set_flags(file.as_fd(), FOLLOW | NID_BE).unwrap();
    assert!(poll(file.as_fd(), Duration::ZERO).unwrap().readable);
    read_some(&mut file, 4096).unwrap();
    assert_eq!(read_some(&mut file, 4096), Err(libc::EAGAIN));
    assert!(!poll(file.as_fd(), Duration::ZERO).unwrap().any());
}

#[test]
fn a_position_is_an_index() {
    let sim = Sim::mount(|_| {});
    sim.command(b"clear:cl1:100").unwrap();
    sim.command(b"clear:cl2:100").unwrap();
    for (what, at, first) in [
        ("the start", 0, Some(101)),
        ("below the first live one", 7, Some(101)),
        ("an index", 2000, Some(2000)),
        ("past the end", 3001, None),
    ] {
        let mut file = sim.open(0);
        file.seek(SeekFrom::Start(at)).unwrap();
        let got = read_some(&mut file, 4096).unwrap();
        assert_eq!(indexes(&got).first().copied(), first, "{what}");
    }
    let mut file = sim.open(0);
    file.seek(SeekFrom::Start(2000)).unwrap();
    read_some(&mut file, 4096).unwrap();
    file.seek(SeekFrom::Start(1999)).unwrap();
    assert_eq!(read_some(&mut file, 4096), Err(libc::EINVAL), "backwards");
}

#[test]
fn commands_are_answered_as_the_device_does() {
    let sim = Sim::mount(|_| {});
    for (command, want) in [
        (&b"clear:cl1:10"[..], Ok(())),
        (b"clear:cl1:10", Ok(())),
        (b"clear:cl1:11\n", Ok(())),
        (b"clear:cl1:12\0", Ok(())),
        (b"clear:cl1:13 and more", Ok(())),
        (b"clear:cl1:12", Err(libc::ENOENT)),
        (b"clear:cl3:20", Err(libc::ENOENT)),
        (b"clear:cl1:3001", Err(libc::EINVAL)),
        (b"clear:cl3-bob:20", Err(libc::EINVAL)),
        (b"clear:1:1", Err(libc::EINVAL)),
        (b"clear:cl1:", Err(libc::EINVAL)),
        (b"clear:cl1", Err(libc::EINVAL)),
        (b"rubbish", Err(libc::EINVAL)),
        (&[b' '; 65], Err(libc::EINVAL)),
    ] {
        assert_eq!(sim.command(command), want, "{}", String::from_utf8_lossy(command));
    }
    // 0x10 is taken as 0, and 0 as everything.
    sim.command(b"clear:cl2:0x10").unwrap();
    sim.command(b"clear:cl1:0").unwrap();
    assert_eq!(read_some(&mut sim.open(0), 4096).unwrap(), b"");
}

#[test]
fn ioctls_that_the_device_does_not_know_are_invalid() {
    let sim = Sim::mount(|_| {});
    let mut names: Vec<_> = fs::read_dir(sim.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["changelog-lustre-MDT0000"]);
    // A terminal's ioctl stands for any.
    use std::io::IsTerminal;
    assert!(!sim.open(0).is_terminal());
    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
}

/// Runs this test again in a process that blocks in a read for good, and kills it.
#[test]
fn a_process_that_waits_for_a_record_can_be_killed() {
    const PATH: &str = "LCAP_TEST_BLOCKED_PATH";
    if let Some(path) = std::env::var_os(PATH) {
        let mut file = File::open(path).unwrap();
        set_flags(file.as_fd(), FOLLOW).unwrap();
        read_some(&mut file, 1 << 16).unwrap();
        println!("\nabout to wait");
        let error = read_some(&mut file, 1 << 16); // nothing will come
        panic!("it did not wait: {error:?}");
    }
    let sim = Sim::mount(|args| args.records = Some(3));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_waits_for_a_record_can_be_killed", "--nocapture"])
        .env(PATH, sim.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == "about to wait"));
    let give_up = Instant::now() + PATIENCE;
    while !is_reading(child.id()) {
        assert!(Instant::now() < give_up);
        std::thread::yield_now();
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    // And the file is as good as before for others.
    assert_eq!(indexes(&read_some(&mut sim.open(0), 4096).unwrap()), [1, 2, 3]);
}

/// Whether a thread of that process is in a read of 64 KiB.
fn is_reading(pid: u32) -> bool {
    let call = format!("{} ", libc::SYS_read);
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().any(|task| {
        let now = fs::read_to_string(task.unwrap().path().join("syscall")).unwrap_or_default();
        now.starts_with(&call) && now.split(' ').nth(3) == Some("0x10000")
    })
}

#[test]
fn what_is_recorded_is_what_the_device_gave() {
    let sim = Sim::mount(|_| {});
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.clog");
    let args = RecordArgs {
        source: format!("device:{}", sim.dir.path().display()),
        mdt: Some(mdt()),
        output: trace.clone(),
        from: 11,
        records: None,
        until_end: true,
    };
    let (_stop, stopped) = UnixStream::pair().unwrap();
    assert_eq!(lcap::record::record(&args, stopped.as_fd()).unwrap(), 2990);
    let refused = lcap::record::record(&args, stopped.as_fd()).unwrap_err();
    assert!(format!("{refused:#}").contains("File exists"), "{refused:#}");

    let state = tempfile::tempdir().unwrap();
    let uri: SourceUri = format!("replay:{}", trace.display()).parse().unwrap();
    let replay = uri.upstream(&mdt(), None, state.path()).unwrap();
    let mut got = Vec::with_capacity(4 << 20);
    replay.open(ix(0)).unwrap().read(&mut got).unwrap();
    assert!(generated(3000).ends_with(&got));
    assert_eq!(indexes(&got).len(), 2990);

    let some = RecordArgs {
        records: Some(1234),
        output: dir.path().join("some.clog"),
        source: uri.to_string(),
        mdt: None,
        from: 0,
        until_end: false,
    };
    assert_eq!(lcap::record::record(&some, stopped.as_fd()).unwrap(), 1234);
}

#[test]
fn recording_stops_when_told() {
    let sim = Sim::mount(|args| args.records = Some(7));
    let dir = tempfile::tempdir().unwrap();
    let args = RecordArgs {
        source: format!("device:{}", sim.dir.path().display()),
        mdt: Some(mdt()),
        output: dir.path().join("trace.clog"),
        from: 0,
        records: None,
        until_end: false,
    };
    let (stop, stopped) = UnixStream::pair().unwrap();
    let output = args.output.clone();
    let recorder =
        std::thread::spawn(move || lcap::record::record(&args, stopped.as_fd()).unwrap());
    let give_up = Instant::now() + PATIENCE;
    // It has read all there is once they are in the file.
    while !lcapd::source::trace::Trace::open(&output).is_ok_and(|t| t.n_records() == 7) {
        assert!(Instant::now() < give_up);
        std::thread::yield_now();
    }
    drop(stop);
    assert_eq!(recorder.join().unwrap(), 7);
}

#[test]
fn blocking_can_be_changed_on_an_open_descriptor() {
    let sim = Sim::mount(|args| args.records = Some(2));
    let mut file = sim.open(0);
    set_flags(file.as_fd(), FOLLOW).unwrap();
    assert_eq!(indexes(&read_some(&mut file, 4096).unwrap()), [1, 2]);
    set_nonblocking(file.as_fd()).unwrap();
    assert_eq!(read_some(&mut file, 4096), Err(libc::EAGAIN));
}

#[test]
fn lists_of_hsm_actions_are_files_that_come_and_go() {
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let sim = Sim::mount(|args| args.actions = std::num::NonZeroU64::new(400));
    assert_eq!(names(sim.dir.path()), ["changelog-lustre-MDT0000", "lustre-MDT0000"]);
    let hsm = sim.dir.path().join("lustre-MDT0000/hsm");
    assert_eq!(names(&hsm), ["actions"]);
    let text = fs::read_to_string(hsm.join("actions")).unwrap();
    assert_eq!(text.lines().count(), 400);
    let line = |line: &str| lcap_ffi::hsm_action::line::ActionLine::parse(line.as_bytes()).is_ok();
    assert!(text.lines().all(line), "{text}");
    assert!(fs::write(hsm.join("actions"), "x").is_err());
    // Whoever reads it in pieces reads one list.
    let mut pieces = File::open(hsm.join("actions")).unwrap();
    let mut last = [0; 1000];
    let n = (0..).map(|_| pieces.read(&mut last).unwrap()).take_while(|n| *n > 0).sum::<usize>();
    assert!(n >= 400 * 100 && text.len().abs_diff(n) < 2000, "{n}");
    // lcapd reads it as it reads those of a kernel.
    let place = ListPlace::of_pattern(&sim.dir.path().join("*-MDT????/hsm/actions"), &mdt());
    let journal = tempfile::tempdir().unwrap();
    let journal = Journal::open(journal.path(), 1_000_000).unwrap();
    let list = place.open().unwrap().unwrap();
    let found = scan(list, journal.writer(), lcapd::actions::poller::now()).unwrap();
    assert_eq!((found.lines, found.bad_lines, journal.n_live()), (400, 0, 400));
    // The device beside it is as ever.
    assert!(File::open(sim.path()).unwrap().read(&mut [0; 4096]).unwrap() > 0);
    drop(sim);

    let sim = Sim::mount(|args| {
        args.actions = std::num::NonZeroU64::new(4);
        args.failover = std::num::NonZeroU64::new(1);
    });
    let path = sim.dir.path().join("lustre-MDT0000/hsm/actions");
    let deadline = Instant::now() + PATIENCE;
    let (mut here, mut away) = (false, false);
    while !(here && away) {
        assert!(Instant::now() < deadline);
        match fs::read_to_string(&path) {
            Ok(text) => {
                assert_eq!(text.lines().count(), 4);
                here = true;
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
                away = true;
            }
        }
    }
}
