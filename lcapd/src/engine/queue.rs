//! One queue stream on one MDT: who gets which records, and what is settled.
//!
//! Every batch goes to one member at a time. A member that leaves, dies or falls silent gives back
//! what it had not acknowledged. With several lanes, each lane has one owner, and a lane changes
//! hands only when its owner holds nothing of it: so records of one lane are with one member at a
//! time, and in order as long as members stay.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lcap_ffi::RecordIndex;
use lcap_wire::RangeSet;

/// Number of a session.
pub type SessionId = u64;
/// Number of a batch in this queue.
pub type BatchId = u64;

/// Records of one lane that go to one member together.
#[derive(Clone, Debug)]
pub struct QueueBatch<P> {
    /// Lane.
    pub lane: u16,
    /// Index of each record, in the order of delivery.
    pub indexes: Vec<RecordIndex>,
    /// Memory that it takes.
    pub bytes: usize,
    /// What the queue does not look at: the records themselves.
    pub payload: P,
}

/// What is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// To whom.
    pub session: SessionId,
    /// Which batch; see [`Queue::batch`].
    pub batch: BatchId,
    /// Number of the message within the session.
    pub sequence: u64,
    /// Somebody else may have had it.
    pub redelivered: bool,
}

#[derive(Debug)]
struct Outstanding<P> {
    batch: QueueBatch<P>,
    /// Which of its records are not acknowledged, as positions in `batch.indexes`.
    open: Vec<u32>,
    /// The lowest index among them.
    lowest: RecordIndex,
    holder: Option<SessionId>,
    redelivered: bool,
}

impl<P> Outstanding<P> {
    fn find_lowest(&self) -> Option<RecordIndex> {
        self.open.iter().filter_map(|&at| self.batch.indexes.get(at as usize)).min().copied()
    }
}

#[derive(Debug, Default)]
struct Member {
    /// Messages up to this number may be sent.
    upto: u64,
    sequence: u64,
    held: BTreeSet<BatchId>,
}

#[derive(Debug, Default)]
struct Lane {
    owner: Option<SessionId>,
    /// Who gets it once its owner holds nothing of it; nothing is sent from it until then.
    heir: Option<SessionId>,
    /// Batches that wait for a member, oldest first.
    pending: VecDeque<BatchId>,
    /// Batches that a member holds.
    in_flight: BTreeSet<BatchId>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<P> {
    lanes: Vec<Lane>,
    members: BTreeMap<SessionId, Member>,
    outstanding: BTreeMap<BatchId, Outstanding<P>>,
    /// The lowest open index of every outstanding batch.
    lowest: BTreeSet<(RecordIndex, BatchId)>,
    next_batch: BatchId,
    /// Every record with index ≤ `low` was given to the queue or dropped by a policy.
    low: RecordIndex,
    watermark: RecordIndex,
    bytes: usize,
    /// The member that was served last, so that members take turns.
    last_served: SessionId,
    redelivered: u64,
}

impl<P> Queue<P> {
    /// An empty queue with so many lanes (at least 1), all settled up to `watermark`.
    pub fn new(lanes: u16, watermark: RecordIndex) -> Self {
        Self {
            lanes: (0..lanes.max(1)).map(|_| Lane::default()).collect(),
            members: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            lowest: BTreeSet::new(),
            next_batch: 1,
            low: watermark,
            watermark,
            bytes: 0,
            last_served: 0,
            redelivered: 0,
        }
    }

    /// Takes a batch in; what it says of indexes from `void_from` on is void.
    pub fn push(&mut self, batch: QueueBatch<P>, void_from: Option<RecordIndex>) {
        let valid = |index: &RecordIndex| void_from.is_none_or(|from| *index < from);
        let open: Vec<u32> = (0..)
            .zip(&batch.indexes)
            .filter_map(|(at, index)| valid(index).then_some(at))
            .collect();
        let Some(&lowest) = batch.indexes.iter().filter(|index| valid(index)).min() else { return };
        let id = self.next_batch;
        self.next_batch += 1;
        self.bytes += batch.bytes;
        let lane = self.lane_of(batch.lane);
        lane.pending.push_back(id);
        self.lowest.insert((lowest, id));
        let entry = Outstanding { batch, open, lowest, holder: None, redelivered: false };
        self.outstanding.insert(id, entry);
    }

