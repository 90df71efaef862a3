//! A made-up MDT's list of HSM actions.
//!
//! Action `k` is asked for, waits, runs, ends (mostly well), and is purged after a grace delay, as
//! the coordinator does it. New ones come at such a pace that always `n_live` are there. The list is
//! a function of the time alone, so nothing is kept.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::time::Duration;

use lcap_ffi::hsm_action::line::write;
use lcap_ffi::hsm_action::{ActionCode, ActionFields, Slot, StatusCode};
use lcap_ffi::{Fid, MdtName};

/// How long an action waits for a mover, runs, and stays in the list when it is over.
const WAITING: Duration = Duration::from_secs(20);
const RUNNING: Duration = Duration::from_secs(40);
const GRACE: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(120);

/// Records of one log of a catalogue.
const RECORDS_PER_LOG: u64 = 64_767;
/// Logs of a catalogue; then slots are used again.
const LOGS: u64 = 64;

/// The list of one MDT.
#[derive(Clone, Debug)]
pub struct SimActions {
    n_live: u64,
    seed: u64,
    mdt_index: u64,
    /// In each such time, the MDT is elsewhere for the last fifth.
    failover: Option<Duration>,
    began: std::time::SystemTime,
}

impl SimActions {
    /// A list that always has `n_live` actions, begun at that moment.
    pub fn new(
        mdt: &MdtName,
        n_live: u64,
        seed: u64,
        failover: Option<Duration>,
        began: std::time::SystemTime,
    ) -> Self {
        Self { n_live, seed, mdt_index: mdt.mdt_index().into(), failover, began }
    }

    /// The MDT is not elsewhere now.
    pub fn is_here(&self) -> bool {
        self.is_here_at(self.began.elapsed().unwrap_or_default())
    }

    fn is_here_at(&self, elapsed: Duration) -> bool {
        self.failover.is_none_or(|period| {
            let period = period.as_nanos().max(5);
            elapsed.as_nanos() % period < period / 5 * 4
        })
    }

    /// The list as it is now; `None` while the MDT is elsewhere.
    pub fn open(&self) -> Option<SimList> {
        self.at(self.began.elapsed().unwrap_or_default())
    }

    /// The list as it is so long after the beginning.
    pub fn at(&self, elapsed: Duration) -> Option<SimList> {
        if !self.is_here_at(elapsed) {
            return None;
        }
        let gone = u128::from(self.n_live) * elapsed.as_nanos() / LIFE.as_nanos();
        let gone = u64::try_from(gone).unwrap_or(u64::MAX / 2);
        let (sim, elapsed) = (self.clone(), elapsed);
        Some(SimList {
            sim,
            elapsed,
            next: gone + 1,
            last: gone + self.n_live,
            text: Vec::new(),
            given: 0,
        })
    }

