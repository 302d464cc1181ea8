//! Memory that an op needs for a moment: taken from what others gave back, so that a step that is like the one before allocates nothing.
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::DriverMemory;

/// Scratch that nobody uses. All work is in the order of one stream: what is taken may still be read by kernels that came before, and they come first.
#[derive(Default)]
pub(super) struct Idle(Mutex<Vec<Piece>>);

/// A piece of it. On the emulated GPU only its size is kept: there each use gets fresh memory, whose every byte counts as never written and whose ends are watched.
struct Piece {
    bytes: usize,
    place: Option<Box<dyn DriverMemory>>,
}

/// What [`Idle::take`] found.
pub(super) enum Taken {
    /// Memory of at least the size asked for, and its size.
    Memory(Box<dyn DriverMemory>, usize),
    /// The emulated GPU's: there would have been some, of this size.
    Room(usize),
}

/// Idle pieces that are so many times larger than what is asked for are left to others.
const SLACK: usize = 4;

impl Idle {
    /// The smallest idle piece that holds `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Option<Taken> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |p: &Piece| p.bytes >= bytes && p.bytes / SLACK <= bytes;
        let best = (0..idle.len()).filter(|&i| fits(&idle[i])).min_by_key(|&i| idle[i].bytes)?;
        let Piece { bytes, place } = idle.swap_remove(best);
        Some(place.map_or(Taken::Room(bytes), |place| Taken::Memory(place, bytes)))
    }

    fn put(&self, bytes: usize, place: Option<Box<dyn DriverMemory>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Piece { bytes, place });
    }

    /// Frees all of it; the bytes that were held.
    pub(super) fn clear(&self) -> usize {
        let idle = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        idle.iter().map(|p| p.bytes).sum()
    }
}

/// Where a piece of scratch goes when it is dropped.
pub(super) struct Home {
    pub(super) idle: Arc<Idle>,
    /// The size that it was allocated with.
    pub(super) bytes: usize,
    /// True if the memory itself is kept.
    pub(super) keep: bool,
}

impl Home {
    pub(super) fn give_back(&self, place: Box<dyn DriverMemory>) {
        self.idle.put(self.bytes, self.keep.then_some(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_piece_that_fits_is_taken_and_none_that_is_far_too_large() {
        let idle = Idle::default();
        for bytes in [4000, 100, 250, 1000] {
            idle.put(bytes, None);
        }
        let take = |bytes| match idle.take(bytes) {
            Some(Taken::Room(bytes)) => Some(bytes),
            _ => None,
        };
        assert_eq!(
            [take(200), take(200), take(200)],
            [Some(250), None, None],
            "1000 is more than four times 200"
        );
        assert_eq!([take(101), take(5000), take(100)], [None, None, Some(100)]);
        assert_eq!(idle.clear(), 5000);
        assert_eq!(take(1000), None);
    }
}
