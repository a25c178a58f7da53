//! Allocation sites: the stacks that blocks were handed out at, and what became of the blocks.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{
    blocks::Block,
    estimate::{Errors, Variances},
    heap::Heap,
    tally::{Amount, Tally},
};

/// What was done at some sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Calls that produced a block.
    pub allocations: u64,
    /// Reallocations.
    pub reallocations: u64,
    /// Bytes asked for by both.
    pub bytes_allocated: u64,
    /// Live blocks.
    pub live: Amount,
    /// Blocks that were live when the heap was at its peak.
    pub peak: Amount,
}

impl Use {
    fn of(tally: &Tally, live: Amount, peak: Amount) -> Self {
        Self {
            allocations: tally.allocations,
            reallocations: tally.reallocations,
            bytes_allocated: tally.bytes_allocated,
            live,
            peak,
        }
    }

    fn whole(self, heap: &Heap) -> Self {
        let whole = |amount: Amount| Amount {
            blocks: heap.blocks_of(amount.blocks),
            ..amount
        };
        Self {
            allocations: heap.blocks_of(self.allocations),
            reallocations: heap.blocks_of(self.reallocations),
            live: whole(self.live),
            peak: whole(self.peak),
            ..self
        }
    }

    fn add(&mut self, other: &Self) {
        self.allocations += other.allocations;
        self.reallocations += other.reallocations;
        self.bytes_allocated = self.bytes_allocated.saturating_add(other.bytes_allocated);
        self.live = self.live.plus(other.live);
        self.peak = self.peak.plus(other.peak);
    }
}

/// What was done at one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteUse {
    /// Number of the site.
    pub site: u32,
    /// The amounts.
    pub total: Use,
    /// Standard errors of what is live, where it is estimated.
    pub errors: Option<Errors>,
    /// When the oldest live block was handed out, in nanoseconds.
    pub oldest_ns: u64,
    /// When the newest live block was handed out, in nanoseconds.
    pub newest_ns: u64,
}

impl SiteUse {
    fn new(site: u32) -> Self {
        Self {
            site,
            total: Use::default(),
            errors: None,
            oldest_ns: u64::MAX,
            newest_ns: 0,
        }
    }

    fn add_live(&mut self, block: &Block, amount: Amount) {
        self.total.live.bytes = self.total.live.bytes.saturating_add(amount.bytes);
        self.total.live.blocks += amount.blocks;
        self.oldest_ns = self.oldest_ns.min(block.time_ns);
        self.newest_ns = self.newest_ns.max(block.time_ns);
    }
}

/// The sites of one heap.
#[derive(Clone, Debug, Default)]
pub struct SiteUses {
    /// Each with its amounts, most live bytes first.
    pub sites: Vec<SiteUse>,
    /// Sites that are not listed, for want of room.
    pub other_sites: u64,
    /// What was done at them, in sum.
    pub others: Use,
}

impl SiteUses {
    /// The sites of a heap: blocks tell what is live, tallies the rest.
    pub fn of(heap: &Heap) -> Self {
        let tallies = heap.tallies();
        let mut sites: FxHashMap<u32, SiteUse> = FxHashMap::default();
        let mut dropped = SiteUse::new(0);
        for (_, block) in heap.blocks() {
            if tallies.is_dropped(block.site) {
                dropped.add_live(&block, heap.amount(block.size));
            } else {
                let site = sites.entry(block.site);
                let amount = heap.amount(block.size);
                site.or_insert(SiteUse::new(block.site))
                    .add_live(&block, amount);
            }
        }
        // Blocks that were inherited and not touched since were live all the time.
        for one in sites.values_mut() {
            one.total.peak = one.total.live;
        }
        for (site, tally) in tallies.iter() {
            let total = &mut sites.entry(site).or_insert(SiteUse::new(site)).total;
            let peak = tallies.at_peak(tally, total.live);
            *total = Use::of(tally, total.live, peak);
        }
        let (other_sites, tally) = tallies.others();
        let live = dropped.total.live;
        let mut uses = Self {
            sites: sites.into_values().collect(),
            other_sites,
            others: Use::of(tally, live, tallies.at_peak(tally, live)),
        };
        if let Some(mean_bytes) = heap.sampled() {
            uses.estimate(heap, mean_bytes);
        }
        uses.sort();
        uses
    }

    /// Makes whole numbers of what was counted in parts, and tells the errors.
    fn estimate(&mut self, heap: &Heap, mean_bytes: u64) {
        let mut variances: FxHashMap<u32, Variances> = FxHashMap::default();
        for (_, block) in heap.blocks() {
            let of_site = variances.entry(block.site).or_default();
            of_site.add(mean_bytes, block.size);
        }
        for one in &mut self.sites {
            one.total = one.total.whole(heap);
            let of_site = variances.get(&one.site).copied().unwrap_or_default();
            one.errors = Some(of_site.errors());
        }
        self.others = self.others.whole(heap);
    }