    fn line(&self, k: u64, elapsed: Duration, out: &mut Vec<u8>) {
        // `k` is asked for at (k - n_live) · LIFE / n_live.
        let since = u128::from(k) * LIFE.as_nanos() / u128::from(self.n_live.max(1));
        let age = (elapsed + LIFE).as_nanos().saturating_sub(since);
        let chance = mix(self.seed ^ k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let status = if age < WAITING.as_nanos() {
            StatusCode::WAITING
        } else if age < (WAITING + RUNNING).as_nanos() {
            StatusCode::STARTED
        } else {
            match chance % 20 {
                0 => StatusCode::FAILED,
                1 => StatusCode::CANCELED,
                _ => StatusCode::SUCCEED,
            }
        };
        let action = match chance / 20 % 10 {
            0 => ActionCode::REMOVE,
            1 | 2 => ActionCode::RESTORE,
            _ => ActionCode::ARCHIVE,
        };
        let low = |n: u64| u32::try_from(n & 0xffff_ffff).unwrap_or(0);
        let seq = 0x2_0000_0402 + (self.mdt_index << 30) + (k >> 17);
        let fid = Fid { seq, oid: low(k & 0x1_ffff) + 1, ver: 0 };
        let dfid = match action {
            ActionCode::RESTORE => Fid { oid: fid.oid + 0x2_0000, ..fid },
            _ => fid,
        };
        let (data_len, data): (u32, &[u8]) =
            if chance.is_multiple_of(3) { (6, b"tag=m") } else { (0, b"") };
        let fields = ActionFields {
            slot: Slot {
                cat: low(k / RECORDS_PER_LOG % LOGS) + 1,
                rec: low(k % RECORDS_PER_LOG) + 1,
            },
            cookie: 0x6b02_3300 + k,
            compound: 0,
            fid,
            dfid,
            action,
            status,
            archive_id: low(chance / 200 % 2) + 1,
            flags: 0,
            extent_offset: 0,
            extent_length: u64::MAX,
            gid: 0,
            data_len,
            data,
            llog_type: 0x1068_0000,
            llog_len: if data_len == 0 { 136 } else { 144 },
        };
        write(&fields, out);
        out.push(b'\n');
    }
}
const _: () = assert!(LIFE.as_secs() == WAITING.as_secs() + RUNNING.as_secs() + GRACE.as_secs());

fn mix(key: u64) -> u64 {
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

/// A list, read as a file would be. It is as it was when it was opened.
#[derive(Debug)]
pub struct SimList {
    sim: SimActions,
    elapsed: Duration,
    next: u64,
    last: u64,
    text: Vec<u8>,
    given: usize,
}

impl Read for SimList {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.given == self.text.len() {
            self.text.clear();
            self.given = 0;
            while self.next <= self.last && self.text.len() < buf.len() {
                self.sim.line(self.next, self.elapsed, &mut self.text);
                self.next += 1;
            }
        }
        let rest = &self.text[self.given..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lcap_ffi::hsm_action::line::ActionLine;

    use super::*;

    fn sim(n_live: u64, failover: Option<Duration>) -> SimActions {
        let mdt: MdtName = "lustre-MDT0001".parse().unwrap();
        SimActions::new(&mdt, n_live, 7, failover, std::time::SystemTime::UNIX_EPOCH)
    }

    fn lines(sim: &SimActions, seconds: u64) -> Vec<String> {
        let mut text = String::new();
        let mut list = sim.at(Duration::from_secs(seconds)).unwrap();
        list.read_to_string(&mut text).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn there_are_always_as_many_and_each_lives_its_life() {
        let sim = sim(600, None);
        let mut seen: BTreeMap<u64, Vec<StatusCode>> = BTreeMap::new();
        for seconds in 0..400 {
            let lines = lines(&sim, seconds);
            assert_eq!(lines.len(), 600);
            for line in &lines {
                let fields = ActionLine::parse(line.as_bytes()).unwrap().fields;
                let states = seen.entry(fields.cookie).or_default();
                if states.last() != Some(&fields.status) {
                    states.push(fields.status);
                }
            }
        }
        let whole: Vec<_> = seen.values().filter(|s| s[0] == StatusCode::WAITING).collect();
        let over = whole.iter().filter(|states| states.len() == 3).count();
        assert!(over > 1000, "{over}");
        for states in whole.iter().filter(|states| states.len() == 3) {
            assert_eq!(states[1], StatusCode::STARTED);
            assert!(states[2].is_final());
        }
        for status in [StatusCode::SUCCEED, StatusCode::FAILED, StatusCode::CANCELED] {
            assert!(whole.iter().any(|states| states.last() == Some(&status)), "{status}");
        }
    }

    #[test]
    fn it_goes_away_and_comes_back() {
        let sim = sim(10, Some(Duration::from_secs(10)));
        let here = |seconds: u64| sim.at(Duration::from_secs(seconds)).is_some();
        assert_eq!((0..11).map(here).filter(|here| *here).count(), 9);
        assert!(here(7) && !here(8) && !here(9) && here(10));
    }

    #[test]
    fn small_reads_give_the_same() {
        let sim = sim(50, None);
        let mut list = sim.at(Duration::from_secs(33)).unwrap();
        let (mut all, mut buf) = (Vec::new(), [0; 7]);
        loop {
            match list.read(&mut buf).unwrap() {
                0 => break,
                n => all.extend_from_slice(&buf[..n]),
            }
        }
        assert_eq!(String::from_utf8(all).unwrap().lines().count(), 50);
    }
}
