//! The rules, each with its conditions. The table for readers is in `docs/policies.md`.
//!
//! All of them look back from the newest record. What makes them safe: records leave in the order of the
//! log, so if an object's birth is held, everything about it and inside it since then is held, too.
#![forbid(unsafe_code)]

use lcap_policy_sdk::{Fid, Record, RecordBuilder, RecordType, Taken};

use crate::held::{Entry, Held, Kind, Pushed, proves_no_dir};
use crate::objects::Id;
use crate::seq::Seq;

const LAST: u16 = 0x1;
const ARCHIVE_EXISTS: u16 = 0x2;
/// How far back an update looks for one to join, among the records about its object.
const LOOK_BACK: usize = 32;
/// How far back a name looks for what gave it, among the records about its object.
const NAME_LOOK_BACK: usize = 256;

/// What was saved so far, in records.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Born and gone, or linked and unlinked, inside the window.
    pub(crate) cancelled: u64,
    /// Updates of what was new or is gone.
    pub(crate) absorbed: u64,
    /// Repeated updates.
    pub(crate) merged: u64,
    /// Renames folded into what was before them.
    pub(crate) folded: u64,
}

#[derive(Debug)]
pub(crate) struct Rules {
    names: bool,
    /// One bit per record type that is left alone.
    keep: u32,
    /// Nothing before it may be changed by what comes after it.
    barrier: Seq,
    /// The last rename or migration of anything.
    last_move: Seq,
    counts: Counts,
}