    /// Every record with index ≤ `low` has been pushed or dropped.
    pub fn advance(&mut self, low: RecordIndex) {
        self.low = self.low.max(low);
        self.settle();
    }

    /// A member joins; it has room for no message yet.
    pub fn join(&mut self, session: SessionId) {
        self.members.entry(session).or_default();
        self.share_lanes();
    }

    /// A member is gone: what it held goes to others, oldest first.
    pub fn leave(&mut self, session: SessionId) {
        let Some(member) = self.members.remove(&session) else { return };
        // From the back, so that each goes to the front of its lane and the order stays.
        for id in member.held.into_iter().rev() {
            let Some(entry) = self.outstanding.get_mut(&id) else { continue };
            entry.holder = None;
            entry.redelivered = true;
            let lane = entry.batch.lane;
            let lane = self.lane_of(lane);
            lane.in_flight.remove(&id);
            let at = lane.pending.partition_point(|&other| other < id);
            lane.pending.insert(at, id);
        }
        for lane in &mut self.lanes {
            if lane.heir == Some(session) {
                lane.heir = None;
            }
            if lane.owner == Some(session) {
                lane.owner = lane.heir.take();
            }
        }
        self.share_lanes();
    }

    /// A member has room for messages up to this number.
    pub fn credit(&mut self, session: SessionId, upto: u64) {
        if let Some(member) = self.members.get_mut(&session) {
            member.upto = member.upto.max(upto);
        }
    }

    /// A member is done with these, as far as it holds them. (All at once: an acknowledgement may
    /// be of thousands of ranges, a member may hold thousands of batches.)
    pub fn ack(&mut self, session: SessionId, ranges: &RangeSet) {
        let Some(member) = self.members.get_mut(&session) else { return };
        let Some(last) = ranges.last() else { return };
        let mut settled = Vec::new();
        for &id in &member.held {
            let Some(entry) = self.outstanding.get_mut(&id) else { continue };
            if last < entry.lowest {
                continue;
            }
            let indexes = &entry.batch.indexes;
            let acked =
                |&at: &u32| indexes.get(at as usize).is_some_and(|index| ranges.contains(*index));
            let before = entry.open.len();
            entry.open.retain(|at| !acked(at));
            if entry.open.len() == before {
                continue;
            }
            self.lowest.remove(&(entry.lowest, id));
            match entry.find_lowest() {
                Some(lowest) => {
                    entry.lowest = lowest;
                    self.lowest.insert((lowest, id));
                }
                None => settled.push(id),
            }
        }
        for id in settled {
            self.remove(id);
        }
        self.share_lanes();
        self.settle();
    }

    /// The next message to send, if there is one and a member has room for it.
    pub fn dispatch(&mut self) -> Option<Dispatch> {
        let shared = self.lanes.len() == 1;
        let ready = |member: &Member| member.sequence < member.upto;
        let (lane, session) = if shared {
            let lane = self.lanes.first()?;
            lane.pending.front()?;
            let mut ready = self.members.iter().filter(|(_, m)| ready(m)).map(|(&id, _)| id);
            let after = ready.clone().find(|&id| id > self.last_served);
            (0, after.or_else(|| ready.next())?)
        } else {
            self.lanes.iter().enumerate().find_map(|(at, lane)| {
                lane.pending.front()?;
                let owner = lane.owner.filter(|_| lane.heir.is_none())?;
                self.members.get(&owner).is_some_and(ready).then_some((at, owner))
            })?
        };
        let id = self.lanes.get_mut(lane)?.pending.pop_front()?;
        self.lanes.get_mut(lane)?.in_flight.insert(id);
        let member = self.members.get_mut(&session)?;
        member.sequence += 1;
        member.held.insert(id);
        self.last_served = session;
        let sequence = member.sequence;
        let entry = self.outstanding.get_mut(&id)?;
        entry.holder = Some(session);
        if entry.redelivered {
            self.redelivered += entry.open.len() as u64;
        }
        Some(Dispatch { session, batch: id, sequence, redelivered: entry.redelivered })
    }

