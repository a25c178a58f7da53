//! Which places of a table are free.

use std::{collections::BTreeMap, ops::Range};

/// Free places, as the fewest ranges.
#[derive(Debug)]
pub(super) struct Room {
    /// Lengths by first place.
    free: BTreeMap<u32, u32>,
}

impl Room {
    /// All of these.
    pub fn new(places: Range<u32>) -> Self {
        let mut room = Self {
            free: BTreeMap::new(),
        };
        room.give(places.start, places.end.saturating_sub(places.start));
        room
    }

    /// How many are free.
    pub fn free(&self) -> u32 {
        self.free.values().sum()
    }

    /// Whether so many are free in a row.
    pub fn fits(&self, count: u32) -> bool {
        count == 0 || self.free.values().any(|&length| length >= count)
    }

    /// Takes so many in a row, the first that are large enough; the first of them.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        if count == 0 {
            return Some(0);
        }
        let (&first, &length) = self.free.iter().find(|&(_, &length)| length >= count)?;
        self.free.remove(&first);
        if length > count {
            self.free.insert(first + count, length - count);
        }
        Some(first)
    }

    /// Gives back what was taken.
    pub fn give(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let (mut first, mut count) = (first, count);
        if let Some((&below, &length)) = self.free.range(..first).next_back()
            && below + length == first
        {
            self.free.remove(&below);
            (first, count) = (below, length + count);
        }
        if let Some(length) = self.free.remove(&(first + count)) {
            count += length;
        }
        self.free.insert(first, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_one_piece_again_in_whatever_order() {
        let orders = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        for order in orders {
            let mut room = Room::new(1..101);
            let taken = [30, 20, 50].map(|count| (room.take(count), count));
            assert_eq!(taken, [(Some(1), 30), (Some(31), 20), (Some(51), 50)]);
            assert_eq!((room.free(), room.take(1)), (0, None));
            for index in order {
                room.give(taken[index].0.unwrap(), taken[index].1);
            }
            assert_eq!((room.free(), room.take(100)), (100, Some(1)), "{order:?}");
        }
    }

    #[test]
    fn places_apart_do_not_make_one_piece() {
        let mut room = Room::new(0..30);
        let taken = [room.take(10), room.take(10), room.take(10)];
        assert_eq!(taken, [Some(0), Some(10), Some(20)]);
        room.give(0, 10);
        room.give(20, 10);
        assert_eq!((room.free(), room.take(11)), (20, None));
        assert_eq!(
            (room.take(4), room.take(10), room.take(6)),
            (Some(0), Some(20), Some(4))
        );
        assert_eq!(room.take(0), Some(0));
    }
}
