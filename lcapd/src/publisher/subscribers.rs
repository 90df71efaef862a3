//! What each connection has subscribed to, and when that is too much.
//!
//! libzmq keeps every subscription, whatever it is, in a tree with a node of some fifty bytes for each
//! byte of a topic, and has no limit. So what comes in is counted here by connection, and one
//! that goes beyond what a consumer can have a use for is cut, which frees what it had.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Subscriptions of one connection. A consumer has two for each MDT.
const MAX_TOPICS: usize = 1024;
/// Bytes of one connection's topics.
const MAX_BYTES: usize = 64 << 10;
/// Topics of one connection that are not served here. Some are innocent: a filter's, from before a
/// restart of lcapd, or an MDT's that is no longer read.
const MAX_UNKNOWN: usize = 64;
/// Changes of mind in [`WINDOW`].
const MAX_CHANGES: u32 = 16_384;
const WINDOW: Duration = Duration::from_secs(10);
/// Bytes of all connections' topics.
const MAX_TOTAL_BYTES: usize = 1 << 20;
/// Connections that are remembered before those that are gone are looked for.
const KEPT: usize = 256;

/// All of them, by connection.
#[derive(Debug)]
pub struct Subscribers<K> {
    by: HashMap<K, Subscriber>,
    n_bytes: usize,
    n_after_sweep: usize,
}

#[derive(Debug, Default)]
struct Subscriber {
    /// Whose it is, if clients have names.
    user: Option<String>,
    /// Whether each is one that is served.
    topics: HashMap<Vec<u8>, bool>,
    n_bytes: usize,
    n_unknown: usize,
    window: Duration,
    n_changes: u32,
    /// It is being cut: what it still says does not count.
    is_cut: bool,
}

impl<K> Default for Subscribers<K> {
    fn default() -> Self {
        Self { by: HashMap::new(), n_bytes: 0, n_after_sweep: 0 }
    }
}

impl Subscriber {
    /// Counts a change; what is wrong, if it is one too many.
    fn change(&mut self, now: Duration) -> Option<&'static str> {
        if now >= self.window + WINDOW {
            (self.window, self.n_changes) = (now, 0);
        }
        self.n_changes += 1;
        (self.n_changes > MAX_CHANGES).then_some("subscriptions come and go without end")
    }

    fn excess(&self) -> Option<&'static str> {
        if self.n_unknown > MAX_UNKNOWN {
            Some("subscriptions to what is not served")
        } else if self.topics.len() > MAX_TOPICS || self.n_bytes > MAX_BYTES {
            Some("too many subscriptions")
        } else {
            None
        }
    }
}

impl<K: Copy + Eq + Hash> Subscribers<K> {
    /// Whether a connection has been heard of.
    pub fn knows(&self, who: K) -> bool {
        self.by.contains_key(&who)
    }

    /// Whether a connection is being cut: what it still says does not matter.
    pub fn is_cut(&self, who: K) -> bool {
        self.by.get(&who).is_some_and(|subscriber| subscriber.is_cut)
    }

    /// A connection, and whose it is.
    pub fn enter(&mut self, who: K, user: Option<String>) {
        self.by.insert(who, Subscriber { user, ..Subscriber::default() });
    }

