//! The queue against a naive one, over thousands of random schedules; and what happens in order.
#![allow(clippy::cast_possible_truncation)] // small random numbers

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::Fid;

use super::*;
use crate::hsm::request::Kind;

fn fid(oid: u32) -> Fid {
    Fid { seq: 0x2_0000_0401, oid, ver: 0 }
}

fn upcall(kind: Kind, oid: u32) -> Request {
    Request::new(Source::Upcall, "l-MDTffff".into(), kind, fid(oid), 1)
}

fn asked(kind: Kind, oid: u32, cookie: u64) -> Request {
    Request::new(Source::Coordinator { cookie }, "l-MDT0000".into(), kind, fid(oid), 1)
}

fn spec(name: &str) -> WorkerSpec {
    WorkerSpec {
        name: name.into(),
        kinds: Kind::ALL.to_vec(),
        archive_ids: Vec::new(),
        upcalls: true,
        silence: None,
        grace: secs(10),
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ids(assignments: &[Assignment]) -> Vec<u64> {
    assignments.iter().map(|assignment| assignment.id).collect()
}

fn failed() -> Outcome {
    Outcome::Failed { errno: 5, error: "no tape".into() }
}

/// A queue with a worker `w` and these requests, numbered from 1.
fn queue(requests: &[(Kind, u32)]) -> Queue {
    let mut queue = Queue::new(Settings::default());
    queue.hello(spec("w"), secs(1));
    for &(kind, oid) in requests {
        queue.admit(upcall(kind, oid), Arrival::Sent, secs(1));
    }
    queue
}

use Kind::{Archive, Remove, Restore};

#[test]
fn restores_go_first_then_removes_then_archives() {
    let kinds = [Archive, Archive, Remove, Restore, Restore, Remove];
    let requests: Vec<_> = kinds.into_iter().zip(1..).collect();
    let mut queue = queue(&requests);
    assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(1))), [4, 5, 3, 6, 1, 2]);
}

#[test]
fn one_file_one_request_at_a_time_in_the_order_of_arrival() {
    let mut queue = queue(&[(Archive, 7), (Restore, 7), (Remove, 7), (Archive, 8)]);
    let first = queue.take("w", &Wants::any(9), secs(1));
    assert_eq!(ids(&first), [1, 4]);
    assert_eq!(queue.take("w", &Wants::any(9), secs(1)), []);
    // What fails keeps its turn; what is dead has lost it.
    assert_eq!(queue.done(1, "w", None, failed(), secs(2)), Ended::Retry);
    queue.tick(secs(3));
    assert_eq!(queue.take("w", &Wants::any(9), secs(3)), []);
    for failure in 2..=8 {
        queue.tick(secs(10_000 * failure));
        assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(10_000 * failure))), [1]);
        let ended = queue.done(1, "w", None, failed(), secs(10_000 * failure));
        assert_eq!(ended, if failure == 8 { Ended::Dead } else { Ended::Retry });
    }
    assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(100_000))), [2]);
    assert_eq!(queue.get(1).unwrap().error, Some("no tape"));
    // Back from the dead it stands at the end of its line.
    queue.requeue(1, secs(100_000)).unwrap();
    assert!(queue.get(1).unwrap().blocked);
    for id in [2, 3] {
        queue.done(id, "w", None, Outcome::Success, secs(100_001));
        queue.take("w", &Wants::any(9), secs(100_001));
    }
    assert!(matches!(queue.get(1).unwrap().state, State::Running { .. }));
}