    /// A batch that was dispatched, and which of its records are still open.
    pub fn batch(&self, id: BatchId) -> Option<(&QueueBatch<P>, &[u32])> {
        self.outstanding.get(&id).map(|entry| (&entry.batch, entry.open.as_slice()))
    }

    /// Every record with index ≤ this is settled.
    pub fn watermark(&self) -> RecordIndex {
        self.watermark
    }

    /// Memory of what is outstanding.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records given out and not acknowledged.
    pub fn n_outstanding(&self) -> u64 {
        let held = self.outstanding.values().filter(|entry| entry.holder.is_some());
        held.map(|entry| entry.open.len() as u64).sum()
    }

    /// Records sent more than once.
    pub fn n_redelivered(&self) -> u64 {
        self.redelivered
    }

    /// Nothing waits for a member.
    pub fn is_drained(&self) -> bool {
        self.lanes.iter().all(|lane| lane.pending.is_empty())
    }

    /// Records that a member holds, and the lanes that it owns.
    pub fn member(&self, session: SessionId) -> Option<(u64, Vec<u16>)> {
        let member = self.members.get(&session)?;
        let open = |id: &BatchId| self.outstanding.get(id).map_or(0, |e| e.open.len() as u64);
        let lanes = (0..).zip(&self.lanes).filter(|(_, lane)| lane.owner == Some(session));
        Some((member.held.iter().map(open).sum(), lanes.map(|(at, _)| at).collect()))
    }

    /// Members, by session.
    pub fn members(&self) -> impl Iterator<Item = SessionId> {
        self.members.keys().copied()
    }

    /// Indexes from `from` on are issued again: what there is of them is given up, since what it
    /// speaks of never happened.
    pub fn rewind(&mut self, from: RecordIndex) {
        self.low = self.low.min(from.prev());
        self.watermark = self.watermark.min(from.prev());
        let ids: Vec<BatchId> = self.outstanding.keys().copied().collect();
        for id in ids {
            let Some(entry) = self.outstanding.get_mut(&id) else { continue };
            let (indexes, before) = (&entry.batch.indexes, entry.lowest);
            entry.open.retain(|&at| indexes.get(at as usize).is_some_and(|index| *index < from));
            match entry.find_lowest() {
                Some(lowest) => entry.lowest = lowest,
                None => self.remove(id),
            }
            self.lowest.remove(&(before, id));
            if let Some(entry) = self.outstanding.get(&id) {
                self.lowest.insert((entry.lowest, id));
            }
        }
        self.share_lanes();
    }

    /// Nothing of that batch is open any more.
    fn remove(&mut self, id: BatchId) {
        let Some(entry) = self.outstanding.remove(&id) else { return };
        self.bytes = self.bytes.saturating_sub(entry.batch.bytes);
        if let Some(member) = entry.holder.and_then(|holder| self.members.get_mut(&holder)) {
            member.held.remove(&id);
        }
        let lane = self.lane_of(entry.batch.lane);
        lane.in_flight.remove(&id);
        lane.pending.retain(|&other| other != id);
    }

    /// Records up to here are gone for good.
    pub fn skip_to(&mut self, upto: RecordIndex) {
        self.advance(upto);
    }

    fn lane_of(&mut self, lane: u16) -> &mut Lane {
        let at = usize::from(lane) % self.lanes.len();
        &mut self.lanes[at]
    }

