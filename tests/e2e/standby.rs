//! A second lcapd on the same state: it waits, takes over, and the first one is fenced.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_tests::redis::RedisServer;
use lcap_wire::control::From;
use lcapd::lease::Lease;
use lcapd::lease::redis::InRedis;
use rustix::process::Signal;

const MDT: &str = "lustre-MDT0000";

/// Two lcapds that share their state; the second one is launched, and waits. The lease is beside the state, or
/// in Redis.
fn pair(source: &str, redis: Option<&RedisServer>) -> (Daemon, Daemon) {
    let redis = redis.map(|redis| format!("lease_redis = \"{}\"", redis.url(0)));
    let redis = redis.unwrap_or_default();
    let setup = |setup: Setup| {
        let setup = setup.on_tcp().server("lease = \"500ms\"\nhttp = \"127.0.0.1:0\"");
        setup.server(&redis).mdt(MDT, source).broadcast("changelog", "")
    };
    let first = setup(Setup::new()).start();
    let shared = first.dir().join("state");
    let second = setup(Setup::new().state_dir(&shared)).launched();
    wait_until("it stands by", || second.log().contains("standing by"));
    (first, second)
}

#[test]
fn one_that_hangs_is_replaced_and_fenced() {
    hangs_is_replaced_and_fenced(None);
}

#[test]
fn one_that_hangs_is_replaced_and_fenced_by_redis() {
    hangs_is_replaced_and_fenced(Some(&RedisServer::start()));
}

/// The active one is stopped, and continued when the other has taken over: the client, which knows
/// both, gets every record once; the old one neither clears nor commits any more, and ends.
fn hangs_is_replaced_and_fenced(redis: Option<&RedisServer>) {
    let (mut first, mut second) = pair("sim:rate=5000", redis);
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

#[test]
fn turns_change_without_waiting() {
    turns_change(None);
}

#[test]
fn turns_change_without_waiting_for_redis() {
    turns_change(Some(&RedisServer::start()));
}

/// One that stops in good order, or dies on the same machine, is replaced at once; it comes back as
/// the one that waits.
fn turns_change(redis: Option<&RedisServer>) {
    let (mut first, mut second) = pair("sim:rate=100", redis);
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

/// Without Redis nobody works; when it is back, with or without what it knew, one of them does.
#[test]
fn redis_goes_and_comes_back_empty() {
    let mut redis = RedisServer::start();
    let (mut first, mut second) = pair("sim:rate=100", Some(&redis));
    redis.kill();
    assert_eq!(first.wait_end().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("cannot renew the lease"), "{}", first.log());
    wait_until("it says why it waits", || second.log().contains("cannot ask for the lease"));
    redis.restart();
    second.wait_ready();
    assert!(second.stop().success());
}

/// Four that compete for a lease in a Redis that forgets everything again and again: whoever could see
/// that it held the lease at two moments held it in between, and nobody else did.
#[test]
fn a_redis_that_forgets_lets_nobody_in_too_early() {
    const LENGTH: Duration = Duration::from_millis(200);
    let mut redis = RedisServer::start();
    let url = redis.url(0);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let hold = || {
        let mut held = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let target =
                lcapd::sink::target::Target::new(&url, &Default::default(), LENGTH).unwrap();
            let place = InRedis::new(target, &[MDT], LENGTH);
            let give_up = || stop.load(Ordering::Relaxed);
            let Some(lease) = Lease::acquire(Box::new(place), LENGTH, give_up).unwrap() else {
                break;
            };
            lease.keep(|| {}).unwrap();
            let from = begun.elapsed();
            let mut upto = from;
            while upto < from + 3 * LENGTH {
                let now = begun.elapsed();
                if !lease.is_held() {
                    break;
                }
                upto = now;
                thread::yield_now();
            }
            held.push((from, upto));
            lease.release();
        }
        held
    };
    let mut all = thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(hold));
        let mut pause = Instant::now();
        for _ in 0..6 {
            redis.kill();
            redis.restart(); // it writes nothing to disk
            wait_until("some time has passed", || pause.elapsed() > 4 * LENGTH);
            pause = Instant::now();
        }
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().unwrap()).concat()
    });
    all.sort_unstable();
    assert!(all.len() > 3, "{all:?}");
    for pair in all.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two at once: {pair:?}");
    }
}
