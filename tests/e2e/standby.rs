//! A second lcapd on the same state: it waits, takes over, and the first one is fenced.

use std::time::Instant;

use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_wire::control::From;
use rustix::process::Signal;

const MDT: &str = "lustre-MDT0000";

/// Two lcapds that share their state; the second one is launched, and waits.
fn pair(source: &str) -> (Daemon, Daemon) {
    let setup = |setup: Setup| {
        let setup = setup.on_tcp().server("lease = \"500ms\"\nhttp = \"127.0.0.1:0\"");
        setup.mdt(MDT, source).broadcast("changelog", "")
    };
    let first = setup(Setup::new()).start();
    let shared = first.dir().join("state");
    let second = setup(Setup::new().state_dir(&shared)).launched();
    wait_until("it stands by", || second.log().contains("standing by"));
    (first, second)
}

/// The active one is stopped, and continued when the other has taken over: the client, which knows
/// both, gets every record once; the old one neither clears nor commits any more, and ends.
#[test]
fn one_that_hangs_is_replaced_and_fenced() {
    let (mut first, mut second) = pair("sim:rate=5000");
    first.control().register("changelog", "audit", Vec::new(), From::Oldest).unwrap();
    let servers = [&first, &second].map(|d| d.setup().control_endpoint().to_owned()).join(",");
    let client = first.client(MDT, "changelog").servers(&servers).reader(Some("audit"));
    let mut client = client.follow(true).connect().unwrap();
    let mut expected = 1;
    let mut read_until = |done: &mut dyn FnMut(u64) -> bool| {
        loop {
            let index = client.recv().unwrap().unwrap().index();
            assert_eq!(index.get(), expected, "every record once, in order");
            client.clear(index).unwrap();
            expected += 1;
            if done(index.get()) {
                return index.get();
            }
        }
    };
    read_until(&mut |index| index == 5000);
    wait_until("something is cleared", || first.cleared(MDT) > 0);

    first.signal(Signal::STOP);
    let stopped = Instant::now();
    second.wait_ready();
    let seconds = stopped.elapsed().as_secs_f64();
    assert!(seconds < 30.0, "taken over after {seconds} s");
    // What was read before the end of the old one was found out, and what the new one serves.
    let taken_over = read_until(&mut |index| index >= 10_000);
    wait_until("the new one clears", || first.cleared(MDT) >= taken_over / 2);

    let before = first.cleared(MDT);
    first.signal(Signal::CONT);
    assert_eq!(first.wait_end().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("another lcapd has taken over"), "{}", first.log());
    assert!(first.cleared(MDT) >= before, "nothing was cleared backwards");
    read_until(&mut |index| index >= taken_over + 5000);
    assert!(second.stop().success());
}

/// One that stops in good order, or dies on the same machine, is replaced at once; it comes back as
/// the one that waits.
#[test]
fn turns_change_without_waiting() {
    let (mut first, mut second) = pair("sim:rate=100");
    assert!(first.stop().success());
    second.wait_ready();
    first.launch();
    wait_until("it stands by", || first.log().matches("standing by").count() == 1);
    second.kill();
    first.wait_ready();
    // A standby can be told to stop, too.
    second.launch();
    wait_until("it stands by again", || second.log().matches("standing by").count() == 2);
    assert!(second.stop().success());
    assert!(first.stop().success());
}
