//! One value from one thread to another that waits for it.
//!
//! Not a channel, because those park threads by the standard library's handle, which stays behind in
//! the host's main thread for leak checkers to find.
#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

enum State<T> {
    Open,
    Kept(T),
    Broken,
}

/// The side that gives the value. Dropping it without one tells the other side.
pub(crate) struct Promise<T>(Arc<(Mutex<State<T>>, Condvar)>);

/// The side that waits.
pub(crate) struct Promised<T>(Arc<(Mutex<State<T>>, Condvar)>);

/// Both sides.
pub(crate) fn promise<T>() -> (Promise<T>, Promised<T>) {
    let shared = Arc::new((Mutex::new(State::Open), Condvar::new()));
    (Promise(Arc::clone(&shared)), Promised(shared))
}

impl<T> Promise<T> {
    /// Gives the value.
    pub(crate) fn keep(self, value: T) {
        self.settle(State::Kept(value));
    }

    fn settle(&self, state: State<T>) {
        let mut guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*guard, State::Open) {
            *guard = state;
            self.0.1.notify_one();
        }
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.settle(State::Broken);
    }
}

impl<T> Promised<T> {
    /// Waits for the value; `None` if it does not come, or not in time.
    pub(crate) fn wait(self, at_most: Duration) -> Option<T> {
        let deadline = Instant::now().checked_add(at_most);
        let mut guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *guard, State::Open) {
                State::Kept(value) => return Some(value),
                State::Broken => return None,
                State::Open => {}
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.unwrap_or(Duration::MAX);
            if left.is_zero() {
                return None;
            }
            let waited = self.0.1.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_promise_is_kept_broken_or_late() {
        let (giver, taker) = promise();
        let thread = std::thread::spawn(move || giver.keep(5));
        assert_eq!(taker.wait(LONG), Some(5));
        thread.join().unwrap();

        let (giver, taker) = promise::<i32>();
        let thread = std::thread::spawn(move || drop(giver));
        assert_eq!(taker.wait(LONG), None);
        thread.join().unwrap();

        let (_giver, taker) = promise::<i32>();
        assert_eq!(taker.wait(Duration::from_millis(1)), None);
    }
}
