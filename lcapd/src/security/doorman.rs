//! How many connections there may be, in all and from one address, and how much those to broadcast
//! streams may say, and others without ever coming to an end.
//!
//! libzmq accepts as many as there are descriptors, and when these are gone nothing else works either. An
//! XPUB socket takes in every subscription that is there before it lets its owner see the first one, and
//! takes longer for it than a client takes to send more. So who says too much is found by what has arrived on
//! its connection, on another thread than that.
//!
//! A message of any other client is bounded by frame only. libzmq keeps the frames until the last one has
//! come, however many there are, and nobody sees them. So bytes are counted that have arrived since a whole message was
//! taken from the connection.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use lcap_ffi::connection::Connection;

/// Bytes that a subscriber may have said; a subscription has a hundred as a rule, 160 with CURVE.
const MAX_SAID_BYTES: u64 = 192 << 10;
/// Of all of them together, in the same way.
const MAX_ALL_SAID_BYTES: u64 = 2 << 20;
/// When all have said too much, those go that have said this much.
const MODEST_BYTES: u64 = 4 << 10;
/// After so many seconds what was said does not count any more.
const FORGOTTEN_SECONDS: u64 = 8;

/// Bytes that a client may have sent since its last whole message; the longest one of a mover has less.
const MAX_UNFINISHED_BYTES: u64 = 32 << 20;
/// Of all of them together, and how little does not count then.
const MAX_ALL_UNFINISHED_BYTES: u64 = 128 << 20;
const MODEST_UNFINISHED_BYTES: u64 = 1 << 20;
/// What has arrived may be whole, and not taken yet.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It only subscribes.
    Subscribes,
    /// It sends messages, of which so many were taken.
    Asks(u32),
}

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// Look again soon.
    Doubtful,
    /// Cut it, and why.
    Cut(&'static str),
}

/// Counts connections.
#[derive(Debug)]
pub struct Doorman {
    max_connections: usize,
    /// By the number that they have, since the end of one is told by that alone.
    by_number: HashMap<i32, Guest>,
    by_address: HashMap<IpAddr, usize>,
    all_said: Said,
    all_unfinished: u64,
}

/// Bytes, of which a part is forgotten each second.
#[derive(Debug, Default)]
struct Said {
    n_bytes: u64,
    since: Duration,
}

impl Said {
    fn add(&mut self, n_bytes: u64, limit: u64, now: Duration) -> u64 {
        let seconds = now.saturating_sub(self.since);
        let forgotten = u64::try_from(seconds.as_millis()).unwrap_or(u64::MAX);
        let forgotten = forgotten.saturating_mul(limit) / FORGOTTEN_SECONDS / 1000;
        if forgotten > 0 {
            (self.n_bytes, self.since) = (self.n_bytes.saturating_sub(forgotten), now);
        }
        self.n_bytes += n_bytes;
        self.n_bytes
    }
}

#[derive(Debug)]
struct Guest {
    connection: Connection,
    address: Option<IpAddr>,
    n_received: u64,
    said: Said,
    manner: Manner,
    /// Bytes since the last message that was taken.
    unfinished: u64,
    doubtful_since: Option<Duration>,
}

impl Doorman {
    /// Lets in so many, and half as many from one address.
    pub fn new(max_connections: usize) -> Self {
        Self {
            max_connections,
            by_number: HashMap::new(),
            by_address: HashMap::new(),
            all_said: Said::default(),
            all_unfinished: 0,
        }
    }

