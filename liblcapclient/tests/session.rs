//! Real sockets, a fake lcapd, and what can go wrong between them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod fake;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fake::{Fake, MDT, record};
use lcap_client::{Builder, Client, ClientError, Control};
use lcap_ffi::RecordIndex;
use lcap_wire::Kind;

fn builder(fake: &Fake) -> Builder {
    Builder::without_env(MDT.parse().unwrap())
        .servers(&fake.endpoint)
        .timeout(Duration::from_secs(20))
}

/// Receives `n` records; checks that each is whole.
fn receive(client: &mut Client, n: usize) -> Vec<u64> {
    let one = |client: &mut Client| {
        let record_in = client.recv().unwrap().expect("not the end");
        let index = record_in.index().get();
        assert_eq!(record_in.as_bytes(), record(index));
        index
    };
    (0..n).map(|_| one(client)).collect()
}

fn ids(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}

#[test]
fn reads_to_the_present_end_and_stays_there() {
    let fake = Fake::start();
    fake.append(1..=95);
    let mut client = builder(&fake).connect().unwrap();
    assert_eq!(receive(&mut client, 95), ids(1..=95));
    fake.append(96..=100);
    assert!(client.recv().unwrap().is_none());
    assert!(client.recv().unwrap().is_none());
    assert_eq!(client.stats().records, 95);
}

#[test]
fn begins_where_it_is_told() {
    let fake = Fake::start();
    fake.append(1..=50);
    let mut client = builder(&fake).from(33).connect().unwrap();
    assert_eq!(receive(&mut client, 18), ids(33..=50));
    assert!(client.recv().unwrap().is_none());
}

#[test]
fn follows_from_the_past_into_the_present() {
    let fake = Fake::start();
    fake.append(1..=95);
    let mut client = builder(&fake).follow(true).connect().unwrap();
    assert_eq!(receive(&mut client, 95), ids(1..=95));
    for index in 96..=200 {
        fake.append([index]);
    }
    assert_eq!(receive(&mut client, 105), ids(96..=200));
    assert_eq!(client.stats().reconnects, 0);
}

