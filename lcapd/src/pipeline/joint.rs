//! A stream's policies, and the pipelines that lead through them: one, or one for each MDT of the
//! stream if a module wants to see all of them.
//!
//! Whichever pipeline calls the modules, what comes out for the others is put into their boxes, and
//! they are woken.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lcap_ffi::RecordIndex;
use lcap_wire::{Header, Kind};

use super::{Body, Outgoing};
use crate::batch::Batch;
use crate::policy::{Chain, ChainFigures, ChainOutput, Held, Nanos, Part, PolicyError};
use crate::wake::Waker;

/// A chain and what it has for each of its MDTs.
#[derive(Debug)]
pub struct Joint {
    /// Locked by one thread at a time: that is all that a module asks for.
    inner: Mutex<Inner>,
    figures: Arc<ChainFigures>,
    is_identity: bool,
    /// By MDT: its box is not empty.
    mail: Vec<AtomicBool>,
}

#[derive(Debug)]
struct Inner {
    chain: Chain,
    output: ChainOutput,
    /// By MDT: what came out, without `low` and generation.
    boxes: Vec<VecDeque<Outgoing>>,
    wakers: Vec<Option<Waker>>,
}

/// What there is for one MDT.
#[derive(Debug)]
pub(super) struct Taken {
    /// In order; the last one completes what lies up to `low`.
    pub(super) messages: VecDeque<Outgoing>,
    /// Everything up to here is in them or earlier ones, or was dropped.
    pub(super) low: RecordIndex,
}

impl Joint {
    /// Of a chain for so many MDTs.
    pub fn new(chain: Chain, n_mdts: usize) -> Self {
        let (figures, is_identity) = (chain.figures(), chain.is_identity());
        let boxes = (0..n_mdts).map(|_| VecDeque::new()).collect();
        let output = ChainOutput::default();
        let inner = Inner { chain, output, boxes, wakers: vec![None; n_mdts] };
        let mail = (0..n_mdts).map(|_| AtomicBool::new(false)).collect();
        Self { inner: Mutex::new(inner), figures, is_identity, mail }
    }

    /// No modules: batches may be passed on without the chain.
    pub fn is_identity(&self) -> bool {
        self.is_identity
    }

    /// What the modules do.
    pub fn figures(&self) -> Arc<ChainFigures> {
        Arc::clone(&self.figures)
    }

    /// Who is to be woken when there is something for an MDT that others have brought out.
    pub fn set_waker(&self, mdt: u32, waker: &Waker) {
        if let Some(entry) = self.lock().wakers.get_mut(mdt as usize) {
            *entry = Some(waker.clone());
        }
    }

    /// Runs something on the chain.
    pub(super) fn with<T>(&self, what: impl FnOnce(&mut Chain) -> T) -> T {
        what(&mut self.lock().chain)
    }

    /// Whether others have brought something out for this MDT.
    pub(super) fn has_mail(&self, mdt: u32) -> bool {
        self.mail.get(mdt as usize).is_some_and(|mail| mail.load(Ordering::SeqCst))
    }

    /// What others have brought out for this MDT.
    pub(super) fn collect(&self, mdt: u32) -> Taken {
        self.take(&mut self.lock(), mdt)
    }

    /// Hands a batch to the policies, if there is one, and takes out what is ready.
    ///
    /// # Errors
    /// If a policy fails and the configuration says to stop.
    pub(super) fn run(
        &self,
        mdt: u32,
        batch: Option<&Arc<Batch>>,
        now: Nanos,
        flush: bool,
        read_at: Instant,
    ) -> Result<Taken, PolicyError> {
        let mut inner = self.lock();
        self.pull(&mut inner, mdt, batch, now, flush, read_at)?;
        Ok(self.take(&mut inner, mdt))
    }

    /// What another chain needs to go on for that MDT: what came out already, what is not settled,
    /// and how many records were dropped. Takes out only the first.
    pub(super) fn leave(&self, mdt: u32) -> (Taken, Held, u64) {
        let mut inner = self.lock();
        let taken = self.take(&mut inner, mdt);
        (taken, inner.chain.held_records_of(mdt), inner.chain.dropped_of(mdt))
    }

    /// Goes on for that MDT where another chain stopped, in whose place this one is from now on.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) fn adopt(&self, mdt: u32, held: &Held, now: Nanos) -> Result<Taken, PolicyError> {
        let mut inner = self.lock();
        inner.chain.adopt(held, now)?;
        self.pull(&mut inner, mdt, None, now, false, Instant::now())?;
        Ok(self.take(&mut inner, mdt))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pull(
        &self,
        inner: &mut Inner,
        mdt: u32,
        batch: Option<&Arc<Batch>>,
        now: Nanos,
        flush: bool,
        read_at: Instant,
    ) -> Result<(), PolicyError> {
        inner.chain.run_batch(mdt, batch, now, flush, &mut inner.output)?;
        inner.sort_out(read_at);
        for (other, (mail, waiting)) in self.mail.iter().zip(&inner.boxes).enumerate() {
            if other != mdt as usize && !waiting.is_empty() {
                mail.store(true, Ordering::SeqCst);
                if let Some(Some(waker)) = inner.wakers.get(other) {
                    waker.wake();
                }
            }
        }
        Ok(())
    }

    fn take(&self, inner: &mut Inner, mdt: u32) -> Taken {
        if let Some(mail) = self.mail.get(mdt as usize) {
            mail.store(false, Ordering::SeqCst);
        }
        let messages = inner.boxes.get_mut(mdt as usize).map(std::mem::take).unwrap_or_default();
        Taken { messages, low: inner.chain.low_of(mdt) }
    }
}

impl Inner {
    /// Makes messages of what came out, and puts them into the boxes.
    fn sort_out(&mut self, read_at: Instant) {
        let bytes = Arc::new(std::mem::take(&mut self.output.bytes));
        for part in &self.output.parts {
            let (mdt, message) = match part {
                Part::Whole { mdt, batch } => (*mdt, whole(Arc::clone(batch))),
                Part::Packed { mdt, records, bytes: range } => {
                    let all = range.len() == bytes.len();
                    let body = match bytes.get(range.clone()) {
                        _ if all => Arc::clone(&bytes),
                        part => Arc::new(part.unwrap_or_default().to_vec()),
                    };
                    let records = self.output.records.get(records.clone()).unwrap_or_default();
                    let mut header = Header::for_body(Kind::Records, &body);
                    let indexes = || records.iter().map(|record| record.index);
                    header.first = indexes().min().unwrap_or_default();
                    header.last = indexes().max().unwrap_or_default();
                    header.count = u32::try_from(records.len()).unwrap_or(u32::MAX);
                    let routed = records.iter().any(|record| record.route != 0);
                    let routes = records.iter().filter(|_| routed).map(|r| r.route).collect();
                    (*mdt, Outgoing { header, body: Body::Bytes(body), routes, read_at })
                }
            };
            if let Some(waiting) = self.boxes.get_mut(mdt as usize) {
                waiting.push_back(message);
            }
        }
    }
}

/// A batch as it is, without `low` and generation.
pub(super) fn whole(batch: Arc<Batch>) -> Outgoing {
    let header = Header {
        first: batch.first(),
        last: batch.last(),
        count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
        body_bytes: u32::try_from(batch.bytes().len()).unwrap_or(u32::MAX),
        body_crc: batch.crc(),
        ..Header::for_body(Kind::Records, &[])
    };
    let read_at = batch.read_at();
    Outgoing { header, body: Body::Batch(batch), routes: Vec::new(), read_at }
}
