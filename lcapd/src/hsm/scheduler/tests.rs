//! Who gets what, and when, on a clock that is made up: what `[hsm]` can say of it, and the original's rows and faults
//! that are about it (tests/README.md has the list).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lcap_ffi::Fid;

use super::hosts::Rule;
use super::slots::Batching;
use super::*;
use crate::hsm::queue::{Arrival, Assignment, Move, Outcome, Queue, Settings as Site, WorkerSpec};
use crate::hsm::request::Request;
use Kind::{Archive, Remove, Restore};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A queue, and the time there.
struct Stage {
    queue: Queue,
    now: Now,
    n: u32,
}

impl Stage {
    fn new(settings: Settings) -> Self {
        let site = Site { scheduler: settings, ..Site::default() };
        Self { queue: Queue::new(site), now: secs(1000), n: 0 }
    }

    /// A worker for these archives, or all.
    fn worker(&mut self, name: &str, archive_ids: &[u32]) {
        let spec = WorkerSpec {
            name: name.into(),
            kinds: Kind::ALL.to_vec(),
            archive_ids: archive_ids.to_vec(),
            upcalls: true,
            silence: None,
            grace: secs(5),
        };
        self.queue.hello(spec, self.now);
    }

    /// A request for a file of its own; its id is its number, from 1.
    fn add(&mut self, kind: Kind, data: &str) -> u64 {
        self.add_as(kind, data, |_| ())
    }

    fn add_as(&mut self, kind: Kind, data: &str, more: impl FnOnce(&mut Request)) -> u64 {
        self.n += 1;
        let fid = Fid { seq: 7, oid: self.n, ver: 0 };
        let source = Source::Coordinator { cookie: self.n.into() };
        let mut request = Request::new(source, "l-MDT0000".into(), kind, fid, 1);
        request.data = data.as_bytes().into();
        more(&mut request);
        self.queue.admit(request, Arrival::Sent, self.now).id()
    }

    fn many(&mut self, n: u32, data: &str) {
        for _ in 0..n {
            self.add(Archive, data);
        }
    }

    fn take(&mut self, worker: &str, n: u32) -> Vec<u64> {
        self.take_as(worker, &Wants::any(n)).iter().map(|assignment| assignment.id).collect()
    }

    fn take_as(&mut self, worker: &str, wants: &Wants) -> Vec<Assignment> {
        self.queue.tick(self.now);
        self.queue.take(worker, wants, self.now)
    }

    fn done(&mut self, worker: &str, ids: &[u64]) {
        for &id in ids {
            self.queue.done(id, worker, None, Outcome::Success, self.now);
        }
    }

    /// As lcapd is started again: with what is on disk.
    fn restart(&mut self) {
        let changes = self.queue.take_changes().unwrap();
        let saved = changes.requests.into_iter().filter_map(|(id, saved)| Some((id, saved?)));
        let site = Site { scheduler: self.queue.scheduler().settings().clone(), ..Site::default() };
        self.queue = Queue::recover(site, changes.meta, saved, self.now);
    }