#[test]
fn a_slow_application_bounds_what_is_prefetched() {
    let fake = Fake::start();
    fake.append(1..=50_000);
    let mut builder = builder(&fake).follow(true);
    builder.options_mut().prefetch_bytes = 64 << 10;
    let mut client = builder.connect().unwrap();
    assert_eq!(receive(&mut client, 1), [1]);
    // Far less than the 6 MB that there are went out; the rest waits for credit.
    let sent =
        fake.with(|state| state.sessions.values().map(|s| format!("{s:?}")).collect::<String>());
    let next: u64 =
        sent.split("next: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(next < 5_000, "{sent}");
    assert_eq!(receive(&mut client, 49_999), ids(2..=50_000));
}

/// Each fault strikes while records flow; afterwards nothing is missing and nothing came twice.
#[test]
fn faults_cost_no_record_and_repeat_none() {
    type Fault = fn(&mut fake::State);
    let faults: [(&str, Fault); 6] = [
        ("live messages are lost", |state| state.lose_live = 3),
        ("live messages come twice", |state| state.twice = true),
        ("the session is lost", fake::State::lose_sessions),
        ("lcapd is restarted", fake::State::restart),
        ("catch-up messages are lost", |state| {
            state.lose_catch_up = 1;
            state.lose_sessions();
        }),
        ("lcapd is restarted twice", |state| {
            state.restart();
            state.append(&[301]);
            state.restart();
        }),
    ];
    for (what, fault) in faults {
        let fake = Fake::start();
        fake.append(1..=200);
        let mut client = builder(&fake).follow(true).connect().unwrap();
        assert_eq!(receive(&mut client, 200), ids(1..=200), "{what}");
        fake.append(201..=300);
        assert_eq!(receive(&mut client, 50), ids(201..=250), "{what}");
        fake.with(fault);
        fake.append(302..=600);
        let skips = if what.ends_with("twice") && what.starts_with("lcapd") { 0 } else { 1 };
        let mut want = ids(251..=600);
        if skips == 1 {
            want.retain(|&index| index != 301);
        }
        assert_eq!(receive(&mut client, want.len()), want, "{what}");
    }
}

#[test]
fn records_out_of_order_survive_a_restart_once_each() {
    let fake = Fake::start();
    let mut client = builder(&fake).follow(true).connect().unwrap();
    assert!(!client.in_buf().unwrap());
    fake.until("live", |state| {
        state.sessions.values().any(|s| format!("{s:?}").contains("live: true"))
    });
    fake.with(|state| {
        for index in 1..=9 {
            state.log.insert(index, record(index));
        }
        state.head = 9;
        state.publish(Kind::Records, &[3, 1, 7], 1);
        state.publish(Kind::Records, &[9, 2], 3);
    });
    assert_eq!(receive(&mut client, 5), [3, 1, 7, 9, 2]);
    fake.with(fake::State::restart);
    assert_eq!(receive(&mut client, 4), [4, 5, 6, 8]);
    assert_eq!(client.stats().repeated, 2, "7 and 9");
}

#[test]
fn a_reader_goes_on_after_what_it_cleared() {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("rbh".into(), 0));
    fake.append(1..=100);
    let mut client = builder(&fake).reader(Some("rbh")).connect().unwrap();
    for index in receive(&mut client, 57) {
        client.clear(RecordIndex::new(index)).unwrap();
    }
    receive(&mut client, 10); // handed out, not cleared
    client.close();
    assert_eq!(fake.with(|state| state.readers["rbh"]), 57);
    let mut client = builder(&fake).reader(Some("rbh")).connect().unwrap();
    assert_eq!(receive(&mut client, 43), ids(58..=100));
    client.clear(RecordIndex::ZERO).unwrap();
    assert!(client.recv().unwrap().is_none());
    client.close();
    assert_eq!(fake.with(|state| state.readers["rbh"]), 100);
}

#[test]
fn who_clears_nothing_acknowledges_nothing() {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("rbh".into(), 0));
    fake.append(1..=20);
    let mut builder = builder(&fake).reader(Some("rbh")).from(11);
    builder.options_mut().ack_interval = Duration::from_millis(1);
    let mut client = builder.connect().unwrap();
    assert_eq!(receive(&mut client, 10), ids(11..=20));
    assert!(client.recv().unwrap().is_none());
    client.close();
    fake.until("fini", |state| state.finis == 1);
    assert!(fake.with(|state| state.acks.is_empty() && state.clears.is_empty()));
}

#[test]
fn acknowledgements_go_out_while_the_application_waits() {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("rbh".into(), 0));
    let mut builder = builder(&fake).reader(Some("rbh")).follow(true);
    builder.options_mut().ack_interval = Duration::from_millis(20);
    let mut client = builder.connect().unwrap();
    fake.append(1..=5);
    receive(&mut client, 5);
    client.clear(RecordIndex::new(4)).unwrap();
    fake.until("the watermark is 4", |state| state.readers["rbh"] == 4);
    fake.with(fake::State::restart);
    client.clear(RecordIndex::new(5)).unwrap();
    fake.until("the watermark is 5 after a restart", |state| state.readers["rbh"] == 5);
}

#[test]
fn indexes_that_are_issued_again_come_again_after_a_gap_notice() {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("rbh".into(), 0));
    let mut client = builder(&fake).reader(Some("rbh")).follow(true).connect().unwrap();
    fake.append(1..=20);
    receive(&mut client, 20);
    client.clear(RecordIndex::new(20)).unwrap();
    fake.with(|state| {
        state.readers.insert("rbh".into(), 9); // what the server makes of its readers is its business
        state.rewind(11);
    });
    fake.append(11..=30);
    assert_eq!(receive(&mut client, 20), ids(11..=30));
    let stats = client.stats();
    assert_eq!((stats.gaps, stats.gap_first, stats.gap_last), (1, 11, 0));
    client.clear(RecordIndex::new(15)).unwrap();
    client.close();
    assert_eq!(fake.with(|state| state.readers["rbh"]), 15);
}

