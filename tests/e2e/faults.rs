//! What happens when processes die, stop, flood or fill the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lcap_tests::campaign::{Plan, run};
use lcap_tests::check::check;
use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_tests::disk::SmallDisk;
use lcap_tests::journal::{Journal, Line};
use lcap_wire::control::From;
use rustix::process::{Pid, Signal, kill_process};

const MDT: &str = "lustre-MDT0000";

fn journal_client() -> PathBuf {
    env!("CARGO_BIN_EXE_lcap-journal-client").into()
}

/// A client process that is killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(daemon: &Daemon, journal: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(journal_client());
        command.args(["--server", daemon.setup().control_endpoint(), "--mdt", MDT]);
        command.arg("--journal").arg(journal).args(args).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn random_kills_lose_nothing_and_clear_nothing_too_early() {
    let plan = Plan {
        chaos: Duration::from_secs(8),
        patience: Duration::from_secs(100),
        seed: 7,
        n_mdts: 2,
        rate: 500,
        two_hops: false,
        client: journal_client(),
        journals: None,
    };
    let findings = run(&plan, &mut |line| println!("{line}")).unwrap();
    println!("{findings}");
    assert!(findings.is_clean(), "{findings}\n{:#?}", findings.examples);
    assert!(findings.kills > 0 && findings.records > 0, "{findings}");
}

#[test]
fn what_a_dead_or_stopped_member_holds_goes_to_another() {
    for silence in [Signal::KILL, Signal::STOP] {
        let daemon = Setup::new()
            .server("heartbeat = \"100ms\"\nclear_interval = \"10ms\"")
            .mdt(MDT, "sim:records=5000")
            .queue("work", "")
            .start();
        let dir = daemon.dir().to_owned();
        let mut driver = Journal::append(&dir.join("driver.journal")).unwrap();
        driver.note(&Line::Exists(MDT.to_owned(), 1, 5000));
        driver.note(&Line::Holder("work".to_owned(), "-".to_owned(), MDT.to_owned(), 0));
        // The first one takes all that it can and never acknowledges.
        let first = dir.join("first.journal");
        let member = Process::start(
            &daemon,
            &first,
            &["--stream", "work", "--member", "--ack-every", "1000000", "--work-us", "100000000"],
        );
        let mut control = daemon.control();
        wait_until("the first member holds records", || {
            control.status().unwrap().streams[0].mdts[MDT].outstanding > 0
        });
        let second = dir.join("second.journal");
        let _other = Process::start(&daemon, &second, &["--stream", "work", "--member"]);
        member.signal(silence);
        wait_until("everything is acknowledged by the other", || daemon.cleared(MDT) == 5000);
        let status = control.status().unwrap();
        assert!(status.streams[0].mdts[MDT].redelivered > 0, "{silence:?}");
        driver.note(&Line::Cleared(MDT.to_owned(), 5000));
        driver.note(&Line::Finished);
        driver.flush().unwrap();
        let findings = check(&dir).unwrap();
        assert!(findings.is_clean(), "{silence:?}: {findings} {:?}", findings.examples);
    }
}

#[test]
fn a_reader_that_was_away_gets_everything_and_memory_stays_bounded() {
    const LIMIT: u64 = 64 << 20;
    let wanted = std::env::var("LCAP_BACKLOG").ok().and_then(|text| text.parse().ok());
    let records: u64 = wanted.unwrap_or(500_000);
    let daemon = Setup::new()
        .server("memory_limit = \"64MiB\"")
        .mdt(MDT, &format!("sim:records={records}"))
        .broadcast("changelog", "")
        .start();
    let mut control = daemon.control();
    control.register("changelog", "away", Vec::new(), From::Oldest).unwrap();
    // Another one reads and acknowledges everything meanwhile.
    control.register("changelog", "here", Vec::new(), From::Oldest).unwrap();
    for reader in ["here", "away"] {
        let mut client = daemon.client(MDT, "changelog").reader(Some(reader)).connect().unwrap();
        for want in 1..=records {
            let index = client.recv().unwrap().unwrap().index();
            assert_eq!(index.get(), want, "{reader}");
            client.clear(index).unwrap();
            if want % 100_000 == 0 {
                let (most, now) = daemon.memory();
                assert!(most < LIMIT + (64 << 20), "{reader} at {want}: {most} bytes, now {now}");
            }
        }
        assert!(client.recv().unwrap().is_none());
    }
    wait_until("all is cleared", || daemon.cleared(MDT) == records);
    println!("{records} records, {} MiB at most", daemon.memory().0 >> 20);
}

