//! Streams to other systems. One thread per sink and MDT takes the stream's messages and writes them
//! to Redis; the stream goes on to its subscribers as if there were no sink.
//!
//! A sink is a registered reader of its stream (`sink:NAME` in `lcap status`): what Redis has not
//! confirmed is not cleared on the MDT, and comes again after a crash. Batches go exactly once
//! (`token.rs`). While Redis is away the source waits: nothing is dropped, and nothing gathers in
//! memory.
//!
//! * [`config`]: `[[sink]]`. * [`target`]: the server. * [`feed`]: the stream's messages, until Redis
//!   has them. * `changelog.rs`: changelog records as fields.
//! * `hsm.rs`: HSM actions as lustre-hsm-action-stream writes them; [`schema`]: the entries,
//!   [`mirror`]: which actions the stream in Redis shows.
#![forbid(unsafe_code)]

mod changelog;
pub mod config;
pub mod feed;
pub mod grid;
mod hsm;
pub mod mirror;
mod old_news;
pub mod schema;
mod stats;
pub mod target;
pub mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use lcap_ffi::{MdtName, RecordIndex};
use redis::Value;
use tracing::{info, warn};

use crate::follower::sleep_on;
use crate::pipeline::{Pipeline, PipelineError, Poll};
use crate::reader::chain;
use crate::server::Outcome;
use crate::source::WaitFor;
use crate::wake::Waker;
use changelog::ChangelogWriter;
use config::{SinkConfig, SinkKind};
use feed::{Feed, Item, Mark};
use grid::Grid;
use hsm::HsmWriter;
pub use hsm::{LiveState, ReadSnapshot, Snapshot};
pub use stats::SinkStats;
use target::{Commands, Link, TargetError};
use token::{Batch, Sent, Token};

/// Entries of one transaction: other clients of Redis wait for as long as it takes.
const BATCH_ENTRIES: usize = 500;
/// Records that are looked at for one transaction, though none of them has to be written.
const BATCH_RECORDS: usize = 10_000;
/// Bytes of one transaction.
const BATCH_BYTES: usize = 256 << 10;
/// Pauses between tries to reach Redis.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A Redis that nothing was sent to is asked whether it still has what it had.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is looked whether the MDT has come.
const UNCLEAR_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a failure of the source or a policy.
const SOURCE_PAUSE: Duration = Duration::from_millis(500);

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shipped {
    /// It is in the batch.
    Entry,
    /// Nothing needs to be written.
    Nothing,
    /// Not before [`Writer::at_head`] has written what it has.
    Later,
}

/// Whose an MDT's stream in Redis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// We are who wrote last.
    Ours,
    /// It is ours from now on: the MDT has been here since this moment.
    Take(u64),
    /// Another lcapd has the MDT: what we have of it is old.
    Theirs,
    /// The MDT is not here: who it belongs to is not known yet.
    Unclear,
}

/// Turns records into commands, and knows what else its stream in Redis needs.
trait Writer: Send {
    /// Whose the stream is, given what the last writer left.
    fn claim(&self, token: Option<&Token>) -> Claim;

    /// Sees to it that consumers find something, whoever writes it.
    fn prepare(&mut self, _link: &mut Link) -> Result<(), TargetError> {
        Ok(())
    }

    /// Looks at what Redis has; nothing is on its way. The stream is ours since `claim_ms`.
    fn open(&mut self, link: &mut Link, claim_ms: u64) -> Result<(), TargetError>;

