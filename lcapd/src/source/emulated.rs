//! What `replay:` and `sim:` need to behave as an MDT does: they remember what each changelog user
//! has cleared and when their clock started, in a small file that survives a restart.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lcap_ffi::{MdtName, RecordIndex};
use serde::{Deserialize, Serialize};

use super::{ClearError, SourceError};

/// The user that `replay:` and `sim:` clear for, whatever name the configuration gives it.
pub const ONLY_USER: u32 = 1;

/// Records per second, exact to a thousandth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_1000_seconds: u64,
}

/// The text is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected records per second, at least 0.001 and at most 1000000000")]
pub struct BadRate;

impl std::str::FromStr for Rate {
    type Err = BadRate;

    fn from_str(s: &str) -> Result<Self, BadRate> {
        let (whole, part) = s.split_once('.').unwrap_or((s, "0"));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 3 {
            return Err(BadRate);
        }
        let whole: u64 = whole.parse().map_err(|_| BadRate)?;
        let part: u64 = format!("{part:0<3}").parse().map_err(|_| BadRate)?;
        match whole.checked_mul(1000).and_then(|w| w.checked_add(part)) {
            Some(n @ 1..=1_000_000_000_000) => Ok(Self { per_1000_seconds: n }),
            _ => Err(BadRate),
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, part) = (self.per_1000_seconds / 1000, self.per_1000_seconds % 1000);
        if part == 0 {
            return whole.fmt(f);
        }
        f.write_str(format!("{whole}.{part:03}").trim_end_matches('0'))
    }
}

impl Rate {
    /// How long after the start the record with that ordinal (from 0) comes to exist; at most
    /// 584 years.
    pub fn due(self, ordinal: u64) -> Duration {
        let per = u128::from(self.per_1000_seconds);
        nanos((u128::from(ordinal) * 1_000_000_000_000).div_ceil(per))
    }

    /// How many records exist so long after the start.
    pub fn n_records(self, elapsed: Duration) -> u64 {
        let n = elapsed.as_nanos() * u128::from(self.per_1000_seconds) / 1_000_000_000_000 + 1;
        u64::try_from(n).unwrap_or(u64::MAX)
    }
}

fn nanos(n: u128) -> Duration {
    Duration::from_nanos(u64::try_from(n).unwrap_or(u64::MAX))
}

/// What is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Which log this is about; another log begins anew.
    source: String,
    /// Nanoseconds since 1970.
    started_ns: u64,
    /// Up to where each changelog user has cleared.
    users: BTreeMap<u32, u64>,
}

/// The memory of one emulated MDT.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    state: Mutex<State>,
    /// The clock ran for so long at `opened_at`.
    ran_before: Duration,
    opened_at: Instant,
}

impl Memory {
    /// Recalls what `state_dir` holds about this MDT, or begins with nothing cleared and a clock
    /// that starts now. `source` says which log it is: a file about another one is left behind.
    ///
    /// # Errors
    /// If the file cannot be read or written, or holds something else.
    pub fn open(
        state_dir: &Path,
        mdt: &MdtName,
        source: &str,
        users: &[u32],
    ) -> Result<Self, SourceError> {
        let path = state_dir.join(format!("emulated-{mdt}.json"));
        let known = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice::<State>(&bytes).map_err(|e| {
                SourceError::Malformed { what: path.display().to_string(), problem: e.to_string() }
            })?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error("read", &path, e)),
        };
        // Both at one moment: a log whose clock starts later than its records say has old records.
        let (now_ns, opened_at) = (unix_ns(SystemTime::now()), Instant::now());
        let state = known.filter(|state| state.source == source).unwrap_or_else(|| State {
            source: source.to_owned(),
            started_ns: now_ns,
            users: users.iter().map(|&id| (id, 0)).collect(),
        });
        fs::create_dir_all(state_dir).map_err(|e| io_error("create", state_dir, e))?;
        write_atomically(&path, &state).map_err(|e| io_error("write", &path, e))?;
        Ok(Self {
            path,
            // A wall clock that went back must not stop ours.
            ran_before: Duration::from_nanos(now_ns.saturating_sub(state.started_ns)),
            state: Mutex::new(state),
            opened_at,
        })
    }

    /// When the log began, in nanoseconds since 1970.
    pub fn started_ns(&self) -> u64 {
        self.lock().started_ns
    }

    /// How long the log's clock has run.
    pub fn elapsed(&self) -> Duration {
        self.ran_before + self.opened_at.elapsed()
    }

    /// The moment at which the log's clock will have run so long; now if that has passed.
    pub fn moment(&self, elapsed: Duration) -> Instant {
        let wait = elapsed.saturating_sub(self.ran_before);
        // A moment too far for the clock is as good as any that is days away.
        self.opened_at
            .checked_add(wait)
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 20))
    }

    /// Every record up to this one is gone: all users have cleared it.
    pub fn purged(&self) -> RecordIndex {
        RecordIndex::new(self.lock().users.values().copied().min().unwrap_or(0))
    }

    /// Up to where that user has cleared; `None` if there is none.
    pub fn cleared(&self, user: u32) -> Option<RecordIndex> {
        self.lock().users.get(&user).copied().map(RecordIndex::new)
    }

    /// Clears up to `upto` for a user, as an MDT whose newest record is `newest`: beyond it is out
    /// of range, lower than before is answered as an unknown user is, the same again is welcome.
    ///
    /// # Errors
    /// [`ClearError`]; nothing was cleared then.
    pub fn clear(
        &self,
        user: u32,
        upto: RecordIndex,
        newest: RecordIndex,
    ) -> Result<(), ClearError> {
        let mut state = self.lock();
        let no_user = ClearError::NoUser { user: format!("cl{user}") };
        let Some(&before) = state.users.get(&user) else { return Err(no_user) };
        if upto > newest {
            return Err(ClearError::OutOfRange(upto));
        }
        if upto.get() < before {
            return Err(no_user);
        }
        if upto.get() == before {
            return Ok(());
        }
        let mut next = state.clone();
        next.users.insert(user, upto.get());
        write_atomically(&self.path, &next).map_err(|source| ClearError::Retry {
            what: format!("write {}", self.path.display()),
            source,
        })?;
        *state = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, so a panicking holder leaves it as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nanoseconds since 1970; zero before.
pub(crate) fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io { action, what: path.display().to_string(), source }
}