#[test]
fn a_record_reaches_a_waiting_client_at_once() {
    let daemon = Setup::new().mdt(MDT, "sim:rate=1000").broadcast("changelog", "").start();
    let mut client = daemon.client(MDT, "changelog").follow(true).connect().unwrap();
    let mut delays = Vec::new();
    for nth in 0..3000 {
        let record = client.recv().unwrap().unwrap();
        let happened = Duration::new(record.seconds(), record.nanoseconds());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        if nth >= 1000 {
            delays.push(now.saturating_sub(happened)); // the first ones had waited for us
        }
    }
    delays.sort_unstable();
    let at = |per_mille: usize| delays[delays.len() * per_mille / 1000];
    println!("latency: half {:?}, 99 % {:?}, worst {:?}", at(500), at(990), at(999));
    // Other tests run beside this one, so the limit is wide; a pause on the path would still show.
    assert!(at(500) < Duration::from_millis(500), "half of them took {:?}", at(500));
}

#[test]
fn floods_and_sleepers_harm_nobody_else() {
    let daemon = Setup::new()
        .server("memory_limit = \"16MiB\"\nheartbeat = \"500ms\"")
        .mdt(MDT, "sim:rate=20000,records=100000")
        .broadcast("changelog", "")
        .queue("work", "")
        .start();
    let mut control = daemon.control();
    control.register("changelog", "slow", Vec::new(), From::Oldest).unwrap();
    let slow = daemon.client(MDT, "changelog").reader(Some("slow")).follow(true);
    let mut slow = slow.connect().unwrap();
    assert_eq!(slow.recv().unwrap().unwrap().index().get(), 1); // then it does nothing for long

    let endpoint = daemon.setup().control_endpoint().to_owned();
    let publish = daemon.setup().publish_endpoint("changelog").to_owned();
    let flood = std::thread::spawn(move || {
        let context = zmq::Context::new();
        let socket = |kind, endpoint: &str| {
            let socket = context.socket(kind).unwrap();
            socket.set_linger(0).unwrap();
            socket.connect(endpoint).unwrap();
            socket
        };
        let control = socket(zmq::DEALER, &endpoint);
        let subscriber = socket(zmq::SUB, &publish);
        let garbage: [&[u8]; 6] = [
            b"",
            b"{",
            b"\xff\xfe",
            b"{\"v\":1}",
            b"[[[[[[[[",
            b"{\"v\":9,\"id\":1,\"op\":\"status\"}",
        ];
        for nth in 0..20_000 {
            let _ = control.send(garbage[nth % garbage.len()], zmq::DONTWAIT);
        }
        let huge = vec![b'['; 900 << 10];
        for _ in 0..100 {
            let _ = control.send(&huge[..], 0);
            let _ = control.send_multipart([&b"a"[..], b"b", b"c", b"d"], 0);
        }
        let start = format!(
            "{{\"v\":1,\"id\":1,\"op\":\"start\",\"stream\":\"changelog\",\"mdt\":\"{MDT}\"}}"
        );
        for _ in 0..3000 {
            let _ = control.send(start.as_bytes(), 0); // answers are never read
        }
        for nth in 0..2000 {
            subscriber.set_subscribe(format!("nonsense {nth}").as_bytes()).unwrap();
        }
        // Beyond what is accepted: the connection is closed, and only that.
        let _ = control.send(vec![b'x'; 4 << 20], 0);
        (control, subscriber)
    });
    let mut healthy = daemon.client(MDT, "changelog").follow(true).connect().unwrap();
    for want in 1..=100_000 {
        assert_eq!(healthy.recv().unwrap().unwrap().index().get(), want);
    }
    assert_eq!(healthy.stats().malformed, 0);
    let sockets = flood.join().unwrap();
    let status = control.status().unwrap();
    assert_eq!(status.mdts[0].read_index, 100_000, "the reader thread waited for nobody");
    for want in 2..=100_000 {
        assert_eq!(slow.recv().unwrap().unwrap().index().get(), want);
    }
    let (most, _) = daemon.memory();
    println!("{} MiB at most", most >> 20);
    assert!(most < (16 + 64) << 20, "{most} bytes");
    drop(sockets);
}