    /// Adds what is to be written for an item.
    fn write(&mut self, item: Item<'_>, commands: &mut Commands) -> Shipped;

    /// What was written since is on its way.
    fn sent(&mut self) {}

    /// What was on its way is in Redis.
    fn confirmed(&mut self, answers: &[Value]) -> Result<(), TargetError>;

    /// What was written is not in Redis, or it is not known.
    fn abandoned(&mut self);

    /// Everything up to `upto` is in Redis and nothing is on its way: adds what else is to be
    /// written, to be called again until that is nothing.
    fn at_head(
        &mut self,
        link: &mut Link,
        upto: RecordIndex,
        commands: &mut Commands,
    ) -> Result<(), TargetError>;
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Source(#[from] PipelineError),
}

/// One sink on one MDT: the thread's state.
pub struct Sink {
    mdt: MdtName,
    place: (usize, usize),
    config: Arc<SinkConfig>,
    pipeline: Pipeline,
    token_key: String,
    writer: Box<dyn Writer>,
    feed: Feed,
    batch: Batch,
    /// Sent and not confirmed: up to here.
    flying: Option<Mark>,
    /// Redis has everything before this.
    settled: Mark,
    /// The stream's `low` there, and the MDT's history.
    settled_low: (RecordIndex, u16),
    /// What the token says in Redis, or will say.
    token: Token,
    /// Redis had these when the connection was made.
    skip_upto: RecordIndex,
    grid: Grid,
    /// What the source said to wait for.
    wait_for: Option<WaitFor>,
    stats: Arc<SinkStats>,
    outcomes: Sender<Outcome>,
    engine: Waker,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("mdt", &self.mdt).finish_non_exhaustive()
    }
}

/// What a sink is made of besides its configuration.
#[derive(Debug)]
pub struct Parts {
    /// Numbers of the stream and the MDT.
    pub place: (usize, usize),
    /// The MDT.
    pub mdt: MdtName,
    /// From after the sink's watermark on; `waker` was made for it.
    pub pipeline: Pipeline,
    /// Who we are, the same in every life.
    pub owner: String,
    /// What the MDT has, for a sink of HSM actions.
    pub state: Option<Arc<dyn LiveState>>,
    /// Figures for others.
    pub stats: Arc<SinkStats>,
    /// The engine's.
    pub outcomes: Sender<Outcome>,
    /// Wakes the engine.
    pub engine: Waker,
    /// Wakes the sink.
    pub waker: Waker,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
}

impl Sink {
    /// A sink that was not started.
    pub fn new(config: &Arc<SinkConfig>, parts: Parts) -> Self {
        let Parts { place, mdt, pipeline, owner, state, .. } = parts;
        let key = format!("{}:{mdt}", config.prefix);
        let (low, generation) = (pipeline.low(), pipeline.generation());
        let writer: Box<dyn Writer> = match &config.kind {
            SinkKind::Changelog(options) => Box::new(ChangelogWriter::new(key, &mdt, options)),
            SinkKind::Hsm(options) => Box::new(HsmWriter::new(key, &mdt, &owner, options, state)),
        };
        Self {
            token_key: format!("lcap:sink:{}:{mdt}", config.prefix),
            grid: Grid::new(config.burst),
            token: Token { owner, claim: 0, index: low, generation },
            skip_upto: RecordIndex::ZERO,
            wait_for: None,
            config: Arc::clone(config),
            mdt,
            place,
            pipeline,
            writer,
            feed: Feed::default(),
            batch: Batch::default(),
            flying: None,
            settled: Mark::default(),
            settled_low: (low, generation),
            stats: parts.stats,
            outcomes: parts.outcomes,
            engine: parts.engine,
            waker: parts.waker,
            stop: parts.stop,
        }
    }

