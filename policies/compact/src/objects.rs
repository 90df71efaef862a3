//! The objects of which records are held.
#![forbid(unsafe_code)]

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use lcap_policy_sdk::Fid;

use crate::hash::fid_key;
use crate::list::List;
use crate::seq::{Seq, Seqs};

/// An object of which something is held: its place in a table, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(u32);

impl Id {
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// What is known of an object of which records are held. In one line of the processor's cache: they are
/// looked at in no order.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Object {
    fid: Fid,
    /// Live records about it, in order.
    pub(crate) held: Seqs,
    /// Its names, if its birth is held.
    pub(crate) names: List<u64, 1>,
    /// Last record that gave or took one of its names, whatever became of it.
    pub(crate) last_name: Seq,
    /// Live records that name it as a directory.
    pub(crate) n_inside: u32,
    /// Its history is not all here: another MDT has a part in it.
    pub(crate) foreign: bool,
    pub(crate) is_no_dir: bool,
}

const _: () = assert!(size_of::<Object>() == 64);

/// A table of them. Places are used again.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// By FID, which lies in the object: a million of them are to fit into a processor's cache.
    ids: HashTable<Id>,
    objects: Vec<Object>,
    free: Vec<Id>,
}

impl Objects {
    pub(crate) fn get(&self, id: Id) -> Option<&Object> {
        self.objects.get(id.0 as usize)
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Object> {
        self.objects.get_mut(id.0 as usize)
    }

    fn fid(objects: &[Object], id: Id) -> Fid {
        objects.get(id.0 as usize).map(|object| object.fid).unwrap_or_default()
    }

    /// The object's place, if something is held of it.
    pub(crate) fn known(&self, fid: Fid) -> Option<Id> {
        let is_it = |&id: &Id| Self::fid(&self.objects, id) == fid;
        self.ids.find(fid_key(fid), is_it).copied()
    }

    /// The object's place; a new one if nothing was held of it.
    pub(crate) fn id_of(&mut self, fid: Fid) -> Id {
        if fid.is_zero() {
            return Id::NONE;
        }
        let Self { ids, objects, free } = self;
        let is_it = |&id: &Id| Self::fid(objects, id) == fid;
        let key_of = |&id: &Id| fid_key(Self::fid(objects, id));
        let vacant = match ids.entry(fid_key(fid), is_it, key_of) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(vacant) => vacant,
        };
        let id = free.pop().unwrap_or(Id(u32::try_from(objects.len()).unwrap_or(u32::MAX)));
        vacant.insert(id);
        match objects.get_mut(id.0 as usize) {
            Some(object) => object.fid = fid,
            None => objects.push(Object { fid, ..Object::default() }),
        }
        id
    }

    /// One record more names it as a directory.
    pub(crate) fn enter(&mut self, dir: Id) {
        if let Some(object) = self.get_mut(dir) {
            object.n_inside += 1;
        }
    }

    /// One record less does.
    pub(crate) fn exit(&mut self, dir: Id) {
        if let Some(object) = self.get_mut(dir) {
            object.n_inside = object.n_inside.saturating_sub(1);
            self.free_if_idle(dir);
        }
    }

    /// Forgets the object if nothing is held of it.
    pub(crate) fn free_if_idle(&mut self, id: Id) {
        let Self { ids, objects, free } = self;
        let Some(object) = objects.get_mut(id.0 as usize) else { return };
        // An object that is free already has no FID.
        if object.held.is_empty() && object.n_inside == 0 && !object.fid.is_zero() {
            if let Ok(entry) = ids.find_entry(fid_key(object.fid), |&other| other == id) {
                entry.remove();
            }
            *object = Object::default();
            free.push(id);
        }
    }
}
