//! Connections of libzmq's sockets, by the descriptor that a message came over: libzmq itself knows
//! no way to end one of them, or to tell one client's from another's.
//!
//! A descriptor's number is used again as soon as libzmq has closed it, on a thread of its own. So a
//! [`Connection`] is the number and the inode behind it, which is not, and [`Connection::cut`] also
//! wants it to be of the [`Door`] that it is said to have come in by. What remains is the moment between that look and
//! the cut; another client's connection through the same door may be cut then, and that client comes
//! back.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

/// A connection that was there when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    fd: c_int,
    inode: u64,
}

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// A TCP port.
    Port(u16),
    /// A Unix socket's path; an abstract one begins with NUL.
    Path(Vec<u8>),
}

/// One end of a connection.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Ip(IpAddr, u16),
    Unix(Vec<u8>),
}

impl Door {
    /// Of an endpoint as libzmq shows it.
    pub fn of_endpoint(endpoint: &str) -> Option<Self> {
        if let Some(path) = endpoint.strip_prefix("ipc://") {
            let path = path.strip_prefix('@').map_or(path.to_owned(), |name| format!("\0{name}"));
            return Some(Self::Path(path.into_bytes()));
        }
        endpoint.rsplit_once(':')?.1.parse().ok().map(Self::Port)
    }

    fn leads_to(&self, end: &End) -> bool {
        match (self, end) {
            (Self::Port(port), End::Ip(_, own)) => port == own,
            (Self::Path(path), End::Unix(own)) => path == own,
            _ => false,
        }
    }
}

impl Connection {
    /// Of a descriptor, if that is a socket now.
    pub fn of_fd(fd: c_int) -> Option<Self> {
        // SAFETY: all zeroes is a `stat`, which is plain numbers.
        let mut about: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: `about` is writable and as large as `fstat` expects. Any number may be asked for:
        // one that is no descriptor is an error.
        let rc = unsafe { libc::fstat(fd, &raw mut about) };
        let is_socket = rc == 0 && about.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        is_socket.then_some(Self { fd, inode: about.st_ino })
    }

    /// What a message came over, if it is still open.
    #[cfg(feature = "zmq")]
    pub fn of_message(message: &mut zmq::Message) -> Option<Self> {
        Self::of_fd(fd_of_message(message)?)
    }

