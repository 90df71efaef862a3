//! The directory: takes the kernel's requests, answers them, and keeps those that wait.
//!
//! One thread, which waits for the next request, the next record that somebody waits for, or its
//! end, whichever comes first.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lcap_ffi::MdtName;
use lcap_ffi::device::{poll_any, read_spare};
use lcap_ffi::fuse::{self, Attr, InHeader, Mount, OutHeader, opcode};
use lcapd::source::sim::{SimActions, SimMdt};
use zerocopy::{Immutable, IntoBytes};

use super::open_log::{Answer, Events, OpenLog, ServedMdt};
use super::tree::{Node, Tree};

/// `OBD_IOC_CHLG_SET_FLAGS`.
const IOC_SET_FLAGS: u32 = 0x8008_66e9;
/// `OBD_IOC_CHANGELOG_FILTER`: knows only users that were registered with a mask; there are none.
const IOC_FILTER: u32 = 0x4030_66b3;
/// `FUSE_NOTIFY_POLL`.
const NOTIFY_POLL: i32 = 1;
/// Pages of 4 KiB that one read may have: 1 MiB.
const MAX_PAGES: u16 = 256;
/// How long the kernel may believe what it was told: nothing ever changes.
const VALID_SECONDS: u64 = 3600;

/// An MDT.
#[derive(Debug)]
struct Entry {
    served: Arc<ServedMdt>,
    /// Its list of HSM actions.
    list: Option<SimActions>,
}

/// A read that waits for a record.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    unique: u64,
    fh: u64,
    position: u64,
    size: usize,
}

/// The mounted directory.
#[derive(Debug)]
pub(super) struct Server {
    mount: Mount,
    scan: Duration,
    tree: Tree,
    entries: Vec<Entry>,
    open: HashMap<u64, OpenLog>,
    /// Lists, as they were when they were opened.
    texts: HashMap<u64, Vec<u8>>,
    last_fh: u64,
    waiting: Vec<Waiting>,
    /// Files that somebody polls, with the kernel's name for that.
    polled: HashMap<u64, u64>,
}

/// An errno, as the answer to a request.
struct Errno(i32);

impl Server {
    pub(super) fn mount(
        dir: &Path,
        mdts: Vec<(MdtName, Arc<SimMdt>)>,
        scan: Duration,
    ) -> io::Result<Self> {
        let names = mdts.iter().map(|(name, _)| name.to_string()).collect();
        let entry = |(name, mdt): (MdtName, Arc<SimMdt>)| {
            let list = mdt.options().actions(&name);
            Entry { served: Arc::new(ServedMdt::new(mdt)), list }
        };
        let entries: Vec<Entry> = mdts.into_iter().map(entry).collect();
        let has_lists = entries.iter().any(|entry| entry.list.is_some());
        Ok(Self {
            mount: Mount::new(dir)?,
            scan,
            tree: Tree::new(names, has_lists),
            entries,
            open: HashMap::new(),
            texts: HashMap::new(),
            last_fh: 0,
            waiting: Vec::new(),
            polled: HashMap::new(),
        })
    }

    pub(super) fn serve(&mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut request = Vec::with_capacity(fuse::REQUEST_BYTES);
        loop {
            let wake = self.serve_waiting()?;
            let timeout = wake.map(|at| at.saturating_duration_since(Instant::now()));
            let [ready, stopped] =
                poll_any([self.mount.device().as_raw_fd(), stop.as_raw_fd()], timeout)?;
            if stopped.any() {
                return Ok(());
            }
            if !ready.any() {
                continue;
            }
            request.clear();
            match read_spare(self.mount.device().as_fd(), &mut request, fuse::REQUEST_BYTES) {
                Ok(_) => {}
                Err(e) => match e.raw_os_error() {
                    // A request that was taken back, or a signal.
                    Some(libc::EAGAIN | libc::EINTR | libc::ENOENT) => continue,
                    Some(libc::ENODEV) => return Ok(()), // unmounted
                    _ => return Err(e),
                },
            }
            let Some((header, body)) = fuse::take::<InHeader>(&request) else { continue };
            if let Err(Errno(errno)) = self.answer(&header, body)? {
                self.reply(header.unique, -errno, &[])?;
            }
        }
    }

