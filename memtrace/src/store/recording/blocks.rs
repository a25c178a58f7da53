//! Blocks are foreseen as allocators give them out: what was freed last of a size is handed out first, and blocks
//! are freed in the order in which they were made.
//!
//! Blocks are numbered in the order in which they were given out, over all processes, and the last [`KNOWN`] are
//! known. A block that is freed is told by the distance of its number to that of the block freed before. A block
//! that is given out is told by its place among those that its process freed last of the same size, or by its
//! distance to the end of the one before that was told so. Both sides keep the same tables of a fixed size, so a
//! wrong foresight costs bytes and nothing else.

use rustc_hash::FxHashMap;

use super::packed::{unzigzag, zigzag};
use crate::event::Pid;

/// Blocks that may be named by their number.
const KNOWN: usize = 1 << 18;

/// Freed blocks of one size of a process.
const DEPTH: usize = 8;

/// Places for sizes of processes; those that share one push each other's blocks out.
const SIZES: usize = 1 << 12;

/// Freed addresses, the last one first.
type Pile = [u64; DEPTH];

#[derive(Clone, Copy, Debug)]
struct Block {
    address: u64,
    pid: Pid,
    /// Where it goes when it is freed.
    place: u32,
}

/// What both sides know.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The last blocks by their number, modulo [`KNOWN`].
    known: Vec<Block>,
    /// Blocks given out so far.
    next: u64,
    /// Number of the block that was freed last.
    last_freed: u64,
    /// By place; empty until one is needed.
    freed: Vec<Pile>,
    /// Where the block ends that was last told by an address, and the one that was so freed.
    end: u64,
    freed_at: u64,
}

/// Bytes that glibc takes for a block.
fn chunk(size: u64) -> u64 {
    (size.wrapping_add(8 + 15) & !15).max(32)
}

impl Blocks {
    fn place_of(pid: Pid, size: u64) -> u32 {
        let key = u64::from(pid) << 32 ^ chunk(size) >> 4;
        // The upper bits of a product depend on all of the key.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SIZES.trailing_zeros())) as u32
    }

    /// Numbers a block; gives the one that is not known any more.
    fn add(&mut self, address: u64, pid: Pid, place: u32) -> Option<Block> {
        let block = Block {
            address,
            pid,
            place,
        };
        let at = self.next as usize % KNOWN;
        self.next += 1;
        match self.known.get_mut(at) {
            Some(old) => Some(std::mem::replace(old, block)),
            None => {
                self.known.push(block);
                None
            }
        }
    }

    fn pile(&mut self, place: u32) -> &mut Pile {
        if self.freed.is_empty() {
            self.freed.resize(SIZES, Pile::default());
        }
        &mut self.freed[place as usize]
    }

    fn take_again(&mut self, place: u32, nth: usize) -> u64 {
        let pile = self.pile(place);
        let address = pile[nth];
        pile.copy_within(nth + 1.., nth);
        pile[DEPTH - 1] = 0;
        address
    }

    fn give_back(&mut self, number: u64) -> u64 {
        let Block { address, place, .. } = self.known[number as usize % KNOWN];
        self.last_freed = number;
        let pile = self.pile(place);
        pile.copy_within(..DEPTH - 1, 1);
        pile[0] = address;
        address
    }

    /// A block that is the `nth` last freed one of its size, counted from 1.
    pub(super) fn place_again(&mut self, pid: Pid, size: u64, nth: u8) -> Result<u64, String> {
        if usize::from(nth) > DEPTH {
            return Err("its block was not freed".to_owned());
        }
        let place = Self::place_of(pid, size);
        let address = self.take_again(place, usize::from(nth) - 1);
        self.add(address, pid, place);
        Ok(address)
    }

    /// A block that was told by its distance.
    pub(super) fn place(&mut self, pid: Pid, size: u64, step: u64) -> u64 {
        let address = self.end.wrapping_add(unzigzag(step));
        self.end = address.wrapping_add(chunk(size));
        self.add(address, pid, Self::place_of(pid, size));
        address
    }

    /// A block is freed that is known by its number.
    pub(super) fn free(&mut self, step: u64) -> Result<u64, String> {
        let number = self.last_freed.wrapping_add(unzigzag(step));
        let age = self.next.wrapping_sub(number);
        if age == 0 || age > self.known.len() as u64 {
            return Err("its block is not known".to_owned());
        }
        Ok(self.give_back(number))
    }

    /// A block is freed that is not.
    pub(super) fn free_at(&mut self, step: u64) -> u64 {
        self.freed_at = self.freed_at.wrapping_add(unzigzag(step));
        self.freed_at
    }
}

/// How a block that was given out is told.
pub(super) enum Placed {
    /// The so-manieth last freed one, from 1 on.
    Again(u8),
    /// By its distance.
    At(u64),
}

/// How a block that is freed is told.
pub(super) enum Freed {
    /// By the distance of its number.
    Block(u64),
    /// By that of its address.
    At(u64),
}

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct Numbered {
    blocks: Blocks,
    /// Blocks that are known and not freed.
    numbers: FxHashMap<(Pid, u64), u64>,
}

