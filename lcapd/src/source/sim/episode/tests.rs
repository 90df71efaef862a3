//! Replays what is generated on a directory tree that knows nothing else.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use lcap_ffi::Record;
use lcap_ffi::record::{self, CLF_RENAME, CLF_VERSION};

use super::*;
use crate::source::sim::Generator;

/// A directory tree that is told only what the records say.
#[derive(Default)]
struct Tree {
    entries: BTreeMap<(Fid, Vec<u8>), Fid>,
    objects: HashMap<Fid, Object>,
}

#[derive(Clone, Copy, Default)]
struct Object {
    n_links: u32,
    n_children: u32,
    is_dir: bool,
    archived: bool,
}

impl Tree {
    fn new() -> Self {
        let mut tree = Self::default();
        let root = Object { is_dir: true, n_links: 1, ..Object::default() };
        tree.objects.insert(ROOT, root);
        tree
    }

    fn link(&mut self, parent: Fid, name: &[u8], fid: Fid) {
        assert!(!name.is_empty() && !name.contains(&0) && !name.contains(&b'/'));
        let dir = self.objects.get_mut(&parent).expect("the parent exists");
        assert!(dir.is_dir);
        dir.n_children += 1;
        let old = self.entries.insert((parent, name.to_vec()), fid);
        assert_eq!(old, None, "the name was free");
        self.objects.get_mut(&fid).expect("the object exists").n_links += 1;
    }

    /// Removes a name, and checks the flags that a record gave for its object.
    fn unlink(&mut self, parent: Fid, name: &[u8], fid: Fid, flags: u16) {
        let old = self.entries.remove(&(parent, name.to_vec()));
        assert_eq!(old, Some(fid), "the name was that object's");
        self.objects.get_mut(&parent).expect("the parent exists").n_children -= 1;
        let object = self.objects.get_mut(&fid).expect("the object exists");
        object.n_links -= 1;
        let last = object.n_links == 0;
        assert_eq!(flags & 1 != 0, last, "the last-link flag");
        assert_eq!(flags & 2 != 0, last && object.archived, "the archive flag");
        assert_eq!(object.n_children, 0, "a directory that goes is empty");
        if last {
            self.objects.remove(&fid);
        }
    }

    fn is_below(&self, mut fid: Fid, ancestor: Fid) -> bool {
        while fid != ROOT {
            if fid == ancestor {
                return true;
            }
            let ((parent, _), _) =
                self.entries.iter().find(|&(_, &f)| f == fid).expect("every one has a parent");
            fid = *parent;
        }
        false
    }

    fn apply(&mut self, rec: &Record<'_>) {
        let (target, parent, flags) = (rec.target(), rec.parent(), rec.type_flags());
        match rec.rec_type() {
            RecordType::CREATE | RecordType::MKDIR | RecordType::SOFTLINK | RecordType::MKNOD => {
                let is_dir = rec.rec_type() == RecordType::MKDIR;
                let old = self.objects.insert(target, Object { is_dir, ..Object::default() });
                assert!(old.is_none(), "the FID is new");
                self.link(parent, rec.name(), target);
            }
            RecordType::HARDLINK => self.link(parent, rec.name(), target),
            RecordType::UNLINK | RecordType::RMDIR => {
                assert_eq!(self.objects[&target].is_dir, rec.rec_type() == RecordType::RMDIR);
                self.unlink(parent, rec.name(), target, flags);
            }
            RecordType::RENAME => self.rename(rec),
            RecordType::MIGRATE => {
                let source = rec.source().unwrap();
                let object = self.objects.remove(&source).expect("the object exists");
                assert!(self.objects.insert(target, object).is_none(), "the FID is new");
                let key = (parent, rec.source_name().unwrap().to_vec());
                assert_eq!(self.entries.insert(key, target), Some(source));
            }
            RecordType::HSM => {
                let object = self.objects.get_mut(&target).expect("the object exists");
                let (event, error) = (flags & 0x380, flags & 0x7f);
                match event {
                    hsm::ARCHIVE if error == 0 => object.archived = true,
                    hsm::REMOVE if error == 0 => object.archived = false,
                    hsm::RELEASE | hsm::RESTORE | hsm::REMOVE => assert!(object.archived),
                    _ => {}
                }
            }
            _ => assert!(self.objects.contains_key(&target), "the object exists"),
        }
    }

