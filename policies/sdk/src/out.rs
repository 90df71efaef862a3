//! Decisions on their way to the host.
#![forbid(unsafe_code)]

use lcap_ffi::policy::{DROP, EMIT, PolicyOut};

/// Takes a module's decisions, as many as it likes; the host gets them in portions.
///
/// Consecutive tokens with the same fate join into runs, so deciding record by record costs little.
#[derive(Debug, Default)]
pub struct Out {
    entries: Vec<Entry>,
    /// Token lists and records of entries, back to back. Not changed until all entries are taken,
    /// because the host is given pointers into them.
    tokens: Vec<u64>,
    bytes: Vec<u8>,
    /// Entries that the host has already.
    n_taken: usize,
}

#[derive(Debug)]
struct Entry {
    verdict: u32,
    count: u32,
    token: u64,
    route: u64,
    /// Where its tokens and its record begin, and the record's size.
    made: Option<(usize, usize, u32)>,
}

impl Out {
    /// Emits a record unchanged.
    #[inline]
    pub fn emit(&mut self, token: u64) {
        self.run(EMIT, token, 1, 0);
    }

    /// Emits records with consecutive tokens, unchanged.
    #[inline]
    pub fn emit_run(&mut self, first: u64, count: u32) {
        self.run(EMIT, first, count, 0);
    }

    /// Emits a record unchanged, with a key for the lanes of a queue: records with equal keys go to
    /// one member, in order. Zero is no key.
    #[inline]
    pub fn emit_routed(&mut self, token: u64, route: u64) {
        self.run(EMIT, token, 1, route);
    }

    /// Drops a record: it settles as if it had been acknowledged.
    #[inline]
    pub fn drop(&mut self, token: u64) {
        self.run(DROP, token, 1, 0);
    }

    /// Drops records with consecutive tokens.
    #[inline]
    pub fn drop_run(&mut self, first: u64, count: u32) {
        self.run(DROP, first, count, 0);
    }

    /// Emits one packed record in place of several (or of one): all of one MDT; its index must be the
    /// lowest of theirs. [`crate::RecordBuilder`] makes such records.
    pub fn emit_as(&mut self, tokens: &[u64], record: &[u8], route: u64) {
        let made =
            (self.tokens.len(), self.bytes.len(), u32::try_from(record.len()).unwrap_or(u32::MAX));
        self.tokens.extend_from_slice(tokens);
        self.bytes.extend_from_slice(record);
        self.entries.push(Entry {
            verdict: EMIT,
            count: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
            token: 0,
            route,
            made: Some(made),
        });
    }

    #[inline]
    fn run(&mut self, verdict: u32, token: u64, count: u32, route: u64) {
        if count == 0 {
            return;
        }
        if let Some(last) = self.entries.last_mut()
            && (last.verdict, last.route) == (verdict, route)
            && last.made.is_none()
            && last.token.checked_add(last.count.into()) == Some(token)
            && let Some(sum) = last.count.checked_add(count)
        {
            last.count = sum;
            return;
        }
        self.entries.push(Entry { verdict, count, token, route, made: None });
    }

    /// The host has everything: room for new decisions.
    pub(crate) fn is_taken(&self) -> bool {
        self.n_taken == self.entries.len()
    }

    /// Forgets what the host has.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.tokens.clear();
        self.bytes.clear();
        self.n_taken = 0;
    }

    /// Gives the host as much as fits. Returns the number of entries.
    pub(crate) fn take(&mut self, room: &mut [PolicyOut]) -> usize {
        let rest = self.entries.get(self.n_taken..).unwrap_or_default();
        let n = rest.len().min(room.len());
        for (entry, place) in rest.iter().zip(room.iter_mut()) {
            *place = PolicyOut {
                verdict: entry.verdict,
                count: entry.count,
                token: entry.token,
                route: entry.route,
                ..PolicyOut::EMPTY
            };
            if let Some((token, byte, size)) = entry.made {
                place.tokens = self.tokens.get(token..).unwrap_or_default().as_ptr();
                place.rec = self.bytes.get(byte..).unwrap_or_default().as_ptr().cast();
                place.rec_size = size;
            }
        }
        self.n_taken += n;
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_one_fate_join_and_portions_lose_nothing() {
        let mut out = Out::default();
        for token in 10..20 {
            out.emit(token);
        }
        out.drop(20);
        out.drop(22);
        out.emit_routed(23, 5);
        out.emit_routed(24, 5);
        out.emit_routed(25, 6);
        out.emit_as(&[30, 28], b"record", 0);
        out.emit(31);
        let mut seen = Vec::new();
        let mut room = [PolicyOut::EMPTY; 3];
        loop {
            let n = out.take(&mut room);
            seen.extend(
                room[..n].iter().map(|o| (o.verdict, o.token, o.count, o.route, o.rec_size)),
            );
            if n < room.len() {
                break;
            }
        }
        let want = [
            (EMIT, 10, 10, 0, 0),
            (DROP, 20, 1, 0, 0),
            (DROP, 22, 1, 0, 0),
            (EMIT, 23, 2, 5, 0),
            (EMIT, 25, 1, 6, 0),
            (EMIT, 0, 2, 0, 6),
            (EMIT, 31, 1, 0, 0),
        ];
        assert_eq!(seen, want);
        assert!(out.is_taken());
    }
}
