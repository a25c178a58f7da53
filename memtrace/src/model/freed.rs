//! The addresses that were given back lately: tells a double free from the free of no block at all.

use std::sync::Arc;

/// Addresses that share a set; one cache line.
const WAYS: usize = 8;
/// Sets at the start.
const FEWEST: usize = 64;
/// Sets at most: 64 Ki addresses.
const MOST: usize = 8192;

/// A bounded memory of freed addresses. What no longer fits is forgotten, oldest of its set first.
#[derive(Clone, Debug, Default)]
pub struct Freed {
    /// Shared with forked children until either changes; empty until the first free.
    sets: Arc<Vec<[u64; WAYS]>>,
    /// Addresses noted since the table last grew.
    noted: usize,
}

impl Freed {
    fn set(&self, address: u64) -> usize {
        let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.sets.len() - 1)
    }

    /// The block at `address` was given back.
    pub fn note(&mut self, address: u64) {
        if self.noted >= self.sets.len() * WAYS / 2 && self.sets.len() < MOST {
            self.grow();
        }
        self.noted += 1;
        self.place(address);
    }

    fn place(&mut self, address: u64) {
        let index = self.set(address);
        let set = &mut Arc::make_mut(&mut self.sets)[index];
        let last = set
            .iter()
            .position(|way| *way == address || *way == 0)
            .unwrap_or(WAYS - 1);
        set.copy_within(..last, 1);
        set[0] = address;
    }

    fn grow(&mut self) {
        let sets = (self.sets.len() * 4).clamp(FEWEST, MOST);
        let old = std::mem::replace(&mut self.sets, Arc::new(vec![[0; WAYS]; sets]));
        self.noted = 0;
        for set in old.iter() {
            for &address in set.iter().rev().filter(|address| **address != 0) {
                self.noted += 1;
                self.place(address);
            }
        }
    }

    /// The address was handed out again. Whether it had been given back before.
    pub fn forget(&mut self, address: u64) -> bool {
        let found = self.contains(address);
        if found {
            let index = self.set(address);
            let set = &mut Arc::make_mut(&mut self.sets)[index];
            if let Some(at) = set.iter().position(|way| *way == address) {
                set.copy_within(at + 1.., at);
                set[WAYS - 1] = 0;
            }
        }
        found
    }

    /// Whether the address is remembered.
    pub fn contains(&self, address: u64) -> bool {
        address != 0 && !self.sets.is_empty() && self.sets[self.set(address)].contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_until_handed_out_again() {
        let mut freed = Freed::default();
        assert!(!freed.contains(16));
        assert!(!freed.forget(16));
        freed.note(16);
        freed.note(16);
        freed.note(32);
        assert!(freed.contains(16) && freed.contains(32));
        assert!(freed.forget(16));
        assert!(!freed.contains(16) && freed.contains(32));
    }

    #[test]
    fn remembers_the_latest_thousands() {
        let mut freed = Freed::default();
        for address in 1..=20_000u64 {
            freed.note(address * 16);
        }
        let known = (1..=20_000u64).filter(|a| freed.contains(a * 16)).count();
        assert!(known > 19_500, "{known}");
        for address in 1..=1_000_000u64 {
            freed.note(address * 16);
        }
        assert_eq!(freed.sets.len(), MOST);
        assert!(freed.contains(16_000_000));
    }
}