#[test]
fn a_retry_that_overtakes_its_completion_is_run_again() {
    let mut queue = queue(&[]);
    let sent = |queue: &mut Queue, how| queue.admit(asked(Archive, 1, 77), how, secs(1));
    assert_eq!(sent(&mut queue, Arrival::Sent), Admitted::New(1));
    assert_eq!(sent(&mut queue, Arrival::Sent), Admitted::Duplicate(1));
    queue.take("w", &Wants::any(1), secs(1));
    assert_eq!(sent(&mut queue, Arrival::Listed), Admitted::Duplicate(1));
    assert_eq!(sent(&mut queue, Arrival::Sent), Admitted::Again(1));
    assert_eq!(queue.done(1, "w", None, failed(), secs(1)), Ended::Again);
    assert_eq!(ids(&queue.take("w", &Wants::any(1), secs(1))), [1]);
    // What a coordinator asked for is its own to try again.
    assert_eq!(queue.done(1, "w", None, failed(), secs(1)), Ended::Freed);
    assert_eq!(queue.done(1, "w", None, Outcome::Success, secs(1)), Ended::Unknown);
    // Another cookie, file or MDT is another request.
    let (a, b) = (asked(Archive, 2, 77), asked(Archive, 1, 78));
    let c = Request { mdt: "l-MDT0001".into(), ..asked(Archive, 1, 78) };
    for request in [a, b, c] {
        assert!(matches!(queue.admit(request, Arrival::Sent, secs(1)), Admitted::New(_)));
    }
}

#[test]
fn a_cancel_ends_what_does_not_run_and_is_told_to_whom_runs_it() {
    let mut queue = queue(&[(Archive, 1), (Archive, 2), (Archive, 3), (Archive, 4), (Archive, 4)]);
    queue.take("w", &Wants::any(2), secs(1));
    queue.hold(3).unwrap();
    queue.take_events();
    assert!(matches!(queue.cancel(3, secs(1)), Cancelled::Freed(_)));
    // In the middle of a line.
    assert!(matches!(queue.cancel(5, secs(1)), Cancelled::Freed(_)));
    assert_eq!(queue.cancel(99, secs(1)), Cancelled::Unknown);
    for _ in 0..2 {
        assert_eq!(queue.cancel(1, secs(1)), Cancelled::Running("w".into()));
    }
    let what: Vec<_> = queue.take_events().into_iter().map(|e| (e.id, e.what)).collect();
    let gone = What::Cancelled { ran: false };
    assert_eq!(what, [(3, gone.clone()), (5, gone), (1, What::CancelRunning("w".into()))]);
    // The worker's word is the last: done is done, and failed is not tried again.
    assert_eq!(queue.done(1, "w", None, failed(), secs(1)), Ended::Freed);
    queue.cancel(2, secs(1));
    // A cancel outlives its worker.
    queue.disconnected("w", secs(2));
    queue.tick(secs(13));
    assert_eq!(queue.len(), 1);
    let events = queue.take_events();
    assert_eq!(events.last().unwrap().what, What::Cancelled { ran: true });
}

#[test]
fn who_ignores_a_cancel_loses_the_request_in_the_end() {
    let limit = Some(secs(30));
    let mut queue = Queue::new(Settings { cancel_limit: limit, ..Settings::default() });
    queue.hello(spec("w"), secs(1));
    for cookie in 1..=3 {
        queue.admit(asked(Archive, 1, cookie), Arrival::Sent, secs(1));
    }
    let lease = queue.take("w", &Wants::any(9), secs(1))[0].lease;
    queue.cancel(1, secs(5));
    assert_eq!(queue.next_deadline(secs(5)), Some(secs(35)));
    queue.tick(secs(34));
    assert_eq!(queue.len(), 3);
    // lcapd is started again, which begins the time anew: the worker has to have heard of it.
    let changes = queue.take_changes().unwrap();
    let saved = changes.requests.into_iter().filter_map(|(id, saved)| Some((id, saved?)));
    let mut queue = Queue::recover(queue.settings.clone(), changes.meta, saved, secs(40));
    queue.hello(spec("w"), secs(40));
    queue.tick(secs(69));
    assert_eq!(queue.len(), 3);
    queue.tick(secs(70));
    let events = queue.take_events();
    let gone = What::Cancelled { ran: true };
    assert_eq!(events.iter().map(|e| (e.id, &e.what)).collect::<Vec<_>>(), [(1, &gone)]);
    // The next on its file goes on, and the late word of the worker is not heard.
    assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(70))), [2]);
    assert_eq!(queue.done(1, "w", Some(lease), Outcome::Success, secs(71)), Ended::Unknown);
    // What ended in time is not touched.
    queue.cancel(2, secs(80));
    assert_eq!(queue.done(2, "w", None, Outcome::Success, secs(81)), Ended::Freed);
    queue.tick(secs(200));
    assert_eq!((queue.len(), queue.next_deadline(secs(200))), (1, None));
}

