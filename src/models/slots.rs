//! Which slots of a cache are free: runs of them are taken by sequences and given back in any order.

/// Free runs (first slot, length), in order, none touching the next.
#[derive(Debug)]
pub struct Slots {
    free: Vec<(usize, usize)>,
}

impl Slots {
    /// `n` free slots.
    pub fn new(n: usize) -> Slots {
        Slots { free: vec![(0, n)] }
    }

    /// The first of `n` free slots side by side, if there are so many.
    pub fn take(&mut self, n: usize) -> Option<usize> {
        let i = self.free.iter().position(|&(_, length)| length >= n)?;
        let (start, length) = &mut self.free[i];
        let taken = *start;
        (*start, *length) = (*start + n, *length - n);
        if *length == 0 {
            self.free.remove(i);
        }
        Some(taken)
    }

    /// Gives `n` slots from `start` on back.
    pub fn give_back(&mut self, start: usize, n: usize) {
        let i = self.free.partition_point(|f| f.0 < start);
        self.free.insert(i, (start, n));
        for at in [i + 1, i] {
            if at > 0 && at < self.free.len() && self.free[at - 1].0 + self.free[at - 1].1 == self.free[at].0
            {
                self.free[at - 1].1 += self.free[at].1;
                self.free.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Runs never overlap, and when all are back every slot is free in one run.
        #[test]
        fn no_slot_is_given_twice(moves in proptest::collection::vec((1usize..12, any::<bool>(), any::<usize>()), 0..80)) {
            let mut slots = Slots::new(40);
            let mut taken: Vec<(usize, usize)> = vec![];
            for (n, give, which) in moves {
                if give && !taken.is_empty() {
                    let (start, n) = taken.swap_remove(which % taken.len());
                    slots.give_back(start, n);
                } else if let Some(start) = slots.take(n) {
                    prop_assert!(start + n <= 40);
                    prop_assert!(taken.iter().all(|&(s, m)| start + n <= s || s + m <= start));
                    taken.push((start, n));
                } else {
                    // Only where no gap is as long.
                    let mut used = taken.clone();
                    used.sort();
                    let ends = std::iter::once(0).chain(used.iter().map(|&(s, m)| s + m));
                    let starts = used.iter().map(|u| u.0).chain([40]);
                    prop_assert!(ends.zip(starts).all(|(end, start)| start - end < n));
                }
            }
            taken.into_iter().for_each(|(start, n)| slots.give_back(start, n));
            prop_assert_eq!(slots.free, vec![(0, 40)]);
        }
    }
}
