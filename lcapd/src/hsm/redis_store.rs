//! The queue in Redis instead of `hsm.redb`, for sites that want it off the machine. As durable as that Redis is
//! (`appendonly yes`, `appendfsync always`).
//!
//! Keys are `lcap:hsm:FSNAME:…`: `requests` (a hash, id to JSON), `bad`, `taken` (a set), `meta`, and `life`, which
//! counts who opened it: an older lcapd that still runs can write nothing any more. Everything that has gathered
//! is one transaction.
#![forbid(unsafe_code)]

use redis::Value;
use tracing::error;

use super::queue::Changes;
use super::store::{Loaded, SpoolMarks};
use crate::sink::target::{Commands, Link, Target, TargetError, as_bytes, as_list, as_number};

/// Entries asked for at once.
const PAGE: &[u8] = b"1000";

/// What is wrong with such a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisStoreError {
    /// Redis, or the way to it.
    #[error("redis")]
    Target(#[from] TargetError),
    /// The fence.
    #[error("another lcapd has opened the queue of this file system in Redis")]
    TakenOver,
}

/// The open store.
#[derive(Debug)]
pub struct RedisStore {
    target: Target,
    prefix: String,
    life: u64,
    link: Option<Link>,
}

/// All fields and values of a hash, in no order.
///
/// # Errors
/// What Redis says.
pub(super) fn scan_hash(
    link: &mut Link,
    key: &[u8],
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), TargetError> {
    let mut cursor = b"0".to_vec();
    loop {
        let answer = link.call(&[b"HSCAN", key, &cursor, b"COUNT", PAGE])?;
        let Some([next, entries]) = as_list(&answer) else {
            return Err(TargetError::Answer("HSCAN"));
        };
        for pair in as_list(entries).unwrap_or_default().chunks_exact(2) {
            if let (Some(field), Some(value)) = (as_bytes(&pair[0]), as_bytes(&pair[1])) {
                each(field, value);
            }
        }
        cursor = as_bytes(next).ok_or(TargetError::Answer("HSCAN"))?.to_vec();
        if cursor == b"0" {
            return Ok(());
        }
    }
}

impl RedisStore {
    /// Opens a file system's queue and reads all of it.
    ///
    /// # Errors
    /// What Redis says.
    pub fn open(target: &Target, fsname: &str) -> Result<(Self, Loaded), RedisStoreError> {
        let prefix = format!("lcap:hsm:{fsname}:");
        let mut store = Self { target: target.clone(), prefix, life: 0, link: None };
        let mut link = target.connect()?;
        let life = link.call(&[b"INCR", &store.key("life")])?;
        store.life = as_number(&life).ok_or(TargetError::Answer("INCR"))?;
        let loaded = store.load(&mut link)?;
        store.link = Some(link);
        Ok((store, loaded))
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.prefix).into_bytes()
    }

    fn load(&self, link: &mut Link) -> Result<Loaded, TargetError> {
        let mut loaded = Loaded::default();
        if let Some(meta) = as_bytes(&link.call(&[b"GET", &self.key("meta")])?) {
            loaded.meta = serde_json::from_slice(meta).unwrap_or_default();
        }
        let mut bad: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        scan_hash(link, &self.key("requests"), |field, value| {
            let id = str::from_utf8(field).ok().and_then(|field| field.parse().ok());
            match (id, serde_json::from_slice(value)) {
                (Some(id), Ok(saved)) => loaded.requests.push((id, saved)),
                (_, problem) => {
                    let id = field.escape_ascii().to_string();
                    let problem = problem.err().map(|problem| problem.to_string());
                    error!(id, problem, "a request in Redis cannot be read and is set aside");
                    bad.push((field.to_vec(), value.to_vec()));
                }
            }
        })?;
        // A scan may tell of one twice.
        loaded.requests.sort_unstable_by_key(|(id, _)| *id);
        loaded.requests.dedup_by_key(|(id, _)| *id);
        for (field, value) in &bad {
            link.call(&[b"HSET", &self.key("bad"), field, value])?;
            link.call(&[b"HDEL", &self.key("requests"), field])?;
        }
        scan_hash(link, &self.key("bad"), |field, _| {
            let id: Option<u64> = str::from_utf8(field).ok().and_then(|field| field.parse().ok());
            loaded.meta.next_id = loaded.meta.next_id.max(id.map_or(0, |id| id + 1));
            loaded.n_bad += 1;
        })?;
        let taken = link.call(&[b"SMEMBERS", &self.key("taken")])?;
        let names = as_list(&taken).unwrap_or_default().iter().filter_map(as_bytes);
        loaded.taken = names.filter_map(|name| str::from_utf8(name).ok()?.parse().ok()).collect();
        Ok(loaded)
    }

    /// Writes all of it or nothing; returns when Redis has it.
    ///
    /// # Errors
    /// If Redis cannot be reached or refuses, or another lcapd has opened the queue; it may be tried again.
    pub fn commit(
        &mut self,
        changes: Option<&Changes>,
        marks: &SpoolMarks,
    ) -> Result<(), RedisStoreError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.target.connect()?,
        };
        // What is watched must be as it was until the transaction begins.
        link.call(&[b"WATCH", &self.key("life")])?;
        let life = link.call(&[b"GET", &self.key("life")])?;
        if as_number(&life) != Some(self.life) {
            return Err(RedisStoreError::TakenOver);
        }
        let commands = self.commands(changes, marks);
        link.send(&commands)?;
        let mut last = Value::Nil;
        for _ in 0..commands.len() {
            last = link.answer()?;
        }
        match as_list(&last) {
            Some(results) => {
                if let Some(Value::ServerError(error)) =
                    results.iter().find(|result| matches!(result, Value::ServerError(_)))
                {
                    let error = redis::RedisError::from(error.clone());
                    return Err(TargetError::Redis(error).into());
                }
            }
            None => return Err(RedisStoreError::TakenOver),
        }
        self.link = Some(link);
        Ok(())
    }

    fn commands(&self, changes: Option<&Changes>, marks: &SpoolMarks) -> Commands {
        let mut commands = Commands::default();
        commands.push(&[b"MULTI"]);
        let taken = self.key("taken");
        for id in &marks.taken {
            commands.push(&[b"SADD", &taken, id.to_string().as_bytes()]);
        }
        for id in &marks.gone {
            commands.push(&[b"SREM", &taken, id.to_string().as_bytes()]);
        }
        if let Some(changes) = changes {
            let key = self.key("requests");
            for (id, saved) in &changes.requests {
                let id = id.to_string();
                match saved {
                    // Plain structs: their JSON cannot fail.
                    Some(saved) => {
                        let json = serde_json::to_vec(saved).unwrap_or_default();
                        commands.push(&[b"HSET", &key, id.as_bytes(), &json]);
                    }
                    None => commands.push(&[b"HDEL", &key, id.as_bytes()]),
                }
            }
            let meta = serde_json::to_vec(&changes.meta).unwrap_or_default();
            commands.push(&[b"SET", &self.key("meta"), &meta]);
        }
        commands.push(&[b"EXEC"]);
        commands
    }
}