#[test]
fn a_worker_that_comes_back_keeps_what_it_runs_and_another_waits_for_its_grace_time() {
    let mut queue = queue(&[(Archive, 1), (Archive, 2)]);
    queue.hello(spec("v"), secs(1));
    queue.take("w", &Wants::any(2), secs(1));
    queue.disconnected("w", secs(5));
    assert_eq!(queue.next_deadline(secs(5)), Some(secs(15)));
    queue.tick(secs(14));
    assert_eq!(queue.take("v", &Wants::any(2), secs(14)), []);
    queue.hello(spec("w"), secs(14));
    // It comes back with 1 and something that is not known here.
    assert!(queue.claim(77, "w", secs(14)).is_err());
    queue.claim(1, "w", secs(14)).unwrap();
    queue.keep_only("w", &BTreeSet::from([1]), secs(14));
    let taken = queue.take("v", &Wants::any(2), secs(14));
    assert_eq!(ids(&taken), [2]);
    assert!(queue.claim(2, "w", secs(14)).is_err());
    assert_eq!(queue.done(2, "w", None, Outcome::Success, secs(15)), Ended::NotHeld);
    assert_eq!(queue.done(2, "v", Some(99), Outcome::Success, secs(15)), Ended::NotHeld);
    assert_eq!(queue.done(2, "v", Some(taken[0].lease), Outcome::Success, secs(15)), Ended::Freed);
    queue.disconnected("w", secs(20));
    queue.tick(secs(30));
    assert!(queue.take_wake());
    assert_eq!(ids(&queue.take("v", &Wants::any(2), secs(30))), [1]);
}

#[test]
fn over_a_restart_each_worker_keeps_its_own_grace_time() {
    let mut queue = queue(&[(Archive, 1), (Archive, 2)]);
    queue.hello(WorkerSpec { grace: secs(600), ..spec("mover") }, secs(1));
    assert_eq!(ids(&queue.take("w", &Wants::any(1), secs(1))), [1]);
    assert_eq!(ids(&queue.take("mover", &Wants::any(1), secs(1))), [2]);
    // Both are killed, and so is lcapd before it has noticed.
    let changes = queue.take_changes().unwrap();
    let saved = changes.requests.into_iter().filter_map(|(id, saved)| Some((id, saved?)));
    let mut queue = Queue::recover(Settings::default(), changes.meta, saved, secs(2));
    queue.hello(spec("v"), secs(2));
    for (at, want) in [(11, &[][..]), (12, &[1]), (601, &[]), (602, &[2])] {
        queue.tick(secs(at));
        assert_eq!(ids(&queue.take("v", &Wants::any(9), secs(at))), want, "at {at}");
    }
}

#[test]
fn locks_hold_over_a_restart_and_let_what_runs_go_on() {
    let mut queue = queue(&[(Archive, 1), (Remove, 2)]);
    queue.lock(Lock { kind: Some(Archive), ..Lock::default() });
    assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(1))), [2]);
    let changes = queue.take_changes().unwrap();
    let saved = changes.requests.into_iter().filter_map(|(id, saved)| Some((id, saved?)));
    let mut queue = Queue::recover(Settings::default(), changes.meta.clone(), saved, secs(2));
    assert_eq!(queue.take_changes(), None);
    queue.hello(spec("w"), secs(2));
    assert_eq!(queue.done(2, "w", None, Outcome::Success, secs(2)), Ended::Freed);
    assert_eq!(queue.take("w", &Wants::any(9), secs(2)), []);
    queue.take_wake();
    assert!(queue.unlock(&Lock { kind: Some(Archive), ..Lock::default() }));
    assert!(queue.take_wake());
    assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(2))), [1]);
    // Ids are never given out twice.
    assert_eq!(queue.admit(upcall(Archive, 5), Arrival::Sent, secs(2)), Admitted::New(3));
}

