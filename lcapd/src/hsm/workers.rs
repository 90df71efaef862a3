//! `lcap hsm worker`: processes that run a command for each request. No I/O.
//!
//! A worker asks ([`Fetch`]), and is answered when there is work. It tells ([`Report`]) what it is through
//! with, and with it all that it holds. What it was given in an answer that it got, and neither holds
//! nor reports, it has lost: it goes back. What it was given in an answer that it did not get goes
//! back as soon as it asks again. A worker that is silent for a lease loses everything.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use lcap_wire::hsm_queue::{Done, Fetch, Fetched, Leased, Report, Reported, WorkerState};
use serde_json::Value;

use super::queue::{Assignment, Event, Outcome, Queue, State, What, WorkerSpec};
use super::request::Kind;
use super::scheduler::{Now, Wants};

/// Requests in one answer, at most, so that other workers have their turn.
const HANDOUT: u32 = 256;
/// Longest wait for work.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Takes an answer to whoever asked; an error is a number and a sentence.
pub type Answer = Box<dyn FnOnce(Result<Value, (i32, String)>) + Send>;
/// Something to be done when everything up to now is on disk.
pub type After = Box<dyn FnOnce() + Send>;

#[derive(Debug, Default)]
struct Known {
    instance: u64,
    /// In which answer each request was given.
    given: BTreeMap<u64, u64>,
    /// Cancelled, and the worker has not been told.
    cancel: BTreeSet<u64>,
}

struct Waiting {
    worker: String,
    seq: u64,
    n: u32,
    until: Now,
    answer: Answer,
}

/// All workers of this kind.
#[derive(Default)]
pub struct Workers {
    lease: Duration,
    known: BTreeMap<String, Known>,
    waiting: VecDeque<Waiting>,
    after: Vec<After>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Workers {
    /// Silent for longer than `lease`, a worker is dead.
    pub fn new(lease: Duration) -> Self {
        Self { lease, ..Self::default() }
    }

    /// Whether a worker waits for work.
    pub fn is_waiting(&self, worker: &str) -> bool {
        self.waiting.iter().any(|waiting| waiting.worker == worker)
    }

    /// A worker asks for work.
    pub fn fetch(&mut self, queue: &mut Queue, fetch: Fetch, answer: Answer, now: Now) {
        let kinds: Result<Vec<Kind>, _> = fetch.kinds.iter().map(|kind| kind.parse()).collect();
        let kinds = match kinds {
            Ok(kinds) if kinds.is_empty() => Kind::ALL.to_vec(),
            Ok(kinds) => kinds,
            Err(error) => return answer(Err((libc::EINVAL, format!("kinds: {error}")))),
        };
        let Fetch { worker, archive_ids, seq, n, wait_ms, .. } = fetch;
        queue.hello(self.spec(&worker.worker, kinds, archive_ids), now);
        self.contact(queue, &worker, now);
        // It would not ask again if it had an answer to this.
        let name = worker.worker;
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.worker == name) {
            if let Some(old) = self.waiting.remove(at) {
                self.reply(old.answer, &Fetched::default());
            }
        }
        if let Some(known) = self.known.get_mut(&name) {
            let lost: Vec<u64> =
                known.given.iter().filter(|(_, s)| **s > worker.got).map(|(id, _)| *id).collect();
            for id in lost {
                known.given.remove(&id);
                queue.release(id, &name, None, now);
            }
        }
        let until = now + Duration::from_millis(wait_ms).min(MAX_WAIT);
        self.waiting.push_back(Waiting { worker: name, seq, n: n.min(HANDOUT), until, answer });
    }

    /// A worker tells what it is through with.
    pub fn report(&mut self, queue: &mut Queue, report: Report, answer: Answer, now: Now) {
        let Report { worker, done, returned, bye } = report;
        let name = &worker.worker;
        if queue.worker(name).is_none_or(|worker| !worker.connected) {
            // Until it asks, it gets nothing.
            queue.hello(self.spec(name, Vec::new(), Vec::new()), now);
        }
        for Done { id, lease, errno, error } in done {
            let outcome = match errno {
                0 => Outcome::Success,
                errno => Outcome::Failed { errno, error },
            };
            queue.done(id, name, Some(lease), outcome, now);
        }
        for id in returned {
            queue.release(id, name, None, now);
        }
        self.contact(queue, &worker, now);
        let runs = |id: &u64| {
            let view = queue.get(*id);
            view.is_some_and(
                |view| matches!(view.state, State::Running { worker, .. } if **worker == **name),
            )
        };
        let lost = worker.holding.iter().filter(|id| !runs(id)).copied().collect();
        let cancelled = |id: &&u64| queue.get(**id).is_some_and(|view| view.cancel);
        let cancel = worker.holding.iter().filter(cancelled).copied().collect();
        if let Some(known) = self.known.get_mut(name) {
            known.cancel.clear();
        }
        if bye {
            queue.drop_worker(name, now);
            self.known.remove(name);
        }
        self.reply(answer, &Reported { lost, cancel });
    }