    /// What of the other side's bytes has arrived, if it is TCP.
    pub fn n_received(self) -> Option<u64> {
        /// Where the kernel's `struct tcp_info` has `tcpi_bytes_received`, in words.
        const RECEIVED: usize = 16;
        let mut info = [0_u64; 32];
        let mut len = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
        // SAFETY: `info` is writable and `len` bytes long; the kernel writes no more than that, and says in
        // `len` how much it was.
        let rc = unsafe {
            libc::getsockopt(
                self.fd,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let is_told = rc == 0 && usize::try_from(len).ok()? >= (RECEIVED + 1) * size_of::<u64>();
        is_told.then(|| info[RECEIVED])
    }

    /// Whether nobody has closed it.
    pub fn is_open(self) -> bool {
        Self::of_fd(self.fd) == Some(self)
    }

    /// The other side's address; `None` if it is not TCP, or over.
    pub fn peer(self) -> Option<IpAddr> {
        match self.end(libc::getpeername)? {
            End::Ip(address, _) => Some(address),
            End::Unix(_) => None,
        }
    }

    /// Ends it, in both directions; libzmq notices, closes it, and forgets what it had of it. False if it
    /// is over, or did not come in by that door.
    pub fn cut(self, door: &Door) -> bool {
        let own = self.end(libc::getsockname);
        if !self.is_open() || !own.is_some_and(|own| door.leads_to(&own)) {
            return false;
        }
        // SAFETY: no memory is passed; any number may be given, see the module's text.
        unsafe { libc::shutdown(self.fd, libc::SHUT_RDWR) == 0 }
    }

    fn end(
        self,
        ask: unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int,
    ) -> Option<End> {
        // SAFETY: all zeroes is an address of no family.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let mut len = libc::socklen_t::try_from(size_of_val(&storage)).ok()?;
        // SAFETY: `ask` is getsockname or getpeername; `storage` is writable and `len` bytes long, which
        // is enough for every family.
        let rc = unsafe { ask(self.fd, (&raw mut storage).cast(), &raw mut len) };
        if rc != 0 {
            return None;
        }
        match c_int::from(storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that this is what the storage, which is larger, holds.
                let at = unsafe { *(&raw const storage).cast::<libc::sockaddr_in>() };
                let address = Ipv4Addr::from(u32::from_be(at.sin_addr.s_addr));
                Some(End::Ip(address.into(), u16::from_be(at.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let at = unsafe { *(&raw const storage).cast::<libc::sockaddr_in6>() };
                let address = Ipv6Addr::from(at.sin6_addr.s6_addr).to_canonical();
                Some(End::Ip(address, u16::from_be(at.sin6_port)))
            }
            libc::AF_UNIX => {
                // SAFETY: as above.
                let at = unsafe { *(&raw const storage).cast::<libc::sockaddr_un>() };
                let n = usize::try_from(len).ok()?.saturating_sub(size_of::<libc::sa_family_t>());
                let path: Vec<u8> = at.sun_path.iter().take(n).map(|c| c.cast_unsigned()).collect();
                // A name in the file system ends with NUL, an abstract one with its length.
                let abstract_name = path.first() == Some(&0) && path.len() > 1;
                let end = path.iter().position(|&byte| byte == 0).filter(|_| !abstract_name);
                Some(End::Unix(path[..end.unwrap_or(path.len())].to_vec()))
            }
            _ => None,
        }
    }
}

/// The number of the connection that a message came over; perhaps another's by now.
#[cfg(feature = "zmq")]
pub fn fd_of_message(message: &mut zmq::Message) -> Option<c_int> {
    // What ZMQ_SRCFD reads.
    message.gets("__fd")?.parse().ok()
}

/// Wakes when something arrives on one of many connections. One that is closed is watched no more.
#[derive(Debug)]
pub struct Arrivals(OwnedFd);

impl Arrivals {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Readable when there is something for [`Self::take`].
    pub fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Watches one more. What has arrived already counts as arriving now.
    ///
    /// # Errors
    /// What the kernel says: it is over, or too many are watched.
    pub fn watch(&self, connection: Connection) -> io::Result<()> {
        // Told once for each arrival, not for as long as libzmq has not read it.
        self.control(libc::EPOLL_CTL_ADD, libc::EPOLLIN | libc::EPOLLET, connection)
    }

    /// Watches one more until something arrives on it, and then no more before [`Self::watch_again`].
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_once(&self, connection: Connection) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, libc::EPOLLIN | libc::EPOLLONESHOT, connection)
    }

    /// Watches one once more.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_again(&self, connection: Connection) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, libc::EPOLLIN | libc::EPOLLONESHOT, connection)
    }

    fn control(&self, how: c_int, events: c_int, connection: Connection) -> io::Result<()> {
        let events = events.cast_unsigned();
        let mut event = libc::epoll_event { events, u64: u64::from(connection.fd.cast_unsigned()) };
        // SAFETY: `event` is readable; any number may be given for the descriptor.
        let rc = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), how, connection.fd, &raw mut event) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Numbers of descriptors on which something has arrived since they were asked for last; some of
    /// them, if there are many. What libzmq has read meanwhile is not told of any more; it is in the
    /// count when something arrives next.
    pub fn take(&self, numbers: &mut Vec<c_int>) {
        const MOST: usize = 64;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST];
        // SAFETY: `events` is writable and has room for as many as we say.
        let n = unsafe {
            let most = c_int::try_from(MOST).unwrap_or(1);
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), most, 0)
        };
        let woken = events.iter().take(usize::try_from(n).unwrap_or(0));
        numbers.extend(woken.filter_map(|event| c_int::try_from(event.u64).ok()));
    }
}