    fn rename(&mut self, rec: &Record<'_>) {
        let (source, old_dir) = (rec.source().unwrap(), rec.source_parent().unwrap());
        let old = rec.source_name().unwrap();
        assert!(!self.is_below(rec.parent(), source), "not into itself");
        if rec.target().is_zero() {
            assert_eq!(rec.type_flags(), 0);
        } else {
            assert_eq!(
                self.objects[&rec.target()].is_dir,
                self.objects[&source].is_dir,
                "files over files, directories over directories"
            );
            self.unlink(rec.parent(), rec.name(), rec.target(), rec.type_flags());
        }
        let was = self.entries.remove(&(old_dir, old.to_vec()));
        assert_eq!(was, Some(source), "the old name was that object's");
        self.objects.get_mut(&old_dir).expect("the old parent exists").n_children -= 1;
        self.objects.get_mut(&source).expect("the object exists").n_links -= 1;
        self.link(rec.parent(), rec.name(), source);
    }
}

#[test]
fn every_record_applies_to_the_tree_that_those_before_it_left() {
    for seed in 0..8 {
        for mdt_index in [0, 3] {
            let mut tree = Tree::new();
            let options = GeneratorOptions { seed, mdt_index, ..Default::default() };
            let mut generator = Generator::new(options);
            for _ in 0..60 * EPISODE_RECORDS {
                let (rec, rest) = record::split_first(generator.next_record()).unwrap();
                assert!(rest.is_empty());
                tree.apply(&rec);
            }
            // Three of four episodes clean up behind themselves.
            assert!(tree.objects.len() < 60 * 12, "{}", tree.objects.len());
        }
    }
}

#[test]
fn the_mix_is_that_of_a_file_system_at_work() {
    let mut seen: BTreeMap<(RecordType, u16), usize> = BTreeMap::new();
    let (mut n_bytes, n) = (0, 200 * EPISODE_RECORDS);
    let mut generator = Generator::new(GeneratorOptions::default());
    for ordinal in 0..n as u64 {
        let bytes = generator.next_record();
        n_bytes += bytes.len();
        let (rec, _) = record::split_first(bytes).unwrap();
        assert_eq!(rec.index().get(), ordinal + 1);
        let is_rename = matches!(rec.rec_type(), RecordType::RENAME | RecordType::MIGRATE);
        assert_eq!(
            rec.flags() & (CLF_VERSION | CLF_RENAME),
            if is_rename { CLF_RENAME } else { CLF_VERSION }
        );
        let want = if rec.rec_type() == RecordType::SETXATTR { 0x1b } else { 0x13 };
        assert_eq!(rec.extra_flags(), Some(want));
        assert_eq!(rec.jobid().is_none(), rec.nid() == Some(lcap_ffi::record::Nid::Large([0; 20])));
        *seen.entry((rec.rec_type(), rec.type_flags())).or_default() += 1;
    }
    let of_type = |t| seen.iter().filter(|((s, _), _)| *s == t).map(|(_, n)| n).sum::<usize>();
    for t in [
        RecordType::CREATE,
        RecordType::MKDIR,
        RecordType::HARDLINK,
        RecordType::SOFTLINK,
        RecordType::MKNOD,
        RecordType::UNLINK,
        RecordType::RMDIR,
        RecordType::RENAME,
        RecordType::CLOSE,
        RecordType::LAYOUT,
        RecordType::TRUNC,
        RecordType::SETATTR,
        RecordType::SETXATTR,
        RecordType::HSM,
        RecordType::MIGRATE,
        RecordType::FLRW,
        RecordType::RESYNC,
    ] {
        assert!(of_type(t) > 20, "{t}: {}", of_type(t));
    }
    for (t, flags) in [
        (RecordType::UNLINK, 0),
        (RecordType::UNLINK, 1),
        (RecordType::UNLINK, 3),
        (RecordType::RENAME, 0),
        (RecordType::RENAME, 1),
        (RecordType::RENAME, 3),
        (RecordType::HSM, 0),
        (RecordType::HSM, 0x7d),
        (RecordType::HSM, 0x80),
        (RecordType::HSM, 0x85),
        (RecordType::HSM, 0x180),
        (RecordType::HSM, 0x200),
        (RecordType::HSM, 0x280),
        (RecordType::HSM, 0x680),
    ] {
        assert!(seen.contains_key(&(t, flags)), "{t} {flags:#x}");
    }
    let mean = n_bytes / n;
    assert!((155..=180).contains(&mean), "mean size {mean}");
    assert!(of_type(RecordType::MIGRATE) < n / 200);
}