impl Rules {
    pub(crate) fn new(names: bool, keep: u32) -> Self {
        Self { names, keep, barrier: 0, last_move: 0, counts: Counts::default() }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn keeps(&self, rec_type: RecordType) -> bool {
        1_u32.checked_shl(rec_type.0).is_some_and(|bit| self.keep & bit != 0)
    }

    /// Takes the next record of the log.
    pub(crate) fn apply(&mut self, held: &mut Held, taken: &Taken, record: &Record<'_>) {
        let kind = Kind::of(record.rec_type());
        let kept = self.keeps(record.rec_type());
        let joins = matches!(kind, Kind::Update | Kind::Access) && !kept;
        if joins && self.join(held, taken, record) {
            held.push_dropped(record);
            return;
        }
        let pushed = held.push(record);
        let seq = pushed.seq;
        let last_move = self.last_move;
        match kind {
            Kind::Barrier => self.barrier = seq,
            Kind::Rename | Kind::Migrate => self.last_move = seq,
            _ => {}
        }
        note_names(held, pushed, kind);
        if kept {
            return;
        }
        match kind {
            Kind::Unlink => self.unlink(held, taken, pushed, record),
            Kind::Rename => {
                if record.type_flags() & LAST != 0 {
                    self.forget_updates(held, pushed.other, seq);
                }
                if self.names {
                    self.fold_rename(held, taken, pushed, record, last_move);
                }
            }
            _ => {}
        }
    }

    /// Rules 1 to 3: an update of a new object, a repeated update, a repeated look. Returns whether
    /// the record is to be dropped.
    fn join(&mut self, held: &mut Held, taken: &Taken, record: &Record<'_>) -> bool {
        let Some(id) = held.known(record.target()) else { return false };
        if let Some(object) = held.object_mut(id) {
            object.is_no_dir |= proves_no_dir(record.rec_type());
        }
        let Some(object) = held.object(id) else { return false };
        let is_update = Kind::of(record.rec_type()) == Kind::Update;
        let mut found = None;
        for at in held.about(object).rev().take(LOOK_BACK) {
            let Some(entry) = held.get(at).filter(|_| at > self.barrier) else { return false };
            match entry.kind {
                // A consumer looks at a new object when it sees its birth, which is later than this.
                Kind::Birth if is_update => {
                    self.counts.absorbed += 1;
                    return true;
                }
                // Whether something changed before or after these matters.
                Kind::Birth | Kind::Hsm | Kind::Mirror | Kind::Migrate | Kind::Barrier => {
                    return false;
                }
                Kind::Link | Kind::Unlink | Kind::Rename | Kind::Refusal => {}
                Kind::Update | Kind::Access => {
                    let same = entry.rec_type() == record.rec_type();
                    // Most updates say no more than their type and flags.
                    let is_plain = is_update && record.rec_type() != RecordType::SETXATTR;
                    let says_it = |earlier: Record<'_>| says_the_same(&earlier, record);
                    if same && (is_plain || held.record(taken, at).is_some_and(says_it)) {
                        found = Some((at, entry.flags));
                        break;
                    }
                }
            }
        }
        let Some((at, earlier_flags)) = found else { return false };
        // The first stays, so that nothing waits for longer than the window; what the flags of both say
        // is kept: they are sets of changed attributes or open modes.
        let flags = earlier_flags | record.type_flags();
        if flags != earlier_flags {
            let Some(earlier) = held.record(taken, at) else { return false };
            let changed = RecordBuilder::of(&earlier).type_flags(flags).build();
            held.change(at, flags, changed);
        }
        self.counts.merged += 1;
        true
    }

    /// Rules 4 to 7: a name goes, and perhaps the object with it.
    fn unlink(&mut self, held: &mut Held, taken: &Taken, pushed: Pushed, record: &Record<'_>) {
        let is_dir = record.rec_type() == RecordType::RMDIR;
        let is_last = is_dir || record.type_flags() & LAST != 0;
        if is_last {
            self.forget_updates(held, pushed.about, pushed.seq);
        }
        if !self.names {
            return;
        }
        let archived = record.type_flags() & ARCHIVE_EXISTS != 0;
        if is_last && !archived && self.cancel_life(held, pushed.about) {
            return;
        }
        if is_last {
            self.fold_last_rename(held, taken, pushed, record);
        } else {
            self.cancel_link(held, taken, pushed, record);
        }
    }

    /// Rule 4: what is gone needs no updates.
    fn forget_updates(&mut self, held: &mut Held, id: Id, death: Seq) {
        let Some(object) = held.object(id) else { return };
        let of_no_use = |&at: &Seq| {
            let useless = |kind| matches!(kind, Kind::Update | Kind::Access | Kind::Mirror);
            at > self.barrier
                && at != death
                && held.get(at).is_some_and(|e| useless(e.kind) && !self.keeps(e.rec_type()))
        };
        // A migration in between gives the object another FID: then those were another's.
        let list: Vec<Seq> = held.about(object).filter(of_no_use).collect();
        for at in list {
            self.counts.absorbed += held.drop(at);
        }
    }

    /// Rule 5: born and gone inside the window, and nobody else concerned.
    fn cancel_life(&mut self, held: &mut Held, id: Id) -> bool {
        let Some(object) = held.object(id) else { return false };
        let whole = !object.foreign && object.names.is_empty();
        // Inside a directory everything must be gone, too.
        if !whole || object.n_inside > 0 {
            return false;
        }
        let Some(birth) = held.about(object).next() else { return false };
        if birth <= self.barrier || held.get(birth).is_none_or(|entry| entry.kind != Kind::Birth) {
            return false;
        }
        let only_its_own = held.about(object).all(|at| {
            let Some(entry) = held.get(at) else { return false };
            let own = match entry.kind {
                Kind::Birth | Kind::Link | Kind::Unlink => true,
                Kind::Rename => is_plain_rename(entry, id),
                Kind::Refusal => return true,
                _ => false, // updates are gone already, unless they are kept
            };
            own && !self.keeps(entry.rec_type())
        });
        if !only_its_own {
            return false;
        }
        let (list, newest) = (object.held.clone(), held.newest());
        for at in list.iter(newest) {
            if held.get(at).is_some_and(|entry| entry.kind != Kind::Refusal) {
                self.counts.cancelled += held.drop(at);
            }
        }
        true
    }

    /// Rule 6: a link that was made and taken away inside the window.
    fn cancel_link(&mut self, held: &mut Held, taken: &Taken, pushed: Pushed, record: &Record<'_>) {
        let Some(link) = self.last_named(held, pushed.about, pushed.seq) else { return };
        let fits = held.get(link).is_some_and(|entry| {
            entry.kind == Kind::Link
                && !self.keeps(entry.rec_type())
                && held.named_at(link) == pushed.name_touched
        });
        if fits && gave(held, taken, link, record.parent(), record.name()) {
            self.counts.cancelled += held.drop(link) + held.drop(pushed.seq);
        }
    }

    /// Rule 7: a rename and then the end: the end, under the old name.
    fn fold_last_rename(
        &mut self,
        held: &mut Held,
        taken: &Taken,
        pushed: Pushed,
        record: &Record<'_>,
    ) {
        let (seq, id) = (pushed.seq, pushed.about);
        let Some(rename) = self.last_named(held, id, seq) else { return };
        let (Some(entry), Some(object)) = (held.get(rename), held.object(id)) else { return };
        let nothing_since = held.about(object).all(|at| at <= rename || at == seq);
        let fits = is_plain_rename(entry, id)
            && !self.keeps(entry.rec_type())
            && held.named_at(rename) == pushed.name_touched
            && nothing_since
            && object.n_inside == 0
            && gave(held, taken, rename, record.parent(), record.name());
        let Some(earlier) = held.record(taken, rename).filter(|_| fits) else { return };
        let folded = RecordBuilder::of(record)
            .index(earlier.index().get())
            .parent(earlier.source_parent().unwrap_or_default())
            .name(earlier.source_name().unwrap_or_default())
            .build();
        held.fold(rename, seq, folded);
        self.counts.folded += 1;
    }

    /// Rules 8 and 9: a rename of what was just born or renamed becomes part of that.
    fn fold_rename(
        &mut self,
        held: &mut Held,
        taken: &Taken,
        pushed: Pushed,
        record: &Record<'_>,
        last_move: Seq,
    ) {
        // What it overwrites, an earlier record cannot overwrite in its place.
        if !pushed.other.is_none() {
            return;
        }
        let source = pushed.about;
        let Some(into) = self.last_named(held, source, pushed.seq) else { return };
        let Some(entry) = held.get(into) else { return };
        let named_at = held.named_at(into);
        let renamed_before = is_plain_rename(entry, source);
        // The new name moves forward to the place of the earlier record. There it must be free …
        let is_free = pushed.name_touched <= into;
        // … its directory must be there …
        let has_dir = held.object(pushed.parent).is_none_or(|dir| dir.last_name < into);
        // … and no directory may have been moved meanwhile, or this one might come to lie in itself.
        let no_dir = held.object(source).is_some_and(|object| object.is_no_dir);
        let fits = (entry.kind == Kind::Birth || renamed_before)
            && !self.keeps(entry.rec_type())
            && named_at == pushed.source_touched
            && is_free
            && has_dir
            && (no_dir || last_move <= named_at)
            && gave(
                held,
                taken,
                into,
                record.source_parent().unwrap_or_default(),
                record.source_name().unwrap_or_default(),
            );
        let Some(earlier) = held.record(taken, into).filter(|_| fits) else { return };
        let there_and_back = renamed_before
            && earlier.source_parent() == Some(record.parent())
            && earlier.source_name() == Some(record.name());
        if there_and_back {
            self.counts.folded += held.drop_together(into, pushed.seq);
            return;
        }
        let folded =
            RecordBuilder::of(&earlier).parent(record.parent()).name(record.name()).build();
        held.fold(into, pushed.seq, folded);
        self.counts.folded += 1;
    }

    /// The last record before `seq` that gave or took a name of the object, unless something lies
    /// between that must not be crossed.
    fn last_named(&self, held: &Held, id: Id, seq: Seq) -> Option<Seq> {
        let object = held.object(id)?;
        for at in held.about(object).rev().filter(|&at| at < seq).take(NAME_LOOK_BACK) {
            match held.get(at).filter(|_| at > self.barrier)?.kind {
                Kind::Birth | Kind::Link | Kind::Unlink | Kind::Rename => return Some(at),
                Kind::Update | Kind::Access | Kind::Refusal => {}
                Kind::Mirror | Kind::Hsm | Kind::Migrate | Kind::Barrier => return None,
            }
        }
        None
    }
}

/// A rename of that object which overwrote nothing.
fn is_plain_rename(entry: &Entry, id: Id) -> bool {
    entry.kind == Kind::Rename && entry.about == id && entry.other.is_none()
}

/// Record `at` gave exactly that name.
fn gave(held: &Held, taken: &Taken, at: Seq, parent: Fid, name: &[u8]) -> bool {
    held.record(taken, at).is_some_and(|record| record.parent() == parent && record.name() == name)
}

/// Two updates of one attribute, or two looks by the same user in the same way.
fn says_the_same(earlier: &Record<'_>, later: &Record<'_>) -> bool {
    let same_user = (earlier.uid(), earlier.gid()) == (later.uid(), later.gid());
    let same_way =
        (earlier.type_flags(), earlier.open_flags()) == (later.type_flags(), later.open_flags());
    let is_update = Kind::of(later.rec_type()) == Kind::Update;
    earlier.xattr() == later.xattr() && (is_update || same_user && same_way)
}

/// Keeps the names of an object whose birth is held, and notices if its history is not all here.
fn note_names(held: &mut Held, pushed: Pushed, kind: Kind) {
    let take = |held: &mut Held, id: Id, key: u64| {
        let Some(object) = held.object_mut(id) else { return };
        if !object.names.remove(key) {
            object.foreign = true;
        }
    };
    match kind {
        Kind::Birth | Kind::Link => {
            if let Some(object) = held.object_mut(pushed.about) {
                object.names.push(pushed.name);
            }
        }
        Kind::Unlink => take(held, pushed.about, pushed.name),
        Kind::Rename => {
            take(held, pushed.about, pushed.source);
            take(held, pushed.other, pushed.name);
            if let Some(object) = held.object_mut(pushed.about) {
                object.names.push(pushed.name);
            }
        }
        Kind::Migrate => {
            for id in [pushed.about, pushed.other] {
                if let Some(object) = held.object_mut(id) {
                    object.foreign = true;
                }
            }
        }
        _ => {}
    }
}