    /// A subscription. The answer is why the connection is to be cut, if it is.
    pub fn subscribe(
        &mut self,
        who: K,
        topic: &[u8],
        is_served: bool,
        now: Duration,
    ) -> Option<&'static str> {
        let subscriber = self.by.entry(who).or_default();
        if subscriber.is_cut {
            return None;
        }
        let too_fast = subscriber.change(now);
        if subscriber.topics.insert(topic.to_vec(), is_served).is_none() {
            subscriber.n_bytes += topic.len();
            subscriber.n_unknown += usize::from(!is_served);
            self.n_bytes += topic.len();
        }
        too_fast.or_else(|| subscriber.excess())
    }

    /// The end of one. The answer is as that of [`Self::subscribe`].
    pub fn unsubscribe(&mut self, who: K, topic: &[u8], now: Duration) -> Option<&'static str> {
        let subscriber = self.by.get_mut(&who).filter(|subscriber| !subscriber.is_cut)?;
        if let Some(was_served) = subscriber.topics.remove(topic) {
            subscriber.n_bytes -= topic.len();
            subscriber.n_unknown -= usize::from(!was_served);
            self.n_bytes -= topic.len();
        }
        subscriber.change(now)
    }

    /// A connection is being cut.
    pub fn cut(&mut self, who: K) {
        if let Some(subscriber) = self.by.get_mut(&who) {
            self.n_bytes -= subscriber.n_bytes;
            *subscriber = Subscriber { is_cut: true, ..Subscriber::default() };
        }
    }

    /// Forgets connections that are gone, if there may be many, and says who has most if all have too
    /// much together.
    pub fn sweep(&mut self, is_open: impl Fn(K) -> bool) -> Option<K> {
        let too_much = self.n_bytes > MAX_TOTAL_BYTES;
        if too_much || self.by.len() > 2 * self.n_after_sweep + KEPT {
            self.by.retain(|&who, _| is_open(who));
            self.n_bytes = self.by.values().map(|subscriber| subscriber.n_bytes).sum();
            self.n_after_sweep = self.by.len();
        }
        let too_much = self.n_bytes > MAX_TOTAL_BYTES;
        let heaviest = || self.by.iter().max_by_key(|(_, subscriber)| subscriber.n_bytes);
        too_much.then(heaviest)?.map(|(&who, _)| who)
    }

    /// Connections of clients that are to go, and who these are.
    pub fn of_users(&self, must_go: impl Fn(Option<&str>) -> bool) -> Vec<(K, Option<String>)> {
        let goes =
            |subscriber: &Subscriber| !subscriber.is_cut && must_go(subscriber.user.as_deref());
        let gone = self.by.iter().filter(|(_, subscriber)| goes(subscriber));
        gone.map(|(&who, subscriber)| (who, subscriber.user.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn topics(n: usize, len: usize) -> impl Iterator<Item = Vec<u8>> {
        (0..n).map(move |nth| format!("{nth:0len$}").into_bytes())
    }

    #[test]
    fn a_connection_that_has_too_much_is_cut() {
        let cases = [
            ("what a client with many MDTs has", 1000, 50, true, None),
            ("too many", 2000, 20, true, Some("too many subscriptions")),
            ("too long", 400, 400, true, Some("too many subscriptions")),
            ("a few that are not served", 60, 50, false, None),
            (
                "many that are not served",
                70,
                50,
                false,
                Some("subscriptions to what is not served"),
            ),
        ];
        for (what, n, len, served, want) in cases {
            let mut subscribers = Subscribers::default();
            let mut why = topics(n, len).filter_map(|t| subscribers.subscribe(1, &t, served, NOW));
            assert_eq!(why.next(), want, "{what}");
        }
    }

    #[test]
    fn what_is_taken_back_does_not_count() {
        let mut subscribers = Subscribers::default();
        for topic in topics(5000, 40) {
            assert_eq!(subscribers.subscribe(1, &topic, true, NOW), None);
            assert_eq!(subscribers.subscribe(1, &topic, true, NOW), None, "a second time");
            assert_eq!(subscribers.unsubscribe(1, &topic, NOW), None);
        }
        assert_eq!(subscribers.n_bytes, 0);
        let changes = topics(5000, 40).filter_map(|t| subscribers.subscribe(1, &t, true, NOW));
        assert_eq!(changes.last(), Some("subscriptions come and go without end"));
        subscribers.cut(1);
        let later = NOW + WINDOW;
        for topic in topics(5000, 40) {
            assert_eq!(
                subscribers.subscribe(1, &topic, false, later),
                None,
                "it is on its way out"
            );
        }
        assert_eq!(subscribers.n_bytes, 0);
    }

    #[test]
    fn who_has_most_goes_when_all_have_too_much() {
        let mut subscribers = Subscribers::default();
        for who in 0..30 {
            for topic in topics(if who == 7 { 1010 } else { 900 }, 60) {
                assert_eq!(subscribers.subscribe(who, &topic, true, NOW), None);
            }
        }
        assert_eq!(subscribers.sweep(|_| true), Some(7));
        assert_eq!(
            subscribers.sweep(|who| who < 20),
            Some(7),
            "others that are gone are forgotten"
        );
        subscribers.cut(7);
        assert_eq!(subscribers.sweep(|who| who < 20), None);
    }

    #[test]
    fn connections_that_are_gone_are_not_kept() {
        let mut subscribers = Subscribers::default();
        for who in 0..10_000 {
            subscribers.enter(who, Some(format!("user{}", who % 2)));
            subscribers.subscribe(who, b"topic", true, NOW);
            assert_eq!(subscribers.sweep(|other| other + 10 > who), None);
        }
        assert!(subscribers.by.len() < 2 * KEPT, "{}", subscribers.by.len());
        let gone = subscribers.of_users(|user| user == Some("user1"));
        let user = Some("user1".to_owned());
        assert!(gone.iter().all(|(who, of)| who % 2 == 1 && *of == user), "{gone:?}");
        assert!(gone.contains(&(9999, user)));
    }
}