#[test]
#[cfg_attr(no_tmpfs, ignore = "no right to mount a tmpfs here")]
fn with_a_full_disk_delivery_goes_on_and_nothing_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("state"), "8m");
    let mut daemon = Setup::new()
        .state_dir(disk.path())
        .server("clear_interval = \"10ms\"")
        .mdt(MDT, "sim:rate=2000")
        .broadcast("changelog", "")
        .start();
    let mut control = daemon.control();
    control.register("changelog", "audit", Vec::new(), From::Oldest).unwrap();
    let client = daemon.client(MDT, "changelog").reader(Some("audit")).follow(true);
    let mut client = client.connect().unwrap();
    let mut read = |n: u64| {
        for _ in 0..n {
            let index = client.recv().unwrap().unwrap().index();
            client.clear(index).unwrap();
        }
    };
    read(2000);
    wait_until("something is cleared", || daemon.cleared(MDT) > 0);
    let filler = disk.fill();
    let refused = control.register("changelog", "late", Vec::new(), From::Now).unwrap_err();
    assert_eq!(refused.errno(), 5, "{refused}");
    let before = daemon.cleared(MDT); // a clear that was under way came before that answer
    read(4000); // two seconds
    assert_eq!(daemon.cleared(MDT), before, "what cannot be written down is not cleared");
    fs::remove_file(filler).unwrap();
    let mut read = 0;
    wait_until("it is cleared again", || {
        let index = client.recv().unwrap().unwrap().index();
        client.clear(index).unwrap();
        read += 1;
        read % 100 == 0 && daemon.cleared(MDT) > before
    });
    assert!(daemon.log().contains("state is written again"));
    drop(client);
    assert_eq!(daemon.stop().code(), Some(0));
    drop(daemon);
}

/// An application that reads nothing for longer than libzmq's heartbeats would take to give up goes on where it
/// was. (libzmq ended the process when it had connected again with a full queue.)
#[test]
fn an_application_that_pauses_goes_on() {
    const PAUSE: Duration = Duration::from_secs(13);
    let setup = Setup::new().on_tcp().mdt(MDT, "sim:rate=2000").broadcast("changelog", "");
    let daemon = setup.start();
    daemon.control().register("changelog", "audit", Vec::new(), From::Oldest).unwrap();
    let mut client = daemon.client(MDT, "changelog").reader(Some("audit")).follow(true);
    client.options_mut().ack_interval = Duration::from_millis(50);
    let mut client = client.connect().unwrap();
    let mut expected = 0;
    let mut read = |n: u64| {
        for _ in 0..n {
            let index = client.recv().unwrap().unwrap().index();
            expected += 1;
            assert_eq!(index.get(), expected, "every record once, in order");
            client.clear(index).unwrap();
        }
    };
    read(4000);
    std::thread::sleep(PAUSE); // this is what is tested
    read(40_000);
}
