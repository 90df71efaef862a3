//! Events that were noticed before a stream became ours.
//!
//! An MDT that was here, went to another server and came back has events here that were never
//! written: Redis was away, or we were killed. The other server's lcapd has told most of it since, and
//! what followed. So these are told only if the stream shows nothing of them; the comparison with the
//! MDT that comes next does the rest.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use lcap_ffi::hsm_action::{RecordTime, Slot};

use super::schema::Digest;

/// What there is to know of them.
#[derive(Debug, Default)]
pub(super) struct OldNews {
    /// The stream is ours since then, in milliseconds of Redis's clock.
    claim_ms: u64,
    /// Keys that the stream shows as purged.
    purged: HashSet<Digest>,
    /// Actions of which we have told old news: what follows of them is ours to tell, too.
    told: HashSet<(Slot, Digest)>,
}

impl OldNews {
    /// The stream is ours since then, or still.
    pub(super) fn claim(&mut self, claim_ms: u64) {
        if self.claim_ms != claim_ms {
            (self.claim_ms, self.told) = (claim_ms, HashSet::new());
        }
    }

    /// Notes what the stream says of a key last.
    pub(super) fn note(&mut self, key: Digest, is_purged: bool) {
        if is_purged {
            self.purged.insert(key);
        } else {
            self.purged.remove(&key);
        }
    }

    /// Whether an event of that time is one of them; Redis's clock is ahead of ours by so much.
    pub(super) fn has(&self, time: RecordTime, ahead_ms: i64) -> bool {
        let ms = time.seconds() * 1000 + u64::from(time.nanoseconds() / 1_000_000);
        ms.saturating_add_signed(ahead_ms) < self.claim_ms
    }

    /// Whether one of them is to be told; `is_shown`: the stream shows an action in its slot.
    pub(super) fn is_news(&mut self, slot: Slot, key: Digest, is_shown: bool) -> bool {
        let is_known = is_shown || self.purged.contains(&key);
        if !is_known {
            self.told.insert((slot, key));
        }
        self.told.contains(&(slot, key))
    }

    /// The stream says what the MDT has: there is nothing left to tell.
    pub(super) fn settle(&mut self) {
        (self.purged, self.told) = (HashSet::new(), HashSet::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_has_told_is_told() {
        let mut old = OldNews::default();
        old.claim(5_000_500);
        for (key, is_purged) in [(7, true), (9, true), (9, false)] {
            old.note(key, is_purged);
        }
        assert!(old.has(RecordTime::new(5000, 499_000_000), 0));
        assert!(!old.has(RecordTime::new(5000, 500_000_000), 0));
        assert!(!old.has(RecordTime::new(5000, 499_000_000), 1));
        let slot = |rec| Slot { cat: 1, rec };
        let cases = [
            ("the stream has purged it", 1, 7, false, false),
            ("the stream shows it, or another in its place", 2, 8, true, false),
            ("nobody knows it", 3, 9, false, true),
            ("what follows is shown by ourselves", 3, 9, true, true),
            ("another in its place, which the stream has purged", 3, 7, false, false),
        ];
        for (what, rec, key, is_shown, want) in cases {
            assert_eq!(old.is_news(slot(rec), key, is_shown), want, "{what}");
        }
        // A new connection changes nothing, but for who has had the stream in between.
        old.claim(5_000_500);
        assert!(old.is_news(slot(3), 9, true));
        old.claim(5_000_600);
        assert!(!old.is_news(slot(3), 9, true) && !old.is_news(slot(1), 7, false));
    }
}