#[cfg(feature = "zmq")]
#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn connected(endpoint: &str) -> (zmq::Context, zmq::Socket, zmq::Socket, Door) {
        let context = zmq::Context::new();
        let xpub = context.socket(zmq::XPUB).unwrap();
        xpub.set_rcvtimeo(60_000).unwrap();
        xpub.bind(endpoint).unwrap();
        let endpoint = xpub.get_last_endpoint().unwrap().unwrap();
        let sub = context.socket(zmq::SUB).unwrap();
        sub.connect(&endpoint).unwrap();
        sub.set_subscribe(b"topic").unwrap();
        let door = Door::of_endpoint(&endpoint).unwrap();
        (context, xpub, sub, door)
    }

    /// The other client stays; the one that is cut comes back by itself, over another connection.
    #[test]
    fn one_connection_is_cut_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let ipc = format!("ipc://{}/socket", dir.path().display());
        for endpoint in ["tcp://127.0.0.1:*", "tcp://*:*", ipc.as_str()] {
            let (context, xpub, sub, door) = connected(endpoint);
            let mut subscription = xpub.recv_msg(0).unwrap();
            let first = Connection::of_message(&mut subscription).unwrap();
            let other = context.socket(zmq::SUB).unwrap();
            other.connect(&xpub.get_last_endpoint().unwrap().unwrap()).unwrap();
            other.set_subscribe(b"other").unwrap();
            let mut subscription = xpub.recv_msg(0).unwrap();
            let second = Connection::of_message(&mut subscription).unwrap();
            assert_ne!(first, second);
            let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
            assert_eq!(second.peer(), endpoint.starts_with("tcp").then_some(loopback));
            assert!(!first.cut(&Door::Port(1)), "not by that door");
            assert!(first.cut(&door), "{endpoint}: {first:?}");
            assert_eq!(&*xpub.recv_msg(0).unwrap(), b"\0topic", "libzmq forgets it");
            // It subscribes again when its owner looks at it.
            xpub.set_rcvtimeo(10).unwrap();
            let mut again = loop {
                let _ = sub.recv_msg(zmq::DONTWAIT);
                if let Ok(message) = xpub.recv_msg(0) {
                    break message;
                }
            };
            assert_eq!(&*again, b"\x01topic");
            let again = Connection::of_message(&mut again).unwrap();
            assert_ne!(again, first);
            assert!(!first.is_open() && !first.cut(&door));
            assert!(second.is_open() && again.is_open());
            drop((sub, other));
        }
    }

    #[test]
    fn arrivals_are_counted() {
        let (_context, xpub, sub, _) = connected("tcp://127.0.0.1:*");
        let connection = Connection::of_message(&mut xpub.recv_msg(0).unwrap()).unwrap();
        let arrivals = Arrivals::new().unwrap();
        arrivals.watch(connection).unwrap();
        assert!(arrivals.watch(connection).is_err(), "it is watched already");
        let before = connection.n_received().unwrap();
        assert!(before >= 64, "a greeting has {before} bytes");
        let mut numbers = Vec::new();
        arrivals.take(&mut numbers); // what was there
        numbers.clear();
        // As long as libzmq reads at once there is nothing to tell. Nobody takes these from it, so it
        // stops reading.
        let (mut sent, started) = (0_u32, Instant::now());
        while numbers.is_empty() {
            sent += 1;
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(60), "nothing was told of {sent} messages");
            // What libzmq's thread has no room for it drops: let it run.
            std::thread::yield_now();
            let mut topic = [b'x'; 200];
            topic[..4].copy_from_slice(&sent.to_le_bytes());
            sub.set_subscribe(&topic).unwrap();
            arrivals.take(&mut numbers);
        }
        assert_eq!(numbers, [connection.fd]);
        let bytes = connection.n_received().unwrap() - before;
        assert!((200..300 * u64::from(sent)).contains(&bytes), "{bytes} bytes of {sent} messages");
    }

    #[test]
    fn doors_are_read_from_endpoints() {
        let cases = [
            ("tcp://127.0.0.1:8189", Some(Door::Port(8189))),
            ("tcp://[::]:8189", Some(Door::Port(8189))),
            ("ipc:///run/lcap/x:1", Some(Door::Path(b"/run/lcap/x:1".to_vec()))),
            ("ipc://@name", Some(Door::Path(b"\0name".to_vec()))),
            ("inproc://x", None),
        ];
        for (endpoint, want) in cases {
            assert_eq!(Door::of_endpoint(endpoint), want, "{endpoint}");
        }
    }
}
