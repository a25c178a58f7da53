//! Allocation sites: the stacks that blocks were handed out at.

use rustc_hash::FxHashMap;

use crate::event::StackId;

use super::{blocks::Block, heap::Heap};

/// Stacks and their short numbers, for the whole trace.
#[derive(Debug, Default)]
pub struct Sites {
    frames: FxHashMap<StackId, Box<[u64]>>,
    index: FxHashMap<StackId, u32>,
    stacks: Vec<StackId>,
}

impl Sites {
    /// The frames of a stack were told.
    pub fn define(&mut self, id: StackId, frames: &[u64]) {
        self.frames.insert(id, frames.into());
    }

    /// The number of the site with this stack.
    pub fn intern(&mut self, id: StackId) -> u32 {
        let next = self.stacks.len() as u32;
        let site = *self.index.entry(id).or_insert(next);
        if site == next {
            self.stacks.push(id);
        }
        site
    }

    /// The frames of a site, innermost first; empty where none were told.
    pub fn frames(&self, site: u32) -> &[u64] {
        self.stacks
            .get(site as usize)
            .and_then(|id| self.frames.get(id))
            .map_or(&[], |frames| frames)
    }
}

/// Live blocks of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Number of the site.
    pub site: u32,
    /// Bytes asked for.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// When the oldest was handed out, in nanoseconds.
    pub oldest_ns: u64,
    /// When the newest was handed out, in nanoseconds.
    pub newest_ns: u64,
}

impl Live {
    fn add(&mut self, block: &Block) {
        self.bytes = self.bytes.saturating_add(block.size);
        self.blocks += 1;
        self.oldest_ns = self.oldest_ns.min(block.time_ns);
        self.newest_ns = self.newest_ns.max(block.time_ns);
    }
}

/// The sites of a heap's live blocks, most bytes first.
pub fn live_sites(heap: &Heap) -> Vec<Live> {
    let mut sites: FxHashMap<u32, Live> = FxHashMap::default();
    for (_, block) in heap.blocks() {
        sites
            .entry(block.site)
            .or_insert(Live {
                site: block.site,
                bytes: 0,
                blocks: 0,
                oldest_ns: u64::MAX,
                newest_ns: 0,
            })
            .add(&block);
    }
    let mut sites: Vec<Live> = sites.into_values().collect();
    sites.sort_unstable_by_key(|live| {
        let order = std::cmp::Reverse((live.bytes, live.blocks));
        (order, live.site)
    });
    sites
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_summed_and_sorted() {
        let mut sites = Sites::default();
        let (small, large) = (sites.intern(7), sites.intern(9));
        assert_eq!(sites.intern(7), small);
        sites.define(9, &[1, 2]);
        assert_eq!(sites.frames(large), [1, 2]);
        assert_eq!(sites.frames(small), [0u64; 0]);
        assert_eq!(sites.frames(77), [0u64; 0]);
        let mut heap = Heap::default();
        for (address, size, time_ns, site) in
            [(16, 10, 5, small), (32, 20, 3, small), (48, 100, 9, large)]
        {
            let block = Block {
                size,
                time_ns,
                site,
            };
            heap.allocate(address, block);
        }
        let live = live_sites(&heap);
        assert_eq!(live.len(), 2);
        assert_eq!(
            (live[0].site, live[0].bytes, live[0].blocks),
            (large, 100, 1)
        );
        let expected = Live {
            site: small,
            bytes: 30,
            blocks: 2,
            oldest_ns: 3,
            newest_ns: 5,
        };
        assert_eq!(live[1], expected);
    }
}
