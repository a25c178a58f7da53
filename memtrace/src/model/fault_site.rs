//! Where a program takes its page faults.
//!
//! A fault is told with the instruction that took it and no stack, so a place is an instruction. The
//! kernel's totals know all faults and these events some: what is missing here, whether lost, of a
//! program before exec or beyond the bound, is the difference to the totals.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

/// Places with a count of their own.
const PLACES: usize = 1 << 16;

/// Faults of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCount {
    /// Handled without I/O.
    pub minor: u64,
    /// Waited for I/O.
    pub major: u64,
    /// Sum of the latencies that were measured.
    pub latency_ns: u64,
}

/// The places of one program.
#[derive(Clone, Debug, Default)]
pub struct FaultSites {
    by_instruction: FxHashMap<u64, FaultCount>,
}

impl FaultSites {
    /// The instruction at `address` took a fault.
    pub fn record(&mut self, address: u64, latency_ns: Option<u64>, major: bool) {
        let room = self.by_instruction.len() < PLACES;
        if !room && !self.by_instruction.contains_key(&address) {
            return;
        }
        let count = self.by_instruction.entry(address).or_default();
        let kind = if major {
            &mut count.major
        } else {
            &mut count.minor
        };
        *kind += 1;
        count.latency_ns = count.latency_ns.saturating_add(latency_ns.unwrap_or(0));
    }

    /// The places, most faults first.
    pub fn sorted(&self) -> Vec<(u64, FaultCount)> {
        let mut places: Vec<_> = self
            .by_instruction
            .iter()
            .map(|(&at, &n)| (at, n))
            .collect();
        places.sort_unstable_by_key(|(at, n)| (Reverse(n.minor + n.major), *at));
        places
    }

    /// Forgets all: the program was replaced.
    pub fn clear(&mut self) {
        self.by_instruction.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_up_to_the_bound() {
        let mut sites = FaultSites::default();
        for address in 0..PLACES as u64 + 5 {
            sites.record(address, None, false);
        }
        sites.record(7, Some(30), true);
        sites.record(7, Some(12), false);
        let sorted = sites.sorted();
        assert_eq!(sorted.len(), PLACES);
        let seven = FaultCount {
            minor: 2,
            major: 1,
            latency_ns: 42,
        };
        assert_eq!(sorted[0], (7, seven));
        sites.clear();
        assert!(sites.sorted().is_empty());
    }
}
