//! How many messages a session may be sent: as many as there is room for.
#![forbid(unsafe_code)]

/// Counts the numbered messages of a session and asks for more in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    /// Last number that came; they come without holes.
    received: u64,
    /// Last number that was asked for.
    granted: u64,
    /// What a message takes, cautiously: rises at once, sinks slowly.
    message_bytes: usize,
}

impl Default for Credit {
    fn default() -> Self {
        // Before the first message, its size is anybody's guess: batches are at most about 1 MiB.
        Self { received: 0, granted: 0, message_bytes: 1 << 20 }
    }
}

impl Credit {
    /// A message came. `false` if one before it did not.
    pub(super) fn received(&mut self, number: u64, n_bytes: usize) -> bool {
        if number != self.received + 1 {
            return false;
        }
        self.received = number;
        let sunk = self.message_bytes - self.message_bytes / 4;
        self.message_bytes = n_bytes.max(sunk).max(1024);
        true
    }

    /// The number to ask for now that there is room for `room_bytes`, if it is worth a message.
    pub(super) fn ask(&mut self, room_bytes: usize) -> Option<u64> {
        let fits = u64::try_from(room_bytes / self.message_bytes).unwrap_or(u64::MAX);
        let on_the_way = self.granted - self.received;
        // With room for less than one message, one that is asked for when the queue is empty keeps
        // the flow going; the caller's room is never zero then.
        let upto = self.received + if room_bytes > 0 { fits.max(1) } else { 0 };
        let worth_it = on_the_way == 0 || upto - self.received >= 2 * on_the_way;
        if upto > self.granted && worth_it {
            self.granted = upto;
            return Some(upto);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_way_and_what_waits_fit_the_room() {
        let mut credit = Credit::default();
        assert_eq!(credit.ask(8 << 20), Some(8));
        assert_eq!(credit.ask(8 << 20), None, "nothing changed");
        assert!(credit.received(1, 1 << 20));
        assert_eq!(credit.ask(7 << 20), None, "seven are on the way");
        for number in 2..=8 {
            assert!(credit.received(number, 1 << 20));
        }
        assert_eq!(credit.ask(0), None, "no room");
        assert_eq!(credit.ask(1), Some(9), "a little room is enough for one");
        assert!(!credit.received(10, 1), "9 is missing");
    }

    #[test]
    fn small_messages_come_in_larger_numbers() {
        let mut credit = Credit::default();
        credit.ask(8 << 20);
        for number in 1..=8 {
            assert!(credit.received(number, 100));
        }
        assert!(credit.ask(8 << 20).unwrap() > 60);
    }
}
