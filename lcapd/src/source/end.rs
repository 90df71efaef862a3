//! Finding the present end of a log that is being followed.
//!
//! A following reader of the kernel's never says that it is at the end: "nothing now" may as well
//! mean that the kernel has not fetched more yet. What tells for sure is a second reader that does
//! not follow: it ends after the newest record. It costs the MDT something, so it is opened only
//! when somebody asked, reads a bounded amount, and is tried more and more rarely.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use lcap_ffi::RecordIndex;

/// Before a first try: most logs give what they have sooner.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// After a try that found too much: this, then twice as long, up to the longest.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// How often a try that waits for the MDT is looked at.
const STEP: Duration = Duration::from_millis(10);
/// A try that reads more than this is far from the end.
const MAX_BYTES: usize = 1 << 20;

/// What a second reader said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// It read so many bytes, up to that record.
    Read(usize, RecordIndex),
    /// Nothing yet.
    Pending,
    /// The end.
    End,
}

/// A second reader of the log, which does not follow.
pub(super) trait Probe: fmt::Debug + Send {
    /// Reads on without waiting.
    fn step(&mut self) -> io::Result<Probed>;
}

/// How far the search for the end has come.
#[derive(Debug)]
enum State {
    /// Somebody asked; try at that moment.
    Asked(Instant),
    /// The second reader is at work.
    Probing { probe: Box<dyn Probe>, n_bytes: usize, last: RecordIndex },
    /// The newest record when it was found out.
    Known(RecordIndex),
}

/// The search for the end of one open log.
#[derive(Debug)]
pub(super) struct EndFinder {
    state: State,
    delay: Duration,
}

/// What follows from it for whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Everything that existed when it was asked has been read.
    pub(super) at_end: bool,
    /// Look again at that moment even if nothing comes.
    pub(super) look_again: Option<Instant>,
}

impl EndFinder {
    /// As if somebody had asked just now.
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Asked(now + FIRST_DELAY), delay: RETRY_DELAY }
    }

    /// Somebody asks.
    pub(super) fn ask(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// To be called when nothing is there to be read; `next` is the index after the last one
    /// read, and `open` opens a second reader there.
    pub(super) fn look(
        &mut self,
        now: Instant,
        next: RecordIndex,
        open: impl FnOnce() -> io::Result<Box<dyn Probe>>,
    ) -> Verdict {
        if let State::Asked(at) = self.state {
            if now < at {
                return Verdict { at_end: false, look_again: Some(at) };
            }
            match open() {
                Ok(probe) => {
                    let last = next.prev();
                    self.state = State::Probing { probe, n_bytes: 0, last };
                }
                Err(_) => return self.put_off(now),
            }
        }
        if let State::Probing { probe, n_bytes, last } = &mut self.state {
            loop {
                match probe.step() {
                    Ok(Probed::Read(n, upto)) if *n_bytes + n <= MAX_BYTES => {
                        *n_bytes += n;
                        *last = upto.max(*last);
                    }
                    Ok(Probed::Pending) => {
                        return Verdict { at_end: false, look_again: Some(now + STEP) };
                    }
                    Ok(Probed::End) => {
                        self.state = State::Known(*last);
                        break;
                    }
                    Ok(Probed::Read(..)) | Err(_) => return self.put_off(now),
                }
            }
        }
        let at_end = matches!(self.state, State::Known(last) if last < next);
        Verdict { at_end, look_again: None }
    }

    fn put_off(&mut self, now: Instant) -> Verdict {
        let at = now + self.delay;
        self.state = State::Asked(at);
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
        Verdict { at_end: false, look_again: Some(at) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[derive(Debug)]
    struct Script(VecDeque<io::Result<Probed>>);

    impl Probe for Script {
        fn step(&mut self) -> io::Result<Probed> {
            self.0.pop_front().unwrap_or(Ok(Probed::Pending))
        }
    }

    fn script(steps: Vec<Probed>) -> io::Result<Box<dyn Probe>> {
        Ok(Box::new(Script(steps.into_iter().map(Ok).collect())))
    }

    fn ix(n: u64) -> RecordIndex {
        RecordIndex::new(n)
    }

    #[test]
    fn the_end_is_told_only_once_all_that_was_there_is_read() {
        let now = Instant::now();
        let mut finder = EndFinder::new(now);
        let early = finder.look(now, ix(5), || panic!("too early"));
        assert_eq!(early, Verdict { at_end: false, look_again: Some(now + FIRST_DELAY) });

        let now = now + FIRST_DELAY;
        let steps = vec![Probed::Pending, Probed::Read(300, ix(6)), Probed::End];
        let waiting = finder.look(now, ix(5), || script(steps));
        assert_eq!(waiting, Verdict { at_end: false, look_again: Some(now + STEP) });
        let no_more = || panic!("one is enough");
        for (what, next, at_end) in
            [("5 and 6 are there", 5, false), ("6 is", 6, false), ("both are read", 7, true)]
        {
            let verdict = finder.look(now, ix(next), no_more);
            assert_eq!(verdict, Verdict { at_end, look_again: None }, "{what}");
        }
        finder.ask(now);
        assert!(!finder.look(now, ix(7), no_more).at_end, "what was known is too old");
        let verdict = finder.look(now + FIRST_DELAY, ix(7), || script(vec![Probed::End]));
        assert!(verdict.at_end);
    }

    #[test]
    fn tries_that_lead_nowhere_become_rare() {
        let mut now = Instant::now();
        let mut finder = EndFinder::new(now);
        now += FIRST_DELAY;
        for (n, seconds) in [1, 2, 4, 8, 16, 30, 30].into_iter().enumerate() {
            let verdict = finder.look(now, ix(1), || match n % 2 {
                0 => Err(io::Error::from_raw_os_error(libc::EIO)),
                _ => script(vec![Probed::Read(MAX_BYTES, ix(9)), Probed::Read(1, ix(10))]),
            });
            let at = now + Duration::from_secs(seconds);
            assert_eq!(verdict, Verdict { at_end: false, look_again: Some(at) });
            now = at;
        }
    }
}