#[test]
fn what_was_moved_goes_first_or_last_or_elsewhere() {
    let mut queue = queue(&[(Archive, 1), (Archive, 2), (Archive, 3), (Archive, 4)]);
    queue.move_to(3, Move::First, secs(1)).unwrap();
    queue.move_to(1, Move::Last, secs(1)).unwrap();
    queue.move_to(2, Move::Hosts(Some(vec!["x".into()])), secs(1)).unwrap();
    queue.move_to(4, Move::Archive(9), secs(1)).unwrap();
    assert_eq!(ids(&queue.take("w", &Wants::any(9), secs(1))), [3, 4, 1]);
    assert_eq!(queue.get(4).unwrap().request.archive_id, 9);
    queue.hello(spec("x"), secs(1));
    assert_eq!(ids(&queue.take("x", &Wants::any(9), secs(1))), [2]);
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Naive {
    Waiting,
    Delayed(Now),
    Held,
    Running(usize, u64),
    Dead,
}

/// A list, searched from end to end.
#[derive(Debug)]
struct Model {
    id: u64,
    kind: Kind,
    oid: u32,
    cookie: Option<u64>,
    state: Naive,
    failures: u32,
    cancel: bool,
    again: bool,
}

const WORKERS: [&str; 3] = ["a", "b", "c"];

struct Run {
    queue: Queue,
    model: Vec<Model>,
    /// What a crash leaves.
    disk: BTreeMap<u64, Saved>,
    meta: Meta,
    now: Now,
}

impl Run {
    fn new() -> Self {
        let retry = Retry { attempts: 3, first: secs(1), max: secs(3) };
        let mut queue = Queue::new(Settings { retry, ..Settings::default() });
        for name in WORKERS {
            queue.hello(spec(name), secs(0));
        }
        let (disk, meta) = Default::default();
        Self { queue, model: Vec::new(), disk, meta, now: secs(100) }
    }

    fn first_in_line(&self, at: usize) -> bool {
        let alive = |m: &&Model| m.state != Naive::Dead && m.oid == self.model[at].oid;
        self.model.iter().find(alive).is_some_and(|m| m.id == self.model[at].id)
    }

    fn admit(&mut self, rng: &mut Rng) {
        let kind = Kind::ALL[rng.below(3) as usize];
        let oid = rng.below(6) as u32;
        let cookie = (rng.below(2) == 0).then(|| rng.below(12));
        let request = cookie.map_or_else(|| upcall(kind, oid), |c| asked(kind, oid, c));
        let arrival = if rng.below(4) == 0 { Arrival::Listed } else { Arrival::Sent };
        let admitted = self.queue.admit(request, arrival, self.now);
        let known = |m: &&mut Model| cookie.is_some() && m.cookie == cookie && m.oid == oid;
        match self.model.iter_mut().find(known) {
            Some(m) if matches!(m.state, Naive::Running(..)) && arrival == Arrival::Sent => {
                m.again = true;
                assert_eq!(admitted, Admitted::Again(m.id));
            }
            Some(m) => assert_eq!(admitted, Admitted::Duplicate(m.id)),
            None => {
                let Admitted::New(id) = admitted else { panic!("{admitted:?}") };
                assert!(self.model.iter().all(|m| m.id < id));
                let state = Naive::Waiting;
                let (failures, cancel, again) = (0, false, false);
                self.model.push(Model { id, kind, oid, cookie, state, failures, cancel, again });
            }
        }
    }

    fn take(&mut self, rng: &mut Rng) {
        let worker = rng.below(3) as usize;
        let n = 1 + rng.below(3) as u32;
        let taken = self.queue.take(WORKERS[worker], &Wants::any(n), self.now);
        for assignment in &taken {
            let may = (0..self.model.len())
                .filter(|&at| self.model[at].state == Naive::Waiting && self.first_in_line(at));
            let rank = |kind| Kind::ALL.iter().position(|k| *k == kind);
            let want =
                may.min_by_key(|&at| (rank(self.model[at].kind), self.model[at].id)).unwrap();
            assert_eq!(assignment.id, self.model[want].id);
            self.model[want].state = Naive::Running(worker, assignment.lease);
        }
        let more = (0..self.model.len())
            .any(|at| self.model[at].state == Naive::Waiting && self.first_in_line(at));
        assert!(taken.len() == n as usize || !more, "left something");
    }

    fn done(&mut self, rng: &mut Rng) {
        let Some(at) = self.any(rng) else { return };
        let m = &mut self.model[at];
        let outcome = match rng.below(4) {
            0 => failed(),
            1 => Outcome::Refused,
            _ => Outcome::Success,
        };
        let (worker, lease) = match m.state {
            Naive::Running(worker, lease) => (worker, Some(lease)),
            _ => (0, None),
        };
        let ended = self.queue.done(m.id, WORKERS[worker], lease, outcome.clone(), self.now);
        if !matches!(m.state, Naive::Running(..)) {
            assert_eq!(ended, Ended::NotHeld);
        } else if std::mem::take(&mut m.again) && !m.cancel {
            assert_eq!(ended, Ended::Again);
            m.state = Naive::Waiting;
        } else if outcome == failed() && m.cookie.is_none() && !m.cancel {
            m.failures += 1;
            let dead = m.failures == 3;
            assert_eq!(ended, if dead { Ended::Dead } else { Ended::Retry });
            let wait = secs(u64::from(m.failures));
            m.state = if dead { Naive::Dead } else { Naive::Delayed(self.now + wait) };
        } else {
            assert_eq!(ended, Ended::Freed);
            self.model.remove(at);
        }
    }

    fn cancel(&mut self, rng: &mut Rng) {
        let Some(at) = self.any(rng) else { return };
        let m = &mut self.model[at];
        match self.queue.cancel(m.id, self.now) {
            Cancelled::Running(worker) => {
                assert!(matches!(m.state, Naive::Running(w, _) if *WORKERS[w] == *worker));
                (m.cancel, m.again) = (true, false);
            }
            Cancelled::Freed(request) => {
                assert_eq!(request.fid, fid(m.oid));
                assert!(!matches!(m.state, Naive::Running(..)));
                self.model.remove(at);
            }
            Cancelled::Unknown => panic!("it is there"),
        }
    }

    fn operate(&mut self, rng: &mut Rng) {
        let Some(at) = self.any(rng) else { return };
        let runs = matches!(self.model[at].state, Naive::Running(..));
        let id = self.model[at].id;
        if rng.below(3) == 0 {
            let may = !runs && self.model[at].state != Naive::Dead;
            assert_eq!(self.queue.hold(id).is_ok(), may);
            if may {
                self.model[at].state = Naive::Held;
            }
        } else {
            assert_eq!(self.queue.requeue(id, self.now).is_ok(), !runs);
            if runs || self.model[at].state == Naive::Waiting {
                return;
            }
            let mut m = self.model.remove(at);
            let dead = m.state == Naive::Dead;
            (m.state, m.failures) = (Naive::Waiting, 0);
            // A line is by arrival, and the dead come to its end.
            self.model.insert(if dead { self.model.len() } else { at }, m);
        }
    }

    fn lose_worker(&mut self, rng: &mut Rng) {
        let lost = rng.below(3) as usize;
        self.queue.disconnected(WORKERS[lost], self.now);
        self.pass(secs(20));
        for m in &mut self.model {
            if matches!(m.state, Naive::Running(w, _) if w == lost) {
                (m.state, m.again) = (Naive::Waiting, false);
            }
        }
        self.model.retain(|m| !m.cancel || matches!(m.state, Naive::Running(..)));
        self.queue.hello(spec(WORKERS[lost]), self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.queue.tick(self.now);
        for m in &mut self.model {
            if matches!(m.state, Naive::Delayed(until) if until <= self.now) {
                m.state = Naive::Waiting;
            }
        }
    }

    fn crash(&mut self) {
        let settings = self.queue.settings.clone();
        // A dead one that was requeued stands where its id says after that, but what runs goes first.
        self.model.sort_by_key(|m| (!matches!(m.state, Naive::Running(..)), m.id));
        let saved = self.disk.clone();
        self.queue = Queue::recover(settings, self.meta.clone(), saved, self.now);
        for m in &mut self.model {
            if matches!(m.state, Naive::Delayed(_)) {
                m.state = Naive::Waiting;
            }
        }
        for name in WORKERS {
            self.queue.hello(spec(name), self.now);
        }
    }

    fn any(&self, rng: &mut Rng) -> Option<usize> {
        (!self.model.is_empty()).then(|| rng.below(self.model.len() as u64) as usize)
    }

    fn check(&mut self) {
        if let Some(changes) = self.queue.take_changes() {
            for (id, saved) in changes.requests {
                match saved {
                    Some(saved) => self.disk.insert(id, saved),
                    None => self.disk.remove(&id),
                };
            }
            self.meta = changes.meta;
        }
        assert_eq!(self.disk.len(), self.model.len());
        assert_eq!(self.queue.len(), self.model.len());
        let mut counts = [[0; 3]; STATES.len()];
        for at in 0..self.model.len() {
            let (m, first) = (&self.model[at], self.first_in_line(at));
            let view = self.queue.get(m.id).unwrap();
            assert_eq!(view.blocked, !first && m.state != Naive::Dead);
            assert_eq!((view.failures, view.cancel), (m.failures, m.cancel));
            let state = match m.state {
                Naive::Waiting => State::Waiting,
                Naive::Delayed(until) => State::Delayed(until),
                Naive::Held => State::Held,
                Naive::Running(w, lease) => State::Running { worker: WORKERS[w].into(), lease },
                Naive::Dead => State::Dead,
            };
            assert_eq!(*view.state, state);
            counts[state.at()][m.kind.at()] += 1;
        }
        assert_eq!(self.queue.counts, counts);
        let ready = (0..self.model.len())
            .filter(|&at| self.model[at].state == Naive::Waiting && self.first_in_line(at));
        assert_eq!(self.queue.scheduler.n_ready(), ready.count());
        let files = self.model.iter().filter(|m| matches!(m.state, Naive::Running(..)));
        let files: Vec<u32> = files.map(|m| m.oid).collect();
        assert_eq!(files.iter().collect::<BTreeSet<_>>().len(), files.len(), "two on one file");
        let running = |w: usize| {
            self.model.iter().filter(move |m| matches!(m.state, Naive::Running(x, _) if x == w))
        };
        for (w, name) in WORKERS.iter().enumerate() {
            let worker = self.queue.worker(name).unwrap();
            assert!(
                worker
                    .running
                    .iter()
                    .copied()
                    .eq(running(w).map(|m| m.id).collect::<BTreeSet<_>>())
            );
        }
    }
}

#[test]
fn it_does_what_a_naive_queue_does() {
    for seed in 0..3000 {
        let mut rng = Rng(seed);
        let mut run = Run::new();
        for _ in 0..60 {
            match rng.below(24) {
                0..8 => run.admit(&mut rng),
                8..13 => run.take(&mut rng),
                13..18 => run.done(&mut rng),
                18 => run.cancel(&mut rng),
                19..21 => run.operate(&mut rng),
                21 => run.lose_worker(&mut rng),
                22 => {
                    let time = Duration::from_millis(rng.below(4000));
                    run.pass(time);
                }
                _ => run.crash(),
            }
            run.check();
        }
        // In the end everything gets done.
        for m in 0..run.model.len() {
            let _ = run.queue.requeue(run.model[m].id, run.now);
        }
        run.now += secs(1000);
        while !run.queue.is_empty() {
            run.queue.tick(run.now);
            for name in WORKERS {
                run.queue.take(name, &Wants::any(99), run.now);
                let held: Vec<u64> =
                    run.queue.worker(name).unwrap().running.iter().copied().collect();
                for id in held {
                    run.queue.done(id, name, None, Outcome::Success, run.now);
                }
            }
        }
        assert!(run.queue.lines.is_empty() && run.queue.counts == [[0; 3]; 5]);
        assert_eq!(run.queue.scheduler.n_ready(), 0);
    }
}

#[test]
fn events_share_the_request() {
    let mut queue = queue(&[(Archive, 1)]);
    let events = queue.take_events();
    assert!(Arc::ptr_eq(&events[0].request, queue.get(1).unwrap().request));
}

/// A million of them wait in memory: see also `cargo bench -p lcapd --bench hsm_movers`.
#[test]
fn a_request_takes_little_memory() {
    let entry = size_of::<Entry>() + size_of::<Request>() + 2 * size_of::<usize>();
    assert!(entry <= 264, "{entry} bytes, and the allocator's own");
    assert_eq!(size_of::<crate::hsm::scheduler::Turn>(), 24);
}