/// A crash leaves the old file or the new one.
fn write_atomically(path: &Path, state: &State) -> io::Result<()> {
    let temp = path.with_extension("json.new");
    let mut file = File::create(&temp)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mdt() -> MdtName {
        "lustre-MDT0000".parse().unwrap()
    }

    fn ix(n: u64) -> RecordIndex {
        RecordIndex::new(n)
    }

    #[test]
    fn clears_are_answered_as_an_mdt_does() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), &mdt(), "sim:", &[1, 2]).unwrap();
        let answer = |user, upto| match memory.clear(user, ix(upto), ix(100)) {
            Ok(()) => "accepted",
            Err(ClearError::NoUser { .. }) => "no user",
            Err(ClearError::OutOfRange(_)) => "out of range",
            Err(ClearError::Retry { .. }) => "retry",
        };
        for (what, user, upto, want, purged) in [
            ("the other user holds it", 1, 10, "accepted", 0),
            ("the same again", 1, 10, "accepted", 0),
            ("lower than before", 1, 9, "no user", 0),
            ("beyond the newest", 1, 101, "out of range", 0),
            ("a stranger", 3, 20, "no user", 0),
            ("the slowest decides", 2, 7, "accepted", 7),
            ("the newest itself", 2, 100, "accepted", 10),
        ] {
            assert_eq!((answer(user, upto), memory.purged()), (want, ix(purged)), "{what}");
        }
    }

    #[test]
    fn memory_survives_a_restart_and_another_log_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let started = {
            let memory = Memory::open(dir.path(), &mdt(), "sim:seed=1", &[1]).unwrap();
            memory.clear(1, ix(5), ix(9)).unwrap();
            memory.started_ns()
        };
        let again = Memory::open(dir.path(), &mdt(), "sim:seed=1", &[1]).unwrap();
        assert_eq!((again.purged(), again.started_ns()), (ix(5), started));
        let other = Memory::open(dir.path(), &mdt(), "sim:seed=2", &[1]).unwrap();
        assert_eq!(other.purged(), ix(0));
    }

    #[test]
    fn a_damaged_state_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("emulated-lustre-MDT0000.json");
        fs::write(&path, b"{\"source\":").unwrap();
        let err = Memory::open(dir.path(), &mdt(), "sim:", &[1]).unwrap_err();
        assert!(matches!(err, SourceError::Malformed { .. }), "{err}");
        assert_eq!(fs::read(&path).unwrap(), b"{\"source\":");
    }

    #[test]
    fn rates_are_exact() {
        for (text, ordinal, due_ms) in [("1000", 5, 5), ("0.5", 3, 6000), ("2.25", 9, 4000)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.due(ordinal), Duration::from_millis(due_ms), "{text}");
        }
        for bad in ["", "0", "-1", "1e3", "1.2345", ".", "1.", "x", "1000000001"] {
            assert_eq!(bad.parse::<Rate>(), Err(BadRate), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_record_exists_from_its_moment_on(per in 1_u64..5_000_000, ordinal in 0_u64..1 << 23) {
            let rate = Rate { per_1000_seconds: per };
            let due = rate.due(ordinal);
            proptest::prop_assert!(rate.n_records(due) > ordinal);
            if ordinal > 0 && due > rate.due(ordinal - 1) {
                let before = due - Duration::from_nanos(1);
                proptest::prop_assert!(rate.n_records(before) <= ordinal);
            }
        }
    }
}