    /// Answers a request, or says which errno does. Some need no answer, or get one later.
    fn answer(&mut self, header: &InHeader, body: &[u8]) -> io::Result<Result<(), Errno>> {
        let malformed = Ok(Err(Errno(libc::EIO)));
        match header.opcode {
            opcode::INIT => {
                let Some((init, _)) = fuse::take::<fuse::InitIn>(body) else { return malformed };
                let out = fuse::InitOut {
                    major: fuse::VERSION.0,
                    minor: fuse::VERSION.1,
                    max_readahead: 0,
                    flags: init.flags & fuse::INIT_MAX_PAGES,
                    max_background: 16,
                    congestion_threshold: 12,
                    max_write: 4096,
                    time_gran: 1,
                    max_pages: MAX_PAGES,
                    ..Default::default()
                };
                self.reply_with(header, &out)
            }
            opcode::LOOKUP => {
                let name = body.split(|&b| b == 0).next().unwrap_or_default();
                let children = self.tree.node(header.nodeid).map(|node| self.tree.children(node));
                let mut children = children.unwrap_or_default().into_iter();
                let found = children.find(|(child, _)| child.as_bytes() == name);
                let Some((_, node)) = found.filter(|(_, node)| self.is_here(*node)) else {
                    return Ok(Err(Errno(libc::ENOENT)));
                };
                let nodeid = self.tree.id(node);
                // A list may be elsewhere the next time.
                let valid = if matches!(node, Node::Actions(_)) { 0 } else { VALID_SECONDS };
                let out = fuse::EntryOut {
                    nodeid,
                    entry_valid: valid,
                    attr_valid: valid,
                    attr: attributes(nodeid, node),
                    ..Default::default()
                };
                self.reply_with(header, &out)
            }
            // A device has no size to be changed: `> file` in a shell does no harm.
            opcode::GETATTR | opcode::SETATTR => {
                let Some(node) = self.tree.node(header.nodeid) else {
                    return Ok(Err(Errno(libc::ENOENT)));
                };
                let attr = attributes(header.nodeid, node);
                let out = fuse::AttrOut { attr_valid: VALID_SECONDS, attr, ..Default::default() };
                self.reply_with(header, &out)
            }
            opcode::OPENDIR => self.reply_with(header, &fuse::OpenOut::default()),
            opcode::READDIR => match fuse::take::<fuse::ReadIn>(body) {
                Some((read, _)) => self.reply_bytes(header, &self.listing(header.nodeid, &read)),
                None => malformed,
            },
            opcode::OPEN => {
                self.last_fh += 1;
                if let Some(Node::Actions(mdt)) = self.tree.node(header.nodeid) {
                    let list = self.entries.get(mdt).and_then(|entry| entry.list.as_ref()?.open());
                    let Some(mut list) = list else { return Ok(Err(Errno(libc::ENOENT))) };
                    let mut text = Vec::new();
                    list.read_to_end(&mut text)?;
                    self.texts.insert(self.last_fh, text);
                } else {
                    let Some(entry) = self.entry(header.nodeid) else {
                        return Ok(Err(Errno(libc::ENOENT)));
                    };
                    let log = OpenLog::new(Arc::clone(&entry.served), self.scan);
                    self.open.insert(self.last_fh, log);
                }
                let out = fuse::OpenOut {
                    fh: self.last_fh,
                    flags: fuse::OPEN_DIRECT_IO,
                    ..Default::default()
                };
                self.reply_with(header, &out)
            }
            opcode::READ => match fuse::take::<fuse::ReadIn>(body) {
                Some((read, _)) => self.read(header, &read),
                None => malformed,
            },
            opcode::WRITE => match fuse::take::<fuse::WriteIn>(body) {
                Some((write, data)) => self.write(header, &write, data),
                None => malformed,
            },
            opcode::IOCTL => match fuse::take::<fuse::IoctlIn>(body) {
                Some((ioctl, _)) => self.ioctl(header, &ioctl),
                None => malformed,
            },
            opcode::POLL => match fuse::take::<fuse::PollIn>(body) {
                Some((poll, _)) => self.poll(header, &poll),
                None => malformed,
            },
            opcode::RELEASE => {
                if let Some((release, _)) = fuse::take::<fuse::ReleaseIn>(body) {
                    self.open.remove(&release.fh);
                    self.texts.remove(&release.fh);
                    self.polled.remove(&release.fh);
                }
                self.reply_bytes(header, &[])
            }
            opcode::INTERRUPT => {
                if let Some((interrupt, _)) = fuse::take::<fuse::InterruptIn>(body)
                    && let Some(at) = self.waiting.iter().position(|w| w.unique == interrupt.unique)
                {
                    let waiting = self.waiting.swap_remove(at);
                    self.reply(waiting.unique, -libc::EINTR, &[])?;
                }
                Ok(Ok(()))
            }
            opcode::STATFS => {
                let out = fuse::StatfsOut { bsize: 4096, namelen: 255, ..Default::default() };
                self.reply_with(header, &out)
            }
            opcode::FLUSH | opcode::RELEASEDIR | opcode::ACCESS | opcode::DESTROY => {
                self.reply_bytes(header, &[])
            }
            opcode::FORGET | opcode::BATCH_FORGET => Ok(Ok(())),
            _ => Ok(Err(Errno(libc::ENOSYS))),
        }
    }

