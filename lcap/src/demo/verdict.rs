//! Whether every record that was read was delivered and cleared, and the numbers that prove it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use lcap_ffi::record::records;
use lcap_ffi::{MdtName, RecordIndex};
use lcap_wire::control::Status;
use lcapd::source::{MIN_READ_BYTES, ReadOutcome, SourceUri};
use serde_json::{Value, json};

use super::scene::{BROADCAST, QUEUE, Scene};
use super::tally::Count;
use crate::screen::grouped;

#[derive(Debug)]
struct MdtNumbers {
    name: String,
    source: String,
    /// That there are.
    n_records: u64,
    /// That lcapd read.
    read: u64,
    /// That every reader, and one member of the queue, received.
    delivered: u64,
    /// That the log has no longer.
    cleared: u64,
}

#[derive(Debug)]
struct StreamNumbers {
    name: &'static str,
    delivery: &'static str,
    clients: Vec<String>,
    /// Delivered by MDT: to each reader, or to any member.
    delivered: BTreeMap<String, u64>,
    /// What each client counted.
    counts: Vec<Count>,
}

/// The end of the demonstration.
#[derive(Debug)]
pub(super) struct Verdict {
    seconds: f64,
    mdts: Vec<MdtNumbers>,
    streams: Vec<StreamNumbers>,
}

impl Verdict {
    /// From what lcapd says and what the clients counted. `delivered_after` is the time from lcapd's
    /// first answer to the last record's receipt.
    pub(super) fn new(
        scene: &Scene,
        status: &Status,
        counts: &[Count],
        delivered_after: Duration,
    ) -> Self {
        let streams = [(BROADCAST, "broadcast"), (QUEUE, "queue")];
        let streams: Vec<StreamNumbers> = streams
            .into_iter()
            .map(|(name, delivery)| {
                let clients = scene.clients().filter(|(stream, _)| *stream == name);
                let clients: Vec<String> = clients.map(|(_, client)| client).collect();
                let delivered = |mdt: &str| (mdt.to_owned(), scene.delivered(name, mdt, counts));
                let of_stream = counts.iter().filter(|count| clients.contains(&count.client));
                StreamNumbers {
                    name,
                    delivery,
                    delivered: scene.mdt_names().map(delivered).collect(),
                    counts: of_stream.cloned().collect(),
                    clients,
                }
            })
            .collect();
        let mdts = scene.mdts().iter().map(|mdt| {
            let known = status.mdts.iter().find(|known| known.name == mdt.name);
            let delivered = streams.iter().filter_map(|s| s.delivered.get(&mdt.name)).min();
            MdtNumbers {
                name: mdt.name.clone(),
                source: mdt.source.clone(),
                n_records: mdt.n_records,
                read: known.map_or(0, |known| known.records_read),
                delivered: delivered.copied().unwrap_or(0),
                cleared: known.map_or(0, |known| known.cleared_index.min(mdt.n_records)),
            }
        });
        Self { seconds: delivered_after.as_secs_f64(), mdts: mdts.collect(), streams }
    }

    /// Opens each log as the MDT that it plays, now that lcapd is gone, and counts what is left.
    pub(super) fn look_into_logs(&mut self, scene: &Scene) -> Result<()> {
        for mdt in &mut self.mdts {
            let name: MdtName = mdt.name.parse()?;
            let uri: SourceUri = mdt.source.parse()?;
            let mut log =
                uri.upstream(&name, None, &scene.state_dir())?.open(RecordIndex::new(1))?;
            let mut n_left = 0;
            let mut bytes = Vec::with_capacity(MIN_READ_BYTES);
            while let ReadOutcome::Bytes(_) = log.read(&mut bytes)? {
                n_left += records(&bytes).count() as u64;
                bytes.clear();
            }
            mdt.cleared = mdt.n_records.saturating_sub(n_left);
        }
        Ok(())
    }