    fn data(&self, id: u64) -> String {
        String::from_utf8(self.queue.get(id).unwrap().request.data.to_vec()).unwrap()
    }
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

#[test]
fn with_weights_what_has_waited_long_enough_goes_before_what_weighs_more() {
    let order = Order::Weighted { weights: [1.0, 10.0, 5.0], aging: 1.0 };
    let mut stage = Stage::new(Settings { order, ..Settings::default() });
    stage.worker("w", &[]);
    let archive = stage.add(Archive, "");
    stage.now += secs(8 * 60);
    let (restore, remove) = (stage.add(Restore, ""), stage.add(Remove, ""));
    // The archive weighs 1 and has waited for 8 minutes: less than a new restore, more than a new remove.
    assert_eq!(stage.take("w", 2), [restore, archive]);
    // A stream of restores does not starve the remove.
    let mut went_at = None;
    for minute in 0..20 {
        stage.add(Restore, "");
        if stage.take("w", 1) == [remove] {
            went_at = Some(minute);
            break;
        }
        stage.now += secs(60);
    }
    assert_eq!(went_at, Some(6), "5 and 6 minutes against 10 and none");
}

#[test]
fn shares_take_turns_by_owner_group_project_or_tag() {
    type Set = fn(&mut Request, u32);
    let cases: [(&str, ShareBy, Set); 4] = [
        ("uid", ShareBy::Uid, |request, n| request.uid = n),
        ("gid", ShareBy::Gid, |request, n| request.gid = n),
        ("project", ShareBy::Project, |request, n| request.project = n),
        ("tag", ShareBy::Tag("user=".to_owned()), |request, n| {
            request.data = format!("x,user={n}").as_bytes().into();
        }),
    ];
    for (what, share_by, set) in cases {
        let share_weights = BTreeMap::from([(Box::from(&b"3"[..]), 2.0)]);
        let settings = Settings { share_by, share_weights, ..Settings::default() };
        let mut stage = Stage::new(settings);
        stage.worker("w", &[]);
        // 1 had been alone for long before the others came: that is not held against it.
        for _ in 0..1000 {
            stage.add_as(Archive, "", |request| set(request, 1));
        }
        let before = stage.take("w", 500);
        stage.done("w", &before);
        let of_2: Vec<u64> =
            (0..30).map(|_| stage.add_as(Archive, "", |request| set(request, 2))).collect();
        let of_3: Vec<u64> =
            (0..30).map(|_| stage.add_as(Archive, "", |request| set(request, 3))).collect();
        let taken = stage.take("w", 40);
        let count = |ids: &[u64]| taken.iter().filter(|id| ids.contains(id)).count();
        let counts = [40 - count(&of_2) - count(&of_3), count(&of_2), count(&of_3)];
        // 10, 10 and, with twice the weight, 20; who begins makes a difference of one.
        for (count, want) in counts.into_iter().zip([10_usize, 10, 20]) {
            assert!(count.abs_diff(want) <= 1, "{what}: {counts:?}");
        }
        // Within a share, in order.
        let mine: Vec<u64> = taken.iter().copied().filter(|id| of_2.contains(id)).collect();
        assert_eq!(mine, of_2[..mine.len()], "{what}");
    }
}

#[test]
fn limits_hold_per_worker_kind_archive_and_user() {
    let cases = [
        ("each worker", Limits { worker: Some(2), ..Limits::default() }, [2, 2]),
        (
            "a worker by name",
            Limits {
                worker: Some(2),
                workers: BTreeMap::from([("v".to_owned(), 5)]),
                ..Limits::default()
            },
            [2, 5],
        ),
        ("a kind", Limits { kind: [Some(3), None, None], ..Limits::default() }, [3, 0]),
        ("an archive", Limits { archive: BTreeMap::from([(1, 4)]), ..Limits::default() }, [4, 0]),
        ("a user", Limits { share: Some(1), ..Limits::default() }, [1, 0]),
    ];
    for (what, limits, want) in cases {
        let settings = Settings { limits, share_by: ShareBy::Uid, ..Settings::default() };
        let mut stage = Stage::new(settings);
        stage.worker("w", &[]);
        stage.worker("v", &[]);
        for _ in 0..20 {
            stage.add_as(Archive, "", |request| request.uid = 7);
        }
        let of_w = stage.take("w", 100);
        let of_v = stage.take("v", 100);
        assert_eq!([of_w.len(), of_v.len()], want, "{what}");
        // As one ends, another may begin; also when the worker was away meanwhile.
        stage.queue.disconnected("w", stage.now);
        stage.worker("w", &[]);
        assert_eq!(stage.take("w", 100), [0; 0], "{what}");
        stage.done("w", &of_w[..1]);
        assert_eq!(stage.take("w", 100).len(), 1, "{what}");
    }
    // Other kinds, archives and users are not held up by a limit that is not theirs.
    let limits = Limits {
        kind: [Some(0), None, None],
        archive: BTreeMap::from([(2, 0)]),
        share: Some(2),
        ..Limits::default()
    };
    let mut stage = Stage::new(Settings { limits, share_by: ShareBy::Uid, ..Settings::default() });
    stage.worker("w", &[]);
    for uid in [7, 7, 7, 8] {
        stage.add_as(Restore, "", |request| request.uid = uid);
    }
    stage.add(Archive, "");
    stage.add_as(Restore, "", |request| request.archive_id = 2);
    assert_eq!(stage.take("w", 100), [1, 4, 2], "in turns, and two each at most");
}

#[test]
fn a_worker_of_another_archive_does_not_wait_behind_a_long_queue() {
    let mut stage = Stage::new(Settings::default());
    stage.worker("m23", &[2, 3]);
    stage.many(1000, "");
    assert_eq!(stage.take("m23", 100), [0; 0]);
    let other = stage.add_as(Archive, "", |request| request.archive_id = 2);
    assert_eq!(stage.take("m23", 100), [other]);
    // An archive that nobody knows is for who serves all.
    let unknown = stage.add_as(Remove, "", |request| request.archive_id = 0);
    assert_eq!(stage.take("m23", 100), [0; 0]);
    stage.worker("m1", &[1]);
    assert_eq!(stage.take("m1", 3), [1, 2, 3]);
    stage.worker("all", &[]);
    assert_eq!(stage.take("all", 1), [unknown]);
}

#[test]
fn what_is_too_large_for_a_worker_is_passed_over() {
    let mut stage = Stage::new(Settings::default());
    stage.worker("small", &[]);
    stage.worker("large", &[]);
    stage.add(Archive, &"x".repeat(500));
    stage.add(Archive, "y");
    stage.add(Archive, "z");
    let wants = Wants { bytes: Some(300), item_bytes: 144, ..Wants::any(10) };
    let ids = |taken: Vec<Assignment>| taken.iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!(ids(stage.take_as("small", &wants)), [2, 3]);
    let wants = Wants { bytes: Some(1 << 20), item_bytes: 144, ..Wants::any(10) };
    assert_eq!(ids(stage.take_as("large", &wants)), [1]);
}

#[test]
fn each_worker_gets_what_it_has_room_for_and_idle_ones_count_for_nothing() {
    let mut stage = Stage::new(Settings::default());
    stage.many(100, "");
    for name in ["old", "new", "idle1", "idle2"] {
        stage.worker(name, &[]);
    }
    assert_eq!(stage.take("old", 50).len(), 50);
    assert_eq!(stage.take("new", 50).len(), 50);
}

#[test]
fn of_several_hosts_the_one_that_has_room_gets_it() {
    let rules = vec![
        Rule::contains("tag=n0", &["agent_0"]).unwrap(),
        Rule::contains("tag=n1", &["agent_1", "agent_2"]).unwrap(),
        Rule::contains("tag=n2", &["agent_3", "agent_4"]).unwrap(),
    ];
    let mut stage = Stage::new(Settings { rules, ..Settings::default() });
    for data in ["tag=n0", "a=b,tag=n1", "tag=n2,c=d"] {
        stage.many(20, data);
    }
    for mover in 0..=3 {
        stage.worker(&format!("agent_{mover}"), &[]);
    }
    // One that takes nothing holds nothing back: the other of its pair has room.
    assert_eq!(stage.take("agent_0", 100), range(1, 20));
    assert_eq!(stage.take("agent_1", 5), range(21, 25));
    assert_eq!(stage.take("agent_2", 100), range(26, 40));
    assert_eq!(stage.take("agent_3", 100), range(41, 60));
    // Restores and removes go anywhere.
    let restore = stage.add(Restore, "tag=n0");
    assert_eq!(stage.take("agent_3", 1), [restore]);
}

#[test]
fn what_is_for_an_absent_host_waits_and_comes_back_to_its_line_after_the_grace_time() {
    let rules = vec![
        Rule::contains("tag=n0", &["agent_0"]).unwrap(),
        Rule::contains("tag=n1", &["agent_1", "agent_2"]).unwrap(),
        Rule::contains("tag=n3", &["agent_3"]).unwrap(),
    ];
    let mut stage = Stage::new(Settings { rules, ..Settings::default() });
    for mover in 1..=3 {
        stage.worker(&format!("agent_{mover}"), &[]);
    }
    for data in ["tag=n0", "tag=n1", "tag=n3"] {
        stage.many(20, data);
    }
    assert_eq!(stage.take("agent_1", 3), range(21, 23));
    assert_eq!(stage.take("agent_3", 3), range(41, 43));
    // 1 stops for good, 3 is started again at once.
    stage.queue.disconnected("agent_1", stage.now);
    stage.queue.disconnected("agent_3", stage.now);
    stage.worker("agent_3", &[]);
    stage.queue.keep_only("agent_3", &BTreeSet::new(), stage.now);
    assert_eq!(stage.take("agent_3", 100), range(41, 60));
    stage.now += secs(4);
    assert_eq!(stage.take("agent_2", 2), range(24, 25));
    stage.now += secs(1);
    // Its grace time is over; what it had goes first again, not last.
    assert_eq!(stage.take("agent_2", 100), [range(21, 23), range(26, 40)].concat());
    stage.now += secs(86_400);
    for mover in 1..=3 {
        assert_eq!(
            stage.take(&format!("agent_{mover}"), 100),
            [0; 0],
            "nobody else gets those of 0"
        );
    }
    stage.worker("agent_0", &[]);
    assert_eq!(stage.take("agent_0", 100), range(1, 20));
}

#[test]
fn each_group_has_its_host_whether_that_is_there_or_not() {
    let hosts = ["agent_0", "agent_1", "agent_2"];
    let rules = vec![Rule::hashed("grouping=", 0, &hosts).unwrap()];
    let mut stage = Stage::new(Settings { rules, ..Settings::default() });
    stage.worker("agent_1", &[]);
    stage.worker("agent_2", &[]);
    for group in ["test0", "test1", "test2"] {
        stage.many(10, &format!("grouping={group}"));
    }
    assert_eq!(stage.take("agent_1", 3), range(11, 13));
    assert_eq!(stage.take("agent_2", 100), range(21, 30));
    stage.queue.disconnected("agent_1", stage.now);
    stage.worker("agent_1", &[]);
    stage.queue.keep_only("agent_1", &BTreeSet::from([11]), stage.now);
    assert_eq!(stage.take("agent_1", 100), range(12, 20));
    stage.now += secs(60);
    assert_eq!(stage.take("agent_2", 100), [0; 0]);
    stage.worker("agent_0", &[]);
    assert_eq!(stage.take("agent_0", 100), range(1, 10));
}

#[test]
fn a_group_is_numbered_once_and_keeps_its_host_for_good() {
    let hosts = ["agent_0", "agent_1", "agent_2"];
    let rules = vec![Rule::hashed("grouping=", 10, &hosts).unwrap()];
    let mut stage = Stage::new(Settings { rules, ..Settings::default() });
    // From the facts: test0 becomes 7, which is for the second host.
    let id = stage.add(Archive, "a=b,grouping=test0,c");
    for round in 0..3 {
        for host in hosts {
            stage.worker(host, &[]);
        }
        assert_eq!(stage.data(id), "a=b,grouping=7,c", "round {round}");
        assert_eq!(stage.take("agent_0", 9), [0; 0]);
        assert_eq!(stage.take("agent_2", 9), [0; 0]);
        assert_eq!(stage.take("agent_1", 9), [id], "round {round}");
        // Chosen again: its mover is gone for good, and then lcapd is started again.
        stage.queue.disconnected("agent_1", stage.now);
        stage.now += secs(6);
        stage.queue.tick(stage.now);
        stage.restart();
    }
}

fn batching(slots: u32) -> Settings {
    let batching = Batching { idle: secs(10), max: Some(secs(20)), slots };
    Settings { batching: Some(batching), ..Settings::default() }
}

/// Takes one request a second with each worker, ends it, and notes its tag.
fn work(stage: &mut Stage, workers: &[&str], seconds: u64) -> BTreeSet<String> {
    let mut done = BTreeSet::new();
    for _ in 0..seconds {
        for worker in workers {
            let ids = stage.take(worker, 3);
            done.extend(ids.iter().map(|&id| stage.data(id)));
            stage.done(worker, &ids);
        }
        stage.now += secs(1);
    }
    done
}

#[test]
fn a_slot_takes_one_tag_until_it_has_been_idle() {
    for (workers, slots) in [(&["m1", "m2"][..], 1), (&["m1"][..], 2)] {
        let mut stage = Stage::new(batching(slots));
        for worker in workers {
            stage.worker(worker, &[]);
        }
        for tag in 1..=5 {
            stage.many(4, &format!("tag={tag}"));
        }
        let tags = |n: &[u32]| n.iter().map(|n| format!("tag={n}")).collect::<BTreeSet<_>>();
        assert_eq!(work(&mut stage, workers, 5), tags(&[1, 2]), "{workers:?}");
        // The slots were used last within the first seconds.
        assert_eq!(work(&mut stage, workers, 5), tags(&[]), "{workers:?}");
        let next = work(&mut stage, workers, 10);
        assert_eq!(next, tags(&[3, 4]), "{workers:?}");
        assert_eq!(work(&mut stage, workers, 20), tags(&[5]), "{workers:?}");
        assert!(stage.queue.is_empty(), "{workers:?}");
    }
}

#[test]
fn a_slot_that_others_wait_for_is_given_up_after_its_longest_time() {
    let mut stage = Stage::new(batching(1));
    stage.worker("m", &[]);
    let (start, mut order) = (stage.now, Vec::new());
    stage.add(Archive, "t1");
    stage.add(Archive, "t2");
    for _ in 0..60 {
        stage.add(Archive, "t1");
        for id in stage.take("m", 9) {
            let at = (stage.now - start).as_secs();
            if order.last().is_none_or(|(_, tag)| *tag != stage.data(id)) {
                order.push((at, stage.data(id)));
            }
            stage.done("m", &[id]);
        }
        stage.now += secs(1);
    }
    let order: Vec<(u64, &str)> = order.iter().map(|(at, tag)| (*at, tag.as_str())).collect();
    assert_eq!(order, [(0, "t1"), (20, "t2"), (30, "t1")]);
    // With nobody else there, the same tag simply goes on.
    stage.now += secs(100);
    stage.add(Archive, "t1");
    assert_eq!(stage.take("m", 9).len(), 1);
}

#[test]
fn archives_without_data_need_no_slot() {
    let mut stage = Stage::new(batching(1));
    stage.worker("m", &[]);
    stage.add(Archive, "tag=a");
    assert_eq!(stage.take("m", 9), [1]);
    for id in 2..=6 {
        stage.add(Archive, "");
        assert_eq!(stage.take("m", 9), [id], "at once, and in their order");
    }
}

#[test]
fn a_tag_that_may_go_to_several_hosts_has_the_slot_of_one() {
    let rules = vec![Rule::contains("tag=", &["m1", "m2"]).unwrap()];
    let mut stage = Stage::new(Settings { rules, ..batching(1) });
    for worker in ["m1", "m2", "m3"] {
        stage.worker(worker, &[]);
    }
    stage.many(10, "tag=a");
    stage.many(10, "tag=b");
    assert_eq!(stage.take("m3", 100), [0; 0]);
    assert_eq!(stage.take("m1", 2), [1, 2]);
    assert_eq!(stage.take("m2", 100), range(11, 20), "the other tag");
    assert_eq!(stage.take("m1", 100), range(3, 10));
}

#[test]
fn a_worker_that_comes_back_has_its_slots_again() {
    let mut stage = Stage::new(batching(1));
    stage.worker("m1", &[]);
    stage.many(6, "tag=a");
    stage.many(2, "tag=b");
    assert_eq!(stage.take("m1", 2), [1, 2]);
    stage.queue.disconnected("m1", stage.now);
    stage.now += secs(2);
    stage.worker("m1", &[]);
    stage.queue.keep_only("m1", &BTreeSet::from([1, 2]), stage.now);
    stage.worker("m2", &[]);
    assert_eq!(stage.take("m2", 100), [7, 8], "the first tag is m1's still");
    assert_eq!(stage.take("m1", 100), range(3, 6));
    stage.done("m1", &range(1, 6));
    stage.done("m2", &[7, 8]);
    assert!(stage.queue.is_empty());
    // A part of a slot's worth is left to each: two slots share what may run.
    let mut stage = Stage::new(batching(2));
    stage.worker("m", &[]);
    stage.many(10, "tag=a");
    let wants = Wants { running: [Some(4), None, None], ..Wants::any(100) };
    assert_eq!(stage.take_as("m", &wants).len(), 2);
    stage.many(10, "tag=b");
    assert_eq!(stage.take_as("m", &wants).len(), 2);
}

#[test]
fn what_is_requeued_or_comes_back_from_disk_keeps_its_place() {
    let mut stage = Stage::new(Settings::default());
    stage.worker("w", &[]);
    stage.many(6, "");
    assert_eq!(stage.take("w", 2), [1, 2]);
    stage.queue.hold(3).unwrap();
    stage.queue.move_to(6, Move::First, stage.now).unwrap();
    stage.queue.drop_worker("w", stage.now);
    stage.queue.requeue(3, stage.now).unwrap();
    stage.restart();
    stage.worker("w", &[]);
    assert_eq!(stage.take("w", 100), [6, 1, 2, 3, 4, 5]);
}

#[test]
fn two_archives_keep_apart_over_a_restart() {
    let mut stage = Stage::new(Settings::default());
    let (mut of_1, mut of_2) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        of_2.push(stage.add_as(Archive, "", |request| request.archive_id = 2));
        of_1.push(stage.add(Archive, ""));
    }
    stage.restart();
    stage.worker("m2", &[2]);
    stage.worker("m1", &[1]);
    assert_eq!(stage.take("m2", 1000), of_2);
    assert_eq!(stage.take("m1", 1000), of_1);
    assert!(of_2.iter().all(|&id| stage.queue.get(id).unwrap().request.archive_id == 2));
}

