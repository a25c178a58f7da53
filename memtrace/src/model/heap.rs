//! The heap of an address space: its live blocks and its counts.
//!
//! Events of several threads overlap, as system calls do. A realloc gives its old block back at some
//! moment between its entry and its return, and another thread may have been handed the address
//! before the return is told. So a block whose address is handed out again is set aside, and the
//! realloc that owns it, recognised by having been entered before, takes it from there.

use rustc_hash::FxHashMap;

use super::{
    blocks::{Block, Blocks},
    freed::Freed,
    tally::{Made, Tallies},
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
    counts: Counts,
    tallies: Tallies,
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
        self.counts.allocations += 1;
        self.count_bytes(block.size);
        self.place(address, block, Made::Allocated);
    }

    /// A call got nothing.
    pub fn fail(&mut self) {
        self.counts.failed += 1;
    }

    /// The program gives a block back.
    pub fn free(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        self.counts.frees += 1;
        if self.take(address).is_some() {
            self.freed.note(address);
        } else if self.freed.contains(address) {
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
            self.free(old_address);
            if address != 0 {
                self.allocate(address, block);
            }
            return;
        }
        self.counts.reallocations += 1;
        self.count_bytes(block.size);
        if !self.claim(entered_ns, old_address) {
            self.counts.unknown_reallocations += 1;
        }
        if old_address != address && self.blocks.get(old_address).is_none() {
            self.freed.note(old_address);
        }
        self.place(address, block, Made::Reallocated);
    }

    /// Gives the old block of a realloc back: one set aside since it began, or the live one if it is
    /// no younger. A younger one belongs to another thread.
    fn claim(&mut self, entered_ns: u64, address: u64) -> bool {
        if self
            .displaced
            .get(&address)
            .is_some_and(|(at, block)| *at >= entered_ns && block.time_ns <= entered_ns)
        {
            self.displaced.remove(&address);
            return true;
        }
        match self.blocks.get(address) {
            Some(block) if block.time_ns <= entered_ns => self.take(address).is_some(),
            _ => false,
        }
    }

    fn take(&mut self, address: u64) -> Option<Block> {
        let block = self.blocks.remove(address)?;
        self.counts.live_blocks = self.counts.live_blocks.saturating_sub(1);
        self.counts.live_bytes = self.counts.live_bytes.saturating_sub(block.size);
        self.tallies.remove(block.site, block.size);
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
        self.counts.live_blocks += 1;
        self.counts.live_bytes = self.counts.live_bytes.saturating_add(block.size);
        self.tallies.add(block.site, block.size, made);
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

    fn count_bytes(&mut self, size: u64) {
        self.counts.bytes_allocated = self.counts.bytes_allocated.saturating_add(size);
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
        heap.free(16);
        heap.free(0);
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
        heap.free(16);
        heap.free(16);
        heap.free(99);
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
        heap.free(16);
        heap.free(64);
        assert_eq!(live(&heap), []);
        assert_eq!(heap.counts().unknown_frees, 0);
    }

    #[test]
    fn the_other_thread_may_have_freed_it_already() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, 100));
        heap.allocate(16, block(12, 30));
        heap.free(16);
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
        heap.free(32);
        let mut child = heap.fork();
        assert_eq!(child.counts().peak_live_bytes, 100);
        assert_eq!(child.counts().allocations, 0);
        child.free(32);
        child.free(16);
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
    fn absurd_sizes_do_not_overflow() {
        let mut heap = Heap::default();
        heap.allocate(16, block(1, u64::MAX));
        heap.allocate(32, block(1, u64::MAX));
        heap.free(16);
        heap.free(32);
        assert_eq!(heap.counts().live_bytes, 0);
    }
}