    /// What is not as it should be.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for mdt in &self.mdts {
            let (name, all) = (&mdt.name, grouped(mdt.n_records));
            for (what, n) in [("read", mdt.read), ("cleared", mdt.cleared)] {
                if n != mdt.n_records {
                    faults.push(format!("{name}: {} of {all} records were {what}", grouped(n)));
                }
            }
        }
        for stream in &self.streams {
            for mdt in &self.mdts {
                let n = stream.delivered.get(&mdt.name).copied().unwrap_or(0);
                if n != mdt.n_records {
                    let (n, all) = (grouped(n), grouped(mdt.n_records));
                    let (stream, mdt) = (stream.name, &mdt.name);
                    faults.push(format!("{mdt}: stream {stream} delivered {n} of {all} records"));
                }
            }
            for count in &stream.counts {
                let who = format!("{}: {} of stream {}", count.mdt, count.client, stream.name);
                if count.repeated > 0 {
                    faults.push(format!("{who} received {} records again", count.repeated));
                }
                if count.out_of_order > 0 {
                    faults.push(format!("{who} received {} out of order", count.out_of_order));
                }
            }
        }
        faults
    }

    /// An error unless all is well.
    pub(super) fn check(&self) -> Result<()> {
        let faults = self.faults();
        if !faults.is_empty() {
            bail!("the demonstration failed\n  {}", faults.join("\n  "));
        }
        Ok(())
    }

    fn sum(&self, of: impl Fn(&MdtNumbers) -> u64) -> u64 {
        self.mdts.iter().map(of).sum()
    }

    /// `lcap demo --json`; docs/operating.md describes it.
    pub(super) fn to_json(&self) -> Value {
        let mdts: BTreeMap<&str, Value> = self
            .mdts
            .iter()
            .map(|mdt| {
                let numbers = json!({
                    "source": mdt.source, "records": mdt.n_records, "read": mdt.read,
                    "delivered": mdt.delivered, "cleared": mdt.cleared,
                });
                (mdt.name.as_str(), numbers)
            })
            .collect();
        let faults = self.faults();
        json!({
            "records_read": self.sum(|mdt| mdt.read),
            "records_delivered": self.sum(|mdt| mdt.delivered),
            "records_cleared": self.sum(|mdt| mdt.cleared),
            "seconds": self.seconds,
            "mdts": mdts,
            "streams": self.streams.iter().map(StreamNumbers::to_json).collect::<BTreeMap<_, _>>(),
            "ok": faults.is_empty(),
            "faults": faults,
        })
    }
}

impl StreamNumbers {
    fn to_json(&self) -> (&'static str, Value) {
        let of_mdt = |mdt: &str| {
            let own = || self.counts.iter().filter(|count| count.mdt == mdt);
            json!({
                "delivered": self.delivered.get(mdt),
                "received": own().map(|count| count.records).sum::<u64>(),
                "repeated": own().map(|count| count.repeated).sum::<u64>(),
                "out_of_order": own().map(|count| count.out_of_order).sum::<u64>(),
            })
        };
        let of_client = |client: &str| {
            let own = self.counts.iter().filter(|count| count.client == client);
            own.map(|count| (count.mdt.clone(), count.records)).collect::<BTreeMap<_, _>>()
        };
        let mdts: BTreeMap<&str, Value> =
            self.delivered.keys().map(|mdt| (mdt.as_str(), of_mdt(mdt))).collect();
        let clients: BTreeMap<&str, _> =
            self.clients.iter().map(|client| (client.as_str(), of_client(client))).collect();
        (self.name, json!({ "delivery": self.delivery, "mdts": mdts, "clients": clients }))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:>12} {:>12} {:>12} {:>12}",
            "MDT", "RECORDS", "READ", "DELIVERED", "CLEARED"
        )?;
        for mdt in &self.mdts {
            let [all, read, delivered, cleared] =
                [mdt.n_records, mdt.read, mdt.delivered, mdt.cleared].map(grouped);
            writeln!(f, "{:<14} {all:>12} {read:>12} {delivered:>12} {cleared:>12}", mdt.name)?;
        }
        writeln!(f, "\n{:<14} {:<14} {:>12} {:>12}", "STREAM", "CLIENT", "RECEIVED", "TWICE")?;
        for stream in &self.streams {
            for client in &stream.clients {
                let own = || stream.counts.iter().filter(|count| count.client == *client);
                let received = grouped(own().map(|count| count.records).sum());
                let repeated = grouped(own().map(|count| count.repeated).sum());
                writeln!(f, "{:<14} {client:<14} {received:>12} {repeated:>12}", stream.name)?;
            }
        }
        if !self.faults().is_empty() {
            return Ok(()); // the error names them
        }
        let total = self.sum(|mdt| mdt.read);
        #[allow(clippy::cast_precision_loss)] // for people
        let rate = total as f64 / self.seconds.max(0.001);
        writeln!(
            f,
            "\nAll {} records were read and delivered in {:.1} s ({rate:.0} per second): each to \
             both\nreaders of `{BROADCAST}` and to one member of `{QUEUE}`, none twice, in order. The \
             MDTs' logs are empty.",
            grouped(total),
            self.seconds,
        )
    }
}
