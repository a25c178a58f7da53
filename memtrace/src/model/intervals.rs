//! The mappings of an address space: intervals that never overlap, keyed by their first address.

use std::{collections::BTreeMap, ops::Range};

use super::region::Region;

/// Non-overlapping mappings, and their bytes in sum.
#[derive(Clone, Debug, Default)]
pub struct Intervals {
    map: BTreeMap<u64, Region>,
    bytes: u64,
}

impl Intervals {
    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Every mapping with its first address, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.map.iter().map(|(&start, region)| (start, region))
    }

    /// The mapping that holds `address`, with its first address.
    pub fn at(&self, address: u64) -> Option<(u64, &Region)> {
        let (&start, region) = self.map.range(..=address).next_back()?;
        (address < region.end).then_some((start, region))
    }

    /// As [`Intervals::at`], to change what is not its extent.
    pub fn at_mut(&mut self, address: u64) -> Option<(u64, &mut Region)> {
        let (&start, region) = self.map.range_mut(..=address).next_back()?;
        (address < region.end).then_some((start, region))
    }

    /// The first mapping that begins above `address`.
    pub fn above(&self, address: u64) -> Option<(u64, &Region)> {
        let (&start, region) = self.map.range(address.saturating_add(1)..).next()?;
        Some((start, region))
    }

    /// The last mapping that ends at or below `address`.
    pub fn below(&self, address: u64) -> Option<(u64, &Region)> {
        let (&start, region) = self.map.range(..=address).next_back()?;
        (region.end <= address).then_some((start, region))
    }

    /// The mappings that share an address with `range`.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Region)> {
        let first = self.at(range.start).map_or(range.start, |(start, _)| start);
        self.map
            .range(first..range.end.max(first))
            .map(|(&start, region)| (start, region))
    }

    /// The parts of `range` that nothing maps.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut next = range.start;
        for (start, region) in self.overlapping(range.clone()) {
            if next < start {
                gaps.push(next..start);
            }
            next = region.end;
        }
        if next < range.end {
            gaps.push(next..range.end);
        }
        gaps
    }

    /// Cuts the mapping that holds `address` in two there. Its faults stay with the lower part.
    fn split_at(&mut self, address: u64) {
        let Some((&start, region)) = self.map.range_mut(..address).next_back() else {
            return;
        };
        if region.end <= address {
            return;
        }
        let mut upper = region.clone();
        region.end = address;
        upper.faults = 0;
        if upper.is_file_backed() {
            upper.offset = upper.offset.wrapping_add(address - start);
        }
        self.map.insert(address, upper);
    }

    /// Unmaps what lies in `range` and satisfies `which`; returns the ranges that went.
    pub fn remove_if(
        &mut self,
        range: Range<u64>,
        which: impl Fn(&Region) -> bool,
    ) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let doomed: Vec<Range<u64>> = self
            .overlapping(range.clone())
            .filter(|(_, region)| which(region))
            .map(|(start, region)| start.max(range.start)..region.end.min(range.end))
            .collect();
        for piece in &doomed {
            self.split_at(piece.start);
            self.split_at(piece.end);
            self.map.remove(&piece.start);
            self.bytes -= piece.end - piece.start;
        }
        doomed
    }

    /// Maps `region` at `start` in place of whatever was there; returns the ranges that went.
    pub fn insert(&mut self, start: u64, region: Region) -> Vec<Range<u64>> {
        let gone = self.remove_if(start..region.end, |_| true);
        self.bytes += region.end - start;
        self.map.insert(start, region);
        gone
    }

    /// Changes the mappings within `range`, cut at its bounds, and joins again what came from one call.
    pub fn update(&mut self, range: Range<u64>, mut change: impl FnMut(&mut Region)) {
        self.split_at(range.start);
        self.split_at(range.end);
        for (_, region) in self.map.range_mut(range.clone()) {
            change(region);
        }
        self.join(range);
    }

    /// Joins neighbours within and around `range` that differ in nothing, their age included: an arena
    /// that grows by mprotect would otherwise leave a piece for each step.
    fn join(&mut self, range: Range<u64>) {
        let Some(mut start) = self
            .map
            .range(..range.start)
            .next_back()
            .or_else(|| self.map.range(range.start..).next())
            .map(|(&start, _)| start)
        else {
            return;
        };
        while let Some((next_start, next)) = self.above(start).map(|(at, next)| (at, next.clone()))
        {
            if next_start > range.end {
                break;
            }
            let Some(region) = self.map.get_mut(&start) else {
                break;
            };
            let same = region.end == next_start
                && region.created_ns == next.created_ns
                && region.continues_into(start, &next);
            if same {
                region.end = next.end;
                region.faults = region.faults.saturating_add(next.faults);
                self.map.remove(&next_start);
            } else {
                start = next_start;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::region::PAGE;

    fn region(end: u64, protection: u32, created_ns: u64) -> Region {
        Region::anonymous(end * PAGE, protection, created_ns)
    }

    fn shape(intervals: &Intervals) -> Vec<(u64, u64, u32)> {
        intervals
            .iter()
            .map(|(start, region)| (start / PAGE, region.end / PAGE, region.protection().into()))
            .collect()
    }

    #[test]
    fn removal_splits_and_spares_the_younger() {
        let mut intervals = Intervals::default();
        intervals.insert(0, region(10, 3, 5));
        intervals.insert(10 * PAGE, region(12, 3, 9));
        let gone = intervals.remove_if(4 * PAGE..11 * PAGE, |region| region.created_ns <= 7);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0], 4 * PAGE..10 * PAGE);
        assert_eq!(shape(&intervals), [(0, 4, 3), (10, 12, 3)]);
        assert_eq!(intervals.bytes(), 6 * PAGE);
    }

    #[test]
    fn protection_changes_cut_and_join_again() {
        let mut intervals = Intervals::default();
        intervals.insert(0, region(16, 0, 1));
        for page in 0..4 {
            intervals.update(page * PAGE..(page + 1) * PAGE, |region| {
                region.set_protection(3)
            });
        }
        assert_eq!(shape(&intervals), [(0, 4, 3), (4, 16, 0)]);
        intervals.update(2 * PAGE..3 * PAGE, |region| region.set_protection(1));
        assert_eq!(
            shape(&intervals),
            [(0, 2, 3), (2, 3, 1), (3, 4, 3), (4, 16, 0)]
        );
        intervals.update(0..16 * PAGE, |region| region.set_protection(3));
        assert_eq!(shape(&intervals), [(0, 16, 3)]);
    }

    #[test]
    fn gaps_are_what_is_left() {
        let mut intervals = Intervals::default();
        intervals.insert(2 * PAGE, region(4, 3, 0));
        intervals.insert(6 * PAGE, region(8, 3, 0));
        assert_eq!(
            intervals.gaps(PAGE..7 * PAGE),
            [PAGE..2 * PAGE, 4 * PAGE..6 * PAGE]
        );
        assert_eq!(intervals.gaps(2 * PAGE..3 * PAGE), []);
    }

    /// Every operation against one entry per page.
    #[test]
    fn behaves_like_one_entry_per_page() {
        const PAGES: u64 = 64;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        let mut intervals = Intervals::default();
        let mut naive: Vec<Option<(u32, u64)>> = vec![None; PAGES as usize];
        for step in 0..20_000 {
            let start = random(PAGES);
            let end = start + 1 + random(PAGES - start);
            let (range, pages) = (
                start * PAGE..end * PAGE,
                &mut naive[start as usize..end as usize],
            );
            let protection = random(3) as u32;
            match random(3) {
                0 => {
                    intervals.insert(range.start, region(end, protection, step));
                    pages.fill(Some((protection, step)));
                }
                1 => {
                    let before = random(step + 1);
                    let gone = intervals.remove_if(range, |region| region.created_ns <= before);
                    let mut count = 0;
                    for page in pages {
                        if page.is_some_and(|(_, created)| created <= before) {
                            *page = None;
                            count += 1;
                        }
                    }
                    let bytes: u64 = gone.iter().map(|piece| piece.end - piece.start).sum();
                    assert_eq!(bytes, count * PAGE);
                }
                _ => {
                    intervals.update(range, |region| region.set_protection(protection));
                    for (found, _) in pages.iter_mut().flatten() {
                        *found = protection;
                    }
                }
            }
            let mapped = naive.iter().flatten().count() as u64;
            assert_eq!(intervals.bytes(), mapped * PAGE, "step {step}");
            for (page, expected) in naive.iter().enumerate() {
                let found = intervals
                    .at(page as u64 * PAGE)
                    .map(|(_, region)| (region.protection().into(), region.created_ns));
                assert_eq!(found, *expected, "step {step} page {page}");
            }
            let gaps: u64 = intervals
                .gaps(0..PAGES * PAGE)
                .iter()
                .map(|gap| gap.end - gap.start)
                .sum();
            assert_eq!(gaps, (PAGES - mapped) * PAGE);
        }
    }
}