    /// Works until told to stop.
    pub fn run(&mut self) {
        let mut pause = MIN_PAUSE;
        let mut told = None;
        while !self.stopped() {
            let entries = self.stats.entries.load(Ordering::Relaxed);
            let served = Instant::now();
            let Err(trouble) = self.serve(&mut told) else { return };
            self.stats.connected.store(false, Ordering::Relaxed);
            self.stats.failures.fetch_add(1, Ordering::Relaxed);
            self.give_up_batch();
            let text = chain(&trouble);
            let sink = self.config.reader.as_str();
            if told.as_ref() != Some(&text) {
                warn!(sink, mdt = %self.mdt, target = %self.config.target, error = text,
                    "sink interrupted, its stream waits");
                told = Some(text);
            }
            let progress = self.stats.entries.load(Ordering::Relaxed) > entries;
            pause = match trouble {
                _ if progress || served.elapsed() > MAX_PAUSE => MIN_PAUSE,
                Trouble::Target(_) => (pause * 2).min(MAX_PAUSE),
                Trouble::Source(_) => SOURCE_PAUSE,
            };
            self.pipeline.detach();
            self.rest(Instant::now() + pause);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps until then or the end.
    fn rest(&self, until: Instant) {
        while !self.stopped() && Instant::now() < until {
            self.waker.sleep(None, Some(until), || self.stopped());
        }
    }

    /// The life of one connection. Ends well only when told to stop.
    fn serve(&mut self, told: &mut Option<String>) -> Result<(), Trouble> {
        let mut link = self.config.target.connect()?;
        let mut token = token::read(&mut link, &self.token_key)?;
        self.writer.prepare(&mut link)?;
        let (mut opened, mut looked) = (false, Instant::now());
        while !self.stopped() {
            let claim = self.writer.claim(token.as_ref());
            self.stats.fenced.store(claim == Claim::Theirs, Ordering::Relaxed);
            self.stats.connected.store(true, Ordering::Relaxed);
            let raced = match claim {
                Claim::Unclear => None,
                Claim::Theirs => {
                    self.drop_burst()?;
                    None
                }
                Claim::Ours | Claim::Take(_) if opened => self.burst(&mut link)?,
                Claim::Ours | Claim::Take(_) => self.open(&mut link, token.as_ref(), claim)?,
            };
            opened = matches!(claim, Claim::Ours | Claim::Take(_));
            if told.take().is_some() {
                info!(sink = self.config.reader, mdt = %self.mdt, "sink goes on");
            }
            if let Some(Raced(now)) = raced {
                self.give_up_batch();
                (token, opened) = (now, false);
                continue;
            }
            if claim == Claim::Unclear {
                self.pipeline.detach();
                self.rest(Instant::now() + UNCLEAR_PAUSE);
            } else {
                self.pause();
            }
            if looked.elapsed() >= LOOK_INTERVAL {
                looked = Instant::now();
                let now = token::read(&mut link, &self.token_key)?;
                opened &= now.as_ref() == Some(&self.token);
                token = now;
            } else if opened {
                token = Some(self.token.clone());
            }
        }
        Ok(())
    }

    fn give_up_batch(&mut self) {
        self.writer.abandoned();
        self.batch.clear();
        self.flying = None;
        self.feed.rewind(self.settled);
    }

    /// Takes the stream in Redis over from whoever wrote last, most often from ourselves.
    fn open(
        &mut self,
        link: &mut Link,
        token: Option<&Token>,
        claim: Claim,
    ) -> Result<Option<Raced>, Trouble> {
        self.token.claim = match claim {
            Claim::Take(since) => since,
            _ => token.map_or(0, |token| token.claim),
        };
        self.writer.open(link, self.token.claim)?;
        // What another lcapd says of its own indexes means nothing here.
        let same = token.filter(|_| claim == Claim::Ours);
        let same = same.filter(|token| token.generation == self.token.generation);
        self.skip_upto = same.map_or(RecordIndex::ZERO, |token| token.index);
        let (settled, generation) = self.settled_low;
        if generation == self.token.generation {
            self.token.index = settled; // what was sent beyond it may not have been carried out
        }
        self.token.index = self.token.index.max(self.skip_upto);
        self.send(link)?;
        match self.finish(link)? {
            None => self.burst(link),
            raced => Ok(raced),
        }
    }

    /// Sends all that there is.
    fn burst(&mut self, link: &mut Link) -> Result<Option<Raced>, Trouble> {
        let until = self.grid.last_moment();
        loop {
            let filled = self.fill()?;
            let is_over = Instant::now() >= until;
            let filled_some = !self.batch.is_empty();
            if let Some(raced) = self.finish(link)? {
                return Ok(Some(raced));
            }
            if filled_some {
                self.send(link)?;
                if !is_over {
                    continue; // while Redis works on it, the next one is made
                }
                if let Some(raced) = self.finish(link)? {
                    return Ok(Some(raced));
                }
            }
            self.settle(self.feed.mark());
            let upto = match (filled, self.feed.peek()) {
                (Filled::Later, Some(Item::Record { index, .. })) => index.prev(),
                _ => self.low(),
            };
            self.writer.at_head(link, upto, self.batch.commands())?;
            if !self.batch.is_empty() {
                self.send(link)?;
            } else if self.stopped() || is_over || filled == Filled::Head {
                return Ok(None);
            }
        }
    }

    /// Fills the batch.
    fn fill(&mut self) -> Result<Filled, Trouble> {
        let mut n_taken = 0;
        while self.batch.commands().len() < BATCH_ENTRIES
            && self.batch.n_bytes() < BATCH_BYTES
            && n_taken < BATCH_RECORDS
        {
            let Some(item) = self.feed.peek() else {
                if self.stopped() || !self.poll()? {
                    return Ok(Filled::Head);
                }
                continue;
            };
            match item {
                Item::Record { index, .. } if index <= self.skip_upto => {}
                item => {
                    if self.writer.write(item, self.batch.commands()) == Shipped::Later {
                        return Ok(Filled::Later);
                    }
                }
            }
            self.take();
            n_taken += 1;
        }
        Ok(Filled::Full)
    }

    /// Takes what the feed shows next.
    fn take(&mut self) {
        if let Some(Item::Gap { generation, first, .. }) = self.feed.peek()
            && generation != self.token.generation
        {
            self.token.generation = generation;
            self.token.index = first.prev();
            self.skip_upto = RecordIndex::ZERO;
        }
        self.feed.take();
    }

    /// Takes what the stream has. `false` if that is nothing now.
    fn poll(&mut self) -> Result<bool, Trouble> {
        self.wait_for = None;
        match self.pipeline.poll()? {
            Poll::Message(message) => self.feed.push(message),
            Poll::Moved => {}
            Poll::Head { .. } => return Ok(false),
            Poll::Wait { on, .. } => {
                self.wait_for = Some(on);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let mark = self.feed.mark();
        self.token.index = self.low();
        self.batch.send(link, &self.token_key, &self.token)?;
        self.writer.sent();
        self.flying = Some(mark);
        Ok(())
    }

    /// Everything up to here was taken, or was in Redis before.
    fn low(&self) -> RecordIndex {
        let taken = self.feed.low_at(self.feed.mark());
        let taken = taken.filter(|&(_, generation)| generation == self.token.generation);
        taken.map_or(self.token.index, |(low, _)| low.max(self.token.index))
    }

    /// Waits until Redis has what is on its way.
    fn finish(&mut self, link: &mut Link) -> Result<Option<Raced>, Trouble> {
        let Some(mark) = self.flying else { return Ok(None) };
        match self.batch.finish(link)? {
            Sent::Done(answers) => {
                self.writer.confirmed(&answers)?;
                self.flying = None;
                let n = u64::try_from(answers.len()).unwrap_or(u64::MAX);
                self.stats.entries.fetch_add(n, Ordering::Relaxed);
                self.stats.batches.fetch_add(1, Ordering::Relaxed);
                self.settle(mark);
                Ok(None)
            }
            Sent::Raced(token) => Ok(Some(Raced(token))),
        }
    }

    /// Redis has everything before the mark: the MDT may forget it.
    fn settle(&mut self, mark: Mark) {
        if mark == self.settled {
            return;
        }
        self.settled = mark;
        if let Some((upto, generation)) = self.feed.low_at(mark) {
            self.settled_low = (upto, generation);
            let (place, sink) = (self.place, Arc::clone(&self.config));
            let _ = self.outcomes.send(Outcome::SinkSettled { place, sink, upto, generation });
            self.engine.wake();
        }
        self.feed.settle(mark);
    }

    /// Another lcapd has the MDT, and writes what there is to write.
    fn drop_burst(&mut self) -> Result<(), Trouble> {
        loop {
            while self.feed.peek().is_some() {
                self.take();
            }
            self.settle(self.feed.mark());
            if self.stopped() || !self.poll()? {
                return Ok(());
            }
        }
    }

    /// Waits for the next burst, or for news if there are no bursts.
    fn pause(&mut self) {
        if let Some(until) = self.grid.next() {
            self.pipeline.detach(); // the reader thread is not to wait for us
            return self.rest(until);
        }
        let look = Instant::now() + LOOK_INTERVAL;
        let until = self.pipeline.wake_at().map_or(look, |at| at.min(look));
        let ready = || self.stopped() || self.pipeline.has_news();
        sleep_on(&self.waker, self.wait_for, Some(until), ready);
    }
}

/// Somebody else has written: the token of now.
#[derive(Debug)]
struct Raced(Option<Token>);

/// Why a batch is not filled any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    /// It is large enough.
    Full,
    /// The stream has nothing more now.
    Head,
    /// Something else has to be written before the next record.
    Later,
}

/// Who this lcapd is for others who write to the same Redis: made up once, kept with its state.
///
/// # Errors
/// If it cannot be read or written.
pub fn owner(state_dir: &std::path::Path) -> std::io::Result<String> {
    use std::hash::{BuildHasher as _, RandomState};
    let path = state_dir.join("sink-owner");
    if let Ok(owner) = std::fs::read_to_string(&path)
        && !owner.trim().is_empty()
    {
        return Ok(owner.trim().to_owned());
    }
    let random = || RandomState::new().hash_one(std::process::id());
    let owner = format!("{:016x}{:016x}", random(), random());
    std::fs::create_dir_all(state_dir)?;
    let part = path.with_extension("part");
    std::fs::write(&part, &owner)?;
    std::fs::File::open(&part)?.sync_all()?;
    std::fs::rename(&part, &path)?;
    Ok(owner)
}
