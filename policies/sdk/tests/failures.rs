//! What becomes of a module that panics or fails, seen from the host's side of the C table.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use lcap_policy_sdk::harness::Harness;
use lcap_policy_sdk::serde::Deserialize;
use lcap_policy_sdk::serde_json::json;
use lcap_policy_sdk::{
    CStr, Failure, Host, Nanos, Out, Policy, Reader, RecordBuilder, RecordIndex, RecordType,
    Records,
};

#[derive(Debug)]
struct Unruly(String);

#[derive(Debug, Deserialize)]
#[serde(crate = "lcap_policy_sdk::serde")]
struct Config {
    mode: String,
}

impl Unruly {
    fn at(&self, place: &str) -> Result<(), Failure> {
        if self.0 == format!("panic {place}") {
            panic!("no more at {place}");
        }
        if self.0 == format!("fail {place}") { Err(Failure::new("had enough")) } else { Ok(()) }
    }
}

impl Policy for Unruly {
    const NAME: &'static CStr = c"unruly";
    const SUMMARY: &'static str = "fails on demand";
    type Config = Config;

    fn create(config: Config, host: &Host) -> Result<Self, Failure> {
        assert_eq!((host.n_mdts(), host.mdt_name(1).as_deref()), (2, Some("lustre-MDT0001")));
        assert_eq!(host.mdt_name(2), None);
        let this = Self(config.mode);
        this.at("create").map(|()| this)
    }

    fn enqueue(&mut self, _: Records<'_>, _: Nanos) -> Result<(), Failure> {
        self.at("enqueue")
    }

    fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
        match self.0.as_str() {
            "garbage" => out.emit(7),
            "empty" => out.emit_as(&[], b"", 0),
            _ => {}
        }
        self.at("dequeue").map(|()| None)
    }

    fn clear(&mut self, _: u32, readers: &[Reader<'_>], proposed: RecordIndex) -> RecordIndex {
        self.at("clear").unwrap();
        readers.iter().map(|reader| reader.watermark.prev()).min().unwrap_or(proposed)
    }
}

impl Drop for Unruly {
    fn drop(&mut self) {
        assert!(self.0 != "panic drop", "no more at drop");
    }
}

/// What the host hears.
fn outcome(mode: &str) -> String {
    let run = || -> Result<(), String> {
        let mut module = Harness::of::<Unruly>(json!({"mode": mode}))?;
        let record = RecordBuilder::new(RecordType::CREATE).index(5).build();
        module.push_all(0, [record.as_slice()])?;
        module.pull()?;
        assert_eq!(module.clear(&[("a", 4)], 9)?, 3);
        module.flush().map(|_| ())
    };
    run().unwrap_err()
}

#[test]
fn panics_and_failures_are_errors_with_their_text() {
    for place in ["create", "enqueue", "dequeue", "clear"] {
        let said = outcome(&format!("panic {place}"));
        assert!(said.starts_with("panic: ") && said.contains(place), "{place}: {said}");
    }
    for place in ["create", "enqueue", "dequeue"] {
        assert_eq!(outcome(&format!("fail {place}")), "had enough", "{place}");
    }
    assert_eq!(outcome("panic drop"), "1 records are still held after a flush");
    assert_eq!(outcome("garbage"), "token 7 is not held");
    assert!(outcome("empty").contains("a decision on 0 tokens"));
    assert!(Harness::of::<Unruly>(json!({})).unwrap_err().contains("mode"));
}