    fn spec(&self, name: &str, kinds: Vec<Kind>, archive_ids: Vec<u32>) -> WorkerSpec {
        let (silence, grace) = (Some(self.lease), self.lease);
        WorkerSpec { name: name.into(), kinds, archive_ids, upcalls: true, silence, grace }
    }

    /// Compares what a worker holds with what it should.
    fn contact(&mut self, queue: &mut Queue, state: &WorkerState, now: Now) {
        let name = &state.worker;
        queue.heard(name, now);
        let known = self.known.entry(name.clone()).or_default();
        if known.instance != state.instance {
            *known = Known { instance: state.instance, ..Known::default() };
        }
        let running = queue.worker(name).map(|worker| worker.running.clone()).unwrap_or_default();
        known.given.retain(|id, _| running.contains(id));
        let holding: BTreeSet<u64> = state.holding.iter().copied().collect();
        for id in running {
            // What was given in the last life of lcapd was given before all.
            let given = known.given.get(&id).copied().unwrap_or(0);
            if given <= state.got && !holding.contains(&id) {
                queue.release(id, name, None, now);
            }
        }
    }

    /// Something happened to a request.
    pub fn on_event(&mut self, event: &Event) {
        if let What::CancelRunning(worker) = &event.what
            && let Some(known) = self.known.get_mut(&**worker)
        {
            known.cancel.insert(event.id);
        }
    }

    /// Gives to those who wait, in the order in which they asked.
    pub fn dispatch(&mut self, queue: &mut Queue, now: Now) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            let taken = queue.take(&waiting.worker, &Wants::any(waiting.n), now);
            let told = self.known.get_mut(&waiting.worker);
            let cancel = told.is_some_and(|known| !std::mem::take(&mut known.cancel).is_empty());
            if taken.is_empty() && !cancel && now < waiting.until {
                self.waiting.push_back(waiting);
                continue;
            }
            let known = self.known.entry(std::mem::take(&mut waiting.worker)).or_default();
            known.given.extend(taken.iter().map(|assignment| (assignment.id, waiting.seq)));
            let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
            let requests = taken.into_iter().map(leased).collect();
            self.reply(waiting.answer, &Fetched { requests, lease_ms });
        }
    }

    /// When a worker has waited long enough.
    pub fn next_deadline(&self) -> Option<Now> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    /// What to do when everything up to now is on disk.
    pub fn take_after(&mut self) -> Vec<After> {
        std::mem::take(&mut self.after)
    }

    fn reply(&mut self, answer: Answer, body: &impl serde::Serialize) {
        let body = serde_json::to_value(body).unwrap_or_default();
        self.after.push(Box::new(move || answer(Ok(body))));
    }
}

