//! What Redis itself knows of how far a sink is, and how a batch goes there exactly once.
//!
//! Each batch is one MULTI that also writes a token: who wrote, and up to which index. When an
//! answer got lost, the token says whether the batch was carried out. The token is WATCHed from
//! when it was read last, so a batch is carried out only if nobody else has written since: not
//! another lcapd that has taken the MDT over, nor an earlier connection of our own that Redis had
//! not finished with.
#![forbid(unsafe_code)]

use lcap_ffi::RecordIndex;
use redis::Value;

use super::target::{Commands, Link, TargetError, as_list, as_number, as_text};

/// Who wrote last, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// The lcapd.
    pub owner: String,
    /// Since when it has seen the MDT, in milliseconds of Redis's clock: the later one is right.
    pub claim: u64,
    /// Everything up to here of its stream is in Redis.
    pub index: RecordIndex,
    /// The MDT's history that `index` belongs to.
    pub generation: u16,
}

const FIELDS: [&[u8]; 4] = [b"owner", b"claim", b"index", b"generation"];

fn ask(key: &str, commands: &mut Commands) {
    commands.push(&[b"WATCH", key.as_bytes()]);
    let [owner, claim, index, generation] = FIELDS;
    commands.push(&[b"HMGET", key.as_bytes(), owner, claim, index, generation]);
}

fn take(link: &mut Link) -> Result<Option<Token>, TargetError> {
    link.answer()?;
    let answer = link.answer()?;
    let [owner, claim, index, generation] = as_list(&answer).ok_or(TargetError::Answer("HMGET"))?
    else {
        return Err(TargetError::Answer("HMGET"));
    };
    let Some(owner) = as_text(owner) else { return Ok(None) };
    let number = |value: &Value| as_number(value).unwrap_or(0);
    Ok(Some(Token {
        owner: owner.to_owned(),
        claim: number(claim),
        index: RecordIndex::new(number(index)),
        generation: u16::try_from(number(generation)).unwrap_or(0),
    }))
}

/// Reads and watches the token.
///
/// # Errors
/// As [`Link::answer`].
pub fn read(link: &mut Link, key: &str) -> Result<Option<Token>, TargetError> {
    let mut commands = Commands::default();
    ask(key, &mut commands);
    link.send(&commands)?;
    take(link)
}

/// What became of a batch.
#[derive(Debug)]
pub enum Sent {
    /// It was carried out; the answers to its commands, the token's left out.
    Done(Vec<Value>),
    /// Somebody else has written; nothing was carried out. The token is that of now.
    Raced(Option<Token>),
}

/// A batch to be: the commands of a transaction that also writes a token.
#[derive(Debug)]
pub struct Batch {
    commands: Commands,
    /// Commands of the one that is on its way.
    n_sent: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let mut batch = Self { commands: Commands::default(), n_sent: 0 };
        batch.clear();
        batch
    }
}

impl Batch {
    /// Where its commands go.
    pub fn commands(&mut self) -> &mut Commands {
        &mut self.commands
    }

    /// It has no commands yet.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Its size on the wire.
    pub fn n_bytes(&self) -> usize {
        self.commands.n_bytes()
    }

    /// Forgets its commands.
    pub fn clear(&mut self) {
        self.commands.clear();
        self.commands.prefix(&[b"MULTI"]);
    }

    /// Sends it, with the token that it leaves behind; [`Self::finish`] takes the answers.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn send(&mut self, link: &mut Link, key: &str, token: &Token) -> Result<(), TargetError> {
        let commands = &mut self.commands;
        let numbers =
            [token.claim, token.index.get(), token.generation.into()].map(|n| n.to_string());
        let mut set: Vec<&[u8]> = vec![b"HSET", key.as_bytes(), b"owner", token.owner.as_bytes()];
        for (field, number) in FIELDS.iter().skip(1).zip(&numbers) {
            set.extend([field, number.as_bytes()]);
        }
        commands.push(&set);
        commands.push(&[b"EXEC"]);
        self.n_sent = self.commands.len() + 1;
        // The next batch needs the token watched again, and it costs no round trip here.
        ask(key, &mut self.commands);
        let sent = link.send(&self.commands);
        self.clear();
        sent
    }

    /// Waits for the answers to what was sent.
    ///
    /// # Errors
    /// What Redis says, or how the connection broke: then it is not known what became of it.
    pub fn finish(&self, link: &mut Link) -> Result<Sent, TargetError> {
        // MULTI and what was queued; a command that is refused here is refused for good.
        for _ in 0..self.n_sent.saturating_sub(1) {
            link.answer()?;
        }
        let done = link.answer()?;
        let token = take(link)?;
        match done {
            Value::Nil => Ok(Sent::Raced(token)),
            Value::Array(mut answers) => {
                answers.pop();
                for answer in &answers {
                    if let Value::ServerError(error) = answer {
                        return Err(redis::RedisError::from(error.clone()).into());
                    }
                }
                Ok(Sent::Done(answers))
            }
            _ => Err(TargetError::Answer("EXEC")),
        }
    }
}
