//! What a chain that is replaced hands over.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lcap_ffi::{MdtName, RecordIndex};

use super::super::Nanos;
use super::super::output::{ChainOutput, Part};
use super::places::MdtLog;
use crate::batch::Batch;

/// What a replaced chain had not settled, for [`super::Chain::adopt`].
#[derive(Debug, Default)]
pub struct Held {
    /// Records in their original order and form.
    pub batches: Vec<HeldBatch>,
    /// Per MDT: highest index pushed, and low.
    pub(super) marks: Vec<(MdtName, RecordIndex, RecordIndex)>,
}

/// Consecutive records that a replaced chain had not settled.
#[derive(Clone, Debug)]
pub struct HeldBatch {
    /// Their MDT.
    pub mdt: MdtName,
    /// When they came: what holds them from now on is to hold them no longer for it.
    pub since: Nanos,
    /// The records.
    pub batch: Arc<Batch>,
}

impl Held {
    /// Everything of an MDT that is not settled, as it was pushed and in that order.
    pub(super) fn add(&mut self, log: &MdtLog) {
        self.marks.push((log.name.clone(), log.last, log.low));
        let mut run: Option<(Nanos, ChainOutput)> = None;
        for (_, source) in log.sources.iter() {
            let number = source.buffer(log.buffers.next());
            let Some(buffer) = log.buffers.get(number) else { continue };
            let same = run.as_ref().is_some_and(|(since, _)| *since == buffer.since);
            if !same && let Some((since, out)) = run.take() {
                self.add_run(&log.name, since, out);
            }
            let (_, out) = run.get_or_insert_with(|| (buffer.since, ChainOutput::default()));
            out.push(0, number, &buffer.batch, source.nth(), 0);
        }
        if let Some((since, out)) = run {
            self.add_run(&log.name, since, out);
        }
    }

    fn add_run(&mut self, mdt: &MdtName, since: Nanos, mut out: ChainOutput) {
        out.end_run();
        let batches = out.parts.iter().filter_map(|part| match part {
            Part::Whole { batch, .. } => Some(Arc::clone(batch)),
            // Whole records: they were parsed when they came.
            Part::Packed { bytes, .. } => {
                Batch::parse(out.bytes[bytes.clone()].to_vec()).ok().map(Arc::new)
            }
        });
        self.batches.extend(batches.map(|batch| HeldBatch { mdt: mdt.clone(), since, batch }));
    }
}