fn leased(assignment: Assignment) -> Leased {
    let Assignment { id, lease, request, failures } = assignment;
    Leased {
        id,
        lease,
        action: request.kind.to_string(),
        fsname: request.fsname().to_owned(),
        fid: request.fid.to_string(),
        archive_id: request.archive_id,
        flags: request.flags,
        data_b64: BASE64.encode(&*request.data),
        failures,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use lcap_ffi::Fid;

    use super::*;
    use crate::hsm::queue::{Arrival, Settings};
    use crate::hsm::request::{Request, Source};

    struct Bench {
        queue: Queue,
        workers: Workers,
        now: Now,
        /// Answers, in their order.
        answers: Arc<Mutex<Vec<Value>>>,
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    impl Bench {
        fn new(n: u32) -> Self {
            let mut queue = Queue::new(Settings::default());
            for oid in 1..=n {
                let (mdt, fid) = ("l-MDTffff".into(), Fid { seq: 1, oid, ver: 0 });
                let request = Request::new(Source::Upcall, mdt, Kind::Archive, fid, 1);
                queue.admit(request, Arrival::Sent, secs(1));
            }
            let answers = Arc::default();
            Self { queue, workers: Workers::new(secs(30)), now: secs(1), answers }
        }

        fn answer(&self) -> Answer {
            let answers = Arc::clone(&self.answers);
            Box::new(move |answer| answers.lock().unwrap().push(answer.unwrap()))
        }

        fn fetch(&mut self, worker: &WorkerState, seq: u64, n: u32) {
            let worker = worker.clone();
            let (kinds, archive_ids) = (Vec::new(), Vec::new());
            let fetch = Fetch { worker, kinds, archive_ids, seq, n, wait_ms: 5000 };
            let answer = self.answer();
            self.workers.fetch(&mut self.queue, fetch, answer, self.now);
        }

        fn report(&mut self, report: Report) -> Reported {
            let answer = self.answer();
            self.workers.report(&mut self.queue, report, answer, self.now);
            serde_json::from_value(self.turn().pop().unwrap()).unwrap()
        }

        fn turn(&mut self) -> Vec<Value> {
            self.queue.tick(self.now);
            for event in self.queue.take_events() {
                self.workers.on_event(&event);
            }
            self.workers.dispatch(&mut self.queue, self.now);
            for then in self.workers.take_after() {
                then();
            }
            std::mem::take(&mut self.answers.lock().unwrap())
        }

        fn fetched(&mut self) -> Vec<(u64, u64)> {
            let answers = self.turn();
            let last = answers.into_iter().next_back().unwrap();
            let fetched: Fetched = serde_json::from_value(last).unwrap();
            fetched.requests.into_iter().map(|leased| (leased.id, leased.lease)).collect()
        }
    }

    fn worker(name: &str) -> WorkerState {
        WorkerState { worker: name.into(), instance: 1, ..WorkerState::default() }
    }

    #[test]
    fn what_was_given_in_a_lost_answer_goes_back_at_the_next_question() {
        let mut bench = Bench::new(3);
        let mut w = worker("w");
        bench.fetch(&w, 1, 2);
        assert_eq!(bench.fetched().len(), 2);
        // The answer never came: it reports nothing, and asks again.
        let told = bench.report(Report { worker: w.clone(), ..Report::default() });
        assert_eq!(told, Reported::default());
        assert_eq!(bench.queue.worker("w").unwrap().running.len(), 2);
        bench.fetch(&w, 2, 3);
        let got = bench.fetched();
        assert_eq!(got.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
        // This one came. 2 is done, and it has never heard of 3.
        (w.got, w.holding) = (2, vec![1]);
        let done = vec![Done { id: 2, lease: got[1].1, errno: 0, error: String::new() }];
        bench.report(Report { worker: w.clone(), done: done.clone(), ..Report::default() });
        assert!(bench.queue.get(2).is_none());
        assert_eq!(*bench.queue.get(3).unwrap().state, State::Waiting);
        // The same again does no harm.
        bench.report(Report { worker: w, done, ..Report::default() });
        assert_eq!(bench.queue.len(), 2);
    }

    #[test]
    fn a_silent_worker_loses_what_it_holds_and_is_told_so() {
        let mut bench = Bench::new(1);
        let (mut v, w) = (worker("v"), worker("w"));
        bench.fetch(&v, 1, 1);
        let lease = bench.fetched()[0].1;
        (v.got, v.holding) = (1, vec![1]);
        bench.now = secs(32);
        bench.turn();
        bench.fetch(&w, 1, 1);
        assert_eq!(bench.fetched()[0].0, 1);
        let done = vec![Done { id: 1, lease, errno: 0, error: String::new() }];
        v.holding.clear();
        bench.report(Report { worker: v.clone(), done, ..Report::default() });
        assert_eq!(bench.queue.len(), 1, "w has it now");
        v.holding = vec![1];
        let told = bench.report(Report { worker: v, ..Report::default() });
        assert_eq!(told.lost, [1]);
    }

    #[test]
    fn a_new_life_under_an_old_name_holds_nothing() {
        let mut bench = Bench::new(2);
        bench.fetch(&worker("w"), 1, 1);
        assert_eq!(bench.fetched().len(), 1);
        let again = WorkerState { instance: 2, ..worker("w") };
        bench.fetch(&again, 1, 2);
        assert_eq!(bench.fetched().len(), 2);
    }

    #[test]
    fn who_waits_is_answered_when_there_is_work_or_a_cancel_or_time_is_up() {
        let mut bench = Bench::new(1);
        let mut w = worker("w");
        bench.fetch(&w, 1, 1);
        assert_eq!(bench.fetched().len(), 1);
        (w.got, w.holding) = (1, vec![1]);
        bench.fetch(&w, 2, 1);
        assert!(bench.turn().is_empty());
        bench.queue.cancel(1, bench.now);
        assert_eq!(bench.fetched(), []);
        w.got = 2;
        let told = bench.report(Report { worker: w.clone(), ..Report::default() });
        assert_eq!(told.cancel, [1]);
        bench.fetch(&w, 3, 1);
        assert_eq!(bench.workers.next_deadline(), Some(bench.now + secs(5)));
        assert!(bench.turn().is_empty());
        bench.now += secs(5);
        assert_eq!(bench.fetched(), []);
        // It goes: what it held is cancelled, so nobody gets it.
        bench.report(Report { worker: w, bye: true, ..Report::default() });
        assert!(bench.queue.is_empty());
    }
}
