//! One episode: some jobs at work in a directory of their own, from making it to the end.
//!
//! Episodes depend on nothing but the options and their number, so that any record can be made
//! without those before it. Within one, a small model of the directory tree sees to it that every
//! record could really happen: names exist before they are renamed, flags tell the last link.
#![forbid(unsafe_code)]
// Every number that is made smaller here is small by construction: places, lengths, digits.
#![allow(clippy::cast_possible_truncation)]

use lcap_ffi::record::JOBID_BYTES;
use lcap_ffi::{Fid, RecordType};

use super::generator::GeneratorOptions;
use super::pack::{Ext, Head, Job, MAX_NAME, Stamp, pack, write_into, write_name};

/// Records of an episode.
pub(super) const EPISODE_RECORDS: usize = 256;
/// The root of a Lustre file system.
const ROOT: Fid = Fid { seq: 0x2_0000_0007, oid: 1, ver: 0 };
const NO_FID: Fid = Fid { seq: 0, oid: 0, ver: 0 };
/// Episodes that share a FID sequence; each may use up to 512 object ids.
const EPISODES_PER_SEQUENCE: u64 = 256;
/// The most records that one activity makes.
const MAX_ACTIVITY: usize = 7;

/// The last link is gone; the target of an overwriting rename likewise.
const LAST: u16 = 0x1;
/// … and it had an archive copy.
const LAST_ARCHIVED: u16 = 0x3;

/// `CLF_HSM_*` as they lie in the flags: event << 7 | errno, 0x400 for dirty.
mod hsm {
    pub(super) const ARCHIVE: u16 = 0x000;
    pub(super) const RESTORE: u16 = 0x080;
    pub(super) const RELEASE: u16 = 0x180;
    pub(super) const REMOVE: u16 = 0x200;
    pub(super) const STATE: u16 = 0x280;
    pub(super) const DIRTY: u16 = 0x400;
    pub(super) const ECANCELED: u16 = 125;
    pub(super) const EIO: u16 = 5;
}

const PROGRAMS: [&str; 6] = ["cp", "python3", "mpirun", "tar", "rsync", "bash"];
const XATTRS: [&str; 4] = ["user.checksum", "user.color", "trusted.provenance", "user.md5"];

/// Packed records of one episode; reused for the next, so that nothing is allocated for long.
#[derive(Debug, Default)]
pub(super) struct Episode {
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<usize>,
    nodes: Vec<Node>,
    /// Live files, links and special files.
    files: Vec<u16>,
    /// Live directories; the first is the episode's own.
    dirs: Vec<u16>,
    /// Directory entries that a tidy end has to remove.
    n_entries: usize,
    n_oids: u32,
    n_names: u32,
    jobs: Vec<Job>,
    place: Place,
    rng: Rng,
}

/// Which episode it is.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    options: GeneratorOptions,
    number: u64,
    seq: u64,
    first_oid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Dir,
    Symlink,
    Special,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    dir: u16,
    name: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    fid: Fid,
    kind: Kind,
    links: [Link; 3],
    n_links: u8,
    n_children: u16,
    archived: bool,
    dirty: bool,
    released: bool,
}

/// Who does it, by place in `Episode::jobs`.
const COPYTOOL: usize = 3;
/// The server itself: no jobid, root, no NID.
const SERVER: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Rng(u64);

