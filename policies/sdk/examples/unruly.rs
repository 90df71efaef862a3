//! A module that panics where it is told to: what becomes of it is part of lcapd's tests.
//!
//! ```toml
//! policies = [ { module = "…/libunruly.so", panic = "dequeue" } ]
//! ```

use lcap_policy_sdk::serde::Deserialize;
use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, OptionKind, Out, Policy, PolicyOption, Records, export_policy,
};

struct Unruly {
    panic: String,
    held: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(crate = "lcap_policy_sdk::serde")]
struct Config {
    panic: String,
}

impl Unruly {
    fn at(&self, place: &str) {
        assert_ne!(self.panic, place, "no more");
    }
}

impl Policy for Unruly {
    const NAME: &'static CStr = c"unruly";
    const SUMMARY: &'static str = "panics on demand";
    type Config = Config;

    fn options() -> Vec<PolicyOption> {
        vec![PolicyOption::new("panic", OptionKind::Text, "create, enqueue or dequeue").required()]
    }

    fn create(config: Config, _: &Host) -> Result<Self, Failure> {
        let this = Self { panic: config.panic, held: Vec::new() };
        this.at("create");
        Ok(this)
    }

    fn enqueue(&mut self, records: Records<'_>, _: Nanos) -> Result<(), Failure> {
        self.held.extend(records.map(|item| item.token));
        self.at("enqueue");
        Ok(())
    }

    fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
        for token in self.held.drain(..) {
            out.emit(token);
        }
        self.at("dequeue");
        Ok(None)
    }
}

export_policy!(Unruly);
