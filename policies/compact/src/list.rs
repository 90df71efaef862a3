//! A list of numbers, most of which have few: those need no memory of their own.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Numbers in the order in which they came, of which `FEW` lie in the list itself.
#[derive(Clone, Debug)]
pub(crate) enum List<T, const FEW: usize> {
    /// The first `n` of `numbers`.
    Few { n: u8, numbers: [T; FEW] },
    /// Taken from the front as a rule, and there may be millions.
    #[allow(clippy::box_collection)] // few would be larger with a deque beside them
    Many(Box<VecDeque<T>>),
}

impl<T: Copy + Default, const FEW: usize> Default for List<T, FEW> {
    fn default() -> Self {
        Self::Few { n: 0, numbers: [T::default(); FEW] }
    }
}

impl<T: Copy + Default + PartialEq, const FEW: usize> List<T, FEW> {
    fn slices(&self) -> (&[T], &[T]) {
        match self {
            Self::Few { n, numbers } => (numbers.get(..usize::from(*n)).unwrap_or_default(), &[]),
            Self::Many(numbers) => numbers.as_slices(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slices().0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = T> + '_ {
        let (front, back) = self.slices();
        front.iter().chain(back).copied()
    }

    pub(crate) fn push(&mut self, number: T) {
        match self {
            Self::Few { n, numbers } => {
                if let Some(place) = numbers.get_mut(usize::from(*n)) {
                    *place = number;
                    *n += 1;
                    return;
                }
                let mut many = VecDeque::with_capacity(4 * FEW);
                many.extend(*numbers);
                many.push_back(number);
                *self = Self::Many(Box::new(many));
            }
            Self::Many(numbers) => numbers.push_back(number),
        }
    }

    /// Takes a number out of a list that ascends in that order.
    pub(crate) fn remove_in_order<K: Ord>(&mut self, number: T, order: impl Fn(T) -> K) {
        match self {
            Self::Few { .. } => {
                self.remove(number);
            }
            Self::Many(numbers) if numbers.front() == Some(&number) => {
                numbers.pop_front();
            }
            Self::Many(numbers) => {
                if let Ok(at) = numbers.binary_search_by_key(&order(number), |&n| order(n)) {
                    numbers.remove(at);
                }
            }
        }
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Takes a number out; says whether it was there.
    pub(crate) fn remove(&mut self, number: T) -> bool {
        match self {
            Self::Few { n, numbers } => {
                let all = numbers.get_mut(..usize::from(*n)).unwrap_or_default();
                let Some(at) = all.iter().position(|other| *other == number) else { return false };
                all.copy_within(at + 1.., at);
                *n -= 1;
                true
            }
            Self::Many(numbers) => {
                let at = numbers.iter().position(|other| *other == number);
                at.and_then(|at| numbers.remove(at)).is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_the_same_list() {
        for n in [0_u64, 1, 3, 4, 50] {
            let mut list = List::<u64, 3>::default();
            (0..n).for_each(|number| list.push(10 * number));
            let all = |list: &List<u64, 3>| list.iter().collect::<Vec<_>>();
            assert_eq!(all(&list), (0..n).map(|number| 10 * number).collect::<Vec<_>>());
            assert_eq!(list.is_empty(), n == 0);
            assert_eq!(list.iter().next_back(), n.checked_sub(1).map(|last| 10 * last));
            assert!(!list.remove(7));
            list.remove_in_order(7, |n| n);
            for taken in (0..n).rev().step_by(2).chain((0..n).step_by(2)) {
                let before = all(&list);
                list.remove_in_order(10 * taken, |n| n);
                let want: Vec<_> =
                    before.into_iter().filter(|&other| other != 10 * taken).collect();
                assert_eq!(all(&list), want, "{n} without {taken}");
            }
            (0..n).for_each(|number| list.push(number));
            let there = list.iter().next();
            assert_eq!(there.is_some_and(|first| list.remove(first)), there.is_some());
            assert!(there.is_none_or(|first| !list.remove(first)));
        }
    }
}