    /// A connection was accepted. The answer is why it is to be cut, if it is.
    pub fn enter(
        &mut self,
        number: i32,
        connection: Connection,
        manner: Manner,
    ) -> Option<&'static str> {
        self.leave(number); // its end was not told
        let address = connection.peer();
        let from_there = address.map_or(0, |address| {
            let count = self.by_address.entry(address).or_insert(0);
            *count += 1;
            *count
        });
        let guest = Guest {
            connection,
            address,
            n_received: 0,
            said: Said::default(),
            manner,
            unfinished: 0,
            doubtful_since: None,
        };
        self.by_number.insert(number, guest);
        self.excess(from_there)
    }

    fn excess(&mut self, from_there: usize) -> Option<&'static str> {
        if self.by_number.len() > self.max_connections {
            let gone = self.by_number.iter().filter(|(_, guest)| !guest.connection.is_open());
            for number in gone.map(|(&number, _)| number).collect::<Vec<_>>() {
                self.leave(number);
            }
        }
        if self.by_number.len() > self.max_connections {
            Some("too many connections")
        } else if from_there > self.max_connections.div_ceil(2) {
            Some("too many connections from one address")
        } else {
            None
        }
    }

    /// A subscriber has said so many bytes, altogether, by now. The answer is why the connection is to be
    /// cut, if it is.
    pub fn hear(&mut self, number: i32, n_received: u64, now: Duration) -> Option<&'static str> {
        let guest = self.by_number.get_mut(&number)?;
        let n_bytes = n_received.saturating_sub(guest.n_received);
        guest.n_received = n_received;
        let said = guest.said.add(n_bytes, MAX_SAID_BYTES, now);
        let all = self.all_said.add(n_bytes, MAX_ALL_SAID_BYTES, now);
        if said > MAX_SAID_BYTES || all > MAX_ALL_SAID_BYTES && said > MODEST_BYTES {
            Some("a flood of subscriptions")
        } else {
            None
        }
    }

    /// A client has sent so many bytes, altogether, by now, and so many messages of it were taken.
    pub fn wait_for(
        &mut self,
        number: i32,
        n_received: u64,
        n_taken: u32,
        now: Duration,
    ) -> Verdict {
        let Some(guest) = self.by_number.get_mut(&number) else { return Verdict::Fine };
        let before = guest.unfinished;
        let new = n_received.saturating_sub(std::mem::replace(&mut guest.n_received, n_received));
        let manner = Manner::Asks(n_taken);
        let is_same = std::mem::replace(&mut guest.manner, manner) == manner;
        guest.unfinished = if is_same { before + new } else { 0 };
        self.all_unfinished = self.all_unfinished - before + guest.unfinished;
        let is_too_much = guest.unfinished > MAX_UNFINISHED_BYTES
            || self.all_unfinished > MAX_ALL_UNFINISHED_BYTES
                && guest.unfinished > MODEST_UNFINISHED_BYTES;
        if !is_too_much {
            guest.doubtful_since = None;
            return Verdict::Fine;
        }
        let since = *guest.doubtful_since.get_or_insert(now);
        if now >= since + TAKEN_WITHIN {
            Verdict::Cut("a message without end")
        } else {
            Verdict::Doubtful
        }
    }

    /// Whether it only subscribes.
    pub fn subscribes(&self, number: i32) -> bool {
        self.by_number.get(&number).is_some_and(|guest| guest.manner == Manner::Subscribes)
    }

    /// The other side's address.
    pub fn address(&self, number: i32) -> Option<IpAddr> {
        self.by_number.get(&number)?.address
    }

    /// What a number stands for.
    pub fn connection(&self, number: i32) -> Option<Connection> {
        self.by_number.get(&number).map(|guest| guest.connection)
    }

    /// A connection has ended.
    pub fn leave(&mut self, number: i32) {
        let Some(guest) = self.by_number.remove(&number) else { return };
        self.all_unfinished -= guest.unfinished;
        let Some(address) = guest.address else { return };
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    /// How many there are.
    pub fn n_connections(&self) -> usize {
        self.by_number.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn pairs(n: usize) -> Vec<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (0..n)
            .map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0))
            .collect()
    }

    fn enter(doorman: &mut Doorman, stream: &TcpStream) -> Option<&'static str> {
        let number = stream.as_raw_fd();
        doorman.enter(number, Connection::of_fd(number).unwrap(), Manner::Asks(0))
    }

    #[test]
    fn who_says_too_much_goes() {
        let pairs = pairs(20);
        let mut doorman = Doorman::new(100);
        let number = |nth: usize| pairs[nth].1.as_raw_fd();
        for (_, own) in &pairs {
            assert_eq!(enter(&mut doorman, own), None);
        }
        let now = Duration::from_secs(1000);
        assert_eq!(doorman.hear(number(0), MAX_SAID_BYTES, now), None);
        assert!(doorman.hear(number(0), MAX_SAID_BYTES + 1, now).is_some());
        let later = now + Duration::from_secs(4);
        assert_eq!(
            doorman.hear(number(0), MAX_SAID_BYTES * 4 / 3, later),
            None,
            "half is forgotten"
        );

        let later = now + Duration::from_secs(60);
        let mut gone = (1..19).filter(|&nth| doorman.hear(number(nth), 180 << 10, later).is_some());
        assert_eq!(gone.next(), Some(12), "together they have said too much");
        assert_eq!(gone.count(), 6, "and so have all that come now");
        assert_eq!(doorman.hear(number(19), 1000, later), None, "but not who says little");
    }

    #[test]
    fn who_never_ends_a_message_goes() {
        let pairs = pairs(6);
        let mut doorman = Doorman::new(100);
        let number = |nth: usize| pairs[nth].1.as_raw_fd();
        for (_, own) in &pairs {
            assert_eq!(enter(&mut doorman, own), None);
        }
        let at = Duration::from_millis;
        let much = MAX_UNFINISHED_BYTES + 1;
        let mut look =
            |nth, bytes, taken, now| doorman.wait_for(number(nth), bytes, taken, at(now));
        let gone = Verdict::Cut("a message without end");
        // Each step: bytes, messages taken, when, and what comes of it.
        for (bytes, taken, now, want) in [
            (much - 1, 0, 0, Verdict::Fine),
            (much, 0, 10, Verdict::Doubtful),
            (much, 0, 109, Verdict::Doubtful),
            (much, 1, 110, Verdict::Fine),
            (2 * much, 1, 300, Verdict::Doubtful),
            (3 * much, 2, 500, Verdict::Fine),
            (4 * much, 2, 600, Verdict::Doubtful),
            (4 * much, 2, 700, gone),
        ] {
            assert_eq!(look(0, bytes, taken, now), want, "{bytes} {taken} {now}");
        }
        for nth in 1..5 {
            assert_eq!(look(nth, 20 << 20, 0, 800), Verdict::Fine);
        }
        assert_eq!(look(5, 20 << 20, 0, 800), Verdict::Doubtful, "together it is too much");
        doorman.leave(number(0));
        assert_eq!(doorman.wait_for(number(5), 20 << 20, 0, at(900)), Verdict::Fine);
        for nth in 1..6 {
            doorman.leave(number(nth));
        }
        assert_eq!(doorman.all_unfinished, 0);
    }

    #[test]
    fn no_more_than_are_allowed_come_in() {
        let mut pairs = pairs(6);
        let mut doorman = Doorman::new(8);
        for (nth, (_, own)) in pairs.iter().enumerate() {
            let want = (nth >= 4).then_some("too many connections from one address");
            assert_eq!(enter(&mut doorman, own), want, "{nth}");
        }
        for (_, own) in &pairs[4..] {
            doorman.leave(own.as_raw_fd());
        }
        assert_eq!(doorman.n_connections(), 4);
        doorman.leave(pairs[0].1.as_raw_fd());
        assert_eq!(enter(&mut doorman, &pairs[5].1), None, "one has gone");
        assert_eq!(enter(&mut doorman, &pairs[5].1), None, "the same number again");

        let mut small = Doorman::new(2);
        assert_eq!(enter(&mut small, &pairs[0].1), None);
        for (_, own) in &pairs[1..] {
            assert!(enter(&mut small, own).is_some());
        }
        pairs.truncate(1); // and nobody says so
        let others = self::pairs(1);
        assert_eq!(enter(&mut small, &others[0].1), Some("too many connections from one address"));
        assert!(small.n_connections() <= 2, "those that are gone are not counted");
    }
}