impl Rng {
    /// Splitmix64: small, fast, good from any seed on.
    #[inline]
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`, which is small.
    #[inline]
    fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }

    #[inline]
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Episode {
    /// The bytes of records `from..to`.
    #[inline]
    pub(super) fn records(&self, from: usize, to: usize) -> &[u8] {
        &self.bytes[self.start(from)..self.start(to)]
    }

    /// The largest `end` in `from..=to` such that `records(from, end)` has at most `room` bytes.
    #[inline]
    pub(super) fn fit(&self, from: usize, to: usize, room: usize) -> usize {
        let limit = self.start(from).saturating_add(room);
        if self.start(to) <= limit {
            return to;
        }
        from + self.ends[from..to].partition_point(|&end| end <= limit)
    }

    #[inline]
    fn start(&self, record: usize) -> usize {
        record.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Makes the episode with that number.
    pub(super) fn generate(&mut self, options: &GeneratorOptions, number: u64) {
        self.begin(options, number);
        // Three of four clean up behind themselves, so that a model of them stays small.
        let tidy = !self.rng.one_in(4);
        loop {
            let left = EPISODE_RECORDS - self.ends.len();
            let needed = if tidy { self.n_entries } else { 0 };
            if left > needed + MAX_ACTIVITY + 1 {
                self.activity();
            } else if left > needed {
                self.set_attributes();
            } else {
                break;
            }
        }
        if tidy {
            self.clean_up();
        }
        debug_assert_eq!(self.ends.len(), EPISODE_RECORDS);
    }

    fn begin(&mut self, options: &GeneratorOptions, number: u64) {
        self.bytes.clear();
        self.ends.clear();
        self.nodes.clear();
        self.files.clear();
        self.dirs.clear();
        self.jobs.clear();
        (self.n_entries, self.n_oids, self.n_names) = (0, 0, 0);
        let mdt = u64::from(options.mdt_index);
        self.place = Place {
            options: *options,
            number,
            seq: 0x2_0000_0400 + mdt * 0x4000_0000 + number / EPISODES_PER_SEQUENCE,
            first_oid: ((number % EPISODES_PER_SEQUENCE) as u32) * 512 + 1,
        };
        self.rng = Rng(mix(options.seed ^ mix(number ^ mix(mdt << 48 | 0x6c63_6170))));
        self.make_jobs();
        let job = self.user();
        let top = self.new_node(Kind::Dir);
        let mut name = [0; 24];
        let len = write_into(&mut name, format_args!("job-{number:08}"));
        let head = Head { rec_type: RecordType::MKDIR, flags: 0, target: top.fid, parent: ROOT };
        self.emit(head, job, None, &name[..len]);
        self.nodes.push(top);
        self.dirs.push(0);
        self.n_entries = 1;
    }

    fn make_jobs(&mut self) {
        for _ in 0..COPYTOOL {
            let uid = 1000 + self.rng.below(8) as u64;
            let mut text = [0; JOBID_BYTES];
            let program = PROGRAMS[self.rng.below(PROGRAMS.len())];
            let len = if self.rng.one_in(2) {
                let number = 800_000 + self.rng.below(90_000);
                write_into(&mut text[..JOBID_BYTES - 1], format_args!("{number}"))
            } else {
                write_into(&mut text[..JOBID_BYTES - 1], format_args!("{program}.{uid}"))
            };
            // 10.1.x.y@tcp as a struct lnet_nid: size 0, type 2, network 0, address.
            let (x, y) = (self.rng.below(16) as u8, 1 + self.rng.below(250) as u8);
            let job = Job::new(&text[..len], uid, 100 + uid % 4, [0, 2, 0, 0, 10, 1, x, y]);
            self.jobs.push(job);
        }
        // 10.1.0.9@tcp: the node with the copytool.
        self.jobs.push(Job::new(b"lhsmtool_posix.0", 0, 0, [0, 2, 0, 0, 10, 1, 0, 9]));
        self.jobs.push(Job::new(b"", 0, 0, [0; 8]));
    }

    fn user(&mut self) -> usize {
        self.rng.below(COPYTOOL)
    }

    /// One thing that somebody does: 1 to [`MAX_ACTIVITY`] records, at most one new entry.
    fn activity(&mut self) {
        let crowded = self.files.len() > 24;
        match self.rng.below(100) {
            0..=17 if !crowded => self.create(),
            18..=29 if !crowded => self.checkpoint(),
            30..=37 if !crowded => self.symlink(),
            38..=40 if !crowded => self.hard_link(),
            41 if !crowded => self.make_node(),
            42..=44 => self.make_dir(),
            45..=46 => self.remove_dir(),
            47..=53 => self.rename_file(),
            54..=55 => self.rename_dir(),
            56..=60 => self.set_attributes(),
            61..=66 => self.set_xattr(),
            67..=71 => self.write(),
            72..=81 => self.hsm(),
            82 if self.rng.one_in(4) => self.migrate(),
            83 if self.rng.one_in(4) => self.resync(),
            _ => self.unlink(),
        }
    }

    fn create(&mut self) {
        let job = self.user();
        let node = self.add(RecordType::CREATE, Kind::File, job);
        let target = self.nodes[node].fid;
        if self.rng.one_in(8) {
            // A layout of its own, as `lfs setstripe` gives.
            let parent = self.parent(node);
            self.note(RecordType::LAYOUT, 0, target, parent, job);
            self.note(RecordType::CLOSE, 0x002, target, NO_FID, job);
        }
        self.note(RecordType::CLOSE, 0x242, target, NO_FID, job);
    }

    /// Written under a temporary name, then renamed, often over the one before.
    fn checkpoint(&mut self) {
        let job = self.user();
        let node = self.add(RecordType::CREATE, Kind::File, job);
        self.note(RecordType::CLOSE, 0x242, self.nodes[node].fid, NO_FID, job);
        let over = if self.rng.one_in(2) { self.pick_file(Kind::File) } else { None };
        match over {
            Some(victim) if victim != node => self.rename_over(node, victim, job),
            _ => {
                let dir = self.nodes[node].links[0].dir;
                self.rename_to(node, 0, dir, job);
            }
        }
    }

    fn symlink(&mut self) {
        let job = self.user();
        self.add(RecordType::SOFTLINK, Kind::Symlink, job);
    }

    fn make_node(&mut self) {
        let job = self.user();
        self.add(RecordType::MKNOD, Kind::Special, job);
    }

    fn hard_link(&mut self) {
        let job = self.user();
        let Some(node) = self.pick_file(Kind::File) else { return self.create() };
        let n_links = usize::from(self.nodes[node].n_links);
        if n_links == self.nodes[node].links.len() {
            return self.set_attributes();
        }
        let dir = self.pick_dir();
        let name = self.new_name();
        self.nodes[node].links[n_links] = Link { dir, name };
        self.nodes[node].n_links += 1;
        self.nodes[usize::from(dir)].n_children += 1;
        self.n_entries += 1;
        self.entry(RecordType::HARDLINK, 0, node, n_links, job);
    }

    fn make_dir(&mut self) {
        let job = self.user();
        if self.dirs.len() > 8 {
            return self.remove_dir();
        }
        self.add(RecordType::MKDIR, Kind::Dir, job);
    }

    fn remove_dir(&mut self) {
        let job = self.user();
        match self.pick_empty_dir() {
            Some(at) => self.remove_dir_at(at, job),
            None => self.unlink(),
        }
    }

    fn remove_dir_at(&mut self, at: usize, job: usize) {
        let node = usize::from(self.dirs[at]);
        self.entry(RecordType::RMDIR, LAST, node, 0, job);
        self.drop_link(node, 0);
        self.dirs.remove(at); // in order: a directory never comes before its parent
    }

    fn unlink(&mut self) {
        let job = self.user();
        if self.files.is_empty() {
            return self.set_attributes();
        }
        let at = self.rng.below(self.files.len());
        self.unlink_at(at, job);
    }

    fn unlink_at(&mut self, at: usize, job: usize) {
        let node = usize::from(self.files[at]);
        let link = usize::from(self.nodes[node].n_links) - 1;
        self.entry(RecordType::UNLINK, self.last_flags(node), node, link, job);
        self.drop_link(node, link);
        if self.nodes[node].n_links == 0 {
            self.files.swap_remove(at);
        }
    }

    fn rename_file(&mut self) {
        let job = self.user();
        if self.files.is_empty() {
            return self.create();
        }
        let node = usize::from(self.files[self.rng.below(self.files.len())]);
        let link = self.rng.below(usize::from(self.nodes[node].n_links));
        let victim = usize::from(self.files[self.rng.below(self.files.len())]);
        if victim != node && self.rng.one_in(3) {
            return self.rename_over(node, victim, job);
        }
        let dir = self.pick_dir();
        self.rename_to(node, link, dir, job);
    }

    /// Into the episode's own directory, where no directory can come to lie in itself.
    fn rename_dir(&mut self) {
        let job = self.user();
        if self.dirs.len() < 2 {
            return self.make_dir();
        }
        let at = 1 + self.rng.below(self.dirs.len() - 1);
        let node = usize::from(self.dirs[at]);
        let empty = self.pick_empty_dir().filter(|&over| over != at);
        match empty {
            // Over an empty directory in the top one.
            Some(over)
                if self.nodes[usize::from(self.dirs[over])].links[0].dir == 0
                    && self.rng.one_in(2) =>
            {
                let victim = usize::from(self.dirs[over]);
                let to = self.nodes[victim].links[0];
                self.renamed(LAST, self.nodes[victim].fid, node, 0, to, job);
                self.drop_link(victim, 0);
                self.move_link(node, 0, to);
                self.dirs.remove(over);
            }
            _ => self.rename_to(node, 0, 0, job),
        }
    }

    fn rename_to(&mut self, node: usize, link: usize, dir: u16, job: usize) {
        let to = Link { dir, name: self.new_name() };
        self.renamed(0, NO_FID, node, link, to, job);
        self.move_link(node, link, to);
    }

    /// `node`'s first link takes the place of one of `victim`'s.
    fn rename_over(&mut self, node: usize, victim: usize, job: usize) {
        let gone = usize::from(self.nodes[victim].n_links) - 1;
        let to = self.nodes[victim].links[gone];
        self.renamed(self.last_flags(victim), self.nodes[victim].fid, node, 0, to, job);
        self.drop_link(victim, gone);
        if self.nodes[victim].n_links == 0 {
            self.files.retain(|&file| usize::from(file) != victim);
        }
        self.move_link(node, 0, to);
    }

    fn set_attributes(&mut self) {
        let job = self.user();
        let node = match self.files.len() {
            0 => 0,
            n => usize::from(self.files[self.rng.below(n)]),
        };
        let flags = [0x14, 0x64, 0xe4][self.rng.below(3)];
        self.note(RecordType::SETATTR, flags, self.nodes[node].fid, NO_FID, job);
    }

    fn set_xattr(&mut self) {
        let job = self.user();
        let Some(node) = self.pick_file(Kind::File) else { return self.create() };
        let name = XATTRS[self.rng.below(XATTRS.len())];
        let head = Head {
            rec_type: RecordType::SETXATTR,
            flags: 0,
            target: self.nodes[node].fid,
            parent: self.parent(node),
        };
        self.emit(head, job, Some(Ext::Xattr(name)), b"");
    }

    fn write(&mut self) {
        let job = self.user();
        let Some(node) = self.pick_file(Kind::File) else { return self.create() };
        let (target, parent) = (self.nodes[node].fid, self.parent(node));
        if self.nodes[node].released {
            self.restore(node);
        }
        if self.nodes[node].released {
            return; // the restore failed, and the program with it
        }
        self.note(RecordType::TRUNC, 0x00e, target, parent, job);
        if self.nodes[node].archived && !self.nodes[node].dirty {
            self.nodes[node].dirty = true;
            self.note(RecordType::HSM, hsm::STATE | hsm::DIRTY, target, NO_FID, job);
        }
        self.note(RecordType::CLOSE, 0x242, target, NO_FID, job);
    }

    fn hsm(&mut self) {
        let Some(node) = self.pick_file(Kind::File) else { return self.create() };
        let Node { fid: target, archived, dirty, released, .. } = self.nodes[node];
        match (archived, released) {
            (_, true) => self.restore(node),
            (true, false) if !dirty && self.rng.one_in(2) => {
                self.nodes[node].released = true;
                let job = self.user();
                self.note(RecordType::HSM, hsm::RELEASE, target, NO_FID, job);
            }
            (true, false) if self.rng.one_in(3) => {
                (self.nodes[node].archived, self.nodes[node].dirty) = (false, false);
                self.note(RecordType::HSM, hsm::STATE, target, NO_FID, COPYTOOL);
                self.note(RecordType::HSM, hsm::REMOVE, target, NO_FID, COPYTOOL);
            }
            _ => self.archive(node),
        }
    }

    fn archive(&mut self, node: usize) {
        let target = self.nodes[node].fid;
        if !self.nodes[node].archived {
            self.note(RecordType::HSM, hsm::STATE, target, NO_FID, SERVER);
        }
        if self.rng.one_in(12) {
            let flags = hsm::ARCHIVE | hsm::ECANCELED;
            return self.note(RecordType::HSM, flags, target, NO_FID, COPYTOOL);
        }
        (self.nodes[node].archived, self.nodes[node].dirty) = (true, false);
        self.note(RecordType::HSM, hsm::STATE, target, NO_FID, COPYTOOL);
        self.note(RecordType::HSM, hsm::ARCHIVE, target, NO_FID, COPYTOOL);
    }

    fn restore(&mut self, node: usize) {
        let failed = self.rng.one_in(12);
        self.nodes[node].released = failed;
        let error = if failed { hsm::EIO } else { 0 };
        self.note(RecordType::HSM, hsm::RESTORE | error, self.nodes[node].fid, NO_FID, COPYTOOL);
    }

    /// Moved between MDTs under the same name: the object gets another FID. Unlike in a rename,
    /// `cr_pfid` is the old parent and `cr_spfid` the new one; here they are the same.
    fn migrate(&mut self) {
        let job = self.user();
        let Some(node) = self.pick_file(Kind::File) else { return self.create() };
        if self.nodes[node].n_links != 1 {
            return self.set_attributes(); // a name is migrated, not an object with several
        }
        let source = self.nodes[node].fid;
        let target = self.new_fid();
        let link = self.nodes[node].links[0];
        let parent = self.nodes[usize::from(link.dir)].fid;
        let mut name = [0; 2 * MAX_NAME + 1];
        let len = write_name(&mut name, link.name);
        let (first, second) = name.split_at_mut(len + 1);
        second[..len].copy_from_slice(&first[..len]);
        let head = Head { rec_type: RecordType::MIGRATE, flags: 0, target, parent };
        self.emit(head, job, Some(Ext::Rename(source, parent)), &name[..2 * len + 1]);
        self.nodes[node].fid = target;
    }

    /// First write to a mirrored file, then its mirrors made equal again.
    fn resync(&mut self) {
        let job = self.user();
        let Some(node) = self.pick_file(Kind::File) else { return self.create() };
        let (target, parent) = (self.nodes[node].fid, self.parent(node));
        self.note(RecordType::FLRW, 0, target, parent, SERVER);
        self.note(RecordType::CLOSE, 0x242, target, NO_FID, job);
        self.note(RecordType::RESYNC, 0, target, NO_FID, job);
    }

    fn clean_up(&mut self) {
        let job = self.user();
        while let Some(last) = self.files.len().checked_sub(1) {
            self.unlink_at(last, job);
        }
        while let Some(last) = self.dirs.len().checked_sub(2) {
            self.remove_dir_at(last + 1, job);
        }
        let mut name = [0; 24];
        let len = write_into(&mut name, format_args!("job-{:08}", self.place.number));
        let target = self.nodes[0].fid;
        let head = Head { rec_type: RecordType::RMDIR, flags: LAST, target, parent: ROOT };
        self.emit(head, job, None, &name[..len]);
    }
}

/// The model's own bookkeeping.
impl Episode {
    fn new_fid(&mut self) -> Fid {
        self.n_oids += 1;
        Fid { seq: self.place.seq, oid: self.place.first_oid + self.n_oids - 1, ver: 0 }
    }

    fn new_name(&mut self) -> u32 {
        self.n_names += 1;
        // The high half chooses how it looks, the low half makes it unique.
        (self.rng.next() as u32) << 16 | self.n_names
    }

    fn new_node(&mut self, kind: Kind) -> Node {
        Node {
            fid: self.new_fid(),
            kind,
            links: [Link::default(); 3],
            n_links: 1,
            n_children: 0,
            archived: false,
            dirty: false,
            released: false,
        }
    }

    /// Makes an object somewhere and notes it.
    fn add(&mut self, rec_type: RecordType, kind: Kind, job: usize) -> usize {
        let mut node = self.new_node(kind);
        node.links[0] = Link { dir: self.pick_dir(), name: self.new_name() };
        self.nodes[usize::from(node.links[0].dir)].n_children += 1;
        self.n_entries += 1;
        let at = self.nodes.len();
        self.nodes.push(node);
        let list = if kind == Kind::Dir { &mut self.dirs } else { &mut self.files };
        list.push(at as u16);
        self.entry(rec_type, 0, at, 0, job);
        at
    }

    fn drop_link(&mut self, node: usize, link: usize) {
        let dir = self.nodes[node].links[link].dir;
        self.nodes[usize::from(dir)].n_children -= 1;
        let last = usize::from(self.nodes[node].n_links) - 1;
        self.nodes[node].links[link] = self.nodes[node].links[last];
        self.nodes[node].n_links -= 1;
        self.n_entries -= 1;
    }

    fn move_link(&mut self, node: usize, link: usize, to: Link) {
        let from = self.nodes[node].links[link].dir;
        self.nodes[usize::from(from)].n_children -= 1;
        self.nodes[usize::from(to.dir)].n_children += 1;
        self.nodes[node].links[link] = to;
    }

    fn parent(&self, node: usize) -> Fid {
        self.nodes[usize::from(self.nodes[node].links[0].dir)].fid
    }

    fn last_flags(&self, node: usize) -> u16 {
        match self.nodes[node] {
            Node { n_links: 1, archived: true, .. } => LAST_ARCHIVED,
            Node { n_links: 1, .. } => LAST,
            _ => 0,
        }
    }

    fn pick_dir(&mut self) -> u16 {
        self.dirs[self.rng.below(self.dirs.len())]
    }

    fn pick_file(&mut self, kind: Kind) -> Option<usize> {
        if self.files.is_empty() {
            return None;
        }
        let node = usize::from(self.files[self.rng.below(self.files.len())]);
        (self.nodes[node].kind == kind).then_some(node)
    }

    /// Place in `dirs` of an empty directory other than the top one.
    fn pick_empty_dir(&mut self) -> Option<usize> {
        (1..self.dirs.len()).find(|&at| self.nodes[usize::from(self.dirs[at])].n_children == 0)
    }
}

/// Writing records.
impl Episode {
    /// A record without a name.
    fn note(&mut self, rec_type: RecordType, flags: u16, target: Fid, parent: Fid, job: usize) {
        self.emit(Head { rec_type, flags, target, parent }, job, None, b"");
    }

    /// A record about one of a node's names.
    fn entry(&mut self, rec_type: RecordType, flags: u16, node: usize, link: usize, job: usize) {
        let Node { fid: target, links, .. } = self.nodes[node];
        let Link { dir, name } = links[link];
        let parent = self.nodes[usize::from(dir)].fid;
        let mut text = [0; MAX_NAME];
        let len = write_name(&mut text, name);
        self.emit(Head { rec_type, flags, target, parent }, job, None, &text[..len]);
    }

    /// A rename of one of a node's names, before it happens in the model.
    fn renamed(&mut self, flags: u16, victim: Fid, node: usize, link: usize, to: Link, job: usize) {
        let Node { fid: source, links, .. } = self.nodes[node];
        let from = links[link];
        let mut text = [0; 2 * MAX_NAME + 1];
        let new = write_name(&mut text, to.name);
        let old = write_name(&mut text[new + 1..], from.name);
        let parent = self.nodes[usize::from(to.dir)].fid;
        let source_parent = self.nodes[usize::from(from.dir)].fid;
        let head = Head { rec_type: RecordType::RENAME, flags, target: victim, parent };
        self.emit(head, job, Some(Ext::Rename(source, source_parent)), &text[..new + 1 + old]);
    }

    fn emit(&mut self, head: Head, job: usize, ext: Option<Ext<'_>>, names: &[u8]) {
        let ordinal = self.place.number * EPISODE_RECORDS as u64 + self.ends.len() as u64;
        let stamp = Stamp {
            index: self.place.options.index(ordinal),
            time_ns: self.place.options.clock.time_ns(ordinal),
        };
        let job = (&self.jobs[job], job != SERVER);
        pack(&mut self.bytes, stamp, head, job, ext, names);
        self.ends.push(self.bytes.len());
    }
}

#[cfg(test)]
mod tests;