#[test]
fn an_mdt_with_a_past_is_acknowledged_like_any_other() {
    let fake = Fake::start();
    fake.with(|state| {
        state.readers.insert("rbh".into(), 0);
        state.generation = 3;
    });
    fake.append(1..=20);
    let mut client = builder(&fake).reader(Some("rbh")).connect().unwrap();
    receive(&mut client, 20);
    client.clear(RecordIndex::new(20)).unwrap();
    client.close();
    assert_eq!(fake.with(|state| state.readers["rbh"]), 20);
}

#[test]
fn a_rewind_that_was_slept_through_is_told_by_the_next_session() {
    let fake = Fake::start();
    let mut client = builder(&fake).follow(true).connect().unwrap();
    fake.append(1..=20);
    receive(&mut client, 20);
    fake.with(|state| {
        state.lose_live = 1;
        state.rewind(11);
        state.restart();
    });
    fake.append(11..=30);
    assert_eq!(receive(&mut client, 20), ids(11..=30));
    assert_eq!(client.stats().gaps, 1);
}

#[test]
fn members_share_a_queue_and_what_one_leaves_goes_to_another() {
    let fake = Fake::start();
    fake.append(1..=100);
    let mut first = builder(&fake).stream("work").follow(true).connect().unwrap();
    let had = receive(&mut first, 25);
    for &index in &had[..12] {
        first.clear(RecordIndex::new(index)).unwrap();
    }
    first.close();
    fake.until("12 acknowledged", |state| state.queue_acked.len() == 12);
    let mut second = builder(&fake).stream("work").connect().unwrap();
    let mut got = BTreeSet::new();
    while let Some(record) = second.recv().unwrap() {
        assert!(got.insert(record.index().get()));
    }
    second.clear(RecordIndex::ZERO).unwrap();
    let stats = second.stats();
    assert!(stats.redelivered > 0);
    second.close();
    assert_eq!(got, (13..=100).collect());
    fake.until("all acknowledged", |state| state.queue_acked.len() == 100);
}

#[test]
fn a_member_that_lost_its_session_keeps_what_it_has_and_acknowledges_it_then() {
    let fake = Fake::start();
    fake.append(1..=40);
    let mut builder = builder(&fake).stream("work").follow(true);
    builder.options_mut().ack_interval = Duration::from_millis(10);
    let mut client = builder.connect().unwrap();
    let mut got = receive(&mut client, 15);
    fake.with(fake::State::restart);
    fake.append(41..=60);
    got.extend(receive(&mut client, 45));
    got.sort_unstable();
    assert_eq!(got, ids(1..=60));
    client.clear(RecordIndex::ZERO).unwrap();
    fake.until("all acknowledged", |state| state.queue_acked.len() == 60);
}

#[test]
fn what_is_not_served_is_said_at_once() {
    let fake = Fake::start();
    let mdt = "other-MDT0000".parse().unwrap();
    let error = Builder::without_env(mdt).servers(&fake.endpoint).connect().unwrap_err();
    assert_eq!((error.errno(), error.to_string().contains("no such MDT")), (libc::ENOENT, true));
    let error = builder(&fake).stream("nope").connect().unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT);
    let mut client = builder(&fake).reader(Some("nobody")).follow(true).connect().unwrap();
    for _ in 0..2 {
        assert_eq!(client.recv().unwrap_err().errno(), libc::ENOENT, "and stays so");
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_or_waited_for() {
    // A port that was ours a moment ago: nobody listens there.
    let gone = Fake::start().endpoint.clone();
    let absent = || Builder::without_env(MDT.parse().unwrap()).servers(&gone);
    let began = Instant::now();
    let error = absent().timeout(Duration::from_millis(200)).connect().unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains(&gone), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));

    let patient = absent().timeout(Duration::from_millis(200)).patient(true);
    let mut client = patient.connect().unwrap();
    let fake = Fake::start_at(&gone, 7);
    fake.append(1..=3);
    assert_eq!(receive(&mut client, 3), [1, 2, 3]);
    assert!(client.recv().unwrap().is_none());
}