impl Numbered {
    /// A block is given out.
    pub(super) fn place(&mut self, pid: Pid, address: u64, size: u64) -> Placed {
        let blocks = &mut self.blocks;
        let place = Blocks::place_of(pid, size);
        let mut pile = blocks.pile(place).iter();
        let placed = match pile.position(|&freed| freed == address) {
            Some(nth) => {
                blocks.take_again(place, nth);
                Placed::Again(nth as u8 + 1)
            }
            None => {
                let step = zigzag(address.wrapping_sub(blocks.end));
                blocks.end = address.wrapping_add(chunk(size));
                Placed::At(step)
            }
        };
        let number = blocks.next;
        if let Some(old) = blocks.add(address, pid, place) {
            let key = (old.pid, old.address);
            if self.numbers.get(&key) == Some(&(number - KNOWN as u64)) {
                self.numbers.remove(&key);
            }
        }
        self.numbers.insert((pid, address), number);
        placed
    }

    /// A block is freed.
    pub(super) fn free(&mut self, pid: Pid, address: u64) -> Freed {
        let blocks = &mut self.blocks;
        match self.numbers.remove(&(pid, address)) {
            Some(number) => {
                let step = zigzag(number.wrapping_sub(blocks.last_freed));
                blocks.give_back(number);
                Freed::Block(step)
            }
            None => {
                let step = zigzag(address.wrapping_sub(blocks.freed_at));
                blocks.freed_at = address;
                Freed::At(step)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells what happens to a reader, which is to find the address.
    fn placed(writer: &mut Numbered, reader: &mut Blocks, pid: Pid, address: u64, size: u64) -> u8 {
        let (nth, read) = match writer.place(pid, address, size) {
            Placed::Again(nth) => (nth, reader.place_again(pid, size, nth)),
            Placed::At(step) => (0, Ok(reader.place(pid, size, step))),
        };
        assert_eq!(read, Ok(address));
        nth
    }

    fn freed(writer: &mut Numbered, reader: &mut Blocks, pid: Pid, address: u64) -> Option<u64> {
        let (step, read) = match writer.free(pid, address) {
            Freed::Block(step) => (Some(step), reader.free(step)),
            Freed::At(step) => (None, Ok(reader.free_at(step))),
        };
        assert_eq!(read, Ok(address));
        step
    }

    #[test]
    fn what_was_freed_last_of_a_size_is_foreseen() {
        let (writer, reader) = (&mut Numbered::default(), &mut Blocks::default());
        for address in [0x1010, 0x1030, 0x1050] {
            assert_eq!(placed(writer, reader, 7, address, 24), 0);
        }
        // One after the other, as they were made.
        assert_eq!(freed(writer, reader, 7, 0x1010), Some(0));
        assert_eq!(freed(writer, reader, 7, 0x1030), Some(2));
        assert_eq!(freed(writer, reader, 7, 0x1050), Some(2));
        // Not to another process, nor of another size.
        assert_eq!(placed(writer, reader, 8, 0x1050, 24), 0);
        assert_eq!(placed(writer, reader, 7, 0x1030, 200), 0);
        assert_eq!(placed(writer, reader, 7, 0x1050, 20), 1);
        assert_eq!(placed(writer, reader, 7, 0x1010, 24), 2);
        assert_eq!(placed(writer, reader, 7, 0x1030, 24), 1);
    }

    #[test]
    fn a_block_that_is_not_known_is_told_by_its_address() {
        let (writer, reader) = (&mut Numbered::default(), &mut Blocks::default());
        assert_eq!(freed(writer, reader, 7, 0x1010), None);
        placed(writer, reader, 7, 0x1010, 24);
        assert_eq!(freed(writer, reader, 8, 0x1010), None);
        assert!(freed(writer, reader, 7, 0x1010).is_some());
        assert_eq!(freed(writer, reader, 7, 0x1010), None);
    }

    #[test]
    fn only_the_last_blocks_are_known() {
        let (writer, reader) = (&mut Numbered::default(), &mut Blocks::default());
        let address = |number: usize| number as u64 * 32;
        for number in 0..=KNOWN {
            placed(writer, reader, 7, address(number), 24);
        }
        assert_eq!(writer.numbers.len(), KNOWN);
        assert_eq!(freed(writer, reader, 7, address(0)), None);
        assert!(freed(writer, reader, 7, address(1)).is_some());
        assert!(freed(writer, reader, 7, address(KNOWN)).is_some());
    }

    #[test]
    fn numbers_that_no_writer_tells_are_refused() {
        let mut reader = Blocks::default();
        assert!(reader.free(0).is_err());
        reader.place(7, 24, zigzag(0x1010));
        assert!(reader.free(zigzag(1)).is_err());
        assert!(reader.free(zigzag(u64::MAX)).is_err());
        assert!(reader.place_again(7, 24, DEPTH as u8 + 1).is_err());
        assert_eq!(reader.free(0), Ok(0x1010));
    }
}
