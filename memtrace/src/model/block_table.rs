//! Blocks by address, with little air between them: 27 to 31 bytes a block, keys included.
//!
//! Entries lie in the order of their hashes (ordered linear probing: Amble and Knuth, "Ordered hash tables",
//! 1974), each at or behind its home. So a table can be filled to 7/8 and still be searched in a few steps, a search
//! in vain ends as early as one that finds, and a table is copied to another size in one pass. A full table grows by
//! an eighth, where a doubling would leave half of it empty on average.
//! Many blocks are spread over several tables by the first bits of the hash: a table is small enough to be copied
//! between two events.

use rustc_hash::FxHashMap;

use super::blocks::Block;

/// One block. An address of 0 is an empty place: no block has it.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    address: u64,
    time_ns: u64,
    /// Bytes, or [`LARGE`].
    size: u32,
    site: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);

/// The size is in [`BlockTable::large`].
const LARGE: u32 = u32::MAX;

/// Entries of a table on average, beyond which there are twice as many tables.
const TABLE: usize = 16_384;

/// Homes of the smallest table.
const FEWEST: usize = 14;

/// Live blocks by address, which is never 0.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    /// A power of two of them, or none.
    tables: Vec<Table>,
    len: usize,
    /// Sizes of 4 GiB and more, by address.
    large: FxHashMap<u64, u64>,
}

impl BlockTable {
    /// Blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The block at `address`.
    pub fn get(&self, address: u64) -> Option<Block> {
        let hash = hash(address);
        let table = self.tables.get(self.index(hash))?;
        let entry = table.entries[table.find(self.within(hash), self.bits(), address)?];
        Some(self.block(&entry))
    }

    /// Whether there is a block at `address`.
    pub fn contains(&self, address: u64) -> bool {
        self.get(address).is_some()
    }

    /// Adds a block, whose address is not 0 and no other block's here.
    pub fn insert(&mut self, address: u64, block: Block) {
        if self.len >= self.tables.len() * TABLE {
            self.spread();
        }
        let size = u32::try_from(block.size).unwrap_or(LARGE);
        if size == LARGE {
            self.large.insert(address, block.size);
        }
        let entry = Entry {
            address,
            time_ns: block.time_ns,
            size,
            site: block.site,
        };
        let (index, bits) = (self.index(hash(address)), self.bits());
        self.tables[index].insert(entry, bits);
        self.len += 1;
    }

    /// Takes the block at `address` out.
    pub fn remove(&mut self, address: u64) -> Option<Block> {
        let hash = hash(address);
        let (index, within, bits) = (self.index(hash), self.within(hash), self.bits());
        let table = self.tables.get_mut(index)?;
        let entry = table.remove(table.find(within, bits, address)?, bits);
        self.len -= 1;
        let block = self.block(&entry);
        if entry.size == LARGE {
            self.large.remove(&address);
        }
        Some(block)
    }

    /// Every block with its address, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Block)> {
        let entries = self.tables.iter().flat_map(|table| &table.entries);
        let taken = entries.filter(|entry| entry.address != 0);
        taken.map(|entry| (entry.address, self.block(entry)))
    }

    fn block(&self, entry: &Entry) -> Block {
        let size = match entry.size {
            LARGE => self
                .large
                .get(&entry.address)
                .copied()
                .unwrap_or(u64::from(LARGE)),
            size => u64::from(size),
        };
        Block {
            size,
            time_ns: entry.time_ns,
            site: entry.site,
        }
    }

    /// Bits of the hash that choose the table.
    fn bits(&self) -> u32 {
        self.tables.len().checked_ilog2().unwrap_or(0)
    }

    fn index(&self, hash: u64) -> usize {
        // In two steps: a shift by 64 is none.
        (hash >> 1 >> (63 - self.bits())) as usize
    }

    /// The bits of the hash that choose the place in the table, first.
    fn within(&self, hash: u64) -> u64 {
        hash << self.bits()
    }

    /// Makes each table two: its entries are in the order of their hashes already.
    fn spread(&mut self) {
        let bits = self.bits() + u32::from(!self.tables.is_empty());
        let old = std::mem::take(&mut self.tables);
        self.tables.reserve_exact(1 << bits);
        if old.is_empty() {
            self.tables.push(Table::default());
        }
        for table in old {
            let taken: Vec<&Entry> = table
                .entries
                .iter()
                .filter(|entry| entry.address != 0)
                .collect();
            let is_lower = |entry: &&Entry| hash(entry.address) << (bits - 1) >> 63 == 0;
            let (lower, upper) = taken.split_at(taken.partition_point(is_lower));
            for half in [lower, upper] {
                let entries = half.iter().copied();
                self.tables
                    .push(Table::of(entries, half.len(), half.len() * 9 / 7, bits));
            }
        }
    }
}

/// One table.
#[derive(Clone, Debug, Default)]
struct Table {
    /// Homes, and room behind the last of them.
    entries: Vec<Entry>,
    len: usize,
    homes: usize,
}

