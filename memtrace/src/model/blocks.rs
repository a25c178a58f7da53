//! The live blocks of a heap, cheap to inherit.
//!
//! A fork copies the heap, and most children exec at once and throw it away. So blocks lie in layers:
//! fork freezes the top one, and parent and child share all frozen ones. A frozen block is given back
//! by a tombstone in the top layer, or directly once nobody else holds its layer. Layers are merged
//! like those of a log-structured tree, when an upper one has grown to half of the next: the depth
//! stays logarithmic and a big heap is not copied for each small fork.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::block_table::BlockTable;

/// A live block; its address is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Bytes asked for.
    pub size: u64,
    /// When it was handed out, in nanoseconds.
    pub time_ns: u64,
    /// Index into [`super::site::Sites`].
    pub site: u32,
}

#[derive(Clone, Debug, Default)]
struct Layer {
    blocks: BlockTable,
    /// Addresses that are not live although an older layer holds them.
    dead: FxHashSet<u64>,
}

impl Layer {
    fn weight(&self) -> usize {
        self.blocks.len() + self.dead.len()
    }
}

/// Live blocks by address.
#[derive(Debug, Default)]
pub struct Blocks {
    top: Layer,
    /// Oldest first.
    frozen: Vec<Arc<Layer>>,
}

impl Blocks {
    /// Adds a block. The address is not 0 and must not be live: [`Blocks::remove`] it first.
    pub fn insert(&mut self, address: u64, block: Block) {
        self.top.blocks.insert(address, block);
    }

    /// The live block at `address`.
    pub fn get(&self, address: u64) -> Option<Block> {
        if let Some(block) = self.top.blocks.get(address) {
            return Some(block);
        }
        let mut newer = &self.top;
        for layer in self.frozen.iter().rev() {
            if newer.dead.contains(&address) {
                return None;
            }
            if let Some(block) = layer.blocks.get(address) {
                return Some(block);
            }
            newer = layer;
        }
        None
    }

    /// Takes the live block at `address` out.
    pub fn remove(&mut self, address: u64) -> Option<Block> {
        if let Some(block) = self.top.blocks.remove(address) {
            return Some(block);
        }
        if self.frozen.is_empty() {
            return None;
        }
        let found = self.get(address)?;
        let mut newest = self
            .frozen
            .iter_mut()
            .rev()
            .find(|layer| layer.blocks.contains(address));
        match newest.as_mut().and_then(|layer| Arc::get_mut(layer)) {
            Some(layer) => {
                layer.blocks.remove(address);
            }
            None => {
                self.top.dead.insert(address);
            }
        }
        Some(found)
    }

    /// The blocks as a child inherits them.
    pub fn fork(&mut self) -> Self {
        self.freeze();
        Self {
            top: Layer::default(),
            frozen: self.frozen.clone(),
        }
    }

    fn freeze(&mut self) {
        if self.top.weight() == 0 {
            return;
        }
        let mut upper = std::mem::take(&mut self.top);
        while let Some(lower) = self.frozen.pop() {
            if upper.weight() * 2 < lower.weight() {
                self.frozen.push(lower);
                break;
            }
            let lower = Arc::try_unwrap(lower).unwrap_or_else(|shared| (*shared).clone());
            upper = merged(lower, upper, self.frozen.is_empty());
        }
        self.frozen.push(Arc::new(upper));
    }

    /// Every live block with its address, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Block)> {
        let layers: Vec<&Layer> = self
            .frozen
            .iter()
            .map(|layer| &**layer)
            .chain([&self.top])
            .collect();
        (0..layers.len()).flat_map(move |index| {
            let (layer, newer) = (layers[index], layers[index + 1..].to_vec());
            layer
                .blocks
                .iter()
                .filter(move |(address, _)| !newer.iter().any(|layer| layer.dead.contains(address)))
        })
    }
}

/// `upper` laid over `lower`; tombstones are of no use at the bottom.
fn merged(mut lower: Layer, upper: Layer, bottom: bool) -> Layer {
    for address in upper.dead {
        lower.blocks.remove(address);
        if !bottom {
            lower.dead.insert(address);
        }
    }
    for (address, block) in upper.blocks.iter() {
        lower.blocks.insert(address, block);
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn block(size: u64) -> Block {
        Block {
            size,
            time_ns: 0,
            site: 0,
        }
    }

    fn contents(blocks: &Blocks) -> BTreeMap<u64, u64> {
        let all: Vec<_> = blocks.iter().collect();
        let map: BTreeMap<u64, u64> = all.iter().map(|(at, block)| (*at, block.size)).collect();
        assert_eq!(map.len(), all.len(), "an address twice");
        map
    }

    #[test]
    fn parent_and_child_go_their_own_ways() {
        let mut parent = Blocks::default();
        for address in 1..=4 {
            parent.insert(address, block(10 * address));
        }
        let mut child = parent.fork();
        assert_eq!(child.remove(1), Some(block(10)));
        assert_eq!(child.remove(1), None);
        child.insert(1, block(99));
        assert_eq!(parent.remove(2), Some(block(20)));
        parent.insert(5, block(50));
        assert_eq!(
            contents(&child),
            BTreeMap::from([(1, 99), (2, 20), (3, 30), (4, 40)])
        );
        assert_eq!(
            contents(&parent),
            BTreeMap::from([(1, 10), (3, 30), (4, 40), (5, 50)])
        );
    }

    #[test]
    fn a_big_heap_is_shared_not_copied() {
        let mut parent = Blocks::default();
        for address in 1..=10_000 {
            parent.insert(address, block(1));
        }
        let first = parent.fork();
        parent.insert(20_000, block(1));
        let second = parent.fork();
        assert!(Arc::ptr_eq(&first.frozen[0], &second.frozen[0]));
        drop((first, second));
        parent.remove(5);
        assert!(parent.top.dead.is_empty(), "sole owner: no tombstone");
        assert_eq!(parent.frozen[0].blocks.len(), 9_999);
    }

    /// Random forks, allocations and frees in a family of heaps against plain maps.
    #[test]
    fn behaves_like_copied_maps() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        let mut family: Vec<(Blocks, BTreeMap<u64, u64>)> = vec![Default::default()];
        for step in 0..50_000 {
            let at = random(family.len() as u64) as usize;
            let (blocks, naive) = &mut family[at];
            let address = 1 + random(200);
            match random(100) {
                0 => {
                    let copy = (blocks.fork(), naive.clone());
                    if family.len() < 8 {
                        family.push(copy);
                    } else {
                        let other = random(8) as usize;
                        family[other] = copy;
                    }
                }
                1..=50 => {
                    let old = blocks.remove(address).map(|block| block.size);
                    assert_eq!(old, naive.remove(&address), "step {step}");
                    blocks.insert(address, block(step));
                    naive.insert(address, step);
                }
                _ => {
                    let expected = naive.remove(&address);
                    assert_eq!(blocks.get(address).map(|block| block.size), expected);
                    let old = blocks.remove(address).map(|block| block.size);
                    assert_eq!(old, expected, "step {step}");
                }
            }
            if step % 500 == 0 {
                for (blocks, naive) in &family {
                    assert_eq!(contents(blocks), *naive, "step {step}");
                    assert!(blocks.frozen.len() < 12);
                }
            }
        }
    }
}
