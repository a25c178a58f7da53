//! The heap of an address space: its live blocks and its counts.
//!
//! Events of several threads overlap, as system calls do. A realloc gives its old block back at some
//! moment between its entry and its return, and another thread may have been handed the address
//! before the return is told. So a block whose address is handed out again is set aside, and the
//! realloc that owns it, recognised by having been entered before, takes it from there.

use rustc_hash::FxHashMap;

use super::{
    blocks::{Block, Blocks},
    estimate::{Sample, Sampled, weighted, whole},
    freed::Freed,
    tally::{Amount, Made, Tallies},
};

/// Blocks set aside at most; beyond it they are taken to be freed unseen.
const DISPLACED_LIMIT: usize = 65_536;

/// What a heap's events add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that produced a block.
    pub allocations: u64,
    /// Blocks given back, whether their allocation was seen or not.
    pub frees: u64,
    /// Reallocations of a block to a size above 0.
    pub reallocations: u64,
    /// Calls that got nothing.
    pub failed: u64,
    /// Bytes asked for by allocations and reallocations.
    pub bytes_allocated: u64,
    /// Blocks not given back.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Most bytes live at a time.
    pub peak_live_bytes: u64,
    /// Frees and reallocations of addresses that no known block has and none had lately.
    pub unknown_frees: u64,
    /// Frees of addresses given back before and not handed out since.
    pub repeated_frees: u64,
    /// Reallocations of blocks that were not known.
    pub unknown_reallocations: u64,
    /// Blocks whose address was handed out again although no free was seen.
    pub implied_frees: u64,
    /// How far off the other figures may be, where they are estimates from a sample.
    pub sampled: Option<Sampled>,
}

impl Counts {
    /// Releases of blocks that were not known. `trusted`: every event since the heap's first block was
    /// seen, so that an unknown free is the program's mistake and not the trace's gap.
    pub fn unmatched(&self, trusted: bool) -> u64 {
        let mistakes = self.unknown_frees.saturating_add(self.repeated_frees);
        self.unknown_reallocations
            .saturating_add(if trusted { 0 } else { mistakes })
    }
}

/// A heap.
#[derive(Debug, Default)]
pub struct Heap {
    blocks: Blocks,
    displaced: FxHashMap<u64, (u64, Block)>,
    freed: Freed,
    /// Where blocks are sampled, weighted, and numbers of blocks in parts ([`super::estimate::PARTS`]).
    counts: Counts,
    /// Likewise.
    tallies: Tallies,
    sample: Option<Box<Sample>>,
}

impl Heap {
    /// The heap as a forked child inherits it: the live blocks, with counts that begin at zero.
    pub fn fork(&mut self) -> Self {
        let (blocks, bytes) = (self.counts.live_blocks, self.counts.live_bytes);
        Self {
            blocks: self.blocks.fork(),
            displaced: self.displaced.clone(),
            freed: self.freed.clone(),
            counts: Counts {
                live_blocks: blocks,
                live_bytes: bytes,
                peak_live_bytes: bytes,
                ..Counts::default()
            },
            tallies: Tallies::default(),
            sample: self.sample.as_ref().map(|sample| Box::new(sample.fork())),
        }
    }

    /// What is told from now on is a sample of this mean distance in bytes.
    pub fn sample(&mut self, mean_bytes: u64) {
        self.sample
            .get_or_insert_with(|| Box::new(Sample::new(mean_bytes)));
    }

    /// The mean distance, where blocks are sampled.
    pub fn sampled(&self) -> Option<u64> {
        self.sample.as_ref().map(|sample| sample.mean_bytes())
    }

    /// What a block counts for.
    pub fn amount(&self, size: u64) -> Amount {
        match &self.sample {
            Some(sample) => weighted(sample.mean_bytes(), size),
            None => Amount::block(size),
        }
    }

    /// A number of blocks, from what they count for.
    pub fn blocks_of(&self, counted: u64) -> u64 {
        match &self.sample {
            Some(_) => whole(counted),
            None => counted,
        }
    }

