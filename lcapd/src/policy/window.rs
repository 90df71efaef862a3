//! Consecutively numbered entries that are taken out in any order.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

/// Below this length holes do not matter.
const TIDY_FROM: usize = 4096;

/// A queue with holes.
///
/// Memory follows the entries that are left, not the span of their numbers: when most of a long
/// window is holes, the few that are left move to a tree, so that one entry held for hours does not
/// drag along a slot for each one that came after it.
#[derive(Debug)]
pub(super) struct Window<T> {
    base: u64,
    slots: VecDeque<Option<T>>,
    stragglers: BTreeMap<u64, T>,
    /// Entries in `slots` that are not holes.
    live: usize,
}

impl<T> Window<T> {
    /// The first entry will have number `base`.
    pub(super) fn new(base: u64) -> Self {
        Self { base, slots: VecDeque::new(), stragglers: BTreeMap::new(), live: 0 }
    }

    /// Appends; returns the entry's number.
    pub(super) fn push(&mut self, entry: T) -> u64 {
        self.slots.push_back(Some(entry));
        self.live += 1;
        self.next() - 1
    }

    /// Leaves out `n` numbers, as if so many entries had been there and were taken. To be called when
    /// it is empty.
    pub(super) fn skip(&mut self, n: u64) {
        debug_assert_eq!(self.len(), 0);
        self.base = self.next() + n;
        self.slots.clear();
    }

    /// The number that the next entry will get.
    pub(super) fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// Entries that are there.
    pub(super) fn len(&self) -> usize {
        self.live + self.stragglers.len()
    }

    fn at(&self, number: u64) -> Option<usize> {
        number.checked_sub(self.base).and_then(|at| usize::try_from(at).ok())
    }

    /// The entry with that number, if it is (still) there.
    pub(super) fn get(&self, number: u64) -> Option<&T> {
        match self.at(number) {
            Some(at) => self.slots.get(at)?.as_ref(),
            None => self.stragglers.get(&number),
        }
    }

    /// The same, to change.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        match self.at(number) {
            Some(at) => self.slots.get_mut(at)?.as_mut(),
            None => self.stragglers.get_mut(&number),
        }
    }

    /// Takes the entry out.
    pub(super) fn take(&mut self, number: u64) -> Option<T> {
        let Some(at) = self.at(number) else { return self.stragglers.remove(&number) };
        let entry = self.slots.get_mut(at)?.take()?;
        self.live -= 1;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        if self.slots.len() >= TIDY_FROM && self.live * 8 < self.slots.len() {
            self.tidy();
        }
        Some(entry)
    }

    fn tidy(&mut self) {
        let base = self.base;
        self.base = self.next();
        let left = self.slots.drain(..).zip(base..);
        self.stragglers.extend(left.filter_map(|(entry, number)| Some((number, entry?))));
        self.live = 0;
    }

    /// The entries with their numbers, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let slots = self.slots.iter().zip(self.base..);
        let recent = slots.filter_map(|(entry, number)| Some((number, entry.as_ref()?)));
        self.stragglers.iter().map(|(&number, entry)| (number, entry)).chain(recent)
    }

    /// The entries, to change.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.stragglers.values_mut().chain(self.slots.iter_mut().flatten())
    }

    /// The entry with the lowest number.
    pub(super) fn first(&self) -> Option<(u64, &T)> {
        self.iter().next()
    }

    /// Takes all entries out, in order.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let stragglers = std::mem::take(&mut self.stragglers).into_values();
        self.base = self.next();
        self.live = 0;
        stragglers.chain(self.slots.drain(..).flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_with_their_entries_whatever_is_taken() {
        let mut window = Window::new(100);
        for i in 100..110 {
            assert_eq!(window.push(i), i);
        }
        assert_eq!(window.take(103), Some(103));
        assert_eq!(window.take(103), None, "taken once");
        assert_eq!(window.take(99), None);
        assert_eq!(window.take(110), None);
        assert_eq!(window.take(100), Some(100));
        assert_eq!(window.get(101), Some(&101));
        assert_eq!(window.first(), Some((101, &101)));
        assert_eq!(window.len(), 8);
        assert_eq!(window.drain(), [101, 102, 104, 105, 106, 107, 108, 109]);
        assert_eq!((window.len(), window.push(0)), (0, 110));
    }

    #[test]
    fn a_straggler_does_not_keep_the_holes_behind_it() {
        let mut window = Window::new(0);
        for i in 0..1_000_000_u64 {
            let number = window.push(i);
            if i % 100_000 != 0 {
                window.take(number);
            }
            assert!(window.slots.len() <= 2 * TIDY_FROM);
        }
        let left: Vec<u64> = window.iter().map(|(number, _)| number).collect();
        assert_eq!(left, (0..10).map(|i| i * 100_000).collect::<Vec<_>>());
        assert_eq!(window.get(300_000), Some(&300_000));
        assert_eq!(window.take(300_000), Some(300_000));
        assert_eq!(window.len(), 9);
        assert_eq!(window.drain().len(), 9);
    }
}
