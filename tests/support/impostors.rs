//! Attackers of an lcapd that demands keys: with wrong ones, with recorded bytes, in the name of others.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lcapclient::{Control, KeyPair, Keys};

use crate::abuse::{Abuse, connect};
use crate::daemon::{Daemon, PATIENCE};
use crate::rng::Rng;
use crate::secured::Secured;

/// For answers that never come.
const SHORT: Duration = Duration::from_millis(100);

/// Hands a client's connections on to an lcapd, and keeps what the client says.
#[derive(Debug)]
pub struct Recorder {
    port: u16,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// In front of `host:port`.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (kept, to) = (Arc::clone(&said), to.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                let (Ok(back), Ok(there)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                let kept = Arc::clone(&kept);
                thread::spawn(move || {
                    pump(client, server, |piece| {
                        kept.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend_from_slice(piece);
                    });
                });
                thread::spawn(move || pump(there, back, |_| {}));
            }
        });
        Self { port, said }
    }

    /// Where the client has to connect.
    pub fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Everything that was said.
    pub fn said(&self) -> Vec<u8> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut note: impl FnMut(&[u8])) {
    let mut buf = [0; 16 << 10];
    while let Ok(n) = from.read(&mut buf) {
        let piece = buf.get(..n).unwrap_or_default();
        note(piece);
        if n == 0 || to.write_all(piece).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Says recorded bytes again; true if the server hung up.
pub fn replay(address: &str, bytes: &[u8], at_once: bool) -> bool {
    let Some(mut stream) = connect(address) else { return false };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    // A greeting has 64 bytes; the server waits for it, and says the same.
    let (greeting, rest) = bytes.split_at(bytes.len().min(64));
    let _ = stream.write_all(greeting);
    if !at_once {
        let _ = stream.read_exact(&mut [0; 64]);
    }
    let _ = stream.write_all(rest);
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// Who may do what at the lcapd that is attacked.
#[derive(Clone)]
struct Attacked {
    control: String,
    streams: Vec<String>,
    /// Of a client that may read `changelog` as `own`, and nothing else.
    known: Keys,
    /// On no list.
    unknown: Keys,
    /// For another server.
    elsewhere: Keys,
    /// A request of an administrator's, as it went over the wire.
    recorded: Vec<u8>,
}

/// What was let in that should not have been; 0.
#[derive(Clone, Debug, Default)]
pub struct LetIn(Arc<AtomicU64>);

impl LetIn {
    /// How often.
    pub fn n(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self, refused: bool) {
        self.0.fetch_add(u64::from(!refused), Ordering::Relaxed);
    }
}

fn host(endpoint: &str) -> String {
    endpoint.trim_start_matches("tcp://").to_owned()
}

/// The wire image of an administrator registering reader `ghost`, which is taken back.
///
/// # Panics
/// If that does not work.
pub fn record_registration(daemon: &Daemon, secured: &Secured) -> Vec<u8> {
    let recorder = Recorder::start(&host(daemon.setup().control_endpoint()));
    let mut admin = Control::new(&recorder.endpoint(), Some(secured.keys("admin")), PATIENCE)
        .expect("a connection");
    let from = lcap_wire::control::From::Oldest;
    admin.register("changelog", "ghost", Vec::new(), from).expect("registered");
    let said = recorder.said();
    daemon.control().deregister("changelog", "ghost").expect("deregistered");
    said
}

/// Adds attackers of every kind to those that need no keys. `secured` must have allowed `own` to read `changelog`
/// as reader `own`, and the daemon must have a reader `audit`.
///
/// # Panics
/// If something cannot be prepared.
pub fn attack(
    abuse: &mut Abuse,
    daemon: &Daemon,
    secured: &Secured,
    streams: &[&str],
    seed: u64,
) -> LetIn {
    secured.stranger("mallory");
    let elsewhere = KeyPair::generate().expect("keys").public.to_z85();
    let attacked = Attacked {
        control: daemon.setup().control_endpoint().to_owned(),
        streams: streams.iter().map(|s| daemon.setup().publish_endpoint(s).to_owned()).collect(),
        known: secured.keys("own"),
        unknown: secured.keys("mallory"),
        elsewhere: Keys::new(&elsewhere, Some(&secured.key_file("own"))).expect("keys"),
        recorded: record_registration(daemon, secured),
    };
    let let_in = LetIn::default();
    let (of, noted) = (attacked.clone(), let_in.clone());
    abuse.attack(seed + 10, move |rng| wrong_keys(rng, &of, &noted));
    let (of, noted) = (attacked.clone(), let_in.clone());
    abuse.attack(seed + 11, move |rng| stolen_names(rng, &of, &noted));
    let (of, noted) = (attacked.clone(), let_in.clone());
    abuse.attack(seed + 12, move |rng| replays(rng, &of, &noted));
    abuse.attack(seed + 13, move |rng| halves(rng, &attacked));
    let_in
}

fn wrong_keys(rng: &mut Rng, attacked: &Attacked, let_in: &LetIn) {
    let keys = match rng.below(3) {
        0 => Some(attacked.unknown),
        1 => Some(attacked.elsewhere),
        _ => None,
    };
    let Ok(mut control) = Control::new(&attacked.control, keys, SHORT) else { return };
    let_in.check(control.status().is_err());
}

/// With a key that is on the list, as somebody else.
fn stolen_names(rng: &mut Rng, attacked: &Attacked, let_in: &LetIn) {
    let Ok(control) = Control::new(&attacked.control, Some(attacked.known), PATIENCE) else {
        return;
    };
    let mut control = control;
    let refused = rustix::io::Errno::ACCESS.raw_os_error();
    for _ in 0..50 {
        let from = lcap_wire::control::From::Oldest;
        let outcome = match rng.below(4) {
            0 => control.clear(None, "lustre-MDT0000", "audit", rng.below(1 << 20)),
            1 => control.deregister("changelog", "audit"),
            2 => control.register("changelog", "another", Vec::new(), from),
            _ => control.clear(Some("work"), "lustre-MDT0000", "audit", u64::MAX),
        };
        // One that was not answered (there are too many connections) was not let in either.
        let is_refused =
            |error: &lcapclient::ClientError| [refused, libc_timeout()].contains(&error.errno());
        let_in.check(outcome.as_ref().err().is_some_and(is_refused));
    }
}

fn libc_timeout() -> i32 {
    rustix::io::Errno::TIMEDOUT.raw_os_error()
}

/// That nothing comes of them is seen by whoever asks for the readers afterwards.
fn replays(rng: &mut Rng, attacked: &Attacked, let_in: &LetIn) {
    let mut bytes = attacked.recorded.clone();
    if rng.below(2) == 0 {
        let at = rng.index(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
    }
    if rng.below(4) == 0 {
        bytes.truncate(rng.index(bytes.len()));
        // What is cut short may wait for more.
        if let Some(mut stream) = connect(&host(&attacked.control)) {
            let _ = stream.write_all(&bytes);
        }
        return;
    }
    let mut doors = vec![&attacked.control];
    doors.extend(&attacked.streams);
    let door = host(doors[rng.index(doors.len())]);
    let_in.check(replay(&door, &bytes, rng.below(2) == 0));
}

/// Handshakes that begin, and do not go on; some are held for a while.
fn halves(rng: &mut Rng, attacked: &Attacked) {
    let mut held = Vec::new();
    for _ in 0..20 {
        let Some(mut stream) = connect(&host(&attacked.control)) else { continue };
        let end = rng.index(attacked.recorded.len().min(400));
        let _ = stream.write_all(&attacked.recorded[..end]);
        held.push(stream);
    }
    thread::sleep(Duration::from_millis(rng.below(50)));
}
