//! Floods and garbage: an honest client is served all the while, and nothing grows.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use lcap_tests::abuse::{Abuse, Targets, endless};
use lcap_tests::daemon::{Daemon, Setup, wait_until};
use lcap_wire::control::From;

const MDT: &str = "lustre-MDT0000";

fn n_descriptors(daemon: &Daemon) -> usize {
    let path = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    std::fs::read_dir(path).unwrap().count()
}

#[test]
fn a_flood_is_contained() {
    let setup = Setup::new().on_tcp().server("http = \"127.0.0.1:0\"\nmemory_limit = \"16MiB\"");
    let setup = setup.mdt(MDT, "sim:rate=2000").broadcast("changelog", "").queue("work", "");
    let daemon = setup.start();
    let mut honest = Honest::new(&daemon);
    honest.read(500);
    let before = n_descriptors(&daemon);
    let host = |endpoint: &str| endpoint.trim_start_matches("tcp://").to_owned();
    let targets = Targets {
        control: host(daemon.setup().control_endpoint()),
        streams: ["changelog", "work"].map(|s| host(daemon.setup().publish_endpoint(s))).to_vec(),
        http: daemon.http_address(),
    };
    let abuse = Abuse::start(&targets, 1);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) || abuse.n_blows() < 50 {
        honest.read(200);
    }
    abuse.stop();
    honest.read(2000);
    assert!(refused(&daemon, "malformed") > 10.0);
    wait_until("all their connections are gone", || n_descriptors(&daemon) <= before + 8);
    let (peak, _) = daemon.memory();
    assert!(peak < 400 << 20, "{peak} bytes at the worst moment");
}

/// An honest reader, beside whom others misbehave.
struct Honest {
    client: lcapclient::Client,
    expected: u64,
}

impl Honest {
    fn new(daemon: &Daemon) -> Self {
        daemon.control().register("changelog", "audit", Vec::new(), From::Oldest).unwrap();
        let mut client = daemon.client(MDT, "changelog").reader(Some("audit")).follow(true);
        client.options_mut().ack_interval = Duration::from_millis(50);
        Self { client: client.connect().unwrap(), expected: 0 }
    }

    fn read(&mut self, n: u64) {
        for _ in 0..n {
            let index = self.client.recv().unwrap().unwrap().index();
            self.expected += 1;
            assert_eq!(index.get(), self.expected, "every record once, in order");
            self.client.clear(index).unwrap();
        }
    }
}

fn refused(daemon: &Daemon, reason: &str) -> f64 {
    daemon.figure(&format!("lcap_requests_refused_total{{reason=\"{reason}\"}}")).unwrap()
}

/// Topics that libzmq's tree of subscriptions has the most trouble with: they look like ours, and differ
/// late or early.
fn flood(daemon: &Daemon, n_topics: usize, topic: impl Fn(usize) -> Vec<u8>) -> Vec<zmq::Socket> {
    let context = zmq::Context::new();
    let sockets = (0..31).map(|nth| {
        let socket = context.socket(zmq::SUB).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_sndhwm(0).unwrap();
        socket.connect(daemon.setup().publish_endpoint("changelog")).unwrap();
        for number in 0..n_topics {
            socket.set_subscribe(&topic(nth * n_topics + number)).unwrap();
        }
        socket
    });
    sockets.collect()
}

#[test]
fn a_flood_of_subscriptions_is_cut() {
    let hello = |number: usize, len: usize| {
        let mut topic = format!("\0hello\0changelog\0{MDT}\0{number}-").into_bytes();
        topic.resize(len, b'x');
        topic
    };
    type Make = Box<dyn Fn(usize) -> Vec<u8>>;
    let floods: [(&str, usize, Make); 4] = [
        ("long hellos", 4000, Box::new(move |number| hello(number, 400))),
        ("short hellos", 20_000, Box::new(move |number| hello(number, 60))),
        ("not ours", 20_000, Box::new(|number| format!("{number}-topic").into_bytes())),
        ("longer than any", 100, Box::new(move |number| hello(number, 10_000))),
    ];
    for (what, n_topics, topic) in floods {
        let setup =
            Setup::new().on_tcp().server("http = \"127.0.0.1:0\"\nmemory_limit = \"16MiB\"");
        let setup = setup.mdt(MDT, "sim:rate=2000").broadcast("changelog", "");
        let daemon = setup.start();
        let mut honest = Honest::new(&daemon);
        honest.read(500);
        let (_, before) = daemon.memory();
        let sockets = flood(&daemon, n_topics, topic);
        honest.read(4000);
        if what != "longer than any" {
            wait_until(what, || refused(&daemon, "limit") >= 31.0);
            assert!(daemon.log().contains("the connection is cut"), "{what}");
        }
        let (peak, _) = daemon.memory();
        let grown = peak.saturating_sub(before) >> 20;
        assert!(grown < 150, "{what}: {grown} MiB more at the worst moment");
        drop(sockets);
        honest.read(2000);
    }
}

/// libzmq keeps the parts of a message until the last has come, which never does.
#[test]
fn a_message_without_end_is_cut() {
    const MOST: usize = 1 << 30;
    let more = "[hsm]\nfsname = \"lustre\"\nmovers = \"tcp://127.0.0.1:*\"";
    let setup = Setup::new().on_tcp().server("http = \"127.0.0.1:0\"\nmemory_limit = \"16MiB\"");
    let setup = setup.mdt(MDT, "sim:rate=2000").broadcast("changelog", "").queue("work", "");
    let daemon = setup.more(more).start();
    let mut honest = Honest::new(&daemon);
    honest.read(500);
    let log = daemon.log();
    let movers = log.split("movers are served").nth(1).unwrap().split_once("tcp://").unwrap().1;
    let movers = movers.split_once('"').unwrap().0.to_owned();
    let host = |endpoint: &str| endpoint.trim_start_matches("tcp://").to_owned();
    let doors = [
        host(daemon.setup().control_endpoint()),
        host(daemon.setup().publish_endpoint("work")),
        movers,
    ];
    let (_, before) = daemon.memory();
    for door in &doors {
        let sent = endless(door, MOST);
        assert!((16 << 20..MOST).contains(&sent), "{door}: {sent} bytes");
        honest.read(200);
    }
    wait_until("all three are counted", || refused(&daemon, "limit") >= 3.0);
    assert!(daemon.log().contains("a message without end"));
    let (peak, _) = daemon.memory();
    let grown = peak.saturating_sub(before) >> 20;
    assert!(grown < 400, "{grown} MiB more at the worst moment");
}

#[test]
fn a_flood_of_connections_leaves_room_for_others() {
    let server = "http = \"127.0.0.1:0\"\nmax_connections = 40";
    let setup = Setup::new().on_tcp().server(server).mdt(MDT, "sim:rate=2000");
    let daemon = setup.broadcast("changelog", "").start();
    let mut honest = Honest::new(&daemon);
    honest.read(500);
    let before = n_descriptors(&daemon);
    let address = daemon.setup().control_endpoint().trim_start_matches("tcp://").to_owned();
    let held: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(&address).ok()).collect();
    wait_until("those beyond the limit are counted", || refused(&daemon, "limit") >= 150.0);
    wait_until("they are closed", || n_descriptors(&daemon) <= before + 40);
    honest.read(2000);
    drop(held);
    wait_until("there is room again", || {
        daemon.control_within(Duration::from_millis(500)).status().is_ok()
    });
}