    /// Watermark: below the lowest open record, and not beyond what the queue was given.
    fn settle(&mut self) {
        let held_back = self.lowest.first().map_or(self.low, |(index, _)| index.prev());
        self.watermark = self.watermark.max(held_back.min(self.low));
    }

    /// Gives every lane an owner, evenly. A lane that its owner holds something of gets an heir,
    /// and rests until that is acknowledged or given back.
    fn share_lanes(&mut self) {
        if self.lanes.len() == 1 {
            return;
        }
        for lane in &mut self.lanes {
            if lane.heir.is_some() && lane.in_flight.is_empty() {
                lane.owner = lane.heir.take();
            }
        }
        let mut owned: BTreeMap<SessionId, usize> =
            self.members.keys().map(|&id| (id, 0)).collect();
        for lane in &self.lanes {
            let to = lane.heir.or(lane.owner);
            if let Some(count) = to.and_then(|owner| owned.get_mut(&owner)) {
                *count += 1;
            }
        }
        for lane in &mut self.lanes {
            let Some((&poorest, &least)) = owned.iter().min_by_key(|&(id, n)| (*n, *id)) else {
                return;
            };
            let holder = lane.heir.or(lane.owner);
            let have = holder.and_then(|holder| owned.get(&holder)).copied();
            if have.is_some_and(|n| n <= least + 1) {
                continue;
            }
            if let Some(count) = holder.and_then(|holder| owned.get_mut(&holder)) {
                *count -= 1;
            }
            if lane.owner.is_none() || lane.in_flight.is_empty() {
                (lane.owner, lane.heir) = (Some(poorest), None);
            } else if lane.owner == Some(poorest) {
                lane.heir = None;
            } else {
                lane.heir = Some(poorest);
            }
            if let Some(count) = owned.get_mut(&poorest) {
                *count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn range(first: RecordIndex, last: RecordIndex) -> RangeSet {
        let mut range = RangeSet::new();
        range.insert(first, last);
        range
    }

    fn ix(index: u64) -> RecordIndex {
        RecordIndex::new(index)
    }

    fn batch(lane: u16, indexes: &[u64]) -> QueueBatch<()> {
        let indexes = indexes.iter().map(|&i| ix(i)).collect();
        QueueBatch { lane, indexes, bytes: 1, payload: () }
    }

    fn indexes_of(queue: &Queue<()>, id: BatchId) -> Vec<u64> {
        let (batch, open) = queue.batch(id).unwrap();
        open.iter().map(|&at| batch.indexes[at as usize].get()).collect()
    }

    #[test]
    fn members_take_turns_and_the_lowest_open_record_holds_the_watermark() {
        let mut queue = Queue::new(1, ix(0));
        queue.join(1);
        queue.join(2);
        queue.credit(1, 10);
        queue.credit(2, 10);
        for at in 0..4 {
            queue.push(batch(0, &[at * 2 + 1, at * 2 + 2]), None);
        }
        queue.advance(ix(8));
        let sent: Vec<_> = std::iter::from_fn(|| queue.dispatch()).map(|d| d.session).collect();
        assert_eq!(sent, [1, 2, 1, 2]);
        queue.ack(2, &range(ix(3), ix(4)));
        assert_eq!(queue.watermark(), ix(0), "1 and 2 are open");
        queue.ack(2, &range(ix(1), ix(2)));
        assert_eq!(queue.watermark(), ix(0), "member 2 does not hold them");
        queue.ack(1, &range(ix(1), ix(1)));
        assert_eq!(queue.watermark(), ix(1));
        queue.ack(1, &range(ix(2), ix(8)));
        assert_eq!(queue.watermark(), ix(6), "7 and 8 are with member 2");
        queue.ack(2, &range(ix(1), ix(8)));
        assert_eq!((queue.watermark(), queue.bytes()), (ix(8), 0));
    }

    #[test]
    fn what_is_issued_again_is_given_up_and_the_rest_stays() {
        let mut queue = Queue::new(2, ix(0));
        queue.join(1);
        queue.credit(1, 10);
        queue.push(batch(0, &[1, 2]), None);
        queue.push(batch(1, &[3, 6]), None);
        queue.push(batch(0, &[5, 7]), None);
        queue.advance(ix(7));
        assert_eq!(queue.dispatch().map(|d| d.batch), Some(1));
        queue.rewind(ix(5));
        queue.push(batch(1, &[4, 5]), Some(ix(5)));
        assert_eq!(indexes_of(&queue, 2), [3]);
        assert_eq!(indexes_of(&queue, 4), [4], "5 is of the history before");
        assert!(queue.batch(3).is_none());
        queue.ack(1, &range(ix(1), ix(9)));
        let ids: Vec<_> = std::iter::from_fn(|| queue.dispatch()).map(|d| d.batch).collect();
        assert_eq!(ids, [2, 4]);
        queue.ack(1, &range(ix(1), ix(9)));
        queue.advance(ix(5));
        assert_eq!((queue.watermark(), queue.bytes()), (ix(5), 0));
    }

    #[test]
    fn a_dead_member_gives_back_what_it_did_not_acknowledge_in_order() {
        let mut queue = Queue::new(1, ix(0));
        queue.join(1);
        queue.credit(1, 2);
        queue.push(batch(0, &[1, 2, 3]), None);
        queue.push(batch(0, &[4]), None);
        queue.push(batch(0, &[5]), None);
        queue.advance(ix(5));
        while queue.dispatch().is_some() {}
        queue.ack(1, &range(ix(2), ix(2)));
        queue.leave(1);
        queue.ack(1, &range(ix(1), ix(5)));
        assert_eq!(queue.watermark(), ix(0), "too late");
        queue.join(2);
        queue.credit(2, 9);
        let again: Vec<_> = std::iter::from_fn(|| queue.dispatch()).collect();
        let what: Vec<_> =
            again.iter().map(|d| (indexes_of(&queue, d.batch), d.redelivered)).collect();
        assert_eq!(what, [(vec![1, 3], true), (vec![4], true), (vec![5], false)]);
    }

    #[test]
    fn a_lane_moves_only_when_its_owner_holds_nothing_of_it() {
        let mut queue = Queue::new(2, ix(0));
        queue.join(1);
        queue.credit(1, 100);
        queue.push(batch(0, &[1]), None);
        queue.push(batch(1, &[2]), None);
        while queue.dispatch().is_some() {}
        queue.join(2);
        queue.credit(2, 100);
        queue.push(batch(0, &[3]), None);
        queue.push(batch(1, &[4]), None);
        // One lane stays with 1 and goes on, the other one rests.
        let first = queue.dispatch().unwrap();
        assert_eq!(first.session, 1);
        assert_eq!(queue.dispatch(), None);
        queue.ack(1, &range(ix(1), ix(2)));
        assert_eq!(queue.dispatch().map(|d| d.session), Some(2));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { lane: u16, n: u64, skip: u64 },
        Join(SessionId),
        Leave(SessionId),
        Credit(SessionId, u64),
        Dispatch,
        AckOne { session: SessionId, nth: usize },
        AckRange { session: SessionId, first: u64, n: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let member = 1u64..5;
        prop_oneof![
            4 => (0u16..4, 1u64..4, 0u64..2)
                .prop_map(|(lane, n, skip)| Step::Push { lane, n, skip }),
            1 => member.clone().prop_map(Step::Join),
            1 => member.clone().prop_map(Step::Leave),
            3 => (member.clone(), 1u64..4).prop_map(|(m, n)| Step::Credit(m, n)),
            6 => Just(Step::Dispatch),
            4 => (member.clone(), 0usize..6)
                .prop_map(|(session, nth)| Step::AckOne { session, nth }),
            2 => (member, 0u64..40, 0u64..6)
                .prop_map(|(session, first, n)| Step::AckRange { session, first, n }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Against a naive model: a set of open indexes, and who holds each.
        #[test]
        fn loses_nothing_and_shares_no_lane(
            lanes in 1u16..4,
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let mut queue = Queue::new(lanes, ix(0));
            let mut next = 1u64;
            let mut open: BTreeMap<u64, u16> = BTreeMap::new();
            let mut holder: HashMap<u64, SessionId> = HashMap::new();
            let mut credit: HashMap<SessionId, u64> = HashMap::new();
            let mut last_of_lane: HashMap<(SessionId, u16), u64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Push { lane, n, skip } => {
                        next += skip;
                        let lane = lane % lanes;
                        let indexes: Vec<u64> = (next..next + n).collect();
                        open.extend(indexes.iter().map(|&i| (i, lane)));
                        next += n;
                        queue.push(batch(lane, &indexes), None);
                        queue.advance(ix(next - 1));
                    }
                    Step::Join(id) => {
                        queue.join(id);
                        credit.entry(id).or_insert(0);
                    }
                    Step::Leave(id) => {
                        queue.leave(id);
                        holder.retain(|_, who| *who != id);
                        credit.remove(&id);
                        last_of_lane.clear(); // order is promised while members stay
                    }
                    Step::Credit(id, n) => {
                        if let Some(room) = credit.get_mut(&id) {
                            *room += n;
                            queue.credit(id, *room);
                        }
                    }
                    Step::Dispatch => {
                        let Some(d) = queue.dispatch() else { continue };
                        prop_assert!(credit.get(&d.session).is_some_and(|&c| d.sequence <= c));
                        let lane = queue.batch(d.batch).unwrap().0.lane;
                        for index in indexes_of(&queue, d.batch) {
                            prop_assert!(open.contains_key(&index), "{index} was settled");
                            prop_assert!(!holder.contains_key(&index), "{index} is held");
                            if lanes > 1 {
                                for (held, who) in &holder {
                                    prop_assert!(open[held] != lane || *who == d.session,
                                        "lane {lane} with {who} and {}", d.session);
                                }
                                let last = last_of_lane.entry((d.session, lane)).or_insert(0);
                                prop_assert!(index > *last, "out of order in lane {lane}");
                                *last = index;
                            }
                        }
                        for index in indexes_of(&queue, d.batch) {
                            holder.insert(index, d.session);
                        }
                    }
                    Step::AckOne { session, nth } => {
                        let mut held: Vec<u64> = holder.iter()
                            .filter(|(_, who)| **who == session).map(|(&i, _)| i).collect();
                        held.sort_unstable();
                        if let Some(&index) = held.get(nth) {
                            queue.ack(session, &range(ix(index), ix(index)));
                            open.remove(&index);
                            holder.remove(&index);
                        }
                    }
                    Step::AckRange { session, first, n } => {
                        queue.ack(session, &range(ix(first), ix(first + n)));
                        for index in first..=first + n {
                            if holder.get(&index) == Some(&session) {
                                open.remove(&index);
                                holder.remove(&index);
                            }
                        }
                    }
                }
                let want = open.first_key_value().map_or(next, |(&i, _)| i) - 1;
                prop_assert_eq!(queue.watermark(), ix(want));
                prop_assert_eq!(queue.n_outstanding(), holder.len() as u64);
            }
            // Whatever happened, a last member gets and settles the rest.
            for id in 1..5 {
                queue.leave(id);
            }
            queue.join(9);
            queue.credit(9, u64::MAX);
            let mut rest = BTreeSet::new();
            while let Some(d) = queue.dispatch() {
                rest.extend(indexes_of(&queue, d.batch));
                queue.ack(9, &range(ix(0), ix(u64::MAX)));
            }
            prop_assert_eq!(rest, open.keys().copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(queue.watermark(), ix(next - 1));
            prop_assert_eq!(queue.bytes(), 0);
        }
    }
}
