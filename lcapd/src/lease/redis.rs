//! The lease as a hash in Redis: `holder` is what the files say, `token` is whose it is, `term` counts.
//!
//! Redis may lose what it was told (a restart without a file, a replica that takes over). So nothing here relies on
//! what is there but on one thing: who works goes by the time of its last renewal, and who takes over
//! waits for a lease before it begins. Only a holder that is seen to be gone over a connection which has been up for a
//! lease is not waited for: whatever was lost before that has run out.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Holder, Place, RenewError, Seen, now};
use crate::sink::target::{Link, Target, TargetError, Value, as_bytes, as_list, as_number};

const TAKE: &[u8] = b"if (redis.call('HGET', KEYS[1], 'holder') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'token', ARGV[3])
return redis.call('HINCRBY', KEYS[1], 'term', 1)";
const RENEW: &[u8] = b"if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'holder', ARGV[2])
return 1";

/// A key in Redis.
#[derive(Debug)]
pub struct InRedis {
    target: Target,
    key: String,
    token: String,
    length: Duration,
    /// And since when it is up.
    link: Mutex<Option<(Link, Duration)>>,
}

fn trouble(error: &TargetError) -> io::Error {
    io::Error::other(format!("redis: {error}"))
}

impl InRedis {
    /// Under `lcap:lease:` and the names of the MDTs, so that those who take turns need nothing but the same
    /// configuration, and others do not meet them.
    pub fn new(target: Target, mdts: &[&str], length: Duration) -> Self {
        let mut mdts = mdts.to_vec();
        mdts.sort_unstable();
        let key = format!("lcap:lease:{}", mdts.join(","));
        let own = Holder::own();
        let token = format!("{} {} {}", own.space, own.pid, now().as_nanos());
        Self { target, key, token, length, link: Mutex::new(None) }
    }

    /// A connection that failed is not used again.
    fn call(&self, args: &[&[u8]]) -> io::Result<(Value, Duration)> {
        let mut kept = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut link, since) = match kept.take() {
            Some(link) => link,
            None => (self.target.connect().map_err(|error| trouble(&error))?, now()),
        };
        let answer = link.call(args).map_err(|error| trouble(&error))?;
        *kept = Some((link, since));
        Ok((answer, since))
    }

    fn run(&self, script: &[u8], args: &[&[u8]]) -> io::Result<u64> {
        let mut call: Vec<&[u8]> = vec![b"EVAL", script, b"1", self.key.as_bytes()];
        call.extend_from_slice(args);
        let (answer, _) = self.call(&call)?;
        as_number(&answer).ok_or_else(|| trouble(&TargetError::Answer("EVAL")))
    }
}

impl Place for InRedis {
    fn look(&self) -> io::Result<Seen> {
        let (answer, since) = self.call(&[b"HMGET", self.key.as_bytes(), b"holder", b"term"])?;
        let Some([holder, term]) = as_list(&answer) else {
            return Err(trouble(&TargetError::Answer("HMGET")));
        };
        Ok(Seen {
            term: as_number(term).unwrap_or(0),
            content: as_bytes(holder).unwrap_or_default().to_vec(),
            free: as_bytes(holder).is_none(),
            certain: now() >= since + self.length,
        })
    }

    fn take(&self, seen: &Seen, own: &Holder) -> io::Result<Option<u64>> {
        let own = serde_json::to_vec(own)?;
        let term = self.run(TAKE, &[&seen.content, &own, self.token.as_bytes()])?;
        Ok(Some(term).filter(|&term| term > 0))
    }

    fn renew(&self, own: &Holder) -> Result<(), RenewError> {
        let own = serde_json::to_vec(own).map_err(io::Error::from)?;
        match self.run(RENEW, &[self.token.as_bytes(), &own])? {
            0 => Err(RenewError::Taken),
            _ => Ok(()),
        }
    }

    fn may_come_back(&self) -> bool {
        true
    }
}