    /// The MDT of a device.
    fn entry(&self, nodeid: u64) -> Option<&Entry> {
        match self.tree.node(nodeid)? {
            Node::Device(mdt) => self.entries.get(mdt),
            _ => None,
        }
    }

    /// A list is not always here.
    fn is_here(&self, node: Node) -> bool {
        let Node::Actions(mdt) = node else { return true };
        self.entries
            .get(mdt)
            .is_some_and(|entry| entry.list.as_ref().is_some_and(SimActions::is_here))
    }

    fn read(&mut self, header: &InHeader, read: &fuse::ReadIn) -> io::Result<Result<(), Errno>> {
        if let Some(text) = self.texts.get(&read.fh) {
            let from = usize::try_from(read.offset).unwrap_or(usize::MAX).min(text.len());
            let end = from.saturating_add(read.size as usize).min(text.len());
            return self.reply_bytes(header, &text[from..end]);
        }
        let Some(log) = self.open.get_mut(&read.fh) else { return Ok(Err(Errno(libc::EBADF))) };
        let nonblocking = read.flags & libc::O_NONBLOCK.cast_unsigned() != 0;
        let size = read.size as usize;
        match log.read(read.offset, size, nonblocking, Instant::now()) {
            Answer::Data(data) => self.reply_bytes(header, &data),
            Answer::Error(errno) => Ok(Err(Errno(errno))),
            Answer::Wait(_) => {
                let (unique, fh, position) = (header.unique, read.fh, read.offset);
                self.waiting.push(Waiting { unique, fh, position, size });
                Ok(Ok(()))
            }
        }
    }

    fn write(
        &mut self,
        header: &InHeader,
        write: &fuse::WriteIn,
        data: &[u8],
    ) -> io::Result<Result<(), Errno>> {
        let Some(entry) = self.entry(header.nodeid) else {
            return Ok(Err(Errno(libc::EBADF)));
        };
        let text = data.get(..write.size as usize).unwrap_or(data);
        match entry.served.command(text) {
            Ok(()) => {
                let out = fuse::WriteOut { size: write.size, ..Default::default() };
                self.reply_with(header, &out)
            }
            Err(errno) => Ok(Err(Errno(errno))),
        }
    }

    fn ioctl(&mut self, header: &InHeader, ioctl: &fuse::IoctlIn) -> io::Result<Result<(), Errno>> {
        let Some(log) = self.open.get_mut(&ioctl.fh) else { return Ok(Err(Errno(libc::EBADF))) };
        match ioctl.cmd {
            IOC_SET_FLAGS => {
                log.set_flags(ioctl.arg);
                // Nothing is written to where the kernel thinks that the argument points.
                self.reply_with(header, &fuse::IoctlOut::default())
            }
            IOC_FILTER => Ok(Err(Errno(libc::ENOENT))),
            _ => Ok(Err(Errno(libc::EINVAL))),
        }
    }

    fn poll(&mut self, header: &InHeader, poll: &fuse::PollIn) -> io::Result<Result<(), Errno>> {
        let Some(log) = self.open.get_mut(&poll.fh) else { return Ok(Err(Errno(libc::EBADF))) };
        let events = log.poll(Instant::now());
        if !events.any() && poll.flags & fuse::POLL_SCHEDULE_NOTIFY != 0 {
            self.polled.insert(poll.fh, poll.kh);
        }
        let out = fuse::PollOut { revents: bits(events), ..Default::default() };
        self.reply_with(header, &out)
    }