impl Table {
    /// A table of `len` entries, which come in the order of their hashes.
    fn of<'a>(
        entries: impl Iterator<Item = &'a Entry>,
        len: usize,
        homes: usize,
        bits: u32,
    ) -> Self {
        let homes = homes.max(FEWEST);
        let mut table = Self {
            // Neighbours share a home, so that the last homes overflow by some tens of entries.
            entries: Vec::with_capacity(homes + (homes / 8).min(256) + 8),
            len,
            homes,
        };
        for entry in entries {
            let home = table.home(hash(entry.address) << bits);
            if table.entries.len() < home {
                table.entries.resize(home, Entry::default());
            }
            table.entries.push(*entry);
        }
        let room = table.entries.capacity();
        table.entries.resize(room, Entry::default());
        table
    }

    fn home(&self, within: u64) -> usize {
        ((u128::from(within) * self.homes as u128) >> 64) as usize
    }

    /// Where `address` is.
    fn find(&self, within: u64, bits: u32, address: u64) -> Option<usize> {
        let mut at = self.home(within);
        loop {
            let entry = self.entries.get(at)?;
            if entry.address == address {
                return Some(at);
            }
            if entry.address == 0 || hash(entry.address) << bits > within {
                return None;
            }
            at += 1;
        }
    }

    /// Adds an entry whose address is not there.
    fn insert(&mut self, entry: Entry, bits: u32) {
        if (self.len + 1) * 8 > self.homes * 7 {
            self.grow(bits);
        }
        let within = hash(entry.address) << bits;
        loop {
            let mut at = self.home(within);
            while let Some(other) = self.entries.get(at)
                && other.address != 0
                && hash(other.address) << bits < within
            {
                at += 1;
            }
            let rest = self.entries.get(at..).unwrap_or_default();
            if let Some(gap) = rest.iter().position(|entry| entry.address == 0) {
                self.entries.copy_within(at..at + gap, at + 1);
                self.entries[at] = entry;
                self.len += 1;
                return;
            }
            // Full behind this home, though not elsewhere.
            self.grow(bits);
        }
    }

    /// Takes the entry at `at` out, and moves those behind it up that are not at home.
    fn remove(&mut self, at: usize, bits: u32) -> Entry {
        let entry = self.entries[at];
        let mut end = at + 1;
        while let Some(next) = self.entries.get(end)
            && next.address != 0
            && self.home(hash(next.address) << bits) < end
        {
            end += 1;
        }
        self.entries.copy_within(at + 1..end, at);
        self.entries[end - 1] = Entry::default();
        self.len -= 1;
        if self.homes > FEWEST && self.len * 2 < self.homes {
            self.resize(self.len * 9 / 7, bits);
        }
        entry
    }

    fn grow(&mut self, bits: u32) {
        self.resize(self.homes + self.homes / 8 + 8, bits);
    }

    fn resize(&mut self, homes: usize, bits: u32) {
        let taken = self.entries.iter().filter(|entry| entry.address != 0);
        *self = Self::of(taken, self.len, homes, bits);
    }
}

/// Addresses that differ in these bits alone are neighbours in a table, too.
const NEAR: u32 = 8;

/// A bijection, so that equal hashes are equal addresses, and the order of hashes is one of addresses. (The mixing is
/// that of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, without the last step,
/// which low bits alone need.)
fn hash(address: u64) -> u64 {
    const BITS: u64 = u64::MAX >> NEAR;
    let place = address >> NEAR;
    let place = (place ^ place >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9) & BITS;
    let place = (place ^ place >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    place << NEAR | address & !(u64::MAX << NEAR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Grows beyond one table and shrinks to nothing, against the standard library's map.
    #[test]
    fn behaves_like_a_map() {
        let mut state = 88_172_645_463_325_252;
        let mut table = BlockTable::default();
        let mut expected: HashMap<u64, Block> = HashMap::new();
        for (steps, inserts) in [(300_000, 70), (300_000, 20)] {
            for step in 0..steps {
                // Some addresses meet again, some lie far apart.
                let address = match random(&mut state) % 4 {
                    0 => random(&mut state) | 1,
                    _ => 0x5555_0000 + random(&mut state) % 60_000 * 16,
                };
                let size = match step % 1000 {
                    0 => 1 << 40,
                    1 => u64::from(u32::MAX),
                    _ => step,
                };
                let block = Block {
                    size,
                    time_ns: step,
                    site: step as u32,
                };
                if random(&mut state) % 100 < inserts {
                    table.remove(address);
                    table.insert(address, block);
                    expected.insert(address, block);
                } else {
                    assert_eq!(table.get(address), expected.get(&address).copied());
                    assert_eq!(table.remove(address), expected.remove(&address));
                }
            }
            let all: HashMap<u64, Block> = table.iter().collect();
            assert_eq!((all.len(), table.len()), (expected.len(), expected.len()));
            assert_eq!(all, expected);
        }
        let addresses: Vec<u64> = expected.keys().copied().collect();
        for address in addresses {
            assert_eq!(table.remove(address), expected.remove(&address));
        }
        assert_eq!((table.len(), table.iter().count()), (0, 0));
        assert!(table.large.is_empty());
        let homes: usize = table.tables.iter().map(|table| table.homes).sum();
        assert!(
            homes <= table.tables.len() * (FEWEST + 1),
            "{homes} homes for nothing"
        );
    }

    #[test]
    fn a_block_takes_no_more_than_32_bytes() {
        let mut table = BlockTable::default();
        for number in 1..=200_000u64 {
            let block = Block {
                size: 48,
                time_ns: number,
                site: 1,
            };
            table.insert(number * 48, block);
            let room: usize = table
                .tables
                .iter()
                .map(|table| table.entries.capacity())
                .sum();
            if number >= 10_000 && number % 100 == 0 {
                assert!(
                    room * 24 <= number as usize * 32,
                    "{room} places for {number}"
                );
            }
        }
    }
}