#[test]
fn the_next_server_is_tried() {
    let gone = Fake::start().endpoint.clone();
    let fake = Fake::start();
    fake.append(1..=3);
    let both = format!("{gone},{}", fake.endpoint);
    let one = Builder::without_env(MDT.parse().unwrap())
        .servers(&both)
        .timeout(Duration::from_millis(400));
    let mut client = one.connect().unwrap();
    assert_eq!(receive(&mut client, 3), [1, 2, 3]);
    let mut control = Control::new(&both, None, Duration::from_millis(400)).unwrap();
    assert_eq!(control.hello(Some(MDT), None).unwrap().epoch, 1);
    assert_eq!(control.endpoint(), Some(&*fake.endpoint));
}

#[test]
fn a_silent_server_is_left_and_found_again() {
    let fake = Fake::start();
    fake.append(1..=10);
    let slow = builder(&fake).timeout(Duration::from_millis(300)).follow(true);
    let mut client = slow.connect().unwrap();
    assert_eq!(receive(&mut client, 10), ids(1..=10));
    fake.with(|state| state.mute = true);
    let before = client.stats().reconnects;
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.stats().reconnects == before {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    fake.with(|state| state.mute = false);
    fake.append(11..=20);
    assert_eq!(receive(&mut client, 10), ids(11..=20));
}

#[test]
fn with_curve_records_flow_and_without_the_key_nothing_does() {
    let server = zmq::CurveKeyPair::new().unwrap();
    let (public, other) = (server.public_key, zmq::CurveKeyPair::new().unwrap().public_key);
    let fake = Fake::start_with("tcp://127.0.0.1:*", 1, Some(&server.secret_key));
    fake.append(1..=30);
    let key = |key: &[u8]| zmq::z85_encode(key).unwrap();
    let mut client = builder(&fake).keys(&key(&public), None).follow(true).connect().unwrap();
    assert_eq!(receive(&mut client, 30), ids(1..=30));
    fake.append(31..=40);
    assert_eq!(receive(&mut client, 10), ids(31..=40));
    let short = || builder(&fake).timeout(Duration::from_millis(300));
    assert_eq!(short().connect().unwrap_err().errno(), libc::ETIMEDOUT);
    assert_eq!(short().keys(&key(&other), None).connect().unwrap_err().errno(), libc::ETIMEDOUT);
}

/// Passes TCP on, until it is told to cut.
struct Wire {
    endpoint: String,
    open: std::sync::Arc<std::sync::Mutex<Vec<std::net::TcpStream>>>,
}

impl Wire {
    fn to(endpoint: &str) -> Self {
        use std::net::{TcpListener, TcpStream};
        let server = endpoint.strip_prefix("tcp://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let open = std::sync::Arc::<std::sync::Mutex<Vec<TcpStream>>>::default();
        let all = std::sync::Arc::clone(&open);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let far = TcpStream::connect(&server).unwrap();
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
                all.lock().unwrap().extend([near, far]);
            }
        });
        Self { endpoint, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn a_connection_that_is_cut_in_the_middle_of_the_past_costs_nothing() {
    let fake = Fake::start();
    fake.append(1..=5_000);
    let wire = Wire::to(&fake.endpoint);
    let mut builder = Builder::without_env(MDT.parse().unwrap()).servers(&wire.endpoint);
    builder.options_mut().prefetch_bytes = 50_000;
    let mut client = builder.connect().unwrap();
    for round in 0..5 {
        let first = round * 1000 + 1;
        assert_eq!(receive(&mut client, 1000), ids(first..=first + 999));
        wire.cut();
    }
    assert!(client.recv().unwrap().is_none());
    assert!(client.stats().reconnects > 0);
}

/// A campaign: whatever strikes, in whatever order, each record arrives once, in order.
#[test]
fn every_record_once_in_order_through_a_hundred_faults() {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("rbh".into(), 0));
    let mut builder = builder(&fake).reader(Some("rbh")).follow(true);
    builder.options_mut().prefetch_bytes = 20_000; // full now and then
    builder.options_mut().ack_interval = Duration::from_millis(5);
    let mut client = builder.connect().unwrap();
    // Marsaglia's generator: the same campaign every time.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut dice = |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    let (mut written, mut read) = (0, 0);
    for _ in 0..100 {
        let more = dice(120);
        fake.append(written + 1..=written + more);
        written += more;
        match dice(6) {
            0 => fake.with(|state| state.lose_live = 2),
            1 => fake.with(fake::State::lose_sessions),
            2 => fake.with(fake::State::restart),
            3 => fake.with(|state| state.twice = !state.twice),
            4 => fake.with(|state| state.lose_catch_up = 1),
            _ => {}
        }
        let part = dice(written - read + 1);
        for index in read + 1..=read + part {
            assert_eq!(receive(&mut client, 1), [index]);
            client.clear(RecordIndex::new(index)).unwrap();
        }
        read += part;
        let mark = fake.with(|state| state.readers["rbh"]);
        assert!(mark <= read, "{mark} is acknowledged, {read} was read");
    }
    fake.with(|state| (state.lose_live, state.lose_catch_up) = (0, 0));
    for index in read + 1..=written {
        assert_eq!(receive(&mut client, 1), [index]);
    }
    client.clear(RecordIndex::ZERO).unwrap();
    client.close();
    assert_eq!(fake.with(|state| state.readers["rbh"]), written);
}

#[test]
fn the_descriptor_is_readable_exactly_when_a_record_is_there() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fake = Fake::start();
    let mut client = builder(&fake).follow(true).connect().unwrap();
    let readable = |client: &mut Client, wait: bool| {
        let fd = client.fd().unwrap();
        let timeout = Timespec { tv_sec: if wait { 20 } else { 0 }, tv_nsec: 0 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    };
    assert!(!readable(&mut client, false));
    for round in 0..200 {
        let first = round * 3 + 1;
        fake.append(first..first + 3);
        for index in first..first + 3 {
            assert!(readable(&mut client, true), "{index}");
            assert!(client.in_buf().unwrap());
            assert_eq!(receive(&mut client, 1), [index]);
        }
        assert!(!readable(&mut client, false), "{round}");
        assert!(!client.in_buf().unwrap());
    }
}

#[test]
fn control_requests_are_answered() {
    let fake = Fake::start();
    fake.append(1..=10);
    let mut control = Control::new(&fake.endpoint, None, Duration::from_secs(20)).unwrap();
    assert_eq!(control.hello(Some(MDT), Some("work")).unwrap().mdts, [MDT]);
    assert_eq!(control.hello(Some("no-MDT0000"), None).unwrap_err().errno(), libc::ENOENT);
    control.register("changelog", "a", vec![], lcap_wire::control::From::Now).unwrap();
    let again = control.register("changelog", "a", vec![], lcap_wire::control::From::Now);
    assert_eq!(again.unwrap_err().errno(), libc::EEXIST);
    assert_eq!(control.readers(None).unwrap()[0].watermark[MDT], 10);
    control.clear(None, MDT, "a", 12).unwrap();
    assert_eq!(control.clear(None, MDT, "b", 12).unwrap_err().errno(), libc::ENOENT);
    assert_eq!(control.status().unwrap().epoch, 1);
    control.deregister("changelog", "a").unwrap();

    let mut client = builder(&fake).connect().unwrap();
    assert_eq!(client.clear_for(MDT, "b", 3).unwrap_err().errno(), libc::ENOENT);
    fake.with(|state| state.readers.insert("b".into(), 0));
    client.clear_for(MDT, "b", 3).unwrap();
    assert_eq!(fake.with(|state| state.clears.clone()), [("a".into(), 12), ("b".into(), 3)]);
}