    /// Answers those who need wait no more; returns when to look again.
    fn serve_waiting(&mut self) -> io::Result<Option<Instant>> {
        let now = Instant::now();
        let mut wake: Option<Instant> = None;
        let mut sooner = |at: Option<Instant>| {
            wake = match (wake, at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        let mut answers = Vec::new();
        self.waiting.retain(|waiting| {
            let answer = match self.open.get_mut(&waiting.fh) {
                Some(log) => log.read(waiting.position, waiting.size, false, now),
                None => Answer::Error(libc::EBADF),
            };
            if let Answer::Wait(at) = answer {
                sooner(at);
                return true;
            }
            answers.push((waiting.unique, answer));
            false
        });
        let mut notices = Vec::new();
        self.polled.retain(|fh, kh| {
            let events = self.open.get_mut(fh).map(|log| log.poll(now)).unwrap_or_default();
            sooner(events.look_again);
            if events.any() {
                notices.push(*kh);
            }
            !events.any()
        });
        for (unique, answer) in answers {
            match answer {
                Answer::Data(data) => self.reply(unique, 0, &data)?,
                Answer::Error(errno) => self.reply(unique, -errno, &[])?,
                Answer::Wait(_) => {}
            }
        }
        for kh in notices {
            self.reply(0, NOTIFY_POLL, &kh.to_ne_bytes())?;
        }
        Ok(wake)
    }

    /// `.`, `..` and the files, from the given place on, as many as fit.
    fn listing(&self, nodeid: u64, read: &fuse::ReadIn) -> Vec<u8> {
        let Some(directory) = self.tree.node(nodeid) else { return Vec::new() };
        let files = self.tree.children(directory);
        let files = files.into_iter().filter(|(_, node)| self.is_here(*node));
        // The kernel knows better what `..` is.
        let dots = [".", ".."].map(|name| (name.to_owned(), directory));
        let all = dots.into_iter().chain(files);
        let mut out = Vec::new();
        for ((name, node), off) in all.zip(1_u64..).filter(|(_, off)| *off > read.offset) {
            let (ino, kind) = (self.tree.id(node), mode(node) >> 12);
            let namelen = u32::try_from(name.len()).unwrap_or(0);
            let size = (size_of::<fuse::Dirent>() + name.len()).next_multiple_of(8);
            if out.len() + size > read.size as usize {
                break;
            }
            let end = out.len() + size;
            out.extend_from_slice(fuse::Dirent { ino, off, namelen, kind }.as_bytes());
            out.extend_from_slice(name.as_bytes());
            out.resize(end, 0);
        }
        out
    }

    fn reply_with(
        &self,
        header: &InHeader,
        body: &(impl IntoBytes + Immutable),
    ) -> io::Result<Result<(), Errno>> {
        self.reply_bytes(header, body.as_bytes())
    }

    fn reply_bytes(&self, header: &InHeader, body: &[u8]) -> io::Result<Result<(), Errno>> {
        self.reply(header.unique, 0, body).map(Ok)
    }

    fn reply(&self, unique: u64, error: i32, body: &[u8]) -> io::Result<()> {
        let len = size_of::<OutHeader>() + body.len();
        let header = OutHeader { len: u32::try_from(len).unwrap_or(u32::MAX), error, unique };
        let mut message = Vec::with_capacity(len);
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(body);
        match (&mut self.mount.device()).write_all(&message) {
            // Whoever asked does not wait any more.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn bits(events: Events) -> u32 {
    let mut bits = 0;
    if events.readable {
        bits |= libc::POLLIN | libc::POLLRDNORM;
    }
    if events.hung_up {
        bits |= libc::POLLHUP;
    }
    if events.failed {
        bits |= libc::POLLERR;
    }
    u32::from(bits.cast_unsigned())
}

/// Root's alone, as devtmpfs makes the devices.
fn mode(node: Node) -> u32 {
    match node {
        _ if node.is_directory() => libc::S_IFDIR | 0o755,
        Node::Actions(_) => libc::S_IFREG | 0o400,
        _ => libc::S_IFREG | 0o600,
    }
}

fn attributes(nodeid: u64, node: Node) -> Attr {
    let nlink = if node.is_directory() { 2 } else { 1 };
    Attr { ino: nodeid, mode: mode(node), nlink, blksize: 4096, ..Default::default() }
}
