use lcap_policy_sdk::{CStr, Failure, Host, Nanos, NoConfig, Out, Policy, Records, export_policy};

/// Emits records of names that end in .h5, and drops the others.
#[derive(Default)]
struct H5Only {
    decided: Vec<(u64, bool)>,
}

impl Policy for H5Only {
    const NAME: &'static CStr = c"h5only";
    const SUMMARY: &'static str = "emits records of names that end in .h5";
    type Config = NoConfig;

    fn create(_: NoConfig, _: &Host) -> Result<Self, Failure> {
        Ok(Self::default())
    }

    fn enqueue(&mut self, records: Records<'_>, _: Nanos) -> Result<(), Failure> {
        for item in records {
            self.decided.push((item.token, item.record()?.name().ends_with(b".h5")));
        }
        Ok(())
    }

    fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
        for (token, wanted) in self.decided.drain(..) {
            if wanted { out.emit(token) } else { out.drop(token) }
        }
        Ok(None)
    }
}

export_policy!(H5Only);
