//! What the demonstration is made of: MDTs, streams, roles, and lcapd's configuration.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lcap_ffi::record::records;
use lcap_wire::control::Status;
use tempfile::TempDir;

use super::stage;
use super::tally::Count;

/// Name of the broadcast stream.
pub(super) const BROADCAST: &str = "changelog";
/// Name of the queue stream.
pub(super) const QUEUE: &str = "work";

/// 40,000 records of a real MDT, indexes 1 to 40000: see `tests/fixtures/2.17`.
static CAPTURE: &[u8] = include_bytes!("../../../tests/fixtures/2.17/changelog/work-mdt0.bin.gz");

/// An MDT of the demonstration. Its indexes begin at 1 and have no gaps.
#[derive(Debug)]
pub(super) struct DemoMdt {
    pub(super) name: String,
    /// For lcapd.
    pub(super) source: String,
    /// For people.
    pub(super) what: &'static str,
    /// Records that it has, or will have.
    pub(super) n_records: u64,
}

/// A client process.
#[derive(Debug)]
pub(super) struct Role {
    /// Name of the process; of a reader, its own.
    pub(super) name: String,
    pub(super) stream: &'static str,
    /// Members of the queue that it is; 0: a reader.
    pub(super) members: u32,
    /// It is the C example.
    pub(super) c_example: Option<PathBuf>,
}

/// Everything that is decided before the curtain rises.
#[derive(Debug)]
pub(super) struct Scene {
    dir: TempDir,
    mdts: Vec<DemoMdt>,
    roles: Vec<Role>,
}

impl Scene {
    /// All records are there at once.
    pub(super) fn flat_out(n_records: u64) -> Result<Self> {
        Self::new(n_records, |records| format!("records={records}"), |_| String::new())
    }

    /// Records appear over some seconds.
    pub(super) fn paced(rate: u64, seconds: u64) -> Result<Self> {
        Self::new(
            rate * seconds,
            |records| format!("rate={rate},records={records}"),
            |records| format!("?rate={}", (records / seconds).max(1)),
        )
    }

    fn new(
        n_records: u64,
        sim: impl Fn(u64) -> String,
        replay: impl Fn(u64) -> String,
    ) -> Result<Self> {
        let dir = stage::directory()?;
        let mut capture = Vec::new();
        flate2::read::GzDecoder::new(CAPTURE).read_to_end(&mut capture)?;
        let path = dir.path().join("capture.bin");
        fs::write(&path, &capture).with_context(|| format!("cannot write {}", path.display()))?;
        let n_captured = records(&capture).map_while(Result::ok).count() as u64;
        let mdt = |at: u64, source, what, n_records| DemoMdt {
            name: format!("demo-MDT{at:04x}"),
            source,
            what,
            n_records,
        };
        let options = sim(n_records);
        let mdts = vec![
            mdt(0, format!("sim:{options},seed=1"), "simulated", n_records),
            mdt(1, format!("sim:{options},seed=2"), "simulated", n_records),
            mdt(
                2,
                format!("replay:{}{}", path.display(), replay(n_captured)),
                "recorded on Lustre 2.17",
                n_captured,
            ),
        ];
        let c_example = stage::c_example();
        // Where there is no C example, another of ours takes its place.
        let second = if c_example.is_some() { "c-example" } else { "monitor" };
        let role = |name: &str, stream, members, c_example| Role {
            name: name.to_owned(),
            stream,
            members,
            c_example,
        };
        let roles = vec![
            role("audit", BROADCAST, 0, None),
            role(second, BROADCAST, 0, c_example),
            role("workers", QUEUE, 2, None),
        ];
        let scene = Self { dir, mdts, roles };
        fs::write(scene.config(), scene.config_text())
            .with_context(|| format!("cannot write {}", scene.config().display()))?;
        Ok(scene)
    }

    fn config_text(&self) -> String {
        let dir = self.dir().display();
        let mut text = format!(
            "[server]\n\
             control = \"{}\"\n\
             state_dir = \"{}\"\n\
             memory_limit = \"256MiB\"\n\
             clear_interval = \"200ms\"\n\
             heartbeat = \"2s\"\n",
            self.control(),
            self.state_dir().display()
        );
        for mdt in &self.mdts {
            let (name, source) = (&mdt.name, &mdt.source);
            text += &format!("\n[[mdt]]\nname = \"{name}\"\nsource = \"{source}\"\n");
        }
        for (stream, delivery) in [(BROADCAST, "broadcast"), (QUEUE, "queue")] {
            text += &format!(
                "\n[[stream]]\n\
                 name = \"{stream}\"\n\
                 delivery = \"{delivery}\"\n\
                 publish = \"ipc://{dir}/{stream}\"\n\
                 policies = [ {{ module = \"fifo\" }} ]\n"
            );
        }
        text
    }

    /// Where everything is.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// lcapd's configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.dir().join("lcapd.toml")
    }

    /// lcapd's state, and that of the MDTs.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// lcapd's control endpoint: a socket in our own directory, which nobody else can have.
    pub(super) fn control(&self) -> String {
        format!("ipc://{}/control", self.dir().display())
    }

    pub(super) fn mdts(&self) -> &[DemoMdt] {
        &self.mdts
    }

    pub(super) fn mdt_names(&self) -> impl Iterator<Item = &str> {
        self.mdts.iter().map(|mdt| mdt.name.as_str())
    }

    pub(super) fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Registered readers of the broadcast stream.
    pub(super) fn readers(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().filter(|role| role.members == 0).map(|role| role.name.as_str())
    }

    /// Every client that counts, with its stream: readers, then members.
    pub(super) fn clients(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.roles.iter().flat_map(|role| {
            let one = (role.members == 0).then(|| role.name.clone());
            let members = (1..=role.members).map(|member| format!("member-{member}"));
            one.into_iter().chain(members).map(|name| (role.stream, name))
        })
    }

    /// Records of one MDT that a stream has delivered: to each of its readers, or to any member.
    pub(super) fn delivered(&self, stream: &str, mdt: &str, counts: &[Count]) -> u64 {
        let distinct = |client: &str| {
            let mut of_client = counts.iter().filter(|c| c.client == client && c.mdt == mdt);
            of_client.next().map_or(0, Count::distinct)
        };
        let clients = self.clients().filter(|(of, _)| *of == stream);
        let each = clients.map(|(_, name)| distinct(&name));
        if stream == QUEUE { each.sum() } else { each.min().unwrap_or(0) }
    }

    /// Whether every client has all that it should have.
    pub(super) fn all_delivered(&self, counts: &[Count]) -> bool {
        self.mdts.iter().all(|mdt| {
            [BROADCAST, QUEUE]
                .iter()
                .all(|stream| self.delivered(stream, &mdt.name, counts) >= mdt.n_records)
        })
    }

    /// Whether lcapd says that every log was cleared.
    pub(super) fn all_cleared(&self, status: &Status) -> bool {
        self.mdts.iter().all(|mdt| {
            let mut known = status.mdts.iter().filter(|known| known.name == mdt.name);
            known.any(|known| known.cleared_index >= mdt.n_records)
        })
    }
}
