//! The quick way through a chain that holds nothing.
//!
//! As a rule a module lets a whole batch pass, or drops some of it, and decides at once and in order.
//! Then a batch is no more than ranges of it that are left: no place is kept for each record. As soon as a
//! module does anything else (holds a record, makes one, sets a key for lanes, takes another order,
//! breaks the contract), what has come to it gets its places, and everything goes on the usual way.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::super::output::ChainOutput;
use super::super::{Nanos, PolicyError, Tokens};
use super::places::{Buffer, Slot, Source};
use super::{Chain, Stage};
use crate::batch::Batch;

impl Chain {
    /// [`Self::push_from`] and [`Self::pull`] in one, with the same result: hands in a batch, if there is
    /// one, and collects what is ready.
    ///
    /// # Errors
    /// As these.
    pub fn run_batch(
        &mut self,
        mdt: u32,
        batch: Option<&Arc<Batch>>,
        now: Nanos,
        flush: bool,
        out: &mut ChainOutput,
    ) -> Result<(), PolicyError> {
        let Some(batch) = batch.filter(|batch| !batch.is_empty()) else {
            return self.pull(now, flush, out);
        };
        let is_known = (mdt as usize) < self.places.mdts.len();
        if !is_known || self.held() > 0 || !self.ready.is_empty() {
            self.push_from(mdt, batch, now)?;
            return self.pull(now, flush, out);
        }
        out.clear();
        self.check_stopped()?;
        self.now = self.now.max(now);
        if !self.express(mdt, batch, flush, out) {
            return self.pull(now, flush, out);
        }
        for log in &mut self.places.mdts {
            log.low = log.last;
        }
        self.publish();
        Ok(())
    }

    /// Takes a batch through all modules, while nothing is held. False if that has ended at one of them:
    /// what is left goes on with [`Self::pull`].
    fn express(
        &mut self,
        mdt: u32,
        batch: &Arc<Batch>,
        flush: bool,
        out: &mut ChainOutput,
    ) -> bool {
        let n = batch.len();
        let mut left = std::mem::take(&mut self.ranges);
        left.clear();
        left.push(0..n);
        let mut next = std::mem::take(&mut self.next_ranges);
        let mut passed = true;
        for nth in 0..self.stages.len() {
            if self.stages[nth].fault.is_none() && !left.is_empty() {
                if !self.express_through(nth, mdt, batch, flush, &left, &mut next) {
                    passed = false;
                    break;
                }
                std::mem::swap(&mut left, &mut next);
            }
        }
        let n_left: usize = left.iter().map(Range::len).sum();
        if let Some(log) = self.places.mdt_mut(mdt) {
            log.last = log.last.max(batch.last());
            log.dropped += (n - n_left) as u64;
        }
        if passed {
            for range in &left {
                out.push_range(mdt, batch, range);
            }
        }
        (self.ranges, self.next_ranges) = (left, next);
        passed
    }

    /// Takes what is left of a batch through module `nth`: what is left then is in `after`. False if the
    /// module did not decide on all of it at once and in order; its records have places then.
    fn express_through(
        &mut self,
        nth: usize,
        mdt: u32,
        batch: &Arc<Batch>,
        flush: bool,
        before: &[Range<usize>],
        after: &mut Vec<Range<usize>>,
    ) -> bool {
        let now = self.now;
        let stage = &mut self.stages[nth];
        let n: usize = before.iter().map(Range::len).sum();
        let first = stage.slots.next();
        stage.n_in += n as u64;
        stage.instance.start_records();
        let records = before.iter().cloned().flatten().map(|nth| batch.record(nth));
        for (token, record) in (first..).zip(records) {
            stage.instance.add_record(token, mdt, record);
        }
        if let Err(fault) = stage.instance.enqueue(now) {
            self.make_places(nth, mdt, batch, before);
            self.fail(nth, fault);
            return false;
        }
        let mut wake = u64::MAX;
        let n_decisions = match stage.instance.dequeue(now, flush, &mut wake) {
            Ok((n_decisions, more)) => {
                if !more && stage.decide_ranges(n_decisions, n, before, after) {
                    stage.slots.skip(n as u64);
                    stage.wake_at = None;
                    return true;
                }
                n_decisions
            }
            Err(fault) => {
                self.make_places(nth, mdt, batch, before);
                self.fail(nth, fault);
                return false;
            }
        };
        self.make_places(nth, mdt, batch, before);
        match self.carry_out(nth, n_decisions) {
            Some(fault) => self.fail(nth, fault),
            None => {
                self.stages[nth].after_answer(wake, now);
            }
        }
        false
    }

    /// Gives every record that has come to module `nth` its place, as [`Self::push_from`] does.
    fn make_places(&mut self, nth: usize, mdt: u32, batch: &Arc<Batch>, ranges: &[Range<usize>]) {
        let (stage, now) = (&mut self.stages[nth], self.now);
        let Some(log) = self.places.mdt_mut(mdt) else { return };
        let mut buffer = Buffer::new(Arc::clone(batch), now);
        buffer.n_live = ranges.iter().map(Range::len).sum();
        buffer.live_bytes = ranges.iter().map(|r| batch.start(r.end) - batch.start(r.start)).sum();
        self.held_bytes += buffer.live_bytes;
        self.pinned_bytes += batch.bytes.len();
        let buffer = log.buffers.push(buffer);
        stage.ages.push_back((stage.slots.next(), now));
        for at in ranges.iter().cloned().flatten() {
            let number = log.sources.push(Source::new(buffer, at));
            stage.slots.push(Slot::source(mdt, number));
        }
    }
}

impl Stage {
    /// What the module's last answer leaves of `before`, if it decides on all of these `n` records in
    /// order, and on nothing else.
    fn decide_ranges(
        &mut self,
        n_decisions: usize,
        n: usize,
        before: &[Range<usize>],
        after: &mut Vec<Range<usize>>,
    ) -> bool {
        after.clear();
        let mut ranges = before.iter().cloned();
        let mut range = ranges.next().unwrap_or_default();
        let (mut expected, mut n_emitted) = (self.slots.next(), 0);
        for nth in 0..n_decisions {
            let Ok(decision) = self.instance.decision(nth, n) else { return false };
            let Tokens::Run { first, count } = decision.tokens else { return false };
            let is_plain = decision.record.is_none() && decision.route == 0;
            let end = expected.saturating_add(count.into());
            if !is_plain || first != expected || end > self.slots.next() + n as u64 {
                return false;
            }
            expected = end;
            let mut count = count as usize;
            n_emitted += if decision.emit { u64::try_from(count).unwrap_or(0) } else { 0 };
            while count > 0 {
                if range.is_empty() {
                    range = ranges.next().unwrap_or_default();
                }
                let piece = range.start..range.end.min(range.start + count);
                range.start = piece.end;
                count -= piece.len();
                if !decision.emit {
                    continue;
                }
                match after.last_mut() {
                    Some(last) if last.end == piece.start => last.end = piece.end,
                    _ => after.push(piece),
                }
            }
        }
        if expected != self.slots.next() + n as u64 {
            return false;
        }
        self.n_emitted += n_emitted;
        self.n_dropped += n as u64 - n_emitted;
        true
    }
}