    /// Whether no call was seen.
    pub fn is_untouched(&self) -> bool {
        let counts = &self.counts;
        counts.allocations == 0 && counts.frees == 0 && counts.reallocations == 0
    }

    /// What the events add up to; blocks set aside and not claimed count as implied frees.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        counts.implied_frees += self.displaced.len() as u64;
        if let Some(sample) = &self.sample {
            counts.sampled = Some(sample.told());
            for parts in [
                &mut counts.allocations,
                &mut counts.frees,
                &mut counts.reallocations,
                &mut counts.live_blocks,
            ] {
                *parts = whole(*parts);
            }
        }
        counts
    }

    /// Every live block with its address.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, Block)> {
        self.blocks.iter()
    }

    /// What each site did.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// A call returned a block.
    pub fn allocate(&mut self, address: u64, block: Block) {
        let counted = self.count(block.size);
        self.counts.allocations += counted.blocks;
        self.place(address, block, Made::Allocated);
    }

    /// A call got nothing.
    pub fn fail(&mut self) {
        self.counts.failed += 1;
    }

    /// The program gives a block back, in a call entered at `entered_ns`. realloc(p, 0) is told when it returns:
    /// the address may be another thread's by then.
    pub fn free(&mut self, entered_ns: u64, address: u64) {
        if address == 0 {
            return;
        }
        if let Some(block) = self.claim(entered_ns, address) {
            let counted = self.amount(block.size);
            self.counts.frees += counted.blocks;
            if self.blocks.get(address).is_none() {
                self.freed.note(address);
            }
            return;
        }
        if self.sample.is_some() {
            // Of before a fork or an exec: the kernel side tells more frees than there are blocks in the sample.
            return;
        }
        self.counts.frees += 1;
        if self.freed.contains(address) {
            self.counts.repeated_frees += 1;
        } else {
            self.counts.unknown_frees += 1;
            self.freed.note(address);
        }
    }

    /// realloc, entered at `entered_ns`, made `block` at `address` out of the block at `old_address`.
    pub fn reallocate(&mut self, entered_ns: u64, old_address: u64, address: u64, block: Block) {
        if old_address == 0 {
            return self.allocate(address, block);
        }
        if block.size == 0 {
            self.free(entered_ns, old_address);
            if address != 0 {
                self.allocate(address, block);
            }
            return;
        }
        // In a sample, a block without an address is not in it, and only the old one was.
        if address != 0 || self.sample.is_none() {
            let counted = self.count(block.size);
            self.counts.reallocations += counted.blocks;
        }
        if self.claim(entered_ns, old_address).is_none() && self.sample.is_none() {
            self.counts.unknown_reallocations += 1;
        }
        if old_address != address && self.blocks.get(old_address).is_none() {
            self.freed.note(old_address);
        }
        self.place(address, block, Made::Reallocated);
    }

    /// Gives back the block that a call was entered with: one set aside since it began, or the live one if it
    /// is no younger. A younger one belongs to another thread.
    fn claim(&mut self, entered_ns: u64, address: u64) -> Option<Block> {
        if let Some(&(at, block)) = self.displaced.get(&address)
            && at >= entered_ns
            && block.time_ns <= entered_ns
        {
            self.displaced.remove(&address);
            return Some(block);
        }
        match self.blocks.get(address) {
            Some(block) if block.time_ns <= entered_ns => self.take(address),
            _ => None,
        }
    }

    fn take(&mut self, address: u64) -> Option<Block> {
        let block = self.blocks.remove(address)?;
        let amount = self.amount(block.size);
        self.counts.live_blocks = self.counts.live_blocks.saturating_sub(amount.blocks);
        self.counts.live_bytes = self.counts.live_bytes.saturating_sub(amount.bytes);
        self.tallies.remove(block.site, amount);
        if let Some(sample) = &mut self.sample {
            sample.take(block.size);
        }
        Some(block)
    }

    fn place(&mut self, address: u64, block: Block, made: Made) {
        if address == 0 {
            return;
        }
        if let Some(older) = self.take(address) {
            self.displace(address, block.time_ns, older);
        }
        self.freed.forget(address);
        self.blocks.insert(address, block);
        let amount = self.amount(block.size);
        self.counts.live_blocks += amount.blocks;
        self.counts.live_bytes = self.counts.live_bytes.saturating_add(amount.bytes);
        self.tallies.add(block.site, amount, made);
        if let Some(sample) = &mut self.sample {
            sample.place(block.size);
        }
        if self.counts.live_bytes > self.counts.peak_live_bytes {
            self.counts.peak_live_bytes = self.counts.live_bytes;
            self.tallies.new_peak();
        }
    }

    fn displace(&mut self, address: u64, time_ns: u64, block: Block) {
        if self.displaced.len() >= DISPLACED_LIMIT {
            self.counts.implied_frees += self.displaced.len() as u64;
            self.displaced.clear();
        }
        if self.displaced.insert(address, (time_ns, block)).is_some() {
            self.counts.implied_frees += 1;
        }
    }

    /// A block was handed out: counts its bytes, and tells what it counts for.
    fn count(&mut self, size: u64) -> Amount {
        let amount = self.amount(size);
        self.counts.bytes_allocated = self.counts.bytes_allocated.saturating_add(amount.bytes);
        if let Some(sample) = &mut self.sample {
            sample.allocate(size);
        }
        amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(time_ns: u64, size: u64) -> Block {
        Block {
            size,
            time_ns,
            site: 0,
        }
    }

    fn live(heap: &Heap) -> Vec<(u64, u64)> {
        let mut all: Vec<_> = heap.blocks().map(|(at, block)| (at, block.size)).collect();
        all.sort_unstable();
        let bytes: u64 = all.iter().map(|(_, size)| size).sum();
        assert_eq!(heap.counts.live_bytes, bytes);
        assert_eq!(heap.counts.live_blocks, all.len() as u64);
        all
    }

    #[test]
    fn counts_and_peak() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(32, block(2, 50));
        heap.free(u64::MAX, 16);
        heap.free(u64::MAX, 0);
        heap.allocate(16, block(3, 20));
        heap.fail();
        heap.reallocate(3, 32, 48, block(4, 60));
        heap.reallocate(4, 48, 48, block(5, 10));
        heap.reallocate(5, 0, 64, block(6, 7));
        assert_eq!(live(&heap), [(16, 20), (48, 10), (64, 7)]);
        let expected = Counts {
            allocations: 4,
            frees: 1,
            reallocations: 2,
            failed: 1,
            bytes_allocated: 100 + 50 + 20 + 60 + 10 + 7,
            live_blocks: 3,
            live_bytes: 37,
            peak_live_bytes: 150,
            ..Counts::default()
        };
        assert_eq!(heap.counts(), expected);
    }

    #[test]
    fn wrong_frees_are_told_apart() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.free(u64::MAX, 16);
        heap.free(u64::MAX, 16);
        heap.free(u64::MAX, 99);
        heap.reallocate(5, 16, 32, block(6, 8));
        let counts = heap.counts();
        assert_eq!((counts.repeated_frees, counts.unknown_frees), (1, 1));
        assert_eq!((counts.unknown_reallocations, counts.frees), (1, 3));
        assert_eq!(live(&heap), [(32, 8)]);
    }

    #[test]
    fn a_realloc_told_late_takes_its_own_block() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(16, block(12, 30));
        heap.reallocate(10, 16, 64, block(15, 200));
        assert_eq!(live(&heap), [(16, 30), (64, 200)]);
        assert_eq!(heap.counts().implied_frees, 0);
        assert_eq!(heap.counts().unknown_reallocations, 0);
        heap.free(u64::MAX, 16);
        heap.free(u64::MAX, 64);
        assert_eq!(live(&heap), []);
        assert_eq!(heap.counts().unknown_frees, 0);
    }

    #[test]
    fn the_other_thread_may_have_freed_it_already() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(16, block(12, 30));
        heap.free(u64::MAX, 16);
        heap.reallocate(10, 16, 64, block(15, 200));
        assert_eq!(live(&heap), [(64, 200)]);
        assert_eq!(heap.counts().unknown_reallocations, 0);
    }

    #[test]
    fn a_younger_block_is_not_the_reallocs() {
        let mut heap = Heap::default();
        heap.allocate(16, block(12, 30));
        heap.reallocate(10, 16, 64, block(15, 200));
        assert_eq!(live(&heap), [(16, 30), (64, 200)]);
        assert_eq!(heap.counts().unknown_reallocations, 1);
    }

    #[test]
    fn a_free_told_late_spares_the_next_owner_of_the_address() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(16, block(12, 30));
        heap.free(10, 16);
        assert_eq!(live(&heap), [(16, 30)]);
        heap.free(20, 16);
        assert_eq!(live(&heap), []);
        let counts = heap.counts();
        assert_eq!((counts.frees, counts.repeated_frees), (2, 0));
        assert_eq!(counts.implied_frees, 0);
    }

    #[test]
    fn an_address_handed_out_twice_was_freed_unseen() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(16, block(2, 30));
        heap.allocate(16, block(3, 20));
        assert_eq!(live(&heap), [(16, 20)]);
        assert_eq!(heap.counts().implied_frees, 2);
        heap.reallocate(4, 16, 32, block(5, 1));
        assert_eq!(live(&heap), [(32, 1)]);
    }

    #[test]
    fn a_child_inherits_blocks_not_counts() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(32, block(1, 50));
        heap.free(u64::MAX, 32);
        let mut child = heap.fork();
        assert_eq!(child.counts().peak_live_bytes, 100);
        assert_eq!(child.counts().allocations, 0);
        child.free(u64::MAX, 32);
        child.free(u64::MAX, 16);
        assert_eq!(child.counts().repeated_frees, 1);
        assert_eq!(live(&child), []);
        assert_eq!(live(&heap), [(16, 100)]);
    }

    #[test]
    fn realloc_to_nothing_is_a_free() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.reallocate(2, 16, 0, block(3, 0));
        assert_eq!((heap.counts().frees, heap.counts().reallocations), (1, 0));
        assert_eq!(live(&heap), []);
    }

    #[test]
    fn a_sample_is_told_as_what_it_stands_for() {
        let mut heap = Heap::default();
        heap.sample(1_048_576);
        // Of this size, half of the blocks are in the sample: one stands for two, with these bytes.
        let (size, two) = (726_817, 1_453_635);
        heap.allocate(16, block(1, size));
        heap.allocate(32, block(2, size));
        heap.free(u64::MAX, 32);
        heap.free(u64::MAX, 48);
        heap.reallocate(3, 16, 0, block(4, size));
        heap.reallocate(5, 64, 80, block(6, size));
        let counts = heap.counts();
        assert_eq!((counts.allocations, counts.frees), (4, 2));
        assert_eq!((counts.reallocations, counts.live_blocks), (2, 2));
        assert_eq!(counts.live_bytes, two);
        assert_eq!(counts.bytes_allocated, 3 * two);
        assert_eq!(counts.peak_live_bytes, 2 * two);
        assert_eq!(counts.unmatched(false), 0);
        let sampled = counts.sampled.unwrap();
        assert_eq!((sampled.mean_bytes, sampled.blocks), (1_048_576, 3));
        assert_eq!((sampled.live.blocks, sampled.live.bytes), (1, 1_027_875));
        assert_eq!(sampled.allocated.blocks, 2);
        let child = heap.fork().counts();
        assert_eq!((child.allocations, child.live_bytes), (0, two));
        assert_eq!(child.sampled.unwrap().blocks, 0);
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, u64::MAX));
        heap.allocate(32, block(1, u64::MAX));
        heap.free(u64::MAX, 16);
        heap.free(u64::MAX, 32);
        assert_eq!(heap.counts().live_bytes, 0);
    }
}