    /// Keeps `limit` sites: half of them for live bytes, the others for volume.
    pub fn keep(&mut self, limit: usize) {
        if self.sites.len() <= limit {
            return;
        }
        let volume = |one: &SiteUse| Reverse((one.total.bytes_allocated, one.site));
        self.sites[limit / 2..].sort_unstable_by_key(volume);
        for one in self.sites.drain(limit..) {
            self.other_sites += 1;
            self.others.add(&one.total);
        }
        self.sites.shrink_to_fit();
        self.sort();
    }

    /// The sites with live blocks, most bytes first.
    pub fn live(&self) -> impl Iterator<Item = &SiteUse> {
        self.sites.iter().filter(|one| one.total.live.blocks > 0)
    }

    fn sort(&mut self) {
        self.sites.sort_unstable_by_key(|one| {
            let order = Reverse((one.total.live.bytes, one.total.live.blocks));
            (order, one.site)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(blocks: &[(u64, u64, u64, u32)]) -> Heap {
        let mut heap = Heap::default();
        for &(address, size, time_ns, site) in blocks {
            let block = Block {
                size,
                time_ns,
                site,
            };
            heap.allocate(address, block);
        }
        heap
    }

    fn amount(bytes: u64, blocks: u64) -> Amount {
        Amount { bytes, blocks }
    }

    #[test]
    fn sites_are_summed_and_sorted() {
        let mut heap = heap(&[(16, 10, 5, 0), (32, 20, 3, 0), (48, 100, 9, 1)]);
        heap.free(u64::MAX, 48);
        heap.reallocate(
            11,
            32,
            64,
            Block {
                size: 5,
                time_ns: 12,
                site: 2,
            },
        );
        let uses = SiteUses::of(&heap);
        let row = |one: &SiteUse| (one.site, one.total.live, one.total.peak);
        let rows: Vec<_> = uses.sites.iter().map(row).collect();
        assert_eq!(
            rows,
            [
                (0, amount(10, 1), amount(30, 2)),
                (2, amount(5, 1), amount(0, 0)),
                (1, amount(0, 0), amount(100, 1)),
            ]
        );
        let first = &uses.sites[0];
        assert_eq!((first.oldest_ns, first.newest_ns), (5, 5));
        assert_eq!(
            (first.total.allocations, first.total.bytes_allocated),
            (2, 30)
        );
        assert_eq!(uses.sites[1].total.reallocations, 1);
        assert_eq!(uses.live().count(), 2);
    }

    #[test]
    fn a_child_holds_what_it_inherited_and_its_peak_begins_there() {
        let mut parent = heap(&[(16, 100, 1, 0), (32, 50, 1, 1), (48, 7, 1, 2)]);
        parent.free(u64::MAX, 48);
        let mut child = parent.fork();
        child.free(u64::MAX, 16);
        let uses = SiteUses::of(&child);
        let row = |one: &SiteUse| {
            (
                one.site,
                one.total.allocations,
                one.total.live,
                one.total.peak,
            )
        };
        let rows: Vec<_> = uses.sites.iter().map(row).collect();
        assert_eq!(
            rows,
            [
                (1, 0, amount(50, 1), amount(50, 1)),
                (0, 0, amount(0, 0), amount(100, 1)),
            ]
        );
        assert_eq!(child.counts().peak_live_bytes, 150);
    }

    #[test]
    fn what_is_not_kept_stays_in_the_sum() {
        let blocks: Vec<_> = (0..100)
            .map(|site| (16 * (1 + u64::from(site)), 1 + u64::from(site), 1, site))
            .collect();
        let mut heap = heap(&blocks);
        // The sites with most volume hold nothing at the end.
        for &(address, _, _, site) in &blocks[90..] {
            assert!(site >= 90);
            heap.free(u64::MAX, address);
        }
        let mut uses = SiteUses::of(&heap);
        uses.keep(10);
        let kept: Vec<u32> = uses.sites.iter().map(|one| one.site).collect();
        assert_eq!(kept, [89, 88, 87, 86, 85, 95, 96, 97, 98, 99]);
        assert_eq!(uses.other_sites, 90);
        let listed: u64 = uses.sites.iter().map(|one| one.total.bytes_allocated).sum();
        assert_eq!(listed + uses.others.bytes_allocated, 5050);
        let live: u64 = uses.sites.iter().map(|one| one.total.live.bytes).sum();
        assert_eq!(live + uses.others.live.bytes, heap.counts().live_bytes);
        let peak: u64 = uses.sites.iter().map(|one| one.total.peak.bytes).sum();
        assert_eq!(peak + uses.others.peak.bytes, heap.counts().peak_live_bytes);
    }
}
