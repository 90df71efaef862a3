//! `fifo`: everything passes, in order. The smallest module, and a template to copy.
#![deny(unsafe_code)]

use lcap_policy_sdk::{CStr, Failure, Host, Nanos, NoConfig, Out, Policy, Records, export_policy};

/// Remembers which run of tokens came in, and lets it out.
#[derive(Debug, Default)]
pub struct Fifo {
    first: u64,
    count: u32,
}

impl Policy for Fifo {
    const NAME: &'static CStr = c"fifo";
    const SUMMARY: &'static str = "emits every record unchanged, in order";
    const VERBATIM: bool = true;
    type Config = NoConfig;

    fn create(_: NoConfig, _: &Host) -> Result<Self, Failure> {
        Ok(Self::default())
    }

    fn enqueue(&mut self, records: Records<'_>, _: Nanos) -> Result<(), Failure> {
        if self.count == 0 {
            self.first = records.first_token().unwrap_or(0);
        }
        // Tokens are consecutive, so a first one and a number are all there is to know.
        let n = u32::try_from(records.len()).ok();
        self.count = n
            .and_then(|n| self.count.checked_add(n))
            .ok_or_else(|| Failure::new("more records than a run can count"))?;
        Ok(())
    }

    fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
        out.emit_run(self.first, self.count);
        self.count = 0;
        Ok(None)
    }
}

export_policy!(Fifo);

#[cfg(test)]
mod tests {
    use lcap_policy_sdk::harness::{Decided, Harness};
    use lcap_policy_sdk::{RecordBuilder, RecordType, serde_json::json};

    use super::*;

    #[test]
    fn everything_passes_unchanged_and_in_order() {
        let mut fifo = Harness::of::<Fifo>(json!({})).unwrap();
        let records: Vec<Vec<u8>> = (1..=30)
            .map(|index| RecordBuilder::new(RecordType::CREATE).index(index * 2).name(b"x").build())
            .collect();
        fifo.push_all(0, records[..10].iter().map(Vec::as_slice)).unwrap();
        fifo.push_all(0, records[10..].iter().map(Vec::as_slice)).unwrap();
        let decided = fifo.pull().unwrap();
        let out: Vec<&[u8]> = decided
            .iter()
            .map(|one| match one {
                Decided::Emitted { record, route: 0, .. } => record.as_slice(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(out, records);
        assert_eq!((fifo.held(), fifo.pull()), (0, Ok(Vec::new())));
    }

    #[test]
    fn an_option_is_refused() {
        assert!(Harness::of::<Fifo>(json!({"size": 5})).unwrap_err().contains("size"));
    }
}