#[test]
fn a_lock_is_for_a_worker_a_kind_or_an_archive_and_what_runs_goes_on() {
    let cases = [
        (Lock { worker: Some("w".to_owned()), ..Lock::default() }, &[][..], &[1, 2, 3][..]),
        (Lock { kind: Some(Archive), ..Lock::default() }, &[2, 3], &[]),
        (Lock { archive_id: Some(2), ..Lock::default() }, &[1, 2], &[]),
        (Lock { kind: Some(Remove), archive_id: Some(2), ..Lock::default() }, &[1, 2], &[]),
        (Lock::default(), &[], &[]),
    ];
    for (lock, of_w, of_v) in cases {
        let order = Order::Fixed([Archive, Restore, Remove]);
        let mut stage = Stage::new(Settings { order, ..Settings::default() });
        stage.worker("w", &[]);
        stage.worker("v", &[]);
        stage.add(Archive, "");
        stage.add(Restore, "");
        stage.add_as(Remove, "", |request| request.archive_id = 2);
        let first = stage.add_as(Restore, "", |request| request.uid = 1);
        stage.queue.move_to(first, Move::First, stage.now).unwrap();
        stage.queue.hold(1).unwrap();
        assert_eq!(stage.take("w", 1), [first]);
        stage.queue.requeue(1, stage.now).unwrap();
        stage.queue.lock(lock.clone());
        assert_eq!(stage.take("w", 9), of_w, "{lock:?}");
        assert_eq!(stage.take("v", 9), of_v, "{lock:?}");
        // To drain is to lock and to wait for this.
        stage.done("w", &[first]);
        assert_eq!(stage.queue.get(first).map(|view| view.id), None, "{lock:?}");
        stage.queue.take_wake();
        assert!(stage.queue.unlock(&lock) && stage.queue.take_wake(), "{lock:?}");
        let rest = 3 - of_w.len() - of_v.len();
        assert_eq!(stage.take("w", 9).len(), rest, "{lock:?}");
    }
}
